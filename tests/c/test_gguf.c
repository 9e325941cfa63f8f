/*
** test_gguf.c - every rule of the format is a refusal here, with place and field; what is accepted
** comes back, and what is written is read.
*/
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE
#endif
#include "scratch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ROOM 65536

/* A file that is being put together. */
static unsigned char B[ROOM];
static size_t N;

static void put (const void *p, size_t n) {
  assert_true(N + n <= ROOM);
  memcpy(B + N, p, n);
  N += n;
}
static void u32 (uint32_t v) { put(&v, 4); }
static void u64 (uint64_t v) { put(&v, 8); }
static void text (const char *s) {
  u64(strlen(s));
  put(s, strlen(s));
}
static void zeros (size_t n) {
  assert_true(N + n <= ROOM);
  memset(B + N, 0, n);
  N += n;
}

static void start (uint64_t tensors, uint64_t values) {
  N = 0;
  put("GGUF", 4);
  u32(3);
  u64(tensors);
  u64(values);
}

static void key (const char *name, uint32_t type) {
  text(name);
  u32(type);
}

static void tensor (const char *name, int ndim, const uint64_t *dims, uint32_t type,
                    uint64_t offset) {
  text(name);
  u32((uint32_t)ndim);
  for (int i = 0; i < ndim; i++) u64(dims[i]);
  u32(type);
  u64(offset);
}

static void align (void) { zeros((32 - N % 32) % 32); }

static void refuses_as (peri_status want, const char *part) {
  peri_gguf *f = (peri_gguf *)1;
  want_failure(C, peri_gguf_parse(C, B, N, &f), want, part);
  assert_null(f);
  write_file(Path, B, N);
  for (int map = 0; map < 2; map++) {
    want_failure(C, peri_gguf_open(C, Path, map != 0, &f), want, part);
    assert_null(f);
    assert_non_null(strstr(peri_message(C), Path));
    assert_non_null(strstr(peri_message(C), "byte "));
  }
}
static void refuses (const char *part) { refuses_as(PERI_EFORMAT, part); }

static peri_gguf *parse (void) {
  peri_gguf *f;
  if (peri_gguf_parse(C, B, N, &f) != PERI_OK) fail_msg("%s", peri_message(C));
  return f;
}

/* ---- reading ---- */

static void values_of_every_type_are_read (void **state) {
  const float single = 1.5f;
  const double number = -2.25;
  int64_t i;
  double d;
  bool yes;
  peri_gguf_text s;
  (void)state;
  start(0, 7);
  key("a.u8", 0), put("\xff", 1);
  key("a.i8", 1), put("\xff", 1);
  key("a.i16", 3), put("\xfe\xff", 2);
  key("a.u64", 10), u64(UINT64_MAX);
  key("a.f32", 6), put(&single, 4);
  key("a.bool", 7), put("\1", 1);
  key("a.f64", 12), put(&number, 8);
  peri_gguf *f = parse();
  assert_int_equal(peri_gguf_version(f), 3);
  assert_int_equal(peri_gguf_alignment(f), 32);
  assert_int_equal(peri_gguf_get_int(f, "a.u8", &i), PERI_OK);
  assert_int_equal(i, 255);
  assert_int_equal(peri_gguf_get_int(f, "a.i8", &i), PERI_OK);
  assert_int_equal(i, -1);
  assert_int_equal(peri_gguf_get_int(f, "a.i16", &i), PERI_OK);
  assert_int_equal(i, -2);
  want_failure(C, peri_gguf_get_int(f, "a.u64", &i), PERI_EFORMAT, "\"a.u64\" is u64");
  assert_int_equal(peri_gguf_get_num(f, "a.u64", &d), PERI_OK);
  assert_true(d == 18446744073709551616.0);
  assert_int_equal(peri_gguf_get_num(f, "a.f32", &d), PERI_OK);
  assert_true(d == 1.5);
  assert_int_equal(peri_gguf_get_num(f, "a.f64", &d), PERI_OK);
  assert_true(d == -2.25);
  assert_int_equal(peri_gguf_get_bool(f, "a.bool", &yes), PERI_OK);
  assert_true(yes);
  want_failure(C, peri_gguf_get_int(f, "a.bool", &i), PERI_EFORMAT, "an integer is expected");
  want_failure(C, peri_gguf_get_text(f, "a.f32", &s), PERI_EFORMAT, "a text is expected");
  want_failure(C, peri_gguf_get_text(f, "none", &s), PERI_EINVAL, "there is no value \"none\"");
  peri_gguf_close(f);
}

