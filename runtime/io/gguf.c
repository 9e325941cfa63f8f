/*
** gguf.c - reading GGUF files that nobody vouches for. The header is checked in one pass that
** allocates only tables whose sizes the rest of the file bounds; values stay in the header and are
** decoded when they are asked for. Names are told apart by sorting them, which has no worst case.
*/
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* close */
#endif
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "io/gguf.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "GGUF data is little-endian; this machine needs a conversion that is not written"
#endif

#define FIRST_READ ((size_t)64 << 10)

typedef struct entry {
  uint64_t begin; /* of the data, from the data's start */
  uint32_t at;    /* of the record in the header */
} entry;

struct peri_gguf {
  peri_ctx *ctx;
  char *path;
  size_t path_size;
  uint64_t size; /* of the file */
  int version;
  int64_t alignment, n, nvalues;
  uint64_t data_at;
  uint32_t *values, *values_by_key; /* offsets of keys; positions in values */
  entry *entries;                   /* by begin */
  uint32_t *entries_by_name;
  const unsigned char *header; /* from the file's start on: mapped, the caller's or buffer */
  uint64_t have;               /* bytes at header */
  unsigned char *buffer;
  size_t buffer_size;
  int fd; /* -1: none */
  peri__map *map;
  const unsigned char *memory; /* the file when parsed from memory, else NULL */
};

/* Reading the header: the position, and what is being read, for messages. */
typedef struct reader {
  peri_gguf *f;
  uint64_t at;
  const char *what; /* "value" or "tensor" */
  int64_t i;        /* which */
  uint64_t key_at;  /* its key or name in the header, once known; else 0 */
  size_t key_size;
} reader;

/* "PATH: byte 24: value 3 (general.name): ..." */
static peri_status fail (const reader *r, uint64_t at, const char *fmt, ...) PERI_PRINTF(3, 4);
static peri_status fail (const reader *r, uint64_t at, const char *fmt, ...) {
  char text[300], where[160] = "";
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  if (r->what != NULL) {
    int n = snprintf(where, sizeof where, "%s %lld", r->what, (long long)r->i);
    if (r->key_at != 0)
      n += snprintf(where + n, sizeof where - (size_t)n, " (%.*s)",
                    r->key_size > 100 ? 100 : (int)r->key_size,
                    (const char *)r->f->header + r->key_at);
    snprintf(where + n, sizeof where - (size_t)n, ": ");
  }
  return peri__fail(r->f->ctx, PERI_EFORMAT, "%s: byte %llu: %s%s", r->f->path,
                    (unsigned long long)at, where, text);
}

/* ---- bytes ---- */

/* More of the header into the buffer, at least up to the byte `end`, which is within the file. */
static peri_status read_on (peri_gguf *f, uint64_t end) {
  uint64_t want = 2 * f->have > end ? 2 * f->have : end;
  if (want < FIRST_READ) want = FIRST_READ;
  if (want > f->size) want = f->size;
  unsigned char *p = peri__realloc(f->ctx, f->buffer, f->buffer_size, (size_t)want);
  if (p == NULL) return peri__fail(f->ctx, PERI_ENOMEM, "%s: no memory for its header", f->path);
  f->header = f->buffer = p;
  f->buffer_size = (size_t)want;
  TRY(peri__read_at(f->ctx, f->fd, f->path, f->have, p + f->have, (size_t)(want - f->have)));
  f->have = want;
  return PERI_OK;
}

/* The next n bytes are there; what names them in the message. */
static peri_status need (reader *r, uint64_t n, const char *what) {
  peri_gguf *f = r->f;
  uint64_t left = f->size - r->at;
  if (n > left)
    return fail(r, r->at, "%s needs %llu bytes, %llu are left", what, (unsigned long long)n,
                (unsigned long long)left);
  if (r->at + n > UINT32_MAX) return fail(r, r->at, "the header has more than 4 GiB");
  return r->at + n <= f->have ? PERI_OK : read_on(f, r->at + n);
}

static uint32_t load32 (const unsigned char *p) {
  uint32_t v;
  memcpy(&v, p, sizeof v);
  return v;
}

static uint64_t load64 (const unsigned char *p) {
  uint64_t v;
  memcpy(&v, p, sizeof v);
  return v;
}

