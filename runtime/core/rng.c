/*
** rng.c - Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As
** Easy as 1, 2, 3", SC11. A draw is a pure function of (seed, offset, block), so a result never
** depends on threads, and a generator's state is two numbers.
*/
#include "core/core.h"

void peri_philox (const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  if (!counter || !key || !out) return;
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
  uint32_t k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)p1;
    c3 = (uint32_t)p0;
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

void peri__rng_block (peri_rng r, uint64_t b, uint32_t out[4]) {
  uint32_t counter[4] = { (uint32_t)b, (uint32_t)(b >> 32), (uint32_t)r.offset,
                          (uint32_t)(r.offset >> 32) };
  uint32_t key[2] = { (uint32_t)r.seed, (uint32_t)(r.seed >> 32) };
  peri_philox(counter, key, out);
}

peri_rng peri__rng_next (peri_ctx *ctx) {
  peri_rng r = ctx->rng;
  ctx->rng.offset++;
  return r;
}

void peri_rng_set (peri_ctx *ctx, peri_rng state) {
  if (!ctx) return;
  ctx->rng = state;
  ctx->spawned = 0;
}
peri_rng peri_rng_get (const peri_ctx *ctx) { return ctx ? ctx->rng : (peri_rng){ 0 }; }
