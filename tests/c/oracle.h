/*
** oracle.h - a second, slow and simple opinion on JSON texts and safetensors files, and the checks
** that compare the runtime with it. Everything is static, so that test programs and fuzzers include
** it alike. A check returns NULL, or what disagrees.
*/
#ifndef oracle_h
#define oracle_h

#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"

/* ---- JSON: recursive descent to a digest of all values ---- */

typedef struct oracle {
  const unsigned char *s;
  size_t n, i;
  int depth, max_depth;
  bool ok;
  uint64_t digest;     /* FNV-1a of events and values */
  unsigned char *text; /* the last string, decoded; n bytes of room */
  size_t length;
} oracle;

static inline void digest (uint64_t *d, const void *p, size_t n) {
  for (size_t i = 0; i < n; i++) *d = (*d ^ ((const unsigned char *)p)[i]) * 0x100000001B3u;
}

static inline void oracle_event (oracle *o, char c, const void *p, size_t n) {
  digest(&o->digest, &c, 1);
  digest(&o->digest, &n, sizeof n);
  digest(&o->digest, p, n);
}

static inline int oracle_peek (oracle *o) {
  while (o->i < o->n && o->s[o->i] != 0 && strchr(" \t\r\n", o->s[o->i])) o->i++;
  return o->i < o->n ? o->s[o->i] : -1;
}

static inline int oracle_hex (oracle *o) {
  char t[5] = { 0 };
  if (o->n - o->i < 4) return -1;
  memcpy(t, o->s + o->i, 4);
  if (strspn(t, "0123456789abcdefABCDEF") != 4) return -1;
  o->i += 4;
  return (int)strtol(t, NULL, 16);
}

static inline void oracle_put (oracle *o, uint32_t c) {
  unsigned char *t = o->text + o->length;
  if (c < 0x80)
    *t = (unsigned char)c, o->length += 1;
  else if (c < 0x800)
    t[0] = (unsigned char)(0xC0 | c >> 6), t[1] = (unsigned char)(0x80 | (c & 63)), o->length += 2;
  else if (c < 0x10000) {
    t[0] = (unsigned char)(0xE0 | c >> 12);
    t[1] = (unsigned char)(0x80 | (c >> 6 & 63));
    t[2] = (unsigned char)(0x80 | (c & 63));
    o->length += 3;
  } else {
    t[0] = (unsigned char)(0xF0 | c >> 18);
    t[1] = (unsigned char)(0x80 | (c >> 12 & 63));
    t[2] = (unsigned char)(0x80 | (c >> 6 & 63));
    t[3] = (unsigned char)(0x80 | (c & 63));
    o->length += 4;
  }
}

/* One code point of raw UTF-8, decoded by value and encoded again: equal bytes are valid. */
static inline bool oracle_utf8 (oracle *o) {
  const unsigned char *s = o->s + o->i;
  size_t len = s[0] < 0x80   ? 1
               : s[0] < 0xC0 ? 0
               : s[0] < 0xE0 ? 2
               : s[0] < 0xF0 ? 3
               : s[0] < 0xF8 ? 4
                             : 0;
  if (len == 0 || len > o->n - o->i) return false;
  uint32_t c = len == 1 ? s[0] : s[0] & (0x7Fu >> len);
  for (size_t k = 1; k < len; k++) {
    if (s[k] < 0x80 || s[k] > 0xBF) return false;
    c = c << 6 | (s[k] & 63);
  }
  if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return false;
  size_t at = o->length;
  oracle_put(o, c);
  o->i += len;
  return o->length - at == len;
}

