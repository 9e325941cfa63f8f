/* test_json.c - the JSON parser and writer of runtime/core: what is read, what is refused. */
#include "untrusted.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"

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

/* Read a whole text; the events as letters in trace: n null, t/f, i int, d double, s string, k key,
** { [ and ) for a close. */
static peri_status read_all (const char *text, size_t n, const peri_json_options *opt, char *trace,
                             size_t cap) {
  peri_json p;
  peri_json_value v;
  peri_status s;
  size_t k = 0;
  peri_json_open(&p, C, text, n, opt);
  while ((s = peri_json_next(&p, &v)) == PERI_OK && v.type != PERI_JSON_END) {
    char c = v.type == PERI_JSON_BOOL ? (v.flag ? 't' : 'f') : ".n?idsk{[)"[v.type];
    if (k + 1 < cap) trace[k++] = c;
  }
  trace[k] = '\0';
  if (s != PERI_OK) assert_int_equal(peri_json_next(&p, &v), s); /* sticky */
  peri_json_close(&p);
  peri_json_close(&p);
  return s;
}

static void reads (const char *text, const char *want) {
  char trace[256];
  peri_status s = read_all(text, strlen(text), NULL, trace, sizeof trace);
  if (s != PERI_OK) fail_msg("%s: %s", text, peri_message(C));
  assert_string_equal(trace, want);
}

static void refuses_n (const char *text, size_t n, const peri_json_options *opt, const char *part) {
  char trace[256];
  peri_status s = read_all(text, n, opt, trace, sizeof trace);
  if (s != PERI_EFORMAT || strstr(peri_message(C), part) == NULL)
    fail_msg("%s -> %s \"%s\", expected \"%s\"", text, peri_status_name(s), peri_message(C), part);
}

static void refuses (const char *text, const char *part) {
  refuses_n(text, strlen(text), NULL, part);
}

static double number (const char *text) {
  peri_json p;
  peri_json_value v;
  peri_json_open(&p, C, text, strlen(text), NULL);
  if (peri_json_next(&p, &v) != PERI_OK) fail_msg("%s: %s", text, peri_message(C));
  peri_json_close(&p);
  assert_true(v.type == PERI_JSON_NUM || v.type == PERI_JSON_INT);
  return v.f;
}

static void whole (const char *text, int64_t want) {
  peri_json p;
  peri_json_value v;
  peri_json_open(&p, C, text, strlen(text), NULL);
  assert_int_equal(peri_json_next(&p, &v), PERI_OK);
  peri_json_close(&p);
  assert_int_equal(v.type, PERI_JSON_INT);
  assert_int_equal(v.i, want);
}

static void string_is (const char *text, const char *want, size_t n) {
  peri_json p;
  peri_json_value v;
  peri_json_open(&p, C, text, strlen(text), NULL);
  if (peri_json_next(&p, &v) != PERI_OK) fail_msg("%s: %s", text, peri_message(C));
  assert_int_equal(v.type, PERI_JSON_STRING);
  assert_int_equal(v.n, n);
  assert_memory_equal(v.s, want, n);
  peri_json_close(&p);
}

static void every_kind_of_value_is_read (void **state) {
  (void)state;
  reads("null", "n");
  reads(" \t\r\n true \n", "t");
  reads("[]", "[)");
  reads("{}", "{)");
  reads("[1, 2.5, \"x\", null, false]", "[idsnf)");
  reads("{\"a\": {\"b\": [[], {}]}, \"c\": 1}", "{k{k[[){)))ki)");
}

static void malformed_text_is_refused_with_its_place (void **state) {
  (void)state;
  refuses("", "line 1, column 1 (byte 0): expected a value, found the end");
  refuses("[1,\n  2,]", "line 2, column 5 (byte 8): expected a value, found ']'");
  refuses("{\"a\":1,}", "expected a key in quotes");
  refuses("{a:1}", "expected a key in quotes");
  refuses("{'a':1}", "expected a key in quotes");
  refuses("{\"a\" 1}", "expected ':'");
  refuses("{\"a\":}", "expected a value");
  refuses("[1 2]", "expected ',' or ']'");
  refuses("[1}", "expected ',' or ']'");
  refuses("{\"a\":1]", "expected ',' or '}'");
  refuses("{1:2}", "expected a key");
  refuses("1 2", "expected nothing behind the value");
  refuses("{} x", "expected nothing behind the value");
  refuses("[1] // c", "nothing behind");
  refuses("/* c */ 1", "expected a value");
  refuses("nul", "expected a value");
  refuses("True", "expected a value");
  refuses("[", "found the end");
  refuses("{\"a\"", "found the end");
  refuses("]", "expected a value");
  refuses("\xEF\xBB\xBF{}", "byte 0xef");
  refuses_n("1\0", 2, NULL, "byte 0x00");
  refuses("NaN", "expected a value");
  refuses("-Infinity", "expected a digit");
}

