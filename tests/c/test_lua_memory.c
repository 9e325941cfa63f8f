/*
** test_lua_memory.c - memory that runs out below Lua is PERI_ENOMEM for the host, whichever allocation it was
** and whatever a script puts around the error; nothing is left behind and the state goes on.
*/
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* mkstemp */
#endif
#include "lua_host.h"

#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>
#include <unistd.h>

/* A finalizer that Lua has no memory to call is skipped, and its tensor lives on until the context is closed:
** deep() has Lua keep the memory of some calls. */
#define STEP                                                                      \
  "local peri = require 'perilune.core'\n"                                        \
  "local function deep(n) return n == 0 and 0 or 1 + deep(n - 1) end deep(60)\n"  \
  "local function step()\n"                                                       \
  "  local x = peri.ones{40, 50}\n"                                               \
  "  local t = {}\n"                                                              \
  "  for i = 1, 20 do t[i] = ('%d %s'):format(i, tostring(x:sum():item())) end\n" \
  "  return peri.cat({ x, x * 2 + 1 }, 1):tolist(), table.concat(t)\n"            \
  "end\n"

/* Scripts that hand the error on in their own way. */
static const char *const scripts[] = {
  STEP "step()",
  STEP "local ok, e = pcall(step) collectgarbage() if not ok then error('step 3: ' .. tostring(e), "
       "0) end",
  STEP
  "local ok, e = pcall(step) collectgarbage() if not ok then error{ code = 5, message = e } end",
  STEP "local ok, e = pcall(step) collectgarbage() if not ok then error{ cause = tostring(e) } end",
  STEP "local ok, e = pcall(step) collectgarbage()\n"
       "if not ok then error(setmetatable({}, { __tostring = function() return 'in a step: ' .. e "
       "end })) end",
  STEP "assert(pcall(step))",
  STEP "assert(xpcall(step, function(e) return 'handled: ' .. tostring(e) end))",
  STEP "assert(xpcall(step, debug.traceback))",
  STEP "coroutine.wrap(step)()",
  STEP "assert(coroutine.resume(coroutine.create(step)))",
  /* without the op's name, and after something else was refused */
  STEP "local ok, e = pcall(step) collectgarbage()\n"
       "if not ok then\n"
       "  pcall(peri.ones{2}.sum, peri.ones{2}, 7)\n"
       "  error('skipped: ' .. tostring(e):gsub('^[^:]*:%d+: ', ''):gsub('^[%w_]+: ', ''), 0)\n"
       "end",
  STEP "local function back() step() return peri.ones{2} end\n"
       "local w = peri.ones{2}:requires_grad_()\n"
       "peri.custom(function(c, x) return x * 2 end, back)(w):sum():backward()",
  STEP "local w = peri.ones{2}:requires_grad_()\n"
       "peri.checkpoint(function(x) step() return x * 2 end, w):sum():backward()",
};

/* Memory is out from the n-th allocation on: for good, for a while, or once. */
static void at_every_allocation (host *h, const char *script, long most) {
  long n = 0, failures = 0;
  run(h, script);
  run(h, "collectgarbage() collectgarbage()");
  peri_memory before = memory_of(h->ctx);
  for (;; n++) {
    peri_memory_trim(h->ctx);
    h->heap.failed = 0;
    h->heap.most = most;
    h->heap.left = n;
    peri_status s = peri_lua_run_string(h->L, script, "=script");
    h->heap.left = -1;
    if (s != PERI_OK && s != PERI_ENOMEM)
      fail_msg("allocation %ld of %s: %s, %s", n, script, peri_status_name(s),
               peri_message(h->ctx));
    assert_int_equal(lua_gettop(h->L), 0);
    failures += s != PERI_OK;
    run(h, "collectgarbage() collectgarbage()");
    assert_int_equal(memory_of(h->ctx).tensors, before.tensors);
    assert_int_equal(memory_of(h->ctx).live_bytes, before.live_bytes);
    if (h->heap.failed == 0) break;
  }
  assert_true(n > 10);
  if (most == 0) assert_true(failures > 10);
}

