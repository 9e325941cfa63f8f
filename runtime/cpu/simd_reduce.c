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
extern void PERI_NAME(peri__where_f32) (int64_t, const void *const *, const int64_t *, void *,
                                        const double *);
extern void PERI_NAME(peri__lerp_f32) (int64_t, const void *const *, const int64_t *, void *,
                                       const double *);

#define INLINE static inline __attribute__((always_inline))

/* ---- sums in f64 ---- */

INLINE double fold (v_f64 *s) {
  double b[PERI_VW];
  v_f64 t = (s[0] + s[1]) + (s[2] + s[3]);
  memcpy(b, &t, sizeof b);
#pragma GCC unroll 8
  for (int w = PERI_VW / 2; w > 0; w /= 2)
    for (int i = 0; i < w; i++) b[i] += b[i + w];
  return b[0];
}

/* The sum of e over the row, e written in v, a vector of f32 whose value at fill is 0. */
#define SUM(fill, e)                                                          \
  v_f64 s[4] = { { 0 }, { 0 }, { 0 }, { 0 } };                                \
  int64_t i = 0;                                                              \
  for (; i + 4 * PERI_VW <= n; i += 4 * PERI_VW)                              \
    for (int k = 0; k < 4; k++) {                                             \
      vf v = v_load(x + i + k * PERI_VW);                                     \
      s[k] += e;                                                              \
    }                                                                         \
  for (int k = 0; i < n; k++, i += PERI_VW) {                                 \
    vf v = n - i >= PERI_VW ? v_load(x + i) : v_load_tail(x + i, n - i, fill); \
    s[k] += e;                                                                \
  }                                                                           \
  return fold(s);

#define WIDE(v) __builtin_convertvector(v, v_f64)

static double row_sum (const float *x, int64_t n) { SUM(0, WIDE(v)) }
static double row_sum_abs (const float *x, int64_t n) { SUM(0, WIDE(v_abs(v))) }
static double row_sum_square (const float *x, int64_t n, double shift) {
  if (shift == 0) { SUM(0, WIDE(v) * WIDE(v)) }
  /* lanes past the end must add 0: they are masked, since shift need not be an f32 */
  v_f64 s[4] = { { 0 }, { 0 }, { 0 }, { 0 } };
  for (int64_t i = 0, k = 0; i < n; i += PERI_VW, k = (k + 1) & 3) {
    vf v = n - i >= PERI_VW ? v_load(x + i) : v_load_tail(x + i, n - i, 0);
    v_f64 d = WIDE(v) - shift;
    if (n - i < PERI_VW)
      for (int j = (int)(n - i); j < PERI_VW; j++) d[j] = 0;
    s[k] += d * d;
  }
  return fold(s);
}
static double row_sum_exp (const float *x, int64_t n, float shift) {
  SUM(-INFINITY, WIDE(v_exp(v - shift)))
}
static double row_prod (const float *x, int64_t n) {
  v_f64 s = { 0 };
  double b[PERI_VW];
  s += 1.0;
  for (int64_t i = 0; i < n; i += PERI_VW)
    s *= WIDE(n - i >= PERI_VW ? v_load(x + i) : v_load_tail(x + i, n - i, 1));
  memcpy(b, &s, sizeof b);
  for (int w = PERI_VW / 2; w > 0; w /= 2)
    for (int i = 0; i < w; i++) b[i] *= b[i + w];
  return b[0];
}

/* Four rows at a time: their sum goes to acc once. */
static void column_sum (const float *x, int64_t rows, int64_t stride, int64_t cols, double *acc) {
  typedef double wide __attribute__((vector_size(PERI_VW * 8), aligned(8), may_alias));
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4, x += 4 * stride) {
    const float *x1 = x + stride, *x2 = x1 + stride, *x3 = x2 + stride;
    int64_t j = 0;
    for (; j + PERI_VW <= cols; j += PERI_VW)
      *(wide *)(acc + j) += (WIDE(v_load(x + j)) + WIDE(v_load(x1 + j))) +
                            (WIDE(v_load(x2 + j)) + WIDE(v_load(x3 + j)));
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

#define EXTREME(name, pick, less)                                                    \
  static float name (const float *x, int64_t n) {                                    \
    vf s[2] = { v_set(x[0]), v_set(x[0]) };                                          \
    int64_t i = 0;                                                                   \
    for (; i + 2 * PERI_VW <= n; i += 2 * PERI_VW) {                                 \
      s[0] = pick(s[0], v_load(x + i));                                              \
      s[1] = pick(s[1], v_load(x + i + PERI_VW));                                    \
    }                                                                                \
    for (; i < n; i += PERI_VW)                                                      \
      s[0] = pick(s[0], n - i >= PERI_VW ? v_load(x + i) : v_load_tail(x + i, n - i, x[0])); \
    vf m = pick(s[0], s[1]);                                                         \
    float y = m[0];                                                                  \
    for (int k = 1; k < PERI_VW; k++)                                                \
      if (m[k] != m[k] || m[k] less y) y = m[k];                                     \
    return y;                                                                        \
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

#define COLUMNS(name, pick, keep)                                                              \
  static void name (const float *x, int64_t rows, int64_t stride, int64_t cols, float *acc) {  \
    for (int64_t r = 0; r < rows; r++, x += stride) {                                          \
      int64_t j = 0;                                                                           \
      for (; j + PERI_VW <= cols; j += PERI_VW)                                                \
        v_store(acc + j, pick(v_load(acc + j), v_load(x + j)));                                \
      for (; j < cols; j++)                                                                    \
        if (acc[j] == acc[j] && !(acc[j] keep x[j])) acc[j] = x[j];                        \
    }                                                                                          \
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
    _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(x + i))));
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
  .unary = PERI_NAME(peri__unary_f32), .test = PERI_NAME(peri__test_f32),
  .binary = PERI_NAME(peri__binary_f32), .compare = PERI_NAME(peri__compare_f32),
  .where = PERI_NAME(peri__where_f32), .lerp = PERI_NAME(peri__lerp_f32),
  .sum = row_sum, .sum_abs = row_sum_abs, .sum_square = row_sum_square, .sum_exp = row_sum_exp,
  .prod = row_prod, .max = row_max, .min = row_min, .argmax = row_argmax, .argmin = row_argmin,
  .column_sum = column_sum, .column_max = column_max, .column_min = column_min,
  .count = row_count,
  .from_f16 = from_f16, .to_f16 = to_f16, .from_bf16 = from_bf16, .to_bf16 = to_bf16,
};
