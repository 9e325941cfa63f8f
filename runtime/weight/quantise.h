/* quantise.h - what the writers of blocks share: weight/quantise.c, weight/quantise_k.c. */
#ifndef peri_weight_quantise_h
#define peri_weight_quantise_h

#include "weight/weight.h"

static inline void peri__put_half (uint8_t *p, float v) {
  uint16_t h = peri__f32_to_f16(v);
  p[0] = (uint8_t)h;
  p[1] = (uint8_t)(h >> 8);
}

static inline float peri__half_at (const uint8_t *p) {
  return peri__f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

/* 256 numbers to one block of a K type. */
void peri__write_q4_k (const float *x, uint8_t *b);
void peri__write_q5_k (const float *x, uint8_t *b);
void peri__write_q6_k (const float *x, uint8_t *b);

#endif
