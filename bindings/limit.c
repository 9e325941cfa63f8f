/*
** limit.c - interrupts and limits of a Lua state. A hook of Lua belongs to one thread, new threads
** inherit it, and it costs Lua code that runs under it; so it is there from the beginning only where
** instructions are counted or an interrupt may come from another thread. A handler of a signal, which
** runs on the thread of Lua itself, may set it when it is needed: the threads that run are in a list.
** Once there is a reason to stop, the hook raises again and again, until the error has come to the top.
*/
#include <stdio.h>
#include <string.h>

#include "bind.h"
#include "limit.h"

#define STEP 1000 /* instructions between two looks where the host does not say */

static const char key_stop = 0;
const char peri__key_stopped = 0;

static void stop_hook (lua_State *L, lua_Debug *ar);

peri_lua_stop *peri__stop_of (lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &key_stop);
  peri_lua_stop *s = (peri_lua_stop *)lua_touserdata(L, -1);
  lua_pop(L, 1);
  return s;
}

const char *peri__stop_reason (const peri_lua_stop *s, char *text, size_t size) {
  if (atomic_load_explicit(&s->ctx->interrupted, memory_order_relaxed)) return "interrupted";
  if (!s->instructions || s->used < s->instructions) return NULL;
  snprintf(text, size, "the limit of %llu instructions is reached",
           (unsigned long long)s->instructions);
  return text;
}

/* ---- hooks ---- */

/* Instructions until the hook raises once more. Message handlers and __close get the time for their
** work; a loop around pcall is caught in the end, whatever it does. */
static int grace (const peri_lua_stop *s) {
  static const int steps[] = { 1, 100000, 10000, 1000, 100, 10, 1 };
  int n = (int)s->raised, last = (int)(sizeof steps / sizeof *steps) - 1;
  return steps[n < last ? n : last];
}

/* Instructions until the next look when there is no reason to stop. */
static int stride (const peri_lua_stop *s) {
  uint64_t left = s->instructions - s->used; /* asked only while there are some */
  return s->instructions && left < (uint64_t)s->step ? (int)left : s->step;
}

/* As a handler of a signal may: lua_sethook and the fields that it reads are made for that. */
static void hook_for_stop (const peri_lua_stop *s, peri_running *r) {
  if (!s->step && !r->hooked && lua_gethook(r->L) != stop_hook) {
    r->hook = lua_gethook(r->L);
    r->mask = lua_gethookmask(r->L);
    r->count = lua_gethookcount(r->L);
    r->hooked = true;
  }
  lua_sethook(r->L, stop_hook, LUA_MASKCOUNT, grace(s));
}

static void hook_all (const peri_lua_stop *s) {
  for (peri_running *r = s->innermost; r; r = r->outer) hook_for_stop(s, r);
}

static void unhook (const peri_lua_stop *s, peri_running *r) {
  if (s->step)
    lua_sethook(r->L, stop_hook, LUA_MASKCOUNT, stride(s));
  else if (r->hooked)
    lua_sethook(r->L, r->hook, r->mask, r->count);
  else if (lua_gethook(r->L) == stop_hook)
    lua_sethook(r->L, NULL, 0, 0);
  r->hooked = false;
}

/* Suspending is better than raising where the function that resumed this thread then closes it: no
** message handler runs inside of the hook, and what its __close do is not exempt from hooks, as it
** would be after an error of the hook had killed the thread. */
static void stop_hook (lua_State *L, lua_Debug *ar) {
  (void)ar;
  char text[PERI_REASON_SIZE];
  peri_lua_stop *s = peri__stop_of(L);
  if (s && s->step) s->used += (uint64_t)lua_gethookcount(L);
  const char *reason = s ? peri__stop_reason(s, text, sizeof text) : NULL;
  if (!reason) {
    if (s && s->step)
      lua_sethook(L, stop_hook, LUA_MASKCOUNT, stride(s));
    else
      lua_sethook(L, NULL, 0, 0); /* of a stop that is over: a coroutine that slept since */
    if (s) s->raised = 0;
    if (s && peri__stop_pending(s))
      hook_all(s); /* a signal came in between */
    else if (s && s->step)
      peri__deadline_look(L);
    return;
  }
  peri__stop_raise(s);
  peri_running *r = s->innermost;
  if (r->L == L && r->ours && lua_isyieldable(L)) {
    peri__push_place(L); /* which the yield makes inexact */
    lua_pushstring(L, reason);
    lua_concat(L, 2);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &peri__key_stopped);
    r->stopped = true;
    lua_yield(L, 0);
    return;
  }
  if (r->L != L) /* resumed by functions that are not ours */
    lua_sethook(L, stop_hook, LUA_MASKCOUNT, grace(s));
  luaL_error(L, "%s", reason);
}

