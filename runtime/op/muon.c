/*
** muon.c - the Muon step: momentum, then the direction of each matrix is made near-orthogonal by
** Newton-Schulz iterations, which are products (Jordan et al. 2024,
** https://kellerjordan.github.io/posts/muon). All directions are found before any parameter is
** written, so a step that fails or is interrupted has changed nothing.
*/
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cpu/gemm.h"
#include "op/optim.h"

enum { M_LR, M_MOMENTUM, M_NESTEROV, M_DECAY, M_STEPS, M_SCALE };
static const char *const names[] = { "params", "grads", "momentum_bufs" };

/* The quintic p(x) = a x + b x^3 + c x^5 that lifts small singular values fastest. */
static const double A = 3.4445, B = -4.7750, C = 2.0315;

static peri_status infer (peri_call *c) {
  const peri_attr *a = c->attr;
  char t[128];
  TRY(peri__multi_check(c, names, 0));
  for (int i = 0; i < c->list[0].count; i++) {
    const peri_tensor *p = c->in[c->list[0].start + i];
    if (p->ndim != 2)
      return peri__fail(c->ctx, PERI_ESHAPE,
                        "params %s has shape %s, expected a matrix: give the others to adamw_",
                        peri__nth(c->ctx, i), peri__shape_text(p, t, sizeof t));
  }
  TRY(peri__rate_check(c, "lr", a[M_LR].f));
  TRY(peri__rate_check(c, "weight_decay", a[M_DECAY].f));
  TRY(peri__rate_check(c, "grad_scale", a[M_SCALE].f));
  if (!(a[M_MOMENTUM].f >= 0 && a[M_MOMENTUM].f < 1))
    return peri__fail(c->ctx, PERI_EINVAL, "momentum is %g, expected 0 or more and less than 1",
                      a[M_MOMENTUM].f);
  if (a[M_STEPS].i < 1 || a[M_STEPS].i > 100)
    return peri__fail(c->ctx, PERI_EINVAL, "steps is %" PRId64 ", expected 1 to 100", a[M_STEPS].i);
  return PERI_OK;
}

/* C (m, n) = A B, operands by strides in elements. */
static peri_status product (const peri__multi *s, int64_t m, int64_t n, int64_t k, const void *a,
                            int64_t ars, int64_t acs, const void *b, int64_t brs, int64_t bcs,
                            void *c) {
  const peri__product p = { s->f64, m, n, k, a, ars, acs, b, brs, bcs, c, false, NULL };
  return peri__product_run(s->ctx, &p);
}

/* y = y * ys + x * xs over n elements. */
static void axpby (const peri__multi *m, int64_t n, void *y, double ys, const void *x, double xs) {
  const peri__step s = { .scale = ys, .factor = xs };
  if (n > 0) m->k->axpby(&s, (void *const[]){ y, (void *)x }, n, NULL);
}

/*
** x (rows, cols) <- the near-orthogonal matrix of its singular vectors. With G the Gram matrix over
** the smaller side: P = b G + c G^2, x <- a x + P x (or x P where rows > cols). y as x; g, p of the
** smaller side squared.
*/
static peri_status orthogonal (const peri__multi *m, int64_t rows, int64_t cols, int64_t steps,
                               void *x, void *y, void *g, void *p) {
  bool tall = rows > cols;
  int64_t k = tall ? cols : rows, n = rows * cols;
  const peri__step none = { 0 };
  double acc[2] = { 0, 0 };
  m->k->sumsq(&none, &x, n, acc);
  axpby(m, n, x, 1 / (sqrt(acc[0]) + 1e-7), x, 0);
  for (int64_t i = 0; i < steps; i++) {
    if (tall)
      TRY(product(m, k, k, rows, x, 1, cols, x, cols, 1, g));
    else
      TRY(product(m, k, k, cols, x, cols, 1, x, 1, cols, g));
    TRY(product(m, k, k, k, g, k, 1, g, k, 1, p));
    axpby(m, k * k, p, C, g, B);
    if (tall)
      TRY(product(m, rows, cols, cols, x, cols, 1, p, cols, 1, y));
    else
      TRY(product(m, rows, cols, rows, p, rows, 1, x, cols, 1, y));
    axpby(m, n, x, A, y, 1);
    if (peri__stopped(m->ctx)) return PERI_OK;
  }
  return PERI_OK;
}

typedef struct scratch {
  char *all; /* the directions of all parameters, one after the other */
  char *y, *g, *p;
  size_t all_bytes, y_bytes, g_bytes;
} scratch;

