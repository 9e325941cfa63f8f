/*
** text.c - the state of one thread, repair of UTF-8, the byte-level alphabet.
*/
#include "text/regex.h"
#include "text/state.h"
#include "text/unicode.h"

/* ---- state ---- */

/* Grown on demand by the engine, never committed unless used: deeply nested patterns need it. */
#define JIT_STACK_MIN ((size_t)32 << 10)
#define JIT_STACK_MAX ((size_t)16 << 20)

typedef struct state_box {
  peri__text_state st;
  peri__regex_heap heap;
} state_box;

peri_status peri__text_state_open (peri_ctx *ctx, peri__text_state **out) {
  state_box *box = peri__malloc(ctx, sizeof *box);
  if (box == NULL) return peri__fail(ctx, PERI_ENOMEM, "no memory for a tokenizer's state");
  memset(box, 0, sizeof *box);
  peri__text_state *st = &box->st;
  st->ctx = ctx;
  box->heap = (peri__regex_heap){ ctx, &st->fixed };
  for (int i = 0; i < 2; i++) st->normal[i].ctx = st->split[i].ctx = ctx;
  st->wide.ctx = ctx;
  st->general = pcre2_general_context_create(peri__regex_malloc, peri__regex_release, &box->heap);
  if (st->general != NULL) {
    st->match = pcre2_match_data_create(1, st->general);
    st->limits = pcre2_match_context_create(st->general);
    st->stack = pcre2_jit_stack_create(JIT_STACK_MIN, JIT_STACK_MAX, st->general);
  }
  if (st->match == NULL || st->limits == NULL || st->stack == NULL) {
    peri__text_state_close(st);
    return peri__fail(ctx, PERI_ENOMEM, "no memory for a tokenizer's state");
  }
  pcre2_jit_stack_assign(st->limits, NULL, st->stack);
  *out = st;
  return PERI_OK;
}

void peri__text_state_close (peri__text_state *st) {
  if (st == NULL) return;
  st->fixed = false;
  peri__buffer_free(&st->wide);
  for (int i = 0; i < 2; i++) {
    peri__buffer_free(&st->normal[i]);
    peri__buffer_free(&st->split[i]);
    peri__free(st->ctx, st->list[i].at, st->list[i].cap * sizeof *st->list[i].at);
  }
  if (st->stack != NULL) pcre2_jit_stack_free(st->stack);
  if (st->limits != NULL) pcre2_match_context_free(st->limits);
  if (st->match != NULL) pcre2_match_data_free(st->match);
  if (st->general != NULL) pcre2_general_context_free(st->general);
  peri__free(st->ctx, st, sizeof(state_box));
}

void peri__text_state_fix (peri__text_state *st, bool fixed) {
  st->fixed = st->wide.fixed = fixed;
  for (int i = 0; i < 2; i++) st->normal[i].fixed = st->split[i].fixed = fixed;
}

bool peri__pieces_reserve (peri__text_state *st, peri__piece_list *l, size_t more) {
  if (l->cap - l->n >= more) return true;
  if (st->fixed) return false;
  size_t cap = l->cap + l->cap / 2;
  if (cap < l->n + more) cap = l->n + more;
  if (cap < 64) cap = 64;
  peri__piece *grown = peri__realloc(st->ctx, l->at, l->cap * sizeof *grown, cap * sizeof *grown);
  if (grown == NULL) return false;
  l->at = grown;
  l->cap = cap;
  return true;
}

peri_status peri__text_state_reserve (peri__text_state *st, size_t n) {
  if (n > PERI__TEXT_MAX) n = PERI__TEXT_MAX;
  st->wide.size = 0;
  bool ok = peri__buffer_reserve(&st->wide, 4096);
  for (int i = 0; i < 2; i++) {
    st->list[i].n = 0;
    st->normal[i].size = st->split[i].size = 0;
    ok = ok && peri__pieces_reserve(st, &st->list[i], n / 2 + 16) &&
         peri__buffer_reserve(&st->normal[i], n + n / 2 + 64) &&
         peri__buffer_reserve(&st->split[i], n + n / 2 + 64);
  }
  if (!ok) return peri__fail(st->ctx, PERI_ENOMEM, "no memory to tokenize texts of %zu bytes", n);
  return PERI_OK;
}

