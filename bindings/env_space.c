/*
** env_space.c - spaces as tables of Lua and back, samples, generators whose draws are NumPy's.
*/
#include <string.h>

#include "env.h"

#define RNG PERI_RNG_BOX

/* ---- spaces ---- */

static const char *const kinds[] = { NULL, "box", "discrete", "multi_discrete", "multi_binary" };

static void set_integer (lua_State *L, const char *name, lua_Integer v) {
  lua_pushinteger(L, v);
  lua_setfield(L, -2, name);
}

static void set_string (lua_State *L, const char *name, const char *s) {
  lua_pushstring(L, s);
  lua_setfield(L, -2, name);
}

/* The bounds of a Box: a number, or a flat list of them. */
static void set_bounds (lua_State *L, const char *name, const double *list, double one, int64_t n) {
  if (!list)
    lua_pushnumber(L, one);
  else {
    lua_createtable(L, (int)(n < 1 << 20 ? n : 0), 0);
    for (int64_t i = 0; i < n; i++) {
      lua_pushnumber(L, list[i]);
      lua_rawseti(L, -2, i + 1);
    }
  }
  lua_setfield(L, -2, name);
}

void peri__space_push (lua_State *L, const peri_space *s) {
  int64_t n = peri_space_size(s);
  lua_newtable(L);
  set_string(L, "kind", kinds[s->kind]);
  set_string(L, "dtype", peri_dtype_name(s->dtype));
  peri__push_shape(L, s->ndim, s->shape);
  lua_setfield(L, -2, "shape");
  if (s->kind == PERI_SPACE_BOX) {
    set_bounds(L, "low", s->lows, s->low, n);
    set_bounds(L, "high", s->highs, s->high, n);
  } else if (s->kind == PERI_SPACE_DISCRETE) {
    set_integer(L, "n", s->n);
    set_integer(L, "start", s->start);
  } else if (s->kind == PERI_SPACE_MULTI_DISCRETE) {
    lua_createtable(L, (int)(n < 1 << 20 ? n : 0), 0);
    for (int64_t i = 0; i < n; i++) {
      lua_pushinteger(L, s->nvec[i]);
      lua_rawseti(L, -2, i + 1);
    }
    lua_setfield(L, -2, "nvec");
  } else
    set_integer(L, "n", n);
  if (s->nfields == 0) return;
  lua_createtable(L, s->nfields, 0);
  for (int i = 0; i < s->nfields; i++) {
    lua_createtable(L, 0, 4);
    set_string(L, "name", s->field[i].name);
    set_string(L, "kind", kinds[s->field[i].kind]);
    set_integer(L, "from", s->field[i].offset + 1);
    set_integer(L, "size", s->field[i].size);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "fields");
}

peri__rng_box *peri__rng_new (lua_State *L) {
  peri__rng_box *r = (peri__rng_box *)lua_newuserdatauv(L, sizeof *r, 0);
  r->r = &r->own;
  memset(&r->own, 0, sizeof r->own);
  luaL_setmetatable(L, RNG);
  return r;
}

peri_pcg64 *peri__rng_at (lua_State *L, int arg, const char *fn) {
  peri__rng_box *r = (peri__rng_box *)luaL_testudata(L, arg, RNG);
  if (!r) peri__type_error(L, fn, arg, "rng", "a generator of peri.env.rng");
  if (!r->r) luaL_error(L, "%s: the generator of a row is there while the row is stepped", fn);
  return r->r;
}

/* ---- from Lua ---- */

/* A list of numbers in field name of the table at t, as a new userdata on the stack; NULL where it is a number, which
** is stored at one. */
static const double *numbers_at (lua_State *L, int t, const char *name, int64_t n, double *one) {
  if (lua_getfield(L, t, name) != LUA_TTABLE) {
    *one = lua_tonumber(L, -1);
    return NULL;
  }
  int list = lua_gettop(L);
  if ((int64_t)lua_rawlen(L, list) != n)
    luaL_error(L, "space: %s has %I numbers, expected %I", name, (LUAI_UACINT)lua_rawlen(L, list),
               (LUAI_UACINT)n);
  double *out = (double *)lua_newuserdatauv(L, (size_t)n * sizeof *out, 0);
  for (int64_t i = 0; i < n; i++) {
    if (lua_rawgeti(L, list, i + 1) != LUA_TNUMBER)
      luaL_error(L, "space: %s has a %s, expected numbers", name, luaL_typename(L, -1));
    out[i] = lua_tonumber(L, -1);
    lua_pop(L, 1);
  }
  return out;
}

