/*
** perilune/env.h - environments: a definition is a struct of functions over plain bytes, the runtime runs many of
** them at once. Part of perilune.h; its rules hold here.
**
** - An environment is a pure transition. The runtime owns generators, the time limit, the autoreset, statistics of
**   episodes, checks and the batch buffers, which an environment reads and writes in place.
** - A definition does not change and may serve many batches, contexts and threads at once.
** - Rows count from 0 here; what a script reads counts them from 1.
*/
#ifndef perilune_env_h
#define perilune_env_h

#include "perilune.h"
#include "perilune/frame.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- random numbers as NumPy's ----------------------------------------------------------------- */

/* numpy.random.Generator(PCG64(SeedSequence(seed))), with its buffered 32-bit half: the same draws, bit for
** bit. NULL is answered by 0. */
typedef struct peri_pcg64 {
  uint64_t state[2], inc[2]; /* low words first */
  uint32_t half, has_half;
} peri_pcg64;
PERI_API void peri_pcg64_seed (peri_pcg64 *r, uint64_t seed);
PERI_API uint64_t peri_pcg64_next (peri_pcg64 *r); /* 64 bits */
PERI_API double peri_pcg64_double (peri_pcg64 *r); /* random(): [0, 1), 53 bits */
PERI_API double peri_pcg64_uniform (peri_pcg64 *r, double low, double high);
PERI_API int64_t peri_pcg64_integer (peri_pcg64 *r, int64_t n); /* integers(0, n); 0 when n < 2 */
PERI_API double peri_pcg64_normal (peri_pcg64 *r);              /* standard_normal() */

/* ---- spaces ------------------------------------------------------------------------------------ */

typedef enum peri_space_kind {
  PERI_SPACE_BOX = 1,        /* numbers between bounds, which may be infinite */
  PERI_SPACE_DISCRETE,       /* one of n integers from start on */
  PERI_SPACE_MULTI_DISCRETE, /* several of them, nvec[i] values from 0 on each */
  PERI_SPACE_MULTI_BINARY    /* several zeros and ones */
} peri_space_kind;

typedef struct peri_space_field { /* a named slice of a Box that was a Dict */
  const char *name;
  peri_space_kind kind; /* what it was: discrete ones are one-hot there */
  int64_t offset, size;
} peri_space_field;

/* What observations or actions may be. Made by the functions below, or field by field. */
typedef struct peri_space {
  uint32_t struct_size; /* sizeof(peri_space); the functions below set it */
  peri_space_kind kind;
  peri_dtype
      dtype; /* Box: f32, f64, u8, i32 or i64; Discrete, MultiDiscrete: i64; MultiBinary: u8 */
  int ndim;  /* Discrete: 0 */
  int64_t shape[PERI_MAX_DIMS];
  double low, high;           /* Box: of every element where lows, highs are NULL */
  const double *lows, *highs; /* or one for each element */
  int64_t n, start;           /* Discrete */
  const int64_t *nvec;        /* MultiDiscrete: shape[0] sizes */
  int nfields;                /* a Dict, flattened into this Box: its slices, else 0 */
  const peri_space_field *field;
} peri_space;

/* Arrays are borrowed. What does not fit together is refused where the space is used. */
PERI_API peri_space peri_space_box (peri_dtype d, double low, double high, int ndim,
                                    const int64_t *shape);
PERI_API peri_space peri_space_discrete (int64_t n);
PERI_API peri_space peri_space_multi_discrete (int64_t n, const int64_t *nvec);
PERI_API peri_space peri_space_multi_binary (int64_t n);
/* PERI_EINVAL says what is wrong with it. */
PERI_API peri_status peri_space_check (peri_ctx *ctx, const peri_space *s);
PERI_API int64_t peri_space_size (const peri_space *s); /* elements of a value; 0: no valid space */
/* Bounds of element i; of discrete kinds the least and the greatest value. */
PERI_API peri_status peri_space_bounds (peri_ctx *ctx, const peri_space *s, int64_t i, double *low,
                                        double *high);
/* Whether a value of peri_space_size elements lies in it. NaN does not. */
PERI_API bool peri_space_contains (const peri_space *s, const void *value);
/* A value, as Gymnasium's spaces draw it where all bounds are finite or none is (else its distribution). mask: for
** Discrete, n flags of values to choose among, or NULL. PERI_EINVAL when it has none. */
PERI_API peri_status peri_space_sample (peri_ctx *ctx, const peri_space *s, peri_pcg64 *rng,
                                        const uint8_t *mask, void *value);

