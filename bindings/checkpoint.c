/*
** checkpoint.c - checkpoint(fn, ...): run fn, keep its results but none of its intermediates, and
** run it again in the backward pass. The first run is recorded only to learn which leaves fn uses
** besides its arguments (a module's parameters); its graph is dropped at once.
*/
#include <string.h>

#include "autograd/tape.h"
#include "custom.h"

/* The record's table: [1] fn, then its arguments, those that are tensors in boxes of their own; [0]
** the number of arguments, [-1] the versions of the tensors among them. */

enum { COUNT = 0, VERSIONS = -1, ARGUMENTS = 2 };

static peri_status barrier_vjp (void *ud, peri_ctx *ctx, int nout, peri_tensor *const *gout,
                                int nin, peri_tensor **gin) {
  (void)ud, (void)ctx, (void)nout, (void)gout, (void)nin, (void)gin;
  return PERI_OK;
}

/* Node that nobody can reach and no pass crosses: what is recorded after it is the segment. */
static peri_status barrier_new (peri_ctx *ctx, peri_tensor **out) {
  peri_status s = peri_empty(ctx, PERI_F32, 1, (int64_t[]){ 0 }, out);
  if (s == PERI_OK)
    s = peri_record_custom(ctx, "checkpoint", 0, NULL, 1, out, barrier_vjp, NULL, NULL);
  if (s == PERI_OK) (*out)->node->barrier = true;
  return s;
}

/* Push fn and copies of its n arguments from the table at t: tensors become fresh leaves. */
static void push_call (lua_State *L, peri_bind *b, int t, int n) {
  luaL_checkstack(L, n + 8, NULL);
  lua_rawgeti(L, t, 1);
  for (int i = 1; i <= n; i++) {
    lua_rawgeti(L, t, i + 1);
    peri_box *box = peri__box_at(L, b, -1);
    if (!box) continue;
    peri_tensor **copy = peri__box_new(L);
    peri__check(L, "checkpoint", peri_detach(box->t, copy));
    if (peri__tracked(box->t)) peri__check(L, "checkpoint", peri_set_requires_grad(*copy, true));
    lua_replace(L, -2);
  }
}

/* ---- which leaves does the segment use? ---- */

typedef void (*visit_fn)(void *ud, peri_tensor *t);

/* Every input of every node after the barrier, once: marked, then cleared. False: one is made by a
** node before the barrier. */
static bool each_leaf (const peri_node *barrier, visit_fn visit, void *ud) {
  bool inside = true;
  for (peri_node *n = barrier->next; n; n = n->next)
    for (int k = 0; k < n->nout; k++)
      if (n->out[k]) n->out[k]->flags |= PERI_T_SEEN;
  for (peri_node *n = barrier->next; n; n = n->next)
    for (int i = 0; i < n->nin; i++) {
      peri_tensor *t = n->in[i];
      if (!t || !peri__tracked(t) || (t->flags & PERI_T_SEEN)) continue;
      if (t->node)
        inside = false;
      else {
        t->flags |= PERI_T_SEEN;
        visit(ud, t);
      }
    }
  for (peri_node *n = barrier->next; n; n = n->next) {
    for (int k = 0; k < n->nout; k++)
      if (n->out[k]) n->out[k]->flags &= (uint8_t)~PERI_T_SEEN;
    for (int i = 0; i < n->nin; i++)
      if (n->in[i]) n->in[i]->flags &= (uint8_t)~PERI_T_SEEN;
  }
  return inside;
}

static void count_leaf (void *ud, peri_tensor *t) {
  (void)t;
  ++*(int *)ud;
}

typedef struct finder {
  lua_State *L;
  peri_bind *b;
  int first, n, table; /* arguments as fn got them: n slots from first on */
  peri_record *r;
  peri_tensor **in; /* what the tape shall hold */
  int at;
} finder;

/* A leaf is an argument's copy, which stands for the argument, or a captured one. */
static void note_leaf (void *ud, peri_tensor *t) {
  finder *f = (finder *)ud;
  f->r->in[f->at].leaf = t;
  f->in[f->at] = t;
  for (int i = 0; i < f->n; i++) {
    peri_box *box = (peri_box *)lua_touserdata(f->L, f->first + i);
    if (!box || lua_type(f->L, f->first + i) != LUA_TUSERDATA || box->t != t) continue;
    if (!peri__box_at(f->L, f->b, f->first + i)) continue;
    f->r->in[f->at].leaf = NULL;
    f->r->in[f->at].arg = i + 1;
    lua_rawgeti(f->L, f->table, i + 2);
    f->in[f->at] = ((peri_box *)lua_touserdata(f->L, -1))->t;
    lua_pop(f->L, 1);
    break;
  }
  f->at++;
}

