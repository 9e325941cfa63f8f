/*
** policy.h - what the two halves of a policy share: the file's reader (policy_read.c) and what runs it
** (policy.c).
*/
#ifndef peri_env_policy_h
#define peri_env_policy_h

#include "core/json.h"
#include "op/op.h"
#include "perilune/policy.h"

#define PERI_POLICY_NAME 128 /* bytes of a name, its end included */
#define PERI_POLICY_STEPS 1024
#define PERI_POLICY_SLOTS 4096
#define PERI_POLICY_IN 8
#define PERI_POLICY_ATTRS 8
#define PERI_POLICY_INTS 8

/* A value of the program by its name: a tensor of the file, what a row remembers, or a result. */
typedef struct peri__slot {
  char name[PERI_POLICY_NAME];
  peri_tensor *constant; /* owned; NULL: another kind */
  bool state;            /* kept from call to call */
  bool known;            /* something has given it a value: programs are read in order */
  int ndim;              /* of a state, without rows */
  int64_t shape[PERI_MAX_DIMS];
} peri__slot;

/* One call of an op. */
typedef struct peri__policy_step {
  const peri_op *op;
  int nin, nout, nattr;
  bool list;              /* the inputs are one list */
  int in[PERI_POLICY_IN]; /* slots; -1: left out */
  int out[PERI_MAX_OUT];
  peri_arg attr[PERI_POLICY_ATTRS]; /* names and texts point into text, lists into ints */
  char text[PERI_POLICY_ATTRS][2][32];
  int64_t ints[PERI_POLICY_ATTRS][PERI_POLICY_INTS];
} peri__policy_step;

/* ORDER policy head: names in policy_read.c */
typedef enum peri__head {
  PERI_HEAD_CATEGORICAL, /* logits (n, actions); MultiDiscrete: of all parts, one after the other */
  PERI_HEAD_BERNOULLI,   /* logits (n, parts) */
  PERI_HEAD_GREEDY,      /* values (n, actions); the best, or with epsilon any */
  PERI_HEAD_GAUSSIAN,    /* mean (n, size) and log_std, cut to the bounds */
  PERI_HEAD_SQUASHED,    /* the same through tanh, stretched to the bounds */
  PERI_HEAD_TANH,        /* in [-1, 1], stretched to the bounds */
  PERI_NHEAD
} peri__head;

struct peri_policy {
  peri_ctx *ctx;
  char env[PERI_POLICY_NAME];
  peri_space obs, action;
  peri__slot *slot; /* slot 0 is the observation */
  int nslots;
  peri__policy_step *step;
  int nsteps;
  peri__head head;
  int result[2]; /* slots that the head reads; -1: none */
  double epsilon;
  peri_tensor **value;  /* nslots entries, while the program runs */
  peri_tensor **memory; /* nslots entries: states between calls */
  int64_t rows;         /* that the memory is of; 0: nothing remembered */
};

/* ---- space_read.c ---- */
/* A space; its lists are peri__space_drop's to free. On failure *s is empty. */
peri_status peri__space_read (peri_json *j, peri_space *s);
void peri__space_drop (peri_ctx *ctx, peri_space *s);
/* Sizes of at least 1, at most PERI_MAX_DIMS - 1 of them: rows come before. */
peri_status peri__shape_read (peri_json *j, int *ndim, int64_t *out);

/* ---- policy_read.c ---- */
/* Fill p, which is zeros but for ctx, from the file; on failure p may be half full. */
peri_status peri__policy_read (peri_policy *p, const char *path);

#endif
