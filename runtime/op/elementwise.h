/*
** elementwise.h - one driver for every op whose element depends on the matching elements of its
** inputs: broadcasting, strides, dtypes and threads are dealt with here, kernels see plain arrays.
*/
#ifndef peri_elementwise_h
#define peri_elementwise_h

#include <math.h>

#include "cpu/convert.h"
#include "cpu/math.h"
#include "op/op.h"

typedef struct peri__loop {
  peri__kernel fn;
  int nin;        /* 1 to 3 */
  int in_type[3]; /* compute types that fn wants: PERI_F32, F64, I64, BOOL */
  int out_type;
  int64_t grain;   /* elements worth a thread */
  const double *p; /* for fn */
} peri__loop;

#define PERI_GRAIN_CHEAP 32768
#define PERI_GRAIN_COSTLY 12288

#define PERI_SQRT1_2 0.70710678118654752440 /* POSIX's M_ constants are not C11 */
#define PERI_LN2 0.69314718055994530942

#define ELEMENTWISE (PERI_OP_STRIDED | PERI_OP_ELEMENTWISE) /* flags of most ops here */

static inline double peri__logistic (double x) {
  double e = exp(-fabs(x));
  return (x < 0 ? e : 1) / (1 + e);
}
static inline double peri__softplus (double x) { return (x > 0 ? x : 0) + log1p(exp(-fabs(x))); }

/* Run l over in[0..nin-1], broadcast to out's shape, into out, which has any strides and may be one
** of the inputs. */
peri_status peri__elementwise (peri_ctx *ctx, const peri__loop *l, peri_tensor *const *in,
                               peri_tensor *out);
/* c->out[0] of dtype d and the broadcast shape of the first n inputs. */
peri_status peri__infer_broadcast (peri_call *c, int n, int d);
/* The compute type of ops that have kernels for f32, f64 and i64. */
static inline int peri__wide_type (int dtype) {
  peri_dtype type = peri__compute_type(dtype);
  return type == PERI_BOOL ? PERI_I64 : (int)type;
}
static inline int peri__float_of (int dtype) { return peri__is_float(dtype) ? dtype : PERI_F32; }
static inline bool peri__same_shape (const peri_tensor *a, const peri_tensor *b) {
  if (a->ndim != b->ndim) return false;
  for (int i = 0; i < a->ndim; i++)
    if (a->shape[i] != b->shape[i]) return false;
  return true;
}
/* The dim that lies along the memory, when it is not the last; else -1. */
int peri__unit_dim (const peri_tensor *t);
/* Values of src, broadcast to dst's shape and converted to its dtype, into dst. */
peri_status peri__copy (peri_tensor *src, peri_tensor *dst);

#endif
