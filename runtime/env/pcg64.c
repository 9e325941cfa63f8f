/*
** pcg64.c - NumPy's generator: PCG64 (O'Neill, 2014; XSL-RR 128/64) seeded by SeedSequence, with the draws of
** numpy.random.Generator that environments use. Bit for bit, since Gymnasium's episodes are made of them.
*/
#include <math.h>

#include "core/core.h"
#include "env/ziggurat.h"

__extension__ typedef unsigned __int128 u128;

/* ---- seeding ---- */

static uint32_t hashed (uint32_t v, uint32_t *constant, uint32_t mult) {
  v ^= *constant;
  *constant *= mult;
  v *= *constant;
  return v ^ v >> 16;
}

static uint32_t mixed (uint32_t x, uint32_t y) {
  uint32_t r = 0xca01f9ddu * x - 0x4973f715u * y;
  return r ^ r >> 16;
}

static u128 wide (const uint64_t v[2]) { return (u128)v[1] << 64 | v[0]; }

static void narrow (u128 v, uint64_t out[2]) {
  out[0] = (uint64_t)v;
  out[1] = (uint64_t)(v >> 64);
}

static u128 stepped (u128 state, u128 inc) {
  const u128 mult = (u128)2549297995355413924u << 64 | 4865540595714422341u;
  return state * mult + inc;
}

void peri_pcg64_seed (peri_pcg64 *r, uint64_t seed) {
  if (!r) return;
  uint32_t pool[4] = { (uint32_t)seed, (uint32_t)(seed >> 32), 0, 0 }, constant = 0x43b0d7e5u;
  for (int i = 0; i < 4; i++) pool[i] = hashed(pool[i], &constant, 0x931e8875u);
  for (int from = 0; from < 4; from++)
    for (int to = 0; to < 4; to++)
      if (from != to) pool[to] = mixed(pool[to], hashed(pool[from], &constant, 0x931e8875u));
  uint64_t word[4];
  constant = 0x8b51f9ddu;
  for (int i = 0; i < 4; i++) {
    word[i] = hashed(pool[2 * i % 4], &constant, 0x58f38dedu);
    word[i] |= (uint64_t)hashed(pool[(2 * i + 1) % 4], &constant, 0x58f38dedu) << 32;
  }
  u128 inc = ((u128)word[2] << 64 | word[3]) << 1 | 1;
  narrow(inc, r->inc);
  narrow(stepped(inc + ((u128)word[0] << 64 | word[1]), inc), r->state);
  r->half = r->has_half = 0;
}

/* ---- draws ---- */

static uint64_t next64 (peri_pcg64 *r) {
  u128 s = stepped(wide(r->state), wide(r->inc));
  narrow(s, r->state);
  uint64_t v = r->state[1] ^ r->state[0];
  unsigned turn = (unsigned)(s >> 122);
  return v >> turn | v << (-turn & 63);
}

/* The low half of a draw, then its high one. */
static uint32_t next32 (peri_pcg64 *r) {
  if (r->has_half) {
    r->has_half = 0;
    return r->half;
  }
  uint64_t v = next64(r);
  r->half = (uint32_t)(v >> 32);
  r->has_half = 1;
  return (uint32_t)v;
}

uint64_t peri_pcg64_next (peri_pcg64 *r) { return r ? next64(r) : 0; }

double peri_pcg64_double (peri_pcg64 *r) {
  return r ? (double)(next64(r) >> 11) * (1.0 / 9007199254740992.0) : 0;
}

double peri_pcg64_uniform (peri_pcg64 *r, double low, double high) {
  return low + (high - low) * peri_pcg64_double(r);
}

int64_t peri_pcg64_integer (peri_pcg64 *r, int64_t n) { /* Lemire, 2019 */
  if (!r || n <= 1) return 0;
  if (n == (int64_t)1 << 32) return next32(r);
  if (n < (int64_t)1 << 32) {
    uint32_t m = (uint32_t)n, least = -m % m;
    uint64_t v = (uint64_t)next32(r) * m;
    while ((uint32_t)v < least) v = (uint64_t)next32(r) * m;
    return (int64_t)(v >> 32);
  }
  uint64_t m = (uint64_t)n, least = -m % m;
  u128 v = (u128)next64(r) * m;
  while ((uint64_t)v < least) v = (u128)next64(r) * m;
  return (int64_t)(v >> 64);
}

/* Beyond the last strip: Marsaglia's method. */
static double tail (peri_pcg64 *r, bool negative) {
  for (;;) {
    double x = -0.27366123732975827203338247596 * log1p(-peri_pcg64_double(r));
    double y = -log1p(-peri_pcg64_double(r));
    if (y + y > x * x)
      return negative ? -(3.6541528853610087963519472518 + x) : 3.6541528853610087963519472518 + x;
  }
}

double peri_pcg64_normal (peri_pcg64 *r) {
  if (!r) return 0;
  for (;;) {
    uint64_t v = next64(r);
    int strip = (int)(v & 0xff);
    uint64_t size = v >> 9 & 0xfffffffffffffu;
    double x = (double)size * peri__ziggurat_w[strip];
    if (v >> 8 & 1) x = -x;
    if (size < peri__ziggurat_k[strip]) return x;
    if (strip == 0) return tail(r, size >> 8 & 1);
    double top = peri__ziggurat_f[strip - 1], bottom = peri__ziggurat_f[strip];
    if ((top - bottom) * peri_pcg64_double(r) + bottom < exp(-0.5 * x * x)) return x;
  }
}
