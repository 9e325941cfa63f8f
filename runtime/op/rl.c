/*
** rl.c - returns and advantages along time, and within groups of samples. Recursions and statistics
** run in f64 whatever the dtype. Advantages are targets, not a path for gradients: only
** discounted_sum is differentiable.
*/
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "op/rl.h"

peri_status peri__rl_same_shape (peri_call *c, int i, const char *name) {
  const peri_tensor *x = c->in[0], *t = c->in[i];
  char a[128], b[128];
  if (!t ||
      (t->ndim == x->ndim && memcmp(t->shape, x->shape, (size_t)x->ndim * sizeof *x->shape) == 0))
    return PERI_OK;
  return peri__fail(c->ctx, PERI_ESHAPE, "%s has shape %s, expected that of rewards %s", name,
                    peri__shape_text(t, a, sizeof a), peri__shape_text(x, b, sizeof b));
}
peri_status peri__rl_unit (peri_call *c, const char *name, double v) {
  if (v >= 0 && v <= 1) return PERI_OK;
  return peri__fail(c->ctx, PERI_EINVAL, "%s is %g, expected 0 to 1", name, v);
}
peri_status peri__rl_timed (peri_call *c, int n, const char *const *names, int nvalues) {
  peri_dtype d = (peri_dtype)c->in[0]->dtype;
  TRY(peri__want_float(c, 0, names[0]));
  if (c->in[0]->ndim < 1)
    return peri__fail(c->ctx, PERI_ESHAPE, "rewards have shape (), expected (..., time)");
  for (int i = 1; i < n; i++) TRY(peri__rl_same_shape(c, i, names[i]));
  for (int i = 1; i <= nvalues; i++)
    if (c->in[i]) TRY(peri__want_dtype(c, i, names[i], d));
  return PERI_OK;
}
/* Rewards come from hosts and scripts: a NaN is named where it enters. */
peri_status peri__rl_finite (peri_call *c, const peri_tensor *mask) {
  const peri_tensor *r = c->in[0];
  for (int64_t i = 0; i < r->numel; i++) {
    double v = peri__number_at(r, i);
    if (peri__give_up(c->ctx, i)) return peri__fail(c->ctx, PERI_EINTR, "interrupted");
    if (!isfinite(v) && (!mask || peri__flag_at(mask, i)))
      return peri__fail(c->ctx, PERI_EINVAL, "reward at flat position %" PRId64 " (from 0) is %s",
                        i,
                        isnan(v) ? "NaN"
                        : v > 0  ? "inf"
                                 : "-inf");
  }
  return PERI_OK;
}
peri_status peri__rl_next_known (peri_call *c, const peri_tensor *next,
                                 const peri_tensor *truncated, const peri_tensor *mask) {
  for (int64_t i = 0; truncated && !next && i < c->in[0]->numel; i++)
    if (peri__flag_at(truncated, i) && (!mask || peri__flag_at(mask, i)))
      return peri__fail(c->ctx, PERI_EINVAL,
                        "truncated is set at flat position %" PRId64
                        " (from 0): next_values must give the value of "
                        "the state that was cut off there",
                        i);
  return PERI_OK;
}

/* ---- discounted_sum ---- */

static peri_status discounted_infer (peri_call *c) {
  static const char *const names[] = { "rewards", "terminated" };
  TRY(peri__rl_timed(c, 2, names, 0));
  TRY(peri__rl_unit(c, "gamma", c->attr[0].f));
  return peri__infer_same(c);
}

static void discounted_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const peri_call *c = ud;
  const peri_tensor *r = c->in[0], *done = c->in[1];
  int64_t n = peri__last_size(r);
  double gamma = c->attr[0].f;
  (void)worker;
  for (int64_t i = begin; i < end; i++) {
    double sum = 0;
    for (int64_t k = 0; k < n; k++) {
      if (peri__give_up(c->ctx, k)) return;
      int64_t t = c->attr[1].i ? i * n + k : i * n + n - 1 - k;
      bool cut = c->attr[1].i ? k > 0 && peri__flag_at(done, t - 1) : peri__flag_at(done, t);
      sum = peri__number_at(r, t) + (cut ? 0 : gamma * sum);
      peri__put(c->out[0], t, sum);
    }
  }
}

static peri_status discounted_cpu (peri_call *c) {
  int64_t n = peri__last_size(c->in[0]);
  if (n > 0) peri__parallel(c->ctx, c->in[0]->numel / n, 4096 / n + 1, discounted_rows, c);
  return PERI_OK;
}

