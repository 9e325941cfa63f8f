/*
** test_reduce.c - reductions, scans and sorting against plain loops over every choice of dims, and
** what they promise: bits that depend on the length of a row alone, NaN that wins, stable order.
*/
#include "core/core.h"
#include "loss_ops.h"

#include "op/op.h"

static const char *const kinds[] = { "sum",       "mean", "prod", "max", "min",          "var",
                                     "logsumexp", "norm", "any",  "all", "count_nonzero" };
enum { NKINDS = sizeof kinds / sizeof *kinds };

/* The reduction named kind of n doubles. */
static double plain (const char *kind, int64_t n, const double *v) {
  double sum = 0, prod = 1, max = -INFINITY, min = INFINITY, exps = 0, squares = 0, var = 0,
         count = 0;
  for (int64_t i = 0; i < n; i++) {
    sum += v[i];
    prod *= v[i];
    max = v[i] > max ? v[i] : max;
    min = v[i] < min ? v[i] : min;
    exps += exp(v[i]);
    squares += v[i] * v[i];
    count += v[i] != 0;
  }
  for (int64_t i = 0; i < n; i++) var += (v[i] - sum / (double)n) * (v[i] - sum / (double)n);
  if (strcmp(kind, "sum") == 0) return sum;
  if (strcmp(kind, "mean") == 0) return sum / (double)n;
  if (strcmp(kind, "prod") == 0) return prod;
  if (strcmp(kind, "max") == 0) return max;
  if (strcmp(kind, "min") == 0) return min;
  if (strcmp(kind, "var") == 0) return n > 1 ? var / (double)(n - 1) : (double)NAN;
  if (strcmp(kind, "logsumexp") == 0) return log(exps);
  if (strcmp(kind, "norm") == 0) return sqrt(squares);
  if (strcmp(kind, "any") == 0) return count > 0;
  if (strcmp(kind, "all") == 0) return count == (double)n;
  return count;
}

static peri_tensor *reduce (const char *kind, peri_tensor *x, int n, const int64_t *dims,
                            bool keep) {
  peri_attr d = { .v = dims, .n = n };
  if (strcmp(kind, "norm") == 0) return run(kind, IN(x), ATTRS(F(2), d, I(keep)));
  return run(kind, IN(x), ATTRS(d, I(keep), I(1)));
}

/* Every subset of the three dims of x against plain(). */
static void check_subsets (const char *kind, peri_tensor *x, double tol) {
  const int64_t *n = peri_shape(x);
  double *v = malloc((size_t)peri_numel(x) * sizeof *v);
  for (int set = 1; set < 8; set++) {
    int64_t dims[3], count = 0, out = 0;
    for (int i = 0; i < 3; i++)
      if (set >> i & 1) dims[count++] = i == 2 ? -1 : i;
    peri_tensor *y = reduce(kind, x, (int)count, dims, true);
    assert_int_equal(peri_ndim(y), 3);
    for (int64_t i = 0; i < (set & 1 ? 1 : n[0]); i++)
      for (int64_t j = 0; j < (set & 2 ? 1 : n[1]); j++)
        for (int64_t k = 0; k < (set & 4 ? 1 : n[2]); k++) {
          int64_t m = 0;
          for (int64_t a = i; a < (set & 1 ? n[0] : i + 1); a++)
            for (int64_t b = j; b < (set & 2 ? n[1] : j + 1); b++)
              for (int64_t c = k; c < (set & 4 ? n[2] : k + 1); c++)
                v[m++] = at(x, (a * n[1] + b) * n[2] + c);
          double want = plain(kind, m, v), got = at(y, out++);
          if (!(isnan(want) && isnan(got)) && !(fabs(got - want) <= tol * (1 + fabs(want))))
            fail_msg("%s over %d: %.9g, expected %.9g", kind, set, got, want);
        }
    peri_release(y);
  }
  free(v);
}

