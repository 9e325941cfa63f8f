/*
** test_quant.c - packed quantised weights at every level: rows read back as the file's blocks say,
** products are those of x rounded to 8 bits in f64, and a row has the same bits whatever surrounds
** it. Blocks are random bits, so every code and scale occurs.
*/
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/cpu.h"
#include "cpu/quant.h"
#include "weight/weight.h"

extern const struct peri__quant_kernels peri__quant_portable;
#ifdef PERI_HAVE_AVX512
extern const struct peri__quant_kernels peri__quant_avx2, peri__quant_avx512, peri__quant_vnni;
#endif
#ifdef PERI_HAVE_DOTPROD
extern const struct peri__quant_kernels peri__quant_dotprod;
#endif

static const peri_dtype types[] = { PERI_Q8_0, PERI_Q4_0, PERI_Q4_1, PERI_Q5_0,
                                    PERI_Q5_1, PERI_Q4_K, PERI_Q5_K, PERI_Q6_K };
enum { NTYPES = sizeof types / sizeof *types };

/* The tables that this processor can run, portable first. */
static int levels (const struct peri__quant_kernels *out[8]) {
  int n = 0;
  out[n++] = &peri__quant_portable;
#ifdef PERI_HAVE_AVX512
  if (peri__cpu_level(PERI_SIMD_AVX2)) out[n++] = &peri__quant_avx2;
  if (peri__cpu_level(PERI_SIMD_AVX512)) out[n++] = &peri__quant_avx512;
  if (peri__cpu_level(PERI_SIMD_AVX512) &&
      peri__cpu_level(PERI_SIMD_AVX512)->quant == &peri__quant_vnni)
    out[n++] = &peri__quant_vnni;
#endif
#ifdef PERI_HAVE_DOTPROD
  if (peri__cpu_level(PERI_SIMD_PORTABLE)->quant == &peri__quant_dotprod)
    out[n++] = &peri__quant_dotprod;
#endif
  return n;
}

static uint32_t seed;
static uint32_t bits (void) {
  seed = seed * 1664525u + 1013904223u;
  return seed >> 8;
}
static float uniform (void) { return (float)bits() * 0x1p-23f - 1; } /* in [-1, 1) */

/* A context whose products run on the given kernels. */
static peri_ctx *open_on (const struct peri__quant_kernels *q, struct peri__cpu *cpu, int threads) {
  peri_options o;
  peri_ctx *ctx = NULL;
  peri_options_init(&o);
  o.threads = threads;
  assert_int_equal(peri_open(&o, &ctx), PERI_OK);
  *cpu = *ctx->cpu;
  cpu->quant = q;
  ctx->cpu = cpu;
  return ctx;
}

static size_t row_bytes (peri_dtype d, int64_t k) {
  size_t bytes;
  int block = peri_dtype_block(d, &bytes);
  return (size_t)(k / block) * bytes;
}

/* n rows of random blocks with scales of either sign from 2^-12 to 2^-4, some of them subnormal. */
static uint8_t *random_rows (peri_dtype d, int64_t n, int64_t k) {
  size_t bytes, size = (size_t)n * row_bytes(d, k);
  peri_dtype_block(d, &bytes);
  uint8_t *p = test_malloc(size);
  for (size_t i = 0; i < size; i++) p[i] = (uint8_t)bits();
  for (uint8_t *b = p; b < p + size; b += bytes) {
    for (int i = 0; i < 2; i++) {
      uint16_t h = peri__f32_to_f16(uniform() * ldexpf(1, -(int)(bits() % 24)));
      if (d == PERI_Q6_K)
        memcpy(b + 208, &h, 2);
      else if (i == 0 || d == PERI_Q4_1 || d >= PERI_Q5_1)
        memcpy(b + 2 * i, &h, 2);
    }
  }
  return p;
}

static void *pack (peri_ctx *ctx, peri_dtype d, int64_t n, int64_t k, const void *rows) {
  size_t size = peri__quant_packed_bytes(ctx->cpu, d, n, k);
  assert_int_equal(size % PERI_ALIGN, 0);
  void *out = peri__block_get(ctx, size);
  assert_non_null(out);
  peri__quant_pack(ctx, d, n, k, rows, out);
  return out;
}

