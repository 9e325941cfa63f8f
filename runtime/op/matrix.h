/*
** matrix.h - what matmul and linear share: operands seen as matrices, and gradients of products.
*/
#ifndef peri_matrix_h
#define peri_matrix_h

#include "op/op.h"

/* The last two dims of a tensor; a 1-dim tensor is a row, or a column when it stands on the right. */
typedef struct peri__matrix {
  int64_t rows, cols, rs, cs;
} peri__matrix;

peri__matrix peri__matrix_of (const peri_tensor *t, bool right);
/* t itself where kernels read it well in place, else a dense copy; a new reference. */
peri_status peri__matrix_readable (peri_tensor *t, bool right, peri_tensor **out);
/* Inputs 0 and 1, called a and b in messages, are numbers of one dtype, or b is a weight that is no
** plain array and a is f32. */
peri_status peri__want_matrices (peri_call *c, const char *a, const char *b);
/* One stride that walks the rows of all batch items of t in order; false where there is none. */
bool peri__one_row_stride (const peri_tensor *t, int64_t *stride);
void peri__matmul_cost (const peri_call *c, double *flops, double *bytes);

/* The last two dims exchanged; (..., n) -> (rows, n). */
peri_tensor *peri__turned (peri_build *b, peri_tensor *t);
peri_tensor *peri__flat_rows (peri_build *b, peri_tensor *t);

#endif
