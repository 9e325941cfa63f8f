/*
** safetensors.c - reading safetensors files that nobody vouches for. The header is read into memory
** and checked twice: first as JSON with distinct keys, counting, then into tables of exactly the
** counted size, so that memory stays within the stated multiple of the file. Shapes stay in the
** header as text, 24 bytes hold the rest of a tensor.
*/
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* close */
#endif
#include <string.h>
#include <unistd.h>

#include "core/json.h"
#include "io/safetensors.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors data is little-endian; this machine needs a conversion that is not written"
#endif

typedef struct entry {
  uint64_t begin;       /* of the data, from the data's start */
  uint32_t name, shape; /* offsets in the header: a string, and behind the '[' of the shape */
  uint8_t dtype, ndim;
} entry;

typedef struct pair {
  uint32_t key, value;
} pair; /* offsets of strings in the header */

struct peri_safetensors {
  peri_ctx *ctx;
  char *path, *header;
  size_t path_size, header_size;
  entry *entries; /* by begin */
  pair *pairs;
  int64_t n, npairs;
  uint64_t data_at, data_bytes; /* data_at: offset of the data in the file */
  int fd;                       /* -1: none */
  const unsigned char *memory;  /* the data when parsed from memory, else NULL */
  peri__map *map;               /* NULL: none */
};

const char *peri__st_dtype_name (peri_dtype d) { return peri__dtype_row_of(d)->safetensors; }

/* ---- header ---- */

/* One tensor's fields as read; names are offsets of the opening quote. */
typedef struct fields {
  size_t name, name_size, shape;
  int64_t begin, end, numel, span; /* span: product of the sizes that are not 0 */
  int dtype, ndim;
} fields;

typedef struct reader {
  peri_json json;
  peri_safetensors *f;
  bool fill; /* second pass: put into the tables */
  int64_t n, npairs;
} reader;

/* Known formats that the runtime has no dtype for are told apart from nonsense. */
static peri_status read_dtype (reader *r, fields *t) {
  static const char *const others[] = { "F4",          "F6_E2M3", "F6_E3M2", "I8",  "F8_E5M2",
                                        "F8_E4M3",     "F8_E8M0", "I16",     "U16", "F8_E4M3FNUZ",
                                        "F8_E5M2FNUZ", "U32",     "U64",     "C64" };
  peri_json_value v;
  TRY(peri_json_expect(&r->json, PERI_JSON_STRING, "dtype", &v));
  for (int d = 0; d < PERI_NDTYPE; d++)
    if (peri__json_is(&v, peri__st_dtype_name((peri_dtype)d))) {
      t->dtype = d;
      return PERI_OK;
    }
  int shown = v.n > 40 ? 40 : (int)v.n, name = t->name_size > 100 ? 100 : (int)t->name_size;
  for (size_t i = 0; i < sizeof others / sizeof *others; i++)
    if (peri__json_is(&v, others[i])) {
      peri_json_fail(&r->json, v.offset, "dtype %s of tensor \"%.*s\" is not supported", others[i],
                     name, r->f->header + t->name + 1);
      return r->json.status = PERI_ENOSUP;
    }
  return peri_json_fail(&r->json, v.offset, "unknown dtype \"%.*s\" of tensor \"%.*s\"", shown, v.s,
                        name, r->f->header + t->name + 1);
}

static peri_status read_shape (reader *r, fields *t) {
  peri_json_value v;
  bool zero = false;
  TRY(peri_json_expect(&r->json, PERI_JSON_ARRAY, "shape", &v));
  t->shape = v.offset + 1;
  t->ndim = 0;
  t->span = 1;
  for (;;) {
    TRY(peri_json_next(&r->json, &v));
    if (v.type == PERI_JSON_CLOSE) break;
    if (v.type != PERI_JSON_INT || v.i < 0)
      return peri_json_fail(&r->json, v.offset, "a size must be a whole number of at least 0");
    if (t->ndim == PERI_MAX_DIMS)
      return peri_json_fail(&r->json, v.offset, "more than %d dims", PERI_MAX_DIMS);
    t->ndim++;
    zero = zero || v.i == 0;
    if (v.i != 0 && __builtin_mul_overflow(t->span, v.i, &t->span))
      return peri_json_fail(&r->json, v.offset, "the number of elements overflows 64 bits");
  }
  t->numel = zero ? 0 : t->span;
  return PERI_OK;
}

