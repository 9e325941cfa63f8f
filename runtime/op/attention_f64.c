/*
** attention_f64.c - attention and its gradient in plain f64 loops: the specification of the fast
** kernels and what gradient checks run.
*/
#include <math.h>
#include <string.h>

#include "cpu/nn.h"

struct head { /* of one batch entry */
  const struct peri__attn *a;
  int64_t b, h, hk;
};

static const double *at (const float *p, const int64_t *stride, int64_t b, int64_t t, int64_t h) {
  return (const double *)(const void *)p + b * stride[0] + t * stride[1] + h * stride[2];
}

static void range (const struct head *x, int64_t i, int64_t *lo, int64_t *hi) {
  const struct peri__attn *a = x->a;
  int64_t last = i + a->offset + 1;
  int64_t start = a->start ? a->start[a->start_each ? x->b * a->Tq + i : x->b] : 0;
  start = start < 0 ? 0 : start > a->Tk ? a->Tk : start;
  *hi = a->causal && last < a->Tk ? last : a->Tk;
  *lo = a->window > 0 && last - a->window > start ? last - a->window : start;
}

/* Scaled, capped and masked score of query i and key j, one of its visible range. slope?: its
** derivative by q k. */
static double score (const struct head *x, int64_t i, int64_t j, double *slope) {
  const struct peri__attn *a = x->a;
  const double *q = at(a->q, a->qs, x->b, i, x->h), *k = at(a->k, a->ks, x->b, j, x->hk);
  double s = 0, bias = 0;
  if (a->mask_kind) {
    int64_t m = x->b * a->ms[0] + x->h * a->ms[1] + i * a->ms[2] + j * a->ms[3];
    if (a->mask_kind == PERI_ATTN_ADD)
      bias = ((const double *)a->mask)[m];
    else if (!((const uint8_t *)a->mask)[m])
      bias = -INFINITY;
    if (slope) *slope = 0;
    if (bias == -INFINITY) return bias; /* hidden, whatever q and k hold */
  }
  for (int64_t d = 0; d < a->D; d++) s += q[d] * k[d];
  s *= a->scale_f64;
  if (slope) *slope = a->scale_f64;
  if (a->cap_f64 > 0) {
    double y = tanh(s / a->cap_f64);
    s = a->cap_f64 * y;
    if (slope) *slope *= 1 - y * y;
  }
  return s + bias;
}

static struct head head_of (const struct peri__attn *a, int64_t unit) {
  return (struct head){ .a = a, .b = unit / a->Hkv, .hk = unit % a->Hkv };
}

void peri__attn_f64 (const struct peri__attn *a, int64_t unit) {
  struct head x = head_of(a, unit);
  int64_t G = a->Hq / a->Hkv, lo, hi;
  for (x.h = x.hk * G; x.h < (x.hk + 1) * G; x.h++)
    for (int64_t i = 0; i < a->Tq; i++) {
      if (peri__attn_stopped(a)) return;
      double *out = (double *)(void *)a->out + ((x.b * a->Tq + i) * a->Hq + x.h) * a->D;
      double max = -INFINITY, sum = 0;
      range(&x, i, &lo, &hi);
      for (int64_t j = lo; j < hi; j++) max = fmax(max, score(&x, i, j, NULL));
      memset(out, 0, (size_t)a->D * sizeof *out);
      for (int64_t j = lo; j < hi && max > -INFINITY; j++) {
        const double *v = at(a->v, a->vs, x.b, j, x.hk);
        double p = exp(score(&x, i, j, NULL) - max);
        if (p == 0 && a->mask_kind) continue;
        sum += p;
        for (int64_t d = 0; d < a->D; d++) out[d] += p * v[d];
      }
      for (int64_t d = 0; d < a->D && sum > 0; d++) out[d] /= sum;
      ((double *)(void *)a->lse)[(x.b * a->Hq + x.h) * a->Tq + i] = max + log(sum);
    }
}

void peri__attn_back_f64 (const struct peri__attn *a, int64_t unit) {
  struct head x = head_of(a, unit);
  int64_t G = a->Hq / a->Hkv, lo, hi, D = a->D;
  double *dq0 = (double *)(void *)a->dq, *dk0 = (double *)(void *)a->dk,
         *dv0 = (double *)(void *)a->dv, *dmask = (double *)(void *)a->dmask;
  for (int64_t j = 0; j < a->Tk; j++) {
    memset(dk0 + ((x.b * a->Tk + j) * a->Hkv + x.hk) * D, 0, (size_t)D * sizeof *dk0);
    memset(dv0 + ((x.b * a->Tk + j) * a->Hkv + x.hk) * D, 0, (size_t)D * sizeof *dv0);
  }
  for (x.h = x.hk * G; x.h < (x.hk + 1) * G; x.h++)
    for (int64_t i = 0; i < a->Tq; i++) {
      if (peri__attn_stopped(a)) return;
      int64_t row = ((x.b * a->Tq + i) * a->Hq + x.h) * D;
      const double *g = (const double *)(const void *)a->g + row,
                   *out = (const double *)(void *)a->out + row;
      const double *q = at(a->q, a->qs, x.b, i, x.h);
      double *dq = dq0 + row, delta = 0,
             lse = ((const double *)(void *)a->lse)[(x.b * a->Hq + x.h) * a->Tq + i];
      memset(dq, 0, (size_t)D * sizeof *dq);
      for (int64_t d = 0; d < D; d++) delta += g[d] * out[d];
      range(&x, i, &lo, &hi);
      for (int64_t j = lo; j < hi && lse > -INFINITY; j++) {
        const double *k = at(a->k, a->ks, x.b, j, x.hk), *v = at(a->v, a->vs, x.b, j, x.hk);
        double *dk = dk0 + ((x.b * a->Tk + j) * a->Hkv + x.hk) * D,
               *dv = dv0 + ((x.b * a->Tk + j) * a->Hkv + x.hk) * D;
        double slope, p = exp(score(&x, i, j, &slope) - lse), dp = 0;
        if (p == 0 && a->mask_kind) continue;
        for (int64_t d = 0; d < D; d++) dp += g[d] * v[d];
        double dx = p * (dp - delta), ds = dx * slope;
        if (dmask) dmask[((x.b * a->Hq + x.h) * a->Tq + i) * a->Tk + j] = dx;
        for (int64_t d = 0; d < D; d++) {
          dv[d] += p * g[d];
          dk[d] += ds * q[d];
          dq[d] += ds * k[d];
        }
      }
    }
}
