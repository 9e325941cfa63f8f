/*
** acrobot.c - Acrobot-v1: two links hang from a bar, a torque at their joint must swing the free
** end above the bar (Sutton, 1996), as Gymnasium's acrobot.py: one Runge-Kutta step of 0.2 s.
*/
#include "env/classic/canvas.h"
#include "env/classic/power.h"

#define PI 3.141592653589793

struct acrobot {
  double angle1, angle2, speed1, speed2;
}; /* of the second link: from the first */

struct shared {
  double noise, dt;
  bool nips;
};

static const peri_env_option options[] = {
  { .name = "book_or_nips",
    .doc = "equations of the book, or of the paper: \"nips\"",
    .text = "book" },
  { .name = "torque_noise_max",
    .doc = "uniform noise added to the torque, up to this size",
    .high = 100 },
  { .name = "dt", .doc = "seconds of a step", .value = 0.2, .high = 1 },
};

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  (void)ud;
  static const double high[] = { 1, 1, 1, 1, (float)(4 * PI), (float)(9 * PI) };
  static const double low[] = { -1, -1, -1, -1, -(float)(4 * PI), -(float)(9 * PI) };
  const char *form = peri_env_text(args, "book_or_nips");
  if (strcmp(form, "book") != 0 && strcmp(form, "nips") != 0)
    return peri_env_refuse(args, "option 'book_or_nips': expected book or nips, got \"%s\"", form);
  struct shared *s = peri_env_alloc(args, sizeof *s);
  if (!s) return PERI_ENOMEM;
  *s = (struct shared){ peri_env_number(args, "torque_noise_max"), peri_env_number(args, "dt"),
                        strcmp(form, "nips") == 0 };
  spec->obs = peri_space_box(PERI_F32, 0, 0, 1, (int64_t[]){ 6 });
  spec->obs.lows = low;
  spec->obs.highs = high;
  spec->action = peri_space_discrete(3);
  spec->max_steps = 500;
  spec->reward_threshold = -100;
  spec->state_bytes = sizeof(struct acrobot);
  spec->shared = s;
  return PERI_OK;
}

static void observe (const struct acrobot *a, float *obs) {
  obs[0] = (float)cos(a->angle1);
  obs[1] = (float)sin(a->angle1);
  obs[2] = (float)cos(a->angle2);
  obs[3] = (float)sin(a->angle2);
  obs[4] = (float)a->speed1;
  obs[5] = (float)a->speed2;
}

/* NumPy's f32 sine and cosine near 0, since the state after a reset is f32: its polynomials, with
** its fused steps. */
static float sine32 (float x) {
  float z = x * x, r = fmaf(0x1.7d3bbcp-19f, z, -0x1.a06bbap-13f);
  r = fmaf(r, z, 0x1.11119ap-07f);
  r = fmaf(r, z, -0x1.555556p-03f);
  return fmaf(r * z, x, x);
}
static float cosine32 (float x) {
  float z = x * x, r = fmaf(0x1.98e616p-16f, z, -0x1.6c06dcp-10f);
  r = fmaf(r, z, 0x1.55553cp-05f);
  r = fmaf(r, z, -0.5f);
  return fmaf(r, z, 1.0f);
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)shared;
  struct acrobot *a = state;
  float *obs = io->obs;
  a->angle1 = (float)peri_pcg64_uniform(rng, -0.1, 0.1);
  a->angle2 = (float)peri_pcg64_uniform(rng, -0.1, 0.1);
  a->speed1 = (float)peri_pcg64_uniform(rng, -0.1, 0.1);
  a->speed2 = (float)peri_pcg64_uniform(rng, -0.1, 0.1);
  obs[0] = cosine32((float)a->angle1);
  obs[1] = sine32((float)a->angle1);
  obs[2] = cosine32((float)a->angle2);
  obs[3] = sine32((float)a->angle2);
  obs[4] = (float)a->speed1;
  obs[5] = (float)a->speed2;
  return PERI_OK;
}

