/*
** shape.c - ops that put elements into a new arrangement: cat, stack, pad, tile,
** repeat_interleave, roll, tril, triu, diag_embed, diag. They move elements by size, so that every
** dtype works and NaNs keep their bits; none of them computes.
*/
#include <inttypes.h>
#include <string.h>

#include "op/move.h"

/* ---- cat, stack ---- */

/* Inputs begin at in[start] and share every size but, for cat, that of dim. */
static peri_status list_check (peri_call *c, int except) {
  int n = c->list[0].count;
  peri_tensor **in = c->in + c->list[0].start;
  char a[128], b[128];
  for (int i = 1; i < n; i++) {
    bool same = in[i]->ndim == in[0]->ndim;
    for (int d = 0; same && d < in[0]->ndim; d++)
      same = d == except || in[i]->shape[d] == in[0]->shape[d];
    if (!same)
      return peri__fail(c->ctx, PERI_ESHAPE, "tensor %s of the list is %s; the first is %s",
                        peri__nth(c->ctx, i), peri__shape_text(in[i], a, sizeof a),
                        peri__shape_text(in[0], b, sizeof b));
  }
  return PERI_OK;
}

static peri_status list_first (peri_call *c, peri_tensor **first) {
  if (c->list[0].count == 0) return peri__fail(c->ctx, PERI_EINVAL, "the list is empty");
  *first = c->in[c->list[0].start];
  return PERI_OK;
}

/* Copy every input into its part of out. of dim: where the parts follow one another; parts of
** stack have no such dim themselves. */
static peri_status list_copy (peri_call *c, int dim, bool stack) {
  peri_tensor *out = c->out[0];
  size_t size = peri__size(out);
  char *dst = out->data;
  for (int i = 0; i < c->list[0].count; i++) {
    peri_tensor *x = NULL;
    int64_t ds[PERI_MAX_DIMS];
    TRY(peri__cast(c->in[c->list[0].start + i], (peri_dtype)out->dtype, &x));
    for (int d = 0; d < x->ndim; d++) ds[d] = out->stride[stack && d >= dim ? d + 1 : d];
    peri__move(c->ctx, size, x->ndim, x->shape, dst, ds, x->data, x->stride);
    dst += (stack ? 1 : x->shape[dim]) * out->stride[dim] * (int64_t)size;
    peri_release(x);
  }
  return PERI_OK;
}

static peri_status cat_infer (peri_call *c) {
  peri_tensor *x = NULL, **in = c->in + c->list[0].start;
  int dim = 0;
  int64_t shape[PERI_MAX_DIMS];
  TRY(list_first(c, &x));
  TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim, &dim));
  TRY(list_check(c, dim));
  memcpy(shape, x->shape, sizeof shape);
  for (int i = 1; i < c->list[0].count; i++)
    if (__builtin_add_overflow(shape[dim], in[i]->shape[dim], &shape[dim]))
      return peri__fail(c->ctx, PERI_ESHAPE, "the sizes of dim %s add up to too much",
                        peri__nth(c->ctx, dim));
  return peri__new(c->ctx, peri__promote(c->list[0].count, in), x->ndim, shape, &c->out[0]);
}

static peri_status cat_cpu (peri_call *c) {
  int dim = 0;
  TRY(peri__dim(c->ctx, c->attr[0].i, c->out[0]->ndim, &dim));
  return list_copy(c, dim, false);
}

static void cat_vjp (peri_vjp *v) {
  const peri_call *c = v->c;
  int64_t dim = c->attr[0].i, at = 0;
  for (int i = 0; i < c->list[0].count; i++) {
    const peri_tensor *x = c->in[c->list[0].start + i];
    int64_t size = x->shape[dim < 0 ? dim + x->ndim : dim];
    if (v->need[c->list[0].start + i])
      v->gin[c->list[0].start + i] =
          BA(&v->b, narrow, ATTR(A_INT(dim), A_INT(at), A_INT(size)), v->g[0]);
    at += size;
  }
}

