/*
** arrays.c - peri.npy, peri.npz, peri.idx: arrays of other programs. What the outside world does
** wrong comes back as nil and a message, misuse raises.
*/
#include <string.h>

#include "keep.h"

typedef peri_status (*load_fn)(peri_ctx *ctx, const char *path, peri_tensor **out);

static int load (lua_State *L, const char *fn, load_fn read) {
  const char *path = peri__want_path(L, 1, fn);
  int tries = 0;
  peri_status s;
  peri_tensor **out = peri__box_new(L);
  do s = read(peri_lua_ctx(L), path, out);
  while (peri__retry(L, s, &tries));
  if (s != PERI_OK) return peri__fail_soft(L, fn);
  peri__charge(L);
  return 1;
}

static int l_npy_load (lua_State *L) { return load(L, "npy.load", peri_npy_load); }
static int l_idx_load (lua_State *L) { return load(L, "idx.load", peri_idx_load); }

static int l_npy_save (lua_State *L) {
  const char *path = peri__want_path(L, 1, "npy.save");
  peri_tensor *t = peri__want_tensor(L, 2, "npy.save", "tensor");
  return peri__done_or_raise(L, "npy.save", peri_npy_save(peri_lua_ctx(L), path, t));
}

static void drop_npz (peri_ctx *ctx, void *p, size_t n) {
  (void)ctx;
  (void)n;
  peri_npz_close((peri_npz *)p);
}

/* A member that could not be read says why when it is asked for. */
static int npz_index (lua_State *L) {
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TSTRING) return 0;
  luaL_where(L, 1);
  lua_insert(L, -2);
  lua_concat(L, 2);
  return lua_error(L);
}

/* Arrays at -1 answer for those in problems; both are results. */
static int npz_result (lua_State *L, int problems) {
  lua_pushnil(L);
  if (!lua_next(L, problems)) return 1;
  lua_pop(L, 2);
  lua_createtable(L, 0, 1);
  lua_pushvalue(L, problems);
  lua_pushcclosure(L, npz_index, 1);
  lua_setfield(L, -2, "__index");
  lua_setmetatable(L, -2);
  lua_pushvalue(L, problems);
  return 2;
}

static int l_npz_load (lua_State *L) {
  static const char fn[] = "npz.load";
  const char *path = peri__want_path(L, 1, fn);
  peri_keep *k = peri__keep_new(L, 0, drop_npz);
  peri_npz *z;
  if (peri_npz_open(peri_lua_ctx(L), path, &z) != PERI_OK) return peri__fail_soft(L, fn);
  k->p = z;
  lua_newtable(L);
  int problems = lua_gettop(L);
  lua_newtable(L);
  for (int64_t i = 0; i < peri_npz_count(z); i++) {
    size_t n;
    int tries = 0;
    peri_status s;
    const char *name = peri_npz_name(z, i, &n);
    lua_pushlstring(L, name, n);
    peri_tensor **box = peri__box_new(L);
    do s = peri_npz_tensor(z, i, box);
    while (peri__retry(L, s, &tries));
    if (s == PERI_ENOSUP) {
      lua_pop(L, 1);
      lua_pushfstring(L, "%s: %s", fn, peri_lua_ctx(L)->scripted);
      lua_rawset(L, problems);
      continue;
    }
    if (s != PERI_OK) {
      peri__keep_drop(L, k);
      return peri__fail_soft(L, fn);
    }
    lua_rawset(L, -3);
  }
  peri__keep_drop(L, k);
  peri__charge(L);
  return npz_result(L, problems);
}

static int l_npz_save (lua_State *L) {
  static const char fn[] = "npz.save";
  const char *path = peri__want_path(L, 1, fn);
  size_t n = 0;
  lua_settop(L, 2);
  if (lua_type(L, 2) != LUA_TTABLE)
    peri__type_error(L, fn, 2, "tensors", "a table of tensors by name");
  for (lua_pushnil(L); lua_next(L, 2); lua_pop(L, 1), n++)
    if (lua_type(L, -2) != LUA_TSTRING) luaL_error(L, "%s: names must be strings", fn);
  peri_key *keys = peri__sorted_keys(L, 2, n);
  const char **names;
  peri_tensor **tensors;
  for (size_t i = 0; i < n; i++)
    if (strlen(keys[i].s) != keys[i].n) luaL_error(L, "%s: a name holds a zero byte", fn);
  peri__named_tensors(L, 2, fn, n, keys, &names, &tensors);
  return peri__done_or_raise(L, fn,
                             peri_npz_save(peri_lua_ctx(L), path, (int64_t)n, names, tensors));
}

static const peri_reg npy[] = {
  { "load", "path", "The array of a .npy file (also gzipped), or nil and a message.", l_npy_load },
  { "save", "path, tensor", "Write a .npy file in one step; true, or nil and a message.",
    l_npy_save },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg npz[] = {
  { "load", "path",
    "Arrays by name of a .npz file, or nil and a message; of members that are not read the "
    "messages by "
    "name come second, and asking for one raises its message.",
    l_npz_load },
  { "save", "path, tensors",
    "Write tensors by name as a .npz file in one step; true, or nil and a message.", l_npz_save },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg idx[] = {
  { "load", "path",
    "The array of an IDX file (MNIST's format, also gzipped), or nil and a message.", l_idx_load },
  { NULL, NULL, NULL, NULL }
};

void peri__open_arrays (lua_State *L) {
  lua_newtable(L);
  peri__register(L, npy);
  lua_setfield(L, -2, "npy");
  lua_newtable(L);
  peri__register(L, npz);
  lua_setfield(L, -2, "npz");
  lua_newtable(L);
  peri__register(L, idx);
  lua_setfield(L, -2, "idx");
}
