/*
** npz.c - NumPy's .npz files: zip archives of .npy files, stored or deflated, zip64 where needed
** (APPNOTE.TXT 6.3 of PKWARE). Nothing is unpacked to disk, names are only names. An entry's sizes
** bound what it may take, and its checksum is checked.
*/
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* close, pwrite */
#endif
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "io/stream.h"

#define MAX_ENTRIES 65536
#define END_SIZE 22 /* of the end record without its comment */
#define TAIL ((uint64_t)END_SIZE + 65535)

typedef struct entry {
  uint64_t at, packed, size; /* of the local header, of the data in and out of the archive */
  uint32_t name, crc;        /* name: offset in the directory */
  uint16_t name_size, method, flags;
} entry;

struct peri_npz {
  peri_ctx *ctx;
  char *path;
  size_t path_size;
  int fd;
  uint64_t size;
  unsigned char *directory;
  size_t directory_size;
  entry *entries;
  int64_t n;
};

static uint16_t get16 (const unsigned char *p) { return (uint16_t)(p[0] | p[1] << 8); }
static uint32_t get32 (const unsigned char *p) { return get16(p) | (uint32_t)get16(p + 2) << 16; }
static uint64_t get64 (const unsigned char *p) { return get32(p) | (uint64_t)get32(p + 4) << 32; }

static peri_status bad (const peri_npz *z, uint64_t at, const char *what) {
  return peri__fail(z->ctx, PERI_EFORMAT, "%s: byte %llu: %s", z->path, (unsigned long long)at,
                    what);
}

/* ---- the directory ---- */

typedef struct directory {
  uint64_t at, size, n;
} directory;

static peri_status read_zip64 (const peri_npz *z, uint64_t end, directory *d) {
  unsigned char locator[20], b[56];
  if (end < sizeof locator) return bad(z, end, "zip64: there is no locator");
  TRY(peri__read_at(z->ctx, z->fd, z->path, end - sizeof locator, locator, sizeof locator));
  if (get32(locator) != 0x07064b50) return bad(z, end, "zip64: there is no locator");
  uint64_t at = get64(locator + 8);
  if (at > z->size || z->size - at < sizeof b)
    return bad(z, end, "zip64: the end record is outside of the file");
  TRY(peri__read_at(z->ctx, z->fd, z->path, at, b, sizeof b));
  if (get32(b) != 0x06064b50) return bad(z, at, "zip64: there is no end record");
  *d = (directory){ .n = get64(b + 32), .size = get64(b + 40), .at = get64(b + 48) };
  return PERI_OK;
}

/* The end record is the last one whose comment ends with the file. */
static peri_status find_directory (const peri_npz *z, unsigned char *tail, size_t n, directory *d) {
  uint64_t from = z->size - n;
  for (size_t i = n - END_SIZE + 1; i-- > 0;) {
    if (get32(tail + i) != 0x06054b50 || get16(tail + i + 20) != n - END_SIZE - i) continue;
    *d = (directory){ .n = get16(tail + i + 10),
                      .size = get32(tail + i + 12),
                      .at = get32(tail + i + 16) };
    if (d->n == 0xffff || d->size == 0xffffffff || d->at == 0xffffffff)
      TRY(read_zip64(z, from + i, d));
    if (d->at > from + i || d->size > from + i - d->at)
      return bad(z, from + i, "the directory is outside of the file");
    if (d->n > MAX_ENTRIES) return bad(z, from + i, "more than 65536 entries");
    if (d->n > d->size / 46) return bad(z, from + i, "more entries than the directory can hold");
    return PERI_OK;
  }
  return bad(z, z->size, "no zip archive ends like this");
}

/* Sizes and offset that do not fit into 32 bits are in an extra field. */
static peri_status read_extra (const peri_npz *z, uint64_t at, const unsigned char *p, size_t n,
                               entry *e) {
  uint64_t *const wide[] = { &e->size, &e->packed, &e->at };
  bool missing = false;
  for (int i = 0; i < 3; i++) missing = missing || *wide[i] == 0xffffffff;
  for (size_t i = 0; missing && i + 4 <= n; i += 4 + (size_t)get16(p + i + 2)) {
    size_t left = get16(p + i + 2), from = i + 4;
    if (left > n - from) return bad(z, at, "an extra field is too long");
    if (get16(p + i) != 1) continue;
    for (int k = 0; k < 3; k++) {
      if (*wide[k] != 0xffffffff) continue;
      if (left < 8) return bad(z, at, "zip64: a size is missing");
      *wide[k] = get64(p + from);
      from += 8;
      left -= 8;
    }
    return PERI_OK;
  }
  return PERI_OK;
}

