/*
** split_read.c - pre-tokenizers of tokenizer.json into steps. Sequences are laid flat.
*/
#include "text/split_code.h"
#include "text/tree.h"
#include "text/unicode.h"

/* ---- building ---- */

peri_status peri__splitter_new (peri_ctx *ctx, peri__splitter **out) {
  peri__splitter *s = peri__malloc(ctx, sizeof *s);
  if (s == NULL) return peri__fail(ctx, PERI_ENOMEM, "no memory for a pre-tokenizer");
  memset(s, 0, sizeof *s);
  s->ctx = ctx;
  s->prefix_at = -1;
  *out = s;
  return PERI_OK;
}

void peri__splitter_free (peri__splitter *s) {
  if (s == NULL) return;
  for (int i = 0; i < s->n; i++) {
    peri__regex_free(s->step[i].re);
    peri__free(s->ctx, s->step[i].s, s->step[i].n + 1);
  }
  peri__free(s->ctx, s, sizeof *s);
}

peri__step *peri__add_step (peri__splitter *s, peri__step_kind kind) {
  if (s->n == PERI__STEPS_MAX) return NULL;
  peri__step *step = &s->step[s->n++];
  *step = (peri__step){ .kind = kind, .behavior = PERI__ISOLATED };
  return step;
}

static peri_status too_many (peri__splitter *s) {
  return peri__fail(s->ctx, PERI_EFORMAT, "a pre-tokenizer of more than %d steps", PERI__STEPS_MAX);
}

/* Give a step its string. */
static peri_status set_string (peri__splitter *s, peri__step *step, const char *text, size_t n) {
  step->s = peri__malloc(s->ctx, n + 1);
  if (step->s == NULL) return peri__fail(s->ctx, PERI_ENOMEM, "no memory for a pre-tokenizer");
  memcpy(step->s, text, n);
  step->s[n] = '\0';
  step->n = n;
  return PERI_OK;
}

peri_status peri__add_pattern (peri__splitter *s, const char *pattern, size_t n,
                               peri__behavior behavior, bool invert) {
  peri__known known = peri__known_pattern(pattern, n);
  bool by_hand = known.match != NULL || known.find != NULL;
  peri__step *step = peri__add_step(s, by_hand ? PERI__CUT_KNOWN : PERI__CUT_REGEX);
  if (step == NULL) return too_many(s);
  step->behavior = behavior;
  step->invert = invert;
  step->known = known;
  return by_hand ? PERI_OK : peri__regex_compile(s->ctx, pattern, n, &step->re);
}

void peri__splitter_done (peri__splitter *s, peri__splitter **out) {
  if (s->n > 0 && s->step[s->n - 1].kind == PERI__MAP_BYTES) {
    s->byte_level = true;
    s->n--;
  }
  if (s->n == 0 && !s->byte_level) {
    peri__splitter_free(s);
    s = NULL;
  }
  *out = s;
}

/* ---- reading ---- */

typedef struct reader {
  peri__tree *tree;
  peri__splitter *s;
} reader;

static const char *const behavior_names[] = { "Removed",        "Isolated",   "MergedWithPrevious",
                                              "MergedWithNext", "Contiguous", NULL };

static peri_status read_behavior (reader *r, const peri__node *node, bool required,
                                  peri__behavior *out) {
  const peri__node *b;
  TRY(peri__node_string(r->tree, node, "behavior", required, &b));
  if (b == NULL) return PERI_OK;
  int k = peri__node_choice(b, behavior_names);
  if (k < 0)
    return peri__node_fail(r->tree, b, "unknown behavior \"%.*s\"", b->n > 100 ? 100 : (int)b->n,
                           b->s);
  *out = (peri__behavior)k; /* ORDER behaviour */
  return PERI_OK;
}

