/*
** tokenizer_model.c - SentencePiece's tokenizer.model: a protocol buffer (sentencepiece_model.proto)
** with pieces, scores, types, the kind of model and what is done to spaces. Only the wire format is
** read here, without a schema: varints, 32 and 64 bits, lengths.
*/
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "text/tokenizer.h"

/* ORDER piece type: SentencePiece.Type */
enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5, BYTE = 6 };
enum { UNIGRAM = 1, BPE = 2 }; /* TrainerSpec.ModelType */

typedef struct range {
  const unsigned char *file, *s, *end; /* file: where offsets count from */
} range;

typedef struct field {
  uint32_t number;
  int wire;   /* 0 varint, 1 64 bits, 2 bytes, 5 32 bits */
  uint64_t v; /* of numbers */
  range in;   /* of bytes */
} field;

typedef struct reader {
  peri_tokenizer *t;
  int64_t n;      /* pieces */
  int type;       /* of model */
  uint8_t *types; /* by id */
  size_t types_cap;
  int32_t id[4];   /* unk, bos, eos, pad; -1: none */
  int32_t unknown; /* the first piece of that type; -1: none */
  bool byte_fallback, prefix, merge, escape, suffix;
} reader;

static peri_status bad (peri_ctx *ctx, const range *r, const char *what) {
  return peri__fail(ctx, PERI_EFORMAT, "byte %zu: %s", (size_t)(r->s - r->file), what);
}

static peri_status varint (peri_ctx *ctx, range *r, uint64_t *out) {
  *out = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (r->s == r->end) return bad(ctx, r, "a number does not end");
    unsigned char c = *r->s++;
    *out |= (uint64_t)(c & 0x7F) << shift;
    if (c < 0x80) return PERI_OK;
  }
  return bad(ctx, r, "a number of more than 64 bits");
}

static peri_status fixed (peri_ctx *ctx, range *r, size_t n, uint64_t *out) {
  if ((size_t)(r->end - r->s) < n) return bad(ctx, r, "a number does not end");
  *out = 0;
  for (size_t i = n; i-- > 0;) *out = *out << 8 | r->s[i];
  r->s += n;
  return PERI_OK;
}

/* The next field of a message. */
static peri_status next (peri_ctx *ctx, range *r, field *f) {
  uint64_t tag, n;
  TRY(varint(ctx, r, &tag));
  f->number = (uint32_t)(tag >> 3);
  f->wire = (int)(tag & 7);
  if (tag >> 3 == 0 || tag >> 32 != 0) return bad(ctx, r, "a field without a number");
  switch (f->wire) {
  case 0: return varint(ctx, r, &f->v);
  case 1: return fixed(ctx, r, 8, &f->v);
  case 5: return fixed(ctx, r, 4, &f->v);
  case 2:
    TRY(varint(ctx, r, &n));
    if (n > (uint64_t)(r->end - r->s)) return bad(ctx, r, "a field ends behind its message");
    f->in = (range){ r->file, r->s, r->s + n };
    r->s += n;
    return PERI_OK;
  default: return bad(ctx, r, "not a tokenizer.model: an unknown kind of field");
  }
}

static peri_status read_piece (reader *r, range in) {
  peri_ctx *ctx = r->t->ctx;
  peri__model *m = &r->t->model;
  range text = in;
  uint32_t bits = 0;
  uint64_t type = NORMAL;
  float score;
  text.end = text.s;
  while (in.s < in.end) {
    field f;
    TRY(next(ctx, &in, &f));
    if (f.number == 1 && f.wire == 2) text = f.in;
    if (f.number == 2 && f.wire == 5) bits = (uint32_t)f.v;
    if (f.number == 3 && f.wire == 0) type = f.v;
  }
  if (r->n >= PERI__TOKENS_MAX) return bad(ctx, &in, "too many pieces");
  size_t n = (size_t)(text.end - text.s), id = (size_t)r->n++;
  const char *s = (const char *)text.s;
  memcpy(&score, &bits, sizeof score);
  if (peri__utf8_prefix(s, n) != n) return bad(ctx, &text, "a piece is no UTF-8");
  if (!isfinite(score)) return bad(ctx, &in, "the score of a piece is not finite");
  TRY(peri__vocab_put(&m->vocab, (int64_t)id, s, n, false));
  TRY(peri__grow(ctx, &m->weight, &m->weights, id + 1, sizeof *m->weight, "scores"));
  TRY(peri__grow(ctx, &r->types, &r->types_cap, id + 1, 1, "types"));
  m->weight[id] = (double)score;
  r->types[id] = type <= BYTE ? (uint8_t)type : NORMAL;
  if (type == UNKNOWN && r->unknown < 0) r->unknown = (int32_t)id;
  if (n == 0 || !(type == CONTROL || type == UNKNOWN)) return PERI_OK;
  return peri__added_put(&r->t->added, (int32_t)id, s, n, PERI__ADDED_SPECIAL);
}

