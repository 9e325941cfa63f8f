/*
** vector.c - the runner: one step or reset of every environment of a batch. The loop over rows calls the environment
** and moves pointers, no more; flags, limits, sums and checks are done for a block of rows at a time, in loops that the
** compiler turns into vector code. Rows are cut into blocks for threads, and what a row does depends on nothing but
** its own state, so results do not depend on threads.
*/
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "env/env.h"

typedef struct job {
  peri_env *e;
  const unsigned char *action;
  const uint8_t *mask;  /* of a reset: the environments; NULL: all */
  const uint64_t *seed; /* of a reset: of environment 0; NULL: none */
  /* the failure of the lowest row */
  pthread_mutex_t lock;
  int64_t row; /* INT64_MAX: none */
  peri_status status;
  char message[PERI_ENV_MESSAGE + 64];
} job;

peri_status peri_env_fail (const peri_env_io *io, const char *fmt, ...) {
  if (!io || !io->message || !fmt) return PERI_EHOST;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(io->message, PERI_ENV_MESSAGE, fmt, ap);
  va_end(ap);
  return PERI_EHOST;
}

static void note (job *j, int64_t row, peri_status s, const char *fmt, ...) {
  pthread_mutex_lock(&j->lock);
  if (row < j->row) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(j->message, sizeof j->message, fmt, ap);
    va_end(ap);
    j->row = row;
    j->status = s;
  }
  pthread_mutex_unlock(&j->lock);
}

/* ---- rows ---- */

static void point_at (const peri_env *e, int64_t row, peri_env_io *io) {
  io->obs = e->obs + (size_t)row * e->obs_bytes;
  io->reward = e->reward + row;
  io->terminated = e->terminated + row;
  io->truncated = e->truncated + row;
  io->mask = e->legal ? e->legal + row * e->spec.action.n : NULL;
  io->live = e->live ? e->live + row : NULL;
  io->metric = e->metric ? e->metric + row * e->spec.nmetrics : NULL;
}

void peri__env_state_copy (const peri_env *e, int64_t i, void *out) {
  if (!e->columns) {
    if (e->state_bytes) memcpy(out, e->state + (size_t)i * e->state_bytes, e->state_bytes);
    return;
  }
  for (size_t k = 0; k < e->state_bytes; k += 8)
    memcpy((char *)out + k, e->state + k * (size_t)e->stride + (size_t)i * 8, 8);
}

void peri__env_state_set (peri_env *e, int64_t i, const void *from) {
  if (!e->columns) {
    if (e->state_bytes) memcpy(e->state + (size_t)i * e->state_bytes, from, e->state_bytes);
    return;
  }
  for (size_t k = 0; k < e->state_bytes; k += 8)
    memcpy(e->state + k * (size_t)e->stride + (size_t)i * 8, (const char *)from + k, 8);
}

/* An episode of environment i has begun. */
static void begin_episode (peri_env *e, int64_t i) {
  int64_t row = i * e->agents;
  e->started[i] = e->tick;
  memset(e->over + row, 0, (size_t)e->agents);
  for (int64_t k = 0; k < e->agents; k++) e->sum[row + k] = 0;
}

/* What a reset observed of environment i lies in its space. */
static bool check_first_obs (job *j, int64_t i) {
  peri_env *e = j->e;
  const unsigned char *obs = e->obs + (size_t)(i * e->agents) * e->obs_bytes;
  int64_t bad = peri__space_bad_row(&e->spec.obs, obs, e->agents);
  if (bad == e->agents) return true;
  char why[PERI_ENV_MESSAGE];
  peri__space_complaint(&e->spec.obs, obs + (size_t)bad * e->obs_bytes, why, sizeof why);
  note(j, i * e->agents + bad, PERI_EHOST, "reset: its observation %s", why);
  return false;
}

/* Somebody acts next in each environment whose episode goes on. */
static bool check_turns (job *j, int64_t begin, int64_t end, const char *when) {
  const peri_env *e = j->e;
  for (int64_t i = begin; e->live && i < end; i++) {
    bool idle = true, out = true;
    for (int64_t row = i * e->agents; idle && row < (i + 1) * e->agents; row++)
      idle = !e->live[row], out &= e->over[row];
    if (!idle || out) continue;
    note(j, i * e->agents, PERI_EHOST,
         "%sno agent may act next (live), and the episode has not ended", when);
    return false;
  }
  return true;
}

