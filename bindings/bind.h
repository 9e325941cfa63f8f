/*
** bind.h - what the files of bindings/ share: the state behind one Lua state, tensor boxes,
** argument checks, errors. Rule of the edge: when a Lua API call can raise, nothing on the C stack
** may need freeing. So a result is an empty box on the Lua stack first and is filled second:
**
**     peri_tensor **out = peri__box_new(L);
**     peri__check(L, "load", peri_empty(peri_lua_ctx(L), d, ndim, shape, out));
**     peri__charge(L);
**     return 1;
*/
#ifndef peri_bind_h
#define peri_bind_h

#include <lauxlib.h>
#include <lua.h>

#include "core/core.h"
#include "perilune_lua.h"
#include "thread.h"

/* A tensor userdata. t is first: a peri_tensor ** to it is the box. */
typedef struct peri_box {
  peri_tensor *t;                /* NULL: not filled yet, or released */
  struct peri_box *next, **link; /* in the scope that frees it; link NULL: in none */
} peri_box;

typedef struct peri_scope {
  peri_box *first;
  struct peri_scope *outer; /* of the same thread; NULL: outermost */
  peri_thread *of;          /* which opened it; NULL: closed, or the thread is gone */
  bool open;
} peri_scope;

/* Plain numbers as weak 0-dim tensors, kept so that x * 2 allocates nothing. */
#define PERI_NSCALAR 16

#define PERI_NWARNING 8
#define PERI_WARNING_SIZE 400

struct peri_bind {
  peri_ctx *ctx;          /* NULL after the last finalizer */
  bool owns;              /* close ctx with the Lua state */
  const void *tensor_mt;  /* address of the metatable of tensors */
  peri_threads_of thread; /* whose scopes and modes are in force: thread.c */
  size_t collect_at;      /* live bytes above which the collector is told: box.c */
  size_t after_full;      /* live bytes after the last full collection that growth caused */
  peri_tensor *scalar[PERI_NSCALAR];
  size_t scalar_bytes;         /* of all of them, left out of peri.memory() */
  struct peri_record *records; /* custom functions alive in the tape: grad.c */
  struct peri_record *dead;    /* those to free at the next safe point */
  lua_State *main;             /* the main thread */
  lua_State *L;                /* the coroutine that runs a backward pass; NULL outside */
  char library[256]; /* what the sources of our own Lua files begin with; "": not known yet */
  int intercepted;   /* threads whose linear and embedding go through a Lua function: call.c */
  char notice[PERI_WARNING_SIZE]; /* what a Ctrl-C that is only noted says: main_interrupt.c */
  bool bar;                       /* the terminal's last line is a progress bar without an end */
  unsigned warnings, told;        /* how many there were, and of them given by peri.warnings() */
  char warning[PERI_NWARNING][PERI_WARNING_SIZE]; /* the last ones, in turn */
  struct peri_worker *workers;                    /* that this state has started: worker.c */
  lua_CFunction worker_open;                      /* peri_lua_on_worker */
  void *worker_ud;
  bool inside; /* the library's embedded files go before those of package.path */
};

/* The scopes and modes of L are in force: see peri__thread_look. */
static inline void peri__here (lua_State *L, peri_bind *b) {
  if (b->thread.at != L) peri__thread_look(L, b);
}

/* ---- state.c ---- */
/* The state of the perilune module opened in L; raises when there is none. */
peri_bind *peri__bind (lua_State *L);
/* The context of L. In perilune_lua.h:  peri_ctx *peri_lua_ctx (lua_State *L); */

/* Functions are registered with signature and doc, or not at all. Registered functions have
** upvalues (light peri_bind, light peri_reg, metatable of tensors). */
typedef struct peri_reg {
  const char *name, *sig, *doc; /* sig "x, dim?"; doc one sentence; doc NULL: a metamethod */
  lua_CFunction fn;
} peri_reg;
void peri__register (lua_State *L, const peri_reg *list); /* into the table on top */
#define BIND(L) ((peri_bind *)lua_touserdata((L), lua_upvalueindex(1)))

/* Metatable for a userdata type: __name and a fixed __metatable; list holds its metamethods and,
** below methods, what __index finds. Kept in the registry under key. Pushes it. */
void peri__metatable (lua_State *L, const char *key, const peri_reg *meta, const peri_reg *methods);
/* Push a new table with weak keys. */
void peri__weak_keys (lua_State *L);

