/*
** test_advantage.c - returns and advantages against definitions and against numbers marked "vector",
** which come from rl_losses.json of the reference vectors.
*/
#include "loss_ops.h"

/* ---- advantages ---- */

/* vector rl_losses.json: grpo_adv (a flat group is null there where eps is 0, and 0 here) */
static void group_advantages_match_the_three_conventions (void **state) {
  static const double rewards[12] = { 1, 0, 0, 1.1, 0, 0, 0, 0, 2, 1, 0.5, 0 };
  static const struct {
    const char *std;
    double eps, want[12];
  } cases[] = {
    { "population",
      0,
      { 0.902717242, -0.99774011, -0.99774011, 1.092762978, 0, 0, 0, 0, 1.521277659, 0.169030851,
        -0.507092553, -1.183215957 } },
    { "sample",
      1e-4,
      { 0.781647417, -0.863926093, -0.863926093, 0.946204768, 0, 0, 0, 0, 1.317310831, 0.14636787,
        -0.43910361, -1.024575091 } },
    { "none", 0, { 0.475, -0.525, -0.525, 0.575, 0, 0, 0, 0, 1.125, 0.125, -0.375, -0.875 } },
  };
  (void)state;
  for (int d = 0; d < 2; d++) {
    peri_tensor *r = make(d ? PERI_F64 : PERI_F32, DIMS(12), rewards);
    for (int c = 0; c < 3; c++) {
      peri_tensor *a = run("group_advantage", 2, (peri_tensor *[]){ r, NULL },
                           ATTRS(I(4), S(cases[c].std), F(cases[c].eps), I(0)));
      all_close(a, cases[c].want, d ? 1e-9 : 1e-6);
      peri_release(a);
    }
    peri_release(r);
  }
}

static void group_advantages_work_by_position_jointly_and_masked (void **state) {
  (void)state;
  peri_tensor *r = make(PERI_F64, DIMS(4, 2), (double[]){ 1, 5, 3, 7, 2, 9, 2, 4 });
  peri_tensor *m = make(PERI_BOOL, DIMS(4, 2), (double[]){ 1, 1, 1, 0, 1, 1, 1, 1 });
  double half = sqrt(0.5), s3 = sqrt(((1 - 3) * (1 - 3) + (5 - 3) * (5 - 3)) / 2.0);
  peri_tensor *a = run("group_advantage", IN(r, m), ATTRS(I(2), S("sample"), F(0), I(0)));
  all_close(a, (double[]){ -half, 0, half, 0, 0, half, 0, -half }, 1e-12);
  peri_tensor *b = run("group_advantage", IN(r, m), ATTRS(I(2), S("sample"), F(0), I(1)));
  close_to(at(b, 0), (1 - 3) / s3, 1e-12);
  close_to(at(b, 1), (5 - 3) / s3, 1e-12);
  close_to(at(b, 2), 0, 1e-12);
  assert_true(at(b, 3) == 0);
  ((double *)peri_data(r))[3] = NAN; /* masked */
  peri_release(run("group_advantage", IN(r, m), ATTRS(I(2), S("none"), F(0), I(0))));
  ((double *)peri_data(r))[6] = NAN;
  refuse("position 6 (from 0) is NaN", "group_advantage", IN(r, m),
         ATTRS(I(2), S("none"), F(0), I(0)));
  refuse("groups of 3", "group_advantage", IN(r, m), ATTRS(I(3), S("none"), F(0), I(0)));
  drop(4, (peri_tensor *[]){ r, m, a, b });
}

/* vector rl_losses.json: ppo */
static const double ppo_rewards[12] = { -0.393213749, 0.549696207,  -0.445729613, 0.501491189,
                                        -0.740616441, -0.061660409, -0.727098465, 0.991976142,
                                        -0.358057618, 0.764894724,  0.896527171,  0.48181057 };
static const double ppo_values[12] = { 0.923345804, 0.815868855,  0.664797187,  0.031282783,
                                       -0.39688611, -0.245752573, -0.788378477, 0.799948454,
                                       0.708799005, 0.285562754,  0.858881712,  0.606442928 };
static const double ppo_advantages[12] = { -1.354637305, -0.899296032, -1.372963955, -0.311969282,
                                           -0.413886697, 0.184092164,  2.513792339,  1.765617605,
                                           0.927037642,  1.81944406,   0.520807225,  -0.124632359 };
static const double ppo_returns[12] = { -0.431291501, -0.083427178, -0.708166768, -0.280686499,
                                        -0.810772808, -0.061660409, 1.725413862,  2.565566059,
                                        1.635836647,  2.105006814,  1.379688937,  0.48181057 };

static void gae_matches_ppo (void **state) {
  (void)state;
  peri_tensor *r = make(PERI_F64, DIMS(2, 6), ppo_rewards), *ret = NULL;
  peri_tensor *v = make(PERI_F64, DIMS(2, 6), ppo_values);
  peri_tensor *a = run2("gae", 6, (peri_tensor *[]){ r, v, NULL, NULL, NULL, NULL }, NULL, &ret);
  all_close(a, ppo_advantages, 2e-9); /* stored with nine digits */
  all_close(ret, ppo_returns, 2e-9);
  drop(4, (peri_tensor *[]){ r, v, a, ret });
}