static peri_status read_split (reader *r, const peri__node *node) {
  peri__behavior behavior = PERI__ISOLATED;
  bool invert = false;
  const peri__node *pattern = peri__node_get(node, "pattern"), *text;
  if (pattern == NULL) return peri__node_fail(r->tree, node, "\"pattern\" is missing here");
  TRY(read_behavior(r, node, true, &behavior));
  TRY(peri__node_bool(r->tree, node, "invert", false, &invert));
  TRY(peri__node_string(r->tree, pattern, "String", false, &text));
  if (text != NULL && text->n > 0) {
    peri__step *step = peri__add_step(r->s, PERI__CUT_STRING);
    if (step == NULL) return too_many(r->s);
    step->behavior = behavior;
    step->invert = invert;
    return set_string(r->s, step, text->s, text->n);
  }
  if (text == NULL) TRY(peri__node_string(r->tree, pattern, "Regex", true, &text));
  return peri__add_pattern(r->s, text->s, text->n, behavior, invert);
}

static peri_status read_byte_level (reader *r, const peri__node *node) {
  bool prefix = true, regex = true;
  TRY(peri__node_bool(r->tree, node, "add_prefix_space", true, &prefix));
  TRY(peri__node_bool(r->tree, node, "use_regex", false, &regex));
  r->s->prefix_at = r->s->n;
  if (prefix && peri__add_step(r->s, PERI__PREFIX_SPACE) == NULL) return too_many(r->s);
  if (regex)
    TRY(peri__add_pattern(r->s, peri__gpt2_pattern, strlen(peri__gpt2_pattern), PERI__ISOLATED,
                          false));
  return peri__add_step(r->s, PERI__MAP_BYTES) != NULL ? PERI_OK : too_many(r->s);
}

static peri_status read_metaspace (reader *r, const peri__node *node) {
  static const char *const schemes[] = { "first", "never", "always", NULL }; /* ORDER prepend */
  char text[4];
  uint32_t c = 0;
  bool prefix = true, split = true;
  int scheme = PERI__ALWAYS;
  const peri__node *name;
  TRY(peri__node_char(r->tree, node, "replacement", true, &c));
  TRY(peri__node_string(r->tree, node, "prepend_scheme", false, &name));
  TRY(peri__node_bool(r->tree, node, "add_prefix_space", false, &prefix));
  TRY(peri__node_bool(r->tree, node, "split", false, &split));
  if (name != NULL && (scheme = peri__node_choice(name, schemes)) < 0)
    return peri__node_fail(r->tree, name, "unknown prepend_scheme \"%.*s\"",
                           name->n > 100 ? 100 : (int)name->n, name->s);
  if (!prefix && name != NULL && scheme != PERI__NEVER)
    return peri__node_fail(r->tree, name,
                           "\"add_prefix_space\": false and \"prepend_scheme\": "
                           "\"%s\" contradict each other",
                           schemes[scheme]);
  peri__step *step = peri__add_step(r->s, PERI__METASPACE);
  if (step == NULL) return too_many(r->s);
  step->behavior = PERI__MERGED_WITH_NEXT;
  step->prepend = prefix ? (peri__prepend)scheme : PERI__NEVER;
  step->split = split;
  return set_string(r->s, step, text, peri__char_put(c, text));
}

static peri_status read_cut (reader *r, peri__step_kind kind, peri__behavior behavior) {
  peri__step *step = peri__add_step(r->s, kind);
  if (step == NULL) return too_many(r->s);
  step->behavior = behavior;
  return PERI_OK;
}

static peri_status read_scripts (reader *r);

/* ORDER pre_tokenizer: the names and the cases below */
enum {
  SEQUENCE,
  SPLIT,
  BYTE_LEVEL,
  WHITESPACE,
  WHITESPACE_SPLIT,
  BERT,
  METASPACE,
  DIGITS,
  PUNCTUATION,
  DELIMITER,
  SCRIPTS,
  FIXED
};
static const char *const type_names[] = {
  "Sequence",         "Split",       "ByteLevel", "Whitespace",  "WhitespaceSplit",
  "BertPreTokenizer", "Metaspace",   "Digits",    "Punctuation", "CharDelimiterSplit",
  "UnicodeScripts",   "FixedLength", NULL
};