static inline bool oracle_string (oracle *o) {
  static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
  o->length = 0;
  for (o->i++;;) {
    if (o->i >= o->n || o->s[o->i] < 0x20) return false;
    int c = o->s[o->i];
    if (c == '"') return o->i++, true;
    if (c != '\\') {
      if (!oracle_utf8(o)) return false;
      continue;
    }
    if (++o->i >= o->n) return false;
    c = o->s[o->i++];
    const char *simple = c == 0 ? NULL : strchr(from, c);
    if (simple != NULL) {
      oracle_put(o, (unsigned char)to[simple - from]);
      continue;
    }
    int u = c == 'u' ? oracle_hex(o) : -1;
    if (u < 0 || (u >= 0xDC00 && u < 0xE000)) return false;
    if (u >= 0xD800 && u < 0xDC00) {
      if (o->n - o->i < 2 || o->s[o->i] != '\\' || o->s[o->i + 1] != 'u') return false;
      o->i += 2;
      int low = oracle_hex(o);
      if (low < 0xDC00 || low >= 0xE000) return false;
      u = 0x10000 + (u - 0xD800) * 0x400 + (low - 0xDC00);
    }
    oracle_put(o, (uint32_t)u);
  }
}

static inline size_t oracle_digits (oracle *o) {
  size_t from = o->i;
  while (o->i < o->n && o->s[o->i] >= '0' && o->s[o->i] <= '9') o->i++;
  return o->i - from;
}

static inline bool oracle_number (oracle *o) {
  size_t from = o->i, n;
  bool whole = true;
  o->i += o->s[o->i] == '-';
  size_t first = o->i;
  if ((n = oracle_digits(o)) == 0 || (n > 1 && o->s[first] == '0')) return false;
  if (o->i < o->n && o->s[o->i] == '.') {
    whole = false;
    o->i++;
    if (oracle_digits(o) == 0) return false;
  }
  if (o->i < o->n && (o->s[o->i] | 32) == 'e') {
    whole = false;
    o->i++;
    if (o->i < o->n && (o->s[o->i] == '+' || o->s[o->i] == '-')) o->i++;
    if (oracle_digits(o) == 0) return false;
  }
  n = o->i - from;
  char *text = malloc(n + 1), *back = NULL;
  memcpy(text, o->s + from, n);
  text[n] = '\0';
  double f = strtod(text, NULL);
  long long i = strtoll(text, NULL, 10);
  char as_int[32];
  snprintf(as_int, sizeof as_int, "%lld", i);
  bool good = true;
  if (whole && strcmp(as_int, text) == 0) {
    oracle_event(o, 'i', &i, sizeof i);
  } else {
    good = f <= DBL_MAX && f >= -DBL_MAX;
    if (good && whole) { /* exact when all of its digits come back */
      back = malloc(400);
      snprintf(back, 400, "%.0f", f);
      good = strcmp(back, text) == 0;
    }
    oracle_event(o, 'd', &f, sizeof f);
  }
  free(back);
  free(text);
  return good;
}

static inline bool oracle_value (oracle *o);

static inline bool oracle_list (oracle *o, bool object) {
  uint64_t *seen = NULL, n = 0; /* digests of the keys; a clash of 64 bits will not happen here */
  bool good = false;
  if (++o->depth > o->max_depth) return false;
  oracle_event(o, object ? '{' : '[', NULL, 0);
  o->i++;
  if (oracle_peek(o) == (object ? '}' : ']')) good = true;
  while (!good) {
    if (object) {
      if (oracle_peek(o) != '"' || !oracle_string(o)) break;
      uint64_t d = 0xCBF29CE484222325u, k = 0;
      digest(&d, o->text, o->length);
      while (k < n && seen[k] != d) k++;
      if (k < n) break;
      seen = realloc(seen, (n + 1) * sizeof *seen);
      seen[n++] = d;
      oracle_event(o, 'k', o->text, o->length);
      if (oracle_peek(o) != ':') break;
      o->i++;
    }
    if (!oracle_value(o)) break;
    int c = oracle_peek(o);
    if (c == (object ? '}' : ']'))
      good = true;
    else if (c != ',')
      break;
    else
      o->i++;
  }
  free(seen);
  o->i++;
  o->depth--;
  oracle_event(o, ')', NULL, 0);
  return good;
}

