/*
** optim.c - optimizer steps over lists of tensors: each is one pass over memory where its formula
** allows. Norms are f64 sums of fixed blocks in a fixed order, so that a step has the same bits for
** any number of threads.
*/
#include <math.h>
#include <string.h>

#include "op/optim.h"

#define STEP_OP(id, written, ...) \
  OPN(id, 0, .flags = PERI_OP_INPLACE | PERI_OP_STRIDED, .writes = (written), __VA_ARGS__)

static peri_status at_least (peri_call *c, const char *name, double v, double low) {
  if (v >= low) return PERI_OK;
  return peri__fail(c->ctx, PERI_EINVAL, "%s is %g, expected %g or more", name, v, low);
}
static peri_status below_one (peri_call *c, const char *name, double v) {
  if (v >= 0 && v < 1) return PERI_OK;
  return peri__fail(c->ctx, PERI_EINVAL, "%s is %g, expected 0 or more and less than 1", name, v);
}

/* ---- sgd_ ---- */

enum { SGD_LR, SGD_MOMENTUM, SGD_DAMPENING, SGD_DECAY, SGD_NESTEROV, SGD_FIRST, SGD_SCALE };
static const char *const sgd_names[] = { "params", "grads", "momentum_bufs" };

static peri_status sgd_infer (peri_call *c) {
  const peri_attr *a = c->attr;
  TRY(peri__rate_check(c, "lr", a[SGD_LR].f));
  TRY(peri__rate_check(c, "momentum", a[SGD_MOMENTUM].f));
  TRY(peri__rate_check(c, "dampening", a[SGD_DAMPENING].f));
  TRY(peri__rate_check(c, "weight_decay", a[SGD_DECAY].f));
  TRY(peri__rate_check(c, "grad_scale", a[SGD_SCALE].f));
  if (a[SGD_NESTEROV].i && (a[SGD_MOMENTUM].f == 0 || a[SGD_DAMPENING].f != 0))
    return peri__fail(c->ctx, PERI_EINVAL,
                      "nesterov needs momentum > 0 and dampening 0, given %g and %g",
                      a[SGD_MOMENTUM].f, a[SGD_DAMPENING].f);
  return peri__multi_check(c, sgd_names, a[SGD_MOMENTUM].f == 0 ? 4 : 0);
}

static peri_status sgd_cpu (peri_call *c) {
  const peri_attr *a = c->attr;
  const peri__step s = { .lr = a[SGD_LR].f,
                         .scale = a[SGD_SCALE].f,
                         .momentum = a[SGD_MOMENTUM].f,
                         .dampening = a[SGD_DAMPENING].f,
                         .weight_decay = a[SGD_DECAY].f,
                         .nesterov = a[SGD_NESTEROV].i != 0,
                         .first = a[SGD_FIRST].i != 0 };
  peri__multi m;
  TRY(peri__multi_open(c, &m));
  peri__multi_run(&m, m.k->sgd, s.momentum == 0 ? "01" : "012", &s, false);
  peri__multi_close(&m);
  return PERI_OK;
}

STEP_OP(
    sgd_, 1 | 4,
    .sig = "params:tensors, grads:tensors, momentum_bufs:tensors, lr:num, momentum:num=0, "
           "dampening:num=0, weight_decay:num=0, nesterov:bool=false, first:bool=false, "
           "grad_scale:num=1",
    .doc = "One SGD step in place on lists of tensors (torch.optim.SGD): g += weight_decay "
           "p; b = momentum b + (1 - dampening) g, or b = g when first; p -= lr b, Nesterov "
           "p -= lr (g + momentum b). Without momentum the list of buffers may be empty. The "
           "gradient is multiplied by grad_scale as it is read. In this and the other steps grads "
           "may be left out (empty): then they are those of the parameters.",
    .infer = sgd_infer, .cpu = sgd_cpu,
    TESTS(.domain = "attr lr=0.1",
          .refuses = {
              "params1.shape=2,2; params2.shape=2,2; grads1.shape=2,2; grads.count=1; "
              "momentum_bufs1.shape=2,2; momentum_bufs2.shape=2,2; attr lr=0.1 => 1 | 2",
              "params1.shape=2,2; params.count=1; grads1.shape=3; grads.count=1; "
              "momentum_bufs1.shape=2,2; momentum_bufs.count=1; attr lr=0.1 => (2, 2) | (3)" }));

