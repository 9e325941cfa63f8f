/*
** batch_norm.c - batch normalisation (arXiv:1502.03167). Sums run over one channel at a time, image by
** image, in double between images, so they do not depend on threads; the variance is taken around the mean
** in a second pass.
*/
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cpu/nn.h"
#include "op/rule.h"

/* x as (n, c, s), and how many values a channel has. */
typedef struct sizes {
  int64_t n, c, s, count;
} sizes;

static peri_status sizes_of (peri_call *c, sizes *z) {
  char text[128];
  const peri_tensor *x = c->in[0];
  TRY(peri__want_float(c, 0, "x"));
  if (x->ndim < 2)
    return peri__fail(c->ctx, PERI_ESHAPE, "x has shape %s, expected (N, C, ...)",
                      peri__shape_text(x, text, sizeof text));
  *z = (sizes){ .n = x->shape[0], .c = x->shape[1], .s = 1 };
  for (int i = 2; i < x->ndim; i++) z->s *= x->shape[i];
  z->count = z->n * z->s;
  if (z->count < 2 && z->c > 0)
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "x has shape %s: training takes more than %" PRId64 " value for each channel",
                      peri__shape_text(x, text, sizeof text), z->count);
  return PERI_OK;
}

static peri_status want_channels (peri_call *c, int i, const char *name, int64_t channels) {
  char a[128], b[128];
  const peri_tensor *t = c->in[i];
  if (!t || (t->ndim == 1 && t->shape[0] == channels)) return PERI_OK;
  return peri__fail(c->ctx, PERI_ESHAPE, "x has shape %s and %s %s; expected (%" PRId64 ")",
                    peri__shape_text(c->in[0], a, sizeof a), name, peri__shape_text(t, b, sizeof b),
                    channels);
}

/* ---- channels ---- */

typedef struct job {
  const struct peri__nn_kernels *k; /* NULL: f64 */
  sizes z;
  double eps;
  const void *x, *g, *w, *b;
  void *out;       /* y, or dx */
  void *one, *two; /* (c): mean and variance, or dweight and dbias */
} job;

/* sum[0], sum[1] += those of x - mean and its square, or of g and of g (x - mean) rstd */
static void sum_row (const job *j, int64_t at, const void *g, double mean, double rstd,
                     double sum[2]) {
  if (j->k != NULL) {
    j->k->channel_sums((const float *)j->x + at, g ? (const float *)g + at : NULL, j->z.s,
                       (float)mean, (float)rstd, sum);
    return;
  }
  const double *x = (const double *)j->x + at, *gr = g ? (const double *)g + at : NULL;
  for (int64_t i = 0; i < j->z.s; i++) {
    double d = x[i] - mean;
    sum[0] += gr ? gr[i] : d;
    sum[1] += gr ? gr[i] * d * rstd : d * d;
  }
}

static void sum_channel (const job *j, int64_t c, const void *g, double mean, double rstd,
                         double sum[2]) {
  sum[0] = sum[1] = 0;
  for (int64_t n = 0; n < j->z.n; n++) sum_row(j, (n * j->z.c + c) * j->z.s, g, mean, rstd, sum);
}

/* out = (x - mean) a + b, plus g e where there is g */
static void scale_channel (const job *j, int64_t c, const void *g, double mean, double a, double b,
                           double e) {
  for (int64_t n = 0; n < j->z.n; n++) {
    int64_t at = (n * j->z.c + c) * j->z.s;
    if (j->k != NULL) {
      j->k->channel_scale((const float *)j->x + at, g ? (const float *)g + at : NULL, j->z.s,
                          (float)mean, (float)a, (float)b, (float)e, (float *)j->out + at);
      continue;
    }
    const double *x = (const double *)j->x + at, *gr = g ? (const double *)g + at : NULL;
    double *y = (double *)j->out + at;
    for (int64_t i = 0; i < j->z.s; i++) y[i] = (x[i] - mean) * a + b + (gr ? gr[i] * e : 0);
  }
}

static double get (const job *j, const void *p, int64_t i, double none) {
  if (p == NULL) return none;
  return j->k != NULL ? (double)((const float *)p)[i] : ((const double *)p)[i];
}
static void put (const job *j, void *p, int64_t i, double v) {
  if (j->k != NULL)
    ((float *)p)[i] = (float)v;
  else
    ((double *)p)[i] = v;
}

