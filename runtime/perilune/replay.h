/*
** replay.h - what learners keep of the past: replay buffers (uniform, prioritised, n-step, sequences) and
** rollouts. Included by perilune.h, whose rules hold here.
*/
#ifndef peri_replay_h
#define peri_replay_h

#include "perilune.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A named field of every step: rows of one dtype and shape. */
typedef enum peri_field_role {
  PERI_FIELD_STEP,     /* belongs to the step: an action, a log-probability */
  PERI_FIELD_OBSERVED, /* seen before each step and after it: an observation, a mask of legal actions */
  PERI_FIELD_START     /* given at the first step of a sequence alone: a recurrent state */
} peri_field_role;
typedef struct peri_field {
  const char *name; /* letters, digits, _; at most 47 bytes; borrowed during the call */
  peri_dtype dtype;
  peri_field_role role;
  int ndim; /* at most PERI_MAX_DIMS - 2 */
  int64_t shape[PERI_MAX_DIMS];
  const peri_space *
      space; /* what values must lie in, as an environment checks actions (bounds of a Box do not count, but
                              numbers are finite): of the field's dtype and shape; copied. NULL: any value */
} peri_field;

/* ---- replay buffers ------------------------------------------------------------------------- */

/* The last steps of several environments (rows) that step together: a ring of capacity steps, each of
** all rows. What is observed is stored once: what a step led to is what the next one of its row began
** with, but where an episode ended (terminated or truncated) or the row went on from something else;
** there it is stored apart, in memory that grows with the number of such ends. A sample is always what
** was added, bit for bit. Steps have positions: slot of the ring * rows + row. */
typedef struct peri_replay peri_replay;

typedef struct peri_replay_options {
  uint32_t struct_size;     /* set by peri_replay_options_init */
  int64_t capacity;         /* steps of each row */
  int64_t rows;             /* environments */
  int64_t groups;           /* of rows that are drawn from apart; 0: none, see peri_replay_sample */
  int nfields;              /* fields besides reward, terminated and truncated */
  const peri_field *fields; /* borrowed during the call */
  int64_t n_step;           /* rewards that are summed, at most 65536 */
  double gamma;             /* their discount, 0 to 1 */
  bool prioritised;
  double alpha;   /* exponent of priorities, 0 to 1 */
  double epsilon; /* is added to each, above 0 */
  bool seeded;    /* draw from a generator of its own, else from the context's */
  uint64_t seed;
} peri_replay_options;

/* No field, one row, no groups, one step, discount 0.99, not prioritised (alpha 0.6, epsilon 1e-6), not seeded. */
PERI_API void peri_replay_options_init (peri_replay_options *o);
/* Takes all memory at once but that of ends; PERI_ENOMEM says how many bytes it needs. */
PERI_API peri_status peri_replay_open (peri_ctx *ctx, const peri_replay_options *o,
                                       peri_replay **out);
PERI_API void peri_replay_close (peri_replay *r);         /* before its context; NULL is a no-op */
PERI_API int64_t peri_replay_size (const peri_replay *r); /* transitions in it: steps * rows */
PERI_API int64_t peri_replay_breaks (const peri_replay *r); /* see peri_replay_add */
PERI_API size_t peri_replay_bytes (const peri_replay *r);   /* of memory that it holds */
PERI_API void peri_replay_clear (peri_replay *r);           /* forgets all steps */

/* Names of what peri_replay_add takes, in its order: the fields, next_NAME of each observed one, reward
** (f32 or f64, kept as f32), terminated, truncated, valid (bool or u8). NULL behind the last. */
PERI_API const char *peri_replay_input (const peri_replay *r, int i);
/* Add one step of all rows: (rows, ...) each; with one row its dim may be left out. next_NAME is what the
** step led to, for every row: the last observation of an episode where it ended, not the first of the
** next one. Only valid may be NULL: all are. Where it is 0 (the step after an end under next-step
** autoreset) the row's step is never drawn. A row whose observation is not what its last step led to,
** though no episode ended, begins an episode all the same, as if it had been truncated; peri_replay_breaks
** counts these. */
PERI_API peri_status peri_replay_add (peri_replay *r, int nin, peri_tensor *const *in);

