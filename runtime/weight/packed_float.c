/*
** packed_float.c - f32, f16 and bf16 weights packed in panels (cpu/packed.h) and their products:
** how rows and panels are cut into tasks. The arithmetic is in cpu/simd_packed.c.
*/
#include <string.h>

#include "cpu/convert.h"
#include "cpu/packed.h"
#include "weight/weight.h"

enum {
  KC = 2048,          /* steps of k in a block: the packed rows of a tile stay near */
  NB_BYTES = 2000000, /* of packed weights that one task walks for each panel of rows */
  ROOM = 1 << 19,     /* bytes of all packed rows, up to which every panel meets them at once */
  AHEAD = 1024,       /* bytes that weights are fetched ahead when one row or two meet them */
  FAR_AHEAD = 6144,   /* and when more do */
  PIECE = 1 << 15,    /* bytes of weights worth handing to a thread */
  PACK_GRAIN = 1 << 14
};

static int64_t least (int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most (int64_t a, int64_t b) { return a > b ? a : b; }

/* ---- layout ---- */

typedef struct layout {
  const struct peri__packed_kernels *kern;
  peri__panel kind;
  int64_t lanes, nr; /* columns of a vector, of a panel */
  int64_t step;      /* bytes of a step of k */
  int64_t panel;     /* bytes of a panel */
} layout;

static layout layout_of (const struct peri__cpu *cpu, peri_dtype d, int64_t k) {
  layout s = { .kern = cpu->packed, .lanes = cpu->gemm->lanes };
  s.nr = PERI_GEMM_NV * s.lanes;
  s.kind = d == PERI_F32 ? PERI_PANEL_F32 : d == PERI_F16 ? PERI_PANEL_F16 : PERI_PANEL_BF16;
  if (d == PERI_BF16 && s.kern->dots && s.kern->dots()) s.kind = PERI_PANEL_DOT;
  s.step = s.nr * (d == PERI_F32 ? 4 : 2);
  s.panel = s.step * (s.kind == PERI_PANEL_DOT ? (k + 1) / 2 * 2 : k);
  return s;
}

/* Column j of a 16-bit panel, in elements: step p is at at[p % 2] + p / 2 * pair. */
typedef struct column {
  int64_t at[2], pair;
} column;

static column column_of (const layout *s, int64_t j) {
  int64_t first = j, next = s->nr;
  if (s->kind == PERI_PANEL_DOT)
    first = 2 * j, next = 1;
  else if (s->kind == PERI_PANEL_BF16 || s->kern->interleaved_f16)
    first = j % s->lanes * 2 + j / s->lanes;
  return (column){ { first, first + next }, 2 * s->nr };
}

size_t peri__float_packed_bytes (const struct peri__cpu *cpu, peri_dtype d, int64_t n, int64_t k) {
  layout s = layout_of(cpu, d, k);
  size_t bytes = (size_t)((n + s.nr - 1) / s.nr) * (size_t)s.panel;
  return (bytes + PERI_ALIGN - 1) / PERI_ALIGN * PERI_ALIGN;
}

typedef struct pack_job {
  layout s;
  int64_t n, k;
  const uint16_t *rows;
  char *out;
} pack_job;

static void pack_range (void *ud, int64_t begin, int64_t end, int worker) {
  const pack_job *j = ud;
  const layout *s = &j->s;
  (void)worker;
  for (int64_t t = begin; t < end; t++) {
    uint16_t *out = (uint16_t *)(void *)(j->out + t * s->panel);
    int64_t first = t * s->nr, count = least(s->nr, j->n - first);
    if (count < s->nr || s->kind == PERI_PANEL_DOT) memset(out, 0, (size_t)s->panel);
    for (int64_t c = 0; c < count; c++) {
      const uint16_t *row = j->rows + (first + c) * j->k;
      column to = column_of(s, c);
      for (int64_t p = 0; p < j->k; p++) out[to.at[p & 1] + (p >> 1) * to.pair] = row[p];
    }
  }
}

void peri__float_pack (peri_ctx *ctx, peri_dtype d, int64_t n, int64_t k, const void *rows,
                       void *out) {
  if (d == PERI_F32) {
    peri__gemm_pack(ctx, n, k, rows, 1, k, out);
    return;
  }
  pack_job j = { layout_of(ctx->cpu, d, k), n, k, rows, out };
  peri__parallel(ctx, (n + j.s.nr - 1) / j.s.nr, 1, pack_range, &j);
}

void peri__float_row (const struct peri__cpu *cpu, peri_dtype d, int64_t n, int64_t k,
                      const void *w, int64_t i, float *out) {
  layout s = layout_of(cpu, d, k);
  const char *panel = (const char *)w + i / s.nr * s.panel;
  int64_t c = i % s.nr;
  (void)n;
  if (d == PERI_F32) {
    const float *f = (const float *)(const void *)panel + c;
    for (int64_t p = 0; p < k; p++) out[p] = f[p * s.nr];
    return;
  }
  const uint16_t *h = (const uint16_t *)(const void *)panel;
  column from = column_of(&s, c);
  for (int64_t p = 0; p < k; p++) {
    uint16_t v = h[from.at[p & 1] + (p >> 1) * from.pair];
    out[p] = d == PERI_F16 ? peri__f16_to_f32(v) : peri__bf16_to_f32(v);
  }
}

/* ---- products ---- */

typedef struct job {
  const peri__packed_product *p;
  const struct peri__gemm_kernels *gemm;
  layout s;
  int64_t panels;    /* of weights */
  int64_t mblocks;   /* blocks of rows, all nearly of one size */
  char *a;           /* packed rows: all of them, or one block for each worker */
  int64_t row_bytes; /* of a packed row */
  int64_t nb;        /* panels that a task of many_rows walks */
} job;

/* A block of rows; once packed, at a. */
typedef struct rows {
  int64_t i, m;
  char *a;
} rows;

static rows rows_of (const job *j, int64_t block) {
  int64_t i = block * j->p->m / j->mblocks, end = (block + 1) * j->p->m / j->mblocks;
  return (rows){ i, end - i, j->a + i * j->row_bytes };
}

/* Steps [p0, p0 + kb). */
static void pack_rows (const job *j, const rows *r, int64_t p0, int64_t kb) {
  const peri__packed_product *p = j->p;
  const float *x = p->x + r->i * p->xrs + p0;
  if (j->s.kind == PERI_PANEL_DOT)
    j->s.kern->pack_pairs(r->m, kb, x, p->xrs, (uint32_t *)(void *)r->a);
  else
    j->gemm->pack_a(r->m, kb, x, p->xrs, 1, (float *)(void *)r->a);
}

/* Panels [t, t + np), steps [p0, p0 + kb); np > 1 with one row or two and whole panels only. */
static void one_tile (const job *j, const rows *r, int64_t t, int64_t np, int64_t p0, int64_t kb,
                      const char *ahead, int64_t fetch) {
  static const float zeros[PERI_PANEL_ONE * PERI_GEMM_NV * PERI_GEMM_MAX_LANES];
  const struct peri__packed_kernels *kern = j->s.kern;
  const peri__packed_product *p = j->p;
  peri__panel kind = j->s.kind;
  peri__panel_fn fn = np == 1     ? kern->tile[kind][r->m]
                      : r->m == 1 ? kern->one[kind][np]
                                  : kern->two[kind][np];
  int64_t nr = j->s.nr, col = t * nr, nn = least(np * nr, p->n - col);
  peri__panel_tile tile = { .k = kb,
                            .a = r->a,
                            .b = (const char *)p->w + t * j->s.panel + p0 * j->s.step,
                            .bstep = j->s.panel,
                            .c = p->y + r->i * p->n + col,
                            .crs = p->n,
                            .init = p->bias ? p->bias + col : zeros,
                            .irs = 0,
                            .fetch = fetch };
  tile.ahead = ahead ? ahead : tile.b + (p->m <= 2 ? AHEAD : FAR_AHEAD);
  if (p0 > 0) {
    tile.init = tile.c;
    tile.irs = tile.crs;
  }
  if (nn == np * nr) {
    fn(&tile);
    return;
  }
  /* Tiles write full vectors: give this one a copy of the last columns. */
  float tmp[PERI_GEMM_MR * PERI_GEMM_NV * PERI_GEMM_MAX_LANES] = { 0 };
  for (int64_t i = 0; i < r->m; i++)
    memcpy(tmp + i * nr, tile.init + i * tile.irs, (size_t)nn * sizeof *tmp);
  tile.init = tile.c = tmp;
  tile.irs = tile.crs = nr;
  fn(&tile);
  for (int64_t i = 0; i < r->m; i++)
    memcpy(p->y + (r->i + i) * p->n + col, tmp + i * nr, (size_t)nn * sizeof *tmp);
}

/* ---- one block of rows: panels stream by, several at once where there is one row or two ---- */

static void few_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const job *j = ud;
  const peri__packed_product *p = j->p;
  int64_t at_once = p->m == 1 ? PERI_PANEL_ONE : p->m == 2 ? PERI_PANEL_TWO : 1;
  rows r = rows_of(j, 0);
  (void)worker;
  for (int64_t t = begin, np; t < end; t += np) {
    np = least(at_once, end - t);
    if ((t + np) * j->s.nr > p->n && np > 1) np--; /* the last panel is not whole */
    one_tile(j, &r, t, np, 0, p->k, NULL, j->s.step);
  }
}

