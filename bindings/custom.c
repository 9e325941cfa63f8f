/*
** custom.c - functions in Lua with a vjp of their own, and what every record with a Lua side needs.
*/
#include <string.h>

#include "autograd/tape.h"
#include "custom.h"

/* ---- records ---- */

peri_record *peri__record_new (peri_bind *b, int nin, const char *name) {
  peri_alloc_fn alloc;
  void *ud;
  size_t size = sizeof(peri_record) + (size_t)nin * sizeof((peri_record *)0)->in[0];
  peri_allocator(b->ctx, &alloc, &ud);
  peri_record *r = (peri_record *)alloc(ud, NULL, 0, size);
  if (!r) {
    peri__fail(b->ctx, PERI_ENOMEM, "out of memory for a custom function");
    return NULL;
  }
  memset(r, 0, size);
  r->b = b;
  r->ref = LUA_NOREF;
  r->size = size;
  r->name = name;
  r->nin = nin;
  r->next = b->records;
  if (r->next) r->next->prev = r;
  b->records = r;
  return r;
}

static void unlink_record (peri_record *r) {
  if (r->prev)
    r->prev->next = r->next;
  else
    r->b->records = r->next;
  if (r->next) r->next->prev = r->prev;
}

static void dispose (peri_ctx *ctx, peri_record *r) {
  peri_alloc_fn alloc;
  void *ud;
  peri_allocator(ctx, &alloc, &ud);
  alloc(ud, r, r->size, 0);
}

void peri__record_free (peri_record *r) {
  unlink_record(r);
  dispose(r->b->ctx, r);
}

void peri__record_release (void *ud) {
  peri_record *r = (peri_record *)ud;
  if (!r->b) {
    dispose((peri_ctx *)r->next, r); /* custom_close left the context there */
    return;
  }
  unlink_record(r);
  r->next = r->b->dead;
  r->b->dead = r;
}

void peri__custom_sweep (lua_State *L, peri_bind *b) {
  while (b->dead) {
    peri_record *r = b->dead;
    b->dead = r->next;
    luaL_unref(L, LUA_REGISTRYINDEX, r->ref);
    dispose(b->ctx, r);
  }
}

void peri__custom_close (peri_bind *b) {
  while (b->records) {
    peri_record *r = b->records;
    b->records = r->next;
    r->b = NULL;
    r->prev = NULL;
    r->next = (peri_record *)(void *)b->ctx;
  }
  while (b->dead) {
    peri_record *r = b->dead;
    b->dead = r->next;
    dispose(b->ctx, r);
  }
}

/* (body, call): the thread is in the mode of the pass for as long as body runs, and with it every
** coroutine that body resumes. */
static int under_mode (lua_State *L) {
  peri__vjp_call *call = (peri__vjp_call *)lua_touserdata(L, 2);
  peri__mode_open(L, call->r->b, call->mode, call->mode->on);
  lua_call(L, 1, 0);
  return 0;
}

peri_status peri__run_vjp (peri__vjp_call *call, lua_CFunction body) {
  peri_bind *b = call->r->b;
  if (!b)
    return peri__fail(call->ctx, PERI_EHOST, "%s: the Lua state of its vjp is closed",
                      call->r->name);
  lua_State *L = b->L ? b->L : b->main;
  if (!lua_checkstack(L, LUA_MINSTACK))
    return peri__fail(call->ctx, PERI_ENOMEM, "%s: no room on the Lua stack", call->r->name);
  int top = lua_gettop(L);
  bool on = call->ctx->grad_enabled, plain = b->thread.plain_grad;
  peri_mode mode = { .on = on };
  call->mode = &mode;
  b->thread.plain_grad = false; /* the context's mode is the pass's, not the host's */
  lua_pushcfunction(L, peri__traceback);
  lua_pushcfunction(L, under_mode);
  lua_pushcfunction(L, body);
  lua_pushlightuserdata(L, call);
  int rc = lua_pcall(L, 2, 0, top + 1);
  peri__mode_close(b, &mode);
  b->thread.plain_grad = plain;
  call->ctx->grad_enabled = on;
  peri_status s = PERI_OK;
  if (rc != LUA_OK) {
    s = peri__caught(L, call->ctx, rc);
    for (int i = 0; i < call->nin; i++) {
      peri_release(call->gin[i]);
      call->gin[i] = NULL;
    }
  }
  lua_settop(L, top);
  return s;
}

