/*
** bandit.c - Bandit-v0: one of several arms is pulled each step (Sutton and Barto, chapter 2). Arms
** are drawn when an episode begins; with contexts, each has arms of its own and is seen before the
** pull.
*/
#include <stdio.h>
#include <string.h>

#include "env/options.h"

struct shared {
  int64_t arms, contexts;
  bool bernoulli;
  double drift;
};

struct bandit {
  int64_t context;
  double mean[]; /* (contexts, arms) */
};

static const peri_env_option options[] = {
  { .name = "arms", .doc = "arms to pull", .value = 10, .low = 1, .high = 10000 },
  { .name = "kind",
    .doc = "gaussian: rewards of deviation 1, means from N(0, 1); bernoulli: 0 or 1, means from "
           "U(0, 1)",
    .text = "gaussian" },
  { .name = "contexts",
    .doc = "contexts, one of them drawn each step",
    .value = 1,
    .low = 1,
    .high = 10000 },
  { .name = "drift",
    .doc = "deviation of what is added to every gaussian mean after each step",
    .high = 1000 },
};

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  (void)ud;
  static const char *const metrics[] = { "optimal", "regret" };
  const char *kind = peri_env_text(args, "kind");
  struct shared *s = peri_env_alloc(args, sizeof *s);
  if (!s) return PERI_ENOMEM;
  TRY(env_whole(args, "arms", &s->arms));
  TRY(env_whole(args, "contexts", &s->contexts));
  s->bernoulli = strcmp(kind, "bernoulli") == 0;
  s->drift = peri_env_number(args, "drift");
  if (!s->bernoulli && strcmp(kind, "gaussian") != 0)
    return peri_env_refuse(args, "option 'kind': expected gaussian or bernoulli, got \"%s\"", kind);
  if (s->bernoulli && s->drift > 0)
    return peri_env_refuse(args, "option 'drift' is %g, means of bernoulli arms do not drift",
                           s->drift);
  spec->obs = peri_space_discrete(s->contexts);
  spec->action = peri_space_discrete(s->arms);
  spec->max_steps = 1000;
  spec->state_bytes = sizeof(struct bandit) + (size_t)(s->arms * s->contexts) * sizeof(double);
  spec->nmetrics = 2;
  spec->metric = metrics;
  spec->shared = s;
  return PERI_OK;
}

static void observe (const struct shared *s, struct bandit *b, peri_pcg64 *rng, int64_t *obs) {
  *obs = b->context = s->contexts > 1 ? peri_pcg64_integer(rng, s->contexts) : 0;
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  const struct shared *s = shared;
  struct bandit *b = state;
  for (int64_t i = 0; i < s->arms * s->contexts; i++)
    b->mean[i] = s->bernoulli ? peri_pcg64_double(rng) : peri_pcg64_normal(rng);
  observe(s, b, rng, io->obs);
  return PERI_OK;
}

static int64_t best_of (const double *mean, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; i++)
    if (mean[i] > mean[best]) best = i;
  return best;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  const struct shared *s = shared;
  struct bandit *b = state;
  const double *mean = b->mean + b->context * s->arms;
  int64_t arm = *(const int64_t *)io->action, best = best_of(mean, s->arms);
  *io->reward =
      s->bernoulli ? peri_pcg64_double(rng) < mean[arm] : mean[arm] + peri_pcg64_normal(rng);
  io->metric[0] = mean[arm] == mean[best];
  io->metric[1] = (float)(mean[best] - mean[arm]);
  if (s->drift > 0)
    for (int64_t i = 0; i < s->arms * s->contexts; i++)
      b->mean[i] += s->drift * peri_pcg64_normal(rng);
  observe(s, b, rng, io->obs);
  return PERI_OK;
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  const struct shared *s = shared;
  const struct bandit *b = state;
  const double *mean = b->mean + b->context * s->arms;
  int n = snprintf(out, size, "context %lld\n", (long long)b->context);
  for (int64_t i = 0; i < s->arms; i++) {
    if (n < 0 || (size_t)n >= size) return PERI_EINVAL;
    n += snprintf(out + n, size - (size_t)n, "arm %lld: %+.3f%s\n", (long long)i, mean[i],
                  i == best_of(mean, s->arms) ? " *" : "");
  }
  return n > 0 && (size_t)n < size ? PERI_OK : PERI_EINVAL;
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  const struct shared *s = shared;
  const struct bandit *b = state;
  const double *mean = b->mean + b->context * s->arms, wide = 600.0 / (double)s->arms;
  int64_t best = best_of(mean, s->arms);
  peri_frame_size(frame, 600, 300);
  for (int64_t i = 0; i < s->arms; i++) {
    double high = (s->bernoulli ? 240 : 50) * mean[i], base = s->bernoulli ? 280 : 150;
    peri_frame_rect(frame, (double)i * wide + 0.1 * wide, high > 0 ? base - high : base, 0.8 * wide,
                    high > 0 ? high : -high, i == best ? 0xf2c94c : 0x4d7fcc);
  }
  peri_frame_line(frame, 0, s->bernoulli ? 280 : 150, 600, s->bernoulli ? 280 : 150, 1, 0x000000);
  return peri_frame_check(frame);
}

const peri_env_def peri__env_bandit = {
  .struct_size = sizeof(peri_env_def),
  .id = "Bandit-v0",
  .doc =
      "Pull one of several arms, whose mean rewards an episode keeps; metrics optimal and regret.",
  .noptions = sizeof options / sizeof *options,
  .option = options,
  .configure = configure,
  .reset = reset,
  .step = step,
  .render = render,
  .text = text,
};
