/* gguf_open.c - GGUF files opened and closed; gguf.c checks what is in them. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* close */
#endif
#include <string.h>
#include <unistd.h>

#include "io/gguf.h"

static peri_status new_handle (peri_ctx *ctx, const char *path, uint64_t size, peri_gguf **out) {
  size_t path_size = strlen(path) + 1;
  peri_gguf *f = peri__malloc(ctx, sizeof *f);
  char *copy = peri__malloc(ctx, path_size);
  if (f == NULL || copy == NULL) {
    peri__free(ctx, f, sizeof *f);
    peri__free(ctx, copy, path_size);
    return peri__fail(ctx, PERI_ENOMEM, "%s: no memory to open it", path);
  }
  memcpy(copy, path, path_size);
  *f = (peri_gguf){ .ctx = ctx,
                    .path = copy,
                    .path_size = path_size,
                    .size = size,
                    .alignment = GGUF_ALIGNMENT,
                    .fd = -1 };
  *out = f;
  return PERI_OK;
}

peri_status peri_gguf_open (peri_ctx *ctx, const char *path, bool map, peri_gguf **out) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, out);
  int fd;
  uint64_t size;
  peri_gguf *f = NULL;
  *out = NULL;
  TRY(peri__open_regular(ctx, path, &fd, &size));
  peri_status s = new_handle(ctx, path, size, &f);
  if (s != PERI_OK) {
    close(fd);
    return s;
  }
  f->fd = fd;
  if (map) s = peri__map_file(ctx, path, fd, size, &f->map);
  if (f->map != NULL) {
    f->header = f->map->base;
    f->have = size;
  }
  if (s == PERI_OK) s = peri__gguf_read_header(f);
  if (s != PERI_OK) {
    peri_gguf_close(f);
    return s;
  }
  *out = f;
  return PERI_OK;
}

peri_status peri_gguf_parse (peri_ctx *ctx, const void *data, size_t size, peri_gguf **out) {
  NEED(ctx, ctx);
  NEED(ctx, out);
  if (size > 0) NEED(ctx, data);
  peri_gguf *f;
  *out = NULL;
  TRY(new_handle(ctx, "memory", size, &f));
  f->header = f->memory = data;
  f->have = size;
  peri_status s = peri__gguf_read_header(f);
  if (s != PERI_OK) {
    peri_gguf_close(f);
    return s;
  }
  *out = f;
  return PERI_OK;
}

peri_status peri__gguf_check (peri_ctx *ctx, const char *path, const void *header, size_t n,
                              uint64_t size) {
  peri_gguf *f;
  TRY(new_handle(ctx, path, size, &f));
  f->header = header;
  f->have = n;
  peri_status s = peri__gguf_read_header(f);
  peri_gguf_close(f);
  return s;
}

void peri_gguf_close (peri_gguf *f) {
  if (f == NULL) return;
  peri_ctx *ctx = f->ctx;
  if (f->map != NULL) peri__map_drop(f->map, NULL);
  if (f->fd >= 0) close(f->fd);
  peri__free(ctx, f->values, (size_t)f->nvalues * sizeof *f->values);
  peri__free(ctx, f->values_by_key, (size_t)f->nvalues * sizeof *f->values_by_key);
  peri__free(ctx, f->entries, (size_t)f->n * sizeof *f->entries);
  peri__free(ctx, f->entries_by_name, (size_t)f->n * sizeof *f->entries_by_name);
  peri__free(ctx, f->buffer, f->buffer_size);
  peri__free(ctx, f->path, f->path_size);
  peri__free(ctx, f, sizeof *f);
}
