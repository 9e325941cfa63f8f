/*
** simd_batch_norm.c - sums and scaling of one channel of an image. Vectors are added in groups of CHUNK,
** groups in double, in order; variance is taken around the mean, never as a difference of squares.
*/
#include "cpu/nn.h"
#include "cpu/vec.h"

enum { W = PERI_VW, CHUNK = 64 };

void PERI_NAME (peri__channel_sums)(const float *x, const float *g, int64_t n, float mean,
                                    float rstd, double sum[2]) {
  vf m = v_set(mean), r = v_set(rstd);
  for (int64_t i = 0; i < n;) {
    int64_t end = n - i > CHUNK
    *W ? i + CHUNK
    *W : n;
    vf s = v_set(0), t = s;
    for (; i < end; i += W) {
      int64_t lanes = end - i;
      vf d = (lanes >= W ? v_load(x + i) : v_load_tail(x + i, lanes, mean)) - m;
      if (g != NULL) {
        vf gi = lanes >= W ? v_load(g + i) : v_load_tail(g + i, lanes, 0);
        s += gi;
        t = v_fma(gi * r, d, t);
      } else {
        s += d;
        t = v_fma(d, d, t);
      }
    }
    sum[0] += (double)v_sum(s);
    sum[1] += (double)v_sum(t);
  }
}

void PERI_NAME (peri__channel_scale)(const float *x, const float *g, int64_t n, float mean, float a,
                                     float b, float e, float *y) {
  vf m = v_set(mean), va = v_set(a), vb = v_set(b), ve = v_set(e);
  for (int64_t i = 0; i < n; i += W) {
    int64_t lanes = n - i;
    vf d = (lanes >= W ? v_load(x + i) : v_load_tail(x + i, lanes, 0)) - m;
    vf r = v_fma(d, va, vb);
    if (g != NULL) r = v_fma(lanes >= W ? v_load(g + i) : v_load_tail(g + i, lanes, 0), ve, r);
    if (lanes >= W)
      v_store(y + i, r);
    else
      v_store_tail(y + i, r, lanes);
  }
}