/* ---- definitions ------------------------------------------------------------------------------- */

#define PERI_ENV_MESSAGE 256 /* bytes for the message of peri_env_fail */

/* What one row reads and writes: pointers into the batch buffers. */
typedef struct peri_env_io {
  const void *action;  /* a value of the action space; NULL in reset */
  void *obs;           /* a value of the observation space */
  double *reward;      /* 0 before */
  uint8_t *terminated; /* 0 before; the episode has come to an end of its own */
  uint8_t *truncated;  /* 0 before; it is cut by something else. The time limit is the runtime's */
  uint8_t *mask;       /* legal actions, all 1 before; NULL without PERI_ENV_MASK */
  uint8_t *
      live; /* agents that may act next, 1 before where the agent's episode goes on; NULL with one agent */
  float *metric; /* named numbers of this step, 0 before; NULL without */
  int64_t *row;  /* step_batch alone: where it fails, the row at fault */
  int64_t env;   /* reset alone: which environment of the batch it is */
  const uint64_t
      *seed; /* reset alone: what its generator was just seeded with; NULL: that goes on */
  const uint8_t *which; /* with PERI_ENV_WHOLE: the environments that step or begin; NULL: all */
  char *message;        /* for peri_env_fail */
} peri_env_io;
/* Where several agents share an environment, pointers are those of its first agent's row and the others
** follow: obs of agent k begins k values later, and so on. */

/* Say why a row cannot go on; returns PERI_EHOST, for `return peri_env_fail(io, ...)`. Any thread. */
PERI_API peri_status peri_env_fail (const peri_env_io *io, const char *fmt, ...) PERI_PRINTF(2, 3);

typedef struct peri_env_option { /* what may be said when an environment is made */
  const char *name, *doc;
  double value;     /* default of a number */
  const char *text; /* default of a text; NULL: it is a number */
  double low, high; /* of a number, both included; equal: any */
} peri_env_option;
typedef struct peri_env_args peri_env_args; /* values of the options, while configure runs */
PERI_API double peri_env_number (const peri_env_args *a,
                                 const char *name); /* NAN: no such number */
PERI_API const char *peri_env_text (const peri_env_args *a,
                                    const char *name); /* NULL: no such text */
/* Memory that lives as long as the environment, for spec->shared; 0 bytes of it are set. NULL: none left. */
PERI_API void *peri_env_alloc (const peri_env_args *a, size_t bytes);
/* Refuse the options; returns PERI_EINVAL. */
PERI_API peri_status peri_env_refuse (const peri_env_args *a, const char *fmt, ...)
    PERI_PRINTF(2, 3);

/* What configure fills in. All that it points to is borrowed for as long as the environment lives. */
typedef struct peri_env_spec {
  uint32_t struct_size; /* set */
  peri_space obs, action;
  int agents;              /* rows of one environment; 0 = 1 */
  int64_t max_steps;       /* time limit; 0: none */
  double reward_threshold; /* NAN before: none */
  size_t
      state_bytes; /* of one environment: plain bytes, which are copied, saved and loaded as they are */
  int nmetrics;
  const char *const *metric; /* their names */
  const void *shared;        /* read-only data of all rows */
} peri_env_spec;

typedef struct peri_env_outcome { /* of a state and an action of a tabular environment */
  double probability, reward;
  int64_t next;
  bool terminated;
} peri_env_outcome;

enum {                       /* flags of a definition */
       PERI_ENV_SERIAL = 1,  /* its functions are called on the caller's thread alone */
       PERI_ENV_MASK = 2,    /* it says which actions are legal; the action space is Discrete */
       PERI_ENV_COLUMNS = 4, /* states of a batch are stored by columns; needs step_batch */
       PERI_ENV_ELSEWHERE =
           8, /* its state is not in its bytes: it can be neither saved nor loaded */
       PERI_ENV_WHOLE =
           16 /* all environments step, and those that begin are reset, in one call each, by
                           ** step_batch and reset_batch; step and reset may be NULL */
};

