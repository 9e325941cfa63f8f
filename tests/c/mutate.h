/*
** mutate.h - deterministic mutations of small files: flips, cuts, splices, truncations, numbers
** replaced by boundary values. Shared by test_mutations.c and the replay drivers of tests/fuzz/.
*/
#ifndef mutate_h
#define mutate_h

#include <string.h>

#include "perilune.h"

typedef struct dice {
  uint64_t which;
  uint32_t word[4], n;
} dice;

static inline uint32_t draw (dice *d) {
  if (d->n % 4 == 0) {
    uint32_t counter[4] = { d->n / 4, 0, (uint32_t)d->which, (uint32_t)(d->which >> 32) };
    const uint32_t key[2] = { 20240101, 7 };
    peri_philox(counter, key, d->word);
  }
  return d->word[d->n++ % 4];
}

static inline size_t below (dice *d, size_t n) { return n == 0 ? 0 : draw(d) % n; }

/* Values at the edges of integer types, and factors whose products wrap to 0, to a negative and to a
** small positive number. */
static const char *const edges[] = { "0",
                                     "-0",
                                     "-1",
                                     "1",
                                     "2",
                                     "127",
                                     "255",
                                     "65536",
                                     "2147483647",
                                     "2147483648",
                                     "4294967295",
                                     "4294967296",
                                     "4294967297",
                                     "2305843009213693952",
                                     "4611686018427387904",
                                     "9223372036854775807",
                                     "9223372036854775808",
                                     "-9223372036854775808",
                                     "18446744073709551615",
                                     "18446744073709551616",
                                     "6148914691236517206",
                                     "1e3",
                                     "1.0",
                                     "1e400",
                                     "00",
                                     "null",
                                     "[]",
                                     "{}",
                                     "\"1\"" };

static inline size_t replace (unsigned char *out, size_t size, size_t cap, size_t at, size_t old,
                              const void *text, size_t n) {
  if (size - old + n > cap) return size;
  memmove(out + at + n, out + at + old, size - at - old);
  memcpy(out + at, text, n);
  return size - old + n;
}

static inline size_t change_number (dice *d, unsigned char *out, size_t size, size_t cap) {
  size_t at = below(d, size), end;
  for (size_t k = 0; k < size && (out[at] < '0' || out[at] > '9'); k++) at = (at + 1) % size;
  if (out[at] < '0' || out[at] > '9') return size;
  while (at > 0 && out[at - 1] >= '0' && out[at - 1] <= '9') at--;
  for (end = at; end < size && out[end] >= '0' && out[end] <= '9';) end++;
  const char *text = edges[below(d, sizeof edges / sizeof *edges)];
  return replace(out, size, cap, at, end - at, text, strlen(text));
}

static inline size_t mutate_once (dice *d, unsigned char *out, size_t size, size_t cap) {
  if (size == 0) return size;
  size_t at = below(d, size), n = 1 + below(d, 16), from = below(d, size);
  if (n > size - at) n = size - at;
  if (from + n > size) from = size - n;
  unsigned char piece[16];
  switch (draw(d) % 8) {
  case 0: out[at] ^= (unsigned char)(1u << draw(d) % 8); return size;
  case 1: out[at] = (unsigned char)draw(d); return size;
  case 2: return at;                                    /* truncate */
  case 3: return replace(out, size, cap, at, n, "", 0); /* cut out */
  case 4: memcpy(piece, out + from, n); return replace(out, size, cap, at, 0, piece, n);
  case 5: memcpy(piece, out + from, n); return replace(out, size, cap, at, n, piece, n);
  case 6: out[below(d, size < 8 ? size : 8)] = (unsigned char)draw(d); return size;
  default: return change_number(d, out, size, cap);
  }
}

/* Mutation number `which` of a seed, into out, whose capacity is at least size; returns the new size. */
static inline size_t mutate (uint64_t which, const unsigned char *seed, size_t size,
                             unsigned char *out, size_t cap) {
  dice d = { .which = which };
  memcpy(out, seed, size);
  for (uint32_t n = 1 + draw(&d) % 3; n > 0; n--) size = mutate_once(&d, out, size, cap);
  return size;
}

#endif
