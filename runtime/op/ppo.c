/*
** ppo.c - the loss of PPO over minibatches in one pass, and what became of its ratios. Whatever the
** distribution is, it comes as log-probabilities and entropies of the actions; the last dim is the
** minibatch, dims before it are learners of their own (seeds, settings). Arithmetic is in f64 but for
** the exponential of f32.
*/
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/math.h"
#include "op/rl.h"
#include "op/rule.h"

/* The bound of log-ratios: one above it counts as it and has no gradient (lua/perilune/rl/loss.lua). */
static const double LOG_RATIO_MAX = 20;

static peri_status bound (peri_call *c, const char *name, double v, bool optional) {
  if (v > 0 || (optional && isnan(v))) return PERI_OK;
  return peri__fail(c->ctx, PERI_EINVAL, "%s is %g, expected more than 0", name, v);
}
static peri_status weight (peri_call *c, const char *name, double v) {
  if (isfinite(v)) return PERI_OK;
  return peri__fail(c->ctx, PERI_EINVAL, "%s is %g, expected a finite number", name, v);
}

static peri_status like_logp (peri_call *c, int i, const char *name, int dtype) {
  const peri_tensor *t = c->in[i], *x = c->in[0];
  char a[128], b[128];
  if (t == NULL) return PERI_OK;
  TRY(peri__want_dtype(c, i, name, dtype));
  if (t->ndim == x->ndim && memcmp(t->shape, x->shape, (size_t)x->ndim * sizeof *x->shape) == 0)
    return PERI_OK;
  return peri__fail(c->ctx, PERI_ESHAPE, "%s has shape %s, expected that of logp %s", name,
                    peri__shape_text(t, a, sizeof a), peri__shape_text(x, b, sizeof b));
}

static peri_status want_batch (peri_call *c) {
  TRY(peri__want_wide(c, 0, "logp"));
  if (c->in[0]->ndim > 0) return PERI_OK;
  return peri__fail(c->ctx, PERI_ESHAPE, "logp has shape (), expected (..., batch)");
}

enum { LOGP, OLD_LOGP }; /* of both ops */

/* Numbers of one minibatch that a worker has beside the inputs. */
typedef struct room {
  double *delta, *ratio, *advantage;
  float *narrow;
} room;
typedef struct minibatches {
  const peri_call *c;
  int64_t n; /* of each */
  char *scratch;
} minibatches;

enum { ROOM = 3 * sizeof(double) + sizeof(float) }; /* bytes for each action */

static room room_of (const minibatches *m, int worker) {
  room r = { .delta = (double *)(void *)(m->scratch + (int64_t)worker * m->n * ROOM) };
  r.ratio = r.delta + m->n;
  r.advantage = r.ratio + m->n;
  r.narrow = (float *)(void *)(r.advantage + m->n);
  return r;
}

/* fn over minibatches. */
static peri_status each_batch (peri_call *c, peri_range_fn fn) {
  minibatches m = { .c = c, .n = (peri__last_size(c->in[LOGP]) + 1) / 2 * 2 };
  size_t bytes = (size_t)peri_threads(c->ctx) * (size_t)m.n * ROOM;
  if (bytes > 0 && (m.scratch = peri__block_get(c->ctx, bytes)) == NULL)
    return peri__fail(c->ctx, PERI_ENOMEM, "no memory for minibatches of %" PRId64, m.n);
  peri__parallel(c->ctx, c->out[0]->numel, 4096 / (m.n + 1) + 1, fn, &m);
  peri__block_put(c->ctx, m.scratch);
  return PERI_OK;
}

/* Log-ratios of n actions, bounded, and their exponentials. */
static void ratios (const peri_call *c, int64_t at, int64_t n, const room *r) {
  const void *now = c->in[LOGP]->data, *then = c->in[OLD_LOGP]->data, *in = r->narrow;
  const int64_t step = 1;
  if (c->in[LOGP]->dtype == PERI_F64) {
    for (int64_t i = 0; i < n; i++) {
      double d = ((const double *)now)[at + i] - ((const double *)then)[at + i];
      r->delta[i] = d > LOG_RATIO_MAX ? LOG_RATIO_MAX : d;
      r->ratio[i] = exp(r->delta[i]);
    }
    return;
  }
  for (int64_t i = 0; i < n; i++) {
    float d = ((const float *)now)[at + i] - ((const float *)then)[at + i];
    r->narrow[i] = d > (float)LOG_RATIO_MAX ? (float)LOG_RATIO_MAX : d;
    r->delta[i] = (double)r->narrow[i];
  }
  c->ctx->cpu->math->unary[PERI_MATH_exp](n, &in, &step, r->narrow, NULL);
  for (int64_t i = 0; i < n; i++) r->ratio[i] = (double)r->narrow[i];
}

