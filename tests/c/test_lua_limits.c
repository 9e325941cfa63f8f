/*
** test_lua_limits.c - whatever Lua code does, one interrupt or the end of its instructions brings it to
** the top, however it was asked; limits on memory; hooks of scripts and hosts; modes in a host.
*/
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <lauxlib.h>
#include <lualib.h>

#include "perilune_lua.h"
#include "memory_of.h"

/* Scripts that do not end. ready() is called when they are about to begin that. */
static const struct {
  const char *name, *text;
} endless[] = {
  { "a loop", "ready() while true do end" },
  { "a recursion", "ready() local function f() return f() end f()" },
  { "a loop in pcall in a loop",
    "ready() while true do pcall(function() while true do end end) end" },
  { "ops in pcall",
    "local a = peri.ones{2} ready() while true do pcall(function() a = a + 1 end) end" },
  { "one op in pcall", "local a = peri.ones{2} ready() while true do pcall(a.exp, a) end" },
  { "pcall in itself", "ready() local function f() while true do pcall(f) end end f()" },
  { "errors thrown on",
    "ready() while true do pcall(function() local ok, e = pcall(function() while true do end end) "
    "error(e, 0) end) end" },
  { "a coroutine of ops in pcall",
    "local a = peri.ones{2} ready() "
    "coroutine.wrap(function() while true do pcall(function() a = a + 1 end) end end)()" },
  { "a coroutine resumed in a loop",
    "ready() while true do coroutine.resume(coroutine.create(function() while true do end end)) "
    "end" },
  { "a coroutine that yields for ever",
    "local co = coroutine.wrap(function() while true do coroutine.yield() end end) ready() "
    "while true do pcall(co) end" },
  { "coroutines that last a moment",
    "ready() while true do pcall(coroutine.wrap(function() for i = 1, 50 do end end)) end" },
  { "coroutines in each other", "local function f(n) coroutine.wrap(function() if n > 0 then f(n - "
                                "1) end ready() while true do pcall("
                                "function() while true do end end) end end)() end f(20)" },
  { "a coroutine that catches", "ready() coroutine.wrap(function() while true do "
                                "pcall(function() while true do end end) end end)()" },
  { "a generator in for",
    "ready() for x in coroutine.wrap(function() coroutine.yield(1) while true do end end) do end "
    "ended = true while true do end" },
  { "gsub", "ready() while true do pcall(string.gsub, ('x'):rep(100), '.', function() while true "
            "do end end) end" },
  { "gsub in a coroutine",
    "ready() coroutine.wrap(function() while true do "
    "pcall(string.gsub, ('x'):rep(100), '.', function() while true do end end) end end)()" },
  { "sort",
    "ready() while true do pcall(table.sort, { 3, 2, 1 }, function() while true do end end) end" },
  { "a metamethod",
    "ready() local t = setmetatable({}, { __index = function() while true do end end }) "
    "while true do pcall(function() return t.x end) end" },
  { "__close", "ready() while true do local _ <close> = setmetatable({}, { __close = function() "
               "while true do end end }) end" },
  { "__close of a coroutine that is stopped",
    "ready() coroutine.wrap(function() local _ <close> = setmetatable({}, { __close = function() "
    "while true do end end }) while true do end end)()" },
  { "__close behind gsub in a coroutine",
    "ready() coroutine.wrap(function() local _ <close> = setmetatable({}, { __close = function() "
    "for i = 1, 1e5 do end end }) string.gsub('x', '.', function() while true do end end) end)()" },
  { "coroutine.close",
    "local co = coroutine.create(function() local _ <close> = setmetatable({}, { __close = "
    "function() ready() while true do end end }) coroutine.yield() end) coroutine.resume(co) "
    "coroutine.close(co) while true do end" },
  { "__gc",
    "setmetatable({}, { __gc = function() ready() while true do end end }) collectgarbage() "
    "while true do end" },
  { "__gc with pcall",
    "setmetatable({}, { __gc = function() ready() while true do "
    "pcall(function() while true do end end) end end }) collectgarbage() while true do end" },
  { "__gc in a coroutine", "coroutine.wrap(function() setmetatable({}, { __gc = function() ready() "
                           "while true do end end }) collectgarbage() while true do end end)()" },
  { "__gc of debug.setmetatable",
    "debug.setmetatable({}, { __gc = function() ready() while true do end end }) collectgarbage() "
    "while true do end" },
  { "a message handler", "ready() while true do xpcall(function() while true do end end, "
                         "function() while true do end end) end" },
  { "a message handler of an error",
    "ready() while true do xpcall(error, function() while true do end end, 'x') end" },
  { "a message handler in a coroutine",
    "ready() coroutine.wrap(function() while true do xpcall(function() while true do end end, "
    "function() while true do end end) end end)()" },
  { "a vjp",
    "local f = peri.custom(function(_, x) return x * 2 end, function() while true do end end) "
    "local x = peri.ones{1}:requires_grad_() ready() while true do pcall(function() "
    "f(x):sum():backward() end) end" },
  { "an environment's reset",
    "local env = require 'perilune'.env local two = env.discrete(2) "
    "local e = env.make { obs = two, action = two, step = function() return 0, false end, "
    "reset = function() ready() while true do end end } while true do pcall(e.reset, e) end" },
  { "an environment's step",
    "local env = require 'perilune'.env local two = env.discrete(2) "
    "local e = env.make({ obs = two, action = two, reset = function() return 0 end, "
    "step = function() ready() while true do end end }, { n = 3 }) "
    "e:reset() while true do pcall(e.step, e, { 0, 1, 0 }) end" },
  { "debug.sethook",
    "ready() while true do pcall(function() debug.sethook() while true do end end) end" },
  { "debug.sethook in a loop", "ready() while true do pcall(debug.sethook) end" },
  { "a script's own hook",
    "pcall(debug.sethook, function() end, '', 10) ready() while true do end" },
  { "loaded code", "ready() while true do pcall(load 'while true do end') end" },
};

