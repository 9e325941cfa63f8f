/*
** safetensors_save.c - writing safetensors files in the order of the reference implementation:
** larger elements first, so that all data is aligned, then by name; whole or tensor by tensor. The
** old file stays until the new one is complete and on the disk.
*/
#include <string.h>

#include "core/json.h"
#include "io/safetensors.h"

struct peri_safetensors_writer {
  peri_ctx *ctx;
  peri_status status; /* sticky */
  char *path;
  size_t path_size;
  int64_t n, written;
  peri_safetensors_entry *entries; /* names are the caller's until the header is made */
  int64_t *order;                  /* positions in entries */
  peri__output out;
};

static int by_layout (void *ud, const void *a, const void *b) {
  const peri_safetensors_entry *e = ud;
  int64_t x, y;
  memcpy(&x, a, sizeof x);
  memcpy(&y, b, sizeof y);
  size_t m = peri_dtype_size(e[x].dtype), n = peri_dtype_size(e[y].dtype);
  if (m != n) return m > n ? -1 : 1;
  return strcmp(e[x].name, e[y].name);
}

static void put_text (peri_json_writer *w, const char *s) { peri_json_put_string(w, s, strlen(s)); }

static void put_tensor (peri_json_writer *w, const peri_safetensors_entry *e, size_t bytes,
                        uint64_t *at) {
  peri_json_put_key(w, e->name, strlen(e->name));
  peri_json_put_object(w);
  peri_json_put_key(w, "dtype", 5);
  put_text(w, peri__st_dtype_name(e->dtype));
  peri_json_put_key(w, "shape", 5);
  peri_json_put_array(w);
  for (int i = 0; i < e->ndim; i++) peri_json_put_int(w, e->shape[i]);
  peri_json_put_close(w);
  peri_json_put_key(w, "data_offsets", 12);
  peri_json_put_array(w);
  peri_json_put_int(w, (int64_t)*at);
  *at += (uint64_t)bytes; /* a sum that wraps is refused when read back */
  peri_json_put_int(w, (int64_t)*at);
  peri_json_put_close(w);
  peri_json_put_close(w);
}

static peri_status put_tensors (const peri_safetensors_writer *w, peri_json_writer *json,
                                uint64_t *data) {
  for (int64_t i = 0; i < w->n; i++) {
    const peri_safetensors_entry *e = &w->entries[w->order[i]];
    int64_t numel;
    size_t bytes;
    if (strcmp(e->name, "__metadata__") == 0)
      return peri__fail(w->ctx, PERI_EINVAL, "a tensor may not be named __metadata__");
    if (peri_dtype_size(e->dtype) == 0)
      return peri__fail(w->ctx, PERI_EDTYPE, "%s is a %s weight, which the format does not have",
                        e->name, peri_dtype_name(e->dtype));
    TRY(peri__check_shape(w->ctx, e->dtype, e->ndim, e->shape, &numel, &bytes));
    put_tensor(json, e, bytes, data);
  }
  return PERI_OK;
}

/* The header, padded so that data begins at a multiple of 8, read back once: what is written can be
** read, and names that occur twice are found. */
static peri_status make_header (const peri_safetensors_writer *w, int64_t npairs,
                                const peri_text_pair *pairs, peri_json_writer *json) {
  uint64_t data = 0;
  peri_json_begin(json, w->ctx, 0, PERI_JSON_NAN_ERROR);
  peri_json_put_object(json);
  if (npairs > 0) {
    peri_json_put_key(json, "__metadata__", 12);
    peri_json_put_object(json);
    for (int64_t i = 0; i < npairs; i++) {
      peri_json_put_key(json, pairs[i].key, strlen(pairs[i].key));
      put_text(json, pairs[i].value);
    }
    peri_json_put_close(json);
  }
  TRY(put_tensors(w, json, &data));
  peri_json_put_close(json);
  TRY(peri_json_finish(json));
  size_t size = (json->size + 7) / 8 * 8;
  char *copy = peri__malloc(w->ctx, size);
  if (copy == NULL) return peri__fail(w->ctx, PERI_ENOMEM, "no memory for the header");
  memset(copy, ' ', size);
  memcpy(copy, json->text, json->size);
  peri_safetensors *back;
  TRY(peri__st_parse(w->ctx, w->path, copy, size, data, &back));
  peri_safetensors_close(back);
  return PERI_OK;
}