static void reductions_match_plain_loops (void **state) {
  (void)state;
  static const int64_t sizes[][3] = { { 3, 4, 5 }, { 2, 7, 33 }, { 1, 6, 1 }, { 19, 1, 2 } };
  for (int i = 0; i < NKINDS; i++)
    for (int k = 0; k < 4; k++)
      for (int d = PERI_F32; d <= PERI_F64; d++) {
        peri_tensor *x =
            random_tensor((peri_dtype)d, DIMS(sizes[k][0], sizes[k][1], sizes[k][2]), "x", 4);
        check_subsets(kinds[i], x, d == PERI_F32 ? 1e-6 : 1e-12);
        peri_release(x);
      }
  static const char *const whole[] = { "sum", "prod", "max", "min", "any", "all", "count_nonzero" };
  double v[60];
  for (int i = 0; i < 60; i++) v[i] = (i * 7) % 5 - 1;
  for (int i = 0; i < 7; i++) {
    peri_tensor *x = make(PERI_I64, DIMS(3, 4, 5), v), *y = reduce(whole[i], x, -1, NULL, false);
    check_subsets(whole[i], x, 0);
    peri_release(x);
    peri_release(y);
  }
}

/* Long rows are cut in chunks, columns in blocks; neither may show. */
static void long_and_tall_ones_match (void **state) {
  (void)state;
  static const int64_t sizes[][2] = { { 2, 70001 }, { 3000, 5 }, { 1500, 700 }, { 40000, 1 } };
  for (int k = 0; k < 4; k++) {
    int64_t rows = sizes[k][0], n = sizes[k][1], zero = 0, one = 1;
    peri_tensor *x = random_tensor(PERI_F32, DIMS(rows, n), "x", 2);
    const float *p = peri_data(x);
    peri_tensor *col = reduce("sum", x, 1, &zero, false), *row = reduce("sum", x, 1, &one, false);
    peri_tensor *hi = reduce("max", x, 1, &zero, false), *all = reduce("mean", x, -1, NULL, false);
    double total = 0;
    for (int64_t j = 0; j < n; j++) {
      double s = 0;
      float m = -INFINITY;
      for (int64_t i = 0; i < rows; i++) {
        s += (double)p[i * n + j];
        m = p[i * n + j] > m ? p[i * n + j] : m;
      }
      total += s;
      close_to(at(col, j), s, 1e-6);
      assert_true(at(hi, j) == (double)m);
    }
    for (int64_t i = 0; i < rows; i++) {
      double s = 0;
      for (int64_t j = 0; j < n; j++) s += (double)p[i * n + j];
      close_to(at(row, i), s, 1e-6);
    }
    close_to(at(all, 0), total / (double)(rows * n), 1e-7);
    drop(5, (peri_tensor *[]){ x, col, row, hi, all });
  }
}

static void a_row_has_the_same_bits_in_any_batch (void **state) {
  (void)state;
  static const int64_t lengths[] = { 1, 3, 16, 37, 64, 1000, 20000 };
  static const char *const names[] = { "sum", "mean", "prod", "var", "logsumexp", "norm" };
  for (int k = 0; k < 7; k++) {
    int64_t n = lengths[k], last = -1;
    peri_tensor *x = random_tensor(PERI_F32, DIMS(13, n), "x", 2);
    for (int i = 0; i < 6; i++) {
      peri_tensor *all = reduce(names[i], x, 1, &last, false);
      for (int64_t r = 0; r < 13; r += 4) {
        peri_tensor *one = run("narrow", IN(x), ATTRS(I(0), I(r), I(1)));
        peri_tensor *y = reduce(names[i], one, 1, &last, false);
        assert_memory_equal(peri_data(y), (float *)peri_data(all) + r, sizeof(float));
        drop(2, (peri_tensor *[]){ one, y });
      }
      peri_release(all);
    }
    peri_release(x);
  }
}

static void strides_do_not_show (void **state) {
  (void)state;
  int64_t d01[] = { 0, 1 }, d1 = 1, d0 = 0;
  peri_tensor *x = random_tensor(PERI_F32, DIMS(20, 9, 33), "x", 2);
  peri_tensor *turned = run("permute", IN(x), ATTRS({ .v = (int64_t[]){ 2, 0, 1 }, .n = 3 }));
  peri_tensor *dense = run("contiguous", IN(turned), NULL);
  for (int i = 0; i < NKINDS; i++) {
    peri_tensor *a[] = { reduce(kinds[i], turned, 2, d01, false),
                         reduce(kinds[i], turned, 1, &d1, false),
                         reduce(kinds[i], turned, 1, &d0, false),
                         reduce(kinds[i], turned, -1, NULL, false) };
    peri_tensor *b[] = { reduce(kinds[i], dense, 2, d01, false),
                         reduce(kinds[i], dense, 1, &d1, false),
                         reduce(kinds[i], dense, 1, &d0, false),
                         reduce(kinds[i], dense, -1, NULL, false) };
    for (int k = 0; k < 4; k++) {
      size_t bytes = (size_t)peri_numel(a[k]) * peri_dtype_size(peri_dtype_of(a[k]));
      assert_memory_equal(peri_data(a[k]), peri_data(b[k]), bytes);
    }
    drop(4, a);
    drop(4, b);
  }
  drop(3, (peri_tensor *[]){ x, turned, dense });
}

