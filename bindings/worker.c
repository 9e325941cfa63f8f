/*
** worker.c - workers as the state sees them that starts them. A worker is freed by that state once its
** thread has ended: when its object is collected, or, with an interrupt first, when the state closes.
*/
#define _POSIX_C_SOURCE 200809L

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include <lualib.h>

#include "worker.h"

#define WORKER "perilune.worker"

static const char *const state_names[] = { "running", "done", "failed", "interrupted" };

static peri_worker_state state_of (peri_worker *w) {
  pthread_mutex_lock(&w->gate);
  peri_worker_state state = w->state;
  pthread_mutex_unlock(&w->gate);
  return state;
}

static void interrupt (peri_worker *w) {
  pthread_mutex_lock(&w->gate);
  peri_interrupt(w->ctx); /* NULL is a no-op */
  pthread_mutex_unlock(&w->gate);
}

/* Warnings that came since the last time, told as the parent's own. */
static void tell (peri_worker *w) {
  char line[PERI_WARNING_SIZE];
  pthread_mutex_lock(&w->gate);
  for (unsigned i = 0; i < w->warnings; i++) {
    bool kept = i < PERI_NWARNING;
    if (kept)
      memcpy(line, w->warning[i], sizeof line);
    else
      snprintf(line, sizeof line, "%u more warnings", w->warnings - PERI_NWARNING);
    pthread_mutex_unlock(&w->gate); /* a logger may do anything */
    peri_log(w->parent, PERI_LOG_WARN, "worker %lld: %s", (long long)w->index, line);
    pthread_mutex_lock(&w->gate);
    if (!kept) break;
  }
  w->warnings = 0;
  memset(w->warning, 0, sizeof w->warning);
  pthread_mutex_unlock(&w->gate);
}

static void free_worker (peri_worker *w) {
  if (w->ctx) peri_close(w->ctx); /* no thread came to be */
  peri__packet_free(w->start);
  peri__packet_free(w->inherits);
  peri__packet_free(w->result);
  if (w->error) w->alloc(w->alloc_ud, w->error, w->error_size, 0);
  pthread_mutex_destroy(&w->gate);
  w->alloc(w->alloc_ud, w, sizeof *w, 0);
}

static void join_thread (peri_worker *w) {
  if (!w->joined) pthread_join(w->thread, NULL);
  w->joined = true;
}

/* Its thread has ended or is about to. */
static void end_worker (peri_worker *w) {
  join_thread(w);
  *w->link = w->next;
  if (w->next) w->next->link = w->link;
  tell(w);
  if (w->state == WORKER_FAILED && !w->asked)
    peri_log(w->parent, PERI_LOG_WARN, "worker %lld failed, and nobody asked for its result: %s",
             (long long)w->index, w->error ? w->error : "out of memory");
  free_worker(w);
}

void peri__workers_sweep (peri_bind *b) {
  for (peri_worker *w = b->workers, *next; w; w = next) {
    next = w->next;
    if (!w->held && state_of(w) != WORKER_RUNNING)
      end_worker(w);
    else
      tell(w);
  }
}

void peri__workers_close (peri_bind *b) {
  for (peri_worker *w = b->workers; w; w = w->next) interrupt(w);
  while (b->workers) end_worker(b->workers);
}

/* Names of preloaded modules with what to do for them: a function that can go, or why it cannot. */
static int try_pack (lua_State *L) {
  const peri_pack_how how = { .fn = "require",
                              .root = "the preloaded function",
                              .functions = true };
  peri__packet_recall(BIND(L)->ctx, peri__pack(L, 1, 1, &how));
  return 0;
}

