/*
** returns.c - what values are trained towards: n-step returns, lambda returns, V-trace. Recursions
** run in f64 whatever the dtype. They are targets, not a path for gradients.
**
** One step of (..., time) is told by the same inputs everywhere, as in gae. next_values_t is the
** value of the observation that step t led to, which at a truncated step is that of the final
** observation and not of the one after the reset. A terminated step has nothing behind it, a
** truncated one its next value alone. The last step of a row ends nothing, but what comes after it
** is known by its next value alone. Steps with mask 0 are as if they were not there, and give 0.
*/
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "op/rl.h"

typedef struct steps {
  const peri_tensor *rewards, *next, *terminated, *truncated, *mask;
} steps;

static bool counts (const steps *s, int64_t t) { return !s->mask || peri__flag_at(s->mask, t); }
static bool ends (const steps *s, int64_t t) { return peri__flag_at(s->terminated, t); }
static bool cut (const steps *s, int64_t t) { return ends(s, t) || peri__flag_at(s->truncated, t); }
static double next_value (const steps *s, int64_t t) {
  return ends(s, t) ? 0 : peri__number_at(s->next, t);
}
static void put_zeros (const peri_call *c, int64_t t) {
  for (int k = 0; k < c->op->nout; k++) peri__put(c->out[k], t, 0);
}

static peri_status new_outputs (peri_call *c) {
  for (int k = 0; k < c->op->nout; k++)
    TRY(peri__new_like(c->in[0], (peri_dtype)c->in[0]->dtype, &c->out[k]));
  return PERI_OK;
}

static void run (peri_call *c, peri_range_fn fn, int64_t each) {
  int64_t n = peri__last_size(c->in[0]);
  if (n > 0) peri__parallel(c->ctx, c->in[0]->numel / n, 2048 / each + 1, fn, c);
}

/* ---- n_step_returns ---- */

enum { N_REWARDS, N_NEXT, N_TERMINATED, N_TRUNCATED, N_MASK };

static steps steps_of (const peri_call *c) {
  return (steps){ .rewards = c->in[N_REWARDS],
                  .next = c->in[N_NEXT],
                  .terminated = c->in[N_TERMINATED],
                  .truncated = c->in[N_TRUNCATED],
                  .mask = c->in[N_MASK] };
}

static const char *const step_names[] = { "rewards", "next_values", "terminated", "truncated",
                                          "mask" };

static peri_status n_step_infer (peri_call *c) {
  TRY(peri__rl_timed(c, 5, step_names, 1));
  if (c->attr[0].i < 1)
    return peri__fail(c->ctx, PERI_EINVAL, "n is %" PRId64 ", expected 1 or more", c->attr[0].i);
  TRY(peri__rl_unit(c, "gamma", c->attr[1].f));
  TRY(new_outputs(c));
  return PERI_OK;
}

static void n_step_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const peri_call *c = ud;
  steps s = steps_of(c);
  int64_t n = peri__last_size(s.rewards), most = c->attr[0].i;
  double gamma = c->attr[1].f;
  (void)worker;
  for (int64_t i = begin; i < end; i++)
    for (int64_t t = i * n; t < (i + 1) * n; t++) {
      double sum = 0, discount = 1;
      int64_t last = t, used = 0;
      if (peri__give_up(c->ctx, t)) return;
      if (!counts(&s, t)) {
        put_zeros(c, t);
        continue;
      }
      for (int64_t k = t; k < (i + 1) * n && used < most; k++) {
        if (peri__give_up(c->ctx, k)) return;
        if (!counts(&s, k)) continue;
        sum += discount * peri__number_at(s.rewards, k);
        discount *= gamma;
        last = k;
        used++;
        if (cut(&s, k)) break;
      }
      if (ends(&s, last)) discount = 0;
      if (s.next && discount != 0) sum += discount * next_value(&s, last);
      peri__put(c->out[0], t, sum);
      peri__put(c->out[1], t, discount);
      peri__put(c->out[2], t, (double)used);
    }
}

static peri_status n_step_cpu (peri_call *c) {
  int64_t n = peri__last_size(c->in[0]), most = c->attr[0].i;
  TRY(peri__rl_finite(c, c->in[N_MASK]));
  run(c, n_step_rows, n > 0 && most < n ? n * most : n * n);
  return PERI_OK;
}

