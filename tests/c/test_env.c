/*
** test_env.c - environments from C: generators and spaces, what a definition may be, resets and steps, autoreset,
** what the runtime refuses and says of it.
*/
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "untrusted.h"
#include "memory_of.h"

static peri_ctx *ctx;
static heap all;

static int open_ctx (void **state) {
  (void)state;
  ctx = open_counted(&all);
  return 0;
}

static int close_ctx (void **state) {
  (void)state;
  close_counted(ctx, &all);
  return 0;
}

static void ok (peri_status s) {
  if (s != PERI_OK) fail_msg("%s: %s", peri_status_name(s), peri_message(ctx));
}

/* ---- an environment that counts: obs { steps, action before }, ends after `length` steps ---- */

typedef struct counter {
  int64_t steps, ends; /* ends: 0, or what to do wrong at that step */
} counter;

static const peri_env_option options[] = { { "length", "of an episode", 3, NULL, 1, 100 },
                                           { "name", "a text", 0, "nobody", 0, 0 } };

typedef struct settings {
  int64_t length;
  char name[16];
} settings;

static peri_status count_configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  settings *s = peri_env_alloc(args, sizeof *s);
  (void)ud;
  if (!s) return PERI_ENOMEM;
  s->length = (int64_t)peri_env_number(args, "length");
  if (strlen(peri_env_text(args, "name")) >= sizeof s->name)
    return peri_env_refuse(args, "the name has more than %zu letters", sizeof s->name - 1);
  strcpy(s->name, peri_env_text(args, "name"));
  spec->obs = peri_space_box(PERI_F32, -100, 100, 1, (const int64_t[]){ 2 });
  spec->action = peri_space_discrete(5);
  spec->state_bytes = sizeof(counter);
  spec->shared = s;
  return PERI_OK;
}

static peri_status count_reset (const void *shared, void *state, peri_pcg64 *rng,
                                const peri_env_io *io) {
  (void)shared, (void)rng;
  *(counter *)state = (counter){ 0, 0 };
  ((float *)io->obs)[0] = 0;
  ((float *)io->obs)[1] = -1;
  return PERI_OK;
}

/* Action 2 fails, 3 gives a NaN, 4 a reward of inf. */
static peri_status count_step (const void *shared, void *state, peri_pcg64 *rng,
                               const peri_env_io *io) {
  (void)rng;
  counter *c = state;
  int64_t action = *(const int64_t *)io->action;
  c->steps++;
  ((float *)io->obs)[0] = (float)c->steps;
  ((float *)io->obs)[1] = action == 3 ? NAN : (float)action;
  *io->reward = action == 4 ? INFINITY : (double)c->steps;
  *io->terminated = c->steps >= ((const settings *)shared)->length ? 7 : 0;
  return action == 2 ? peri_env_fail(io, "the motor is hot (%d degrees)", 90) : PERI_OK;
}

static peri_env_def count_def (void) {
  return (peri_env_def){ .struct_size = sizeof(peri_env_def),
                         .id = "Count-v0",
                         .doc = "Counts.",
                         .noptions = 2,
                         .option = options,
                         .configure = count_configure,
                         .reset = count_reset,
                         .step = count_step };
}

static peri_env *counters (int64_t n, peri_autoreset mode, int64_t max_steps) {
  peri_env_def d = count_def();
  peri_env *e = NULL;
  peri_env_options o;
  peri_env_options_init(&o);
  o.n = n;
  o.autoreset = mode;
  o.max_steps = max_steps;
  ok(peri_env_make_of(ctx, &d, &o, &e));
  ok(peri_env_reset(e, NULL, NULL));
  return e;
}

static void step (peri_env *e, int64_t action) {
  int64_t a[600];
  for (int i = 0; i < 600; i++) a[i] = action;
  ok(peri_env_step(e, a));
}

static float obs_at (peri_env *e, int64_t row, int i) {
  return ((float *)peri_env_data(e, PERI_ENV_OBS))[row * 2 + i];
}
static float final_at (peri_env *e, int64_t row, int i) {
  return ((float *)peri_env_data(e, PERI_ENV_FINAL_OBS))[row * 2 + i];
}
static int flag (peri_env *e, peri_env_buffer what, int64_t row) {
  return ((uint8_t *)peri_env_data(e, what))[row];
}

/* ---- generators ---- */

