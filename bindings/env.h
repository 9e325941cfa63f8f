/*
** env.h - the userdata of a batch of environments, for the files bindings/env*.c.
*/
#ifndef peri_bindings_env_h
#define peri_bindings_env_h

#include "bind.h"
#include "env/env.h"

#define PERI_ENV_BOX "perilune.env"

/* User value 1: memory for converted actions. */
typedef struct peri__env_box {
  peri_env *e; /* NULL: not made yet, or closed */
  const peri_space *obs, *action;
  int64_t rows;
  const void *at_obs, *at_reward;
  const uint8_t *at_terminated, *at_truncated;
  void *converted;
} peri__env_box;

peri__env_box *peri__env_box_new (lua_State *L); /* pushes an empty one */
void peri__env_box_fill (peri__env_box *b);      /* from its e */
void peri__open_env_python (lua_State *L);       /* functions into the table on top: env_python.c */

int peri__env_model (lua_State *L); /* env_model.c */

#endif
