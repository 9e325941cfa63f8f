/*
** test_loss.c - losses against closed forms, the same thing composed of other ops and finite
** differences; token_logprob also against the log-probabilities that sampling returns, bit by bit.
*/
#include "loss_ops.h"

/* ---- cross_entropy ---- */

#define CE(ignore, smooth, red) CE_AT(ignore, smooth, red, 1)
#define CE_AT(ignore, smooth, red, t) ATTRS(I(ignore), F(smooth), S(red), F(t))

static void cross_entropy_matches_its_definition (void **state) {
  (void)state;
  for (int f64 = 0; f64 < 2; f64++)
    for (int64_t v = 1; v < 2200; v = v * 3 + 1) {
      double heat = v == 1 || v == 13 ? 0.7 : 1;
      peri_tensor *x = random_tensor(f64 ? PERI_F64 : PERI_F32, DIMS(5, v), "ce", 12);
      double ids[5] = { 0, (double)(v - 1), -100, (double)(v / 2), 0 };
      peri_tensor *t = make(PERI_I64, DIMS(5), ids);
      peri_tensor *y = run("cross_entropy", IN(x, t), CE_AT(-100, 0.1, "none", heat));
      peri_tensor *mean = run("cross_entropy", IN(x, t), CE_AT(-100, 0.1, "mean", heat));
      peri_tensor *sum = run("cross_entropy", IN(x, t), CE_AT(-100, 0.1, "sum", heat));
      double total = 0;
      for (int64_t r = 0; r < 5; r++) {
        double z = 0, all = 0, want = 0;
        for (int64_t j = 0; j < v; j++) z += exp(at(x, r * v + j) / heat);
        for (int64_t j = 0; j < v; j++) all += log(z) - at(x, r * v + j) / heat;
        if (ids[r] >= 0)
          want = 0.9 * (log(z) - at(x, r * v + (int64_t)ids[r]) / heat) + 0.1 * all / (double)v;
        close_to(at(y, r), want, f64 ? 1e-13 : 1e-6); /* f32: a rounding of terms near 10 */
        total += want;
      }
      close_to(at(sum, 0), total, f64 ? 1e-13 : 1e-6);
      close_to(at(mean, 0), total / 4, f64 ? 1e-13 : 1e-6);
      drop(5, (peri_tensor *[]){ x, t, y, mean, sum });
    }
}

static void cross_entropy_has_right_gradients (void **state) {
  static const char *const reds[] = { "none", "sum", "mean" };
  (void)state;
  for (int r = 0; r < 3; r++) {
    peri_tensor *x = random_tensor(PERI_F64, DIMS(2, 3, 5), "ce.g", 4);
    peri_tensor *t = make(PERI_I64, DIMS(2, 3), (double[]){ 0, 4, -1, 2, 2, -1 });
    check_gradients("cross_entropy", IN(x, t), CE(-1, 0.05, reds[r]), 1, (peri_tensor *[]){ x });
    check_gradients("cross_entropy", IN(x, t), CE_AT(-1, 0.05, reds[r], 0.6), 1,
                    (peri_tensor *[]){ x });
    drop(2, (peri_tensor *[]){ x, t });
  }
}

static void cross_entropy_second_derivative_is_the_hessian (void **state) {
  (void)state;
  peri_tensor *x = random_tensor(PERI_F64, DIMS(1, 3), "hess", 3), *g = NULL, *h = NULL;
  peri_tensor *t = make(PERI_I64, DIMS(1), (double[]){ 1 }), *xs[1] = { x };
  peri_tensor *u = make(PERI_F64, DIMS(1, 3), (double[]){ 1, -2, 0.5 });
  peri_set_requires_grad(x, true);
  peri_tensor *y = run("cross_entropy", IN(x, t), NULL);
  assert_int_equal(peri_gradients(ctx, y, NULL, 1, xs, true, &g), PERI_OK);
  peri_tensor *gu = run("mul", IN(g, u), NULL), *dot = run("sum", IN(gu), ATTRS(ALL, I(0)));
  assert_int_equal(peri_gradients(ctx, dot, NULL, 1, xs, false, &h), PERI_OK);
  double p[3], z = 0, pu = 0;
  for (int j = 0; j < 3; j++) z += p[j] = exp(at(x, j));
  for (int j = 0; j < 3; j++) pu += (p[j] /= z) * at(u, j);
  for (int j = 0; j < 3; j++) close_to(at(h, j), p[j] * (at(u, j) - pu), 1e-12);
  drop(8, (peri_tensor *[]){ x, t, u, y, g, gu, dot, h });
}

