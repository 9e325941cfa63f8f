/*
** unary.c - elementwise functions of one tensor: arithmetic, exponentials, rounding, tests. f32
** kernels come from cpu/, f64 and i64 ones are here. Gradients of the smooth ones are differentiable
** again. Activations without parameters are in activation.c.
*/
#include <math.h>
#include <string.h>

#include "core/element.h"
#include "op/elementwise.h"
#include "op/move.h"
#include "op/rule.h"

/* ---- f64 and i64 kernels ---- */

#define F64(name, e)                                                                     \
  static void d_##name(int64_t n, const void *const *in, const int64_t *step, void *out, \
                       const double *p) {                                                \
    const double *a = in[0];                                                             \
    double *y = out;                                                                     \
    (void)p;                                                                             \
    for (int64_t i = 0; i < n; i++) {                                                    \
      double x = a[i * step[0]];                                                         \
      y[i] = e;                                                                          \
    }                                                                                    \
  }
#define SQRT_2_PI 0.79788456080286535588 /* sqrt(2 / pi) */
F64(neg, -x)
F64(abs, fabs(x))
F64(sign, x != x ? x : (x > 0) - (x < 0))
F64(exp, exp(x))
F64(expm1, expm1(x))
F64(log, log(x))
F64(log1p, log1p(x))
F64(log2, log2(x))
F64(sqrt, sqrt(x))
F64(rsqrt, 1 / sqrt(x))
F64(square, x *x)
F64(reciprocal, 1 / x)
F64(sin, sin(x))
F64(cos, cos(x))
F64(leaky_relu, x > 0 ? x : x * p[0])
F64(elu, x > 0 ? x : p[0] * expm1(x))
F64(softplus, x *p[0] > p[1] ? x : peri__softplus(x * p[0]) / p[0])
F64(erf, erf(x))
F64(floor, floor(x))
F64(ceil, ceil(x))
F64(round, nearbyint(x))
F64(clamp, x > p[1] ? p[1] : x < p[0] ? p[0] : x)

#define D(name) d_##name,
static const peri__kernel unary_f64[PERI_N_PLAIN_UNARY] = { PERI_PLAIN_UNARY(D) };

#define I64(name, e)                                                                     \
  static void i_##name(int64_t n, const void *const *in, const int64_t *step, void *out, \
                       const double *p) {                                                \
    const int64_t *a = in[0];                                                            \
    int64_t *y = out;                                                                    \
    (void)p;                                                                             \
    for (int64_t i = 0; i < n; i++) {                                                    \
      int64_t x = a[i * step[0]];                                                        \
      y[i] = (int64_t)(e);                                                               \
    }                                                                                    \
  }
I64(neg, 0 - (uint64_t)x)
I64(abs, x < 0 ? 0 - (uint64_t)x : (uint64_t)x)
I64(sign, (x > 0) - (x < 0))
I64(square, (uint64_t)x *(uint64_t)x)
I64(floor, x) /* ceil and round as well */
/* The bounds are integers in p. */
static void i_clamp (int64_t n, const void *const *in, const int64_t *step, void *out,
                     const double *p) {
  const int64_t *a = in[0];
  int64_t *y = out, bound[2];
  memcpy(bound, p, sizeof bound);
  for (int64_t i = 0; i < n; i++) {
    int64_t x = a[i * step[0]];
    y[i] = x > bound[1] ? bound[1] : x < bound[0] ? bound[0] : x;
  }
}

static const peri__kernel unary_i64[PERI_N_PLAIN_UNARY] = {
  [PERI_MATH_neg] = i_neg,       [PERI_MATH_abs] = i_abs,     [PERI_MATH_sign] = i_sign,
  [PERI_MATH_square] = i_square, [PERI_MATH_clamp] = i_clamp, [PERI_MATH_floor] = i_floor,
  [PERI_MATH_ceil] = i_floor,    [PERI_MATH_round] = i_floor,
};

#define TEST64(name, e)                                                                  \
  static void d_##name(int64_t n, const void *const *in, const int64_t *step, void *out, \
                       const double *p) {                                                \
    const double *a = in[0];                                                             \
    uint8_t *y = out;                                                                    \
    (void)p;                                                                             \
    for (int64_t i = 0; i < n; i++) {                                                    \
      double x = a[i * step[0]];                                                         \
      y[i] = e;                                                                          \
    }                                                                                    \
  }
TEST64(isnan, x != x)
TEST64(isinf, fabs(x) == INFINITY)
TEST64(isfinite, fabs(x) < INFINITY)
static const peri__kernel test_f64[PERI_N_TEST] = { PERI_TEST(D) };

