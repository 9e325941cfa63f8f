/*
** scatter.c - writing by index: scatter, scatter_add, index_add, embedding_backward,
** masked_scatter. All return new tensors. Additions to one element happen in the order of the
** indices on one thread, so that results do not depend on the thread count.
*/
#include <inttypes.h>
#include <string.h>

#include "cpu/vec.h"
#include "op/lines.h"
#include "op/move.h"

/* ---- lines and masks ---- */

typedef struct walk {
  peri_lines x;
  peri_line_fn fn;
  int ndim; /* dims without dim */
  int64_t shape[PERI_MAX_DIMS], is[PERI_MAX_DIMS], as[PERI_MAX_DIMS], bs[PERI_MAX_DIMS];
  char *a;
  const char *b;
  const int64_t *index;
} walk;

static void walk_range (void *ud, int64_t begin, int64_t end, int worker) {
  const walk *w = ud;
  (void)worker;
  int64_t size = (int64_t)w->x.size;
  for (int64_t line = begin; line < end; line++) {
    int64_t rest = line, i = 0, a = 0, b = 0;
    for (int d = w->ndim - 1; d >= 0; d--) {
      int64_t at = rest % w->shape[d];
      rest /= w->shape[d];
      i += at * w->is[d];
      a += at * w->as[d];
      b += at * w->bs[d];
    }
    w->fn(&w->x, w->a + a * size, w->b + b * size, w->index + i);
  }
}

void peri__lines (peri_ctx *ctx, peri_line_fn fn, const peri_tensor *index, const int64_t *v,
                  int dim, peri_tensor *a, const peri_tensor *b) {
  int64_t istride[PERI_MAX_DIMS], lines = 1;
  walk w = { .fn = fn, .a = a->data, .b = b->data, .index = v };
  w.x = (peri_lines){ .size = peri__size(a), .dtype = a->dtype, .n = 1 };
  peri__dense_strides(index->ndim, index->shape, istride);
  for (int d = 0; d < index->ndim; d++) {
    int64_t bs = b->ndim == 0 ? 0 : b->stride[d];
    if (d == dim) {
      w.x.n = index->shape[d];
      w.x.istep = istride[d];
      w.x.step[0] = a->stride[d];
      w.x.step[1] = bs;
      continue;
    }
    lines *= index->shape[d];
    w.shape[w.ndim] = index->shape[d];
    w.is[w.ndim] = istride[d];
    w.as[w.ndim] = a->stride[d];
    w.bs[w.ndim++] = bs;
  }
  if (index->numel > 0) peri__parallel(ctx, lines, 8192 / w.x.n + 1, walk_range, &w);
}

peri_status peri__lines_check (peri_call *c, const peri_tensor *t, const char *name, int dim) {
  const peri_tensor *index = c->in[1];
  char a[128], b[128];
  bool good = index->ndim == t->ndim;
  for (int d = 0; good && d < t->ndim; d++) good = d == dim || index->shape[d] <= t->shape[d];
  if (good) return PERI_OK;
  return peri__fail(c->ctx, PERI_ESHAPE, "index %s does not fit %s %s",
                    peri__shape_text(index, a, sizeof a), name, peri__shape_text(t, b, sizeof b));
}