/* The transposed recursion is the same one in the other direction. */
static void discounted_vjp (peri_vjp *v) {
  const peri_attr *a = v->c->attr;
  if (v->need[0])
    v->gin[0] =
        BA(&v->b, discounted_sum, ATTR(A_NUM(a[0].f), A_INT(!a[1].i)), v->g[0], v->c->in[1]);
}

OP(discounted_sum, .flags = PERI_OP_UPCAST,
   .sig = "rewards, terminated:tensor?, gamma:num=0.99, reverse:bool=false",
   .doc = "Discounted sums along the last dim, rewards (..., time): y_t = r_t + gamma y_t+1, "
          "where a set terminated_t cuts the sum after t; reverse sums forward in time, y_t = "
          "r_t + gamma y_t-1 (cut before t).",
   .infer = discounted_infer, .cpu = discounted_cpu, .vjp = discounted_vjp,
   TESTS(.variants = { "rewards.shape=2,5; terminated=bool; terminated.shape=2,5; attr gamma=0.8",
                       "rewards.shape=2,5; terminated=bool; terminated.shape=2,5; attr "
                       "reverse=true" },
         .refuses = { "rewards.shape=3; attr gamma=2 => 2",
                      "rewards.shape=3; terminated.shape=2 => (2) | (3)" }));

/* ---- gae ---- */

enum { G_REWARDS, G_VALUES, G_NEXT, G_TERMINATED, G_TRUNCATED, G_MASK };

static peri_status gae_infer (peri_call *c) {
  static const char *const names[] = { "rewards",    "values",    "next_values",
                                       "terminated", "truncated", "mask" };
  peri_dtype d = (peri_dtype)c->in[0]->dtype;
  TRY(peri__rl_timed(c, 6, names, 2));
  TRY(peri__rl_unit(c, "gamma", c->attr[0].f));
  TRY(peri__rl_unit(c, "lam", c->attr[1].f));
  TRY(peri__new_like(c->in[0], d, &c->out[0]));
  return peri__new_like(c->in[0], d, &c->out[1]);
}

static void gae_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const peri_call *c = ud;
  peri_tensor *const *in = c->in;
  int64_t n = peri__last_size(in[0]);
  double gamma = c->attr[0].f, lam = c->attr[1].f;
  (void)worker;
  for (int64_t i = begin; i < end; i++) {
    double advantage = 0, after = 0; /* of the next step that counts */
    for (int64_t t = (i + 1) * n - 1; t >= i * n; t--) {
      if (peri__give_up(c->ctx, t)) return;
      if (in[G_MASK] && !peri__flag_at(in[G_MASK], t)) { /* carried over, not zeroed */
        peri__put(c->out[0], t, 0);
        peri__put(c->out[1], t, 0);
        continue;
      }
      bool ends = peri__flag_at(in[G_TERMINATED], t),
           cut = ends || peri__flag_at(in[G_TRUNCATED], t);
      double value = peri__number_at(in[G_VALUES], t);
      double next = in[G_NEXT] ? peri__number_at(in[G_NEXT], t) : after;
      double delta = peri__number_at(in[G_REWARDS], t) + (ends ? 0 : gamma * next) - value;
      advantage = delta + (cut ? 0 : gamma * lam * advantage);
      after = value;
      peri__put(c->out[0], t, advantage);
      peri__put(c->out[1], t, advantage + value);
    }
  }
}

static peri_status gae_cpu (peri_call *c) {
  int64_t n = peri__last_size(c->in[0]);
  TRY(peri__rl_finite(c, c->in[G_MASK]));
  TRY(peri__rl_next_known(c, c->in[G_NEXT], c->in[G_TRUNCATED], c->in[G_MASK]));
  if (n > 0) peri__parallel(c->ctx, c->in[0]->numel / n, 2048 / n + 1, gae_rows, c);
  return PERI_OK;
}

OPN(gae, 2, .flags = PERI_OP_UPCAST,
    .sig = "rewards, values, next_values:tensor?, terminated:tensor?, truncated:tensor?, "
           "mask:tensor?, gamma:num=0.99, lam:num=0.95",
    .doc = "Generalised advantage estimation (Schulman et al. 2016) along the last dim of (..., "
           "time): delta_t = r_t + gamma next_t (1 - terminated_t) - v_t, A_t = delta_t + gamma "
           "lam A_t+1, cut after a terminated or truncated step; a truncated step still "
           "bootstraps from next_values. Returns A and A + v. Without next_values the next value "
           "is that of the next step, 0 after the last. Steps with mask 0 are skipped over and "
           "give 0.",
    .infer = gae_infer, .cpu = gae_cpu,
    TESTS(.refuses = { "rewards.shape=3; values.shape=2 => (2) | (3)",
                       "rewards.shape=2; values.shape=2; truncated=bool[1,0] => next_values" }));

