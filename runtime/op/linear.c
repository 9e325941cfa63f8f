/*
** linear.c - the product with a weight that every layer is made of, with its bias and activation.
*/
#include <inttypes.h>
#include <string.h>

#include "autograd/tape.h"
#include "cpu/gemm.h"
#include "op/activation.h"
#include "op/matrix.h"
#include "op/weights.h"

static peri_status linear_infer (peri_call *c) {
  peri_tensor *x = c->in[0], *w = c->in[1], *b = c->in[2];
  char sx[128], sw[128];
  const peri__act *a;
  TRY(peri__act_named(c->ctx, c->attr[0].s, &a));
  TRY(peri__want_matrices(c, "x", "weight"));
  TRY(peri__want_float(c, 0, "x"));
  TRY(peri__want_ndim(c, 1, "weight", 2));
  if (x->shape[x->ndim - 1] != w->shape[1])
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "x %s and weight %s (out, in): inner sizes %" PRId64 " and %" PRId64
                      " differ",
                      peri__shape_text(x, sx, sizeof sx), peri__shape_text(w, sw, sizeof sw),
                      x->shape[x->ndim - 1], w->shape[1]);
  if (b != NULL) {
    TRY(peri__want_dtype(c, 2, "bias", x->dtype));
    TRY(peri__want_ndim(c, 2, "bias", 1));
    if (b->shape[0] != w->shape[0])
      return peri__fail(c->ctx, PERI_ESHAPE,
                        "bias has %" PRId64 " elements, weight %s makes %" PRId64, b->shape[0],
                        peri__shape_text(w, sw, sizeof sw), w->shape[0]);
  }
  int64_t shape[PERI_MAX_DIMS];
  memcpy(shape, x->shape, sizeof shape);
  shape[x->ndim - 1] = w->shape[0];
  TRY(peri__new(c->ctx, (peri_dtype)x->dtype, x->ndim, shape, &c->out[0]));
  /* The pre-activation is kept only where a gradient will ask for it. */
  bool keep = a != NULL && !a->from_output && c->ctx->grad_enabled &&
              (peri__tracked(x) || peri__tracked(w) || (b != NULL && peri__tracked(b)));
  int64_t none = 0;
  return peri__new(c->ctx, (peri_dtype)x->dtype, keep ? x->ndim : 1, keep ? shape : &none,
                   &c->out[1]);
}

/* The activation of a finished block, from the pre-activation at c to y. */
typedef struct finish {
  peri__kernel fn;
  float *y; /* (rows, n); the product's own C when nothing else wants it */
  int64_t n;
} finish;

static void activate (void *ud, float *c, int64_t crs, int64_t i, int64_t j, int64_t m, int64_t n) {
  const finish *f = ud;
  const int64_t step = 1;
  for (int64_t r = 0; r < m; r++) {
    const void *in = c + r * crs;
    f->fn(n, &in, &step, f->y + (i + r) * f->n + j, NULL);
  }
}

static peri_status linear_f32 (peri_ctx *ctx, const peri_tensor *x, int64_t xrs,
                               const peri_tensor *w, const peri_tensor *bias, const peri__act *a,
                               peri_tensor *y, peri_tensor *pre) {
  int64_t n = w->shape[0], k = w->shape[1];
  peri__matrix m = peri__matrix_of(w, false);
  finish f = { a == NULL ? NULL : ctx->cpu->math->unary[a->unary], y->data, n };
  peri__gemm g = { .m = n > 0 ? y->numel / n : 0,
                   .n = n,
                   .k = k,
                   .a = x->data,
                   .ars = xrs,
                   .acs = x->shape[x->ndim - 1] == 1 ? 1 : x->stride[x->ndim - 1],
                   .b = w->data,
                   .brs = m.cs,
                   .bcs = m.rs,
                   .c = pre->numel > 0 ? pre->data : y->data,
                   .crs = n,
                   .bias = bias != NULL ? bias->data : NULL };
  if (f.fn != NULL) {
    g.done = activate;
    g.done_ud = &f;
  }
  return peri__gemm_f32(ctx, &g);
}

static peri_status linear_f64 (peri_ctx *ctx, const peri_tensor *x, int64_t xrs,
                               const peri_tensor *w, const peri_tensor *bias, const peri__act *a,
                               peri_tensor *y, peri_tensor *pre) {
  int64_t n = w->shape[0];
  peri_tensor *c = pre->numel > 0 ? pre : y;
  peri__gemm64 g = { .m = n > 0 ? y->numel / n : 0,
                     .n = n,
                     .k = w->shape[1],
                     .a = x->data,
                     .ars = xrs,
                     .acs = x->stride[x->ndim - 1],
                     .b = w->data,
                     .brs = w->stride[1],
                     .bcs = w->stride[0],
                     .c = c->data,
                     .crs = n,
                     .bias = bias != NULL ? bias->data : NULL };
  peri__gemm_f64(ctx, &g);
  const void *in = c->data;
  const int64_t step = 1;
  if (a != NULL) a->f64(y->numel, &in, &step, y->data, NULL);
  return PERI_OK;
}

