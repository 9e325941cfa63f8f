/*
** norm.c - layer norm and RMS norm over the last dim, the same after a residual sum, and group
** norm. Sums over rows (dweight, dbias) are cut into blocks by the number of rows alone and added
** up in order, so they do not depend on threads.
*/
#include <math.h>
#include <string.h>

#include "autograd/tape.h"
#include "cpu/nn.h"
#include "op/op.h"

enum { MAX_BLOCKS = 64, MIN_ROWS = 16 /* of a block of rows */ };

/* weight or bias number i must be (n) */
static peri_status want_row (peri_call *c, int i, const char *name, int64_t n) {
  char a[128], b[128];
  const peri_tensor *w = c->in[i];
  if (!w || (w->ndim == 1 && w->shape[0] == n)) return PERI_OK;
  return peri__fail(c->ctx, PERI_ESHAPE, "x has shape %s and %s %s; expected (%lld)",
                    peri__shape_text(c->in[0], a, sizeof a), name, peri__shape_text(w, b, sizeof b),
                    (long long)n);
}

/* input i must have the shape of x */
static peri_status want_like (peri_call *c, int i, const char *name) {
  char a[128], b[128];
  const peri_tensor *x = c->in[0], *t = c->in[i];
  if (!t || (t->ndim == x->ndim && memcmp(t->shape, x->shape, sizeof *x->shape * x->ndim) == 0))
    return PERI_OK;
  return peri__fail(c->ctx, PERI_ESHAPE, "x has shape %s and %s %s; they must be equal",
                    peri__shape_text(x, a, sizeof a), name, peri__shape_text(t, b, sizeof b));
}

static peri_status want_rows (peri_call *c, int64_t *n) {
  const peri_tensor *x = c->in[0];
  if (x->ndim < 1) return peri__fail(c->ctx, PERI_ESHAPE, "x has no dim to normalise over");
  *n = x->shape[x->ndim - 1];
  return peri__want_float(c, 0, "x");
}

static const void *data_of (const peri_tensor *t) { return t ? t->data : NULL; }

/* ---- forward ---- */

/* x and what a norm needs; the ops differ in which of these they take. */
struct norm {
  struct peri__norm f32; /* pointers are to doubles when the dtype is f64 */
  const struct peri__nn_kernels *k;
};

static void norm_row_f64 (const struct peri__norm *a, int64_t row) {
  int64_t n = a->n;
  const double *x = (const double *)(const void *)a->x + row * n, *w = (const void *)a->w,
               *b = (const void *)a->b;
  double *y = (double *)(void *)a->y + row * n, mean = 0, var = 0;
  if (a->add) {
    const double *add = (const double *)(const void *)a->add + row * n;
    double *sum = (double *)(void *)a->sum + row * n;
    for (int64_t i = 0; i < n; i++) sum[i] = x[i] + add[i];
    x = sum;
  }
  for (int64_t i = 0; i < n && !a->rms; i++) mean += x[i] / (double)n;
  for (int64_t i = 0; i < n; i++) var += (x[i] - mean) * (x[i] - mean) / (double)n;
  double rstd = 1 / sqrt(var + a->eps);
  for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * rstd * (w ? w[i] : 1) + (b ? b[i] : 0);
}

static void norm_range (void *ud, int64_t begin, int64_t end, int worker) {
  const struct norm *a = ud;
  (void)worker;
  if (a->k)
    a->k->norm(&a->f32, begin, end);
  else
    for (int64_t r = begin; r < end; r++) norm_row_f64(&a->f32, r);
}

