/*
** tokenizer_config.c - what lies beside tokenizer.json: tokenizer_config.json, special_tokens_map.json,
** generation_config.json, chat_template.jinja. They say which tokens have a role, what goes
** around a text, and how a chat is written.
*/
#include <string.h>

#include "text/tokenizer.h"

/* The id of a token written as "text" or {"content": "text", ...}; one that the vocabulary lacks, or
** null, leaves *id. */
static peri_status read_token (peri_tokenizer *t, peri_json *j, int32_t *id) {
  peri_json_value v;
  TRY(peri_json_next(j, &v));
  if (v.type == PERI_JSON_STRING) {
    int64_t found = peri_tokenizer_id(t, v.s, v.n);
    if (found >= 0) *id = (int32_t)found;
    return PERI_OK;
  }
  if (v.type != PERI_JSON_OBJECT) return peri__json_skip(j, &v);
  for (;;) {
    TRY(peri_json_next(j, &v));
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    if (peri__json_is(&v, "content")) {
      TRY(read_token(t, j, id));
    } else {
      TRY(peri_json_next(j, &v));
      TRY(peri__json_skip(j, &v));
    }
  }
}

peri_status peri__tokenizer_template (peri_tokenizer *t, const char *s, size_t n) {
  char *copy = peri__copy_text(t->ctx, s, n);
  if (copy == NULL) return PERI_ENOMEM;
  if (t->template != NULL) peri__free(t->ctx, t->template, t->template_size + 1);
  t->template = copy;
  t->template_size = n;
  return PERI_OK;
}

/* One of a list of templates: {"name": ..., "template": ...}; the one named default counts. */
static peri_status read_named (peri_tokenizer *t, peri_json *j) {
  peri_json_value v;
  char *text = NULL;
  size_t n = 0;
  bool chosen = false;
  peri_status s = PERI_OK;
  while (s == PERI_OK) {
    if ((s = peri_json_next(j, &v)) != PERI_OK || v.type == PERI_JSON_CLOSE) break;
    bool name = peri__json_is(&v, "name"), source = peri__json_is(&v, "template");
    if ((s = peri_json_next(j, &v)) != PERI_OK) break;
    if (name && v.type == PERI_JSON_STRING) {
      chosen = peri__json_is(&v, "default");
    } else if (source && v.type == PERI_JSON_STRING && text == NULL) {
      n = v.n;
      if ((text = peri__copy_text(t->ctx, v.s, n)) == NULL) s = PERI_ENOMEM;
    } else {
      s = peri__json_skip(j, &v);
    }
  }
  /* A list without a default: the first of it. */
  if (s == PERI_OK && text != NULL && (chosen || t->template == NULL))
    s = peri__tokenizer_template(t, text, n);
  if (text != NULL) peri__free(t->ctx, text, n + 1);
  return s;
}

static peri_status read_template (peri_tokenizer *t, peri_json *j) {
  peri_json_value v;
  TRY(peri_json_next(j, &v));
  if (v.type == PERI_JSON_STRING) return peri__tokenizer_template(t, v.s, v.n);
  if (v.type != PERI_JSON_ARRAY) return peri__json_skip(j, &v);
  for (;;) {
    TRY(peri_json_next(j, &v));
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    if (v.type == PERI_JSON_OBJECT)
      TRY(read_named(t, j));
    else
      TRY(peri__json_skip(j, &v));
  }
}

/* Classes whose fast tokenizers in transformers put bos and eos by add_bos_token and add_eos_token,
** whatever the post-processor says. */
static bool rules_itself (const peri_json_value *v) {
  static const char *const families[] = { "Llama", "CodeLlama", "Gemma", "Cohere" };
  for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
    size_t n = strlen(families[i]);
    if (v->n >= n && memcmp(v->s, families[i], n) == 0) return true;
  }
  return false;
}

void peri__tokenizer_side (const peri_json_value *v, peri_side *side) {
  if (v->type != PERI_JSON_STRING || v->n == 0) return;
  bool left = v->n == 4 && memcmp(v->s + 1, "eft", 3) == 0 && (v->s[0] | 32) == 'l';
  bool right = v->n == 5 && memcmp(v->s + 1, "ight", 4) == 0 && (v->s[0] | 32) == 'r';
  if (left || right) *side = left ? PERI_SIDE_LEFT : PERI_SIDE_RIGHT;
}

void peri__tokenizer_length (const peri_json_value *v, int64_t *length) {
  bool number = v->type == PERI_JSON_INT || v->type == PERI_JSON_NUM;
  if (number && v->f >= 1 && v->f < 1e9) *length = (int64_t)v->f;
}

static peri_status read_flag (peri_json *j, int *out) {
  peri_json_value v;
  TRY(peri_json_next(j, &v));
  if (v.type == PERI_JSON_BOOL) *out = v.flag;
  return peri__json_skip(j, &v);
}

