/*
** limit.h - stopping Lua code: the hook that looks for interrupts and counts instructions, the limit on
** memory, the functions of Lua that must know of them. docs/design/threads.md says why each is there.
*/
#ifndef peri_limit_h
#define peri_limit_h

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include <lua.h>

#include "core/core.h"
#include "perilune_lua.h"

/* A thread that runs or waits for one that it resumed, on the C stack of who resumed it. */
typedef struct peri_running {
  lua_State *L;
  struct peri_running *outer;
  bool ours;    /* resumed by a function here: what the hook suspends is closed by it */
  bool stopped; /* the hook has suspended it */
  bool hooked;  /* for an interrupt alone: what was there before goes back */
  lua_Hook hook;
  int mask, count;
} peri_running;

/* One for each Lua state that was limited, a userdata in its registry. A handler of a signal may find
** it at any moment. */
struct peri_lua_stop {
  peri_ctx *ctx;
  peri_running base;
  peri_running *volatile innermost;
  volatile sig_atomic_t raised; /* errors that the hook has raised for this stop */
  int step;                     /* instructions between two looks; 0: no hook without a reason */
  uint64_t instructions, used;  /* limit (0: none) and count */
  size_t memory, bytes;         /* limit (0: none) and what the state has */
  lua_Alloc alloc;              /* of the host; NULL: ours is not in place */
  void *alloc_ud;
};

/* In the registry: the error of the thread that the hook has suspended. */
extern const char peri__key_stopped;

/* That of L; NULL: it was not limited. */
peri_lua_stop *peri__stop_of (lua_State *L);
/* Why Lua may not go on, or NULL; the text is good until the next call. */
const char *peri__stop_reason (const peri_lua_stop *s, char *text, size_t size);
#define PERI_REASON_SIZE 96
static inline bool peri__stop_pending (const peri_lua_stop *s) {
  return atomic_load_explicit(&s->ctx->interrupted, memory_order_relaxed) ||
         (s->instructions && s->used >= s->instructions);
}
/* The host calls Lua: with a reason left from before, the hook raises at once. */
void peri__stop_begin (peri_lua_stop *s);
/* Something other than the hook raises: the hook does so again in a while. */
void peri__stop_raise (peri_lua_stop *s);
/* An error for it is on its way up though the hook has raised none: called by message handlers. */
void peri__stop_raised (peri_lua_stop *s);
/* It came to the top: forget the interrupt, take the hooks off. */
void peri__stop_done (peri_lua_stop *s);
/* The Lua state closes: its memory is freed by the host's allocator. */
void peri__stop_close (lua_State *L);

/* co is about to run, resumed by L's function that holds self; and has returned to it. */
void peri__stop_enter (peri_lua_stop *s, peri_running *self, lua_State *co, bool ours);
void peri__stop_leave (peri_lua_stop *s, peri_running *self);

/* Whether tools have a deadline; stops L where one of its own is over: deadline.c. Called by hooks. */
bool peri__deadline_look (lua_State *L);

/* The functions that must know: limit_lib.c. */
void peri__stop_functions (lua_State *L, peri_lua_stop *s);

#endif