static peri_status norm_run (peri_call *c, bool rms, const peri_tensor *add, const peri_tensor *w,
                             const peri_tensor *b) {
  const peri_tensor *x = c->in[0];
  struct norm a = { .f32 = { .n = x->shape[x->ndim - 1],
                             .eps = c->attr[0].f,
                             .rms = rms,
                             .x = x->data,
                             .add = data_of(add),
                             .w = data_of(w),
                             .b = data_of(b),
                             .y = c->out[0]->data,
                             .sum = add ? c->out[1]->data : NULL },
                    .k = x->dtype == PERI_F64 ? NULL : c->ctx->cpu->nn };
  if (x->numel > 0) peri__parallel(c->ctx, x->numel / a.f32.n, 16384 / a.f32.n + 1, norm_range, &a);
  return PERI_OK;
}

static void norm_cost (const peri_call *c, double *flops, double *bytes) {
  *flops = 8.0 * (double)c->in[0]->numel;
  *bytes = (c->op->nout > 1 ? 4.0 : 2.0) * (double)c->in[0]->numel * (double)peri__size(c->in[0]);
}

/* ---- backward ---- */

struct norm_back {
  struct peri__norm_back f32;
  const struct peri__nn_kernels *k;
  int64_t rows, block;
  float *dw, *db; /* (blocks, n)? */
};

static void norm_back_range (void *ud, int64_t begin, int64_t end, int worker) {
  const struct norm_back *a = ud;
  (void)worker;
  for (int64_t i = begin; i < end; i++) {
    int64_t row0 = i * a->block, row1 = row0 + a->block < a->rows ? row0 + a->block : a->rows;
    float *dw = a->dw ? a->dw + i * a->f32.n : NULL, *db = a->db ? a->db + i * a->f32.n : NULL;
    if (dw) memset(dw, 0, (size_t)a->f32.n * sizeof *dw);
    if (db) memset(db, 0, (size_t)a->f32.n * sizeof *db);
    a->k->norm_back(&a->f32, row0, row1, dw, db);
  }
}

static void norm_back_f64 (const struct peri__norm_back *a, int64_t rows, double *dw, double *db) {
  int64_t n = a->n;
  const double *w = (const void *)a->w;
  for (int64_t row = 0; row < rows; row++) {
    const double *x = (const double *)(const void *)a->x + row * n,
                 *g = (const double *)(const void *)a->g + row * n;
    double *dx = (double *)(void *)a->dx + row * n, mean = 0, var = 0, mu = 0, mux = 0;
    for (int64_t i = 0; i < n && !a->rms; i++) mean += x[i] / (double)n;
    for (int64_t i = 0; i < n; i++) var += (x[i] - mean) * (x[i] - mean) / (double)n;
    double rstd = 1 / sqrt(var + a->eps);
    for (int64_t i = 0; i < n; i++) {
      double xhat = (x[i] - mean) * rstd, u = g[i] * (w ? w[i] : 1);
      if (!a->rms) mu += u / (double)n;
      mux += u * xhat / (double)n;
      if (dw) dw[i] += g[i] * xhat;
      if (db) db[i] += g[i];
    }
    for (int64_t i = 0; i < n; i++) {
      double xhat = (x[i] - mean) * rstd, u = g[i] * (w ? w[i] : 1);
      dx[i] = rstd * (u - mu - xhat * mux) +
              (a->add ? ((const double *)(const void *)a->add)[row * n + i] : 0);
    }
  }
}

/* out = sum of the blocks, in order */
static void add_blocks (const float *part, int64_t blocks, int64_t n, float *out) {
  for (int64_t i = 0; i < n; i++) {
    double sum = 0;
    for (int64_t k = 0; k < blocks; k++) sum += (double)part[k * n + i];
    out[i] = (float)sum;
  }
}

