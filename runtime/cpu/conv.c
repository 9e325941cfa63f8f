/*
** conv.c - convolution as a pass of taps over rows of outputs: the forward one, and the gradient for
** the input, which is a pass over g for those phases of the stride that meet the same taps, so that no tap
** meets a zero that the stride put in. A task is a few output rows; see cpu/conv.h. The arithmetic is in
** cpu/simd_conv.c and in the register tiles of cpu/simd_gemm.c.
*/
#include "cpu/conv.h"

#include <string.h>

#include "cpu/gemm.h"

enum {
  KC = 768,           /* steps of a chain that are packed at once */
  PANELS = 112 << 10, /* floats of packed panels that a task aims at: they stay in L2 */
  LAID = 64 << 10,    /* and of source rows */
  FEW = 4,            /* output channels that do without panels */
  SMALL = 1 << 16     /* multiply-adds below which another thread does not pay */
};

/*
** Outputs are at rows y * step[0] + phase - before[0], columns likewise, of an image: the phases of both
** dims, times the channels, are the m rows of the product. Those that fall outside are not written.
*/
typedef struct pass {
  const struct peri__cpu *cpu;
  peri__conv_rows rows;
  int64_t n, groups, channels, m;
  int64_t k;             /* taps of all channels */
  int64_t q, p;          /* rows of outputs of an image, columns of a block */
  int64_t width, blocks; /* all columns, and how many blocks they are cut into */
  int64_t sy, y0, reach; /* source rows: from output to output, of the first tap, to the last */
  const float *src, *a, *bias; /* bias: (groups m)? */
  int64_t src_group;
  float *out; /* (n, groups, channels, h, w) */
  int64_t h, w;
  int64_t step[2], before[2];
  int64_t nphase[2];
  const int64_t *phase[2];
  const int64_t *off;
  int64_t tile, nr, chunk, chunks; /* rows of a tile, columns of a panel, output rows of a task */
  char *scratch;
  size_t each, panels_at, lines_at, tmp_at; /* of one worker, in bytes */
} pass;

/* An output row: where its taps begin in scratch, its image, its row there for phase 0. */
typedef struct line {
  const float *from;
  float *image;
  int64_t y;
} line;