static void scripts_may_put_anything_around_it (void **state) {
  (void)state;
  host h;
  host_open(&h);
  for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
    at_every_allocation(&h, scripts[i], 0);
    at_every_allocation(&h, scripts[i], 6);
    at_every_allocation(&h, scripts[i], 1);
  }
  host_close(&h);
}

/* The limit on tensors, not the allocator. */
static void the_limit_of_the_context_is_lack_of_memory_too (void **state) {
  (void)state;
  static const char *const lines[] = {
    "big()",
    "local ok, e = pcall(big) pcall(p.ones{2}.sum, p.ones{2}, 7) error(e, 0)",
    "local ok, e = pcall(big) error('after: ' .. e:match(': (.*)$'))",
    "local ok, e = pcall(big) error{ code = 5, message = e }",
    "coroutine.wrap(big)()",
  };
  peri_options o;
  peri_ctx *ctx;
  lua_State *L;
  char text[512];
  peri_options_init(&o);
  o.max_bytes = 1 << 22;
  assert_int_equal(peri_open(&o, &ctx), PERI_OK);
  assert_int_equal(peri_lua_new(ctx, &L), PERI_OK);
  for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
    snprintf(text, sizeof text,
             "local p = require 'perilune.core' local function big() p.ones{1 << 21} end %s",
             lines[i]);
    if (peri_lua_run_string(L, text, NULL) != PERI_ENOMEM)
      fail_msg("%s: %s", lines[i], peri_message(ctx));
  }
  /* what a script says of its own is its own */
  assert_int_equal(peri_lua_run_string(L, "error 'no such luck'", NULL), PERI_EHOST);
  lua_close(L);
  peri_close(ctx);
}

static void a_file_is_run_or_there_is_no_memory_for_it (void **state) {
  (void)state;
  host h;
  long n = 0;
  char path[] = "/tmp/perilune_lua_memory_XXXXXX";
  int fd = mkstemp(path);
  assert_true(fd >= 0);
  static const char text[] = "local t = {} for i = 1, 50 do t[i] = 'a' .. i end return t";
  assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
  close(fd);
  host_open(&h);
  for (;; n++) {
    h.heap.failed = 0;
    h.heap.left = n;
    peri_status s = peri_lua_run_file(h.L, path);
    h.heap.left = -1;
    assert_int_equal(lua_gettop(h.L), 0);
    if (h.heap.failed == 0) {
      assert_int_equal(s, PERI_OK);
      break;
    }
    assert_int_equal(s, PERI_ENOMEM);
  }
  assert_true(n > 10);
  unlink(path);
  assert_int_equal(peri_lua_run_file(h.L, path), PERI_EIO);
  host_close(&h);
}

/* A state of the host's own: a second try finds it as it was. */
static void the_module_opens_whole_or_not_at_all (void **state) {
  (void)state;
  host h;
  host_open(&h);
  for (long n = 0;; n += n < 100 ? 1 : 13) {
    lua_State *L = lua_newstate(heap_alloc, &h.heap);
    size_t tensors = memory_of(h.ctx).tensors;
    assert_non_null(L);
    luaL_openlibs(L);
    peri_memory_trim(h.ctx);
    h.heap.failed = 0;
    h.heap.left = n;
    peri_status s = peri_lua_open(L, h.ctx);
    h.heap.left = -1;
    assert_int_equal(lua_gettop(L), 0);
    if (s != PERI_OK) {
      assert_int_equal(s, PERI_ENOMEM);
      assert_int_equal(memory_of(h.ctx).tensors, tensors);
      assert_int_equal(peri_lua_open(L, h.ctx), PERI_OK);
    }
    assert_int_equal(
        peri_lua_run_string(L, "assert(require('perilune.core').ones{2}:sum():item() == 2)", NULL),
        PERI_OK);
    assert_int_equal(peri_lua_open(L, h.ctx), PERI_EHOST); /* it is open */
    lua_close(L);
    assert_int_equal(memory_of(h.ctx).tensors, tensors);
    if (h.heap.failed == 0) break;
  }
  host_close(&h);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(scripts_may_put_anything_around_it),
    cmocka_unit_test(the_limit_of_the_context_is_lack_of_memory_too),
    cmocka_unit_test(a_file_is_run_or_there_is_no_memory_for_it),
    cmocka_unit_test(the_module_opens_whole_or_not_at_all),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