/* in: x, g, weight?, add?; attr: eps, params; out: dx, dweight[, dbias] */
static peri_status norm_back_run (peri_call *c, bool rms) {
  const peri_tensor *x = c->in[0];
  int64_t n = x->shape[x->ndim - 1], rows = n ? x->numel / n : 0, blocks = rows / MIN_ROWS;
  bool params = c->attr[1].i != 0, f64 = x->dtype == PERI_F64;
  void *dw = params ? c->out[1]->data : NULL, *db = params && !rms ? c->out[2]->data : NULL;
  struct norm_back a = { .f32 = { .n = n,
                                  .eps = c->attr[0].f,
                                  .rms = rms,
                                  .x = x->data,
                                  .w = data_of(c->in[2]),
                                  .g = c->in[1]->data,
                                  .add = data_of(c->in[3]),
                                  .dx = c->out[0]->data },
                         .k = c->ctx->cpu->nn,
                         .rows = rows };
  if (n == 0) return PERI_OK;
  if (f64 || rows == 0) {
    if (dw) memset(dw, 0, (size_t)n * peri__size(x));
    if (db) memset(db, 0, (size_t)n * peri__size(x));
    if (f64) norm_back_f64(&a.f32, rows, dw, db);
    return PERI_OK;
  }
  blocks = blocks > MAX_BLOCKS ? MAX_BLOCKS : blocks < 1 ? 1 : blocks;
  a.block = (rows + blocks - 1) / blocks;
  blocks = (rows + a.block - 1) / a.block;
  size_t bytes = (size_t)(2 * blocks * n) * sizeof(float);
  if (params) {
    a.dw = peri__block_get(c->ctx, bytes);
    if (!a.dw)
      return peri__fail(c->ctx, PERI_ENOMEM, "out of memory for %zu bytes of partial sums", bytes);
    if (db) a.db = a.dw + blocks * n;
  }
  peri__parallel(c->ctx, blocks, 16384 / (a.block * n) + 1, norm_back_range, &a);
  if (dw) add_blocks(a.dw, blocks, n, dw);
  if (db) add_blocks(a.db, blocks, n, db);
  peri__block_put(c->ctx, a.dw);
  return PERI_OK;
}

static peri_status norm_back_infer (peri_call *c) {
  int64_t n = 0, none = 0;
  TRY(want_rows(c, &n));
  TRY(want_like(c, 1, "g"));
  TRY(want_row(c, 2, "weight", n));
  TRY(want_like(c, 3, "add"));
  TRY(peri__infer_same(c));
  for (int k = 1; k < c->op->nout; k++)
    TRY(peri__new(c->ctx, (peri_dtype)c->in[0]->dtype, 1, c->attr[1].i ? &n : &none, &c->out[k]));
  return PERI_OK;
}

/* The gradient of the gradient. With xhat = (x - m) r, u = g w and
**   P(z) = z - mean(z) - xhat mean(z xhat)   (no mean(z) in RMS norm)
** the op gives dx = r P(u) + add, dw = sum(g xhat), db = sum(g). For cotangents h, hw, hb of those,
** with a = mean(u xhat), c = mean(h xhat), z = hw g - r (a h + c u):
**   dg = r P(h) w + hw xhat + hb,  dweight = sum(r P(h) g),
**   dx = r P(z) - r^2 mean(h P(u)) xhat. */
static peri_tensor *last_mean (peri_build *b, peri_tensor *t) {
  int64_t last = -1;
  return BA(b, mean, ATTR(A_DIMS(&last, 1), A_INT(1)), t);
}

static peri_tensor *project (peri_build *b, peri_tensor *z, peri_tensor *xhat, bool rms) {
  peri_tensor *y = B(b, sub, z, B(b, mul, xhat, last_mean(b, B(b, mul, z, xhat))));
  return rms ? y : B(b, sub, y, last_mean(b, z));
}

static peri_tensor *plus (peri_build *b, peri_tensor *x, peri_tensor *y) {
  return x && y ? B(b, add, x, y) : x ? x : y;
}

