/*
** cliff_walking.c - CliffWalking-v1 and CliffWalkingSlippery-v1: walk along a cliff (Sutton and
** Barto, example 6.6), as Gymnasium's cliffwalking.py.
*/
#include "env/options.h"
#include "env/toy/table.h"

enum { ROWS = 4, COLUMNS = 12, START = 36, GOAL = 47 };
static const char cells[] = "oooooooooooo"
                            "oooooooooooo"
                            "oooooooooooo"
                            "SCCCCCCCCCCG";

/* 0 up, 1 right, 2 down, 3 left; the edge holds. */
static int64_t neighbour (int64_t s, int64_t move) {
  int64_t row = s / COLUMNS
  , column = s % COLUMNS;
  if (move == 0 && row > 0) row--;
  if (move == 1 && column < COLUMNS - 1) column++;
  if (move == 2 && row < ROWS - 1) row++;
  if (move == 3 && column > 0) column--;
  return row * COLUMNS
  +column;
}

static void add_move (struct peri__table *t, int64_t s, int64_t action, int64_t move, double p) {
  int64_t next = neighbour(s, move);
  if (cells[next] == 'C')
    peri__table_add(t, s, action, p, START, -100, false);
  else
    peri__table_add(t, s, action, p, next, -1, next == GOAL);
}

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  (void)ud;
  bool slippery;
  TRY(env_flag(args, "is_slippery", &slippery));
  struct peri__table *t = peri__table_new(args, ROWS * COLUMNS, 4, 3);
  if (!t) return PERI_ENOMEM;
  double first[ROWS * COLUMNS] = { [START] = 1 };
  for (int64_t s = 0; s < t->nstates; s++)
    for (int64_t a = 0; a < 4; a++) {
      if (!slippery)
        add_move(t, s, a, a, 1);
      else
        for (int64_t turn = 3; turn <= 5; turn++) add_move(t, s, a, (a + turn) % 4, 1.0 / 3);
    }
  peri__table_first(t, first);
  spec->obs = peri_space_discrete(t->nstates);
  spec->action = peri_space_discrete(4);
  spec->state_bytes = sizeof(int64_t);
  spec->shared = t;
  return PERI_OK;
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  *(int64_t *)io->obs = *(int64_t *)state = peri__table_start(shared, rng);
  return PERI_OK;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  return peri__table_step(shared, state, rng, io);
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  (void)shared;
  return peri__grid_text(cells, ROWS, COLUMNS, *(const int64_t *)state, out, size);
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  (void)shared;
  return peri__grid_render(cells, ROWS, COLUMNS, *(const int64_t *)state, frame);
}

static int model (const void *shared, int64_t state, int64_t action, int max,
                  peri_env_outcome *out) {
  return peri__table_model(shared, state, action, max, out);
}

#define OPTIONS(slippery)                                                           \
  {                                                                                 \
    {                                                                               \
      .name = "is_slippery", .doc = "two moves in three go astray, to either side", \
      .value = slippery, .high = 1                                                  \
    }                                                                               \
  }
static const peri_env_option firm[] = OPTIONS(0), slippery[] = OPTIONS(1);
#define CLIFF(options, title)                                                                   \
  {                                                                                             \
    .struct_size = sizeof(peri_env_def), .id = title,                                           \
    .doc = "Walk along a cliff to the goal; -1 a step, -100 and back to the start for a fall.", \
    .noptions = 1, .option = options, .configure = configure, .reset = reset, .step = step,     \
    .render = render, .text = text, .model = model                                              \
  }
const peri_env_def peri__env_cliff_walking = CLIFF(firm, "CliffWalking-v1");
const peri_env_def peri__env_cliff_walking_slippery = CLIFF(slippery, "CliffWalkingSlippery-v1");