static peri_status write_header (peri__output *o, const peri_json_writer *json) {
  unsigned char first[8];
  size_t size = (json->size + 7) / 8 * 8;
  for (int i = 0; i < 8; i++) first[i] = (unsigned char)((uint64_t)size >> (8 * i));
  TRY(peri__output_write(o, first, 8));
  TRY(peri__output_write(o, json->text, json->size));
  return peri__output_write(o, "       ", size - json->size);
}

static peri_status begin (peri_safetensors_writer *w, const peri_safetensors_entry *entries,
                          int64_t npairs, const peri_text_pair *pairs) {
  peri_json_writer json = { .ctx = NULL };
  for (int64_t i = 0; i < w->n; i++) {
    if (!entries[i].name)
      return peri__fail(w->ctx, PERI_EINVAL, "%s: tensor %s has no name", w->path,
                        peri__nth(w->ctx, i));
    w->entries[i] = entries[i];
    w->order[i] = i;
  }
  for (int64_t i = 0; i < npairs; i++)
    if (!pairs[i].key || !pairs[i].value)
      return peri__fail(w->ctx, PERI_EINVAL, "%s: entry %s of the metadata is NULL", w->path,
                        peri__nth(w->ctx, i));
  peri__sort(w->order, (size_t)w->n, sizeof *w->order, by_layout, w->entries);
  peri_status s = make_header(w, npairs, pairs, &json);
  if (s != PERI_OK)
    s = peri__fail(w->ctx, s == PERI_EFORMAT ? PERI_EINVAL : s, "%s: not written: %s", w->path,
                   w->ctx->message);
  if (s == PERI_OK) s = peri__output_begin(w->ctx, w->path, &w->out);
  if (s == PERI_OK) s = write_header(&w->out, &json);
  peri_json_drop(&json);
  return s;
}

peri_status peri_safetensors_create (peri_ctx *ctx, const char *path, int64_t n,
                                     const peri_safetensors_entry *entries, int64_t npairs,
                                     const peri_text_pair *pairs, peri_safetensors_writer **out) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, out);
  if (n > 0) NEED(ctx, entries);
  if (npairs > 0) NEED(ctx, pairs);
  size_t path_size = strlen(path) + 1;
  *out = NULL;
  if (n < 0 || n > ST_MAX_TENSORS || npairs < 0 || npairs > ST_MAX_PAIRS)
    return peri__fail(ctx, PERI_EINVAL, "%s: %lld tensors and %lld entries of metadata", path,
                      (long long)n, (long long)npairs);
  peri_safetensors_writer *w = peri__malloc(ctx, sizeof *w);
  if (w == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory to write it", path);
  *w = (peri_safetensors_writer){ .ctx = ctx, .n = n, .path_size = path_size, .out = { .fd = -1 } };
  w->path = peri__malloc(ctx, path_size);
  w->entries = peri__malloc(ctx, (size_t)n * sizeof *w->entries);
  w->order = peri__malloc(ctx, (size_t)n * sizeof *w->order);
  peri_status s = PERI_OK;
  if (w->path == NULL || w->entries == NULL || w->order == NULL)
    s = peri__fail(ctx, PERI_ENOMEM, "%s: no memory to order its tensors", path);
  if (s == PERI_OK) {
    memcpy(w->path, path, path_size);
    s = begin(w, entries, npairs, pairs);
  }
  if (s != PERI_OK) {
    peri_safetensors_abort(w);
    return s;
  }
  *out = w;
  return PERI_OK;
}

