/*
** optim.h - one pass over several lists of tensors at once: what the optimizer steps share. All
** tensors are cut into blocks of one size, and the blocks of all tensors make one parallel loop, so
** a model of many small tensors costs no more than one of few large ones.
*/
#ifndef peri_optim_h
#define peri_optim_h

#include "cpu/loss.h"
#include "op/op.h"

extern const struct peri__loss_kernels peri__steps_f64; /* the steps alone; op/optim_f64.c */

/*
** Shape rule of the lists of a call: names[k] is what the k-th list is called in messages. A list
** that the op writes must be dense. Everything must have the dtype (f32 or f64) and, position by
** position, the shape of list 0. optional: a bit for each list that may be left out (empty, or all
** entries nil). A list "grads" behind one of parameters that is left out is the gradients which these
** have themselves.
*/
peri_status peri__multi_check (peri_call *c, const char *const *names, unsigned optional);
/* A rate or a factor of a step: finite, and not below 0, which would turn the step round. */
peri_status peri__rate_check (peri_call *c, const char *name, double v);
/* Is the k-th list of the call given? */
bool peri__multi_given (const peri_call *c, int k);

enum { PERI_MULTI_BLOCK = 16384 /* elements: four lists of f32 fit the second-level cache */ };

typedef struct peri__multi {
  peri_ctx *ctx;
  const struct peri__loss_kernels *k; /* steps of the lists' dtype */
  peri_tensor *const *in;             /* list 0, borrowed from the call */
  int n, nlist;                       /* tensors in a list, lists */
  bool f64;
  size_t size;           /* of an element */
  int64_t blocks, total; /* of all tensors of list 0; elements */
  int64_t *first;        /* (n + 1): first block of each tensor */
  const void **data;     /* (nlist * n); NULL where a list is left out */
  double *acc;           /* (blocks, 2): f64 sums of each block */
  peri_tensor **held;    /* (nlist * n): dense copies of what was read */
  size_t first_bytes, data_bytes, acc_bytes;
} peri__multi;

/* Lists of a checked call, in order. On failure nothing is held. */
peri_status peri__multi_open (peri_call *c, peri__multi *m);
void peri__multi_close (peri__multi *m);
/* Run fn over every block with the lists that order names, e.g. "023", each block's sums zeroed
** first. steps: one, or one for each tensor when each is set. */
void peri__multi_run (peri__multi *m, peri__step_fn fn, const char *order, const peri__step *steps,
                      bool each);
/* Sum k (0 or 1) of a tensor, or of all of them for tensor -1: blocks are added in their order. */
double peri__multi_sum (const peri__multi *m, int tensor, int k);

#endif
