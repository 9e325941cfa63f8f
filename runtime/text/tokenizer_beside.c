/*
** tokenizer_beside.c - what the files beside a vocabulary say, applied to it (beside.h): tokens that
** are added, flags, roles, settings of the classes that transformers knows. Ids are those of
** transformers 5: a token that the vocabulary has keeps its id, a new one takes the next.
*/
#include <string.h>

#include "io/files.h"
#include "text/tokenizer.h"

void peri__beside_open (peri__beside *b) {
  memset(b, 0, sizeof *b);
  b->add_bos = b->add_eos = b->prefix_space = b->lower = b->accents = b->chinese = b->basic = -1;
  b->cleanup = b->cleanup_bpe = -1;
  b->extra_ids = -1;
}

void peri__beside_close (peri_ctx *ctx, peri__beside *b) {
  peri__said_list *lists[] = { &b->added, &b->named, &b->by_key, &b->extra, &b->additional };
  for (size_t k = 0; k < sizeof lists / sizeof *lists; k++) {
    for (size_t i = 0; i < lists[k]->n; i++)
      if (lists[k]->at[i].text != NULL)
        peri__free(ctx, lists[k]->at[i].text, lists[k]->at[i].n + 1);
    peri__free(ctx, lists[k]->at, lists[k]->cap * sizeof *lists[k]->at);
  }
  for (int i = 0; i < PERI_TOKEN_NROLE; i++)
    if (b->role[i].text != NULL) peri__free(ctx, b->role[i].text, b->role[i].n + 1);
  peri__beside_open(b);
}

bool peri__beside_family (const peri__beside *b, const char *const *names) {
  for (; *names != NULL; names++)
    if (strncmp(b->family, *names, strlen(*names)) == 0) return true;
  return false;
}

/* Classes that make their WordPiece of do_lower_case and its like, whatever tokenizer.json says. */
const char *const peri__bert_family[] = { "BertTokenizer",      "DistilBert", "MobileBert",
                                          "ElectraTokenizer",   "ConvBert",   "SqueezeBert",
                                          "LayoutLMTokenizer",  "Lxmert",     "RetriBert",
                                          "FunnelTokenizer",    "MPNet",      "DPRContextEncoder",
                                          "DPRQuestionEncoder", "DPRReader",  "RealmTokenizer",
                                          "SplinterTokenizer",  NULL };

/* ---- tokens ---- */

static bool same (const peri__said_token *a, const char *s, size_t n) {
  return a->text != NULL && a->n == n && memcmp(a->text, s, n) == 0;
}

static bool in_list (const peri__said_list *l, const peri__said_token *x) {
  for (size_t i = 0; i < l->n; i++)
    if (same(&l->at[i], x->text, x->n)) return true;
  return false;
}

static bool has_role (const peri__beside *b, const peri__said_token *x) {
  for (int i = 0; i < PERI_TOKEN_NROLE; i++)
    if (same(&b->role[i], x->text, x->n)) return true;
  return false;
}

/* The id behind all that there are. */
static int64_t next_id (const peri_tokenizer *t) {
  int64_t next = (int64_t)t->model.vocab.size;
  for (size_t i = 0; i < t->added.n; i++)
    if (t->added.token[i].id >= next) next = (int64_t)t->added.token[i].id + 1;
  return next;
}

/* One more added token, or other flags for one that there is. *next: the first free id. */
static peri_status put (peri_tokenizer *t, const peri__said_token *x, int flags, int64_t *next) {
  int32_t at = peri__vocab_find(&t->added.text, x->text, x->n);
  int64_t id = peri_tokenizer_id(t, x->text, x->n);
  if (x->n == 0) return PERI_OK;
  if (at >= 0) flags |= t->added.token[at].flags & PERI__ADDED_SPECIAL;
  if (id < 0) id = (*next)++;
  if (id >= PERI__TOKENS_MAX)
    return peri__fail(t->ctx, PERI_EFORMAT, "added tokens need more than %lld ids",
                      (long long)PERI__TOKENS_MAX);
  return peri__added_put(&t->added, (int32_t)id, x->text, x->n, flags);
}

/* Special tokens that are not among the added ones yet. */
static peri_status put_new (peri_tokenizer *t, const peri__said_token *x, int64_t *next) {
  if (x->text == NULL || peri__vocab_find(&t->added.text, x->text, x->n) >= 0) return PERI_OK;
  return put(t, x, x->flags | PERI__ADDED_SPECIAL, next);
}

static int by_index (void *ud, const void *x, const void *y) {
  const peri__said_token *a = x, *b = y;
  (void)ud;
  return a->index < b->index ? -1 : a->index > b->index;
}

static peri_status put_tokens (peri_tokenizer *t) {
  /* In the order in which transformers adds them. */
  static const peri_token_role order[] = { PERI_TOKEN_BOS, PERI_TOKEN_EOS, PERI_TOKEN_UNK,
                                           PERI_TOKEN_SEP, PERI_TOKEN_PAD, PERI_TOKEN_CLS,
                                           PERI_TOKEN_MASK };
  peri__beside *b = &t->beside;
  const peri__said_list *extra = b->extra.n > 0 ? &b->extra : &b->additional;
  int64_t next = next_id(t);
  peri__sort(b->added.at, b->added.n, sizeof *b->added.at, by_index, NULL);
  for (size_t i = 0; i < b->added.n; i++) {
    const peri__said_token *x = &b->added.at[i];
    bool special = has_role(b, x), known = peri__vocab_find(&t->added.text, x->text, x->n) >= 0;
    if (b->by_name && known) continue; /* tokenizer.json knows more of it */
    int flags = !b->by_name                    ? x->flags
                : special || in_list(extra, x) ? PERI__ADDED_SPECIAL
                                               : PERI__ADDED_NORMALIZED;
    TRY(put(t, x, special ? flags | PERI__ADDED_SPECIAL : flags, &next));
  }
  for (size_t i = 0; i < sizeof order / sizeof *order; i++)
    TRY(put_new(t, &b->role[order[i]], &next));
  for (size_t i = 0; i < b->named.n; i++) TRY(put_new(t, &b->named.at[i], &next));
  for (size_t i = 0; i < b->by_key.n; i++) TRY(put_new(t, &b->by_key.at[i], &next));
  for (size_t i = 0; i < extra->n; i++) TRY(put_new(t, &extra->at[i], &next));
  return PERI_OK;
}

