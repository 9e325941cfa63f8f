/*
** test_optim.c - optimizer steps against torch and apex (numbers of optim.json of the reference
** vectors), against their formulas, and for independence of threads and grouping.
*/
#include "loss_ops.h"

/* ---- optimizer steps ---- */

static const double no_numbers[12] = { 0 };

/* Three steps on p = lcg("lamb.p", 3, 4, scale 2) with gradients lamb.g0 to lamb.g2: the trajectory
** that the vectors of optim.json were made on. nstate buffers start at 0. */
static void check_steps (const char *name, int nstate, const peri_attr *attr, int step_at,
                         int first_at, const double *want, double tol32) {
  static const char *const grads[3] = { "lamb.g0", "lamb.g1", "lamb.g2" };
  for (int d = 0; d < 2; d++) {
    peri_dtype dtype = d ? PERI_F64 : PERI_F32;
    peri_tensor *t[4] = { random_tensor(dtype, DIMS(3, 4), "lamb.p", 2) };
    peri_attr a[12];
    memcpy(a, attr, sizeof a);
    for (int k = 0; k < nstate; k++) t[2 + k] = make(dtype, DIMS(3, 4), no_numbers);
    for (int s = 0; s < 3; s++) {
      t[1] = random_tensor(dtype, DIMS(3, 4), grads[s], 2);
      if (step_at >= 0) a[step_at].i = s + 1;
      if (first_at >= 0) a[first_at].i = s == 0;
      assert_int_equal(try_op(name, 2 + nstate, t, a, NULL), PERI_OK);
      peri_release(t[1]);
    }
    all_close(t[0], want, d ? 1e-12 : tol32);
    peri_release(t[0]);
    drop(nstate, t + 2);
  }
}

static void steps_match_the_vectors (void **state) {
  static const double lamb0[12] = { -0.145555062554, -0.591367466859, -0.046945580838,
                                    0.690763419043,  0.918107564138,  -0.209812729815,
                                    0.773438756945,  0.683126690034,  0.562208271589,
                                    0.778256054959,  0.334635577274,  -0.390487241879 };
  static const double lamb1[12] = { -0.145552335383, -0.591364540263, -0.04694670768,
                                    0.690757809916,  0.918100873382,  -0.209814513669,
                                    0.773434649281,  0.683123230873,  0.562198754932,
                                    0.778251987388,  0.334629325423,  -0.390486687342 };
  static const double adamw[12] = { -0.146337751588, -0.589506341927, -0.045942226298,
                                    0.690470308554,  0.916358450427,  -0.207784506512,
                                    0.771295035166,  0.681149701852,  0.56387505472,
                                    0.776063338336,  0.336034613322,  -0.388628965964 };
  static const double nesterov[12] = { -0.160594611173, -0.55285237886, -0.027921812329,
                                       0.667122688801,  0.885503284289, -0.152326096971,
                                       0.721026525508,  0.645005198257, 0.611897612441,
                                       0.721678378037,  0.343298631517, -0.356219729214 };
  const peri_attr lamb[12] = { F(5e-4), F(0.9), F(0.999), F(1e-8), F(0), I(1), F(1) };
  peri_attr decay[12];
  (void)state;
  memcpy(decay, lamb, sizeof decay);
  decay[4].f = 0.01;
  check_steps("lamb_", 2, lamb, 5, -1, lamb0, 3e-7);
  check_steps("lamb_", 2, decay, 5, -1, lamb1, 3e-7);
  const peri_attr adam[12] = { F(1e-3), F(0.9), F(0.95), F(1e-8), F(0.1), I(1), F(1) };
  check_steps("adamw_", 2, adam, 5, -1, adamw, 3e-7);
  const peri_attr sgd[12] = { F(0.01), F(0.9), F(0), F(0), I(1), I(1), F(1) };
  check_steps("sgd_", 1, sgd, -1, 5, nesterov, 3e-7);
}

