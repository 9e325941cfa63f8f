/*
** unpack.c - Lua values out of a packet that pack.c of this process has made; nothing else is read here.
*/
#include <string.h>

#include "json_order.h"
#include "pack.h"

typedef struct unpack {
  lua_State *L;
  const peri__packet *p;
  const char *at;
  int shared, channels; /* the next ones */
  int memo;             /* stack index of what was seen; 0: nothing comes twice */
  int nseen,
      nvariables; /* numbers given: [k] the value; [-2k], [-2k - 1] an upvalue's function and index */
} unpack;

static void get (unpack *u, void *out, size_t n) {
  memcpy(out, u->at, n);
  u->at += n;
}

static int get_int (unpack *u) {
  int i;
  get(u, &i, sizeof i);
  return i;
}

static const char *get_text (unpack *u, size_t *n) {
  get(u, n, sizeof *n);
  const char *s = u->at;
  u->at += *n;
  return s;
}

/* The value on top gets the next number. */
static void remember (unpack *u) {
  if (!u->memo) return;
  lua_pushvalue(u->L, -1);
  lua_rawseti(u->L, u->memo, ++u->nseen);
}

static void push_value (unpack *u);

static void push_tensor (unpack *u) {
  lua_State *L = u->L;
  peri_tensor **out = peri__box_new(L);
  peri_ctx *ctx = peri__bind(L)->ctx;
  int tries = 0;
  peri_status s;
  do s = peri_take(ctx, peri__packet_shared(u->p, u->shared), out);
  while (peri__retry(L, s, &tries));
  peri__check(L, "receive", s);
  u->shared++;
}

static void set_kind (unpack *u, char kind) {
  lua_State *L = u->L;
  size_t n;
  switch (kind) {
  case PACK_SHAPE: /* the library's own metatable, made with the first shape */
    peri__push_shape(L, 0, NULL);
    lua_getmetatable(L, -1);
    lua_remove(L, -2);
    lua_setmetatable(L, -2);
    break;
  case PACK_ARRAY: peri__json_mark_array(L); break;
  case PACK_OBJECT:
    peri__json_new_order(L);
    for (int i = 1, count = get_int(u); i <= count; i++) {
      const char *s = get_text(u, &n);
      lua_pushlstring(L, s, n);
      lua_rawseti(L, -2, i);
    }
    lua_setmetatable(L, -2);
    break;
  default: break;
  }
}

static void push_table (unpack *u) {
  lua_State *L = u->L;
  char kind = *u->at++;
  lua_createtable(L, get_int(u), 0);
  remember(u);
  set_kind(u, kind);
  while (*u->at != PACK_END) {
    push_value(u);
    push_value(u);
    lua_rawset(L, -3);
  }
  u->at++;
}

static void push_module (unpack *u) {
  lua_State *L = u->L;
  size_t n;
  const char *name = get_text(u, &n);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  lua_pushlstring(L, name, n);
  bool loaded = lua_rawget(L, -2) != LUA_TNIL;
  lua_remove(L, -2);
  if (loaded) return;
  lua_pop(L, 1);
  if (lua_getglobal(L, "require") != LUA_TFUNCTION)
    luaL_error(L, "module '%s' is not here, and there is no require", name);
  lua_pushlstring(L, name, n);
  lua_call(L, 1, 1);
}

static void push_function (unpack *u) {
  lua_State *L = u->L;
  size_t n;
  const char *dump = get_text(u, &n);
  /* a binary chunk, which is never loaded from outside: this one was made by lua_dump of this process */
  if (luaL_loadbufferx(L, dump, n, "=worker", "b") != LUA_OK) lua_error(L);
  remember(u);
  int fn = lua_gettop(L), nups = get_int(u);
  for (int i = 1; i <= nups; i++) {
    if (*u->at++ == PACK_JOINED) {
      int k = get_int(u);
      lua_rawgeti(L, u->memo, -2 * k);
      lua_rawgeti(L, u->memo, -2 * k - 1);
      lua_upvaluejoin(L, fn, i, -2, (int)lua_tointeger(L, -1));
      lua_pop(L, 2);
      continue;
    }
    int k = ++u->nvariables;
    lua_pushvalue(L, fn);
    lua_rawseti(L, u->memo, -2 * k);
    lua_pushinteger(L, i);
    lua_rawseti(L, u->memo, -2 * k - 1);
    push_value(u);
    lua_setupvalue(L, fn, i);
  }
}

static void push_value (unpack *u) {
  lua_State *L = u->L;
  lua_Integer i;
  lua_Number f;
  lua_CFunction c;
  size_t n;
  luaL_checkstack(L, 8, NULL);
  switch (*u->at++) {
  case PACK_FALSE: lua_pushboolean(L, 0); break;
  case PACK_TRUE: lua_pushboolean(L, 1); break;
  case PACK_INTEGER:
    get(u, &i, sizeof i);
    lua_pushinteger(L, i);
    break;
  case PACK_FLOAT:
    get(u, &f, sizeof f);
    lua_pushnumber(L, f);
    break;
  case PACK_STRING: {
    const char *s = get_text(u, &n);
    lua_pushlstring(L, s, n);
    break;
  }
  case PACK_NULL: peri__json_push_null(L); break;
  case PACK_TABLE: push_table(u); break;
  case PACK_TENSOR:
    push_tensor(u);
    remember(u);
    break;
  case PACK_CHANNEL:
    peri__channel_push(L, peri__packet_channel(u->p, u->channels++));
    remember(u);
    break;
  case PACK_SEEN: lua_rawgeti(L, u->memo, get_int(u)); break;
  case PACK_GLOBALS: lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS); break;
  case PACK_MODULE: push_module(u); break;
  case PACK_FUNCTION: push_function(u); break;
  case PACK_C:
    get(u, &c, sizeof c);
    lua_pushcfunction(L, c);
    remember(u);
    break;
  default: lua_pushnil(L);
  }
}

int peri__unpack (lua_State *L, const peri__packet *p) {
  unpack u = { .L = L, .p = p, .at = peri__packet_bytes(p) };
  int n = get_int(&u);
  bool again = *u.at++ != 0;
  if (again) {
    luaL_checkstack(L, 2, NULL);
    lua_newtable(L);
    u.memo = lua_gettop(L);
  }
  for (int i = 0; i < n; i++) push_value(&u);
  if (again) lua_remove(L, u.memo);
  peri__charge(L);
  return n;
}