/* ---- ppo_loss ---- */

enum { ADVANTAGES = 2, ENTROPY, VALUES, RETURNS, OLD_VALUES, MASK };
enum { CLIP, CLIP_HIGH, CLIP_VALUE, VF_COEF, ENT_COEF, NORMALIZE, EPS };
enum { OUT_LOSS, OUT_POLICY, OUT_VALUE, OUT_ENTROPY, OUT_SLOPES };
enum { OF_LOGP, OF_VALUES, OF_ENTROPY, SLOPES }; /* of means: of policy, value and entropy */

static peri_status loss_infer (peri_call *c) {
  static const char *const names[] = { "logp",   "old_logp", "advantages", "entropy",
                                       "values", "returns",  "old_values" };
  const peri_tensor *x = c->in[LOGP];
  int64_t shape[PERI_MAX_DIMS];
  const peri_attr *a = c->attr;
  TRY(want_batch(c));
  for (int i = OLD_LOGP; i <= OLD_VALUES; i++) TRY(like_logp(c, i, names[i], x->dtype));
  TRY(like_logp(c, MASK, "mask", PERI_BOOL));
  TRY(bound(c, "clip", a[CLIP].f, false));
  TRY(bound(c, "clip_high", a[CLIP_HIGH].f, true));
  TRY(bound(c, "clip_value", a[CLIP_VALUE].f, true));
  TRY(weight(c, "vf_coef", a[VF_COEF].f));
  TRY(weight(c, "ent_coef", a[ENT_COEF].f));
  if (!(a[EPS].f >= 0))
    return peri__fail(c->ctx, PERI_EINVAL, "eps is %g, expected 0 or more", a[EPS].f);
  if ((c->in[VALUES] == NULL) != (c->in[RETURNS] == NULL))
    return peri__fail(c->ctx, PERI_EINVAL, "%s are missing beside %s",
                      names[c->in[VALUES] == NULL ? VALUES : RETURNS],
                      names[c->in[VALUES] == NULL ? RETURNS : VALUES]);
  if (!isnan(a[CLIP_VALUE].f) && (c->in[OLD_VALUES] == NULL || c->in[VALUES] == NULL))
    return peri__fail(c->ctx, PERI_EINVAL, "clip_value is %g: values and old_values are needed",
                      a[CLIP_VALUE].f);
  if (a[ENT_COEF].f != 0 && c->in[ENTROPY] == NULL)
    return peri__fail(c->ctx, PERI_EINVAL, "ent_coef is %g: entropy is needed", a[ENT_COEF].f);
  for (int k = OUT_LOSS; k <= OUT_ENTROPY; k++)
    TRY(peri__new(c->ctx, (peri_dtype)x->dtype, x->ndim - 1, x->shape, &c->out[k]));
  if (x->ndim == PERI_MAX_DIMS)
    return peri__fail(c->ctx, PERI_ESHAPE, "logp has %d dims, at most %d are possible", x->ndim,
                      PERI_MAX_DIMS - 1);
  shape[0] = SLOPES;
  memcpy(shape + 1, x->shape, (size_t)x->ndim * sizeof *shape);
  return peri__new(c->ctx, (peri_dtype)x->dtype, x->ndim + 1, shape, &c->out[OUT_SLOPES]);
}

/* The advantages of one minibatch, those that count normalised where wanted; how many count. */
static int64_t advantages_of (const peri_call *c, int64_t at, int64_t n, double *out) {
  const peri_tensor *a = c->in[ADVANTAGES];
  const uint8_t *mask = c->in[MASK] ? (const uint8_t *)c->in[MASK]->data + at : NULL;
  double sum = 0, squares = 0;
  int64_t count = 0;
  for (int64_t i = 0; i < n; i++) {
    if (peri__give_up(c->ctx, i)) return 0;
    bool counts = mask == NULL || mask[i] != 0;
    out[i] = counts ? peri__number_at(a, at + i) : 0;
    sum += out[i];
    count += counts;
  }
  if (!c->attr[NORMALIZE].i || count == 0) return count;
  double mean = sum / (double)count;
  for (int64_t i = 0; i < n; i++) {
    if (mask != NULL && mask[i] == 0) continue;
    out[i] -= mean;
    squares += out[i] * out[i];
  }
  double std = count > 1 ? sqrt(squares / (double)(count - 1)) : 0;
  double scale = 1 / (std + c->attr[EPS].f);
  if (!isfinite(scale) && std == 0) scale = 0; /* no spread and no eps */
  for (int64_t i = 0; i < n; i++) out[i] *= scale;
  return count;
}

