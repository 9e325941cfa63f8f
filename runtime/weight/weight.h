/*
** weight.h - weights that are no plain arrays: block-quantised rows in ggml's formats, and layouts
** for this processor that only products and look-ups read ("packed"). An (N, K) weight makes N
** outputs of K inputs.
*/
#ifndef peri_weight_h
#define peri_weight_h

#include "core/core.h"

/* ---- blocks: weight/blocks.c ---- */

/* n elements, a multiple of the block of d (a quantised type). Thread-safe, no allocation. */
void peri__dequantise (peri_dtype d, int64_t n, const void *blocks, float *out);
void peri__quantise (peri_dtype d, int64_t n, const float *x, void *blocks);

/* ---- packed weights ---- */

/* One product y = x W^T + bias with a packed W. x is (m, k), rows xrs apart; y (m, n), dense. */
typedef struct peri__packed_product {
  int64_t m, n, k;
  const float *x;
  int64_t xrs;
  const void *w;     /* as pack made it for (n, k) */
  const float *bias; /* n, or NULL */
  float *y;
} peri__packed_product;

/*
** Two families of one shape: plain float types (weight/packed_float.c: f32, f16, bf16) and quantised
** ones (weight/packed_quant.c). A layout belongs to one SIMD level and process. bytes: of the packed
** form, a multiple of PERI_ALIGN. pack: rows are dense, of n * k elements of d; threaded. product:
** threaded; fails only for lack of scratch memory. row: row i of W as k floats, thread-safe.
** Quantised products round x to 8 bits for each block of 32 inputs; a row's result never depends on
** the other rows, the thread count or m.
*/
size_t peri__float_packed_bytes (const struct peri__cpu *cpu, peri_dtype d, int64_t n, int64_t k);
void peri__float_pack (peri_ctx *ctx, peri_dtype d, int64_t n, int64_t k, const void *rows,
                       void *out);
peri_status peri__float_product (peri_ctx *ctx, peri_dtype d, const peri__packed_product *p);
void peri__float_row (const struct peri__cpu *cpu, peri_dtype d, int64_t n, int64_t k,
                      const void *w, int64_t i, float *out);
/* dx (m, k) = g W with g (m, n), dense: the gradient of x. Threaded; fails only for lack of scratch. */
peri_status peri__float_back (peri_ctx *ctx, peri_dtype d, int64_t m, int64_t n, int64_t k,
                              const float *g, const void *w, float *dx);

size_t peri__quant_packed_bytes (const struct peri__cpu *cpu, peri_dtype d, int64_t n, int64_t k);
void peri__quant_pack (peri_ctx *ctx, peri_dtype d, int64_t n, int64_t k, const void *rows,
                       void *out);
peri_status peri__quant_product (peri_ctx *ctx, peri_dtype d, const peri__packed_product *p);
void peri__quant_row (const struct peri__cpu *cpu, peri_dtype d, int64_t n, int64_t k,
                      const void *w, int64_t i, float *out);

/* ---- conversion: weight/convert.c ---- */

/* From or to a quantised dtype, or from a packed weight; dense tensors of one shape. Threaded. */
peri_status peri__convert_weight (const peri_tensor *from, peri_tensor *to);

#endif
