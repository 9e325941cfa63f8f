/*
** frame.c - a frame is a list of shapes: it is collected here, drawn in raster.c and written as text in
** frame_svg.c.
*/
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/json.h"
#include "env/frame.h"

#define MOST_SHAPES ((size_t)1 << 20)
#define MOST_BYTES ((size_t)1 << 30) /* entries of a list, which bytes are the most of */
#define MOST_TEXT 1000               /* bytes of a label */

static void fail (peri_frame *f, peri_status s, const char *fmt, ...) PERI_PRINTF(3, 4);
static void fail (peri_frame *f, peri_status s, const char *fmt, ...) {
  if (f->failed != PERI_OK) return;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(f->message, sizeof f->message, fmt, ap);
  va_end(ap);
  f->failed = s;
}

/* Room for n more entries of size bytes in *p. */
static bool grow (peri_frame *f, void **p, size_t have, size_t *cap, size_t n, size_t size) {
  if (have + n <= *cap) return true;
  size_t want = *cap ? *cap * 2 : 64;
  while (want < have + n) want *= 2;
  void *q =
      want / 2 <= MOST_SHAPES * 8 ? peri__realloc(f->ctx, *p, *cap * size, want * size) : NULL;
  if (q == NULL) {
    fail(f, PERI_ENOMEM, "no memory for %zu shapes of a frame", f->nshape + 1);
    return false;
  }
  *p = q;
  *cap = want;
  return true;
}

/* The shape and its numbers, which must be finite. */
static peri__shape *push (peri_frame *f, const char *what, peri__shape_kind kind, uint32_t rgb,
                          int n, const double *number) {
  if (f == NULL || f->failed != PERI_OK) return NULL;
  if (rgb > 0xffffff) {
    fail(f, PERI_EINVAL, "%s: the colour is 0x%X, expected 0xRRGGBB", what, (unsigned)rgb);
    return NULL;
  }
  for (int i = 0; i < n; i++)
    if (!isfinite(number[i])) {
      fail(f, PERI_EINVAL, "%s: a coordinate is %g", what, fabs(number[i]));
      return NULL;
    }
  if (f->nshape == MOST_SHAPES) {
    fail(f, PERI_EINVAL, "%s: a frame has at most %zu shapes", what, MOST_SHAPES);
    return NULL;
  }
  if (!grow(f, (void **)&f->shape, f->nshape, &f->cap_shape, 1, sizeof *f->shape) ||
      !grow(f, (void **)&f->number, f->nnumber, &f->cap_number, (size_t)n, sizeof *f->number))
    return NULL;
  peri__shape *s = &f->shape[f->nshape++];
  *s = (peri__shape){ .kind = kind, .rgb = rgb, .at = f->nnumber, .n = n };
  memcpy(f->number + f->nnumber, number, (size_t)n * sizeof *number);
  f->nnumber += (size_t)n;
  return s;
}

peri_status peri_frame_open (peri_ctx *ctx, peri_frame **out) {
  NEED(ctx, ctx);
  NEED(ctx, out);
  *out = NULL;
  peri_frame *f = peri__malloc(ctx, sizeof *f);
  if (f == NULL) return peri__fail(ctx, PERI_ENOMEM, "no memory for a frame");
  *f = (peri_frame){ .ctx = ctx };
  peri_frame_size(f, 400, 300);
  *out = f;
  return PERI_OK;
}

void peri_frame_close (peri_frame *f) {
  if (f == NULL) return;
  peri__free(f->ctx, f->shape, f->cap_shape * sizeof *f->shape);
  peri__free(f->ctx, f->number, f->cap_number * sizeof *f->number);
  peri__free(f->ctx, f->text, f->cap_text);
  peri__free(f->ctx, f, sizeof *f);
}

void peri_frame_size (peri_frame *f, int width, int height) {
  if (f == NULL) return;
  f->failed = PERI_OK;
  f->nshape = f->nnumber = f->ntext = 0;
  f->background = 0xffffff;
  if (width < 1 || height < 1 || width > PERI_FRAME_MOST || height > PERI_FRAME_MOST)
    fail(f, PERI_EINVAL, "a frame of %d x %d: sides are 1 to %d", width, height, PERI_FRAME_MOST);
  else
    f->width = width, f->height = height;
}

