/*
** elementwise.c - the driver of elementwise kernels. Dense arrays of a compute type go straight
** through; everything else is cut into blocks that fit the first cache, each input loaded
** (gathered, converted) into a buffer of the worker where it cannot be read in place.
*/
#include "op/elementwise.h"

#include <string.h>

#include "op/move.h"
#include "weight/weight.h"

#define BLOCK 512 /* elements of a buffer */
#define RUN 64    /* a run of the last dim that is worth a kernel call of its own */

/* One operand. Strides are those of the merged dims. */
typedef struct side {
  char *data;
  int dtype, type;
  size_t size;
  int64_t stride[PERI_MAX_DIMS];
  bool linear, constant; /* the dtype is the compute type and it lies dense, or is one element */
  bool periodic;         /* the same for every run of the last dim */
} side;

typedef struct walk {
  const peri__loop *l;
  const struct peri__math_kernels *k;
  int ndim; /* merged dims, at least 1 */
  int64_t shape[PERI_MAX_DIMS], dense[PERI_MAX_DIMS];
  side side[4];    /* inputs, then the output at nin */
  double value[3]; /* single elements, converted */
} walk;

static bool same_shape (const peri_tensor *a, const peri_tensor *b) {
  if (a->ndim != b->ndim) return false;
  for (int i = 0; i < a->ndim; i++)
    if (a->shape[i] != b->shape[i]) return false;
  return true;
}

/* ---- dense ---- */

typedef struct dense {
  const peri__loop *l;
  const char *in[3];
  int64_t step[3];
  size_t size[3], out_size;
  char *out;
} dense;

static void dense_range (void *ud, int64_t begin, int64_t end, int worker) {
  const dense *d = ud;
  const void *in[3];
  (void)worker;
  for (int i = 0; i < d->l->nin; i++) in[i] = d->in[i] + (size_t)(begin * d->step[i]) * d->size[i];
  d->l->fn(end - begin, in, d->step, d->out + (size_t)begin * d->out_size, d->l->p);
}

/* ---- anything else ---- */

typedef struct place {
  int64_t at[PERI_MAX_DIMS];
} place;

static place place_of (const walk *w, int64_t flat) {
  place p;
  for (int i = w->ndim - 1; i >= 0; i--) {
    p.at[i] = flat % w->shape[i];
    flat /= w->shape[i];
  }
  return p;
}

static void advance (const walk *w, place *p, int64_t n) { /* n stays inside the last dim */
  int i = w->ndim - 1;
  p->at[i] += n;
  for (; i > 0 && p->at[i] == w->shape[i]; i--) {
    p->at[i] = 0;
    p->at[i - 1]++;
  }
}

static char *address (const walk *w, const side *s, const place *p) {
  int64_t off = 0;
  for (int i = 0; i < w->ndim; i++) off += p->at[i] * s->stride[i];
  return s->data + off * (int64_t)s->size;
}

/* n elements from place p on, run by run, between buf and the tensor. */
static void gather (const walk *w, const side *s, place p, int64_t n, char *buf) {
  size_t size = peri_dtype_size((peri_dtype)s->type);
  int last = w->ndim - 1;
  if (s->periodic && n > w->shape[last] && p.at[last] == 0) { /* one run, then doubled */
    int64_t have = w->shape[last];
    peri__load(w->k, s->type, buf, s->dtype, s->data, s->stride[last], have);
    for (; have < n; have *= 2)
      memcpy(buf + (size_t)have * size, buf, (size_t)(n - have < have ? n - have : have) * size);
    return;
  }
  while (n > 0) {
    int64_t m = w->shape[last] - p.at[last];
    if (m > n) m = n;
    peri__load(w->k, s->type, buf, s->dtype, address(w, s, &p), s->stride[last], m);
    buf += (size_t)m * size;
    n -= m;
    advance(w, &p, m);
  }
}
static void scatter (const walk *w, const side *s, place p, int64_t n, const char *buf) {
  size_t size = peri_dtype_size((peri_dtype)s->type);
  int last = w->ndim - 1;
  while (n > 0) {
    int64_t m = w->shape[last] - p.at[last];
    if (m > n) m = n;
    peri__store(w->k, s->dtype, address(w, s, &p), s->stride[last], s->type, buf, m);
    buf += (size_t)m * size;
    n -= m;
    advance(w, &p, m);
  }
}

