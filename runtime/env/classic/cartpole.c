/*
** cartpole.c - CartPole-v0 and -v1: a pole that a cart under it must keep upright (Barto, Sutton
** and Anderson, 1983), as Gymnasium's cartpole.py. The equations stand in cpu/simd_env.c: a row
** alone is a batch of one.
*/
#include "cpu/cpu.h"
#include "cpu/env.h"
#include "env/classic/canvas.h"
#include "env/options.h"

struct cartpole {
  double x, v, a, w;
}; /* position, speed, angle from upright, its speed */

struct shared {
  const struct peri__env_kernels *kernels;
  double going, over; /* rewards */
};

static const peri_env_option options[] = {
  { .name = "sutton_barto_reward",
    .doc = "reward 0 a step and -1 at the end, instead of 1 a step",
    .high = 1 },
};

struct version {
  int64_t max_steps;
  double threshold;
};

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  static const double high[] = { (float)(2 * PERI_CARTPOLE_X), INFINITY,
                                 (float)(2 * PERI_CARTPOLE_ANGLE), INFINITY };
  static const double low[] = { -(float)(2 * PERI_CARTPOLE_X), -INFINITY,
                                -(float)(2 * PERI_CARTPOLE_ANGLE), -INFINITY };
  const struct version *version = ud;
  struct shared *s = peri_env_alloc(args, sizeof *s);
  if (!s) return PERI_ENOMEM;
  bool sutton;
  TRY(env_flag(args, "sutton_barto_reward", &sutton));
  *s = (struct shared){ peri__cpu_level(PERI_SIMD_AUTO)->env, sutton ? 0 : 1, sutton ? -1 : 1 };
  spec->obs = peri_space_box(PERI_F32, 0, 0, 1, (int64_t[]){ 4 });
  spec->obs.lows = low;
  spec->obs.highs = high;
  spec->action = peri_space_discrete(2);
  spec->max_steps = version->max_steps;
  spec->reward_threshold = version->threshold;
  spec->state_bytes = sizeof(struct cartpole);
  spec->shared = s;
  return PERI_OK;
}

static void observe (const struct cartpole *c, float *obs) {
  obs[0] = (float)c->x;
  obs[1] = (float)c->v;
  obs[2] = (float)c->a;
  obs[3] = (float)c->w;
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)shared;
  struct cartpole *c = state;
  c->x = peri_pcg64_uniform(rng, -0.05, 0.05);
  c->v = peri_pcg64_uniform(rng, -0.05, 0.05);
  c->a = peri_pcg64_uniform(rng, -0.05, 0.05);
  c->w = peri_pcg64_uniform(rng, -0.05, 0.05);
  observe(c, io->obs);
  return PERI_OK;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)rng;
  const struct shared *s = shared;
  s->kernels->cartpole(state, 1, 0, 1, io->action, io->obs, io->reward, io->terminated, s->going,
                       s->over);
  return PERI_OK;
}

static peri_status step_batch (const void *shared, void *states, int64_t stride, int64_t begin,
                               int64_t end, peri_pcg64 *rng, const peri_env_io *io) {
  (void)rng;
  const struct shared *s = shared;
  s->kernels->cartpole(states, stride, begin, end, io->action, io->obs, io->reward, io->terminated,
                       s->going, s->over);
  return PERI_OK;
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  (void)shared;
  const struct cartpole *s = state;
  struct peri__canvas c;
  if (!canvas_begin(&c, out, size, 49, 7)) return PERI_EINVAL;
  double x = 24 + 10 * s->x;
  canvas_line(&c, 0, 6, 48, 6, '-');
  canvas_line(&c, x - 2, 5, x + 2, 5, '=');
  canvas_line(&c, x, 4, x + 10 * sin(s->a), 4 - 5 * cos(s->a) + 1, '|');
  return PERI_OK;
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  (void)shared;
  const struct cartpole *s = state;
  double x = 300 + s->x * 125, top = 284, sine = sin(s->a), cosine = cos(s->a);
  const double dx = 5 * cosine, dy = 5 * sine, ex = x + 125 * sine, ey = top - 125 * cosine;
  const double pole[] = { x - dx, top - dy, x + dx, top + dy, ex + dx, ey + dy, ex - dx, ey - dy };
  peri_frame_size(frame, 600, 400);
  peri_frame_line(frame, 0, 300, 600, 300, 1, 0x000000);
  peri_frame_rect(frame, x - 25, 285, 50, 30, 0x000000);
  peri_frame_polygon(frame, 4, pole, 0xca9865);
  peri_frame_circle(frame, x, top, 5, 0x8184cb);
  return peri_frame_check(frame);
}

static const struct version v0 = { 200, 195 }, v1 = { 500, 475 };
#define CARTPOLE(version, title)                                                                   \
  {                                                                                                \
    .struct_size = sizeof(peri_env_def), .flags = PERI_ENV_COLUMNS, .id = title,                   \
    .doc = "Keep a pole upright on a cart that is pushed left or right; 1 a step.", .noptions = 1, \
    .option = options, .ud = (void *)&version, .configure = configure, .reset = reset,             \
    .step = step, .step_batch = step_batch, .render = render, .text = text                         \
  }
const peri_env_def peri__env_cartpole_v0 = CARTPOLE(v0, "CartPole-v0");
const peri_env_def peri__env_cartpole_v1 = CARTPOLE(v1, "CartPole-v1");