static void push_preload (lua_State *L) {
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  int from = lua_gettop(L);
  lua_newtable(L);
  for (lua_pushnil(L); lua_next(L, from); lua_pop(L, 1)) {
    if (lua_type(L, -2) != LUA_TSTRING || lua_type(L, -1) != LUA_TFUNCTION) continue;
    if (strncmp(lua_tostring(L, -2), "perilune.", 9) == 0) continue; /* it makes its own */
    lua_pushvalue(L, -2);
    lua_pushvalue(L, lua_upvalueindex(1)); /* as BIND finds it */
    lua_pushcclosure(L, try_pack, 1);
    lua_pushvalue(L, -3);
    if (lua_pcall(L, 1, 0, 0) == LUA_OK) lua_pushvalue(L, -2);
    lua_rawset(L, from + 1); /* the function, or the message */
  }
  lua_remove(L, from);
}

/* Push what the state has of Lua's own libraries: { string = { rep = true, ... }, ... }. */
static void push_libraries (lua_State *L) {
  lua_newtable(L);
  int out = lua_gettop(L);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  for (const char *const *name = peri__worker_libraries; *name; name++) {
    if (lua_getfield(L, out + 1, *name) == LUA_TTABLE) {
      lua_newtable(L);
      for (lua_pushnil(L); lua_next(L, out + 2); lua_pop(L, 1))
        if (lua_type(L, -2) == LUA_TSTRING) {
          lua_pushvalue(L, -2);
          lua_pushboolean(L, 1);
          lua_rawset(L, out + 3);
        }
      lua_setfield(L, out, *name);
    }
    lua_settop(L, out + 1);
  }
  lua_settop(L, out);
}

/* Push package.path, cpath (nil: none), preload, libraries. */
static void push_inherited (lua_State *L) {
  int top = lua_gettop(L);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  lua_getfield(L, -1, LUA_LOADLIBNAME);
  for (int i = 0; i < 2; i++) {
    if (lua_istable(L, top + 2))
      lua_getfield(L, top + 2, i ? "cpath" : "path");
    else
      lua_pushnil(L);
    if (lua_type(L, -1) != LUA_TSTRING) {
      lua_pop(L, 1);
      lua_pushnil(L);
    }
  }
  lua_remove(L, top + 1);
  lua_remove(L, top + 1);
  push_preload(L);
  push_libraries(L);
}

/* The seed of the i-th worker of a state: a block of Philox, keyed by the state's own. */
static uint64_t seed_of (const peri_ctx *ctx, uint64_t i) {
  uint32_t out[4];
  const uint32_t counter[4] = { (uint32_t)i, (uint32_t)(i >> 32), 0, 0x776f726bu };
  const uint32_t key[2] = { (uint32_t)ctx->rng.seed, (uint32_t)(ctx->rng.seed >> 32) };
  peri_philox(counter, key, out);
  return (((uint64_t)out[1] << 32) | out[0]) >> 1; /* Lua has it as an integer from 0 */
}

static lua_Integer option (lua_State *L, const char *name, lua_Integer otherwise) {
  lua_Integer v = lua_getfield(L, 2, name) == LUA_TNIL ? otherwise : lua_tointeger(L, -1);
  lua_pop(L, 1);
  return v;
}

/* A worker without packets and thread, or why not. Raises nothing. */
static peri_status open_worker (peri_bind *b, const peri_options *o, peri_worker **out) {
  peri_ctx *ctx = b->ctx;
  peri_worker *w = peri__malloc(ctx, sizeof *w);
  if (!w) return peri__fail(ctx, PERI_ENOMEM, "out of memory");
  memset(w, 0, sizeof *w);
  peri_allocator(ctx, &w->alloc, &w->alloc_ud);
  w->parent = ctx;
  pthread_mutex_init(&w->gate, NULL);
  peri_options own = *o;
  own.alloc = w->alloc;
  own.alloc_ud = w->alloc_ud;
  own.log = peri__worker_log;
  own.log_ud = w;
  own.log_level = PERI_LOG_WARN;
  peri_status s = peri_open(&own, &w->ctx);
  if (s != PERI_OK) {
    free_worker(w);
    return peri__fail(ctx, s, "no context: %s", peri_status_name(s));
  }
  w->ctx->cpu = ctx->cpu; /* the same bits, whatever the machine has */
  *out = w;
  return PERI_OK;
}