/* ---- versions: what is read again in the backward pass may not have been written into ---- */

/* Pushes where the key at idx leads from prefix; integers at the top (prefix "") count from first. */
static void push_name (lua_State *L, int idx, const char *prefix, int first) {
  if (!*prefix && lua_isinteger(L, idx)) {
    lua_pushinteger(L, lua_tointeger(L, idx) - first + 1);
    return;
  }
  const char *key = luaL_tolstring(L, idx, NULL);
  if (!*prefix) return;
  lua_pushfstring(L, "%s.%s", prefix, key);
  lua_remove(L, -2);
}

/* Is the value at idx a table without a metatable that was not seen before? Objects, whose buffers
** may change, have one. */
static bool new_plain_table (lua_State *L, int idx, int seen) {
  if (lua_type(L, idx) != LUA_TTABLE) return false;
  if (lua_getmetatable(L, idx)) {
    lua_pop(L, 1);
    return false;
  }
  bool found = lua_rawgetp(L, seen, lua_topointer(L, idx)) != LUA_TNIL;
  lua_pop(L, 1);
  lua_pushboolean(L, 1);
  lua_rawsetp(L, seen, lua_topointer(L, idx));
  return !found;
}

static void append (lua_State *L, int list, int n) { /* pops n values */
  lua_Integer at = (lua_Integer)lua_rawlen(L, list);
  for (int i = n; i > 0; i--) lua_rawseti(L, list, at + i);
}

void peri__push_versions (lua_State *L, peri_bind *b, int idx, int first) {
  int out = lua_gettop(L) + 1, seen = out + 1, queue = out + 2, table = out + 3, key = out + 5;
  idx = lua_absindex(L, idx);
  luaL_checkstack(L, 14, NULL);
  lua_newtable(L); /* tensor, version, name, tensor, ... */
  lua_newtable(L);
  lua_newtable(L); /* table, where it stands, table, ... */
  lua_pushvalue(L, idx);
  lua_pushliteral(L, "");
  append(L, queue, 2);
  for (lua_Integer at = 1; lua_rawgeti(L, queue, at) == LUA_TTABLE; at += 2) {
    lua_rawgeti(L, queue, at + 1);
    const char *prefix = luaL_tolstring(L, -1, NULL);
    lua_replace(L, key - 1);
    for (lua_pushnil(L); lua_next(L, table);) {
      peri_box *box = peri__box_at(L, b, key + 1);
      if (box && box->t) {
        lua_pushinteger(L, (lua_Integer)box->t->storage->version);
        push_name(L, key, prefix, first);
        append(L, out, 3);
      } else if (new_plain_table(L, key + 1, seen)) {
        push_name(L, key, prefix, first);
        append(L, queue, 2);
      }
      lua_settop(L, key);
    }
    lua_settop(L, queue);
  }
  lua_settop(L, out);
}

void peri__check_versions (lua_State *L, peri_bind *b, int versions, const char *message) {
  lua_Integer n = (lua_Integer)lua_rawlen(L, versions);
  for (lua_Integer i = 1; i < n; i += 3) {
    lua_rawgeti(L, versions, i);
    lua_rawgeti(L, versions, i + 1);
    peri_box *box = peri__box_at(L, b, -2);
    if (box && box->t && (lua_Integer)box->t->storage->version != lua_tointeger(L, -1)) {
      lua_rawgeti(L, versions, i + 2);
      luaL_error(L, message, lua_tostring(L, -1));
    }
    lua_pop(L, 2);
  }
}

/* ---- custom(forward, vjp) ---- */

