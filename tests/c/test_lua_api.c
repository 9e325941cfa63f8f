/*
** test_lua_api.c - the Lua side as a C host sees it: states on its allocator, tensors both ways,
** errors, coroutines, interruption, two contexts at once, failing allocations.
*/
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
#include <lualib.h>

#include "perilune_lua.h"
#include "memory_of.h"
#include "lua_host.h"

/* ---- states ---- */

static void a_closed_state_leaves_no_bytes (void **state) {
  (void)state;
  host h;
  host_open(&h);
  run(&h, "local peri = require 'perilune'\n"
          "local w = peri.randn{4, 4}:requires_grad_()\n"
          "w:matmul(w):sum():backward()\n"
          "x = w.grad\n");
  host_close(&h);
}

static void the_module_opens_in_a_hosts_own_state (void **state) {
  (void)state;
  peri_ctx *ctx;
  assert_int_equal(peri_open(NULL, &ctx), PERI_OK);
  lua_State *L = luaL_newstate();
  luaL_requiref(L, "package", luaopen_package, 1);
  luaL_requiref(L, "_G", luaopen_base, 1);
  lua_settop(L, 0);
  assert_int_equal(peri_lua_open(L, ctx), PERI_OK);
  assert_ptr_equal(peri_lua_ctx(L), ctx);
  assert_int_equal(peri_lua_open(L, ctx), PERI_EHOST); /* once only */
  assert_non_null(strstr(peri_message(ctx), "open already"));
  assert_int_equal(
      peri_lua_run_string(L, "assert(require 'perilune.core'.zeros(3):numel() == 3)", NULL),
      PERI_OK);
  lua_close(L);
  assert_int_equal(memory_of(ctx).tensors, 0);
  peri_close(ctx);
}

/* ---- tensors across the border ---- */

static void tensors_cross_both_ways_without_a_copy (void **state) {
  (void)state;
  host h;
  host_open(&h);
  peri_tensor *t = NULL;
  int64_t shape[1] = { 3 };
  assert_int_equal(peri_empty(h.ctx, PERI_F32, 1, shape, &t), PERI_OK);
  float *data = (float *)peri_data(t);
  data[0] = 1;
  data[1] = 2;
  data[2] = 3;
  peri_lua_push(h.L, t);
  lua_setglobal(h.L, "x");
  run(&h, "x:mul_(2) y = x + 1");
  assert_float_equal(data[2], 6, 0);
  lua_getglobal(h.L, "y");
  peri_tensor *y = peri_lua_to(h.L, -1);
  assert_non_null(y);
  assert_float_equal(((float *)peri_data(y))[0], 3, 0);
  peri_retain(y); /* outlives the Lua value */
  lua_pop(h.L, 1);
  run(&h, "x, y = nil, nil collectgarbage() collectgarbage()");
  assert_float_equal(((float *)peri_data(y))[1], 5, 0);
  lua_pushinteger(h.L, 3);
  assert_null(peri_lua_to(h.L, -1));
  peri_lua_push(h.L, NULL);
  assert_true(lua_isnil(h.L, -1));
  lua_settop(h.L, 0);
  peri_release(y);
  peri_release(t);
  host_close(&h);
}

static void count_release (void *ud, void *data) {
  (void)data;
  ++*(int *)ud;
}

static void imported_memory_is_released_by_the_collector (void **state) {
  (void)state;
  host h;
  host_open(&h);
  float data[4] = { 1, 2, 3, 4 };
  int released = 0;
  int64_t shape[2] = { 2, 2 };
  peri_tensor *t = NULL;
  assert_int_equal(peri_import(h.ctx, PERI_F32, 2, shape, NULL, data, count_release, &released, &t),
                   PERI_OK);
  peri_lua_push(h.L, t);
  peri_release(t);
  lua_setglobal(h.L, "x");
  run(&h, "x:set(2, 1, 7)");
  assert_float_equal(data[2], 7, 0);
  assert_int_equal(released, 0);
  run(&h, "x = nil collectgarbage() collectgarbage()");
  assert_int_equal(released, 1);
  host_close(&h);
}