/* Begin an episode of environment i. Its reward and flags are those of the step before and stay. */
static bool reset_one (job *j, int64_t i, int worker) {
  peri_env *e = j->e;
  int64_t row = i * e->agents;
  char message[PERI_ENV_MESSAGE] = "";
  unsigned char *scratch = e->scratch + (size_t)worker * e->scratch_bytes;
  unsigned char *state = e->state + (size_t)i * e->state_bytes;
  uint64_t seed = j->seed ? *j->seed + (uint64_t)i : 0;
  peri_env_io io = { .message = message, .env = i, .seed = j->seed ? &seed : NULL };
  point_at(e, row, &io);
  io.reward = (double *)(void *)scratch;
  io.terminated = scratch + e->agents * 8;
  io.truncated = io.terminated + e->agents;
  if (e->legal) memset(io.mask, 1, (size_t)(e->agents * e->spec.action.n));
  if (e->live) memset(io.live, 1, (size_t)e->agents);
  if (e->columns) {
    state = scratch + e->scratch_bytes - (e->state_bytes + 63) / 64 * 64;
    peri__env_state_copy(e, i, state);
  }
  peri_status s = e->def.reset(e->spec.shared, state, &e->rng[i], &io);
  if (e->columns) peri__env_state_set(e, i, state);
  begin_episode(e, i);
  if (s == PERI_OK) return check_first_obs(j, i) && check_turns(j, i, i + 1, "reset: ");
  note(j, row, s, "reset: %s", *message ? message : peri_status_name(s));
  return false;
}

/* Begin episodes of the environments i with which[i], NULL: of all, in one call. */
static bool reset_whole (job *j, const uint8_t *which) {
  peri_env *e = j->e;
  char message[PERI_ENV_MESSAGE] = "";
  int64_t row = -1, first = -1;
  peri_env_io io = { .message = message, .row = &row, .seed = j->seed, .which = which };
  point_at(e, 0, &io);
  io.reward = NULL;
  io.terminated = io.truncated = NULL;
  for (int64_t i = 0; i < e->n; i++) {
    if (which && !which[i]) continue;
    const size_t agents = (size_t)e->agents, n = (size_t)e->spec.action.n;
    if (e->legal) memset(e->legal + (size_t)i * agents * n, 1, agents * n);
    if (e->live) memset(e->live + (size_t)i * agents, 1, agents);
    begin_episode(e, i);
    if (first < 0) first = i * e->agents;
  }
  if (first < 0) return true;
  peri_status s = e->def.reset_batch(e->spec.shared, e->state, e->stride, e->rng, &io);
  if (s != PERI_OK) {
    note(j, row >= 0 && row < e->rows ? row : first, s, "reset: %s",
         *message ? message : peri_status_name(s));
    return false;
  }
  for (int64_t i = 0; i < e->n; i++)
    if ((!which || which[i]) && !check_first_obs(j, i)) return false;
  return true;
}

/* ---- what follows the steps of a block ---- */

/* 0 or 1 in place of what environments wrote; whether there is a 1. */
static bool settle_flags (uint8_t *restrict a, uint8_t *restrict b, int64_t n) {
  uint8_t any = 0;
  for (int64_t i = 0; i < n; i++) {
    a[i] = a[i] != 0;
    b[i] = b[i] != 0;
    any |= (uint8_t)(a[i] | b[i]);
  }
  return any != 0;
}

static void add_rewards (double *restrict sum, const double *restrict reward, int64_t n) {
  for (int64_t i = 0; i < n; i++) sum[i] += reward[i];
}

static void narrow_rewards (float *restrict out, const double *restrict reward, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = (float)reward[i];
}

/* The bits of the largest reward: of a double, and of one that rounds to a finite float. */
static bool rewards_fit (const peri_env *e, const double *reward, int64_t n) {
  const uint64_t most = e->reward32 ? 0x47efffffefffffffu : 0x7fefffffffffffffu;
  uint64_t beyond = 0;
  for (int64_t i = 0; i < n; i++) {
    uint64_t bits;
    memcpy(&bits, reward + i, sizeof bits);
    beyond |= most - (bits & 0x7fffffffffffffffu);
  }
  return !(beyond >> 63);
}

