/*
** reduce.c - sum, mean, prod, extremes, their places, and counts over any dims. Sums and products
** of f32 are carried in f64 and rounded once; integers and bool are summed in i64.
*/
#include "op/reduce.h"
#include "op/rule.h"

#include <math.h>

#define FLAGS(c)             \
  bool flags[PERI_MAX_DIMS]; \
  TRY(peri__dims((c)->ctx, &(c)->attr[0], (c)->in[0]->ndim, flags))

static peri_tensor *spread (peri_vjp *v, peri_tensor *g) {
  return BA(BB, expand, ATTR(A_DIMS(IN(0)->shape, IN(0)->ndim)), peri__unfold_in(v, g));
}

static int fold_type (int dtype) {
  return dtype == PERI_F32 || dtype == PERI_F64 ? dtype : PERI_I64;
}

/* ---- sum, mean ---- */

static peri__part sum_f32 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  (void)row;
  return (peri__part){ .f = f->k->sum(x, n) };
}
static peri__part sum_f64 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  const double *v = x;
  double s[4] = { 0, 0, 0, 0 };
  int64_t i = 0;
  (void)f;
  (void)row;
  for (; i + 4 <= n; i += 4)
    for (int k = 0; k < 4; k++) s[k] += v[i + k];
  for (; i < n; i++) s[0] += v[i];
  return (peri__part){ .f = (s[0] + s[2]) + (s[1] + s[3]) };
}
static peri__part sum_i64 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  const int64_t *v = x;
  uint64_t s = 0;
  (void)f;
  (void)row;
  for (int64_t i = 0; i < n; i++) s += (uint64_t)v[i];
  return (peri__part){ .i = (int64_t)s };
}
static peri__part count (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  (void)row;
  return (peri__part){ .i = f->k->count(x, n) };
}
static peri__part add_f (peri__part a, peri__part b) { return (peri__part){ .f = a.f + b.f }; }
static peri__part add_i (peri__part a, peri__part b) {
  return (peri__part){ .i = (int64_t)((uint64_t)a.i + (uint64_t)b.i) };
}
static peri__part divide (const peri__fold *f, peri__part a, int64_t row) {
  (void)row;
  return (peri__part){ .f = a.f / (double)f->n };
}
static void sum_columns (const peri__fold *f, const float *x, int64_t rows, int64_t stride,
                         int64_t cols, double *acc) {
  f->k->column_sum(x, rows, stride, cols, acc);
}

static peri__fold sum_fold (int dtype) {
  if (dtype == PERI_BOOL)
    return (peri__fold){ .type = PERI_BOOL, .integer = true, .chunk = count, .join = add_i };
  switch (fold_type(dtype)) {
  case PERI_F32:
    return (
        peri__fold){ .type = PERI_F32, .chunk = sum_f32, .join = add_f, .columns = sum_columns };
  case PERI_F64: return (peri__fold){ .type = PERI_F64, .chunk = sum_f64, .join = add_f };
  default:
    return (peri__fold){ .type = PERI_I64, .integer = true, .chunk = sum_i64, .join = add_i };
  }
}

static int wide_dtype (const peri_call *c) {
  return peri__is_float(c->in[0]->dtype) ? c->in[0]->dtype : PERI_I64;
}
static peri_status sum_infer (peri_call *c) {
  FLAGS(c);
  return peri__infer_reduce(c, 0, flags, c->attr[1].i != 0, wide_dtype(c));
}
static peri_status sum_cpu (peri_call *c) {
  FLAGS(c);
  peri__fold f = sum_fold(c->in[0]->dtype);
  return peri__reduce(c->ctx, &f, c->in[0], flags, c->out[0]);
}
RULE(sum) { GIVE(0, spread(v, GRAD)); }
OP(sum, .sig = "x, dims:dims=all, keep:bool=false", .flags = PERI_OP_STRIDED | PERI_OP_UPCAST,
   .doc = "Sum over dims; keep leaves them with size 1. bool and integers give i64; the empty sum "
          "is 0.",
   .infer = sum_infer, .cpu = sum_cpu, .unread = 1, .vjp = sum_vjp,
   TESTS(.variants = { "attr dims=1; attr keep=true", "shape=2,3,2; attr dims=1,3", "shape=()" }));

