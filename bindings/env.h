/*
** env.h - the userdata of a batch of environments, for the files bindings/env*.c.
*/
#ifndef peri_bindings_env_h
#define peri_bindings_env_h

#include "bind.h"
#include "env/env.h"

#define PERI_ENV_BOX "perilune.env"
#define PERI_RNG_BOX "perilune.pcg64"

struct peri__env_lua; /* one that is written in Lua: env_lua.c */

/* User value 1: memory for converted actions; 2: the values of one that is written in Lua. */
typedef struct peri__env_box {
  peri_env *e; /* NULL: not made yet, or closed */
  const peri_space *obs, *action;
  int64_t rows;
  const void *at_obs, *at_reward;
  const uint8_t *at_terminated, *at_truncated;
  void *converted;
  struct peri__env_lua *lua; /* NULL: a definition in C */
} peri__env_box;

peri__env_box *peri__env_box_new (lua_State *L);                /* pushes an empty one */
void peri__env_box_fill (peri__env_box *b);                     /* from its e */
peri__env_box *peri__env_box_at (lua_State *L, const char *fn); /* argument 1 */
/* The options at stack index t of make, all but the environment's own. */
void peri__env_options_at (lua_State *L, int t, peri_env_options *o);

/* A generator: its own, or that of a row while it is stepped (NULL: it is not). */
typedef struct peri__rng_box {
  peri_pcg64 *r, own;
} peri__rng_box;
peri__rng_box *peri__rng_new (lua_State *L); /* pushes one */
peri_pcg64 *peri__rng_at (lua_State *L, int arg, const char *fn);

/* ---- spaces: env_space.c ---- */
void peri__space_push (lua_State *L, const peri_space *s);
/* The space that the table at t describes, checked; what it points to is in userdata left on the stack. */
peri_space peri__space_at (lua_State *L, int t, const char *fn, const char *what);
void peri__open_env_space (lua_State *L); /* functions into the table on top */

/* ---- written in Lua: env_lua.c ---- */
/* As peri_env_step and peri_env_reset, of the box at stack or upvalue index box. */
peri_status peri__env_lua_step (lua_State *L, peri__env_box *b, int box, const void *action);
peri_status peri__env_lua_reset (lua_State *L, peri__env_box *b, int box, const uint64_t *seed,
                                 const uint8_t *mask);
void peri__env_lua_loaded (lua_State *L, peri__env_box *b, int box); /* rows were loaded */
void peri__open_env_lua (lua_State *L);

void peri__open_env_python (lua_State *L); /* functions into the table on top: env_python.c */

int peri__env_model (lua_State *L);   /* env_model.c */
int peri__env_collect (lua_State *L); /* collect.c */

#endif