OP(cat, .sig = "xs:tensors, dim:dim=0", .flags = PERI_OP_STRIDED,
   .doc = "Tensors joined along an existing dim; the other sizes are equal.", .infer = cat_infer,
   .cpu = cat_cpu, .unread = 1, .vjp = cat_vjp,
   TESTS(.variants = { "shape=2,3; xs2.shape=2,1; attr dim=2" },
         .refuses = { "xs1.shape=2,3; xs2.shape=2,4; attr dim=1 => (2, 3) | (2, 4)",
                      "xs.count=0 => empty" }));

static peri_status stack_infer (peri_call *c) {
  peri_tensor *x = NULL;
  int dim = 0;
  int64_t shape[PERI_MAX_DIMS];
  TRY(list_first(c, &x));
  if (x->ndim == PERI_MAX_DIMS)
    return peri__fail(c->ctx, PERI_ESHAPE, "the tensors have %d dims already", x->ndim);
  TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim + 1, &dim));
  TRY(list_check(c, -1));
  for (int i = 0; i <= x->ndim; i++)
    shape[i] = i == dim ? c->list[0].count : x->shape[i < dim ? i : i - 1];
  return peri__new(c->ctx, peri__promote(c->list[0].count, c->in + c->list[0].start), x->ndim + 1,
                   shape, &c->out[0]);
}

static peri_status stack_cpu (peri_call *c) {
  int dim = 0;
  TRY(peri__dim(c->ctx, c->attr[0].i, c->out[0]->ndim, &dim));
  return list_copy(c, dim, true);
}

static void stack_vjp (peri_vjp *v) {
  for (int i = 0; i < v->c->list[0].count; i++) {
    int at = v->c->list[0].start + i;
    if (v->need[at])
      v->gin[at] = BA(&v->b, select, ATTR(A_INT(v->c->attr[0].i), A_INT(i)), v->g[0]);
  }
}

OP(stack, .sig = "xs:tensors, dim:dim=0", .flags = PERI_OP_STRIDED,
   .doc = "Tensors of one shape joined along a new dim; dim is its number in the result.",
   .infer = stack_infer, .cpu = stack_cpu, .unread = 1, .vjp = stack_vjp,
   TESTS(.variants = { "attr dim=-1" }, .refuses = { "xs1.shape=2; xs2.shape=3 => (2) | (3)" }));

/* ---- pad ---- */

static peri_status pad_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  const peri_attr *a = &c->attr[0];
  int64_t shape[PERI_MAX_DIMS];
  char buf[128];
  if (a->n < 0 || a->n % 2 != 0 || a->n > 2 * x->ndim)
    return peri__fail(c->ctx, PERI_EINVAL,
                      "%d pads for a tensor of %d dims; wanted a pair for each dim, last dim first",
                      a->n, x->ndim);
  memcpy(shape, x->shape, sizeof shape);
  for (int i = 0; i < a->n; i++) {
    int d = x->ndim - 1 - i / 2;
    if (a->v[i] == INT64_MIN || __builtin_add_overflow(shape[d], a->v[i], &shape[d]) ||
        (i % 2 == 1 && shape[d] < 0))
      return peri__fail(c->ctx, PERI_EINVAL,
                        "pads %" PRId64 " and %" PRId64 " do not fit dim %s of %s", a->v[i & ~1],
                        a->v[i | 1], peri__nth(c->ctx, d), peri__shape_text(x, buf, sizeof buf));
  }
  return peri__new(c->ctx, (peri_dtype)x->dtype, x->ndim, shape, &c->out[0]);
}

static peri_status pad_cpu (peri_call *c) {
  peri_tensor *x = c->in[0], *out = c->out[0];
  const peri_attr *a = &c->attr[0];
  size_t size = peri__size(x);
  int64_t shape[PERI_MAX_DIMS], from = 0, to = 0, kept = 1;
  uint64_t value = 0;
  TRY(peri__element(c->ctx, x->dtype, &c->attr[1], &value));
  for (int d = 0; d < x->ndim; d++) { /* the part of x that stays; negative pads cut */
    int i = 2 * (x->ndim - 1 - d);
    int64_t before = i < a->n ? a->v[i] : 0, after = i < a->n ? a->v[i + 1] : 0;
    shape[d] = x->shape[d] + (before < 0 ? before : 0) + (after < 0 ? after : 0);
    if (shape[d] < 0) shape[d] = 0;
    if (before < 0)
      from += (before < -x->shape[d] ? x->shape[d] : -before) * x->stride[d];
    else
      to += (before > out->shape[d] ? out->shape[d] : before) * out->stride[d];
    kept *= shape[d];
  }
  if (kept < out->numel) peri__fill(c->ctx, size, out->data, out->numel, &value);
  if (kept > 0)
    peri__move(c->ctx, size, x->ndim, shape, (char *)out->data + to * (int64_t)size, out->stride,
               (char *)x->data + from * (int64_t)size, x->stride);
  return PERI_OK;
}

