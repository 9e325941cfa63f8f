/*
** loss.c - losses: cross-entropy with its fused backward pass, and those that are a line of other
** ops. Sums over rows run in f64 in the order of the rows, so a loss does not depend on threads.
*/
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "op/rows.h"

typedef enum reduction { RED_MEAN, RED_SUM, RED_NONE, RED_BATCHMEAN } reduction;

static peri_status get_reduction (peri_ctx *ctx, const char *s, bool batch, reduction *out) {
  static const char *const names[] = { "mean", "sum", "none", "batchmean" };
  for (int i = 0; i < (batch ? 4 : 3) && s; i++)
    if (strcmp(s, names[i]) == 0) {
      *out = (reduction)i;
      return PERI_OK;
    }
  return peri__fail(ctx, PERI_EINVAL, "reduction is \"%s\", expected %smean, sum or none",
                    s ? s : "nil", batch ? "batchmean, " : "");
}

/* ---- cross_entropy ---- */

typedef struct ce {
  peri__rows r;
  const char *x;             /* (rows, v) */
  const peri_tensor *target; /* (rows) */
  int64_t v, ignore;
  double smooth;
  void *stats;   /* (rows, 2): max of the logits, log of the sum of exp(x - max) */
  double *loss;  /* (rows), forward */
  const void *g; /* () or (rows), backward */
  bool each;     /* g has an entry for each row */
  double factor; /* on g */
  char *dx;      /* (rows, v), backward */
} ce;

enum { CE_IGNORE, CE_SMOOTH, CE_REDUCTION, CE_TEMPERATURE };

static peri_status ce_check (peri_call *c, int logits, int target, reduction *red) {
  const peri_tensor *x = c->in[logits];
  double smooth = c->attr[CE_SMOOTH].f, temperature = c->attr[CE_TEMPERATURE].f;
  char a[128];
  TRY(peri__want_wide(c, logits, "logits"));
  if (x->ndim < 1 || x->shape[x->ndim - 1] < 1)
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "logits have shape %s, expected (..., classes) with at least 1 class",
                      peri__shape_text(x, a, sizeof a));
  TRY(peri__ids_shape(c, c->in[target], "target", x, "logits"));
  if (!(smooth >= 0 && smooth <= 1))
    return peri__fail(c->ctx, PERI_EINVAL, "label_smoothing is %g, expected 0 to 1", smooth);
  if (!(temperature > 0) || isinf(temperature))
    return peri__fail(c->ctx, PERI_EINVAL, "temperature is %g, expected more than 0", temperature);
  return get_reduction(c->ctx, c->attr[CE_REDUCTION].s, false, red);
}

static peri_status ce_infer (peri_call *c) {
  const peri_tensor *x = c->in[0];
  int64_t shape[PERI_MAX_DIMS];
  reduction red;
  TRY(ce_check(c, 0, 1, &red));
  memcpy(shape, x->shape, sizeof shape);
  TRY(peri__new(c->ctx, (peri_dtype)x->dtype, red == RED_NONE ? x->ndim - 1 : 0, shape,
                &c->out[0]));
  shape[x->ndim - 1] = 2;
  return peri__new(c->ctx, (peri_dtype)x->dtype, x->ndim, shape, &c->out[1]);
}

static void ce_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const ce *s = ud;
  (void)worker;
  for (int64_t i = begin; i < end; i++) {
    int64_t t = peri__id_at(s->target, i);
    const void *x = peri__rows_at(&s->r, s->x, i * s->v);
    peri__row row = { 0 };
    double loss = 0;
    if (t != s->ignore) {
      peri__rows_stat(&s->r, x, s->v, NULL, &row);
      loss = -peri__rows_logp(&s->r, &row, x, t);
      if (s->smooth > 0) {
        double mean = (peri__rows_sum(&s->r, x, s->v) / (double)s->v - row.max) * s->r.scale;
        loss = (1 - s->smooth) * loss + s->smooth * (log(row.sum) - mean);
      }
    }
    peri__rows_set(&s->r, s->stats, 2 * i, row.max);
    peri__rows_set(&s->r, s->stats, 2 * i + 1, log(row.sum));
    s->loss[i] = loss;
  }
}

