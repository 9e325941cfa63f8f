/*
** binary.c - elementwise functions of two and three tensors with broadcasting: arithmetic,
** comparisons, logic.
*/
#include <math.h>
#include <string.h>

#include "op/elementwise.h"
#include "op/move.h"
#include "op/rule.h"

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

static double mod_f64 (double a, double b) {
  double m = fmod(a, b);
  return m != 0 && (m < 0) != (b < 0) ? m + b : m;
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
#define D(name) d_##name,
static const peri__kernel binary_f64[PERI_N_PLAIN_BINARY] = { PERI_PLAIN_BINARY(D) };

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
static const peri__kernel binary_i64[PERI_N_PLAIN_BINARY] = {
  [PERI_MATH_add] = i_add,           [PERI_MATH_sub] = i_sub,         [PERI_MATH_mul] = i_mul,
  [PERI_MATH_floordiv] = i_floordiv, [PERI_MATH_mod] = i_mod,         [PERI_MATH_pow] = i_pow,
  [PERI_MATH_maximum] = i_maximum,   [PERI_MATH_minimum] = i_minimum,
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
  bool cheap = id <= PERI_MATH_minimum; /* PERI_ARITHMETIC */
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

#define BINARY(id, rule, ...)                                                  \
  static peri_status id##_cpu(peri_call *c) { return run(c, PERI_MATH_##id); } \
  OP(id, .sig = "x, y", .flags = ELEMENTWISE, .infer = rule, .cpu = id##_cpu, __VA_ARGS__)

/* ---- arithmetic ---- */

RULE(add) { v->gin[0] = v->gin[1] = GRAD; }
BINARY(add, same_infer, .doc = "x + y, broadcast; integers wrap around, for bool it is \"or\".",
       .unread = 1 | 2, .vjp = add_vjp, TESTS(.variants = { "x.shape=2,1; y.shape=3" }));

RULE(sub) {
  v->gin[0] = GRAD;
  GIVE(1, B(BB, neg, GRAD));
}
BINARY(sub, same_infer, .doc = "x - y, broadcast.", .unread = 1 | 2, .vjp = sub_vjp,
       TESTS(.variants = { "x.shape=(); y.shape=2,3" }));

RULE(mul) {
  GIVE(0, B(BB, mul, GRAD, IN(1)));
  GIVE(1, B(BB, mul, GRAD, IN(0)));
}
BINARY(mul, same_infer, .doc = "x * y, broadcast; for bool it is \"and\".", .vjp = mul_vjp,
       TESTS(.variants = { "x.shape=2,1,3; y.shape=4,1" }));

RULE(div) {
  GIVE(0, B(BB, div, GRAD, IN(1)));
  GIVE(1, B(BB, neg, B(BB, div, B(BB, mul, GRAD, OUT), IN(1))));
}
BINARY(div, float_infer, .doc = "x / y, broadcast; integers give f32.", .vjp = div_vjp,
       TESTS(.domain = "y=0.3..3", .variants = { "x.shape=2,3; y.shape=3; y=-3..-0.3" }));

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
               "Constant for differentiation.",
        TESTS(.refuses = { "x=i64[1,2]; y=i64[1,0] => zero | position 1" }));

RULE(mod) {
  v->gin[0] = GRAD;
  GIVE(1, B(BB, neg, B(BB, mul, GRAD, B(BB, floordiv, IN(0), IN(1)))));
}
CHECKED(mod, false, same_infer,
        .doc = "x - floordiv(x, y) * y, broadcast: the remainder has the sign of y, as in Lua.",
        .vjp = mod_vjp,
        TESTS(.domain = "x=2.1..2.4; y=0.9..1", .variants = { "x=-2.4..-2.1; y=0.9..1" },
              .refuses = { "x=i64[1,2]; y=i64[1,0] => zero | position 1" }));

/* The exponent when it is one number that takes no gradient. */
static bool plain_exponent (const peri_vjp *v, double *e) {
  return v->c->in[1]->numel == 1 && !v->need[1] && peri_item(v->c->in[1], 0, e) == PERI_OK;
}
RULE(pow) {
  double e;
  peri_tensor *zero = NUM(0);
  if (plain_exponent(v, &e)) {
    if (e == 2)
      v->gin[0] = B(BB, mul, GRAD, B(BB, mul, IN(0), NUM(2)));
    else if (e == 0)
      v->gin[0] = B(BB, mul, GRAD, zero);
    else
      v->gin[0] = B(BB, mul, GRAD, B(BB, mul, B(BB, pow, IN(0), NUM(e - 1)), NUM(e)));
    return;
  }
  if (v->need[0]) { /* 0 where y is 0, also where x is 0 then */
    peri_tensor *d = B(BB, mul, IN(1), B(BB, pow, IN(0), B(BB, sub, IN(1), NUM(1))));
    v->gin[0] = B(BB, mul, GRAD, B(BB, where, B(BB, eq, IN(1), zero), zero, d));
  }
  if (v->need[1]) { /* 0 where x is 0 and y at least 0 */
    peri_tensor *flat = B(BB, logical_and, B(BB, eq, IN(0), zero), B(BB, ge, IN(1), zero));
    peri_tensor *base =
        BA(BB, to, ATTR(A_INT(v->like[0]->dtype)), IN(0)); /* log of a number alone is f32 */
    peri_tensor *d = B(BB, mul, OUT, B(BB, log, base));
    v->gin[1] = B(BB, mul, GRAD, B(BB, where, flat, zero, d));
  }
}
CHECKED(pow, true, pow_infer,
        .doc = "x to the power of y, broadcast; integers take no negative exponents.",
        .vjp = pow_vjp,
        TESTS(.domain = "x=0.3..2", .variants = { "x=0.3..2; y.shape=()", "x=0.3..2; x.shape=2,1" },
              .refuses = { "x=i64[1,2]; y=number:-2 => -2" }));

/* The gradient goes to x where it wins, greater being where it does among numbers: a NaN of x wins,
** and one of y against a number. Equal ones have half of it each. */
static void to_winner (peri_vjp *v, peri_tensor *greater) {
  peri_tensor *ties = B(BB, eq, IN(0), IN(1)), *zero = NUM(0), *half = B(BB, mul, GRAD, NUM(0.5));
  if (peri__any_nan(BB, IN(0))) greater = B(BB, logical_or, greater, B(BB, ne, IN(0), IN(0)));
  GIVE(0, B(BB, where, greater, GRAD, B(BB, where, ties, half, zero)));
  GIVE(1, B(BB, where, greater, zero, B(BB, where, ties, half, GRAD)));
}
RULE(maximum) { to_winner(v, B(BB, gt, IN(0), IN(1))); }
BINARY(maximum, same_infer,
       .doc = "The larger of x and y, broadcast; NaN if either is. Equal ones share the gradient.",
       .vjp = maximum_vjp, TESTS(.variants = { "y.shape=3" }));

RULE(minimum) { to_winner(v, B(BB, lt, IN(0), IN(1))); }
BINARY(minimum, same_infer,
       .doc = "The smaller of x and y, broadcast; NaN if either is. Equal ones share the gradient.",
       .vjp = minimum_vjp);

RULE(atan2) { /* 0 at the origin, where no direction is the steepest */
  peri_tensor *d = B(BB, add, B(BB, square, IN(0)), B(BB, square, IN(1))),
              *at0 = B(BB, eq, d, NUM(0));
  peri_tensor *t = B(BB, div, GRAD, BA(BB, masked_fill, ATTR(A_NUM(1)), d, at0));
  t = BA(BB, masked_fill, ATTR(A_NUM(0)), t, at0);
  GIVE(0, B(BB, mul, t, IN(1)));
  GIVE(1, B(BB, neg, B(BB, mul, t, IN(0))));
}
BINARY(
    atan2, float_infer,
    .doc = "The angle of the point (y, x), in (-pi, pi], broadcast; its gradient at (0, 0) is 0.",
    .vjp = atan2_vjp, TESTS(.domain = "x=0.3..2", .variants = { "x=-2..-0.3; y=-2..-0.3" }));

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
