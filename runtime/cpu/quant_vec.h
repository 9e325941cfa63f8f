/*
** quant_vec.h - vectors of codes at the level being compiled: spreading packed codes to bytes,
** reading scales, and the dot instruction. Included by simd_quant*.c only.
*/
#ifndef peri_quant_vec_h
#define peri_quant_vec_h

#include "cpu/cpu.h"
#include "cpu/quant.h"
#include "cpu/vec.h"
#ifdef __ARM_NEON
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))

enum { W = PERI_VW, CODES = 4 * PERI_VW }; /* rows of a panel; bytes of a vector of codes */

typedef uint8_t vb __attribute__((vector_size(PERI_VW * 4)));
typedef uint16_t vh __attribute__((vector_size(PERI_VW * 4)));
typedef uint8_t vb_at __attribute__((vector_size(PERI_VW * 4), aligned(1), may_alias));

INLINE vb b_load (const uint8_t *p) { return *(const vb_at *)p; }
INLINE void b_store (uint8_t *p, vb v) { *(vb_at *)p = v; }
INLINE vb b_set (uint8_t x) { return x - (vb){ 0 }; }
/* Bits move across bytes within pairs of bytes: mask them. */
INLINE vb b_right (vb v, int n) { return (vb)((vh)v >> n); }
INLINE vb b_left (vb v, int n) { return (vb)((vh)v << n); }

/* ---- the dot instruction ---- */

#if defined(__AVX512VNNI__) && PERI_VW == 16
#define BYTE_BIAS 128 /* the instruction takes unsigned codes */
#else
#define BYTE_BIAS 0
#endif

INLINE vi x_group (const int8_t *x) { /* four codes of x for every row */
  int32_t four;
  memcpy(&four, x, 4);
  return v_seti(four);
}

/*
** acc + the products of 16 inputs: 4 vectors of codes and 16 codes of x from -127 to 127. Codes of
** weights are 0 to 63, or, when wide, bytes as q8_0 has them raised by BYTE_BIAS. Exact.
*/
#if defined(__AVX512VNNI__) && PERI_VW == 16
INLINE vi dot16 (vi acc, const vb *c, const int8_t *x, bool wide) {
  (void)wide;
  for (int g = 0; g < 4; g++)
    acc = (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)c[g], (__m512i)x_group(x + 4 * g));
  return acc;
}
#elif defined(__AVX512BW__) && PERI_VW == 16
INLINE __m512i pairs (vb c, const int8_t *x, bool wide) { /* 16-bit sums of two products */
  __m512i w = (__m512i)c, v = (__m512i)x_group(x);
  if (wide) { /* |w| times x with the sign of w */
    v = _mm512_mask_sub_epi8(v, _mm512_movepi8_mask(w), _mm512_setzero_si512(), v);
    w = _mm512_abs_epi8(w);
  }
  return _mm512_maddubs_epi16(w, v);
}
INLINE vi dot16 (vi acc, const vb *c, const int8_t *x, bool wide) {
  __m512i ones = _mm512_set1_epi16(1), p[4];
  for (int g = 0; g < 4; g++) p[g] = pairs(c[g], x + 4 * g, wide);
  if (wide) {
    for (int g = 0; g < 4; g++) acc += (vi)_mm512_madd_epi16(p[g], ones);
    return acc;
  }
  acc += (vi)_mm512_madd_epi16(_mm512_add_epi16(p[0], p[1]), ones);
  return acc + (vi)_mm512_madd_epi16(_mm512_add_epi16(p[2], p[3]), ones);
}
#elif defined(__AVX2__) && PERI_VW == 8
INLINE __m256i pairs (vb c, const int8_t *x, bool wide) {
  __m256i w = (__m256i)c, v = (__m256i)x_group(x);
  if (wide) {
    v = _mm256_sign_epi8(v, w);
    w = _mm256_abs_epi8(w);
  }
  return _mm256_maddubs_epi16(w, v);
}
INLINE vi dot16 (vi acc, const vb *c, const int8_t *x, bool wide) {
  __m256i ones = _mm256_set1_epi16(1), p[4];
  for (int g = 0; g < 4; g++) p[g] = pairs(c[g], x + 4 * g, wide);
  if (wide) {
    for (int g = 0; g < 4; g++) acc += (vi)_mm256_madd_epi16(p[g], ones);
    return acc;
  }
  acc += (vi)_mm256_madd_epi16(_mm256_add_epi16(p[0], p[1]), ones);
  return acc + (vi)_mm256_madd_epi16(_mm256_add_epi16(p[2], p[3]), ones);
}
#elif defined(__ARM_FEATURE_DOTPROD) && PERI_VW == 4
INLINE vi dot16 (vi acc, const vb *c, const int8_t *x, bool wide) {
  (void)wide;
  int8x16_t v = vld1q_s8(x);
  int32x4_t a = (int32x4_t)acc;
  a = vdotq_laneq_s32(a, (int8x16_t)c[0], v, 0);
  a = vdotq_laneq_s32(a, (int8x16_t)c[1], v, 1);
  a = vdotq_laneq_s32(a, (int8x16_t)c[2], v, 2);
  return (vi)vdotq_laneq_s32(a, (int8x16_t)c[3], v, 3);
}
#elif defined(__aarch64__) && PERI_VW == 4
INLINE vi dot16 (vi acc, const vb *c, const int8_t *x, bool wide) {
  (void)wide;
  for (int g = 0; g < 4; g++) {
    int8x16_t w = (int8x16_t)c[g], v = (int8x16_t)x_group(x + 4 * g);
    int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(v)), high = vmull_high_s8(w, v);
    acc = (vi)vpadalq_s16((int32x4_t)acc, vpaddq_s16(low, high)); /* 2 * 128 * 127 fits */
  }
  return acc;
}
#elif defined(__SSE2__) && PERI_VW == 4
INLINE vi dot16 (vi acc, const vb *c, const int8_t *x, bool wide) {
  (void)wide;
  __m128i low = _mm_setzero_si128(), high = low; /* rows 0 1 and 2 3, two sums each */
  for (int g = 0; g < 4; g++) {
    __m128i w = (__m128i)c[g], v = (__m128i)x_group(x + 4 * g);
    v = _mm_srai_epi16(_mm_unpacklo_epi8(v, v), 8);
    low = _mm_add_epi32(low, _mm_madd_epi16(_mm_srai_epi16(_mm_unpacklo_epi8(w, w), 8), v));
    high = _mm_add_epi32(high, _mm_madd_epi16(_mm_srai_epi16(_mm_unpackhi_epi8(w, w), 8), v));
  }
  __m128 a = _mm_castsi128_ps(low), b = _mm_castsi128_ps(high);
  acc += (vi)_mm_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0));
  return acc + (vi)_mm_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1));
}
#else
INLINE vi dot16 (vi acc, const vb *c, const int8_t *x, bool wide) {
  (void)wide;
  for (int g = 0; g < 4; g++) {
    for (int r = 0; r < W; r++) {
      for (int i = 0; i < 4; i++) acc[r] += (int32_t)(int8_t)c[g][4 * r + i] * x[4 * g + i];
    }
  }
  return acc;
}
#endif