static void walk_range (void *ud, int64_t begin, int64_t end, int worker) {
  const walk *w = ud;
  const peri__loop *l = w->l;
  const side *out = &w->side[l->nin];
  int last = w->ndim - 1;
  place p = place_of(w, begin);
  int64_t buffer[4][BLOCK], filled[3] = { 0, 0, 0 }; /* of periodic inputs, from a run's begin */
  (void)worker;
  while (begin < end) {
    const void *in[3];
    int64_t step[3], n = end - begin < BLOCK ? end - begin : BLOCK;
    int64_t run = w->shape[last] - p.at[last];
    bool whole = run >= RUN || w->ndim == 1; /* stay in this run: unit strides are read in place */
    if (whole && n > run) n = run;
    if (!whole && n > run) n = p.at[last] ? run : n / run * run;
    for (int i = 0; i < l->nin; i++) {
      const side *s = &w->side[i];
      int64_t unit = s->stride[last];
      step[i] = 1;
      if (s->constant) {
        in[i] = s->data;
        step[i] = 0;
      } else if (s->linear || (whole && s->dtype == s->type && (unit == 1 || unit == 0))) {
        in[i] = address(w, s, &p);
        if (!s->linear) step[i] = unit;
      } else {
        in[i] = buffer[i];
        if (filled[i] >= n && p.at[last] == 0) continue;
        gather(w, s, p, n, (char *)buffer[i]);
        filled[i] = s->periodic && !whole && p.at[last] == 0 ? n : 0;
      }
    }
    if (out->linear || (whole && out->dtype == out->type && out->stride[last] == 1)) {
      l->fn(n, in, step, address(w, out, &p), l->p);
    } else {
      l->fn(n, in, step, buffer[3], l->p);
      scatter(w, out, p, n, (const char *)buffer[3]);
    }
    begin += n;
    if (whole)
      advance(w, &p, n);
    else
      p = place_of(w, begin);
  }
}

/* Drop dims of one and merge neighbours that every operand walks as one. */
static void merge_dims (walk *w, int nside, const peri_tensor *out, peri_tensor *const *in) {
  int n = 0;
  for (int i = 0; i < out->ndim; i++) {
    if (out->shape[i] == 1) continue;
    int64_t stride[4];
    bool merge = n > 0;
    for (int k = 0; k < nside; k++) {
      stride[k] = k == nside - 1 ? out->stride[i] : peri__bstride(in[k], out->ndim, i);
      merge = merge && w->side[k].stride[n - 1] == stride[k] * out->shape[i];
    }
    if (!merge) w->shape[n++] = 1;
    w->shape[n - 1] *= out->shape[i];
    for (int k = 0; k < nside; k++) w->side[k].stride[n - 1] = stride[k];
  }
  if (n == 0) {
    w->shape[n++] = 1;
    for (int k = 0; k < nside; k++) w->side[k].stride[0] = 1;
  }
  w->ndim = n;
  peri__dense_strides(n, w->shape, w->dense);
}

static void walk_all (peri_ctx *ctx, const peri__loop *l, peri_tensor *const *in,
                      peri_tensor *out) {
  walk w = { .l = l, .k = ctx->cpu->math };
  merge_dims(&w, l->nin + 1, out, in);
  for (int i = 0; i <= l->nin; i++) {
    const peri_tensor *t = i < l->nin ? in[i] : out;
    side *s = &w.side[i];
    s->data = t->data;
    s->dtype = t->dtype;
    s->type = i < l->nin ? l->in_type[i] : l->out_type;
    s->size = peri__size(t);
    s->periodic = true;
    for (int d = 0; d < w.ndim - 1; d++) s->periodic = s->periodic && s->stride[d] == 0;
    s->linear =
        s->dtype == s->type && memcmp(s->stride, w.dense, (size_t)w.ndim * sizeof *w.dense) == 0;
    if (i < l->nin && t->numel == 1) {
      peri__load(w.k, s->type, &w.value[i], s->dtype, t->data, 1, 1);
      s->data = (char *)&w.value[i];
      s->constant = true;
    }
  }
  peri__parallel(ctx, out->numel, l->grain, walk_range, &w);
}

