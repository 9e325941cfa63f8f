/*
** decode_run.c - decoding as a chain of streams. Between two steps flow tokens, whole or in parts
** (after a step that fuses, the one token has no end before the text has); parts are whole
** characters. A step that cannot work on parts collects them.
*/
#include "text/decode_code.h"
#include "text/unicode.h"

enum { BEGIN = 1, END = 2, WHOLE = BEGIN | END };

typedef struct link {
  const peri__decode_step *step;
  bool any;           /* a token has come */
  bool holds;         /* CTC, BPE: hold is the token before this one */
  size_t left;        /* STRIP: characters that may still go from the token's start */
  peri__buffer parts; /* of a token that is not whole yet */
  peri__buffer hold;  /* bytes or a token that wait for what comes */
  peri__buffer made, spare;
} link;

struct peri__decoding {
  peri_ctx *ctx;
  peri__text_state *st; /* where a step has a regular expression; else NULL */
  int n;
  peri__buffer *out;
  link link[PERI__DECODE_STEPS];
};

static const peri__decode_step join_step = { .kind = PERI__DECODE_JOIN };

peri_status peri__decoding_open (peri_ctx *ctx, const peri__decoder *d, peri__decoding **out) {
  peri__decoding *g = peri__malloc(ctx, sizeof *g);
  if (g == NULL) return peri__fail(ctx, PERI_ENOMEM, "no memory to decode");
  memset(g, 0, sizeof *g);
  g->ctx = ctx;
  g->n = d != NULL ? d->n : 1;
  bool regex = false;
  for (int i = 0; i < g->n; i++) {
    link *k = &g->link[i];
    k->step = d != NULL ? &d->step[i] : &join_step;
    k->parts.ctx = k->hold.ctx = k->made.ctx = k->spare.ctx = ctx;
    regex = regex || k->step->re != NULL;
  }
  peri_status s = regex ? peri__text_state_open(ctx, &g->st) : PERI_OK;
  if (s != PERI_OK) {
    peri__decoding_close(g);
    return s;
  }
  *out = g;
  return PERI_OK;
}

void peri__decoding_close (peri__decoding *g) {
  if (g == NULL) return;
  for (int i = 0; i < g->n; i++) {
    link *k = &g->link[i];
    peri__buffer_free(&k->parts);
    peri__buffer_free(&k->hold);
    peri__buffer_free(&k->made);
    peri__buffer_free(&k->spare);
  }
  peri__text_state_close(g->st);
  peri__free(g->ctx, g, sizeof *g);
}

static peri_status put (peri__decoding *g, peri__buffer *b, const void *s, size_t n) {
  if (!peri__buffer_put(b, s, n)) return peri__fail(g->ctx, PERI_ENOMEM, "no memory to decode");
  return PERI_OK;
}

static peri_status feed (peri__decoding *g, int i, const char *s, size_t n, int what);

static peri_status emit (peri__decoding *g, int i, const char *s, size_t n, int what) {
  return feed(g, i + 1, s, n, what);
}

/* ---- text tools ---- */

/* Append s with every a replaced by b. */
static peri_status replace (peri__decoding *g, peri__buffer *out, const char *s, size_t n,
                            const char *a, size_t a_n, const char *b, size_t b_n) {
  size_t i = 0, from = 0;
  while (a_n > 0 && n - i >= a_n) {
    const char *at = memchr(s + i, (unsigned char)a[0], n - i - a_n + 1);
    if (at == NULL) break;
    i = (size_t)(at - s);
    if (memcmp(at, a, a_n) != 0) {
      i++;
      continue;
    }
    TRY(put(g, out, s + from, i - from));
    TRY(put(g, out, b, b_n));
    from = i += a_n;
  }
  return put(g, out, s + from, n - from);
}

/* English spacing before punctuation and contractions, in k->made. */
static peri_status cleanup (peri__decoding *g, link *k) {
  static const char *const rule[][2] = {
    { " .", "." },   { " ?", "?" },     { " !", "!" },    { " ,", "," },
    { " ' ", "'" },  { " n't", "n't" }, { " 'm", "'m" },  { " do not", " don't" },
    { " 's", "'s" }, { " 've", "'ve" }, { " 're", "'re" }
  };
  for (size_t r = 0; r < sizeof rule / sizeof *rule; r++) {
    k->spare.size = 0;
    TRY(replace(g, &k->spare, k->made.data, k->made.size, rule[r][0], strlen(rule[r][0]),
                rule[r][1], strlen(rule[r][1])));
    peri__buffer swap = k->made;
    k->made = k->spare;
    k->spare = swap;
  }
  return PERI_OK;
}