static void empty_rows_give_the_neutral_element (void **state) {
  (void)state;
  int64_t last = -1;
  peri_tensor *x = make(PERI_F32, DIMS(2, 0), NULL);
  static const double want[] = { 0, NAN, 1, 0, 0, NAN, -INFINITY, 0, 0, 1, 0 };
  for (int i = 0; i < NKINDS; i++) {
    if (i == 3 || i == 4) {
      refuse("no elements", kinds[i], IN(x), ATTRS({ .v = &last, .n = 1 }, I(0)));
      continue;
    }
    peri_tensor *y = reduce(kinds[i], x, 1, &last, false);
    assert_int_equal(peri_numel(y), 2);
    double got = at(y, 1);
    assert_true(isnan(want[i]) ? isnan(got) : got == want[i]);
    peri_release(y);
  }
  refuse("no elements", "argmax", IN(x), ATTRS(I(INT64_MIN), I(0)));
  refuse("listed twice", "sum", IN(x), ATTRS({ .v = (int64_t[]){ 1, -1 }, .n = 2 }, I(0)));
  refuse("dim 2", "sum", IN(x), ATTRS({ .v = (int64_t[]){ 2 }, .n = 1 }, I(0)));
  peri_release(x);
}

static void nan_wins_and_places_are_the_first (void **state) {
  (void)state;
  const double v[] = { 1, 5, 5, 2, NAN, 9, NAN, 3, -1, -1, 0, 0 };
  for (int d = PERI_F32; d <= PERI_F64; d++) {
    peri_tensor *x = make((peri_dtype)d, DIMS(3, 4), v);
    peri_tensor *hi = run("argmax", IN(x), ATTRS(I(1), I(0))),
                *lo = run("argmin", IN(x), ATTRS(I(1), I(1)));
    peri_tensor *all = run("argmax", IN(x), ATTRS(I(INT64_MIN), I(0)));
    peri_tensor *max = run("max", IN(x), NULL);
    all_close(hi, (const double[]){ 1, 0, 2 }, 0);
    all_close(lo, (const double[]){ 0, 0, 0 }, 0);
    assert_int_equal(peri_ndim(lo), 2);
    assert_true(at(all, 0) == 4 && isnan(at(max, 0)));
    drop(5, (peri_tensor *[]){ x, hi, lo, all, max });
  }
}

/* One zero, two zeros, none: finite differences know nothing of them. */
static void gradients_of_products_are_right_with_zeros (void **state) {
  (void)state;
  const double v[] = { 1.5, -2, 0.5, 3, 0, 2, -1, 4, 0, 2, 0, 3, 2, 0, 0, 0, 0, 1, 2, 3 };
  peri_tensor *x = make(PERI_F64, DIMS(5, 4), v);
  check_gradients("prod", IN(x), ATTRS({ .v = (int64_t[]){ 1 }, .n = 1 }, I(0)), 1, &x);
  check_gradients("cumprod", IN(x), ATTRS(I(1)), 1, &x);
  check_gradients("cumprod", IN(x), ATTRS(I(0)), 1, &x);
  peri_release(x);
}

static void ties_share_the_gradient_of_an_extreme (void **state) {
  (void)state;
  peri_tensor *x = make(PERI_F64, DIMS(2, 4), (const double[]){ 3, 1, 3, 3, 1, 1, 2, 0 }),
              *g = NULL;
  peri_set_requires_grad(x, true);
  peri_tensor *y = run("max", IN(x), ATTRS({ .v = (int64_t[]){ 1 }, .n = 1 }, I(0)));
  peri_tensor *s = run("sum", IN(y), NULL);
  assert_int_equal(peri_gradients(ctx, s, NULL, 1, &x, false, &g), PERI_OK);
  all_close(g, (const double[]){ 1 / 3.0, 0, 1 / 3.0, 1 / 3.0, 0, 0, 1, 0 }, 1e-15);
  drop(4, (peri_tensor *[]){ x, y, s, g });
}

