/*
** raster.c - frames as pixels. Every shape is a polygon; what it covers of each pixel is the exact area,
** summed along the rows from the signed areas beside its edges (Levien, "Inside the fastest font
** renderer in the world", 2016).
*/
#include <math.h>
#include <string.h>

#include "env/frame.h"

#define SIDES 96 /* most corners of a circle's quarter */
#define PI 3.14159265358979323846

/* Where a polygon is summed up: its box in pixels, rows of columns + 2 numbers. */
typedef struct area {
  double *sum;
  int left, top, columns, rows;
} area;

typedef struct canvas {
  peri_frame *f;
  uint8_t *rgb;
  int width, height;
  double sx, sy; /* pixels of a unit */
  double *room;  /* for the area of the whole canvas */
} canvas;

/* An edge within one row: from x0 to x1, of height d (with its direction), columns from the box's left. */
static void edge_in_row (double *row, int columns, double x0, double x1, double d) {
  x0 = x0 < 0 ? 0 : x0 > columns ? columns : x0;
  x1 = x1 < 0 ? 0 : x1 > columns ? columns : x1;
  double low = x0 < x1 ? x0 : x1, high = x0 < x1 ? x1 : x0;
  int first = (int)low, end = (int)ceil(high);
  if (end <= first + 1) { /* within a column: a trapezoid */
    double right = d * ((low + high) / 2 - first);
    row[first] += d - right;
    row[first + 1] += right;
    return;
  }
  double slope = d / (high - low), before = 0; /* area to the right of the edge so far */
  for (int x = first; x < end; x++) {
    double a = low > x ? low : x, b = high < x + 1 ? high : x + 1;
    double here = slope * (b - a) * (x + 1 - (a + b) / 2), rest = slope * (b - a);
    row[x] += here + before;
    before = rest - here;
  }
  row[end] += before;
}

static void edge (area *a, double x0, double y0, double x1, double y1) {
  if (y0 == y1) return;
  double sign = 1;
  if (y0 > y1) {
    double x = x0, y = y0;
    x0 = x1, y0 = y1, x1 = x, y1 = y;
    sign = -1;
  }
  double dx = (x1 - x0) / (y1 - y0);
  double from = y0 > a->top ? y0 : a->top, to = y1 < a->top + a->rows ? y1 : a->top + a->rows;
  for (int y = (int)floor(from); y < to; y++) {
    double begin = from > y ? from : y, end = to < y + 1 ? to : y + 1;
    if (end <= begin) continue;
    edge_in_row(a->sum + (size_t)(y - a->top) * (size_t)(a->columns + 2), a->columns,
                x0 + (begin - y0) * dx - a->left, x0 + (end - y0) * dx - a->left,
                sign * (end - begin));
  }
}

static void blend (uint8_t *p, uint32_t rgb, double cover) {
  for (int c = 0; c < 3; c++) {
    double to = (double)(rgb >> (16 - 8 * c) & 255);
    p[c] = (uint8_t)(p[c] + (to - p[c]) * cover + 0.5);
  }
}

/* Clamped to what an int and the arithmetic above bear. */
static double near (double v) { return v < -1e7 ? -1e7 : v > 1e7 ? 1e7 : v; }

/* n corners in pixels. */
static void fill (canvas *c, int n, const double *xy, uint32_t rgb) {
  double left = c->width, top = c->height, right = 0, bottom = 0;
  for (int i = 0; i < n; i++) {
    double x = xy[2 * i], y = xy[2 * i + 1];
    left = x < left ? x : left, right = x > right ? x : right;
    top = y < top ? y : top, bottom = y > bottom ? y : bottom;
  }
  left = left < 0 ? 0 : floor(left), top = top < 0 ? 0 : floor(top);
  right = right > c->width ? c->width : ceil(right);
  bottom = bottom > c->height ? c->height : ceil(bottom);
  if (right <= left || bottom <= top) return;
  area a = { c->room, (int)left, (int)top, (int)(right - left), (int)(bottom - top) };
  memset(a.sum, 0, (size_t)a.rows * (size_t)(a.columns + 2) * sizeof *a.sum);
  for (int i = 0, j = n - 1; i < n; j = i++)
    edge(&a, xy[2 * j], xy[2 * j + 1], xy[2 * i], xy[2 * i + 1]);
  for (int y = 0; y < a.rows; y++) {
    const double *row = a.sum + (size_t)y * (size_t)(a.columns + 2);
    uint8_t *p = c->rgb + 3 * ((size_t)(a.top + y) * (size_t)c->width + (size_t)a.left);
    double sum = 0;
    for (int x = 0; x < a.columns; x++, p += 3) {
      sum += row[x];
      double cover = fabs(sum);
      if (cover > 1e-6) blend(p, rgb, cover > 1 - 1e-6 ? 1 : cover);
    }
  }
}

