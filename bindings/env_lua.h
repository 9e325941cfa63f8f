/*
** env_lua.h - what an environment written in Lua is while it runs, for env_lua.c (rows) and env_whole.c (batches written
** with tensor ops).
*/
#ifndef peri_bindings_env_lua_h
#define peri_bindings_env_lua_h

#include "env.h"

/* Entries of the table in user value 2 of the box. */
enum {
  STEP = 1,
  RESET,
  STATES, /* of environments */
  OBS,    /* of rows */
  ACTION, /* one that is filled for each call */
  RNG,
  MASKS,      /* of rows */
  OBS_OF,     /* of environments: with several agents the list of their rows' */
  MASK_OF,    /* the same of masks */
  METRICS,    /* as ACTION */
  LIVE,       /* as ACTION */
  METRICS_OF, /* what is shown of METRICS */
  NVALUES = METRICS_OF
};

typedef struct peri__env_lua {
  peri_env *e;
  lua_State *L; /* of the call under way; NULL: there is none */
  int values;   /* where its table is on the stack of L */
  peri_space obs, action;
  bool masked;
  int64_t agents;
  int64_t nobs, nact; /* elements of an observation, of an action */
  size_t obs_bytes, act_bytes;
  int nmetrics;
  const char **metric; /* their names */
  int64_t max_steps;
  /* the rows that are being stepped */
  const peri_env_io *io;
  const void *actions;
  peri_pcg64 *rng;             /* of the first row of all */
  peri__rng_box *lent;         /* of rows; NULL: the batch is stepped as a whole */
  struct peri__rng_rows *rows; /* of the whole batch */
  int64_t begin, end, row;
} lua_env;

/* Run fn(values, light userdata v), an error of which becomes the message of the row. */
peri_status peri__env_lua_run (lua_env *v, lua_CFunction fn);

/* ---- env_whole.c ---- */
peri_status peri__env_whole_step (const void *shared, void *states, int64_t stride, int64_t begin,
                                  int64_t end, peri_pcg64 *rng, const peri_env_io *io);
peri_status peri__env_whole_reset (const void *shared, void *states, int64_t stride,
                                   peri_pcg64 *rng, const peri_env_io *io);
void peri__env_whole_rng (lua_State *L, lua_env *v); /* pushes the generators of its rows */
void peri__open_env_whole (lua_State *L);            /* their metatable */

#endif