static peri_status read_config (peri_tokenizer *t, peri_json *j) {
  static const struct {
    const char *key;
    peri_token_role role;
  } roles[] = { { "bos_token", PERI_TOKEN_BOS },  { "eos_token", PERI_TOKEN_EOS },
                { "pad_token", PERI_TOKEN_PAD },  { "unk_token", PERI_TOKEN_UNK },
                { "cls_token", PERI_TOKEN_CLS },  { "sep_token", PERI_TOKEN_SEP },
                { "mask_token", PERI_TOKEN_MASK } };
  peri_json_value v;
  int add_bos = -1, add_eos = -1;
  bool rules = false;
  TRY(peri_json_expect(j, PERI_JSON_OBJECT, "the settings of a tokenizer", &v));
  for (;;) {
    size_t i = 0;
    TRY(peri_json_next(j, &v));
    if (v.type == PERI_JSON_CLOSE) break;
    while (i < sizeof roles / sizeof *roles && !peri__json_is(&v, roles[i].key)) i++;
    if (i < sizeof roles / sizeof *roles) {
      TRY(read_token(t, j, &t->role[roles[i].role]));
    } else if (peri__json_is(&v, "chat_template")) {
      TRY(read_template(t, j));
    } else if (peri__json_is(&v, "add_bos_token")) {
      TRY(read_flag(j, &add_bos));
    } else if (peri__json_is(&v, "add_eos_token")) {
      TRY(read_flag(j, &add_eos));
    } else if (peri__json_is(&v, "padding_side") || peri__json_is(&v, "truncation_side")) {
      peri_side *side = peri__json_is(&v, "padding_side") ? &t->padding : &t->truncation;
      TRY(peri_json_next(j, &v));
      peri__tokenizer_side(&v, side);
      TRY(peri__json_skip(j, &v));
    } else if (peri__json_is(&v, "model_max_length")) {
      TRY(peri_json_next(j, &v));
      peri__tokenizer_length(&v, &t->max_length);
      TRY(peri__json_skip(j, &v));
    } else if (peri__json_is(&v, "tokenizer_class")) {
      TRY(peri_json_next(j, &v));
      rules = v.type == PERI_JSON_STRING && rules_itself(&v);
      TRY(peri__json_skip(j, &v));
    } else {
      TRY(peri_json_next(j, &v));
      TRY(peri__json_skip(j, &v));
    }
  }
  TRY(peri_json_expect(j, PERI_JSON_END, "what follows the settings", &v));
  if (add_bos == 1 || (add_bos == 0 && rules)) t->add_bos = add_bos;
  if (add_eos == 1 || (add_eos == 0 && rules)) t->add_eos = add_eos;
  return PERI_OK;
}

peri_status peri__tokenizer_config (peri_tokenizer *t, const void *text, size_t size) {
  peri_json j;
  peri_json_open(&j, t->ctx, text, size, NULL);
  peri_status s = read_config(t, &j);
  peri_json_close(&j);
  return s;
}

/* eos_token_id of generation_config.json: an id or a list of ids that end a turn. */
static peri_status read_ends (peri_tokenizer *t, peri_json *j) {
  peri_json_value v;
  size_t n;
  TRY(peri_json_next(j, &v));
  bool list = v.type == PERI_JSON_ARRAY;
  if (v.type == PERI_JSON_OBJECT) return peri__json_skip(j, &v);
  do {
    if (list) TRY(peri_json_next(j, &v));
    if (v.type == PERI_JSON_INT && peri_tokenizer_token(t, v.i, &n) != NULL)
      TRY(peri__tokenizer_end(t, (int32_t)v.i));
    else if (v.type == PERI_JSON_OBJECT || v.type == PERI_JSON_ARRAY)
      TRY(peri__json_skip(j, &v));
  } while (list && v.type != PERI_JSON_CLOSE);
  return PERI_OK;
}

static peri_status read_generation (peri_tokenizer *t, peri_json *j) {
  peri_json_value v;
  TRY(peri_json_expect(j, PERI_JSON_OBJECT, "the settings of generation", &v));
  for (;;) {
    TRY(peri_json_next(j, &v));
    if (v.type == PERI_JSON_CLOSE) return peri_json_expect(j, PERI_JSON_END, "what follows", &v);
    if (peri__json_is(&v, "eos_token_id")) {
      TRY(read_ends(t, j));
    } else {
      TRY(peri_json_next(j, &v));
      TRY(peri__json_skip(j, &v));
    }
  }
}

peri_status peri__tokenizer_generation (peri_tokenizer *t, const void *text, size_t size) {
  peri_json j;
  peri_json_open(&j, t->ctx, text, size, NULL);
  peri_status s = read_generation(t, &j);
  peri_json_close(&j);
  return s;
}