/* ---- a host ---- */

typedef struct host {
  peri_ctx *ctx;
  lua_State *L;
} host;

enum { BY_THREAD, BY_SIGNAL, BY_LIMIT, NWAYS };
static const char *const ways[] = { "peri_interrupt of another thread", "a signal",
                                    "a limit on instructions" };

static host now;
static peri_lua_stop *stopper;
static int way;

static void *interrupter (void *ud) {
  struct timespec t = { 0, 2000000 };
  (void)ud;
  nanosleep(&t, NULL);
  peri_interrupt(now.ctx);
  return NULL;
}

static void on_alarm (int sig) {
  (void)sig;
  peri_lua_interrupt(stopper);
}

static pthread_t thread;
static bool asked;

static int l_ready (lua_State *L) {
  (void)L;
  if (asked) return 0;
  asked = true;
  if (way == BY_THREAD) assert_int_equal(pthread_create(&thread, NULL, interrupter, NULL), 0);
  if (way == BY_SIGNAL) {
    timer_t timer;
    struct itimerspec when = { .it_value = { 0, 2000000 } };
    assert_int_equal(timer_create(CLOCK_MONOTONIC, NULL, &timer), 0); /* SIGALRM */
    assert_int_equal(timer_settime(timer, 0, &when, NULL), 0);
  }
  return 0;
}

static void open_with (host *h, bool own_state, const peri_lua_limits *l) {
  peri_options o;
  peri_options_init(&o);
  o.threads = 1;
  assert_int_equal(peri_open(&o, &h->ctx), PERI_OK);
  if (own_state) {
    h->L = luaL_newstate();
    luaL_openlibs(h->L);
    assert_int_equal(peri_lua_open(h->L, h->ctx), PERI_OK);
  } else
    assert_int_equal(peri_lua_new(h->ctx, &h->L), PERI_OK);
  if (l) assert_int_equal(peri_lua_limit(h->L, l), PERI_OK);
  lua_register(h->L, "ready", l_ready);
  assert_int_equal(peri_lua_run_string(h->L, "peri = require 'perilune.core'", "=open"), PERI_OK);
}

static void close_host (host *h) {
  lua_close(h->L);
  assert_int_equal(memory_of(h->ctx).tensors, 0);
  peri_close(h->ctx);
}

static peri_status run (host *h, const char *text) {
  return peri_lua_run_string(h->L, text, "=test");
}

static void run_well (host *h, const char *text) {
  if (run(h, text) != PERI_OK) fail_msg("%s", peri_message(h->ctx));
}

static peri_lua_limits limits_of (int which) {
  peri_lua_limits l;
  peri_lua_limits_init(&l);
  if (which == BY_SIGNAL) l.look = 0;
  if (which == BY_LIMIT) l.instructions = 2000000;
  return l;
}

