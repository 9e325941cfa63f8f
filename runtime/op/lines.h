/*
** lines.h - what index.c and scatter.c share: walking tensors line by line along one dim, and
** masks. A line fixes every coordinate but the one along dim; two lines of an index tensor never
** name the same element, so that lines may run on any thread in any order.
*/
#ifndef peri_lines_h
#define peri_lines_h

#include "op/op.h"

typedef struct peri_lines {
  size_t size;     /* bytes of an element of a and b */
  int dtype;       /* of a */
  int64_t n;       /* indices in a line */
  int64_t istep;   /* elements from one index of a line to the next */
  int64_t step[2]; /* the same along a and b */
} peri_lines;

/* One line: a and b point at its element 0. */
typedef void (*peri_line_fn)(const peri_lines *x, char *a, const char *b, const int64_t *index);

/* Run fn for every line of index (whose values are at v, dense) along dim. a and b have index's
** number of dims; b may be 0-dim and stands still then. */
void peri__lines (peri_ctx *ctx, peri_line_fn fn, const peri_tensor *index, const int64_t *v,
                  int dim, peri_tensor *a, const peri_tensor *b);
/* Index in[1] has t's number of dims and no size above t's, that of dim aside (dim < 0: none). */
peri_status peri__lines_check (peri_call *c, const peri_tensor *t, const char *name, int dim);
/* The mask broadcast to x, one byte an element in a new block of x->numel bytes that the caller
** puts back, and how many are true. The block is NULL when x is empty. */
peri_status peri__mask_get (peri_call *c, const peri_tensor *x, peri_tensor *mask, uint8_t **out,
                            int64_t *count);

#endif
