/*
** keep.h - for the file functions of bindings/: a userdata that frees something of the runtime when
** a Lua error or the end of the function leaves it behind, and strings in a fixed order.
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

typedef struct peri_key {
  const char *s;
  size_t n;
} peri_key;
/* Push a userdata with the n string keys of the table at idx, sorted by byte; borrowed from it. */
peri_key *peri__sorted_keys (lua_State *L, int idx, size_t n);

/* A string without zero bytes at argument arg, or raises. */
const char *peri__want_path (lua_State *L, int arg, const char *fn);
/* Push nil and "fn: message of the context"; for what the outside world did. */
int peri__fail_soft (lua_State *L, const char *fn);
/* Raises when the table at idx has a key that is not in the list (NULL ends). None is fine. */
void peri__want_options (lua_State *L, int idx, const char *fn, const char *const *names);

#endif
