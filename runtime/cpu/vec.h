/*
** vec.h - one vector of floats at the level being compiled, in GCC's vector types: 16 lanes for
** avx512, 8 for avx2, 4 for portable. Arithmetic is written with operators; a * b + c contracts to
** a fused multiply-add where the processor has it (-ffp-contract=fast for simd_*.c only).
*/
#ifndef peri_vec_h
#define peri_vec_h

#include <stdint.h>
#include <string.h>

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
static inline vf v_select (vi mask, vf a, vf b) { /* lanes of a where mask is all ones */
  return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}
static inline vf v_max (vf a, vf b) { return v_select((vi)(a > b), a, b); }
static inline vf v_min (vf a, vf b) { return v_select((vi)(a < b), a, b); }
static inline vf v_fma (vf a, vf b, vf c) { return a * b + c; }
/* Horizontal reductions in a fixed order: halves are folded until one lane is left. */
static inline float v_sum (vf v) {
  float b[PERI_VW];
  v_store(b, v);
  for (int w = PERI_VW / 2; w > 0; w /= 2)
    for (int i = 0; i < w; i++) b[i] += b[i + w];
  return b[0];
}
static inline float v_hmax (vf v) {
  float b[PERI_VW];
  v_store(b, v);
  for (int w = PERI_VW / 2; w > 0; w /= 2)
    for (int i = 0; i < w; i++) b[i] = b[i] > b[i + w] ? b[i] : b[i + w];
  return b[0];
}

#endif
