/*
** grid_world.c - GridWorld-v0: a map given as text. '#' is a wall, '.' floor, 'S' a start, 'G' a
** goal and 'X' a pit, which end an episode; 'a' to 'd' are keys that open the doors 'A' to 'D'.
** 'H' is a hazard, and '0' to '9' are treasures, which end an episode: several objectives, which
** metrics tell apart.
** Moves may slip to either side, and columns may have a wind that blows those who leave them up;
** only the cell where a step ends counts.
**
** The map it has by itself is the 4 x 3 world of Russell and Norvig, worth 0.705 from its start.
*/
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "env/toy/table.h"

struct world {
  struct peri__table *table;
  char *cells;
  int64_t rows, columns;
  const char *wind; /* a digit for each column; empty: none */
  double step_reward, goal_reward, pit_reward, hazard_reward, slip;
  double treasure[10];
};

static const peri_env_option options[] = {
  { .name = "map",
    .doc = "rows of # . S G X H, treasures 0-9, keys a-d and doors A-D: a list, or a text with / "
           "between",
    .text = "...G/.#.X/S..." },
  { .name = "slip",
    .doc = "probability that a move goes to either side, half each",
    .value = 0.2,
    .high = 1 },
  { .name = "wind",
    .doc = "a digit for each column: cells that a move from there is blown up",
    .text = "" },
  { .name = "step_reward", .doc = "reward of every step", .value = -0.04 },
  { .name = "goal_reward", .doc = "added at a goal", .value = 1 },
  { .name = "pit_reward", .doc = "added in a pit", .value = -1 },
  { .name = "hazard_reward", .doc = "added by every step that ends in a hazard H" },
  { .name = "treasures",
    .doc = "added at 0, at 1, and so on: at most ten numbers, a list or a text with commas",
    .text = "" },
};

/* A state is a cell and a bit for each key that is held: state = keys * cells + cell. */
static bool enterable (char cell, int64_t keys) {
  if (cell >= 'A' && cell <= 'D') return keys >> (cell - 'A') & 1;
  return cell != '#';
}

static bool is_treasure (char cell) { return cell >= '0' && cell <= '9'; }

static bool over (char cell) { return cell == 'G' || cell == 'X' || is_treasure(cell); }

/* What a cell where an episode ends adds to the reward. */
static double gain_of (const struct world *w, char cell) {
  if (is_treasure(cell)) return w->treasure[cell - '0'];
  return cell == 'G' ? w->goal_reward : cell == 'X' ? w->pit_reward : 0;
}

/* One cell on: 0 up, 1 right, 2 down, 3 left; walls, closed doors and the edge hold. */
static int64_t pushed (const struct world *w, int64_t cell, int64_t keys, int64_t move) {
  int64_t row = cell / w->columns, column = cell % w->columns;
  row += (move == 2) - (move == 0);
  column += (move == 1) - (move == 3);
  if (row < 0 || row >= w->rows || column < 0 || column >= w->columns) return cell;
  int64_t next = row * w->columns + column;
  return enterable(w->cells[next], keys) ? next : cell;
}

static void add_move (struct world *w, int64_t s, int64_t action, int64_t move, double p) {
  int64_t cells = w->rows * w->columns, cell = s % cells, keys = s / cells;
  int64_t next = pushed(w, cell, keys, move);
  int wind = *w->wind ? w->wind[cell % w->columns] - '0' : 0;
  for (; wind > 0; wind--) next = pushed(w, next, keys, 0);
  char at = w->cells[next];
  if (at >= 'a' && at <= 'd') keys |= (int64_t)1 << (at - 'a');
  double reward = w->step_reward + gain_of(w, at) + (at == 'H' ? w->hazard_reward : 0);
  peri__table_add(w->table, s, action, p, keys * cells + next, reward, over(at));
}

/* The numbers of the option treasures; every digit of the map has one. */
static peri_status read_treasures (const peri_env_args *args, struct world *w) {
  const char *text = peri_env_text(args, "treasures");
  int n = 0;
  for (char *end; *text; text = end + (*end == ',')) {
    double v = strtod(text, &end);
    if (end == text || (*end && *end != ',') || !isfinite(v) || n == 10)
      return peri_env_refuse(args,
                             "option 'treasures': expected at most ten numbers with commas, "
                             "got \"%s\"",
                             peri_env_text(args, "treasures"));
    w->treasure[n++] = v;
  }
  for (int64_t i = 0; i < w->rows * w->columns; i++)
    if (is_treasure(w->cells[i]) && w->cells[i] - '0' >= n)
      return peri_env_refuse(args, "option 'map': cell '%c' has no treasure, there are %d",
                             w->cells[i], n);
  return PERI_OK;
}

