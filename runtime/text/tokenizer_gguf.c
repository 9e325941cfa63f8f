/*
** tokenizer_gguf.c - vocabularies inside GGUF files (tokenizer.ggml.*), with llama.cpp's meaning of
** every field (src/llama-vocab.cpp).
*/
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "text/tokenizer.h"

#define KEY(name) "tokenizer.ggml." name

/* ORDER ggml token type: tokenizer.ggml.token_type */
enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5, BYTE = 6 };

typedef struct reader {
  peri_gguf *f;
  peri_tokenizer *t;
  char pre[64], name[256], arch[64]; /* cut where longer */
  bool gemma4;                       /* tokenizer.ggml.model: BPE of SentencePiece's pieces */
  peri__pre_facts facts;
} reader;

static peri_status get_flag (const peri_gguf *f, const char *key, int *out) {
  bool b;
  if (peri_gguf_find(f, key) < 0) return PERI_OK;
  TRY(peri_gguf_get_bool(f, key, &b));
  *out = b;
  return PERI_OK;
}

/* A short text as a string; false: the file has none. */
static bool get_name (const peri_gguf *f, const char *key, char *out, size_t size) {
  peri_gguf_text v;
  int64_t at = peri_gguf_find(f, key);
  out[0] = '\0';
  if (at < 0) return false;
  peri_gguf_value value = peri_gguf_at(f, at);
  if (!peri_gguf_string(f, &value, &v)) return false;
  size_t n = v.n < size - 1 ? v.n : size - 1;
  if (n > 0) memcpy(out, v.s, n);
  out[n] = '\0';
  return true;
}

/* ---- tokens ---- */

static peri_status read_tokens (reader *r, int64_t *count) {
  peri__vocab *vocab = &r->t->model.vocab;
  peri_gguf_value list, item;
  peri_gguf_cursor c = { 0 };
  peri_gguf_text text;
  TRY(peri_gguf_get_array(r->f, KEY("tokens"), PERI_GGUF_TEXT, &list));
  if (list.count > PERI__TOKENS_MAX)
    return peri__fail(r->t->ctx, PERI_EFORMAT, KEY("tokens") " has %lld tokens, the limit is %lld",
                      (long long)list.count, (long long)PERI__TOKENS_MAX);
  *count = list.count;
  TRY(peri__vocab_reserve(vocab, (size_t)list.count));
  for (int64_t id = 0; peri_gguf_next(r->f, &list, &c, &item); id++) {
    if (!peri_gguf_string(r->f, &item, &text)) text = (peri_gguf_text){ "", 0 };
    if (peri__utf8_prefix(text.s, text.n) != text.n)
      return peri__fail(r->t->ctx, PERI_EFORMAT,
                        KEY("tokens") ": token %lld (byte %llu) is no UTF-8", (long long)id,
                        (unsigned long long)item.offset);
    TRY(peri__vocab_put(vocab, id, text.s, text.n, true));
  }
  return PERI_OK;
}

static peri_status read_scores (reader *r, int64_t count) {
  peri__model *m = &r->t->model;
  peri_gguf_value list;
  if (peri_gguf_find(r->f, KEY("scores")) < 0)
    return peri__fail(r->t->ctx, PERI_EFORMAT, KEY("scores") " is missing");
  TRY(peri_gguf_get_array(r->f, KEY("scores"), PERI_GGUF_F32, &list));
  if (list.count != count)
    return peri__fail(r->t->ctx, PERI_EFORMAT, KEY("scores") " has %lld entries for %lld tokens",
                      (long long)list.count, (long long)count);
  bool sums = m->kind == PERI__MODEL_UNIGRAM;
  size_t *cap = sums ? &m->weights : &m->scores;
  TRY(sums ? peri__grow(m->vocab.ctx, &m->weight, cap, (size_t)count, sizeof *m->weight, "scores")
           : peri__grow(m->vocab.ctx, &m->score, cap, (size_t)count, sizeof *m->score, "scores"));
  for (int64_t i = 0; i < count; i++) {
    double v = 0;
    if (!peri_gguf_num(r->f, &list, i, &v) || !isfinite(v))
      return peri__fail(r->t->ctx, PERI_EFORMAT, KEY("scores") ": the score of token %lld is %g",
                        (long long)i, v);
    if (sums)
      m->weight[i] = v;
    else
      m->score[i] = (float)v;
  }
  return PERI_OK;
}