/* The mean, as the rows are told it, and the sum of squares around it. */
static double moments (const job *j, int64_t c, double *squares) {
  double sum[2], n = (double)j->z.count;
  sum_channel(j, c, NULL, 0, 0, sum);
  double mean = j->k != NULL ? (double)(float)(sum[0] / n) : sum[0] / n;
  sum_channel(j, c, NULL, mean, 0, sum);
  *squares = fmax(sum[1] - sum[0] * sum[0] / n, 0);
  return mean;
}

static void train_task (void *ud, int64_t begin, int64_t end, int worker) {
  const job *j = ud;
  double squares, n = (double)j->z.count;
  (void)worker;
  for (int64_t c = begin; c < end; c++) {
    double mean = moments(j, c, &squares);
    double a = get(j, j->w, c, 1) / sqrt(squares / n + j->eps);
    scale_channel(j, c, NULL, mean, a, get(j, j->b, c, 0), 0);
    put(j, j->one, c, mean);
    put(j, j->two, c, squares / (n - 1));
  }
}

/* dx = w rstd (g - mean(g) - xhat mean(g xhat)) */
static void back_task (void *ud, int64_t begin, int64_t end, int worker) {
  const job *j = ud;
  double squares, sum[2], n = (double)j->z.count;
  (void)worker;
  for (int64_t c = begin; c < end; c++) {
    double mean = moments(j, c, &squares), rstd = 1 / sqrt(squares / n + j->eps);
    sum_channel(j, c, j->g, mean, rstd, sum);
    double e = get(j, j->w, c, 1) * rstd;
    scale_channel(j, c, j->g, mean, -e * rstd * sum[1] / n, -e * sum[0] / n, e);
    put(j, j->one, c, sum[1]);
    put(j, j->two, c, sum[0]);
  }
}

static void run (peri_call *c, job *j, peri_range_fn fn) {
  j->k = c->in[0]->dtype == PERI_F64 ? NULL : c->ctx->cpu->nn;
  j->x = c->in[0]->data;
  j->out = c->out[0]->data;
  j->one = c->out[1]->data;
  j->two = c->out[2]->data;
  j->eps = c->attr[0].f;
  peri__parallel(c->ctx, j->z.c, 8192 / (j->z.count + 1) + 1, fn, j);
}

static const void *data_of (const peri_tensor *t) { return t ? t->data : NULL; }

static peri_status outputs (peri_call *c, const sizes *z) {
  TRY(peri__infer_same(c));
  for (int k = 1; k < 3; k++)
    TRY(peri__new(c->ctx, (peri_dtype)c->in[0]->dtype, 1, &z->c, &c->out[k]));
  return PERI_OK;
}

/* ---- batch_norm_backward ---- */

static peri_status batch_norm_backward_infer (peri_call *c) {
  char a[128], b[128];
  sizes z;
  const peri_tensor *x = c->in[0], *g = c->in[1];
  TRY(sizes_of(c, &z));
  if (g->ndim != x->ndim || memcmp(g->shape, x->shape, sizeof *x->shape * (size_t)x->ndim) != 0)
    return peri__fail(c->ctx, PERI_ESHAPE, "x has shape %s and g %s; they must be equal",
                      peri__shape_text(x, a, sizeof a), peri__shape_text(g, b, sizeof b));
  TRY(want_channels(c, 2, "weight", z.c));
  return outputs(c, &z);
}

static peri_status batch_norm_backward_cpu (peri_call *c) {
  job j = { .g = c->in[1]->data, .w = data_of(c->in[2]) };
  TRY(sizes_of(c, &j.z));
  run(c, &j, back_task);
  return PERI_OK;
}