static peri_status read_world (const peri_env_args *args, struct world *w) {
  TRY(peri__grid_read(args, "map", peri_env_text(args, "map"), "#.SGXH0123456789abcdABCD",
                      &w->cells, &w->rows, &w->columns));
  w->wind = peri_env_text(args, "wind");
  if (*w->wind &&
      ((int64_t)strlen(w->wind) != w->columns || strspn(w->wind, "0123456789") != strlen(w->wind)))
    return peri_env_refuse(args,
                           "option 'wind': expected %lld digits, one for each column, got \"%s\"",
                           (long long)w->columns, w->wind);
  if (!memchr(w->cells, 'S', (size_t)(w->rows * w->columns)))
    return peri_env_refuse(args, "option 'map': the map has no start 'S'");
  w->slip = peri_env_number(args, "slip");
  w->step_reward = peri_env_number(args, "step_reward");
  w->goal_reward = peri_env_number(args, "goal_reward");
  w->pit_reward = peri_env_number(args, "pit_reward");
  w->hazard_reward = peri_env_number(args, "hazard_reward");
  return read_treasures(args, w);
}

static void fill (struct world *w, double *first) {
  int64_t cells = w->rows * w->columns;
  for (int64_t s = 0; s < w->table->nstates; s++) {
    char cell = w->cells[s % cells];
    first[s] = cell == 'S' && s < cells;
    for (int64_t a = 0; a < 4; a++) {
      if (over(cell) || cell == '#') {
        peri__table_add(w->table, s, a, 1, s, 0, true);
        continue;
      }
      if (w->slip < 1) add_move(w, s, a, a, 1 - w->slip);
      if (w->slip > 0) {
        add_move(w, s, a, (a + 3) % 4, w->slip / 2);
        add_move(w, s, a, (a + 1) % 4, w->slip / 2);
      }
    }
  }
}

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  static const char *const metrics[] = { "gain", "time", "hazard" };
  (void)ud;
  struct world *w = peri_env_alloc(args, sizeof *w);
  if (!w) return PERI_ENOMEM;
  TRY(read_world(args, w));
  int64_t cells = w->rows * w->columns, states = cells;
  for (int k = 3; k >= 0 && states == cells; k--) /* keys up to the last that the map has */
    if (memchr(w->cells, 'a' + k, (size_t)cells)) states = cells << (k + 1);
  double *first = peri_env_alloc(args, (size_t)states * sizeof *first);
  w->table = peri__table_new(args, states, 4, 3);
  if (!first || !w->table) return PERI_ENOMEM;
  fill(w, first);
  peri__table_first(w->table, first);
  spec->obs = peri_space_discrete(states);
  spec->action = peri_space_discrete(4);
  spec->max_steps = 1000;
  spec->nmetrics = 3;
  spec->metric = metrics;
  spec->state_bytes = sizeof(int64_t);
  spec->shared = w;
  return PERI_OK;
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  const struct world *w = shared;
  *(int64_t *)io->obs = *(int64_t *)state = peri__table_start(w->table, rng);
  return PERI_OK;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  const struct world *w = shared;
  TRY(peri__table_step(w->table, state, rng, io));
  char cell = w->cells[*(const int64_t *)state % (w->rows * w->columns)];
  io->metric[0] = (float)gain_of(w, cell);
  io->metric[1] = 1;
  io->metric[2] = cell == 'H';
  return PERI_OK;
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  const struct world *w = shared;
  int64_t cell = *(const int64_t *)state % (w->rows * w->columns);
  return peri__grid_text(w->cells, w->rows, w->columns, cell, out, size);
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  const struct world *w = shared;
  int64_t cell = *(const int64_t *)state % (w->rows * w->columns);
  return peri__grid_render(w->cells, w->rows, w->columns, cell, frame);
}

static int model (const void *shared, int64_t state, int64_t action, int max,
                  peri_env_outcome *out) {
  return peri__table_model(((const struct world *)shared)->table, state, action, max, out);
}

const peri_env_def peri__env_grid_world = {
  .struct_size = sizeof(peri_env_def),
  .id = "GridWorld-v0",
  .doc = "Walk a map given as text to goals and treasures, around walls, pits and hazards; metrics "
         "gain, "
         "time and hazard.",
  .noptions = sizeof options / sizeof *options,
  .option = options,
  .configure = configure,
  .reset = reset,
  .step = step,
  .render = render,
  .text = text,
  .model = model,
};
