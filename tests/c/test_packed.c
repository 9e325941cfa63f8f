/*
** test_packed.c - packed f32, f16 and bf16 weights at every SIMD level: rows come back, tiles and
** products are within the bound of f64 arithmetic, products have the bits of the plain product (of
** widened weights), and a row has the same bits whatever surrounds it.
*/
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "levels.h"

#include "cpu/gemm.h"
#include "cpu/packed.h"
#include "weight/weight.h"

static const peri_dtype dtypes[] = { PERI_F32, PERI_F16, PERI_BF16 };
enum { NDTYPES = 3 };

/* Contexts to test with: one a level, and one at the level of a processor whose neighbour has
** products of bf16 pairs and which itself has not. NULL: this machine has not got it. */
enum { NKERNELS = NLEVELS + 1 };
static peri_ctx *open_kernels (int l, int threads) {
  static struct peri__cpu cpu;
  static struct peri__packed_kernels packed;
  if (l < NLEVELS) return open_level(levels[l], threads);
  peri_ctx *ctx = open_level(PERI_SIMD_AVX512, threads);
  if (ctx == NULL) return NULL;
  cpu = *ctx->cpu;
  packed = *cpu.packed;
  packed.dots = NULL;
  cpu.packed = &packed;
  ctx->cpu = &cpu;
  return ctx;
}

/* Weights (n, k) as stored, as floats, and packed (PERI_ALIGN-aligned in room). */
typedef struct weight {
  peri_dtype d;
  int64_t n, k;
  float *wide;
  void *stored, *room, *packed;
} weight;

static weight make (peri_ctx *ctx, peri_dtype d, int64_t n, int64_t k) {
  weight w = { d, n, k, fresh(n * k), NULL, NULL, NULL };
  uint16_t *h = test_malloc((size_t)(n * k + 1) * sizeof *h);
  for (int64_t i = 0; i < n * k; i++) {
    float x = w.wide[i] * (i % 11 == 0 ? 0x1p-16f : 1); /* subnormal halves among them */
    h[i] = d == PERI_F16 ? peri__f32_to_f16(x) : peri__f32_to_bf16(x);
    w.wide[i] = d == PERI_F32   ? x
                : d == PERI_F16 ? peri__f16_to_f32(h[i])
                                : peri__bf16_to_f32(h[i]);
  }
  w.stored = h;
  size_t bytes = peri__float_packed_bytes(ctx->cpu, d, n, k);
  assert_int_equal(bytes % PERI_ALIGN, 0);
  w.room = test_malloc(bytes + PERI_ALIGN);
  w.packed = (void *)(((uintptr_t)w.room + PERI_ALIGN - 1) & ~(uintptr_t)(PERI_ALIGN - 1));
  peri__float_pack(ctx, d, n, k, d == PERI_F32 ? (void *)w.wide : w.stored, w.packed);
  return w;
}

static void drop (weight *w) {
  test_free(w->wide);
  test_free(w->stored);
  test_free(w->room);
}

static bool is_dot (const peri_ctx *ctx, peri_dtype d) {
  return d == PERI_BF16 && ctx->cpu->packed->dots && ctx->cpu->packed->dots();
}

static float *product (peri_ctx *ctx, const weight *w, int64_t m, const float *x, int64_t xrs,
                       const float *bias) {
  float *y = test_malloc((size_t)(m * w->n + 1) * sizeof *y);
  peri__packed_product p = { m, w->n, w->k, x, xrs, w->packed, bias, y };
  assert_int_equal(peri__float_product(ctx, w->d, &p), PERI_OK);
  return y;
}

/* x as the product sees it. */
static double seen (bool dot, float x) {
  return (double)(dot ? peri__bf16_to_f32(peri__f32_to_bf16(x)) : x);
}

static void check (const weight *w, bool dot, int64_t m, const float *x, int64_t xrs,
                   const float *bias, const float *y) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < w->n; j++) {
      double sum = bias ? (double)bias[j] : 0, size = fabs(sum);
      for (int64_t q = 0; q < w->k; q++) {
        double t = seen(dot, x[i * xrs + q]) * (double)w->wide[j * w->k + q];
        sum += t;
        size += fabs(t);
      }
      double bound = 2 * sqrt((double)w->k + 1) * 0x1p-24 * size;
      if (!(fabs((double)y[i * w->n + j] - sum) <= bound))
        fail_msg("%s %d x %d x %d: [%d][%d] is %.9g, not %.9g", peri_dtype_name(w->d), (int)m,
                 (int)w->n, (int)w->k, (int)i, (int)j, (double)y[i * w->n + j], sum);
    }
}

