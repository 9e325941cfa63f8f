/*
** cpu.c - which SIMD levels this build has and this processor can run.
*/
#include "cpu/cpu.h"

#define LEVEL(level)                                                                    \
  extern const struct peri__gemm_kernels PERI_CAT(peri__gemm, level);                   \
  extern const struct peri__math_kernels PERI_CAT(peri__math, level);                   \
  extern const struct peri__nn_kernels PERI_CAT(peri__nn, level);                       \
  extern const struct peri__loss_kernels PERI_CAT(peri__loss, level);                   \
  static const struct peri__cpu level_##level = { #level, &PERI_CAT(peri__gemm, level), \
                                                  &PERI_CAT(peri__math, level),         \
                                                  &PERI_CAT(peri__nn, level),           \
                                                  &PERI_CAT(peri__loss, level) };

LEVEL(portable)
#ifdef PERI_HAVE_AVX2
LEVEL(avx2)
static bool has_avx2 (void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif
#ifdef PERI_HAVE_AVX512
LEVEL(avx512)
static bool has_avx512 (void) {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const struct peri__cpu *peri__cpu_level (peri_simd level) {
#ifdef PERI_HAVE_AVX512
  if ((level == PERI_SIMD_AUTO || level == PERI_SIMD_AVX512) && has_avx512()) return &level_avx512;
#endif
#ifdef PERI_HAVE_AVX2
  if ((level == PERI_SIMD_AUTO || level == PERI_SIMD_AVX2) && has_avx2()) return &level_avx2;
#endif
  if (level == PERI_SIMD_AUTO || level == PERI_SIMD_PORTABLE) return &level_portable;
  return NULL;
}
