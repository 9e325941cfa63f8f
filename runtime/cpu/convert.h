/*
** convert.h - moving elements between storage dtypes and compute types. Kernels compute in f32
** (f16, bf16, f32), f64, i64 (u8, i32, i64) or bool; blocks of other dtypes are loaded and stored
** through these two functions. Plain C, no allocation, no errors.
*/
#ifndef peri_convert_h
#define peri_convert_h

#include "cpu/cpu.h"

/* The compute type of a dtype: PERI_F32, PERI_F64, PERI_I64 or PERI_BOOL. */
peri_dtype peri__compute_type (int dtype);
/* n elements of dtype from, stride elements apart, into the dense array dst of compute type to.
** Floats become integers by truncation, NaN 0, what does not fit the nearest end. */
void peri__load (const struct peri__math_kernels *k, int to, void *dst, int from, const void *src,
                 int64_t stride, int64_t n);
/* The dense array src of compute type from into n elements of dtype to, stride apart: floats to
** floats, i64 or bool to integers and bool (modulo 2^bits; bool: not 0). */
void peri__store (const struct peri__math_kernels *k, int to, void *dst, int64_t stride, int from,
                  const void *src, int64_t n);

#endif
