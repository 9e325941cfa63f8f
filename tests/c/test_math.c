/*
** test_math.c - the array kernels at every SIMD level: errors in units in the last place against
** the C library in f64, special values, tails and misaligned arrays with the bits of full vectors,
** reductions against exact sums.
*/
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/cpu.h"
#include "cpu/math.h"

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

static void unary (peri__kernel k, int64_t n, const float *x, float *y, const double *p) {
  const void *in[1] = { x };
  int64_t step[1] = { 1 };
  k(n, in, step, y, p);
}
static void binary (peri__kernel k, int64_t n, const float *a, int64_t sa, const float *b,
                    int64_t sb, float *y) {
  const void *in[2] = { a, b };
  int64_t step[2] = { sa, sb };
  k(n, in, step, y, NULL);
}

/* ---- references ---- */

static double logistic (double x) {
  double e = exp(-fabs(x));
  return (x < 0 ? e : 1) / (1 + e);
}
static double r_neg (double x) { return -x; }
static double r_square (double x) { return x * x; }
static double r_reciprocal (double x) { return 1 / x; }
static double r_rsqrt (double x) { return 1 / sqrt(x); }
static double r_softplus (double x) { return (x > 0 ? x : 0) + log1p(exp(-fabs(x))); }
static double r_silu (double x) { return x * logistic(x); }
static double r_gelu_erf (double x) { return 0.5 * x * erfc(-x * sqrt(0.5)); }
static double two_u (double x) { return 1.5957691216057308 * (x + 0.044715 * x * x * x); }
static double r_gelu_tanh (double x) { return x * logistic(two_u(x)); }
static double r_leaky (double x) { return x > 0 ? x : x * (double)0.01f; }
static double r_elu (double x) { return x > 0 ? x : expm1(x); }
static double r_relu (double x) { return x > 0 ? x : 0; }
static double r_clamp (double x) { return x < -1 ? -1 : x > 2 ? 2 : x; }

typedef struct function {
  const char *name;
  int id;
  double (*exact)(double x);
  double lo, hi; /* where errors are measured */
  double ulps;
  double within; /* if not 0: also good when the error is below within * (|x| + 1) */
  double p[2];
} function;

/* gelu loses relative accuracy in the far left tail, where it is about -1e-6: see vec_math.h */
static const function functions[] = {
  { "neg", PERI_MATH_neg, r_neg, -1e30, 1e30, 0, 0, { 0, 0 } },
  { "abs", PERI_MATH_abs, fabs, -1e30, 1e30, 0, 0, { 0, 0 } },
  { "exp", PERI_MATH_exp, exp, -110, 95, 1.1, 0, { 0, 0 } },
  { "expm1", PERI_MATH_expm1, expm1, -30, 95, 1.8, 0, { 0, 0 } },
  { "log", PERI_MATH_log, log, 0, FLT_MAX, 1.1, 0, { 0, 0 } },
  { "log1p", PERI_MATH_log1p, log1p, -0.999, 1e6, 1.1, 0, { 0, 0 } },
  { "log2", PERI_MATH_log2, log2, 0, FLT_MAX, 1.8, 0, { 0, 0 } },
  { "sqrt", PERI_MATH_sqrt, sqrt, 0, FLT_MAX, 0.5001, 0, { 0, 0 } },
  { "rsqrt", PERI_MATH_rsqrt, r_rsqrt, 1e-37, FLT_MAX, 1.6, 0, { 0, 0 } },
  { "square", PERI_MATH_square, r_square, -1e18, 1e18, 0.5001, 0, { 0, 0 } },
  { "reciprocal", PERI_MATH_reciprocal, r_reciprocal, -1e30, 1e30, 0.5001, 0, { 0, 0 } },
  { "sin", PERI_MATH_sin, sin, -2e6, 2e6, 1.8, 0, { 0, 0 } },
  { "cos", PERI_MATH_cos, cos, -2e6, 2e6, 1.8, 0, { 0, 0 } },
  { "tanh", PERI_MATH_tanh, tanh, -12, 12, 3, 0, { 0, 0 } },
  { "sigmoid", PERI_MATH_sigmoid, logistic, -110, 30, 3, 0, { 0, 0 } },
  { "relu", PERI_MATH_relu, r_relu, -10, 10, 0, 0, { 0, 0 } },
  { "leaky_relu", PERI_MATH_leaky_relu, r_leaky, -10, 10, 0.5001, 0, { 0.01, 0 } },
  { "elu", PERI_MATH_elu, r_elu, -20, 10, 1.8, 0, { 1, 0 } },
  { "gelu_tanh", PERI_MATH_gelu_tanh, r_gelu_tanh, -12, 12, 4, 4e-7, { 0, 0 } },
  { "gelu_erf", PERI_MATH_gelu_erf, r_gelu_erf, -12, 12, 4, 4e-7, { 0, 0 } },
  { "silu", PERI_MATH_silu, r_silu, -85, 30, 4, 0, { 0, 0 } },
  { "softplus", PERI_MATH_softplus, r_softplus, -100, 30, 3, 0, { 1, 1e9 } },
  { "erf", PERI_MATH_erf, erf, -5, 5, 2, 0, { 0, 0 } },
  { "floor", PERI_MATH_floor, floor, -1e6, 1e6, 0, 0, { 0, 0 } },
  { "ceil", PERI_MATH_ceil, ceil, -1e6, 1e6, 0, 0, { 0, 0 } },
  { "round", PERI_MATH_round, nearbyint, -1e6, 1e6, 0, 0, { 0, 0 } },
  { "clamp", PERI_MATH_clamp, r_clamp, -4, 4, 0, 0, { -1, 2 } },
};
enum { NFUNCTIONS = sizeof functions / sizeof *functions };

