/*
** gated.c - gated activations of feed-forward layers (arXiv:2002.05202): act(gate) * up, from two
** tensors or from the halves of one, for every activation of the registry.
*/
#include <string.h>

#include "cpu/cpu.h"
#include "op/activation.h"

/* Rows of n; x_row is a stride. Forward: y. Backward: dgate is y, and dup. */
typedef struct gated_job {
  const peri__act *act;
  const struct peri__math_kernels *k;
  const char *gate, *up, *g; /* g NULL: forward */
  char *y, *dup;
  int64_t n, x_row; /* gate, up, dgate, dup have rows x_row apart; y and g n apart */
  bool f64;
} gated_job;

enum { CHUNK = 256 };

/* The same in f64, by the activation's own kernels. */
static void gated_f64 (const peri__act *act, const double *gate, const double *up, const double *g,
                       double *y, double *dup, int64_t n) {
  static const int64_t step[2] = { 1, 1 };
  double value[CHUNK], into[CHUNK];
  for (int64_t i = 0; i < n; i += CHUNK) {
    int64_t m = n - i < CHUNK
    ? n - i : CHUNK;
    const void *x = gate + i;
    act->f64(m, &x, step, value, NULL);
    if (!g)
      for (int64_t k = 0; k < m; k++) y[i + k] = value[k] * up[i + k];
    else {
      for (int64_t k = 0; k < m; k++) into[k] = g[i + k] * up[i + k];
      act->back_f64(m, (const void *[]){ act->from_output ? value : x, into }, step, y + i, NULL);
      for (int64_t k = 0; k < m; k++) dup[i + k] = g[i + k] * value[k];
    }
  }
}

static void gated_range (void *ud, int64_t begin, int64_t end, int worker) {
  const gated_job *j = ud;
  const peri__gate *gates = &j->k->gate[j->act->id];
  int64_t size = j->f64 ? 8 : 4;
  (void)worker;
  for (int64_t r = begin; r < end; r++) {
    int64_t x = r * j->x_row * size, t = r * j->n * size;
    const void *gate = j->gate + x, *up = j->up + x, *g = j->g ? j->g + t : NULL;
    void *y = j->y + (g ? x : t), *dup = g ? j->dup + x : NULL;
    if (j->f64)
      gated_f64(j->act, gate, up, g, y, dup, j->n);
    else if (g)
      gates->back(gate, up, g, y, dup, j->n);
    else
      gates->forward(gate, up, y, j->n);
  }
}

static void gated_run (peri_ctx *ctx, gated_job *j, int64_t rows) {
  j->k = ctx->cpu->math;
  if (j->n > 0) peri__parallel(ctx, rows, 8192 / j->n + 1, gated_range, j);
}

/* The activation of a call: silu of the two ops that are named for it, else the attribute's. */
static peri_status gate_of (const peri_call *c, const peri__act **out) {
  *out = peri__act_at(PERI_ACT_silu);
  if (c->op == &peri__op_swiglu || c->op == &peri__op_silu_mul) return PERI_OK;
  TRY(peri__act_named(c->ctx, c->attr[0].s, out));
  if (*out == NULL) return peri__fail(c->ctx, PERI_EINVAL, "act is none, expected an activation");
  return PERI_OK;
}

static void gated_cost (const peri_call *c, double *flops, double *bytes) {
  *flops = 12.0 * (double)c->in[0]->numel;
  *bytes = 3.0 * (double)c->in[0]->numel * (double)peri__size(c->in[0]);
}

/* The gradients of a backward pass: with f the activation, dgate = f'(x) g u and dup = f(x) g. hx, hu
** are cotangents of those, each may be NULL. */
typedef struct second {
  peri_tensor *x, *u, *g;
} second;

