/*
** simd_norm.c - layer norm and RMS norm over f32 rows, with an optional residual sum, and their
** gradients. Sums of a row run in the order that simd_nn.c states; variance is taken around the
** mean in a second pass, never as a difference of squares.
*/
#include "cpu/nn.h"
#include "cpu/vec.h"
#include "cpu/vec_math.h"

enum { W = PERI_VW, CHUNK = 16 };

static vf get (const float *p, int64_t lanes) { return lanes >= W ? v_load(p) : v_load_tail(p, lanes, 0); }
static void put (float *p, vf v, int64_t lanes) {
  if (lanes >= W) v_store(p, v);
  else v_store_tail(p, v, lanes);
}

/* sum of x, or of (x - mean)^2 */
static inline __attribute__((always_inline)) float row_sum (const float *x, int64_t n, float mean,
                                                            bool square) {
  vf total = v_set(0), m = v_set(mean);
  int64_t i = 0;
  while (i + W <= n) {
    int64_t end = n - i > CHUNK * W ? i + CHUNK * W : n;
    vf p = v_set(0), q = p, r = p, s = p;
    for (; i + 4 * W <= end; i += 4 * W) {
      vf a = v_load(x + i), b = v_load(x + i + W), c = v_load(x + i + 2 * W), d = v_load(x + i + 3 * W);
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

static void scale_row (const struct peri__norm *a, const float *x, float *y, float mean, float rstd) {
  int64_t n = a->n;
  vf m = v_set(mean), r = v_set(rstd);
  for (int64_t i = 0; i < n; i += W) {
    vf v = (get(x + i, n - i) - m) * r;
    if (a->w) v *= get(a->w + i, n - i);
    if (a->b) v += get(a->b + i, n - i);
    put(y + i, v, n - i);
  }
}

void PERI_NAME(peri__norm_rows) (const struct peri__norm *a, int64_t row0, int64_t row1) {
  int64_t n = a->n;
  for (int64_t row = row0; row < row1; row++) {
    const float *x = a->x + row * n;
    if (a->add) {
      float *sum = a->sum + row * n;
      const float *add = a->add + row * n;
      for (int64_t i = 0; i < n; i += W) put(sum + i, get(x + i, n - i) + get(add + i, n - i), n - i);
      x = sum;
    }
    float mean, rstd = row_stat(x, n, a->rms, a->eps, &mean);
    scale_row(a, x, a->y + row * n, mean, rstd);
  }
}

/* dx = rstd (u - mean(u) - xhat mean(u xhat)), u = g w, without mean(u) in RMS norm
** (arXiv:1607.06450, arXiv:1910.07467). */
void PERI_NAME(peri__norm_back_rows) (const struct peri__norm_back *a, int64_t row0, int64_t row1,
                                      float *dw, float *db) {
  int64_t n = a->n;
  if (dw) memset(dw, 0, (size_t)n * sizeof *dw);
  if (db) memset(db, 0, (size_t)n * sizeof *db);
  for (int64_t row = row0; row < row1; row++) {
    const float *x = a->x + row * n, *g = a->g + row * n, *add = a->add ? a->add + row * n : NULL;
    float *dx = a->dx + row * n;
    float center, inverse = row_stat(x, n, a->rms, a->eps, &center);
    vf mean = v_set(center), rstd = v_set(inverse), su = v_set(0), sux = v_set(0);
    for (int64_t i = 0; i < n;) {
      vf pu = v_set(0), pux = v_set(0);
      int64_t end = n - i > CHUNK * W ? i + CHUNK * W : n;
      for (; i < end; i += W) {
        int64_t k = n - i;
        vf xhat = (get(x + i, k) - mean) * rstd, gi = get(g + i, k), u = gi;
        if (a->w) u *= get(a->w + i, k);
        pu += u; /* lanes past the row have g = 0 */
        pux = v_fma(u, xhat, pux);
        if (dw) put(dw + i, v_fma(gi, xhat, get(dw + i, k)), k);
        if (db) put(db + i, get(db + i, k) + gi, k);
      }
      su += pu;
      sux += pux;
    }
    vf mu = v_set(a->rms ? 0 : v_sum(su) / (float)n), mux = v_set(v_sum(sux) / (float)n);
    for (int64_t i = 0; i < n; i += W) {
      int64_t k = n - i;
      vf xhat = (get(x + i, k) - mean) * rstd, u = get(g + i, k);
      if (a->w) u *= get(a->w + i, k);
      vf d = (u - mu - xhat * mux) * rstd;
      if (add) d += get(add + i, k);
      put(dx + i, d, k);
    }
  }
}
