/*
** backward.c - the reverse pass: walk the tape backwards from the root, let every node with a
** pending gradient turn it into gradients of its inputs, undo broadcasting, add up. Leaves collect
** aside (pending) and are committed at the end, so a failed pass changes no gradient.
*/
#include <string.h>

#include "autograd/tape.h"

typedef struct leaf_of {
  peri_tensor *t; /* held, with a pending gradient */
  bool whole;     /* which holds t's former gradient already */
} leaf_of;

typedef struct pass {
  peri_ctx *ctx;
  bool create_graph, retain, wanting; /* wanting: peri_gradients, only for wrt[] */
  bool chain;
  int nwrt;
  peri_tensor *const *wrt;
  const bool
      *onward; /* of a segment: those of wrt[] whose gradients are chains; NULL: chain says */
  peri_tensor **found; /* gradients of wrt[], held */
  leaf_of *leaf;
  int nleaf, capleaf;
} pass;

bool peri__owned (const peri_tensor *t) {
  return t->refs == 1 && t->storage->refs == 1 && !t->storage->release && !t->storage->common &&
         peri__dense(t);
}

/* May t's memory be written, because only the one reference that the caller has sees it? */
static bool exclusive (const peri_tensor *t) { return peri__owned(t) && !t->node; }

peri_status peri__own (peri_tensor **t) {
  peri_tensor *copy = NULL;
  if (!*t || (peri__owned(*t) && (!(*t)->node || (*t)->ctx->grad_enabled))) return PERI_OK;
  TRY(peri__apply((*t)->ctx, &peri__op_clone, 1, t, NULL, &copy));
  peri_release(*t);
  *t = copy;
  return PERI_OK;
}

/* *acc += g, or *acc = g; g borrowed. */
static peri_status accumulate (pass *p, peri_tensor **acc, peri_tensor *g) {
  peri_tensor *in[2] = { *acc, g }, *sum = NULL;
  if (!*acc) {
    *acc = peri_retain(g);
    return PERI_OK;
  }
  if (!p->create_graph && exclusive(*acc) && (*acc)->dtype == g->dtype)
    return peri__apply_inplace(p->ctx, &peri__op_add, 2, in, NULL);
  TRY(peri__apply(p->ctx, &peri__op_add, 2, in, NULL, &sum));
  peri_release(*acc);
  *acc = sum;
  return PERI_OK;
}

/* Is the gradient of leaf t a chain? */
static bool goes_on (const pass *p, const peri_tensor *t) {
  for (int i = 0; p->onward && i < p->nwrt; i++)
    if (p->wrt[i] == t) return p->onward[i];
  return p->chain;
}

static peri_status remember_leaf (pass *p, peri_tensor *t, bool whole) {
  if (t->pending) return PERI_OK;
  if (p->nleaf == p->capleaf) {
    int cap = p->capleaf ? p->capleaf * 2 : 64;
    leaf_of *list = peri__realloc(p->ctx, p->leaf, (size_t)p->capleaf * sizeof *list,
                                  (size_t)cap * sizeof *list);
    if (!list) return peri__fail(p->ctx, PERI_ENOMEM, "out of memory for the list of leaves");
    p->leaf = list;
    p->capleaf = cap;
  }
  p->leaf[p->nleaf++] = (leaf_of){ peri_retain(t), whole };
  return PERI_OK;
}

/* Give g to t: to its node, or to the leaf itself. A node with a pending gradient pins its output.
** whole: g goes on from the former gradient of a leaf, and from what is pending on it. */
static peri_status deliver (pass *p, peri_tensor *t, peri_tensor *g, bool whole) {
  if (t->node) {
    peri_tensor **slot = &t->node->g[t->node_out];
    if (!*slot) peri_retain(t);
    return accumulate(p, slot, g);
  }
  peri_tensor *sum = NULL;
  if (!whole && !t->pending && t->grad && goes_on(p, t)) { /* the first of what goes on */
    TRY(peri__apply(p->ctx, &peri__op_add, 2, ((peri_tensor *[]){ t->grad, g }), NULL, &sum));
    g = sum, whole = true;
  }
  peri_status s = remember_leaf(p, t, whole);
  if (s == PERI_OK && whole) {
    peri_tensor *before = t->pending;
    t->pending = peri_retain(g);
    peri_release(before);
  } else if (s == PERI_OK)
    s = accumulate(p, &t->pending, g);
  peri_release(sum);
  return s;
}

