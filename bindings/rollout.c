/* rollout.c - rollouts as userdata; lua/perilune/env/rollout.lua reads the options of peri.rollout. */
#include <string.h>

#include "buffers.h"
#include "env/fields.h"
#include "op/op.h"

#define ROLLOUT "perilune.rollout"

typedef struct box { /* a peri_handle first */
  peri_handle h;
  int64_t steps, rows, dropped;
} box;

static box *self (lua_State *L, const char *fn) {
  peri__handle_open(L, ROLLOUT, fn);
  return (box *)lua_touserdata(L, 1);
}
static peri_rollout *of (const box *b) { return (peri_rollout *)b->h.p; }

peri_rollout *peri__rollout_at (lua_State *L, int arg, const char *fn) {
  box *b = (box *)luaL_testudata(L, arg, ROLLOUT);
  if (!b) peri__type_error(L, fn, arg, "rollout", "a rollout");
  if (!b->h.p) luaL_error(L, "%s: the rollout is closed", fn);
  return of(b);
}

/* (steps, rows, list of fields) -> rollout */
static int l_rollout (lua_State *L) {
  int n;
  peri_rollout *r = NULL;
  lua_Integer steps = luaL_checkinteger(L, 1), rows = luaL_checkinteger(L, 2);
  luaL_checktype(L, 3, LUA_TTABLE);
  peri_field *fields = peri__want_fields(L, 3, "rollout", &n);
  box *b = (box *)lua_newuserdatauv(L, sizeof *b, 0);
  memset(b, 0, sizeof *b);
  b->steps = steps;
  b->rows = rows;
  luaL_setmetatable(L, ROLLOUT);
  peri_status s = peri_rollout_open(BIND(L)->ctx, steps, rows, n, fields, &r);
  b->h.p = r;
  peri__check(L, "rollout", s);
  peri__charge(L);
  return 1;
}

static int o_close (lua_State *L) {
  peri_rollout_close((peri_rollout *)peri__handle_take(L, ROLLOUT));
  return 0;
}

/* ---- writing and reading ---- */

static const char *name_at (void *ud, int i) { return peri_rollout_name((peri_rollout *)ud, i); }

static int take (lua_State *L, peri_rollout *r, int arg, const char *fn, peri_tensor **in) {
  int n = peri_rollout_fields(r), found = 0;
  if (lua_type(L, arg) != LUA_TTABLE) peri__type_error(L, fn, arg, "fields", "a table of tensors");
  luaL_checkstack(L, n + 8, NULL);
  for (int i = 0; i < n; i++)
    in[i] = peri__named_row(L, arg, fn, peri_rollout_name(r, i),
                            peri_dtype_of(peri_rollout_tensor(r, i)), &found);
  peri__all_known(L, arg, fn, found, name_at, r);
  return n;
}

static int o_set (lua_State *L) {
  box *b = self(L, "set");
  peri_tensor *in[PERI__FIELDS_MAX];
  lua_Integer t = peri__want_integer(L, 2, "set", "t");
  if (t < 1 || t > b->steps)
    return luaL_error(L, "set: step %I is out of range: there are %I", (LUAI_UACINT)t,
                      (LUAI_UACINT)b->steps);
  int n = take(L, of(b), 3, "set", in);
  peri__check(L, "set", peri_rollout_set(of(b), t - 1, n, in));
  lua_settop(L, 1);
  return 1;
}

/* Whole tensors from the table at arg into their fields; every: one that is missing is refused. */
static int put (lua_State *L, int arg, const char *fn, bool every) {
  box *b = self(L, fn);
  peri_tensor *in[PERI__FIELDS_MAX];
  int n = take(L, of(b), arg, fn, in);
  for (int i = 0; i < n; i++) {
    const peri_tensor *t = peri_rollout_tensor(of(b), i);
    if (!in[i] && every) return luaL_error(L, "%s: %s is missing", fn, peri_rollout_name(of(b), i));
    if (!in[i]) continue;
    bool fits =
        in[i]->ndim == t->ndim && memcmp(in[i]->shape, t->shape, sizeof *t->shape * t->ndim) == 0;
    if (fits && in[i]->dtype == t->dtype) {
      peri__check(L, fn, peri__rollout_fits(of(b), i, in[i]));
      continue;
    }
    peri__push_shape_text(L, in[i]->ndim, in[i]->shape);
    peri__push_shape_text(L, t->ndim, t->shape);
    return luaL_error(L, "%s: %s is %s %s, the rollout's is %s %s", fn, peri_rollout_name(of(b), i),
                      peri_dtype_name((peri_dtype)in[i]->dtype), lua_tostring(L, -2),
                      peri_dtype_name((peri_dtype)t->dtype), lua_tostring(L, -1));
  }
  for (int i = 0; i < n; i++) {
    peri_tensor *t = peri_rollout_tensor(of(b), i);
    if (!in[i]) continue;
    peri__check(L, fn, peri_copy_out(in[i], peri_data(t), peri_nbytes(t)));
    t->storage->version++;
  }
  lua_settop(L, 1);
  return 1;
}

