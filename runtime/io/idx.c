/*
** idx.c - IDX files, plain and gzipped, as those of MNIST: two zero bytes, a type, the number of dims,
** sizes and elements, all big-endian (yann.lecun.com/exdb/mnist).
*/
#include "io/stream.h"

static peri_status read_type (peri__stream *st, unsigned type, peri_dtype *d) {
  static const struct {
    uint8_t type;
    int8_t dtype;
    const char *name;
  } types[] = { { 0x08, PERI_U8, "u8" },   { 0x09, -1, "i8" },        { 0x0B, -1, "i16" },
                { 0x0C, PERI_I32, "i32" }, { 0x0D, PERI_F32, "f32" }, { 0x0E, PERI_F64, "f64" } };
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    if (types[i].type != type) continue;
    if (types[i].dtype < 0)
      return peri__stream_fail(st, "IDX elements of type %s are not supported", types[i].name);
    *d = (peri_dtype)types[i].dtype;
    return PERI_OK;
  }
  return peri__stream_fail(st, "type 0x%02x of IDX does not exist", type);
}

static peri_status read_array (peri_ctx *ctx, peri__stream *st, peri_tensor **out) {
  unsigned char b[4 * PERI_MAX_DIMS];
  int64_t shape[PERI_MAX_DIMS], numel;
  size_t bytes;
  peri_dtype d = PERI_U8;
  TRY(peri__stream_need(st, b, 4, "the start of an IDX file"));
  if (b[0] != 0 || b[1] != 0) return peri__stream_fail(st, "no IDX file begins like this");
  TRY(read_type(st, b[2], &d));
  int ndim = b[3];
  if (ndim > PERI_MAX_DIMS)
    return peri__stream_fail(st, "%d dims, at most %d are supported", ndim, PERI_MAX_DIMS);
  TRY(peri__stream_need(st, b, 4 * (size_t)ndim, "the sizes"));
  for (int i = 0; i < ndim; i++)
    shape[i] = (int64_t)((uint32_t)b[4 * i] << 24 | (uint32_t)b[4 * i + 1] << 16 |
                         (uint32_t)b[4 * i + 2] << 8 | b[4 * i + 3]);
  if (peri__check_shape(ctx, d, ndim, shape, &numel, &bytes) != PERI_OK)
    return peri__stream_fail(st, "the number of elements overflows 64 bits");
  if (bytes > peri__stream_most(st) - peri__stream_at(st))
    return peri__stream_fail(st, "%zu bytes of elements are more than the file can hold", bytes);
  peri_tensor *t;
  TRY(peri_empty(ctx, d, ndim, shape, &t));
  peri_status s = peri__stream_need(st, t->data, bytes, "the array");
  if (s == PERI_OK) s = peri__stream_end(st, "the array");
  if (s != PERI_OK) {
    peri_release(t);
    return s;
  }
  peri__swap_bytes(t->data, numel, peri_dtype_size(d));
  *out = t;
  return PERI_OK;
}

peri_status peri_idx_load (peri_ctx *ctx, const char *path, peri_tensor **out) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, out);
  peri__stream *st;
  *out = NULL;
  TRY(peri__stream_open(ctx, path, &st));
  peri_status s = read_array(ctx, st, out);
  peri__stream_close(st);
  return s;
}
