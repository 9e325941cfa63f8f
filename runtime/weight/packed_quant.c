/* packed_quant.c - quantised weights laid out for products. */
#include <string.h>

#include "weight/weight.h"

static size_t row_bytes (peri_dtype d, int64_t k) {
  size_t bytes;
  int block = peri_dtype_block(d, &bytes);
  return (size_t)(k / block) * bytes;
}

size_t peri__quant_packed_bytes (const struct peri__cpu *cpu, peri_dtype d, int64_t n, int64_t k) {
  (void)cpu;
  return ((size_t)n * row_bytes(d, k) + PERI_ALIGN - 1) / PERI_ALIGN * PERI_ALIGN;
}

void peri__quant_pack (peri_ctx *ctx, peri_dtype d, int64_t n, int64_t k, const void *rows,
                       void *out) {
  (void)ctx;
  memcpy(out, rows, (size_t)n * row_bytes(d, k));
}

void peri__quant_row (const struct peri__cpu *cpu, peri_dtype d, int64_t n, int64_t k,
                      const void *w, int64_t i, float *out) {
  size_t bytes = row_bytes(d, k);
  (void)n;
  (void)cpu;
  peri__dequantise(d, k, (const char *)w + (size_t)i * bytes, out);
}

peri_status peri__quant_product (peri_ctx *ctx, peri_dtype d, const peri__packed_product *p) {
  float *row = peri__block_get(ctx, (size_t)p->k * sizeof *row);
  if (!row) return peri__fail(ctx, PERI_ENOMEM, "out of memory for a row");
  for (int64_t j = 0; j < p->n; j++) {
    peri__quant_row(ctx->cpu, d, p->n, p->k, p->w, j, row);
    for (int64_t i = 0; i < p->m; i++) {
      double sum = p->bias ? (double)p->bias[j] : 0;
      for (int64_t t = 0; t < p->k; t++) sum += (double)p->x[i * p->xrs + t] * (double)row[t];
      p->y[i * p->n + j] = (float)sum;
    }
  }
  peri__block_put(ctx, row);
  return PERI_OK;
}
