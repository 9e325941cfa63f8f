/*
** conv_weight.c - the gradient of a convolution for its weight: a product of g with the input's windows,
** summed over outputs. The input is laid out with channels innermost, so that the taps of a window are a
** few runs; see cpu/conv.h. Sums are over blocks of rows that depend on the sizes alone, then over blocks
** in order. Of one or two output channels (depthwise), vectors run along rows instead.
*/
#include <string.h>

#include "cpu/conv.h"
#include "cpu/gemm.h"

enum {
  COLS = 256,          /* outputs that a step of a task aims at */
  G_FLOATS = 64 << 10, /* of g packed for it */
  LAID = 64 << 10,     /* of input rows */
  FEW = 2,             /* output channels for which rows are vectors */
  TASKS = 8,           /* aimed at, whatever the threads */
  SUMS = 4 << 20,      /* floats of partial sums */
  BLOCK = 1 << 18,     /* least multiply-adds of a block */
  SMALL = 1 << 16      /* multiply-adds below which another thread does not pay */
};

typedef struct job {
  const peri_ctx *ctx;
  const struct peri__cpu *cpu;
  const peri__conv *s;
  const float *x, *g;
  float *dw;
  bool few;
  int64_t k, kp;               /* taps of all channels, in whole panels */
  int64_t nr, tile;            /* columns of a panel, rows of a register tile */
  int64_t part, parts;         /* output channels of a task, of how many */
  int64_t span, spans;         /* columns of a row that are taken together, of how many */
  int64_t rows, block, blocks; /* rows of spans of all images, of a block */
  int64_t chunk;               /* rows of a step */
  peri__conv_rows lay;         /* of few */
  int64_t pitch, xs;           /* else: floats of an input row, its columns */
  const int64_t *off, *at; /* few: of taps; else of the vectors of each panel, and where they go */
  float *sums; /* (groups, blocks, o, kp), or lanes of few (groups, blocks, o, k, lanes) */
  char *scratch;
  size_t each, base_at, g_at, panel_at;
} job;