static void pad_vjp (peri_vjp *v) {
  const peri_attr *a = &v->c->attr[0];
  int64_t back[2 * PERI_MAX_DIMS];
  for (int i = 0; i < a->n; i++) back[i] = -a->v[i];
  v->gin[0] = BA(&v->b, pad, ATTR(A_DIMS(back, a->n), A_NUM(0)), v->g[0]);
}

OP(pad, .sig = "x, pads:ints, value:num=0", .flags = PERI_OP_STRIDED,
   .doc = "Adds value around x: pads is {before, after} of the last dim, then of the one before, "
          "...; negative pads cut.",
   .infer = pad_infer, .cpu = pad_cpu, .unread = 1, .vjp = pad_vjp,
   TESTS(.domain = "attr pads=1,2,0,-1", .variants = { "attr pads=2,1; attr value=3" },
         .refuses = { "x.shape=3; attr pads=1,1,1 => 3", "x.shape=3; attr pads=-4,0 => -4" }));

/* ---- tile, repeat_interleave ---- */

static peri_status tile_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  const peri_attr *a = &c->attr[0];
  int ndim = a->n > x->ndim ? a->n : x->ndim;
  int64_t shape[PERI_MAX_DIMS];
  if (ndim > PERI_MAX_DIMS)
    return peri__fail(c->ctx, PERI_ESHAPE, "%d counts given; at most %d are possible", a->n,
                      PERI_MAX_DIMS);
  for (int i = 0; i < ndim; i++) {
    int xi = i - (ndim - x->ndim), ci = i - (ndim - a->n);
    int64_t count = ci < 0 ? 1 : a->v[ci];
    if (count < 0 || __builtin_mul_overflow(xi < 0 ? 1 : x->shape[xi], count, &shape[i]))
      return peri__fail(c->ctx, PERI_EINVAL, "count %" PRId64 " of dim %s is out of range", count,
                        peri__nth(c->ctx, i));
  }
  return peri__new(c->ctx, (peri_dtype)x->dtype, ndim, shape, &c->out[0]);
}

/* Each dim of the result is seen as (count, size of x). */
static peri_status tile_cpu (peri_call *c) {
  peri_tensor *x = c->in[0], *out = c->out[0];
  int64_t shape[PERI_MOVE_DIMS], ds[PERI_MOVE_DIMS], ss[PERI_MOVE_DIMS];
  if (out->numel == 0) return PERI_OK;
  for (int i = 0; i < out->ndim; i++) {
    int xi = i - (out->ndim - x->ndim);
    int64_t size = xi < 0 ? 1 : x->shape[xi];
    shape[2 * i] = out->shape[i] / size;
    shape[2 * i + 1] = size;
    ds[2 * i] = out->stride[i] * size;
    ds[2 * i + 1] = out->stride[i];
    ss[2 * i] = 0;
    ss[2 * i + 1] = xi < 0 ? 0 : x->stride[xi];
  }
  peri__move(c->ctx, peri__size(x), 2 * out->ndim, shape, out->data, ds, x->data, ss);
  return PERI_OK;
}

/* The sum of g over the copies in one dim, which counts copies of size positions (or, inner, size
** positions of count copies each). */
static peri_tensor *sum_copies (peri_build *b, peri_tensor *g, int dim, int64_t size, int64_t count,
                                bool inner) {
  int64_t shape[PERI_MAX_DIMS], over = inner ? 2 : 1;
  int64_t split[4] = { 1, inner ? size : count, inner ? count : size, 1 };
  if (g == NULL || count == 1) return g;
  int ndim = g->ndim;
  for (int i = 0; i < ndim; i++) {
    shape[i] = i == dim ? size : g->shape[i];
    if (i != dim) split[i < dim ? 0 : 3] *= g->shape[i];
  }
  g = BA(b, reshape, ATTR(A_DIMS(split, 4)), g);
  g = BA(b, sum, ATTR(A_DIMS(&over, 1), A_INT(0)), g);
  return BA(b, reshape, ATTR(A_DIMS(shape, ndim)), g);
}

