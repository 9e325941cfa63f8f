/*
** make.c - tensors from Lua values and back: nested tables, byte strings, lists.
*/
#include <math.h>
#include <string.h>

#include "bind.h"
#include "core/element.h"
#include "op/op.h"

void peri__put_element (lua_State *L, const char *fn, int idx, peri_dtype d, void *p) {
  int type = lua_type(L, idx), ok = 1;
  double v = 0;
  lua_Integer i = 0;
  peri_tensor *one = type == LUA_TUSERDATA ? peri_lua_to(L, idx) : NULL;
  if (type == LUA_TBOOLEAN)
    v = (double)(i = lua_toboolean(L, idx));
  else if (type == LUA_TNUMBER) {
    v = lua_tonumber(L, idx);
    i = lua_tointegerx(L, idx, &ok);
  } else if (one && one->numel == 1) {
    if (peri__tracked(one) && peri_lua_ctx(L)->grad_enabled)
      luaL_error(L,
                 "%s: an element takes part in a graph, and would lose its gradient: use stack or "
                 "where, or detach",
                 fn);
    peri__check(L, fn, peri_item(one, 0, &v));
    i = one->dtype == PERI_I64                     ? *(int64_t *)one->data
        : (ok = v == floor(v) && fabs(v) < 0x1p63) ? (lua_Integer)v
                                                   : 0;
  } else
    luaL_error(L, "%s: an element must be a number or boolean, got %s", fn, luaL_typename(L, idx));
  int64_t low, top;
  if (d != PERI_BOOL && peri__element_range(d, &low, &top) && !(ok && i >= low && i <= top))
    luaL_error(L, "%s: %s does not fit into %s", fn, v != v ? "nan" : lua_pushfstring(L, "%f", v),
               peri_dtype_name(d));
  peri__element_put(d, p, (peri__value){ i, v, !peri__is_float(d) && v == v });
}

/* ---- nested tables ---- */

typedef struct maker {
  const peri_ctx *ctx;
  peri_dtype d;
  int ndim;
  int64_t shape[PERI_MAX_DIMS], at[PERI_MAX_DIMS];
  char *p;
  bool ints, floats, bools; /* which kinds of elements were seen */
} maker;

/* Shape along the first elements; the table or number is on top. */
static void measure (lua_State *L, maker *m) {
  int top = lua_gettop(L);
  m->ndim = 0;
  while (lua_type(L, -1) == LUA_TTABLE) {
    if (m->ndim == PERI_MAX_DIMS)
      luaL_error(L, "tensor: more than %d nested tables", PERI_MAX_DIMS);
    m->shape[m->ndim++] = (int64_t)lua_rawlen(L, -1);
    if (m->shape[m->ndim - 1] == 0) break;
    lua_rawgeti(L, -1, 1);
  }
  lua_settop(L, top);
}

/* "[2][1]" of the value that is being looked at. */
static const char *where (lua_State *L, const maker *m, int depth) {
  lua_pushliteral(L, "");
  for (int i = 0; i < depth; i++) {
    lua_pushfstring(L, "%s[%I]", lua_tostring(L, -1), (LUAI_UACINT)(m->at[i] + 1));
    lua_remove(L, -2);
  }
  return lua_tostring(L, -1);
}

static void note_kind (lua_State *L, maker *m) {
  peri_tensor *t;
  switch (lua_type(L, -1)) {
  case LUA_TBOOLEAN: m->bools = true; break;
  case LUA_TNUMBER:
    if (lua_isinteger(L, -1))
      m->ints = true;
    else
      m->floats = true;
    break;
  default:
    t = peri_lua_to(L, -1);
    if (!t || t->numel != 1)
      luaL_error(L, "tensor: value%s is a %s, a number or boolean is expected",
                 where(L, m, m->ndim), luaL_typename(L, -1));
    if (t->dtype == PERI_BOOL)
      m->bools = true;
    else if (peri__is_float(t->dtype))
      m->floats = true;
    else
      m->ints = true;
  }
}

/* Visit every element under the value on top; fill: store, else look at its kind. */
static void visit (lua_State *L, maker *m, int depth, bool fill) {
  if (depth == m->ndim) {
    if (lua_type(L, -1) == LUA_TTABLE)
      luaL_error(L, "tensor: value%s is a table, but the first of its dim is a number",
                 where(L, m, depth));
    if (fill) {
      peri__put_element(L, "tensor", lua_gettop(L), m->d, m->p);
      m->p += peri_dtype_size(m->d);
    } else
      note_kind(L, m);
    return;
  }
  if (lua_type(L, -1) != LUA_TTABLE)
    luaL_error(L, "tensor: value%s is a %s, but the first of its dim is a table",
               where(L, m, depth), luaL_typename(L, -1));
  int64_t n = (int64_t)lua_rawlen(L, -1);
  if (n != m->shape[depth])
    luaL_error(L, "tensor: value%s has %I elements, but the first of its dim has %I",
               depth ? where(L, m, depth) : "", (LUAI_UACINT)n, (LUAI_UACINT)m->shape[depth]);
  for (m->at[depth] = 0; m->at[depth] < n; m->at[depth]++) {
    peri__look(L, m->ctx, m->at[depth], "tensor");
    lua_rawgeti(L, -1, m->at[depth] + 1);
    visit(L, m, depth + 1, fill);
    lua_pop(L, 1);
  }
}

