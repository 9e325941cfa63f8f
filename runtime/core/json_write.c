/*
** json_write.c - the writer of json.h: correct JSON whatever is put, in the order it is put. It
** checks nesting and UTF-8, not that keys are distinct: its callers know theirs.
*/
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/json.h"

static peri_status fail (peri_json_writer *w, peri_status s, const char *what) {
  w->status = peri__fail(w->ctx, s, "%s", what);
  return s;
}

static void add (peri_json_writer *w, const char *s, size_t n) {
  if (w->status != PERI_OK) return;
  if (n >= w->cap - w->size) { /* one byte stays for the terminator */
    size_t need = w->size + n + 1, cap = w->cap < 256 ? 256 : w->cap;
    while (cap < need) cap = cap > SIZE_MAX / 2 ? need : 2 * cap;
    char *text = need < n ? NULL : peri__realloc(w->ctx, w->text, w->cap, cap);
    if (text == NULL) {
      fail(w, PERI_ENOMEM, "no memory for a JSON text");
      return;
    }
    w->text = text;
    w->cap = cap;
  }
  memcpy(w->text + w->size, s, n);
  w->size += n;
}

static void line (peri_json_writer *w) {
  static const char spaces[] = "                ";
  if (w->indent == 0) return;
  add(w, "\n", 1);
  for (int64_t n = (int64_t)w->indent * w->depth; n > 0; n -= 16)
    add(w, spaces, n < 16 ? (size_t)n : 16);
}

/* Punctuation before a value; false when no value may stand here. */
static bool before_value (peri_json_writer *w) {
  if (w->status != PERI_OK) return false;
  if (peri__give_up(w->ctx, ++w->steps << 4)) { /* a number takes a microsecond */
    fail(w, PERI_EINTR, "interrupted");
    return false;
  }
  if (w->done || (w->depth > 0 && w->object[w->depth - 1] && !w->after_key)) {
    fail(w, PERI_EINVAL, w->done ? "a second value behind the first" : "a value without a key");
    return false;
  }
  if (w->depth > 0 && !w->after_key) {
    if (w->comma) add(w, ",", 1);
    line(w);
  }
  w->after_key = false;
  w->comma = true;
  w->done = w->depth == 0;
  return true;
}

void peri_json_begin (peri_json_writer *w, peri_ctx *ctx, int indent, peri_json_nan nan) {
  memset(w, 0, sizeof *w);
  w->ctx = ctx;
  w->indent = indent < 0 ? 0 : indent > 16 ? 16 : indent;
  w->nan = nan;
}

static void open_level (peri_json_writer *w, bool object) {
  if (!before_value(w)) return;
  if (w->depth == PERI_JSON_DEPTH_MAX) {
    fail(w, PERI_EINVAL, "nested deeper than 256 levels");
    return;
  }
  w->object[w->depth++] = object;
  w->comma = w->done = false;
  add(w, object ? "{" : "[", 1);
}

void peri_json_put_object (peri_json_writer *w) { open_level(w, true); }

void peri_json_put_array (peri_json_writer *w) { open_level(w, false); }

void peri_json_put_close (peri_json_writer *w) {
  if (w->status != PERI_OK) return;
  if (w->depth == 0 || w->after_key) {
    fail(w, PERI_EINVAL, w->depth == 0 ? "nothing is open" : "a key without a value");
    return;
  }
  bool filled = w->comma;
  w->depth--;
  if (filled) line(w);
  add(w, w->object[w->depth] ? "}" : "]", 1);
  w->comma = true;
  w->done = w->depth == 0;
}

static void put_quoted (peri_json_writer *w, const char *s, size_t n) {
  size_t valid = peri__utf8_prefix(s, n), from = 0;
  if (valid != n) {
    w->status = peri__fail(w->ctx, PERI_EINVAL,
                           "a string is not valid UTF-8 at its byte %zu of %zu", valid, n);
    return;
  }
  add(w, "\"", 1);
  for (size_t i = 0; i < n; i++) {
    if (i > 0 && peri__give_up(w->ctx, (int64_t)i)) {
      fail(w, PERI_EINTR, "interrupted");
      return;
    }
    unsigned char c = (unsigned char)s[i];
    if (c >= 0x20 && c != '"' && c != '\\') continue;
    add(w, s + from, i - from);
    from = i + 1;
    const char *shorts =
        c == 0 ? NULL : strchr("\"\"\\\\\bb\ff\nn\rr\tt", c); /* byte, its letter */
    char text[8] = { '\\', shorts == NULL ? 'u' : shorts[1], '0', '0' };
    text[4] = "0123456789abcdef"[c >> 4];
    text[5] = "0123456789abcdef"[c & 15];
    add(w, text, shorts == NULL ? 6 : 2);
  }
  add(w, s + from, n - from);
  add(w, "\"", 1);
}

void peri_json_put_key (peri_json_writer *w, const char *s, size_t n) {
  if (w->status != PERI_OK) return;
  if (w->depth == 0 || !w->object[w->depth - 1] || w->after_key) {
    fail(w, PERI_EINVAL, "a key outside of an object");
    return;
  }
  if (w->comma) add(w, ",", 1);
  line(w);
  put_quoted(w, s, n);
  add(w, ": ", w->indent == 0 ? 1 : 2);
  w->after_key = true;
}

void peri_json_put_string (peri_json_writer *w, const char *s, size_t n) {
  if (before_value(w)) put_quoted(w, s, n);
}

void peri_json_put_int (peri_json_writer *w, int64_t i) {
  char text[24];
  if (before_value(w)) add(w, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)i));
}

void peri_json_put_num (peri_json_writer *w, double f) {
  char text[PERI_DOUBLE_TEXT];
  if (!before_value(w)) return;
  if (isfinite(f)) {
    add(w, text, peri__format_double(f, text));
  } else if (w->nan == PERI_JSON_NAN_ERROR) {
    fail(w, PERI_EINVAL, isnan(f) ? "JSON has no NaN" : "JSON has no infinity");
  } else {
    const char *s = w->nan == PERI_JSON_NAN_NULL ? "null"
                    : isnan(f)                   ? "NaN"
                    : f > 0                      ? "Infinity"
                                                 : "-Infinity";
    add(w, s, strlen(s));
  }
}

void peri_json_put_bool (peri_json_writer *w, bool b) {
  if (before_value(w)) add(w, b ? "true" : "false", b ? 4 : 5);
}

void peri_json_put_null (peri_json_writer *w) {
  if (before_value(w)) add(w, "null", 4);
}

peri_status peri_json_finish (peri_json_writer *w) {
  if (w->status == PERI_OK && !w->done) fail(w, PERI_EINVAL, "an unfinished JSON text");
  add(w, "", 0);
  if (w->status == PERI_OK) w->text[w->size] = '\0';
  return w->status;
}

void peri_json_drop (peri_json_writer *w) {
  if (w->ctx != NULL) peri__free(w->ctx, w->text, w->cap);
  w->text = NULL;
  w->size = w->cap = 0;
}
