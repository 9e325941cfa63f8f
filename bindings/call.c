/*
** call.c - every op as a Lua function: one closure for all, with short ways for ops of one or two
** tensors and no attributes given. Results are boxes pushed before anything is computed.
*/
#include <string.h>

#include "args.h"

#define BINDING(L) ((const peri__op_binding *)lua_touserdata((L), lua_upvalueindex(1)))
#define MT lua_upvalueindex(2)

/* A number among the arguments that cannot become a tensor: the op has not seen it. */
static peri_status not_taken (const peri__op_binding *o, const char *twin, peri_status s) {
  return peri__fail(o->b->ctx, s, "%s%s: %s", o->op->name, twin, o->b->ctx->message);
}

static int failed (lua_State *L, const peri__op_binding *o) {
  return luaL_error(L, "%s", o->b->ctx->scripted);
}

static void charge (lua_State *L, peri_bind *b) {
  if (peri__held(b->ctx) > b->collect_at) peri__charge_slow(L, b);
}

/* Buffers for long lists are userdata: an error later frees them. */
static void make_room (lua_State *L, peri__args *a, peri_tensor **few_in, int64_t *few_ints) {
  a->in = a->nin <= PERI_ARGS_FEW
              ? few_in
              : (peri_tensor **)lua_newuserdatauv(L, (size_t)a->nin * sizeof *a->in, 0);
  a->ints = a->nints <= PERI_ARGS_FEW
                ? few_ints
                : (int64_t *)lua_newuserdatauv(L, (size_t)a->nints * sizeof *a->ints, 0);
}

bool peri__intercept_push (lua_State *L) {
  luaL_checkstack(L, 4, NULL);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_intercept);
  lua_pushthread(L);
  bool found = lua_rawget(L, -2) == LUA_TFUNCTION;
  lua_remove(L, -2);
  if (!found) lua_pop(L, 1);
  return found;
}

/* per_sample_grad: the Lua function on top takes the place of the op. */
static int intercepted (lua_State *L, const peri__op_binding *o) {
  int n = lua_gettop(L) - 1;
  lua_insert(L, 1);
  lua_pushstring(L, o->op->name);
  lua_insert(L, 2);
  lua_call(L, n + 1, 1);
  return 1;
}

static int call_general (lua_State *L) {
  const peri__op_binding *o = BINDING(L);
  peri_tensor *few_in[PERI_ARGS_FEW], *out[PERI_MAX_OUT] = { NULL };
  int64_t few_ints[PERI_ARGS_FEW];
  peri_box *box[PERI_MAX_OUT];
  peri__args a; /* 1.2 KB, of which the checks and what is taken fill what there is */
  peri_status s;
  int tries = 0;
  if (o->hooked && o->b->intercepted && peri__intercept_push(L)) return intercepted(L, o);
  peri__args_check(L, o, &a);
  int base = lua_gettop(L);
  for (int k = 0; k < o->nret; k++) box[k] = peri__box_push(L, o->b, MT);
  make_room(L, &a, few_in, few_ints);
  do {
    peri__here(L, o->b);
    s = peri__args_take(L, &a);
    s = s == PERI_OK ? peri_apply(o->b->ctx, o->op, a.nin, a.in, o->nattr, a.attr, o->nret, out)
                     : not_taken(o, "", s);
    peri__args_drop(&a);
  } while (peri__retry(L, s, &tries));
  if (s != PERI_OK) return failed(L, o);
  for (int k = 0; k < o->nret; k++) box[k]->t = out[k];
  lua_settop(L, base + o->nret);
  charge(L, o->b);
  if (o->nret > 0) return o->nret;
  if (o->sig->ntensor == 0 || o->sig->p[0].kind == PERI_K_TENSORS) return 0;
  lua_pushvalue(L, 1); /* what an op that writes in place wrote */
  return 1;
}

static int call_unary (lua_State *L) {
  const peri__op_binding *o = BINDING(L);
  peri_box *x;
  if (lua_gettop(L) != 1 || !(x = peri__box_at(L, o->b, 1))) return call_general(L);
  peri_box *box = peri__box_push(L, o->b, MT);
  if (!x->t ||
      peri_apply(o->b->ctx, o->op, 1, &x->t, o->nattr, o->defaults, 1, &box->t) != PERI_OK) {
    lua_settop(L, 1); /* a second failure raises */
    return call_general(L);
  }
  charge(L, o->b);
  return 1;
}