/* Masked tokens in between are skipped over: the rest is as if they were not there. */
static void gae_carries_over_masked_tokens (void **state) {
  (void)state;
  double r[16] = { 0 }, v[16] = { 0 }, on[16] = { 0 }, want[16] = { 0 };
  static const int place[6] = { 0, 2, 3, 4, 6, 7 };
  for (int row = 0; row < 2; row++)
    for (int t = 0; t < 6; t++) {
      int i = row * 8 + place[t];
      r[i] = ppo_rewards[row * 6 + t];
      v[i] = ppo_values[row * 6 + t];
      want[i] = ppo_advantages[row * 6 + t];
      on[i] = 1;
    }
  r[1] = NAN; /* never looked at */
  v[5] = 100;
  peri_tensor *rt = make(PERI_F64, DIMS(2, 8), r), *vt = make(PERI_F64, DIMS(2, 8), v), *ret = NULL;
  peri_tensor *m = make(PERI_BOOL, DIMS(2, 8), on);
  peri_tensor *a = run2("gae", 6, (peri_tensor *[]){ rt, vt, NULL, NULL, NULL, m }, NULL, &ret);
  all_close(a, want, 2e-9);
  drop(5, (peri_tensor *[]){ rt, vt, m, a, ret });
}

/* Against the definition: A_t = sum of (gamma lam)^k delta_t+k up to the end of the episode. */
static void gae_bootstraps_through_truncation_and_stops_at_termination (void **state) {
  enum { T = 9 };
  (void)state;
  double r[T], v[T], next[T], term[T] = { 0 }, trunc[T] = { 0 }, want[T];
  lcg("gae.r", 2, T, r);
  lcg("gae.v", 2, T, v);
  lcg("gae.n", 2, T, next);
  term[2] = trunc[5] = term[7] = trunc[7] = 1;
  for (int t = 0; t < T; t++) {
    double w = 1;
    want[t] = 0;
    for (int k = t; k < T; k++, w *= 0.9 * 0.8) {
      want[t] += w * (r[k] + 0.9 * next[k] * (1 - term[k]) - v[k]);
      if (term[k] + trunc[k] > 0) break;
    }
  }
  peri_tensor *in[6] = { make(PERI_F64, DIMS(1, T), r),      make(PERI_F64, DIMS(1, T), v),
                         make(PERI_F64, DIMS(1, T), next),   make(PERI_BOOL, DIMS(1, T), term),
                         make(PERI_BOOL, DIMS(1, T), trunc), NULL };
  peri_tensor *ret = NULL, *a = run2("gae", 6, in, ATTRS(F(0.9), F(0.8)), &ret), *none[6];
  all_close(a, want, 1e-12);
  for (int t = 0; t < T; t++) close_to(at(ret, t), want[t] + v[t], 1e-12);
  memcpy(none, in, sizeof none);
  none[2] = NULL;
  refuse("position 5 (from 0): next_values", "gae", 6, none, ATTRS(F(0.9), F(0.8)));
  refuse("gamma is 1.5", "gae", 6, in, ATTRS(F(1.5), F(0.8)));
  ((double *)peri_data(in[0]))[4] = INFINITY;
  refuse("position 4", "gae", 6, in, NULL);
  drop(6, in);
  drop(2, (peri_tensor *[]){ a, ret });
}

static void discounted_sums_match_their_definition (void **state) {
  (void)state;
  peri_tensor *r = make(PERI_F64, DIMS(2, 4), (double[]){ 1, 2, 3, 4, 5, 6, 7, 8 });
  peri_tensor *d = make(PERI_BOOL, DIMS(2, 4), (double[]){ 0, 1, 0, 0, 0, 0, 0, 0 });
  peri_tensor *y = run("discounted_sum", IN(r, d), ATTRS(F(0.5), I(0)));
  all_close(y, (double[]){ 2, 2, 5, 4, 10.75, 11.5, 11, 8 }, 1e-14);
  peri_tensor *z = run("discounted_sum", IN(r, d), ATTRS(F(0.5), I(1)));
  all_close(z, (double[]){ 1, 2.5, 3, 5.5, 5, 8.5, 11.25, 13.625 }, 1e-14);
  for (int reverse = 0; reverse < 2; reverse++)
    check_gradients("discounted_sum", IN(r, d), ATTRS(F(0.5), I(reverse)), 1,
                    (peri_tensor *[]){ r });
  drop(4, (peri_tensor *[]){ r, d, y, z });
}

int main (void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
  const struct CMUnitTest tests[] = {
    T(group_advantages_match_the_three_conventions),
    T(group_advantages_work_by_position_jointly_and_masked),
    T(gae_matches_ppo),
    T(gae_carries_over_masked_tokens),
    T(gae_bootstraps_through_truncation_and_stops_at_termination),
    T(discounted_sums_match_their_definition),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
