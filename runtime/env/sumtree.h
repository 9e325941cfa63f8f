/*
** sumtree.h - priorities of transitions as two complete binary trees in f64, of sums and of minima: draw
** in proportion, know the smallest, change any, in O(log n). A node is a function of its two
** children alone, so that trees do not depend on the order of what led to them.
*/
#ifndef peri_env_sumtree_h
#define peri_env_sumtree_h

#include "core/core.h"

typedef struct peri__sumtree {
  int64_t n, width; /* leaves in use; of the tree, a power of two */
  peri_tensor *sum,
      *min; /* f64 (2 width): node i has children 2 i and 2 i + 1, leaf i is width + i */
} peri__sumtree;

bool peri__sumtree_bytes (int64_t n, size_t *total); /* adds what n leaves need; false: overflow */
peri_status peri__sumtree_open (peri_ctx *ctx, int64_t n, peri__sumtree *t);
void peri__sumtree_close (peri__sumtree *t); /* idempotent */
void peri__sumtree_clear (peri__sumtree *t);
static inline double *peri__sumtree_leaves (const peri__sumtree *t) {
  return (double *)t->sum->data + t->width;
}
static inline double peri__sumtree_total (const peri__sumtree *t) {
  return ((const double *)t->sum->data)[1];
}
static inline double peri__sumtree_min (const peri__sumtree *t) { /* of those above 0 */
  return ((const double *)t->min->data)[1];
}
/* Leaves begin to end were written: bring minima and sums above them up to date. */
void peri__sumtree_range (peri__sumtree *t, int64_t begin, int64_t end);
/* Set n leaves; node: scratch of n. */
void peri__sumtree_set (peri__sumtree *t, int64_t n, const int64_t *leaf, const double *value,
                        int64_t *node);
/* The leaf in whose part of the sum each point lies; never one of value 0 where the total is above 0.
** point is used up. */
void peri__sumtree_find (const peri__sumtree *t, int64_t n, double *point, int64_t *leaf);

#endif