static peri_status read_offsets (reader *r, fields *t) {
  peri_json_value v;
  int64_t *const to[] = { &t->begin, &t->end };
  TRY(peri_json_expect(&r->json, PERI_JSON_ARRAY, "data_offsets", &v));
  for (int i = 0; i < 2; i++) {
    TRY(peri_json_expect(&r->json, PERI_JSON_INT, "an offset", &v));
    if (v.i < 0)
      return peri_json_fail(&r->json, v.offset, "offset %lld is negative", (long long)v.i);
    *to[i] = v.i;
  }
  TRY(peri_json_expect(&r->json, PERI_JSON_CLOSE, "what follows two data_offsets", &v));
  if (t->end < t->begin)
    return peri_json_fail(&r->json, v.offset, "data_offsets end at %lld before they begin at %lld",
                          (long long)t->end, (long long)t->begin);
  if ((uint64_t)t->end > r->f->data_bytes)
    return peri_json_fail(&r->json, v.offset, "data_offsets end at %lld, the data has %llu bytes",
                          (long long)t->end, (unsigned long long)r->f->data_bytes);
  return PERI_OK;
}

static peri_status read_tensor (reader *r, fields *t) {
  peri_json_value v;
  int64_t bytes;
  bool dtype = false, shape = false, offsets = false;
  TRY(peri_json_expect(&r->json, PERI_JSON_OBJECT, "a tensor", &v));
  size_t at = v.offset;
  for (;;) {
    TRY(peri_json_next(&r->json, &v));
    if (v.type == PERI_JSON_CLOSE) break;
    if (peri__json_is(&v, "dtype")) {
      dtype = true;
      TRY(read_dtype(r, t));
    } else if (peri__json_is(&v, "shape")) {
      shape = true;
      TRY(read_shape(r, t));
    } else if (peri__json_is(&v, "data_offsets")) {
      offsets = true;
      TRY(read_offsets(r, t));
    } else {
      return peri_json_fail(&r->json, v.offset, "unknown field \"%.*s\" of a tensor",
                            v.n > 40 ? 40 : (int)v.n, v.s);
    }
  }
  if (!dtype || !shape || !offsets)
    return peri_json_fail(&r->json, at, "a tensor without %s",
                          !dtype   ? "dtype"
                          : !shape ? "shape"
                                   : "data_offsets");
  if (__builtin_mul_overflow(t->span, (int64_t)peri_dtype_size((peri_dtype)t->dtype), &bytes))
    return peri_json_fail(&r->json, at, "the size in bytes overflows 64 bits");
  if (t->numel == 0) bytes = 0;
  if (bytes != t->end - t->begin)
    return peri_json_fail(&r->json, at,
                          "%lld elements of %s need %lld bytes, data_offsets give %lld",
                          (long long)t->numel, peri__st_dtype_name((peri_dtype)t->dtype),
                          (long long)bytes, (long long)(t->end - t->begin));
  return PERI_OK;
}

/* Both strings of a pair and names of tensors become C strings. */
static peri_status no_zero (reader *r, const peri_json_value *v) {
  if (v->n == 0 || memchr(v->s, 0, v->n) == NULL) return PERI_OK;
  return peri_json_fail(&r->json, v->offset, "a zero character in a name or in metadata");
}

static peri_status read_metadata (reader *r) {
  peri_json_value v;
  TRY(peri_json_expect(&r->json, PERI_JSON_OBJECT, "__metadata__", &v));
  for (;;) {
    TRY(peri_json_next(&r->json, &v));
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    size_t key = v.offset;
    TRY(no_zero(r, &v));
    TRY(peri_json_expect(&r->json, PERI_JSON_STRING, "a value of __metadata__", &v));
    TRY(no_zero(r, &v));
    if (r->npairs == ST_MAX_PAIRS)
      return peri_json_fail(&r->json, key, "more than %d entries of metadata", ST_MAX_PAIRS);
    if (r->fill) r->f->pairs[r->npairs] = (pair){ (uint32_t)key, (uint32_t)v.offset };
    r->npairs++;
  }
}

