/*
** test_text_hostile.c - what the parts of tokenizers refuse, and what hostile patterns, texts and
** allocators may do to them.
*/
#include "text_parts.h"

#include <time.h>

/* ---- refusals ---- */

static void unknown_components_are_refused_by_name (void **state) {
  peri__splitter *s;
  peri__normalizer *z;
  peri__decoder *d;
  peri__postprocessor *p;
  (void)state;
  want_failure(C, peri__splitter_parse(C, "{\"type\":\"Sylable\"}", &s), PERI_EFORMAT,
               "unknown pre-tokenizer \"Sylable\"");
  want_failure(C,
               peri__splitter_parse(C,
                                    "{\"pretokenizers\":[{\"type\":\"Whitespace\"},{\"x\":[1,{}],"
                                    "\"type\":\"Morse\"}],\"type\":\"Sequence\"}",
                                    &s),
               PERI_EFORMAT, "unknown pre-tokenizer \"Morse\"");
  want_failure(C, peri__normalizer_parse(C, "{\"type\":\"Append\"}", &z), PERI_EFORMAT,
               "unknown normalizer \"Append\"");
  want_failure(C, peri__decoder_parse(C, "{\"type\":\"Huffman\"}", &d), PERI_EFORMAT,
               "unknown decoder \"Huffman\"");
  want_failure(C, peri__postprocessor_parse(C, "{\"type\":\"Mail\"}", &p), PERI_EFORMAT,
               "unknown post-processor \"Mail\"");
  want_failure(C, peri__splitter_parse(C, "{\"pretokenizers\":[]}", &s), PERI_EFORMAT,
               "\"type\" is missing");
  want_failure(C, peri__splitter_parse(C, "17", &s), PERI_EFORMAT, "must be an object");
}

