/*
** view.c - ops that return a view of their input: reshape, transpose, permute, narrow, select,
** expand, squeeze, unsqueeze, flatten, flip, diagonal. No element is read or written here, except
** that reshape and flatten copy first where strides cannot express the result.
*/
#include <inttypes.h>

#include "op/move.h"

/* A view of in[0] that begins at element offset. */
static peri_status make_view (peri_call *c, int64_t offset, int ndim, const int64_t *shape,
                              const int64_t *stride) {
  return peri__view(c->in[0], offset, ndim, shape, stride, &c->out[0]);
}

/* gin of every op here that only renames dims: the gradient in the input's shape. */
static void reshape_vjp (peri_vjp *v) {
  const peri_tensor *x = v->c->in[0];
  v->gin[0] = BA(&v->b, reshape, ATTR(A_DIMS(x->shape, x->ndim)), v->g[0]);
}

/* ---- reshape, flatten ---- */

/* Strides of x seen as shape (of equal numel); false where only a copy helps. Dims of x that walk
** as one form a chunk; each chunk has to be cut into whole dims of the result. */
static bool view_strides (const peri_tensor *x, int ndim, const int64_t *shape, int64_t *stride) {
  if (x->numel == 0 || x->ndim == 0) {
    peri__dense_strides(ndim, shape, stride);
    return true;
  }
  int to = ndim - 1;
  int64_t base = x->stride[x->ndim - 1], have = 1, want = 1;
  for (int i = x->ndim - 1; i >= 0; i--) {
    have *= x->shape[i];
    if (i > 0 && (x->shape[i - 1] == 1 || x->stride[i - 1] == have * base)) continue;
    while (to >= 0 && (want < have || shape[to] == 1)) {
      stride[to] = want * base;
      want *= shape[to--];
    }
    if (want != have) return false;
    if (i > 0) {
      base = x->stride[i - 1];
      have = want = 1;
    }
  }
  return to == -1;
}

static peri_status view_or_copy (peri_call *c, int ndim, const int64_t *shape) {
  peri_tensor *x = c->in[0], *dense = NULL;
  int64_t stride[PERI_MAX_DIMS], numel;
  size_t bytes;
  TRY(peri__check_shape(c->ctx, (peri_dtype)x->dtype, ndim, shape, &numel, &bytes));
  if (view_strides(x, ndim, shape, stride)) return make_view(c, 0, ndim, shape, stride);
  TRY(peri__contiguous(x, &dense));
  peri__dense_strides(ndim, shape, stride);
  peri_status s = peri__view(dense, 0, ndim, shape, stride, &c->out[0]);
  peri_release(dense);
  return s;
}

static peri_status reshape_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  const peri_attr *a = &c->attr[0];
  int64_t shape[PERI_MAX_DIMS], known = 1;
  int hole = -1;
  char from[128], to[256];
  if (a->n > PERI_MAX_DIMS)
    return peri__fail(c->ctx, PERI_ESHAPE, "%d dims given; at most %d are possible", a->n,
                      PERI_MAX_DIMS);
  bool good = true;
  for (int i = 0; i < a->n; i++) {
    shape[i] = a->v[i];
    if (shape[i] == -1 && hole < 0) {
      hole = i;
    } else if (shape[i] < 0 || __builtin_mul_overflow(known, shape[i], &known)) {
      good = false;
      break;
    }
  }
  if (good && hole >= 0) {
    good = known > 0 && x->numel % known == 0;
    if (good) shape[hole] = x->numel / known;
  } else {
    good = good && known == x->numel;
  }
  if (!good)
    return peri__fail(c->ctx, PERI_ESHAPE, "%s has %" PRId64 " elements and cannot become %s",
                      peri__shape_text(x, from, sizeof from), x->numel,
                      peri__sizes_text(a->n, a->v, to, sizeof to));
  return view_or_copy(c, a->n, shape);
}

OP(reshape, .sig = "x, shape:shape", .flags = PERI_OP_VIEW | PERI_OP_STRIDED,
   .doc = "The same elements in another shape; one size may be -1. A view where strides permit, "
          "else a copy.",
   .infer = reshape_infer, .vjp = reshape_vjp,
   TESTS(.domain = "attr shape=3,-1", .large = "shape=128,300; attr shape=3,-1",
         .refuses = { "x.shape=2,3; attr shape=4 => (2, 3) | (4)",
                      "x.shape=2,3; attr shape=-1,-1 => -1" }));

