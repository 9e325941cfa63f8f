/*
** softmax.c - softmax, log_softmax and their gradients along one dim. The gradients are ops with a
** vjp of their own, so second derivatives work.
*/
#include <math.h>

#include "cpu/nn.h"
#include "op/op.h"

typedef struct softmax_job {
  const struct peri__nn_kernels *k;
  const void *a, *g; /* a: x forward, y backward; g: NULL forward */
  void *out;
  int64_t n, inner; /* (outer, n, inner) */
  bool f64, logs;
} softmax_job;

static void softmax_f64 (const softmax_job *s, int64_t at) {
  const double *x = (const double *)s->a + at, *g = (const double *)s->g + (s->g ? at : 0);
  double *y = (double *)s->out + at, max = -INFINITY, sum = 0;
  int64_t n = s->n, d = s->inner;
  if (s->g) {
    for (int64_t i = 0; i < n * d; i += d) sum += s->logs ? g[i] : g[i] * x[i];
    for (int64_t i = 0; i < n * d; i += d)
      y[i] = s->logs ? g[i] - exp(x[i]) * sum : x[i] * (g[i] - sum);
    return;
  }
  for (int64_t i = 0; i < n * d; i += d) max = x[i] > max ? x[i] : max;
  for (int64_t i = 0; i < n * d; i += d) sum += exp(x[i] - max);
  for (int64_t i = 0; i < n * d; i += d)
    y[i] = s->logs ? x[i] - max - log(sum) : exp(x[i] - max) / sum;
}

/* Pieces are rows where the dim is the last, else whole (n, inner) slabs. */
static void softmax_run (void *ud, int64_t begin, int64_t end, int worker) {
  const softmax_job *s = ud;
  (void)worker;
  if (s->f64) {
    for (int64_t r = begin; r < end; r++)
      softmax_f64(s, r / s->inner * s->n * s->inner + r % s->inner);
    return;
  }
  const float *a = (const float *)s->a, *g = s->g;
  float *out = s->out;
  if (s->inner == 1) {
    int64_t at = begin * s->n;
    if (g)
      s->k->softmax_back(a + at, g + at, out + at, end - begin, s->n, s->logs);
    else
      s->k->softmax(a + at, out + at, end - begin, s->n, s->logs);
    return;
  }
  while (begin < end) { /* columns of one slab at a time */
    int64_t slab = begin / s->inner, first = begin % s->inner;
    int64_t m = s->inner - first < end - begin ? s->inner - first : end - begin;
    int64_t at = slab * s->n * s->inner + first;
    if (g)
      s->k->softmax_back_cols(a + at, g + at, out + at, s->n, s->inner, m, s->logs);
    else
      s->k->softmax_cols(a + at, out + at, s->n, s->inner, m, s->logs);
    begin += m;
  }
}

/* A tensor without dims is a row of one. */
static peri_status dim_of (peri_call *c, int *dim) {
  int64_t d = c->attr[0].i;
  *dim = 0;
  return c->in[0]->ndim == 0 && (d == 0 || d == -1) ? PERI_OK
                                                    : peri__dim(c->ctx, d, c->in[0]->ndim, dim);
}

static peri_status softmax_cpu (peri_call *c, const peri_tensor *g, bool logs) {
  const peri_tensor *x = c->in[0];
  int dim;
  TRY(dim_of(c, &dim));
  if (x->numel == 0) return PERI_OK;
  softmax_job s = { .k = c->ctx->cpu->nn,
                    .a = x->data,
                    .g = g ? g->data : NULL,
                    .out = c->out[0]->data,
                    .n = x->ndim > 0 ? x->shape[dim] : 1,
                    .inner = 1,
                    .f64 = x->dtype == PERI_F64,
                    .logs = logs };
  for (int i = dim + 1; i < x->ndim; i++) s.inner *= x->shape[i];
  peri__parallel(c->ctx, x->numel / s.n, 8192 / s.n + 1, softmax_run, &s);
  return PERI_OK;
}

static peri_status softmax_infer (peri_call *c) {
  int dim;
  TRY(peri__want_float(c, 0, "x"));
  TRY(dim_of(c, &dim));
  return peri__infer_same(c);
}

static peri_status back_infer (peri_call *c) {
  char a[128], b[128];
  const peri_tensor *y = c->in[0], *g = c->in[1];
  bool same = y->ndim == g->ndim;
  for (int i = 0; same && i < y->ndim; i++) same = y->shape[i] == g->shape[i];
  if (!same)
    return peri__fail(c->ctx, PERI_ESHAPE, "y has shape %s and g %s; they must be equal",
                      peri__shape_text(y, a, sizeof a), peri__shape_text(g, b, sizeof b));
  return softmax_infer(c);
}

