/* Every built-in environment draws itself, in shapes and in characters, and keeps to the memory
** that it is given. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "perilune.h"

static peri_ctx *ctx;

/* 200 steps with actions of its space. */
static peri_env *played (const char *id) {
  peri_env *e = NULL;
  peri_env_options o;
  peri_env_options_init(&o);
  o.n = 3;
  o.seeded = true;
  assert_int_equal(peri_env_make(ctx, id, &o, &e), PERI_OK);
  assert_int_equal(peri_env_reset(e, NULL, NULL), PERI_OK);
  const peri_space *space = &peri_env_spec_of(e)->action;
  peri_pcg64 rng;
  peri_pcg64_seed(&rng, 1);
  for (int t = 0; t < 200; t++) {
    int64_t action[3 * 32]; /* more than all agents */
    size_t each = space->kind == PERI_SPACE_BOX ? sizeof(float) : sizeof(int64_t);
    for (int64_t i = 0; i < peri_env_rows(e); i++)
      assert_int_equal(peri_space_sample(ctx, space, &rng, NULL, (char *)action + (size_t)i * each),
                       PERI_OK);
    assert_int_equal(peri_env_step(e, action), PERI_OK);
  }
  return e;
}

static void test_each_has_a_picture (void **state) {
  (void)state;
  const peri_env_def *d;
  for (int i = 0; (d = peri_env_at(ctx, i)) != NULL; i++) {
    peri_env *e = played(d->id);
    for (int row = 0; row < 3; row++) {
      peri_frame *frame = NULL;
      peri_tensor *image = NULL;
      assert_int_equal(peri_frame_open(ctx, &frame), PERI_OK);
      assert_int_equal(peri_env_draw(e, row, frame), PERI_OK);
      assert_int_equal(peri_frame_tensor(frame, 0, 0, &image), PERI_OK);
      const uint8_t *p = peri_data(image);
      int64_t n = peri_numel(image), other = 0;
      for (int64_t k = 3; k < n; k++) other += p[k] != p[k % 3];
      assert_true(other > 100); /* more than a background */
      peri_release(image);
      peri_frame_close(frame);
    }
    peri_env_close(e);
  }
}

static void test_a_text_that_does_not_fit_is_refused (void **state) {
  (void)state;
  const peri_env_def *d;
  for (int i = 0; (d = peri_env_at(ctx, i)) != NULL; i++) {
    peri_env *e = played(d->id);
    char whole[4096];
    assert_int_equal(peri_env_print(e, 1, whole, sizeof whole), PERI_OK);
    size_t n = strlen(whole);
    assert_true(n > 10 && whole[n - 1] == '\n');
    for (size_t size = 1; size <= n + 1; size++) {
      char *out = malloc(size); /* a byte too many is seen by sanitizers */
      peri_status s = peri_env_print(e, 1, out, size);
      assert_int_equal(s, size <= n ? PERI_EINVAL : PERI_OK);
      if (s != PERI_OK) assert_non_null(strstr(peri_message(ctx), "does not fit into"));
      free(out);
    }
    peri_env_close(e);
  }
}

static int begin (void **state) {
  (void)state;
  return peri_open(NULL, &ctx) == PERI_OK ? 0 : -1;
}

static int end (void **state) {
  (void)state;
  peri_close(ctx);
  return 0;
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_each_has_a_picture),
    cmocka_unit_test(test_a_text_that_does_not_fit_is_refused),
  };
  return cmocka_run_group_tests(tests, begin, end);
}
