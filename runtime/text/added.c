/*
** added.c - added and special tokens: found in the text before the model sees it, longest first from
** left to right, as AddedVocabulary of Hugging Face's tokenizers does.
*/
#include <string.h>

#include <utf8proc.h>

#include "io/files.h"
#include "text/tokenizer.h"

void peri__added_open (peri__added *a, peri_ctx *ctx) {
  memset(a, 0, sizeof *a);
  peri__vocab_open(&a->text, ctx);
  for (int i = 0; i < 2; i++) {
    peri__vocab_open(&a->pattern[i], ctx);
    a->only[i] = -2;
  }
}

void peri__added_close (peri__added *a) {
  peri_ctx *ctx = a->text.ctx;
  if (ctx == NULL) return;
  peri__free(ctx, a->by_id, a->n * sizeof *a->by_id);
  peri__free(ctx, a->token, a->cap * sizeof *a->token);
  for (int i = 0; i < 2; i++) {
    peri__prefixes_close(&a->prefixes[i]);
    peri__vocab_close(&a->pattern[i]);
  }
  peri__vocab_close(&a->text);
  memset(a, 0, sizeof *a);
}

peri_status peri__added_put (peri__added *a, int32_t id, const char *s, size_t n, int flags) {
  peri_ctx *ctx = a->text.ctx;
  int32_t at = peri__vocab_find(&a->text, s, n);
  if (at >= 0) {
    a->token[at].flags = (uint8_t)flags;
    return PERI_OK;
  }
  if (n > PERI__ADDED_BYTES)
    return peri__fail(ctx, PERI_EFORMAT, "added token %d has %zu bytes, the limit is %d", (int)id,
                      n, PERI__ADDED_BYTES);
  TRY(peri__grow(ctx, &a->token, &a->cap, a->n + 1, sizeof *a->token, "added tokens"));
  TRY(peri__vocab_put(&a->text, (int64_t)a->n, s, n, false));
  a->token[a->n++] = (peri__added_token){ id, (uint8_t)flags };
  return PERI_OK;
}

static int by_id (void *ud, const void *x, const void *y) {
  const peri__added *a = ud;
  int32_t i = a->token[*(const uint32_t *)x].id, k = a->token[*(const uint32_t *)y].id;
  return i < k ? -1 : i > k;
}

peri_status peri__added_ready (peri__added *a, const peri__normalizer *z, peri__text_state *st) {
  peri_ctx *ctx = a->text.ctx;
  a->by_id = peri__malloc(ctx, a->n * sizeof *a->by_id);
  if (a->by_id == NULL && a->n > 0)
    return peri__fail(ctx, PERI_ENOMEM, "no memory for %zu added tokens", a->n);
  for (uint32_t i = 0; i < a->n; i++) a->by_id[i] = i;
  peri__sort(a->by_id, a->n, sizeof *a->by_id, by_id, a);
  for (uint32_t i = 0; i < a->n; i++) {
    size_t n;
    const char *s = peri__vocab_text(&a->text, i, &n);
    int which = (a->token[i].flags & PERI__ADDED_NORMALIZED) != 0;
    if (which == 1 && z != NULL) {
      peri_status status = peri__normalize(z, st, s, n, &s, &n);
      if (status != PERI_OK) return peri__text_fail(st, status);
    }
    if (n == 0) continue;
    TRY(peri__vocab_put(&a->pattern[which], i, s, n, false));
    unsigned char c = (unsigned char)s[0];
    if (!a->begins[which][c]) a->only[which] = a->only[which] == -2 ? c : -1;
    a->begins[which][c] = true;
  }
  for (int i = 0; i < 2; i++) TRY(peri__prefixes_open(&a->prefixes[i], &a->pattern[i], NULL, NULL));
  return PERI_OK;
}

/* Position in by_id of an id, -1: none has it. */
static int64_t find_id (const peri__added *a, int64_t id) {
  size_t lo = 0, hi = a->n;
  if (a->by_id == NULL) { /* not ready: readers ask */
    while (lo < hi && a->token[lo].id != id) lo++;
    return lo < hi ? (int64_t)lo : -1;
  }
  while (lo < hi) {
    size_t mid = lo + (hi - lo) / 2;
    if (a->token[a->by_id[mid]].id < id)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo < a->n && a->token[a->by_id[lo]].id == id ? (int64_t)a->by_id[lo] : -1;
}

const peri__added_token *peri__added_at (const peri__added *a, int64_t id) {
  int64_t i = find_id(a, id);
  return i < 0 ? NULL : &a->token[i];
}

const char *peri__added_text (const peri__added *a, int64_t id, size_t *n) {
  int64_t i = find_id(a, id);
  return i < 0 ? NULL : peri__vocab_text(&a->text, i, n);
}

/* ---- what surrounds a match ---- */

static int32_t character (const char *s, size_t n, utf8proc_int32_t *c) {
  *c = -1;
  return (int32_t)utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, c);
}