static peri_status flatten_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  int first = 0, last = 0, n = 0;
  int64_t shape[PERI_MAX_DIMS], one = 1;
  if (x->ndim == 0) return make_view(c, 0, 1, &one, &one);
  TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim, &first));
  TRY(peri__dim(c->ctx, c->attr[1].i, x->ndim, &last));
  if (first > last)
    return peri__fail(c->ctx, PERI_EINVAL, "the first dim lies %d after the last", first - last);
  for (int i = 0; i < x->ndim; i++) {
    if (i > first && i <= last)
      shape[n - 1] *= x->shape[i];
    else
      shape[n++] = x->shape[i];
  }
  return view_or_copy(c, n, shape);
}

OP(flatten, .sig = "x, first:dim=0, last:dim=-1", .flags = PERI_OP_VIEW | PERI_OP_STRIDED,
   .doc = "Dims first to last become one, (..., a, b, c) -> (..., a*b*c); 0-dim becomes (1).",
   .infer = flatten_infer, .vjp = reshape_vjp,
   TESTS(.domain = "shape=2,3,2", .variants = { "shape=2,3,2; attr first=2; attr last=3" },
         .large = "shape=20,30,40",
         .refuses = { "x.shape=2,3; attr first=1; attr last=3 => 3 | 2" }));

/* ---- transpose, permute ---- */

static peri_status transpose_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  int a = 0, b = 0;
  int64_t shape[PERI_MAX_DIMS], stride[PERI_MAX_DIMS];
  if (x->ndim < 2 && c->attr[0].i == -2 && c->attr[1].i == -1) /* a vector is its own transpose */
    return make_view(c, 0, x->ndim, x->shape, x->stride);
  TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim, &a));
  TRY(peri__dim(c->ctx, c->attr[1].i, x->ndim, &b));
  for (int i = 0; i < x->ndim; i++) {
    int from = i == a ? b : i == b ? a : i;
    shape[i] = x->shape[from];
    stride[i] = x->stride[from];
  }
  return make_view(c, 0, x->ndim, shape, stride);
}

static void transpose_vjp (peri_vjp *v) { v->gin[0] = BA(&v->b, transpose, v->c->attr, v->g[0]); }

OP(transpose, .sig = "x, dim0:dim=-2, dim1:dim=-1", .flags = PERI_OP_VIEW | PERI_OP_STRIDED,
   .doc = "A view with two dims exchanged, by default the last two; fewer than two dims stay.",
   .infer = transpose_infer, .vjp = transpose_vjp,
   TESTS(.variants = { "shape=2,3,4; attr dim0=1; attr dim1=3" },
         .refuses = { "x.shape=2,3; attr dim0=1; attr dim1=3 => 3 | 2" }));

static peri_status permute_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  const peri_attr *a = &c->attr[0];
  int64_t shape[PERI_MAX_DIMS], stride[PERI_MAX_DIMS];
  bool seen[PERI_MAX_DIMS] = { false };
  if (a->n != x->ndim)
    return peri__fail(c->ctx, PERI_ESHAPE, "%d dims given for a tensor of %d", a->n, x->ndim);
  for (int i = 0; i < a->n; i++) {
    int d = 0;
    TRY(peri__dim(c->ctx, a->v[i], x->ndim, &d));
    if (seen[d])
      return peri__fail(c->ctx, PERI_EINVAL, "entry %s of dims repeats a dim",
                        peri__nth(c->ctx, i));
    seen[d] = true;
    shape[i] = x->shape[d];
    stride[i] = x->stride[d];
  }
  return make_view(c, 0, x->ndim, shape, stride);
}

static void permute_vjp (peri_vjp *v) {
  const peri_attr *a = &v->c->attr[0];
  int64_t back[PERI_MAX_DIMS];
  for (int i = 0; i < a->n; i++) back[a->v[i] < 0 ? a->v[i] + a->n : a->v[i]] = i;
  v->gin[0] = BA(&v->b, permute, ATTR(A_DIMS(back, a->n)), v->g[0]);
}

