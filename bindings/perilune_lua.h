/*
** perilune_lua.h - the Lua side for C hosts: states, tensors across the border, running chunks.
** Link perilune_lua (and with it perilune and lua5.4).
**
** - A Lua state and its context belong to one thread at a time. Close the state (lua_close) before
**   a context that you gave to it.
** - Functions that return peri_status never raise a Lua error and leave the Lua stack as the text
**   says; the message, with a traceback where Lua code failed, is in the context (peri_message).
** - peri_lua_push, peri_lua_check and peri_lua_ctx raise Lua errors: call them from C functions
**   that Lua called, or under lua_pcall. peri_lua_to never raises.
*/
#ifndef perilune_lua_h
#define perilune_lua_h

#include <lua.h>

#include "perilune.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A new state that takes its memory from the context's allocator, with the standard libraries and
** the module: require "perilune" works, from the embedded Lua files. Close it with lua_close. */
PERI_API peri_status peri_lua_new (peri_ctx *ctx, lua_State **out);
/* The module in a host's own state. The context stays the host's. Leaves the stack as it was. */
PERI_API peri_status peri_lua_open (lua_State *L, peri_ctx *ctx);
/* Context of the module in L; raises when the module is not open. Borrowed. */
PERI_API peri_ctx *peri_lua_ctx (lua_State *L);

/* Push a tensor; Lua takes a reference of its own, the caller keeps its one. NULL pushes nil.
** No scope frees it: what the host hands in lives as long as Lua holds it. */
PERI_API void peri_lua_push (lua_State *L, peri_tensor *t);
/* Tensor at idx, borrowed for as long as Lua holds it; NULL: it is no tensor or was released. */
PERI_API peri_tensor *peri_lua_to (lua_State *L, int idx);
/* The same for the arguments of a C function; raises an argument error instead of NULL. */
PERI_API peri_tensor *peri_lua_check (lua_State *L, int arg);

/* Run a chunk (text only, binary chunks are refused). Results are dropped. PERI_EHOST: the chunk
** failed by itself; PERI_EINTR: it was interrupted; PERI_ENOMEM: Lua or an op had no memory, and the error,
** whatever was put around it or refused since, still says so;
** PERI_EFORMAT: syntax; PERI_EIO: the file cannot be read; where the runtime refused something
** (shapes, dtypes, a file), the status it gave, as long as the error still holds its message. name may
** be NULL. Lua's results and errors leave the stack as it was. */
PERI_API peri_status peri_lua_run_string (lua_State *L, const char *text, const char *name);
PERI_API peri_status peri_lua_run_file (lua_State *L, const char *path);
/* lua_pcall with a traceback: function and nargs arguments on the stack are replaced by nresults
** values, or removed when it failed. A recipe that is a coroutine or a stepper advances by this. */
PERI_API peri_status peri_lua_call (lua_State *L, int nargs, int nresults);

/* ---- limits and interrupts: docs/embedding.md ---- */

typedef struct peri_lua_limits {
  uint32_t struct_size;  /* peri_lua_limits_init sets it */
  uint64_t instructions; /* of Lua, in all its threads together; 0: no limit */
  size_t memory;         /* bytes of strings, tables and functions, not of tensors; 0: no limit */
  int look; /* instructions between two looks for peri_interrupt, so that it reaches Lua code that calls
            ** no op; 0: none, then only peri_lua_interrupt does. Lua code that is looked after, or whose
            ** instructions are counted, runs at about half of its speed; ops run at theirs. */
} peri_lua_limits;
PERI_API void
peri_lua_limits_init (peri_lua_limits *l); /* no limits; a look every 1,000 instructions */
/* Limits of L and all its threads from now on; again: new ones and a new count of instructions. Call it before
** scripts run: coroutines that are older are reached only when coroutine.resume or wrap resumes them.
** Where instructions have run out, or an interrupt has been seen, an error is raised again and again until it has
** come to the top, whatever catches it: PERI_EINTR. Memory that has run out is Lua's "not enough
** memory": PERI_ENOMEM. */
PERI_API peri_status peri_lua_limit (lua_State *L, const peri_lua_limits *l);
/* What L has used: instructions (0 where they are not counted) and memory. out->struct_size is set. */
PERI_API peri_status peri_lua_usage (lua_State *L, peri_lua_limits *out);
/* For handlers of signals that run on the thread of L: peri_interrupt that also reaches Lua code where
** look is 0. NULL before peri_lua_limit; good until lua_close. */
typedef struct peri_lua_stop peri_lua_stop;
PERI_API peri_lua_stop *peri_lua_stopper (lua_State *L);
PERI_API void
peri_lua_interrupt (peri_lua_stop *stop); /* from such a handler, or from that thread */

/* ---- workers: docs/threads.md ---- */

/* Have open called in the state of every worker that L starts, and of those that they start, on its thread,
** when the libraries and the module are open: for the C functions of a host. ud is its argument, as light
** userdata. What it raises is the worker's error. NULL: nothing is called. Raises when the module
** is not open in L. */
PERI_API void peri_lua_on_worker (lua_State *L, lua_CFunction open, void *ud);

/* require "perilune.core" in stock Lua: a context of its own, options from PERI_SIMD, PERI_THREADS,
** PERI_SEED and PERI_MAX_BYTES, closed with the state. In a state of peri_lua_new: the module of that state. */
PERI_API int luaopen_perilune_core (lua_State *L);

#ifdef __cplusplus
}
#endif
#endif
