/*
** frame.h - the display list behind peri_frame, for what draws it (raster.c) and what writes it
** (frame_svg.c).
*/
#ifndef peri_env_frame_h
#define peri_env_frame_h

#include "core/core.h"

typedef enum peri__shape_kind {
  PERI__RECT,    /* x, y, w, h */
  PERI__CIRCLE,  /* x, y, r */
  PERI__LINE,    /* x0, y0, x1, y1, width */
  PERI__POLYGON, /* x, y of each corner */
  PERI__LABEL,   /* x, y, size; the text behind at `text` */
  PERI__IMAGE    /* x, y, w, h, rows, columns; the bytes at `text` */
} peri__shape_kind;

typedef struct peri__shape {
  peri__shape_kind kind;
  uint32_t rgb;
  size_t at; /* of its first number in peri_frame.number */
  int n;     /* numbers */
  size_t text;
} peri__shape;

struct peri_frame {
  peri_ctx *ctx;
  int width, height;
  uint32_t background;
  peri__shape *shape;
  double *number;
  char *text; /* labels, each with its end; bytes of images */
  size_t nshape, nnumber, ntext, cap_shape, cap_number, cap_text;
  peri_status failed; /* the first thing that went wrong */
  char message[160];
};

/* The length in bytes of the character at s, of valid UTF-8. */
static inline int peri__utf8_step (const char *s) {
  unsigned char c = (unsigned char)*s;
  return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}
/* Columns and rows of a letter in peri__glyph, and of the cell that it stands in. */
enum { PERI__GLYPH_W = 5, PERI__GLYPH_H = 7, PERI__CELL_W = 6 };
/* Five columns of a character, bit 0 on top: env/glyph.c. A code without a picture is a box. */
const uint8_t *peri__glyph (uint32_t code);

#endif
