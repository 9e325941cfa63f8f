/*
** png.c - PNG files (ISO/IEC 15948): 8 bits a channel, grey or RGB, one deflate stream. Each row takes
** the filter whose bytes are the smallest in sum, as the standard advises.
*/
#include <stdlib.h>
#include <string.h>

#include <zlib.h>

#include "io/image.h"

peri_status peri__image_of (peri_ctx *ctx, const char *path, const peri_tensor *t,
                            peri__image *out) {
  char text[128];
  TRY(peri__belongs(ctx, t, "image"));
  TRY(peri__readable(t));
  int64_t channels = t->ndim == 3 ? t->shape[2] : 1;
  if (t->dtype != PERI_U8)
    return peri__fail(ctx, PERI_EDTYPE, "%s: an image of %s, expected u8", path,
                      peri_dtype_name((peri_dtype)t->dtype));
  if (t->ndim < 2 || t->ndim > 3 || (channels != 1 && channels != 3))
    return peri__fail(ctx, PERI_ESHAPE,
                      "%s: an image of %s, expected (H, W, 3), (H, W, 1) or (H, W)", path,
                      peri__shape_text(t, text, sizeof text));
  *out = (peri__image){ t->shape[1], t->shape[0], (int)channels };
  if (out->width < 1 || out->height < 1 || out->width > PERI__IMAGE_MOST ||
      out->height > PERI__IMAGE_MOST)
    return peri__fail(ctx, PERI_ESHAPE, "%s: an image of %s, sides are 1 to %d", path,
                      peri__shape_text(t, text, sizeof text), PERI__IMAGE_MOST);
  return PERI_OK;
}

void peri__image_copy (const peri_tensor *t, const peri__image *im, uint8_t *dst) {
  for (int64_t y = 0; y < im->height; y++)
    for (int64_t x = 0; x < im->width; x++)
      for (int c = 0; c < im->channels; c++)
        *dst++ = ((const uint8_t *)t->data)[y * t->stride[0] + x * t->stride[1] +
                                            (t->ndim == 3 ? c * t->stride[2] : 0)];
}

static void put32 (unsigned char *p, uint32_t v) {
  for (int i = 0; i < 4; i++) p[i] = (unsigned char)(v >> (24 - 8 * i));
}

/* n below 2^31. */
static peri_status chunk (peri__output *o, const char *type, const unsigned char *data, size_t n) {
  unsigned char head[8], tail[4];
  put32(head, (uint32_t)n);
  memcpy(head + 4, type, 4);
  uint32_t crc = (uint32_t)crc32(0, head + 4, 4);
  if (n > 0) crc = (uint32_t)crc32(crc, data, (unsigned)n); /* without bytes it begins anew */
  put32(tail, crc);
  TRY(peri__output_write(o, head, 8));
  TRY(peri__output_write(o, data, n));
  return peri__output_write(o, tail, 4);
}

static int paeth (int a, int b, int c) {
  int p = a + b - c, pa = abs(p - a), pb = abs(p - b), pc = abs(p - c);
  return pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
}

/* Row `now` filtered into out[1 .. n], the filter's number before it; the sum of its bytes. */
static uint64_t filter (int kind, const uint8_t *now, const uint8_t *above, size_t n, size_t step,
                        uint8_t *out) {
  uint64_t sum = 0;
  out[0] = (uint8_t)kind;
  for (size_t i = 0; i < n; i++) {
    int a = i < step ? 0 : now[i - step], b = above[i], c = i < step ? 0 : above[i - step];
    int guess = kind == 0   ? 0
                : kind == 1 ? a
                : kind == 2 ? b
                : kind == 3 ? (a + b) / 2
                            : paeth(a, b, c);
    out[i + 1] = (uint8_t)(now[i] - guess);
    sum += (uint64_t)abs((int8_t)out[i + 1]);
  }
  return sum;
}

#define PIECE ((size_t)1 << 16)