/* A range of y = act(c). */
typedef struct act_job {
  peri__kernel fn;
  const float *c;
  float *y;
} act_job;

static void act_range (void *ud, int64_t begin, int64_t end, int worker) {
  const act_job *j = ud;
  const void *in = j->c + begin;
  const int64_t step = 1;
  (void)worker;
  j->fn(end - begin, &in, &step, j->y + begin, NULL);
}

/* A quantised or packed weight; x and bias are f32. */
static peri_status linear_weight (peri_call *c, const peri__act *a) {
  peri_tensor *x = peri_retain(c->in[0]), *bias = NULL, *y = c->out[0];
  int64_t k = c->in[1]->shape[1], n = c->in[1]->shape[0], xrs = k;
  peri_status s = PERI_OK;
  if ((k > 1 && x->stride[x->ndim - 1] != 1) || (x->ndim > 1 && !peri__one_row_stride(x, &xrs))) {
    peri_release(x);
    s = peri__contiguous(c->in[0], &x);
    xrs = k;
  }
  if (s == PERI_OK && c->in[2] != NULL) s = peri__contiguous(c->in[2], &bias);
  float *to = c->out[1]->numel > 0 ? c->out[1]->data : y->data;
  if (s == PERI_OK)
    s = peri__weight_product(c->ctx, c->in[1], y->numel / n, x->data, xrs,
                             bias != NULL ? bias->data : NULL, to);
  if (s == PERI_OK && a != NULL)
    peri__parallel(c->ctx, y->numel, 8192, act_range,
                   &(act_job){ c->ctx->cpu->math->unary[a->unary], to, y->data });
  peri_release(x);
  peri_release(bias);
  return s;
}

static peri_status linear_cpu (peri_call *c) {
  peri_tensor *x = NULL, *w = NULL, *bias = NULL;
  int64_t xrs = 0;
  const peri__act *a;
  TRY(peri__act_named(c->ctx, c->attr[0].s, &a));
  if (c->out[0]->numel == 0) return PERI_OK;
  if (peri__opaque(c->in[1])) return linear_weight(c, a);
  peri_status s = peri__matrix_readable(c->in[0], false, &x);
  if (s == PERI_OK) s = peri__matrix_readable(c->in[1], false, &w);
  if (s == PERI_OK && c->in[2] != NULL) s = peri__contiguous(c->in[2], &bias);
  if (s == PERI_OK && x->ndim > 1 && !peri__one_row_stride(x, &xrs)) {
    peri_tensor *dense = NULL;
    s = peri__contiguous(x, &dense);
    peri_release(x);
    x = dense;
    if (s == PERI_OK) peri__one_row_stride(x, &xrs);
  }
  if (s == PERI_OK)
    s = (x->dtype == PERI_F32 ? linear_f32 : linear_f64)(c->ctx, x, xrs, w, bias, a, c->out[0],
                                                         c->out[1]);
  peri_release(x);
  peri_release(w);
  peri_release(bias);
  return s;
}

/* Gradient of the pre-activation. */
static peri_tensor *act_vjp (peri_vjp *v, const peri__act *a, peri_tensor *g) {
  if (a == NULL) return g;
  peri_tensor *in[2] = { peri__saved(v, a->from_output ? 0 : 1), g };
  return peri__build(&v->b, a->back, 2, in, NULL);
}

/* The chains of a weight's gradient go on over the rows of g (rows, out) and x (rows, in). */
static void chain_products (peri_vjp *v, peri_tensor *g, peri_tensor *x, peri_tensor *out) {
  peri_ctx *ctx = v->c->ctx;
  peri_tensor *dense[2] = { NULL };
  if (!g || !x || !out) return;
  double began = ctx->profile ? peri__now() : 0;
  peri_status s = peri__contiguous(g, &dense[0]);
  if (s == PERI_OK) s = peri__contiguous(x, &dense[1]);
  if (s == PERI_OK && out->numel > 0) {
    const int64_t m = out->shape[0], n = out->shape[1];
    const peri__product p = { out->dtype == PERI_F64, m, n, g->shape[0], dense[0]->data, 1,   m,
                              dense[1]->data,         n, 1, out->data,   true,           NULL };
    s = peri__product_run(ctx, &p);
    if (s == PERI_OK && peri__stopped(ctx)) s = peri__fail(ctx, PERI_EINTR, "interrupted");
    if (ctx->profile)
      peri__profile_add(ctx, "matmul", peri__now() - began, 2.0 * (double)(m * n * g->shape[0]),
                        (double)(peri_nbytes(g) + peri_nbytes(x) + 2 * peri_nbytes(out)));
  }
  peri_release(dense[0]);
  peri_release(dense[1]);
  peri__build_fail(&v->b, s);
}