/* ---- the backward pass ---- */

/* Push sum(out * g): its gradient is what the results together pass back. Pops nothing. */
static peri_tensor *weighted (lua_State *L, peri_ctx *ctx, peri_tensor *y, peri_tensor *g,
                              peri_tensor *sum) {
  peri_tensor *in[2] = { y, g };
  peri_tensor **product = peri__box_new(L);
  peri__check(L, "checkpoint", peri__invoke(ctx, peri_op_find("mul"), 2, in, NULL, product));
  peri_tensor **total = peri__box_new(L);
  peri__check(L, "checkpoint", peri__invoke(ctx, peri_op_find("sum"), 1, product, NULL, total));
  if (!sum) return *total;
  in[0] = sum;
  in[1] = *total;
  peri_tensor **both = peri__box_new(L);
  peri__check(L, "checkpoint", peri__invoke(ctx, peri_op_find("add"), 2, in, NULL, both));
  return *both;
}

/* Result k of the second run, whose gradient is g. */
static void check_result (lua_State *L, int k, const peri_tensor *t, const peri_tensor *g) {
  if (t->ndim == g->ndim && memcmp(t->shape, g->shape, sizeof *t->shape * t->ndim) == 0) return;
  peri__push_shape_text(L, g->ndim, g->shape);
  peri__push_shape_text(L, t->ndim, t->shape);
  luaL_error(L, "checkpoint: tensor %d that fn gave had shape %s first and has %s now", k,
             lua_tostring(L, -2), lua_tostring(L, -1));
}

/* Protected: (call, scope) with the scope's userdata below, so that the caller can close it. */
static int again (lua_State *L) {
  peri__vjp_call *c = (peri__vjp_call *)lua_touserdata(L, 1);
  peri_record *r = c->r;
  peri_tensor **barrier = peri__box_new(L);  /* 2 */
  lua_rawgeti(L, LUA_REGISTRYINDEX, r->ref); /* 3 */
  lua_rawgeti(L, 3, VERSIONS);
  peri__check_versions(L, r->b, 4,
                       "checkpoint: argument %s was changed in place after fn had it: the second "
                       "run would not be the first");
  lua_rawgeti(L, 3, COUNT);
  int n = (int)lua_tointeger(L, -1);
  lua_settop(L, 3);
  peri__check(L, "checkpoint", barrier_new(c->ctx, barrier));
  push_call(L, r->b, 3, n); /* 4: fn; arguments from 5 on */
  lua_pushvalue(L, 4);
  for (int i = 0; i < n; i++) lua_pushvalue(L, 5 + i);
  int first = 5 + n, k = 0;
  lua_call(L, n, LUA_MULTRET);
  int last = lua_gettop(L);
  peri_tensor *sum = NULL;
  luaL_checkstack(L, 3 * c->nout + r->nin + 8, NULL);
  for (int i = first; i <= last; i++) {
    peri_box *box = peri__box_at(L, r->b, i);
    if (!box) continue;
    if (k < c->nout && c->gout[k] && box->t) check_result(L, k + 1, box->t, c->gout[k]);
    if (k < c->nout && c->gout[k] && box->t && peri__tracked(box->t))
      sum = weighted(L, c->ctx, box->t, c->gout[k], sum);
    k++;
  }
  if (k != c->nout)
    return luaL_error(L, "checkpoint: fn gave %d tensors first and %d now", c->nout, k);
  if (!sum) return 0;
  peri_tensor **wrt = (peri_tensor **)lua_newuserdatauv(L, (size_t)r->nin * sizeof *wrt + 1, 0);
  for (int i = 0; i < r->nin; i++)
    wrt[i] = r->in[i].leaf ? r->in[i].leaf : ((peri_box *)lua_touserdata(L, 4 + r->in[i].arg))->t;
  for (int i = 0; i < r->nin; i++)
    if (!wrt[i]) return luaL_error(L, "checkpoint: fn released its argument %d", r->in[i].arg);
  peri__check(L, "checkpoint", peri__segment_gradients(c->v, sum, wrt, c->gin));
  return 0;
}

