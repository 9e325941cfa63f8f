/*
** tokenizer.c - the tokenizer object: its making, what it knows about its tokens, decoding whole and
** by stream. Readers of the single file formats fill it (tokenizer_*.c), encode.c uses it.
*/
#include <math.h>
#include <string.h>

#include "io/files.h"
#include "text/tokenizer.h"

peri_status peri__tokenizer_new (peri_ctx *ctx, peri_tokenizer **out) {
  peri_tokenizer *t = peri__malloc(ctx, sizeof *t);
  *out = NULL;
  if (t == NULL) return peri__fail(ctx, PERI_ENOMEM, "no memory for a tokenizer");
  memset(t, 0, sizeof *t);
  t->ctx = ctx;
  for (int i = 0; i < PERI_TOKEN_NROLE; i++) t->role[i] = -1;
  t->add_bos = t->add_eos = -1;
  t->model.unk = -1;
  peri__beside_open(&t->beside);
  peri__vocab_open(&t->model.vocab, ctx);
  peri__merges_open(&t->model.merges, ctx);
  peri__added_open(&t->added, ctx);
  t->out.ctx = t->repaired.ctx = ctx;
  *out = t;
  return PERI_OK;
}

static void model_close (peri_ctx *ctx, peri__model *m) {
  peri__prefixes_close(&m->prefixes);
  peri__free(ctx, m->score, m->scores * sizeof *m->score);
  peri__free(ctx, m->weight, m->weights * sizeof *m->weight);
  peri__prefixes_close(&m->user);
  peri__free(ctx, m->left_out, (m->vocab.size + 7) / 8);
  peri__free(ctx, m->unused, (m->vocab.size + 7) / 8);
  if (m->prefix != NULL) peri__free(ctx, m->prefix, m->prefix_size + 1);
  if (m->suffix != NULL) peri__free(ctx, m->suffix, m->suffix_size + 1);
  peri__merges_close(&m->merges);
  peri__vocab_close(&m->vocab);
}

void peri_tokenizer_close (peri_tokenizer *t) {
  if (t == NULL) return;
  peri_ctx *ctx = t->ctx;
  for (int i = 0; i < t->n_encoder; i++) peri__encoder_close(&t->encoder[i]);
  peri__free(ctx, t->encoder, (size_t)t->n_encoder * sizeof *t->encoder);
  peri_token_stream_close(t->whole);
  peri__normalizer_free(t->normalizer);
  peri__splitter_free(t->splitter);
  peri__postprocessor_free(t->post);
  peri__decoder_free(t->decoder);
  model_close(ctx, &t->model);
  peri__added_close(&t->added);
  peri__beside_close(ctx, &t->beside);
  peri__free(ctx, t->chars, t->chars_size);
  peri__free(ctx, t->ends, t->cap_ends * sizeof *t->ends);
  if (t->template != NULL) peri__free(ctx, t->template, t->template_size + 1);
  peri__buffer_free(&t->out);
  peri__buffer_free(&t->repaired);
  peri__free(ctx, t, sizeof *t);
}

char *peri__copy_text (peri_ctx *ctx, const char *s, size_t n) {
  char *copy = n == SIZE_MAX ? NULL : peri__malloc(ctx, n + 1);
  if (copy == NULL) {
    peri__fail(ctx, PERI_ENOMEM, "no memory for a text of %zu bytes", n);
    return NULL;
  }
  if (n > 0) memcpy(copy, s, n);
  copy[n] = '\0';
  return copy;
}

peri_status peri__check_texts (peri_ctx *ctx, int64_t n, const peri_text *text, const char *name) {
  if (n < 0) return peri__fail(ctx, PERI_EINVAL, "%lld texts", (long long)n);
  if (n > 0 && !text) return peri__null(ctx, name);
  for (int64_t i = 0; i < n; i++)
    if (text[i].n > 0 && !text[i].s)
      return peri__fail(ctx, PERI_EINVAL, "%s %s is NULL", name, peri__nth(ctx, i));
  return PERI_OK;
}

/* ---- what it knows ---- */

int64_t peri_tokenizer_size (const peri_tokenizer *t) { return t ? (int64_t)t->size : 0; }

int64_t peri_tokenizer_role (const peri_tokenizer *t, peri_token_role role) {
  if (!t) return -1;
  return (unsigned)role < PERI_TOKEN_NROLE ? t->role[role] : -1;
}

