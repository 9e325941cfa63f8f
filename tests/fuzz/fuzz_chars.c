/*
** fuzz_chars.c - tables of characters of SentencePiece models that lie: double arrays whose units point
** anywhere, whose replacements begin in the middle of characters or lack an end. Refused, or what comes out
** of valid UTF-8 is valid UTF-8 and nothing beyond the table is read.
**   fuzz_chars [CASES [FIRST]]
** Without random keys no path of the trie is ever walked, so a few keys are laid into the units first.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "text/tokenizer.h"

enum { CASES = 30000, UNITS = 700, TEXT = 48 };

static uint64_t state;

static uint32_t draw (uint32_t n) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return (uint32_t)((z ^ z >> 31) % n);
}

static void put32 (unsigned char *p, uint32_t v) {
  for (int i = 0; i < 4; i++) p[i] = (unsigned char)(v >> 8 * i);
}

static const char *const pieces[] = {
  "a",  "ab", "abc",          "\xC3\xA9",         "e\xCC\x81", "\xEF\xBC\xA1",
  "fi", " ",  "\xE3\x80\x80", "\xF0\x9F\x98\x80", "\xC2\xA0",  "zz"
};
enum { PIECES = sizeof pieces / sizeof *pieces };

static uint32_t room; /* bytes of replacements */

/* Lay a key into the units from node on, over whatever is there. */
static void lay (unsigned char *units, uint32_t n, const char *key) {
  uint32_t node = draw(64) * 4 % n;
  put32(units, node << 10);
  for (const char *p = key; *p != 0; p++) {
    uint32_t c = (unsigned char)*p, offset = draw(n);
    node ^= c;
    if (node >= n) return;
    put32(units + 4 * node, c | (p[1] == 0 || draw(3) == 0 ? 0x100 : 0) | offset << 10);
    node ^= offset;
    if (node >= n) return;
    put32(units + 4 * node, 0x80000000u | draw(room + 4));
  }
}

static size_t make_map (unsigned char *map) {
  uint32_t n = 1 + draw(UNITS);
  size_t size = 4 + 4 * n;
  put32(map, 4 * n);
  for (uint32_t i = 0; i < n; i++) put32(map + 4 + 4 * i, draw(8) ? 0 : draw(UINT32_MAX));
  room = 0;
  for (uint32_t i = draw(6); i > 0; i--) {
    const char *piece = pieces[draw(PIECES)];
    memcpy(map + size + room, piece, strlen(piece) + 1);
    room += (uint32_t)strlen(piece) + (draw(8) ? 1 : 0); /* one without an end */
  }
  for (uint32_t i = 1 + draw(4); i > 0; i--) lay(map + 4, n, pieces[draw(PIECES)]);
  size += room;
  for (uint32_t i = draw(4); i > 0; i--)
    map[draw((uint32_t)size)] ^= (unsigned char)(1u << draw(8));
  if (draw(16) == 0) put32(map, draw(2) ? draw(UINT32_MAX) : 4 * draw(2 * n));
  return draw(16) ? size : draw((uint32_t)size + 1);
}

static const char *try_map (peri_ctx *ctx, const unsigned char *map, size_t size) {
  peri_tokenizer *t;
  if (peri__tokenizer_new(ctx, &t) != PERI_OK) return "no tokenizer";
  peri_status s = peri__tokenizer_charsmap(t, map, size);
  const char *bad = s == PERI_OK || s == PERI_EFORMAT ? NULL : "neither taken nor refused";
  peri__buffer out = { .ctx = ctx };
  for (int round = 0; s == PERI_OK && t->chars != NULL && round < 8 && bad == NULL; round++) {
    char text[16 * TEXT];
    size_t n = 0;
    for (uint32_t i = draw(TEXT); i > 0; i--) {
      const char *piece = pieces[draw(PIECES)];
      memcpy(text + n, piece, strlen(piece));
      n += strlen(piece);
    }
    char *exact = malloc(n + 1); /* of this size: a read beyond it is seen */
    if (exact == NULL) abort();
    memcpy(exact, text, n);
    char *tight = realloc(exact, n > 0 ? n : 1);
    if (!peri__tokenizer_chars(t, &out, tight, n))
      bad = "no memory";
    else if (peri__utf8_prefix(out.data, out.size) != out.size)
      bad = "the result is no UTF-8";
    for (size_t i = 0; i < n && bad == NULL; i++) {
      peri_text by;
      size_t k = peri__tokenizer_char(t, tight + i, n - i, &by);
      if (k > n - i) bad = "a key is longer than the text";
    }
    free(tight);
  }
  peri__buffer_free(&out);
  peri_tokenizer_close(t);
  return bad;
}

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size) {
  static peri_ctx *ctx;
  if (ctx == NULL && peri_open(NULL, &ctx) != PERI_OK) abort();
  state = size;
  const char *bad = try_map(ctx, data, size);
  if (bad == NULL) return 0;
  fprintf(stderr, "%s\n", bad);
  abort();
}

#ifndef PERI_LIBFUZZER

int main (int argc, char **argv) {
  static unsigned char map[4 + 4 * UNITS + 4096];
  unsigned long long n = argc > 1 ? strtoull(argv[1], NULL, 10) : CASES;
  unsigned long long first = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
  peri_ctx *ctx;
  if (peri_open(NULL, &ctx) != PERI_OK) return 1;
  for (unsigned long long i = first; i < first + n; i++) {
    state = i * 0x2545f4914f6cdd1du;
    const char *bad = try_map(ctx, map, make_map(map));
    if (bad == NULL) continue;
    fprintf(stderr, "case %llu: %s\n", i, bad);
    return 1;
  }
  peri_close(ctx);
  return 0;
}

#endif
