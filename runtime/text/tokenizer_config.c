/*
** tokenizer_config.c - reading what lies beside a vocabulary: tokenizer_config.json,
** special_tokens_map.json and added_tokens.json into t->beside (tokenizer_beside.c applies it),
** generation_config.json and chat_template.jinja.
*/
#include <string.h>

#include "text/tokenizer.h"
#include "text/tree.h"

/* ---- tokens ---- */

static void drop (peri_ctx *ctx, peri__said_token *x) {
  if (x->text != NULL) peri__free(ctx, x->text, x->n + 1);
  *x = (peri__said_token){ 0 };
}

/* A flag of an added token; absent is *set as it is. */
static peri_status token_flag (peri__tree *tree, const peri__node *node, const char *key, int flag,
                               int *set) {
  bool on = (*set & flag) != 0;
  TRY(peri__node_bool(tree, node, key, false, &on));
  *set = on ? *set | flag : *set & ~flag;
  return PERI_OK;
}

/* "text" or {"content": "text", "lstrip": ...}. special: what is usual where the file does not say. */
static peri_status token_of (peri__tree *tree, const peri__node *node, bool special,
                             peri__said_token *out) {
  const peri__node *content = node;
  int flags = special ? PERI__ADDED_SPECIAL : 0;
  if (node->type == PERI_JSON_OBJECT) {
    TRY(peri__node_string(tree, node, "content", true, &content));
    TRY(token_flag(tree, node, "special", PERI__ADDED_SPECIAL, &flags));
    if (!(flags & PERI__ADDED_SPECIAL)) flags |= PERI__ADDED_NORMALIZED; /* unless it says so */
    TRY(token_flag(tree, node, "normalized", PERI__ADDED_NORMALIZED, &flags));
    TRY(token_flag(tree, node, "single_word", PERI__ADDED_SINGLE_WORD, &flags));
    TRY(token_flag(tree, node, "lstrip", PERI__ADDED_LSTRIP, &flags));
    TRY(token_flag(tree, node, "rstrip", PERI__ADDED_RSTRIP, &flags));
  } else if (node->type != PERI_JSON_STRING) {
    return peri__node_fail(tree, node, "a token must be a string or an object with its content");
  }
  if (content->n > PERI__ADDED_BYTES)
    return peri__node_fail(tree, content, "a token of %zu bytes, the limit is %d", content->n,
                           PERI__ADDED_BYTES);
  char *text = peri__copy_text(tree->ctx, content->s, content->n);
  if (text == NULL) return PERI_ENOMEM;
  drop(tree->ctx, out);
  *out = (peri__said_token){ .text = text, .n = content->n, .flags = flags };
  return PERI_OK;
}

static peri_status list_put (peri__tree *tree, peri__said_list *l, const peri__node *node,
                             bool special, int64_t index) {
  TRY(peri__grow(tree->ctx, &l->at, &l->cap, l->n + 1, sizeof *l->at, "added tokens"));
  l->at[l->n] = (peri__said_token){ 0 };
  TRY(token_of(tree, node, special, &l->at[l->n]));
  l->at[l->n++].index = index;
  return PERI_OK;
}

static void list_clear (peri_ctx *ctx, peri__said_list *l) {
  while (l->n > 0) drop(ctx, &l->at[--l->n]);
}

static bool is_null (const peri__node *node) { return node->type == PERI_JSON_NULL; }

/* Read the next value as a tree and hand it to read. */
static peri_status with_tree (peri_tokenizer *t, peri_json *j, void *ud,
                              peri_status (*read)(peri_tokenizer *t, peri__tree *tree, void *ud)) {
  peri__tree tree;
  peri_status s = peri__tree_read(t->ctx, j, &tree);
  if (s == PERI_OK) s = read(t, &tree, ud);
  peri__tree_close(&tree);
  return s;
}

static peri_status read_role (peri_tokenizer *t, peri__tree *tree, void *ud) {
  peri__said_token *role = ud;
  if (!is_null(tree->root)) return token_of(tree, tree->root, true, role);
  drop(t->ctx, role);
  role->none = true;
  return PERI_OK;
}

/* A list of tokens, or an object of tokens by name. */
static peri_status read_list (peri_tokenizer *t, peri__tree *tree, void *ud) {
  peri__said_list *l = ud;
  const peri__node *e = tree->root->child;
  if (tree->root->type == PERI_JSON_OBJECT)
    l = &t->beside.by_key;
  else if (tree->root->type != PERI_JSON_ARRAY && !is_null(tree->root))
    return peri__node_fail(tree, tree->root, "special tokens must be a list or an object");
  else
    list_clear(t->ctx, l); /* the later file counts */
  for (; e != NULL; e = e->next)
    if (!is_null(e)) TRY(list_put(tree, l, e, true, 0));
  return PERI_OK;
}

