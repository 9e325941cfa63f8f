/*
** gguf.c - the header of GGUF files that nobody vouches for. It is checked in one pass that
** allocates only tables whose sizes the rest of the file bounds; values stay in the header and are
** decoded when they are asked for. Names are told apart by sorting them, which has no worst case.
*/
#include <stdio.h>
#include <string.h>

#include "io/gguf.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "GGUF data is little-endian; this machine needs a conversion that is not written"
#endif

#define FIRST_READ ((size_t)64 << 10)

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

static peri_status read32 (reader *r, const char *what, uint32_t *out) {
  TRY(need(r, 4, what));
  *out = peri__load32(r->f->header + r->at);
  r->at += 4;
  return PERI_OK;
}

static peri_status read64 (reader *r, const char *what, uint64_t *out) {
  TRY(need(r, 8, what));
  *out = peri__load64(r->f->header + r->at);
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
    peri_gguf_type item = PERI_GGUF_U8;
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
  v = peri__load32(r->f->header + at + 4);
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
    peri_gguf_type type = PERI_GGUF_U8;
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
  return peri__gguf_text_at(f, tensor ? f->entries[i].at : f->values[i]);
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

int64_t peri__gguf_find (const peri_gguf *f, bool tensor, const char *name) {
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

peri_gguf_entry peri__gguf_entry_at (const peri_gguf *f, const gguf_entry *e) {
  static const gguf_kind none = { "unknown", 1, 0, -1 };
  peri_gguf_entry v = { .name = peri__gguf_text_at(f, e->at), .offset = f->data_at + e->begin };
  const unsigned char *p = f->header + e->at + 8 + v.name.n;
  v.ndim = (int)peri__load32(p);
  uint64_t numel = 1;
  for (int i = 0; i < v.ndim; i++) {
    v.shape[v.ndim - 1 - i] = (int64_t)peri__load64(p + 4 + 8 * i);
    numel *= (uint64_t)v.shape[v.ndim - 1 - i]; /* was checked not to overflow */
  }
  uint32_t type = peri__load32(p + 4 + 8 * v.ndim);
  const gguf_kind *kind = type < GGUF_NKIND ? &peri__gguf_kind[type] : &none;
  if (kind->bytes == 0) kind = &none;
  v.type = kind->name;
  v.supported = kind->dtype >= 0;
  if (v.supported) v.dtype = (peri_dtype)kind->dtype;
  v.bytes = numel / kind->elements * kind->bytes;
  return v;
}

/* One record; everything that can be checked without the others is. */
static peri_status read_tensor (reader *r, gguf_entry *e) {
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
  const gguf_entry *x = a, *y = b;
  (void)ud;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  return x->at < y->at ? -1 : x->at > y->at;
}

/* Every tensor within the file, behind the one before. */
static peri_status check_layout (reader *r) {
  peri_gguf *f = r->f;
  uint64_t at = r->at, data, end = 0;
  data = (at + (uint64_t)f->alignment - 1) / (uint64_t)f->alignment * (uint64_t)f->alignment;
  f->data_at = data < f->size ? data : f->size; /* without tensors the padding may be missing */
  peri__sort(f->entries, (size_t)f->n, sizeof *f->entries, by_begin, NULL);
  r->what = "tensor";
  for (r->i = 0; r->i < f->n; r->i++) {
    const gguf_entry *e = &f->entries[r->i];
    peri_gguf_entry v = peri__gguf_entry_at(f, e);
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

/* ---- the whole ---- */

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

peri_status peri__gguf_read_header (peri_gguf *f) {
  reader r = { .f = f };
  uint64_t n = 0, nvalues = 0;
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