/* f32 backward: rows of probabilities minus targets, long enough for vectors and a tail. */
static void cross_entropy_gradient_rows_sum_to_zero (void **state) {
  (void)state;
  peri_tensor *x = random_tensor(PERI_F32, DIMS(3, 1037), "ce.row", 10), *g = NULL;
  peri_tensor *t = make(PERI_I64, DIMS(3), (double[]){ 5, -100, 1036 });
  peri_set_requires_grad(x, true);
  peri_tensor *y = run("cross_entropy", IN(x, t), CE(-100, 0.2, "sum"));
  assert_int_equal(peri_gradients(ctx, y, NULL, 1, &x, false, &g), PERI_OK);
  for (int r = 0; r < 3; r++) {
    double sum = 0;
    for (int j = 0; j < 1037; j++) sum += at(g, r * 1037 + j);
    assert_true(fabs(sum) < 1e-6); /* 1037 roundings of values below 1 */
    if (r == 1)
      for (int j = 0; j < 1037; j++) assert_true(at(g, 1037 + j) == 0);
  }
  drop(4, (peri_tensor *[]){ x, t, y, g });
}

static void cross_entropy_of_nothing_is_nan_and_bad_targets_are_named (void **state) {
  (void)state;
  peri_tensor *x = random_tensor(PERI_F32, DIMS(3, 4), "ce.bad", 1);
  peri_tensor *none = make(PERI_I64, DIMS(3), (double[]){ -100, -100, -100 });
  peri_tensor *high = make(PERI_I64, DIMS(3), (double[]){ 0, 7, 1 });
  peri_tensor *wide = make(PERI_I64, DIMS(2), (double[]){ 0, 1 });
  peri_tensor *y = run("cross_entropy", IN(x, none), NULL);
  assert_true(isnan(at(y, 0)));
  refuse("position 1 (from 0) is 7, expected 0 to 3", "cross_entropy", IN(x, high), NULL);
  refuse("(2)", "cross_entropy", IN(x, wide), NULL);
  refuse("f32", "cross_entropy", IN(x, x), NULL);
  refuse("median", "cross_entropy", IN(x, none), CE(-100, 0, "median"));
  refuse("1.5", "cross_entropy", IN(x, none), CE(-100, 1.5, "mean"));
  drop(5, (peri_tensor *[]){ x, none, high, wide, y });
}

/* -inf logits are impossible classes: no NaN in loss, entropy or gradient. */
static void masked_classes_have_probability_zero (void **state) {
  (void)state;
  peri_tensor *x = make(PERI_F32, DIMS(1, 4), (double[]){ 1, -INFINITY, 2, -INFINITY }), *g = NULL;
  peri_tensor *t = make(PERI_I64, DIMS(1), (double[]){ 2 });
  peri_set_requires_grad(x, true);
  peri_tensor *y = run("cross_entropy", IN(x, t), NULL);
  close_to(at(y, 0), log(1 + exp(-1)), 1e-6);
  assert_int_equal(peri_gradients(ctx, y, NULL, 1, &x, false, &g), PERI_OK);
  assert_true(at(g, 1) == 0 && at(g, 3) == 0);
  close_to(at(g, 0), exp(-1) / (1 + exp(-1)), 1e-6);
  drop(4, (peri_tensor *[]){ x, t, y, g });
}

