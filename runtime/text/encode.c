/*
** encode.c - text to ids: added tokens, normaliser, splitter, model, special tokens around; many
** texts on all threads. A worker's memory is fixed: a text that does not fit into it is done again
** by the caller, so the result never depends on threads.
*/
#include <string.h>

#include "text/tokenizer.h"

/* ---- what one thread needs ---- */

void *peri__work (peri__encoder *e, size_t n) {
  e->work.size = 0;
  if (e->work.cap < n && !peri__buffer_reserve(&e->work, n)) return NULL;
  return e->work.data;
}

static peri_status encoder_open (const peri_tokenizer *t, peri__encoder *e) {
  peri_ctx *ctx = t->ctx;
  memset(e, 0, sizeof *e);
  e->t = t;
  e->ids.ctx = e->work.ctx = e->mapped.ctx = e->spaced.ctx = e->chars.ctx = ctx;
  TRY(peri__text_state_open(ctx, &e->text));
  e->words = peri__malloc(ctx, PERI__WORDS * sizeof *e->words);
  if (e->words == NULL) return peri__fail(ctx, PERI_ENOMEM, "no memory for a cache of words");
  memset(e->words, 0, PERI__WORDS * sizeof *e->words);
  return PERI_OK;
}

void peri__encoder_close (peri__encoder *e) {
  if (e->t == NULL) return;
  peri__text_state_close(e->text);
  peri__free(e->t->ctx, e->words, PERI__WORDS * sizeof *e->words);
  peri__buffer_free(&e->ids);
  peri__buffer_free(&e->work);
  peri__buffer_free(&e->mapped);
  peri__buffer_free(&e->spaced);
  peri__buffer_free(&e->chars);
  memset(e, 0, sizeof *e);
}

/* The first n encoders are open after this. */
static peri_status encoders (peri_tokenizer *t, int n) {
  if (n > t->n_encoder) {
    peri__encoder *grown = peri__realloc(t->ctx, t->encoder, (size_t)t->n_encoder * sizeof *grown,
                                         (size_t)n * sizeof *grown);
    if (grown == NULL) return peri__fail(t->ctx, PERI_ENOMEM, "no memory for %d encoders", n);
    memset(grown + t->n_encoder, 0, (size_t)(n - t->n_encoder) * sizeof *grown);
    t->encoder = grown;
    t->n_encoder = n;
  }
  for (int i = 0; i < n; i++) {
    if (t->encoder[i].t != NULL) continue;
    peri_status s = encoder_open(t, &t->encoder[i]);
    if (s != PERI_OK) {
      peri__encoder_close(&t->encoder[i]);
      return s;
    }
  }
  return PERI_OK;
}

static void fix (peri__encoder *e, bool fixed) {
  e->ids.fixed = e->work.fixed = e->mapped.fixed = e->spaced.fixed = e->chars.fixed = fixed;
  peri__text_state_fix(e->text, fixed);
}

/* ---- one piece ---- */

static uint64_t load8 (const char *s) {
  uint64_t v;
  memcpy(&v, s, 8);
  return v;
}

static uint32_t load4 (const char *s) {
  uint32_t v;
  memcpy(&v, s, 4);
  return v;
}

/* Of 1 to PERI__WORD_KEY bytes. Collisions cost a second look and nothing else. */
static size_t word_hash (const char *s, size_t n) {
  uint64_t a, b;
  if (n >= 8) {
    a = load8(s);
    b = load8(s + n - 8);
    if (n > 16) a ^= load8(s + 8) * 0x9E3779B97F4A7C15u;
  } else if (n >= 4) {
    a = load4(s);
    b = load4(s + n - 4);
  } else {
    a = (unsigned char)s[0];
    b = (uint64_t)(unsigned char)s[n / 2] << 8 | (unsigned char)s[n - 1];
  }
  a = (a ^ n) * 0x9FB21C651E98DF25u ^ b * 0xD6E8FEB86659FD93u;
  a ^= a >> 32;
  a *= 0x9E3779B97F4A7C15u;
  return (size_t)(a >> 40) & (PERI__WORDS - 1);
}

static peri_status piece (const peri__model *m, peri__encoder *e, const char *s, size_t n) {
  switch (m->kind) {
  case PERI__MODEL_BPE:
  case PERI__MODEL_SPM: return peri__bpe_piece(m, e, s, n);
  case PERI__MODEL_UNIGRAM: return peri__unigram_piece(m, e, s, n);
  default: return peri__wordpiece_piece(m, e, s, n);
  }
}

