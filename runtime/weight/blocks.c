/*
** blocks.c - ggml's block formats, one row of numbers at a time: the definitions that every faster
** path is checked against. Layouts and rounding follow ggml-common.h and ggml-quants.c (*_ref).
*/
#include "weight/quantise.h"

/* ---- 32 elements: d f16, codes ---- */

static void read_q8_0 (const uint8_t *b, float *y) {
  float d = peri__half_at(b);
  for (int i = 0; i < 32; i++) y[i] = d * (float)(int8_t)b[2 + i];
}

/* Low nibbles are the first half, high ones the second. */
static void read_q4_0 (const uint8_t *b, float *y) {
  float d = peri__half_at(b);
  for (int i = 0; i < 16; i++) {
    y[i] = d * (float)((b[2 + i] & 15) - 8);
    y[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
  }
}

static void read_q4_1 (const uint8_t *b, float *y) {
  float d = peri__half_at(b), m = peri__half_at(b + 2);
  for (int i = 0; i < 16; i++) {
    y[i] = d * (float)(b[4 + i] & 15) + m;
    y[i + 16] = d * (float)(b[4 + i] >> 4) + m;
  }
}

static uint32_t word_at (const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* The fifth bits stand in a word: bit i of element i. */
static int five (const uint8_t *codes, uint32_t high, int i) {
  int low = i < 16 ? codes[i] & 15 : codes[i - 16] >> 4;
  return low | (int)(high >> i & 1) << 4;
}

static void read_q5_0 (const uint8_t *b, float *y) {
  float d = peri__half_at(b);
  uint32_t high = word_at(b + 2);
  for (int i = 0; i < 32; i++) y[i] = d * (float)(five(b + 6, high, i) - 16);
}

static void read_q5_1 (const uint8_t *b, float *y) {
  float d = peri__half_at(b), m = peri__half_at(b + 2);
  uint32_t high = word_at(b + 4);
  for (int i = 0; i < 32; i++) y[i] = d * (float)five(b + 8, high, i) + m;
}

/* ---- 256 elements: d, dmin f16, 6-bit scales and minima of 8 groups ---- */

/* Scale and minimum of group j out of 12 bytes. */
static void six_bits (const uint8_t *q, int j, int *scale, int *min) {
  if (j < 4) {
    *scale = q[j] & 63;
    *min = q[j + 4] & 63;
  } else {
    *scale = (q[j + 4] & 15) | (q[j - 4] >> 6) << 4;
    *min = (q[j + 4] >> 4) | (q[j] >> 6) << 4;
  }
}

static void read_q45_k (const uint8_t *b, const uint8_t *high, const uint8_t *codes, float *y) {
  float d = peri__half_at(b), dmin = peri__half_at(b + 2);
  for (int j = 0; j < 8; j++) {
    int scale, min;
    six_bits(b + 4, j, &scale, &min);
    float a = d * (float)scale, m = dmin * (float)min;
    for (int i = 0; i < 32; i++) {
      uint8_t byte = codes[j / 2 * 32 + i];
      int q = j & 1 ? byte >> 4 : byte & 15;
      if (high) q |= (high[i] >> j & 1) << 4;
      y[j * 32 + i] = a * (float)q - m;
    }
  }
}

static void read_q4_k (const uint8_t *b, float *y) { read_q45_k(b, NULL, b + 16, y); }
static void read_q5_k (const uint8_t *b, float *y) { read_q45_k(b, b + 16, b + 48, y); }

/* 128 bytes of low nibbles, 64 of high pairs, 16 int8 scales, d. */
static void read_q6_k (const uint8_t *b, float *y) {
  float d = peri__half_at(b + 208);
  for (int half = 0; half < 2; half++) {
    const uint8_t *low = b + half * 64, *high = b + 128 + half * 32;
    const int8_t *scale = (const int8_t *)b + 192 + half * 8;
    for (int i = 0; i < 128; i++) {
      int part = i / 32, l = i % 32;
      int q = part < 2 ? low[part * 32 + l] & 15 : low[(part - 2) * 32 + l] >> 4;
      q |= (high[l] >> (2 * part) & 3) << 4;
      y[half * 128 + i] = d * (float)scale[i / 16] * (float)(q - 32);
    }
  }
}

void peri__dequantise (peri_dtype d, int64_t n, const void *blocks, float *out) {
  static void (*const read[])(const uint8_t *b, float *y) = { read_q8_0, read_q4_0, read_q4_1,
                                                              read_q5_0, read_q5_1, read_q4_k,
                                                              read_q5_k, read_q6_k };
  size_t bytes;
  int size = peri_dtype_block(d, &bytes);
  const uint8_t *b = blocks;
  for (int64_t i = 0; i < n; i += size, b += bytes) read[d - PERI_Q8_0](b, out + i);
}
