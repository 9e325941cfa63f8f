/*
** rng.c - random numbers for Lua code: the context's generator (seed, state) and independent
** generator objects. Every draw of an object takes one Philox block, so a state is two numbers.
*/
#include <math.h>
#include <string.h>

#include "bind.h"

#define RNG "perilune.rng"
#define STREAM 0x6c756131u /* keeps objects apart from tensor ops with the same seed */

/* ---- the context's generator ---- */

static uint64_t seed_at (lua_State *L, int arg, const char *fn) {
  int ok;
  lua_Integer v = lua_tointegerx(L, arg, &ok);
  if (!ok || lua_type(L, arg) != LUA_TNUMBER) peri__type_error(L, fn, arg, "seed", "an integer");
  return (uint64_t)v;
}

static int l_seed (lua_State *L) {
  peri_rng_set(BIND(L)->ctx, (peri_rng){ .seed = seed_at(L, 1, "seed") });
  return 0;
}

static void push_state (lua_State *L, peri_rng r) {
  lua_createtable(L, 0, 2);
  lua_pushinteger(L, (lua_Integer)r.seed);
  lua_setfield(L, -2, "seed");
  lua_pushinteger(L, (lua_Integer)r.offset);
  lua_setfield(L, -2, "offset");
}

static peri_rng state_at (lua_State *L, int arg, const char *fn) {
  int good, fine;
  if (lua_type(L, arg) != LUA_TTABLE)
    peri__type_error(L, fn, arg, "state", "a table {seed=, offset=}");
  lua_getfield(L, arg, "seed");
  lua_getfield(L, arg, "offset");
  peri_rng r = { .seed = (uint64_t)lua_tointegerx(L, -2, &good),
                 .offset = (uint64_t)lua_tointegerx(L, -1, &fine) };
  if (!good || !fine) luaL_error(L, "%s: seed and offset of a state must be integers", fn);
  lua_pop(L, 2);
  return r;
}

static int l_rng_state (lua_State *L) {
  push_state(L, peri_rng_get(BIND(L)->ctx));
  return 1;
}

static int l_set_rng_state (lua_State *L) {
  peri_rng_set(BIND(L)->ctx, state_at(L, 1, "set_rng_state"));
  return 0;
}

/* ---- objects ---- */

static peri_rng *self (lua_State *L, const char *fn) {
  peri_rng *r = (peri_rng *)luaL_testudata(L, 1, RNG);
  if (!r) peri__type_error(L, fn, 1, "self", "a generator");
  return r;
}

static void draw (peri_rng *r, uint32_t out[4]) {
  uint32_t counter[4] = { (uint32_t)r->offset, (uint32_t)(r->offset >> 32), 0, STREAM };
  uint32_t key[2] = { (uint32_t)r->seed, (uint32_t)(r->seed >> 32) };
  peri_philox(counter, key, out);
  r->offset++;
}

static double draw_unit (peri_rng *r) {
  uint32_t w[4];
  draw(r, w);
  return peri__unit_f64(w[0], w[1]);
}

/* Uniform in [0, n) without bias; n 0 stands for 2^64. Words above the last multiple are drawn
** again. */
static uint64_t draw_below (peri_rng *r, uint64_t n) {
  uint64_t limit = n ? UINT64_MAX - (UINT64_MAX % n + 1) % n : UINT64_MAX;
  for (;;) {
    uint32_t w[4];
    draw(r, w);
    for (int i = 0; i < 4; i += 2) {
      uint64_t v = (uint64_t)w[i] << 32 | w[i + 1];
      if (v <= limit) return n ? v % n : v;
    }
  }
}

static int l_rng (lua_State *L) {
  uint64_t seed = lua_isnoneornil(L, 1) ? 0 : seed_at(L, 1, "rng");
  peri_rng *r = (peri_rng *)lua_newuserdatauv(L, sizeof *r, 0);
  *r = (peri_rng){ .seed = seed };
  luaL_setmetatable(L, RNG);
  return 1;
}

static double number_at (lua_State *L, int arg, const char *fn, const char *name,
                         double otherwise) {
  if (lua_isnoneornil(L, arg)) return otherwise;
  if (lua_type(L, arg) != LUA_TNUMBER) peri__type_error(L, fn, arg, name, "a number");
  return lua_tonumber(L, arg);
}

static int r_uniform (lua_State *L) {
  peri_rng *r = self(L, "uniform");
  double lo = number_at(L, 2, "uniform", "lo", 0), hi = number_at(L, 3, "uniform", "hi", 1);
  lua_pushnumber(L, lo + (hi - lo) * draw_unit(r));
  return 1;
}

