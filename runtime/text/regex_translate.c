/*
** regex_translate.c - from Oniguruma's syntax to PCRE2's. The two differ where it hurts: \h, \s, \w,
** \b, options in the middle of a pattern, {n,m}+, script names, intersections of classes.
*/
#include <stdio.h>

#include "text/regex_code.h"
#include "text/unicode.h"

#define NEST_MAX PERI__REGEX_NEST

/* Oniguruma's \w; what a class of PCRE2 holds for it. Outside of a class it has six characters more:
** superscripts and fractions of Latin-1. */
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define LONE WORD "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"
#define HEX "0-9A-Fa-f"

typedef struct translator {
  peri_ctx *ctx;
  const char *p; /* the pattern */
  size_t n, i;
  peri__buffer out;
  pcre2_compile_context *how;
  size_t atom; /* in out: what a quantifier that comes now would repeat; SIZE_MAX: nothing */
  struct {
    size_t start;
    int extra; /* groups opened by options like (?i) that end with this one */
  } group[NEST_MAX];
  int depth;
} translator;

#define NOTHING SIZE_MAX

static peri_status refuse (translator *t, const char *what) {
  return peri__fail(t->ctx, PERI_EFORMAT, "regular expression \"%.*s\": %s at byte %zu",
                    t->n > 200 ? 200 : (int)t->n, t->p, what, t->i);
}

static peri_status put (translator *t, const char *s, size_t n) {
  if (!peri__buffer_put(&t->out, s, n))
    return peri__fail(t->ctx, PERI_ENOMEM, "no memory for a regular expression");
  return PERI_OK;
}

static peri_status puts_ (translator *t, const char *s) { return put(t, s, strlen(s)); }

static int peek (const translator *t, size_t ahead) {
  return t->i + ahead < t->n ? (unsigned char)t->p[t->i + ahead] : -1;
}

/* Insert "(?:" before the last atom and close it: it can be repeated again. */
static peri_status wrap (translator *t) {
  TRY(put(t, "(?:)", 4));
  char *at = t->out.data + t->atom;
  memmove(at + 3, at, t->out.size - 4 - t->atom);
  memcpy(at, "(?:", 3);
  t->out.data[t->out.size - 1] = ')';
  return PERI_OK;
}

static peri_status put_code (translator *t, uint32_t c) {
  char text[16];
  if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return refuse(t, "not a character's code");
  snprintf(text, sizeof text, "\\x{%X}", (unsigned)c);
  return puts_(t, text);
}

static int hex_value (int c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                : -1;
}

/* \xHH \x{H...} \uHHHH; i stands behind the letter. */
static peri_status hex_escape (translator *t, int letter) {
  uint32_t c = 0;
  int digits = 0, most = letter == 'u' ? 4 : 2;
  bool brace = letter == 'x' && peek(t, 0) == '{';
  if (brace) {
    t->i++;
    most = 8;
  }
  for (int h; digits < most && (h = hex_value(peek(t, 0))) >= 0; digits++, t->i++)
    c = c << 4 | (uint32_t)h;
  if (digits == 0 || (letter == 'u' && digits < 4) || (brace && peek(t, 0) != '}'))
    return refuse(t, "malformed hexadecimal escape");
  if (brace) t->i++;
  if (!brace && letter == 'x' && c > 0x7F) return refuse(t, "\\x escape of a single byte");
  return put_code(t, c);
}

/* ---- properties ---- */

