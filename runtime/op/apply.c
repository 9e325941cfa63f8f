/*
** apply.c - the one way in which an op runs: casts its descriptor asks for, shape rule, dense
** copies, kernel, anomaly check, profile, record. Nothing here knows a single op.
*/
#include <math.h>
#include <string.h>

#include "autograd/tape.h"
#include "op/inplace.h"

#define MAX_IN_STACK 16

static void default_attrs (const peri_sig *sig, peri_attr *attr) {
  for (int i = 0; i < sig->nattr; i++) attr[i] = sig->p[sig->ntensor + i].def;
}

/* A list is given as a whole or, but for the first, left out as a whole. */
static peri_status check_list (const peri_call *c, const peri_param *p, int k) {
  int given = 0, gap = -1;
  for (int i = 0; i < c->list[k].count; i++) {
    if (c->in[c->list[k].start + i])
      given++;
    else if (gap < 0)
      gap = i;
  }
  if (gap < 0 || (given == 0 && k > 0)) return PERI_OK;
  return peri__fail(c->ctx, PERI_EINVAL, "%s %s is missing", p->name, peri__nth(c->ctx, gap));
}

/* in[] is laid out as the signature says; several lists share one length. */
static peri_status split_lists (peri_call *c, const peri_sig *sig) {
  int single = sig->ntensor - sig->nlist, each, at = 0, k = 0;
  if (sig->nlist > (int)(sizeof c->list / sizeof *c->list) || c->nin < single ||
      (c->nin - single) % sig->nlist != 0)
    return peri__fail(c->ctx, PERI_EINVAL, "%d tensors do not make %d lists of one length", c->nin,
                      sig->nlist);
  each = (c->nin - single) / sig->nlist;
  for (int i = 0; i < sig->ntensor; i++) {
    int n = sig->p[i].kind == PERI_K_TENSORS ? each : 1;
    if (sig->p[i].kind == PERI_K_TENSORS) {
      c->list[k].start = at;
      c->list[k].count = n;
      TRY(check_list(c, &sig->p[i], k++));
    } else if (!c->in[at] && sig->p[i].kind == PERI_K_TENSOR)
      return peri__fail(c->ctx, PERI_EINVAL, "%s is missing", sig->p[i].name);
    at += n;
  }
  return PERI_OK;
}

/* Quantised and packed weights go to the few ops that know them, and come from nowhere else. */
static peri_status refuse_weight (const peri_call *c, const peri_sig *sig, int i) {
  return peri__fail(c->ctx, PERI_EDTYPE,
                    "%s is a %s%s weight, which only products and look-ups take: "
                    ":to(\"f32\") first",
                    sig->nlist ? "an input" : sig->p[i].name,
                    c->in[i]->storage->packed ? "packed " : "",
                    peri_dtype_name((peri_dtype)c->in[i]->dtype));
}

peri_status peri__check_inputs (peri_call *c) {
  const peri_sig *sig = c->sig;
  bool weights = (c->op->flags & PERI_OP_WEIGHT) != 0;
  if (sig->nlist)
    TRY(split_lists(c, sig));
  else if (c->nin != sig->ntensor)
    return peri__fail(c->ctx, PERI_EINVAL, "%d tensors given, %d expected", c->nin, sig->ntensor);
  for (int i = 0; i < c->nin; i++) {
    const peri_tensor *t = c->in[i];
    if (!t && !sig->nlist && sig->p[i].kind == PERI_K_TENSOR)
      return peri__fail(c->ctx, PERI_EINVAL, "%s is missing", sig->p[i].name);
    if (t && !weights && peri__opaque(t)) return refuse_weight(c, sig, i);
  }
  return PERI_OK;
}

static void drop_outputs (peri_call *c) {
  for (int k = 0; k < PERI_MAX_OUT; k++) {
    peri_release(c->out[k]);
    c->out[k] = NULL;
  }
}

/* ---- anomaly mode ---- */

static bool nonfinite (peri_tensor *t) {
  if (!t || !peri__is_float(t->dtype)) return false;
  for (int64_t i = 0; i < t->numel; i++) {
    double v;
    if (peri_item(t, i, &v) == PERI_OK && !isfinite(v)) return true;
  }
  return false;
}