static peri_status replace_regex (peri__decoding *g, link *k, const char *s, size_t n) {
  const peri__decode_step *step = k->step;
  peri__search search;
  size_t prev = 0, from, to;
  bool found;
  peri__work_begin(g->st, n);
  peri__search_begin(&search, step->re, g->st, s, 0, n);
  while (n > 0) {
    peri_status status = peri__search_next(&search, &found, &from, &to);
    if (status != PERI_OK) return peri__text_fail(g->st, status);
    if (!found) break;
    TRY(put(g, &k->made, s + prev, from - prev));
    TRY(put(g, &k->made, step->b, step->b_n));
    prev = to;
  }
  return put(g, &k->made, s + prev, n - prev);
}

/* ---- steps that fuse: their one token ends with the text ---- */

/* The whole characters at the front of hold go on; last: all of it does. */
static peri_status flush_bytes (peri__decoding *g, int i, bool last) {
  link *k = &g->link[i];
  const unsigned char *s = (const unsigned char *)k->hold.data;
  size_t n = k->hold.size, whole = n;
  if (!last) { /* a character whose rest may still come */
    size_t back = 1;
    while (back < 4 && back <= n && (s[n - back] & 0xC0) == 0x80) back++;
    if (back <= n && back < 4) {
      unsigned char c = s[n - back];
      size_t want = c >= 0xC2 && c < 0xE0   ? 2
                    : c >= 0xE0 && c < 0xF0 ? 3
                    : c >= 0xF0 && c < 0xF5 ? 4
                                            : 1;
      if (back < want) whole = n - back;
    }
  }
  k->made.size = 0;
  if (!peri__utf8_repair(&k->made, k->hold.data, whole))
    return peri__fail(g->ctx, PERI_ENOMEM, "no memory to decode");
  if (n > whole) memmove(k->hold.data, k->hold.data + whole, n - whole);
  k->hold.size = n - whole;
  int what = (k->any ? 0 : BEGIN) | (last ? END : 0);
  if (k->made.size == 0 && what == 0) return PERI_OK;
  k->any = true;
  return emit(g, i, k->made.data, k->made.size, what);
}

/* A token with a character that is not of the alphabet counts as it is. */
static peri_status byte_level (peri__decoding *g, int i, const char *s, size_t n) {
  link *k = &g->link[i];
  size_t got;
  if (!peri__buffer_reserve(&k->hold, n))
    return peri__fail(g->ctx, PERI_ENOMEM, "no memory to decode");
  if (peri__byte_level_unmap(s, n, k->hold.data + k->hold.size, &got))
    k->hold.size += got;
  else
    TRY(put(g, &k->hold, s, n));
  return flush_bytes(g, i, false);
}

static peri_status fuse (peri__decoding *g, int i, const char *s, size_t n) {
  link *k = &g->link[i];
  int what = k->any ? 0 : BEGIN;
  k->any = true;
  return n > 0 || what ? emit(g, i, s, n, what) : PERI_OK;
}

/* ---- byte fallback ---- */

static int hex (char c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                : -1;
}