peri_status peri__mask_get (peri_call *c, const peri_tensor *x, peri_tensor *mask, uint8_t **out,
                            int64_t *count) {
  int64_t ms[PERI_MAX_DIMS], ds[PERI_MAX_DIMS];
  char a[128], b[128];
  bool good = mask->ndim <= x->ndim;
  if (mask->dtype != PERI_BOOL && mask->dtype != PERI_U8)
    return peri__fail(c->ctx, PERI_EDTYPE, "mask is %s, expected bool or u8",
                      peri_dtype_name((peri_dtype)mask->dtype));
  for (int d = 0; good && d < mask->ndim; d++) {
    int64_t size = mask->shape[mask->ndim - 1 - d];
    good = size == 1 || size == x->shape[x->ndim - 1 - d];
  }
  if (!good)
    return peri__fail(c->ctx, PERI_ESHAPE, "mask %s does not broadcast to x %s",
                      peri__shape_text(mask, a, sizeof a), peri__shape_text(x, b, sizeof b));
  *count = 0;
  *out = NULL;
  if (x->numel == 0) return PERI_OK;
  uint8_t *p = peri__block_get(c->ctx, (size_t)x->numel);
  if (p == NULL)
    return peri__fail(c->ctx, PERI_ENOMEM, "no memory for a mask of %" PRId64 " bytes", x->numel);
  for (int d = 0; d < x->ndim; d++) ms[d] = peri__bstride(mask, x->ndim, d);
  peri__dense_strides(x->ndim, x->shape, ds);
  peri__move(c->ctx, 1, x->ndim, x->shape, p, ds, mask->data, ms);
  for (int64_t i = 0; i < x->numel && !peri__give_up(c->ctx, i); i++) *count += p[i] != 0;
  if (peri__stopped(c->ctx)) {
    peri__block_put(c->ctx, p);
    return peri__fail(c->ctx, PERI_EINTR, "interrupted");
  }
  *out = p;
  return PERI_OK;
}

/* ---- adding ---- */

/* d[i] += s[i] over arrays; d_step and s_step in elements. */
static void add_run (int dtype, void *d, int64_t d_step, const void *s, int64_t s_step, int64_t n) {
  switch (dtype) { /* ORDER dtype */
  case PERI_F32: {
    float *df = d;
    const float *sf = s;
    int64_t i = 0;
    if (d_step == 1 && s_step == 1)
      for (; i + PERI_VW <= n; i += PERI_VW) v_store(df + i, v_load(df + i) + v_load(sf + i));
    for (; i < n; i++) df[i * d_step] += sf[i * s_step];
    break;
  }
#define RUN(type)                                                     \
  {                                                                   \
    type *dt = d;                                                     \
    const type *st = s;                                               \
    for (int64_t i = 0; i < n; i++) dt[i * d_step] += st[i * s_step]; \
    break;                                                            \
  }
  case PERI_F64: RUN(double)
  case PERI_U8: RUN(uint8_t)
  case PERI_I32: RUN(uint32_t) /* unsigned: wraps without undefined behaviour */
  default: RUN(uint64_t)
#undef RUN
  }
}

static peri_status want_addable (peri_call *c, const peri_tensor *x) {
  if (x->dtype != PERI_BOOL) return PERI_OK;
  return peri__fail(c->ctx, PERI_EDTYPE, "bool has no addition; cast to u8 or i64 first");
}

/* src has x's dtype, or is a plain number. */
static peri_status want_source (peri_call *c) {
  const peri_tensor *x = c->in[0], *src = c->in[2];
  if (src->flags & PERI_T_WEAK) return peri__number_fits(c, 2, x->dtype);
  if (src->dtype == x->dtype) return PERI_OK;
  return peri__fail(c->ctx, PERI_EDTYPE, "src is %s but x is %s",
                    peri_dtype_name((peri_dtype)src->dtype), peri_dtype_name((peri_dtype)x->dtype));
}

/* ---- scatter, scatter_add ---- */

static peri_status scatter_infer (peri_call *c) {
  peri_tensor *x = c->in[0], *src = c->in[2];
  int dim = 0;
  TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim, &dim));
  TRY(want_source(c));
  TRY(peri__lines_check(c, x, "x", dim));
  if (src->ndim > 0) TRY(peri__lines_check(c, src, "src", -1));
  return peri__infer_same(c);
}

static peri_status scatter_add_infer (peri_call *c) {
  TRY(want_addable(c, c->in[0]));
  return scatter_infer(c);
}

