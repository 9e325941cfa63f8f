/*
** simd_packed.c - register tiles over packed panels of float weights; compiled once per level.
** Numerics are those of cpu/gemm.h: 16-bit weights are widened to f32, then one chain of fused
** multiply-adds over k ascending. PERI_PANEL_DOT is a chain of the processor's products of bf16
** pairs instead.
*/
#include "cpu/packed.h"
#include "cpu/rows.h"
#include "cpu/vec.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#define NV PERI_GEMM_NV
#define NR (NV * PERI_VW)

typedef int32_t viu __attribute__((vector_size(PERI_VW * 4), aligned(4), may_alias));

/* ---- a step of a panel as floats ---- */

#if !(PERI_VW == 16 && defined(__AVX512F__)) && !(PERI_VW == 8 && defined(__F16C__))
#define INTERLEAVED_F16
/* Low halves of words, as f16. */
INLINE vf half_low (vi h) {
  vi sign = (h & v_seti(0x8000)) << 16, rest = (h & v_seti(0x7fff)) << 13;
  vf wide = (vf)rest * v_set(0x1p112f); /* subnormals come out right as well */
  vi top = v_seti(0x0f7fffff) < rest;   /* infinity and NaN keep the highest exponent */
  return (vf)((vi)wide | (top & v_seti(0x7f800000)) | sign);
}
#endif

INLINE void step_of (const peri__panel kind, const char *b, vf out[NV]) {
  if (kind == PERI_PANEL_F32) {
    UNROLL for (int v = 0; v < NV; v++) out[v] =
        v_load((const float *)(const void *)b + v * PERI_VW);
    return;
  }
#ifndef INTERLEAVED_F16
  if (kind == PERI_PANEL_F16) {
#if PERI_VW == 16
    out[0] = (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)b));
    out[1] = (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)(b + 32)));
#else
    out[0] = (vf)_mm256_cvtph_ps(_mm_loadu_si128((const void *)b));
    out[1] = (vf)_mm256_cvtph_ps(_mm_loadu_si128((const void *)(b + 16)));
#endif
    return;
  }
#endif
  vi w = *(const viu *)(const void *)b;
#ifdef INTERLEAVED_F16
  if (kind == PERI_PANEL_F16) {
    out[0] = half_low(w);
    out[1] = half_low((w >> 16) & v_seti(0xffff));
    return;
  }
#endif
  out[0] = (vf)(w << 16);
  out[1] = (vf)(w & v_seti((int32_t)0xffff0000));
}

/* ---- tiles ---- */

/* kind, mr and np are constants after inlining, so that acc lives in registers. */
INLINE void tile (const peri__panel kind, const int mr, const int np, const peri__panel_tile *t) {
  const int64_t step = kind == PERI_PANEL_F32 ? NR * 4 : NR * 2;
  vf acc[MR][PERI_PANEL_ONE * NV];
  UNROLL for (int i = 0; i < mr; i++) UNROLL for (int v = 0; v < np * NV; v++) acc[i][v] =
      v_load(t->init + i * t->irs + v * PERI_VW);
  const float *a = t->a;
  const char *b = t->b, *ahead = t->ahead;
  const int64_t fetch = t->fetch;
  for (int64_t p = 0; p < t->k; p++, a += mr, b += step, ahead += fetch) {
    vf bv[PERI_PANEL_ONE * NV];
    UNROLL for (int q = 0; q < np; q++) {
      __builtin_prefetch(ahead + q * t->bstep, 0, 2);
      if (step > 64) __builtin_prefetch(ahead + q * t->bstep + 64, 0, 2);
      step_of(kind, b + q * t->bstep, bv + q * NV);
    }
    UNROLL for (int i = 0; i < mr; i++) {
      vf ai = v_set(a[i]);
      UNROLL for (int v = 0; v < np * NV; v++) acc[i][v] = v_fma(ai, bv[v], acc[i][v]);
    }
  }
  UNROLL for (int i = 0; i < mr; i++) UNROLL for (int v = 0; v < np * NV; v++)
      v_store(t->c + i * t->crs + v * PERI_VW, acc[i][v]);
}

#define TILE(name, kind, mr, np) \
  static void name(const peri__panel_tile *t) { tile(kind, mr, np, t); }