static void strings_are_decoded (void **state) {
  (void)state;
  string_is("\"\"", "", 0);
  string_is("\"plain \xC3\xA9\"", "plain \xC3\xA9", 8);
  string_is("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t", 8);
  string_is("\"\\u0041\\u00e9\\u20AC\\uD83D\\uDE00\"", "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", 10);
  string_is("\"a\\u0000b\"", "a\0b", 3);
  string_is("\"\x7F\"", "\x7F", 1);
}

static void bad_strings_are_refused (void **state) {
  (void)state;
  refuses("\"abc", "does not end");
  refuses("\"abc\\", "does not end");
  refuses("\"a\nb\"", "control byte 0x0a");
  refuses("\"\\x41\"", "unknown escape");
  refuses("\"\\u12g4\"", "four hexadecimal digits");
  refuses("\"\\u12", "four hexadecimal digits");
  refuses("\"\\uD800\"", "first half");
  refuses("\"\\uD800x\"", "first half");
  refuses("\"\\uD800\\u0041\"", "first half");
  refuses("\"\\uDC00\"", "second half");
  refuses("\"\xC0\x80\"", "not valid UTF-8");         /* overlong */
  refuses("\"\xE0\x80\x80\"", "not valid UTF-8");     /* overlong */
  refuses("\"\xF0\x80\x80\x80\"", "not valid UTF-8"); /* overlong */
  refuses("\"\xED\xA0\x80\"", "not valid UTF-8");     /* surrogate */
  refuses("\"\xF4\x90\x80\x80\"", "not valid UTF-8"); /* above U+10FFFF */
  refuses("\"\xFF\"", "not valid UTF-8");
  refuses("\"\xC3\"", "not valid UTF-8");
  refuses("\"\xE2\x82", "not valid UTF-8");
}

static void integers_stay_exact (void **state) {
  (void)state;
  whole("0", 0);
  whole("-1", -1);
  whole("9007199254740993", 9007199254740993);
  whole("9223372036854775807", INT64_MAX);
  whole("-9223372036854775808", INT64_MIN);
  reads("[1.0, 1e2, 1E+2, -0]", "[dddd)");
  assert_true(signbit(number("-0")));
  /* beyond 64 bits: a double if it is exactly that number */
  assert_true(number("9223372036854775808") == 0x1p63);
  assert_true(number("18446744073709551616") == 0x1p64);
  assert_true(number("-9223372036854777856") == -9223372036854777856.0);
  refuses("9223372036854775809", "cannot hold exactly");
  refuses("18446744073709551615", "cannot hold exactly");
  refuses("-9223372036854775809", "cannot hold exactly");
}

static void bad_numbers_are_refused (void **state) {
  (void)state;
  refuses("01", "may not start with 0");
  refuses("-01", "may not start with 0");
  refuses("+1", "expected a value");
  refuses(".5", "expected a value");
  refuses("1.", "digit after the point");
  refuses("1.e3", "digit after the point");
  refuses("1e", "digit in the exponent");
  refuses("1e+", "digit in the exponent");
  refuses("-", "expected a digit");
  refuses("0x10", "nothing behind");
  refuses("1e309", "above the largest double");
  refuses("-1e99999999999999999999", "above the largest double");
  assert_true(number("1e-400") == 0.0);
  assert_true(number("0e99999999999999999999") == 0.0);
  assert_true(number("1e-99999999999999999999") == 0.0);
}

static void nan_is_read_only_when_allowed (void **state) {
  char trace[16];
  const peri_json_options opt = { .allow_nan = true };
  const char *text = "[NaN, Infinity, -Infinity, -1]";
  (void)state;
  refuses(text, "expected a value");
  assert_int_equal(read_all(text, strlen(text), &opt, trace, sizeof trace), PERI_OK);
  assert_string_equal(trace, "[dddi)");
  refuses_n("[nan]", 5, &opt, "expected a value");
}

