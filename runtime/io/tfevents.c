/*
** tfevents.c - TensorBoard event files. A record is u64 length, masked CRC-32C of those
** 8 bytes, the bytes, masked CRC-32C of the bytes (tensorflow/core/lib/io/record_writer.h); the bytes
** are an Event message (tensorflow/core/util/event.proto), encoded here by hand for scalars.
*/
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE
#endif
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/json.h"
#include "io/files.h"

#define MAX_TAG 1024
#define MAX_EVENT (MAX_TAG + 64)
#define MAX_RECORD ((uint64_t)64 << 20) /* of others' events in a file that is continued */

struct peri_tfevents {
  peri_ctx *ctx;
  char *path;
  size_t path_size;
  int fd;
};

typedef struct buffer {
  unsigned char b[MAX_EVENT + 16];
  size_t n;
} buffer;

static void put_bytes (buffer *o, const void *src, size_t n) {
  memcpy(o->b + o->n, src, n);
  o->n += n;
}

static void store_fixed (unsigned char *p, uint64_t v, int bytes) {
  for (int i = 0; i < bytes; i++, v >>= 8) p[i] = (unsigned char)v;
}

static void put_fixed (buffer *o, uint64_t v, int bytes) {
  store_fixed(o->b + o->n, v, bytes);
  o->n += (size_t)bytes;
}

static void put_varint (buffer *o, uint64_t v) {
  for (; v >= 0x80; v >>= 7) o->b[o->n++] = (unsigned char)(v | 0x80);
  o->b[o->n++] = (unsigned char)v;
}

/* Field number and wire type: 0 varint, 1 64 bits, 2 bytes, 5 32 bits. */
static void put_field (buffer *o, unsigned field, unsigned wire) {
  put_varint(o, field << 3 | wire);
}

static void put_message (buffer *o, unsigned field, const buffer *m) {
  put_field(o, field, 2);
  put_varint(o, m->n);
  put_bytes(o, m->b, m->n);
}

static void put_double (buffer *o, unsigned field, double v) {
  uint64_t bits;
  memcpy(&bits, &v, sizeof bits);
  put_field(o, field, 1);
  put_fixed(o, bits, 8);
}

static uint32_t masked (const void *data, size_t n) {
  uint32_t crc = peri__crc32c(data, n);
  return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

/* In one write at the end of the file; a write that fails half-way is taken back. room: n + 16 bytes. */
static peri_status append_in (peri_tfevents *w, unsigned char *room, const void *event, size_t n) {
  store_fixed(room, n, 8);
  store_fixed(room + 8, masked(room, 8), 4);
  memcpy(room + 12, event, n);
  store_fixed(room + 12 + n, masked(room + 12, n), 4);
  off_t end = lseek(w->fd, 0, SEEK_END);
  if (end < 0) return peri__io_fail(w->ctx, w->path, "find the end");
  peri_status s = peri__write_all(w->ctx, w->fd, w->path, room, n + 16);
  if (s != PERI_OK && ftruncate(w->fd, end) != 0)
    peri_log(w->ctx, PERI_LOG_WARN, "%s: ends in half a record", w->path);
  return s;
}

static peri_status append (peri_tfevents *w, const buffer *event) {
  unsigned char room[sizeof event->b + 16];
  return append_in(w, room, event->b, event->n);
}

static uint64_t get_fixed (const unsigned char *p, int bytes) {
  uint64_t v = 0;
  for (int i = bytes - 1; i >= 0; i--) v = v << 8 | p[i];
  return v;
}

/* Length of the record at an offset, 0 if there is no whole one. */
static peri_status record_at (peri_tfevents *w, uint64_t at, uint64_t size, uint64_t *length) {
  unsigned char head[12];
  *length = 0;
  if (size - at < 16) return PERI_OK;
  TRY(peri__read_at(w->ctx, w->fd, w->path, at, head, 12));
  uint64_t n = get_fixed(head, 8);
  if (get_fixed(head + 8, 4) != masked(head, 8) || n > MAX_RECORD || n > size - at - 16)
    return PERI_OK;
  unsigned char *body = peri__malloc(w->ctx, (size_t)n + 4);
  if (body == NULL) return peri__fail(w->ctx, PERI_ENOMEM, "%s: no memory for a record", w->path);
  peri_status s = peri__read_at(w->ctx, w->fd, w->path, at + 12, body, (size_t)n + 4);
  if (s == PERI_OK && get_fixed(body + n, 4) == masked(body, (size_t)n)) *length = n + 16;
  peri__free(w->ctx, body, (size_t)n + 4);
  return s;
}

/* Check what an earlier run left and cut half a record off its end. */
static peri_status continue_file (peri_tfevents *w, uint64_t size) {
  uint64_t at = 0, n = 1;
  while (at < size && n > 0) {
    TRY(record_at(w, at, size, &n));
    at += n;
  }
  if (at == 0) return peri__fail(w->ctx, PERI_EFORMAT, "%s: byte 0: is not an event file", w->path);
  if (at < size && ftruncate(w->fd, (off_t)at) != 0)
    return peri__io_fail(w->ctx, w->path, "shorten");
  return PERI_OK;
}

static peri_status open_file (peri_tfevents *w) {
  struct stat st;
  w->fd = open(w->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0666);
  if (w->fd < 0 || fstat(w->fd, &st) != 0) return peri__io_fail(w->ctx, w->path, "open");
  if (!S_ISREG(st.st_mode))
    return peri__fail(w->ctx, PERI_EIO, "%s: is not a regular file", w->path);
  if (st.st_size > 0) return continue_file(w, (uint64_t)st.st_size);
  buffer event = { .n = 0 };
  struct timespec now = { 0, 0 };
  clock_gettime(CLOCK_REALTIME, &now);
  put_double(&event, 1, (double)now.tv_sec);
  put_field(&event, 3, 2); /* file_version */
  put_varint(&event, 13);
  put_bytes(&event, "brain.Event:2", 13);
  return append(w, &event);
}

peri_status peri_tfevents_open (peri_ctx *ctx, const char *path, peri_tfevents **out) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, out);
  *out = NULL;
  peri_tfevents *w = peri__malloc(ctx, sizeof *w);
  if (w == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory", path);
  *w = (peri_tfevents){ .ctx = ctx, .path_size = strlen(path) + 1, .fd = -1 };
  w->path = peri__malloc(ctx, w->path_size);
  peri_status s = w->path == NULL ? peri__fail(ctx, PERI_ENOMEM, "%s: no memory", path) : PERI_OK;
  if (s == PERI_OK) {
    memcpy(w->path, path, w->path_size);
    s = open_file(w);
  }
  if (s != PERI_OK)
    peri_tfevents_close(w);
  else
    *out = w;
  return s;
}

