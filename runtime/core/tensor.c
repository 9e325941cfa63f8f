/* tensor.c - storages, tensors and views: making, sharing, releasing, reading. */
#include <stdio.h>
#include <string.h>

#include "core/core.h"
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
      return peri__fail(ctx, PERI_ESHAPE, "size %lld of dim %d is negative", (long long)shape[i],
                        i + 1);
    if (shape[i] == 0)
      zero = true;
    else if (__builtin_mul_overflow(n, shape[i], &n))
      return peri__fail(ctx, PERI_ESHAPE, "the number of elements overflows at dim %d of size %lld",
                        i + 1, (long long)shape[i]);
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
static peri_tensor *tensor_alloc (peri_ctx *ctx) {
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
static peri_status storage_new (peri_ctx *ctx, size_t bytes, void *data,
                                void (*release)(void *ud, void *data), void *ud,
                                peri_storage **out) {
  if (ctx->dry) bytes = 0;
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
  *s = (peri_storage){
    .ctx = ctx, .data = data, .bytes = bytes, .refs = 1, .release = release, .ud = ud
  };
  if (!release) {
    ctx->live += bytes;
    if (ctx->live > ctx->peak) ctx->peak = ctx->live;
  }
  *out = s;
  return PERI_OK;
}

static peri_status new_tensor (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                               int64_t numel, size_t bytes, peri_tensor **out) {
  peri_tensor *t = tensor_alloc(ctx);
  if (!t) return peri__fail(ctx, PERI_ENOMEM, "out of memory for a tensor");
  peri_status s = storage_new(ctx, bytes, NULL, NULL, NULL, &t->storage);
  if (s != PERI_OK) {
    peri__tensor_free(t);
    return s;
  }
  t->dtype = (uint8_t)d;
  t->ndim = (uint8_t)ndim;
  t->numel = numel;
  t->data = t->storage->data;
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

peri_status peri__view (peri_tensor *base, void *data, int ndim, const int64_t *shape,
                        const int64_t *stride, peri_tensor **out) {
  peri_ctx *ctx = base->ctx;
  peri_tensor *t = tensor_alloc(ctx);
  if (!t) return peri__fail(ctx, PERI_ENOMEM, "out of memory for a view");
  t->dtype = base->dtype;
  t->ndim = (uint8_t)ndim;
  t->data = data;
  t->storage = base->storage;
  t->storage->refs++;
  t->numel = 1;
  for (int i = 0; i < ndim; i++) {
    t->shape[i] = shape[i];
    t->stride[i] = stride[i];
    t->numel *= shape[i];
  }
  *out = t;
  return PERI_OK;
}

peri_status peri_empty (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                        peri_tensor **out) {
  return peri__new(ctx, d, ndim, shape, out);
}

peri_status peri_from (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                       const void *data, peri_tensor **out) {
  peri_tensor *t = NULL;
  TRY(peri__new(ctx, d, ndim, shape, &t));
  if (t->storage->bytes) memcpy(t->data, data, t->storage->bytes);
  *out = t;
  return PERI_OK;
}

peri_status peri_import (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                         const int64_t *strides, void *data, void (*release)(void *ud, void *data),
                         void *ud, peri_tensor **out) {
  int64_t numel;
  size_t bytes;
  TRY(peri__check_shape(ctx, d, ndim, shape, &numel, &bytes));
  peri_tensor *t = tensor_alloc(ctx);
  if (!t) return peri__fail(ctx, PERI_ENOMEM, "out of memory for a tensor");
  peri_status s = storage_new(ctx, bytes, data, no_release, NULL, &t->storage);
  if (s != PERI_OK) {
    peri__tensor_free(t);
    return s;
  }
  if (release) {
    t->storage->release = release;
    t->storage->ud = ud;
  }
  t->dtype = (uint8_t)d;
  t->ndim = (uint8_t)ndim;
  t->numel = numel;
  t->data = data;
  for (int i = 0; i < ndim; i++) t->shape[i] = shape[i];
  if (strides)
    memcpy(t->stride, strides, (size_t)ndim * sizeof *strides);
  else
    dense_strides(t);
  *out = t;
  return PERI_OK;
}

static void put_double (peri_dtype d, void *p, double v) {
  switch (d) {
  case PERI_BOOL: *(uint8_t *)p = v != 0; break;
  case PERI_U8: *(uint8_t *)p = (uint8_t)v; break;
  case PERI_I32: *(int32_t *)p = (int32_t)v; break;
  case PERI_I64: *(int64_t *)p = (int64_t)v; break;
  case PERI_F16: *(uint16_t *)p = peri__f32_to_f16((float)v); break;
  case PERI_BF16: *(uint16_t *)p = peri__f32_to_bf16((float)v); break;
  case PERI_F32: *(float *)p = (float)v; break;
  default: *(double *)p = v; break;
  }
}

static double get_double (peri_dtype d, const void *p) {
  switch (d) {
  case PERI_BOOL:
  case PERI_U8: return *(const uint8_t *)p;
  case PERI_I32: return *(const int32_t *)p;
  case PERI_I64: return (double)*(const int64_t *)p;
  case PERI_F16: return peri__f16_to_f32(*(const uint16_t *)p);
  case PERI_BF16: return peri__bf16_to_f32(*(const uint16_t *)p);
  case PERI_F32: return *(const float *)p;
  default: return *(const double *)p;
  }
}

peri_status peri_scalar (peri_ctx *ctx, peri_dtype d, double value, peri_tensor **out) {
  static const double low[] = { [PERI_U8] = 0, [PERI_I32] = INT32_MIN, [PERI_I64] = -0x1p63 };
  static const double end[] = { [PERI_U8] = 256, [PERI_I32] = 0x1p31, [PERI_I64] = 0x1p63 };
  peri_tensor *t = NULL;
  if (d > PERI_BOOL && d <= PERI_I64 &&
      !(value >= low[d] && value < end[d] && value == (double)(int64_t)value))
    return peri__fail(ctx, PERI_EINVAL, "%g does not fit into %s", value, peri_dtype_name(d));
  TRY(peri__new(ctx, d, 0, NULL, &t));
  put_double(d, t->data, value);
  *out = t;
  return PERI_OK;
}

peri_tensor *peri_retain (peri_tensor *t) {
  if (t) t->refs++;
  return t;
}

void peri_release (peri_tensor *t) {
  if (!t || --t->refs > 0) return;
  if (t->node)
    peri__node_output_died(t);
  else
    peri__tensor_free(t);
}

peri_ctx *peri_ctx_of (const peri_tensor *t) { return t->ctx; }
int peri_ndim (const peri_tensor *t) { return t->ndim; }
const int64_t *peri_shape (const peri_tensor *t) { return t->shape; }
const int64_t *peri_strides (const peri_tensor *t) { return t->stride; }
peri_dtype peri_dtype_of (const peri_tensor *t) { return (peri_dtype)t->dtype; }
int64_t peri_numel (const peri_tensor *t) { return t->numel; }
bool peri_is_dense (const peri_tensor *t) { return peri__dense(t); }
void *peri_data (const peri_tensor *t) { return t->data; }

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
  int block = peri_dtype_block((peri_dtype)t->dtype, &bytes);
  return (size_t)(t->numel / block) * bytes;
}

peri_status peri__readable (const peri_tensor *t) {
  if (!peri__opaque(t)) return PERI_OK;
  return peri__fail(t->ctx, PERI_EDTYPE, "a %s%s weight has no single elements: :to(\"f32\") first",
                    t->storage->packed ? "packed " : "", peri_dtype_name((peri_dtype)t->dtype));
}

peri_status peri_item (peri_tensor *t, int64_t flat, double *out) {
  TRY(peri__readable(t));
  if (flat < 0 || flat >= t->numel)
    return peri__fail(t->ctx, PERI_EINVAL, "element %lld of a tensor of %lld", (long long)flat,
                      (long long)t->numel);
  int64_t at = 0;
  for (int i = t->ndim - 1; i >= 0; i--) {
    at += flat % t->shape[i] * t->stride[i];
    flat /= t->shape[i];
  }
  *out = get_double((peri_dtype)t->dtype, (char *)t->data + at * (int64_t)peri__size(t));
  return PERI_OK;
}

peri_status peri_copy_out (peri_tensor *t, void *dst, size_t bytes) {
  size_t want = peri_nbytes(t);
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
  return peri__view(t, t->data, t->ndim, t->shape, t->stride, out);
}
