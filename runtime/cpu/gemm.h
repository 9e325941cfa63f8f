/*
** gemm.h - matrix products: the drivers that ops call and the table of kernels of one SIMD level.
**
** Numerics, the same in every entry point: each element of C is one chain of fused multiply-adds
** over k ascending, which begins at 0, at the bias or at the former C. Nothing else is ever
** summed, so a result has the same bits for any m, n, batch, thread count, operand layout or
** blocking (for one SIMD level; the portable one rounds the product where the processor's base
** instruction set has no fused multiply-add).
*/
#ifndef peri_gemm_h
#define peri_gemm_h

#include "cpu/cpu.h"

/*
** Called on each finished block of C while it is in cache: c points at its first element, which is
** C[i][j]; the block has m rows (crs apart) of n columns. Blocks do not overlap and cover C, and
** come in any order, on any thread. What it writes into c is the final result.
*/
typedef void (*peri__gemm_done_fn)(void *ud, float *c, int64_t crs, int64_t i, int64_t j, int64_t m,
                                   int64_t n);

/*
** Makes part of a B that is stored in no such way: rows [p, p + k) of columns [j, j + n), n <= NR ->
** out[r * NR + c], the other columns zero, with NR = PERI_GEMM_NV * lanes. On any thread.
*/
typedef void (*peri__gemm_panel_fn)(const void *ud, int64_t p, int64_t k, int64_t j, int64_t n,
                                    float *out);

/*
** C = A B, f32. A is (m, k): A[i][p] at a[i * ars + p * acs]. B is (k, n): B[p][j] at
** b[p * brs + j * bcs]; any strides, so a transposed operand is a swap of two of them. Row i of C
** is n consecutive floats at c + i * crs. Operands may not overlap C. k may be 0.
*/
typedef struct peri__gemm {
  int64_t m, n, k;
  const float *a;
  int64_t ars, acs;
  const float *b;
  int64_t brs, bcs;
  float *c;
  int64_t crs;
  bool accumulate;           /* the chains begin at the former C */
  const float *bias;         /* or at bias[j], n floats; NULL = at 0; not with accumulate */
  const float *packed;       /* B as peri__gemm_pack made it; then b, brs and bcs are ignored */
  peri__gemm_panel_fn panel; /* or where it comes from, likewise */
  const void *panel_ud;
  peri__gemm_done_fn done; /* epilogue; NULL = none */
  void *done_ud;
} peri__gemm;

/* Threaded; on the thread that owns ctx. Fails only for lack of scratch memory (message set); on
** an interrupt C is unfinished and the caller checks as after peri__parallel. */
peri_status peri__gemm_f32 (peri_ctx *ctx, const peri__gemm *g);
/* nbatch products of the same sizes: item i uses a + aoff(i), b + boff(i), c + i * m * crs, where
** the offsets (in elements) come from off[i][0] and off[i][1]. Threaded over items and blocks. No
** bias, packed or done. */
peri_status peri__gemm_f32_batch (peri_ctx *ctx, const peri__gemm *g, int64_t nbatch,
                                  const int64_t (*off)[2]);

/*
** Single-threaded, for use inside a parallel region: no context, no allocation. scratch is
** PERI_ALIGN-aligned, of at least peri__gemm_scratch bytes for these or larger sizes; get one for
** each worker with peri__block_get before going parallel.
*/
size_t peri__gemm_scratch (const struct peri__cpu *cpu, int64_t m, int64_t n, int64_t k);
void peri__gemm_f32_seq (const struct peri__cpu *cpu, const peri__gemm *g, void *scratch);

/* Weights used many times: bytes of the packed form of a (k, n) matrix, and the packing. The form
** belongs to one SIMD level and process. */
size_t peri__gemm_packed_size (const struct peri__cpu *cpu, int64_t n, int64_t k);
void peri__gemm_pack (peri_ctx *ctx, int64_t n, int64_t k, const float *b, int64_t brs, int64_t bcs,
                      float *out);

/* The same product in f64, for gradient checks and environments: threaded, not tuned. */
typedef struct peri__gemm64 {
  int64_t m, n, k;
  const double *a;
  int64_t ars, acs;
  const double *b;
  int64_t brs, bcs;
  double *c;
  int64_t crs;
  bool accumulate;
  const double *bias;
} peri__gemm64;
void peri__gemm_f64 (peri_ctx *ctx, const peri__gemm64 *g);
void peri__gemm_f64_seq (const peri__gemm64 *g);

/* Either product by dtype, for ops that are written once for both: C (m, n) = A B, C dense. */
typedef struct peri__product {
  bool f64;
  int64_t m, n, k;
  const void *a;
  int64_t ars, acs;
  const void *b;
  int64_t brs, bcs;
  void *c;
  bool accumulate;
  const void *bias; /* (n)? */
} peri__product;
peri_status peri__product_run (peri_ctx *ctx, const peri__product *p);

/* ---- kernels of one level: cpu/simd_gemm.c ---- */

/*
** One register tile: C[0..mr)[0..nv * lanes) over k steps. A[i][p] at a[i * ars + p * acs], rows of
** B at b + p * ldb (contiguous, readable in full vectors), C rows crs apart. The chain of C[i][j]
** begins at init[i * irs + j].
*/
typedef void (*peri__tile_fn)(int64_t k, const float *a, int64_t ars, int64_t acs, const float *b,
                              int64_t ldb, float *c, int64_t crs, const float *init, int64_t irs);
/* The same with rows of A next to each other, A[i][p] at a[p * acs + i]. Meanwhile it fetches the
** memory at ahead + p * step into cache, which may be anywhere. */
typedef void (*peri__packed_tile_fn)(int64_t k, const float *a, int64_t acs, const float *b,
                                     int64_t ldb, float *c, int64_t crs, const float *init,
                                     int64_t irs, const float *ahead, int64_t step);
/* The same with B transposed in memory, B[p][j] at b[j * bcs + p], and PERI_GEMM_NV vectors. */
typedef void (*peri__trans_tile_fn)(int64_t k, const float *a, int64_t ars, int64_t acs,
                                    const float *b, int64_t bcs, float *c, int64_t crs,
                                    const float *init, int64_t irs);

enum { PERI_GEMM_MR = 12, PERI_GEMM_NV = 2, PERI_GEMM_WIDE = 4, PERI_GEMM_MAX_LANES = 16 };

struct peri__gemm_kernels {
  int lanes;             /* floats in a vector */
  int mr;                /* rows of the full tile; its columns are PERI_GEMM_NV * lanes */
  int trans_mr, wide_mr; /* most rows of the two special kinds */
  peri__packed_tile_fn packed[PERI_GEMM_MR + 1][PERI_GEMM_NV + 1]; /* [rows][vectors] */
  peri__tile_fn direct[PERI_GEMM_MR + 1][PERI_GEMM_NV + 1];
  peri__tile_fn wide[8];        /* [rows], PERI_GEMM_WIDE vectors */
  peri__trans_tile_fn trans[8]; /* [rows] */
  /* Rows [0, k) of B, columns [0, n) with n <= NV * lanes -> out[p * NV * lanes + j], the other
  ** columns zero. */
  void (*pack_b)(int64_t k, int64_t n, const float *b, int64_t brs, int64_t bcs, float *out);
  /* m <= mr rows of A -> out[p * m + i]. */
  void (*pack_a)(int64_t m, int64_t k, const float *a, int64_t ars, int64_t acs, float *out);
};

#endif
