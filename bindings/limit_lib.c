/*
** limit_lib.c - functions of Lua's library that a limited state has in another make, the same to their
** callers: the coroutine library keeps the list of what runs and closes what the hook has suspended;
** xpcall skips its handler, which the hook would have to wait for, when there is a reason to stop;
** finalizers written in Lua run in a coroutine of their own, as Lua calls no hook in the thread that
** collects; debug.sethook does not take the hook away.
*/
#include <string.h>

#include <lualib.h>

#include "bind.h"
#include "limit.h"

#undef luaL_error /* what Lua's own functions say is said as they do */

static const char key_finalizers = 0; /* the thread that the last finalizer has left free */

#define STOP(L) ((peri_lua_stop *)lua_touserdata((L), lua_upvalueindex(1)))

/* ---- coroutines: after Lua's lcorolib.c ---- */

/* To-be-closed variables of a coroutine run in it. */
static int reset (lua_State *L, lua_State *co, peri_lua_stop *s) {
  peri_running self;
  peri__stop_enter(s, &self, co, false);
#if LUA_VERSION_RELEASE_NUM >= 50406
  int rc = lua_closethread(co, L);
#else
  (void)L;
  int rc = lua_resetthread(co);
#endif
  peri__stop_leave(s, &self);
  return rc;
}

/* The hook has suspended co: the error that it would have raised there is pushed, and co closed. */
static void close_stopped (lua_State *L, lua_State *co, peri_lua_stop *s) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_stopped);
  if (reset(L, co, s) != LUA_OK)
    lua_pop(co, 1); /* an error in a __close: the first one says more */
}

/* Values on top of L go to co, its results or error value come back; their number, -1 for an error. */
static int resume (lua_State *L, lua_State *co, int nargs, peri_lua_stop *s) {
  int nres = 0;
  if (!lua_checkstack(co, nargs)) {
    lua_pushliteral(L, "too many arguments to resume");
    return -1;
  }
  lua_xmove(L, co, nargs);
  peri_running self;
  peri__stop_enter(s, &self, co, true);
  int rc = lua_resume(co, L, nargs, &nres);
  peri__stop_leave(s, &self);
  if (rc == LUA_YIELD && self.stopped) {
    close_stopped(L, co, s);
    return -1;
  }
  if (rc != LUA_OK && rc != LUA_YIELD) {
    lua_xmove(co, L, 1);
    return -1;
  }
  if (!lua_checkstack(L, nres + 1)) {
    lua_pop(co, nres);
    lua_pushliteral(L, "too many results to resume");
    return -1;
  }
  lua_xmove(co, L, nres);
  return nres;
}

static int co_resume (lua_State *L) {
  lua_State *co = lua_tothread(L, 1);
  luaL_argexpected(L, co, 1, "coroutine");
  int n = resume(L, co, lua_gettop(L) - 1, STOP(L));
  lua_pushboolean(L, n >= 0);
  if (n < 0) n = 1;
  lua_insert(L, -(n + 1));
  return n + 1;
}

static int wrap_call (lua_State *L) {
  peri_lua_stop *s = STOP(L);
  lua_State *co = lua_tothread(L, lua_upvalueindex(2));
  int n = resume(L, co, lua_gettop(L), s);
  if (n >= 0) return n;
  int rc = lua_status(co);
  if (rc != LUA_OK && rc != LUA_YIELD) { /* an error inside it: close what it left open */
    rc = reset(L, co, s);
    lua_xmove(co, L, 1);
  }
  if (rc != LUA_ERRMEM && lua_type(L, -1) == LUA_TSTRING) {
    luaL_where(L, 1);
    lua_insert(L, -2);
    lua_concat(L, 2);
  }
  return lua_error(L);
}

/* Counting in each thread begins anew, so a thread counts as one step. */
static int co_create (lua_State *L) {
  peri_lua_stop *s = STOP(L);
  luaL_checktype(L, 1, LUA_TFUNCTION);
  if (s->step) s->used += (uint64_t)s->step;
  lua_State *co = lua_newthread(L);
  lua_pushvalue(L, 1);
  lua_xmove(L, co, 1);
  return 1;
}

