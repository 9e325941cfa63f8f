/*
** env_lua.c - environments that are written in Lua, as definitions for the runner: functions that step and reset one row.
** A block of rows is stepped under one lua_pcall. What a row writes is a table of numbers with exactly the elements of an
** observation: assignments to those are plain ones, any other is refused by its metatable.
*/
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "env_lua.h"
#include "limit.h"

/* ---- what goes in and out of a row ---- */

/* An element of an action or an observation, pushed. */
static void push_element (lua_State *L, peri_dtype d, const void *p, int64_t i) {
  switch (d) {
  case PERI_F32: lua_pushnumber(L, ((const float *)p)[i]); break;
  case PERI_F64: lua_pushnumber(L, ((const double *)p)[i]); break;
  case PERI_U8: lua_pushinteger(L, ((const uint8_t *)p)[i]); break;
  case PERI_I32: lua_pushinteger(L, ((const int32_t *)p)[i]); break;
  default: lua_pushinteger(L, ((const int64_t *)p)[i]); break;
  }
}

/* The observation that the table on top holds, popped. */
static void take_obs (lua_State *L, const peri_space *s, int64_t n, void *to) {
  for (int64_t i = 0; i < n; i++) {
    int ok = lua_rawgeti(L, -1, i + 1) == LUA_TNUMBER;
    if (!ok)
      luaL_error(L, "obs[%I] is %s, expected a number", (LUAI_UACINT)(i + 1), luaL_typename(L, -1));
    if (s->dtype == PERI_F32)
      ((float *)to)[i] = (float)lua_tonumber(L, -1);
    else if (s->dtype == PERI_F64)
      ((double *)to)[i] = lua_tonumber(L, -1);
    else
      peri__put_element(L, "obs", lua_gettop(L), s->dtype,
                        (char *)to + (size_t)i * peri_dtype_size(s->dtype));
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
}

static void give_obs (lua_State *L, const peri_space *s, int64_t n, const void *from) {
  for (int64_t i = 0; i < n; i++) {
    push_element(L, s->dtype, from, i);
    lua_rawseti(L, -2, i + 1);
  }
}

/* A value of a Discrete observation at idx. */
static void take_discrete (lua_State *L, int idx, const char *fn, void *to) {
  int ok;
  lua_Integer v = lua_tointegerx(L, idx, &ok);
  if (!ok || lua_type(L, idx) != LUA_TNUMBER)
    luaL_error(L, "%s returned %s as observation, expected an integer", fn, luaL_typename(L, idx));
  *(int64_t *)to = v;
}

/* All actions are legal, before a call; what the row said, after it. The table of row i is pushed, or nil. */
static void push_mask (lua_State *L, const lua_env *v, int masks, int64_t i) {
  if (!v->masked) {
    lua_pushnil(L);
    return;
  }
  lua_rawgeti(L, masks, i + 1);
  for (int64_t k = 1; k <= v->action.n; k++) {
    lua_pushboolean(L, 1);
    lua_rawseti(L, -2, k);
  }
}

static void take_mask (lua_State *L, const lua_env *v, int masks, int64_t i, uint8_t *to) {
  if (!v->masked) return;
  lua_rawgeti(L, masks, i + 1);
  for (int64_t k = 0; k < v->action.n; k++) {
    if (lua_rawgeti(L, -1, k + 1) != LUA_TBOOLEAN)
      luaL_error(L, "mask[%I] is %s, expected a boolean", (LUAI_UACINT)(k + 1),
                 luaL_typename(L, -1));
    to[k] = (uint8_t)lua_toboolean(L, -1);
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
}

static bool boolean_at (lua_State *L, int idx, const char *name, bool needed) {
  if (lua_type(L, idx) != LUA_TBOOLEAN && (needed || !lua_isnil(L, idx)))
    luaL_error(L, "step returned %s as %s, expected a boolean", luaL_typename(L, idx), name);
  return lua_toboolean(L, idx);
}

/* ---- calls of Lua ---- */

/* (values, light lua_env): the rows begin to end. */
static int run_steps (lua_State *L) {
  lua_env *v = (lua_env *)lua_touserdata(L, 2);
  const peri_env_io *io = v->io;
  const int64_t nobs = peri_space_size(&v->obs), nact = peri_space_size(&v->action);
  const size_t obs_bytes = (size_t)nobs * peri_dtype_size(v->obs.dtype);
  const size_t act_bytes = (size_t)nact * peri_dtype_size(v->action.dtype);
  const bool discrete = v->action.kind == PERI_SPACE_DISCRETE;
  const bool tabular = v->obs.kind == PERI_SPACE_DISCRETE;
  enum { AT = 2 };
  luaL_checkstack(L, 24, NULL);
  for (int i = 1; i <= NVALUES; i++) lua_rawgeti(L, 1, i); /* value i is at AT + i */
  const int top = lua_gettop(L);
  for (v->row = v->begin; v->row < v->end; v->row++) {
    const int64_t i = v->row;
    const char *action = (const char *)v->actions + (size_t)i * act_bytes;
    void *obs = (char *)io->obs + (size_t)i * obs_bytes;
    v->lent->r = v->rng + i;
    lua_pushvalue(L, AT + STEP);
    lua_rawgeti(L, AT + STATES, i + 1);
    if (discrete)
      lua_pushinteger(L, *(const int64_t *)(const void *)action);
    else {
      lua_pushvalue(L, AT + ACTION);
      give_obs(L, &v->action, nact, action);
    }
    if (tabular)
      lua_pushnil(L);
    else
      lua_rawgeti(L, AT + OBS, i + 1);
    lua_pushvalue(L, AT + RNG);
    push_mask(L, v, AT + MASKS, i);
    lua_call(L, 5, 4);
    if (lua_type(L, top + 1) != LUA_TNUMBER)
      luaL_error(L, "step returned %s as reward, expected a number", luaL_typename(L, top + 1));
    io->reward[i] = lua_tonumber(L, top + 1);
    io->terminated[i] = boolean_at(L, top + 2, "terminated", true);
    io->truncated[i] = boolean_at(L, top + 3, "truncated", false);
    if (tabular)
      take_discrete(L, top + 4, "step", obs);
    else {
      lua_rawgeti(L, AT + OBS, i + 1);
      take_obs(L, &v->obs, nobs, obs);
    }
    take_mask(L, v, AT + MASKS, i, io->mask + i * v->action.n);
    lua_settop(L, top);
  }
  return 0;
}

/* (values, light lua_env): a new state for the row, reset. */
static int run_reset (lua_State *L) {
  lua_env *v = (lua_env *)lua_touserdata(L, 2);
  const int64_t i = v->row, nobs = peri_space_size(&v->obs);
  const bool tabular = v->obs.kind == PERI_SPACE_DISCRETE;
  luaL_checkstack(L, 24, NULL);
  v->lent->r = v->rng;
  lua_rawgeti(L, 1, MASKS);
  lua_rawgeti(L, 1, OBS);
  lua_rawgeti(L, 1, STATES);
  lua_newtable(L);
  lua_pushvalue(L, -1);
  lua_rawseti(L, -3, i + 1);
  lua_rawgeti(L, 1, RESET);
  lua_insert(L, -2); /* reset, state */
  if (tabular)
    lua_pushnil(L);
  else {
    lua_rawgeti(L, 4, i + 1);
    for (int64_t k = 1; k <= nobs; k++) { /* whatever rows left there, a nil after an error too */
      lua_pushinteger(L, 0);
      lua_rawseti(L, -2, k);
    }
  }
  lua_rawgeti(L, 1, RNG);
  push_mask(L, v, 3, i);
  lua_call(L, 4, 1);
  if (tabular)
    take_discrete(L, -1, "reset", v->io->obs);
  else {
    lua_rawgeti(L, 4, i + 1);
    take_obs(L, &v->obs, nobs, v->io->obs);
  }
  take_mask(L, v, 3, i, v->io->mask);
  return 0;
}

static int as_text (lua_State *L) { /* message handler */
  if (lua_type(L, 1) != LUA_TSTRING) peri__error_text(L, 1);
  return 1;
}

/* Run one of the two; its error becomes the message of the row. */
peri_status peri__env_lua_run (lua_env *v, lua_CFunction fn) {
  lua_State *L = v->L;
  if (!L) return peri_env_fail(v->io, "an environment written in Lua runs from Lua alone");
  if (!lua_checkstack(L, 8)) return PERI_ENOMEM;
  lua_pushcfunction(L, as_text);
  lua_pushcfunction(L, fn);
  lua_pushvalue(L, v->values);
  lua_pushlightuserdata(L, v);
  int rc = lua_pcall(L, 2, 0, lua_gettop(L) - 3);
  lua_remove(L, rc == LUA_OK ? -1 : -2);
  if (v->lent) v->lent->r = NULL;
  if (rc == LUA_OK) return PERI_OK;
  peri_ctx *ctx = v->e->ctx;
  peri_status s = peri__caught(L, ctx, rc);
  snprintf(v->io->message, PERI_ENV_MESSAGE, "%s", ctx->scripted);
  if (s == PERI_EINVAL || s == PERI_ESHAPE || s == PERI_EDTYPE) s = PERI_EHOST;
  return s;
}

static peri_status step_batch (const void *shared, void *states, int64_t stride, int64_t begin,
                               int64_t end, peri_pcg64 *rng, const peri_env_io *io) {
  lua_env *v = (lua_env *)shared;
  (void)states, (void)stride;
  v->io = io;
  v->actions = io->action;
  v->rng = rng;
  v->begin = begin;
  v->end = end;
  peri_status s = peri__env_lua_run(v, run_steps);
  *io->row = v->row;
  return s;
}

/* The runner steps by step_batch, or a single row by this. */
static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  int64_t row = 0;
  peri_env_io one = *io;
  one.row = &row;
  return step_batch(shared, state, 0, 0, 1, rng, &one);
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  lua_env *v = (lua_env *)shared;
  (void)state;
  v->io = io;
  v->rng = rng;
  v->row = rng - v->e->rng;
  return peri__env_lua_run(v, run_reset);
}

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  const lua_env *v = (const lua_env *)ud;
  (void)args;
  spec->obs = v->obs;
  spec->action = v->action;
  spec->max_steps = v->max_steps;
  spec->shared = v;
  return PERI_OK;
}