/* numpy 2.4: default_rng(seed) */
static void draws_are_those_of_numpy (void **state) {
  (void)state;
  peri_pcg64 r;
  peri_pcg64_seed(&r, 0);
  assert_true(peri_pcg64_double(&r) == 0.6369616873214543);
  peri_pcg64_seed(&r, 42);
  assert_true(peri_pcg64_double(&r) == 0.7739560485559633);
  assert_true(peri_pcg64_uniform(&r, -2, 3) == 0.1943921987602617);
  peri_pcg64_seed(&r, 42);
  const int64_t tens[] = { 0, 7, 6, 4, 4, 8 };
  for (int i = 0; i < 6; i++) assert_int_equal(peri_pcg64_integer(&r, 10), tens[i]);
  peri_pcg64_seed(&r, 42);
  const double normals[] = { 0.30471707975443135, -1.0399841062404955, 0.7504511958064572 };
  for (int i = 0; i < 3; i++) assert_true(peri_pcg64_normal(&r) == normals[i]);
  peri_pcg64_seed(&r, ((uint64_t)1 << 40) + 7);
  const int64_t large[] = { 912388923444, 280710990236, 169094680324 };
  for (int i = 0; i < 3; i++) assert_int_equal(peri_pcg64_integer(&r, (int64_t)1 << 40), large[i]);
  assert_int_equal(peri_pcg64_integer(&r, (int64_t)1 << 32), 2167716235);
  assert_int_equal(peri_pcg64_integer(&r, 3ll << 30), 2172731223);
  double last = 0;
  peri_pcg64_seed(&r, 5);
  for (int i = 0; i < 1000000; i++) last = peri_pcg64_normal(&r); /* the rare ways, too */
  assert_true(last == 3.056638776846415);
  assert_true(peri_pcg64_double(&r) == 0.6642094313019898);
}

/* ---- autoreset ---- */

static void same_step_resets_and_keeps_the_final_observation (void **state) {
  (void)state;
  peri_env *e = counters(300, PERI_AUTORESET_SAME_STEP, -1);
  for (int t = 1; t <= 7; t++) {
    step(e, 1);
    bool ends = t % 3 == 0;
    for (int64_t row = 0; row < 300; row += 299) {
      assert_int_equal(flag(e, PERI_ENV_TERMINATED, row), ends);
      assert_true(obs_at(e, row, 0) == (float)(t % 3));
      assert_true(final_at(e, row, 0) == (float)(ends ? 3 : t % 3));
    }
  }
  peri_env_episode one;
  for (int64_t i = 0; i < 600; i++) {
    assert_true(peri_env_next_episode(e, &one));
    assert_int_equal(one.row, i % 300);
    assert_int_equal(one.length, 3);
    assert_true(one.episode_return == 6);
  }
  assert_false(peri_env_next_episode(e, &one));
  peri_env_close(e);
}

static void next_step_ignores_the_action_and_resets (void **state) {
  (void)state;
  peri_env *e = counters(2, PERI_AUTORESET_NEXT_STEP, -1);
  for (int t = 1; t <= 3; t++) step(e, 1);
  assert_int_equal(flag(e, PERI_ENV_TERMINATED, 1), 1);
  assert_true(obs_at(e, 1, 0) == 3 && final_at(e, 1, 0) == 3);
  step(e, 2); /* which would fail */
  assert_int_equal(flag(e, PERI_ENV_VALID, 1), 0);
  assert_int_equal(flag(e, PERI_ENV_TERMINATED, 1), 0);
  assert_true(obs_at(e, 1, 0) == 0 && obs_at(e, 1, 1) == -1);
  step(e, 1);
  assert_int_equal(flag(e, PERI_ENV_VALID, 1), 1);
  assert_true(obs_at(e, 1, 0) == 1);
  peri_env_close(e);
}

static void without_autoreset_a_finished_row_is_not_stepped (void **state) {
  (void)state;
  peri_env *e = counters(2, PERI_AUTORESET_DISABLED, -1);
  const int64_t a[] = { 1, 1 };
  const uint8_t second[] = { 0, 1 };
  ok(peri_env_step(e, a));
  ok(peri_env_reset(e, NULL, second));
  ok(peri_env_step(e, a));
  ok(peri_env_step(e, a));
  assert_int_equal(flag(e, PERI_ENV_TERMINATED, 0), 1);
  assert_int_equal(flag(e, PERI_ENV_TERMINATED, 1), 0);
  want_failure(ctx, peri_env_step(e, a), PERI_EINVAL, "the episode of row 0 has ended");
  const uint8_t first[] = { 1, 0 };
  ok(peri_env_reset(e, NULL, first));
  ok(peri_env_step(e, a));
  assert_true(obs_at(e, 0, 0) == 1 && obs_at(e, 1, 0) == 3);
  peri_env_close(e);
}

