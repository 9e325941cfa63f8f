/*
** random.c - random tensors: rand, randn, randint, randperm, bernoulli, rand_gamma and the *_like
** forms.
** Element e is a function of the generator's (seed, offset) and of e alone (perilune.h): four
** elements share a block of Philox, or two where an element takes 64 bits. So nothing depends on
** threads or on the processor, and the arithmetic below is plain C for the same reason.
*/
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "op/move.h"

#define GRAIN 8192

typedef struct draw {
  peri_rng rng;
  peri_tensor *out;
  const void *p; /* bernoulli: probabilities */
  int64_t low;   /* randint */
  uint64_t range;
} draw;

/* ---- uniform ---- */

/* A multiple of 2^-bits in [0, 1): as fine as the type can hold without rounding up to 1. */
static float unit_bits (uint32_t u, int bits) {
  return (float)(u >> (32 - bits)) * (1.0f / (float)(1u << bits));
}

static void rand_range (void *ud, int64_t begin, int64_t end, int worker) {
  const draw *d = ud;
  uint32_t w[4];
  (void)worker;
  if (d->out->dtype == PERI_F64) {
    double *out = d->out->data;
    for (int64_t e = begin; e < end; e++) {
      if (e == begin || e % 2 == 0) peri__rng_block(d->rng, (uint64_t)e / 2, w);
      out[e] = peri__unit_f64(w[e % 2 * 2], w[e % 2 * 2 + 1]);
    }
    return;
  }
  float *f32 = d->out->data;
  uint16_t *half = d->out->data;
  for (int64_t e = begin; e < end; e++) {
    if (e == begin || e % 4 == 0) peri__rng_block(d->rng, (uint64_t)e / 4, w);
    uint32_t u = w[e % 4];
    if (d->out->dtype == PERI_F32)
      f32[e] = peri__unit_f32(u);
    else
      half[e] = d->out->dtype == PERI_F16 ? peri__f32_to_f16(unit_bits(u, 11))
                                          : peri__f32_to_bf16(unit_bits(u, 8));
  }
}

/* ---- normal ---- */

/* log x for normal x > 0: x = m 2^e with m in [sqrt 1/2, sqrt 2), log m = 2 atanh((m-1)/(m+1));
** relative error below 1e-11, far under what f32 keeps. */
static double log_series (double x) {
  const int64_t root = 0x3fe6a09e667f3bcd; /* the bits of sqrt 1/2 */
  int64_t bits = 0, e = 0;
  memcpy(&bits, &x, sizeof bits);
  e = (bits - root) >> 52;
  bits -= (int64_t)((uint64_t)e << 52);
  memcpy(&x, &bits, sizeof x);
  double z = (x - 1) / (x + 1), s = z * z;
  double tail = 1.0 / 9 + s * (1.0 / 11 + s * (1.0 / 13));
  double sum = 1 + s * (1.0 / 3 + s * (1.0 / 5 + s * (1.0 / 7 + s * tail)));
  return 2 * z * sum + (double)e * 0.69314718055994531;
}

/* sin and cos of a whole turn times t, t in [0, 1): the nearest quarter turn, then Taylor. No
** branches: the quarters are random. */
static void turn (double t, double *sine, double *cosine) {
  static const double sign[] = { 1, 1, -1, -1, 1, 1 };
  int quarter = (int)(t * 4 + 0.5);
  double a = (t - quarter * 0.25) * 6.28318530717958648, s = a * a;
  double sn = 1 - s * (1.0 / 42) * (1 - s * (1.0 / 72));
  double cs = 1 - s * (1.0 / 30) * (1 - s * (1.0 / 56) * (1 - s * (1.0 / 90)));
  double v[2] = { a * (1 - s * (1.0 / 6) * (1 - s * (1.0 / 20) * sn)),
                  1 - s * 0.5 * (1 - s * (1.0 / 12) * cs) };
  *sine = sign[quarter] * v[quarter & 1];
  *cosine = sign[quarter + 1] * v[~quarter & 1];
}

/* Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958: two 32-bit words make
** two normals. The first is moved off 0, so that the radius is at most 6.7. */
static void normal_pair (const uint32_t *w, float out[2]) {
  double s = 0, c = 0, r = sqrt(-2 * log_series(((double)w[0] + 1) * 0x1p-32));
  turn((double)w[1] * 0x1p-32, &s, &c);
  out[0] = (float)(r * c);
  out[1] = (float)(r * s);
}

