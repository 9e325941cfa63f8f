/*
** tokenizer_json.c - reading tokenizer.json (Hugging Face tokenizers): the top level, added tokens
** and models. The text is parsed once; what depends on something further down is done at the end.
*/
#include <string.h>

#include "text/tokenizer.h"

#define AFFIX_MAX 128 /* bytes of continuing_subword_prefix and end_of_word_suffix */

typedef struct reader {
  peri_json j;
  peri_tokenizer *t;
  size_t size;      /* of the text: bounds ids */
  size_t merges_at; /* offset of merges that come before the vocabulary; 0: none */
  int kind;         /* peri__model_kind; -1: not said */
  bool vocab_map, vocab_list, merges, word_chars;
  char *unk; /* unk_token; NULL: none */
  size_t unk_size;
  int64_t unk_id; /* -1: none */
  char *pair;     /* two tokens of a merge beside each other */
  size_t pair_cap;
} reader;

static int shown (size_t n) { return n > 60 ? 60 : (int)n; }

static peri_status check_id (reader *r, const peri_json_value *v) {
  /* A file cannot ask for more ids than its size pays for. */
  int64_t most = (int64_t)(r->size / 2) + 65536;
  if (most > PERI__TOKENS_MAX) most = PERI__TOKENS_MAX;
  if (v->type != PERI_JSON_INT || v->i < 0 || v->i >= most)
    return peri_json_fail(&r->j, v->offset, "a token's id must be a whole number from 0 to %lld",
                          (long long)most - 1);
  return PERI_OK;
}

/* ---- model ---- */

static peri_status read_vocab_map (reader *r) {
  peri__vocab *vocab = &r->t->model.vocab;
  peri_json_value v;
  char *key = NULL;
  size_t cap = 0;
  peri_status s = PERI_OK;
  r->j.opt.distinct_keys = true; /* the vocabulary itself finds doubles */
  while (s == PERI_OK) {
    if ((s = peri_json_next(&r->j, &v)) != PERI_OK || v.type == PERI_JSON_CLOSE) break;
    size_t n = v.n, at = v.offset;
    peri_json_value id;
    if ((s = peri__grow(r->j.ctx, &key, &cap, n, 1, "bytes")) != PERI_OK) break;
    if (n > 0) memcpy(key, v.s, n);
    if ((s = peri_json_next(&r->j, &id)) != PERI_OK || (s = check_id(r, &id)) != PERI_OK) break;
    size_t other;
    if (peri__vocab_find(vocab, key, n) >= 0)
      s = peri_json_fail(&r->j, at, "token \"%.*s\" comes twice", shown(n), key);
    else if (peri__vocab_text(vocab, id.i, &other) != NULL)
      s = peri_json_fail(&r->j, id.offset, "id %lld is that of two tokens, the second is \"%.*s\"",
                         (long long)id.i, shown(n), key);
    else
      s = peri__vocab_put(vocab, id.i, key, n, false);
  }
  r->j.opt.distinct_keys = false;
  peri__free(r->j.ctx, key, cap);
  r->vocab_map = true;
  return s;
}

/* Unigram: [["token", score], ...] */
static peri_status read_vocab_list (reader *r) {
  peri__model *m = &r->t->model;
  peri_json_value v;
  for (int64_t id = 0;; id++) {
    TRY(peri_json_next(&r->j, &v));
    if (v.type == PERI_JSON_CLOSE) break;
    size_t at = v.offset;
    if (v.type != PERI_JSON_ARRAY)
      return peri_json_fail(&r->j, at, "a vocabulary's entry must be [token, score]");
    if (id >= PERI__TOKENS_MAX)
      return peri_json_fail(&r->j, at, "more than %lld tokens", (long long)PERI__TOKENS_MAX);
    TRY(peri_json_expect(&r->j, PERI_JSON_STRING, "a token", &v));
    TRY(peri__vocab_put(&m->vocab, id, v.s, v.n, true));
    TRY(peri_json_next(&r->j, &v));
    if (v.type != PERI_JSON_NUM && v.type != PERI_JSON_INT)
      return peri_json_fail(&r->j, v.offset, "a token's score must be a number");
    TRY(peri__grow(r->j.ctx, &m->weight, &m->weights, (size_t)id + 1, sizeof *m->weight, "scores"));
    m->weight[id] = v.f;
    TRY(peri_json_expect(&r->j, PERI_JSON_CLOSE, "what follows a token's score", &v));
  }
  r->vocab_list = true;
  return PERI_OK;
}