static peri_status check_anomaly (const peri_call *c) {
  bool bad = false;
  int shown = peri_op_outputs(c->op);
  for (int k = 0; k < shown; k++) bad |= nonfinite(c->out[k]);
  if (!bad) return PERI_OK;
  for (int i = 0; i < c->nin; i++)
    if (nonfinite(c->in[i])) return PERI_OK; /* not the first */
  return peri__fail(c->ctx, PERI_EINVAL, "anomaly: %s made a NaN or Inf from finite inputs%s",
                    c->op->name, c->ctx->in_backward ? " in the backward pass" : "");
}

/* ---- kernels ---- */

static void default_cost (const peri_call *c, double *flops, double *bytes) {
  for (int i = 0; i < c->nin; i++)
    if (c->in[i]) *bytes += (double)peri_nbytes(c->in[i]);
  for (int k = 0; k < c->op->nout; k++)
    if (c->out[k]) {
      *bytes += (double)peri_nbytes(c->out[k]);
      *flops += (double)c->out[k]->numel;
    }
}

peri_status peri__run_kernel (peri_call *k) {
  peri_ctx *ctx = k->ctx;
  double t0 = ctx->profile ? peri__now() : 0;
  peri_status s = k->op->cpu(k);
  if (s == PERI_OK && peri__stopped(ctx)) s = peri__fail(ctx, PERI_EINTR, "interrupted");
  if (ctx->profile) {
    double flops = 0, bytes = 0;
    if (k->op->cost)
      k->op->cost(k, &flops, &bytes);
    else
      default_cost(k, &flops, &bytes);
    peri__profile_add(ctx, k->op->name, peri__now() - t0, flops, bytes);
  }
  return s;
}

/* Run the kernel on dense copies where it does not walk strides itself. */
static peri_status run_dense (peri_call *c) {
  peri_tensor *stack[MAX_IN_STACK], **in = c->in;
  peri_call k = *c;
  bool copies = false;
  for (int i = 0; i < c->nin && !copies; i++) copies = c->in[i] && !peri__dense(c->in[i]);
  if (!copies) return peri__run_kernel(c);
  if (c->op->flags & PERI_OP_INPLACE)
    return peri__fail(c->ctx, PERI_EINVAL, "needs dense tensors: call :contiguous() first");
  size_t bytes = (size_t)c->nin * sizeof *in;
  if (c->nin > MAX_IN_STACK) {
    in = peri__block_get(c->ctx, bytes);
    if (!in) return peri__fail(c->ctx, PERI_ENOMEM, "out of memory for %d inputs", c->nin);
  } else
    in = stack;
  peri_status s = PERI_OK;
  int made = 0;
  for (; made < c->nin && s == PERI_OK; made++) {
    in[made] = NULL;
    if (c->in[made]) s = peri__contiguous(c->in[made], &in[made]);
  }
  k.in = in;
  if (s == PERI_OK) s = peri__run_kernel(&k);
  while (made > 0) peri_release(in[--made]);
  if (in != stack) peri__block_put(c->ctx, in);
  return s;
}

/* ---- composites and casts: recorded op by op ---- */

static peri_status apply_compose (peri_call *c, peri_tensor **out) {
  peri_build b;
  int n = peri_op_outputs(c->op);
  peri__build_begin(&b, c->ctx);
  c->op->compose(&b, c);
  for (int k = 0; k < n && b.status == PERI_OK; k++)
    if (!c->out[k])
      b.status =
          peri__fail(c->ctx, PERI_EINVAL, "composite without output %s", peri__nth(c->ctx, k));
  for (int k = 0; k < n && b.status == PERI_OK; k++) out[k] = peri_retain(c->out[k]);
  return peri__build_end(&b);
}

