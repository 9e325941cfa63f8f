/* bytes.c - hashes of byte ranges, byte order, a sort that allocates nothing; for the file formats of
** io/. */
#include <string.h>

#include "io/files.h"

/* ---- XXH64 (Collet, xxHash specification 0.1.1), seed 0 ---- */

#define P1 0x9E3779B185EBCA87u
#define P2 0xC2B2AE3D27D4EB4Fu
#define P3 0x165667B19E3779F9u
#define P4 0x85EBCA77C2B2AE63u
#define P5 0x27D4EB2F165667C5u

static uint64_t rotl (uint64_t x, int b) { return x << b | x >> (64 - b); }

static uint64_t load64 (const unsigned char *p) {
  uint64_t v;
  memcpy(&v, p, sizeof v);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  v = __builtin_bswap64(v);
#endif
  return v;
}

static uint64_t round64 (uint64_t acc, uint64_t lane) { return rotl(acc + lane * P2, 31) * P1; }

static void stripe (peri__xxh64 *h, const unsigned char *p) {
  for (int i = 0; i < 4; i++) h->lane[i] = round64(h->lane[i], load64(p + 8 * i));
}

void peri__xxh64_init (peri__xxh64 *h) {
  memset(h, 0, sizeof *h);
  h->lane[0] = P1 + P2;
  h->lane[1] = P2;
  h->lane[3] = 0 - P1;
}

void peri__xxh64_add (peri__xxh64 *h, const void *data, size_t n) {
  const unsigned char *p = data;
  size_t have = h->total % 32;
  h->total += n;
  if (have + n < 32) {
    if (n != 0) memcpy(h->rest + have, p, n);
    return;
  }
  if (have != 0) {
    memcpy(h->rest + have, p, 32 - have);
    stripe(h, h->rest);
    p += 32 - have;
    n -= 32 - have;
  }
  for (; n >= 32; p += 32, n -= 32) stripe(h, p);
  if (n != 0) memcpy(h->rest, p, n);
}

uint64_t peri__xxh64_end (const peri__xxh64 *h) {
  const unsigned char *p = h->rest;
  size_t n = h->total % 32;
  uint64_t acc = P5;
  if (h->total >= 32) {
    acc = rotl(h->lane[0], 1) + rotl(h->lane[1], 7) + rotl(h->lane[2], 12) + rotl(h->lane[3], 18);
    for (int i = 0; i < 4; i++) acc = (acc ^ round64(0, h->lane[i])) * P1 + P4;
  }
  acc += h->total;
  for (; n >= 8; p += 8, n -= 8) acc = rotl(acc ^ round64(0, load64(p)), 27) * P1 + P4;
  if (n >= 4) {
    uint64_t low =
        (uint64_t)p[0] | (uint64_t)p[1] << 8 | (uint64_t)p[2] << 16 | (uint64_t)p[3] << 24;
    acc = rotl(acc ^ low * P1, 23) * P2 + P3;
    p += 4;
    n -= 4;
  }
  for (; n > 0; p++, n--) acc = rotl(acc ^ *p * P5, 11) * P1;
  acc = (acc ^ acc >> 33) * P2;
  acc = (acc ^ acc >> 29) * P3;
  return acc ^ acc >> 32;
}

/* CRC-32C (Castagnoli, RFC 3720 appendix B.4), bit by bit: records are a few dozen bytes. */
uint32_t peri__crc32c (const void *data, size_t n) {
  const unsigned char *p = data;
  uint32_t crc = 0xFFFFFFFFu;
  for (; n > 0; n--) {
    crc ^= *p++;
    for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (0x82F63B78u & (0 - (crc & 1)));
  }
  return ~crc;
}

/* ---- byte order ---- */

void peri__swap_bytes (void *data, int64_t n, size_t size) {
  unsigned char *p = data;
  for (int64_t i = 0; i < n; i++, p += size)
    for (size_t a = 0, b = size - 1; a < b; a++, b--) {
      unsigned char t = p[a];
      p[a] = p[b];
      p[b] = t;
    }
}

/* ---- sorting ---- */

static void swap (char *a, char *b, size_t size) {
  for (char c; size > 0; a++, b++, size--) {
    c = *a;
    *a = *b;
    *b = c;
  }
}

static void sink (char *base, size_t i, size_t n, size_t size,
                  int (*compare)(void *ud, const void *a, const void *b), void *ud) {
  for (size_t child; (child = 2 * i + 1) < n; i = child) {
    if (child + 1 < n && compare(ud, base + child * size, base + (child + 1) * size) < 0) child++;
    if (compare(ud, base + i * size, base + child * size) >= 0) return;
    swap(base + i * size, base + child * size, size);
  }
}

void peri__sort (void *base, size_t n, size_t size,
                 int (*compare)(void *ud, const void *a, const void *b), void *ud) {
  char *b = base;
  bool sorted = true;
  for (size_t i = 1; i < n && sorted; i++)
    sorted = compare(ud, b + (i - 1) * size, b + i * size) <= 0;
  if (sorted) return; /* the usual case of a file that was written in order */
  for (size_t i = n / 2; i-- > 0;) sink(b, i, n, size, compare, ud);
  for (size_t end = n - 1; end > 0; end--) {
    swap(b, b + end * size, size);
    sink(b, 0, end, size, compare, ud);
  }
}

/* zlib gives no sizes back: they stand before each block. */
void *peri__zlib_get (void *ctx, unsigned n, unsigned size) {
  size_t bytes = (size_t)n * size + 16;
  size_t *p = peri__malloc(ctx, bytes);
  if (p == NULL) return NULL;
  *p = bytes;
  return (char *)p + 16;
}

void peri__zlib_put (void *ctx, void *p) {
  if (p == NULL) return;
  size_t *start = (size_t *)(void *)((char *)p - 16);
  peri__free(ctx, start, *start);
}
