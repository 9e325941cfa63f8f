/*
** binary.c - elementwise functions of two and three tensors with broadcasting: arithmetic,
** comparisons, logic, and the fused gradients of the hot activations.
*/
#include <math.h>
#include <string.h>

#include "op/elementwise.h"
#include "op/move.h"

/* ---- f64 and i64 kernels ---- */

#define LOOP(prefix, name, in_t, out_t, e)                                                      \
  static void prefix##_##name(int64_t n, const void *const *in, const int64_t *step, void *out, \
                              const double *p) {                                                \
    const in_t *pa = in[0], *pb = in[1];                                                        \
    out_t *y = out;                                                                             \
    (void)p;                                                                                    \
    for (int64_t i = 0; i < n; i++) {                                                           \
      in_t a = pa[i * step[0]], b = pb[i * step[1]];                                            \
      y[i] = (out_t)(e);                                                                        \
    }                                                                                           \
  }
#define F64(name, e) LOOP(d, name, double, double, e)
#define I64(name, e) LOOP(i, name, int64_t, int64_t, e)

#define C_GELU 1.59576912160573071 /* 2 sqrt(2 / pi) */
#define INV_SQRT_2PI 0.39894228040143267794
static double logistic (double x) {
  double e = exp(-fabs(x));
  return (x < 0 ? e : 1) / (1 + e);
}
static double bounded (double x) { return x > 1e3 ? 1e3 : x < -1e3 ? -1e3 : x; }
static double mod_f64 (double a, double b) {
  double m = fmod(a, b);
  return m != 0 && (m < 0) != (b < 0) ? m + b : m;
}
static double gelu_tanh_grad (double x) {
  x = bounded(x);
  double s = logistic(C_GELU * (x + 0.044715 * x * x * x));
  return s + x * s * (1 - s) * C_GELU * (1 + 3 * 0.044715 * x * x);
}
static double gelu_erf_grad (double x) {
  x = bounded(x);
  return 0.5 * erfc(-x * PERI_SQRT1_2) + x * INV_SQRT_2PI * exp(-0.5 * x * x);
}
static double silu_grad (double x) {
  x = bounded(x);
  double s = logistic(x);
  return s * (1 + x * (1 - s));
}
F64(add, a + b)
F64(sub, a - b)
F64(mul, a *b)
F64(div, a / b)
F64(floordiv, floor(a / b))
F64(mod, mod_f64(a, b))
F64(pow, pow(a, b))
F64(maximum, a != a || a > b ? a : b)
F64(minimum, a != a || a < b ? a : b)
F64(atan2, atan2(a, b))
F64(relu_backward, a <= 0 ? 0 : b)
F64(gelu_tanh_backward, b *gelu_tanh_grad(a))
F64(gelu_erf_backward, b *gelu_erf_grad(a))
F64(silu_backward, b *silu_grad(a))
F64(tanh_backward, b *(1 - a * a))
F64(sigmoid_backward, b *(a *(1 - a)))
#define D(name) d_##name,
static const peri__kernel binary_f64[PERI_N_BINARY] = { PERI_BINARY(D) };

/* Integers wrap around. A divisor of 0 does not come here; -1 may not go through the processor's
** division, which traps on the least integer. */
static int64_t mod_i64 (int64_t a, int64_t b) {
  if (b == 0 || b == -1) return 0;
  int64_t m = a % b;
  return m != 0 && (m < 0) != (b < 0) ? m + b : m;
}
static int64_t floordiv_i64 (int64_t a, int64_t b) {
  if (b == 0) return 0;
  if (b == -1) return (int64_t)(0 - (uint64_t)a);
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}
static int64_t pow_i64 (int64_t a, int64_t b) {
  uint64_t y = 1, f = (uint64_t)a;
  for (; b > 0; b >>= 1, f *= f)
    if (b & 1) y *= f;
  return (int64_t)y;
}
I64(add, (uint64_t)a + (uint64_t)b)
I64(sub, (uint64_t)a - (uint64_t)b)
I64(mul, (uint64_t)a *(uint64_t)b)
I64(floordiv, floordiv_i64(a, b))
I64(mod, mod_i64(a, b))
I64(pow, pow_i64(a, b))
I64(maximum, a > b ? a : b)
I64(minimum, a < b ? a : b)
I64(relu_backward, a > 0 ? b : 0)
static const peri__kernel binary_i64[PERI_N_BINARY] = {
  [PERI_MATH_add] = i_add,
  [PERI_MATH_sub] = i_sub,
  [PERI_MATH_mul] = i_mul,
  [PERI_MATH_floordiv] = i_floordiv,
  [PERI_MATH_mod] = i_mod,
  [PERI_MATH_pow] = i_pow,
  [PERI_MATH_maximum] = i_maximum,
  [PERI_MATH_minimum] = i_minimum,
  [PERI_MATH_relu_backward] = i_relu_backward,
};

