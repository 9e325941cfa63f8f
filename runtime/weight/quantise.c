/*
** quantise.c - numbers to ggml's blocks of 32. Rounding follows ggml-quants.c (*_ref) to the bit:
** the inverse of a scale comes from the f32 scale, before that is rounded to f16.
*/
#include <float.h>
#include <math.h>

#include "weight/quantise.h"

static void write_q8_0 (const float *x, uint8_t *b) {
  float most = 0;
  for (int i = 0; i < 32; i++) most = fmaxf(most, fabsf(x[i]));
  float d = most / 127, inverse = d != 0 ? 1 / d : 0;
  peri__put_half(b, d);
  for (int i = 0; i < 32; i++) {
    float v = roundf(x[i] * inverse);
    b[2 + i] = (uint8_t)(int8_t)(fabsf(v) <= 127 ? v : 0); /* not so after inf or NaN alone */
  }
}

/* Truncated v in 0..top; NaN is 0, so that no input makes the conversion undefined. */
static int code_of (float v, int top) {
  if (!(v > 0)) return 0;
  return v < (float)top ? (int)v : top;
}

/* The value of largest magnitude, the first of equals. */
static float extreme (const float *x) {
  float most = 0, at = 0;
  for (int i = 0; i < 32; i++) {
    if (fabsf(x[i]) > most) {
      most = fabsf(x[i]);
      at = x[i];
    }
  }
  return at;
}

static void range_of (const float *x, float *min, float *max) {
  *min = FLT_MAX;
  *max = -FLT_MAX;
  for (int i = 0; i < 32; i++) {
    if (x[i] < *min) *min = x[i];
    if (x[i] > *max) *max = x[i];
  }
}

/* Low four bits: the first half of the block in low nibbles, the second in high ones. */
static void put_nibbles (const int *codes, uint8_t *b) {
  for (int i = 0; i < 16; i++) b[i] = (uint8_t)((codes[i] & 15) | (codes[i + 16] & 15) << 4);
}

/* Fifth bits: bit i of a word for element i. */
static void put_fifths (const int *codes, uint8_t *b) {
  uint32_t high = 0;
  for (int i = 0; i < 32; i++) high |= (uint32_t)(codes[i] >> 4) << i;
  for (int i = 0; i < 4; i++) b[i] = (uint8_t)(high >> 8 * i);
}

/* Signed codes of `half` steps to either side: the extreme value is a code of -half. */
static void write_even (const float *x, int half, int *codes, uint8_t *d) {
  float step = extreme(x) / (float)-half, inverse = step != 0 ? 1 / step : 0;
  peri__put_half(d, step);
  for (int i = 0; i < 32; i++)
    codes[i] = code_of(x[i] * inverse + ((float)half + 0.5f), 2 * half - 1);
}

static void write_range (const float *x, int top, int *codes, uint8_t *d, uint8_t *m) {
  float min, max;
  range_of(x, &min, &max);
  float step = (max - min) / (float)top, inverse = step != 0 ? 1 / step : 0;
  peri__put_half(d, step);
  peri__put_half(m, min);
  for (int i = 0; i < 32; i++) codes[i] = code_of((x[i] - min) * inverse + 0.5f, top);
}

static void write_q4_0 (const float *x, uint8_t *b) {
  int codes[32];
  write_even(x, 8, codes, b);
  put_nibbles(codes, b + 2);
}

static void write_q4_1 (const float *x, uint8_t *b) {
  int codes[32];
  write_range(x, 15, codes, b, b + 2);
  put_nibbles(codes, b + 4);
}

static void write_q5_0 (const float *x, uint8_t *b) {
  int codes[32];
  write_even(x, 16, codes, b);
  put_fifths(codes, b + 2);
  put_nibbles(codes, b + 6);
}

static void write_q5_1 (const float *x, uint8_t *b) {
  int codes[32];
  write_range(x, 31, codes, b, b + 2);
  put_fifths(codes, b + 4);
  put_nibbles(codes, b + 8);
}

void peri__quantise (peri_dtype d, int64_t n, const float *x, void *blocks) {
  static void (*const write[])(const float *x, uint8_t *b) = { write_q8_0,       write_q4_0,
                                                               write_q4_1,       write_q5_0,
                                                               write_q5_1,       peri__write_q4_k,
                                                               peri__write_q5_k, peri__write_q6_k };
  size_t bytes;
  int size = peri_dtype_block(d, &bytes);
  uint8_t *b = blocks;
  for (int64_t i = 0; i < n; i += size, b += bytes) write[d - PERI_Q8_0](x + i, b);
}
