/* fields.c - fields of replay buffers and rollouts: see fields.h. */
#include <stdio.h>

#include "env/env.h"
#include "env/fields.h"
#include "op/inplace.h"

static bool is_name (const char *s) {
  size_t n = 0;
  for (; s[n]; n++) {
    bool letter = (s[n] >= 'a' && s[n] <= 'z') || (s[n] >= 'A' && s[n] <= 'Z') || s[n] == '_';
    if (!letter && !(n > 0 && s[n] >= '0' && s[n] <= '9')) return false;
    if (n >= PERI__NAME_MAX - 1) return false;
  }
  return n > 0;
}

static bool same_shape (int n, const int64_t *a, int m, const int64_t *b) {
  return n == m && (n == 0 || memcmp(a, b, (size_t)n * sizeof *a) == 0);
}

static peri_status take_space (peri_ctx *ctx, const peri_space *space, peri__field *f) {
  peri_status s = peri_space_check(ctx, space);
  if (s != PERI_OK) return peri__fail(ctx, s, "field %s: %s", f->name, ctx->message);
  if (space->dtype != f->dtype || !same_shape(space->ndim, space->shape, f->ndim, f->shape)) {
    char want[128], have[128];
    return peri__fail(
        ctx, PERI_ESHAPE, "field %s is %s %s, its space %s %s", f->name, peri_dtype_name(f->dtype),
        peri__sizes_text(f->ndim, f->shape, want, sizeof want), peri_dtype_name(space->dtype),
        peri__sizes_text(space->ndim, space->shape, have, sizeof have));
  }
  f->block = peri__space_copy(ctx, space, &f->space, &f->block_size);
  return f->block ? PERI_OK
                  : peri__fail(ctx, PERI_ENOMEM, "field %s: no memory for its space", f->name);
}

static peri_status take (peri_ctx *ctx, const peri_field *given, peri__field *f) {
  if (!given->name || !is_name(given->name))
    return peri__fail(ctx, PERI_EINVAL,
                      "'%.60s' is no name of a field: letters, digits and _, at most %d of them",
                      given->name ? given->name : "", PERI__NAME_MAX - 1);
  if (given->dtype < 0 || given->dtype >= PERI_NDTYPE)
    return peri__fail(ctx, PERI_EDTYPE, "field %s: dtype %s has no elements of its own",
                      given->name, peri_dtype_name(given->dtype));
  if (given->ndim < 0 || given->ndim > PERI_MAX_DIMS - 2)
    return peri__fail(ctx, PERI_ESHAPE, "field %s: %d dims, at most %d are supported", given->name,
                      given->ndim, PERI_MAX_DIMS - 2);
  if ((unsigned)given->role > PERI_FIELD_START)
    return peri__fail(ctx, PERI_EINVAL, "field %s: role %d does not exist", given->name,
                      (int)given->role);
  int64_t numel;
  peri_status s = peri__check_shape(ctx, given->dtype, given->ndim, given->shape, &numel, &f->row);
  if (s != PERI_OK) return peri__fail(ctx, s, "field %s: %s", given->name, ctx->message);
  snprintf(f->name, sizeof f->name, "%s", given->name);
  f->dtype = given->dtype;
  f->role = given->role;
  f->ndim = given->ndim;
  for (int i = 0; i < f->ndim; i++) f->shape[i] = given->shape[i];
  return given->space ? take_space(ctx, given->space, f) : PERI_OK;
}

void peri__field_drop (peri_ctx *ctx, peri__field *f) {
  peri__free(ctx, f->block, f->block_size);
  f->block = NULL;
}

static peri_status take_all (peri_ctx *ctx, int n, const peri_field *given,
                             const char *const *reserved, peri__field *out);

peri_status peri__fields_take (peri_ctx *ctx, int n, const peri_field *given,
                               const char *const *reserved, peri__field *out) {
  if (n < 0 || n > PERI__FIELDS_MAX)
    return peri__fail(ctx, PERI_EINVAL, "%d fields, at most %d are supported", n, PERI__FIELDS_MAX);
  if (n > 0) NEED(ctx, given);
  memset(out, 0, (size_t)n * sizeof *out);
  peri_status s = take_all(ctx, n, given, reserved, out);
  for (int i = 0; s != PERI_OK && i < n; i++) peri__field_drop(ctx, &out[i]);
  return s;
}

static peri_status take_all (peri_ctx *ctx, int n, const peri_field *given,
                             const char *const *reserved, peri__field *out) {
  for (int i = 0; i < n; i++) {
    TRY(take(ctx, &given[i], &out[i]));
    for (int k = 0; reserved[k]; k++)
      if (strcmp(reserved[k], out[i].name) == 0)
        return peri__fail(ctx, PERI_EINVAL, "field %s: the buffer has that name itself",
                          out[i].name);
    for (int k = 0; k < i; k++)
      if (strcmp(out[k].name, out[i].name) == 0)
        return peri__fail(ctx, PERI_EINVAL, "field %s is given twice", out[i].name);
  }
  return PERI_OK;
}

