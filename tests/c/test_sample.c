/*
** test_sample.c - draws of tokens: frequencies, truncation sets, keys, refusals.
*/
#include "loss_ops.h"

/* ---- sampling ---- */

#define SAMPLE(t, k, p, m, greedy) ATTRS(F(t), I(k), F(p), F(m), I(greedy))

static peri_tensor *same_rows (int64_t rows, int64_t v, const double *logits) {
  int64_t shape[] = { rows, v };
  peri_tensor *t = NULL;
  assert_int_equal(peri_empty(ctx, PERI_F32, 2, shape, &t), PERI_OK);
  for (int64_t i = 0; i < rows * v; i++) ((float *)peri_data(t))[i] = (float)logits[i % v];
  return t;
}

/* Frequencies of 40000 draws under the given probabilities. The 99.99 % quantile of chi-square is
** 33.7 for 9 degrees of freedom; the seed is fixed, so the test is a fact, not a chance. */
static void check_frequencies (const int64_t *ids, int64_t n, int64_t v, const double *p) {
  double count[16] = { 0 }, chi = 0;
  for (int64_t i = 0; i < n; i++) {
    assert_true(ids[i] >= 0 && ids[i] < v);
    count[ids[i]]++;
  }
  for (int64_t j = 0; j < v; j++) {
    if (p[j] == 0)
      assert_true(count[j] == 0);
    else
      chi += (count[j] - (double)n * p[j]) * (count[j] - (double)n * p[j]) / ((double)n * p[j]);
  }
  if (chi > 33.7) fail_msg("chi-square %g", chi);
}

static void sample_draws_with_the_right_frequencies (void **state) {
  enum { N = 40000, V = 10 };
  (void)state;
  double x[V], p[V], z = 0;
  lcg("freq", 4, V, x);
  x[4] = -INFINITY;
  for (int j = 0; j < V; j++) z += p[j] = exp(x[j] / 1.3);
  for (int j = 0; j < V; j++) p[j] /= z;
  peri_tensor *t = same_rows(N, V, x), *lp = NULL;
  peri_tensor *ids = run2("sample", 2, (peri_tensor *[]){ t, NULL }, SAMPLE(1.3, 0, 1, 0, 0), &lp);
  check_frequencies(peri_data(ids), N, V, p);
  for (int i = 0; i < N; i += 997) /* f32 logits */
    close_to(at(lp, i), log(p[(int)at(ids, i)]), 1e-6);
  peri_tensor *one = same_rows(2, V, x);
  peri_tensor *many = run("categorical", IN(one), ATTRS(I(N / 2)));
  z = 0;
  for (int j = 0; j < V; j++) z += p[j] = exp(x[j]);
  for (int j = 0; j < V; j++) p[j] /= z;
  assert_int_equal(peri_shape(many)[1], N / 2);
  check_frequencies(peri_data(many), N, V, p);
  drop(5, (peri_tensor *[]){ t, lp, ids, one, many });
}

/* Sets by hand, on probabilities .4 .3 .1 .1 .06 .04 in a scrambled order. */
static void truncation_keeps_the_right_tokens (void **state) {
  enum { N = 4000, V = 6 };
  static const double p[V] = { 0.1, 0.4, 0.06, 0.3, 0.1, 0.04 };
  static const struct {
    int64_t k;
    double top_p, min_p;
    double kept[V];
  } cases[] = {
    { 2, 1, 0, { 0, 1, 0, 1, 0, 0 } },
    { 3, 1, 0, { 1, 1, 0, 1, 1, 0 } },    /* a tie with the third is kept */
    { 0, 0.65, 0, { 0, 1, 0, 1, 0, 0 } }, /* .4 is less than .65: .3 still comes in */
    { 0, 0.39, 0, { 0, 1, 0, 0, 0, 0 } },
    { 0, 1, 0.2, { 1, 1, 0, 1, 1, 0 } }, /* at least .08 */
    { 2, 0.5, 0, { 0, 1, 0, 0, 0, 0 } }, /* of the two, .4 / .7 is .57 */
    { 4, 0.95, 0.5, { 0, 1, 0, 1, 0, 0 } },
    { 1, 1, 0, { 0, 1, 0, 0, 0, 0 } },
  };
  (void)state;
  double x[V];
  for (int j = 0; j < V; j++) x[j] = log(p[j]);
  for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
    double q[V], z = 0;
    for (int j = 0; j < V; j++) z += q[j] = p[j] * cases[c].kept[j];
    for (int j = 0; j < V; j++) q[j] /= z;
    peri_tensor *t = same_rows(N, V, x), *lp = NULL;
    peri_tensor *ids = run2("sample", 2, (peri_tensor *[]){ t, NULL },
                            SAMPLE(1, cases[c].k, cases[c].top_p, cases[c].min_p, 0), &lp);
    check_frequencies(peri_data(ids), N, V, q);
    close_to(at(lp, 0), x[(int)at(ids, 0)], 1e-6); /* of the whole distribution */
    drop(3, (peri_tensor *[]){ t, ids, lp });
  }
}