static peri_status read_trainer (reader *r, range in) {
  while (in.s < in.end) {
    field f;
    TRY(next(r->t->ctx, &in, &f));
    if (f.wire != 0) continue;
    if (f.number == 3) r->type = f.v <= 4 ? (int)f.v : 0;
    if (f.number == 24) r->suffix = f.v != 0; /* treat_whitespace_as_suffix */
    if (f.number == 35) r->byte_fallback = f.v != 0;
    if (f.number >= 40 && f.number <= 43)
      r->id[f.number - 40] = (int64_t)f.v < 0 || f.v > INT32_MAX ? -1 : (int32_t)f.v;
  }
  return PERI_OK;
}

/* Rules for the way back, from ids to text, that only few models have. */
static peri_status check_denormalizer (reader *r, range in) {
  while (in.s < in.end) {
    field f;
    TRY(next(r->t->ctx, &in, &f));
    if (f.number == 2 && f.wire == 2 && f.in.end > f.in.s)
      return bad(r->t->ctx, &f.in,
                 "denormalizer_spec with rules (precompiled_charsmap) is not supported");
  }
  return PERI_OK;
}

static peri_status read_normalizer (reader *r, range in) {
  while (in.s < in.end) {
    field f;
    TRY(next(r->t->ctx, &in, &f));
    if (f.number == 2 && f.wire == 2 && r->t->chars == NULL)
      TRY(peri__tokenizer_charsmap(r->t, f.in.s, (size_t)(f.in.end - f.in.s)));
    if (f.wire != 0) continue;
    if (f.number == 3) r->prefix = f.v != 0;
    if (f.number == 4) r->merge = f.v != 0;
    if (f.number == 5) r->escape = f.v != 0;
  }
  return PERI_OK;
}

static bool of_type (const void *ud, uint32_t id) {
  const reader *r = ud;
  return r->types[id] == USER_DEFINED;
}

/* Bits of the pieces with the given types, a set of 1 << type. */
static peri_status type_bits (reader *r, unsigned types, uint8_t **out) {
  peri_ctx *ctx = r->t->ctx;
  size_t size = (r->t->model.vocab.size + 7) / 8;
  *out = peri__malloc(ctx, size);
  if (*out == NULL)
    return peri__fail(ctx, PERI_ENOMEM, "no memory for %lld pieces", (long long)r->n);
  memset(*out, 0, size);
  for (int64_t i = 0; i < r->n; i++)
    if (types >> r->types[i] & 1) (*out)[i / 8] |= (uint8_t)(1 << i % 8);
  return PERI_OK;
}

/* Scores of a unigram model as unigram_model.cc has them: a user's piece is better than any other (its
** max_score_ begins at FLT_MIN), what no piece covers is 10 worse than the worst. */
static void settle_scores (reader *r) {
  peri__model *m = &r->t->model;
  float least = FLT_MAX, most = FLT_MIN;
  for (int64_t i = 0; i < r->n; i++) {
    float score = (float)m->weight[i];
    if (r->types[i] != NORMAL) continue;
    if (score < least) least = score;
    if (score > most) most = score;
  }
  for (int64_t i = 0; i < r->n; i++) {
    size_t n = 0;
    if (r->types[i] != USER_DEFINED) continue;
    peri__vocab_text(&m->vocab, i, &n);
    m->weight[i] = (double)((float)n * most) - 0.1;
  }
  m->unknown = least - 10.0f;
}

/* T5 has tokens behind the pieces, the last one first. */
static peri_status extra_ids (reader *r) {
  static const char *const family[] = { "T5Tokenizer", "MT5Tokenizer", NULL };
  peri_tokenizer *t = r->t;
  int64_t n = t->beside.extra_ids < 0 ? 100 : t->beside.extra_ids;
  if (!peri__beside_family(&t->beside, family) ||
      peri__vocab_find(&t->model.vocab, "<extra_id_0>", 12) >= 0)
    return PERI_OK;
  if (n > PERI__TOKENS_MAX - r->n)
    return peri__fail(t->ctx, PERI_EFORMAT, "extra_ids %lld are too many", (long long)n);
  for (int64_t i = 0; i < n; i++) {
    char name[40];
    int size = snprintf(name, sizeof name, "<extra_id_%lld>", (long long)(n - 1 - i));
    TRY(peri__added_put(&t->added, (int32_t)(r->n + i), name, (size_t)size, PERI__ADDED_SPECIAL));
  }
  return PERI_OK;
}

