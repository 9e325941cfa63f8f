/* keep.c - see keep.h. */
#include "keep.h"

#include <string.h>

#define KEEP "perilune.keep"

static int keep_gc (lua_State *L) {
  peri_keep *k = (peri_keep *)luaL_testudata(L, 1, KEEP);
  if (k && BIND(L)->ctx) peri__keep_drop(L, k);
  return 0;
}

static const peri_reg keep_meta[] = { { "__gc", NULL, NULL, keep_gc }, { NULL, NULL, NULL, NULL } };

peri_keep *peri__keep_new (lua_State *L, size_t room,
                           void (*drop)(peri_ctx *ctx, void *p, size_t n)) {
  peri_keep *k = (peri_keep *)lua_newuserdatauv(L, sizeof *k + room, 0);
  *k = (peri_keep){ .drop = drop };
  peri__metatable(L, KEEP, keep_meta, NULL);
  lua_setmetatable(L, -2);
  return k;
}

void peri__keep_drop (lua_State *L, peri_keep *k) {
  void *p = k->p;
  k->p = NULL;
  if (p) k->drop(peri_lua_ctx(L), p, k->n);
}

/* ---- handles ---- */

peri_handle *peri__handle_new (lua_State *L, const char *type, int values) {
  peri_handle *h = (peri_handle *)lua_newuserdatauv(L, sizeof *h, values);
  h->p = NULL;
  luaL_setmetatable(L, type);
  return h;
}

void *peri__handle_open (lua_State *L, const char *type, const char *fn) {
  peri_handle *h = (peri_handle *)luaL_testudata(L, 1, type);
  if (!h) peri__type_error(L, fn, 1, "self", type);
  if (!h->p) luaL_error(L, "%s: it is closed", fn);
  return h->p;
}

void *peri__handle_take (lua_State *L, const char *type) {
  peri_handle *h = (peri_handle *)luaL_testudata(L, 1, type);
  if (!h || !BIND(L)->ctx) return NULL;
  void *p = h->p;
  h->p = NULL;
  return p;
}

/* ---- tables ---- */

static bool before (const peri_key *a, const peri_key *b) {
  int c = memcmp(a->s, b->s, a->n < b->n ? a->n : b->n);
  return c < 0 || (c == 0 && a->n < b->n);
}

static void sink (peri_key *k, size_t i, size_t n) {
  for (size_t child; (child = 2 * i + 1) < n; i = child) {
    if (child + 1 < n && before(&k[child], &k[child + 1])) child++;
    if (!before(&k[i], &k[child])) return;
    peri_key swap = k[i];
    k[i] = k[child];
    k[child] = swap;
  }
}

peri_key *peri__sorted_keys (lua_State *L, int idx, size_t n) {
  idx = lua_absindex(L, idx);
  if (n > ((size_t)1 << 40) / sizeof(peri_key)) luaL_error(L, "too many keys");
  peri_key *keys = (peri_key *)lua_newuserdatauv(L, (n ? n : 1) * sizeof *keys, 0);
  size_t at = 0;
  lua_pushnil(L);
  while (lua_next(L, idx)) {
    lua_pop(L, 1);
    if (at < n && lua_type(L, -1) == LUA_TSTRING) {
      keys[at].s = lua_tolstring(L, -1, &keys[at].n);
      at++;
    }
  }
  for (size_t i = n / 2; i-- > 0;) sink(keys, i, n);
  for (size_t end = n; end-- > 1;) {
    peri_key swap = keys[0];
    keys[0] = keys[end];
    keys[end] = swap;
    sink(keys, 0, end);
  }
  return keys;
}

void peri__named_tensors (lua_State *L, int idx, const char *fn, size_t n, const peri_key *keys,
                          const char ***names, peri_tensor ***tensors) {
  *names = (const char **)lua_newuserdatauv(L, (n + 1) * sizeof **names, 0);
  *tensors = (peri_tensor **)lua_newuserdatauv(L, (n + 1) * sizeof **tensors, 0);
  const peri_bind *b = peri__bind(L);
  for (size_t i = 0; i < n; i++) {
    (*names)[i] = keys[i].s;
    lua_pushlstring(L, keys[i].s, keys[i].n);
    lua_rawget(L, idx);
    peri_box *box = peri__box_at(L, b, -1);
    if (!box || !box->t)
      luaL_error(L, "%s: '%s' is %s, a tensor is expected", fn, keys[i].s,
                 box ? "a tensor that was released by its scope" : luaL_typename(L, -1));
    (*tensors)[i] = box->t;
    lua_pop(L, 1);
  }
}

void peri__set_place (lua_State *L, int ndim, const int64_t *shape, uint64_t offset,
                      uint64_t bytes) {
  peri__push_shape(L, ndim, shape);
  lua_setfield(L, -2, "shape");
  lua_pushinteger(L, (lua_Integer)offset);
  lua_setfield(L, -2, "offset");
  lua_pushinteger(L, (lua_Integer)bytes);
  lua_setfield(L, -2, "bytes");
}

/* ---- arguments and results ---- */

const char *peri__want_path (lua_State *L, int arg, const char *fn) {
  size_t n;
  if (lua_type(L, arg) != LUA_TSTRING) peri__type_error(L, fn, arg, "path", "a string");
  const char *s = lua_tolstring(L, arg, &n);
  if (strlen(s) != n) luaL_error(L, "%s: argument %d (path) holds a zero byte", fn, arg);
  return s;
}

int peri__fail_soft (lua_State *L, const char *fn) {
  peri_ctx *ctx = peri_lua_ctx(L);
  if (ctx->failed == PERI_EINTR) /* nothing is wrong with the outside world */
    luaL_error(L, "%s: %s", fn, ctx->scripted);
  lua_pushnil(L);
  lua_pushfstring(L, "%s: %s", fn, ctx->scripted);
  return 2;
}

int peri__done (lua_State *L, const char *fn, peri_status s) {
  if (s != PERI_OK) return peri__fail_soft(L, fn);
  lua_pushboolean(L, 1);
  return 1;
}

int peri__done_or_raise (lua_State *L, const char *fn, peri_status s) {
  if (s == PERI_EINVAL || s == PERI_EDTYPE) peri__check(L, fn, s);
  return peri__done(L, fn, s);
}

static const char *name_at (void *ud, int i) { return ((const char *const *)ud)[i]; }

void peri__want_options (lua_State *L, int idx, const char *fn, const char *const *names) {
  if (lua_isnoneornil(L, idx)) return;
  if (lua_type(L, idx) != LUA_TTABLE) peri__type_error(L, fn, idx, "options", "a table");
  lua_pushnil(L);
  while (lua_next(L, idx)) {
    lua_pop(L, 1);
    if (lua_type(L, -1) != LUA_TSTRING) luaL_error(L, "%s: names of options are strings", fn);
    const char *name = lua_tostring(L, -1);
    int i = 0;
    while (names[i] && strcmp(names[i], name) != 0) i++;
    if (names[i]) continue;
    const char *near = peri__nearest(name, name_at, (void *)(uintptr_t)names);
    luaL_error(L, near ? "%s: unknown option '%s', did you mean '%s'?" : "%s: unknown option '%s'",
               fn, name, near);
  }
}

bool peri__want_map (lua_State *L, int idx, const char *fn) {
  static const char *const names[] = { "map", NULL };
  peri__want_options(L, idx, fn, names);
  if (lua_isnoneornil(L, idx)) return false;
  lua_getfield(L, idx, "map");
  bool map = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return map;
}
