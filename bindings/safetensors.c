/*
** safetensors.c - peri.safetensors: tensors by name in safetensors files. What the outside world does
** wrong comes back as nil and a message, misuse raises.
*/
#include <string.h>

#include "keep.h"

#define WRITER "perilune.safetensors.writer"

/* ---- reading ---- */

static void drop_safetensors (peri_ctx *ctx, void *p, size_t n) {
  (void)ctx;
  (void)n;
  peri_safetensors_close((peri_safetensors *)p);
}

static void push_metadata (lua_State *L, const peri_safetensors *f) {
  lua_newtable(L);
  for (int64_t i = 0; i < peri_safetensors_pairs(f); i++) {
    peri_text_pair pair = peri_safetensors_pair(f, i);
    lua_pushstring(L, pair.key);
    lua_pushstring(L, pair.value);
    lua_rawset(L, -3);
  }
}

/* Pushes a keep of the open file; NULL when it cannot be opened. */
static peri_keep *open_safetensors (lua_State *L, const char *path, bool map) {
  peri_keep *k = peri__keep_new(L, 0, drop_safetensors);
  peri_safetensors *f;
  if (peri_safetensors_open(peri_lua_ctx(L), path, map, &f) != PERI_OK) return NULL;
  k->p = f;
  return k;
}

static int l_load (lua_State *L) {
  const char *path = peri__want_path(L, 1, "safetensors.load");
  peri_keep *k = open_safetensors(L, path, peri__want_map(L, 2, "safetensors.load"));
  if (!k) return peri__fail_soft(L, "safetensors.load");
  peri_safetensors *f = (peri_safetensors *)k->p;
  lua_newtable(L);
  for (int64_t i = 0; i < peri_safetensors_count(f); i++) {
    int tries = 0;
    peri_status s;
    peri_tensor **box = peri__box_new(L);
    do s = peri_safetensors_tensor(f, i, box);
    while (peri__retry(L, s, &tries));
    if (s != PERI_OK) {
      peri__keep_drop(L, k);
      return peri__fail_soft(L, "safetensors.load");
    }
    lua_setfield(L, -2, peri_safetensors_at(f, i).name);
  }
  push_metadata(L, f);
  peri__keep_drop(L, k);
  peri__charge(L);
  return 2;
}