/* What an environment gave for rows from row on is a legal observation and a finite reward. */
static bool check_rows (job *j, int64_t row, int64_t n) {
  peri_env *e = j->e;
  bool finite = rewards_fit(e, e->reward + row, n);
  int64_t bad = peri__space_bad_row(&e->spec.obs, e->obs + (size_t)row * e->obs_bytes, n);
  if (finite && bad == n) return true;
  for (int64_t i = 0; i < n && i <= bad; i++)
    if (!rewards_fit(e, e->reward + row + i, 1)) {
      note(j, row + i, PERI_EHOST, "its reward is %g, expected a finite number%s",
           e->reward[row + i], isfinite(e->reward[row + i]) ? " of f32 (or rewards of f64)" : "");
      return false;
    }
  char why[PERI_ENV_MESSAGE];
  peri__space_complaint(&e->spec.obs, e->obs + (size_t)(row + bad) * e->obs_bytes, why, sizeof why);
  note(j, row + bad, PERI_EHOST, "its observation %s", why);
  return false;
}

/* Truncate what has reached the time limit, in a block that may have such rows; whether there are some. */
static bool limit_steps (peri_env *e, int64_t begin, int64_t end) {
  int64_t least = INT64_MAX;
  bool any = false;
  for (int64_t i = begin; i < end; i++) {
    bool late = e->tick - e->started[i] >= e->max_steps;
    for (int64_t row = i * e->agents; row < (i + 1) * e->agents; row++)
      if (late && !e->over[row]) e->truncated[row] = 1, any = true;
    if (!late && e->started[i] + e->max_steps < least) least = e->started[i] + e->max_steps;
  }
  /* those that reset now have a later one, those that wait for a reset are seen again */
  e->deadline[begin / e->block] = least < e->tick + e->max_steps ? least : e->tick + 1;
  return any;
}

/* Agents that were out before the step: nothing that the environment says of them counts. */
static void silence (peri_env *e, int64_t row) {
  e->terminated[row] = e->truncated[row] = e->valid[row] = 0;
  e->reward[row] = 0;
  if (e->reward32) e->reward32[row] = 0;
  if (e->live) e->live[row] = 0;
}

/* The first row in [row, end) that a step has ended or cut, or end. Eight flags at once, which are 0 or 1. */
static int64_t next_ended (const peri_env *e, int64_t row, int64_t end) {
  for (; row + 8 <= end; row += 8) {
    uint64_t a, b;
    memcpy(&a, e->terminated + row, sizeof a);
    memcpy(&b, e->truncated + row, sizeof b);
    a |= b;
    if (a) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
      return row + __builtin_clzll(a) / 8;
#else
      return row + __builtin_ctzll(a) / 8;
#endif
    }
  }
  while (row < end && !(e->terminated[row] | e->truncated[row])) row++;
  return row;
}

/* Note what has ended in environment i; reset it when all of its agents are out, or mark it for reset_whole. */
static bool end_episodes (job *j, int64_t i, int worker) {
  peri_env *e = j->e;
  int64_t first = i * e->agents, last = first + e->agents, out = 0;
  for (int64_t row = first; row < last; row++) {
    if (!e->over[row] && (e->terminated[row] | e->truncated[row])) {
      e->episode_return[row] = e->sum[row];
      e->episode_length[row] = e->tick - e->started[i];
      e->over[row] = 1;
      if (e->live) e->live[row] = 0;
    }
    out += e->over[row];
  }
  if (out < e->agents || e->autoreset != PERI_AUTORESET_SAME_STEP) return true;
  memcpy(e->final_obs + (size_t)first * e->obs_bytes, e->obs + (size_t)first * e->obs_bytes,
         (size_t)e->agents * e->obs_bytes);
  memset(e->kept + first, 1, (size_t)e->agents);
  if (!e->whole) return reset_one(j, i, worker);
  e->which[i] = 1;
  return true;
}

static bool finish_block (job *j, int64_t begin, int64_t end, int worker) {
  peri_env *e = j->e;
  int64_t row = begin * e->agents, n = (end - begin) * e->agents;
  if (e->agents > 1)
    for (int64_t r = row; r < row + n; r++)
      if (e->over[r]) silence(e, r);
  bool any = settle_flags(e->terminated + row, e->truncated + row, n);
  if (e->max_steps && e->tick >= e->deadline[begin / e->block]) any |= limit_steps(e, begin, end);
  if (!check_rows(j, row, n)) return false;
  add_rewards(e->sum + row, e->reward + row, n);
  if (e->reward32) narrow_rewards(e->reward32 + row, e->reward + row, n);
  if (!any) return check_turns(j, begin, end, "");
  if (e->whole) memset(e->which, 0, (size_t)e->n);
  for (int64_t r = row; (r = next_ended(e, r, row + n)) < row + n;) {
    int64_t i = e->agents == 1 ? r : r / e->agents;
    if (!end_episodes(j, i, worker)) return false;
    r = (i + 1) * e->agents;
  }
  return check_turns(j, begin, end, "") && (!e->whole || reset_whole(j, e->which));
}

