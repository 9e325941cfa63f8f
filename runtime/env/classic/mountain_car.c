/*
** mountain_car.c - MountainCar-v0: a car too weak for the hill must swing up (Moore, 1990), as
** Gymnasium's mountain_car.py.
*/
#include "env/classic/canvas.h"
#include "env/classic/hill.h"

struct car {
  double position, speed;
};

static const peri_env_option options[] = {
  { .name = "goal_velocity", .doc = "speed that the car must have at the goal" },
};

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  (void)ud;
  double *goal_velocity = peri_env_alloc(args, sizeof *goal_velocity);
  if (!goal_velocity) return PERI_ENOMEM;
  *goal_velocity = peri_env_number(args, "goal_velocity");
  hill_space(spec);
  spec->action = peri_space_discrete(3);
  spec->max_steps = 200;
  spec->reward_threshold = -110;
  spec->state_bytes = sizeof(struct car);
  spec->shared = goal_velocity;
  return PERI_OK;
}

static void observe (const struct car *c, float *obs) {
  obs[0] = (float)c->position;
  obs[1] = (float)c->speed;
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)shared;
  struct car *c = state;
  *c = (struct car){ .position = peri_pcg64_uniform(rng, -0.6, -0.4) };
  observe(c, io->obs);
  return PERI_OK;
}

static double clipped (double x, double low, double high) {
  return x < low ? low : x > high ? high : x;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)rng;
  struct car *c = state;
  int64_t push = *(const int64_t *)io->action - 1;
  c->speed += (double)push * 0.001 + cos(3 * c->position) * -0.0025;
  c->speed = clipped(c->speed, -0.07, 0.07);
  c->position = clipped(c->position + c->speed, HILL_LOW, HILL_HIGH);
  if (c->position == HILL_LOW && c->speed < 0) c->speed = 0;
  *io->terminated = c->position >= 0.5 && c->speed >= *(const double *)shared;
  *io->reward = -1;
  observe(c, io->obs);
  return PERI_OK;
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  (void)shared;
  return hill_text(((const struct car *)state)->position, 0.5, out, size);
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  (void)shared;
  return hill_render(frame, ((const struct car *)state)->position, 0.5);
}

const peri_env_def peri__env_mountain_car = {
  .struct_size = sizeof(peri_env_def),
  .id = "MountainCar-v0",
  .doc = "Swing a weak car up a hill by pushing left, not at all or right; -1 a step.",
  .noptions = 1,
  .option = options,
  .configure = configure,
  .reset = reset,
  .step = step,
  .render = render,
  .text = text,
};
