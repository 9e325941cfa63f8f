/*
** test_rng.c - the generator's known answers and what the random ops promise: distributions,
** bounds, permutations, and results that depend on seed and offset alone.
*/
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "perilune.h"
#include "run_op.h"
#include "memory_of.h"

static peri_ctx *ctx;

static peri_ctx *open_with (int threads, uint64_t seed, peri_simd simd) {
  peri_ctx *c = NULL;
  peri_options o;
  peri_options_init(&o);
  o.threads = threads;
  o.seed = seed;
  o.simd = simd;
  assert_int_equal(peri_open(&o, &c), PERI_OK);
  return c;
}

static int open_ctx (void **state) {
  (void)state;
  ctx = open_with(2, 42, PERI_SIMD_AUTO);
  return 0;
}

static int close_ctx (void **state) {
  (void)state;
  int leaked = memory_of(ctx).tensors != 0;
  peri_close(ctx);
  return leaked;
}

static peri_status try_run (peri_ctx *c, const char *name, const peri_attr *attr,
                            peri_tensor **out) {
  const peri_op *op = peri_op_find(name);
  assert_non_null(op);
  return run_op(c, op, 0, NULL, attr, out);
}

static peri_tensor *run (peri_ctx *c, const char *name, const peri_attr *attr) {
  peri_tensor *t = NULL;
  if (try_run(c, name, attr, &t) != PERI_OK) fail_msg("%s: %s", name, peri_message(c));
  return t;
}

#define SHAPE(...)                                           \
  {                                                          \
    .v = (const int64_t[]){ __VA_ARGS__ },                   \
    .n = (int)(sizeof((const int64_t[]){ __VA_ARGS__ }) / 8) \
  }
#define ATTRS(...) \
  (const peri_attr[]) { __VA_ARGS__ }

/* ---- Philox ---- */

