/*
** frozen_lake.c - FrozenLake-v1 and FrozenLake8x8-v1: cross the ice without falling into a hole, as
** Gymnasium's frozen_lake.py.
*/
#include <stdlib.h>
#include <string.h>

#include "env/options.h"
#include "env/toy/table.h"

struct lake {
  struct peri__table *table;
  char *cells;
  int64_t rows, columns;
};

struct version {
  int64_t max_steps;
  double threshold;
};

static const char map4[] = "SFFF/FHFH/FFFH/HFFG";
static const char map8[] =
    "SFFFFFFF/FFFFFFFF/FFFHFFFF/FFFFFHFF/FFFHFFFF/FHHFFFHF/FHFFHFHF/FFFHFFFG";

/* A map as Gymnasium's generate_random_map(size, p, seed): drawn until the goal can be reached. */
static bool reachable (const char *cells, int size, int *stack, bool *seen) {
  int n = 0;
  memset(seen, 0, (size_t)(size * size) * sizeof *seen);
  stack[n++] = 0;
  seen[0] = true;
  while (n > 0) {
    int at = stack[--n], row = at / size, column = at % size;
    const int next[] = { row + 1 < size ? at + size : -1, column + 1 < size ? at + 1 : -1,
                         row > 0 ? at - size : -1, column > 0 ? at - 1 : -1 };
    for (int i = 0; i < 4; i++) {
      if (next[i] < 0 || seen[next[i]] || cells[next[i]] == 'H') continue;
      if (cells[next[i]] == 'G') return true;
      seen[next[i]] = true;
      stack[n++] = next[i];
    }
  }
  return false;
}

static peri_status random_map (const peri_env_args *args, struct lake *lake) {
  int64_t seed, side;
  TRY(env_whole(args, "map_seed", &seed));
  TRY(env_whole(args, "map_size", &side));
  int size = (int)side, n = size * size;
  double p = peri_env_number(args, "map_p"), total = p + (1 - p);
  peri_pcg64 rng;
  peri_pcg64_seed(&rng, (uint64_t)seed);
  int *stack = peri_env_alloc(args, (size_t)n * sizeof *stack);
  bool *seen = peri_env_alloc(args, (size_t)n * sizeof *seen);
  lake->cells = peri_env_alloc(args, (size_t)n);
  if (!stack || !seen || !lake->cells) return PERI_ENOMEM;
  lake->rows = lake->columns = size;
  for (int tries = 0; tries < 100000; tries++) {
    for (int i = 0; i < n; i++) lake->cells[i] = peri_pcg64_double(&rng) < p / total ? 'F' : 'H';
    lake->cells[0] = 'S';
    lake->cells[n - 1] = 'G';
    if (reachable(lake->cells, size, stack, seen)) return PERI_OK;
  }
  return peri_env_refuse(args, "none of 100000 random maps had a way to the goal: map_p is %g", p);
}

static peri_status read_map (const peri_env_args *args, struct lake *lake) {
  const char *name = peri_env_text(args, "map_name"), *text = peri_env_text(args, "desc");
  if (!*text) {
    if (strcmp(name, "random") == 0) return random_map(args, lake);
    text = strcmp(name, "4x4") == 0 ? map4 : strcmp(name, "8x8") == 0 ? map8 : NULL;
    if (!text)
      return peri_env_refuse(args, "option 'map_name': expected 4x4, 8x8 or random, got \"%s\"",
                             name);
  }
  return peri__grid_read(args, "desc", text, "SFHG", &lake->cells, &lake->rows, &lake->columns);
}

static peri_status read_rewards (const peri_env_args *args, double reward[3]) {
  const char *text = peri_env_text(args, "reward_schedule"), *at = text;
  for (int i = 0; i < 3; i++) {
    char *end;
    reward[i] = strtod(at, &end);
    bool last = i == 2;
    if (end == at || !(last ? *end == '\0' : *end == ',') || reward[i] - reward[i] != 0)
      return peri_env_refuse(
          args,
          "option 'reward_schedule': expected three numbers with commas, for goal, "
          "hole and ice, got \"%s\"",
          text);
    at = end + 1;
  }
  return PERI_OK;
}

/* 0 left, 1 down, 2 right, 3 up; the edge holds. */
static int64_t neighbour (const struct lake *lake, int64_t s, int64_t move) {
  int64_t row = s / lake->columns, column = s % lake->columns;
  if (move == 0 && column > 0) column--;
  if (move == 1 && row < lake->rows - 1) row++;
  if (move == 2 && column < lake->columns - 1) column++;
  if (move == 3 && row > 0) row--;
  return row * lake->columns + column;
}

