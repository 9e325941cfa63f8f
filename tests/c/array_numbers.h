/* array_numbers.h - what the tests of array kernels share: the levels, how many elements, numbers that look random. */
#ifndef array_numbers_h
#define array_numbers_h

#include <stdint.h>

#include "perilune.h"

static const peri_simd levels[] = { PERI_SIMD_PORTABLE, PERI_SIMD_AVX2, PERI_SIMD_AVX512 };
enum { NLEVELS = 3, N = 1 << 14 };

static uint32_t seed = 1;
static uint32_t bits32 (void) {
  seed ^= seed << 13;
  seed ^= seed >> 17;
  seed ^= seed << 5;
  return seed;
}
static double uniform (double lo, double hi) {
  return lo + (hi - lo) * (double)bits32() / 4294967296.0;
}

#endif
