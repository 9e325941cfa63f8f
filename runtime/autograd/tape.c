/* tape.c - recording op calls and letting go of them; what a tensor says of its gradient. */
#include <string.h>

#include "autograd/tape.h"

static void unlink_node (peri_ctx *ctx, peri_node *n) {
  if (n->prev)
    n->prev->next = n->next;
  else
    ctx->tape_first = n->next;
  if (n->next)
    n->next->prev = n->prev;
  else
    ctx->tape_last = n->prev;
}

static size_t round8 (size_t n) { return (n + 7) & ~(size_t)7; }

/* One block: node, in, out, g, version, attributes with their lists and strings. */
static peri_node *node_new (peri_ctx *ctx, int nin, int nout, int nattr, const peri_attr *attr) {
  size_t extra = 0;
  for (int i = 0; i < nattr; i++) {
    if (attr[i].v && attr[i].n > 0) extra += (size_t)attr[i].n * sizeof(int64_t);
    if (attr[i].s) extra += round8(strlen(attr[i].s) + 1);
  }
  size_t ptrs = (size_t)(nin + 2 * nout) * sizeof(peri_tensor *);
  size_t versions = round8((size_t)(nin + nout) * sizeof(uint32_t));
  size_t size = round8(sizeof(peri_node)) + ptrs + versions + (size_t)nattr * sizeof *attr + extra;
  peri_node *n = peri__block_get(ctx, size);
  if (!n) {
    peri__fail(ctx, PERI_ENOMEM, "out of memory for the tape");
    return NULL;
  }
  memset(n, 0, size);
  char *p = (char *)n + round8(sizeof *n);
  n->in = (peri_tensor **)p;
  n->out = n->in + nin;
  n->g = n->out + nout;
  p += ptrs;
  n->version = (uint32_t *)p;
  p += versions;
  n->attr = (peri_attr *)p;
  p += (size_t)nattr * sizeof *attr;
  n->nin = nin;
  n->nout = n->live = nout;
  n->size = size;
  for (int i = 0; i < nattr; i++) {
    n->attr[i] = attr[i];
    if (attr[i].v && attr[i].n > 0) {
      memcpy(p, attr[i].v, (size_t)attr[i].n * sizeof(int64_t));
      n->attr[i].v = (int64_t *)p;
      p += (size_t)attr[i].n * sizeof(int64_t);
    }
    if (attr[i].s) {
      strcpy(p, attr[i].s);
      n->attr[i].s = p;
      p += round8(strlen(p) + 1);
    }
  }
  return n;
}

static void link_node (peri_ctx *ctx, peri_node *n, peri_tensor *const *in,
                       peri_tensor *const *out) {
  for (int i = 0; i < n->nin; i++) {
    n->in[i] = peri_retain(in[i]);
    if (in[i]) n->version[i] = in[i]->storage->version;
  }
  for (int k = 0; k < n->nout; k++) {
    n->out[k] = out[k];
    n->version[n->nin + k] = out[k]->storage->version;
    out[k]->node = n;
    out[k]->node_out = (uint8_t)k;
  }
  n->prev = ctx->tape_last;
  if (n->prev)
    n->prev->next = n;
  else
    ctx->tape_first = n;
  ctx->tape_last = n;
}

peri_status peri__record (peri_ctx *ctx, const peri_call *c) {
  peri_node *n = node_new(ctx, c->nin, c->op->nout, c->sig->nattr, c->attr);
  if (!n) return PERI_ENOMEM;
  n->op = c->op;
  n->name = c->op->name;
  memcpy(n->list, c->list, sizeof n->list);
  link_node(ctx, n, c->in, c->out);
  return PERI_OK;
}

