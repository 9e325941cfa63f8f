/*
** tokenizer_old.c - vocabularies from before tokenizer.json: GPT-2's pair of files, BERT's list of
** words, llama2.c's tokenizer.bin.
*/
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "text/tokenizer.h"

static peri_status too_many (peri_ctx *ctx, int64_t n) {
  return peri__fail(ctx, PERI_EFORMAT, "%lld tokens, the limit is %lld", (long long)n,
                    (long long)PERI__TOKENS_MAX);
}

/* ---- vocab.json + merges.txt, encoder.json + vocab.bpe ---- */

/* What classes of transformers put around such a vocabulary. */
static const char *const gpt2_family[] = { "GPT2Tokenizer",     "CodeGenTokenizer",
                                           "GPTNeoXTokenizer",  "PreTrainedTokenizer",
                                           "TokenizersBackend", NULL };
static const char *const roberta_family[] = { "RobertaTokenizer",    "BartTokenizer",
                                              "LongformerTokenizer", "LEDTokenizer",
                                              "MvpTokenizer",        NULL };
static const char *const qwen2_family[] = { "Qwen2Tokenizer", NULL };

static peri_status refuse_family (peri_tokenizer *t, const char *file) {
  return peri__fail(t->ctx, PERI_EFORMAT,
                    "tokenizer_class \"%s\" makes of %s what is not known here; save its "
                    "tokenizer.json beside it",
                    t->beside.family, file);
}

