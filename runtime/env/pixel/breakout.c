/*
** breakout.c - MinBreakout-v0: Breakout on 10 x 10 cells, by the rules of MinAtar's (Young and
** Tian, 2019): a ball that moves along diagonals, a paddle one cell wide, three rows of bricks that
** come again when all are gone. Observations are four planes of 0 and 1: paddle, ball, trail,
** bricks.
*/
#include <string.h>

#include "core/core.h"

enum { SIDE = 10, CELLS = SIDE * SIDE, PADDLE = 0, BALL, TRAIL, BRICK, PLANES };
enum { FIRST_ROW = 1, LAST_ROW = 3 }; /* of bricks */

struct breakout {
  int8_t x, y, dx, dy, old_x, old_y, paddle;
  uint8_t inside;     /* the ball has just broken a brick: it breaks no other on its way out */
  uint16_t bricks[3]; /* a bit for each column */
  int64_t last_action;
};

struct shared {
  double sticky;
};

static const peri_env_option options[] = {
  { .name = "sticky_action_prob",
    .doc = "probability that the last action is done again instead",
    .value = 0.1,
    .high = 1 },
};

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  (void)ud;
  struct shared *s = peri_env_alloc(args, sizeof *s);
  if (!s) return PERI_ENOMEM;
  s->sticky = peri_env_number(args, "sticky_action_prob");
  spec->obs = peri_space_box(PERI_U8, 0, 1, 3, (int64_t[]){ PLANES, SIDE, SIDE });
  spec->action = peri_space_discrete(3);
  spec->max_steps = 1000;
  spec->state_bytes = sizeof(struct breakout);
  spec->shared = s;
  return PERI_OK;
}

static void new_bricks (struct breakout *b) {
  for (int i = 0; i < 3; i++) b->bricks[i] = (1 << SIDE) - 1;
}

static bool brick_at (const struct breakout *b, int x, int y) {
  return y >= FIRST_ROW && y <= LAST_ROW && b->bricks[y - FIRST_ROW] >> x & 1;
}

static void observe (const struct breakout *b, uint8_t *obs) {
  memset(obs, 0, PLANES * CELLS);
  obs[PADDLE * CELLS + (SIDE - 1) * SIDE + b->paddle] = 1;
  obs[BALL * CELLS + b->y * SIDE + b->x] = 1;
  obs[TRAIL * CELLS + b->old_y * SIDE + b->old_x] = 1;
  for (int y = FIRST_ROW; y <= LAST_ROW; y++)
    for (int x = 0; x < SIDE; x++) obs[BRICK * CELLS + y * SIDE + x] = brick_at(b, x, y);
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)shared;
  struct breakout *b = state;
  bool right = peri_pcg64_integer(rng, 2) == 1;
  *b = (struct breakout){
    .x = right ? SIDE - 1 : 0, .y = 3, .dx = right ? -1 : 1, .dy = 1, .paddle = 4
  };
  b->old_x = b->x;
  b->old_y = b->y;
  new_bricks(b);
  observe(b, io->obs);
  return PERI_OK;
}

/* The ball goes one cell on; true when it is lost. */
static bool move_ball (struct breakout *b, double *reward) {
  int x = b->x + b->dx, y = b->y + b->dy;
  bool broken = false;
  b->old_x = b->x;
  b->old_y = b->y;
  if (x < 0 || x >= SIDE) {
    x = b->x;
    b->dx = (int8_t)-b->dx;
  }
  bool lost = false;
  if (y < 0) {
    y = 0;
    b->dy = 1;
  } else if (brick_at(b, x, y)) {
    broken = true;
    if (!b->inside) {
      *reward = 1;
      b->bricks[y - FIRST_ROW] &= (uint16_t) ~(1 << x);
      y = b->y;
      b->dy = (int8_t)-b->dy;
    }
  } else if (y == SIDE - 1) {
    if (!(b->bricks[0] | b->bricks[1] | b->bricks[2])) new_bricks(b);
    bool above =
        b->x == b->paddle; /* straight above: the ball bounces up; else it also turns back */
    lost = !above && x != b->paddle;
    if (!lost) {
      y = b->y;
      b->dy = -1;
      if (!above) b->dx = (int8_t)-b->dx;
    }
  }
  b->inside = broken;
  b->x = (int8_t)x;
  b->y = (int8_t)y;
  return lost;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  const struct shared *s = shared;
  struct breakout *b = state;
  int64_t action = *(const int64_t *)io->action;
  if (s->sticky > 0 && peri_pcg64_double(rng) < s->sticky) action = b->last_action;
  b->last_action = action;
  if (action == 1 && b->paddle > 0) b->paddle--;
  if (action == 2 && b->paddle < SIDE - 1) b->paddle++;
  *io->terminated = move_ball(b, io->reward);
  observe(b, io->obs);
  return PERI_OK;
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  (void)shared;
  const struct breakout *b = state;
  if (size < SIDE * (SIDE + 1) + 1) return PERI_EINVAL;
  for (int y = 0; y < SIDE; y++, *out++ = '\n')
    for (int x = 0; x < SIDE; x++)
      *out++ = x == b->x && y == b->y            ? 'o'
               : y == SIDE - 1 && x == b->paddle ? '='
               : brick_at(b, x, y)               ? '#'
               : x == b->old_x && y == b->old_y  ? '\''
                                                 : '.';
  *out = '\0';
  return PERI_OK;
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  (void)shared;
  enum { CELL = 32 };
  static const uint32_t row_colour[] = { 0xd9534f, 0xf0ad4e, 0x5cb85c };
  const struct breakout *b = state;
  peri_frame_size(frame, SIDE * CELL, SIDE * CELL);
  peri_frame_background(frame, 0x101018);
  for (int y = FIRST_ROW; y <= LAST_ROW; y++)
    for (int x = 0; x < SIDE; x++)
      if (brick_at(b, x, y))
        peri_frame_rect(frame, x * CELL + 1, y * CELL + 1, CELL - 2, CELL - 2,
                        row_colour[y - FIRST_ROW]);
  peri_frame_circle(frame, (b->old_x + 0.5) * CELL, (b->old_y + 0.5) * CELL, 5, 0x606070);
  peri_frame_circle(frame, (b->x + 0.5) * CELL, (b->y + 0.5) * CELL, 9, 0xffffff);
  peri_frame_rect(frame, b->paddle * CELL + 1, (SIDE - 1) * CELL + 12, CELL - 2, 12, 0x4d9fec);
  return peri_frame_check(frame);
}

const peri_env_def peri__env_breakout = {
  .struct_size = sizeof(peri_env_def),
  .id = "MinBreakout-v0",
  .doc = "Break bricks with a ball and a paddle on 10 x 10 cells; 1 a brick; stay, left or right.",
  .noptions = 1,
  .option = options,
  .configure = configure,
  .reset = reset,
  .step = step,
  .render = render,
  .text = text,
};