/* ---- group_advantage ---- */

typedef enum spread { STD_SAMPLE, STD_POPULATION, STD_NONE } spread;

static peri_status get_spread (peri_call *c, spread *out) {
  static const char *const names[] = { "sample", "population", "none" };
  const char *s = c->attr[1].s;
  for (int i = 0; i < 3 && s; i++)
    if (strcmp(s, names[i]) == 0) {
      *out = (spread)i;
      return PERI_OK;
    }
  return peri__fail(c->ctx, PERI_EINVAL, "std is \"%s\", expected sample, population or none",
                    s ? s : "nil");
}

static peri_status group_infer (peri_call *c) {
  const peri_tensor *r = c->in[0];
  int64_t group = c->attr[0].i;
  spread how;
  char a[128];
  TRY(peri__rl_same_shape(c, 1, "mask"));
  TRY(get_spread(c, &how));
  if (r->ndim < 1 || group < 1 || r->shape[0] % group != 0)
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "rewards %s do not make groups of %" PRId64 " along the first dim",
                      peri__shape_text(r, a, sizeof a), group);
  if (!(c->attr[2].f >= 0))
    return peri__fail(c->ctx, PERI_EINVAL, "eps is %g, expected 0 or more", c->attr[2].f);
  return peri__infer_same(c);
}

/* Normalise the set base + i * rows + j * 1, i < group, j < width, over the members that count. */
static void normalise (const peri_call *c, spread how, int64_t base, int64_t group, int64_t row,
                       int64_t width) {
  const peri_tensor *r = c->in[0], *mask = c->in[1];
  double sum = 0, squares = 0, low = INFINITY, high = -INFINITY, scale = 1;
  int64_t n = 0;
  for (int64_t i = 0; i < group; i++)
    for (int64_t j = 0; j < width; j++) {
      int64_t at = base + i * row + j;
      if (mask && !peri__flag_at(mask, at)) continue;
      double v = peri__number_at(r, at);
      sum += v;
      low = v < low ? v : low;
      high = v > high ? v : high;
      n++;
    }
  double mean = n > 0 ? sum / (double)n : 0;
  for (int64_t i = 0; i < group; i++)
    for (int64_t j = 0; j < width; j++) {
      int64_t at = base + i * row + j;
      double d = peri__number_at(r, at) - mean;
      if (!mask || peri__flag_at(mask, at)) squares += d * d;
    }
  /* a group of equal rewards carries no signal: exactly 0, not rounding over eps */
  bool flat = n < 2 || low == high;
  if (how != STD_NONE && !flat)
    scale = 1 / (sqrt(squares / (double)(how == STD_SAMPLE ? n - 1 : n)) + c->attr[2].f);
  for (int64_t i = 0; i < group; i++)
    for (int64_t j = 0; j < width; j++) {
      int64_t at = base + i * row + j;
      bool counts = !flat && (!mask || peri__flag_at(mask, at));
      peri__put(c->out[0], at, counts ? (peri__number_at(r, at) - mean) * scale : 0);
    }
}

static peri_status group_cpu (peri_call *c) {
  const peri_tensor *r = c->in[0];
  int64_t group = c->attr[0].i, groups = r->shape[0] / group;
  int64_t row = groups > 0 ? r->numel / r->shape[0] : 0;
  spread how;
  TRY(get_spread(c, &how));
  TRY(peri__rl_finite(c, c->in[1]));
  for (int64_t g = 0; g < groups && !peri__stopped(c->ctx); g++)
    if (c->attr[3].i)
      normalise(c, how, g * group * row, group, row, row);
    else
      for (int64_t j = 0; j < row && !peri__give_up(c->ctx, j * group); j++)
        normalise(c, how, g * group * row + j, group, row, 1);
  return PERI_OK;
}

OP(group_advantage, .flags = PERI_OP_FLOAT | PERI_OP_UPCAST,
   .sig = "rewards, mask:tensor?, group:int, std:str=sample, eps:num=1e-4, joint:bool=false",
   .doc = "Group-relative advantages (GRPO): rewards (n, ...) in groups of consecutive rows, "
          "each position of the other dims on its own (joint: together): (r - mean) / (std + "
          "eps), std sample (n - 1), population, or none (Dr. GRPO: centred only). Members with "
          "mask 0 do not count and give 0; equal rewards give 0; a reward that is not finite is "
          "refused.",
   .infer = group_infer, .cpu = group_cpu,
   TESTS(.domain = "attr group=2",
         .refuses = { "rewards.shape=3; attr group=2 => (3) | 2",
                      "rewards=f32[nan,1]; attr group=2 => NaN | position 0" }));