static peri_status get_scratch (const peri__multi *m, scratch *s) {
  int64_t widest = 0, side = 0;
  for (int i = 0; i < m->n; i++) {
    const peri_tensor *t = m->in[i];
    int64_t k = t->shape[0] < t->shape[1] ? t->shape[0] : t->shape[1];
    widest = t->numel > widest ? t->numel : widest;
    side = k > side ? k : side;
  }
  s->all_bytes = (size_t)m->total * m->size;
  s->y_bytes = (size_t)widest * m->size;
  s->g_bytes = (size_t)(side * side) * m->size;
  s->all = peri__block_get(m->ctx, s->all_bytes);
  s->y = peri__block_get(m->ctx, s->y_bytes);
  s->g = peri__block_get(m->ctx, s->g_bytes);
  s->p = peri__block_get(m->ctx, s->g_bytes);
  if (s->all && s->y && s->g && s->p) return PERI_OK;
  return peri__fail(m->ctx, PERI_ENOMEM, "no memory for the directions of %" PRId64 " parameters",
                    m->total);
}

static peri_status cpu (peri_call *c) {
  const peri_attr *a = c->attr;
  const peri__step s = { .scale = a[M_SCALE].f,
                         .momentum = a[M_MOMENTUM].f,
                         .nesterov = a[M_NESTEROV].i != 0 };
  scratch w = { 0 };
  peri__multi m;
  TRY(peri__multi_open(c, &m));
  peri_status status = m.total > 0 ? get_scratch(&m, &w) : PERI_OK;
  bool run = status == PERI_OK && m.total > 0;
  char *x = w.all;
  for (int i = 0; run && i < m.n; i++) {
    const peri_tensor *t = m.in[i];
    if (t->numel == 0) continue;
    void *p[3] = { (void *)m.data[m.n + i], w.y, x };
    memcpy(w.y, m.data[2 * m.n + i], (size_t)t->numel * m.size);
    m.k->muon_momentum(&s, p, t->numel, NULL);
    status = orthogonal(&m, t->shape[0], t->shape[1], a[M_STEPS].i, x, w.y, w.g, w.p);
    x += (size_t)t->numel * m.size;
    run = status == PERI_OK && !peri__stopped(c->ctx);
  }
  x = w.all;
  for (int i = 0; run && i < m.n; i++) {
    const peri_tensor *t = m.in[i];
    if (t->numel == 0) continue;
    void *p[3] = { (void *)m.data[m.n + i], (void *)m.data[2 * m.n + i], w.y };
    double ratio = (double)t->shape[0] / (double)t->shape[1], scale = ratio > 1 ? sqrt(ratio) : 1;
    m.k->muon_momentum(&s, p, t->numel, NULL);
    axpby(&m, t->numel, (void *)m.data[i], 1 - a[M_LR].f * a[M_DECAY].f, x, -a[M_LR].f * scale);
    x += (size_t)t->numel * m.size;
  }
  peri__block_put(c->ctx, w.all);
  peri__block_put(c->ctx, w.y);
  peri__block_put(c->ctx, w.g);
  peri__block_put(c->ctx, w.p);
  peri__multi_close(&m);
  return status;
}

OPN(muon_, 0, .flags = PERI_OP_INPLACE | PERI_OP_STRIDED, .writes = 1 | 4,
    .sig = "params:tensors, grads:tensors, momentum_bufs:tensors, lr:num, momentum:num=0.95, "
           "nesterov:bool=true, weight_decay:num=0, steps:int=5, grad_scale:num=1",
    .doc = "One Muon step in place on lists of matrices (Jordan et al. 2024): b = momentum b + "
           "(1 - momentum) g, u = b (or Nesterov's mix with g) made near-orthogonal by "
           "Newton-Schulz steps, p = (1 - lr weight_decay) p - lr sqrt(max(1, rows / cols)) u.",
    .infer = infer, .cpu = cpu,
    TESTS(.domain = "attr lr=0.1",
          .refuses = {
              "params1.shape=2,2; params2.shape=2,2; grads1.shape=2,2; grads.count=1; "
              "momentum_bufs1.shape=2,2; momentum_bufs2.shape=2,2; attr lr=0.1 => 1 | 2",
              "params1.shape=2,2; params.count=1; grads1.shape=3; grads.count=1; "
              "momentum_bufs1.shape=2,2; momentum_bufs.count=1; attr lr=0.1 => (2, 2) | (3)",
              "params1.shape=3; params.count=1; grads1.shape=3; grads.count=1; "
              "momentum_bufs1.shape=3; momentum_bufs.count=1; attr lr=0.1 => (3)" }));