/* ---- entries from the bindings ---- */

static void enter (lua_State *L, peri__env_box *b, int box, const char *fn) {
  if (b->lua->L) luaL_error(L, "%s: it is called from its own step or reset", fn);
  luaL_checkstack(L, 16, NULL);
  lua_getiuservalue(L, box, 2);
  b->lua->L = L;
  b->lua->values = lua_gettop(L);
}

static void leave (lua_State *L, peri__env_box *b) {
  b->lua->L = NULL;
  lua_pop(L, 1);
}

peri_status peri__env_lua_step (lua_State *L, peri__env_box *b, int box, const void *action) {
  enter(L, b, box, "step");
  peri_status s = peri_env_step(b->e, action);
  leave(L, b);
  return s;
}

peri_status peri__env_lua_reset (lua_State *L, peri__env_box *b, int box, const uint64_t *seed,
                                 const uint8_t *mask) {
  enter(L, b, box, "reset");
  peri_status s = peri_env_reset(b->e, seed, mask);
  leave(L, b);
  return s;
}

/* Tables of observations are what rows left there: they follow the buffers. */
void peri__env_lua_loaded (lua_State *L, peri__env_box *b, int box) {
  if (b->obs->kind == PERI_SPACE_DISCRETE || !b->lua->lent) return;
  int64_t n = peri_space_size(b->obs);
  lua_getiuservalue(L, box, 2);
  lua_rawgeti(L, -1, OBS);
  for (int64_t i = 0; i < b->rows; i++) {
    lua_rawgeti(L, -1, i + 1);
    give_obs(L, b->obs, n, (const char *)b->at_obs + (size_t)i * b->e->obs_bytes);
    lua_pop(L, 1);
  }
  lua_pop(L, 2);
}