/* ---- adam_, adamw_ ---- */

enum { A_LR, A_BETA1, A_BETA2, A_EPS, A_DECAY, A_STEP, A_SCALE, A_MAX_NORM = A_SCALE };
static const char *const adam_names[] = { "params", "grads", "m", "v" };

static peri_status adam_infer (peri_call *c) {
  const peri_attr *a = c->attr;
  TRY(peri__rate_check(c, "lr", a[A_LR].f));
  TRY(peri__rate_check(c, "weight_decay", a[A_DECAY].f));
  TRY(below_one(c, "beta1", a[A_BETA1].f));
  TRY(below_one(c, "beta2", a[A_BETA2].f));
  TRY(at_least(c, "eps", a[A_EPS].f, 0));
  TRY(at_least(c, "step", (double)a[A_STEP].i, 1));
  return peri__multi_check(c, adam_names, 0);
}
static peri_status adam_scaled_infer (peri_call *c) {
  TRY(peri__rate_check(c, "grad_scale", c->attr[A_SCALE].f));
  return adam_infer(c);
}

static peri__step adam_step (const peri_call *c, bool decoupled) {
  const peri_attr *a = c->attr;
  return (peri__step){ .lr = a[A_LR].f,
                       .scale = 1,
                       .beta1 = a[A_BETA1].f,
                       .beta2 = a[A_BETA2].f,
                       .eps = a[A_EPS].f,
                       .weight_decay = a[A_DECAY].f,
                       .c1 = 1 - pow(a[A_BETA1].f, (double)a[A_STEP].i),
                       .c2 = 1 - pow(a[A_BETA2].f, (double)a[A_STEP].i),
                       .decoupled = decoupled };
}

static peri_status adam_run (peri_call *c, bool decoupled) {
  peri__step s = adam_step(c, decoupled);
  peri__multi m;
  s.scale = c->attr[A_SCALE].f;
  TRY(peri__multi_open(c, &m));
  peri__multi_run(&m, m.k->adam, "0123", &s, false);
  peri__multi_close(&m);
  return PERI_OK;
}
static peri_status adam_cpu (peri_call *c) { return adam_run(c, false); }
static peri_status adamw_cpu (peri_call *c) { return adam_run(c, true); }

#define ADAM_LISTS "params:tensors, grads:tensors, m:tensors, v:tensors, "
#define ADAM_TESTS                                                                                 \
  .domain = "v=0.1..1; attr lr=0.1",                                                               \
  .refuses = { "params1.shape=2; params.count=1; grads1.shape=3; grads.count=1; m1.shape=2; "      \
               "m.count=1; v1.shape=2; v.count=1; attr lr=0.1 => (2) | (3)",                       \
               "params1.shape=1; params=i64[1]; params.count=1; grads1.shape=1; grads=i64[1]; "    \
               "grads.count=1; m1.shape=1; m=i64[1]; m.count=1; v1.shape=1; v=i64[1]; v.count=1; " \
               "attr lr=0.1 => i64" }
STEP_OP(adam_, 1 | 4 | 8,
        .sig = ADAM_LISTS
        "lr:num, beta1:num=0.9, beta2:num=0.999, eps:num=1e-8, weight_decay:num=0, step:int=1, "
        "grad_scale:num=1",
        .doc = "One Adam step in place on lists of tensors (torch.optim.Adam; step counts from "
               "1): g += weight_decay p; m, v running means of g and g^2; p -= lr m' / (sqrt(v') "
               "+ eps) with m', v' bias-corrected. The gradient is multiplied by grad_scale as "
               "it is read (clipping at no cost).",
        .infer = adam_scaled_infer, .cpu = adam_cpu, TESTS(ADAM_TESTS));
