/*
** tictactoe.c - TicTacToe-v0: two agents put stones on 3 x 3 cells in turn, three in a line win. The first agent of an
** environment begins. Cells are numbered row by row from the top.
*/
#include "env/multi/board.h"

enum { SIDE = 3, CELLS = SIDE * SIDE };

static const struct peri__board board = { .rows = SIDE, .columns = SIDE, .line = SIDE };

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  (void)ud;
  int64_t *shape = peri_env_alloc(args, sizeof *shape);
  if (!shape) return PERI_ENOMEM;
  peri__board_spec(&board, CELLS, shape, spec);
  return PERI_OK;
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)rng;
  return peri__board_reset(shared, state, io);
}

static uint64_t free_cell (const struct peri__game *g, int64_t action) {
  uint64_t cell = peri__board_cell(&board, (int)action / SIDE, (int)action % SIDE);
  return cell & ~(g->stones[0] | g->stones[1]);
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)rng;
  struct peri__game *g = state;
  const int64_t *action = io->action;
  if (peri__board_put(shared, g, free_cell(g, action[g->turn]), io))
    for (int64_t a = 0; a < CELLS; a++) io->mask[g->turn * CELLS + a] = free_cell(g, a) != 0;
  return PERI_OK;
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  return peri__board_text(shared, state, out, size);
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  return peri__board_render(shared, state, frame);
}

const peri_env_def peri__env_tictactoe = {
  .struct_size = sizeof(peri_env_def),
  .flags = PERI_ENV_MASK,
  .id = "TicTacToe-v0",
  .doc = "Two agents put stones on 3 x 3 cells in turn; three in a line win: 1, and -1 for the "
         "other.",
  .configure = configure,
  .reset = reset,
  .step = step,
  .render = render,
  .text = text,
};
