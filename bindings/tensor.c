/*
** tensor.c - the metatable of tensors: fields, and the methods that are no ops. Making tensors and
** listing them is in make.c, printing in print.c, gradients in grad.c.
*/
#include <math.h>
#include <string.h>

#include "bind.h"
#include "core/element.h"
#include "op/inplace.h"

static peri_tensor *self (lua_State *L, const char *fn) {
  peri_bind *b = BIND(L);
  peri_box *box = peri__box_at(L, b, 1);
  if (!box) peri__type_error(L, fn, 1, "self", "a tensor");
  if (!box->t) luaL_error(L, "%s: tensor was released by its scope", fn);
  return box->t;
}

/* ---- single elements ---- */

/* Push one element at p as the Lua value of its dtype. */
/* NaN has no sign that means anything, but Lua would print it. */
static void push_number (lua_State *L, double v) { lua_pushnumber(L, isnan(v) ? (double)NAN : v); }

void peri__push_element (lua_State *L, peri_dtype d, const void *p) {
  const peri__value a = peri__element_get(d, p);
  if (d == PERI_BOOL)
    lua_pushboolean(L, a.i != 0);
  else if (a.whole)
    lua_pushinteger(L, a.i);
  else
    push_number(L, a.f);
}

/* First n positions from argument 2 on: the offset of what they name, in elements. */
static int64_t offset_of (lua_State *L, const char *fn, const peri_tensor *t, int n) {
  int64_t at = 0;
  for (int i = 0; i < n; i++) {
    int ok;
    lua_Integer v = lua_tointegerx(L, i + 2, &ok);
    if (!ok || lua_type(L, i + 2) != LUA_TNUMBER)
      peri__type_error(L, fn, i + 2, NULL, "an integer");
    int64_t p = v > 0 ? v - 1 : v + t->shape[i];
    if (v == 0 || p < 0 || p >= t->shape[i])
      luaL_error(
          L, "%s: position %I in dim %d of size %I; positions count from 1, or from -1 at the end",
          fn, (LUAI_UACINT)v, i + 1, (LUAI_UACINT)t->shape[i]);
    at += p * t->stride[i];
  }
  return at;
}

static void *element (const peri_tensor *t, int64_t at) {
  return (char *)t->data + at * (int64_t)peri__size(t);
}

static int t_item (lua_State *L) {
  peri_tensor *t = self(L, "item");
  peri__check(L, "item", peri__readable(t));
  if (t->numel != 1) {
    peri__push_shape_text(L, t->ndim, t->shape);
    return luaL_error(L, "item: a tensor of shape %s has %I elements, not one", lua_tostring(L, -1),
                      (LUAI_UACINT)t->numel);
  }
  peri__push_element(L, peri_dtype_of(t), t->data);
  return 1;
}

/* View of x at position p of its first dim, as an op so that gradients flow; replaces the box. */
static void select_first (lua_State *L, const peri_op *select, int64_t p) {
  peri_bind *b = BIND(L);
  peri_tensor *in = ((peri_box *)lua_touserdata(L, -1))->t;
  peri_attr attr[2] = { { .i = 0 }, { .i = p } };
  peri_tensor **out = peri__box_new(L);
  peri__check(L, "at", peri__invoke(b->ctx, select, 1, &in, attr, out));
  lua_replace(L, -2);
}

static int t_at (lua_State *L) {
  peri_tensor *t = self(L, "at");
  peri__check(L, "at", peri__readable(t));
  int n = lua_gettop(L) - 1;
  if (n < 1 || n > t->ndim)
    return luaL_error(L, "at: %d positions given for a tensor of %d dims", n, t->ndim);
  int64_t at = offset_of(L, "at", t, n);
  if (n == t->ndim) {
    peri__push_element(L, peri_dtype_of(t), element(t, at));
    return 1;
  }
  const peri_op *select = peri_op_find("select");
  if (!select) return luaL_error(L, "at: this build has no select");
  lua_pushvalue(L, 1);
  for (int i = 0; i < n; i++) {
    lua_Integer v = lua_tointeger(L, i + 2);
    select_first(L, select, v > 0 ? v - 1 : v);
  }
  return 1;
}

