/*
** gif.c - animated GIF (GIF89a, CompuServe 1990; the loop block is Netscape's). A frame stores the
** rectangle that differs from the frame before, with the first frame's colours where they do, else with
** its own.
*/
#include <math.h>
#include <string.h>

#include "io/image.h"
#include "io/palette.h"

#define MAX_CODES 4096
#define SLOTS 8192 /* of the table of strings; a power of two above MAX_CODES */

typedef struct lzw {
  uint32_t key[SLOTS]; /* code and next pixel, + 1; 0: free */
  uint16_t code[SLOTS];
  uint32_t bits;
  int nbits, width, next;
  uint8_t block[256]; /* its length first */
} lzw;

struct peri_gif {
  peri_ctx *ctx;
  peri__output out;
  char *path;
  size_t path_size, pixels; /* of a frame; 0: none came yet */
  int64_t width, height, frames;
  double fps;
  int loops;
  uint8_t *last, *now, *part; /* RGB of frames, of the rectangle that is written */
  lzw z;
  peri__palette common, own;
};

/* ---- strings of pixels as codes ---- */

static peri_status put_code (peri__output *o, lzw *z, unsigned code) {
  z->bits |= (uint32_t)code << z->nbits;
  for (z->nbits += z->width; z->nbits >= 8; z->nbits -= 8, z->bits >>= 8) {
    z->block[++z->block[0]] = (uint8_t)z->bits;
    if (z->block[0] < 255) continue;
    TRY(peri__output_write(o, z->block, 256));
    z->block[0] = 0;
  }
  return PERI_OK;
}

static void begin_codes (lzw *z, int depth) {
  memset(z->key, 0, sizeof z->key);
  z->width = depth + 1;
  z->next = (1 << depth) + 2; /* behind clear and end */
}

static unsigned find (const lzw *z, uint32_t key) {
  unsigned at = key * 2654435761u >> 19;
  while (z->key[at] && z->key[at] != key) at = (at + 1) & (SLOTS - 1);
  return at;
}

static peri_status compress (peri__output *o, lzw *z, int depth, const peri__palette *p,
                             const uint8_t *rgb, int64_t n) {
  const uint8_t smallest = (uint8_t)depth;
  const unsigned clear = 1u << depth;
  z->bits = 0;
  z->nbits = 0;
  z->block[0] = 0;
  begin_codes(z, depth);
  TRY(peri__output_write(o, &smallest, 1));
  TRY(put_code(o, z, clear));
  unsigned string = (unsigned)peri__palette_find(p, rgb);
  for (int64_t i = 1; i < n; i++) {
    unsigned pixel = (unsigned)peri__palette_find(p, rgb + 3 * i);
    uint32_t key = (string << 8 | pixel) + 1;
    unsigned at = find(z, key);
    if (z->key[at]) {
      string = z->code[at];
      continue;
    }
    TRY(put_code(o, z, string));
    string = pixel;
    if (z->next == MAX_CODES) {
      TRY(put_code(o, z, clear));
      begin_codes(z, depth);
      continue;
    }
    if (z->next == 1 << z->width) z->width++; /* the reader is one entry behind */
    z->key[at] = key;
    z->code[at] = (uint16_t)z->next++;
  }
  TRY(put_code(o, z, string));
  /* The reader makes an entry of this code, too, which may widen the next one. */
  if (z->next == 1 << z->width && z->width < 12) z->width++;
  TRY(put_code(o, z, clear + 1));
  if (z->nbits > 0) z->block[++z->block[0]] = (uint8_t)z->bits;
  if (z->block[0] > 0) TRY(peri__output_write(o, z->block, (size_t)z->block[0] + 1));
  const uint8_t end = 0;
  return peri__output_write(o, &end, 1);
}

/* ---- blocks ---- */

static void put16 (uint8_t *p, int64_t v) { p[0] = (uint8_t)v, p[1] = (uint8_t)(v >> 8); }

/* Bits of an index: 2 at least, as compression wants it. */
static int depth_of (const peri__palette *p) {
  int depth = 2;
  while (1 << depth < p->n) depth++;
  return depth;
}

