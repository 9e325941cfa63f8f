/*
** env.c - peri._env: batches of environments as userdata, their spaces as tables, generators like NumPy's.
** lua/perilune/env/ gives them their public face. A step is a function of its own for each batch, which has what it
** needs as upvalues: the way from a loop in Lua to the environment is short.
*/
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/element.h"
#include "env.h"

#define BOX PERI_ENV_BOX

/* ---- batches ---- */

static void set_integer (lua_State *L, const char *name, lua_Integer v) {
  lua_pushinteger(L, v);
  lua_setfield(L, -2, name);
}

static void set_string (lua_State *L, const char *name, const char *s) {
  lua_pushstring(L, s);
  lua_setfield(L, -2, name);
}

peri__env_box *peri__env_box_at (lua_State *L, const char *fn) {
  peri__env_box *b = (peri__env_box *)luaL_testudata(L, 1, BOX);
  if (!b || !b->e) peri__type_error(L, fn, 1, "self", "an environment");
  return b;
}

static int env_gc (lua_State *L) {
  peri__env_box *b = (peri__env_box *)luaL_testudata(L, 1, BOX);
  if (!b || !BIND(L)->ctx) return 0;
  peri_env *e = b->e;
  b->e = NULL;
  peri_env_close(e);
  return 0;
}

static lua_Integer integer_field (lua_State *L, int t, const char *name, lua_Integer otherwise) {
  lua_Integer v = lua_getfield(L, t, name) == LUA_TNIL ? otherwise : lua_tointeger(L, -1);
  lua_pop(L, 1);
  return v;
}

/* The table of an environment's own options at the top, as a list in a userdata that takes its place on the stack;
** texts stay in the table. */
static const peri_env_arg *args_at (lua_State *L, int t, int *n) {
  int count = 0;
  for (lua_pushnil(L); lua_next(L, t); lua_pop(L, 1)) count++;
  peri_env_arg *list = (peri_env_arg *)lua_newuserdatauv(L, ((size_t)count + 1) * sizeof *list, 0);
  *n = 0;
  for (lua_pushnil(L); lua_next(L, t); lua_pop(L, 1)) {
    if (lua_type(L, -2) != LUA_TSTRING) luaL_error(L, "env.make: names of options are strings");
    peri_env_arg a = { .name = lua_tostring(L, -2) };
    if (lua_type(L, -1) == LUA_TSTRING)
      a.text = lua_tostring(L, -1);
    else if (lua_type(L, -1) == LUA_TBOOLEAN)
      a.value = lua_toboolean(L, -1);
    else if (lua_type(L, -1) == LUA_TNUMBER)
      a.value = lua_tonumber(L, -1);
    else
      luaL_error(L, "env.make: option %s is a %s, expected a number, a boolean or a string", a.name,
                 luaL_typename(L, -1));
    list[(*n)++] = a;
  }
  return list;
}

/* make(id, { n, seed, autoreset, threads, max_steps, f64, args }), all checked by who calls. */
static int l_make (lua_State *L) {
  const char *id = luaL_checkstring(L, 1);
  peri_env_options o;
  peri__env_options_at(L, 2, &o);
  if (lua_getfield(L, 2, "args") == LUA_TTABLE) o.arg = args_at(L, lua_gettop(L), &o.nargs);
  peri__env_box *b = peri__env_box_new(L);
  peri__check(L, "env.make", peri_env_make(peri_lua_ctx(L), id, &o, &b->e));
  peri__env_box_fill(b);
  return 1;
}

void peri__env_options_at (lua_State *L, int t, peri_env_options *o) {
  peri_env_options_init(o);
  o->n = integer_field(L, t, "n", 1);
  o->seeded = lua_getfield(L, t, "seed") != LUA_TNIL;
  o->seed = (uint64_t)lua_tointeger(L, -1);
  o->autoreset = (peri_autoreset)integer_field(L, t, "autoreset", 0);
  o->threads = (int)integer_field(L, t, "threads", 1);
  o->max_steps = integer_field(L, t, "max_steps", -1);
  lua_getfield(L, t, "f64");
  o->reward_dtype = lua_toboolean(L, -1) ? PERI_F64 : PERI_F32;
}

peri__env_box *peri__env_box_new (lua_State *L) {
  peri__env_box *b = (peri__env_box *)lua_newuserdatauv(L, sizeof *b, 2);
  memset(b, 0, sizeof *b);
  luaL_setmetatable(L, BOX);
  return b;
}