static peri_status mean_infer (peri_call *c) {
  FLAGS(c);
  return peri__infer_reduce(c, 0, flags, c->attr[1].i != 0, c->in[0]->dtype);
}
static peri_status mean_cpu (peri_call *c) {
  FLAGS(c);
  peri__fold f = sum_fold(c->in[0]->dtype);
  f.finish = divide;
  return peri__reduce(c->ctx, &f, c->in[0], flags, c->out[0]);
}
RULE(mean) {
  bool flags[PERI_MAX_DIMS];
  peri__fold_flags(v, flags);
  GIVE(0, spread(v, B(BB, div, GRAD, NUM((double)peri__folded(IN(0), flags)))));
}
OP(mean, .sig = "x, dims:dims=all, keep:bool=false",
   .flags = PERI_OP_STRIDED | PERI_OP_FLOAT | PERI_OP_UPCAST,
   .doc = "Arithmetic mean over dims; integers give f32, nothing gives NaN.", .infer = mean_infer,
   .cpu = mean_cpu, .unread = 1, .vjp = mean_vjp,
   TESTS(.variants = { "attr dims=-1", "shape=2,3,2; attr dims=1,3; attr keep=true" }));

/* ---- prod ---- */

static peri__part prod_f32 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  (void)row;
  return (peri__part){ .f = f->k->prod(x, n) };
}
static peri__part prod_f64 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  const double *v = x;
  double s = 1;
  (void)f;
  (void)row;
  for (int64_t i = 0; i < n; i++) s *= v[i];
  return (peri__part){ .f = s };
}
static peri__part prod_i64 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  const int64_t *v = x;
  uint64_t s = 1;
  (void)f;
  (void)row;
  for (int64_t i = 0; i < n; i++) s *= (uint64_t)v[i];
  return (peri__part){ .i = (int64_t)s };
}
static peri__part mul_f (peri__part a, peri__part b) { return (peri__part){ .f = a.f * b.f }; }
static peri__part mul_i (peri__part a, peri__part b) {
  return (peri__part){ .i = (int64_t)((uint64_t)a.i * (uint64_t)b.i) };
}
static peri_status prod_cpu (peri_call *c) {
  FLAGS(c);
  int type = fold_type(c->in[0]->dtype);
  peri__fold f = { .type = type,
                   .integer = type == PERI_I64,
                   .identity = { .f = 1 },
                   .chunk = type == PERI_F32   ? prod_f32
                            : type == PERI_F64 ? prod_f64
                                               : prod_i64,
                   .join = type == PERI_I64 ? mul_i : mul_f };
  if (f.integer) f.identity.i = 1;
  return peri__reduce(c->ctx, &f, c->in[0], flags, c->out[0]);
}
/* The product of the others: of all over x where no factor is 0; with one 0 it is not 0 there
** alone; with more it is 0 everywhere. */
RULE(prod) {
  const peri_attr keep[] = { v->c->attr[0], A_INT(1) };
  peri_tensor *zero = B(BB, eq, IN(0), NUM(0));
  peri_tensor *safe = BA(BB, masked_fill, ATTR(A_NUM(1)), IN(0), zero);
  peri_tensor *rest = BA(BB, prod, keep, safe), *zeros = BA(BB, sum, keep, zero);
  peri_tensor *lone = B(BB, logical_and, zero, B(BB, eq, zeros, NUM(1)));
  peri_tensor *d = B(BB, where, lone, rest, NUM(0));
  d = B(BB, where, B(BB, eq, zeros, NUM(0)), B(BB, div, rest, safe), d);
  GIVE(0, B(BB, mul, peri__unfold_in(v, GRAD), d));
}
OP(prod, .sig = "x, dims:dims=all, keep:bool=false", .flags = PERI_OP_STRIDED | PERI_OP_UPCAST,
   .doc =
       "Product over dims; integers give i64, the empty product is 1. The gradient is right with "
       "zeros among the factors, the second one only without.",
   .infer = sum_infer, .cpu = prod_cpu, .vjp = prod_vjp,
   TESTS(.variants = { "attr dims=2", "shape=3,1,2; attr dims=1; attr keep=true" }));

