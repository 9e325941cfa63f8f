/*
** test_env_host.c - a game of a host's own: its C environment is registered, the recipe of PPO trains on it, and the
** policy plays on with no Lua left.
*/
#include "lua_host.h"

#include <math.h>
#include <stdio.h>

#include <lauxlib.h>

const char *scratch_folder (char path[256]); /* untrusted.h has another heap */

/* A ball on a beam that is tipped to one side or the other, and rolls off its ends. */
typedef struct ball {
  double place, speed;
} ball;

static void show (const ball *b, float *obs) {
  obs[0] = (float)b->place;
  obs[1] = (float)b->speed;
}

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  const int64_t two[] = { 2 };
  (void)ud;
  spec->obs = peri_space_box(PERI_F32, -INFINITY, INFINITY, 1, two);
  spec->action = peri_space_discrete(2);
  spec->max_steps = 100;
  spec->state_bytes = sizeof(ball);
  return peri_env_number(args, "push") > 0 ? PERI_OK
                                           : peri_env_refuse(args, "push must be above 0");
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  ball *b = state;
  (void)shared;
  b->place = peri_pcg64_uniform(rng, -0.2, 0.2);
  b->speed = peri_pcg64_uniform(rng, -0.05, 0.05);
  show(b, io->obs);
  return PERI_OK;
}

static bool roll (ball *b, int64_t action) {
  b->speed += (action ? 0.05 : -0.05) + 0.05 * b->place;
  b->place += b->speed;
  return fabs(b->place) > 1;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)shared, (void)rng;
  *io->terminated = roll(state, *(const int64_t *)io->action);
  *io->reward = 1;
  show(state, io->obs);
  return PERI_OK;
}

static const peri_env_option options[] = { { "push", "of the beam", 0.05, NULL, 0, 1 } };
static const peri_env_def game = { .struct_size = sizeof game,
                                   .id = "Beam-v0",
                                   .doc = "A ball on a beam.",
                                   .noptions = 1,
                                   .option = options,
                                   .configure = configure,
                                   .reset = reset,
                                   .step = step };

/* Steps that the ball stays on in 20 games of at most 100. */
static int play (peri_policy *policy) {
  peri_pcg64 rng;
  int steps = 0;
  peri_pcg64_seed(&rng, 12345);
  for (int i = 0; i < 20; i++) {
    float obs[2];
    int64_t action;
    ball b = { peri_pcg64_uniform(&rng, -0.2, 0.2), 0 };
    for (int t = 0; t < 100; t++) {
      show(&b, obs);
      action = (i + t) % 2;
      if (policy) assert_int_equal(peri_policy_act(policy, 1, obs, NULL, true, &action), PERI_OK);
      steps++;
      if (roll(&b, action)) break;
    }
  }
  return steps;
}

static void train (host *h, const char *folder) {
  const char *args[] = { "--env", "Beam-v0", "--timesteps", "20000",  "--envs", "8",     "--steps",
                         "64",    "--lr",    "2.5e-3",      "--runs", folder,   "--run", "beam" };
  lua_newtable(h->L);
  for (int i = 0; i < (int)(sizeof args / sizeof *args); i++) {
    lua_pushstring(h->L, args[i]);
    lua_rawseti(h->L, -2, i + 1);
  }
  lua_setglobal(h->L, "arg");
  if (peri_lua_run_file(h->L, PERI_SOURCE_DIR "/recipes/classic/ppo.lua") != PERI_OK)
    fail_msg("%s", peri_message(h->ctx));
}

static void a_host_trains_on_its_game_and_plays_without_lua (void **state) {
  host h;
  peri_policy *policy;
  char folder[256], path[600];
  (void)state;
  scratch_folder(folder);
  host_open(&h);
  assert_int_equal(peri_env_register(h.ctx, &game), PERI_OK);
  assert_int_equal(peri_env_register(h.ctx, &game), PERI_EINVAL);
  train(&h, folder);
  lua_close(h.L);
  snprintf(path, sizeof path, "%s/beam/policy.safetensors", folder);
  if (peri_policy_load(h.ctx, path, &policy) != PERI_OK) fail_msg("%s", peri_message(h.ctx));
  assert_string_equal(peri_policy_env(policy), "Beam-v0");
  int blind = play(NULL), trained = play(policy);
  if (trained < 1900) fail_msg("%d steps of 2000; without a policy %d", trained, blind);
  assert_true(blind < 1000);
  peri_policy_close(policy);
  assert_int_equal(peri_remove_tree(h.ctx, folder), PERI_OK);
  assert_int_equal(memory_of(h.ctx).tensors, 0);
  peri_close(h.ctx);
  assert_int_equal(h.heap.live, 0);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_host_trains_on_its_game_and_plays_without_lua),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
