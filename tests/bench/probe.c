/*
** probe.c - the physical limits and the products of the benchmarks, as a server: reads lines
** "name arg ..." from standard input and answers each with seconds (products), GFLOP/s (fma), Gop/s
** (dot8: products of bytes) or GB/s (stream). core.lua and infer.lua start one and call it between the peers, so that every figure has its
** calibration beside it.
*/
#define _POSIX_C_SOURCE 200809L /* nanosleep */

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cpu/cpu.h"
#include "cpu/gemm.h"

static peri_ctx *ctx;

/* ---- limits ---- */

/* 12 independent chains of multiply-adds on the widest registers. */
#define CHAINS 12
#define FMA_BODY(T, set, fmadd)                                \
  T a[CHAINS], x = set(0.999f), y = set(0.001f);               \
  for (int c = 0; c < CHAINS; c++) a[c] = set((float)c);       \
  for (int64_t s = 0; s < steps; s++) {                        \
    a[0] = fmadd(a[0], x, y), a[1] = fmadd(a[1], x, y);        \
    a[2] = fmadd(a[2], x, y), a[3] = fmadd(a[3], x, y);        \
    a[4] = fmadd(a[4], x, y), a[5] = fmadd(a[5], x, y);        \
    a[6] = fmadd(a[6], x, y), a[7] = fmadd(a[7], x, y);        \
    a[8] = fmadd(a[8], x, y), a[9] = fmadd(a[9], x, y);        \
    a[10] = fmadd(a[10], x, y), a[11] = fmadd(a[11], x, y);    \
  }                                                            \
  float sum = 0;                                               \
  for (int c = 0; c < CHAINS; c++) sum += ((float *)&a[c])[0]; \
  return sum;

#if defined(__x86_64__)
#include <immintrin.h>
__attribute__((target("avx2,fma"))) static float fma8 (int64_t steps) {
  FMA_BODY(__m256, _mm256_set1_ps, _mm256_fmadd_ps)
}
__attribute__((target("avx512f"))) static float fma16 (int64_t steps) {
  FMA_BODY(__m512, _mm512_set1_ps, _mm512_fmadd_ps)
}
static float fma_steps (int64_t steps) {
  return __builtin_cpu_supports("avx512f") ? fma16(steps) : fma8(2 * steps);
}
#else
static float fma_steps (int64_t steps) { /* 16 lanes in four registers a chain */
  typedef float v4 __attribute__((vector_size(16)));
  v4 a[16], x = { 0.999f, 0.999f, 0.999f, 0.999f }, y = { 0.001f };
  for (int c = 0; c < 16; c++) a[c] = x;
  for (int64_t s = 0; s < 3 * steps; s++)
    for (int c = 0; c < 16; c++) a[c] = a[c] * x + y;
  float sum = 0;
  for (int c = 0; c < 16; c++) sum += a[c][0];
  return sum;
}
#endif

#define FMA_STEPS 1000000
static volatile float sink;

static void fma_range (void *ud, int64_t begin, int64_t end, int worker) {
  (void)ud;
  (void)worker;
  for (int64_t i = begin; i < end; i++) sink = fma_steps(FMA_STEPS);
}

static double fma_rate (int threads) {
  double t = peri__now();
  if (threads == 1)
    fma_range(NULL, 0, 1, 0);
  else
    peri__parallel(ctx, threads, 1, fma_range, NULL);
  t = peri__now() - t;
  return threads * (double)FMA_STEPS * CHAINS * 16 * 2 / t / 1e9;
}

/* 12 independent chains of four byte products a lane, the integer limit of quantised products. */
#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bw,avx512vnni"))) static float dot8_zmm (int64_t steps) {
  __m512i a[CHAINS], x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(1);
  for (int c = 0; c < CHAINS; c++) a[c] = _mm512_set1_epi32(c);
  for (int64_t s = 0; s < steps; s++) {
    for (int c = 0; c < CHAINS; c++) a[c] = _mm512_dpbusd_epi32(a[c], x, y);
    __asm__ volatile("" : "+v"(x), "+v"(y));
  }
  int sum = 0;
  for (int c = 0; c < CHAINS; c++) sum += _mm_cvtsi128_si32(_mm512_castsi512_si128(a[c]));
  return (float)sum;
}
__attribute__((target("avx2"))) static float dot8_ymm (int64_t steps) {
  __m256i a[CHAINS], x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(1), one = _mm256_set1_epi16(1);
  for (int c = 0; c < CHAINS; c++) a[c] = _mm256_set1_epi32(c);
  for (int64_t s = 0; s < 2 * steps; s++) {
    for (int c = 0; c < CHAINS; c++)
      a[c] = _mm256_add_epi32(a[c], _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), one));
    __asm__ volatile("" : "+x"(x), "+x"(y));
  }
  int sum = 0;
  for (int c = 0; c < CHAINS; c++) sum += _mm_cvtsi128_si32(_mm256_castsi256_si128(a[c]));
  return (float)sum;
}
static float dot8_steps (int64_t steps) {
  return __builtin_cpu_supports("avx512vnni") ? dot8_zmm(steps) : dot8_ymm(steps);
}
#else
static float dot8_steps (int64_t steps) { return fma_steps(steps); } /* no probe of its own here */
#endif

static void dot8_range (void *ud, int64_t begin, int64_t end, int worker) {
  (void)ud;
  (void)worker;
  for (int64_t i = begin; i < end; i++) sink = dot8_steps(FMA_STEPS);
}