static void arrays_are_walked (void **state) {
  peri_gguf_value v, item;
  peri_gguf_text s;
  int64_t i;
  (void)state;
  start(0, 3);
  key("t", 9), u32(8), u64(3), text("x"), text(""), text("yz");
  key("i", 9), u32(5), u64(2), u32(7), u32((uint32_t)-8);
  key("n", 9), u32(9), u64(2);
  u32(8), u64(1), text("deep");
  u32(0), u64(2), put("\1\2", 2);
  peri_gguf *f = parse();
  assert_int_equal(peri_gguf_get_array(f, "t", PERI_GGUF_TEXT, &v), PERI_OK);
  assert_int_equal(v.count, 3);
  peri_gguf_cursor at = { 0, 0 };
  const char *const want[] = { "x", "", "yz" };
  for (int k = 0; k < 3; k++) {
    assert_true(peri_gguf_next(f, &v, &at, &item));
    assert_true(peri_gguf_string(f, &item, &s));
    assert_int_equal(s.n, strlen(want[k]));
    assert_memory_equal(s.s, want[k], s.n);
  }
  assert_false(peri_gguf_next(f, &v, &at, &item));
  assert_int_equal(peri_gguf_get_array(f, "i", PERI_GGUF_I64, &v), PERI_OK);
  assert_true(peri_gguf_int(f, &v, 1, &i));
  assert_int_equal(i, -8);
  assert_false(peri_gguf_int(f, &v, 2, &i));
  want_failure(C, peri_gguf_get_array(f, "i", PERI_GGUF_TEXT, &v), PERI_EFORMAT,
               "an array of texts is expected");
  want_failure(C, peri_gguf_get_int(f, "i", &i), PERI_EFORMAT, "is an array");
  v = peri_gguf_at(f, peri_gguf_find(f, "n"));
  at = (peri_gguf_cursor){ 0, 0 };
  assert_true(peri_gguf_next(f, &v, &at, &item));
  assert_true(item.array && item.type == PERI_GGUF_TEXT && item.count == 1);
  assert_true(peri_gguf_next(f, &v, &at, &item));
  assert_true(peri_gguf_int(f, &item, 1, &i));
  assert_int_equal(i, 2);
  assert_false(peri_gguf_next(f, &v, &at, &item));
  peri_gguf_close(f);
}

static void tensors_are_read_with_dims_in_reverse (void **state) {
  const uint64_t a[] = { 3, 2 }, q[] = { 32 };
  peri_tensor *t;
  double x;
  (void)state;
  start(3, 0);
  tensor("q", 1, q, 8, 32);
  tensor("a", 2, a, 0, 0);
  tensor("odd", 1, q, 24, 96);
  align();
  float values[6] = { 0, 1, 2, 3, 4, 5 };
  put(values, sizeof values), align();
  zeros(64), zeros(32);
  peri_gguf *f = parse();
  peri_gguf_entry e = peri_gguf_entry_at(f, peri_gguf_find_tensor(f, "a"));
  assert_int_equal(e.ndim, 2);
  assert_int_equal(e.shape[0], 2);
  assert_int_equal(e.shape[1], 3);
  assert_string_equal(e.type, "F32");
  assert_int_equal(peri_gguf_tensor(f, peri_gguf_find_tensor(f, "a"), &t), PERI_OK);
  assert_int_equal(peri_item(t, 4, &x), PERI_OK);
  assert_true(x == 4);
  peri_release(t);
  assert_int_equal(peri_gguf_tensor(f, peri_gguf_find_tensor(f, "q"), &t), PERI_OK);
  assert_int_equal(peri_dtype_of(t), PERI_Q8_0);
  assert_int_equal(peri_nbytes(t), 34);
  peri_release(t);
  want_failure(C, peri_gguf_tensor(f, peri_gguf_find_tensor(f, "odd"), &t), PERI_ENOSUP,
               "type I8 of tensor \"odd\" is not supported");
  assert_int_equal(peri_gguf_find_tensor(f, "b"), -1);
  peri_gguf_close(f);
  write_file(Path, B, N);
  for (int map = 0; map < 2; map++) { /* a tensor outlives its handle */
    assert_int_equal(peri_gguf_open(C, Path, map != 0, &f), PERI_OK);
    assert_int_equal(peri_gguf_tensor(f, peri_gguf_find_tensor(f, "a"), &t), PERI_OK);
    peri_gguf_close(f);
    assert_int_equal(peri_item(t, 5, &x), PERI_OK);
    assert_true(x == 5);
    peri_release(t);
  }
}

