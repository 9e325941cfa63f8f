/*
** test_gemm.c - the f32 product at every SIMD level against f64 arithmetic, and its promise: a row
** has the same bits whatever surrounds it.
*/
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "levels.h"

#include "cpu/gemm.h"

/* One product: sizes, layouts, the way that the chains begin. */
typedef struct problem {
  int64_t m, n, k, lda, ldb, ldc;
  bool ta, tb;
  int begin; /* 0 = zero, 1 = C, 2 = bias */
  float *a, *b, *c, *bias;
} problem;

static problem make (int64_t m, int64_t n, int64_t k, bool ta, bool tb, int begin, int64_t gap) {
  problem p = {
    m, n, k, (ta ? m : k) + gap, (tb ? k : n) + gap, n + gap, ta, tb, begin, NULL, NULL, NULL, NULL
  };
  p.a = fresh((ta ? k : m) * p.lda);
  p.b = fresh((tb ? n : k) * p.ldb);
  p.c = fresh(m * p.ldc);
  p.bias = fresh(n);
  return p;
}

static void drop (problem *p) {
  test_free(p->a);
  test_free(p->b);
  test_free(p->c);
  test_free(p->bias);
}

static peri__gemm product_of (const problem *p, float *c) {
  return (peri__gemm){ .m = p->m,
                       .n = p->n,
                       .k = p->k,
                       .a = p->a,
                       .ars = p->ta ? 1 : p->lda,
                       .acs = p->ta ? p->lda : 1,
                       .b = p->b,
                       .brs = p->tb ? 1 : p->ldb,
                       .bcs = p->tb ? p->ldb : 1,
                       .c = c,
                       .crs = p->ldc,
                       .accumulate = p->begin == 1,
                       .bias = p->begin == 2 ? p->bias : NULL };
}

static float *run (peri_ctx *ctx, const problem *p) {
  size_t bytes = (size_t)(p->m * p->ldc + 1) * sizeof(float);
  float *c = test_malloc(bytes);
  memcpy(c, p->c, bytes - sizeof *c);
  peri__gemm g = product_of(p, c);
  assert_int_equal(peri__gemm_f32(ctx, &g), PERI_OK);
  return c;
}

/* Each element within 2 sqrt(k) u sum |a| |b| of the f64 value; gaps between rows untouched. */
static void check (const problem *p, const float *c) {
  peri__gemm g = product_of(p, NULL);
  for (int64_t i = 0; i < p->m; i++) {
    for (int64_t j = 0; j < p->n; j++) {
      double first = p->begin == 1 ? p->c[i * p->ldc + j] : p->begin == 2 ? p->bias[j] : 0;
      double sum = first, size = fabs(first);
      for (int64_t q = 0; q < p->k; q++) {
        double t = (double)p->a[i * g.ars + q * g.acs] * p->b[q * g.brs + j * g.bcs];
        sum += t;
        size += fabs(t);
      }
      double bound = 2 * sqrt((double)p->k + 1) * 0x1p-24 * size;
      if (!(fabs(c[i * p->ldc + j] - sum) <= bound))
        fail_msg("%d x %d x %d%s%s: [%d][%d] is %.9g, not %.9g", (int)p->m, (int)p->n, (int)p->k,
                 p->ta ? " ta" : "", p->tb ? " tb" : "", (int)i, (int)j, c[i * p->ldc + j], sum);
    }
    for (int64_t j = p->n; j < p->ldc; j++) assert_true(c[i * p->ldc + j] == p->c[i * p->ldc + j]);
  }
}

static void every_shape_and_layout_is_within_the_error_bound (void **state) {
  static const int64_t sizes[] = { 1,  2,  3,  4,  5,  6,  7,  8,   11,  12,  13,  15,  16, 17,
                                   24, 31, 32, 33, 47, 64, 65, 100, 127, 129, 255, 257, 300 };
  const uint32_t n = sizeof sizes / sizeof *sizes;
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    peri_ctx *ctx = open_level(levels[l], 2);
    if (ctx == NULL) continue;
    seed = 1;
    for (int t = 0; t < 400; t++) {
      uint32_t r[6];
      for (int i = 0; i < 6; i++) r[i] = (uint32_t)((uniform() + 1) * 0x1p20f);
      problem p = make(sizes[r[0] % n], sizes[r[1] % n], sizes[r[2] % n], r[3] % 2, r[3] / 2 % 2,
                       (int)(r[4] % 3), r[5] % 3);
      float *c = run(ctx, &p);
      check(&p, c);
      test_free(c);
      drop(&p);
    }
    peri_close(ctx);
  }
}

static void empty_sizes_leave_the_beginning_of_the_chain (void **state) {
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    peri_ctx *ctx = open_level(levels[l], 2);
    if (ctx == NULL) continue;
    for (int begin = 0; begin < 3; begin++) {
      problem p = make(5, 37, 0, false, false, begin, 1);
      float *c = run(ctx, &p);
      check(&p, c);
      test_free(c);
      drop(&p);
    }
    problem none = make(0, 4, 3, false, true, 0, 0), cols = make(4, 0, 3, false, true, 0, 0);
    test_free(run(ctx, &none));
    test_free(run(ctx, &cols));
    drop(&none);
    drop(&cols);
    peri_close(ctx);
  }
}