static peri_status read32 (reader *r, const char *what, uint32_t *out) {
  TRY(need(r, 4, what));
  *out = load32(r->f->header + r->at);
  r->at += 4;
  return PERI_OK;
}

static peri_status read64 (reader *r, const char *what, uint64_t *out) {
  TRY(need(r, 8, what));
  *out = load64(r->f->header + r->at);
  r->at += 8;
  return PERI_OK;
}

/* Skip a text of at most `most` bytes; its length. */
static peri_status read_text (reader *r, const char *what, uint64_t most, uint64_t *n) {
  uint64_t at = r->at;
  TRY(read64(r, what, n));
  if (*n > r->f->size - r->at)
    return fail(r, at, "%s has %llu bytes, %llu are left", what, (unsigned long long)*n,
                (unsigned long long)(r->f->size - r->at));
  if (*n > most)
    return fail(r, at, "%s has %llu bytes, the limit is %llu", what, (unsigned long long)*n,
                (unsigned long long)most);
  TRY(need(r, *n, what));
  r->at += *n;
  return PERI_OK;
}

/* A key or a name: not empty, no zero bytes. */
static peri_status read_name (reader *r, const char *what, uint64_t most, uint32_t *at) {
  uint64_t n;
  *at = (uint32_t)r->at;
  TRY(read_text(r, what, most, &n));
  const unsigned char *s = r->f->header + *at + 8;
  if (n == 0) return fail(r, *at, "%s is empty", what);
  if (memchr(s, 0, (size_t)n) != NULL) return fail(r, *at + 8, "%s holds a zero byte", what);
  r->key_at = *at + 8;
  r->key_size = (size_t)n;
  return PERI_OK;
}

/* The text that begins at a byte of the checked header. */
static peri_gguf_text text_at (const peri_gguf *f, uint64_t at) {
  return (peri_gguf_text){ (const char *)f->header + at + 8, (size_t)load64(f->header + at) };
}

/* ---- values ---- */

static peri_status read_type (reader *r, const char *what, peri_gguf_type *out) {
  uint64_t at = r->at;
  uint32_t type;
  TRY(read32(r, what, &type));
  if (type >= PERI_GGUF_NTYPE)
    return fail(r, at, "%s %lu does not exist", what, (unsigned long)type);
  *out = (peri_gguf_type)type;
  return PERI_OK;
}

static peri_status check_bools (reader *r, uint64_t at, uint64_t n) {
  for (uint64_t i = 0; i < n; i++)
    if (r->f->header[at + i] > 1)
      return fail(r, at + i, "a bool is %u, 0 or 1 is expected", r->f->header[at + i]);
  return PERI_OK;
}

/* Skip the value of a type, or n of them in an array; count comes from the file. */
static peri_status skip (reader *r, peri_gguf_type type, uint64_t count, int depth) {
  /* the least that an element takes: bounds the count before anything is read */
  static const uint8_t least[] = { [PERI_GGUF_TEXT] = 8, [PERI_GGUF_ARRAY] = 12 };
  size_t size = peri__gguf_size(type);
  uint64_t each = size != 0 ? size : least[type], left = r->f->size - r->at, at = r->at, n;
  if (count > left / each)
    return fail(r, at, "%llu elements of type %s need at least %llu bytes each, %llu are left",
                (unsigned long long)count, peri__gguf_type_name(type), (unsigned long long)each,
                (unsigned long long)left);
  if (size != 0) {
    TRY(need(r, count * size, "the value"));
    r->at += count * size;
    return type == PERI_GGUF_BOOL ? check_bools(r, at, count) : PERI_OK;
  }
  if (type == PERI_GGUF_ARRAY && depth == GGUF_MAX_DEPTH)
    return fail(r, at, "arrays are nested more than %d deep", GGUF_MAX_DEPTH);
  for (uint64_t i = 0; i < count; i++) {
    if (type == PERI_GGUF_TEXT) {
      TRY(read_text(r, "a text", UINT32_MAX, &n));
      continue;
    }
    peri_gguf_type item;
    TRY(read_type(r, "the type of an array", &item));
    TRY(read64(r, "the length of an array", &n));
    TRY(skip(r, item, n, depth + 1));
  }
  return PERI_OK;
}

