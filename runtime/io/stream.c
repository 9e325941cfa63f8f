/* stream.c - see stream.h. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* close */
#endif
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <zlib.h>

#include "io/stream.h"

#define BUFFER ((size_t)64 << 10)

struct peri__stream {
  peri_ctx *ctx;
  char *own_path; /* of a whole file; NULL for a range */
  const char *path;
  int fd;
  bool own_fd;
  peri__codec codec;
  uint64_t begin, at, end; /* bytes of the file: first, next, behind the last */
  uint64_t delivered;
  uint32_t crc;
  bool inflating, done;
  z_stream z;
  unsigned char buffer[BUFFER];
};

static peri_status fail_with (peri__stream *s, peri_status status, const char *fmt, va_list args) {
  char text[400];
  vsnprintf(text, sizeof text, fmt, args);
  return peri__fail(s->ctx, status, "%s: byte %llu%s: %s", s->path,
                    (unsigned long long)s->delivered,
                    s->codec == PERI__RAW ? "" : " (decompressed)", text);
}

peri_status peri__stream_fail (peri__stream *s, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  peri_status status = fail_with(s, PERI_EFORMAT, fmt, args);
  va_end(args);
  return status;
}

peri_status peri__stream_refuse (peri__stream *s, peri_status status, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  status = fail_with(s, status, fmt, args);
  va_end(args);
  return status;
}

static peri_status start (peri__stream *s) {
  s->z.zalloc = peri__zlib_get;
  s->z.zfree = peri__zlib_put;
  s->z.opaque = s->ctx;
  if (s->codec == PERI__RAW) return PERI_OK;
  if (inflateInit2(&s->z, s->codec == PERI__GZIP ? 15 + 16 : -15) != Z_OK)
    return peri__fail(s->ctx, PERI_ENOMEM, "%s: no memory to decompress it", s->path);
  s->inflating = true;
  return PERI_OK;
}

static peri__stream *new_stream (peri_ctx *ctx, const char *path, int fd) {
  peri__stream *s = peri__malloc(ctx, sizeof *s);
  if (s == NULL) {
    peri__fail(ctx, PERI_ENOMEM, "%s: no memory to read it", path);
    return NULL;
  }
  memset(s, 0, offsetof(peri__stream, buffer));
  s->ctx = ctx;
  s->path = path;
  s->fd = fd;
  return s;
}

peri_status peri__stream_range (peri_ctx *ctx, const char *path, int fd, uint64_t at, uint64_t n,
                                peri__codec codec, peri__stream **out) {
  *out = NULL;
  peri__stream *s = new_stream(ctx, path, fd);
  if (s == NULL) return PERI_ENOMEM;
  s->codec = codec;
  s->begin = s->at = at;
  s->end = at + n;
  peri_status status = start(s);
  if (status != PERI_OK) {
    peri__stream_close(s);
    return status;
  }
  *out = s;
  return PERI_OK;
}

peri_status peri__stream_open (peri_ctx *ctx, const char *path, peri__stream **out) {
  int fd;
  uint64_t size;
  unsigned char magic[2] = { 0, 0 };
  *out = NULL;
  TRY(peri__open_regular(ctx, path, &fd, &size));
  peri__stream *s = new_stream(ctx, path, fd);
  if (s == NULL) {
    close(fd);
    return PERI_ENOMEM;
  }
  s->own_fd = true;
  s->end = size;
  s->own_path = peri__malloc(ctx, strlen(path) + 1);
  peri_status status = PERI_OK;
  if (s->own_path == NULL)
    status = peri__fail(ctx, PERI_ENOMEM, "%s: no memory to read it", path);
  else
    s->path = strcpy(s->own_path, path);
  if (status == PERI_OK && size >= 2) status = peri__read_at(ctx, fd, path, 0, magic, 2);
  if (magic[0] == 0x1f && magic[1] == 0x8b) s->codec = PERI__GZIP;
  if (status == PERI_OK) status = start(s);
  if (status != PERI_OK) {
    peri__stream_close(s);
    return status;
  }
  *out = s;
  return PERI_OK;
}

