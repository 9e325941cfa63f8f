/*
** test_attention.c - attention, rotary positions and the key-value cache at every SIMD level:
** values and gradients against f64 definitions, and the promise that a query row has the same bits
** in decoding, in training, in any batch, under any padding and with any number of threads.
*/
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "perilune.h"
#include "run_op.h"
#include "memory_of.h"

enum { LEVELS = 3, MOST = 1 << 16 };

static peri_ctx *ctx;
static uint32_t seed;

static peri_ctx *open_level (int level, int threads) {
  peri_ctx *c = NULL;
  peri_options o;
  peri_options_init(&o);
  o.threads = threads;
  o.simd = (peri_simd)(PERI_SIMD_PORTABLE + level);
  peri_open(&o, &c);
  return c; /* NULL: this processor lacks the level */
}

static double uniform (void) { /* -1 to 1 */
  seed = seed * 1664525u + 1013904223u;
  return ((double)(seed >> 8) / 16777216.0 - 0.5) * 2;
}

static peri_tensor *make (peri_dtype d, int ndim, const int64_t *shape, const void *data) {
  peri_tensor *t = NULL;
  assert_int_equal(peri_from(ctx, d, ndim, shape, data, &t), PERI_OK);
  return t;
}

/* Random tensor; the same numbers whatever the dtype (f32 or f64). */
static peri_tensor *random_tensor (peri_dtype d, uint32_t s, int ndim, const int64_t *shape) {
  peri_tensor *t = NULL;
  seed = s;
  assert_int_equal(peri_empty(ctx, d, ndim, shape, &t), PERI_OK);
  for (int64_t i = 0; i < peri_numel(t); i++) {
    float x = (float)uniform();
    if (d == PERI_F64)
      ((double *)peri_data(t))[i] = (double)x;
    else
      ((float *)peri_data(t))[i] = x;
  }
  return t;
}

/* A view of dims [start, start + length) of dim 1 of t, made by hand. */
static peri_tensor *narrow (peri_tensor *t, int dim, int64_t start, int64_t length) {
  peri_tensor *out = NULL;
  peri_attr attr[3] = { { .i = dim }, { .i = start }, { .i = length } };
  assert_int_equal(run_op(ctx, peri_op_find("narrow"), 1, &t, attr, &out), PERI_OK);
  return out;
}

static peri_tensor *swap_1_3 (peri_tensor *t) {
  peri_tensor *out = NULL;
  peri_attr attr[2] = { { .i = 1 }, { .i = 3 } };
  assert_int_equal(run_op(ctx, peri_op_find("transpose"), 1, &t, attr, &out), PERI_OK);
  return out;
}

/* The same keys (B, T, H, D), stored side by side. */
static peri_tensor *by_channel (peri_tensor *k) {
  peri_tensor *swapped = swap_1_3(k), *dense = NULL;
  assert_int_equal(run_op(ctx, peri_op_find("contiguous"), 1, &swapped, NULL, &dense), PERI_OK);
  peri_tensor *out = swap_1_3(dense);
  peri_release(swapped);
  peri_release(dense);
  return out;
}

struct attn {
  int64_t B, Tq, Tk, Hq, Hkv, D;
  bool causal;
  int64_t window, offset; /* offset INT64_MIN: default */
  int mask; /* 0 none, 1 bool (B, Tk), 2 float (1, 1, Tq, Tk), 3 bool (B, Hq, Tq, Tk) */
  bool start;
  double softcap;
  bool each; /* start for each query: segments of a packed row */
};

struct io {
  peri_tensor *q, *k, *v, *mask, *start;
};

static peri_status attention (const struct io *x, const struct attn *c, peri_tensor **out) {
  peri_attr attr[5] = {
    { .i = c->causal }, { .f = NAN }, { .i = c->window }, { .i = c->offset }, { .f = c->softcap }
  };
  peri_tensor *in[5] = { x->q, x->k, x->v, x->mask, x->start };
  return run_op(ctx, peri_op_find("attention"), 5, in, attr, out);
}