OPN(n_step_returns, 3, .flags = PERI_OP_UPCAST,
    .sig = "rewards, next_values:tensor?, terminated:tensor?, truncated:tensor?, mask:tensor?, "
           "n:int, gamma:num=0.99",
    .doc =
        "The discounted sum of up to n rewards from each step of (..., time) on, the step that "
        "terminated or was truncated being the last, plus gamma^m times next_values where the m "
        "rewards end. Returns the sums, the factor of what comes behind them (gamma^m; 0 behind a "
        "terminated step) and m. Without next_values the sums are of rewards alone, for a value "
        "that is known later: that of the observation m steps on, which at a truncated step is "
        "the final one.",
    .infer = n_step_infer, .cpu = n_step_cpu,
    TESTS(.domain = "attr n=2",
          .variants = { "attr n=2; shape=2,5; next_values.shape=2,5; terminated=bool; "
                        "terminated.shape=2,5" },
          .refuses = { "rewards.shape=3; attr n=0 => 0",
                       "rewards.shape=3; attr n=2; mask.shape=2 => (2) | (3)",
                       "rewards=f32[nan,1]; attr n=2 => NaN | position 0" }));

/* ---- lambda_returns ---- */

enum { L_TRACE = 5 };

static peri_status lambda_infer (peri_call *c) {
  static const char *const names[] = { "rewards",   "next_values", "terminated",
                                       "truncated", "mask",        "trace" };
  TRY(peri__rl_timed(c, 6, names, 1));
  TRY(peri__rl_unit(c, "gamma", c->attr[0].f));
  TRY(peri__rl_unit(c, "lam", c->attr[1].f));
  return new_outputs(c);
}

static void lambda_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const peri_call *c = ud;
  const peri_tensor *trace = c->in[L_TRACE];
  steps s = steps_of(c);
  int64_t n = peri__last_size(s.rewards);
  double gamma = c->attr[0].f, lam = c->attr[1].f;
  (void)worker;
  for (int64_t i = begin; i < end; i++) {
    double later = 0,
           share = 0; /* the return of the next step that counts, how much of it counts */
    for (int64_t t = (i + 1) * n - 1; t >= i * n; t--) {
      if (peri__give_up(c->ctx, t)) return;
      if (!counts(&s, t)) {
        put_zeros(c, t);
        continue;
      }
      double w = cut(&s, t) ? 0 : share, next = next_value(&s, t);
      later = peri__number_at(s.rewards, t) + gamma * (w == 0 ? next : next + w * (later - next));
      share = lam * (trace ? peri__number_at(trace, t) : 1);
      peri__put(c->out[0], t, later);
    }
  }
}

static peri_status lambda_cpu (peri_call *c) {
  TRY(peri__rl_finite(c, c->in[N_MASK]));
  run(c, lambda_rows, peri__last_size(c->in[0]));
  return PERI_OK;
}

OP(lambda_returns, .flags = PERI_OP_UPCAST,
   .sig = "rewards, next_values, terminated:tensor?, truncated:tensor?, mask:tensor?, "
          "trace:tensor?, gamma:num=0.99, lam:num=0.95",
   .doc = "Lambda returns along the last dim of (..., time): G_t = r_t + gamma ((1 - w) next_t + w "
          "G_t+1), w = lam trace_t+1; r_t alone at a terminated step, r_t + gamma next_t at a "
          "truncated or the last one. TD(lambda) with next_values V(s'), Peng's Q(lambda) with max "
          "Q(s', .), Watkins's where trace is 1 at greedy actions and 0 at others.",
   .infer = lambda_infer, .cpu = lambda_cpu,
   TESTS(.variants = { "shape=2,5; terminated=bool; trace=0..1; trace.shape=2,5; attr lam=0.7" },
         .refuses = { "rewards.shape=3; next_values.shape=2 => (2) | (3)",
                      "attr lam=1.5 => 1.5" }));

/* ---- vtrace ---- */

enum { V_REWARDS, V_VALUES, V_LOG_RATIO, V_NEXT, V_TERMINATED, V_TRUNCATED, V_MASK };
enum { V_GAMMA, V_LAM, V_RHO_BAR, V_C_BAR, V_PG_RHO_BAR };

static peri_status vtrace_infer (peri_call *c) {
  static const char *const names[] = { "rewards",    "values",    "log_ratio", "next_values",
                                       "terminated", "truncated", "mask" };
  static const char *const bars[] = { "rho_bar", "c_bar", "pg_rho_bar" };
  TRY(peri__rl_timed(c, 7, names, 3));
  TRY(peri__rl_unit(c, "gamma", c->attr[V_GAMMA].f));
  TRY(peri__rl_unit(c, "lam", c->attr[V_LAM].f));
  for (int k = 0; k < 3; k++)
    if (!(c->attr[V_RHO_BAR + k].f >= 0))
      return peri__fail(c->ctx, PERI_EINVAL, "%s is %g, expected 0 or more", bars[k],
                        c->attr[V_RHO_BAR + k].f);
  return new_outputs(c);
}