/* A node without an op; its vjp is the caller's to set. */
static peri_status record (peri_ctx *ctx, const char *name, int nin, peri_tensor *const *in,
                           int nout, peri_tensor *const *out, peri_node **node) {
  NEED(ctx, name);
  if (nout < 1 || nout > 255) return peri__fail(ctx, PERI_EINVAL, "%s: %d outputs", name, nout);
  if (nin < 0) return peri__fail(ctx, PERI_EINVAL, "%s: %d inputs", name, nin);
  NEED(ctx, out);
  if (nin > 0) NEED(ctx, in);
  for (int i = 0; i < nin; i++)
    if (in[i]) TRY(peri__belongs(ctx, in[i], "an input"));
  for (int k = 0; k < nout; k++) {
    TRY(peri__belongs(ctx, out[k], "an output"));
    if (out[k]->node || (out[k]->flags & PERI_T_REQUIRES_GRAD))
      return peri__fail(ctx, PERI_EINVAL, "%s: output %s is already part of a graph", name,
                        peri__nth(ctx, k));
    for (int j = 0; j < k; j++)
      if (out[j] == out[k])
        return peri__fail(ctx, PERI_EINVAL, "%s: outputs %s and %s are one tensor", name,
                          peri__nth(ctx, j), peri__nth(ctx, k));
    for (int i = 0; i < nin; i++)
      if (in[i] == out[k])
        return peri__fail(ctx, PERI_EINVAL, "%s: output %s is input %s itself", name,
                          peri__nth(ctx, k), peri__nth(ctx, i));
  }
  peri_attr held = { .s = name }; /* the node keeps a copy */
  peri_node *n = node_new(ctx, nin, nout, 1, &held);
  if (!n) return PERI_ENOMEM;
  n->name = n->attr[0].s;
  link_node(ctx, n, in, out);
  *node = n;
  return PERI_OK;
}

peri_status peri_record_custom (peri_ctx *ctx, const char *name, int nin, peri_tensor *const *in,
                                int nout, peri_tensor *const *out, peri_vjp_fn vjp,
                                void (*release)(void *ud), void *ud) {
  peri_node *n;
  NEED(ctx, ctx);
  NEED(ctx, vjp);
  TRY(record(ctx, name, nin, in, nout, out, &n));
  n->vjp = vjp, n->release = release, n->ud = ud;
  return PERI_OK;
}

peri_status peri__record_segment (peri_ctx *ctx, const char *name, int nin, peri_tensor *const *in,
                                  int nout, peri_tensor *const *out, peri__segment_fn segment,
                                  void (*release)(void *ud), void *ud) {
  peri_node *n;
  TRY(record(ctx, name, nin, in, nout, out, &n));
  n->segment = segment, n->release = release, n->ud = ud;
  return PERI_OK;
}

/* Free dead nodes one by one: releasing an input may bury another node, never recurse into it. */
static void bury (peri_ctx *ctx, peri_node *n) {
  bool digging = ctx->graveyard != NULL;
  n->next = ctx->graveyard;
  ctx->graveyard = n;
  if (digging) return;
  /* The head stays in the list while it is worked on, which is what marks "digging". */
  while (ctx->graveyard) {
    peri_node *dead = ctx->graveyard, *rest;
    for (int i = 0; i < dead->nin; i++) {
      peri_tensor *t = dead->in[i];
      dead->in[i] = NULL;
      peri_release(t);
    }
    for (int k = 0; k < dead->nout; k++) {
      peri_tensor *g = dead->g[k];
      dead->g[k] = NULL;
      peri_release(g);
    }
    if (dead->release) dead->release(dead->ud);
    dead->release = NULL;
    if (ctx->graveyard == dead) {
      rest = dead->next;
      peri__block_put(ctx, dead);
      ctx->graveyard = rest;
    } else { /* others were buried on top: unlink dead from below them */
      peri_node *above = ctx->graveyard;
      while (above->next != dead) above = above->next;
      above->next = dead->next;
      peri__block_put(ctx, dead);
    }
  }
}