static inline bool oracle_value (oracle *o) {
  static const char *const words[] = { "null", "true", "false" };
  int c = oracle_peek(o);
  if (c == '{' || c == '[') return oracle_list(o, c == '{');
  if (c == '"') {
    if (!oracle_string(o)) return false;
    oracle_event(o, 's', o->text, o->length);
    return true;
  }
  if (c == '-' || (c >= '0' && c <= '9')) return oracle_number(o);
  for (int k = 0; k < 3; k++) {
    size_t n = strlen(words[k]);
    if (o->n - o->i < n || memcmp(o->s + o->i, words[k], n) != 0) continue;
    o->i += n;
    oracle_event(o, words[k][0], NULL, 0);
    return true;
  }
  return false;
}

static inline bool oracle_json (const unsigned char *s, size_t n, int max_depth, uint64_t *out) {
  oracle o = { .s = s, .n = n, .max_depth = max_depth, .digest = 1, .text = malloc(n + 8) };
  bool good = oracle_value(&o) && oracle_peek(&o) < 0;
  free(o.text);
  *out = o.digest;
  return good;
}

/* The runtime's reading of a text, to the same digest; written again by w unless NULL. */
static inline peri_status digest_json (peri_ctx *ctx, const void *s, size_t n, uint64_t *out,
                                       peri_json_writer *w) {
  peri_json p;
  peri_json_value v;
  peri_status status;
  oracle o = { .digest = 1 };
  peri_json_open(&p, ctx, s, n, NULL);
  while ((status = peri_json_next(&p, &v)) == PERI_OK && v.type != PERI_JSON_END) {
    switch (v.type) {
    case PERI_JSON_NULL: oracle_event(&o, 'n', NULL, 0); break;
    case PERI_JSON_BOOL: oracle_event(&o, v.flag ? 't' : 'f', NULL, 0); break;
    case PERI_JSON_INT: oracle_event(&o, 'i', &v.i, sizeof v.i); break;
    case PERI_JSON_NUM: oracle_event(&o, 'd', &v.f, sizeof v.f); break;
    case PERI_JSON_STRING: oracle_event(&o, 's', v.s, v.n); break;
    case PERI_JSON_KEY: oracle_event(&o, 'k', v.s, v.n); break;
    case PERI_JSON_OBJECT: oracle_event(&o, '{', NULL, 0); break;
    case PERI_JSON_ARRAY: oracle_event(&o, '[', NULL, 0); break;
    default: oracle_event(&o, ')', NULL, 0); break;
    }
    if (w == NULL) continue;
    switch (v.type) {
    case PERI_JSON_NULL: peri_json_put_null(w); break;
    case PERI_JSON_BOOL: peri_json_put_bool(w, v.flag); break;
    case PERI_JSON_INT: peri_json_put_int(w, v.i); break;
    case PERI_JSON_NUM: peri_json_put_num(w, v.f); break;
    case PERI_JSON_STRING: peri_json_put_string(w, v.s, v.n); break;
    case PERI_JSON_KEY: peri_json_put_key(w, v.s, v.n); break;
    case PERI_JSON_OBJECT: peri_json_put_object(w); break;
    case PERI_JSON_ARRAY: peri_json_put_array(w); break;
    default: peri_json_put_close(w); break;
    }
  }
  peri_json_close(&p);
  *out = o.digest;
  return status;
}

/* Refused by both, or read alike and the same again after writing. accepted may be NULL. */
static inline const char *check_json (peri_ctx *ctx, const void *s, size_t n, bool *accepted) {
  uint64_t ours, theirs, again;
  peri_json_writer w;
  const char *bad = NULL;
  bool good = oracle_json(s, n, PERI_JSON_DEPTH, &theirs);
  peri_json_begin(&w, ctx, (int)(n % 3), PERI_JSON_NAN_ERROR);
  peri_status status = digest_json(ctx, s, n, &ours, &w);
  if (accepted != NULL) *accepted = good;
  if ((status == PERI_OK) != good)
    bad = good ? "refused a good text" : "accepted a bad text";
  else if (status != PERI_OK &&
           (status != PERI_EFORMAT || strstr(peri_message(ctx), "byte") == NULL))
    bad = "refused without a place";
  else if (good && ours != theirs)
    bad = "read other values";
  else if (good && (peri_json_finish(&w) != PERI_OK ||
                    digest_json(ctx, w.text, w.size, &again, NULL) != PERI_OK || again != ours))
    bad = "does not read back what it writes";
  peri_json_drop(&w);
  return bad;
}