void peri__stream_close (peri__stream *s) {
  if (s == NULL) return;
  if (s->inflating) inflateEnd(&s->z);
  if (s->own_fd) close(s->fd);
  if (s->own_path != NULL) peri__free(s->ctx, s->own_path, strlen(s->own_path) + 1);
  peri__free(s->ctx, s, sizeof *s);
}

uint64_t peri__stream_at (const peri__stream *s) { return s->delivered; }
uint32_t peri__stream_crc (const peri__stream *s) { return s->crc; }

uint64_t peri__stream_most (const peri__stream *s) {
  uint64_t n = s->end - s->begin, most;
  if (s->codec == PERI__RAW) return n;
  return __builtin_mul_overflow(n, (uint64_t)PERI__DEFLATE_MOST, &most) ? UINT64_MAX : most;
}

static peri_status fill (peri__stream *s) {
  uint64_t left = s->end - s->at;
  size_t n = left < BUFFER ? (size_t)left : BUFFER;
  TRY(peri__read_at(s->ctx, s->fd, s->path, s->at, s->buffer, n));
  s->at += n;
  s->z.next_in = s->buffer;
  s->z.avail_in = (unsigned)n;
  return PERI_OK;
}

/* Decompress into n bytes. Several gzip members follow each other as one. */
static peri_status inflate_some (peri__stream *s, unsigned char *dst, size_t n, size_t *got) {
  *got = 0;
  while (*got < n && !s->done) {
    if (s->z.avail_in == 0 && s->at < s->end) TRY(fill(s));
    size_t room = n - *got < (size_t)1 << 30 ? n - *got : (size_t)1 << 30;
    s->z.next_out = dst + *got;
    s->z.avail_out = (unsigned)room;
    int r = inflate(&s->z, Z_NO_FLUSH);
    *got += room - s->z.avail_out;
    if (r == Z_STREAM_END) {
      s->done = s->codec == PERI__DEFLATE || (s->z.avail_in == 0 && s->at == s->end);
      if (!s->done && inflateReset(&s->z) != Z_OK) r = Z_DATA_ERROR;
    }
    if (r == Z_MEM_ERROR)
      return peri__fail(s->ctx, PERI_ENOMEM, "%s: no memory to decompress it", s->path);
    if (r == Z_OK || r == Z_STREAM_END) continue;
    s->delivered += *got;
    if (r == Z_BUF_ERROR && s->z.avail_in == 0 && s->at == s->end)
      return peri__stream_fail(s, "the compressed data ends too early");
    return peri__stream_fail(s, "the compressed data is damaged%s%s", s->z.msg ? ": " : "",
                             s->z.msg ? s->z.msg : "");
  }
  return PERI_OK;
}

peri_status peri__stream_read (peri__stream *s, void *dst, size_t n, size_t *got) {
  if (s->codec == PERI__RAW) {
    uint64_t left = s->end - s->at;
    *got = left < n ? (size_t)left : n;
    TRY(peri__read_at(s->ctx, s->fd, s->path, s->at, dst, *got));
    s->at += *got;
  } else {
    TRY(inflate_some(s, dst, n, got));
  }
  for (size_t at = 0; at < *got;) { /* zlib counts in 32 bits */
    size_t piece = *got - at < (size_t)1 << 30 ? *got - at : (size_t)1 << 30;
    s->crc = (uint32_t)crc32(s->crc, (const unsigned char *)dst + at, (unsigned)piece);
    at += piece;
  }
  s->delivered += *got;
  return PERI_OK;
}

peri_status peri__stream_need (peri__stream *s, void *dst, size_t n, const char *what) {
  size_t got;
  TRY(peri__stream_read(s, dst, n, &got));
  if (got == n) return PERI_OK;
  return peri__stream_fail(s, "%s needs %zu more bytes", what, n - got);
}

peri_status peri__stream_end (peri__stream *s, const char *what) {
  char more;
  size_t got;
  TRY(peri__stream_read(s, &more, 1, &got));
  return got > 0 ? peri__stream_fail(s, "something follows %s", what) : PERI_OK;
}
