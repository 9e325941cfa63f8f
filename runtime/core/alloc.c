/*
** alloc.c - all memory of the runtime. Plain allocations go straight to the host's callback; blocks
** (tensor data, small structs, kernel scratch) are aligned, rounded to a size class and kept in a
** free list when put back, so that steady-state training never reaches the host's allocator.
*/
#include <stdlib.h>
#include <string.h>

#include "core/core.h"
#include "core/slab.h"

/* Under the address sanitizer what is beyond the bytes asked for, and all of a free block but its first
** 64 bytes (its link; what peri__alive looks at), is out of bounds. */
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
static void *opened (void *p, size_t bytes, size_t size) {
  ASAN_UNPOISON_MEMORY_REGION(p, size);
  ASAN_POISON_MEMORY_REGION((char *)p + bytes, size - bytes);
  return p;
}
static void shut (void *p, size_t size) {
  ASAN_UNPOISON_MEMORY_REGION(p, 64);
  ASAN_POISON_MEMORY_REGION((char *)p + 64, size - 64);
}
static void given_back (void *p, size_t size) { ASAN_UNPOISON_MEMORY_REGION(p, size); }
#else
#define opened(p, bytes, size) ((void)(size), (p))
#define shut(p, size) ((void)(size))
#define given_back(p, size) ((void)(size))
#endif

/* Classes: multiples of 64 up to 1024, then 8 steps an octave (at most 12.5 % is lost). A request
** whose own list is empty takes a block of the next NEAR classes (twice the size at most) when it is
** large: batches whose sizes vary share their blocks. */
#define SMALL 16
#define OCTAVES 38
#define CLASSES (SMALL + 1 + OCTAVES * 8)
#define NEAR 8
#define LARGE 16384

/* A large request that the free list cannot serve may bring what is reserved to an eighth and this
** much above the most that has ever been in use; for more, free blocks go back to the host, first
** those of the sizes that nobody has asked for longest. So a loop of phases whose blocks differ, such
** as sampling and training, keeps its memory, and needs little more than its largest phase. */
#define SPARE ((size_t)32 << 20)

typedef struct free_block {
  struct free_block *next;
} free_block;

struct peri_pool {
  free_block *first[CLASSES];
  size_t reserved;         /* bytes taken from the host for blocks, headers included */
  size_t spare;            /* of these in the free lists */
  size_t most;             /* that were ever outside of the free lists */
  uint64_t asked[CLASSES]; /* the number of the request that took a block of a class last */
  uint64_t requests;       /* so far */
  peri__slab *slab;
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
  peri__trim(ctx);
  ctx->alloc(ctx->alloc_ud, ctx->pool, sizeof *ctx->pool, 0);
  ctx->pool = NULL;
}

void *peri__malloc (peri_ctx *ctx, size_t n) { return peri__realloc(ctx, NULL, 0, n); }

