/*
** special.c - the logarithm of the gamma function and its derivatives, which the densities of beta,
** gamma and Dirichlet distributions are made of. Computed in f64 whatever the dtype.
*/
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* lgamma_r: lgamma writes a global */
#endif
#include <inttypes.h>
#include <math.h>

#include "op/elementwise.h"
#include "op/rule.h"

#define PI 3.14159265358979323846
enum { MOST = 100 }; /* the highest derivative: factorials stay in f64 */

static double lgamma_of (double x, double n) {
  int sign;
  (void)n;
  return lgamma_r(x, &sign);
}

/* Bernoulli's numbers B_2, B_4, ...; behind them an asymptotic series has 1e-17 at x >= 10. */
static const double bernoulli_number[] = { 1.0 / 6,       -1.0 / 30,      1.0 / 42, -1.0 / 30,
                                           5.0 / 66,      -691.0 / 2730,  7.0 / 6,  -3617.0 / 510,
                                           43867.0 / 798, -174611.0 / 330 };
enum { TERMS = sizeof bernoulli_number / sizeof *bernoulli_number };

/* sin and tan of pi x are those of pi times this: no digits are lost for large x. */
static double off_whole (double x) { return x - nearbyint(x); }

/* Abramowitz and Stegun, 6.3.18 behind 6.3.5; below 0 by reflection, 6.3.7. */
static double digamma_of (double x) {
  double sum = 0, power = 1;
  if (x == 0) return signbit(x) ? INFINITY : -INFINITY;
  if (x < 0) {
    double r = off_whole(x);
    return r == 0 || !(x > -INFINITY) ? NAN : digamma_of(1 - x) - PI / tan(PI * r);
  }
  if (x == INFINITY) return x;
  for (; x < 10; x++) sum -= 1 / x;
  sum += log(x) - 0.5 / x;
  for (int k = 1; k <= TERMS; k++) {
    power /= x * x;
    sum -= bernoulli_number[k - 1] / (2 * k) * power;
  }
  return sum;
}

/* 6.4.11 behind 6.4.6; of the first derivative 6.4.7 below 0. */
static double polygamma_of (double x, double order) {
  int n = (int)order;
  double sum = 0, factorial = 1; /* (n - 1)! */
  if (n == 0) return digamma_of(x);
  if (x == 0) return n % 2 == 1 ? INFINITY : signbit(x) ? INFINITY : -INFINITY;
  if (x < 0) {
    double s = sin(PI * off_whole(x));
    if (n > 1 || !(x > -INFINITY)) return NAN;
    return s == 0 ? INFINITY : PI * PI / (s * s) - polygamma_of(1 - x, 1);
  }
  if (x == INFINITY) return 0;
  for (int k = 2; k < n; k++) factorial *= k;
  double whole = factorial * n; /* n! */
  for (; x < 10 + n; x++) sum += whole * pow(x, -n - 1);
  sum += factorial * pow(x, -n) + 0.5 * whole * pow(x, -n - 1);
  double ratio = whole * (n + 1) / 2; /* (2k + n - 1)! / (2k)! */
  for (int k = 1; k <= TERMS; k++) {
    sum += bernoulli_number[k - 1] * ratio * pow(x, -n - 2 * k);
    ratio *= (double)(2 * k + n + 1) * (2 * k + n) / ((double)(2 * k + 2) * (2 * k + 1));
  }
  return n % 2 == 1 ? sum : -sum;
}

#define KERNEL(name, type, fn)                                                             \
  static void name(int64_t n, const void *const *in, const int64_t *step, void *out,       \
                   const double *p) {                                                      \
    const type *x = in[0];                                                                 \
    type *y = out;                                                                         \
    for (int64_t i = 0; i < n; i++) y[i] = (type)fn((double)x[i * step[0]], p ? p[0] : 0); \
  }
KERNEL(lgamma_f32, float, lgamma_of)
KERNEL(lgamma_f64, double, lgamma_of)
KERNEL(polygamma_f32, float, polygamma_of)
KERNEL(polygamma_f64, double, polygamma_of)

static peri_status run (peri_call *c, peri__kernel f32, peri__kernel f64, const double *p) {
  TRY(peri__want_float(c, 0, "x")); /* in place into integers */
  bool wide = c->in[0]->dtype == PERI_F64;
  peri__loop l = { .fn = wide ? f64 : f32,
                   .nin = 1,
                   .in_type = { wide ? PERI_F64 : PERI_F32 },
                   .out_type = wide ? PERI_F64 : PERI_F32,
                   .p = p,
                   .grain = PERI_GRAIN_COSTLY / 8 };
  return peri__elementwise(c->ctx, &l, c->in, c->out[0]);
}

/* ---- lgamma, digamma, polygamma ---- */

static peri_status lgamma_cpu (peri_call *c) { return run(c, lgamma_f32, lgamma_f64, NULL); }
RULE(lgamma) { GIVE(0, B(BB, mul, GRAD, B(BB, digamma, IN(0)))); }
OP(lgamma, .sig = "x", .flags = ELEMENTWISE | PERI_OP_FLOAT,
   .doc = "log |Gamma(x)|, elementwise; inf at 0 and at negative whole numbers.",
   .infer = peri__infer_same, .cpu = lgamma_cpu, .vjp = lgamma_vjp,
   TESTS(.domain = "x=0.3..4", .variants = { "x=-0.9..-0.1", "x=9..12" }));

static peri_status digamma_cpu (peri_call *c) {
  return run(c, polygamma_f32, polygamma_f64, (const double[]){ 0 });
}
RULE(digamma) { GIVE(0, B(BB, mul, GRAD, BA(BB, polygamma, ATTR(A_INT(1)), IN(0)))); }
OP(digamma, .sig = "x", .flags = ELEMENTWISE | PERI_OP_FLOAT,
   .doc = "The derivative of lgamma, elementwise; -inf at 0, NaN at negative whole numbers.",
   .infer = peri__infer_same, .cpu = digamma_cpu, .vjp = digamma_vjp,
   TESTS(.domain = "x=0.3..4", .variants = { "x=9..12" }));

static peri_status polygamma_infer (peri_call *c) {
  int64_t n = c->attr[0].i;
  if (n < 0 || n > MOST)
    return peri__fail(c->ctx, PERI_EINVAL, "n is %" PRId64 ", expected 0 to %d", n, MOST);
  return peri__infer_same(c);
}
static peri_status polygamma_cpu (peri_call *c) {
  return run(c, polygamma_f32, polygamma_f64, (const double[]){ (double)c->attr[0].i });
}
RULE(polygamma) {
  GIVE(0, B(BB, mul, GRAD, BA(BB, polygamma, ATTR(A_INT(v->c->attr[0].i + 1)), IN(0))));
}
OP(polygamma, .sig = "x, n:int=1", .flags = ELEMENTWISE | PERI_OP_FLOAT,
   .doc =
       "The n-th derivative of digamma, elementwise, n from 0 to 100; from n = 2 on NaN below 0.",
   .infer = polygamma_infer, .cpu = polygamma_cpu, .vjp = polygamma_vjp,
   TESTS(.domain = "x=0.6..4", .variants = { "x=0.6..4; attr n=0", "x=1..4; attr n=2", "x=9..12" },
         .refuses = { "attr n=-1 => -1", "attr n=101 => 101" }));