static void norms_of_every_order (void **state) {
  (void)state;
  peri_tensor *x = make(PERI_F32, DIMS(2, 3), (const double[]){ 3, -4, 0, 0, 0, 0 }), *y, *g = NULL;
  const peri_attr last = { .v = (int64_t[]){ 1 }, .n = 1 };
  const double p[] = { 0, 1, 2, 3, INFINITY }, want[] = { 2, 7, 5, 4.497941445275415, 4 };
  for (int i = 0; i < 5; i++) {
    y = run("norm", IN(x), ATTRS(F(p[i]), last, I(0)));
    all_close(y, (const double[]){ want[i], 0 }, 1e-6);
    peri_release(y);
  }
  refuse("p is", "norm", IN(x), ATTRS(F(-1), last, I(0)));
  peri_set_requires_grad(x, true);
  y = run("norm", IN(x), ATTRS(F(2), last, I(0)));
  peri_tensor *s = run("sum", IN(y), NULL);
  assert_int_equal(peri_gradients(ctx, s, NULL, 1, &x, false, &g), PERI_OK);
  all_close(g, (const double[]){ 0.6, -0.8, 0, 0, 0, 0 }, 1e-6);
  drop(4, (peri_tensor *[]){ x, y, s, g });
}

/* ---- scans ---- */

static void scans_run_along_any_dim (void **state) {
  (void)state;
  peri_tensor *x = make(PERI_F32, DIMS(2, 3), (const double[]){ 1, 3, 2, 4, 3, NAN }),
              *where = NULL;
  peri_tensor *s = run("cumsum", IN(x), ATTRS(I(0))), *p = run("cumprod", IN(x), ATTRS(I(-1)));
  peri_tensor *m = run2("cummax", IN(x), ATTRS(I(-1)), &where);
  assert_true(at(s, 3) == 5 && at(s, 4) == 6 && isnan(at(s, 5)));
  assert_true(at(p, 1) == 3 && at(p, 2) == 6 && at(p, 4) == 12);
  assert_true(at(m, 2) == 3 && at(m, 4) == 4 && isnan(at(m, 5)));
  all_close(where, (const double[]){ 0, 1, 1, 0, 0, 2 }, 0);
  drop(5, (peri_tensor *[]){ x, s, p, m, where });
  peri_tensor *wide = random_tensor(PERI_F32, DIMS(5, 9, 150), "wide", 2);
  peri_tensor *sum = run("cumsum", IN(wide), ATTRS(I(1)));
  for (int64_t i = 0; i < 5; i++)
    for (int64_t k = 0; k < 150; k++) {
      double acc = 0;
      for (int64_t j = 0; j < 9; j++) {
        acc += at(wide, (i * 9 + j) * 150 + k);
        close_to(at(sum, (i * 9 + j) * 150 + k), acc, 1e-6);
      }
    }
  drop(2, (peri_tensor *[]){ wide, sum });
}

/* ---- sorting ---- */

/* a comes before b in ascending order; NaN last. */
static bool before (double a, double b) { return isnan(b) ? !isnan(a) : a < b; }

static void check_sorted (peri_tensor *x, int64_t n, bool descending) {
  peri_tensor *places = NULL, *y = run2("sort", IN(x), ATTRS(I(-1), I(descending)), &places);
  peri_tensor *only = run("argsort", IN(x), ATTRS(I(-1), I(descending)));
  for (int64_t i = 0; i < peri_numel(x); i++) {
    int64_t row = i / n * n, from = ((int64_t *)peri_data(places))[i];
    double v = at(y, i), src = at(x, row + from);
    assert_true(from == ((int64_t *)peri_data(only))[i]);
    assert_true(v == src || (isnan(v) && isnan(src)));
    if (i == row) continue;
    double prev = at(y, i - 1);
    assert_false(descending ? before(prev, v) : before(v, prev));
    bool tie = !before(prev, v) && !before(v, prev);
    if (tie) assert_true(((int64_t *)peri_data(places))[i - 1] < from);
  }
  for (int64_t k = 1; k <= n; k += 1 + n / 5) {
    peri_tensor *at_k = NULL, *top = run2("topk", IN(x), ATTRS(I(k), I(-1), I(descending)), &at_k);
    for (int64_t r = 0; r < peri_numel(x) / n; r++)
      for (int64_t i = 0; i < k; i++)
        assert_true(((int64_t *)peri_data(at_k))[r * k + i] ==
                    ((int64_t *)peri_data(places))[r * n + i]);
    drop(2, (peri_tensor *[]){ top, at_k });
  }
  drop(3, (peri_tensor *[]){ y, places, only });
}

