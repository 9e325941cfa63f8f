/*
** tree.h - one component of tokenizer.json (a normaliser, a decoder) as a tree: keys come in any
** order, so "type" may be the last. Bounded: components are small.
*/
#ifndef peri_text_tree_h
#define peri_text_tree_h

#include "core/json.h"

#define PERI__TREE_NODES \
  16384                     /* of one component; a template with many special tokens has hundreds */
#define PERI__TREE_DEPTH 16 /* components nest in sequences */

typedef struct peri__node {
  peri_json_type type; /* OBJECT, ARRAY and the scalars */
  bool flag;
  const char *s; /* STRING: zero-terminated, may hold zero bytes */
  size_t n;
  int64_t i;
  const char *key; /* of a member; else NULL */
  size_t key_n;
  struct peri__node *child, *next;
  size_t offset; /* in the JSON text */
} peri__node;

typedef struct peri__tree {
  peri_ctx *ctx;
  peri_json *j;
  struct peri__tree_block *blocks;
  size_t nodes;
  peri__node *root;
} peri__tree;

/* Read the value that the reader stands before. Close it whatever comes back. */
peri_status peri__tree_read (peri_ctx *ctx, peri_json *j, peri__tree *t);
void peri__tree_close (peri__tree *t);

/* The member of an object, or NULL; NULL too where it is null. */
const peri__node *peri__node_get (const peri__node *node, const char *key);
/* Typed members. required: an absent one is an error, else *out stays as it is. */
peri_status peri__node_bool (peri__tree *t, const peri__node *node, const char *key, bool required,
                             bool *out);
peri_status peri__node_int (peri__tree *t, const peri__node *node, const char *key, bool required,
                            int64_t min, int64_t max, int64_t *out);
peri_status peri__node_string (peri__tree *t, const peri__node *node, const char *key,
                               bool required, const peri__node **out);
/* A string of exactly one character. */
peri_status peri__node_char (peri__tree *t, const peri__node *node, const char *key, bool required,
                             uint32_t *out);
peri_status peri__node_list (peri__tree *t, const peri__node *node, const char *key,
                             const peri__node **out); /* required array */
/* Index of a string in a list of names that NULL ends, or -1. */
int peri__node_choice (const peri__node *node, const char *const *names);
/* "type" of an object as one of names; what ("decoder") is for the message of a type unknown. */
peri_status peri__node_type (peri__tree *t, const peri__node *node, const char *what,
                             const char *const *names, int *out);
peri_status peri__node_fail (peri__tree *t, const peri__node *node, const char *fmt, ...)
    PERI_PRINTF(3, 4);

/* Open a reader over a zero-terminated JSON text, for components that have no file. */
static inline void peri__json_over (peri_json *j, peri_ctx *ctx, const char *json) {
  size_t n = 0;
  while (json[n] != '\0') n++;
  peri__json_open_foreign(j, ctx, json, n);
}

#endif