static peri_status read_component (reader *r, const peri__node *node) {
  static const char words[] = "[\\w\\x{200C}\\x{200D}]+|[^\\w\\x{200C}\\x{200D}\\s]+";
  int type;
  char text[4];
  uint32_t c = 0;
  int64_t length = 5;
  bool flag = false;
  const peri__node *list;
  peri__behavior behavior = PERI__ISOLATED;
  TRY(peri__node_type(r->tree, node, "pre-tokenizer", type_names, &type));
  switch (type) {
  case SEQUENCE:
    TRY(peri__node_list(r->tree, node, "pretokenizers", &list));
    for (const peri__node *e = list->child; e != NULL; e = e->next) TRY(read_component(r, e));
    return PERI_OK;
  case SPLIT: return read_split(r, node);
  case BYTE_LEVEL: return read_byte_level(r, node);
  case WHITESPACE: /* Rust's \w has the joiners too */
    return peri__add_pattern(r->s, words, sizeof words - 1, PERI__REMOVED, true);
  case WHITESPACE_SPLIT: return read_cut(r, PERI__CUT_SPACE, PERI__REMOVED);
  case BERT:
    TRY(read_cut(r, PERI__CUT_SPACE, PERI__REMOVED));
    return read_cut(r, PERI__CUT_PUNCTUATION, PERI__ISOLATED);
  case METASPACE: return read_metaspace(r, node);
  case DIGITS:
    TRY(peri__node_bool(r->tree, node, "individual_digits", true, &flag));
    return read_cut(r, PERI__CUT_NUMERIC, flag ? PERI__ISOLATED : PERI__CONTIGUOUS);
  case PUNCTUATION:
    TRY(read_behavior(r, node, false, &behavior));
    return read_cut(r, PERI__CUT_PUNCTUATION, behavior);
  case DELIMITER:
    TRY(peri__node_char(r->tree, node, "delimiter", true, &c));
    TRY(read_cut(r, PERI__CUT_STRING, PERI__REMOVED));
    return set_string(r->s, &r->s->step[r->s->n - 1], text, peri__char_put(c, text));
  case SCRIPTS: return read_scripts(r);
  default: /* FIXED */
    TRY(peri__node_int(r->tree, node, "length", false, 1, INT32_MAX, &length));
    TRY(read_cut(r, PERI__FIXED_LENGTH, PERI__ISOLATED));
    r->s->step[r->s->n - 1].length = (size_t)length;
    return PERI_OK;
  }
}

peri_status peri__splitter_read (peri_ctx *ctx, peri_json *j, peri__splitter **out) {
  peri__tree tree;
  peri__splitter *s = NULL;
  peri_status status = peri__tree_read(ctx, j, &tree);
  if (status == PERI_OK && tree.root->type == PERI_JSON_NULL) {
    *out = NULL;
  } else if (status == PERI_OK && (status = peri__splitter_new(ctx, &s)) == PERI_OK) {
    reader r = { &tree, s };
    status = read_component(&r, tree.root);
    if (status == PERI_OK)
      peri__splitter_done(s, out);
    else
      peri__splitter_free(s);
  }
  peri__tree_close(&tree);
  return status;
}

peri_status peri__splitter_prefix_space (peri__splitter *s, bool add) {
  if (s == NULL || s->prefix_at < 0) return PERI_OK;
  peri__step *at = &s->step[s->prefix_at];
  bool there = s->prefix_at < s->n && at->kind == PERI__PREFIX_SPACE;
  if (there == add) return PERI_OK;
  if (add && s->n == PERI__STEPS_MAX) return too_many(s);
  size_t behind = (size_t)(s->n - s->prefix_at - there) * sizeof *at;
  memmove(at + add, at + there, behind);
  s->n += add ? 1 : -1;
  if (add) *at = (peri__step){ .kind = PERI__PREFIX_SPACE };
  return PERI_OK;
}

bool peri__splitter_prefixes (const peri__splitter *s) {
  return s != NULL && s->prefix_at >= 0 && s->prefix_at < s->n &&
         s->step[s->prefix_at].kind == PERI__PREFIX_SPACE;
}

bool peri__splitter_no_prepend (peri__splitter *s) {
  bool found = false;
  for (int i = 0; s != NULL && i < s->n; i++) {
    if (s->step[i].kind != PERI__METASPACE) continue;
    s->step[i].prepend = PERI__NEVER;
    found = true;
  }
  return found;
}