static void rows_read_back_to_the_bit (void **state) {
  const struct peri__quant_kernels *q[8];
  int nlevels = levels(q);
  (void)state;
  for (int l = 0; l < nlevels; l++) {
    struct peri__cpu cpu;
    peri_ctx *ctx = open_on(q[l], &cpu, 2);
    for (int t = 0; t < NTYPES; t++) {
      size_t unused;
      int64_t n = 37, k = peri_dtype_block(types[t], &unused) == 256 ? 768 : 32 * 11;
      uint8_t *rows = random_rows(types[t], n, k);
      void *w = pack(ctx, types[t], n, k, rows);
      float got[768], want[768];
      for (int64_t i = 0; i < n; i++) {
        peri__dequantise(types[t], k, rows + (size_t)i * row_bytes(types[t], k), want);
        peri__quant_row(ctx->cpu, types[t], n, k, w, i, got);
        for (int64_t j = 0; j < k; j++) {
          if (got[j] != want[j])
            fail_msg("%s %s row %d element %d: %a, expected %a", q[l]->name,
                     peri_dtype_name(types[t]), (int)i, (int)j, (double)got[j], (double)want[j]);
        }
      }
      peri__block_put(ctx, w);
      test_free(rows);
    }
    peri_close(ctx);
  }
}

/* x rounded as cpu/quant.h says, in f64; what is left of it after rounding. */
static void rounded (int64_t k, const float *x, double *out) {
  for (int64_t b = 0; b < k; b += 32) {
    float most = 0;
    for (int i = 0; i < 32; i++) most = fmaxf(most, fabsf(x[b + i]));
    float inverse = most > 0 ? 127 / most : 0, d = most / 127;
    for (int i = 0; i < 32; i++) out[b + i] = (double)d * (double)rintf(x[b + i] * inverse);
  }
}

typedef struct problem {
  peri_dtype d;
  int64_t m, n, k, xrs;
  uint8_t *rows;
  float *x, *bias, *y;
} problem;

static problem make (peri_dtype d, int64_t m, int64_t n, int64_t k) {
  problem p = { d, m, n, k, k + 5, random_rows(d, n, k), NULL, NULL, NULL };
  p.x = test_malloc((size_t)(m * p.xrs) * sizeof(float));
  p.bias = test_malloc((size_t)n * sizeof(float));
  p.y = test_malloc((size_t)(m * n) * sizeof(float));
  for (int64_t i = 0; i < m * p.xrs; i++) p.x[i] = uniform() * ldexpf(1, (int)(bits() % 8) - 4);
  memset(p.x, 0, 64 * sizeof(float)); /* blocks of nothing */
  for (int64_t i = 0; i < n; i++) p.bias[i] = uniform();
  return p;
}

static void drop (problem *p) {
  test_free(p->rows);
  test_free(p->x);
  test_free(p->bias);
  test_free(p->y);
}

static void multiply (peri_ctx *ctx, const problem *p, const void *w, int64_t row, int64_t m,
                      const float *bias, float *y) {
  peri__packed_product product = { m, p->n, p->k, p->x + row * p->xrs, p->xrs, w, bias, y };
  for (int64_t i = 0; i < m * p->n; i++) y[i] = NAN;
  assert_int_equal(peri__quant_product(ctx, p->d, &product), PERI_OK);
}

static void products_are_those_of_rounded_rows (void **state) {
  static const int64_t sizes[][3] = { { 1, 5, 1 },  { 1, 200, 3 }, { 3, 16, 1 },   { 7, 33, 2 },
                                      { 8, 48, 3 }, { 15, 17, 1 }, { 150, 70, 2 }, { 33, 1, 1 } };
  const struct peri__quant_kernels *q[8];
  int nlevels = levels(q);
  (void)state;
  for (int l = 0; l < nlevels; l++) {
    struct peri__cpu cpu;
    peri_ctx *ctx = open_on(q[l], &cpu, 2);
    for (int t = 0; t < NTYPES; t++) {
      for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t unused;
        int block = peri_dtype_block(types[t], &unused);
        seed = (uint32_t)(s * 100 + (size_t)t);
        problem p =
            make(types[t], sizes[s][0], sizes[s][1], sizes[s][2] * (block == 256 ? 256 : 32 * 5));
        void *w = pack(ctx, p.d, p.n, p.k, p.rows);
        const float *bias = s % 2 ? p.bias : NULL;
        multiply(ctx, &p, w, 0, p.m, bias, p.y);
        float row[768];
        double x[768];
        for (int64_t j = 0; j < p.n; j++) {
          peri__dequantise(p.d, p.k, p.rows + (size_t)j * row_bytes(p.d, p.k), row);
          for (int64_t i = 0; i < p.m; i++) {
            double sum = 0, bound = 0;
            rounded(p.k, p.x + i * p.xrs, x);
            for (int64_t c = 0; c < p.k; c++) {
              sum += x[c] * (double)row[c];
              bound += fabs(x[c] * (double)row[c]);
            }
            /* A minimum and its codes may cancel: what is added is larger than its sum. */
            if (peri__quant_format_of(p.d, 0).kind == PERI_QUANT_MIN) bound *= 16;
            if (bias) sum += (double)bias[j];
            double got = (double)p.y[i * p.n + j];
            if (!(fabs(got - sum) <= 4e-7 * (bound + fabs(sum)) + 1e-12))
              fail_msg("%s %s (%d, %d, %d) at %d %d: %.9g, expected %.9g +- %g", q[l]->name,
                       peri_dtype_name(p.d), (int)p.m, (int)p.n, (int)p.k, (int)i, (int)j, got, sum,
                       4e-7 * bound);
          }
        }
        peri__block_put(ctx, w);
        drop(&p);
      }
    }
    peri_close(ctx);
  }
}