static void check_write (lua_State *L, const char *fn, const peri_tensor *t) {
  peri__check(L, fn, peri__check_target(t->ctx, t, "x"));
  peri__here(L, BIND(L));
  if (BIND(L)->ctx->grad_enabled && peri__tracked(t))
    luaL_error(
        L, "%s: writes in place into a tensor that takes part in a graph: use no_grad or detach",
        fn);
}

static int t_set (lua_State *L) {
  peri_tensor *t = self(L, "set");
  peri__check(L, "set", peri__readable(t));
  int top = lua_gettop(L);
  if (top != t->ndim + 2)
    return luaL_error(L,
                      "set: a tensor of %d dims takes %d positions and a value, got %d arguments",
                      t->ndim, t->ndim, top - 1);
  check_write(L, "set", t);
  peri__put_element(L, "set", top, peri_dtype_of(t), element(t, offset_of(L, "set", t, t->ndim)));
  t->storage->version++;
  lua_settop(L, 1);
  return 1;
}

/* ---- sizes ---- */

static int t_numel (lua_State *L) {
  lua_pushinteger(L, self(L, "numel")->numel);
  return 1;
}

static int t_size (lua_State *L) {
  peri_tensor *t = self(L, "size");
  if (lua_isnoneornil(L, 2)) {
    peri__push_shape(L, t->ndim, t->shape);
    return 1;
  }
  int ok;
  lua_Integer d = lua_tointegerx(L, 2, &ok), at = d > 0 ? d - 1 : d + t->ndim;
  if (!ok) return peri__type_error(L, "size", 2, "dim", "an integer");
  if (d == 0 || at < 0 || at >= t->ndim)
    return luaL_error(
        L, "size: dim %I of a tensor of %d dims; dims count from 1, or from -1 at the end",
        (LUAI_UACINT)d, t->ndim);
  lua_pushinteger(L, t->shape[at]);
  return 1;
}

static int t_len (lua_State *L) {
  peri_tensor *t = self(L, "#");
  if (t->ndim == 0) return luaL_error(L, "#: a tensor of 0 dims has no length");
  lua_pushinteger(L, t->shape[0]);
  return 1;
}

/* ---- whole tensors ---- */

static int t_bytes (lua_State *L) {
  peri_tensor *t = self(L, "bytes");
  size_t n = peri_nbytes(t);
  luaL_Buffer s;
  char *p = luaL_buffinitsize(L, &s, n);
  peri__check(L, "bytes", peri_copy_out(t, p, n)); /* the box of the buffer is on the stack */
  luaL_pushresultsize(&s, n);
  return 1;
}

static int t_data_ptr (lua_State *L) {
  lua_pushlightuserdata(L, self(L, "data_ptr")->data);
  return 1;
}

static int t_version (lua_State *L) {
  lua_pushinteger(L, (lua_Integer)self(L, "version")->storage->version);
  return 1;
}

static int t_detach (lua_State *L) {
  peri_tensor *t = self(L, "detach");
  peri_tensor **out = peri__box_new(L);
  peri__check(L, "detach", peri_detach(t, out));
  return 1;
}

static int t_release (lua_State *L) {
  peri_box *box = peri__box_at(L, BIND(L), 1);
  if (!box) return peri__type_error(L, "release", 1, "self", "a tensor");
  peri__box_release(BIND(L), box);
  return 0;
}

static const char *const share_modes[] = { NULL, "read-only",
                                           "racing" }; /* ORDER peri_share_mode */

