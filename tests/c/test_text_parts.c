/*
** test_text_parts.c - normalisers, pre-tokenizers, decoders and post-processors against the reference
** implementation (tests/reference/text_parts.py), hand-written matchers against the patterns that
** they stand for, and what hostile patterns, texts and allocators may do.
*/
#include "untrusted.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <utf8proc.h>

#include "text/decode.h"
#include "text/match.h"
#include "text/normalize.h"
#include "text/postprocess.h"
#include "text/regex.h"
#include "text/split.h"
#include "text/tree.h"
#include "text/unicode.h"

static heap H;
static peri_ctx *C;
static peri__text_state *St;
static char *Json;
static peri_json J;
static peri__tree Tree; /* of the vectors */

static int setup (void **state) {
  const char *path = PERI_SOURCE_DIR "/tests/data/text_parts.json";
  (void)state;
  C = open_counted(&H);
  assert_int_equal(peri__text_state_open(C, &St), PERI_OK);
  FILE *f = fopen(path, "rb");
  assert_non_null(f);
  assert_int_equal(fseek(f, 0, SEEK_END), 0);
  size_t n = (size_t)ftell(f);
  rewind(f);
  Json = malloc(n + 1);
  assert_non_null(Json);
  assert_int_equal(fread(Json, 1, n, f), n);
  fclose(f);
  peri_json_open(&J, C, Json, n, NULL);
  if (peri__tree_read(C, &J, &Tree) != PERI_OK) fail_msg("%s", peri_message(C));
  return 0;
}

static int teardown (void **state) {
  (void)state;
  peri__tree_close(&Tree);
  peri_json_close(&J);
  free(Json);
  peri__text_state_close(St);
  close_counted(C, &H);
  return 0;
}

static const peri__node *get (const peri__node *node, const char *key) {
  const peri__node *c = peri__node_get(node, key);
  if (c == NULL) fail_msg("no \"%s\" in the vectors", key);
  return c;
}

static void same (const char *what, const char *got, size_t got_n, const char *want,
                  size_t want_n) {
  if (got_n != want_n || (got_n > 0 && memcmp(got, want, got_n) != 0))
    fail_msg("%s:\n got  \"%.*s\"\n want \"%.*s\"", what, (int)got_n, got, (int)want_n, want);
}

static void check (peri_status s, const char *what) {
  if (s != PERI_OK) fail_msg("%s: %s", what, peri_message(C));
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

static uint32_t Seed;

static uint32_t below (uint32_t n) {
  Seed = Seed * 1664525u + 1013904223u;
  return (uint32_t)((uint64_t)Seed * n >> 32);
}

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

static const char *const names[] = { "default",
                                     "llama3",
                                     "llama-v3",
                                     "llama-bpe",
                                     "falcon3",
                                     "falcon-h1",
                                     "pixtral",
                                     "midm-2.0",
                                     "lfm2",
                                     "jina-v5-nano",
                                     "dbrx",
                                     "smaug-bpe",
                                     "chatglm-bpe",
                                     "glm4",
                                     "glm5",
                                     "qwen2",
                                     "deepseek-r1-qwen",
                                     "kormo",
                                     "f2llmv2",
                                     "megrez",
                                     "stablelm2",
                                     "hunyuan",
                                     "solar-open",
                                     "grok-2",
                                     "qwen35",
                                     "gpt-2",
                                     "phi-2",
                                     "mpt",
                                     "olmo",
                                     "jais",
                                     "trillion",
                                     "granite-docling",
                                     "exaone4",
                                     "jina-es",
                                     "jina-de",
                                     "jina-v2-es",
                                     "jina-v2-de",
                                     "gigachat",
                                     "a.x-4.0",
                                     "mellum",
                                     "modern-bert",
                                     "jina-v1-en",
                                     "jina-v2-code",
                                     "roberta-bpe",
                                     "gpt-4o",
                                     "llama4",
                                     "kanana2",
                                     "talkie",
                                     "minimax-m2",
                                     "granite-embed-multi-97m",
                                     "tekken",
                                     "deepseek-llm",
                                     "deepseek-coder",
                                     "deepseek-v3",
                                     "hunyuan-dense",
                                     "hy_v4",
                                     "joyai-llm",
                                     "starcoder",
                                     "refact",
                                     "command-r",
                                     "smollm",
                                     "codeshell",
                                     "exaone",
                                     "minerva-7b",
                                     "mellum2",
                                     "falcon",
                                     "bloom",
                                     "poro-chat",
                                     "gpt3-finnish",
                                     "viking",
                                     "chameleon",
                                     "tiny_aya",
                                     "cohere2moe",
                                     "kimi-k2",
                                     "superbpe",
                                     "bailingmoe",
                                     "bailingmoe2",
                                     "llada-moe",
                                     "seed-coder",
                                     "ufakzeka",
                                     "afmoe",
                                     "laguna",
                                     "exaone-moe",
                                     "gemma4",
                                     "granite-embed-multi-311m",
                                     "sarvam-moe",
                                     "minicpm5",
                                     "whitespace",
                                     "jais-2",
                                     "spark2_5",
                                     "youtu" };

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