/* As the workers of a context: the host's handlers of signals stay on the host's threads. */
static peri_status start_thread (peri_bind *b, peri_worker *w) {
  sigset_t all, old;
  sigfillset(&all);
  bool masked = pthread_sigmask(SIG_SETMASK, &all, &old) == 0;
  int failed = pthread_create(&w->thread, NULL, peri__worker_main, w);
  if (masked) pthread_sigmask(SIG_SETMASK, &old, NULL);
  if (failed) return peri__fail(b->ctx, PERI_EIO, "the system gives no thread: error %d", failed);
  w->next = b->workers;
  w->link = &b->workers;
  if (w->next) w->next->link = &w->next;
  b->workers = w;
  return PERI_OK;
}

/* _worker(function, options, ...): checked by perilune.worker. */
static int l_worker (lua_State *L) {
  static const peri_pack_how inherited = { .fn = "worker", .root = "package", .functions = true };
  static const peri_pack_how given = {
    .fn = "worker", .root = "argument %d", .first = "the function", .functions = true
  };
  peri_bind *b = BIND(L);
  peri_options o;
  peri_worker *w = NULL;
  int nargs = lua_gettop(L) - 2;
  peri__workers_sweep(b);
  peri_options_init(&o);
  o.threads = (int)option(L, "threads", 1);
  o.seed = (uint64_t)option(L, "seed", (lua_Integer)seed_of(b->ctx, b->ctx->spawned + 1));
  o.max_bytes = (size_t)option(L, "max_bytes", (lua_Integer)b->ctx->max_bytes);
  peri_lua_limits limits;
  peri_lua_limits_init(&limits);
  limits.memory = (size_t)option(L, "memory", 0);
  limits.instructions = (uint64_t)option(L, "instructions", 0);
  bool first = peri__embedded_first(L);
  lua_remove(L, 2);
  luaL_checkstack(L, 12, NULL);
  peri_worker **box = (peri_worker **)lua_newuserdatauv(L, sizeof *box, 0);
  *box = NULL;
  luaL_setmetatable(L, WORKER);
  peri__packet **packet = peri__packet_box(L);
  push_inherited(L);
  *packet = peri__pack(L, lua_gettop(L) - 3, 4, &inherited);
  lua_pop(L, 4);
  peri__packet *start = peri__pack(L, 1, nargs + 1, &given);
  peri_status s = open_worker(b, &o, &w);
  if (s == PERI_OK) {
    w->index = (int64_t)++b->ctx->spawned;
    w->limits = limits;
    w->embedded_first = first;
    w->open = b->worker_open;
    w->open_ud = b->worker_ud;
    w->held = true;
    w->start = start;
    w->inherits = *packet;
    s = start_thread(b, w);
    if (s == PERI_OK)
      *packet = NULL;
    else {
      w->start = w->inherits = NULL;
      b->ctx->spawned--;
      free_worker(w);
    }
  }
  if (s != PERI_OK) peri__packet_recall(b->ctx, start);
  peri__check(L, "worker", s);
  *box = w;
  lua_pop(L, 1);
  return 1;
}

/* ---- methods ---- */

/* The worker of argument 1; ended: one that the state's end has freed is no argument. */
static peri_worker *self (lua_State *L, const char *fn) {
  peri_worker **box = (peri_worker **)luaL_testudata(L, 1, WORKER);
  if (!box || !*box) peri__type_error(L, fn, 1, "self", "a worker");
  return *box;
}

/* Wait for the end; false: the deadline came first. */
static bool wait (lua_State *L, peri_worker *w, const char *fn, double deadline) {
  while (state_of(w) == WORKER_RUNNING) {
    if (peri__now() >= deadline) return false;
    peri__check(L, fn, peri__sleep(w->parent, deadline));
  }
  tell(w);
  return true;
}