/* "image_token": "<image>" is a special token, anything else under such a name a setting. */
static peri_status read_named (peri_tokenizer *t, peri__tree *tree, void *ud) {
  const peri__node *e = tree->root;
  (void)ud;
  if (e->type != PERI_JSON_STRING && peri__node_get(e, "content") == NULL) return PERI_OK;
  return list_put(tree, &t->beside.named, e, true, 0);
}

static peri_status read_entry (peri_tokenizer *t, peri__tree *tree, void *ud) {
  return list_put(tree, &t->beside.added, tree->root, false, *(const int64_t *)ud);
}

/* added_tokens_decoder: {"256": {"content": ...}, ...} */
static peri_status read_decoder (peri_tokenizer *t, peri_json *j) {
  peri_json_value v;
  TRY(peri_json_next(j, &v));
  if (v.type == PERI_JSON_NULL) return PERI_OK;
  if (v.type != PERI_JSON_OBJECT)
    return peri_json_fail(j, v.offset, "added_tokens_decoder must be an object");
  t->beside.decoder = true;
  for (;;) {
    int64_t index = 0;
    TRY(peri_json_next(j, &v));
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    bool digits = v.n > 0 && v.n < 10;
    for (size_t i = 0; digits && i < v.n; i++) {
      digits = v.s[i] >= '0' && v.s[i] <= '9';
      index = index * 10 + (v.s[i] - '0');
    }
    if (!digits) return peri_json_fail(j, v.offset, "added_tokens_decoder: a key must be an id");
    TRY(with_tree(t, j, &index, read_entry));
  }
}

/* ---- chat templates ---- */

peri_status peri__tokenizer_template (peri_tokenizer *t, const char *s, size_t n) {
  char *copy = peri__copy_text(t->ctx, s, n);
  if (copy == NULL) return PERI_ENOMEM;
  if (t->template != NULL) peri__free(t->ctx, t->template, t->template_size + 1);
  t->template = copy;
  t->template_size = n;
  return PERI_OK;
}

/* One of a list of templates: {"name": ..., "template": ...}; the one named default counts. */
static peri_status read_one_template (peri_tokenizer *t, peri_json *j) {
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
      TRY(read_one_template(t, j));
    else
      TRY(peri__json_skip(j, &v));
  }
}

/* ---- settings ---- */

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

static peri_status read_never_split (peri_tokenizer *t, peri__tree *tree, void *ud) {
  (void)t;
  (void)ud;
  if (tree->root->type != PERI_JSON_ARRAY || tree->root->child == NULL) return PERI_OK;
  return peri__node_fail(tree, tree->root, "never_split is not supported");
}

/* One value that is neither a flag nor a token. */
static peri_status read_other (peri_tokenizer *t, peri_json *j, const peri_json_value *key) {
  peri__beside *b = &t->beside;
  bool family = peri__json_is(key, "tokenizer_class"), padding = peri__json_is(key, "padding_side");
  bool cut = peri__json_is(key, "truncation_side"), ids = peri__json_is(key, "extra_ids");
  bool length = peri__json_is(key, "model_max_length") || peri__json_is(key, "max_len");
  peri_json_value v;
  TRY(peri_json_next(j, &v));
  if (family && v.type == PERI_JSON_STRING) {
    size_t n = v.n < sizeof b->family - 1 ? v.n : sizeof b->family - 1;
    memcpy(b->family, v.s, n);
    b->family[n] = '\0';
  }
  if (padding) peri__tokenizer_side(&v, &t->padding);
  if (cut) peri__tokenizer_side(&v, &t->truncation);
  if (length) peri__tokenizer_length(&v, &t->max_length);
  if (ids && v.type == PERI_JSON_INT && v.i >= 0 && v.i < PERI__TOKENS_MAX) b->extra_ids = v.i;
  return peri__json_skip(j, &v);
}