static peri_status read_entry (peri_npz *z, uint64_t base, size_t *at, entry *e) {
  const unsigned char *p = z->directory + *at;
  size_t left = z->directory_size - *at;
  if (left < 46 || get32(p) != 0x02014b50) return bad(z, base + *at, "no entry begins like this");
  size_t name = get16(p + 28), extra = get16(p + 30), comment = get16(p + 32);
  if (name + extra + comment > left - 46) return bad(z, base + *at, "an entry is cut off");
  *e = (entry){ .flags = get16(p + 8),
                .method = get16(p + 10),
                .crc = get32(p + 16),
                .packed = get32(p + 20),
                .size = get32(p + 24),
                .at = get32(p + 42),
                .name = (uint32_t)(*at + 46),
                .name_size = (uint16_t)name };
  TRY(read_extra(z, base + *at, p + 46 + name, extra, e));
  if (name == 0 || memchr(p + 46, 0, name) != NULL)
    return bad(z, base + *at, "a name is empty or holds a zero byte");
  if (e->at > z->size || e->packed > z->size - e->at)
    return bad(z, base + *at, "an entry is outside of the file");
  *at += 46 + name + extra + comment;
  return PERI_OK;
}

static int by_name (void *ud, const void *a, const void *b) {
  const entry *x = a, *y = b;
  const peri_npz *z = ud;
  int c = memcmp(z->directory + x->name, z->directory + y->name,
                 x->name_size < y->name_size ? x->name_size : y->name_size);
  return c != 0 ? c : x->name_size < y->name_size ? -1 : x->name_size > y->name_size;
}

static peri_status read_directory (peri_npz *z, const directory *d) {
  size_t at = 0;
  if (d->size > UINT32_MAX) return bad(z, d->at, "the directory has more than 4 GiB");
  z->directory_size = (size_t)d->size;
  z->directory = peri__malloc(z->ctx, z->directory_size);
  z->entries = peri__malloc(z->ctx, (size_t)d->n * sizeof *z->entries);
  z->n = (int64_t)d->n;
  if (z->directory == NULL || z->entries == NULL)
    return peri__fail(z->ctx, PERI_ENOMEM, "%s: no memory for its directory", z->path);
  TRY(peri__read_at(z->ctx, z->fd, z->path, d->at, z->directory, z->directory_size));
  for (int64_t i = 0; i < z->n; i++) TRY(read_entry(z, d->at, &at, &z->entries[i]));
  peri__sort(z->entries, (size_t)z->n, sizeof *z->entries, by_name, z);
  for (int64_t i = 1; i < z->n; i++)
    if (by_name(z, &z->entries[i - 1], &z->entries[i]) == 0)
      return bad(z, d->at + z->entries[i].name, "two entries have this name");
  return PERI_OK;
}

static peri_status read_archive (peri_npz *z) {
  size_t n = (size_t)(z->size < TAIL ? z->size : TAIL);
  directory d = { 0 };
  if (n < END_SIZE) return bad(z, 0, "too short for a zip archive");
  unsigned char *tail = peri__malloc(z->ctx, n);
  if (tail == NULL) return peri__fail(z->ctx, PERI_ENOMEM, "%s: no memory to read it", z->path);
  peri_status s = peri__read_at(z->ctx, z->fd, z->path, z->size - n, tail, n);
  if (s == PERI_OK) s = find_directory(z, tail, n, &d);
  peri__free(z->ctx, tail, n);
  return s == PERI_OK ? read_directory(z, &d) : s;
}

