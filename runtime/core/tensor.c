/* tensor.c - storages, tensors and views: making, sharing, releasing, reading. */
#include <stdio.h>
#include <string.h>

#include "core/core.h"
#include "core/element.h"
#include "op/op.h"

/* The one form of a shape in messages and prints: (2, 3), (3), (). ORDER shape text: options.shape in Lua. */
const char *peri__sizes_text (int n, const int64_t *v, char *buf, size_t size) {
  size_t at = (size_t)snprintf(buf, size, "(");
  for (int i = 0; i < n && at < size; i++)
    at += (size_t)snprintf(buf + at, size - at, i ? ", %lld" : "%lld", (long long)v[i]);
  if (at < size) snprintf(buf + at, size - at, ")");
  return buf;
}

const char *peri__shape_text (const peri_tensor *t, char *buf, size_t size) {
  return peri__sizes_text(t->ndim, t->shape, buf, size);
}

peri_status peri__check_shape (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                               int64_t *numel, size_t *bytes) {
  size_t block_bytes;
  int block = peri_dtype_block(d, &block_bytes);
  if (block_bytes == 0)
    return peri__fail(ctx, PERI_EDTYPE, "dtype number %d does not exist", (int)d);
  if (ndim < 0 || ndim > PERI_MAX_DIMS)
    return peri__fail(ctx, PERI_ESHAPE, "%d dims, at most %d are supported", ndim, PERI_MAX_DIMS);
  int64_t n = 1;
  bool zero = false;
  for (int i = 0; i < ndim; i++) {
    if (shape[i] < 0)
      return peri__fail(ctx, PERI_ESHAPE, "size %lld of dim %s is negative", (long long)shape[i],
                        peri__nth(ctx, i));
    if (shape[i] == 0)
      zero = true;
    else if (__builtin_mul_overflow(n, shape[i], &n))
      return peri__fail(ctx, PERI_ESHAPE, "the number of elements overflows at dim %s of size %lld",
                        peri__nth(ctx, i), (long long)shape[i]);
  }
  int64_t total;
  if (block > 1 && (ndim == 0 || shape[ndim - 1] % block != 0))
    return peri__fail(ctx, PERI_ESHAPE,
                      "%s has blocks of %d elements: the last dim, %lld, is no multiple",
                      peri_dtype_name(d), block, ndim ? (long long)shape[ndim - 1] : 0);
  if (__builtin_mul_overflow(n / block, (int64_t)block_bytes, &total))
    return peri__fail(ctx, PERI_ESHAPE, "%lld elements of %s overflow the size in bytes",
                      (long long)n, peri_dtype_name(d));
  *numel = zero ? 0 : n;
  *bytes = zero ? 0 : (size_t)total;
  return PERI_OK;
}

static void dense_strides (peri_tensor *t) {
  int64_t step = 1;
  for (int i = t->ndim - 1; i >= 0; i--) {
    t->stride[i] = step;
    step *= t->shape[i] > 1 ? t->shape[i] : 1;
  }
}

/* An unlinked tensor struct with everything but shape set to nothing. */
peri_tensor *peri__tensor_alloc (peri_ctx *ctx) {
  peri_tensor *t = peri__block_get(ctx, sizeof *t);
  if (!t) return NULL;
  memset(t, 0, offsetof(peri_tensor, shape));
  t->refs = 1;
  t->ctx = ctx;
  t->prev = NULL;
  t->next = ctx->tensors;
  if (t->next) t->next->prev = t;
  ctx->tensors = t;
  ctx->n_tensors++;
  return t;
}

static void storage_release (peri_storage *s) {
  if (!s || --s->refs > 0) return;
  if (s->common) {
    peri__leave(s);
    return;
  }
  peri_ctx *ctx = s->ctx;
  if (s->release)
    s->release(s->ud, s->data);
  else if (s->bytes)
    peri__block_put(ctx, s->data);
  if (!s->release) ctx->live -= s->bytes;
  peri__block_put(ctx, s);
}