static void plain (peri_ctx *ctx, const weight *w, int64_t m, const float *x, int64_t xrs,
                   const float *bias, const float *y) {
  float *c = test_malloc((size_t)(m * w->n + 1) * sizeof *c);
  peri__gemm g = { .m = m,
                   .n = w->n,
                   .k = w->k,
                   .a = x,
                   .ars = xrs,
                   .acs = 1,
                   .b = w->wide,
                   .brs = 1,
                   .bcs = w->k,
                   .c = c,
                   .crs = w->n,
                   .bias = bias };
  assert_int_equal(peri__gemm_f32(ctx, &g), PERI_OK);
  assert_memory_equal(c, y, (size_t)(m * w->n) * sizeof *c);
  test_free(c);
}

static void one_case (peri_ctx *ctx, peri_dtype d, int64_t m, int64_t n, int64_t k) {
  weight w = make(ctx, d, n, k);
  int64_t xrs = k + (m + n) % 3;
  float *x = fresh(m * xrs), *bias = (m + k) % 2 ? fresh(n) : NULL;
  float *y = product(ctx, &w, m, x, xrs, bias);
  check(&w, is_dot(ctx, d), m, x, xrs, bias, y);
  if (!is_dot(ctx, d)) plain(ctx, &w, m, x, xrs, bias, y);
  for (int64_t from = 0; from < m; from += m / 3 + 1) { /* parts of the rows */
    int64_t count = from % 2 ? 1 : (m - from + 1) / 2;
    float *part = product(ctx, &w, count, x + from * xrs, xrs, bias);
    assert_memory_equal(part, y + from * n, (size_t)(count * n) * sizeof *part);
    test_free(part);
  }
  test_free(x);
  test_free(y);
  if (bias) test_free(bias);
  drop(&w);
}

/* One kernel of a table: mr rows, np panels, chains that begin at numbers of their own, rows of C
** further apart than the tile is wide. */
static void one_tile (peri_ctx *ctx, peri_dtype d, peri__panel_fn fn, int mr, int np, int64_t k) {
  int64_t nr = PERI_GEMM_NV * ctx->cpu->gemm->lanes, n = np * nr, irs = n + 1, crs = n + 3;
  bool dot = is_dot(ctx, d);
  weight w = make(ctx, d, n, k);
  float *x = fresh(mr * k), *a = test_malloc((size_t)(mr * (k + 16)) * sizeof *a);
  float *init = fresh(mr * irs), *c = fresh(mr * crs), *before = fresh(mr * crs);
  memcpy(before, c, (size_t)(mr * crs) * sizeof *c);
  if (dot)
    ctx->cpu->packed->pack_pairs(mr, k, x, k, (uint32_t *)(void *)a);
  else
    ctx->cpu->gemm->pack_a(mr, k, x, k, 1, a);
  peri__panel_tile t = { .k = k,
                         .a = a,
                         .b = w.packed,
                         .bstep = nr * (d == PERI_F32 ? 4 : 2) * (dot ? (k + 1) / 2 * 2 : k),
                         .c = c,
                         .crs = crs,
                         .init = init,
                         .irs = irs,
                         .ahead = w.packed,
                         .fetch = 0 };
  fn(&t);
  for (int64_t i = 0; i < mr; i++)
    for (int64_t j = 0; j < crs; j++) {
      if (j >= n) { /* nothing beyond its columns */
        assert_memory_equal(c + i * crs + j, before + i * crs + j, sizeof *c);
        continue;
      }
      double sum = (double)init[i * irs + j], size = fabs(sum);
      for (int64_t q = 0; q < k; q++) {
        double term = seen(dot, x[i * k + q]) * (double)w.wide[j * k + q];
        sum += term;
        size += fabs(term);
      }
      if (!(fabs((double)c[i * crs + j] - sum) <= 2 * sqrt((double)k + 1) * 0x1p-24 * size))
        fail_msg("%s %s: %d rows, %d panels, k %d: [%d][%d] is %.9g, not %.9g", ctx->cpu->name,
                 peri_dtype_name(d), mr, np, (int)k, (int)i, (int)j, (double)c[i * crs + j], sum);
    }
  test_free(x);
  test_free(a);
  test_free(init);
  test_free(c);
  test_free(before);
  drop(&w);
}

