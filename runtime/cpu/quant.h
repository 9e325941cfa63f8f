/*
** quant.h - products with block-quantised weights. Rows of W stand in panels of `width`, interleaved
** in groups of four inputs, so that one vector holds four codes of each row and a dot instruction of
** the processor makes one sum for each row. x is rounded to 8 bits in blocks of 32; sums within a
** block are exact integers, blocks are added in f32 in ascending order with fused multiply-adds
** (where the level has them), whatever the kernel: all levels but portable agree to the bit.
**
** A panel is a run of records of 1, 2 or 8 blocks of 32 inputs (the last may have fewer), so that
** memory is read from front to back: scales of the record's blocks, then the codes of each. Codes:
** group g (inputs 4 g to 4 g + 3) makes a vector of 4 * width bytes, byte 4 r + c for row r and
** input c.
**   8 bits: 8 vectors.
**   4 bits: 4 vectors; vector j holds group j in low nibbles, group j + 4 in high ones.
**   5 bits: the same and 1 vector of fifth bits, bit g for group g.
**   6 bits: the same and 2 vectors of fifth and sixth bits, two from bit 2 (g % 4) on for group g,
**           the first for groups 0 to 3.
** Scales, in vectors of one value for each row, by type:
**   q8_0 q4_0 q5_0: of 2 blocks d (f16).  q4_1 q5_1: of 1 block d, m (f16).
**   q4_K q5_K: of 8 blocks d, dmin (f16), 8 scales, 8 minima (u8).
**   q6_K: of 8 blocks d (f16), 16 scales (i8), one for each half of a block.
** So nothing is lost: rows read back as peri__dequantise gives them.
*/
#ifndef peri_quant_h
#define peri_quant_h

#include "core/core.h"

typedef enum peri__quant_kind {
  PERI_QUANT_EVEN, /* w = scale * (code - bias) */
  PERI_QUANT_MIN,  /* w = scale * code + min */
  PERI_QUANT_HALF  /* as even, with a scale for each half of a block */
} peri__quant_kind;

typedef struct peri__quant_format {
  peri__quant_kind kind;
  int bits, bias;  /* of a code */
  int vectors;     /* of codes in a block */
  int span;        /* blocks of a record */
  int scale_bytes; /* of a row, of all scales of a whole record */
} peri__quant_format;

/* byte_bias: of the kernels that will read the panels. */
static inline peri__quant_format peri__quant_format_of (peri_dtype d, int byte_bias) {
  switch (d) {
  case PERI_Q4_0: return (peri__quant_format){ PERI_QUANT_EVEN, 4, 8, 4, 2, 4 };
  case PERI_Q4_1: return (peri__quant_format){ PERI_QUANT_MIN, 4, 0, 4, 1, 4 };
  case PERI_Q5_0: return (peri__quant_format){ PERI_QUANT_EVEN, 5, 16, 5, 2, 4 };
  case PERI_Q5_1: return (peri__quant_format){ PERI_QUANT_MIN, 5, 0, 5, 1, 4 };
  case PERI_Q4_K: return (peri__quant_format){ PERI_QUANT_MIN, 4, 0, 4, 8, 20 };
  case PERI_Q5_K: return (peri__quant_format){ PERI_QUANT_MIN, 5, 0, 5, 8, 20 };
  case PERI_Q6_K: return (peri__quant_format){ PERI_QUANT_HALF, 6, 32, 6, 8, 18 };
  default: return (peri__quant_format){ PERI_QUANT_EVEN, 8, byte_bias, 8, 2, 4 };
  }
}

/* Bytes of the codes of a block; of the scales of `blocks` blocks of one record; of a panel. */
static inline size_t peri__quant_code_bytes (const peri__quant_format *f, int width) {
  return (size_t)(4 * width * f->vectors);
}
static inline size_t peri__quant_scale_bytes (const peri__quant_format *f, int width,
                                              int64_t blocks) {
  return (size_t)(width * f->scale_bytes) * (size_t)blocks / (size_t)f->span;
}
static inline size_t peri__quant_panel_bytes (const peri__quant_format *f, int width,
                                              int64_t blocks) {
  size_t bytes =
      (size_t)blocks * peri__quant_code_bytes(f, width) + peri__quant_scale_bytes(f, width, blocks);
  return (bytes + PERI_ALIGN - 1) / PERI_ALIGN * PERI_ALIGN;
}

/* What goes with 32 codes of x. */
typedef struct peri__quant_block {
  float d, sum;   /* scale; d times the sum of the codes */
  int32_t fix[2]; /* -bias times the sum of the codes; for PERI_QUANT_HALF of each half */
} peri__quant_block;

/*
** x comes in tiles of 1, 2, 4 or `tile` rows: block by block, of each the rows one after another.
** bias may be NULL. n counts rows of W, ys is how far apart rows of y are.
*/
struct peri__quant_kernels {
  const char *name;
  int width;     /* rows of a panel */
  int byte_bias; /* what codes of q8_0 are raised by */
  int tile;
  /* One row of blocks * 32 numbers; stride: rows of its tile. Inf and NaN make d NaN. */
  void (*round)(peri__quant_kind kind, int bias, int64_t blocks, const float *x, int stride,
                int8_t *codes, peri__quant_block *out);
  /* One row of x and n rows of W in adjacent panels. */
  void (*gemv)(peri_dtype d, int64_t blocks, int64_t n, const uint8_t *w, const int8_t *codes,
               const peri__quant_block *x, const float *bias, float *y);
  /* One panel made ready for tile_product: a byte for each code and, block by block, width scales
  ** in f32, for kinds min and half then width minima or scales of the second half. */
  void (*unpack)(peri_dtype d, int64_t blocks, const uint8_t *panel, uint8_t *codes, float *scales);
  /* n <= width rows of an unpacked panel and one tile of x. next: NULL or the panel that will be
  ** unpacked next, of next_step bytes a block: it is fetched meanwhile. */
  void (*tile_product)(peri_dtype d, int64_t blocks, const uint8_t *w, const float *scales,
                       int rows, const int8_t *codes, const peri__quant_block *x, const float *bias,
                       float *y, int64_t ys, int n, const uint8_t *next, size_t next_step);
};

#endif
