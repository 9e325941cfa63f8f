/*
** gated.c - the gated activation of SwiGLU feed-forward layers (arXiv:2002.05202): silu(gate) * up,
** from two tensors or from the halves of one.
*/
#include <math.h>
#include <string.h>

#include "cpu/nn.h"
#include "op/op.h"

/* Rows of n; x_row and g_row are strides. Forward: y (y_row). Backward: dgate, dup (x_row). */
typedef struct gated_job {
  const struct peri__nn_kernels *k;
  const char *gate, *up, *g; /* g NULL: forward */
  char *y, *dup;             /* y is dgate in the backward pass */
  int64_t n, x_row;          /* gate, up, dgate, dup have rows x_row apart; y and g n apart */
  bool f64;
} gated_job;

static void gated_f64 (const double *gate, const double *up, const double *g, double *y,
                       double *dup, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    double s = 1 / (1 + exp(-gate[i]));
    if (g) {
      y[i] = g[i] * up[i] * s * (1 + gate[i] * (1 - s));
      dup[i] = g[i] * gate[i] * s;
    } else
      y[i] = gate[i] * s * up[i];
  }
}

static void gated_range (void *ud, int64_t begin, int64_t end, int worker) {
  const gated_job *j = ud;
  int64_t size = j->f64 ? 8 : 4;
  (void)worker;
  for (int64_t r = begin; r < end; r++) {
    int64_t x = r * j->x_row * size, t = r * j->n * size;
    const void *gate = j->gate + x, *up = j->up + x, *g = j->g ? j->g + t : NULL;
    void *y = j->y + (g ? x : t), *dup = g ? j->dup + x : NULL;
    if (j->f64)
      gated_f64(gate, up, g, y, dup, j->n);
    else if (g)
      j->k->silu_mul_back(gate, up, g, y, dup, j->n);
    else
      j->k->silu_mul(gate, up, y, j->n);
  }
}

static void gated_run (peri_ctx *ctx, gated_job *j, int64_t rows) {
  j->k = ctx->cpu->nn;
  if (j->n > 0) peri__parallel(ctx, rows, 8192 / j->n + 1, gated_range, j);
}

/* ---- silu_mul ---- */

static peri_status silu_mul_infer (peri_call *c) { /* all inputs have one shape */
  char a[128], b[128];
  const peri_tensor *x = c->in[0];
  TRY(peri__want_float(c, 0, "gate"));
  for (int i = 1; i < c->nin; i++)
    if (c->in[i]->ndim != x->ndim ||
        memcmp(c->in[i]->shape, x->shape, sizeof *x->shape * x->ndim) != 0)
      return peri__fail(c->ctx, PERI_ESHAPE, "gate has shape %s and %s %s; they must be equal",
                        peri__shape_text(x, a, sizeof a), i == 1 ? "up" : "g",
                        peri__shape_text(c->in[i], b, sizeof b));
  for (int k = 0; k < c->op->nout; k++) TRY(peri__new_like(x, (peri_dtype)x->dtype, &c->out[k]));
  return PERI_OK;
}

/* Dense inputs of one shape: rows are the last dim. */
static peri_status silu_mul_run (peri_call *c, const peri_tensor *g) {
  const peri_tensor *x = c->in[0];
  int64_t n = x->ndim ? x->shape[x->ndim - 1] : 1;
  gated_job j = { .gate = x->data,
                  .up = c->in[1]->data,
                  .g = g ? g->data : NULL,
                  .y = c->out[0]->data,
                  .dup = g ? c->out[1]->data : NULL,
                  .n = n,
                  .x_row = n,
                  .f64 = x->dtype == PERI_F64 };
  gated_run(c->ctx, &j, n ? x->numel / n : 0);
  return PERI_OK;
}

static peri_status silu_mul_cpu (peri_call *c) { return silu_mul_run(c, NULL); }
static peri_status silu_mul_backward_cpu (peri_call *c) { return silu_mul_run(c, c->in[2]); }

static void gated_cost (const peri_call *c, double *flops, double *bytes) {
  *flops = 12.0 * (double)c->in[0]->numel;
  *bytes = 3.0 * (double)c->in[0]->numel * (double)peri__size(c->in[0]);
}

/* With s = sigmoid(x), silu' = s (1 + x (1 - s)) and silu'' = s (1 - s) (2 + x (1 - 2 s)); dgate =
** g up silu', dup = g silu. hx, hu: cotangents of those, each may be NULL. */
static void silu_mul_backward_vjp (peri_vjp *v) {
  peri_build *b = &v->b;
  peri_tensor *x = v->c->in[0], *u = v->c->in[1], *g = v->c->in[2], *hx = v->g[0], *hu = v->g[1];
  peri_tensor *one = peri__build_scalar(b, 1), *s = B(b, sigmoid, x), *rest = B(b, sub, one, s);
  peri_tensor *d1 = B(b, mul, s, B(b, add, one, B(b, mul, x, rest)));
  peri_tensor *sx = NULL, *su = NULL, *sg = NULL;
  if (hx) {
    peri_tensor *bend = B(b, mul, x, B(b, sub, rest, s)), *two = peri__build_scalar(b, 2);
    peri_tensor *d2 = B(b, mul, B(b, mul, s, rest), B(b, add, two, bend));
    peri_tensor *hd1 = B(b, mul, hx, d1);
    sx = B(b, mul, B(b, mul, hx, d2), B(b, mul, g, u));
    su = B(b, mul, hd1, g);
    sg = B(b, mul, hd1, u);
  }
  if (hu) {
    peri_tensor *x2 = B(b, mul, hu, B(b, mul, g, d1)), *g2 = B(b, mul, hu, B(b, mul, x, s));
    sx = sx ? B(b, add, sx, x2) : x2;
    sg = sg ? B(b, add, sg, g2) : g2;
  }
  v->gin[0] = sx;
  v->gin[1] = su;
  v->gin[2] = sg;
}

