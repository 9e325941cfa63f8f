/*
** json.c - the pull parser of json.h. Iterative, so that no text can exhaust the C stack, and
** linear in the text: keys are told apart by a hash that a text cannot foresee.
*/
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#endif
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core/json_keys.h"

enum { S_VALUE, S_FIRST, S_KEY, S_FIRST_KEY, S_AFTER }; /* what may come next */

/* ---- errors ---- */

peri_status peri_json_fail (peri_json *p, size_t offset, const char *fmt, ...) {
  char what[PERI_MESSAGE_MAX - 96];
  size_t line = 1, column = 1;
  va_list args;
  va_start(args, fmt);
  vsnprintf(what, sizeof what, fmt, args);
  va_end(args);
  for (size_t i = 0; i < offset && i < p->size; i++) {
    if (p->text[i] == '\n') {
      line++;
      column = 1;
    } else if ((p->text[i] & 0xC0) != 0x80) {
      column++; /* a character, not each of its bytes */
    }
  }
  p->status = peri__fail(p->ctx, PERI_EFORMAT, "line %zu, column %zu (byte %zu): %s", line, column,
                         offset, what);
  return p->status;
}

/* "expected X, found Y" at the current position. */
static peri_status unexpected (peri_json *p, const char *expected) {
  if (p->pos >= p->size)
    return peri_json_fail(p, p->pos, "expected %s, found the end of the text", expected);
  int c = p->text[p->pos];
  if (c > 0x20 && c < 0x7F)
    return peri_json_fail(p, p->pos, "expected %s, found '%c'", expected, c);
  return peri_json_fail(p, p->pos, "expected %s, found byte 0x%02x", expected, c);
}

peri_status peri__json_no_memory (peri_json *p, size_t bytes) {
  p->status =
      peri__fail(p->ctx, PERI_ENOMEM, "no memory for %zu bytes of a JSON text's index", bytes);
  return p->status;
}

/* ---- strings ---- */

/* Length of the valid UTF-8 sequence at s (n bytes left), 0 if there is none. */
static size_t utf8_length (const unsigned char *s, size_t n) {
  size_t len = s[0] < 0x80   ? 1
               : s[0] < 0xC2 ? 0
               : s[0] < 0xE0 ? 2
               : s[0] < 0xF0 ? 3
               : s[0] < 0xF5 ? 4
                             : 0;
  if (len == 0 || len > n) return 0;
  for (size_t i = 1; i < len; i++)
    if ((s[i] & 0xC0) != 0x80) return 0;
  if (s[0] == 0xE0 && s[1] < 0xA0) return 0; /* overlong */
  if (s[0] == 0xED && s[1] > 0x9F) return 0; /* surrogate */
  if (s[0] == 0xF0 && s[1] < 0x90) return 0; /* overlong */
  if (s[0] == 0xF4 && s[1] > 0x8F) return 0; /* above U+10FFFF */
  return len;
}

size_t peri__utf8_prefix (const char *s, size_t n) {
  size_t i = 0, len;
  while (i < n && (len = utf8_length((const unsigned char *)s + i, n - i)) != 0) i += len;
  return i;
}

/* Value of four hex digits, -1 if they are not. */
static int hex4 (const unsigned char *s) {
  int v = 0;
  for (int i = 0; i < 4; i++) {
    int c = s[i];
    if (c >= '0' && c <= '9')
      v = v * 16 + c - '0';
    else if (c >= 'a' && c <= 'f')
      v = v * 16 + c - 'a' + 10;
    else if (c >= 'A' && c <= 'F')
      v = v * 16 + c - 'A' + 10;
    else
      return -1;
  }
  return v;
}

#define LOOK 65536 /* bytes of a string between two looks for an interrupt */