static void malformed_components_are_refused (void **state) {
  static const char *const bad[][2] = {
    { "{\"type\":\"Split\",\"behavior\":\"Isolated\"}", "\"pattern\" is missing" },
    { "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Shattered\"}",
      "unknown behavior \"Shattered\"" },
    { "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a&&b]\"},\"behavior\":\"Isolated\"}",
      "intersection of classes" },
    { "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a[b]]\"},\"behavior\":\"Isolated\"}",
      "a class within a class" },
    { "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a\"},\"behavior\":\"Isolated\"}",
      "a group does not end" },
    { "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(*UTF)a\"},\"behavior\":\"Isolated\"}",
      "(* is not supported" },
    { "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{Klingon}\"},\"behavior\":\"Isolated\"}",
      "unknown property" },
    { "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\\\\\"},\"behavior\":\"Isolated\"}",
      "backslash" },
    { "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"*a\"},\"behavior\":\"Isolated\"}",
      "nothing to repeat" },
    { "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?<=a+)b\"},\"behavior\":\"Isolated\"}",
      "lookbehind" },
    { "{\"type\":\"Metaspace\",\"replacement\":\"ab\"}", "one character" },
    { "{\"type\":\"Metaspace\",\"replacement\":\"a\",\"prepend_scheme\":\"maybe\"}",
      "unknown prepend_scheme \"maybe\"" },
    { "{\"type\":\"FixedLength\",\"length\":0}", "must be in [1," },
    { "{\"type\":\"Digits\",\"individual_digits\":1}", "must be true or false" },
  };
  peri__splitter *s;
  peri__normalizer *z;
  peri__postprocessor *p;
  (void)state;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    want_failure(C, peri__splitter_parse(C, bad[i][0], &s), PERI_EFORMAT, bad[i][1]);
  want_failure(
      C, peri__normalizer_parse(C, "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"@\"}", &z),
      PERI_EFORMAT, "base64");
  want_failure(C,
               peri__normalizer_parse(
                   C, "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"/////w==\"}", &z),
               PERI_EFORMAT, "with a trie of");
  want_failure(
      C,
      peri__postprocessor_parse(C,
                                "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
                                "{\"id\":\"X\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{}}",
                                &p),
      PERI_EFORMAT, "\"X\" is not in \"special_tokens\"");
  want_failure(C,
               peri__postprocessor_parse(
                   C, "{\"type\":\"BertProcessing\",\"sep\":[\"a\",-1],\"cls\":[\"b\",2]}", &p),
               PERI_EFORMAT, "token and its id");
}

static void depth_and_number_of_components_are_bounded (void **state) {
  static char deep[4096], wide[65536];
  size_t n = 0;
  peri__splitter *s;
  peri__normalizer *z;
  (void)state;
  for (int i = 0; i < 40; i++)
    n += (size_t)sprintf(deep + n, "{\"type\":\"Sequence\",\"pretokenizers\":[");
  for (int i = 0; i < 40; i++) n += (size_t)sprintf(deep + n, "]}");
  want_failure(C, peri__splitter_parse(C, deep, &s), PERI_EFORMAT, "nests deeper");
  n = (size_t)sprintf(wide, "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}");
  for (int i = 0; i < 100; i++) n += (size_t)sprintf(wide + n, ",{\"type\":\"NFC\"}");
  sprintf(wide + n, "]}");
  want_failure(C, peri__normalizer_parse(C, wide, &z), PERI_EFORMAT, "more than 64 steps");
  n = (size_t)sprintf(wide, "[0");
  while (n < sizeof wide - 8) n += (size_t)sprintf(wide + n, ",0");
  sprintf(wide + n, "]");
  want_failure(C, peri__normalizer_parse(C, wide, &z), PERI_EFORMAT, "more than 16384 values");
}

/* ---- hostile patterns and texts ---- */

static double seconds (void) { return (double)clock() / CLOCKS_PER_SEC; }

#define MEGA 1000000

static void a_pattern_cannot_hang (void **state) {
  static const char *const pattern[] = { "(a+)+$",        "(a|aa)+$",       "(a*)*b",
                                         "a*a*a*a*c",     "\\\\s+x",        "(?=(a+)+b)c",
                                         "(.*)(.*)(.*)x", "(a?){60}a{60}b", "(?:a+b?)+?z",
                                         "[a-z]+[0-9]",   "[a-z]++[0-9]|a", "(?:[a-z]+[0-9]|a)*z" };
  char *text = malloc(200001), spec[256];
  (void)state;
  assert_non_null(text);
  for (size_t i = 0; i < sizeof pattern / sizeof *pattern; i++) {
    peri__splitter *s;
    peri__pieces p;
    memset(text, i == 4 ? ' ' : 'a', 200000);
    text[200000] = '!';
    snprintf(spec, sizeof spec,
             "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},\"behavior\":\"Isolated\"}",
             pattern[i]);
    check(peri__splitter_parse(C, spec, &s), spec);
    double start = seconds();
    peri_status status = peri__split(s, St, text, 200001, true, &p);
    assert_true(seconds() - start < 5);
    if (status != PERI_OK)
      want_failure(C, peri__text_fail(St, status), PERI_EFORMAT, "too many steps");
    peri__splitter_free(s);
  }
  free(text);
}

static void a_megabyte_of_one_letter_is_cut_in_linear_time (void **state) {
  static const char *const letter[] = { "a",        "A",   " ", "\n", "7", "'", "\xE4\xB8\xAD",
                                        "\xCC\x81", " \n", "a " };
  char *text = malloc(MEGA + 2);
  (void)state;
  assert_non_null(text);
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    peri__splitter *s;
    if (strcmp(names[i], "jais-2") == 0)
      continue; /* its cascade of spaces is quadratic by design */
    check(peri__splitter_named(C, names[i], &s, NULL), names[i]);
    for (size_t k = 0; k < sizeof letter / sizeof *letter; k++) {
      peri__pieces p;
      size_t n = 0, each = strlen(letter[k]);
      if (i % 3 != k % 3) continue; /* a third of the pairs */
      while (n + each <= MEGA / 4) {
        memcpy(text + n, letter[k], each);
        n += each;
      }
      text[n++] = 'x';
      double start = seconds();
      peri_status status = peri__split(s, St, text, n, true, &p);
      if (status != PERI_OK) check(peri__text_fail(St, status), names[i]);
      if (seconds() - start > 2)
        fail_msg("%s takes %.1f s on \"%s\"", names[i], seconds() - start, letter[k]);
    }
    peri__splitter_free(s);
  }
  free(text);
}

static void hostile_text_is_normalized_in_linear_time (void **state) {
  static const char *const kind[] = { "NFC", "NFD", "NFKC", "NFKD" };
  char *text = malloc(MEGA), spec[64];
  size_t n = 0, out_n;
  const char *out;
  (void)state;
  assert_non_null(text);
  while (n + 4 < MEGA) /* classes 230 and 220, which must change places */
    n += (size_t)sprintf(text + n, "%s", "\xCC\x81\xCC\xA3");
  for (size_t k = 0; k < 4; k++) {
    peri__normalizer *z;
    snprintf(spec, sizeof spec, "{\"type\":\"%s\"}", kind[k]);
    check(peri__normalizer_parse(C, spec, &z), spec);
    double start = seconds();
    assert_int_equal(peri__normalize(z, St, text, n, &out, &out_n), PERI_OK);
    assert_true(seconds() - start < 2);
    assert_int_equal(out_n, n);
    assert_memory_equal(out, "\xCC\xA3\xCC\xA3", 4);
    peri__normalizer_free(z);
  }
  free(text);
}

