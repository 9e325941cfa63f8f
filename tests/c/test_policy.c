/*
** test_policy.c - policy files without Lua: what each head does with known weights, what a recurrent program
** remembers, and a refusal with its reason for everything that a file may say wrongly.
*/
#include "scratch.h"

#include <math.h>
#include <string.h>

/* w (2, 2) turns the observation (a, b) into (a - b, b). */
static void write_policy (const char *json) {
  static const float w[] = { 1, -1, 0, 1 }, s[] = { -20, -20 };
  static const int64_t shape[] = { 2, 2 };
  const char *names[] = { "w", "s" };
  peri_tensor *t[2];
  peri_text_pair pair = { "perilune.policy", json };
  assert_int_equal(peri_from(C, PERI_F32, 2, shape, w, &t[0]), PERI_OK);
  assert_int_equal(peri_from(C, PERI_F32, 1, shape, s, &t[1]), PERI_OK);
  assert_int_equal(peri_safetensors_save(C, Path, 2, names, t, 1, &pair), PERI_OK);
  peri_release(t[0]);
  peri_release(t[1]);
}

#define OBS \
  "\"version\":1,\"environment\":\"Two-v0\",\"observation\":{\"kind\":\"box\",\"shape\":[2]},"
#define PROGRAM "\"program\":[{\"op\":\"linear\",\"in\":[\"obs\",\"w\"],\"out\":[\"y\"]}],"
#define DISCRETE "\"action\":{\"kind\":\"discrete\",\"n\":2,\"start\":5},"
#define BOX "\"action\":{\"kind\":\"box\",\"shape\":[2],\"low\":[-1,0],\"high\":[1,10]},"

static peri_policy *load (const char *json) {
  peri_policy *p;
  write_policy(json);
  if (peri_policy_load(C, Path, &p) != PERI_OK) fail_msg("%s", peri_message(C));
  return p;
}

static void a_categorical_head_takes_the_likeliest_legal_action (void **state) {
  (void)state;
  peri_policy *p =
      load("{" OBS DISCRETE PROGRAM "\"head\":{\"kind\":\"categorical\",\"in\":[\"y\"]}}");
  const float obs[] = { 5, 1, 1, 2 };
  const uint8_t mask[] = { 0, 1, 1, 1 }, none[] = { 1, 1, 0, 0 };
  int64_t a[2] = { 0, 0 };
  assert_string_equal(peri_policy_env(p), "Two-v0");
  assert_int_equal(peri_policy_choices(p), 2);
  assert_int_equal(peri_policy_act(p, 2, obs, NULL, true, a), PERI_OK);
  assert_int_equal(a[0], 5);
  assert_int_equal(a[1], 6);
  assert_int_equal(peri_policy_act(p, 2, obs, mask, true, a), PERI_OK);
  assert_int_equal(a[0], 6);
  assert_int_equal(peri_policy_act(p, 2, obs, none, true, a), PERI_EINVAL);
  assert_non_null(strstr(peri_message(C), "no action of row 1 is legal"));
  int count = 0; /* logits 4 and 1: the first in 95.3 of 100 */
  for (int i = 0; i < 2000; i++) {
    assert_int_equal(peri_policy_act(p, 1, obs, NULL, false, a), PERI_OK);
    count += a[0] == 5;
  }
  assert_in_range(count, 1870, 1940);
  peri_policy_close(p);
}

static void a_greedy_head_takes_any_action_as_often_as_epsilon_says (void **state) {
  (void)state;
  peri_policy *p = load("{" OBS DISCRETE PROGRAM
                        "\"head\":{\"kind\":\"greedy\",\"in\":[\"y\"],\"epsilon\":0.5}}");
  const float obs[] = { 5, 1 };
  int64_t a = 0;
  int count = 0;
  for (int i = 0; i < 2000; i++) {
    assert_int_equal(peri_policy_act(p, 1, obs, NULL, false, &a), PERI_OK);
    count += a == 6;
    assert_int_equal(peri_policy_act(p, 1, obs, NULL, true, &a), PERI_OK);
    assert_int_equal(a, 5);
  }
  assert_in_range(count, 430, 570);
  peri_policy_close(p);
}