static peri_tensor *attend (const struct io *x, const struct attn *c) {
  peri_tensor *out = NULL;
  if (attention(x, c, &out) != PERI_OK) fail_msg("attention: %s", peri_message(ctx));
  return out;
}

static void drop (struct io *x) {
  peri_release(x->q);
  peri_release(x->k);
  peri_release(x->v);
  peri_release(x->mask);
  peri_release(x->start);
}

static struct io inputs (const struct attn *c, peri_dtype d) {
  struct io x = { 0 };
  int64_t qs[4] = { c->B, c->Tq, c->Hq, c->D }, ks[4] = { c->B, c->Tk, c->Hkv, c->D };
  x.q = random_tensor(d, 1, 4, qs);
  x.k = random_tensor(d, 2, 4, ks);
  x.v = random_tensor(d, 3, 4, ks);
  seed = 5;
  if (c->start) {
    int64_t start[16];
    for (int64_t b = 0; b < c->B; b++) start[b] = b % c->Tk;
    x.start = make(PERI_I64, 1, &c->B, start);
  }
  if (c->each) {
    static int64_t start[1024];
    int64_t s[2] = { c->B, c->Tq };
    for (int64_t b = 0; b < c->B; b++) /* a segment ends wherever (i + b) % 11 is 0 */
      for (int64_t i = 0; i < c->Tq; i++)
        start[b * c->Tq + i] = i && (i + b) % 11 ? start[b * c->Tq + i - 1] : i;
    x.start = make(PERI_I64, 2, s, start);
  }
  if (c->mask == 2) {
    int64_t s[4] = { 1, 1, c->Tq, c->Tk };
    x.mask = random_tensor(d, 4, 4, s);
  } else if (c->mask) {
    static uint8_t m[MOST];
    int64_t s[4] = { c->B, c->mask == 1 ? c->Tk : c->Hq, c->Tq, c->Tk }, n = c->B * c->Tk;
    if (c->mask == 3) n *= c->Hq * c->Tq;
    for (int64_t i = 0; i < n; i++) m[i] = uniform() > -0.4;
    x.mask = make(PERI_BOOL, c->mask == 1 ? 2 : 4, s, m);
  }
  return x;
}

/* The definition, in f64. */
static void reference (const struct attn *c, const struct io *x, double *out) {
  static double p[4096];
  const double *q = peri_data(x->q), *k = peri_data(x->k), *v = peri_data(x->v);
  int64_t offset = c->offset == INT64_MIN ? c->Tk - c->Tq : c->offset;
  for (int64_t b = 0; b < c->B; b++)
    for (int64_t i = 0; i < c->Tq; i++)
      for (int64_t h = 0; h < c->Hq; h++) {
        int64_t hk = h / (c->Hq / c->Hkv);
        double max = -INFINITY, sum = 0, *o = out + ((b * c->Tq + i) * c->Hq + h) * c->D;
        for (int64_t j = 0; j < c->Tk; j++) {
          double s = 0;
          for (int64_t d = 0; d < c->D; d++)
            s += q[((b * c->Tq + i) * c->Hq + h) * c->D + d] *
                 k[((b * c->Tk + j) * c->Hkv + hk) * c->D + d];
          s /= sqrt((double)c->D);
          if (c->softcap > 0) s = c->softcap * tanh(s / c->softcap);
          if (c->causal && j > i + offset) s = -INFINITY;
          if (c->window && j <= i + offset - c->window) s = -INFINITY;
          if (x->start && j < ((const int64_t *)peri_data(x->start))[c->each ? b * c->Tq + i : b])
            s = -INFINITY;
          if (c->mask == 1 && !((const uint8_t *)peri_data(x->mask))[b * c->Tk + j]) s = -INFINITY;
          if (c->mask == 2) s += ((const double *)peri_data(x->mask))[i * c->Tk + j];
          if (c->mask == 3 &&
              !((const uint8_t *)peri_data(x->mask))[((b * c->Hq + h) * c->Tq + i) * c->Tk + j])
            s = -INFINITY;
          p[j] = s;
          max = s > max ? s : max;
        }
        for (int64_t j = 0; j < c->Tk; j++) sum += p[j] = max > -INFINITY ? exp(p[j] - max) : 0;
        for (int64_t d = 0; d < c->D; d++) {
          o[d] = 0;
          for (int64_t j = 0; j < c->Tk; j++)
            if (p[j] > 0) o[d] += p[j] / sum * v[((b * c->Tk + j) * c->Hkv + hk) * c->D + d];
        }
      }
}