/* ---- token_logprob ---- */

static void token_logprob_has_right_gradients (void **state) {
  (void)state;
  for (int with_bias = 0; with_bias < 2; with_bias++) {
    peri_tensor *h = random_tensor(PERI_F64, DIMS(2, 3, 4), "tl.h", 3);
    peri_tensor *w = random_tensor(PERI_F64, DIMS(6, 4), "tl.w", 3);
    peri_tensor *b = with_bias ? random_tensor(PERI_F64, DIMS(6), "tl.b", 2) : NULL;
    peri_tensor *t = make(PERI_I64, DIMS(2, 3), (double[]){ 0, 5, -100, 3, 3, -100 });
    check_gradients("token_logprob", 4, (peri_tensor *[]){ h, w, t, b }, ATTRS(F(0.7), I(-100)),
                    2 + with_bias, (peri_tensor *[]){ h, w, b });
    drop(4, (peri_tensor *[]){ h, w, b, t });
  }
}

/* f32 against linear, log_softmax and gather; several tiles of rows, some rows left out. */
static void token_logprob_equals_the_composed_form (void **state) {
  (void)state;
  enum { N = 70, D = 33, V = 517 };
  peri_tensor *h = random_tensor(PERI_F32, DIMS(N, D), "c.h", 2), *entropy = NULL;
  peri_tensor *w = random_tensor(PERI_F32, DIMS(V, D), "c.w", 2), *wrt[2] = { h, w };
  double ids[N], first[N];
  for (int i = 0; i < N; i++) {
    ids[i] = i % 5 == 2 ? -100 : (i * 37) % V;
    first[i] = i % 5 == 2 ? 0 : ids[i];
  }
  peri_tensor *t = make(PERI_I64, DIMS(N), ids), *t0 = make(PERI_I64, DIMS(N, 1), first);
  peri_tensor *g[2], *g0[2], *on = make(PERI_F32, DIMS(N), ids);
  for (int i = 0; i < N; i++) ((float *)peri_data(on))[i] = i % 5 != 2;
  for (int k = 0; k < 2; k++) peri_set_requires_grad(wrt[k], true);
  peri_tensor *logp = run2("token_logprob", 4, (peri_tensor *[]){ h, w, t, NULL }, NULL, &entropy);
  peri_tensor *both = run("add", IN(logp, entropy), NULL);
  peri_tensor *root = run("sum", IN(both), ATTRS(ALL, I(0)));
  assert_int_equal(peri_gradients(ctx, root, NULL, 2, wrt, false, g), PERI_OK);

  peri_tensor *wt = run("transpose", IN(w), NULL), *z = run("matmul", IN(h, wt), NULL);
  peri_tensor *l = run("log_softmax", IN(z), NULL), *p = run("exp", IN(l), NULL);
  peri_tensor *pl = run("mul", IN(p, l), NULL);
  peri_tensor *picked = run("gather", IN(l, t0), ATTRS(I(1)));
  const int64_t last[] = { -1 };
  const peri_attr over[] = { { .v = last, .n = 1 }, I(0) };
  peri_tensor *l0 = run("sum", IN(picked), over), *h0 = run("sum", IN(pl), over);
  peri_tensor *d = run("sub", IN(l0, h0), NULL), *m = run("mul", IN(d, on), NULL);
  peri_tensor *root0 = run("sum", IN(m), ATTRS(ALL, I(0)));
  assert_int_equal(peri_gradients(ctx, root0, NULL, 2, wrt, false, g0), PERI_OK);
  for (int i = 0; i < N; i++) { /* f32 roundings of terms near 20 */
    close_to(at(logp, i), at(on, i) * at(l0, i), 1e-6);
    close_to(at(entropy, i), -at(on, i) * at(h0, i), 3e-6);
  }
  for (int k = 0; k < 2; k++) /* sums of up to 517 products */
    for (int64_t i = 0; i < peri_numel(wrt[k]); i++) close_to(at(g[k], i), at(g0[k], i), 2e-5);
  drop(22, (peri_tensor *[]){ h,  w, t, t0, on, logp,   entropy, both, root, g[0], g[1],
                              wt, z, l, p,  pl, picked, l0,      h0,   d,    m,    root0 });
  drop(2, g0);
}