OP(permute, .sig = "x, dims:dims", .flags = PERI_OP_VIEW | PERI_OP_STRIDED,
   .doc = "A view with the dims in the given order: dim i of the result is dim dims[i] of x.",
   .infer = permute_infer, .vjp = permute_vjp,
   TESTS(.domain = "shape=2,3,2; attr dims=3,1,2", .large = "shape=20,30,40; attr dims=3,1,2",
         .refuses = { "x.shape=2,3; attr dims=1,1 => entry 2 | repeats",
                      "x.shape=2,3; attr dims=1 => 1 | 2" }));

/* ---- narrow, select ---- */

/* Zeros of in[0]'s shape with g at [start, start + size) of dim: the gradient of a slice. */
static peri_tensor *unslice (peri_vjp *v, peri_tensor *g, int dim, int64_t start, int64_t size) {
  const peri_tensor *x = v->c->in[0];
  int64_t pads[2 * PERI_MAX_DIMS] = { 0 };
  int last = 2 * (x->ndim - 1 - dim); /* pads count dims from the last */
  pads[last] = start;
  pads[last + 1] = x->shape[dim] - start - size;
  return BA(&v->b, pad, ATTR(A_DIMS(pads, last + 2), A_NUM(0)), g);
}

static peri_status narrow_place (const peri_call *c, int *dim, int64_t *start) {
  peri_tensor *x = c->in[0];
  int64_t length = c->attr[2].i;
  TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim, dim));
  int64_t size = x->shape[*dim];
  *start = c->attr[1].i < 0 ? c->attr[1].i + size : c->attr[1].i;
  if (length < 0 || *start < 0 || length > size || *start > size - length)
    return peri__fail(c->ctx, PERI_EINVAL,
                      "%" PRId64 " positions from %s on do not lie in a dim of %" PRId64, length,
                      peri__nth(c->ctx, c->attr[1].i), size);
  return PERI_OK;
}

static peri_status narrow_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  int dim = 0;
  int64_t start = 0, shape[PERI_MAX_DIMS];
  TRY(narrow_place(c, &dim, &start));
  for (int i = 0; i < x->ndim; i++) shape[i] = i == dim ? c->attr[2].i : x->shape[i];
  return make_view(c, start * x->stride[dim], x->ndim, shape, x->stride);
}

static void narrow_vjp (peri_vjp *v) {
  int dim = 0;
  int64_t start = 0;
  peri_status s = narrow_place(v->c, &dim, &start);
  if (s != PERI_OK)
    peri__build_fail(&v->b, s);
  else
    v->gin[0] = unslice(v, v->g[0], dim, start, v->c->attr[2].i);
}

OP(narrow, .sig = "x, dim:dim, start:pos, length:int", .flags = PERI_OP_VIEW | PERI_OP_STRIDED,
   .doc = "A view of length positions of one dim, from position start on.", .infer = narrow_infer,
   .vjp = narrow_vjp,
   TESTS(.domain = "attr dim=2; attr start=2; attr length=2",
         .variants = { "attr dim=1; attr start=-1; attr length=1" },
         .refuses = { "x.shape=2,3; attr dim=2; attr start=2; attr length=3 => 3",
                      "x.shape=2,3; attr dim=2; attr start=1; attr length=-1 => -1" }));

static peri_status select_place (const peri_call *c, int *dim, int64_t *at) {
  peri_tensor *x = c->in[0];
  TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim, dim));
  int64_t size = x->shape[*dim], i = c->attr[1].i;
  *at = i < 0 ? i + size : i;
  if (*at < 0 || *at >= size)
    return peri__fail(c->ctx, PERI_EINVAL, "position %s of a dim of %" PRId64, peri__nth(c->ctx, i),
                      size);
  return PERI_OK;
}

static peri_status select_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  int dim = 0, n = 0;
  int64_t at = 0, shape[PERI_MAX_DIMS], stride[PERI_MAX_DIMS];
  TRY(select_place(c, &dim, &at));
  for (int i = 0; i < x->ndim; i++) {
    if (i == dim) continue;
    shape[n] = x->shape[i];
    stride[n++] = x->stride[i];
  }
  return make_view(c, at * x->stride[dim], n, shape, stride);
}