typedef struct peri_env_def {
  uint32_t struct_size; /* sizeof(peri_env_def) */
  uint32_t flags;       /* PERI_ENV_ */
  const char *id, *doc; /* "Name-v1"; a sentence */
  int noptions;
  const peri_env_option *option;
  void *ud; /* for configure */
  peri_status (*configure)(void *ud, const peri_env_args *args, peri_env_spec *spec);
  /* Begin an episode: write state, obs (and mask). state holds what it held: zeros at first. */
  peri_status (*reset)(const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io);
  /* One step. Actions are legal values of their space; of a Box they are finite, but bounds are left to the
  ** environment, as Gymnasium does. */
  peri_status (*step)(const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io);
  /* NULL, or the same for rows begin to end at once, equal to step bit for bit. Pointers of io are those of row 0,
  ** rng + row is a row's generator. states: row i begins i * stride bytes behind it; with PERI_ENV_COLUMNS its
  ** 8-byte word k is ((uint64_t *)states)[k * stride + i], and reset, step and the others get one row in a struct
  ** as ever. With several agents begin, end and i count environments. */
  peri_status (*step_batch)(const void *shared, void *states, int64_t stride, int64_t begin,
                            int64_t end, peri_pcg64 *rng, const peri_env_io *io);
  /* With PERI_ENV_WHOLE: reset the environments i with io->which[i], and leave those without as they are. Pointers of
  ** io are those of row 0, io->seed is of environment 0 and the next has 1 more; reward and flags are NULL.
  ** step_batch has begin 0 and end n then; of environments without io->which nothing that it writes counts. */
  peri_status (*reset_batch)(const void *shared, void *states, int64_t stride, peri_pcg64 *rng,
                             const peri_env_io *io);
  /* NULL, or a picture, and one in characters: a text of at most size - 1 bytes and its 0; PERI_EINVAL:
  ** it does not fit. */
  peri_status (*render)(const void *shared, const void *state, peri_frame *frame);
  peri_status (*text)(const void *shared, const void *state, char *out, size_t size);
  /* NULL, or the transition model of a tabular environment: outcomes of an action, at most max of them are
  ** written; how many there are; -1: no such state or action. States count from 0; outcomes of state -1 are the first
  ** states. They may be more than what is observed, where that does not tell all. */
  int (*model)(const void *shared, int64_t state, int64_t action, int max, peri_env_outcome *out);
  /* NULL, or what is done when a batch that configure has filled in is closed. */
  void (*close)(const void *shared);
} peri_env_def;

/* Known by its id from now on, in this context. The struct is copied, all that it points to is borrowed. An id
** that is there already, built in or registered, is PERI_EINVAL. */
PERI_API peri_status peri_env_register (peri_ctx *ctx, const peri_env_def *def);
/* Ids that are known, the built-in ones first; NULL behind the last. Borrowed. */
PERI_API const peri_env_def *peri_env_at (const peri_ctx *ctx, int i);
PERI_API const peri_env_def *peri_env_find (const peri_ctx *ctx,
                                            const char *id); /* NULL: unknown */

/* ---- batches ----------------------------------------------------------------------------------- */

typedef struct peri_env peri_env; /* a batch of environments of one kind */

typedef enum peri_autoreset { /* what follows the step that ends an episode */
                              PERI_AUTORESET_SAME_STEP, /* it resets as well: obs is the first of the next episode, final_obs has the last */
                              PERI_AUTORESET_NEXT_STEP, /* the next step ignores its action and resets: valid is 0 then */
                              PERI_AUTORESET_DISABLED /* nothing: the caller resets, stepping the row before that is refused */
} peri_autoreset;

typedef struct peri_env_arg { /* a value for an option */
  const char *name;
  double value;
  const char *text; /* NULL: it is a number */
} peri_env_arg;

typedef struct peri_env_options {
  uint32_t struct_size; /* set by peri_env_options_init, as all others */
  int64_t n;            /* environments; 1 */
  peri_autoreset autoreset;
  int threads; /* that step rows, of the context's; 1. 0: all of them. Results do not depend on it */
  int64_t max_steps;       /* -1: the environment's own time limit; 0: none */
  peri_dtype reward_dtype; /* f32 or f64: of PERI_ENV_REWARD; f32 */
  bool seeded; /* seed is given: the first reset uses it. Else the context's generator gives one */
  uint64_t seed; /* environment i gets seed + i, as in Gymnasium's SyncVectorEnv */
  int nargs;
  const peri_env_arg *arg;
} peri_env_options;
PERI_API void peri_env_options_init (peri_env_options *o);

/* An unknown id or option is PERI_EINVAL and named with what there is. o may be NULL. */
PERI_API peri_status peri_env_make (peri_ctx *ctx, const char *id, const peri_env_options *o,
                                    peri_env **out);