/* Deflate n bytes, or what is left when finish; full pieces become chunks. */
static peri_status squeeze (peri__output *o, z_stream *z, const uint8_t *data, size_t n,
                            bool finish, unsigned char *piece) {
  z->next_in = (unsigned char *)(uintptr_t)data;
  z->avail_in = (unsigned)n;
  for (;;) {
    int rc = deflate(z, finish ? Z_FINISH : Z_NO_FLUSH);
    if (rc == Z_STREAM_ERROR) return peri__fail(o->ctx, PERI_EIO, "%s: zlib fails", o->path);
    if (z->avail_out == 0 || (finish && rc == Z_STREAM_END)) {
      TRY(chunk(o, "IDAT", piece, PIECE - z->avail_out));
      z->next_out = piece;
      z->avail_out = (unsigned)PIECE;
    }
    if (finish ? rc == Z_STREAM_END : z->avail_in == 0) return PERI_OK;
  }
}

/* room: the pixels, a row of zeros before them; five filtered rows; a piece. */
static peri_status write_rows (peri__output *o, z_stream *z, const peri__image *im,
                               const uint8_t *pixels, uint8_t *rows, unsigned char *piece) {
  size_t n = (size_t)im->width * (size_t)im->channels;
  z->next_out = piece;
  z->avail_out = (unsigned)PIECE;
  for (int64_t y = 0; y < im->height; y++) {
    const uint8_t *now = pixels + (size_t)y * n;
    uint64_t least = UINT64_MAX;
    int best = 0;
    for (int kind = 0; kind < 5; kind++) {
      uint64_t sum = filter(kind, now, now - n, n, (size_t)im->channels, rows + kind * (n + 1));
      if (sum < least) least = sum, best = kind;
    }
    TRY(squeeze(o, z, rows + (size_t)best * (n + 1), n + 1, false, piece));
    if (peri__give_up(o->ctx, 0)) return peri__fail(o->ctx, PERI_EINTR, "interrupted");
  }
  return squeeze(o, z, rows, 0, true, piece);
}

static peri_status write_png (peri__output *o, const peri__image *im, const uint8_t *pixels,
                              uint8_t *rows, unsigned char *piece) {
  static const unsigned char magic[8] = { 0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n' };
  unsigned char header[13] = { 0 };
  put32(header, (uint32_t)im->width);
  put32(header + 4, (uint32_t)im->height);
  header[8] = 8;
  header[9] = im->channels == 3 ? 2 : 0;
  TRY(peri__output_write(o, magic, 8));
  TRY(chunk(o, "IHDR", header, 13));
  z_stream z = { .zalloc = peri__zlib_get, .zfree = peri__zlib_put, .opaque = o->ctx };
  if (deflateInit(&z, Z_DEFAULT_COMPRESSION) != Z_OK)
    return peri__fail(o->ctx, PERI_ENOMEM, "%s: no memory to compress it", o->path);
  peri_status s = write_rows(o, &z, im, pixels, rows, piece);
  deflateEnd(&z);
  TRY(s);
  return chunk(o, "IEND", header, 0);
}

peri_status peri_png_save (peri_ctx *ctx, const char *path, peri_tensor *image) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, image);
  peri__image im;
  peri__output o;
  TRY(peri__image_of(ctx, path, image, &im));
  size_t n = (size_t)im.width * (size_t)im.channels;
  size_t bytes = n * (size_t)(im.height + 1) + 5 * (n + 1) + PIECE;
  uint8_t *room = peri__malloc(ctx, bytes);
  if (room == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory for its pixels", path);
  memset(room, 0, n);
  peri__image_copy(image, &im, room + n);
  uint8_t *rows = room + n * (size_t)(im.height + 1);
  peri_status s = peri__output_begin(ctx, path, &o);
  if (s == PERI_OK) {
    s = write_png(&o, &im, room + n, rows, rows + 5 * (n + 1));
    if (s == PERI_OK) s = peri__output_commit(&o);
    peri__output_abort(&o);
  }
  peri__free(ctx, room, bytes);
  return s;
}
