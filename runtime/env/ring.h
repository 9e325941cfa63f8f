/*
** ring.h - a replay buffer as its files see it: replay.c fills it, replay_sample.c draws from it,
** replay_state.c saves it.
**
** Position p = slot * rows + row. What step p led to is: where ENDS is set in its flags, row
** end[p] & (room - 1) of `ends`; in the newest slot, `after`; else the observation at p + rows. Rows of
** `ends` are numbered in the order of their steps, which is the order in which they are overwritten.
*/
#ifndef peri_env_ring_h
#define peri_env_ring_h

#include "env/fields.h"
#include "env/sumtree.h"

enum { /* ORDER flags: kept in states */
       PERI__TERMINATED = 1,
       PERI__TRUNCATED = 2,
       PERI__ENDS = 4,   /* what it led to is stored apart: no step of its row follows */
       PERI__SKIPPED = 8 /* not valid: never drawn */
};

typedef struct peri__ring_field {
  peri__field is;
  peri_tensor *store;                /* (capacity, rows, ...) */
  peri_tensor *after, *ends;         /* of an observed one: (rows, ...), (room, ...) */
  char saved[3][PERI__NAME_MAX + 8]; /* the names of these three in a state */
} peri__ring_field;

typedef enum peri__origin {
  PERI__FROM_FIELD,
  PERI__FROM_NEXT,
  PERI__FROM_REWARD,
  PERI__FROM_TERMINATED,
  PERI__FROM_TRUNCATED,
  PERI__FROM_DISCOUNT,
  PERI__FROM_INDEX,
  PERI__FROM_WEIGHT,
  PERI__FROM_MASK
} peri__origin;

typedef struct peri__column {
  char name[PERI__NAME_MAX + 8];
  peri__origin source;
  int field; /* of FIELD and NEXT */
} peri__column;

#define PERI__COLUMNS_MAX (2 * PERI__FIELDS_MAX + 8)

struct peri_replay {
  peri_ctx *ctx;
  int64_t capacity, rows, groups, n_step; /* groups 0: all rows are one, without a dim */
  bool prioritised, seeded;
  double alpha, epsilon;
  peri_rng rng; /* its own, where seeded */
  int nfields, nin, nout;
  peri__ring_field field[PERI__FIELDS_MAX];
  peri__column in[PERI__COLUMNS_MAX],
      out[PERI__COLUMNS_MAX];        /* out: mask is the last, beyond nout */
  peri_tensor *reward, *flags, *end; /* (capacity, rows) f32, u8, i32 */
  peri_tensor *power;                /* f64 (n_step + 1): gamma^k */
  peri__sumtree tree;
  double top; /* the largest priority there ever was, as it is in the tree */
  int64_t filled, next, breaks, skipped;
  uint32_t first, ending; /* number of the oldest row of ends; how many there are */
  uint32_t room;          /* of ends: a power of two */
};

static inline float *peri__rewards (const peri_replay *r) { return (float *)r->reward->data; }
static inline uint8_t *peri__flags (const peri_replay *r) { return (uint8_t *)r->flags->data; }
static inline uint32_t *peri__ends (const peri_replay *r) { return (uint32_t *)r->end->data; }
static inline int64_t peri__newest (const peri_replay *r) { /* its slot */
  return r->next > 0 ? r->next - 1 : r->capacity - 1;
}
static inline int64_t peri__oldest (const peri_replay *r) {
  return r->filled < r->capacity ? 0 : r->next;
}
static inline char *peri__at (const peri_tensor *t, int64_t row, size_t bytes) {
  return (char *)t->data + (size_t)row * bytes;
}
/* Room for that many ends at least. On failure nothing changed. */
peri_status peri__ring_room (peri_replay *r, uint64_t ends);

#endif
