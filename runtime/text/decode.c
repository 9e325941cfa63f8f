/*
** decode.c - reading decoders of tokenizer.json. Sequences are laid flat.
*/
#include "text/decode_code.h"
#include "text/tree.h"
#include "text/unicode.h"

void peri__decoder_free (peri__decoder *d) {
  if (d == NULL) return;
  for (int i = 0; i < d->n; i++) {
    peri__decode_step *s = &d->step[i];
    peri__free(d->ctx, s->a, s->a_n + 1);
    peri__free(d->ctx, s->b, s->b_n + 1);
    peri__regex_free(s->re);
  }
  peri__free(d->ctx, d, sizeof *d);
}

typedef struct reader {
  peri__tree *tree;
  peri__decoder *d;
} reader;

static peri_status copy (reader *r, const char *s, size_t n, char **out, size_t *out_n) {
  char *p = peri__malloc(r->d->ctx, n + 1);
  if (p == NULL) return peri__fail(r->d->ctx, PERI_ENOMEM, "no memory for a decoder");
  memcpy(p, s, n);
  p[n] = '\0';
  *out = p;
  *out_n = n;
  return PERI_OK;
}

static peri_status read_string (reader *r, const peri__node *node, const char *key, char **out,
                                size_t *out_n) {
  const peri__node *s = NULL;
  TRY(peri__node_string(r->tree, node, key, true, &s));
  return copy(r, s->s, s->n, out, out_n);
}

static peri_status read_char (reader *r, const peri__node *node, const char *key, char **out,
                              size_t *out_n) {
  char text[4];
  uint32_t c = 0;
  TRY(peri__node_char(r->tree, node, key, true, &c));
  return copy(r, text, peri__char_put(c, text), out, out_n);
}

static peri_status read_metaspace (reader *r, const peri__node *node, peri__decode_step *s) {
  static const char *const schemes[] = { "first", "never", "always", NULL }; /* ORDER prepend */
  const peri__node *name = NULL;
  bool prefix = true;
  int scheme = 2;
  TRY(read_char(r, node, "replacement", &s->a, &s->a_n));
  TRY(peri__node_bool(r->tree, node, "add_prefix_space", false, &prefix));
  TRY(peri__node_string(r->tree, node, "prepend_scheme", false, &name));
  if (name != NULL && (scheme = peri__node_choice(name, schemes)) < 0)
    return peri__node_fail(r->tree, name, "unknown prepend_scheme \"%.*s\"",
                           name->n > 100 ? 100 : (int)name->n, name->s);
  s->drop_first = prefix && scheme != 1;
  return PERI_OK;
}

static peri_status read_replace (reader *r, const peri__node *node, peri__decode_step *s) {
  const peri__node *pattern = peri__node_get(node, "pattern"), *text = NULL;
  if (pattern == NULL) return peri__node_fail(r->tree, node, "\"pattern\" is missing here");
  TRY(read_string(r, node, "content", &s->b, &s->b_n));
  TRY(peri__node_string(r->tree, pattern, "String", false, &text));
  if (text != NULL && text->n > 0) return copy(r, text->s, text->n, &s->a, &s->a_n);
  if (text == NULL) TRY(peri__node_string(r->tree, pattern, "Regex", true, &text));
  return peri__regex_compile(r->d->ctx, text->s, text->n, &s->re);
}

static peri_status read_strip (reader *r, const peri__node *node, peri__decode_step *s) {
  int64_t start = 0, stop = 0;
  TRY(read_char(r, node, "content", &s->a, &s->a_n));
  TRY(peri__node_int(r->tree, node, "start", true, 0, INT32_MAX, &start));
  TRY(peri__node_int(r->tree, node, "stop", true, 0, INT32_MAX, &stop));
  s->start = (size_t)start;
  s->stop = (size_t)stop;
  return PERI_OK;
}

/* ORDER decoder: after "Sequence" as in peri__decode_kind after JOIN */
static const char *const type_names[] = { "Sequence",     "ByteLevel",  "WordPiece", "Metaspace",
                                          "CTC",          "Replace",    "Fuse",      "Strip",
                                          "ByteFallback", "BPEDecoder", NULL };