/* One scalar parameter through the formulas as torch states them. */
static void steps_match_their_formulas (void **state) {
  (void)state;
  double p = 0.7, g[3] = { 0.3, -0.2, 0.5 }, m = 0, v = 0, b = 0, q = p, sq = 0, w = p;
  for (int s = 0; s < 3; s++) {
    double ga = 0.5 * g[s] + 0.1 * p; /* Adam with decay in the gradient, gradients halved */
    m = 0.9 * m + 0.1 * ga;
    v = 0.99 * v + 0.01 * ga * ga;
    p -= 0.01 * (m / (1 - pow(0.9, s + 1))) / (sqrt(v / (1 - pow(0.99, s + 1))) + 1e-6);
    double gr = g[s] + 0.05 * q;
    sq = 0.9 * sq + 0.1 * gr * gr;
    b = 0.8 * b + gr / (sqrt(sq) + 1e-6);
    q -= 0.01 * b;
    w -= 0.1 * (g[s] + 0.2 * w);
  }
  for (int d = 0; d < 2; d++) {
    peri_dtype dtype = d ? PERI_F64 : PERI_F32;
    peri_tensor *t[3][4], *start = make(dtype, DIMS(1), (double[]){ 0.7 });
    for (int k = 0; k < 3; k++)
      for (int j = 0; j < 4; j++) {
        t[k][j] = make(dtype, DIMS(1), no_numbers);
        if (j == 0) memcpy(peri_data(t[k][0]), peri_data(start), peri_dtype_size(dtype));
      }
    for (int s = 0; s < 3; s++) {
      peri_tensor *gt = make(dtype, DIMS(1), &g[s]);
      assert_int_equal(try_op("adam_", IN(t[0][0], gt, t[0][2], t[0][3]),
                              ATTRS(F(0.01), F(0.9), F(0.99), F(1e-6), F(0.1), I(s + 1), F(0.5)),
                              NULL),
                       PERI_OK);
      assert_int_equal(try_op("rmsprop_", IN(t[1][0], gt, t[1][2], t[1][3]),
                              ATTRS(F(0.01), F(0.9), F(1e-6), F(0.05), F(0.8), F(1)), NULL),
                       PERI_OK);
      assert_int_equal(try_op("sgd_", 3, (peri_tensor *[]){ t[2][0], gt, NULL },
                              ATTRS(F(0.1), F(0), F(0), F(0.2), I(0), I(0), F(1)), NULL),
                       PERI_OK);
      peri_release(gt);
    }
    double tol = d ? 1e-12 : 1e-6;
    close_to(at(t[0][0], 0), p, tol);
    close_to(at(t[1][0], 0), q, tol);
    close_to(at(t[2][0], 0), w, tol);
    for (int k = 0; k < 3; k++) drop(4, t[k]);
    peri_release(start);
  }
}

/* Many tensors of awkward sizes: the same bits for any number of threads, and those of one call
** for each tensor. */
static void steps_do_not_depend_on_threads_or_grouping (void **state) {
  static const int64_t sizes[6] = { 1, 17, 16384, 0, 70001, 33 };
  peri_ctx *outer = ctx;
  float *kept = malloc(100000 * sizeof *kept);
  (void)state;
  for (int round = 0; round < 3; round++) {
    ctx = open_with(round == 1 ? 3 : 1, PERI_SIMD_AUTO);
    peri_tensor *t[24];
    for (int k = 0; k < 4; k++)
      for (int i = 0; i < 6; i++) {
        t[k * 6 + i] = random_tensor(PERI_F32, DIMS(sizes[i]), k == 1 ? "og" : "op", 2);
        if (k == 3) /* second moments are positive */
          for (int64_t j = 0; j < sizes[i]; j++) {
            float *v = (float *)peri_data(t[18 + i]) + j;
            *v = fabsf(*v);
          }
      }
    const peri_attr a[] = { F(0.01), F(0.9), F(0.95), F(1e-8), F(0.1), I(3), F(0.7) };
    for (int i = 0; i < 6; i++) {
      peri_tensor *one[4] = { t[i], t[6 + i], t[12 + i], t[18 + i] };
      if (round == 2) assert_int_equal(try_op("adamw_", 4, one, a, NULL), PERI_OK);
    }
    if (round < 2) assert_int_equal(try_op("adamw_", 24, t, a, NULL), PERI_OK);
    peri_tensor *norm = run("global_norm", 6, t, NULL);
    float *at_kept = kept;
    for (int i = 0; i < 6; i++) {
      size_t bytes = (size_t)sizes[i] * sizeof(float);
      if (bytes == 0) continue;
      if (round == 0)
        memcpy(at_kept, peri_data(t[i]), bytes);
      else
        assert_memory_equal(at_kept, peri_data(t[i]), bytes);
      at_kept += sizes[i];
    }
    if (round == 0)
      *at_kept = (float)at(norm, 0);
    else
      assert_true(*at_kept == (float)at(norm, 0));
    drop(24, t);
    peri_release(norm);
    peri_close(ctx);
  }
  free(kept);
  ctx = outer;
}