static void softmax_cost (const peri_call *c, double *flops, double *bytes) {
  *flops = 12.0 * (double)c->in[0]->numel;
  *bytes = 2.0 * (double)c->in[0]->numel * (double)peri__size(c->in[0]);
}

/* sum over the dim of the call, kept */
static peri_tensor *dim_sum (peri_vjp *v, peri_tensor *t) {
  if (v->c->in[0]->ndim == 0) return t;
  return BA(&v->b, sum, ATTR(A_DIMS(&v->c->attr[0].i, 1), A_INT(1)), t);
}

/* ---- softmax_backward: y (g - sum(g y)) ---- */

static peri_status softmax_backward_cpu (peri_call *c) { return softmax_cpu(c, c->in[1], false); }

static void softmax_backward_vjp (peri_vjp *v) {
  peri_build *b = &v->b;
  peri_tensor *y = v->c->in[0], *g = v->c->in[1], *h = v->g[0];
  if (v->need[0]) {
    peri_tensor *first = B(b, mul, h, B(b, sub, g, dim_sum(v, B(b, mul, g, y))));
    v->gin[0] = B(b, sub, first, B(b, mul, g, dim_sum(v, B(b, mul, h, y))));
  }
  if (v->need[1]) v->gin[1] = BA(b, softmax_backward, v->c->attr, y, h);
}

OP(softmax_backward, .sig = "y, g, dim:dim=-1",
   .doc = "Gradient of softmax: y (g - sum(g y)) along dim, from its result y and the gradient g.",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = back_infer, .cpu = softmax_backward_cpu,
   .vjp = softmax_backward_vjp, .cost = softmax_cost,
   TESTS(.domain = "y=0.1..0.9; shape=3,4", .variants = { "y=0.1..0.9; shape=3,4; attr dim=1" },
         .large = "y=0.1..0.9; shape=128,300", .refuses = { "y.shape=2; g.shape=3 => (2) | (3)" }));

/* ---- softmax ---- */

static peri_status softmax_forward_cpu (peri_call *c) { return softmax_cpu(c, NULL, false); }

static void softmax_vjp (peri_vjp *v) {
  v->gin[0] = BA(&v->b, softmax_backward, v->c->attr, peri__saved(v, 0), v->g[0]);
}

OP(softmax, .sig = "x, dim:dim=-1",
   .doc = "exp(x) / sum(exp(x)) along dim, taken relative to the maximum; a row of -inf alone "
          "gives NaN.",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = softmax_infer, .cpu = softmax_forward_cpu,
   .vjp = softmax_vjp, .cost = softmax_cost,
   TESTS(.domain = "x=-3..3", .variants = { "shape=3,4; attr dim=1" }));

/* ---- log_softmax_backward: g - exp(y) sum(g) ---- */

static peri_status log_softmax_backward_cpu (peri_call *c) {
  return softmax_cpu(c, c->in[1], true);
}

static void log_softmax_backward_vjp (peri_vjp *v) {
  peri_build *b = &v->b;
  peri_tensor *p = B(b, exp, v->c->in[0]), *g = v->c->in[1], *hp = B(b, mul, v->g[0], p);
  if (v->need[0]) v->gin[0] = B(b, neg, B(b, mul, hp, dim_sum(v, g)));
  if (v->need[1]) v->gin[1] = B(b, sub, v->g[0], dim_sum(v, hp));
}

OP(log_softmax_backward, .sig = "y, g, dim:dim=-1",
   .doc = "Gradient of log_softmax: g - exp(y) sum(g) along dim, from its result y and the "
          "gradient g.",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = back_infer, .cpu = log_softmax_backward_cpu,
   .vjp = log_softmax_backward_vjp, .cost = softmax_cost,
   TESTS(.domain = "y=-3..0; shape=3,4", .variants = { "y=-3..0; shape=3,4; attr dim=1" },
         .large = "y=-3..0; shape=128,300", .refuses = { "y.shape=2; g.shape=3 => (2) | (3)" }));

/* ---- log_softmax ---- */

static peri_status log_softmax_forward_cpu (peri_call *c) { return softmax_cpu(c, NULL, true); }

static void log_softmax_vjp (peri_vjp *v) {
  v->gin[0] = BA(&v->b, log_softmax_backward, v->c->attr, peri__saved(v, 0), v->g[0]);
}

OP(log_softmax, .sig = "x, dim:dim=-1",
   .doc = "x - log(sum(exp(x))) along dim, taken relative to the maximum.",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = softmax_infer, .cpu = log_softmax_forward_cpu,
   .vjp = log_softmax_vjp, .cost = softmax_cost,
   TESTS(.domain = "x=-3..3", .variants = { "shape=2,3,2; attr dim=2" }));