/* ---- steps ---- */

/* Environments begin to end, none of which is to be skipped; the first that failed, or end. */
static int64_t step_each (job *j, int64_t begin, int64_t end) {
  peri_env *e = j->e;
  char message[PERI_ENV_MESSAGE] = "";
  peri_env_io io = { .message = message };
  point_at(e, begin * e->agents, &io);
  const unsigned char *action = j->action + (size_t)(begin * e->agents) * e->action_bytes;
  unsigned char *state = e->state + (size_t)begin * e->state_bytes;
  peri_pcg64 *rng = e->rng + begin;
  const size_t actions = (size_t)e->agents * e->action_bytes, states = e->state_bytes;
  const size_t observations = (size_t)e->agents * e->obs_bytes;
  const int64_t agents = e->agents, legal = e->legal ? agents * e->spec.action.n : 0;
  const int64_t metrics = agents * e->spec.nmetrics;
  const void *shared = e->spec.shared;
  peri_status (*step)(const void *, void *, peri_pcg64 *, const peri_env_io *) = e->def.step;
  for (int64_t i = begin; i < end; i++) {
    io.action = action;
    peri_status s = step(shared, state, rng, &io);
    if (__builtin_expect(s != PERI_OK, 0)) {
      note(j, i * agents, s, "%s", *message ? message : peri_status_name(s));
      return i;
    }
    action += actions;
    state += states;
    rng++;
    io.obs = (char *)io.obs + observations;
    io.reward += agents;
    io.terminated += agents;
    io.truncated += agents;
    if (legal) io.mask += legal;
    if (agents > 1) io.live += agents;
    if (metrics) io.metric += metrics;
  }
  return end;
}

/* which: of the whole batch the environments that are not to be skipped; NULL: all. */
static int64_t step_all (job *j, int64_t begin, int64_t end, const uint8_t *which) {
  peri_env *e = j->e;
  if (!e->batch) return step_each(j, begin, end);
  char message[PERI_ENV_MESSAGE] = "";
  int64_t row = -1;
  peri_env_io io = { .action = j->action, .message = message, .row = &row, .which = which };
  point_at(e, 0, &io);
  peri_status s = e->def.step_batch(e->spec.shared, e->state, e->stride, begin, end, e->rng, &io);
  if (s == PERI_OK) return end;
  if (row < begin * e->agents || row >= end * e->agents) row = begin * e->agents;
  note(j, row, s, "%s", *message ? message : peri_status_name(s));
  return row / e->agents;
}

static bool waits (const peri_env *e, int64_t i) {
  for (int64_t row = i * e->agents; row < (i + 1) * e->agents; row++)
    if (!e->over[row]) return false;
  return true;
}

/* Rows that wait for a reset get it in place of a step. */
static bool step_or_reset (job *j, int64_t begin, int64_t end, int worker) {
  peri_env *e = j->e;
  for (int64_t i = begin; i < end;) {
    int64_t first = i;
    while (i < end && !waits(e, i)) i++;
    int64_t failed = i > first ? step_all(j, first, i, NULL) : i;
    if (failed < i) return check_rows(j, begin * e->agents, (failed - begin) * e->agents), false;
    for (; i < end && waits(e, i); i++) {
      if (!reset_one(j, i, worker)) return false;
      memset(e->valid + i * e->agents, 0, (size_t)e->agents);
    }
  }
  return true;
}

/* The same for a batch that is stepped as a whole. */
static bool step_or_reset_whole (job *j) {
  peri_env *e = j->e;
  int64_t steps = 0;
  for (int64_t i = 0; i < e->n; i++) steps += e->which[i] = !waits(e, i);
  if (steps > 0) {
    int64_t failed = step_all(j, 0, e->n, steps < e->n ? e->which : NULL);
    if (failed < e->n) return false;
  }
  for (int64_t i = 0; i < e->n; i++) {
    e->which[i] = !e->which[i];
    if (!e->which[i]) continue;
    for (int64_t row = i * e->agents; row < (i + 1) * e->agents; row++) silence(e, row);
    if (e->metric)
      memset(e->metric + i * e->agents * e->spec.nmetrics, 0,
             (size_t)(e->agents * e->spec.nmetrics) * sizeof *e->metric);
  }
  return reset_whole(j, e->which);
}