static int l_info (lua_State *L) {
  const char *path = peri__want_path(L, 1, "safetensors.info");
  peri_keep *k = open_safetensors(L, path, false);
  if (!k) return peri__fail_soft(L, "safetensors.info");
  peri_safetensors *f = (peri_safetensors *)k->p;
  lua_createtable(L, 0, 2);
  lua_newtable(L);
  for (int64_t i = 0; i < peri_safetensors_count(f); i++) {
    peri_safetensors_entry e = peri_safetensors_at(f, i);
    lua_createtable(L, 0, 5);
    lua_pushstring(L, e.name);
    lua_setfield(L, -2, "name");
    lua_pushstring(L, peri_dtype_name(e.dtype));
    lua_setfield(L, -2, "dtype");
    peri__set_place(L, e.ndim, e.shape, e.offset, e.bytes);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  lua_setfield(L, -2, "tensors");
  push_metadata(L, f);
  lua_setfield(L, -2, "metadata");
  peri__keep_drop(L, k);
  return 1;
}

/* ---- writing ---- */

/* Number of entries of the table at idx, all of whose keys must be strings without zero bytes. */
static size_t count_names (lua_State *L, int idx, const char *what) {
  size_t count = 0, n;
  lua_pushnil(L);
  while (lua_next(L, idx)) {
    lua_pop(L, 1);
    count++;
    if (lua_type(L, -1) != LUA_TSTRING)
      luaL_error(L, "safetensors.save: %s must have strings as keys, got a %s", what,
                 luaL_typename(L, -1));
    if (strlen(lua_tolstring(L, -1, &n)) != n)
      luaL_error(L, "safetensors.save: %s has a key with a zero byte", what);
  }
  return count;
}

static int l_save (lua_State *L) {
  static const char fn[] = "safetensors.save";
  const char *path = peri__want_path(L, 1, fn);
  lua_settop(L, 3);
  if (lua_type(L, 2) != LUA_TTABLE)
    peri__type_error(L, fn, 2, "tensors", "a table of tensors by name");
  if (lua_isnil(L, 3)) {
    lua_newtable(L);
    lua_replace(L, 3);
  }
  if (lua_type(L, 3) != LUA_TTABLE) peri__type_error(L, fn, 3, "metadata", "a table of strings");
  size_t n = count_names(L, 2, "tensors"), m = count_names(L, 3, "metadata");
  peri_key *keys = peri__sorted_keys(L, 2, n), *meta = peri__sorted_keys(L, 3, m);
  const char **names;
  peri_tensor **tensors;
  peri__named_tensors(L, 2, fn, n, keys, &names, &tensors);
  peri_text_pair *pairs = (peri_text_pair *)lua_newuserdatauv(L, (m + 1) * sizeof *pairs, 0);
  for (size_t i = 0; i < m; i++) {
    size_t len;
    lua_pushlstring(L, meta[i].s, meta[i].n);
    if (lua_rawget(L, 3) != LUA_TSTRING)
      luaL_error(L, "%s: metadata '%s' is a %s, a string is expected", fn, meta[i].s,
                 luaL_typename(L, -1));
    pairs[i] = (peri_text_pair){ meta[i].s, lua_tolstring(L, -1, &len) };
    if (strlen(pairs[i].value) != len)
      luaL_error(L, "%s: metadata '%s' holds a zero byte", fn, meta[i].s);
    lua_pop(L, 1);
  }
  return peri__done(
      L, fn,
      peri_safetensors_save(peri_lua_ctx(L), path, (int64_t)n, names, tensors, (int64_t)m, pairs));
}

/* ---- a tensor at a time ---- */

/* {name, dtype, shape} at idx; the name stays in the table. */
static void want_entry (lua_State *L, int idx, peri_safetensors_entry *e) {
  static const char fn[] = "safetensors.create";
  int top = lua_gettop(L);
  if (lua_type(L, idx) != LUA_TTABLE)
    luaL_error(L, "%s: tensors are tables, got a %s", fn, luaL_typename(L, idx));
  size_t n;
  if (lua_getfield(L, idx, "name") != LUA_TSTRING) luaL_error(L, "%s: a tensor needs a name", fn);
  e->name = lua_tolstring(L, -1, &n);
  if (strlen(e->name) != n) luaL_error(L, "%s: a name holds a zero byte", fn);
  lua_getfield(L, idx, "dtype");
  e->dtype = peri__want_dtype_arg(L, top + 2, fn, "dtype");
  lua_getfield(L, idx, "shape");
  e->ndim = peri__want_shape(L, top + 3, fn, "shape", e->shape);
  lua_settop(L, top);
}

static int l_create (lua_State *L) {
  static const char fn[] = "safetensors.create";
  const char *path = peri__want_path(L, 1, fn);
  lua_settop(L, 2);
  if (lua_type(L, 2) != LUA_TTABLE) peri__type_error(L, fn, 2, "tensors", "a list");
  size_t n = (size_t)lua_rawlen(L, 2);
  if (n > ((size_t)1 << 40) / sizeof(peri_safetensors_entry)) luaL_error(L, "%s: too many", fn);
  peri_safetensors_entry *entries =
      (peri_safetensors_entry *)lua_newuserdatauv(L, (n + 1) * sizeof *entries, 0);
  memset(entries, 0, (n + 1) * sizeof *entries);
  for (size_t i = 0; i < n; i++) {
    lua_rawgeti(L, 2, (lua_Integer)i + 1);
    want_entry(L, lua_gettop(L), &entries[i]);
    lua_pop(L, 1);
  }
  const peri_text_pair pair = { "format", "pt" };
  peri_safetensors_writer *w;
  peri_handle *h = peri__handle_new(L, WRITER, 0);
  peri_status s = peri_safetensors_create(peri_lua_ctx(L), path, (int64_t)n, entries, 1, &pair, &w);
  if (s == PERI_EINVAL || s == PERI_EDTYPE) peri__check(L, fn, s);
  if (s != PERI_OK) return peri__fail_soft(L, fn);
  h->p = w;
  return 1;
}

static int l_next (lua_State *L) {
  int64_t i = peri_safetensors_next(
      (peri_safetensors_writer *)peri__handle_open(L, WRITER, "safetensors.writer:next"));
  if (i < 0) return 0;
  lua_pushinteger(L, (lua_Integer)i + 1);
  return 1;
}

static int l_write_tensor (lua_State *L) {
  static const char fn[] = "safetensors.writer:write";
  peri_safetensors_writer *w = (peri_safetensors_writer *)peri__handle_open(L, WRITER, fn);
  return peri__done_or_raise(L, fn,
                             peri_safetensors_write(w, peri__want_tensor(L, 2, fn, "tensor")));
}

static int l_commit_tensors (lua_State *L) {
  static const char fn[] = "safetensors.writer:commit";
  peri_safetensors_writer *w = (peri_safetensors_writer *)peri__handle_open(L, WRITER, fn);
  ((peri_handle *)lua_touserdata(L, 1))->p = NULL;
  peri_status s = peri_safetensors_commit(w);
  if (s == PERI_EINVAL) peri__check(L, fn, s);
  return peri__done(L, fn, s);
}

static int abort_tensors (lua_State *L) {
  peri_safetensors_abort((peri_safetensors_writer *)peri__handle_take(L, WRITER));
  return 0;
}

/* ---- opening ---- */

static const peri_reg writer_meta[] = { { "__gc", NULL, NULL, abort_tensors },
                                        { "__close", NULL, NULL, abort_tensors },
                                        { NULL, NULL, NULL, NULL } };

static const peri_reg writer_methods[] = {
  { "next", "self", "Which tensor of the list is to be written next; nothing at the end.", l_next },
  { "write", "self, tensor", "Data of the next tensor; true, or nil and a message.",
    l_write_tensor },
  { "commit", "self", "Put the file under its name; true, or nil and a message.",
    l_commit_tensors },
  { "abort", "self", "Remove what was written.", abort_tensors },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg functions[] = {
  { "load", "path, options?",
    "Tensors by name and metadata of a safetensors file, or nil and a message; "
    "option map: share the file's pages (only for files that nobody truncates).",
    l_load },
  { "save", "path, tensors, metadata?",
    "Write tensors by name, and metadata (texts by name), in one step; true, or nil and a "
    "message.",
    l_save },
  { "create", "path, tensors",
    "Begin a file of tensors {name, dtype, shape} that are then written one at a time: a writer, "
    "or nil and a message.",
    l_create },
  { "info", "path",
    "What a file holds, {tensors = {{name, dtype, shape, offset, bytes}}, metadata}, "
    "without reading the data.",
    l_info },
  { NULL, NULL, NULL, NULL }
};

int peri__open_safetensors (lua_State *L) {
  peri__metatable(L, WRITER, writer_meta, writer_methods);
  lua_pop(L, 1);
  lua_newtable(L);
  peri__register(L, functions);
  return 1;
}