static peri_status read_component (reader *r, const peri__node *node) {
  int type;
  const peri__node *list = NULL;
  TRY(peri__node_type(r->tree, node, "decoder", type_names, &type));
  if (type == 0) {
    TRY(peri__node_list(r->tree, node, "decoders", &list));
    for (const peri__node *e = list->child; e != NULL; e = e->next) TRY(read_component(r, e));
    return PERI_OK;
  }
  if (r->d->n == PERI__DECODE_STEPS)
    return peri__node_fail(r->tree, node, "a decoder of more than %d steps", PERI__DECODE_STEPS);
  peri__decode_step *s = &r->d->step[r->d->n++];
  *s = (peri__decode_step){ .kind = (peri__decode_kind)type };
  switch (s->kind) {
  case PERI__DECODE_WORDPIECE:
    TRY(peri__node_bool(r->tree, node, "cleanup", true, &s->cleanup));
    return read_string(r, node, "prefix", &s->a, &s->a_n);
  case PERI__DECODE_METASPACE: return read_metaspace(r, node, s);
  case PERI__DECODE_CTC:
    TRY(peri__node_bool(r->tree, node, "cleanup", true, &s->cleanup));
    TRY(read_string(r, node, "pad_token", &s->a, &s->a_n));
    return read_string(r, node, "word_delimiter_token", &s->b, &s->b_n);
  case PERI__DECODE_REPLACE: return read_replace(r, node, s);
  case PERI__DECODE_STRIP: return read_strip(r, node, s);
  case PERI__DECODE_BPE: return read_string(r, node, "suffix", &s->a, &s->a_n);
  default: return PERI_OK;
  }
}

peri_status peri__decoder_cleanup (peri_ctx *ctx, peri__decoder **d) {
  static const char *const rule[][2] = { { " .", "." },    { " ?", "?" },   { " !", "!" },
                                         { " ,", "," },    { " ' ", "'" },  { " n't", "n't" },
                                         { " 'm", "'m" },  { " 's", "'s" }, { " 've", "'ve" },
                                         { " 're", "'re" } };
  enum { N = sizeof rule / sizeof *rule };
  if (*d == NULL) { /* tokens are joined by spaces */
    if ((*d = peri__malloc(ctx, sizeof **d)) == NULL)
      return peri__fail(ctx, PERI_ENOMEM, "no memory for a decoder");
    memset(*d, 0, sizeof **d);
    (*d)->ctx = ctx;
    (*d)->step[(*d)->n++] = (peri__decode_step){ .kind = PERI__DECODE_JOIN };
  }
  if ((*d)->n + N > PERI__DECODE_STEPS)
    return peri__fail(ctx, PERI_EFORMAT,
                      "clean_up_tokenization_spaces: a decoder of more than %d steps",
                      PERI__DECODE_STEPS - N);
  reader r = { NULL, *d };
  for (size_t i = 0; i < N; i++) {
    peri__decode_step *s = &(*d)->step[(*d)->n];
    *s = (peri__decode_step){ .kind = PERI__DECODE_TEXT };
    (*d)->n++;
    TRY(copy(&r, rule[i][0], strlen(rule[i][0]), &s->a, &s->a_n));
    TRY(copy(&r, rule[i][1], strlen(rule[i][1]), &s->b, &s->b_n));
  }
  return PERI_OK;
}

peri_status peri__decoder_read (peri_ctx *ctx, peri_json *j, peri__decoder **out) {
  peri__tree tree;
  peri__decoder *d = NULL;
  peri_status s = peri__tree_read(ctx, j, &tree);
  if (s == PERI_OK && tree.root->type != PERI_JSON_NULL) {
    d = peri__malloc(ctx, sizeof *d);
    if (d == NULL) {
      s = peri__fail(ctx, PERI_ENOMEM, "no memory for a decoder");
    } else {
      memset(d, 0, sizeof *d);
      d->ctx = ctx;
      s = read_component(&(reader){ &tree, d }, tree.root);
    }
    if (s != PERI_OK) {
      peri__decoder_free(d);
      d = NULL;
    }
  }
  if (s == PERI_OK) *out = d;
  peri__tree_close(&tree);
  return s;
}

peri_status peri__decoder_parse (peri_ctx *ctx, const char *json, peri__decoder **out) {
  peri_json j;
  peri__json_over(&j, ctx, json);
  peri_status s = peri__decoder_read(ctx, &j, out);
  peri_json_close(&j);
  return s;
}
