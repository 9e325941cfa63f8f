/*
** memory.c - scopes: what is made inside one is freed at its end without the collector. steps() is
** a loop whose turns are scopes.
*/
#include <math.h>
#include <string.h>

#include "bind.h"

#define SCOPE "perilune.scope"
#define STEPS "perilune.steps"

/* Raises before anything has changed. */
static void scope_open (lua_State *L, peri_bind *b, peri_scope *s) {
  peri_thread *t = peri__thread_own(L, b);
  s->first = NULL;
  s->outer = t->scope;
  s->of = t;
  s->open = true;
  t->scope = s;
}

/* Out of the chain of its thread, wherever it is: scopes may be closed in any order. */
static void scope_unlink (peri_scope *s) {
  if (s->of) {
    peri_scope **p = &s->of->scope;
    while (*p != s) p = &(*p)->outer;
    *p = s->outer;
  }
  s->of = NULL;
  s->open = false;
}

static void scope_close (peri_bind *b, peri_scope *s) {
  if (!s->open) return;
  scope_unlink(s);
  while (s->first) peri__box_release(b, s->first);
}

void peri__scope_enter (lua_State *L, peri_scope **out) {
  peri_bind *b = peri__bind(L);
  peri_scope *s = (peri_scope *)lua_newuserdatauv(L, sizeof *s, 0);
  *s = (peri_scope){ .open = false };
  luaL_setmetatable(L, SCOPE);
  scope_open(L, b, s);
  *out = s;
}

void peri__scope_leave (peri_bind *b, peri_scope *s) { scope_close(b, s); }

/* Hand the box to the next outer scope, or to the collector when there is none. */
void peri__scope_lift (peri_scope *to, peri_box *box) {
  peri__box_unlink(box);
  if (!to) return;
  box->next = to->first;
  box->link = &to->first;
  if (box->next) box->next->link = &box->next;
  to->first = box;
}

/* Every tensor at idx: itself, or in a table and tables in it. */
static void lift_all (lua_State *L, peri_bind *b, int idx, peri_scope *to, int depth,
                      const char *fn) {
  peri_box *box = peri__box_at(L, b, idx);
  if (box) {
    if (box->link) peri__scope_lift(to, box);
    return;
  }
  if (lua_type(L, idx) != LUA_TTABLE) return;
  if (depth == 16) luaL_error(L, "%s: tables nested more than 16 deep", fn);
  luaL_checkstack(L, 6, NULL);
  lua_pushnil(L);
  while (lua_next(L, idx)) {
    if (lua_type(L, -1) == LUA_TTABLE || lua_type(L, -1) == LUA_TUSERDATA)
      lift_all(L, b, lua_gettop(L), to, depth + 1, fn);
    lua_pop(L, 1);
  }
}

static peri_scope *check_scope (lua_State *L, const char *fn) {
  peri_scope *s = (peri_scope *)luaL_testudata(L, 1, SCOPE);
  if (!s) peri__type_error(L, fn, 1, "self", "a scope");
  return s;
}

static int l_scope (lua_State *L) {
  peri_scope *s;
  peri__scope_enter(L, &s);
  return 1;
}

static int s_close (lua_State *L) {
  scope_close(BIND(L), check_scope(L, "close"));
  peri__custom_sweep(L, BIND(L));
  return 0;
}

/* A scope that nobody closed: its tensors are left to the collector. */
static int s_gc (lua_State *L) {
  peri_scope *s = (peri_scope *)luaL_testudata(L, 1, SCOPE);
  if (!s || !s->open) return 0;
  scope_unlink(s);
  while (s->first) peri__box_unlink(s->first);
  return 0;
}

static int s_keep (lua_State *L) {
  peri_scope *s = check_scope(L, "keep");
  int n = lua_gettop(L);
  for (int i = 2; i <= n; i++) lift_all(L, BIND(L), i, s->open ? s->outer : NULL, 0, "keep");
  return n - 1;
}

static int l_keep (lua_State *L) {
  int n = lua_gettop(L);
  for (int i = 1; i <= n; i++) lift_all(L, BIND(L), i, NULL, 0, "keep");
  return n;
}

/* ---- steps ---- */

typedef struct steps {
  peri_scope scope;
  lua_Integer at, n; /* n < 0: without end */
} steps;

static int steps_next (lua_State *L) {
  peri_bind *b = BIND(L);
  steps *s = (steps *)luaL_testudata(L, 1, STEPS);
  if (!s) return peri__type_error(L, "steps", 1, "state", "the state of a steps loop");
  scope_close(b, &s->scope);
  peri__custom_sweep(L, b);
  if (s->n >= 0 && s->at >= s->n) return 0;
  s->at++;
  scope_open(L, b, &s->scope);
  lua_pushinteger(L, s->at);
  if (s->n < 0)
    lua_pushnil(L);
  else
    lua_pushinteger(L, s->n);
  return 2;
}

static int steps_close (lua_State *L) {
  steps *s = (steps *)luaL_testudata(L, 1, STEPS);
  if (s) scope_close(BIND(L), &s->scope);
  return 0;
}

