/*
** pictures.h - readers of the pictures that the library writes, made from the standards alone: PNG
** (chunks, CRC, inflate, filters) and GIF (blocks, codes). What is wrong in a file fails the test.
*/
#ifndef pictures_h
#define pictures_h

#include <stdlib.h>
#include <string.h>

#include <zlib.h>

#include "untrusted.h"

typedef struct picture {
  int width, height, channels, frames;
  int64_t hundredths;    /* a GIF's duration */
  int loops;             /* a GIF's, as the file says; -1: no loop block */
  int local;             /* frames with colours of their own */
  unsigned char *pixels; /* all frames as shown, behind each other; free() it */
} picture;

static inline unsigned long get (const unsigned char *p, int bytes, bool big) {
  unsigned long v = 0;
  for (int i = 0; i < bytes; i++) v |= (unsigned long)p[i] << 8 * (big ? bytes - 1 - i : i);
  return v;
}

/* ---- PNG ---- */

static inline int predict (int kind, int a, int b, int c) {
  int p = a + b - c, pa = abs(p - a), pb = abs(p - b), pc = abs(p - c);
  switch (kind) {
  case 0: return 0;
  case 1: return a;
  case 2: return b;
  case 3: return (a + b) / 2;
  case 4: return pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
  default: fail_msg("filter %d", kind);
  }
  return 0;
}

static inline picture read_png (const unsigned char *d, size_t size) {
  picture im = { .frames = 1 };
  unsigned char *packed = malloc(size), *rows = NULL;
  size_t npacked = 0, at = 8;
  bool ended = false;
  assert_memory_equal(d, "\x89PNG\r\n\x1a\n", 8);
  while (!ended) {
    assert_true(at + 12 <= size);
    size_t n = get(d + at, 4, true);
    assert_true(n <= size - at - 12);
    const unsigned char *type = d + at + 4, *data = type + 4;
    uLong crc = crc32(0, type, (uInt)n + 4); /* the bytes lie together */
    assert_int_equal(crc, get(data + n, 4, true));
    if (memcmp(type, "IHDR", 4) == 0) {
      assert_int_equal(at, 8);
      assert_int_equal(n, 13);
      im.width = (int)get(data, 4, true);
      im.height = (int)get(data + 4, 4, true);
      assert_int_equal(data[8], 8);
      assert_true(data[9] == 0 || data[9] == 2);
      assert_memory_equal(data + 10, "\0\0\0", 3);
      im.channels = data[9] == 2 ? 3 : 1;
    } else if (memcmp(type, "IDAT", 4) == 0) {
      memcpy(packed + npacked, data, n);
      npacked += n;
    } else {
      assert_memory_equal(type, "IEND", 4);
      assert_int_equal(n, 0);
      ended = true;
    }
    at += n + 12;
  }
  assert_int_equal(at, size);
  size_t row = (size_t)im.width * (size_t)im.channels;
  uLongf got = (uLongf)(row + 1) * (uLongf)im.height;
  rows = malloc(got);
  assert_int_equal(uncompress(rows, &got, packed, (uLong)npacked), Z_OK);
  assert_int_equal(got, (row + 1) * (size_t)im.height);
  im.pixels = malloc(row * (size_t)im.height);
  for (int y = 0; y < im.height; y++)
    for (size_t x = 0; x < row; x++) {
      unsigned char *p = im.pixels + (size_t)y * row + x;
      size_t step = (size_t)im.channels;
      int a = x >= step ? p[-(ptrdiff_t)step] : 0, b = y ? p[-(ptrdiff_t)row] : 0;
      int c = y && x >= step ? p[-(ptrdiff_t)(row + step)] : 0;
      const unsigned char *line = rows + (size_t)y * (row + 1);
      *p = (unsigned char)(line[1 + x] + predict(line[0], a, b, c));
    }
  free(rows);
  free(packed);
  return im;
}

/* ---- GIF ---- */

