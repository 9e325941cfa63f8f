/*
** thread.h - what belongs to a Lua thread (the main one or a coroutine): its open scopes, its grad
** mode, its anomaly mode. docs/design/threads.md has the rules.
*/
#ifndef peri_thread_h
#define peri_thread_h

#include <stdbool.h>
#include <stdint.h>

#include <lua.h>

typedef struct peri_bind peri_bind;
typedef struct peri_thread peri_thread;
struct peri_scope;

/* Recording is on or off from here on, until it is closed. */
typedef struct peri_mode {
  bool on;
  struct peri_mode *outer; /* of the same thread; of a spare one: the next spare one */
  peri_thread *of;         /* NULL: closed, or its thread is gone */
  uint64_t serial; /* tells openings in one memory apart; 0: spare, or memory of the caller */
} peri_mode;

/* What a thread has of its own: a userdata, made when it first opens something. */
struct peri_thread {
  lua_State *L;              /* alive for as long as this is: its user value */
  peri_bind *b;              /* NULL: finalised */
  struct peri_scope *scope;  /* innermost open one */
  peri_mode *mode;           /* innermost open one */
  signed char anomaly;       /* what it has set; -1: nothing */
  uint64_t opened;           /* when it got its last mode: larger is later */
  peri_thread *next, **link; /* coroutines with a mode or anomaly of their own; link NULL: not in */
};

/* In peri_bind: who called last, and whose modes the context has. */
typedef struct peri_threads_of {
  lua_State *at;                  /* NULL: look again at the next call */
  peri_thread *now;               /* of at */
  peri_thread *home;              /* of the main thread */
  peri_thread none;               /* of every thread that has opened nothing */
  peri_thread *modal;             /* the list */
  uint64_t clock;                 /* of opened */
  peri_mode *spare;               /* for peri__mode_keep: blocks that the registry holds */
  uint64_t serials;               /* of modes; the last one given */
  bool plain_grad, plain_anomaly; /* nobody's modes are in force: the context's are the host's */
  bool grad, anomaly;             /* the host's, while it is not so */
} peri_threads_of;

/* Make the context's modes those of L. For the start of what depends on them, and again behind
** whatever may have run Lua code: a call, a collection. Raises only when the stack is full. */
void peri__thread_look (lua_State *L, peri_bind *b);
/* That of L, made when it is not there; peri__thread_look is due. Raises. */
peri_thread *peri__thread_own (lua_State *L, peri_bind *b);

/* A mode in L in memory of the caller. Raises before anything has changed. */
void peri__mode_open (lua_State *L, peri_bind *b, peri_mode *m, bool on);
/* The same in memory of ours: one that nobody closes lasts like its thread. Its serial changes when it is
** closed or its thread is gone, and then it may be another one. */
peri_mode *peri__mode_keep (lua_State *L, peri_bind *b, bool on);
/* Idempotent, in any order, from any thread. peri__thread_look is due. */
void peri__mode_close (peri_bind *b, peri_mode *m);
void peri__anomaly_set (lua_State *L, peri_bind *b, bool on);

void peri__open_threads (lua_State *L); /* before all others */

#endif