static peri_status put_merge (reader *r, peri_json *j, size_t at, int64_t rank, const char *a,
                              size_t na, const char *b, size_t nb) {
  peri__model *m = &r->t->model;
  int32_t left = peri__vocab_find(&m->vocab, a, na), right = peri__vocab_find(&m->vocab, b, nb);
  if (left < 0 || right < 0)
    return peri_json_fail(j, at, "\"%.*s\" of merge %lld is not in the vocabulary",
                          shown(left < 0 ? na : nb), left < 0 ? a : b, (long long)rank);
  size_t cut = m->prefix_size <= nb ? m->prefix_size : nb;
  bool there = a == r->pair; /* growing moves it */
  TRY(peri__grow(j->ctx, &r->pair, &r->pair_cap, na + nb, 1, "bytes"));
  if (!there && na > 0) memcpy(r->pair, a, na);
  if (nb > cut) memcpy(r->pair + na, b + cut, nb - cut);
  int32_t id = peri__vocab_find(&m->vocab, r->pair, na + nb - cut);
  if (id < 0)
    return peri_json_fail(j, at, "\"%.*s\", what merge %lld makes, is not in the vocabulary",
                          shown(na + nb - cut), r->pair, (long long)rank);
  return peri__merges_put(&m->merges, (uint32_t)left, (uint32_t)right, (uint32_t)rank,
                          (uint32_t)id);
}

/* Behind the '[': "a b" or ["a", "b"]. */
static peri_status read_merges (reader *r, peri_json *j) {
  peri_json_value v;
  for (int64_t rank = 0;; rank++) {
    TRY(peri_json_next(j, &v));
    size_t at = v.offset;
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    if (v.type == PERI_JSON_STRING) {
      const char *space = v.n > 0 ? memchr(v.s, ' ', v.n) : NULL;
      size_t na = space == NULL ? v.n : (size_t)(space - v.s);
      if (space == NULL || memchr(space + 1, ' ', v.n - na - 1) != NULL)
        return peri_json_fail(j, at, "merge %lld must be two tokens with one space between",
                              (long long)rank);
      TRY(put_merge(r, j, at, rank, v.s, na, space + 1, v.n - na - 1));
    } else if (v.type == PERI_JSON_ARRAY) {
      TRY(peri_json_expect(j, PERI_JSON_STRING, "the first token of a merge", &v));
      size_t na = v.n;
      TRY(peri__grow(j->ctx, &r->pair, &r->pair_cap, na, 1, "bytes"));
      if (na > 0) memcpy(r->pair, v.s, na);
      TRY(peri_json_expect(j, PERI_JSON_STRING, "the second token of a merge", &v));
      TRY(put_merge(r, j, at, rank, r->pair, na, v.s, v.n));
      TRY(peri_json_expect(j, PERI_JSON_CLOSE, "what follows two tokens of a merge", &v));
    } else {
      return peri_json_fail(j, at, "merge %lld must be a string or a list of two", (long long)rank);
    }
  }
}

static peri_status read_flag (reader *r, const char *what, bool *out) {
  peri_json_value v;
  TRY(peri_json_next(&r->j, &v));
  if (v.type == PERI_JSON_NULL) return PERI_OK;
  if (v.type != PERI_JSON_BOOL)
    return peri_json_fail(&r->j, v.offset, "%s must be a boolean", what);
  *out = v.flag;
  return PERI_OK;
}

