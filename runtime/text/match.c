/*
** match.c - matchers for known patterns. Each alternative of a pattern is a function here; greedy
** repetition with backtracking becomes a scan that remembers where it would have come back to.
*/
#include <stdint.h>
#include <string.h>

#include "text/match.h"
#include "text/unicode.h"

#define INLINE static inline __attribute__((always_inline))

INLINE uint16_t class_at (const unsigned char *s, size_t i, size_t n, size_t *len) {
  if (s[i] < 128) {
    *len = 1;
    return peri__ascii_class[s[i]];
  }
  return peri__wide_class(peri__char_at(s + i, n - i, len));
}

/* [set]*, where set is a union of classes. */
INLINE size_t run (const unsigned char *s, size_t i, size_t n, unsigned set) {
  for (size_t len; i < n; i += len)
    if (!(class_at(s, i, n, &len) & set)) break;
  return i;
}

/* [^set]* */
INLINE size_t run_not (const unsigned char *s, size_t i, size_t n, unsigned set) {
  for (size_t len; i < n; i += len)
    if (class_at(s, i, n, &len) & set) break;
  return i;
}

/* How the apostrophe's suffixes compare letters. */
enum { NONE, EXACT, FOLD, FOLD_ASCII };

/* One letter of 's 't 're 've 'm 'll 'd, lower case; its length in *len, 0: none. Folding as Unicode
** does takes U+017F for s. */
INLINE int suffix_letter (const unsigned char *s, size_t i, size_t n, int how, size_t *len) {
  *len = 0;
  if (i >= n) return 0;
  int c = s[i];
  if (how == FOLD && c == 0xC5 && i + 1 < n && s[i + 1] == 0xBF) {
    *len = 2;
    return 's';
  }
  *len = 1;
  return how != EXACT && c >= 'A' && c <= 'Z' ? c + 32 : c;
}

