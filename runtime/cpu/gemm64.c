/*
** gemm64.c - the f64 matrix product, for gradient checks and environments: correct, threaded and
** independent of the SIMD level, not tuned. Numerics are those of cpu/gemm.h.
*/
#include "cpu/gemm.h"

enum { KC = 256, MR = 4, NR = 4, SMALL = 1 << 15 };

typedef double v2 __attribute__((vector_size(16)));

static int64_t least (int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows [i, i + mm) of nn columns from j over kb steps from p0; b is packed, NR columns a step. */
static void tile (const peri__gemm64 *g, int64_t i, int64_t mm, int64_t j, int64_t nn, int64_t p0,
                  int64_t kb, const double (*b)[NR]) {
  double corner[MR][NR] = { { 0 } };
  v2 acc[MR][2];
  bool from_c = p0 > 0 || g->accumulate;
  for (int64_t r = 0; r < mm; r++)
    for (int64_t s = 0; s < nn; s++)
      corner[r][s] = from_c ? g->c[(i + r) * g->crs + j + s] : g->bias ? g->bias[j + s] : 0;
  const double *row[MR];
  for (int64_t r = 0; r < MR; r++) {
    row[r] = g->a + (i + least(r, mm - 1)) * g->ars + p0 * g->acs; /* spare rows repeat the last */
    acc[r][0] = (v2){ corner[r][0], corner[r][1] };
    acc[r][1] = (v2){ corner[r][2], corner[r][3] };
  }
  for (int64_t p = 0; p < kb; p++) {
    v2 b0 = { b[p][0], b[p][1] }, b1 = { b[p][2], b[p][3] };
    for (int r = 0; r < MR; r++) {
      double x = row[r][p * g->acs];
      acc[r][0] += x * b0;
      acc[r][1] += x * b1;
    }
  }
  for (int64_t r = 0; r < mm; r++)
    for (int64_t s = 0; s < nn; s++) g->c[(i + r) * g->crs + j + s] = acc[r][s / 2][s % 2];
}

static void panels (void *ud, int64_t begin, int64_t end, int worker) {
  const peri__gemm64 *g = ud;
  double packed[KC][NR];
  (void)worker;
  for (int64_t j = begin * NR; j < least(end * NR, g->n); j += NR) {
    int64_t nn = least(NR, g->n - j), p0 = 0;
    do {
      int64_t kb = least(KC, g->k - p0);
      for (int64_t p = 0; p < kb; p++)
        for (int64_t s = 0; s < NR; s++)
          packed[p][s] = s < nn ? g->b[(p0 + p) * g->brs + (j + s) * g->bcs] : 0;
      for (int64_t i = 0; i < g->m; i += MR)
        tile(g, i, least(MR, g->m - i), j, nn, p0, kb, (const double(*)[NR])packed);
      p0 += kb;
    } while (p0 < g->k);
  }
}

void peri__gemm_f64_seq (const peri__gemm64 *g) {
  peri__gemm64 copy = *g;
  if (g->m > 0) panels(&copy, 0, (g->n + NR - 1) / NR, 0);
}

void peri__gemm_f64 (peri_ctx *ctx, const peri__gemm64 *g) {
  peri__gemm64 copy = *g;
  if (g->m <= 0 || g->n <= 0) return;
  double work = (double)g->m * (double)(g->k + 1) * NR;
  peri__parallel(ctx, (g->n + NR - 1) / NR, (int64_t)(SMALL / work) + 1, panels, &copy);
}

peri_status peri__product_run (peri_ctx *ctx, const peri__product *p) {
  if (p->f64) {
    const peri__gemm64 g = { p->m,   p->n,   p->k, p->a, p->ars,        p->acs, p->b,
                             p->brs, p->bcs, p->c, p->n, p->accumulate, p->bias };
    peri__gemm_f64(ctx, &g);
    return PERI_OK;
  }
  const peri__gemm g = { .m = p->m,
                         .n = p->n,
                         .k = p->k,
                         .a = p->a,
                         .ars = p->ars,
                         .acs = p->acs,
                         .b = p->b,
                         .brs = p->brs,
                         .bcs = p->bcs,
                         .c = p->c,
                         .crs = p->n,
                         .accumulate = p->accumulate,
                         .bias = p->bias };
  return peri__gemm_f32(ctx, &g);
}
