/*
** test_math.c - the array kernels at every SIMD level: errors in units in the last place against f64,
** special values, tails and misaligned arrays with the bits of full vectors. Every function has a row
** of what it may err by; one without fails.
*/
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "array_numbers.h"
#include "cpu/cpu.h"
#include "cpu/nn.h"
#include "op/activation.h"

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
static double r_sign (double x) { return x != x ? x : (x > 0) - (x < 0); }
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
  double (*exact)(double x);
  double lo, hi; /* where errors are measured */
  double ulps;
  double within; /* if not 0: also good when the error is below within * (|x| + 1) */
  double p[2];
  const peri__act *act; /* exact NULL: the f64 kernel of this one */
} function;

/* gelu loses relative accuracy in the far left tail, where it is about -1e-6: see vec_act.h */
#define ROW(name, ...) [PERI_MATH_##name] = { #name, __VA_ARGS__, NULL }
static const function rows[PERI_N_UNARY] = {
  ROW(neg, r_neg, -1e30, 1e30, 0, 0, { 0, 0 }),
  ROW(abs, fabs, -1e30, 1e30, 0, 0, { 0, 0 }),
  ROW(sign, r_sign, -1e30, 1e30, 0, 0, { 0, 0 }),
  ROW(exp, exp, -110, 95, 1.1, 0, { 0, 0 }),
  ROW(expm1, expm1, -30, 95, 1.8, 0, { 0, 0 }),
  ROW(log, log, 0, FLT_MAX, 1.1, 0, { 0, 0 }),
  ROW(log1p, log1p, -0.999, 1e6, 1.1, 0, { 0, 0 }),
  ROW(log2, log2, 0, FLT_MAX, 1.8, 0, { 0, 0 }),
  ROW(sqrt, sqrt, 0, FLT_MAX, 0.5001, 0, { 0, 0 }),
  ROW(rsqrt, r_rsqrt, 1e-37, FLT_MAX, 1.6, 0, { 0, 0 }),
  ROW(square, r_square, -1e18, 1e18, 0.5001, 0, { 0, 0 }),
  ROW(reciprocal, r_reciprocal, -1e30, 1e30, 0.5001, 0, { 0, 0 }),
  ROW(sin, sin, -2e6, 2e6, 1.8, 0, { 0, 0 }),
  ROW(cos, cos, -2e6, 2e6, 1.8, 0, { 0, 0 }),
  ROW(tanh, tanh, -12, 12, 3, 0, { 0, 0 }),
  ROW(sigmoid, logistic, -110, 30, 3, 0, { 0, 0 }),
  ROW(relu, r_relu, -10, 10, 0, 0, { 0, 0 }),
  ROW(leaky_relu, r_leaky, -10, 10, 0.5001, 0, { 0.01, 0 }),
  ROW(elu, r_elu, -20, 10, 1.8, 0, { 1, 0 }),
  ROW(gelu_tanh, r_gelu_tanh, -12, 12, 4, 4e-7, { 0, 0 }),
  ROW(gelu, r_gelu_erf, -12, 12, 4, 4e-7, { 0, 0 }),
  ROW(silu, r_silu, -85, 30, 4, 0, { 0, 0 }),
  ROW(softplus, r_softplus, -100, 30, 3, 0, { 1, 1e9 }),
  ROW(erf, erf, -5, 5, 2, 0, { 0, 0 }),
  ROW(floor, floor, -1e6, 1e6, 0, 0, { 0, 0 }),
  ROW(ceil, ceil, -1e6, 1e6, 0, 0, { 0, 0 }),
  ROW(round, nearbyint, -1e6, 1e6, 0, 0, { 0, 0 }),
  ROW(clamp, r_clamp, -4, 4, 0, 0, { -1, 2 }),
};
#define NAME(name) #name,
static const char *const names[] = { PERI_UNARY(NAME) };

