/*
** board.c - stones on a board: whether a line is full, what either side sees, pictures.
**
** An agent sees two planes, its own stones and those of the other, row by row from the top. Of the two only the one
** whose turn it is may act. Who has a line gets 1 and the other -1, both are out; a full board is 0 for both.
*/
#include <string.h>

#include "env/multi/board.h"

static int cells_of (const struct peri__board *b) { return b->rows * b->columns; }

void peri__board_spec (const struct peri__board *b, int64_t actions, int64_t *shape,
                       peri_env_spec *spec) {
  *shape = 2 * (int64_t)cells_of(b);
  spec->obs = peri_space_box(PERI_U8, 0, 1, 1, shape);
  spec->action = peri_space_discrete(actions);
  spec->agents = 2;
  spec->state_bytes = sizeof(struct peri__game);
  spec->shared = b;
}

static void observe (const struct peri__board *b, const struct peri__game *g, uint8_t *obs) {
  const int cells = cells_of(b);
  for (int row = 0; row < b->rows; row++)
    for (int column = 0; column < b->columns; column++, obs++) {
      uint64_t cell = peri__board_cell(b, row, column);
      uint8_t first = (g->stones[0] & cell) != 0, second = (g->stones[1] & cell) != 0;
      obs[0] = obs[3 * cells] = first;
      obs[cells] = obs[2 * cells] = second;
    }
}

static bool has_line (const struct peri__board *b, uint64_t stones) {
  const int step[] = { 1, b->rows + 1, b->rows, b->rows + 2 };
  for (int d = 0; d < 4; d++) {
    uint64_t ends = stones;
    for (int k = 1; k < b->line && ends; k++)
      ends = k * step[d] < 64 ? ends & stones >> k * step[d] : 0;
    if (ends) return true;
  }
  return false;
}

static void give_turn (struct peri__game *g, int64_t turn, const peri_env_io *io) {
  g->turn = turn;
  io->live[turn] = 1;
  io->live[1 - turn] = 0;
}

static void end (int64_t winner, const peri_env_io *io) { /* -1: a draw */
  io->terminated[0] = io->terminated[1] = 1;
  if (winner < 0) return;
  io->reward[winner] = 1;
  io->reward[1 - winner] = -1;
}

peri_status peri__board_reset (const struct peri__board *b, struct peri__game *g,
                               const peri_env_io *io) {
  *g = (struct peri__game){ .turn = 0 };
  give_turn(g, 0, io);
  observe(b, g, io->obs);
  return PERI_OK;
}

bool peri__board_put (const struct peri__board *b, struct peri__game *g, uint64_t cell,
                      const peri_env_io *io) {
  const int64_t mover = g->turn;
  bool goes_on = false;
  g->stones[mover] |= cell;
  if (cell == 0)
    end(1 - mover, io);
  else if (has_line(b, g->stones[mover]))
    end(mover, io);
  else if (__builtin_popcountll(g->stones[0] | g->stones[1]) == cells_of(b))
    end(-1, io);
  else
    goes_on = true;
  give_turn(g, 1 - mover, io);
  observe(b, g, io->obs);
  return goes_on;
}

peri_status peri__board_text (const struct peri__board *b, const struct peri__game *g, char *out,
                              size_t size) {
  if (size < (size_t)(b->rows * 2 * b->columns) + 1) return PERI_EINVAL;
  for (int row = 0; row < b->rows; row++)
    for (int column = 0; column < b->columns; column++) {
      uint64_t cell = peri__board_cell(b, row, column);
      *out++ = g->stones[0] & cell ? 'X' : g->stones[1] & cell ? 'O' : '.';
      *out++ = column == b->columns - 1 ? '\n' : ' ';
    }
  *out = '\0';
  return PERI_OK;
}

peri_status peri__board_render (const struct peri__board *b, const struct peri__game *g,
                                peri_frame *frame) {
  enum { SIDE = 64 };
  peri_frame_size(frame, b->columns * SIDE, b->rows * SIDE);
  peri_frame_background(frame, 0xb8b8b8);
  for (int row = 0; row < b->rows; row++)
    for (int column = 0; column < b->columns; column++) {
      uint64_t cell = peri__board_cell(b, row, column);
      double x = (column + 0.5) * SIDE, y = (row + 0.5) * SIDE;
      peri_frame_rect(frame, column * SIDE + 1, row * SIDE + 1, SIDE - 2, SIDE - 2, 0xf4f4f4);
      if (g->stones[0] & cell) peri_frame_circle(frame, x, y, 0.36 * SIDE, 0xd9534f);
      if (g->stones[1] & cell) peri_frame_circle(frame, x, y, 0.36 * SIDE, 0x4d9fec);
    }
  return peri_frame_check(frame);
}