STEP_OP(adamw_, 1 | 4 | 8,
        .sig = ADAM_LISTS
        "lr:num, beta1:num=0.9, beta2:num=0.999, eps:num=1e-8, weight_decay:num=0.01, step:int=1, "
        "grad_scale:num=1",
        .doc = "One AdamW step in place on lists of tensors (torch.optim.AdamW; step counts from "
               "1): p *= 1 - lr weight_decay, then Adam without decay. The gradient is "
               "multiplied by grad_scale as it is read.",
        .infer = adam_scaled_infer, .cpu = adamw_cpu, TESTS(ADAM_TESTS));

/* ---- rmsprop_ ---- */

enum { R_LR, R_ALPHA, R_EPS, R_DECAY, R_MOMENTUM, R_SCALE };
static const char *const rmsprop_names[] = { "params", "grads", "squares", "momentum_bufs" };

static peri_status rmsprop_infer (peri_call *c) {
  const peri_attr *a = c->attr;
  TRY(peri__rate_check(c, "lr", a[R_LR].f));
  TRY(peri__rate_check(c, "weight_decay", a[R_DECAY].f));
  TRY(peri__rate_check(c, "grad_scale", a[R_SCALE].f));
  TRY(below_one(c, "alpha", a[R_ALPHA].f));
  TRY(at_least(c, "eps", a[R_EPS].f, 0));
  TRY(peri__rate_check(c, "momentum", a[R_MOMENTUM].f));
  return peri__multi_check(c, rmsprop_names, a[R_MOMENTUM].f == 0 ? 8 : 0);
}

static peri_status rmsprop_cpu (peri_call *c) {
  const peri_attr *a = c->attr;
  const peri__step s = { .lr = a[R_LR].f,
                         .scale = a[R_SCALE].f,
                         .beta2 = a[R_ALPHA].f,
                         .eps = a[R_EPS].f,
                         .weight_decay = a[R_DECAY].f,
                         .momentum = a[R_MOMENTUM].f };
  peri__multi m;
  TRY(peri__multi_open(c, &m));
  peri__multi_run(&m, m.k->rmsprop, s.momentum == 0 ? "012" : "0123", &s, false);
  peri__multi_close(&m);
  return PERI_OK;
}

STEP_OP(
    rmsprop_, 1 | 4 | 8,
    .sig = "params:tensors, grads:tensors, squares:tensors, momentum_bufs:tensors, lr:num, "
           "alpha:num=0.99, eps:num=1e-8, weight_decay:num=0, momentum:num=0, "
           "grad_scale:num=1",
    .doc = "One RMSprop step in place on lists of tensors (torch.optim.RMSprop): s = alpha s "
           "+ (1 - alpha) g^2; u = g / (sqrt(s) + eps), with momentum b = momentum b + u; p "
           "-= lr u (or b). Without momentum the list of buffers may be empty.",
    .infer = rmsprop_infer, .cpu = rmsprop_cpu,
    TESTS(.domain = "squares=0.1..1; attr lr=0.1",
          .refuses = {
              "params1.shape=2; params.count=1; grads1.shape=3; grads.count=1; squares1.shape=2; "
              "squares.count=1; momentum_bufs1.shape=2; momentum_bufs.count=1; attr lr=0.1"
              " => (2) | (3)",
              "params1.shape=1; params=i64[1]; params.count=1; grads1.shape=1; grads=i64[1]; "
              "grads.count=1; squares1.shape=1; squares=i64[1]; squares.count=1; "
              "momentum_bufs1.shape=1; momentum_bufs=i64[1]; momentum_bufs.count=1; attr lr=0.1"
              " => i64" }));

/* ---- norms: global_norm, clip_grad_norm_ ---- */

static const char *const norm_names[] = { "grads" };

