/* bitcast.c - the bytes of a tensor seen as another dtype: nothing is converted. */
#include <string.h>

#include "op/op.h"

static peri_status bitcast_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  int64_t d = c->attr[0].i, shape[PERI_MAX_DIMS], stride[PERI_MAX_DIMS], bytes;
  size_t from_bytes, to_bytes;
  if (x->storage->packed) return peri__readable(x);
  if (x->ndim == 0) return peri__fail(c->ctx, PERI_ESHAPE, "x has no dim");
  int from = peri_dtype_block((peri_dtype)x->dtype, &from_bytes);
  int to = peri_dtype_block((peri_dtype)d, &to_bytes);
  if (d == PERI_BOOL && x->dtype != PERI_BOOL)
    return peri__fail(c->ctx, PERI_EDTYPE, "bytes of %s are no bools: compare with 0 instead",
                      peri_dtype_name((peri_dtype)x->dtype));
  memcpy(shape, x->shape, sizeof shape);
  bytes = shape[x->ndim - 1] / from * (int64_t)from_bytes;
  if (bytes % (int64_t)to_bytes != 0)
    return peri__fail(c->ctx, PERI_ESHAPE, "rows of %lld bytes are no whole number of %s",
                      (long long)bytes, peri_dtype_name((peri_dtype)d));
  if ((uintptr_t)x->data % (to == 1 ? to_bytes : 1) != 0)
    return peri__fail(c->ctx, PERI_EINVAL, "the memory of x is not aligned for %s",
                      peri_dtype_name((peri_dtype)d));
  shape[x->ndim - 1] = bytes / (int64_t)to_bytes * to;
  int64_t step = 1;
  for (int i = x->ndim - 1; i >= 0; i--) {
    stride[i] = step;
    step *= shape[i] > 1 ? shape[i] : 1;
  }
  TRY(peri__contiguous(x, &x));
  peri_status s = peri__view_as(x, (peri_dtype)d, x->ndim, shape, stride, &c->out[0]);
  peri_release(x);
  return s;
}

OP(bitcast, .sig = "x, dtype:dtype", .flags = PERI_OP_VIEW | PERI_OP_STRIDED | PERI_OP_WEIGHT,
   .doc = "The bytes of x seen as dtype, a view when x is dense; the last dim grows or shrinks "
          "with the "
          "element size. Rows of quantised weights are moved as u8 and seen as weights again.",
   .infer = bitcast_infer,
   TESTS(.domain = "attr dtype=i32",
         .refuses = { "x.shape=2,3; attr dtype=i64 => 12 bytes | i64" }));
