/*
** recurrent.c - LSTM and GRU layers over time in f32: how rows and units are cut between threads, and
** the products with W_hh, by the register tiles of cpu/simd_gemm.c.
**
** A "panel" is NR units (two vectors). A step of some rows makes, panel by panel, the products of each
** gate in scratch and then the gates (cpu/simd_recurrent.c), so that what is read and written in memory
** is the saved step alone. Rows do not depend on each other: where W_hh stays in a core's cache, each
** thread takes rows through all of time; else threads share the panels of every step. A product is one
** chain over k for each element, whatever is cut (cpu/gemm.h): results depend on neither.
**
** Rows are sorted by their lengths, so that those which have a step t come first.
*/
#include "cpu/recurrent.h"

#include <string.h>

#include "cpu/gemm.h"
#include "cpu/nn.h"

enum {
  FEW_ROWS = 8,        /* up to here tiles read the rows of A in place */
  NEAR_BYTES = 600000, /* of W_hh that every thread may read at every step */
  SMALL = 1 << 17,     /* multiply-adds for which another thread is not worth waking */
  PAD = 16             /* floats behind each row of a state: rows do not share cache sets */
};

/* Rows that go through time together. */
typedef struct slice {
  int64_t n, live; /* rows, those that have the step under way */
  int64_t before;  /* backward: rows of the step done before it, whose products are due */
  int64_t *row;    /* (n): b of each, the longest first */
  int64_t *at;     /* (n): b T + t */
  float *h[2], *c; /* (n, ld): the state, of which h is read in one and written in the other */
  float *d[2];     /* backward: (n, dld), gradients of the gates, likewise */
  const float **h_before, **c_before;
} slice;

/* What a worker needs for itself. */
typedef struct room {
  float *a;  /* packed rows of A */
  float *wh; /* products of a panel: (rows, G, NR) */
} room;

typedef struct run {
  peri_ctx *ctx;
  const struct peri__recurrent *r;
  const struct peri__gemm_kernels *kern;
  peri__cells_fn cells;
  int64_t gates, saves, nr, panels, ld, dld;
  float *packed; /* panels of W_hh */
  slice *slices;
  room *rooms;     /* of each worker */
  int64_t *longer; /* (T + 1)?, with lengths */
  float *zeros;    /* (H): an initial state that was not given */
  bool backward;
  int64_t step; /* how many are done */
} run;

