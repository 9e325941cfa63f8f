/*
** safetensors_save.c - writing safetensors files in the order of the reference implementation:
** larger elements first, so that all data is aligned, then by name. The old file stays until the new
** one is complete and on the disk.
*/
#include <string.h>

#include "core/json.h"
#include "io/safetensors.h"

typedef struct job {
  const char *const *names;
  peri_tensor *const *tensors;
} job;

static int order (void *ud, const void *a, const void *b) {
  const job *j = ud;
  int64_t x, y;
  memcpy(&x, a, sizeof x);
  memcpy(&y, b, sizeof y);
  size_t m = peri__size(j->tensors[x]), n = peri__size(j->tensors[y]);
  if (m != n) return m > n ? -1 : 1;
  return strcmp(j->names[x], j->names[y]);
}

static void put_text (peri_json_writer *w, const char *s) { peri_json_put_string(w, s, strlen(s)); }

static void put_tensor (peri_json_writer *w, const char *name, const peri_tensor *t, uint64_t *at) {
  peri_json_put_key(w, name, strlen(name));
  peri_json_put_object(w);
  peri_json_put_key(w, "dtype", 5);
  put_text(w, peri__st_dtype_name((peri_dtype)t->dtype));
  peri_json_put_key(w, "shape", 5);
  peri_json_put_array(w);
  for (int i = 0; i < t->ndim; i++) peri_json_put_int(w, t->shape[i]);
  peri_json_put_close(w);
  peri_json_put_key(w, "data_offsets", 12);
  peri_json_put_array(w);
  peri_json_put_int(w, (int64_t)*at);
  *at += (uint64_t)peri_nbytes(t); /* a sum that wraps is refused when read back */
  peri_json_put_int(w, (int64_t)*at);
  peri_json_put_close(w);
  peri_json_put_close(w);
}

/* The header, padded so that data begins at a multiple of 8, read back once: what is written can be
** read, and names that occur twice are found. */
static peri_status make_header (peri_ctx *ctx, const char *path, int64_t n, const job *j,
                                const int64_t *perm, int64_t npairs, const peri_text_pair *pairs,
                                peri_json_writer *w) {
  uint64_t data = 0;
  peri_json_begin(w, ctx, 0, PERI_JSON_NAN_ERROR);
  peri_json_put_object(w);
  if (npairs > 0) {
    peri_json_put_key(w, "__metadata__", 12);
    peri_json_put_object(w);
    for (int64_t i = 0; i < npairs; i++) {
      peri_json_put_key(w, pairs[i].key, strlen(pairs[i].key));
      put_text(w, pairs[i].value);
    }
    peri_json_put_close(w);
  }
  for (int64_t i = 0; i < n; i++) {
    if (strcmp(j->names[perm[i]], "__metadata__") == 0)
      return peri__fail(ctx, PERI_EINVAL, "a tensor may not be named __metadata__");
    if (peri__opaque(j->tensors[perm[i]]))
      return peri__fail(ctx, PERI_EDTYPE, "%s is a %s%s weight, which the format does not have",
                        j->names[perm[i]], j->tensors[perm[i]]->storage->packed ? "packed " : "",
                        peri_dtype_name((peri_dtype)j->tensors[perm[i]]->dtype));
    put_tensor(w, j->names[perm[i]], j->tensors[perm[i]], &data);
  }
  peri_json_put_close(w);
  TRY(peri_json_finish(w));
  size_t size = (w->size + 7) / 8 * 8;
  char *copy = peri__malloc(ctx, size);
  if (copy == NULL) return peri__fail(ctx, PERI_ENOMEM, "no memory for the header");
  memset(copy, ' ', size);
  memcpy(copy, w->text, w->size);
  peri_safetensors *back;
  TRY(peri__st_parse(ctx, path, copy, size, data, &back));
  peri_safetensors_close(back);
  return PERI_OK;
}

static peri_status write_header (peri__output *o, const peri_json_writer *w) {
  unsigned char first[8];
  size_t size = (w->size + 7) / 8 * 8;
  for (int i = 0; i < 8; i++) first[i] = (unsigned char)((uint64_t)size >> (8 * i));
  TRY(peri__output_write(o, first, 8));
  TRY(peri__output_write(o, w->text, w->size));
  return peri__output_write(o, "       ", size - w->size);
}

static peri_status save (peri_ctx *ctx, const char *path, int64_t n, const job *j, int64_t *perm,
                         int64_t npairs, const peri_text_pair *pairs, peri_json_writer *w) {
  peri__output o;
  for (int64_t i = 0; i < n; i++) perm[i] = i;
  peri__sort(perm, (size_t)n, sizeof *perm, order, (void *)(uintptr_t)j);
  peri_status s = make_header(ctx, path, n, j, perm, npairs, pairs, w);
  if (s != PERI_OK)
    return peri__fail(ctx, s == PERI_EFORMAT ? PERI_EINVAL : s, "%s: not written: %s", path,
                      ctx->message);
  TRY(peri__output_begin(ctx, path, &o));
  s = write_header(&o, w);
  for (int64_t i = 0; i < n && s == PERI_OK; i++) s = peri__output_tensor(&o, j->tensors[perm[i]]);
  if (s == PERI_OK) return peri__output_commit(&o);
  peri__output_abort(&o);
  return s;
}

peri_status peri_safetensors_save (peri_ctx *ctx, const char *path, int64_t n,
                                   const char *const *names, peri_tensor *const *tensors,
                                   int64_t npairs, const peri_text_pair *pairs) {
  peri_json_writer w = { .ctx = NULL };
  job j = { names, tensors };
  if (n < 0 || n > ST_MAX_TENSORS || npairs < 0 || npairs > ST_MAX_PAIRS)
    return peri__fail(ctx, PERI_EINVAL, "%s: %lld tensors and %lld entries of metadata", path,
                      (long long)n, (long long)npairs);
  size_t bytes = (size_t)n * sizeof(int64_t);
  int64_t *perm = peri__malloc(ctx, bytes);
  if (perm == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory to order its tensors", path);
  peri_status s = save(ctx, path, n, &j, perm, npairs, pairs, &w);
  peri_json_drop(&w);
  peri__free(ctx, perm, bytes);
  return s;
}