/* ---- refusals ---- */

static void the_start_is_checked (void **state) {
  (void)state;
  start(0, 0);
  for (size_t n = 0; n < 24; n++) {
    N = n;
    refuses(n < 4 ? "are no GGUF file" : "needs");
  }
  start(0, 0);
  B[0] = 'g';
  refuses("begins with \"GGUF\"");
  start(0, 0);
  memcpy(B + 4, "\0\0\0\3", 4);
  refuses("big-endian (version 3)");
  start(0, 0);
  B[4] = 1;
  refuses("version 1, only 2 and 3");
  start(0, 0);
  B[4] = 4;
  refuses("byte 4: version 4");
  start(0, 0);
  B[4] = 2;
  peri_gguf_close(parse());
}

static void counts_are_bounded_before_memory_is_taken (void **state) {
  static const uint64_t huge[] = {
    65537, 1u << 20, 1ull << 31, 1ull << 32, 1ull << 61, UINT64_MAX
  };
  (void)state;
  for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
    size_t before = H.live;
    start(0, huge[i]);
    zeros(64);
    H.peak = H.live;
    refuses("byte 16: ");
    assert_true(H.peak - before < 200000); /* the header's first read */
    start(huge[i] + 1048576, 0);
    zeros(64);
    refuses("byte 8: ");
  }
  start(0, 5);
  zeros(64);
  refuses("5 values need at least 70 bytes, 64 are left");
  start(3, 0);
  zeros(64);
  refuses("3 tensors need at least 75 bytes");
}

static void texts_and_keys_are_bounded (void **state) {
  (void)state;
  start(0, 1), u64(1ull << 63), zeros(40);
  refuses("byte 24: value 0: the key has 9223372036854775808 bytes, 40 are left");
  start(0, 1), u64(0), zeros(40);
  refuses("the key is empty");
  start(0, 1), u64(3), put("a\0b", 3), zeros(40);
  refuses("the key holds a zero byte");
  start(0, 1), u64(40000), zeros(60000);
  memset(B + 32, 'k', 40000);
  B[24] = 0, B[25] = 0, B[26] = 0; /* no length */
  refuses("the key is empty");
  start(0, 1), key("k", 8), u64(UINT64_MAX - 7), zeros(40);
  refuses("value 0 (k): a text has 18446744073709551608 bytes, 40 are left");
  start(0, 1), key("k", 13), zeros(40);
  refuses("value 0 (k): type 13 does not exist");
  start(0, 1), key("k", 7), put("\2", 1);
  refuses("a bool is 2");
  start(0, 1), key("k", 9), u32(7), u64(2), put("\1\3", 2);
  refuses("a bool is 3");
  start(0, 1), key("long", 10), put("1234567", 7);
  refuses("elements of type u64 need");
}

static void a_key_may_have_65535_bytes (void **state) {
  const size_t room = 65535 + 100;
  unsigned char *file = malloc(room + 24);
  peri_gguf *f;
  (void)state;
  for (uint64_t n = 65535; n <= 65536; n++) {
    start(0, 1), u64(n);
    memcpy(file, B, N);
    memset(file + N, 'k', n);
    memset(file + N + n, 0, 5); /* a u8 of 0 */
    peri_status s = peri_gguf_parse(C, file, N + n + 5, &f);
    if (n == 65535) {
      assert_int_equal(s, PERI_OK);
      peri_gguf_close(f);
    } else {
      want_failure(C, s, PERI_EFORMAT, "the key has 65536 bytes, the limit is 65535");
    }
  }
  free(file);
}