peri_status peri_npz_open (peri_ctx *ctx, const char *path, peri_npz **out) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, out);
  size_t path_size = strlen(path) + 1;
  *out = NULL;
  peri_npz *z = peri__malloc(ctx, sizeof *z);
  char *copy = peri__malloc(ctx, path_size);
  if (z == NULL || copy == NULL) {
    peri__free(ctx, z, sizeof *z);
    peri__free(ctx, copy, path_size);
    return peri__fail(ctx, PERI_ENOMEM, "%s: no memory to open it", path);
  }
  memcpy(copy, path, path_size);
  *z = (peri_npz){ .ctx = ctx, .path = copy, .path_size = path_size, .fd = -1 };
  peri_status s = peri__open_regular(ctx, path, &z->fd, &z->size);
  if (s == PERI_OK) s = read_archive(z);
  if (s != PERI_OK) {
    peri_npz_close(z);
    return s;
  }
  *out = z;
  return PERI_OK;
}

void peri_npz_close (peri_npz *z) {
  if (z == NULL) return;
  if (z->fd >= 0) close(z->fd);
  peri__free(z->ctx, z->directory, z->directory_size);
  peri__free(z->ctx, z->entries, (size_t)z->n * sizeof *z->entries);
  peri__free(z->ctx, z->path, z->path_size);
  peri__free(z->ctx, z, sizeof *z);
}

int64_t peri_npz_count (const peri_npz *z) { return z ? z->n : 0; }

const char *peri_npz_name (const peri_npz *z, int64_t i, size_t *n) {
  size_t unused;
  if (!n) n = &unused;
  *n = 0;
  if (!z || i < 0 || i >= z->n) return NULL;
  const entry *e = &z->entries[i];
  const char *s = (const char *)z->directory + e->name;
  *n = e->name_size;
  if (*n > 4 && memcmp(s + *n - 4, ".npy", 4) == 0) *n -= 4;
  return s;
}

static peri_status data_of (const peri_npz *z, const entry *e, uint64_t *data) {
  unsigned char b[30];
  if (e->flags & 1) return bad(z, e->at, "the entry is encrypted");
  if (e->method != 0 && e->method != 8)
    return bad(z, e->at, "the entry is neither stored nor deflated");
  if (e->method == 0 && e->packed != e->size)
    return bad(z, e->at, "the two sizes of a stored entry differ");
  if (e->size / PERI__DEFLATE_MOST > e->packed)
    return bad(z, e->at, "the size is more than deflate can make of the data");
  if (z->size - e->at < sizeof b) return bad(z, e->at, "the entry is cut off");
  TRY(peri__read_at(z->ctx, z->fd, z->path, e->at, b, sizeof b));
  if (get32(b) != 0x04034b50) return bad(z, e->at, "no entry begins like this");
  *data = e->at + sizeof b + get16(b + 26) + get16(b + 28);
  if (*data > z->size || e->packed > z->size - *data) return bad(z, e->at, "the entry is cut off");
  return PERI_OK;
}

peri_status peri_npz_tensor (peri_npz *z, int64_t i, peri_tensor **out) {
  if (!z) return PERI_EINVAL;
  NEED(z->ctx, out);
  uint64_t data = 0;
  peri__stream *st;
  *out = NULL;
  if (i < 0 || i >= z->n)
    return peri__fail(z->ctx, PERI_EINVAL, "%s: array %lld of %lld", z->path, (long long)i,
                      (long long)z->n);
  const entry *e = &z->entries[i];
  TRY(data_of(z, e, &data));
  TRY(peri__stream_range(z->ctx, z->path, z->fd, data, e->packed,
                         e->method == 0 ? PERI__RAW : PERI__DEFLATE, &st));
  peri_status s = peri__npy_read(z->ctx, st, out);
  const char *name = (const char *)z->directory + e->name;
  if (s == PERI_EFORMAT && peri__stream_at(st) <= 12 &&
      (e->name_size < 4 || memcmp(name + e->name_size - 4, ".npy", 4) != 0))
    s = PERI_ENOSUP; /* a file of another kind beside the arrays */
  if (s == PERI_OK && peri__stream_at(st) != e->size)
    s = bad(z, e->at, "the array has another size than the entry says");
  if (s == PERI_OK && peri__stream_crc(st) != e->crc)
    s = bad(z, e->at, "the checksum does not match");
  peri__stream_close(st);
  if (s == PERI_OK) return PERI_OK;
  peri_release(*out);
  *out = NULL;
  return peri__fail(z->ctx, s, "%s (entry \"%.*s\")", z->ctx->message,
                    e->name_size > 100 ? 100 : e->name_size, name);
}