static peri_status norm_output (peri_call *c) {
  bool f64 = c->list[0].count > 0 && c->in[c->list[0].start]->dtype == PERI_F64;
  return peri__new(c->ctx, f64 ? PERI_F64 : PERI_F32, 0, NULL, &c->out[0]);
}
static double norm_of (peri__multi *m, const char *list) {
  const peri__step none = { 0 };
  peri__multi_run(m, m->k->sumsq, list, &none, false);
  return sqrt(peri__multi_sum(m, -1, 0));
}
static void norm_put (peri_tensor *out, double v) {
  if (out->dtype == PERI_F64)
    *(double *)out->data = v;
  else
    *(float *)out->data = (float)v;
}

static peri_status global_norm_infer (peri_call *c) {
  TRY(peri__multi_check(c, norm_names, 0));
  return norm_output(c);
}
static peri_status global_norm_cpu (peri_call *c) {
  peri__multi m;
  TRY(peri__multi_open(c, &m));
  norm_put(c->out[0], norm_of(&m, "0"));
  peri__multi_close(&m);
  return PERI_OK;
}
static void global_norm_vjp (peri_vjp *v) { /* g x / norm, 0 where the norm is 0 */
  peri_build *b = &v->b;
  peri_tensor *y = peri__saved(v, 0), *zero = B(b, logical_not, y);
  peri_tensor *safe = BA(b, masked_fill, ATTR(A_NUM(1)), y, zero),
              *g = BA(b, masked_fill, ATTR(A_NUM(0)), v->g[0], zero);
  for (int i = 0; i < v->c->nin; i++)
    if (v->need[i]) v->gin[i] = B(b, mul, B(b, div, v->c->in[i], safe), g);
}
OP(global_norm, .flags = PERI_OP_STRIDED, .sig = "grads:tensors",
   .doc = "Euclidean norm of all elements of a list of tensors together, summed in f64 in a "
          "fixed order -> (); the gradient is 0 where the norm is 0.",
   .infer = global_norm_infer, .cpu = global_norm_cpu, .vjp = global_norm_vjp,
   TESTS(.refuses = { "grads1.shape=1; grads=i64[1]; grads.count=1 => i64" }));

/* The call global_norm would get: the gradients that there are. */
static peri_call own_gradients (const peri_call *c, peri_tensor **room) {
  peri_call g = *c;
  g.in = room;
  g.nin = 0;
  for (int i = 0; i < c->nin; i++)
    if (c->in[i]->grad) room[g.nin++] = c->in[i]->grad;
  g.list[0].start = 0;
  g.list[0].count = g.nin;
  return g;
}
static peri_status grad_norm_run (peri_call *c, bool shape) {
  peri_tensor **room = c->nin > 0 ? peri__block_get(c->ctx, (size_t)c->nin * sizeof *room) : NULL;
  if (c->nin > 0 && room == NULL)
    return peri__fail(c->ctx, PERI_ENOMEM, "no memory for a list of %d tensors", c->nin);
  peri_call g = own_gradients(c, room);
  peri_status s = shape ? peri__multi_check(&g, norm_names, 0) : global_norm_cpu(&g);
  if (shape && s == PERI_OK) s = norm_output(&g);
  if (shape) c->out[0] = g.out[0];
  peri__block_put(c->ctx, room);
  return s;
}
static peri_status grad_norm_infer (peri_call *c) { return grad_norm_run(c, true); }
static peri_status grad_norm_cpu (peri_call *c) { return grad_norm_run(c, false); }
OP(grad_norm, .flags = PERI_OP_STRIDED, .sig = "params:tensors",
   .doc = "Euclidean norm of the gradients that a list of parameters have themselves, together, as "
          "global_norm sums it; parameters without one do not count -> ().",
   .infer = grad_norm_infer, .cpu = grad_norm_cpu, TESTS(.reference = "peri.zeros {}"));

/* Parameters in place of their gradients would be scaled without a word. */
enum { CLIP_MAX, CLIP_COPIES };