static peri_status read_alignment (reader *r, peri_gguf_type type, uint64_t at) {
  uint32_t v;
  if (type != PERI_GGUF_U32)
    return fail(r, at, "the alignment has type %s, u32 is expected", peri__gguf_type_name(type));
  v = load32(r->f->header + at + 4);
  if (v == 0 || (v & (v - 1)) != 0 || v > GGUF_MAX_ALIGNMENT)
    return fail(r, at + 4, "the alignment is %lu, a power of two up to %lld is expected",
                (unsigned long)v, (long long)GGUF_MAX_ALIGNMENT);
  r->f->alignment = v;
  return PERI_OK;
}

static peri_status read_values (reader *r) {
  static const char alignment[] = "general.alignment";
  peri_gguf *f = r->f;
  for (r->i = 0; r->i < f->nvalues; r->i++) {
    peri_gguf_type type;
    r->key_at = 0;
    TRY(read_name(r, "the key", GGUF_MAX_KEY, &f->values[r->i]));
    uint64_t at = r->at;
    TRY(read_type(r, "type", &type));
    TRY(skip(r, type, 1, 0));
    if (r->key_size == sizeof alignment - 1 &&
        memcmp(f->header + r->key_at, alignment, r->key_size) == 0)
      TRY(read_alignment(r, type, at));
  }
  return PERI_OK;
}

/* ---- names ---- */

static int compare_texts (peri_gguf_text a, peri_gguf_text b) {
  int c = memcmp(a.s, b.s, a.n < b.n ? a.n : b.n);
  return c != 0 ? c : a.n < b.n ? -1 : a.n > b.n;
}

static peri_gguf_text name_of (const peri_gguf *f, bool tensor, uint32_t i) {
  return text_at(f, tensor ? f->entries[i].at : f->values[i]);
}

static int by_key (void *ud, const void *a, const void *b) {
  return compare_texts(name_of(ud, false, *(const uint32_t *)a),
                       name_of(ud, false, *(const uint32_t *)b));
}

static int by_name (void *ud, const void *a, const void *b) {
  return compare_texts(name_of(ud, true, *(const uint32_t *)a),
                       name_of(ud, true, *(const uint32_t *)b));
}

/* Sort the positions of n names in perm; no two may be equal. */
static peri_status sort_names (reader *r, bool tensor, uint32_t *perm, int64_t n) {
  peri_gguf *f = r->f;
  for (int64_t i = 0; i < n; i++) perm[i] = (uint32_t)i;
  peri__sort(perm, (size_t)n, sizeof *perm, tensor ? by_name : by_key, f);
  for (int64_t i = 1; i < n; i++) {
    peri_gguf_text a = name_of(f, tensor, perm[i - 1]), b = name_of(f, tensor, perm[i]);
    if (compare_texts(a, b) != 0) continue;
    uint32_t first = tensor ? f->entries[perm[i - 1]].at : f->values[perm[i - 1]],
             second = tensor ? f->entries[perm[i]].at : f->values[perm[i]];
    r->what = NULL;
    return fail(r, first > second ? first : second, "two %s are named \"%.*s\"",
                tensor ? "tensors" : "values", a.n > 100 ? 100 : (int)a.n, a.s);
  }
  return PERI_OK;
}

static int64_t find (const peri_gguf *f, bool tensor, const char *name) {
  const uint32_t *perm = tensor ? f->entries_by_name : f->values_by_key;
  peri_gguf_text want = { name, strlen(name) };
  int64_t lo = 0, hi = tensor ? f->n : f->nvalues;
  while (lo < hi) {
    int64_t mid = lo + (hi - lo) / 2;
    int c = compare_texts(name_of(f, tensor, perm[mid]), want);
    if (c == 0) return perm[mid];
    if (c < 0)
      lo = mid + 1;
    else
      hi = mid;
  }
  return -1;
}

/* ---- tensors ---- */

