/*
** test_layers.c - softmax, norms, gated activations and dropout at every SIMD level: f32 against
** the same op in f64, the same bits for a row in any batch and with any number of threads, edges.
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

enum { LEVELS = 3, MAX_IN = 5 };

static peri_ctx *ctx;

static peri_ctx *open_level (int level, int threads) {
  peri_ctx *c = NULL;
  peri_options o;
  peri_options_init(&o);
  o.threads = threads;
  o.simd = (peri_simd)(PERI_SIMD_PORTABLE + level);
  peri_open(&o, &c);
  return c; /* NULL: this processor lacks the level */
}

/* Shape and the same pseudo-random numbers, -2 to 2, in either dtype; rank 0: no tensor. */
struct in {
  int ndim;
  int64_t shape[4];
};

static peri_tensor *make (peri_dtype d, uint32_t seed, const struct in *x) {
  peri_tensor *t = NULL;
  if (x->ndim == 0) return NULL;
  assert_int_equal(peri_empty(ctx, d, x->ndim, x->shape, &t), PERI_OK);
  for (int64_t i = 0; i < peri_numel(t); i++) {
    seed = seed * 1664525u + 1013904223u;
    float v = ((float)(seed >> 8) * 0x1p-24f - 0.5f) * 4;
    if (d == PERI_F64)
      ((double *)peri_data(t))[i] = (double)v;
    else
      ((float *)peri_data(t))[i] = v;
  }
  return t;
}

struct call {
  const char *op;
  struct in in[MAX_IN];
  int nin;
  peri_attr attr[2];
};

static void run (const struct call *c, peri_tensor **in, peri_tensor **out) {
  const peri_op *op = peri_op_find(c->op);
  assert_non_null(op);
  if (run_op(ctx, op, c->nin, in, c->attr, out) != PERI_OK)
    fail_msg("%s: %s", c->op, peri_message(ctx));
}

static const int64_t widths[] = { 1, 3, 16, 31, 128, 344, 1000 };

/* The calls of one width n, rows of (R, n). */
static int calls (int64_t rows, int64_t n, struct call *c) {
  struct in x = { 2, { rows, n } }, w = { 1, { n } }, half = { 2, { rows, n } },
            two = { 2, { rows, 2 * n } }, no = { 0 };
  struct in slab = { 3, { 2, n, rows } };
  peri_attr last = { .i = -1 }, mid = { .i = 1 }, eps = { .f = 1e-5 }, yes = { .i = 1 },
            act = { .s = "silu" };
  struct call list[] = {
    { "softmax", { x }, 1, { last } },
    { "log_softmax", { x }, 1, { last } },
    { "softmax", { slab }, 1, { mid } },
    { "log_softmax", { slab }, 1, { mid } },
    { "softmax_backward", { x, x }, 2, { last } },
    { "log_softmax_backward", { x, x }, 2, { last } },
    { "softmax_backward", { slab, slab }, 2, { mid } },
    { "log_softmax_backward", { slab, slab }, 2, { mid } },
    { "layer_norm", { x, w, w }, 3, { eps } },
    { "layer_norm", { x, no, no }, 3, { eps } },
    { "rms_norm", { x, w }, 2, { eps } },
    { "add_layer_norm", { x, x, w, w }, 4, { eps } },
    { "add_rms_norm", { x, x, no }, 3, { eps } },
    { "layer_norm_backward", { x, x, w, x }, 4, { eps, yes } },
    { "rms_norm_backward", { x, x, no, no }, 4, { eps, yes } },
    { "silu_mul", { x, x }, 2, { eps } },
    { "gated_mul_backward", { x, x, x }, 3, { act } },
    { "swiglu", { two }, 1, { eps } },
    { "gated_backward", { two, half }, 2, { act } },
  };
  memcpy(c, list, sizeof list);
  return (int)(sizeof list / sizeof *list);
}

/* Results are O(1) to O(100) (sums over rows): 4e-6 of 1 + |y| is about 30 roundings; gradients
** have sums of up to 1000 terms times up to e^2 in them. Widths of 1 and 3 make variances near
** eps, where the norms' gradients are ill-conditioned. */
static void f32_is_near_f64 (void **state) {
  (void)state;
  for (int level = 0; level < LEVELS; level++) {
    if (!(ctx = open_level(level, 2))) continue;
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
      struct call list[32];
      int n = calls(70, widths[w], list);
      for (int k = 0; k < n; k++) {
        peri_tensor *in[2][MAX_IN], *out[2][4] = { { NULL } };
        int outs = peri_op_outputs(peri_op_find(list[k].op));
        double tol = strstr(list[k].op, "softmax_backward") ? 3e-4 : 4e-6;
        if (widths[w] < 16 && strstr(list[k].op, "norm_backward")) continue;
        for (int d = 0; d < 2; d++) {
          for (int i = 0; i < list[k].nin; i++)
            in[d][i] = make(d ? PERI_F64 : PERI_F32, (uint32_t)i + 1, &list[k].in[i]);
          run(&list[k], in[d], out[d]);
        }
        for (int o = 0; o < outs; o++)
          for (int64_t i = 0; i < peri_numel(out[0][o]); i++) {
            double got = (double)((float *)peri_data(out[0][o]))[i],
                   want = ((double *)peri_data(out[1][o]))[i];
            if (!(fabs(got - want) <= tol * (1 + fabs(want))))
              fail_msg("%s of width %lld on %s: output %d [%lld] is %.9g, expected %.9g",
                       list[k].op, (long long)widths[w], peri_simd_name(ctx), o, (long long)i, got,
                       want);
          }
        for (int d = 0; d < 2; d++) {
          for (int i = 0; i < list[k].nin; i++) peri_release(in[d][i]);
          for (int o = 0; o < outs; o++) peri_release(out[d][o]);
        }
      }
    }
    assert_int_equal(memory_of(ctx).tensors, 0);
    peri_close(ctx);
  }
}