static void scopes_do_not_free_what_the_host_hands_in (void **state) {
  (void)state;
  host h;
  host_open(&h);
  run(&h, "peri = require 'perilune' scope = peri.scope()");
  peri_tensor *t = NULL;
  assert_int_equal(peri_scalar(h.ctx, PERI_F32, 5, &t), PERI_OK);
  peri_lua_push(h.L, t);
  lua_setglobal(h.L, "x");
  peri_release(t);
  run(&h, "y = x + 1 scope:close() assert(x:item() == 5)\n"
          "local ok, message = pcall(function() return y + 1 end)\n"
          "assert(not ok and message:find 'released by its scope', message)");
  lua_getglobal(h.L, "y");
  assert_null(peri_lua_to(h.L, -1));
  lua_settop(h.L, 0);
  host_close(&h);
}

/* ---- errors ---- */

static void errors_come_back_as_status_and_message (void **state) {
  (void)state;
  host h;
  host_open(&h);
  lua_State *L = h.L;
  lua_pushinteger(L, 42);
  assert_int_equal(peri_lua_run_string(L, "local function f() error 'boom' end f()", "=chunk"),
                   PERI_EHOST);
  assert_non_null(strstr(peri_message(h.ctx), "chunk:1: boom"));
  assert_non_null(strstr(peri_message(h.ctx), "stack traceback"));
  assert_int_equal(peri_lua_run_string(L, "x = = 1", NULL), PERI_EFORMAT);
  assert_int_equal(peri_lua_run_string(L, "\033Lua", NULL), PERI_EFORMAT);
  assert_non_null(strstr(peri_message(h.ctx), "binary"));
  assert_int_equal(peri_lua_run_file(L, "/nonexistent/file.lua"), PERI_EIO);
  assert_int_equal(peri_lua_run_string(L, "error({})", NULL), PERI_EHOST);
  assert_int_equal(
      peri_lua_run_string(
          L, "error(setmetatable({}, { __tostring = function() return 'own' end }))", NULL),
      PERI_EHOST);
  assert_string_equal(peri_message(h.ctx), "own");
  assert_int_equal(peri_lua_run_string(L,
                                       "require('perilune').matmul(require('perilune').zeros{4, 8},"
                                       "require('perilune').zeros{7, 16})",
                                       NULL),
                   PERI_ESHAPE);
  assert_non_null(
      strstr(peri_message(h.ctx), "matmul: (4, 8) x (7, 16): inner sizes 8 and 7 differ"));
  assert_int_equal(lua_gettop(L), 1);
  assert_int_equal(lua_tointeger(L, 1), 42);
  lua_settop(L, 0);
  host_close(&h);
}