/* The record at a byte of the checked header. */
static peri_gguf_entry entry_of (const peri_gguf *f, const entry *e, const gguf_kind **kind) {
  static const gguf_kind none = { "", 1, 0, -1 };
  peri_gguf_entry v = { .name = text_at(f, e->at), .offset = f->data_at + e->begin };
  const unsigned char *p = f->header + e->at + 8 + v.name.n;
  v.ndim = (int)load32(p);
  uint64_t numel = 1;
  for (int i = 0; i < v.ndim; i++) {
    v.shape[v.ndim - 1 - i] = (int64_t)load64(p + 4 + 8 * i);
    numel *= (uint64_t)v.shape[v.ndim - 1 - i]; /* was checked not to overflow */
  }
  uint32_t type = load32(p + 4 + 8 * v.ndim);
  *kind = type < GGUF_NKIND && peri__gguf_kind[type].bytes != 0 ? &peri__gguf_kind[type] : &none;
  v.type = *kind == &none ? "unknown" : (*kind)->name;
  v.supported = (*kind)->dtype >= 0;
  if (v.supported) v.dtype = (peri_dtype)(*kind)->dtype;
  v.bytes = numel / (*kind)->elements * (*kind)->bytes;
  return v;
}

/* One record; everything that can be checked without the others is. */
static peri_status read_tensor (reader *r, entry *e) {
  uint32_t ndim, type;
  uint64_t at, offset;
  int64_t size = 1, first = 1, bytes;
  r->key_at = 0;
  TRY(read_name(r, "the name", GGUF_MAX_NAME, &e->at));
  at = r->at;
  TRY(read32(r, "the number of dims", &ndim));
  if (ndim > GGUF_MAX_DIMS)
    return fail(r, at, "%lu dims, at most %d are allowed", (unsigned long)ndim, GGUF_MAX_DIMS);
  for (uint32_t i = 0; i < ndim; i++) {
    uint64_t v;
    at = r->at;
    TRY(read64(r, "a size", &v));
    if (v == 0 || v > INT64_MAX)
      return fail(r, at, "dim %lu has size %llu, 1 or more is expected", (unsigned long)i,
                  (unsigned long long)v);
    if (i == 0) first = (int64_t)v;
    if (__builtin_mul_overflow(size, (int64_t)v, &size))
      return fail(r, at, "the number of elements overflows 64 bits");
  }
  at = r->at;
  TRY(read32(r, "the type", &type));
  const gguf_kind *k = type < GGUF_NKIND ? &peri__gguf_kind[type] : NULL;
  bytes = 0;
  if (k != NULL && k->bytes != 0) {
    if (first % k->elements != 0)
      return fail(r, at, "type %s has blocks of %d elements, rows of %lld are no multiple", k->name,
                  k->elements, (long long)first);
    if (__builtin_mul_overflow(size / k->elements, (int64_t)k->bytes, &bytes))
      return fail(r, at, "the size in bytes overflows 64 bits");
  }
  at = r->at;
  TRY(read64(r, "the offset", &offset));
  if (offset % (uint64_t)r->f->alignment != 0)
    return fail(r, at, "offset %llu is no multiple of the alignment %lld",
                (unsigned long long)offset, (long long)r->f->alignment);
  if (offset > r->f->size || (uint64_t)bytes > r->f->size - offset)
    return fail(r, at, "%lld bytes at offset %llu of the data in a file of %llu", (long long)bytes,
                (unsigned long long)offset, (unsigned long long)r->f->size);
  e->begin = offset;
  return PERI_OK;
}

static int by_begin (void *ud, const void *a, const void *b) {
  const entry *x = a, *y = b;
  (void)ud;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  return x->at < y->at ? -1 : x->at > y->at;
}

/* Every tensor within the file, behind the one before. */
static peri_status check_layout (reader *r) {
  peri_gguf *f = r->f;
  const gguf_kind *kind;
  uint64_t at = r->at, data, end = 0;
  data = (at + (uint64_t)f->alignment - 1) / (uint64_t)f->alignment * (uint64_t)f->alignment;
  f->data_at = data < f->size ? data : f->size; /* without tensors the padding may be missing */
  peri__sort(f->entries, (size_t)f->n, sizeof *f->entries, by_begin, NULL);
  r->what = "tensor";
  for (r->i = 0; r->i < f->n; r->i++) {
    const entry *e = &f->entries[r->i];
    peri_gguf_entry v = entry_of(f, e, &kind);
    r->key_at = e->at + 8;
    r->key_size = v.name.n;
    if (e->begin < end)
      return fail(r, e->at,
                  "its data at offset %llu overlaps the tensor before, which ends at %llu",
                  (unsigned long long)e->begin, (unsigned long long)end);
    if (e->begin > f->size - f->data_at || v.bytes > f->size - f->data_at - e->begin)
      return fail(r, e->at, "%llu bytes of data at byte %llu of a file of %llu",
                  (unsigned long long)v.bytes, (unsigned long long)v.offset,
                  (unsigned long long)f->size);
    end = e->begin + v.bytes;
  }
  return PERI_OK;
}