static void add_move (const struct lake *lake, int64_t s, int64_t action, int64_t move, double p,
                      const double reward[3]) {
  int64_t next = neighbour(lake, s, move);
  char cell = lake->cells[next];
  peri__table_add(lake->table, s, action, p, next,
                  reward[cell == 'G'   ? 0
                         : cell == 'H' ? 1
                                       : 2],
                  cell == 'G' || cell == 'H');
}

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  const struct version *version = ud;
  double reward[3], rate = peri_env_number(args, "success_rate"), fail = (1.0 - rate) / 2.0;
  bool slippery;
  struct lake *lake = peri_env_alloc(args, sizeof *lake);
  if (!lake) return PERI_ENOMEM;
  TRY(env_flag(args, "is_slippery", &slippery));
  TRY(read_rewards(args, reward));
  TRY(read_map(args, lake));
  int64_t n = lake->rows * lake->columns;
  double *first = peri_env_alloc(args, (size_t)n * sizeof *first);
  lake->table = peri__table_new(args, n, 4, 3);
  if (!first || !lake->table) return PERI_ENOMEM;
  int64_t starts = 0;
  for (int64_t s = 0; s < n; s++) {
    char cell = lake->cells[s];
    first[s] = cell == 'S';
    starts += cell == 'S';
    for (int64_t a = 0; a < 4; a++) {
      if (cell == 'G' || cell == 'H')
        peri__table_add(lake->table, s, a, 1, s, 0, true);
      else if (!slippery)
        add_move(lake, s, a, a, 1, reward);
      else
        for (int64_t turn = 3; turn <= 5; turn++) /* a - 1, a, a + 1 */
          add_move(lake, s, a, (a + turn) % 4, turn == 4 ? rate : fail, reward);
    }
  }
  if (starts == 0) return peri_env_refuse(args, "option 'desc': the map has no start 'S'");
  peri__table_first(lake->table, first);
  spec->obs = peri_space_discrete(n);
  spec->action = peri_space_discrete(4);
  spec->max_steps = version->max_steps;
  spec->reward_threshold = version->threshold;
  spec->state_bytes = sizeof(int64_t);
  spec->shared = lake;
  return PERI_OK;
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  const struct lake *lake = shared;
  *(int64_t *)io->obs = *(int64_t *)state = peri__table_start(lake->table, rng);
  return PERI_OK;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  const struct lake *lake = shared;
  return peri__table_step(lake->table, state, rng, io);
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  const struct lake *lake = shared;
  return peri__grid_text(lake->cells, lake->rows, lake->columns, *(const int64_t *)state, out,
                         size);
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  const struct lake *lake = shared;
  return peri__grid_render(lake->cells, lake->rows, lake->columns, *(const int64_t *)state, frame);
}

static int model (const void *shared, int64_t state, int64_t action, int max,
                  peri_env_outcome *out) {
  return peri__table_model(((const struct lake *)shared)->table, state, action, max, out);
}

#define OPTIONS(map)                                                                               \
  {                                                                                                \
    { .name = "desc",                                                                              \
      .doc = "rows of S, F, H and G: a list, or a text with / between",                            \
      .text = "" },                                                                                \
        { .name = "map_name", .doc = "4x4, 8x8, or random", .text = map },                         \
        { .name = "is_slippery",                                                                   \
          .doc = "moves may go astray to either side",                                             \
          .value = 1,                                                                              \
          .high = 1 },                                                                             \
        { .name = "success_rate",                                                                  \
          .doc = "probability that a move on slippery ice goes as intended",                       \
          .value = 1.0 / 3.0,                                                                      \
          .high = 1 },                                                                             \
        { .name = "reward_schedule", .doc = "rewards of goal, hole and ice", .text = "1,0,0" },    \
        { .name = "map_size", .doc = "rows of a random map", .value = 8, .low = 2, .high = 64 },   \
        { .name = "map_p", .doc = "probability of ice in a random map", .value = 0.8, .high = 1 }, \
        { .name = "map_seed", .doc = "seed of a random map", .high = 4294967295.0 },               \
  }
static const peri_env_option options4[] = OPTIONS("4x4"), options8[] = OPTIONS("8x8");
static const struct version lake4 = { 100, 0.70 }, lake8 = { 200, 0.85 };
#define LAKE(version, options, title)                                                        \
  {                                                                                          \
    .struct_size = sizeof(peri_env_def), .id = title,                                        \
    .doc = "Cross slippery ice to the goal without falling into a hole; 1 at the goal.",     \
    .noptions = sizeof options / sizeof *options, .option = options, .ud = (void *)&version, \
    .configure = configure, .reset = reset, .step = step, .render = render, .text = text,    \
    .model = model                                                                           \
  }
const peri_env_def peri__env_frozen_lake = LAKE(lake4, options4, "FrozenLake-v1");
const peri_env_def peri__env_frozen_lake8 = LAKE(lake8, options8, "FrozenLake8x8-v1");