/* ---- interrupts ---- */

static void one_stop_ends_whatever_runs (void **state) {
  (void)state;
  struct sigaction sa = { .sa_handler = on_alarm };
  sigaction(SIGALRM, &sa, NULL);
  for (int own = 0; own < 2; own++)
    for (way = 0; way < NWAYS; way++)
      for (size_t i = 0; i < sizeof endless / sizeof *endless; i++) {
        peri_lua_limits l = limits_of(way);
        open_with(&now, own, &l);
        stopper = peri_lua_stopper(now.L);
        asked = false;
        print_message("%s, by %s\n", endless[i].name, ways[way]);
        peri_status s = run(&now, endless[i].text);
        if (way == BY_THREAD) pthread_join(thread, NULL);
        if (s != PERI_EINTR)
          fail_msg("%s, by %s: %s: %s", endless[i].name, ways[way], peri_status_name(s),
                   peri_message(now.ctx));
        lua_getglobal(now.L, "ended"); /* no interrupted generator looks like one that has ended */
        assert_true(lua_isnil(now.L, -1));
        lua_pop(now.L, 1);
        if (way == BY_LIMIT) {
          assert_int_equal(run(&now, "return 1 + 1"), PERI_EINTR);
          assert_int_equal(run(&now, "for i = 1, 10000 do end"), PERI_EINTR);
          assert_non_null(strstr(peri_message(now.ctx), "the limit of 2000000 instructions"));
          assert_int_equal(peri_lua_limit(now.L, &l), PERI_OK);
        } else {
          assert_int_equal(run(&now, "for i = 1, 10000 do end peri.ones(1)"), PERI_EINTR);
          peri_interrupt_clear(now.ctx);
        }
        run_well(&now, "for i = 1, 10000 do end assert(peri.ones{3}:sum():item() == 3)");
        run_well(&now,
                 "assert(coroutine.wrap(function() for i = 1, 10000 do end return 7 end)() == 7)");
        close_host(&now);
      }
}

/* A host may run its scripts in threads that it resumes itself. */
static void a_host_that_resumes_threads_itself (void **state) {
  (void)state;
  static const char *const texts[] = {
    "ready() while true do end",
    "ready() while true do pcall(function() while true do end end) end",
    "ready() while true do pcall(coroutine.wrap(function() while true do end end)) end",
  };
  for (way = 0; way < NWAYS; way++)
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
      peri_lua_limits l = limits_of(way);
      int n;
      open_with(&now, true, &l);
      stopper = peri_lua_stopper(now.L);
      asked = false;
      lua_State *co = lua_newthread(now.L);
      if (way == BY_SIGNAL) { /* who resumes it must be in the list: only coroutine.resume is */
        lua_pop(now.L, 1);
        close_host(&now);
        continue;
      }
      assert_int_equal(luaL_loadstring(co, texts[i]), LUA_OK);
      assert_int_equal(lua_resume(co, now.L, 0, &n), LUA_ERRRUN);
      assert_non_null(lua_tostring(co, -1));
      if (way == BY_THREAD) pthread_join(thread, NULL);
      lua_pop(now.L, 1);
      peri_interrupt_clear(now.ctx);
      close_host(&now);
    }
}

static void what_closes_on_the_way_up_has_time (void **state) {
  (void)state;
  peri_lua_limits l = limits_of(way = BY_THREAD);
  static const char *const texts[] = {
    "local _ <close> = setmetatable({}, { __close = work }) ready() while true do end",
    ("coroutine.wrap(function() local _ <close> = setmetatable({}, { __close = work }) ready() "
     "while true do end end)()"),
    "local ok, e = pcall(function() ready() while true do end end) work()",
  };
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    open_with(&now, false, &l);
    asked = false;
    run_well(&now, "function work() local n = 0 for i = 1, 5000 do n = n + i end done = n end");
    assert_int_equal(run(&now, texts[i]), i < 2 ? PERI_EINTR : PERI_OK); /* it ends by itself */
    pthread_join(thread, NULL);
    peri_interrupt_clear(now.ctx);
    run_well(&now, "assert(done == 12502500)");
    close_host(&now);
  }
}

