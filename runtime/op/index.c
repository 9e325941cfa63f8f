/*
** index.c - reading by index: gather, index_select, embedding, masked_select, nonzero. Indices are
** values inside tensors, so they count from 0; a bad one is refused before anything is written.
** The gradients are the writing ops of scatter.c.
*/
#include <inttypes.h>
#include <string.h>

#include "autograd/tape.h"
#include "op/move.h"
#include "op/lines.h"
#include "op/weights.h"

/* ---- gather ---- */

static peri_status gather_infer (peri_call *c) {
  int dim = 0;
  TRY(peri__dim(c->ctx, c->attr[0].i, c->in[0]->ndim, &dim));
  TRY(peri__lines_check(c, c->in[0], "x", dim));
  return peri__new(c->ctx, (peri_dtype)c->in[0]->dtype, c->in[1]->ndim, c->in[1]->shape,
                   &c->out[0]);
}

static void gather_line (const peri_lines *x, char *out, const char *in, const int64_t *index) {
  switch (x->size) {
#define LINE(type)                                                                              \
  {                                                                                             \
    type *o = (type *)(void *)out;                                                              \
    const type *s = (const type *)(const void *)in;                                             \
    for (int64_t i = 0; i < x->n; i++) o[i * x->step[0]] = s[index[i * x->istep] * x->step[1]]; \
  }                                                                                             \
  break
  case 1: LINE(uint8_t);
  case 2: LINE(uint16_t);
  case 4: LINE(uint32_t);
  default: LINE(uint64_t);
#undef LINE
  }
}

static peri_status gather_cpu (peri_call *c) {
  peri_indices index = { 0 };
  int dim = 0;
  TRY(peri__dim(c->ctx, c->attr[0].i, c->in[0]->ndim, &dim));
  TRY(peri__indices(c->ctx, c->in[1], "index", c->in[0]->shape[dim], &index));
  peri__lines(c->ctx, gather_line, c->in[1], index.v, dim, c->out[0], c->in[0]);
  peri__indices_free(c->ctx, &index);
  return PERI_OK;
}

static void gather_vjp (peri_vjp *v) {
  peri_tensor *zero = BA(&v->b, zeros_like, ATTR(A_INT(-1)), v->c->in[0]);
  v->gin[0] = BA(&v->b, scatter_add, v->c->attr, zero, v->c->in[1], v->g[0]);
}

OP(gather, .sig = "x, index, dim:dim", .flags = PERI_OP_STRIDED,
   .doc = "out[i][j] = x[i][index[i][j]] for dim 2, likewise for others; out has index's shape, "
          "which may not exceed x's in the other dims.",
   .infer = gather_infer, .cpu = gather_cpu, .unread = 1, .vjp = gather_vjp,
   TESTS(.domain = "x.shape=3,4; index.shape=2,4; index=int:0..2; attr dim=1",
         .variants = { "x.shape=3,4; index.shape=3,6; index=int:0..3; attr dim=2" },
         .large = "x.shape=128,300; index.shape=120,300; index=int:0..127; attr dim=1",
         .refuses = { "x.shape=3; index=i64[0,3]; attr dim=1 => 3",
                      "x.shape=3; index=i64[-1]; attr dim=1 => -1",
                      "x.shape=3; index.shape=3; attr dim=1 => f32",
                      "x.shape=3,2; index=i64[0]; attr dim=1 => 1 | 2" }));

/* ---- index_select, embedding: whole rows ---- */

typedef struct rows {
  const int64_t *index;
  char *dst;
  const char *src;
  int64_t n, from, row; /* rows taken, rows there, bytes of one */
} rows;

static void rows_range (void *ud, int64_t begin, int64_t end, int worker) {
  const rows *x = ud;
  (void)worker;
  for (int64_t i = begin; i < end; i++)
    memcpy(x->dst + i * x->row, x->src + (i / x->n * x->from + x->index[i % x->n]) * x->row,
           (size_t)x->row);
}

/* src (outer, from, row) -> dst (outer, n, row) */
static void take_rows (peri_ctx *ctx, int64_t outer, rows *x) {
  if (outer * x->n == 0 || x->row == 0) return;
  peri__parallel(ctx, outer * x->n, 65536 / x->row + 1, rows_range, x);
}

static peri_status index_select_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  int64_t shape[PERI_MAX_DIMS];
  int dim = 0;
  TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim, &dim));
  TRY(peri__want_ndim(c, 1, "index", 1));
  memcpy(shape, x->shape, sizeof shape);
  shape[dim] = c->in[1]->numel;
  return peri__new(c->ctx, (peri_dtype)x->dtype, x->ndim, shape, &c->out[0]);
}