static const char *const long_name[][2] = { { "letter", "L" },
                                            { "uppercaseletter", "Lu" },
                                            { "lowercaseletter", "Ll" },
                                            { "titlecaseletter", "Lt" },
                                            { "modifierletter", "Lm" },
                                            { "otherletter", "Lo" },
                                            { "mark", "M" },
                                            { "nonspacingmark", "Mn" },
                                            { "spacingmark", "Mc" },
                                            { "enclosingmark", "Me" },
                                            { "number", "N" },
                                            { "decimalnumber", "Nd" },
                                            { "letternumber", "Nl" },
                                            { "othernumber", "No" },
                                            { "punctuation", "P" },
                                            { "connectorpunctuation", "Pc" },
                                            { "dashpunctuation", "Pd" },
                                            { "openpunctuation", "Ps" },
                                            { "closepunctuation", "Pe" },
                                            { "initialpunctuation", "Pi" },
                                            { "finalpunctuation", "Pf" },
                                            { "otherpunctuation", "Po" },
                                            { "symbol", "S" },
                                            { "mathsymbol", "Sm" },
                                            { "currencysymbol", "Sc" },
                                            { "modifiersymbol", "Sk" },
                                            { "othersymbol", "So" },
                                            { "separator", "Z" },
                                            { "spaceseparator", "Zs" },
                                            { "lineseparator", "Zl" },
                                            { "paragraphseparator", "Zp" },
                                            { "other", "C" },
                                            { "control", "Cc" },
                                            { "format", "Cf" },
                                            { "privateuse", "Co" },
                                            { "unassigned", "Cn" },
                                            { "alpha", "Alphabetic" },
                                            { "space", "White_Space" },
                                            { "upper", "Uppercase" },
                                            { "lower", "Lowercase" },
                                            { "digit", "Nd" },
                                            { "cntrl", "Cc" } };

/* Does PCRE2 know this property? */
static peri_status knows (const translator *t, const char *property, bool *yes) {
  int code = 0;
  PCRE2_SIZE at;
  pcre2_code *c =
      pcre2_compile((PCRE2_SPTR)property, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &at, t->how);
  *yes = c != NULL;
  if (c == NULL && code == PCRE2_ERROR_HEAP_FAILED)
    return peri__fail(t->ctx, PERI_ENOMEM, "no memory for a regular expression");
  pcre2_code_free(c);
  return PERI_OK;
}