/* A string or null, copied; "" is as null. */
static peri_status read_name (reader *r, const char *what, size_t most, char **out, size_t *n) {
  peri_json_value v;
  TRY(peri_json_next(&r->j, &v));
  if (v.type == PERI_JSON_NULL || (v.type == PERI_JSON_STRING && v.n == 0)) return PERI_OK;
  if (v.type != PERI_JSON_STRING)
    return peri_json_fail(&r->j, v.offset, "%s must be a string or null", what);
  if (v.n > most)
    return peri_json_fail(&r->j, v.offset, "%s has %zu bytes, the limit is %zu", what, v.n, most);
  if (*out != NULL) return peri_json_fail(&r->j, v.offset, "%s comes twice", what);
  if ((*out = peri__copy_text(r->j.ctx, v.s, v.n)) == NULL) return PERI_ENOMEM;
  *n = v.n;
  return PERI_OK;
}

static peri_status read_kind (reader *r) {
  static const struct {
    const char *name;
    peri__model_kind kind;
  } kinds[] = { { "BPE", PERI__MODEL_BPE },
                { "Unigram", PERI__MODEL_UNIGRAM },
                { "WordPiece", PERI__MODEL_WORDPIECE },
                { "WordLevel", PERI__MODEL_WORDLEVEL } };
  peri_json_value v;
  TRY(peri_json_expect(&r->j, PERI_JSON_STRING, "the type of a model", &v));
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
    if (peri__json_is(&v, kinds[i].name)) {
      r->kind = (int)kinds[i].kind;
      return PERI_OK;
    }
  return peri_json_fail(&r->j, v.offset, "model type \"%.*s\" is not supported", shown(v.n), v.s);
}

static peri_status read_model_field (reader *r, const peri_json_value *key) {
  peri__model *m = &r->t->model;
  peri_json_value v;
  if (peri__json_is(key, "type")) return read_kind(r);
  if (peri__json_is(key, "unk_token"))
    return read_name(r, "unk_token", 4096, &r->unk, &r->unk_size);
  if (peri__json_is(key, "continuing_subword_prefix"))
    return read_name(r, "continuing_subword_prefix", AFFIX_MAX, &m->prefix, &m->prefix_size);
  if (peri__json_is(key, "end_of_word_suffix"))
    return read_name(r, "end_of_word_suffix", AFFIX_MAX, &m->suffix, &m->suffix_size);
  if (peri__json_is(key, "byte_fallback")) return read_flag(r, "byte_fallback", &m->byte_fallback);
  if (peri__json_is(key, "fuse_unk")) return read_flag(r, "fuse_unk", &m->fuse_unk);
  if (peri__json_is(key, "ignore_merges")) return read_flag(r, "ignore_merges", &m->ignore_merges);
  if (peri__json_is(key, "vocab")) {
    TRY(peri_json_next(&r->j, &v));
    if (v.type == PERI_JSON_OBJECT) return read_vocab_map(r);
    if (v.type == PERI_JSON_ARRAY) return read_vocab_list(r);
    return peri_json_fail(&r->j, v.offset, "a vocabulary must be an object or a list");
  }
  if (peri__json_is(key, "merges")) {
    TRY(peri_json_expect(&r->j, PERI_JSON_ARRAY, "merges", &v));
    r->merges = true;
    /* Merges need all of the vocabulary, and the prefix that their second tokens begin with. */
    if (r->vocab_map && r->kind == PERI__MODEL_BPE && m->prefix_known) return read_merges(r, &r->j);
    r->merges_at = v.offset;
    return peri__json_skip(&r->j, &v);
  }
  if (peri__json_is(key, "dropout")) {
    TRY(peri_json_next(&r->j, &v));
    bool zero = v.type == PERI_JSON_NULL ||
                ((v.type == PERI_JSON_INT || v.type == PERI_JSON_NUM) && v.f == 0);
    if (zero) return PERI_OK;
    return peri_json_fail(&r->j, v.offset, "dropout of merges is not supported, it must be null");
  }
  if (peri__json_is(key, "unk_id")) {
    TRY(peri_json_next(&r->j, &v));
    if (v.type == PERI_JSON_NULL) return PERI_OK;
    TRY(check_id(r, &v));
    r->unk_id = v.i;
    return PERI_OK;
  }
  if (peri__json_is(key, "max_input_chars_per_word")) {
    TRY(peri_json_expect(&r->j, PERI_JSON_INT, "max_input_chars_per_word", &v));
    if (v.i < 0) return peri_json_fail(&r->j, v.offset, "max_input_chars_per_word is negative");
    m->word_chars = v.i;
    r->word_chars = true;
    return PERI_OK;
  }
  return peri_json_fail(&r->j, key->offset, "field \"%.*s\" of a model is not supported",
                        shown(key->n), key->s);
}