static void norm_back_vjp (peri_vjp *v, bool rms) {
  peri_build *b = &v->b;
  peri_tensor *x = v->c->in[0], *g = v->c->in[1], *w = v->c->in[2], *h = v->g[0], *hw = v->g[1];
  peri_tensor *hb = rms ? NULL : v->g[2], *eps = peri__build_scalar(b, v->c->attr[0].f);
  peri_tensor *center = rms ? x : B(b, sub, x, last_mean(b, x));
  peri_tensor *r = B(b, rsqrt, B(b, add, last_mean(b, B(b, mul, center, center)), eps));
  peri_tensor *xhat = B(b, mul, center, r), *u = w ? B(b, mul, g, w) : g;
  peri_tensor *rph = h ? B(b, mul, r, project(b, h, xhat, rms)) : NULL;
  if (v->need[0]) {
    peri_tensor *z = hw ? B(b, mul, g, hw) : NULL, *dx = NULL;
    if (h) {
      peri_tensor *ah = B(b, mul, h, last_mean(b, B(b, mul, u, xhat)));
      peri_tensor *cu = B(b, mul, u, last_mean(b, B(b, mul, h, xhat)));
      z = plus(b, z, B(b, neg, B(b, mul, r, B(b, add, ah, cu))));
      peri_tensor *hpu = last_mean(b, B(b, mul, h, project(b, u, xhat, rms)));
      dx = B(b, neg, B(b, mul, xhat, B(b, mul, hpu, B(b, mul, r, r))));
    }
    if (z) dx = plus(b, dx, B(b, mul, r, project(b, z, xhat, rms)));
    v->gin[0] = dx;
  }
  if (v->need[1]) {
    peri_tensor *dg = rph && w ? B(b, mul, rph, w) : rph;
    if (hw) dg = plus(b, dg, B(b, mul, xhat, hw));
    if (hb) dg = dg ? B(b, add, dg, hb) : BA(b, expand, ATTR(A_DIMS(g->shape, g->ndim)), hb);
    v->gin[1] = dg;
  }
  if (w && v->need[2] && rph) v->gin[2] = B(b, mul, rph, g);
  if (v->c->in[3] && v->need[3]) v->gin[3] = h;
}

static peri_status layer_norm_backward_cpu (peri_call *c) { return norm_back_run(c, false); }
static peri_status rms_norm_backward_cpu (peri_call *c) { return norm_back_run(c, true); }
static void layer_norm_backward_vjp (peri_vjp *v) { norm_back_vjp(v, false); }
static void rms_norm_backward_vjp (peri_vjp *v) { norm_back_vjp(v, true); }

OPN(layer_norm_backward, 3,
    .sig = "x, g, weight:tensor?, add:tensor?, eps:num=1e-5, params:bool=true",
    .doc = "Gradients (dx + add, dweight, dbias) of layer_norm over the last dim; without params "
           "the last two are empty.",
    .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = norm_back_infer,
    .cpu = layer_norm_backward_cpu, .vjp = layer_norm_backward_vjp, .cost = norm_cost,
    TESTS(.domain = "shape=3,5; weight.shape=5; add.shape=3,5",
          .variants = { "shape=3,5", "shape=3,5; weight.shape=5; attr params=false" },
          .large = "shape=128,300; weight.shape=300; add.shape=128,300",
          .refuses = { "x.shape=2,3; g.shape=3 => (2, 3) | (3)" }));

OPN(rms_norm_backward, 2,
    .sig = "x, g, weight:tensor?, add:tensor?, eps:num=1e-6, params:bool=true",
    .doc = "Gradients (dx + add, dweight) of rms_norm over the last dim; without params the last "
           "one is empty.",
    .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = norm_back_infer, .cpu = rms_norm_backward_cpu,
    .vjp = rms_norm_backward_vjp, .cost = norm_cost,
    TESTS(.domain = "shape=3,5; weight.shape=5; add.shape=3,5",
          .variants = { "shape=3,5; weight.shape=5" },
          .large = "shape=128,300; weight.shape=300; add.shape=128,300",
          .refuses = { "x.shape=2,3; g.shape=3 => (2, 3) | (3)" }));

