/*
** statistics.c - reductions that need more than one look at a row or a function of its elements:
** variance, standard deviation, logsumexp, norms. All are carried in f64.
*/
#include "op/reduce.h"
#include "op/rule.h"

#include <math.h>

#define FLAGS(c)             \
  bool flags[PERI_MAX_DIMS]; \
  TRY(peri__dims((c)->ctx, &(c)->attr[0], (c)->in[0]->ndim, flags))

static peri__part add (peri__part a, peri__part b) { return (peri__part){ .f = a.f + b.f }; }

/* chunk functions for f32 and f64 from one expression over a double x */
#define CHUNK(name, type, e)                                                            \
  static peri__part name(const peri__fold *f, const void *in, int64_t n, int64_t row) { \
    const type *p = in;                                                                 \
    double s = 0;                                                                       \
    (void)f;                                                                            \
    (void)row;                                                                          \
    for (int64_t i = 0; i < n; i++) {                                                   \
      double x = (double)p[i];                                                          \
      s += e;                                                                           \
    }                                                                                   \
    return (peri__part){ .f = s };                                                      \
  }

/* Two folds over the same rows: the first gives each row its shift. */
static peri_status fold_twice (peri_call *c, peri__fold *first, peri__fold *second) {
  FLAGS(c);
  peri_tensor *dense = NULL;
  int64_t rows, n;
  TRY(peri__rows(c->in[0], flags, &dense, &rows, &n));
  size_t bytes = (size_t)rows * sizeof(double);
  double *shift = peri__block_get(c->ctx, bytes + sizeof *shift); /* rows may be 0 */
  peri_status s = PERI_OK;
  if (!shift) s = peri__fail(c->ctx, PERI_ENOMEM, "out of memory for %lld rows", (long long)rows);
  if (s == PERI_OK) s = peri__reduce_rows(c->ctx, first, dense->data, rows, n, shift);
  second->shift = shift;
  if (s == PERI_OK) s = peri__reduce(c->ctx, second, c->in[0], flags, c->out[0]);
  if (shift) peri__block_put(c->ctx, shift);
  peri_release(dense);
  return s;
}

/* ---- var, std ---- */

static peri__part sum_f32 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  (void)row;
  return (peri__part){ .f = f->k->sum(x, n) };
}
CHUNK(sum_f64, double, x)
static peri__part mean_of (const peri__fold *f, peri__part a, int64_t row) {
  (void)row;
  return (peri__part){ .f = a.f / (double)f->n };
}
static peri__part squares_f32 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  return (peri__part){ .f = f->k->sum_square(x, n, f->shift ? f->shift[row] : 0) };
}
static peri__part squares_f64 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  const double *p = x;
  double s = 0, shift = f->shift ? f->shift[row] : 0;
  for (int64_t i = 0; i < n; i++) s += (p[i] - shift) * (p[i] - shift);
  return (peri__part){ .f = s };
}
static peri__part by_freedom (const peri__fold *f, peri__part a, int64_t row) {
  double left = (double)f->n - f->p;
  (void)row;
  return (peri__part){ .f = left > 0 ? a.f / left : (double)NAN };
}
static peri_status var_infer (peri_call *c) {
  FLAGS(c);
  return peri__infer_reduce(c, 0, flags, c->attr[1].i != 0, c->in[0]->dtype);
}
static peri_status var_cpu (peri_call *c) {
  int type = c->in[0]->dtype;
  bool wide = type == PERI_F64;
  peri__fold mean = {
    .type = type, .chunk = wide ? sum_f64 : sum_f32, .join = add, .finish = mean_of
  };
  peri__fold var = { .type = type,
                     .chunk = wide ? squares_f64 : squares_f32,
                     .join = add,
                     .finish = by_freedom,
                     .p = (double)c->attr[2].i };
  return fold_twice(c, &mean, &var);
}
RULE(var) { /* 2 (x - mean) / (n - ddof) */
  bool flags[PERI_MAX_DIMS];
  peri__fold_flags(v, flags);
  const peri_attr keep[] = { v->c->attr[0], A_INT(1) };
  double left = (double)peri__folded(IN(0), flags) - (double)v->c->attr[2].i;
  peri_tensor *d = B(BB, sub, IN(0), BA(BB, mean, keep, IN(0)));
  GIVE(0,
       B(BB, mul, d, B(BB, mul, peri__unfold_in(v, GRAD), NUM(left > 0 ? 2 / left : (double)NAN))));
}
OP(var, .sig = "x, dims:dims=all, keep:bool=false, ddof:int=1",
   .flags = PERI_OP_STRIDED | PERI_OP_FLOAT | PERI_OP_UPCAST,
   .doc =
       "Variance over dims: squared distances from the mean, summed, over n - ddof; NaN where that "
       "is not positive.",
   .infer = var_infer, .cpu = var_cpu, .vjp = var_vjp,
   TESTS(.variants = { "attr dims=2; attr ddof=0", "shape=2,3,2; attr dims=1,3; attr keep=true" }));

