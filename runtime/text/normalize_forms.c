/*
** normalize_forms.c - Unicode's normalisation forms. Decompositions and compositions are utf8proc's;
** the ordering of marks is done here, because utf8proc's takes quadratic time on hostile text, and so
** is the skipping of text that a form leaves alone.
*/
#include <utf8proc.h>

#include "text/normalize_code.h"
#include "text/state.h"
#include "text/unicode.h"

/* Code points that NFC never changes and that never join what stands before them (NFC_Quick_Check is
** yes, combining class 0); pairs of first and last. The rest is looked at in full. */
static const uint32_t stable[][2] = {
  { 0x0000, 0x02FF }, { 0x0370, 0x0373 }, { 0x0400, 0x0482 },   { 0x048A, 0x0559 },
  { 0x05D0, 0x05EA }, { 0x0621, 0x063A }, { 0x0641, 0x064A },   { 0x0E01, 0x0E30 },
  { 0x1E00, 0x1EFF }, { 0x2002, 0x20CF }, { 0x2190, 0x2328 },   { 0x232B, 0x2ADB },
  { 0x3000, 0x3029 }, { 0x3041, 0x3096 }, { 0x309B, 0x30FF },   { 0x3400, 0x9FFF },
  { 0xAC00, 0xD7A3 }, { 0xFF01, 0xFFEF }, { 0x1F000, 0x1FAFF }, { 0x20000, 0x2A6DF },
};

static bool is_stable (uint32_t c, peri__normal_kind form) {
  if (form != PERI__NFC) return c < 0x80;
  if (c < 0x300) return true;
  for (size_t i = 1; i < sizeof stable / sizeof *stable; i++)
    if (c <= stable[i][1]) return c >= stable[i][0];
  return false;
}

/* First byte that may not be skipped. Below 0xCC start the characters up to U+02FF. */
static size_t skip_plain (const unsigned char *s, size_t i, size_t n, unsigned char limit) {
  uint64_t w;
  while (n - i >= 8) {
    memcpy(&w, s + i, 8);
    if (w & 0x8080808080808080u) break;
    i += 8;
  }
  while (i < n && s[i] < limit) i++;
  return i;
}

static int class_of (int32_t c) {
  return c < 0x300 ? 0 : utf8proc_get_property(c)->combining_class;
}

/* Order marks [0, n) by their classes, stable. */
static void sort_marks (int32_t *c, size_t n, int32_t *spare) {
  size_t at[256] = { 0 };
  if (n <= 16) {
    for (size_t i = 1; i < n; i++) {
      int32_t m = c[i];
      size_t k = i;
      for (int rank = class_of(m); k > 0 && class_of(c[k - 1]) > rank; k--) c[k] = c[k - 1];
      c[k] = m;
    }
    return;
  }
  for (size_t i = 0; i < n; i++) at[class_of(c[i])]++;
  for (size_t k = 0, sum = 0; k < 256; k++) {
    size_t count = at[k];
    at[k] = sum;
    sum += count;
  }
  for (size_t i = 0; i < n; i++) spare[at[class_of(c[i])]++] = c[i];
  memcpy(c, spare, n * sizeof *c);
}

static void order (int32_t *c, size_t n, int32_t *spare) {
  for (size_t i = 0, end; i < n; i = end + 1) {
    for (end = i; end < n && class_of(c[end]) != 0; end++) {}
    if (end - i > 1) sort_marks(c + i, end - i, spare);
  }
}

/* The longest decomposition of a character (U+FDFA). */
#define LONGEST 18

/* One stretch of text through the form. */
static peri_status segment (peri__normal_run *r, peri__normal_kind form, const char *text,
                            size_t n) {
  bool compose = form == PERI__NFC || form == PERI__NFKC;
  bool compat = form == PERI__NFKC || form == PERI__NFKD;
  utf8proc_option_t how =
      (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0));
  peri__buffer *wide = &r->st->wide;
  const unsigned char *s = (const unsigned char *)text;
  wide->size = 0;
  for (size_t i = 0, len; i < n; i += len) {
    int boundary = 0;
    uint32_t c = peri__char_at(s + i, n - i, &len);
    if (!peri__buffer_reserve(wide, LONGEST * sizeof(int32_t))) return PERI__TEXT_NOMEM(r->st);
    int32_t *to = (int32_t *)(void *)(wide->data + wide->size);
    utf8proc_ssize_t k = utf8proc_decompose_char((int32_t)c, to, LONGEST, how, &boundary);
    if (k < 0 || k > LONGEST) { /* not a character: text that was not checked */
      to[0] = 0xFFFD;
      k = 1;
    }
    wide->size += (size_t)k * sizeof *to;
  }
  size_t count = wide->size / sizeof(int32_t);
  if (!peri__buffer_reserve(wide, wide->size)) return PERI__TEXT_NOMEM(r->st);
  int32_t *c = (int32_t *)(void *)wide->data;
  order(c, count, c + count);
  if (compose) {
    utf8proc_ssize_t k = utf8proc_normalize_utf32(
        c, (utf8proc_ssize_t)count, (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    if (k >= 0) count = (size_t)k;
  }
  if (!peri__buffer_reserve(r->out, 4 * count)) return PERI__TEXT_NOMEM(r->st);
  for (size_t i = 0; i < count; i++)
    r->out->size += peri__char_put((uint32_t)c[i], r->out->data + r->out->size);
  return PERI_OK;
}

peri_status peri__normal_form (peri__normal_run *r, peri__normal_kind form, const char *text,
                               size_t n) {
  const unsigned char *s = (const unsigned char *)text;
  unsigned char limit = form == PERI__NFC ? 0xCC : 0x80;
  size_t done = 0, i = 0, len;
  while ((i = skip_plain(s, i, n, limit)) < n) {
    if (is_stable(peri__char_at(s + i, n - i, &len), form)) {
      i += len;
      continue;
    }
    /* From the character before, which this one may join, to the next that joins nothing. */
    size_t from = i > done ? peri__char_before(s, i) : i;
    for (i += len; i < n; i += len)
      if (is_stable(peri__char_at(s + i, n - i, &len), form)) break;
    if (!peri__buffer_put(r->out, text + done, from - done)) return PERI__TEXT_NOMEM(r->st);
    TRY(segment(r, form, text + from, i - from));
    r->changed = true;
    done = i;
  }
  if (r->changed && !peri__buffer_put(r->out, text + done, n - done))
    return PERI__TEXT_NOMEM(r->st);
  return PERI_OK;
}