static void select_vjp (peri_vjp *v) {
  int dim = 0;
  int64_t at = 0;
  peri_status s = select_place(v->c, &dim, &at);
  if (s != PERI_OK) {
    peri__build_fail(&v->b, s);
    return;
  }
  peri_tensor *g = BA(&v->b, unsqueeze, ATTR(A_INT(dim)), v->g[0]);
  v->gin[0] = unslice(v, g, dim, at, 1);
}

OP(select, .sig = "x, dim:dim, index:pos", .flags = PERI_OP_VIEW | PERI_OP_STRIDED,
   .doc = "A view of one position of a dim; the dim is dropped.", .infer = select_infer,
   .vjp = select_vjp,
   TESTS(.domain = "attr dim=1; attr index=-1", .variants = { "attr dim=2; attr index=2" },
         .refuses = { "x.shape=2,3; attr dim=2; attr index=4 => 4 | 3",
                      "x.shape=2,3; attr dim=2; attr index=-4 => -4 | 3",
                      "x.shape=2,3; attr dim=2; attr index=0 => 0 | from 1" }));

/* ---- expand ---- */

static peri_status expand_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  const peri_attr *a = &c->attr[0];
  int64_t shape[PERI_MAX_DIMS], stride[PERI_MAX_DIMS];
  int64_t numel = 0;
  size_t bytes = 0;
  char from[128], to[256];
  int lead = a->n - x->ndim;
  bool good = lead >= 0 && a->n <= PERI_MAX_DIMS;
  for (int i = 0; good && i < a->n; i++) {
    int64_t have = i < lead ? 1 : x->shape[i - lead];
    shape[i] = a->v[i] == -1 && i >= lead ? have : a->v[i];
    stride[i] = i < lead || (have == 1 && shape[i] != 1) ? 0 : x->stride[i - lead];
    good = shape[i] >= 0 && (have == 1 || shape[i] == have);
  }
  if (!good)
    return peri__fail(c->ctx, PERI_ESHAPE, "%s does not broadcast to %s",
                      peri__shape_text(x, from, sizeof from),
                      peri__sizes_text(a->n, a->v, to, sizeof to));
  TRY(peri__check_shape(c->ctx, (peri_dtype)x->dtype, a->n, shape, &numel, &bytes));
  return make_view(c, 0, a->n, shape, stride);
}

static void expand_vjp (peri_vjp *v) { v->gin[0] = v->g[0]; } /* the engine sums it back */

OP(expand, .sig = "x, shape:shape", .flags = PERI_OP_VIEW | PERI_OP_STRIDED,
   .doc = "A view in which dims of size 1 (and new leading dims) repeat; -1 keeps a size.",
   .infer = expand_infer, .vjp = expand_vjp,
   TESTS(.domain = "shape=2,1; attr shape=3,2,4", .large = "shape=128,1; attr shape=3,128,300",
         .refuses = { "x.shape=2,3; attr shape=4,3 => (2, 3) | (4, 3)" }));

/* ---- squeeze, unsqueeze ---- */

static peri_status squeeze_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  int64_t shape[PERI_MAX_DIMS], stride[PERI_MAX_DIMS];
  int dim = -1, n = 0;
  if (c->attr[0].i != INT64_MIN) TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim, &dim));
  for (int i = 0; i < x->ndim; i++) {
    if (x->shape[i] == 1 && (dim < 0 || dim == i)) continue;
    shape[n] = x->shape[i];
    stride[n++] = x->stride[i];
  }
  return make_view(c, 0, n, shape, stride);
}

OP(squeeze, .sig = "x, dim:dim=none", .flags = PERI_OP_VIEW | PERI_OP_STRIDED,
   .doc = "A view without the given dim where its size is 1, or without all dims of size 1.",
   .infer = squeeze_infer, .vjp = reshape_vjp,
   TESTS(.domain = "shape=2,1,3", .variants = { "shape=2,1,3; attr dim=2" },
         .large = "shape=128,1,300", .refuses = { "x.shape=2,1; attr dim=3 => 3 | 2" }));

