/*
** npz_save.c - writing .npz files: zip archives of stored .npy files. A checksum stands before the
** data that it is made of, so it is put there afterwards.
*/
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* pwrite */
#endif
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "io/stream.h"

#define WIDE 0xffffffffu /* the value is in the extra field of zip64 */
#define LOCAL_SIZE 30
#define EXTRA_SIZE 20 /* of zip64 in a local header: two sizes */

typedef struct record {
  uint64_t at, size;
  uint32_t crc;
  bool wide;
} record;

static void put (unsigned char *p, size_t *at, uint64_t v, int bytes) {
  for (int i = 0; i < bytes; i++, v >>= 8) p[(*at)++] = (unsigned char)v;
}

/* What local headers and directory have in common. */
static void put_common (unsigned char *p, size_t *n, const record *r, size_t name, size_t extra) {
  put(p, n, r->wide ? 45 : 20, 2); /* version needed */
  put(p, n, 0x800, 2);             /* names are UTF-8 */
  put(p, n, 0, 2);                 /* stored */
  put(p, n, 0, 2);                 /* 00:00 */
  put(p, n, 0x21, 2);              /* on 1980-01-01: the same arrays give the same bytes */
  put(p, n, r->crc, 4);
  put(p, n, r->wide ? WIDE : r->size, 4);
  put(p, n, r->wide ? WIDE : r->size, 4);
  put(p, n, name, 2);
  put(p, n, extra, 2);
}

static peri_status patch (peri__output *o, uint64_t at, uint32_t crc) {
  unsigned char b[4];
  size_t n = 0;
  put(b, &n, crc, 4);
  for (size_t done = 0; done < 4;) {
    ssize_t k = pwrite(o->fd, b + done, 4 - done, (off_t)(at + done));
    if (k < 0 && errno == EINTR) continue;
    if (k <= 0) return peri__io_fail(o->ctx, o->path, "write");
    done += (size_t)k;
  }
  return PERI_OK;
}

static peri_status write_entry (peri__output *o, const char *name, peri_tensor *t, record *r) {
  char npy[PERI__NPY_HEADER];
  unsigned char b[LOCAL_SIZE + EXTRA_SIZE];
  size_t header = peri__npy_header(t, npy), n = 0, name_size = strlen(name) + 4;
  r->at = o->written;
  r->size = header + peri_nbytes(t);
  r->wide = r->size >= WIDE;
  put(b, &n, 0x04034b50, 4);
  put_common(b, &n, r, name_size, r->wide ? EXTRA_SIZE : 0);
  TRY(peri__output_write(o, b, n));
  TRY(peri__output_write(o, name, name_size - 4));
  TRY(peri__output_write(o, ".npy", 4));
  if (r->wide) {
    n = 0;
    put(b, &n, 1, 2);
    put(b, &n, 16, 2);
    put(b, &n, r->size, 8);
    put(b, &n, r->size, 8);
    TRY(peri__output_write(o, b, n));
  }
  o->crc = 0;
  TRY(peri__output_write(o, npy, header));
  TRY(peri__output_tensor(o, t));
  r->crc = o->crc;
  return patch(o, r->at + 14, r->crc);
}

