/*
** npy.c - NumPy's .npy files, versions 1 to 3 (numpy/lib/format.py): "\x93NUMPY", version, length of
** the header, the header (a Python dictionary of descr, fortran_order and shape), the elements.
*/
#include <stdio.h>
#include <string.h>

#include "io/stream.h"

#define MAX_HEADER ((size_t)64 << 10)

/* What elements may be in a file: NumPy's kind and size, and the dtype that holds them. What has none
** of its own is widened. */
typedef struct element {
  char kind;
  uint8_t size;
  uint8_t dtype;
} element;

static const element elements[] = {
  { 'b', 1, PERI_BOOL }, { 'u', 1, PERI_U8 },  { 'i', 4, PERI_I32 }, { 'i', 8, PERI_I64 },
  { 'f', 2, PERI_F16 },  { 'f', 4, PERI_F32 }, { 'f', 8, PERI_F64 }, { 'i', 1, PERI_I32 },
  { 'i', 2, PERI_I32 },  { 'u', 2, PERI_I32 }, { 'u', 4, PERI_I64 }
};

typedef struct header {
  const char *s;
  size_t at, n;
  const element *element; /* NULL: not given yet */
  bool swapped;           /* elements are in the other byte order */
  int fortran, ndim;
  int64_t shape[PERI_MAX_DIMS];
} header;

static void skip_spaces (header *h) {
  while (h->at < h->n && strchr(" \t\r\n", h->s[h->at]) != NULL && h->s[h->at] != 0) h->at++;
}

/* The next character that is no space, if it is c. */
static bool take (header *h, char c) {
  skip_spaces(h);
  if (h->at == h->n || h->s[h->at] != c) return false;
  h->at++;
  return true;
}

static bool take_word (header *h, const char *word) {
  size_t n = strlen(word);
  skip_spaces(h);
  if (n > h->n - h->at || memcmp(h->s + h->at, word, n) != 0) return false;
  h->at += n;
  return true;
}

/* A string in quotes without escapes. */
static bool take_string (header *h, const char **s, size_t *n) {
  skip_spaces(h);
  if (h->at == h->n || (h->s[h->at] != '\'' && h->s[h->at] != '"')) return false;
  char quote = h->s[h->at++];
  const char *end = memchr(h->s + h->at, quote, h->n - h->at);
  if (end == NULL) return false;
  *s = h->s + h->at;
  *n = (size_t)(end - *s);
  h->at += *n + 1;
  return memchr(*s, '\\', *n) == NULL;
}

/* A file that may be right and that we have no dtype for. */
#define unsupported(st, ...) peri__stream_refuse(st, PERI_ENOSUP, __VA_ARGS__)

/* Why a kind of NumPy is not read. */
static const struct {
  char kind;
  const char *what;
} strangers[] = { { 'u', "unsigned integers of 64 bits do not fit into i64" },
                  { 'c', "complex numbers" },
                  { 'U', "texts" },
                  { 'S', "texts" },
                  { 'a', "texts" },
                  { 'O', "Python objects" },
                  { 'M', "dates" },
                  { 'm', "spans of time" },
                  { 'V', "raw bytes" },
                  { 'f', "floats of more than 64 bits" } };

static peri_status read_descr (peri__stream *st, header *h) {
  const bool little = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
  const char *s, *what = "no code of a number that we have";
  size_t n;
  skip_spaces(h);
  if (h->at < h->n && h->s[h->at] == '[')
    return unsupported(st, "descr: structured dtypes are not supported");
  if (!take_string(h, &s, &n)) return peri__stream_fail(st, "descr: a string is expected");
  bool ordered = n > 0 && memchr("<>=|", s[0], 4) != NULL; /* else in this machine's order */
  const char *code = s + ordered;
  for (size_t k = 0; k < sizeof elements / sizeof *elements && n == 2u + ordered; k++) {
    const element *e = &elements[k];
    if (code[0] != e->kind || code[1] != '0' + e->size) continue;
    if (s[0] == '|' && e->size > 1) continue;
    h->element = e;
    h->swapped = e->size > 1 && s[0] == (little ? '>' : '<');
  }
  if (h->element != NULL) return PERI_OK;
  for (size_t k = 0; ordered && n > 1 && k < sizeof strangers / sizeof *strangers; k++)
    if (code[0] == strangers[k].kind) what = strangers[k].what;
  return unsupported(st, "descr: dtype '%.*s' is not supported (%s)", n > 40 ? 40 : (int)n, s,
                     what);
}