/* Codes in n bytes as npixels indices. */
static inline void decode (const unsigned char *d, size_t n, int depth, unsigned char *out,
                           size_t npixels) {
  static struct {
    int before, length;
    unsigned char last;
  } entry[4096];
  int width = depth + 1, next = (1 << depth) + 2, last = -1;
  size_t done = 0;
  for (size_t bit = 0;;) {
    int code = 0;
    assert_true(bit + (size_t)width <= 8 * n);
    for (int i = 0; i < width; i++, bit++) code |= (d[bit / 8] >> bit % 8 & 1) << i;
    if (code == 1 << depth) {
      width = depth + 1, next = (1 << depth) + 2, last = -1;
      continue;
    }
    if (code == (1 << depth) + 1) {
      assert_true(8 * n - bit < 8);
      break;
    }
    assert_true(code < next || (code == next && last >= 0));
    if (last >= 0 && next < 4096) {
      int first = code == next ? last : code; /* the new string ends as it begins */
      while (first > (1 << depth) + 1) first = entry[first].before;
      entry[next].before = last;
      entry[next].length = (last > 1 << depth ? entry[last].length : 1) + 1;
      entry[next].last = (unsigned char)first;
      next++;
      if (next == 1 << width && width < 12) width++;
    }
    int length = code > (1 << depth) + 1 ? entry[code].length : 1;
    assert_true(done + (size_t)length <= npixels);
    int c = code;
    for (int i = length - 1; i >= 0; i--) {
      out[done + (size_t)i] = (unsigned char)(c > (1 << depth) + 1 ? entry[c].last : c);
      if (i > 0) c = entry[c].before;
    }
    done += (size_t)length;
    last = code;
  }
  assert_int_equal(done, npixels);
}

/* The picture at *at, drawn over the frame before. */
static inline void read_image (const unsigned char *d, size_t size, size_t *at, picture *im,
                               const unsigned char *common) {
  size_t frame = (size_t)im->width * (size_t)im->height * 3;
  const unsigned char *b = d + *at;
  int x = (int)get(b, 2, false), y = (int)get(b + 2, 2, false), w = (int)get(b + 4, 2, false),
      h = (int)get(b + 6, 2, false);
  assert_true(w > 0 && h > 0 && x + w <= im->width && y + h <= im->height);
  *at += 9;
  const unsigned char *colours = common;
  if (b[8] & 0x80) {
    colours = d + *at;
    *at += (size_t)3 << ((b[8] & 7) + 1);
    im->local++;
  }
  int depth = d[(*at)++];
  unsigned char *packed = malloc(size), *index = malloc((size_t)w * (size_t)h);
  size_t n = 0;
  for (size_t k; (k = d[(*at)++]) != 0; *at += k) {
    memcpy(packed + n, d + *at, k);
    n += k;
  }
  decode(packed, n, depth, index, (size_t)w * (size_t)h);
  im->pixels = realloc(im->pixels, frame * (size_t)(im->frames + 1));
  unsigned char *now = im->pixels + frame * (size_t)im->frames;
  if (im->frames > 0)
    memcpy(now, now - frame, frame);
  else
    memset(now, 0, frame);
  for (int r = 0; r < h; r++)
    for (int c = 0; c < w; c++)
      memcpy(now + 3 * ((y + r) * im->width + x + c), colours + 3 * index[r * w + c], 3);
  im->frames++;
  free(packed);
  free(index);
}

static inline picture read_gif (const unsigned char *d, size_t size) {
  picture im = { .channels = 3, .loops = -1 };
  assert_memory_equal(d, "GIF89a", 6);
  im.width = (int)get(d + 6, 2, false);
  im.height = (int)get(d + 8, 2, false);
  assert_true(d[10] & 0x80);
  size_t at = 13 + ((size_t)3 << ((d[10] & 7) + 1));
  for (int kind; (kind = d[at++]) != 0x3b;) {
    if (kind == 0x2c) {
      read_image(d, size, &at, &im, d + 13);
      continue;
    }
    assert_int_equal(kind, 0x21);
    if (d[at] == 0xf9) {
      assert_int_equal(d[at + 1], 4);
      assert_int_equal(d[at + 2] >> 2 & 7, 1); /* stays */
      im.hundredths += (int64_t)get(d + at + 3, 2, false);
    } else {
      assert_memory_equal(d + at, "\xff\x0bNETSCAPE2.0\x03\x01", 15);
      im.loops = (int)get(d + at + 15, 2, false);
    }
    for (at++; d[at] != 0; at += d[at] + 1u) {}
    at++;
  }
  assert_int_equal(at, size);
  return im;
}

#endif