/* Each row alone gives what it gives among 70, and sums over rows do not depend on threads. */
static void rows_and_threads_do_not_matter (void **state) {
  (void)state;
  static float kept[1 << 20];
  for (int level = 0; level < LEVELS; level++)
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
      for (int k = 0;; k++) {
        struct call list[32], one[32];
        int n = calls(70, widths[w], list);
        calls(1, widths[w], one);
        while (k < n && list[k].in[0].ndim == 3) k++;
        if (k >= n) break;
        for (int threads = 1; threads <= 2; threads++) {
          peri_tensor *in[MAX_IN], *row[MAX_IN], *out[4] = { NULL }, *alone[4] = { NULL };
          if (!(ctx = open_level(level, threads))) continue;
          int outs = peri_op_outputs(peri_op_find(list[k].op));
          for (int i = 0; i < list[k].nin; i++)
            in[i] = make(PERI_F32, (uint32_t)i + 1, &list[k].in[i]);
          run(&list[k], in, out);
          for (int i = 0; i < list[k].nin; i++) {
            row[i] = make(PERI_F32, (uint32_t)i + 1, &one[k].in[i]);
            if (row[i] && peri_ndim(row[i]) == 2) {
              int64_t len = peri_shape(row[i])[1];
              memcpy(peri_data(row[i]), (float *)peri_data(in[i]) + 41 * len, (size_t)len * 4);
            }
          }
          run(&one[k], row, alone);
          float *at = kept;
          for (int o = 0; o < outs; o++) {
            size_t bytes = (size_t)peri_numel(out[o]) * 4;
            if (peri_ndim(out[o]) == 2) {
              int64_t len = peri_shape(out[o])[1];
              assert_memory_equal((float *)peri_data(out[o]) + 41 * len, peri_data(alone[o]),
                                  (size_t)len * 4);
            }
            if (threads == 2) assert_memory_equal(at, peri_data(out[o]), bytes);
            memcpy(at, peri_data(out[o]), bytes);
            at += peri_numel(out[o]);
          }
          for (int i = 0; i < list[k].nin; i++) peri_release(in[i]), peri_release(row[i]);
          for (int o = 0; o < outs; o++) peri_release(out[o]), peri_release(alone[o]);
          peri_close(ctx);
        }
      }
}

static void softmax_edges (void **state) {
  (void)state;
  for (int level = 0; level < LEVELS; level++) {
    if (!(ctx = open_level(level, 1))) continue;
    struct call c = { "softmax", { { 2, { 3, 1000 } } }, 1, { { .i = -1 } } };
    peri_tensor *x = make(PERI_F32, 1, &c.in[0]), *y = NULL;
    float *p = peri_data(x);
    for (int i = 0; i < 1000; i++) {
      p[i] *= 40;
      p[1000 + i] = i % 3 ? -INFINITY : 3e38f;
      p[2000 + i] = -INFINITY;
    }
    run(&c, &x, &y);
    const float *q = peri_data(y);
    double sum[2] = { 0, 0 };
    for (int i = 0; i < 2000; i++) sum[i / 1000] += (double)q[i];
    assert_true(fabs(sum[0] - 1) <= 4 * 0x1p-23);
    assert_true(fabs(sum[1] - 1) <= 4 * 0x1p-23);
    assert_true(q[1001] == 0 && q[1000] == 1.0f / 334);
    assert_true(isnan(q[2000]) && isnan(q[2999]));
    peri_release(x);
    peri_release(y);
    peri_close(ctx);
  }
}

static void dropout_keeps_and_scales (void **state) {
  (void)state;
  static float first[10007];
  for (int level = 0; level < LEVELS; level++) {
    if (!(ctx = open_level(level, 2))) continue;
    struct call c = { "dropout", { { 1, { 10007 } } }, 1, { { .f = 0.3 }, { .i = 1 } } };
    peri_tensor *x = make(PERI_F32, 1, &c.in[0]), *y = NULL, *z = NULL;
    run(&c, &x, &y);
    const float *p = peri_data(x), *q = peri_data(y);
    int zeros = 0;
    for (int i = 0; i < 10007; i++) {
      zeros += q[i] == 0;
      assert_true(q[i] == 0 || q[i] == p[i] * (float)(1 / 0.7));
    }
    assert_in_range(zeros, 3002 - 230, 3002 + 230); /* five standard deviations */
    if (level == 0)
      memcpy(first, q, sizeof first);
    else
      assert_memory_equal(first, q, sizeof first); /* one stream for all levels */
    run(&c, &x, &z);
    assert_memory_not_equal(q, peri_data(z), sizeof first);
    peri_release(z);
    peri_rng before = peri_rng_get(ctx);
    c.attr[1].i = 0;
    run(&c, &x, &z);
    assert_ptr_equal(peri_data(z), p); /* x itself, and nothing drawn */
    assert_int_equal(peri_rng_get(ctx).offset, before.offset);
    peri_release(x);
    peri_release(y);
    peri_release(z);
    peri_close(ctx);
  }
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(f32_is_near_f64),
    cmocka_unit_test(rows_and_threads_do_not_matter),
    cmocka_unit_test(softmax_edges),
    cmocka_unit_test(dropout_keeps_and_scales),
  };
  return cmocka_run_group_tests_name("layers", tests, NULL, NULL);
}