static peri_status read_shape (peri__stream *st, header *h) {
  bool comma = true;
  if (!take(h, '(')) return peri__stream_fail(st, "shape: a tuple is expected");
  h->ndim = 0;
  while (!take(h, ')')) {
    int64_t v = 0;
    int digits = 0;
    if (!comma) return peri__stream_fail(st, "shape: a comma or the end is expected");
    if (h->ndim == PERI_MAX_DIMS)
      return peri__stream_fail(st, "shape: more than %d dims", PERI_MAX_DIMS);
    skip_spaces(h);
    for (; h->at < h->n && h->s[h->at] >= '0' && h->s[h->at] <= '9'; h->at++, digits++)
      if (__builtin_mul_overflow(v, (int64_t)10, &v) ||
          __builtin_add_overflow(v, (int64_t)(h->s[h->at] - '0'), &v))
        return peri__stream_fail(st, "shape: a size overflows 64 bits");
    if (digits == 0) return peri__stream_fail(st, "shape: a size is expected");
    h->shape[h->ndim++] = v;
    comma = take(h, ',');
  }
  if (h->ndim == 1 && !comma)
    return peri__stream_fail(st, "shape: a tuple of one size ends with a comma");
  return PERI_OK;
}

static peri_status read_header (peri__stream *st, header *h) {
  bool comma = true, shape = false;
  h->fortran = -1;
  if (!take(h, '{')) return peri__stream_fail(st, "the header is no dictionary");
  while (!take(h, '}')) {
    const char *key;
    size_t n;
    if (!comma || !take_string(h, &key, &n) || !take(h, ':'))
      return peri__stream_fail(st, "the header is malformed at its byte %zu", h->at);
    if (n == 5 && memcmp(key, "descr", 5) == 0 && h->element == NULL) {
      TRY(read_descr(st, h));
    } else if (n == 13 && memcmp(key, "fortran_order", 13) == 0 && h->fortran < 0) {
      h->fortran = take_word(h, "True") ? 1 : take_word(h, "False") ? 0 : -1;
      if (h->fortran < 0) return peri__stream_fail(st, "fortran_order: True or False is expected");
    } else if (n == 5 && memcmp(key, "shape", 5) == 0 && !shape) {
      TRY(read_shape(st, h));
      shape = true;
    } else {
      return peri__stream_fail(st, "the header has the key '%.*s' twice or it is unknown",
                               n > 40 ? 40 : (int)n, key);
    }
    comma = take(h, ',');
  }
  skip_spaces(h);
  if (h->at < h->n) return peri__stream_fail(st, "something follows the header's dictionary");
  if (h->element == NULL || h->fortran < 0 || !shape)
    return peri__stream_fail(st, "the header lacks descr, fortran_order or shape");
  return PERI_OK;
}

/* The header's text into *text, which has *size bytes; free it with peri__free. */
static peri_status read_text (peri__stream *st, peri_ctx *ctx, char **text, size_t *size) {
  unsigned char b[12];
  TRY(peri__stream_need(st, b, 8, "the start of a .npy file"));
  if (memcmp(b, "\x93NUMPY", 6) != 0) return peri__stream_fail(st, "no .npy file begins like this");
  if (b[6] < 1 || b[6] > 3)
    return peri__stream_fail(st, "version %u of .npy, only 1 to 3 are read", b[6]);
  size_t width = b[6] == 1 ? 2 : 4, n = 0;
  TRY(peri__stream_need(st, b + 8, width, "the header's length"));
  for (size_t i = width; i-- > 0;) n = n << 8 | b[8 + i];
  if (n > MAX_HEADER)
    return peri__stream_fail(st, "a header of %zu bytes, the limit is %zu", n, MAX_HEADER);
  if (n > peri__stream_most(st) - peri__stream_at(st))
    return peri__stream_fail(st, "a header of %zu bytes is more than the file has", n);
  *size = n;
  if ((*text = peri__malloc(ctx, n)) == NULL)
    return peri__fail(ctx, PERI_ENOMEM, "no memory for a header");
  return peri__stream_need(st, *text, n, "the header");
}

static peri_status check_bools (peri__stream *st, const peri_tensor *t) {
  const unsigned char *p = t->data;
  for (int64_t i = 0; t->dtype == PERI_BOOL && i < t->numel; i++)
    if (p[i] > 1) return peri__stream_fail(st, "element %lld is %u, no bool", (long long)i, p[i]);
  return PERI_OK;
}

/* Elements of `size` bytes at the end of a tensor's memory, in this machine's order, to its dtype from
** the front on: each is written where those before it were read. */
static void widen (peri_tensor *t, const unsigned char *from, const element *e) {
  for (int64_t i = 0; i < t->numel; i++, from += e->size) {
    uint8_t u1;
    uint16_t u2;
    uint32_t u4;
    int64_t v;
    if (e->size == 1) {
      memcpy(&u1, from, 1);
      v = e->kind == 'i' ? (int8_t)u1 : u1;
    } else if (e->size == 2) {
      memcpy(&u2, from, 2);
      v = e->kind == 'i' ? (int16_t)u2 : u2;
    } else {
      memcpy(&u4, from, 4);
      v = u4;
    }
    if (t->dtype == PERI_I32)
      ((int32_t *)t->data)[i] = (int32_t)v;
    else
      ((int64_t *)t->data)[i] = v;
  }
}

