/*
** inplace.c - writing into tensors that exist: what every op that writes in place must refuse, where
** its inputs must be copied first, and the in-place twins (name_) of elementwise ops.
**
** The rules, for every op and every tensor that its descriptor says it writes:
** - its memory is not shared read-only with other contexts (core/share.c);
** - no two of its elements, nor elements of two written tensors, share memory (expanded views);
** - an input that is read through another view of written memory is read from a copy;
** - while gradients are recorded, nothing is written into a tensor of a graph, and no tensor that
**   takes part in a graph is a source: the write is not recorded, its gradient would be lost.
** docs/design/tape.md says why the last one is a refusal.
*/
#include "op/inplace.h"

#include <stdio.h>
#include <string.h>

#include "autograd/tape.h"

enum { MAX_IN = 4 }; /* inputs of an elementwise op */

/* ---- shared memory ---- */

static int64_t magnitude (int64_t stride) { return stride < 0 ? -stride : stride; }

/* Dims of more than one element by ascending stride. */
static int by_stride (const peri_tensor *t, int order[PERI_MAX_DIMS]) {
  int n = 0;
  for (int i = 0; i < t->ndim; i++) {
    if (t->shape[i] < 2) continue;
    int at = n++;
    for (; at > 0 && magnitude(t->stride[order[at - 1]]) > magnitude(t->stride[i]); at--)
      order[at] = order[at - 1];
    order[at] = i;
  }
  return n;
}

/* May two elements of t lie at one address? False for every view that Perilune makes but expanded
** ones: each stride steps over all that the smaller ones span. */
static bool folded (const peri_tensor *t) {
  int order[PERI_MAX_DIMS];
  int64_t span = 0;
  if (t->numel < 2 || peri__dense(t)) return false;
  int n = by_stride(t, order);
  for (int k = 0; k < n; k++) {
    int64_t step = magnitude(t->stride[order[k]]);
    if (step <= span) return true;
    span += step * (t->shape[order[k]] - 1);
  }
  return false;
}

static bool same_view (const peri_tensor *a, const peri_tensor *b) {
  return a->data == b->data && a->dtype == b->dtype && a->ndim == b->ndim &&
         memcmp(a->shape, b->shape, sizeof *a->shape * a->ndim) == 0 &&
         memcmp(a->stride, b->stride, sizeof *a->stride * a->ndim) == 0;
}

static void extent (const peri_tensor *t, const char **low, const char **high) {
  *low = *high = t->data;
  for (int i = 0; i < t->ndim; i++) {
    int64_t span = (t->shape[i] - 1) * t->stride[i] * (int64_t)peri__size(t);
    *(span < 0 ? low : high) += span;
  }
  *high += peri__size(t);
}

/* Do two views of t's shape and strides, this far apart, have an element in common? Each stride is
** larger than what the smaller ones span, so only two first steps can lead there. */
static bool reaches (const peri_tensor *t, const int *order, int n, int64_t distance) {
  if (n == 0) return distance == 0;
  int i = order[n - 1];
  int64_t step = magnitude(t->stride[i]), k = distance / step;
  for (int64_t m = k - 1; m <= k + 1; m++) {
    int64_t rest = distance - m * step;
    if (magnitude(m) < t->shape[i] && magnitude(rest) < step && reaches(t, order, n - 1, rest))
      return true;
  }
  return false;
}

/* May a and b, none of them folded, have an element in common? */
static bool meet (const peri_tensor *a, const peri_tensor *b) {
  const char *a0, *a1, *b0, *b1;
  int order[PERI_MAX_DIMS];
  if (a->numel == 0 || b->numel == 0) return false;
  extent(a, &a0, &a1);
  extent(b, &b0, &b1);
  if (a1 <= b0 || b1 <= a0) return false;
  int64_t size = (int64_t)peri__size(a), bytes = (const char *)b->data - (const char *)a->data;
  bool alike = a->dtype == b->dtype && a->ndim == b->ndim && bytes % size == 0 &&
               memcmp(a->shape, b->shape, sizeof *a->shape * a->ndim) == 0 &&
               memcmp(a->stride, b->stride, sizeof *a->stride * a->ndim) == 0;
  return !alike || reaches(a, order, by_stride(a, order), bytes / size);
}

peri_status peri__check_target (peri_ctx *ctx, const peri_tensor *t, const char *name) {
  if (t->storage->readonly)
    return peri__fail(ctx, PERI_EINVAL,
                      "%s, which is written, is shared read-only: write into a clone, or share it "
                      "for racing writes from the start",
                      name);
  if (!folded(t)) return PERI_OK;
  for (int i = 0; i < t->ndim; i++)
    if (t->stride[i] == 0 && t->shape[i] > 1)
      return peri__fail(ctx, PERI_EINVAL,
                        "dim %s of %s, which is written, is broadcast: :contiguous() first",
                        peri__nth(ctx, i), name);
  return peri__fail(ctx, PERI_EINVAL,
                    "elements of %s, which is written, may share memory: :contiguous() first",
                    name);
}

