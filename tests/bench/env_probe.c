/*
** env_probe.c - steps a second of processor time of environments, as a server: reads lines "name
** arg ..." from standard input and answers each with a number. rl/environments.lua starts one.
**
** hand32 N, hand64 N: a hand-written loop over N CartPoles, a struct each, in f32 as PufferLib's
** and in f64 as Gymnasium's, with resets and episode statistics. user N: the f32 step registered as
** a user's environment. batch ID N: a built-in environment.
*/
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/core.h"

static peri_ctx *ctx;
static uint32_t noise = 1;

/* Processor time: what others run on the machine counts for little. */
static double spent (void) { return (double)clock() / CLOCKS_PER_SEC; }

static uint32_t draw (void) { return noise = noise * 1664525u + 1013904223u; }

#define SECONDS 0.1

/* ---- loops by hand ---- */

#define HAND(NAME, REAL, SIN, COS)                                                         \
  typedef struct NAME {                                                                    \
    REAL x, v, a, w;                                                                       \
    int steps;                                                                             \
  } NAME;                                                                                  \
  static void NAME##_reset(NAME *s) {                                                      \
    REAL *p[] = { &s->x, &s->v, &s->a, &s->w };                                            \
    for (int i = 0; i < 4; i++)                                                            \
      *p[i] = (REAL)(draw() >> 8) * (REAL)(0.1 / (1 << 24)) - (REAL)0.05;                  \
    s->steps = 0;                                                                          \
  }                                                                                        \
  static bool NAME##_move(NAME *s, bool right) {                                           \
    REAL force = right ? 10 : -10, sine = SIN(s->a), cosine = COS(s->a);                   \
    REAL temp = (force + (REAL)0.05 * s->w * s->w * sine) / (REAL)1.1;                     \
    REAL turn = ((REAL)9.8 * sine - cosine * temp) /                                       \
                ((REAL)0.5 * ((REAL)(4.0 / 3) - (REAL)0.1 * cosine * cosine / (REAL)1.1)); \
    REAL push = temp - (REAL)0.05 * turn * cosine / (REAL)1.1;                             \
    s->x += (REAL)0.02 * s->v;                                                             \
    s->v += (REAL)0.02 * push;                                                             \
    s->a += (REAL)0.02 * s->w;                                                             \
    s->w += (REAL)0.02 * turn;                                                             \
    s->steps++;                                                                            \
    return s->x < (REAL)-2.4 || s->x > (REAL)2.4 || s->a < (REAL)-0.20943951 ||            \
           s->a > (REAL)0.20943951;                                                        \
  }                                                                                        \
  static void NAME##_observe(const NAME *s, float *obs) {                                  \
    obs[0] = (float)s->x;                                                                  \
    obs[1] = (float)s->v;                                                                  \
    obs[2] = (float)s->a;                                                                  \
    obs[3] = (float)s->w;                                                                  \
  }                                                                                        \
  static double NAME##_rate(int64_t n, const int64_t *action, float *obs, float *reward,   \
                            uint8_t *ended) {                                              \
    NAME *rows = calloc((size_t)n, sizeof *rows);                                          \
    int64_t steps = 0, episodes = 0, length = 0;                                           \
    for (int64_t i = 0; i < n; i++) NAME##_reset(rows + i);                                \
    double t = spent(), now = t;                                                           \
    for (; now - t < SECONDS; now = spent(), steps += 64 * n)                              \
      for (int64_t k = 0; k < 64; k++)                                                     \
        for (int64_t i = 0; i < n; i++) {                                                  \
          bool over = NAME##_move(rows + i, action[k * n + i] == 1);                       \
          reward[i] = 1;                                                                   \
          ended[i] = over;                                                                 \
          if (over || rows[i].steps >= 500) {                                              \
            episodes++;                                                                    \
            length += rows[i].steps;                                                       \
            NAME##_reset(rows + i);                                                        \
          }                                                                                \
          NAME##_observe(rows + i, obs + 4 * i);                                           \
        }                                                                                  \
    free(rows);                                                                            \
    return episodes > 0 && length > 0 ? (double)steps / (now - t) : 0;                     \
  }