/* Sum g down to the shape of x and cast it to x's dtype: no vjp mentions either. */
static peri_tensor *fit (peri_build *b, peri_tensor *g, const peri_tensor *x) {
  int64_t dims[PERI_MAX_DIMS];
  int n = 0, lead = g->ndim - x->ndim;
  for (int i = 0; i < g->ndim; i++)
    if (i < lead || (x->shape[i - lead] == 1 && g->shape[i] != 1)) dims[n++] = i;
  if (n) g = BA(b, sum, ATTR(A_DIMS(dims, n), A_INT(1)), g);
  if (g && lead > 0) g = BA(b, reshape, ATTR(A_DIMS(x->shape, x->ndim)), g);
  if (g && g->dtype != x->dtype) g = BA(b, to, ATTR(A_INT(x->dtype)), g);
  return g;
}

static bool wanted (const pass *p, const peri_tensor *t) {
  if (!t || !peri__tracked(t)) return false;
  return !p->wanting || (t->flags & PERI_T_WRT) || (t->node && t->node->marked);
}

/* Does the vjp of n read the values of input i? Views read shapes alone. */
static bool reads (const peri_node *n, int i) {
  if (!n->op) return true;
  if (n->op->flags & PERI_OP_VIEW) return false;
  if (!n->op->unread) return true;
  return !(n->op->unread >> (peri__sig(n->op)->nlist ? 0 : i) & 1);
}

static peri_status check_versions (const peri_node *n) {
  for (int i = 0; i < n->nin; i++)
    if (n->in[i] && reads(n, i) && n->in[i]->storage->version != n->version[i])
      return peri__fail(
          n->in[i]->ctx, PERI_EINVAL,
          "input %s of %s was changed in place after it was used: its gradient is lost",
          peri__nth(n->in[i]->ctx, i), n->name);
  return PERI_OK;
}

peri_tensor *peri__saved (peri_vjp *v, int k) {
  peri_ctx *ctx = v->b.ctx;
  if (v->b.status != PERI_OK) return NULL;
  if (v->like[k]->storage->version == v->version[k]) return v->like[k];
  peri__build_fail(&v->b,
                   peri__fail(ctx, PERI_EINVAL,
                              "output %s of %s was changed in place after it was computed, and the "
                              "gradient needs what it was: change a clone",
                              peri__nth(ctx, k), v->c->op->name));
  return NULL;
}

/* A host's vjp, or that of a segment: its status is one of ours with a message, its gradients are live tensors of the
** context, or that is said. */
static peri_status run_custom (pass *p, peri_node *n, peri_vjp *v, peri_tensor **gin) {
  peri__forget_message(p->ctx);
  peri_status s = n->segment ? n->segment(n->ud, v, n->nout, n->g, n->nin, gin)
                             : n->vjp(n->ud, p->ctx, n->nout, n->g, n->nin, gin);
  if ((int)s < PERI_OK || s > PERI_EHOST)
    s = peri__fail(p->ctx, PERI_EHOST, "the vjp of %s failed with status %d%s%s", n->name, (int)s,
                   p->ctx->message[0] ? ": " : "", p->ctx->message);
  if (s != PERI_OK && !p->ctx->message[0])
    peri__fail(p->ctx, s, "the vjp of %s failed (%s) without a message", n->name,
               peri_status_name(s));
  for (int i = 0; i < n->nin; i++) {
    if (gin[i] && gin[i]->ctx != p->ctx) {
      if (s == PERI_OK)
        s = peri__fail(p->ctx, PERI_EINVAL, "the vjp of %s: gradient %s %s", n->name,
                       peri__nth(p->ctx, i),
                       gin[i]->ctx ? "is a tensor of another context" : "was released");
      gin[i] = NULL; /* nobody here can release it */
    }
    gin[i] = peri__build_own(&v->b, gin[i]);
  }
  return s;
}

