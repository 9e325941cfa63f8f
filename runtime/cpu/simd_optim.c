/*
** simd_optim.c - optimizer steps over blocks of parameters, one pass over memory each. A body runs
** over whole vectors; the rest of a block goes through the same body in padded buffers, so that an
** element's bits do not depend on where blocks are cut.
*/
#include "cpu/loss.h"

#include "cpu/vec_math.h"

enum { MAX_LISTS = 4 };

/* Squares of floats are exact in f64. Half a vector of floats widens to one of doubles. */
enum { HALF = PERI_VW / 2 };
typedef float v_half __attribute__((vector_size(PERI_VW * 2)));
typedef double v_wide __attribute__((vector_size(PERI_VW * 4)));

static inline void add_squares (v_wide *acc, vf x) {
  v_half h[2];
  memcpy(h, &x, sizeof h);
  v_wide a = __builtin_convertvector(h[0], v_wide), b = __builtin_convertvector(h[1], v_wide);
  *acc += a * a;
  *acc += b * b;
}
static inline double total (v_wide v) { /* folded in halves */
  for (int w = HALF / 2; w > 0; w /= 2)
    for (int i = 0; i < w; i++) v[i] += v[i + w];
  return v[0];
}

/* Padding is 0 in every list: it adds nothing to sums of squares. */
static inline void in_vectors (peri__step_fn body, const char *lists, const peri__step *s,
                               void *const *p, int64_t n, double *acc) {
  int64_t whole = n / PERI_VW * PERI_VW;
  float pad[MAX_LISTS][PERI_VW] = { { 0 } };
  void *q[MAX_LISTS] = { NULL };
  if (whole > 0) body(s, p, whole, acc);
  if (whole == n) return;
  for (int k = 0; lists[k] != 0; k++) {
    if (p[k] == NULL) continue;
    memcpy(pad[k], (const float *)p[k] + whole, (size_t)(n - whole) * sizeof(float));
    q[k] = pad[k];
  }
  body(s, q, PERI_VW, acc);
  for (int k = 0; lists[k] != 0; k++)
    if (p[k] != NULL && lists[k] == 'w')
      memcpy((float *)p[k] + whole, pad[k], (size_t)(n - whole) * sizeof(float));
}