static peri_status scatter_run (peri_call *c, peri_line_fn fn) {
  peri_tensor *x = c->in[0], *out = c->out[0], *src = NULL;
  peri_indices index = { 0 };
  int dim = 0;
  TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim, &dim));
  TRY(peri__indices(c->ctx, c->in[1], "index", x->shape[dim], &index));
  peri_status s = peri__cast(c->in[2], (peri_dtype)x->dtype, &src);
  if (s == PERI_OK) {
    peri__move(c->ctx, peri__size(x), x->ndim, x->shape, out->data, out->stride, x->data,
               x->stride);
    peri__lines(c->ctx, fn, c->in[1], index.v, dim, out, src);
  }
  peri_release(src);
  peri__indices_free(c->ctx, &index);
  return s;
}

static void scatter_line (const peri_lines *x, char *out, const char *src, const int64_t *index) {
  int64_t size = (int64_t)x->size;
  for (int64_t i = 0; i < x->n; i++)
    memcpy(out + index[i * x->istep] * x->step[0] * size, src + i * x->step[1] * size, x->size);
}

static void scatter_add_line (const peri_lines *x, char *out, const char *src,
                              const int64_t *index) {
  int64_t size = (int64_t)x->size;
  for (int64_t i = 0; i < x->n; i++)
    add_run(x->dtype, out + index[i * x->istep] * x->step[0] * size, 1, src + i * x->step[1] * size,
            1, 1);
}

static peri_status scatter_cpu (peri_call *c) { return scatter_run(c, scatter_line); }
static peri_status scatter_add_cpu (peri_call *c) { return scatter_run(c, scatter_add_line); }

/* g, of index's shape, with zeros for the part of src that was not used. */
static peri_tensor *source_grad (peri_vjp *v, peri_tensor *g) {
  const peri_tensor *src = v->c->in[2], *index = v->c->in[1];
  int64_t pads[2 * PERI_MAX_DIMS];
  bool same = true;
  if (src->ndim == 0) return g; /* the engine sums */
  for (int d = 0; d < src->ndim; d++) {
    int64_t more = src->shape[d] - index->shape[d];
    int at = 2 * (src->ndim - 1 - d);
    pads[at] = 0;
    pads[at + 1] = more;
    same = same && more == 0;
  }
  return same ? g : BA(&v->b, pad, ATTR(A_DIMS(pads, 2 * src->ndim), A_NUM(0)), g);
}

/* Where several indices name one element only the last was written: whoever reads back its own
** number is that one. */
static void scatter_vjp (peri_vjp *v) {
  peri_build *b = &v->b;
  peri_tensor *x = v->c->in[0], *index = v->c->in[1], *zero = peri__build_scalar(b, 0);
  const peri_attr *dim = v->c->attr;
  if (v->need[0]) v->gin[0] = BA(b, scatter, dim, v->g[0], index, zero);
  if (!v->need[2]) return;
  const peri_attr *count = ATTR(A_NUM(0), A_NUM((double)index->numel), A_NUM(1), A_INT(PERI_I64));
  peri_tensor *id = peri__build(b, &peri__op_arange, 0, NULL, count);
  id = BA(b, reshape, ATTR(A_DIMS(index->shape, index->ndim)), id);
  peri_tensor *last = BA(b, zeros_like, ATTR(A_INT(PERI_I64)), x);
  last = BA(b, gather, dim, BA(b, scatter, dim, last, index, id), index);
  peri_tensor *g = BA(b, gather, dim, v->g[0], index);
  v->gin[2] = source_grad(v, B(b, where, B(b, eq, last, id), g, zero));
}

static void scatter_add_vjp (peri_vjp *v) {
  if (v->need[0]) v->gin[0] = v->g[0];
  if (v->need[2]) v->gin[2] = source_grad(v, BA(&v->b, gather, v->c->attr, v->g[0], v->c->in[1]));
}

OP(scatter, .sig = "x, index, src, dim:dim", .flags = PERI_OP_STRIDED,
   .doc =
       "x with out[i][index[i][j]] = src[i][j] for dim 2, likewise for others; the last of equal "
       "indices wins; src may be one number.",
   .infer = scatter_infer, .cpu = scatter_cpu, .unread = 1 | 4, .vjp = scatter_vjp,
   TESTS(.domain = "x.shape=3,4; index.shape=2,4; src.shape=2,4; index=int:0..2; attr dim=1",
         .variants = { "x.shape=3,4; index.shape=3,1; src.shape=3,1; index=int:0..3; attr dim=2" },
         .large = "x.shape=128,300; index.shape=120,300; src.shape=120,300; index=int:0..127; "
                  "attr dim=1",
         .refuses = { "x.shape=3; index=i64[3]; src.shape=1; attr dim=1 => 3" }));
