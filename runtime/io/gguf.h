/*
** gguf.h - what reading and writing GGUF share. The layout, all little-endian: "GGUF", u32 version,
** u64 number of tensors, u64 number of values; values: text key, u32 type, value; tensors: text name,
** u32 number of dims, u64 sizes (the fastest first), u32 type, u64 offset from the data; padding to
** the alignment; the data. A text is u64 length and bytes, an array u32 type, u64 count, elements
** (docs/gguf.md of ggml).
*/
#ifndef peri_gguf_h
#define peri_gguf_h

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

#endif
