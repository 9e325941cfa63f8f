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

const char *peri__want_path (lua_State *L, int arg, const char *fn) {
  size_t n;
  if (lua_type(L, arg) != LUA_TSTRING) peri__type_error(L, fn, arg, "path", "a string");
  const char *s = lua_tolstring(L, arg, &n);
  if (strlen(s) != n) luaL_error(L, "%s: argument %d (path) holds a zero byte", fn, arg);
  return s;
}

int peri__fail_soft (lua_State *L, const char *fn) {
  lua_pushnil(L);
  lua_pushfstring(L, "%s: %s", fn, peri_message(peri_lua_ctx(L)));
  return 2;
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