static int t_share (lua_State *L) {
  peri_tensor *t = self(L, "share");
  const char *name = lua_isnoneornil(L, 2) ? NULL : lua_tostring(L, 2);
  int mode = PERI_SHARE_DEFAULT;
  peri_shared *h;
  if (name || !lua_isnoneornil(L, 2)) {
    for (mode = PERI_SHARE_RACING; mode > 0; mode--)
      if (name && lua_type(L, 2) == LUA_TSTRING && strcmp(name, share_modes[mode]) == 0) break;
    if (mode == 0) return peri__type_error(L, "share", 2, "mode", "\"read-only\" or \"racing\"");
  }
  peri__check(L, "share", peri_share(t, (peri_share_mode)mode, &h));
  peri_shared_release(h); /* the memory stays what it was made */
  lua_settop(L, 1);
  return 1;
}

static int t_requires_grad (lua_State *L) {
  peri_tensor *t = self(L, "requires_grad_");
  bool on = lua_isnoneornil(L, 2) || lua_toboolean(L, 2);
  peri__check(L, "requires_grad_", peri_set_requires_grad(t, on));
  lua_settop(L, 1);
  return 1;
}

static int t_zero_grad (lua_State *L) {
  peri__check(L, "zero_grad", peri_set_grad(self(L, "zero_grad"), NULL));
  lua_settop(L, 1);
  return 1;
}

/* ---- fields ---- */

static void push_transposed (lua_State *L, peri_tensor *t) {
  const peri_op *permute = peri_op_find("permute");
  int64_t dims[PERI_MAX_DIMS];
  for (int i = 0; i < t->ndim; i++) dims[i] = t->ndim - 1 - i;
  peri_attr attr = { .v = dims, .n = t->ndim };
  peri_tensor **out = peri__box_new(L);
  if (!permute) luaL_error(L, "T: this build has no permute");
  peri__check(L, "T", peri__invoke(t->ctx, permute, 1, &t, &attr, out));
}

static const char *const fields[] = { "shape",   "ndim",   "dtype",
                                      "device",  "grad",   "requires_grad",
                                      "is_leaf", "packed", "shared",
                                      "T",       NULL };

typedef struct names {
  lua_State *L;
  int methods, i;
} names;

/* Fields, then methods in whatever order: nearest only needs to see each once. */
static const char *name_at (void *ud, int i) {
  names *n = (names *)ud;
  int nfields = (int)(sizeof fields / sizeof *fields) - 1;
  if (i < nfields) return fields[i];
  if (i == nfields) lua_pushnil(n->L);
  if (!lua_next(n->L, n->methods)) return NULL;
  lua_pop(n->L, 1);
  return lua_tostring(n->L, -1);
}

static int no_field (lua_State *L) {
  if (lua_type(L, 2) == LUA_TNUMBER)
    return luaL_error(L,
                      "a tensor is not indexed by [%s]: use x:at(...) or x:select(dim, position)",
                      luaL_tolstring(L, 2, NULL));
  if (lua_type(L, 2) != LUA_TSTRING)
    return luaL_error(L, "a tensor is not indexed by a %s", luaL_typename(L, 2));
  lua_pushvalue(L, lua_upvalueindex(2));
  names n = { .L = L, .methods = lua_gettop(L) };
  const char *word = lua_tostring(L, 2), *near = peri__nearest(word, name_at, &n);
  return luaL_error(L,
                    near ? "a tensor has no field or method '%s'; the nearest is '%s'"
                         : "a tensor has no field or method '%s'",
                    word, near);
}

/* __index; upvalues: bind, methods. */
static int t_index (lua_State *L) {
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL) return 1;
  peri_box *box = peri__box_at(L, BIND(L), 1);
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  int f = 0;
  while (fields[f] && strcmp(fields[f], key) != 0) f++;
  if (!box || !fields[f]) return no_field(L);
  peri_tensor *t = box->t;
  if (!t) return luaL_error(L, "%s: tensor was released by its scope", key);
  switch (f) { /* ORDER fields */
  case 0: peri__push_shape(L, t->ndim, t->shape); break;
  case 1: lua_pushinteger(L, t->ndim); break;
  case 2: lua_pushstring(L, peri_dtype_name(peri_dtype_of(t))); break;
  case 3: lua_pushliteral(L, "cpu"); break;
  case 4:
    if (t->grad)
      peri__box_share(L, t->grad);
    else
      lua_pushnil(L);
    break;
  case 5: lua_pushboolean(L, peri_requires_grad(t)); break;
  case 6: lua_pushboolean(L, peri_is_leaf(t)); break;
  case 7: lua_pushboolean(L, t->storage->packed); break;
  case 8: lua_pushstring(L, share_modes[peri_sharing(t)]); break;
  default: push_transposed(L, t);
  }
  return 1;
}

