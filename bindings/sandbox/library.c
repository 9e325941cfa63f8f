/* library.c - what code in the sandbox finds: the parts of Lua's library that only compute, in two copies. The code
** has one and may change it; tests see another, which it cannot reach, over its globals. */
#include <string.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lualib.h>

#include "program.h"

/* print, in one write, so that lines of what was printed before a limit are there. */
static int l_print (lua_State *L) {
  int n = lua_gettop(L);
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  for (int i = 1; i <= n; i++) {
    luaL_tolstring(L, i, NULL);
    luaL_addvalue(&b);
    luaL_addchar(&b, i < n ? '\t' : '\n');
  }
  if (n == 0) luaL_addchar(&b, '\n');
  luaL_pushresult(&b);
  size_t left;
  const char *p = lua_tolstring(L, -1, &left);
  while (left > 0) {
    ssize_t k = write(1, p, left);
    if (k <= 0) return luaL_error(L, "print: the pipe is closed");
    p += k, left -= (size_t)k;
  }
  return 0;
}

/* load of text alone: bytecode is not checked by anybody. Upvalue: Lua's. */
static int l_load (lua_State *L) {
  lua_settop(L, 4);
  bool own = !lua_isnil(L, 4);
  lua_pushliteral(L, "t");
  lua_replace(L, 3);
  if (!own) lua_settop(L, 3);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_insert(L, 1);
  lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
  return lua_gettop(L);
}

/* collectgarbage of what stops nothing. Upvalue: Lua's. */
static int l_collect (lua_State *L) {
  const char *what = luaL_optstring(L, 1, "collect");
  if (strcmp(what, "collect") != 0 && strcmp(what, "count") != 0 && strcmp(what, "step") != 0)
    return luaL_argerror(L, 1, "\"collect\", \"count\" or \"step\" expected");
  lua_settop(L, 1);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_insert(L, 1);
  lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
  return lua_gettop(L);
}

/* Names that a library has here. */
static const char *const base[] = { "assert", "error",  "getmetatable", "ipairs",   "next",
                                    "pairs",  "pcall",  "rawequal",     "rawget",   "rawlen",
                                    "rawset", "select", "setmetatable", "tonumber", "tostring",
                                    "type",   "xpcall", "_VERSION",     NULL };
static const char *const os[] = { "clock", "date", "difftime", "time", NULL };

static void pick (lua_State *L, int from, int to, const char *const *names) {
  for (; *names; names++) {
    lua_getfield(L, from, *names);
    lua_setfield(L, to, *names);
  }
}

/* Set in the table at to a copy of the library at the top, which is popped. */
static void copy_library (lua_State *L, int to, const char *name, const char *left_out) {
  int from = lua_gettop(L);
  lua_newtable(L);
  for (lua_pushnil(L); lua_next(L, from);) {
    lua_pushvalue(L, -2);
    lua_insert(L, -2);
    lua_rawset(L, -4);
  }
  if (left_out) {
    lua_pushnil(L);
    lua_setfield(L, -2, left_out);
  }
  lua_setfield(L, to, name);
  lua_settop(L, from - 1);
}

/* A table of everything that code may call, pushed. Lua's own libraries are in the table at full. */
static void push_allowed (lua_State *L, int full) {
  static const char *const whole[] = { "math", "table", "utf8", "coroutine", NULL };
  lua_newtable(L);
  int to = lua_gettop(L);
  pick(L, full, to, base);
  for (const char *const *name = whole; *name; name++) {
    lua_getfield(L, full, *name);
    copy_library(L, to, *name, NULL);
  }
  lua_getfield(L, full, "string");
  copy_library(L, to, "string", "dump");
  lua_getfield(L, full, "os");
  lua_newtable(L);
  pick(L, lua_gettop(L) - 1, lua_gettop(L), os);
  lua_setfield(L, to, "os");
  lua_pop(L, 1);
  lua_getfield(L, full, "load");
  lua_pushcclosure(L, l_load, 1);
  lua_setfield(L, to, "load");
  lua_getfield(L, full, "collectgarbage");
  lua_pushcclosure(L, l_collect, 1);
  lua_setfield(L, to, "collectgarbage");
  lua_pushcfunction(L, l_print);
  lua_setfield(L, to, "print");
}

/* The table at over falls back on the one at under. */
static void lay_over (lua_State *L, int over, int under) {
  lua_createtable(L, 0, 1);
  lua_pushvalue(L, under);
  lua_setfield(L, -2, "__index");
  lua_setmetatable(L, over);
}

void sandbox_open (lua_State *L, const sandbox_request *r) {
  luaL_openlibs(L);
  lua_pushglobaltable(L);
  int full = lua_gettop(L);
  lua_getfield(L, full, "math");
  lua_getfield(L, -1, "randomseed"); /* the same draws every time */
  lua_pushinteger(L, (lua_Integer)r->seed);
  lua_call(L, 1, 0);
  lua_pop(L, 1);
  push_allowed(L, full);
  int pristine = lua_gettop(L);
  if (r->flags & SANDBOX_ALL_LIBRARIES) {
    lua_pushcfunction(L, l_print);
    lua_setfield(L, full, "print");
    lua_pushvalue(L, full);
  } else {
    push_allowed(L, full);
    lua_pushvalue(L, -1);
    lua_setfield(L, -2, "_G");
    lua_pushvalue(L, -1);
    lua_rawseti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
    lua_pushnil(L);
    lua_setfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  }
  int global = lua_gettop(L);
  lay_over(L, pristine, global);
  /* s:upper() is that of the tests, s:trim() whatever the code has added to its string */
  lua_getfield(L, pristine, "string");
  lua_getfield(L, global, "string");
  lay_over(L, lua_gettop(L) - 1, lua_gettop(L));
  lua_pop(L, 1);
  lua_pushliteral(L, "");
  lua_createtable(L, 0, 2);
  lua_pushvalue(L, -3);
  lua_setfield(L, -2, "__index");
  lua_pushboolean(L, 0);
  lua_setfield(L, -2, "__metatable");
  lua_setmetatable(L, -2);
  lua_settop(L, pristine);
  lua_remove(L, full);
}