peri_status peri__splitter_parse (peri_ctx *ctx, const char *json, peri__splitter **out) {
  peri_json j;
  peri__json_over(&j, ctx, json);
  peri_status s = peri__splitter_read(ctx, &j, out);
  peri_json_close(&j);
  return s;
}

/* ---- UnicodeScripts ---- */

/* The scripts that PCRE2 10.42 knows (Unicode 14), but for those that are treated as Han. */
static const char *const scripts[] = {
  "Adlm", "Aghb", "Ahom", "Arab", "Armi", "Armn", "Avst", "Bali", "Bamu", "Bass", "Batk", "Beng",
  "Bhks", "Bopo", "Brah", "Brai", "Bugi", "Buhd", "Cakm", "Cans", "Cari", "Cham", "Cher", "Chrs",
  "Copt", "Cpmn", "Cprt", "Cyrl", "Deva", "Diak", "Dogr", "Dsrt", "Dupl", "Egyp", "Elba", "Elym",
  "Ethi", "Geor", "Glag", "Gong", "Gonm", "Goth", "Gran", "Grek", "Gujr", "Guru", "Hang", "Hano",
  "Hatr", "Hebr", "Hluw", "Hmng", "Hmnp", "Hung", "Ital", "Java", "Kali", "Khar", "Khmr", "Khoj",
  "Kits", "Knda", "Kthi", "Lana", "Laoo", "Latn", "Lepc", "Limb", "Lina", "Linb", "Lisu", "Lyci",
  "Lydi", "Mahj", "Maka", "Mand", "Mani", "Marc", "Medf", "Mend", "Merc", "Mero", "Mlym", "Modi",
  "Mong", "Mroo", "Mtei", "Mult", "Mymr", "Nand", "Narb", "Nbat", "Newa", "Nkoo", "Nshu", "Ogam",
  "Olck", "Orkh", "Orya", "Osge", "Osma", "Ougr", "Palm", "Pauc", "Perm", "Phag", "Phli", "Phlp",
  "Phnx", "Plrd", "Prti", "Qaai", "Rjng", "Rohg", "Runr", "Samr", "Sarb", "Saur", "Sgnw", "Shaw",
  "Shrd", "Sidd", "Sind", "Sinh", "Sogd", "Sogo", "Sora", "Soyo", "Sund", "Sylo", "Syrc", "Tagb",
  "Takr", "Tale", "Talu", "Taml", "Tang", "Tavt", "Telu", "Tfng", "Tglg", "Thaa", "Thai", "Tibt",
  "Tirh", "Tnsa", "Toto", "Ugar", "Vaii", "Vith", "Wara", "Wcho", "Xpeo", "Xsux", "Yezi", "Yiii",
  "Zanb"
};

/* Runs of one script: Hiragana, Katakana and U+30FC count as Han, a space and what has no script
** belong to the run before them, and are dropped before the first. */
static peri_status read_scripts (reader *r) {
  static const char any[] = "\\p{Unknown} ";
  peri__buffer b = { .ctx = r->s->ctx };
  static const char han[] =
      "[\\p{Han}\\p{Hiragana}\\p{Katakana}\\x{30FC}]"
      "[\\p{Han}\\p{Hiragana}\\p{Katakana}\\x{30FC}\\p{Unknown} ]*"
      "|(?![\\x{30FC} ])\\p{Common}(?:(?!\\x{30FC})[\\p{Common}\\p{Unknown} ])*";
  bool ok = peri__buffer_put(&b, han, sizeof han - 1);
  for (size_t k = 0; ok && k < sizeof scripts / sizeof *scripts; k++) {
    const char *s = scripts[k];
    ok = peri__buffer_put(&b, "|\\p{", 4) && peri__buffer_put(&b, s, 4) &&
         peri__buffer_put(&b, "}[\\p{", 5) && peri__buffer_put(&b, s, 4) &&
         peri__buffer_put(&b, "}", 1) && peri__buffer_put(&b, any, sizeof any - 1) &&
         peri__buffer_put(&b, "]*", 2);
  }
  peri_status status = ok ? peri__add_pattern(r->s, b.data, b.size, PERI__REMOVED, true)
                          : peri__fail(r->s->ctx, PERI_ENOMEM, "no memory for a pre-tokenizer");
  peri__buffer_free(&b);
  return status;
}