static bool step_block (job *j, int64_t begin, int64_t end, int worker) {
  peri_env *e = j->e;
  int64_t row = begin * e->agents, n = (end - begin) * e->agents;
  memset(e->terminated + row, 0, (size_t)n);
  memset(e->truncated + row, 0, (size_t)n);
  memset(e->valid + row, 1, (size_t)n);
  memset(e->kept + row, 0, (size_t)n);
  memset(e->reward + row, 0, (size_t)n * sizeof *e->reward);
  if (e->legal) memset(e->legal + row * e->spec.action.n, 1, (size_t)(n * e->spec.action.n));
  if (e->metric)
    memset(e->metric + row * e->spec.nmetrics, 0,
           (size_t)(n * e->spec.nmetrics) * sizeof *e->metric);
  if (e->live)
    for (int64_t r = row; r < row + n; r++) e->live[r] = !e->over[r];
  if (e->any_over && e->autoreset == PERI_AUTORESET_NEXT_STEP) {
    if (!(e->whole ? step_or_reset_whole(j) : step_or_reset(j, begin, end, worker))) return false;
  } else {
    int64_t failed = step_all(j, begin, end, NULL);
    if (failed < end) return check_rows(j, row, failed * e->agents - row), false;
  }
  return finish_block(j, begin, end, worker);
}

static void step_rows (void *ud, int64_t begin, int64_t end, int worker) {
  job *j = ud;
  peri_env *e = j->e;
  for (int64_t i = begin; i < end; i += e->block) {
    if (peri__stopped(e->ctx)) return;
    if (!step_block(j, i, i + e->block < end ? i + e->block : end, worker)) return;
  }
}

static void reset_rows (void *ud, int64_t begin, int64_t end, int worker) {
  job *j = ud;
  if (j->e->whole) {
    reset_whole(j, j->mask);
    return;
  }
  for (int64_t i = begin; i < end; i++) {
    if (j->mask && !j->mask[i]) continue;
    if (peri__stopped(j->e->ctx) || !reset_one(j, i, worker)) return;
  }
}

static void open_job (job *j, peri_env *e, const void *action, const uint8_t *mask) {
  j->e = e;
  j->action = action;
  j->mask = mask;
  j->seed = NULL;
  j->row = INT64_MAX;
  pthread_mutex_init(&j->lock, NULL);
}

/* Tell what came of it. */
static peri_status close_job (job *j) {
  peri_env *e = j->e;
  peri_status s = PERI_OK;
  pthread_mutex_destroy(&j->lock);
  if (j->row < INT64_MAX)
    s = peri__fail(e->ctx, j->status, "%s: row %s, step %" PRId64 " of its episode: %s", e->def.id,
                   peri__nth(e->ctx, j->row), e->tick - e->started[j->row / e->agents], j->message);
  else if (peri__stopped(e->ctx))
    s = peri__fail(e->ctx, PERI_EINTR, "%s: interrupted", e->def.id);
  if (s != PERI_OK) e->broken = true;
  return s;
}

static void run (job *j, peri_range_fn fn) {
  peri_env *e = j->e;
  if (e->threads == 1)
    fn(j, 0, e->n, 0);
  else {
    int64_t share = (e->n + e->threads - 1) / e->threads;
    peri__parallel(e->ctx, e->n, (share + e->block - 1) / e->block * e->block, fn, j);
  }
}

/* Buffers that somebody has as tensors are about to be overwritten: not when other contexts read them, and a tape is
** to know. */
static peri_status begin_writing (peri_env *e) {
  for (uint32_t left = e->lent; left; left &= left - 1) {
    peri_storage *s = e->buffer[__builtin_ctz(left)]->storage;
    if (s->readonly)
      return peri__fail(e->ctx, PERI_EINVAL,
                        "%s: a buffer of it was shared with other contexts and may not change",
                        e->def.id);
    s->version++;
  }
  return PERI_OK;
}

