/*
** mountain_car_continuous.c - MountainCarContinuous-v0, as Gymnasium's continuous_mountain_car.py
** under NumPy 2: the state is f32 and Python's numbers are weak beside it, so a step is f32
** arithmetic; the first step of an episode is f64, since reset leaves an f64 state.
*/
#include "env/classic/canvas.h"
#include "env/classic/hill.h"

#define POWER 0.0015
#define GOAL 0.45

struct car {
  double position, speed; /* f32 values but in the first step */
  uint64_t first;
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
  spec->action = peri_space_box(PERI_F32, -1, 1, 1, (int64_t[]){ 1 });
  spec->max_steps = 999;
  spec->reward_threshold = 90;
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
  *c = (struct car){ .position = peri_pcg64_uniform(rng, -0.6, -0.4), .first = 1 };
  observe(c, io->obs);
  return PERI_OK;
}

/* The change of speed: f32 but where the action is beyond its bounds, which are f64 then. */
static double change (const struct car *c, float action, bool *narrow) {
  double position = c->first ? 3 * c->position : (double)(3 * (float)c->position);
  double hill = 0.0025 * cos(position);
  *narrow = action >= -1 && action <= 1;
  if (*narrow) return (double)(action * (float)POWER - (float)hill);
  return (action < 0 ? -POWER : POWER) - hill;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)rng;
  const double goal_velocity = *(const double *)shared;
  struct car *c = state;
  float action = *(const float *)io->action;
  bool narrow;
  double more = change(c, action, &narrow), speed, position;
  if (c->first) {
    speed = c->speed + more;
    if (speed > HILL_SPEED) speed = HILL_SPEED;
    if (speed < -HILL_SPEED) speed = -HILL_SPEED;
    position = c->position + speed;
    if (position > HILL_HIGH) position = HILL_HIGH;
    if (position < HILL_LOW) position = HILL_LOW;
    if (position == HILL_LOW && speed < 0) speed = 0;
    *io->terminated = position >= GOAL && speed >= goal_velocity;
  } else {
    float v = (float)c->speed + (float)more;
    if (v > (float)HILL_SPEED) v = (float)HILL_SPEED;
    if (v < -(float)HILL_SPEED) v = -(float)HILL_SPEED;
    float p = (float)c->position + v;
    if (p > (float)HILL_HIGH) p = (float)HILL_HIGH;
    if (p < (float)HILL_LOW) p = (float)HILL_LOW;
    if (p == (float)HILL_LOW && v < 0) v = 0;
    *io->terminated = p >= (float)GOAL && v >= (float)goal_velocity;
    position = p;
    speed = v;
  }
  *c = (struct car){ .position = (float)position, .speed = (float)speed };
  *io->reward = (*io->terminated ? 100.0 : 0.0) - (double)action * (double)action * 0.1;
  observe(c, io->obs);
  return PERI_OK;
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  (void)shared;
  return hill_text(((const struct car *)state)->position, GOAL, out, size);
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  (void)shared;
  return hill_render(frame, ((const struct car *)state)->position, GOAL);
}

const peri_env_def peri__env_mountain_car_continuous = {
  .struct_size = sizeof(peri_env_def),
  .id = "MountainCarContinuous-v0",
  .doc =
      "Swing a weak car up a hill with a force; 100 at the goal, less 0.1 of each squared force.",
  .noptions = 1,
  .option = options,
  .configure = configure,
  .reset = reset,
  .step = step,
  .render = render,
  .text = text,
};