static peri_status run_vjp (pass *p, peri_node *n, peri_vjp *v, peri_tensor **gin,
                            const bool *need) {
  peri_call c = { .ctx = p->ctx, .op = n->op, .nin = n->nin, .in = n->in, .attr = n->attr };
  v->c = &c;
  v->need = need;
  v->gin = gin;
  if (!n->op) return run_custom(p, n, v, gin);
  c.sig = peri__sig(n->op);
  if (p->create_graph && (n->op->flags & PERI_OP_NO_GRAD2))
    return peri__fail(p->ctx, PERI_ENOSUP, "%s has no second derivative", n->name);
  memcpy(c.list, n->list, sizeof c.list);
  v->like = n->out;
  v->version = n->version + n->nin;
  v->g = n->g;
  n->op->vjp(v);
  return v->b.status;
}

/* A vjp at work, and what it asked of the pass. */
typedef struct turn {
  peri_vjp v; /* first: peri__chain gets it */
  const pass *p;
  bool *chained; /* for each input: its gradient goes on from the former one */
} turn;

/* Can the gradient of input i be a chain? Its vjp must see to it. */
static bool can_chain (const turn *w, int i) {
  const peri_tensor *t = w->v.c->in[i];
  if (!w->v.need[i] || t->node || w->v.b.status != PERI_OK ||
      (t->dtype != PERI_F32 && t->dtype != PERI_F64) || !goes_on(w->p, t))
    return false;
  for (int k = 0; k < w->v.c->nin; k++)
    if (k != i && w->v.c->in[k] == t) return false;
  return true;
}

bool peri__chain (peri_vjp *v, int i, peri_tensor **out) {
  turn *w = (turn *)v;
  peri_tensor *t = v->c->in[i], *from = NULL;
  *out = NULL;
  if (!can_chain(w, i) || t->pending) return false;
  if (t->grad)
    peri__build_fail(&v->b, peri__apply(v->b.ctx, &peri__op_clone, 1, &t->grad, NULL, &from));
  else if (peri__new_like(t, (peri_dtype)t->dtype, &from) == PERI_OK)
    memset(from->data, 0, peri_nbytes(from));
  else
    peri__build_fail(&v->b, PERI_ENOMEM);
  *out = peri__build_own(&v->b, from);
  w->chained[i] = true;
  return true;
}

#define MANY 16

static peri_status step (pass *p, peri_node *n) {
  peri_ctx *ctx = p->ctx;
  peri_tensor *few[MANY], **gin = few;
  bool flags[2 * MANY], *need = flags;
  size_t bytes = (size_t)n->nin * (sizeof *gin + 2 * sizeof *need);
  turn w = { .p = p };
  TRY(check_versions(n));
  if (n->nin > MANY) {
    gin = peri__block_get(ctx, bytes);
    if (!gin) return peri__fail(ctx, PERI_ENOMEM, "out of memory for %d gradients", n->nin);
    need = (bool *)(gin + n->nin);
  }
  w.chained = need + n->nin;
  for (int i = 0; i < n->nin; i++) {
    gin[i] = NULL;
    w.chained[i] = false;
    need[i] = wanted(p, n->in[i]);
  }
  peri__build_begin(&w.v.b, ctx);
  peri_status s = run_vjp(p, n, &w.v, gin, need);
  for (int i = 0; i < n->nin && s == PERI_OK; i++) {
    if (!gin[i] || !need[i]) continue;
    peri_tensor *g = fit(&w.v.b, gin[i], n->in[i]);
    s = w.v.b.status;
    if (s == PERI_OK && g->numel != n->in[i]->numel)
      s = peri__fail(ctx, PERI_ESHAPE, "the vjp of %s gave %lld values for input %s of %lld",
                     n->name, (long long)g->numel, peri__nth(ctx, i), (long long)n->in[i]->numel);
    if (s == PERI_OK) s = deliver(p, n->in[i], g, w.chained[i]);
  }
  peri__build_end(&w.v.b);
  if (n->nin > MANY) peri__block_put(ctx, gin);
  return s;
}