static void arrays_are_bounded (void **state) {
  (void)state;
  start(0, 1), key("k", 9), u32(4), u64((1ull << 62) + 1), zeros(40);
  refuses("4611686018427387905 elements of type u32 need at least 4 bytes each, 40 are left");
  start(0, 1), key("k", 9), u32(8), u64(6), zeros(40);
  refuses("6 elements of type text need at least 8 bytes each");
  start(0, 1), key("k", 9), u32(9), u64(4), zeros(40);
  refuses("4 elements of type array need at least 12 bytes each");
  start(0, 1), key("k", 9);
  for (int i = 0; i < 3; i++) u32(9), u64(1);
  u32(0), u64(0), zeros(40);
  peri_gguf_close(parse());
  start(0, 1), key("k", 9);
  for (int i = 0; i < 1000; i++) u32(9), u64(1);
  refuses("arrays are nested more than 4 deep");
}

static void alignments_are_checked (void **state) {
  static const uint32_t bad[] = { 0, 3, 24, 33, 1u << 21, 0x80000000u, UINT32_MAX };
  const uint64_t dims[] = { 1 };
  (void)state;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    start(0, 1), key("general.alignment", 4), u32(bad[i]);
    refuses("a power of two up to 1048576");
  }
  start(0, 1), key("general.alignment", 5), u32(32);
  refuses("the alignment has type i32, u32 is expected");
  start(0, 1), key("general.alignment", 8), text("32");
  refuses("the alignment has type text");
  start(1, 1), key("general.alignment", 4), u32(64), tensor("a", 1, dims, 0, 32), zeros(200);
  refuses("offset 32 is no multiple of the alignment 64");
}

static void names_are_distinct (void **state) {
  const uint64_t dims[] = { 1 };
  (void)state;
  start(0, 3), key("b", 0), zeros(1), key("a", 0), zeros(1), key("b", 0), zeros(1);
  refuses("byte 52: two values are named \"b\"");
  start(2, 0), tensor("t", 1, dims, 0, 0), tensor("t", 1, dims, 0, 32), zeros(200);
  refuses("two tensors are named \"t\"");
  start(1, 0);
  char name[70];
  memset(name, 'n', sizeof name);
  name[65] = 0;
  tensor(name, 1, dims, 0, 0), zeros(64);
  refuses("the name has 65 bytes, the limit is 64");
  start(1, 0);
  name[64] = 0;
  tensor(name, 1, dims, 0, 0), align(), zeros(64);
  peri_gguf_close(parse());
}

/* Products that wrap to 0, to a negative and to a small number, in elements and in bytes. */
static void sizes_are_multiplied_with_checks (void **state) {
  static const uint64_t wrap[][4] = { { 1ull << 32, 1ull << 32, 1, 1 },
                                      { 1ull << 32, 1ull << 31, 1, 1 },
                                      { 0x5555555555555556u, 3, 1, 1 },
                                      { 1ull << 16, 1ull << 16, 1ull << 16, 1ull << 16 },
                                      { 3037000500u, 3037000500u, 1, 1 } };
  (void)state;
  for (size_t i = 0; i < sizeof wrap / sizeof *wrap; i++) {
    start(1, 0), tensor("t", 4, wrap[i], 0, 0), align(), zeros(64);
    refuses("(t): the number of elements overflows 64 bits");
  }
  const uint64_t bytes[] = { 1ull << 61 }, blocks[] = { 1ull << 62 }, zero[] = { 4, 0 },
                 minus[] = { UINT64_MAX }, odd[] = { 33 }, one[] = { 1, 1, 1, 1, 1 };
  start(1, 0), tensor("t", 1, bytes, 0, 0), align(), zeros(64);
  refuses("the size in bytes overflows 64 bits");
  start(1, 0), tensor("t", 1, blocks, 8, 0), align(), zeros(64);
  refuses("bytes at offset 0 of the data in a file of");
  start(1, 0), tensor("t", 2, zero, 0, 0), align(), zeros(64);
  refuses("dim 1 has size 0");
  start(1, 0), tensor("t", 1, minus, 0, 0), align(), zeros(64);
  refuses("dim 0 has size 18446744073709551615");
  start(1, 0), tensor("t", 1, odd, 8, 0), align(), zeros(64);
  refuses("type Q8_0 has blocks of 32 elements, rows of 33 are no multiple");
  start(1, 0), tensor("t", 5, one, 0, 0), align(), zeros(64);
  refuses("5 dims, at most 4 are allowed");
  start(1, 0), text("t"), u32(UINT32_MAX), zeros(64);
  refuses("4294967295 dims");
}