static void the_time_limit_truncates (void **state) {
  (void)state;
  peri_env *e = counters(1, PERI_AUTORESET_SAME_STEP, 2);
  for (int t = 1; t <= 4; t++) {
    step(e, 0);
    assert_int_equal(flag(e, PERI_ENV_TRUNCATED, 0), t % 2 == 0);
    assert_int_equal(flag(e, PERI_ENV_TERMINATED, 0), 0);
  }
  peri_env_close(e);
  e = counters(1, PERI_AUTORESET_SAME_STEP, 3); /* both at once */
  for (int t = 1; t <= 3; t++) step(e, 0);
  assert_int_equal(flag(e, PERI_ENV_TRUNCATED, 0) & flag(e, PERI_ENV_TERMINATED, 0), 1);
  peri_env_close(e);
}

/* ---- refusals ---- */

static void failures_name_the_row_the_step_and_the_value (void **state) {
  (void)state;
  const struct {
    int64_t action;
    peri_status status;
    const char *says;
  } cases[] = {
    { 5, PERI_EINVAL,
      "Count-v0: row 2, step 2 of its episode: action is 5, expected an integer "
      "from 0 to 4" },
    { -1, PERI_EINVAL, "action is -1" },
    { 2, PERI_EHOST, "Count-v0: row 2, step 2 of its episode: the motor is hot (90 degrees)" },
    { 3, PERI_EHOST,
      "row 2, step 2 of its episode: its observation [1] is nan, expected a finite" },
    { 4, PERI_EHOST, "row 2, step 2 of its episode: its reward is inf, expected a finite" },
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    peri_env *e = counters(4, PERI_AUTORESET_SAME_STEP, -1);
    int64_t a[] = { 1, 1, 1, 1 };
    ok(peri_env_step(e, a));
    a[2] = cases[i].action;
    want_failure(ctx, peri_env_step(e, a), cases[i].status, cases[i].says);
    a[2] = 1;
    if (cases[i].status == PERI_EINVAL) { /* nothing had changed */
      ok(peri_env_step(e, a));
      assert_true(obs_at(e, 3, 0) == 2);
    } else {
      want_failure(ctx, peri_env_step(e, a), PERI_EINVAL, "failed; reset all rows");
      ok(peri_env_reset(e, NULL, NULL));
      ok(peri_env_step(e, a));
    }
    peri_env_close(e);
  }
}

static void options_are_read_and_refused (void **state) {
  (void)state;
  peri_env_def d = count_def();
  ok(peri_env_register(ctx, &d));
  want_failure(ctx, peri_env_register(ctx, &d), PERI_EINVAL, "Count-v0 is there already");
  peri_env_options o;
  peri_env_options_init(&o);
  peri_env *e = NULL;
  peri_env_arg arg = { "lenght", 3, NULL };
  o.nargs = 1;
  o.arg = &arg;
  want_failure(ctx, peri_env_make(ctx, "Count-v0", &o, &e), PERI_EINVAL, "did you mean 'length'?");
  arg = (peri_env_arg){ "volume", 3, NULL };
  want_failure(ctx, peri_env_make(ctx, "Count-v0", &o, &e), PERI_EINVAL, "there are: length, name");
  arg = (peri_env_arg){ "length", 300, NULL };
  want_failure(ctx, peri_env_make(ctx, "Count-v0", &o, &e), PERI_EINVAL, "from 1 to 100");
  arg = (peri_env_arg){ "length", 0, "three" };
  want_failure(ctx, peri_env_make(ctx, "Count-v0", &o, &e), PERI_EINVAL, "expected a number");
  arg = (peri_env_arg){ "name", 0, "a very long name indeed" };
  want_failure(ctx, peri_env_make(ctx, "Count-v0", &o, &e), PERI_EINVAL, "more than 15 letters");
  want_failure(ctx, peri_env_make(ctx, "Cuont-v0", &o, &e), PERI_EINVAL,
               "did you mean 'Count-v0'?");
  arg = (peri_env_arg){ "length", 5, NULL };
  ok(peri_env_make(ctx, "Count-v0", &o, &e));
  ok(peri_env_reset(e, NULL, NULL));
  for (int t = 1; t <= 5; t++) {
    step(e, 1);
    assert_int_equal(flag(e, PERI_ENV_TERMINATED, 0), t == 5);
  }
  peri_env_close(e);
}

/* ---- several agents ---- */

/* Agent k of three is out after k + 1 steps; obs { steps, agent }. */
static peri_status agents_configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  (void)ud, (void)args;
  spec->obs = peri_space_box(PERI_F32, -100, 100, 1, (const int64_t[]){ 2 });
  spec->action = peri_space_discrete(5);
  spec->agents = 3;
  spec->state_bytes = sizeof(counter);
  return PERI_OK;
}