static void norms_and_clipping (void **state) {
  (void)state;
  peri_tensor *a = make(PERI_F32, DIMS(2, 2), (double[]){ 3, 0, 0, 4 });
  peri_tensor *b = make(PERI_F32, DIMS(3), (double[]){ 12, 0, 84 }), *t[2] = { a, b };
  peri_tensor *n = run("global_norm", 2, t, NULL);
  assert_true(at(n, 0) == sqrt(9 + 16 + 144 + 84 * 84));
  peri_tensor *m = run("clip_grad_norm_", 2, t, ATTRS(F(1000), I(0)));
  assert_true(at(b, 2) == 84 && at(m, 0) == at(n, 0));
  peri_tensor *o = run("clip_grad_norm_", 2, t, ATTRS(F(1), I(0)));
  assert_true(at(o, 0) == at(n, 0));
  peri_tensor *after = run("global_norm", 2, t, NULL);
  close_to(at(after, 0), 1, 1e-6);
  ((float *)peri_data(a))[1] = INFINITY;
  peri_tensor *inf = run("clip_grad_norm_", 2, t, ATTRS(F(1), I(0)));
  assert_true(isinf(at(inf, 0)));
  close_to(at(b, 2), 84 / at(n, 0), 1e-6); /* left alone */
  drop(7, (peri_tensor *[]){ a, b, n, m, o, after, inf });
}

static void ema_moves_by_one_minus_decay (void **state) {
  (void)state;
  peri_tensor *t = make(PERI_F64, DIMS(2), (double[]){ 1, 10 });
  peri_tensor *s = make(PERI_F64, DIMS(2), (double[]){ 3, 20 });
  assert_int_equal(try_op("ema_", IN(t, s), ATTRS(F(0.75)), NULL), PERI_OK);
  all_close(t, (double[]){ 1.5, 12.5 }, 1e-15);
  refuse("decay is 2", "ema_", IN(t, s), ATTRS(F(2)));
  drop(2, (peri_tensor *[]){ t, s });
}

static void steps_refuse_lists_that_do_not_fit (void **state) {
  (void)state;
  peri_tensor *a = make(PERI_F32, DIMS(2, 3), no_numbers),
              *b = make(PERI_F32, DIMS(3, 2), no_numbers);
  peri_tensor *c = make(PERI_F64, DIMS(2, 3), no_numbers), *v = make(PERI_F32, DIMS(6), no_numbers),
              *w = make(PERI_F32, DIMS(6), no_numbers);
  peri_tensor *tr = run("transpose", IN(b), NULL), *out[1];
  const peri_attr half[] = { F(0.5) };
  refuse("sources 0 has shape (3, 2), but targets 0 has (2, 3)", "ema_", IN(a, b), half);
  refuse("sources 0 is f64, but targets 0 is f32", "ema_", IN(a, c), half);
  refuse("dense", "ema_", IN(tr, a), half);
  assert_int_equal(try_op("ema_", IN(a, tr), half, out), PERI_OK); /* a view is read from a copy */
  refuse("momentum_bufs 0 is missing", "sgd_", 3, (peri_tensor *[]){ a, a, NULL },
         ATTRS(F(1), F(0.9), F(0), F(0), I(0), I(0), F(1)));
  refuse("params 0 has shape (6)", "muon_", IN(v, v, w),
         ATTRS(F(1), F(0.9), I(1), F(0), I(5), F(1)));
  peri_tensor *m = run("clone", IN(a), NULL), *n = run("clone", IN(a), NULL);
  refuse("step is 0", "adamw_", IN(a, a, m, n),
         ATTRS(F(1), F(0.9), F(0.9), F(0), F(0), I(0), F(1)));
  refuse("params and v share memory", "adamw_", IN(a, a, m, a),
         ATTRS(F(1), F(0.9), F(0.9), F(0), F(0), I(1), F(1)));
  drop(8, (peri_tensor *[]){ a, b, c, v, w, tr, m, n });
}

