/*
** worker.h - a Lua state with a context of its own on a thread of its own. What goes in and comes out are
** packets (pack.h); nothing else of a state is seen by two threads but the struct below, under its gate.
*/
#ifndef peri_worker_h
#define peri_worker_h

#include "limit.h"
#include "pack.h"

typedef struct peri_worker peri_worker;

typedef enum peri_worker_state {
  WORKER_RUNNING,
  WORKER_DONE,
  WORKER_FAILED,
  WORKER_INTERRUPTED
} peri_worker_state; /* ORDER state_names */

struct peri_worker {
  peri_alloc_fn alloc;
  void *alloc_ud;
  peri_ctx *parent; /* to ring; lives longer than the thread */
  int64_t index;
  pthread_t thread;
  peri_lua_limits limits;
  bool embedded_first; /* where require looks: state.c */
  lua_CFunction open;  /* of the host; NULL: none */
  void *open_ud;
  peri__packet *inherits; /* package.path, cpath, preload, libraries */
  peri__packet *start;    /* the function and its arguments */
  /* of the parent's thread alone */
  struct peri_worker *next, **link;
  bool held;   /* by its object */
  bool asked;  /* for what it failed of */
  bool joined; /* its thread is gone */
  /* of both */
  pthread_mutex_t gate;
  peri_ctx *ctx; /* NULL: closed */
  peri_worker_state state;
  peri__packet *result; /* WORKER_DONE */
  char *
      error; /* WORKER_FAILED, WORKER_INTERRUPTED: text with the traceback; NULL: there was no memory for it */
  size_t error_size;
  unsigned warnings; /* there were; and the first ones */
  char warning[PERI_NWARNING][PERI_WARNING_SIZE];
};

/* Names of Lua's own libraries, NULL behind the last. */
extern const char *const peri__worker_libraries[];

/* The thread of a worker, from its state's beginning to its context's end: worker_run.c */
void *peri__worker_main (void *worker);
/* Of its context: lines are kept for whoever started it. */
void peri__worker_log (void *worker, peri_log_level level, const char *line);

#endif