peri_side peri_tokenizer_padding (const peri_tokenizer *t) { return t ? t->padding : (peri_side)0; }

peri_side peri_tokenizer_truncation (const peri_tokenizer *t) {
  return t ? t->truncation : (peri_side)0;
}

int64_t peri_tokenizer_max_length (const peri_tokenizer *t) { return t ? t->max_length : 0; }

const int32_t *peri_tokenizer_ends (const peri_tokenizer *t, size_t *n) {
  if (n) *n = t ? t->n_ends : 0;
  return t ? t->ends : NULL;
}

const char *peri_tokenizer_template (const peri_tokenizer *t, size_t *n) {
  if (n) *n = t ? t->template_size : 0;
  return t ? t->template : NULL;
}

int64_t peri_tokenizer_id (const peri_tokenizer *t, const char *token, size_t n) {
  if (!t || !token) return -1;
  int32_t i = peri__vocab_find(&t->added.text, token, n);
  return i >= 0 ? t->added.token[i].id : peri__vocab_find(&t->model.vocab, token, n);
}

const char *peri_tokenizer_token (const peri_tokenizer *t, int64_t id, size_t *n) {
  size_t unused;
  if (!n) n = &unused;
  *n = 0;
  if (!t) return NULL;
  const char *s = peri__added_text(&t->added, id, n);
  return s != NULL ? s : peri__vocab_text(&t->model.vocab, id, n);
}

bool peri_tokenizer_is_special (const peri_tokenizer *t, int64_t id) {
  if (!t) return false;
  const peri__added_token *a = peri__added_at(&t->added, id);
  return a != NULL && (a->flags & PERI__ADDED_SPECIAL) != 0;
}

bool peri_tokenizer_part (const peri_tokenizer *t, bool pair, size_t i, int *type_id, int *which,
                          const int32_t **ids, size_t *n) {
  if (!t || !type_id || !which || !ids || !n) return false;
  size_t count;
  const peri__part *part = peri__postprocessor_parts(t->post, pair, &count);
  if (t->post == NULL || i >= count) return false;
  *type_id = part[i].type_id;
  *which = part[i].kind == PERI__PART_B;
  *ids = part[i].ids;
  *n = part[i].kind == PERI__PART_IDS ? part[i].n : 0;
  return true;
}

void peri__tokenizer_describe (const peri_tokenizer *t, peri__described *out) {
  *out = (peri__described){ .byte_level = t->model.byte_level,
                            .prefix_space = peri__splitter_prefixes(t->splitter),
                            .prepends = peri__normalizer_prepends(t->normalizer) };
  out->is_bert = peri__normalizer_bert_facts(t->normalizer, &out->bert);
}

int64_t peri_tokenizer_added_count (const peri_tokenizer *t) { return t ? (int64_t)t->added.n : 0; }

peri_status peri_tokenizer_added (const peri_tokenizer *t, int64_t i, peri_added_token *out) {
  if (!t) return PERI_EINVAL;
  NEED(t->ctx, out);
  if (i < 0 || (size_t)i >= t->added.n)
    return peri__fail(t->ctx, PERI_EINVAL, "added token %s of %zu", peri__nth(t->ctx, i),
                      t->added.n);
  const peri__added_token *a = &t->added.token[i];
  peri_added_token token = { .id = a->id,
                             .special = a->flags & PERI__ADDED_SPECIAL,
                             .normalized = a->flags & PERI__ADDED_NORMALIZED,
                             .single_word = a->flags & PERI__ADDED_SINGLE_WORD,
                             .lstrip = a->flags & PERI__ADDED_LSTRIP,
                             .rstrip = a->flags & PERI__ADDED_RSTRIP };
  token.text.s = peri__vocab_text(&t->added.text, i, &token.text.n);
  return peri__fill_out(t->ctx, out, &token, sizeof token, sizeof token, "peri_added_token");
}

peri_status peri__tokenizer_end (peri_tokenizer *t, int32_t id) {
  size_t i = 0;
  if (id < 0) return PERI_OK;
  while (i < t->n_ends && t->ends[i] < id) i++;
  if (i < t->n_ends && t->ends[i] == id) return PERI_OK;
  TRY(peri__grow(t->ctx, &t->ends, &t->cap_ends, t->n_ends + 1, sizeof *t->ends, "ids"));
  memmove(t->ends + i + 1, t->ends + i, (t->n_ends - i) * sizeof *t->ends);
  t->ends[i] = id;
  t->n_ends++;
  return PERI_OK;
}