static int64_t least (int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most (int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t above (int64_t a, int64_t b) { return (a + b - 1) / b; }
static size_t up64 (size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* A row of outputs: image, row, first column, columns. */
typedef struct row {
  int64_t image, y, x, n;
} row;

static row row_of (const job *j, int64_t r) {
  const peri__conv *s = j->s;
  int64_t x = r / s->oh % j->spans * j->span;
  return (row){ r / s->oh / j->spans, r % s->oh, x, least(j->span, s->ow - x) };
}

/* Rows behind each other in one image from r on, at most count. */
static int64_t run_of (const job *j, int64_t r, int64_t count) {
  return least(count, j->s->oh - r % j->s->oh);
}

/* ---- vectors along rows ---- */

static void few_chunk (const job *j, int64_t group, int64_t r0, int64_t r1, char *own,
                       float *sums) {
  const peri__conv *s = j->s;
  int64_t lanes = j->cpu->gemm->lanes, pitch = peri__conv_row(&j->lay);
  for (int64_t r = r0, n; r < r1; r += n) {
    row first = row_of(j, r);
    n = run_of(j, r, r1 - r);
    peri__conv_rows lay = j->lay;
    lay.x0 = first.x * s->sw - s->left;
    j->cpu->conv->lay(&lay, j->x + (first.image * s->groups + group) * s->c * s->h * s->w,
                      first.y * s->sh - s->top, (n - 1) * s->sh + (s->kh - 1) * s->dh + 1,
                      (float *)own);
    for (int64_t o = 0; o < s->o; o++) {
      const float *g = j->g + ((first.image * s->groups + group) * s->o + o) * s->oh * s->ow;
      j->cpu->conv->dot(j->k, j->off, n, (float *)own, s->sh * pitch, g + first.y * s->ow + first.x,
                        s->ow, first.n, sums + o * j->k * lanes);
    }
  }
}

/* ---- register tiles ---- */

/* Channels innermost: (rows, columns, channels), zeros around the image. */
static void lay_turned (const job *j, const float *x, int64_t y, int64_t x0, int64_t count,
                        float *out) {
  const peri__conv *s = j->s;
  int64_t begin = least(most(-x0, 0), j->xs), end = least(most(s->w - x0, begin), j->xs);
  for (int64_t r = 0; r < count; r++, y++, out += j->pitch) {
    bool inside = y >= 0 && y < s->h && begin < end;
    if (!inside || begin > 0 || end < j->xs) memset(out, 0, (size_t)j->pitch * sizeof *out);
    if (inside)
      j->cpu->conv->turn(s->c, end - begin, x + y * s->w + x0 + begin, s->h * s->w,
                         out + begin * s->c);
  }
}

/* Lay out what rows [r0, r1) read; base[col]: where the window of each output begins. g of part of the
** channels, packed for tiles. Returns the outputs. */
static int64_t lay_chunk (const job *j, int64_t group, int64_t o0, int64_t o1, int64_t r0,
                          int64_t r1, int64_t cols, float *laid, int64_t *base, float *gp) {
  const peri__conv *s = j->s;
  int64_t col = 0, at = 0;
  for (int64_t r = r0, n; r < r1; r += n) {
    row first = row_of(j, r);
    n = run_of(j, r, r1 - r);
    int64_t height = (n - 1) * s->sh + (s->kh - 1) * s->dh + 1;
    int64_t channel = (first.image * s->groups + group);
    lay_turned(j, j->x + channel * s->c * s->h * s->w, first.y * s->sh - s->top,
               first.x * s->sw - s->left, height, laid + at);
    bool joined = first.n == s->ow; /* rows of g follow each other */
    for (int64_t i = 0; i < n; i++) {
      for (int64_t x = 0; x < first.n; x++)
        base[col + i * first.n + x] = at + i * s->sh * j->pitch + x * s->sw * s->c;
      if (joined && i > 0) continue;
      int64_t take = joined ? n * s->ow : first.n, to = col + i * first.n;
      const float *g = j->g + (channel * s->o * s->oh + first.y + i) * s->ow + first.x;
      for (int64_t o = o0; o < o1; o += j->tile) {
        int64_t mm = least(j->tile, o1 - o);
        j->cpu->gemm->pack_a(mm, take, g + o * s->oh * s->ow, s->oh * s->ow, 1,
                             gp + (o - o0) * cols + to * mm);
      }
    }
    col += n * first.n;
    at += height * j->pitch;
  }
  return col;
}

static int64_t cols_of (const job *j, int64_t r0, int64_t r1) {
  int64_t cols = 0;
  for (int64_t r = r0, n; r < r1; r += n) {
    n = run_of(j, r, r1 - r);
    cols += n * row_of(j, r).n;
  }
  return cols;
}

static void tiles_chunk (const job *j, int64_t group, int64_t o0, int64_t o1, int64_t r0,
                         int64_t r1, char *own, float *sums) {
  const struct peri__gemm_kernels *kern = j->cpu->gemm;
  float *laid = (float *)own, *gp = (float *)(own + j->g_at), *panel = (float *)(own + j->panel_at);
  int64_t *base = (int64_t *)(own + j->base_at), cols = cols_of(j, r0, r1);
  lay_chunk(j, group, o0, o1, r0, r1, cols, laid, base, gp);
  const int64_t *at = j->at; /* of each panel: pieces, then offset and place of each */
  for (int64_t k = 0; k < j->kp; k += j->nr) {
    const float *from[PERI_CONV_PIECES];
    int64_t to[PERI_CONV_PIECES];
    int np = (int)*at++;
    for (int i = 0; i < np; i++, at += 2) from[i] = laid + at[0], to[i] = at[1];
    j->cpu->conv->pack(cols, base, np, from, to, panel);
    int64_t vectors = above(least(j->nr, j->k - k), kern->lanes);
    for (int64_t o = o0; o < o1; o += j->tile) {
      int64_t mm = least(j->tile, o1 - o);
      const float *a = gp + (o - o0) * cols;
      float *c = sums + o * j->kp + k;
      kern->packed[mm][vectors](cols, a, mm, panel, j->nr, c, j->kp, c, j->kp, a + 16 * mm, mm);
    }
  }
}

static void weight_task (void *ud, int64_t begin, int64_t end, int worker) {
  const job *j = ud;
  const peri__conv *s = j->s;
  char *own = j->scratch + (size_t)worker * j->each;
  int64_t per = j->few ? j->k * j->cpu->gemm->lanes : j->kp;
  for (int64_t t = begin; t < end; t++) {
    int64_t part = t % j->parts, block = t / j->parts % j->blocks, group = t / j->parts / j->blocks;
    int64_t o0 = part * j->part, o1 = least(o0 + j->part, s->o);
    int64_t first = block * j->block, last = least(first + j->block, j->rows);
    float *sums = j->sums + (group * j->blocks + block) * s->o * per;
    memset(sums + o0 * per, 0, (size_t)((o1 - o0) * per) * sizeof *sums);
    for (int64_t r = first; r < last && !peri__stopped(j->ctx); r += j->chunk) {
      int64_t stop = least(r + j->chunk, last);
      if (j->few)
        few_chunk(j, group, r, stop, own, sums);
      else
        tiles_chunk(j, group, o0, o1, r, stop, own, sums);
    }
  }
}

/* ---- sums of blocks ---- */

/* Output channels [begin, end) of dw (o, c, kh, kw) of all groups. */
static void sum_task (void *ud, int64_t begin, int64_t end, int worker) {
  enum { AT_ONCE = 128 };
  const job *j = ud;
  const peri__conv *s = j->s;
  int64_t kernel = s->kh * s->kw, lanes = j->few ? j->cpu->gemm->lanes : 1;
  int64_t per = j->few ? j->k * lanes : j->kp;
  (void)worker;
  for (int64_t i = begin; i < end; i++) {
    const float *from = j->sums + (i / s->o * j->blocks * s->o + i % s->o) * per;
    float *dw = j->dw + i * j->k;
    int64_t tap = 0, channel = 0;
    for (int64_t t = 0; t < j->k * lanes; t += AT_ONCE) {
      double sum[AT_ONCE] = { 0 };
      int64_t n = least(AT_ONCE, j->k * lanes - t);
      for (int64_t b = 0; b < j->blocks; b++)
        for (int64_t l = 0; l < n; l++) sum[l] += (double)from[b * s->o * per + t + l];
      for (int64_t l = 0; l < n && !j->few; l++) { /* channels innermost */
        dw[channel * kernel + tap] = (float)sum[l];
        if (++channel == s->c) channel = 0, tap++;
      }
      for (int64_t l = 0; l < n && j->few; l += lanes, tap++) {
        for (int64_t v = 1; v < lanes; v++) sum[l] += sum[l + v];
        dw[tap] = (float)sum[l];
      }
    }
  }
}

/* ---- how the work is cut ---- */

/* Runs of taps that lie behind each other, as the vectors of each panel. NULL at: only count. */
static int64_t fill_pieces (const job *j, int64_t *at) {
  const peri__conv *s = j->s;
  int64_t lanes = j->cpu->gemm->lanes, run = s->dw == 1 ? s->kw * s->c : s->c, n = 0;
  for (int64_t k = 0; k < j->kp; k += j->nr) {
    int64_t end = least(k + j->nr, j->k), head = n++, np = 0;
    for (int64_t t = k; t < end;) {
      int64_t stop = least(least(end, t + lanes), (t / run + 1) * run);
      if (at != NULL) {
        int64_t tap = t / s->c;
        at[n] = tap / s->kw * s->dh * j->pitch + tap % s->kw * s->dw * s->c + t % s->c;
        at[n + 1] = t - k;
      }
      n += 2, np++;
      t = stop;
    }
    if (at != NULL) at[head] = np;
  }
  return n;
}

static void cut (job *j) {
  const peri__conv *s = j->s;
  double work = (double)s->n * (double)s->oh * (double)s->ow * (double)(s->o * j->k);
  int64_t columns = s->c * (j->few ? s->sw : 1);
  int64_t room = LAID / ((s->kh - 1) * s->dh + 1) / (columns * (j->few ? 1 : s->sw));
  j->span = least(s->ow, most(COLS, room > 4 * COLS ? 4 * COLS : room));
  j->spans = above(s->ow, j->span);
  j->span = above(s->ow, j->spans);
  j->rows = s->n * s->oh * j->spans;
  int64_t width = (j->span - 1) * s->sw + (s->kw - 1) * s->dw + 1;
  j->xs = width;
  j->pitch = width * s->c;
  j->chunk = most(
      1, least(least(COLS, G_FLOATS / least(s->o, G_FLOATS)) / j->span, LAID / (s->sh * j->pitch)));
  double per =
      (double)s->groups * (double)s->o * (double)(j->few ? j->k * j->cpu->gemm->lanes : j->kp);
  double blocks = (double)above(TASKS, s->groups);
  if (blocks > work / BLOCK) blocks = work / BLOCK;
  if (blocks > SUMS / per) blocks = SUMS / per;
  if (blocks > (double)j->rows) blocks = (double)j->rows;
  j->block = above(j->rows, blocks < 1 ? 1 : (int64_t)blocks);
  j->blocks = above(j->rows, j->block);
  int64_t parts = least(TASKS / 2 / (s->groups * j->blocks), s->o / (4 * j->tile));
  j->part = j->few || parts < 2 ? s->o : above(above(s->o, parts), j->tile) * j->tile;
  j->parts = above(s->o, j->part);
}

/* Room for offsets, then partial sums, then scratch of each worker. */
static peri_status weight_run (peri_ctx *ctx, job *j, char *room, size_t sums_at,
                               size_t scratch_at) {
  const peri__conv *s = j->s;
  j->sums = (float *)(room + sums_at);
  j->scratch = room + scratch_at;
  double work = (double)least(j->block, j->rows) * (double)j->span * (double)(j->part * j->k);
  peri__parallel(ctx, s->groups * j->blocks * j->parts,
                 work >= SMALL ? 1 : (int64_t)(SMALL / (work + 1)) + 1, weight_task, j);
  peri__parallel(ctx, s->groups * s->o, SMALL / 4 / (j->k * j->blocks) + 1, sum_task, j);
  return PERI_OK;
}

peri_status peri__conv_back_weight (peri_ctx *ctx, const peri__conv *s, const float *x,
                                    const float *g, float *dw) {
  const struct peri__gemm_kernels *kern = ctx->cpu->gemm;
  job j = { .ctx = ctx, .cpu = ctx->cpu, .s = s, .x = x, .g = g, .dw = dw, .few = s->o <= FEW };
  size_t lanes = (size_t)kern->lanes;
  j.k = s->c * s->kh * s->kw;
  j.nr = (int64_t)PERI_GEMM_NV * kern->lanes;
  j.kp = above(j.k, j.nr) * j.nr;
  j.tile = above(s->o, above(s->o, kern->mr));
  /* rows of g are packed in fours */
  if (above(j.tile, 4) * 4 <= kern->mr) j.tile = above(j.tile, 4) * 4;
  if (s->groups * s->o * j.k == 0) return PERI_OK;
  if (s->n * s->oh * s->ow == 0) {
    memset(dw, 0, (size_t)(s->groups * s->o * j.k) * sizeof *dw);
    return PERI_OK;
  }
  cut(&j);
  j.lay = (peri__conv_rows){ .c = s->c, .h = s->h, .w = s->w, .plane = s->h * s->w, .step = s->sw };
  j.lay.xs = above(j.xs, s->sw);
  size_t offsets = (size_t)(j.few ? j.k : fill_pieces(&j, NULL));
  size_t sums =
      (size_t)(s->groups * j.blocks * s->o) * (size_t)(j.few ? j.k : j.kp) * sizeof(float);
  if (j.few) sums *= lanes;
  size_t sums_at = up64(offsets * sizeof(int64_t)), scratch_at = sums_at + up64(sums);
  int64_t images = least(j.chunk, above(j.chunk, s->oh) + 1);
  size_t height = (size_t)(j.chunk * s->sh + images * most((s->kh - 1) * s->dh + 1 - s->sh, 0));
  size_t pitch = (size_t)(j.few ? peri__conv_row(&j.lay) : j.pitch),
         cols = (size_t)(j.chunk * j.span);
  j.base_at = up64((height * pitch + 2 * lanes) * sizeof(float));
  j.g_at = j.base_at + (j.few ? 0 : up64(cols * sizeof(int64_t)));
  j.panel_at = j.g_at + (j.few ? 0 : up64(cols * (size_t)j.part * sizeof(float)));
  j.each = j.panel_at + (j.few ? 0 : up64((cols * (size_t)j.nr + 2 * lanes) * sizeof(float)));
  size_t bytes = scratch_at + j.each * (size_t)peri_threads(ctx);
  char *room = peri__block_get(ctx, bytes);
  if (room == NULL)
    return peri__fail(ctx, PERI_ENOMEM, "no memory for %zu bytes of scratch", bytes);
  int64_t *off = (int64_t *)(void *)room, t = 0;
  if (j.few) {
    for (int64_t c = 0; c < s->c; c++)
      for (int64_t ky = 0; ky < s->kh; ky++)
        for (int64_t kx = 0; kx < s->kw; kx++)
          off[t++] = peri__conv_tap(&j.lay, c, ky * s->dh, kx * s->dw);
    j.off = off;
  } else {
    fill_pieces(&j, off);
    j.at = off;
  }
  peri_status status = weight_run(ctx, &j, room, sums_at, scratch_at);
  peri__block_put(ctx, room);
  return status;
}