/* ---- making ---- */

static int refuse_element (lua_State *L) {
  const char *what = lua_tostring(L, lua_upvalueindex(1));
  lua_Integer n = lua_tointeger(L, lua_upvalueindex(2));
  const char *key = luaL_tolstring(L, 2, NULL);
  return luaL_error(L, "%s[%s]: %s has elements 1 to %I", what, key, what, (LUAI_UACINT)n);
}

/* A list of tables with n elements each, which refuse others; false: of booleans. */
static void push_rows (lua_State *L, int64_t rows, int64_t n, const char *what, bool numbers) {
  lua_createtable(L, rows < 1 << 26 ? (int)rows : 0, 0);
  lua_createtable(L, 0, 2);
  lua_pushstring(L, what);
  lua_pushinteger(L, n);
  lua_pushcclosure(L, refuse_element, 2);
  lua_setfield(L, -2, "__newindex");
  lua_pushstring(L, what);
  lua_setfield(L, -2, "__name");
  for (int64_t i = 0; i < rows; i++) {
    lua_createtable(L, n < 1 << 26 ? (int)n : 0, 0);
    for (int64_t k = 1; k <= n; k++) {
      if (numbers)
        lua_pushinteger(L, 0);
      else
        lua_pushboolean(L, 1);
      lua_rawseti(L, -2, k);
    }
    lua_pushvalue(L, -2);
    lua_setmetatable(L, -2);
    lua_rawseti(L, -3, i + 1);
  }
  lua_pop(L, 1);
}