OP(scatter_add, .sig = "x, index, src, dim:dim", .flags = PERI_OP_STRIDED | PERI_OP_UPCAST,
   .doc =
       "x with out[i][index[i][j]] += src[i][j] for dim 2, likewise for others; in a fixed order.",
   .infer = scatter_add_infer, .cpu = scatter_add_cpu, .unread = 1 | 4, .vjp = scatter_add_vjp,
   TESTS(.domain = "x.shape=3,4; index.shape=2,4; src.shape=2,4; index=int:0..2; attr dim=1",
         .variants = { "x.shape=3,4; index.shape=3,6; src.shape=3,6; index=int:0..3; attr dim=-1" },
         .large = "x.shape=128,300; index.shape=120,300; src.shape=120,300; index=int:0..127; "
                  "attr dim=1",
         .refuses = { "x.shape=3; index=i64[3]; src.shape=1; attr dim=1 => 3",
                      "x.shape=4; index=i64[0,1,2]; src.shape=2; attr dim=1 => (2) | (3)" }));

/* ---- index_add, embedding_backward: whole rows ---- */

typedef struct adds {
  const peri_ctx *ctx;
  const int64_t *index;
  int dtype;
  char *dst;
  const char *src;
  int64_t n, to, inner, skip; /* rows added, rows there, elements of one, row left out or -1 */
  int64_t size;
} adds;

/* Columns [begin, end) of (outer, inner): a thread owns its columns of every row. */
static void adds_range (void *ud, int64_t begin, int64_t end, int worker) {
  const adds *x = ud;
  (void)worker;
  while (begin < end) {
    int64_t o = begin / x->inner, j = begin % x->inner;
    int64_t wide = x->inner - j < end - begin ? x->inner - j : end - begin;
    for (int64_t i = 0; i < x->n; i++) {
      if (peri__give_up(x->ctx, i)) return;
      if (x->index[i] == x->skip) continue;
      add_run(x->dtype, x->dst + ((o * x->to + x->index[i]) * x->inner + j) * x->size, 1,
              x->src + ((o * x->n + i) * x->inner + j) * x->size, 1, wide);
    }
    begin += wide;
  }
}

/* dst (outer, to, inner) += src (outer, n, inner) in rows index (n) */
static void add_rows (peri_ctx *ctx, int64_t outer, adds *x) {
  if (x->n == 0 || outer * x->inner == 0) return;
  int64_t grain = 16384 / x->n + 1;
  peri__parallel(ctx, outer * x->inner, grain < 16 ? 16 : grain, adds_range, x);
}

static peri_status index_add_infer (peri_call *c) {
  peri_tensor *x = c->in[0], *src = c->in[2];
  char a[128], b[128];
  int dim = 0;
  TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim, &dim));
  TRY(peri__want_ndim(c, 1, "index", 1));
  TRY(want_addable(c, x));
  TRY(want_source(c));
  bool good = src->ndim == x->ndim;
  for (int d = 0; good && d < x->ndim; d++)
    good = src->shape[d] == (d == dim ? c->in[1]->numel : x->shape[d]);
  if (!good)
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "src %s does not fit x %s with %" PRId64 " indices of dim %s",
                      peri__shape_text(src, a, sizeof a), peri__shape_text(x, b, sizeof b),
                      c->in[1]->numel, peri__nth(c->ctx, dim));
  return peri__infer_same(c);
}