static void box_heads_stay_within_the_bounds (void **state) {
  (void)state;
  const float obs[] = { 3, 1 };
  float a[2];
  peri_policy *p =
      load("{" OBS BOX PROGRAM "\"head\":{\"kind\":\"gaussian\",\"in\":[\"y\",\"s\"]}}");
  assert_int_equal(peri_policy_act(p, 1, obs, NULL, true, a), PERI_OK);
  assert_true(a[0] == 1 && a[1] == 1);
  assert_int_equal(peri_policy_act(p, 1, obs, NULL, false, a), PERI_OK); /* std e^-20 */
  assert_true(a[0] == 1 && fabsf(a[1] - 1) < 1e-6F);
  peri_policy_close(p);
  p = load("{" OBS BOX PROGRAM "\"head\":{\"kind\":\"squashed\",\"in\":[\"y\",\"s\"]}}");
  assert_int_equal(peri_policy_act(p, 1, obs, NULL, true, a), PERI_OK);
  assert_true(fabs(a[0] - tanh(2)) < 1e-6 && fabs(a[1] - (tanh(1) + 1) * 5) < 1e-5);
  peri_policy_close(p);
  p = load("{" OBS BOX "\"program\":[{\"op\":\"linear\",\"in\":[\"obs\",\"w\"],\"out\":[\"y\"],"
           "\"attr\":{\"act\":\"tanh\"}}],\"head\":{\"kind\":\"tanh\",\"in\":[\"y\"]}}");
  assert_int_equal(peri_policy_act(p, 1, obs, NULL, false, a), PERI_OK);
  assert_true(fabs(a[0] - tanh(2)) < 1e-6 && fabs(a[1] - (tanh(1) + 1) * 5) < 1e-5);
  peri_policy_close(p);
}

/* state.1 += obs: the sum so far decides. */
static void a_recurrent_policy_remembers_by_row_until_it_restarts (void **state) {
  (void)state;
  peri_policy *p = load("{" OBS "\"action\":{\"kind\":\"box\",\"shape\":[2]},"
                        "\"state\":[{\"name\":\"h\",\"shape\":[2]}],"
                        "\"program\":[{\"op\":\"add\",\"in\":[\"obs\",\"h\"],\"out\":[\"h\"]}],"
                        "\"head\":{\"kind\":\"gaussian\",\"in\":[\"h\",\"s\"]}}");
  const float obs[] = { 1, 2, 3, 4 };
  const uint8_t first[] = { 1, 0 };
  float a[4];
  for (int i = 0; i < 3; i++) assert_int_equal(peri_policy_act(p, 2, obs, NULL, true, a), PERI_OK);
  assert_true(a[0] == 3 && a[3] == 12);
  assert_int_equal(peri_policy_act(p, 1, obs, NULL, true, a), PERI_ESHAPE);
  assert_int_equal(peri_policy_restart(p, 2, first), PERI_OK);
  assert_int_equal(peri_policy_act(p, 2, obs, NULL, true, a), PERI_OK);
  assert_true(a[0] == 1 && a[3] == 16);
  assert_int_equal(peri_policy_restart(p, 0, NULL), PERI_OK);
  assert_int_equal(peri_policy_act(p, 1, obs, NULL, true, a), PERI_OK);
  assert_true(a[0] == 1 && a[1] == 2);
  peri_policy_close(p);
}