/* The scope of the second run ends here, whether it failed or not. */
static int vjp_body (lua_State *L) {
  peri__vjp_call *c = (peri__vjp_call *)lua_touserdata(L, 1);
  peri_scope *scope;
  peri__scope_enter(L, &scope);
  lua_pushcfunction(L, peri__traceback);
  lua_pushcfunction(L, again);
  lua_pushlightuserdata(L, c);
  int rc = lua_pcall(L, 1, 0, 3);
  peri__scope_leave(c->r->b, scope);
  return rc == LUA_OK ? 0 : lua_error(L);
}

static peri_status checkpoint_vjp (void *ud, peri_vjp *v, int nout, peri_tensor *const *gout,
                                   int nin, peri_tensor **gin) {
  peri_record *r = (peri_record *)ud;
  peri_ctx *ctx = v->b.ctx;
  peri__vjp_call call = {
    .r = r, .ctx = ctx, .v = v, .nout = nout, .nin = nin, .gout = gout, .gin = gin
  };
  if (ctx->grad_enabled) return peri__fail(ctx, PERI_ENOSUP, "checkpoint has no second derivative");
  peri_rng now = peri_rng_get(ctx);
  peri_rng_set(ctx, r->rng);
  ctx->grad_enabled = true;
  peri_status s = peri__run_vjp(&call, vjp_body);
  ctx->grad_enabled = false;
  peri_rng_set(ctx, now);
  return s;
}

/* ---- the first run ---- */

/* The record's table of fn and n arguments at 1..n+1; no scope frees the boxes in it. */
static void keep_call (lua_State *L, peri_bind *b, int n) {
  lua_createtable(L, n + 1, 1);
  for (int i = 1; i <= n + 1; i++) {
    peri_box *box = peri__box_at(L, b, i);
    if (box && !box->t)
      luaL_error(L, "checkpoint: argument %d: tensor was released by its scope", i);
    if (box)
      peri_lua_push(L, box->t);
    else
      lua_pushvalue(L, i);
    lua_rawseti(L, -2, i);
  }
  lua_pushinteger(L, n);
  lua_rawseti(L, -2, COUNT);
  peri__push_versions(L, b, -1, ARGUMENTS);
  lua_rawseti(L, -2, VERSIONS);
}

/* A result that fn did not make, an argument or a parameter as it is, becomes a view that it made:
** so the segment leads from every result to what it depends on. */
static void make_results (lua_State *L, peri_bind *b, int first, int last) {
  const peri_op *expand = peri_op_find("expand");
  luaL_checkstack(L, 8, NULL);
  for (int i = first; i <= last; i++) {
    peri_box *box = peri__box_at(L, b, i);
    if (!box || !box->t || !peri__tracked(box->t)) continue;
    peri_attr shape = { .v = box->t->shape, .n = box->t->ndim };
    peri_tensor **view = peri__box_new(L);
    peri__check(L, "checkpoint", peri__invoke(b->ctx, expand, 1, &box->t, &shape, view));
    lua_replace(L, i);
  }
}

/* Views of the results from first to last, in the scope outside; the number of tensors. */
static int detach_results (lua_State *L, peri_bind *b, peri_scope *outer, int first, int last) {
  int nout = 0;
  luaL_checkstack(L, 8, NULL);
  for (int i = first; i <= last; i++) {
    peri_box *box = peri__box_at(L, b, i);
    if (!box) continue;
    if (!box->t) luaL_error(L, "checkpoint: result %d was released by a scope", i - first + 1);
    peri_tensor **view = peri__box_new(L);
    peri__check(L, "checkpoint", peri_detach(box->t, view));
    peri__scope_lift(outer, (peri_box *)view);
    lua_replace(L, i);
    nout++;
  }
  return nout;
}