void peri__env_box_fill (peri__env_box *b) {
  peri_env *e = b->e;
  const peri_env_spec *spec = peri_env_spec_of(e);
  b->action = &spec->action;
  b->obs = &spec->obs;
  b->rows = peri_env_rows(e);
  b->at_obs = peri_env_data(e, PERI_ENV_OBS);
  b->at_reward = peri_env_data(e, PERI_ENV_REWARD);
  b->at_terminated = (const uint8_t *)peri_env_data(e, PERI_ENV_TERMINATED);
  b->at_truncated = (const uint8_t *)peri_env_data(e, PERI_ENV_TRUNCATED);
}

static int l_spec (lua_State *L) {
  peri__env_box *b = peri__env_box_at(L, "env.spec");
  const peri_env_def *d = peri_env_def_of(b->e);
  const peri_env_spec *s = peri_env_spec_of(b->e);
  lua_newtable(L);
  set_string(L, "id", d->id);
  set_string(L, "doc", d->doc);
  lua_pushboolean(L, d->render != NULL);
  lua_setfield(L, -2, "has_frame");
  lua_pushboolean(L, d->text != NULL);
  lua_setfield(L, -2, "has_text");
  peri__space_push(L, &s->obs);
  lua_setfield(L, -2, "obs");
  peri__space_push(L, &s->action);
  lua_setfield(L, -2, "action");
  set_integer(L, "agents", s->agents);
  set_integer(L, "rows", b->rows);
  if (peri_env_max_steps(b->e)) set_integer(L, "max_steps", peri_env_max_steps(b->e));
  if (s->reward_threshold == s->reward_threshold) {
    lua_pushnumber(L, s->reward_threshold);
    lua_setfield(L, -2, "reward_threshold");
  }
  lua_createtable(L, s->nmetrics, 0);
  for (int i = 0; i < s->nmetrics; i++) {
    lua_pushstring(L, s->metric[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "metrics");
  return 1;
}

static int l_list (lua_State *L) {
  peri_ctx *ctx = BIND(L)->ctx;
  const peri_env_def *d;
  lua_newtable(L);
  for (int i = 0; (d = peri_env_at(ctx, i)) != NULL; i++) {
    lua_createtable(L, 0, 3);
    set_string(L, "id", d->id);
    set_string(L, "doc", d->doc);
    lua_createtable(L, d->noptions, 0);
    for (int k = 0; k < d->noptions; k++) {
      lua_createtable(L, 0, 3);
      set_string(L, "name", d->option[k].name);
      set_string(L, "doc", d->option[k].doc);
      if (d->option[k].text)
        lua_pushstring(L, d->option[k].text);
      else
        lua_pushnumber(L, d->option[k].value);
      lua_setfield(L, -2, "default");
      lua_rawseti(L, -2, k + 1);
    }
    lua_setfield(L, -2, "options");
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* reset(core, seed?, mask?): mask a tensor of a bool for each environment. */
static int l_reset (lua_State *L) {
  peri__env_box *b = peri__env_box_at(L, "env.reset");
  const uint8_t *mask = NULL;
  uint64_t seed = (uint64_t)lua_tointeger(L, 2);
  if (!lua_isnoneornil(L, 3)) {
    peri_tensor *t = peri__want_tensor(L, 3, "reset", "mask");
    int64_t n = peri_env_count(b->e);
    if (peri_dtype_of(t) != PERI_BOOL || peri_ndim(t) != 1 || peri_shape(t)[0] != n ||
        !peri_is_dense(t))
      luaL_error(L, "reset: mask must be a dense tensor of %I bools", (LUAI_UACINT)n);
    mask = (const uint8_t *)peri_data(t);
  }
  const uint64_t *given = lua_isnoneornil(L, 2) ? NULL : &seed;
  peri_status s =
      b->lua ? peri__env_lua_reset(L, b, 1, given, mask) : peri_env_reset(b->e, given, mask);
  peri__check(L, "reset", s);
  return 0;
}

static const char *const buffers[] = { "obs",       "reward",         "terminated",     "truncated",
                                       "final_obs", "mask",           "valid",          "live",
                                       "metrics",   "episode_return", "episode_length", NULL };

/* buffer(core, name, copy): a tensor of it, nil when there is none. */
static int l_buffer (lua_State *L) {
  peri__env_box *b = peri__env_box_at(L, "env.buffer");
  peri_env_buffer what = (peri_env_buffer)luaL_checkoption(L, 2, NULL, buffers);
  if (!peri_env_data(b->e, what)) return 0;
  peri_tensor **out = peri__box_new(L), *view = NULL;
  peri__check(L, "env", peri_env_tensor(b->e, what, out));
  if (!lua_toboolean(L, 3)) return 1;
  view = *out;
  *out = NULL;
  peri_status s = peri_from(peri_ctx_of(view), peri_dtype_of(view), peri_ndim(view),
                            peri_shape(view), peri_data(view), out);
  peri_release(view);
  peri__check(L, "env", s);
  peri__charge(L);
  return 1;
}

static int l_episodes (lua_State *L) {
  peri__env_box *b = peri__env_box_at(L, "env.episodes");
  peri_env_episode one;
  lua_newtable(L);
  lua_newtable(L);
  lua_newtable(L);
  for (lua_Integer i = 1; peri_env_next_episode(b->e, &one); i++) {
    lua_pushnumber(L, one.episode_return);
    lua_rawseti(L, -4, i);
    lua_pushinteger(L, one.length);
    lua_rawseti(L, -3, i);
    lua_pushinteger(L, one.row + 1);
    lua_rawseti(L, -2, i);
  }
  lua_pushinteger(L, peri_env_dropped_episodes(b->e));
  return 4;
}

static int l_save (lua_State *L) {
  peri__env_box *b = peri__env_box_at(L, "env.save");
  lua_Integer i = luaL_optinteger(L, 2, 0) - 1;
  size_t size = peri_env_save_size(b->e) * (size_t)(i < 0 ? peri_env_count(b->e) : 1);
  luaL_Buffer buffer;
  char *bytes = luaL_buffinitsize(L, &buffer, size);
  peri__check(L, "save", peri_env_save(b->e, i, bytes, size));
  luaL_pushresultsize(&buffer, size);
  return 1;
}

static int l_load (lua_State *L) {
  peri__env_box *b = peri__env_box_at(L, "env.load");
  size_t size;
  const char *bytes = luaL_checklstring(L, 3, &size);
  peri__check(L, "load", peri_env_load(b->e, luaL_checkinteger(L, 2) - 1, bytes, size));
  if (b->lua) peri__env_lua_loaded(L, b, 1);
  return 0;
}

/* What no step has to say of the batch: whether it was reset once, episodes that nobody asked for. */
static int l_begun (lua_State *L) {
  lua_pushboolean(L, peri__env_box_at(L, "env.begun")->e->begun);
  return 1;
}

/* put_episodes(core, returns, lengths, rows, dropped): in place of those that wait. */
static int l_put_episodes (lua_State *L) {
  peri_env *e = peri__env_box_at(L, "env.put_episodes")->e;
  lua_Integer n = (lua_Integer)lua_rawlen(L, 2);
  e->episode_count = e->episode_first = 0;
  e->episode_dropped = lua_tointeger(L, 5);
  for (lua_Integer i = 1; i <= n; i++) {
    peri__check(L, "env", peri__env_episode_room(e));
    lua_rawgeti(L, 2, i);
    lua_rawgeti(L, 3, i);
    lua_rawgeti(L, 4, i);
    peri__env_episode_put(e, (peri_env_episode){ .row = lua_tointeger(L, -1) - 1,
                                                 .length = lua_tointeger(L, -2),
                                                 .episode_return = lua_tonumber(L, -3) });
    lua_pop(L, 3);
  }
  return 0;
}

/* set_max_steps(core, n): a time limit in place of the one that it has. */
static int l_set_max_steps (lua_State *L) {
  peri_env *e = peri__env_box_at(L, "env.set_max_steps")->e;
  e->max_steps = luaL_checkinteger(L, 2);
  memset(e->deadline, 0, (size_t)((e->n + e->block - 1) / e->block) * sizeof *e->deadline);
  return 0;
}

static int l_frame (lua_State *L) {
  peri__env_box *b = peri__env_box_at(L, "env.frame");
  lua_Integer i = luaL_checkinteger(L, 2) - 1;
  peri_frame *f = peri__frame_push(L);
  peri__check(L, "frame", peri_env_draw(b->e, i, f));
  peri__check(L, "frame", peri_frame_check(f));
  return 1;
}

static int l_text (lua_State *L) {
  peri__env_box *b = peri__env_box_at(L, "env.text");
  lua_Integer i = luaL_checkinteger(L, 2) - 1;
  char *out = NULL;
  peri_status s = PERI_EINVAL;
  for (size_t size = 1 << 12; s == PERI_EINVAL && size <= 1 << 24; size <<= 4) { /* until it fits */
    out = (char *)lua_newuserdatauv(L, size, 0);
    out[0] = 0;
    s = peri_env_print(b->e, i, out, size);
  }
  peri__check(L, "text", s);
  lua_pushstring(L, out);
  return 1;
}

/* ---- steps ---- */

/* The number on top, element i of all actions, is one that the dtype of the space holds. */
static void check_number (lua_State *L, const peri__env_box *b, int64_t i) {
  const peri_space *s = b->action;
  int64_t low, top, each = peri_space_size(s), row = i / each;
  int ok;
  lua_Integer v = lua_tointegerx(L, -1, &ok);
  if (lua_type(L, -1) != LUA_TNUMBER || !peri__element_range(s->dtype, &low, &top) ||
      (ok && v >= low && v <= top))
    return;
  char place[32] = "", value[48];
  if (s->ndim > 0)
    snprintf(place, sizeof place, "[%lld] ", (long long)(i % each)); /* as data: from 0 */
  lua_Number x = lua_tonumber(L, -1);
  snprintf(value, sizeof value, "%.14g", x != x ? fabs(x) : x);
  luaL_error(L,
             "step: %s: row %I, step %I of its episode: action %sis %s, expected an integer of %s",
             b->e->def.id, (LUAI_UACINT)(row + 1),
             (LUAI_UACINT)(b->e->tick + 1 - b->e->started[row / b->e->agents]), place, value,
             peri_dtype_name(s->dtype));
}

/* Actions that are no dense tensor of the space's dtype, made so in memory that the box keeps. */
static const void *converted (lua_State *L, peri__env_box *b, int arg, int box) {
  const peri_space *s = b->action;
  size_t each = peri_dtype_size(s->dtype), size = (size_t)(b->rows * peri_space_size(s)) * each;
  peri_tensor *t = peri_lua_to(L, arg);
  if (!b->converted) {
    b->converted = lua_newuserdatauv(L, size, 0);
    lua_setiuservalue(L, box, 1);
  }
  if (t && peri_dtype_of(t) == s->dtype) {
    peri__check(L, "step", peri_copy_out(t, b->converted, size));
    return b->converted;
  }
  int64_t n = b->rows * peri_space_size(s);
  for (int64_t i = 0; i < n; i++) {
    char *at = (char *)b->converted + (size_t)i * each;
    if (t) { /* i32, bool */
      double v;
      peri__check(L, "step", peri_item(t, i, &v));
      lua_pushinteger(L, (lua_Integer)v);
    } else
      lua_rawgeti(L, arg, i + 1);
    check_number(L, b, i);
    peri__put_element(L, "step", lua_gettop(L), s->dtype, at);
    lua_pop(L, 1);
  }
  return b->converted;
}

static int bad_actions (lua_State *L, const peri__env_box *b, int arg, bool rows) {
  const peri_space *s = b->action;
  int64_t shape[PERI_MAX_DIMS + 1] = { b->rows };
  lua_settop(L, arg);
  for (int i = 0; i < s->ndim; i++) shape[i + rows] = s->shape[i];
  peri__push_shape_text(L, s->ndim + rows, shape);
  const char *want = lua_tostring(L, -1);
  peri_tensor *t = peri_lua_to(L, arg);
  if (!t)
    return luaL_error(L, "step: actions are %s, expected a tensor %s of %s",
                      lua_isnoneornil(L, arg) ? "missing" : luaL_typename(L, arg), want,
                      peri_dtype_name(s->dtype));
  peri__push_shape_text(L, peri_ndim(t), peri_shape(t));
  return luaL_error(L, "step: actions are %s of %s, expected %s of %s", lua_tostring(L, -1),
                    peri_dtype_name(peri_dtype_of(t)), want, peri_dtype_name(s->dtype));
}

/* The actions at arg. rows: the tensor has a first dim of rows. box: stack or upvalue index of b's userdata. */
static const void *actions_at (lua_State *L, peri__env_box *b, int arg, bool rows, int box) {
  const peri_space *s = b->action;
  if (lua_type(L, arg) == LUA_TTABLE) {
    if ((int64_t)lua_rawlen(L, arg) != b->rows * peri_space_size(s))
      luaL_error(L, "step: the list of actions has %I numbers, expected %I",
                 (LUAI_UACINT)lua_rawlen(L, arg), (LUAI_UACINT)(b->rows * peri_space_size(s)));
    return converted(L, b, arg, box);
  }
  peri_tensor *t = peri_lua_to(L, arg);
  if (!t) return bad_actions(L, b, arg, rows), NULL;
  const int64_t *shape = peri_shape(t);
  bool fits = peri_ndim(t) == s->ndim + rows && (!rows || shape[0] == b->rows);
  for (int i = 0; fits && i < s->ndim; i++) fits = shape[i + rows] == s->shape[i];
  peri_dtype d = peri_dtype_of(t);
  bool whole = s->dtype == PERI_I64 ? d == PERI_I32 : s->dtype == PERI_U8 && d == PERI_BOOL;
  if (!fits || (d != s->dtype && !whole)) return bad_actions(L, b, arg, rows), NULL;
  if (d == s->dtype && peri_is_dense(t)) return peri_data(t);
  return converted(L, b, arg, box);
}

static void push_copy (lua_State *L, int ndim, const int64_t *shape, peri_dtype d,
                       const void *data) {
  peri_box *box = peri__box_push(L, BIND(L), lua_upvalueindex(3));
  peri__check(L, "step", peri_from(BIND(L)->ctx, d, ndim, shape, data, &box->t));
}

/* Upvalues of both: the bind, the list entry, the metatable of tensors, the box, then the tensors of the buffers, nil
** where copies are made. */
enum { UP_BOX = 4, UP_OBS };

/* The observation of one environment: an integer, or a copy as a tensor. */
static void push_obs (lua_State *L, const peri__env_box *b) {
  const peri_space *s = b->obs;
  if (s->kind == PERI_SPACE_DISCRETE)
    lua_pushinteger(L, *(const int64_t *)b->at_obs);
  else
    push_copy(L, s->ndim, s->shape, s->dtype, b->at_obs);
}

/* step(self, action) -> obs, reward, terminated, truncated of one environment. */
static int step_one (lua_State *L) {
  peri__env_box *b = (peri__env_box *)lua_touserdata(L, lua_upvalueindex(UP_BOX));
  int64_t whole;
  const void *action = &whole;
  if (b->action->kind == PERI_SPACE_DISCRETE) {
    int ok;
    whole = lua_tointegerx(L, 2, &ok);
    if (!ok || lua_type(L, 2) != LUA_TNUMBER) {
      lua_settop(L, 2);
      check_number(L, b, 0);
      peri__type_error(L, "step", 2, "action", "an integer");
    }
  } else
    action = actions_at(L, b, 2, false, lua_upvalueindex(UP_BOX));
  peri_status s = b->lua ? peri__env_lua_step(L, b, lua_upvalueindex(UP_BOX), action)
                         : peri_env_step(b->e, action);
  if (s != PERI_OK) peri__check(L, "step", s);
  if (lua_isnil(L, lua_upvalueindex(UP_OBS)))
    push_obs(L, b);
  else
    lua_pushvalue(L, lua_upvalueindex(UP_OBS));
  lua_pushnumber(L, *(const double *)b->at_reward);
  lua_pushboolean(L, *b->at_terminated);
  lua_pushboolean(L, *b->at_truncated);
  return 4;
}

/* step(self, actions) -> four tensors. */
static int step_rows (lua_State *L) {
  static const peri_env_buffer order[] = { PERI_ENV_OBS, PERI_ENV_REWARD, PERI_ENV_TERMINATED,
                                           PERI_ENV_TRUNCATED };
  peri__env_box *b = (peri__env_box *)lua_touserdata(L, lua_upvalueindex(UP_BOX));
  const void *action = actions_at(L, b, 2, true, lua_upvalueindex(UP_BOX));
  peri_status s = b->lua ? peri__env_lua_step(L, b, lua_upvalueindex(UP_BOX), action)
                         : peri_env_step(b->e, action);
  if (s != PERI_OK) peri__check(L, "step", s);
  if (!lua_isnil(L, lua_upvalueindex(UP_OBS))) {
    for (int i = 0; i < 4; i++) lua_pushvalue(L, lua_upvalueindex(UP_OBS + i));
    return 4;
  }
  for (int i = 0; i < 4; i++) {
    const peri_tensor *t = b->e->buffer[order[i]];
    push_copy(L, t->ndim, t->shape, (peri_dtype)t->dtype, t->data);
  }
  peri__charge(L);
  return 4;
}

static const peri_reg step_entry[] = {
  { "step", "self, action", "One step of one environment.", step_one },
  { "step", "self, actions", "One step of every environment.", step_rows },
};

/* stepper(core, single, copy) -> step(self, actions), and without copies the tensor of observations */
static int l_stepper (lua_State *L) {
  peri__env_box *b = peri__env_box_at(L, "env.stepper");
  bool single = lua_toboolean(L, 2), copy = lua_toboolean(L, 3);
  copy |= single && b->obs->kind == PERI_SPACE_DISCRETE;
  lua_pushlightuserdata(L, BIND(L));
  lua_pushlightuserdata(L, (void *)&step_entry[single ? 0 : 1]);
  lua_pushvalue(L, lua_upvalueindex(3));
  lua_pushvalue(L, 1);
  for (int i = 0; i < 4; i++) {
    if (copy || (single && i > 0)) { /* the rest of a single one are a number and two booleans */
      lua_pushnil(L);
      continue;
    }
    peri_tensor **out = peri__box_new(L);
    peri__box_unlink((peri_box *)(void *)out); /* no scope frees it */
    peri__check(L, "env", peri_env_tensor(b->e, (peri_env_buffer)i, out));
    if (!single) continue;
    peri_tensor *rows = *out; /* its only row */
    *out = NULL;
    peri_status s = peri__view(rows, 0, rows->ndim - 1, rows->shape + 1, rows->stride + 1, out);
    peri_release(rows);
    peri__check(L, "env", s);
  }
  lua_pushvalue(L, -4);
  lua_insert(L, -9);
  lua_pushcclosure(L, single ? step_one : step_rows, 8);
  lua_insert(L, -2);
  return 2;
}

static int l_first (lua_State *L) {
  push_obs(L, peri__env_box_at(L, "env.first"));
  return 1;
}

static const peri_reg env_meta[] = { { "__gc", NULL, NULL, env_gc }, { NULL, NULL, NULL, NULL } };

static const peri_reg functions[] = {
  { "make", "id, options", "A batch of environments.", l_make },
  { "spec", "core", "What its definition says.", l_spec },
  { "list", "", "Environments that are known: id, doc, options.", l_list },
  { "reset", "core, seed?, mask?", "Begin episodes.", l_reset },
  { "buffer", "core, name, copy?", "A buffer as a tensor; nothing when it has none.", l_buffer },
  { "episodes", "core", "Returns, lengths and rows of episodes that ended.", l_episodes },
  { "save", "core, i?", "An environment, or all of them, as a string.", l_save },
  { "load", "core, i, bytes", "The reverse; i 0: all of them.", l_load },
  { "begun", "core", "Whether it was reset.", l_begun },
  { "put_episodes", "core, returns, lengths, rows, dropped", "Episodes that wait to be asked for.",
    l_put_episodes },
  { "set_max_steps", "core, n", "Another time limit.", l_set_max_steps },
  { "frame", "core, i", "An environment drawn into a new frame.", l_frame },
  { "text", "core, i", "A picture of an environment in characters.", l_text },
  { "model", "core", "The transition model as tables.", peri__env_model },
  { "collect", "core, rollout, weights, biases, activation",
    "Steps with a network's actions, as many as the rollout has.", peri__env_collect },
  { "stepper", "core, single, copy", "The function that steps it.", l_stepper },
  { "first", "core", "The observation of a single environment.", l_first },
  { NULL, NULL, NULL, NULL }
};

int peri__open_env (lua_State *L) {
  peri__metatable(L, BOX, env_meta, NULL);
  lua_pop(L, 1);
  lua_newtable(L);
  peri__register(L, functions);
  peri__open_env_python(L);
  peri__open_env_space(L);
  peri__open_env_lua(L);
  return 1;
}
