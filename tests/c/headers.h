/* headers.h - the text of perilune.h and of every header in runtime/perilune/, for tests that hold over all. */
#ifndef headers_h
#define headers_h

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "untrusted.h"

/* The file's text behind all, which it replaces. */
static inline char *with_file (peri_ctx *ctx, char *all, const char *path) {
  void *data;
  size_t n, length = strlen(all);
  assert_int_equal(peri_file_read(ctx, path, 0, &data, &n), PERI_OK);
  all = realloc(all, length + n + 1);
  assert_non_null(all);
  memcpy(all + length, data, n);
  all[length + n] = 0;
  peri_file_free(ctx, data, n);
  return all;
}

/* free() it. */
static inline char *public_headers (peri_ctx *ctx) {
  static const char folder[] = PERI_SOURCE_DIR "/runtime/perilune";
  char path[1024], *names;
  size_t size;
  char *all = with_file(ctx, calloc(1, 1), PERI_SOURCE_DIR "/runtime/perilune.h");
  assert_int_equal(peri_list_folder(ctx, folder, &names, &size), PERI_OK);
  assert_true(size > 0);
  for (const char *name = names; name < names + size; name += strlen(name) + 1) {
    snprintf(path, sizeof path, "%s/%s", folder, name);
    all = with_file(ctx, all, path);
  }
  peri_file_free(ctx, names, size);
  return all;
}

#endif
