/*
** test_folds.c - reductions of rows and columns at every SIMD level against exact sums, and the
** conversions of half precision against the scalar ones.
*/
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "array_numbers.h"
#include "cpu/cpu.h"
#include "cpu/math.h"

/* ---- reductions ---- */

static void row_reductions_match_exact_ones (void **state) {
  enum { M = 3000 };
  static float x[M + 3];
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    const struct peri__cpu *cpu = peri__cpu_level(levels[l]);
    if (!cpu) continue;
    const struct peri__math_kernels *k = cpu->math;
    for (int64_t n = 1; n < M; n += n < 70 ? 1 : 211) {
      long double sum = 0, abs = 0, squares = 0, exps = 0;
      float max = -INFINITY, min = INFINITY, *v = x + n % 3;
      int64_t imax = 0, imin = 0;
      for (int64_t i = 0; i < n; i++) {
        v[i] = (float)uniform(-2, 2);
        sum += (long double)v[i];
        abs += (long double)fabsf(v[i]);
        squares += ((long double)v[i] - 0.3L) * ((long double)v[i] - 0.3L);
        exps += (long double)exp((double)v[i] - 1.5);
        if (v[i] > max) max = v[i], imax = i;
        if (v[i] < min) min = v[i], imin = i;
      }
      /* f64 sums of thousands of terms: 1e-12; each exp is good to 1e-7 */
      assert_true(fabsl((long double)k->sum(v, n) - sum) < 1e-12L);
      assert_true(fabsl((long double)k->sum_abs(v, n) - abs) < 1e-11L);
      assert_true(fabsl((long double)k->sum_square(v, n, 0.3) - squares) < 1e-11L * (1 + squares));
      assert_true(fabsl((long double)k->sum_exp(v, n, 1.5f) - exps) < 2e-7L * exps);
      assert_true(k->max(v, n) == max && k->min(v, n) == min);
      assert_true(k->argmax(v, n) == imax && k->argmin(v, n) == imin);
      v[n / 2] = NAN;
      assert_true(isnan(k->max(v, n)) && isnan(k->min(v, n)));
      assert_true(k->argmax(v, n) == n / 2 && k->argmin(v, n) == n / 2);
    }
  }
}

static void column_reductions_match_exact_ones (void **state) {
  enum { ROWS = 9, COLS = 37 };
  float x[ROWS * (COLS + 2)], top[COLS], low[COLS];
  double acc[COLS];
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    const struct peri__cpu *cpu = peri__cpu_level(levels[l]);
    if (!cpu) continue;
    for (int rows = 1; rows <= ROWS; rows++) {
      for (int i = 0; i < ROWS * (COLS + 2); i++) x[i] = (float)uniform(-2, 2);
      for (int j = 0; j < COLS; j++) acc[j] = 0, top[j] = -INFINITY, low[j] = INFINITY;
      x[4] = NAN;
      cpu->math->column_sum(x, rows, COLS + 2, COLS, acc);
      cpu->math->column_max(x, rows, COLS + 2, COLS, top);
      cpu->math->column_min(x, rows, COLS + 2, COLS, low);
      assert_true(isnan(acc[4]) && isnan(top[4]) && isnan(low[4]));
      for (int j = 5; j < COLS; j++) {
        double sum = 0;
        float max = -INFINITY, min = INFINITY;
        for (int r = 0; r < rows; r++) {
          float v = x[r * (COLS + 2) + j];
          sum += (double)v;
          max = v > max ? v : max;
          min = v < min ? v : min;
        }
        assert_true(fabs(acc[j] - sum) < 1e-14);
        assert_true(top[j] == max && low[j] == min);
      }
    }
  }
}

static void half_precision_agrees_with_the_scalar_conversion (void **state) {
  static float x[N], back[N];
  static uint16_t h[N];
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    const struct peri__cpu *cpu = peri__cpu_level(levels[l]);
    if (!cpu) continue;
    for (int i = 0; i < N; i++) {
      uint32_t u = bits32();
      memcpy(&x[i], &u, sizeof u);
      if (i % 2 || isnan(x[i])) x[i] = (float)uniform(-70000, 70000);
      if (i % 16 == 0) x[i] = (float)uniform(-1e-4, 1e-4);
    }
    cpu->math->to_f16(x, h, N);
    cpu->math->from_f16(h, back, N);
    for (int i = 0; i < N; i++) {
      assert_int_equal(h[i], peri__f32_to_f16(x[i]));
      assert_true(back[i] == peri__f16_to_f32(h[i]));
    }
    cpu->math->to_bf16(x, h, N);
    cpu->math->from_bf16(h, back, N);
    for (int i = 0; i < N; i++) {
      assert_int_equal(h[i], peri__f32_to_bf16(x[i]));
      assert_true(back[i] == peri__bf16_to_f32(h[i]));
    }
  }
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(row_reductions_match_exact_ones),
    cmocka_unit_test(column_reductions_match_exact_ones),
    cmocka_unit_test(half_precision_agrees_with_the_scalar_conversion),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
