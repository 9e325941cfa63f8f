/*
** convert.c - loads and stores between storage dtypes and compute types. ORDER dtype
*/
#include "cpu/convert.h"

#include <string.h>

#include "cpu/math.h"

peri_dtype peri__compute_type (int dtype) {
  switch (dtype) {
  case PERI_BOOL: return PERI_BOOL;
  case PERI_F16:
  case PERI_BF16:
  case PERI_F32: return PERI_F32;
  case PERI_F64: return PERI_F64;
  default: return PERI_I64;
  }
}

static int64_t to_i64 (double v) {
  if (v != v) return 0;
  if (v >= 0x1p63) return INT64_MAX;
  return v < -0x1p63 ? INT64_MIN : (int64_t)v;
}

#define SAME(v) (v)
#define NOT_0(v) ((v) != 0)

/* Every dtype into an array of D; int_of and float_of turn what was read into D. */
#define RUN(S, e)                     \
  {                                   \
    const S *s = src;                 \
    for (int64_t i = 0; i < n; i++) { \
      S v = s[i * stride];            \
      y[i] = e;                       \
    }                                 \
  }                                   \
  break
#define LOADER(name, D, int_of, float_of)                                        \
  static void name(D *y, int from, const void *src, int64_t stride, int64_t n) { \
    switch (from) {                                                              \
    case PERI_BOOL:                                                              \
    case PERI_U8: RUN(uint8_t, (D)int_of(v));                                    \
    case PERI_I32: RUN(int32_t, (D)int_of(v));                                   \
    case PERI_I64: RUN(int64_t, (D)int_of(v));                                   \
    case PERI_F16: RUN(uint16_t, (D)float_of(peri__f16_to_f32(v)));              \
    case PERI_BF16: RUN(uint16_t, (D)float_of(peri__bf16_to_f32(v)));            \
    case PERI_F32: RUN(float, (D)float_of(v));                                   \
    default: RUN(double, (D)float_of(v));                                        \
    }                                                                            \
  }
LOADER(load_f32, float, SAME, SAME)
LOADER(load_f64, double, SAME, SAME)
LOADER(load_i64, int64_t, SAME, to_i64)
LOADER(load_bool, uint8_t, NOT_0, NOT_0)

void peri__load (const struct peri__math_kernels *k, int to, void *dst, int from, const void *src,
                 int64_t stride, int64_t n) {
  if (stride == 1) {
    if (from == to) {
      memcpy(dst, src, (size_t)n * peri_dtype_size((peri_dtype)to));
      return;
    }
    if (to == PERI_F32 && from == PERI_F16) {
      k->from_f16(src, dst, n);
      return;
    }
    if (to == PERI_F32 && from == PERI_BF16) {
      k->from_bf16(src, dst, n);
      return;
    }
  }
  switch (to) {
  case PERI_F32: load_f32(dst, from, src, stride, n); break;
  case PERI_F64: load_f64(dst, from, src, stride, n); break;
  case PERI_I64: load_i64(dst, from, src, stride, n); break;
  default: load_bool(dst, from, src, stride, n); break;
  }
}

#define STORE(D, S, e)                \
  {                                   \
    D *y = dst;                       \
    const S *s = src;                 \
    for (int64_t i = 0; i < n; i++) { \
      S v = s[i];                     \
      y[i * stride] = (D)(e);         \
    }                                 \
  }                                   \
  break

void peri__store (const struct peri__math_kernels *k, int to, void *dst, int64_t stride, int from,
                  const void *src, int64_t n) {
  if (stride == 1) {
    if (from == to) {
      memcpy(dst, src, (size_t)n * peri_dtype_size((peri_dtype)to));
      return;
    }
    if (to == PERI_F16) {
      k->to_f16(src, dst, n);
      return;
    }
    if (to == PERI_BF16) {
      k->to_bf16(src, dst, n);
      return;
    }
  }
  if (from == PERI_BOOL) {
    switch (to) {
    case PERI_BOOL:
    case PERI_U8: STORE(uint8_t, uint8_t, v);
    case PERI_I32: STORE(int32_t, uint8_t, v);
    default: STORE(int64_t, uint8_t, v);
    }
    return;
  }
  switch (to) {
  case PERI_BOOL: STORE(uint8_t, int64_t, v != 0);
  case PERI_U8: STORE(uint8_t, int64_t, (uint64_t)v);
  case PERI_I32: STORE(int32_t, int64_t, (uint32_t)(uint64_t)v);
  case PERI_I64: STORE(int64_t, int64_t, v);
  case PERI_F16: STORE(uint16_t, float, peri__f32_to_f16(v));
  case PERI_BF16: STORE(uint16_t, float, peri__f32_to_bf16(v));
  case PERI_F32: STORE(float, float, v);
  default: STORE(double, double, v);
  }
}
