/*
** run_op.h - peri_apply for tests of something else: the counts of attributes and results are those of the
** op, so that attr NULL takes the defaults and out has as many entries as the op returns.
*/
#ifndef run_op_h
#define run_op_h

#include "perilune.h"

static inline peri_status run_op (peri_ctx *ctx, const peri_op *op, int nin, peri_tensor *const *in,
                                  const peri_attr *attr, peri_tensor **out) {
  return peri_apply(ctx, op, nin, in, attr ? peri_op_attrs(op) : 0, attr, peri_op_outputs(op), out);
}

#endif