/* The chain is exact: with values that need no rounding the sum is the integer one. */
static void small_integers_are_exact (void **state) {
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    peri_ctx *ctx = open_level(levels[l], 2);
    if (ctx == NULL) continue;
    problem p = make(37, 70, 530, false, true, 0, 0);
    for (int64_t i = 0; i < 37 * 530; i++) p.a[i] = (float)(i % 7 - 3);
    for (int64_t i = 0; i < 70 * 530; i++) p.b[i] = (float)(i % 5 - 2);
    float *c = run(ctx, &p);
    for (int64_t i = 0; i < 37; i++)
      for (int64_t j = 0; j < 70; j++) {
        int64_t sum = 0;
        for (int64_t q = 0; q < 530; q++) sum += ((i * 530 + q) % 7 - 3) * ((j * 530 + q) % 5 - 2);
        assert_true(c[i * 70 + j] == (float)sum);
      }
    test_free(c);
    drop(&p);
    peri_close(ctx);
  }
}

/* Row r of the whole product, computed among rows [from, to) only. */
static void same_rows (peri_ctx *ctx, const problem *p, const float *want, int64_t from,
                       int64_t to) {
  problem part = *p;
  part.m = to - from;
  part.a = p->a + from * (p->ta ? 1 : p->lda);
  part.c = p->c + from * p->ldc;
  float *c = run(ctx, &part);
  for (int64_t i = 0; i < part.m; i++)
    assert_memory_equal(c + i * p->ldc, want + (from + i) * p->ldc, (size_t)p->n * sizeof *c);
  test_free(c);
}

static void a_row_has_the_same_bits_in_any_batch (void **state) {
  static const int64_t shapes[][2] = {
    { 33, 17 }, { 128, 128 }, { 96, 300 }, { 1, 64 }, { 257, 520 }
  };
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    peri_ctx *one = open_level(levels[l], 1), *two = open_level(levels[l], 2);
    peri_ctx *five = open_level(levels[l], 5);
    if (one == NULL) continue;
    for (int s = 0; s < 5; s++)
      for (int layout = 0; layout < 4; layout++) {
        seed = 3;
        problem p = make(600, shapes[s][0], shapes[s][1], layout & 1, layout & 2, layout % 3, 0);
        float *want = run(two, &p);
        static const int64_t cuts[][2] = { { 0, 1 },   { 599, 600 }, { 3, 7 },  { 100, 113 },
                                           { 17, 81 }, { 0, 300 },   { 0, 600 } };
        for (int i = 0; i < 7; i++) {
          same_rows(one, &p, want, cuts[i][0], cuts[i][1]);
          same_rows(two, &p, want, cuts[i][0], cuts[i][1]);
          same_rows(five, &p, want, cuts[i][0], cuts[i][1]);
        }
        test_free(want);
        drop(&p);
      }
    peri_close(one);
    peri_close(two);
    peri_close(five);
  }
}

static void transpose_in_place (const float *from, int64_t rows, int64_t cols, float *to) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < cols; j++) to[j * rows + i] = from[i * cols + j];
}

static void layouts_agree_bit_for_bit (void **state) {
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    peri_ctx *ctx = open_level(levels[l], 2);
    if (ctx == NULL) continue;
    for (int64_t m = 1; m <= 400; m = m * 3 + 1) {
      problem p = make(m, 75, 333, false, false, 2, 0), q = make(m, 75, 333, true, true, 2, 0);
      transpose_in_place(p.a, m, 333, q.a);
      transpose_in_place(p.b, 333, 75, q.b);
      memcpy(q.bias, p.bias, 75 * sizeof(float));
      float *c = run(ctx, &p), *d = run(ctx, &q);
      assert_memory_equal(c, d, (size_t)m * 75 * sizeof *c);
      test_free(c);
      test_free(d);
      drop(&p);
      drop(&q);
    }
    peri_close(ctx);
  }
}