static peri_status clip_infer (peri_call *c) {
  int64_t copies = c->attr[CLIP_COPIES].i;
  char a[128];
  TRY(at_least(c, "max_norm", c->attr[CLIP_MAX].f, 0));
  TRY(at_least(c, "copies", (double)copies, 0));
  for (int i = 0; i < c->list[0].count; i++) {
    const peri_tensor *t = c->in[c->list[0].start + i];
    if (t && !t->node && peri__tracked(t))
      return peri__fail(c->ctx, PERI_EINVAL, "grads %s takes gradients itself: it is a parameter",
                        peri__nth(c->ctx, i));
  }
  TRY(peri__multi_check(c, norm_names, 0));
  if (copies == 0) return norm_output(c);
  for (int i = 0; i < c->nin; i++)
    if (c->in[i]->ndim < 1 || c->in[i]->shape[0] != copies)
      return peri__fail(c->ctx, PERI_ESHAPE, "grads %s has shape %s, expected (%lld, ...)",
                        peri__nth(c->ctx, i), peri__shape_text(c->in[i], a, sizeof a),
                        (long long)copies);
  bool f64 = c->nin > 0 && c->in[0]->dtype == PERI_F64;
  return peri__new(c->ctx, f64 ? PERI_F64 : PERI_F32, 1, &copies, &c->out[0]);
}

/* The gradients of one network of several: entry i of each tensor. A norm that is not finite makes them 0,
** so that the others go on. */
static double clip_copy (const peri__multi *m, const peri_call *c, int64_t copy) {
  const peri__step none = { 0 };
  double sum = 0, limit = c->attr[CLIP_MAX].f;
  for (int i = 0; i < m->n; i++) {
    int64_t n = m->in[i]->numel / c->attr[CLIP_COPIES].i;
    for (int64_t at = 0; at < n; at += PERI_MULTI_BLOCK) {
      void *p = (char *)m->data[i] + (size_t)(copy * n + at) * m->size;
      double acc[2] = { 0, 0 };
      m->k->sumsq(&none, &p, n - at < PERI_MULTI_BLOCK ? n - at : PERI_MULTI_BLOCK, acc);
      sum += acc[0];
    }
  }
  double norm = m->f64 ? sqrt(sum) : (double)(float)sqrt(sum); /* as it is returned */
  const peri__step s = { .scale = limit / (norm + 1e-6) };
  for (int i = 0; i < m->n && !(norm <= limit && isfinite(norm)); i++) {
    int64_t n = m->in[i]->numel / c->attr[CLIP_COPIES].i;
    void *p[2];
    p[0] = p[1] = (char *)m->data[i] + (size_t)(copy * n) * m->size;
    if (isfinite(norm))
      m->k->axpby(&s, p, n, NULL);
    else
      memset(p[0], 0, (size_t)n * m->size);
  }
  return norm;
}

static peri_status clip_cpu (peri_call *c) {
  peri__multi m;
  TRY(peri__multi_open(c, &m));
  int64_t copies = c->attr[CLIP_COPIES].i;
  for (int64_t i = 0; i < copies; i++) {
    double norm = clip_copy(&m, c, i);
    if (m.f64)
      ((double *)c->out[0]->data)[i] = norm;
    else
      ((float *)c->out[0]->data)[i] = (float)norm;
  }
  double norm = copies > 0 ? 0 : norm_of(&m, "0"), scale = c->attr[CLIP_MAX].f / (norm + 1e-6);
  if (copies == 0 && isfinite(norm) && scale < 1) {
    const peri__step s = { .scale = scale };
    peri__multi_run(&m, m.k->axpby, "00", &s, false);
  }
  if (copies == 0) norm_put(c->out[0], norm);
  peri__multi_close(&m);
  return PERI_OK;
}
OP(clip_grad_norm_, .flags = PERI_OP_INPLACE | PERI_OP_STRIDED, .writes = 1,
   .sig = "grads:tensors, max_norm:num, copies:int=0",
   .doc = "Multiplies a list of gradients in place by max_norm / (norm + 1e-6) where that is "
          "less than 1 and returns their norm () from before; a norm that is not finite leaves "
          "them as they are. With copies each gradient is (copies, ...), those of several "
          "networks: each has a norm of its own -> (copies), and one that is not finite makes its "
          "gradients 0.",
   .infer = clip_infer, .cpu = clip_cpu,
   TESTS(.domain = "attr max_norm=1", .variants = { "attr max_norm=1; attr copies=2" },
         .refuses = { "grads1.shape=2; grads.count=1; attr max_norm=-1 => -1",
                      "grads1.shape=3; grads.count=1; attr max_norm=1; attr copies=2 => (3) | 2",
                      "grads1.shape=3; grads.count=1; attr max_norm=1; attr copies=-1 => -1" }));