static peri_status check_actions (peri_env *e, const void *action) {
  const peri_space *s = &e->spec.action;
  if (e->rows == 1 && s->kind == PERI_SPACE_DISCRETE &&
      (uint64_t)(*(const int64_t *)action) - (uint64_t)s->start < (uint64_t)s->n)
    return PERI_OK;
  int64_t bad = peri__space_bad_row(s, action, e->rows);
  if (bad == e->rows) return PERI_OK;
  char why[PERI_ENV_MESSAGE];
  peri__space_complaint(s, (const char *)action + (size_t)bad * e->action_bytes, why, sizeof why);
  return peri__fail(e->ctx, PERI_EINVAL, "%s: row %s, step %" PRId64 " of its episode: action %s",
                    e->def.id, peri__nth(e->ctx, bad), e->tick + 1 - e->started[bad / e->agents],
                    why);
}

static peri_status check_begun (peri_env *e) {
  if (!e->begun)
    return peri__fail(e->ctx, PERI_EINVAL, "%s: step before the first reset", e->def.id);
  if (e->broken)
    return peri__fail(e->ctx, PERI_EINVAL,
                      "%s: an earlier step or reset failed; reset all rows, or load a state",
                      e->def.id);
  if (!e->any_over || e->autoreset != PERI_AUTORESET_DISABLED) return PERI_OK;
  for (int64_t i = 0; i < e->n; i++)
    if (waits(e, i))
      return peri__fail(e->ctx, PERI_EINVAL, "%s: the episode of row %s has ended: reset it first",
                        e->def.id, peri__nth(e->ctx, i * e->agents));
  return PERI_OK;
}

/* Episodes that ended, in the order of rows, whatever thread saw them. */
static void collect (peri_env *e) {
  bool stay = e->agents > 1 || e->autoreset != PERI_AUTORESET_SAME_STEP;
  e->any_over = stay && e->any_over;
  for (int64_t row = 0; (row = next_ended(e, row, e->rows)) < e->rows; row++) {
    peri__env_episode_put(e, (peri_env_episode){ .row = row,
                                                 .length = e->episode_length[row],
                                                 .episode_return = e->episode_return[row] });
    e->any_over |= stay;
  }
}

/* A batch of one row, without what makes many rows fast. What is not as it should be goes the long way. *quiet: the
** step has ended no episode. */
static peri_status step_one (peri_env *e, const void *action, bool *quiet) {
  char message[PERI_ENV_MESSAGE];
  message[0] = 0;
  peri_env_io io = { .action = action, .message = message };
  point_at(e, 0, &io);
  *e->reward = 0;
  *e->terminated = *e->truncated = *e->kept = 0;
  *e->valid = 1;
  if (e->legal) memset(e->legal, 1, (size_t)e->spec.action.n);
  if (e->metric) memset(e->metric, 0, (size_t)e->spec.nmetrics * sizeof *e->metric);
  peri_status s = e->def.step(e->spec.shared, e->state, e->rng, &io);
  bool late = e->max_steps && e->tick - *e->started >= e->max_steps;
  if (s == PERI_OK && !late && !(*e->terminated | *e->truncated) && rewards_fit(e, e->reward, 1) &&
      peri__space_bad_row(&e->spec.obs, e->obs, 1) == 1) {
    *e->sum += *e->reward;
    if (e->reward32) *e->reward32 = (float)*e->reward;
    *quiet = true;
    return PERI_OK;
  }
  job j;
  open_job(&j, e, action, NULL);
  *e->deadline = 0;
  if (s != PERI_OK)
    note(&j, 0, s, "%s", *message ? message : peri_status_name(s));
  else
    finish_block(&j, 0, 1, 0);
  return close_job(&j);
}

peri_status peri_env_step (peri_env *e, const void *action) {
  if (!e) return PERI_EINVAL;
  NEED(e->ctx, action);
  TRY(check_begun(e));
  TRY(check_actions(e, action));
  if (e->episode_count + e->rows > e->episode_cap) TRY(peri__env_episode_room(e));
  TRY(begin_writing(e));
  e->tick++;
  e->final_partial = true;
  if (e->rows == 1 && !e->any_over && !e->whole) {
    bool quiet = false;
    TRY(step_one(e, action, &quiet));
    if (quiet) return PERI_OK;
  } else {
    job j;
    open_job(&j, e, action, NULL);
    run(&j, step_rows);
    TRY(close_job(&j));
  }
  collect(e);
  return PERI_OK;
}