typedef struct weight {
  double e;
  int id;
} weight;

static int best_first (const void *a, const void *b) {
  const weight *x = a, *y = b;
  if (x->e != y->e) return x->e > y->e ? -1 : 1;
  return x->id - y->id;
}

/* Rows long enough for the bucketed cuts, against sorting: nothing outside the set is drawn, and
** its last member is within reach. */
static void truncation_of_long_rows_matches_sorting (void **state) {
  enum { V = 5000, N = 3000 };
  static const struct {
    int64_t k;
    double p, min_p;
  } cases[] = {
    { 40, 1, 0 },    { 0, 0.3, 0 }, { 0, 0.97, 0 },
    { 300, 0.5, 0 }, { 0, 1, 0.6 }, { 2000, 0.99, 0.5 },
  };
  (void)state;
  double *x = malloc(V * sizeof *x);
  weight *w = malloc(V * sizeof *w);
  lcg("long", 3, V, x);
  for (int j = 0; j < V; j++) x[j] = (double)(float)x[j];
  for (int j = 0; j < V; j++) w[j] = (weight){ exp(x[j] - 1.5), j };
  qsort(w, V, sizeof *w, best_first);
  peri_tensor *t = same_rows(N, V, x);
  for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
    int n = cases[c].k > 0 ? (int)cases[c].k : V, kept = 0;
    double total = 0, mass = 0, rank[V] = { 0 };
    for (int j = 0; j < n; j++) total += w[j].e;
    while (kept < n && (kept == 0 || mass < cases[c].p * total)) mass += w[kept++].e;
    while (kept > 1 && w[kept - 1].e < cases[c].min_p * w[0].e) kept--;
    for (int j = 0; j < V; j++) rank[w[j].id] = j;
    peri_tensor *lp = NULL;
    peri_tensor *ids = run2("sample", 2, (peri_tensor *[]){ t, NULL },
                            SAMPLE(1, cases[c].k, cases[c].p, cases[c].min_p, 0), &lp);
    double last = 0;
    for (int i = 0; i < N; i++) last = fmax(last, rank[(int)at(ids, i)]);
    assert_true(last < kept + 1); /* the sums of the two may differ in the last bit: one more */
    assert_true(last > 0.9 * kept - 3);
    drop(2, (peri_tensor *[]){ ids, lp });
  }
  peri_release(t);
  free(x);
  free(w);
}

static void greedy_takes_the_first_largest (void **state) {
  (void)state;
  peri_tensor *t = make(PERI_F32, DIMS(2, 4), (double[]){ 1, 3, 3, 0, -1, -2, -3, -0.5 });
  peri_tensor *lp = NULL, *lp2 = NULL;
  peri_tensor *a = run2("sample", 2, (peri_tensor *[]){ t, NULL }, SAMPLE(0, 0, 1, 0, 0), &lp);
  peri_tensor *b = run2("sample", 2, (peri_tensor *[]){ t, NULL }, SAMPLE(1, 3, 0.5, 0, 1), &lp2);
  assert_true(at(a, 0) == 1 && at(a, 1) == 3 && at(b, 0) == 1 && at(b, 1) == 3);
  close_to(at(lp, 0), 3 - log(exp(1) + 2 * exp(3) + 1), 1e-6);
  drop(5, (peri_tensor *[]){ t, a, b, lp, lp2 });
}