/* __unm passes its operand twice. */
static int call_unm (lua_State *L) {
  lua_settop(L, 1);
  return call_unary(L);
}

static int call_binary (lua_State *L) {
  const peri__op_binding *o = BINDING(L);
  peri_bind *b = o->b;
  peri_box *x = NULL, *y = NULL;
  if (lua_gettop(L) != 2) return call_general(L);
  if (lua_type(L, 1) != LUA_TNUMBER && !(x = peri__box_at(L, b, 1))) return call_general(L);
  if (lua_type(L, 2) != LUA_TNUMBER && !(y = peri__box_at(L, b, 2))) return call_general(L);
  if (!x && !y) return call_general(L);
  peri_box *box = peri__box_push(L, b, MT);
  peri_tensor *in[2] = { x ? x->t : NULL, y ? y->t : NULL }, *number = NULL;
  bool ready = (in[0] || !x) && (in[1] || !y);
  if (ready && !(x && y)) {
    int arg = x ? 2 : 1;
    bool integer = lua_isinteger(L, arg) && !peri__is_float(in[2 - arg]->dtype);
    ready = peri__number(b, integer, lua_tointeger(L, arg), lua_tonumber(L, arg),
                         (o->op->flags & PERI_OP_ELEMENTWISE) != 0, &number) == PERI_OK;
    in[arg - 1] = number;
  }
  if (ready) ready = peri_apply(b->ctx, o->op, 2, in, o->nattr, o->defaults, 1, &box->t) == PERI_OK;
  peri_release(number);
  if (!ready) {
    lua_settop(L, 2);
    return call_general(L);
  }
  charge(L, b);
  return 1;
}

static int call_inplace (lua_State *L) {
  const peri__op_binding *o = BINDING(L);
  peri_tensor *few_in[PERI_ARGS_FEW];
  int64_t few_ints[PERI_ARGS_FEW];
  peri__args a;
  peri_status s;
  int tries = 0;
  peri__args_check(L, o, &a);
  if (lua_type(L, 1) == LUA_TNUMBER)
    luaL_error(L, "%s_: argument 1 (%s) must be a tensor, got number", o->op->name,
               o->sig->p[0].name);
  make_room(L, &a, few_in, few_ints);
  do {
    peri__here(L, o->b);
    s = peri__args_take(L, &a);
    s = s == PERI_OK ? peri_apply_inplace(o->b->ctx, o->op, a.nin, a.in, o->nattr, a.attr)
                     : not_taken(o, "_", s);
    peri__args_drop(&a);
  } while (peri__retry(L, s, &tries));
  if (s != PERI_OK) return failed(L, o);
  lua_settop(L, 1);
  return 1;
}

/* Two tensors or a tensor and a number, nothing else given. */
static int call_inplace_binary (lua_State *L) {
  const peri__op_binding *o = BINDING(L);
  peri_box *x, *y = NULL;
  if (lua_gettop(L) != 2 || !(x = peri__box_at(L, o->b, 1)) || !x->t) return call_inplace(L);
  bool number = lua_type(L, 2) == LUA_TNUMBER;
  if (!number && (!(y = peri__box_at(L, o->b, 2)) || !y->t)) return call_inplace(L);
  peri_tensor *in[2] = { x->t, y ? y->t : NULL };
  peri_status s = PERI_OK;
  peri__here(L, o->b);
  if (number) {
    bool integer = lua_isinteger(L, 2) && !peri__is_float(x->t->dtype);
    s = peri__number(o->b, integer, lua_tointeger(L, 2), lua_tonumber(L, 2), true, &in[1]);
  }
  if (s == PERI_OK) s = peri_apply_inplace(o->b->ctx, o->op, 2, in, o->nattr, o->defaults);
  if (number) peri_release(in[1]);
  if (s != PERI_OK) return call_inplace(L);
  lua_settop(L, 1);
  return 1;
}

/* ---- opening ---- */

static bool only_defaults (const peri_sig *sig) {
  for (int i = sig->ntensor; i < sig->n; i++)
    if (!sig->p[i].has_default) return false;
  return true;
}

static bool plain_tensors (const peri_sig *sig, int n) {
  if (sig->ntensor != n) return false;
  for (int i = 0; i < n; i++)
    if (sig->p[i].kind != PERI_K_TENSOR) return false;
  return only_defaults(sig);
}