/* Check a string; pos is at its opening quote and goes behind the closing one. */
static peri_status scan_string (peri_json *p, bool *escapes) {
  const unsigned char *s = p->text;
  size_t start = p->pos, i = start + 1, look = start + LOOK, len;
  *escapes = false;
  for (;;) {
    if (i >= p->size) return peri_json_fail(p, start, "the string does not end");
    if (i >= look) {
      if (peri__stopped(p->ctx)) return p->status = peri__fail(p->ctx, PERI_EINTR, "interrupted");
      look += LOOK;
    }
    if (s[i] == '"') break;
    if (s[i] < 0x20)
      return peri_json_fail(p, i, "control byte 0x%02x in a string must be escaped", s[i]);
    if (s[i] != '\\') {
      if (s[i] < 0x80)
        len = 1;
      else if ((len = utf8_length(s + i, p->size - i)) == 0)
        return peri_json_fail(p, i, "byte 0x%02x is not valid UTF-8 here", s[i]);
      i += len;
      continue;
    }
    *escapes = true;
    if (i + 1 >= p->size) return peri_json_fail(p, start, "the string does not end");
    if (s[i + 1] != 'u') {
      if (s[i + 1] == 0 || strchr("\"\\/bfnrt", s[i + 1]) == NULL)
        return peri_json_fail(p, i, "unknown escape in a string");
      i += 2;
      continue;
    }
    int c = p->size - i >= 6 ? hex4(s + i + 2) : -1;
    if (c < 0) return peri_json_fail(p, i, "\\u needs four hexadecimal digits");
    if (c >= 0xDC00 && c <= 0xDFFF)
      return peri_json_fail(p, i, "second half of a surrogate pair without the first");
    if (c >= 0xD800 && c <= 0xDBFF) {
      int d = p->size - i >= 12 && s[i + 6] == '\\' && s[i + 7] == 'u' ? hex4(s + i + 8) : -1;
      if (d < 0xDC00 || d > 0xDFFF)
        return peri_json_fail(p, i, "first half of a surrogate pair without the second");
      i += 6;
    }
    i += 6;
  }
  p->pos = i + 1;
  return PERI_OK;
}

int peri__json_escape (const unsigned char **s, unsigned char out[4]) {
  const unsigned char *c = *s;
  *s = c + 2;
  switch (c[1]) {
  case 'b': out[0] = '\b'; return 1;
  case 'f': out[0] = '\f'; return 1;
  case 'n': out[0] = '\n'; return 1;
  case 'r': out[0] = '\r'; return 1;
  case 't': out[0] = '\t'; return 1;
  case 'u': break;
  default: out[0] = c[1]; return 1;
  }
  uint32_t u = (uint32_t)hex4(c + 2);
  *s = c + 6;
  if (u >= 0xD800 && u <= 0xDBFF) {
    u = 0x10000 + ((u - 0xD800) << 10) + ((uint32_t)hex4(c + 8) - 0xDC00);
    *s = c + 12;
  }
  if (u < 0x80) {
    out[0] = (unsigned char)u;
    return 1;
  }
  int n = u < 0x800 ? 2 : u < 0x10000 ? 3 : 4;
  for (int i = n - 1; i > 0; i--, u >>= 6) out[i] = (unsigned char)(0x80 | (u & 0x3F));
  out[0] = (unsigned char)((n == 2 ? 0xC0 : n == 3 ? 0xE0 : 0xF0) | u);
  return n;
}

static peri_status read_string (peri_json *p, peri_json_value *v) {
  size_t start = p->pos + 1;
  bool escapes;
  TRY(scan_string(p, &escapes));
  v->s = (const char *)p->text + start;
  v->n = p->pos - 1 - start;
  if (!escapes) return PERI_OK;
  if (p->scratch_cap < v->n) { /* decoding only shrinks */
    char *grown = peri__realloc(p->ctx, p->scratch, p->scratch_cap, v->n);
    if (grown == NULL) return peri__json_no_memory(p, v->n);
    p->scratch = grown;
    p->scratch_cap = v->n;
  }
  const unsigned char *s = p->text + start, *end = s + v->n;
  size_t n = 0;
  while (s < end) n += (size_t)peri__json_decode(&s, (unsigned char *)p->scratch + n);
  v->s = p->scratch;
  v->n = n;
  return PERI_OK;
}

size_t peri__json_unquote (char *text) {
  const unsigned char *s = (const unsigned char *)text + 1;
  size_t n = 0;
  while (*s != '"') n += (size_t)peri__json_decode(&s, (unsigned char *)text + n);
  text[n] = '\0';
  return n;
}

/* ---- values ---- */

static bool digit_at (const peri_json *p, size_t i) {
  return i < p->size && p->text[i] >= '0' && p->text[i] <= '9';
}