static peri_status index_add_cpu (peri_call *c) {
  peri_tensor *x = c->in[0], *out = c->out[0];
  peri_indices index = { 0 };
  int64_t outer = 1, inner = 1;
  int dim = 0;
  TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim, &dim));
  TRY(peri__indices(c->ctx, c->in[1], "index", x->shape[dim], &index));
  for (int i = 0; i < x->ndim; i++) *(i < dim ? &outer : &inner) *= i == dim ? 1 : x->shape[i];
  adds a = { c->ctx,  index.v,       x->dtype, out->data, c->in[2]->data,
             index.n, x->shape[dim], inner,    -1,        (int64_t)peri__size(x) };
  peri__move(c->ctx, peri__size(x), x->ndim, x->shape, out->data, out->stride, x->data, x->stride);
  add_rows(c->ctx, outer, &a);
  peri__indices_free(c->ctx, &index);
  return PERI_OK;
}

static void index_add_vjp (peri_vjp *v) {
  if (v->need[0]) v->gin[0] = v->g[0];
  if (v->need[2]) v->gin[2] = BA(&v->b, index_select, v->c->attr, v->g[0], v->c->in[1]);
}

OP(index_add, .sig = "x, index, src, dim:dim", .flags = PERI_OP_UPCAST,
   .doc = "x with position i of src's dim added to position index[i] of that dim, in order.",
   .infer = index_add_infer, .cpu = index_add_cpu, .unread = 1 | 4, .vjp = index_add_vjp,
   TESTS(.domain = "x.shape=4,3; index.shape=5; src.shape=5,3; index=int:0..3; attr dim=1",
         .variants = { "x.shape=2,4,2; index.shape=5; src.shape=2,5,2; index=int:0..3; attr "
                       "dim=2" },
         .large =
             "x.shape=200,300; index.shape=150; src.shape=150,300; index=int:0..199; attr dim=1",
         .refuses = { "x.shape=3; index=i64[3]; src.shape=1; attr dim=1 => 3",
                      "x.shape=3; index=i64[0]; src.shape=2; attr dim=1 => 2" }));

static peri_status embedding_backward_infer (peri_call *c) {
  peri_tensor *g = c->in[0], *ids = c->in[1];
  char a[128], b[128];
  int64_t shape[2] = { c->attr[0].i, 0 };
  bool good = g->ndim == ids->ndim + 1;
  for (int d = 0; good && d < ids->ndim; d++) good = g->shape[d] == ids->shape[d];
  if (!good)
    return peri__fail(c->ctx, PERI_ESHAPE, "g %s does not fit ids %s",
                      peri__shape_text(g, a, sizeof a), peri__shape_text(ids, b, sizeof b));
  TRY(peri__want_float(c, 0, "g"));
  shape[1] = g->shape[ids->ndim];
  return peri__new(c->ctx, (peri_dtype)g->dtype, 2, shape, &c->out[0]);
}

peri_status peri__add_embedding (peri_ctx *ctx, peri_tensor *g, peri_tensor *ids, int64_t pad,
                                 peri_tensor *out) {
  peri_indices places = { 0 };
  peri_tensor *rows = NULL;
  TRY(peri__contiguous(g, &rows));
  peri_status s = peri__indices(ctx, ids, "ids", out->shape[0], &places);
  if (s == PERI_OK) {
    adds a = { ctx,
               places.v,
               g->dtype,
               out->data,
               rows->data,
               places.n,
               out->shape[0],
               out->shape[1],
               pad == INT64_MIN ? -1 : pad,
               (int64_t)peri__size(g) };
    add_rows(ctx, 1, &a);
    peri__indices_free(ctx, &places);
    if (peri__stopped(ctx)) s = peri__fail(ctx, PERI_EINTR, "interrupted");
  }
  peri_release(rows);
  return s;
}

static peri_status embedding_backward_cpu (peri_call *c) {
  peri_tensor *out = c->out[0];
  uint64_t zero = 0;
  peri__fill(c->ctx, peri__size(out), out->data, out->numel, &zero);
  return peri__add_embedding(c->ctx, c->in[0], c->in[1], c->attr[1].i, out);
}