static peri_status index_select_cpu (peri_call *c) {
  peri_tensor *x = c->in[0];
  peri_indices index = { 0 };
  int64_t outer = 1, inner = 1;
  int dim = 0;
  TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim, &dim));
  TRY(peri__indices(c->ctx, c->in[1], "index", x->shape[dim], &index));
  for (int i = 0; i < x->ndim; i++) *(i < dim ? &outer : &inner) *= i == dim ? 1 : x->shape[i];
  rows r = { index.v, c->out[0]->data, x->data,
             index.n, x->shape[dim],   inner * (int64_t)peri__size(x) };
  take_rows(c->ctx, outer, &r);
  peri__indices_free(c->ctx, &index);
  return PERI_OK;
}

static void index_select_vjp (peri_vjp *v) {
  peri_tensor *zero = BA(&v->b, zeros_like, ATTR(A_INT(-1)), v->c->in[0]);
  v->gin[0] = BA(&v->b, index_add, v->c->attr, zero, v->c->in[1], v->g[0]);
}

OP(index_select, .sig = "x, index, dim:dim",
   .doc = "Positions index (n) of one dim of x: size n takes the place of that dim's.",
   .infer = index_select_infer, .cpu = index_select_cpu, .unread = 1, .vjp = index_select_vjp,
   TESTS(.domain = "x.shape=4,3; index.shape=5; index=int:0..3; attr dim=1",
         .variants = { "x.shape=2,4,2; index.shape=5; index=int:0..3; attr dim=-2" },
         .large = "x.shape=200,300; index.shape=150; index=int:0..199; attr dim=1",
         .refuses = { "x.shape=3; index=i64[3]; attr dim=1 => 3",
                      "x.shape=3; index=i64[0]; attr dim=2 => 2 | 1" }));

static peri_status embedding_infer (peri_call *c) {
  peri_tensor *w = c->in[0], *ids = c->in[1];
  int64_t shape[PERI_MAX_DIMS], pad = c->attr[0].i;
  TRY(peri__want_ndim(c, 0, "weight", 2));
  if (ids->ndim == PERI_MAX_DIMS)
    return peri__fail(c->ctx, PERI_ESHAPE, "ids has %d dims; at most %d are possible", ids->ndim,
                      PERI_MAX_DIMS - 1);
  if (pad != INT64_MIN && (pad < 0 || pad >= w->shape[0]))
    return peri__fail(c->ctx, PERI_EINVAL, "padding_idx %" PRId64 " of a table of %" PRId64 " rows",
                      pad, w->shape[0]);
  memcpy(shape, ids->shape, sizeof shape);
  shape[ids->ndim] = w->shape[1];
  peri_dtype d = peri__opaque(w) ? PERI_F32 : (peri_dtype)w->dtype;
  return peri__new(c->ctx, d, ids->ndim + 1, shape, &c->out[0]);
}

typedef struct weight_rows {
  const peri_tensor *w;
  const int64_t *index;
  float *out;
} weight_rows;

static void weight_rows_range (void *ud, int64_t begin, int64_t end, int worker) {
  const weight_rows *x = ud;
  (void)worker;
  for (int64_t i = begin; i < end; i++)
    peri__weight_row(x->w, x->index[i], x->out + i * x->w->shape[1]);
}

static peri_status embedding_cpu (peri_call *c) {
  peri_tensor *w = c->in[0];
  peri_indices ids = { 0 };
  TRY(peri__indices(c->ctx, c->in[1], "ids", w->shape[0], &ids));
  if (peri__opaque(w) && c->out[0]->numel > 0) {
    weight_rows x = { w, ids.v, c->out[0]->data };
    peri__parallel(c->ctx, ids.n, 16384 / w->shape[1] + 1, weight_rows_range, &x);
    peri__indices_free(c->ctx, &ids);
    return PERI_OK;
  }
  rows r = { ids.v, c->out[0]->data, w->data,
             ids.n, w->shape[0],     w->shape[1] * (int64_t)peri__size(w) };
  take_rows(c->ctx, 1, &r);
  peri__indices_free(c->ctx, &ids);
  return PERI_OK;
}

static void embedding_vjp (peri_vjp *v) {
  peri_tensor *sum;
  if (peri__chain(v, 0, &sum)) {
    v->gin[0] = sum;
    if (sum)
      peri__build_fail(&v->b,
                       peri__add_embedding(v->c->ctx, v->g[0], v->c->in[1], v->c->attr[0].i, sum));
    return;
  }
  v->gin[0] = BA(&v->b, embedding_backward,
                 ATTR(A_INT(v->c->in[0]->shape[0]), A_INT(v->c->attr[0].i)), v->g[0], v->c->in[1]);
}

