/*
** fold.c - the driver of reductions: which rows, which chunks, in which order, on which thread.
** The ops are in reduce.c and statistics.c.
*/
#include "op/reduce.h"

#include <string.h>

#define ROW_BLOCK 512 /* rows of a column fold that one accumulator takes */
#define COL_BLOCK 512 /* columns of one accumulator: 4 KiB */

int64_t peri__folded (const peri_tensor *x, const bool flags[PERI_MAX_DIMS]) {
  int64_t n = 1;
  for (int i = 0; i < x->ndim; i++)
    if (flags[i]) n *= x->shape[i];
  return n;
}

peri_status peri__infer_reduce (peri_call *c, int k, const bool flags[PERI_MAX_DIMS], bool keep,
                                int d) {
  const peri_tensor *x = c->in[0];
  int64_t shape[PERI_MAX_DIMS];
  int n = 0;
  for (int i = 0; i < x->ndim; i++) {
    if (!flags[i])
      shape[n++] = x->shape[i];
    else if (keep)
      shape[n++] = 1;
  }
  return peri__new(c->ctx, (peri_dtype)d, n, shape, &c->out[k]);
}

peri_tensor *peri__unfold (peri_build *b, peri_tensor *g, const peri_tensor *x,
                           const bool flags[PERI_MAX_DIMS]) {
  int64_t shape[PERI_MAX_DIMS];
  if (!g || g->ndim == x->ndim) return g;
  for (int i = 0; i < x->ndim; i++) shape[i] = flags[i] ? 1 : x->shape[i];
  return BA(b, reshape, ATTR(A_DIMS(shape, x->ndim)), g);
}

peri_status peri__rows (peri_tensor *x, const bool flags[PERI_MAX_DIMS], peri_tensor **out,
                        int64_t *rows, int64_t *n) {
  int64_t shape[PERI_MAX_DIMS], stride[PERI_MAX_DIMS];
  int at = 0;
  peri_tensor *view = NULL;
  *rows = *n = 1;
  for (int pass = 0; pass < 2; pass++)
    for (int i = 0; i < x->ndim; i++) {
      if (flags[i] != (pass == 1)) continue;
      shape[at] = x->shape[i];
      stride[at++] = x->stride[i];
      if (pass)
        *n *= x->shape[i];
      else
        *rows *= x->shape[i];
    }
  TRY(peri__view(x, 0, x->ndim, shape, stride, &view));
  peri_status s = peri__contiguous(view, out);
  peri_release(view);
  return s;
}

/* ---- rows and columns ---- */

typedef struct job {
  const peri__fold *f;
  const char *x;
  size_t size; /* of an element */
  int64_t rows, n, inner, chunks, col_blocks;
  peri__part *parts; /* (rows, chunks, inner); NULL when no row has more than one chunk */
  char *out;
  int out_dtype;
} job;

static void store (const job *j, const peri__part *parts, int64_t first, int64_t n) {
  char *to = j->out + (size_t)first * peri_dtype_size((peri_dtype)j->out_dtype);
  if (j->f->integer)
    peri__store(j->f->k, j->out_dtype, to, 1, PERI_I64, parts, n);
  else if (j->out_dtype == PERI_F64)
    memcpy(to, parts, (size_t)n * sizeof *parts);
  else
    for (int64_t k = 0; k < n; k++) ((float *)(void *)to)[k] = (float)parts[k].f;
}

#define BUFFER 64

/* Whole rows, results included. */
static void rows_range (void *ud, int64_t begin, int64_t end, int worker) {
  const job *j = ud;
  const peri__fold *f = j->f;
  peri__part buffer[BUFFER];
  (void)worker;
  while (begin < end) {
    int64_t n = end - begin < BUFFER ? end - begin : BUFFER;
    for (int64_t i = 0; i < n; i++) {
      peri__part a = f->identity;
      if (j->n > 0) a = f->chunk(f, j->x + (size_t)((begin + i) * j->n) * j->size, j->n, begin + i);
      buffer[i] = f->finish ? f->finish(f, a, begin + i) : a;
    }
    store(j, buffer, begin, n);
    begin += n;
  }
}

static void chunks_range (void *ud, int64_t begin, int64_t end, int worker) {
  const job *j = ud;
  (void)worker;
  for (; begin < end; begin++) {
    int64_t row = begin / j->chunks, at = begin % j->chunks * PERI_CHUNK;
    int64_t n = j->n - at < PERI_CHUNK ? j->n - at : PERI_CHUNK;
    j->parts[begin] = j->f->chunk(j->f, j->x + (size_t)(row * j->n + at) * j->size, n, row);
  }
}

static void columns_range (void *ud, int64_t begin, int64_t end, int worker) {
  const job *j = ud;
  (void)worker;
  for (; begin < end; begin++) {
    double acc[COL_BLOCK];
    int64_t c0 = begin % j->col_blocks * COL_BLOCK, block = begin / j->col_blocks;
    int64_t r0 = block % j->chunks * ROW_BLOCK, row = block / j->chunks;
    int64_t cols = j->inner - c0 < COL_BLOCK ? j->inner - c0 : COL_BLOCK;
    int64_t n = j->n - r0 < ROW_BLOCK ? j->n - r0 : ROW_BLOCK;
    const float *x = (const float *)(const void *)j->x + (row * j->n + r0) * j->inner + c0;
    for (int64_t i = 0; i < cols; i++) acc[i] = j->f->columns_first;
    j->f->columns(j->f, x, n, j->inner, cols, acc);
    peri__part *to = j->parts + block * j->inner + c0;
    for (int64_t i = 0; i < cols; i++) to[i].f = acc[i];
  }
}