static peri_status write_directory (peri__output *o, int64_t n, const char *const *names,
                                    const record *records) {
  unsigned char b[128];
  uint64_t from = o->written;
  for (int64_t i = 0; i < n; i++) {
    const record *r = &records[i];
    bool far = r->at >= WIDE;
    size_t k = 0, name_size = strlen(names[i]) + 4, extra = (r->wide ? 16u : 0u) + (far ? 8u : 0u);
    put(b, &k, 0x02014b50, 4);
    put(b, &k, 45, 2);
    put_common(b, &k, r, name_size, extra > 0 ? extra + 4 : 0);
    put(b, &k, 0, 2);                    /* comment */
    put(b, &k, 0, 2);                    /* disk */
    put(b, &k, 0, 2);                    /* attributes */
    put(b, &k, (uint64_t)0600 << 16, 4); /* a file of its owner */
    put(b, &k, far ? WIDE : r->at, 4);
    TRY(peri__output_write(o, b, k));
    TRY(peri__output_write(o, names[i], name_size - 4));
    TRY(peri__output_write(o, ".npy", 4));
    k = 0;
    if (extra > 0) {
      put(b, &k, 1, 2);
      put(b, &k, extra, 2);
    }
    if (r->wide) {
      put(b, &k, r->size, 8);
      put(b, &k, r->size, 8);
    }
    if (far) put(b, &k, r->at, 8);
    TRY(peri__output_write(o, b, k));
  }
  uint64_t size = o->written - from, end = o->written;
  bool wide = n >= 0xffff || from >= WIDE
  || size >= WIDE;
  size_t k = 0;
  if (wide) {
    put(b, &k, 0x06064b50, 4);
    put(b, &k, 44, 8);
    put(b, &k, 45, 2);
    put(b, &k, 45, 2);
    put(b, &k, 0, 8); /* disks */
    put(b, &k, (uint64_t)n, 8);
    put(b, &k, (uint64_t)n, 8);
    put(b, &k, size, 8);
    put(b, &k, from, 8);
    put(b, &k, 0x07064b50, 4);
    put(b, &k, 0, 4);
    put(b, &k, end, 8);
    put(b, &k, 1, 4);
  }
  put(b, &k, 0x06054b50, 4);
  put(b, &k, 0, 4); /* disks */
  put(b, &k, wide ? 0xffff : (uint64_t)n, 2);
  put(b, &k, wide ? 0xffff : (uint64_t)n, 2);
  put(b, &k, wide ? WIDE : size, 4);
  put(b, &k, wide ? WIDE : from, 4);
  put(b, &k, 0, 2);
  return peri__output_write(o, b, k);
}

static peri_status check (peri_ctx *ctx, const char *path, int64_t n, const char *const *names,
                          peri_tensor *const *tensors) {
  char npy[PERI__NPY_HEADER];
  if (n < 0 || n > 65536)
    return peri__fail(ctx, PERI_EINVAL, "%s: %lld arrays, at most 65536 are written", path,
                      (long long)n);
  for (int64_t i = 0; i < n; i++) {
    size_t size = strlen(names[i]);
    if (size == 0 || size > 1000)
      return peri__fail(ctx, PERI_EINVAL, "%s: a name has %zu bytes, 1 to 1000 are allowed", path,
                        size);
    TRY(peri__readable(tensors[i]));
    if (peri__npy_header(tensors[i], npy) == 0)
      return peri__fail(ctx, PERI_EDTYPE, "%s: not written: NumPy has no dtype for %s (%s)", path,
                        peri_dtype_name((peri_dtype)tensors[i]->dtype), names[i]);
  }
  return PERI_OK;
}

peri_status peri_npz_save (peri_ctx *ctx, const char *path, int64_t n, const char *const *names,
                           peri_tensor *const *tensors) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  TRY(peri__check_named(ctx, path, n, names, tensors));
  peri__output o;
  TRY(check(ctx, path, n, names, tensors));
  size_t bytes = (size_t)n * sizeof(record);
  record *records = peri__malloc(ctx, bytes);
  if (records == NULL)
    return peri__fail(ctx, PERI_ENOMEM, "%s: no memory for a list of %lld arrays", path,
                      (long long)n);
  memset(records, 0, bytes);
  peri_status s = peri__output_begin(ctx, path, &o);
  if (s == PERI_OK) {
    o.checked = true;
    for (int64_t i = 0; i < n && s == PERI_OK; i++)
      s = write_entry(&o, names[i], tensors[i], &records[i]);
    if (s == PERI_OK) s = write_directory(&o, n, names, records);
    if (s == PERI_OK)
      s = peri__output_commit(&o);
    else
      peri__output_abort(&o);
  }
  peri__free(ctx, records, bytes);
  return s;
}