static int steps_gc (lua_State *L) {
  steps *s = (steps *)luaL_testudata(L, 1, STEPS);
  if (!s || !s->scope.open) return 0;
  scope_unlink(&s->scope);
  while (s->scope.first) peri__box_unlink(s->scope.first);
  return 0;
}

static int l_steps (lua_State *L) {
  lua_Integer n = -1, from = 1;
  int ok = 1;
  if (lua_type(L, 1) == LUA_TNUMBER && lua_tonumber(L, 1) != HUGE_VAL) {
    n = lua_tointegerx(L, 1, &ok);
    if (!ok || n < 0)
      return luaL_error(L, "steps: argument 1 (n) must be an integer from 0, math.huge or nil");
  } else if (!lua_isnoneornil(L, 1) && lua_type(L, 1) != LUA_TNUMBER)
    return peri__type_error(L, "steps", 1, "n", "an integer");
  if (lua_type(L, 2) == LUA_TTABLE) {
    lua_pushnil(L);
    while (lua_next(L, 2)) {
      if (lua_type(L, -2) != LUA_TSTRING || strcmp(lua_tostring(L, -2), "from") != 0)
        return luaL_error(L, "steps: the only option is 'from'");
      from = lua_tointegerx(L, -1, &ok);
      if (!ok || from < 1) return luaL_error(L, "steps: from must be an integer from 1");
      lua_pop(L, 1);
    }
  } else if (!lua_isnoneornil(L, 2))
    return peri__type_error(L, "steps", 2, "options", "a table");
  lua_pushlightuserdata(L, BIND(L));
  lua_pushcclosure(L, steps_next, 1);
  steps *s = (steps *)lua_newuserdatauv(L, sizeof *s, 0);
  memset(s, 0, sizeof *s);
  s->at = from - 1;
  s->n = n;
  luaL_setmetatable(L, STEPS);
  lua_pushnil(L);
  lua_pushvalue(L, -2);
  return 4;
}

static int l_memory (lua_State *L) {
  peri_bind *b = BIND(L);
  peri_memory m = { .struct_size = sizeof m };
  peri__check(L, "memory", peri_memory_stats(b->ctx, &m));
  lua_createtable(L, 0, 6);
  lua_pushinteger(L, (lua_Integer)(m.live_bytes - b->scalar_bytes));
  lua_setfield(L, -2, "live");
  lua_pushinteger(L, (lua_Integer)(m.peak_bytes - b->scalar_bytes));
  lua_setfield(L, -2, "peak");
  lua_pushinteger(L, (lua_Integer)m.reserved_bytes);
  lua_setfield(L, -2, "reserved");
  lua_pushinteger(L, (lua_Integer)m.tensors - PERI_NSCALAR);
  lua_setfield(L, -2, "tensors");
  lua_pushinteger(L, (lua_Integer)m.shared_bytes);
  lua_setfield(L, -2, "shared");
  if (m.max_bytes) {
    lua_pushinteger(L, (lua_Integer)m.max_bytes);
    lua_setfield(L, -2, "limit");
  }
  return 1;
}

static int l_reset_peak (lua_State *L) {
  peri_memory_reset_peak(BIND(L)->ctx);
  return 0;
}

static int l_trim (lua_State *L) {
  lua_gc(L, LUA_GCCOLLECT);
  peri_memory_trim(BIND(L)->ctx);
  return 0;
}

static const peri_reg scope_meta[] = { { "__gc", NULL, NULL, s_gc },
                                       { "__close", NULL, NULL, s_close },
                                       { NULL, NULL, NULL, NULL } };

static const peri_reg scope_methods[] = {
  { "close", "", "Free every tensor made in the scope and not kept; later calls do nothing.",
    s_close },
  { "keep", "x, ...",
    "Hand tensors, also those in tables, to the next outer scope; returns its arguments.", s_keep },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg steps_meta[] = { { "__gc", NULL, NULL, steps_gc },
                                       { "__close", NULL, NULL, steps_close },
                                       { NULL, NULL, NULL, NULL } };

static const peri_reg functions[] = {
  { "scope", "",
    "A scope to be closed: local s <close> = peri.scope(). Its end frees the tensors made in it.",
    l_scope },
  { "keep", "x, ...",
    "Lift tensors, also those in tables, out of all open scopes; returns its arguments.", l_keep },
  { "steps", "n?, options?", "for step, total in peri.steps(n, {from = k}): each turn is a scope.",
    l_steps },
  { "memory", "",
    "Bytes of tensors {live, peak, reserved}, of memory of other states {shared}, the number of "
    "tensor handles {tensors}, the limit on "
    "live bytes {limit; nil: none}.",
    l_memory },
  { "reset_peak", "", "Let peak of peri.memory() start again from the live bytes.", l_reset_peak },
  { "trim", "", "Collect garbage and give free pooled memory back.", l_trim },
  { NULL, NULL, NULL, NULL }
};

const peri_reg *const peri__memory_functions = functions;

void peri__open_memory (lua_State *L) {
  peri__metatable(L, SCOPE, scope_meta, scope_methods);
  peri__metatable(L, STEPS, steps_meta, NULL);
  lua_pop(L, 2);
  peri__register(L, functions);
}