static void box (canvas *c, double x, double y, double w, double h, uint32_t rgb) {
  double x0 = near(x * c->sx), y0 = near(y * c->sy), x1 = near((x + w) * c->sx),
         y1 = near((y + h) * c->sy);
  const double xy[] = { x0, y0, x1, y0, x1, y1, x0, y1 };
  fill(c, 4, xy, rgb);
}

/* A polygon of the same area. */
static void circle (canvas *c, const double *v, uint32_t rgb) {
  double xy[8 * SIDES], big = near(v[2] * (c->sx > c->sy ? c->sx : c->sy));
  int quarter = 4 + (int)(sqrt(big) * 2);
  int n = 4 * (quarter > SIDES ? SIDES : quarter);
  double step = 2 * PI / n, r = v[2] * sqrt(step / sin(step));
  for (int i = 0; i < n; i++) {
    xy[2 * i] = near((v[0] + r * cos(step * i)) * c->sx);
    xy[2 * i + 1] = near((v[1] + r * sin(step * i)) * c->sy);
  }
  fill(c, n, xy, rgb);
}

static void line (canvas *c, const double *v, uint32_t rgb) {
  double dx = v[2] - v[0], dy = v[3] - v[1], length = sqrt(dx * dx + dy * dy);
  if (!(length > 0)) return;
  double ox = -dy / length * v[4] / 2, oy = dx / length * v[4] / 2;
  double xy[] = { v[0] + ox, v[1] + oy, v[2] + ox, v[3] + oy,
                  v[2] - ox, v[3] - oy, v[0] - ox, v[1] - oy };
  for (int i = 0; i < 8; i++) xy[i] = near(xy[i] * (i % 2 ? c->sy : c->sx));
  fill(c, 4, xy, rgb);
}

/* The code of the character at s. */
static uint32_t code_at (const char *s) {
  unsigned char c = (unsigned char)*s;
  return c < 0x80 ? c : 0xfffd; /* what is not ASCII has no picture */
}

static void label (canvas *c, const double *v, const char *text, uint32_t rgb) {
  double dot = v[2] / 10;
  int n = 0;
  for (const char *s = text; *s; s += peri__utf8_step(s)) n++;
  double x = v[0] - (n * PERI__CELL_W - 1) * dot / 2, y = v[1] - PERI__GLYPH_H * dot / 2;
  for (const char *s = text; *s; s += peri__utf8_step(s), x += PERI__CELL_W * dot) {
    const uint8_t *column = peri__glyph(code_at(s));
    for (int i = 0; i < PERI__GLYPH_W; i++)
      for (int j = 0, run; j < PERI__GLYPH_H; j += run) { /* dots in a column are one box */
        for (run = 0; j + run < PERI__GLYPH_H && (column[i] >> (j + run) & 1); run++) {}
        if (run > 0) box(c, x + i * dot, y + j * dot, dot, run * dot, rgb);
        if (run == 0) run = 1;
      }
  }
}

static void polygon (canvas *c, const peri__shape *s, double *xy) {
  const double *v = c->f->number + s->at;
  for (int i = 0; i < s->n; i++) xy[i] = near(v[i] * (i % 2 ? c->sy : c->sx));
  fill(c, s->n / 2, xy, s->rgb);
}

/* Which of n cells lie under the pixel `at` of so many: begin to end, one at least. */
static void cells_under (double at, double first, double pixels, int n, int *begin, int *end) {
  double per = n / pixels, from = (at - first) * per, to = from + per;
  if (per <= 1) from = to = (at + 0.5 - first) * per; /* the one under its middle */
  *begin = from < 0 ? 0 : from >= n ? n - 1 : (int)from;
  *end = to > n ? n : (int)ceil(to);
  if (*end <= *begin) *end = *begin + 1;
}