static int r_int (lua_State *L) {
  peri_rng *r = self(L, "int");
  int fine, good;
  lua_Integer lo = lua_tointegerx(L, 2, &fine), hi = lua_tointegerx(L, 3, &good);
  if (!fine) return peri__type_error(L, "int", 2, "lo", "an integer");
  if (!good) return peri__type_error(L, "int", 3, "hi", "an integer");
  if (lo > hi)
    return luaL_error(L, "int: no integer lies between %I and %I", (LUAI_UACINT)lo,
                      (LUAI_UACINT)hi);
  uint64_t v = draw_below(r, (uint64_t)hi - (uint64_t)lo + 1);
  lua_pushinteger(L, (lua_Integer)((uint64_t)lo + v));
  return 1;
}

/* Box and Muller, one of the pair. */
static int r_normal (lua_State *L) {
  peri_rng *r = self(L, "normal");
  uint32_t w[4];
  draw(r, w);
  double u = 1 - peri__unit_f64(w[0], w[1]), v = peri__unit_f64(w[2], w[3]);
  double mean = number_at(L, 2, "normal", "mean", 0), std = number_at(L, 3, "normal", "std", 1);
  lua_pushnumber(L, mean + std * sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
  return 1;
}

static int r_shuffle (lua_State *L) {
  peri_rng *r = self(L, "shuffle");
  if (lua_type(L, 2) != LUA_TTABLE) return peri__type_error(L, "shuffle", 2, "t", "a table");
  for (lua_Integer i = (lua_Integer)lua_rawlen(L, 2); i > 1; i--) { /* Fisher and Yates */
    lua_Integer j = 1 + (lua_Integer)draw_below(r, (uint64_t)i);
    lua_rawgeti(L, 2, i);
    lua_rawgeti(L, 2, j);
    lua_rawseti(L, 2, i);
    lua_rawseti(L, 2, j);
  }
  lua_settop(L, 2);
  return 1;
}

static int r_choice (lua_State *L) {
  peri_rng *r = self(L, "choice");
  if (lua_type(L, 2) != LUA_TTABLE) return peri__type_error(L, "choice", 2, "t", "a table");
  lua_Unsigned n = lua_rawlen(L, 2);
  if (n == 0) return luaL_error(L, "choice: the list is empty");
  lua_rawgeti(L, 2, 1 + (lua_Integer)draw_below(r, n));
  return 1;
}

static int r_state (lua_State *L) {
  push_state(L, *self(L, "state"));
  return 1;
}

static int r_set_state (lua_State *L) {
  peri_rng *r = self(L, "set_state");
  *r = state_at(L, 2, "set_state");
  lua_settop(L, 1);
  return 1;
}

static int r_tostring (lua_State *L) {
  peri_rng *r = (peri_rng *)luaL_testudata(L, 1, RNG);
  if (!r)
    lua_pushliteral(L, "rng");
  else
    lua_pushfstring(L, "rng {seed=%I, offset=%I}", (LUAI_UACINT)r->seed, (LUAI_UACINT)r->offset);
  return 1;
}

static const peri_reg meta[] = { { "__tostring", NULL, NULL, r_tostring },
                                 { NULL, NULL, NULL, NULL } };

static const peri_reg methods[] = {
  { "uniform", "lo?, hi?", "A float in [lo, hi), by default [0, 1).", r_uniform },
  { "int", "lo, hi", "An integer from lo to hi, both included.", r_int },
  { "normal", "mean?, std?", "A normally distributed float.", r_normal },
  { "shuffle", "t", "Shuffle a list in place; returns it.", r_shuffle },
  { "choice", "t", "One entry of a list.", r_choice },
  { "state", "", "The state {seed=, offset=}.", r_state },
  { "set_state", "state", "Go on from a state; returns the generator.", r_set_state },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg functions[] = {
  { "seed", "n", "Seed the generator that the random ops take from.", l_seed },
  { "rng_state", "", "State {seed=, offset=} of the generator of the random ops.", l_rng_state },
  { "set_rng_state", "state", "Let the random ops go on from a state.", l_set_rng_state },
  { "rng", "seed?",
    "A generator of its own: uniform, int, normal, shuffle, choice, state, set_state.", l_rng },
  { NULL, NULL, NULL, NULL }
};

const peri_reg *const peri__rng_functions = functions, *const peri__rng_methods = methods;

void peri__open_rng (lua_State *L) {
  peri__metatable(L, RNG, meta, methods);
  lua_pop(L, 1);
  peri__register(L, functions);
}
