/*
** json.c - peri.json: JSON text to Lua values and back. Objects are tables that carry the order of
** their keys, arrays are tables that carry a mark (each in a metatable, which does nothing else),
** null is one value of its own, integers stay integers.
*/
#include "core/json.h"

#include <string.h>

#include "json_order.h"
#include "keep.h"

#define NULL_NAME "perilune.json.null"
#define ARRAY_NAME "perilune.json.array"

static const char key_null = 0, key_array = 0;

/* ---- decode ---- */

static void drop_parser (peri_ctx *ctx, void *p, size_t n) {
  (void)ctx;
  (void)n;
  peri_json_close((peri_json *)p);
}

static void push_mark (lua_State *L) { lua_rawgetp(L, LUA_REGISTRYINDEX, &key_array); }

/* ---- values ---- */

/* The value on top becomes the result, an element or a member. */
static void store (lua_State *L, const peri_json *p, lua_Integer *count) {
  if (p->depth == 0) return;
  if (p->object[p->depth - 1])
    lua_rawset(L, -3);
  else
    lua_rawseti(L, -2, ++count[p->depth - 1]);
}

/* Leaves the decoded value on top. Below each open object lies its node. */
static peri_status decode (lua_State *L, peri_json *p) {
  lua_Integer count[PERI_JSON_DEPTH_MAX]; /* elements or members so far of what is open */
  peri_json_value v;
  for (;;) {
    luaL_checkstack(L, 10, "JSON");
    peri_status s = peri_json_next(p, &v);
    if (s != PERI_OK) return s;
    switch (v.type) {
    case PERI_JSON_END: return PERI_OK;
    case PERI_JSON_KEY:
      lua_pushlstring(L, v.s, v.n);
      peri__json_step(L, lua_absindex(L, -3), ++count[p->depth - 1]);
      continue;
    case PERI_JSON_OBJECT:
      peri__json_push_root(L);
      lua_newtable(L);
      count[p->depth - 1] = 0;
      continue;
    case PERI_JSON_ARRAY:
      lua_newtable(L);
      push_mark(L);
      lua_setmetatable(L, -2);
      count[p->depth - 1] = 0;
      continue;
    case PERI_JSON_CLOSE:
      if (p->object[p->depth]) { /* the level that was closed */
        lua_Integer n = count[p->depth];
        if (n <= PERI__JSON_SHARED_MAX)
          peri__json_push_order(L, lua_absindex(L, -2), n);
        else
          lua_pushvalue(L, -2);
        lua_setmetatable(L, -2);
        lua_remove(L, -2);
      }
      break;
    case PERI_JSON_NULL: lua_rawgetp(L, LUA_REGISTRYINDEX, &key_null); break;
    case PERI_JSON_BOOL: lua_pushboolean(L, v.flag); break;
    case PERI_JSON_INT: lua_pushinteger(L, (lua_Integer)v.i); break;
    case PERI_JSON_NUM: lua_pushnumber(L, v.f); break;
    default: lua_pushlstring(L, v.s, v.n); break;
    }
    store(L, p, count);
  }
}

static lua_Integer want_int (lua_State *L, int idx, const char *fn, const char *name,
                             lua_Integer least, lua_Integer most, lua_Integer otherwise) {
  if (lua_isnoneornil(L, idx) || lua_getfield(L, idx, name) == LUA_TNIL) return otherwise;
  int ok;
  lua_Integer v = lua_tointegerx(L, -1, &ok);
  if (!ok || lua_type(L, -1) != LUA_TNUMBER || v < least || v > most)
    luaL_error(L, "%s: option %s must be an integer from %I to %I", fn, name, (LUAI_UACINT)least,
               (LUAI_UACINT)most);
  lua_pop(L, 1);
  return v;
}

static int l_decode (lua_State *L) {
  static const char *const names[] = { "max_depth", "allow_nan", "foreign", NULL };
  static const char fn[] = "json.decode";
  size_t n;
  lua_settop(L, 2);
  if (lua_type(L, 1) != LUA_TSTRING) peri__type_error(L, fn, 1, "text", "a string");
  peri__want_options(L, 2, fn, names);
  const char *text = lua_tolstring(L, 1, &n);
  peri_json_options opt = { .max_depth =
                                (int)want_int(L, 2, fn, "max_depth", 1, PERI_JSON_DEPTH_MAX, 0) };
  if (!lua_isnil(L, 2)) {
    lua_getfield(L, 2, "allow_nan");
    opt.allow_nan = lua_toboolean(L, -1);
    lua_getfield(L, 2, "foreign");
    opt.foreign = lua_toboolean(L, -1);
    lua_pop(L, 2);
  }
  peri_keep *keep = peri__keep_new(L, sizeof(peri_json), drop_parser);
  peri_json *p = (peri_json *)peri__keep_room(keep);
  peri_json_open(p, peri_lua_ctx(L), text, n, &opt);
  keep->p = p;
  peri_status s = decode(L, p);
  peri__keep_drop(L, keep);
  if (s == PERI_OK) return 1;
  lua_settop(L, 2);
  return peri__fail_soft(L, fn);
}