#define TILES(mr)                       \
  TILE(f32_##mr, PERI_PANEL_F32, mr, 1) \
  TILE(f16_##mr, PERI_PANEL_F16, mr, 1) \
  TILE(bf16_##mr, PERI_PANEL_BF16, mr, 1)
EACH_ROWS(TILES)
#define SEVERAL(np, rows, mr)                  \
  TILE(f32_##rows##np, PERI_PANEL_F32, mr, np) \
  TILE(f16_##rows##np, PERI_PANEL_F16, mr, np) \
  TILE(bf16_##rows##np, PERI_PANEL_BF16, mr, np)
SEVERAL(2, one, 1)
SEVERAL(3, one, 1)
SEVERAL(4, one, 1)
SEVERAL(2, two, 2)

#define WIDEN(name, kind)                                                   \
  static void name(const char *b, int64_t p, int64_t k, float *out) {       \
    for (int64_t e = p + k; p < e; p++, out += NR) {                        \
      vf v[NV];                                                             \
      step_of(kind, b + p * NR * 2, v);                                     \
      UNROLL for (int q = 0; q < NV; q++) v_store(out + q * PERI_VW, v[q]); \
    }                                                                       \
  }
WIDEN(widen_f16, PERI_PANEL_F16)
WIDEN(widen_bf16, PERI_PANEL_BF16)

/* ---- products of bf16 pairs ---- */

#if PERI_VW == 16 && defined(__AVX512BW__)
#define DOTS
#define DOT_FN __attribute__((target("avx512bf16")))

static bool dots (void) { return __builtin_cpu_supports("avx512bf16"); }

DOT_FN INLINE void dot_tile (const int mr, const int np, const peri__panel_tile *t) {
  __m512 acc[MR][PERI_PANEL_ONE * NV];
  UNROLL for (int i = 0; i < mr; i++) UNROLL for (int v = 0; v < np * NV; v++) acc[i][v] =
      _mm512_loadu_ps(t->init + i * t->irs + v * PERI_VW);
  const uint32_t *a = t->a;
  const char *b = t->b, *ahead = t->ahead;
  const int64_t fetch = 2 * t->fetch;
  for (int64_t p = 0; p < t->k; p += 2, a += mr, b += NR * 4, ahead += fetch) {
    __m512bh bv[PERI_PANEL_ONE * NV];
    UNROLL for (int q = 0; q < np; q++) {
      __builtin_prefetch(ahead + q * t->bstep, 0, 2);
      __builtin_prefetch(ahead + q * t->bstep + 64, 0, 2);
      UNROLL for (int v = 0; v < NV; v++) bv[q * NV + v] =
          (__m512bh)_mm512_loadu_si512(b + q * t->bstep + v * 64);
    }
    UNROLL for (int i = 0; i < mr; i++) {
      __m512bh ai = (__m512bh)_mm512_set1_epi32((int)a[i]);
      UNROLL for (int v = 0; v < np * NV; v++) acc[i][v] = _mm512_dpbf16_ps(acc[i][v], ai, bv[v]);
    }
  }
  UNROLL for (int i = 0; i < mr; i++) UNROLL for (int v = 0; v < np * NV; v++)
      _mm512_storeu_ps(t->c + i * t->crs + v * PERI_VW, acc[i][v]);
}

#define DOT(name, mr, np) \
  DOT_FN static void name(const peri__panel_tile *t) { dot_tile(mr, np, t); }
DOT(dot_1, 1, 1)
DOT(dot_2, 2, 1)
DOT(dot_3, 3, 1)
DOT(dot_4, 4, 1)
DOT(dot_5, 5, 1)
DOT(dot_6, 6, 1)
DOT(dot_7, 7, 1)
DOT(dot_8, 8, 1)
DOT(dot_9, 9, 1)
DOT(dot_10, 10, 1)
DOT(dot_11, 11, 1)
DOT(dot_12, 12, 1)
DOT(dot_one2, 1, 2)
DOT(dot_one3, 1, 3)
DOT(dot_one4, 1, 4)
DOT(dot_two2, 2, 2)

static void widen_dot (const char *b, int64_t p, int64_t k, float *out) {
  for (int64_t e = p + k; p < e; p++, out += NR) {
    const char *w = b + p / 2 * NR * 4;
    UNROLL for (int q = 0; q < NV; q++, w += PERI_VW * 4) {
      vi pair = *(const viu *)(const void *)w;
      v_store(out + q * PERI_VW, (vf)(p % 2 ? pair & v_seti((int32_t)0xffff0000) : pair << 16));
    }
  }
}

DOT_FN static void pack_pairs (int64_t m, int64_t k, const float *a, int64_t ars, uint32_t *out) {
  for (int64_t p = 0; p < k; p += 16) {
    int64_t pairs = (k - p < 16 ? k - p + 1 : 16) / 2;
    __mmask16 lanes = (__mmask16)(k - p < 16 ? (1u << (k - p)) - 1 : 0xffffu);
    for (int64_t i = 0; i < m; i++) {
      uint32_t words[8];
      __m512 x = _mm512_maskz_loadu_ps(lanes, a + i * ars + p);
      _mm256_storeu_si256((void *)words, (__m256i)_mm512_cvtneps_pbh(x));
      for (int64_t q = 0; q < pairs; q++) out[(p / 2 + q) * m + i] = words[q];
    }
  }
}
#endif

#if MR == 12
#define KIND(kind)                                                                        \
  {                                                                                       \
    NULL, kind##_1, kind##_2, kind##_3, kind##_4, kind##_5, kind##_6, kind##_7, kind##_8, \
        kind##_9, kind##_10, kind##_11, kind##_12                                         \
  }
#elif MR == 6
#define KIND(kind) \
  { NULL, kind##_1, kind##_2, kind##_3, kind##_4, kind##_5, kind##_6 }
#else
#define KIND(kind) \
  { NULL, kind##_1, kind##_2, kind##_3, kind##_4 }
#endif

#define ONE(kind) \
  { NULL, kind##_1, kind##_one2, kind##_one3, kind##_one4 }
#define TWO(kind) \
  { NULL, kind##_2, kind##_two2 }

const struct peri__packed_kernels PERI_NAME(peri__packed) = {
#ifdef INTERLEAVED_F16
  .interleaved_f16 = true,
#endif
#ifdef DOTS
  .dots = dots,
  .pack_pairs = pack_pairs,
  .tile = { KIND(f32), KIND(f16), KIND(bf16), KIND(dot) },
  .one = { ONE(f32), ONE(f16), ONE(bf16), ONE(dot) },
  .two = { TWO(f32), TWO(f16), TWO(bf16), TWO(dot) },
  .widen = { NULL, widen_f16, widen_bf16, widen_dot },
#else
  .tile = { KIND(f32), KIND(f16), KIND(bf16) },
  .one = { ONE(f32), ONE(f16), ONE(bf16) },
  .two = { TWO(f32), TWO(f16), TWO(bf16) },
  .widen = { NULL, widen_f16, widen_bf16 },
#endif
};