static void a_file_cannot_make_texts_explode (void **state) {
  static char spec[8192], text[4096];
  size_t n = (size_t)sprintf(spec, "{\"type\":\"Sequence\",\"normalizers\":[");
  peri__normalizer *z;
  peri__splitter *s;
  peri__pieces p;
  const char *out;
  size_t out_n;
  (void)state;
  for (int i = 0; i < 30; i++)
    n += (size_t)sprintf(
        spec + n, "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aaaa\"}%s",
        i < 29 ? "," : "]}");
  check(peri__normalizer_parse(C, spec, &z), "Replace");
  memset(text, 'a', sizeof text);
  size_t peak = H.live;
  want_failure(C, peri__text_fail(St, peri__normalize(z, St, text, sizeof text, &out, &out_n)),
               PERI_EINVAL, "too long");
  assert_true(H.live - peak < 8 << 20);
  peri__normalizer_free(z);
  n = (size_t)sprintf(spec, "{\"type\":\"Sequence\",\"pretokenizers\":[");
  for (int i = 0; i < 30; i++)
    n += (size_t)sprintf(
        spec + n, "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}%s",
        i < 29 ? "," : "]}");
  check(peri__splitter_parse(C, spec, &s), "ByteLevel");
  want_failure(C, peri__text_fail(St, peri__split(s, St, "\xC3\xA9", 2, true, &p)), PERI_EINVAL,
               "too long");
  peri__splitter_free(s);
}

/* A trie is walked with every index checked: no mutation may read outside (sanitizers watch). */
static void a_broken_charsmap_does_no_harm (void **state) {
  const char *spec = NULL;
  (void)state;
  for (const peri__node *c = get(Tree.root, "normalize")->child; c != NULL; c = c->next)
    if (strstr(get(c, "spec")->s, "Precompiled") != NULL) spec = get(c, "spec")->s;
  assert_non_null(spec);
  size_t n = strlen(spec), begin = (size_t)(strstr(spec, "_charsmap\": \"") - spec) + 13;
  char *broken = malloc(n + 1);
  assert_non_null(broken);
  Seed = 5;
  for (int round = 0; round < 2000; round++) {
    peri__normalizer *z;
    memcpy(broken, spec, n + 1);
    for (uint32_t k = 1 + below(6); k > 0; k--)
      broken[begin + below((uint32_t)(n - 4 - begin))] = "ABCDwxyz0189+/"[below(14)];
    if (peri__normalizer_parse(C, broken, &z) != PERI_OK) continue;
    for (const peri__node *t = get(Tree.root, "texts")->child; t != NULL; t = t->next) {
      const char *out;
      size_t out_n;
      if (peri__normalize(z, St, t->s, t->n, &out, &out_n) == PERI_OK)
        assert_int_equal(peri__utf8_prefix(out, out_n), out_n);
    }
    peri__normalizer_free(z);
  }
  free(broken);
}

/* ---- memory ---- */

static void a_fixed_state_refuses_to_grow_and_works_afterwards (void **state) {
  static char text[40000];
  peri__text_state *st;
  peri__splitter *s;
  peri__normalizer *z;
  peri__pieces p;
  const char *out;
  size_t n;
  (void)state;
  for (size_t i = 0; i < sizeof text; i++) text[i] = i % 2 ? ' ' : 'a';
  check(peri__text_state_open(C, &st), "state");
  check(peri__splitter_parse(C, "{\"type\":\"Metaspace\",\"replacement\":\"\xE2\x96\x81\"}", &s),
        "");
  check(peri__normalizer_parse(C, "{\"type\":\"Prepend\",\"prepend\":\"x\"}", &z), "");
  peri__text_state_fix(st, true);
  int64_t blocks = H.blocks;
  assert_int_equal(peri__split(s, st, text, sizeof text, true, &p), PERI_ENOMEM);
  assert_int_equal(peri__normalize(z, st, text, sizeof text, &out, &n), PERI_ENOMEM);
  assert_int_equal(H.blocks, blocks);
  peri__text_state_fix(st, false);
  assert_int_equal(peri__split(s, st, text, sizeof text, true, &p), PERI_OK);
  assert_int_equal(p.n, sizeof text / 2 + 1);
  check(peri__text_state_reserve(st, 2 * sizeof text), "reserve");
  peri__text_state_fix(st, true);
  assert_int_equal(peri__split(s, st, text, sizeof text, true, &p), PERI_OK);
  assert_int_equal(peri__normalize(z, st, text, sizeof text, &out, &n), PERI_OK);
  assert_int_equal(n, sizeof text + 1);
  peri__splitter_free(s);
  peri__normalizer_free(z);
  peri__text_state_close(st);
}