/* The elements into a dense tensor. */
static peri_status read_elements (peri__stream *st, const header *h, peri_tensor *t) {
  const element *e = h->element;
  size_t wide = peri_dtype_size(t->dtype), raw = (size_t)t->numel * e->size;
  unsigned char *from = (unsigned char *)t->data + (size_t)t->numel * (wide - e->size);
  if (t->numel == 0) return PERI_OK;
  TRY(peri__stream_need(st, from, raw, "the array"));
  if (h->swapped) peri__swap_bytes(from, t->numel, e->size);
  if (e->size < wide) widen(t, from, e);
  return check_bools(st, t);
}

static peri_status read_data (peri__stream *st, peri_ctx *ctx, const header *h, peri_tensor **out) {
  int64_t numel, shape[PERI_MAX_DIMS], stride[PERI_MAX_DIMS];
  peri_dtype dtype = (peri_dtype)h->element->dtype;
  size_t bytes;
  peri_tensor *t;
  for (int i = 0; i < h->ndim; i++) shape[i] = h->shape[h->fortran ? h->ndim - 1 - i : i];
  if (peri__check_shape(ctx, dtype, h->ndim, shape, &numel, &bytes) != PERI_OK)
    return peri__stream_fail(st, "shape: the number of elements overflows 64 bits");
  bytes = (size_t)numel * h->element->size;
  if (bytes > peri__stream_most(st) - peri__stream_at(st))
    return peri__stream_fail(st, "shape: %zu bytes of elements are more than the file can hold",
                             bytes);
  TRY(peri_empty(ctx, dtype, h->ndim, shape, &t));
  peri_status s = read_elements(st, h, t);
  if (s == PERI_OK && h->fortran && h->ndim > 1) {
    for (int i = 0; i < h->ndim; i++) stride[i] = t->stride[h->ndim - 1 - i];
    s = peri__view(t, 0, h->ndim, h->shape, stride, out);
    peri_release(t);
    return s;
  }
  if (s != PERI_OK)
    peri_release(t);
  else
    *out = t;
  return s;
}

static peri_status read_array (peri__stream *st, peri_ctx *ctx, peri_tensor **out) {
  char *text = NULL;
  size_t size = 0;
  header h = { .at = 0 };
  peri_status s = read_text(st, ctx, &text, &size);
  if (s == PERI_OK) {
    h.s = text;
    h.n = size;
    s = read_header(st, &h);
  }
  peri__free(ctx, text, size);
  return s == PERI_OK ? read_data(st, ctx, &h, out) : s;
}

peri_status peri__npy_read (peri_ctx *ctx, peri__stream *st, peri_tensor **out) {
  *out = NULL;
  TRY(read_array(st, ctx, out));
  peri_status s = peri__stream_end(st, "the array");
  if (s == PERI_OK) return PERI_OK;
  peri_release(*out);
  *out = NULL;
  return s;
}

peri_status peri_npy_load (peri_ctx *ctx, const char *path, peri_tensor **out) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, out);
  peri__stream *st;
  *out = NULL;
  TRY(peri__stream_open(ctx, path, &st));
  peri_status s = peri__npy_read(ctx, st, out);
  peri__stream_close(st);
  return s;
}

size_t peri__npy_header (const peri_tensor *t, char buf[PERI__NPY_HEADER]) {
  static const char start[] = "\x93NUMPY\x01\x00";
  int n = 10;
  const peri__dtype_row *row = peri__dtype_row_of(t->dtype);
  if (row == NULL || row->npy == NULL) return 0;
  n += snprintf(buf + n, PERI__NPY_HEADER - (size_t)n,
                "{'descr': '%s', 'fortran_order': False, 'shape': (", row->npy);
  for (int i = 0; i < t->ndim; i++)
    n += snprintf(buf + n, PERI__NPY_HEADER - (size_t)n, i == 0 ? "%lld" : ", %lld",
                  (long long)t->shape[i]);
  n += snprintf(buf + n, PERI__NPY_HEADER - (size_t)n, t->ndim == 1 ? ",), }" : "), }");
  size_t whole = ((size_t)n + 1 + 63) / 64 * 64; /* so that elements are aligned */
  memset(buf + n, ' ', whole - (size_t)n);
  buf[whole - 1] = '\n';
  memcpy(buf, start, 8);
  buf[8] = (char)((whole - 10) & 0xff);
  buf[9] = (char)((whole - 10) >> 8);
  return whole;
}

peri_status peri_npy_save (peri_ctx *ctx, const char *path, peri_tensor *t) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  TRY(peri__belongs(ctx, t, "t"));
  char buf[PERI__NPY_HEADER];
  peri__output o;
  TRY(peri__readable(t));
  size_t n = peri__npy_header(t, buf);
  if (n == 0)
    return peri__fail(ctx, PERI_EDTYPE, "%s: not written: NumPy has no dtype for %s", path,
                      peri_dtype_name((peri_dtype)t->dtype));
  TRY(peri__output_begin(ctx, path, &o));
  peri_status s = peri__output_write(&o, buf, n);
  if (s == PERI_OK) s = peri__output_tensor(&o, t);
  if (s == PERI_OK) return peri__output_commit(&o);
  peri__output_abort(&o);
  return s;
}