peri_status peri__model_piece (const peri__model *m, peri__encoder *e, const char *s, size_t n) {
  if (n > PERI__WORD_KEY) return piece(m, e, s, n);
  peri__word *w = &e->words[word_hash(s, n) & ~(size_t)1]; /* this one or the next */
  for (int i = 0; i < 2; i++)
    if (w[i].n == n && memcmp(w[i].key, s, n) == 0)
      return peri__buffer_put(&e->ids, w[i].id, w[i].ids * sizeof *w->id) ? PERI_OK : PERI_ENOMEM;
  size_t from = e->ids.size;
  TRY(piece(m, e, s, n));
  size_t count = (e->ids.size - from) / sizeof *w->id;
  if (count <= PERI__WORD_IDS) {
    w[1] = w[0];
    w->n = (uint8_t)n;
    w->ids = (uint8_t)count;
    memcpy(w->key, s, n);
    if (count > 0) memcpy(w->id, e->ids.data + from, count * sizeof *w->id);
  }
  return PERI_OK;
}

/* ---- one text ---- */

static const char space_mark[] = "\xE2\x96\x81"; /* U+2581 */

/* llama.cpp's unigram and SentencePiece with remove_extra_whitespaces: runs of spaces become one. */
static bool merge_spaces (const peri__spaces *sp, peri__buffer *out, const char *s, size_t n) {
  const char *space = sp->escape ? space_mark : " ";
  size_t k = strlen(space);
  bool put = false, inside = false;
  for (size_t i = 0; i < n; i++) {
    if (s[i] != ' ') {
      if (!inside && ((sp->prefix && !put) || sp->merge)) {
        if (!peri__buffer_put(out, space, k)) return false;
        put = true;
      }
      inside = true;
      if (!peri__buffer_put(out, s + i, 1)) return false;
    } else {
      inside = false;
      if (!sp->merge && !peri__buffer_put(out, space, k)) return false;
    }
  }
  return !(sp->suffix) || peri__buffer_put(out, space, k);
}

/* A segment as a SentencePiece vocabulary wants it, in e->spaced. */
static bool write_spaces (const peri_tokenizer *t, peri__buffer *out, const char *s, size_t n,
                          bool first) {
  const peri__spaces *sp = &t->spaces;
  const char *space = sp->escape ? space_mark : " ";
  size_t k = strlen(space);
  out->size = 0;
  if (t->model.kind == PERI__MODEL_UNIGRAM || sp->merge) return merge_spaces(sp, out, s, n);
  if (sp->prefix && first && !peri__buffer_put(out, space, k)) return false;
  while (n > 0) {
    const char *at = memchr(s, ' ', n);
    size_t word = at == NULL ? n : (size_t)(at - s);
    if (!peri__buffer_put(out, s, word)) return false;
    s += word;
    n -= word;
    if (n == 0) break;
    if (!peri__buffer_put(out, space, k)) return false;
    s++;
    n--;
  }
  return true;
}

/* Text without added tokens. start: it begins where the whole text begins; first: nothing or a token
** found in the text is before it. */
static peri_status plain (peri__encoder *e, const char *s, size_t n, bool start, bool first) {
  const peri_tokenizer *t = e->t;
  peri__pieces p;
  if (n == 0) return PERI_OK;
  if (t->model.exact) {
    if (!peri__sentencepiece_normal(t, &e->spaced, s, n, first)) return PERI_ENOMEM;
    return peri__sentencepiece_pieces(e, e->spaced.data, e->spaced.size);
  }
  if (t->chars != NULL) {
    if (!peri__tokenizer_chars(t, &e->chars, s, n)) return PERI_ENOMEM;
    s = e->chars.data;
    n = e->chars.size;
    if (n == 0) return PERI_OK;
  }
  if (t->sentencepiece) {
    if (!write_spaces(t, &e->spaced, s, n, first)) return PERI_ENOMEM;
    s = e->spaced.data;
    n = e->spaced.size;
    if (n == 0) return PERI_OK;
  }
  TRY(peri__split(t->splitter, e->text, s, n, start, &p));
  for (size_t i = 0; i < p.n; i++) {
    if (i % 1024 == 0 && peri__stopped(t->ctx)) return PERI_EINTR;
    TRY(peri__model_piece(&t->model, e, p.text + p.at[i].offset, p.at[i].size));
  }
  return PERI_OK;
}

/* Whether special tokens in a text are tokens. */
static bool parses (const peri_tokenizer *t, int flags) {
  return (flags & PERI_ENCODE_PARSE) != 0 && !t->split_special;
}