static void every_tile_of_every_table_adds_its_products (void **state) {
  static const int64_t ks[] = { 1, 2, 7, 32, 65 };
  (void)state;
  for (int l = 0; l < NKERNELS; l++) {
    peri_ctx *ctx = open_kernels(l, 1);
    if (ctx == NULL) continue;
    const struct peri__packed_kernels *kern = ctx->cpu->packed;
    seed = 7;
    for (int t = 0; t < NDTYPES; t++) {
      peri_dtype d = dtypes[t];
      peri__panel kind = d == PERI_F32    ? PERI_PANEL_F32
                         : d == PERI_F16  ? PERI_PANEL_F16
                         : is_dot(ctx, d) ? PERI_PANEL_DOT
                                          : PERI_PANEL_BF16;
      for (int s = 0; s < 5; s++) {
        for (int mr = 1; mr <= ctx->cpu->gemm->mr; mr++)
          one_tile(ctx, d, kern->tile[kind][mr], mr, 1, ks[s]);
        for (int np = 1; np <= PERI_PANEL_ONE; np++)
          one_tile(ctx, d, kern->one[kind][np], 1, np, ks[s]);
        for (int np = 1; np <= PERI_PANEL_TWO; np++)
          one_tile(ctx, d, kern->two[kind][np], 2, np, ks[s]);
      }
    }
    peri_close(ctx);
  }
}

static void products_equal_plain_ones (void **state) {
  static const int64_t ms[] = { 1, 2, 3, 5, 6, 7, 11, 12, 13, 24, 25, 32, 40 };
  static const int64_t ns[] = { 1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 95, 128, 130, 200 };
  static const int64_t ks[] = { 0, 1, 2, 3, 15, 16, 17, 32, 63, 64, 100, 257 };
  (void)state;
  for (int l = 0; l < NKERNELS; l++) {
    peri_ctx *ctx = open_kernels(l, 2);
    if (ctx == NULL) continue;
    seed = 1;
    for (int t = 0; t < 300; t++) {
      uint32_t r[3];
      for (int i = 0; i < 3; i++) r[i] = (uint32_t)((uniform() + 1) * 0x1p20f);
      one_case(ctx, dtypes[t % NDTYPES], ms[r[0] % 13], ns[r[1] % 14], ks[r[2] % 12]);
    }
    peri_close(ctx);
  }
}

/* Rows that no longer fit at once, and k beyond one block. */
static void large_products_equal_plain_ones (void **state) {
  (void)state;
  for (int l = 0; l < NKERNELS; l++)
    for (int t = 0; t < NDTYPES; t++) {
      peri_ctx *ctx = open_kernels(l, 2);
      if (ctx == NULL) continue;
      seed = 2;
      one_case(ctx, dtypes[t], 301, 70, 600);
      one_case(ctx, dtypes[t], 75, 45, 2500);
      one_case(ctx, dtypes[t], 4, 40, 40000);
      peri_close(ctx);
    }
}

static void one_gradient (peri_ctx *ctx, peri_dtype d, int64_t m, int64_t n, int64_t k) {
  weight w = make(ctx, d, n, k);
  size_t bytes = (size_t)(m * k) * sizeof(float);
  float *g = fresh(m * n), *dx = test_malloc(bytes + 1), *want = test_malloc(bytes + 1);
  peri__gemm p = { .m = m,
                   .n = k,
                   .k = n,
                   .a = g,
                   .ars = n,
                   .acs = 1,
                   .b = w.wide,
                   .brs = k,
                   .bcs = 1,
                   .c = want,
                   .crs = k };
  assert_int_equal(peri__gemm_f32(ctx, &p), PERI_OK);
  assert_int_equal(peri__float_back(ctx, d, m, n, k, g, w.packed, dx), PERI_OK);
  assert_memory_equal(dx, want, bytes);
  test_free(g);
  test_free(dx);
  test_free(want);
  drop(&w);
}

static void gradients_equal_plain_ones (void **state) {
  static const int64_t shapes[][3] = { { 1, 33, 40 },    { 3, 100, 1 },    { 20, 5, 3 },
                                       { 31, 70, 65 },   { 64, 129, 200 }, { 300, 200, 33 },
                                       { 270, 1700, 70 } };
  (void)state;
  for (int l = 0; l < NKERNELS; l++) {
    peri_ctx *ctx = open_kernels(l, 2);
    if (ctx == NULL) continue;
    seed = 6;
    for (int t = 0; t < NDTYPES; t++)
      for (int s = 0; s < 7; s++)
        one_gradient(ctx, dtypes[t], shapes[s][0], shapes[s][1], shapes[s][2]);
    peri_close(ctx);
  }
}