OP(embedding, .sig = "weight, ids, padding_idx:int=none", .flags = PERI_OP_WEIGHT,
   .doc =
       "Rows of weight (V, D) named by ids (...), to (..., D); row padding_idx gets no gradient. "
       "Rows of a quantised or packed weight are f32.",
   .infer = embedding_infer, .cpu = embedding_cpu, .unread = 1, .vjp = embedding_vjp,
   TESTS(.domain = "weight.shape=5,3; ids.shape=2,2; ids=int:0..4",
         .variants = { "weight.shape=5,3; ids.shape=4; ids=int:0..4; attr padding_idx=2" },
         .large = "weight.shape=50,300; ids.shape=20,10; ids=int:0..49",
         .refuses = { "weight.shape=5,2; ids=i64[0,5] => 5 | 5",
                      "weight.shape=5,2; ids=i64[-1] => -1",
                      "weight.shape=5; ids=i64[0] => 1 | 2" }));

/* ---- masked_select ---- */

static peri_status masked_select_infer (peri_call *c) {
  uint8_t *mask = NULL;
  int64_t n = 0;
  TRY(peri__mask_get(c, c->in[0], c->in[1], &mask, &n));
  peri__block_put(c->ctx, mask);
  return peri__new(c->ctx, (peri_dtype)c->in[0]->dtype, 1, &n, &c->out[0]);
}

static peri_status masked_select_cpu (peri_call *c) {
  peri_tensor *x = c->in[0];
  uint8_t *mask = NULL;
  int64_t n = 0;
  size_t size = peri__size(x);
  const char *src = x->data;
  char *dst = c->out[0]->data;
  TRY(peri__mask_get(c, x, c->in[1], &mask, &n));
  for (int64_t i = 0; i < x->numel; i++, src += size) {
    if (!mask[i]) continue;
    memcpy(dst, src, size);
    dst += size;
  }
  peri__block_put(c->ctx, mask);
  return PERI_OK;
}

static void masked_select_vjp (peri_vjp *v) {
  peri_tensor *zero = BA(&v->b, zeros_like, ATTR(A_INT(-1)), v->c->in[0]);
  v->gin[0] = B(&v->b, masked_scatter, zero, v->c->in[1], v->g[0]);
}

OP(masked_select, .sig = "x, mask",
   .doc =
       "The elements of x where mask (bool or u8, broadcast to x) is true, (n) in row-major order.",
   .infer = masked_select_infer, .cpu = masked_select_cpu, .unread = 1, .vjp = masked_select_vjp,
   TESTS(.domain = "mask=bool", .refuses = { "x.shape=3; mask.shape=3 => f32" }));

/* ---- nonzero ---- */

static bool is_nonzero (const void *p, int64_t i, int dtype) {
  switch (dtype) { /* ORDER dtype */
  case PERI_BOOL:
  case PERI_U8: return ((const uint8_t *)p)[i] != 0;
  case PERI_I32: return ((const int32_t *)p)[i] != 0;
  case PERI_I64: return ((const int64_t *)p)[i] != 0;
  case PERI_F16:
  case PERI_BF16: return (((const uint16_t *)p)[i] & 0x7fff) != 0;
  case PERI_F32: return ((const float *)p)[i] != 0;
  default: return ((const double *)p)[i] != 0;
  }
}

static peri_status nonzero_infer (peri_call *c) {
  peri_tensor *x = NULL;
  int64_t shape[2] = { 0, c->in[0]->ndim };
  TRY(peri__contiguous(c->in[0], &x));
  for (int64_t i = 0; i < x->numel && !peri__give_up(c->ctx, i); i++)
    shape[0] += is_nonzero(x->data, i, x->dtype);
  peri_release(x);
  if (peri__stopped(c->ctx)) return peri__fail(c->ctx, PERI_EINTR, "interrupted");
  return peri__new(c->ctx, PERI_I64, 2, shape, &c->out[0]);
}

static peri_status nonzero_cpu (peri_call *c) {
  peri_tensor *x = c->in[0];
  int64_t *out = c->out[0]->data;
  for (int64_t i = 0; i < x->numel; i++) {
    if (peri__give_up(c->ctx, i)) return PERI_OK; /* what ran it says so */
    if (!is_nonzero(x->data, i, x->dtype)) continue;
    int64_t rest = i;
    for (int d = x->ndim - 1; d >= 0; d--) {
      out[d] = rest % x->shape[d];
      rest /= x->shape[d];
    }
    out += x->ndim;
  }
  return PERI_OK;
}

OP(nonzero, .sig = "x",
   .doc =
       "Coordinates of the elements that are not zero, i64 (n, ndim), from 0, in row-major order.",
   .infer = nonzero_infer, .cpu = nonzero_cpu);