static peri_status late_merges (reader *r) {
  peri_json j;
  peri_json_value v;
  peri__json_open_foreign(&j, r->j.ctx, (const char *)r->j.text + r->merges_at,
                          r->size - r->merges_at);
  peri_status s = peri_json_next(&j, &v);
  if (s == PERI_OK) s = read_merges(r, &j);
  peri_json_close(&j);
  return s;
}

/* Files of early versions do not say the type. */
static int guess_kind (const reader *r) {
  if (r->vocab_list) return PERI__MODEL_UNIGRAM;
  if (r->merges) return PERI__MODEL_BPE;
  return r->word_chars ? PERI__MODEL_WORDPIECE : PERI__MODEL_WORDLEVEL;
}

static peri_status check_model (reader *r, size_t at) {
  peri__model *m = &r->t->model;
  if (r->kind < 0) r->kind = guess_kind(r);
  m->kind = (peri__model_kind)r->kind;
  bool list = m->kind == PERI__MODEL_UNIGRAM;
  if (!r->vocab_map && !r->vocab_list) return peri_json_fail(&r->j, at, "a model without vocab");
  if (list != r->vocab_list)
    return peri_json_fail(&r->j, at, "a vocabulary that is %s does not fit the type of the model",
                          r->vocab_list ? "a list" : "an object");
  if (r->merges_at != 0 && m->kind == PERI__MODEL_BPE) TRY(late_merges(r));
  if (r->unk != NULL) m->unk = peri__vocab_find(&m->vocab, r->unk, r->unk_size);
  if (r->unk_id >= 0) m->unk = (int32_t)r->unk_id;
  if (m->unk >= 0 && (size_t)m->unk >= m->vocab.size)
    return peri_json_fail(&r->j, at, "unk_id %d in a vocabulary of %zu tokens", (int)m->unk,
                          m->vocab.size);
  if (m->kind == PERI__MODEL_WORDPIECE) {
    if (!r->word_chars) m->word_chars = 100;
    if (!m->prefix_known && m->prefix == NULL) {
      if ((m->prefix = peri__copy_text(r->j.ctx, "##", 2)) == NULL) return PERI_ENOMEM;
      m->prefix_size = 2;
    }
  }
  return PERI_OK;
}

static peri_status read_model (reader *r) {
  peri_json_value v;
  TRY(peri_json_expect(&r->j, PERI_JSON_OBJECT, "model", &v));
  size_t at = v.offset;
  for (;;) {
    TRY(peri_json_next(&r->j, &v));
    if (v.type == PERI_JSON_CLOSE) return check_model(r, at);
    bool prefix = peri__json_is(&v, "continuing_subword_prefix");
    TRY(read_model_field(r, &v));
    if (prefix) r->t->model.prefix_known = true;
  }
}

