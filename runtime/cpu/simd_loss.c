/*
** simd_loss.c - rows of logits: statistics, gradient and the draw of a token. Every reduction has
** one order that depends on the row's length alone, so a row gives the same bits wherever it is.
*/
#include "cpu/loss.h"

#include "cpu/vec_math.h"

#define LOWEST (-200.0f) /* exp gives exactly 0 here */

/* a > b ? a : b is b where either is NaN: the order of the operands keeps a NaN in x. */
static inline vf at_least (float low, vf x) { return v_max(v_set(low), x); }

static float row_max (const float *x, int64_t n) {
  vf m0 = v_set(-INFINITY), m1 = m0, m2 = m0, m3 = m0;
  int64_t i = 0;
  for (; i + 4 * PERI_VW <= n; i += 4 * PERI_VW) {
    m0 = v_max(m0, v_load(x + i));
    m1 = v_max(m1, v_load(x + i + PERI_VW));
    m2 = v_max(m2, v_load(x + i + 2 * PERI_VW));
    m3 = v_max(m3, v_load(x + i + 3 * PERI_VW));
  }
  for (; i + PERI_VW <= n; i += PERI_VW) m0 = v_max(m0, v_load(x + i));
  if (i < n) m1 = v_max(m1, v_load_tail(x + i, n - i, -INFINITY));
  return v_hmax(v_max(v_max(m0, m1), v_max(m2, m3)));
}

/* exp(d) and exp(d) * d of one vector, added to s and t. */
static inline vf exp_term (vf x, float max, float scale, vf *s, vf *t) {
  vf d = at_least(LOWEST, (x - max) * scale), e = v_exp(d);
  *s += e;
  *t = e * d + *t;
  return e;
}

static inline void row_block (const float *x, int64_t n, float max, float scale, float *e,
                              double *sum, double *dot) {
  vf s0 = { 0 }, s1 = s0, t0 = s0, t1 = s0;
  int64_t i = 0;
  for (; i + 2 * PERI_VW <= n; i += 2 * PERI_VW) {
    vf e0 = exp_term(v_load(x + i), max, scale, &s0, &t0);
    vf e1 = exp_term(v_load(x + i + PERI_VW), max, scale, &s1, &t1);
    if (e != NULL) {
      v_store(e + i, e0);
      v_store(e + i + PERI_VW, e1);
    }
  }
  for (; i < n; i += PERI_VW) {
    int64_t left = n - i < PERI_VW ? n - i : PERI_VW;
    vf e0 = exp_term(v_load_tail(x + i, left, -INFINITY), max, scale, &s0, &t0);
    if (e != NULL) v_store_tail(e + i, e0, left);
  }
  *sum += (double)v_sum(s0 + s1);
  *dot += (double)v_sum(t0 + t1);
}

static void row (const float *x, int64_t n, float scale, float *e, peri__row *out) {
  float max = row_max(x, n);
  double sum = 0, dot = 0;
  for (int64_t i = 0; i < n; i += PERI_LOSS_BLOCK) {
    int64_t m = n - i < PERI_LOSS_BLOCK ? n - i : PERI_LOSS_BLOCK;
    if (e != NULL)
      row_block(x + i, m, max, scale, e + i, &sum, &dot);
    else
      row_block(x + i, m, max, scale, NULL, &sum, &dot);
  }
  *out = (peri__row){ .max = (double)max, .sum = sum, .dot = dot };
}

static double block_sum (const float *x, int64_t n) {
  vf s0 = { 0 }, s1 = s0;
  int64_t i = 0;
  for (; i + 2 * PERI_VW <= n; i += 2 * PERI_VW) {
    s0 += v_load(x + i);
    s1 += v_load(x + i + PERI_VW);
  }
  for (; i < n; i += PERI_VW) s0 += v_load_tail(x + i, n - i < PERI_VW ? n - i : PERI_VW, 0);
  return (double)v_sum(s0 + s1);
}

static double row_sum (const float *x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i += PERI_LOSS_BLOCK)
    sum += block_sum(x + i, n - i < PERI_LOSS_BLOCK ? n - i : PERI_LOSS_BLOCK);
  return sum;
}