static void foreign_texts_may_have_a_byte_order_mark (void **state) {
  char trace[16];
  const peri_json_options opt = { .foreign = true };
  const char *text = "\xEF\xBB\xBF[NaN, -Infinity, 1]";
  (void)state;
  refuses(text, "byte 0xef");
  assert_int_equal(read_all(text, strlen(text), &opt, trace, sizeof trace), PERI_OK);
  assert_string_equal(trace, "[ddi)");
  refuses_n(" \xEF\xBB\xBF[]", 6, &opt, "byte 0xef"); /* in front, nowhere else */
  refuses_n("\xEF\xBB", 2, &opt, "byte 0xef");
}

static void doubles_are_read_to_the_nearest (void **state) {
  (void)state;
  assert_true(number("0.1") == 0.1);
  assert_true(number("2.2250738585072011e-308") == 2.2250738585072011e-308);
  assert_true(number("4.9406564584124654e-324") == 0x1p-1074);
  assert_true(number("2.4703282292062327e-324") == 0.0); /* just below half of it */
  assert_true(number("2.4703282292062328e-324") == 0x1p-1074);
  assert_true(number("1.7976931348623157e308") == 0x1.fffffffffffffp1023);
  assert_true(number("1.7976931348623158e308") == 0x1.fffffffffffffp1023);
  refuses("1.7976931348623159e308", "above the largest double");
  assert_true(number("9007199254740993.0") == 9007199254740992.0); /* tie to even */
  assert_true(number("9007199254740993.00000000000000000000000000000001") == 9007199254740994.0);
  /* against the C library, on bit patterns and on random decimals */
  for (uint32_t i = 0; i < 20000; i++) {
    uint32_t counter[4] = { i, 0, 0, 0 }, w[4];
    const uint32_t key[2] = { 1, 2 };
    char text[96];
    double f;
    peri_philox(counter, key, w);
    memcpy(&f, w, sizeof f);
    if (!isfinite(f)) continue;
    snprintf(text, sizeof text, i % 3 == 0 ? "%.17e" : i % 3 == 1 ? "%.12e" : "%.25e", f);
    assert_true(number(text) == strtod(text, NULL));
    snprintf(text, sizeof text, "%u%09u.%09u%s%d", w[0], w[1] % 1000000000, w[2] % 1000000000, "e",
             (int)(w[3] % 340) - 330);
    if (isfinite(strtod(text, NULL))) assert_true(number(text) == strtod(text, NULL));
  }
}

static void a_very_long_number_is_read_in_linear_time (void **state) {
  size_t n = 1000000;
  char *text = malloc(n + 1);
  (void)state;
  memset(text, '3', n);
  memcpy(text, "0.", 2);
  text[n] = '\0';
  assert_true(number(text) == 1.0 / 3);
  text[1] = '3';
  text[0] = '3';
  refuses(text, "above the largest double");
  free(text);
}

static void duplicate_keys_are_refused (void **state) {
  (void)state;
  refuses("{\"a\":1,\"a\":2}", "duplicate key \"a\" (first at byte 1)");
  refuses("{\"a\":1,\"\\u0061\":2}", "duplicate key");
  refuses("{\"\xF0\x9F\x98\x80\":1,\"\\ud83d\\ude00\":2}", "duplicate key");
  refuses("{\"\":1,\"\":2}", "duplicate key \"\"");
  refuses("{\"a\":{\"b\":1,\"c\":2,\"b\":3}}", "duplicate key \"b\"");
  refuses("{\"a\":{\"a\":1},\"b\":[{\"a\":2}],\"a\":3}", "duplicate key \"a\" (first at byte 1)");
  reads("{\"a\":{\"a\":{\"a\":1},\"b\":2},\"b\":{\"a\":1}}", "{k{k{ki)ki)k{ki))");
  refuses("{\"a\\u0000\":1,\"a\\u0000\":2}", "duplicate key");
  reads("{\"a\\u0000\":1,\"a\":2}", "{kiki)");
}

static void many_keys_take_linear_time_and_memory (void **state) {
  enum { N = 200000 };
  char *text = malloc(N * 16), trace[4];
  size_t n = 0;
  (void)state;
  text[n++] = '{';
  for (int i = 0; i < N; i++) n += (size_t)sprintf(text + n, "%s\"%x\":0", i ? "," : "", i);
  text[n++] = '}';
  H.peak = H.live;
  size_t before = H.live;
  assert_int_equal(read_all(text, n, NULL, trace, sizeof trace), PERI_OK);
  assert_true(H.peak - before < 4 * n);
  n--;
  n += (size_t)sprintf(text + n, ",\"7\":1}");
  refuses_n(text, n, NULL, "duplicate key \"7\"");
  free(text);
}

