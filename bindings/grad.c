/*
** grad.c - gradients: backward passes, the switch that turns recording off, anomaly mode. Functions
** with a vjp of their own are in custom.c.
*/
#include <string.h>

#include "autograd/tape.h"
#include "bind.h"

#define GUARD "perilune.guard"

/* ---- no_grad ---- */

typedef struct guard {
  peri_mode *mode; /* NULL: closed */
  uint64_t serial; /* of the mode; another one there: the thread is gone */
} guard;

static int guard_close (lua_State *L) {
  guard *g = (guard *)luaL_testudata(L, 1, GUARD);
  if (!g || !g->mode) return 0;
  peri_mode *m = g->mode;
  g->mode = NULL;
  if (m->serial != g->serial) return 0;
  peri__mode_close(BIND(L), m);
  peri__thread_look(L, BIND(L));
  return 0;
}

void peri__grad_guard (lua_State *L, bool on) {
  guard *g = (guard *)lua_newuserdatauv(L, sizeof *g, 0);
  g->mode = NULL;
  luaL_setmetatable(L, GUARD);
  g->mode = peri__mode_keep(L, peri__bind(L), on);
  g->serial = g->mode->serial;
}

static int finish_call (lua_State *L, int status, lua_KContext base) {
  (void)status;
  return lua_gettop(L) - (int)base;
}

static int with_grad (lua_State *L, const char *fn, bool on) {
  int n = lua_gettop(L);
  if (n == 0) {
    peri__grad_guard(L, on);
    return 1;
  }
  if (lua_type(L, 1) != LUA_TFUNCTION && !luaL_getmetafield(L, 1, "__call"))
    return peri__type_error(L, fn, 1, "fn", "a function");
  lua_settop(L, n);
  peri__grad_guard(L, on);
  lua_insert(L, 1);
  lua_toclose(L, 1);
  lua_callk(L, n - 1, LUA_MULTRET, 1, finish_call);
  return finish_call(L, LUA_OK, 1);
}

static int l_no_grad (lua_State *L) { return with_grad(L, "no_grad", false); }
static int l_enable_grad (lua_State *L) { return with_grad(L, "enable_grad", true); }

static int l_grad_enabled (lua_State *L) {
  peri_bind *b = BIND(L);
  peri__here(L, b);
  lua_pushboolean(L, peri_grad_enabled(b->ctx));
  return 1;
}

static int l_anomaly (lua_State *L) {
  peri__anomaly_set(L, BIND(L), lua_isnone(L, 1) || lua_toboolean(L, 1));
  return 0;
}

/* ---- passes ---- */

/* Read the options of a table at arg: each name with its slot on the stack from base on. */
static void options (lua_State *L, const char *fn, int arg, int n, const char *const *names) {
  int base = lua_gettop(L);
  for (int i = 0; i < n; i++) lua_pushnil(L);
  if (lua_isnoneornil(L, arg)) return;
  if (lua_type(L, arg) != LUA_TTABLE) peri__type_error(L, fn, arg, "options", "a table");
  lua_pushnil(L);
  while (lua_next(L, arg)) {
    int i = 0;
    const char *key = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "?";
    while (i < n && strcmp(names[i], key) != 0) i++;
    if (i == n) luaL_error(L, "%s: no option is called '%s'", fn, key);
    lua_replace(L, base + 1 + i);
  }
}

/* The Lua functions that a pass calls run in this coroutine. */
static lua_State *enter (lua_State *L, peri_bind *b) {
  lua_State *was = b->L;
  b->L = L;
  return was;
}