static void an_error_says_where_it_was (void **state) {
  (void)state;
  peri_lua_limits l = limits_of(way = BY_LIMIT);
  host h;
  open_with(&h, false, &l);
  asked = true;
  assert_int_equal(run(&h, "local x = 1\nlocal function f()\nwhile true do end\nend\nf()"),
                   PERI_EINTR);
  assert_non_null(
      strstr(peri_message(h.ctx), "test:3: the limit of 2000000 instructions is reached"));
  assert_int_equal(peri_lua_limit(h.L, &l), PERI_OK);
  assert_int_equal(run(&h, "coroutine.wrap(function()\nwhile true do end\nend)()"), PERI_EINTR);
  assert_int_equal(peri_lua_limit(h.L, &l), PERI_OK);
  run_well(&h, "co = coroutine.create(function()\nwhile true do end\nend)\n"
               "function f() ok, e = coroutine.resume(co) end");
  run_well(&h, "f()"); /* it has the error as a value, and then no instruction more */
  assert_int_equal(peri_lua_limit(h.L, &l), PERI_OK);
  run_well(&h, "assert(not ok and e == 'test:2: the limit of 2000000 instructions is reached', e)\n"
               "assert(coroutine.status(co) == 'dead')");
  close_host(&h);
}

/* ---- what the other make of Lua's functions must not change ---- */

static void limited_functions_are_those_of_lua (void **state) {
  (void)state;
  for (int limited = 0; limited < 3; limited++) {
    host h;
    peri_lua_limits l = limits_of(limited == 2 ? BY_SIGNAL : BY_THREAD);
    open_with(&h, true, limited ? &l : NULL);
    run_well(
        &h,
        "local function same(got, want) for i = 1, math.max(#got, #want) do assert(got[i] == "
        "want[i], "
        "tostring(got[i]) .. ' for ' .. tostring(want[i])) end end\n"
        "same({ xpcall(function(...) return ... end, print, 1, nil, 3) }, { true, 1, nil, 3 })\n"
        "same({ xpcall(error, function(m) return m .. '!' end, 'x', 0) }, { false, 'x!' })\n"
        "same({ select('#', xpcall(function() end, print)) }, { 1 })\n"
        "same({ pcall(xpcall, print) }, { false, \"bad argument #2 to 'xpcall' (function expected, "
        "got no "
        "value)\" })\n"
        "local co = coroutine.wrap(function() return xpcall(function() return coroutine.yield(1) "
        "end, "
        "print) end)\n"
        "same({ co() }, { 1 }) same({ co(5, 6) }, { true, 5, 6 })\n"
        /* the levels of a handler */
        "local _, line = xpcall(load '\\nlocal x = nil + 1', function() return "
        "debug.getinfo(2, 'l').currentline end)\n"
        "assert(line == 2, line)\n"
        "local _, t = xpcall(error, debug.traceback, 'x') assert(not t:find 'perilune', t)\n"
        /* setmetatable */
        "local t, mt = {}, { __index = { a = 1 } }\n"
        "assert(setmetatable(t, mt) == t and t.a == 1 and getmetatable(t) == mt)\n"
        "assert(getmetatable(setmetatable(t, nil)) == nil)\n"
        "assert(not pcall(setmetatable, 1, {})) assert(not pcall(setmetatable, {}))\n"
        "assert(not pcall(setmetatable, {}, 1))\n"
        "local p = setmetatable({}, { __metatable = 1 })\n"
        "same({ pcall(setmetatable, p, {}) }, { false, 'cannot change a protected metatable' })\n"
        "assert(debug.setmetatable(p, nil) == p)\n"
        /* finalizers: order, errors, resurrection, being called by name */
        "local order = {}\n"
        "for i = 1, 3 do setmetatable({}, { __gc = function() order[#order + 1] = i end }) end\n"
        "collectgarbage() same(order, { 3, 2, 1 })\n"
        "setmetatable({}, { __gc = function() error 'no' end }) collectgarbage()\n"
        "setmetatable({}, { __gc = function() coroutine.yield() end }) collectgarbage()\n"
        "local back local m = { __gc = function(o) back = o end } setmetatable({ v = 4 }, m)\n"
        "collectgarbage() assert(back.v == 4) m.__gc(back)\n"
        "local nested = 0 setmetatable({}, { __gc = function() setmetatable({}, { __gc = "
        "function() "
        "nested = nested + 1 end }) collectgarbage() end }) collectgarbage() collectgarbage() "
        "assert(nested == 1)\n"
        /* coroutines */
        "local co = coroutine.create(function(a) local b, c = coroutine.yield(a + 1) error({ b, c "
        "}) end)\n"
        "same({ coroutine.resume(co, 1) }, { true, 2 })\n"
        "local ok, e = coroutine.resume(co, 3, 4) same(e, { 3, 4 }) assert(not ok)\n"
        "same({ coroutine.resume(co) }, { false, 'cannot resume dead coroutine' })\n"
        "same({ pcall(coroutine.close, coroutine.running()) }, { false, 'cannot close a running "
        "coroutine' })\n"
        "local function nest(n) if n == 0 then return 'deep' end return coroutine.wrap(nest)(n - "
        "1) end "
        "assert(nest(150) == 'deep')\n");
    if (limited == 1) {
      assert_int_equal(run(&h, "debug.sethook(print, 'c')"), PERI_EHOST);
      assert_non_null(strstr(peri_message(h.ctx), "debug.sethook: the hook of this Lua state"));
    } else
      run_well(
          &h,
          "local n = 0 debug.sethook(function() n = n + 1 end, 'l')\nlocal x = 1\ndebug.sethook() "
          "assert(n > 0)");
    close_host(&h);
  }
}

