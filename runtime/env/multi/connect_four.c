/*
** connect_four.c - ConnectFour-v0: two agents drop stones into columns in turn, four in a line win; boards of other
** sizes and lines of other lengths by options. The first agent of an environment begins.
*/
#include "env/multi/board.h"
#include "env/options.h"

static const peri_env_option options[] = {
  { .name = "rows", .doc = "cells of a column", .value = 6, .low = 1, .high = 62 },
  { .name = "columns", .doc = "columns", .value = 7, .low = 1, .high = 32 },
  { .name = "line", .doc = "stones that win in a line", .value = 4, .low = 2, .high = 62 },
};

struct shared {
  struct peri__board board; /* first: what the functions of boards see */
  int64_t shape;
};

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  (void)ud;
  int64_t rows, columns, line;
  TRY(env_whole(args, "rows", &rows));
  TRY(env_whole(args, "columns", &columns));
  TRY(env_whole(args, "line", &line));
  if ((rows + 1) * columns > 64)
    return peri_env_refuse(args,
                           "%lld rows of %lld columns: (rows + 1) * columns is %lld, at most 64",
                           (long long)rows, (long long)columns, (long long)((rows + 1) * columns));
  if (line > rows && line > columns)
    return peri_env_refuse(args, "option 'line' is %lld, longer than %lld rows and %lld columns",
                           (long long)line, (long long)rows, (long long)columns);
  struct shared *s = peri_env_alloc(args, sizeof *s);
  if (!s) return PERI_ENOMEM;
  s->board = (struct peri__board){ (int)rows, (int)columns, (int)line };
  peri__board_spec(&s->board, columns, &s->shape, spec);
  return PERI_OK;
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)rng;
  return peri__board_reset(shared, state, io);
}

/* The lowest free cell of a column; 0: it is full. */
static uint64_t free_cell (const struct peri__board *b, const struct peri__game *g, int column) {
  const uint64_t bottom = peri__board_cell(b, b->rows - 1, column);
  const uint64_t all = (((uint64_t)1 << b->rows) - 1) * bottom;
  return (((g->stones[0] | g->stones[1]) & all) + bottom) & all;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)rng;
  const struct peri__board *b = shared;
  struct peri__game *g = state;
  const int64_t *action = io->action;
  if (peri__board_put(b, g, free_cell(b, g, (int)action[g->turn]), io))
    for (int c = 0; c < b->columns; c++)
      io->mask[g->turn * b->columns + c] = free_cell(b, g, c) != 0;
  return PERI_OK;
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  return peri__board_text(shared, state, out, size);
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  return peri__board_render(shared, state, frame);
}

const peri_env_def peri__env_connect_four = {
  .struct_size = sizeof(peri_env_def),
  .flags = PERI_ENV_MASK,
  .id = "ConnectFour-v0",
  .doc =
      "Two agents drop stones into columns in turn; four in a line win: 1, and -1 for the other.",
  .noptions = 3,
  .option = options,
  .configure = configure,
  .reset = reset,
  .step = step,
  .render = render,
  .text = text,
};