static int t_backward (lua_State *L) {
  static const char *const names[] = { "retain_graph", "chain" };
  peri_bind *b = BIND(L);
  peri_tensor *root = peri__want_tensor(L, 1, "backward", "self"), *seed = NULL;
  bool bare = lua_type(L, 2) == LUA_TTABLE; /* x:backward { retain_graph = true } */
  lua_settop(L, 3);
  if (!bare && !lua_isnil(L, 2)) seed = peri__want_tensor(L, 2, "backward", "seed");
  options(L, "backward", bare ? 2 : 3, 2, names);
  bool retain = lua_toboolean(L, 4), chain = lua_toboolean(L, 5);
  peri__collect_forward(L, b);
  peri__here(L, b);
  lua_State *was = enter(L, b);
  peri_status s = peri__backward(b->ctx, root, seed, retain, chain);
  b->L = was;
  peri__custom_sweep(L, b);
  peri__check(L, "backward", s);
  peri__charge(L);
  return 0;
}

/* grad(y, xs, {create_graph, seed}): a box for each x first, then the pass fills them. */
static int l_grad (lua_State *L) {
  static const char *const names[] = { "create_graph", "seed" };
  peri_bind *b = BIND(L);
  peri_tensor *root = peri__want_tensor(L, 1, "grad", "y"), *seed = NULL;
  bool single = peri__box_at(L, b, 2) != NULL;
  lua_settop(L, 3);
  options(L, "grad", 3, 2, names); /* slots 4 and 5 */
  if (!lua_isnil(L, 5)) seed = peri__want_tensor(L, 5, "grad", "seed");
  if (single) {
    lua_createtable(L, 1, 0);
    lua_pushvalue(L, 2);
    lua_rawseti(L, -2, 1);
    lua_replace(L, 2);
  }
  if (lua_type(L, 2) != LUA_TTABLE)
    return peri__type_error(L, "grad", 2, "xs", "a list of tensors");
  int n = (int)lua_rawlen(L, 2);
  size_t bytes = (size_t)n * sizeof(peri_tensor *);
  peri_tensor **in = (peri_tensor **)lua_newuserdatauv(L, bytes + 1, 0);  /* 6 */
  peri_tensor **out = (peri_tensor **)lua_newuserdatauv(L, bytes + 1, 0); /* 7 */
  lua_createtable(L, n, 0);                                               /* 8 */
  for (int i = 0; i < n; i++) {
    peri__box_new(L);
    lua_rawseti(L, 8, i + 1);
  }
  for (int i = 0; i < n; i++) {
    lua_rawgeti(L, 2, i + 1);
    peri_box *box = peri__box_at(L, b, -1);
    if (!box || !box->t)
      return luaL_error(L, "grad: argument 2 (xs): entry %d is no tensor", i + 1);
    in[i] = box->t;
    lua_pop(L, 1);
  }
  peri__here(L, b);
  lua_State *was = enter(L, b);
  peri_status s = peri_gradients(b->ctx, root, seed, n, in, lua_toboolean(L, 4), out);
  b->L = was;
  if (s == PERI_OK)
    for (int i = 0; i < n; i++) { /* without an API call that could raise before all are boxed */
      lua_rawgeti(L, 8, i + 1);
      ((peri_box *)lua_touserdata(L, -1))->t = out[i];
      lua_pop(L, 1);
    }
  peri__custom_sweep(L, b);
  peri__check(L, "grad", s);
  for (int i = 0; i < n; i++)
    if (!out[i]) { /* y does not depend on it */
      lua_pushnil(L);
      lua_rawseti(L, 8, i + 1);
    }
  peri__charge(L);
  lua_settop(L, 8);
  if (single) lua_rawgeti(L, 8, 1);
  return 1;
}

/* The tensor of entry i of the list at 1. */
static peri_tensor *parameter_at (lua_State *L, peri_bind *b, int i) {
  lua_rawgeti(L, 1, i);
  peri_box *box = peri__box_at(L, b, -1);
  if (!box || !box->t)
    luaL_error(L, "parameter %d %s", i, box ? "was released by its scope" : "is no tensor");
  lua_pop(L, 1);
  return box->t;
}

