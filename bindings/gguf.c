/*
** gguf.c - perilune._gguf: GGUF files opened and written; lua/perilune/weights/gguf/init.lua makes peri.gguf of it.
** What the outside world does wrong comes back as nil and a message, misuse raises.
*/
#include <string.h>

#include "keep.h"

#define FILE_TYPE "perilune.gguf"
#define WRITER_TYPE "perilune.gguf.writer"

/* ORDER gguf type */
static const char *const type_names[PERI_GGUF_NTYPE + 1] = { "u8",  "i8",  "u16",  "i16",  "u32",
                                                             "i32", "f32", "bool", "text", "array",
                                                             "u64", "i64", "f64",  NULL };

/* ---- reading ---- */

static int l_open (lua_State *L) {
  const char *path = peri__want_path(L, 1, "gguf.open");
  bool map = peri__want_map(L, 2, "gguf.open");
  peri_gguf *f;
  peri_handle *h = peri__handle_new(L, FILE_TYPE, 0);
  if (peri_gguf_open(peri_lua_ctx(L), path, map, &f) != PERI_OK)
    return peri__fail_soft(L, "gguf.open");
  h->p = f;
  return 1;
}

static int file_close (lua_State *L) {
  peri_gguf_close((peri_gguf *)peri__handle_take(L, FILE_TYPE));
  return 0;
}

static void push_value (lua_State *L, const peri_gguf *f, const peri_gguf_value *v);

static void push_number (lua_State *L, const peri_gguf *f, const peri_gguf_value *v, int64_t i) {
  int64_t whole;
  double number = 0;
  if (peri_gguf_int(f, v, i, &whole)) {
    if (v->type == PERI_GGUF_BOOL)
      lua_pushboolean(L, whole != 0);
    else
      lua_pushinteger(L, (lua_Integer)whole);
    return;
  }
  peri_gguf_num(f, v, i, &number);
  lua_pushnumber(L, number);
}

static void push_array (lua_State *L, const peri_gguf *f, const peri_gguf_value *v) {
  peri_gguf_cursor at = { 0, 0 };
  peri_gguf_value item;
  luaL_checkstack(L, 4, "arrays are nested too deep");
  lua_createtable(L, v->count < 1 << 24 ? (int)v->count : 0, 0);
  if (v->type != PERI_GGUF_TEXT && v->type != PERI_GGUF_ARRAY) {
    for (int64_t i = 0; i < v->count; i++) {
      push_number(L, f, v, i);
      lua_rawseti(L, -2, (lua_Integer)i + 1);
    }
    return;
  }
  while (peri_gguf_next(f, v, &at, &item)) {
    push_value(L, f, &item);
    lua_rawseti(L, -2, (lua_Integer)at.i);
  }
}

static void push_value (lua_State *L, const peri_gguf *f, const peri_gguf_value *v) {
  peri_gguf_text text;
  if (v->array)
    push_array(L, f, v);
  else if (peri_gguf_string(f, v, &text))
    lua_pushlstring(L, text.s, text.n);
  else
    push_number(L, f, v, 0);
}

static int l_get (lua_State *L) {
  peri_gguf *f = (peri_gguf *)peri__handle_open(L, FILE_TYPE, "gguf:get");
  int64_t i = peri_gguf_find(f, luaL_checkstring(L, 2));
  if (i < 0) return 0;
  peri_gguf_value v = peri_gguf_at(f, i);
  push_value(L, f, &v);
  lua_pushstring(L, type_names[v.type]);
  if (v.array) {
    lua_pushinteger(L, (lua_Integer)v.count);
    return 3;
  }
  return 2;
}

