/*
** test_text_parts.c - normalisers, pre-tokenizers, decoders and post-processors against the reference
** implementation (tests/reference/text_parts.py), and hand-written matchers against the patterns that
** they stand for.
*/
#include "text_parts.h"

#include "text/match.h"
#include "text/regex.h"
#include "text/unicode.h"

static void same (const char *what, const char *got, size_t got_n, const char *want,
                  size_t want_n) {
  if (got_n != want_n || (got_n > 0 && memcmp(got, want, got_n) != 0))
    fail_msg("%s:\n got  \"%.*s\"\n want \"%.*s\"", what, (int)got_n, got, (int)want_n, want);
}

/* ---- against the reference ---- */

static void pieces_equal (const peri__splitter *s, const peri__node *want, const char *name) {
  peri__buffer b = { .ctx = C };
  const peri__node *text = get(Tree.root, "texts")->child;
  for (const peri__node *w = want->child; w != NULL; w = w->next, text = text->next) {
    peri__pieces p;
    peri_status status = peri__split(s, St, text->s, text->n, true, &p);
    if (status != PERI_OK) check(peri__text_fail(St, status), name);
    b.size = 0;
    for (size_t i = 0; i < p.n; i++) {
      if (i > 0) assert_true(peri__buffer_put(&b, "\xE2\x90\x9F", 3));
      assert_true(peri__buffer_put(&b, p.text + p.at[i].offset, p.at[i].size));
    }
    same(name, b.data, b.size, w->s, w->n);
  }
  assert_null(text);
  peri__buffer_free(&b);
}

static void pre_tokenizers_cut_as_the_reference_does (void **state) {
  (void)state;
  for (const peri__node *c = get(Tree.root, "split")->child; c != NULL; c = c->next) {
    const char *spec = get(c, "spec")->s;
    peri__splitter *s;
    check(peri__splitter_parse(C, spec, &s), spec);
    pieces_equal(s, get(c, "out"), spec);
    peri__splitter_free(s);
  }
}

static void names_cut_as_the_models_tokenizers_do (void **state) {
  (void)state;
  for (const peri__node *c = get(Tree.root, "named")->child; c != NULL; c = c->next) {
    const char *name = get(c, "name")->s;
    peri__splitter *s;
    check(peri__splitter_named(C, name, &s, NULL), name);
    assert_true(peri__splitter_byte_level(s));
    pieces_equal(s, get(c, "out"), name);
    peri__splitter_free(s);
  }
}

static void normalizers_agree_with_the_reference (void **state) {
  (void)state;
  for (const peri__node *c = get(Tree.root, "normalize")->child; c != NULL; c = c->next) {
    const char *spec = get(c, "spec")->s, *out;
    const peri__node *text = get(Tree.root, "texts")->child;
    peri__normalizer *z;
    size_t n;
    check(peri__normalizer_parse(C, spec, &z), spec);
    for (const peri__node *w = get(c, "out")->child; w != NULL; w = w->next, text = text->next) {
      assert_int_equal(peri__normalize(z, St, text->s, text->n, &out, &n), PERI_OK);
      same(spec, out, n, w->s, w->n);
    }
    peri__normalizer_free(z);
  }
}

/* Every push gives whole characters, and all of them what the reference gives for the whole. */
static void decoders_agree_with_the_reference (void **state) {
  (void)state;
  for (const peri__node *c = get(Tree.root, "decode")->child; c != NULL; c = c->next) {
    const char *spec = get(c, "spec")->s;
    const peri__node *list = get(Tree.root, "tokens")->child;
    peri__buffer b = { .ctx = C };
    peri__decoder *d;
    peri__decoding *g;
    check(peri__decoder_parse(C, spec, &d), spec);
    check(peri__decoding_open(C, d, &g), spec);
    for (const peri__node *w = get(c, "out")->child; w != NULL; w = w->next, list = list->next) {
      b.size = 0;
      for (const peri__node *t = list->child; t != NULL; t = t->next) {
        check(peri__decoding_push(g, t->s, t->n, &b), spec);
        assert_int_equal(peri__utf8_prefix(b.data, b.size), b.size);
      }
      check(peri__decoding_finish(g, &b), spec);
      same(spec, b.data, b.size, w->s, w->n);
    }
    peri__decoding_close(g);
    peri__decoder_free(d);
    peri__buffer_free(&b);
  }
}