static void keyed_draws_do_not_depend_on_their_place (void **state) {
  enum { N = 64, V = 300 };
  (void)state;
  peri_tensor *x = random_tensor(PERI_F32, DIMS(N, V), "key.x", 6), *back, *lp[3];
  double keys[N], rkeys[N], *rx = malloc(N * V * sizeof *rx);
  for (int i = 0; i < N; i++) keys[i] = 1000 + 17 * i;
  for (int i = 0; i < N; i++) rkeys[i] = keys[N - 1 - i];
  for (int i = 0; i < N; i++)
    for (int j = 0; j < V; j++) rx[i * V + j] = at(x, (N - 1 - i) * V + j);
  back = make(PERI_F32, DIMS(N, V), rx);
  peri_tensor *k = make(PERI_I64, DIMS(N), keys), *rk = make(PERI_I64, DIMS(N), rkeys);
  peri_rng before = peri_rng_get(ctx);
  peri_tensor *a = run2("sample", IN(x, k), NULL, &lp[0]);
  peri_tensor *b = run2("sample", IN(back, rk), NULL, &lp[1]);
  assert_true(peri_rng_get(ctx).offset == before.offset);
  int moved = 0;
  for (int i = 0; i < N; i++) {
    assert_true(at(a, i) == at(b, N - 1 - i));
    assert_true(at(lp[0], i) == at(lp[1], N - 1 - i));
  }
  peri_tensor *c = run2("sample", 2, (peri_tensor *[]){ x, NULL }, NULL, &lp[2]);
  for (int i = 0; i < N; i++) moved += at(a, i) != at(c, i);
  assert_true(moved > N / 2); /* other streams: almost every draw differs */
  assert_true(peri_rng_get(ctx).offset == before.offset + 1);
  drop(10, (peri_tensor *[]){ x, back, k, rk, a, b, c, lp[0], lp[1], lp[2] });
  free(rx);
}

/* A pair of seed and key draws what the generator with that seed draws by the key. */
static void keys_may_bring_their_seed (void **state) {
  enum { N = 32, V = 200 };
  (void)state;
  peri_tensor *x = random_tensor(PERI_F32, DIMS(N, V), "seeded.x", 6), *lp[2];
  double keys[N], pairs[2 * N];
  for (int i = 0; i < N; i++) {
    keys[i] = pairs[2 * i + 1] = 5 + 3 * i;
    pairs[2 * i] = 77;
  }
  peri_tensor *k = make(PERI_I64, DIMS(N), keys), *p = make(PERI_I64, DIMS(N, 2), pairs);
  peri_rng before = peri_rng_get(ctx);
  peri_tensor *a = run2("sample", IN(x, p), NULL, &lp[0]);
  assert_true(peri_rng_get(ctx).offset == before.offset);
  peri_rng_set(ctx, (peri_rng){ .seed = 77 });
  peri_tensor *b = run2("sample", IN(x, k), NULL, &lp[1]);
  peri_rng_set(ctx, before);
  for (int i = 0; i < N; i++) assert_true(at(a, i) == at(b, i));
  peri_tensor *wrong = make(PERI_I64, DIMS(N, 4), (double[4 * N]){ 0 });
  refuse("(32, 4)", "sample", IN(x, wrong), NULL);
  drop(8, (peri_tensor *[]){ x, k, p, a, b, lp[0], lp[1], wrong });
}

static void sample_refuses_rows_without_a_distribution (void **state) {
  (void)state;
  peri_tensor *x = make(PERI_F32, DIMS(2, 2), (double[]){ 0, 1, NAN, 0 });
  peri_tensor *y = make(PERI_F32, DIMS(1, 2), (double[]){ -INFINITY, -INFINITY });
  peri_tensor *z = make(PERI_F32, DIMS(1, 2), (double[]){ 0, 1 });
  peri_rng before = peri_rng_get(ctx);
  refuse("row 1", "sample", 2, (peri_tensor *[]){ x, NULL }, NULL);
  refuse("row 0", "sample", 2, (peri_tensor *[]){ y, NULL }, NULL);
  refuse("row 1", "categorical", IN(x), NULL);
  assert_true(peri_rng_get(ctx).offset == before.offset);
  fail_every_allocation("sample", 2, (peri_tensor *[]){ z, NULL }, SAMPLE(1, 1, 0.5, 0, 0));
  refuse("top_p is 0", "sample", 2, (peri_tensor *[]){ x, NULL }, SAMPLE(1, 0, 0, 0, 0));
  refuse("temperature is -1", "sample", 2, (peri_tensor *[]){ x, NULL }, SAMPLE(-1, 0, 1, 0, 0));
  drop(3, (peri_tensor *[]){ x, y, z });
}

int main (void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
  const struct CMUnitTest tests[] = {
    T(sample_draws_with_the_right_frequencies),
    T(truncation_keeps_the_right_tokens),
    T(truncation_of_long_rows_matches_sorting),
    T(greedy_takes_the_first_largest),
    T(keyed_draws_do_not_depend_on_their_place),
    T(sample_refuses_rows_without_a_distribution),
    T(keys_may_bring_their_seed),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