static void sorting_is_stable_and_nan_is_the_largest (void **state) {
  (void)state;
  static const int64_t lengths[] = { 1, 2, 7, 24, 25, 100, 800, 1023, 1024, 3000 };
  static const peri_dtype dtypes[] = { PERI_U8, PERI_I32, PERI_I64, PERI_F16, PERI_F32, PERI_F64 };
  for (int k = 0; k < 10; k++) {
    int64_t n = lengths[k];
    double *v = malloc((size_t)(2 * n) * sizeof *v);
    lcg("sort", 40, 2 * n, v);
    for (int64_t i = 0; i < 2 * n; i++) v[i] = i % 3 ? floor(v[i]) + 20 : v[i] + 20; /* ties */
    for (int d = 0; d < 6; d++) {
      peri_tensor *f = make(PERI_F64, DIMS(2, n), v), *x;
      if (dtypes[d] >= PERI_F16 && n > 6) {
        ((double *)peri_data(f))[3] = NAN;
        ((double *)peri_data(f))[5] = NAN;
        ((double *)peri_data(f))[6] = -0.0;
        ((double *)peri_data(f))[1] = 0;
        ((double *)peri_data(f))[4] = -INFINITY;
      }
      x = run("to", IN(f), ATTRS(I(dtypes[d])));
      check_sorted(x, n, false);
      check_sorted(x, n, true);
      drop(2, (peri_tensor *[]){ f, x });
    }
    free(v);
  }
}

static void sorting_runs_along_any_dim (void **state) {
  (void)state;
  peri_tensor *x = make(PERI_F32, DIMS(3, 2), (const double[]){ 3, 1, 1, 2, 2, 0 }), *where = NULL;
  peri_tensor *y = run2("sort", IN(x), ATTRS(I(0), I(0)), &where);
  all_close(y, (const double[]){ 1, 0, 2, 1, 3, 2 }, 0);
  all_close(where, (const double[]){ 1, 2, 2, 0, 0, 1 }, 0);
  peri_tensor *rows = NULL, *top = run2("topk", IN(x), ATTRS(I(1), I(0), I(1)), &rows);
  all_close(top, (const double[]){ 3, 2 }, 0);
  all_close(rows, (const double[]){ 0, 1 }, 0);
  refuse("k is 4", "topk", IN(x), ATTRS(I(4), I(0), I(1)));
  drop(5, (peri_tensor *[]){ x, y, where, top, rows });
}

static void allocation_failures_leave_nothing (void **state) {
  (void)state;
  const peri_attr first = { .v = (int64_t[]){ 0 }, .n = 1 };
  peri_tensor *x = random_tensor(PERI_F32, DIMS(600, 40), "x", 2);
  peri_tensor *h = run("to", IN(x), ATTRS(I(PERI_F16)));
  fail_every_allocation("sum", IN(x), ATTRS(first, I(0)));
  fail_every_allocation("sum", IN(h), ATTRS(first, I(0)));
  fail_every_allocation("var", IN(x), ATTRS(first, I(0), I(1)));
  fail_every_allocation("argmax", IN(x), ATTRS(I(0), I(0)));
  fail_every_allocation("cummax", IN(x), ATTRS(I(0)));
  fail_every_allocation("sort", IN(h), ATTRS(I(0), I(0)));
  drop(2, (peri_tensor *[]){ x, h });
}

int main (void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
  const struct CMUnitTest tests[] = {
    T(reductions_match_plain_loops),
    T(long_and_tall_ones_match),
    T(a_row_has_the_same_bits_in_any_batch),
    T(strides_do_not_show),
    T(empty_rows_give_the_neutral_element),
    T(nan_wins_and_places_are_the_first),
    T(gradients_of_products_are_right_with_zeros),
    T(ties_share_the_gradient_of_an_extreme),
    T(norms_of_every_order),
    T(scans_run_along_any_dim),
    T(sorting_is_stable_and_nan_is_the_largest),
    T(sorting_runs_along_any_dim),
    T(allocation_failures_leave_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
