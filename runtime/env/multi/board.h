/*
** board.h - games of two on a board who put stones in turn and want a line of them: tic-tac-toe, connect four.
** What a game adds is which cells a stone may go to.
*/
#ifndef peri_env_board_h
#define peri_env_board_h

#include "core/core.h"

/* A cell is a bit: columns of rows + 1 bits, the lowest cell first; the bit on top of each column stays 0, so that no
** line runs over an edge (Tromp's bitboards). */
struct peri__board {
  int rows, columns, line;
};

struct peri__game {
  uint64_t stones[2]; /* of the first and of the second agent */
  int64_t turn;       /* whose move it is */
};

/* The cell of a row from the top and a column, both from 0 on. */
static inline uint64_t peri__board_cell (const struct peri__board *b, int row, int column) {
  return (uint64_t)1 << (column * (b->rows + 1) + b->rows - 1 - row);
}

/* What both games share of a spec: two agents, two planes of 0 and 1. shape: memory for one size. */
void peri__board_spec (const struct peri__board *b, int64_t actions, int64_t *shape,
                       peri_env_spec *spec);
peri_status peri__board_reset (const struct peri__board *b, struct peri__game *g,
                               const peri_env_io *io);
/* The mover's stone at a cell; 0: a move that was not legal, which loses. Whether the game goes on, with the turn of the
** other, whose legal moves are the caller's to say then. */
bool peri__board_put (const struct peri__board *b, struct peri__game *g, uint64_t cell,
                      const peri_env_io *io);
peri_status peri__board_text (const struct peri__board *b, const struct peri__game *g, char *out,
                              size_t size);
peri_status peri__board_render (const struct peri__board *b, const struct peri__game *g,
                                peri_frame *frame);

#endif