/* \p{Name}, \p{^Name}, \P{Name}; i stands behind the letter. */
static peri_status property (translator *t, int letter) {
  char name[64], text[96];
  size_t n = 0;
  bool negated = letter == 'P', yes;
  if (peek(t, 0) != '{') return refuse(t, "\\p without {name}");
  t->i++;
  if (peek(t, 0) == '^') {
    negated = !negated;
    t->i++;
  }
  for (int c; (c = peek(t, 0)) != '}'; t->i++) {
    if (c == ' ' || c == '-' || c == '_') continue;
    if (n + 1 >= sizeof name || !((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')))
      return refuse(t, "unknown property");
    name[n++] = (char)(c <= 'Z' ? c + 32 : c);
  }
  t->i++;
  name[n] = '\0';
  if (n == 0) return refuse(t, "unknown property");
  const char *known = name;
  for (size_t k = 0; k < sizeof long_name / sizeof *long_name; k++)
    if (strcmp(name, long_name[k][0]) == 0) known = long_name[k][1];
  if (known == name && n > 2) { /* a script: PCRE2's \p{Han} means its script extensions */
    snprintf(text, sizeof text, "\\p{sc:%s}", name);
    TRY(knows(t, text, &yes));
    if (yes) {
      text[1] = negated ? 'P' : 'p';
      return puts_(t, text);
    }
  }
  snprintf(text, sizeof text, "\\p{%s}", known);
  TRY(knows(t, text, &yes));
  if (!yes) return refuse(t, "unknown property");
  text[1] = negated ? 'P' : 'p';
  return puts_(t, text);
}

/* ---- escapes ---- */

static bool is_alnum (int c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Escapes that mean the same in and outside a class. *done false: not one of them. */
static peri_status common_escape (translator *t, int e, bool *done) {
  char same[2] = { '\\', (char)e };
  *done = true;
  switch (e) {
  case 'd':
  case 'D':
  case 'n':
  case 'r':
  case 't':
  case 'f':
  case 'a':
  case 'e': return put(t, same, 2);
  case 's': return puts_(t, "\\p{White_Space}");
  case 'S': return puts_(t, "\\P{White_Space}");
  case 'v': return puts_(t, "\\x0B");
  case 'p':
  case 'P': return property(t, e);
  case 'x':
  case 'u': return hex_escape(t, e);
  case '0': {
    uint32_t c = 0;
    for (int k = 0; k < 2 && peek(t, 0) >= '0' && peek(t, 0) <= '7'; k++, t->i++)
      c = c * 8 + (uint32_t)(t->p[t->i] - '0');
    return put_code(t, c);
  }
  default: break;
  }
  if (e < 0x80 && !is_alnum(e)) return put(t, same, 2);
  if (e >= 0x80 || strchr("ijlmoqEFIJLQTUV", e) != NULL) { /* literal */
    TRY(put(t, same + 1, 1));
    for (; e >= 0x80 && peek(t, 0) >= 0x80 && peek(t, 0) < 0xC0; t->i++)
      TRY(put(t, t->p + t->i, 1));
    return PERI_OK;
  }
  *done = false;
  return PERI_OK;
}

static peri_status outer_escape (translator *t) {
  t->i++; /* the backslash */
  int e = peek(t, 0);
  bool done;
  if (e < 0) return refuse(t, "the pattern ends in a backslash");
  t->i++;
  t->atom = t->out.size;
  TRY(common_escape(t, e, &done));
  if (done) return PERI_OK;
  char same[2] = { '\\', (char)e };
  switch (e) {
  case 'w': return puts_(t, "[" LONE "]");
  case 'W': return puts_(t, "[^" LONE "]");
  case 'h': return puts_(t, "[" HEX "]");
  case 'H': return puts_(t, "[^" HEX "]");
  case 'b': return puts_(t, "(?:(?<=[" LONE "])(?![" LONE "])|(?<![" LONE "])(?=[" LONE "]))");
  case 'B': return puts_(t, "(?:(?<=[" LONE "])(?=[" LONE "])|(?<![" LONE "])(?![" LONE "]))");
  case 'O': return puts_(t, "(?s:.)");
  case 'A':
  case 'z':
  case 'Z':
  case 'G':
  case 'R':
  case 'X':
  case 'N':
  case 'K': return put(t, same, 2);
  default: break;
  }
  if (e >= '1' && e <= '9' && !(peek(t, 0) >= '0' && peek(t, 0) <= '9')) return put(t, same, 2);
  if (e == 'k' && peek(t, 0) == '<') return put(t, same, 2);
  t->i--;
  return refuse(t, "unknown or unsupported escape");
}

/* ---- classes ---- */

static peri_status posix_class (translator *t) {
  static const char *const name[][2] = { { "alpha", "\\p{Alphabetic}" },
                                         { "alnum", "\\p{Alphabetic}\\p{Nd}" },
                                         { "digit", "\\p{Nd}" },
                                         { "punct", "\\p{P}\\p{S}" },
                                         { "space", "\\p{White_Space}" },
                                         { "upper", "\\p{Uppercase}" },
                                         { "lower", "\\p{Lowercase}" },
                                         { "xdigit", HEX },
                                         { "word", WORD },
                                         { "cntrl", "\\p{Cc}" },
                                         { "blank", "\\p{Zs}\\t" },
                                         { "ascii", "\\x00-\\x7F" } };
  for (size_t k = 0; k < sizeof name / sizeof *name; k++) {
    size_t n = strlen(name[k][0]);
    if (t->n - t->i >= n + 4 && memcmp(t->p + t->i + 2, name[k][0], n) == 0 &&
        memcmp(t->p + t->i + 2 + n, ":]", 2) == 0) {
      t->i += n + 4;
      return puts_(t, name[k][1]);
    }
  }
  return refuse(t, "unknown or negated POSIX class");
}

static peri_status class_escape (translator *t) {
  t->i++;
  int e = peek(t, 0);
  bool done;
  if (e < 0) return refuse(t, "a class does not end");
  t->i++;
  TRY(common_escape(t, e, &done));
  if (done) return PERI_OK;
  if (e == 'b') return puts_(t, "\\x08");
  if (e == 'w') return puts_(t, WORD);
  if (e == 'h') return puts_(t, HEX);
  t->i--;
  return refuse(t, "unknown or unsupported escape in a class");
}

static peri_status char_class (translator *t) {
  t->atom = t->out.size;
  TRY(put(t, "[", 1));
  t->i++;
  if (peek(t, 0) == '^') {
    TRY(put(t, "^", 1));
    t->i++;
  }
  for (bool first = true;; first = false) {
    int c = peek(t, 0);
    if (c < 0) return refuse(t, "a class does not end");
    if (c == ']' && !first) break;
    if (c == '&' && peek(t, 1) == '&')
      return refuse(t, "intersection of classes (&&) is not supported");
    if (c == '[') {
      if (peek(t, 1) != ':') return refuse(t, "a class within a class is not supported");
      TRY(posix_class(t));
    } else if (c == '\\') {
      TRY(class_escape(t));
    } else {
      if (c == ']') TRY(put(t, "\\", 1));
      TRY(put(t, t->p + t->i++, 1));
    }
  }
  t->i++;
  return put(t, "]", 1);
}

/* ---- groups ---- */

static peri_status push_group (translator *t) {
  if (t->depth + 1 >= NEST_MAX) return refuse(t, "groups nest too deep");
  t->group[++t->depth].start = t->out.size;
  t->group[t->depth].extra = 0;
  t->atom = NOTHING;
  return PERI_OK;
}

/* (?i) (?i:...) (?m-i:...); i stands behind "(?". m is Oniguruma's dot that matches everything. */
static peri_status option_group (translator *t) {
  char text[16] = "(?";
  size_t n = 2;
  for (int c; (c = peek(t, 0)) == 'i' || c == 'm' || c == '-'; t->i++) {
    if (n > 8) return refuse(t, "unsupported group");
    text[n++] = (char)(c == 'm' ? 's' : c);
  }
  int end = peek(t, 0);
  if (end != ':' && end != ')') return refuse(t, "unsupported group");
  t->i++;
  text[n++] = ':';
  if (end == ':')
    TRY(push_group(t));
  else
    t->group[t->depth].extra++; /* up to the end of the group that it stands in */
  t->atom = NOTHING;
  return put(t, text, n);
}

static peri_status open_group (translator *t) {
  static const char *const plain[] = { "(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!" };
  if (peek(t, 1) == '*') return refuse(t, "(* is not supported");
  if (peek(t, 1) != '?') {
    TRY(push_group(t));
    t->i++;
    return put(t, "(", 1);
  }
  for (size_t k = 0; k < sizeof plain / sizeof *plain; k++) {
    size_t n = strlen(plain[k]);
    if (t->n - t->i < n || memcmp(t->p + t->i, plain[k], n) != 0) continue;
    TRY(push_group(t));
    t->i += n;
    return put(t, plain[k], n);
  }
  if (peek(t, 2) == '#') { /* a comment */
    while (peek(t, 0) >= 0 && peek(t, 0) != ')') t->i++;
    if (peek(t, 0) < 0) return refuse(t, "a comment does not end");
    t->i++;
    return PERI_OK;
  }
  if (peek(t, 2) == '<') {
    TRY(push_group(t));
    size_t from = t->i;
    while (peek(t, 0) >= 0 && peek(t, 0) != '>') t->i++;
    if (peek(t, 0) < 0) return refuse(t, "a group's name does not end");
    t->i++;
    return put(t, t->p + from, t->i - from);
  }
  t->i += 2;
  return option_group(t);
}

static peri_status close_group (translator *t) {
  if (t->depth == 0) return refuse(t, "')' without '('");
  for (int k = 0; k <= t->group[t->depth].extra; k++) TRY(put(t, ")", 1));
  t->atom = t->group[t->depth--].start;
  t->i++;
  return PERI_OK;
}

/* ---- quantifiers ---- */

/* {n} {n,} {n,m} {,m} at i: its length, and its text as PCRE2 wants it. 0: a literal brace. */
static size_t interval (const translator *t, char text[32], bool *exact) {
  size_t i = t->i + 1;
  unsigned v[2] = { 0, 0 };
  int digits[2] = { 0, 0 };
  bool comma = false;
  for (; i < t->n && t->p[i] != '}'; i++) {
    if (t->p[i] == ',' && !comma) {
      comma = true;
    } else if (t->p[i] >= '0' && t->p[i] <= '9' && digits[comma] < 5) {
      v[comma] = v[comma] * 10 + (unsigned)(t->p[i] - '0');
      digits[comma]++;
    } else {
      return 0;
    }
  }
  if (i >= t->n || (digits[0] == 0 && digits[1] == 0)) return 0;
  *exact = !comma;
  if (!comma)
    snprintf(text, 32, "{%u}", v[0]);
  else if (digits[1] == 0)
    snprintf(text, 32, "{%u,}", v[0]);
  else
    snprintf(text, 32, "{%u,%u}", v[0], v[1]);
  return i + 1 - t->i;
}

static peri_status quantifier (translator *t) {
  char text[32] = { t->p[t->i] };
  size_t length = 1;
  bool exact = false, braces = text[0] == '{';
  if (braces && (length = interval(t, text, &exact)) == 0) {
    t->atom = t->out.size;
    t->i++;
    return put(t, "\\{", 2);
  }
  if (t->atom == NOTHING) return refuse(t, "nothing to repeat");
  t->i += length;
  TRY(puts_(t, text));
  int next = peek(t, 0);
  if (next == '?' && !exact) { /* lazy; {n}? is an option, not lazy */
    TRY(put(t, "?", 1));
    t->i++;
  } else if (next == '+' && !braces) { /* possessive; {n,m}+ repeats the interval */
    TRY(put(t, "+", 1));
    t->i++;
  }
  next = peek(t, 0);
  if (next == '*' || next == '+' || next == '?' || next == '{') return wrap(t);
  t->atom = NOTHING;
  return PERI_OK;
}

/* ---- the whole pattern ---- */

static peri_status translate (translator *t) {
  t->atom = NOTHING;
  while (t->i < t->n) {
    int c = peek(t, 0);
    switch (c) {
    case '\\': TRY(outer_escape(t)); break;
    case '[': TRY(char_class(t)); break;
    case '(': TRY(open_group(t)); break;
    case ')': TRY(close_group(t)); break;
    case '*':
    case '+':
    case '?':
    case '{': TRY(quantifier(t)); break;
    case '|':
      TRY(put(t, "|", 1));
      t->i++;
      t->atom = NOTHING;
      break;
    case 0: TRY(refuse(t, "a zero byte")); break;
    default: {
      size_t n = 1;
      while (c >= 0x80 && (peek(t, n) & 0xC0) == 0x80 && peek(t, n) > 0) n++;
      t->atom = t->out.size;
      TRY(put(t, t->p + t->i, n));
      t->i += n;
    }
    }
  }
  if (t->depth > 0) return refuse(t, "a group does not end");
  for (int k = 0; k < t->group[0].extra; k++) TRY(put(t, ")", 1));
  return PERI_OK;
}

peri_status peri__regex_translate (peri_ctx *ctx, pcre2_compile_context *how, const char *pattern,
                                   size_t n, peri__buffer *out) {
  translator t = { .ctx = ctx, .how = how, .p = pattern, .n = n, .out = *out };
  peri_status s = translate(&t);
  *out = t.out;
  return s;
}