static peri_status read_number (peri_json *p, peri_json_value *v) {
  const unsigned char *s = p->text;
  size_t start = p->pos, i = start;
  bool negative = s[i] == '-', whole = true, fits = true, exact;
  uint64_t m = 0;
  i += negative;
  if (!digit_at(p, i)) {
    p->pos = i;
    return unexpected(p, "a digit");
  }
  if (s[i] == '0' && digit_at(p, i + 1))
    return peri_json_fail(p, i, "a number may not start with 0");
  for (; digit_at(p, i); i++) {
    uint64_t d = s[i] - '0', limit = (uint64_t)INT64_MAX + negative;
    if (m > (limit - d) / 10) fits = false;
    if (fits) m = 10 * m + d;
  }
  if (i < p->size && s[i] == '.') {
    whole = false;
    if (!digit_at(p, ++i)) {
      p->pos = i;
      return unexpected(p, "a digit after the point");
    }
    while (digit_at(p, i)) i++;
  }
  if (i < p->size && (s[i] == 'e' || s[i] == 'E')) {
    whole = false;
    i++;
    if (i < p->size && (s[i] == '+' || s[i] == '-')) i++;
    if (!digit_at(p, i)) {
      p->pos = i;
      return unexpected(p, "a digit in the exponent");
    }
    while (digit_at(p, i)) i++;
  }
  p->pos = i;
  v->type = PERI_JSON_NUM;
  if (whole && fits && !(negative && m == 0)) {
    v->type = PERI_JSON_INT;
    v->i = negative ? (int64_t)(0 - m) : (int64_t)m;
    v->f = (double)v->i;
    return PERI_OK;
  }
  if (!peri__parse_double((const char *)s + start, i - start, &v->f, &exact))
    return peri_json_fail(p, start, "number above the largest double");
  if (whole && !exact)
    return peri_json_fail(p, start, "integer beyond 64 bits that a double cannot hold exactly");
  return PERI_OK;
}

static bool word (peri_json *p, const char *w) {
  size_t n = strlen(w);
  if (p->size - p->pos < n || memcmp(p->text + p->pos, w, n) != 0) return false;
  p->pos += n;
  return true;
}

static peri_status open_level (peri_json *p, bool object) {
  if (p->depth == p->opt.max_depth)
    return peri_json_fail(p, p->pos, "nested deeper than %d levels", p->opt.max_depth);
  p->base[p->depth] = (uint32_t)p->keys.n;
  p->object[p->depth++] = object;
  p->pos++;
  p->state = object ? S_FIRST_KEY : S_FIRST;
  return PERI_OK;
}

static void close_level (peri_json *p, peri_json_value *v) {
  p->depth--;
  p->pos++;
  if (p->object[p->depth] && !p->opt.distinct_keys) peri__json_drop_keys(p, p->base[p->depth]);
  p->state = S_AFTER;
  v->type = PERI_JSON_CLOSE;
}

static peri_status read_value (peri_json *p, peri_json_value *v) {
  int c = p->pos < p->size ? p->text[p->pos] : -1;
  v->offset = p->pos;
  if (c == '{' || c == '[') {
    v->type = c == '{' ? PERI_JSON_OBJECT : PERI_JSON_ARRAY;
    return open_level(p, c == '{');
  }
  p->state = S_AFTER;
  if (c == '"') {
    v->type = PERI_JSON_STRING;
    return read_string(p, v);
  }
  if (p->opt.allow_nan || p->opt.foreign) {
    v->type = PERI_JSON_NUM;
    v->f = INFINITY;
    if (word(p, "Infinity")) return PERI_OK;
    v->f = -INFINITY;
    if (word(p, "-Infinity")) return PERI_OK;
    v->f = NAN;
    if (word(p, "NaN")) return PERI_OK;
  }
  if (c == '-' || (c >= '0' && c <= '9')) return read_number(p, v);
  v->type = PERI_JSON_NULL;
  if (word(p, "null")) return PERI_OK;
  v->type = PERI_JSON_BOOL;
  v->flag = true;
  if (word(p, "true")) return PERI_OK;
  v->flag = false;
  if (word(p, "false")) return PERI_OK;
  return unexpected(p, "a value");
}

static void skip_space (peri_json *p) {
  for (; p->pos < p->size; p->pos++) {
    int c = p->text[p->pos];
    if (c != ' ' && c != '\n' && c != '\t' && c != '\r') break;
  }
}

static peri_status read_key (peri_json *p, peri_json_value *v) {
  if (p->pos >= p->size || p->text[p->pos] != '"') return unexpected(p, "a key in quotes");
  v->offset = p->pos;
  v->type = PERI_JSON_KEY;
  TRY(read_string(p, v));
  if (!p->opt.distinct_keys) TRY(peri__json_add_key(p, (uint32_t)v->offset));
  skip_space(p);
  if (p->pos >= p->size || p->text[p->pos] != ':') return unexpected(p, "':' after the key");
  p->pos++;
  p->state = S_VALUE;
  return PERI_OK;
}

/* ---- the parser ---- */