static void a_refusal_of_the_runtime_keeps_its_status_through_lua (void **state) {
  (void)state;
  static const struct {
    const char *text;
    peri_status status;
    const char *message;
  } cases[] = {
    { "p.ones{1 << 21}", PERI_ENOMEM, "ones: out of memory: 8388608 bytes wanted" },
    { "local all = {} for i = 1, 1e6 do all[i] = p.ones{1000} end", PERI_ENOMEM, "out of memory" },
    { "p.zeros{2}:add(p.zeros{3})", PERI_ESHAPE, "add: " },
    { "p.zeros({2}, 'q4_0')", PERI_ESHAPE, "zeros: q4_0" },
    { "p.ones{2}:matmul(p.ones({2}, 'bool'))", PERI_EDTYPE, "matmul: " },
    { "p.ones{2}:sum():backward()", PERI_EINVAL, "backward: " },
    { "p.ones{2}:sum(3)", PERI_EINVAL, "dim 3" },
    { "p.ones({2}, 'i64'):requires_grad_()", PERI_EDTYPE, "no gradient" },
    { "assert(p.files.read '/nonexistent')", PERI_EIO, "/nonexistent" },
    { "assert(p.json.decode '[1,')", PERI_EFORMAT, "line 1" },
    /* what others put around the message does not matter, a new error does */
    { "local ok, e = pcall(p.ones, {1 << 21}) error('step 3: ' .. e)", PERI_ENOMEM, "step 3: " },
    { "local ok, e = pcall(p.ones, {1 << 21}) error 'no luck'", PERI_EHOST, "no luck" },
    { "coroutine.wrap(function() p.ones{1 << 21} end)()", PERI_ENOMEM, "out of memory" },
    { "local w = p.ones{2}:requires_grad_() p.custom(function(c, x) return x * 2 end, "
      "function(c, g) p.ones{1 << 21} end)(w):sum():backward()",
      PERI_ENOMEM, "out of memory" },
    { "local w = p.ones{2}:requires_grad_() "
      "p.checkpoint(function(x) n = (n or 0) + 1 return n > 1 and p.ones{1 << 21} or x * 2 end, w)"
      ":sum():backward()",
      PERI_ENOMEM, "out of memory" },
    { "error { code = 5, why = 'late' }", PERI_EHOST, "code = 5" },
    { "error()", PERI_EHOST, "nil" },
  };
  peri_options o;
  heap mem = { .left = -1 };
  peri_ctx *ctx;
  lua_State *L;
  peri_options_init(&o);
  o.alloc = heap_alloc;
  o.alloc_ud = &mem;
  o.max_bytes = 4 << 20;
  assert_int_equal(peri_open(&o, &ctx), PERI_OK);
  assert_int_equal(peri_lua_new(ctx, &L), PERI_OK);
  assert_int_equal(peri_lua_run_string(L, "p = require 'perilune'", NULL), PERI_OK);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    peri_status s = peri_lua_run_string(L, cases[i].text, "=case");
    if (s != cases[i].status || !strstr(peri_message(ctx), cases[i].message))
      fail_msg("%s: %s: %s", cases[i].text, peri_status_name(s), peri_message(ctx));
    assert_int_equal(peri_lua_run_string(L, "collectgarbage()", NULL), PERI_OK);
  }
  lua_close(L);
  assert_int_equal(memory_of(ctx).tensors, 0);
  peri_close(ctx);
  assert_int_equal(mem.live, 0);
}

static void an_error_in_a_vjp_keeps_its_message (void **state) {
  (void)state;
  host h;
  host_open(&h);
  run(&h,
      "peri = require 'perilune'\n"
      "w = peri.ones{2}:requires_grad_()\n"
      "f = peri.custom(function(c, x) return x * 2 end, function(c, g) error 'reward broke' end)\n"
      "loss = f(w):sum()");
  lua_getglobal(h.L, "loss");
  peri_tensor *loss = peri_lua_to(h.L, -1);
  assert_int_equal(peri_backward(h.ctx, loss, NULL, true), PERI_EHOST); /* straight from C */
  assert_non_null(strstr(peri_message(h.ctx), "reward broke"));
  lua_settop(h.L, 0);
  assert_int_equal(peri_lua_run_string(h.L, "loss:backward()", NULL), PERI_EHOST);
  assert_non_null(strstr(peri_message(h.ctx), "reward broke"));
  host_close(&h);
}

static void a_graph_may_outlive_the_lua_state (void **state) {
  (void)state;
  host h;
  host_open(&h);
  run(&h, "peri = require 'perilune'\n"
          "w = peri.ones{2}:requires_grad_()\n"
          "f = peri.custom(function(c, x) return x * 2 end, function(c, g) return g end)\n"
          "loss = f(w):sum()");
  lua_getglobal(h.L, "loss");
  peri_tensor *loss = peri_retain(peri_lua_to(h.L, -1));
  lua_close(h.L);
  assert_int_equal(peri_backward(h.ctx, loss, NULL, false), PERI_EHOST);
  assert_non_null(strstr(peri_message(h.ctx), "closed"));
  peri_release(loss);
  assert_int_equal(memory_of(h.ctx).tensors, 0);
  peri_close(h.ctx);
  assert_int_equal(h.heap.live, 0);
}

/* ---- driving Lua ---- */