/* -min(A r, A clip(r)), and its slope along the log-ratio. */
static double policy_of (const peri_call *c, double a, double delta, double r, double *slope) {
  double low = 1 - c->attr[CLIP].f;
  double high = 1 + (isnan(c->attr[CLIP_HIGH].f) ? c->attr[CLIP].f : c->attr[CLIP_HIGH].f);
  double within = r < low ? low : r > high ? high : r;
  bool flat = (a > 0 && r > high) || (a < 0 && r < low) || delta >= LOG_RATIO_MAX;
  *slope = flat ? 0 : -a * r;
  double plain = -a * r, held = -a * within;
  return plain > held ? plain : held;
}

/* (v - R)^2 / 2, or the larger of it and that of v held near the old value, and its slope. */
static double value_of (const peri_call *c, int64_t i, double *slope) {
  double v = peri__number_at(c->in[VALUES], i), goal = peri__number_at(c->in[RETURNS], i);
  double d = v - goal, loss = 0.5 * d * d, range = c->attr[CLIP_VALUE].f;
  *slope = d;
  if (isnan(range)) return loss;
  double old = peri__number_at(c->in[OLD_VALUES], i), off = v - old;
  bool outside = off > range || off < -range;
  double held = old + (off > range ? range : off < -range ? -range : off) - goal;
  double bounded = 0.5 * held * held;
  if (!(bounded > loss) || !outside) return loss;
  *slope = 0;
  return bounded;
}

static void loss_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const minibatches *m = ud;
  const peri_call *c = m->c;
  const room r = room_of(m, worker);
  peri_tensor *slopes = c->out[OUT_SLOPES];
  int64_t all = c->in[LOGP]->numel, n = peri__last_size(c->in[LOGP]);
  for (int64_t row = begin; row < end; row++) {
    int64_t at = row * n, count = advantages_of(c, at, n, r.advantage);
    double policy = 0, value = 0, entropy = 0, share = count > 0 ? 1 / (double)count : 0;
    ratios(c, at, n, &r);
    for (int64_t i = 0; i < n; i++) {
      double of_logp = 0, of_value = 0, counts = share;
      if (peri__give_up(c->ctx, i)) return;
      if (c->in[MASK] != NULL && ((const uint8_t *)c->in[MASK]->data)[at + i] == 0)
        counts = 0;
      else {
        policy += policy_of(c, r.advantage[i], r.delta[i], r.ratio[i], &of_logp);
        if (c->in[VALUES] != NULL) value += value_of(c, at + i, &of_value);
        if (c->in[ENTROPY] != NULL) entropy += peri__number_at(c->in[ENTROPY], at + i);
      }
      peri__put(slopes, OF_LOGP * all + at + i, of_logp * share);
      peri__put(slopes, OF_VALUES * all + at + i, of_value * share);
      peri__put(slopes, OF_ENTROPY * all + at + i, counts);
    }
    policy *= share, value *= share, entropy *= share;
    peri__put(c->out[OUT_LOSS], row,
              policy + c->attr[VF_COEF].f * value - c->attr[ENT_COEF].f * entropy);
    peri__put(c->out[OUT_POLICY], row, policy);
    peri__put(c->out[OUT_VALUE], row, value);
    peri__put(c->out[OUT_ENTROPY], row, entropy);
  }
}

static peri_status loss_cpu (peri_call *c) { return each_batch(c, loss_rows); }

/* A slope times what came to its mean: from the loss with a factor, and to the mean itself. */
static peri_tensor *scaled (peri_vjp *v, int k, double factor, peri_tensor *g) {
  peri_build *b = BB;
  peri_tensor *from = v->g[OUT_LOSS], *sum;
  if (from != NULL && factor != 1) from = B(b, mul, from, NUM(factor));
  sum = from == NULL ? g : g == NULL ? from : B(b, add, from, g);
  if (sum == NULL) return NULL;
  peri_tensor *slope = BA(b, select, ATTR(A_INT(0), A_INT(k)), peri__saved(v, OUT_SLOPES));
  return B(b, mul, slope, BA(b, unsqueeze, ATTR(A_INT(-1)), sum));
}

