/* inplace.h - the rules of ops that write their inputs, for op/apply.c; see op/inplace.c. */
#ifndef peri_inplace_h
#define peri_inplace_h

#include "op/op.h"

/* Refuse what c, an op with PERI_OP_INPLACE and its lists split, may not write. *collides: an input
** that is read may be another view of written memory. */
peri_status peri__check_writes (peri_call *c, bool *collides);
/* Refuse t, which is written and called name in messages, where its memory is shared read-only or two of
** its elements share memory. */
PERI_API peri_status peri__check_target (peri_ctx *ctx, const peri_tensor *t, const char *name);
/* fn(c) with copies in the place of such inputs. */
peri_status peri__without_collisions (peri_call *c, peri_status (*fn)(peri_call *c));
/* Lists split, every tensor there, none of them a weight that the op does not take: op/apply.c. */
peri_status peri__check_inputs (peri_call *c);
peri_status peri__run_kernel (peri_call *c); /* profiled; as above */
/* Count a write into every tensor that c writes. */
void peri__wrote (const peri_call *c);
/* The in-place twin of op. */
peri_status peri__run_twin (peri_ctx *ctx, const peri_op *op, const peri_sig *sig, int nin,
                            peri_tensor *const *in, const peri_attr *attr);

#endif