static int o_put (lua_State *L) { return put(L, 2, "put", false); }
static int o_load_state_dict (lua_State *L) { return put(L, 2, "load_state_dict", true); }

static int o_state_dict (lua_State *L) {
  box *b = self(L, "state_dict");
  lua_settop(L, 1);
  lua_newtable(L);
  for (int i = 0; i < peri_rollout_fields(of(b)); i++) {
    peri__box_share(L, peri_rollout_tensor(of(b), i));
    lua_setfield(L, 2, peri_rollout_name(of(b), i));
  }
  lua_settop(L, 2);
  return 1;
}

static int o_get (lua_State *L) {
  box *b = self(L, "get");
  const char *name = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : NULL;
  if (!name) peri__type_error(L, "get", 2, "name", "the name of a field");
  for (int i = 0; i < peri_rollout_fields(of(b)); i++)
    if (strcmp(peri_rollout_name(of(b), i), name) == 0) {
      peri__box_share(L, peri_rollout_tensor(of(b), i));
      return 1;
    }
  const char *near = peri__nearest(name, name_at, of(b));
  return luaL_error(
      L, near ? "get: there is no field %s; did you mean '%s'?" : "get: there is no field %s", name,
      near);
}

/* A view of field i with its first two dims as one, in a new box. */
static int push_flat (lua_State *L, peri_tensor *t) {
  int64_t shape[PERI_MAX_DIMS] = { t->shape[0] * t->shape[1] };
  for (int i = 2; i < t->ndim; i++) shape[i - 1] = t->shape[i];
  peri_attr attr = { .v = shape, .n = t->ndim - 1 };
  peri_tensor **flat = peri__box_new(L);
  peri__check(L, "flatten",
              peri__invoke(BIND(L)->ctx, peri_op_find("reshape"), 1, &t, &attr, flat));
  return 1;
}

static bool starts (const box *b, int i) { /* a field of the sequence's start */
  return peri_rollout_role(of(b), i) == PERI_FIELD_START;
}

static int o_flatten (lua_State *L) {
  box *b = self(L, "flatten");
  lua_settop(L, 1);
  lua_newtable(L);
  for (int i = 0; i < peri_rollout_fields(of(b)); i++) {
    if (starts(b, i)) continue;
    push_flat(L, peri_rollout_tensor(of(b), i));
    lua_setfield(L, 2, peri_rollout_name(of(b), i));
  }
  lua_settop(L, 2);
  return 1;
}

/* ---- minibatches ---- */

enum { OWNER = 3, ORDER_, SIZE, END, WHOLE, GROUPS }; /* upvalues behind a registered function's */

/* The dim of the minibatch becomes (groups, count / groups); the tensor is in its box. */
static void divide (lua_State *L, const char *name, int at, int64_t groups, peri_tensor **made) {
  int64_t shape[PERI_MAX_DIMS];
  peri_tensor *flat = *made, *out = NULL;
  if (flat->ndim == PERI_MAX_DIMS)
    luaL_error(L, "minibatches: %s has no room for the dim of groups", name);
  memcpy(shape, flat->shape, sizeof *shape * (size_t)(at + 1));
  memcpy(shape + at + 2, flat->shape + at + 1, sizeof *shape * (size_t)(flat->ndim - at - 1));
  shape[at + 1] = shape[at] / groups;
  shape[at] = groups;
  peri_attr attr = { .v = shape, .n = flat->ndim + 1 };
  peri__check(L, "minibatches",
              peri__invoke(BIND(L)->ctx, peri_op_find("reshape"), 1, &flat, &attr, &out));
  *made = out;
  peri_release(flat);
}

static int next_batch (lua_State *L) {
  lua_Integer k = lua_tointeger(L, 2), size = lua_tointeger(L, lua_upvalueindex(SIZE));
  lua_Integer begin = k * size, end = lua_tointeger(L, lua_upvalueindex(END));
  bool whole = lua_toboolean(L, lua_upvalueindex(WHOLE));
  lua_Integer groups = lua_tointeger(L, lua_upvalueindex(GROUPS)); /* 0: no dim of theirs */
  peri_tensor *out[PERI__FIELDS_MAX] = { NULL }, **made[PERI__FIELDS_MAX];
  if (begin >= end) return 0;
  lua_settop(L, 0);
  lua_pushvalue(L, lua_upvalueindex(OWNER));
  box *b = self(L, "minibatches");
  peri_tensor *order = ((peri_box *)lua_touserdata(L, lua_upvalueindex(ORDER_)))->t;
  if (!order) return luaL_error(L, "minibatches: the scope that the loop began in is closed");
  int n = peri_rollout_fields(of(b));
  luaL_checkstack(L, n + 8, NULL);
  lua_pushinteger(L, k + 1);
  lua_createtable(L, 0, n);
  for (int i = 0; i < n; i++) made[i] = peri__box_new(L);
  lua_Integer count = end - begin < size ? end - begin : size;
  peri__check(L, "minibatches", peri_rollout_batch(of(b), whole, order, begin, count, n, out));
  for (int i = 0; i < n; i++) *made[i] = out[i];
  for (int i = 0; i < n && groups > 0; i++)
    if (out[i]) divide(L, peri_rollout_name(of(b), i), whole && !starts(b, i), groups, made[i]);
  for (int i = n; i-- > 0;) {
    if (out[i])
      lua_setfield(L, 3, peri_rollout_name(of(b), i));
    else
      lua_pop(L, 1);
  }
  peri__charge(L);
  return 2;
}