/* ---- running them ---- */

static peri_status run (peri_call *c, int id, const double *p) {
  peri_dtype type = peri__compute_type(c->in[0]->dtype);
  if (type == PERI_BOOL) type = PERI_I64;
  peri__kernel fn = type == PERI_F32   ? c->ctx->cpu->math->unary[id]
                    : type == PERI_F64 ? unary_f64[id]
                                       : unary_i64[id];
  if (!fn) return peri__want_float(c, 0, "x"); /* in place into integers */
  bool cheap =
      id == PERI_MATH_neg || id == PERI_MATH_abs || id == PERI_MATH_square || id == PERI_MATH_clamp;
  peri__loop l = { .fn = fn,
                   .nin = 1,
                   .in_type = { type },
                   .out_type = type,
                   .p = p,
                   .grain = cheap ? PERI_GRAIN_CHEAP : PERI_GRAIN_COSTLY };
  return peri__elementwise(c->ctx, &l, c->in, c->out[0]);
}

/* One block for each op; name_cpu and the descriptor. KEEP ops accept integers as they are. */
#define UNARY(id, flag, ...)                                                                    \
  static peri_status id##_cpu(peri_call *c) { return run(c, PERI_MATH_##id, NULL); }            \
  OP(id, .sig = "x", .flags = ELEMENTWISE | (flag), .infer = peri__infer_same, .cpu = id##_cpu, \
     __VA_ARGS__)
#define KEEP 0
#define FLOAT PERI_OP_FLOAT

RULE(neg) { GIVE(0, B(BB, neg, GRAD)); }
UNARY(neg, KEEP, .doc = "-x; integers wrap around.", .unread = 1, .vjp = neg_vjp);

RULE(abs) { GIVE(0, B(BB, mul, GRAD, B(BB, sign, IN(0)))); }
UNARY(abs, KEEP, .doc = "|x|; the gradient at 0 is 0.", .vjp = abs_vjp, TESTS(.domain = "kinks=0"));

UNARY(sign, KEEP, .doc = "-1, 0 or 1; NaN stays NaN. Constant for differentiation.");

RULE(exp) { GIVE(0, B(BB, mul, GRAD, OUT)); }
UNARY(exp, FLOAT, .doc = "e^x, elementwise.", .vjp = exp_vjp);

RULE(expm1) { GIVE(0, B(BB, mul, GRAD, B(BB, add, OUT, NUM(1)))); }
UNARY(expm1, FLOAT, .doc = "e^x - 1, accurate near 0.", .vjp = expm1_vjp);

RULE(log) { GIVE(0, B(BB, div, GRAD, IN(0))); }
UNARY(log, FLOAT, .doc = "Natural logarithm; -inf at 0, NaN below.", .vjp = log_vjp,
      TESTS(.domain = "x=0.2..3"));

RULE(log1p) { GIVE(0, B(BB, div, GRAD, B(BB, add, IN(0), NUM(1)))); }
UNARY(log1p, FLOAT, .doc = "log(1 + x), accurate near 0.", .vjp = log1p_vjp,
      TESTS(.domain = "x=-0.7..3"));

RULE(log2) { GIVE(0, B(BB, div, GRAD, B(BB, mul, IN(0), NUM(PERI_LN2)))); }
UNARY(log2, FLOAT, .doc = "Logarithm to base 2.", .vjp = log2_vjp, TESTS(.domain = "x=0.2..3"));

RULE(sqrt) { GIVE(0, B(BB, div, GRAD, B(BB, mul, OUT, NUM(2)))); }
UNARY(sqrt, FLOAT, .doc = "Square root; NaN below 0. The gradient at 0 is inf.", .vjp = sqrt_vjp,
      TESTS(.domain = "x=0.2..3"));

RULE(rsqrt) {
  GIVE(0, B(BB, mul, B(BB, mul, GRAD, NUM(-0.5)), B(BB, mul, OUT, B(BB, square, OUT))));
}
UNARY(rsqrt, FLOAT, .doc = "1 / sqrt(x).", .vjp = rsqrt_vjp, TESTS(.domain = "x=0.2..3"));

RULE(square) { GIVE(0, B(BB, mul, GRAD, B(BB, mul, IN(0), NUM(2)))); }
UNARY(square, KEEP, .doc = "x * x, elementwise.", .vjp = square_vjp);

RULE(reciprocal) { GIVE(0, B(BB, mul, B(BB, neg, GRAD), B(BB, square, OUT))); }
UNARY(reciprocal, FLOAT, .doc = "1 / x, elementwise.", .vjp = reciprocal_vjp,
      TESTS(.domain = "x=0.3..3"));