static void data_is_within_the_file_and_apart (void **state) {
  const uint64_t dims[] = { 16 };
  peri_gguf *f;
  (void)state;
  start(1, 0), tensor("t", 1, dims, 0, 0), align(), zeros(60);
  refuses("64 bytes of data at byte 64 of a file of 124");
  start(1, 0), tensor("t", 1, dims, 0, 1ull << 40), align(), zeros(64);
  refuses("offset 1099511627776");
  start(1, 0), tensor("t", 1, dims, 0, UINT64_MAX - 31), align(), zeros(64);
  refuses("offset 18446744073709551584");
  start(1, 0), tensor("t", 1, dims, 0, 16), align(), zeros(96);
  refuses("offset 16 is no multiple");
  start(2, 0), tensor("t", 1, dims, 0, 0), tensor("u", 1, dims, 0, 32), align(), zeros(200);
  refuses("(u): its data at offset 32 overlaps the tensor before, which ends at 64");
  start(2, 0), tensor("t", 1, dims, 0, 0), tensor("u", 1, dims, 0, 0), align(), zeros(200);
  refuses("overlaps");
  start(1, 0), tensor("t", 1, dims, 0, 32), align(), zeros(96); /* a gap does no harm */
  f = parse();
  peri_gguf_close(f);
}

static void every_truncation_is_refused (void **state) {
  const uint64_t dims[] = { 8 };
  peri_gguf *f;
  (void)state;
  start(1, 2), key("a", 8), text("text"), key("b", 9), u32(8), u64(2), text("x"), text("y");
  tensor("t", 1, dims, 0, 0), align(), zeros(32);
  size_t whole = N;
  peri_gguf_close(parse());
  for (size_t n = 0; n < whole; n++)
    want_failure(C, peri_gguf_parse(C, B, n, &f), PERI_EFORMAT, "memory: byte ");
}

/* A million short names would take hours if each were compared with each. */
static void many_names_take_no_long_time (void **state) {
  enum { VALUES = 65536 };
  size_t room = 24 + VALUES * (size_t)24, n = 0;
  unsigned char *file = malloc(room);
  peri_gguf *f;
  (void)state;
  start(0, VALUES);
  memcpy(file, B, N);
  n = N;
  for (uint32_t i = 0; i < VALUES; i++) {
    char name[16];
    int k = snprintf(name, sizeof name, "k%u", (unsigned)i);
    uint64_t size = (uint64_t)k;
    memcpy(file + n, &size, 8);
    memcpy(file + n + 8, name, (size_t)k);
    memset(file + n + 8 + k, 0, 5);
    n += 13 + (size_t)k;
  }
  clock_t before = clock();
  H.peak = H.live;
  size_t live = H.live;
  assert_int_equal(peri_gguf_parse(C, file, n, &f), PERI_OK);
  assert_true(H.peak - live <= 2 * n);
  assert_int_equal(peri_gguf_find(f, "k65535"), 65535);
  peri_gguf_close(f);
  assert_true(clock() - before < 5 * CLOCKS_PER_SEC);
  free(file);
}