void peri_safetensors_abort (peri_safetensors_writer *w) {
  if (w == NULL) return;
  peri__output_abort(&w->out);
  peri__free(w->ctx, w->entries, (size_t)w->n * sizeof *w->entries);
  peri__free(w->ctx, w->order, (size_t)w->n * sizeof *w->order);
  peri__free(w->ctx, w->path, w->path_size);
  peri__free(w->ctx, w, sizeof *w);
}

int64_t peri_safetensors_next (const peri_safetensors_writer *w) {
  if (!w) return -1;
  return w->written < w->n ? w->order[w->written] : -1;
}

static peri_status write_tensor (peri_safetensors_writer *w, const peri_tensor *t) {
  if (w->written == w->n)
    return peri__fail(w->ctx, PERI_EINVAL, "%s: all %lld tensors are written", w->path,
                      (long long)w->n);
  const peri_safetensors_entry *e = &w->entries[w->order[w->written]];
  bool same = t->dtype == e->dtype && t->ndim == e->ndim;
  for (int i = 0; same && i < t->ndim; i++) same = t->shape[i] == e->shape[i];
  if (!same) {
    char shape[160];
    return peri__fail(
        w->ctx, PERI_EINVAL, "%s: tensor %s was announced with another dtype or shape than %s %s",
        w->path, peri__nth(w->ctx, w->order[w->written]), peri_dtype_name((peri_dtype)t->dtype),
        peri__shape_text(t, shape, sizeof shape));
  }
  TRY(peri__output_tensor(&w->out, t));
  w->written++;
  return PERI_OK;
}

peri_status peri_safetensors_write (peri_safetensors_writer *w, peri_tensor *t) {
  if (!w) return PERI_EINVAL;
  TRY(peri__belongs(w->ctx, t, "t"));
  TRY(w->status);
  return w->status = write_tensor(w, t);
}

peri_status peri_safetensors_commit (peri_safetensors_writer *w) {
  if (!w) return PERI_EINVAL;
  peri_status s = w->status;
  if (s == PERI_OK && w->written < w->n)
    s = peri__fail(w->ctx, PERI_EINVAL, "%s: %lld of %lld tensors are missing", w->path,
                   (long long)(w->n - w->written), (long long)w->n);
  if (s == PERI_OK) s = peri__output_commit(&w->out);
  peri_safetensors_abort(w);
  return s;
}

peri_status peri_safetensors_save (peri_ctx *ctx, const char *path, int64_t n,
                                   const char *const *names, peri_tensor *const *tensors,
                                   int64_t npairs, const peri_text_pair *pairs) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  if (npairs > 0) NEED(ctx, pairs);
  TRY(peri__check_named(ctx, path, n, names, tensors));
  peri_safetensors_writer *w;
  size_t bytes = n > 0 && n <= ST_MAX_TENSORS ? (size_t)n * sizeof(peri_safetensors_entry) : 0;
  peri_safetensors_entry *entries = peri__malloc(ctx, bytes);
  if (entries == NULL)
    return peri__fail(ctx, PERI_ENOMEM, "%s: no memory for a list of its tensors", path);
  peri_status s = PERI_OK;
  for (int64_t i = 0; i < n && bytes > 0 && s == PERI_OK; i++) {
    const peri_tensor *t = tensors[i];
    entries[i] = (peri_safetensors_entry){ .name = names[i],
                                           .dtype = (peri_dtype)t->dtype,
                                           .ndim = t->ndim };
    memcpy(entries[i].shape, t->shape, sizeof entries[i].shape);
    if (t->storage->packed)
      s = peri__fail(ctx, PERI_EDTYPE,
                     "%s: not written: %s is a packed weight, which the format does not have", path,
                     names[i]);
  }
  if (s == PERI_OK) s = peri_safetensors_create(ctx, path, n, entries, npairs, pairs, &w);
  peri__free(ctx, entries, bytes);
  TRY(s);
  for (int64_t i; s == PERI_OK && (i = peri_safetensors_next(w)) >= 0;)
    s = peri_safetensors_write(w, tensors[i]);
  return peri_safetensors_commit(w);
}