RULE(ppo_loss) {
  const peri_attr *a = v->c->attr;
  GIVE(LOGP, scaled(v, OF_LOGP, 1, v->g[OUT_POLICY]));
  if (IN(VALUES) != NULL) GIVE(VALUES, scaled(v, OF_VALUES, a[VF_COEF].f, v->g[OUT_VALUE]));
  if (IN(ENTROPY) != NULL) GIVE(ENTROPY, scaled(v, OF_ENTROPY, -a[ENT_COEF].f, v->g[OUT_ENTROPY]));
}

OPN(ppo_loss, 5, .nret = 4, .flags = PERI_OP_UPCAST | PERI_OP_NO_GRAD2,
    .targets = 1 << OLD_LOGP | 1 << ADVANTAGES | 1 << RETURNS | 1 << OLD_VALUES,
    .sig = "logp, old_logp, advantages, entropy:tensor?, values:tensor?, returns:tensor?, "
           "old_values:tensor?, mask:tensor?, clip:num=0.2, clip_high:num=none, "
           "clip_value:num=none, vf_coef:num=0.5, ent_coef:num=0, normalize:bool=true, "
           "eps:num=1e-8",
    .doc = "The loss of PPO (arXiv:1707.06347) over minibatches (..., batch) -> (...): policy + "
           "vf_coef value - ent_coef entropy, and these three: means over the batch of -min(r A, "
           "clip(r, 1 - clip, 1 + clip_high) A), r = exp(logp - old_logp) (the exponent at most "
           "20); of (v - R)^2 / 2, or with clip_value the larger of it and that of v held within "
           "clip_value of old_values; and of the entropies. normalize: A minus its mean, by its "
           "standard deviation (n - 1) plus eps, over the batch. clip_high is clip unless given; "
           "what mask (bool) leaves out does not count. Old numbers, advantages and returns take "
           "no gradient.",
    .infer = loss_infer, .cpu = loss_cpu, .vjp = ppo_loss_vjp,
    TESTS(.domain = "shape=7; logp=-1..0; old_logp=-1..0; entropy.shape=7; values.shape=7; "
                    "returns.shape=7; attr ent_coef=0.1",
          .variants = { "shape=7; logp=-1..0; old_logp=-1..0; attr normalize=false; attr clip=0.1",
                        "shape=2,5; logp=-1..0; old_logp=-1..0; entropy.shape=2,5; "
                        "values.shape=2,5; returns.shape=2,5; old_values.shape=2,5; "
                        "attr clip_value=0.3; attr clip_high=0.4; attr ent_coef=-0.2",
                        "shape=5; logp=-1..0; old_logp=-1..0; mask.shape=5; mask=bool[1,0,1,1,0]; "
                        "entropy.shape=5; values.shape=5; returns.shape=5; attr ent_coef=0.1; "
                        "attr vf_coef=1" },
          .large = "shape=40,300; logp=-1..0; old_logp=-1..0; entropy.shape=40,300; "
                   "values.shape=40,300; returns.shape=40,300; attr ent_coef=0.1",
          .refuses = { "shape=3; old_logp.shape=2 => old_logp | (2) | (3)",
                       "shape=3; values.shape=3 => returns",
                       "shape=3; attr ent_coef=0.1 => entropy", "shape=3; attr clip=0 => clip is 0",
                       "shape=3; attr clip_value=0.2 => old_values",
                       "logp.shape=(); old_logp.shape=(); advantages.shape=() => ()" },
          .reference =
              "(function () local w = mask and mask:to(logp.dtype) or peri.ones_like(logp) "
              "local n = w:sum(-1) "
              "local function mean(x) return (x * w):sum(-1) / n end "
              "local A, r = advantages, (logp - old_logp):exp() "
              "if normalize then A = A - mean(A):unsqueeze(-1) "
              "A = A / (((A * A * w):sum(-1) / (n - 1)):sqrt() + eps):unsqueeze(-1) end "
              "local high = clip_high or clip "
              "local p = mean(peri.maximum(-A * r, -A * r:clamp(1 - clip, 1 + high))) "
              "local v, h = p * 0, entropy and mean(entropy) or p * 0 "
              "if values then v = (values - returns):square() "
              "if clip_value then v = maximum(v, (old_values + (values - "
              "old_values):clamp(-clip_value, clip_value) - returns):square()) end "
              "v = mean(v) * 0.5 end "
              "return p + v * vf_coef - h * ent_coef, p, v, h end)()"));

/* ---- ppo_metrics ---- */