static void memory_stays_within_twice_the_file (void **state) {
  const uint64_t dims[] = { 1000 };
  peri_gguf *f;
  peri_tensor *t;
  (void)state;
  start(1, 1), key("texts", 9), u32(8), u64(5000);
  for (int i = 0; i < 5000; i++) u64(0);
  tensor("t", 1, dims, 0, 0), align(), zeros(4000);
  write_file(Path, B, N);
  for (int map = 0; map < 2; map++) {
    peri_memory_trim(C);
    size_t before = H.live;
    H.peak = H.live;
    assert_int_equal(peri_gguf_open(C, Path, map != 0, &f), PERI_OK);
    assert_int_equal(peri_gguf_tensor(f, 0, &t), PERI_OK);
    assert_true(H.peak - before <= 2 * N + 100000); /* the first read has 64 KiB */
    peri_release(t);
    peri_gguf_close(f);
  }
}

/* ---- writing ---- */

static peri_status write_all (peri_tensor *t, peri_tensor *q) {
  const int64_t whole[] = { 1, -2, 3 };
  const double number = 0.5;
  const peri_gguf_text texts[] = { { "llama", 5 }, { "", 0 } };
  peri_gguf_writer *w;
  peri_status s = peri_gguf_create(C, Path, &w);
  if (s != PERI_OK) return s;
  if (s == PERI_OK) s = peri_gguf_put(w, "general.architecture", PERI_GGUF_TEXT, false, 1, texts);
  if (s == PERI_OK) s = peri_gguf_put(w, "a.list", PERI_GGUF_I32, true, 3, whole);
  if (s == PERI_OK) s = peri_gguf_put(w, "a.texts", PERI_GGUF_TEXT, true, 2, texts);
  if (s == PERI_OK) s = peri_gguf_put(w, "a.num", PERI_GGUF_F32, false, 1, &number);
  if (s == PERI_OK) s = peri_gguf_declare(w, "t", peri_dtype_of(t), peri_ndim(t), peri_shape(t));
  if (s == PERI_OK) s = peri_gguf_declare(w, "q", peri_dtype_of(q), peri_ndim(q), peri_shape(q));
  if (s == PERI_OK) s = peri_gguf_write(w, t);
  if (s == PERI_OK) s = peri_gguf_write(w, q);
  if (s == PERI_OK) return peri_gguf_commit(w);
  peri_gguf_abort(w);
  return s;
}

static void make_tensors (peri_tensor **t, peri_tensor **q) {
  const int64_t shape[] = { 3, 2 }, stride[] = { 1, 3 }, block[] = { 2, 32 };
  static float values[6] = { 1, 2, 3, 4, 5, 6 };
  unsigned char bytes[68];
  for (int i = 0; i < 68; i++) bytes[i] = (unsigned char)i;
  assert_int_equal(peri_import(C, PERI_F32, 2, shape, stride, values, NULL, NULL, t), PERI_OK);
  assert_int_equal(peri_from(C, PERI_Q8_0, 2, block, bytes, q), PERI_OK);
}

static void what_is_written_is_read (void **state) {
  peri_tensor *t, *q, *back;
  peri_gguf *f;
  peri_gguf_value v;
  peri_gguf_text s;
  int64_t i;
  double x;
  (void)state;
  make_tensors(&t, &q);
  if (write_all(t, q) != PERI_OK) fail_msg("%s", peri_message(C));
  assert_int_equal(peri_gguf_open(C, Path, true, &f), PERI_OK);
  assert_int_equal(peri_gguf_get_text(f, "general.architecture", &s), PERI_OK);
  assert_memory_equal(s.s, "llama", 5);
  assert_int_equal(peri_gguf_get_array(f, "a.list", PERI_GGUF_I64, &v), PERI_OK);
  assert_int_equal(v.type, PERI_GGUF_I32);
  assert_true(peri_gguf_int(f, &v, 1, &i));
  assert_int_equal(i, -2);
  assert_int_equal(peri_gguf_tensor(f, peri_gguf_find_tensor(f, "t"), &back), PERI_OK);
  assert_int_equal(peri_shape(back)[0], 3);
  assert_int_equal(peri_item(back, 1, &x), PERI_OK); /* row 0: 1, 4 */
  assert_true(x == 4);
  peri_release(back);
  assert_int_equal(peri_gguf_tensor(f, peri_gguf_find_tensor(f, "q"), &back), PERI_OK);
  assert_memory_equal(peri_data(back), peri_data(q), 68);
  peri_release(back);
  peri_gguf_close(f);
  peri_release(t);
  peri_release(q);
}

