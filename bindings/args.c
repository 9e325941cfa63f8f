/*
** args.c - Lua arguments as parameters of an op: by position, by name in a last table, lists from
** tables. Checking may raise and comes first; taking never raises and never runs Lua code.
*/
#include <math.h>
#include <string.h>

#include "args.h"

static const char *kind_text (peri_kind k) {
  switch (k) { /* ORDER kind */
  case PERI_K_TENSOR:
  case PERI_K_OPTIONAL: return "a tensor";
  case PERI_K_TENSORS: return "a list of tensors";
  case PERI_K_INT:
  case PERI_K_DIM:
  case PERI_K_POS: return "an integer";
  case PERI_K_NUM: return "a number";
  case PERI_K_BOOL: return "a boolean";
  case PERI_K_STR: return "a string";
  case PERI_K_DTYPE: return "the name of a dtype";
  default: return "an integer or a list of integers";
  }
}

static bool is_list (peri_kind k) {
  return k == PERI_K_TENSORS || k == PERI_K_DIMS || k == PERI_K_SHAPE || k == PERI_K_INTS;
}

static const char *param_name (void *ud, int i) {
  const peri_sig *sig = (const peri_sig *)ud;
  return i < sig->n ? sig->p[i].name : NULL;
}

/* ---- names ---- */

static int find_param (lua_State *L, const peri__op_binding *o, const char *name) {
  for (int i = 0; i < o->sig->n; i++)
    if (strcmp(o->sig->p[i].name, name) == 0) return i + 1;
  const char *near = peri__nearest(name, param_name, (void *)o->sig);
  if (near)
    return luaL_error(L, "%s: no parameter is called '%s'; the nearest is '%s'", o->op->name, name,
                      near);
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  for (int i = 0; i < o->sig->n; i++) {
    luaL_addstring(&b, i > 0 ? ", " : "");
    luaL_addstring(&b, o->sig->p[i].name);
  }
  luaL_pushresult(&b);
  return luaL_error(L, "%s: no parameter is called '%s'; there are %s", o->op->name, name,
                    lua_tostring(L, -1));
}

/* What a call such as randn(2, 3) or cat(a, b) wants to hear: its list goes into one table. */
static const char *list_hint (lua_State *L, const peri__op_binding *o, int arg) {
  if (arg < 2 || arg - 1 > o->sig->n || !is_list(o->sig->p[arg - 2].kind)) return "";
  if (o->sig->p[arg - 2].kind == PERI_K_TENSORS)
    return peri__box_at(L, o->b, arg - 1) && peri__box_at(L, o->b, arg)
               ? "; several tensors go into one table: {a, b}"
               : "";
  return lua_type(L, arg - 1) == LUA_TNUMBER && lua_type(L, arg) == LUA_TNUMBER
             ? "; several numbers go into one table: {2, 3}"
             : "";
}

static int wrong_type (lua_State *L, const peri__op_binding *o, int arg) {
  const peri_param *p = &o->sig->p[arg - 1];
  const char *hint = list_hint(L, o, arg);
  if (!*hint) return peri__type_error(L, o->op->name, arg, p->name, kind_text(p->kind));
  return luaL_error(L, "%s: argument %d (%s) must be %s, got %s%s", o->op->name, arg, p->name,
                    kind_text(p->kind), lua_type(L, arg) == LUA_TNUMBER ? "number" : "tensor",
                    hint);
}

static bool has_string_key (lua_State *L, int idx) {
  lua_pushnil(L);
  while (lua_next(L, idx)) {
    bool named = lua_type(L, -2) == LUA_TSTRING;
    lua_pop(L, 1);
    if (named) {
      lua_pop(L, 1);
      return true;
    }
  }
  return false;
}

