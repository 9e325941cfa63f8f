/*
** frame.h - pictures: shapes in a frame, frames as pixels, images and films as files. Part of perilune.h,
** whose rules hold here.
*/
#ifndef perilune_frame_h
#define perilune_frame_h

#include "perilune.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A list of shapes over a background. Coordinates are units of the frame's own size, x to the right and y
** down from the left upper corner, and any finite number; later shapes lie over earlier ones. Colours are
** 0xRRGGBB. What goes wrong in a function without a status is kept: peri_frame_check says it, and
** whatever reads the frame fails with it. */
typedef struct peri_frame peri_frame;
/* Most units of a side and most pixels of a side that a frame is drawn in. */
#define PERI_FRAME_MOST 8192
/* 400 x 300 units, white. */
PERI_API peri_status peri_frame_open (peri_ctx *ctx, peri_frame **out);
PERI_API void peri_frame_close (peri_frame *f); /* before its context; NULL is a no-op */
/* Begin anew: no shapes, a white background, no error; sides in [1, PERI_FRAME_MOST]. */
PERI_API void peri_frame_size (peri_frame *f, int width, int height);
PERI_API void peri_frame_background (peri_frame *f, uint32_t rgb);
PERI_API void peri_frame_rect (peri_frame *f, double x, double y, double w, double h, uint32_t rgb);
PERI_API void peri_frame_circle (peri_frame *f, double x, double y, double r, uint32_t rgb);
PERI_API void peri_frame_line (peri_frame *f, double x0, double y0, double x1, double y1,
                               double width, uint32_t rgb);
/* n corners, x and y in turn; the last is joined with the first. */
PERI_API void peri_frame_polygon (peri_frame *f, int n, const double *xy, uint32_t rgb);
/* Text of one line whose middle is at x, y: letters are 0.7 size high and 0.6 size apart. */
PERI_API void peri_frame_label (peri_frame *f, double x, double y, double size, const char *text,
                                uint32_t rgb);
/* rows of `columns` pixels, three bytes each, which are copied, as the rectangle of w x h at x, y. A frame that has one
** cannot become an SVG. */
PERI_API void peri_frame_image (peri_frame *f, double x, double y, double w, double h, int rows,
                                int columns, const uint8_t *rgb);
PERI_API peri_status peri_frame_check (peri_frame *f);
PERI_API int peri_frame_width (const peri_frame *f);
PERI_API int peri_frame_height (const peri_frame *f);
/* Drawn with smooth edges into height rows of width pixels, three bytes each; the shapes are scaled to
** them. 0, 0: its own size. */
PERI_API peri_status peri_frame_pixels (peri_frame *f, int height, int width, uint8_t *rgb);
/* The same as a new tensor, (height, width, 3) u8. */
PERI_API peri_status peri_frame_tensor (peri_frame *f, int height, int width, peri_tensor **out);

/* Images are u8 tensors, (H, W, 3) or, in shades of grey, (H, W) and (H, W, 1). A file appears complete
** or not at all. */
PERI_API peri_status peri_png_save (peri_ctx *ctx, const char *path, peri_tensor *image);

/* An animated GIF: colours are exact where a frame has at most 256 of them. fps in (0, 50]: readers take no
** less than 0.02 s a frame. loops: how often it plays, 0 for ever. */
typedef struct peri_gif peri_gif;
PERI_API peri_status peri_gif_create (peri_ctx *ctx, const char *path, double fps, int loops,
                                      peri_gif **out);
PERI_API peri_status peri_gif_add (peri_gif *g, peri_tensor *image); /* of the first one's size */
/* Closes g whatever it returns. */
PERI_API peri_status peri_gif_commit (peri_gif *g);
PERI_API void peri_gif_abort (peri_gif *g); /* before its context; NULL is a no-op */

/* An animated SVG: shapes stay shapes, and one that stood in an earlier frame is written once. fps in
** (0, 100]. */
typedef struct peri_svg peri_svg;
PERI_API peri_status peri_svg_create (peri_ctx *ctx, const char *path, double fps, int loops,
                                      peri_svg **out);
PERI_API peri_status peri_svg_add (peri_svg *s, peri_frame *f); /* of the first one's size */
PERI_API peri_status peri_svg_commit (peri_svg *s);
PERI_API void peri_svg_abort (peri_svg *s);

#ifdef __cplusplus
}
#endif
#endif
