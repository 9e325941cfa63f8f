/*
** thread.c - which Lua thread runs: scopes and modes are those of the thread that opened them,
** whatever is resumed, yields, dies or is collected in between. Lua does not tell when another
** thread runs, so each call compares its lua_State with that of the last one; what a thread has of
** its own is found in a table with weak keys. It holds its thread, so that no other one can get the
** address while the last call's is remembered, and its finalizer forgets it.
*/
#include <string.h>

#include "bind.h"

#define THREAD "perilune.thread"

static const char key_threads = 0;

static void list_add (peri_bind *b, peri_thread *t) {
  if (t->link || t == b->thread.home) return;
  t->next = b->thread.modal;
  if (t->next) t->next->link = &t->next;
  b->thread.modal = t;
  t->link = &b->thread.modal;
}

static void list_remove (peri_thread *t) {
  if (!t->link) return;
  *t->link = t->next;
  if (t->next) t->next->link = t->link;
  t->link = NULL;
}

/* ---- whose modes are in force ---- */

/* Running, or waiting for one that it resumed. */
static bool is_active (const peri_thread *t) {
  lua_Debug ar;
  return lua_status(t->L) == LUA_OK && lua_getstack(t->L, 0, &ar);
}

static bool has_mode (const peri_thread *t) { return t->mode != NULL; }
static bool has_anomaly (const peri_thread *t) { return t->anomaly >= 0; }

/* A thread's own, else that of a coroutine that waits for it (of several the one that opened last),
** else that of the main thread. NULL: the host's. sure becomes false when a mode of another coroutine
** may come to count without a call in between. */
static const peri_thread *giver (const peri_bind *b, lua_State *L, const peri_thread *own,
                                 bool (*has)(const peri_thread *t), bool *sure) {
  const peri_thread *best = NULL;
  if (has(own)) return own;
  if (L == b->main) return NULL;
  for (const peri_thread *t = b->thread.modal; t; t = t->next) {
    if (!has(t)) continue;
    *sure = false;
    if ((!best || t->opened > best->opened) && is_active(t)) best = t;
  }
  if (best) return best;
  return has(b->thread.home) ? b->thread.home : NULL;
}

/* The thread's own or b->none. */
static peri_thread *find (lua_State *L, peri_bind *b) {
  if (L == b->main) return b->thread.home;
  luaL_checkstack(L, 3, NULL);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &key_threads);
  lua_pushthread(L);
  lua_rawget(L, -2);
  peri_thread *t = (peri_thread *)lua_touserdata(L, -1);
  lua_pop(L, 2);
  return t && t->b ? t : &b->thread.none;
}

void peri__thread_look (lua_State *L, peri_bind *b) {
  peri_threads_of *now = &b->thread;
  peri_ctx *ctx = b->ctx;
  bool sure = true;
  now->at = NULL;
  now->now = find(L, b);
  if (now->plain_grad) now->grad = ctx->grad_enabled;
  if (now->plain_anomaly) now->anomaly = ctx->anomaly;
  const peri_thread *mode = giver(b, L, now->now, has_mode, &sure),
                    *anomaly = giver(b, L, now->now, has_anomaly, &sure);
  now->plain_grad = !mode;
  now->plain_anomaly = !anomaly;
  ctx->grad_enabled = mode ? mode->mode->on : now->grad;
  ctx->anomaly = anomaly ? anomaly->anomaly : now->anomaly;
  if (sure) now->at = L;
}

/* ---- what a thread has of its own ---- */

static peri_thread *new_thread (lua_State *L, lua_State *of) {
  peri_thread *t = (peri_thread *)lua_newuserdatauv(L, sizeof *t, 2);
  *t = (peri_thread){ .L = of, .anomaly = -1 };
  lua_pushthread(of);
  if (of != L) lua_xmove(of, L, 1);
  lua_setiuservalue(L, -2, 1);
  luaL_setmetatable(L, THREAD);
  return t;
}

/* Push that of L, made when it is not there. Its user values: the thread, and the innermost open mode
** whose memory is a userdata. */
static peri_thread *push_own (lua_State *L, peri_bind *b) {
  luaL_checkstack(L, 8, NULL);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &key_threads);
  lua_pushthread(L);
  lua_rawget(L, -2);
  peri_thread *t = (peri_thread *)lua_touserdata(L, -1);
  if (!t || !t->b) {
    lua_pop(L, 1);
    lua_pushthread(L);
    t = new_thread(L, L);
    lua_pushvalue(L, -1);
    lua_insert(L, -3);
    lua_rawset(L, -4);
    t->b = b;
    b->thread.at = NULL;
  }
  lua_remove(L, -2);
  return t;
}

