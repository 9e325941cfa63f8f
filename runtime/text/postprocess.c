/*
** postprocess.c - reading post-processors: all of them become two lists of parts, one for a text and
** one for a pair. Offsets are not kept here, so what only trims them adds nothing.
*/
#include "text/postprocess.h"
#include "text/tree.h"

#define PARTS_MAX 4096 /* of one list */
#define IDS_MAX 65536  /* of all parts together */

struct peri__postprocessor {
  peri_ctx *ctx;
  peri__part *part[2]; /* of a text, of a pair */
  size_t n[2], cap[2];
  int32_t *ids; /* what the parts point into */
  size_t n_ids, cap_ids;
};

static const peri__part plain[] = { { PERI__PART_A, 0, NULL, 0 }, { PERI__PART_B, 1, NULL, 0 } };

const peri__part *peri__postprocessor_parts (const peri__postprocessor *p, bool pair, size_t *n) {
  if (p != NULL) {
    *n = p->n[pair];
    return p->part[pair];
  }
  *n = pair ? 2 : 1;
  return plain;
}

void peri__postprocessor_free (peri__postprocessor *p) {
  if (p == NULL) return;
  for (int k = 0; k < 2; k++) peri__free(p->ctx, p->part[k], p->cap[k] * sizeof *p->part[k]);
  peri__free(p->ctx, p->ids, p->cap_ids * sizeof *p->ids);
  peri__free(p->ctx, p, sizeof *p);
}

typedef struct reader {
  peri__tree *tree;
  peri__postprocessor *p;
} reader;

static peri_status no_memory (reader *r) {
  return peri__fail(r->p->ctx, PERI_ENOMEM, "no memory for a post-processor");
}

/* Space for count parts and ids in all: nothing moves afterwards, so parts may point at ids. */
static peri_status reserve (reader *r, const peri__node *at, const size_t parts[2], size_t ids) {
  peri__postprocessor *p = r->p;
  if (parts[0] > PARTS_MAX || parts[1] > PARTS_MAX || ids > IDS_MAX)
    return peri__node_fail(r->tree, at, "a post-processor of more than %d parts or %d ids",
                           PARTS_MAX, IDS_MAX);
  for (int k = 0; k < 2; k++) {
    p->part[k] = peri__malloc(p->ctx, parts[k] * sizeof *p->part[k]);
    if (p->part[k] == NULL) return no_memory(r);
    p->cap[k] = parts[k];
  }
  p->ids = peri__malloc(p->ctx, ids * sizeof *p->ids);
  if (p->ids == NULL) return no_memory(r);
  p->cap_ids = ids;
  return PERI_OK;
}

static void add_text (reader *r, bool pair, peri__part_kind kind, int type_id) {
  r->p->part[pair][r->p->n[pair]++] = (peri__part){ .kind = kind, .type_id = type_id };
}

static void add_ids (reader *r, bool pair, int type_id, const int32_t *ids, size_t n) {
  r->p->part[pair][r->p->n[pair]++] =
      (peri__part){ .kind = PERI__PART_IDS, .type_id = type_id, .ids = ids, .n = n };
}

/* ---- BertProcessing, RobertaProcessing ---- */

/* ["[SEP]", 102] */
static peri_status read_pair (reader *r, const peri__node *node, const char *key, int32_t *id) {
  const peri__node *list = NULL, *value;
  TRY(peri__node_list(r->tree, node, key, &list));
  value = list->child != NULL ? list->child->next : NULL;
  if (value == NULL || value->type != PERI_JSON_INT || value->i < 0 || value->i > INT32_MAX)
    return peri__node_fail(r->tree, list, "\"%s\" must be a token and its id", key);
  *id = (int32_t)value->i;
  return PERI_OK;
}

/* [CLS] A [SEP] and [CLS] A [SEP] B [SEP], or <s> A </s> and <s> A </s></s> B </s>. */
static peri_status read_bert (reader *r, const peri__node *node, bool roberta) {
  static const size_t parts[2] = { 3, 5 };
  int32_t cls, sep;
  TRY(read_pair(r, node, "cls", &cls));
  TRY(read_pair(r, node, "sep", &sep));
  TRY(reserve(r, node, parts, 3));
  int32_t *ids = r->p->ids;
  ids[0] = cls;
  ids[1] = ids[2] = sep;
  for (int pair = 0; pair < 2; pair++) {
    add_ids(r, pair, 0, ids, 1);
    add_text(r, pair, PERI__PART_A, 0);
    add_ids(r, pair, 0, ids + 1, pair && roberta ? 2 : 1);
  }
  add_text(r, true, PERI__PART_B, roberta ? 0 : 1);
  add_ids(r, true, roberta ? 0 : 1, ids + 1, 1);
  return PERI_OK;
}

/* ---- TemplateProcessing ---- */

