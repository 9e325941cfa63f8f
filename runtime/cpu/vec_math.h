/*
** vec_math.h - exp, log, tanh, erf and friends over vectors of floats, included by simd_*.c only;
** the activations are in vec_act.h. Own polynomials (weighted minimax fits, coefficients rounded one by one), no
** tables, no branches that depend on neighbouring lanes: a lane's bits depend on that lane alone.
**
** Errors against exact values, in units in the last place (tests/c/test_math.c measures them):
**   sqrt 0.5   log log1p 1   exp 1.1   sin cos log2 rsqrt expm1 1.7   erf softplus 2
**   tanh sigmoid 2.6
** +-inf, NaN, +-0, overflow and denormal results are those of the C library.
*/
#ifndef peri_vec_math_h
#define peri_vec_math_h

#include <math.h>
#include <stdbool.h>

#include "cpu/vec.h"

typedef uint32_t v_u32 __attribute__((vector_size(PERI_VW * 4)));

/* f64 comes in halves of a vector: compilers keep wider ones in memory. */
typedef double v_d __attribute__((vector_size(PERI_VW * 4)));
typedef float v_half __attribute__((vector_size(PERI_VW * 2)));
#define V_4(i) (i), (i) + 1, (i) + 2, (i) + 3
#if PERI_VW == 16
#define V_LOW V_4(0), V_4(4)
#define V_HIGH V_4(8), V_4(12)
#elif PERI_VW == 8
#define V_LOW V_4(0)
#define V_HIGH V_4(4)
#else
#define V_LOW 0, 1
#define V_HIGH 2, 3
#endif
static inline v_d v_low (vf v) {
  return __builtin_convertvector(__builtin_shufflevector(v, v, V_LOW), v_d);
}
static inline v_d v_high (vf v) {
  return __builtin_convertvector(__builtin_shufflevector(v, v, V_HIGH), v_d);
}
static inline vf v_narrow (v_d lo, v_d hi) {
  v_half a = __builtin_convertvector(lo, v_half), b = __builtin_convertvector(hi, v_half);
  return __builtin_shufflevector(a, b, V_LOW, V_HIGH);
}

static inline vf v_abs (vf x) { return (vf)((vi)x & v_seti(0x7fffffff)); }
static inline vi v_signbit (vf x) { return (vi)((v_u32)x & 0x80000000u); }
static inline vf v_copysign (vf mag, vf sign) { return (vf)((vi)v_abs(mag) | v_signbit(sign)); }
static inline bool v_any (vi mask) { /* mask lanes are all ones or zero */
#if PERI_VW == 16 && defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif PERI_VW == 8 && defined(__AVX__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#elif PERI_VW == 4 && defined(__SSE2__)
  return _mm_movemask_ps((__m128)mask) != 0;
#else
  int32_t any = 0;
  for (int i = 0; i < PERI_VW; i++) any |= mask[i];
  return any != 0;
#endif
}
/* x held in [lo, hi]; NaN stays NaN. */
static inline vf v_clamp (vf x, float lo, float hi) {
  return v_min(v_set(hi), v_max(v_set(lo), x));
}
static inline vf v_sqrt (vf x) {
#if PERI_VW == 16 && defined(__AVX512F__)
  return (vf)_mm512_sqrt_ps((__m512)x);
#elif PERI_VW == 8 && defined(__AVX__)
  return (vf)_mm256_sqrt_ps((__m256)x);
#elif PERI_VW == 4 && defined(__SSE2__)
  return (vf)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < PERI_VW; i++) x[i] = sqrtf(x[i]);
  return x;
#endif
}
static inline vf v_rsqrt (vf x) { return 1.0f / v_sqrt(x); }

/* 2^n for n in [-126, 127]. */
static inline vf v_pow2 (vi n) { return (vf)((v_u32)(n + 127) << 23); }