/* ---- some rows: each panel meets all of them while it is near ---- */

static void pack_all (void *ud, int64_t begin, int64_t end, int worker) {
  const job *j = ud;
  (void)worker;
  for (int64_t b = begin; b < end; b++) {
    rows r = rows_of(j, b);
    pack_rows(j, &r, 0, j->p->k);
  }
}

static void some_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const job *j = ud;
  const peri__packed_product *p = j->p;
  int64_t fetch = (j->s.step + j->mblocks - 1) / j->mblocks; /* all of the next panel in the end */
  (void)worker;
  for (int64_t t = begin; t < end; t++) {
    const char *next = (const char *)p->w + (t + 1) * j->s.panel;
    for (int64_t b = 0; b < j->mblocks; b++, next += fetch * p->k) {
      rows r = rows_of(j, b);
      one_tile(j, &r, t, 1, 0, p->k, next, fetch);
    }
  }
}

/* ---- many rows: a task packs a block of rows and walks some panels of weights ---- */

static void many_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const job *j = ud;
  const peri__packed_product *p = j->p;
  for (int64_t task = begin; task < end; task++) {
    rows r = rows_of(j, task % j->mblocks);
    int64_t t0 = task / j->mblocks * j->nb, t1 = least(t0 + j->nb, j->panels);
    r.a = j->a + worker * j->gemm->mr * j->row_bytes;
    for (int64_t p0 = 0; p0 < p->k; p0 += KC) {
      int64_t kb = least(KC, p->k - p0);
      const char *next = (const char *)(p->x + (r.i + r.m) * p->xrs + p0);
      pack_rows(j, &r, p0, kb);
      one_tile(j, &r, t0, 1, p0, kb, next, r.m * (int64_t)sizeof *p->x);
      for (int64_t t = t0 + 1; t < t1; t++) one_tile(j, &r, t, 1, p0, kb, NULL, j->s.step);
    }
  }
}