HAND(hand32, float, sinf, cosf)
HAND(hand64, double, sin, cos)

/* ---- the same step as a user's environment ---- */

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  (void)ud;
  (void)args;
  spec->obs = peri_space_box(PERI_F32, -INFINITY, INFINITY, 1, (int64_t[]){ 4 });
  spec->action = peri_space_discrete(2);
  spec->max_steps = 500;
  spec->state_bytes = sizeof(hand32);
  return PERI_OK;
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)shared;
  (void)rng;
  hand32_reset(state);
  hand32_observe(state, io->obs);
  return PERI_OK;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)shared;
  (void)rng;
  *io->terminated = hand32_move(state, *(const int64_t *)io->action == 1);
  *io->reward = 1;
  hand32_observe(state, io->obs);
  return PERI_OK;
}

static const peri_env_def user = {
  .struct_size = sizeof(peri_env_def),
  .id = "User-v0",
  .doc = "CartPole in f32.",
  .configure = configure,
  .reset = reset,
  .step = step,
};

/* Steps a second of a batch. actions: (64, n) */
static double batch_rate (const peri_env_def *def, int64_t n, int64_t *action) {
  peri_env *e = NULL;
  peri_env_options o;
  peri_env_options_init(&o);
  o.n = n;
  o.seeded = true;
  if (!def || peri_env_make_of(ctx, def, &o, &e) != PERI_OK ||
      peri_env_reset(e, NULL, NULL) != PERI_OK)
    return -1;
  const peri_space *s = &peri_env_spec_of(e)->action;
  float *force = (float *)(void *)action;
  for (int64_t i = 0; i < 64 * n; i++)
    if (s->kind == PERI_SPACE_BOX)
      force[i] = (float)(draw() >> 8) * 0x1p-23f - 1;
    else
      action[i] = (draw() >> 16) % s->n;
  int64_t steps = 0;
  double t = spent(), now = t;
  for (; now - t < SECONDS; now = spent(), steps += 64 * n)
    for (int64_t k = 0; k < 64; k++) {
      const void *a =
          s->kind == PERI_SPACE_BOX ? (void *)(force + k * n) : (void *)(action + k * n);
      if (peri_env_step(e, a) != PERI_OK) return -1;
      peri_env_episode one;
      while (peri_env_next_episode(e, &one)) continue;
    }
  peri_env_close(e);
  return (double)steps / (now - t);
}

static double answer (const char *what, const char *id, int64_t n) {
  int64_t *action = calloc((size_t)(64 * n), sizeof *action);
  float *obs = calloc((size_t)(4 * n), sizeof *obs), *reward = calloc((size_t)n, sizeof *reward);
  uint8_t *ended = calloc((size_t)n, 1);
  double rate = -1;
  for (int64_t i = 0; i < 64 * n; i++) action[i] = draw() >> 31;
  if (strcmp(what, "hand32") == 0)
    rate = hand32_rate(n, action, obs, reward, ended);
  else if (strcmp(what, "hand64") == 0)
    rate = hand64_rate(n, action, obs, reward, ended);
  else if (strcmp(what, "user") == 0)
    rate = batch_rate(&user, n, action);
  else
    rate = batch_rate(peri_env_find(ctx, id), n, action);
  free(action);
  free(obs);
  free(reward);
  free(ended);
  return rate;
}

int main (void) {
  char line[256], what[64], word[64];
  if (peri_open(NULL, &ctx) != PERI_OK) return 1;
  while (fgets(line, sizeof line, stdin)) {
    long long n = 0;
    if (sscanf(line, "%63s %63s %lld", what, word, &n) < 3) n = strtoll(word, NULL, 10);
    double rate = n > 0 ? answer(what, word, n) : -1;
    if (rate < 0)
      printf("skip %s\n", peri_message(ctx));
    else
      printf("%.0f\n", rate);
    fflush(stdout);
  }
  peri_close(ctx);
  return 0;
}