static double dot8_rate (int threads) {
  double t = peri__now();
  if (threads == 1)
    dot8_range(NULL, 0, 1, 0);
  else
    peri__parallel(ctx, threads, 1, dot8_range, NULL);
  t = peri__now() - t;
  return threads * (double)FMA_STEPS * CHAINS * 64 * 2 / t / 1e9;
}

#define STREAM_FLOATS (INT64_C(16) << 20) /* a thread: 64 MiB, beyond the caches */
typedef struct stream {
  float *data;
  float sum[64];
} stream;

static void stream_range (void *ud, int64_t begin, int64_t end, int worker) {
  stream *s = ud;
  (void)worker;
  for (int64_t part = begin; part < end;
       part++) { /* four streams a thread: one cannot fill the lines */
    const float *p = s->data + part * STREAM_FLOATS;
    int64_t quarter = STREAM_FLOATS / 4;
    float a[16] = { 0 };
    for (int64_t i = 0; i < quarter; i += 4)
      for (int q = 0; q < 4; q++)
        for (int k = 0; k < 4; k++) a[q * 4 + k] += p[q * quarter + i + k];
    for (int k = 0; k < 16; k++) s->sum[part] += a[k];
  }
}

static double stream_rate (int threads) {
  static stream s;
  if (!s.data) {
    size_t bytes = (size_t)STREAM_FLOATS * (size_t)peri_threads(ctx) * sizeof(float);
    s.data = malloc(bytes);
    memset(s.data, 0, bytes);
  }
  double t = peri__now();
  if (threads == 1)
    stream_range(&s, 0, 1, 0);
  else
    peri__parallel(ctx, threads, 1, stream_range, &s);
  t = peri__now() - t;
  return (double)STREAM_FLOATS * 4 * threads / t / 1e9;
}

/* ---- products ---- */

static float *matrix (int64_t n) {
  float *p = aligned_alloc(64, (size_t)(n * 4 + 63) / 64 * 64);
  for (int64_t i = 0; i < n; i++) p[i] = (float)(i % 7) * 0.1f - 0.3f;
  return p;
}

typedef void (*sgemm_fn)(int, int, int, int, int, int, float, const float *, int, const float *,
                         int, float, float *, int);

/* Seconds of one C = A B (trans 1: A B^T, 2: A^T B, ours only); repeated until it takes 20 ms. */
static double product (sgemm_fn blas, int64_t m, int64_t k, int64_t n, int trans) {
  float *a = matrix(m * k), *b = matrix(k * n), *c = matrix(m * n);
  peri__gemm g = { .m = m,
                   .n = n,
                   .k = k,
                   .a = a,
                   .ars = trans == 2 ? 1 : k,
                   .acs = trans == 2 ? m : 1,
                   .b = b,
                   .brs = trans == 1 ? 1 : n,
                   .bcs = trans == 1 ? k : 1,
                   .c = c,
                   .crs = n };
  double t = 0;
  for (int64_t reps = 1;; reps *= 2) {
    t = peri__now();
    for (int64_t r = 0; r < reps; r++) {
      if (blas)
        blas(101, 111, trans ? 112 : 111, (int)m, (int)n, (int)k, 1, a, (int)k, b,
             (int)(trans ? k : n), 0, c, (int)n);
      else if (peri__gemm_f32(ctx, &g) != PERI_OK)
        return -1;
    }
    t = peri__now() - t;
    if (t > 0.02) {
      t /= (double)reps;
      break;
    }
  }
  free(a);
  free(b);
  free(c);
  return t;
}

static sgemm_fn load_openblas (int threads) {
  static void *lib;
  if (!lib) lib = dlopen("libopenblas.so.0", RTLD_NOW);
  if (!lib) return NULL;
  void (*set)(int);
  sgemm_fn f;
  *(void **)&set = dlsym(lib, "openblas_set_num_threads");
  *(void **)&f = dlsym(lib, "cblas_sgemm");
  if (set) set(threads);
  return f;
}

int main (int argc, char **argv) {
  peri_options o;
  char line[256], name[32];
  peri_options_init(&o);
  o.threads = argc > 1 ? atoi(argv[1]) : 0;
  if (peri_open(&o, &ctx) != PERI_OK) return 1;
  while (fgets(line, sizeof line, stdin)) {
    long long a = 0, b = 0, c = 0, d = 0;
    int n = sscanf(line, "%31s %lld %lld %lld %lld", name, &a, &b, &c, &d);
    sgemm_fn blas;
    if (n >= 2 && strcmp(name, "sleep") == 0) {
      nanosleep(&(struct timespec){ .tv_nsec = a % 1000 * 1000000 }, NULL);
      printf("0\n");
    } else if (n >= 2 && strcmp(name, "fma") == 0)
      printf("%.4f\n", fma_rate((int)a));
    else if (n >= 2 && strcmp(name, "dot8") == 0)
      printf("%.4f\n", dot8_rate((int)a));
    else if (n >= 2 && strcmp(name, "stream") == 0)
      printf("%.4f\n", stream_rate((int)a));
    else if (n >= 4 && strcmp(name, "gemm") == 0)
      printf("%.9f\n", product(NULL, a, b, c, (int)d));
    else if (n >= 4 && strcmp(name, "blas") == 0) {
      blas = load_openblas(peri_threads(ctx));
      if (blas)
        printf("%.9f\n", product(blas, a, b, c, (int)d));
      else
        printf("skip libopenblas0 is not installed\n");
    } else
      printf("skip unknown command\n");
    fflush(stdout);
  }
  peri_close(ctx);
  return 0;
}