static ce ce_open (const peri_call *c, int logits, int target) {
  const peri_tensor *x = c->in[logits];
  return (ce){ .r = peri__rows_of(c->ctx, x->dtype, c->attr[CE_TEMPERATURE].f),
               .x = x->data,
               .target = c->in[target],
               .v = x->shape[x->ndim - 1],
               .ignore = c->attr[CE_IGNORE].i,
               .smooth = c->attr[CE_SMOOTH].f };
}

static peri_status ce_cpu (peri_call *c) {
  ce s = ce_open(c, 0, 1);
  int64_t rows = c->in[1]->numel, active;
  size_t bytes = (size_t)rows * sizeof *s.loss;
  reduction red;
  double sum = 0;
  TRY(get_reduction(c->ctx, c->attr[CE_REDUCTION].s, false, &red));
  TRY(peri__ids_check(c, c->in[1], "target", s.v, s.ignore, &active));
  if (rows > 0 && !(s.loss = peri__block_get(c->ctx, bytes)))
    return peri__fail(c->ctx, PERI_ENOMEM, "no memory for the losses of %" PRId64 " rows", rows);
  s.stats = c->out[1]->data;
  peri__parallel(c->ctx, rows, peri__rows_grain(s.v), ce_rows, &s);
  if (!peri__stopped(c->ctx)) {
    for (int64_t i = 0; i < rows; i++) {
      if (red == RED_NONE) peri__rows_set(&s.r, c->out[0]->data, i, s.loss[i]);
      sum += s.loss[i];
    }
    if (red == RED_MEAN) sum /= (double)active; /* nothing active: NaN, as in torch */
    if (red != RED_NONE) peri__rows_set(&s.r, c->out[0]->data, 0, sum);
  }
  peri__block_put(c->ctx, s.loss);
  return PERI_OK;
}

/* What the fused kernel computes, from ops that have derivatives: w g (softmax(x / T) - q) / T with
** q the smoothed target, w 0 where ignored and 1 / count for a mean. */
static peri_tensor *ce_gradient_ops (peri_build *b, const peri_call *c, peri_tensor *g,
                                     reduction red) {
  peri_tensor *x = c->in[0], *target = c->in[1];
  const int64_t classes = x->shape[x->ndim - 1];
  const int dtype = x->dtype;
  double smooth = c->attr[CE_SMOOTH].f, scale = 1 / c->attr[CE_TEMPERATURE].f;
  if (scale != 1) {
    x = B(b, mul, x, peri__build_scalar(b, scale));
    g = B(b, mul, g, peri__build_scalar(b, scale));
  }
  peri_tensor *on = B(b, ne, target, peri__build_scalar(b, (double)c->attr[CE_IGNORE].i));
  peri_tensor *w = BA(b, to, ATTR(A_INT(dtype)), on);
  peri_tensor *id = B(b, mul, target, on); /* 0 where ignored */
  peri_tensor *q = BA(b, one_hot, ATTR(A_INT(classes), A_INT(dtype)), id);
  if (red == RED_MEAN) w = B(b, div, w, BA(b, sum, ATTR(A_DIMS(NULL, -1), A_INT(0)), w));
  q = B(b, mul, q, peri__build_scalar(b, 1 - smooth));
  q = B(b, add, q, peri__build_scalar(b, smooth / (double)classes));
  peri_tensor *d = B(b, sub, BA(b, softmax, ATTR(A_INT(-1)), x), q);
  return B(b, mul, d, BA(b, unsqueeze, ATTR(A_INT(-1)), B(b, mul, w, g)));
}

static void ce_vjp (peri_vjp *v) {
  const peri_call *c = v->c;
  reduction red;
  if (!v->need[0]) return;
  if (!v->b.ctx->grad_enabled)
    v->gin[0] =
        BA(&v->b, cross_entropy_backward, c->attr, v->g[0], c->in[0], c->in[1], peri__saved(v, 1));
  else if (get_reduction(v->b.ctx, c->attr[CE_REDUCTION].s, false, &red) == PERI_OK)
    v->gin[0] = ce_gradient_ops(&v->b, c, v->g[0], red);
}