static void tile_vjp (peri_vjp *v) {
  const peri_tensor *x = v->c->in[0];
  const peri_attr *a = &v->c->attr[0];
  peri_tensor *g = v->g[0];
  int ndim = g->ndim;
  for (int i = 0; i < ndim; i++) {
    int xi = i - (ndim - x->ndim), ci = i - (ndim - a->n);
    g = sum_copies(&v->b, g, i, xi < 0 ? 1 : x->shape[xi], ci < 0 ? 1 : a->v[ci], false);
  }
  v->gin[0] = BA(&v->b, reshape, ATTR(A_DIMS(x->shape, x->ndim)), g);
}

OP(tile, .sig = "x, counts:ints", .flags = PERI_OP_STRIDED,
   .doc = "x repeated as a whole, counts[i] times along dim i: size n becomes counts[i] * n.",
   .infer = tile_infer, .cpu = tile_cpu, .unread = 1, .vjp = tile_vjp,
   TESTS(.domain = "attr counts=2,3", .variants = { "shape=3; attr counts=2,2" },
         .refuses = { "x.shape=3; attr counts=-1 => -1" }));

static peri_status repeat_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  int64_t shape[PERI_MAX_DIMS], n = c->attr[0].i;
  int dim = 0;
  TRY(peri__dim(c->ctx, c->attr[1].i, x->ndim, &dim));
  memcpy(shape, x->shape, sizeof shape);
  if (n < 0 || __builtin_mul_overflow(shape[dim], n, &shape[dim]))
    return peri__fail(c->ctx, PERI_EINVAL, "n = %" PRId64 " is out of range", n);
  return peri__new(c->ctx, (peri_dtype)x->dtype, x->ndim, shape, &c->out[0]);
}

static peri_status repeat_cpu (peri_call *c) {
  peri_tensor *x = c->in[0], *out = c->out[0];
  int64_t shape[PERI_MOVE_DIMS], ds[PERI_MOVE_DIMS], ss[PERI_MOVE_DIMS], count = c->attr[0].i;
  int dim = 0;
  TRY(peri__dim(c->ctx, c->attr[1].i, x->ndim, &dim));
  for (int i = 0, k = 0; i < x->ndim; i++, k++) {
    shape[k] = x->shape[i];
    ss[k] = x->stride[i];
    ds[k] = i == dim ? out->stride[i] * count : out->stride[i];
    if (i != dim) continue;
    shape[++k] = count;
    ss[k] = 0;
    ds[k] = out->stride[i];
  }
  peri__move(c->ctx, peri__size(x), x->ndim + 1, shape, out->data, ds, x->data, ss);
  return PERI_OK;
}

static void repeat_vjp (peri_vjp *v) {
  const peri_tensor *x = v->c->in[0];
  int64_t dim = v->c->attr[1].i;
  if (dim < 0) dim += x->ndim;
  v->gin[0] = sum_copies(&v->b, v->g[0], (int)dim, x->shape[dim], v->c->attr[0].i, true);
}

OP(repeat_interleave, .sig = "x, n:int, dim:dim", .flags = PERI_OP_STRIDED,
   .doc = "Each position of dim n times in a row: a b becomes a a b b for n = 2.",
   .infer = repeat_infer, .cpu = repeat_cpu, .unread = 1, .vjp = repeat_vjp,
   TESTS(.domain = "attr n=2; attr dim=1", .variants = { "attr n=3; attr dim=-1" },
         .refuses = { "x.shape=3; attr n=-1; attr dim=1 => -1" }));

/* ---- roll ---- */

static peri_status roll_infer (peri_call *c) {
  int dim = 0;
  TRY(peri__dim(c->ctx, c->attr[1].i, c->in[0]->ndim, &dim));
  return peri__new_like(c->in[0], (peri_dtype)c->in[0]->dtype, &c->out[0]);
}