/* The gradients where those of weight and bias are chains over the rows, which begin at what dw and
** db hold (either may be NULL); dx, or NULL with a failure of the builder. */
static peri_tensor *norm_chain (peri_vjp *v, bool rms, peri_tensor *x, peri_tensor *w,
                                peri_tensor *gsum, peri_tensor *dw, peri_tensor *db) {
  peri_tensor *in[4] = { x, v->g[0], gsum, w }, *dense[4] = { NULL }, *dx = NULL;
  peri_ctx *ctx = v->c->ctx;
  peri_status s = v->b.status;
  double began = ctx->profile ? peri__now() : 0;
  for (int i = 0; i < 4 && s == PERI_OK; i++)
    if (in[i]) s = peri__contiguous(in[i], &dense[i]);
  if (s == PERI_OK) s = peri__new_like(x, (peri_dtype)x->dtype, &dx);
  if (s == PERI_OK && x->numel > 0) {
    struct peri__norm_back a = { .n = x->shape[x->ndim - 1],
                                 .eps = v->c->attr[0].f,
                                 .rms = rms,
                                 .x = dense[0]->data,
                                 .w = data_of(dense[3]),
                                 .g = dense[1]->data,
                                 .add = data_of(dense[2]),
                                 .dx = dx->data };
    int64_t rows = x->numel / a.n;
    void *to_w = dw ? dw->data : NULL, *to_b = db ? db->data : NULL;
    if (x->dtype == PERI_F64)
      norm_back_f64(&a, rows, to_w, to_b);
    else
      ctx->cpu->nn->norm_back(&a, 0, rows, to_w, to_b);
    if (ctx->profile)
      peri__profile_add(ctx, rms ? "rms_norm_backward" : "layer_norm_backward", peri__now() - began,
                        8.0 * (double)x->numel, 3.0 * (double)peri_nbytes(x));
  }
  for (int i = 0; i < 4; i++) peri_release(dense[i]);
  peri__build_fail(&v->b, s);
  return peri__build_own(&v->b, dx);
}

/* Is input i, where it is there and wanted, a chain (*out) or not there? False: it is summed. */
static bool chained (peri_vjp *v, int i, peri_tensor **out) {
  *out = NULL;
  return !v->c->in[i] || !v->need[i] || peri__chain(v, i, out);
}

/* Gradients for a norm of x whose weight is input wi and bias input wi + 1; sum: what was
** normalised; gsum: gradient of sum as an output, or NULL. */
static void norm_vjp (peri_vjp *v, bool rms, int wi, peri_tensor *sum, peri_tensor *gsum) {
  peri_build *b = &v->b;
  peri_tensor *w = v->c->in[wi], *out[PERI_MAX_OUT] = { NULL }, *dx = gsum, *dw = NULL, *db = NULL;
  bool bias = !rms && v->c->in[wi + 1] && v->need[wi + 1];
  bool params = (w && v->need[wi]) || bias;
  if (v->g[0] && params && chained(v, wi, &dw) && (rms || chained(v, wi + 1, &db))) {
    dx = norm_chain(v, rms, sum, w, gsum, dw, db);
    out[1] = dw;
    out[2] = db;
  } else if (v->g[0]) {
    peri__build_all(b, rms ? &peri__op_rms_norm_backward : &peri__op_layer_norm_backward, 4,
                    (peri_tensor *[]){ sum, v->g[0], w, gsum },
                    ATTR({ .f = v->c->attr[0].f }, A_INT(params)), out);
    dx = out[0];
    if (dw) out[1] = B(b, add, dw, out[1]); /* the bias could not go on, and so neither can this */
  }
  for (int i = 0; i < wi; i++)
    if (v->need[i]) v->gin[i] = dx;
  if (w && v->need[wi]) v->gin[wi] = out[1];
  if (bias) v->gin[wi + 1] = out[2];
}

/* ---- layer_norm ---- */