/* x = n ln 2 + r with |r| <= 0.3466; n ln 2 is taken off in two parts, the first exact. Adding and
** taking off 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits. */
static inline vf v_exp_reduce (vf x, vi *n) {
  const vf magic = v_set(0x1.8p23f);
  vf t = x * 0x1.715476p+0f + magic;
  vf k = t - magic;
  *n = (vi)((v_u32)t - (v_u32)magic);
  return (x - k * 0x1.63p-1f) - k * -0x1.bd0106p-13f;
}
/* exp(r) - 1 on the reduced range: r + r^2 Q(r), relative error 1.4e-8. */
static inline vf v_exp_poly (vf r) {
  vf q = r * 0x1.6d699cp-10f + 0x1.1227e6p-7f;
  q = q * r + 0x1.5554d0p-5f;
  q = q * r + 0x1.5554b0p-3f;
  q = q * r + 0.5f;
  return q * (r * r) + r;
}
static inline vf v_exp (vf x) {
  vi n;
  vf r = v_exp_reduce(v_clamp(x, -104.0f, 89.0f), &n);
  vf p = v_exp_poly(r) + 1.0f;
#if PERI_VW == 16 && defined(__AVX512F__)
  return (vf)_mm512_scalef_ps((__m512)p, _mm512_cvtepi32_ps((__m512i)n));
#else
  /* two factors, because 2^n alone does not reach 2^128 nor the denormals; only the last rounds */
  vi h = n >> 1;
  return p * v_pow2(h) * v_pow2(n - h);
#endif
}
static inline vf v_expm1 (vf x) {
  vi n;
  vf r = v_exp_reduce(v_clamp(x, -18.0f, 89.0f), &n);
  vf q = v_exp_poly(r);
  /* 2^n q + (2^n - 1), with 2^128 taken as 2^127 times 2 */
  vi top = (vi)(n > 127) & 1;
  vf s = v_pow2(n - top), one = v_pow2(-top);
  vf y = (s * q + (s - one)) * v_pow2(top);
  return v_select((vi)(x == 0.0f), x, y);
}