static bool has_gradient (const peri_node *n) {
  for (int k = 0; k < n->nout; k++)
    if (n->g[k]) return true;
  return false;
}

/* Drop the pending gradients of n and the pins they put on its outputs; n may die by that. */
static void unpin (peri_node *n) {
  int nout = n->nout;
  for (int k = 0; k < nout; k++) {
    peri_tensor *g = n->g[k], *t = n->out[k];
    n->g[k] = NULL;
    if (!g) continue;
    peri_release(g);
    bool last = true;
    for (int j = k + 1; j < nout; j++) last = last && !n->g[j];
    peri_release(t); /* after the last one n may be gone */
    if (last) return;
  }
}

/* A wanted tensor that a node made has its whole gradient when the walk reaches that node. */
static void capture (pass *p, peri_node *n) {
  for (int k = 0; k < n->nout; k++) {
    if (!n->g[k] || !(n->out[k]->flags & PERI_T_WRT)) continue;
    for (int w = 0; w < p->nwrt; w++)
      if (p->wrt[w] == n->out[k] && !p->found[w]) p->found[w] = peri_retain(n->g[k]);
  }
}

/* The node before n that a pass may visit. */
static peri_node *earlier (const peri_node *n) {
  return n->prev && !n->barrier && !n->prev->barrier ? n->prev : NULL;
}

static void mark_paths (pass *p) {
  peri_node *first = p->ctx->tape_last;
  while (first && earlier(first)) first = first->prev;
  for (peri_node *n = first; n; n = n->next) {
    n->marked = false;
    for (int i = 0; i < n->nin && !n->marked; i++)
      n->marked = n->in[i] &&
                  ((n->in[i]->flags & PERI_T_WRT) || (n->in[i]->node && n->in[i]->node->marked));
  }
}

static peri_status walk (pass *p, peri_tensor *root) {
  peri_status s = PERI_OK;
  peri_node *n = root->node;
  while (n && s == PERI_OK) {
    capture(p, n);
    if (!p->wanting || n->marked) s = step(p, n);
    if (s != PERI_OK) break;
    peri_node *before = earlier(n);
    while (before && !has_gradient(before))
      before = earlier(before); /* pinned: survives what follows */
    if (!p->retain) {
      peri_tensor *hold = NULL; /* dropping must not free outputs under our feet */
      for (int k = 0; k < n->nout && !hold; k++)
        if (n->g[k]) hold = peri_retain(n->out[k]);
      unpin(n);
      peri__node_drop(n, true);
      peri_release(hold);
    } else
      unpin(n);
    n = before;
  }
  if (s != PERI_OK) /* forget what is pending; earlier nodes may die one by one */
    for (n = p->ctx->tape_last; n;) {
      if (has_gradient(n)) {
        unpin(n);
        n = p->ctx->tape_last;
      } else
        n = earlier(n);
    }
  return s;
}

/* New values of every leaf's grad are made first, then swapped in, so a failure changes none. */
static peri_status commit (pass *p) {
  for (int i = 0; i < p->nleaf; i++) {
    peri_tensor *t = p->leaf[i].t;
    TRY(peri__own(&t->pending)); /* not shared with the graph, the seed or another leaf */
    if (t->grad && !p->leaf[i].whole) {
      peri_tensor *in[2] = { t->pending, t->grad };
      TRY(peri__apply_inplace(p->ctx, &peri__op_add, 2, in, NULL));
    }
  }
  for (int i = 0; i < p->nleaf; i++) {
    peri_tensor *t = p->leaf[i].t;
    peri_release(t->grad);
    t->grad = t->pending;
    t->pending = NULL;
  }
  return PERI_OK;
}

