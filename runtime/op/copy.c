/*
** copy.c - copies and conversions: contiguous, clone, to, copy_, fill_. A transpose goes by tiles.
*/
#include <string.h>

#include "op/elementwise.h"
#include "op/move.h"
#include "weight/weight.h"

#define TILE 16

typedef struct transposed {
  int ndim, j; /* dim j of the source has stride 1, not the last */
  const int64_t *shape, *stride;
  int64_t dense[PERI_MAX_DIMS];
  int64_t tiles_j, tiles_last;
  size_t size;
  const char *src;
  char *dst;
} transposed;

/* Through a copy of the tile, so that each line of memory is met once: lines a power of two apart
** throw each other out of the cache. */
#define TILE_LOOP(type)                                            \
  {                                                                \
    const type *s = (const type *)(const void *)src;               \
    type *d = (type *)(void *)dst, tile[TILE][TILE];               \
    for (int64_t b = 0; b < nl; b++)                               \
      for (int64_t a = 0; a < nj; a++) tile[b][a] = s[a + b * sl]; \
    for (int64_t a = 0; a < nj; a++)                               \
      for (int64_t b = 0; b < nl; b++) d[a * dj + b] = tile[b][a]; \
  }                                                                \
  break

/* Tiles [begin, end): a square whose sides are runs of memory in the source and in the result. */
static void transpose_range (void *ud, int64_t begin, int64_t end, int worker) {
  const transposed *t = ud;
  int last = t->ndim - 1;
  (void)worker;
  for (; begin < end; begin++) {
    int64_t rest = begin, so = 0, dof = 0;
    int64_t l0 = rest % t->tiles_last * TILE;
    rest /= t->tiles_last;
    int64_t j0 = rest % t->tiles_j * TILE;
    rest /= t->tiles_j;
    for (int i = last - 1; i >= 0; i--) {
      if (i == t->j) continue;
      int64_t at = rest % t->shape[i];
      rest /= t->shape[i];
      so += at * t->stride[i];
      dof += at * t->dense[i];
    }
    int64_t sl = t->stride[last], dj = t->dense[t->j];
    int64_t nj = t->shape[t->j] - j0 < TILE ? t->shape[t->j] - j0 : TILE;
    int64_t nl = t->shape[last] - l0 < TILE ? t->shape[last] - l0 : TILE;
    const char *src = t->src + (so + j0 + l0 * sl) * (int64_t)t->size;
    char *dst = t->dst + (dof + j0 * dj + l0) * (int64_t)t->size;
    switch (t->size) {
    case 1: TILE_LOOP(uint8_t);
    case 2: TILE_LOOP(uint16_t);
    case 4: TILE_LOOP(uint32_t);
    default: TILE_LOOP(uint64_t);
    }
  }
}

/* dst is dense and has src's dtype and shape. */
static void copy_dense (peri_tensor *src, peri_tensor *dst) {
  transposed t = { .ndim = src->ndim,
                   .j = peri__unit_dim(src),
                   .shape = src->shape,
                   .stride = src->stride,
                   .size = peri__size(src),
                   .src = src->data,
                   .dst = dst->data };
  int last = t.ndim - 1;
  if (t.j < 0) {
    peri__move(src->ctx, t.size, src->ndim, src->shape, dst->data, dst->stride, src->data,
               src->stride);
    return;
  }
  peri__dense_strides(t.ndim, t.shape, t.dense);
  t.tiles_j = (t.shape[t.j] + TILE - 1) / TILE;
  t.tiles_last = (t.shape[last] + TILE - 1) / TILE;
  int64_t outer = src->numel / (t.shape[t.j] * t.shape[last]);
  peri__parallel(src->ctx, outer * t.tiles_j * t.tiles_last, PERI_GRAIN_CHEAP / (TILE * TILE),
                 transpose_range, &t);
}

static void k_copy (int64_t n, const void *const *in, const int64_t *step, void *out,
                    const double *p, size_t size) {
  (void)p;
  if (step[0])
    memcpy(out, in[0], (size_t)n * size);
  else
    for (int64_t i = 0; i < n; i++) memcpy((char *)out + (size_t)i * size, in[0], size);
}
static void copy_1 (int64_t n, const void *const *in, const int64_t *step, void *out,
                    const double *p) {
  k_copy(n, in, step, out, p, 1);
}
static void copy_4 (int64_t n, const void *const *in, const int64_t *step, void *out,
                    const double *p) {
  k_copy(n, in, step, out, p, 4);
}
static void copy_8 (int64_t n, const void *const *in, const int64_t *step, void *out,
                    const double *p) {
  k_copy(n, in, step, out, p, 8);
}

peri_status peri__copy (peri_tensor *src, peri_tensor *dst) {
  if (dst->numel == 0) return PERI_OK;
  if (src->dtype == dst->dtype) {
    if (peri__same_shape(src, dst) && peri__dense(dst)) {
      copy_dense(src, dst);
      return PERI_OK;
    }
    int64_t stride[PERI_MAX_DIMS];
    for (int i = 0; i < dst->ndim; i++) stride[i] = peri__bstride(src, dst->ndim, i);
    peri__move(dst->ctx, peri__size(dst), dst->ndim, dst->shape, dst->data, dst->stride, src->data,
               stride);
    return PERI_OK;
  }
  peri_dtype type = peri__compute_type(dst->dtype);
  peri__loop l = { .fn = type == PERI_BOOL  ? copy_1
                         : type == PERI_F32 ? copy_4
                                            : copy_8,
                   .nin = 1,
                   .in_type = { type },
                   .out_type = type,
                   .grain = PERI_GRAIN_CHEAP };
  return peri__elementwise(dst->ctx, &l, &src, dst);
}