static void agents_observe (int64_t steps, const peri_env_io *io) {
  for (int k = 0; k < 3; k++) {
    ((float *)io->obs)[2 * k] = (float)steps;
    ((float *)io->obs)[2 * k + 1] = (float)k;
  }
}

static peri_status agents_reset (const void *shared, void *state, peri_pcg64 *rng,
                                 const peri_env_io *io) {
  (void)shared, (void)rng;
  ((counter *)state)->steps = 0;
  agents_observe(0, io);
  return PERI_OK;
}

static peri_status agents_step (const void *shared, void *state, peri_pcg64 *rng,
                                const peri_env_io *io) {
  (void)shared, (void)rng;
  counter *c = state;
  c->steps++;
  agents_observe(c->steps, io);
  for (int k = 0; k < 3; k++) {
    io->reward[k] = 10 * (k + 1); /* those that are out, too */
    io->terminated[k] = c->steps > k;
    if (c->steps == 1 && k == 2) io->live[k] = 0; /* not its turn */
  }
  return PERI_OK;
}

static void agents_go_out_one_by_one_and_begin_together (void **state) {
  (void)state;
  for (peri_autoreset mode = PERI_AUTORESET_SAME_STEP; mode <= PERI_AUTORESET_NEXT_STEP; mode++) {
    peri_env_def d = count_def();
    d.configure = agents_configure;
    d.reset = agents_reset;
    d.step = agents_step;
    d.noptions = 0;
    peri_env *e = NULL;
    peri_env_options o;
    peri_env_options_init(&o);
    o.n = 100;
    o.autoreset = mode;
    ok(peri_env_make_of(ctx, &d, &o, &e));
    assert_int_equal(peri_env_rows(e), 300);
    ok(peri_env_reset(e, NULL, NULL));
    const int64_t last = 99 * 3;
    for (int t = 1; t <= 3; t++) {
      step(e, 1);
      for (int k = 0; k < 3; k++) {
        bool out = k < t - 1;
        assert_int_equal(flag(e, PERI_ENV_TERMINATED, last + k), !out && k == t - 1);
        assert_int_equal(flag(e, PERI_ENV_VALID, last + k), !out);
        float reward = ((float *)peri_env_data(e, PERI_ENV_REWARD))[last + k];
        assert_true(reward == (out ? 0.0f : 10.0f * (float)(k + 1)));
        bool turn = t < 3 ? k >= t && !(t == 1 && k == 2) : mode == PERI_AUTORESET_SAME_STEP;
        assert_int_equal(flag(e, PERI_ENV_LIVE, last + k), turn);
        assert_true(final_at(e, last + k, 0) == (float)t && final_at(e, last + k, 1) == (float)k);
      }
    }
    assert_true(obs_at(e, last, 0) == (mode == PERI_AUTORESET_SAME_STEP ? 0 : 3));
    peri_env_episode one;
    for (int i = 0; i < 300; i++) {
      assert_true(peri_env_next_episode(e, &one));
      assert_int_equal(one.length, one.row % 3 + 1);
      assert_true(one.episode_return == (double)(10 * one.length * one.length));
    }
    assert_false(peri_env_next_episode(e, &one));
    if (mode == PERI_AUTORESET_NEXT_STEP) {
      step(e, 1);
      assert_int_equal(flag(e, PERI_ENV_VALID, last + 2), 0);
      assert_int_equal(flag(e, PERI_ENV_LIVE, last + 2), 1);
      assert_true(obs_at(e, last + 2, 0) == 0);
    }
    step(e, 1);
    assert_true(obs_at(e, last, 0) == 1);
    assert_int_equal(flag(e, PERI_ENV_TERMINATED, last), 1);
    peri_env_close(e);
  }
}

/* ---- bytes ---- */