/* "a b": the first space behind the first byte parts the two. A merge of or into something that the
** vocabulary lacks can never show in the result and is left out. */
static peri_status read_merges (reader *r) {
  peri__model *m = &r->t->model;
  peri_gguf_value list, item;
  peri_gguf_cursor c = { 0 };
  peri_gguf_text text;
  char *pair = NULL;
  size_t cap = 0;
  peri_status s = peri_gguf_get_array(r->f, KEY("merges"), PERI_GGUF_TEXT, &list);
  for (uint32_t rank = 0; s == PERI_OK && peri_gguf_next(r->f, &list, &c, &item); rank++) {
    if (!peri_gguf_string(r->f, &item, &text)) continue;
    const char *space = text.n > 1 ? memchr(text.s + 1, ' ', text.n - 1) : NULL;
    if (space == NULL) {
      s = peri__fail(r->t->ctx, PERI_EFORMAT,
                     KEY("merges") ": merge %u (byte %llu) is not two tokens with a space between",
                     rank, (unsigned long long)item.offset);
      break;
    }
    size_t na = (size_t)(space - text.s), nb = text.n - na - 1;
    int32_t left = peri__vocab_find(&m->vocab, text.s, na);
    int32_t right = peri__vocab_find(&m->vocab, space + 1, nb);
    if ((s = peri__grow(r->t->ctx, &pair, &cap, na + nb, 1, "bytes")) != PERI_OK) break;
    memcpy(pair, text.s, na);
    memcpy(pair + na, space + 1, nb);
    int32_t id = peri__vocab_find(&m->vocab, pair, na + nb);
    if (left >= 0 && right >= 0 && id >= 0)
      s = peri__merges_put(&m->merges, (uint32_t)left, (uint32_t)right, rank, (uint32_t)id);
  }
  peri__free(r->t->ctx, pair, cap);
  return s;
}

/* ---- tokens that texts are searched for ---- */

static bool contains (const char *s, const char *part) { return strstr(s, part) != NULL; }

/* What llama.cpp says of spaces beside special tokens, by names of models. */
static int strip_flags (const reader *r, const char *s, size_t n) {
  static const char *const kept[] = { "<unk>", "<s>", "<|endoftext|>" };
  char token[16] = "";
  if (n < sizeof token) memcpy(token, s, n);
  if (contains(r->pre, "jina-v2-de") || contains(r->pre, "jina-v2-es") ||
      contains(r->pre, "jina-v2-code") || contains(r->arch, "nomic-bert-moe") ||
      contains(r->arch, "jina-bert-v3"))
    return strcmp(token, "<mask>") == 0 ? PERI__ADDED_LSTRIP : 0;
  if (!contains(r->name, "phi-3") && !contains(r->name, "phi3")) return 0;
  for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
    if (strcmp(token, kept[i]) == 0) return 0;
  return PERI__ADDED_RSTRIP;
}

static peri_status read_types (reader *r, int64_t count) {
  peri_tokenizer *t = r->t;
  peri_gguf_value list;
  if (peri_gguf_find(r->f, KEY("token_type")) < 0) return PERI_OK;
  TRY(peri_gguf_get_array(r->f, KEY("token_type"), PERI_GGUF_I64, &list));
  if (list.count != count)
    return peri__fail(t->ctx, PERI_EFORMAT, KEY("token_type") " has %lld entries for %lld tokens",
                      (long long)list.count, (long long)count);
  if (t->model.kind == PERI__MODEL_UNIGRAM) {
    size_t bytes = ((size_t)count + 7) / 8;
    t->model.left_out = peri__malloc(t->ctx, bytes);
    if (t->model.left_out == NULL)
      return peri__fail(t->ctx, PERI_ENOMEM, "no memory for %lld tokens", (long long)count);
    memset(t->model.left_out, 0, bytes);
  }
  double least = 0; /* of the scores of normal tokens */
  for (int64_t id = 0; id < count; id++) {
    int64_t type = NORMAL;
    size_t n = 0;
    const char *s = peri__vocab_text(&t->model.vocab, id, &n);
    peri_gguf_int(r->f, &list, id, &type);
    if (t->model.kind == PERI__MODEL_UNIGRAM) {
      double *weight = &t->model.weight[id];
      if (type == NORMAL && *weight < least) least = *weight;
      if (type == USER_DEFINED) *weight = 0;
    }
    if (t->model.left_out != NULL && (type == UNKNOWN || type == CONTROL || type == BYTE))
      t->model.left_out[id / 8] |= (uint8_t)(1 << id % 8);
    if (n == 0 || !(type == UNKNOWN || type == CONTROL || type == USER_DEFINED)) continue;
    if (n > PERI__ADDED_BYTES && type == USER_DEFINED)
      return peri__fail(t->ctx, PERI_EFORMAT, "token %lld has %zu bytes, the limit is %d",
                        (long long)id, n, PERI__ADDED_BYTES);
    bool special = type != USER_DEFINED || peri__tokenizer_known(s, n);
    TRY(peri__added_put(&t->added, (int32_t)id, s, n,
                        (special ? PERI__ADDED_SPECIAL : 0) | strip_flags(r, s, n)));
  }
  t->model.unknown = least - 10;
  return PERI_OK;
}