static int64_t least (int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t up (int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }

/* Step number k of a run is step t of the sequences. */
static int64_t time_of (const run *u, int64_t k) {
  return u->r->reverse != u->backward ? u->r->T - 1 - k : k;
}

static bool has_step (const run *u, const slice *s, int64_t i, int64_t t) {
  return t < peri__row_steps(u->r, s->row[i]);
}

/* ---- products ---- */

/* Rows [0, n) of A, side by side in panels of mr rows; NULL: they are read in place. */
static const float *pack (const run *u, int64_t n, int64_t k, const float *a, int64_t ld,
                          float *to) {
  if (n <= FEW_ROWS) return NULL;
  for (int64_t i = 0; i < n; i += u->kern->mr)
    u->kern->pack_a(least(u->kern->mr, n - i), k, a + i * ld, ld, 1, to + i * k);
  return to;
}

/* C = A B (accumulate: C + A B) for one panel of B, n rows; vectors of C are written whole. */
static void product (const run *u, int64_t n, int64_t k, const float *a, int64_t ld,
                     const float *packed, const float *b, int64_t vectors, float *c, int64_t crs,
                     bool accumulate) {
  static const float zeros[PERI_GEMM_NV * PERI_GEMM_MAX_LANES];
  for (int64_t i = 0; i < n; i += u->kern->mr) {
    int64_t m = least(u->kern->mr, n - i), irs = accumulate ? crs : 0;
    float *to = c + i * crs;
    const float *init = accumulate ? to : zeros;
    if (packed != NULL)
      u->kern->packed[m][vectors](k, packed + i * k, m, b, u->nr, to, crs, init, irs,
                                  packed + i * k + 16 * m, m);
    else
      u->kern->direct[m][vectors](k, a + i * ld, ld, 1, b, u->nr, to, crs, init, irs);
  }
}

static int64_t vectors_of (const run *u, int64_t panel) {
  int64_t left = u->r->H - panel * u->nr;
  return left > u->kern->lanes ? PERI_GEMM_NV : 1;
}

/* ---- one step ---- */

/* Which rows have step t, where they stand, and, forward, the states that begin anew. */
static void prepare (const run *u, slice *s, int64_t t) {
  const struct peri__recurrent *r = u->r;
  int now = (int)(u->step & 1);
  s->before = s->live;
  while (s->live > 0 && !has_step(u, s, s->live - 1, t)) s->live--;
  while (s->live < s->n && has_step(u, s, s->live, t)) s->live++;
  for (int64_t i = 0; i < s->live; i++) {
    int64_t b = s->row[i], from = peri__step_before(r, b, t);
    s->at[i] = b * r->T + t;
    if (u->backward) {
      const float *y = r->y, *saved = r->saved, *h0 = r->h0, *c0 = r->c0;
      const int64_t step = b * r->T + from;
      s->h_before[i] = from == PERI_FROM_ZERO      ? NULL
                       : from != PERI_FROM_INITIAL ? y + step * r->H
                       : h0 != NULL                ? h0 + b * r->H
                                                   : u->zeros;
      s->c_before[i] = from == PERI_FROM_ZERO || r->kind != PERI_LSTM ? NULL
                       : from != PERI_FROM_INITIAL ? saved + (step * u->saves + 4) * r->H
                       : c0 != NULL                ? c0 + b * r->H
                                                   : u->zeros;
    } else if (from == PERI_FROM_ZERO) {
      memset(s->h[now] + i * u->ld, 0, (size_t)u->ld * sizeof(float));
      if (r->kind == PERI_LSTM) memset(s->c + i * u->ld, 0, (size_t)u->ld * sizeof(float));
    }
  }
}

static struct peri__cells cells_of (const run *u, const slice *s) {
  const struct peri__recurrent *r = u->r;
  int now = (int)(u->step & 1);
  return (struct peri__cells){ .row1 = s->live,
                               .unit1 = r->H,
                               .H = r->H,
                               .at = s->at,
                               .saved = r->saved,
                               .y = r->y,
                               .ld = u->ld,
                               .h = s->h[!now],
                               .c = s->c,
                               .h_former = s->h[now],
                               .bias_n = r->bias_n,
                               .h_before = s->h_before,
                               .c_before = s->c_before,
                               .gy = r->gy,
                               .gh = s->h[0],
                               .gc = s->c,
                               .dx = r->dx,
                               .dh = r->dh,
                               .before = r->before,
                               .dh_too = s->d[now],
                               .too_ld = u->dld };
}

static void step_forward (const run *u, const slice *s, int64_t first, int64_t last, room *own) {
  const int64_t H = u->r->H;
  const float *h = s->h[u->step & 1], *packed = pack(u, s->live, H, h, u->ld, own->a);
  struct peri__cells c = cells_of(u, s);
  c.wh = own->wh, c.wh_ld = u->gates * u->nr, c.wh_gate = u->nr;
  for (int64_t p = first; p < last; p++) {
    for (int64_t g = 0; g < u->gates; g++)
      product(u, s->live, H, h, u->ld, packed, u->packed + (g * u->panels + p) * u->nr * H,
              vectors_of(u, p), own->wh + g * u->nr, c.wh_ld, false);
    c.unit0 = p * u->nr;
    c.unit1 = least(H, c.unit0 + u->nr);
    u->cells(&c);
  }
}

/* What the step that was done before this one hands on through W_hh. */
static void hand_on (const run *u, const slice *s, int64_t first, int64_t last, room *own) {
  const int64_t k = u->gates * u->r->H, t = time_of(u, u->step - 1);
  const float *d = s->d[!(u->step & 1)], *packed = pack(u, s->before, k, d, u->dld, own->a);
  int64_t begin = first * u->nr, end = least(up(u->r->H, u->kern->lanes), last * u->nr);
  for (int64_t p = first; p < last; p++)
    product(u, s->before, k, d, u->dld, packed, u->packed + p * u->nr * k, vectors_of(u, p),
            s->h[0] + p * u->nr, u->ld, true);
  for (int64_t i = 0; u->r->starts != NULL && i < s->before; i++)
    if (peri__step_before(u->r, s->row[i], t) == PERI_FROM_ZERO)
      memset(s->h[0] + i * u->ld + begin, 0, (size_t)(end - begin) * sizeof(float));
}

static void step_backward (const run *u, const slice *s, int64_t first, int64_t last, room *own) {
  struct peri__cells c = cells_of(u, s);
  if (s->before > 0) hand_on(u, s, first, last, own);
  c.unit0 = first * u->nr;
  c.unit1 = least(u->r->H, last * u->nr);
  if (u->step < u->r->T) u->cells(&c);
}

/* ---- all steps ---- */

/* Step T of a backward run hands on to the initial state alone. */
static int64_t steps_of (const run *u) {
  return u->r->T + (u->backward && u->r->dh0 != NULL ? 1 : 0);
}

static void advance (const run *u, slice *s) {
  if (u->step < u->r->T)
    prepare(u, s, time_of(u, u->step));
  else
    s->before = s->live, s->live = 0;
}

static void rows_task (void *ud, int64_t begin, int64_t end, int worker) {
  const run *shared = ud;
  for (int64_t i = begin; i < end; i++) {
    run u = *shared;
    for (u.step = 0; u.step < steps_of(&u) && !peri__stopped(u.ctx); u.step++) {
      slice *s = &u.slices[i];
      advance(&u, s);
      (u.backward ? step_backward : step_forward)(&u, s, 0, u.panels, &u.rooms[worker]);
    }
  }
}

static void panels_task (void *ud, int64_t begin, int64_t end, int worker) {
  const run *u = ud;
  (u->backward ? step_backward : step_forward)(u, u->slices, begin, end, &u->rooms[worker]);
}

/* ---- a single step: by cpu/gemm.c, as packing W_hh for one product does not pay ---- */

typedef struct single {
  peri__cells_fn fn;
  struct peri__cells c;
} single;

static void single_task (void *ud, int64_t begin, int64_t end, int worker) {
  const single *s = ud;
  struct peri__cells c = s->c;
  (void)worker;
  c.row0 = begin, c.row1 = end;
  s->fn(&c);
}

static void single_cells (const run *u, const struct peri__cells *c) {
  single job = { u->cells, *c };
  peri__parallel(u->ctx, c->row1, 1 + 8192 / (u->gates * u->r->H), single_task, &job);
}

static peri_status single_forward (const run *u, slice *s) {
  const int64_t H = u->r->H, n = u->gates * H;
  struct peri__cells c = cells_of(u, s);
  float *wh = u->rooms[0].wh;
  c.wh = wh, c.wh_ld = n, c.wh_gate = H;
  if (u->r->h0 == NULL)
    memset(wh, 0, (size_t)(s->live * n) * sizeof(float));
  else
    TRY(peri__gemm_f32(u->ctx, &(peri__gemm){ .m = s->live,
                                              .n = n,
                                              .k = H,
                                              .a = c.h_former,
                                              .ars = u->ld,
                                              .acs = 1,
                                              .b = u->r->w,
                                              .brs = 1,
                                              .bcs = H,
                                              .c = wh,
                                              .crs = n }));
  memset(wh + s->live * n, 0, PERI_GEMM_MAX_LANES * sizeof(float)); /* read, not used */
  single_cells(u, &c);
  return PERI_OK;
}

static peri_status single_backward (const run *u, slice *s) {
  const int64_t H = u->r->H, k = u->gates * H;
  struct peri__cells c = cells_of(u, s);
  single_cells(u, &c);
  if (u->r->dh0 == NULL) return PERI_OK;
  TRY(peri__gemm_f32(u->ctx, &(peri__gemm){ .m = s->live,
                                            .n = H,
                                            .k = k,
                                            .a = c.dh_too,
                                            .ars = u->dld,
                                            .acs = 1,
                                            .b = u->r->w,
                                            .brs = H,
                                            .bcs = 1,
                                            .c = c.gh,
                                            .crs = u->ld,
                                            .accumulate = true }));
  for (int64_t i = 0; i < s->live; i++)
    if (peri__step_before(u->r, s->row[i], 0) == PERI_FROM_ZERO)
      memset(c.gh + i * u->ld, 0, (size_t)H * sizeof(float));
  return PERI_OK;
}

/* ---- a whole call ---- */

/* Pieces of one block of memory; a first pass with block NULL measures. */
typedef struct arena {
  char *block;
  size_t used;
} arena;

static void *take (arena *a, int64_t n, size_t size) {
  void *p = a->block != NULL ? a->block + a->used : NULL;
  a->used += ((size_t)n * size + PERI_ALIGN - 1) / PERI_ALIGN * PERI_ALIGN;
  return p;
}

static int64_t rows_of (const run *u, int64_t slices, int64_t i) {
  return (u->r->B - i + slices - 1) / slices;
}

static void lay_out (run *u, arena *a, int64_t slices, int workers) {
  const struct peri__recurrent *r = u->r;
  const size_t f = sizeof(float);
  int64_t rows = rows_of(u, slices, 0), k = u->backward ? u->gates * r->H : r->H;
  bool one = r->T == 1;
  u->slices = take(a, slices, sizeof *u->slices);
  u->rooms = take(a, workers, sizeof *u->rooms);
  u->zeros = take(a, r->H, f);
  if (r->lengths != NULL) u->longer = take(a, r->T + 1, sizeof *u->longer);
  if (!one) u->packed = take(a, u->gates * u->panels * u->nr * r->H, f);
  for (int64_t i = 0; i < slices; i++) {
    int64_t n = rows_of(u, slices, i);
    slice s = { .n = n };
    s.row = take(a, n, sizeof *s.row);
    s.at = take(a, n, sizeof *s.at);
    s.h_before = take(a, n, sizeof *s.h_before);
    s.c_before = take(a, n, sizeof *s.c_before);
    s.h[0] = take(a, n * u->ld, f);
    if (!u->backward) s.h[1] = take(a, n * u->ld, f);
    if (r->kind == PERI_LSTM) s.c = take(a, n * u->ld, f);
    for (int d = 0; u->backward && d < (one ? 1 : 2); d++) s.d[d] = take(a, n * u->dld, f);
    if (a->block != NULL) u->slices[i] = s;
  }
  for (int w = 0; w < (one ? 1 : workers); w++) {
    room own = { .a = one ? NULL : take(a, rows * k, f) };
    if (!u->backward)
      own.wh = take(a, rows * u->gates * (one ? r->H : u->nr) + PERI_GEMM_MAX_LANES, f);
    if (a->block != NULL) u->rooms[w] = own;
  }
}

/* Sorted by length, the longest first, rows are dealt out in turn, so that slices get alike ones. */
static void deal (run *u, int64_t slices) {
  const struct peri__recurrent *r = u->r;
  int64_t *longer =
      u->longer; /* than t: how many rows, then the place of the next one of t steps */
  if (longer != NULL) {
    memset(longer, 0, (size_t)(r->T + 1) * sizeof *longer);
    for (int64_t b = 0; b < r->B; b++)
      if (r->lengths[b] > 0) longer[r->lengths[b] - 1]++;
    for (int64_t t = r->T - 1; t >= 0; t--) longer[t] += longer[t + 1];
  }
  for (int64_t b = 0; b < r->B; b++) {
    int64_t place = longer != NULL ? longer[r->lengths[b]]++ : b;
    u->slices[place % slices].row[place / slices] = b;
  }
}

static void fill_rows (const run *u, const slice *s, const float *from, float *to) {
  const int64_t H = u->r->H;
  memset(to, 0, (size_t)(s->n * u->ld) * sizeof *to);
  for (int64_t i = 0; from != NULL && i < s->n; i++)
    memcpy(to + i * u->ld, from + s->row[i] * H, (size_t)H * sizeof *to);
}

static void begin (const run *u, int64_t slices) {
  const struct peri__recurrent *r = u->r;
  memset(u->zeros, 0, (size_t)r->H * sizeof *u->zeros);
  for (int64_t i = 0; i < slices; i++) {
    slice *s = &u->slices[i];
    fill_rows(u, s, u->backward ? r->ghn : r->h0, s->h[0]);
    if (s->h[1] != NULL) fill_rows(u, s, r->h0, s->h[1]);
    if (s->c != NULL) fill_rows(u, s, u->backward ? r->gcn : r->c0, s->c);
  }
}

static void give (const run *u, int64_t slices) {
  const struct peri__recurrent *r = u->r;
  const size_t row = (size_t)r->H * sizeof(float);
  if (!u->backward || r->dh0 == NULL) return;
  for (int64_t i = 0; i < slices; i++)
    for (int64_t k = 0; k < u->slices[i].n; k++) {
      int64_t b = u->slices[i].row[k];
      memcpy((float *)r->dh0 + b * r->H, u->slices[i].h[0] + k * u->ld, row);
      if (r->dc0 != NULL) memcpy((float *)r->dc0 + b * r->H, u->slices[i].c + k * u->ld, row);
    }
}

static void pack_weights (const run *u) {
  const int64_t H = u->r->H;
  const float *w = u->r->w;
  if (u->backward)
    peri__gemm_pack(u->ctx, H, u->gates * H, w, H, 1, u->packed);
  else
    for (int64_t g = 0; g < u->gates; g++)
      peri__gemm_pack(u->ctx, H, H, w + g * H * H, 1, H, u->packed + g * u->panels * u->nr * H);
}

peri_status peri__recurrent_f32 (peri_ctx *ctx, const struct peri__recurrent *r, bool backward) {
  run u = { .ctx = ctx, .r = r, .kern = ctx->cpu->gemm, .backward = backward };
  const double work =
      (double)r->B * (double)r->T * (double)(peri__cell_gates(r->kind) * r->H) * (double)r->H;
  int threads = work < SMALL ? 1 : peri_threads(ctx);
  u.cells = ctx->cpu->nn->cells[r->kind][backward];
  u.gates = peri__cell_gates(r->kind);
  u.saves = peri__cell_saves(r->kind);
  u.nr = (int64_t)PERI_GEMM_NV * u.kern->lanes;
  u.panels = (r->H + u.nr - 1) / u.nr;
  u.ld = u.panels * u.nr + PAD;
  u.dld = u.gates * r->H + PAD;
  bool near = (double)u.gates * (double)r->H * (double)r->H * 4 <= NEAR_BYTES;
  bool by_rows = r->T > 1 && threads > 1 && (near || u.panels < threads);
  int64_t slices = by_rows ? least(threads, r->B) : 1;
  arena a = { NULL, 0 };
  lay_out(&u, &a, slices, threads);
  size_t bytes = a.used;
  a = (arena){ peri__block_get(ctx, bytes), 0 };
  if (a.block == NULL)
    return peri__fail(ctx, PERI_ENOMEM, "no memory for %zu bytes of scratch", bytes);
  lay_out(&u, &a, slices, threads);
  deal(&u, slices);
  begin(&u, slices);
  peri_status s = PERI_OK;
  if (r->T == 1) {
    advance(&u, u.slices);
    s = (backward ? single_backward : single_forward)(&u, u.slices);
  } else {
    pack_weights(&u);
    if (threads == 1 || by_rows)
      peri__parallel(ctx, slices, 1, rows_task, &u);
    else
      for (; u.step < steps_of(&u) && !peri__stopped(ctx); u.step++) {
        advance(&u, u.slices);
        peri__parallel(ctx, u.panels, (u.panels + threads - 1) / threads, panels_task, &u);
      }
  }
  give(&u, slices);
  peri__block_put(ctx, a.block);
  return s;
}

void peri__recurrent_rest (const struct peri__recurrent *r, bool backward, size_t size) {
  const size_t row = (size_t)r->H * size, gates = (size_t)peri__cell_gates(r->kind) * row;
  const size_t saves = (size_t)peri__cell_saves(r->kind) * row;
#define AT(p, b, width) ((char *)(p) + (size_t)(b)*width)
  for (int64_t b = 0; b < r->B; b++) {
    int64_t n = peri__row_steps(r, b), first = b * r->T + n;
    size_t rest = (size_t)(r->T - n);
    if (backward) {
      if (rest == 0) continue; /* over no steps at all there is no memory */
      memset(AT(r->dx, first, gates), 0, rest * gates);
      if (r->dh != NULL) memset(AT(r->dh, first, gates), 0, rest * gates);
      memset(AT(r->before, first, row), 0, rest * row);
      continue;
    }
    if (rest > 0) {
      memset(AT(r->saved, first, saves), 0, rest * saves);
      memset(AT(r->y, first, row), 0, rest * row);
    }
    int64_t last = n == 0 ? 0 : b * r->T + (r->reverse ? 0 : n - 1);
    const char *h = n > 0 ? AT(r->y, last, row) : r->h0 != NULL ? AT(r->h0, b, row) : NULL;
    const char *c = n > 0           ? AT(r->saved, last, saves) + 4 * row
                    : r->c0 != NULL ? AT(r->c0, b, row)
                                    : NULL;
    char *to = AT(r->hn, b, row);
    if (h != NULL)
      memcpy(to, h, row);
    else
      memset(to, 0, row);
    if (r->kind != PERI_LSTM) continue;
    to = AT(r->cn, b, row);
    if (c != NULL)
      memcpy(to, c, row);
    else
      memset(to, 0, row);
  }
#undef AT
}