static void embedding_backward_vjp (peri_vjp *v) {
  peri_build *b = &v->b;
  peri_tensor *ids = v->c->in[1];
  int64_t pad = v->c->attr[1].i;
  peri_tensor *g = BA(b, embedding, ATTR(A_INT(INT64_MIN)), v->g[0], ids);
  if (pad != INT64_MIN) {
    peri_tensor *is_pad = B(b, eq, ids, peri__build_scalar(b, (double)pad));
    g = B(b, where, BA(b, unsqueeze, ATTR(A_INT(-1)), is_pad), peri__build_scalar(b, 0), g);
  }
  v->gin[0] = g;
}

OP(embedding_backward, .sig = "g, ids, rows:int, padding_idx:int=none", .flags = PERI_OP_UPCAST,
   .doc = "Gradient of embedding's weight, (rows, D): g (..., D) summed by ids (...), in order.",
   .infer = embedding_backward_infer, .cpu = embedding_backward_cpu, .vjp = embedding_backward_vjp,
   TESTS(.domain = "g.shape=2,2,3; ids.shape=2,2; ids=int:0..4; attr rows=5",
         .variants = { "g.shape=6,3; ids.shape=6; ids=int:0..4; attr rows=5; attr padding_idx=2" },
         .large = "g.shape=20,10,300; ids.shape=20,10; ids=int:0..49; attr rows=50",
         .refuses = { "g.shape=1,2; ids=i64[5]; attr rows=5 => 5" }));

/* ---- masked_scatter ---- */

static peri_status masked_scatter_infer (peri_call *c) {
  uint8_t *mask = NULL;
  int64_t n = 0;
  TRY(want_source(c));
  TRY(peri__mask_get(c, c->in[0], c->in[1], &mask, &n));
  peri__block_put(c->ctx, mask);
  if (c->in[2]->numel < n)
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "src has %" PRId64 " elements; mask is true %" PRId64 " times",
                      c->in[2]->numel, n);
  TRY(peri__number_fits(c, 2, c->in[0]->dtype));
  return peri__infer_same(c);
}

static peri_status masked_scatter_cpu (peri_call *c) {
  peri_tensor *x = c->in[0], *cast = NULL;
  uint8_t *mask = NULL;
  int64_t n = 0;
  size_t size = peri__size(x);
  TRY(peri__cast(c->in[2], (peri_dtype)x->dtype, &cast));
  peri_status s = peri__mask_get(c, x, c->in[1], &mask, &n);
  if (s == PERI_OK && x->numel > 0) {
    char *dst = c->out[0]->data;
    const char *src = cast->data;
    memcpy(dst, x->data, (size_t)x->numel * size);
    for (int64_t i = 0; i < x->numel; i++, dst += size) {
      if (!mask[i]) continue;
      memcpy(dst, src, size);
      src += size;
    }
    peri__block_put(c->ctx, mask);
  }
  peri_release(cast);
  return s;
}

static void masked_scatter_vjp (peri_vjp *v) {
  peri_build *b = &v->b;
  peri_tensor *mask = v->c->in[1], *src = v->c->in[2];
  if (v->need[0]) v->gin[0] = B(b, where, mask, peri__build_scalar(b, 0), v->g[0]);
  if (!v->need[2]) return;
  peri_tensor *g = B(b, masked_select, v->g[0], mask);
  if (g == NULL) return;
  int64_t pads[2] = { 0, src->numel - g->numel };
  if (pads[1] > 0) g = BA(b, pad, ATTR(A_DIMS(pads, 2), A_NUM(0)), g);
  v->gin[2] = BA(b, reshape, ATTR(A_DIMS(src->shape, src->ndim)), g);
}

OP(masked_scatter, .sig = "x, mask, src",
   .doc = "x whose elements under a true mask (bool or u8, broadcast to x) are src's, in row-major "
          "order.",
   .infer = masked_scatter_infer, .cpu = masked_scatter_cpu, .unread = 1 | 4,
   .vjp = masked_scatter_vjp,
   TESTS(.domain = "mask=bool; src.shape=6", .large = "shape=128,300; mask=bool; src.shape=38400",
         .refuses = { "x.shape=2; mask=bool[1,1]; src.shape=1 => 2 | 1" }));
