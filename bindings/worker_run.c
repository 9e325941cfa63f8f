/*
** worker_run.c - what happens on a worker's thread: its Lua state is opened as the one that started it
** was, runs the function, packs results or the error, and is closed with its context.
*/
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include <lualib.h>

#include "worker.h"

static void keep_warning (peri_worker *w, const char *text, bool more) {
  pthread_mutex_lock(&w->gate);
  if (w->warnings < PERI_NWARNING) {
    char *line = w->warning[w->warnings];
    size_t n = strlen(line);
    snprintf(line + n, PERI_WARNING_SIZE - n, "%s", text);
  }
  if (!more) w->warnings++;
  pthread_mutex_unlock(&w->gate);
}

void peri__worker_log (void *ud, peri_log_level level, const char *line) {
  (void)level;
  keep_warning((peri_worker *)ud, line, false);
}

/* warn() of Lua; the switches "@on" and "@off" are the parent's. */
static void note_warning (void *ud, const char *text, int more) {
  if (text[0] != '@' || more) keep_warning((peri_worker *)ud, text, more != 0);
}

static void set_error (peri_worker *w, const char *text) {
  size_t n = strlen(text) + 1;
  char *copy = w->alloc(w->alloc_ud, NULL, 0, n);
  if (copy) memcpy(copy, text, n);
  w->error = copy;
  w->error_size = n;
}

static int missing_preload (lua_State *L) {
  return luaL_error(L, "%s", lua_tostring(L, lua_upvalueindex(1)));
}

const char *const peri__worker_libraries[] = {
  LUA_GNAME,      LUA_LOADLIBNAME, LUA_COLIBNAME,   LUA_TABLIBNAME, LUA_IOLIBNAME, LUA_OSLIBNAME,
  LUA_STRLIBNAME, LUA_MATHLIBNAME, LUA_UTF8LIBNAME, LUA_DBLIBNAME,  NULL
};

/* What the parent lacks of Lua's own libraries, the worker does not have either; at libs: what it has. */
static void withhold (lua_State *L, int libs) {
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  int loaded = lua_gettop(L);
  for (const char *const *name = peri__worker_libraries; *name; name++) {
    bool any = lua_getfield(L, libs, *name) == LUA_TTABLE;
    lua_getfield(L, loaded, *name);
    for (lua_pushnil(L); lua_next(L, loaded + 2);) {
      lua_pop(L, 1);
      lua_pushvalue(L, -1);
      bool has = any && lua_rawget(L, loaded + 1) != LUA_TNIL;
      lua_settop(L, loaded + 3);
      if (has) continue;
      lua_pushvalue(L, -1);
      lua_pushnil(L);
      lua_rawset(L, loaded + 2);
    }
    if (!any) {
      lua_pushnil(L);
      lua_setfield(L, loaded, *name);
    }
    lua_settop(L, loaded);
  }
  lua_settop(L, loaded - 1);
}

/* (path, cpath, preload, libraries): the parent's, as far as it has them. */
static int inherit (lua_State *L) {
  lua_settop(L, 4);
  withhold(L, 4);
  if (lua_getglobal(L, LUA_LOADLIBNAME) != LUA_TTABLE) return 0;
  lua_remove(L, 4);
  for (int i = 1; i <= 2; i++) {
    if (lua_isnil(L, i)) continue;
    lua_pushvalue(L, i);
    lua_setfield(L, 4, i == 1 ? "path" : "cpath");
  }
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  for (lua_pushnil(L); lua_next(L, 3);) {
    lua_pushvalue(L, -2);
    if (lua_rawget(L, 5) == LUA_TNIL) {
      lua_pushvalue(L, -3);
      lua_pushvalue(L, -3);
      if (lua_type(L, -1) == LUA_TSTRING) lua_pushcclosure(L, missing_preload, 1);
      lua_rawset(L, 5);
    }
    lua_pop(L, 2);
  }
  return 0;
}

static void limit (lua_State *L, peri_worker *w, const peri_lua_limits *l) {
  if (peri_lua_limit(L, l) != PERI_OK) luaL_error(L, "%s", peri_message(w->ctx));
}

/* Protected: (light worker). Libraries, module, what the host adds, what the parent has, limits. */
static int set_up (lua_State *L) {
  peri_worker *w = (peri_worker *)lua_touserdata(L, 1);
  luaL_openlibs(L);
  if (peri__lua_open(L, w->ctx, w->embedded_first) != PERI_OK)
    return luaL_error(L, "%s", peri_message(w->ctx));
  lua_gc(L, LUA_GCGEN, 0, 0);
  peri_bind *b = peri__bind(L);
  b->worker_open = w->open;
  b->worker_ud = w->open_ud;
  lua_pushcfunction(L, inherit);
  lua_call(L, peri__unpack(L, w->inherits), 0);
  if (w->open) {
    lua_pushcfunction(L, w->open);
    lua_pushlightuserdata(L, w->open_ud);
    lua_call(L, 1, 0);
  }
  peri_lua_limits looks = w->limits;
  looks.instructions = 0; /* they count from the function on; looking begins before any script */
  limit(L, w, &looks);
  if (lua_getglobal(L, "require") == LUA_TFUNCTION) {
    lua_pushliteral(L, "perilune");
    lua_call(L, 1, 1);
    lua_setglobal(L, "peri");
  }
  limit(L, w, &w->limits);
  return 0;
}

/* Protected: (light worker). */
static int body (lua_State *L) {
  peri_worker *w = (peri_worker *)lua_touserdata(L, 1);
  const peri_pack_how how = { .fn = "worker", .root = "result %d" };
  lua_settop(L, 0);
  int n = peri__unpack(L, w->start);
  peri__packet_free(w->start);
  w->start = NULL;
  lua_call(L, n - 1, LUA_MULTRET);
  luaL_checkstack(L, LUA_MINSTACK, "too many results");
  lua_pushboolean(L, true); /* so that the first result is number 1 */
  lua_insert(L, 1);
  w->result = peri__pack(L, 1, lua_gettop(L), &how);
  return 0;
}

static bool run (peri_worker *w, lua_State *L) {
  peri_lua_stop *stop = NULL;
  lua_pushcfunction(L, peri__traceback);
  lua_pushcfunction(L, set_up);
  lua_pushlightuserdata(L, w);
  bool ok = lua_pcall(L, 1, 0, 1) == LUA_OK;
  if (ok) {
    stop = peri__stop_of(L);
    peri__stop_begin(stop);
    lua_pushcfunction(L, body);
    lua_pushlightuserdata(L, w);
    ok = lua_pcall(L, 1, 0, 1) == LUA_OK;
  }
  if (!ok)
    set_error(w, lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "the error is no string");
  return ok;
}

void *peri__worker_main (void *ud) {
  peri_worker *w = (peri_worker *)ud;
  peri_worker_state state = WORKER_FAILED;
  lua_State *L = peri__new_state(w->alloc, w->alloc_ud);
  if (L) {
    lua_setwarnf(L, note_warning, w);
    state = run(w, L)                           ? WORKER_DONE
            : atomic_load(&w->ctx->interrupted) ? WORKER_INTERRUPTED
                                                : WORKER_FAILED;
    lua_close(L);
  }
  pthread_mutex_lock(&w->gate);
  peri_ctx *ctx = w->ctx;
  w->ctx = NULL;
  pthread_mutex_unlock(&w->gate);
  peri_close(ctx);
  pthread_mutex_lock(&w->gate);
  w->state = state;
  peri__ring(w->parent);
  pthread_mutex_unlock(&w->gate);
  return NULL;
}