/* ---- roles ---- */

/* Names that a class gives its tokens where its file does not. ORDER token role */
#define ROBERTA \
  { "<s>", "</s>", "<pad>", "<unk>", NULL, NULL, NULL, "<s>", "</s>", "<mask>" }
static const struct {
  const char *family;
  const char *name[PERI_TOKEN_NROLE];
} usual[] = { { "GPT2", { "<|endoftext|>", "<|endoftext|>", NULL, "<|endoftext|>" } },
              { "CodeGen", { "<|endoftext|>", "<|endoftext|>", NULL, "<|endoftext|>" } },
              { "GPTNeoX", { "<|endoftext|>", "<|endoftext|>", NULL, "<|endoftext|>" } },
              { "Qwen2", { NULL, "<|endoftext|>", "<|endoftext|>", "<|endoftext|>" } },
              { "Llama", { "<s>", "</s>", NULL, "<unk>" } },
              { "CodeLlama", { "<s>", "</s>", NULL, "<unk>" } },
              { "Gemma", { "<bos>", "<eos>", "<pad>", "<unk>" } },
              { "T5", { NULL, "</s>", "<pad>", "<unk>" } },
              { "Roberta", ROBERTA },
              { "Bart", ROBERTA },
              { "Longformer", ROBERTA },
              { "LED", ROBERTA },
              { "Mvp", ROBERTA } };
static const char *const bert_names[PERI_TOKEN_NROLE] = { NULL, NULL, "[PAD]", "[UNK]", NULL,
                                                          NULL, NULL, "[CLS]", "[SEP]", "[MASK]" };

static const char *const *usual_names (const peri__beside *b) {
  static const char *const none[PERI_TOKEN_NROLE] = { NULL };
  if (peri__beside_family(b, peri__bert_family)) return bert_names;
  for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
    if (strncmp(b->family, usual[i].family, strlen(usual[i].family)) == 0) return usual[i].name;
  return none;
}

static peri_status put_roles (peri_tokenizer *t) {
  peri__beside *b = &t->beside;
  const char *const *names = usual_names(b);
  for (int i = 0; i < PERI_TOKEN_NROLE; i++) {
    const peri__said_token *x = &b->role[i];
    if (x->none) {
      t->role[i] = -1;
    } else if (x->text != NULL) {
      t->role[i] = (int32_t)peri_tokenizer_id(t, x->text, x->n);
    } else if (t->role[i] < 0 && names[i] != NULL) {
      size_t n = strlen(names[i]);
      int64_t id = peri_tokenizer_id(t, names[i], n);
      if (id < 0) continue;
      t->role[i] = (int32_t)id;
      if (peri__vocab_find(&t->added.text, names[i], n) < 0)
        TRY(peri__added_put(&t->added, (int32_t)id, names[i], n, PERI__ADDED_SPECIAL));
    }
  }
  return PERI_OK;
}

/* ---- settings ---- */

/* Classes whose fast tokenizers put bos and eos by add_bos_token and add_eos_token, whatever the
** post-processor says. */
static const char *const rule_themselves[] = { "Llama", "CodeLlama", "Gemma", "Cohere", NULL };
/* Classes that make their pre-tokenizer of add_prefix_space. */
static const char *const byte_level[] = { "GPT2",       "CodeGen", "GPTNeoX", "Roberta", "Bart",
                                          "Longformer", "LED",     "Mvp",     "Qwen2T",  NULL };
static const char *const llama[] = { "Llama", "CodeLlama", NULL };

static peri_status put_settings (peri_tokenizer *t) {
  peri__beside *b = &t->beside;
  bool rules = t->model.exact || peri__beside_family(b, rule_themselves);
  if (b->add_bos == 1 || (b->add_bos == 0 && rules)) t->add_bos = b->add_bos;
  if (b->add_eos == 1 || (b->add_eos == 0 && rules)) t->add_eos = b->add_eos;
  if (b->prefix_space >= 0 && peri__beside_family(b, byte_level))
    TRY(peri__splitter_prefix_space(t->splitter, b->prefix_space == 1));
  if (b->prefix_space == 0 && peri__beside_family(b, llama)) {
    bool dropped = peri__normalizer_drop_prepend(t->normalizer);
    if (peri__splitter_no_prepend(t->splitter) || dropped) {
      peri__decoder_free(t->decoder);
      t->decoder = NULL;
      TRY(peri__tokenizer_spaces(t, 0));
    }
  }
  if (peri__beside_family(b, peri__bert_family))
    TRY(peri__normalizer_bert_settings(&t->normalizer, b->chinese, b->accents, b->lower));
  bool bpe = t->model.kind == PERI__MODEL_BPE || t->model.kind == PERI__MODEL_SPM;
  if (b->cleanup == 1 && (!bpe || b->cleanup_bpe == 1))
    TRY(peri__decoder_cleanup(t->ctx, &t->decoder));
  return PERI_OK;
}

peri_status peri__tokenizer_settle (peri_tokenizer *t) {
  TRY(put_tokens(t));
  TRY(put_roles(t));
  return put_settings(t);
}
