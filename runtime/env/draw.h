/* draw.h - integers without bias from one offset of a generator: positions of samples, permutations. */
#ifndef peri_env_draw_h
#define peri_env_draw_h

#include "core/core.h"

typedef struct peri__words {
  peri_rng rng;
  uint64_t block;
  uint32_t w[4];
  int left;
} peri__words;

static inline uint32_t peri__word (peri__words *s) {
  if (s->left == 0) {
    peri__rng_block(s->rng, s->block++, s->w);
    s->left = 4;
  }
  return s->w[--s->left];
}

static inline uint64_t peri__two_words (peri__words *s) {
  uint64_t high = peri__word(s);
  return high << 32 | peri__word(s);
}

/* Uniform in [0, n), n > 0, without bias: Lemire, 2019. */
static inline int64_t peri__below (peri__words *s, uint64_t n) {
  if (n <= UINT32_MAX) {
    uint64_t m = peri__word(s) * n;
    if ((uint32_t)m < n)
      for (uint32_t floor = (uint32_t)-n % (uint32_t)n; (uint32_t)m < floor;) m = peri__word(s) * n;
    return (int64_t)(m >> 32);
  }
  uint64_t rest = -n % n, v; /* 2^64 mod n words are drawn again */
  while ((v = peri__two_words(s)) < rest) {}
  return (int64_t)(v % n);
}

#endif
