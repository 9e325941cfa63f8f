/*
** scan.c - running sums, products and maxima along one dim. Each lane is one sequential chain
** (f32 carried in f64), so a lane's bits depend on that lane alone.
*/
#include <string.h>

#include "cpu/convert.h"
#include "op/op.h"
#include "op/rule.h"

#define LANES 64 /* neighbouring lanes that advance together */

typedef struct scan {
  const peri_ctx *ctx;
  int64_t n, inner, blocks; /* x is (outer, n, inner); blocks of LANES cover inner */
  const void *x;
  void *y;
  int64_t *places;
  void (*lanes)(const struct scan *s, int64_t at, int64_t lanes); /* from flat position at */
} scan;

static void scan_range (void *ud, int64_t begin, int64_t end, int worker) {
  const scan *s = ud;
  (void)worker;
  for (; begin < end; begin++) {
    int64_t lane = begin % s->blocks * LANES
    , left = s->inner - lane;
    s->lanes(s, begin / s->blocks * s->n * s->inner + lane, left < LANES ? left : LANES);
  }
}

#define SCAN(name, type, wide, first, e)                       \
  static void name(const scan *s, int64_t at, int64_t lanes) { \
    wide acc[LANES];                                           \
    for (int64_t j = 0; j < lanes; j++) acc[j] = first;        \
    for (int64_t i = 0; i < s->n; i++, at += s->inner) {       \
      if (peri__give_up(s->ctx, i)) return;                    \
      const type *x = (const type *)s->x + at;                 \
      type *y = (type *)s->y + at;                             \
      for (int64_t j = 0; j < lanes; j++) {                    \
        acc[j] = e;                                            \
        y[j] = (type)acc[j];                                   \
      }                                                        \
    }                                                          \
  }
SCAN(sum_f32, float, double, 0, acc[j] + (double)x[j])
SCAN(sum_f64, double, double, 0, acc[j] + x[j])
SCAN(sum_i64, int64_t, uint64_t, 0, acc[j] + (uint64_t)x[j])
SCAN(prod_f32, float, double, 1, acc[j] * (double)x[j])
SCAN(prod_f64, double, double, 1, acc[j] * x[j])
SCAN(prod_i64, int64_t, uint64_t, 1, acc[j] * (uint64_t)x[j])

/* The latest of equal ones is kept; once NaN, always NaN. */
#define MAXIMA(name, type, better)                             \
  static void name(const scan *s, int64_t at, int64_t lanes) { \
    type best[LANES];                                          \
    int64_t place[LANES];                                      \
    for (int64_t i = 0; i < s->n; i++, at += s->inner) {       \
      if (peri__give_up(s->ctx, i)) return;                    \
      const type *x = (const type *)s->x + at;                 \
      for (int64_t j = 0; j < lanes; j++) {                    \
        type a = x[j], b = i ? best[j] : a;                    \
        if (i == 0 || (better)) {                              \
          best[j] = a;                                         \
          place[j] = i;                                        \
        }                                                      \
        ((type *)s->y)[at + j] = best[j];                      \
        s->places[at + j] = place[j];                          \
      }                                                        \
    }                                                          \
  }
MAXIMA(max_f32, float, a >= b || a != a)
MAXIMA(max_f64, double, a >= b || a != a)
MAXIMA(max_i64, int64_t, a >= b)

static int scan_type (int dtype) {
  return dtype == PERI_F32 || dtype == PERI_F64 ? dtype : PERI_I64;
}

typedef void (*lanes_fn)(const scan *s, int64_t at, int64_t lanes);

/* x is dense, its dtype any; out[0] has the compute type of the scan. */
static peri_status scan_all (peri_call *c, lanes_fn f32, lanes_fn f64, lanes_fn i64) {
  peri_tensor *x = c->in[0], *wide = NULL, *y = NULL;
  int type = scan_type(x->dtype), dim = 0;
  scan s = { .ctx = c->ctx, .n = 1, .inner = 1 };
  if (x->ndim > 0) {
    TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim, &dim));
    s.n = x->shape[dim];
    for (int i = dim + 1; i < x->ndim; i++) s.inner *= x->shape[i];
  }
  if (x->numel == 0) return PERI_OK;
  TRY(peri__cast(x, (peri_dtype)type, &wide));
  peri_status st = PERI_OK;
  if (c->out[0]->dtype == type)
    y = peri_retain(c->out[0]);
  else
    st = peri__new_like(wide, (peri_dtype)type, &y);
  if (st == PERI_OK) {
    s.x = wide->data;
    s.y = y->data;
    s.places = c->out[1] ? c->out[1]->data : NULL;
    s.lanes = type == PERI_F32 ? f32 : type == PERI_F64 ? f64 : i64;
    s.blocks = (s.inner + LANES - 1) / LANES;
    int64_t lane = s.n * (s.inner < LANES ? s.inner : LANES);
    peri__parallel(c->ctx, x->numel / (s.n * s.inner) * s.blocks, 1 + 16384 / lane, scan_range, &s);
    if (y != c->out[0])
      peri__store(c->ctx->cpu->math, c->out[0]->dtype, c->out[0]->data, 1, type, y->data, y->numel);
  }
  peri_release(y);
  peri_release(wide);
  return st;
}

