/*
** convert.c - between quantised or packed weights and plain tensors, row by row on all threads.
** Types other than f32 pass through a row of f32.
*/
#include <string.h>

#include "cpu/convert.h"
#include "weight/weight.h"

typedef struct job {
  const peri_tensor *from;
  peri_tensor *to;
  int64_t n, k; /* rows, and elements of each */
  float *rows;  /* k floats for each worker */
} job;

static size_t row_bytes (const peri_tensor *t, int64_t k) {
  size_t bytes;
  int block = peri_dtype_block((peri_dtype)t->dtype, &bytes);
  return (size_t)(k / block) * bytes;
}

static void read_row (const job *j, const struct peri__cpu *cpu, int64_t i, float *out) {
  const peri_tensor *t = j->from;
  peri_dtype d = (peri_dtype)t->dtype;
  const char *row = (const char *)t->data + (size_t)i * row_bytes(t, j->k);
  if (t->storage->packed)
    (peri__is_quantised(d) ? peri__quant_row : peri__float_row)(cpu, d, j->n, j->k, t->data, i,
                                                                out);
  else if (peri__is_quantised(d))
    peri__dequantise(d, j->k, row, out);
  else
    peri__load(cpu->math, PERI_F32, out, d, row, 1, j->k);
}

static void convert_range (void *ud, int64_t begin, int64_t end, int worker) {
  const job *j = ud;
  peri_dtype d = (peri_dtype)j->to->dtype;
  float *row = j->rows + (size_t)worker * (size_t)j->k;
  for (int64_t i = begin; i < end; i++) {
    char *out = (char *)j->to->data + (size_t)i * row_bytes(j->to, j->k);
    read_row(j, j->to->ctx->cpu, i, row);
    if (peri__is_quantised(d))
      peri__quantise(d, j->k, row, out);
    else if (d == PERI_F64)
      for (int64_t k = 0; k < j->k; k++) ((double *)(void *)out)[k] = row[k];
    else
      peri__store(j->to->ctx->cpu->math, d, out, 1, PERI_F32, row, j->k);
  }
}

peri_status peri__convert_weight (const peri_tensor *from, peri_tensor *to) {
  peri_ctx *ctx = to->ctx;
  job j = { from, to, 1, to->ndim ? to->shape[to->ndim - 1] : 1, NULL };
  if (to->numel == 0) return PERI_OK;
  j.n = to->numel / j.k;
  j.rows = peri__block_get(ctx, (size_t)peri_threads(ctx) * (size_t)j.k * sizeof *j.rows);
  if (!j.rows)
    return peri__fail(ctx, PERI_ENOMEM, "out of memory for rows of %lld", (long long)j.k);
  /* blocks with scales and minima are searched for: a tenth of a microsecond an element */
  int64_t grain = peri__is_quantised(to->dtype) ? 1024 : 65536;
  peri__parallel(ctx, j.n, grain / j.k + 1, convert_range, &j);
  peri__block_put(ctx, j.rows);
  return PERI_OK;
}