void *peri__realloc (peri_ctx *ctx, void *p, size_t osize, size_t nsize) {
  if (nsize == 0) nsize = 1;
  if (injected(ctx)) return NULL;
  void *r = ctx->alloc(ctx->alloc_ud, p, osize, nsize);
  if (!r) {
    peri__trim(ctx);
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

/* What stands before a block: the host's pointer and the class of the block. */
typedef struct block_head {
  void *raw;
  size_t k;
} block_head;

static block_head *head_of (void *p) { return (block_head *)p - 1; }
static size_t raw_size (size_t size) { return size + PERI_ALIGN + sizeof(block_head); }

static size_t class_size (size_t k) {
  if (k <= SMALL) return k * 64;
  k -= SMALL + 1;
  return ((size_t)1 << (k / 8 + 10)) / 8 * (8 + k % 8 + 1);
}

/* Memory for blocks, from the host or from slabs; bytes tell which. */
static bool in_slab (const peri_ctx *ctx, size_t bytes) {
  return ctx->alloc == default_alloc && peri__slab_wants(bytes);
}

static void *raw_get (peri_ctx *ctx, size_t bytes) {
  if (in_slab(ctx, bytes)) return peri__slab_get(&ctx->pool->slab, bytes);
  return ctx->alloc(ctx->alloc_ud, NULL, 0, bytes);
}

static void raw_put (peri_ctx *ctx, void *raw, size_t bytes) {
  if (in_slab(ctx, bytes))
    peri__slab_put(&ctx->pool->slab, raw, bytes);
  else
    ctx->alloc(ctx->alloc_ud, raw, bytes, 0);
}

/* Would bytes more be over the limit, also when the free lists are given back? */
static bool over_limit (peri_ctx *ctx, size_t bytes) {
  const peri_pool *pool = ctx->pool;
  if (ctx->max_reserved == 0) return false;
  if (bytes <= ctx->max_reserved && pool->reserved <= ctx->max_reserved - bytes) return false;
  peri__trim(ctx);
  return bytes > ctx->max_reserved || pool->reserved > ctx->max_reserved - bytes;
}

/* A block of class k is in use from now on. */
static void count (peri_pool *pool, int k) {
  size_t used = pool->reserved - pool->spare;
  if (used > pool->most) pool->most = used;
  pool->asked[k] = ++pool->requests;
}

static void *take (peri_pool *pool, int k) {
  free_block *b = pool->first[k];
  if (!b) return NULL;
  pool->first[k] = b->next;
  pool->spare -= raw_size(class_size((size_t)k));
  count(pool, k);
  return b;
}

/* The first free block of a class to the host. */
static size_t give_back (peri_ctx *ctx, size_t k) {
  peri_pool *pool = ctx->pool;
  free_block *b = pool->first[k];
  size_t size = raw_size(class_size(k));
  pool->first[k] = b->next;
  given_back(b, class_size(k));
  raw_put(ctx, head_of(b)->raw, size);
  pool->reserved -= size;
  pool->spare -= size;
  return size;
}

/* At least so many bytes of the free list to the host, or all of it. */
static void shrink (peri_ctx *ctx, size_t bytes) {
  peri_pool *pool = ctx->pool;
  for (size_t given = 0; given < bytes;) {
    size_t oldest = 0;
    for (size_t k = 1; k < CLASSES; k++)
      if (pool->first[k] && (oldest == 0 || pool->asked[k] < pool->asked[oldest])) oldest = k;
    if (oldest == 0) return;
    while (given < bytes && pool->first[oldest]) given += give_back(ctx, oldest);
  }
}

void *peri__block_get (peri_ctx *ctx, size_t bytes) {
  size_t size;
  int k = class_of(bytes, &size);
  if (k < 0 || injected(ctx)) return NULL;
  peri_pool *pool = ctx->pool;
  void *b = take(pool, k);
  if (b) return opened(b, bytes, size);
  if (size >= LARGE) {
    for (int near = k + 1; near <= k + NEAR && near < CLASSES && !b; near++) b = take(pool, near);
    if (b) return opened(b, bytes, class_size(head_of(b)->k));
    size_t all = pool->reserved + raw_size(size), used = all - pool->spare;
    size_t most = pool->most > used ? pool->most : used;
    most += most / 8 + SPARE;
    if (all > most) shrink(ctx, all - most);
  }
  if (over_limit(ctx, raw_size(size))) return NULL;
  char *raw = raw_get(ctx, raw_size(size));
  if (!raw) {
    peri__trim(ctx);
    raw = raw_get(ctx, raw_size(size));
    if (!raw) return NULL;
  }
  pool->reserved += raw_size(size);
  count(pool, k);
  char *p = (char *)(((uintptr_t)raw + sizeof(block_head) + PERI_ALIGN - 1) &
                     ~(uintptr_t)(PERI_ALIGN - 1));
  *head_of(p) = (block_head){ raw, (size_t)k };
  return opened(p, bytes, size);
}

void peri__block_put (peri_ctx *ctx, void *p) {
  if (!p) return;
  free_block *b = p;
  size_t k = head_of(p)->k;
  shut(p, class_size(k));
  b->next = ctx->pool->first[k];
  ctx->pool->first[k] = b;
  ctx->pool->spare += raw_size(class_size(k));
}

void peri__trim (peri_ctx *ctx) {
  for (size_t k = 1; k < CLASSES; k++)
    while (ctx->pool->first[k]) give_back(ctx, k);
}

void peri_memory_trim (peri_ctx *ctx) {
  if (!ctx) return;
  peri__take_back(ctx);
  peri__trim(ctx);
}

peri_status peri_memory_stats (peri_ctx *ctx, peri_memory *out) {
  NEED(ctx, ctx);
  NEED(ctx, out);
  peri__take_back(ctx); /* what is free already counts no more */
  const peri_memory m = { .live_bytes = ctx->live,
                          .peak_bytes = ctx->peak,
                          .reserved_bytes = ctx->pool->reserved,
                          .tensors = ctx->n_tensors,
                          .max_bytes = ctx->max_bytes,
                          .shared_bytes = ctx->borrowed };
  return peri__fill_out(ctx, out, &m, sizeof m, sizeof m, "peri_memory");
}

void peri_memory_reset_peak (peri_ctx *ctx) {
  if (ctx) ctx->peak = ctx->live;
}