/* The last argument is a table with names: spread its values over the positions. */
static void spread_names (lua_State *L, const peri__op_binding *o, int last) {
  int n = o->sig->n, t = n + 1;
  bool list = last <= n && is_list(o->sig->p[last - 1].kind) && lua_rawlen(L, last) > 0;
  if (last <= n) {
    lua_settop(L, n);
    lua_pushvalue(L, last);
  }
  if (last <= n && !list) {
    lua_pushnil(L);
    lua_replace(L, last);
  }
  lua_pushnil(L);
  while (lua_next(L, t)) {
    if (lua_type(L, -2) == LUA_TSTRING) {
      int at = find_param(L, o, lua_tostring(L, -2));
      if (!lua_isnil(L, at))
        luaL_error(L, "%s: argument %d (%s) is given twice, by position and by name", o->op->name,
                   at, o->sig->p[at - 1].name);
      lua_replace(L, at);
    } else if (list)
      lua_pop(L, 1);
    else
      luaL_error(L, "%s: a last table gives arguments by name, but it has a list part",
                 o->op->name);
  }
}

/* ---- checking ---- */

static void check_integer (lua_State *L, const peri__op_binding *o, int arg, int idx) {
  int ok;
  const peri_param *p = &o->sig->p[arg - 1];
  lua_Integer v = lua_tointegerx(L, idx, &ok);
  if (lua_type(L, idx) != LUA_TNUMBER || !ok) {
    if (lua_type(L, idx) == LUA_TNUMBER)
      luaL_error(L, "%s: argument %d (%s): %f is not an integer", o->op->name, arg, p->name,
                 isnan(lua_tonumber(L, idx)) ? (double)NAN : lua_tonumber(L, idx));
    if (idx == arg) wrong_type(L, o, arg);
    luaL_error(L, "%s: argument %d (%s) must be %s, got %s", o->op->name, arg, p->name,
               kind_text(p->kind), luaL_typename(L, idx));
  }
  if (v == 0 && (p->kind == PERI_K_DIM || p->kind == PERI_K_DIMS || p->kind == PERI_K_POS))
    luaL_error(L, "%s: argument %d (%s): 0 is no %s, they count from 1, or from -1 at the end",
               o->op->name, arg, p->name, p->kind == PERI_K_POS ? "position" : "dim");
}

static void check_tensor (lua_State *L, const peri__op_binding *o, int arg, int idx) {
  peri_box *box = peri__box_at(L, o->b, idx);
  const char *name = o->sig->p[arg - 1].name;
  if (box && box->t) return;
  if (box)
    luaL_error(L, "%s: argument %d (%s): tensor was released by its scope", o->op->name, arg, name);
  if (idx == arg) peri__type_error(L, o->op->name, arg, name, "a tensor");
  luaL_error(L, "%s: argument %d (%s) must hold tensors, it has a %s", o->op->name, arg, name,
             luaL_typename(L, idx));
}

static void check_list (lua_State *L, peri__args *a, int arg) {
  const peri__op_binding *o = a->o;
  const peri_param *p = &o->sig->p[arg - 1];
  int n = 1;
  if (lua_type(L, arg) == LUA_TTABLE) {
    n = (int)lua_rawlen(L, arg);
    if (n == 0 && p->kind == PERI_K_TENSORS && has_string_key(L, arg))
      luaL_error(
          L,
          "%s: argument %d (%s) must be a list of tensors, got a table with names; a module's "
          "are net:parameters()",
          o->op->name, arg, p->name);
    for (int i = 1; i <= n; i++) {
      lua_rawgeti(L, arg, i);
      if (p->kind == PERI_K_TENSORS)
        check_tensor(L, o, arg, lua_gettop(L));
      else
        check_integer(L, o, arg, lua_gettop(L));
      lua_pop(L, 1);
    }
  } else if (p->kind == PERI_K_TENSORS)
    check_tensor(L, o, arg, arg);
  else {
    if (lua_type(L, arg) != LUA_TNUMBER)
      peri__type_error(L, o->op->name, arg, p->name, kind_text(p->kind));
    check_integer(L, o, arg, arg);
  }
  if (p->kind != PERI_K_TENSORS)
    a->nints += n;
  else if (n > 0) {
    if (a->each > 0 && a->each != n)
      luaL_error(L, "%s: argument %d (%s) lists %d tensors, another list has %d", o->op->name, arg,
                 p->name, n, a->each);
    a->each = n;
  }
}