static peri_status use_splitter (const char *spec) {
  peri__splitter *s;
  peri__text_state *st = NULL;
  peri__pieces p;
  TRY(peri__splitter_parse(C, spec, &s));
  peri_status status = peri__text_state_open(C, &st);
  if (status == PERI_OK) {
    status = peri__split(s, st, "It's a 12 \xC3\xA9\xE4\xB8\xAD!", 16, true, &p);
    if (status != PERI_OK) peri__text_fail(st, status);
  }
  peri__text_state_close(st);
  peri__splitter_free(s);
  return status;
}

static peri_status use_normalizer (const char *spec) {
  peri__normalizer *z;
  peri__text_state *st = NULL;
  const char *out;
  size_t n;
  TRY(peri__normalizer_parse(C, spec, &z));
  peri_status status = peri__text_state_open(C, &st);
  if (status == PERI_OK) {
    status = peri__normalize(z, st, "  A\xCC\x81 \xEF\xAC\x81 \xE4\xB8\xAD ", 15, &out, &n);
    if (status != PERI_OK) peri__text_fail(st, status);
  }
  peri__text_state_close(st);
  peri__normalizer_free(z);
  return status;
}

static peri_status use_decoder (const char *spec) {
  peri__decoder *d;
  peri__decoding *g = NULL;
  peri__buffer b = { .ctx = C };
  TRY(peri__decoder_parse(C, spec, &d));
  peri_status s = peri__decoding_open(C, d, &g);
  for (int i = 0; i < 4 && s == PERI_OK; i++)
    s = peri__decoding_push(g, i % 2 ? "<0xE4>" : "\xE2\x96\x81 abc", i % 2 ? 6 : 7, &b);
  if (s == PERI_OK) s = peri__decoding_finish(g, &b);
  peri__decoding_close(g);
  peri__decoder_free(d);
  peri__buffer_free(&b);
  return s;
}

static peri_status use_postprocessor (const char *spec) {
  peri__postprocessor *p;
  TRY(peri__postprocessor_parse(C, spec, &p));
  peri__postprocessor_free(p);
  return PERI_OK;
}

/* Fail every allocation in turn: an error with a message, and everything given back. */
static void sweep (const peri__node *cases, peri_status (*use)(const char *spec)) {
  for (const peri__node *c = cases->child; c != NULL; c = c->next) {
    const char *spec = get(c, "spec")->s;
    for (int sticky = 0; sticky < 2; sticky++) {
      size_t live = H.live;
      for (int64_t n = 0;; n++) {
        peri_test_fail_after(C, n, sticky);
        peri_status s = use(spec);
        bool fired = peri_test_fired(C);
        peri_test_fail_after(C, -1, false);
        assert_int_equal(H.live, live);
        if (!fired) {
          check(s, spec);
          break;
        }
        if (s != PERI_OK) { /* the engine does without some, such as its machine code */
          assert_int_equal(s, PERI_ENOMEM);
          assert_non_null(strstr(peri_message(C), "no memory"));
        }
      }
    }
  }
}

static void every_allocation_may_fail (void **state) {
  (void)state;
  sweep(get(Tree.root, "split"), use_splitter);
  sweep(get(Tree.root, "normalize"), use_normalizer);
  sweep(get(Tree.root, "decode"), use_decoder);
  sweep(get(Tree.root, "post"), use_postprocessor);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(unknown_components_are_refused_by_name),
    cmocka_unit_test(malformed_components_are_refused),
    cmocka_unit_test(depth_and_number_of_components_are_bounded),
    cmocka_unit_test(a_pattern_cannot_hang),
    cmocka_unit_test(a_megabyte_of_one_letter_is_cut_in_linear_time),
    cmocka_unit_test(hostile_text_is_normalized_in_linear_time),
    cmocka_unit_test(a_file_cannot_make_texts_explode),
    cmocka_unit_test(a_broken_charsmap_does_no_harm),
    cmocka_unit_test(a_fixed_state_refuses_to_grow_and_works_afterwards),
    cmocka_unit_test(every_allocation_may_fail),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
