/*
** power.h - Python's x ** 2 on NumPy's numbers: the C library's pow, which is not x * x in one case
** of a thousand. The exponent is hidden from compilers, which would make a product of it.
*/
#ifndef peri_env_power_h
#define peri_env_power_h

#include <math.h>

static inline double numpy_squared (double x) {
  static const volatile double two = 2;
  return pow(x, two);
}

static inline float numpy_squared32 (float x) {
  static const volatile float two = 2;
  return powf(x, two);
}

#endif