static void no_steps (const peri__packed_product *p) {
  for (int64_t i = 0; i < p->m; i++)
    for (int64_t c = 0; c < p->n; c++) p->y[i * p->n + c] = p->bias ? p->bias[c] : 0;
}

peri_status peri__float_product (peri_ctx *ctx, peri_dtype d, const peri__packed_product *p) {
  job j = { .p = p, .gemm = ctx->cpu->gemm, .s = layout_of(ctx->cpu, d, p->k) };
  if (p->m <= 0 || p->n <= 0) return PERI_OK;
  if (p->k == 0) {
    no_steps(p);
    return PERI_OK;
  }
  bool dot = j.s.kind == PERI_PANEL_DOT;
  j.mblocks = (p->m + j.gemm->mr - 1) / j.gemm->mr;
  j.panels = (p->n + j.s.nr - 1) / j.s.nr;
  j.row_bytes = dot ? (p->k + 1) / 2 * 4 : p->k * 4;
  bool all = j.mblocks == 1 || p->m * j.row_bytes <= ROOM, in_place = p->m == 1 && !dot;
  if (!all) j.row_bytes = least(j.row_bytes, dot ? KC * 2 : KC * 4);
  int64_t count = all ? p->m : j.gemm->mr * peri_threads(ctx);
  char *room = in_place ? NULL : peri__block_get(ctx, (size_t)(count * j.row_bytes));
  if (!in_place && !room)
    return peri__fail(ctx, PERI_ENOMEM, "out of memory for %lld packed rows", (long long)count);
  j.a = in_place ? (char *)(void *)p->x : room;
  if (all && !in_place)
    peri__parallel(ctx, j.mblocks, most(1, PACK_GRAIN / (j.gemm->mr * p->k)), pack_all, &j);
  int64_t grain = most(1, PIECE / most(1, j.s.panel * j.mblocks));
  if (j.mblocks == 1) {
    peri__parallel(ctx, j.panels, grain, few_rows, &j);
  } else if (all) {
    peri__parallel(ctx, j.panels, grain, some_rows, &j);
  } else {
    int64_t blocks = most(1, j.panels * j.s.panel / NB_BYTES);
    j.nb = (j.panels + blocks - 1) / blocks;
    blocks = (j.panels + j.nb - 1) / j.nb;
    peri__parallel(ctx, blocks * j.mblocks, 1, many_rows, &j);
  }
  peri__block_put(ctx, room);
  return PERI_OK;
}

