/*
** fields.h - named fields of buffers: what a host says of them, checked once; their tensors; rows that come
** in and go out.
*/
#ifndef peri_env_fields_h
#define peri_env_fields_h

#include <string.h>

#include "core/core.h"

#define PERI__NAME_MAX 48
#define PERI__FIELDS_MAX 32

typedef struct peri__field {
  char name[PERI__NAME_MAX];
  peri_dtype dtype;
  peri_field_role role;
  int ndim;
  int64_t shape[PERI_MAX_DIMS];
  size_t row;       /* bytes */
  peri_space space; /* that values lie in, where there is a block */
  void *block;      /* memory of the space; NULL: any value */
  size_t block_size;
} peri__field;

/* Check n fields and take them over, to be dropped. reserved: names that the buffer has itself, NULL ends. */
peri_status peri__fields_take (peri_ctx *ctx, int n, const peri_field *given,
                               const char *const *reserved, peri__field *out);
void peri__field_drop (peri_ctx *ctx, peri__field *f);
/* Sizes of a tensor of rows of f under nlead leading dims; the number of dims. */
int peri__field_shape (const peri__field *f, int nlead, const int64_t *lead, int64_t *shape);
/* A new tensor of them, uninitialised. */
peri_status peri__field_tensor (peri_ctx *ctx, const peri__field *f, int nlead, const int64_t *lead,
                                peri_tensor **out);
/* Add the bytes of that many rows to *total; false: it overflows. */
bool peri__field_bytes (const peri__field *f, int64_t rows, size_t *total);
/* Values of that many rows lie in the space of f. */
peri_status peri__field_fits (peri_ctx *ctx, const peri__field *f, const char *name, int64_t rows,
                              const void *values);
/* t as (rows, ...) of f and dense: itself, retained, or a copy, also where its values do not fit. name is for the message. */
peri_status peri__field_rows (peri_ctx *ctx, const peri__field *f, const char *name, int64_t rows,
                              peri_tensor *t, peri_tensor **dense);
/* The values of t, of the dtype and shape of all of field i of a rollout, lie in its space. */
PERI_API peri_status peri__rollout_fits (const peri_rollout *r, int i, peri_tensor *t);
/* An output of that dtype and shape: made where *t is NULL, checked else. */
peri_status peri__field_out (peri_ctx *ctx, const char *name, peri_dtype d, int ndim,
                             const int64_t *shape, peri_tensor *given, peri_tensor **out);
/* t is i64 (n). */
peri_status peri__want_index (peri_ctx *ctx, const peri_tensor *t);

static inline void peri__row_copy (char *to, const char *from, size_t bytes) {
  switch (bytes) { /* sizes that are one move */
  case 1: *to = *from; break;
  case 4: memcpy(to, from, 4); break;
  case 8: memcpy(to, from, 8); break;
  case 16: memcpy(to, from, 16); break;
  default: memcpy(to, from, bytes);
  }
}

/* Pieces of work of so many bytes each: how many one thread takes at least. */
static inline int64_t peri__row_grain (size_t bytes) {
  return bytes >= 65536 ? 1 : (int64_t)(65536 / (bytes ? bytes : 1));
}

#endif