static void packed_weights_single_thread_and_batches_agree (void **state) {
  (void)state;
  for (int l = 0; l < NLEVELS; l++) {
    peri_ctx *ctx = open_level(levels[l], 3);
    if (ctx == NULL) continue;
    for (int64_t m = 1; m <= 300; m = m * 4 + 3) {
      problem p = make(m, 203, 290, false, true, 2, 0);
      float *want = run(ctx, &p), *c = fresh(m * 203);
      peri__gemm g = product_of(&p, c);
      size_t bytes = peri__gemm_packed_size(ctx->cpu, p.n, p.k);
      float *packed = peri__block_get(ctx, bytes);
      peri__gemm_pack(ctx, p.n, p.k, p.b, g.brs, g.bcs, packed);
      g.packed = packed;
      assert_int_equal(peri__gemm_f32(ctx, &g), PERI_OK);
      assert_memory_equal(c, want, (size_t)(m * 203) * sizeof *c);
      peri__block_put(ctx, packed);

      g = product_of(&p, c);
      memset(c, 0, (size_t)(m * 203) * sizeof *c);
      size_t size = peri__gemm_scratch(ctx->cpu, m, p.n, p.k);
      void *scratch = peri__block_get(ctx, size);
      peri__gemm_f32_seq(ctx->cpu, &g, scratch);
      assert_memory_equal(c, want, (size_t)(m * 203) * sizeof *c);
      peri__block_put(ctx, scratch);
      test_free(c);
      test_free(want);

      p.begin = 0; /* batches begin at 0 */
      want = run(ctx, &p);
      int64_t off[3][2] = { { 0, 0 }, { 0, 0 }, { 0, 0 } };
      c = fresh(3 * m * 203);
      g = product_of(&p, c);
      assert_int_equal(peri__gemm_f32_batch(ctx, &g, 3, (const int64_t(*)[2])off), PERI_OK);
      for (int i = 0; i < 3; i++)
        assert_memory_equal(c + i * m * 203, want, (size_t)(m * 203) * sizeof *c);
      test_free(c);
      test_free(want);
      drop(&p);
    }
    peri_close(ctx);
  }
}

/* Counts how often each element is given to the epilogue. */
typedef struct tally {
  unsigned char *seen;
  const float *c;
  int64_t n;
  atomic_int wrong;
} tally;

static void count_block (void *ud, float *c, int64_t crs, int64_t i, int64_t j, int64_t m,
                         int64_t n) {
  tally *t = ud;
  if (c != t->c + i * crs + j) atomic_fetch_add(&t->wrong, 1);
  for (int64_t r = 0; r < m; r++)
    for (int64_t s = 0; s < n; s++) t->seen[(i + r) * t->n + j + s]++;
}

static void the_epilogue_sees_each_element_once (void **state) {
  static const int64_t shapes[][3] = { { 1, 40, 5 },     { 4, 128, 300 }, { 70, 96, 64 },
                                       { 300, 65, 300 }, { 513, 1, 80 },  { 64, 4200, 20 } };
  (void)state;
  for (int l = 0; l < NLEVELS; l++)
    for (int s = 0; s < 6; s++) {
      peri_ctx *ctx = open_level(levels[l], 2);
      if (ctx == NULL) continue;
      problem p = make(shapes[s][0], shapes[s][1], shapes[s][2], false, true, 0, 0);
      tally t = { .seen = test_calloc((size_t)(p.m * p.n), 1), .c = p.c, .n = p.n };
      peri__gemm g = product_of(&p, p.c);
      g.done = count_block;
      g.done_ud = &t;
      assert_int_equal(peri__gemm_f32(ctx, &g), PERI_OK);
      assert_int_equal(atomic_load(&t.wrong), 0);
      for (int64_t i = 0; i < p.m * p.n; i++) assert_int_equal(t.seen[i], 1);
      test_free(t.seen);
      drop(&p);
      peri_close(ctx);
    }
}

static void f64_agrees_with_a_plain_loop (void **state) {
  (void)state;
  peri_ctx *ctx = open_level(PERI_SIMD_PORTABLE, 2);
  seed = 5;
  for (int64_t m = 1; m < 40; m += 6)
    for (int64_t n = 1; n < 40; n += 7) {
      const int64_t k = 300;
      double *a = test_malloc((size_t)(m * k) * sizeof *a),
             *b = test_malloc((size_t)(n * k) * sizeof *b);
      double *c = test_calloc((size_t)(m * n), sizeof *c);
      for (int64_t i = 0; i < m * k; i++) a[i] = uniform();
      for (int64_t i = 0; i < n * k; i++) b[i] = uniform();
      peri__gemm64 g = { .m = m,
                         .n = n,
                         .k = k,
                         .a = a,
                         .ars = 1,
                         .acs = m,
                         .b = b,
                         .brs = 1,
                         .bcs = k,
                         .c = c,
                         .crs = n };
      peri__gemm_f64(ctx, &g);
      for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
          double sum = 0;
          for (int64_t q = 0; q < k; q++) sum += a[q * m + i] * b[j * k + q];
          assert_true(fabs(c[i * n + j] - sum) <= 1e-13 * (double)k);
        }
      test_free(a);
      test_free(b);
      test_free(c);
    }
  peri_close(ctx);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_shape_and_layout_is_within_the_error_bound),
    cmocka_unit_test(empty_sizes_leave_the_beginning_of_the_chain),
    cmocka_unit_test(small_integers_are_exact),
    cmocka_unit_test(a_row_has_the_same_bits_in_any_batch),
    cmocka_unit_test(layouts_agree_bit_for_bit),
    cmocka_unit_test(packed_weights_single_thread_and_batches_agree),
    cmocka_unit_test(the_epilogue_sees_each_element_once),
    cmocka_unit_test(f64_agrees_with_a_plain_loop),
  };
  return cmocka_run_group_tests_name("gemm", tests, NULL, NULL);
}
