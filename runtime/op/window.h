/*
** window.h - what ops with a window that slides over an image share: its sizes as they are given, and
** the size of what comes out.
*/
#ifndef peri_window_h
#define peri_window_h

#include "op/op.h"

/* Index 0 is rows, 1 columns. */
typedef struct peri__window {
  int64_t in[2], kernel[2], stride[2], before[2], after[2], dilation[2], out[2];
} peri__window;

/* Attribute a, called name: one integer for both dims or one for each, all in [least, 2^31); fallback where
** it is left out. */
peri_status peri__pair (peri_ctx *ctx, const peri_attr *a, const char *name, int64_t least,
                        int64_t fallback, int64_t out[2]);
/* The same of a padding: one integer, one for each dim, or what is added before and after of each. */
peri_status peri__padding (peri_ctx *ctx, const peri_attr *a, int64_t before[2], int64_t after[2]);
/* Stride, padding and dilation from three attributes in this order, then out; in and kernel are set. */
peri_status peri__window_read (peri_ctx *ctx, const peri_attr *a, peri__window *w);
/* out of a window whose other sizes are set, or what does not fit. */
peri_status peri__window_fit (peri_ctx *ctx, peri__window *w);
/* A stride with nothing to step to becomes one that no window notices, so that sizes stay small. */
void peri__window_clamp (peri__window *w);
/* Input i, called name, is an image (C, H, W) or several (N, C, H, W). */
peri_status peri__want_image (peri_call *c, int i, const char *name);
/* Output k: (c, h, w) for each image of input 0. */
peri_status peri__new_image (peri_call *c, int k, peri_dtype d, int64_t channels, int64_t h,
                             int64_t w);
static inline int64_t peri__images (const peri_tensor *t) { return t->ndim == 4 ? t->shape[0] : 1; }
/* Size i from the channels on: 0 channels, 1 rows, 2 columns. */
static inline int64_t peri__image_size (const peri_tensor *t, int i) {
  return t->shape[t->ndim - 3 + i];
}

/* A 1d op by its 2d one, the row being an image of height 1: x (.., C, L) -> (.., C, 1, L) and back. */
peri_tensor *peri__as_image (peri_build *b, peri_call *c, peri_tensor *x, const char *name);
peri_tensor *peri__as_row (peri_build *b, peri_tensor *y);
/* Attribute a of a row, one integer (or two of a padding), as that of an image with rest for its rows. */
typedef struct peri__row_attr {
  int64_t v[4];
  peri_attr attr;
} peri__row_attr;
peri_status peri__row_attr_of (peri_ctx *ctx, const peri_attr *a, const char *name, int most,
                               int64_t rest, peri__row_attr *out);

#endif