peri_status peri_tfevents_scalar (peri_tfevents *w, const char *tag, int64_t step, double value,
                                  double wall_time) {
  if (!w) return PERI_EINVAL;
  NEED(w->ctx, tag);
  buffer event = { .n = 0 }, summary = { .n = 0 }, item = { .n = 0 };
  size_t n = strlen(tag);
  float f = (float)value;
  uint32_t bits;
  if (n == 0 || n > MAX_TAG || peri__utf8_prefix(tag, n) != n)
    return peri__fail(w->ctx, PERI_EINVAL,
                      "a tag of %zu bytes: 1 to %d bytes of UTF-8 are expected", n, MAX_TAG);
  memcpy(&bits, &f, sizeof bits);
  put_field(&item, 1, 2); /* Summary.Value.tag */
  put_varint(&item, n);
  put_bytes(&item, tag, n);
  put_field(&item, 2, 5); /* Summary.Value.simple_value */
  put_fixed(&item, bits, 4);
  put_message(&summary, 1, &item);
  put_double(&event, 1, wall_time);
  put_field(&event, 2, 0);
  put_varint(&event, (uint64_t)step);
  put_message(&event, 5, &summary);
  return append(w, &event);
}

peri_status peri_tfevents_event (peri_tfevents *w, const void *event, size_t size) {
  if (!w) return PERI_EINVAL;
  NEED(w->ctx, event);
  if (size == 0 || size > MAX_RECORD)
    return peri__fail(w->ctx, PERI_EINVAL, "an event of %zu bytes: 1 to %llu are expected", size,
                      (unsigned long long)MAX_RECORD);
  unsigned char *room = peri__malloc(w->ctx, size + 16);
  if (room == NULL) return peri__fail(w->ctx, PERI_ENOMEM, "%s: no memory for a record", w->path);
  peri_status s = append_in(w, room, event, size);
  peri__free(w->ctx, room, size + 16);
  return s;
}

void peri_tfevents_close (peri_tfevents *w) {
  if (w == NULL) return;
  if (w->fd >= 0) close(w->fd);
  if (w->path != NULL) peri__free(w->ctx, w->path, w->path_size);
  peri__free(w->ctx, w, sizeof *w);
}