static const struct attn cases[] = {
  { 2, 5, 5, 2, 2, 8, true, 0, INT64_MIN, 0, false, 0, false },
  { 1, 1, 1, 1, 1, 1, false, 0, INT64_MIN, 0, false, 0, false },
  { 2, 7, 9, 4, 2, 16, false, 0, INT64_MIN, 0, false, 0, false },
  { 3, 33, 33, 4, 1, 32, true, 0, INT64_MIN, 0, true, 0, false },
  { 2, 6, 40, 2, 2, 20, true, 0, INT64_MIN, 0, true, 0, false },
  { 2, 64, 64, 2, 2, 32, true, 16, INT64_MIN, 0, false, 0, false },
  { 2, 19, 64, 6, 3, 24, true, 5, INT64_MIN, 0, true, 0, false },
  { 1, 150, 300, 2, 1, 64, true, 0, INT64_MIN, 0, false, 0, false },
  { 1, 140, 270, 3, 3, 16, true, 130, INT64_MIN, 0, true, 0, false },
  { 2, 9, 300, 2, 1, 64, false, 0, INT64_MIN, 1, true, 0, false },
  { 2, 17, 23, 4, 2, 12, true, 0, INT64_MIN, 1, false, 0, false },
  { 2, 17, 23, 4, 2, 12, true, 0, INT64_MIN, 2, false, 0, false },
  { 2, 9, 140, 2, 1, 33, false, 0, INT64_MIN, 3, false, 0, false },
  { 2, 12, 12, 2, 2, 8, true, 0, -4, 0, false, 0, false }, /* the first rows see nothing */
  { 2, 12, 12, 2, 2, 8, true, 0, 5, 0, false, 0, false },
  { 3, 1, 37, 6, 2, 32, true, 0, INT64_MIN, 0, true, 0, false },
  { 3, 1, 290, 5, 5, 40, true, 0, INT64_MIN, 1, true, 0, false },
  { 3, 1, 290, 7, 1, 64, true, 140, INT64_MIN, 0, true, 0, false },
  { 2, 17, 23, 4, 2, 12, true, 0, INT64_MIN, 2, false, 0.7, false },
  { 2, 6, 140, 2, 2, 20, true, 50, INT64_MIN, 0, true, 0.3, false },
  { 3, 1, 37, 6, 2, 32, true, 0, INT64_MIN, 0, true, 1.5, false },
  { 2, 70, 70, 4, 2, 24, true, 0, INT64_MIN, 0, false, 0, true },
  { 2, 40, 40, 3, 3, 16, true, 7, INT64_MIN, 0, false, 0.5, true },
};

static void close_to (const peri_tensor *got, const double *want, double tol, const char *what,
                      size_t n) {
  const float *x = peri_data(got);
  for (int64_t i = 0; i < peri_numel(got); i++)
    if (!(fabs((double)x[i] - want[i]) <= tol * (1 + fabs(want[i]))))
      fail_msg("case %zu, %s of %s: element %lld is %.9g, expected %.9g", n, what,
               peri_simd_name(ctx), (long long)i, (double)x[i], want[i]);
}

