/*
** reduce.h - folding dims of a tensor away. Any set of dims is brought to rows of n elements, or to
** columns where that saves a copy; which of them is used, and the order of every fold, follows from
** shapes alone, never from strides, threads or how many rows there are.
*/
#ifndef peri_reduce_h
#define peri_reduce_h

#include "cpu/convert.h"
#include "cpu/math.h"
#include "op/op.h"

#define PERI_CHUNK 16384 /* elements of a row that one fold takes; chunks are joined in order */

typedef union peri__part {
  double f;
  int64_t i;
} peri__part;

typedef struct peri__fold peri__fold;
struct peri__fold {
  int type;            /* of the elements of x: PERI_F32, F64, I64, BOOL */
  bool integer;        /* parts are integers */
  peri__part identity; /* of an empty row, before finish */
  /* n > 0 elements of row row */
  peri__part (*chunk)(const peri__fold *f, const void *x, int64_t n, int64_t row);
  peri__part (*join)(peri__part a, peri__part b);
  peri__part (*finish)(const peri__fold *f, peri__part a, int64_t row); /* NULL: as it is */
  /* f32 columns, NULL where rows are to be used: add to, or join with, acc; cols <= 512 */
  void (*columns)(const peri__fold *f, const float *x, int64_t rows, int64_t stride, int64_t cols,
                  double *acc);
  double columns_first; /* what acc begins with */
  double p;             /* a parameter of chunk and finish */
  const double *shift;  /* of each row, or NULL */
  /* set by peri__reduce */
  const struct peri__math_kernels *k;
  int64_t n;
};

/* Fold the flagged dims of x into out, any dtype of f's kind. */
peri_status peri__reduce (peri_ctx *ctx, peri__fold *f, peri_tensor *x,
                          const bool flags[PERI_MAX_DIMS], peri_tensor *out);
/* Fold into an array of doubles, one for each row; only for folds without columns. */
peri_status peri__reduce_rows (peri_ctx *ctx, peri__fold *f, const void *x, int64_t rows, int64_t n,
                               double *out);
/* The rows of x: dense, flagged dims last. New reference. */
peri_status peri__rows (peri_tensor *x, const bool flags[PERI_MAX_DIMS], peri_tensor **out,
                        int64_t *rows, int64_t *n);
/* c->out[k] of dtype d: the shape of x without the flagged dims, or with size 1 there. */
peri_status peri__infer_reduce (peri_call *c, int k, const bool flags[PERI_MAX_DIMS], bool keep,
                                int d);
/* g, a gradient or result of a reduction of x, with the folded dims back as size 1. */
peri_tensor *peri__unfold (peri_build *b, peri_tensor *g, const peri_tensor *x,
                           const bool flags[PERI_MAX_DIMS]);
/* The same two for the vjp of an op whose first attribute is its dims and first input x. */
void peri__fold_flags (const peri_vjp *v, bool flags[PERI_MAX_DIMS]);
peri_tensor *peri__unfold_in (peri_vjp *v, peri_tensor *g);
int64_t peri__folded (const peri_tensor *x, const bool flags[PERI_MAX_DIMS]); /* elements a row */

#endif