void peri__tensor_free (peri_tensor *t) {
  peri_ctx *ctx = t->ctx;
  peri_tensor *grad = t->grad;
  t->ctx = NULL; /* what a second release of it sees */
  storage_release(t->storage);
  if (t->prev)
    t->prev->next = t->next;
  else
    ctx->tensors = t->next;
  if (t->next) t->next->prev = t->prev;
  ctx->n_tensors--;
  peri__block_put(ctx, t);
  peri_release(grad);
}

static void no_release (void *ud, void *data) {
  (void)ud;
  (void)data;
}

/* data NULL: allocate. Takes no tensor reference; the caller's t owns the storage. */
static peri_status no_tensor (peri_ctx *ctx) {
  return peri__fail(ctx, PERI_ENOMEM, "out of memory: %zu bytes for a tensor wanted, %zu in use",
                    sizeof(peri_tensor), ctx->live);
}

static peri_status storage_new (peri_ctx *ctx, size_t bytes, void *data,
                                void (*release)(void *ud, void *data), void *ud,
                                peri_storage **out) {
  peri__take_back(ctx);
  if (!release && ctx->max_bytes && (bytes > ctx->max_bytes || ctx->live > ctx->max_bytes - bytes))
    return peri__fail(ctx, PERI_ENOMEM,
                      "out of memory: %zu bytes wanted, %zu of the limit of %zu in use", bytes,
                      ctx->live, ctx->max_bytes);
  peri_storage *s = peri__block_get(ctx, sizeof *s);
  if (s && !release && bytes && !(data = peri__block_get(ctx, bytes))) {
    peri__block_put(ctx, s);
    s = NULL;
  }
  if (!s)
    return peri__fail(ctx, PERI_ENOMEM, "out of memory: %zu bytes wanted, %zu in use", bytes,
                      ctx->live);
  peri__storage_init(s, ctx, data, bytes);
  s->release = release;
  s->ud = ud;
  if (!release) {
    ctx->live += bytes;
    if (ctx->live > ctx->peak) ctx->peak = ctx->live;
  }
  *out = s;
  return PERI_OK;
}

static peri_status new_tensor (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                               int64_t numel, size_t bytes, peri_tensor **out) {
  peri_tensor *t = peri__tensor_alloc(ctx);
  if (!t) return no_tensor(ctx);
  if (!ctx->dry) { /* else nobody sees more of it than its shape and dtype */
    peri_status s = storage_new(ctx, bytes, NULL, NULL, NULL, &t->storage);
    if (s != PERI_OK) {
      peri__tensor_free(t);
      return s;
    }
    t->data = t->storage->data;
  }
  t->dtype = (uint8_t)d;
  t->ndim = (uint8_t)ndim;
  t->numel = numel;
  for (int i = 0; i < ndim; i++) t->shape[i] = shape[i];
  dense_strides(t);
  *out = t;
  return PERI_OK;
}

peri_status peri__new (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                       peri_tensor **out) {
  int64_t numel;
  size_t bytes;
  TRY(peri__check_shape(ctx, d, ndim, shape, &numel, &bytes));
  return new_tensor(ctx, d, ndim, shape, numel, bytes, out);
}

peri_status peri__new_packed (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                              size_t bytes, peri_tensor **out) {
  int64_t numel;
  size_t dense;
  TRY(peri__check_shape(ctx, d, ndim, shape, &numel, &dense));
  TRY(new_tensor(ctx, d, ndim, shape, numel, bytes, out));
  (*out)->storage->packed = true;
  return PERI_OK;
}

peri_status peri__new_like (const peri_tensor *t, peri_dtype d, peri_tensor **out) {
  return peri__new(t->ctx, d, t->ndim, t->shape, out);
}

/* Lowest and highest element that shape and stride reach, from 0; false: beyond int64. */
static bool extent (int ndim, const int64_t *shape, const int64_t *stride, int64_t *low,
                    int64_t *high) {
  *low = *high = 0;
  for (int i = 0; i < ndim; i++) {
    int64_t step;
    if (__builtin_mul_overflow(shape[i] - 1, stride[i], &step)) return false;
    int64_t *end = step < 0 ? low : high;
    if (__builtin_add_overflow(*end, step, end)) return false;
  }
  return true;
}

