/*
** gguf.h - what reading and writing GGUF share. The layout, all little-endian: "GGUF", u32 version,
** u64 number of tensors, u64 number of values; values: text key, u32 type, value; tensors: text name,
** u32 number of dims, u64 sizes (the fastest first), u32 type, u64 offset from the data; padding to
** the alignment; the data. A text is u64 length and bytes, an array u32 type, u64 count, elements
** (docs/gguf.md of ggml).
*/
#ifndef peri_gguf_h
#define peri_gguf_h

#include <string.h>

#include "io/files.h"

#define GGUF_MAX_VALUES 65536
#define GGUF_MAX_TENSORS 1048576
#define GGUF_MAX_KEY 65535
#define GGUF_MAX_NAME 64
#define GGUF_MAX_DIMS 4
#define GGUF_MAX_DEPTH 4 /* of arrays in arrays */
#define GGUF_MAX_ALIGNMENT ((int64_t)1 << 20)
#define GGUF_ALIGNMENT 32 /* without general.alignment */

/* Bytes of a number; 0 for texts and arrays. ORDER gguf type */
size_t peri__gguf_size (peri_gguf_type t);
const char *peri__gguf_type_name (peri_gguf_type t);

/* A type of tensors: ggml_type. bytes 0: the number is not one. */
typedef struct gguf_kind {
  const char *name;
  uint16_t elements, bytes; /* of a block */
  int8_t dtype;             /* -1: none here */
} gguf_kind;
#define GGUF_NKIND 41
extern const gguf_kind peri__gguf_kind[GGUF_NKIND];

typedef struct gguf_entry {
  uint64_t begin; /* of the data, from the data's start */
  uint32_t at;    /* of the record in the header */
} gguf_entry;

struct peri_gguf {
  peri_ctx *ctx;
  char *path;
  size_t path_size;
  uint64_t size; /* of the file */
  int version;
  int64_t alignment, n, nvalues;
  uint64_t data_at;
  uint32_t *values, *values_by_key; /* offsets of keys; positions in values */
  gguf_entry *entries;              /* by begin */
  uint32_t *entries_by_name;
  const unsigned char *header; /* from the file's start on: mapped, the caller's or buffer */
  uint64_t have;               /* bytes at header */
  unsigned char *buffer;
  size_t buffer_size;
  int fd; /* -1: none */
  peri__map *map;
  const unsigned char *memory; /* the file when parsed from memory, else NULL */
};

/* Check the header and fill the tables of a handle whose place to read from is set. */
peri_status peri__gguf_read_header (peri_gguf *f);
/* Check a header that is whole in memory, as that of a file of the given size. */
peri_status peri__gguf_check (peri_ctx *ctx, const char *path, const void *header, size_t n,
                              uint64_t size);
/* Numbers of the header, which nothing aligns. */
static inline uint32_t peri__load32 (const unsigned char *p) {
  uint32_t v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline uint64_t peri__load64 (const unsigned char *p) {
  uint64_t v;
  memcpy(&v, p, sizeof v);
  return v;
}
/* The text that begins at a byte of the checked header. */
static inline peri_gguf_text peri__gguf_text_at (const peri_gguf *f, uint64_t at) {
  return (peri_gguf_text){ (const char *)f->header + at + 8, (size_t)peri__load64(f->header + at) };
}
/* The tensor whose record is at a byte of the header. */
peri_gguf_entry peri__gguf_entry_at (const peri_gguf *f, const gguf_entry *e);
/* Position of a value or of a tensor, -1: none. */
int64_t peri__gguf_find (const peri_gguf *f, bool tensor, const char *name);

#endif
