/*
** gguf_save.c - writing GGUF files tensor by tensor. The header is made in memory and read back by
** the reader before the first byte of it is written: what is written can be read, and names that
** occur twice are found. The old file stays until the new one is complete and on the disk.
*/
#include <stdio.h>

#include "io/gguf.h"

#define VERSION 3
#define MAX_HEADER ((size_t)1 << 32) /* of the reader */

typedef struct declared {
  int64_t shape[GGUF_MAX_DIMS];
  uint8_t dtype, ndim;
} declared;

typedef struct buffer {
  unsigned char *p;
  size_t n, cap;
} buffer;

struct peri_gguf_writer {
  peri_ctx *ctx;
  peri_status status; /* sticky */
  char *path;
  size_t path_size;
  peri__output out;
  buffer values, tensors; /* the two lists of the header */
  int64_t nvalues;
  declared *list;
  int64_t n, cap, written;
  uint64_t data_bytes; /* padded */
  bool begun;          /* the header is in the file */
};

/* The message is the context's; path goes before it. */
static peri_status broken (peri_gguf_writer *w, peri_status s) {
  return w->status = peri__fail(w->ctx, s, "%s: not written: %s", w->path, w->ctx->message);
}

/* Room for one more: the array grows by half. */
static void *grow (peri_ctx *ctx, void *p, size_t *bytes, size_t want) {
  if (want <= *bytes) return p;
  size_t more = *bytes + *bytes / 2 > want ? *bytes + *bytes / 2 : want;
  void *q = peri__realloc(ctx, p, *bytes, more);
  if (q != NULL) *bytes = more;
  return q;
}

static peri_status put (peri_gguf_writer *w, buffer *b, const void *data, size_t n) {
  if (n == 0) return PERI_OK;
  if (n > MAX_HEADER - b->n) return peri__fail(w->ctx, PERI_EINVAL, "a header of more than 4 GiB");
  void *p = grow(w->ctx, b->p, &b->cap, b->n + n);
  if (p == NULL) return peri__fail(w->ctx, PERI_ENOMEM, "no memory for the header");
  b->p = p;
  memcpy(b->p + b->n, data, n);
  b->n += n;
  return PERI_OK;
}

static peri_status put32 (peri_gguf_writer *w, buffer *b, uint32_t v) { return put(w, b, &v, 4); }
static peri_status put64 (peri_gguf_writer *w, buffer *b, uint64_t v) { return put(w, b, &v, 8); }

static peri_status put_text (peri_gguf_writer *w, buffer *b, const char *s, size_t n) {
  TRY(put64(w, b, n));
  return put(w, b, s, n);
}

peri_status peri_gguf_create (peri_ctx *ctx, const char *path, peri_gguf_writer **out) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, out);
  size_t path_size = strlen(path) + 1;
  *out = NULL;
  peri_gguf_writer *w = peri__malloc(ctx, sizeof *w);
  char *copy = peri__malloc(ctx, path_size);
  if (w == NULL || copy == NULL) {
    peri__free(ctx, w, sizeof *w);
    peri__free(ctx, copy, path_size);
    return peri__fail(ctx, PERI_ENOMEM, "%s: no memory to write it", path);
  }
  memcpy(copy, path, path_size);
  *w = (peri_gguf_writer){ .ctx = ctx, .path = copy, .path_size = path_size };
  peri_status s = peri__output_begin(ctx, copy, &w->out);
  if (s != PERI_OK) {
    peri_gguf_abort(w);
    return s;
  }
  *out = w;
  return PERI_OK;
}

void peri_gguf_abort (peri_gguf_writer *w) {
  if (w == NULL) return;
  peri_ctx *ctx = w->ctx;
  peri__output_abort(&w->out);
  peri__free(ctx, w->values.p, w->values.cap);
  peri__free(ctx, w->tensors.p, w->tensors.cap);
  peri__free(ctx, w->list, (size_t)w->cap * sizeof *w->list);
  peri__free(ctx, w->path, w->path_size);
  peri__free(ctx, w, sizeof *w);
}

/* ---- values ---- */

/* ORDER gguf type */
static const int64_t lowest[PERI_GGUF_NTYPE] = { [PERI_GGUF_I8] = INT8_MIN,
                                                 [PERI_GGUF_I16] = INT16_MIN,
                                                 [PERI_GGUF_I32] = INT32_MIN,
                                                 [PERI_GGUF_I64] = INT64_MIN };
static const int64_t highest[PERI_GGUF_NTYPE] = {
  [PERI_GGUF_U8] = UINT8_MAX,  [PERI_GGUF_I8] = INT8_MAX,    [PERI_GGUF_U16] = UINT16_MAX,
  [PERI_GGUF_I16] = INT16_MAX, [PERI_GGUF_U32] = UINT32_MAX, [PERI_GGUF_I32] = INT32_MAX,
  [PERI_GGUF_BOOL] = 1,        [PERI_GGUF_U64] = INT64_MAX,  [PERI_GGUF_I64] = INT64_MAX
};