/* ---- safetensors ---- */

__extension__ typedef unsigned __int128 u128;

typedef struct oracle_span {
  uint64_t begin, end;
} oracle_span;

/* The string at the scanner, as a C string; false when it is none or holds a zero byte. */
static inline bool oracle_name (oracle *o) {
  if (oracle_peek(o) != '"' || !oracle_string(o)) return false;
  o->text[o->length] = '\0';
  return memchr(o->text, 0, o->length) == NULL;
}

static inline bool oracle_eat (oracle *o, int c) {
  if (oracle_peek(o) != c) return false;
  o->i++;
  return true;
}

/* A list of whole numbers from 0 to INT64_MAX; their number or -1. */
static inline int oracle_ints (oracle *o, uint64_t *v, int most) {
  int n = 0;
  if (!oracle_eat(o, '[')) return -1;
  if (oracle_eat(o, ']')) return 0;
  do {
    oracle_peek(o);
    size_t from = o->i, len = oracle_digits(o);
    if (len == 0 || len > 19 || n == most) return -1;
    if (o->i < o->n && strchr(".eE", o->s[o->i]) != NULL) return -1;
    char text[20] = { 0 };
    memcpy(text, o->s + from, len);
    v[n] = strtoull(text, NULL, 10);
    if (v[n++] > INT64_MAX) return -1;
  } while (oracle_eat(o, ','));
  return oracle_eat(o, ']') ? n : -1;
}

static inline bool oracle_tensor (oracle *o, uint64_t data, oracle_span *out) {
  static const struct {
    const char *name;
    uint64_t size;
  } dtypes[] = { { "BOOL", 1 }, { "U8", 1 },   { "I32", 4 }, { "I64", 8 },
                 { "F16", 2 },  { "BF16", 2 }, { "F32", 4 }, { "F64", 8 } };
  uint64_t size = 0, shape[8], offsets[2];
  int ndim = -1, noff = -1;
  if (!oracle_eat(o, '{')) return false;
  do {
    if (!oracle_name(o)) return false;
    char field[16] = { 0 };
    if (o->length > 12) return false;
    memcpy(field, o->text, o->length);
    if (!oracle_eat(o, ':')) return false;
    if (strcmp(field, "dtype") == 0) {
      if (!oracle_name(o)) return false;
      for (size_t k = 0; k < 8; k++)
        if (strcmp((char *)o->text, dtypes[k].name) == 0) size = dtypes[k].size;
      if (size == 0) return false;
    } else if (strcmp(field, "shape") == 0) {
      if ((ndim = oracle_ints(o, shape, 8)) < 0) return false;
    } else if (strcmp(field, "data_offsets") == 0) {
      if ((noff = oracle_ints(o, offsets, 2)) != 2) return false;
    } else {
      return false;
    }
  } while (oracle_eat(o, ','));
  if (!oracle_eat(o, '}') || size == 0 || ndim < 0 || noff != 2) return false;
  u128 span = size;
  bool zero = false;
  for (int k = 0; k < ndim; k++) {
    zero = zero || shape[k] == 0;
    if (shape[k] != 0) span *= shape[k];
    if (span > INT64_MAX) return false;
  }
  *out = (oracle_span){ offsets[0], offsets[1] };
  return offsets[0] <= offsets[1] && offsets[1] <= data &&
         (zero ? 0 : span) == offsets[1] - offsets[0];
}

static inline bool oracle_metadata (oracle *o) {
  if (!oracle_eat(o, '{')) return false;
  if (oracle_eat(o, '}')) return true;
  do {
    if (!oracle_name(o) || !oracle_eat(o, ':') || !oracle_name(o)) return false;
  } while (oracle_eat(o, ','));
  return oracle_eat(o, '}');
}