static void vtrace_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const peri_call *c = ud;
  const peri_attr *a = c->attr;
  steps s = { c->in[V_REWARDS], c->in[V_NEXT], c->in[V_TERMINATED], c->in[V_TRUNCATED],
              c->in[V_MASK] };
  int64_t n = peri__last_size(s.rewards);
  double gamma = a[V_GAMMA].f;
  (void)worker;
  for (int64_t i = begin; i < end; i++) {
    double excess = 0, after = 0; /* vs - v and v of the next step that counts */
    bool last = true;
    for (int64_t t = (i + 1) * n - 1; t >= i * n; t--) {
      if (peri__give_up(c->ctx, t)) return;
      if (!counts(&s, t)) {
        put_zeros(c, t);
        continue;
      }
      double ratio = exp(peri__number_at(c->in[V_LOG_RATIO], t));
      double rho = fmin(ratio, a[V_RHO_BAR].f), pg = fmin(ratio, a[V_PG_RHO_BAR].f);
      double trace = a[V_LAM].f * fmin(ratio, a[V_C_BAR].f);
      double reward = peri__number_at(s.rewards, t), value = peri__number_at(c->in[V_VALUES], t);
      double next = s.next ? next_value(&s, t) : ends(&s, t) ? 0 : after;
      bool stop = last || cut(&s, t);
      double target = stop ? next : after + excess; /* vs of the next step */
      peri__put(c->out[1], t, pg * (reward + gamma * target - value));
      excess = rho * (reward + gamma * next - value) + (stop ? 0 : gamma * trace * excess);
      peri__put(c->out[0], t, value + excess);
      peri__put(c->out[2], t, excess);
      after = value;
      last = false;
    }
  }
}

static peri_status vtrace_cpu (peri_call *c) {
  const peri_tensor *ratio = c->in[V_LOG_RATIO], *mask = c->in[V_MASK];
  TRY(peri__rl_finite(c, mask));
  TRY(peri__rl_next_known(c, c->in[V_NEXT], c->in[V_TRUNCATED], mask));
  for (int64_t i = 0; i < ratio->numel; i++)
    if (isnan(peri__number_at(ratio, i)) && (!mask || peri__flag_at(mask, i)))
      return peri__fail(c->ctx, PERI_EINVAL,
                        "log_ratio at flat position %" PRId64 " (from 0) is NaN", i);
  run(c, vtrace_rows, peri__last_size(c->in[0]));
  return PERI_OK;
}

OPN(vtrace, 3, .flags = PERI_OP_UPCAST,
    .sig =
        "rewards, values, log_ratio, next_values:tensor?, terminated:tensor?, truncated:tensor?, "
        "mask:tensor?, gamma:num=0.99, lam:num=1, rho_bar:num=1, c_bar:num=1, pg_rho_bar:num=1",
    .doc =
        "V-trace (Espeholt et al. 2018, eq. 1) along the last dim of (..., time), log_ratio = log "
        "pi - log mu of the actions: delta_t = min(rho_bar, ratio_t) (r_t + gamma next_t - v_t), "
        "A_t = delta_t + gamma lam min(c_bar, ratio_t) A_t+1. Returns the targets vs = v + A, the "
        "advantages of the policy gradient min(pg_rho_bar, ratio_t) (r_t + gamma vs_t+1 - v_t), "
        "and A, which is PufferLib's advantage and that of gae where every ratio is 1. "
        "Terminated, truncated and last steps are as in gae.",
    .infer = vtrace_infer, .cpu = vtrace_cpu,
    TESTS(.domain = "log_ratio=-1..1",
          .variants = { "shape=2,5; next_values.shape=2,5; truncated=bool; log_ratio=-1..1; attr "
                        "lam=0.9; attr c_bar=0.7; attr rho_bar=1.5" },
          .refuses = { "rewards.shape=3; values.shape=2 => (2) | (3)",
                       "log_ratio=f32[nan,1]; rewards.shape=2; values.shape=2 => log_ratio | NaN",
                       "attr c_bar=-1 => c_bar | -1",
                       "rewards.shape=2; values.shape=2; log_ratio.shape=2; truncated=bool[1,0] "
                       "=> next_values" }));