static peri_status read_header (reader *r) {
  peri_json_value v;
  TRY(peri_json_expect(&r->json, PERI_JSON_OBJECT, "the header", &v));
  for (;;) {
    fields t = { 0 };
    TRY(peri_json_next(&r->json, &v));
    if (v.type == PERI_JSON_CLOSE) break;
    if (peri__json_is(&v, "__metadata__")) {
      TRY(read_metadata(r));
      continue;
    }
    TRY(no_zero(r, &v));
    t.name = v.offset;
    t.name_size = v.n;
    TRY(read_tensor(r, &t));
    if (r->n == ST_MAX_TENSORS)
      return peri_json_fail(&r->json, t.name, "more than %d tensors", ST_MAX_TENSORS);
    if (r->fill)
      r->f->entries[r->n] = (entry){ (uint64_t)t.begin, (uint32_t)t.name, (uint32_t)t.shape,
                                     (uint8_t)t.dtype, (uint8_t)t.ndim };
    r->n++;
  }
  return peri_json_expect(&r->json, PERI_JSON_END, "what follows the header", &v);
}

static peri_status pass (peri_safetensors *f, bool fill, int64_t *n, int64_t *npairs) {
  reader r = { .f = f, .fill = fill };
  const peri_json_options opt = { .max_bytes = ST_MAX_HEADER,
                                  .max_depth = 4,
                                  .distinct_keys = fill };
  peri_json_open(&r.json, f->ctx, f->header, f->header_size, &opt);
  peri_status s = read_header(&r);
  peri_json_close(&r.json);
  *n = r.n;
  *npairs = r.npairs;
  return s;
}

/* The sizes of an entry, from the checked text of its shape; their number of bytes. */
static uint64_t shape_of (const peri_safetensors *f, const entry *e, int64_t shape[PERI_MAX_DIMS]) {
  const char *s = f->header + e->shape;
  uint64_t bytes = peri_dtype_size((peri_dtype)e->dtype);
  bool zero = false;
  for (int i = 0; i < e->ndim; i++) {
    int64_t v = 0;
    while (*s < '0' || *s > '9') s++;
    for (; *s >= '0' && *s <= '9'; s++) v = 10 * v + (*s - '0');
    shape[i] = v;
    zero = zero || v == 0;
    if (v != 0) bytes *= (uint64_t)v; /* was checked not to overflow */
  }
  return zero ? 0 : bytes;
}

static int by_begin (void *ud, const void *a, const void *b) {
  const entry *x = a, *y = b;
  int64_t shape[PERI_MAX_DIMS];
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  uint64_t m = shape_of(ud, x, shape), n = shape_of(ud, y, shape); /* empty ones come first */
  if (m != n) return m < n ? -1 : 1;
  return x->name < y->name ? -1 : x->name > y->name;
}

static peri_status check_layout (peri_safetensors *f) {
  uint64_t at = 0;
  int64_t shape[PERI_MAX_DIMS];
  peri__sort(f->entries, (size_t)f->n, sizeof *f->entries, by_begin, f);
  for (int64_t i = 0; i < f->n; i++) {
    const entry *e = &f->entries[i];
    if (e->begin != at)
      return peri__fail(
          f->ctx, PERI_EFORMAT,
          "data_offsets of tensor \"%.100s\" begin at %llu, %s the %llu where the tensor "
          "before ends",
          f->header + e->name, (unsigned long long)e->begin,
          e->begin > at ? "leaving a hole behind" : "overlapping", (unsigned long long)at);
    at += shape_of(f, e, shape);
  }
  if (at != f->data_bytes)
    return peri__fail(f->ctx, PERI_EFORMAT, "the tensors end at byte %llu of %llu bytes of data",
                      (unsigned long long)at, (unsigned long long)f->data_bytes);
  return PERI_OK;
}

static peri_status parse (peri_safetensors *f) {
  int64_t n, npairs;
  peri_ctx *ctx = f->ctx;
  if (f->header_size == 0 || f->header[0] != '{')
    return peri__fail(ctx, PERI_EFORMAT, "the header does not begin with '{'");
  TRY(pass(f, false, &n, &npairs));
  f->entries = peri__malloc(ctx, (size_t)n * sizeof *f->entries);
  f->pairs = peri__malloc(ctx, (size_t)npairs * sizeof *f->pairs);
  f->n = n; /* with which the close frees them */
  f->npairs = npairs;
  if (f->entries == NULL || f->pairs == NULL)
    return peri__fail(ctx, PERI_ENOMEM, "no memory for a list of %lld tensors", (long long)n);
  TRY(pass(f, true, &n, &npairs));
  for (int64_t i = 0; i < n; i++) peri__json_unquote(f->header + f->entries[i].name);
  for (int64_t i = 0; i < npairs; i++) {
    peri__json_unquote(f->header + f->pairs[i].key);
    peri__json_unquote(f->header + f->pairs[i].value);
  }
  return check_layout(f);
}