static void check_param (lua_State *L, peri__args *a, int arg) {
  const peri__op_binding *o = a->o;
  const peri_param *p = &o->sig->p[arg - 1];
  int type = lua_type(L, arg);
  peri_dtype d;
  if (type == LUA_TNIL) {
    if (p->has_default || p->kind == PERI_K_OPTIONAL) return;
    peri__type_error(L, o->op->name, arg, p->name, kind_text(p->kind));
  }
  if (is_list(p->kind)) {
    check_list(L, a, arg);
    return;
  }
  bool ok = true;
  switch (p->kind) {
  case PERI_K_TENSOR:
  case PERI_K_OPTIONAL:
    if (type != LUA_TNUMBER) check_tensor(L, o, arg, arg);
    break;
  case PERI_K_INT:
  case PERI_K_DIM:
  case PERI_K_POS: check_integer(L, o, arg, arg); break;
  case PERI_K_NUM: ok = type == LUA_TNUMBER; break;
  case PERI_K_BOOL: ok = type == LUA_TBOOLEAN; break;
  case PERI_K_STR: ok = type == LUA_TSTRING; break;
  default:
    ok = type == LUA_TSTRING;
    if (ok && !peri_dtype_parse(lua_tostring(L, arg), &d))
      luaL_error(
          L,
          "%s: argument %d (%s): no dtype is called '%s'; there are bool, u8, i32, i64, f16, "
          "bf16, f32, f64",
          o->op->name, arg, p->name, lua_tostring(L, arg));
  }
  if (!ok) wrong_type(L, o, arg);
}

void peri__args_check (lua_State *L, const peri__op_binding *o, peri__args *a) {
  const peri_sig *sig = o->sig;
  int top = lua_gettop(L);
  luaL_checkstack(L, sig->n + PERI_MAX_OUT + 8, NULL);
  while (top > sig->n && lua_isnil(L, top)) lua_settop(L, --top);
  a->o = o;
  a->each = a->nints = a->nnumber = 0;
  if (top > 0 && top <= sig->n + 1 && lua_type(L, top) == LUA_TTABLE) {
    bool list = top <= sig->n && is_list(sig->p[top - 1].kind);
    if (has_string_key(L, top) || (!list && lua_rawlen(L, top) == 0)) {
      spread_names(L, o, top);
      top = sig->n;
    }
  }
  if (top > sig->n)
    luaL_error(L, "%s: takes at most %d argument%s, got %d%s", o->op->name, sig->n,
               sig->n == 1 ? "" : "s", top, list_hint(L, o, sig->n + 1));
  lua_settop(L, sig->n);
  for (int i = 1; i <= sig->n; i++) check_param(L, a, i);
  a->nin = sig->ntensor - sig->nlist + sig->nlist * a->each;
}

/* ---- taking ---- */

static peri_tensor *take_tensor (lua_State *L, int idx) {
  peri_box *box = (peri_box *)lua_touserdata(L, idx);
  return box ? box->t : NULL;
}

static int64_t from_one (peri_kind k, lua_Integer v) {
  bool one = k == PERI_K_DIM || k == PERI_K_DIMS || k == PERI_K_POS;
  return one && v > 0 ? v - 1 : v;
}

static int take_tensors (lua_State *L, peri__args *a, int arg, int at) {
  int n = lua_type(L, arg) == LUA_TTABLE ? (int)lua_rawlen(L, arg) : !lua_isnil(L, arg);
  for (int i = 0; i < a->each; i++) {
    a->in[at + i] = NULL;
    if (n == 0) continue; /* an empty list among others */
    if (lua_type(L, arg) == LUA_TTABLE) {
      lua_rawgeti(L, arg, i + 1);
      a->in[at + i] = take_tensor(L, -1);
      lua_pop(L, 1);
    } else
      a->in[at + i] = take_tensor(L, arg);
  }
  return at + a->each;
}