static peri_status check_root (peri_ctx *ctx, peri_tensor *root, peri_tensor *seed) {
  char a[128], b[128];
  if (!peri__tracked(root)) {
    if (root->flags & PERI_T_FREED)
      return peri__fail(ctx, PERI_EINVAL,
                        "the graph was freed by an earlier backward pass: use retain_graph");
    return peri__fail(ctx, PERI_EINVAL,
                      "the tensor does not depend on anything that requires a gradient%s",
                      ctx->grad_enabled ? "" : "; recording is off here (no_grad)");
  }
  if (!seed && root->numel != 1)
    return peri__fail(
        ctx, PERI_ESHAPE,
        "a tensor of shape %s needs a seed gradient: only one element has the default 1",
        peri__shape_text(root, a, sizeof a));
  if (seed && (seed->ndim != root->ndim ||
               memcmp(seed->shape, root->shape, sizeof *root->shape * root->ndim) != 0))
    return peri__fail(ctx, PERI_ESHAPE, "the seed has shape %s, the tensor %s",
                      peri__shape_text(seed, a, sizeof a), peri__shape_text(root, b, sizeof b));
  if (ctx->in_backward && !ctx->grad_enabled)
    return peri__fail(ctx, PERI_EINVAL,
                      "a backward pass is running: enable gradients for one inside it");
  return PERI_OK;
}

static peri_status run (pass *p, peri_tensor *root, peri_tensor *seed) {
  peri_ctx *ctx = p->ctx;
  peri_tensor *one = NULL;
  bool was = ctx->grad_enabled, nested = ctx->in_backward;
  ctx->grad_enabled = p->create_graph;
  ctx->in_backward = true;
  peri_status s = PERI_OK;
  if (seed && seed->dtype != root->dtype)
    s = peri__apply(ctx, &peri__op_to, 1, &seed, ATTR(A_INT(root->dtype)), &one);
  else if (seed)
    one = peri_retain(seed);
  else if ((s = peri__new_like(root, (peri_dtype)root->dtype, &one)) == PERI_OK) {
    if (root->dtype == PERI_F64)
      *(double *)one->data = 1;
    else if (root->dtype == PERI_F32)
      *(float *)one->data = 1;
    else
      *(uint16_t *)one->data = root->dtype == PERI_F16 ? peri__f32_to_f16(1) : peri__f32_to_bf16(1);
  }
  if (s == PERI_OK) s = deliver(p, root, one, false);
  peri_release(one);
  if (s == PERI_OK) s = walk(p, root);
  if (s == PERI_OK && !p->wanting) s = commit(p);
  ctx->grad_enabled = was;
  ctx->in_backward = nested;
  return s;
}

static void finish (pass *p) {
  for (int i = 0; i < p->nleaf; i++) {
    peri_tensor *pending = p->leaf[i].t->pending;
    p->leaf[i].t->pending = NULL;
    peri_release(pending);
    peri_release(p->leaf[i].t);
  }
  peri__free(p->ctx, p->leaf, (size_t)p->capleaf * sizeof *p->leaf);
}

peri_status peri_backward (peri_ctx *ctx, peri_tensor *root, peri_tensor *seed, bool retain_graph) {
  return peri__backward(ctx, root, seed, retain_graph, false);
}

peri_status peri__backward (peri_ctx *ctx, peri_tensor *root, peri_tensor *seed, bool retain_graph,
                            bool chain) {
  pass p = { .ctx = ctx, .retain = retain_graph, .chain = chain };
  NEED(ctx, ctx);
  TRY(peri__belongs(ctx, root, "root"));
  if (seed) TRY(peri__belongs(ctx, seed, "seed"));
  TRY(check_root(ctx, root, seed));
  peri_retain(root);
  peri_status s = run(&p, root, seed);
  finish(&p);
  peri_release(root);
  return s;
}

static peri_status gradients (pass *p, peri_tensor *root, peri_tensor *seed) {
  TRY(check_root(p->ctx, root, seed));
  peri_retain(root);
  for (int i = 0; i < p->nwrt; i++) p->wrt[i]->flags |= PERI_T_WRT;
  mark_paths(p);
  peri_status s = run(p, root, seed);
  for (int i = 0; i < p->nwrt; i++) {
    p->wrt[i]->flags &= (uint8_t)~PERI_T_WRT;
    if (s == PERI_OK && !p->found[i] && p->wrt[i]->pending)
      p->found[i] = peri_retain(p->wrt[i]->pending);
  }
  finish(p);
  bool was = peri_set_grad_enabled(p->ctx, p->create_graph);
  for (int i = 0; i < p->nwrt && s == PERI_OK; i++) s = peri__own(&p->found[i]);
  peri_set_grad_enabled(p->ctx, was);
  peri_release(root);
  return s;
}

