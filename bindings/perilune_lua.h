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
** failed by itself; PERI_EINTR: it was interrupted; PERI_ENOMEM: Lua or an op had no memory;
** PERI_EFORMAT: syntax; PERI_EIO: the file cannot be read; where the runtime refused something
** (shapes, dtypes, a file), the status it gave, as long as the error still holds its message. name may
** be NULL. Lua's results and errors leave the stack as it was. */
PERI_API peri_status peri_lua_run_string (lua_State *L, const char *text, const char *name);
PERI_API peri_status peri_lua_run_file (lua_State *L, const char *path);
/* lua_pcall with a traceback: function and nargs arguments on the stack are replaced by nresults
** values, or removed when it failed. A recipe that is a coroutine or a stepper advances by this. */
PERI_API peri_status peri_lua_call (lua_State *L, int nargs, int nresults);

/* require "perilune.core" in stock Lua: a context of its own, options from PERI_SIMD, PERI_THREADS,
** PERI_SEED and PERI_MAX_BYTES, closed with the state. In a state of peri_lua_new: the module of that state. */
PERI_API int luaopen_perilune_core (lua_State *L);

#ifdef __cplusplus
}
#endif
#endif