#define COMPARE(name, op)                \
  LOOP(d, name, double, uint8_t, a op b) \
  LOOP(i, name, int64_t, uint8_t, a op b)
COMPARE(eq, ==)
COMPARE(ne, !=)
COMPARE(lt, <)
COMPARE(le, <=)
COMPARE(gt, >)
COMPARE(ge, >=)
#define I(name) i_##name,
static const peri__kernel compare_f64[PERI_N_COMPARE] = { PERI_COMPARE(D) };
static const peri__kernel compare_i64[PERI_N_COMPARE] = { PERI_COMPARE(I) };

/* ---- running them ---- */

static peri_status run (peri_call *c, int id) {
  int type = peri__wide_type(c->out[0]->dtype);
  peri__kernel fn = type == PERI_F32   ? c->ctx->cpu->math->binary[id]
                    : type == PERI_F64 ? binary_f64[id]
                                       : binary_i64[id];
  bool cheap = id <= PERI_MATH_div || id == PERI_MATH_maximum || id == PERI_MATH_minimum;
  peri__loop l = { .fn = fn,
                   .nin = 2,
                   .in_type = { type, type },
                   .out_type = type,
                   .grain = cheap ? PERI_GRAIN_CHEAP : PERI_GRAIN_COSTLY };
  return peri__elementwise(c->ctx, &l, c->in, c->out[0]);
}

static peri_status same_infer (peri_call *c) {
  int d = peri__promoted(c, 0, 2);
  for (int i = 0; i < 2 && !peri__is_float(d); i++) TRY(peri__number_fits(c, i, d));
  return peri__infer_broadcast(c, 2, d);
}
static peri_status pow_infer (peri_call *c) { /* an exponent is no element */
  int d = peri__promoted(c, 0, 2);
  TRY(peri__number_fits(c, 0, d));
  return peri__infer_broadcast(c, 2, d);
}
static peri_status float_infer (peri_call *c) {
  return peri__infer_broadcast(c, 2, peri__float_of(peri__promoted(c, 0, 2)));
}

#define RULE(name) static void name##_vjp(peri_vjp *v)
#define X (v->c->in[0])
#define Y (v->c->in[1])
#define OUT (peri__saved(v, 0))
#define G (v->g[0])
#define BB (&v->b)
#define NUM(x) peri__build_scalar(BB, x)
#define GIN(i, e) \
  if (v->need[i]) v->gin[i] = (e)