static void a_character_is_given_once_it_is_whole (void **state) {
  peri__decoder *d;
  peri__decoding *g;
  peri__buffer b = { .ctx = C };
  (void)state;
  check(peri__decoder_parse(C, "{\"type\":\"ByteLevel\"}", &d), "ByteLevel");
  check(peri__decoding_open(C, d, &g), "ByteLevel");
  check(peri__decoding_push(g, "\xC3\xA4\xC2\xB8", 4, &b), "push"); /* E4 B8 */
  assert_int_equal(b.size, 0);
  check(peri__decoding_push(g, "\xC5\x83", 2, &b), "push"); /* AD */
  same("whole", b.data, b.size, "\xE4\xB8\xAD", 3);
  check(peri__decoding_push(g, "\xC3\xA4", 2, &b), "push");
  check(peri__decoding_finish(g, &b), "finish");
  same("cut off", b.data, b.size, "\xE4\xB8\xAD\xEF\xBF\xBD", 6);
  b.size = 0; /* and is as new */
  check(peri__decoding_push(g, "a", 1, &b), "push");
  same("again", b.data, b.size, "a", 1);
  peri__decoding_close(g);
  peri__decoder_free(d);
  peri__buffer_free(&b);
}

static void parts_equal (const peri__postprocessor *p, bool pair, const peri__node *ids,
                         const peri__node *types, const char *spec) {
  size_t n;
  const peri__part *part = peri__postprocessor_parts(p, pair, &n);
  ids = ids->child;
  types = types->child;
  for (size_t i = 0; i < n; i++) {
    int32_t text = part[i].kind == PERI__PART_A ? 1000 : 2000;
    const int32_t *at = part[i].kind == PERI__PART_IDS ? part[i].ids : &text;
    size_t count = part[i].kind == PERI__PART_IDS ? part[i].n : 1;
    for (size_t k = 0; k < count; k++, ids = ids->next, types = types->next) {
      if (ids == NULL || ids->i != at[k]) fail_msg("%s: id %d", spec, at[k]);
      assert_int_equal(types->i, part[i].type_id);
    }
  }
  assert_null(ids);
}

static void post_processors_agree_with_the_reference (void **state) {
  (void)state;
  for (const peri__node *c = get(Tree.root, "post")->child; c != NULL; c = c->next) {
    const char *spec = get(c, "spec")->s;
    peri__postprocessor *p;
    check(peri__postprocessor_parse(C, spec, &p), spec);
    parts_equal(p, false, get(c, "single"), get(c, "single_types"), spec);
    parts_equal(p, true, get(c, "pair"), get(c, "pair_types"), spec);
    peri__postprocessor_free(p);
  }
}

static void broken_utf8_is_repaired_as_the_reference_does (void **state) {
  (void)state;
  for (const peri__node *c = get(Tree.root, "repair")->child; c != NULL; c = c->next) {
    const peri__node *hex = get(c, "hex"), *want = get(c, "out");
    char bytes[32];
    peri__buffer b = { .ctx = C };
    for (size_t i = 0; i < hex->n / 2; i++) {
      unsigned v;
      assert_int_equal(sscanf(hex->s + 2 * i, "%2x", &v), 1);
      bytes[i] = (char)v;
    }
    assert_true(peri__utf8_repair(&b, bytes, hex->n / 2));
    same(hex->s, b.data, b.size, want->s, want->n);
    peri__buffer_free(&b);
  }
}

static void the_byte_level_alphabet_goes_both_ways (void **state) {
  unsigned char bytes[256];
  char back[1024];
  size_t n;
  peri__buffer b = { .ctx = C };
  (void)state;
  for (int i = 0; i < 256; i++) bytes[i] = (unsigned char)i;
  assert_true(peri__byte_level_map(&b, bytes, 256));
  assert_true(peri__byte_level_unmap(b.data, b.size, back, &n));
  same("bytes", back, n, (const char *)bytes, 256);
  /* As GPT-2's vocabulary writes them. */
  assert_int_equal(peri__byte_level[' '], 0x120);
  assert_int_equal(peri__byte_level['\n'], 0x10A);
  assert_int_equal(peri__byte_level['a'], 'a');
  assert_int_equal(peri__byte_level[0xAD], 0x143);
  assert_false(peri__byte_level_unmap("a b", 3, back, &n));
  assert_false(peri__byte_level_unmap("\xE4\xB8\xAD", 3, back, &n));
  peri__buffer_free(&b);
}

/* ---- matchers by hand against their patterns ---- */

static peri__regex *regex (const char *pattern) {
  peri__regex *re;
  check(peri__regex_compile(C, pattern, strlen(pattern), &re), pattern);
  return re;
}