static int64_t *take_ints (lua_State *L, peri_kind k, int arg, int64_t *v, peri_attr *attr) {
  attr->v = v;
  if (lua_type(L, arg) == LUA_TTABLE) {
    attr->n = (int)lua_rawlen(L, arg);
    for (int i = 1; i <= attr->n; i++) {
      lua_rawgeti(L, arg, i);
      *v++ = from_one(k, lua_tointeger(L, -1));
      lua_pop(L, 1);
    }
  } else {
    attr->n = 1;
    *v++ = from_one(k, lua_tointeger(L, arg));
  }
  return v;
}

static int64_t *take_attr (lua_State *L, const peri_param *p, int arg, int64_t *ints,
                           peri_attr *attr) {
  if (lua_isnil(L, arg)) {
    *attr = p->def;
    return ints;
  }
  memset(attr, 0, sizeof *attr);
  switch (p->kind) {
  case PERI_K_INT:
  case PERI_K_DIM:
  case PERI_K_POS: attr->i = from_one(p->kind, lua_tointeger(L, arg)); break;
  case PERI_K_NUM:
    attr->f = lua_tonumber(L, arg);
    attr->whole = lua_isinteger(L, arg);
    if (attr->whole) attr->i = lua_tointeger(L, arg);
    break;
  case PERI_K_BOOL: attr->i = lua_toboolean(L, arg); break;
  case PERI_K_STR: attr->s = lua_tostring(L, arg); break;
  case PERI_K_DTYPE: {
    peri_dtype d = PERI_F32;
    peri_dtype_parse(lua_tostring(L, arg), &d);
    attr->i = d;
    break;
  }
  default: return take_ints(L, p->kind, arg, ints, attr);
  }
  return ints;
}

/* Plain numbers take the category of the tensors beside them: a float joins floats directly. */
static peri_status take_numbers (lua_State *L, peri__args *a) {
  const peri_sig *sig = a->o->sig;
  bool floats = false;
  for (int i = 0; i < a->nin && !floats; i++) floats = a->in[i] && peri__is_float(a->in[i]->dtype);
  for (int k = 0; k < a->nnumber; k++) {
    int arg = a->number[k].arg;
    bool integer = !floats && lua_isinteger(L, arg);
    peri_status s = peri__number(a->o->b, integer, lua_tointeger(L, arg), lua_tonumber(L, arg),
                                 (a->o->op->flags & PERI_OP_ELEMENTWISE) != 0 && sig->ntensor > 1,
                                 &a->in[a->number[k].at]);
    if (s != PERI_OK) {
      a->nnumber = k;
      peri__args_drop(a);
      return s;
    }
  }
  return PERI_OK;
}

peri_status peri__args_take (lua_State *L, peri__args *a) {
  const peri_sig *sig = a->o->sig;
  int64_t *ints = a->ints;
  int at = 0;
  a->nnumber = 0;
  for (int i = 0; i < sig->n; i++) {
    const peri_param *p = &sig->p[i];
    if (i >= sig->ntensor)
      ints = take_attr(L, p, i + 1, ints, &a->attr[i - sig->ntensor]);
    else if (p->kind == PERI_K_TENSORS)
      at = take_tensors(L, a, i + 1, at);
    else {
      a->in[at] = NULL;
      if (lua_type(L, i + 1) == LUA_TNUMBER) {
        a->number[a->nnumber].arg = i + 1;
        a->number[a->nnumber++].at = at;
      } else
        a->in[at] = take_tensor(L, i + 1);
      at++;
    }
  }
  return a->nnumber ? take_numbers(L, a) : PERI_OK;
}

void peri__args_drop (peri__args *a) {
  for (int k = 0; k < a->nnumber; k++) peri_release(a->in[a->number[k].at]);
  a->nnumber = 0;
}

/* ---- for functions that are no ops ---- */