static peri_status layer_norm_infer (peri_call *c) {
  int64_t n = 0;
  TRY(want_rows(c, &n));
  TRY(want_row(c, 1, "weight", n));
  TRY(want_row(c, 2, "bias", n));
  return peri__infer_same(c);
}
static peri_status layer_norm_cpu (peri_call *c) {
  return norm_run(c, false, NULL, c->in[1], c->in[2]);
}
static void layer_norm_vjp (peri_vjp *v) { norm_vjp(v, false, 1, v->c->in[0], NULL); }

OP(layer_norm, .sig = "x, weight:tensor?, bias:tensor?, eps:num=1e-5",
   .doc = "(x - mean) / sqrt(variance + eps) * weight + bias over the last dim (arXiv:1607.06450).",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = layer_norm_infer, .cpu = layer_norm_cpu,
   .vjp = layer_norm_vjp, .cost = norm_cost,
   TESTS(.domain = "x.shape=3,5; weight.shape=5; bias.shape=5",
         .variants = { "x.shape=2,3,5", "x.shape=3,5; weight.shape=5; attr eps=0.1",
                       "x.shape=3,5; bias.shape=5" },
         .large = "x.shape=128,300; weight.shape=300; bias.shape=300",
         .refuses = { "x.shape=2,3; weight.shape=4 => (4) | 3",
                      "x.shape=(); x=f32[1.5] => no dim" }));

/* ---- rms_norm ---- */

static peri_status rms_norm_infer (peri_call *c) {
  int64_t n = 0;
  TRY(want_rows(c, &n));
  TRY(want_row(c, 1, "weight", n));
  return peri__infer_same(c);
}
static peri_status rms_norm_cpu (peri_call *c) { return norm_run(c, true, NULL, c->in[1], NULL); }
static void rms_norm_vjp (peri_vjp *v) { norm_vjp(v, true, 1, v->c->in[0], NULL); }

OP(rms_norm, .sig = "x, weight:tensor?, eps:num=1e-6",
   .doc = "x / sqrt(mean(x^2) + eps) * weight over the last dim (arXiv:1910.07467).",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = rms_norm_infer, .cpu = rms_norm_cpu,
   .vjp = rms_norm_vjp, .cost = norm_cost,
   TESTS(.domain = "x.shape=3,5; weight.shape=5", .variants = { "x.shape=2,3,5; attr eps=0.1" },
         .large = "x.shape=128,300; weight.shape=300",
         .refuses = { "x.shape=2,3; weight.shape=4 => (4) | 3",
                      "x.shape=(); x=f32[1.5] => no dim" }));

/* ---- add_layer_norm, add_rms_norm ---- */

static peri_status add_norm_infer (peri_call *c) {
  int64_t n = 0;
  TRY(want_rows(c, &n));
  TRY(want_like(c, 1, "residual"));
  TRY(want_row(c, 2, "weight", n));
  if (c->nin > 3) TRY(want_row(c, 3, "bias", n));
  TRY(peri__infer_same(c));
  return peri__new_like(c->in[0], (peri_dtype)c->in[0]->dtype, &c->out[1]);
}
static peri_status add_layer_norm_cpu (peri_call *c) {
  return norm_run(c, false, c->in[1], c->in[2], c->in[3]);
}
static void add_layer_norm_vjp (peri_vjp *v) {
  norm_vjp(v, false, 2, v->g[0] ? peri__saved(v, 1) : NULL, v->g[1]);
}
static peri_status add_rms_norm_cpu (peri_call *c) {
  return norm_run(c, true, c->in[1], c->in[2], NULL);
}
static void add_rms_norm_vjp (peri_vjp *v) {
  norm_vjp(v, true, 2, v->g[0] ? peri__saved(v, 1) : NULL, v->g[1]);
}