peri_status peri__st_parse (peri_ctx *ctx, const char *path, char *header, size_t n,
                            uint64_t data_bytes, peri_safetensors **out) {
  size_t path_size = strlen(path) + 1;
  peri_safetensors *f = peri__malloc(ctx, sizeof *f);
  char *copy = peri__malloc(ctx, path_size);
  if (f == NULL || copy == NULL) {
    peri__free(ctx, f, sizeof *f);
    peri__free(ctx, copy, path_size);
    peri__free(ctx, header, n);
    return peri__fail(ctx, PERI_ENOMEM, "%s: no memory for its header", path);
  }
  memcpy(copy, path, path_size);
  *f = (peri_safetensors){ .ctx = ctx,
                           .path = copy,
                           .path_size = path_size,
                           .header = header,
                           .header_size = n,
                           .data_at = 8 + (uint64_t)n,
                           .data_bytes = data_bytes,
                           .fd = -1 };
  peri_status s = parse(f);
  if (s != PERI_OK) {
    s = peri__fail(ctx, s, "%s: header: %s", path, ctx->message);
    peri_safetensors_close(f);
    return s;
  }
  *out = f;
  return PERI_OK;
}

/* ---- opening ---- */

/* The header's size from the first 8 bytes of a file of the given size. */
static peri_status header_size (peri_ctx *ctx, const char *path, const unsigned char first[8],
                                uint64_t size, size_t *n) {
  uint64_t v = 0;
  for (int i = 7; i >= 0; i--) v = v << 8 | first[i];
  if (v > ST_MAX_HEADER)
    return peri__fail(ctx, PERI_EFORMAT, "%s: byte 0: a header of %llu bytes, the limit is %u",
                      path, (unsigned long long)v, ST_MAX_HEADER);
  if (v > size - 8)
    return peri__fail(ctx, PERI_EFORMAT, "%s: byte 0: a header of %llu bytes in a file of %llu",
                      path, (unsigned long long)v, (unsigned long long)size);
  *n = (size_t)v;
  return PERI_OK;
}

static peri_status read_header_of (peri_ctx *ctx, const char *path, int fd, uint64_t size,
                                   peri_safetensors **out) {
  unsigned char first[8];
  size_t n;
  if (size < 8)
    return peri__fail(ctx, PERI_EFORMAT, "%s: %llu bytes are no safetensors file", path,
                      (unsigned long long)size);
  TRY(peri__read_at(ctx, fd, path, 0, first, 8));
  TRY(header_size(ctx, path, first, size, &n));
  char *header = peri__malloc(ctx, n);
  if (header == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory for its header", path);
  peri_status s = peri__read_at(ctx, fd, path, 8, header, n);
  if (s != PERI_OK) {
    peri__free(ctx, header, n);
    return s;
  }
  return peri__st_parse(ctx, path, header, n, size - 8 - n, out);
}

peri_status peri_safetensors_open (peri_ctx *ctx, const char *path, bool map,
                                   peri_safetensors **out) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, out);
  int fd;
  uint64_t size;
  peri_safetensors *f = NULL;
  *out = NULL;
  TRY(peri__open_regular(ctx, path, &fd, &size));
  peri_status s = read_header_of(ctx, path, fd, size, &f);
  if (s != PERI_OK) {
    close(fd);
    return s;
  }
  f->fd = fd;
  if (map && f->data_bytes > 0) s = peri__map_file(ctx, path, fd, size, &f->map);
  if (s != PERI_OK) {
    peri_safetensors_close(f);
    return s;
  }
  *out = f;
  return PERI_OK;
}

peri_status peri_safetensors_parse (peri_ctx *ctx, const void *data, size_t size,
                                    peri_safetensors **out) {
  NEED(ctx, ctx);
  NEED(ctx, out);
  if (size > 0) NEED(ctx, data);
  size_t n;
  *out = NULL;
  if (size < 8)
    return peri__fail(ctx, PERI_EFORMAT, "memory: %zu bytes are no safetensors file", size);
  TRY(header_size(ctx, "memory", data, size, &n));
  char *header = peri__malloc(ctx, n);
  if (header == NULL) return peri__fail(ctx, PERI_ENOMEM, "memory: no memory for the header");
  memcpy(header, (const char *)data + 8, n);
  TRY(peri__st_parse(ctx, "memory", header, n, size - 8 - n, out));
  (*out)->memory = (const unsigned char *)data + 8 + n;
  return PERI_OK;
}