static void a_recipe_advances_step_by_step (void **state) {
  (void)state;
  host h;
  host_open(&h);
  run(&h, "local peri = require 'perilune'\n"
          "step = coroutine.wrap(function()\n"
          "  local w = peri.zeros{1}:requires_grad_()\n"
          "  for i in peri.steps(3) do\n"
          "    local loss = (w - 1):square():sum()\n"
          "    loss:backward()\n"
          "    peri.no_grad(function() w:sub_(w.grad * 0.5) end)\n"
          "    w:zero_grad()\n"
          "    coroutine.yield(i, loss:item())\n"
          "  end\n"
          "end)");
  for (int i = 1; i <= 3; i++) {
    lua_getglobal(h.L, "step");
    assert_int_equal(peri_lua_call(h.L, 0, 2), PERI_OK);
    assert_int_equal(lua_tointeger(h.L, -2), i);
    assert_float_equal(lua_tonumber(h.L, -1), i == 1 ? 1 : 0, 1e-6);
    lua_settop(h.L, 0);
  }
  lua_getglobal(h.L, "step");
  assert_int_equal(peri_lua_call(h.L, 0, 0), PERI_OK); /* the loop ends */
  lua_getglobal(h.L, "step");
  assert_int_equal(peri_lua_call(h.L, 0, 0), PERI_EHOST); /* a dead coroutine */
  assert_int_equal(lua_gettop(h.L), 0);
  host_close(&h);
}

static atomic_int ready;

static void *interrupter (void *ud) {
  while (!atomic_load(&ready)) {}
  peri_interrupt((peri_ctx *)ud);
  return NULL;
}

static int signal_ready (lua_State *L) {
  (void)L;
  atomic_store(&ready, 1);
  return 0;
}

static void an_interrupt_ends_a_long_run (void **state) {
  (void)state;
  host h;
  pthread_t thread;
  host_open(&h);
  lua_pushcfunction(h.L, signal_ready);
  lua_setglobal(h.L, "ready");
  atomic_store(&ready, 0);
  assert_int_equal(pthread_create(&thread, NULL, interrupter, h.ctx), 0);
  assert_int_equal(peri_lua_run_string(h.L,
                                       "local peri = require 'perilune'\n"
                                       "local x = peri.ones{64, 64}\n"
                                       "ready()\n"
                                       "while true do x = x:matmul(x):tanh() end",
                                       NULL),
                   PERI_EINTR);
  pthread_join(thread, NULL);
  assert_non_null(strstr(peri_message(h.ctx), "interrupted"));
  peri_interrupt_clear(h.ctx);
  run(&h, "assert(require('perilune').ones{2}:sum():item() == 2)");
  host_close(&h);
}

static void *whole_life (void *ud) {
  host h;
  peri_options o;
  h.heap = (heap){ .left = -1 };
  peri_options_init(&o);
  o.threads = 1;
  o.seed = 7;
  o.alloc = heap_alloc;
  o.alloc_ud = &h.heap;
  if (peri_open(&o, &h.ctx) != PERI_OK) return NULL;
  if (peri_lua_new(h.ctx, &h.L) != PERI_OK) return NULL;
  peri_status s = peri_lua_run_string(h.L,
                                      "local peri = require 'perilune'\n"
                                      "local w = peri.randn{8, 8}:requires_grad_()\n"
                                      "for _ in peri.steps(50) do\n"
                                      "  w:zero_grad() w:matmul(w):tanh():sum():backward()\n"
                                      "  peri.no_grad(function() w:sub_(w.grad * 0.01) end)\n"
                                      "end\n"
                                      "result = w:sum():item()",
                                      NULL);
  lua_getglobal(h.L, "result");
  *(double *)ud = s == PERI_OK ? lua_tonumber(h.L, -1) : -1e9;
  lua_close(h.L);
  peri_close(h.ctx);
  return h.heap.live == 0 ? ud : NULL;
}

static void two_contexts_run_on_two_threads (void **state) {
  (void)state;
  pthread_t a, b;
  double x = 0, y = 1;
  void *good_a, *good_b;
  assert_int_equal(pthread_create(&a, NULL, whole_life, &x), 0);
  assert_int_equal(pthread_create(&b, NULL, whole_life, &y), 0);
  pthread_join(a, &good_a);
  pthread_join(b, &good_b);
  assert_non_null(good_a);
  assert_non_null(good_b);
  assert_true(x == y && x > -1e8); /* the same seed, the same bits */
}

/* ---- failing allocations ---- */

