/* heads.c - taking a fused query-key-value projection apart, without copies. */
#include "op/op.h"

bool peri__heads_fit (int64_t size, int64_t heads, int64_t kv_heads) {
  return heads >= 1 && kv_heads >= 1 && heads < size && kv_heads <= (size - heads) / 2 &&
         size - heads == 2 * kv_heads;
}

static peri_status infer_unpack_qkv (peri_call *c) {
  peri_tensor *x = c->in[0];
  int64_t q = c->attr[0].i, kv = c->attr[1].i, shape[PERI_MAX_DIMS];
  char buf[128];
  if (x->ndim < 2 || !peri__heads_fit(x->shape[x->ndim - 2], q, kv))
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "x has shape %s, expected (..., %lld heads + 2 * %lld kv_heads, D)",
                      peri__shape_text(x, buf, sizeof buf), (long long)q, (long long)kv);
  int d = x->ndim - 2;
  for (int i = 0; i < x->ndim; i++) shape[i] = x->shape[i];
  int64_t first[3] = { 0, q, q + kv }, count[3] = { q, kv, kv };
  for (int k = 0; k < 3; k++) {
    shape[d] = count[k];
    TRY(peri__view(x, first[k] * x->stride[d], x->ndim, shape, x->stride, &c->out[k]));
  }
  return PERI_OK;
}

static void vjp_unpack_qkv (peri_vjp *v) {
  peri_tensor *g[3];
  for (int k = 0; k < 3; k++)
    g[k] = v->g[k] ? v->g[k] : BA(&v->b, zeros_like, ATTR(A_INT(-1)), v->like[k]);
  v->gin[0] = BA(&v->b, cat, ATTR(A_INT(-2)), g[0], g[1], g[2]);
}

OPN(unpack_qkv, 3, .sig = "x, heads:int, kv_heads:int",
    .doc = "Views q (..., heads, D), k and v (..., kv_heads, D) of a fused projection x (..., "
           "heads + 2 kv_heads, D).",
    .flags = PERI_OP_VIEW, .infer = infer_unpack_qkv, .vjp = vjp_unpack_qkv,
    TESTS(.domain = "shape=2,4,3; attr heads=2; attr kv_heads=1",
          .variants = { "shape=2,3,5,2; attr heads=3; attr kv_heads=1" },
          .large = "shape=64,50,4,8; attr heads=2; attr kv_heads=1",
          .refuses = { "x.shape=2,5,3; attr heads=2; attr kv_heads=1 => (2, 5, 3)" }));
