/*
** recurrent_f64.c - LSTM and GRU layers in plain f64 loops: the specification of the fast kernels and
** what gradient checks run.
*/
#include <math.h>
#include <string.h>

#include "cpu/recurrent.h"

typedef struct job {
  const struct peri__recurrent *r;
  const peri_ctx *ctx;
} job;

static double sigmoid (double x) { return x < 0 ? exp(x) / (1 + exp(x)) : 1 / (1 + exp(-x)); }

/* Unit j of the state that a step begins with. saved: of that number among those of a step, -1 = h. */
static double former (const struct peri__recurrent *r, int64_t b, int64_t from, int64_t j,
                      int saved) {
  const double *initial = saved < 0 ? r->h0 : r->c0;
  if (from == PERI_FROM_ZERO) return 0;
  if (from == PERI_FROM_INITIAL) return initial != NULL ? initial[b * r->H + j] : 0;
  int64_t step = b * r->T + from;
  if (saved < 0) return ((const double *)r->y)[step * r->H + j];
  return ((const double *)r->saved)[(step * peri__cell_saves(r->kind) + saved) * r->H + j];
}

static void cell (const struct peri__recurrent *r, int64_t b, int64_t t, int64_t j) {
  const int64_t H = r->H, from = peri__step_before(r, b, t), gates = peri__cell_gates(r->kind);
  const double *w = r->w;
  double *s = (double *)r->saved + (b * r->T + t) * peri__cell_saves(r->kind) * H + j;
  double *y = (double *)r->y + (b * r->T + t) * H + j, wh[4] = { 0 };
  for (int64_t g = 0; g < gates; g++)
    for (int64_t k = 0; k < H; k++) wh[g] += w[(g * H + j) * H + k] * former(r, b, from, k, -1);
  if (r->kind == PERI_LSTM) {
    double in = sigmoid(s[0] + wh[0]), forget = sigmoid(s[H] + wh[1]), g = tanh(s[2 * H] + wh[2]);
    double out = sigmoid(s[3 * H] + wh[3]), c = forget * former(r, b, from, j, 4) + in * g;
    s[0] = in, s[H] = forget, s[2 * H] = g, s[3 * H] = out, s[4 * H] = c;
    *y = out * tanh(c);
  } else {
    double q = wh[2] + (r->bias_n != NULL ? ((const double *)r->bias_n)[j] : 0);
    double reset = sigmoid(s[0] + wh[0]), z = sigmoid(s[H] + wh[1]), n = tanh(s[2 * H] + reset * q);
    s[0] = reset, s[H] = z, s[2 * H] = n, s[3 * H] = q;
    *y = (1 - z) * n + z * former(r, b, from, j, -1);
  }
}

static void rows_forward (void *ud, int64_t begin, int64_t end, int worker) {
  const struct peri__recurrent *r = ((const job *)ud)->r;
  (void)worker;
  for (int64_t b = begin; b < end; b++)
    for (int64_t i = 0, n = peri__row_steps(r, b); i < n && !peri__stopped(((const job *)ud)->ctx);
         i++)
      for (int64_t j = 0; j < r->H; j++) cell(r, b, r->reverse ? n - 1 - i : i, j);
}

/* The gradients gh and gc of the state behind a step become those of the state before it. */
static void cell_back (const struct peri__recurrent *r, int64_t b, int64_t t, double *gh,
                       double *gc) {
  const int64_t H = r->H, from = peri__step_before(r, b, t), gates = peri__cell_gates(r->kind);
  const int64_t step = b * r->T + t;
  const double *s = (const double *)r->saved + step * peri__cell_saves(r->kind) * H;
  double *dx = (double *)r->dx + step * gates * H, *before = (double *)r->before + step * H;
  double *dh = r->dh != NULL ? (double *)r->dh + step * gates * H : dx;
  for (int64_t j = 0; j < H; j++, s++, dx++) {
    double g = gh[j] + (r->gy != NULL ? ((const double *)r->gy)[step * H + j] : 0);
    before[j] = former(r, b, from, j, -1);
    if (r->kind == PERI_LSTM) {
      double in = s[0], forget = s[H], n = s[2 * H], out = s[3 * H], th = tanh(s[4 * H]);
      double dc = g * out * (1 - th * th) + gc[j];
      dx[0] = dc * n * in * (1 - in);
      dx[H] = dc * former(r, b, from, j, 4) * forget * (1 - forget);
      dx[2 * H] = dc * in * (1 - n * n);
      dx[3 * H] = g * th * out * (1 - out);
      gh[j] = 0;
      gc[j] = dc * forget;
    } else {
      double reset = s[0], z = s[H], n = s[2 * H], q = s[3 * H], dn = g * (1 - z) * (1 - n * n);
      dx[0] = dh[j] = dn * q * reset * (1 - reset);
      dx[H] = dh[H + j] = g * (before[j] - n) * z * (1 - z);
      dx[2 * H] = dn;
      dh[2 * H + j] = dn * reset;
      gh[j] = g * z;
    }
  }
  for (int64_t i = 0; i < gates * H; i++)
    for (int64_t j = 0; j < H; j++) gh[j] += dh[i] * ((const double *)r->w)[i * H + j];
  if (from != PERI_FROM_ZERO) return;
  memset(gh, 0, (size_t)H * sizeof *gh);
  if (r->kind == PERI_LSTM) memset(gc, 0, (size_t)H * sizeof *gc);
}

static void rows_backward (void *ud, int64_t begin, int64_t end, int worker) {
  const struct peri__recurrent *r = ((const job *)ud)->r;
  const size_t row = (size_t)r->H * sizeof(double);
  (void)worker;
  for (int64_t b = begin; b < end; b++) {
    double *gh = (double *)r->dh0 + b * r->H, *gc = NULL;
    memset(gh, 0, row);
    if (r->ghn != NULL) memcpy(gh, (const double *)r->ghn + b * r->H, row);
    if (r->kind == PERI_LSTM) {
      gc = (double *)r->dc0 + b * r->H;
      memset(gc, 0, row);
      if (r->gcn != NULL) memcpy(gc, (const double *)r->gcn + b * r->H, row);
    }
    for (int64_t i = 0, n = peri__row_steps(r, b); i < n && !peri__stopped(((const job *)ud)->ctx);
         i++)
      cell_back(r, b, r->reverse ? i : n - 1 - i, gh, gc);
  }
}

void peri__recurrent_f64 (peri_ctx *ctx, const struct peri__recurrent *r, bool backward) {
  job j = { r, ctx };
  int64_t work = r->T * r->H * r->H * 4;
  peri__parallel(ctx, r->B, work > 0 ? 1 + 32768 / work : 1,
                 backward ? rows_backward : rows_forward, &j);
}