/* The product promise: a row's bits do not depend on the other rows, on tiles or on threads, and
** are those that sample gives for the same token from the logits of linear. */
static void token_logprob_is_batch_invariant_and_equals_sampling (void **state) {
  static const peri_simd levels[] = { PERI_SIMD_PORTABLE, PERI_SIMD_AVX2, PERI_SIMD_AVX512 };
  enum { N = 300, D = 40, V = 1301 };
  peri_ctx *outer = ctx;
  (void)state;
  for (int level = 0; level < 3; level++) {
    for (int threads = 1; threads <= 3; threads += 2) {
      static float kept[2 * N];
      if ((ctx = open_with(threads, levels[level])) == NULL) continue;
      peri_tensor *h = random_tensor(PERI_F32, DIMS(N, D), "i.h", 2), *e = NULL, *lp = NULL;
      peri_tensor *w = random_tensor(PERI_F32, DIMS(V, D), "i.w", 2);
      peri_tensor *z = run("linear", 3, (peri_tensor *[]){ h, w, NULL }, NULL);
      peri_tensor *ids = run2("sample", 2, (peri_tensor *[]){ z, NULL },
                              ATTRS(F(0.8), I(50), F(0.9), F(0), I(0)), &lp);
      peri_tensor *all = run2("token_logprob", 4, (peri_tensor *[]){ h, w, ids, NULL },
                              ATTRS(F(0.8), I(-100)), &e);
      assert_memory_equal(peri_data(all), peri_data(lp), N * sizeof(float));
      if (threads == 1) {
        memcpy(kept, peri_data(all), N * sizeof *kept);
        memcpy(kept + N, peri_data(e), N * sizeof *kept);
      } else {
        assert_memory_equal(peri_data(all), kept, N * sizeof *kept);
        assert_memory_equal(peri_data(e), kept + N, N * sizeof *kept);
      }
      for (int64_t from = 0, n = 1; from + n <= N; from += n, n = n * 2 + 1) {
        peri_tensor *hs = NULL, *ts = NULL, *es = NULL;
        int64_t hd[] = { n, D }, td[] = { n };
        peri_from(ctx, PERI_F32, 2, hd, (float *)peri_data(h) + from * D, &hs);
        peri_from(ctx, PERI_I64, 1, td, (int64_t *)peri_data(ids) + from, &ts);
        peri_tensor *part = run2("token_logprob", 4, (peri_tensor *[]){ hs, w, ts, NULL },
                                 ATTRS(F(0.8), I(-100)), &es);
        assert_memory_equal(peri_data(part), (float *)peri_data(all) + from, (size_t)n * 4);
        assert_memory_equal(peri_data(es), (float *)peri_data(e) + from, (size_t)n * 4);
        drop(4, (peri_tensor *[]){ hs, ts, es, part });
      }
      drop(7, (peri_tensor *[]){ h, w, z, ids, lp, all, e });
      peri_close(ctx);
    }
  }
  ctx = outer;
}