/* (fn, ...) under a scope; upvalues: bind, light scope, n. Gives fn's results, recorded. */
static int first_run (lua_State *L) {
  peri_bind *b = BIND(L);
  peri_scope *scope = (peri_scope *)lua_touserdata(L, lua_upvalueindex(2));
  int n = lua_gettop(L) - 1, table = n + 2, nleaf = 0;
  luaL_checkstack(L, 3 * n + 16, NULL);
  keep_call(L, b, n);
  peri_tensor **barrier = peri__box_new(L); /* n + 3 */
  peri__check(L, "checkpoint", barrier_new(b->ctx, barrier));
  peri_rng rng = peri_rng_get(b->ctx);
  push_call(L, b, table, n); /* fn at n + 4 */
  int args = n + 5, first = args + n;
  lua_pushvalue(L, n + 4);
  for (int i = 0; i < n; i++) lua_pushvalue(L, args + i);
  lua_call(L, n, LUA_MULTRET);
  int last = lua_gettop(L);
  lua_rawgeti(L, table, VERSIONS);
  peri__check_versions(L, b, last + 1,
                       "checkpoint: fn writes into its argument %s, which its second run would "
                       "find changed: write into a clone");
  lua_settop(L, last);
  make_results(L, b, first, last);
  lua_createtable(L, last - first + 1, 0); /* the results hold the segment until it has been read */
  for (int i = first; i <= last; i++) {
    lua_pushvalue(L, i);
    lua_rawseti(L, -2, i - first + 1);
  }
  int nout = detach_results(L, b, scope->outer, first, last);
  if (nout > PERI_CUSTOM_ARGS)
    return luaL_error(L, "checkpoint: more than %d tensors returned", PERI_CUSTOM_ARGS);
  if (!each_leaf((*barrier)->node, count_leaf, &nleaf))
    return luaL_error(
        L, "checkpoint: fn uses a tensor that was computed outside: pass it as an argument");
  if (nleaf == 0 || nout == 0) {
    lua_settop(L, last);
    return last - first + 1;
  }
  peri_tensor *out[PERI_CUSTOM_ARGS];
  peri_tensor **in = (peri_tensor **)lua_newuserdatauv(L, (size_t)nleaf * sizeof *in, 0);
  lua_pushvalue(L, table);
  int ref = luaL_ref(L, LUA_REGISTRYINDEX);
  peri_record *r = peri__record_new(b, nleaf, "checkpoint");
  peri_status s = r ? PERI_OK : PERI_ENOMEM;
  if (r) { /* nothing here raises or frees a node */
    finder f = { .L = L, .b = b, .first = args, .n = n, .table = table, .r = r, .in = in };
    r->ref = ref;
    r->rng = rng;
    each_leaf((*barrier)->node, note_leaf, &f);
    r->nin = f.at; /* what no result depends on may have been collected since it was counted */
    nout = 0;
    for (int i = first; i <= last; i++) {
      peri_box *box = peri__box_at(L, b, i);
      if (box) out[nout++] = box->t;
    }
    s = peri__record_segment(b->ctx, "checkpoint", f.at, in, nout, out, checkpoint_vjp,
                             peri__record_release, r);
    if (s != PERI_OK) peri__record_free(r);
  }
  if (s != PERI_OK) luaL_unref(L, LUA_REGISTRYINDEX, ref);
  peri__check(L, "checkpoint", s);
  lua_settop(L, last);
  return last - first + 1;
}

static int l_checkpoint (lua_State *L) {
  peri_bind *b = BIND(L);
  int n = lua_gettop(L);
  if (lua_type(L, 1) != LUA_TFUNCTION && !luaL_getmetafield(L, 1, "__call"))
    return peri__type_error(L, "checkpoint", 1, "fn", "a function");
  lua_settop(L, n);
  peri__custom_sweep(L, b);
  peri__here(L, b);
  if (!b->ctx->grad_enabled) {
    lua_call(L, n - 1, LUA_MULTRET);
    return lua_gettop(L);
  }
  peri_scope *scope;
  luaL_checkstack(L, 6, NULL);
  peri__scope_enter(L, &scope);
  lua_insert(L, 1);
  lua_toclose(L, 1);
  lua_pushlightuserdata(L, b);
  lua_pushlightuserdata(L, scope);
  lua_pushcclosure(L, first_run, 2);
  lua_insert(L, 2);
  lua_call(L, n, LUA_MULTRET);
  return lua_gettop(L) - 1;
}

static const peri_reg functions[] = {
  { "checkpoint", "fn, ...",
    "fn(...) without keeping its intermediates: the backward pass runs it again with "
    "the same random numbers. Tensors computed outside must be arguments, which nobody may write "
    "into before that; parameters are found. Results are tensors, not tables of them.",
    l_checkpoint },
  { NULL, NULL, NULL, NULL }
};

const peri_reg *const peri__checkpoint_functions = functions;

void peri__open_checkpoint (lua_State *L) { peri__register(L, functions); }