/* ---- ids with a role ---- */

static peri_status read_role (reader *r, const char *key, int32_t otherwise, int32_t *out) {
  int64_t id = otherwise, at = peri_gguf_find(r->f, key);
  if (at >= 0) {
    peri_gguf_value v = peri_gguf_at(r->f, at);
    if (!peri_gguf_int(r->f, &v, 0, &id))
      return peri__fail(r->t->ctx, PERI_EFORMAT, "%s is no whole number", key);
  }
  /* llama.cpp passes over ids that there are not. */
  if (id >= 0 && id < (int64_t)r->t->model.vocab.size) *out = (int32_t)id;
  return PERI_OK;
}

static peri_status read_roles (reader *r) {
  static const struct {
    const char *key;
    peri_token_role role;
  } roles[] = { { KEY("bos_token_id"), PERI_TOKEN_BOS },
                { KEY("eos_token_id"), PERI_TOKEN_EOS },
                { KEY("unknown_token_id"), PERI_TOKEN_UNK },
                { KEY("padding_token_id"), PERI_TOKEN_PAD },
                { KEY("cls_token_id"), PERI_TOKEN_CLS },
                { KEY("seperator_token_id"), PERI_TOKEN_SEP },
                { KEY("mask_token_id"), PERI_TOKEN_MASK },
                { KEY("prefix_token_id"), PERI_TOKEN_FIM_PREFIX },
                { KEY("suffix_token_id"), PERI_TOKEN_FIM_SUFFIX },
                { KEY("middle_token_id"), PERI_TOKEN_FIM_MIDDLE },
                { KEY("fim_pre_token_id"), PERI_TOKEN_FIM_PREFIX },
                { KEY("fim_suf_token_id"), PERI_TOKEN_FIM_SUFFIX },
                { KEY("fim_mid_token_id"), PERI_TOKEN_FIM_MIDDLE } };
  /* ORDER model kind: ids where the file says none, as llama.cpp has them. */
  static const int8_t usual[][PERI_TOKEN_NROLE] = {
    [PERI__MODEL_BPE] = { -1, -1, -1, -1 },
    [PERI__MODEL_SPM] = { 1, 2, -1, 0 },
    [PERI__MODEL_UNIGRAM] = { -1, 1, 0, 2 },
    [PERI__MODEL_PHANTOM] = { 101, -1, 0, 100, -1, -1, -1, 101, 102, 103 }
  };
  static const char *const ends[] = { KEY("eot_token_id"), KEY("eom_token_id") };
  peri_tokenizer *t = r->t;
  const int8_t *own = usual[t->model.kind];
  for (int i = 0; i < PERI_TOKEN_NROLE; i++) {
    int32_t id = own[i];
    if (i >= PERI_TOKEN_FIM_PREFIX && id == 0) id = -1;
    t->role[i] = id >= 0 && (size_t)id < t->model.vocab.size ? id : -1;
  }
  for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
    TRY(read_role(r, roles[i].key, t->role[roles[i].role], &t->role[roles[i].role]));
  for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
    int32_t id = -1;
    TRY(read_role(r, ends[i], -1, &id));
    TRY(peri__tokenizer_end(t, id));
  }
  /* llama.cpp's BPE drops what no token covers. */
  if (t->model.kind != PERI__MODEL_BPE) t->model.unk = t->role[PERI_TOKEN_UNK];
  return PERI_OK;
}

/* ---- kinds of vocabularies ---- */

