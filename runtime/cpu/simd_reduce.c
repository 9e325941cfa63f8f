/*
** simd_reduce.c - reductions over one row or over columns, half precision conversion, and the table
** that brings the families together. The order of every reduction depends on the length alone:
** lanes take elements in turn and are folded in halves at the end.
*/
#include "cpu/cpu.h"
#include "cpu/math.h"
#include "cpu/vec_math.h"

extern const peri__kernel PERI_NAME(peri__unary_f32)[], PERI_NAME(peri__test_f32)[],
    PERI_NAME(peri__binary_f32)[], PERI_NAME(peri__compare_f32)[];
extern const peri__gate PERI_NAME(peri__gates)[];
extern void PERI_NAME(peri__where_f32)(int64_t, const void *const *, const int64_t *, void *,
                                       const double *);
extern void PERI_NAME(peri__lerp_f32)(int64_t, const void *const *, const int64_t *, void *,
                                      const double *);

#define INLINE static inline __attribute__((always_inline))

/* ---- sums in f64 ---- */

#define UNROLL _Pragma("GCC unroll 8") /* s[k] with a variable k would live in memory */

typedef double v_pair __attribute__((vector_size(16)));

/* Lanes folded in halves. */
#define FOLD(op)                                       \
  v_pair b[PERI_VW / 4];                               \
  memcpy(b, &v, sizeof b);                             \
  UNROLL                                               \
  for (int w = PERI_VW / 8; w > 0; w /= 2) UNROLL      \
  for (int i = 0; i < w; i++) b[i] = b[i] op b[i + w]; \
  return b[0][0] op b[0][1];
INLINE double fold_sum (v_d v){ FOLD(+) } INLINE double fold_prod(v_d v) { FOLD(*) }

/* One block of lanes, d standing for the widened values, into accumulators 2 k and 2 k + 1. */
#define TAKE(k, x, e)                 \
  for (int h = 0; h < 2; h++) {       \
    v_d d = h ? v_high(x) : v_low(x); \
    s[2 * (k) + h] += e;              \
  }
/* The sum of e over the row; f is applied before widening, and f(fill) is worth 0. */
#define SUM(fill, f, e)                                                        \
  v_d s[8] = { { 0 } };                                                        \
  int64_t i = 0;                                                               \
  for (; i + 4 * PERI_VW <= n; i += 4 * PERI_VW) {                             \
    TAKE(0, f(v_load(x + i)), e)                                               \
    TAKE(1, f(v_load(x + i + PERI_VW)), e)                                     \
    TAKE(2, f(v_load(x + i + 2 * PERI_VW)), e)                                 \
    TAKE(3, f(v_load(x + i + 3 * PERI_VW)), e)                                 \
  }                                                                            \
  UNROLL                                                                       \
  for (int k = 0; k < 4; k++, i += PERI_VW) {                                  \
    if (i >= n) break;                                                         \
    vf v = n - i >= PERI_VW ? v_load(x + i) : v_load_tail(x + i, n - i, fill); \
    TAKE(k, f(v), e)                                                           \
  }                                                                            \
  return fold_sum(((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));

#define SAME(v) (v)
#define SHIFTED(v) v_exp((v)-shift)

static double row_sum (const float *x, int64_t n) { SUM(0, SAME, d) }
static double row_sum_abs (const float *x, int64_t n) { SUM(0, v_abs, d) }
static double row_sum_exp (const float *x, int64_t n, float shift) { SUM(-INFINITY, SHIFTED, d) }
static double squares (const float *x, int64_t n) { SUM(0, SAME, d * d) }
static double squares_from (const float *x, int64_t n, double shift) {
  SUM(0, SAME, (d - shift) * (d - shift))
}
static double row_sum_square (const float *x, int64_t n, double shift) {
  /* no f32 to fill with adds exactly 0: whole vectors, then the rest one by one */
  int64_t whole = n / PERI_VW * PERI_VW;
  if (shift == 0) return squares(x, n);
  double s = whole ? squares_from(x, whole, shift) : 0;
  for (int64_t i = whole; i < n; i++) s += ((double)x[i] - shift) * ((double)x[i] - shift);
  return s;
}
static double row_prod (const float *x, int64_t n) {
  v_d s[2] = { { 0 }, { 0 } };
  s[0] += 1.0;
  s[1] += 1.0;
  for (int64_t i = 0; i < n; i += PERI_VW) {
    vf v = n - i >= PERI_VW ? v_load(x + i) : v_load_tail(x + i, n - i, 1);
    for (int h = 0; h < 2; h++) s[h] *= h ? v_high(v) : v_low(v);
  }
  return fold_prod(s[0] * s[1]);
}

/* Four rows at a time: their sum goes to acc once. */
static void column_sum (const float *x, int64_t rows, int64_t stride, int64_t cols, double *acc) {
  typedef double wide __attribute__((vector_size(PERI_VW * 4), aligned(8), may_alias));
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4, x += 4 * stride) {
    const float *x1 = x + stride, *x2 = x1 + stride, *x3 = x2 + stride;
    int64_t j = 0;
    for (; j + PERI_VW <= cols; j += PERI_VW) {
      vf a = v_load(x + j), b = v_load(x1 + j), c = v_load(x2 + j), d = v_load(x3 + j);
      *(wide *)(acc + j) += (v_low(a) + v_low(b)) + (v_low(c) + v_low(d));
      *(wide *)(acc + j + PERI_VW / 2) += (v_high(a) + v_high(b)) + (v_high(c) + v_high(d));
    }
    for (; j < cols; j++)
      acc[j] += ((double)x[j] + (double)x1[j]) + ((double)x2[j] + (double)x3[j]);
  }
  for (; r < rows; r++, x += stride)
    for (int64_t j = 0; j < cols; j++) acc[j] += x[j];
}