void peri__node_drop (peri_node *n, bool freed) {
  peri_ctx *ctx = NULL;
  for (int k = 0; k < n->nout; k++) {
    peri_tensor *t = n->out[k];
    if (!t) continue;
    ctx = t->ctx;
    t->node = NULL;
    if (freed) t->flags |= PERI_T_FREED;
    t->flags &= (uint8_t)~PERI_T_ZOMBIE;
    if (t->refs == 0) peri__tensor_free(t);
    n->out[k] = NULL;
  }
  unlink_node(ctx, n);
  bury(ctx, n);
}

/* An output that had no reference left is used again: by the graph of a gradient that reads it. */
void peri__node_output_rose (peri_tensor *t) {
  if (!(t->flags & PERI_T_ZOMBIE)) return;
  t->flags &= (uint8_t)~PERI_T_ZOMBIE;
  t->node->live++;
}

void peri__node_output_died (peri_tensor *t) {
  peri_node *n = t->node;
  if (!(t->flags & PERI_T_ZOMBIE)) {
    t->flags |= PERI_T_ZOMBIE;
    n->live--;
  }
  if (n->live > 0) return; /* a sibling may still need it for the vjp */
  peri__node_drop(n, false);
}

void peri__tape_close (peri_ctx *ctx) {
  while (ctx->tape_last) peri__node_drop(ctx->tape_last, false);
}

/* ---- leaves ---- */

peri_status peri_set_requires_grad (peri_tensor *t, bool on) {
  if (!peri__alive(t)) return PERI_EINVAL;
  if (t->node)
    return peri__fail(t->ctx, PERI_EINVAL,
                      "only a leaf can be told whether it requires a gradient");
  if (on && !peri__is_float(t->dtype))
    return peri__fail(t->ctx, PERI_EDTYPE, "a %s tensor has no gradient",
                      peri_dtype_name((peri_dtype)t->dtype));
  if (on && t->storage->packed)
    return peri__fail(t->ctx, PERI_EDTYPE, "a packed weight has no gradient");
  t->flags = (uint8_t)(on ? t->flags | PERI_T_REQUIRES_GRAD : t->flags & ~PERI_T_REQUIRES_GRAD);
  return PERI_OK;
}

bool peri_requires_grad (const peri_tensor *t) { return t && peri__tracked(t); }
bool peri_is_leaf (const peri_tensor *t) {
  return t && (t->node == NULL || !peri__is_float(t->dtype));
}
peri_tensor *peri_grad (const peri_tensor *t) { return t ? t->grad : NULL; }

peri_status peri_set_grad (peri_tensor *t, peri_tensor *grad) {
  char a[128], b[128];
  if (!peri__alive(t)) return PERI_EINVAL;
  if (grad) TRY(peri__belongs(t->ctx, grad, "grad"));
  if (grad == t) return peri__fail(t->ctx, PERI_EINVAL, "a tensor cannot be its own gradient");
  if (grad && (!peri__is_float(t->dtype) || t->storage->packed))
    return peri__fail(t->ctx, PERI_EDTYPE, "a %s%s tensor has no gradient",
                      t->storage->packed ? "packed " : "", peri_dtype_name((peri_dtype)t->dtype));
  if (grad &&
      (grad->ndim != t->ndim || memcmp(grad->shape, t->shape, sizeof *t->shape * t->ndim) != 0))
    return peri__fail(t->ctx, PERI_ESHAPE, "a gradient of shape %s for a tensor of shape %s",
                      peri__shape_text(grad, a, sizeof a), peri__shape_text(t, b, sizeof b));
  if (grad && (grad->dtype != t->dtype || grad->storage->packed))
    return peri__fail(t->ctx, PERI_EDTYPE, "a gradient of dtype %s for a tensor of dtype %s",
                      peri_dtype_name((peri_dtype)grad->dtype),
                      peri_dtype_name((peri_dtype)t->dtype));
  peri_retain(grad);
  peri_release(t->grad);
  t->grad = grad;
  return PERI_OK;
}