/* The dtype that the float inputs should have, or -1 when they may stay as they are. */
static int wanted_float (const peri_op *op, int nin, peri_tensor *const *in) {
  bool half = false, mixed = false;
  int d = -1;
  if (op->flags & PERI_OP_FLOAT) {
    peri_dtype p = peri__promote(nin, in);
    if (!peri__is_float(p)) p = PERI_F32;
    if ((op->flags & PERI_OP_UPCAST) && p < PERI_F32) p = PERI_F32;
    for (int i = 0; i < nin; i++) mixed |= in[i] && in[i]->dtype != p && !peri__opaque(in[i]);
    return mixed ? (int)p : -1;
  }
  for (int i = 0; i < nin; i++) {
    if (!in[i] || !peri__is_float(in[i]->dtype) || peri__opaque(in[i])) continue;
    half |= in[i]->dtype == PERI_F16 || in[i]->dtype == PERI_BF16;
    if (d < (int)in[i]->dtype) d = in[i]->dtype;
  }
  if (!half) return -1;
  return d < PERI_F32 ? PERI_F32 : d;
}

static peri_status apply_cast (peri_ctx *ctx, const peri_op *op, int nin, peri_tensor *const *in,
                               const peri_attr *attr, int want, peri_tensor **out) {
  peri_build b;
  peri_tensor *cast[MAX_IN_STACK], *made[PERI_MAX_OUT] = { NULL };
  int n = peri_op_outputs(op), first = nin > 0 && in[0] ? in[0]->dtype : PERI_F32;
  bool back = (op->flags & PERI_OP_UPCAST) && (first == PERI_F16 || first == PERI_BF16);
  if (nin > MAX_IN_STACK) return peri__fail(ctx, PERI_EDTYPE, "give all %d tensors one dtype", nin);
  peri__build_begin(&b, ctx);
  for (int i = 0; i < nin; i++) {
    cast[i] = in[i];
    if (!in[i] || in[i]->dtype == want || peri__opaque(in[i])) continue;
    if (peri__is_float(in[i]->dtype) || (op->flags & PERI_OP_FLOAT))
      cast[i] = BA(&b, to, ATTR(A_INT(want)), in[i]);
  }
  peri__build_all(&b, op, nin, cast, attr, made);
  for (int k = 0; k < n; k++)
    if (back && made[k] && peri__is_float(made[k]->dtype))
      made[k] = BA(&b, to, ATTR(A_INT(first)), made[k]);
  for (int k = 0; k < n && b.status == PERI_OK; k++) out[k] = peri_retain(made[k]);
  return peri__build_end(&b);
}

/* ---- the way in ---- */

/* Results without elements need no kernel, however large the inputs' other sizes are. */
static bool nothing_to_do (const peri_call *c) {
  bool empty = c->out[0] && c->out[0]->numel == 0 && !(c->op->flags & PERI_OP_INPLACE);
  for (int k = 1; k < c->op->nout && empty; k++) empty = c->out[k] && c->out[k]->numel == 0;
  return empty;
}

/* Shape rule and kernel. */
static peri_status run (peri_call *c) {
  const peri_op *op = c->op;
  peri_status s = op->infer ? op->infer(c) : PERI_OK;
  if (s == PERI_OK && op->nout > 0 && peri__is_quantised(c->out[0]->dtype) &&
      !(op->flags & PERI_OP_WEIGHT))
    s = peri__fail(c->ctx, PERI_EDTYPE, "cannot make %s: make f32, then :to(\"%s\")",
                   peri_dtype_name((peri_dtype)c->out[0]->dtype),
                   peri_dtype_name((peri_dtype)c->out[0]->dtype));
  if (s == PERI_OK && op->cpu && !nothing_to_do(c))
    s = op->flags & PERI_OP_STRIDED ? peri__run_kernel(c) : run_dense(c);
  return s;
}

static peri_status run_writing (peri_call *c) {
  bool collides;
  TRY(peri__check_writes(c, &collides));
  peri_status s = collides ? peri__without_collisions(c, run) : run(c);
  if (s == PERI_OK || s == PERI_EINTR) peri__wrote(c); /* half of it when interrupted */
  return s;
}