static const char training_step[] =
    "local peri = require 'perilune.core'\n"
    "local function square(c, x) c.x = x return x * x end\n"
    "local function back(c, g) return g * c.x * 2 end\n"
    "do\n"
    "  local _ <close> = peri.scope()\n"
    "  local h = peri.randn{3, 4}:matmul(W):tanh()\n"
    "  h = peri.checkpoint(function(x) return x * W:sum() end, h)\n"
    "  local loss = peri.custom(square, back)(h):sum{1, 2} + peri.tensor{{1, 2}, {3, 4}}:sum()\n"
    "  loss:backward()\n"
    "  local g = peri.grad((W * 2):sum(), { W })\n"
    "  W:zero_grad()\n"
    "  assert(#tostring(g[1]) > 0 and #peri.cat({ W, W }, 1):tolist() == 8)\n"
    "end\n";

static void every_failed_allocation_is_a_clean_error (void **state) {
  (void)state;
  host h;
  host_open(&h);
  run(&h, "W = require('perilune.core').randn{4, 4}:requires_grad_()");
  run(&h, training_step);
  run(&h, "collectgarbage() collectgarbage()");
  size_t tensors = memory_of(h.ctx).tensors, live = memory_of(h.ctx).live_bytes;
  peri_status s;
  int failures = 0;
  long n = 0;
  do { /* everything from the n-th allocation on fails, Lua's own included */
    peri_memory_trim(h.ctx);
    h.heap.left = n;
    s = peri_lua_run_string(h.L, training_step, "=step");
    h.heap.left = -1;
    if (s != PERI_OK) failures++;
    assert_true(s == PERI_OK || s == PERI_ENOMEM);
    run(&h, "W:zero_grad() collectgarbage() collectgarbage() "
            "require('perilune.core').enable_grad():close()");
    assert_int_equal(memory_of(h.ctx).tensors, tensors);
    assert_int_equal(memory_of(h.ctx).live_bytes, live);
    assert_true(peri_grad_enabled(h.ctx));
    n += n < 200 ? 1 : 7;
  } while (s != PERI_OK && n < 20000);
  assert_int_equal(s, PERI_OK);
  assert_true(failures > 20);
  host_close(&h);
}

static void a_state_that_gets_no_memory_is_no_state (void **state) {
  (void)state;
  peri_options o;
  heap mem = { .left = -1 };
  peri_ctx *ctx;
  peri_options_init(&o);
  o.threads = 1;
  o.alloc = heap_alloc;
  o.alloc_ud = &mem;
  assert_int_equal(peri_open(&o, &ctx), PERI_OK);
  for (long n = 0;; n += n < 50 ? 1 : 23) {
    lua_State *L = NULL;
    peri_memory_trim(ctx);
    mem.left = n;
    peri_status s = peri_lua_new(ctx, &L);
    mem.left = -1;
    if (s == PERI_OK) {
      lua_close(L);
      break;
    }
    assert_int_equal(s, PERI_ENOMEM);
    assert_null(L);
    assert_int_equal(memory_of(ctx).tensors, 0);
  }
  peri_close(ctx);
  assert_int_equal(mem.live, 0);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_closed_state_leaves_no_bytes),
    cmocka_unit_test(the_module_opens_in_a_hosts_own_state),
    cmocka_unit_test(tensors_cross_both_ways_without_a_copy),
    cmocka_unit_test(imported_memory_is_released_by_the_collector),
    cmocka_unit_test(scopes_do_not_free_what_the_host_hands_in),
    cmocka_unit_test(errors_come_back_as_status_and_message),
    cmocka_unit_test(a_refusal_of_the_runtime_keeps_its_status_through_lua),
    cmocka_unit_test(an_error_in_a_vjp_keeps_its_message),
    cmocka_unit_test(a_graph_may_outlive_the_lua_state),
    cmocka_unit_test(a_recipe_advances_step_by_step),
    cmocka_unit_test(an_interrupt_ends_a_long_run),
    cmocka_unit_test(two_contexts_run_on_two_threads),
    cmocka_unit_test(every_failed_allocation_is_a_clean_error),
    cmocka_unit_test(a_state_that_gets_no_memory_is_no_state),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
