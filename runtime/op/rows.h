/*
** rows.h - what the ops on rows of logits share: class ids and the row kernels in f32 and f64.
** cross_entropy, token_logprob and sample get a log-probability from these functions and no
** others, which is what makes their bits agree.
*/
#ifndef peri_rows_h
#define peri_rows_h

#include "cpu/loss.h"
#include "op/op.h"

/* Element i of a dense integer tensor. */
int64_t peri__id_at (const peri_tensor *t, int64_t i);
/* ids must be integers of shape x.shape[:-1] (x: the tensor called xname, at least one dim). */
peri_status peri__ids_shape (peri_call *c, const peri_tensor *ids, const char *name,
                             const peri_tensor *x, const char *xname);
/* Every id must lie in [0, n) or equal ignore. *active = how many are not ignored. */
peri_status peri__ids_check (peri_call *c, const peri_tensor *ids, const char *name, int64_t n,
                             int64_t ignore, int64_t *active);

/* Rows of dtype PERI_F32 or PERI_F64. */
typedef struct peri__rows {
  const struct peri__loss_kernels *k;
  bool f64;
  size_t size;  /* of an element */
  double scale; /* 1 / temperature, as the kernels of this dtype see it */
} peri__rows;

peri__rows peri__rows_of (const peri_ctx *ctx, int dtype, double temperature);
/* e may be NULL; see cpu/loss.h. */
void peri__rows_stat (const peri__rows *r, const void *x, int64_t n, void *e, peri__row *out);
double peri__rows_sum (const peri__rows *r, const void *x, int64_t n);
void peri__rows_grad (const peri__rows *r, const void *x, int64_t n, const peri__row_grad *g,
                      void *out);
int64_t peri__rows_pick (const peri__rows *r, const void *e, int64_t n, double u);

static inline double peri__rows_get (const peri__rows *r, const void *p, int64_t i) {
  return r->f64 ? ((const double *)p)[i] : (double)((const float *)p)[i];
}
static inline void peri__rows_set (const peri__rows *r, void *p, int64_t i, double v) {
  if (r->f64)
    ((double *)p)[i] = v;
  else
    ((float *)p)[i] = (float)v;
}
static inline const void *peri__rows_at (const peri__rows *r, const void *p, int64_t i) {
  return (const char *)p + (size_t)i * r->size;
}
double peri__rows_logp (const peri__rows *r, const peri__row *s, const void *x, int64_t i);
double peri__rows_entropy (const peri__row *s);
/* Rows to give a thread at once, so that a piece is worth the hand-over. */
static inline int64_t peri__rows_grain (int64_t n) { return n >= 8192 ? 1 : 8192 / (n + 1) + 1; }

#endif