OPN(silu_mul_backward, 2, .sig = "gate, up, g", .doc = "Gradients (dgate, dup) of silu_mul.",
    .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = silu_mul_infer, .cpu = silu_mul_backward_cpu,
    .vjp = silu_mul_backward_vjp, .cost = gated_cost);

static void silu_mul_vjp (peri_vjp *v) {
  peri_tensor *out[PERI_MAX_OUT];
  peri__build_all(&v->b, &peri__op_silu_mul_backward, 3,
                  (peri_tensor *[]){ v->c->in[0], v->c->in[1], v->g[0] }, NULL, out);
  v->gin[0] = out[0];
  v->gin[1] = out[1];
}

OP(silu_mul, .sig = "gate, up",
   .doc = "silu(gate) * up, two tensors of one shape (arXiv:2002.05202).",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = silu_mul_infer, .cpu = silu_mul_cpu,
   .vjp = silu_mul_vjp, .cost = gated_cost);

/* ---- swiglu ---- */

static peri_status swiglu_infer (peri_call *c) {
  char buf[128], buf2[128];
  const peri_tensor *x = c->in[0], *g = c->nin > 1 ? c->in[1] : NULL;
  int64_t shape[PERI_MAX_DIMS];
  TRY(peri__want_float(c, 0, "x"));
  if (x->ndim < 1 || x->shape[x->ndim - 1] % 2 != 0)
    return peri__fail(c->ctx, PERI_ESHAPE, "x has shape %s, expected (..., 2 F)",
                      peri__shape_text(x, buf, sizeof buf));
  for (int i = 0; i < x->ndim; i++) shape[i] = x->shape[i];
  shape[x->ndim - 1] /= 2;
  if (!g) return peri__new(c->ctx, (peri_dtype)x->dtype, x->ndim, shape, &c->out[0]);
  if (g->ndim != x->ndim || memcmp(g->shape, shape, sizeof *shape * x->ndim) != 0)
    return peri__fail(c->ctx, PERI_ESHAPE, "x has shape %s and g %s; expected half of the last dim",
                      peri__shape_text(x, buf, sizeof buf), peri__shape_text(g, buf2, sizeof buf2));
  return peri__infer_same(c);
}

static peri_status swiglu_run (peri_call *c, const peri_tensor *g) {
  const peri_tensor *x = c->in[0];
  int64_t n = x->shape[x->ndim - 1] / 2, half = n * (int64_t)peri__size(x);
  gated_job j = { .gate = x->data,
                  .up = (const char *)x->data + half,
                  .g = g ? g->data : NULL,
                  .y = c->out[0]->data,
                  .dup = (char *)c->out[0]->data + half,
                  .n = n,
                  .x_row = 2 * n,
                  .f64 = x->dtype == PERI_F64 };
  gated_run(c->ctx, &j, n ? x->numel / (2 * n) : 0);
  return PERI_OK;
}

static peri_status swiglu_cpu (peri_call *c) { return swiglu_run(c, NULL); }
static peri_status swiglu_backward_cpu (peri_call *c) { return swiglu_run(c, c->in[1]); }

/* The two-tensor form on the halves, which has a vjp. */
static void swiglu_backward_vjp (peri_vjp *v) {
  peri_build *b = &v->b;
  peri_tensor *x = v->c->in[0], *h = v->g[0];
  int64_t n = x->shape[x->ndim - 1] / 2;
  peri_tensor *half[4];
  for (int i = 0; i < 4; i++)
    half[i] = BA(b, narrow, ATTR(A_INT(-1), A_INT(i % 2 ? n : 0), A_INT(n)), i < 2 ? x : h);
  peri_tensor *s = B(b, sigmoid, half[0]), *one = peri__build_scalar(b, 1),
              *rest = B(b, sub, one, s);
  peri_tensor *d1 = B(b, mul, s, B(b, add, one, B(b, mul, half[0], rest)));
  peri_tensor *bend = B(b, mul, half[0], B(b, sub, rest, s)), *g = v->c->in[1];
  peri_tensor *d2 = B(b, mul, B(b, mul, s, rest), B(b, add, peri__build_scalar(b, 2), bend));
  if (v->need[0]) {
    peri_tensor *dgate = B(b, add, B(b, mul, B(b, mul, half[2], d2), B(b, mul, g, half[1])),
                           B(b, mul, half[3], B(b, mul, g, d1)));
    v->gin[0] = BA(b, cat, ATTR(A_INT(-1)), dgate, B(b, mul, half[2], B(b, mul, g, d1)));
  }
  if (v->need[1])
    v->gin[1] = B(b, add, B(b, mul, half[2], B(b, mul, half[1], d1)),
                  B(b, mul, half[3], B(b, mul, half[0], s)));
}

OP(swiglu_backward, .sig = "x, g",
   .doc = "Gradient (..., 2 F) of swiglu, from x (..., 2 F) and g (..., F).",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = swiglu_infer, .cpu = swiglu_backward_cpu,
   .vjp = swiglu_backward_vjp, .cost = gated_cost, .domain = "x.shape=3,8; g.shape=3,4");

static void swiglu_vjp (peri_vjp *v) {
  v->gin[0] = B(&v->b, swiglu_backward, v->c->in[0], v->g[0]);
}

OP(swiglu, .sig = "x", .doc = "silu(x[..., :F]) * x[..., F:] for x (..., 2 F) (arXiv:2002.05202).",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = swiglu_infer, .cpu = swiglu_cpu,
   .vjp = swiglu_vjp, .cost = gated_cost, .domain = "x.shape=3,8");
