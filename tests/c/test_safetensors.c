/*
** test_safetensors.c - every rule of the format is a refusal here; what is accepted comes back bit
** by bit, and what is saved is what the format's own reader would write.
*/
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* mkfifo, symlink, setrlimit */
#endif
#include "scratch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "memory_of.h"

/* A file from its header and n bytes of data counting up from 0. */
static size_t make (unsigned char *out, const char *header, size_t n) {
  size_t h = strlen(header);
  for (int i = 0; i < 8; i++) out[i] = (unsigned char)(h >> (8 * i));
  memcpy(out + 8, header, h);
  for (size_t i = 0; i < n; i++) out[8 + h + i] = (unsigned char)i;
  return 8 + h + n;
}

static void refuses_as (peri_status want, const char *header, size_t n, const char *part) {
  unsigned char file[4096];
  peri_safetensors *f = (peri_safetensors *)1;
  size_t size = make(file, header, n);
  want_failure(C, peri_safetensors_parse(C, file, size, &f), want, part);
  assert_null(f);
  write_file(Path, file, size);
  want_failure(C, peri_safetensors_open(C, Path, false, &f), want, part);
  assert_non_null(strstr(peri_message(C), Path));
}

static void refuses (const char *header, size_t n, const char *part) {
  refuses_as(PERI_EFORMAT, header, n, part);
}

static peri_safetensors *parse (unsigned char *file, const char *header, size_t n) {
  peri_safetensors *f;
  size_t size = make(file, header, n);
  if (peri_safetensors_parse(C, file, size, &f) != PERI_OK) fail_msg("%s", peri_message(C));
  return f;
}

#define T(dtype, shape, from, to) \
  "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"

static void tensors_are_read (void **state) {
  unsigned char file[1024];
  (void)state;
  peri_safetensors *f =
      parse(file,
            "{\"b\":" T("F32", "[2,1]", 4, 12) ",\"__metadata__\":{\"k\\n\":\"v\",\"\":\"\"},"
                                               "\"a\\u00e9\":" T("U8", "[4]", 0, 4) ",\"s\":" T(
                                                   "I64", "[]", 12, 20) "}   ",
            20);
  assert_int_equal(peri_safetensors_count(f), 3);
  peri_safetensors_entry e = peri_safetensors_at(f, 0);
  assert_string_equal(e.name, "a\xC3\xA9");
  assert_int_equal(e.dtype, PERI_U8);
  assert_int_equal(e.bytes, 4);
  e = peri_safetensors_at(f, peri_safetensors_find(f, "b"));
  assert_int_equal(e.ndim, 2);
  assert_int_equal(e.shape[0], 2);
  assert_int_equal(e.shape[1], 1);
  assert_int_equal(file[e.offset], 4);
  assert_int_equal(peri_safetensors_find(f, "c"), -1);
  assert_int_equal(peri_safetensors_pairs(f), 2);
  assert_string_equal(peri_safetensors_pair(f, 0).key, "k\n");
  assert_string_equal(peri_safetensors_pair(f, 0).value, "v");
  assert_string_equal(peri_safetensors_pair(f, 1).key, "");
  peri_tensor *t;
  assert_int_equal(peri_safetensors_tensor(f, 2, &t), PERI_OK);
  peri_safetensors_close(f); /* a tensor outlives its handle */
  assert_int_equal(peri_ndim(t), 0);
  assert_int_equal(*(int64_t *)peri_data(t), 0x131211100F0E0D0C);
  peri_release(t);
}