/* A vjp may keep what it gets, and write into it: nobody else may hold that. */
static void push_gradient (lua_State *L, peri_tensor *g) {
  if (peri__owned(g)) {
    peri__box_share(L, g);
    return;
  }
  peri_tensor **out = peri__box_new(L);
  peri__check(L, "custom", peri__invoke(g->ctx, peri_op_find("clone"), 1, &g, NULL, out));
}

/* The record's table: [1] vjp, [2] its context, [3] versions of the tensors in it. One result an
** argument of forward. */
static int vjp_body (lua_State *L) {
  peri__vjp_call *c = (peri__vjp_call *)lua_touserdata(L, 1);
  peri_record *r = c->r;
  int most = 0;
  luaL_checkstack(L, c->nout + PERI_CUSTOM_ARGS + 8, NULL);
  lua_rawgeti(L, LUA_REGISTRYINDEX, r->ref);
  lua_rawgeti(L, 2, 2);
  lua_rawgeti(L, 2, 3);
  peri__check_versions(
      L, r->b, 4,
      "custom: '%s', which forward kept for the vjp, was changed in place since: keep a clone");
  lua_settop(L, 2);
  lua_rawgeti(L, 2, 1);
  lua_rawgeti(L, 2, 2);
  for (int k = 0; k < c->nout; k++) {
    if (c->gout[k])
      push_gradient(L, c->gout[k]);
    else
      lua_pushnil(L);
  }
  for (int i = 0; i < r->nin; i++)
    if (r->in[i].arg > most) most = r->in[i].arg;
  lua_call(L, c->nout + 1, most);
  for (int i = 0; i < r->nin; i++) { /* all checks before the first reference */
    int at = 2 + r->in[i].arg;
    peri_box *box = peri__box_at(L, r->b, at);
    if (!lua_isnil(L, at) && (!box || !box->t))
      return luaL_error(L, "custom: result %d of the vjp must be a tensor or nil, got %s",
                        r->in[i].arg, box ? "a released tensor" : luaL_typename(L, at));
  }
  for (int i = 0; i < r->nin; i++) {
    peri_box *box = (peri_box *)lua_touserdata(L, 2 + r->in[i].arg);
    c->gin[i] = box ? peri_retain(box->t) : NULL;
  }
  return 0;
}

static peri_status custom_vjp (void *ud, peri_ctx *ctx, int nout, peri_tensor *const *gout, int nin,
                               peri_tensor **gin) {
  peri_record *r = (peri_record *)ud;
  peri__vjp_call call = { .r = r, .ctx = ctx, .nout = nout, .nin = nin, .gout = gout, .gin = gin };
  return peri__run_vjp(&call, vjp_body);
}

/* Replace every tensor from first to top by a new view of it, so that no output is an input. */
static int detach_results (lua_State *L, peri_bind *b, int first) {
  int top = lua_gettop(L), n = 0;
  for (int i = first; i <= top; i++) {
    peri_box *box = peri__box_at(L, b, i);
    if (!box) continue;
    if (!box->t) luaL_error(L, "custom: result %d was released by a scope", i - first + 1);
    peri_tensor **out = peri__box_new(L);
    peri__check(L, "custom", peri_detach(box->t, out));
    lua_replace(L, i);
    n++;
  }
  return n;
}

static int collect (lua_State *L, peri_bind *b, int first, int last, peri_tensor **list, int *at) {
  int n = 0;
  for (int i = first; i <= last; i++) {
    peri_box *box = peri__box_at(L, b, i);
    if (!box) continue;
    if (at) at[n] = i - first + 1;
    list[n++] = box->t;
  }
  return n;
}

static bool any_tracked (lua_State *L, peri_bind *b, int n) {
  bool tracked = false;
  for (int i = 1; i <= n; i++) {
    peri_box *box = peri__box_at(L, b, i);
    if (box && !box->t) luaL_error(L, "custom: argument %d: tensor was released by its scope", i);
    tracked = tracked || (box && peri__tracked(box->t));
  }
  return tracked;
}