/* From kat_vectors of Random123 1.14 (Salmon et al., SC11), philox4x32 with 10 rounds. */
static void philox_gives_the_known_answers (void **state) {
  (void)state;
  static const struct {
    uint32_t counter[4], key[2], want[4];
  } known[] = {
    { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
    { { 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff },
      { 0xffffffff, 0xffffffff },
      { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
    { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 },
      { 0xa4093822, 0x299f31d0 },
      { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
  };
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    uint32_t out[4];
    peri_philox(known[i].counter, known[i].key, out);
    assert_memory_equal(out, known[i].want, sizeof out);
  }
}

/* The layout that perilune.h states: element e comes from block e / 4 of the op's offset. */
static void rand_is_philox_word_by_word (void **state) {
  (void)state;
  peri_rng_set(ctx, (peri_rng){ 0x123456789abcdef0u, 5 });
  peri_tensor *t = run(ctx, "rand", ATTRS(SHAPE(7), { .i = PERI_F32 }));
  const float *v = peri_data(t);
  for (uint32_t e = 0; e < 7; e++) {
    uint32_t w[4];
    peri_philox((const uint32_t[]){ e / 4, 0, 5, 0 },
                (const uint32_t[]){ 0x9abcdef0u, 0x12345678u }, w);
    assert_true(v[e] == (float)(w[e % 4] >> 8) * 0x1p-24f);
  }
  assert_int_equal(peri_rng_get(ctx).offset, 6);
  peri_release(t);
}

/* ---- distributions ---- */

#define N 400000

static void moments (peri_tensor *t, double *mean, double *var, double *fourth, double *low,
                     double *high) {
  double s1 = 0, s2 = 0, s4 = 0;
  *low = INFINITY;
  *high = -INFINITY;
  for (int64_t i = 0; i < peri_numel(t); i++) {
    double v = 0;
    assert_int_equal(peri_item(t, i, &v), PERI_OK);
    s1 += v;
    s2 += v * v;
    s4 += v * v * v * v;
    *low = v < *low ? v : *low;
    *high = v > *high ? v : *high;
  }
  double n = (double)peri_numel(t);
  *mean = s1 / n;
  *var = s2 / n - *mean * *mean;
  *fourth = s4 / n;
}

/* Tolerances: five standard errors of N draws, and half a step of the dtype where that is more. */
static void rand_has_the_moments_of_a_uniform (void **state) {
  (void)state;
  for (int d = PERI_F16; d < PERI_NDTYPE; d++) {
    double mean, var, fourth, low, high,
        step = d == PERI_BF16  ? 0x1p-8
               : d == PERI_F16 ? 0x1p-11
                               : 0;
    peri_tensor *t = run(ctx, "rand", ATTRS(SHAPE(N), { .i = d }));
    moments(t, &mean, &var, &fourth, &low, &high);
    assert_true(low >= 0 && high < 1);
    assert_true(fabs(mean + step / 2 - 0.5) < 5 * sqrt(1.0 / 12 / N));
    assert_true(fabs(var - 1.0 / 12) < 5 * sqrt(1.0 / 180 / N) + step);
    peri_release(t);
  }
}

static void randn_has_the_moments_of_a_normal (void **state) {
  (void)state;
  for (int d = PERI_F16; d < PERI_NDTYPE; d++) {
    double mean, var, fourth, low, high;
    peri_tensor *t = run(ctx, "randn", ATTRS(SHAPE(N), { .i = d }));
    moments(t, &mean, &var, &fourth, &low, &high);
    assert_true(fabs(mean) < 5 / sqrt((double)N));
    assert_true(fabs(var - 1) < 5 * sqrt(2.0 / N));
    assert_true(fabs(fourth - 3) < 5 * sqrt(96.0 / N));
    assert_true(high > 4 && high < 7 && low < -4 && low > -7); /* N draws pass 4 about 12 times */
    peri_release(t);
  }
}

/* f32 normals are Box and Muller's to the last digits of f32. */
static void randn_equals_the_formula (void **state) {
  (void)state;
  peri_rng r = peri_rng_get(ctx);
  peri_tensor *t = run(ctx, "randn", ATTRS(SHAPE(4000), { .i = PERI_F32 }));
  const float *v = peri_data(t);
  for (uint32_t e = 0; e < 4000; e += 2) {
    uint32_t w[4], key[2] = { (uint32_t)r.seed, (uint32_t)(r.seed >> 32) };
    peri_philox((const uint32_t[]){ e / 4, 0, (uint32_t)r.offset, 0 }, key, w);
    double radius = sqrt(-2 * log((w[e % 4] + 1.0) / 4294967296.0));
    double angle = 6.283185307179586 * (w[e % 4 + 1] / 4294967296.0);
    assert_true(fabs(v[e] - radius * cos(angle)) < 1e-7 * (1 + radius)); /* f32 rounds at 6e-8 */
    assert_true(fabs(v[e + 1] - radius * sin(angle)) < 1e-7 * (1 + radius));
  }
  peri_release(t);
}

static void bernoulli_follows_p (void **state) {
  (void)state;
  static const double ps[] = { 0, 0.25, 1 };
  const peri_op *op = peri_op_find("bernoulli");
  for (int d = PERI_F16; d < PERI_NDTYPE; d++)
    for (size_t k = 0; k < 3; k++) {
      double mean, var, fourth, low, high;
      peri_tensor *p = run(ctx, "full", ATTRS(SHAPE(N), { .f = ps[k] }, { .i = d })), *t = NULL;
      assert_int_equal(run_op(ctx, op, 1, &p, NULL, &t), PERI_OK);
      assert_int_equal(peri_dtype_of(t), d);
      moments(t, &mean, &var, &fourth, &low, &high);
      assert_true(fabs(mean - ps[k]) <= 5 * sqrt(ps[k] * (1 - ps[k]) / N));
      assert_true((low == 0 || low == 1) && (high == 0 || high == 1));
      peri_release(p);
      peri_release(t);
    }
  peri_tensor *p = run(ctx, "full", ATTRS(SHAPE(3), { .f = 1.5 }, { .i = PERI_F32 })), *t = NULL;
  assert_int_equal(run_op(ctx, op, 1, &p, NULL, &t), PERI_EINVAL);
  assert_non_null(strstr(peri_message(ctx), "1.5"));
  peri_release(p);
}

/* ---- integers ---- */

static void randint_is_even_over_its_range (void **state) {
  (void)state;
  static const int dtypes[] = { PERI_U8, PERI_I32, PERI_I64, PERI_F32, PERI_F64 };
  for (size_t k = 0; k < sizeof dtypes / sizeof *dtypes; k++) {
    double seen[7] = { 0 }, chi = 0;
    peri_tensor *t =
        run(ctx, "randint", ATTRS({ .i = 3 }, { .i = 10 }, SHAPE(70000), { .i = dtypes[k] }));
    assert_int_equal(peri_dtype_of(t), dtypes[k]);
    for (int64_t i = 0; i < 70000; i++) {
      double v = 0;
      peri_item(t, i, &v);
      assert_true(v >= 3 && v < 10 && v == floor(v));
      seen[(int)v - 3]++;
    }
    for (int i = 0; i < 7; i++) chi += (seen[i] - 10000) * (seen[i] - 10000) / 10000;
    assert_true(chi < 30); /* 6 degrees of freedom: exceeded once in 25,000 */
    peri_release(t);
  }
}

/* A range of 3/4 of 2^64: without redraws the middle third would be hit twice as often. */
static void randint_is_unbiased_over_huge_ranges (void **state) {
  (void)state;
  int64_t low = INT64_MIN, high = INT64_C(1) << 62, n = 60000;
  double part[3] = { 0 };
  peri_tensor *t =
      run(ctx, "randint", ATTRS({ .i = low }, { .i = high }, SHAPE(60000), { .i = PERI_I64 }));
  const int64_t *v = peri_data(t);
  for (int64_t i = 0; i < n; i++) {
    assert_true(v[i] < high);
    part[((uint64_t)v[i] - (uint64_t)low) >> 62]++;
  }
  for (int i = 0; i < 3; i++) assert_true(fabs(part[i] / (double)n - 1.0 / 3) < 0.01); /* 5 sigma */
  peri_release(t);
}

static void randint_refuses_what_does_not_fit (void **state) {
  (void)state;
  peri_tensor *t = NULL;
  assert_int_equal(
      try_run(ctx, "randint", ATTRS({ .i = 5 }, { .i = 5 }, SHAPE(2), { .i = PERI_I64 }), &t),
      PERI_EINVAL);
  assert_non_null(strstr(peri_message(ctx), "low 5 is not below high 5"));
  assert_int_equal(
      try_run(ctx, "randint", ATTRS({ .i = -1 }, { .i = 5 }, SHAPE(2), { .i = PERI_U8 }), &t),
      PERI_EINVAL);
  assert_int_equal(
      try_run(ctx, "randint", ATTRS({ .i = 0 }, { .i = 257 }, SHAPE(2), { .i = PERI_U8 }), &t),
      PERI_EINVAL);
  assert_int_equal(try_run(ctx, "rand", ATTRS(SHAPE(2), { .i = PERI_I64 }), &t), PERI_EDTYPE);
  assert_int_equal(try_run(ctx, "randperm", ATTRS({ .i = -1 }, { .i = PERI_I64 }), &t),
                   PERI_EINVAL);
}

static void randperm_is_a_permutation (void **state) {
  (void)state;
  static const int dtypes[] = { PERI_I64, PERI_I32 };
  for (int k = 0; k < 2; k++)
    for (int64_t n = 0; n < 40; n += 13) {
      peri_tensor *t = run(ctx, "randperm", ATTRS({ .i = n }, { .i = dtypes[k] }));
      int seen[40] = { 0 };
      assert_int_equal(peri_numel(t), n);
      for (int64_t i = 0; i < n; i++) {
        double v = 0;
        peri_item(t, i, &v);
        assert_true(v >= 0 && v < (double)n && seen[(int)v]++ == 0);
      }
      peri_release(t);
    }
}

static void all_orders_of_randperm_are_equally_likely (void **state) {
  (void)state;
  double seen[27] = { 0 }, chi = 0;
  for (int i = 0; i < 6000; i++) {
    peri_tensor *t = run(ctx, "randperm", ATTRS({ .i = 3 }, { .i = PERI_I64 }));
    const int64_t *v = peri_data(t);
    seen[v[0] * 9 + v[1] * 3 + v[2]]++;
    peri_release(t);
  }
  for (int i = 0; i < 27; i++)
    if (seen[i] > 0) chi += (seen[i] - 1000) * (seen[i] - 1000) / 1000;
  assert_true(chi < 27); /* 5 degrees of freedom: exceeded once in 15,000 */
}

/* ---- reproducibility ---- */

static void results_depend_on_seed_and_offset_alone (void **state) {
  (void)state;
  static const char *const names[] = { "rand", "randn", "randint" };
  for (int d = PERI_I64; d < PERI_NDTYPE; d++)
    for (int k = 0; k < 3; k++) {
      if ((k < 2) == (d == PERI_I64) || (k == 2 && d != PERI_I64)) continue;
      peri_attr size = SHAPE(50001), dtype = { .i = d };
      peri_attr three[] = { size, dtype }, four[] = { { .i = -9 }, { .i = 1000 }, size, dtype };
      size_t bytes = 50001 * peri_dtype_size((peri_dtype)d);
      void *first = malloc(bytes);
      assert_non_null(first);
      for (int threads = 1; threads <= 5; threads += 2) {
        peri_ctx *c = open_with(threads, 99, threads == 1 ? PERI_SIMD_PORTABLE : PERI_SIMD_AUTO);
        peri_tensor *t = run(c, names[k], k == 2 ? four : three);
        if (threads == 1)
          memcpy(first, peri_data(t), bytes);
        else
          assert_memory_equal(first, peri_data(t), bytes);
        peri_tensor *next = run(c, names[k], k == 2 ? four : three);
        assert_memory_not_equal(first, peri_data(next), bytes);
        peri_rng_set(c, (peri_rng){ 99, 0 });
        peri_tensor *again = run(c, names[k], k == 2 ? four : three);
        assert_memory_equal(first, peri_data(again), bytes);
        peri_release(t);
        peri_release(next);
        peri_release(again);
        peri_close(c);
      }
      free(first);
    }
}

/* A shorter draw is the beginning of a longer one. */
static void elements_do_not_depend_on_the_size (void **state) {
  (void)state;
  static const char *const names[] = { "rand", "randn" };
  for (int d = PERI_F16; d < PERI_NDTYPE; d++)
    for (int k = 0; k < 2; k++) {
      peri_rng r = peri_rng_get(ctx);
      peri_tensor *a = run(ctx, names[k], ATTRS(SHAPE(13), { .i = d }));
      peri_rng_set(ctx, r);
      peri_tensor *b = run(ctx, names[k], ATTRS(SHAPE(5, 4), { .i = d }));
      assert_memory_equal(peri_data(a), peri_data(b), 13 * peri_dtype_size((peri_dtype)d));
      peri_release(a);
      peri_release(b);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_ctx, close_ctx)

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(philox_gives_the_known_answers),
    TEST(rand_is_philox_word_by_word),
    TEST(rand_has_the_moments_of_a_uniform),
    TEST(randn_has_the_moments_of_a_normal),
    TEST(randn_equals_the_formula),
    TEST(bernoulli_follows_p),
    TEST(randint_is_even_over_its_range),
    TEST(randint_is_unbiased_over_huge_ranges),
    TEST(randint_refuses_what_does_not_fit),
    TEST(randperm_is_a_permutation),
    TEST(all_orders_of_randperm_are_equally_likely),
    TEST(results_depend_on_seed_and_offset_alone),
    TEST(elements_do_not_depend_on_the_size),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