/* Distance in units in the last place of an f32 at the exact value. */
static double ulps (float y, double exact) {
  int e;
  if (isnan(exact)) return isnan(y) ? 0 : INFINITY;
  if (fabs(exact) > FLT_MAX * (1 + 0x1p-25))
    return y == (exact > 0 ? INFINITY : -INFINITY) ? 0 : INFINITY;
  frexp(exact, &e);
  double unit = ldexp(1, e - 24 < -149 ? -149 : e - 24);
  return fabs((double)y - exact) / unit;
}

static void check_values (const char *level, const function *f, const float *x, const float *y,
                          int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    double exact = f->exact((double)x[i]), error = ulps(y[i], exact);
    if (error <= f->ulps || fabs((double)y[i] - exact) <= f->within * (fabs((double)x[i]) + 1))
      continue;
    fail_msg("%s %s(%a) = %a, expected %a, %g units", level, f->name, (double)x[i], (double)y[i],
             exact, error);
  }
}

/* Half of the samples are uniform, half have random bits: every exponent, denormals included. */
static void sample (const function *f, float *x) {
  for (int i = 0; i < N; i++) {
    uint32_t u = bits32();
    memcpy(&x[i], &u, sizeof u);
    if (i % 2 || !(x[i] >= (float)f->lo && x[i] <= (float)f->hi)) {
      double hi = f->hi == FLT_MAX ? 100 : f->hi;
      x[i] = (float)uniform(f->lo, hi);
    }
  }
}

static void functions_are_accurate (void **state) {
  static float x[N], y[N];
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    const struct peri__cpu *cpu = peri__cpu_level(levels[l]);
    if (!cpu) continue;
    for (int i = 0; i < NFUNCTIONS; i++) {
      sample(&functions[i], x);
      unary(cpu->math->unary[functions[i].id], N, x, y, functions[i].p);
      check_values(cpu->name, &functions[i], x, y, N);
    }
  }
}

/* y is what the C library gives: NaN, infinities and signed zeros exactly. */
static void expect (const char *level, const char *name, float x, float y, double want) {
  bool good = ulps(y, want) <= 3 && ((float)want != 0 || !signbit(y) == !signbit(want));
  if (!good) fail_msg("%s %s(%g) = %g, expected %g", level, name, (double)x, (double)y, want);
}

static void special_values_are_those_of_the_library (void **state) {
  static const float x[] = { 0.0f,   -0.0f,   INFINITY, -INFINITY, NAN,
                             1e-45f, -1e-45f, FLT_MAX,  -FLT_MAX };
  enum { K = sizeof x / sizeof *x };
  float y[K];
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    const struct peri__cpu *cpu = peri__cpu_level(levels[l]);
    if (!cpu) continue;
    for (int i = 0; i < NFUNCTIONS; i++) {
      const function *f = &functions[i];
      bool gate =
          f->id == PERI_MATH_gelu_tanh || f->id == PERI_MATH_gelu_erf || f->id == PERI_MATH_silu;
      unary(cpu->math->unary[f->id], K, x, y, f->p);
      for (int k = 0; k < K; k++) {
        double want = f->exact((double)x[k]);
        if (f->id == PERI_MATH_relu)
          want = isnan(x[k]) ? (double)NAN : x[k] > 0 ? (double)x[k] : (double)y[k] * 0;
        if (gate && x[k] < -1) want = -0.0;         /* the limit, where x * gate would be NaN */
        if (gate && fabsf(x[k]) < 1e-40f) continue; /* half of the least denormal */
        if (f->id == PERI_MATH_square && isinf(y[k])) want = INFINITY;
        if (f->id == PERI_MATH_softplus && isinf(x[k])) want = x[k] > 0 ? INFINITY : 0;
        expect(cpu->name, f->name, x[k], y[k], want);
      }
    }
  }
}

