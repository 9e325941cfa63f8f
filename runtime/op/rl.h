/*
** rl.h - what the ops over time share: elements as numbers, the checks of rewards and of what lies
** beside them.
*/
#ifndef peri_rl_h
#define peri_rl_h

#include "op/op.h"

/* Element i of a dense tensor of any dtype but the halves, which are cast before. */
static inline double peri__number_at (const peri_tensor *t, int64_t i) {
  switch (t->dtype) { /* ORDER dtype */
  case PERI_F32: return (double)((const float *)t->data)[i];
  case PERI_F64: return ((const double *)t->data)[i];
  case PERI_I64: return (double)((const int64_t *)t->data)[i];
  case PERI_I32: return (double)((const int32_t *)t->data)[i];
  default: return ((const uint8_t *)t->data)[i];
  }
}
/* t may be NULL: no flag is set. */
static inline bool peri__flag_at (const peri_tensor *t, int64_t i) {
  return t != NULL && peri__number_at(t, i) != 0;
}
/* Into a tensor of f32 or f64. */
static inline void peri__put (peri_tensor *t, int64_t i, double v) {
  if (t->dtype == PERI_F64)
    ((double *)t->data)[i] = v;
  else
    ((float *)t->data)[i] = (float)v;
}
static inline int64_t peri__last_size (const peri_tensor *t) {
  return t->ndim > 0 ? t->shape[t->ndim - 1] : 0;
}

/* Input i, which may be absent, has the shape of rewards, input 0. */
peri_status peri__rl_same_shape (peri_call *c, int i, const char *name);
/* v lies in [0, 1]. */
peri_status peri__rl_unit (peri_call *c, const char *name, double v);
/* Rewards (..., time) of a float dtype, n - 1 inputs of their shape behind them, the first nvalues of
** these of their dtype. */
peri_status peri__rl_timed (peri_call *c, int n, const char *const *names, int nvalues);
/* No reward that counts is NaN or infinite. mask may be NULL. */
peri_status peri__rl_finite (peri_call *c, const peri_tensor *mask);
/* A truncated step that counts has the value of what it cut off. All may be NULL. */
peri_status peri__rl_next_known (peri_call *c, const peri_tensor *next,
                                 const peri_tensor *truncated, const peri_tensor *mask);

#endif