/* ---- max, min ---- */

static peri__part max_f32 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  (void)row;
  return (peri__part){ .f = (double)f->k->max(x, n) };
}
static peri__part min_f32 (const peri__fold *f, const void *x, int64_t n, int64_t row) {
  (void)row;
  return (peri__part){ .f = (double)f->k->min(x, n) };
}
static peri__part larger (peri__part a, peri__part b) { return a.f != a.f || a.f >= b.f ? a : b; }
static peri__part smaller (peri__part a, peri__part b) { return a.f != a.f || a.f <= b.f ? a : b; }
static peri__part larger_i (peri__part a, peri__part b) { return a.i >= b.i ? a : b; }
static peri__part smaller_i (peri__part a, peri__part b) { return a.i <= b.i ? a : b; }
/* Elements of f64 and i64 are parts already. */
#define EXTREME(name, join)                                                            \
  static peri__part name(const peri__fold *f, const void *x, int64_t n, int64_t row) { \
    const peri__part *v = x;                                                           \
    peri__part a = v[0];                                                               \
    (void)f;                                                                           \
    (void)row;                                                                         \
    for (int64_t i = 1; i < n; i++) a = join(a, v[i]);                                 \
    return a;                                                                          \
  }
EXTREME(max_f64, larger)
EXTREME(min_f64, smaller)
EXTREME(max_i64, larger_i)
EXTREME(min_i64, smaller_i)

#define COLUMNS(name)                                                                           \
  static void name##_columns(const peri__fold *f, const float *x, int64_t rows, int64_t stride, \
                             int64_t cols, double *acc) {                                       \
    float a[512];                                                                               \
    for (int64_t i = 0; i < cols; i++) a[i] = (float)acc[i];                                    \
    f->k->column_##name(x, rows, stride, cols, a);                                              \
    for (int64_t i = 0; i < cols; i++) acc[i] = (double)a[i];                                   \
  }
COLUMNS(max)
COLUMNS(min)

static peri_status some (peri_call *c, const bool flags[PERI_MAX_DIMS]) {
  char buf[128];
  int64_t n = peri__folded(c->in[0], flags);
  if (n > 0 || c->out[0]->numel == 0) return PERI_OK;
  return peri__fail(c->ctx, PERI_EINVAL, "%s has no elements along these dims to choose from",
                    peri__shape_text(c->in[0], buf, sizeof buf));
}
static peri_status extreme_infer (peri_call *c) {
  FLAGS(c);
  TRY(peri__infer_reduce(c, 0, flags, c->attr[1].i != 0, c->in[0]->dtype));
  return some(c, flags);
}
static peri_status max_cpu (peri_call *c) {
  FLAGS(c);
  int type = fold_type(c->in[0]->dtype);
  peri__fold f = { .type = type,
                   .integer = type == PERI_I64,
                   .chunk = type == PERI_F32   ? max_f32
                            : type == PERI_F64 ? max_f64
                                               : max_i64,
                   .join = type == PERI_I64 ? larger_i : larger,
                   .columns = max_columns,
                   .columns_first = -INFINITY };
  return peri__reduce(c->ctx, &f, c->in[0], flags, c->out[0]);
}
static peri_status min_cpu (peri_call *c) {
  FLAGS(c);
  int type = fold_type(c->in[0]->dtype);
  peri__fold f = { .type = type,
                   .integer = type == PERI_I64,
                   .chunk = type == PERI_F32   ? min_f32
                            : type == PERI_F64 ? min_f64
                                               : min_i64,
                   .join = type == PERI_I64 ? smaller_i : smaller,
                   .columns = min_columns,
                   .columns_first = INFINITY };
  return peri__reduce(c->ctx, &f, c->in[0], flags, c->out[0]);
}
/* Equal ones share the gradient. A NaN is equal to nothing, but where there is one it was chosen. */
RULE(max) {
  const peri_attr keep[] = { v->c->attr[0], A_INT(1) };
  peri_tensor *y = OUT, *hit = B(BB, eq, IN(0), peri__unfold_in(v, y));
  if (peri__any_nan(BB, y)) hit = B(BB, logical_or, hit, B(BB, isnan, IN(0)));
  peri_tensor *share = B(BB, div, peri__unfold_in(v, GRAD), BA(BB, sum, keep, hit));
  GIVE(0, B(BB, where, hit, share, NUM(0)));
}
OP(max, .sig = "x, dims:dims=all, keep:bool=false", .flags = PERI_OP_STRIDED | PERI_OP_UPCAST,
   .doc = "Largest element over dims; NaN wins. Equal ones, and NaNs, share the gradient.",
   .infer = extreme_infer, .cpu = max_cpu, .vjp = max_vjp,
   TESTS(.variants = { "attr dims=2", "attr dims=1; attr keep=true" },
         .refuses = { "x.shape=0 => (0)" }));