/* ---- largest and smallest ---- */

/* a where it is NaN, else the larger. */
INLINE vf nan_max (vf a, vf b) { return v_select((vi)(a == a), v_max(a, b), a); }
INLINE vf nan_min (vf a, vf b) { return v_select((vi)(a == a), v_min(a, b), a); }

#define EXTREME(name, pick, less)                                                            \
  static float name(const float *x, int64_t n) {                                             \
    vf s[2] = { v_set(x[0]), v_set(x[0]) };                                                  \
    int64_t i = 0;                                                                           \
    for (; i + 2 * PERI_VW <= n; i += 2 * PERI_VW) {                                         \
      s[0] = pick(s[0], v_load(x + i));                                                      \
      s[1] = pick(s[1], v_load(x + i + PERI_VW));                                            \
    }                                                                                        \
    for (; i < n; i += PERI_VW)                                                              \
      s[0] = pick(s[0], n - i >= PERI_VW ? v_load(x + i) : v_load_tail(x + i, n - i, x[0])); \
    vf m = pick(s[0], s[1]);                                                                 \
    float y = m[0];                                                                          \
    for (int k = 1; k < PERI_VW; k++)                                                        \
      if (m[k] != m[k] || m[k] less y) y = m[k];                                             \
    return y;                                                                                \
  }
EXTREME(row_max, nan_max, >)
EXTREME(row_min, nan_min, <)

/* The place of the first element equal to the extreme one (NaN: the first NaN). */
static int64_t find (const float *x, int64_t n, float y) {
  int64_t i = 0;
  vf w = v_set(y);
  if (y != y) {
    for (; i + PERI_VW <= n; i += PERI_VW) {
      vf v = v_load(x + i);
      if (v_any((vi)(v != v))) break;
    }
    while (i < n && x[i] == x[i]) i++;
  } else {
    for (; i + PERI_VW <= n; i += PERI_VW)
      if (v_any((vi)(v_load(x + i) == w))) break;
    while (i < n && x[i] != y) i++;
  }
  return i;
}
static int64_t row_argmax (const float *x, int64_t n) { return find(x, n, row_max(x, n)); }
static int64_t row_argmin (const float *x, int64_t n) { return find(x, n, row_min(x, n)); }

#define COLUMNS(name, pick, keep)                                                            \
  static void name(const float *x, int64_t rows, int64_t stride, int64_t cols, float *acc) { \
    for (int64_t r = 0; r < rows; r++, x += stride) {                                        \
      int64_t j = 0;                                                                         \
      for (; j + PERI_VW <= cols; j += PERI_VW)                                              \
        v_store(acc + j, pick(v_load(acc + j), v_load(x + j)));                              \
      for (; j < cols; j++)                                                                  \
        if (acc[j] == acc[j] && !(acc[j] keep x[j])) acc[j] = x[j];                          \
    }                                                                                        \
  }
COLUMNS(column_max, nan_max, >=)
COLUMNS(column_min, nan_min, <=)

static int64_t row_count (const uint8_t *x, int64_t n) {
  int64_t total = 0;
  for (int64_t i = 0; i < n; i += 4096) {
    int32_t part = 0;
    int64_t end = n - i < 4096 ? n : i + 4096;
    for (int64_t j = i; j < end; j++) part += x[j] != 0;
    total += part;
  }
  return total;
}

/* ---- half precision ---- */

#ifdef __F16C__
static void from_f16 (const uint16_t *x, float *y, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(y + i,
                     _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(x + i))));
  for (; i < n; i++) y[i] = _cvtsh_ss(x[i]);
}
static void to_f16 (const float *x, uint16_t *y, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i *)(void *)(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 0));
  for (; i < n; i++) y[i] = _cvtss_sh(x[i], 0);
}
#else
static void from_f16 (const uint16_t *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = peri__f16_to_f32(x[i]);
}
static void to_f16 (const float *x, uint16_t *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = peri__f32_to_f16(x[i]);
}
#endif
static void from_bf16 (const uint16_t *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t u = (uint32_t)x[i] << 16;
    memcpy(y + i, &u, sizeof u);
  }
}
static void to_bf16 (const float *x, uint16_t *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t u;
    memcpy(&u, x + i, sizeof u);
    uint32_t r = (u + 0x7fffu + ((u >> 16) & 1)) >> 16, q = (u >> 16) | 0x40;
    y[i] = (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? q : r);
  }
}

const struct peri__math_kernels PERI_NAME(peri__math) = {
  .unary = PERI_NAME(peri__unary_f32),
  .test = PERI_NAME(peri__test_f32),
  .binary = PERI_NAME(peri__binary_f32),
  .gate = PERI_NAME(peri__gates),
  .compare = PERI_NAME(peri__compare_f32),
  .where = PERI_NAME(peri__where_f32),
  .lerp = PERI_NAME(peri__lerp_f32),
  .sum = row_sum,
  .sum_abs = row_sum_abs,
  .sum_square = row_sum_square,
  .sum_exp = row_sum_exp,
  .prod = row_prod,
  .max = row_max,
  .min = row_min,
  .argmax = row_argmax,
  .argmin = row_argmin,
  .column_sum = column_sum,
  .column_max = column_max,
  .column_min = column_min,
  .count = row_count,
  .from_f16 = from_f16,
  .to_f16 = to_f16,
  .from_bf16 = from_bf16,
  .to_bf16 = to_bf16,
};