/* Does a view of numel > 0 elements, offset elements after base's first, lie in its storage? */
static bool lies_inside (const peri_tensor *base, peri_dtype d, int64_t offset, size_t bytes,
                         int ndim, const int64_t *shape, const int64_t *stride) {
  const peri_storage *s = base->storage;
  int64_t size = (int64_t)peri_dtype_size(d), first = (const char *)base->data - s->low, low, high;
  if (size == 0 || s->packed) /* no strides apply: all of it from its first block on */
    return offset == 0 && (s->packed || bytes <= s->room - (size_t)first);
  if (!extent(ndim, shape, stride, &low, &high)) return false;
  if (__builtin_add_overflow(low, offset, &low) || __builtin_add_overflow(high, offset, &high) ||
      __builtin_add_overflow(high, 1, &high) || __builtin_mul_overflow(low, size, &low) ||
      __builtin_mul_overflow(high, size, &high) || __builtin_add_overflow(low, first, &low) ||
      __builtin_add_overflow(high, first, &high))
    return false;
  return low >= 0 && (uint64_t)high <= s->room;
}

static peri_status view (peri_tensor *base, peri_dtype d, int64_t offset, int ndim,
                         const int64_t *shape, const int64_t *stride, peri_tensor **out) {
  peri_ctx *ctx = base->ctx;
  int64_t numel;
  size_t bytes;
  TRY(peri__check_shape(ctx, d, ndim, shape, &numel, &bytes));
  if (numel > 0 && !lies_inside(base, d, offset, bytes, ndim, shape, stride))
    return peri__fail(ctx, PERI_ESHAPE, "the view would reach beyond its storage");
  peri_tensor *t = peri__tensor_alloc(ctx);
  if (!t) return peri__fail(ctx, PERI_ENOMEM, "out of memory for a view");
  t->dtype = (uint8_t)d;
  t->ndim = (uint8_t)ndim;
  t->data = base->data;
  t->storage = base->storage;
  t->storage->refs++;
  t->numel = numel;
  for (int i = 0; i < ndim; i++) t->shape[i] = shape[i];
  if (numel > 0) {
    if (offset != 0) t->data = (char *)base->data + offset * (int64_t)peri_dtype_size(d);
    for (int i = 0; i < ndim; i++) t->stride[i] = stride[i];
  } else
    dense_strides(t);
  *out = t;
  return PERI_OK;
}

peri_status peri__view (peri_tensor *base, int64_t offset, int ndim, const int64_t *shape,
                        const int64_t *stride, peri_tensor **out) {
  return view(base, (peri_dtype)base->dtype, offset, ndim, shape, stride, out);
}

peri_status peri__view_as (peri_tensor *base, peri_dtype d, int ndim, const int64_t *shape,
                           const int64_t *stride, peri_tensor **out) {
  return view(base, d, 0, ndim, shape, stride, out);
}

/* ---- the public functions ---- */

peri_status peri__belongs (peri_ctx *ctx, const peri_tensor *t, const char *name) {
  if (!t) return peri__null(ctx, name);
  if (t->ctx == ctx) return PERI_OK;
  return peri__fail(ctx, PERI_EINVAL,
                    t->ctx ? "%s is a tensor of another context" : "%s was released before", name);
}

static peri_status check_new (peri_ctx *ctx, int ndim, const int64_t *shape, peri_tensor **out) {
  NEED(ctx, ctx);
  NEED(ctx, out);
  if (ndim > 0) NEED(ctx, shape);
  return PERI_OK;
}

peri_status peri_empty (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                        peri_tensor **out) {
  TRY(check_new(ctx, ndim, shape, out));
  return peri__new(ctx, d, ndim, shape, out);
}