/* x = 2^k (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2); x positive and finite. */
static inline vf v_log_split (vf x, vf *k) {
  vi tiny = (vi)(x < 0x1p-126f);
  v_u32 u = (v_u32)v_select(tiny, x * 0x1p23f, x) + (0x3f800000u - 0x3f3504f3u);
  *k = __builtin_convertvector((vi)(u >> 23) - 127 - (tiny & 23), vf);
  return (vf)((u & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
}
/* f - log(1 + f), from s = f / (2 + f): log(1 + f) = 2 s + s R(s^2) (the form of fdlibm's log). */
static inline vf v_log_tail (vf f) {
  vf s = f / (f + 2.0f), z = s * s;
  vf r = z * 0x1.3222a2p-2f + 0x1.995c9cp-2f;
  r = (r * z + 0x1.55557cp-1f) * z;
  vf h = 0.5f * f * f;
  return h - s * (h + r);
}
/* y where x is a positive finite number, else what a logarithm gives: -inf, NaN, inf. */
static inline vf v_log_special (vf x, vf y) {
  y = v_select((vi)(x < INFINITY), y, x);
  vf low = v_select((vi)(x == 0.0f), v_set(-INFINITY), v_set(NAN));
  return v_select((vi)(x <= 0.0f), low, y);
}
static inline vf v_log (vf x) {
  vf k, f = v_log_split(x, &k);
  vf y = k * 0x1.62e300p-1f - ((v_log_tail(f) - k * 0x1.2fefa2p-17f) - f);
  return v_log_special(x, y);
}
static inline vf v_log2 (vf x) {
  vf k, f = v_log_split(x, &k);
  return v_log_special(x, (f - v_log_tail(f)) * 0x1.715476p+0f + k);
}
static inline vf v_log1p (vf x) {
  vf u = x + 1.0f, k, f = v_log_split(u, &k);
  /* what the rounding of 1 + x lost, exact */
  vf c = v_select((vi)(x < 1.0f), x - (u - 1.0f), 1.0f - (u - x)) / u;
  vf y = k * 0x1.62e300p-1f - ((v_log_tail(f) - (k * 0x1.2fefa2p-17f + c)) - f);
  return v_select((vi)(x == 0.0f), x, v_log_special(u, y));
}

static inline vf v_tanh (vf x) { /* (e^2|x| - 1) / (e^2|x| + 1); 1 from |x| = 10 on */
  vi n;
  vf r = v_exp_reduce(v_min(v_set(20.0f), v_abs(x) * 2.0f), &n);
  vf s = v_pow2(n), e = s * v_exp_poly(r) + (s - 1.0f);
  return v_copysign(e / (e + 2.0f), x);
}
static inline vf v_sigmoid (vf x) { /* 1 / (1 + e) or e / (1 + e), e = exp(-|x|): never overflows */
  vf e = v_exp(-v_abs(x));
  return v_select((vi)(x < 0.0f), e, v_set(1.0f)) / (e + 1.0f);
}
static inline vf v_softplus (vf x) { /* log(1 + e^x) */
  return v_max(v_set(0.0f), x) + v_log1p(v_exp(-v_abs(x)));
}

static inline vf v_erf (vf x) {
  vf t = v_min(v_set(4.0f), v_abs(x)), z = t * t;
  /* |x| < 0.94: x + x P(x^2) */
  vf p = z * -0x1.3535f2p-11f + 0x1.461834p-8f;
  p = p * z + -0x1.b65da8p-6f;
  p = p * z + 0x1.ce17b8p-4f;
  p = p * z + -0x1.8126dap-2f;
  p = p * z + 0x1.06eba6p-3f;
  p = p * x + x;
  /* else 1 - exp(-t G(t)) */
  vf g = t * -0x1.c20e10p-13f + 0x1.a60ea2p-9f;
  g = g * t + -0x1.774bb6p-6f;
  g = g * t + 0x1.af4196p-4f;
  g = g * t + 0x1.457a5cp-1f;
  g = g * t + 0x1.20e6b0p+0f;
  vf y = v_copysign(1.0f - v_exp(-t * g), x);
  return v_select((vi)(t < 0.94f), p, y);
}
/* sin and cos of x = n pi/2 + r: the reduction is done in f64 with pi/2 in two parts, n * the first
** is exact up to |x| = 1e6; lanes beyond go to the C library one by one. */
static inline vf v_trig (vf x, int shift) {
  v_d d[2], k[2];
  for (int i = 0; i < 2; i++) {
    d[i] = i ? v_high(x) : v_low(x);
    k[i] = (d[i] * 0x1.45f306dc9c883p-1 + 0x1.8p52) - 0x1.8p52;
    d[i] = (d[i] - k[i] * 0x1.921fb544p+0) - k[i] * 0x1.0b4611a626331p-34;
  }
  vf r = v_narrow(d[0], d[1]);
  vi n = __builtin_convertvector(v_narrow(k[0], k[1]), vi) + shift;
  vf z = r * r;
  vf s = z * -0x1.9954a8p-13f + 0x1.11077ap-7f;
  s = (s * z + -0x1.555546p-3f) * z * r + r;
  vf c = z * 0x1.99e0ecp-16f + -0x1.6c0c1ap-10f;
  c = (c * z + 0x1.55554ap-5f) * (z * z) + (1.0f - 0.5f * z);
  vf y = v_select((vi)((n & 1) != 0), c, s);
  return (vf)((vi)y ^ (vi)((v_u32)(n & 2) << 30));
}
static inline vf v_sin (vf x) {
  vi far = ~(vi)(v_abs(x) <= 1e6f);
  vf y = v_trig(v_select(far, v_set(0.0f), x), 0);
  if (v_any(far))
    for (int i = 0; i < PERI_VW; i++)
      if (far[i]) y[i] = sinf(x[i]);
  return v_select((vi)(x == 0.0f), x, y); /* keeps -0 */
}
static inline vf v_cos (vf x) {
  vi far = ~(vi)(v_abs(x) <= 1e6f);
  vf y = v_trig(v_select(far, v_set(0.0f), x), 1);
  if (v_any(far))
    for (int i = 0; i < PERI_VW; i++)
      if (far[i]) y[i] = cosf(x[i]);
  return y;
}

#endif