/* ---- reading a panel ---- */

/* W halves as f32. */
INLINE vf f_half (const uint8_t *p) {
#if PERI_VW == 16 && defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif PERI_VW == 8 && defined(__F16C__)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#elif PERI_VW == 4 && defined(__aarch64__)
  return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)(const void *)p)));
#else
  uint16_t halves[PERI_VW];
  memcpy(halves, p, sizeof halves);
  vi bits;
  for (int i = 0; i < PERI_VW; i++) bits[i] = halves[i];
  vi low = bits & 0x7fff, sign = (bits & 0x8000) << 16;
  vf tiny = __builtin_convertvector(low, vf) * 0x1p-24f;
  vf other = (vf)((low << 13) + (112 << 23) + ((low >= 0x7c00) & (112 << 23)));
  return (vf)((vi)v_select(low < 0x400, tiny, other) | sign);
#endif
}

INLINE vf f_unsigned (const uint8_t *p) { /* W bytes */
#if PERI_VW == 16 && defined(__AVX512F__)
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif PERI_VW == 8 && defined(__AVX2__)
  return (vf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
  vi v;
  for (int i = 0; i < PERI_VW; i++) v[i] = p[i];
  return __builtin_convertvector(v, vf);
#endif
}

INLINE vf f_signed (const uint8_t *p) {
#if PERI_VW == 16 && defined(__AVX512F__)
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif PERI_VW == 8 && defined(__AVX2__)
  return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
  vi v;
  for (int i = 0; i < PERI_VW; i++) v[i] = (int8_t)p[i];
  return __builtin_convertvector(v, vf);
#endif
}

/* Scale of block j of a record, and its minimum or the scale of its second half. */
INLINE void read_scales (peri_dtype d, const uint8_t *p, int j, vf *one, vf *two) {
  switch (d) {
  case PERI_Q4_1:
  case PERI_Q5_1:
    *one = f_half(p + j * 4 * W);
    *two = f_half(p + (4 * j + 2) * W);
    return;
  case PERI_Q4_K:
  case PERI_Q5_K:
    *one = f_half(p) * f_unsigned(p + (4 + j) * W);
    *two = -(f_half(p + 2 * W) * f_unsigned(p + (12 + j) * W));
    return;
  case PERI_Q6_K: {
    vf all = f_half(p);
    *one = all * f_signed(p + (2 + 2 * j) * W);
    *two = all * f_signed(p + (3 + 2 * j) * W);
    return;
  }
  default: *one = *two = f_half(p + j * 2 * W); return;
  }
}

/* Codes of one block, a byte each. */
INLINE void read_codes (int bits, const uint8_t *p, vb out[8]) {
  if (bits == 8) {
    for (int g = 0; g < 8; g++) out[g] = b_load(p + g * CODES);
    return;
  }
  for (int g = 0; g < 4; g++) {
    vb v = b_load(p + g * CODES);
    out[g] = v & b_set(15);
    out[g + 4] = b_right(v, 4) & b_set(15);
  }
  if (bits == 5) {
    vb h = b_load(p + 4 * CODES);
    for (int g = 0; g < 8; g++)
      out[g] |= (g < 4 ? b_left(h, 4 - g) : b_right(h, g - 4)) & b_set(16);
  }
  if (bits == 6) {
    for (int j = 0; j < 2; j++) {
      vb h = b_load(p + (4 + j) * CODES);
      for (int g = 0; g < 4; g++)
        out[4 * j + g] |= (g < 2 ? b_left(h, 4 - 2 * g) : b_right(h, 2 * g - 4)) & b_set(48);
    }
  }
}

#endif