static peri_status put_colours (peri__output *o, const peri__palette *p) {
  uint8_t table[256][3] = { { 0 } };
  memcpy(table, p->rgb, (size_t)p->n * 3);
  return peri__output_write(o, table, (size_t)3 << depth_of(p));
}

static peri_status put_header (peri_gif *g) {
  uint8_t b[13] = "GIF89a", loop[19] = "\x21\xff\x0bNETSCAPE2.0\x03\x01";
  put16(b + 6, g->width);
  put16(b + 8, g->height);
  b[10] = (uint8_t)(0x80 | 7 << 4 | (depth_of(&g->common) - 1));
  TRY(peri__output_write(&g->out, b, sizeof b));
  TRY(put_colours(&g->out, &g->common));
  if (g->loops == 1) return PERI_OK; /* what a file without the block does */
  put16(loop + 16, g->loops == 0 ? 0 : g->loops - 1);
  return peri__output_write(&g->out, loop, sizeof loop);
}

/* The rectangle in which two frames differ; at least one pixel. */
static void changed (const peri_gif *g, int64_t *x, int64_t *y, int64_t *w, int64_t *h) {
  int64_t left = g->width, right = -1, top = g->height, bottom = -1;
  for (int64_t r = 0; r < g->height; r++)
    for (int64_t c = 0; c < g->width; c++) {
      int64_t at = 3 * (r * g->width + c);
      if (memcmp(g->last + at, g->now + at, 3) == 0) continue;
      left = c < left ? c : left, right = c > right ? c : right;
      top = r < top ? r : top, bottom = r;
    }
  *x = *y = 0;
  *w = *h = 1;
  if (right >= 0) *x = left, *y = top, *w = right - left + 1, *h = bottom - top + 1;
}

static bool has_all (const peri__palette *p, const uint8_t *rgb, int64_t n) {
  if (!p->exact) return false;
  for (int64_t i = 0; i < n; i++)
    if (peri__palette_find(p, rgb + 3 * i) < 0) return false;
  return true;
}

/* Hundredths of a second until frame i ends: rounded there, so that no error adds up. */
static int64_t end_of (const peri_gif *g, int64_t i) {
  return (int64_t)floor((double)(i + 1) * 100 / g->fps + 0.5);
}

static peri_status put_frame (peri_gif *g, int64_t x, int64_t y, int64_t w, int64_t h) {
  uint8_t b[18] = { 0x21, 0xf9, 4, 1 << 2 /* the picture stays */, 0, 0, 0, 0, 0x2c };
  const peri__palette *p = &g->common;
  if (!has_all(p, g->part, w * h) && g->frames > 0) {
    peri__palette_of(&g->own, g->part, w * h);
    p = &g->own;
  }
  put16(b + 4, end_of(g, g->frames) - (g->frames > 0 ? end_of(g, g->frames - 1) : 0));
  put16(b + 9, x);
  put16(b + 11, y);
  put16(b + 13, w);
  put16(b + 15, h);
  b[17] = (uint8_t)(p == &g->own ? 0x80 | (depth_of(p) - 1) : 0);
  TRY(peri__output_write(&g->out, b, sizeof b));
  if (p == &g->own) TRY(put_colours(&g->out, p));
  return compress(&g->out, &g->z, depth_of(p), p, g->part, w * h);
}

/* ---- the file ---- */