static void the_writer_refuses_what_no_reader_takes (void **state) {
  const int64_t big = 256, one = 1, shape[] = { 2 };
  const peri_gguf_text s = { "x", 1 };
  char name[80];
  peri_gguf_writer *w;
  peri_gguf *f;
  peri_tensor *t;
  (void)state;
  memset(name, 'n', sizeof name);
  name[64] = 0;
  write_file(Path, "old", 3);
  assert_int_equal(peri_empty(C, PERI_F32, 1, shape, &t), PERI_OK);
  assert_int_equal(peri_gguf_create(C, Path, &w), PERI_OK);
  want_failure(C, peri_gguf_put(w, "k", PERI_GGUF_U8, false, 1, &big), PERI_EINVAL, "256 is no u8");
  want_failure(C, peri_gguf_put(w, "general.alignment", PERI_GGUF_U32, false, 1, &one), PERI_EINVAL,
               "always 32");
  want_failure(C, peri_gguf_declare(w, name, PERI_F32, 1, shape), PERI_EINVAL, "64 bytes");
  want_failure(C, peri_gguf_declare(w, "t", PERI_BOOL, 1, shape), PERI_EDTYPE, "bool has no type");
  assert_int_equal(peri_gguf_put(w, "k", PERI_GGUF_TEXT, false, 1, &s), PERI_OK);
  assert_int_equal(peri_gguf_put(w, "k", PERI_GGUF_TEXT, false, 1, &s), PERI_OK);
  want_failure(C, peri_gguf_commit(w), PERI_EINVAL, "two values are named \"k\"");
  assert_int_equal(peri_gguf_create(C, Path, &w), PERI_OK);
  assert_int_equal(peri_gguf_declare(w, "t", PERI_F16, 1, shape), PERI_OK);
  want_failure(C, peri_gguf_write(w, t), PERI_EINVAL, "another dtype or shape than f32 (2)");
  peri_gguf_abort(w);
  assert_int_equal(peri_gguf_create(C, Path, &w), PERI_OK);
  assert_int_equal(peri_gguf_declare(w, "t", PERI_F32, 1, shape), PERI_OK);
  want_failure(C, peri_gguf_commit(w), PERI_EINVAL, "1 of 1 tensors are missing");
  want_failure(C, peri_gguf_open(C, Path, false, &f), PERI_EFORMAT,
               "no GGUF file"); /* the old one */
  peri_release(t);
}

static peri_status write_and_read (void *ud) {
  peri_tensor **t = ud, *back;
  peri_status s = write_all(t[0], t[1]);
  for (int map = 0; map < 2 && s == PERI_OK; map++) {
    peri_gguf *f;
    s = peri_gguf_open(C, Path, map != 0, &f);
    if (s == PERI_OK) s = peri_gguf_tensor(f, 0, &back);
    if (s == PERI_OK) peri_release(back);
    peri_gguf_close(f);
  }
  return s;
}

static void every_failed_allocation_is_reported (void **state) {
  peri_tensor *t[2];
  (void)state;
  make_tensors(&t[0], &t[1]);
  fail_every_allocation(C, &H, false, write_and_read, t);
  peri_release(t[0]);
  peri_release(t[1]);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(values_of_every_type_are_read),
    TEST(arrays_are_walked),
    TEST(tensors_are_read_with_dims_in_reverse),
    TEST(the_start_is_checked),
    TEST(counts_are_bounded_before_memory_is_taken),
    TEST(texts_and_keys_are_bounded),
    TEST(a_key_may_have_65535_bytes),
    TEST(arrays_are_bounded),
    TEST(alignments_are_checked),
    TEST(names_are_distinct),
    TEST(sizes_are_multiplied_with_checks),
    TEST(data_is_within_the_file_and_apart),
    TEST(every_truncation_is_refused),
    TEST(many_names_take_no_long_time),
    TEST(memory_stays_within_twice_the_file),
    TEST(what_is_written_is_read),
    TEST(the_writer_refuses_what_no_reader_takes),
    TEST(every_failed_allocation_is_reported)
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
