/*
** pack.c - the op pack, and what the ops that take weights share: products with quantised and
** packed ones, and their rows. The layouts and kernels are in weight/.
*/
#include <inttypes.h>

#include "cpu/gemm.h"
#include "op/weights.h"
#include "weight/weight.h"

/* ---- pack ---- */

static peri_status pack_infer (peri_call *c) {
  peri_tensor *w = c->in[0];
  peri_dtype d = (peri_dtype)w->dtype;
  TRY(peri__want_ndim(c, 0, "weight", 2));
  if (w->storage->packed) return peri__view(w, 0, w->ndim, w->shape, w->stride, &c->out[0]);
  bool quantised = peri__is_quantised(d);
  if (!quantised && d != PERI_F32 && d != PERI_F16 && d != PERI_BF16)
    return peri__fail(c->ctx, PERI_EDTYPE,
                      "weight is %s, expected f32, f16, bf16 or a quantised dtype",
                      peri_dtype_name(d));
  size_t bytes = 0;
  if (w->numel > 0)
    bytes = (quantised ? peri__quant_packed_bytes
                       : peri__float_packed_bytes)(c->ctx->cpu, d, w->shape[0], w->shape[1]);
  return peri__new_packed(c->ctx, d, 2, w->shape, bytes, &c->out[0]);
}

static peri_status pack_cpu (peri_call *c) {
  const peri_tensor *w = c->in[0];
  if (w->storage->packed || w->numel == 0) return PERI_OK;
  (peri__is_quantised(w->dtype) ? peri__quant_pack : peri__float_pack)(
      c->ctx, (peri_dtype)w->dtype, w->shape[0], w->shape[1], w->data, c->out[0]->data);
  return PERI_OK;
}

OP(pack, .sig = "weight", .flags = PERI_OP_WEIGHT,
   .doc = "weight (out, in) of f32, f16, bf16 or a quantised dtype, with its memory laid out for "
          "this processor; only linear, matmul on the right, embedding, token_logprob and to take "
          "it, and no gradient reaches it. A packed weight is given back as it is. Products have "
          "the bits of plain f32 weights, f16 and bf16 ones widened. But where the processor "
          "multiplies pairs of bf16 (AVX512-BF16), inputs of bf16 weights are rounded to bf16, and "
          "everywhere those of quantised ones to 8 bits.",
   .infer = pack_infer, .cpu = pack_cpu,
   TESTS(.domain = "weight.shape=5,4",
         .refuses = { "weight.shape=2,3,4 => (2, 3, 4) | 2 dims",
                      "weight.shape=1,1; weight=i64[1] => i64 | quantised" }));

/* ---- products ---- */

peri_status peri__weight_want_f32 (peri_call *c, int i, const char *name) {
  if (!c->in[i] || c->in[i]->dtype == PERI_F32) return PERI_OK;
  return peri__fail(c->ctx, PERI_EDTYPE,
                    "%s is %s, expected f32, f16 or bf16 with a quantised or packed weight", name,
                    peri_dtype_name((peri_dtype)c->in[i]->dtype));
}

void peri__weight_row (const peri_tensor *w, int64_t i, float *out) {
  peri_dtype d = (peri_dtype)w->dtype;
  int64_t n = w->shape[0], k = w->shape[1];
  size_t bytes;
  if (w->storage->packed) {
    (peri__is_quantised(d) ? peri__quant_row : peri__float_row)(w->ctx->cpu, d, n, k, w->data, i,
                                                                out);
    return;
  }
  int block = peri_dtype_block(d, &bytes);
  peri__dequantise(d, k, (const char *)w->data + (size_t)(i * (k / block)) * bytes, out);
}

typedef struct rows_job {
  const peri_tensor *w;
  float *out;
} rows_job;

static void rows_range (void *ud, int64_t begin, int64_t end, int worker) {
  const rows_job *j = ud;
  int64_t k = j->w->shape[1];
  (void)worker;
  for (int64_t i = begin; i < end; i++) peri__weight_row(j->w, i, j->out + i * k);
}

/* All of w as a plain (n, k) array; put back by the caller. */
static peri_status unpacked (peri_ctx *ctx, const peri_tensor *w, float **out) {
  int64_t k = w->shape[1];
  *out = peri__block_get(ctx, (size_t)w->numel * sizeof **out);
  if (!*out)
    return peri__fail(ctx, PERI_ENOMEM, "out of memory for %" PRId64 " x %" PRId64 " weights",
                      w->shape[0], k);
  peri__parallel(ctx, w->shape[0], 65536 / (k + 1) + 1, rows_range, &(rows_job){ w, *out });
  return PERI_OK;
}

static peri_status plain_product (peri_ctx *ctx, peri_tensor *w, peri__gemm *g, bool turned) {
  float *b;
  TRY(unpacked(ctx, w, &b));
  g->b = b;
  g->brs = turned ? 1 : w->shape[1];
  g->bcs = turned ? w->shape[1] : 1;
  peri_status s = peri__gemm_f32(ctx, g);
  peri__block_put(ctx, b);
  return s;
}

peri_status peri__weight_product (peri_ctx *ctx, peri_tensor *w, int64_t m, const float *x,
                                  int64_t xrs, const float *bias, float *y) {
  int64_t n = w->shape[0], k = w->shape[1];
  if (m <= 0 || n <= 0) return PERI_OK;
  if (w->storage->packed) {
    peri__packed_product p = { m, n, k, x, xrs, w->data, bias, y };
    return (peri__is_quantised(w->dtype) ? peri__quant_product
                                         : peri__float_product)(ctx, (peri_dtype)w->dtype, &p);
  }
  peri__gemm g = { .m = m, .n = n, .k = k, .a = x, .ars = xrs, .acs = 1, .c = y, .crs = n };
  g.bias = bias;
  return plain_product(ctx, w, &g, true);
}

peri_status peri__weight_back (peri_ctx *ctx, peri_tensor *w, int64_t m, const float *g,
                               float *dx) {
  int64_t n = w->shape[0], k = w->shape[1];
  if (m <= 0 || k <= 0) return PERI_OK;
  if (w->storage->packed && !peri__is_quantised(w->dtype))
    return peri__float_back(ctx, (peri_dtype)w->dtype, m, n, k, g, w->data, dx);
  peri__gemm p = { .m = m, .n = k, .k = n, .a = g, .ars = n, .acs = 1, .c = dx, .crs = k };
  return plain_product(ctx, w, &p, false);
}