/* ---- gradients that would be lost ---- */

static peri_status refuse_target (peri_ctx *ctx, const char *name) {
  return peri__fail(ctx, PERI_EINVAL,
                    "writes in place into a tensor that takes part in a graph (%s): use no_grad or "
                    "detach",
                    name);
}

static peri_status refuse_source (peri_ctx *ctx, const char *name, const char *instead) {
  return peri__fail(ctx, PERI_EINVAL,
                    "%s takes part in a graph, and what is written in place is not recorded: its "
                    "gradient would be lost; %s",
                    name, instead);
}

/* ---- ops that write their inputs ---- */

/* Run fn for every input with its parameter. */
#define EACH_INPUT(c, sig, p, i)                            \
  for (int p = 0, i = 0, end_ = 0; p < (sig)->ntensor; p++) \
    for (end_ += (sig)->p[p].kind == PERI_K_TENSORS ? (c)->list[0].count : 1; i < end_; i++)

static bool writes (const peri_call *c, int p) { return c->op->writes >> p & 1; }

static peri_status check_graph (const peri_call *c, const peri_sig *sig) {
  bool floats = false;
  EACH_INPUT(c, sig, p, i) {
    const peri_tensor *t = c->in[i];
    bool list = sig->p[p].kind == PERI_K_TENSORS;
    if (!t || !writes(c, p)) continue;
    floats = floats || peri__is_float(t->dtype);
    /* the steps of optimizers take leaves: they are meant to change them */
    if (peri__tracked(t) && (t->node || !list)) return refuse_target(c->ctx, sig->p[p].name);
  }
  EACH_INPUT(c, sig, p, i)
  if (c->in[i] && floats && !writes(c, p) && peri__tracked(c->in[i]))
    return refuse_source(c->ctx, sig->p[p].name, "use no_grad or detach");
  return PERI_OK;
}

/* Written input i and the written ones before it. */
static peri_status check_earlier (const peri_call *c, const peri_sig *sig, int of, int i) {
  const peri_tensor *t = c->in[i];
  EACH_INPUT(c, sig, p, j)
  if (j < i && c->in[j] && writes(c, p) && c->in[j]->storage == t->storage && meet(c->in[j], t))
    return peri__fail(c->ctx, PERI_EINVAL,
                      "%s and %s share memory, and both are written (inputs %s and %s)",
                      sig->p[p].name, sig->p[of].name, peri__nth(c->ctx, j), peri__nth(c->ctx, i));
  return PERI_OK;
}

/* Two written tensors in one storage are compared; storages are marked to find them fast. */
static peri_status check_shared (const peri_call *c, const peri_sig *sig, bool *collides) {
  uint32_t stamp = ++c->ctx->stamp;
  bool twice = false;
  EACH_INPUT(c, sig, p, i) {
    if (!c->in[i] || !writes(c, p)) continue;
    TRY(peri__check_target(c->ctx, c->in[i], sig->p[p].name));
    twice = twice || c->in[i]->storage->stamp == stamp;
    c->in[i]->storage->stamp = stamp;
  }
  if (twice) EACH_INPUT(c, sig, p, i)
  if (c->in[i] && writes(c, p)) TRY(check_earlier(c, sig, p, i));
  *collides = false;
  EACH_INPUT(c, sig, p, i)
  if (c->in[i] && !writes(c, p) && c->in[i]->storage->stamp == stamp) *collides = true;
  return PERI_OK;
}

peri_status peri__check_writes (peri_call *c, bool *collides) {
  const peri_sig *sig = c->sig;
  if (c->ctx->grad_enabled) TRY(check_graph(c, sig));
  return check_shared(c, sig, collides);
}

/* Must input i, which is read, be copied because another view of its memory is written? */
static bool collision (const peri_call *c, const peri_sig *sig, int i) {
  bool other = false;
  EACH_INPUT(c, sig, p, j)
  if (c->in[j] && writes(c, p) && c->in[j]->storage == c->in[i]->storage)
    other = other || !same_view(c->in[j], c->in[i]);
  return other;
}