/* Means and sums over all dims but that of channels; a (c) as (c, 1, ...). */
static peri_tensor *over (peri_build *b, const peri_op *op, peri_tensor *t, bool keep) {
  int64_t dims[PERI_MAX_DIMS], n = 0;
  if (t == NULL) return NULL;
  for (int i = 0; i < t->ndim; i++)
    if (i != 1) dims[n++] = i;
  return peri__build(b, op, 1, &t, ATTR(A_DIMS(dims, (int)n), A_INT(keep)));
}
static peri_tensor *channel_mean (peri_build *b, peri_tensor *t) {
  return over(b, &peri__op_mean, t, true);
}
static peri_tensor *channel_sum (peri_build *b, peri_tensor *t) {
  return over(b, &peri__op_sum, t, false);
}
static peri_tensor *per_channel (peri_build *b, peri_tensor *t, int ndim) {
  int64_t shape[PERI_MAX_DIMS];
  if (t == NULL) return NULL;
  for (int i = 0; i < ndim - 1; i++) shape[i] = i == 0 ? t->shape[0] : 1;
  return BA(b, reshape, ATTR(A_DIMS(shape, ndim - 1)), t);
}

static peri_tensor *plus (peri_build *b, peri_tensor *x, peri_tensor *y) {
  return x && y ? B(b, add, x, y) : x ? x : y;
}

static peri_tensor *project (peri_build *b, peri_tensor *z, peri_tensor *xhat) {
  peri_tensor *y = B(b, sub, z, B(b, mul, xhat, channel_mean(b, B(b, mul, z, xhat))));
  return B(b, sub, y, channel_mean(b, z));
}

/* The formulas of norm.c's norm_back_vjp, with means over channels. */
RULE(batch_norm_backward) {
  peri_build *b = BB;
  peri_tensor *x = IN(0), *g = IN(1), *h = v->g[0];
  int n = x->ndim;
  peri_tensor *w = per_channel(b, IN(2), n), *hw = per_channel(b, v->g[1], n);
  peri_tensor *hb = per_channel(b, v->g[2], n);
  peri_tensor *center = B(b, sub, x, channel_mean(b, x));
  peri_tensor *r =
      B(b, rsqrt, B(b, add, channel_mean(b, B(b, mul, center, center)), NUM(v->c->attr[0].f)));
  peri_tensor *xhat = B(b, mul, center, r), *u = w ? B(b, mul, g, w) : g;
  peri_tensor *rph = h ? B(b, mul, r, project(b, h, xhat)) : NULL;
  if (v->need[0]) {
    peri_tensor *z = hw ? B(b, mul, g, hw) : NULL, *dx = NULL;
    if (h) {
      peri_tensor *ah = B(b, mul, h, channel_mean(b, B(b, mul, u, xhat)));
      peri_tensor *cu = B(b, mul, u, channel_mean(b, B(b, mul, h, xhat)));
      z = plus(b, z, B(b, neg, B(b, mul, r, B(b, add, ah, cu))));
      peri_tensor *hpu = channel_mean(b, B(b, mul, h, project(b, u, xhat)));
      dx = B(b, neg, B(b, mul, xhat, B(b, mul, hpu, B(b, mul, r, r))));
    }
    if (z) dx = plus(b, dx, B(b, mul, r, project(b, z, xhat)));
    v->gin[0] = dx;
  }
  if (v->need[1]) {
    peri_tensor *dg = rph && w ? B(b, mul, rph, w) : rph;
    if (hw) dg = plus(b, dg, B(b, mul, xhat, hw));
    if (hb) dg = dg ? B(b, add, dg, hb) : BA(b, expand, ATTR(A_DIMS(g->shape, n)), hb);
    v->gin[1] = dg;
  }
  if (w && v->need[2] && rph) v->gin[2] = channel_sum(b, B(b, mul, rph, g));
}

static void batch_norm_cost (const peri_call *c, double *flops, double *bytes) {
  *flops = 10 * (double)c->in[0]->numel;
  *bytes = 4 * (double)c->in[0]->numel * (double)peri__size(c->in[0]);
}