static second second_of (peri_build *b, const peri__act *act, second in, peri_tensor *hx,
                         peri_tensor *hu) {
  second out = { NULL, NULL, NULL };
  peri_tensor *y = peri__build(b, act->op, 1, &in.x, act->attr);
  peri_tensor *saved = act->from_output ? y : in.x;
#define SLOPE(g) peri__build(b, act->back, 2, (peri_tensor *[]){ saved, (g) }, NULL)
  if (hx) {
    peri_tensor *d = SLOPE(hx);
    out.u = B(b, mul, d, in.g);
    out.g = B(b, mul, d, in.u);
    if (act->bend) {
      out.x = B(b, mul, B(b, mul, B(b, mul, hx, in.g), in.u), act->bend(b, saved));
      if (act->from_output) out.x = SLOPE(out.x);
    }
  }
  if (hu) {
    peri_tensor *x = SLOPE(B(b, mul, hu, in.g)), *g = B(b, mul, hu, y);
    out.x = out.x ? B(b, add, out.x, x) : x;
    out.g = out.g ? B(b, add, out.g, g) : g;
  }
#undef SLOPE
  return out;
}

/* ---- gated_mul ---- */

static peri_status gated_mul_infer (peri_call *c) { /* all inputs have one shape */
  char a[128], b[128];
  const peri_tensor *x = c->in[0];
  const peri__act *act;
  TRY(peri__want_float(c, 0, "gate"));
  TRY(gate_of(c, &act));
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
static peri_status gated_mul_run (peri_call *c, const peri_tensor *g) {
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
  TRY(gate_of(c, &j.act));
  gated_run(c->ctx, &j, n ? x->numel / n : 0);
  return PERI_OK;
}

static peri_status gated_mul_cpu (peri_call *c) { return gated_mul_run(c, NULL); }
static peri_status gated_mul_backward_cpu (peri_call *c) { return gated_mul_run(c, c->in[2]); }

static void gated_mul_backward_vjp (peri_vjp *v) {
  const peri__act *act = NULL;
  peri__build_fail(&v->b, gate_of(v->c, &act));
  if (act == NULL) return;
  second in = { v->c->in[0], v->c->in[1], v->c->in[2] };
  second out = second_of(&v->b, act, in, v->g[0], v->g[1]);
  v->gin[0] = out.x;
  v->gin[1] = out.u;
  v->gin[2] = out.g;
}

OPN(gated_mul_backward, 2, .sig = "gate, up, g, act:str",
    .doc = "Gradients (dgate, dup) of gated_mul.", .flags = PERI_OP_FLOAT | PERI_OP_UPCAST,
    .infer = gated_mul_infer, .cpu = gated_mul_backward_cpu, .vjp = gated_mul_backward_vjp,
    .cost = gated_cost,
    TESTS(.domain = "attr act=silu",
          .refuses = { "gate.shape=2; up.shape=2; g.shape=3; attr act=silu => (2) | (3)" }));

static void gated_mul_vjp (peri_vjp *v) {
  const peri__act *act = NULL;
  peri_tensor *in[3] = { v->c->in[0], v->c->in[1], v->g[0] }, *out[PERI_MAX_OUT];
  peri__build_fail(&v->b, gate_of(v->c, &act));
  if (act == NULL) return;
  peri__build_all(&v->b, &peri__op_gated_mul_backward, 3, in, ATTR(A_STR(act->name)), out);
  v->gin[0] = out[0];
  v->gin[1] = out[1];
}

OP(gated_mul, .sig = "gate, up, act:str",
   .doc = "act(gate) * up, two tensors of one shape; act is the name of an activation "
          "(arXiv:2002.05202).",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = gated_mul_infer, .cpu = gated_mul_cpu,
   .vjp = gated_mul_vjp, .cost = gated_cost,
   TESTS(.domain = "attr act=silu",
         .refuses = { "gate.shape=2; up.shape=3; attr act=silu => (2) | (3)",
                      "attr act=swish => silu" },
         .reference = "peri[act](gate) * up"));

OP(silu_mul, .sig = "gate, up",
   .doc = "silu(gate) * up, two tensors of one shape (arXiv:2002.05202).",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = gated_mul_infer, .cpu = gated_mul_cpu,
   .vjp = gated_mul_vjp, .cost = gated_cost,
   TESTS(.refuses = { "gate.shape=2; up.shape=3 => (2) | (3)" }));

/* ---- gated ---- */

static peri_status gated_infer (peri_call *c) {
  char buf[128], buf2[128];
  const peri_tensor *x = c->in[0], *g = c->nin > 1 ? c->in[1] : NULL;
  const peri__act *act;
  int64_t shape[PERI_MAX_DIMS];
  TRY(peri__want_float(c, 0, "x"));
  TRY(gate_of(c, &act));
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

static peri_status gated_halves (peri_call *c, const peri_tensor *g) {
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
  TRY(gate_of(c, &j.act));
  gated_run(c->ctx, &j, n ? x->numel / (2 * n) : 0);
  return PERI_OK;
}

static peri_status gated_cpu (peri_call *c) { return gated_halves(c, NULL); }
static peri_status gated_backward_cpu (peri_call *c) { return gated_halves(c, c->in[1]); }

/* The two-tensor form on the halves. */
static void gated_backward_vjp (peri_vjp *v) {
  peri_build *b = &v->b;
  const peri__act *act = NULL;
  peri__build_fail(b, gate_of(v->c, &act));
  if (act == NULL) return;
  peri_tensor *x = v->c->in[0], *half[4];
  int64_t n = x->shape[x->ndim - 1] / 2;
  for (int i = 0; i < 4; i++) /* gate, up and their cotangents */
    half[i] = BA(b, narrow, ATTR(A_INT(-1), A_INT(i % 2 ? n : 0), A_INT(n)), i < 2 ? x : v->g[0]);
  second out = second_of(b, act, (second){ half[0], half[1], v->c->in[1] }, half[2], half[3]);
  if (v->need[0]) v->gin[0] = BA(b, cat, ATTR(A_INT(-1)), out.x, out.u);
  v->gin[1] = out.g;
}

OP(gated_backward, .sig = "x, g, act:str",
   .doc = "Gradient (..., 2 F) of gated, from x (..., 2 F) and g (..., F).",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = gated_infer, .cpu = gated_backward_cpu,
   .vjp = gated_backward_vjp, .cost = gated_cost,
   TESTS(.domain = "x.shape=3,8; g.shape=3,4; attr act=silu",
         .large = "x.shape=128,300; g.shape=128,150; attr act=silu",
         .refuses = { "x.shape=4; g.shape=3; attr act=silu => (4) | (3)" }));

static void gated_vjp (peri_vjp *v) {
  const peri__act *act = NULL;
  peri__build_fail(&v->b, gate_of(v->c, &act));
  if (act == NULL) return;
  v->gin[0] = BA(&v->b, gated_backward, ATTR(A_STR(act->name)), v->c->in[0], v->g[0]);
}

OP(gated, .sig = "x, act:str",
   .doc = "act(x[..., :F]) * x[..., F:] for x (..., 2 F); act is the name of an activation "
          "(arXiv:2002.05202).",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = gated_infer, .cpu = gated_cpu,
   .vjp = gated_vjp, .cost = gated_cost,
   TESTS(.domain = "x.shape=3,8; attr act=silu",
         .refuses = { "x.shape=3; attr act=silu => (3)", "x.shape=4; attr act=none => none" },
         .reference = "peri[act](x:narrow(-1, 1, x:size(-1) // 2)) * x:narrow(-1, x:size(-1) // 2 "
                      "+ 1, x:size(-1) // 2)"));

OP(swiglu, .sig = "x", .doc = "silu(x[..., :F]) * x[..., F:] for x (..., 2 F) (arXiv:2002.05202).",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = gated_infer, .cpu = gated_cpu,
   .vjp = gated_vjp, .cost = gated_cost,
   TESTS(.domain = "x.shape=3,8", .large = "x.shape=128,300", .refuses = { "x.shape=3 => (3)" }));
