/*
** vocab.c - token texts by id, ids by text, and walks along common beginnings. Knows nothing of
** models. Memory is a few bytes a token beside the texts.
*/
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#endif
#include <string.h>
#include <time.h>

#include "text/tokenizer.h"

/* ---- hashing ---- */

uint64_t peri__hash_seed (const void *p) {
  struct timespec now = { 0, 0 };
  clock_gettime(CLOCK_MONOTONIC, &now);
  return ((uint64_t)now.tv_nsec << 32 ^ (uint64_t)now.tv_sec ^ (uint64_t)(uintptr_t)p) *
         0x9E3779B97F4A7C15u;
}

static uint64_t load (const char *s, size_t n) {
  uint64_t v = 0;
  if (n > 0) memcpy(&v, s, n); /* s may be NULL when there is nothing */
  return v;
}

static uint64_t mix (uint64_t a, uint64_t b) {
  a = (a ^ b) * 0x9FB21C651E98DF25u;
  a ^= a >> 32;
  return a * 0xD6E8FEB86659FD93u;
}

uint64_t peri__text_hash (uint64_t seed, const char *s, size_t n) {
  uint64_t h = seed ^ n * 0x9E3779B97F4A7C15u;
  for (; n >= 8; s += 8, n -= 8) {
    h = mix(h, load(s, 8));
    h ^= h >> 29;
  }
  h = mix(h, load(s, n));
  return h ^ h >> 32;
}

peri_status peri__grow (peri_ctx *ctx, void *array, size_t *cap, size_t want, size_t item,
                        const char *what) {
  void *old, *grown;
  size_t to = *cap < 8 ? 8 : *cap + *cap / 2;
  if (want <= *cap) return PERI_OK;
  if (to < want) to = want;
  memcpy(&old, array, sizeof old);
  grown = to > SIZE_MAX / item ? NULL : peri__realloc(ctx, old, *cap * item, to * item);
  if (grown == NULL) return peri__fail(ctx, PERI_ENOMEM, "no memory for %zu %s", to, what);
  memcpy(array, &grown, sizeof grown);
  *cap = to;
  return PERI_OK;
}

/* ---- vocabulary ---- */

void peri__vocab_open (peri__vocab *v, peri_ctx *ctx) {
  memset(v, 0, sizeof *v);
  v->ctx = ctx;
  v->seed = peri__hash_seed(v);
}

void peri__vocab_close (peri__vocab *v) {
  if (v->ctx == NULL) return;
  peri__free(v->ctx, v->blob, v->blob_cap);
  peri__free(v->ctx, v->token, v->cap * sizeof *v->token);
  peri__free(v->ctx, v->slot, v->slots * sizeof *v->slot);
  memset(v, 0, sizeof *v);
}

/* The slot of a text: its own, or the empty one where it would go. */
static size_t slot_of (const peri__vocab *v, const char *s, size_t n, uint64_t hash) {
  size_t i = hash & (v->slots - 1);
  for (uint64_t x; (x = v->slot[i]) != 0; i = (i + 1) & (v->slots - 1)) {
    if (((x ^ hash) >> 32) != 0) continue;
    const peri__token *t = &v->token[(uint32_t)x - 1];
    if (t->n == n && (n == 0 || memcmp(v->blob + t->at, s, n) == 0)) break;
  }
  return i;
}

static peri_status rehash (peri__vocab *v, size_t slots) {
  uint64_t *slot = peri__malloc(v->ctx, slots * sizeof *slot), *old = v->slot;
  if (slot == NULL)
    return peri__fail(v->ctx, PERI_ENOMEM, "no memory for a vocabulary of %zu tokens", v->count);
  memset(slot, 0, slots * sizeof *slot);
  size_t was = v->slots;
  v->slot = slot;
  v->slots = slots;
  for (size_t k = 0; k < was; k++) {
    if (old[k] == 0) continue;
    const peri__token *t = &v->token[(uint32_t)old[k] - 1];
    size_t i = peri__text_hash(v->seed, v->blob + t->at, t->n) & (slots - 1);
    while (slot[i] != 0) i = (i + 1) & (slots - 1);
    slot[i] = old[k];
  }
  peri__free(v->ctx, old, was * sizeof *old);
  return PERI_OK;
}

static size_t slots_for (size_t n) {
  size_t slots = 16;
  while (slots * 3 < n * 4) slots *= 2;
  return slots;
}

peri_status peri__vocab_reserve (peri__vocab *v, size_t n) {
  if (slots_for(n) > v->slots) TRY(rehash(v, slots_for(n)));
  return peri__grow(v->ctx, &v->token, &v->cap, n, sizeof *v->token, "tokens");
}

peri_status peri__vocab_put (peri__vocab *v, int64_t id, const char *s, size_t n, bool last) {
  if (n > UINT32_MAX - 1 - v->blob_size)
    return peri__fail(v->ctx, PERI_EFORMAT, "the tokens of a vocabulary have more than 4 GiB");
  TRY(peri__grow(v->ctx, &v->blob, &v->blob_cap, v->blob_size + n, 1, "bytes of tokens"));
  TRY(peri__grow(v->ctx, &v->token, &v->cap, (size_t)id + 1, sizeof *v->token, "tokens"));
  if (slots_for(v->count + 1) > v->slots) TRY(rehash(v, 2 * slots_for(v->count)));
  for (; v->size <= (size_t)id; v->size++) v->token[v->size] = (peri__token){ PERI__NO_TOKEN, 0 };
  uint64_t hash = peri__text_hash(v->seed, s, n);
  size_t i = slot_of(v, s, n, hash);
  if (n > 0) memcpy(v->blob + v->blob_size, s, n);
  v->token[id] = (peri__token){ (uint32_t)v->blob_size, (uint32_t)n };
  v->blob_size += n;
  if (v->slot[i] == 0 || last) {
    v->count += v->slot[i] == 0;
    v->slot[i] = (hash >> 32) << 32 | (uint32_t)(id + 1);
  }
  if (n > v->longest) v->longest = n;
  return PERI_OK;
}