static void every_dtype_empty_and_scalar_shapes_are_read (void **state) {
  static const char *const name[] = { "BOOL", "U8", "I32", "I64", "F16", "BF16", "F32", "F64" };
  unsigned char file[1024];
  (void)state;
  for (int d = 0; d < PERI_NDTYPE; d++) { /* ORDER dtype */
    char header[300];
    int n = (int)peri_dtype_size((peri_dtype)d) * 2;
    snprintf(header, sizeof header,
             "{\"x\":{\"shape\":[2],\"data_offsets\":[0,%d],\"dtype\":\"%s\"},"
             "\"z\":{\"dtype\":\"%s\",\"shape\":[3,0,9],\"data_offsets\":[%d,%d]}}",
             n, name[d], name[d], n, n);
    peri_safetensors *f = parse(file, header, (size_t)n);
    assert_int_equal(peri_safetensors_at(f, 0).dtype, d);
    for (int64_t i = 0; i < 2; i++) {
      peri_tensor *t;
      assert_int_equal(peri_safetensors_tensor(f, i, &t), PERI_OK);
      assert_int_equal(peri_numel(t), i == 0 ? 2 : 0);
      if (i == 0) assert_memory_equal(peri_data(t), file + peri_safetensors_at(f, 0).offset, n);
      peri_release(t);
    }
    peri_safetensors_close(f);
  }
  peri_safetensors_close(parse(file, "{}", 0));
  peri_safetensors_close(parse(file, "{\"__metadata__\":{}}", 0));
  peri_safetensors_close(parse(file, "{\"x\":" T("U8", "[1,1,1,1,1,1,1,1]", 0, 1) "}", 1));
}

static void a_broken_frame_is_refused (void **state) {
  unsigned char file[64] = { 0 };
  peri_safetensors *f;
  (void)state;
  for (size_t n = 0; n < 8; n++) {
    want_failure(C, peri_safetensors_parse(C, file, n, &f), PERI_EFORMAT,
                 "are no safetensors file");
    write_file(Path, file, n);
    want_failure(C, peri_safetensors_open(C, Path, true, &f), PERI_EFORMAT, "no safetensors file");
  }
  want_failure(C, peri_safetensors_parse(C, file, 8, &f), PERI_EFORMAT, "does not begin with '{'");
  file[0] = 57;
  want_failure(C, peri_safetensors_parse(C, file, 64, &f), PERI_EFORMAT,
               "57 bytes in a file of 64");
  memset(file, 0xFF, 8);
  want_failure(C, peri_safetensors_parse(C, file, 64, &f), PERI_EFORMAT,
               "18446744073709551615 bytes, the limit is 100000000");
  const uint64_t over = 100000001;
  memcpy(file, &over, 8);
  want_failure(C, peri_safetensors_parse(C, file, 64, &f), PERI_EFORMAT, "limit is 100000000");
  refuses(" {}", 0, "does not begin with '{'");
  refuses("[]", 0, "does not begin with '{'");
  refuses("{", 0, "found the end");
  refuses("{}x", 0, "nothing behind");
  refuses("{\"a\":", 0, "found the end");
}

static void offsets_must_tile_the_data (void **state) {
  (void)state;
  refuses("{\"a\":" T("U8", "[2]", 1, 3) "}", 3, "leaving a hole");
  refuses("{\"a\":" T("U8", "[2]", 0, 2) ",\"b\":" T("U8", "[2]", 3, 5) "}", 5,
          "\"b\" begin at 3, leaving a hole behind the 2");
  refuses("{\"a\":" T("U8", "[2]", 0, 2) ",\"b\":" T("U8", "[2]", 1, 3) "}", 3, "overlapping");
  refuses("{\"a\":" T("U8", "[2]", 0, 2) ",\"b\":" T("U8", "[2]", 0, 2) "}", 2, "overlapping");
  refuses("{\"a\":" T("U8", "[2]", 0, 2) "}", 3, "end at byte 2 of 3");
  refuses("{\"a\":" T("U8", "[0]", 0, 0) "}", 1, "end at byte 0 of 1");
  refuses("{\"a\":" T("U8", "[0]", 1, 1) "}", 1, "leaving a hole");
  refuses("{}", 1, "end at byte 0 of 1");
  refuses("{\"a\":" T("U8", "[4]", 0, 4) "}", 3, "end at 4, the data has 3");
  refuses("{\"a\":" T("U8", "[2]", 2, 0) "}", 2, "before they begin");
  refuses("{\"a\":" T("U8", "[2]", -1, 1) "}", 1, "offset -1 is negative");
  refuses("{\"a\":" T("U8", "[2]", 0, 9223372036854775807) "}", 2, "the data has 2 bytes");
  refuses("{\"a\":" T("U8", "[2]", 0, 9223372036854775808) "}", 2, "must be a whole number");
  refuses("{\"a\":" T("U8", "[2]", 0, 18446744073709551615) "}", 2, "cannot hold exactly");
  refuses("{\"a\":" T("U8", "[2]", 0, 2.0) "}", 2, "must be a whole number");
  refuses("{\"a\":" T("U8", "[2]", 0, 2e0) "}", 2, "must be a whole number");
  refuses("{\"a\":" T("U8", "[2]", 0, "2") "}", 2, "must be a whole number, not a string");
  refuses("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0]}}", 0, "an offset must be");
  refuses("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0,0]}}", 0,
          "what follows two");
  refuses("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":null}}", 0, "must be an array");
}