/* ---- x W, for gradients: the panels turned around ---- */

typedef struct turn {
  layout s;
  const struct peri__gemm_kernels *gemm;
  const char *w;
} turn;

/* Outputs [p, p + count) of inputs [j, j + n): 16-bit steps pass through a few of floats. */
static void turned_panel (const void *ud, int64_t p, int64_t count, int64_t j, int64_t n,
                          float *out) {
  const turn *t = ud;
  const layout *s = &t->s;
  float wide[PERI_GEMM_NV * PERI_GEMM_MAX_LANES * PERI_GEMM_NV * PERI_GEMM_MAX_LANES];
  for (int64_t end = p + count, some; p < end; p += some, out += some * s->nr) {
    const char *panel = t->w + p / s->nr * s->panel;
    const float *steps = wide;
    some = least(end - p, s->nr - p % s->nr);
    if (s->kind == PERI_PANEL_F32)
      steps = (const float *)(const void *)(panel + j * s->step);
    else
      s->kern->widen[s->kind](panel, j, n, wide);
    t->gemm->pack_b(some, n, steps + p % s->nr, 1, s->nr, out);
  }
}

peri_status peri__float_back (peri_ctx *ctx, peri_dtype d, int64_t m, int64_t n, int64_t k,
                              const float *g, const void *w, float *dx) {
  turn t = { layout_of(ctx->cpu, d, k), ctx->cpu->gemm, w };
  peri__gemm p = { .m = m,
                   .n = k,
                   .k = n,
                   .a = g,
                   .ars = n,
                   .acs = 1,
                   .c = dx,
                   .crs = k,
                   .panel = turned_panel,
                   .panel_ud = &t };
  return peri__gemm_f32(ctx, &p);
}