static int o_minibatches (lua_State *L) {
  static const char fn[] = "minibatches";
  static const char *const names[] = { "whole", "drop_last", "groups", NULL };
  box *b = self(L, fn);
  lua_Integer size = peri__want_integer(L, 2, fn, "size");
  peri__want_options(L, 3, fn, names);
  lua_settop(L, 3);
  bool whole = false, drop = false;
  lua_Integer groups = 0;
  if (lua_istable(L, 3)) {
    if (lua_getfield(L, 3, "groups") != LUA_TNIL) {
      int is = 0;
      groups = lua_tointegerx(L, -1, &is);
      if (!is || groups < 1 || b->rows % groups != 0)
        return luaL_error(L, "%s: groups is %s, expected a divisor of the %I rows", fn,
                          luaL_tolstring(L, -1, NULL), (LUAI_UACINT)b->rows);
    }
    lua_getfield(L, 3, "whole");
    lua_getfield(L, 3, "drop_last");
    whole = lua_toboolean(L, -2);
    drop = lua_toboolean(L, -1);
  }
  int64_t learners = groups > 0 ? groups : 1;
  int64_t n = (whole ? b->rows : b->steps * b->rows) / learners;
  if (size < 1 || size > n)
    return luaL_error(L, "%s: size is %I, expected 1 to %I: there are as many %s%s", fn,
                      (LUAI_UACINT)size, (LUAI_UACINT)n, whole ? "rows" : "steps of rows",
                      groups > 1 ? " in each group" : "");
  int64_t end = drop ? n - n % size : n;
  lua_settop(L, 1);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_pushvalue(L, 1);
  peri_tensor **order = peri__box_new(L);
  peri__check(L, fn, peri_rollout_shuffle(of(b), whole, learners, size, order));
  peri__box_unlink((peri_box *)order); /* the loop's, whatever scope its turns open */
  lua_pushinteger(L, size * learners);
  lua_pushinteger(L, end * learners);
  lua_pushboolean(L, whole);
  lua_pushinteger(L, groups);
  lua_pushcclosure(L, next_batch, GROUPS);
  b->dropped += (n - end) * learners * (whole ? b->steps : 1);
  lua_pushvalue(L, 1);
  lua_pushinteger(L, 0);
  return 3;
}

static int o_dropped (lua_State *L) {
  lua_pushinteger(L, self(L, "dropped")->dropped);
  return 1;
}

static int o_tostring (lua_State *L) {
  box *b = (box *)luaL_testudata(L, 1, ROLLOUT);
  if (!b || !b->h.p)
    lua_pushliteral(L, "rollout, closed");
  else
    lua_pushfstring(L, "rollout of %I steps of %I rows, %d fields", (LUAI_UACINT)b->steps,
                    (LUAI_UACINT)b->rows, peri_rollout_fields(of(b)));
  return 1;
}

static const peri_reg meta[] = { { "__gc", NULL, NULL, o_close },
                                 { "__close", NULL, NULL, o_close },
                                 { "__tostring", NULL, NULL, o_tostring },
                                 { NULL, NULL, NULL, NULL } };

static const peri_reg methods[] = {
  { "set", "t, fields",
    "Write step t of the fields in a table of tensors (rows, ...). With one row its dim may be "
    "left "
    "out and scalars be plain values.",
    o_set },
  { "put", "fields", "Write whole fields, tensors (steps, rows, ...): advantages, returns.",
    o_put },
  { "get", "name", "The tensor (steps, rows, ...) of a field itself, no copy.", o_get },
  { "flatten", "", "Views (steps * rows, ...) of every field, by name.", o_flatten },
  { "minibatches", "size, options?",
    "for i, batch in rollout:minibatches(64): every step once, in an order from the context's "
    "generator, (size, ...) each. whole: rows with all their steps, (steps, size, ...); drop_last: "
    "leave a smaller last one out; groups: the rows are of so many learners, one behind the other, "
    "and size is of each: (groups, size, ...).",
    o_minibatches },
  { "dropped", "", "How many steps drop_last has left out so far.", o_dropped },
  { "close", "", "Free its memory.", o_close },
  { "state_dict", "", "The tensors of all fields by name, themselves.", o_state_dict },
  { "load_state_dict", "state", "Write all fields; returns the rollout.", o_load_state_dict },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg functions[] = { { "_rollout", "steps, rows, list",
                                        "What peri.rollout opens, after it has read the options.",
                                        l_rollout },
                                      { NULL, NULL, NULL, NULL } };

const peri_reg *const peri__rollout_methods = methods;

void peri__open_rollout (lua_State *L) {
  peri__metatable(L, ROLLOUT, meta, methods);
  lua_pop(L, 1);
  peri__register(L, functions);
}