/* ---- added tokens ---- */

static peri_status read_added_token (reader *r) {
  static const struct {
    const char *name;
    int flag;
  } flags[] = { { "special", PERI__ADDED_SPECIAL },
                { "normalized", PERI__ADDED_NORMALIZED },
                { "single_word", PERI__ADDED_SINGLE_WORD },
                { "lstrip", PERI__ADDED_LSTRIP },
                { "rstrip", PERI__ADDED_RSTRIP } };
  peri_json_value v;
  char *text = NULL;
  size_t n = 0, at = r->j.pos;
  int64_t id = -1;
  int set = 0, said = 0;
  peri_status s = PERI_OK;
  while (s == PERI_OK) {
    if ((s = peri_json_next(&r->j, &v)) != PERI_OK || v.type == PERI_JSON_CLOSE) break;
    if (peri__json_is(&v, "id")) {
      if ((s = peri_json_next(&r->j, &v)) == PERI_OK && (s = check_id(r, &v)) == PERI_OK) id = v.i;
      continue;
    }
    if (peri__json_is(&v, "content")) {
      s = read_name(r, "content", PERI__ADDED_BYTES, &text, &n);
      continue;
    }
    size_t i = 0;
    bool flag = false;
    while (i < sizeof flags / sizeof *flags && !peri__json_is(&v, flags[i].name)) i++;
    if (i == sizeof flags / sizeof *flags) {
      if ((s = peri_json_next(&r->j, &v)) == PERI_OK) s = peri__json_skip(&r->j, &v);
      continue;
    }
    s = read_flag(r, flags[i].name, &flag);
    if (flag) set |= flags[i].flag;
    said |= flags[i].flag;
  }
  if (s == PERI_OK && id < 0) s = peri_json_fail(&r->j, at, "an added token without id");
  if (!(said & PERI__ADDED_NORMALIZED) && !(set & PERI__ADDED_SPECIAL))
    set |= PERI__ADDED_NORMALIZED;
  if (s == PERI_OK && text != NULL) s = peri__added_put(&r->t->added, (int32_t)id, text, n, set);
  if (text != NULL) peri__free(r->j.ctx, text, n + 1);
  return s;
}

static peri_status read_added (reader *r) {
  peri_json_value v;
  TRY(peri_json_next(&r->j, &v));
  if (v.type == PERI_JSON_NULL) return PERI_OK;
  if (v.type != PERI_JSON_ARRAY)
    return peri_json_fail(&r->j, v.offset, "added_tokens must be a list");
  for (;;) {
    TRY(peri_json_next(&r->j, &v));
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    if (v.type != PERI_JSON_OBJECT)
      return peri_json_fail(&r->j, v.offset, "an added token must be an object");
    TRY(read_added_token(r));
  }
}

/* "padding" or "truncation": what of it callers decide with. */
static peri_status read_batching (reader *r, peri_side *side, int64_t *length) {
  peri_json_value v;
  TRY(peri_json_next(&r->j, &v));
  if (v.type != PERI_JSON_OBJECT) return peri__json_skip(&r->j, &v);
  for (;;) {
    TRY(peri_json_next(&r->j, &v));
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    bool direction = peri__json_is(&v, "direction"), most = peri__json_is(&v, "max_length");
    TRY(peri_json_next(&r->j, &v));
    /* A tokenizer_config.json, read before, counts more. */
    if (direction && *side == PERI_SIDE_UNSAID) peri__tokenizer_side(&v, side);
    if (most && length != NULL && *length == 0) peri__tokenizer_length(&v, length);
    TRY(peri__json_skip(&r->j, &v));
  }
}