/* Where the variance is 0 the gradient is 0, not 0 times infinity. */
static void std_compose (peri_build *b, peri_call *c) {
  peri_tensor *var = BA(b, var, c->attr, c->in[0]), *flat = B(b, logical_not, var);
  peri_tensor *root = B(b, sqrt, BA(b, masked_fill, ATTR(A_NUM(1)), var, flat));
  c->out[0] = BA(b, masked_fill, ATTR(A_NUM(0)), root, flat);
}
OP(std, .sig = "x, dims:dims=all, keep:bool=false, ddof:int=1",
   .doc = "Standard deviation over dims, the square root of var.", .compose = std_compose,
   TESTS(.variants = { "attr dims=2; attr ddof=0", "attr dims=1; attr keep=true" }));

/* ---- logsumexp ---- */

static peri__part max_f32 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  (void)row;
  return (peri__part){ .f = (double)f->k->max(x, n) };
}
static peri__part max_f64 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  const double *p = x;
  double m = p[0];
  (void)f;
  (void)row;
  for (int64_t i = 1; i < n; i++)
    if (p[i] > m || p[i] != p[i]) m = p[i];
  return (peri__part){ .f = m };
}
static peri__part larger (peri__part a, peri__part b) { return a.f != a.f || a.f >= b.f ? a : b; }
/* Infinite maxima are no shift: e^(inf - inf) would be NaN. */
static peri__part finite (const peri__fold *f, peri__part a, int64_t row) {
  (void)f;
  (void)row;
  return (peri__part){ .f = isfinite(a.f) ? a.f : 0 };
}
static peri__part exps_f32 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  return (peri__part){ .f = f->k->sum_exp(x, n, (float)f->shift[row]) };
}
static peri__part exps_f64 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  const double *p = x;
  double s = 0;
  for (int64_t i = 0; i < n; i++) s += exp(p[i] - f->shift[row]);
  return (peri__part){ .f = s };
}
static peri__part log_of (const peri__fold *f, peri__part a, int64_t row) {
  return (peri__part){ .f = f->shift[row] + log(a.f) };
}
static peri_status logsumexp_cpu (peri_call *c) {
  int type = c->in[0]->dtype;
  bool wide = type == PERI_F64;
  peri__fold max = { .type = type,
                     .identity = { .f = 0 },
                     .chunk = wide ? max_f64 : max_f32,
                     .join = larger,
                     .finish = finite };
  peri__fold sum = {
    .type = type, .chunk = wide ? exps_f64 : exps_f32, .join = add, .finish = log_of
  };
  return fold_twice(c, &max, &sum);
}
RULE(logsumexp) { /* 0 where all are -inf, as each of them alone has */
  peri_tensor *y = peri__unfold_in(v, OUT), *none = B(BB, eq, y, NUM(-INFINITY));
  y = BA(BB, masked_fill, ATTR(A_NUM(0)), y, none);
  GIVE(0, B(BB, mul, peri__unfold_in(v, GRAD), B(BB, exp, B(BB, sub, IN(0), y))));
}
OP(logsumexp, .sig = "x, dims:dims=all, keep:bool=false",
   .flags = PERI_OP_STRIDED | PERI_OP_FLOAT | PERI_OP_UPCAST,
   .doc = "log(sum(e^x)) over dims without overflow; -inf of nothing.", .infer = var_infer,
   .cpu = logsumexp_cpu, .vjp = logsumexp_vjp,
   TESTS(.variants = { "attr dims=2", "shape=2,3,2; attr dims=1,3; attr keep=true" }));

/* ---- norm ---- */

static peri__part abs_f32 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  (void)row;
  return (peri__part){ .f = f->k->sum_abs(x, n) };
}
CHUNK(abs_f64, double, fabs(x))
CHUNK(powers_f32, float, pow(fabs(x), f->p))
CHUNK(powers_f64, double, pow(fabs(x), f->p))
CHUNK(nonzero_f32, float, x != 0)
CHUNK(nonzero_f64, double, x != 0)
#define LARGEST(name, type)                                                             \
  static peri__part name(const peri__fold *f, const void *in, int64_t n, int64_t row) { \
    const type *p = in;                                                                 \
    double m = 0;                                                                       \
    (void)f;                                                                            \
    (void)row;                                                                          \
    for (int64_t i = 0; i < n; i++) {                                                   \
      double x = fabs((double)p[i]);                                                    \
      if (x > m || x != x) m = x;                                                       \
      if (m != m) break;                                                                \
    }                                                                                   \
    return (peri__part){ .f = m };                                                      \
  }