OPN(add_layer_norm, 2, .sig = "x, residual, weight:tensor?, bias:tensor?, eps:num=1e-5",
    .doc = "layer_norm of x + residual, and that sum, in one pass.",
    .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = add_norm_infer, .cpu = add_layer_norm_cpu,
    .vjp = add_layer_norm_vjp, .cost = norm_cost,
    TESTS(.domain = "x.shape=3,5; residual.shape=3,5; weight.shape=5; bias.shape=5",
          .variants = { "x.shape=3,5; residual.shape=3,5" },
          .large = "shape=128,300; weight.shape=300; bias.shape=300",
          .refuses = { "x.shape=2,3; residual.shape=3 => (2, 3) | (3)" }));

OPN(add_rms_norm, 2, .sig = "x, residual, weight:tensor?, eps:num=1e-6",
    .doc = "rms_norm of x + residual, and that sum, in one pass.",
    .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = add_norm_infer, .cpu = add_rms_norm_cpu,
    .vjp = add_rms_norm_vjp, .cost = norm_cost,
    TESTS(.domain = "x.shape=3,5; residual.shape=3,5; weight.shape=5",
          .variants = { "x.shape=3,5; residual.shape=3,5" },
          .large = "shape=128,300; weight.shape=300",
          .refuses = { "x.shape=2,3; residual.shape=3 => (2, 3) | (3)" }));

/* ---- group_norm ---- */

static void group_norm_compose (peri_build *b, peri_call *c) {
  peri_tensor *x = c->in[0];
  int64_t groups = c->attr[0].i;
  char buf[128];
  if (x->ndim < 2 || groups < 1 || x->shape[1] % groups != 0) {
    peri__build_fail(
        b, peri__fail(c->ctx, PERI_ESHAPE,
                      "x has shape %s, expected (N, C, ...) with C a multiple of %lld groups",
                      peri__shape_text(x, buf, sizeof buf), (long long)groups));
    return;
  }
  for (int i = 1; i <= 2; i++) {
    peri_status s = want_row(c, i, i == 1 ? "weight" : "bias", x->shape[1]);
    if (s != PERI_OK) {
      peri__build_fail(b, s);
      return;
    }
  }
  int64_t rows[3] = { x->shape[0], groups, x->shape[1] / groups }, channel[PERI_MAX_DIMS];
  for (int i = 0; i < x->ndim - 1; i++) channel[i] = i == 0 ? x->shape[1] : 1;
  for (int i = 2; i < x->ndim; i++) rows[2] *= x->shape[i];
  peri_tensor *y = BA(b, reshape, ATTR(A_DIMS(rows, 3)), x);
  y = BA(b, layer_norm, ATTR(A_NUM(c->attr[1].f)), y, NULL, NULL);
  y = BA(b, reshape, ATTR(A_DIMS(x->shape, x->ndim)), y);
  if (c->in[1]) y = B(b, mul, y, BA(b, reshape, ATTR(A_DIMS(channel, x->ndim - 1)), c->in[1]));
  if (c->in[2]) y = B(b, add, y, BA(b, reshape, ATTR(A_DIMS(channel, x->ndim - 1)), c->in[2]));
  c->out[0] = y;
}

OP(group_norm, .sig = "x, weight:tensor?, bias:tensor?, groups:int, eps:num=1e-5",
   .doc = "x (N, C, ...) normalised over each of groups of channels, times weight (C) plus bias "
          "(C) (arXiv:1803.08494).",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .compose = group_norm_compose,
   TESTS(.domain = "x.shape=2,4,3; weight.shape=4; bias.shape=4; attr groups=2",
         .variants = { "x.shape=2,6,2,2; weight.shape=6; attr groups=3",
                       "x.shape=2,4; bias.shape=4; attr groups=2; attr eps=0.1" },
         .large = "x.shape=16,8,40,10; weight.shape=8; bias.shape=8; attr groups=2",
         .refuses = { "x.shape=2,4; attr groups=3 => (2, 4) | 3" }));