/* A loss whose targets move with it trains on something else: never without a word. */
static peri_status check_targets (const peri_call *c) {
  for (int i = 0; i < c->nin; i++)
    if ((c->op->targets >> i & 1) && c->in[i] && peri__tracked(c->in[i]))
      return peri__fail(c->ctx, PERI_EINVAL,
                        "%s takes part in a graph, and no gradient goes to it: detach it, or make "
                        "it under no_grad",
                        c->sig->p[i].name);
  return PERI_OK;
}

static peri_status apply (peri_ctx *ctx, const peri_op *op, const peri_sig *sig, int nin,
                          peri_tensor *const *in, const peri_attr *attr, peri_tensor **out) {
  peri_call c;
  c.ctx = ctx;
  c.op = op;
  c.sig = sig;
  c.nin = nin;
  c.in = (peri_tensor **)in;
  c.attr = attr;
  for (int k = 0; k < PERI_MAX_OUT; k++) c.out[k] = NULL;
  if (peri__stopped(ctx)) return peri__fail(ctx, PERI_EINTR, "interrupted");
  TRY(peri__check_inputs(&c));
  if (op->targets && ctx->grad_enabled) TRY(check_targets(&c));
  if (op->flags & (PERI_OP_FLOAT | PERI_OP_UPCAST)) {
    int want = wanted_float(op, nin, in);
    if (want >= 0) return apply_cast(ctx, op, nin, in, attr, want, out);
  }
  if (op->compose) return apply_compose(&c, out);
  peri_status s = op->flags & PERI_OP_INPLACE ? run_writing(&c) : run(&c);
  if (s == PERI_OK && ctx->anomaly && !(op->flags & (PERI_OP_VIEW | PERI_OP_UNSET)))
    s = check_anomaly(&c);
  if (s == PERI_OK && ctx->grad_enabled && op->vjp) {
    bool track = false;
    for (int i = 0; i < nin && !track; i++) track = in[i] && peri__tracked(in[i]);
    if (track) s = peri__record(ctx, &c);
  }
  if (s != PERI_OK) {
    drop_outputs(&c);
    return s;
  }
  int shown = op->nret ? op->nret : op->nout;
  for (int k = 0; k < op->nout; k++) {
    if (k < shown)
      out[k] = c.out[k];
    else
      peri_release(c.out[k]); /* saved for the vjp: its node keeps it, or nobody does */
  }
  return PERI_OK;
}

peri_status peri__apply (peri_ctx *ctx, const peri_op *op, int nin, peri_tensor *const *in,
                         const peri_attr *attr, peri_tensor **out) {
  return apply(ctx, op, peri__sig(op), nin, in, attr, out);
}

/* What kernels and shape rules may rely on. */
static peri_status check_attr (peri_ctx *ctx, const peri_param *p, const peri_attr *a) {
  switch (p->kind) {
  case PERI_K_DIMS:
  case PERI_K_SHAPE:
  case PERI_K_INTS:
    if (a->n < -1 || (a->n > 0 && !a->v) || (a->n == -1 && !(p->has_default && p->def.n == -1)))
      return peri__fail(ctx, PERI_EINVAL, a->n > 0 ? "%s is NULL" : "%s has %d entries", p->name,
                        a->n);
    return PERI_OK;
  case PERI_K_STR:
    if (!a->s && !(p->has_default && !p->def.s))
      return peri__fail(ctx, PERI_EINVAL, "%s is NULL", p->name);
    return PERI_OK;
  case PERI_K_DTYPE:
    if (a->i == -1 && p->has_default && p->def.i == -1) return PERI_OK;
    if (a->i < 0 || a->i >= PERI_DTYPE_END || (a->i >= PERI_NDTYPE && a->i < PERI_Q8_0))
      return peri__fail(ctx, PERI_EDTYPE, "dtype number %lld does not exist", (long long)a->i);
    return PERI_OK;
  default: return PERI_OK;
  }
}