/* The values of rows, in the table on top. */
static void fill_values (lua_State *L, lua_env *v, int64_t rows) {
  lua_createtable(L, rows < 1 << 26 ? (int)rows : 0, 0);
  lua_rawseti(L, -2, STATES);
  int64_t nobs = v->obs.kind == PERI_SPACE_DISCRETE ? 0 : peri_space_size(&v->obs);
  push_rows(L, nobs ? rows : 0, nobs, "obs", true);
  lua_rawseti(L, -2, OBS);
  push_rows(L, 1, peri_space_size(&v->action), "action", true);
  lua_rawgeti(L, -1, 1);
  lua_remove(L, -2);
  lua_rawseti(L, -2, ACTION);
  v->lent = peri__rng_new(L);
  v->lent->r = NULL;
  lua_rawseti(L, -2, RNG);
  push_rows(L, v->masked ? rows : 0, v->masked ? v->action.n : 0, "mask", false);
  lua_rawseti(L, -2, MASKS);
}

/* make_lua(options, { id, doc, obs, action, max_steps, mask, batch, step, reset }), all checked by who calls. With batch
** step and reset are of the whole batch, as env_whole.c calls them. */
static int l_make_lua (lua_State *L) {
  lua_settop(L, 2);
  peri_env_options o;
  peri__env_options_at(L, 1, &o);
  lua_settop(L, 2);
  peri__env_box *b = peri__env_box_new(L); /* 3 */
  lua_newtable(L);                         /* 4: what the box holds on to */
  lua_pushvalue(L, 4);
  lua_setiuservalue(L, 3, 2);
  lua_env *v = (lua_env *)lua_newuserdatauv(L, sizeof *v, 0);
  memset(v, 0, sizeof *v);
  lua_setfield(L, 4, "environment");
  peri_env_def d = { .struct_size = sizeof d,
                     .flags = PERI_ENV_SERIAL,
                     .ud = v,
                     .configure = configure,
                     .reset = reset,
                     .step = step,
                     .step_batch = step_batch };
  lua_getfield(L, 2, "id");
  d.id = lua_tostring(L, -1);
  lua_setfield(L, 4, "id"); /* held there */
  lua_getfield(L, 2, "doc");
  d.doc = lua_tostring(L, -1);
  lua_setfield(L, 4, "doc");
  lua_getfield(L, 2, "max_steps");
  v->max_steps = lua_tointeger(L, -1);
  lua_getfield(L, 2, "mask");
  v->masked = lua_toboolean(L, -1);
  if (v->masked) d.flags |= PERI_ENV_MASK;
  lua_getfield(L, 2, "batch");
  const bool whole = lua_toboolean(L, -1);
  if (whole) {
    d.flags |= PERI_ENV_WHOLE;
    d.step = NULL;
    d.reset = NULL;
    d.step_batch = peri__env_whole_step;
    d.reset_batch = peri__env_whole_reset;
  }
  lua_getfield(L, 2, "step");
  lua_rawseti(L, 4, STEP);
  lua_getfield(L, 2, "reset");
  lua_rawseti(L, 4, RESET);
  lua_getfield(L, 2, "obs");
  v->obs = peri__space_at(L, lua_gettop(L), "env.make", "obs");
  lua_getfield(L, 2, "action");
  v->action = peri__space_at(L, lua_gettop(L), "env.make", "action");
  peri_env *e = NULL;
  peri__check(L, "env.make", peri_env_make_of(peri_lua_ctx(L), &d, &o, &e));
  b->e = v->e = e;
  peri__env_box_fill(b);
  v->obs = *b->obs; /* the copies of the environment */
  v->action = *b->action;
  lua_pushvalue(L, 4);
  if (whole) {
    peri__env_whole_rng(L, v);
    lua_rawseti(L, -2, RNG);
  } else
    fill_values(L, v, b->rows);
  b->lua = v;
  lua_settop(L, 3);
  return 1;
}

/* states(core): the list of tables of an environment that is written in Lua row by row; nil: it is not. */
static int l_states (lua_State *L) {
  peri__env_box *b = peri__env_box_at(L, "env.states");
  if (!b->lua) return 0;
  lua_getiuservalue(L, 1, 2);
  if (!b->lua->lent) return 0;
  lua_rawgeti(L, -1, STATES);
  return 1;
}

static const peri_reg functions[] = {
  { "make_lua", "options, spec", "A batch of environments that is written in Lua.", l_make_lua },
  { "states", "core", "The states of its rows.", l_states },
  { NULL, NULL, NULL, NULL }
};

void peri__open_env_lua (lua_State *L) {
  peri__register(L, functions);
  peri__open_env_whole(L);
}