peri_status peri__without_collisions (peri_call *c, peri_status (*fn)(peri_call *c)) {
  const peri_sig *sig = c->sig;
  peri_tensor **given = c->in;
  peri_status s = PERI_OK;
  bool was = peri_set_grad_enabled(c->ctx, false);
  peri_tensor **in = peri__block_get(c->ctx, (size_t)c->nin * sizeof *in);
  if (!in) s = peri__fail(c->ctx, PERI_ENOMEM, "out of memory for %d inputs", c->nin);
  for (int i = 0; in && i < c->nin; i++) in[i] = peri_retain(given[i]);
  if (in) EACH_INPUT(c, sig, p, i) {
      if (s != PERI_OK || !given[i] || writes(c, p) || !collision(c, sig, i)) continue;
      peri_tensor *copy = NULL;
      s = peri__apply(c->ctx, &peri__op_clone, 1, &given[i], NULL, &copy);
      if (s != PERI_OK) continue;
      peri_release(in[i]);
      in[i] = copy;
    }
  peri_set_grad_enabled(c->ctx, was);
  c->in = in;
  if (s == PERI_OK) s = fn(c);
  c->in = given;
  for (int i = 0; in && i < c->nin; i++) peri_release(in[i]);
  peri__block_put(c->ctx, in);
  return s;
}

void peri__wrote (const peri_call *c) {
  const peri_sig *sig = c->sig;
  EACH_INPUT(c, sig, p, i)
  if (c->in[i] && writes(c, p)) c->in[i]->storage->version++;
}

/* ---- name_, the twins of elementwise ops ---- */

/* Shape and dtype of the result are those of x, or a message. Leaves x as output 0. */
static peri_status take_place (peri_call *c, peri_tensor *x) {
  char a[128], b[128];
  c->ctx->dry = true;
  peri_status s = c->op->infer(c);
  c->ctx->dry = false;
  if (s != PERI_OK) return s;
  if (c->out[0]->ndim != x->ndim ||
      memcmp(c->out[0]->shape, x->shape, sizeof *x->shape * x->ndim) != 0)
    return peri__fail(c->ctx, PERI_ESHAPE, "the result has shape %s, the tensor written %s",
                      peri__shape_text(c->out[0], a, sizeof a), peri__shape_text(x, b, sizeof b));
  if (c->out[0]->dtype != x->dtype)
    return peri__fail(c->ctx, PERI_EDTYPE, "the result is %s, the tensor written %s",
                      peri_dtype_name((peri_dtype)c->out[0]->dtype),
                      peri_dtype_name((peri_dtype)x->dtype));
  peri_release(c->out[0]);
  c->out[0] = peri_retain(x);
  return PERI_OK;
}

static peri_status check_twin (const peri_call *c) {
  const peri_sig *sig = c->sig;
  char instead[96];
  TRY(peri__check_target(c->ctx, c->in[0], sig->p[0].name));
  if (!c->ctx->grad_enabled) return PERI_OK;
  if (c->in[0]->node || peri__tracked(c->in[0])) return refuse_target(c->ctx, sig->p[0].name);
  for (int i = 1; i < c->nin && c->op->vjp; i++) {
    if (!c->in[i] || !peri__tracked(c->in[i])) continue;
    snprintf(instead, sizeof instead, "use %s, which makes a new tensor, or no_grad or detach",
             c->op->name);
    return refuse_source(c->ctx, sig->p[i].name, instead);
  }
  return PERI_OK;
}

peri_status peri__run_twin (peri_ctx *ctx, const peri_op *op, const peri_sig *sig, int nin,
                            peri_tensor *const *in, const peri_attr *attr) {
  peri_tensor *src[MAX_IN] = { NULL };
  peri_call c = {
    .ctx = ctx, .op = op, .sig = sig, .nin = nin, .in = (peri_tensor **)in, .attr = attr
  };
  if (!(op->flags & PERI_OP_ELEMENTWISE) || nin < 1 || nin > MAX_IN)
    return peri__fail(ctx, PERI_ENOSUP, "has no in-place form");
  if (peri__stopped(ctx))
    return peri__fail(ctx, PERI_EINTR, "interrupted"); /* before anything is written */
  TRY(peri__check_inputs(&c));
  TRY(check_twin(&c));
  peri_tensor *x = in[0];
  c.in = src;
  peri_status s = PERI_OK;
  for (int i = 0; i < nin && s == PERI_OK; i++) /* read another view of x's memory from a copy */
    if (i > 0 && in[i] && in[i]->storage == x->storage && !same_view(in[i], x)) {
      bool was = peri_set_grad_enabled(ctx, false);
      s = peri__apply(ctx, &peri__op_clone, 1, &in[i], NULL, &src[i]);
      peri_set_grad_enabled(ctx, was);
    } else
      src[i] = peri_retain(in[i]);
  if (s == PERI_OK) s = take_place(&c, x);
  if (s == PERI_OK) {
    s = peri__run_kernel(&c);
    if (s == PERI_OK || s == PERI_EINTR) x->storage->version++;
  }
  for (int k = 0; k < PERI_MAX_OUT; k++) peri_release(c.out[k]);
  for (int i = 0; i < nin; i++) peri_release(src[i]);
  return s;
}

peri_status peri__apply_inplace (peri_ctx *ctx, const peri_op *op, int nin, peri_tensor *const *in,
                                 const peri_attr *attr) {
  return peri__run_twin(ctx, op, peri__sig(op), nin, in, attr);
}
