/*
** cpu.c - which SIMD levels this build has and this processor can run.
*/
#include "cpu/cpu.h"

/* Kernels of a level, with those for quantised weights of another one. */
#define CPU(name, level, quant)                                          \
  static const struct peri__cpu name = { #level,                         \
                                         &PERI_CAT(peri__gemm, level),   \
                                         &PERI_CAT(peri__math, level),   \
                                         &PERI_CAT(peri__nn, level),     \
                                         &PERI_CAT(peri__loss, level),   \
                                         &PERI_CAT(peri__quant, quant),  \
                                         &PERI_CAT(peri__packed, level), \
                                         &PERI_CAT(peri__env, level),    \
                                         &PERI_CAT(peri__conv, level) };
#define LEVEL(level)                                                      \
  extern const struct peri__gemm_kernels PERI_CAT(peri__gemm, level);     \
  extern const struct peri__math_kernels PERI_CAT(peri__math, level);     \
  extern const struct peri__nn_kernels PERI_CAT(peri__nn, level);         \
  extern const struct peri__loss_kernels PERI_CAT(peri__loss, level);     \
  extern const struct peri__quant_kernels PERI_CAT(peri__quant, level);   \
  extern const struct peri__packed_kernels PERI_CAT(peri__packed, level); \
  extern const struct peri__env_kernels PERI_CAT(peri__env, level);       \
  extern const struct peri__conv_kernels PERI_CAT(peri__conv, level);     \
  CPU(level_##level, level, level)

LEVEL(portable)
#ifdef PERI_HAVE_DOTPROD
#include <sys/auxv.h>
extern const struct peri__quant_kernels peri__quant_dotprod;
CPU(level_dotprod, portable, dotprod)
static bool has_dotprod (void) { return (getauxval(AT_HWCAP) & 1 << 20) != 0; } /* ASIMDDP */
#endif
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
extern const struct peri__quant_kernels peri__quant_vnni;
CPU(level_vnni, avx512, vnni)
static bool has_vnni (void) { return __builtin_cpu_supports("avx512vnni"); }
#endif

const struct peri__cpu *peri__cpu_level (peri_simd level) {
#ifdef PERI_HAVE_AVX512
  if ((level == PERI_SIMD_AUTO || level == PERI_SIMD_AVX512) && has_avx512())
    return has_vnni() ? &level_vnni : &level_avx512;
#endif
#ifdef PERI_HAVE_AVX2
  if ((level == PERI_SIMD_AUTO || level == PERI_SIMD_AVX2) && has_avx2()) return &level_avx2;
#endif
#ifdef PERI_HAVE_DOTPROD
  if ((level == PERI_SIMD_AUTO || level == PERI_SIMD_PORTABLE) && has_dotprod())
    return &level_dotprod;
#endif
  if (level == PERI_SIMD_AUTO || level == PERI_SIMD_PORTABLE) return &level_portable;
  return NULL;
}
