/*
** scratch.h - what most tests of files begin with: a context over a counting allocator, a fresh folder
** and a path in it, anew for every test. One copy in each program.
*/
#ifndef scratch_h
#define scratch_h

#include <stdio.h>

#include "untrusted.h"

static heap H;
static peri_ctx *C;
static char Dir[256], Path[600]; /* Path: a file in Dir that is not there yet */

static int setup (void **state) {
  (void)state;
  C = open_counted(&H);
  scratch_folder(Dir);
  snprintf(Path, sizeof Path, "%s/file", Dir);
  return 0;
}

static int teardown (void **state) {
  (void)state;
  assert_int_equal(peri_remove_tree(C, Dir), PERI_OK);
  close_counted(C, &H);
  return 0;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

#endif