/* Forward and backward read the logits once each. */
static void ce_cost (const peri_call *c, double *flops, double *bytes) {
  for (int i = 0; i < c->nin; i++) *bytes += (double)c->in[i]->numel * (double)peri__size(c->in[i]);
  for (int k = 0; k < c->op->nout; k++)
    *bytes += (double)c->out[k]->numel * (double)peri__size(c->out[k]);
  *flops = 20.0 * (double)c->in[c->nin == 2 ? 0 : 1]->numel;
}

OPN(cross_entropy, 2, .nret = 1, .flags = PERI_OP_UPCAST,
    .sig = "logits, target, ignore_index:int=-100, label_smoothing:num=0, reduction:str=mean, "
           "temperature:num=1",
    .doc = "Cross-entropy of class ids target (...) under softmax(logits / temperature), logits "
           "(..., classes): "
           "reduction none gives (...), sum and mean a number; mean is over the targets that are "
           "not ignore_index and NaN when there are none; smoothing mixes in the uniform "
           "distribution (torch's definition).",
    .infer = ce_infer, .cpu = ce_cpu, .vjp = ce_vjp, .cost = ce_cost,
    TESTS(.domain = "shape=2,4; target.shape=2; target=int:0..3; attr label_smoothing=0.1",
          .variants = { "shape=2,4; target.shape=2; target=int:0..3; attr reduction=sum",
                        "shape=2,3,4; target.shape=2,3; target=int:0..3; attr reduction=none; "
                        "attr ignore_index=2",
                        "shape=5,4; target.shape=5; target=int:0..3; attr ignore_index=1; "
                        "attr label_smoothing=0.2",
                        "shape=2,4; target.shape=2; target=int:0..3; attr label_smoothing=0.1; "
                        "attr temperature=0.7" },
          .large = "shape=128,300; target.shape=128; target=int:0..299; attr label_smoothing=0.1",
          .refuses = { "logits.shape=2,4; target=i64[0,4] => 4",
                       "logits.shape=2,4; target=i64[0,1,2] => (3) | (2, 4)",
                       "logits.shape=2,4; target.shape=2 => f32",
                       "logits.shape=2,4; target=i64[0,1]; attr label_smoothing=2 => 2",
                       "logits.shape=2,4; target=i64[0,1]; attr temperature=0 => 0" }));

/* ---- cross_entropy_backward ---- */

static peri_status ceb_infer (peri_call *c) {
  reduction red;
  char a[128];
  const peri_tensor *g = c->in[0], *x = c->in[1];
  TRY(ce_check(c, 1, 2, &red));
  if (g->numel != (red == RED_NONE ? c->in[2]->numel : 1) || g->dtype != x->dtype)
    return peri__fail(c->ctx, PERI_ESHAPE, "g has shape %s, expected that of the loss",
                      peri__shape_text(g, a, sizeof a));
  if (c->in[3]->numel != 2 * c->in[2]->numel || c->in[3]->dtype != x->dtype)
    return peri__fail(c->ctx, PERI_ESHAPE, "stats have shape %s, expected two for each row",
                      peri__shape_text(c->in[3], a, sizeof a));
  return peri__new_like(x, (peri_dtype)x->dtype, &c->out[0]);
}

static void ceb_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const ce *s = ud;
  (void)worker;
  for (int64_t i = begin; i < end; i++) {
    int64_t t = peri__id_at(s->target, i);
    char *dx = s->dx + (size_t)(i * s->v) * s->r.size;
    if (t == s->ignore) {
      memset(dx, 0, (size_t)s->v * s->r.size);
      continue;
    }
    double g = peri__rows_get(&s->r, s->g, s->each ? i : 0) * s->factor * s->r.scale;
    peri__row_grad k = { .scale = s->r.scale,
                         .max = peri__rows_get(&s->r, s->stats, 2 * i),
                         .log_sum = peri__rows_get(&s->r, s->stats, 2 * i + 1),
                         .a = g,
                         .c = -g * s->smooth / (double)s->v };
    peri__rows_grad(&s->r, peri__rows_at(&s->r, s->x, i * s->v), s->v, &k, dx);
    peri__rows_set(&s->r, dx, t, peri__rows_get(&s->r, dx, t) - g * (1 - s->smooth));
  }
}