peri_thread *peri__thread_own (lua_State *L, peri_bind *b) {
  peri_thread *t = find(L, b);
  if (t == &b->thread.none) {
    t = push_own(L, b);
    lua_pop(L, 1);
  }
  return t;
}

/* The thread is garbage: its scopes and modes are nobody's. */
static int thread_gc (lua_State *L) {
  peri_thread *t = (peri_thread *)luaL_testudata(L, 1, THREAD);
  if (!t || !t->b) return 0;
  peri_bind *b = t->b;
  list_remove(t);
  while (t->scope) {
    peri_scope *s = t->scope;
    t->scope = s->outer;
    s->of = NULL;
    s->outer = NULL;
  }
  for (; t->mode; t->mode = t->mode->outer) t->mode->of = NULL;
  t->b = NULL;
  if (b->thread.now == t) b->thread.now = &b->thread.none;
  if (b->thread.home == t) b->thread.home = &b->thread.none;
  b->thread.at = NULL;
  return 0;
}

/* A thread holds its open modes in a chain of user values: each its outer one (1) and the thread's (2). */
static void hold (lua_State *L, int idx) {
  lua_getiuservalue(L, -1, 2);
  lua_setiuservalue(L, idx, 1);
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, idx, 2);
  lua_pushvalue(L, idx);
  lua_setiuservalue(L, -2, 2);
}

void peri__mode_open (lua_State *L, peri_bind *b, peri_mode *m, int idx, bool on) {
  peri_thread *t = push_own(L, b);
  if (idx) hold(L, idx);
  lua_pop(L, 1);
  *m = (peri_mode){ .on = on, .outer = t->mode, .of = t };
  t->mode = m;
  t->opened = ++b->thread.clock;
  list_add(b, t);
  peri__thread_look(L, b);
}

void peri__mode_close (peri_bind *b, peri_mode *m) {
  peri_thread *t = m->of;
  if (!t) return;
  peri_mode **p = &t->mode;
  while (*p != m) p = &(*p)->outer;
  *p = m->outer;
  m->of = NULL;
  if (!t->mode && t->anomaly < 0) list_remove(t);
  b->thread.at = NULL;
}

void peri__mode_let_go (lua_State *L, int idx) {
  int slot = 2;
  luaL_checkstack(L, 4, NULL);
  lua_getiuservalue(L, idx, 2);
  while (lua_getiuservalue(L, -1, slot) == LUA_TUSERDATA && !lua_rawequal(L, -1, idx)) {
    lua_remove(L, -2); /* not the innermost one: along the chain */
    slot = 1;
  }
  if (lua_isuserdata(L, -1)) {
    lua_getiuservalue(L, idx, 1);
    lua_setiuservalue(L, -3, slot);
  }
  lua_pop(L, 2);
  for (slot = 1; slot <= 2; slot++) {
    lua_pushnil(L);
    lua_setiuservalue(L, idx, slot);
  }
}

/* What the main thread sets is everybody's who has set nothing: the host's. */
void peri__anomaly_set (lua_State *L, peri_bind *b, bool on) {
  peri__thread_look(L, b);
  if (L == b->main) {
    peri_set_anomaly(b->ctx, on);
    return;
  }
  peri_thread *t = peri__thread_own(L, b);
  t->anomaly = on;
  t->opened = ++b->thread.clock;
  list_add(b, t);
  peri__thread_look(L, b);
}

static const peri_reg thread_meta[] = { { "__gc", NULL, NULL, thread_gc },
                                        { NULL, NULL, NULL, NULL } };

void peri__open_threads (lua_State *L) {
  peri_bind *b = peri__bind(L);
  peri__metatable(L, THREAD, thread_meta, NULL);
  peri__weak_keys(L);
  lua_pushvalue(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &key_threads);
  b->thread.none.anomaly = -1;
  b->thread.now = b->thread.home = &b->thread.none;
  b->thread.plain_grad = b->thread.plain_anomaly = true;
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  peri_thread *t = new_thread(L, b->main);
  lua_rawset(L, -3);
  t->b = b;
  b->thread.home = t;
  lua_pop(L, 2);
}