static void sizes_are_multiplied_with_checks (void **state) {
  (void)state;
  refuses("{\"a\":" T("F32", "[2]", 0, 4) "}", 4,
          "2 elements of F32 need 8 bytes, data_offsets give 4");
  refuses("{\"a\":" T("F32", "[1]", 0, 8) "}", 8, "need 4 bytes");
  refuses("{\"a\":" T("F32", "[]", 0, 0) "}", 0, "need 4 bytes");
  /* products that wrap to 0, to a negative, to a small positive */
  refuses("{\"a\":" T("U8", "[4294967296,4294967296]", 0, 0) "}", 0, "overflows 64 bits");
  refuses("{\"a\":" T("U8", "[4294967296,2147483648]", 0, 0) "}", 0, "overflows 64 bits");
  refuses("{\"a\":" T("U8", "[6148914691236517206,3]", 0, 2) "}", 2, "overflows 64 bits");
  refuses("{\"a\":" T("F64", "[2305843009213693952]", 0, 0) "}", 0, "size in bytes overflows");
  refuses("{\"a\":" T("F32", "[4611686018427387905]", 0, 4) "}", 4, "size in bytes overflows");
  refuses("{\"a\":" T("U8", "[9223372036854775807,9223372036854775807,0]", 0, 0) "}", 0,
          "overflows");
  refuses("{\"a\":" T("U8", "[9223372036854775808]", 0, 0) "}", 0, "a size must be a whole number");
  refuses("{\"a\":" T("U8", "[-1]", 0, 1) "}", 1, "a size must be a whole number");
  refuses("{\"a\":" T("U8", "[-1,-1]", 0, 1) "}", 1, "a size must be a whole number");
  refuses("{\"a\":" T("U8", "[1.0]", 0, 1) "}", 1, "a size must be a whole number");
  refuses("{\"a\":" T("U8", "[\"1\"]", 0, 1) "}", 1, "a size must be a whole number");
  refuses("{\"a\":" T("U8", "[[1]]", 0, 1) "}", 1, "a size must be a whole number");
  refuses("{\"a\":" T("U8", "{}", 0, 1) "}", 1, "shape must be an array");
  refuses("{\"a\":" T("U8", "[1,1,1,1,1,1,1,1,1]", 0, 1) "}", 1, "more than 8 dims");
}