static void tails_and_misaligned_arrays_have_the_bits_of_full_vectors (void **state) {
  enum { M = 256 };
  float x[M + 16], full[M], y[M + 64], b[M];
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    const struct peri__cpu *cpu = peri__cpu_level(levels[l]);
    if (!cpu) continue;
    for (int i = 0; i < M; i++) b[i] = (float)uniform(0.1, 3);
    for (int i = 0; i < NFUNCTIONS + PERI_N_BINARY; i++) {
      const function *f = i < NFUNCTIONS ? &functions[i] : NULL;
      for (int k = 0; k < M; k++) x[k] = (float)uniform(0.1, 3);
      if (f)
        unary(cpu->math->unary[f->id], M, x, full, f->p);
      else
        binary(cpu->math->binary[i - NFUNCTIONS], M, x, 1, b, 1, full);
      for (int64_t n = 0; n <= 33; n++)
        for (int off = 0; off < 5; off++) {
          for (int k = 0; k < M + 64; k++) y[k] = 7777;
          if (f)
            unary(cpu->math->unary[f->id], n, x + off, y + 1 + off, f->p);
          else
            binary(cpu->math->binary[i - NFUNCTIONS], n, x + off, 1, b + off, 1, y + 1 + off);
          assert_memory_equal(y + 1 + off, full + off, (size_t)n * sizeof *y);
          assert_true(y[off] == 7777 && y[1 + off + n] == 7777);
        }
    }
  }
}

static void one_operand_for_all_has_the_bits_of_a_filled_array (void **state) {
  enum { M = 61 };
  float a[M], b[M], filled[M], y[M], want[M];
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    const struct peri__cpu *cpu = peri__cpu_level(levels[l]);
    if (!cpu) continue;
    for (int id = 0; id < PERI_N_BINARY; id++) {
      for (int i = 0; i < M; i++) {
        a[i] = (float)uniform(-3, 3);
        b[i] = (float)uniform(-3, 3);
        filled[i] = 1.75f;
      }
      binary(cpu->math->binary[id], M, a, 1, filled, 1, want);
      binary(cpu->math->binary[id], M, a, 1, filled, 0, y);
      assert_memory_equal(y, want, sizeof y);
      binary(cpu->math->binary[id], M, filled, 1, b, 1, want);
      binary(cpu->math->binary[id], M, filled, 0, b, 1, y);
      assert_memory_equal(y, want, sizeof y);
    }
  }
}

static void activation_gradients_are_accurate (void **state) {
  static float x[N], g[N], y[N];
  static const int ids[] = { PERI_MATH_gelu_tanh_backward, PERI_MATH_gelu_erf_backward,
                             PERI_MATH_silu_backward };
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    const struct peri__cpu *cpu = peri__cpu_level(levels[l]);
    if (!cpu) continue;
    for (int k = 0; k < 3; k++) {
      for (int i = 0; i < N; i++) {
        x[i] = (float)uniform(-12, 12);
        g[i] = 1;
      }
      x[0] = INFINITY;
      x[1] = -INFINITY;
      binary(cpu->math->binary[ids[k]], N, x, 1, g, 1, y);
      assert_true(y[0] == 1 && y[1] == 0);
      for (int i = 2; i < N; i++) {
        double v = (double)x[i], s = logistic(k == 0 ? two_u(v) : v), want;
        if (k == 0)
          want = s + v * s * (1 - s) * 1.5957691216057308 * (1 + 3 * 0.044715 * v * v);
        else if (k == 1)
          want = 0.5 * erfc(-v * sqrt(0.5)) + v * exp(-v * v / 2) * 0.3989422804014327;
        else
          want = s * (1 + v * (1 - s));
        if (fabs((double)y[i] - want) > 2e-6) /* 2 u is about 100 where the gradient is steepest */
          fail_msg("%s gradient %d at %a is %a, expected %a", cpu->name, k, v, (double)y[i], want);
      }
    }
  }
}

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
    cmocka_unit_test(functions_are_accurate),
    cmocka_unit_test(special_values_are_those_of_the_library),
    cmocka_unit_test(tails_and_misaligned_arrays_have_the_bits_of_full_vectors),
    cmocka_unit_test(one_operand_for_all_has_the_bits_of_a_filled_array),
    cmocka_unit_test(activation_gradients_are_accurate),
    cmocka_unit_test(row_reductions_match_exact_ones),
    cmocka_unit_test(column_reductions_match_exact_ones),
    cmocka_unit_test(half_precision_agrees_with_the_scalar_conversion),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