static inline bool oracle_tiles (oracle_span *v, size_t n, uint64_t data) {
  uint64_t at = 0;
  for (size_t done = 0; done < n; done++) { /* always the next one that begins where we are */
    size_t best = n;
    for (size_t k = done; k < n; k++)
      if (v[k].begin == at && (best == n || v[k].end < v[best].end)) best = k;
    if (best == n) return false;
    oracle_span t = v[best];
    v[best] = v[done];
    v[done] = t;
    at = t.end;
  }
  return at == data;
}

static inline bool oracle_safetensors (const unsigned char *s, size_t n, int64_t *count) {
  uint64_t header = 0, unused;
  *count = 0;
  if (n < 8) return false;
  for (int i = 7; i >= 0; i--) header = header << 8 | s[i];
  if (header > 100000000 || header > n - 8) return false;
  if (header == 0 || s[8] != '{' || !oracle_json(s + 8, header, 4, &unused)) return false;
  uint64_t data = n - 8 - header;
  oracle o = { .s = s + 8, .n = header, .text = malloc(header + 8) };
  oracle_span *v = NULL;
  bool good = oracle_eat(&o, '{');
  if (good && !oracle_eat(&o, '}')) {
    do {
      good = oracle_name(&o);
      bool meta = good && strcmp((char *)o.text, "__metadata__") == 0;
      good = good && oracle_eat(&o, ':');
      if (good && meta) {
        good = oracle_metadata(&o);
      } else if (good) {
        v = realloc(v, (size_t)(*count + 1) * sizeof *v);
        good = oracle_tensor(&o, data, &v[(*count)++]);
      }
    } while (good && oracle_eat(&o, ','));
  }
  good = good && oracle_tiles(v, (size_t)*count, data);
  free(v);
  free(o.text);
  return good;
}

/* Save every tensor of f at path, read it back, compare bits and metadata. */
static inline const char *check_round_trip (peri_ctx *ctx, peri_safetensors *f, const char *path) {
  int64_t n = peri_safetensors_count(f), m = peri_safetensors_pairs(f), got = 0;
  const char **names = malloc(((size_t)n + 1) * sizeof *names);
  peri_tensor **t = malloc(((size_t)n + 1) * sizeof *t);
  peri_text_pair *pairs = malloc(((size_t)m + 1) * sizeof *pairs);
  peri_safetensors *back = NULL;
  const char *bad = NULL;
  for (int64_t i = 0; i < m; i++) pairs[i] = peri_safetensors_pair(f, i);
  for (; got < n; got++) {
    names[got] = peri_safetensors_at(f, got).name;
    if (peri_safetensors_tensor(f, got, &t[got]) != PERI_OK) break; /* a BOOL of neither 0 nor 1 */
  }
  if (got == n) {
    if (peri_safetensors_save(ctx, path, n, names, t, m, pairs) != PERI_OK ||
        peri_safetensors_open(ctx, path, (n & 1) != 0, &back) != PERI_OK)
      bad = peri_message(ctx);
    else if (peri_safetensors_count(back) != n || peri_safetensors_pairs(back) != m)
      bad = "lost something";
    for (int64_t i = 0; bad == NULL && i < n; i++) {
      peri_tensor *b = NULL;
      int64_t at = peri_safetensors_find(back, names[i]);
      if (at < 0 || peri_safetensors_tensor(back, at, &b) != PERI_OK)
        bad = "lost a tensor";
      else if (peri_dtype_of(b) != peri_dtype_of(t[i]) || peri_ndim(b) != peri_ndim(t[i]) ||
               memcmp(peri_shape(b), peri_shape(t[i]), (size_t)peri_ndim(b) * sizeof(int64_t)) !=
                   0 ||
               (peri_numel(b) > 0 && memcmp(peri_data(b), peri_data(t[i]),
                                            (size_t)peri_safetensors_at(f, i).bytes) != 0))
        bad = "changed a tensor";
      peri_release(b);
    }
    peri_safetensors_close(back);
  }
  for (int64_t i = 0; i < got; i++) peri_release(t[i]);
  free(names);
  free(t);
  free(pairs);
  return bad;
}