static peri_status read_tensors (reader *r) {
  peri_gguf *f = r->f;
  r->what = "tensor";
  for (r->i = 0; r->i < f->n; r->i++) TRY(read_tensor(r, &f->entries[r->i]));
  TRY(check_layout(r));
  return sort_names(r, true, f->entries_by_name, f->n);
}

/* ---- opening ---- */

/* A number of records of at least `each` bytes that what is left can hold. */
static peri_status check_count (reader *r, uint64_t at, const char *what, uint64_t n, uint64_t most,
                                uint64_t each) {
  uint64_t left = r->f->size - r->at;
  if (n > most)
    return fail(r, at, "%llu %s, the limit is %llu", (unsigned long long)n, what,
                (unsigned long long)most);
  if (n > left / each)
    return fail(r, at, "%llu %s need at least %llu bytes, %llu are left", (unsigned long long)n,
                what, (unsigned long long)(n * each), (unsigned long long)left);
  return PERI_OK;
}

static peri_status read_start (reader *r, uint64_t *n, uint64_t *nvalues) {
  uint32_t version;
  if (r->f->size < 4)
    return fail(r, 0, "%llu bytes are no GGUF file", (unsigned long long)r->f->size);
  TRY(need(r, 4, "the magic number"));
  if (memcmp(r->f->header, "GGUF", 4) != 0) return fail(r, 0, "a GGUF file begins with \"GGUF\"");
  r->at = 4;
  TRY(read32(r, "the version", &version));
  if ((version & 0xffff) == 0 && version != 0)
    return fail(r, 4, "the file is big-endian (version %lu), only little-endian files are read",
                (unsigned long)__builtin_bswap32(version));
  if (version < 2 || version > 3)
    return fail(r, 4, "version %lu, only 2 and 3 are read", (unsigned long)version);
  r->f->version = (int)version;
  TRY(read64(r, "the number of tensors", n));
  return read64(r, "the number of values", nvalues);
}

static peri_status no_memory (const peri_gguf *f, uint64_t n, const char *what) {
  return peri__fail(f->ctx, PERI_ENOMEM, "%s: no memory for a list of %llu %s", f->path,
                    (unsigned long long)n, what);
}

static peri_status read_header (peri_gguf *f) {
  reader r = { .f = f };
  uint64_t n, nvalues;
  TRY(read_start(&r, &n, &nvalues));
  TRY(check_count(&r, 16, "values", nvalues, GGUF_MAX_VALUES, 8 + 1 + 4 + 1));
  TRY(check_count(&r, 8, "tensors", n, GGUF_MAX_TENSORS, 8 + 1 + 4 + 4 + 8));
  f->nvalues = (int64_t)nvalues; /* with which the close frees the tables */
  f->values = peri__malloc(f->ctx, (size_t)nvalues * sizeof *f->values);
  f->values_by_key = peri__malloc(f->ctx, (size_t)nvalues * sizeof *f->values_by_key);
  if (f->values == NULL || f->values_by_key == NULL) return no_memory(f, nvalues, "values");
  r.what = "value";
  TRY(read_values(&r));
  TRY(sort_names(&r, false, f->values_by_key, f->nvalues));
  r.what = NULL;
  TRY(check_count(&r, 8, "tensors", n, GGUF_MAX_TENSORS, 8 + 1 + 4 + 4 + 8));
  f->n = (int64_t)n;
  f->entries = peri__malloc(f->ctx, (size_t)n * sizeof *f->entries);
  f->entries_by_name = peri__malloc(f->ctx, (size_t)n * sizeof *f->entries_by_name);
  if (f->entries == NULL || f->entries_by_name == NULL) return no_memory(f, n, "tensors");
  return read_tensors(&r);
}