enum { M_MASK = 2 };
enum { M_CLIP, M_CLIP_HIGH };

static peri_status metrics_infer (peri_call *c) {
  const peri_tensor *x = c->in[LOGP];
  TRY(want_batch(c));
  TRY(like_logp(c, OLD_LOGP, "old_logp", x->dtype));
  TRY(like_logp(c, M_MASK, "mask", PERI_BOOL));
  TRY(bound(c, "clip", c->attr[M_CLIP].f, false));
  TRY(bound(c, "clip_high", c->attr[M_CLIP_HIGH].f, true));
  for (int k = 0; k < c->op->nout; k++)
    TRY(peri__new(c->ctx, (peri_dtype)x->dtype, x->ndim - 1, x->shape, &c->out[k]));
  return PERI_OK;
}

/* e^d - 1 - d, without the cancellation near 0. */
static double k3 (double d, double r) {
  if (!(fabs(d) < 0.1)) return r - 1 - d;
  return d * d * (0.5 + d * (1.0 / 6 + d * (1.0 / 24 + d * (1.0 / 120 + d * (1.0 / 720)))));
}

static void metrics_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const minibatches *m = ud;
  const peri_call *c = m->c;
  const room r = room_of(m, worker);
  int64_t n = peri__last_size(c->in[LOGP]);
  double low = 1 - c->attr[M_CLIP].f;
  double high = 1 + (isnan(c->attr[M_CLIP_HIGH].f) ? c->attr[M_CLIP].f : c->attr[M_CLIP_HIGH].f);
  for (int64_t row = begin; row < end; row++) {
    int64_t count = 0, cut = 0, at = row * n;
    double kl = 0, most = -INFINITY, least = INFINITY;
    ratios(c, at, n, &r);
    for (int64_t i = 0; i < n; i++) {
      if (peri__give_up(c->ctx, i)) return;
      if (c->in[M_MASK] != NULL && ((const uint8_t *)c->in[M_MASK]->data)[at + i] == 0) continue;
      count++;
      kl += k3(r.delta[i], r.ratio[i]);
      cut += r.ratio[i] < low || r.ratio[i] > high;
      most = r.ratio[i] <= most ? most : r.ratio[i]; /* a NaN shows */
      least = r.ratio[i] >= least ? least : r.ratio[i];
    }
    double share = count > 0 ? 1 / (double)count : 0;
    peri__put(c->out[0], row, kl * share);
    peri__put(c->out[1], row, (double)cut * share);
    peri__put(c->out[2], row, count > 0 ? most : 1);
    peri__put(c->out[3], row, count > 0 ? least : 1);
  }
}

static peri_status metrics_cpu (peri_call *c) { return each_batch(c, metrics_rows); }

OPN(ppo_metrics, 4, .flags = PERI_OP_UPCAST,
    .sig = "logp, old_logp, mask:tensor?, clip:num=0.2, clip_high:num=none",
    .doc = "What became of the ratios r = exp(logp - old_logp) of minibatches (..., batch) -> "
           "(...): the mean of r - 1 - log r, an estimate of the KL divergence from the old policy "
           "(Schulman's k3); the share of them outside of [1 - clip, 1 + clip_high]; the largest "
           "and the smallest. What mask (bool) leaves out does not count; of nothing they are 0, "
           "0, 1, 1.",
    .infer = metrics_infer, .cpu = metrics_cpu,
    TESTS(.domain = "shape=7; logp=-1..0; old_logp=-1..0",
          .variants = { "shape=2,5; logp=-1..0; old_logp=-1..0; attr clip=0.1; attr clip_high=0.3",
                        "shape=5; logp=-1..0; old_logp=-1..0; mask.shape=5; "
                        "mask=bool[1,0,1,1,0]" },
          .refuses = { "shape=3; old_logp.shape=2 => old_logp | (2) | (3)" },
          .reference =
              "(function () local w = mask or peri.ones_like(logp):to 'bool' "
              "local n, d = w:to(logp.dtype):sum(-1), logp - old_logp "
              "local high = clip_high or clip "
              "local function mean(x) return x:masked_fill(w:logical_not(), 0):sum(-1) / "
              "n end "
              "local r, out = d:exp(), w:logical_not() "
              "local cut = r:lt(1 - clip):logical_or(r:gt(1 + high)):to(logp.dtype) "
              "return mean(d:expm1() - d), mean(cut), (r:masked_fill(out, -math.huge):max(-1)), "
              "(r:masked_fill(out, math.huge):min(-1)) end)()"));