static void depth_and_size_are_limited (void **state) {
  char deep[1024], trace[1024];
  (void)state;
  memset(deep, '[', 512);
  memset(deep + 512, ']', 512);
  assert_int_equal(read_all(deep + 512 - 64, 128, NULL, trace, sizeof trace), PERI_OK);
  refuses_n(deep + 512 - 65, 130, NULL, "nested deeper than 64");
  const peri_json_options three = { .max_depth = 3 }, huge = { .max_depth = 100000 };
  refuses_n("[[[[]]]]", 8, &three, "byte 3): nested deeper than 3");
  refuses_n("{\"a\":{\"a\":[{}]}}", 16, &three, "nested deeper than 3");
  assert_int_equal(read_all(deep + 512 - 256, 512, &huge, trace, sizeof trace), PERI_OK);
  refuses_n(deep + 512 - 257, 514, &huge, "nested deeper than 256");
  const peri_json_options small = { .max_bytes = 4 };
  refuses_n("[1, 2]", 6, &small, "a text of 6 bytes, the limit is 4");
}

static void written_text_is_read_back (void **state) {
  peri_json_writer w;
  (void)state;
  peri_json_begin(&w, C, 0, PERI_JSON_NAN_ERROR);
  peri_json_put_object(&w);
  peri_json_put_key(&w, "s", 1);
  peri_json_put_string(&w, "q\"\\/\b\f\n\r\t\x01\0\xE2\x82\xAC", 14);
  peri_json_put_key(&w, "a", 1);
  peri_json_put_array(&w);
  peri_json_put_int(&w, INT64_MIN);
  peri_json_put_num(&w, 1.0);
  peri_json_put_num(&w, 0.1);
  peri_json_put_bool(&w, true);
  peri_json_put_null(&w);
  peri_json_put_array(&w);
  peri_json_put_close(&w);
  peri_json_put_close(&w);
  peri_json_put_close(&w);
  assert_int_equal(peri_json_finish(&w), PERI_OK);
  assert_string_equal(w.text, "{\"s\":\"q\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u0000\xE2\x82\xAC\","
                              "\"a\":[-9223372036854775808,1.0,0.1,true,null,[]]}");
  peri_json_drop(&w);
  peri_json_begin(&w, C, 2, PERI_JSON_NAN_LITERAL);
  peri_json_put_object(&w);
  peri_json_put_key(&w, "a", 1);
  peri_json_put_array(&w);
  peri_json_put_num(&w, NAN);
  peri_json_put_num(&w, -INFINITY);
  peri_json_put_close(&w);
  peri_json_put_key(&w, "b", 1);
  peri_json_put_object(&w);
  peri_json_put_close(&w);
  peri_json_put_close(&w);
  assert_int_equal(peri_json_finish(&w), PERI_OK);
  assert_string_equal(w.text, "{\n  \"a\": [\n    NaN,\n    -Infinity\n  ],\n  \"b\": {}\n}");
  peri_json_drop(&w);
}

static void the_writer_refuses_what_json_cannot_say (void **state) {
  peri_json_writer w;
  (void)state;
  peri_json_begin(&w, C, 0, PERI_JSON_NAN_ERROR);
  peri_json_put_num(&w, NAN);
  want_failure(C, peri_json_finish(&w), PERI_EINVAL, "no NaN");
  peri_json_drop(&w);
  peri_json_begin(&w, C, 0, PERI_JSON_NAN_NULL);
  peri_json_put_num(&w, INFINITY);
  assert_int_equal(peri_json_finish(&w), PERI_OK);
  assert_string_equal(w.text, "null");
  peri_json_drop(&w);
  peri_json_begin(&w, C, 0, PERI_JSON_NAN_ERROR);
  peri_json_put_string(&w, "ab\xFF", 3);
  want_failure(C, peri_json_finish(&w), PERI_EINVAL, "not valid UTF-8 at its byte 2");
  peri_json_drop(&w);
  peri_json_begin(&w, C, 0, PERI_JSON_NAN_ERROR);
  peri_json_put_object(&w);
  peri_json_put_int(&w, 1);
  want_failure(C, peri_json_finish(&w), PERI_EINVAL, "a value without a key");
  peri_json_drop(&w);
  peri_json_begin(&w, C, 0, PERI_JSON_NAN_ERROR);
  peri_json_put_array(&w);
  want_failure(C, peri_json_finish(&w), PERI_EINVAL, "unfinished");
  peri_json_drop(&w);
  peri_json_begin(&w, C, 0, PERI_JSON_NAN_ERROR);
  for (int i = 0; i < 257; i++) peri_json_put_array(&w);
  want_failure(C, peri_json_finish(&w), PERI_EINVAL, "deeper than 256");
  peri_json_drop(&w);
}