/* The rows of g (rows, n) to sums that hold what came before. */
static void chain_rows (peri_vjp *v, peri_tensor *g, peri_tensor *out) {
  peri_tensor *dense = NULL;
  if (!g || !out) return;
  peri_status s = peri__contiguous(g, &dense);
  for (int64_t i = 0, n = out->numel; s == PERI_OK && i < g->shape[0]; i++)
    if (out->dtype == PERI_F64)
      for (int64_t j = 0; j < n; j++)
        ((double *)out->data)[j] += ((const double *)dense->data)[i * n + j];
    else
      for (int64_t j = 0; j < n; j++)
        ((float *)out->data)[j] += ((const float *)dense->data)[i * n + j];
  peri_release(dense);
  peri__build_fail(&v->b, s);
}

static void linear_vjp (peri_vjp *v) {
  peri_build *b = &v->b;
  peri_tensor *x = v->c->in[0], *w = v->c->in[1];
  const peri__act *a;
  peri__build_fail(b, peri__act_named(v->c->ctx, v->c->attr[0].s, &a));
  /* pre gets a gradient of its own in a second backward pass */
  peri_tensor *g = v->g[0] != NULL ? act_vjp(v, a, v->g[0]) : v->g[1];
  if (v->g[0] != NULL && v->g[1] != NULL) g = B(b, add, g, v->g[1]);
  if (g == NULL) return; /* the builder holds the failure */
  if (v->need[0]) v->gin[0] = B(b, matmul, g, w);
  if (!v->need[1] && !(v->c->in[2] != NULL && v->need[2])) return;
  if (g->ndim == 1) g = BA(b, unsqueeze, ATTR(A_INT(0)), g);
  g = peri__flat_rows(b, g);
  if (v->need[1]) {
    if (x->ndim == 1) x = BA(b, unsqueeze, ATTR(A_INT(0)), x);
    x = peri__flat_rows(b, x);
    if (peri__chain(v, 1, &v->gin[1]))
      chain_products(v, g, x, v->gin[1]);
    else
      v->gin[1] = B(b, matmul, peri__turned(b, g), x);
  }
  if (v->c->in[2] != NULL && v->need[2] && peri__chain(v, 2, &v->gin[2]))
    chain_rows(v, g, v->gin[2]);
  else if (v->c->in[2] != NULL && v->need[2]) {
    const int64_t rows = 0;
    v->gin[2] = BA(b, sum, ATTR(A_DIMS(&rows, 1), A_INT(0)), g);
  }
}

OPN(linear, 2, .nret = 1, .sig = "x, weight, bias:tensor?, act:str=none",
    .flags = PERI_OP_STRIDED | PERI_OP_UPCAST | PERI_OP_WEIGHT,
    .doc =
        "act(x weight^T + bias), x (..., in), weight (out, in), bias (out) -> (..., out); act is "
        "none or the name of an activation (peri.activations()). weight may be quantised or "
        "packed, "
        "and gets no gradient then.",
    .infer = linear_infer, .cpu = linear_cpu, .vjp = linear_vjp, .cost = peri__matmul_cost,
    TESTS(.domain = "x.shape=2,3,4; weight.shape=5,4; bias.shape=5",
          .variants = { "x.shape=4; weight.shape=5,4",
                        "x.shape=3,4; weight.shape=5,4; bias.shape=5; attr act=relu",
                        "x.shape=3,4; weight.shape=5,4; bias.shape=5; attr act=gelu",
                        "x.shape=3,4; weight.shape=5,4; attr act=silu",
                        "x.shape=3,4; weight.shape=5,4; attr act=gelu_tanh" },
          .large = "x.shape=130,200; weight.shape=150,200; bias.shape=150",
          .refuses = { "x.shape=3; x=f64:-2..2; weight.shape=2,3; weight=packed => f64 | packed",
                       "x.shape=4,8; weight.shape=16,7 => 8 | 7",
                       "x.shape=4,8; weight.shape=16,8; bias.shape=3 => 3 | 16",
                       "x.shape=4,8; weight.shape=16,8; attr act=swish => silu" }));