/* path: where an accepted file may be saved and read back; NULL = do not. */
static inline const char *check_safetensors (peri_ctx *ctx, const unsigned char *s, size_t n,
                                             const char *path, bool *accepted) {
  peri_safetensors *f = NULL;
  int64_t count;
  bool good = oracle_safetensors(s, n, &count);
  peri_status status = peri_safetensors_parse(ctx, s, n, &f);
  const char *bad = NULL;
  if (accepted != NULL) *accepted = good;
  if ((status == PERI_OK) != good)
    bad = good ? "refused a good file" : "accepted a bad file";
  else if (!good && status != PERI_EFORMAT && status != PERI_ENOSUP)
    bad = "refused for another reason";
  else if (good && peri_safetensors_count(f) != count)
    bad = "counts other tensors";
  for (int64_t i = 0; good && bad == NULL && i < count; i++) {
    peri_safetensors_entry e = peri_safetensors_at(f, i);
    peri_tensor *t = NULL;
    if (e.offset > n || e.bytes > n - e.offset)
      bad = "a tensor outside of the file";
    else if (peri_safetensors_tensor(f, i, &t) == PERI_OK && e.bytes > 0 &&
             memcmp(peri_data(t), s + e.offset, (size_t)e.bytes) != 0)
      bad = "read other data";
    peri_release(t);
  }
  if (good && bad == NULL && path != NULL) bad = check_round_trip(ctx, f, path);
  peri_safetensors_close(f);
  return bad;
}

/* ---- seeds ---- */

static const char *const json_seeds[] = {
  "{\"a\":[1,-2.5e3,true,false,null,\"x\\u00e9\\ud83d\\ude00\\n\"],\"b\":{\"c\":{},\"d\":[]},\"e\":"
  "0.1}",
  "[9223372036854775807,-9223372036854775808,9223372036854775808,1.7976931348623157e308,5e-324,-0]",
  " { \"k\" : \"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\" , \"\\u006b2\" : [ [ [ [ ] ] ] ] , \"\" : "
  "\"\\\\\" } \n",
  "{\"a\":1,\"b\":2,\"c\":3,\"aa\":4,\"\\u0061b\":5,\"nested\":{\"a\":1,\"b\":{\"a\":1}}}",
  "[[1,2],[3.25,4e-1],[\"\\\"\\/\\b\\f\\r\\t\",\"\"],{\"z\":[{}]}]"
};

/* Headers of files, each with the size of the data behind it. */
static const struct {
  const char *header;
  size_t data;
} safetensors_seeds[] = {
  { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}      ", 24 },
  { "{\"__metadata__\":{\"format\":\"pt\",\"k\\u00e9\":\"v\"},"
    "\"a\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]},"
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[8,16]},"
    "\"c\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[16,17]},"
    "\"d\":{\"dtype\":\"I32\",\"shape\":[0,7],\"data_offsets\":[17,17]}}",
    17 },
  { "{\"b\":{\"shape\":[4],\"data_offsets\":[2,10],\"dtype\":\"F16\"},"
    "\"a\":{\"data_offsets\":[0,2],\"dtype\":\"U8\",\"shape\":[1,2,1]}}",
    10 },
  { "{\"x\":{\"dtype\":\"I64\",\"shape\":[1,1,1,1,1,1,1,1],\"data_offsets\":[0,8]}}", 8 },
  { "{\"p\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0 },
  { "{}", 0 }
};

/* Seed i as a file; its size, or 0 when there is none. */
static inline size_t safetensors_seed (size_t i, unsigned char *out) {
  if (i >= sizeof safetensors_seeds / sizeof *safetensors_seeds) return 0;
  size_t h = strlen(safetensors_seeds[i].header), n = 8 + h + safetensors_seeds[i].data;
  memset(out, 0, n);
  out[0] = (unsigned char)h;
  out[1] = (unsigned char)(h >> 8);
  memcpy(out + 8, safetensors_seeds[i].header, h);
  for (size_t k = 8 + h; k < n; k++) out[k] = (unsigned char)(k & 1);
  return n;
}

#endif