static peri_status wide_infer (peri_call *c) {
  int dim, d = c->in[0]->dtype;
  if (c->in[0]->ndim > 0) TRY(peri__dim(c->ctx, c->attr[0].i, c->in[0]->ndim, &dim));
  return peri__new_like(c->in[0], peri__is_float(d) ? (peri_dtype)d : PERI_I64, &c->out[0]);
}

/* ---- cumsum, cumprod ---- */

/* Sums from each place to the end. */
static peri_tensor *sum_to_end (peri_vjp *v, peri_tensor *g) {
  int64_t dim = v->c->attr[0].i;
  if (v->c->in[0]->ndim == 0) return g;
  const peri_attr *flip = ATTR(A_DIMS(&dim, 1));
  return BA(BB, flip, flip, BA(BB, cumsum, v->c->attr, BA(BB, flip, flip, g)));
}

static peri_status cumsum_cpu (peri_call *c) { return scan_all(c, sum_f32, sum_f64, sum_i64); }
static void cumsum_vjp (peri_vjp *v) { v->gin[0] = sum_to_end(v, v->g[0]); }
OP(cumsum, .sig = "x, dim:dim=-1", .flags = PERI_OP_UPCAST,
   .doc = "Running sum along dim, own element included; bool and integers give i64.",
   .infer = wide_infer, .cpu = cumsum_cpu, .unread = 1, .vjp = cumsum_vjp,
   TESTS(.variants = { "shape=2,3,2; attr dim=2" }));

static peri_status cumprod_cpu (peri_call *c) { return scan_all(c, prod_f32, prod_f64, prod_i64); }
/*
** Element i takes sum over j >= i of g_j y_j / x_i. Past the first 0 of a lane all y are 0, and
** with them the gradient; at that 0 the y of a lane with 1 in its place are summed instead.
*/
static void cumprod_vjp (peri_vjp *v) {
  peri_tensor *x = v->c->in[0], *y = peri__saved(v, 0), *g = v->g[0];
  peri_tensor *zero = B(BB, eq, x, NUM(0)), *seen = BA(BB, cumsum, v->c->attr, zero);
  peri_tensor *none = B(BB, eq, seen, NUM(0));
  peri_tensor *first = B(BB, logical_and, zero, B(BB, eq, seen, NUM(1)));
  peri_tensor *y1 = BA(BB, cumprod, v->c->attr, BA(BB, masked_fill, ATTR(A_NUM(1)), x, first));
  peri_tensor *safe = BA(BB, masked_fill, ATTR(A_NUM(1)), x, zero);
  peri_tensor *plain = B(BB, div, sum_to_end(v, B(BB, mul, g, y)), safe);
  peri_tensor *at_zero = B(BB, where, first, sum_to_end(v, B(BB, mul, g, y1)), NUM(0));
  v->gin[0] = B(BB, where, none, plain, at_zero);
}
OP(cumprod, .sig = "x, dim:dim=-1", .flags = PERI_OP_UPCAST,
   .doc =
       "Running product along dim, own element included; integers give i64. The gradient is right "
       "with zeros, the second one only without.",
   .infer = wide_infer, .cpu = cumprod_cpu, .vjp = cumprod_vjp,
   TESTS(.variants = { "shape=2,3,2; attr dim=2" }));

/* ---- cummax ---- */

static peri_status cummax_infer (peri_call *c) {
  int dim;
  if (c->in[0]->ndim > 0) TRY(peri__dim(c->ctx, c->attr[0].i, c->in[0]->ndim, &dim));
  TRY(peri__infer_same(c));
  return peri__new_like(c->in[0], PERI_I64, &c->out[1]);
}
static peri_status cummax_cpu (peri_call *c) { return scan_all(c, max_f32, max_f64, max_i64); }
static void cummax_vjp (peri_vjp *v) {
  peri_tensor *g = v->g[0];
  if (!g) return;
  if (g->ndim == 0)
    v->gin[0] = g;
  else {
    peri_tensor *zeros = BA(BB, zeros_like, ATTR(A_INT(-1)), g);
    v->gin[0] = BA(BB, scatter_add, v->c->attr, zeros, peri__saved(v, 1), g);
  }
}
OPN(cummax, 2, .sig = "x, dim:dim=-1", .flags = PERI_OP_UPCAST,
    .doc =
        "Running maximum along dim and its place (i64, from 0; the latest of equal ones); from a "
        "NaN on, NaN.",
    .infer = cummax_infer, .cpu = cummax_cpu, .vjp = cummax_vjp,
    TESTS(.variants = { "shape=5,2; attr dim=1" }));