static peri_space_field *fields_at (lua_State *L, int t, int *n) {
  if (lua_getfield(L, t, "fields") != LUA_TTABLE) return NULL;
  int list = lua_gettop(L);
  *n = (int)lua_rawlen(L, list);
  peri_space_field *f = (peri_space_field *)lua_newuserdatauv(L, ((size_t)*n + 1) * sizeof *f, 0);
  for (int i = 0; i < *n; i++) {
    lua_rawgeti(L, list, i + 1);
    lua_getfield(L, -1, "name");
    f[i].name = lua_tostring(L, -1); /* held by the table */
    lua_getfield(L, -2, "kind");
    const char *kind = lua_tostring(L, -1);
    f[i].kind = PERI_SPACE_BOX;
    for (int k = 1; kind && k <= PERI_SPACE_MULTI_BINARY; k++)
      if (strcmp(kinds[k], kind) == 0) f[i].kind = (peri_space_kind)k;
    lua_getfield(L, -3, "from");
    f[i].offset = lua_tointeger(L, -1) - 1;
    lua_getfield(L, -4, "size");
    f[i].size = lua_tointeger(L, -1);
    lua_pop(L, 5);
  }
  return f;
}

peri_space peri__space_at (lua_State *L, int t, const char *fn, const char *what) {
  peri_space s = { .struct_size = sizeof s };
  luaL_checkstack(L, 16, NULL);
  if (lua_type(L, t) != LUA_TTABLE || lua_getfield(L, t, "kind") != LUA_TSTRING)
    luaL_error(L, "%s: %s is a %s, expected a space of peri.env", fn, what, luaL_typename(L, t));
  const char *kind = lua_tostring(L, -1);
  for (int k = 1; k <= PERI_SPACE_MULTI_BINARY; k++)
    if (strcmp(kinds[k], kind) == 0) s.kind = (peri_space_kind)k;
  lua_getfield(L, t, "dtype");
  const char *dtype = lua_tostring(L, -1);
  if (!dtype || !peri_dtype_parse(dtype, &s.dtype)) luaL_error(L, "%s: %s has no dtype", fn, what);
  if (lua_getfield(L, t, "shape") == LUA_TTABLE) {
    s.ndim = (int)lua_rawlen(L, -1);
    for (int i = 0; i < s.ndim && i < PERI_MAX_DIMS; i++) {
      lua_rawgeti(L, -1, i + 1);
      s.shape[i] = lua_tointeger(L, -1);
      lua_pop(L, 1);
    }
  }
  int64_t n = peri_space_size(&s);
  if (s.kind == PERI_SPACE_BOX) {
    s.lows = numbers_at(L, t, "low", n, &s.low);
    s.highs = numbers_at(L, t, "high", n, &s.high);
    s.field = fields_at(L, t, &s.nfields);
  } else if (s.kind == PERI_SPACE_DISCRETE) {
    lua_getfield(L, t, "n");
    s.n = lua_tointeger(L, -1);
    lua_getfield(L, t, "start");
    s.start = lua_tointeger(L, -1);
  } else if (s.kind == PERI_SPACE_MULTI_DISCRETE) {
    lua_getfield(L, t, "nvec");
    int list = lua_gettop(L);
    int64_t *nvec = (int64_t *)lua_newuserdatauv(L, (size_t)(n + 1) * sizeof *nvec, 0);
    for (int64_t i = 0; lua_type(L, list) == LUA_TTABLE && i < n; i++) {
      lua_rawgeti(L, list, i + 1);
      nvec[i] = lua_tointeger(L, -1);
      lua_pop(L, 1);
    }
    s.nvec = nvec;
  }
  peri__check(L, fn, peri_space_check(peri_lua_ctx(L), &s));
  return s;
}

/* check(space): raises what is wrong with it. */
static int l_check (lua_State *L) {
  peri__space_at(L, 1, "space", "it");
  return 0;
}

/* sample(space, rng, mask): an integer, or a tensor. */
static int l_sample (lua_State *L) {
  lua_settop(L, 3);
  peri_pcg64 *r = peri__rng_at(L, 2, "sample");
  const uint8_t *mask = NULL;
  peri_space s = peri__space_at(L, 1, "sample", "self");
  if (!lua_isnil(L, 3)) {
    peri_tensor *t = peri__want_tensor(L, 3, "sample", "mask");
    if (peri_dtype_of(t) != PERI_BOOL || peri_numel(t) != s.n || !peri_is_dense(t))
      luaL_error(L, "sample: mask must be a dense tensor of %I bools", (LUAI_UACINT)s.n);
    mask = (const uint8_t *)peri_data(t);
  }
  peri_ctx *ctx = peri_lua_ctx(L);
  if (s.kind == PERI_SPACE_DISCRETE) {
    int64_t v = 0;
    peri__check(L, "sample", peri_space_sample(ctx, &s, r, mask, &v));
    lua_pushinteger(L, v);
    return 1;
  }
  peri_tensor **out = peri__box_new(L);
  peri__check(L, "sample", peri_empty(ctx, s.dtype, s.ndim, s.shape, out));
  peri__check(L, "sample", peri_space_sample(ctx, &s, r, mask, peri_data(*out)));
  peri__charge(L);
  return 1;
}