int peri__field_shape (const peri__field *f, int nlead, const int64_t *lead, int64_t *shape) {
  for (int i = 0; i < nlead; i++) shape[i] = lead[i];
  for (int i = 0; i < f->ndim; i++) shape[nlead + i] = f->shape[i];
  return nlead + f->ndim;
}

peri_status peri__field_tensor (peri_ctx *ctx, const peri__field *f, int nlead, const int64_t *lead,
                                peri_tensor **out) {
  int64_t shape[PERI_MAX_DIMS];
  return peri__new(ctx, f->dtype, peri__field_shape(f, nlead, lead, shape), shape, out);
}

bool peri__field_bytes (const peri__field *f, int64_t rows, size_t *total) {
  size_t bytes;
  return !__builtin_mul_overflow(f->row, (size_t)rows, &bytes) &&
         !__builtin_add_overflow(*total, bytes, total) && *total <= INT64_MAX;
}

static bool has_shape (const peri_tensor *t, int ndim, const int64_t *shape) {
  if (t->ndim != ndim) return false;
  for (int i = 0; i < ndim; i++)
    if (t->shape[i] != shape[i]) return false;
  return true;
}

peri_status peri__field_fits (peri_ctx *ctx, const peri__field *f, const char *name, int64_t rows,
                              const void *values) {
  if (!f->block) return PERI_OK;
  int64_t bad = peri__space_bad_row(&f->space, values, rows);
  if (bad == rows) return PERI_OK;
  char why[160];
  peri__space_complaint(&f->space, (const char *)values + (size_t)bad * f->row, why, sizeof why);
  return peri__fail(ctx, PERI_EINVAL, "%s: row %s %s", name, peri__nth(ctx, bad), why);
}

peri_status peri__field_rows (peri_ctx *ctx, const peri__field *f, const char *name, int64_t rows,
                              peri_tensor *t, peri_tensor **dense) {
  int64_t shape[PERI_MAX_DIMS];
  char want[128], have[128];
  int ndim = peri__field_shape(f, 1, &rows, shape);
  TRY(peri__belongs(ctx, t, name));
  bool fits = has_shape(t, ndim, shape) || (rows == 1 && has_shape(t, ndim - 1, shape + 1));
  if (!fits)
    return peri__fail(ctx, PERI_ESHAPE, "%s has shape %s, the buffer's is %s", name,
                      peri__shape_text(t, have, sizeof have),
                      peri__sizes_text(ndim, shape, want, sizeof want));
  if (peri__opaque(t) || t->dtype != f->dtype)
    return peri__fail(ctx, PERI_EDTYPE, "%s is %s, the buffer's is %s", name,
                      t->storage->packed ? "packed" : peri_dtype_name((peri_dtype)t->dtype),
                      peri_dtype_name(f->dtype));
  if (!peri__dense(t))
    TRY(peri__contiguous(t, dense));
  else
    *dense = peri_retain(t);
  return peri__field_fits(ctx, f, name, rows, (*dense)->data);
}

peri_status peri__field_out (peri_ctx *ctx, const char *name, peri_dtype d, int ndim,
                             const int64_t *shape, peri_tensor *given, peri_tensor **out) {
  char want[128], have[128];
  if (!given) return peri__new(ctx, d, ndim, shape, out);
  TRY(peri__belongs(ctx, given, name));
  if (peri__opaque(given) || given->dtype != d || !has_shape(given, ndim, shape))
    return peri__fail(ctx, PERI_ESHAPE, "%s is written into: it is %s %s, %s %s is needed", name,
                      peri_dtype_name((peri_dtype)given->dtype),
                      peri__shape_text(given, have, sizeof have), peri_dtype_name(d),
                      peri__sizes_text(ndim, shape, want, sizeof want));
  if (!peri__dense(given))
    return peri__fail(ctx, PERI_EINVAL, "%s is written into: a dense tensor is needed", name);
  TRY(peri__check_target(ctx, given, name));
  if (given->node || peri__tracked(given))
    return peri__fail(ctx, PERI_EINVAL, "%s is written into, but takes part in a graph", name);
  *out = peri_retain(given);
  return PERI_OK;
}

peri_status peri__want_index (peri_ctx *ctx, const peri_tensor *t) {
  char have[128];
  TRY(peri__belongs(ctx, t, "index"));
  if (t->ndim != 1 || t->dtype != PERI_I64 || !peri__dense(t))
    return peri__fail(ctx, PERI_ESHAPE, "index is %s %s, dense i64 (n) is needed",
                      peri_dtype_name((peri_dtype)t->dtype),
                      peri__shape_text(t, have, sizeof have));
  return PERI_OK;
}
