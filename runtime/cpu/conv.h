/*
** conv.h - convolutions and pooling: the drivers that ops call and the table of kernels of one SIMD
** level. No im2col of a whole batch is ever made: a few output rows at a time, the input rows that
** they read are laid out in scratch (padding as zeros, columns by their phase of the stride), so that
** every tap of every output is one load at a fixed offset; panels for the register tiles of cpu/gemm.h
** are packed from there, and stay in cache.
**
** Numerics: each output, and each element of the gradient for the input, is one chain of multiply-adds
** over the taps in a fixed order. The gradient for the weight adds such chains over blocks of output
** rows that depend on the sizes alone. Nothing depends on threads.
*/
#ifndef peri_conv_h
#define peri_conv_h

#include "cpu/cpu.h"

/* The sizes of one convolution; a 1d one has height 1. */
typedef struct peri__conv {
  int64_t n, groups;
  int64_t c, h, w;   /* input channels of a group, rows, columns */
  int64_t o, oh, ow; /* output channels of a group, rows, columns */
  int64_t kh, kw;    /* kernel */
  int64_t sh, sw;    /* stride */
  int64_t dh, dw;    /* dilation */
  int64_t top, left; /* padding before; that after is in oh and ow already */
} peri__conv;

/* y (n, groups o, oh, ow) = x (n, groups c, h, w) * w (groups o, c, kh, kw) + bias (groups o)? */
peri_status peri__conv_forward (peri_ctx *ctx, const peri__conv *s, const float *x, const float *w,
                                const float *bias, float *y);
/* dx, all of it written. */
peri_status peri__conv_back_input (peri_ctx *ctx, const peri__conv *s, const float *g,
                                   const float *w, float *dx);
/* dw, all of it written. */
peri_status peri__conv_back_weight (peri_ctx *ctx, const peri__conv *s, const float *x,
                                    const float *g, float *dw);

/* Planes n with c = o = 1: y (n, oh, ow) the largest of each window, at its place in the plane, h w of which
** is less than 2^31. */
peri_status peri__pool_max (peri_ctx *ctx, const peri__conv *s, const float *x, float *y,
                            int32_t *at);

/* ---- what the drivers share ---- */

enum { PERI_CONV_PIECES = 64 }; /* most vectors that make up one row of a panel */

/*
** Source rows laid out for taps: row r of channel c, column j at ((r * c_count + c) * step + j % step) *
** xs + j / step. Columns begin at x0 of the source, which may lie outside; what does is zero.
*/
typedef struct peri__conv_rows {
  int64_t c, h, w;      /* source */
  int64_t image, plane; /* elements from image to image, from channel to channel */
  int64_t step, xs;     /* phases of a row, columns of each */
  int64_t x0;
  float fill; /* outside */
} peri__conv_rows;

/* Offset of tap (ty, tx) of channel c from the place of an output. */
static inline int64_t peri__conv_tap (const peri__conv_rows *l, int64_t c, int64_t ty, int64_t tx) {
  return ((ty * l->c + c) * l->step + tx % l->step) * l->xs + tx / l->step;
}
static inline int64_t peri__conv_row (const peri__conv_rows *l) { return l->c * l->step * l->xs; }

/* ---- kernels of one level: cpu/simd_conv.c ---- */

struct peri__conv_kernels {
  /* Row i < k of a panel: a vector from from[j] + off[i] to out + i * NR + to[j] for each of np pieces
  ** in order, so that what one writes too far the next one overwrites; NR as in cpu/gemm.h. A vector may
  ** be written behind the panel. */
  void (*pack)(int64_t k, const int64_t *off, int np, const float *const *from, const int64_t *to,
               float *out);
  /* Rows [y, y + count) of an image, its first channel at x -> out. */
  void (*lay)(const peri__conv_rows *l, const float *x, int64_t y, int64_t count, float *out);
  /* to[i * pitch + j * step] = from[i * from_pitch + j], i < m, j < n; what lies between stays */
  void (*move)(int64_t m, int64_t n, const float *from, int64_t from_pitch, float *to,
               int64_t pitch, int64_t step);
  /* out[j * m + i] = x[i * stride + j], i < m, j < n */
  void (*turn)(int64_t m, int64_t n, const float *x, int64_t stride, float *out);
  /* For rows i < m <= 4: out[j][i * om + l] = init[i] + sum over t < k of a[t * m + i] from[j][off[t] + l],
  ** l < len[j], for direct_pieces[m] pieces. */
  void (*direct)(int64_t m, int64_t k, const int64_t *off, const float *a, const float *init,
                 const float *const *from, float *const *out, const int64_t *len, int64_t om);
  int direct_pieces[5];
  /* lanes of sum[t]: += g[r * g_pitch + l] x[r * pitch + off[t] + l], r < rows, l < n, for t < k; sum is
  ** (k, lanes) */
  void (*dot)(int64_t k, const int64_t *off, int64_t rows, const float *x, int64_t pitch,
              const float *g, int64_t g_pitch, int64_t n, float *sum);
  /* y[l] = the largest of x[off[t] + l] over t < k, the first of equal ones or the last NaN, at[l] its place
  ** base + place[t] + l * step, or -1 where all are -inf; l < n */
  void (*max)(int64_t k, const int64_t *off, const int32_t *place, const float *x, int64_t n,
              int32_t base, int32_t step, float *y, int32_t *at);
};

#ifdef PERI_LEVEL
extern const struct peri__conv_kernels PERI_NAME(peri__conv);
#endif

#endif