/* ---- encode ---- */

static void drop_writer (peri_ctx *ctx, void *p, size_t n) {
  (void)ctx;
  (void)n;
  peri_json_drop((peri_json_writer *)p);
}

typedef struct encoder {
  peri_json_writer *w;
  int path; /* stack index of the set of open tables */
  int depth, max_depth;
} encoder;

static void encode (lua_State *L, encoder *e, int idx);

/* Number of elements of the table if it is an array, -1 if it is an object; raises when it is
** neither. */
static lua_Integer shape (lua_State *L, int idx, lua_Integer *members) {
  lua_Integer n = (lua_Integer)lua_rawlen(L, idx), inside = 0, strings = 0, all = 0;
  bool marked = false;
  if (lua_getmetatable(L, idx)) {
    push_mark(L);
    marked = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
  }
  lua_pushnil(L);
  while (lua_next(L, idx)) {
    lua_pop(L, 1);
    all++;
    if (lua_type(L, -1) == LUA_TSTRING)
      strings++;
    else if (lua_isinteger(L, -1) && lua_tointeger(L, -1) >= 1 && lua_tointeger(L, -1) <= n)
      inside++;
    else if (!lua_isinteger(L, -1))
      luaL_error(L, "json.encode: a key is a %s: strings, or 1 to n, are expected",
                 luaL_typename(L, -1));
  }
  *members = strings;
  if (strings == all && !marked) return -1;
  if (inside == all && n == all) return n;
  return luaL_error(L,
                    strings > 0 ? "json.encode: a table has both named and numbered values"
                                : "json.encode: a list has holes: %I values, the last at %I",
                    (LUAI_UACINT)all, (LUAI_UACINT)n);
}

static void encode_member (lua_State *L, encoder *e, int value, const char *key, size_t n) {
  peri_json_put_key(e->w, key, n);
  encode(L, e, value);
}

/* Members in the order that the table carries, then the others sorted. */
static void encode_members (lua_State *L, encoder *e, int idx, lua_Integer members) {
  lua_Integer found = 0;
  int top = lua_gettop(L);
  bool ordered = peri__json_order(L, idx);
  if (ordered) {
    int order = lua_gettop(L);
    for (lua_Integer i = 1; found < members && lua_rawgeti(L, order, i) == LUA_TSTRING; i++) {
      size_t n;
      const char *key = lua_tolstring(L, -1, &n);
      lua_pushvalue(L, -1);
      if (lua_rawget(L, idx) != LUA_TNIL) {
        encode_member(L, e, lua_gettop(L), key, n);
        found++;
      }
      lua_settop(L, order);
    }
    lua_settop(L, order);
  }
  if (found < members) {
    int known = 0; /* stack index of the set of keys that are written */
    if (found > 0) {
      lua_newtable(L);
      known = lua_gettop(L);
      for (lua_Integer i = 1; lua_rawgeti(L, top + 1, i) == LUA_TSTRING; i++) {
        lua_pushboolean(L, 1);
        lua_rawset(L, known);
      }
      lua_settop(L, known);
    }
    peri_key *keys = peri__sorted_keys(L, idx, (size_t)members);
    for (lua_Integer i = 0; i < members; i++) {
      lua_pushlstring(L, keys[i].s, keys[i].n);
      bool written = false;
      if (known) {
        lua_pushvalue(L, -1);
        written = lua_rawget(L, known) != LUA_TNIL;
        lua_pop(L, 1);
      }
      lua_rawget(L, idx);
      if (!written) encode_member(L, e, lua_gettop(L), keys[i].s, keys[i].n);
      lua_pop(L, 1);
    }
  }
  lua_settop(L, top);
}

static void encode_table (lua_State *L, encoder *e, int idx) {
  lua_Integer members;
  luaL_checkstack(L, 12, "JSON");
  if (e->depth == e->max_depth)
    luaL_error(L, "json.encode: nested deeper than %d levels", e->max_depth);
  lua_pushvalue(L, idx);
  if (lua_rawget(L, e->path) != LUA_TNIL) luaL_error(L, "json.encode: a table contains itself");
  lua_pop(L, 1);
  lua_pushvalue(L, idx);
  lua_pushboolean(L, 1);
  lua_rawset(L, e->path);
  e->depth++;
  lua_Integer n = shape(L, idx, &members);
  if (n >= 0) {
    peri_json_put_array(e->w);
    for (lua_Integer i = 1; i <= n; i++) {
      lua_rawgeti(L, idx, i);
      encode(L, e, lua_gettop(L));
      lua_pop(L, 1);
    }
  } else {
    peri_json_put_object(e->w);
    encode_members(L, e, idx, members);
  }
  peri_json_put_close(e->w);
  e->depth--;
  lua_pushvalue(L, idx);
  lua_pushnil(L);
  lua_rawset(L, e->path);
}

