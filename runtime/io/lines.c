/* lines.c - lines of a text file, plain or gzipped, through one buffer that grows to a line's limit. */
#include <string.h>

#include "io/stream.h"

#define FIRST ((size_t)64 << 10)

struct peri_lines {
  peri_ctx *ctx;
  peri__stream *stream;
  size_t max_bytes;
  char *buffer;
  size_t cap, from, to, looked; /* unread bytes [from, to); [from, looked) has no newline */
  int64_t number;
  bool end;
};

peri_status peri_lines_open (peri_ctx *ctx, const char *path, size_t max_bytes, peri_lines **out) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, out);
  *out = NULL;
  peri_lines *l = peri__malloc(ctx, sizeof *l);
  if (l == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory to read it", path);
  *l = (peri_lines){ .ctx = ctx, .max_bytes = max_bytes == 0 ? SIZE_MAX / 4 : max_bytes };
  peri_status s = peri__stream_open(ctx, path, &l->stream);
  if (s != PERI_OK) {
    peri_lines_close(l);
    return s;
  }
  *out = l;
  return PERI_OK;
}

void peri_lines_close (peri_lines *l) {
  if (l == NULL) return;
  peri__stream_close(l->stream);
  peri__free(l->ctx, l->buffer, l->cap);
  peri__free(l->ctx, l, sizeof *l);
}

/* More bytes behind those that are unread. */
static peri_status fill (peri_lines *l) {
  if (l->from > 0) {
    memmove(l->buffer, l->buffer + l->from, l->to - l->from);
    l->to -= l->from;
    l->looked -= l->from;
    l->from = 0;
  }
  if (l->to == l->cap) {
    size_t cap = l->cap == 0 ? FIRST : 2 * l->cap;
    char *p = peri__realloc(l->ctx, l->buffer, l->cap, cap);
    if (p == NULL) return peri__fail(l->ctx, PERI_ENOMEM, "no memory for a line of %zu bytes", cap);
    l->buffer = p;
    l->cap = cap;
  }
  size_t got;
  TRY(peri__stream_read(l->stream, l->buffer + l->to, l->cap - l->to, &got));
  l->end = got < l->cap - l->to;
  l->to += got;
  return PERI_OK;
}

peri_status peri_lines_next (peri_lines *l, const char **line, size_t *n) {
  if (!l) return PERI_EINVAL;
  NEED(l->ctx, line);
  NEED(l->ctx, n);
  const char *newline = NULL;
  *line = NULL;
  *n = 0;
  for (;;) {
    if (l->to > l->looked) newline = memchr(l->buffer + l->looked, '\n', l->to - l->looked);
    l->looked = l->to;
    size_t size = newline != NULL ? (size_t)(newline - l->buffer) - l->from : l->to - l->from;
    if (size > l->max_bytes)
      return peri__stream_fail(l->stream, "line %lld has more than %zu bytes",
                               (long long)l->number + 1, l->max_bytes);
    if (newline != NULL || l->end) {
      if (newline == NULL && size == 0) return PERI_OK;
      *line = l->buffer + l->from;
      *n = size > 0 && (*line)[size - 1] == '\r' ? size - 1 : size;
      l->from += size + (newline != NULL);
      l->looked = l->from;
      l->number++;
      return PERI_OK;
    }
    TRY(fill(l));
  }
}

int64_t peri_lines_number (const peri_lines *l) { return l ? l->number : 0; }
