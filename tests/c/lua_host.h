/* lua_host.h - a host with a Lua state whose memory is counted and fails on request. */
#ifndef lua_host_h
#define lua_host_h

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "memory_of.h"
#include "perilune_lua.h"

typedef struct heap {
  size_t live;
  long left; /* allocations before they fail; -1 = never */
  long most; /* how many fail then; 0 = all */
  long failed;
} heap;

static inline void *heap_alloc (void *ud, void *ptr, size_t osize, size_t nsize) {
  heap *h = (heap *)ud;
  if (!ptr) osize = 0; /* Lua puts the kind of object there */
  if (nsize == 0) {
    free(ptr);
    h->live -= osize;
    return NULL;
  }
  if (nsize > osize && h->left >= 0 && h->left-- == 0) {
    h->left = ++h->failed == h->most ? -1 : 0;
    return NULL;
  }
  void *p = realloc(ptr, nsize);
  if (p) h->live = h->live - osize + nsize;
  return p;
}

typedef struct host {
  heap heap;
  peri_ctx *ctx;
  lua_State *L;
} host;

static inline void host_open (host *h) {
  peri_options o;
  *h = (host){ .heap = { .left = -1 } };
  peri_options_init(&o);
  o.threads = 2;
  o.alloc = heap_alloc;
  o.alloc_ud = &h->heap;
  assert_int_equal(peri_open(&o, &h->ctx), PERI_OK);
  assert_int_equal(peri_lua_new(h->ctx, &h->L), PERI_OK);
  assert_int_equal(lua_gettop(h->L), 0);
}

static inline void host_close (host *h) {
  lua_close(h->L);
  assert_int_equal(memory_of(h->ctx).tensors, 0);
  assert_int_equal(memory_of(h->ctx).live_bytes, 0);
  peri_close(h->ctx);
  assert_int_equal(h->heap.live, 0);
}

static inline void run (host *h, const char *text) {
  peri_status s = peri_lua_run_string(h->L, text, "=test");
  if (s != PERI_OK) fail_msg("%s: %s", peri_status_name(s), peri_message(h->ctx));
  assert_int_equal(lua_gettop(h->L), 0);
}

#endif