/* Characters that PCRE2's Unicode has assigned, and that have this one's script too. */
static uint32_t *assigned (size_t *count) {
  char text[4];
  uint32_t *out = malloc(0x110000 * sizeof *out);
  peri__regex *none = regex("\\p{Cn}");
  assert_non_null(out);
  *count = 0;
  for (uint32_t c = 0; c < 0x110000; c++) {
    peri__search search;
    size_t from, to;
    bool found;
    if (c >= 0xD800 && c < 0xE000) continue;
    peri__work_begin(St, 4);
    peri__search_begin(&search, none, St, text, 0, peri__char_put(c, text));
    assert_int_equal(peri__search_next(&search, &found, &from, &to), PERI_OK);
    if (!found) out[(*count)++] = c;
  }
  peri__regex_free(none);
  return out;
}

static void classes_are_those_of_the_regular_expressions (void **state) {
  static const struct {
    const char *pattern;
    unsigned set;
  } cases[] = {
    { "\\p{L}", PERI__L },
    { "\\p{N}", PERI__N },
    { "\\p{M}", PERI__M },
    { "\\p{P}", PERI__P },
    { "\\p{S}", PERI__S },
    { "\\s", PERI__SPACE },
    { "\\p{Nd}", PERI__ND },
    { "\\p{Nl}", PERI__NL },
    { "\\p{Mn}", PERI__MN },
    { "\\p{C}", PERI__OTHER },
    { "[\\r\\n]", PERI__EOL },
    { "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]", PERI__HIGH },
    { "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]", PERI__LOW },
  };
  size_t count;
  uint32_t *all = assigned(&count);
  (void)state;
  for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
    peri__regex *re = regex(cases[k].pattern);
    for (size_t i = 0; i < count; i++) {
      char text[4];
      peri__search search;
      size_t from, to;
      bool found;
      peri__work_begin(St, 4);
      peri__search_begin(&search, re, St, text, 0, peri__char_put(all[i], text));
      assert_int_equal(peri__search_next(&search, &found, &from, &to), PERI_OK);
      if (found != ((peri__class(all[i]) & cases[k].set) != 0))
        fail_msg("U+%04X is%s %s", (unsigned)all[i], found ? "" : " not", cases[k].pattern);
    }
    peri__regex_free(re);
  }
  free(all);
}

static bool next_known (const peri__known *k, const char *text, size_t *at, size_t n, size_t *memo,
                        size_t *from, size_t *to) {
  const unsigned char *s = (const unsigned char *)text;
  size_t len;
  if (k->find != NULL) {
    if (!k->find(s, *at, n, memo, from, to)) return false;
    *at = *to;
    return true;
  }
  for (; *at < n; *at += len) {
    *from = *at;
    *to = k->match(s, *at, n);
    if (*to > *from) {
      *at = *to;
      return true;
    }
    peri__char_at(s + *at, n - *at, &len);
  }
  return false;
}

static void same_matches (const char *pattern, const peri__known *known, const peri__regex *re,
                          const char *text, size_t n) {
  peri__search search;
  size_t at = 0, memo = 0, a = 0, b = 0, from = 0, to = 0;
  bool found, mine;
  peri__work_begin(St, n);
  peri__search_begin(&search, re, St, text, 0, n);
  do {
    peri_status s = peri__search_next(&search, &found, &from, &to);
    if (s != PERI_OK) check(peri__text_fail(St, s), pattern);
    mine = next_known(known, text, &at, n, &memo, &a, &b);
    if (mine != found || (found && (a != from || b != to)))
      fail_msg("%s\non \"%.*s\":\n by hand %d [%zu, %zu), the engine %d [%zu, %zu)", pattern,
               (int)n, text, mine, a, b, found, from, to);
  } while (found);
}