/* ---- making it ready ---- */

/* Names of tokens with one meaning in all vocabularies that have them; the list that llama.cpp keeps
** (llama-vocab.cpp). */
static const char *const turn_ends[] = { "<|eot_id|>",
                                         "<|im_end|>",
                                         "<|end|>",
                                         "<|return|>",
                                         "<|call|>",
                                         "<|flush|>",
                                         "<|calls|>",
                                         "<|eom_id|>",
                                         "<EOT>",
                                         "_<EOT>",
                                         "[EOT]",
                                         "[EOS]",
                                         "<end_of_turn>",
                                         "<turn|>",
                                         "</s>",
                                         "<eos>",
                                         "<|endoftext|>",
                                         "<|end_of_text|>",
                                         "<|eot|>",
                                         "<|eom|>",
                                         "<|END_OF_TURN_TOKEN|>",
                                         "<end_of_utterance>",
                                         ("<\xEF\xBD\x9C"
                                          "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>") };
static const struct {
  peri_token_role role;
  const char *name;
} infill[] = { { PERI_TOKEN_FIM_PREFIX, "<|fim_prefix|>" },
               { PERI_TOKEN_FIM_PREFIX, "<fim-prefix>" },
               { PERI_TOKEN_FIM_PREFIX, "<fim_prefix>" },
               { PERI_TOKEN_FIM_PREFIX, "<PRE>" },
               { PERI_TOKEN_FIM_PREFIX, "\xE2\x96\x81<PRE>" },
               { PERI_TOKEN_FIM_PREFIX, "<|code_prefix|>" },
               { PERI_TOKEN_FIM_PREFIX, "[PREFIX]" },
               { PERI_TOKEN_FIM_PREFIX, "<\xEF\xBD\x9C"
                                        "fim\xE2\x96\x81"
                                        "begin\xEF\xBD\x9C>" },
               { PERI_TOKEN_FIM_SUFFIX, "<|fim_suffix|>" },
               { PERI_TOKEN_FIM_SUFFIX, "<fim-suffix>" },
               { PERI_TOKEN_FIM_SUFFIX, "<fim_suffix>" },
               { PERI_TOKEN_FIM_SUFFIX, "<SUF>" },
               { PERI_TOKEN_FIM_SUFFIX, "\xE2\x96\x81<SUF>" },
               { PERI_TOKEN_FIM_SUFFIX, "<|code_suffix|>" },
               { PERI_TOKEN_FIM_SUFFIX, "[SUFFIX]" },
               { PERI_TOKEN_FIM_SUFFIX, "<\xEF\xBD\x9C"
                                        "fim\xE2\x96\x81hole\xEF\xBD\x9C>" },
               { PERI_TOKEN_FIM_MIDDLE, "<|fim_middle|>" },
               { PERI_TOKEN_FIM_MIDDLE, "<fim-middle>" },
               { PERI_TOKEN_FIM_MIDDLE, "<fim_middle>" },
               { PERI_TOKEN_FIM_MIDDLE, "<MID>" },
               { PERI_TOKEN_FIM_MIDDLE, "\xE2\x96\x81<MID>" },
               { PERI_TOKEN_FIM_MIDDLE, "<|code_middle|>" },
               { PERI_TOKEN_FIM_MIDDLE, "[MIDDLE]" },
               { PERI_TOKEN_FIM_MIDDLE, "<\xEF\xBD\x9C"
                                        "fim\xE2\x96\x81"
                                        "end\xEF\xBD\x9C>" } };

bool peri__tokenizer_known (const char *s, size_t n) {
  for (size_t i = 0; i < sizeof turn_ends / sizeof *turn_ends; i++)
    if (strlen(turn_ends[i]) == n && memcmp(turn_ends[i], s, n) == 0) return true;
  for (size_t i = 0; i < sizeof infill / sizeof *infill; i++)
    if (strlen(infill[i].name) == n && memcmp(infill[i].name, s, n) == 0) return true;
  return false;
}