/* Each probability carries the rounding of a dot product of D and of exp: 1e-6 leaves a factor of
** about four; gradients sum over keys and rows. */
static void values_and_gradients (void **state) {
  (void)state;
  static double want[MOST];
  for (int level = 0; level < LEVELS; level++) {
    if (!(ctx = open_level(level, 2))) continue;
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
      const struct attn *c = &cases[n];
      struct io x = inputs(c, PERI_F32), y = inputs(c, PERI_F64);
      peri_tensor *grad[2][3], *out[2], *g[2];
      reference(c, &y, want);
      for (int i = 0; i < 2; i++) {
        struct io *in = i ? &y : &x;
        peri_tensor *wrt[3] = { in->q, in->k, in->v };
        for (int k = 0; k < 3; k++) peri_set_requires_grad(wrt[k], true);
        out[i] = attend(in, c);
        g[i] = random_tensor(i ? PERI_F64 : PERI_F32, 9, 4, peri_shape(out[i]));
        if (peri_gradients(ctx, out[i], g[i], 3, wrt, false, grad[i]) != PERI_OK)
          fail_msg("%s", peri_message(ctx));
      }
      close_to(out[0], want, 1e-6, "output", n);
      for (int64_t i = 0; i < peri_numel(out[1]); i++)
        assert_true(fabs(((double *)peri_data(out[1]))[i] - want[i]) <= 1e-13);
      for (int k = 0; k < 3; k++) {
        static const char *const names[] = { "dq", "dk", "dv" };
        close_to(grad[0][k], peri_data(grad[1][k]), 4e-6, names[k], n);
      }
      for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 3; k++) peri_release(grad[i][k]);
        peri_release(out[i]);
        peri_release(g[i]);
      }
      drop(&x);
      drop(&y);
    }
    assert_int_equal(memory_of(ctx).tensors, 0);
    peri_close(ctx);
  }
}

/* Central differences of the f64 path along one random direction for each input. */
static void gradients_are_slopes (void **state) {
  (void)state;
  ctx = open_level(0, 1);
  for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
    const struct attn *c = &cases[n];
    struct io x = inputs(c, PERI_F64);
    peri_tensor *wrt[3] = { x.q, x.k, x.v }, *grad[3], *out;
    for (int k = 0; k < 3; k++) peri_set_requires_grad(wrt[k], true);
    out = attend(&x, c);
    peri_tensor *g = random_tensor(PERI_F64, 9, 4, peri_shape(out));
    assert_int_equal(peri_gradients(ctx, out, g, 3, wrt, false, grad), PERI_OK);
    peri_release(out);
    peri_set_grad_enabled(ctx, false);
    for (int k = 0; k < 3; k++) {
      double slope[2] = { 0, 0 }, along = 0, h = 1e-5, *p = peri_data(wrt[k]);
      peri_tensor *dir = random_tensor(PERI_F64, 11, 4, peri_shape(wrt[k]));
      const double *d = peri_data(dir);
      for (int64_t i = 0; i < peri_numel(dir); i++)
        along += d[i] * ((double *)peri_data(grad[k]))[i];
      for (int side = 0; side < 2; side++) {
        double step = side ? h : -h;
        for (int64_t i = 0; i < peri_numel(dir); i++) p[i] += step * d[i];
        out = attend(&x, c);
        for (int64_t i = 0; i < peri_numel(out); i++)
          slope[side] += ((double *)peri_data(out))[i] * ((double *)peri_data(g))[i];
        for (int64_t i = 0; i < peri_numel(dir); i++) p[i] -= step * d[i];
        peri_release(out);
      }
      double found = (slope[1] - slope[0]) / (2 * h);
      if (fabs(found - along) > 1e-7 * (1 + fabs(along)))
        fail_msg("case %zu, input %d: slope %.12g, gradient %.12g", n, k, found, along);
      peri_release(dir);
    }
    peri_set_grad_enabled(ctx, true);
    for (int k = 0; k < 3; k++) peri_release(grad[k]);
    peri_release(g);
    drop(&x);
  }
  peri_close(ctx);
}

