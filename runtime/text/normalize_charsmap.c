/*
** normalize_charsmap.c - SentencePiece's precompiled_charsmap: a double-array trie (Darts) over bytes
** whose values are offsets of zero-terminated replacements. The trie is a file's and is walked with
** every index checked.
*/
#include <utf8proc.h>

#include "text/normalize_code.h"
#include "text/state.h"
#include "text/unicode.h"

#define MAP_MAX ((size_t)16 << 20) /* the largest known one (nmt_nfkc_cf) has 300 KB */

static int base64_value (int c) {
  return c >= 'A' && c <= 'Z'   ? c - 'A'
         : c >= 'a' && c <= 'z' ? c - 'a' + 26
         : c >= '0' && c <= '9' ? c - '0' + 52
         : c == '+'             ? 62
         : c == '/'             ? 63
                                : -1;
}

/* n characters to at most n / 4 * 3 bytes; false when malformed. */
static bool base64 (const char *s, size_t n, unsigned char *out, size_t *out_n) {
  size_t k = 0, pad = 0;
  if (n % 4 != 0) return false;
  while (pad < 2 && pad < n && s[n - 1 - pad] == '=') pad++;
  for (size_t i = 0; i < n; i += 4) {
    uint32_t v = 0;
    for (size_t j = 0; j < 4; j++) {
      int d = i + j >= n - pad ? 0 : base64_value((unsigned char)s[i + j]);
      if (d < 0) return false;
      v = v << 6 | (uint32_t)d;
    }
    out[k++] = (unsigned char)(v >> 16);
    out[k++] = (unsigned char)(v >> 8);
    out[k++] = (unsigned char)v;
  }
  *out_n = k - pad;
  return true;
}

static uint32_t u32_at (const char *s, size_t i) {
  const unsigned char *p = (const unsigned char *)s + 4 * i;
  return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

peri_status peri__charsmap_read (peri_ctx *ctx, const char *text, size_t n,
                                 peri__normal_step *step) {
  if (n / 4 * 3 > MAP_MAX)
    return peri__fail(ctx, PERI_EFORMAT, "a precompiled_charsmap of %zu bytes, the limit is %zu",
                      n / 4 * 3, MAP_MAX);
  size_t cap = n / 4 * 3;
  char *map = peri__malloc(ctx, cap + 1);
  if (map == NULL) return peri__fail(ctx, PERI_ENOMEM, "no memory for a precompiled_charsmap");
  step->a = map; /* from here on the step's owner frees it */
  step->a_n = cap;
  size_t size = 0;
  if (!base64(text, n, (unsigned char *)map, &size))
    return peri__fail(ctx, PERI_EFORMAT, "precompiled_charsmap is not base64");
  uint32_t trie = size >= 4 ? u32_at(map, 0) : 0;
  if (size < 8 || trie < 4 || trie % 4 != 0 || trie > size - 4)
    return peri__fail(ctx, PERI_EFORMAT,
                      "precompiled_charsmap of %zu bytes with a trie of %lu bytes", size,
                      (unsigned long)trie);
  step->trie = trie / 4;
  size_t strings = size - 4 - trie;
  if (peri__utf8_prefix(map + 4 + trie, strings) != strings)
    return peri__fail(ctx, PERI_EFORMAT,
                      "the replacements of a precompiled_charsmap are not valid UTF-8");
  step->b_n = strings;
  return PERI_OK;
}

/* The replacement for a chunk: that of the shortest key that begins it. NULL: none. */
static const char *lookup (const peri__normal_step *step, const unsigned char *s, size_t n,
                           size_t *length) {
  const char *units = step->a + 4, *strings = units + 4 * step->trie;
  uint32_t unit = u32_at(units, 0);
  size_t node = (size_t)(unit >> 10) << ((unit & 0x200) >> 6);
  for (size_t i = 0; i < n && s[i] != 0; i++) {
    node ^= s[i];
    if (node >= step->trie) return NULL;
    unit = u32_at(units, node);
    if ((unit & 0x800000FF) != s[i]) return NULL;
    node ^= (size_t)(unit >> 10) << ((unit & 0x200) >> 6);
    if (!(unit & 0x100)) continue;
    if (node >= step->trie) return NULL;
    size_t at = u32_at(units, node) & 0x7FFFFFFF;
    if (at >= step->b_n || (strings[at] & 0xC0) == 0x80) return NULL;
    const char *end = memchr(strings + at, 0, step->b_n - at);
    *length = end == NULL ? step->b_n - at : (size_t)(end - strings) - at;
    return strings + at;
  }
  return NULL;
}

/* A grapheme of less than six bytes is looked up as a whole, otherwise its characters are. */
static peri_status grapheme (peri__normal_run *r, const peri__normal_step *step, const char *s,
                             size_t n) {
  size_t length, len;
  const unsigned char *u = (const unsigned char *)s;
  const char *by = n < 6 ? lookup(step, u, n, &length) : NULL;
  bool ok = true;
  if (by != NULL) {
    ok = peri__buffer_put(r->out, by, length);
    r->changed = true;
  }
  for (size_t i = 0; by == NULL && ok && i < n; i += len) {
    peri__char_at(u + i, n - i, &len);
    const char *one = lookup(step, u + i, len, &length);
    ok = one != NULL ? peri__buffer_put(r->out, one, length) : peri__buffer_put(r->out, s + i, len);
    r->changed = r->changed || one != NULL;
  }
  return ok ? PERI_OK : PERI__TEXT_NOMEM(r->st);
}

peri_status peri__charsmap_run (peri__normal_run *r, const peri__normal_step *step,
                                const char *text, size_t n) {
  const unsigned char *s = (const unsigned char *)text;
  utf8proc_int32_t state = 0;
  size_t from = 0, len;
  uint32_t before = 0;
  for (size_t i = 0; i < n; i += len) {
    uint32_t c = peri__char_at(s + i, n - i, &len);
    bool plain = before >= 0x20 && before < 0x7F && c >= 0x20 && c < 0x7F;
    if (plain) state = 0; /* always a boundary */
    if (i > 0 && (plain || utf8proc_grapheme_break_stateful((utf8proc_int32_t)before,
                                                            (utf8proc_int32_t)c, &state))) {
      TRY(grapheme(r, step, text + from, i - from));
      from = i;
    }
    before = c;
  }
  return n > from ? grapheme(r, step, text + from, n - from) : PERI_OK;
}