static peri_status roll_cpu (peri_call *c) {
  peri_tensor *x = c->in[0], *out = c->out[0];
  int64_t size = (int64_t)peri__size(x), shape[PERI_MAX_DIMS];
  int dim = 0;
  TRY(peri__dim(c->ctx, c->attr[1].i, x->ndim, &dim));
  if (x->numel == 0) return PERI_OK;
  int64_t n = x->shape[dim], k = c->attr[0].i % n;
  if (k < 0) k += n;
  char *dst = out->data, *src = x->data;
  memcpy(shape, x->shape, sizeof shape);
  shape[dim] = n - k;
  peri__move(c->ctx, (size_t)size, x->ndim, shape, dst + k * out->stride[dim] * size, out->stride,
             src, x->stride);
  shape[dim] = k;
  peri__move(c->ctx, (size_t)size, x->ndim, shape, dst, out->stride,
             src + (n - k) * x->stride[dim] * size, x->stride);
  return PERI_OK;
}

static void roll_vjp (peri_vjp *v) {
  const peri_attr *a = v->c->attr;
  int64_t n = v->c->in[0]->shape[a[1].i < 0 ? a[1].i + v->c->in[0]->ndim : a[1].i];
  int64_t back = n > 0 ? -(a[0].i % n) : 0;
  v->gin[0] = BA(&v->b, roll, ATTR(A_INT(back), A_INT(a[1].i)), v->g[0]);
}

OP(roll, .sig = "x, shift:int, dim:dim", .flags = PERI_OP_STRIDED,
   .doc = "Position i of dim moves to i + shift; what falls off one end comes in at the other.",
   .infer = roll_infer, .cpu = roll_cpu, .unread = 1, .vjp = roll_vjp,
   TESTS(.domain = "attr shift=1; attr dim=2",
         .variants = { "shape=4,2; attr shift=-3; attr dim=1" },
         .refuses = { "x.shape=3; attr shift=1; attr dim=2 => 2 | 1" }));

/* ---- tril, triu, diag_embed, diag ---- */

static peri_status matrix_infer (peri_call *c) {
  if (c->in[0]->ndim < 2)
    return peri__fail(c->ctx, PERI_ESHAPE, "x has %d dims; wanted matrices in the last two",
                      c->in[0]->ndim);
  return peri__infer_same(c);
}

typedef struct triangle {
  size_t size;
  const char *src;
  char *dst;
  int64_t rows, cols, k;
  bool upper;
} triangle;

static void triangle_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const triangle *t = ud;
  (void)worker;
  int64_t size = (int64_t)t->size;
  for (int64_t r = begin; r < end; r++) {
    int64_t i = r % t->rows, cut = 0; /* columns left of cut are the lower part */
    if (!__builtin_add_overflow(i, t->k, &cut) && !t->upper) cut++;
    cut = cut < 0 ? 0 : cut > t->cols ? t->cols : cut;
    const char *s = t->src + r * t->cols * size;
    char *d = t->dst + r * t->cols * size, *middle = d + cut * size;
    size_t left = (size_t)(cut * size), right = (size_t)((t->cols - cut) * size);
    if (t->upper) {
      memset(d, 0, left);
      memcpy(middle, s + left, right);
    } else {
      memcpy(d, s, left);
      memset(middle, 0, right);
    }
  }
}

static peri_status triangle_cpu (peri_call *c, bool upper) {
  peri_tensor *x = c->in[0];
  if (x->numel == 0) return PERI_OK;
  int64_t rows = x->shape[x->ndim - 2], cols = x->shape[x->ndim - 1], k = c->attr[0].i;
  k = k < -rows ? -rows - 1 : k > cols ? cols + 1 : k; /* further out changes nothing */
  triangle t = { peri__size(x), x->data, c->out[0]->data, rows, cols, k, upper };
  peri__parallel(c->ctx, x->numel / cols, 32768 / cols + 1, triangle_rows, &t);
  return PERI_OK;
}