static peri_status ceb_cpu (peri_call *c) {
  ce s = ce_open(c, 1, 2);
  int64_t active;
  reduction red;
  TRY(get_reduction(c->ctx, c->attr[CE_REDUCTION].s, false, &red));
  TRY(peri__ids_check(c, c->in[2], "target", s.v, s.ignore, &active));
  s.g = c->in[0]->data;
  s.each = red == RED_NONE;
  s.factor = red == RED_MEAN ? 1 / (double)active : 1;
  s.stats = c->in[3]->data;
  s.dx = c->out[0]->data;
  peri__parallel(c->ctx, c->in[2]->numel, peri__rows_grain(s.v), ceb_rows, &s);
  return PERI_OK;
}

OP(cross_entropy_backward,
   .sig = "g, logits, target, stats, ignore_index:int=-100, label_smoothing:num=0, "
          "reduction:str=mean, temperature:num=1",
   .doc = "Gradient of cross_entropy for its logits (..., classes); g is the gradient of the "
          "loss, stats (..., 2) what the forward pass saved: the largest logit of a row and "
          "log(sum(exp((x - max) / temperature))).",
   .infer = ceb_infer, .cpu = ceb_cpu, .cost = ce_cost,
   TESTS(.domain =
             "g.shape=(); logits.shape=2,4; target.shape=2; target=int:0..3; stats.shape=2,2; "
             "stats=1..2",
         .large = "g.shape=(); logits.shape=128,300; target.shape=128; target=int:0..299; "
                  "stats.shape=128,2; stats=1..2",
         .refuses = {
             "g.shape=(); g=f32[1.5]; logits.shape=2,4; target=i64[0,4]; stats.shape=2,2 => 4" }));

/* ---- losses that are a line of other ops ---- */

/* y must have the shape of x, or be a number: silent broadcasting of (n) against (n, 1) is the
** classic way to train on nonsense. */
static bool same_shape (peri_build *b, const peri_tensor *x, const peri_tensor *y,
                        const char *xname, const char *yname) {
  char s[128], t[128];
  if (y->ndim == 0 ||
      (y->ndim == x->ndim && memcmp(x->shape, y->shape, (size_t)x->ndim * sizeof *x->shape) == 0))
    return true;
  peri__build_fail(
      b, peri__fail(b->ctx, PERI_ESHAPE, "%s has shape %s and %s %s: expected one shape", xname,
                    peri__shape_text(x, s, sizeof s), yname, peri__shape_text(y, t, sizeof t)));
  return false;
}

static peri_tensor *reduced (peri_build *b, peri_tensor *x, const char *name, bool batch) {
  reduction red;
  peri_status s = x ? get_reduction(b->ctx, name, batch, &red) : b->status;
  if (s != PERI_OK) {
    peri__build_fail(b, s);
    return NULL;
  }
  const peri_attr *all = ATTR(A_DIMS(NULL, -1), A_INT(0));
  if (red == RED_NONE) return x;
  if (red == RED_MEAN) return BA(b, mean, all, x);
  peri_tensor *y = BA(b, sum, all, x);
  if (red == RED_SUM) return y;
  return B(b, div, y, peri__build_scalar(b, x->ndim > 0 ? (double)x->shape[0] : 1));
}

static void mse_compose (peri_build *b, peri_call *c) {
  if (!same_shape(b, c->in[0], c->in[1], "x", "y")) return;
  c->out[0] = reduced(b, B(b, square, B(b, sub, c->in[0], c->in[1])), c->attr[0].s, false);
}
OP(mse, .sig = "x, y, reduction:str=mean", .flags = PERI_OP_FLOAT,
   .doc = "Squared error (x - y)^2 of tensors of one shape, reduced: mean or sum (a number) or "
          "none.",
   .compose = mse_compose,
   TESTS(.variants = { "attr reduction=sum", "attr reduction=none" },
         .refuses = { "x.shape=2; y.shape=3 => (2) | (3)" }));

