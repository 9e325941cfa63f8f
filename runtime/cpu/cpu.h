/*
** cpu.h - SIMD levels. Every file cpu/simd_*.c is compiled once per level (portable, avx2, avx512)
** with PERI_LEVEL set to that name, and exports one table PERI_NAME(peri__<family>). Kernels are
** plain functions on arrays: no context, no allocation, no errors, no threads (ops cut the work).
** Vector code is written once with GCC vector types in cpu/vec.h; scalar tails go through the same
** vector functions, so that a result never depends on where a block begins.
*/
#ifndef peri_cpu_h
#define peri_cpu_h

#include "core/core.h"

#define PERI_CAT_(a, b) a##_##b
#define PERI_CAT(a, b) PERI_CAT_(a, b)
#define PERI_NAME(base) PERI_CAT(base, PERI_LEVEL)

struct peri__gemm_kernels;   /* cpu/gemm.h */
struct peri__math_kernels;   /* cpu/math.h: unary, binary, gates, reductions over arrays */
struct peri__nn_kernels;     /* cpu/nn.h: softmax, norms, rope, attention */
struct peri__loss_kernels;   /* cpu/loss.h: losses, optimizer steps */
struct peri__quant_kernels;  /* cpu/quant.h: products with quantised weights */
struct peri__env_kernels;    /* cpu/env.h: built-in environments, many rows at once */
struct peri__packed_kernels; /* cpu/packed.h: products with packed float weights */
struct peri__conv_kernels;   /* cpu/conv.h: convolutions, pooling */

struct peri__cpu {
  const char *name;
  const struct peri__gemm_kernels *gemm;
  const struct peri__math_kernels *math;
  const struct peri__nn_kernels *nn;
  const struct peri__loss_kernels *loss;
  const struct peri__quant_kernels *quant; /* of the level, or better where the processor is */
  const struct peri__packed_kernels *packed;
  const struct peri__env_kernels *env;
  const struct peri__conv_kernels *conv;
};

/* NULL when this build or this processor lacks the level. */
const struct peri__cpu *peri__cpu_level (peri_simd level);

#endif