static peri_status put_element (peri_gguf_writer *w, peri_gguf_type type, const void *data,
                                int64_t i) {
  if (type == PERI_GGUF_TEXT) {
    const peri_gguf_text *t = (const peri_gguf_text *)data + i;
    if (t->n > 0 && !t->s)
      return peri__fail(w->ctx, PERI_EINVAL, "text %s is NULL", peri__nth(w->ctx, i));
    return put_text(w, &w->values, t->s, t->n);
  }
  if (type == PERI_GGUF_F32) {
    float f = (float)((const double *)data)[i];
    return put(w, &w->values, &f, sizeof f);
  }
  if (type == PERI_GGUF_F64) return put(w, &w->values, (const double *)data + i, sizeof(double));
  int64_t v = ((const int64_t *)data)[i];
  if (v < lowest[type] || v > highest[type])
    return peri__fail(w->ctx, PERI_EINVAL, "%lld is no %s", (long long)v,
                      peri__gguf_type_name(type));
  return put(w, &w->values, &v, peri__gguf_size(type)); /* the low bytes come first */
}

static peri_status put_value (peri_gguf_writer *w, const char *key, peri_gguf_type type, bool array,
                              int64_t n, const void *data) {
  if ((unsigned)type >= PERI_GGUF_NTYPE || type == PERI_GGUF_ARRAY || n < 0 || (!array && n != 1))
    return peri__fail(w->ctx, PERI_EINVAL, "%lld values of type %d", (long long)n, (int)type);
  if (strcmp(key, "general.alignment") == 0)
    return peri__fail(w->ctx, PERI_EINVAL, "the alignment is always %d", GGUF_ALIGNMENT);
  TRY(put_text(w, &w->values, key, strlen(key)));
  TRY(put32(w, &w->values, array ? PERI_GGUF_ARRAY : type));
  if (array) {
    TRY(put32(w, &w->values, type));
    TRY(put64(w, &w->values, (uint64_t)n));
  }
  for (int64_t i = 0; i < n; i++) TRY(put_element(w, type, data, i));
  return PERI_OK;
}

peri_status peri_gguf_put (peri_gguf_writer *w, const char *key, peri_gguf_type type, bool array,
                           int64_t n, const void *data) {
  if (!w) return PERI_EINVAL;
  NEED(w->ctx, key);
  if (n > 0) NEED(w->ctx, data);
  TRY(w->status);
  size_t before = w->values.n;
  peri_status s = w->begun ? peri__fail(w->ctx, PERI_EINVAL, "the data has begun")
                           : put_value(w, key, type, array, n, data);
  if (s == PERI_OK) {
    w->nvalues++;
    return PERI_OK;
  }
  w->values.n = before;
  return peri__fail(w->ctx, s, "%s: value \"%.100s\": %s", w->path, key, w->ctx->message);
}

/* ---- tensors ---- */

static int type_of (peri_dtype d) {
  for (int i = 0; i < GGUF_NKIND; i++)
    if (peri__gguf_kind[i].bytes != 0 && peri__gguf_kind[i].dtype == (int)d) return i;
  return -1;
}

static uint64_t padded (uint64_t n) {
  return (n + GGUF_ALIGNMENT - 1) / GGUF_ALIGNMENT * GGUF_ALIGNMENT;
}

static peri_status declare (peri_gguf_writer *w, const char *name, peri_dtype d, int ndim,
                            const int64_t *shape) {
  int64_t numel;
  size_t bytes, room = (size_t)w->cap * sizeof *w->list;
  int type = type_of(d);
  if (type < 0)
    return peri__fail(w->ctx, PERI_EDTYPE, "dtype %s has no type in GGUF", peri_dtype_name(d));
  if (ndim < 0 || ndim > GGUF_MAX_DIMS)
    return peri__fail(w->ctx, PERI_ESHAPE, "%d dims, at most %d are allowed", ndim, GGUF_MAX_DIMS);
  if (strlen(name) >= GGUF_MAX_NAME) /* ggml counts the zero that it adds */
    return peri__fail(w->ctx, PERI_EINVAL, "a name of %zu bytes, at most %d are allowed",
                      strlen(name), GGUF_MAX_NAME - 1);
  TRY(peri__check_shape(w->ctx, d, ndim, shape, &numel, &bytes));
  if (bytes > (uint64_t)INT64_MAX - w->data_bytes - GGUF_ALIGNMENT)
    return peri__fail(w->ctx, PERI_ESHAPE, "the data overflows 64 bits");
  declared *list = grow(w->ctx, w->list, &room, ((size_t)w->n + 1) * sizeof *list);
  if (list == NULL) return peri__fail(w->ctx, PERI_ENOMEM, "no memory for a list of tensors");
  w->list = list;
  w->cap = (int64_t)(room / sizeof *list);
  declared *e = &list[w->n];
  *e = (declared){ .dtype = (uint8_t)d, .ndim = (uint8_t)ndim };
  for (int i = 0; i < ndim; i++) e->shape[i] = shape[i];
  TRY(put_text(w, &w->tensors, name, strlen(name)));
  TRY(put32(w, &w->tensors, (uint32_t)ndim));
  for (int i = ndim; i-- > 0;) TRY(put64(w, &w->tensors, (uint64_t)shape[i]));
  TRY(put32(w, &w->tensors, (uint32_t)type));
  TRY(put64(w, &w->tensors, w->data_bytes));
  w->data_bytes += padded(bytes);
  w->n++;
  return PERI_OK;
}