/* _graded(params): what an optimizer asks at every step, without a box for each gradient. */
static int l_graded (lua_State *L) {
  peri_bind *b = BIND(L);
  int dtype = -1, n = 0;
  luaL_checktype(L, 1, LUA_TTABLE);
  int count = (int)lua_rawlen(L, 1);
  for (int i = 1; i <= count; i++) {
    const peri_tensor *g = peri_grad(parameter_at(L, b, i));
    if (!g) continue;
    if (n > 0 && dtype != (int)peri_dtype_of(g)) dtype = -1;
    if (n++ == 0) dtype = peri_dtype_of(g);
  }
  lua_pushinteger(L, n);
  lua_pushboolean(L, n == count && dtype >= 0);
  return 2;
}

/* _grad_norm(params): the number that the op grad_norm gives, without a tensor of Lua's for it. */
static int l_grad_norm (lua_State *L) {
  enum { FEW = 64 };
  peri_bind *b = BIND(L);
  peri_tensor *few[FEW], **in = few;
  double v = 0;
  luaL_checktype(L, 1, LUA_TTABLE);
  int count = (int)lua_rawlen(L, 1);
  if (count > FEW) in = (peri_tensor **)lua_newuserdatauv(L, (size_t)count * sizeof *in, 0);
  for (int i = 0; i < count; i++) in[i] = parameter_at(L, b, i + 1);
  peri_tensor *norm = NULL;
  peri_status s = peri_apply(b->ctx, peri_op_find("grad_norm"), count, in, 0, NULL, 1, &norm);
  if (s == PERI_OK) s = peri_item(norm, 0, &v);
  peri_release(norm);
  peri__check(L, "step", s);
  lua_pushnumber(L, v);
  return 1;
}

/* _drop_gradients(params) */
static int l_drop_gradients (lua_State *L) {
  peri_bind *b = BIND(L);
  luaL_checktype(L, 1, LUA_TTABLE);
  int count = (int)lua_rawlen(L, 1);
  for (int i = 1; i <= count; i++)
    peri__check(L, "zero_grad", peri_set_grad(parameter_at(L, b, i), NULL));
  return 0;
}

static const peri_reg guard_meta[] = { { "__close", NULL, NULL, guard_close },
                                       { NULL, NULL, NULL, NULL } };

static const peri_reg guard_methods[] = {
  { "close", "", "Restore what recording was.", guard_close }, { NULL, NULL, NULL, NULL }
};

static const peri_reg functions[] = {
  { "no_grad", "fn?, ...",
    "Call fn(...) without recording, or return a guard: local _ <close> = peri.no_grad().",
    l_no_grad },
  { "enable_grad", "fn?, ...", "The opposite of no_grad.", l_enable_grad },
  { "grad_enabled", "", "Whether ops are recorded.", l_grad_enabled },
  { "grad", "y, xs, options?",
    "Gradients of y for a list of tensors (nil where y does not depend on one), or "
    "for one tensor. Options: create_graph, seed.",
    l_grad },
  { "anomaly", "on?",
    "Fail the op that first makes a NaN or Inf from finite inputs (default true); of a coroutine: "
    "in "
    "it alone.",
    l_anomaly },
  { "_graded", "params",
    "How many of a list of parameters have a gradient, and whether all have, of one dtype.",
    l_graded },
  { "_grad_norm", "params", "The norm of the gradients of a list of parameters, a number.",
    l_grad_norm },
  { "_drop_gradients", "params", "Forget the gradients of a list of parameters.",
    l_drop_gradients },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg methods[] = {
  { "backward", "seed?, options?",
    "Add the gradients of this tensor to the grad of every leaf. Options: "
    "retain_graph; chain: gradients go on from the former ones row by row, so that rows cut into "
    "passes in any way have the same gradient, bit for bit.",
    t_backward },
  { NULL, NULL, NULL, NULL }
};

const peri_reg *const peri__grad_functions = functions, *const peri__grad_methods = methods;

void peri__open_grad (lua_State *L) {
  peri__metatable(L, GUARD, guard_meta, guard_methods);
  lua_pop(L, 1);
  peri__register(L, functions);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_methods);
  peri__register(L, methods);
  lua_pop(L, 1);
}