static void names_fields_and_dtypes_are_checked (void **state) {
  (void)state;
  refuses_as(PERI_ENOSUP, "{\"w\":" T("F8_E4M3", "[2]", 0, 2) "}", 2,
             "dtype F8_E4M3 of tensor \"w\" is not supported");
  refuses_as(PERI_ENOSUP, "{\"w\":" T("I16", "[1]", 0, 2) "}", 2, "dtype I16");
  refuses("{\"w\":" T("Q7", "[1]", 0, 1) "}", 1, "unknown dtype \"Q7\" of tensor \"w\"");
  refuses("{\"w\":" T("f32", "[1]", 0, 4) "}", 4, "unknown dtype \"f32\"");
  refuses("{\"w\":" T("U8\\u0000", "[1]", 0, 1) "}", 1, "unknown dtype");
  refuses("{\"a\":" T("U8", "[1]", 0, 1) ",\"\\u0061\":" T("U8", "[1]", 1, 2) "}", 2,
          "duplicate key");
  refuses("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
          "duplicate key");
  refuses("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "duplicate key");
  refuses("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "duplicate key");
  refuses("{\"__metadata__\":{\"a\":1}}", 0, "a value of __metadata__ must be a string");
  refuses("{\"__metadata__\":{\"a\":null}}", 0, "must be a string, not null");
  refuses("{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}", 0, "must be a string, not an object");
  refuses("{\"__metadata__\":null}", 0, "__metadata__ must be an object");
  refuses("{\"__metadata__\":[]}", 0, "__metadata__ must be an object");
  refuses("{\"a\\u0000b\":" T("U8", "[1]", 0, 1) "}", 1, "zero character");
  refuses("{\"__metadata__\":{\"a\":\"\\u0000\"}}", 0, "zero character");
  refuses("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1,
          "unknown field \"x\"");
  refuses("{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "a tensor without dtype");
  refuses("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "a tensor without shape");
  refuses("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "a tensor without data_offsets");
  refuses("{\"a\":1}", 0, "a tensor must be an object");
  refuses("{\"a\":[]}", 0, "a tensor must be an object");
  refuses("{\"a\":{\"dtype\":8,\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
          "dtype must be a string");
  refuses("{\"a\":{\"dtype\":\"U8\",\"shape\":[[[[[1]]]]],\"data_offsets\":[0,1]}}", 1,
          "a size must be");
  refuses("{\"\xFF\":" T("U8", "[1]", 0, 1) "}", 1, "not valid UTF-8");
}

static void a_bool_holds_0_or_1 (void **state) {
  unsigned char file[256];
  peri_tensor *t = (peri_tensor *)1;
  (void)state;
  peri_safetensors *f = parse(file, "{\"m\":" T("BOOL", "[4]", 0, 4) "}", 4);
  want_failure(C, peri_safetensors_tensor(f, 0, &t), PERI_EFORMAT, "2 in tensor \"m\" is no BOOL");
  assert_null(t);
  want_failure(C, peri_safetensors_tensor(f, 1, &t), PERI_EINVAL, "tensor 1 of 1");
  want_failure(C, peri_safetensors_tensor(f, -1, &t), PERI_EINVAL, "tensor -1 of 1");
  peri_safetensors_close(f);
}

static void what_is_no_regular_file_is_refused (void **state) {
  peri_safetensors *f;
  (void)state;
  want_failure(C, peri_safetensors_open(C, Path, false, &f), PERI_EIO, "cannot open: No such file");
  want_failure(C, peri_safetensors_open(C, Dir, false, &f), PERI_EIO, "is a folder");
  want_failure(C, peri_safetensors_open(C, "/dev/zero", false, &f), PERI_EIO, "not a regular file");
  assert_int_equal(mkfifo(Path, 0600), 0);
  want_failure(C, peri_safetensors_open(C, Path, false, &f), PERI_EIO, "not a regular file");
}

static peri_tensor *counting (peri_dtype d, int ndim, const int64_t *shape) {
  peri_tensor *t;
  assert_int_equal(peri_empty(C, d, ndim, shape, &t), PERI_OK);
  size_t n = (size_t)peri_numel(t) * peri_dtype_size(d);
  for (size_t i = 0; i < n; i++)
    ((unsigned char *)peri_data(t))[i] = (unsigned char)(d == PERI_BOOL ? i & 1 : i * 7 + d);
  return t;
}

static void saved_files_are_canonical_and_read_back (void **state) {
  const int64_t shape[] = { 3, 5, 0 };
  const char *names[PERI_NDTYPE] = { "h", "g", "f", "e", "d", "c", "b\n\xC3\xA9", "a" };
  const peri_text_pair pairs[] = { { "format", "pt" }, { "k\"", "\\" } };
  peri_tensor *t[PERI_NDTYPE], *back;
  peri_safetensors *f;
  void *bytes;
  size_t size;
  (void)state;
  for (int d = 0; d < PERI_NDTYPE; d++) t[d] = counting((peri_dtype)d, d % 4, shape);
  assert_int_equal(peri_safetensors_save(C, Path, PERI_NDTYPE, names, t, 2, pairs), PERI_OK);
  assert_int_equal(peri_file_read(C, Path, 0, &bytes, &size), PERI_OK);
  /* elements of 8, 4, 2, 1 bytes, by name within, padded to 8 with spaces */
  static const char want[] =
      "{\"__metadata__\":{\"format\":\"pt\",\"k\\\"\":\"\\\\\"},"
      "\"a\":{\"dtype\":\"F64\",\"shape\":[3,5,0],\"data_offsets\":[0,0]},"
      "\"e\":{\"dtype\":\"I64\",\"shape\":[3,5,0],\"data_offsets\":[0,0]},"
      "\"b\\n\xC3\xA9\":{\"dtype\":\"F32\",\"shape\":[3,5],\"data_offsets\":[0,60]},"
      "\"f\":{\"dtype\":\"I32\",\"shape\":[3,5],\"data_offsets\":[60,120]},"
      "\"c\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[120,126]},"
      "\"d\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[126,128]},"
      "\"g\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[128,131]},"
      "\"h\":{\"dtype\":\"BOOL\",\"shape\":[],\"data_offsets\":[131,132]}}";
  size_t padded = (sizeof want - 1 + 7) / 8 * 8;
  assert_int_equal(((unsigned char *)bytes)[0], padded & 255);
  assert_memory_equal((char *)bytes + 8, want, sizeof want - 1);
  for (size_t i = 8 + sizeof want - 1; i < 8 + padded; i++)
    assert_int_equal(((char *)bytes)[i], ' ');
  assert_int_equal(size, 8 + padded + 132);
  peri_file_free(C, bytes, size);
  for (int map = 0; map < 2; map++) {
    assert_int_equal(peri_safetensors_open(C, Path, map != 0, &f), PERI_OK);
    for (int d = 0; d < PERI_NDTYPE; d++) {
      assert_int_equal(peri_safetensors_tensor(f, peri_safetensors_find(f, names[d]), &back),
                       PERI_OK);
      assert_int_equal(peri_dtype_of(back), d);
      assert_int_equal(peri_ndim(back), d % 4);
      assert_int_equal(peri_numel(back), peri_numel(t[d]));
      assert_memory_equal(peri_data(back), peri_data(t[d]),
                          (size_t)peri_numel(back) * peri_dtype_size((peri_dtype)d));
      peri_release(back);
    }
    peri_safetensors_close(f);
  }
  for (int d = 0; d < PERI_NDTYPE; d++) peri_release(t[d]);
}

static void strided_tensors_are_saved_dense (void **state) {
  enum { N = 700 }; /* 700 x 700 floats: more than one chunk */
  static float data[N * N];
  const int64_t shape[] = { N, N }, transposed[] = { 1, N }, wide[] = { 4, 3 },
                broadcast[] = { 0, -1 };
  const char *names[] = { "t", "b" };
  peri_tensor *t[2], *back;
  peri_safetensors *f;
  (void)state;
  for (int i = 0; i < N * N; i++) data[i] = (float)i;
  assert_int_equal(peri_import(C, PERI_F32, 2, shape, transposed, data, NULL, NULL, &t[0]),
                   PERI_OK);
  assert_int_equal(peri_import(C, PERI_F32, 2, wide, broadcast, data + 2, NULL, NULL, &t[1]),
                   PERI_OK);
  assert_int_equal(peri_safetensors_save(C, Path, 2, names, t, 0, NULL), PERI_OK);
  assert_int_equal(peri_safetensors_open(C, Path, false, &f), PERI_OK);
  assert_int_equal(peri_safetensors_tensor(f, peri_safetensors_find(f, "t"), &back), PERI_OK);
  for (int i = 0; i < N; i++)
    for (int j = 0; j < N; j++)
      assert_true(((float *)peri_data(back))[i * N + j] == data[j * N + i]);
  peri_release(back);
  assert_int_equal(peri_safetensors_tensor(f, peri_safetensors_find(f, "b"), &back), PERI_OK);
  for (int i = 0; i < 12; i++) assert_true(((float *)peri_data(back))[i] == (float)(2 - i % 3));
  peri_release(back);
  peri_safetensors_close(f);
  peri_release(t[0]);
  peri_release(t[1]);
}

static void a_failed_save_leaves_the_old_file (void **state) {
  const int64_t shape[] = { 1 << 18 };
  const char *names[] = { "a", "a" }, *good[] = { "a" }, *meta[] = { "__metadata__" },
             *bad[] = { "\xFF" };
  char *listed;
  size_t size;
  struct stat before, after;
  (void)state;
  peri_tensor *t = counting(PERI_F32, 1, shape), *two[] = { t, t };
  assert_int_equal(peri_safetensors_save(C, Path, 1, good, &t, 0, NULL), PERI_OK);
  assert_int_equal(stat(Path, &before), 0);
  want_failure(C, peri_safetensors_save(C, Path, 2, names, two, 0, NULL), PERI_EINVAL,
               "duplicate key");
  want_failure(C, peri_safetensors_save(C, Path, 1, meta, two, 0, NULL), PERI_EINVAL,
               "__metadata__");
  want_failure(C, peri_safetensors_save(C, Path, 1, bad, two, 0, NULL), PERI_EINVAL,
               "not valid UTF-8");
  const peri_text_pair pairs[] = { { "k", "1" }, { "k", "2" } };
  want_failure(C, peri_safetensors_save(C, Path, 1, good, two, 2, pairs), PERI_EINVAL,
               "duplicate key");
  want_failure(C, peri_safetensors_save(C, Dir, 1, good, &t, 0, NULL), PERI_EIO,
               "not a regular file");
  want_failure(C, peri_safetensors_save(C, "/dev/null", 1, good, &t, 0, NULL), PERI_EIO,
               "not a regular");
  want_failure(C, peri_safetensors_save(C, "/nowhere/x", 1, good, &t, 0, NULL), PERI_EIO,
               "cannot create");
  /* a disk that fills up: the limit on file sizes must come back as an error, not as a signal */
  struct rlimit limit, old;
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
  limit = old;
  limit.rlim_cur = 1 << 16;
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
  peri_status s = peri_safetensors_save(C, Path, 1, good, &t, 0, NULL);
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
  want_failure(C, s, PERI_EIO, "cannot write: File too large");
  peri_interrupt(C);
  want_failure(C, peri_safetensors_save(C, Path, 1, good, &t, 0, NULL), PERI_EINTR, "interrupted");
  peri_interrupt_clear(C);
  assert_int_equal(stat(Path, &after), 0);
  assert_int_equal(before.st_ino, after.st_ino);
  assert_int_equal(before.st_size, after.st_size);
  assert_int_equal(peri_list_folder(C, Dir, &listed, &size), PERI_OK);
  assert_int_equal(size, strlen("file") + 1); /* no temporary file stays */
  peri_file_free(C, listed, size);
  peri_release(t);
}

static void a_map_outlives_handle_and_file (void **state) {
  const int64_t shape[] = { 1024 };
  const char *names[] = { "x", "y" };
  peri_tensor *t[2], *x, *y;
  peri_safetensors *f;
  (void)state;
  t[0] = t[1] = counting(PERI_F64, 1, shape);
  assert_int_equal(peri_safetensors_save(C, Path, 2, names, t, 0, NULL), PERI_OK);
  assert_int_equal(peri_safetensors_open(C, Path, true, &f), PERI_OK);
  size_t live = memory_of(C).live_bytes;
  assert_int_equal(peri_safetensors_tensor(f, 0, &x), PERI_OK);
  assert_int_equal(peri_safetensors_tensor(f, 1, &y), PERI_OK);
  assert_int_equal(memory_of(C).live_bytes, live); /* shared, not copied */
  peri_safetensors_close(f);
  ((unsigned char *)peri_data(x))[0] ^= 0xFF; /* private: the file does not change */
  /* saving over a file whose tensors are mapped must not change them (safetensors issue 762) */
  assert_int_equal(peri_safetensors_save(C, Path, 1, names, &y, 0, NULL), PERI_OK);
  assert_int_equal(unlink(Path), 0);
  assert_memory_equal(peri_data(y), peri_data(t[0]), 8192);
  peri_release(x);
  assert_memory_equal(peri_data(y), peri_data(t[0]), 8192);
  peri_release(y);
  peri_release(t[0]);
}

static void unaligned_data_of_a_map_is_copied (void **state) {
  unsigned char file[256];
  peri_safetensors *f;
  peri_tensor *t;
  double want;
  (void)state;
  size_t size = make(file, "{\"a\":" T("U8", "[1]", 0, 1) ",\"b\":" T("F64", "[1]", 1, 9) "}", 9);
  write_file(Path, file, size);
  assert_int_equal(peri_safetensors_open(C, Path, true, &f), PERI_OK);
  assert_int_equal(peri_safetensors_tensor(f, 1, &t), PERI_OK);
  assert_int_equal((uintptr_t)peri_data(t) % 8, 0);
  memcpy(&want, file + size - 8, 8);
  assert_memory_equal(peri_data(t), &want, 8);
  peri_release(t);
  peri_safetensors_close(f);
}

static void a_file_that_shrinks_is_an_error (void **state) {
  unsigned char file[256];
  peri_safetensors *f;
  peri_tensor *t;
  (void)state;
  size_t size = make(file, "{\"a\":" T("U8", "[100]", 0, 100) "}", 100);
  write_file(Path, file, size);
  assert_int_equal(peri_safetensors_open(C, Path, false, &f), PERI_OK);
  assert_int_equal(truncate(Path, (off_t)size - 50), 0);
  want_failure(C, peri_safetensors_tensor(f, 0, &t), PERI_EIO, "the file ended at byte");
  peri_safetensors_close(f);
}

static void memory_stays_within_twice_the_file (void **state) {
  enum { N = 60000 };
  char *text = malloc(N * 120);
  unsigned char *file = malloc(N * 120 + 8);
  (void)state;
  for (int kind = 0; kind < 3; kind++) {
    size_t n = 1;
    text[0] = '{';
    if (kind == 2) n += (size_t)sprintf(text + n, "\"__metadata__\":{");
    for (int i = 0; i < N; i++)
      n += (size_t)sprintf(text + n,
                           kind == 0
                               ? "%s\"%x\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[%d,%d]}"
                           : kind == 1 ? "%s\"%x\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1],"
                                         "\"data_offsets\":[%d,%d]}"
                                       : "%s\"%x\":\"\"",
                           i ? "," : "", i, i, i + 1);
    n += (size_t)sprintf(text + n, kind == 2 ? "}}" : "}");
    size_t size = make(file, text, kind == 2 ? 0 : N);
    write_file(Path, file, size);
    peri_safetensors *f;
    size_t before = H.live;
    H.peak = before;
    assert_int_equal(peri_safetensors_open(C, Path, false, &f), PERI_OK);
    assert_true(H.peak - before <= 2 * size + ((size_t)4 << 20));
    if (kind < 2) assert_true(H.peak - before <= 2 * size);
    assert_int_equal(peri_safetensors_count(f), kind == 2 ? 0 : N);
    peri_safetensors_close(f);
  }
  free(text);
  free(file);
}

static void counts_are_limited (void **state) {
  size_t n = 0, most = 65537;
  char *text = malloc(most * 16 + 64);
  unsigned char *file = malloc(most * 16 + 72);
  peri_safetensors *f;
  (void)state;
  n += (size_t)sprintf(text, "{\"__metadata__\":{");
  for (size_t i = 0; i < most; i++)
    n += (size_t)sprintf(text + n, "%s\"%zx\":\"\"", i ? "," : "", i);
  sprintf(text + n, "}}");
  size_t size = make(file, text, 0);
  want_failure(C, peri_safetensors_parse(C, file, size, &f), PERI_EFORMAT,
               "more than 65536 entries");
  free(text);
  free(file);
}

static peri_status save_and_read (void *ud) {
  const char *names[] = { "w", "v" };
  const peri_text_pair pair = { "k\n", "v" };
  peri_tensor *back;
  peri_status s = peri_safetensors_save(C, Path, 2, names, ud, 1, &pair);
  for (int map = 0; map < 2 && s == PERI_OK; map++) {
    peri_safetensors *f;
    s = peri_safetensors_open(C, Path, map != 0, &f);
    if (s == PERI_OK) s = peri_safetensors_tensor(f, 0, &back);
    if (s == PERI_OK) peri_release(back);
    peri_safetensors_close(f);
  }
  return s;
}

static void every_failed_allocation_is_reported (void **state) {
  const int64_t shape[] = { 4, 4 }, strides[] = { 1, 4 };
  static float data[16];
  peri_tensor *t[2];
  (void)state;
  t[0] = counting(PERI_F32, 2, shape);
  assert_int_equal(peri_import(C, PERI_F32, 2, shape, strides, data, NULL, NULL, &t[1]), PERI_OK);
  fail_every_allocation(C, &H, false, save_and_read, t);
  peri_release(t[0]);
  peri_release(t[1]);
}

/* Files of another writer, if the checkout has them. */
static void fixtures_of_other_writers_are_read (void **state) {
  peri_safetensors *f;
  peri_tensor *t;
  double v;
  (void)state;
  if (peri_safetensors_open(C, PERI_SOURCE_DIR "/tests/data/python.safetensors", false, &f) !=
      PERI_OK)
    fail_msg("%s", peri_message(C));
  assert_string_equal(peri_safetensors_pair(f, 0).key, "format");
  assert_int_equal(peri_safetensors_tensor(f, peri_safetensors_find(f, "half"), &t), PERI_OK);
  assert_int_equal(peri_item(t, 3, &v), PERI_OK);
  assert_true(v == 1.5);
  peri_release(t);
  peri_safetensors_close(f);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(tensors_are_read),
    TEST(every_dtype_empty_and_scalar_shapes_are_read),
    TEST(a_broken_frame_is_refused),
    TEST(offsets_must_tile_the_data),
    TEST(sizes_are_multiplied_with_checks),
    TEST(names_fields_and_dtypes_are_checked),
    TEST(a_bool_holds_0_or_1),
    TEST(what_is_no_regular_file_is_refused),
    TEST(saved_files_are_canonical_and_read_back),
    TEST(strided_tensors_are_saved_dense),
    TEST(a_failed_save_leaves_the_old_file),
    TEST(a_map_outlives_handle_and_file),
    TEST(unaligned_data_of_a_map_is_copied),
    TEST(a_file_that_shrinks_is_an_error),
    TEST(memory_stays_within_twice_the_file),
    TEST(counts_are_limited),
    TEST(every_failed_allocation_is_reported),
    TEST(fixtures_of_other_writers_are_read)
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
