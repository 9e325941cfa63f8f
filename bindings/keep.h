/*
** keep.h - for the file functions of bindings/: a userdata that frees something of the runtime when
** a Lua error or the end of the function leaves it behind, handles of open files, tables of tensors
** in a fixed order, what came of it.
*/
#ifndef peri_keep_h
#define peri_keep_h

#include "bind.h"

typedef struct peri_keep {
  void *p;
  size_t n;
  void (*drop)(peri_ctx *ctx, void *p, size_t n);
} peri_keep;

/* Push one that holds nothing yet; p NULL is never dropped. room: bytes of its own that follow it,
** for what p points to when that is no allocation of its own: another userdata may be collected
** before the finalizer of this one runs. */
peri_keep *peri__keep_new (lua_State *L, size_t room,
                           void (*drop)(peri_ctx *ctx, void *p, size_t n));
#define peri__keep_room(k) ((void *)((k) + 1))
/* Drop now; idempotent. */
void peri__keep_drop (lua_State *L, peri_keep *k);

/* A userdata with a metatable of its own for what stays open between calls: a file, a writer. */
typedef struct peri_handle {
  void *p; /* NULL: closed */
} peri_handle;

/* Push a closed one of a registered type, with room for user values. */
peri_handle *peri__handle_new (lua_State *L, const char *type, int values);
/* What the handle at argument 1 holds; raises when it is no handle of that type or is closed. */
void *peri__handle_open (lua_State *L, const char *type, const char *fn);
/* The same, to be closed now: the handle holds nothing any more. NULL when there is nothing to
** close: no handle of that type, closed before, or the context has gone and all it had with it. */
void *peri__handle_take (lua_State *L, const char *type);

typedef struct peri_key {
  const char *s;
  size_t n;
} peri_key;
/* Push a userdata with the n string keys of the table at idx, sorted by byte; borrowed from it. */
peri_key *peri__sorted_keys (lua_State *L, int idx, size_t n);
/* Push two userdata: the names and the tensors that the table at idx holds under n keys. Raises
** when one is no tensor. */
void peri__named_tensors (lua_State *L, int idx, const char *fn, size_t n, const peri_key *keys,
                          const char ***names, peri_tensor ***tensors);
/* Set shape, offset and bytes of the table on top: where a tensor is in a file. */
void peri__set_place (lua_State *L, int ndim, const int64_t *shape, uint64_t offset,
                      uint64_t bytes);

/* A string without zero bytes at argument arg, or raises. */
const char *peri__want_path (lua_State *L, int arg, const char *fn);
/* Push nil and "fn: message of the context"; for what the outside world did. */
int peri__fail_soft (lua_State *L, const char *fn);
/* Push true, or what peri__fail_soft pushes. */
int peri__done (lua_State *L, const char *fn, peri_status s);
/* The same, but misuse (PERI_EINVAL, PERI_EDTYPE) raises. */
int peri__done_or_raise (lua_State *L, const char *fn, peri_status s);
/* Raises when the table at idx has a key that is not in the list (NULL ends). None is fine. */
void peri__want_options (lua_State *L, int idx, const char *fn, const char *const *names);
/* The option `map` of a table at idx that may have no other; false without it. */
bool peri__want_map (lua_State *L, int idx, const char *fn);

#endif