/* Classes that give the pieces other ids or put other tokens around. */
static peri_status check_family (reader *r) {
  static const char *const others[] = {
    "Albert",  "Barthez",    "BigBird",    "Camembert", "Cpm",    "DebertaV2",   "ErnieM",
    "FNet",    "GPTSw3",     "M2M100",     "MBart",     "Marian", "Nllb",        "PLBart",
    "Pegasus", "Reformer",   "RemBert",    "Seamless",  "Siglip", "Speech2Text", "Udop",
    "XGLM",    "XLMProphet", "XLMRoberta", "XLNet",     NULL
  };
  if (!peri__beside_family(&r->t->beside, others)) return PERI_OK;
  return peri__fail(r->t->ctx, PERI_EFORMAT,
                    "tokenizer_class \"%s\" makes of a SentencePiece model what is not known here; "
                    "save its tokenizer.json beside it",
                    r->t->beside.family);
}

/* BPE keeps scores as floats; unigram leaves out what texts do not have. */
static peri_status finish (reader *r) {
  peri_tokenizer *t = r->t;
  peri__model *m = &t->model;
  const unsigned never = 1u << UNKNOWN | 1u << CONTROL | 1u << BYTE;
  size_t n = (size_t)r->n;
  if (n == 0) return peri__fail(t->ctx, PERI_EFORMAT, "a tokenizer.model without pieces");
  TRY(check_family(r));
  m->byte_fallback = r->byte_fallback;
  m->exact = true;
  TRY(peri__prefixes_open(&m->user, &m->vocab, of_type, r));
  TRY(extra_ids(r));
  if (r->type == UNIGRAM) {
    m->kind = PERI__MODEL_UNIGRAM;
    settle_scores(r);
    return type_bits(r, never | 1u << UNUSED, &m->left_out);
  }
  m->kind = PERI__MODEL_SPM;
  TRY(peri__grow(t->ctx, &m->score, &m->scores, n, sizeof *m->score, "scores"));
  bool unused = false;
  for (size_t i = 0; i < n; i++) {
    m->score[i] = (float)m->weight[i];
    unused = unused || r->types[i] == UNUSED;
  }
  TRY(type_bits(r, never, &m->left_out));
  return unused ? type_bits(r, 1u << UNUSED, &m->unused) : PERI_OK;
}

static peri_status read_all (reader *r, range in) {
  static const peri_token_role roles[] = { PERI_TOKEN_UNK, PERI_TOKEN_BOS, PERI_TOKEN_EOS,
                                           PERI_TOKEN_PAD };
  peri_tokenizer *t = r->t;
  while (in.s < in.end) {
    field f;
    TRY(next(t->ctx, &in, &f));
    if (f.wire != 2) continue;
    if (f.number == 1) TRY(read_piece(r, f.in));
    if (f.number == 2) TRY(read_trainer(r, f.in));
    if (f.number == 3) TRY(read_normalizer(r, f.in));
    if (f.number == 5) TRY(check_denormalizer(r, f.in));
  }
  if (r->type != UNIGRAM && r->type != BPE)
    return peri__fail(t->ctx, PERI_EFORMAT,
                      "model type %d of SentencePiece (3 words, 4 characters) is not supported",
                      r->type);
  TRY(finish(r));
  for (int i = 0; i < 4; i++)
    if (r->id[i] >= 0 && r->id[i] < r->n) t->role[roles[i]] = r->id[i];
  if (r->unknown >= 0) t->role[PERI_TOKEN_UNK] = r->unknown;
  t->model.unk = t->role[PERI_TOKEN_UNK];
  t->sentencepiece = true;
  t->spaces = (peri__spaces){ .escape = r->escape,
                              .prefix = r->prefix && !r->suffix,
                              .suffix = r->prefix && r->suffix,
                              .merge = r->merge };
  /* The file does not say what models want around a text: Llama's way for BPE, T5's for unigram. */
  t->add_bos = r->type == BPE;
  t->add_eos = r->type == UNIGRAM;
  /* Back to text: the space that was put before it goes, or all that cannot have been there. */
  return peri__tokenizer_spaces(t, !r->escape ? 0 : r->merge ? INT32_MAX : r->prefix);
}

peri_status peri__tokenizer_sentencepiece (peri_tokenizer *t, const void *data, size_t size) {
  reader r = { .t = t,
               .type = UNIGRAM,
               .id = { 0, 1, 2, -1 },
               .unknown = -1,
               .prefix = true,
               .merge = true,
               .escape = true };
  range in = { data, data, (const unsigned char *)data + size };
  peri_status s = read_all(&r, in);
  peri__free(t->ctx, r.types, r.types_cap);
  return s;
}