static lua_CFunction choose (const peri__op_binding *o) {
  if (o->hooked || o->nret != 1) return call_general;
  if (plain_tensors(o->sig, 1)) return call_unary;
  if (plain_tensors(o->sig, 2)) return call_binary;
  return call_general;
}

static const struct {
  const char *event, *op;
} operators[] = { { "__add", "add" }, { "__sub", "sub" },       { "__mul", "mul" },
                  { "__div", "div" }, { "__idiv", "floordiv" }, { "__mod", "mod" },
                  { "__pow", "pow" }, { "__unm", "neg" } };

static void push_op (lua_State *L, peri__op_binding *o, lua_CFunction fn, int mt) {
  lua_pushlightuserdata(L, o);
  lua_pushvalue(L, mt);
  lua_pushcclosure(L, fn, 2);
}

/* Bindings and defaults of every op, in one block that the registry holds. */
static peri__op_binding *make_bindings (lua_State *L, peri_bind *b) {
  int n = peri_op_count(), nattr = 0;
  for (int i = 0; i < n; i++) {
    const peri_sig *sig = peri__sig(peri_op_at(i));
    if (sig) nattr += sig->nattr;
  }
  size_t bytes = (size_t)n * sizeof(peri__op_binding) + (size_t)nattr * sizeof(peri_attr);
  peri__op_binding *o = (peri__op_binding *)lua_newuserdatauv(L, bytes + 1, 0);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &peri__key_ops);
  peri_attr *def = (peri_attr *)(o + n);
  for (int i = 0; i < n; i++) {
    const peri_op *op = peri_op_at(i);
    o[i] = (peri__op_binding){ .b = b, .op = op, .sig = peri__sig(op), .defaults = def };
    o[i].nret = peri_op_outputs(op);
    o[i].hooked = strcmp(op->name, "linear") == 0 || strcmp(op->name, "embedding") == 0;
    if (!o[i].sig) continue;
    o[i].nattr = o[i].sig->nattr;
    for (int k = 0; k < o[i].nattr; k++) *def++ = o[i].sig->p[o[i].sig->ntensor + k].def;
  }
  return o;
}

static void set_operators (lua_State *L, peri__op_binding *o, int n, int mt) {
  for (size_t k = 0; k < sizeof operators / sizeof *operators; k++)
    for (int i = 0; i < n; i++) {
      if (strcmp(o[i].op->name, operators[k].op) != 0) continue;
      push_op(L, &o[i], strcmp(operators[k].op, "neg") == 0 ? call_unm : choose(&o[i]), mt);
      lua_setfield(L, mt, operators[k].event);
    }
}

void peri__open_call (lua_State *L) {
  peri_bind *b = peri__bind(L);
  int module = lua_gettop(L), mt = module + 1, methods = module + 2, n = peri_op_count();
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_tensor);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_methods);
  peri__op_binding *o = make_bindings(L, b);
  for (int i = 0; i < n; i++) {
    const char *name = o[i].op->name;
    if (!o[i].sig) continue; /* a signature that does not parse: the op table's test says so */
    push_op(L, &o[i], choose(&o[i]), mt);
    if (o[i].sig->ntensor > 0 && o[i].sig->p[0].kind == PERI_K_TENSOR) {
      lua_pushvalue(L, -1);
      lua_setfield(L, methods, name);
    }
    lua_setfield(L, module, name);
    if (!(o[i].op->flags & PERI_OP_ELEMENTWISE)) continue;
    lua_pushfstring(L, "%s_", name);
    push_op(L, &o[i], plain_tensors(o[i].sig, 2) ? call_inplace_binary : call_inplace, mt);
    lua_rawset(L, methods);
  }
  set_operators(L, o, n, mt);
  lua_settop(L, module);
}

const peri_op *peri__op_of (lua_State *L, int idx) {
  lua_CFunction f = lua_tocfunction(L, idx);
  if (f != call_general && f != call_unary && f != call_binary && f != call_unm &&
      f != call_inplace && f != call_inplace_binary)
    return NULL;
  lua_getupvalue(L, idx, 1);
  const peri__op_binding *o = (const peri__op_binding *)lua_touserdata(L, -1);
  lua_pop(L, 1);
  return o->op;
}