/* A token of the model keeps the model's id; others take the one that the file says, if it is free. */
static peri_status settle_added (reader *r) {
  peri_tokenizer *t = r->t;
  for (size_t i = 0; i < t->added.n; i++) {
    size_t n = 0, other = 0;
    const char *s = peri__vocab_text(&t->added.text, (int64_t)i, &n);
    int32_t id = peri__vocab_find(&t->model.vocab, s, n);
    const char *taken = peri__vocab_text(&t->model.vocab, t->added.token[i].id, &other);
    if (id < 0 && taken != NULL)
      return peri__fail(t->ctx, PERI_EFORMAT,
                        "added token \"%.*s\" has id %d, which is \"%.*s\" in the vocabulary",
                        shown(n), s, (int)t->added.token[i].id, shown(other), taken);
    if (id >= 0) t->added.token[i].id = id;
  }
  return PERI_OK;
}

/* ---- top level ---- */

static peri_status read_top (reader *r) {
  peri_tokenizer *t = r->t;
  peri_json_value v;
  bool model = false;
  TRY(peri_json_expect(&r->j, PERI_JSON_OBJECT, "a tokenizer.json", &v));
  for (;;) {
    TRY(peri_json_next(&r->j, &v));
    if (v.type == PERI_JSON_CLOSE) break;
    if (peri__json_is(&v, "model")) {
      model = true;
      TRY(read_model(r));
    } else if (peri__json_is(&v, "added_tokens")) {
      TRY(read_added(r));
    } else if (peri__json_is(&v, "normalizer")) {
      TRY(peri__normalizer_read(t->ctx, &r->j, &t->normalizer));
    } else if (peri__json_is(&v, "pre_tokenizer")) {
      TRY(peri__splitter_read(t->ctx, &r->j, &t->splitter));
    } else if (peri__json_is(&v, "post_processor")) {
      TRY(peri__postprocessor_read(t->ctx, &r->j, &t->post));
    } else if (peri__json_is(&v, "decoder")) {
      TRY(peri__decoder_read(t->ctx, &r->j, &t->decoder));
    } else if (peri__json_is(&v, "padding")) {
      TRY(read_batching(r, &t->padding, NULL));
    } else if (peri__json_is(&v, "truncation")) {
      TRY(read_batching(r, &t->truncation, &t->max_length));
    } else { /* version */
      TRY(peri_json_next(&r->j, &v));
      TRY(peri__json_skip(&r->j, &v));
    }
  }
  if (!model) return peri_json_fail(&r->j, v.offset, "a tokenizer.json without model");
  TRY(peri_json_expect(&r->j, PERI_JSON_END, "what follows the tokenizer", &v));
  return settle_added(r);
}

peri_status peri__tokenizer_json (peri_tokenizer *t, const void *text, size_t size) {
  reader r = { .t = t, .size = size, .kind = -1, .unk_id = -1 };
  const peri_json_options opt = { .max_bytes = PERI__TOKENIZER_BYTES, .foreign = true };
  peri_json_open(&r.j, t->ctx, text, size, &opt);
  peri_status s = read_top(&r);
  peri_json_close(&r.j);
  peri__free(t->ctx, r.pair, r.pair_cap);
  if (r.unk != NULL) peri__free(t->ctx, r.unk, r.unk_size + 1);
  return s;
}

/* vocab.json and encoder.json: the vocabulary alone. */
peri_status peri__tokenizer_json_vocab (peri_tokenizer *t, const void *text, size_t size) {
  reader r = { .t = t, .size = size };
  peri_json_value v;
  const peri_json_options opt = { .max_bytes = PERI__TOKENIZER_BYTES, .foreign = true };
  peri_json_open(&r.j, t->ctx, text, size, &opt);
  peri_status s = peri_json_expect(&r.j, PERI_JSON_OBJECT, "a vocabulary", &v);
  if (s == PERI_OK) s = read_vocab_map(&r);
  if (s == PERI_OK) s = peri_json_expect(&r.j, PERI_JSON_END, "what follows a vocabulary", &v);
  peri_json_close(&r.j);
  t->model.kind = PERI__MODEL_BPE;
  return s;
}