/* contains(space, value) */
static int l_contains (lua_State *L) {
  lua_settop(L, 2);
  peri_space s = peri__space_at(L, 1, "contains", "self");
  bool in = false;
  if (s.kind == PERI_SPACE_DISCRETE) {
    int ok;
    int64_t v = lua_tointegerx(L, 2, &ok);
    in = ok && lua_type(L, 2) == LUA_TNUMBER && peri_space_contains(&s, &v);
  } else {
    peri_tensor *t = peri__want_tensor(L, 2, "contains", "value");
    in = peri_dtype_of(t) == s.dtype && peri_ndim(t) == s.ndim;
    for (int i = 0; in && i < s.ndim; i++) in = peri_shape(t)[i] == s.shape[i];
    size_t size = peri_nbytes(t);
    if (in) {
      void *dense = lua_newuserdatauv(L, size, 0);
      peri__check(L, "contains", peri_copy_out(t, dense, size));
      in = peri_space_contains(&s, dense);
    }
  }
  lua_pushboolean(L, in);
  return 1;
}

/* ---- generators ---- */

static peri_pcg64 *rng_self (lua_State *L, const char *fn) { return peri__rng_at(L, 1, fn); }

static int l_rng (lua_State *L) {
  lua_Integer seed = luaL_optinteger(L, 1, 0);
  if (seed < 0) luaL_error(L, "rng: seed is %I, expected at least 0", (LUAI_UACINT)seed);
  peri_pcg64_seed(peri__rng_new(L)->r, (uint64_t)seed);
  return 1;
}

static int r_double (lua_State *L) {
  lua_pushnumber(L, peri_pcg64_double(rng_self(L, "double")));
  return 1;
}

static int r_uniform (lua_State *L) {
  peri_pcg64 *r = rng_self(L, "uniform");
  double low = luaL_optnumber(L, 2, 0), high = luaL_optnumber(L, 3, 1);
  lua_pushnumber(L, peri_pcg64_uniform(r, low, high));
  return 1;
}

static int r_integer (lua_State *L) {
  peri_pcg64 *r = rng_self(L, "integer");
  lua_Integer n = luaL_checkinteger(L, 2);
  if (n < 1) luaL_error(L, "integer: n is %I, expected at least 1", (LUAI_UACINT)n);
  lua_pushinteger(L, peri_pcg64_integer(r, n));
  return 1;
}

static int r_normal (lua_State *L) {
  lua_pushnumber(L, peri_pcg64_normal(rng_self(L, "normal")));
  return 1;
}

static int r_state (lua_State *L) {
  lua_pushlstring(L, (const char *)rng_self(L, "state"), sizeof(peri_pcg64));
  return 1;
}

static int r_set_state (lua_State *L) {
  peri_pcg64 *r = rng_self(L, "set_state");
  size_t n;
  const char *s = luaL_checklstring(L, 2, &n);
  if (n != sizeof *r)
    luaL_error(L, "set_state: a state has %I bytes, got %I", (LUAI_UACINT)sizeof *r,
               (LUAI_UACINT)n);
  memcpy(r, s, n);
  lua_settop(L, 1);
  return 1;
}

static const peri_reg rng_meta[] = { { NULL, NULL, NULL, NULL } };
static const peri_reg rng_methods[] = {
  { "double", "", "A float in [0, 1).", r_double },
  { "uniform", "low?, high?", "A float in [low, high), by default [0, 1).", r_uniform },
  { "integer", "n", "An integer from 0 to n - 1.", r_integer },
  { "normal", "", "A normally distributed float.", r_normal },
  { "state", "", "The state, a string.", r_state },
  { "set_state", "state", "Go on from a state; returns the generator.", r_set_state },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg functions[] = {
  { "check", "space", "Raises what is wrong with a space.", l_check },
  { "sample", "space, rng, mask?", "A value of a space.", l_sample },
  { "contains", "space, value", "Whether a value lies in a space.", l_contains },
  { "rng", "seed?", "A generator whose draws are those of NumPy's default_rng(seed).", l_rng },
  { NULL, NULL, NULL, NULL }
};

void peri__open_env_space (lua_State *L) {
  peri__metatable(L, RNG, rng_meta, rng_methods);
  lua_pop(L, 1);
  peri__register(L, functions);
}