void peri_safetensors_close (peri_safetensors *f) {
  if (f == NULL) return;
  peri_ctx *ctx = f->ctx;
  if (f->map != NULL) peri__map_drop(f->map, NULL);
  if (f->fd >= 0) close(f->fd);
  peri__free(ctx, f->entries, (size_t)f->n * sizeof *f->entries);
  peri__free(ctx, f->pairs, (size_t)f->npairs * sizeof *f->pairs);
  peri__free(ctx, f->header, f->header_size);
  peri__free(ctx, f->path, f->path_size);
  peri__free(ctx, f, sizeof *f);
}

/* ---- reading ---- */

int64_t peri_safetensors_count (const peri_safetensors *f) { return f ? f->n : 0; }
int64_t peri_safetensors_pairs (const peri_safetensors *f) { return f ? f->npairs : 0; }

peri_safetensors_entry peri_safetensors_at (const peri_safetensors *f, int64_t i) {
  if (!f || i < 0 || i >= f->n) return (peri_safetensors_entry){ .name = NULL };
  const entry *e = &f->entries[i];
  peri_safetensors_entry v = { .name = f->header + e->name,
                               .dtype = (peri_dtype)e->dtype,
                               .ndim = e->ndim,
                               .offset = f->data_at + e->begin };
  v.bytes = shape_of(f, e, v.shape);
  return v;
}

int64_t peri_safetensors_find (const peri_safetensors *f, const char *name) {
  if (!f || !name) return -1;
  for (int64_t i = 0; i < f->n; i++)
    if (strcmp(f->header + f->entries[i].name, name) == 0) return i;
  return -1;
}

peri_text_pair peri_safetensors_pair (const peri_safetensors *f, int64_t i) {
  if (!f || i < 0 || i >= f->npairs) return (peri_text_pair){ NULL, NULL };
  return (peri_text_pair){ f->header + f->pairs[i].key, f->header + f->pairs[i].value };
}

/* Kernels rely on 0 and 1. */
static peri_status check_bools (peri_safetensors *f, const peri_safetensors_entry *e,
                                const unsigned char *data) {
  for (uint64_t k = 0; e->dtype == PERI_BOOL && k < e->bytes; k++)
    if (data[k] > 1)
      return peri__fail(f->ctx, PERI_EFORMAT, "%s: byte %llu: %u in tensor \"%.100s\" is no BOOL",
                        f->path, (unsigned long long)(e->offset + k), data[k], e->name);
  return PERI_OK;
}

peri_status peri_safetensors_tensor (peri_safetensors *f, int64_t i, peri_tensor **out) {
  if (!f) return PERI_EINVAL;
  NEED(f->ctx, out);
  *out = NULL;
  if (i < 0 || i >= f->n)
    return peri__fail(f->ctx, PERI_EINVAL, "%s: tensor %lld of %lld", f->path, (long long)i,
                      (long long)f->n);
  peri_safetensors_entry e = peri_safetensors_at(f, i);
  const unsigned char *src = f->memory != NULL ? f->memory + f->entries[i].begin
                             : f->map != NULL  ? (unsigned char *)f->map->base + e.offset
                                               : NULL;
  bool share = f->map != NULL && e.bytes > 0 && (uintptr_t)src % peri_dtype_size(e.dtype) == 0;
  peri_tensor *t = NULL;
  peri_status s;
  if (share) {
    TRY(check_bools(f, &e, src));
    TRY(peri_import(f->ctx, e.dtype, e.ndim, e.shape, NULL, (void *)(uintptr_t)src, peri__map_drop,
                    f->map, &t));
    f->map->refs++;
    *out = t;
    return PERI_OK;
  }
  s = peri_empty(f->ctx, e.dtype, e.ndim, e.shape, &t);
  if (s != PERI_OK)
    return peri__fail(f->ctx, s, "%s: tensor \"%.100s\": %s", f->path, e.name, f->ctx->message);
  if (e.bytes > 0) {
    if (src != NULL)
      memcpy(peri_data(t), src, (size_t)e.bytes);
    else
      s = peri__read_at(f->ctx, f->fd, f->path, e.offset, peri_data(t), (size_t)e.bytes);
    if (s == PERI_OK) s = check_bools(f, &e, peri_data(t));
  }
  if (s != PERI_OK) {
    peri_release(t);
    return s;
  }
  *out = t;
  return PERI_OK;
}
