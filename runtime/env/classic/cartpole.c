/*
** cartpole.c - CartPole-v1: a pole on a cart that is pushed left or right (Barto, Sutton and Anderson, 1983), as
** Gymnasium 1.4 computes it: explicit Euler in f64, observations in f32.
*/
#include <math.h>

#include "core/core.h"

#define PI 3.141592653589793

typedef struct cartpole {
  double x, x_dot, theta, theta_dot;
} cartpole;

typedef struct options {
  bool sutton_barto;
} options;

static const peri_env_option option[] = {
  { "sutton_barto_reward", "1: reward 0, and -1 on the last step, in place of 1 on every step", 0,
    NULL, 0, 1 },
};

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  (void)ud;
  static const double high[] = { 4.8, INFINITY, 24 * 2 * PI / 360, INFINITY };
  static const double low[] = { -4.8, -INFINITY, -24 * 2 * PI / 360, -INFINITY };
  options *o = peri_env_alloc(args, sizeof *o);
  if (!o) return PERI_ENOMEM;
  o->sutton_barto = peri_env_number(args, "sutton_barto_reward") != 0;
  spec->obs = peri_space_box(PERI_F32, 0, 0, 1, (const int64_t[]){ 4 });
  spec->obs.lows = low;
  spec->obs.highs = high;
  spec->action = peri_space_discrete(2);
  spec->max_steps = 500;
  spec->reward_threshold = 475;
  spec->state_bytes = sizeof(cartpole);
  spec->shared = o;
  return PERI_OK;
}

static void observe (const cartpole *s, float *obs) {
  obs[0] = (float)s->x;
  obs[1] = (float)s->x_dot;
  obs[2] = (float)s->theta;
  obs[3] = (float)s->theta_dot;
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)shared;
  cartpole *s = state;
  s->x = peri_pcg64_uniform(rng, -0.05, 0.05);
  s->x_dot = peri_pcg64_uniform(rng, -0.05, 0.05);
  s->theta = peri_pcg64_uniform(rng, -0.05, 0.05);
  s->theta_dot = peri_pcg64_uniform(rng, -0.05, 0.05);
  observe(s, io->obs);
  return PERI_OK;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)rng;
  static const double gravity = 9.8, pole = 0.1, total = 0.1 + 1.0, length = 0.5, tau = 0.02;
  static const double pole_length = 0.1 * 0.5, limit_x = 2.4, limit_theta = 12 * 2 * PI / 360;
  cartpole *s = state;
  double force = *(const int64_t *)io->action == 1 ? 10.0 : -10.0;
  double cosine = cos(s->theta), sine = sin(s->theta);
  double temp = (force + pole_length * (s->theta_dot * s->theta_dot) * sine) / total;
  double theta_acc =
      (gravity * sine - cosine * temp) / (length * (4.0 / 3.0 - pole * (cosine * cosine) / total));
  double x_acc = temp - pole_length * theta_acc * cosine / total;
  s->x = s->x + tau * s->x_dot;
  s->x_dot = s->x_dot + tau * x_acc;
  s->theta = s->theta + tau * s->theta_dot;
  s->theta_dot = s->theta_dot + tau * theta_acc;
  observe(s, io->obs);
  bool out = s->x < -limit_x || s->x > limit_x || s->theta < -limit_theta || s->theta > limit_theta;
  *io->terminated = out;
  *io->reward = ((const options *)shared)->sutton_barto ? (out ? -1 : 0) : 1;
  return PERI_OK;
}

const peri_env_def peri__env_cartpole = {
  .struct_size = sizeof(peri_env_def),
  .id = "CartPole-v1",
  .doc = "Balance a pole on a cart by pushing it left (0) or right (1).",
  .noptions = 1,
  .option = option,
  .configure = configure,
  .reset = reset,
  .step = step,
};