/* A debugger of a script, or of a host, is there again behind an interrupt. */
static void a_hook_comes_back_after_an_interrupt (void **state) {
  (void)state;
  struct sigaction sa = { .sa_handler = on_alarm };
  peri_lua_limits l = limits_of(way = BY_SIGNAL);
  sigaction(SIGALRM, &sa, NULL);
  open_with(&now, false, &l);
  stopper = peri_lua_stopper(now.L);
  asked = false;
  run_well(&now, "n = 0 debug.sethook(function() n = n + 1 end, '', 100)");
  assert_int_equal(run(&now, "ready() while true do end"), PERI_EINTR);
  peri_interrupt_clear(now.ctx);
  assert_int_equal(peri_lua_limit(now.L, &l), PERI_OK); /* or the next look, in pending hooks */
  run_well(&now, "local before = n for i = 1, 1000 do end assert(n > before, n)");
  close_host(&now);
}

/* ---- limits ---- */

static void instructions_are_counted_in_all_threads (void **state) {
  (void)state;
  host h;
  peri_lua_limits l = limits_of(BY_LIMIT), used;
  open_with(&h, false, &l);
  peri_lua_limits_init(&used);
  run_well(&h, "for i = 1, 100000 do end");
  assert_int_equal(peri_lua_usage(h.L, &used), PERI_OK);
  assert_in_range(used.instructions, 100000, 110000);
  run_well(&h, "coroutine.wrap(function() for i = 1, 100000 do end end)()");
  assert_int_equal(peri_lua_usage(h.L, &used), PERI_OK);
  assert_in_range(used.instructions, 200000, 220000);
  run_well(
      &h,
      "local u = peri.limits() assert(u.instructions == 2000000 and u.instructions_used > 200000) "
      "assert(not u.memory and u.memory_used > 10000)");
  l.instructions = 50;
  assert_int_equal(peri_lua_limit(h.L, &l), PERI_OK);
  assert_int_equal(run(&h, "for i = 1, 100 do end"), PERI_EINTR);
  l.instructions = 0;
  l.look = 0;
  assert_int_equal(peri_lua_limit(h.L, &l), PERI_OK);
  run_well(&h, "for i = 1, 10000000 do end");
  assert_null(lua_gethook(h.L));
  close_host(&h);
}