static peri_status unsqueeze_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  int64_t shape[PERI_MAX_DIMS], stride[PERI_MAX_DIMS];
  int dim = 0;
  if (x->ndim == PERI_MAX_DIMS)
    return peri__fail(c->ctx, PERI_ESHAPE, "the tensor has %d dims already", x->ndim);
  TRY(peri__dim(c->ctx, c->attr[0].i, x->ndim + 1, &dim));
  for (int i = 0; i <= x->ndim; i++) {
    int from = i < dim ? i : i - 1;
    shape[i] = i == dim ? 1 : x->shape[from];
    stride[i] = i != dim ? x->stride[from] : i < x->ndim ? x->shape[i] * x->stride[i] : 1;
  }
  return make_view(c, 0, x->ndim + 1, shape, stride);
}

OP(unsqueeze, .sig = "x, dim:dim", .flags = PERI_OP_VIEW | PERI_OP_STRIDED,
   .doc = "A view with a new dim of size 1; dim is its number in the result.",
   .infer = unsqueeze_infer, .vjp = reshape_vjp,
   TESTS(.domain = "attr dim=2", .refuses = { "x.shape=2,1; attr dim=4 => 4 | 3" }));

/* ---- flip ---- */

static peri_status flip_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  bool flip[PERI_MAX_DIMS];
  int64_t stride[PERI_MAX_DIMS], offset = 0;
  TRY(peri__dims(c->ctx, &c->attr[0], x->ndim, flip));
  for (int i = 0; i < x->ndim; i++) {
    stride[i] = flip[i] ? -x->stride[i] : x->stride[i];
    if (flip[i]) offset += (x->shape[i] - 1) * x->stride[i];
  }
  return make_view(c, offset, x->ndim, x->shape, stride);
}

static void flip_vjp (peri_vjp *v) { v->gin[0] = BA(&v->b, flip, v->c->attr, v->g[0]); }

OP(flip, .sig = "x, dims:dims=all", .flags = PERI_OP_VIEW | PERI_OP_STRIDED,
   .doc = "A view that walks the given dims backwards.", .infer = flip_infer, .vjp = flip_vjp,
   TESTS(.variants = { "shape=2,3,2; attr dims=1,3" },
         .refuses = { "x.shape=2,1; attr dims=3 => 3 | 2" }));

/* ---- diagonal ---- */

static peri_status diagonal_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  int64_t k = c->attr[0].i, shape[PERI_MAX_DIMS], stride[PERI_MAX_DIMS];
  int n = x->ndim - 2;
  if (n < 0) return peri__fail(c->ctx, PERI_ESHAPE, "a diagonal needs 2 dims; x has %d", x->ndim);
  int64_t rows = x->shape[n], cols = x->shape[n + 1];
  if (k < -rows || k > cols)
    return peri__fail(c->ctx, PERI_EINVAL,
                      "diagonal %" PRId64 " of a matrix of %" PRId64 " x %" PRId64, k, rows, cols);
  for (int i = 0; i < n; i++) {
    shape[i] = x->shape[i];
    stride[i] = x->stride[i];
  }
  int64_t off = k < 0 ? -k : k, high = k < 0 ? rows - off : rows, wide = k > 0 ? cols - off : cols;
  shape[n] = high < wide ? high : wide;
  stride[n] = x->stride[n] + x->stride[n + 1];
  return make_view(c, shape[n] == 0 ? 0 : off * x->stride[k < 0 ? n : n + 1], n + 1, shape, stride);
}

static void diagonal_vjp (peri_vjp *v) {
  const peri_tensor *x = v->c->in[0], *g = v->g[0];
  int64_t k = v->c->attr[0].i, side = g->shape[g->ndim - 1] + (k < 0 ? -k : k);
  int64_t pads[4] = { 0, x->shape[x->ndim - 1] - side, 0, x->shape[x->ndim - 2] - side };
  peri_tensor *square = BA(&v->b, diag_embed, v->c->attr, v->g[0]);
  v->gin[0] = BA(&v->b, pad, ATTR(A_DIMS(pads, 4), A_NUM(0)), square);
}

OP(diagonal, .sig = "x, k:int=0", .flags = PERI_OP_VIEW | PERI_OP_STRIDED,
   .doc = "A view of the k-th diagonal of the last two dims, (..., n, m) -> (..., length); k > 0 "
          "lies above the main one.",
   .infer = diagonal_infer, .vjp = diagonal_vjp,
   TESTS(.variants = { "shape=2,3,4; attr k=1", "shape=3,2; attr k=-1" },
         .refuses = { "x.shape=3 => 1" }));