static peri_status new_handle (peri_ctx *ctx, const char *path, uint64_t size, peri_gguf **out) {
  size_t path_size = strlen(path) + 1;
  peri_gguf *f = peri__malloc(ctx, sizeof *f);
  char *copy = peri__malloc(ctx, path_size);
  if (f == NULL || copy == NULL) {
    peri__free(ctx, f, sizeof *f);
    peri__free(ctx, copy, path_size);
    return peri__fail(ctx, PERI_ENOMEM, "%s: no memory to open it", path);
  }
  memcpy(copy, path, path_size);
  *f = (peri_gguf){ .ctx = ctx,
                    .path = copy,
                    .path_size = path_size,
                    .size = size,
                    .alignment = GGUF_ALIGNMENT,
                    .fd = -1 };
  *out = f;
  return PERI_OK;
}

peri_status peri_gguf_open (peri_ctx *ctx, const char *path, bool map, peri_gguf **out) {
  int fd;
  uint64_t size;
  peri_gguf *f = NULL;
  *out = NULL;
  TRY(peri__open_regular(ctx, path, &fd, &size));
  peri_status s = new_handle(ctx, path, size, &f);
  if (s != PERI_OK) {
    close(fd);
    return s;
  }
  f->fd = fd;
  if (map) s = peri__map_file(ctx, path, fd, size, &f->map);
  if (f->map != NULL) {
    f->header = f->map->base;
    f->have = size;
  }
  if (s == PERI_OK) s = read_header(f);
  if (s != PERI_OK) {
    peri_gguf_close(f);
    return s;
  }
  *out = f;
  return PERI_OK;
}

peri_status peri_gguf_parse (peri_ctx *ctx, const void *data, size_t size, peri_gguf **out) {
  peri_gguf *f;
  *out = NULL;
  TRY(new_handle(ctx, "memory", size, &f));
  f->header = f->memory = data;
  f->have = size;
  peri_status s = read_header(f);
  if (s != PERI_OK) {
    peri_gguf_close(f);
    return s;
  }
  *out = f;
  return PERI_OK;
}

void peri_gguf_close (peri_gguf *f) {
  if (f == NULL) return;
  peri_ctx *ctx = f->ctx;
  if (f->map != NULL) peri__map_drop(f->map, NULL);
  if (f->fd >= 0) close(f->fd);
  peri__free(ctx, f->values, (size_t)f->nvalues * sizeof *f->values);
  peri__free(ctx, f->values_by_key, (size_t)f->nvalues * sizeof *f->values_by_key);
  peri__free(ctx, f->entries, (size_t)f->n * sizeof *f->entries);
  peri__free(ctx, f->entries_by_name, (size_t)f->n * sizeof *f->entries_by_name);
  peri__free(ctx, f->buffer, f->buffer_size);
  peri__free(ctx, f->path, f->path_size);
  peri__free(ctx, f, sizeof *f);
}

/* ---- what is asked for later ---- */

int peri_gguf_version (const peri_gguf *f) { return f->version; }
int64_t peri_gguf_alignment (const peri_gguf *f) { return f->alignment; }
int64_t peri_gguf_nvalues (const peri_gguf *f) { return f->nvalues; }
int64_t peri_gguf_count (const peri_gguf *f) { return f->n; }
int64_t peri_gguf_find (const peri_gguf *f, const char *key) { return find(f, false, key); }
int64_t peri_gguf_find_tensor (const peri_gguf *f, const char *name) { return find(f, true, name); }

peri_gguf_entry peri_gguf_entry_at (const peri_gguf *f, int64_t i) {
  const gguf_kind *kind;
  return entry_of(f, &f->entries[i], &kind);
}

/* The value of a type at a byte of the checked header. */
static peri_gguf_value value_at (const peri_gguf *f, peri_gguf_type type, uint64_t at) {
  peri_gguf_value v = { .type = type, .count = 1, .offset = at };
  if (type != PERI_GGUF_ARRAY) return v;
  v.array = true;
  v.type = (peri_gguf_type)load32(f->header + at);
  v.count = (int64_t)load64(f->header + at + 4);
  v.offset = at + 12;
  return v;
}

peri_gguf_value peri_gguf_at (const peri_gguf *f, int64_t i) {
  peri_gguf_text key = text_at(f, f->values[i]);
  uint64_t at = f->values[i] + 8 + (uint64_t)key.n;
  peri_gguf_value v = value_at(f, (peri_gguf_type)load32(f->header + at), at + 4);
  v.key = key;
  return v;
}

