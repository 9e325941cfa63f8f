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
  peri_thread *t = (peri_thread *)lua_newuserdatauv(L, sizeof *t, 1);
  *t = (peri_thread){ .L = of, .anomaly = -1 };
  lua_pushthread(of);
  if (of != L) lua_xmove(of, L, 1);
  lua_setiuservalue(L, -2, 1);
  luaL_setmetatable(L, THREAD);
  return t;
}

peri_thread *peri__thread_own (lua_State *L, peri_bind *b) {
  peri_thread *t = find(L, b);
  if (t != &b->thread.none) return t;
  luaL_checkstack(L, 8, NULL);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &key_threads);
  lua_pushthread(L);
  t = new_thread(L, L);
  lua_rawset(L, -3);
  lua_pop(L, 1);
  t->b = b;
  b->thread.at = NULL;
  return t;
}

/* Own memory is the next mode's. */
static void forget (peri_bind *b, peri_mode *m) {
  m->of = NULL;
  if (!m->serial) return;
  m->serial = 0;
  m->outer = b->thread.spare;
  b->thread.spare = m;
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
  while (t->mode) {
    peri_mode *m = t->mode;
    t->mode = m->outer;
    forget(b, m);
  }
  t->b = NULL;
  if (b->thread.now == t) b->thread.now = &b->thread.none;
  if (b->thread.home == t) b->thread.home = &b->thread.none;
  b->thread.at = NULL;
  return 0;
}

static void enter (lua_State *L, peri_bind *b, peri_thread *t, peri_mode *m, peri_mode is) {
  is.outer = t->mode;
  is.of = t;
  *m = is;
  t->mode = m;
  t->opened = ++b->thread.clock;
  list_add(b, t);
  peri__thread_look(L, b);
}

void peri__mode_open (lua_State *L, peri_bind *b, peri_mode *m, bool on) {
  luaL_checkstack(L, 8, NULL); /* for all that follows */
  enter(L, b, peri__thread_own(L, b), m, (peri_mode){ .on = on });
}

/* Nothing frees them but the end of the state. */
static void more_modes (lua_State *L, peri_bind *b) {
  enum { BLOCK = 16 };
  peri_mode *m = (peri_mode *)lua_newuserdatauv(L, BLOCK * sizeof *m, 0);
  lua_rawsetp(L, LUA_REGISTRYINDEX, m);
  for (int i = 0; i < BLOCK; i++) {
    m[i] = (peri_mode){ .outer = b->thread.spare };
    b->thread.spare = &m[i];
  }
}

peri_mode *peri__mode_keep (lua_State *L, peri_bind *b, bool on) {
  luaL_checkstack(L, 8, NULL);
  peri_thread *t = peri__thread_own(L, b);
  if (!b->thread.spare) more_modes(L, b);
  peri_mode *m = b->thread.spare;
  b->thread.spare = m->outer;
  enter(L, b, t, m, (peri_mode){ .on = on, .serial = ++b->thread.serials });
  return m;
}

void peri__mode_close (peri_bind *b, peri_mode *m) {
  peri_thread *t = m->of;
  if (!t) return;
  peri_mode **p = &t->mode;
  while (*p != m) p = &(*p)->outer;
  *p = m->outer;
  forget(b, m);
  if (!t->mode && t->anomaly < 0) list_remove(t);
  b->thread.at = NULL;
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