/* Token t of a sequence of T computed alone, from a cache with room behind it and with left padding
** before it, against the whole sequence in one pass. */
static void decoding_equals_training (void **state) {
  static const int64_t dims[][4] = {
    { 40, 2, 2, 32 }, { 150, 4, 2, 64 }, { 290, 3, 1, 24 }, { 70, 8, 8, 16 }
  };
  (void)state;
  for (int level = 0; level < LEVELS; level++) {
    if (!(ctx = open_level(level, 2))) continue;
    for (size_t n = 0; n < sizeof dims / sizeof *dims; n++)
      for (int64_t window = 0; window <= 37; window += 37)
        for (int64_t pad = 0; pad <= 13; pad += 13) {
          int64_t T = dims[n][0], Hq = dims[n][1], Hkv = dims[n][2], D = dims[n][3],
                  room = T + pad + 7;
          struct attn whole = { 1, T, T, Hq, Hkv, D, true, window, INT64_MIN, 0, false, 0, false },
                      one = whole;
          struct io x = inputs(&whole, PERI_F32), y = { 0 };
          peri_tensor *full = attend(&x, &whole), *ck, *cv, *layout[2];
          struct io other = { .q = x.q, .k = by_channel(x.k), .v = x.v };
          peri_tensor *again = attend(&other, &whole);
          assert_memory_equal(peri_data(again), peri_data(full), (size_t)(T * Hq * D) * 4);
          peri_release(again);
          peri_release(other.k);
          int64_t shape[4] = { 2, room, Hkv, D }, qs[4] = { 2, 1, Hq, D }, start[2] = { 0, pad },
                  two = 2;
          ck = random_tensor(PERI_F32, 77, 4, shape);
          cv = random_tensor(PERI_F32, 78, 4, shape);
          y.start = make(PERI_I64, 1, &two, start);
          float *k = peri_data(ck), *v = peri_data(cv);
          for (int64_t i = 0; i < pad * Hkv * D; i++)
            k[room * Hkv * D + i] = v[room * Hkv * D + i] = NAN;
          memcpy(k + (room + pad) * Hkv * D, peri_data(x.k), (size_t)(T * Hkv * D) * sizeof *k);
          memcpy(v + (room + pad) * Hkv * D, peri_data(x.v), (size_t)(T * Hkv * D) * sizeof *v);
          one.B = 2;
          layout[0] = ck, layout[1] = by_channel(ck);
          for (int64_t t = 0, odd = 0; t < T; t += odd ? 1 + t / 5 : 0, odd = !odd) {
            y.q = random_tensor(PERI_F32, 5, 4, qs);
            memcpy((float *)peri_data(y.q) + Hq * D, (float *)peri_data(x.q) + t * Hq * D,
                   (size_t)(Hq * D) * sizeof *k);
            y.k = narrow(layout[odd], 1, 0, pad + t + 1);
            y.v = narrow(cv, 1, 0, pad + t + 1);
            peri_tensor *out = attend(&y, &one);
            assert_memory_equal((float *)peri_data(out) + Hq * D,
                                (float *)peri_data(full) + t * Hq * D,
                                (size_t)(Hq * D) * sizeof *k);
            peri_release(out);
            peri_release(y.q);
            peri_release(y.k);
            peri_release(y.v);
          }
          peri_release(y.start);
          peri_release(ck);
          peri_release(layout[1]);
          peri_release(cv);
          peri_release(full);
          drop(&x);
        }
    assert_int_equal(memory_of(ctx).tensors, 0);
    peri_close(ctx);
  }
}