static void randn_range (void *ud, int64_t begin, int64_t end, int worker) {
  const draw *d = ud;
  uint32_t w[4];
  (void)worker;
  if (d->out->dtype == PERI_F64) { /* libm here: f64 has more digits than log_series */
    double *out = d->out->data, r = 0, a = 0;
    for (int64_t e = begin; e < end; e++) {
      if (e == begin || e % 2 == 0) {
        peri__rng_block(d->rng, (uint64_t)e / 2, w);
        r = sqrt(-2 * log(1 - peri__unit_f64(w[0], w[1])));
        a = 6.28318530717958648 * peri__unit_f64(w[2], w[3]);
      }
      out[e] = r * (e % 2 == 0 ? cos(a) : sin(a));
    }
    return;
  }
  float *f32 = d->out->data, n[4] = { 0 };
  uint16_t *half = d->out->data;
  for (int64_t e = begin; e < end; e++) {
    if (e == begin || e % 4 == 0) {
      peri__rng_block(d->rng, (uint64_t)e / 4, w);
      normal_pair(w, n);
      normal_pair(w + 2, n + 2);
    }
    float v = n[e % 4];
    if (d->out->dtype == PERI_F32)
      f32[e] = v;
    else
      half[e] = d->out->dtype == PERI_F16 ? peri__f32_to_f16(v) : peri__f32_to_bf16(v);
  }
}

/* ---- rand, randn and their like forms ---- */

static peri_status want_float_out (peri_call *c, int64_t dtype) {
  if (peri__is_float((int)dtype)) return PERI_OK;
  return peri__fail(c->ctx, PERI_EDTYPE, "dtype is %s, expected a float dtype",
                    peri_dtype_name((peri_dtype)dtype));
}

static peri_status rand_infer (peri_call *c) {
  TRY(want_float_out(c, c->attr[1].i));
  return peri__new(c->ctx, (peri_dtype)c->attr[1].i, c->attr[0].n, c->attr[0].v, &c->out[0]);
}

static peri_status rand_like_infer (peri_call *c) {
  int64_t dtype = c->attr[0].i < 0 ? c->in[0]->dtype : c->attr[0].i;
  TRY(want_float_out(c, dtype));
  return peri__new_like(c->in[0], (peri_dtype)dtype, &c->out[0]);
}

static peri_status draw_out (peri_call *c, peri_range_fn fn) {
  draw d = { .rng = peri__rng_next(c->ctx), .out = c->out[0] };
  peri__parallel(c->ctx, d.out->numel, GRAIN, fn, &d);
  return PERI_OK;
}

static peri_status rand_cpu (peri_call *c) { return draw_out(c, rand_range); }
static peri_status randn_cpu (peri_call *c) { return draw_out(c, randn_range); }

OP(rand, .sig = "shape:shape, dtype:dtype=f32", .flags = PERI_OP_RANDOM,
   .doc = "Uniform random numbers in [0, 1).", .infer = rand_infer, .cpu = rand_cpu,
   TESTS(.domain = "attr shape=2,3", .large = "attr shape=200,300"));
OP(randn, .sig = "shape:shape, dtype:dtype=f32", .flags = PERI_OP_RANDOM,
   .doc = "Normal random numbers of mean 0 and variance 1 (Box and Muller, 1958).",
   .infer = rand_infer, .cpu = randn_cpu,
   TESTS(.domain = "attr shape=2,3", .large = "attr shape=200,300"));
OP(rand_like, .sig = "x, dtype:dtype=none", .flags = PERI_OP_RANDOM | PERI_OP_STRIDED,
   .doc = "Uniform random numbers in [0, 1) in x's shape, and dtype unless one is given.",
   .infer = rand_like_infer, .cpu = rand_cpu,
   TESTS(.refuses = { "x=i64[1,2] => i64 | float", "x.shape=2; attr dtype=bool => bool | float" }));