peri_status peri_gradients (peri_ctx *ctx, peri_tensor *root, peri_tensor *seed, int n,
                            peri_tensor *const *wrt, bool create_graph, peri_tensor **out) {
  pass p = {
    .ctx = ctx, .create_graph = create_graph, .retain = true, .wanting = true, .nwrt = n, .wrt = wrt
  };
  NEED(ctx, ctx);
  TRY(peri__belongs(ctx, root, "root"));
  if (seed) TRY(peri__belongs(ctx, seed, "seed"));
  if (n < 0) return peri__fail(ctx, PERI_EINVAL, "%d gradients wanted", n);
  if (n > 0) NEED(ctx, wrt);
  if (n > 0) NEED(ctx, out);
  for (int i = 0; i < n; i++) TRY(peri__belongs(ctx, wrt[i], "a tensor of wrt"));
  size_t bytes = (size_t)n * sizeof *p.found;
  p.found = peri__block_get(ctx, bytes);
  if (!p.found) return peri__fail(ctx, PERI_ENOMEM, "out of memory for %d gradients", n);
  memset(p.found, 0, bytes);
  peri_status s = gradients(&p, root, seed);
  for (int i = 0; i < n; i++)
    if (s == PERI_OK)
      out[i] = p.found[i];
    else
      peri_release(p.found[i]);
  peri__block_put(ctx, p.found);
  return s;
}

/* Whether what is pending on leaf t goes on from its former gradient. */
static bool holds_whole (const pass *p, const peri_tensor *t) {
  for (int i = 0; i < p->nleaf; i++)
    if (p->leaf[i].t == t) return p->leaf[i].whole;
  return false;
}

/* What the outer pass knows of a leaf of a segment. */
typedef struct aside {
  peri_tensor *pending, *grad;
  bool want;
} aside;

peri_status peri__segment_gradients (peri_vjp *v, peri_tensor *root, peri_tensor *const *wrt,
                                     peri_tensor **gin) {
  turn *w = (turn *)v;
  peri_ctx *ctx = v->b.ctx;
  int n = v->c->nin;
  size_t bytes = (size_t)n * (sizeof(aside) + sizeof *gin + sizeof(bool));
  aside *kept = (aside *)peri__block_get(ctx, bytes);
  if (!kept) return peri__fail(ctx, PERI_ENOMEM, "out of memory for %d gradients", n);
  peri_tensor **found = (peri_tensor **)(kept + n);
  bool *onward = (bool *)(found + n);
  for (int i = 0; i < n; i++) {
    peri_tensor *t = wrt[i];
    found[i] = NULL;
    kept[i] = (aside){ t->pending, t->grad, (t->flags & PERI_T_WRT) != 0 };
    onward[i] = t == v->c->in[i] && can_chain(w, i) && (!t->pending || holds_whole(w->p, t));
    if (onward[i] && t->pending) t->grad = t->pending;
    t->pending = NULL;
  }
  pass p = { .ctx = ctx,
             .retain = true,
             .wanting = true,
             .nwrt = n,
             .wrt = wrt,
             .onward = onward,
             .found = found };
  peri_status s = gradients(&p, root, NULL);
  for (int i = 0; i < n; i++) {
    peri_tensor *t = wrt[i];
    t->pending = kept[i].pending, t->grad = kept[i].grad;
    if (kept[i].want) t->flags |= PERI_T_WRT;
    w->chained[i] = s == PERI_OK && onward[i];
    if (s == PERI_OK)
      gin[i] = found[i];
    else
      peri_release(found[i]);
  }
  peri__block_put(ctx, kept);
  return s;
}