static void a_row_has_the_same_bits_in_any_batch (void **state) {
  const struct peri__quant_kernels *q[8];
  int nlevels = levels(q);
  (void)state;
  for (int l = 0; l < nlevels; l++) {
    struct peri__cpu cpu[2];
    peri_ctx *one = open_on(q[l], &cpu[0], 1), *many = open_on(q[l], &cpu[1], 3);
    for (int t = 0; t < NTYPES; t++) {
      seed = (uint32_t)t;
      problem p = make(types[t], 141, 83, 512);
      void *w = pack(one, p.d, p.n, p.k, p.rows);
      float *y = test_malloc((size_t)(p.m * p.n) * sizeof *y);
      multiply(one, &p, w, 0, p.m, p.bias, p.y);
      multiply(many, &p, w, 0, p.m, p.bias, y);
      assert_memory_equal(y, p.y, (size_t)(p.m * p.n) * sizeof *y);
      for (int64_t row = 0; row < p.m; row += 1 + row % 5) {
        for (int64_t m = 1; m <= 9 && row + m <= p.m; m += 2) {
          multiply(m % 4 == 1 ? many : one, &p, w, row, m, p.bias, y);
          assert_memory_equal(y, p.y + row * p.n, (size_t)(m * p.n) * sizeof *y);
        }
      }
      peri__block_put(one, w);
      test_free(y);
      drop(&p);
    }
    peri_close(one);
    peri_close(many);
  }
}

/* Portable adds and multiplies apart unless the processor always has fused ones. */
static void vector_levels_agree_bit_for_bit (void **state) {
  const struct peri__quant_kernels *q[8];
  int nlevels = levels(q), first = 1;
#ifdef __aarch64__
  first = 0;
#endif
  (void)state;
  for (int t = 0; t < NTYPES; t++) {
    seed = (uint32_t)t + 7;
    problem p = make(types[t], 11, 41, 768);
    float *want = test_malloc((size_t)(p.m * p.n) * sizeof *want);
    for (int l = first; l < nlevels; l++) {
      struct peri__cpu cpu;
      peri_ctx *ctx = open_on(q[l], &cpu, 2);
      void *w = pack(ctx, p.d, p.n, p.k, p.rows);
      multiply(ctx, &p, w, 0, p.m, p.bias, l == first ? want : p.y);
      if (l > first) assert_memory_equal(p.y, want, (size_t)(p.m * p.n) * sizeof *want);
      peri__block_put(ctx, w);
      peri_close(ctx);
    }
    test_free(want);
    drop(&p);
  }
}

static void a_row_that_is_not_finite_shows_and_spoils_no_other (void **state) {
  static const float odd[] = { NAN, INFINITY, -INFINITY, 3e30f, 1e-38f };
  const struct peri__quant_kernels *q[8];
  int nlevels = levels(q);
  (void)state;
  for (int l = 0; l < nlevels; l++) {
    struct peri__cpu cpu;
    peri_ctx *ctx = open_on(q[l], &cpu, 1);
    for (int t = 0; t < NTYPES; t++) {
      problem p = make(types[t], 9, 20, 256);
      void *w = pack(ctx, p.d, p.n, p.k, p.rows);
      float y[9 * 20], alone[20];
      multiply(ctx, &p, w, 0, 9, NULL, p.y);
      for (size_t o = 0; o < sizeof odd / sizeof *odd; o++) {
        float *x = p.x + 4 * p.xrs + 77, old = *x;
        *x = odd[o];
        multiply(ctx, &p, w, 0, 9, NULL, y);
        multiply(ctx, &p, w, 4, 1, NULL, alone);
        for (int i = 0; i < 20; i++) {
          if (isfinite(odd[o]))
            assert_true(isfinite(y[4 * 20 + i]) && y[4 * 20 + i] == alone[i]);
          else
            assert_true(isnan(y[4 * 20 + i]) && isnan(alone[i]));
        }
        assert_memory_equal(y, p.y, 4 * 20 * sizeof *y);
        assert_memory_equal(y + 5 * 20, p.y + 5 * 20, 4 * 20 * sizeof *y);
        *x = old;
      }
      peri__block_put(ctx, w);
      drop(&p);
    }
    peri_close(ctx);
  }
}