/* ---- facts.c ---- */
int peri__activations (lua_State *L);
int peri__dtypes (lua_State *L);

/* ---- box.c ---- */
/* Push an empty box, registered in the innermost open scope of L, whose modes are in force then. */
peri_tensor **peri__box_new (lua_State *L);
/* The same with the metatable at stack or upvalue index mt, for the hot paths. */
peri_box *peri__box_push (lua_State *L, peri_bind *b, int mt);
/* Push a box for a tensor, retained. */
void peri__box_share (lua_State *L, peri_tensor *t);
/* Tell the collector about new bytes; call it once after boxes were filled. May run finalizers. */
void peri__charge_slow (lua_State *L, peri_bind *b);
void peri__collect_forward (lua_State *L, peri_bind *b);
void peri__charge (lua_State *L);
void peri__box_unlink (peri_box *box);
void peri__box_release (peri_bind *b, peri_box *box); /* idempotent */

/* Box at idx or NULL when it is something else. */
static inline peri_box *peri__box_at (lua_State *L, const peri_bind *b, int idx) {
  peri_box *box = (peri_box *)lua_touserdata(L, idx);
  if (!box || !lua_getmetatable(L, idx)) return NULL;
  bool ok = lua_topointer(L, -1) == b->tensor_mt;
  lua_pop(L, 1);
  return ok ? box : NULL;
}

int peri__error (lua_State *L, const char *fmt, ...);
/* For loops that make or read many Lua values: raises when an interrupt is there at step i. */
static inline void peri__look (lua_State *L, const peri_ctx *ctx, int64_t i, const char *fn) {
  if (peri__give_up(ctx, i)) peri__error(L, "%s: interrupted", fn);
}

bool peri__is_tensor (lua_State *L, int idx);
/* Borrowed tensor at argument arg; raises for another type or a released one. fn names the
** function in messages, name the parameter (may be NULL). */
peri_tensor *peri__want_tensor (lua_State *L, int arg, const char *fn, const char *name);

/* ---- errors: state.c ---- */
/* luaL_error, but the place in front of the message is that of whoever called into the library: the
** innermost function that is neither C nor in one of its Lua files. As ORDER places: options.raise. */
int peri__error (lua_State *L, const char *fmt, ...);
#define luaL_error peri__error
/* Push the place that peri__error would name. */
void peri__push_place (lua_State *L);
/* Raise "fn: message of the context" unless s is PERI_OK. */
void peri__check (lua_State *L, const char *fn, peri_status s);
/* Raise "fn: argument 2 (b) must be WHAT, got string". name may be NULL. */
int peri__type_error (lua_State *L, const char *fn, int arg, const char *name, const char *what);
/* Out of memory: collect garbage and say whether a second try makes sense. */
bool peri__retry (lua_State *L, peri_status s, int *tries);

/* ---- arguments: args.c ---- */
/* Sizes at arg (a table or one integer) into shape[PERI_MAX_DIMS]; the number of dims. */
int peri__want_shape (lua_State *L, int arg, const char *fn, const char *name, int64_t *shape);
peri_dtype peri__want_dtype_arg (lua_State *L, int arg, const char *fn, const char *name);
/* A table of integers that print shows and == compares by its sizes. */
void peri__push_shape (lua_State *L, int ndim, const int64_t *shape);
/* "(2, 3)" pushed as a string. */
void peri__push_shape_text (lua_State *L, int ndim, const int64_t *shape);

/* ---- scopes inside C functions: memory.c ---- */
/* Open a scope whose userdata is pushed; a raised error leaves it to the caller's caller. */
void peri__scope_enter (lua_State *L, peri_scope **out);
void peri__scope_leave (peri_bind *b, peri_scope *s);  /* frees what was made in it; idempotent */
void peri__scope_lift (peri_scope *to, peri_box *box); /* hand box to scope to; NULL = no scope */

/* ---- elements: tensor.c, make.c ---- */
void peri__push_element (lua_State *L, peri_dtype d, const void *p);
/* Store the Lua value at idx; raises when it does not fit. */
void peri__put_element (lua_State *L, const char *fn, int idx, peri_dtype d, void *p);