void peri_frame_background (peri_frame *f, uint32_t rgb) {
  if (f == NULL || f->failed != PERI_OK) return;
  if (rgb > 0xffffff)
    fail(f, PERI_EINVAL, "background: the colour is 0x%X, expected 0xRRGGBB", (unsigned)rgb);
  else
    f->background = rgb;
}

void peri_frame_rect (peri_frame *f, double x, double y, double w, double h, uint32_t rgb) {
  const double v[] = { x, y, w, h };
  if (f && (w < 0 || h < 0)) fail(f, PERI_EINVAL, "rect: %g x %g: a side is below 0", w, h);
  push(f, "rect", PERI__RECT, rgb, 4, v);
}

void peri_frame_circle (peri_frame *f, double x, double y, double r, uint32_t rgb) {
  const double v[] = { x, y, r };
  if (f && r < 0) fail(f, PERI_EINVAL, "circle: the radius is %g", r);
  push(f, "circle", PERI__CIRCLE, rgb, 3, v);
}

void peri_frame_line (peri_frame *f, double x0, double y0, double x1, double y1, double width,
                      uint32_t rgb) {
  const double v[] = { x0, y0, x1, y1, width };
  if (f && width < 0) fail(f, PERI_EINVAL, "line: the width is %g", width);
  push(f, "line", PERI__LINE, rgb, 5, v);
}

void peri_frame_polygon (peri_frame *f, int n, const double *xy, uint32_t rgb) {
  if (f && (n < 3 || n > (int)(MOST_SHAPES / 2) || xy == NULL))
    fail(f, PERI_EINVAL, "polygon: %d corners, at least 3 are expected", xy ? n : 0);
  else
    push(f, "polygon", PERI__POLYGON, rgb, 2 * n, xy);
}

void peri_frame_label (peri_frame *f, double x, double y, double size, const char *text,
                       uint32_t rgb) {
  const double v[] = { x, y, size };
  if (f == NULL || f->failed != PERI_OK) return;
  size_t n = text ? strlen(text) : 0;
  bool plain = n <= MOST_TEXT && text && peri__utf8_prefix(text, n) == n;
  for (size_t i = 0; plain && i < n; i++) plain = (unsigned char)text[i] >= 32 && text[i] != 127;
  if (!plain || size < 0) {
    fail(f, PERI_EINVAL,
         size < 0 ? "label: the size is %g"
                  : "label: at most 1000 bytes of printable UTF-8 are expected",
         size);
    return;
  }
  if (!grow(f, (void **)&f->text, f->ntext, &f->cap_text, n + 1, 1)) return;
  peri__shape *s = push(f, "label", PERI__LABEL, rgb, 3, v);
  if (s == NULL) return;
  s->text = f->ntext;
  memcpy(f->text + f->ntext, text, n + 1);
  f->ntext += n + 1;
}

void peri_frame_image (peri_frame *f, double x, double y, double w, double h, int rows, int columns,
                       const uint8_t *rgb) {
  const double v[] = { x, y, w, h, rows, columns };
  if (f == NULL || f->failed != PERI_OK) return;
  if (w < 0 || h < 0 || rows < 1 || columns < 1 || rows > PERI_FRAME_MOST ||
      columns > PERI_FRAME_MOST || rgb == NULL) {
    fail(f, PERI_EINVAL, "image: %d rows of %d pixels in %g x %g", rgb ? rows : 0, columns, w, h);
    return;
  }
  size_t n = (size_t)rows * (size_t)columns * 3;
  if (!grow(f, (void **)&f->text, f->ntext, &f->cap_text, n, 1)) return;
  peri__shape *s = push(f, "image", PERI__IMAGE, 0, 6, v);
  if (s == NULL) return;
  s->text = f->ntext;
  memcpy(f->text + f->ntext, rgb, n);
  f->ntext += n;
}

peri_status peri_frame_check (peri_frame *f) {
  if (f == NULL) return PERI_EINVAL;
  return f->failed == PERI_OK ? PERI_OK : peri__fail(f->ctx, f->failed, "%s", f->message);
}

int peri_frame_width (const peri_frame *f) { return f ? f->width : 0; }
int peri_frame_height (const peri_frame *f) { return f ? f->height : 0; }