/* Text between tokens that are looked for before normalising. */
static peri_status normal (peri__encoder *e, const char *s, size_t n, int flags, bool start,
                           bool first) {
  const peri_tokenizer *t = e->t;
  size_t from = 0, done = 0;
  peri__match m;
  if (n == 0) return PERI_OK;
  if (peri__stopped(t->ctx)) return PERI_EINTR;
  if (t->normalizer != NULL) TRY(peri__normalize(t->normalizer, e->text, s, n, &s, &n));
  while (peri__added_next(&t->added, 1, parses(t, flags), s, n, &from, done, &m)) {
    if (m.begin > done) TRY(plain(e, s + done, m.begin - done, start && done == 0, first));
    if (!peri__ids_put(e, m.id)) return PERI_ENOMEM;
    done = m.end;
    first = true;
  }
  return plain(e, s + done, n - done, start && done == 0, first);
}

static peri_status inner (peri__encoder *e, const char *s, size_t n, int flags) {
  size_t from = 0, done = 0;
  peri__match m;
  while (peri__added_next(&e->t->added, 0, parses(e->t, flags), s, n, &from, done, &m)) {
    if (m.begin > done) TRY(normal(e, s + done, m.begin - done, flags, done == 0, true));
    if (!peri__ids_put(e, m.id)) return PERI_ENOMEM;
    done = m.end;
  }
  return normal(e, s + done, n - done, flags, done == 0, true);
}

/* The special tokens that the post-processor puts before (or behind) the text. */
static peri_status around (peri__encoder *e, bool behind) {
  const peri_tokenizer *t = e->t;
  size_t n;
  const peri__part *part = peri__postprocessor_parts(t->post, false, &n);
  int32_t own = t->role[behind ? PERI_TOKEN_EOS : PERI_TOKEN_BOS];
  int add = own < 0 ? -1 : behind ? t->add_eos : t->add_bos;
  bool past = false, there = false;
  size_t at = e->ids.size;
  for (size_t i = 0; i < n; i++) {
    if (part[i].kind != PERI__PART_IDS) past = true;
    if (part[i].kind != PERI__PART_IDS || past != behind) continue;
    for (size_t k = 0; k < part[i].n; k++) {
      if (part[i].ids[k] == own && add == 0) continue;
      there = there || part[i].ids[k] == own;
      if (!peri__ids_put(e, part[i].ids[k])) return PERI_ENOMEM;
    }
  }
  if (add != 1 || there) return PERI_OK;
  if (!peri__ids_put(e, own)) return PERI_ENOMEM;
  if (!behind && e->ids.size - at > sizeof own) { /* the very first */
    memmove(e->ids.data + at + sizeof own, e->ids.data + at, e->ids.size - at - sizeof own);
    memcpy(e->ids.data + at, &own, sizeof own);
  }
  return PERI_OK;
}

/* Append the ids of a text; on failure e->ids is as before. */
static peri_status encode_text (peri__encoder *e, const char *s, size_t n, int flags) {
  size_t from = e->ids.size;
  peri_status status = PERI_OK;
  if (flags & PERI_ENCODE_SPECIAL) status = around(e, false);
  if (status == PERI_OK) status = inner(e, s, n, flags);
  if (status == PERI_OK && (flags & PERI_ENCODE_SPECIAL)) status = around(e, true);
  if (status != PERI_OK) e->ids.size = from;
  return status;
}

/* ---- many texts ---- */

typedef struct done {
  size_t at, n; /* bytes of the worker's ids */
  int worker;
  peri_status status; /* PERI_EINTR: not begun */
} done;

typedef struct job {
  peri_tokenizer *t;
  const peri_text *text;
  int flags;
  done *done;
} job;

static bool fit (const peri_text *x) {
  return x->n <= PERI__TEXT_MAX && peri__utf8_prefix(x->s, x->n) == x->n;
}

/* What fails here is done again, and the reason told, by serial. */
static void work (void *ud, int64_t begin, int64_t end, int worker) {
  job *j = ud;
  peri__encoder *e = &j->t->encoder[worker + 1];
  for (int64_t i = begin; i < end; i++) {
    done *d = &j->done[i];
    d->worker = worker;
    d->at = e->ids.size;
    d->status =
        fit(&j->text[i]) ? encode_text(e, j->text[i].s, j->text[i].n, j->flags) : PERI_EFORMAT;
    d->n = e->ids.size - d->at;
  }
}

static peri_status no_memory (peri_tokenizer *t, const char *what, size_t n) {
  return peri__fail(t->ctx, PERI_ENOMEM, "tokenizer: no memory for %s of %zu bytes", what, n);
}

