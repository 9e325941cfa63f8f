/*
** test_arrays.c - .npy, .npz, IDX and lines from C: what is written is read, hostile sizes are refused
** before memory is taken, and every failed allocation is reported.
*/
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE
#endif
#include "scratch.h"

#include <stdio.h>
#include <string.h>

#define DATA PERI_SOURCE_DIR "/tests/data/files/"

static void arrays_of_numpy_are_read (void **state) {
  peri_tensor *t;
  double x;
  (void)state;
  assert_int_equal(peri_npy_load(C, DATA "fortran.npy", &t), PERI_OK);
  assert_int_equal(peri_ndim(t), 3);
  assert_false(peri_is_dense(t));
  assert_int_equal(peri_item(t, 13, &x), PERI_OK);
  assert_true(x == 13);
  peri_release(t);
  assert_int_equal(peri_npy_load(C, DATA "big.npy", &t), PERI_OK);
  assert_int_equal(peri_dtype_of(t), PERI_F32);
  peri_release(t);
}

static void archives_are_read (void **state) {
  peri_npz *z;
  peri_tensor *t;
  size_t n;
  double x;
  (void)state;
  assert_int_equal(peri_npz_open(C, DATA "deflated.npz", &z), PERI_OK);
  assert_int_equal(peri_npz_count(z), 2);
  const char *name = peri_npz_name(z, 1, &n);
  assert_true(n == 1 && name[0] == 'b');
  assert_int_equal(peri_npz_tensor(z, 1, &t), PERI_OK);
  assert_int_equal(peri_item(t, 2, &x), PERI_OK);
  assert_true(x == 3);
  peri_release(t);
  want_failure(C, peri_npz_tensor(z, 2, &t), PERI_EINVAL, "array 2 of 2");
  peri_npz_close(z);
}

/* Headers that promise more than the file can hold cost no memory. */
static void promises_cost_nothing (void **state) {
  static const unsigned char idx[] = { 0,    0,   8,   3,   0x7f, 255, 255, 255,
                                       0x7f, 255, 255, 255, 1,    0,   0,   0 };
  static const char header[] =
      "\x93NUMPY\x02\x00\x50\x00\x00\x00{'descr': '<f8', 'fortran_order': False, 'shape': "
      "(100000000, 1000), }          ";
  peri_tensor *t;
  (void)state;
  write_file(Path, idx, sizeof idx);
  H.peak = H.live;
  size_t before = H.live;
  want_failure(C, peri_idx_load(C, Path, &t), PERI_EFORMAT, "overflows 64 bits");
  write_file(Path, "\0\0\x08\x01\x7f\xff\xff\xff", 8);
  want_failure(C, peri_idx_load(C, Path, &t), PERI_EFORMAT, "more than the file can hold");
  write_file(Path, header, 12 + 80);
  want_failure(C, peri_npy_load(C, Path, &t), PERI_EFORMAT, "more than the file can hold");
  write_file(Path, "\x93NUMPY\x02\x00\xff\xff\xff\xff", 12);
  want_failure(C, peri_npy_load(C, Path, &t), PERI_EFORMAT, "the limit is 65536");
  assert_true(H.peak - before < 100000);
}

static void lines_end_where_they_end (void **state) {
  static const char text[] = "one\r\n\ntwo\nthree";
  const char *const want[] = { "one", "", "two", "three" };
  peri_lines *l;
  const char *line;
  size_t n;
  (void)state;
  write_file(Path, text, sizeof text - 1);
  assert_int_equal(peri_lines_open(C, Path, 0, &l), PERI_OK);
  for (int i = 0; i < 4; i++) {
    assert_int_equal(peri_lines_next(l, &line, &n), PERI_OK);
    assert_int_equal(n, strlen(want[i]));
    assert_memory_equal(line, want[i], n);
    assert_int_equal(peri_lines_number(l), i + 1);
  }
  for (int i = 0; i < 2; i++) {
    assert_int_equal(peri_lines_next(l, &line, &n), PERI_OK);
    assert_null(line);
  }
  peri_lines_close(l);
  assert_int_equal(peri_lines_open(C, Path, 4, &l), PERI_OK);
  peri_status s = PERI_OK;
  for (int i = 0; i < 4 && s == PERI_OK; i++) s = peri_lines_next(l, &line, &n);
  want_failure(C, s, PERI_EFORMAT, "line 4 has more than 4 bytes");
  peri_lines_close(l);
}

static peri_status everything (void *ud) {
  const char *const names[] = { "x", "y" }, *line;
  peri_tensor *t = ud, *const two[] = { t, t };
  peri_tensor *back = NULL;
  peri_npz *z = NULL;
  peri_lines *l = NULL;
  size_t n;
  peri_status s = peri_npz_save(C, Path, 2, names, two);
  if (s == PERI_OK) s = peri_npz_open(C, Path, &z);
  if (s == PERI_OK) s = peri_npz_tensor(z, 1, &back);
  peri_release(back);
  peri_npz_close(z);
  back = NULL;
  z = NULL;
  if (s == PERI_OK) s = peri_npz_open(C, DATA "deflated.npz", &z);
  if (s == PERI_OK) s = peri_npz_tensor(z, 0, &back);
  peri_release(back);
  peri_npz_close(z);
  back = NULL;
  if (s == PERI_OK) s = peri_npy_save(C, Path, t);
  if (s == PERI_OK) s = peri_npy_load(C, Path, &back);
  peri_release(back);
  back = NULL;
  if (s == PERI_OK) s = peri_idx_load(C, DATA "x.idx.gz", &back);
  peri_release(back);
  if (s == PERI_OK) s = peri_lines_open(C, DATA "rows.jsonl.gz", 0, &l);
  if (s == PERI_OK) s = peri_lines_next(l, &line, &n);
  peri_lines_close(l);
  return s;
}

static void every_failed_allocation_is_reported (void **state) {
  const int64_t shape[] = { 2, 3 }, stride[] = { 1, 2 };
  static float values[6];
  peri_tensor *t;
  (void)state;
  assert_int_equal(peri_import(C, PERI_F32, 2, shape, stride, values, NULL, NULL, &t), PERI_OK);
  fail_every_allocation(C, &H, false, everything, t);
  peri_release(t);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(arrays_of_numpy_are_read),
    TEST(archives_are_read),
    TEST(promises_cost_nothing),
    TEST(lines_end_where_they_end),
    TEST(every_failed_allocation_is_reported)
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
