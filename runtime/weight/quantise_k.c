/*
** quantise_k.c - numbers to ggml's K blocks of 256. A group's scale (and minimum) is searched: codes
** are made for a row of trial scales, each set of codes is fitted by weighted least squares, the
** fit of least error wins (the method of ggml-quants.c). Then the group's six or eight-bit scale
** and minimum are tried one step to either side, which also repairs what their rounding lost.
*/
#include <math.h>
#include <string.h>

#include "weight/quantise.h"

static float clamp (float v, float low, float high) {
  return v > low ? (v < high ? v : high) : low; /* NaN is low */
}

/* Nearest whole number in low..high, |low| and high under 2^21: adding 1.5 * 2^23 rounds. */
static float whole (float v, float low, float high) {
  return (clamp(v, low, high) + 12582912.f) - 12582912.f;
}

static int nearest (float v, int low, int high) { return (int)whole(v, (float)low, (float)high); }

/* Least weighted error of x as scale * code - min with 0 <= code <= top, min >= 0. */
static float fit_range (const float *x, const float *weight, int top, float trial0, int trials,
                        float *min_out) {
  float low = x[0], high = x[0], sum_w = 0, sum_x = 0;
  for (int i = 0; i < 32; i++) {
    low = fminf(low, x[i]);
    high = fmaxf(high, x[i]);
    sum_w += weight[i];
    sum_x += weight[i] * x[i];
  }
  low = fminf(low, 0);
  *min_out = -low;
  if (!(high > low) || !isfinite(high - low)) return 0;
  float best = INFINITY, scale = (high - low) / (float)top;
  for (int t = -1; t < trials; t++) {
    float steps = t < 0 ? (float)top : (float)top + trial0 + 0.1f * (float)t;
    float inverse = steps / (high - low), code[32];
    float sum_l = 0, sum_l2 = 0, sum_xl = 0;
    for (int i = 0; i < 32; i++) {
      code[i] = whole((x[i] - low) * inverse, 0, (float)top);
      sum_l += weight[i] * code[i];
      sum_l2 += weight[i] * code[i] * code[i];
      sum_xl += weight[i] * code[i] * x[i];
    }
    float det = sum_w * sum_l2 - sum_l * sum_l;
    if (!(det > 0)) continue;
    float a = (sum_w * sum_xl - sum_x * sum_l) / det;
    float m = (sum_l2 * sum_x - sum_l * sum_xl) / det;
    if (m > 0) {
      m = 0;
      a = sum_xl / sum_l2;
    }
    float error = 0;
    for (int i = 0; i < 32; i++) {
      float e = a * code[i] + m - x[i];
      error += weight[i] * e * e;
    }
    if (error < best) {
      best = error;
      scale = a;
      *min_out = -m;
    }
  }
  return scale;
}

static float range_error (const float *x, const float *weight, int top, float a, float m) {
  float inverse = a != 0 ? 1 / a : 0, error = 0;
  for (int i = 0; i < 32; i++) {
    float e = a * whole((x[i] + m) * inverse, 0, (float)top) - m - x[i];
    error += weight[i] * e * e;
  }
  return error;
}

/* The pair of codes near (*scale, *min) that loses least. */
static void refine (const float *x, const float *weight, int top, float d, float dmin, int *scale,
                    int *min) {
  int s0 = *scale, m0 = *min;
  float best = range_error(x, weight, top, d * (float)s0, dmin * (float)m0);
  for (int s = s0 > 0 ? s0 - 1 : 0; s <= s0 + 1 && s < 64; s++) {
    for (int m = m0 > 0 ? m0 - 1 : 0; m <= m0 + 1 && m < 64; m++) {
      float error = range_error(x, weight, top, d * (float)s, dmin * (float)m);
      if (error < best) {
        best = error;
        *scale = s;
        *min = m;
      }
    }
  }
}

/* Six-bit scales and minima of 8 groups in 12 bytes; see six_bits in blocks.c. */
static void put_six_bits (uint8_t *q, const int *scale, const int *min) {
  for (int j = 0; j < 4; j++) {
    q[j] = (uint8_t)(scale[j] | scale[j + 4] >> 4 << 6);
    q[j + 4] = (uint8_t)(min[j] | min[j + 4] >> 4 << 6);
    q[j + 8] = (uint8_t)((scale[j + 4] & 15) | (min[j + 4] & 15) << 4);
  }
}

