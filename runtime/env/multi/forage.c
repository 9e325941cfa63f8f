/*
** forage.c - Forage-v0: agents on a grid gather apples together, all move at once. An apple is gathered when at least
** `weight` agents stand on it, is worth 1 to every agent, and another one grows elsewhere. So most of what an agent is
** paid for is the others' work: the metric `difference` is what the reward would have lacked without it (the
** difference reward of Wolpert and Tumer, 2002). Who steps into a pit is out.
**
** An agent sees its place, the other agents, apples and pits that are at most `sight` cells away in rows and in
** columns, relative to its own place, and which agent it is.
*/
#include <string.h>

#include "core/core.h"
#include "env/options.h"

static const peri_env_option options[] = {
  { .name = "agents", .doc = "who gather", .value = 4, .low = 2, .high = 32 },
  { .name = "size", .doc = "cells of a side", .value = 6, .low = 2, .high = 64 },
  { .name = "apples", .doc = "that are there at a time", .value = 3, .low = 1, .high = 64 },
  { .name = "weight",
    .doc = "agents that it takes to gather an apple",
    .value = 1,
    .low = 1,
    .high = 32 },
  { .name = "sight", .doc = "cells that an agent sees far", .value = 64, .low = 0, .high = 64 },
  { .name = "pits",
    .doc = "cells that end the episode of an agent",
    .value = 0,
    .low = 0,
    .high = 64 },
};

enum { OUT = -1, THING = 3 /* numbers of what is seen */, MOST_APPLES = 64 };

struct field {
  int64_t agents, size, apples, weight, sight, pits;
  int64_t shape;
};

/* A state: cells of the agents (OUT: in a pit), of the apples and of the pits. */
static int32_t *apples_of (const struct field *f, int32_t *agents) { return agents + f->agents; }
static int32_t *pits_of (const struct field *f, int32_t *agents) {
  return agents + f->agents + f->apples;
}

static peri_status read_field (const peri_env_args *args, struct field *f) {
  TRY(env_whole(args, "agents", &f->agents));
  TRY(env_whole(args, "size", &f->size));
  TRY(env_whole(args, "apples", &f->apples));
  TRY(env_whole(args, "weight", &f->weight));
  TRY(env_whole(args, "sight", &f->sight));
  TRY(env_whole(args, "pits", &f->pits));
  if (f->weight > f->agents)
    return peri_env_refuse(args, "option 'weight' is %lld, there are %lld agents",
                           (long long)f->weight, (long long)f->agents);
  if (f->apples + f->pits >= f->size * f->size)
    return peri_env_refuse(args, "%lld apples and %lld pits leave none of %lld cells",
                           (long long)f->apples, (long long)f->pits,
                           (long long)(f->size * f->size));
  return PERI_OK;
}

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  static const char *const metrics[] = { "difference" };
  (void)ud;
  struct field *f = peri_env_alloc(args, sizeof *f);
  if (!f) return PERI_ENOMEM;
  TRY(read_field(args, f));
  f->shape = 2 + THING * (f->agents - 1 + f->apples + f->pits) + f->agents;
  spec->obs = peri_space_box(PERI_F32, -1, 1, 1, &f->shape);
  spec->action = peri_space_discrete(5);
  spec->agents = (int)f->agents;
  spec->max_steps = 50;
  spec->state_bytes = (size_t)(f->agents + f->apples + f->pits) * sizeof(int32_t);
  spec->nmetrics = 1;
  spec->metric = metrics;
  spec->shared = f;
  return PERI_OK;
}

/* ---- what is seen ---- */

/* A thing from a cell: columns and rows to it, and 1; zeros where it is out or too far. */
static float *see (const struct field *f, int32_t from, int32_t thing, float *obs) {
  int64_t dx = thing % f->size - from % f->size, dy = thing / f->size - from / f->size;
  const float scale = 1.0f / (float)(f->size - 1);
  bool near = thing >= 0 && dx <= f->sight && -dx <= f->sight && dy <= f->sight && -dy <= f->sight;
  obs[0] = near ? (float)dx * scale : 0;
  obs[1] = near ? (float)dy * scale : 0;
  obs[2] = near;
  return obs + THING;
}

static void observe (const struct field *f, int32_t *agents, float *obs) {
  const float scale = 2.0f / (float)(f->size - 1);
  const int32_t *things = apples_of(f, agents);
  memset(obs, 0, (size_t)(f->agents * f->shape) * sizeof *obs);
  for (int64_t i = 0; i < f->agents; i++) {
    float *own = obs + i * f->shape;
    own[f->shape - f->agents + i] = 1;
    int32_t at = agents[i];
    if (at < 0) continue;
    own[0] = (float)(at % f->size) * scale - 1;
    own[1] = (float)(at / f->size) * scale - 1;
    own += 2;
    for (int64_t k = 0; k < f->agents; k++)
      if (k != i) own = see(f, at, agents[k], own);
    for (int64_t k = 0; k < f->apples + f->pits; k++) own = see(f, at, things[k], own);
  }
}

/* ---- what happens ---- */

static bool taken (const int32_t *cells, int64_t n, int32_t cell) {
  for (int64_t k = 0; k < n; k++)
    if (cells[k] == cell) return true;
  return false;
}

