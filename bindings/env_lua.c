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
  switch (d) { /* ORDER dtype */
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

/* All actions are legal, before a call; what the row said, after it. The table of environment i is pushed, or nil. */
static void push_mask (lua_State *L, const lua_env *v, int values, int64_t i) {
  if (!v->masked) {
    lua_pushnil(L);
    return;
  }
  for (int64_t row = i * v->agents; row < (i + 1) * v->agents; row++) {
    lua_rawgeti(L, values + MASKS, row + 1);
    for (int64_t k = 1; k <= v->action.n; k++) {
      lua_pushboolean(L, 1);
      lua_rawseti(L, -2, k);
    }
    lua_pop(L, 1);
  }
  lua_rawgeti(L, values + MASK_OF, i + 1);
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

/* Of a table that is filled for each call, the one of agent k, pushed. */
static void push_of (lua_State *L, const lua_env *v, int idx, int64_t k) {
  if (v->agents == 1)
    lua_pushvalue(L, idx);
  else
    lua_rawgeti(L, idx, k + 1);
}

/* Named numbers are 0 before a call. */
static void push_metrics (lua_State *L, const lua_env *v, int values) {
  if (v->nmetrics == 0) {
    lua_pushnil(L);
    return;
  }
  for (int64_t k = 0; k < v->agents; k++) {
    push_of(L, v, values + METRICS, k);
    for (int m = 0; m < v->nmetrics; m++) {
      lua_pushstring(L, v->metric[m]);
      lua_pushinteger(L, 0);
      lua_rawset(L, -3);
    }
    lua_pop(L, 1);
  }
  lua_pushvalue(L, values + METRICS_OF);
}

static void take_metrics (lua_State *L, const lua_env *v, int values, int64_t k, float *to) {
  if (v->nmetrics == 0) return;
  push_of(L, v, values + METRICS, k);
  for (int m = 0; m < v->nmetrics; m++) {
    lua_pushstring(L, v->metric[m]);
    if (lua_rawget(L, -2) != LUA_TNUMBER)
      luaL_error(L, "metrics.%s is %s, expected a number", v->metric[m], luaL_typename(L, -1));
    to[m] = (float)lua_tonumber(L, -1);
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
}

/* Which agents act next, as flags of their rows say before a call. */
static void push_live (lua_State *L, const lua_env *v, int values, const uint8_t *live) {
  if (v->agents == 1) {
    lua_pushnil(L);
    return;
  }
  lua_pushvalue(L, values + LIVE);
  for (int64_t k = 0; k < v->agents; k++) {
    lua_pushboolean(L, live[k]);
    lua_rawseti(L, -2, k + 1);
  }
}

static void take_live (lua_State *L, const lua_env *v, int values, uint8_t *live) {
  for (int64_t k = 0; v->agents > 1 && k < v->agents; k++) {
    if (lua_rawgeti(L, values + LIVE, k + 1) != LUA_TBOOLEAN)
      luaL_error(L, "live[%I] is %s, expected a boolean", (LUAI_UACINT)(k + 1),
                 luaL_typename(L, -1));
    live[k] = (uint8_t)lua_toboolean(L, -1);
    lua_pop(L, 1);
  }
}

/* What a function returned at idx for agent k, pushed: with several agents of a list; one boolean is all of theirs. */
static void push_result (lua_State *L, const lua_env *v, int idx, int64_t k, const char *name) {
  const int type = lua_type(L, idx);
  if (v->agents == 1 || type == LUA_TBOOLEAN || type == LUA_TNIL)
    lua_pushvalue(L, idx);
  else if (type == LUA_TTABLE) {
    if ((int64_t)lua_rawlen(L, idx) > v->agents)
      luaL_error(L, "%s has %I entries, expected one for each of %I agents", name,
                 (LUAI_UACINT)lua_rawlen(L, idx), (LUAI_UACINT)v->agents);
    lua_rawgeti(L, idx, k + 1);
  } else
    luaL_error(L, "%s is a %s, expected a list of %I", name, lua_typename(L, type),
               (LUAI_UACINT)v->agents);
}

/* The same, at the index that is returned; who calls pops it by lua_settop. */
static int result_at (lua_State *L, const lua_env *v, int idx, int64_t k, const char *name) {
  if (v->agents == 1) return idx;
  push_result(L, v, idx, k, name);
  return lua_gettop(L);
}

static bool take_boolean (lua_State *L, int idx, const char *name, bool needed) {
  if (lua_type(L, idx) != LUA_TBOOLEAN && (needed || !lua_isnil(L, idx)))
    luaL_error(L, "step returned %s as %s, expected a boolean", luaL_typename(L, idx), name);
  return lua_toboolean(L, idx);
}

static double take_reward (lua_State *L, const lua_env *v, int idx) {
  if (lua_type(L, idx) != LUA_TNUMBER)
    luaL_error(L,
               "step returned %s as reward, expected a number: it returns reward, terminated, %s",
               luaL_typename(L, idx),
               v->obs.kind == PERI_SPACE_DISCRETE
                   ? "truncated and the observation"
                   : "truncated, and writes what is observed into the table obs");
  return lua_tonumber(L, idx);
}

/* What fn returned from idx on is what is read: an observation that is written into obs may be returned as that table,
** and nothing stands behind it. */
static void refuse_surplus (lua_State *L, const lua_env *v, int values, int64_t i, const char *fn,
                            int idx) {
  const int last = lua_gettop(L);
  for (int k = idx + 1; k <= last; k++)
    if (!lua_isnil(L, k))
      luaL_error(L, "%s returned a %s as value %d, expected %d at most", fn, luaL_typename(L, k),
                 k - idx + (fn[0] == 's' ? 4 : 1), fn[0] == 's' ? 4 : 1);
  if (v->obs.kind != PERI_SPACE_DISCRETE && idx <= last && !lua_isnil(L, idx)) {
    lua_rawgeti(L, values + OBS_OF, i + 1);
    if (!lua_rawequal(L, idx, -1))
      luaL_error(L, "%s returned a %s as observation: write it into the table obs, %s", fn,
                 luaL_typename(L, idx), v->agents == 1 ? "obs[1] = ..." : "obs[agent][1] = ...");
    lua_pop(L, 1);
  }
}

/* The action of environment i, pushed: an integer or a list; with several agents a list of these. */
static void push_action (lua_State *L, const lua_env *v, int values, const char *action) {
  const int64_t n = v->nact;
  const bool discrete = v->action.kind == PERI_SPACE_DISCRETE;
  if (v->agents == 1 && discrete) {
    lua_pushinteger(L, *(const int64_t *)(const void *)action);
    return;
  }
  lua_pushvalue(L, values + ACTION);
  if (v->agents == 1) {
    give_obs(L, &v->action, n, action);
    return;
  }
  for (int64_t k = 0; k < v->agents; k++, action += v->act_bytes) {
    if (discrete) {
      lua_pushinteger(L, *(const int64_t *)(const void *)action);
      lua_rawseti(L, -2, k + 1);
    } else {
      lua_rawgeti(L, -1, k + 1);
      give_obs(L, &v->action, n, action);
      lua_pop(L, 1);
    }
  }
}

/* What environment i has observed, from tables or what fn returned at idx. */
static void take_all_obs (lua_State *L, const lua_env *v, int values, int64_t i, const char *fn,
                          int idx, void *to) {
  for (int64_t k = 0; k < v->agents; k++) {
    char *at = (char *)to + (size_t)k * v->obs_bytes;
    if (v->obs.kind == PERI_SPACE_DISCRETE) {
      push_result(L, v, idx, k, "obs");
      take_discrete(L, lua_gettop(L), fn, at);
      lua_pop(L, 1);
    } else {
      lua_rawgeti(L, values + OBS, i * v->agents + k + 1);
      take_obs(L, &v->obs, v->nobs, at);
    }
  }
}

/* ---- calls of Lua ---- */

enum { AT = 2 }; /* value k is at AT + k */

static void push_values (lua_State *L) {
  luaL_checkstack(L, 32, NULL);
  for (int i = 1; i <= NVALUES; i++) lua_rawgeti(L, 1, i);
}

/* (values, light lua_env): the environments begin to end. */
static int run_steps (lua_State *L) {
  lua_env *v = (lua_env *)lua_touserdata(L, 2);
  const peri_env_io *io = v->io;
  const int64_t agents = v->agents;
  const size_t obs_bytes = v->obs_bytes * (size_t)agents, act_bytes = v->act_bytes * (size_t)agents;
  const bool tabular = v->obs.kind == PERI_SPACE_DISCRETE;
  push_values(L);
  const int top = lua_gettop(L);
  for (int64_t i = v->begin; i < v->end; i++) {
    const int64_t first = i * agents;
    uint8_t *live = agents > 1 ? io->live + first : NULL;
    v->row = first;
    v->lent->r = v->rng + i;
    lua_pushvalue(L, AT + STEP);
    lua_rawgeti(L, AT + STATES, i + 1);
    push_action(L, v, AT, (const char *)v->actions + (size_t)i * act_bytes);
    if (tabular)
      lua_pushnil(L);
    else
      lua_rawgeti(L, AT + OBS_OF, i + 1);
    lua_pushvalue(L, AT + RNG);
    push_mask(L, v, AT, i);
    push_metrics(L, v, AT);
    push_live(L, v, AT, live);
    lua_call(L, 7, LUA_MULTRET);
    refuse_surplus(L, v, AT, i, "step", top + 4);
    lua_settop(L, top + 4);
    for (int64_t k = 0; k < agents; k++) {
      const int64_t row = first + k;
      v->row = row;
      io->reward[row] = take_reward(L, v, result_at(L, v, top + 1, k, "reward"));
      io->terminated[row] =
          take_boolean(L, result_at(L, v, top + 2, k, "terminated"), "terminated", true);
      io->truncated[row] =
          take_boolean(L, result_at(L, v, top + 3, k, "truncated"), "truncated", false);
      take_mask(L, v, AT + MASKS, row, v->masked ? io->mask + row * v->action.n : NULL);
      take_metrics(L, v, AT, k, v->nmetrics ? io->metric + row * v->nmetrics : NULL);
    }
    if (agents > 1) lua_settop(L, top + 4);
    v->row = first;
    take_all_obs(L, v, AT, i, "step", top + 4, (char *)io->obs + (size_t)i * obs_bytes);
    take_live(L, v, AT, live);
    lua_settop(L, top);
  }
  v->row = v->end * agents;
  return 0;
}

/* (values, light lua_env): a new state for environment row, reset. */
static int run_reset (lua_State *L) {
  lua_env *v = (lua_env *)lua_touserdata(L, 2);
  const peri_env_io *io = v->io;
  const int64_t i = v->row, nobs = peri_space_size(&v->obs), agents = v->agents;
  const bool tabular = v->obs.kind == PERI_SPACE_DISCRETE;
  push_values(L);
  const int top = lua_gettop(L);
  v->lent->r = v->rng;
  lua_pushvalue(L, AT + RESET);
  lua_newtable(L);
  lua_pushvalue(L, -1);
  lua_rawseti(L, AT + STATES, i + 1);
  for (int64_t row = i * agents; !tabular && row < (i + 1) * agents; row++) {
    lua_rawgeti(L, AT + OBS, row + 1);
    for (int64_t k = 1; k <= nobs; k++) { /* whatever rows left there, a nil after an error too */
      lua_pushinteger(L, 0);
      lua_rawseti(L, -2, k);
    }
    lua_pop(L, 1);
  }
  if (tabular)
    lua_pushnil(L);
  else
    lua_rawgeti(L, AT + OBS_OF, i + 1);
  lua_pushvalue(L, AT + RNG);
  push_mask(L, v, AT, i);
  push_live(L, v, AT, io->live);
  lua_call(L, 5, LUA_MULTRET);
  refuse_surplus(L, v, AT, i, "reset", top + 1);
  lua_settop(L, top + 1);
  take_all_obs(L, v, AT, i, "reset", top + 1, io->obs);
  for (int64_t k = 0; k < agents; k++)
    take_mask(L, v, AT + MASKS, i * agents + k, v->masked ? io->mask + k * v->action.n : NULL);
  take_live(L, v, AT, io->live);
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
  snprintf(v->io->message, PERI_ENV_MESSAGE, "%.*s", PERI_ENV_MESSAGE - 1, ctx->scripted);
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
  spec->agents = (int)v->agents;
  spec->nmetrics = v->nmetrics;
  spec->metric = v->metric;
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

/* Tables of what is filled for each call: that of one agent, or a list of those of all. make pushes one. */
static void push_for_agents (lua_State *L, const lua_env *v,
                             void (*make)(lua_State *, const lua_env *)) {
  if (v->agents == 1) {
    make(L, v);
    return;
  }
  lua_createtable(L, (int)v->agents, 0);
  for (int64_t k = 1; k <= v->agents; k++) {
    make(L, v);
    lua_rawseti(L, -2, k);
  }
}

static void make_action (lua_State *L, const lua_env *v) {
  push_rows(L, 1, peri_space_size(&v->action), "action", true);
  lua_rawgeti(L, -1, 1);
  lua_remove(L, -2);
}

static int refuse_metric (lua_State *L) {
  const char *key = luaL_tolstring(L, 2, NULL);
  return luaL_error(L, "metrics.%s: no metric has this name", key);
}

static void make_metrics (lua_State *L, const lua_env *v) {
  lua_createtable(L, 0, v->nmetrics);
  for (int m = 0; m < v->nmetrics; m++) {
    lua_pushinteger(L, 0);
    lua_setfield(L, -2, v->metric[m]);
  }
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, refuse_metric);
  lua_setfield(L, -2, "__newindex");
  lua_setmetatable(L, -2);
}

static void make_live (lua_State *L, const lua_env *v) {
  push_rows(L, 1, v->agents, "live", false);
  lua_rawgeti(L, -1, 1);
  lua_remove(L, -2);
}

/* ---- lists of the agents' tables: those are written into, and none is put in their places ---- */

static int refuse_agent (lua_State *L) {
  const char *what = lua_tostring(L, lua_upvalueindex(1));
  lua_Integer n = lua_tointeger(L, lua_upvalueindex(2));
  const char *key = luaL_tolstring(L, 2, NULL);
  return luaL_error(
      L, "%s[%s]: %s is a list for agents 1 to %I; write into what is there, as %s[1][...] = ...",
      what, key, what, (LUAI_UACINT)n, what);
}

static int count_agents (lua_State *L) {
  lua_pushvalue(L, lua_upvalueindex(1));
  return 1;
}

static int next_agent (lua_State *L) {
  lua_settop(L, 2);
  if (lua_next(L, 1)) return 2;
  lua_pushnil(L);
  return 1;
}

static int each_agent (lua_State *L) {
  lua_pushcfunction(L, next_agent);
  lua_pushvalue(L, lua_upvalueindex(1));
  return 2;
}

/* The list on top becomes one that shows its entries and takes no others. */
static void seal (lua_State *L, const lua_env *v, const char *what) {
  const int list = lua_gettop(L);
  lua_newtable(L);
  lua_createtable(L, 0, 4);
  lua_pushvalue(L, list);
  lua_setfield(L, -2, "__index");
  lua_pushstring(L, what);
  lua_pushinteger(L, v->agents);
  lua_pushcclosure(L, refuse_agent, 2);
  lua_setfield(L, -2, "__newindex");
  lua_pushinteger(L, v->agents);
  lua_pushcclosure(L, count_agents, 1);
  lua_setfield(L, -2, "__len");
  lua_pushvalue(L, list);
  lua_pushcclosure(L, each_agent, 1);
  lua_setfield(L, -2, "__pairs");
  lua_setmetatable(L, -2);
  lua_replace(L, list);
}

/* The rows of value `from` by environments, as value `to` of the table on top: the same where there is one agent. */
static void group_rows (lua_State *L, const lua_env *v, int from, int to, int64_t n,
                        const char *what) {
  lua_rawgeti(L, -1, from);
  if (v->agents > 1) {
    lua_createtable(L, n < 1 << 26 ? (int)n : 0, 0);
    for (int64_t i = 0; i < n; i++) {
      lua_createtable(L, (int)v->agents, 0);
      for (int64_t k = 1; k <= v->agents; k++) {
        lua_rawgeti(L, -3, i * v->agents + k);
        lua_rawseti(L, -2, k);
      }
      seal(L, v, what);
      lua_rawseti(L, -2, i + 1);
    }
    lua_remove(L, -2);
  }
  lua_rawseti(L, -2, to);
}

/* The values of rows, in the table on top. */
static void fill_values (lua_State *L, lua_env *v, int64_t rows) {
  lua_createtable(L, rows < 1 << 26 ? (int)rows : 0, 0);
  lua_rawseti(L, -2, STATES);
  int64_t nobs = v->obs.kind == PERI_SPACE_DISCRETE ? 0 : peri_space_size(&v->obs);
  push_rows(L, nobs ? rows : 0, nobs, "obs", true);
  lua_rawseti(L, -2, OBS);
  if (v->agents > 1 && v->action.kind == PERI_SPACE_DISCRETE)
    lua_createtable(L, (int)v->agents, 0);
  else
    push_for_agents(L, v, make_action);
  lua_rawseti(L, -2, ACTION);
  push_for_agents(L, v, make_metrics);
  lua_pushvalue(L, -1);
  if (v->agents > 1) seal(L, v, "metrics");
  lua_rawseti(L, -3, METRICS_OF);
  lua_rawseti(L, -2, METRICS);
  make_live(L, v);
  lua_rawseti(L, -2, LIVE);
  v->lent = peri__rng_new(L);
  v->lent->r = NULL;
  lua_rawseti(L, -2, RNG);
  push_rows(L, v->masked ? rows : 0, v->masked ? v->action.n : 0, "mask", false);
  lua_rawseti(L, -2, MASKS);
  const int64_t n = rows / v->agents;
  group_rows(L, v, OBS, OBS_OF, nobs ? n : 0, "obs");
  group_rows(L, v, MASKS, MASK_OF, v->masked ? n : 0, "mask");
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
  lua_getfield(L, 2, "agents");
  v->agents = luaL_optinteger(L, -1, 1);
  if (lua_getfield(L, 2, "metrics") == LUA_TTABLE) {
    v->nmetrics = (int)lua_rawlen(L, -1);
    v->metric =
        (const char **)lua_newuserdatauv(L, ((size_t)v->nmetrics + 1) * sizeof *v->metric, 0);
    lua_setfield(L, 4, "metric");
    for (int m = 0; m < v->nmetrics; m++) {
      lua_rawgeti(L, -1, m + 1);
      v->metric[m] = lua_tostring(L, -1);
      lua_pop(L, 1);
    }
    lua_setfield(L, 4, "metrics"); /* it holds the names */
  }
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
  v->nobs = peri_space_size(&v->obs);
  v->nact = peri_space_size(&v->action);
  v->obs_bytes = e->obs_bytes;
  v->act_bytes = e->action_bytes;
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