/* The kernel name of the table from name_body; lists has a letter for each entry of p: r = read
** only (it may be memory that cannot be written), w = written. */
#define KERNEL(name, lists)                                                                        \
  void PERI_NAME(peri__step_##name)(const peri__step *, void *const *, int64_t, double *);         \
  void PERI_NAME(peri__step_##name)(const peri__step *s, void *const *p, int64_t n, double *acc) { \
    in_vectors(name##_body, lists, s, p, n, acc);                                                  \
  }

static inline void sgd_body (const peri__step *s, void *const *p, int64_t n, double *acc) {
  float *w = p[0], *b = p[2];
  const float *grad = p[1];
  const float lr = (float)s->lr, wd = (float)s->weight_decay, scale = (float)s->scale;
  const float mu = s->first ? 0.0f : (float)s->momentum;
  const float keep = s->first ? 1.0f : (float)(1 - s->dampening), ahead = (float)s->momentum;
  (void)acc;
  for (int64_t i = 0; i < n; i += PERI_VW) {
    vf x = v_load(w + i), g = v_load(grad + i) * scale + x * wd;
    if (b != NULL) {
      vf m = g * keep;
      if (!s->first) m = v_load(b + i) * mu + m; /* a first buffer may hold anything */
      v_store(b + i, m);
      g = s->nesterov ? m * ahead + g : m;
    }
    v_store(w + i, x - g * lr);
  }
}
KERNEL(sgd, "wrw")

static inline void adam_body (const peri__step *s, void *const *p, int64_t n, double *acc) {
  float *w = p[0], *m = p[2], *v = p[3];
  const float *grad = p[1];
  const float b1 = (float)s->beta1, a1 = (float)(1 - s->beta1);
  const float b2 = (float)s->beta2, a2 = (float)(1 - s->beta2);
  const float scale = (float)s->scale, eps = (float)s->eps, step = (float)(s->lr / s->c1);
  const float root = (float)(1 / sqrt(s->c2));
  const float shrink = s->decoupled ? (float)(1 - s->lr * s->weight_decay) : 1.0f;
  const float wd = s->decoupled ? 0.0f : (float)s->weight_decay;
  (void)acc;
  for (int64_t i = 0; i < n; i += PERI_VW) {
    vf x = v_load(w + i), g = v_load(grad + i) * scale + x * wd;
    vf mi = v_load(m + i) * b1 + g * a1, q = v_load(v + i) * b2 + g * g * a2;
    v_store(m + i, mi);
    v_store(v + i, q);
    v_store(w + i, x * shrink - mi * step / (v_sqrt(q) * root + eps));
  }
}
KERNEL(adam, "wrww")

static inline void rmsprop_body (const peri__step *s, void *const *p, int64_t n, double *acc) {
  float *w = p[0], *sq = p[2], *b = p[3];
  const float *grad = p[1];
  const float alpha = (float)s->beta2, rest = (float)(1 - s->beta2), eps = (float)s->eps;
  const float lr = (float)s->lr, wd = (float)s->weight_decay, scale = (float)s->scale;
  const float mu = (float)s->momentum;
  (void)acc;
  for (int64_t i = 0; i < n; i += PERI_VW) {
    vf x = v_load(w + i), g = v_load(grad + i) * scale + x * wd;
    vf q = v_load(sq + i) * alpha + g * g * rest;
    v_store(sq + i, q);
    vf u = g / (v_sqrt(q) + eps);
    if (b != NULL) {
      u = v_load(b + i) * mu + u;
      v_store(b + i, u);
    }
    v_store(w + i, x - u * lr);
  }
}
KERNEL(rmsprop, "wrww")

/* The update of one vector before the trust ratio; 0 where nothing was ever accumulated. */
static inline vf lamb_update (const peri__step *s, vf x, vf m, vf v) {
  vf den = v_sqrt(v * (float)(1 / s->c2)) + (float)s->eps;
  vf u = m * (float)(1 / s->c1) / den;
  return v_select((vi)(m == 0.0f), v_set(0), u) + x * (float)s->weight_decay;
}

static inline void lamb_moments_body (const peri__step *s, void *const *p, int64_t n, double *acc) {
  const float *w = p[0], *grad = p[1];
  float *m = p[2], *v = p[3];
  const float b1 = (float)s->beta1, a1 = (float)(1 - s->beta1);
  const float b2 = (float)s->beta2, a2 = (float)(1 - s->beta2), scale = (float)s->scale;
  v_wide ww = { 0 }, uu = { 0 };
  for (int64_t i = 0; i < n; i += PERI_VW) {
    vf x = v_load(w + i), g = v_load(grad + i) * scale;
    vf mi = v_load(m + i) * b1 + g * a1, q = v_load(v + i) * b2 + g * g * a2;
    v_store(m + i, mi);
    v_store(v + i, q);
    add_squares(&ww, x);
    add_squares(&uu, lamb_update(s, x, mi, q));
  }
  acc[0] += total(ww);
  acc[1] += total(uu);
}
KERNEL(lamb_moments, "rrww")

static inline void lamb_apply_body (const peri__step *s, void *const *p, int64_t n, double *acc) {
  float *w = p[0];
  const float *m = p[1], *v = p[2], f = (float)s->factor;
  (void)acc;
  for (int64_t i = 0; i < n; i += PERI_VW) {
    vf x = v_load(w + i);
    v_store(w + i, x - lamb_update(s, x, v_load(m + i), v_load(v + i)) * f);
  }
}
KERNEL(lamb_apply, "wrr")

static inline void muon_momentum_body (const peri__step *s, void *const *p, int64_t n,
                                       double *acc) {
  const float *grad = p[0], mu = (float)s->momentum, rest = (float)(1 - s->momentum);
  float *b = p[1], *out = p[2];
  const float scale = (float)s->scale;
  (void)acc;
  for (int64_t i = 0; i < n; i += PERI_VW) {
    vf g = v_load(grad + i) * scale, m = v_load(b + i) * mu + g * rest;
    v_store(b + i, m);
    v_store(out + i, s->nesterov ? g * rest + m * mu : m);
  }
}
KERNEL(muon_momentum, "rww")

static inline void axpby_body (const peri__step *s, void *const *p, int64_t n, double *acc) {
  float *y = p[0];
  const float *x = p[1], a = (float)s->scale, b = (float)s->factor;
  (void)acc;
  for (int64_t i = 0; i < n; i += PERI_VW) v_store(y + i, v_load(y + i) * a + v_load(x + i) * b);
}
KERNEL(axpby, "wr")

static inline void ema_body (const peri__step *s, void *const *p, int64_t n, double *acc) {
  float *t = p[0];
  const float *x = p[1], f = (float)s->factor;
  (void)acc;
  for (int64_t i = 0; i < n; i += PERI_VW) {
    vf v = v_load(t + i);
    v_store(t + i, (v_load(x + i) - v) * f + v);
  }
}
KERNEL(ema, "wr")

static inline void sumsq_body (const peri__step *s, void *const *p, int64_t n, double *acc) {
  const float *x = p[0];
  v_wide t0 = { 0 }, t1 = { 0 };
  int64_t i = 0;
  (void)s;
  for (; i + 2 * PERI_VW <= n; i += 2 * PERI_VW) {
    add_squares(&t0, v_load(x + i));
    add_squares(&t1, v_load(x + i + PERI_VW));
  }
  if (i < n) add_squares(&t0, v_load(x + i));
  acc[0] += total(t0 + t1);
}
KERNEL(sumsq, "r")