OPN(batch_norm_backward, 3, .sig = "x, g, weight:tensor?, eps:num=1e-5",
    .flags = PERI_OP_FLOAT | PERI_OP_UPCAST,
    .doc = "Gradients (dx, dweight, dbias) of batch_norm in training, for x (N, C, ...).",
    .infer = batch_norm_backward_infer, .cpu = batch_norm_backward_cpu,
    .vjp = batch_norm_backward_vjp, .cost = batch_norm_cost,
    TESTS(.domain = "x.shape=3,2,2; g.shape=3,2,2; weight.shape=2",
          .variants = { "x.shape=4,2; g.shape=4,2",
                        "x.shape=2,2,2,2; g.shape=2,2,2,2; attr eps=0.1" },
          .large = "x.shape=16,12,9,20; g.shape=16,12,9,20; weight.shape=12",
          .refuses = { "x.shape=2,3; g.shape=3,2 => (2, 3) | (3, 2)",
                       "x.shape=1,3; g.shape=1,3 => (1, 3) | more than 1" }));

/* ---- batch_norm_train ---- */

static peri_status batch_norm_train_infer (peri_call *c) {
  sizes z;
  TRY(sizes_of(c, &z));
  TRY(want_channels(c, 1, "weight", z.c));
  TRY(want_channels(c, 2, "bias", z.c));
  return outputs(c, &z);
}

static peri_status batch_norm_train_cpu (peri_call *c) {
  job j = { .w = data_of(c->in[1]), .b = data_of(c->in[2]) };
  TRY(sizes_of(c, &j.z));
  run(c, &j, train_task);
  return PERI_OK;
}

/* The mean's gradient is 1 / n, that of the variance 2 (x - mean) / (n - 1). */
static peri_tensor *moments_vjp (peri_vjp *v) {
  peri_tensor *x = IN(0), *mean = per_channel(BB, v->g[1], x->ndim);
  peri_tensor *var = per_channel(BB, v->g[2], x->ndim), *dx = NULL;
  double n = (double)(x->numel / (x->shape[1] ? x->shape[1] : 1));
  if (mean) dx = BA(BB, expand, ATTR(A_DIMS(x->shape, x->ndim)), B(BB, div, mean, NUM(n)));
  if (var)
    dx = plus(BB, dx,
              B(BB, mul, B(BB, sub, x, channel_mean(BB, x)), B(BB, mul, var, NUM(2 / (n - 1)))));
  return dx;
}

RULE(batch_norm_train) {
  peri_tensor *out[PERI_MAX_OUT] = { NULL };
  if (GRAD)
    peri__build_all(BB, &peri__op_batch_norm_backward, 3, (peri_tensor *[]){ IN(0), GRAD, IN(1) },
                    v->c->attr, out);
  GIVE(0, plus(BB, out[0], moments_vjp(v)));
  if (IN(1) && out[1]) GIVE(1, out[1]);
  if (IN(2) && out[2]) GIVE(2, out[2]);
}

OPN(batch_norm_train, 3, .sig = "x, weight:tensor?, bias:tensor?, eps:num=1e-5",
    .flags = PERI_OP_FLOAT | PERI_OP_UPCAST,
    .doc = "batch_norm by the batch's own statistics, those, and the unbiased variance: x (N, C, "
           "...) -> "
           "y, mean (C), variance (C).",
    .infer = batch_norm_train_infer, .cpu = batch_norm_train_cpu, .vjp = batch_norm_train_vjp,
    .cost = batch_norm_cost,
    TESTS(.domain = "x.shape=3,2,2; weight.shape=2; bias.shape=2",
          .variants = { "x.shape=4,2", "x.shape=2,2,2,2; bias.shape=2; attr eps=0.1" },
          .large = "x.shape=16,12,9,20; weight.shape=12; bias.shape=12",
          .refuses = { "x.shape=2,3; weight.shape=2 => (2, 3) | (2) | (3)",
                       "x.shape=1,3 => (1, 3) | more than 1", "x.shape=3; => (3) | (N, C, ...)" }));

/* ---- batch_norm ---- */

enum {
  SHORT = 16
}; /* values of a channel that lie together, below which they are gathered first */

/* (n, c, ...) -> (1, c, n ...) and back */
static peri_tensor *channels_first (peri_build *b, peri_tensor *x, const sizes *z) {
  int64_t three[3] = { z->n, z->c, z->s }, order[3] = { 1, 0, 2 }, row[3] = { 1, z->c, z->count };
  x = BA(b, reshape, ATTR(A_DIMS(three, 3)), x);
  x = BA(b, permute, ATTR(A_DIMS(order, 3)), x);
  return BA(b, reshape, ATTR(A_DIMS(row, 3)), x);
}
static peri_tensor *channels_second (peri_build *b, peri_tensor *y, const sizes *z,
                                     const peri_tensor *like) {
  int64_t three[3] = { z->c, z->n, z->s }, order[3] = { 1, 0, 2 };
  y = BA(b, reshape, ATTR(A_DIMS(three, 3)), y);
  y = BA(b, permute, ATTR(A_DIMS(order, 3)), y);
  return BA(b, reshape, ATTR(A_DIMS(like->shape, like->ndim)), y);
}