/* Pixels whose middle lies in it; a smaller picture is an average. */
static void image (canvas *c, const double *v, const uint8_t *rgb) {
  double x0 = near(v[0] * c->sx), y0 = near(v[1] * c->sy), w = near(v[2] * c->sx),
         h = near(v[3] * c->sy);
  int rows = (int)v[4], columns = (int)v[5], top, bottom, left, right;
  for (int y = y0 < 0 ? 0 : (int)ceil(y0 - 0.5); y < c->height && y + 0.5 < y0 + h; y++)
    for (int x = x0 < 0 ? 0 : (int)ceil(x0 - 0.5); x < c->width && x + 0.5 < x0 + w; x++) {
      int64_t sum[3] = { 0, 0, 0 };
      cells_under(y, y0, h, rows, &top, &bottom);
      cells_under(x, x0, w, columns, &left, &right);
      for (int i = top; i < bottom; i++)
        for (int j = left; j < right; j++)
          for (int k = 0; k < 3; k++)
            sum[k] += rgb[3 * ((size_t)i * (size_t)columns + (size_t)j) + (size_t)k];
      int64_t n = (int64_t)(bottom - top) * (right - left);
      for (int k = 0; k < 3; k++)
        c->rgb[3 * ((size_t)y * (size_t)c->width + (size_t)x) + (size_t)k] =
            (uint8_t)((sum[k] + n / 2) / n);
    }
}

static void draw (canvas *c, double *corners) {
  for (size_t i = 0; i < (size_t)c->width * (size_t)c->height; i++) {
    c->rgb[3 * i] = (uint8_t)(c->f->background >> 16);
    c->rgb[3 * i + 1] = (uint8_t)(c->f->background >> 8);
    c->rgb[3 * i + 2] = (uint8_t)c->f->background;
  }
  for (size_t i = 0; i < c->f->nshape; i++) {
    const peri__shape *s = &c->f->shape[i];
    const double *v = c->f->number + s->at;
    switch (s->kind) {
    case PERI__RECT: box(c, v[0], v[1], v[2], v[3], s->rgb); break;
    case PERI__CIRCLE: circle(c, v, s->rgb); break;
    case PERI__LINE: line(c, v, s->rgb); break;
    case PERI__POLYGON: polygon(c, s, corners); break;
    case PERI__IMAGE: image(c, v, (const uint8_t *)c->f->text + s->text); break;
    case PERI__LABEL: label(c, v, c->f->text + s->text, s->rgb); break;
    }
  }
}

/* The size that is meant, or an error. */
static peri_status sides (peri_frame *f, int *height, int *width) {
  TRY(peri_frame_check(f));
  if (*height == 0 && *width == 0) *height = f->height, *width = f->width;
  if (*height < 1 || *width < 1 || *height > PERI_FRAME_MOST || *width > PERI_FRAME_MOST)
    return peri__fail(f->ctx, PERI_EINVAL, "a frame in %d x %d pixels: sides are 1 to %d", *width,
                      *height, PERI_FRAME_MOST);
  return PERI_OK;
}

peri_status peri_frame_pixels (peri_frame *f, int height, int width, uint8_t *rgb) {
  if (f == NULL) return PERI_EINVAL;
  NEED(f->ctx, rgb);
  TRY(sides(f, &height, &width));
  canvas c = { f, rgb, width, height, (double)width / f->width, (double)height / f->height, NULL };
  int most = 0;
  for (size_t i = 0; i < f->nshape; i++)
    if (f->shape[i].kind == PERI__POLYGON && f->shape[i].n > most) most = f->shape[i].n;
  size_t cells = (size_t)height * (size_t)(width + 2),
         bytes = (cells + (size_t)most) * sizeof(double);
  c.room = peri__malloc(f->ctx, bytes);
  if (c.room == NULL)
    return peri__fail(f->ctx, PERI_ENOMEM, "no memory to draw %d x %d pixels", width, height);
  draw(&c, c.room + cells);
  peri__free(f->ctx, c.room, bytes);
  return PERI_OK;
}

peri_status peri_frame_tensor (peri_frame *f, int height, int width, peri_tensor **out) {
  if (f == NULL) return PERI_EINVAL;
  NEED(f->ctx, out);
  *out = NULL;
  TRY(sides(f, &height, &width));
  const int64_t shape[] = { height, width, 3 };
  peri_tensor *t;
  TRY(peri_empty(f->ctx, PERI_U8, 3, shape, &t));
  peri_status s = peri_frame_pixels(f, height, width, peri_data(t));
  if (s != PERI_OK)
    peri_release(t);
  else
    *out = t;
  return s;
}