/* Names of what a sample is, in its order: the fields, next_NAME of each observed one, reward,
** terminated, truncated (bool), discount (f32), index (i64: positions), and weight (f32) of a prioritised
** buffer. Sequences have mask (f32) behind. NULL behind the last.
**
** From its position on a sample sums the rewards of k <= n_step steps of its row: up to the first end,
** or to the newest step: reward = r0 + gamma r1 + ... + gamma^(k-1) r(k-1), discount = gamma^k. next_NAME,
** terminated and truncated are those of the last of them. So the target of a value is
** reward + discount * (1 - terminated) * value(next). */
PERI_API const char *peri_replay_output (const peri_replay *r, bool sequences, int i);
/* Draw n transitions with replacement, also when there are fewer: (n, ...) each. PERI_EINVAL when there
** is none. Uniform, or with probability P = p / sum p by priority, from n equal parts of the sum;
** weight = (N P)^-beta over the largest such weight in the buffer. out: nout entries, as many as there
** are outputs; an entry that is NULL is made, another one is written into: dense, of the right dtype and
** shape, in no graph. The same seed draws the same, whatever the number of threads.
**
** With groups = G a sample is (G, n, ...): n transitions of each group of rows / G rows that follow one
** another, the buffers of G learners as one. Such a buffer has no priorities, and G divides rows. */
PERI_API peri_status peri_replay_sample (peri_replay *r, int64_t n, double beta, int nout,
                                         peri_tensor **out);
/* Draw n steps in the same way and give what surrounds each: up to burn_in steps of its episode before
** it, then it and those after it up to its episode's end, length at most: (n, burn_in + length, ...), from
** the first dim of steps on. mask is 1 from the drawn step on, 0 at the steps before it and behind the end,
** where everything is 0 and index -1. START fields are (n, ...), of the first step given; weight is (n).
** With groups the first dim is one more, (G, n, ...). */
PERI_API peri_status peri_replay_sequences (peri_replay *r, int64_t n, int64_t length,
                                            int64_t burn_in, double beta, int nout,
                                            peri_tensor **out);
/* The transitions at given positions, i64 (n); weights are those of beta 1. */
PERI_API peri_status peri_replay_gather (peri_replay *r, peri_tensor *index, int nout,
                                         peri_tensor **out);
/* Give transitions new priorities: index i64 (n), priority f32 or f64 (n) from 0: |delta|, made
** (|delta| + epsilon)^alpha. NaN, infinite and negative ones are refused by their place, and then none is
** changed. Of one index given twice the last counts. Added steps have the largest there ever was. */
PERI_API peri_status peri_replay_prioritise (peri_replay *r, peri_tensor *index,
                                             peri_tensor *priority);

/* Everything that a buffer holds, as tensors with names, none of it beyond what is filled: tensor i, a new
** reference to the buffer's own memory where that is possible (write it before the next add), and its
** name, borrowed. *out is NULL behind the last. */
PERI_API peri_status peri_replay_state (peri_replay *r, int i, const char **name,
                                        peri_tensor **out);
/* Go on from such tensors, of a buffer with the same capacity, rows and fields: what is drawn from now
** on is what the other would draw. On failure nothing changed. */
PERI_API peri_status peri_replay_restore (peri_replay *r, int n, const char *const *names,
                                          peri_tensor *const *tensors);

/* ---- rollouts ------------------------------------------------------------------------------- */

/* So many steps of several environments (rows), learnt from and filled again: a tensor (steps, rows, ...)
** for each field, (rows, ...) for a START one. */
typedef struct peri_rollout peri_rollout;
/* Zeros. Observed fields are as others. PERI_ENOMEM says how many bytes it needs. */
PERI_API peri_status peri_rollout_open (peri_ctx *ctx, int64_t steps, int64_t rows, int nfields,
                                        const peri_field *fields, peri_rollout **out);
PERI_API void peri_rollout_close (peri_rollout *r); /* before its context; NULL is a no-op */
PERI_API int peri_rollout_fields (const peri_rollout *r);
PERI_API const char *peri_rollout_name (const peri_rollout *r, int i); /* NULL: there is none */
PERI_API peri_field_role peri_rollout_role (const peri_rollout *r, int i);
PERI_API peri_tensor *peri_rollout_tensor (const peri_rollout *r, int i); /* borrowed */
/* Write step t of the fields whose entry is not NULL: (rows, ...) each, with one row its dim may be left
** out. START fields have no step: they are written into their tensor. */
PERI_API peri_status peri_rollout_set (peri_rollout *r, int64_t t, int nin, peri_tensor *const *in);
/* What an epoch visits: a permutation of all steps * rows steps or, whole, of the rows; i64 (n), from the
** context's generator. With groups > 1 the rows are those of as many learners, one behind the other, each
** with a permutation of its own: groups * size entries from k * groups * size on are minibatch k, size of
** the first learner, then size of the second, ...; fewer of each in the last. PERI_EINVAL where groups
** does not divide the rows. */
PERI_API peri_status peri_rollout_shuffle (peri_rollout *r, bool whole, int64_t groups,
                                           int64_t size, peri_tensor **out);
/* The minibatch of count entries of such a permutation from begin on: (count, ...) of each field, NULL for
** START ones; or, whole, (steps, count, ...), and (count, ...) for START ones. */
PERI_API peri_status peri_rollout_batch (peri_rollout *r, bool whole, peri_tensor *permutation,
                                         int64_t begin, int64_t count, int nout, peri_tensor **out);

#ifdef __cplusplus
}
#endif
#endif
