/*
** simd_unary.c - f32 functions of one variable over arrays. The last lanes of an array run through
** the same vector function, so a value never depends on where its block begins.
*/
#include "cpu/cpu.h"
#include "cpu/math.h"
#include "cpu/vec_act.h"

typedef vf (*map1)(vf x, vf p0, vf p1);

static inline __attribute__((always_inline)) void each (int64_t n, const float *x, int64_t step,
                                                        float *y, const double *p, map1 f) {
  vf p0 = v_set(p ? (float)p[0] : 0), p1 = v_set(p ? (float)p[1] : 0);
  float fill[PERI_VW];
  int64_t i = 0, sx = step ? PERI_VW : 0;
  if (!step) v_store(fill, v_set(*x)), x = fill; /* one value for all */
  for (; i + PERI_VW <= n; i += PERI_VW, x += sx) v_store(y + i, f(v_load(x), p0, p1));
  if (i < n) v_store_tail(y + i, f(v_load_tail(x, n - i, 1.0f), p0, p1), n - i);
}

#define PLAIN(name)                               \
  static inline vf f_##name(vf x, vf p0, vf p1) { \
    (void)p0;                                     \
    (void)p1;                                     \
    return v_##name(x);                           \
  }
PLAIN(exp)
PLAIN(expm1)
PLAIN(log)
PLAIN(log1p)
PLAIN(log2)
PLAIN(sqrt)
PLAIN(rsqrt)
PLAIN(sin)
PLAIN(cos)
PLAIN(erf)
PLAIN(abs)
PERI_ACTIVATIONS(PERI_ACT_NAME, PLAIN)

#define FORMULA(name, e)                          \
  static inline vf f_##name(vf x, vf p0, vf p1) { \
    (void)p0;                                     \
    (void)p1;                                     \
    return e;                                     \
  }
FORMULA(neg, -x)
FORMULA(square, x *x)
FORMULA(reciprocal, 1.0f / x)
FORMULA(leaky_relu, v_select((vi)(x > 0.0f), x, x *p0))
FORMULA(elu, v_select((vi)(x > 0.0f), x, v_expm1(x) * p0))
/* NaN bounds are no bounds; a NaN x stays */
FORMULA(clamp, v_select((vi)(x > p1), p1, v_select((vi)(x < p0), p0, x)))
static inline vf f_sign (vf x, vf p0, vf p1) {
  (void)p0;
  (void)p1;
  vf s = v_copysign(v_set(1.0f), x);
  return v_select((vi)(x == x), v_select((vi)(x == 0.0f), v_set(0.0f), s), x);
}
static inline vf f_softplus (vf x, vf beta, vf threshold) { /* log(1 + e^(beta x)) / beta */
  vf t = x * beta;
  return v_select((vi)(t > threshold), x, v_softplus(t) * (1.0f / beta));
}
#define LANES(name, f)                                \
  static inline vf f_##name(vf x, vf p0, vf p1) {     \
    (void)p0;                                         \
    (void)p1;                                         \
    for (int i = 0; i < PERI_VW; i++) x[i] = f(x[i]); \
    return x;                                         \
  }
#if PERI_VW == 16 && defined(__AVX512F__)
FORMULA(floor, (vf)_mm512_roundscale_ps((__m512)x, 9))
FORMULA(ceil, (vf)_mm512_roundscale_ps((__m512)x, 10))
FORMULA(round, (vf)_mm512_roundscale_ps((__m512)x, 8))
#elif PERI_VW == 8 && defined(__AVX__)
FORMULA(floor, (vf)_mm256_round_ps((__m256)x, 9))
FORMULA(ceil, (vf)_mm256_round_ps((__m256)x, 10))
FORMULA(round, (vf)_mm256_round_ps((__m256)x, 8))
#else
LANES(floor, floorf)
LANES(ceil, ceilf)
LANES(round, nearbyintf)
#endif

#define KERNEL(name)                                                                     \
  static void k_##name(int64_t n, const void *const *in, const int64_t *step, void *out, \
                       const double *p) {                                                \
    each(n, in[0], step[0], out, p, f_##name);                                           \
  }
PERI_UNARY(KERNEL)

#define ENTRY(name) k_##name,
const peri__kernel PERI_NAME(peri__unary_f32)[PERI_N_UNARY] = { PERI_UNARY(ENTRY) };

typedef uint32_t __attribute__((may_alias)) bits;
/* Tests look at the bits alone: exponent all ones, mantissa zero or not. */
#define TEST(name, e)                                                                    \
  static void k_##name(int64_t n, const void *const *in, const int64_t *step, void *out, \
                       const double *p) {                                                \
    const bits *x = in[0];                                                               \
    uint8_t *y = out;                                                                    \
    (void)p;                                                                             \
    for (int64_t i = 0; i < n; i++) {                                                    \
      uint32_t u = x[i * step[0]] & 0x7fffffffu;                                         \
      y[i] = e;                                                                          \
    }                                                                                    \
  }
TEST(isnan, u > 0x7f800000u)
TEST(isinf, u == 0x7f800000u)
TEST(isfinite, u < 0x7f800000u)
const peri__kernel PERI_NAME(peri__test_f32)[PERI_N_TEST] = { PERI_TEST(ENTRY) };