static int t_newindex (lua_State *L) {
  peri_tensor *t = self(L, "tensor");
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  if (strcmp(key, "grad") == 0) {
    peri_tensor *g = lua_isnil(L, 3) ? NULL : peri__want_tensor(L, 3, "grad", "value");
    peri__check(L, "grad", peri_set_grad(t, g));
  } else if (strcmp(key, "requires_grad") == 0)
    peri__check(L, "requires_grad", peri_set_requires_grad(t, lua_toboolean(L, 3)));
  else
    return luaL_error(L, "only grad and requires_grad of a tensor can be assigned, not '%s'",
                      luaL_tolstring(L, 2, NULL));
  return 0;
}

static int t_gc (lua_State *L) {
  peri_bind *b = BIND(L);
  peri_box *box = peri__box_at(L, b, 1);
  if (box) peri__box_release(b, box);
  if (b->dead && b->ctx) peri__custom_sweep(L, b);
  return 0;
}

static int is_tensor (lua_State *L) {
  lua_pushboolean(L, lua_gettop(L) > 0 && peri__is_tensor(L, 1));
  return 1;
}

static const peri_reg meta[] = { { "__gc", NULL, NULL, t_gc },
                                 { "__close", NULL, NULL, t_gc },
                                 { "__len", NULL, NULL, t_len },
                                 { "__newindex", NULL, NULL, t_newindex },
                                 { "__tostring", NULL, NULL, peri__tostring },
                                 { NULL, NULL, NULL, NULL } };

static const peri_reg methods[] = {
  { "item", "", "The only element as a number or boolean.", t_item },
  { "at", "i, ...",
    "With a position for each dim, counted from 1, that element; with fewer a view.", t_at },
  { "set", "i, ..., value", "Write one element, positions counted from 1; returns the tensor.",
    t_set },
  { "numel", "", "The number of elements.", t_numel },
  { "size", "dim?", "The size of one dim, or the shape.", t_size },
  { "bytes", "", "The elements in row-major order as a string, in the machine's byte order.",
    t_bytes },
  { "data_ptr", "", "Address of the first element, a light userdata.", t_data_ptr },
  { "version", "",
    "How often the tensor's memory was written in place: equal numbers, equal values.", t_version },
  { "detach", "", "The same memory outside every graph.", t_detach },
  { "share", "mode?",
    "Let other states see the memory: \"read-only\", for this one too (default), or \"racing\"; "
    "returns it.",
    t_share },
  { "release", "", "Let go of the memory now; the tensor cannot be used afterwards.", t_release },
  { "requires_grad_", "on?",
    "Say whether this leaf collects a gradient (default true); returns it.", t_requires_grad },
  { "zero_grad", "", "Drop the collected gradient; returns the tensor.", t_zero_grad },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg functions[] = {
  { "is_tensor", "value", "Whether value is a tensor.", is_tensor }, { NULL, NULL, NULL, NULL }
};

const peri_reg *const peri__tensor_functions = functions, *const peri__tensor_methods = methods;

void peri__open_tensor (lua_State *L) {
  int module = lua_gettop(L);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_tensor);
  peri__register(L, meta);
  lua_pushliteral(L, "tensor");
  lua_setfield(L, -2, "__name");
  lua_pushliteral(L, "perilune.tensor");
  lua_setfield(L, -2, "__metatable");
  lua_pushlightuserdata(L, peri__bind(L));
  lua_newtable(L);
  lua_pushvalue(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &peri__key_methods);
  peri__register(L, methods);
  lua_pushcclosure(L, t_index, 2);
  lua_setfield(L, -2, "__index");
  lua_settop(L, module);
  peri__register(L, functions);
}