OP(randn_like, .sig = "x, dtype:dtype=none", .flags = PERI_OP_RANDOM | PERI_OP_STRIDED,
   .doc = "Normal random numbers of mean 0 and variance 1 in x's shape, and dtype unless one is "
          "given.",
   .infer = rand_like_infer, .cpu = randn_cpu,
   TESTS(.refuses = { "x=i64[1,2] => i64 | float", "x.shape=2; attr dtype=bool => bool | float" }));

/* ---- randint, randperm ---- */

/* A 64-bit word that is all of element e's: try > 0 are the redraws, in blocks that no first draw
** of a tensor reaches. */
static uint64_t word64 (peri_rng rng, uint64_t e, uint64_t try) {
  uint32_t w[4];
  if (try > 0) {
    peri__rng_block(rng, (try << 56) | e, w);
    return (uint64_t)w[0] << 32 | w[1];
  }
  peri__rng_block(rng, e / 2, w);
  return (uint64_t)w[e % 2 * 2] << 32 | w[e % 2 * 2 + 1];
}

/* The 128-bit product a * b. */
static uint64_t multiply (uint64_t a, uint64_t b, uint64_t *low) {
  uint64_t al = (uint32_t)a, ah = a >> 32, bl = (uint32_t)b, bh = b >> 32;
  uint64_t middle = ah * bl + (al * bl >> 32), other = al * bh + (uint32_t)middle;
  *low = a * b;
  return ah * bh + (middle >> 32) + (other >> 32);
}

/* Unbiased number in [0, range), range > 0 (Lemire, "Fast Random Integer Generation in an
** Interval", 2019): the high half of word * range, redrawn where the low half falls short. */
static uint64_t bounded (peri_rng rng, uint64_t e, uint64_t range) {
  uint64_t short_of = (0 - range) % range, try = 0, low = 0;
  for (;;) {
    uint64_t high = multiply(word64(rng, e, try), range, &low);
    if (low >= short_of) return high;
    try = try % 255 + 1;
  }
}

static void randint_range (void *ud, int64_t begin, int64_t end, int worker) {
  const draw *d = ud;
  (void)worker;
  for (int64_t e = begin; e < end; e++) {
    int64_t v = (int64_t)((uint64_t)d->low + bounded(d->rng, (uint64_t)e, d->range));
    switch (d->out->dtype) { /* ORDER dtype */
    case PERI_BOOL:
    case PERI_U8: ((uint8_t *)d->out->data)[e] = (uint8_t)v; break;
    case PERI_I32: ((int32_t *)d->out->data)[e] = (int32_t)v; break;
    case PERI_I64: ((int64_t *)d->out->data)[e] = v; break;
    case PERI_F32: ((float *)d->out->data)[e] = (float)v; break;
    default: ((double *)d->out->data)[e] = (double)v;
    }
  }
}

static peri_status randint_infer (peri_call *c) {
  int64_t low = c->attr[0].i, high = c->attr[1].i, dtype = c->attr[3].i;
  uint64_t ends[2];
  if (low >= high)
    return peri__fail(c->ctx, PERI_EINVAL, "low %" PRId64 " is not below high %" PRId64, low, high);
  if (dtype == PERI_F16 || dtype == PERI_BF16)
    return peri__fail(c->ctx, PERI_EDTYPE, "dtype is %s, expected an integer dtype, f32 or f64",
                      peri_dtype_name((peri_dtype)dtype));
  if (dtype == PERI_BOOL && (low < 0 || high > 2))
    return peri__fail(c->ctx, PERI_EINVAL, "bool holds 0 and 1, not %" PRId64 " to %" PRId64, low,
                      high - 1);
  if (dtype != PERI_I64) {
    TRY(peri__element(c->ctx, (int)dtype, &(peri_attr){ .i = low, .whole = true }, &ends[0]));
    TRY(peri__element(c->ctx, (int)dtype, &(peri_attr){ .i = high - 1, .whole = true }, &ends[1]));
  }
  return peri__new(c->ctx, (peri_dtype)dtype, c->attr[2].n, c->attr[2].v, &c->out[0]);
}

static peri_status randint_cpu (peri_call *c) {
  draw d = { .rng = peri__rng_next(c->ctx),
             .out = c->out[0],
             .low = c->attr[0].i,
             .range = (uint64_t)c->attr[1].i - (uint64_t)c->attr[0].i };
  peri__parallel(c->ctx, d.out->numel, GRAIN, randint_range, &d);
  return PERI_OK;
}