peri_status peri_gif_create (peri_ctx *ctx, const char *path, double fps, int loops,
                             peri_gif **out) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, out);
  *out = NULL;
  if (!(fps > 0 && fps <= 50))
    return peri__fail(ctx, PERI_EINVAL,
                      "%s: %g frames a second, a GIF has more than 0 and at most 50", path, fps);
  if (fps < 0.01 || loops < 0 || loops > 65535)
    return peri__fail(ctx, PERI_EINVAL,
                      fps < 0.01 ? "%s: %g frames a second, 0.01 at least are expected"
                                 : "%s: plays %.0f times, expected 0 (for ever) to 65535",
                      path, fps < 0.01 ? fps : (double)loops);
  peri_gif *g = peri__malloc(ctx, sizeof *g);
  if (g == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory", path);
  memset(g, 0, sizeof *g);
  g->ctx = ctx;
  g->fps = fps;
  g->loops = loops;
  g->out.fd = -1;
  g->path_size = strlen(path) + 1;
  g->path = peri__malloc(ctx, g->path_size);
  peri_status s = g->path ? PERI_OK : peri__fail(ctx, PERI_ENOMEM, "%s: no memory", path);
  if (s == PERI_OK) {
    memcpy(g->path, path, g->path_size);
    s = peri__output_begin(ctx, g->path, &g->out);
  }
  if (s != PERI_OK)
    peri_gif_abort(g);
  else
    *out = g;
  return s;
}

/* What a frame takes is made with the first one. */
static peri_status begin (peri_gif *g, const peri__image *im) {
  size_t pixels = (size_t)im->width * (size_t)im->height;
  if (im->width > 65535 || im->height > 65535 || pixels > SIZE_MAX / 16)
    return peri__fail(g->ctx, PERI_ESHAPE, "%s: frames of %lld x %lld, a GIF has at most 65535",
                      g->path, (long long)im->width, (long long)im->height);
  g->last = peri__malloc(g->ctx, 9 * pixels);
  if (g->last == NULL)
    return peri__fail(g->ctx, PERI_ENOMEM, "%s: no memory for its frames", g->path);
  g->now = g->last + 3 * pixels;
  g->part = g->now + 3 * pixels;
  g->width = im->width;
  g->height = im->height;
  g->pixels = pixels;
  return PERI_OK;
}

static void load (peri_gif *g, peri_tensor *t, const peri__image *im) {
  peri__image_copy(t, im, g->now);
  if (im->channels == 3) return;
  for (size_t i = g->pixels; i-- > 0;)
    for (int c = 0; c < 3; c++) g->now[3 * i + (size_t)c] = g->now[i];
}

peri_status peri_gif_add (peri_gif *g, peri_tensor *image) {
  peri__image im;
  if (g == NULL) return PERI_EINVAL;
  NEED(g->ctx, image);
  TRY(peri__image_of(g->ctx, g->path, image, &im));
  if (g->pixels == 0) TRY(begin(g, &im));
  if (im.width != g->width || im.height != g->height)
    return peri__fail(g->ctx, PERI_ESHAPE,
                      "%s: frame %s is %lld x %lld pixels, those before are %lld x %lld", g->path,
                      peri__nth(g->ctx, g->frames), (long long)im.width, (long long)im.height,
                      (long long)g->width, (long long)g->height);
  load(g, image, &im);
  int64_t x = 0, y = 0, w = g->width, h = g->height;
  if (g->frames == 0) {
    peri__palette_of(&g->common, g->now, (int64_t)g->pixels);
    TRY(put_header(g));
  } else
    changed(g, &x, &y, &w, &h);
  for (int64_t r = 0; r < h; r++)
    memcpy(g->part + 3 * r * w, g->now + 3 * ((y + r) * g->width + x), 3 * (size_t)w);
  TRY(put_frame(g, x, y, w, h));
  memcpy(g->last, g->now, 3 * g->pixels);
  g->frames++;
  return PERI_OK;
}

peri_status peri_gif_commit (peri_gif *g) {
  static const uint8_t end = 0x3b;
  if (g == NULL) return PERI_EINVAL;
  peri_status s = PERI_OK;
  if (g->frames == 0) s = peri__fail(g->ctx, PERI_EINVAL, "%s: no frame was added", g->path);
  if (s == PERI_OK) s = peri__output_write(&g->out, &end, 1);
  if (s == PERI_OK) s = peri__output_commit(&g->out);
  peri_gif_abort(g);
  return s;
}

void peri_gif_abort (peri_gif *g) {
  if (g == NULL) return;
  peri__output_abort(&g->out);
  peri__free(g->ctx, g->last, 9 * g->pixels);
  peri__free(g->ctx, g->path, g->path_size);
  peri__free(g->ctx, g, sizeof *g);
}