static void seed_rows (peri_env *e, uint64_t seed, const uint8_t *mask) {
  for (int64_t i = 0; i < e->n; i++)
    if (!mask || mask[i]) peri_pcg64_seed(&e->rng[i], seed + (uint64_t)i);
}

/* A seed from the context's generator, of 63 bits so that scripts can say it. */
static uint64_t drawn_seed (peri_ctx *ctx) {
  uint32_t w[4];
  peri_rng r = peri_rng_get(ctx);
  const uint32_t counter[4] = { (uint32_t)r.offset, (uint32_t)(r.offset >> 32), 0, 0x656e76u };
  const uint32_t key[2] = { (uint32_t)r.seed, (uint32_t)(r.seed >> 32) };
  peri_philox(counter, key, w);
  r.offset++;
  peri_rng_set(ctx, r);
  return ((uint64_t)w[0] << 32 | w[1]) >> 2;
}

peri_status peri_env_reset (peri_env *e, const uint64_t *seed, const uint8_t *mask) {
  if (!e) return PERI_EINVAL;
  if (mask && (!e->begun || e->broken))
    return peri__fail(e->ctx, PERI_EINVAL, "%s: %s: all rows must be reset", e->def.id,
                      e->begun ? "an earlier step or reset failed" : "the first reset");
  TRY(begin_writing(e));
  uint64_t first = seed ? *seed : e->begun ? 0 : e->seeded ? e->seed : drawn_seed(e->ctx);
  bool seeds = seed || !e->begun;
  if (seeds) seed_rows(e, first, mask);
  for (int64_t row = 0; row < e->rows; row++) {
    if (mask && !mask[row / e->agents]) continue;
    e->terminated[row] = e->truncated[row] = e->kept[row] = 0;
    e->valid[row] = 1;
    e->reward[row] = 0;
    if (e->reward32) e->reward32[row] = 0;
  }
  if (e->metric && !mask) memset(e->metric, 0, (size_t)(e->rows * e->spec.nmetrics) * 4);
  memset(e->deadline, 0, (size_t)((e->n + e->block - 1) / e->block) * sizeof *e->deadline);
  e->final_partial = true;
  job j;
  open_job(&j, e, NULL, mask);
  j.seed = seeds ? &first : NULL;
  e->begun = true;
  run(&j, reset_rows);
  TRY(close_job(&j));
  if (!mask) e->any_over = e->broken = false;
  return PERI_OK;
}

/* ---- pictures ---- */

static peri_status state_of (peri_env *e, int64_t i, const void **state) {
  if (!e->begun) return peri__fail(e->ctx, PERI_EINVAL, "%s: before the first reset", e->def.id);
  if (i < 0 || i >= e->n)
    return peri__fail(e->ctx, PERI_EINVAL, "%s: %" PRId64 " environments, no number %s", e->def.id,
                      e->n, peri__nth(e->ctx, i));
  *state = e->state + (size_t)i * e->state_bytes;
  if (!e->columns) return PERI_OK;
  unsigned char *own = e->scratch + e->scratch_bytes - (e->state_bytes + 63) / 64 * 64;
  peri__env_state_copy(e, i, own);
  *state = own;
  return PERI_OK;
}

peri_status peri_env_draw (peri_env *e, int64_t i, peri_frame *frame) {
  if (!e) return PERI_EINVAL;
  NEED(e->ctx, frame);
  const void *state = NULL;
  TRY(state_of(e, i, &state));
  if (!e->def.render) return peri__fail(e->ctx, PERI_ENOSUP, "%s: it draws no picture", e->def.id);
  return e->def.render(e->spec.shared, state, frame);
}

peri_status peri_env_print (peri_env *e, int64_t i, char *out, size_t size) {
  if (!e) return PERI_EINVAL;
  NEED(e->ctx, out);
  const void *state = NULL;
  TRY(state_of(e, i, &state));
  if (!e->def.text) return peri__fail(e->ctx, PERI_ENOSUP, "%s: it has no text", e->def.id);
  peri_status s = e->def.text(e->spec.shared, state, out, size);
  if (s == PERI_EINVAL)
    return peri__fail(e->ctx, s, "%s: its text does not fit into %zu bytes", e->def.id, size);
  return s == PERI_OK
             ? s
             : peri__fail(e->ctx, s, "%s: its text failed: %s", e->def.id, peri_status_name(s));
}
