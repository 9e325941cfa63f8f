/* palette.c - see palette.h. */
#include <string.h>

#include "io/palette.h"

static unsigned hash (const uint8_t *c) {
  return (unsigned)(((uint32_t)c[0] << 16 | (uint32_t)c[1] << 8 | c[2]) * 2654435761u) >> 22;
}

/* The slot that has a colour or is free for it. */
static unsigned slot_of (const peri__palette *p, const uint8_t *c) {
  unsigned at = hash(c);
  while (p->slot[at] >= 0 && memcmp(p->rgb[p->slot[at]], c, 3) != 0) at = (at + 1) & 1023;
  return at;
}

static bool exact (peri__palette *p, const uint8_t *rgb, int64_t n) {
  memset(p->slot, -1, sizeof p->slot);
  p->n = 0;
  for (int64_t i = 0; i < n; i++, rgb += 3) {
    unsigned at = slot_of(p, rgb);
    if (p->slot[at] >= 0) continue;
    if (p->n == 256) return false;
    memcpy(p->rgb[p->n], rgb, 3);
    p->slot[at] = (int16_t)p->n++;
  }
  return true;
}

static unsigned bin_of (const uint8_t *c) {
  return (unsigned)(c[0] >> 3) << 10 | (unsigned)(c[1] >> 3) << 5 | c[2] >> 3;
}
static int channel_of (unsigned bin, int c) { return bin >> (10 - 5 * c) & 31; }

/* A box of colours: some of the bins, how many pixels they have, its longest side. */
typedef struct box {
  int begin, end, side, length;
  uint64_t pixels;
} box;

static void measure (const peri__palette *p, box *b) {
  b->pixels = 0;
  b->length = -1;
  for (int c = 0; c < 3; c++) {
    int low = 31, high = 0;
    for (int i = b->begin; i < b->end; i++) {
      int v = channel_of(p->bins[i], c);
      low = v < low ? v : low, high = v > high ? v : high;
    }
    if (high - low > b->length) b->length = high - low, b->side = c;
  }
  for (int i = b->begin; i < b->end; i++) b->pixels += p->count[p->bins[i]];
}

/* Bins below the cut come first; where they end. The cut leaves some on either side. */
static int part (peri__palette *p, const box *b) {
  uint64_t at[32] = { 0 }, sum = 0;
  int low = 31, high = 0, cut = 0;
  for (int i = b->begin; i < b->end; i++) {
    int v = channel_of(p->bins[i], b->side);
    at[v] += p->count[p->bins[i]];
    low = v < low ? v : low, high = v > high ? v : high;
  }
  for (cut = low; cut < high; cut++) {
    sum += at[cut];
    if (2 * sum >= b->pixels) break;
  }
  if (cut == high) cut--;
  int end = b->begin;
  for (int i = b->begin; i < b->end; i++)
    if (channel_of(p->bins[i], b->side) <= cut) {
      uint16_t swap = p->bins[i];
      p->bins[i] = p->bins[end];
      p->bins[end++] = swap;
    }
  return end;
}

/* The box that is worth the most to be cut: many pixels, far apart. -1: none can be. */
static int widest (const box *boxes, int n) {
  int best = -1;
  uint64_t most = 0;
  for (int i = 0; i < n; i++)
    if (boxes[i].pixels * (uint64_t)boxes[i].length > most)
      most = boxes[i].pixels * (uint64_t)boxes[i].length, best = i;
  return best;
}

static void median_cut (peri__palette *p, const uint8_t *rgb, int64_t n) {
  box boxes[256];
  int nboxes = 1, nbins = 0;
  memset(p->count, 0, sizeof p->count);
  memset(p->sum, 0, sizeof p->sum);
  for (int64_t i = 0; i < n; i++, rgb += 3) {
    unsigned bin = bin_of(rgb);
    if (p->count[bin]++ == 0) p->bins[nbins++] = (uint16_t)bin;
    for (int c = 0; c < 3; c++) p->sum[c][bin] += rgb[c];
  }
  boxes[0] = (box){ .begin = 0, .end = nbins };
  measure(p, &boxes[0]);
  for (int at; nboxes < 256 && (at = widest(boxes, nboxes)) >= 0; nboxes++) {
    int middle = part(p, &boxes[at]);
    boxes[nboxes] = (box){ .begin = middle, .end = boxes[at].end };
    boxes[at].end = middle;
    measure(p, &boxes[at]);
    measure(p, &boxes[nboxes]);
  }
  p->n = nboxes;
  memset(p->nearest, 0, sizeof p->nearest);
  for (int k = 0; k < nboxes; k++) {
    uint64_t sum[3] = { 0, 0, 0 };
    for (int i = boxes[k].begin; i < boxes[k].end; i++) {
      p->nearest[p->bins[i]] = (uint8_t)k;
      for (int c = 0; c < 3; c++) sum[c] += p->sum[c][p->bins[i]];
    }
    for (int c = 0; c < 3; c++)
      p->rgb[k][c] = (uint8_t)((sum[c] + boxes[k].pixels / 2) / boxes[k].pixels);
  }
}

void peri__palette_of (peri__palette *p, const uint8_t *rgb, int64_t n) {
  p->exact = exact(p, rgb, n);
  if (!p->exact) median_cut(p, rgb, n);
}

int peri__palette_find (const peri__palette *p, const uint8_t *rgb) {
  if (p->exact) return p->slot[slot_of(p, rgb)];
  return p->nearest[bin_of(rgb)];
}