peri_status peri__text_fail (peri__text_state *st, peri_status s) {
  if (s == PERI_EINTR) return peri__fail(st->ctx, s, "interrupted");
  switch (st->reason) {
  case PERI__TEXT_MEMORY: return peri__fail(st->ctx, s, "no memory to tokenize a text");
  case PERI__TEXT_LONG:
    return peri__fail(st->ctx, s, "a text of more than %zu bytes is too long to tokenize",
                      PERI__TEXT_MAX);
  case PERI__TEXT_PATTERN:
    return peri__fail(st->ctx, s,
                      "a regular expression of the tokenizer needs too many steps on this text");
  case PERI__TEXT_ENGINE: break;
  }
  return peri__fail(st->ctx, s, "the regular expression engine failed on a text (error %d)",
                    st->code);
}

/* ---- UTF-8 ---- */

/* Length of the longest prefix of s that some valid character begins with, when none stands there. */
static size_t broken_length (const unsigned char *s, size_t n) {
  size_t want = s[0] < 0xC2 ? 1 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : s[0] < 0xF5 ? 4 : 1;
  if (want == 1 || n < 2) return 1;
  unsigned char low = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
  unsigned char high = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
  if (s[1] < low || s[1] > high) return 1;
  size_t i = 2;
  while (i < want && i < n && (s[i] & 0xC0) == 0x80) i++;
  return i;
}

bool peri__utf8_repair (peri__buffer *out, const char *text, size_t n) {
  while (n > 0) {
    size_t good = peri__utf8_prefix(text, n);
    if (!peri__buffer_put(out, text, good)) return false;
    text += good;
    n -= good;
    if (n == 0) break;
    size_t bad = broken_length((const unsigned char *)text, n);
    if (!peri__buffer_put(out, "\xEF\xBF\xBD", 3)) return false;
    text += bad;
    n -= bad;
  }
  return true;
}

/* ---- the byte-level alphabet ---- */

/* Printable bytes stand for themselves, the others for U+0100 and up in order (GPT-2's encoder.py,
** bytes_to_unicode). */
#define R16(c)                                                                              \
  c, c + 1, c + 2, c + 3, c + 4, c + 5, c + 6, c + 7, c + 8, c + 9, c + 10, c + 11, c + 12, \
      c + 13, c + 14, c + 15
const uint16_t peri__byte_level[256] = {
  R16(0x100), R16(0x110), 0x120,      0x21,       0x22,      0x23,      0x24,     0x25, 0x26,
  0x27,       0x28,       0x29,       0x2A,       0x2B,      0x2C,      0x2D,     0x2E, 0x2F,
  R16(0x30),  R16(0x40),  R16(0x50),  R16(0x60),  0x70,      0x71,      0x72,     0x73, 0x74,
  0x75,       0x76,       0x77,       0x78,       0x79,      0x7A,      0x7B,     0x7C, 0x7D,
  0x7E,       0x121,      R16(0x122), R16(0x132), 0x142,     0xA1,      0xA2,     0xA3, 0xA4,
  0xA5,       0xA6,       0xA7,       0xA8,       0xA9,      0xAA,      0xAB,     0xAC, 0x143,
  0xAE,       0xAF,       R16(0xB0),  R16(0xC0),  R16(0xD0), R16(0xE0), R16(0xF0)
};

bool peri__byte_level_map (peri__buffer *out, const void *bytes, size_t n) {
  const unsigned char *s = bytes;
  if (!peri__buffer_reserve(out, 2 * n)) return false;
  char *to = out->data + out->size;
  for (size_t i = 0; i < n; i++) to += peri__char_put(peri__byte_level[s[i]], to);
  out->size = (size_t)(to - out->data);
  return true;
}

bool peri__byte_level_unmap (const char *text, size_t n, char *out, size_t *out_n) {
  const unsigned char *s = (const unsigned char *)text;
  size_t k = 0, len;
  for (size_t i = 0; i < n; i += len) {
    uint32_t c = peri__char_at(s + i, n - i, &len);
    if (c < 0x100 && peri__byte_level[c] == c)
      out[k++] = (char)c;
    else if (c >= 0x100 && c <= 0x120)
      out[k++] = (char)(c - 0x100);
    else if (c >= 0x121 && c <= 0x142)
      out[k++] = (char)(c - 0x121 + 0x7F);
    else if (c == 0x143)
      out[k++] = (char)0xAD;
    else
      return false;
  }
  *out_n = k;
  return true;
}