/* A cell that none of n things is on, each as likely. */
static int32_t grow (const struct field *f, const int32_t *things, int64_t n, peri_pcg64 *rng) {
  int64_t left = peri_pcg64_integer(rng, f->size * f->size - n);
  for (int32_t cell = 0;; cell++)
    if (!taken(things, n, cell) && left-- == 0) return cell;
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  const struct field *f = shared;
  int32_t *agents = state, *things = apples_of(f, agents);
  for (int64_t k = 0; k < f->apples + f->pits; k++) things[k] = grow(f, things, k, rng);
  for (int64_t i = 0; i < f->agents; i++) agents[i] = grow(f, things, f->apples + f->pits, rng);
  observe(f, agents, io->obs);
  return PERI_OK;
}

/* 0 stay, 1 up, 2 right, 3 down, 4 left; the edge holds. */
static int32_t moved (const struct field *f, int32_t cell, int64_t action) {
  int64_t x = cell % f->size + (action == 2) - (action == 4);
  int64_t y = cell / f->size + (action == 3) - (action == 1);
  if (x < 0 || x >= f->size || y < 0 || y >= f->size) return cell;
  return (int32_t)(y * f->size + x);
}

/* Whether enough stand on an apple to gather it; who could not be spared gets a difference reward. */
static bool gather (const struct field *f, const int32_t *agents, int32_t apple,
                    float *difference) {
  int64_t count = 0;
  for (int64_t i = 0; i < f->agents; i++) count += agents[i] == apple;
  for (int64_t i = 0; i < f->agents; i++)
    if (count == f->weight && agents[i] == apple) difference[i] += 1;
  return count >= f->weight;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  const struct field *f = shared;
  const int64_t *action = io->action;
  int32_t *agents = state, *apples = apples_of(f, agents), *pits = pits_of(f, agents);
  bool gathered[MOST_APPLES];
  double reward = 0;
  for (int64_t i = 0; i < f->agents; i++) {
    if (agents[i] == OUT) continue;
    agents[i] = moved(f, agents[i], action[i]);
    if (!taken(pits, f->pits, agents[i])) continue;
    agents[i] = OUT;
    io->terminated[i] = 1;
  }
  for (int64_t k = 0; k < f->apples; k++)
    reward += gathered[k] = gather(f, agents, apples[k], io->metric);
  for (int64_t k = 0; k < f->apples; k++)
    if (gathered[k]) apples[k] = grow(f, apples, f->apples + f->pits, rng);
  for (int64_t i = 0; i < f->agents; i++) io->reward[i] = reward;
  observe(f, agents, io->obs);
  return PERI_OK;
}

/* ---- pictures ---- */

static char letter_of (const struct field *f, const int32_t *agents, int32_t cell) {
  char letter = taken(agents + f->agents, f->apples, cell)             ? 'o'
                : taken(agents + f->agents + f->apples, f->pits, cell) ? 'x'
                                                                       : '.';
  int64_t there = 0;
  for (int64_t i = 0; i < f->agents; i++)
    if (agents[i] == cell) letter = "123456789ABCDEFGHIJKLMNPQRSTUVWYZ"[i], there++;
  return there > 1 ? '+' : letter;
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  const struct field *f = shared;
  const int64_t n = f->size;
  if (size < (size_t)(n * 2 * n) + 1) return PERI_EINVAL;
  for (int32_t cell = 0; cell < n * n; cell++) {
    *out++ = letter_of(f, state, cell);
    *out++ = cell % n == n - 1 ? '\n' : ' ';
  }
  *out = '\0';
  return PERI_OK;
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  const struct field *f = shared;
  const int32_t *agents = state;
  const int64_t side = f->size > 32 ? 32 : 64;
  peri_frame_size(frame, (int)(f->size * side), (int)(f->size * side));
  peri_frame_background(frame, 0xb8b8b8);
  for (int64_t cell = 0; cell < f->size * f->size; cell++)
    peri_frame_rect(frame, (double)(cell % f->size * side + 1), (double)(cell / f->size * side + 1),
                    (double)side - 2, (double)side - 2, 0xf4f4f4);
  for (int64_t k = f->agents + f->apples + f->pits - 1; k >= 0; k--) { /* agents on top */
    if (agents[k] == OUT) continue;
    double x = ((double)(agents[k] % f->size) + 0.5) * (double)side;
    double y = ((double)(agents[k] / f->size) + 0.5) * (double)side;
    bool pit = k >= f->agents + f->apples;
    peri_frame_circle(frame, x, y, (k < f->agents ? 0.2 : 0.36) * (double)side,
                      k < f->agents ? 0x4d9fec
                      : pit         ? 0x404040
                                    : 0xd9534f);
  }
  return peri_frame_check(frame);
}

const peri_env_def peri__env_forage = {
  .struct_size = sizeof(peri_env_def),
  .id = "Forage-v0",
  .doc = "Agents who move at once gather apples on a grid; each apple is worth 1 to all of them.",
  .noptions = 6,
  .option = options,
  .configure = configure,
  .reset = reset,
  .step = step,
  .render = render,
  .text = text,
};