/* Decoding of U+2581 as space; strip: so many of the text's first spaces go. */
peri_status peri__tokenizer_spaces (peri_tokenizer *t, int strip) {
  char json[320];
  snprintf(json, sizeof json,
           "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"
           "\"\\u2581\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}%s",
           strip > 0 ? "," : "]}");
  size_t n = strlen(json);
  if (strip > 0)
    snprintf(json + n, sizeof json - n,
             "{\"type\":\"Strip\",\"content\":\" \",\"start\":%d,\"stop\":0}]}", strip);
  return peri__decoder_parse(t->ctx, json, &t->decoder);
}

static peri_status read_gpt2 (reader *r) {
  peri_tokenizer *t = r->t;
  peri_ctx *ctx = t->ctx;
  int nfc = 0, whole = -1;
  if (r->gemma4)
    strcpy(r->pre, "gemma4"); /* whatever the file says */
  else if (!get_name(r->f, KEY("pre"), r->pre, sizeof r->pre))
    strcpy(r->pre, "default");
  TRY(peri__splitter_named(ctx, r->pre, &t->splitter, &r->facts));
  /* Two keys that llama.cpp does not read: what this library's converter cannot say otherwise. */
  TRY(get_flag(r->f, KEY("ignore_merges"), &whole));
  TRY(get_flag(r->f, KEY("normalizer.nfc"), &nfc));
  t->model.ignore_merges = whole < 0 ? r->facts.ignore_merges : whole == 1;
  t->model.whole_lines = r->facts.whole_lines;
  t->add_bos = r->facts.add_bos;
  t->add_eos = r->facts.add_sep;
  TRY(read_merges(r));
  if (nfc == 1) TRY(peri__normalizer_parse(ctx, "{\"type\":\"NFC\"}", &t->normalizer));
  if (peri__splitter_byte_level(t->splitter))
    return peri__decoder_parse(ctx,
                               "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,"
                               "\"trim_offsets\":true,\"use_regex\":true}",
                               &t->decoder);
  t->model.byte_fallback = true;
  if (r->facts.escape_spaces)
    TRY(peri__normalizer_parse(
        ctx, "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}",
        &t->normalizer));
  return peri__tokenizer_spaces(t, 0);
}

static peri_status read_llama (reader *r, int64_t count) {
  int prefix = 1;
  TRY(read_scores(r, count));
  TRY(get_flag(r->f, KEY("add_space_prefix"), &prefix));
  r->t->sentencepiece = true;
  r->t->spaces = (peri__spaces){ .escape = true, .prefix = prefix == 1 };
  r->t->add_bos = 1;
  r->t->add_eos = 0;
  return peri__tokenizer_spaces(r->t, prefix == 1);
}

static peri_status read_t5 (reader *r, int64_t count) {
  peri_tokenizer *t = r->t;
  int prefix = 0, merge = 0;
  TRY(read_scores(r, count));
  TRY(get_flag(r->f, KEY("add_space_prefix"), &prefix));
  TRY(get_flag(r->f, KEY("remove_extra_whitespaces"), &merge));
  t->sentencepiece = true;
  t->spaces = (peri__spaces){ .escape = true, .prefix = prefix == 1, .merge = merge == 1 };
  t->add_bos = 0;
  t->add_eos = 1;
  if (peri_gguf_find(r->f, KEY("precompiled_charsmap")) >= 0) {
    peri_gguf_value list;
    TRY(peri_gguf_get_array(r->f, KEY("precompiled_charsmap"), PERI_GGUF_I64, &list));
    if ((size_t)list.count > PERI__TOKENIZER_BYTES / 4)
      return peri__fail(t->ctx, PERI_EFORMAT, KEY("precompiled_charsmap") " has %lld bytes",
                        (long long)list.count);
    size_t n = (size_t)list.count;
    unsigned char *map = peri__malloc(t->ctx, n);
    if (map == NULL && n > 0) return peri__fail(t->ctx, PERI_ENOMEM, "no memory for %zu bytes", n);
    for (size_t i = 0; i < n; i++) {
      int64_t v = 0;
      peri_gguf_int(r->f, &list, (int64_t)i, &v);
      map[i] = (unsigned char)v;
    }
    peri_status s = peri__tokenizer_charsmap(t, map, n);
    peri__free(t->ctx, map, n);
    TRY(s);
  }
  return peri__tokenizer_spaces(t, prefix == 1);
}