static void trained (peri_build *b, peri_call *c) {
  peri_tensor *x = c->in[0], *out[PERI_MAX_OUT] = { NULL };
  sizes z;
  peri__build_fail(b, sizes_of(c, &z));
  if (b->status != PERI_OK) return;
  bool gather = z.s < SHORT && z.n > 1;
  peri__build_all(b, &peri__op_batch_norm_train, 3,
                  (peri_tensor *[]){ gather ? channels_first(b, x, &z) : x, c->in[3], c->in[4] },
                  ATTR(c->attr[1]), out);
  c->out[0] = gather ? channels_second(b, out[0], &z, x) : out[0];
  c->out[1] = out[1];
  c->out[2] = out[2];
}

static void batch_norm_compose (peri_build *b, peri_call *c) {
  static const char *const names[] = { "x", "running_mean", "running_var", "weight", "bias" };
  peri_tensor *x = c->in[0];
  char text[128];
  if (x->ndim < 2) {
    peri__build_fail(b, peri__fail(c->ctx, PERI_ESHAPE, "x has shape %s, expected (N, C, ...)",
                                   peri__shape_text(x, text, sizeof text)));
    return;
  }
  for (int i = 1; i <= 4; i++) peri__build_fail(b, want_channels(c, i, names[i], x->shape[1]));
  if (b->status != PERI_OK) return;
  if (c->attr[0].i) {
    trained(b, c);
    return;
  }
  if (c->in[1] == NULL || c->in[2] == NULL) {
    peri__build_fail(b, peri__fail(c->ctx, PERI_EINVAL,
                                   "without training, running_mean and running_var "
                                   "are what x is normalised by: give both"));
    return;
  }
  peri_tensor *scale = B(b, rsqrt, B(b, add, c->in[2], peri__build_scalar(b, c->attr[1].f)));
  if (c->in[3]) scale = B(b, mul, scale, c->in[3]);
  peri_tensor *y =
      B(b, mul, B(b, sub, x, per_channel(b, c->in[1], x->ndim)), per_channel(b, scale, x->ndim));
  c->out[0] = c->in[4] ? B(b, add, y, per_channel(b, c->in[4], x->ndim)) : y;
  c->out[1] = c->in[1];
  c->out[2] = c->in[2];
}

OPN(batch_norm, 3,
    .sig = "x, running_mean:tensor?, running_var:tensor?, weight:tensor?, bias:tensor?, "
           "training:bool=false, eps:num=1e-5",
    .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .compose = batch_norm_compose,
    .doc =
        "(x - mean) / sqrt(variance + eps) * weight + bias for each channel of x (N, C, ...) "
        "(arXiv:1502.03167); then mean (C) and variance (C): in training those of the batch, the "
        "variance returned being the unbiased one, towards which nn.BatchNorm2d moves its running "
        "statistics; else the running ones.",
    TESTS(.domain = "x.shape=3,2,2; weight.shape=2; bias.shape=2; attr training=true",
          .variants = { "x.shape=3,2; weight.shape=2; bias.shape=2; running_mean.shape=2; "
                        "running_var.shape=2; running_var=0.5..2",
                        "x.shape=2,2,5,4; attr training=true; attr eps=0.1",
                        "x.shape=5,2; weight.shape=2; attr training=true" },
          .large = "x.shape=16,12,9,20; weight.shape=12; bias.shape=12; attr training=true",
          .refuses = { "x.shape=2,3; attr training=false => running_mean",
                       "x.shape=2,3; running_mean.shape=2 => (2, 3) | running_mean | (2)",
                       "x.shape=1,3; attr training=true => (1, 3) | more than 1",
                       "x.shape=3; attr training=true => (3) | (N, C, ...)" }));