#define ELEMENTWISE (PERI_OP_STRIDED | PERI_OP_ELEMENTWISE)
#define BINARY(id, rule, ...)                                                  \
  static peri_status id##_cpu(peri_call *c) { return run(c, PERI_MATH_##id); } \
  OP(id, .sig = "x, y", .flags = ELEMENTWISE, .infer = rule, .cpu = id##_cpu, __VA_ARGS__)

/* ---- arithmetic ---- */

RULE(add) { v->gin[0] = v->gin[1] = G; }
BINARY(add, same_infer, .doc = "x + y, broadcast; integers wrap around, for bool it is \"or\".",
       .unread = 1 | 2, .vjp = add_vjp);

RULE(sub) {
  v->gin[0] = G;
  GIN(1, B(BB, neg, G));
}
BINARY(sub, same_infer, .doc = "x - y, broadcast.", .unread = 1 | 2, .vjp = sub_vjp);

RULE(mul) {
  GIN(0, B(BB, mul, G, Y));
  GIN(1, B(BB, mul, G, X));
}
BINARY(mul, same_infer, .doc = "x * y, broadcast; for bool it is \"and\".", .vjp = mul_vjp);

RULE(div) {
  GIN(0, B(BB, div, G, Y));
  GIN(1, B(BB, neg, B(BB, div, B(BB, mul, G, OUT), Y)));
}
BINARY(div, float_infer, .doc = "x / y, broadcast; integers give f32.", .vjp = div_vjp,
       .domain = "y=0.3..3");

/* Integer ops that some divisor or exponent makes impossible: found before anything is computed. */
static peri_status check_integers (peri_call *c, bool negative) {
  peri_tensor *wide = NULL, *flat = NULL;
  int64_t bad = -1;
  if (peri__is_float(c->out[0]->dtype)) return PERI_OK;
  peri_status s = peri__cast(c->in[1], PERI_I64, &wide);
  if (s == PERI_OK) s = peri__contiguous(wide, &flat);
  if (s == PERI_OK) {
    const int64_t *y = flat->data;
    for (int64_t i = 0; i < flat->numel && bad < 0; i++)
      if (negative ? y[i] < 0 : y[i] == 0) bad = i;
    if (bad >= 0 && negative)
      s = peri__fail(
          c->ctx, PERI_EINVAL,
          "integer to the power of %lld at flat position %lld (from 0) of y: expected 0 or more",
          (long long)y[bad], (long long)bad);
    else if (bad >= 0)
      s = peri__fail(c->ctx, PERI_EINVAL,
                     "integer division by zero at flat position %lld (from 0) of y",
                     (long long)bad);
  }
  peri_release(flat);
  peri_release(wide);
  return s;
}
#define CHECKED(id, negative, rule, ...)      \
  static peri_status id##_cpu(peri_call *c) { \
    TRY(check_integers(c, negative));         \
    return run(c, PERI_MATH_##id);            \
  }                                           \
  OP(id, .sig = "x, y", .flags = ELEMENTWISE, .infer = rule, .cpu = id##_cpu, __VA_ARGS__)

CHECKED(floordiv, false, same_infer,
        .doc = "The whole number below x / y, broadcast; integer division by zero is an error. "
               "Constant for differentiation.");

RULE(mod) {
  v->gin[0] = G;
  GIN(1, B(BB, neg, B(BB, mul, G, B(BB, floordiv, X, Y))));
}
CHECKED(mod, false, same_infer,
        .doc = "x - floordiv(x, y) * y, broadcast: the remainder has the sign of y, as in Lua.",
        .vjp = mod_vjp, .domain = "x=2.1..2.4; y=0.9..1");

/* The exponent when it is one number that takes no gradient. */
static bool plain_exponent (const peri_vjp *v, double *e) {
  return v->c->in[1]->numel == 1 && !v->need[1] && peri_item(v->c->in[1], 0, e) == PERI_OK;
}
RULE(pow) {
  double e;
  peri_tensor *zero = NUM(0);
  if (plain_exponent(v, &e)) {
    if (e == 2)
      v->gin[0] = B(BB, mul, G, B(BB, mul, X, NUM(2)));
    else if (e == 0)
      v->gin[0] = B(BB, mul, G, zero);
    else
      v->gin[0] = B(BB, mul, G, B(BB, mul, B(BB, pow, X, NUM(e - 1)), NUM(e)));
    return;
  }
  if (v->need[0]) { /* 0 where y is 0, also where x is 0 then */
    peri_tensor *d = B(BB, mul, Y, B(BB, pow, X, B(BB, sub, Y, NUM(1))));
    v->gin[0] = B(BB, mul, G, B(BB, where, B(BB, eq, Y, zero), zero, d));
  }
  if (v->need[1]) { /* 0 where x is 0 and y at least 0 */
    peri_tensor *flat = B(BB, logical_and, B(BB, eq, X, zero), B(BB, ge, Y, zero));
    peri_tensor *base =
        BA(BB, to, ATTR(A_INT(v->like[0]->dtype)), X); /* log of a number alone is f32 */
    peri_tensor *d = B(BB, mul, OUT, B(BB, log, base));
    v->gin[1] = B(BB, mul, G, B(BB, where, flat, zero, d));
  }
}
CHECKED(pow, true, pow_infer,
        .doc = "x to the power of y, broadcast; integers take no negative exponents.",
        .vjp = pow_vjp, .domain = "x=0.3..2");

/* The gradient goes to x where it wins, greater being where it does among numbers: a NaN of x wins,
** and one of y against a number. Equal ones have half of it each. */
static void to_winner (peri_vjp *v, peri_tensor *greater) {
  peri_tensor *ties = B(BB, eq, X, Y), *zero = NUM(0), *half = B(BB, mul, G, NUM(0.5));
  if (peri__any_nan(BB, X)) greater = B(BB, logical_or, greater, B(BB, ne, X, X));
  GIN(0, B(BB, where, greater, G, B(BB, where, ties, half, zero)));
  GIN(1, B(BB, where, greater, zero, B(BB, where, ties, half, G)));
}
RULE(maximum) { to_winner(v, B(BB, gt, X, Y)); }
BINARY(maximum, same_infer,
       .doc = "The larger of x and y, broadcast; NaN if either is. Equal ones share the gradient.",
       .vjp = maximum_vjp);

RULE(minimum) { to_winner(v, B(BB, lt, X, Y)); }
BINARY(minimum, same_infer,
       .doc = "The smaller of x and y, broadcast; NaN if either is. Equal ones share the gradient.",
       .vjp = minimum_vjp);

RULE(atan2) { /* 0 at the origin, where no direction is the steepest */
  peri_tensor *d = B(BB, add, B(BB, square, X), B(BB, square, Y)), *at0 = B(BB, eq, d, NUM(0));
  peri_tensor *t = B(BB, div, G, BA(BB, masked_fill, ATTR(A_NUM(1)), d, at0));
  t = BA(BB, masked_fill, ATTR(A_NUM(0)), t, at0);
  GIN(0, B(BB, mul, t, Y));
  GIN(1, B(BB, neg, B(BB, mul, t, X)));
}
BINARY(
    atan2, float_infer,
    .doc = "The angle of the point (y, x), in (-pi, pi], broadcast; its gradient at (0, 0) is 0.",
    .vjp = atan2_vjp, .domain = "x=0.3..2");

/* ---- comparisons and logic ---- */

static peri_status bool_infer (peri_call *c) { return peri__infer_broadcast(c, 2, PERI_BOOL); }

/* A plain number beside integers: a double does not hold every one of them, so a whole number is
** compared as an integer, and one beyond them all as an infinity. */
static peri_tensor *as_integer (peri_tensor *t, const peri_tensor *beside, peri_tensor *own,
                                int64_t *value) {
  if (!(t->flags & PERI_T_WEAK) || t->dtype != PERI_F64 || t->numel != 1 ||
      peri__is_float(beside->dtype))
    return t;
  double f = *(const double *)t->data;
  *own = *t;
  own->data = value;
  if (peri__whole(NUM_ATTR(f), value))
    own->dtype = PERI_I64;
  else {
    if (fabs(f) >= 0x1p63) f = f > 0 ? (double)INFINITY : -(double)INFINITY;
    memcpy(value, &f, sizeof f);
  }
  return own;
}
static peri_status compare (peri_call *c, int id) {
  peri_tensor own[2];
  int64_t value[2];
  peri_tensor *in[2] = { as_integer(c->in[0], c->in[1], &own[0], &value[0]),
                         as_integer(c->in[1], c->in[0], &own[1], &value[1]) };
  int type = peri__wide_type(peri__promote(2, in));
  for (int i = 0; i < 2; i++) /* f32 does not hold every integer */
    if (type == PERI_F32 && (in[i]->dtype == PERI_I32 || in[i]->dtype == PERI_I64) &&
        !(in[i]->flags & PERI_T_WEAK))
      type = PERI_F64;
  peri__kernel fn = type == PERI_F32   ? c->ctx->cpu->math->compare[id]
                    : type == PERI_F64 ? compare_f64[id]
                                       : compare_i64[id];
  peri__loop l = {
    .fn = fn, .nin = 2, .in_type = { type, type }, .out_type = PERI_BOOL, .grain = PERI_GRAIN_CHEAP
  };
  return peri__elementwise(c->ctx, &l, in, c->out[0]);
}
#define COMPARISON(id, text)                                                       \
  static peri_status id##_cpu(peri_call *c) { return compare(c, PERI_MATH_##id); } \
  OP(id, .sig = "x, y", .flags = PERI_OP_STRIDED, .doc = text, .infer = bool_infer, .cpu = id##_cpu)
COMPARISON(eq, "True where x equals y, broadcast.");
COMPARISON(ne, "True where x differs from y, broadcast.");
COMPARISON(lt, "True where x is less than y, broadcast.");
COMPARISON(le, "True where x is at most y, broadcast.");
COMPARISON(gt, "True where x is greater than y, broadcast.");
COMPARISON(ge, "True where x is at least y, broadcast.");

LOOP(b, and, uint8_t, uint8_t, a &b)
LOOP(b, or, uint8_t, uint8_t, a | b)
LOOP(b, xor, uint8_t, uint8_t, a ^ b)
static peri_status logical (peri_call *c, peri__kernel fn) {
  peri__loop l = { .fn = fn,
                   .nin = 2,
                   .in_type = { PERI_BOOL, PERI_BOOL },
                   .out_type = PERI_BOOL,
                   .grain = PERI_GRAIN_CHEAP };
  return peri__elementwise(c->ctx, &l, c->in, c->out[0]);
}
#define LOGICAL(id, text)                                                                     \
  static peri_status logical_##id##_cpu(peri_call *c) { return logical(c, b_##id); }          \
  OP(logical_##id, .sig = "x, y", .flags = PERI_OP_STRIDED, .doc = text, .infer = bool_infer, \
     .cpu = logical_##id##_cpu)
LOGICAL(and, "True where x and y are both not 0, broadcast.");
LOGICAL(or, "True where x or y is not 0, broadcast.");
LOGICAL(xor, "True where exactly one of x and y is not 0, broadcast.");

/* ---- fused gradients of activations ---- */

#define BACKWARD(id, text, ...)                                                         \
  static peri_status id##_cpu(peri_call *c) { return run(c, PERI_MATH_##id); }          \
  OP(id, .sig = "x, grad", .flags = PERI_OP_STRIDED, .doc = text, .infer = float_infer, \
     .cpu = id##_cpu, .vjp = id##_vjp, __VA_ARGS__)

/* gin of x: gout * grad * d2, d2 being the second derivative of the activation. */
static peri_tensor *second (peri_vjp *v, peri_tensor *d2) {
  return B(BB, mul, B(BB, mul, G, Y), d2);
}

RULE(relu_backward) { GIN(1, B(BB, relu_backward, X, G)); }
BACKWARD(relu_backward, "Gradient of relu at x: 0 where x is 0 or less, else grad (at NaN, too).",
         .domain = "kinks=0");

RULE(tanh_backward) {
  GIN(0, second(v, B(BB, mul, X, NUM(-2))));
  GIN(1, B(BB, tanh_backward, X, G));
}
BACKWARD(tanh_backward, "Gradient of tanh where its output is x: grad * (1 - x^2).",
         .domain = "x=-0.9..0.9");

RULE(sigmoid_backward) {
  GIN(0, second(v, B(BB, sub, NUM(1), B(BB, mul, X, NUM(2)))));
  GIN(1, B(BB, sigmoid_backward, X, G));
}
BACKWARD(sigmoid_backward, "Gradient of sigmoid where its output is x: grad * x * (1 - x).",
         .domain = "x=0.1..0.9");

RULE(silu_backward) { /* s (1 - s) (2 + x (1 - 2 s)) */
  if (v->need[0]) {
    peri_tensor *s = B(BB, sigmoid, X), *r = B(BB, sub, NUM(1), s);
    peri_tensor *t = B(BB, add, B(BB, mul, X, B(BB, sub, r, s)), NUM(2));
    v->gin[0] = second(v, B(BB, mul, B(BB, mul, s, r), t));
  }
  GIN(1, B(BB, silu_backward, X, G));
}
BACKWARD(silu_backward, "Gradient of silu at x, times grad.", .domain = NULL);

RULE(gelu_erf_backward) { /* phi(x) (2 - x^2), phi the normal density */
  if (v->need[0]) {
    peri_tensor *q = B(BB, square, X), *e = B(BB, exp, B(BB, mul, q, NUM(-0.5)));
    peri_tensor *t = B(BB, sub, NUM(2 * INV_SQRT_2PI), B(BB, mul, q, NUM(INV_SQRT_2PI)));
    v->gin[0] = second(v, B(BB, mul, e, t));
  }
  GIN(1, B(BB, gelu_erf_backward, X, G));
}
BACKWARD(gelu_erf_backward, "Gradient of gelu(x) at x, times grad.", .domain = NULL);

/* y = x s(t), t = 2 u: y'' = s (1 - s) (2 t' + x ((1 - 2 s) t'^2 + t'')) */
RULE(gelu_tanh_backward) {
  if (v->need[0]) {
    peri_tensor *q = B(BB, square, X);
    peri_tensor *t = B(BB, mul, X, B(BB, add, B(BB, mul, q, NUM(C_GELU * 0.044715)), NUM(C_GELU)));
    peri_tensor *t1 = B(BB, add, B(BB, mul, q, NUM(3 * C_GELU * 0.044715)), NUM(C_GELU));
    peri_tensor *s = B(BB, sigmoid, t), *r = B(BB, sub, NUM(1), s);
    peri_tensor *k = B(BB, mul, B(BB, mul, B(BB, sub, r, s), B(BB, square, t1)), X);
    k = B(BB, add, k, B(BB, mul, q, NUM(6 * C_GELU * 0.044715))); /* x t'' */
    k = B(BB, add, k, B(BB, mul, t1, NUM(2)));
    v->gin[0] = second(v, B(BB, mul, B(BB, mul, s, r), k));
  }
  GIN(1, B(BB, gelu_tanh_backward, X, G));
}
BACKWARD(gelu_tanh_backward, "Gradient of gelu(x, \"tanh\") at x, times grad.", .domain = NULL);