peri_status peri_gguf_declare (peri_gguf_writer *w, const char *name, peri_dtype d, int ndim,
                               const int64_t *shape) {
  if (!w) return PERI_EINVAL;
  NEED(w->ctx, name);
  if (ndim > 0) NEED(w->ctx, shape);
  TRY(w->status);
  size_t before = w->tensors.n;
  peri_status s = w->begun ? peri__fail(w->ctx, PERI_EINVAL, "the data has begun")
                           : declare(w, name, d, ndim, shape);
  if (s == PERI_OK) return PERI_OK;
  w->tensors.n = before;
  return peri__fail(w->ctx, s, "%s: tensor \"%.100s\": %s", w->path, name, w->ctx->message);
}

/* ---- the file ---- */

/* All of the header and its padding in one piece, in values. */
static peri_status join_header (peri_gguf_writer *w) {
  buffer all = { .p = NULL };
  size_t n = 24 + w->values.n + w->tensors.n, whole = (size_t)padded(n);
  const uint64_t counts[] = { (uint64_t)w->n, (uint64_t)w->nvalues };
  const uint32_t version = VERSION;
  if (whole > MAX_HEADER - 1) return peri__fail(w->ctx, PERI_EINVAL, "a header of more than 4 GiB");
  all.p = peri__malloc(w->ctx, whole);
  if (all.p == NULL) return peri__fail(w->ctx, PERI_ENOMEM, "no memory for the header");
  all.n = all.cap = whole;
  memcpy(all.p, "GGUF", 4);
  memcpy(all.p + 4, &version, 4);
  memcpy(all.p + 8, counts, 16);
  if (w->values.n > 0) memcpy(all.p + 24, w->values.p, w->values.n);
  if (w->tensors.n > 0) memcpy(all.p + 24 + w->values.n, w->tensors.p, w->tensors.n);
  memset(all.p + n, 0, whole - n);
  peri__free(w->ctx, w->values.p, w->values.cap);
  peri__free(w->ctx, w->tensors.p, w->tensors.cap);
  w->values = all;
  w->tensors = (buffer){ .p = NULL };
  return PERI_OK;
}

static peri_status begin (peri_gguf_writer *w) {
  if (w->begun) return PERI_OK;
  TRY(join_header(w));
  TRY(peri__gguf_check(w->ctx, "header", w->values.p, w->values.n, w->values.n + w->data_bytes));
  w->begun = true;
  return peri__output_write(&w->out, w->values.p, w->values.n);
}

static bool same (const declared *e, const peri_tensor *t) {
  bool good = t->dtype == e->dtype && t->ndim == e->ndim;
  for (int i = 0; good && i < t->ndim; i++) good = t->shape[i] == e->shape[i];
  return good;
}

static peri_status write_tensor (peri_gguf_writer *w, peri_tensor *t) {
  static const char zeros[GGUF_ALIGNMENT];
  char shape[160];
  if (w->written == w->n)
    return peri__fail(w->ctx, PERI_EINVAL, "all %lld tensors are written", (long long)w->n);
  if (!same(&w->list[w->written], t))
    return peri__fail(w->ctx, PERI_EINVAL,
                      "tensor %s was declared with another dtype or shape than %s %s",
                      peri__nth(w->ctx, w->written), peri_dtype_name((peri_dtype)t->dtype),
                      peri__shape_text(t, shape, sizeof shape));
  if (t->storage->packed) return peri__readable(t);
  TRY(begin(w));
  TRY(peri__output_tensor(&w->out, t));
  size_t bytes = peri_nbytes(t);
  TRY(peri__output_write(&w->out, zeros, (size_t)(padded(bytes) - bytes)));
  w->written++;
  return PERI_OK;
}

peri_status peri_gguf_write (peri_gguf_writer *w, peri_tensor *t) {
  if (!w) return PERI_EINVAL;
  TRY(peri__belongs(w->ctx, t, "t"));
  TRY(w->status);
  peri_status s = write_tensor(w, t);
  return s == PERI_OK ? s : broken(w, s == PERI_EFORMAT ? PERI_EINVAL : s);
}

peri_status peri_gguf_commit (peri_gguf_writer *w) {
  if (!w) return PERI_EINVAL;
  peri_status s = w->status;
  if (s == PERI_OK) {
    s = begin(w);
    if (s == PERI_OK && w->written < w->n)
      s = peri__fail(w->ctx, PERI_EINVAL, "%lld of %lld tensors are missing",
                     (long long)(w->n - w->written), (long long)w->n);
    if (s != PERI_OK) s = broken(w, s == PERI_EFORMAT ? PERI_EINVAL : s);
  }
  if (s == PERI_OK) s = peri__output_commit(&w->out);
  peri_gguf_abort(w);
  return s;
}