/* What a caller from outside may get wrong: NULLs, other contexts, attributes of no meaning. */
static peri_status check_call (peri_ctx *ctx, const peri_sig *sig, int nin, peri_tensor *const *in,
                               const peri_attr *attr) {
  if (nin < 0) return peri__fail(ctx, PERI_EINVAL, "%d tensors given", nin);
  if (nin > 0) NEED(ctx, in);
  for (int i = 0; i < nin; i++)
    if (in[i] && in[i]->ctx != ctx) {
      bool one = nin == sig->ntensor && sig->nlist == 0;
      return peri__fail(ctx, PERI_EINVAL, "input %s%s%s%s %s", peri__nth(ctx, i), one ? " (" : "",
                        one ? sig->p[i].name : "", one ? ")" : "",
                        in[i]->ctx ? "is a tensor of another context" : "was released before");
    }
  for (int i = 0; i < sig->nattr; i++) {
    const peri_param *p = &sig->p[sig->ntensor + i];
    if (attr) TRY(check_attr(ctx, p, &attr[i]));
    if (!attr && !p->has_default) return peri__fail(ctx, PERI_EINVAL, "%s has no default", p->name);
  }
  return PERI_OK;
}

/* Run op, or its in-place twin. */
static peri_status invoke (peri_ctx *ctx, const peri_op *op, const peri_sig *sig, bool twin,
                           int nin, peri_tensor *const *in, const peri_attr *attr,
                           peri_tensor **out) {
  peri_attr defaults[PERI_MAX_PARAM];
  TRY(check_call(ctx, sig, nin, in, attr));
  if (!attr) {
    default_attrs(sig, defaults);
    attr = defaults;
  }
  return twin ? peri__run_twin(ctx, op, sig, nin, in, attr)
              : apply(ctx, op, sig, nin, in, attr, out);
}

peri_status peri__invoke (peri_ctx *ctx, const peri_op *op, int nin, peri_tensor *const *in,
                          const peri_attr *attr, peri_tensor **out) {
  return invoke(ctx, op, peri__sig(op), false, nin, in, attr, out);
}

/* Hosts say how many attributes and results they know, because an op may have gained some since. */
static peri_status check_count (peri_ctx *ctx, const peri_op *op, const char *what, int given,
                                int wanted, const void *list) {
  if (given != wanted)
    return peri__fail(ctx, PERI_EINVAL, "%d %s%s given, this version of the op (%s) has %d", given,
                      what, given == 1 ? "" : "s", op->sig, wanted);
  if (given > 0) NEED(ctx, list);
  return PERI_OK;
}

static peri_status find_sig (peri_ctx *ctx, const peri_op *op, const peri_sig **sig) {
  *sig = peri__sig(op);
  return *sig ? PERI_OK : peri__fail(ctx, PERI_EINVAL, "this is no op of the table");
}

static peri_status check_attr_count (peri_ctx *ctx, const peri_op *op, const peri_sig *sig,
                                     int nattr, const peri_attr *attr) {
  if (nattr == 0 && !attr) return PERI_OK; /* the defaults */
  return check_count(ctx, op, "attribute", nattr, sig->nattr, attr);
}

peri_status peri_apply (peri_ctx *ctx, const peri_op *op, int nin, peri_tensor *const *in,
                        int nattr, const peri_attr *attr, int nout, peri_tensor **out) {
  const peri_sig *sig;
  NEED(ctx, ctx);
  NEED(ctx, op);
  TRY(find_sig(ctx, op, &sig));
  peri_status s = check_attr_count(ctx, op, sig, nattr, attr);
  if (s == PERI_OK) s = check_count(ctx, op, "result", nout, peri_op_outputs(op), out);
  if (s == PERI_OK) s = invoke(ctx, op, sig, false, nin, in, attr, out);
  return s == PERI_OK ? s : peri__fail(ctx, s, "%s: %s", op->name, ctx->message);
}

peri_status peri_apply_inplace (peri_ctx *ctx, const peri_op *op, int nin, peri_tensor *const *in,
                                int nattr, const peri_attr *attr) {
  const peri_sig *sig;
  NEED(ctx, ctx);
  NEED(ctx, op);
  TRY(find_sig(ctx, op, &sig));
  peri_status s = check_attr_count(ctx, op, sig, nattr, attr);
  if (s == PERI_OK) s = invoke(ctx, op, sig, true, nin, in, attr, NULL);
  return s == PERI_OK ? s : peri__fail(ctx, s, "%s_: %s", op->name, ctx->message);
}