OP(min, .sig = "x, dims:dims=all, keep:bool=false", .flags = PERI_OP_STRIDED | PERI_OP_UPCAST,
   .doc = "Smallest element over dims; NaN wins. Equal ones, and NaNs, share the gradient.",
   .infer = extreme_infer, .cpu = min_cpu, .vjp = max_vjp,
   TESTS(.variants = { "attr dims=2", "attr dims=1; attr keep=true" },
         .refuses = { "x.shape=0 => (0)" }));

/* ---- argmax, argmin ---- */

/* One fold over each whole row, since a place needs its row: chunks are not joined. */
typedef struct places {
  const peri_ctx *ctx;
  const struct peri__math_kernels *k;
  const char *x;
  int type;
  bool least;
  int64_t n;
  int64_t *out;
} places;

/* In runs, between which an interrupt is looked for; as in one, the first of equals and a NaN win. */
static int64_t place_f32 (const places *p, const float *x) {
  enum { RUN = 1 << 24 }; /* two milliseconds; each run is searched anew */
  int64_t best = 0;
  for (int64_t i = 0; i < p->n && x[best] == x[best] && !peri__stopped(p->ctx); i += RUN) {
    int64_t n = p->n - i < RUN ? p->n - i : RUN;
    int64_t at = i + (p->least ? p->k->argmin(x + i, n) : p->k->argmax(x + i, n));
    if (x[at] != x[at] || (p->least ? x[at] < x[best] : x[at] > x[best])) best = at;
  }
  return best;
}

