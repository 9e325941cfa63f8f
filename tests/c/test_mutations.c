/*
** test_mutations.c - tens of thousands of damaged JSON texts and safetensors files: each is refused
** with a message or read as a second implementation reads it, and nothing leaks.
*/
#include "untrusted.h"

#include <stdio.h>
#include <stdlib.h>

#include "mutate.h"
#include "oracle.h"
#include "memory_of.h"

enum { MUTATIONS = 20000, CAP = 8192 };

static heap H;
static peri_ctx *C;

static int setup (void **state) {
  (void)state;
  C = open_counted(&H);
  return 0;
}

static int teardown (void **state) {
  (void)state;
  close_counted(C, &H);
  return 0;
}

/* Bytes that the context holds besides its pool. */
static size_t held (void) { return H.live - memory_of(C).reserved_bytes; }

static void damaged_json_is_refused_or_read_right (void **state) {
  const size_t nseeds = sizeof json_seeds / sizeof *json_seeds;
  unsigned char *text = malloc(CAP);
  int accepted = 0;
  (void)state;
  for (size_t i = 0; i < nseeds; i++) {
    bool good = false;
    assert_null(check_json(C, json_seeds[i], strlen(json_seeds[i]), &good));
    assert_true(good);
  }
  size_t before = held();
  for (uint64_t k = 0; k < MUTATIONS; k++) {
    const char *seed = json_seeds[k % nseeds];
    size_t n = mutate(k, (const unsigned char *)seed, strlen(seed), text, CAP);
    bool good = false;
    const char *bad = check_json(C, text, n, &good);
    if (bad != NULL) fail_msg("mutation %d: %s: %.*s", (int)k, bad, (int)n, (char *)text);
    accepted += good;
    assert_int_equal(held(), before);
  }
  assert_true(accepted > MUTATIONS / 50 && accepted < MUTATIONS / 2); /* both ways are exercised */
  free(text);
}

static void damaged_safetensors_are_refused_or_read_right (void **state) {
  unsigned char *file = malloc(CAP), seed[1024];
  char dir[256], path[300];
  int accepted = 0, saved = 0;
  size_t nseeds = 0, n;
  (void)state;
  snprintf(path, sizeof path, "%s/m.safetensors", scratch_folder(dir));
  for (; (n = safetensors_seed(nseeds, seed)) != 0; nseeds++)
    assert_null(check_safetensors(C, seed, n, path, NULL));
  size_t before = held();
  for (uint64_t k = 0; k < MUTATIONS; k++) {
    n = safetensors_seed(k % nseeds, seed);
    n = mutate(k + ((uint64_t)1 << 32), seed, n, file, CAP);
    bool good = false, save = saved < 200;
    H.peak = H.live;
    const char *bad = check_safetensors(C, file, n, save ? path : NULL, &good);
    if (bad != NULL)
      fail_msg("mutation %d: %s: %.*s", (int)k, bad, n > 8 ? (int)n - 8 : 0, (char *)file + 8);
    accepted += good;
    saved += good && save;
    assert_int_equal(held(), before);
    assert_int_equal(memory_of(C).live_bytes, 0);
    assert_true(save || H.peak - before <= 2 * n + ((size_t)1 << 20));
  }
  assert_true(accepted > MUTATIONS / 50 && accepted < MUTATIONS / 2);
  assert_int_equal(saved, 200);
  assert_int_equal(peri_remove_tree(C, dir), PERI_OK);
  free(file);
}

static void every_single_byte_and_every_truncation_of_a_header (void **state) {
  unsigned char seed[1024], file[1024];
  size_t n;
  (void)state;
  for (size_t i = 0; (n = safetensors_seed(i, seed)) != 0; i++) {
    size_t header = 8 + strlen(safetensors_seeds[i].header);
    for (size_t at = 0; at < header;
         at += at < 8 ? 1 : 3) /* all of the size, a third of the text */
      for (int v = 1; v < 256; v++) {
        memcpy(file, seed, n);
        file[at] = (unsigned char)(file[at] ^ v);
        const char *bad = check_safetensors(C, file, n, NULL, NULL);
        if (bad != NULL) fail_msg("seed %zu, byte %zu, value %d: %s", i, at, file[at], bad);
      }
    for (size_t cut = 0; cut < n; cut++) assert_null(check_safetensors(C, seed, cut, NULL, NULL));
  }
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(damaged_json_is_refused_or_read_right, setup, teardown),
    cmocka_unit_test_setup_teardown(damaged_safetensors_are_refused_or_read_right, setup, teardown),
    cmocka_unit_test_setup_teardown(every_single_byte_and_every_truncation_of_a_header, setup,
                                    teardown)
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