peri_status peri__tokenizer_vocab_json (peri_tokenizer *t, const void *text, size_t size) {
  static const char byte_level[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
                                   "\"trim_offsets\":true,\"use_regex\":true}";
  static const char end[] = "<|endoftext|>";
  const peri__beside *b = &t->beside;
  bool qwen2 = peri__beside_family(b, qwen2_family);
  bool roberta = peri__beside_family(b, roberta_family);
  if (b->family[0] != '\0' && !qwen2 && !roberta && !peri__beside_family(b, gpt2_family))
    return refuse_family(t, "vocab.json and merges.txt");
  if (qwen2) {
    peri__pre_facts facts;
    TRY(peri__splitter_named(t->ctx, "qwen2", &t->splitter, &facts));
    TRY(peri__normalizer_parse(t->ctx, "{\"type\":\"NFC\"}", &t->normalizer));
  } else {
    TRY(peri__splitter_parse(t->ctx, byte_level, &t->splitter));
  }
  TRY(peri__decoder_parse(t->ctx, byte_level, &t->decoder));
  TRY(peri__tokenizer_json_vocab(t, text, size));
  t->beside.roberta = roberta;
  int32_t id = peri__vocab_find(&t->model.vocab, end, sizeof end - 1);
  if (id < 0 || qwen2 || roberta) return PERI_OK; /* their own names: tokenizer_beside.c */
  t->role[PERI_TOKEN_BOS] = t->role[PERI_TOKEN_EOS] = t->role[PERI_TOKEN_UNK] = id;
  return peri__added_put(&t->added, id, end, sizeof end - 1, PERI__ADDED_SPECIAL);
}

/* A line without its end; false: there is none. */
static bool line (const char **s, const char *end, peri_text *out) {
  if (*s == end) return false;
  const char *stop = memchr(*s, '\n', (size_t)(end - *s));
  const char *last = stop == NULL ? end : stop;
  *out = (peri_text){ *s, (size_t)(last - *s) };
  if (out->n > 0 && out->s[out->n - 1] == '\r') out->n--;
  *s = stop == NULL ? end : stop + 1;
  return true;
}

/* "a b" a line; a first line "#version..." is passed over. */
peri_status peri__tokenizer_merges (peri_tokenizer *t, const void *text, size_t size) {
  peri__model *m = &t->model;
  const char *s = text, *end = s + size;
  peri_text l;
  char *pair = NULL;
  size_t cap = 0, number = 0;
  uint32_t rank = 0;
  peri_status status = PERI_OK;
  while (status == PERI_OK && line(&s, end, &l)) {
    number++;
    if (l.n == 0 || (number == 1 && l.n >= 8 && memcmp(l.s, "#version", 8) == 0)) continue;
    const char *space = memchr(l.s, ' ', l.n);
    size_t na = space == NULL ? l.n : (size_t)(space - l.s), nb = space == NULL ? 0 : l.n - na - 1;
    if (na == 0 || nb == 0 || memchr(space + 1, ' ', nb) != NULL) {
      status =
          peri__fail(t->ctx, PERI_EFORMAT, "line %zu: two tokens with one space between", number);
      break;
    }
    if ((status = peri__grow(t->ctx, &pair, &cap, na + nb, 1, "bytes")) != PERI_OK) break;
    memcpy(pair, l.s, na);
    memcpy(pair + na, space + 1, nb);
    int32_t left = peri__vocab_find(&m->vocab, pair, na);
    int32_t right = peri__vocab_find(&m->vocab, pair + na, nb);
    int32_t id = peri__vocab_find(&m->vocab, pair, na + nb);
    if (left < 0 || right < 0 || id < 0)
      status = peri__fail(t->ctx, PERI_EFORMAT,
                          "line %zu: a token of this merge, or what it makes, "
                          "is not in the vocabulary",
                          number);
    else
      status = peri__merges_put(&m->merges, (uint32_t)left, (uint32_t)right, rank++, (uint32_t)id);
  }
  peri__free(t->ctx, pair, cap);
  return status;
}

/* ---- vocab.txt ---- */

/* The token of a role by the name that the config says or that is usual. */
static peri_status bert_token (peri_tokenizer *t, peri_token_role role, const char *usual) {
  const peri__said_token *said = &t->beside.role[role];
  const char *name = said->text != NULL ? said->text : usual;
  size_t n = said->text != NULL ? said->n : strlen(usual);
  int32_t id = said->none ? -1 : peri__vocab_find(&t->model.vocab, name, n);
  if (id < 0) return PERI_OK;
  t->role[role] = id;
  return peri__added_put(&t->added, id, name, n,
                         said->text != NULL ? said->flags : PERI__ADDED_SPECIAL);
}

static peri_status bert_steps (peri_tokenizer *t) {
  static const char *const plain[] = { "PreTrainedTokenizer", "TokenizersBackend", NULL };
  const peri__beside *b = &t->beside;
  if (b->family[0] != '\0' && !peri__beside_family(b, peri__bert_family) &&
      !peri__beside_family(b, plain))
    return refuse_family(t, "vocab.txt");
  if (b->basic == 0) /* words are what spaces part, and stay as they are */
    return peri__splitter_parse(t->ctx, "{\"type\":\"WhitespaceSplit\"}", &t->splitter);
  /* Without a config: vocabularies that tell cases apart have words that begin with capitals. */
  bool cased = !b->any && peri__vocab_find(&t->model.vocab, "The", 3) >= 0;
  TRY(peri__normalizer_parse(t->ctx,
                             "{\"type\":\"BertNormalizer\",\"clean_text\":true,"
                             "\"handle_chinese_chars\":true,\"strip_accents\":null,"
                             "\"lowercase\":true}",
                             &t->normalizer));
  TRY(peri__normalizer_bert_settings(&t->normalizer, b->chinese, b->accents,
                                     b->lower < 0 ? !cased : b->lower));
  return peri__splitter_parse(t->ctx, "{\"type\":\"BertPreTokenizer\"}", &t->splitter);
}

peri_status peri__tokenizer_vocab_txt (peri_tokenizer *t, const void *text, size_t size) {
  const char *s = text, *end = s + size;
  peri__vocab *vocab = &t->model.vocab;
  peri_text l;
  if (peri__utf8_prefix(s, size) != size)
    return peri__fail(t->ctx, PERI_EFORMAT, "byte %zu: not UTF-8", peri__utf8_prefix(s, size));
  for (int64_t id = 0; line(&s, end, &l); id++) {
    if (id >= PERI__TOKENS_MAX) return too_many(t->ctx, id);
    TRY(peri__vocab_put(vocab, id, l.s, l.n, true));
  }
  t->model.kind = PERI__MODEL_WORDPIECE;
  t->model.word_chars = 100;
  if ((t->model.prefix = peri__copy_text(t->ctx, "##", 2)) == NULL) return PERI_ENOMEM;
  t->model.prefix_size = 2;
  TRY(bert_token(t, PERI_TOKEN_CLS, "[CLS]"));
  TRY(bert_token(t, PERI_TOKEN_SEP, "[SEP]"));
  TRY(bert_token(t, PERI_TOKEN_MASK, "[MASK]"));
  TRY(bert_token(t, PERI_TOKEN_PAD, "[PAD]"));
  TRY(bert_token(t, PERI_TOKEN_UNK, "[UNK]"));
  t->model.unk = t->role[PERI_TOKEN_UNK];
  if (t->model.unk < 0)
    return peri__fail(t->ctx, PERI_EFORMAT, "a list of words without %s: not BERT's vocab.txt",
                      t->beside.role[PERI_TOKEN_UNK].text != NULL
                          ? t->beside.role[PERI_TOKEN_UNK].text
                          : "[UNK]");
  TRY(bert_steps(t));
  t->beside.bert = true;
  return peri__decoder_parse(t->ctx, "{\"type\":\"WordPiece\",\"prefix\":\"##\",\"cleanup\":true}",
                             &t->decoder);
}

/* ---- what goes around a text, once the ids are known ---- */

peri_status peri__tokenizer_old_around (peri_tokenizer *t) {
  int32_t cls = t->role[PERI_TOKEN_CLS], sep = t->role[PERI_TOKEN_SEP];
  char json[128];
  if (!(t->beside.bert || t->beside.roberta) || cls < 0 || sep < 0) return PERI_OK;
  snprintf(json, sizeof json,
           "{\"type\":\"%sProcessing\",\"sep\":[\"\",%d],\"cls\":[\"\",%d],"
           "\"trim_offsets\":true,\"add_prefix_space\":false}",
           t->beside.bert ? "Bert" : "Roberta", (int)sep, (int)cls);
  return peri__postprocessor_parse(t->ctx, json, &t->post);
}

/* ---- llama2.c ---- */

static uint32_t u32 (const unsigned char *s) {
  return (uint32_t)s[0] | (uint32_t)s[1] << 8 | (uint32_t)s[2] << 16 | (uint32_t)s[3] << 24;
}

/* u32 longest token; then, for each, f32 score, u32 length, bytes (llama2.c, tokenizer.py: export).
** Ids 0, 1, 2 are unknown, begin and end of text, 3 to 258 bytes. Spaces are spaces. */
peri_status peri__tokenizer_llama2c (peri_tokenizer *t, const void *data, size_t size) {
  static const char *const special[] = { "<unk>", "<s>", "</s>" };
  const unsigned char *s = data;
  peri_ctx *ctx = t->ctx;
  peri__model *m = &t->model;
  int64_t id = 0;
  if (size < 4) return peri__fail(ctx, PERI_EFORMAT, "%zu bytes are no tokenizer.bin", size);
  uint32_t most = u32(s);
  for (size_t at = 4; at < size; id++) {
    uint32_t bits, n;
    float score;
    if (id >= PERI__TOKENS_MAX) return too_many(ctx, id);
    if (size - at < 8)
      return peri__fail(ctx, PERI_EFORMAT, "byte %zu: token %lld ends after %zu of 8 bytes", at,
                        (long long)id, size - at);
    bits = u32(s + at);
    memcpy(&score, &bits, sizeof score);
    n = u32(s + at + 4);
    if (n > size - at - 8 || n > most)
      return peri__fail(ctx, PERI_EFORMAT,
                        "byte %zu: token %lld of %u bytes, %zu are left and the "
                        "longest has %u",
                        at + 4, (long long)id, n, size - at - 8, most);
    const char *text = (const char *)s + at + 8;
    if (!isfinite(score))
      return peri__fail(ctx, PERI_EFORMAT, "byte %zu: the score of token %lld is %g", at,
                        (long long)id, (double)score);
    if (peri__utf8_prefix(text, n) != n)
      return peri__fail(ctx, PERI_EFORMAT, "byte %zu: token %lld is no UTF-8", at + 8,
                        (long long)id);
    if (id < 3) { /* "\n<s>\n": as it is printed, not as it is called */
      text = special[id];
      n = (uint32_t)strlen(text);
    }
    TRY(peri__vocab_put(&m->vocab, id, text, n, false));
    TRY(peri__grow(ctx, &m->score, &m->scores, (size_t)id + 1, sizeof *m->score, "scores"));
    m->score[id] = score;
    at += 8 + (id < 3 ? u32(s + at + 4) : n);
  }
  if (id < 259)
    return peri__fail(ctx, PERI_EFORMAT, "%lld tokens, a tokenizer.bin has at least 259",
                      (long long)id);
  m->kind = PERI__MODEL_SPM;
  t->sentencepiece = true;
  t->spaces = (peri__spaces){ .prefix = true };
  for (int i = 0; i < 3; i++)
    TRY(peri__added_put(&t->added, i, special[i], strlen(special[i]), PERI__ADDED_SPECIAL));
  m->unk = t->role[PERI_TOKEN_UNK] = 0;
  t->role[PERI_TOKEN_BOS] = 1;
  t->role[PERI_TOKEN_EOS] = 2;
  t->add_bos = 1;
  t->add_eos = 0;
  return peri__tokenizer_spaces(t, true);
}
