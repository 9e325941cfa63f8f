/*
** custom.h - what a custom function and a checkpoint leave in the tape: a record on the C side, a
** Lua table under a registry reference. The tape owns the record; when it lets go, the record waits
** in a list, because Lua may only be touched at a safe point.
*/
#ifndef peri_custom_h
#define peri_custom_h

#include "bind.h"

#define PERI_CUSTOM_ARGS 64 /* arguments of one custom function */

typedef struct peri_record {
  peri_bind *b; /* NULL once the Lua state is gone */
  int ref;      /* of the Lua table, LUA_NOREF = none */
  struct peri_record *prev, *next;
  size_t size;      /* of the block that this struct is in */
  const char *name; /* static */
  peri_rng rng;     /* checkpoint: the generator's state before the first run */
  int nin;
  /* leaf: a captured one, borrowed from the node; NULL: argument arg, from 1 */
  struct {
    peri_tensor *leaf;
    int arg;
  } in[];
} peri_record;

/* One backward call of a record, for the protected Lua side. */
typedef struct peri__vjp_call {
  peri_record *r;
  peri_ctx *ctx;
  struct peri_vjp *v; /* of a checkpoint: what the pass knows of it */
  int nout, nin;
  peri_tensor *const *gout;
  peri_tensor **gin;
  peri_mode *mode; /* of the pass, in the thread that runs it: peri__run_vjp */
} peri__vjp_call;

/* New record, not yet in a tape; NULL when out of memory. Allocated by the context's allocator. */
peri_record *peri__record_new (peri_bind *b, int nin, const char *name);
void peri__record_free (peri_record *r); /* one that no tape took */
/* Run body (a C function that gets a light peri__vjp_call) protected, in the coroutine of the pass;
** a Lua error becomes PERI_EHOST with its message and traceback. */
peri_status peri__run_vjp (peri__vjp_call *call, lua_CFunction body);
void peri__record_release (void *ud); /* the tape's release callback */
/* Pushes a list of the versions of the tensors in the table at idx and in plain tables in it. Their
** names count integer keys from first. */
void peri__push_versions (lua_State *L, peri_bind *b, int idx, int first);
/* Raises message with the name (%s) of the first tensor of the list that was written into since. */
void peri__check_versions (lua_State *L, peri_bind *b, int versions, const char *message);

#endif