static peri_status known_names (peri_tokenizer *t) {
  for (size_t i = 0; i < sizeof turn_ends / sizeof *turn_ends; i++) {
    int64_t id = peri_tokenizer_id(t, turn_ends[i], strlen(turn_ends[i]));
    bool whole = t->added.n == 0 || t->model.user.n > 0 || peri__added_at(&t->added, id) != NULL;
    if (id >= 0 && whole) TRY(peri__tokenizer_end(t, (int32_t)id));
  }
  for (size_t i = 0; i < sizeof infill / sizeof *infill; i++)
    if (t->role[infill[i].role] < 0)
      t->role[infill[i].role] =
          (int32_t)peri_tokenizer_id(t, infill[i].name, strlen(infill[i].name));
  return peri__tokenizer_end(t, t->role[PERI_TOKEN_EOS]);
}

static void byte_ids (peri__model *m) {
  bool all = true;
  for (int b = 0; b < 256; b++) {
    char name[8];
    size_t n;
    static const char hex[] = "0123456789ABCDEF";
    if (m->byte_level) {
      uint16_t c = peri__byte_level[b]; /* below U+0800 */
      n = c < 0x80 ? 1 : 2;
      name[0] = (char)(c < 0x80 ? c : 0xC0 | c >> 6);
      name[1] = (char)(0x80 | (c & 0x3F));
    } else {
      memcpy(name, "<0x00>", 6);
      name[3] = hex[b >> 4];
      name[4] = hex[b & 15];
      n = 6;
    }
    m->byte_id[b] = peri__vocab_find(&m->vocab, name, n);
    if (m->byte_id[b] < 0 && m->kind == PERI__MODEL_SPM) {
      name[0] = (char)b; /* llama.cpp: vocabularies that write bytes as they are */
      m->byte_id[b] = peri__vocab_find(&m->vocab, name, 1);
    }
    all = all && m->byte_id[b] >= 0;
  }
  m->direct = m->byte_level && m->kind == PERI__MODEL_BPE && m->prefix == NULL &&
              m->suffix == NULL && (all || (m->unk < 0 && !m->byte_fallback));
}

static bool left_out (const peri__model *m, uint32_t id) {
  return m->left_out != NULL && (m->left_out[id / 8] >> (id % 8) & 1) != 0;
}

static bool keep (const void *ud, uint32_t id) { return !left_out(ud, id); }

/* A character that no token covers: 10 below the worst token, as SentencePiece says. */
static peri_status unknown_score (peri_tokenizer *t) {
  peri__model *m = &t->model;
  double least = INFINITY;
  for (size_t i = 0; i < m->vocab.size; i++) {
    if (!isfinite(m->weight[i]))
      return peri__fail(t->ctx, PERI_EFORMAT, "the score of token %zu is not finite", i);
    if (m->weight[i] < least && !left_out(m, (uint32_t)i)) least = m->weight[i];
  }
  if (m->unknown == 0) m->unknown = (isfinite(least) ? least : 0) - 10;
  return PERI_OK;
}

static peri_status check_around (peri_tokenizer *t) {
  for (int pair = 0; pair < 2; pair++) {
    size_t n;
    const peri__part *part = peri__postprocessor_parts(t->post, pair != 0, &n);
    for (size_t i = 0; i < n; i++)
      for (size_t k = 0; part[i].kind == PERI__PART_IDS && k < part[i].n; k++)
        if ((size_t)part[i].ids[k] >= t->size)
          return peri__fail(t->ctx, PERI_EFORMAT,
                            "post_processor: id %d in a vocabulary of %zu tokens",
                            (int)part[i].ids[k], t->size);
  }
  return PERI_OK;
}

peri_status peri__tokenizer_ready (peri_tokenizer *t) {
  peri__model *m = &t->model;
  peri__text_state *st;
  t->size = m->vocab.size;
  for (size_t i = 0; i < t->added.n; i++)
    if ((size_t)t->added.token[i].id >= t->size) t->size = (size_t)t->added.token[i].id + 1;
  for (int i = 0; i < PERI_TOKEN_NROLE; i++)
    if (t->role[i] >= 0 && (size_t)t->role[i] >= t->size)
      return peri__fail(t->ctx, PERI_EFORMAT, "special token %d of a vocabulary of %zu tokens",
                        (int)t->role[i], t->size);
  TRY(check_around(t));
  m->byte_level = peri__splitter_byte_level(t->splitter);
  byte_ids(m);
  if (m->kind == PERI__MODEL_UNIGRAM) TRY(unknown_score(t));
  if (m->kind >= PERI__MODEL_UNIGRAM && m->kind != PERI__MODEL_WORDLEVEL)
    TRY(peri__prefixes_open(&m->prefixes, &m->vocab, keep, m));
  TRY(peri__text_state_open(t->ctx, &st));
  peri_status s = peri__added_ready(&t->added, t->normalizer, st);
  peri__text_state_close(st);
  TRY(s);
  return known_names(t);
}