RULE(sin) { GIVE(0, B(BB, mul, GRAD, B(BB, cos, IN(0)))); }
UNARY(sin, FLOAT, .doc = "Sine of x in radians.", .vjp = sin_vjp);

RULE(cos) { GIVE(0, B(BB, mul, B(BB, neg, GRAD), B(BB, sin, IN(0)))); }
UNARY(cos, FLOAT, .doc = "Cosine of x in radians.", .vjp = cos_vjp);

RULE(erf) {
  peri_tensor *e = B(BB, exp, B(BB, neg, B(BB, square, IN(0))));
  GIVE(0, B(BB, mul, GRAD, B(BB, mul, e, NUM(2 * SQRT_2_PI * PERI_SQRT1_2))));
}
UNARY(erf, FLOAT, .doc = "Error function, 2/sqrt(pi) times the integral of e^(-t^2) from 0 to x.",
      .vjp = erf_vjp);

UNARY(floor, KEEP, .doc = "The next whole number below. Constant for differentiation.");
UNARY(ceil, KEEP, .doc = "The next whole number above. Constant for differentiation.");
UNARY(round, KEEP,
      .doc = "The nearest whole number, halves to the even one. Constant for "
             "differentiation.");

/* ---- with parameters ---- */

static peri_status leaky_relu_cpu (peri_call *c) {
  return run(c, PERI_MATH_leaky_relu, (double[]){ c->attr[0].f, 0 });
}
RULE(leaky_relu) {
  peri_tensor *low = B(BB, mul, GRAD, NUM(v->c->attr[0].f));
  GIVE(0, B(BB, where, B(BB, gt, IN(0), NUM(0)), GRAD, low));
}
OP(leaky_relu, .sig = "x, slope:num=0.01", .flags = ELEMENTWISE | FLOAT,
   .doc = "x above 0, slope * x below.", .infer = peri__infer_same, .cpu = leaky_relu_cpu,
   .vjp = leaky_relu_vjp, TESTS(.domain = "kinks=0", .variants = { "kinks=0; attr slope=-0.5" }));

static peri_status elu_cpu (peri_call *c) {
  return run(c, PERI_MATH_elu, (double[]){ c->attr[0].f, 0 });
}
RULE(elu) { /* below 0 the slope is alpha e^x = y + alpha */
  peri_tensor *low = B(BB, mul, GRAD, B(BB, add, OUT, NUM(v->c->attr[0].f)));
  GIVE(0, B(BB, where, B(BB, gt, IN(0), NUM(0)), GRAD, low));
}
OP(elu, .sig = "x, alpha:num=1", .flags = ELEMENTWISE | FLOAT,
   .doc = "x above 0, alpha * (e^x - 1) below (arXiv:1511.07289).", .infer = peri__infer_same,
   .cpu = elu_cpu, .vjp = elu_vjp,
   TESTS(.domain = "kinks=0", .variants = { "kinks=0; attr alpha=0.3" }));

static peri_status softplus_infer (peri_call *c) {
  if (!(c->attr[0].f > 0))
    return peri__fail(c->ctx, PERI_EINVAL, "beta is %g, expected a positive number", c->attr[0].f);
  return peri__infer_same(c);
}
static peri_status softplus_cpu (peri_call *c) {
  return run(c, PERI_MATH_softplus, (double[]){ c->attr[0].f, c->attr[1].f });
}
RULE(softplus) {
  peri_tensor *t = B(BB, mul, IN(0), NUM(v->c->attr[0].f));
  peri_tensor *low = B(BB, mul, GRAD, B(BB, sigmoid, t));
  GIVE(0, B(BB, where, B(BB, gt, t, NUM(v->c->attr[1].f)), GRAD, low));
}
OP(softplus, .sig = "x, beta:num=1, threshold:num=20", .flags = ELEMENTWISE | FLOAT,
   .doc = "log(1 + e^(beta x)) / beta; x itself where beta x is above threshold.",
   .infer = softplus_infer, .cpu = softplus_cpu, .vjp = softplus_vjp,
   TESTS(.variants = { "attr beta=3; attr threshold=4; kinks=1.3333" }));

