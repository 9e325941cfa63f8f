/*
** gemm.c - drivers of the f32 matrix product: how a product is cut into tiles, blocks of k and
** tasks for threads, and when packing an operand pays. The arithmetic is in cpu/simd_gemm.c.
**
** A "panel" is nr columns of B or C (two vectors), or mr rows of A. Work is cut over rows and
** columns only; blocks of k run one after the other and continue from the values stored in C.
*/
#include "cpu/gemm.h"

#include <string.h>

enum {
  KC = 768,             /* steps of k in a block: panels of A and B stay in L2 */
  MC = 192,             /* rows that share one privately packed panel of B */
  FEW_ROWS = 256,       /* up to here threads share columns only, and pack B each for itself */
  KO = 1536,            /* steps packed at once by the shared form */
  ROOM = 1 << 20,       /* and floats of each operand */
  MB = 96,              /* most rows of its tasks */
  NB_BYTES = 700000,    /* of packed B that one task of the shared form walks for each panel of A */
  SMALL = 1 << 17,      /* multiply-adds below which waking another thread does not pay */
  PACK_GRAIN = 1 << 13, /* elements of a packing task */
  BARE_ROWS = 512,      /* up to here and BARE_COLS columns, packing B for a transposed A does */
  BARE_COLS = 128,      /* not pay: gradients of weights, long in k */
  AHEAD = 16,           /* steps of k that A is fetched ahead */
  LINE = 16,            /* floats in a line of cache */
  FEW_COLS = 4,         /* up to here a product is turned around */
  L1_BYTES = 32768
};

enum source { PACKED, PRIVATE, DIRECT, TRANSPOSED }; /* where tiles find B */

typedef struct job {
  const struct peri__gemm_kernels *kern;
  const peri__gemm *g;
  int64_t mr, nr;
  int64_t p0, kb; /* the block of k under way */
  enum source source;
  /* packed B: the panel of column j at bp + (j - bj) * bk, its row p0 + r at r * nr from bp0 on */
  const float *bp;
  int64_t bj, bk, bp0;
  /* packed A, the same way; NULL = read in place */
  float *ap;
  int64_t ai, ak, ap0;
  const float *ahead; /* lines of A that the next tile fetches for a later one; NULL = none */
  bool pack_a, bare;  /* each task packs A for itself; neither operand is packed */
  float *pack_to;     /* where the packing tasks write */
  int64_t i0, i1, j0, j1, mb, nb, mblocks; /* the part of C under way and its grid of tasks */
  char *scratch;                           /* worker w has scratch + w * each */
  size_t each;
} job;

