/*
** main_interrupt.c - Ctrl-C in the program. A running op sees peri_interrupt at its next piece; Lua
** is stopped by a hook, which belongs to one coroutine: so coroutine.resume, wrap and close of the
** program keep a list of what runs, and the handler reaches all of it. The hook raises again until
** the interruption has come to the top (pcall keeps nothing alive).
*/
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <lualib.h>

#include "bind.h"
#include "repl.h"

/* A coroutine that was resumed, on the C stack of who resumed it. */
typedef struct running {
  lua_State *L;
  struct running *outer;
} running;

static running main_state;                 /* the bottom of the list */
static running *volatile innermost = NULL; /* NULL: no handler */
static peri_ctx *signal_ctx;               /* set before the handler is installed */
static const peri_bind *signal_bind;       /* its state */
static bool on_terminal;                   /* the standard error */
static pthread_t signal_thread;            /* the one that runs Lua */
static volatile sig_atomic_t signal_at;    /* second of the last Ctrl-C that interrupts, 0 = none */
static volatile sig_atomic_t signal_seen;  /* any, deferred ones included */
static volatile sig_atomic_t signal_raised; /* errors that the hook has raised for it */

static void stop_hook (lua_State *L, lua_Debug *ar);

/* Instructions until the hook raises once more. Message handlers and __close get the time for their
** work; a loop around pcall is caught in the end, whatever it does. */
static int grace (void) {
  static const int steps[] = { 1, 100000, 10000, 1000, 100, 10, 1 };
  int n = (int)signal_raised, last = (int)(sizeof steps / sizeof *steps) - 1;
  return steps[n < last ? n : last];
}

/* lua_sethook may be called by a handler of a signal. */
static void set_hooks (void) {
  for (running *r = innermost; r; r = r->outer)
    lua_sethook(r->L, stop_hook, LUA_MASKCOUNT, grace());
}

static void stop_hook (lua_State *L, lua_Debug *ar) {
  (void)ar;
  if (!signal_at) { /* of an interruption that is over: a coroutine that slept since */
    lua_sethook(L, NULL, 0, 0);
    return;
  }
  signal_raised++;
  set_hooks();
  luaL_error(L, "interrupted");
}

/* On a line of its own; with what a handler of a signal may call. */
static void show_notice (const peri_bind *b) {
  static const char wipe[] = "\r\033[K";
  ssize_t put = 0;
  if (!on_terminal || !b->notice[0]) return;
  put += write(STDERR_FILENO, b->bar ? wipe : "\n", b->bar ? sizeof wipe - 1 : 1);
  put += write(STDERR_FILENO, b->notice, strlen(b->notice));
  put += write(STDERR_FILENO, "\n", 1);
  (void)put; /* there is nobody to tell */
}

/* Where a script defers it, the first Ctrl-C is only noted. One that interrupts reaches the running op
** and Lua; a second within two seconds ends the process, should neither come to a piece's end. */
static void on_signal (int sig) {
  struct timespec t;
  if (!pthread_equal(pthread_self(), signal_thread)) { /* a thread of some other library */
    pthread_kill(signal_thread, sig);
    return;
  }
  signal_seen = 1;
  if (!signal_at && peri_interrupt_request(signal_ctx)) {
    show_notice(signal_bind);
    return;
  }
  clock_gettime(CLOCK_MONOTONIC, &t);
  sig_atomic_t now = (sig_atomic_t)(t.tv_sec % 1000000) + 1;
  if (signal_at && now - signal_at <= 2) {
    signal(sig, SIG_DFL);
    raise(sig);
  }
  signal_at = now;
  signal_raised = 0;
  peri_interrupt(signal_ctx);
  set_hooks();
}

bool peri__interrupt_pending (void) { return signal_at != 0; }
/* An op has raised for it before the hook could: what closes on the way up gets the same time. */
void peri__interrupt_raised (void) {
  if (!signal_at || signal_raised) return;
  signal_raised = 1;
  set_hooks();
}

bool peri__interrupt_seen (void) { return signal_seen != 0; }

void peri__interrupt_done (void) {
  if (!innermost) return;
  signal_at = 0;
  signal_seen = 0;
  atomic_store(&signal_ctx->deferring, 0);
  peri_interrupt_clear(signal_ctx);
  for (running *r = innermost; r; r = r->outer) lua_sethook(r->L, NULL, 0, 0);
}

/* Whole before the handler can find it. */
static void enter (running *self, lua_State *co) {
  *self = (running){ co, innermost };
  atomic_signal_fence(memory_order_release);
  innermost = self;
}