OP(randint, .sig = "low:int, high:int, shape:shape, dtype:dtype=i64", .flags = PERI_OP_RANDOM,
   .doc = "Random integers, each of low, ..., high - 1 equally likely.", .infer = randint_infer,
   .cpu = randint_cpu,
   TESTS(.domain = "attr low=0; attr high=5; attr shape=2,3",
         .large = "attr shape=200,300; attr low=-3; attr high=9",
         .refuses = { "attr low=5; attr high=5; attr shape=2 => 5" }));

static peri_status randperm_infer (peri_call *c) {
  int64_t n = c->attr[0].i, dtype = c->attr[1].i;
  if (n < 0) return peri__fail(c->ctx, PERI_EINVAL, "n is %" PRId64 "; wanted 0 or more", n);
  if ((dtype != PERI_I64 && dtype != PERI_I32) || (dtype == PERI_I32 && n > INT32_MAX))
    return peri__fail(c->ctx, PERI_EDTYPE,
                      "%s does not serve for numbers below %" PRId64 "; wanted i64 or i32",
                      peri_dtype_name((peri_dtype)dtype), n);
  return peri__new(c->ctx, (peri_dtype)dtype, 1, &n, &c->out[0]);
}

/* Fisher and Yates. */
static peri_status randperm_cpu (peri_call *c) {
  peri_rng rng = peri__rng_next(c->ctx);
  int64_t n = c->attr[0].i, *p64 = c->out[0]->data;
  int32_t *p32 = c->out[0]->data;
  bool wide = c->out[0]->dtype == PERI_I64;
  for (int64_t i = 0; i < n; i++) {
    if (peri__give_up(c->ctx, i)) return PERI_OK; /* what ran it says so */
    int64_t j = (int64_t)bounded(rng, (uint64_t)i, (uint64_t)i + 1);
    if (wide) {
      p64[i] = p64[j];
      p64[j] = i;
    } else {
      p32[i] = p32[j];
      p32[j] = (int32_t)i;
    }
  }
  return PERI_OK;
}

OP(randperm, .sig = "n:int, dtype:dtype=i64", .flags = PERI_OP_RANDOM,
   .doc = "The numbers 0 to n - 1 in random order, all orders equally likely.",
   .infer = randperm_infer, .cpu = randperm_cpu,
   TESTS(.domain = "attr n=6", .large = "attr n=50000", .refuses = { "attr n=-1 => -1" }));

/* ---- bernoulli ---- */

static peri_status bernoulli_infer (peri_call *c) {
  TRY(peri__want_float(c, 0, "p"));
  return peri__infer_same(c);
}

static void bernoulli_range (void *ud, int64_t begin, int64_t end, int worker) {
  const draw *d = ud;
  uint32_t w[4];
  (void)worker;
  for (int64_t e = begin; e < end; e++) {
    if (d->out->dtype == PERI_F64) {
      if (e == begin || e % 2 == 0) peri__rng_block(d->rng, (uint64_t)e / 2, w);
      double u = peri__unit_f64(w[e % 2 * 2], w[e % 2 * 2 + 1]);
      ((double *)d->out->data)[e] = u < ((const double *)d->p)[e];
    } else {
      if (e == begin || e % 4 == 0) peri__rng_block(d->rng, (uint64_t)e / 4, w);
      ((float *)d->out->data)[e] = peri__unit_f32(w[e % 4]) < ((const float *)d->p)[e];
    }
  }
}

static peri_status bernoulli_cpu (peri_call *c) {
  peri_tensor *p = c->in[0];
  for (int64_t i = 0; i < p->numel; i++) {
    double v = p->dtype == PERI_F64 ? ((double *)p->data)[i] : ((float *)p->data)[i];
    if (!(v >= 0 && v <= 1))
      return peri__fail(c->ctx, PERI_EINVAL,
                        "p holds %g at flat position %" PRId64 " (from 0); wanted 0 to 1", v, i);
  }
  draw d = { .rng = peri__rng_next(c->ctx), .out = c->out[0], .p = p->data };
  peri__parallel(c->ctx, p->numel, GRAIN, bernoulli_range, &d);
  return PERI_OK;
}