/* What one batch entry gives does not depend on the others, on padding, suffix or threads. */
static void rows_do_not_depend_on_company (void **state) {
  enum { T = 150, H = 4, D = 32, PAD = 21 };
  (void)state;
  for (int level = 0; level < LEVELS; level++) {
    static float alone[T * H * D];
    for (int threads = 1; threads <= 2; threads++) {
      if (!(ctx = open_level(level, threads))) continue;
      struct attn c = { 1, T, T, H, 2, D, true, 0, INT64_MIN, 0, false, 0, false },
                  many = { 5, T + PAD, T + PAD, H, 2, D, true, 0, INT64_MIN, 0, false, 0, false };
      struct io x = inputs(&c, PERI_F32), y = inputs(&many, PERI_F32);
      peri_tensor *out = attend(&x, &c);
      if (threads == 1)
        memcpy(alone, peri_data(out), sizeof alone);
      else
        assert_memory_equal(alone, peri_data(out), sizeof alone);
      peri_release(out);
      int64_t start[5] = { 3, PAD, 0, 60, 0 }, five = 5;
      y.start = make(PERI_I64, 1, &five, start);
      for (int side = 0; side < 2; side++) { /* entry 1 behind padding, entry 2 before a suffix */
        int64_t at = side ? 2 * (T + PAD) : T + 2 * PAD;
        memcpy((float *)peri_data(y.q) + at * H * D, peri_data(x.q), sizeof alone);
        memcpy((float *)peri_data(y.k) + at * 2 * D, peri_data(x.k), sizeof alone / 2);
        memcpy((float *)peri_data(y.v) + at * 2 * D, peri_data(x.v), sizeof alone / 2);
      }
      out = attend(&y, &many);
      assert_memory_equal(alone, (float *)peri_data(out) + (T + 2 * PAD) * H * D, sizeof alone);
      assert_memory_equal(alone, (float *)peri_data(out) + 2 * (T + PAD) * H * D, sizeof alone);
      for (int64_t i = 0; i < PAD * H * D; i++) /* rows of padding see nothing */
        assert_true(((float *)peri_data(out))[(T + PAD) * H * D + i] == 0);
      peri_release(out);
      drop(&x);
      drop(&y);
      peri_close(ctx);
    }
  }
}

/* q, k, v as slices of one projection, without copies, equal dense ones bit for bit. */
static void strided_inputs (void **state) {
  (void)state;
  ctx = open_level(0, 2);
  struct attn c = { 2, 9, 9, 3, 3, 8, true, 0, INT64_MIN, 0, false, 0, false };
  int64_t shape[4] = { 2, 9, 9, 8 };
  peri_tensor *qkv = random_tensor(PERI_F32, 1, 4, shape), *out[2];
  struct io x = { narrow(qkv, 2, 0, 3), narrow(qkv, 2, 3, 3), narrow(qkv, 2, 6, 3), NULL, NULL },
            y = { 0 };
  const peri_op *dense = peri_op_find("contiguous");
  assert_int_equal(run_op(ctx, dense, 1, &x.q, NULL, &y.q), PERI_OK);
  assert_int_equal(run_op(ctx, dense, 1, &x.k, NULL, &y.k), PERI_OK);
  assert_int_equal(run_op(ctx, dense, 1, &x.v, NULL, &y.v), PERI_OK);
  out[0] = attend(&x, &c);
  out[1] = attend(&y, &c);
  assert_memory_equal(peri_data(out[0]), peri_data(out[1]), (size_t)peri_numel(out[0]) * 4);
  peri_release(out[0]);
  peri_release(out[1]);
  peri_release(qkv);
  drop(&x);
  drop(&y);
  peri_close(ctx);
}

