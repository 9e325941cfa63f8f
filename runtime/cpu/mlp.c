/*
** mlp.c - drivers of a whole network: how its rows are cut into pieces for threads, each of which goes
** through all layers while it is in cache, and the gradients of weights into blocks of outputs. Every
** product is the chain of cpu/gemm.h, so results do not depend on pieces.
*/
#include "cpu/mlp.h"

#include <string.h>

#include "cpu/gemm.h"

enum {
  WORTH = 1 << 17, /* multiply-adds that are worth a second thread */
  ROOM = 1 << 14,  /* activations of a layer in one piece: they stay in the second-level cache */
  FEW = 4          /* outputs of a layer up to which its product is turned around */
};

/* A call under way. */
typedef struct net {
  peri__mlp of;
  peri_ctx *ctx;
  char *slope;         /* hidden layers: gradients before the activation */
  int64_t chunk, cuts; /* rows of a piece; pieces of each copy */
  int64_t block[PERI_MLP_LAYERS],
      first[PERI_MLP_LAYERS + 1]; /* outputs of a piece of dw; its number */
  int64_t widest;
  double work; /* multiply-adds of all rows */
  char *scratch;
  size_t each, product_room, turn_room; /* of a worker: all of it, its first two parts */
} net;

static int64_t least (int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most (int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t cut (int64_t n, int64_t size) { return (n + size - 1) / size; }
static size_t padded (size_t n) { return (n + PERI_ALIGN - 1) / PERI_ALIGN * PERI_ALIGN; }

int64_t peri__mlp_hidden (const peri__mlp *n, int layer) {
  int64_t sum = 0;
  for (int l = 1; l < layer; l++) sum += n->width[l];
  return sum * n->copies * n->rows;
}

/* Row `row` of hidden layer l, 1 .. layers - 1, of a block of all of them. */
static char *hidden_at (const peri__mlp *n, char *block, int l, int64_t row) {
  return block + (size_t)(peri__mlp_hidden(n, l) + row * n->width[l]) * n->size;
}

/* ---- products and activations of a piece ---- */

typedef struct matrix {
  const char *p;
  int64_t rs, cs;
} matrix;

/* C (m, n), dense, = A (m, k) B (k, n), from the bias on. */
static void product (const net *s, char *scratch, int64_t m, int64_t n, int64_t k, matrix a,
                     matrix b, const char *bias, char *c) {
  if (s->of.f64) {
    const peri__gemm64 g = {
      m,           n, k,     (const double *)a.p, a.rs, a.cs, (const double *)b.p, b.rs, b.cs,
      (double *)c, n, false, (const double *)bias
    };
    peri__gemm_f64_seq(&g);
    return;
  }
  float *out = (float *)c, *turned = (float *)(scratch + s->product_room);
  bool turn = n <= FEW && m >= 4 * n; /* vectors run over the columns of C */
  peri__gemm g = { .m = m,
                   .n = n,
                   .k = k,
                   .a = (const float *)a.p,
                   .ars = a.rs,
                   .acs = a.cs,
                   .b = (const float *)b.p,
                   .brs = b.rs,
                   .bcs = b.cs,
                   .c = out,
                   .crs = n,
                   .bias = (const float *)bias };
  if (turn) {
    g = (peri__gemm){ .m = n,
                      .n = m,
                      .k = k,
                      .a = g.b,
                      .ars = b.cs,
                      .acs = b.rs,
                      .b = g.a,
                      .brs = a.cs,
                      .bcs = a.rs,
                      .c = turned,
                      .crs = m,
                      .accumulate = bias != NULL };
    for (int64_t j = 0; bias != NULL && j < n; j++)
      for (int64_t i = 0; i < m; i++) turned[j * m + i] = ((const float *)bias)[j];
  }
  peri__gemm_f32_seq(s->ctx->cpu, &g, scratch);
  for (int64_t i = 0; turn && i < m; i++)
    for (int64_t j = 0; j < n; j++) out[i * n + j] = turned[j * m + i];
}

static void activate (const peri__mlp *n, int64_t count, const char *x, char *y) {
  const void *in = x;
  const int64_t step = 1;
  if (n->act != NULL) n->act(count, &in, &step, y, NULL);
}
static void slopes (const peri__mlp *n, int64_t count, const char *saved, char *g) {
  const void *in[2] = { saved, g };
  const int64_t step[2] = { 1, 1 };
  if (n->slope != NULL) n->slope(count, in, step, g, NULL);
}

/* The weight of a layer, (out, in), or turned. */
static matrix weight_at (const peri__mlp *n, int l, int64_t copy, bool turned) {
  const char *p = n->w[l].p + copy * n->w[l].copy * (int64_t)n->size;
  int64_t rs = n->w[l].rs, cs = n->w[l].cs;
  return turned ? (matrix){ p, cs, rs } : (matrix){ p, rs, cs };
}
static const char *row_at (const peri__mlp *n, const char *p, int l, int64_t row) {
  return p + (size_t)(row * n->width[l]) * n->size;
}

/* ---- pieces: some rows through all layers, or some outputs of a layer over all rows ---- */

typedef struct piece {
  int64_t copy, row, rows; /* row counts over all copies */
} piece;

static piece piece_at (const net *s, int64_t t) {
  piece p = { .copy = t / s->cuts };
  int64_t first = t % s->cuts * s->chunk;
  p.row = p.copy * s->of.rows + first;
  p.rows = least(s->chunk, s->of.rows - first);
  return p;
}

static void forward_pieces (void *ud, int64_t begin, int64_t end, int worker) {
  const net *s = ud;
  const peri__mlp *n = &s->of;
  char *scratch = s->scratch + (size_t)worker * s->each;
  char *room = scratch + s->product_room + s->turn_room;
  for (int64_t t = begin; t < end; t++) {
    piece p = piece_at(s, t);
    const char *in = row_at(n, n->x, 0, p.row);
    for (int l = 0; l < n->layers; l++) {
      bool last = l == n->layers - 1;
      char *out = last               ? (char *)row_at(n, n->y, l + 1, p.row)
                  : n->after != NULL ? hidden_at(n, n->after, l + 1, p.row)
                                     : room + (size_t)((l & 1) * s->chunk * s->widest) * n->size;
      char *sum = !last && n->before != NULL ? hidden_at(n, n->before, l + 1, p.row) : out;
      const char *bias = n->b[l];
      if (bias != NULL) bias = row_at(n, bias, l + 1, p.copy);
      product(s, scratch, p.rows, n->width[l + 1], n->width[l], (matrix){ in, n->width[l], 1 },
              weight_at(n, l, p.copy, true), bias, sum);
      if (!last) activate(n, p.rows * n->width[l + 1], sum, out);
      in = out;
    }
  }
}

static void backward_pieces (void *ud, int64_t begin, int64_t end, int worker) {
  const net *s = ud;
  const peri__mlp *n = &s->of;
  char *scratch = s->scratch + (size_t)worker * s->each;
  char *saved = n->before != NULL ? n->before : n->after;
  for (int64_t t = begin; t < end; t++) {
    piece p = piece_at(s, t);
    const char *g = row_at(n, n->g, n->layers, p.row);
    for (int l = n->layers - 1; l >= 0 && (l > 0 || n->dx != NULL); l--) {
      char *out = l > 0 ? hidden_at(n, s->slope, l, p.row) : (char *)row_at(n, n->dx, 0, p.row);
      product(s, scratch, p.rows, n->width[l], n->width[l + 1], (matrix){ g, n->width[l + 1], 1 },
              weight_at(n, l, p.copy, false), NULL, out);
      if (l > 0) slopes(n, p.rows * n->width[l], hidden_at(n, saved, l, p.row), out);
      g = out;
    }
  }
}

/* Sums of n columns of g, whose rows are stride apart. */
static void sum_columns (const net *s, char *scratch, const char *g, int64_t stride, int64_t n,
                         char *out) {
  double *sum = (double *)(void *)scratch;
  memset(sum, 0, (size_t)n * sizeof *sum);
  if (s->of.f64) {
    for (int64_t i = 0; i < s->of.rows; i++)
      for (int64_t j = 0; j < n; j++) sum[j] += ((const double *)g)[i * stride + j];
    memcpy(out, sum, (size_t)n * sizeof *sum);
    return;
  }
  s->ctx->cpu->math->column_sum((const float *)g, s->of.rows, stride, n, sum);
  for (int64_t j = 0; j < n; j++) ((float *)out)[j] = (float)sum[j];
}

static void weight_pieces (void *ud, int64_t begin, int64_t end, int worker) {
  const net *s = ud;
  const peri__mlp *n = &s->of;
  char *scratch = s->scratch + (size_t)worker * s->each;
  int64_t pieces = s->first[n->layers];
  for (int64_t t = begin; t < end; t++) {
    int64_t copy = t / pieces, at = t % pieces, row = copy * n->rows;
    int l = 0;
    while (at >= s->first[l + 1]) l++;
    int64_t in = n->width[l], out = n->width[l + 1], from = (at - s->first[l]) * s->block[l];
    int64_t count = least(s->block[l], out - from);
    const char *x = l > 0 ? hidden_at(n, n->after, l, row) : row_at(n, n->x, 0, row);
    const char *g =
        l < n->layers - 1 ? hidden_at(n, s->slope, l + 1, row) : row_at(n, n->g, l + 1, row);
    g += (size_t)from * n->size;
    if (n->dw[l] != NULL)
      product(s, scratch, count, in, n->rows, (matrix){ g, 1, out }, (matrix){ x, in, 1 }, NULL,
              n->dw[l] + (size_t)((copy * out + from) * in) * n->size);
    if (n->db[l] != NULL)
      sum_columns(s, scratch, g, out, count, n->db[l] + (size_t)(copy * out + from) * n->size);
  }
}

/* ---- running them ---- */

/* Cut the rows, and make room for the workers: spare elements of its own for each row of a piece. */
static peri_status open_net (net *s, int64_t (*spare)(const net *s)) {
  const peri__mlp *n = &s->of;
  int threads = peri_threads(s->ctx);
  int64_t all = n->copies * n->rows;
  s->widest = 1;
  for (int l = 0; l <= n->layers; l++) s->widest = most(s->widest, n->width[l]);
  for (int l = 0; l < n->layers; l++)
    s->work += (double)all * (double)n->width[l] * (double)n->width[l + 1];
  s->chunk = most(ROOM / s->widest, 8);
  if (s->work >= WORTH) s->chunk = least(s->chunk, cut(all, threads));
  s->cuts = most(cut(n->rows, most(s->chunk, 1)), 1);
  if (n->copies == 1 && s->cuts > threads) s->cuts = cut(s->cuts, threads) * threads;
  s->chunk = most(cut(n->rows, s->cuts), 1);
  s->cuts = cut(n->rows, s->chunk);
  int64_t tall = most(s->chunk, s->widest);
  size_t sums = (size_t)s->widest * sizeof(double);
  s->product_room = padded(peri__gemm_scratch(s->ctx->cpu, tall, tall, tall));
  if (s->product_room < sums) s->product_room = padded(sums);
  s->turn_room = padded((size_t)(FEW * tall) * n->size);
  s->each = s->product_room + s->turn_room;
  if (spare != NULL) s->each += padded((size_t)(spare(s) * s->chunk) * n->size);
  size_t bytes = s->each * (size_t)threads;
  s->scratch = peri__block_get(s->ctx, bytes);
  if (s->scratch != NULL) return PERI_OK;
  return peri__fail(s->ctx, PERI_ENOMEM, "no memory for %zu bytes of scratch", bytes);
}

static int64_t two_layers (const net *s) { return 2 * s->widest; }

static void run_pieces (net *s, int64_t n, peri_range_fn fn) {
  int64_t grain = most(n, 1);
  if (s->work >= WORTH) grain = (int64_t)(WORTH / 4 * (double)n / s->work) + 1;
  peri__parallel(s->ctx, n, grain, fn, s);
}

peri_status peri__mlp_forward (peri_ctx *ctx, const peri__mlp *n) {
  net s = { .of = *n, .ctx = ctx };
  TRY(open_net(&s, n->after == NULL ? two_layers : NULL));
  run_pieces(&s, n->copies * s.cuts, forward_pieces);
  peri__block_put(ctx, s.scratch);
  return PERI_OK;
}

peri_status peri__mlp_backward (peri_ctx *ctx, const peri__mlp *n) {
  net s = { .of = *n, .ctx = ctx };
  int64_t mr = ctx->cpu->gemm->mr;
  size_t bytes = (size_t)peri__mlp_hidden(n, n->layers) * n->size;
  bool weights = false;
  TRY(open_net(&s, NULL));
  if (bytes > 0 && (s.slope = peri__block_get(ctx, bytes)) == NULL) {
    peri__block_put(ctx, s.scratch);
    return peri__fail(ctx, PERI_ENOMEM, "no memory for %zu bytes of gradients", bytes);
  }
  for (int l = 0; l < n->layers; l++) {
    int64_t in = n->width[l], out = n->width[l + 1], row = mr * in * most(n->rows, 1);
    weights = weights || n->dw[l] != NULL || n->db[l] != NULL;
    s.block[l] = in <= FEW ? most(out, 1) : mr * (WORTH / 8 / row + 1);
    s.first[l + 1] = s.first[l] + cut(out, s.block[l]);
  }
  run_pieces(&s, n->copies * s.cuts, backward_pieces);
  if (weights) run_pieces(&s, n->copies * s.first[n->layers], weight_pieces);
  peri__block_put(ctx, s.slope);
  peri__block_put(ctx, s.scratch);
  return PERI_OK;
}