static int64_t place (const places *p, const char *x) {
  int64_t best = 0;
  if (p->type == PERI_F32) return place_f32(p, (const float *)(const void *)x);
  const peri__part *v = (const peri__part *)(const void *)x;
  for (int64_t i = 1; i < p->n; i++) {
    bool better;
    if (peri__give_up(p->ctx, i)) break;
    if (p->type == PERI_I64)
      better = p->least ? v[i].i < v[best].i : v[i].i > v[best].i;
    else if (v[best].f != v[best].f)
      break;
    else
      better = v[i].f != v[i].f || (p->least ? v[i].f < v[best].f : v[i].f > v[best].f);
    if (better) best = i;
  }
  return best;
}
static void places_range (void *ud, int64_t begin, int64_t end, int worker) {
  const places *p = ud;
  size_t size = peri_dtype_size((peri_dtype)p->type);
  (void)worker;
  for (; begin < end; begin++) p->out[begin] = place(p, p->x + (size_t)(begin * p->n) * size);
}
static peri_status place_flags (peri_call *c, bool flags[PERI_MAX_DIMS]) {
  int dim;
  peri_attr all = { .n = -1 };
  if (c->attr[0].i == INT64_MIN) return peri__dims(c->ctx, &all, c->in[0]->ndim, flags);
  TRY(peri__dim(c->ctx, c->attr[0].i, c->in[0]->ndim, &dim));
  for (int i = 0; i < PERI_MAX_DIMS; i++) flags[i] = i == dim;
  return PERI_OK;
}
static peri_status place_infer (peri_call *c) {
  bool flags[PERI_MAX_DIMS];
  TRY(place_flags(c, flags));
  TRY(peri__infer_reduce(c, 0, flags, c->attr[1].i != 0, PERI_I64));
  return some(c, flags);
}
static peri_status find_places (peri_call *c, bool lowest) {
  bool flags[PERI_MAX_DIMS];
  peri_tensor *wide = NULL, *dense = NULL;
  int64_t rows = 0;
  places p = { .ctx = c->ctx,
               .k = c->ctx->cpu->math,
               .type = fold_type(c->in[0]->dtype),
               .least = lowest,
               .out = c->out[0]->data };
  TRY(place_flags(c, flags));
  TRY(peri__cast(c->in[0], (peri_dtype)p.type, &wide));
  peri_status s = peri__rows(wide, flags, &dense, &rows, &p.n);
  if (s == PERI_OK) {
    p.x = dense->data;
    peri__parallel(c->ctx, rows, 1 + 32768 / (p.n + 8), places_range, &p);
  }
  peri_release(dense);
  peri_release(wide);
  return s;
}
static peri_status argmax_cpu (peri_call *c) { return find_places(c, false); }
static peri_status argmin_cpu (peri_call *c) { return find_places(c, true); }
OP(argmax, .sig = "x, dim:dim=none, keep:bool=false", .flags = PERI_OP_STRIDED | PERI_OP_UPCAST,
   .doc = "Place (i64, from 0) of the first largest element along dim, or in the flattened x; NaN "
          "wins.",
   .infer = place_infer, .cpu = argmax_cpu, TESTS(.refuses = { "x.shape=0 => (0)" }));
OP(argmin, .sig = "x, dim:dim=none, keep:bool=false", .flags = PERI_OP_STRIDED | PERI_OP_UPCAST,
   .doc = "Place (i64, from 0) of the first smallest element along dim, or in the flattened x; NaN "
          "wins.",
   .infer = place_infer, .cpu = argmin_cpu, TESTS(.refuses = { "x.shape=0 => (0)" }));

/* ---- counts ---- */

static peri__part is_all (const peri__fold *f, peri__part a, int64_t row) {
  (void)row;
  return (peri__part){ .i = a.i == f->n };
}
static peri__part is_any (const peri__fold *f, peri__part a, int64_t row) {
  (void)f;
  (void)row;
  return (peri__part){ .i = a.i > 0 };
}
static peri_status counted (peri_call *c,
                            peri__part (*finish)(const peri__fold *, peri__part, int64_t)) {
  FLAGS(c);
  peri__fold f = sum_fold(PERI_BOOL);
  f.finish = finish;
  return peri__reduce(c->ctx, &f, c->in[0], flags, c->out[0]);
}
static peri_status all_cpu (peri_call *c) { return counted(c, is_all); }
static peri_status any_cpu (peri_call *c) { return counted(c, is_any); }
static peri_status count_nonzero_cpu (peri_call *c) { return counted(c, NULL); }
static peri_status truth_infer (peri_call *c) {
  FLAGS(c);
  return peri__infer_reduce(c, 0, flags, c->attr[1].i != 0, PERI_BOOL);
}
static peri_status count_infer (peri_call *c) {
  FLAGS(c);
  return peri__infer_reduce(c, 0, flags, c->attr[1].i != 0, PERI_I64);
}
OP(all, .sig = "x, dims:dims=all, keep:bool=false", .flags = PERI_OP_STRIDED,
   .doc = "True where no element over dims is 0; of nothing it is true.", .infer = truth_infer,
   .cpu = all_cpu);
OP(any, .sig = "x, dims:dims=all, keep:bool=false", .flags = PERI_OP_STRIDED,
   .doc = "True where some element over dims is not 0.", .infer = truth_infer, .cpu = any_cpu);
OP(count_nonzero, .sig = "x, dims:dims=all, keep:bool=false", .flags = PERI_OP_STRIDED,
   .doc = "How many elements over dims are not 0, i64.", .infer = count_infer,
   .cpu = count_nonzero_cpu);
