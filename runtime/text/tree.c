/*
** tree.c - reading components into trees. Nodes and strings lie in blocks that are freed together.
*/
#include <stdio.h>
#include <string.h>

#include "text/tree.h"
#include "text/unicode.h"

typedef struct peri__tree_block {
  struct peri__tree_block *next;
  size_t size, used; /* of the bytes behind the head */
} block;

#define BLOCK 4096

static void *take (peri__tree *t, size_t n) {
  n = (n + 15) & ~(size_t)15;
  block *b = t->blocks;
  if (b == NULL || b->size - b->used < n) {
    size_t size = n > BLOCK ? n : BLOCK;
    b = peri__malloc(t->ctx, sizeof *b + 16 + size);
    if (b == NULL) {
      peri__fail(t->ctx, PERI_ENOMEM, "no memory for a component of a tokenizer");
      return NULL;
    }
    b->next = t->blocks;
    b->size = size;
    b->used = 0;
    t->blocks = b;
  }
  char *base = (char *)(((uintptr_t)(b + 1) + 15) & ~(uintptr_t)15);
  void *p = base + b->used;
  b->used += n;
  return p;
}

static char *copy (peri__tree *t, const char *s, size_t n) {
  char *p = take(t, n + 1);
  if (p == NULL) return NULL;
  if (n > 0) memcpy(p, s, n);
  p[n] = '\0';
  return p;
}

static peri_status new_node (peri__tree *t, const peri_json_value *v, peri__node **out) {
  if (t->nodes == PERI__TREE_NODES)
    return peri_json_fail(t->j, v->offset, "a component of a tokenizer has more than %d values",
                          PERI__TREE_NODES);
  peri__node *node = take(t, sizeof *node);
  if (node == NULL) return PERI_ENOMEM;
  memset(node, 0, sizeof *node);
  t->nodes++;
  node->type = v->type;
  node->offset = v->offset;
  node->flag = v->flag;
  node->i = v->i;
  if (v->type == PERI_JSON_STRING) {
    node->s = copy(t, v->s, v->n);
    node->n = v->n;
    if (node->s == NULL) return PERI_ENOMEM;
  }
  *out = node;
  return PERI_OK;
}

peri_status peri__tree_read (peri_ctx *ctx, peri_json *j, peri__tree *t) {
  peri__node **link[PERI__TREE_DEPTH]; /* of each open container: where its next child goes */
  peri__node *node = NULL;
  peri_json_value v;
  int depth = 0;
  *t = (peri__tree){ .ctx = ctx, .j = j };
  do {
    char *key = NULL;
    size_t key_n = 0;
    TRY(peri_json_next(j, &v));
    if (v.type == PERI_JSON_CLOSE && depth > 0) {
      depth--;
      continue;
    }
    if (v.type == PERI_JSON_END || v.type == PERI_JSON_CLOSE)
      return peri_json_fail(j, v.offset, "expected a component of a tokenizer");
    if (v.type == PERI_JSON_KEY) {
      key = copy(t, v.s, v.n);
      key_n = v.n;
      if (key == NULL) return PERI_ENOMEM;
      TRY(peri_json_next(j, &v));
    }
    TRY(new_node(t, &v, &node));
    node->key = key;
    node->key_n = key_n;
    if (depth == 0) {
      t->root = node;
    } else {
      *link[depth - 1] = node;
      link[depth - 1] = &node->next;
    }
    if (v.type == PERI_JSON_OBJECT || v.type == PERI_JSON_ARRAY) {
      if (depth == PERI__TREE_DEPTH)
        return peri_json_fail(j, v.offset, "a component of a tokenizer nests deeper than %d levels",
                              PERI__TREE_DEPTH);
      link[depth++] = &node->child;
    }
  } while (depth > 0);
  return PERI_OK;
}

void peri__tree_close (peri__tree *t) {
  while (t->blocks != NULL) {
    block *b = t->blocks;
    t->blocks = b->next;
    peri__free(t->ctx, b, sizeof *b + 16 + b->size);
  }
}