static void what_is_saved_goes_on_the_same (void **state) {
  (void)state;
  peri_env *a = counters(20, PERI_AUTORESET_SAME_STEP, -1);
  peri_env *b = counters(20, PERI_AUTORESET_SAME_STEP, -1);
  step(a, 1);
  step(a, 1);
  size_t each = peri_env_save_size(a), all_of_it = each * 20;
  unsigned char *bytes = malloc(all_of_it), *again = malloc(all_of_it);
  ok(peri_env_save(a, -1, bytes, all_of_it));
  ok(peri_env_load(b, -1, bytes, all_of_it));
  ok(peri_env_save(b, -1, again, all_of_it));
  assert_memory_equal(bytes, again, all_of_it);
  step(a, 1);
  step(b, 1);
  ok(peri_env_save(a, -1, bytes, all_of_it));
  ok(peri_env_save(b, -1, again, all_of_it));
  assert_memory_equal(bytes, again, all_of_it);
  assert_true(final_at(b, 7, 0) == 3);
  ok(peri_env_save(a, 3, bytes, each));
  step(a, 1);
  ok(peri_env_load(a, 19, bytes, each));
  assert_true(obs_at(a, 19, 0) == 0 && obs_at(a, 18, 0) == 1);
  want_failure(ctx, peri_env_load(a, 0, bytes, each - 1), PERI_EINVAL, "a saved state has");
  bytes[3]++;
  want_failure(ctx, peri_env_load(a, 0, bytes, each), PERI_EINVAL, "no saved state of it");
  want_failure(ctx, peri_env_save(a, 20, bytes, each), PERI_EINVAL,
               "20 environments, no number 20");
  peri_env *fresh = NULL;
  peri_env_def d = count_def();
  ok(peri_env_make_of(ctx, &d, NULL, &fresh));
  want_failure(ctx, peri_env_save(fresh, 0, bytes, each), PERI_EINVAL, "before the first reset");
  peri_env_close(fresh);
  peri_env_close(a);
  peri_env_close(b);
  free(bytes);
  free(again);
}

/* ---- interrupts and shared buffers ---- */

static void an_interrupt_ends_a_step (void **state) {
  (void)state;
  peri_env *e = counters(4, PERI_AUTORESET_SAME_STEP, -1);
  const int64_t a[] = { 1, 1, 1, 1 };
  peri_interrupt(ctx);
  want_failure(ctx, peri_env_step(e, a), PERI_EINTR, "Count-v0: interrupted");
  want_failure(ctx, peri_env_reset(e, NULL, NULL), PERI_EINTR, "interrupted");
  peri_interrupt_clear(ctx);
  ok(peri_env_reset(e, NULL, NULL));
  ok(peri_env_step(e, a));
  peri_env_close(e);
}

static void buffers_shared_for_reading_are_not_written (void **state) {
  (void)state;
  peri_env *e = counters(4, PERI_AUTORESET_SAME_STEP, -1);
  const int64_t a[] = { 1, 1, 1, 1 };
  peri_tensor *obs = NULL;
  peri_shared *handle = NULL;
  ok(peri_env_tensor(e, PERI_ENV_OBS, &obs));
  ok(peri_share(obs, PERI_SHARE_READ, &handle));
  want_failure(ctx, peri_env_step(e, a), PERI_EINVAL, "shared with other contexts");
  peri_shared_release(handle);
  peri_release(obs);
  peri_env_close(e);
}

static peri_status make_and_step (void *ud) {
  (void)ud;
  peri_env_def d = count_def();
  peri_env *e = NULL;
  peri_status s = peri_env_make_of(ctx, &d, NULL, &e);
  if (s == PERI_OK) s = peri_env_reset(e, NULL, NULL);
  const int64_t a = 1;
  for (int i = 0; i < 4 && s == PERI_OK; i++) s = peri_env_step(e, &a);
  peri_env_close(e);
  return s;
}

static void every_allocation_may_fail (void **state) {
  (void)state;
  fail_every_allocation(ctx, &all, false, make_and_step, NULL);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(draws_are_those_of_numpy),
    cmocka_unit_test_setup_teardown(same_step_resets_and_keeps_the_final_observation, open_ctx,
                                    close_ctx),
    cmocka_unit_test_setup_teardown(next_step_ignores_the_action_and_resets, open_ctx, close_ctx),
    cmocka_unit_test_setup_teardown(without_autoreset_a_finished_row_is_not_stepped, open_ctx,
                                    close_ctx),
    cmocka_unit_test_setup_teardown(the_time_limit_truncates, open_ctx, close_ctx),
    cmocka_unit_test_setup_teardown(failures_name_the_row_the_step_and_the_value, open_ctx,
                                    close_ctx),
    cmocka_unit_test_setup_teardown(options_are_read_and_refused, open_ctx, close_ctx),
    cmocka_unit_test_setup_teardown(agents_go_out_one_by_one_and_begin_together, open_ctx,
                                    close_ctx),
    cmocka_unit_test_setup_teardown(what_is_saved_goes_on_the_same, open_ctx, close_ctx),
    cmocka_unit_test_setup_teardown(an_interrupt_ends_a_step, open_ctx, close_ctx),
    cmocka_unit_test_setup_teardown(buffers_shared_for_reading_are_not_written, open_ctx,
                                    close_ctx),
    cmocka_unit_test_setup_teardown(every_allocation_may_fail, open_ctx, close_ctx),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