static void bad_shapes_are_refused (void **state) {
  (void)state;
  ctx = open_level(0, 1);
  struct attn c = { 2, 4, 6, 4, 2, 8, false, 0, INT64_MIN, 0, false, 0, false };
  struct io x = inputs(&c, PERI_F32), bad = x;
  peri_tensor *out = NULL;
  bad.k = bad.q;
  assert_int_equal(attention(&bad, &c, &out), PERI_ESHAPE);
  assert_non_null(strstr(peri_message(ctx), "(2, 4, 4, 8)"));
  bad = x;
  bad.mask = x.q;
  assert_int_equal(attention(&bad, &c, &out), PERI_ESHAPE);
  c.window = -1;
  assert_int_equal(attention(&x, &c, &out), PERI_EINVAL);
  assert_null(out);
  drop(&x);
  peri_close(ctx);
}

/* ---- rope, cache ---- */

static void rope_turns_pairs (void **state) {
  enum { B = 2, T = 5, H = 3, D = 20, N = 8 };
  (void)state;
  for (int level = 0; level < LEVELS; level++) {
    if (!(ctx = open_level(level, 2))) continue;
    for (int mode = 0; mode < 8; mode++) {
      bool inter = mode & 1, batch = mode & 2, far = mode & 4;
      int64_t shape[4] = { B, T, H, D }, ps[2] = { B, T }, pos[B * T], n = N;
      float freq[N];
      for (int i = 0; i < B * T; i++) pos[i] = far ? 1000 * i : i % 7;
      for (int i = 0; i < N; i++) freq[i] = (float)pow(10000, -i / (double)N);
      peri_tensor *x = random_tensor(PERI_F32, 1, 4, shape), *y = NULL, *z = NULL;
      peri_tensor *in[3] = { x, make(PERI_I64, batch ? 2 : 1, batch ? ps : ps + 1, pos),
                             make(PERI_F32, 1, &n, freq) };
      peri_attr attr[3] = { { .i = inter }, { .f = 1 }, { .i = 0 } };
      assert_int_equal(run_op(ctx, peri_op_find("rope"), 3, in, attr, &y), PERI_OK);
      const float *px = peri_data(x), *py = peri_data(y);
      for (int64_t r = 0; r < B * T * H; r++)
        for (int64_t i = 0; i < D; i++) {
          int64_t k = inter ? i / 2 : i % N, a = r * D + (inter ? 2 * k : k),
                  b = r * D + (inter ? 2 * k + 1 : N + k);
          double angle = (double)((float)pos[batch ? r / H : r / H % T] * freq[k < N ? k : 0]),
                 want = px[r * D + i];
          bool second = inter ? i % 2 : i >= N;
          if (i < 2 * N)
            want = second ? px[b] * cos(angle) + px[a] * sin(angle)
                          : px[a] * cos(angle) - px[b] * sin(angle);
          assert_true(fabs(want - (double)py[r * D + i]) <= 3e-7);
        }
      attr[2].i = 1;
      in[0] = y;
      assert_int_equal(run_op(ctx, peri_op_find("rope"), 3, in, attr, &z), PERI_OK);
      for (int64_t i = 0; i < peri_numel(z); i++)
        assert_true(fabsf(((float *)peri_data(z))[i] - px[i]) <= 5e-7f);
      peri_release(x);
      peri_release(y);
      peri_release(z);
      peri_release(in[1]);
      peri_release(in[2]);
    }
    peri_close(ctx);
  }
}

static void cache_takes_tokens (void **state) {
  (void)state;
  ctx = open_level(0, 1);
  int64_t room[4] = { 2, 6, 2, 3 }, two[4] = { 2, 2, 2, 3 };
  peri_tensor *in[4] = { random_tensor(PERI_F32, 1, 4, room), random_tensor(PERI_F32, 2, 4, room),
                         random_tensor(PERI_F32, 3, 4, two), random_tensor(PERI_F32, 4, 4, two) };
  peri_attr pos = { .i = 4 };
  const peri_op *op = peri_op_find("kv_append_");
  assert_int_equal(run_op(ctx, op, 4, in, &pos, NULL), PERI_OK);
  for (int i = 0; i < 2; i++)
    for (int b = 0; b < 2; b++)
      assert_memory_equal((float *)peri_data(in[i]) + (b * 6 + 4) * 6,
                          (float *)peri_data(in[i + 2]) + b * 12, 12 * 4);
  pos.i = 5;
  assert_int_equal(run_op(ctx, op, 4, in, &pos, NULL), PERI_EINVAL);
  for (int i = 0; i < 4; i++) peri_release(in[i]);
  peri_close(ctx);
}

