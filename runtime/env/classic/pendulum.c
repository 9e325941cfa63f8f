/*
** pendulum.c - Pendulum-v1: swing a pendulum up and hold it there, as Gymnasium's pendulum.py under
** NumPy 2: the action is f32 and Python's numbers are weak beside it, so what is computed from it
** alone is f32. Sine and cosine are the C library's: with glibc, NumPy's.
*/
#include "env/classic/canvas.h"
#include "env/classic/power.h"

#define PI 3.141592653589793

struct pendulum {
  double angle, speed, torque;
}; /* from upright; torque is for pictures */

static const peri_env_option options[] = {
  { .name = "g", .doc = "gravity", .value = 10 },
};

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  (void)ud;
  static const double low[] = { -1, -1, -8 }, high[] = { 1, 1, 8 };
  double *g = peri_env_alloc(args, sizeof *g);
  if (!g) return PERI_ENOMEM;
  *g = peri_env_number(args, "g");
  spec->obs = peri_space_box(PERI_F32, 0, 0, 1, (int64_t[]){ 3 });
  spec->obs.lows = low;
  spec->obs.highs = high;
  spec->action = peri_space_box(PERI_F32, -2, 2, 1, (int64_t[]){ 1 });
  spec->max_steps = 200;
  spec->state_bytes = sizeof(struct pendulum);
  spec->shared = g;
  return PERI_OK;
}

static void observe (const struct pendulum *p, float *obs) {
  obs[0] = (float)cos(p->angle);
  obs[1] = (float)sin(p->angle);
  obs[2] = (float)p->speed;
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)shared;
  struct pendulum *p = state;
  p->angle = peri_pcg64_uniform(rng, -PI, PI);
  p->speed = peri_pcg64_uniform(rng, -1, 1);
  p->torque = 0;
  observe(p, io->obs);
  return PERI_OK;
}

/* Python's % 2 pi: the sign is the divisor's. */
static double normalized (double angle) {
  double m = fmod(angle + PI, 2 * PI);
  if (m < 0) m += 2 * PI;
  return m - PI;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)rng;
  const double g = *(const double *)shared;
  struct pendulum *p = state;
  float u = *(const float *)io->action;
  u = u < -2 ? -2 : u > 2 ? 2 : u;
  double off = normalized(p->angle);
  double cost =
      numpy_squared(off) + 0.1 * numpy_squared(p->speed) + (double)(0.001f * numpy_squared32(u));
  double speed = p->speed + (3 * g / 2 * sin(p->angle) + (double)(3.0f * u)) * 0.05;
  speed = speed < -8 ? -8 : speed > 8 ? 8 : speed;
  *p = (struct pendulum){ p->angle + speed * 0.05, speed, u };
  *io->reward = -cost;
  observe(p, io->obs);
  return PERI_OK;
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  (void)shared;
  const struct pendulum *p = state;
  struct peri__canvas c;
  if (!canvas_begin(&c, out, size, 25, 13)) return PERI_EINVAL;
  canvas_line(&c, 12, 6, 12 - 11 * sin(p->angle), 6 - 6 * cos(p->angle), '#');
  canvas_put(&c, 12, 6, '+');
  return PERI_OK;
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  (void)shared;
  const struct pendulum *p = state;
  const double length = 110, x = 250 - length * sin(p->angle), y = 250 - length * cos(p->angle);
  peri_frame_size(frame, 500, 500);
  peri_frame_line(frame, 250, 250, x, y, 22, 0xcc4d4d);
  peri_frame_circle(frame, 250, 250, 11, 0xcc4d4d);
  peri_frame_circle(frame, x, y, 11, 0xcc4d4d);
  /* the torque as a bar below: to the left it turns the pendulum anticlockwise */
  double bar = 60 * p->torque;
  peri_frame_rect(frame, bar > 0 ? 250 - bar : 250, 430, fabs(bar), 12, 0x4d7fcc);
  peri_frame_line(frame, 250, 425, 250, 447, 2, 0x000000);
  peri_frame_circle(frame, 250, 250, 5, 0x000000);
  return peri_frame_check(frame);
}

const peri_env_def peri__env_pendulum = {
  .struct_size = sizeof(peri_env_def),
  .id = "Pendulum-v1",
  .doc = "Swing a pendulum up and hold it there with little torque; each step costs its error.",
  .noptions = 1,
  .option = options,
  .configure = configure,
  .reset = reset,
  .step = step,
  .render = render,
  .text = text,
};