static const unsigned char *element (const peri_gguf *f, const peri_gguf_value *v, int64_t i) {
  size_t size = peri__gguf_size(v->type);
  if (size == 0 || i < 0 || i >= v->count) return NULL;
  return f->header + v->offset + (uint64_t)i * size;
}

bool peri_gguf_int (const peri_gguf *f, const peri_gguf_value *v, int64_t i, int64_t *out) {
  const unsigned char *p = element(f, v, i);
  if (p == NULL) return false;
  switch (v->type) {
  case PERI_GGUF_U8:
  case PERI_GGUF_BOOL: *out = *p; return true;
  case PERI_GGUF_I8: *out = (int8_t)*p; return true;
  case PERI_GGUF_U16: *out = p[0] | p[1] << 8; return true;
  case PERI_GGUF_I16: *out = (int16_t)(p[0] | p[1] << 8); return true;
  case PERI_GGUF_U32: *out = load32(p); return true;
  case PERI_GGUF_I32: *out = (int32_t)load32(p); return true;
  case PERI_GGUF_I64: *out = (int64_t)load64(p); return true;
  case PERI_GGUF_U64: *out = (int64_t)load64(p); return *out >= 0;
  default: return false;
  }
}

bool peri_gguf_num (const peri_gguf *f, const peri_gguf_value *v, int64_t i, double *out) {
  const unsigned char *p = element(f, v, i);
  int64_t whole;
  float single;
  if (p == NULL) return false;
  if (v->type == PERI_GGUF_F32) {
    memcpy(&single, p, sizeof single);
    *out = single;
  } else if (v->type == PERI_GGUF_F64) {
    memcpy(out, p, sizeof *out);
  } else if (v->type == PERI_GGUF_U64) {
    *out = (double)load64(p);
  } else {
    if (!peri_gguf_int(f, v, i, &whole)) return false;
    *out = (double)whole;
  }
  return true;
}

bool peri_gguf_string (const peri_gguf *f, const peri_gguf_value *v, peri_gguf_text *out) {
  if (v->array || v->type != PERI_GGUF_TEXT) return false;
  *out = text_at(f, v->offset);
  return true;
}

/* The byte behind a value of the checked header. */
static uint64_t end_of (const peri_gguf *f, const peri_gguf_value *v) {
  uint64_t at = v->offset;
  size_t size = peri__gguf_size(v->type);
  if (size != 0) return at + (uint64_t)v->count * size;
  for (int64_t i = 0; i < v->count; i++) {
    if (v->type == PERI_GGUF_TEXT) {
      at += 8 + load64(f->header + at);
      continue;
    }
    peri_gguf_value inner = value_at(f, PERI_GGUF_ARRAY, at);
    at = end_of(f, &inner);
  }
  return at;
}

bool peri_gguf_next (const peri_gguf *f, const peri_gguf_value *array, peri_gguf_cursor *c,
                     peri_gguf_value *item) {
  if (!array->array || c->i >= array->count) return false;
  if (c->i == 0) c->at = array->offset;
  *item = value_at(f, array->type, c->at);
  c->at = end_of(f, item);
  c->i++;
  return true;
}

/* ---- by key ---- */

static peri_status get (const peri_gguf *f, const char *key, bool array, const char *what,
                        peri_gguf_value *out) {
  int64_t i = peri_gguf_find(f, key);
  if (i < 0) return peri__fail(f->ctx, PERI_EINVAL, "%s: there is no value \"%s\"", f->path, key);
  *out = peri_gguf_at(f, i);
  if (out->array == array) return PERI_OK;
  return peri__fail(f->ctx, PERI_EFORMAT, "%s: byte %llu: value \"%s\" is %s, %s is expected",
                    f->path, (unsigned long long)out->offset, key,
                    out->array ? "an array" : peri__gguf_type_name(out->type), what);
}

static peri_status wrong (const peri_gguf *f, const peri_gguf_value *v, const char *what) {
  return peri__fail(f->ctx, PERI_EFORMAT, "%s: byte %llu: value \"%.*s\" is %s%s, %s is expected",
                    f->path, (unsigned long long)v->offset, v->key.n > 100 ? 100 : (int)v->key.n,
                    v->key.s, v->array ? "an array of " : "", peri__gguf_type_name(v->type), what);
}