/* ---- what each file adds; all expect the module table on top and leave it there ---- */
void peri__open_call (lua_State *L);       /* every op, as function and method: call.c */
void peri__open_tensor (lua_State *L);     /* metatable, fields, methods: tensor.c */
void peri__open_make (lua_State *L);       /* peri.tensor, from_bytes, tolist: make.c */
void peri__open_memory (lua_State *L);     /* scopes, steps, keep: memory.c */
void peri__open_grad (lua_State *L);       /* grad.c */
void peri__open_custom (lua_State *L);     /* custom.c */
void peri__open_checkpoint (lua_State *L); /* checkpoint.c */
void peri__open_rng (lua_State *L);        /* rng.c */
void peri__open_info (lua_State *L);       /* info, ops, profile, time: info.c */
void peri__open_limits (lua_State *L);     /* limits: limit.c */
void peri__open_channel (lua_State *L);    /* channels, receive, poll: channel.c */
void peri__open_worker (lua_State *L);     /* _worker: worker.c */
void peri__open_replay (lua_State *L);     /* _replay: replay.c */
void peri__open_rollout (lua_State *L);    /* _rollout: rollout.c */
void peri__open_sandbox (lua_State *L);    /* _sandbox: sandbox.c */
void peri__open_deadline (lua_State *L);   /* _deadline: deadline.c */
void peri__open_http (lua_State *L);       /* _http: http.c */
int peri__open_json (lua_State *L);        /* pushes one table: json.c */
int peri__open_files (lua_State *L);       /* pushes one table: files.c */
int peri__open_safetensors (lua_State *L); /* pushes one table: safetensors.c */
int peri__open_gguf (lua_State *L);        /* pushes one table: gguf.c */
int peri__open_policy (lua_State *L);      /* pushes one table: policy.c */
void peri__open_arrays (lua_State *L);     /* npy, npz, idx: arrays.c */
void peri__open_frame (lua_State *L);      /* frame, _image: frame.c */
int peri__open_tokenizer (lua_State *L);   /* pushes one table: tokenizer.c */
int peri__open_env (lua_State *L);         /* pushes one table: env.c */
int peri__tostring (lua_State *L);         /* __tostring of tensors, never fails: print.c */

/* Push a new frame of shapes; the frame at argument arg: frame.c */
peri_frame *peri__frame_push (lua_State *L);
peri_frame *peri__want_frame (lua_State *L, int arg, const char *fn);
/* The op that a Lua function runs; NULL for other functions: call.c */
const peri_op *peri__op_of (lua_State *L, int idx);
/* Push what this thread's linear and embedding go through; false, nothing pushed: no function. */
bool peri__intercept_push (lua_State *L);
void peri__custom_close (peri_bind *b); /* forget the Lua side of custom functions: custom.c */
void peri__custom_sweep (lua_State *L, peri_bind *b); /* free records that the tape let go of */
/* Pushes a to-be-closed guard under which L records or does not: grad.c */
void peri__grad_guard (lua_State *L, bool on);
/* (name) -> text of an embedded Lua file, nothing when there is none; needs no context: info.c */
int peri__source (lua_State *L);
double peri__deadline (lua_State *L, int arg, const char *fn, double otherwise); /* channel.c */
void peri__workers_sweep (
    peri_bind *b); /* free those that have ended, tell of warnings: worker.c */
void peri__workers_close (peri_bind *b); /* stop all, and wait for it */
/* A state without libraries; NULL: no memory. host.c */
lua_State *peri__new_state (peri_alloc_fn alloc, void *ud);
/* peri_lua_open with the embedded files before or after those of package.path: state.c */
peri_status peri__lua_open (lua_State *L, peri_ctx *ctx, bool inside);
bool peri__embedded_first (lua_State *L); /* whether require looks there first */
/* Let require find the embedded files, before or after those of package.path: state.c */
void peri__add_searcher (lua_State *L, bool first);
int peri__traceback (lua_State *L); /* message handler: host.c */
/* Pops the error value of a lua_pcall that gave rc: it becomes the message of ctx (may be NULL). The
** status is that of the runtime's failure which the error tells of, else by rc, else PERI_EHOST. */
peri_status peri__caught (lua_State *L, peri_ctx *ctx, int rc);
/* The error value at idx as text, pushed: strings, __tostring, the plain fields of a table: host.c */
const char *peri__error_text (lua_State *L, int idx);
/* New reference to a weak 0-dim tensor. cached: it is not handed on to Lua as a result. */
peri_status peri__number (peri_bind *b, bool integer, lua_Integer i, lua_Number f, bool cached,
                          peri_tensor **out);

/* Registry keys: the address is the key. */
extern const char peri__key_bind, peri__key_tensor, peri__key_methods, peri__key_intercept,
    peri__key_ops;

#endif