static int64_t least (int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most (int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t above (int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Rows [r0, r1) of all images' rows: lay out what they read. */
static void lay_chunk (const pass *s, int64_t group, int64_t r0, int64_t r1, float *laid,
                       line *lines) {
  int64_t row = peri__conv_row(&s->rows), plane = s->h * s->w;
  for (int64_t r = r0; r < r1;) {
    int64_t image = r / s->q, q0 = r % s->q, count = least(s->q - q0, r1 - r);
    int64_t height = (count - 1) * s->sy + s->reach + 1;
    s->cpu->conv->lay(&s->rows, s->src + group * s->src_group + image * s->rows.image,
                      q0 * s->sy + s->y0, height, laid);
    for (int64_t i = 0; i < count; i++, r++, lines++) {
      lines->from = laid + i * s->sy * row;
      lines->image = s->out + (image * s->groups + group) * s->channels * plane;
      lines->y = (q0 + i) * s->step[0] - s->before[0];
    }
    laid += height * row;
  }
}

static bool plain (const pass *s) {
  return s->m == s->channels && s->step[0] == 1 && s->step[1] == 1;
}

/* Rows [i, i + mm) of run outputs of a line, from column x on, are in tmp at a distance of pitch: to where
** they belong, or from there. */
static void move_run (const pass *s, const line *l, int64_t x, int64_t run, int64_t i, int64_t mm,
                      float *tmp, int64_t pitch, bool load) {
  int64_t plane = s->h * s->w;
  for (int64_t end = i + mm, n; i < end; i += n, tmp += n * pitch) {
    int64_t phase = i / s->channels, channel = i % s->channels;
    n = least(end - i, s->channels - channel);
    int64_t y = l->y + s->phase[0][phase / s->nphase[1]];
    int64_t first = x * s->step[1] - s->before[1] + s->phase[1][phase % s->nphase[1]];
    if (y < 0 || y >= s->h) continue;
    int64_t j0 = first < 0 ? above(-first, s->step[1]) : 0;
    int64_t j1 = least(run, above(most(s->w - first, 0), s->step[1]));
    if (j0 >= j1) continue;
    float *at = l->image + channel * plane + y * s->w + first + j0 * s->step[1];
    if (load)
      for (int64_t r = 0; r < n; r++)
        for (int64_t j = j0; j < j1; j++)
          tmp[r * pitch + j] = at[r * plane + (j - j0) * s->step[1]];
    else
      s->cpu->conv->move(n, j1 - j0, tmp + j0, pitch, at, plane, s->step[1]);
  }
}

/* ---- panels and register tiles ---- */

/* Columns [col, col + nn) of a chunk, row by row: line number, first column, columns. */
#define EACH_RUN(s, col, nn, at, at_line, x, run)                    \
  for (int64_t at = 0, at_line = (col) / (s)->p, x = (col) % (s)->p, \
               run = least((s)->p - x, (nn));                        \
       at < (nn); at += run, at_line++, x = 0, run = least((s)->p, (nn)-at))

static void pack_panel (const pass *s, const line *lines, int64_t col, int64_t nn, int64_t p0,
                        int64_t kb, float *out) {
  const float *from[PERI_CONV_PIECES];
  int64_t to[PERI_CONV_PIECES], lanes = s->cpu->gemm->lanes;
  int np = 0;
  EACH_RUN(s, col, nn, at, l, x, run)
  for (int64_t v = 0; v < run; v += lanes, np++) {
    from[np] = lines[l].from + x + v;
    to[np] = at + v;
  }
  s->cpu->conv->pack(kb, s->off + p0, np, from, to, out);
}

static void move_tile (const pass *s, const line *lines, int64_t col, int64_t nn, int64_t i,
                       int64_t mm, float *tmp, bool load) {
  int64_t plane = s->h * s->w;
  if (plain(s) && s->p == s->w && !load) { /* rows of an image follow each other */
    for (int64_t at = 0, run; at < nn; at += run) {
      const line *l = lines + (col + at) / s->p;
      int64_t place = l->y * s->p + (col + at) % s->p;
      run = least(nn - at, plane - place);
      s->cpu->conv->move(mm, run, tmp + at, s->nr, l->image + i * plane + place, plane, 1);
    }
    return;
  }
  EACH_RUN(s, col, nn, at, l, x, run)
  move_run(s, lines + l, x, run, i, mm, tmp + at, s->nr, load);
}

/* Columns that follow each other in memory and end with a vector are written where they belong. */
static bool in_place (const pass *s, const line *lines, int64_t col, int64_t nn) {
  if (!plain(s) || nn % s->cpu->gemm->lanes != 0) return false;
  const line *first = lines + col / s->p, *last = lines + (col + nn - 1) / s->p;
  return first == last || (s->p == s->w && first->image == last->image);
}

static void tiles (const pass *s, int64_t group, const line *lines, int64_t cols, int64_t p0,
                   int64_t kb, const float *panels, float *tmp) {
  static const float zeros[PERI_GEMM_NV * PERI_GEMM_MAX_LANES];
  const struct peri__gemm_kernels *kern = s->cpu->gemm;
  float *init = tmp + s->tile * s->nr;
  const float *a = s->a + group * s->m * s->k;
  int64_t plane = s->h * s->w;
  for (int64_t i = 0; i < s->m; i += s->tile) {
    int64_t mm = least(s->tile, s->m - i);
    const float *ap = a + i * s->k + p0 * mm;
    for (int64_t r = 0; r < mm && s->bias != NULL; r++)
      for (int64_t j = 0; j < s->nr; j++) init[r * s->nr + j] = s->bias[group * s->m + i + r];
    const float *begin = s->bias != NULL ? init : zeros;
    int64_t begin_rs = s->bias != NULL ? s->nr : 0;
    for (int64_t col = 0; col < cols; col += s->nr) {
      int64_t nn = least(s->nr, cols - col), x = col % s->p - s->before[1];
      const line *l = lines + col / s->p;
      bool place = in_place(s, lines, col, nn);
      float *c = place ? l->image + i * plane + l->y * s->w + x : tmp;
      int64_t crs = place ? plane : s->nr;
      if (!place && p0 > 0) move_tile(s, lines, col, nn, i, mm, tmp, true);
      kern->packed[mm][above(nn, kern->lanes)](kb, ap, mm, panels + col * kb, s->nr, c, crs,
                                               p0 > 0 ? c : begin, p0 > 0 ? crs : begin_rs,
                                               ap + 16 * mm, mm);
      if (!place) move_tile(s, lines, col, nn, i, mm, tmp, false);
    }
  }
}

static void paneled (const pass *s, int64_t group, const line *lines, int64_t cols, float *panels,
                     float *tmp) {
  int64_t p0 = 0;
  do {
    int64_t kb = least(KC, s->k - p0);
    for (int64_t col = 0; col < cols; col += s->nr)
      pack_panel(s, lines, col, least(s->nr, cols - col), p0, kb, panels + col * kb);
    tiles(s, group, lines, cols, p0, kb, panels, tmp);
    p0 += kb;
  } while (p0 < s->k);
}

/* ---- few output channels ---- */

/* Vectors of outputs that are computed together. */
typedef struct batch {
  int n;
  const float *from[8];
  float *to[8];
  const line *line[8];
  int64_t x[8], len[8];
} batch;

static void few_flush (const pass *s, int64_t group, batch *b, int most_pieces, float *tmp) {
  static const float zeros[FEW];
  int64_t lanes = s->cpu->gemm->lanes, plane = s->h * s->w;
  bool direct = plain(s);
  for (int j = b->n; j < most_pieces; j++) b->from[j] = b->from[0], b->to[j] = tmp, b->len[j] = 0;
  s->cpu->conv->direct(s->m, s->k, s->off, s->a + group * s->m * s->k,
                       s->bias != NULL ? s->bias + group * s->m : zeros, b->from, b->to, b->len,
                       direct ? plane : lanes);
  for (int j = 0; j < b->n && !direct; j++)
    move_run(s, b->line[j], b->x[j], b->len[j], 0, s->m, b->to[j], lanes, false);
  b->n = 0;
}

static void few (const pass *s, int64_t group, const line *lines, int64_t count, float *tmp) {
  int64_t lanes = s->cpu->gemm->lanes;
  int full = s->cpu->conv->direct_pieces[s->m];
  bool direct = plain(s);
  batch b = { .n = 0 };
  for (int64_t i = 0; i < count; i++)
    for (int64_t x = 0; x < s->p; x += lanes) {
      b.from[b.n] = lines[i].from + x;
      b.len[b.n] = least(lanes, s->p - x);
      b.x[b.n] = x;
      b.line[b.n] = lines + i;
      b.to[b.n] =
          direct ? lines[i].image + lines[i].y * s->w + x - s->before[1] : tmp + b.n * FEW * lanes;
      if (++b.n == full) few_flush(s, group, &b, full, tmp);
    }
  if (b.n > 0) few_flush(s, group, &b, full, tmp);
}

/* The pass over one block of columns. */
static pass block_of (const pass *all, int64_t block) {
  pass s = *all;
  int64_t x = block * s.p;
  s.p = least(s.p, s.width - x);
  s.rows.x0 += x * s.rows.step;
  s.before[1] -= x * s.step[1];
  return s;
}

static void pass_task (void *ud, int64_t begin, int64_t end, int worker) {
  const pass *all = ud;
  char *own = all->scratch + (size_t)worker * all->each;
  float *laid = (float *)own, *panels = (float *)(own + all->panels_at);
  float *tmp = (float *)(own + all->tmp_at);
  line *lines = (line *)(own + all->lines_at);
  for (int64_t t = begin; t < end; t++) {
    pass s = block_of(all, t / all->chunks % all->blocks);
    int64_t group = t / all->chunks / all->blocks, r0 = t % all->chunks * all->chunk;
    int64_t r1 = least(r0 + s.chunk, s.n * s.q);
    lay_chunk(&s, group, r0, r1, laid, lines);
    if (s.m <= FEW)
      few(&s, group, lines, r1 - r0, tmp);
    else
      paneled(&s, group, lines, (r1 - r0) * s.p, panels, tmp);
  }
}

/* ---- how rows are cut into tasks ---- */

/* Floats of source rows that a task of r output rows may need. */
static int64_t laid_floats (const pass *s, int64_t r) {
  int64_t images = least(r, above(r, s->q) + 1); /* each begins with rows of its own */
  return (r * s->sy + images * most(s->reach + 1 - s->sy, 0)) * peri__conv_row(&s->rows);
}

/* Blocks of columns: of what fits, and enough of them where rows are few. */
static void cut_columns (pass *s, int threads) {
  int64_t kb = most(least(s->k, KC), 1), rows = s->n * s->q * s->groups;
  int64_t room = LAID / most(1, s->rows.c * s->rows.step * (s->reach + 1));
  int64_t most_cols = most(s->nr, least(PANELS / kb, room));
  if (rows < 4 * threads)
    most_cols = least(most_cols, most(4 * s->nr, s->width * rows / (4 * threads)));
  s->p = s->width;
  if (s->width > most_cols)
    s->p = above(above(s->width, above(s->width, most_cols)), s->nr) * s->nr;
  s->blocks = above(s->width, s->p);
}

static void cut_rows (pass *s, int threads) {
  int64_t total = s->n * s->q, kb = most(least(s->k, KC), 1);
  int64_t most_rows = most(1, (s->m > FEW ? PANELS / kb : LAID) / s->p);
  most_rows = least(most_rows, most(1, LAID / most(1, s->sy * peri__conv_row(&s->rows))));
  most_rows = least(most_rows, most(1, total * s->groups * s->blocks / (4 * threads)));
  most_rows = least(most_rows, total);
  double best = 0;
  s->chunk = most_rows;
  for (int64_t r = most_rows; r >= most(1, most_rows / 2) && s->m > FEW; r--) {
    double used = (double)(r * s->p) / (double)(above(r * s->p, s->nr) * s->nr);
    if (used > best + 0.01) best = used, s->chunk = r;
  }
  s->chunks = above(total, s->chunk);
}

static size_t up64 (size_t bytes) { return (bytes + 63) & ~(size_t)63; }
static size_t floats (int64_t n) { return up64((size_t)n * sizeof(float)); }

static peri_status run (peri_ctx *ctx, pass *s) {
  int64_t lanes = s->cpu->gemm->lanes;
  cut_rows(s, peri_threads(ctx));
  s->panels_at = floats(laid_floats(s, s->chunk) + lanes);
  s->lines_at = s->panels_at;
  if (s->m > FEW)
    s->lines_at += floats(above(s->chunk * s->p, s->nr) * s->nr * least(s->k, KC) + lanes);
  s->tmp_at = s->lines_at + up64((size_t)s->chunk * sizeof(line));
  s->each = s->tmp_at + floats(2 * most(s->tile * s->nr, 8 * FEW * lanes));
  size_t bytes = s->each * (size_t)peri_threads(ctx);
  s->scratch = peri__block_get(ctx, bytes);
  if (s->scratch == NULL)
    return peri__fail(ctx, PERI_ENOMEM, "no memory for %zu bytes of scratch", bytes);
  int64_t work = most(1, s->chunk * s->p * s->m * s->k);
  peri__parallel(ctx, s->groups * s->blocks * s->chunks, most(1, SMALL / work), pass_task, s);
  peri__block_put(ctx, s->scratch);
  return PERI_OK;
}

/* ---- the passes ---- */

/*
** Taps and phases of one dim. An output of phase r meets kernel element (r + t stride) / dilation at t rows
** before it, for each t of back; at is where that is in the source from the first one on.
*/
typedef struct taps {
  int64_t n, reach, first, from,
      size; /* first and number of outputs; source of the first one's first tap */
  int64_t nphase;
  int64_t *back, *at, *phase, *all; /* all: those that are not taken yet */
  int64_t nall;
} taps;

/* The weights that are in w (groups, ...) at row * wi + channel * wc + ky * kw + kx. */
typedef struct weights {
  const float *w;
  int64_t group, wi, wc, kw, stride[2], dilation[2];
} weights;

/* Row i of the product, one float in mm: in the order of the taps. */
static void fill_row (const pass *s, const taps *t, const weights *w, const float *from, int64_t i,
                      int64_t mm, float *a) {
  int64_t phase = i / s->channels, ry = s->phase[0][phase / s->nphase[1]];
  int64_t rx = s->phase[1][phase % s->nphase[1]];
  from += i % s->channels * w->wi;
  for (int64_t c = 0; c < s->rows.c; c++, from += w->wc)
    for (int64_t y = 0; y < t[0].n; y++) {
      const float *row = from + (ry + t[0].back[y] * w->stride[0]) / w->dilation[0] * w->kw;
      for (int64_t x = 0; x < t[1].n; x++, a += mm)
        *a = row[(rx + t[1].back[x] * w->stride[1]) / w->dilation[1]];
    }
}

static void fill_weights (const pass *s, const taps *t, const weights *w, float *a) {
  bool in_order = plain(s) && w->wc == t[0].n * t[1].n && w->wi == s->k && w->stride[0] == 1 &&
                  w->stride[1] == 1 && w->dilation[0] == 1 && w->dilation[1] == 1 &&
                  (t[0].n < 2 || t[0].back[1] == 1) && (t[1].n < 2 || t[1].back[1] == 1);
  for (int64_t g = 0; g < s->groups; g++)
    for (int64_t i0 = 0; i0 < s->m; i0 += s->tile) {
      int64_t mm = least(s->tile, s->m - i0);
      const float *from = w->w + g * w->group;
      float *to = a + (g * s->m + i0) * s->k;
      if (in_order)
        s->cpu->gemm->pack_a(mm, s->k, from + i0 * w->wi, w->wi, 1, to);
      else
        for (int64_t i = 0; i < mm; i++) fill_row(s, t, w, from, i0 + i, mm, to + i);
    }
}

/* A pass whose source and output are set: the rest, then all of it. */
static peri_status pass_run (peri_ctx *ctx, pass *s, const taps t[2], const weights *w) {
  const struct peri__gemm_kernels *kern = ctx->cpu->gemm;
  s->cpu = ctx->cpu;
  s->q = t[0].size;
  s->width = t[1].size;
  s->m = s->channels * t[0].nphase * t[1].nphase;
  if (s->n < 1 || s->q < 1 || s->width < 1 || s->m < 1 || s->groups < 1) return PERI_OK;
  for (int d = 0; d < 2; d++) {
    s->nphase[d] = t[d].nphase;
    s->phase[d] = t[d].phase;
    s->before[d] -= t[d].first * s->step[d];
  }
  s->y0 = t[0].from;
  s->rows.x0 = t[1].from;
  s->reach = t[0].reach;
  s->k = s->rows.c * t[0].n * t[1].n;
  s->nr = (int64_t)PERI_GEMM_NV * kern->lanes;
  s->tile = s->m <= FEW ? s->m : above(s->m, above(s->m, kern->mr));
  cut_columns(s, peri_threads(ctx));
  s->rows.xs = above((s->p - 1) * s->rows.step + t[1].reach + 1, s->rows.step);
  size_t room_for = floats(s->groups * s->m * s->k);
  size_t bytes = room_for + (size_t)s->k * sizeof(int64_t) + 64;
  char *room = peri__block_get(ctx, bytes);
  if (room == NULL) return peri__fail(ctx, PERI_ENOMEM, "no memory for %zu bytes of taps", bytes);
  int64_t *off = (int64_t *)(room + room_for), k = 0;
  for (int64_t c = 0; c < s->rows.c; c++)
    for (int64_t y = 0; y < t[0].n; y++)
      for (int64_t x = 0; x < t[1].n; x++)
        off[k++] = peri__conv_tap(&s->rows, c, t[0].at[y], t[1].at[x]);
  s->a = (const float *)room;
  s->off = off;
  fill_weights(s, t, w, (float *)room);
  peri_status status = run(ctx, s);
  peri__block_put(ctx, room);
  return status;
}

static peri_status taps_get (peri_ctx *ctx, const peri__conv *s, taps t[2]) {
  size_t bytes = (size_t)(4 * (s->kh + s->kw)) * sizeof(int64_t);
  int64_t *room = peri__block_get(ctx, bytes);
  if (room == NULL) return peri__fail(ctx, PERI_ENOMEM, "no memory for %zu bytes of taps", bytes);
  for (int d = 0; d < 2; d++) {
    int64_t k = d == 0 ? s->kh : s->kw;
    t[d] = (taps){ .back = room, .at = room + k, .phase = room + 2 * k, .all = room + 3 * k };
    room += 4 * k;
  }
  return PERI_OK;
}

/* All of the kernel, in one phase. */
static void all_taps (taps *t, int64_t k, int64_t dilation, int64_t before, int64_t out) {
  for (t->n = 0; t->n < k; t->n++) t->back[t->n] = t->n, t->at[t->n] = t->n * dilation;
  t->reach = (k - 1) * dilation;
  t->from = -before;
  t->size = out;
  t->nphase = 1;
  t->phase[0] = 0;
}

peri_status peri__conv_forward (peri_ctx *ctx, const peri__conv *s, const float *x, const float *w,
                                const float *bias, float *y) {
  int64_t kernel = s->kh * s->kw;
  weights at = { w, s->o * s->c * kernel, s->c * kernel, kernel, s->kw, { 1, 1 }, { 1, 1 } };
  pass p = { .rows = { .c = s->c,
                       .h = s->h,
                       .w = s->w,
                       .image = s->groups * s->c * s->h * s->w,
                       .plane = s->h * s->w,
                       .step = s->sw },
             .n = s->n,
             .groups = s->groups,
             .channels = s->o,
             .sy = s->sh,
             .src = x,
             .src_group = s->c * s->h * s->w,
             .bias = bias,
             .out = y,
             .h = s->oh,
             .w = s->ow,
             .step = { 1, 1 } };
  taps t[2];
  TRY(taps_get(ctx, s, t));
  all_taps(&t[0], s->kh, s->dh, s->top, s->oh);
  all_taps(&t[1], s->kw, s->dw, s->left, s->ow);
  peri_status status = pass_run(ctx, &p, t, &at);
  peri__block_put(ctx, t[0].back);
  return status;
}

/* The phases along a dim that meet any taps. */
static void all_phases (taps *t, int64_t size, int64_t kernel, int64_t stride, int64_t dilation,
                        int64_t before) {
  t->nall = 0;
  for (int64_t k = 0; k < kernel; k++) {
    int64_t r = k * dilation % stride, i = 0;
    while (i < t->nall && t->all[i] != r) i++;
    bool there = (r - before % stride + stride) % stride < size; /* an input has this phase */
    if (i == t->nall && there) t->all[t->nall++] = r;
  }
}

/* Does phase r meet the taps of back, no more and no less? */
static bool same_taps (const taps *t, int64_t r, int64_t kernel, int64_t stride, int64_t dilation) {
  int64_t n = 0;
  for (int64_t k = 0; k < kernel; k++) {
    if (k * dilation % stride != r) continue;
    if (n == t->n || t->back[n] != (k * dilation - r) / stride) return false;
    n++;
  }
  return n == t->n;
}

/* Take the first phase that is left, and those that meet the same taps. */
static void take_phases (taps *t, int64_t size, int64_t kernel, int64_t stride, int64_t dilation,
                         int64_t before) {
  int64_t left = 0, low = INT64_MAX, high = INT64_MIN;
  t->n = t->nphase = 0;
  for (int64_t k = 0; k < kernel; k++)
    if (k * dilation % stride == t->all[0]) t->back[t->n++] = (k * dilation - t->all[0]) / stride;
  for (int64_t i = 0; i < t->nall; i++) {
    int64_t r = t->all[i];
    if (!same_taps(t, r, kernel, stride, dilation)) {
      t->all[left++] = r;
      continue;
    }
    t->phase[t->nphase++] = r;
    low = least(low, before > r ? above(before - r, stride) : 0);
    high = most(high, size - 1 + before - r < 0 ? -1 : (size - 1 + before - r) / stride);
  }
  int64_t last = t->back[t->n - 1];
  for (int64_t i = 0; i < t->n; i++) t->at[i] = last - t->back[i];
  t->reach = last - t->back[0];
  t->nall = left;
  t->first = low;
  t->size = high - low + 1;
  t->from = low - last;
}

static peri_status back_pass (peri_ctx *ctx, const peri__conv *s, const float *g, const float *w,
                              float *dx, const taps t[2]) {
  int64_t kernel = s->kh * s->kw;
  weights at = { w,     s->o * s->c * kernel, kernel,          s->c * kernel,
                 s->kw, { s->sh, s->sw },     { s->dh, s->dw } };
  pass p = { .rows = { .c = s->o,
                       .h = s->oh,
                       .w = s->ow,
                       .image = s->groups * s->o * s->oh * s->ow,
                       .plane = s->oh * s->ow,
                       .step = 1 },
             .n = s->n,
             .groups = s->groups,
             .channels = s->c,
             .sy = 1,
             .src = g,
             .src_group = s->o * s->oh * s->ow,
             .out = dx,
             .h = s->h,
             .w = s->w,
             .step = { s->sh, s->sw },
             .before = { s->top, s->left } };
  return pass_run(ctx, &p, t, &at);
}

peri_status peri__conv_back_input (peri_ctx *ctx, const peri__conv *s, const float *g,
                                   const float *w, float *dx) {
  taps t[2];
  peri_status status = PERI_OK;
  TRY(taps_get(ctx, s, t));
  all_phases(&t[0], s->h, s->kh, s->sh, s->dh, s->top);
  all_phases(&t[1], s->w, s->kw, s->sw, s->dw, s->left);
  if (t[0].nall < least(s->sh, s->h) || t[1].nall < least(s->sw, s->w)) /* some meet no tap */
    memset(dx, 0, (size_t)(s->n * s->groups * s->c * s->h * s->w) * sizeof *dx);
  while (t[0].nall > 0 && status == PERI_OK) {
    take_phases(&t[0], s->h, s->kh, s->sh, s->dh, s->top);
    all_phases(&t[1], s->w, s->kw, s->sw, s->dw, s->left);
    while (t[1].nall > 0 && status == PERI_OK) {
      take_phases(&t[1], s->w, s->kw, s->sw, s->dw, s->left);
      status = back_pass(ctx, s, g, w, dx, t);
    }
  }
  peri__block_put(ctx, t[0].back);
  return status;
}