LARGEST(largest_f32, float)
LARGEST(largest_f64, double)
static peri__part root_of (const peri__fold *f, peri__part a, int64_t row) {
  (void)row;
  return (peri__part){ .f = f->p == 2 ? sqrt(a.f) : pow(a.f, 1 / f->p) };
}
static peri_status norm_infer (peri_call *c) {
  if (!(c->attr[0].f >= 0))
    return peri__fail(c->ctx, PERI_EINVAL, "p is %g, expected 0 or more", c->attr[0].f);
  bool flags[PERI_MAX_DIMS];
  TRY(peri__dims(c->ctx, &c->attr[1], c->in[0]->ndim, flags));
  return peri__infer_reduce(c, 0, flags, c->attr[2].i != 0, c->in[0]->dtype);
}
static peri_status norm_cpu (peri_call *c) {
  bool flags[PERI_MAX_DIMS], wide = c->in[0]->dtype == PERI_F64;
  double p = c->attr[0].f;
  peri__fold f = { .type = c->in[0]->dtype, .join = add, .p = p };
  TRY(peri__dims(c->ctx, &c->attr[1], c->in[0]->ndim, flags));
  if (p == 0) {
    f.chunk = wide ? nonzero_f64 : nonzero_f32;
  } else if (p == 1) {
    f.chunk = wide ? abs_f64 : abs_f32;
  } else if (isinf(p)) {
    f.chunk = wide ? largest_f64 : largest_f32;
    f.join = larger;
  } else {
    f.chunk = p == 2 ? (wide ? squares_f64 : squares_f32) : (wide ? powers_f64 : powers_f32);
    f.finish = root_of;
  }
  return peri__reduce(c->ctx, &f, c->in[0], flags, c->out[0]);
}
/* 0 where the norm is 0, as at the tip of the cone any subgradient will do, and by the same right
** for elements that are 0 in a norm with p below 1, whose slope there has no bound. */
RULE(norm) {
  bool flags[PERI_MAX_DIMS];
  double p = v->c->attr[0].f;
  peri_status s = peri__dims(v->c->ctx, &v->c->attr[1], IN(0)->ndim, flags);
  peri__build_fail(BB, s);
  if (s != PERI_OK) return;
  peri_tensor *g = peri__unfold(BB, GRAD, IN(0), flags);
  if (p == 0) {
    GIVE(0, BA(BB, zeros_like, ATTR(A_INT(-1)), IN(0)));
    return;
  }
  if (p == 1) {
    GIVE(0, B(BB, mul, g, B(BB, sign, IN(0))));
    return;
  }
  peri_tensor *y = peri__unfold(BB, OUT, IN(0), flags);
  if (isinf(p)) {
    const peri_attr keep[] = { v->c->attr[1], A_INT(1) };
    peri_tensor *hit = B(BB, eq, B(BB, abs, IN(0)), y);
    if (peri__any_nan(BB, y)) hit = B(BB, logical_or, hit, B(BB, isnan, IN(0)));
    peri_tensor *share = B(BB, div, g, BA(BB, sum, keep, hit));
    GIVE(0, B(BB, mul, B(BB, sign, IN(0)), B(BB, where, hit, share, NUM(0))));
    return;
  }
  peri_tensor *zero = B(BB, eq, y, NUM(0)), *safe = BA(BB, masked_fill, ATTR(A_NUM(1)), y, zero);
  g = BA(BB, masked_fill, ATTR(A_NUM(0)), g, zero);
  if (p == 2) {
    GIVE(0, B(BB, mul, IN(0), B(BB, div, g, safe)));
    return;
  }
  /* sign(x) (|x| / y)^(p - 1): powers of the ratio, as those of x and y may over- or underflow */
  peri_tensor *ratio = B(BB, div, B(BB, abs, IN(0)), safe);
  ratio = BA(BB, masked_fill, ATTR(A_NUM(1)), ratio, B(BB, eq, IN(0), NUM(0)));
  GIVE(0, B(BB, mul, B(BB, mul, B(BB, sign, IN(0)), B(BB, pow, ratio, NUM(p - 1))), g));
}
OP(norm, .sig = "x, p:num=2, dims:dims=all, keep:bool=false",
   .flags = PERI_OP_STRIDED | PERI_OP_FLOAT | PERI_OP_UPCAST,
   .doc =
       "p-norm over dims, (sum |x|^p)^(1/p); p inf is the largest |x|, p 0 counts what is not 0. "
       "The gradient is 0 where the norm is 0, and, for p below 1, at elements that are 0.",
   .infer = norm_infer, .cpu = norm_cpu, .vjp = norm_vjp,
   TESTS(.variants = { "attr p=1; kinks=0", "attr p=3; attr dims=2; kinks=0",
                       "attr p=1.5; attr dims=1; attr keep=true; kinks=0",
                       "attr p=2; attr dims=2" }));