void peri_lua_interrupt (peri_lua_stop *s) {
  if (!s) return;
  s->raised = 0;
  peri_interrupt(s->ctx);
  hook_all(s);
}

void peri__stop_raise (peri_lua_stop *s) {
  s->raised++;
  hook_all(s);
}

void peri__stop_begin (peri_lua_stop *s) {
  lua_Debug ar;
  if (!peri__stop_pending(s) || lua_getstack(s->base.L, 0, &ar)) return;
  s->raised = 0;
  hook_all(s);
}

void peri__stop_raised (peri_lua_stop *s) {
  if (peri__stop_pending(s) && !s->raised) peri__stop_raise(s);
}

void peri__stop_done (peri_lua_stop *s) {
  peri_interrupt_clear(s->ctx);
  s->raised = 0;
  if (peri__stop_pending(s)) return; /* its instructions have run out */
  for (peri_running *r = s->innermost; r; r = r->outer) unhook(s, r);
  if (peri__stop_pending(s)) hook_all(s); /* a signal came in between */
}

void peri__stop_enter (peri_lua_stop *s, peri_running *self, lua_State *co, bool ours) {
  *self = (peri_running){ .L = co, .outer = s->innermost, .ours = ours };
  atomic_signal_fence(memory_order_release); /* whole before a handler can find it */
  s->innermost = self;
  if (peri__stop_pending(s))
    hook_for_stop(s, self);
  else if (s->step && lua_gethook(co) != stop_hook) /* older than the limits */
    lua_sethook(co, stop_hook, LUA_MASKCOUNT, stride(s));
}

void peri__stop_leave (peri_lua_stop *s, peri_running *self) {
  s->innermost = self->outer;
  atomic_signal_fence(memory_order_release);
  if (self->hooked) unhook(s, self);
}

/* ---- memory ---- */

static void *limited_alloc (void *ud, void *ptr, size_t osize, size_t nsize) {
  peri_lua_stop *s = (peri_lua_stop *)ud;
  size_t old = ptr ? osize : 0; /* without a block it tells the type of what is made */
  if (s->memory && nsize > old && (s->bytes > s->memory || nsize - old > s->memory - s->bytes))
    return NULL; /* Lua collects all garbage and asks once more */
  void *p = s->alloc(s->alloc_ud, ptr, osize, nsize);
  if (p || nsize == 0) s->bytes += nsize - old;
  return p;
}

static void count_memory (lua_State *L, peri_lua_stop *s) {
  if (s->alloc) return;
  s->alloc = lua_getallocf(L, &s->alloc_ud);
  s->bytes = (size_t)lua_gc(L, LUA_GCCOUNT) * 1024 + (size_t)lua_gc(L, LUA_GCCOUNTB);
  lua_setallocf(L, limited_alloc, s);
}

void peri__stop_close (lua_State *L) {
  peri_lua_stop *s = peri__stop_of(L);
  if (s && s->alloc) lua_setallocf(L, s->alloc, s->alloc_ud);
  if (s) s->alloc = NULL;
}

/* ---- limits ---- */

void peri_lua_limits_init (peri_lua_limits *l) {
  if (l) *l = (peri_lua_limits){ .struct_size = sizeof *l, .look = STEP };
}