static peri_status read_setting (peri_tokenizer *t, peri_json *j, const peri_json_value *key) {
  static const struct {
    const char *key;
    peri_token_role role;
  } roles[] = { { "bos_token", PERI_TOKEN_BOS },  { "eos_token", PERI_TOKEN_EOS },
                { "pad_token", PERI_TOKEN_PAD },  { "unk_token", PERI_TOKEN_UNK },
                { "cls_token", PERI_TOKEN_CLS },  { "sep_token", PERI_TOKEN_SEP },
                { "mask_token", PERI_TOKEN_MASK } };
  peri__beside *b = &t->beside;
  int split = -1;
  const struct {
    const char *key;
    int *out;
  } flags[] = { { "add_bos_token", &b->add_bos },
                { "add_eos_token", &b->add_eos },
                { "add_prefix_space", &b->prefix_space },
                { "do_lower_case", &b->lower },
                { "strip_accents", &b->accents },
                { "tokenize_chinese_chars", &b->chinese },
                { "do_basic_tokenize", &b->basic },
                { "split_special_tokens", &split },
                { "clean_up_tokenization_spaces", &b->cleanup },
                { "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
                  &b->cleanup_bpe } };
  for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
    if (peri__json_is(key, roles[i].key))
      return with_tree(t, j, &b->role[roles[i].role], read_role);
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
    if (peri__json_is(key, flags[i].key)) {
      TRY(read_flag(j, flags[i].out));
      if (split >= 0) t->split_special = split == 1;
      return PERI_OK;
    }
  if (peri__json_is(key, "chat_template")) return read_template(t, j);
  if (peri__json_is(key, "added_tokens_decoder")) return read_decoder(t, j);
  if (peri__json_is(key, "extra_special_tokens")) return with_tree(t, j, &b->extra, read_list);
  if (peri__json_is(key, "additional_special_tokens"))
    return with_tree(t, j, &b->additional, read_list);
  if (peri__json_is(key, "never_split")) return with_tree(t, j, NULL, read_never_split);
  if (key->n > 6 && memcmp(key->s + key->n - 6, "_token", 6) == 0)
    return with_tree(t, j, NULL, read_named);
  return read_other(t, j, key);
}

static peri_status read_settings (peri_tokenizer *t, peri_json *j) {
  peri_json_value v;
  TRY(peri_json_expect(j, PERI_JSON_OBJECT, "the settings of a tokenizer", &v));
  for (;;) {
    TRY(peri_json_next(j, &v));
    if (v.type == PERI_JSON_CLOSE) break;
    TRY(read_setting(t, j, &v));
  }
  return peri_json_expect(j, PERI_JSON_END, "what follows the settings", &v);
}

peri_status peri__tokenizer_config (peri_tokenizer *t, const void *text, size_t size) {
  peri_json j;
  peri__json_open_foreign(&j, t->ctx, text, size);
  peri_status s = read_settings(t, &j);
  peri_json_close(&j);
  t->beside.any = true;
  return s;
}

/* Where a config lists its added tokens itself, the older files are leavings of an older program. */
peri_status peri__tokenizer_special_map (peri_tokenizer *t, const void *text, size_t size) {
  bool any = t->beside.any;
  if (t->beside.decoder) return PERI_OK;
  TRY(peri__tokenizer_config(t, text, size));
  t->beside.any = any;
  return PERI_OK;
}

/* {"<|im_end|>": 256, ...} */
static peri_status read_added_json (peri_tokenizer *t, peri_json *j) {
  peri__said_list *l = &t->beside.added;
  peri_json_value v;
  TRY(peri_json_expect(j, PERI_JSON_OBJECT, "added tokens", &v));
  for (;;) {
    TRY(peri_json_next(j, &v));
    if (v.type == PERI_JSON_CLOSE) break;
    if (v.n > PERI__ADDED_BYTES)
      return peri_json_fail(j, v.offset, "a token of %zu bytes, the limit is %d", v.n,
                            PERI__ADDED_BYTES);
    TRY(peri__grow(t->ctx, &l->at, &l->cap, l->n + 1, sizeof *l->at, "added tokens"));
    peri__said_token *x = &l->at[l->n];
    *x = (peri__said_token){ .text = peri__copy_text(t->ctx, v.s, v.n), .n = v.n };
    if (x->text == NULL) return PERI_ENOMEM;
    l->n++;
    TRY(peri_json_expect(j, PERI_JSON_INT, "the id of an added token", &v));
    x->index = v.i;
  }
  t->beside.by_name = true;
  return peri_json_expect(j, PERI_JSON_END, "what follows added tokens", &v);
}

peri_status peri__tokenizer_added_json (peri_tokenizer *t, const void *text, size_t size) {
  peri_json j;
  if (t->beside.decoder) return PERI_OK;
  peri__json_open_foreign(&j, t->ctx, text, size);
  peri_status s = read_added_json(t, &j);
  peri_json_close(&j);
  return s;
}

/* ---- generation ---- */

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
  peri__json_open_foreign(&j, t->ctx, text, size);
  peri_status s = read_generation(t, &j);
  peri_json_close(&j);
  return s;
}
