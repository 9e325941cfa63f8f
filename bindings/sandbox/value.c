/* value.c - plain Lua values as bytes, and whether two are the same. No metamethod is called: what code returns may
** have any. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <lauxlib.h>

#include "program.h"

enum { DEEPEST = 32 };

static void put (sandbox_out *o, const void *p, size_t n) {
  if (o->refused) return;
  if (n > o->room - o->n) {
    o->refused = "it is too large";
    return;
  }
  memcpy(o->p + o->n, p, n);
  o->n += n;
}

static void put_byte (sandbox_out *o, char c) { put(o, &c, 1); }

static void encode (lua_State *L, int idx, sandbox_out *o, int depth) {
  static const char *const what[] = { "it is a lightuserdata", "it is a function",
                                      "it is a userdata", "it is a coroutine" };
  switch (lua_type(L, idx)) {
  case LUA_TNIL:
  case LUA_TNONE: put_byte(o, 'N'); break;
  case LUA_TBOOLEAN: put_byte(o, lua_toboolean(L, idx) ? 'T' : 'F'); break;
  case LUA_TNUMBER:
    if (lua_isinteger(L, idx)) {
      int64_t i = lua_tointeger(L, idx);
      put_byte(o, 'I');
      put(o, &i, 8);
    } else {
      double d = lua_tonumber(L, idx);
      put_byte(o, 'D');
      put(o, &d, 8);
    }
    break;
  case LUA_TSTRING: {
    size_t n;
    const char *s = lua_tolstring(L, idx, &n);
    uint32_t size = (uint32_t)n;
    put_byte(o, 'S');
    if (n > UINT32_MAX) o->refused = "it is too large";
    put(o, &size, 4);
    put(o, s, n);
    break;
  }
  case LUA_TTABLE:
    if (depth >= DEEPEST || !lua_checkstack(L, 4)) {
      o->refused = "it is too deep";
      break;
    }
    put_byte(o, '{');
    idx = lua_absindex(L, idx);
    for (lua_pushnil(L); lua_next(L, idx); lua_pop(L, 1)) {
      if (lua_type(L, -2) == LUA_TTABLE) o->refused = "it has a key that is a table";
      encode(L, -2, o, depth + 1);
      encode(L, -1, o, depth + 1);
      if (o->refused) {
        lua_pop(L, 2);
        return;
      }
    }
    put_byte(o, '}');
    break;
  case LUA_TLIGHTUSERDATA: o->refused = what[0]; break;
  case LUA_TFUNCTION: o->refused = what[1]; break;
  case LUA_TUSERDATA: o->refused = what[2]; break;
  default: o->refused = what[3]; break;
  }
}

void sandbox_encode (lua_State *L, int idx, sandbox_out *out) { encode(L, idx, out, 0); }

static bool take (const uint8_t **p, const uint8_t *end, void *to, size_t n) {
  if (n > (size_t)(end - *p)) return false;
  memcpy(to, *p, n);
  *p += n;
  return true;
}

bool sandbox_decode (lua_State *L, const uint8_t **p, const uint8_t *end, int depth) {
  char kind = 0;
  if (depth > DEEPEST || !take(p, end, &kind, 1)) return false;
  luaL_checkstack(L, 4, NULL);
  switch (kind) {
  case 'N': lua_pushnil(L); return true;
  case 'T':
  case 'F': lua_pushboolean(L, kind == 'T'); return true;
  case 'I': {
    int64_t i = 0;
    if (!take(p, end, &i, 8)) return false;
    lua_pushinteger(L, (lua_Integer)i);
    return true;
  }
  case 'D': {
    double d = 0;
    if (!take(p, end, &d, 8)) return false;
    lua_pushnumber(L, (lua_Number)d);
    return true;
  }
  case 'S': {
    uint32_t n = 0;
    if (!take(p, end, &n, 4) || n > (size_t)(end - *p)) return false;
    lua_pushlstring(L, (const char *)*p, n);
    *p += n;
    return true;
  }
  case '{':
    lua_newtable(L);
    while (*p < end && **p != '}') {
      if (!sandbox_decode(L, p, end, depth + 1)) return false;
      if (lua_isnil(L, -1) || (lua_type(L, -1) == LUA_TNUMBER && isnan(lua_tonumber(L, -1))))
        return false;
      if (!sandbox_decode(L, p, end, depth + 1)) return false;
      lua_rawset(L, -3);
    }
    return take(p, end, &kind, 1);
  default: return false;
  }
}

static bool same_number (lua_State *L, int a, int b) {
  if (lua_isinteger(L, a) && lua_isinteger(L, b)) return lua_tointeger(L, a) == lua_tointeger(L, b);
  double x = lua_tonumber(L, a), y = lua_tonumber(L, b);
  if (isnan(x) || isnan(y)) return isnan(x) && isnan(y);
  return x == y || fabs(x - y) <= 1e-9 * fmax(fabs(x), fabs(y));
}

bool sandbox_same (lua_State *L, int got, int want, int depth) {
  int t = lua_type(L, got);
  if (t != lua_type(L, want) || depth > DEEPEST) return false;
  if (t == LUA_TNUMBER) return same_number(L, got, want);
  if (t != LUA_TTABLE) return lua_rawequal(L, got, want) != 0;
  luaL_checkstack(L, 6, NULL);
  got = lua_absindex(L, got), want = lua_absindex(L, want);
  size_t left = 0;
  for (lua_pushnil(L); lua_next(L, want); lua_pop(L, 1)) {
    left++;
    lua_pushvalue(L, -2);
    lua_rawget(L, got);
    bool same = sandbox_same(L, -1, -2, depth + 1);
    lua_pop(L, 1);
    if (!same) {
      lua_pop(L, 2);
      return false;
    }
  }
  for (lua_pushnil(L); lua_next(L, got); lua_pop(L, 1))
    if (left-- == 0) {
      lua_pop(L, 2);
      return false;
    }
  return true;
}
