/*
** alloc.c - all memory of the runtime. Plain allocations go straight to the host's callback; blocks
** (tensor data, small structs, kernel scratch) are aligned, rounded to a size class and kept in a
** free list when put back, so that steady-state training never reaches the host's allocator.
*/
#include <stdlib.h>
#include <string.h>

#include "core/core.h"

/* Classes: multiples of 64 up to 1024, then 8 steps an octave (at most 12.5 % is lost). */
#define SMALL 16
#define OCTAVES 38
#define CLASSES (SMALL + 1 + OCTAVES * 8)

typedef struct free_block { struct free_block *next; } free_block;

struct peri_pool {
  free_block *first[CLASSES];
  size_t reserved; /* bytes taken from the host for blocks, headers included */
#ifdef PERI_TESTING
  int64_t countdown; /* -1 = off */
  bool sticky, fired;
#endif
};

static void *default_alloc (void *ud, void *ptr, size_t osize, size_t nsize) {
  (void)ud;
  (void)osize;
  if (nsize == 0) {
    free(ptr);
    return NULL;
  }
  return realloc(ptr, nsize);
}

#ifdef PERI_TESTING
static bool injected (peri_ctx *ctx) {
  peri_pool *p = ctx->pool;
  if (!p || p->countdown < 0) return false;
  if (p->countdown > 0) {
    p->countdown--;
    return false;
  }
  p->fired = true;
  if (!p->sticky) p->countdown = -1;
  return true;
}

void peri_test_fail_after (peri_ctx *ctx, int64_t n, bool sticky) {
  ctx->pool->countdown = n;
  ctx->pool->sticky = sticky;
  ctx->pool->fired = false;
}

bool peri_test_fired (const peri_ctx *ctx) { return ctx->pool->fired; }
#else
static bool injected (peri_ctx *ctx) {
  (void)ctx;
  return false;
}
#endif

peri_status peri__pool_open (peri_ctx *ctx) {
  if (!ctx->alloc) ctx->alloc = default_alloc;
  peri_pool *p = ctx->alloc(ctx->alloc_ud, NULL, 0, sizeof *p);
  if (!p) return PERI_ENOMEM;
  memset(p, 0, sizeof *p);
#ifdef PERI_TESTING
  p->countdown = -1;
#endif
  ctx->pool = p;
  return PERI_OK;
}

void peri__pool_close (peri_ctx *ctx) {
  if (!ctx->pool) return;
  peri_memory_trim(ctx);
  ctx->alloc(ctx->alloc_ud, ctx->pool, sizeof *ctx->pool, 0);
  ctx->pool = NULL;
}

void *peri__malloc (peri_ctx *ctx, size_t n) { return peri__realloc(ctx, NULL, 0, n); }

void *peri__realloc (peri_ctx *ctx, void *p, size_t osize, size_t nsize) {
  if (nsize == 0) nsize = 1;
  if (injected(ctx)) return NULL;
  void *r = ctx->alloc(ctx->alloc_ud, p, osize, nsize);
  if (!r) {
    peri_memory_trim(ctx);
    r = ctx->alloc(ctx->alloc_ud, p, osize, nsize);
  }
  return r;
}

void peri__free (peri_ctx *ctx, void *p, size_t n) {
  if (p) ctx->alloc(ctx->alloc_ud, p, n ? n : 1, 0);
}

/* Index of the smallest class that holds n bytes, and that class's size. -1: too large. */
static int class_of (size_t n, size_t *size) {
  if (n <= 1024) {
    int k = n ? (int)((n + 63) / 64) : 1;
    *size = (size_t)k * 64;
    return k;
  }
  int e = 63 - __builtin_clzll((unsigned long long)(n - 1)); /* 2^e < n <= 2^(e+1) */
  size_t base = (size_t)1 << e, step = base / 8;
  size_t k = (n - base + step - 1) / step;
  if (e - 10 >= OCTAVES) return -1;
  *size = base + k * step;
  return SMALL + (e - 10) * 8 + (int)k;
}

/* The host's pointer is kept in the word before the block. */
static size_t raw_size (size_t size) { return size + PERI_ALIGN + sizeof(void *); }

void *peri__block_get (peri_ctx *ctx, size_t bytes) {
  size_t size;
  int k = class_of(bytes, &size);
  if (k < 0 || injected(ctx)) return NULL;
  peri_pool *pool = ctx->pool;
  free_block *b = pool->first[k];
  if (b) {
    pool->first[k] = b->next;
    return b;
  }
  char *raw = ctx->alloc(ctx->alloc_ud, NULL, 0, raw_size(size));
  if (!raw) {
    peri_memory_trim(ctx);
    raw = ctx->alloc(ctx->alloc_ud, NULL, 0, raw_size(size));
    if (!raw) return NULL;
  }
  pool->reserved += raw_size(size);
  char *p = (char *)(((uintptr_t)raw + sizeof(void *) + PERI_ALIGN - 1) & ~(uintptr_t)(PERI_ALIGN - 1));
  memcpy(p - sizeof(void *), &raw, sizeof raw);
  return p;
}

void peri__block_put (peri_ctx *ctx, void *p, size_t bytes) {
  if (!p) return;
  size_t size;
  int k = class_of(bytes, &size);
  free_block *b = p;
  b->next = ctx->pool->first[k];
  ctx->pool->first[k] = b;
}

void peri_memory_trim (peri_ctx *ctx) {
  peri_pool *pool = ctx->pool;
  for (int k = 1; k < CLASSES; k++) {
    size_t size = k <= SMALL ? (size_t)k * 64
                             : ((size_t)1 << ((k - SMALL - 1) / 8 + 10)) / 8 *
                                 (size_t)(8 + (k - SMALL - 1) % 8 + 1);
    while (pool->first[k]) {
      free_block *b = pool->first[k];
      pool->first[k] = b->next;
      void *raw;
      memcpy(&raw, (char *)b - sizeof(void *), sizeof raw);
      ctx->alloc(ctx->alloc_ud, raw, raw_size(size), 0);
      pool->reserved -= raw_size(size);
    }
  }
}

peri_memory peri_memory_stats (const peri_ctx *ctx) {
  return (peri_memory){ .live_bytes = ctx->live, .peak_bytes = ctx->peak,
                        .reserved_bytes = ctx->pool->reserved, .tensors = ctx->n_tensors };
}

void peri_memory_reset_peak (peri_ctx *ctx) { ctx->peak = ctx->live; }