/* Weight gradients are one chain over the rows: the same bits for any number of threads, and with
** ignored rows in between. */
static void token_logprob_gradients_do_not_depend_on_threads_or_ignored_rows (void **state) {
  enum { N = 130, D = 24, V = 70000 }; /* wide enough for several tiles */
  peri_ctx *outer = ctx;
  float *kept = NULL;
  (void)state;
  for (int run_no = 0; run_no < 3; run_no++) {
    ctx = open_with(run_no == 1 ? 2 : 1, PERI_SIMD_AUTO);
    int64_t rows = run_no == 2 ? 2 * N : N;
    peri_tensor *h = random_tensor(PERI_F32, DIMS(rows, D), "g.h", 2), *e = NULL, *g = NULL;
    peri_tensor *w = random_tensor(PERI_F32, DIMS(V, D), "g.w", 2);
    double *ids = malloc((size_t)rows * sizeof *ids), *rows_h = malloc(N * D * sizeof *rows_h);
    lcg("g.h", 2, N * D, rows_h);
    for (int64_t i = 0; i < rows; i++) {
      bool used = run_no < 2 || i % 2 == 1;
      int64_t from = run_no < 2 ? i : i / 2;
      ids[i] = used ? (double)(from * 531 % V) : -100;
      for (int64_t j = 0; used && j < D; j++)
        ((float *)peri_data(h))[i * D + j] = (float)rows_h[from * D + j];
    }
    peri_tensor *t = make(PERI_I64, DIMS(rows), ids);
    peri_set_requires_grad(w, true);
    peri_tensor *lp = run2("token_logprob", 4, (peri_tensor *[]){ h, w, t, NULL }, NULL, &e);
    peri_tensor *both = run("add", IN(lp, e), NULL), *root = run("sum", IN(both), ATTRS(ALL, I(0)));
    assert_int_equal(peri_gradients(ctx, root, NULL, 1, &w, false, &g), PERI_OK);
    if (kept == NULL) {
      kept = malloc(V * D * sizeof *kept);
      memcpy(kept, peri_data(g), V * D * sizeof *kept);
    } else
      assert_memory_equal(kept, peri_data(g), V * D * sizeof *kept);
    drop(8, (peri_tensor *[]){ h, w, t, lp, e, both, root, g });
    free(ids);
    free(rows_h);
    peri_close(ctx);
  }
  free(kept);
  ctx = outer;
}

static void token_logprob_refuses_what_does_not_fit (void **state) {
  (void)state;
  peri_tensor *h = random_tensor(PERI_F32, DIMS(3, 4), "r.h", 1);
  peri_tensor *w = random_tensor(PERI_F32, DIMS(5, 6), "r.w", 1);
  peri_tensor *v = random_tensor(PERI_F32, DIMS(5, 4), "r.v", 1), *e = NULL;
  peri_tensor *t = make(PERI_I64, DIMS(3), (double[]){ 0, 1, 5 });
  peri_tensor *none = make(PERI_I64, DIMS(3), (double[]){ -100, -100, -100 });
  refuse("(3, 4) x weight (5, 6)", "token_logprob", 4, (peri_tensor *[]){ h, w, t, NULL }, NULL);
  refuse("position 2 (from 0) is 5", "token_logprob", 4, (peri_tensor *[]){ h, v, t, NULL }, NULL);
  refuse("temperature is 0", "token_logprob", 4, (peri_tensor *[]){ h, v, t, NULL },
         ATTRS(F(0), I(-100)));
  peri_tensor *y = run2("token_logprob", 4, (peri_tensor *[]){ h, v, none, NULL }, NULL, &e);
  for (int i = 0; i < 3; i++) assert_true(at(y, i) == 0 && at(e, i) == 0);
  drop(7, (peri_tensor *[]){ h, w, v, t, none, y, e });
}

static void lack_of_memory_is_a_status (void **state) {
  (void)state;
  peri_tensor *h = random_tensor(PERI_F32, DIMS(9, 4), "m.h", 1);
  peri_tensor *w = random_tensor(PERI_F32, DIMS(5, 4), "m.w", 1), *e = NULL;
  peri_tensor *t = make(PERI_I64, DIMS(9), (double[]){ 0, 1, 3, -100, 2, 2, -100, 3, 0 });
  peri_tensor *stats = make(PERI_F32, DIMS(9, 2), (double[18]){ 0 });
  fail_every_allocation("cross_entropy", IN(h, t), NULL);
  fail_every_allocation("token_logprob", 4, (peri_tensor *[]){ h, w, t, NULL }, NULL);
  peri_tensor *g = run2("token_logprob", 4, (peri_tensor *[]){ h, w, t, NULL }, NULL, &e);
  fail_every_allocation("token_logprob_backward", 7,
                        (peri_tensor *[]){ g, e, h, w, t, NULL, stats }, NULL);
  drop(6, (peri_tensor *[]){ h, w, t, stats, g, e });
}

