/* Built-in environments that step many rows at once: the same bits on every level, whatever the
** rows. */
#include "levels.h"

#include <math.h>
#include <string.h>

#include "cpu/env.h"

enum { ROWS = 67, STRIDE = 70, STEPS = 200 };

struct rows {
  double state[4 * STRIDE], reward[ROWS];
  float obs[4 * ROWS];
  uint8_t terminated[ROWS];
};

static void fill (struct rows *r) {
  memset(r, 0, sizeof *r);
  for (int k = 0; k < 4; k++)
    for (int i = 0; i < STRIDE; i++)
      r->state[k * STRIDE + i] = (double)uniform() * (k == 0 ? 2.4 : k == 2 ? 0.2095 : 3);
}

static void step (const struct peri__env_kernels *k, struct rows *r, const int64_t *action,
                  int each) {
  for (int i = 0; i < ROWS; i += each)
    k->cartpole(r->state, STRIDE, i, i + each < ROWS ? i + each : ROWS, action, r->obs, r->reward,
                r->terminated, 1, -1);
}

static void test_every_level_gives_the_same_bits (void **state) {
  (void)state;
  static struct rows one, other;
  int64_t action[ROWS];
  seed = 5;
  for (int n = 0; n < STEPS; n++) {
    struct rows start;
    fill(&start);
    for (int i = 0; i < ROWS; i++) action[i] = uniform() > 0;
    one = start;
    step(peri__cpu_level(PERI_SIMD_PORTABLE)->env, &one, action, ROWS);
    for (int l = 0; l < NLEVELS; l++)
      for (int each = 1; each <= ROWS; each = 3 * each + 2) {
        if (!peri__cpu_level(levels[l])) continue;
        other = start;
        step(peri__cpu_level(levels[l])->env, &other, action, each);
        assert_memory_equal(&one, &other, sizeof one);
      }
  }
}

static void test_other_rows_are_not_touched (void **state) {
  (void)state;
  static struct rows before, after;
  int64_t action[ROWS] = { 0 };
  seed = 6;
  fill(&before);
  after = before;
  peri__cpu_level(PERI_SIMD_AUTO)
      ->env->cartpole(after.state, STRIDE, 3, 3 + 20, action, after.obs, after.reward,
                      after.terminated, 1, -1);
  for (int i = 0; i < STRIDE; i++)
    for (int k = 0; k < 4; k++) {
      bool same = before.state[k * STRIDE + i] == after.state[k * STRIDE + i];
      assert_int_equal(same, i < 3 || i >= 23);
    }
  for (int i = 0; i < ROWS; i++) assert_true((after.reward[i] == 0) == (i < 3 || i >= 23));
}

/* The angle after a step of 0.02 s tells the cosine and sine of the angle before: the equations
** with long double. */
static void test_steps_are_right_to_the_last_digits (void **state) {
  (void)state;
  static struct rows r, before;
  int64_t action[ROWS];
  seed = 7;
  for (int n = 0; n < STEPS; n++) {
    fill(&r);
    before = r;
    for (int i = 0; i < ROWS; i++) action[i] = uniform() > 0;
    step(peri__cpu_level(PERI_SIMD_AUTO)->env, &r, action, ROWS);
    for (int i = 0; i < ROWS; i++) {
      const double *s = before.state + i;
      long double a = s[2 * STRIDE], w = s[3 * STRIDE], force = action[i] ? 10 : -10;
      long double sine = sinl(a), cosine = cosl(a), temp = (force + 0.05L * w * w * sine) / 1.1L;
      long double turn =
          (9.8L * sine - cosine * temp) / (0.5L * (4.0L / 3 - 0.1L * cosine * cosine / 1.1L));
      long double push = temp - 0.05L * turn * cosine / 1.1L;
      assert_true(fabsl(r.state[i] - (s[0] + 0.02L * s[STRIDE])) < 1e-15L);
      assert_true(fabsl(r.state[STRIDE + i] - (s[STRIDE] + 0.02L * push)) < 2e-15L);
      assert_true(fabsl(r.state[2 * STRIDE + i] - (a + 0.02L * w)) < 1e-15L);
      assert_true(fabsl(r.state[3 * STRIDE + i] - (w + 0.02L * turn)) < 2e-15L);
    }
  }
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_every_level_gives_the_same_bits),
    cmocka_unit_test(test_other_rows_are_not_touched),
    cmocka_unit_test(test_steps_are_right_to_the_last_digits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
