/*
** grid_world.c - GridWorld-v0: a map given as text. '#' is a wall, '.' floor, 'S' a start, 'G' a
** goal and 'X' a pit, which end an episode; 'a' to 'd' are keys that open the doors 'A' to 'D'.
** Moves may slip to either side, and columns may have a wind that blows those who leave them up;
** only the cell where a step ends counts.
**
** The map it has by itself is the 4 x 3 world of Russell and Norvig, worth 0.705 from its start.
*/
#include <string.h>

#include "env/toy/table.h"

struct world {
  struct peri__table *table;
  char *cells;
  int64_t rows, columns;
  const char *wind; /* a digit for each column; empty: none */
  double step_reward, goal_reward, pit_reward, slip;
};

static const peri_env_option options[] = {
  { .name = "map",
    .doc = "rows of # . S G X, keys a-d and doors A-D: a list, or a text with / between",
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
};

/* A state is a cell and a bit for each key that is held: state = keys * cells + cell. */
static bool enterable (char cell, int64_t keys) {
  if (cell >= 'A' && cell <= 'D') return keys >> (cell - 'A') & 1;
  return cell != '#';
}

static bool over (char cell) { return cell == 'G' || cell == 'X'; }

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
  double reward = w->step_reward + (at == 'G' ? w->goal_reward : at == 'X' ? w->pit_reward : 0);
  peri__table_add(w->table, s, action, p, keys * cells + next, reward, over(at));
}

static peri_status read_world (const peri_env_args *args, struct world *w) {
  TRY(peri__grid_read(args, "map", peri_env_text(args, "map"), "#.SGXabcdABCD", &w->cells, &w->rows,
                      &w->columns));
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
  return PERI_OK;
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
  return peri__table_step(((const struct world *)shared)->table, state, rng, io);
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
  .doc = "Walk a map given as text to its goal, around walls and pits, through doors with keys.",
  .noptions = sizeof options / sizeof *options,
  .option = options,
  .configure = configure,
  .reset = reset,
  .step = step,
  .render = render,
  .text = text,
  .model = model,
};