/* ---- the short losses ---- */

static void short_losses_match_their_formulas (void **state) {
  static const char *const none = "none";
  (void)state;
  peri_tensor *x = random_tensor(PERI_F64, DIMS(3, 4), "s.x", 6);
  peri_tensor *y = random_tensor(PERI_F64, DIMS(3, 4), "s.y", 1);
  double p_values[12];
  for (int i = 0; i < 12; i++) p_values[i] = i == 5 ? 0 : 0.02 * (i + 1);
  peri_tensor *p = make(PERI_F64, DIMS(3, 4), p_values), *flat = make(PERI_F64, DIMS(12), p_values);
  peri_tensor *mse = run("mse", IN(x, y), ATTRS(S(none)));
  peri_tensor *huber = run("huber", IN(x, y), ATTRS(F(0.8), S(none)));
  peri_tensor *bce = run("bce_with_logits", 3, (peri_tensor *[]){ x, p, NULL }, ATTRS(S(none)));
  peri_tensor *kl = run("kl_div", IN(x, p), ATTRS(S(none), I(0)));
  peri_tensor *kl_log = run("kl_div", IN(x, y), ATTRS(S("batchmean"), I(1)));
  double batch = 0;
  for (int i = 0; i < 12; i++) {
    double a = at(x, i), b = at(y, i), t = p_values[i], d = fabs(a - b);
    close_to(at(mse, i), d * d, 1e-14);
    close_to(at(huber, i), d <= 0.8 ? d * d / 2 : 0.8 * (d - 0.4), 1e-14);
    close_to(at(bce, i), -t * log(1 / (1 + exp(-a))) - (1 - t) * log(1 / (1 + exp(a))), 1e-13);
    close_to(at(kl, i), t > 0 ? t * (log(t) - a) : 0, 1e-14);
    batch += exp(b) * (b - a) / 3;
  }
  close_to(at(kl_log, 0), batch, 1e-13);
  refuse("(3, 4) and y (12)", "mse", IN(x, flat), NULL);
  check_gradients("huber", IN(x, y), ATTRS(F(0.8), S("mean")), 2, (peri_tensor *[]){ x, y });
  check_gradients("mse", IN(x, y), ATTRS(S("sum")), 2, (peri_tensor *[]){ x, y });
  check_gradients("bce_with_logits", 3, (peri_tensor *[]){ x, p, y }, NULL, 3,
                  (peri_tensor *[]){ x, p, y });
  check_gradients("kl_div", IN(x, y), ATTRS(S("batchmean"), I(1)), 2, (peri_tensor *[]){ x, y });
  drop(9, (peri_tensor *[]){ x, y, p, flat, mse, huber, bce, kl, kl_log });
}

int main (void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
  const struct CMUnitTest tests[] = {
    T(cross_entropy_matches_its_definition),
    T(cross_entropy_has_right_gradients),
    T(cross_entropy_second_derivative_is_the_hessian),
    T(cross_entropy_gradient_rows_sum_to_zero),
    T(cross_entropy_of_nothing_is_nan_and_bad_targets_are_named),
    T(masked_classes_have_probability_zero),
    T(token_logprob_has_right_gradients),
    T(token_logprob_equals_the_composed_form),
    T(token_logprob_is_batch_invariant_and_equals_sampling),
    T(token_logprob_gradients_do_not_depend_on_threads_or_ignored_rows),
    T(token_logprob_refuses_what_does_not_fit),
    T(lack_of_memory_is_a_status),
    T(short_losses_match_their_formulas),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
