/*
** tokenizer_chars.c - the table of characters inside SentencePiece models (precompiled_charsmap) as
** SentencePiece and llama.cpp apply it: at each place the longest key is replaced. (Hugging Face's
** Precompiled looks up graphemes instead: normalize_charsmap.c.) The table is a double array (Darts):
** u32 bytes of it, its units, then the replacements, each ended by a zero byte.
*/
#include <string.h>

#include "text/tokenizer.h"

static uint32_t unit (const peri_tokenizer *t, size_t i) {
  const unsigned char *p = t->chars + 4 + 4 * i;
  return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

peri_status peri__tokenizer_charsmap (peri_tokenizer *t, const void *map, size_t n) {
  uint32_t units = 0;
  if (n == 0) return PERI_OK;
  t->chars = peri__malloc(t->ctx, n);
  if (t->chars == NULL)
    return peri__fail(t->ctx, PERI_ENOMEM, "no memory for a table of characters of %zu bytes", n);
  t->chars_size = n;
  memcpy(t->chars, map, n);
  if (n >= 8)
    units = t->chars[0] | (uint32_t)t->chars[1] << 8 | (uint32_t)t->chars[2] << 16 |
            (uint32_t)t->chars[3] << 24;
  if (n < 8 || units < 4 || units % 4 != 0 || units > n - 4)
    return peri__fail(t->ctx, PERI_EFORMAT, "precompiled_charsmap of %zu bytes with %u of units", n,
                      (unsigned)units);
  t->chars_units = units / 4;
  const char *texts = (const char *)t->chars + 4 + units;
  if (peri__utf8_prefix(texts, n - 4 - units) != n - 4 - units)
    return peri__fail(t->ctx, PERI_EFORMAT, "precompiled_charsmap: the replacements are no UTF-8");
  return PERI_OK;
}

/* The longest key at s; its size, 0: none. */
static size_t longest (const peri_tokenizer *t, const unsigned char *s, size_t n, peri_text *out) {
  const char *texts = (const char *)t->chars + 4 + 4 * t->chars_units;
  size_t room = t->chars_size - 4 - 4 * t->chars_units, best = 0;
  uint32_t u = unit(t, 0);
  size_t node = (size_t)(u >> 10) << ((u & 0x200) >> 6);
  for (size_t i = 0; i < n && s[i] != 0; i++) {
    node ^= s[i];
    if (node >= t->chars_units) break;
    u = unit(t, node);
    if ((u & 0x800000FF) != s[i]) break;
    node ^= (size_t)(u >> 10) << ((u & 0x200) >> 6);
    if (node >= t->chars_units) break;
    if (!(u & 0x100)) continue;
    size_t at = unit(t, node) & 0x7FFFFFFF;
    /* Keys and replacements of a table that lies are passed over: characters stay whole. */
    if (at >= room || (texts[at] & 0xC0) == 0x80) continue;
    if (i + 1 < n && (s[i + 1] & 0xC0) == 0x80) continue;
    const char *end = memchr(texts + at, 0, room - at);
    *out = (peri_text){ texts + at, end == NULL ? room - at : (size_t)(end - texts) - at };
    best = i + 1;
  }
  return best;
}

size_t peri__tokenizer_char (const peri_tokenizer *t, const char *s, size_t n, peri_text *out) {
  return longest(t, (const unsigned char *)s, n, out);
}

bool peri__tokenizer_chars (const peri_tokenizer *t, peri__buffer *out, const char *s, size_t n) {
  out->size = 0;
  for (size_t i = 0, k; i < n; i += k) {
    peri_text by;
    unsigned char c = (unsigned char)s[i];
    k = longest(t, (const unsigned char *)s + i, n - i, &by);
    if (k == 0) {
      k = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
      if (k > n - i) k = n - i;
      by = (peri_text){ s + i, k };
    }
    if (!peri__buffer_put(out, by.s, by.n)) return false;
  }
  return true;
}
