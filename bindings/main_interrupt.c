/*
** main_interrupt.c - Ctrl-C in the program: the signal, the terminal, and when it ends the process.
** What stops ops and Lua is the library's (limit.c).
*/
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <lualib.h>

#include "bind.h"
#include "limit.h"
#include "repl.h"

static peri_lua_stop *volatile signal_stop; /* NULL: no handler */
static peri_ctx *signal_ctx;                /* these are set before it */
static const peri_bind *signal_bind;
static bool on_terminal;                  /* the standard error */
static pthread_t signal_thread;           /* the one that runs Lua */
static volatile sig_atomic_t signal_at;   /* second of the last Ctrl-C that interrupts, 0 = none */
static volatile sig_atomic_t signal_seen; /* any, deferred ones included */

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
  peri_lua_interrupt(signal_stop);
}

bool peri__interrupt_pending (void) { return signal_at != 0; }
bool peri__interrupt_seen (void) { return signal_seen != 0; }

void peri__interrupt_done (void) {
  if (!signal_stop) return;
  signal_at = 0;
  signal_seen = 0;
  atomic_store(&signal_ctx->deferring, 0);
  peri__stop_done(signal_stop);
}

void peri__interrupt_open (lua_State *L) {
  struct sigaction sa;
  peri_lua_limits none;
  peri_lua_limits_init(&none);
  none.look = 0; /* the handler runs on this thread: scripts need not pay for looking */
  peri__check(L, "perilune", peri_lua_limit(L, &none));
  signal_bind = peri__bind(L);
  signal_ctx = signal_bind->ctx;
  signal_stop = peri_lua_stopper(L);
  on_terminal = isatty(STDERR_FILENO) == 1;
  signal_thread = pthread_self();
  memset(&sa, 0, sizeof sa);
  sa.sa_handler = on_signal;
  sigemptyset(&sa.sa_mask);
  sigaction(SIGINT, &sa, NULL);
}

void peri__interrupt_close (void) {
  signal(SIGINT, SIG_DFL);
  peri__interrupt_done(); /* finalizers run on */
  signal_stop = NULL;
}
