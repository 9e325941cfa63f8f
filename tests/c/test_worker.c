/*
** test_worker.c - workers as a C host has them: its own functions in them, its work from other threads, its
** allocator, every order of closing, every allocation failing.
*/
#define _POSIX_C_SOURCE 200809L

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <lauxlib.h>

#include "perilune_lua.h"

/* ---- an allocator of several threads that counts and fails on request ---- */

static _Atomic size_t live;
static _Atomic long left = -1; /* allocations before one fails; -1: never */
static _Atomic bool sticky;    /* all later ones, too */

static void *heap_alloc (void *ud, void *ptr, size_t osize, size_t nsize) {
  (void)ud;
  if (!ptr) osize = 0; /* Lua puts the kind of object there */
  if (nsize == 0) {
    free(ptr);
    live -= osize;
    return NULL;
  }
  if (nsize > osize && left >= 0 && atomic_fetch_sub(&left, 1) <= 0) {
    left = sticky ? 0 : -1;
    return NULL;
  }
  void *p = realloc(ptr, nsize);
  if (p) live += nsize - osize;
  return p;
}

static peri_ctx *open_ctx (void) {
  peri_options o;
  peri_ctx *ctx = NULL;
  peri_options_init(&o);
  o.threads = 1;
  o.alloc = heap_alloc;
  assert_int_equal(peri_open(&o, &ctx), PERI_OK);
  return ctx;
}

static peri_memory stats (peri_ctx *ctx) {
  peri_memory m = { .struct_size = sizeof m };
  assert_int_equal(peri_memory_stats(ctx, &m), PERI_OK);
  return m;
}

static void open_both (peri_ctx **ctx, lua_State **L) {
  *ctx = open_ctx();
  assert_int_equal(peri_lua_new(*ctx, L), PERI_OK);
}

static void run (lua_State *L, const char *text) {
  peri_ctx *ctx = peri_lua_ctx(L);
  peri_status s = peri_lua_run_string(L, text, "=test");
  if (s != PERI_OK) fail_msg("%s: %s", peri_status_name(s), peri_message(ctx));
}

static void close_both (peri_ctx *ctx, lua_State *L) {
  lua_close(L);
  assert_int_equal(stats(ctx).tensors, 0);
  assert_int_equal(stats(ctx).live_bytes, 0);
  peri_close(ctx);
  assert_int_equal(live, 0);
}

/* ---- the host's own functions ---- */

static _Atomic int opened;

static int double_it (lua_State *L) {
  peri_tensor *t = peri_lua_check(L, 1), *in[2] = { t, t }, *out = NULL;
  if (peri_apply(peri_lua_ctx(L), peri_op_find("add"), 2, in, 0, NULL, 1, &out) != PERI_OK)
    return luaL_error(L, "%s", peri_message(peri_lua_ctx(L)));
  peri_lua_push(L, out);
  peri_release(out);
  return 1;
}

static int open_host (lua_State *L) {
  opened++;
  assert_ptr_equal(lua_touserdata(L, 1), &opened);
  lua_pushcfunction(L, double_it);
  lua_setglobal(L, "double_it");
  return 0;
}

static void a_host_gives_its_functions_to_every_worker (void **state) {
  (void)state;
  peri_ctx *ctx;
  lua_State *L;
  opened = 0;
  open_both(&ctx, &L);
  peri_lua_on_worker(L, open_host, &opened);
  run(L, "local peri = require 'perilune'\n"
         "local w = peri.worker(function(x)\n"
         "  local inner = peri.worker(function(y) return double_it(y) end, double_it(x))\n"
         "  return inner:result()\n"
         "end, peri.ones{3})\n"
         "assert(w:result():sum():item() == 12)");
  assert_int_equal(opened, 2);
  peri_lua_on_worker(L, NULL, NULL);
  run(L, "local peri = require 'perilune'\n"
         "assert(peri.worker(function() return double_it == nil end):result())");
  close_both(ctx, L);
}

static int open_badly (lua_State *L) { return luaL_error(L, "the host is not ready"); }