/* The dim that lies along the memory, when it is not the last; else -1. */
static int unit_dim (const peri_tensor *t) {
  int last = t->ndim - 1, unit = -1;
  if (last < 1 || t->stride[last] == 1 || t->shape[last] < 4) return -1;
  for (int i = 0; i < last; i++)
    if (t->stride[i] == 1 && t->shape[i] >= 4) unit = i;
  return unit;
}

/* A big input that runs across its memory is read through a dense copy: copies are tiled. */
static bool crosswise (const peri_tensor *t, int64_t n) {
  return t->numel == n && n >= 4096 && t->ndim > 1 && t->stride[t->ndim - 1] > 8 &&
         t->shape[t->ndim - 1] > 1 && unit_dim(t) >= 0;
}

static peri_status walk_copies (peri_ctx *ctx, const peri__loop *l, peri_tensor *const *in,
                                peri_tensor *out) {
  peri_tensor *use[3];
  peri_status s = PERI_OK;
  int made = 0;
  for (; made < l->nin && s == PERI_OK; made++) {
    use[made] = NULL;
    if (in[made] != out && crosswise(in[made], out->numel))
      s = peri__contiguous(in[made], &use[made]);
    else
      use[made] = peri_retain(in[made]);
  }
  if (s == PERI_OK) walk_all(ctx, l, use, out);
  while (made > 0) peri_release(use[--made]);
  return s;
}

peri_status peri__elementwise (peri_ctx *ctx, const peri__loop *l, peri_tensor *const *in,
                               peri_tensor *out) {
  dense d;
  double value[3];
  int64_t n = out->numel;
  if (n == 0) return PERI_OK;
  d.l = l;
  d.out = out->data;
  d.out_size = peri__size(out);
  bool good = out->dtype == l->out_type && peri__dense(out), copy = false;
  for (int i = 0; i < l->nin; i++) {
    const peri_tensor *t = in[i];
    d.in[i] = t->data;
    d.step[i] = 1;
    if (t->numel == n && t->dtype == l->in_type[i] && peri__dense(t)) {
      d.size[i] = peri__size(t);
    } else if (t->numel == 1) {
      peri__load(ctx->cpu->math, l->in_type[i], &value[i], t->dtype, t->data, 1, 1);
      d.in[i] = (const char *)&value[i];
      d.step[i] = 0;
      d.size[i] = 0;
    } else {
      good = false;
      copy = copy || (t != out && crosswise(t, n));
    }
  }
  if (!good && copy) return walk_copies(ctx, l, in, out);
  if (!good)
    walk_all(ctx, l, in, out);
  else if (n <= l->grain)
    dense_range(&d, 0, n, 0);
  else
    peri__parallel(ctx, n, l->grain, dense_range, &d);
  return PERI_OK;
}

peri_status peri__infer_broadcast (peri_call *c, int n, int d) {
  int ndim = c->in[0]->ndim;
  int64_t shape[PERI_MAX_DIMS];
  bool same = true;
  for (int i = 1; i < n && same; i++) same = c->in[i]->ndim == 0 || same_shape(c->in[0], c->in[i]);
  if (same) return peri__new(c->ctx, (peri_dtype)d, ndim, c->in[0]->shape, &c->out[0]);
  TRY(peri__broadcast(c->ctx, c->in[0], c->in[1], &ndim, shape));
  if (n == 3) {
    peri_tensor partial = { .ndim = (uint8_t)ndim };
    memcpy(partial.shape, shape, (size_t)ndim * sizeof *shape);
    TRY(peri__broadcast(c->ctx, &partial, c->in[2], &ndim, shape));
  }
  return peri__new(c->ctx, (peri_dtype)d, ndim, shape, &c->out[0]);
}

/* ---- copies: contiguous, clone, to, copy_, fill_ ---- */

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
                   .j = unit_dim(src),
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
    if (same_shape(src, dst) && peri__dense(dst)) {
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
  if (good && !same_shape(dst, src)) {
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