/* 0.5 m^2 + delta (|e| - m) with m = min(|e|, delta) is both branches at once. */
static void huber_compose (peri_build *b, peri_call *c) {
  double delta = c->attr[0].f;
  if (!same_shape(b, c->in[0], c->in[1], "x", "y")) return;
  if (!(delta > 0)) {
    peri__build_fail(b,
                     peri__fail(b->ctx, PERI_EINVAL, "delta is %g, expected more than 0", delta));
    return;
  }
  peri_tensor *d = peri__build_scalar(b, delta), *e = B(b, abs, B(b, sub, c->in[0], c->in[1]));
  peri_tensor *m = B(b, minimum, e, d);
  peri_tensor *inside = B(b, mul, B(b, square, m), peri__build_scalar(b, 0.5));
  peri_tensor *y = B(b, add, inside, B(b, mul, B(b, sub, e, m), d));
  c->out[0] = reduced(b, y, c->attr[1].s, false);
}
OP(huber, .sig = "x, y, delta:num=1, reduction:str=mean", .flags = PERI_OP_FLOAT,
   .doc = "Huber loss of e = x - y: e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2); "
          "reduced: mean, sum or none (torch.nn.functional.huber_loss).",
   .compose = huber_compose,
   TESTS(.variants = { "attr delta=0.3; attr reduction=sum", "attr reduction=none" },
         .refuses = { "x.shape=2; y.shape=3 => (2) | (3)",
                      "x.shape=2; y.shape=2; attr delta=0 => 0" }));

static void bce_compose (peri_build *b, peri_call *c) {
  peri_tensor *x = c->in[0], *t = c->in[1], *w = c->in[2];
  if (!same_shape(b, x, t, "logits", "target")) return;
  peri_tensor *y = B(b, sub, BA(b, softplus, ATTR(A_NUM(1), A_NUM(50)), x), B(b, mul, x, t));
  if (w) y = B(b, mul, y, w);
  c->out[0] = reduced(b, y, c->attr[0].s, false);
}
OP(bce_with_logits, .sig = "logits, target, weight:tensor?, reduction:str=mean",
   .flags = PERI_OP_FLOAT,
   .doc = "Binary cross-entropy of probabilities target under sigmoid(logits), one shape: "
          "softplus(x) - x t, times weight (broadcast), reduced: mean, sum or none.",
   .compose = bce_compose,
   TESTS(.domain = "target=0.1..0.9",
         .variants = { "target=0.1..0.9; weight=0.2..2; attr reduction=sum",
                       "target=0.1..0.9; attr reduction=none" },
         .refuses = { "logits.shape=2; target.shape=3 => (2) | (3)" }));

static void kl_compose (peri_build *b, peri_call *c) {
  peri_tensor *q = c->in[0], *p = c->in[1], *d;
  if (!same_shape(b, q, p, "log_q", "target")) return;
  if (c->attr[1].i)
    d = B(b, mul, B(b, exp, p), B(b, sub, p, q));
  else { /* p log p is 0 at p = 0 */
    peri_tensor *log_p = B(b, log, B(b, maximum, p, peri__build_scalar(b, 1e-37)));
    d = B(b, mul, p, B(b, sub, log_p, q));
  }
  c->out[0] = reduced(b, d, c->attr[0].s, true);
}
OP(kl_div, .sig = "log_q, target, reduction:str=batchmean, log_target:bool=false",
   .flags = PERI_OP_FLOAT,
   .doc = "Kullback-Leibler divergence KL(p || q) pointwise p (log p - log_q), where target is "
          "p, or log p with log_target (arguments as in torch.nn.functional.kl_div); batchmean "
          "divides the sum by the first size.",
   .compose = kl_compose,
   TESTS(.domain = "log_q=-3..-0.5; target=0.1..0.9",
         .variants = { "log_q=-3..-0.5; target=-3..-0.5; attr log_target=true",
                       "log_q=-3..-0.5; target=0.1..0.9; attr reduction=none",
                       "log_q=-3..-0.5; target=0.1..0.9; attr reduction=mean" },
         .refuses = { "log_q.shape=2; target.shape=3 => (2) | (3)" }));
