/* tensor_out.c - a tensor's elements into a file that is being written. */
#include <string.h>

#include "io/files.h"

#define CHUNK ((size_t)1 << 20) /* of densified data, a multiple of every element size */

/* Element by element through a chunk of memory. */
static peri_status write_strided (peri__output *o, const peri_tensor *t, char *chunk) {
  int64_t index[PERI_MAX_DIMS] = { 0 };
  size_t size = peri__size(t), used = 0;
  const char *p = t->data;
  for (int64_t left = t->numel; left > 0; left--) {
    memcpy(chunk + used, p, size);
    used += size;
    if (used == CHUNK || left == 1) {
      TRY(peri__output_write(o, chunk, used));
      used = 0;
    }
    for (int d = t->ndim - 1; d >= 0 && left > 1; d--) {
      p += t->stride[d] * (int64_t)size;
      if (++index[d] < t->shape[d]) break;
      p -= t->stride[d] * (int64_t)size * t->shape[d];
      index[d] = 0;
    }
  }
  return PERI_OK;
}

peri_status peri__output_tensor (peri__output *o, const peri_tensor *t) {
  if (t->numel == 0) return PERI_OK;
  if (t->storage->packed) return peri__readable(t);
  if (peri__dense(t)) return peri__output_write(o, t->data, peri_nbytes(t));
  char *chunk = peri__block_get(o->ctx, CHUNK);
  if (chunk == NULL) return peri__fail(o->ctx, PERI_ENOMEM, "no memory for a strided tensor");
  peri_status s = write_strided(o, t, chunk);
  peri__block_put(o->ctx, chunk);
  return s;
}

peri_status peri__check_named (peri_ctx *ctx, const char *path, int64_t n, const char *const *names,
                               peri_tensor *const *tensors) {
  if (n < 0) return peri__fail(ctx, PERI_EINVAL, "%s: %lld tensors", path, (long long)n);
  if (n > 0) NEED(ctx, names);
  if (n > 0) NEED(ctx, tensors);
  for (int64_t i = 0; i < n; i++)
    if (!names[i] || !tensors[i] || tensors[i]->ctx != ctx)
      return peri__fail(ctx, PERI_EINVAL, "%s: %s %lld %s", path, names[i] ? "tensor" : "name",
                        (long long)i,
                        !names[i] || !tensors[i] ? "is NULL"
                        : tensors[i]->ctx        ? "is of another context"
                                                 : "was released before");
  return PERI_OK;
}