static void nan_from_the_network_is_named (void **state) {
  (void)state;
  peri_policy *p =
      load("{" OBS DISCRETE PROGRAM "\"head\":{\"kind\":\"categorical\",\"in\":[\"y\"]}}");
  const float obs[] = { 1, 1, NAN, 1 };
  int64_t a[2];
  assert_int_equal(peri_policy_act(p, 2, obs, NULL, true, a), PERI_EINVAL);
  assert_non_null(strstr(peri_message(C), "row 1"));
  peri_policy_close(p);
}

#define HEAD "\"head\":{\"kind\":\"categorical\",\"in\":[\"y\"]}"
static const struct {
  const char *json, *says;
} wrong[] = {
  { "[]", "policy" },
  { "{}", "needs 'version'" },
  { "{\"version\":2}", "version 2" },
  { "{\"colour\":1}", "a key that policies do not have" },
  { "{" OBS DISCRETE PROGRAM "\"head\":{\"kind\":\"categorical\"}}", "reads 1 values, not 0" },
  { "{" OBS DISCRETE PROGRAM "\"head\":{\"kind\":\"best\",\"in\":[\"y\"]}}", "a head that" },
  { "{" OBS DISCRETE PROGRAM "\"head\":{\"kind\":\"categorical\",\"in\":[\"z\"]}}", "'z' is no" },
  { "{" OBS DISCRETE PROGRAM "\"head\":{\"kind\":\"tanh\",\"in\":[\"y\"]}}", "does not fit" },
  { "{" OBS BOX PROGRAM HEAD "}", "does not fit" },
  { "{" OBS "\"action\":{\"kind\":\"box\",\"shape\":[2]}," PROGRAM
    "\"head\":{\"kind\":\"tanh\",\"in\":[\"y\"]}}",
    "finite bounds" },
  { "{" DISCRETE PROGRAM HEAD "}", "needs 'version'" },
  { "{" OBS PROGRAM DISCRETE "\"program\":[]}", "duplicate key" },
  { "{" OBS DISCRETE
    "\"program\":[{\"op\":\"linear\",\"in\":[\"obs\",\"v\"],\"out\":[\"y\"]}]," HEAD "}",
    "'v' is no tensor" },
  { "{" OBS DISCRETE
    "\"program\":[{\"op\":\"linear\",\"in\":[\"obs\",\"w\"],\"out\":[\"w\"]}]," HEAD "}",
    "'w' may not be written" },
  { "{" OBS DISCRETE
    "\"program\":[{\"op\":\"linear\",\"in\":[\"obs\",\"w\"],\"out\":[\"obs\"]}]," HEAD "}",
    "'obs' may not be written" },
  { "{" OBS DISCRETE "\"program\":[{\"op\":\"fill_\",\"in\":[\"w\"],\"out\":[\"y\"]}]," HEAD "}",
    "no op that a policy can use" },
  { "{" OBS DISCRETE "\"program\":[{\"op\":\"lineer\",\"in\":[\"obs\"],\"out\":[\"y\"]}]," HEAD "}",
    "'lineer' is no op" },
  { "{" OBS DISCRETE "\"program\":[{\"op\":\"tanh\",\"in\":[],\"out\":[\"y\"]}]," HEAD "}",
    "needs op, in and out" },
  { "{" OBS DISCRETE "\"program\":[{\"op\":\"tanh\",\"in\":[\"obs\"],\"out\":[\"y\",\"z\"]}]," HEAD
    "}",
    "more outs" },
  { "{" OBS DISCRETE "\"program\":[{\"op\":\"linear\",\"in\":[\"obs\",\"w\"],\"out\":[\"y\"],"
    "\"attr\":{\"rate\":1}}]," HEAD "}",
    "no attribute 'rate'" },
  { "{" OBS "\"action\":{\"kind\":\"discrete\",\"n\":0}," PROGRAM HEAD "}", "n" },
  { "{" OBS "\"action\":{\"kind\":\"discrete\",\"n\":2,\"nvec\":[2]}," PROGRAM HEAD "}", "nvec" },
  { "{\"version\":1,\"observation\":{\"kind\":\"box\",\"shape\":[2],\"low\":[1]}}", "not as many" },
  { "{\"version\":1,\"observation\":{\"kind\":\"box\",\"shape\":[2147483648,2147483648,2147483648]}"
    "}",
    "" },
  { "{\"version\":1,\"observation\":{\"kind\":\"box\",\"shape\":[1073741824]}}", "1 GiB" },
  { "{\"version\":1,\"observation\":{\"kind\":\"ball\"}}", "'ball'" },
  { "{\"version\":1,\"observation\":{}}", "without a kind" },
  { "{" OBS DISCRETE "\"state\":[{\"name\":\"w\",\"shape\":[1]}]," PROGRAM HEAD "}",
    "the name of another value" },
  { "{" OBS DISCRETE "\"state\":[{\"name\":\"h\"}]," PROGRAM HEAD "}", "needs name and shape" },
  { "{" OBS DISCRETE PROGRAM HEAD "} 1", "" },
};