int32_t peri__vocab_find (const peri__vocab *v, const char *s, size_t n) {
  if (v->count == 0 || n > v->longest) return -1;
  return (int32_t)(uint32_t)v->slot[slot_of(v, s, n, peri__text_hash(v->seed, s, n))] - 1;
}

/* ---- prefixes ---- */

static int by_text (void *ud, const void *a, const void *b) {
  const peri__vocab *v = ud;
  const peri__token *x = &v->token[*(const uint32_t *)a], *y = &v->token[*(const uint32_t *)b];
  int c = memcmp(v->blob + x->at, v->blob + y->at, x->n < y->n ? x->n : y->n);
  if (c != 0) return c;
  return x->n < y->n ? -1 : x->n > y->n;
}

/* Insertion sort of runs and merging, since most vocabularies come nearly sorted by something. */
static void merge_sort (uint32_t *a, uint32_t *spare, size_t n, const peri__vocab *v) {
  enum { RUN = 8 };
  for (size_t lo = 0; lo < n; lo += RUN)
    for (size_t i = lo + 1; i < n && i < lo + RUN; i++) {
      uint32_t x = a[i];
      size_t k = i;
      for (; k > lo && by_text((void *)(uintptr_t)v, &a[k - 1], &x) > 0; k--) a[k] = a[k - 1];
      a[k] = x;
    }
  for (size_t width = RUN; width < n; width *= 2) {
    for (size_t lo = 0; lo < n; lo += 2 * width) {
      size_t mid = lo + width < n ? lo + width : n, hi = mid + width < n ? mid + width : n;
      size_t i = lo, j = mid, k = lo;
      while (i < mid && j < hi)
        spare[k++] = by_text((void *)(uintptr_t)v, &a[i], &a[j]) <= 0 ? a[i++] : a[j++];
      while (i < mid) spare[k++] = a[i++];
      while (j < hi) spare[k++] = a[j++];
    }
    memcpy(a, spare, n * sizeof *a);
  }
}

peri_status peri__prefixes_open (peri__prefixes *p, const peri__vocab *v,
                                 bool (*keep)(const void *ud, uint32_t id), const void *ud) {
  uint32_t *spare = peri__malloc(v->ctx, v->size * sizeof *spare);
  memset(p, 0, sizeof *p);
  p->v = v;
  p->id = peri__malloc(v->ctx, v->size * sizeof *p->id);
  if (spare == NULL || (p->id == NULL && v->size > 0)) {
    peri__free(v->ctx, spare, v->size * sizeof *spare);
    peri__prefixes_close(p);
    return peri__fail(v->ctx, PERI_ENOMEM, "no memory for an index of %zu tokens", v->size);
  }
  for (uint32_t i = 0; i < v->size; i++) {
    const peri__token *t = &v->token[i];
    if (t->at == PERI__NO_TOKEN || t->n == 0 || (keep != NULL && !keep(ud, i))) continue;
    /* Of two ids with one text the one that the text means. */
    if (peri__vocab_find(v, v->blob + t->at, t->n) == (int32_t)i) p->id[p->n++] = i;
  }
  merge_sort(p->id, spare, p->n, v);
  peri__free(v->ctx, spare, v->size * sizeof *spare);
  for (size_t i = 0, c = 0; c <= 256; c++) {
    while (i < p->n && (unsigned char)v->blob[v->token[p->id[i]].at] < c) i++;
    p->first[c] = (uint32_t)i;
  }
  return PERI_OK;
}

void peri__prefixes_close (peri__prefixes *p) {
  if (p->v == NULL) return;
  peri__free(p->v->ctx, p->id, p->v->size * sizeof *p->id);
  p->v = NULL;
  p->id = NULL;
  p->n = 0;
}

/* The byte at a depth of the token at a position; -1 behind its end. */
static int byte_at (const peri__prefixes *p, uint32_t position, size_t depth) {
  const peri__token *t = &p->v->token[p->id[position]];
  return depth < t->n ? (unsigned char)p->v->blob[t->at + depth] : -1;
}

/* First position in [lo, hi) whose byte is at least c. */
static uint32_t lower (const peri__prefixes *p, uint32_t lo, uint32_t hi, size_t depth, int c) {
  while (lo < hi) {
    uint32_t mid = lo + (hi - lo) / 2;
    if (byte_at(p, mid, depth) < c)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

bool peri__walk_step (const peri__prefixes *p, peri__walk *w, unsigned char c, int32_t *id) {
  *id = -1;
  if (w->depth == 0) {
    w->lo = p->first[c];
    w->hi = p->first[c + 1];
  } else {
    w->lo = lower(p, w->lo, w->hi, w->depth, c);
    if (w->lo == w->hi || byte_at(p, w->lo, w->depth) != c) return false;
    w->hi = lower(p, w->lo, w->hi, w->depth, c + 1);
  }
  if (w->lo == w->hi) return false;
  w->depth++;
  const peri__token *t = &p->v->token[p->id[w->lo]];
  if (t->n == w->depth) *id = (int32_t)p->id[w->lo];
  return true;
}