/* {key, type, count} of each value; count only of arrays. */
static int l_keys (lua_State *L) {
  peri_gguf *f = (peri_gguf *)peri__handle_open(L, FILE_TYPE, "gguf:keys");
  lua_newtable(L);
  for (int64_t i = 0; i < peri_gguf_nvalues(f); i++) {
    peri_gguf_value v = peri_gguf_at(f, i);
    lua_createtable(L, 0, 3);
    lua_pushlstring(L, v.key.s, v.key.n);
    lua_setfield(L, -2, "key");
    lua_pushstring(L, type_names[v.type]);
    lua_setfield(L, -2, "type");
    if (v.array) {
      lua_pushinteger(L, (lua_Integer)v.count);
      lua_setfield(L, -2, "count");
    }
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

static int l_tensors (lua_State *L) {
  peri_gguf *f = (peri_gguf *)peri__handle_open(L, FILE_TYPE, "gguf:tensors");
  lua_newtable(L);
  for (int64_t i = 0; i < peri_gguf_count(f); i++) {
    peri_gguf_entry e = peri_gguf_entry_at(f, i);
    lua_createtable(L, 0, 6);
    lua_pushlstring(L, e.name.s, e.name.n);
    lua_setfield(L, -2, "name");
    lua_pushstring(L, e.type);
    lua_setfield(L, -2, "type");
    if (e.supported) {
      lua_pushstring(L, peri_dtype_name(e.dtype));
      lua_setfield(L, -2, "dtype");
    }
    peri__set_place(L, e.ndim, e.shape, e.offset, e.bytes);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

static int l_tensor (lua_State *L) {
  peri_gguf *f = (peri_gguf *)peri__handle_open(L, FILE_TYPE, "gguf:tensor");
  int64_t i = peri_gguf_find_tensor(f, luaL_checkstring(L, 2));
  if (i < 0) {
    lua_pushnil(L);
    lua_pushfstring(L, "gguf:tensor: there is no tensor '%s'", lua_tostring(L, 2));
    return 2;
  }
  int tries = 0;
  peri_status s;
  peri_tensor **out = peri__box_new(L);
  do s = peri_gguf_tensor(f, i, out);
  while (peri__retry(L, s, &tries));
  if (s != PERI_OK) return peri__fail_soft(L, "gguf:tensor");
  peri__charge(L);
  return 1;
}

static int l_version (lua_State *L) {
  peri_gguf *f = (peri_gguf *)peri__handle_open(L, FILE_TYPE, "gguf:version");
  lua_pushinteger(L, peri_gguf_version(f));
  lua_pushinteger(L, (lua_Integer)peri_gguf_alignment(f));
  return 2;
}

/* ---- writing ---- */

/* The list or single value on top as n elements of a type; the userdata that holds them is pushed. */
static const void *elements (lua_State *L, const char *key, peri_gguf_type type, bool array,
                             int64_t *n) {
  static const char fn[] = "gguf.create";
  int value = lua_gettop(L);
  *n = array ? (int64_t)lua_rawlen(L, value) : 1;
  size_t each = type == PERI_GGUF_TEXT ? sizeof(peri_gguf_text) : 8;
  char *data = (char *)lua_newuserdatauv(L, ((size_t)*n + 1) * each, 0);
  for (int64_t i = 0; i < *n; i++) {
    int good = 0;
    if (array)
      lua_rawgeti(L, value, (lua_Integer)i + 1);
    else
      lua_pushvalue(L, value);
    if (type == PERI_GGUF_TEXT) {
      peri_gguf_text *t = (peri_gguf_text *)(void *)data + i;
      good = lua_type(L, -1) == LUA_TSTRING; /* stays in the table */
      if (good) t->s = lua_tolstring(L, -1, &t->n);
    } else if (type == PERI_GGUF_F32 || type == PERI_GGUF_F64) {
      double v = lua_tonumberx(L, -1, &good);
      memcpy(data + i * 8, &v, 8);
    } else if (type == PERI_GGUF_BOOL) {
      good = lua_isboolean(L, -1);
      int64_t v = lua_toboolean(L, -1);
      memcpy(data + i * 8, &v, 8);
    } else {
      int64_t v = lua_tointegerx(L, -1, &good);
      memcpy(data + i * 8, &v, 8);
    }
    if (!good)
      luaL_error(L, "%s: value '%s' holds a %s, its type is %s", fn, key, luaL_typename(L, -1),
                 type_names[type]);
    lua_pop(L, 1);
  }
  return data;
}

/* {key, type, value}: a table as value makes an array. False with a message in the context. */
static bool put_value (lua_State *L, peri_gguf_writer *w, int idx) {
  int top = lua_gettop(L);
  lua_getfield(L, idx, "key");
  lua_getfield(L, idx, "type");
  lua_getfield(L, idx, "value");
  const char *key = lua_tostring(L, top + 1), *type = lua_tostring(L, top + 2);
  if (!key || !type) luaL_error(L, "gguf.create: a value needs a key and a type");
  int t = 0;
  while (type_names[t] && strcmp(type_names[t], type) != 0) t++;
  if (!type_names[t] || t == PERI_GGUF_ARRAY)
    luaL_error(L, "gguf.create: value '%s' has type '%s', which is none", key, type);
  bool array = lua_type(L, top + 3) == LUA_TTABLE;
  int64_t n;
  const void *data = elements(L, key, (peri_gguf_type)t, array, &n);
  peri_status s = peri_gguf_put(w, key, (peri_gguf_type)t, array, n, data);
  lua_settop(L, top);
  return s == PERI_OK;
}

/* {name, dtype, shape} */
static bool declare (lua_State *L, peri_gguf_writer *w, int idx) {
  int64_t shape[PERI_MAX_DIMS];
  int top = lua_gettop(L);
  lua_getfield(L, idx, "name");
  const char *name = lua_tostring(L, -1);
  if (!name) luaL_error(L, "gguf.create: a tensor needs a name");
  lua_getfield(L, idx, "dtype");
  peri_dtype d = peri__want_dtype_arg(L, top + 2, "gguf.create", "dtype");
  lua_getfield(L, idx, "shape");
  int ndim = peri__want_shape(L, top + 3, "gguf.create", "shape", shape);
  peri_status s = peri_gguf_declare(w, name, d, ndim, shape);
  lua_settop(L, top);
  return s == PERI_OK;
}

static int l_create (lua_State *L) {
  static const char fn[] = "gguf.create";
  const char *path = peri__want_path(L, 1, fn);
  lua_settop(L, 3);
  if (lua_type(L, 2) != LUA_TTABLE) peri__type_error(L, fn, 2, "values", "a list");
  if (lua_type(L, 3) != LUA_TTABLE) peri__type_error(L, fn, 3, "tensors", "a list");
  peri_gguf_writer *w;
  peri_handle *h = peri__handle_new(L, WRITER_TYPE, 0);
  if (peri_gguf_create(peri_lua_ctx(L), path, &w) != PERI_OK) return peri__fail_soft(L, fn);
  h->p = w;
  for (int list = 2; list <= 3; list++)
    for (lua_Integer i = 1; i <= (lua_Integer)lua_rawlen(L, list); i++) {
      if (lua_rawgeti(L, list, i) != LUA_TTABLE)
        luaL_error(L, "%s: entry %I of argument %d is a %s, a table is expected", fn,
                   (LUAI_UACINT)i, list, luaL_typename(L, -1));
      int entry = lua_gettop(L);
      if (!(list == 2 ? put_value : declare)(L, w, entry)) peri__check(L, fn, PERI_EINVAL);
      lua_settop(L, entry - 1);
    }
  return 1;
}

static int writer_abort (lua_State *L) {
  peri_gguf_abort((peri_gguf_writer *)peri__handle_take(L, WRITER_TYPE));
  return 0;
}

static int l_write (lua_State *L) {
  peri_gguf_writer *w = (peri_gguf_writer *)peri__handle_open(L, WRITER_TYPE, "gguf.writer:write");
  peri_tensor *t = peri__want_tensor(L, 2, "gguf.writer:write", "tensor");
  return peri__done_or_raise(L, "gguf.writer:write", peri_gguf_write(w, t));
}

static int l_commit (lua_State *L) {
  peri_gguf_writer *w = (peri_gguf_writer *)peri__handle_open(L, WRITER_TYPE, "gguf.writer:commit");
  ((peri_handle *)lua_touserdata(L, 1))->p = NULL;
  return peri__done(L, "gguf.writer:commit", peri_gguf_commit(w));
}

/* ---- opening ---- */

static const peri_reg file_meta[] = { { "__gc", NULL, NULL, file_close },
                                      { "__close", NULL, NULL, file_close },
                                      { NULL, NULL, NULL, NULL } };

static const peri_reg file_methods[] = {
  { "get", "self, key",
    "Value of a key (a table for an array), its type and, for an array, its length; nothing when "
    "there is none.",
    l_get },
  { "keys", "self", "{key, type, count} of each value in the file's order; count only of arrays.",
    l_keys },
  { "tensors", "self",
    "{name, type, dtype, shape, offset, bytes} of each tensor by offset; no dtype where there is "
    "none.",
    l_tensors },
  { "tensor", "self, name", "A tensor in the file's dtype, or nil and a message.", l_tensor },
  { "version", "self", "Version of the format, and the alignment.", l_version },
  { "close", "self", "Close the file; its tensors stay.", file_close },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg writer_meta[] = { { "__gc", NULL, NULL, writer_abort },
                                        { "__close", NULL, NULL, writer_abort },
                                        { NULL, NULL, NULL, NULL } };

static const peri_reg writer_methods[] = {
  { "write", "self, tensor", "The data of the next declared tensor; true, or nil and a message.",
    l_write },
  { "commit", "self", "Put the file under its name; true, or nil and a message.", l_commit },
  { "abort", "self", "Remove what was written.", writer_abort },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg functions[] = {
  { "open", "path, options?",
    "Open a GGUF file, or nil and a message; option map: tensors share the file's pages (only for "
    "files that nobody truncates).",
    l_open },
  { "create", "path, values, tensors",
    "Begin a GGUF file of values {key, type, value} and tensors {name, dtype, shape}: a writer, or "
    "nil and a message.",
    l_create },
  { NULL, NULL, NULL, NULL }
};

int peri__open_gguf (lua_State *L) {
  peri__metatable(L, FILE_TYPE, file_meta, file_methods);
  peri__metatable(L, WRITER_TYPE, writer_meta, writer_methods);
  lua_pop(L, 2);
  lua_newtable(L);
  peri__register(L, functions);
  return 1;
}