static int64_t least (int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most (int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t up (int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }

/* Size of the blocks when n is cut into nearly equal ones of at most max (a multiple of unit). */
static int64_t even (int64_t n, int64_t max, int64_t unit) {
  int64_t blocks = (n + max - 1) / max;
  return blocks <= 1 ? most(n, 1) : up((n + blocks - 1) / blocks, unit);
}

static job job_of (const struct peri__cpu *cpu, const peri__gemm *g) {
  job s = { .kern = cpu->gemm, .g = g, .mr = cpu->gemm->mr };
  s.nr = (int64_t)PERI_GEMM_NV * s.kern->lanes;
  return s;
}

/* Packed, A is one stream that the processor fetches ahead; in place it is one for each row, unless
** its rows lie next to each other. */
static bool wants_packed_a (const job *s) {
  const peri__gemm *g = s->g;
  /* Steps half a page or more apart share cache sets: what one panel of B brought in is gone. */
  if (g->ars == 1) return (g->acs & 511) == 0 && g->m > s->mr && g->n > 4 * s->nr;
  return g->m > (g->acs == 1 ? 8 : 4) && g->n > 2 * s->nr;
}

static enum source source_of (const job *s) {
  const peri__gemm *g = s->g;
  if (g->packed != NULL) return PACKED;
  if (g->panel != NULL) return PRIVATE;
  if (g->bcs == 1 && (g->m <= 2 * s->mr || g->k * g->n * 4 <= L1_BYTES)) return DIRECT;
  /* Columns half a page or more apart share cache sets; only packing is fit for that. */
  bool apart = (g->bcs & 511) != 0;
  if (g->brs == 1 && g->m <= s->kern->trans_mr && apart) return TRANSPOSED;
  return PRIVATE;
}

/* Rows [i, i + mm) and columns [j, j + nn) of C, B at b. */
static void one_tile (const job *s, enum source source, int64_t i, int64_t mm, int64_t j,
                      int64_t nn, const float *b, int64_t ldb) {
  static const float zeros[PERI_GEMM_WIDE * PERI_GEMM_MAX_LANES];
  const peri__gemm *g = s->g;
  const struct peri__gemm_kernels *kern = s->kern;
  float *c = g->c + i * g->crs + j;
  int64_t crs = g->crs, irs = 0;
  const float *init = zeros;
  if (s->p0 > 0 || g->accumulate) {
    init = c;
    irs = crs;
  } else if (g->bias != NULL) {
    init = g->bias + j;
  }
  int64_t vectors = (nn + kern->lanes - 1) / kern->lanes;
  bool edge = vectors * kern->lanes != nn;
  float tmp[PERI_GEMM_MR * PERI_GEMM_NV * PERI_GEMM_MAX_LANES];
  if (edge) { /* the tile writes full vectors: give it a copy of this corner of C */
    for (int64_t r = 0; r < mm; r++) {
      memcpy(tmp + r * s->nr, init + r * irs, (size_t)nn * sizeof *tmp);
      memset(tmp + r * s->nr + nn, 0, (size_t)(s->nr - nn) * sizeof *tmp);
    }
    init = c = tmp;
    irs = crs = s->nr;
  }
  const float *a = g->a + i * g->ars + s->p0 * g->acs;
  if (s->ap != NULL) {
    const float *ap = s->ap + (i - s->ai) * s->ak + (s->p0 - s->ap0) * mm;
    kern->packed[mm][vectors](s->kb, ap, mm, b, ldb, c, crs, init, irs,
                              s->ahead != NULL ? s->ahead : ap + AHEAD * mm,
                              s->ahead != NULL ? LINE : mm);
  } else if (vectors <= PERI_GEMM_NV && g->ars == 1 && source != TRANSPOSED)
    kern->packed[mm][vectors](s->kb, a, g->acs, b, ldb, c, crs, init, irs, a + AHEAD * g->acs,
                              g->acs);
  else if (source == TRANSPOSED)
    kern->trans[mm](s->kb, a, g->ars, g->acs, b, ldb, c, crs, init, irs);
  else if (vectors > PERI_GEMM_NV)
    kern->wide[mm](s->kb, a, g->ars, g->acs, b, ldb, c, crs, init, irs);
  else
    kern->direct[mm][vectors](s->kb, a, g->ars, g->acs, b, ldb, c, crs, init, irs);
  if (edge)
    for (int64_t r = 0; r < mm; r++)
      memcpy(g->c + (i + r) * g->crs + j, tmp + r * s->nr, (size_t)nn * sizeof *tmp);
}

/* Columns [j, j + nn) of B over the block of k under way, as a panel. */
static void pack_panel (const job *s, int64_t j, int64_t nn, float *out) {
  const peri__gemm *g = s->g;
  if (g->panel != NULL)
    g->panel(g->panel_ud, s->p0, s->kb, j, nn, out);
  else
    s->kern->pack_b(s->kb, nn, g->b + s->p0 * g->brs + j * g->bcs, g->brs, g->bcs, out);
}

static const float *panel_b (const job *s, int64_t j) {
  if (s->bare) return s->g->b + s->p0 * s->g->brs + j;
  return s->bp + (j - s->bj) * s->bk + (s->p0 - s->bp0) * s->nr;
}

static void finish (const job *s, int64_t i, int64_t j, int64_t mm, int64_t nn) {
  const peri__gemm *g = s->g;
  if (g->done != NULL && s->p0 + s->kb >= g->k)
    g->done(g->done_ud, g->c + i * g->crs + j, g->crs, i, j, mm, nn);
}

/* ---- one thread: rows [i0, i1) of columns [j0, j1), over all of k ---- */

static void panel_column (const job *s, int64_t i0, int64_t i1, int64_t j, int64_t nn, float *own) {
  const peri__gemm *g = s->g;
  enum source source = s->source;
  bool partial = source == DIRECT ? nn % s->kern->lanes != 0 : nn != s->nr;
  if (partial && source != PACKED) source = PRIVATE; /* B ends inside a vector: make a full one */
  int64_t ldb = source == DIRECT ? g->brs : source == TRANSPOSED ? g->bcs : s->nr;
  const float *b = own;
  if (source == PRIVATE)
    pack_panel(s, j, nn, own);
  else
    b = source == PACKED ? panel_b(s, j) : g->b + s->p0 * g->brs + j * g->bcs;
  for (int64_t i = i0; i < i1; i += s->mr)
    one_tile(s, source, i, least(s->mr, i1 - i), j, nn, b, ldb);
  finish(s, i0, j, i1 - i0, nn);
}

static void pack_rows (const job *s, int64_t i0, int64_t i1, int64_t p0, int64_t kb, float *out) {
  const peri__gemm *g = s->g;
  for (int64_t i = i0; i < i1; i += s->mr)
    s->kern->pack_a(least(s->mr, i1 - i), kb, g->a + i * g->ars + p0 * g->acs, g->ars, g->acs,
                    out + (i - i0) * kb);
}

/* Columns [j0, j1) in blocks of kc steps. own: KC * nr floats for B, then, with pack_a, rows * KC
** for A. */
static void blocks (job *s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t kc, bool pack_a,
                    float *own) {
  int64_t wide = PERI_GEMM_WIDE * s->kern->lanes, step;
  bool in_place = !pack_a && s->ap == NULL;
  bool go_wide = s->source == DIRECT && i1 - i0 <= s->kern->wide_mr && in_place;
  s->p0 = 0;
  do {
    s->kb = least(kc, s->g->k - s->p0);
    if (pack_a) {
      s->ap = own + KC * s->nr;
      s->ai = i0, s->ak = s->kb, s->ap0 = s->p0;
      pack_rows(s, i0, i1, s->p0, s->kb, s->ap);
    }
    for (int64_t j = j0; j < j1; j += step) {
      step = go_wide && j1 - j >= wide ? wide : least(s->nr, j1 - j);
      if (s->source == DIRECT && step > s->kern->lanes && step < s->nr) step = s->kern->lanes;
      panel_column(s, i0, i1, j, step, own);
    }
    s->p0 += s->kb;
  } while (s->p0 < s->g->k);
}

static void region (const job *shared, int64_t i0, int64_t i1, int64_t j0, int64_t j1, bool pack_a,
                    float *own) {
  job s = *shared;
  int64_t kc = even(s.g->k, KC, 4), split = j0;
  /* B that is read in place and used once needs no blocks of k, only its last columns do. */
  if (!pack_a && (s.source == TRANSPOSED || (s.source == DIRECT && i1 - i0 <= s.mr)))
    split += (j1 - j0) / s.nr * s.nr;
  if (split > j0) blocks(&s, i0, i1, j0, split, s.g->k, false, own);
  if (j1 > split) blocks(&s, i0, i1, split, j1, kc, pack_a, own);
}

size_t peri__gemm_scratch (const struct peri__cpu *cpu, int64_t m, int64_t n, int64_t k) {
  job s = job_of(cpu, NULL);
  (void)n; /* so that one size serves any shape of at most these rows */
  (void)k;
  return (size_t)(KC * (s.nr + least(m, MC))) * sizeof(float);
}

void peri__gemm_f32_seq (const struct peri__cpu *cpu, const peri__gemm *g, void *scratch) {
  job s = job_of(cpu, g);
  if (g->m <= 0 || g->n <= 0) return;
  s.source = source_of(&s);
  s.bp = g->packed, s.bk = g->k;
  bool pack_a = wants_packed_a(&s);
  if (pack_a && s.source == TRANSPOSED) s.source = PRIVATE;
  int64_t rows = even(g->m, MC, s.mr);
  for (int64_t i = 0; i < g->m; i += rows)
    region(&s, i, least(i + rows, g->m), 0, g->n, pack_a, scratch);
}

/* ---- threads share columns: each packs the B that it needs ---- */

static void pack_a_task (void *ud, int64_t begin, int64_t end, int worker) {
  const job *s = ud;
  (void)worker;
  int64_t i0 = s->i0 + begin * s->mr, i1 = least(s->i0 + end * s->mr, s->i1);
  pack_rows(s, i0, i1, s->p0, s->kb, s->ap + (i0 - s->i0) * s->kb);
}

static void columns_task (void *ud, int64_t begin, int64_t end, int worker) {
  const job *s = ud;
  float *own = (float *)(s->scratch + (size_t)worker * s->each);
  if (s->mblocks == 1) {
    region(s, 0, s->g->m, begin * s->nr, least(end * s->nr, s->g->n), false, own);
    return;
  }
  for (int64_t t = begin; t < end; t++) {
    int64_t i = t % s->mblocks * s->mb, j = t / s->mblocks * s->nr;
    region(s, i, least(i + s->mb, s->g->m), j, least(j + s->nr, s->g->n), false, own);
  }
}

static peri_status scratch_failed (peri_ctx *ctx, size_t bytes) {
  return peri__fail(ctx, PERI_ENOMEM, "no memory for %zu bytes of scratch", bytes);
}

/* parts: blocks of rows that each panel is cut into. */
static peri_status columns (peri_ctx *ctx, job *s, bool pack_a, int64_t parts) {
  const peri__gemm *g = s->g;
  s->mb = up((g->m + parts - 1) / parts, s->mr);
  s->mblocks = (g->m + s->mb - 1) / s->mb;
  if (pack_a && s->source == TRANSPOSED) s->source = PRIVATE;
  s->bp = g->packed, s->bk = g->k;
  s->each = (size_t)(KC * s->nr) * sizeof(float);
  size_t own = s->each * (size_t)peri_threads(ctx);
  size_t bytes = own + (pack_a ? (size_t)(g->m * g->k) * sizeof(float) : 0);
  s->scratch = peri__block_get(ctx, bytes);
  if (s->scratch == NULL) return scratch_failed(ctx, bytes);
  if (pack_a) {
    s->ap = (float *)(s->scratch + own);
    s->ak = s->kb = g->k, s->i1 = g->m;
    int64_t panels = (g->m + s->mr - 1) / s->mr;
    peri__parallel(ctx, panels, most(1, PACK_GRAIN / (s->mr * most(g->k, 1))), pack_a_task, s);
  }
  int64_t grain = most(1, SMALL / 4 / most(1, least(g->m, s->mb) * g->k * s->nr));
  peri__parallel(ctx, (g->n + s->nr - 1) / s->nr * s->mblocks, grain, columns_task, s);
  peri__block_put(ctx, s->scratch);
  return PERI_OK;
}

/* ---- threads share rows and columns, and both packed operands ---- */

static void pack_b_task (void *ud, int64_t begin, int64_t end, int worker) {
  const job *s = ud;
  (void)worker;
  for (int64_t t = begin; t < end; t++) {
    int64_t j = s->j0 + t * s->nr;
    pack_panel(s, j, least(s->nr, s->j1 - j), s->pack_to + t * s->nr * s->kb);
  }
}

/* One block of C through all steps that are packed, while it is in L2. Tasks run down the rows of
** one block of columns first, so that its B stays there as well. */
static void shared_task (void *ud, int64_t begin, int64_t end, int worker) {
  job s = *(const job *)ud;
  const peri__gemm *g = s.g;
  int64_t first = s.p0, last = s.p0 + s.kb, kc = even(s.kb, KC, 4);
  int64_t ldb = s.bare ? g->brs : s.nr;
  for (int64_t t = begin; t < end; t++) {
    int64_t ib = s.i0 + t % s.mblocks * s.mb, jb = s.j0 + t / s.mblocks * s.nb;
    int64_t ie = least(ib + s.mb, s.i1), je = least(jb + s.nb, s.j1);
    s.p0 = first;
    do {
      s.kb = least(kc, last - s.p0);
      for (int64_t i = ib; i < ie; i += s.mr) {
        int64_t mm = least(s.mr, ie - i);
        if (s.pack_a) {
          s.ap = (float *)(s.scratch + (size_t)worker * s.each);
          s.ai = i, s.ak = s.kb, s.ap0 = s.p0;
          pack_rows(&s, i, i + mm, s.p0, s.kb, s.ap);
          if (g->acs == 1 && g->ars == s.kb) s.ahead = g->a + (i + s.mr) * g->ars;
        }
        for (int64_t j = jb; j < je; j += s.nr) {
          one_tile(&s, PACKED, i, mm, j, least(s.nr, je - j), panel_b(&s, j), ldb);
          s.ahead = NULL;
        }
        finish(&s, i, jb, mm, je - jb);
      }
      s.p0 += s.kb;
    } while (s.p0 < last);
  }
}

/* Cut the block of C under way into tasks. */
static void cut (job *s, int threads) {
  int64_t rows = s->i1 - s->i0, cols = s->j1 - s->j0, kc = most(least(s->kb, KC), 1);
  s->nb = even(cols, most(1, NB_BYTES / (4 * s->nr * kc)) * s->nr, s->nr);
  int64_t nblocks = (cols + s->nb - 1) / s->nb;
  int64_t want = most(1, 64 * threads / nblocks); /* blocks of rows, for an even end */
  int64_t least_rows = SMALL / 2 / (s->nb * most(s->kb, 1));
  s->mb = up(least(MB, most((rows + want - 1) / want, least_rows)), s->mr);
  s->mblocks = (rows + s->mb - 1) / s->mb;
}

static void shared_block (peri_ctx *ctx, job *s, int64_t ko, float *a_room, float *b_room) {
  const peri__gemm *g = s->g;
  s->p0 = 0;
  do {
    s->kb = least(ko, g->k - s->p0);
    if (g->packed != NULL) {
      s->bp = g->packed, s->bk = g->k;
    } else if (!s->bare) {
      s->bp = s->pack_to = b_room;
      s->bj = s->j0, s->bk = s->kb, s->bp0 = s->p0;
      peri__parallel(ctx, (s->j1 - s->j0 + s->nr - 1) / s->nr,
                     most(1, PACK_GRAIN / (s->nr * most(s->kb, 1))), pack_b_task, s);
    }
    cut(s, peri_threads(ctx));
    s->scratch = (char *)a_room;
    s->pack_a = a_room != NULL && s->nb >= s->j1 - s->j0;
    if (a_room != NULL && !s->pack_a && (s->j0 == 0 || ko < g->k)) { /* else there already */
      s->ap = a_room;
      s->ai = s->i0, s->ak = s->kb, s->ap0 = s->p0;
      peri__parallel(ctx, (s->i1 - s->i0 + s->mr - 1) / s->mr,
                     most(1, PACK_GRAIN / (s->mr * most(s->kb, 1))), pack_a_task, s);
    }
    peri__parallel(ctx, s->mblocks * ((s->j1 - s->j0 + s->nb - 1) / s->nb), 1, shared_task, s);
    s->p0 += s->kb;
  } while (s->p0 < g->k);
}

static peri_status shared (peri_ctx *ctx, job *s, bool pack_a) {
  const peri__gemm *g = s->g;
  bool pack_b = g->packed == NULL && !s->bare;
  int64_t ko = s->bare ? g->k : even(g->k, KO, 4);
  int64_t mc = s->bare ? g->m : even(g->m, ROOM / ko / s->mr * s->mr, s->mr);
  int64_t nc = !pack_b ? g->n : even(g->n, ROOM / ko / s->nr * s->nr, s->nr);
  size_t b_floats = pack_b ? (size_t)(up(nc, s->nr) * ko) : 0;
  s->each = (size_t)(KC * s->mr) * sizeof(float);
  size_t a_bytes = most((size_t)(mc * ko) * sizeof(float), s->each * (size_t)peri_threads(ctx));
  size_t bytes = b_floats * sizeof(float) + (pack_a ? a_bytes : 0);
  float *room = NULL;
  if (bytes > 0) {
    room = peri__block_get(ctx, bytes);
    if (room == NULL) return scratch_failed(ctx, bytes);
  }
  for (s->i0 = 0; s->i0 < g->m; s->i0 += mc)
    for (s->j0 = 0; s->j0 < g->n; s->j0 += nc) {
      s->i1 = least(s->i0 + mc, g->m);
      s->j1 = least(s->j0 + nc, g->n);
      shared_block(ctx, s, ko, pack_a ? room + b_floats : NULL, room);
    }
  peri__block_put(ctx, room);
  return PERI_OK;
}

/* ---- entry points ---- */

static peri_status alone (peri_ctx *ctx, const peri__gemm *g) {
  size_t bytes = peri__gemm_scratch(ctx->cpu, g->m, g->n, g->k);
  void *scratch = peri__block_get(ctx, bytes);
  if (scratch == NULL) return scratch_failed(ctx, bytes);
  peri__gemm_f32_seq(ctx->cpu, g, scratch);
  peri__block_put(ctx, scratch);
  return PERI_OK;
}

static double work_of (const peri__gemm *g) {
  return (double)g->m * (double)g->n * (double)most(g->k, 1);
}

/* Vectors run over the columns of C, so a product of few columns is computed turned around. */
static bool wants_turning (const peri__gemm *g) {
  return g->n <= FEW_COLS && g->m >= 8 * g->n && g->packed == NULL && g->panel == NULL;
}

static peri_status turned (peri_ctx *ctx, const peri__gemm *g) {
  bool in_place = g->n == 1 && g->crs == 1;
  size_t bytes = (size_t)(g->m * g->n) * sizeof(float);
  float *c = in_place ? g->c : peri__block_get(ctx, bytes); /* (n, m) */
  if (c == NULL) return scratch_failed(ctx, bytes);
  bool begun = g->accumulate || g->bias != NULL;
  if (begun && !(in_place && g->accumulate))
    for (int64_t j = 0; j < g->n; j++)
      for (int64_t i = 0; i < g->m; i++)
        c[j * g->m + i] = g->accumulate ? g->c[i * g->crs + j] : g->bias[j];
  peri__gemm t = { .m = g->n,
                   .n = g->m,
                   .k = g->k,
                   .a = g->b,
                   .ars = g->bcs,
                   .acs = g->brs,
                   .b = g->a,
                   .brs = g->acs,
                   .bcs = g->ars,
                   .c = c,
                   .crs = g->m,
                   .accumulate = begun };
  peri_status s = peri__gemm_f32(ctx, &t);
  if (!in_place) {
    if (s == PERI_OK)
      for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++) g->c[i * g->crs + j] = c[j * g->m + i];
    peri__block_put(ctx, c);
  }
  if (s == PERI_OK && g->done != NULL) g->done(g->done_ud, g->c, g->crs, 0, 0, g->m, g->n);
  return s;
}

peri_status peri__gemm_f32 (peri_ctx *ctx, const peri__gemm *g) {
  if (g->m <= 0 || g->n <= 0) return PERI_OK;
  if (wants_turning(g)) return turned(ctx, g);
  int threads = peri_threads(ctx);
  if (work_of(g) < SMALL) return alone(ctx, g);
  job s = job_of(ctx->cpu, g);
  s.source = source_of(&s);
  bool pack_a = wants_packed_a(&s);
  int64_t panels = (g->n + s.nr - 1) / s.nr;
  bool enough = panels >= 4 * threads || panels % threads == 0;
  bool little = work_of(g) < 12.0 * SMALL;
  s.bare = !little && s.source != PACKED && g->panel == NULL && g->ars == 1 && g->bcs == 1 &&
           g->n % s.nr == 0 && g->m <= BARE_ROWS && g->n <= BARE_COLS;
  pack_a = pack_a && !s.bare;
  bool few = g->m <= FEW_ROWS && g->m * g->k <= ROOM; /* each panel of B meets all of A */
  if (few && enough && !s.bare) return columns(ctx, &s, pack_a, 1);
  /* So little that packing B twice costs less than waiting for another thread's part of it. */
  if (little) return columns(ctx, &s, pack_a, 4 * threads / panels + 1);
  return shared(ctx, &s, pack_a);
}

typedef struct batch {
  const struct peri__cpu *cpu;
  const peri__gemm *g;
  const int64_t (*off)[2];
  char *scratch;
  size_t each;
} batch;

static peri__gemm item_of (const peri__gemm *g, const int64_t (*off)[2], int64_t i) {
  peri__gemm one = *g;
  one.a += off[i][0];
  one.b += off[i][1];
  one.c += i * g->m * g->crs;
  return one;
}

static void batch_task (void *ud, int64_t begin, int64_t end, int worker) {
  const batch *s = ud;
  for (int64_t i = begin; i < end; i++) {
    peri__gemm one = item_of(s->g, s->off, i);
    peri__gemm_f32_seq(s->cpu, &one, s->scratch + (size_t)worker * s->each);
  }
}

peri_status peri__gemm_f32_batch (peri_ctx *ctx, const peri__gemm *g, int64_t nbatch,
                                  const int64_t (*off)[2]) {
  int threads = peri_threads(ctx);
  if (g->m <= 0 || g->n <= 0) return PERI_OK;
  if (work_of(g) >= SMALL && nbatch < 4 * threads && nbatch % threads != 0) {
    for (int64_t i = 0; i < nbatch; i++) {
      peri__gemm one = item_of(g, off, i);
      TRY(peri__gemm_f32(ctx, &one));
    }
    return PERI_OK;
  }
  batch s = { ctx->cpu, g, off, NULL, peri__gemm_scratch(ctx->cpu, g->m, g->n, g->k) };
  size_t bytes = s.each * (size_t)threads;
  s.scratch = peri__block_get(ctx, bytes);
  if (s.scratch == NULL) return scratch_failed(ctx, bytes);
  peri__parallel(ctx, nbatch, (int64_t)(SMALL / 2 / work_of(g)) + 1, batch_task, &s);
  peri__block_put(ctx, s.scratch);
  return PERI_OK;
}

/* ---- weights packed once ---- */

size_t peri__gemm_packed_size (const struct peri__cpu *cpu, int64_t n, int64_t k) {
  return (size_t)(up(n, (int64_t)PERI_GEMM_NV * cpu->gemm->lanes) * k) * sizeof(float);
}

void peri__gemm_pack (peri_ctx *ctx, int64_t n, int64_t k, const float *b, int64_t brs, int64_t bcs,
                      float *out) {
  peri__gemm g = { .n = n, .k = k, .b = b, .brs = brs, .bcs = bcs };
  job s = job_of(ctx->cpu, &g);
  s.j1 = n, s.kb = k, s.pack_to = out;
  peri__parallel(ctx, (n + s.nr - 1) / s.nr, most(1, PACK_GRAIN / (s.nr * most(k, 1))), pack_b_task,
                 &s);
}