peri_status peri_from (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                       const void *data, peri_tensor **out) {
  peri_tensor *t = NULL;
  int64_t numel;
  size_t bytes;
  TRY(check_new(ctx, ndim, shape, out));
  TRY(peri__check_shape(ctx, d, ndim, shape, &numel, &bytes));
  if (bytes > 0) NEED(ctx, data);
  TRY(peri__new(ctx, d, ndim, shape, &t));
  if (bytes > 0) memcpy(t->data, data, bytes);
  *out = t;
  return PERI_OK;
}

/* What strided memory of the host reaches: room bytes from low on. */
static peri_status reach (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                          const int64_t *strides, void *data, char **from, size_t *room) {
  int64_t low, high, size = (int64_t)peri_dtype_size(d), bytes;
  if (size == 0) return peri__fail(ctx, PERI_EDTYPE, "%s has no strides", peri_dtype_name(d));
  if (!extent(ndim, shape, strides, &low, &high) || __builtin_sub_overflow(high, low, &bytes) ||
      __builtin_add_overflow(bytes, 1, &bytes) || __builtin_mul_overflow(bytes, size, &bytes) ||
      __builtin_mul_overflow(low, size, &low) || (uintptr_t)-low > (uintptr_t)data ||
      (uintptr_t)bytes > UINTPTR_MAX - ((uintptr_t)data - (uintptr_t)-low))
    return peri__fail(ctx, PERI_EINVAL, "the strides reach beyond all memory");
  *from = (char *)data + low;
  *room = (size_t)bytes;
  return PERI_OK;
}

peri_status peri_import (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                         const int64_t *strides, void *data, void (*release)(void *ud, void *data),
                         void *ud, peri_tensor **out) {
  int64_t numel;
  size_t bytes, room;
  char *low = data;
  TRY(check_new(ctx, ndim, shape, out));
  TRY(peri__check_shape(ctx, d, ndim, shape, &numel, &bytes));
  room = bytes;
  if (numel > 0) NEED(ctx, data);
  size_t size = peri_dtype_size(d);
  if (size > 0 && (uintptr_t)data % size != 0)
    return peri__fail(ctx, PERI_EINVAL, "data is not aligned for %s", peri_dtype_name(d));
  if (numel > 0 && strides) TRY(reach(ctx, d, ndim, shape, strides, data, &low, &room));
  peri_tensor *t = peri__tensor_alloc(ctx);
  if (!t) return no_tensor(ctx);
  peri_status s = storage_new(ctx, bytes, data, no_release, NULL, &t->storage);
  if (s != PERI_OK) {
    peri__tensor_free(t);
    return s;
  }
  t->storage->low = low;
  t->storage->room = room;
  if (release) {
    t->storage->release = release;
    t->storage->ud = ud;
  }
  t->dtype = (uint8_t)d;
  t->ndim = (uint8_t)ndim;
  t->numel = numel;
  t->data = data;
  for (int i = 0; i < ndim; i++) t->shape[i] = shape[i];
  dense_strides(t);
  for (int i = 0; numel > 0 && strides && i < ndim; i++)
    if (shape[i] > 1) t->stride[i] = strides[i];
  *out = t;
  return PERI_OK;
}

peri_status peri_scalar (peri_ctx *ctx, peri_dtype d, double value, peri_tensor **out) {
  int64_t low, top;
  peri_tensor *t = NULL;
  TRY(check_new(ctx, 0, NULL, out));
  if (peri_dtype_size(d) == 0)
    return peri__fail(ctx, PERI_EDTYPE, "dtype %d has no single elements", (int)d);
  if (d != PERI_BOOL && peri__element_range(d, &low, &top) &&
      !(value >= (double)low && value < (double)top + 1 && value == (double)(int64_t)value))
    return peri__fail(ctx, PERI_EINVAL, "%g does not fit into %s", value, peri_dtype_name(d));
  TRY(peri__new(ctx, d, 0, NULL, &t));
  peri__element_put(d, t->data, (peri__value){ 0, value, false });
  *out = t;
  return PERI_OK;
}

