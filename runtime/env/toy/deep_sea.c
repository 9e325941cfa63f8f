/*
** deep_sea.c - DeepSea-v0: dive a square sea from its top left corner, one row a step; the treasure lies in the bottom
** right corner, and every step to the right costs a little (Osband et al. 2020, "Behaviour Suite for Reinforcement
** Learning", section 3.1). One sequence of actions of 2^size finds it, and all that is learned on the way says no.
*/
#include <string.h>

#include "env/options.h"
#include "env/toy/table.h"

struct sea {
  struct peri__table *table;
  char *cells;
  int64_t size;
};

static const peri_env_option options[] = {
  { .name = "size", .doc = "rows and columns", .value = 10, .low = 2, .high = 100 },
  { .name = "cost",
    .doc = "of all steps to the right together",
    .value = 0.01,
    .low = 0,
    .high = 1 },
  { .name = "slip",
    .doc = "probability that a step to the right goes left: 1 / size is the paper's",
    .value = 0,
    .low = 0,
    .high = 1 },
  { .name = "map_seed",
    .doc = "which of the two actions is right is drawn for each cell with this seed",
    .value = 0 },
};

/* States are cells in rows; the one behind them is the bottom. */
static int64_t below (int64_t size, int64_t cell, int64_t move) {
  int64_t row = cell / size, column = cell % size + move;
  column = column < 0 ? 0 : column >= size ? size - 1 : column;
  return row + 1 == size ? size * size : (row + 1) * size + column;
}

static void fill (struct sea *sea, double cost, double slip, peri_pcg64 *rng) {
  int64_t size = sea->size, cells = size * size;
  for (int64_t s = 0; s < cells; s++) {
    int64_t right = peri_pcg64_integer(rng, 2);
    int64_t down = below(size, s, -1), up = below(size, s, 1);
    bool over = down == cells;
    double treasure = s == cells - 1 ? 1 : 0;
    peri__table_add(sea->table, s, 1 - right, 1, down, 0, over);
    if (slip < 1) peri__table_add(sea->table, s, right, 1 - slip, up, treasure - cost / size, over);
    if (slip > 0) peri__table_add(sea->table, s, right, slip, down, -cost / size, over);
  }
  for (int64_t a = 0; a < 2; a++) peri__table_add(sea->table, cells, a, 1, cells, 0, true);
}

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  (void)ud;
  int64_t seed;
  struct sea *sea = peri_env_alloc(args, sizeof *sea);
  if (!sea) return PERI_ENOMEM;
  TRY(env_whole(args, "size", &sea->size));
  TRY(env_whole(args, "map_seed", &seed));
  if (seed < 0)
    return peri_env_refuse(args, "option 'map_seed' is %lld, expected 0 or more", (long long)seed);
  int64_t cells = sea->size * sea->size;
  double *first = peri_env_alloc(args, (size_t)(cells + 1) * sizeof *first);
  sea->cells = peri_env_alloc(args, (size_t)cells);
  sea->table = peri__table_new(args, cells + 1, 2, 2);
  if (!first || !sea->cells || !sea->table) return PERI_ENOMEM;
  memset(sea->cells, '.', (size_t)cells);
  sea->cells[cells - 1] = 'G';
  first[0] = 1;
  peri_pcg64 rng;
  peri_pcg64_seed(&rng, (uint64_t)seed);
  fill(sea, peri_env_number(args, "cost"), peri_env_number(args, "slip"), &rng);
  peri__table_first(sea->table, first);
  spec->obs = peri_space_discrete(cells + 1);
  spec->action = peri_space_discrete(2);
  spec->state_bytes = sizeof(int64_t);
  spec->shared = sea;
  return PERI_OK;
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  const struct sea *sea = shared;
  *(int64_t *)io->obs = *(int64_t *)state = peri__table_start(sea->table, rng);
  return PERI_OK;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  return peri__table_step(((const struct sea *)shared)->table, state, rng, io);
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  const struct sea *sea = shared;
  return peri__grid_text(sea->cells, sea->size, sea->size, *(const int64_t *)state, out, size);
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  const struct sea *sea = shared;
  return peri__grid_render(sea->cells, sea->size, sea->size, *(const int64_t *)state, frame);
}

static int model (const void *shared, int64_t state, int64_t action, int max,
                  peri_env_outcome *out) {
  return peri__table_model(((const struct sea *)shared)->table, state, action, max, out);
}

const peri_env_def peri__env_deep_sea = {
  .struct_size = sizeof(peri_env_def),
  .id = "DeepSea-v0",
  .doc = "Dive to the treasure that one sequence of actions of 2^size finds; every step its way "
         "costs a little.",
  .noptions = sizeof options / sizeof *options,
  .option = options,
  .configure = configure,
  .reset = reset,
  .step = step,
  .render = render,
  .text = text,
  .model = model,
};