/* The integers of x's dtype that lie between the bounds: there has to be one. */
static peri_status whole_bounds (peri_call *c, int64_t bound[2]) {
  int d = c->in[0]->dtype;
  const peri_attr *a = c->attr;
  char lo[32], hi[32];
  peri__element_range(d, &bound[0], &bound[1]);
  bool none = false;
  for (int k = 0; k < 2; k++) {
    int64_t v;
    const peri_attr edge = A_NUM(k == 0 ? ceil(a[k].f) : floor(a[k].f));
    if (!a[k].whole && isnan(a[k].f)) continue;
    if (!peri__whole(&a[k], &v) && !peri__whole(&edge, &v)) /* beyond every integer */
      none = none || (a[k].f > 0) == (k == 0);
    else {
      none = none || (k == 0 ? v > bound[1] : v < bound[0]);
      if (k == 0 ? v > bound[0] : v < bound[1]) bound[k] = v;
    }
  }
  if (!none && bound[0] <= bound[1]) return PERI_OK;
  bool open = !a[1].whole && isnan(a[1].f);
  return peri__fail(c->ctx, PERI_EINVAL, "no %s lies between min %s and max %s",
                    peri_dtype_name((peri_dtype)d),
                    !a[0].whole && isnan(a[0].f) ? "none" : peri__num_text(&a[0], lo, sizeof lo),
                    open ? "none" : peri__num_text(&a[1], hi, sizeof hi));
}
static peri_status clamp_infer (peri_call *c) {
  double lo = c->attr[0].f, hi = c->attr[1].f;
  int64_t bound[2];
  if (lo > hi) return peri__fail(c->ctx, PERI_EINVAL, "min %g is above max %g", lo, hi);
  if (!peri__is_float(c->in[0]->dtype)) TRY(whole_bounds(c, bound));
  return peri__infer_same(c);
}
static peri_status clamp_cpu (peri_call *c) {
  double p[2] = { c->attr[0].f, c->attr[1].f };
  int64_t bound[2];
  if (!peri__is_float(c->in[0]->dtype)) {
    TRY(whole_bounds(c, bound));
    memcpy(p, bound, sizeof p);
  }
  return run(c, PERI_MATH_clamp, p);
}
RULE(clamp) { /* the bounds themselves pass the gradient */
  double lo = v->c->attr[0].f, hi = v->c->attr[1].f;
  peri_tensor *g = GRAD, *zero = NUM(0);
  if (lo == lo) g = B(BB, where, B(BB, ge, IN(0), NUM(lo)), g, zero);
  if (hi == hi) g = B(BB, where, B(BB, le, IN(0), NUM(hi)), g, zero);
  GIVE(0, g);
}
OP(clamp, .sig = "x, min:num=none, max:num=none", .flags = ELEMENTWISE,
   .doc =
       "x held in [min, max]; an absent bound is none. NaN stays NaN; the gradient is 0 outside. "
       "Integers stay in their dtype.",
   .infer = clamp_infer, .cpu = clamp_cpu, .vjp = clamp_vjp,
   TESTS(.domain = "attr min=-1; attr max=1.5; kinks=-1,1.5",
         .variants = { "attr max=0.2; kinks=0.2" }));

/* ---- tests ---- */

static peri_status bool_infer (peri_call *c) {
  return peri__new_like(c->in[0], PERI_BOOL, &c->out[0]);
}
static peri_status test (peri_call *c, int id) {
  bool wide = c->in[0]->dtype == PERI_F64;
  peri__loop l = { .fn = wide ? test_f64[id] : c->ctx->cpu->math->test[id],
                   .nin = 1,
                   .in_type = { wide ? PERI_F64 : PERI_F32 },
                   .out_type = PERI_BOOL,
                   .grain = PERI_GRAIN_CHEAP };
  return peri__elementwise(c->ctx, &l, c->in, c->out[0]);
}
#define TEST(id, text)                                                          \
  static peri_status id##_cpu(peri_call *c) { return test(c, PERI_MATH_##id); } \
  OP(id, .sig = "x", .flags = PERI_OP_STRIDED, .doc = text, .infer = bool_infer, .cpu = id##_cpu)
TEST(isnan, "True where x is not a number.");
TEST(isinf, "True where x is inf or -inf.");
TEST(isfinite, "True where x is neither infinite nor NaN.");

static void k_not (int64_t n, const void *const *in, const int64_t *step, void *out,
                   const double *p) {
  const uint8_t *x = in[0];
  uint8_t *y = out;
  (void)p;
  for (int64_t i = 0; i < n; i++) y[i] = !x[i * step[0]];
}
static peri_status logical_not_cpu (peri_call *c) {
  peri__loop l = { .fn = k_not,
                   .nin = 1,
                   .in_type = { PERI_BOOL },
                   .out_type = PERI_BOOL,
                   .grain = PERI_GRAIN_CHEAP };
  return peri__elementwise(c->ctx, &l, c->in, c->out[0]);
}
OP(logical_not, .sig = "x", .flags = PERI_OP_STRIDED, .doc = "True where x is 0.",
   .infer = bool_infer, .cpu = logical_not_cpu);