/* The same of a definition that need not be registered; it is copied. */
PERI_API peri_status peri_env_make_of (peri_ctx *ctx, const peri_env_def *def,
                                       const peri_env_options *o, peri_env **out);
PERI_API void peri_env_close (peri_env *e); /* before its context; NULL is a no-op */
PERI_API const peri_env_def *peri_env_def_of (const peri_env *e);   /* borrowed */
PERI_API const peri_env_spec *peri_env_spec_of (const peri_env *e); /* borrowed */
PERI_API int64_t peri_env_count (const peri_env *e);                /* environments */
PERI_API int64_t peri_env_rows (const peri_env *e);      /* times agents: rows of the buffers */
PERI_API int64_t peri_env_max_steps (const peri_env *e); /* 0: no time limit */

/* Begin episodes: of all environments, or of those whose flag is not 0. seed: of environment 0, i gets seed + i; NULL:
** their generators go on. Statistics of the episodes so begun start at 0; flags and reward of their rows are 0. */
PERI_API peri_status peri_env_reset (peri_env *e, const uint64_t *seed, const uint8_t *mask);
/* One step of every environment. action: peri_env_rows values of the action space, densely. An action out of its
** space, a row that must be reset first: PERI_EINVAL, and nothing has changed. Where an environment fails, or
** gives NaN or an infinite number, some rows have made their step and some not: until all are reset, or a
** state is loaded, further steps are refused. The message names id, row, step of its episode and value. */
PERI_API peri_status peri_env_step (peri_env *e, const void *action);

typedef enum peri_env_buffer {                      /* rows: peri_env_rows */
                               PERI_ENV_OBS,        /* (rows, shape of the space...) */
                               PERI_ENV_REWARD,     /* (rows) f32 or f64 */
                               PERI_ENV_TERMINATED, /* (rows) bool */
                               PERI_ENV_TRUNCATED, /* (rows) bool: the environment's own limits, and the time limit */
                               PERI_ENV_FINAL_OBS, /* as obs: what this step led to; differs from obs where it reset as well */
                               PERI_ENV_LEGAL, /* (rows, n) bool, with PERI_ENV_MASK: which actions are legal next */
                               PERI_ENV_VALID, /* (rows) bool: 0 where the action was ignored: NEXT_STEP's resets, agents that are out */
                               PERI_ENV_LIVE,   /* (rows) bool: which agents act next */
                               PERI_ENV_METRIC, /* (rows, nmetrics) f32 */
                               PERI_ENV_EPISODE_RETURN, /* (rows) f64: of the last episode that ended; NaN: none has */
                               PERI_ENV_EPISODE_LENGTH, /* (rows) i64; 0: none has */
                               PERI_ENV_NBUFFER
} peri_env_buffer;
/* A view of a buffer that every step and reset overwrites, a reference of the caller's own. It may outlive e. PERI_EINVAL
** when the environment has no such buffer. FINAL_OBS is completed by this call and by peri_env_data. */
PERI_API peri_status peri_env_tensor (peri_env *e, peri_env_buffer what, peri_tensor **out);
/* Its first element, the same place for as long as e lives; NULL: there is no such buffer. */
PERI_API void *peri_env_data (peri_env *e, peri_env_buffer what);

typedef struct peri_env_episode {
  int64_t row, length;
  double episode_return;
} peri_env_episode;
/* The oldest episode that ended and was not asked for yet; false: there is none. At most 2^16 are kept, the oldest are
** dropped and counted. */
PERI_API bool peri_env_next_episode (peri_env *e, peri_env_episode *out);
PERI_API int64_t peri_env_dropped_episodes (const peri_env *e); /* since it was made */

/* Environments as bytes: state, generator, time, statistics and rows of the buffers of environment i, or of all with
** i = -1, one after the other; peri_env_save_size bytes each. What is loaded goes on as what was saved would
** have, in any batch of the same id and options. Bytes of another environment are PERI_EINVAL, and nothing has
** changed. */
PERI_API size_t peri_env_save_size (const peri_env *e);
PERI_API peri_status peri_env_save (peri_env *e, int64_t i, void *out, size_t size);
PERI_API peri_status peri_env_load (peri_env *e, int64_t i, const void *data, size_t size);

/* Draw environment i. PERI_ENOSUP: it has no picture of that kind. */
PERI_API peri_status peri_env_draw (peri_env *e, int64_t i, peri_frame *frame);
PERI_API peri_status peri_env_print (peri_env *e, int64_t i, char *out, size_t size);

#ifdef __cplusplus
}
#endif
#endif
