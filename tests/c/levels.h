/* levels.h - what the tests of kernels share: a context at a SIMD level, numbers that look random. */
#ifndef levels_h
#define levels_h

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cpu/cpu.h"

static const peri_simd levels[] = { PERI_SIMD_PORTABLE, PERI_SIMD_AVX2, PERI_SIMD_AVX512 };
enum { NLEVELS = 3 };

/* NULL: this machine has not got the level. */
static inline peri_ctx *open_level (peri_simd simd, int threads) {
  peri_options o;
  peri_ctx *ctx = NULL;
  if (peri__cpu_level(simd) == NULL) return NULL;
  peri_options_init(&o);
  o.simd = simd;
  o.threads = threads;
  assert_int_equal(peri_open(&o, &ctx), PERI_OK);
  return ctx;
}

static uint32_t seed;
static inline float uniform (void) { /* in [-1, 1) */
  seed = seed * 1664525u + 1013904223u;
  return (float)(seed >> 8) * 0x1p-23f - 1;
}

static inline float *
fresh (int64_t n) { /* n floats and a guard after them, so that overruns show */
  float *p = test_malloc((size_t)(n > 0 ? n : 1) * sizeof *p);
  for (int64_t i = 0; i < n; i++) p[i] = uniform();
  return p;
}

#endif