static void doubles_round_trip_in_the_fewest_digits (void **state) {
  static const struct {
    double f;
    const char *text;
  } cases[] = { { 0.0, "0.0" },
                { -0.0, "-0.0" },
                { 1, "1.0" },
                { -1.5, "-1.5" },
                { 0.1, "0.1" },
                { 1e16, "10000000000000000.0" },
                { 1e17, "1e17" },
                { 123456789012345680.0, "1.2345678901234568e17" },
                { 1e-5, "0.00001" },
                { 1e-6, "1e-6" },
                { 5e-324, "5e-324" },
                { 0.30000000000000004, "0.30000000000000004" },
                { 1.7976931348623157e308, "1.7976931348623157e308" },
                { 1.25e-7, "1.25e-7" } };
  (void)state;
  char text[PERI_DOUBLE_TEXT];
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    peri__format_double(cases[i].f, text);
    assert_string_equal(text, cases[i].text);
  }
  for (uint32_t i = 0; i < 20000; i++) {
    uint32_t counter[4] = { i, 1, 0, 0 }, words[4];
    const uint32_t key[2] = { 1, 2 };
    double f;
    peri_philox(counter, key, words);
    memcpy(&f, words, sizeof f);
    if (i % 2 == 0) f = (double)words[0] / 1000.0;
    if (!isfinite(f)) continue;
    assert_true(peri__format_double(f, text) < PERI_DOUBLE_TEXT);
    assert_true(strtod(text, NULL) == f && number(text) == f);
  }
}

static void the_hosts_locale_changes_nothing (void **state) {
  static const char *const names[] = { "de_DE.UTF-8", "de_DE", "fr_FR.UTF-8", "ps_AF.UTF-8" };
  char text[PERI_DOUBLE_TEXT], old[64];
  (void)state;
  snprintf(old, sizeof old, "%s", setlocale(LC_NUMERIC, NULL));
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    if (setlocale(LC_NUMERIC, names[i]) == NULL) continue; /* not installed here */
    peri__format_double(1234.5678, text);
    assert_string_equal(text, "1234.5678");
    assert_true(number("1234.5678") == 12345678 / 10000.0);
  }
  setlocale(LC_NUMERIC, old);
}

static peri_status read_text (void *ud) {
  char trace[64];
  return read_all(ud, strlen(ud), NULL, trace, sizeof trace);
}

static void every_failed_allocation_is_reported (void **state) {
  char text[] = "{\"a\\n\":[1,{\"b\":\"\\u00e9\"}],\"c\":\"\\t\"}";
  (void)state;
  fail_every_allocation(C, &H, false, read_text, text);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(every_kind_of_value_is_read, setup, teardown),
    cmocka_unit_test_setup_teardown(malformed_text_is_refused_with_its_place, setup, teardown),
    cmocka_unit_test_setup_teardown(strings_are_decoded, setup, teardown),
    cmocka_unit_test_setup_teardown(bad_strings_are_refused, setup, teardown),
    cmocka_unit_test_setup_teardown(integers_stay_exact, setup, teardown),
    cmocka_unit_test_setup_teardown(bad_numbers_are_refused, setup, teardown),
    cmocka_unit_test_setup_teardown(nan_is_read_only_when_allowed, setup, teardown),
    cmocka_unit_test_setup_teardown(foreign_texts_may_have_a_byte_order_mark, setup, teardown),
    cmocka_unit_test_setup_teardown(doubles_are_read_to_the_nearest, setup, teardown),
    cmocka_unit_test_setup_teardown(a_very_long_number_is_read_in_linear_time, setup, teardown),
    cmocka_unit_test_setup_teardown(duplicate_keys_are_refused, setup, teardown),
    cmocka_unit_test_setup_teardown(many_keys_take_linear_time_and_memory, setup, teardown),
    cmocka_unit_test_setup_teardown(depth_and_size_are_limited, setup, teardown),
    cmocka_unit_test_setup_teardown(written_text_is_read_back, setup, teardown),
    cmocka_unit_test_setup_teardown(the_writer_refuses_what_json_cannot_say, setup, teardown),
    cmocka_unit_test_setup_teardown(doubles_round_trip_in_the_fewest_digits, setup, teardown),
    cmocka_unit_test_setup_teardown(the_hosts_locale_changes_nothing, setup, teardown),
    cmocka_unit_test_setup_teardown(every_failed_allocation_is_reported, setup, teardown)
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