static int co_wrap (lua_State *L) {
  co_create(L);
  lua_pushlightuserdata(L, STOP(L));
  lua_insert(L, -2);
  lua_pushcclosure(L, wrap_call, 2);
  return 1;
}

/* Upvalue 2: Lua's close, for every state but a suspended or dead coroutine. */
static int co_close (lua_State *L) {
  lua_State *co = lua_tothread(L, 1);
  lua_Debug ar;
  bool asleep =
      co && co != L &&
      (lua_status(co) == LUA_YIELD || (lua_status(co) == LUA_OK && !lua_getstack(co, 0, &ar)) ||
       lua_status(co) > LUA_YIELD);
  if (!asleep) {
    lua_pushvalue(L, lua_upvalueindex(2));
    lua_insert(L, 1);
    lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
    return lua_gettop(L);
  }
  if (reset(L, co, STOP(L)) == LUA_OK) {
    lua_pushboolean(L, 1);
    return 1;
  }
  lua_pushboolean(L, 0);
  lua_xmove(co, L, 1);
  return 2;
}

/* ---- xpcall ---- */

static int l_stopping (lua_State *L) {
  lua_pushboolean(L, peri__stop_pending(STOP(L)));
  return 1;
}

/* The handler is called as a tail call: it sees the levels of the stack that it would see without. */
static const char handler_text[] = "local stopping = ...\n"
                                   "return function (handler)\n"
                                   "  return function (message)\n"
                                   "    if stopping() then return message end\n"
                                   "    return handler(message)\n"
                                   "  end\n"
                                   "end\n";

static int finish_xpcall (lua_State *L, int status, lua_KContext extra) {
  if (status != LUA_OK && status != LUA_YIELD) {
    lua_pushboolean(L, 0);
    lua_pushvalue(L, -2);
    return 2;
  }
  return lua_gettop(L) - (int)extra;
}

/* After Lua's; upvalue 2 makes a handler of a handler. */
static int l_xpcall (lua_State *L) {
  int n = lua_gettop(L);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  if (!lua_iscfunction(L, 2)) {
    lua_pushvalue(L, lua_upvalueindex(2));
    lua_pushvalue(L, 2);
    lua_call(L, 1, 1);
    lua_replace(L, 2);
  }
  lua_pushboolean(L, 1);
  lua_pushvalue(L, 1);
  lua_rotate(L, 3, 2);
  int status = lua_pcallk(L, n - 2, LUA_MULTRET, 2, 2, finish_xpcall);
  return finish_xpcall(L, status, 2);
}

/* ---- finalizers ---- */

/* What stands in __gc for the Lua function in upvalue 2. */
static int finalize (lua_State *L) {
  peri_lua_stop *s = STOP(L);
  lua_settop(L, 1);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &key_finalizers);
  lua_State *co = lua_tothread(L, 2);
  lua_pushnil(L); /* nobody else's while it runs */
  lua_rawsetp(L, LUA_REGISTRYINDEX, &key_finalizers);
  if (!co) {
    co = lua_newthread(L);
    lua_replace(L, 2);
  }
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_pushvalue(L, 1);
  lua_xmove(L, co, 2);
  peri_running self;
  int nres = 0;
  peri__stop_enter(s, &self, co, true);
  int rc = lua_resume(co, L, 1, &nres);
  peri__stop_leave(s, &self);
  if (rc == LUA_OK) {
    lua_settop(co, 0);
    lua_pushvalue(L, 2);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &key_finalizers);
    return 0;
  }
  if (rc == LUA_YIELD && self.stopped)
    close_stopped(L, co, s);
  else if (rc == LUA_YIELD) {
    reset(L, co, s);
    return luaL_error(L, "attempt to yield from a finalizer");
  } else
    lua_xmove(co, L, 1);
  return lua_error(L);
}

