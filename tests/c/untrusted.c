/* untrusted.c - see untrusted.h. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* mkdtemp */
#endif
#include "untrusted.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <unistd.h>

static void *counted (void *ud, void *ptr, size_t osize, size_t nsize) {
  heap *h = ud;
  size_t old = ptr == NULL ? 0 : osize;
  if (h->limit != 0 && h->live - old + nsize > h->limit) return NULL;
  if (nsize == 0) {
    free(ptr);
    if (ptr != NULL) h->blocks--;
    h->live -= old;
    return NULL;
  }
  void *p = realloc(ptr, nsize);
  if (p == NULL) return NULL;
  if (ptr == NULL) h->blocks++;
  h->live += nsize - old;
  if (h->live > h->peak) h->peak = h->live;
  return p;
}

peri_ctx *open_counted (heap *h) {
  peri_options o;
  peri_ctx *ctx;
  peri_options_init(&o);
  o.threads = 1;
  o.alloc = counted;
  o.alloc_ud = h;
  memset(h, 0, sizeof *h);
  assert_int_equal(peri_open(&o, &ctx), PERI_OK);
  return ctx;
}

void close_counted (peri_ctx *ctx, heap *h) {
  assert_int_equal(peri_memory_stats(ctx).live_bytes, 0);
  assert_int_equal(peri_memory_stats(ctx).tensors, 0);
  peri_close(ctx);
  assert_int_equal(h->live, 0);
  assert_int_equal(h->blocks, 0);
}

const char *scratch_folder (char path[256]) {
  const char *base = getenv("TMPDIR");
  snprintf(path, 256, "%s/perilune-test-XXXXXX", base != NULL && strlen(base) < 200 ? base : "/tmp");
  assert_non_null(mkdtemp(path));
  return path;
}

void write_file (const char *path, const void *data, size_t size) {
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(data, 1, size, f), size);
  assert_int_equal(fclose(f), 0);
}

void want_failure (peri_ctx *ctx, peri_status s, peri_status want, const char *part) {
  if (s != want || strstr(peri_message(ctx), part) == NULL)
    fail_msg("status %s, message \"%s\"; expected %s and \"%s\"", peri_status_name(s),
             s == PERI_OK ? "" : peri_message(ctx), peri_status_name(want), part);
}

/* ---- mutations ---- */

typedef struct dice {
  uint64_t which;
  uint32_t word[4], n;
} dice;

static uint32_t draw (dice *d) {
  if (d->n % 4 == 0) {
    uint32_t counter[4] = { d->n / 4, 0, (uint32_t)d->which, (uint32_t)(d->which >> 32) };
    const uint32_t key[2] = { 20240101, 7 };
    peri_philox(counter, key, d->word);
  }
  return d->word[d->n++ % 4];
}

static size_t below (dice *d, size_t n) { return n == 0 ? 0 : draw(d) % n; }

/* Values at the edges of integer types, and factors whose products wrap to 0, to a negative and to a
** small positive number. */
static const char *const edges[] = {
  "0", "-0", "-1", "1", "2", "127", "255", "65536", "2147483647", "2147483648", "4294967295",
  "4294967296", "4294967297", "2305843009213693952", "4611686018427387904",
  "9223372036854775807", "9223372036854775808", "-9223372036854775808", "18446744073709551615",
  "18446744073709551616", "6148914691236517206", "1e3", "1.0", "1e400", "00", "null", "[]", "{}", "\"1\""
};

static size_t replace (unsigned char *out, size_t size, size_t cap, size_t at, size_t old,
                       const void *text, size_t n) {
  if (size - old + n > cap) return size;
  memmove(out + at + n, out + at + old, size - at - old);
  memcpy(out + at, text, n);
  return size - old + n;
}

static size_t change_number (dice *d, unsigned char *out, size_t size, size_t cap) {
  size_t at = below(d, size), end;
  for (size_t k = 0; k < size && (out[at] < '0' || out[at] > '9'); k++) at = (at + 1) % size;
  if (out[at] < '0' || out[at] > '9') return size;
  while (at > 0 && out[at - 1] >= '0' && out[at - 1] <= '9') at--;
  for (end = at; end < size && out[end] >= '0' && out[end] <= '9';) end++;
  const char *text = edges[below(d, sizeof edges / sizeof *edges)];
  return replace(out, size, cap, at, end - at, text, strlen(text));
}

static size_t mutate_once (dice *d, unsigned char *out, size_t size, size_t cap) {
  if (size == 0) return size;
  size_t at = below(d, size), n = 1 + below(d, 16), from = below(d, size);
  if (n > size - at) n = size - at;
  if (from + n > size) from = size - n;
  unsigned char piece[16];
  switch (draw(d) % 8) {
    case 0: out[at] ^= (unsigned char)(1u << draw(d) % 8); return size;
    case 1: out[at] = (unsigned char)draw(d); return size;
    case 2: return at;                                              /* truncate */
    case 3: return replace(out, size, cap, at, n, "", 0);           /* cut out */
    case 4: memcpy(piece, out + from, n); return replace(out, size, cap, at, 0, piece, n);
    case 5: memcpy(piece, out + from, n); return replace(out, size, cap, at, n, piece, n);
    case 6: out[below(d, size < 8 ? size : 8)] = (unsigned char)draw(d); return size;
    default: return change_number(d, out, size, cap);
  }
}

size_t mutate (uint64_t which, const unsigned char *seed, size_t size, unsigned char *out, size_t cap) {
  dice d = { .which = which };
  memcpy(out, seed, size);
  for (uint32_t n = 1 + draw(&d) % 3; n > 0; n--) size = mutate_once(&d, out, size, cap);
  return size;
}