/* What custom() returned; upvalues: bind, forward, vjp. */
static int call_custom (lua_State *L) {
  peri_bind *b = BIND(L);
  int n = lua_gettop(L), at[PERI_CUSTOM_ARGS];
  peri_tensor *in[PERI_CUSTOM_ARGS], *out[PERI_CUSTOM_ARGS];
  peri__custom_sweep(L, b);
  if (n > PERI_CUSTOM_ARGS)
    return luaL_error(L, "custom: more than %d arguments", PERI_CUSTOM_ARGS);
  luaL_checkstack(L, n + 12, NULL);
  peri__here(L, b);
  bool record = b->ctx->grad_enabled && any_tracked(L, b, n);
  lua_newtable(L);
  int saved = n + 1, first = n + 3;
  peri__grad_guard(L, false);
  lua_toclose(L, n + 2);
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_pushvalue(L, saved);
  for (int i = 1; i <= n; i++) lua_pushvalue(L, i);
  lua_call(L, n + 1, LUA_MULTRET);
  lua_closeslot(L, n + 2);
  int last = lua_gettop(L);
  if (last - first >= PERI_CUSTOM_ARGS)
    return luaL_error(L, "custom: more than %d results", PERI_CUSTOM_ARGS);
  luaL_checkstack(L, 8, NULL);
  int nout = detach_results(L, b, first);
  if (record && nout > 0) {
    lua_createtable(L, 3, 0);
    lua_pushvalue(L, lua_upvalueindex(3));
    lua_rawseti(L, -2, 1);
    lua_pushvalue(L, saved);
    lua_rawseti(L, -2, 2);
    peri__push_versions(L, b, saved, 1);
    lua_rawseti(L, -2, 3);
    int ref = luaL_ref(L, LUA_REGISTRYINDEX), nin = collect(L, b, 1, n, in, at);
    collect(L, b, first, last, out, NULL);
    peri_record *r = peri__record_new(b, nin, "custom");
    peri_status s = r ? PERI_OK : PERI_ENOMEM;
    if (r) {
      r->ref = ref;
      for (int i = 0; i < nin; i++) r->in[i].arg = at[i];
      s = peri_record_custom(b->ctx, "custom", nin, in, nout, out, custom_vjp, peri__record_release,
                             r);
      if (s != PERI_OK) peri__record_free(r);
    }
    if (s != PERI_OK) luaL_unref(L, LUA_REGISTRYINDEX, ref);
    peri__check(L, "custom", s);
  }
  return last - first + 1;
}

static int l_custom (lua_State *L) {
  if (lua_type(L, 1) != LUA_TFUNCTION)
    return peri__type_error(L, "custom", 1, "forward", "a function");
  if (lua_type(L, 2) != LUA_TFUNCTION) return peri__type_error(L, "custom", 2, "vjp", "a function");
  lua_settop(L, 2);
  lua_pushlightuserdata(L, BIND(L));
  lua_insert(L, 1);
  lua_pushcclosure(L, call_custom, 3);
  return 1;
}

/* per_sample_grad: send linear and embedding of this thread through fn(name, ...); nil ends it. */
static int l_intercept (lua_State *L) {
  lua_settop(L, 1);
  bool was = peri__intercept_push(L);
  BIND(L)->intercepted += (lua_type(L, 1) == LUA_TFUNCTION) - was;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_intercept);
  lua_pushthread(L);
  lua_pushvalue(L, 1);
  lua_rawset(L, -3);
  return 0;
}

static const peri_reg functions[] = {
  { "custom", "forward, vjp",
    "A function with its own gradient: forward(ctx, ...) gives the results without "
    "being recorded, vjp(ctx, gout...) one gradient or nil for each argument; ctx is a table of "
    "the call; tensors kept in it, or in plain tables in it, may not be written into "
    "before the vjp has run.",
    l_custom },
  { "_intercept", "fn?",
    "Send linear and embedding of this coroutine through fn(name, ...) until called with nil; the "
    "part of per_sample_grad that Lua cannot do.",
    l_intercept },
  { NULL, NULL, NULL, NULL }
};

const peri_reg *const peri__custom_functions = functions;

void peri__open_custom (lua_State *L) {
  peri__weak_keys(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &peri__key_intercept);
  peri__register(L, functions);
}
