/* build.c - the builder: ops called from C with one sticky status and owned intermediates. */
#include "op/op.h"

void peri__build_begin (peri_build *b, peri_ctx *ctx) {
  *b = (peri_build){ .ctx = ctx, .status = PERI_OK, .mark = ctx->ntemps };
}

peri_status peri__build_end (peri_build *b) {
  peri_ctx *ctx = b->ctx;
  while (ctx->ntemps > b->mark) peri_release(ctx->temps[--ctx->ntemps]);
  return b->status;
}

void peri__build_fail (peri_build *b, peri_status s) {
  if (b->status == PERI_OK) b->status = s;
}

peri_tensor *peri__build_own (peri_build *b, peri_tensor *t) {
  peri_ctx *ctx = b->ctx;
  if (!t || b->status != PERI_OK) {
    peri_release(t);
    return NULL;
  }
  if (ctx->ntemps == ctx->captemps) {
    int cap = ctx->captemps ? ctx->captemps * 2 : 64;
    peri_tensor **p =
        peri__realloc(ctx, ctx->temps, (size_t)ctx->captemps * sizeof *p, (size_t)cap * sizeof *p);
    if (!p) {
      peri_release(t);
      b->status = peri__fail(ctx, PERI_ENOMEM, "out of memory for intermediates");
      return NULL;
    }
    ctx->temps = p;
    ctx->captemps = cap;
  }
  ctx->temps[ctx->ntemps++] = t;
  return t;
}

void peri__build_all (peri_build *b, const peri_op *op, int nin, peri_tensor *const *in,
                      const peri_attr *attr, peri_tensor **out) {
  int n = peri_op_outputs(op);
  for (int k = 0; k < n; k++) out[k] = NULL;
  if (b->status != PERI_OK) return;
  b->status = peri__invoke(b->ctx, op, nin, in, attr, out);
  for (int k = 0; k < n; k++) out[k] = peri__build_own(b, b->status == PERI_OK ? out[k] : NULL);
}

peri_tensor *peri__build (peri_build *b, const peri_op *op, int nin, peri_tensor *const *in,
                          const peri_attr *attr) {
  peri_tensor *out[PERI_MAX_OUT] = { NULL };
  peri__build_all(b, op, nin, in, attr, out);
  return out[0];
}

peri_tensor *peri__build_scalar (peri_build *b, double v) {
  peri_tensor *t = NULL;
  if (b->status != PERI_OK) return NULL;
  b->status = peri__weak(b->ctx, false, 0, v, &t);
  return peri__build_own(b, t);
}
