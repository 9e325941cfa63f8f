/*
** simd_norm.c - layer norm and RMS norm over f32 rows, with an optional residual sum, and their
** gradients. Sums of a row run in the order that simd_nn.c states; variance is taken around the
** mean in a second pass, never as a difference of squares.
*/
#include "cpu/nn.h"
#include "cpu/vec.h"
#include "cpu/vec_math.h"

enum { W = PERI_VW, CHUNK = 16 };

#define INLINE static inline __attribute__((always_inline))

/* lanes is the constant W in loops over whole vectors, fewer at a row's end */
INLINE vf get (const float *p, int64_t lanes) {
  return lanes == W ? v_load(p) : v_load_tail(p, lanes, 0);
}
INLINE void put (float *p, vf v, int64_t lanes) {
  if (lanes == W)
    v_store(p, v);
  else
    v_store_tail(p, v, lanes);
}

/* sum of x, or of (x - mean)^2 */
static inline __attribute__((always_inline)) float row_sum (const float *x, int64_t n, float mean,
                                                            bool square) {
  vf total = v_set(0), m = v_set(mean);
  int64_t i = 0;
  while (i + W <= n) {
    int64_t end = n - i > CHUNK
    *W ? i + CHUNK
    *W : n;
    vf p = v_set(0), q = p, r = p, s = p;
    for (; i + 4 * W <= end; i += 4 * W) {
      vf a = v_load(x + i), b = v_load(x + i + W), c = v_load(x + i + 2 * W),
         d = v_load(x + i + 3 * W);
      if (square) {
        a -= m, b -= m, c -= m, d -= m;
        p = v_fma(a, a, p), q = v_fma(b, b, q), r = v_fma(c, c, r), s = v_fma(d, d, s);
      } else {
        p += a, q += b, r += c, s += d;
      }
    }
    for (; i + W <= end; i += W) {
      vf a = v_load(x + i) - m;
      p = square ? v_fma(a, a, p) : p + a;
    }
    total += (p + q) + (r + s);
  }
  if (i < n) {
    vf a = v_load_tail(x + i, n - i, mean) - m;
    total += square ? a * a : a;
  }
  return v_sum(total);
}

/* 1 / sqrt(variance + eps), or of the mean square with *mean = 0 */
static float row_stat (const float *x, int64_t n, bool rms, double eps, float *mean) {
  *mean = rms ? 0 : row_sum(x, n, 0, false) / (float)n;
  return (float)(1.0 / sqrt((double)row_sum(x, n, *mean, true) / (double)n + eps));
}

INLINE void scale_vector (const struct peri__norm *a, const float *x, float *y, vf mean, vf rstd,
                          int64_t i, int64_t lanes) {
  vf v = (get(x + i, lanes) - mean) * rstd;
  if (a->w) v *= get(a->w + i, lanes);
  if (a->b) v += get(a->b + i, lanes);
  put(y + i, v, lanes);
}

static void add_rows (const float *x, const float *y, int64_t n, float *sum) {
  int64_t i = 0;
  for (; i + W <= n; i += W) v_store(sum + i, v_load(x + i) + v_load(y + i));
  if (i < n) put(sum + i, get(x + i, n - i) + get(y + i, n - i), n - i);
}

void PERI_NAME (peri__norm_rows)(const struct peri__norm *a, int64_t row0, int64_t row1) {
  int64_t n = a->n;
  for (int64_t row = row0; row < row1; row++) {
    const float *x = a->x + row * n;
    if (a->add) {
      add_rows(x, a->add + row * n, n, a->sum + row * n);
      x = a->sum + row * n;
    }
    float mean, rstd = row_stat(x, n, a->rms, a->eps, &mean);
    vf m = v_set(mean), r = v_set(rstd);
    int64_t i = 0;
    for (; i + W <= n; i += W) scale_vector(a, x, a->y + row * n, m, r, i, W);
    if (i < n) scale_vector(a, x, a->y + row * n, m, r, i, n - i);
  }
}

/* What the first pass over a row adds up. */
struct sums {
  vf u, ux;
};

INLINE void sum_vector (const struct peri__norm_back *a, const float *x, const float *g, vf mean,
                        vf rstd, float *dw, float *db, struct sums *s, int64_t i, int64_t lanes) {
  vf xhat = (get(x + i, lanes) - mean) * rstd, gi = get(g + i, lanes), u = gi;
  if (a->w) u *= get(a->w + i, lanes);
  s->u += u; /* lanes past the row have g = 0 */
  s->ux = v_fma(u, xhat, s->ux);
  if (dw) put(dw + i, v_fma(gi, xhat, get(dw + i, lanes)), lanes);
  if (db) put(db + i, get(db + i, lanes) + gi, lanes);
}

INLINE void back_vector (const struct peri__norm_back *a, const float *x, const float *g,
                         const float *add, float *dx, vf mean, vf rstd, vf mu, vf mux, int64_t i,
                         int64_t lanes) {
  vf xhat = (get(x + i, lanes) - mean) * rstd, u = get(g + i, lanes);
  if (a->w) u *= get(a->w + i, lanes);
  vf d = (u - mu - xhat * mux) * rstd;
  if (add) d += get(add + i, lanes);
  put(dx + i, d, lanes);
}

/* dx = rstd (u - mean(u) - xhat mean(u xhat)), u = g w, without mean(u) in RMS norm
** (arXiv:1607.06450, arXiv:1910.07467). */
void PERI_NAME (peri__norm_back_rows)(const struct peri__norm_back *a, int64_t row0, int64_t row1,
                                      float *dw, float *db) {
  int64_t n = a->n;
  for (int64_t row = row0; row < row1; row++) {
    const float *x = a->x + row * n, *g = a->g + row * n, *add = a->add ? a->add + row * n : NULL;
    float *dx = a->dx + row * n, center, inverse = row_stat(x, n, a->rms, a->eps, &center);
    vf mean = v_set(center), rstd = v_set(inverse);
    struct sums all = { v_set(0), v_set(0) };
    int64_t i = 0;
    while (i + W <= n) {
      struct sums part = { v_set(0), v_set(0) };
      int64_t end = n - i > CHUNK
      *W ? i + CHUNK
      *W : n;
      for (; i + W <= end; i += W) sum_vector(a, x, g, mean, rstd, dw, db, &part, i, W);
      all.u += part.u;
      all.ux += part.ux;
    }
    if (i < n) sum_vector(a, x, g, mean, rstd, dw, db, &all, i, n - i);
    vf mu = v_set(a->rms ? 0 : v_sum(all.u) / (float)n), mux = v_set(v_sum(all.ux) / (float)n);
    for (i = 0; i + W <= n; i += W) back_vector(a, x, g, add, dx, mean, rstd, mu, mux, i, W);
    if (i < n) back_vector(a, x, g, add, dx, mean, rstd, mu, mux, i, n - i);
  }
}