/* attention_step_ on one token after another against rope_qkv and attention on all of them. */
static void one_op_is_a_whole_step (void **state) {
  enum { B = 2, T = 9, H = 4, KV = 2, D = 12 };
  (void)state;
  for (int level = 0; level < 2 * LEVELS; level++) { /* keys by time, keys by channel */
    if (!(ctx = open_level(level / 2, 2))) continue;
    int64_t shape[4] = { B, T, H + 2 * KV, D }, room[4] = { B, T + 3, KV, D }, two = 2, n = D / 2,
            time = T, pos[T];
    int64_t start[B] = { 0, 4 };
    float freq[D / 2] = { 1, 0.6f, 0.3f, 0.1f, 0.05f, 0.01f };
    for (int t = 0; t < T; t++) pos[t] = t;
    peri_tensor *all[3] = { random_tensor(PERI_F32, 3, 4, shape), make(PERI_I64, 1, &time, pos),
                            make(PERI_F32, 1, &n, freq) };
    struct attn c = { B, T, T, H, KV, D, true, 0, INT64_MIN, 0, true, 0, false };
    struct io x = { .start = make(PERI_I64, 1, &two, start) };
    peri_tensor *part[3],
        *cache[2] = { random_tensor(PERI_F32, 4, 4, room), random_tensor(PERI_F32, 5, 4, room) };
    if (level % 2) {
      peri_tensor *k = by_channel(cache[0]);
      peri_release(cache[0]);
      cache[0] = k;
    }
    peri_attr split[5] = { { .i = H }, { .i = KV }, { .i = 0 }, { .f = 1 }, { .i = 0 } };
    assert_int_equal(run_op(ctx, peri_op_find("rope_qkv"), 3, all, split, part), PERI_OK);
    x.q = part[0], x.k = part[1], x.v = part[2];
    peri_tensor *full = attend(&x, &c);
    for (int64_t t = 0; t < T; t++) {
      peri_tensor *one = narrow(all[0], 1, t, 1), *at = narrow(all[1], 0, t, 1), *out = NULL;
      peri_tensor *in[6] = { cache[0], cache[1], one, at, all[2], x.start };
      peri_attr attr[6] = {
        { .i = t }, { .i = 0 }, { .f = 1 }, { .f = NAN }, { .i = 0 }, { .f = 0 }
      };
      if (run_op(ctx, peri_op_find("attention_step_"), 6, in, attr, &out) != PERI_OK)
        fail_msg("%s", peri_message(ctx));
      for (int b = 0; b < B; b++)
        assert_memory_equal((float *)peri_data(out) + b * H * D,
                            (float *)peri_data(full) + (b * T + t) * H * D, H * D * 4);
      peri_release(out);
      peri_release(one);
      peri_release(at);
    }
    for (int i = 0; i < 3; i++) peri_release(all[i]);
    for (int i = 0; i < 2; i++) peri_release(cache[i]);
    peri_release(full);
    drop(&x);
    assert_int_equal(memory_of(ctx).tensors, 0);
    peri_close(ctx);
  }
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(values_and_gradients),     cmocka_unit_test(gradients_are_slopes),
    cmocka_unit_test(decoding_equals_training), cmocka_unit_test(rows_do_not_depend_on_company),
    cmocka_unit_test(strided_inputs),           cmocka_unit_test(bad_shapes_are_refused),
    cmocka_unit_test(rope_turns_pairs),         cmocka_unit_test(cache_takes_tokens),
    cmocka_unit_test(one_op_is_a_whole_step),
  };
  return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
