/* optim_f64.c - the optimizer steps of cpu/simd_optim.c in f64, in plain loops. */
#include <math.h>

#include "op/optim.h"

static void sgd (const peri__step *s, void *const *p, int64_t n, double *acc) {
  double *w = p[0], *b = p[2];
  const double *grad = p[1];
  (void)acc;
  for (int64_t i = 0; i < n; i++) {
    double g = grad[i] * s->scale + w[i] * s->weight_decay;
    if (b) {
      b[i] = s->first ? g : b[i] * s->momentum + g * (1 - s->dampening);
      g = s->nesterov ? g + b[i] * s->momentum : b[i];
    }
    w[i] -= g * s->lr;
  }
}

static void adam (const peri__step *s, void *const *p, int64_t n, double *acc) {
  double *w = p[0], *m = p[2], *v = p[3];
  const double *grad = p[1];
  const double shrink = s->decoupled ? 1 - s->lr * s->weight_decay : 1;
  const double wd = s->decoupled ? 0 : s->weight_decay, step = s->lr / s->c1, root = sqrt(s->c2);
  (void)acc;
  for (int64_t i = 0; i < n; i++) {
    double g = grad[i] * s->scale + w[i] * wd;
    m[i] = m[i] * s->beta1 + g * (1 - s->beta1);
    v[i] = v[i] * s->beta2 + g * g * (1 - s->beta2);
    w[i] = w[i] * shrink - step * m[i] / (sqrt(v[i]) / root + s->eps);
  }
}

static void rmsprop (const peri__step *s, void *const *p, int64_t n, double *acc) {
  double *w = p[0], *sq = p[2], *b = p[3];
  const double *grad = p[1];
  (void)acc;
  for (int64_t i = 0; i < n; i++) {
    double g = grad[i] * s->scale + w[i] * s->weight_decay;
    sq[i] = sq[i] * s->beta2 + g * g * (1 - s->beta2);
    double u = g / (sqrt(sq[i]) + s->eps);
    if (b) u = b[i] = b[i] * s->momentum + u;
    w[i] -= u * s->lr;
  }
}

static double lamb_update (const peri__step *s, double w, double m, double v) {
  double u = m == 0 ? 0 : m / s->c1 / (sqrt(v / s->c2) + s->eps);
  return u + w * s->weight_decay;
}

static void lamb_moments (const peri__step *s, void *const *p, int64_t n, double *acc) {
  const double *w = p[0], *grad = p[1];
  double *m = p[2], *v = p[3];
  for (int64_t i = 0; i < n; i++) {
    double g = grad[i] * s->scale;
    m[i] = m[i] * s->beta1 + g * (1 - s->beta1);
    v[i] = v[i] * s->beta2 + g * g * (1 - s->beta2);
    double u = lamb_update(s, w[i], m[i], v[i]);
    acc[0] += w[i] * w[i];
    acc[1] += u * u;
  }
}

static void lamb_apply (const peri__step *s, void *const *p, int64_t n, double *acc) {
  double *w = p[0];
  const double *m = p[1], *v = p[2];
  (void)acc;
  for (int64_t i = 0; i < n; i++) w[i] -= lamb_update(s, w[i], m[i], v[i]) * s->factor;
}

static void muon_momentum (const peri__step *s, void *const *p, int64_t n, double *acc) {
  const double *grad = p[0];
  double *b = p[1], *out = p[2];
  (void)acc;
  for (int64_t i = 0; i < n; i++) {
    double g = grad[i] * s->scale, rest = 1 - s->momentum;
    b[i] = b[i] * s->momentum + g * rest;
    out[i] = s->nesterov ? g * rest + b[i] * s->momentum : b[i];
  }
}

static void axpby (const peri__step *s, void *const *p, int64_t n, double *acc) {
  double *y = p[0];
  const double *x = p[1];
  (void)acc;
  for (int64_t i = 0; i < n; i++) y[i] = y[i] * s->scale + x[i] * s->factor;
}

static void ema (const peri__step *s, void *const *p, int64_t n, double *acc) {
  double *t = p[0];
  const double *x = p[1];
  (void)acc;
  for (int64_t i = 0; i < n; i++) t[i] += (x[i] - t[i]) * s->factor;
}

static void sumsq (const peri__step *s, void *const *p, int64_t n, double *acc) {
  const double *x = p[0];
  (void)s;
  for (int64_t i = 0; i < n; i++) acc[0] += x[i] * x[i];
}

const struct peri__loss_kernels peri__steps_f64 = {
#define X(name) .name = name,
  PERI_STEP_KERNELS(X)
#undef X
};
