/*
** packed.h - kernels of products with float weights packed in panels (weight/packed_float.c), of
** one SIMD level: cpu/simd_packed.c.
**
** A panel holds PERI_GEMM_NV vectors of columns (rows of W, outputs), step of k after step of k.
** PERI_PANEL_F32 is the form of peri__gemm_pack. 16-bit panels hold in each 32-bit word the numbers
** of columns l and l + lanes of a step, or the columns in their order (f16 where the
** processor converts by itself), or steps 2p and 2p + 1 of one column (PERI_PANEL_DOT, whose k is
** rounded up to an even number with zeros). Columns beyond n are zero.
*/
#ifndef peri_packed_h
#define peri_packed_h

#include "cpu/gemm.h"

typedef enum peri__panel {
  PERI_PANEL_F32,
  PERI_PANEL_F16,
  PERI_PANEL_BF16,
  PERI_PANEL_DOT, /* bf16, with products of bf16 pairs */
  PERI_PANEL_COUNT
} peri__panel;

/* Most panels that a tile of one row, of two rows, takes at once. */
enum { PERI_PANEL_ONE = 4, PERI_PANEL_TWO = 2 };

/*
** C[0..mr)[0..panels * NV * lanes) over k steps. a: the packed rows of A, steps of mr floats (of mr
** pairs of bf16 for PERI_PANEL_DOT). b: the panels, bstep bytes apart. Rows of C are crs apart. The
** chain of C[i][j] begins at init[i * irs + j]. Meanwhile fetch bytes for each step, at most a line
** for every 16 columns, come into cache from ahead on.
*/
typedef struct peri__panel_tile {
  int64_t k;
  const void *a;
  const char *b;
  int64_t bstep;
  float *c;
  int64_t crs;
  const float *init;
  int64_t irs;
  const char *ahead;
  int64_t fetch;
} peri__panel_tile;
typedef void (*peri__panel_fn)(const peri__panel_tile *t);

struct peri__packed_kernels {
  bool interleaved_f16; /* f16 panels pair columns as bf16 ones do */
  bool (*dots)(void);   /* NULL: this level has no PERI_PANEL_DOT; else whether the processor has */
  peri__panel_fn tile[PERI_PANEL_COUNT][PERI_GEMM_MR + 1];  /* [rows], one panel */
  peri__panel_fn one[PERI_PANEL_COUNT][PERI_PANEL_ONE + 1]; /* one row, [panels] */
  peri__panel_fn two[PERI_PANEL_COUNT][PERI_PANEL_TWO + 1]; /* two rows, [panels] */
  /* Steps [p, p + k) of the 16-bit panel at b -> floats, NV * lanes for each. */
  void (*widen[PERI_PANEL_COUNT])(const char *b, int64_t p, int64_t k, float *out);
  /* m <= mr rows of A -> pairs of bf16, steps 2p and 2p + 1 of row i at out[p * m + i]. */
  void (*pack_pairs)(int64_t m, int64_t k, const float *a, int64_t ars, uint32_t *out);
};

#endif