static void matchers_by_hand_equal_their_patterns (void **state) {
  static const char *const fragment[] = { "'s",
                                          "'LL",
                                          "'ve",
                                          "'T",
                                          "'\xC5\xBF",
                                          " ",
                                          "  ",
                                          "\n",
                                          "\r\n",
                                          " \n",
                                          "\t",
                                          "hello",
                                          "World",
                                          "ABC",
                                          "1",
                                          "12",
                                          "123456",
                                          "...",
                                          "/",
                                          "$",
                                          "_",
                                          "\xE4\xB8\xAD\xE6\x96\x87",
                                          "\xE3\x81\x8B",
                                          "\xCC\x81",
                                          "\xC3\xA9",
                                          "\xC7\x85",
                                          "\xC2\xBD",
                                          "\xE3\x80\x80",
                                          "\xC2\xA0",
                                          "a b c",
                                          "x\xC2\xB2",
                                          "\xE3\x80\x85",
                                          "\xE2\xBA\x80" };
  /* Kimi K2's own pattern intersects classes; this is the same. */
#define NOT_HAN(set) "(?:(?!\\p{Han})[" set "\\p{Lm}\\p{Lo}\\p{M}])"
#define KIMI_WORD(a, b)                                                     \
  "[^\\r\\n\\p{L}\\p{N}]?" NOT_HAN("\\p{Lu}\\p{Lt}") a NOT_HAN("\\p{Ll}") b \
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
  static const char kimi[] = "\\p{Han}+|" KIMI_WORD("*", "+") KIMI_WORD(
      "+", "*") "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  size_t count;
  uint32_t *all = assigned(&count);
  peri__known known;
  const char *pattern;
  (void)state;
  for (size_t i = 0; (pattern = peri__known_at(i, &known)) != NULL; i++) {
    peri__regex *re = regex(strstr(pattern, "&&") != NULL ? kimi : pattern);
    for (const peri__node *t = get(Tree.root, "texts")->child; t != NULL; t = t->next)
      same_matches(pattern, &known, re, t->s, t->n);
    Seed = 1;
    for (int round = 0; round < 3000; round++) {
      char text[512];
      size_t n = 0, parts = below(24);
      for (size_t k = 0; k < parts && n < sizeof text - 16; k++) {
        uint32_t kind = below(10);
        if (kind < 6) {
          const char *f = fragment[below(sizeof fragment / sizeof *fragment)];
          memcpy(text + n, f, strlen(f));
          n += strlen(f);
        } else if (kind < 8) {
          text[n++] = (char)(32 + below(95));
        } else { /* half of them from the first planes' small scripts */
          uint32_t c = all[below(kind == 8 ? 6000 : (uint32_t)count)];
          if (c == 0x2B739) c = 'a'; /* Han since Unicode 15 */
          n += peri__char_put(c, text + n);
        }
      }
      same_matches(pattern, &known, re, text, n);
    }
    peri__regex_free(re);
  }
  free(all);
}

/* ---- names ---- */

static void every_name_is_known_and_an_unknown_one_refused (void **state) {
  static const char text[] = "It's 12345 caf\xC3\xA9s,\n\n  \xE4\xB8\xAD\xE6\x96\x87! ";
  peri__splitter *s;
  peri__pre_facts facts;
  (void)state;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    peri__pieces p;
    size_t sum = 0;
    check(peri__splitter_named(C, names[i], &s, &facts), names[i]);
    assert_int_equal(peri__split(s, St, text, sizeof text - 1, true, &p), PERI_OK);
    for (size_t k = 0; k < p.n; k++) {
      assert_int_equal(p.at[k].offset, sum); /* nothing is lost */
      sum += p.at[k].size;
    }
    assert_int_equal(sum, sizeof text - 1);
    assert_int_equal(peri__splitter_byte_level(s), facts.byte_level);
    peri__splitter_free(s);
  }
  check(peri__splitter_named(C, "llama-bpe", &s, &facts), "llama-bpe");
  assert_true(facts.ignore_merges && facts.add_bos && facts.byte_level);
  peri__splitter_free(s);
  check(peri__splitter_named(C, "gemma4", &s, &facts), "gemma4");
  assert_true(!facts.byte_level && facts.escape_spaces);
  peri__splitter_free(s);
  want_failure(C, peri__splitter_named(C, "nobody-3", &s, NULL), PERI_EFORMAT, "\"nobody-3\"");
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(pre_tokenizers_cut_as_the_reference_does),
    cmocka_unit_test(names_cut_as_the_models_tokenizers_do),
    cmocka_unit_test(normalizers_agree_with_the_reference),
    cmocka_unit_test(decoders_agree_with_the_reference),
    cmocka_unit_test(a_character_is_given_once_it_is_whole),
    cmocka_unit_test(post_processors_agree_with_the_reference),
    cmocka_unit_test(broken_utf8_is_repaired_as_the_reference_does),
    cmocka_unit_test(the_byte_level_alphabet_goes_both_ways),
    cmocka_unit_test(classes_are_those_of_the_regular_expressions),
    cmocka_unit_test(matchers_by_hand_equal_their_patterns),
    cmocka_unit_test(every_name_is_known_and_an_unknown_one_refused),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