static void every_failed_allocation_is_reported (void **state) {
  struct peri__cpu cpu;
  peri_ctx *ctx = open_on(peri__cpu_level(PERI_SIMD_AUTO)->quant, &cpu, 2);
  (void)state;
  problem p = make(PERI_Q4_0, 5, 40, 64);
  void *w = pack(ctx, p.d, p.n, p.k, p.rows);
  peri__packed_product product = { p.m, p.n, p.k, p.x, p.xrs, w, NULL, p.y };
  peri_memory_trim(ctx);
  peri_test_fail_after(ctx, 0, true);
  peri_status s = peri__quant_product(ctx, p.d, &product);
  bool fired = peri_test_fired(ctx);
  peri_test_fail_after(ctx, -1, false);
  assert_int_equal(s, fired ? PERI_ENOMEM : PERI_OK);
  assert_true(fired);
  assert_non_null(strstr(peri_message(ctx), "5 rounded rows of 64"));
  peri__block_put(ctx, w);
  drop(&p);
  peri_close(ctx);
}

/* The thresholds of ggml's test-quantize-fns.cpp: error over sqrt(sum of squares) / n, and of the
** dot product over n. */
static void errors_stay_under_those_that_ggml_allows (void **state) {
  enum { N = 4096 };
  static float x[N], z[N], back[N];
  static uint8_t blocks[N * 2];
  (void)state;
  for (int i = 0; i < N; i++) {
    x[i] = 0.1f + 2 * cosf((float)i);
    z[i] = 0.1f + 2 * cosf((float)i + 1);
  }
  for (int t = 0; t < NTYPES; t++) {
    struct peri__cpu cpu;
    peri_ctx *ctx = open_on(peri__cpu_level(PERI_SIMD_AUTO)->quant, &cpu, 1);
    peri__quantise(types[t], N, x, blocks);
    peri__dequantise(types[t], N, blocks, back);
    double error = 0, dot = 0;
    for (int i = 0; i < N; i++) {
      error += pow((double)x[i] - (double)back[i], 2);
      dot += (double)x[i] * (double)z[i];
    }
    assert_true(sqrt(error) / N < 0.002);
    float y;
    void *w = pack(ctx, types[t], 1, N, blocks);
    peri__packed_product p = { 1, 1, N, z, N, w, NULL, &y };
    assert_int_equal(peri__quant_product(ctx, types[t], &p), PERI_OK);
    assert_true(fabs((double)y - dot) / N < 0.02);
    peri__block_put(ctx, w);
    peri_close(ctx);
  }
}

static void no_numbers_break_a_quantiser (void **state) {
  static const float odd[] = { NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-45f, 1e-38f, 0, -0.0f };
  enum { ODD = sizeof odd / sizeof *odd };
  (void)state;
  for (int t = 0; t < NTYPES; t++) {
    for (int a = 0; a < ODD; a++) {
      for (int b = 0; b < ODD; b++) {
        float x[512];
        uint8_t blocks[544];
        for (int i = 0; i < 512; i++) x[i] = i < 256 ? odd[i % 3 ? a : b] : uniform();
        peri__quantise(types[t], 512, x, blocks);
        peri__dequantise(types[t], 512, blocks, x);
        for (int i = 256; i < 512; i++) assert_true(fabsf(x[i]) <= 1.2f);
      }
    }
  }
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(rows_read_back_to_the_bit),
    cmocka_unit_test(products_are_those_of_rounded_rows),
    cmocka_unit_test(a_row_has_the_same_bits_in_any_batch),
    cmocka_unit_test(vector_levels_agree_bit_for_bit),
    cmocka_unit_test(a_row_that_is_not_finite_shows_and_spoils_no_other),
    cmocka_unit_test(every_failed_allocation_is_reported),
    cmocka_unit_test(errors_stay_under_those_that_ggml_allows),
    cmocka_unit_test(no_numbers_break_a_quantiser),
  };
  return cmocka_run_group_tests_name("quant", tests, NULL, NULL);
}