/* Header of 16 bytes and the 256 codes of 0..top. */
static void write_ranges (const float *x, int top, float trial0, int trials, uint8_t *b,
                          uint8_t *code) {
  float weight[256], a[8], m[8], most_a = 0, most_m = 0;
  int scale[8], min[8];
  for (int j = 0; j < 8; j++) {
    const float *g = x + 32 * j;
    float square = 0;
    for (int i = 0; i < 32; i++) square += g[i] * g[i];
    square = sqrtf(square / 32);
    for (int i = 0; i < 32; i++) weight[32 * j + i] = square + fabsf(g[i]);
    a[j] = fit_range(g, weight + 32 * j, top, trial0, trials, &m[j]);
    most_a = fmaxf(most_a, a[j]);
    most_m = fmaxf(most_m, m[j]);
  }
  peri__put_half(b, most_a / 63);
  peri__put_half(b + 2, most_m / 63);
  float d = peri__half_at(b), dmin = peri__half_at(b + 2);
  for (int j = 0; j < 8; j++) {
    const float *g = x + 32 * j;
    scale[j] = nearest(most_a > 0 ? 63 * (a[j] / most_a) : 0, 0, 63);
    min[j] = nearest(most_m > 0 ? 63 * (m[j] / most_m) : 0, 0, 63);
    refine(g, weight + 32 * j, top, d, dmin, &scale[j], &min[j]);
    float step = d * (float)scale[j], low = dmin * (float)min[j];
    float inverse = step != 0 ? 1 / step : 0;
    for (int i = 0; i < 32; i++)
      code[32 * j + i] = (uint8_t)nearest((g[i] + low) * inverse, 0, top);
  }
  put_six_bits(b + 4, scale, min);
}

/* Low nibbles of groups 2j, 2j + 1 share 32 bytes. */
static void put_nibbles (const uint8_t *code, uint8_t *b) {
  for (int j = 0; j < 4; j++) {
    for (int i = 0; i < 32; i++)
      b[32 * j + i] = (uint8_t)((code[64 * j + i] & 15) | (code[64 * j + 32 + i] & 15) << 4);
  }
}

void peri__write_q4_k (const float *x, uint8_t *b) {
  uint8_t code[256];
  write_ranges(x, 15, -1, 21, b, code);
  put_nibbles(code, b + 16);
}

void peri__write_q5_k (const float *x, uint8_t *b) {
  uint8_t code[256];
  write_ranges(x, 31, -0.5f, 16, b, code);
  memset(b + 16, 0, 32);
  for (int i = 0; i < 256; i++) b[16 + i % 32] |= (uint8_t)(code[i] >> 4 << i / 32);
  put_nibbles(code, b + 48);
}

/* ---- q6_K: 16 groups of 16, signed codes, signed scales ---- */

/* Least error of x as scale * code with -32 <= code <= 31, errors weighted by x^2. */
static float fit_even (const float *x) {
  float most = 0, at = 0;
  for (int i = 0; i < 16; i++) {
    if (fabsf(x[i]) > most) {
      most = fabsf(x[i]);
      at = x[i];
    }
  }
  if (most < 1e-15f || !isfinite(most)) return 0;
  float best = -1, scale = 0;
  for (int t = -9; t <= 9; t++) {
    float inverse = -(32 + 0.1f * (float)t) / at, sum_xl = 0, sum_l2 = 0;
    for (int i = 0; i < 16; i++) {
      float l = whole(x[i] * inverse, -32, 31), w = x[i] * x[i];
      sum_xl += w * x[i] * l;
      sum_l2 += w * l * l;
    }
    /* The error falls by sum_xl^2 / sum_l2 under the best scale of these codes. */
    if (sum_l2 > 0 && sum_xl * sum_xl > best * sum_l2) {
      best = sum_xl * sum_xl / sum_l2;
      scale = sum_xl / sum_l2;
    }
  }
  return scale;
}

static float even_error (const float *x, float a) {
  float inverse = a != 0 ? 1 / a : 0, error = 0;
  for (int i = 0; i < 16; i++) {
    float e = a * whole(x[i] * inverse, -32, 31) - x[i];
    error += x[i] * x[i] * e * e;
  }
  return error;
}

void peri__write_q6_k (const float *x, uint8_t *b) {
  float a[16], most = 0;
  for (int j = 0; j < 16; j++) {
    a[j] = fit_even(x + 16 * j);
    if (fabsf(a[j]) > fabsf(most)) most = a[j];
  }
  peri__put_half(b + 208, most / -128);
  float d = peri__half_at(b + 208);
  memset(b, 0, 192);
  for (int j = 0; j < 16; j++) {
    const float *g = x + 16 * j;
    int near = nearest(most != 0 ? -128 * (a[j] / most) : 0, -128, 127), scale = near;
    float best = even_error(g, d * (float)near);
    for (int s = near > -128 ? near - 1 : near; s <= near + 1 && s < 128; s++) {
      float error = even_error(g, d * (float)s);
      if (error < best) {
        best = error;
        scale = s;
      }
    }
    b[192 + j] = (uint8_t)(int8_t)scale;
    float step = d * (float)scale, inverse = step != 0 ? 1 / step : 0;
    for (int i = 0; i < 16; i++) {
      int q = nearest(g[i] * inverse, -32, 31) + 32, at = 16 * j + i;
      int half = at / 128, part = at % 128 / 32, l = at % 32;
      b[64 * half + part % 2 * 32 + l] |= (uint8_t)((q & 15) << (part < 2 ? 0 : 4));
      b[128 + 32 * half + l] |= (uint8_t)((q >> 4) << 2 * part);
    }
  }
}