static void row_grad (const float *x, int64_t n, const peri__row_grad *g, float *out) {
  const float max = (float)g->max, scale = (float)g->scale, log_sum = (float)g->log_sum;
  const float a = (float)g->a, b = (float)g->b, c = (float)g->c;
  int64_t i = 0;
  for (; i + PERI_VW <= n; i += PERI_VW) {
    vf l = at_least(LOWEST, (v_load(x + i) - max) * scale - log_sum);
    v_store(out + i, v_exp(l) * (l * b + a) + c);
  }
  if (i < n) {
    vf l = at_least(LOWEST, (v_load_tail(x + i, n - i, 0) - max) * scale - log_sum);
    v_store_tail(out + i, v_exp(l) * (l * b + a) + c, n - i);
  }
}

/* ---- few classes: rows side by side ---- */

/* Class k of the rows from x on, as many as a vector has or `left`. */
static inline vf few_load (const float *x, int64_t n, int64_t k, int64_t left) {
  float t[PERI_VW] = { 0 };
  for (int64_t i = 0; i < PERI_VW && i < left; i++) t[i] = x[i * n + k];
  return v_load(t);
}

/* The sums are those of v_sum over a vector that holds these classes and zeros. */
static void few (const float *x, int64_t rows, int64_t n, float scale, peri__few *out) {
  for (int64_t i = 0; i < rows; i += PERI_VW, x += PERI_VW * n) {
    vf c[PERI_LOSS_FEW], e[PERI_LOSS_FEW], t[PERI_LOSS_FEW], max = v_set(-INFINITY);
    for (int64_t k = 0; k < n; k++) {
      c[k] = few_load(x, n, k, rows - i);
      max = v_max(max, c[k]);
    }
    for (int64_t k = 0; k < PERI_LOSS_FEW; k++) {
      e[k] = t[k] = v_set(0);
      if (k >= n) continue;
      vf d = at_least(LOWEST, (c[k] - max) * scale);
      e[k] = v_exp(d);
      t[k] = e[k] * d + t[k];
    }
    v_store(out->max + i, max);
    v_store(out->sum + i, (e[0] + e[2]) + (e[1] + e[3]));
    v_store(out->dot + i, (t[0] + t[2]) + (t[1] + t[3]));
  }
}

static void few_grad (const float *x, int64_t rows, int64_t n, float scale, const peri__few *g,
                      float *out) {
  for (int64_t i = 0; i < rows; i += PERI_VW, x += PERI_VW * n, out += PERI_VW * n) {
    vf max = v_load(g->max + i), log_sum = v_load(g->log_sum + i);
    vf a = v_load(g->a + i), b = v_load(g->b + i);
    for (int64_t k = 0; k < n; k++) {
      vf l = at_least(LOWEST, (few_load(x, n, k, rows - i) - max) * scale - log_sum);
      float t[PERI_VW];
      v_store(t, v_exp(l) * (l * b + a) + v_set(0));
      for (int64_t j = 0; j < PERI_VW && j < rows - i; j++) out[j * n + k] = t[j];
    }
  }
}

static int64_t pick (const float *e, int64_t n, double u) {
  double total = row_sum(e, n), below = 0;
  int64_t i = 0, last = -1;
  if (!(total > 0) || total > 3.0e38) return -1;
  double at = u * total;
  for (; i + PERI_LOSS_BLOCK < n; i += PERI_LOSS_BLOCK) {
    double s = block_sum(e + i, PERI_LOSS_BLOCK);
    if (below + s > at) break;
    below += s;
  }
  for (; i < n; i++) { /* may run past the block by a rounding: the next positive one is taken */
    if (e[i] > 0) last = i;
    below += (double)e[i];
    if (e[i] > 0 && below > at) return i;
  }
  for (i = n - 1; last < 0 && i >= 0; i--) /* at fell behind the last positive element */
    if (e[i] > 0) last = i;
  return last;
}

#define X(name) \
  void PERI_NAME(peri__step_##name)(const peri__step *, void *const *, int64_t, double *);
PERI_STEP_KERNELS(X)
#undef X

extern const struct peri__loss_kernels PERI_NAME(peri__loss);
const struct peri__loss_kernels PERI_NAME(peri__loss) = { .row = row,
                                                          .row_sum = row_sum,
                                                          .row_grad = row_grad,
                                                          .few = few,
                                                          .few_grad = few_grad,
                                                          .pick = pick,
#define X(name) .name = PERI_NAME(peri__step_##name),
                                                          PERI_STEP_KERNELS(X)
#undef X
};