/* '(s|t|re|ve|m|ll|d) at i, or i. */
INLINE size_t suffix (const unsigned char *s, size_t i, size_t n, int how) {
  size_t a, b;
  if (how == NONE || i >= n || s[i] != '\'') return i;
  int c = suffix_letter(s, i + 1, n, how, &a);
  if (c == 's' || c == 't' || c == 'm' || c == 'd') return i + 1 + a;
  int d = suffix_letter(s, i + 1 + a, n, how, &b);
  if (((c == 'r' || c == 'v') && d == 'e') || (c == 'l' && d == 'l')) return i + 1 + a + b;
  return i;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ (lines) or \s+(?!\S)|\s+ */
INLINE size_t spaces (const unsigned char *s, size_t i, size_t n, bool lines) {
  size_t at = i, line = i, last = i, len;
  for (uint16_t c; at < n; at += len) {
    c = class_at(s, at, n, &len);
    if (!(c & PERI__SPACE)) break;
    last = at;
    if (c & PERI__EOL) line = at + len;
  }
  if (lines && line > i) return line;
  return at == n || last == i ? at : last;
}

/* \p{N}{1,most} */
INLINE size_t digits (const unsigned char *s, size_t i, size_t n, int most) {
  size_t len;
  for (; most > 0 && i < n; most--, i += len)
    if (!(class_at(s, i, n, &len) & PERI__N)) break;
  return i;
}

/* ?[^\s\p{L}\p{N}]+ with [\r\n]* or [\r\n/]* behind it; set: what the class excludes. */
INLINE size_t others (const unsigned char *s, size_t i, size_t n, unsigned set, bool lines,
                      bool slash) {
  size_t from = s[i] == ' ' ? i + 1 : i;
  size_t at = run_not(s, from, n, set);
  if (at == from) return i;
  while (lines && at < n && (s[at] == '\r' || s[at] == '\n' || (slash && s[at] == '/'))) at++;
  return at;
}

/* ---- GPT-2 ---- */

const char peri__gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static size_t gpt2 (const unsigned char *s, size_t i, size_t n) {
  size_t end = suffix(s, i, n, EXACT), len;
  if (end > i) return end;
  size_t from = s[i] == ' ' && i + 1 < n ? i + 1 : i;
  uint16_t c = class_at(s, from, n, &len);
  if (c & PERI__L) return run(s, from + len, n, PERI__L);
  if (c & PERI__N) return run(s, from + len, n, PERI__N);
  if (!(c & PERI__SPACE)) return run_not(s, from + len, n, PERI__L | PERI__N | PERI__SPACE);
  return spaces(s, i, n, false);
}

/* ---- cl100k and its children ---- */

/* suffix|[^\r\n\p{L}\p{N}]?[word]+|\p{N}{1,most}| ?[^\s\p{L}\p{N}]+[\r\n]*|spaces */
INLINE size_t cl100k (const unsigned char *s, size_t i, size_t n, int how, unsigned word,
                      int most) {
  size_t end = suffix(s, i, n, how), len, next;
  if (end > i) return end;
  uint16_t c = class_at(s, i, n, &len);
  if (c & word) return run(s, i + len, n, word);
  if (c & PERI__N) return digits(s, i, n, most);
  if (!(c & PERI__EOL) && i + len < n && class_at(s, i + len, n, &next) & word)
    return run(s, i + len + next, n, word);
  end = others(s, i, n, word | PERI__N | PERI__SPACE, true, false);
  return end > i ? end : spaces(s, i, n, true);
}

static size_t llama3 (const unsigned char *s, size_t i, size_t n) {
  return cl100k(s, i, n, FOLD, PERI__L, 3);
}

static size_t llama3_ascii (const unsigned char *s, size_t i, size_t n) {
  return cl100k(s, i, n, FOLD_ASCII, PERI__L, 3);
}

static size_t qwen2 (const unsigned char *s, size_t i, size_t n) {
  return cl100k(s, i, n, FOLD, PERI__L, 1);
}

static size_t qwen2_ascii (const unsigned char *s, size_t i, size_t n) {
  return cl100k(s, i, n, FOLD_ASCII, PERI__L, 1);
}

static size_t qwen35 (const unsigned char *s, size_t i, size_t n) {
  return cl100k(s, i, n, FOLD, PERI__L | PERI__M, 1);
}

static size_t qwen35_ascii (const unsigned char *s, size_t i, size_t n) {
  return cl100k(s, i, n, FOLD_ASCII, PERI__L | PERI__M, 1);
}

/* ---- o200k and its children ---- */

/* Script Han (Unicode 15). */
static bool is_han (uint32_t c) {
  static const uint32_t range[][2] = {
    { 0x2E80, 0x2E99 },   { 0x2E9B, 0x2EF3 },   { 0x2F00, 0x2FD5 },   { 0x3005, 0x3005 },
    { 0x3007, 0x3007 },   { 0x3021, 0x3029 },   { 0x3038, 0x303B },   { 0x3400, 0x4DBF },
    { 0x4E00, 0x9FFF },   { 0xF900, 0xFA6D },   { 0xFA70, 0xFAD9 },   { 0x16FE2, 0x16FE3 },
    { 0x16FF0, 0x16FF1 }, { 0x20000, 0x2A6DF }, { 0x2A700, 0x2B739 }, { 0x2B740, 0x2B81D },
    { 0x2B820, 0x2CEA1 }, { 0x2CEB0, 0x2EBE0 }, { 0x2F800, 0x2FA1D }, { 0x30000, 0x3134A },
    { 0x31350, 0x323AF }
  };
  for (size_t k = 0; k < sizeof range / sizeof *range; k++)
    if (c <= range[k][1]) return c >= range[k][0];
  return false;
}

/* The class of a letter where those that are Han may not count (Kimi K2). */
INLINE uint16_t letter_at (const unsigned char *s, size_t i, size_t n, size_t *len, bool han) {
  uint16_t c = class_at(s, i, n, len);
  if (!han && s[i] >= 0xE2 && is_han(peri__char_at(s + i, n - i, len)))
    c &= (uint16_t) ~(PERI__HIGH | PERI__LOW);
  return c;
}

/* Where [HIGH]*[LOW]+ (needs_low) or [HIGH]+[LOW]* ends, or i. The first gives characters back until
** one that is LOW too, and takes the run of LOW from there: that is this one character alone. */
INLINE size_t cased (const unsigned char *s, size_t i, size_t n, bool needs_low, bool han) {
  size_t at = i, low = i, end, len;
  for (uint16_t c; at < n; at += len) {
    c = letter_at(s, at, n, &len, han);
    if (!(c & PERI__HIGH)) break;
    if (c & PERI__LOW) low = at + len;
  }
  if (!needs_low && at == i) return i;
  for (end = at; end < n; end += len)
    if (!(letter_at(s, end, n, &len, han) & PERI__LOW)) break;
  return !needs_low || end > at ? end : low;
}

/* The two word alternatives of o200k with a leading [^\r\n\p{L}\p{N}]? or i. */
INLINE size_t cased_word (const unsigned char *s, size_t i, size_t n, bool han) {
  size_t len, end;
  uint16_t c = class_at(s, i, n, &len);
  bool lead = !(c & (PERI__L | PERI__N | PERI__EOL));
  for (int needs_low = 1; needs_low >= 0; needs_low--) {
    if (lead && (end = cased(s, i + len, n, needs_low, han)) > i + len) return end;
    if ((end = cased(s, i, n, needs_low, han)) > i) return end;
  }
  return i;
}

INLINE size_t o200k (const unsigned char *s, size_t i, size_t n, int how, int most, bool slash,
                     bool han) {
  size_t end = cased_word(s, i, n, han);
  if (end > i) return suffix(s, end, n, how);
  if ((end = digits(s, i, n, most)) > i) return end;
  end = others(s, i, n, PERI__L | PERI__N | PERI__SPACE, true, slash);
  return end > i ? end : spaces(s, i, n, true);
}

static size_t gpt4o (const unsigned char *s, size_t i, size_t n) {
  return o200k(s, i, n, FOLD, 3, true, true);
}

static size_t gpt4o_ascii (const unsigned char *s, size_t i, size_t n) {
  return o200k(s, i, n, FOLD_ASCII, 3, true, true);
}

static size_t tekken (const unsigned char *s, size_t i, size_t n) {
  return o200k(s, i, n, NONE, 1, true, true);
}

/* ---- DeepSeek V3: the last of its three patterns ---- */

static size_t deepseek3 (const unsigned char *s, size_t i, size_t n) {
  size_t len, next, end;
  uint16_t c = class_at(s, i, n, &len);
  if (s[i] < 128 && c & (PERI__P | PERI__S)) { /* [!-/:-@[-`{-~][A-Za-z]+ */
    end = i + 1;
    while (end < n && ((s[end] | 32) >= 'a' && (s[end] | 32) <= 'z')) end++;
    if (end > i + 1) return end;
  }
  if (c & (PERI__L | PERI__M)) return run(s, i + len, n, PERI__L | PERI__M);
  if (!(c & (PERI__P | PERI__S | PERI__EOL)) && i + len < n &&
      class_at(s, i + len, n, &next) & (PERI__L | PERI__M))
    return run(s, i + len + next, n, PERI__L | PERI__M);
  size_t from = s[i] == ' ' ? i + 1 : i;
  end = run(s, from, n, PERI__P | PERI__S);
  if (end > from) {
    while (end < n && (s[end] == '\r' || s[end] == '\n')) end++;
    return end;
  }
  return c & PERI__SPACE ? spaces(s, i, n, true) : i;
}

static size_t youtu (const unsigned char *s, size_t i, size_t n) {
  return o200k(s, i, n, FOLD, 1, true, true);
}

static size_t kimi (const unsigned char *s, size_t i, size_t n) {
  size_t end = i, len;
  for (; end < n && s[end] >= 0xE2 && is_han(peri__char_at(s + end, n - end, &len));) end += len;
  return end > i ? end : o200k(s, i, n, FOLD, 3, false, false);
}

/* ---- short patterns, that are searched in what others are to cut ---- */

/* The finder of a pattern whose matches begin with a character of a set. */
#define FINDER(name, set, match)                                                           \
  static bool name(const unsigned char *s, size_t i, size_t n, size_t *memo, size_t *from, \
                   size_t *to) {                                                           \
    (void)memo;                                                                            \
    *from = run_not(s, i, n, set);                                                         \
    if (*from == n) return false;                                                          \
    *to = match;                                                                           \
    return true;                                                                           \
  }
FINDER(three_digits, PERI__N, digits(s, *from, n, 3)) /* \p{N}{1,3} */
FINDER(one_digit, PERI__N, digits(s, *from, n, 1))    /* \p{N} */
FINDER(number, PERI__N, run(s, *from, n, PERI__N))    /* \p{N}+ */

static bool is_cjk (uint32_t c) {
  return (c >= 0x4E00 && c <= 0x9FA5) || (c >= 0x3040 && c <= 0x30FF);
}

/* [一-龥぀-ゟ゠-ヿ]+ */
static bool cjk (const unsigned char *s, size_t i, size_t n, size_t *memo, size_t *from,
                 size_t *to) {
  size_t len;
  (void)memo;
  for (; i < n; i += len) { /* all of them begin with E3 to E9 */
    len = 1;
    if (s[i] >= 0xE3 && s[i] <= 0xE9 && is_cjk(peri__char_at(s + i, n - i, &len))) break;
  }
  if (i >= n) return false;
  for (*from = i; i < n && s[i] >= 0xE3 && is_cjk(peri__char_at(s + i, n - i, &len));) i += len;
  *to = i;
  return true;
}

/* ---- EXAONE MoE: words joined by single spaces ---- */

/* (?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+ from a letter on */
static size_t phrase (const unsigned char *s, size_t i, size_t n) {
  size_t len;
  for (;;) {
    size_t next = i < n && s[i] == ' ' ? i + 1 : i;
    if (next >= n || !(class_at(s, next, n, &len) & PERI__L)) return i;
    i = run(s, next + len, n, PERI__M);
  }
}

static size_t exaone (const unsigned char *s, size_t i, size_t n) {
  size_t end = suffix(s, i, n, FOLD), len, next;
  if (end > i) return end;
  uint16_t c = class_at(s, i, n, &len);
  if (c & PERI__L) return phrase(s, i, n);
  if (c & PERI__N) return i + len;
  if (!(c & PERI__EOL) && i + len < n && class_at(s, i + len, n, &next) & PERI__L)
    return phrase(s, i + len, n);
  end = others(s, i, n, PERI__L | PERI__N | PERI__SPACE, false, false);
  if (end == i) return spaces(s, i, n, true);
  return end < n && (s[end] == '\r' || s[end] == '\n' || s[end] == '/') ? end + 1 : end;
}

/* ---- patterns that a regular expression searches in quadratic time ---- */

/* \s+$ : white space before a line's end. */
static bool trailing_space (const unsigned char *s, size_t i, size_t n, size_t *memo, size_t *from,
                            size_t *to) {
  (void)memo;
  for (size_t len; i < n; i += len) {
    if (!(class_at(s, i, n, &len) & PERI__SPACE)) continue;
    size_t end = run(s, i, n, PERI__SPACE), line = i;
    for (size_t k = i + 1; end < n && k < end; k++)
      if (s[k] == '\n') line = k;
    *from = i;
    *to = end == n ? n : line;
    if (*to > i) return true;
    len = end - i;
  }
  return false;
}

/* Circled letters: symbols that have the property Alphabetic. */
static bool circled (uint32_t c) {
  return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
         (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

/* \w at i, as Oniguruma has it outside of classes */
static bool word_at (const unsigned char *s, size_t i, size_t n) {
  size_t len;
  if (i >= n) return false;
  uint32_t c = peri__char_at(s + i, n - i, &len);
  return (peri__class(c) & (PERI__L | PERI__M | PERI__ND | PERI__NL)) || c == '_' || circled(c) ||
         c == 0xB2 || c == 0xB3 || c == 0xB9 || (c >= 0xBC && c <= 0xBE) ||
         (c >= 0x203F && c <= 0x2040) || c == 0x2054 || (c >= 0xFE33 && c <= 0xFE34) ||
         (c >= 0xFE4D && c <= 0xFE4F) || c == 0xFF3F;
}

/* Behind the next k characters. */
INLINE size_t skip (const unsigned char *s, size_t i, size_t n, size_t k) {
  for (size_t len; k > 0 && i < n; k--, i += len) peri__char_at(s + i, n - i, &len);
  return i;
}

/* Runs of digits in groups of three that are counted from the run's end. memo holds the end of the
** run that i stands in once its first group is found: from there on every group has three. */
INLINE bool thousands (const unsigned char *s, size_t i, size_t n, size_t *memo, size_t *from,
                       size_t *to, unsigned set, bool boundary) {
  size_t len;
  for (; i < n; i += len) {
    if (!(class_at(s, i, n, &len) & set)) continue;
    size_t most = 3, k = 0, end = *memo;
    if (end <= i) {
      end = run(s, i, n, set);
      if (boundary && word_at(s, end, n)) {
        len = end - i;
        continue;
      }
      for (size_t at = i; at < end; at++) k += (s[at] & 0xC0) != 0x80;
      most = (k - 1) % 3 + 1;
      *memo = end;
    }
    *from = i;
    *to = skip(s, i, n, most);
    return true;
  }
  return false;
}

/* (?=(\d{3})+(?!\d)) : the empty places that thousands cuts at, but for a run's two ends. memo: the
** next of them, or the run's end. */
static bool thousands_cut (const unsigned char *s, size_t i, size_t n, size_t *memo, size_t *from,
                           size_t *to) {
  size_t len, cut = *memo;
  if (cut <= i || cut >= n || !(class_at(s, cut, n, &len) & PERI__ND)) {
    for (size_t k = 0, at = cut > i ? cut : i, end; k < 3; at = end) {
      while (at < n && !(class_at(s, at, n, &len) & PERI__ND)) at += len;
      if (at >= n) return false;
      end = run(s, at, n, PERI__ND);
      cut = at;
      for (k = 0; at < end; at++) k += (s[at] & 0xC0) != 0x80;
      cut = skip(s, cut, n, k % 3);
    }
  }
  *from = *to = cut;
  *memo = skip(s, cut, n, 3);
  return true;
}

static bool thousands_word (const unsigned char *s, size_t i, size_t n, size_t *memo, size_t *from,
                            size_t *to) {
  return thousands(s, i, n, memo, from, to, PERI__ND, true);
}

static bool thousands_digit (const unsigned char *s, size_t i, size_t n, size_t *memo, size_t *from,
                             size_t *to) {
  return thousands(s, i, n, memo, from, to, PERI__ND, false);
}

static bool thousands_number (const unsigned char *s, size_t i, size_t n, size_t *memo,
                              size_t *from, size_t *to) {
  return thousands(s, i, n, memo, from, to, PERI__N, false);
}

/* ---- the table ---- */

#define FOLDED "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPELLED "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CL100K(word, digit, other) \
  "|[^\\r\\n\\p{L}\\p{N}]?" word "+|" digit "| ?[^\\s\\p{L}" other "\\p{N}]+[\\r\\n]*|" SPACES
#define HIGH "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOW "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define LEAD "[^\\r\\n\\p{L}\\p{N}]?"
#define O200K(end, digit)                                           \
  LEAD HIGH "*" LOW "+" end "|" LEAD HIGH "+" LOW "*" end "|" digit \
            "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES
#define NOT_HAN "&&[^\\p{Han}]]"
#define K2_HIGH "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}" NOT_HAN
#define K2_LOW "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}" NOT_HAN
#define KIMI                                                                                \
  "[\\p{Han}]+|" LEAD K2_HIGH "*" K2_LOW "+" FOLDED "?|" LEAD K2_HIGH "+" K2_LOW "*" FOLDED \
  "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES
#define DEEPSEEK3(eol)                                                        \
  "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^" eol              \
  "\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[" eol "]*|\\s*[" eol \
  "]+|\\s+(?!\\S)|\\s+"

static const struct {
  const char *pattern;
  peri__known known;
} table[] = {
  { peri__gpt2_pattern, { gpt2, NULL } },
  { FOLDED CL100K("\\p{L}", "\\p{N}{1,3}", ""), { llama3, NULL } },
  { SPELLED CL100K("\\p{L}", "\\p{N}{1,3}", ""), { llama3_ascii, NULL } },
  { FOLDED CL100K("\\p{L}", "\\p{N}", ""), { qwen2, NULL } },
  { SPELLED CL100K("\\p{L}", "\\p{N}", ""), { qwen2_ascii, NULL } },
  { FOLDED CL100K("[\\p{L}\\p{M}]", "\\p{N}", "\\p{M}"), { qwen35, NULL } },
  { SPELLED CL100K("[\\p{L}\\p{M}]", "\\p{N}", "\\p{M}"), { qwen35_ascii, NULL } },
  { O200K(FOLDED "?", "\\p{N}{1,3}"), { gpt4o, NULL } },
  { O200K(SPELLED "?", "\\p{N}{1,3}"), { gpt4o_ascii, NULL } },
  { O200K("", "\\p{N}"), { tekken, NULL } },
  { O200K(FOLDED "?", "\\p{N}"), { youtu, NULL } },
  { KIMI, { kimi, NULL } }, /* the only one with intersections */
  { DEEPSEEK3("\\r\\n"), { deepseek3, NULL } },
  { DEEPSEEK3("\r\n"), { deepseek3, NULL } },
  { FOLDED "|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}"
           "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+",
    { exaone, NULL } },
  { "\\p{N}{1,3}", { NULL, three_digits } },
  { "\\p{N}", { NULL, one_digit } },
  { "\\p{N}+", { NULL, number } },
  { "[一-龥぀-ゟ゠-ヿ]+", { NULL, cjk } },
  { "\\s+$", { NULL, trailing_space } },
  { "\\d{1,3}(?=(?:\\d{3})*\\b)", { NULL, thousands_word } },
  { "\\d{1,3}(?=(?:\\d{3})*(?!\\d))", { NULL, thousands_digit } },
  { "(?=(\\d{3})+(?!\\d))", { NULL, thousands_cut } },
  { "\\p{N}{1,3}(?=(?:\\p{N}{3})*(?!\\p{N}))", { NULL, thousands_number } },
};

peri__known peri__known_pattern (const char *pattern, size_t n) {
  for (size_t i = 0; i < sizeof table / sizeof *table; i++)
    if (strlen(table[i].pattern) == n && memcmp(table[i].pattern, pattern, n) == 0)
      return table[i].known;
  return (peri__known){ NULL, NULL };
}

const char *peri__known_at (size_t i, peri__known *out) {
  if (i >= sizeof table / sizeof *table) return NULL;
  *out = table[i].known;
  return table[i].pattern;
}