static void what_the_host_raises_is_the_workers_error (void **state) {
  (void)state;
  peri_ctx *ctx;
  lua_State *L;
  open_both(&ctx, &L);
  peri_lua_on_worker(L, open_badly, NULL);
  run(L, "local w = require('perilune').worker(function() return 1 end)\n"
         "local ok, message = pcall(w.result, w)\n"
         "assert(not ok and message:find 'the host is not ready' and w:status() == 'failed')");
  close_both(ctx, L);
}

/* ---- a state with less than all of Lua ---- */

static void a_worker_has_no_more_of_lua_than_its_state (void **state) {
  (void)state;
  peri_ctx *ctx;
  lua_State *L;
  open_both(&ctx, &L);
  run(L,
      "local peri = require 'perilune' local _ = peri.worker, peri.nn\n"
      "package.loaded.os, package.loaded.io, os, io = nil\n"
      "utf8, load, string.dump, package.loadlib = nil, nil, nil, nil\n"
      "local t = { peri.worker(function()\n"
      "  local inner = peri.worker(function() return os == nil and load == nil end):result()\n"
      "  local ok, why = pcall(require, 'os')\n"
      "  return os == nil and io == nil and load == nil and string.dump == nil and utf8 == nil,\n"
      "    string.rep ~= nil and print ~= nil and package.loaded.utf8 ~= nil, ok, inner,\n"
      "    peri.nn.Linear(2, 1)(peri.ones{1, 2}):numel()\n"
      "end):result() }\n"
      "assert(t[1] and t[2] and not t[3] and t[4] and t[5] == 1)");
  close_both(ctx, L);
}

/* ---- work from other threads reaches Lua ---- */

typedef struct request {
  peri_task task;
  lua_State *L;
  double answer;
  _Atomic bool done, dropped;
} request;

static void serve (void *ud, peri_ctx *ctx) {
  request *r = ud;
  lua_getglobal(r->L, "handle");
  lua_pushnumber(r->L, 20);
  r->answer = peri_lua_call(r->L, 1, 1) == PERI_OK ? lua_tonumber(r->L, -1) : -1;
  lua_pop(r->L, 1);
  (void)ctx;
  r->done = true;
}

static void drop (void *ud) { ((request *)ud)->dropped = true; }

static peri_ctx *served;
static void *post_one (void *ud) {
  request *r = ud;
  r->task = (peri_task){ .run = serve, .drop = drop, .ud = r };
  peri_post(served, &r->task);
  return NULL;
}

static void a_script_that_polls_serves_other_threads (void **state) {
  (void)state;
  peri_ctx *ctx;
  lua_State *L;
  pthread_t id;
  open_both(&ctx, &L);
  request r = { .L = L }, late = { .L = L };
  served = ctx;
  run(L, "n = 0 function handle(x) n = n + 1 return x + 1 end");
  assert_int_equal(pthread_create(&id, NULL, post_one, &r), 0);
  run(L, "local peri = require 'perilune' while n == 0 do peri.poll(5) end");
  pthread_join(id, NULL);
  assert_true(r.done && r.answer == 21);
  post_one(&late);
  close_both(ctx, L);
  assert_true(late.dropped && !late.done);
}

/* ---- every order of closing ---- */

static const char hanging[] = "peri = require 'perilune'\n"
                              "c = peri.channel(1)\n"
                              "for i = 1, 3 do peri.worker(function() while true do "
                              "pcall(function() peri.ones{2} end) end end) end\n"
                              "peri.worker(function(ch) ch:receive() end, peri.channel())\n"
                              "kept = peri.worker(function(ch) ch:send(peri.ones{1000}) "
                              "ch:send(peri.ones{1000}) while true do end end, c)\n"
                              "x = c:receive()\n";

static void a_state_may_close_while_its_workers_run (void **state) {
  (void)state;
  peri_ctx *ctx;
  lua_State *L;
  open_both(&ctx, &L);
  run(L, hanging);
  close_both(ctx, L);
}

