/* common.c - what shape rules and kernels of every family share. */
#include <string.h>

#include "op/op.h"

peri_status peri__dim (peri_ctx *ctx, int64_t d, int ndim, int *out) {
  int64_t k = d < 0 ? d + ndim : d;
  if (k < 0 || k >= ndim)
    return peri__fail(ctx, PERI_EINVAL, "dim %s of a tensor with %d dims", peri__nth(ctx, d), ndim);
  *out = (int)k;
  return PERI_OK;
}

peri_status peri__dims (peri_ctx *ctx, const peri_attr *a, int ndim, bool flags[PERI_MAX_DIMS]) {
  for (int i = 0; i < PERI_MAX_DIMS; i++) flags[i] = a->n < 0 && i < ndim;
  for (int i = 0; i < a->n; i++) {
    int k = 0;
    TRY(peri__dim(ctx, a->v[i], ndim, &k));
    if (flags[k]) return peri__fail(ctx, PERI_EINVAL, "dim %s is listed twice", peri__nth(ctx, k));
    flags[k] = true;
  }
  return PERI_OK;
}

peri_status peri__broadcast (peri_ctx *ctx, const peri_tensor *a, const peri_tensor *b, int *ndim,
                             int64_t shape[PERI_MAX_DIMS]) {
  int na = a ? a->ndim : 0, nb = b ? b->ndim : 0, n = na > nb ? na : nb;
  for (int i = 0; i < n; i++) {
    int ia = i - (n - na), ib = i - (n - nb);
    int64_t x = ia < 0 ? 1 : a->shape[ia], y = ib < 0 ? 1 : b->shape[ib];
    if (x != y && x != 1 && y != 1) {
      char sa[128], sb[128];
      return peri__fail(ctx, PERI_ESHAPE,
                        "%s and %s do not broadcast: sizes %lld and %lld of dim %s differ",
                        peri__shape_text(a, sa, sizeof sa), peri__shape_text(b, sb, sizeof sb),
                        (long long)x, (long long)y, peri__nth(ctx, i));
    }
    shape[i] = x == 1 ? y : x;
  }
  *ndim = n;
  return PERI_OK;
}

int64_t peri__bstride (const peri_tensor *t, int ndim, int i) {
  int k = i - (ndim - t->ndim);
  return k < 0 || t->shape[k] == 1 ? 0 : t->stride[k];
}

static int category (int d) { return d == PERI_BOOL ? 0 : d < PERI_F16 ? 1 : 2; }

peri_dtype peri__promote (int n, peri_tensor *const *in) {
  int strong = -1, weak = -1;
  for (int i = 0; i < n; i++) {
    if (!in[i]) continue;
    int *to = in[i]->flags & PERI_T_WEAK ? &weak : &strong;
    *to =
        *to < 0 ? in[i]->dtype : (int)peri_dtype_promote((peri_dtype)*to, (peri_dtype)in[i]->dtype);
  }
  if (strong < 0) return weak == PERI_F64 ? PERI_F32 : (peri_dtype)weak;
  if (weak < 0 || category(weak) <= category(strong)) return (peri_dtype)strong;
  return category(weak) == 2 ? PERI_F32 : (peri_dtype)weak;
}

/* Run op without recording; new reference. */
static peri_status quiet (const peri_op *op, peri_tensor *t, const peri_attr *attr,
                          peri_tensor **out) {
  bool was = peri_set_grad_enabled(t->ctx, false);
  peri_status s = peri__apply(t->ctx, op, 1, &t, attr, out);
  peri_set_grad_enabled(t->ctx, was);
  return s;
}

peri_status peri__contiguous (peri_tensor *t, peri_tensor **out) {
  if (!peri__dense(t)) return quiet(&peri__op_contiguous, t, NULL, out);
  *out = peri_retain(t);
  return PERI_OK;
}

peri_status peri__cast (peri_tensor *t, peri_dtype d, peri_tensor **out) {
  if (t->dtype != d) return quiet(&peri__op_to, t, ATTR(A_INT(d)), out);
  *out = peri_retain(t);
  return PERI_OK;
}

bool peri__any_nan (peri_build *b, peri_tensor *t) {
  peri_tensor *any = BA(b, any, ATTR(A_DIMS(NULL, -1), A_INT(0)), B(b, ne, t, t));
  return any && *(const uint8_t *)any->data;
}

peri_status peri__infer_same (peri_call *c) {
  return peri__new_like(c->in[0], (peri_dtype)c->in[0]->dtype, &c->out[0]);
}

peri_status peri__want_dtype (peri_call *c, int i, const char *name, int dtype) {
  if (c->in[i]->dtype == dtype) return PERI_OK;
  return peri__fail(c->ctx, PERI_EDTYPE, "%s is %s, expected %s", name,
                    peri_dtype_name((peri_dtype)c->in[i]->dtype),
                    peri_dtype_name((peri_dtype)dtype));
}

peri_status peri__want_float (peri_call *c, int i, const char *name) {
  if (peri__is_float(c->in[i]->dtype)) return PERI_OK;
  return peri__fail(c->ctx, PERI_EDTYPE, "%s is %s, expected a float dtype", name,
                    peri_dtype_name((peri_dtype)c->in[i]->dtype));
}

peri_status peri__want_wide (peri_call *c, int i, const char *name) {
  TRY(peri__want_float(c, i, name));
  if (c->in[i]->dtype == PERI_F32 || c->in[i]->dtype == PERI_F64) return PERI_OK;
  return peri__fail(c->ctx, PERI_EDTYPE, "%s is %s, expected f32 or f64", name,
                    peri_dtype_name((peri_dtype)c->in[i]->dtype));
}

peri_status peri__want_ndim (peri_call *c, int i, const char *name, int ndim) {
  char buf[128];
  if (c->in[i]->ndim == ndim) return PERI_OK;
  return peri__fail(c->ctx, PERI_ESHAPE, "%s has shape %s, expected %d dims", name,
                    peri__shape_text(c->in[i], buf, sizeof buf), ndim);
}