/* Join the chunks of results [begin, end) in order. */
static void join_range (void *ud, int64_t begin, int64_t end, int worker) {
  const job *j = ud;
  const peri__fold *f = j->f;
  peri__part buffer[BUFFER];
  (void)worker;
  while (begin < end) {
    int64_t n = end - begin < BUFFER ? end - begin : BUFFER;
    for (int64_t i = 0; i < n; i++) {
      int64_t row = (begin + i) / j->inner, col = (begin + i) % j->inner;
      const peri__part *p = j->parts + row * j->chunks * j->inner + col;
      peri__part a = p[0];
      for (int64_t k = 1; k < j->chunks; k++) a = f->join(a, p[k * j->inner]);
      buffer[i] = f->finish ? f->finish(f, a, begin + i) : a;
    }
    store(j, buffer, begin, n);
    begin += n;
  }
}

static int64_t ceil_div (int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t least (int64_t a, int64_t b) { return a < b ? a : b; }

/* The job without parts is a description; this runs it. */
static peri_status run (peri_ctx *ctx, job *j, bool columns) {
  j->chunks = ceil_div(j->n, columns ? ROW_BLOCK : PERI_CHUNK);
  if (!columns && j->chunks <= 1) {
    peri__parallel(ctx, j->rows, 1 + 32768 / (j->n + 8), rows_range, j);
    return PERI_OK;
  }
  peri__part few[512];
  size_t bytes = (size_t)(j->rows * j->chunks * j->inner) * sizeof *j->parts;
  j->parts = bytes <= sizeof few ? few : peri__block_get(ctx, bytes);
  if (!j->parts)
    return peri__fail(ctx, PERI_ENOMEM, "out of memory for %zu bytes of partial results", bytes);
  if (columns) {
    j->col_blocks = ceil_div(j->inner, COL_BLOCK);
    int64_t piece = least(j->n, ROW_BLOCK) * least(j->inner, COL_BLOCK);
    peri__parallel(ctx, j->rows * j->chunks * j->col_blocks, 1 + 65536 / (piece + 1), columns_range,
                   j);
  } else {
    peri__parallel(ctx, j->rows * j->chunks, 2, chunks_range, j);
  }
  peri__parallel(ctx, j->rows * j->inner, 8192 / j->chunks + 1, join_range, j);
  if (j->parts != few) peri__block_put(ctx, j->parts);
  return PERI_OK;
}

peri_status peri__reduce (peri_ctx *ctx, peri__fold *f, peri_tensor *x,
                          const bool flags[PERI_MAX_DIMS], peri_tensor *out) {
  job j = { .f = f, .rows = 1, .n = 1, .inner = 1, .out = out->data, .out_dtype = out->dtype };
  peri_tensor *dense = NULL, *wide = NULL;
  int groups = 0; /* of neighbouring folded dims */
  bool inside = false;
  f->k = ctx->cpu->math;
  if (out->numel == 0) return PERI_OK;
  for (int i = 0; i < x->ndim; i++) {
    if (x->shape[i] == 1) continue;
    groups += flags[i] && !inside;
    inside = flags[i];
    if (flags[i])
      j.n *= x->shape[i];
    else if (groups)
      j.inner *= x->shape[i];
    else
      j.rows *= x->shape[i];
  }
  bool columns = f->columns && f->type == PERI_F32 && groups == 1 && j.inner > 1 && j.n > 0;
  TRY(peri__cast(x, (peri_dtype)f->type, &wide));
  peri_status s =
      columns ? peri__contiguous(wide, &dense) : peri__rows(wide, flags, &dense, &j.rows, &j.n);
  peri_release(wide);
  TRY(s);
  if (!columns) j.inner = 1;
  f->n = j.n;
  j.x = dense->data;
  j.size = peri__size(dense);
  s = run(ctx, &j, columns);
  peri_release(dense);
  return s;
}

peri_status peri__reduce_rows (peri_ctx *ctx, peri__fold *f, const void *x, int64_t rows, int64_t n,
                               double *out) {
  job j = { .f = f,
            .x = x,
            .size = peri_dtype_size((peri_dtype)f->type),
            .rows = rows,
            .n = n,
            .inner = 1,
            .out = (char *)out,
            .out_dtype = PERI_F64 };
  f->k = ctx->cpu->math;
  f->n = n;
  return run(ctx, &j, false);
}

void peri__fold_flags (const peri_vjp *v, bool flags[PERI_MAX_DIMS]) {
  peri_status s = peri__dims(v->c->ctx, &v->c->attr[0], v->c->in[0]->ndim, flags);
  (void)s; /* they were checked when the op ran */
}

peri_tensor *peri__unfold_in (peri_vjp *v, peri_tensor *g) {
  bool flags[PERI_MAX_DIMS];
  peri__fold_flags(v, flags);
  return peri__unfold(&v->b, g, v->c->in[0], flags);
}