/* The row of a function. An activation that has none is held to the f64 kernel of its block. */
static function function_of (int id) {
  function f = rows[id];
  if (f.name == NULL && id >= PERI_N_PLAIN_UNARY) {
    const peri__act *act = peri__act_at(id - PERI_N_PLAIN_UNARY);
    f = (function){ act->name, NULL, -12, 12, 4, 4e-7, { 0, 0 }, act };
  }
  if (f.name == NULL) fail_msg("%s has no row of what it may err by", names[id]);
  return f;
}
static double exact_of (const function *f, double x) {
  const void *in = &x;
  const int64_t step = 1;
  double y;
  if (f->exact) return f->exact(x);
  f->act->f64(1, &in, &step, &y, NULL);
  return y;
}

/* The same of two variables, measured on [lo, hi] x [lo, hi] without the divisors near 0. */
typedef struct function2 {
  const char *name;
  double (*exact)(double a, double b);
  double lo, hi, ulps;
} function2;
static double add (double a, double b) { return a + b; }
static double sub (double a, double b) { return a - b; }
static double mul (double a, double b) { return a * b; }
static double quotient (double a, double b) { return a / b; }
static double greater (double a, double b) { return a > b ? a : b; }
static double lesser (double a, double b) { return a < b ? a : b; }
static double whole (double a, double b) { return floor((double)((float)a / (float)b)); }
static double rest (double a, double b) {
  double m = fmod(a, b);
  return m != 0 && (m < 0) != (b < 0) ? m + b : m;
}
#define ROW2(name, ...) [PERI_MATH_##name] = { #name, __VA_ARGS__ }
static const function2 rows2[PERI_N_BINARY] = {
  ROW2(add, add, -1e6, 1e6, 0.5001),    ROW2(sub, sub, -1e6, 1e6, 0.5001),
  ROW2(mul, mul, -1e6, 1e6, 0.5001),    ROW2(div, quotient, -1e6, 1e6, 0.5001),
  ROW2(maximum, greater, -1e6, 1e6, 0), ROW2(minimum, lesser, -1e6, 1e6, 0),
  ROW2(floordiv, whole, -1e3, 1e3, 0),  ROW2(mod, rest, -1e3, 1e3, 0.5001),
  ROW2(pow, pow, 0.01, 10, 1),          ROW2(atan2, atan2, -1e3, 1e3, 1.5),
};
static const char *const names2[] = { PERI_BINARY(NAME) };

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
    double exact = exact_of(f, (double)x[i]), error = ulps(y[i], exact);
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
    for (int i = 0; i < PERI_N_UNARY; i++) {
      const function f = function_of(i);
      sample(&f, x);
      unary(cpu->math->unary[i], N, x, y, f.p);
      check_values(cpu->name, &f, x, y, N);
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
    for (int i = 0; i < PERI_N_UNARY; i++) {
      const function f = function_of(i);
      bool act = i >= PERI_N_PLAIN_UNARY;
      unary(cpu->math->unary[i], K, x, y, f.p);
      for (int k = 0; k < K; k++) {
        double want = f.exact ? f.exact((double)x[k]) : exact_of(&f, (double)x[k]);
        if (act) /* the f64 kernels have the limits, where x * gate would be NaN */
          peri__act_at(i - PERI_N_PLAIN_UNARY)
              ->f64(1, (const void *[]){ &(double){ (double)x[k] } }, (const int64_t[]){ 1 }, &want,
                    NULL);
        if (act && want == 0 && y[k] == 0) want = (double)y[k]; /* relu: of either sign */
        if (act && x[k] != 0 && fabsf(x[k]) < 1e-40f) continue; /* half of the least denormal */
        if (i == PERI_MATH_square && isinf(y[k])) want = INFINITY;
        if (i == PERI_MATH_softplus && isinf(x[k])) want = x[k] > 0 ? INFINITY : 0;
        expect(cpu->name, f.name, x[k], y[k], want);
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
    for (int i = 0; i < PERI_N_UNARY + PERI_N_BINARY; i++) {
      const function one = function_of(i < PERI_N_UNARY ? i : 0),
                     *f = i < PERI_N_UNARY ? &one : NULL;
      for (int k = 0; k < M; k++) x[k] = (float)uniform(0.1, 3);
      if (f)
        unary(cpu->math->unary[i], M, x, full, f->p);
      else
        binary(cpu->math->binary[i - PERI_N_UNARY], M, x, 1, b, 1, full);
      for (int64_t n = 0; n <= 33; n++)
        for (int off = 0; off < 5; off++) {
          for (int k = 0; k < M + 64; k++) y[k] = 7777;
          if (f)
            unary(cpu->math->unary[i], n, x + off, y + 1 + off, f->p);
          else
            binary(cpu->math->binary[i - PERI_N_UNARY], n, x + off, 1, b + off, 1, y + 1 + off);
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

static void functions_of_two_variables_are_accurate (void **state) {
  static float a[N], b[N], y[N];
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    const struct peri__cpu *cpu = peri__cpu_level(levels[l]);
    if (!cpu) continue;
    for (int id = 0; id < PERI_N_PLAIN_BINARY; id++) { /* the others: gradients of activations */
      const function2 *f = &rows2[id];
      if (f->name == NULL) fail_msg("%s has no row of what it may err by", names2[id]);
      for (int i = 0; i < N; i++) {
        a[i] = (float)uniform(f->lo, f->hi);
        do b[i] = (float)uniform(f->lo, f->hi);
        while (fabsf(b[i]) < 0.01f);
      }
      binary(cpu->math->binary[id], N, a, 1, b, 1, y);
      for (int i = 0; i < N; i++) {
        double exact = f->exact((double)a[i], (double)b[i]);
        if (ulps(y[i], exact) > f->ulps)
          fail_msg("%s %s(%a, %a) = %a, expected %a", cpu->name, f->name, (double)a[i],
                   (double)b[i], (double)y[i], exact);
      }
    }
  }
}

/* Gradients lose relative accuracy near their zeros: 2e-6 of the largest slope, as the argument of a
** sigmoid is about 100 where gelu is steepest. Held to the f64 kernels, which test_op_gradients.lua
** holds to differences. */
static void gradients_of_activations_are_accurate (void **state) {
  static float x[N], g[N], y[N];
  const peri__act *act;
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    const struct peri__cpu *cpu = peri__cpu_level(levels[l]);
    if (!cpu) continue;
    for (int k = 0; (act = peri__act_at(k)) != NULL; k++) {
      for (int i = 0; i < N; i++) {
        x[i] = (float)(act->from_output ? uniform(-1, 1) : uniform(-12, 12));
        g[i] = 1;
      }
      x[0] = act->from_output ? 1 : INFINITY;
      x[1] = act->from_output ? -1 : -INFINITY;
      binary(cpu->math->binary[act->binary], N, x, 1, g, 1, y);
      for (int i = 0; i < N; i++) {
        double v = (double)x[i], one = 1, want;
        act->back_f64(1, (const void *[]){ &v, &one }, (const int64_t[]){ 1, 1 }, &want, NULL);
        if (isinf(want) ? (double)y[i] != want
                        : fabs((double)y[i] - want) > 2e-6 * fmax(1, fabs(want)))
          fail_msg("%s gradient of %s at %a is %a, expected %a", cpu->name, act->name, v,
                   (double)y[i], want);
      }
    }
  }
}

/* Gates give the bits of the two ops that they stand for. */
static void gates_have_the_bits_of_their_parts (void **state) {
  enum { M = 83 };
  float x[M], u[M], g[M], y[M], t[M], dx[M], du[M], want[M];
  const peri__act *act;
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    const struct peri__cpu *cpu = peri__cpu_level(levels[l]);
    if (!cpu) continue;
    const struct peri__math_kernels *k = cpu->math;
    for (int i = 0; (act = peri__act_at(i)) != NULL; i++)
      for (int64_t n = 1; n <= M; n++) {
        for (int j = 0; j < M; j++) {
          x[j] = (float)uniform(-9, 9);
          u[j] = (float)uniform(-3, 3);
          g[j] = (float)uniform(-3, 3);
        }
        x[n / 2] = n % 2 ? 2e4f : -2e4f;
        unary(k->unary[act->unary], n, x, y, NULL);
        binary(k->binary[PERI_MATH_mul], n, y, 1, u, 1, want);
        k->gate[i].forward(x, u, t, n);
        assert_memory_equal(t, want, (size_t)n * sizeof *t);
        k->gate[i].back(x, u, g, dx, du, n);
        binary(k->binary[PERI_MATH_mul], n, g, 1, y, 1, want);
        assert_memory_equal(du, want, (size_t)n * sizeof *t);
        binary(k->binary[PERI_MATH_mul], n, g, 1, u, 1, t);
        binary(k->binary[act->binary], n, act->from_output ? y : x, 1, t, 1, want);
        assert_memory_equal(dx, want, (size_t)n * sizeof *t);
      }
  }
}

static void sines_and_cosines_of_angles_are_accurate (void **state) {
  static float angle[N], c[N], s[N];
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    const struct peri__cpu *cpu = peri__cpu_level(levels[l]);
    if (!cpu) continue;
    for (int i = 0; i < N; i++) angle[i] = (float)uniform(-1e6, 1e6);
    cpu->nn->sincos(N, angle, 1, c, s);
    for (int i = 0; i < N; i++) {
      assert_true(ulps(c[i], cos((double)angle[i])) <= 1.8);
      assert_true(ulps(s[i], sin((double)angle[i])) <= 1.8);
    }
  }
}

/* ---- the headers hold nothing that is not measured ---- */

static bool is_word (const char *name, size_t n, const char *list) {
  for (; *list; list += strcspn(list, " "), list += *list == ' ')
    if (strcspn(list, " ") == n && memcmp(list, name, n) == 0) return true;
  return false;
}

static bool is_measured (const char *name, size_t n) {
  static const char parts[] = /* of others, and bits */
      "narrow copysign pow2 exp_reduce exp_poly log_split log_tail log_special trig act_left "
      "act_right normal_cdf gelu_tanh_2u mish_exp";
  for (int i = 0; i < PERI_N_UNARY; i++)
    if (strlen(names[i]) == n && memcmp(names[i], name, n) == 0) return true;
  if (n > 5 && memcmp(name + n - 5, "_back", 5) == 0) {
    const peri__act *act;
    for (int i = 0; (act = peri__act_at(i)) != NULL; i++)
      if (strlen(act->name) == n - 5 && memcmp(act->name, name, n - 5) == 0) return true;
  }
  return is_word(name, n, parts);
}

static void every_vector_function_has_a_row (void **state) {
  static const char *const files[] = { "/runtime/cpu/vec_math.h", "/runtime/cpu/vec_act.h" };
  char line[512];
  int found = 0;
  (void)state;
  for (int id = 0; id < PERI_N_UNARY; id++) function_of(id);
  for (int i = 0; i < 2; i++) {
    char path[1024];
    snprintf(path, sizeof path, "%s%s", PERI_SOURCE_DIR, files[i]);
    FILE *f = fopen(path, "r");
    if (f == NULL) skip();
    while (fgets(line, sizeof line, f) != NULL) {
      static const char start[] = "static inline vf v_";
      if (strncmp(line, start, sizeof start - 1) != 0) continue;
      const char *name = line + sizeof start - 1;
      size_t n = strcspn(name, " (");
      found++;
      if (!is_measured(name, n))
        fail_msg("v_%.*s of %s is neither in a list of cpu/math.h nor said to be a part of another",
                 (int)n, name, files[i]);
    }
    fclose(f);
  }
  assert_true(found > 40);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(functions_are_accurate),
    cmocka_unit_test(special_values_are_those_of_the_library),
    cmocka_unit_test(tails_and_misaligned_arrays_have_the_bits_of_full_vectors),
    cmocka_unit_test(one_operand_for_all_has_the_bits_of_a_filled_array),
    cmocka_unit_test(functions_of_two_variables_are_accurate),
    cmocka_unit_test(gradients_of_activations_are_accurate),
    cmocka_unit_test(gates_have_the_bits_of_their_parts),
    cmocka_unit_test(sines_and_cosines_of_angles_are_accurate),
    cmocka_unit_test(every_vector_function_has_a_row),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