/* Links of mass and length 1, their centres in the middle, moments of inertia 1. */
static struct acrobot slope (const struct acrobot *s, double torque, bool nips) {
  double sine = sin(s->angle2), cosine = cos(s->angle2);
  double d1 = 0.25 + (1.25 + cosine) + 1 + 1;
  double d2 = (0.25 + 0.5 * cosine) + 1;
  double phi2 = 0.5 * 9.8 * cos(s->angle1 + s->angle2 - PI / 2);
  double phi1 = -0.5 * numpy_squared(s->speed2) * sine - s->speed2 * s->speed1 * sine +
                1.5 * 9.8 * cos(s->angle1 - PI / 2) + phi2;
  double drive = torque + d2 / d1 * phi1;
  if (!nips) drive -= 0.5 * numpy_squared(s->speed1) * sine;
  double turn2 = (drive - phi2) / (1.25 - numpy_squared(d2) / d1);
  double turn1 = -(d2 * turn2 + phi1) / d1;
  return (struct acrobot){ s->speed1, s->speed2, turn1, turn2 };
}

static struct acrobot moved (const struct acrobot *s, double t, const struct acrobot *k) {
  return (struct acrobot){ s->angle1 + t * k->angle1, s->angle2 + t * k->angle2,
                           s->speed1 + t * k->speed1, s->speed2 + t * k->speed2 };
}

static double wrapped (double x) {
  if (fabs(x) > 1e3) return remainder(x, 2 * PI); /* a step that is far too long */
  while (x > PI) x -= 2 * PI;
  while (x < -PI) x += 2 * PI;
  return x;
}

static double clipped (double x, double bound) {
  return x < -bound ? -bound : x > bound ? bound : x;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  const struct shared *s = shared;
  struct acrobot *a = state;
  double torque = (double)(*(const int64_t *)io->action - 1);
  if (s->noise > 0) torque += peri_pcg64_uniform(rng, -s->noise, s->noise);
  struct acrobot at, k1 = slope(a, torque, s->nips);
  at = moved(a, s->dt / 2, &k1);
  struct acrobot k2 = slope(&at, torque, s->nips);
  at = moved(a, s->dt / 2, &k2);
  struct acrobot k3 = slope(&at, torque, s->nips);
  at = moved(a, s->dt, &k3);
  struct acrobot k4 = slope(&at, torque, s->nips);
#define SUM(part) (k1.part + 2 * k2.part + 2 * k3.part + k4.part)
  struct acrobot sum = { SUM(angle1), SUM(angle2), SUM(speed1), SUM(speed2) };
#undef SUM
  at = moved(a, s->dt / 6, &sum);
  *a = (struct acrobot){ wrapped(at.angle1), wrapped(at.angle2), clipped(at.speed1, 4 * PI),
                         clipped(at.speed2, 9 * PI) };
  *io->terminated = -cos(a->angle1) - cos(a->angle2 + a->angle1) > 1;
  *io->reward = *io->terminated ? 0 : -1;
  observe(a, io->obs);
  return PERI_OK;
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  (void)shared;
  const struct acrobot *a = state;
  struct peri__canvas c;
  if (!canvas_begin(&c, out, size, 45, 23)) return PERI_EINVAL;
  double both = a->angle1 + a->angle2;
  double x1 = 22 + 10 * sin(a->angle1), y1 = 11 + 5 * cos(a->angle1);
  canvas_line(&c, 0, 6, 44, 6, '-'); /* the height to reach */
  canvas_line(&c, 22, 11, x1, y1, '#');
  canvas_line(&c, x1, y1, x1 + 10 * sin(both), y1 + 5 * cos(both), '*');
  canvas_put(&c, 22, 11, '+');
  return PERI_OK;
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  (void)shared;
  const struct acrobot *a = state;
  const double scale = 500 / 4.4, both = a->angle1 + a->angle2;
  double x1 = 250 + scale * sin(a->angle1), y1 = 250 + scale * cos(a->angle1);
  double x2 = x1 + scale * sin(both), y2 = y1 + scale * cos(both);
  peri_frame_size(frame, 500, 500);
  peri_frame_line(frame, 0, 250 - scale, 500, 250 - scale, 1.5, 0x000000);
  peri_frame_line(frame, 250, 250, x1, y1, 0.2 * scale, 0x00cccc);
  peri_frame_line(frame, x1, y1, x2, y2, 0.2 * scale, 0x00cccc);
  peri_frame_circle(frame, 250, 250, 0.1 * scale, 0xcccc00);
  peri_frame_circle(frame, x1, y1, 0.1 * scale, 0xcccc00);
  return peri_frame_check(frame);
}

const peri_env_def peri__env_acrobot = {
  .struct_size = sizeof(peri_env_def),
  .id = "Acrobot-v1",
  .doc = "Swing the free end of two links above their bar by a torque at the joint; -1 a step.",
  .noptions = 3,
  .option = options,
  .configure = configure,
  .reset = reset,
  .step = step,
  .render = render,
  .text = text,
};