static int l_tensor (lua_State *L) {
  maker m = { .ctx = BIND(L)->ctx };
  peri_tensor *given = peri_lua_to(L, 1);
  luaL_checkstack(L, PERI_MAX_DIMS + 8, NULL);
  if (lua_isnoneornil(L, 1))
    return peri__type_error(L, "tensor", 1, "v", "a number or nested tables");
  bool typed = !lua_isnoneornil(L, 2);
  if (typed) m.d = peri__want_dtype_arg(L, 2, "tensor", "dtype");
  lua_settop(L, 1);
  if (given && given->numel != 1)
    return luaL_error(L, "tensor: the value is a tensor already: use :clone() or :to(dtype)");
  measure(L, &m);
  visit(L, &m, 0, false);
  if (!typed) m.d = m.floats ? PERI_F32 : m.ints ? PERI_I64 : m.bools ? PERI_BOOL : PERI_F32;
  if (!typed && m.bools && (m.ints || m.floats))
    return luaL_error(L, "tensor: booleans and numbers are mixed; give a dtype");
  peri_tensor **out = peri__box_new(L);
  peri__check(L, "tensor", peri_empty(peri_lua_ctx(L), m.d, m.ndim, m.shape, out));
  m.p = (char *)(*out)->data;
  lua_insert(L, 1); /* the box below the value, which visit wants on top */
  visit(L, &m, 0, true);
  lua_settop(L, 1);
  peri__charge(L);
  return 1;
}

static int l_from_bytes (lua_State *L) {
  int64_t shape[PERI_MAX_DIMS];
  size_t len;
  if (lua_type(L, 1) != LUA_TSTRING)
    return peri__type_error(L, "from_bytes", 1, "bytes", "a string");
  const char *text = lua_tolstring(L, 1, &len);
  peri_dtype d = peri__want_dtype_arg(L, 2, "from_bytes", "dtype");
  int ndim = peri__want_shape(L, 3, "from_bytes", "shape", shape);
  peri_tensor **out = peri__box_new(L);
  peri__check(L, "from_bytes", peri_empty(peri_lua_ctx(L), d, ndim, shape, out));
  size_t want = peri_nbytes(*out);
  if (len != want)
    return luaL_error(L, "from_bytes: %I bytes given, the shape takes %I", (LUAI_UACINT)len,
                      (LUAI_UACINT)want);
  for (size_t i = 0; d == PERI_BOOL && i < len; i++)
    if ((unsigned char)text[i] > 1)
      return luaL_error(L, "from_bytes: byte %I is %d, no bool", (LUAI_UACINT)(i + 1),
                        (unsigned char)text[i]);
  if (len) memcpy((*out)->data, text, len);
  peri__charge(L);
  return 1;
}

/* ---- lists ---- */

#define MOST_IN_LIST (1 << 28) /* 4 GiB of Lua values */

static void list (lua_State *L, const peri_tensor *t, int dim, const char *p) {
  size_t size = peri__size(t);
  if (dim == t->ndim) {
    peri__push_element(L, peri_dtype_of(t), p);
    return;
  }
  lua_createtable(L, (int)t->shape[dim], 0);
  for (int64_t i = 0; i < t->shape[dim]; i++) {
    peri__look(L, t->ctx, i, "tolist");
    list(L, t, dim + 1, t->numel > 0 ? p + i * t->stride[dim] * (int64_t)size : p);
    lua_rawseti(L, -2, i + 1);
  }
}

static int t_tolist (lua_State *L) {
  peri_tensor *t = peri__want_tensor(L, 1, "tolist", "self");
  luaL_checkstack(L, PERI_MAX_DIMS + 4, NULL);
  peri__check(L, "tolist", peri__readable(t));
  int64_t tables = 1; /* of the outer dims, which may be many although there is no element */
  for (int i = 0; i < t->ndim; i++) {
    if (t->shape[i] > MOST_IN_LIST / tables)
      return luaL_error(L, "tolist: more than %d elements or tables", MOST_IN_LIST);
    if (t->shape[i] == 0) break;
    tables *= t->shape[i];
  }
  peri_lua_push(L, t); /* held: allocating may run finalizers */
  list(L, t, 0, (const char *)t->data);
  return 1;
}

static const peri_reg functions[] = {
  { "tensor", "v, dtype?",
    "A tensor from a number, a boolean or nested tables of them; integers make i64, "
    "numbers f32, booleans bool unless a dtype is given.",
    l_tensor },
  { "from_bytes", "bytes, dtype, shape",
    "A tensor from the bytes of its elements in row-major order.", l_from_bytes },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg methods[] = {
  { "tolist", "", "The elements as nested tables; a number for 0 dims.", t_tolist },
  { NULL, NULL, NULL, NULL }
};

const peri_reg *const peri__make_functions = functions, *const peri__make_methods = methods;

void peri__open_make (lua_State *L) {
  peri__register(L, functions);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_methods);
  peri__register(L, methods);
  lua_pop(L, 1);
}
