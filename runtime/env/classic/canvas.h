/*
** canvas.h - text pictures of the classic environments: characters on a small grid.
*/
#ifndef peri_env_canvas_h
#define peri_env_canvas_h

#include <math.h>
#include <string.h>

#include "core/core.h"

struct peri__canvas {
  char *out;
  int width, height;
};

/* Blank rows of `width`, each with its end of line; false where out is too small. */
static inline bool canvas_begin (struct peri__canvas *c, char *out, size_t size, int width,
                                 int height) {
  size_t row = (size_t)width + 1, bytes = row * (size_t)height;
  if (bytes + 1 > size) return false;
  memset(out, ' ', bytes);
  for (int y = 0; y < height; y++) out[(size_t)y * row + (size_t)width] = '\n';
  out[bytes] = '\0';
  *c = (struct peri__canvas){ out, width, height };
  return true;
}

/* Row 0 is the top; what lies outside is not drawn. */
static inline void canvas_put (const struct peri__canvas *c, double x, double y, char what) {
  long col = lround(x), row = lround(y);
  if (col >= 0 && col < c->width && row >= 0 && row < c->height)
    c->out[row * (c->width + 1) + col] = what;
}

static inline void canvas_line (const struct peri__canvas *c, double x0, double y0, double x1,
                                double y1, char what) {
  double n = ceil(fmax(fabs(x1 - x0), fabs(y1 - y0)));
  for (double i = 0; i <= n; i++) {
    double part = n > 0 ? i / n : 0;
    canvas_put(c, x0 + (x1 - x0) * part, y0 + (y1 - y0) * part, what);
  }
}

#endif