/* ---- lamb_ ---- */

static peri_status lamb_infer (peri_call *c) {
  TRY(at_least(c, "max_grad_norm", c->attr[A_MAX_NORM].f, 0));
  return adam_infer(c);
}

static peri_status lamb_cpu (peri_call *c) {
  peri__step s = adam_step(c, true), *each;
  double limit = c->attr[A_MAX_NORM].f;
  peri__multi m;
  TRY(peri__multi_open(c, &m));
  size_t bytes = (size_t)m.n * sizeof *each;
  each = m.n > 0 ? peri__block_get(c->ctx, bytes) : NULL;
  if (m.n > 0 && !each) {
    peri__multi_close(&m);
    return peri__fail(c->ctx, PERI_ENOMEM, "no memory for %d trust ratios", m.n);
  }
  double norm = limit > 0 ? norm_of(&m, "1") : 0;
  if (limit > 0 && norm > limit) s.scale = limit / norm;
  peri__multi_run(&m, m.k->lamb_moments, "0123", &s, false);
  for (int i = 0; i < m.n; i++) {
    double w = sqrt(peri__multi_sum(&m, i, 0)), u = sqrt(peri__multi_sum(&m, i, 1));
    each[i] = s;
    each[i].factor = s.lr * (w > 0 && u > 0 ? w / u : 1);
  }
  peri__multi_run(&m, m.k->lamb_apply, "023", each, true);
  peri__block_put(c->ctx, each);
  peri__multi_close(&m);
  return PERI_OK;
}

STEP_OP(lamb_, 1 | 4 | 8,
        .sig = ADAM_LISTS
        "lr:num, beta1:num=0.9, beta2:num=0.999, eps:num=1e-6, weight_decay:num=0.01, step:int=1, "
        "max_grad_norm:num=1",
        .doc = "One LAMB step in place on lists of tensors (You et al. 2020, as apex's RefLAMB): "
               "gradients scaled to a global norm of at most max_grad_norm (0 = off); u = m' / "
               "(sqrt(v') + eps) + weight_decay p; p -= lr |p| / |u| u, with ratio 1 where "
               "either norm is 0.",
        .infer = lamb_infer, .cpu = lamb_cpu, TESTS(ADAM_TESTS));

/* ---- ema_ ---- */

static const char *const ema_names[] = { "targets", "sources" };

static peri_status ema_infer (peri_call *c) {
  double d = c->attr[0].f;
  if (!(d >= 0 && d <= 1))
    return peri__fail(c->ctx, PERI_EINVAL, "decay is %g, expected 0 to 1", d);
  return peri__multi_check(c, ema_names, 0);
}
static peri_status ema_cpu (peri_call *c) {
  const peri__step s = { .factor = 1 - c->attr[0].f };
  peri__multi m;
  TRY(peri__multi_open(c, &m));
  peri__multi_run(&m, m.k->ema, "01", &s, false);
  peri__multi_close(&m);
  return PERI_OK;
}
STEP_OP(
    ema_, 1, .sig = "targets:tensors, sources:tensors, decay:num",
    .doc = "Exponential moving average in place on lists of tensors: target = decay target + "
           "(1 - decay) source.",
    .infer = ema_infer, .cpu = ema_cpu,
    TESTS(.domain = "attr decay=0.9",
          .refuses = {
              "targets1.shape=2; targets.count=1; sources1.shape=3; sources.count=1; attr decay=0.9"
              " => (2) | (3)" }));
