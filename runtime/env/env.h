/*
** env.h - what the files of runtime/env/ share: the batch as it lies in memory, spaces as a loop sees them.
** What an environment sees of it is perilune/env.h alone.
*/
#ifndef peri_env_internal_h
#define peri_env_internal_h

#include "core/core.h"

/* ---- spaces: space.c ---- */
/* Copy a space and all it points to into one block of the allocator, *size bytes; to be freed. NULL: no memory. */
void *peri__space_copy (peri_ctx *ctx, const peri_space *from, peri_space *to, size_t *size);
size_t peri__space_bytes (const peri_space *s); /* of a value */
/* The first of rows values that does not lie in the space, or rows. free_box: of a Box only NaN and infinite
** elements do not. */
int64_t peri__space_bad_row (const peri_space *s, const void *values, int64_t rows);
/* "element 3 is nan, expected a finite number": why a value is not in it, by the same rules. */
void peri__space_complaint (const peri_space *s, const void *value, char *out, size_t size);

/* ---- batches ---- */
enum { PERI_ENV_BLOCK = 256 /* rows, about, between two looks at flags and for an interrupt */ };

struct peri_env {
  peri_ctx *ctx;
  peri_env_def def;
  peri_env_spec spec;
  struct peri_env_args *args; /* values of options and what configure allocated */
  void *obs_copy, *action_copy;
  size_t obs_copy_size, action_copy_size;

  int64_t n, agents, rows, max_steps;
  int64_t block; /* environments of a block */
  peri_autoreset autoreset;
  int threads;
  peri_dtype reward_dtype;
  size_t obs_bytes, action_bytes, state_bytes; /* of a value; state_bytes is rounded up to words */
  bool columns, batch;                         /* how states are stored; whether step_batch runs */
  bool whole;                                  /* PERI_ENV_WHOLE: the batch is one block */
  int64_t stride;                              /* of states, as step_batch gets it */

  peri_tensor *buffer[PERI_ENV_NBUFFER]; /* NULL: there is none */
  peri_tensor *hidden[4];                /* memory of what no buffer shows */
  unsigned char *obs, *final_obs, *state;
  double *reward, *sum; /* (rows) of the step; of the episode so far */
  float *reward32;      /* NULL: rewards are given out as f64 */
  uint8_t *terminated, *truncated, *legal, *valid, *live;
  uint8_t *over;  /* (rows) the episode has ended and the next has not begun */
  uint8_t *kept;  /* (rows) final_obs has the row, for the step has reset it */
  uint8_t *which; /* (n) for calls of the whole batch */
  float *metric;
  double *episode_return;
  int64_t *episode_length;
  int64_t *started;  /* (n) the tick at which the episode began */
  int64_t *deadline; /* (blocks) no episode of the block reaches the time limit before this tick */
  peri_pcg64 *rng;   /* (n) */
  unsigned char *scratch; /* for each thread what a reset may write that is not kept, and a state */
  size_t scratch_bytes;

  uint32_t lent; /* a bit for each buffer that somebody has as a tensor */

  int64_t tick;                             /* steps of the batch */
  bool configured, begun, broken, any_over; /* any_over: perhaps */
  bool final_partial;                       /* final_obs lacks the rows that are not kept */
  bool seeded;
  uint64_t seed;

  peri_env_episode *episode; /* ring of those that were not asked for */
  int64_t episode_cap, episode_first, episode_count, episode_dropped;
};

void peri__env_args_free (peri_ctx *ctx, struct peri_env_args *a);
/* Run configure with the values of o. */
peri_status peri__env_configure (peri_ctx *ctx, const peri_env_def *def, const peri_env_options *o,
                                 peri_env_spec *spec, struct peri_env_args **args);
peri_status peri__env_check_def (peri_ctx *ctx, const peri_env_def *def);

/* ---- the runner: vector.c ---- */
/* A state by rows, out of the batch and into it. */
void peri__env_state_copy (const peri_env *e, int64_t i, void *out);
void peri__env_state_set (peri_env *e, int64_t i, const void *from);

/* ---- episodes: episode.c ---- */
/* Room for those that may end in a step. */
PERI_API peri_status peri__env_episode_room (peri_env *e);
PERI_API void peri__env_episode_put (peri_env *e, peri_env_episode one);

#endif
