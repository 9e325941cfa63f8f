/* untrusted.c - see untrusted.h. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* mkdtemp */
#endif
#include "untrusted.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <unistd.h>
#include "memory_of.h"

static void *counted (void *ud, void *ptr, size_t osize, size_t nsize) {
  heap *h = ud;
  size_t old = ptr == NULL ? 0 : osize;
  if (h->limit != 0 && h->live - old + nsize > h->limit) return NULL;
  if (nsize == 0) {
    free(ptr);
    if (ptr != NULL) h->blocks--;
    h->live -= old;
    return NULL;
  }
  void *p = realloc(ptr, nsize);
  if (p == NULL) return NULL;
  if (ptr == NULL) h->blocks++;
  h->live += nsize - old;
  if (h->live > h->peak) h->peak = h->live;
  return p;
}

peri_ctx *open_counted (heap *h) {
  peri_options o;
  peri_ctx *ctx;
  peri_options_init(&o);
  o.threads = 1;
  o.alloc = counted;
  o.alloc_ud = h;
  memset(h, 0, sizeof *h);
  assert_int_equal(peri_open(&o, &ctx), PERI_OK);
  return ctx;
}

void close_counted (peri_ctx *ctx, heap *h) {
  assert_int_equal(memory_of(ctx).live_bytes, 0);
  assert_int_equal(memory_of(ctx).tensors, 0);
  peri_close(ctx);
  assert_int_equal(h->live, 0);
  assert_int_equal(h->blocks, 0);
}

const char *scratch_folder (char path[256]) {
  const char *base = getenv("TMPDIR");
  snprintf(path, 256, "%s/perilune-test-XXXXXX",
           base != NULL && strlen(base) < 200 ? base : "/tmp");
  assert_non_null(mkdtemp(path));
  return path;
}

void write_file (const char *path, const void *data, size_t size) {
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(data, 1, size, f), size);
  assert_int_equal(fclose(f), 0);
}

void fail_every_allocation (peri_ctx *ctx, const heap *h, bool borne, peri_status (*use)(void *ud),
                            void *ud) {
  for (int sticky = 0; sticky < 2; sticky++)
    for (int64_t n = 0;; n++) {
      peri_memory_trim(ctx);
      size_t live = memory_of(ctx).live_bytes, taken = h->live;
      peri_test_fail_after(ctx, n, sticky != 0);
      peri_status s = use(ud);
      bool fired = peri_test_fired(ctx);
      peri_test_fail_after(ctx, -1, false);
      bool may_pass = !fired || (borne && sticky == 0);
      if (s == PERI_OK ? !may_pass : s != PERI_ENOMEM || !fired)
        fail_msg("allocation %d%s: %s: %s", (int)n, sticky != 0 ? " and what follows" : "",
                 peri_status_name(s), s == PERI_OK ? "" : peri_message(ctx));
      peri_memory_trim(ctx);
      assert_int_equal(memory_of(ctx).live_bytes, live);
      assert_int_equal(h->live, taken);
      if (!fired) break;
    }
}

void want_failure (peri_ctx *ctx, peri_status s, peri_status want, const char *part) {
  if (s != want || strstr(peri_message(ctx), part) == NULL)
    fail_msg("status %s, message \"%s\"; expected %s and \"%s\"", peri_status_name(s),
             s == PERI_OK ? "" : peri_message(ctx), peri_status_name(want), part);
}