static int w_join (lua_State *L) {
  bool over = wait(L, self(L, "join"), "join", peri__deadline(L, 2, "join", INFINITY));
  lua_pushboolean(L, over);
  if (over) return 1;
  lua_pushliteral(L, "timeout");
  return 2;
}

static int w_result (lua_State *L) {
  peri_worker *w = self(L, "result");
  double deadline = peri__deadline(L, 2, "result", INFINITY);
  if (!wait(L, w, "result", deadline))
    return luaL_error(L, "result: worker %I has not ended in %f seconds", (LUAI_UACINT)w->index,
                      lua_tonumber(L, 2));
  w->asked = true;
  if (w->state != WORKER_DONE)
    return luaL_error(L, "worker %I %s: %s", (LUAI_UACINT)w->index,
                      w->state == WORKER_FAILED ? "failed" : "was interrupted",
                      w->error ? w->error : "out of memory");
  lua_settop(L, 1); /* which keeps the packet */
  return peri__unpack(L, w->result) - 1;
}

static int w_interrupt (lua_State *L) {
  interrupt(self(L, "interrupt"));
  lua_settop(L, 1);
  return 1;
}

static int w_status (lua_State *L) {
  peri_worker *w = self(L, "status");
  tell(w);
  lua_pushstring(L, state_names[state_of(w)]);
  return 1;
}

static int w_index (lua_State *L) {
  lua_pushinteger(L, self(L, "index")->index);
  return 1;
}

static int w_tostring (lua_State *L) {
  peri_worker **box = (peri_worker **)luaL_testudata(L, 1, WORKER);
  if (box && *box)
    lua_pushfstring(L, "worker %I: %s", (LUAI_UACINT)(*box)->index, state_names[state_of(*box)]);
  else
    lua_pushliteral(L, "worker");
  return 1;
}

/* One that runs goes on without its object. */
static int w_gc (lua_State *L) {
  peri_worker **box = (peri_worker **)luaL_testudata(L, 1, WORKER), *w = box ? *box : NULL;
  if (!w) return 0;
  *box = NULL;
  w->held = false;
  if (state_of(w) != WORKER_RUNNING) end_worker(w);
  return 0;
}

/* Ended with the block that holds it. */
static int w_close (lua_State *L) {
  peri_worker *w = self(L, "close");
  interrupt(w);
  join_thread(w);
  tell(w);
  return 0;
}

static const peri_reg meta[] = { { "__gc", NULL, NULL, w_gc },
                                 { "__close", NULL, NULL, w_close },
                                 { "__tostring", NULL, NULL, w_tostring },
                                 { NULL, NULL, NULL, NULL } };

static const peri_reg methods[] = {
  { "join", "timeout?",
    "Wait until the worker has ended, however it did: true; false and \"timeout\" after timeout "
    "seconds (nil: none).",
    w_join },
  { "result", "timeout?",
    "Wait for the worker's results and return them; raises its error, with its traceback, and "
    "after "
    "timeout seconds (nil: none).",
    w_result },
  { "interrupt", "",
    "Stop it wherever it is, in an op, a loop or a wait; what it would close is closed. Returns "
    "the "
    "worker.",
    w_interrupt },
  { "status", "", "\"running\", \"done\", \"failed\" or \"interrupted\".", w_status },
  { "index", "", "Its number among the workers since the state's seed was set, from 1.", w_index },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg functions[] = { { "_worker", "function, options, ...",
                                        "Start a worker: perilune.worker has checked the options.",
                                        l_worker },
                                      { NULL, NULL, NULL, NULL } };

const peri_reg *const peri__worker_methods = methods;

void peri__open_worker (lua_State *L) {
  peri__metatable(L, WORKER, meta, methods);
  lua_pop(L, 1);
  peri__register(L, functions);
}

void peri_lua_on_worker (lua_State *L, lua_CFunction open, void *ud) {
  peri_bind *b = peri__bind(L);
  b->worker_open = open;
  b->worker_ud = ud;
}