static void results_outlive_the_worker_and_the_state (void **state) {
  (void)state;
  peri_ctx *ctx, *third = open_ctx();
  lua_State *L;
  peri_shared *h = NULL;
  peri_tensor *t = NULL;
  double sum = 0;
  open_both(&ctx, &L);
  run(L, "result = require('perilune').worker(function() return peri.arange(1000):to 'f32' "
         "end):result()");
  lua_getglobal(L, "result");
  assert_int_equal(peri_share(peri_lua_to(L, -1), PERI_SHARE_DEFAULT, &h), PERI_OK);
  assert_int_equal(stats(ctx).live_bytes - 16 * 8, 0); /* plain numbers' own */
  assert_int_equal(stats(ctx).shared_bytes, 4000);
  lua_close(L);
  peri_close(ctx);
  assert_int_equal(peri_take(third, h, &t), PERI_OK);
  peri_shared_release(h);
  for (int i = 0; i < 1000; i++) {
    double v = 0;
    assert_int_equal(peri_item(t, i, &v), PERI_OK);
    sum += v;
  }
  assert_true(sum == 499500);
  peri_release(t);
  peri_close(third);
  assert_int_equal(live, 0);
}

static void *interrupt_soon (void *arg) {
  struct timespec pause = { .tv_nsec = 30000000 };
  nanosleep(&pause, NULL);
  peri_interrupt(arg);
  return NULL;
}

static void an_interrupted_parent_stops_waiting (void **state) {
  (void)state;
  peri_ctx *ctx;
  lua_State *L;
  pthread_t id;
  open_both(&ctx, &L);
  run(L, "w = require('perilune').worker(function() while true do end end)");
  assert_int_equal(pthread_create(&id, NULL, interrupt_soon, ctx), 0);
  assert_int_equal(peri_lua_run_string(L, "w:result()", "=wait"), PERI_EINTR);
  pthread_join(id, NULL);
  peri_interrupt_clear(ctx);
  run(L, "assert(w:status() == 'running')");
  close_both(ctx, L);
}

/* ---- without memory ---- */

static const char whole_life[] =
    "local peri = require 'perilune'\n"
    "local c = peri.channel(4)\n"
    "local x = peri.ones{3}\n"
    "local up, list = { 1, { 'two' } }, { x, x }\n"
    "local w = peri.worker(function(y, ch)\n"
    "  ch:send { y, up, peri.zeros{2} }\n"
    "  return y * 2, { list }\n"
    "end, x, c)\n"
    "local y, t = w:result()\n"
    "local m = c:receive(0)\n"
    "assert(y:sum():item() == 6 and t[1][1]:numel() == 3 and m[2][2][1] == 'two')\n";

static void every_failed_allocation_leaves_nothing (void **state) {
  (void)state;
  peri_ctx *ctx;
  lua_State *L;
  open_both(&ctx, &L);
  run(L, whole_life);
  run(L, "collectgarbage() collectgarbage()");
  size_t tensors = stats(ctx).tensors;
  for (int alone = 0; alone < 2; alone++) {
    int failures = 0;
    long n = 0;
    bool reached;
    do {
      sticky = !alone;
      left = n;
      peri_status s = peri_lua_run_string(L, whole_life, "=life");
      reached = left <= 0;
      left = -1;
      if (s != PERI_OK) failures++;
      run(L, "collectgarbage() collectgarbage() require('perilune').poll()");
      assert_int_equal(stats(ctx).tensors, tensors);
      assert_int_equal(stats(ctx).shared_bytes, 0);
      n += n < 300 ? 1 : 13;
    } while (reached);
    assert_true(failures > 20);
  }
  close_both(ctx, L);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_host_gives_its_functions_to_every_worker),
    cmocka_unit_test(what_the_host_raises_is_the_workers_error),
    cmocka_unit_test(a_worker_has_no_more_of_lua_than_its_state),
    cmocka_unit_test(a_script_that_polls_serves_other_threads),
    cmocka_unit_test(a_state_may_close_while_its_workers_run),
    cmocka_unit_test(results_outlive_the_worker_and_the_state),
    cmocka_unit_test(an_interrupted_parent_stops_waiting),
    cmocka_unit_test(every_failed_allocation_leaves_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
