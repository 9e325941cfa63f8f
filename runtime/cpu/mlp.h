/*
** mlp.h - a whole network of linear layers over the rows of a matrix: what op/mlp.c asks of cpu/mlp.c.
*/
#ifndef peri_mlp_h
#define peri_mlp_h

#include "cpu/cpu.h"
#include "cpu/math.h"

enum { PERI_MLP_LAYERS = 16 };

/* Sizes and memory of a call; all arrays are dense but the weights, (out, in) by strides. NULL where
** something is not there, or not wanted. */
typedef struct peri__mlp {
  bool f64;
  size_t size; /* of an element */
  int layers;
  int64_t copies, rows; /* networks; rows of each */
  int64_t width[PERI_MLP_LAYERS + 1];
  peri__kernel act, slope; /* between layers, and its gradient: of the dtype */
  const char *x, *g;       /* (copies, rows, first width); the gradient of y */
  struct {
    const char *p;
    int64_t copy, rs, cs; /* strides in elements */
  } w[PERI_MLP_LAYERS];
  const char *b[PERI_MLP_LAYERS]; /* (copies, out) */
  char *y, *dx;
  char *dw[PERI_MLP_LAYERS], *db[PERI_MLP_LAYERS];
  /* The hidden layers one after the other, each (copies, rows, width), behind the activation, and
  ** before it where its gradient reads that. */
  char *after, *before;
} peri__mlp;

/* Elements of the first hidden layers, up to the one before `layer`; of all of them: layer = layers. */
int64_t peri__mlp_hidden (const peri__mlp *n, int layer);
/* y, and after and before where they are not NULL. */
peri_status peri__mlp_forward (peri_ctx *ctx, const peri__mlp *n);
/* dx, dw and db, from g, after and before. */
peri_status peri__mlp_backward (peri_ctx *ctx, const peri__mlp *n);

#endif
