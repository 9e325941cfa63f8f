/*
** move.h - moving elements without looking at them: threaded strided copies and fills that the
** creation, view, shape and index ops share. Elements are known by their size alone.
*/
#ifndef peri_move_h
#define peri_move_h

#include "op/op.h"

#define PERI_MOVE_DIMS 16 /* tile and friends split dims in two */

/* Copy a box of ndim dims from src to dst; strides in elements, any sign, 0 on the source side
** broadcasts. The boxes may not overlap. */
void peri__move (peri_ctx *ctx, size_t size, int ndim, const int64_t *shape, void *dst,
                 const int64_t *dstride, const void *src, const int64_t *sstride);
/* n elements of dst become the element at value. */
void peri__fill (peri_ctx *ctx, size_t size, void *dst, int64_t n, const void *value);
/* The integer that a num attribute is; false where it has a fraction or needs more than 64 bits. */
bool peri__whole (const peri_attr *a, int64_t *out);
/* A num attribute in a caller's buffer; for messages. */
const char *peri__num_text (const peri_attr *a, char *buf, size_t size);
/* The element of dtype d that a num attribute is, at out (8 bytes). Floats take the nearest one,
** bool whether it is not 0; other integers refuse what they do not hold. */
peri_status peri__element (peri_ctx *ctx, int d, const peri_attr *a, void *out);
/* PERI_EINVAL when input i is a plain number (weak, i64 or f64) that dtype d does not hold. */
peri_status peri__number_fits (const peri_call *c, int i, int d);
#define NUM_ATTR(x) (&(const peri_attr){ .f = (x) })
/* Dense row-major strides of a shape. */
void peri__dense_strides (int ndim, const int64_t *shape, int64_t *stride);

/* out (V, D) += g (..., D) in the rows ids (...), in their order; pad: a row left out, or INT64_MIN.
** g and out are of one dtype, out is dense. */
peri_status peri__add_embedding (peri_ctx *ctx, peri_tensor *g, peri_tensor *ids, int64_t pad,
                                 peri_tensor *out);

/* The values of an integer tensor as dense int64, checked to lie in 0..limit-1. Everything is
** released by peri__indices_free, which takes a zeroed struct too. */
typedef struct peri_indices {
  const int64_t *v;
  int64_t n;
  peri_tensor *dense; /* owner of v when the tensor could be used as it is */
  int64_t *own;       /* owner of v otherwise */
} peri_indices;
peri_status peri__indices (peri_ctx *ctx, peri_tensor *t, const char *name, int64_t limit,
                           peri_indices *out);
void peri__indices_free (peri_ctx *ctx, peri_indices *x);

#endif