/* Protected: (light limits). */
static int set_limits (lua_State *L) {
  const peri_lua_limits *l = (const peri_lua_limits *)lua_touserdata(L, 1);
  peri_bind *b = peri__bind(L);
  peri_lua_stop *s = peri__stop_of(L);
  if (!s) {
    s = (peri_lua_stop *)lua_newuserdatauv(L, sizeof *s, 0);
    *s = (peri_lua_stop){ .ctx = b->ctx, .base = { .L = b->main } };
    peri__stop_functions(L, s);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &key_stop);
    s->innermost = &s->base;
  }
  s->step = l->look ? l->look : l->instructions ? STEP : 0;
  s->instructions = l->instructions;
  s->used = 0;
  s->memory = l->memory;
  if (l->memory) count_memory(L, s);
  if (!peri__stop_pending(s)) s->raised = 0;
  for (peri_running *r = s->innermost; r; r = r->outer) unhook(s, r);
  if (peri__stop_pending(s)) hook_all(s);
  if (s->step && lua_gethook(L) != stop_hook) lua_sethook(L, stop_hook, LUA_MASKCOUNT, stride(s));
  return 0;
}

peri_status peri_lua_limit (lua_State *L, const peri_lua_limits *given) {
  peri_lua_limits l;
  if (!lua_checkstack(L, LUA_MINSTACK)) return PERI_ENOMEM;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_bind);
  const peri_bind *b = (const peri_bind *)lua_touserdata(L, -1);
  lua_pop(L, 1);
  if (!b || !b->ctx) return PERI_EINVAL;
  if (!given) return peri__fail(b->ctx, PERI_EINVAL, "limits is NULL");
  if (given->struct_size != sizeof l)
    return peri__fail(b->ctx, PERI_EINVAL,
                      "peri_lua_limits.struct_size is %u: peri_lua_limits_init sets it, to %u here",
                      given->struct_size, (unsigned)sizeof l);
  l = *given;
  if (l.look < 0) return peri__fail(b->ctx, PERI_EINVAL, "limits: look is %d: 0 or more", l.look);
  lua_pushcfunction(L, set_limits);
  lua_pushlightuserdata(L, &l);
  int rc = lua_pcall(L, 1, 0, 0);
  return rc == LUA_OK ? PERI_OK : peri__caught(L, b->ctx, rc);
}

peri_lua_stop *peri_lua_stopper (lua_State *L) {
  return lua_checkstack(L, 1) ? peri__stop_of(L) : NULL;
}

peri_status peri_lua_usage (lua_State *L, peri_lua_limits *out) {
  const peri_lua_stop *s = lua_checkstack(L, 1) ? peri__stop_of(L) : NULL;
  if (!out || !s) return PERI_EINVAL;
  const peri_lua_limits used = { .instructions = s->used,
                                 .memory = (size_t)lua_gc(L, LUA_GCCOUNT) * 1024 +
                                           (size_t)lua_gc(L, LUA_GCCOUNTB),
                                 .look = s->step };
  return peri__fill_out(s->ctx, out, &used, sizeof used, sizeof used, "peri_lua_limits");
}

/* ---- what Lua sees ---- */

static int l_limits (lua_State *L) {
  const peri_lua_stop *s = peri__stop_of(L);
  lua_createtable(L, 0, 4);
  if (s && s->instructions) {
    lua_pushinteger(L, (lua_Integer)s->instructions);
    lua_setfield(L, -2, "instructions");
  }
  if (s && s->step) {
    lua_pushinteger(L, (lua_Integer)s->used);
    lua_setfield(L, -2, "instructions_used");
  }
  if (s && s->memory) {
    lua_pushinteger(L, (lua_Integer)s->memory);
    lua_setfield(L, -2, "memory");
  }
  lua_pushinteger(L, (lua_Integer)lua_gc(L, LUA_GCCOUNT) * 1024 + lua_gc(L, LUA_GCCOUNTB));
  lua_setfield(L, -2, "memory_used");
  return 1;
}

static const peri_reg functions[] = {
  { "limits", "",
    "What the host lets this Lua state use, and what it has used: {instructions, instructions_used "
    "(where they are counted), memory, memory_used} in bytes of Lua, without tensors; a limit that "
    "is "
    "nil is none.",
    l_limits },
  { NULL, NULL, NULL, NULL }
};

const peri_reg *const peri__limit_functions = functions;

void peri__open_limits (lua_State *L) { peri__register(L, functions); }