/* ---- decoding ---- */

struct peri_token_stream {
  peri_tokenizer *t;
  bool skip_special;
  peri__decoding *decoding;
  peri__buffer out;
};

peri_status peri_token_stream_open (peri_tokenizer *t, bool skip_special, peri_token_stream **out) {
  if (!t) return PERI_EINVAL;
  NEED(t->ctx, out);
  peri_token_stream *s = peri__malloc(t->ctx, sizeof *s);
  *out = NULL;
  if (s == NULL) return peri__fail(t->ctx, PERI_ENOMEM, "no memory for a stream of tokens");
  *s = (peri_token_stream){ .t = t, .skip_special = skip_special, .out.ctx = t->ctx };
  peri_status status = peri__decoding_open(t->ctx, t->decoder, &s->decoding);
  if (status != PERI_OK) {
    peri__free(t->ctx, s, sizeof *s);
    return status;
  }
  *out = s;
  return PERI_OK;
}

void peri_token_stream_close (peri_token_stream *s) {
  if (s == NULL) return;
  peri__decoding_close(s->decoding);
  peri__buffer_free(&s->out);
  peri__free(s->t->ctx, s, sizeof *s);
}

static peri_status push (peri_token_stream *s, int32_t id) {
  size_t n;
  if (s->skip_special && peri_tokenizer_is_special(s->t, id)) return PERI_OK;
  const char *text = peri_tokenizer_token(s->t, id, &n);
  return text == NULL ? PERI_OK : peri__decoding_push(s->decoding, text, n, &s->out);
}

static peri_text taken (const peri_token_stream *s) {
  return (peri_text){ s->out.size > 0 ? s->out.data : "", s->out.size };
}

peri_status peri_token_stream_push (peri_token_stream *s, int32_t id, peri_text *text) {
  if (!s) return PERI_EINVAL;
  NEED(s->t->ctx, text);
  s->out.size = 0;
  TRY(push(s, id));
  *text = taken(s);
  return PERI_OK;
}

peri_status peri_token_stream_finish (peri_token_stream *s, peri_text *text) {
  if (!s) return PERI_EINVAL;
  NEED(s->t->ctx, text);
  s->out.size = 0;
  TRY(peri__decoding_finish(s->decoding, &s->out));
  *text = taken(s);
  return PERI_OK;
}

peri_status peri_tokenizer_decode (peri_tokenizer *t, const int32_t *ids, size_t n,
                                   bool skip_special, peri_text *text) {
  if (!t) return PERI_EINVAL;
  if (n > 0) NEED(t->ctx, ids);
  NEED(t->ctx, text);
  peri_status s = PERI_OK;
  if (t->whole == NULL) TRY(peri_token_stream_open(t, skip_special, &t->whole));
  t->whole->skip_special = skip_special;
  t->whole->out.size = 0;
  for (size_t i = 0; s == PERI_OK && i < n; i++) s = push(t->whole, ids[i]);
  if (s == PERI_OK) s = peri__decoding_finish(t->whole->decoding, &t->whole->out);
  if (s != PERI_OK) { /* the stream holds half a text */
    peri_token_stream_close(t->whole);
    t->whole = NULL;
    return s;
  }
  *text = taken(t->whole);
  return PERI_OK;
}

peri_status peri_tokenizer_parse (peri_ctx *ctx, const void *json, size_t size,
                                  peri_tokenizer **out) {
  NEED(ctx, ctx);
  NEED(ctx, out);
  if (size > 0) NEED(ctx, json);
  peri_tokenizer *t;
  *out = NULL;
  TRY(peri__tokenizer_new(ctx, &t));
  peri_status s = peri__tokenizer_json(t, json, size);
  if (s == PERI_OK) s = peri__tokenizer_ready(t);
  if (s != PERI_OK) {
    peri_tokenizer_close(t);
    return s;
  }
  *out = t;
  return PERI_OK;
}