/* The byte of a token <0xHH>, else -1. */
static int byte_token (const char *s, size_t n) {
  if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
  int high = s[3] == '+' ? 0 : hex(s[3]), low = hex(s[4]); /* Rust's parser takes a sign */
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* A run of bytes is a text, or else as many U+FFFD. */
static peri_status flush_run (peri__decoding *g, int i) {
  link *k = &g->link[i];
  size_t n = k->hold.size;
  k->hold.size = 0;
  if (n == 0) return PERI_OK;
  if (peri__utf8_prefix(k->hold.data, n) == n) return emit(g, i, k->hold.data, n, WHOLE);
  for (size_t b = 0; b < n; b++) TRY(emit(g, i, "\xEF\xBF\xBD", 3, WHOLE));
  return PERI_OK;
}

static peri_status byte_fallback (peri__decoding *g, int i, const char *s, size_t n) {
  int b = byte_token(s, n);
  if (b >= 0) return put(g, &g->link[i].hold, &(unsigned char){ (unsigned char)b }, 1);
  TRY(flush_run(g, i));
  return emit(g, i, s, n, WHOLE);
}

/* ---- steps on whole tokens ---- */

static peri_status wordpiece (peri__decoding *g, int i, const char *s, size_t n) {
  link *k = &g->link[i];
  const peri__decode_step *step = k->step;
  bool continues = n >= step->a_n && memcmp(s, step->a, step->a_n) == 0;
  k->made.size = 0;
  if (k->any && !continues) TRY(put(g, &k->made, " ", 1));
  if (k->any && continues) {
    s += step->a_n;
    n -= step->a_n;
  }
  k->any = true;
  TRY(put(g, &k->made, s, n));
  if (step->cleanup) TRY(cleanup(g, k));
  return emit(g, i, k->made.data, k->made.size, WHOLE);
}

static peri_status ctc (peri__decoding *g, int i, const char *s, size_t n) {
  link *k = &g->link[i];
  const peri__decode_step *step = k->step;
  if (k->holds && k->hold.size == n && (n == 0 || memcmp(k->hold.data, s, n) == 0)) return PERI_OK;
  k->holds = true;
  k->hold.size = 0;
  TRY(put(g, &k->hold, s, n));
  k->made.size = 0;
  TRY(replace(g, &k->made, s, n, step->a, step->a_n, "", 0));
  if (step->cleanup) {
    TRY(cleanup(g, k));
    k->spare.size = 0;
    TRY(replace(g, &k->spare, k->made.data, k->made.size, step->b, step->b_n, " ", 1));
    return k->spare.size > 0 ? emit(g, i, k->spare.data, k->spare.size, WHOLE) : PERI_OK;
  }
  return k->made.size > 0 ? emit(g, i, k->made.data, k->made.size, WHOLE) : PERI_OK;
}

/* The token held goes on, its suffixes as spaces unless it is the last. */
static peri_status release_bpe (peri__decoding *g, int i, bool last) {
  link *k = &g->link[i];
  if (!k->holds) return PERI_OK;
  k->holds = false;
  k->made.size = 0;
  TRY(replace(g, &k->made, k->hold.data, k->hold.size, k->step->a, k->step->a_n, " ",
              last ? 0 : 1));
  return emit(g, i, k->made.data, k->made.size, WHOLE);
}

static peri_status bpe (peri__decoding *g, int i, const char *s, size_t n) {
  link *k = &g->link[i];
  TRY(release_bpe(g, i, false));
  k->hold.size = 0;
  TRY(put(g, &k->hold, s, n));
  k->holds = true;
  return PERI_OK;
}

static peri_status strip_whole (peri__decoding *g, int i, const char *s, size_t n) {
  const peri__decode_step *step = g->link[i].step;
  size_t c = step->a_n;
  for (size_t k = 0; k < step->start && n >= c && memcmp(s, step->a, c) == 0; k++) {
    s += c;
    n -= c;
  }
  for (size_t k = 0; k < step->stop && n >= c && memcmp(s + n - c, step->a, c) == 0; k++) n -= c;
  return emit(g, i, s, n, WHOLE);
}

static peri_status replace_whole (peri__decoding *g, int i, const char *s, size_t n) {
  link *k = &g->link[i];
  k->made.size = 0;
  TRY(replace_regex(g, k, s, n));
  return emit(g, i, k->made.data, k->made.size, WHOLE);
}

/* ---- steps that work on parts ---- */

static peri_status strip_left (peri__decoding *g, int i, const char *s, size_t n, int what) {
  link *k = &g->link[i];
  size_t c = k->step->a_n;
  if (what & BEGIN) k->left = k->step->start;
  for (; k->left > 0 && n >= c; k->left--, s += c, n -= c)
    if (memcmp(s, k->step->a, c) != 0) break;
  if (n > 0) k->left = 0;
  return emit(g, i, s, n, what);
}

static peri_status metaspace (peri__decoding *g, int i, const char *s, size_t n, int what) {
  link *k = &g->link[i];
  bool drop = !k->any && k->step->drop_first;
  k->made.size = 0;
  TRY(replace(g, &k->made, s, n, k->step->a, k->step->a_n, " ", drop ? 0 : 1));
  if (what & END) k->any = true;
  return emit(g, i, k->made.data, k->made.size, what);
}

static peri_status replace_string (peri__decoding *g, int i, const char *s, size_t n, int what) {
  link *k = &g->link[i];
  k->made.size = 0;
  TRY(replace(g, &k->made, s, n, k->step->a, k->step->a_n, k->step->b, k->step->b_n));
  return emit(g, i, k->made.data, k->made.size, what);
}

/* How much of the end of a text may be the beginning of a pattern. */
static size_t begun (const char *s, size_t n, const char *a, size_t a_n) {
  size_t k = a_n - 1 < n ? a_n - 1 : n;
  while (k > 0 && memcmp(s + n - k, a, k) != 0) k--;
  return k;
}

static peri_status replace_text (peri__decoding *g, int i, const char *s, size_t n) {
  link *k = &g->link[i];
  const peri__decode_step *step = k->step;
  size_t done = 0;
  TRY(put(g, &k->hold, s, n));
  k->made.size = 0;
  for (size_t at = 0; at + step->a_n <= k->hold.size;) { /* done: behind the last place found */
    if (memcmp(k->hold.data + at, step->a, step->a_n) != 0) {
      at++;
      continue;
    }
    TRY(put(g, &k->made, k->hold.data + done, at - done));
    TRY(put(g, &k->made, step->b, step->b_n));
    done = at += step->a_n;
  }
  size_t left = begun(k->hold.data + done, k->hold.size - done, step->a, step->a_n);
  TRY(put(g, &k->made, k->hold.data + done, k->hold.size - done - left));
  if (left > 0) memmove(k->hold.data, k->hold.data + k->hold.size - left, left);
  k->hold.size = left;
  return k->made.size > 0 ? emit(g, i, k->made.data, k->made.size, 0) : PERI_OK;
}

static peri_status join (peri__decoding *g, int i, const char *s, size_t n) {
  link *k = &g->link[i];
  if (k->any) TRY(emit(g, i, " ", 1, WHOLE));
  k->any = true;
  return emit(g, i, s, n, WHOLE);
}

/* ---- the chain ---- */

static bool one_char (const peri__decode_step *s) {
  size_t len;
  peri__char_at((const unsigned char *)s->a, s->a_n, &len);
  return len == s->a_n;
}

/* Does the step take parts as they come? A pattern of several bytes may lie across two of them. */
static bool takes_parts (const peri__decode_step *s) {
  switch (s->kind) {
  case PERI__DECODE_FUSE:
  case PERI__DECODE_TEXT:
  case PERI__DECODE_METASPACE: return true;
  case PERI__DECODE_STRIP: return s->stop == 0;
  case PERI__DECODE_REPLACE: return s->re == NULL && one_char(s);
  default: return false;
  }
}

static peri_status part (peri__decoding *g, int i, const char *s, size_t n, int what) {
  switch (g->link[i].step->kind) {
  case PERI__DECODE_FUSE: return fuse(g, i, s, n);
  case PERI__DECODE_TEXT: return replace_text(g, i, s, n);
  case PERI__DECODE_METASPACE: return metaspace(g, i, s, n, what);
  case PERI__DECODE_REPLACE: return replace_string(g, i, s, n, what);
  default: return strip_left(g, i, s, n, what);
  }
}

static peri_status whole (peri__decoding *g, int i, const char *s, size_t n) {
  const peri__decode_step *step = g->link[i].step;
  switch (step->kind) {
  case PERI__DECODE_JOIN: return join(g, i, s, n);
  case PERI__DECODE_BYTE_LEVEL: return byte_level(g, i, s, n);
  case PERI__DECODE_WORDPIECE: return wordpiece(g, i, s, n);
  case PERI__DECODE_CTC: return ctc(g, i, s, n);
  case PERI__DECODE_BYTE_FALLBACK: return byte_fallback(g, i, s, n);
  case PERI__DECODE_BPE: return bpe(g, i, s, n);
  case PERI__DECODE_STRIP: return strip_whole(g, i, s, n);
  default: return step->re != NULL ? replace_whole(g, i, s, n) : replace_string(g, i, s, n, WHOLE);
  }
}

static peri_status feed (peri__decoding *g, int i, const char *s, size_t n, int what) {
  if (i == g->n) return put(g, g->out, s, n);
  link *k = &g->link[i];
  if (takes_parts(k->step)) return part(g, i, s, n, what);
  if (what == WHOLE) return whole(g, i, s, n);
  if (what & BEGIN) k->parts.size = 0;
  TRY(put(g, &k->parts, s, n));
  return what & END ? whole(g, i, k->parts.data, k->parts.size) : PERI_OK;
}

peri_status peri__decoding_push (peri__decoding *g, const char *token, size_t n,
                                 peri__buffer *out) {
  g->out = out;
  return feed(g, 0, token, n, WHOLE);
}

static peri_status finish (peri__decoding *g, int i) {
  link *k = &g->link[i];
  switch (k->step->kind) {
  case PERI__DECODE_BYTE_LEVEL: return flush_bytes(g, i, true);
  case PERI__DECODE_FUSE: return emit(g, i, "", 0, (k->any ? 0 : BEGIN) | END);
  case PERI__DECODE_BYTE_FALLBACK: return flush_run(g, i);
  case PERI__DECODE_BPE: return release_bpe(g, i, true);
  case PERI__DECODE_TEXT: return emit(g, i, k->hold.data, k->hold.size, 0);
  default: return PERI_OK;
  }
}

peri_status peri__decoding_finish (peri__decoding *g, peri__buffer *out) {
  peri_status s = PERI_OK;
  g->out = out;
  for (int i = 0; i < g->n && s == PERI_OK; i++) s = finish(g, i);
  for (int i = 0; i < g->n; i++) {
    link *k = &g->link[i];
    k->any = k->holds = false;
    k->hold.size = k->parts.size = 0;
  }
  return s;
}