/* The character that ends at s + n. */
static int32_t character_before (const char *s, size_t n, utf8proc_int32_t *c) {
  size_t k = 1;
  *c = -1;
  if (n == 0) return 0;
  while (k < n && k < 4 && ((unsigned char)s[n - k] & 0xC0) == 0x80) k++;
  character(s + n - k, k, c);
  return (int32_t)k;
}

/* \s of the reference's regular expressions: White_Space. */
static bool is_space (utf8proc_int32_t c) {
  if (c < 0) return false;
  if ((c >= 9 && c <= 13) || c == 0x85) return true;
  utf8proc_category_t g = utf8proc_category(c);
  return g == UTF8PROC_CATEGORY_ZS || g == UTF8PROC_CATEGORY_ZL || g == UTF8PROC_CATEGORY_ZP;
}

/* \w: Alphabetic, Mark, Decimal_Number, Connector_Punctuation, joiners. */
static bool is_word (utf8proc_int32_t c) {
  if (c < 0) return false;
  if (c == 0x200C || c == 0x200D) return true;
  if ((c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
      (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189))
    return true; /* circled letters are alphabetic symbols */
  switch (utf8proc_category(c)) {
  case UTF8PROC_CATEGORY_LU:
  case UTF8PROC_CATEGORY_LL:
  case UTF8PROC_CATEGORY_LT:
  case UTF8PROC_CATEGORY_LM:
  case UTF8PROC_CATEGORY_LO:
  case UTF8PROC_CATEGORY_MN:
  case UTF8PROC_CATEGORY_MC:
  case UTF8PROC_CATEGORY_ME:
  case UTF8PROC_CATEGORY_ND:
  case UTF8PROC_CATEGORY_NL:
  case UTF8PROC_CATEGORY_PC: return true;
  default: return false;
  }
}

static bool stands_alone (const char *text, size_t n, size_t begin, size_t end) {
  utf8proc_int32_t before, after;
  character_before(text, begin, &before);
  character(text + end, n - end, &after);
  return !is_word(before) && (end == n || !is_word(after));
}

/* ---- finding ---- */

/* The longest pattern that begins at s; -1: none. */
static int32_t longest (const peri__prefixes *p, const char *s, size_t n, size_t *size) {
  peri__walk w = peri__walk_begin(p);
  int32_t best = -1, id;
  for (size_t i = 0; i < n && peri__walk_step(p, &w, (unsigned char)s[i], &id); i++)
    if (id >= 0) {
      best = id;
      *size = i + 1;
    }
  return best;
}

/* The next byte at or after i that some pattern begins with; n: none. */
static size_t candidate (const peri__added *a, int which, const char *text, size_t i, size_t n) {
  if (a->only[which] >= 0) {
    const char *at = i < n ? memchr(text + i, a->only[which], n - i) : NULL;
    return at == NULL ? n : (size_t)(at - text);
  }
  const bool *begins = a->begins[which];
  while (i < n && !begins[(unsigned char)text[i]]) i++;
  return i;
}

bool peri__added_next (const peri__added *a, int which, bool special, const char *text, size_t n,
                       size_t *from, size_t done, peri__match *m) {
  if (a->only[which] == -2) return false;
  for (size_t i = *from; (i = candidate(a, which, text, i, n)) < n;) {
    size_t size = 0;
    int32_t at = longest(&a->prefixes[which], text + i, n - i, &size);
    if (at < 0) {
      i++;
      continue;
    }
    const peri__added_token *t = &a->token[at];
    size_t begin = i, end = i + size;
    i = end; /* what is passed over here is not looked into, as in the reference */
    if (!special && (t->flags & PERI__ADDED_SPECIAL)) continue;
    if ((t->flags & PERI__ADDED_SINGLE_WORD) && !stands_alone(text, n, begin, end)) continue;
    utf8proc_int32_t c;
    if (t->flags & PERI__ADDED_LSTRIP)
      for (int32_t k; begin > done; begin -= (size_t)k) {
        k = character_before(text, begin, &c);
        if (!is_space(c)) break;
      }
    if (t->flags & PERI__ADDED_RSTRIP)
      for (int32_t k; end < n; end += (size_t)k) {
        k = character(text + end, n - end, &c);
        if (!is_space(c)) break;
      }
    *from = i; /* the reference finds tokens in the space that this one takes in, too */
    *m = (peri__match){ begin, end, t->id };
    return true;
  }
  *from = n;
  return false;
}