int peri__want_shape (lua_State *L, int arg, const char *fn, const char *name, int64_t *shape) {
  int n = 1, ok = 1;
  if (lua_type(L, arg) == LUA_TNUMBER)
    shape[0] = lua_tointegerx(L, arg, &ok);
  else if (lua_type(L, arg) == LUA_TTABLE) {
    n = (int)lua_rawlen(L, arg);
    if (n > PERI_MAX_DIMS)
      luaL_error(L, "%s: %d dims, at most %d are supported", fn, n, PERI_MAX_DIMS);
    for (int i = 0; i < n && ok; i++) {
      ok = lua_rawgeti(L, arg, i + 1) == LUA_TNUMBER;
      if (ok) shape[i] = lua_tointegerx(L, -1, &ok);
      lua_pop(L, 1);
    }
  } else
    peri__type_error(L, fn, arg, name, "an integer or a list of integers");
  if (!ok) luaL_error(L, "%s: argument %d (%s) must hold integers", fn, arg, name);
  return n;
}

peri_dtype peri__want_dtype_arg (lua_State *L, int arg, const char *fn, const char *name) {
  peri_dtype d = PERI_F32;
  if (lua_type(L, arg) != LUA_TSTRING) peri__type_error(L, fn, arg, name, "the name of a dtype");
  if (!peri_dtype_parse(lua_tostring(L, arg), &d))
    luaL_error(
        L,
        "%s: argument %d (%s): no dtype is called '%s'; there are bool, u8, i32, i64, f16, bf16, "
        "f32, f64",
        fn, arg, name, lua_tostring(L, arg));
  return d;
}

/* Shapes are plain tables but for these two: print shows them, and == compares sizes. */
static int shape_tostring (lua_State *L) {
  luaL_Buffer b;
  int n = (int)lua_rawlen(L, 1);
  luaL_checktype(L, 1, LUA_TTABLE);
  luaL_buffinit(L, &b);
  luaL_addchar(&b, '(');
  for (int i = 1; i <= n; i++) {
    if (i > 1) luaL_addstring(&b, ", ");
    lua_rawgeti(L, 1, i);
    luaL_tolstring(L, -1, NULL);
    lua_remove(L, -2);
    luaL_addvalue(&b);
  }
  luaL_addchar(&b, ')');
  luaL_pushresult(&b);
  return 1;
}

static int shape_eq (lua_State *L) {
  lua_Unsigned n = lua_rawlen(L, 1);
  bool same = lua_istable(L, 1) && lua_istable(L, 2) && lua_rawlen(L, 2) == n;
  for (lua_Unsigned i = 1; same && i <= n; i++) {
    lua_rawgeti(L, 1, (lua_Integer)i);
    lua_rawgeti(L, 2, (lua_Integer)i);
    same = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
  }
  lua_pushboolean(L, same);
  return 1;
}

void peri__push_shape (lua_State *L, int ndim, const int64_t *shape) {
  static const luaL_Reg meta[] = { { "__tostring", shape_tostring },
                                   { "__eq", shape_eq },
                                   { NULL, NULL } };
  lua_createtable(L, ndim, 0);
  for (int i = 0; i < ndim; i++) {
    lua_pushinteger(L, shape[i]);
    lua_rawseti(L, -2, i + 1);
  }
  if (luaL_getmetatable(L, "perilune.shape") != LUA_TTABLE) {
    lua_pop(L, 1);
    luaL_newlib(L, meta);
    lua_pushliteral(L, "perilune.shape");
    lua_setfield(L, -2, "__name");
    lua_pushvalue(L, -1); /* when it is whole */
    lua_setfield(L, LUA_REGISTRYINDEX, "perilune.shape");
  }
  lua_setmetatable(L, -2);
}

void peri__push_shape_text (lua_State *L, int ndim, const int64_t *shape) {
  char text[24 * PERI_MAX_DIMS];
  lua_pushstring(L, peri__sizes_text(ndim, shape, text, sizeof text));
}