static peri_status copy_cpu (peri_call *c) { return peri__copy(c->in[0], c->out[0]); }
static void same_vjp (peri_vjp *v) { v->gin[0] = v->g[0]; }

OP(contiguous, .sig = "x", .flags = PERI_OP_STRIDED,
   .doc = "x laid out row-major without gaps: a copy, also when it already is.",
   .infer = peri__infer_same, .cpu = copy_cpu, .unread = 1, .vjp = same_vjp);

OP(clone, .sig = "x", .flags = PERI_OP_STRIDED, .doc = "A copy of x with memory of its own.",
   .infer = peri__infer_same, .cpu = copy_cpu, .unread = 1, .vjp = same_vjp);

static peri_status to_infer (peri_call *c) {
  const peri_tensor *x = c->in[0];
  int64_t d = c->attr[0].i;
  size_t bytes;
  peri_dtype_block((peri_dtype)d, &bytes);
  if (bytes == 0) return peri__fail(c->ctx, PERI_EDTYPE, "dtype is missing");
  bool weight = peri__opaque(x), plain = peri__is_float((int)d);
  if ((weight && !plain && !(peri__is_quantised((int)d) && !x->storage->packed)) ||
      (!weight && !plain && peri__is_quantised((int)d) && !peri__is_float(x->dtype)))
    return peri__fail(c->ctx, PERI_EDTYPE, "%s cannot become %s",
                      peri_dtype_name((peri_dtype)x->dtype), peri_dtype_name((peri_dtype)d));
  return peri__new_like(x, (peri_dtype)d, &c->out[0]);
}
static peri_status to_cpu (peri_call *c) {
  peri_tensor *x = NULL;
  if (!peri__opaque(c->in[0]) && !peri__opaque(c->out[0])) return peri__copy(c->in[0], c->out[0]);
  TRY(peri__opaque(c->in[0]) ? (x = peri_retain(c->in[0]), PERI_OK)
                             : peri__contiguous(c->in[0], &x));
  peri_status s = peri__convert_weight(x, c->out[0]);
  peri_release(x);
  return s;
}
static void to_vjp (peri_vjp *v) {
  int from = v->c->in[0]->dtype;
  if (!peri__is_float(from)) return;
  v->gin[0] = v->g[0]->dtype == from ? v->g[0] : BA(&v->b, to, ATTR(A_INT(from)), v->g[0]);
}
OP(to, .sig = "x, dtype:dtype", .flags = PERI_OP_STRIDED | PERI_OP_WEIGHT,
   .doc =
       "x converted to dtype. Floats become integers by truncation (NaN 0); integers that do not "
       "fit wrap around; bool is x != 0. Floats become quantised weights by ggml's rules, and "
       "quantised and packed weights floats.",
   .infer = to_infer, .cpu = to_cpu, .unread = 1, .vjp = to_vjp,
   TESTS(.domain = "attr dtype=f64", .refuses = { "x.shape=2; attr dtype=f8 => f8" }));

static peri_status copy_into_cpu (peri_call *c) { return peri__copy(c->in[1], c->in[0]); }
static peri_status copy_into_infer (peri_call *c) {
  int ndim;
  int64_t shape[PERI_MAX_DIMS];
  char a[128], b[128];
  peri_tensor *dst = c->in[0], *src = c->in[1];
  bool good = src->ndim <= dst->ndim;
  if (good && !peri__same_shape(dst, src)) {
    TRY(peri__broadcast(c->ctx, dst, src, &ndim, shape));
    good = ndim == dst->ndim && memcmp(shape, dst->shape, (size_t)ndim * sizeof *shape) == 0;
  }
  if (good) return peri__number_fits(c, 1, dst->dtype);
  return peri__fail(c->ctx, PERI_ESHAPE, "%s does not broadcast to %s",
                    peri__shape_text(src, a, sizeof a), peri__shape_text(dst, b, sizeof b));
}
OPN(copy_, 0, .sig = "dst, src", .flags = PERI_OP_STRIDED | PERI_OP_INPLACE, .writes = 1,
    .doc = "Write src, broadcast to dst's shape and converted to its dtype, into dst.",
    .infer = copy_into_infer, .cpu = copy_into_cpu,
    TESTS(.refuses = { "dst.shape=2; src.shape=3 => (3) | (2)" }));

static peri_status fill_cpu (peri_call *c) {
  peri_tensor *x = c->in[0];
  uint64_t value = 0;
  int64_t none[PERI_MAX_DIMS] = { 0 };
  TRY(peri__element(c->ctx, x->dtype, &c->attr[0], &value));
  peri__move(c->ctx, peri__size(x), x->ndim, x->shape, x->data, x->stride, &value, none);
  return PERI_OK;
}
OPN(fill_, 0, .sig = "x, value:num", .flags = PERI_OP_STRIDED | PERI_OP_INPLACE, .writes = 1,
    .doc = "Set every element of x to value.", .cpu = fill_cpu,
    TESTS(.domain = "attr value=1.5",
          .refuses = { "x.shape=1; x=u8:0..1; attr value=300 => 300 | u8" }));