static peri_status read_bert (reader *r) {
  peri_tokenizer *t = r->t;
  int lower = 1, accents = -1;
  TRY(get_flag(r->f, KEY("normalizer.lowercase"), &lower));
  TRY(get_flag(r->f, KEY("normalizer.strip_accents"), &accents));
  TRY(peri__normalizer_parse(t->ctx,
                             "{\"type\":\"BertNormalizer\",\"clean_text\":true,"
                             "\"handle_chinese_chars\":true,\"strip_accents\":null,"
                             "\"lowercase\":true}",
                             &t->normalizer));
  TRY(peri__normalizer_bert_settings(&t->normalizer, 1, accents, lower));
  TRY(peri__splitter_parse(t->ctx, "{\"type\":\"BertPreTokenizer\"}", &t->splitter));
  return peri__tokenizer_spaces(t, 1);
}

/* Vocabularies of llama.cpp that are made otherwise than all of the kinds here. */
static peri_status refuse_model (reader *r, const char *model) {
  static const char *const none[] = { "no_vocab", "none", "" };
  for (size_t i = 0; i < sizeof none / sizeof *none; i++)
    if (strcmp(model, none[i]) == 0)
      return peri__fail(r->t->ctx, PERI_EFORMAT,
                        "the file has no vocabulary (" KEY("model") " \"%s\")", model);
  return peri__fail(r->t->ctx, PERI_EFORMAT,
                    KEY("model") " \"%s\" is not supported; gpt2, gemma4, llama, t5 and bert are",
                    model);
}

static peri_status read_all (reader *r) {
  static const struct {
    const char *name;
    peri__model_kind kind;
  } kinds[] = { { "gpt2", PERI__MODEL_BPE },
                { "llama", PERI__MODEL_SPM },
                { "t5", PERI__MODEL_UNIGRAM },
                { "bert", PERI__MODEL_PHANTOM },
                { "gemma4", PERI__MODEL_BPE } };
  peri_tokenizer *t = r->t;
  char model[64];
  int64_t count = 0;
  size_t kind = 0;
  if (!get_name(r->f, KEY("model"), model, sizeof model))
    return peri__fail(t->ctx, PERI_EFORMAT, "the file has no vocabulary (" KEY("model") ")");
  while (kind < sizeof kinds / sizeof *kinds && strcmp(model, kinds[kind].name) != 0) kind++;
  if (kind == sizeof kinds / sizeof *kinds) return refuse_model(r, model);
  r->gemma4 = strcmp(model, "gemma4") == 0;
  t->model.kind = kinds[kind].kind;
  get_name(r->f, "general.name", r->name, sizeof r->name);
  get_name(r->f, "general.architecture", r->arch, sizeof r->arch);
  for (char *c = r->name; *c != '\0'; c++)
    if (*c >= 'A' && *c <= 'Z') *c = (char)(*c - 'A' + 'a');
  TRY(read_tokens(r, &count));
  switch (t->model.kind) {
  case PERI__MODEL_BPE: TRY(read_gpt2(r)); break;
  case PERI__MODEL_SPM: TRY(read_llama(r, count)); break;
  case PERI__MODEL_UNIGRAM: TRY(read_t5(r, count)); break;
  default: TRY(read_bert(r)); break;
  }
  TRY(read_types(r, count));
  TRY(read_roles(r));
  TRY(get_flag(r->f, KEY("add_bos_token"), &t->add_bos));
  TRY(get_flag(r->f, KEY("add_eos_token"), &t->add_eos));
  if (r->facts.whole_lines)
    t->add_bos = 1; /* as llama.cpp does for Gemma 4, whatever the file says */
  if (t->model.kind == PERI__MODEL_PHANTOM) {
    /* Always around a text, whatever add_bos_token and add_eos_token say. */
    t->add_bos = t->add_eos = 1;
    if (peri_gguf_find(r->f, KEY("bos_token_id")) < 0)
      t->role[PERI_TOKEN_BOS] = t->role[PERI_TOKEN_CLS];
    t->role[PERI_TOKEN_EOS] = t->role[PERI_TOKEN_SEP];
  } else if (r->facts.add_sep && t->role[PERI_TOKEN_SEP] >= 0) {
    t->role[PERI_TOKEN_EOS] = t->role[PERI_TOKEN_SEP];
  }
  peri_gguf_text source;
  if (peri_gguf_find(r->f, "tokenizer.chat_template") < 0) return PERI_OK;
  TRY(peri_gguf_get_text(r->f, "tokenizer.chat_template", &source));
  return peri__tokenizer_template(t, source.s, source.n);
}

peri_status peri__tokenizer_gguf (peri_tokenizer *t, peri_gguf *f) {
  reader r = { .f = f, .t = t };
  return read_all(&r);
}