/* The value at an absolute index. */
static void encode (lua_State *L, encoder *e, int idx) {
  size_t n;
  const char *s;
  switch (lua_type(L, idx)) {
  case LUA_TNIL: peri_json_put_null(e->w); return;
  case LUA_TBOOLEAN: peri_json_put_bool(e->w, lua_toboolean(L, idx)); return;
  case LUA_TNUMBER:
    if (lua_isinteger(L, idx))
      peri_json_put_int(e->w, (int64_t)lua_tointeger(L, idx));
    else
      peri_json_put_num(e->w, lua_tonumber(L, idx));
    return;
  case LUA_TSTRING:
    s = lua_tolstring(L, idx, &n);
    peri_json_put_string(e->w, s, n);
    return;
  case LUA_TTABLE: encode_table(L, e, idx); return;
  default:
    if (luaL_testudata(L, idx, NULL_NAME))
      peri_json_put_null(e->w);
    else
      luaL_error(L, "json.encode: a %s has no JSON form", luaL_typename(L, idx));
  }
}

static int l_encode (lua_State *L) {
  static const char *const names[] = { "indent", "nan", "max_depth", NULL };
  static const char *const nans[] = { "error", "null", "literal" }; /* ORDER peri_json_nan */
  static const char fn[] = "json.encode";
  if (lua_isnone(L, 1)) peri__type_error(L, fn, 1, "value", "a value");
  lua_settop(L, 2);
  peri__want_options(L, 2, fn, names);
  int indent = (int)want_int(L, 2, fn, "indent", 0, 16, 0), nan = 0;
  encoder e = { .path = 3,
                .max_depth =
                    (int)want_int(L, 2, fn, "max_depth", 1, PERI_JSON_DEPTH_MAX, PERI_JSON_DEPTH) };
  if (!lua_isnil(L, 2) && lua_getfield(L, 2, "nan") != LUA_TNIL) {
    const char *s = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
    while (nan < 3 && strcmp(nans[nan], s) != 0) nan++;
    if (nan == 3) luaL_error(L, "%s: option nan must be \"error\", \"null\" or \"literal\"", fn);
  }
  lua_settop(L, 2);
  lua_newtable(L); /* e.path */
  peri_keep *keep = peri__keep_new(L, sizeof(peri_json_writer), drop_writer);
  e.w = (peri_json_writer *)peri__keep_room(keep);
  peri_json_begin(e.w, peri_lua_ctx(L), indent, (peri_json_nan)nan);
  keep->p = e.w;
  encode(L, &e, 1);
  peri__check(L, fn, peri_json_finish(e.w));
  lua_pushlstring(L, e.w->text, e.w->size);
  peri__keep_drop(L, keep);
  return 1;
}

/* ---- marks ---- */

static int l_array (lua_State *L) {
  lua_settop(L, 1);
  if (lua_isnil(L, 1)) {
    lua_newtable(L);
    lua_replace(L, 1);
  }
  if (lua_type(L, 1) != LUA_TTABLE) peri__type_error(L, "json.array", 1, "t", "a table");
  push_mark(L);
  if (peri__json_order(L, 1))
    lua_pop(L, 1); /* an object becomes an array */
  else if (lua_getmetatable(L, 1) && !lua_rawequal(L, -1, -2))
    luaL_error(L, "json.array: the table has a metatable already");
  lua_settop(L, 2);
  lua_setmetatable(L, 1);
  return 1;
}