peri_status peri_gguf_get_int (const peri_gguf *f, const char *key, int64_t *out) {
  peri_gguf_value v;
  TRY(get(f, key, false, "an integer", &v));
  return peri_gguf_int(f, &v, 0, out) && v.type != PERI_GGUF_BOOL ? PERI_OK
                                                                  : wrong(f, &v, "an integer");
}

peri_status peri_gguf_get_num (const peri_gguf *f, const char *key, double *out) {
  peri_gguf_value v;
  TRY(get(f, key, false, "a number", &v));
  return peri_gguf_num(f, &v, 0, out) && v.type != PERI_GGUF_BOOL ? PERI_OK
                                                                  : wrong(f, &v, "a number");
}

peri_status peri_gguf_get_bool (const peri_gguf *f, const char *key, bool *out) {
  peri_gguf_value v;
  TRY(get(f, key, false, "a bool", &v));
  if (v.type != PERI_GGUF_BOOL) return wrong(f, &v, "a bool");
  *out = f->header[v.offset] != 0;
  return PERI_OK;
}

peri_status peri_gguf_get_text (const peri_gguf *f, const char *key, peri_gguf_text *out) {
  peri_gguf_value v;
  TRY(get(f, key, false, "a text", &v));
  return peri_gguf_string(f, &v, out) ? PERI_OK : wrong(f, &v, "a text");
}

peri_status peri_gguf_get_array (const peri_gguf *f, const char *key, peri_gguf_type kind,
                                 peri_gguf_value *out) {
  peri_gguf_value v;
  const char *what = kind == PERI_GGUF_TEXT  ? "an array of texts"
                     : kind == PERI_GGUF_F32 ? "an array of floats"
                                             : "an array of integers";
  TRY(get(f, key, true, what, &v));
  bool floats = v.type == PERI_GGUF_F32 || v.type == PERI_GGUF_F64;
  bool good = kind == PERI_GGUF_TEXT  ? v.type == PERI_GGUF_TEXT
              : kind == PERI_GGUF_F32 ? floats
                                      : !floats && peri__gguf_size(v.type) != 0;
  if (!good) return wrong(f, &v, what);
  *out = v;
  return PERI_OK;
}

/* ---- tensors ---- */

peri_status peri_gguf_tensor (peri_gguf *f, int64_t i, peri_tensor **out) {
  *out = NULL;
  if (i < 0 || i >= f->n)
    return peri__fail(f->ctx, PERI_EINVAL, "%s: tensor %lld of %lld", f->path, (long long)i,
                      (long long)f->n);
  peri_gguf_entry e = peri_gguf_entry_at(f, i);
  int name = (int)e.name.n;
  if (!e.supported)
    return peri__fail(f->ctx, PERI_ENOSUP,
                      "%s: byte %llu: type %s of tensor \"%.*s\" is not supported", f->path,
                      (unsigned long long)f->entries[i].at, e.type, name, e.name.s);
  size_t unit = peri_dtype_size(e.dtype);
  const unsigned char *src = f->memory != NULL ? f->memory + e.offset
                             : f->map != NULL  ? (unsigned char *)f->map->base + e.offset
                                               : NULL;
  if (unit == 0) unit = 2; /* blocks hold half floats */
  if (f->map != NULL && (uintptr_t)src % unit == 0) {
    TRY(peri_import(f->ctx, e.dtype, e.ndim, e.shape, NULL, (void *)(uintptr_t)src, peri__map_drop,
                    f->map, out));
    f->map->refs++;
    return PERI_OK;
  }
  peri_tensor *t;
  peri_status s = peri_empty(f->ctx, e.dtype, e.ndim, e.shape, &t);
  if (s != PERI_OK)
    return peri__fail(f->ctx, s, "%s: tensor \"%.*s\": %s", f->path, name, e.name.s,
                      f->ctx->message);
  if (src != NULL)
    memcpy(peri_data(t), src, (size_t)e.bytes);
  else
    s = peri__read_at(f->ctx, f->fd, f->path, e.offset, peri_data(t), (size_t)e.bytes);
  if (s != PERI_OK) {
    peri_release(t);
    return s;
  }
  *out = t;
  return PERI_OK;
}