static void what_a_file_says_wrongly_is_refused_with_its_reason (void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    peri_policy *p = NULL;
    write_policy(wrong[i].json);
    assert_int_not_equal(peri_policy_load(C, Path, &p), PERI_OK);
    assert_null(p);
    if (!strstr(peri_message(C), wrong[i].says) || !strstr(peri_message(C), Path))
      fail_msg("%s: %s", wrong[i].json, peri_message(C));
  }
}

/* Shapes are known when it runs: a message, and the policy serves on. */
static void a_program_that_does_not_fit_fails_when_it_runs (void **state) {
  (void)state;
  peri_policy *p = load(
      "{" OBS DISCRETE "\"program\":[{\"op\":\"sum\",\"in\":[\"obs\"],\"out\":[\"y\"]}]," HEAD "}");
  const float obs[] = { 1, 1 };
  int64_t a = 7;
  assert_int_equal(peri_policy_act(p, 1, obs, NULL, true, &a), PERI_EFORMAT);
  assert_int_equal(a, 7);
  peri_policy_close(p);
  p = load("{" OBS DISCRETE
           "\"program\":[{\"op\":\"matmul\",\"in\":[\"obs\",\"obs\"],\"out\":[\"y\"]}]," HEAD "}");
  assert_int_not_equal(peri_policy_act(p, 1, obs, NULL, true, &a), PERI_OK);
  assert_non_null(strstr(peri_message(C), "step 0"));
  peri_policy_close(p);
}

static void out_of_memory_leaves_nothing_behind (void **state) {
  (void)state;
  write_policy("{" OBS BOX "\"state\":[{\"name\":\"h\",\"shape\":[2]}]," PROGRAM
               "\"head\":{\"kind\":\"gaussian\",\"in\":[\"y\",\"s\"]}}");
  peri_memory before = { .struct_size = sizeof before }, after = before;
  peri_memory_stats(C, &before);
  for (int64_t n = 0;; n++) {
    peri_policy *p = NULL;
    peri_test_fail_after(C, n, false);
    peri_status s = peri_policy_load(C, Path, &p);
    bool fired = peri_test_fired(C);
    peri_test_fail_after(C, -1, false);
    peri_policy_close(p);
    peri_memory_stats(C, &after);
    assert_int_equal(after.tensors, before.tensors);
    if (!fired) {
      assert_int_equal(s, PERI_OK);
      break;
    }
  }
}

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(a_categorical_head_takes_the_likeliest_legal_action),
    TEST(a_greedy_head_takes_any_action_as_often_as_epsilon_says),
    TEST(box_heads_stay_within_the_bounds),
    TEST(a_recurrent_policy_remembers_by_row_until_it_restarts),
    TEST(nan_from_the_network_is_named),
    TEST(what_a_file_says_wrongly_is_refused_with_its_reason),
    TEST(a_program_that_does_not_fit_fails_when_it_runs),
    TEST(out_of_memory_leaves_nothing_behind),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
