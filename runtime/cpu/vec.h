/*
** vec.h - one vector of floats at the level being compiled, in GCC's vector types: 16 lanes for
** avx512, 8 for avx2, 4 for portable. Arithmetic is written with operators; a * b + c contracts to
** a fused multiply-add where the processor has it (-ffp-contract=fast for simd_*.c only).
*/
#ifndef peri_vec_h
#define peri_vec_h

#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h> /* only for what compilers fail to make of the plain C beside it */
#endif

#ifndef PERI_VW
#define PERI_VW 4 /* lanes of f32 */
#endif

typedef float vf __attribute__((vector_size(PERI_VW * 4)));
typedef int32_t vi __attribute__((vector_size(PERI_VW * 4)));
typedef float vfu __attribute__((vector_size(PERI_VW * 4), aligned(4), may_alias));

static inline vf v_load (const float *p) { return *(const vfu *)p; }
static inline void v_store (float *p, vf v) { *(vfu *)p = v; }
static inline vf v_set (float x) { return x - (vf){ 0 }; }
static inline vi v_seti (int32_t x) { return x - (vi){ 0 }; }
/* n lanes (0 < n <= PERI_VW) from p, the others fill: tails run the same code as full blocks. */
#if PERI_VW == 16 && defined(__AVX512F__)
static inline vf v_load_tail (const float *p, int64_t n, float fill) {
  __mmask16 m = (__mmask16)(0xffffu >> (16 - n));
  return (vf)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), m, p);
}
static inline void v_store_tail (float *p, vf v, int64_t n) {
  _mm512_mask_storeu_ps(p, (__mmask16)(0xffffu >> (16 - n)), (__m512)v);
}
#elif PERI_VW == 8 && defined(__AVX2__)
static inline __m256i v_first (int64_t n) { /* all ones in the first n lanes */
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vf v_load_tail (const float *p, int64_t n, float fill) {
  __m256i m = v_first(n);
  return (vf)_mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, m), (__m256)m);
}
static inline void v_store_tail (float *p, vf v, int64_t n) {
  _mm256_maskstore_ps(p, v_first(n), (__m256)v);
}
#else
static inline vf v_load_tail (const float *p, int64_t n, float fill) {
  float b[PERI_VW];
  for (int64_t i = 0; i < PERI_VW; i++) b[i] = i < n ? p[i] : fill;
  return v_load(b);
}
static inline void v_store_tail (float *p, vf v, int64_t n) {
  float b[PERI_VW];
  v_store(b, v);
  memcpy(p, b, (size_t)n * sizeof *p);
}
#endif
static inline vf v_select (vi mask, vf a, vf b) { /* lanes of a where mask is all ones */
  return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}
/* a > b ? a : b and a < b ? a : b: b where either is NaN. */
#if PERI_VW == 16 && defined(__AVX512F__)
static inline vf v_max (vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vf v_min (vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#elif PERI_VW == 8 && defined(__AVX__)
static inline vf v_max (vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vf v_min (vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#elif PERI_VW == 4 && defined(__SSE2__)
static inline vf v_max (vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
static inline vf v_min (vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
#else
static inline vf v_max (vf a, vf b) { return v_select((vi)(a > b), a, b); }
static inline vf v_min (vf a, vf b) { return v_select((vi)(a < b), a, b); }
#endif
static inline vf v_fma (vf a, vf b, vf c) { return a * b + c; }
/* Horizontal reductions in a fixed order: halves are folded until one lane is left. */
typedef float v_quad __attribute__((vector_size(16)));
static inline v_quad v_quad_at (vf v, int i) { /* lanes 4 i to 4 i + 3 */
  v_quad q;
  memcpy(&q, (const char *)&v + 16 * i, sizeof q);
  return q;
}
static inline v_quad v_quad_max (v_quad a, v_quad b) {
#ifdef __SSE2__
  return (v_quad)_mm_max_ps((__m128)a, (__m128)b);
#else
  for (int i = 0; i < 4; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
  return a;
#endif
}
static inline float v_sum (vf v) {
#if PERI_VW == 16
  v_quad q = (v_quad_at(v, 0) + v_quad_at(v, 2)) + (v_quad_at(v, 1) + v_quad_at(v, 3));
#elif PERI_VW == 8
  v_quad q = v_quad_at(v, 0) + v_quad_at(v, 1);
#else
  v_quad q = v;
#endif
  return (q[0] + q[2]) + (q[1] + q[3]);
}
static inline float v_hmax (vf v) {
#if PERI_VW == 16
  v_quad q = v_quad_max(v_quad_max(v_quad_at(v, 0), v_quad_at(v, 2)),
                        v_quad_max(v_quad_at(v, 1), v_quad_at(v, 3)));
#elif PERI_VW == 8
  v_quad q = v_quad_max(v_quad_at(v, 0), v_quad_at(v, 1));
#else
  v_quad q = v;
#endif
  float a = q[0] > q[2] ? q[0] : q[2], b = q[1] > q[3] ? q[1] : q[3];
  return a > b ? a : b;
}

#endif
