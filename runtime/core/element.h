/*
** element.h - one element of a plain dtype as a number, and a number as an element: for what goes
** through tensors one by one (scalars, tables, prints). Loops over arrays are in cpu/convert.c.
*/
#ifndef peri_element_h
#define peri_element_h

#include "core/core.h"

typedef struct peri__value {
  int64_t i;  /* the exact value where whole */
  double f;   /* the value, or the nearest to it */
  bool whole; /* an integer or bool */
} peri__value;

static inline peri__value peri__element_get (int dtype, const void *p) {
  peri__value v = { 0, 0, true };
  switch (dtype) { /* ORDER dtype */
  case PERI_BOOL: v.i = *(const uint8_t *)p != 0; break;
  case PERI_U8: v.i = *(const uint8_t *)p; break;
  case PERI_I32: v.i = *(const int32_t *)p; break;
  case PERI_I64: v.i = *(const int64_t *)p; break;
  case PERI_F16: return (peri__value){ 0, (double)peri__f16_to_f32(*(const uint16_t *)p), false };
  case PERI_BF16: return (peri__value){ 0, (double)peri__bf16_to_f32(*(const uint16_t *)p), false };
  case PERI_F32: return (peri__value){ 0, (double)*(const float *)p, false };
  default: return (peri__value){ 0, *(const double *)p, false };
  }
  v.f = (double)v.i;
  return v;
}

/* v as an element: floats rounded once, integers by i's low bits (of f's whole part where v is not
** whole), bool not 0. */
static inline void peri__element_put (int dtype, void *p, peri__value v) {
  if (!v.whole && dtype < PERI_F16 && dtype != PERI_BOOL) v.i = (int64_t)v.f;
  switch (dtype) { /* ORDER dtype */
  case PERI_BOOL: *(uint8_t *)p = v.whole ? v.i != 0 : v.f != 0; break;
  case PERI_U8: *(uint8_t *)p = (uint8_t)v.i; break;
  case PERI_I32: *(int32_t *)p = (int32_t)v.i; break;
  case PERI_I64: *(int64_t *)p = v.i; break;
  case PERI_F16:
  case PERI_BF16: *(uint16_t *)p = peri__f64_to_half(dtype, v.f); break;
  case PERI_F32: *(float *)p = v.whole ? (float)v.i : (float)v.f; break;
  default: *(double *)p = v.f;
  }
}

/* What integers and bool hold; false for floats. */
static inline bool peri__element_range (int dtype, int64_t *low, int64_t *top) {
  switch (dtype) { /* ORDER dtype */
  case PERI_BOOL: *low = 0, *top = 1; return true;
  case PERI_U8: *low = 0, *top = UINT8_MAX; return true;
  case PERI_I32: *low = INT32_MIN, *top = INT32_MAX; return true;
  case PERI_I64: *low = INT64_MIN, *top = INT64_MAX; return true;
  default: return false;
  }
}

#endif