/* Append the ids of one text to t->out, on this thread. */
static peri_status serial (peri_tokenizer *t, peri_text x, int flags) {
  peri__encoder *e = &t->encoder[0];
  if (x.n > PERI__TEXT_MAX)
    return peri__fail(t->ctx, PERI_EINVAL, "tokenizer: a text of %zu bytes, the limit is %zu", x.n,
                      PERI__TEXT_MAX);
  if (!fit(&x)) {
    t->repaired.size = 0;
    if (!peri__utf8_repair(&t->repaired, x.s, x.n)) return no_memory(t, "a text", x.n);
    x = (peri_text){ t->repaired.data, t->repaired.size };
  }
  e->ids.size = 0;
  peri_status s = encode_text(e, x.s, x.n, flags);
  if (s == PERI_EINTR) return peri__fail(t->ctx, s, "tokenizer: encoding was interrupted");
  if (s == PERI_ENOMEM) return no_memory(t, "the tokens of a text", x.n);
  if (s != PERI_OK) return peri__text_fail(e->text, s);
  if (!peri__buffer_put(&t->out, e->ids.data, e->ids.size))
    return no_memory(t, "ids", t->out.size + e->ids.size);
  return PERI_OK;
}

#define BLOCK ((size_t)4 << 20)   /* bytes of text that are encoded before ids are gathered */
#define SCRATCH ((size_t)1 << 18) /* of a worker's model: pieces of about 6,000 bytes */

/* n texts of so many bytes on all threads. */
static peri_status block (peri_tokenizer *t, const peri_text *text, int64_t n, size_t bytes,
                          int flags, done *d, int64_t *ends) {
  int threads = peri_threads(t->ctx);
  int64_t grain = n / (8 * threads);
  job j = { t, text, flags, d };
  for (int64_t i = 0; i < n; i++) d[i] = (done){ .status = PERI_EINTR };
  TRY(encoders(t, threads + 1));
  for (int i = 1; i <= threads; i++) {
    peri__encoder *e = &t->encoder[i];
    e->ids.size = e->mapped.size = e->spaced.size = e->chars.size = 0;
    if (!peri__buffer_reserve(&e->ids, bytes + 4096) || peri__work(e, SCRATCH) == NULL ||
        !peri__buffer_reserve(&e->mapped, SCRATCH) || !peri__buffer_reserve(&e->spaced, SCRATCH) ||
        (t->chars != NULL && !peri__buffer_reserve(&e->chars, SCRATCH)) ||
        peri__text_state_reserve(e->text, SCRATCH) != PERI_OK)
      return no_memory(t, "encoding texts", bytes);
  }
  for (int i = 1; i <= threads; i++) fix(&t->encoder[i], true);
  peri__parallel(t->ctx, n, grain < 1 ? 1 : grain, work, &j);
  for (int i = 1; i <= threads; i++) fix(&t->encoder[i], false);
  for (int64_t i = 0; i < n; i++) {
    const char *ids = t->encoder[d[i].worker + 1].ids.data;
    if (d[i].status == PERI_EINTR)
      return peri__fail(t->ctx, PERI_EINTR, "tokenizer: encoding was interrupted");
    if (d[i].status != PERI_OK)
      TRY(serial(t, text[i], flags));
    else if (!peri__buffer_put(&t->out, ids + d[i].at, d[i].n))
      return no_memory(t, "ids", t->out.size + d[i].n);
    ends[i] = (int64_t)(t->out.size / sizeof(int32_t));
  }
  return PERI_OK;
}

/* Texts that share a block; at least one. */
static int64_t block_of (const peri_text *text, int64_t n, size_t *bytes) {
  int64_t k = 0;
  for (*bytes = 0; k < n && (k == 0 || text[k].n <= BLOCK - *bytes); k++) {
    *bytes += text[k].n;
    if (*bytes >= BLOCK) return k + 1;
  }
  return k;
}

peri_status peri_tokenizer_encode (peri_tokenizer *t, int64_t n, const peri_text *text, int flags,
                                   const int32_t **ids, int64_t *ends) {
  if (!t) return PERI_EINVAL;
  NEED(t->ctx, ids);
  if (n > 0) NEED(t->ctx, ends);
  TRY(peri__check_texts(t->ctx, n, text, "text"));
  static const int32_t none = 0;
  peri_status s = encoders(t, 1);
  bool threads = n > 1 && peri_threads(t->ctx) > 1;
  size_t size = threads ? (size_t)n * sizeof(done) : 0;
  done *d = s == PERI_OK && threads ? peri__malloc(t->ctx, size) : NULL;
  if (s == PERI_OK && threads && d == NULL) s = no_memory(t, "a list of texts", size);
  t->out.size = 0;
  for (int64_t i = 0, k; s == PERI_OK && i < n; i += k) {
    size_t bytes;
    k = block_of(text + i, n - i, &bytes);
    if (threads && k > 1) {
      s = block(t, text + i, k, bytes, flags, d, ends + i);
    } else {
      k = 1;
      s = serial(t, text[i], flags);
      ends[i] = (int64_t)(t->out.size / sizeof(int32_t));
    }
  }
  peri__free(t->ctx, d, size);
  if (s == PERI_OK) *ids = t->out.size > 0 ? (const int32_t *)(void *)t->out.data : &none;
  return s;
}