OP(bernoulli, .sig = "p", .flags = PERI_OP_RANDOM | PERI_OP_UPCAST,
   .doc = "1 with probability p, else 0, in p's shape and dtype.", .infer = bernoulli_infer,
   .cpu = bernoulli_cpu, TESTS(.domain = "p=0..1", .refuses = { "p=f32[0.5,1.5] => 1.5" }));

/* ---- gamma ---- */

static double positive_at (const draw *d, int64_t e) {
  return d->out->dtype == PERI_F64 ? ((const double *)d->p)[e] : (double)((const float *)d->p)[e];
}

/*
** Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables", 2000: d (1 + c x)^3 of a
** normal x is kept with a chance above 0.95, so that the last of TRIES blocks is never reached in
** practice; alpha below 1 is raised by 1 and its draw multiplied by U^(1 / alpha). Element e has
** the blocks e * TRIES, ..., whatever the others needed. The logarithm is what is computed: draws of
** a small alpha lie below what the dtype holds.
*/
enum { TRIES = 64 };

static double log_gamma_draw (peri_rng rng, uint64_t e, double alpha) {
  double boost = 0, d, c, log_v = 0;
  uint32_t w[4];
  if (alpha < 1) {
    peri__rng_block(rng, e * TRIES, w);
    boost = log_series(((double)w[0] + 1) * 0x1p-32 - (double)w[1] * 0x1p-64) / alpha;
    alpha += 1;
  }
  d = alpha - 1.0 / 3;
  c = 1 / sqrt(9 * d);
  for (uint64_t try = 1; try < TRIES; try++) {
    double sine = 0, cosine = 0, u, x, v;
    peri__rng_block(rng, e * TRIES + try, w);
    turn((double)w[1] * 0x1p-32, &sine, &cosine);
    x = sqrt(-2 * log_series(((double)w[0] + 1) * 0x1p-32)) * cosine;
    v = 1 + c * x;
    if (v <= 0) continue;
    log_v = 3 * log_series(v);
    u = ((double)w[2] + 1) * 0x1p-32 - (double)w[3] * 0x1p-64;
    if (log_series(u) < x * x / 2 + d * (1 - v * v * v + log_v)) break;
  }
  return log_series(d) + log_v + boost;
}

static void gamma_range (void *ud, int64_t begin, int64_t end, int worker) {
  const draw *d = ud;
  (void)worker;
  for (int64_t e = begin; e < end; e++) {
    double y = log_gamma_draw(d->rng, (uint64_t)e, positive_at(d, e));
    if (!d->low) y = exp(y);
    if (d->out->dtype == PERI_F64)
      ((double *)d->out->data)[e] = y;
    else
      ((float *)d->out->data)[e] = (float)y;
  }
}

static peri_status rand_gamma_cpu (peri_call *c) {
  draw d = { .out = c->out[0], .p = c->in[0]->data, .low = c->attr[0].i };
  for (int64_t i = 0; i < d.out->numel; i++) {
    double v = positive_at(&d, i);
    if (!(v > 0 && v < INFINITY))
      return peri__fail(c->ctx, PERI_EINVAL,
                        "alpha holds %g at flat position %" PRId64 " (from 0); wanted more than 0",
                        v, i);
  }
  d.rng = peri__rng_next(c->ctx);
  peri__parallel(c->ctx, d.out->numel, GRAIN / 8, gamma_range, &d);
  return PERI_OK;
}

static peri_status rand_gamma_infer (peri_call *c) {
  TRY(peri__want_float(c, 0, "alpha"));
  return peri__infer_same(c);
}

OP(rand_gamma, .sig = "alpha, log:bool=false", .flags = PERI_OP_RANDOM | PERI_OP_UPCAST,
   .doc =
       "A draw from Gamma(alpha, 1), of density x^(alpha - 1) e^-x / Gamma(alpha), for each "
       "element of alpha (Marsaglia and Tsang 2000); with log its logarithm, which a small alpha "
       "does not take below what the dtype holds.",
   .infer = rand_gamma_infer, .cpu = rand_gamma_cpu,
   TESTS(.domain = "alpha=0.2..5", .variants = { "alpha=0.2..5; attr log=true" },
         .refuses = { "alpha=f32[1,0] => 0 | position 1", "alpha=f32[nan] => nan" }));