static peri_status tril_cpu (peri_call *c) { return triangle_cpu(c, false); }
static peri_status triu_cpu (peri_call *c) { return triangle_cpu(c, true); }
static void tril_vjp (peri_vjp *v) { v->gin[0] = BA(&v->b, tril, v->c->attr, v->g[0]); }
static void triu_vjp (peri_vjp *v) { v->gin[0] = BA(&v->b, triu, v->c->attr, v->g[0]); }

OP(tril, .sig = "x, k:int=0",
   .doc = "x with zeros above the k-th diagonal of the last two dims, (..., n, m).",
   .infer = matrix_infer, .cpu = tril_cpu, .unread = 1, .vjp = tril_vjp,
   TESTS(.variants = { "shape=2,3,4; attr k=-1" }, .refuses = { "x.shape=3 => 1" }));
OP(triu, .sig = "x, k:int=0",
   .doc = "x with zeros below the k-th diagonal of the last two dims, (..., n, m).",
   .infer = matrix_infer, .cpu = triu_cpu, .unread = 1, .vjp = triu_vjp,
   TESTS(.variants = { "shape=2,3,4; attr k=1" }, .refuses = { "x.shape=3 => 1" }));

static peri_status diag_embed_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  int64_t shape[PERI_MAX_DIMS], k = c->attr[0].i;
  if (x->ndim < 1 || x->ndim == PERI_MAX_DIMS)
    return peri__fail(c->ctx, PERI_ESHAPE, "x has %d dims; wanted 1 to %d", x->ndim,
                      PERI_MAX_DIMS - 1);
  if (k < -INT32_MAX || k > INT32_MAX)
    return peri__fail(c->ctx, PERI_EINVAL, "diagonal %" PRId64 " is out of range", k);
  memcpy(shape, x->shape, sizeof shape);
  shape[x->ndim] = shape[x->ndim - 1] += k < 0 ? -k : k;
  return peri__new(c->ctx, (peri_dtype)x->dtype, x->ndim + 1, shape, &c->out[0]);
}

static peri_status diag_embed_cpu (peri_call *c) {
  peri_tensor *x = c->in[0], *out = c->out[0];
  int64_t ds[PERI_MAX_DIMS], k = c->attr[0].i, size = (int64_t)peri__size(x);
  uint64_t zero = 0;
  peri__fill(c->ctx, (size_t)size, out->data, out->numel, &zero);
  memcpy(ds, out->stride, sizeof ds);
  ds[x->ndim - 1] = out->stride[x->ndim - 1] + 1;
  int64_t offset = k < 0 ? -k * out->stride[x->ndim - 1] : k;
  if (x->numel > 0)
    peri__move(c->ctx, (size_t)size, x->ndim, x->shape, (char *)out->data + offset * size, ds,
               x->data, x->stride);
  return PERI_OK;
}

static void diag_embed_vjp (peri_vjp *v) { v->gin[0] = BA(&v->b, diagonal, v->c->attr, v->g[0]); }

OP(diag_embed, .sig = "x, k:int=0", .flags = PERI_OP_STRIDED,
   .doc =
       "Square matrices of zeros with x on the k-th diagonal, (..., n) -> (..., n + |k|, n + |k|).",
   .infer = diag_embed_infer, .cpu = diag_embed_cpu, .vjp = diag_embed_vjp,
   TESTS(.variants = { "shape=2,3; attr k=-2" }, .large = "shape=300",
         .refuses = { "x.shape=(); x=f32[1.5] => 0" }));

static void diag_compose (peri_build *b, peri_call *c) {
  int ndim = c->in[0]->ndim;
  if (ndim == 1)
    c->out[0] = BA(b, diag_embed, c->attr, c->in[0]);
  else if (ndim == 2)
    c->out[0] = BA(b, diagonal, c->attr, c->in[0]);
  else
    peri__build_fail(b, peri__fail(c->ctx, PERI_ESHAPE, "x has %d dims; wanted 1 or 2", ndim));
}

OP(diag, .sig = "x, k:int=0",
   .doc = "A matrix with the vector x on its k-th diagonal, or the k-th diagonal of the matrix x "
          "(a view).",
   .compose = diag_compose,
   TESTS(.variants = { "shape=3; attr k=1", "shape=3,4; attr k=-1" }, .large = "shape=300",
         .refuses = { "x.shape=2,2,2 => 3" }));