void peri_json_open (peri_json *p, peri_ctx *ctx, const void *text, size_t size,
                     const peri_json_options *opt) {
  struct timespec now = { 0, 0 };
  memset(p, 0, sizeof *p);
  p->ctx = ctx;
  p->text = text;
  p->size = size;
  if (opt != NULL) p->opt = *opt;
  if (p->opt.max_bytes == 0) p->opt.max_bytes = PERI_JSON_BYTES;
  if (p->opt.max_bytes > INT32_MAX) p->opt.max_bytes = INT32_MAX; /* offsets are 32 bits */
  if (p->opt.max_depth <= 0) p->opt.max_depth = PERI_JSON_DEPTH;
  if (p->opt.max_depth > PERI_JSON_DEPTH_MAX) p->opt.max_depth = PERI_JSON_DEPTH_MAX;
  p->state = S_VALUE;
  if (p->opt.foreign && size >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) p->pos = 3;
  clock_gettime(CLOCK_MONOTONIC, &now);
  p->keys.seed[0] = (uint64_t)now.tv_nsec * 0x9E3779B97F4A7C15u ^ (uint64_t)now.tv_sec;
  p->keys.seed[1] = (uint64_t)(uintptr_t)p * 0xD1342543DE82EF95u ^ (uint64_t)(uintptr_t)ctx;
}

void peri__json_open_foreign (peri_json *p, peri_ctx *ctx, const void *text, size_t size) {
  const peri_json_options opt = { .foreign = true };
  peri_json_open(p, ctx, text, size, &opt);
}

peri_status peri_json_next (peri_json *p, peri_json_value *v) {
  memset(v, 0, sizeof *v);
  TRY(p->status);
  if (peri__give_up(p->ctx, ++p->steps))
    return p->status = peri__fail(p->ctx, PERI_EINTR, "interrupted");
  if (p->size > p->opt.max_bytes) {
    p->status = peri__fail(p->ctx, PERI_EFORMAT, "a text of %zu bytes, the limit is %zu", p->size,
                           p->opt.max_bytes);
    return p->status;
  }
  skip_space(p);
  v->offset = p->pos;
  int c = p->pos < p->size ? p->text[p->pos] : -1;
  if (p->state == S_AFTER && p->depth == 0) {
    if (c >= 0) return unexpected(p, "nothing behind the value");
    return PERI_OK; /* PERI_JSON_END */
  }
  bool object = p->depth > 0 && p->object[p->depth - 1];
  bool may_close = p->state == S_AFTER || p->state == S_FIRST || p->state == S_FIRST_KEY;
  if (may_close && c == (object ? '}' : ']')) {
    close_level(p, v);
    return PERI_OK;
  }
  if (p->state == S_AFTER) {
    if (c != ',') return unexpected(p, object ? "',' or '}'" : "',' or ']'");
    p->pos++;
    p->state = object ? S_KEY : S_VALUE;
    skip_space(p);
  }
  if (p->state == S_KEY || p->state == S_FIRST_KEY) return read_key(p, v);
  return read_value(p, v);
}

peri_status peri_json_expect (peri_json *p, peri_json_type type, const char *what,
                              peri_json_value *v) {
  static const char *const name[] = {
    "the end",  "null",  "a boolean", "a whole number", "a number",
    "a string", "a key", "an object", "an array",       "the end of the list"
  }; /* ORDER json type */
  TRY(peri_json_next(p, v));
  if (v->type != type)
    return peri_json_fail(p, v->offset, "%s must be %s, not %s", what, name[type], name[v->type]);
  return PERI_OK;
}

bool peri__json_is (const peri_json_value *v, const char *s) {
  return v->n == strlen(s) && memcmp(v->s, s, v->n) == 0;
}

peri_status peri__json_skip (peri_json *p, const peri_json_value *first) {
  peri_json_value v;
  if (first->type != PERI_JSON_OBJECT && first->type != PERI_JSON_ARRAY) return PERI_OK;
  for (int depth = 1; depth > 0;) {
    TRY(peri_json_next(p, &v));
    depth += v.type == PERI_JSON_OBJECT || v.type == PERI_JSON_ARRAY;
    depth -= v.type == PERI_JSON_CLOSE;
  }
  return PERI_OK;
}

void peri_json_close (peri_json *p) {
  if (p->ctx == NULL) return;
  peri__free(p->ctx, p->scratch, p->scratch_cap);
  peri__free(p->ctx, p->keys.stack, p->keys.cap * sizeof *p->keys.stack);
  peri__free(p->ctx, p->keys.table, p->keys.table_cap * sizeof *p->keys.table);
  p->ctx = NULL;
}
