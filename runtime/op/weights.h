/*
** weights.h - products with weights that are no plain arrays (peri__opaque: quantised or packed),
** for the ops with PERI_OP_WEIGHT. All arithmetic is in f32.
*/
#ifndef peri_weights_h
#define peri_weights_h

#include "op/op.h"

/* y (m, n) = x W^T + bias for an opaque w (n, k); rows of x are xrs apart, bias may be NULL. A
** quantised w that is not packed is dequantised whole for the call. */
peri_status peri__weight_product (peri_ctx *ctx, peri_tensor *w, int64_t m, const float *x,
                                  int64_t xrs, const float *bias, float *y);
/* dx (m, k) = g W for rows of g (m, n), dense. */
peri_status peri__weight_back (peri_ctx *ctx, peri_tensor *w, int64_t m, const float *g, float *dx);
/* Row i of an opaque w as floats; thread-safe. */
void peri__weight_row (const peri_tensor *w, int64_t i, float *out);
/* What the op called gives as x, and bias, with an opaque w. */
peri_status peri__weight_want_f32 (peri_call *c, int i, const char *name);

#endif
