/*
** test_terminal.c - commands that behave otherwise at a terminal: perilune convert asks before it
** overwrites and shows how far it is.
*/
#define _GNU_SOURCE /* posix_openpt, setenv */

#include <sys/stat.h>

#include "terminal.h"

#define MODEL PERI_SOURCE_DIR "/tests/data/hf_tiny/llama"

static char Target[700];

static terminal convert (const char *to) {
  const char *const words[] = { "convert", MODEL, to, NULL };
  return start(80, words, none);
}

static void put (terminal *t, const char *text) {
  assert_false(reads_keys(t));
  assert_int_equal(write(t->fd, text, strlen(text)), strlen(text));
}

static void convert_shows_how_far_it_is (void **state) {
  (void)state;
  snprintf(Target, sizeof Target, "%s/m.gguf", Dir);
  terminal t = convert(Target);
  expect(&t, "\r  0%  ");
  expect(&t, "%  blk.");
  expect(&t, "\r    "); /* and leaves a clean line */
  expect(&t, "30 tensors, 27,168 parameters");
  ends(&t, 0);
}

static void convert_asks_before_it_overwrites (void **state) {
  static const struct {
    const char *typed, *said;
    int status;
    bool written;
  } answers[] = { { "n\n", "stays as it is", 1, false },
                  { "\n", "stays as it is", 1, false },
                  { "\4", "stays as it is", 1, false },
                  { " Yes\n", "30 tensors", 0, true },
                  { "y\n", "30 tensors", 0, true } };
  struct stat s;
  (void)state;
  snprintf(Target, sizeof Target, "%s/m.gguf", Dir);
  for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
    FILE *f = fopen(Target, "w");
    assert_true(f && fputs("mine", f) >= 0 && fclose(f) == 0);
    terminal t = convert(Target);
    expect(&t, "m.gguf exists. Overwrite it? [y/N] ");
    put(&t, answers[i].typed);
    expect(&t, answers[i].said);
    ends(&t, answers[i].status);
    assert_int_equal(stat(Target, &s), 0);
    assert_int_equal(s.st_size != 4, answers[i].written);
  }
}

static void convert_does_not_ask_for_what_cannot_be (void **state) {
  (void)state;
  snprintf(Target, sizeof Target, "%s/sub.gguf", Dir);
  assert_int_equal(mkdir(Target, 0700), 0);
  char inside[800];
  snprintf(inside, sizeof inside, "%s/x", Target);
  FILE *f = fopen(inside, "w");
  assert_true(f && fclose(f) == 0);
  terminal t = convert(Target);
  expect(&t, "sub.gguf is a folder");
  ends(&t, 1);
  t = convert(inside);
  expect(&t, "x is a file, and no name of a .gguf file");
  ends(&t, 1);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(convert_shows_how_far_it_is),
    TEST(convert_asks_before_it_overwrites),
    TEST(convert_does_not_ask_for_what_cannot_be),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