/* The table at idx is to be a metatable. */
static void guard_finalizer (lua_State *L, int idx) {
  if (lua_type(L, idx) != LUA_TTABLE) return;
  lua_pushliteral(L, "__gc");
  if (lua_rawget(L, idx) != LUA_TFUNCTION || lua_iscfunction(L, -1)) {
    lua_pop(L, 1);
    return;
  }
  lua_pushlightuserdata(L, STOP(L));
  lua_insert(L, -2);
  lua_pushcclosure(L, finalize, 2);
  lua_pushliteral(L, "__gc");
  lua_insert(L, -2);
  lua_rawset(L, idx);
}

/* After Lua's. */
static int l_setmetatable (lua_State *L) {
  int t = lua_type(L, 2);
  luaL_checktype(L, 1, LUA_TTABLE);
  luaL_argexpected(L, t == LUA_TNIL || t == LUA_TTABLE, 2, "nil or table");
  if (luaL_getmetafield(L, 1, "__metatable") != LUA_TNIL)
    return luaL_error(L, "cannot change a protected metatable");
  guard_finalizer(L, 2);
  lua_settop(L, 2);
  lua_setmetatable(L, 1);
  return 1;
}

/* Upvalue 2: Lua's. */
static int d_setmetatable (lua_State *L) {
  guard_finalizer(L, 2);
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_insert(L, 1);
  lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
  return lua_gettop(L);
}

/* ---- debug.sethook: upvalue 2 is Lua's ---- */

static void raise_reason (lua_State *L, peri_lua_stop *s) {
  char text[PERI_REASON_SIZE];
  const char *reason = peri__stop_reason(s, text, sizeof text);
  if (!reason) return;
  peri__stop_raise(s); /* the hook may have been taken away just now */
  peri__error(L, "%s", reason);
}

static int d_sethook (lua_State *L) {
  peri_lua_stop *s = STOP(L);
  raise_reason(L, s);
  if (s->step)
    return luaL_error(L,
                      "debug.sethook: the hook of this Lua state looks for interrupts and counts "
                      "instructions for its host");
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_insert(L, 1);
  lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
  raise_reason(L, s); /* a signal came in between */
  return lua_gettop(L);
}

/* ---- in their places ---- */

/* Replaces the field of the library on top, with what it was as upvalue 2. What is not there stays so. */
static void replace (lua_State *L, peri_lua_stop *s, const char *name, lua_CFunction fn) {
  if (lua_getfield(L, -1, name) != LUA_TFUNCTION) {
    lua_pop(L, 1);
    return;
  }
  lua_pushlightuserdata(L, s);
  lua_insert(L, -2);
  lua_pushcclosure(L, fn, 2);
  lua_setfield(L, -2, name);
}

static bool library (lua_State *L, const char *name) {
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  bool found = lua_getfield(L, -1, name) == LUA_TTABLE;
  lua_remove(L, -2);
  if (!found) lua_pop(L, 1);
  return found;
}

static void push_handlers (lua_State *L, peri_lua_stop *s) {
  if (luaL_loadbufferx(L, handler_text, sizeof handler_text - 1, "=perilune/xpcall", "t") != LUA_OK)
    lua_error(L);
  lua_pushlightuserdata(L, s);
  lua_pushcclosure(L, l_stopping, 1);
  lua_call(L, 1, 1);
}

void peri__stop_functions (lua_State *L, peri_lua_stop *s) {
  luaL_checkstack(L, 10, NULL);
  if (library(L, LUA_COLIBNAME)) {
    replace(L, s, "create", co_create);
    replace(L, s, "resume", co_resume);
    replace(L, s, "wrap", co_wrap);
    replace(L, s, "close", co_close);
    lua_pop(L, 1);
  }
  if (library(L, LUA_GNAME)) {
    replace(L, s, "setmetatable", l_setmetatable);
    if (lua_getfield(L, -1, "xpcall") == LUA_TFUNCTION) {
      lua_pushlightuserdata(L, s);
      push_handlers(L, s);
      lua_pushcclosure(L, l_xpcall, 2);
      lua_setfield(L, -3, "xpcall");
    }
    lua_pop(L, 2);
  }
  if (library(L, LUA_DBLIBNAME)) {
    replace(L, s, "setmetatable", d_setmetatable);
    replace(L, s, "sethook", d_sethook);
    lua_pop(L, 1);
  }
}