/* ---- the coroutine library of the program: resume, wrap and close of Lua's lcorolib.c ---- */

/* Values on top of L go to co, its results or error value come back; their number, -1 for an error. */
static int resume (lua_State *L, lua_State *co, int nargs) {
  int nres = 0;
  if (!lua_checkstack(co, nargs)) {
    lua_pushliteral(L, "too many arguments to resume");
    return -1;
  }
  lua_xmove(L, co, nargs);
  running self;
  enter(&self, co);
  if (signal_at) lua_sethook(co, stop_hook, LUA_MASKCOUNT, grace());
  int rc = lua_resume(co, L, nargs, &nres);
  innermost = self.outer;
  if (rc != LUA_OK && rc != LUA_YIELD) {
    lua_xmove(co, L, 1);
    return -1;
  }
  if (!lua_checkstack(L, nres + 1)) {
    lua_pop(co, nres);
    lua_pushliteral(L, "too many results to resume");
    return -1;
  }
  lua_xmove(co, L, nres);
  return nres;
}

static int co_resume (lua_State *L) {
  lua_State *co = lua_tothread(L, 1);
  luaL_argexpected(L, co, 1, "coroutine");
  int n = resume(L, co, lua_gettop(L) - 1);
  lua_pushboolean(L, n >= 0);
  if (n < 0) n = 1;
  lua_insert(L, -(n + 1));
  return n + 1;
}

/* To-be-closed variables of a coroutine run in it. */
static int reset (lua_State *L, lua_State *co) {
  running self;
  enter(&self, co);
#if LUA_VERSION_RELEASE_NUM >= 50406
  int rc = lua_closethread(co, L);
#else
  (void)L;
  int rc = lua_resetthread(co);
#endif
  innermost = self.outer;
  return rc;
}

static int wrap_call (lua_State *L) {
  lua_State *co = lua_tothread(L, lua_upvalueindex(1));
  int n = resume(L, co, lua_gettop(L));
  if (n >= 0) return n;
  int rc = lua_status(co);
  if (rc != LUA_OK && rc != LUA_YIELD) { /* an error inside it: close what it left open */
    rc = reset(L, co);
    lua_xmove(co, L, 1);
  }
  if (rc != LUA_ERRMEM && lua_type(L, -1) == LUA_TSTRING) {
    luaL_where(L, 1);
    lua_insert(L, -2);
    lua_concat(L, 2);
  }
  return lua_error(L);
}

static int co_wrap (lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_State *co = lua_newthread(L);
  lua_pushvalue(L, 1);
  lua_xmove(L, co, 1);
  lua_pushcclosure(L, wrap_call, 1);
  return 1;
}

/* Upvalue: Lua's close, for every state but a suspended or dead coroutine. */
static int co_close (lua_State *L) {
  lua_State *co = lua_tothread(L, 1);
  lua_Debug ar;
  bool asleep =
      co && co != L &&
      (lua_status(co) == LUA_YIELD || (lua_status(co) == LUA_OK && !lua_getstack(co, 0, &ar)) ||
       lua_status(co) > LUA_YIELD);
  if (!asleep) {
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
    return lua_gettop(L);
  }
  if (reset(L, co) == LUA_OK) {
    lua_pushboolean(L, 1);
    return 1;
  }
  lua_pushboolean(L, 0);
  lua_xmove(co, L, 1);
  return 2;
}

void peri__interrupt_open (lua_State *L) {
  lua_getglobal(L, LUA_COLIBNAME);
  lua_pushcfunction(L, co_resume);
  lua_setfield(L, -2, "resume");
  lua_pushcfunction(L, co_wrap);
  lua_setfield(L, -2, "wrap");
  lua_getfield(L, -1, "close");
  lua_pushcclosure(L, co_close, 1);
  lua_setfield(L, -2, "close");
  lua_pop(L, 1);

  struct sigaction sa;
  main_state = (running){ L, NULL };
  innermost = &main_state;
  signal_bind = peri__bind(L);
  signal_ctx = signal_bind->ctx;
  on_terminal = isatty(STDERR_FILENO) == 1;
  signal_thread = pthread_self();
  memset(&sa, 0, sizeof sa);
  sa.sa_handler = on_signal;
  sigemptyset(&sa.sa_mask);
  sigaction(SIGINT, &sa, NULL);
}

void peri__interrupt_close (void) {
  signal(SIGINT, SIG_DFL);
  innermost = NULL;
}