static void thread_counts_give_the_same_bits (void **state) {
  static const int64_t ms[] = { 1, 2, 9, 33, 260 };
  (void)state;
  for (int l = 0; l < NKERNELS; l++)
    for (int t = 0; t < NDTYPES; t++)
      for (int s = 0; s < 5; s++) {
        float *want = NULL;
        int64_t m = ms[s], n = 330, k = 520;
        for (int threads = 1; threads <= 3; threads++) {
          peri_ctx *ctx = open_kernels(l, threads);
          if (ctx == NULL) break;
          seed = 3;
          weight w = make(ctx, dtypes[t], n, k);
          float *x = fresh(m * k), *y = product(ctx, &w, m, x, k, NULL);
          if (want) {
            assert_memory_equal(y, want, (size_t)(m * n) * sizeof *y);
            test_free(y);
          } else
            want = y;
          test_free(x);
          drop(&w);
          peri_close(ctx);
        }
        if (want) test_free(want);
      }
}

static void rows_come_back (void **state) {
  (void)state;
  for (int l = 0; l < NKERNELS; l++)
    for (int t = 0; t < NDTYPES; t++) {
      peri_ctx *ctx = open_kernels(l, 2);
      if (ctx == NULL) continue;
      seed = 4;
      for (int64_t n = 1; n < 80; n += 13)
        for (int64_t k = 1; k < 40; k += 6) {
          weight w = make(ctx, dtypes[t], n, k);
          float *row = fresh(k);
          for (int64_t i = 0; i < n; i++) {
            peri__float_row(ctx->cpu, w.d, n, k, w.packed, i, row);
            assert_memory_equal(row, w.wide + i * k, (size_t)k * sizeof *row);
          }
          test_free(row);
          drop(&w);
        }
      peri_close(ctx);
    }
}

/* Infinities and NaN among 16-bit weights stay what they are. */
static void specials_stay (void **state) {
  static const float specials[] = { INFINITY, -INFINITY, NAN, 65504.0f, -0.0f };
  (void)state;
  for (int l = 0; l < NKERNELS; l++)
    for (int t = 1; t < NDTYPES; t++) {
      peri_ctx *ctx = open_kernels(l, 1);
      if (ctx == NULL) continue;
      uint16_t h[5], room[4096];
      float x[1] = { 2 }, y[5];
      for (int i = 0; i < 5; i++)
        h[i] =
            dtypes[t] == PERI_F16 ? peri__f32_to_f16(specials[i]) : peri__f32_to_bf16(specials[i]);
      uint16_t *packed = (void *)(((uintptr_t)room + 63) & ~(uintptr_t)63);
      peri__float_pack(ctx, dtypes[t], 5, 1, h, packed);
      peri__packed_product p = { 1, 5, 1, x, 1, packed, NULL, y };
      assert_int_equal(peri__float_product(ctx, dtypes[t], &p), PERI_OK);
      assert_true(y[0] == INFINITY && y[1] == -INFINITY && isnan(y[2]) && y[4] == 0);
      assert_true(fabs((double)y[3] - 131008) <= 256);
      peri_close(ctx);
    }
}

static void no_memory_is_an_error (void **state) {
  (void)state;
  for (int t = 0; t < NDTYPES; t++) {
    peri_ctx *ctx = open_level(PERI_SIMD_AUTO, 2);
    seed = 5;
    weight w = make(ctx, dtypes[t], 70, 300);
    float *x = fresh(500 * 300), *y = test_malloc(500 * 70 * sizeof *y);
    for (int64_t m = 3; m <= 500; m += 497) {
      peri__packed_product p = { m, 70, 300, x, 300, w.packed, NULL, y };
      peri_memory_trim(ctx);
      peri_test_fail_after(ctx, 0, true);
      assert_int_equal(peri__float_product(ctx, w.d, &p), PERI_ENOMEM);
      peri_test_fail_after(ctx, -1, false);
    }
    test_free(x);
    test_free(y);
    drop(&w);
    peri_close(ctx);
  }
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_tile_of_every_table_adds_its_products),
    cmocka_unit_test(products_equal_plain_ones),
    cmocka_unit_test(large_products_equal_plain_ones),
    cmocka_unit_test(gradients_equal_plain_ones),
    cmocka_unit_test(thread_counts_give_the_same_bits),
    cmocka_unit_test(rows_come_back),
    cmocka_unit_test(specials_stay),
    cmocka_unit_test(no_memory_is_an_error),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