peri_status peri__node_fail (peri__tree *t, const peri__node *node, const char *fmt, ...) {
  char what[PERI_MESSAGE_MAX - 128];
  va_list args;
  va_start(args, fmt);
  vsnprintf(what, sizeof what, fmt, args);
  va_end(args);
  return peri_json_fail(t->j, node->offset, "%s", what);
}

const peri__node *peri__node_get (const peri__node *node, const char *key) {
  size_t n = strlen(key);
  if (node->type != PERI_JSON_OBJECT) return NULL;
  for (const peri__node *c = node->child; c != NULL; c = c->next)
    if (c->key_n == n && memcmp(c->key, key, n) == 0) return c->type == PERI_JSON_NULL ? NULL : c;
  return NULL;
}

/* The member of a type, or an error. NULL without error: absent and not required. */
static peri_status member (peri__tree *t, const peri__node *node, const char *key, bool required,
                           peri_json_type type, const char *what, const peri__node **out) {
  const peri__node *c = peri__node_get(node, key);
  if (c == NULL && required) return peri__node_fail(t, node, "\"%s\" is missing here", key);
  if (c != NULL && c->type != type) return peri__node_fail(t, c, "\"%s\" must be %s", key, what);
  *out = c;
  return PERI_OK;
}

peri_status peri__node_bool (peri__tree *t, const peri__node *node, const char *key, bool required,
                             bool *out) {
  const peri__node *c = NULL;
  TRY(member(t, node, key, required, PERI_JSON_BOOL, "true or false", &c));
  if (c != NULL) *out = c->flag;
  return PERI_OK;
}

peri_status peri__node_int (peri__tree *t, const peri__node *node, const char *key, bool required,
                            int64_t min, int64_t max, int64_t *out) {
  const peri__node *c = NULL;
  TRY(member(t, node, key, required, PERI_JSON_INT, "a whole number", &c));
  if (c == NULL) return PERI_OK;
  if (c->i < min || c->i > max)
    return peri__node_fail(t, c, "\"%s\" is %lld, must be in [%lld, %lld]", key, (long long)c->i,
                           (long long)min, (long long)max);
  *out = c->i;
  return PERI_OK;
}

peri_status peri__node_string (peri__tree *t, const peri__node *node, const char *key,
                               bool required, const peri__node **out) {
  return member(t, node, key, required, PERI_JSON_STRING, "a string", out);
}

peri_status peri__node_char (peri__tree *t, const peri__node *node, const char *key, bool required,
                             uint32_t *out) {
  const peri__node *c = NULL;
  size_t len = 0;
  TRY(member(t, node, key, required, PERI_JSON_STRING, "a string of one character", &c));
  if (c == NULL) return PERI_OK;
  if (c->n > 0) *out = peri__char_at((const unsigned char *)c->s, c->n, &len);
  if (c->n == 0 || len != c->n)
    return peri__node_fail(t, c, "\"%s\" must be a string of one character", key);
  return PERI_OK;
}

peri_status peri__node_list (peri__tree *t, const peri__node *node, const char *key,
                             const peri__node **out) {
  return member(t, node, key, true, PERI_JSON_ARRAY, "a list", out);
}

int peri__node_choice (const peri__node *node, const char *const *names) {
  for (int i = 0; names[i] != NULL; i++)
    if (strlen(names[i]) == node->n && memcmp(names[i], node->s, node->n) == 0) return i;
  return -1;
}

peri_status peri__node_type (peri__tree *t, const peri__node *node, const char *what,
                             const char *const *names, int *out) {
  const peri__node *type = NULL;
  if (node->type != PERI_JSON_OBJECT)
    return peri__node_fail(t, node, "a %s must be an object", what);
  TRY(peri__node_string(t, node, "type", true, &type));
  *out = peri__node_choice(type, names);
  if (*out < 0)
    return peri__node_fail(t, type, "unknown %s \"%.*s\"", what, type->n > 100 ? 100 : (int)type->n,
                           type->s);
  return PERI_OK;
}