/* The keys of a table's members in the order in which encode writes them. */
static int l_keys (lua_State *L) {
  lua_settop(L, 1);
  if (lua_type(L, 1) != LUA_TTABLE) peri__type_error(L, "json.keys", 1, "t", "a table");
  lua_Integer n = 0, strings = 0, others = 0;
  lua_newtable(L); /* 2: the result */
  lua_newtable(L); /* 3: the set of what it has */
  if (peri__json_order(L, 1))
    for (lua_Integer i = 1; lua_rawgeti(L, 4, i) == LUA_TSTRING; i++) {
      lua_pushvalue(L, -1);
      if (lua_rawget(L, 1) != LUA_TNIL) {
        lua_pushvalue(L, -2);
        lua_rawseti(L, 2, ++n);
        lua_pushvalue(L, -2);
        lua_pushboolean(L, 1);
        lua_rawset(L, 3);
      }
      lua_settop(L, 4);
    }
  lua_settop(L, 3);
  for (lua_pushnil(L); lua_next(L, 1); lua_pop(L, 1)) {
    if (lua_type(L, -2) != LUA_TSTRING) continue;
    strings++;
    lua_pushvalue(L, -2);
    if (lua_rawget(L, 3) == LUA_TNIL) others++;
    lua_pop(L, 1);
  }
  if (others > 0) {
    peri_key *keys = peri__sorted_keys(L, 1, (size_t)strings);
    for (lua_Integer i = 0; i < strings; i++) {
      lua_pushlstring(L, keys[i].s, keys[i].n);
      lua_pushvalue(L, -1);
      bool known = lua_rawget(L, 3) != LUA_TNIL;
      lua_pop(L, 1);
      if (known)
        lua_pop(L, 1);
      else
        lua_rawseti(L, 2, ++n);
    }
  }
  lua_settop(L, 2);
  return 1;
}

static int l_object (lua_State *L) {
  lua_settop(L, 2);
  if (lua_type(L, 1) != LUA_TTABLE) peri__type_error(L, "json.object", 1, "t", "a table");
  if (lua_type(L, 2) != LUA_TTABLE)
    peri__type_error(L, "json.object", 2, "keys", "a list of names");
  push_mark(L);
  if (!peri__json_order(L, 1) && lua_getmetatable(L, 1) && !lua_rawequal(L, -1, 3))
    luaL_error(L, "json.object: the table has a metatable already");
  lua_settop(L, 2);
  peri__json_new_order(L);
  for (lua_Integer i = 1; lua_rawgeti(L, 2, i) != LUA_TNIL; i++) {
    if (lua_type(L, -1) != LUA_TSTRING)
      peri__type_error(L, "json.object", 2, "keys", "a list of names");
    lua_rawseti(L, 3, i);
  }
  lua_settop(L, 3);
  lua_setmetatable(L, 1);
  lua_settop(L, 1);
  return 1;
}

static int null_tostring (lua_State *L) {
  lua_pushliteral(L, "null");
  return 1;
}

static const peri_reg null_meta[] = { { "__tostring", NULL, NULL, null_tostring },
                                      { NULL, NULL, NULL, NULL } };

static const peri_reg functions[] = {
  { "decode", "text, options?",
    "Value of a JSON text, or nil and a message; null is json.null; objects carry the order of "
    "their "
    "keys; options: max_depth (64), allow_nan (false: NaN and infinities are refused), foreign "
    "(false; true: a file as Python writes it, with those and with a byte-order mark in front).",
    l_decode },
  { "encode", "value, options?",
    "JSON text of a value, keys of decoded objects in the order of their text, others sorted "
    "behind "
    "them; an empty table is an object unless json.array made it; options: indent (0), nan "
    "(\"error\", \"null\", \"literal\"), max_depth "
    "(64).",
    l_encode },
  { "keys", "t", "The names of a table's members, in the order in which encode writes them.",
    l_keys },
  { "object", "t, keys",
    "Give a table's members the order of a list of names, as decoded objects have one; returns it.",
    l_object },
  { "array", "t?", "Mark a table as an array, so that it is one when it is empty; returns it.",
    l_array },
  { NULL, NULL, NULL, NULL }
};

const peri_reg *const peri__json_functions = functions;

bool peri__json_is_null (lua_State *L, int idx) {
  idx = lua_absindex(L, idx);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &key_null);
  bool is = lua_rawequal(L, -1, idx) != 0;
  lua_pop(L, 1);
  return is;
}

void peri__json_push_null (lua_State *L) { lua_rawgetp(L, LUA_REGISTRYINDEX, &key_null); }

bool peri__json_is_array (lua_State *L, int idx) {
  if (!lua_getmetatable(L, idx)) return false;
  push_mark(L);
  bool is = lua_rawequal(L, -1, -2) != 0;
  lua_pop(L, 2);
  return is;
}

void peri__json_mark_array (lua_State *L) {
  push_mark(L);
  lua_setmetatable(L, -2);
}

int peri__open_json (lua_State *L) {
  lua_newtable(L);
  peri__register(L, functions);
  peri__json_open_orders(L);
  lua_createtable(L, 0, 1); /* the mark of arrays */
  lua_pushliteral(L, ARRAY_NAME);
  lua_setfield(L, -2, "__name");
  lua_rawsetp(L, LUA_REGISTRYINDEX, &key_array);
  lua_newuserdatauv(L, 0, 0);
  peri__metatable(L, NULL_NAME, null_meta, NULL);
  lua_setmetatable(L, -2);
  lua_pushvalue(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &key_null);
  lua_setfield(L, -2, "null");
  return 1;
}