/* Directions of Muon have singular values near 1 (0.7 to 1.2 after five quintic steps) along the
** gradient's singular vectors: u = sum s_i x_i y_i^T with x^T u y = s. */
static void muon_orthogonalises (void **state) {
  static const int64_t shapes[3][2] = { { 12, 30 }, { 30, 12 }, { 16, 16 } };
  (void)state;
  for (int d = 0; d < 2; d++)
    for (int k = 0; k < 3; k++) {
      int64_t r = shapes[k][0], c = shapes[k][1], side = r < c ? r : c;
      peri_dtype dtype = d ? PERI_F64 : PERI_F32;
      peri_tensor *p = random_tensor(dtype, 2, shapes[k], "muon.p", 0);
      peri_tensor *g = random_tensor(dtype, 2, shapes[k], "muon.g", 2);
      peri_tensor *b = random_tensor(dtype, 2, shapes[k], "muon.b", 0);
      assert_int_equal(
          try_op("muon_", IN(p, g, b), ATTRS(F(1), F(0.9), I(1), F(0), I(8), F(1)), NULL), PERI_OK);
      close_to(at(b, 3), 0.1 * at(g, 3), 1e-6);
      double scale = r > c ? sqrt((double)r / (double)c) : 1, trace = 0, along = 0;
      for (int64_t i = 0; i < r * c; i++) {
        trace += at(p, i) * at(p, i) / (scale * scale);
        along -= at(p, i) * at(g, i);
      }
      assert_true(trace > 0.5 * (double)side && trace < 1.5 * (double)side); /* sum of s_i^2 */
      assert_true(along > 0);                                                /* downhill */
      drop(3, (peri_tensor *[]){ p, g, b });
    }
}

static void lack_of_memory_changes_nothing (void **state) {
  (void)state;
  const peri_attr adam[] = { F(1e-3), F(0.9), F(0.95), F(1e-8), F(0.1), I(1), F(1) };
  peri_tensor *t[4], *was = random_tensor(PERI_F32, DIMS(7, 5), "oom0", 1);
  t[0] = random_tensor(PERI_F32, DIMS(7, 5), "oom0", 1);
  t[1] = random_tensor(PERI_F32, DIMS(7, 5), "oom1", 1);
  t[2] = make(PERI_F32, DIMS(7, 5), (double[35]){ 0 });
  t[3] = make(PERI_F32, DIMS(7, 5), (double[35]){ 0 });
  fail_every_allocation("clip_grad_norm_", 1, t, ATTRS(F(10), I(0)));
  assert_memory_equal(peri_data(t[0]), peri_data(was), 35 * sizeof(float));
  fail_every_allocation("muon_", 3, t, ATTRS(F(0), F(0.9), I(1), F(0), I(5), F(1)));
  assert_memory_equal(peri_data(t[0]), peri_data(was), 35 * sizeof(float));
  fail_every_allocation("lamb_", 4, t, adam);
  fail_every_allocation("adamw_", 4, t, adam);
  drop(4, t);
  peri_release(was);
}

int main (void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
  const struct CMUnitTest tests[] = {
    T(steps_match_the_vectors),
    T(steps_match_their_formulas),
    T(steps_do_not_depend_on_threads_or_grouping),
    T(norms_and_clipping),
    T(ema_moves_by_one_minus_decay),
    T(steps_refuse_lists_that_do_not_fit),
    T(lack_of_memory_changes_nothing),
    T(muon_orthogonalises),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