/* The "ids" of a special token that a template names. */
static peri_status special_ids (reader *r, const peri__node *specials, const peri__node *name,
                                const peri__node **ids, size_t *n) {
  const peri__node *special = NULL;
  for (const peri__node *s = specials->child; s != NULL && special == NULL; s = s->next)
    if (s->key_n == name->n && memcmp(s->key, name->s, name->n) == 0) special = s;
  if (special == NULL)
    return peri__node_fail(r->tree, name, "special token \"%.*s\" is not in \"special_tokens\"",
                           name->n > 100 ? 100 : (int)name->n, name->s);
  TRY(peri__node_list(r->tree, special, "ids", ids));
  *n = 0;
  for (const peri__node *id = (*ids)->child; id != NULL; id = id->next, (*n)++)
    if (id->type != PERI_JSON_INT || id->i < 0 || id->i > INT32_MAX)
      return peri__node_fail(r->tree, id, "a token's id must be a whole number from 0 to %d",
                             INT32_MAX);
  return PERI_OK;
}

/* One part of a template. add false: only count its ids. */
static peri_status template_part (reader *r, const peri__node *specials, const peri__node *part,
                                  bool pair, bool add, size_t *count) {
  static const char *const sequences[] = { "A", "B", NULL };
  const peri__node *sequence = peri__node_get(part, "Sequence");
  const peri__node *special = peri__node_get(part, "SpecialToken"), *name = NULL, *ids = NULL;
  const peri__node *body = sequence != NULL ? sequence : special;
  int64_t type_id = 0;
  size_t n = 0;
  if (body == NULL)
    return peri__node_fail(r->tree, part,
                           "a part of a template must be a Sequence or SpecialToken");
  TRY(peri__node_string(r->tree, body, "id", true, &name));
  TRY(peri__node_int(r->tree, body, "type_id", true, 0, INT32_MAX, &type_id));
  if (sequence != NULL) {
    int k = peri__node_choice(name, sequences);
    if (k < 0 || (k == 1 && !pair))
      return peri__node_fail(r->tree, name, "sequence \"%.*s\" of a template",
                             name->n > 100 ? 100 : (int)name->n, name->s);
    if (add) add_text(r, pair, k == 0 ? PERI__PART_A : PERI__PART_B, (int)type_id);
    return PERI_OK;
  }
  TRY(special_ids(r, specials, name, &ids, &n));
  *count += n;
  if (!add) return PERI_OK;
  int32_t *at = r->p->ids + r->p->n_ids;
  for (const peri__node *id = ids->child; id != NULL; id = id->next)
    r->p->ids[r->p->n_ids++] = (int32_t)id->i;
  add_ids(r, pair, (int)type_id, at, n);
  return PERI_OK;
}

static peri_status read_template (reader *r, const peri__node *node) {
  static const peri__node none = { .type = PERI_JSON_OBJECT };
  const peri__node *list[2], *specials = peri__node_get(node, "special_tokens");
  size_t parts[2] = { 0, 0 }, ids = 0;
  TRY(peri__node_list(r->tree, node, "single", &list[0]));
  TRY(peri__node_list(r->tree, node, "pair", &list[1]));
  if (specials == NULL) specials = &none;
  for (int add = 0; add < 2; add++) {
    for (int pair = 0; pair < 2; pair++)
      for (const peri__node *e = list[pair]->child; e != NULL; e = e->next) {
        TRY(template_part(r, specials, e, pair, add, &ids));
        if (!add) parts[pair]++;
      }
    if (!add) TRY(reserve(r, node, parts, ids));
  }
  return PERI_OK;
}

/* ---- reading ---- */

/* ORDER post_processor: the names and the cases below */
static const char *const type_names[] = { "Sequence",           "ByteLevel",
                                          "BertProcessing",     "RobertaProcessing",
                                          "TemplateProcessing", NULL };

static peri_status read_component (reader *r, const peri__node *node) {
  int type;
  const peri__node *list = NULL;
  TRY(peri__node_type(r->tree, node, "post-processor", type_names, &type));
  if (type > 1 && r->p->ids != NULL)
    return peri__node_fail(r->tree, node, "a second post-processor that adds tokens");
  switch (type) {
  case 0:
    TRY(peri__node_list(r->tree, node, "processors", &list));
    for (const peri__node *e = list->child; e != NULL; e = e->next) TRY(read_component(r, e));
    return PERI_OK;
  case 1: return PERI_OK; /* trims offsets */
  case 2: return read_bert(r, node, false);
  case 3: return read_bert(r, node, true);
  default: return read_template(r, node);
  }
}

peri_status peri__postprocessor_read (peri_ctx *ctx, peri_json *j, peri__postprocessor **out) {
  peri__tree tree;
  peri__postprocessor *p = NULL;
  peri_status s = peri__tree_read(ctx, j, &tree);
  if (s == PERI_OK && tree.root->type != PERI_JSON_NULL) {
    p = peri__malloc(ctx, sizeof *p);
    if (p == NULL) {
      s = peri__fail(ctx, PERI_ENOMEM, "no memory for a post-processor");
    } else {
      *p = (peri__postprocessor){ .ctx = ctx };
      s = read_component(&(reader){ &tree, p }, tree.root);
    }
    if (p != NULL && (s != PERI_OK || p->ids == NULL)) { /* failed, or adds nothing */
      peri__postprocessor_free(p);
      p = NULL;
    }
  }
  if (s == PERI_OK) *out = p;
  peri__tree_close(&tree);
  return s;
}

peri_status peri__postprocessor_parse (peri_ctx *ctx, const char *json, peri__postprocessor **out) {
  peri_json j;
  peri__json_over(&j, ctx, json);
  peri_status s = peri__postprocessor_read(ctx, &j, out);
  peri_json_close(&j);
  return s;
}