static void memory_of_lua_is_limited (void **state) {
  (void)state;
  static const char *const texts[] = {
    "local t = {} for i = 1, math.huge do t[i] = { i } end",
    "local s = 'x' while true do s = s .. s end",
    "local s = ('x'):rep(1 << 30)",
    "local t = {} for i = 1, math.huge do t[i] = coroutine.create(print) end",
    "local t = {} while true do t[#t + 1] = function() return t end end",
    "local t = {} for i = 1, math.huge do t[i] = peri.ones(1) end",
  };
  for (int own = 0; own < 2; own++) {
    host h;
    peri_lua_limits l, used;
    peri_lua_limits_init(&l);
    l.memory = 4 << 20;
    l.look = 0;
    open_with(&h, own, &l);
    peri_lua_limits_init(&used);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
      if (run(&h, texts[i]) != PERI_ENOMEM) fail_msg("%s: %s", texts[i], peri_message(h.ctx));
      assert_non_null(strstr(peri_message(h.ctx), "not enough memory"));
      assert_non_null(strstr(peri_message(h.ctx), "4194304 bytes"));
      run_well(&h, "collectgarbage()");
      assert_int_equal(peri_lua_usage(h.L, &used), PERI_OK);
      assert_in_range(used.memory, 1, 4 << 20);
    }
    run_well(&h, "for i = 1, 100 do local ok, e = pcall(string.rep, 'x', 1 << 30) "
                 "assert(not ok and e == 'not enough memory') end");
    run_well(&h, "assert(peri.limits().memory == 4 << 20)");
    l.memory = 1; /* below what there is: nothing grows, what is there works and can be freed */
    assert_int_equal(peri_lua_limit(h.L, &l), PERI_OK);
    assert_int_equal(run(&h, "local t = {}"), PERI_ENOMEM);
    l.memory = 0;
    assert_int_equal(peri_lua_limit(h.L, &l), PERI_OK);
    run_well(&h, "local s = ('x'):rep(8 << 20)");
    close_host(&h);
  }
}

static void wrong_limits_are_refused (void **state) {
  (void)state;
  host h;
  peri_lua_limits l = { 0 };
  open_with(&h, false, NULL);
  assert_null(peri_lua_stopper(h.L));
  peri_lua_interrupt(NULL);
  assert_int_equal(peri_lua_limit(h.L, NULL), PERI_EINVAL);
  assert_int_equal(peri_lua_limit(h.L, &l), PERI_EINVAL);
  assert_non_null(strstr(peri_message(h.ctx), "struct_size"));
  assert_int_equal(peri_lua_usage(h.L, &l), PERI_EINVAL);
  peri_lua_limits_init(&l);
  l.look = -1;
  assert_int_equal(peri_lua_limit(h.L, &l), PERI_EINVAL);
  lua_State *other = luaL_newstate(); /* without the module */
  peri_lua_limits_init(&l);
  assert_int_equal(peri_lua_limit(other, &l), PERI_EINVAL);
  lua_close(other);
  close_host(&h);
}

/* ---- modes of coroutines, as the host's own ops see them ---- */

static void the_host_keeps_its_grad_mode (void **state) {
  (void)state;
  host h;
  int n;
  open_with(&h, true, NULL);
  run_well(&h, "co = coroutine.create(function() local _ <close> = peri.no_grad() while true do "
               "peri.ones(1) coroutine.yield() end end)");
  run_well(&h, "coroutine.resume(co)");
  assert_true(peri_grad_enabled(h.ctx));
  peri_set_grad_enabled(h.ctx, false); /* the host's mode is that of scripts that set none */
  run_well(&h,
           "assert(not peri.grad_enabled()) coroutine.resume(co) assert(not peri.grad_enabled()) "
           "assert(coroutine.wrap(peri.enable_grad)(peri.grad_enabled))");
  assert_false(peri_grad_enabled(h.ctx));
  peri_set_grad_enabled(h.ctx, true);
  run_well(&h, "assert(peri.grad_enabled())");
  lua_getglobal(h.L, "co"); /* resumed without peri_lua_call */
  lua_State *co = lua_tothread(h.L, -1);
  assert_int_equal(lua_resume(co, h.L, 0, &n), LUA_YIELD);
  assert_ptr_equal(peri_lua_ctx(h.L), h.ctx);
  assert_true(peri_grad_enabled(h.ctx));
  lua_settop(h.L, 0);
  run_well(&h, "co = nil collectgarbage()");
  close_host(&h);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(one_stop_ends_whatever_runs),
    cmocka_unit_test(a_host_that_resumes_threads_itself),
    cmocka_unit_test(what_closes_on_the_way_up_has_time),
    cmocka_unit_test(an_error_says_where_it_was),
    cmocka_unit_test(limited_functions_are_those_of_lua),
    cmocka_unit_test(a_hook_comes_back_after_an_interrupt),
    cmocka_unit_test(instructions_are_counted_in_all_threads),
    cmocka_unit_test(memory_of_lua_is_limited),
    cmocka_unit_test(wrong_limits_are_refused),
    cmocka_unit_test(the_host_keeps_its_grad_mode),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