peri_status peri__weak (peri_ctx *ctx, bool integer, int64_t i, double f, peri_tensor **out) {
  peri_tensor *t = NULL;
  TRY(peri__new(ctx, integer ? PERI_I64 : PERI_F64, 0, NULL, &t));
  memcpy(t->data, integer ? (const void *)&i : (const void *)&f, sizeof(int64_t));
  t->flags |= PERI_T_WEAK;
  *out = t;
  return PERI_OK;
}

peri_tensor *peri_retain (peri_tensor *t) {
  if (t && t->refs++ == 0 && t->node) peri__node_output_rose(t);
  return t;
}

void peri_release (peri_tensor *t) {
  if (!peri__alive(t) || t->refs <= 0 || --t->refs > 0) return;
  if (t->node)
    peri__node_output_died(t);
  else
    peri__tensor_free(t);
}

peri_ctx *peri_ctx_of (const peri_tensor *t) { return t ? t->ctx : NULL; }
int peri_ndim (const peri_tensor *t) { return t ? t->ndim : 0; }
const int64_t *peri_shape (const peri_tensor *t) { return t ? t->shape : NULL; }
const int64_t *peri_strides (const peri_tensor *t) { return t ? t->stride : NULL; }
peri_dtype peri_dtype_of (const peri_tensor *t) {
  return t ? (peri_dtype)t->dtype : PERI_DTYPE_END;
}
int64_t peri_numel (const peri_tensor *t) { return t ? t->numel : 0; }
bool peri_is_dense (const peri_tensor *t) { return t && peri__dense(t); }
void *peri_data (const peri_tensor *t) { return t ? t->data : NULL; }

bool peri__dense (const peri_tensor *t) {
  int64_t step = 1;
  for (int i = t->ndim - 1; i >= 0; i--) {
    if (t->shape[i] == 1) continue;
    if (t->stride[i] != step && t->numel > 0) return false;
    step *= t->shape[i];
  }
  return true;
}

size_t peri_nbytes (const peri_tensor *t) {
  size_t bytes;
  if (!t) return 0;
  int block = peri_dtype_block((peri_dtype)t->dtype, &bytes);
  return (size_t)(t->numel / block) * bytes;
}

peri_status peri__readable (const peri_tensor *t) {
  if (!peri__opaque(t)) return PERI_OK;
  return peri__fail(t->ctx, PERI_EDTYPE, "a %s%s weight has no single elements: :to(\"f32\") first",
                    t->storage->packed ? "packed " : "", peri_dtype_name((peri_dtype)t->dtype));
}

peri_status peri_item (peri_tensor *t, int64_t flat, double *out) {
  if (!peri__alive(t)) return PERI_EINVAL;
  NEED(t->ctx, out);
  TRY(peri__readable(t));
  if (flat < 0 || flat >= t->numel)
    return peri__fail(t->ctx, PERI_EINVAL, "element %s of a tensor of %lld",
                      peri__nth(t->ctx, flat), (long long)t->numel);
  int64_t at = 0;
  for (int i = t->ndim - 1; i >= 0; i--) {
    at += flat % t->shape[i] * t->stride[i];
    flat /= t->shape[i];
  }
  *out = peri__element_get(t->dtype, (char *)t->data + at * (int64_t)peri__size(t)).f;
  return PERI_OK;
}

peri_status peri_copy_out (peri_tensor *t, void *dst, size_t bytes) {
  if (!peri__alive(t)) return PERI_EINVAL;
  size_t want = peri_nbytes(t);
  if (want > 0) NEED(t->ctx, dst);
  if (t->storage->packed) TRY(peri__readable(t));
  if (bytes != want)
    return peri__fail(t->ctx, PERI_EINVAL, "%zu bytes given for a tensor of %zu", bytes, want);
  peri_tensor *c = NULL;
  TRY(peri__contiguous(t, &c));
  if (want) memcpy(dst, c->data, want);
  peri_release(c);
  return PERI_OK;
}

peri_status peri_detach (peri_tensor *t, peri_tensor **out) {
  if (!peri__alive(t)) return PERI_EINVAL;
  NEED(t->ctx, out);
  return peri__view(t, 0, t->ndim, t->shape, t->stride, out);
}
