/*
** share.c - memory that several contexts look at. Counts of references stay plain numbers: each context
** has one storage of its own for the memory, whatever the number of its tensors, and only those storages
** and the handles on their way between threads count atomically. What the last of them lets go of is put
** into a list of the context that made it (its home), which takes it back at its next allocation, on its
** own thread. A home that was closed before leaves its pool behind for what is still out there; whoever
** lets go last frees that, on its thread.
**
** Writing is decided once, for the memory: read-only, also for the context that made it, or racing.
*/
#include <string.h>

#include "core/core.h"

/* What other threads hold of a context; first in the two structs that they may. */
struct peri__away {
  peri__away *next; /* in home->returned */
  peri_ctx *home;
  _Atomic int32_t refs;
  bool memory; /* a peri__common, else a peri_shared */
};

struct peri__common {
  peri__away head; /* refs: storages, one for each context, and handles */
  void *data;
  size_t bytes;
  char *low;
  size_t room;
  bool packed, readonly;
  void (*release)(void *ud, void *data); /* as in peri_storage */
  void *ud;
};

struct peri_shared { /* a view of the memory, on its way */
  peri__away head;
  peri__common *common;
  void *data;
  int64_t numel, shape[PERI_MAX_DIMS], stride[PERI_MAX_DIMS];
  uint8_t dtype, ndim, weak;
  bool first; /* made the memory a shared one */
};

/* ---- the way back ---- */

static void free_away (peri_ctx *home, peri__away *a) {
  if (a->memory) {
    peri__common *c = (peri__common *)a;
    if (c->release)
      c->release(c->ud, c->data);
    else {
      if (c->bytes) peri__block_put(home, c->data);
      home->live -= c->bytes;
    }
  }
  peri__block_put(home, a);
}

/* Free what is in the list; the gate is held, but not while it frees: a release may call anything. */
static void empty_list (peri_ctx *home) {
  home->taking = true;
  for (peri__away *list; (list = home->returned) != NULL;) {
    home->returned = NULL;
    pthread_mutex_unlock(&home->gate);
    size_t n = 0;
    while (list) {
      peri__away *a = list;
      list = a->next;
      free_away(home, a);
      n++;
    }
    pthread_mutex_lock(&home->gate);
    home->away -= n;
  }
  home->taking = false;
}

static void free_context (peri_ctx *ctx) {
  pthread_mutex_destroy(&ctx->gate);
  peri__pool_close(ctx);
  ctx->alloc(ctx->alloc_ud, ctx, sizeof *ctx, 0);
}

void peri__take_back_slow (peri_ctx *ctx) {
  pthread_mutex_lock(&ctx->gate);
  if (!ctx->taking) empty_list(ctx);
  pthread_mutex_unlock(&ctx->gate);
}

/* The gate is held and the context closed: free what came back, and the context with the last of it. */
static void free_closed (peri_ctx *home) {
  bool last = false;
  if (!home->taking) {
    empty_list(home);
    last = home->away == 0;
    if (!last) peri__trim(home); /* whole to the host: nobody allocates here any more */
  }
  pthread_mutex_unlock(&home->gate);
  if (last) free_context(home);
}

static void retain (peri__away *a) { atomic_fetch_add_explicit(&a->refs, 1, memory_order_relaxed); }

static bool was_last (peri__away *a) {
  return atomic_fetch_sub_explicit(&a->refs, 1, memory_order_acq_rel) == 1;
}

static void give_back (peri__away *a) {
  peri_ctx *home = a->home;
  pthread_mutex_lock(&home->gate);
  a->next = home->returned;
  home->returned = a;
  if (home->closed)
    free_closed(home);
  else
    pthread_mutex_unlock(&home->gate);
}

void peri__share_close (peri_ctx *ctx) {
  peri__free(ctx, ctx->commons, ctx->cap_commons * sizeof *ctx->commons);
  peri__trim(ctx);
  pthread_mutex_lock(&ctx->gate);
  ctx->closed = true;
  free_closed(ctx);
}

/* ---- the storages of a context whose memory is in common ---- */

static peri_storage **slot_of (const peri_ctx *ctx, const peri__common *c) {
  uint64_t h = (uint64_t)(uintptr_t)c * 0x9e3779b97f4a7c15u;
  return &ctx->commons[(h >> 32) & (ctx->cap_commons - 1)];
}

static peri_storage *find (const peri_ctx *ctx, const peri__common *c) {
  peri_storage *s = ctx->cap_commons ? *slot_of(ctx, c) : NULL;
  while (s && s->common != c) s = s->chain;
  return s;
}

static void chain (peri_ctx *ctx, peri_storage *s) {
  peri_storage **slot = slot_of(ctx, s->common);
  s->chain = *slot;
  *slot = s;
}

static void unchain (peri_ctx *ctx, peri_storage *s) {
  peri_storage **p = slot_of(ctx, s->common);
  while (*p != s) p = &(*p)->chain;
  *p = s->chain;
  ctx->n_commons--;
}

/* Room in the table for one more. */
static bool grow (peri_ctx *ctx) {
  if (ctx->n_commons < ctx->cap_commons) return true;
  size_t old = ctx->cap_commons, cap = old ? old * 2 : 16;
  peri_storage **from = ctx->commons, **to = peri__malloc(ctx, cap * sizeof *to);
  if (!to) return old > 0; /* a table that is too small finds them, too */
  memset(to, 0, cap * sizeof *to);
  ctx->commons = to;
  ctx->cap_commons = cap;
  for (size_t i = 0; i < old; i++)
    for (peri_storage *s = from[i], *next; s; s = next) {
      next = s->chain;
      chain(ctx, s);
    }
  peri__free(ctx, from, old * sizeof *from);
  return true;
}

static void enter (peri_ctx *ctx, peri_storage *s, peri__common *c) {
  s->common = c;
  s->readonly = c->readonly;
  chain(ctx, s);
  ctx->n_commons++;
}

void peri__leave (peri_storage *s) {
  peri_ctx *ctx = s->ctx;
  peri__common *c = s->common;
  unchain(ctx, s);
  if (c->head.home != ctx) ctx->borrowed -= c->bytes;
  peri__block_put(ctx, s);
  if (was_last(&c->head)) give_back(&c->head);
}

/* ---- sharing ---- */

static peri_status no_memory (peri_ctx *ctx) {
  return peri__fail(ctx, PERI_ENOMEM, "out of memory for a shared tensor");
}

static peri_status check_mode (const peri_tensor *t, peri_share_mode mode) {
  const peri_storage *s = t->storage;
  if (mode < PERI_SHARE_DEFAULT || mode > PERI_SHARE_RACING)
    return peri__fail(t->ctx, PERI_EINVAL, "share mode %d does not exist", (int)mode);
  if (t->node)
    return peri__fail(t->ctx, PERI_EINVAL,
                      "the tensor takes part in a graph, which contexts do not share: detach it");
  if (s->common && mode != PERI_SHARE_DEFAULT && s->readonly != (mode == PERI_SHARE_READ))
    return peri__fail(t->ctx, PERI_EINVAL, "the memory is shared %s already: share a clone",
                      s->readonly ? "read-only" : "for racing writes");
  return PERI_OK;
}

/* The memory of s as a peri__common, not yet counted. */
static peri__common *common_of (peri_storage *s, peri_share_mode mode) {
  peri__common *c = peri__block_get(s->ctx, sizeof *c);
  if (!c) return NULL;
  *c = (peri__common){ .head = { .home = s->ctx, .refs = 1, .memory = true },
                       .data = s->data,
                       .bytes = s->bytes,
                       .low = s->low,
                       .room = s->room,
                       .packed = s->packed,
                       .readonly = mode != PERI_SHARE_RACING,
                       .release = s->release,
                       .ud = s->ud };
  return c;
}

peri_status peri_share (peri_tensor *t, peri_share_mode mode, peri_shared **out) {
  if (!peri__alive(t)) return PERI_EINVAL;
  peri_ctx *ctx = t->ctx;
  peri_storage *s = t->storage;
  NEED(ctx, out);
  TRY(check_mode(t, mode));
  peri__take_back(ctx);
  bool first = s->common == NULL;
  peri_shared *h = peri__block_get(ctx, sizeof *h);
  if (!h) return no_memory(ctx);
  peri__common *c = s->common;
  if (first && (!grow(ctx) || !(c = common_of(s, mode)))) {
    peri__block_put(ctx, h);
    return no_memory(ctx);
  }
  if (first) enter(ctx, s, c);
  retain(&c->head);
  *h = (peri_shared){ .head = { .home = ctx, .refs = 1 },
                      .common = c,
                      .data = t->data,
                      .numel = t->numel,
                      .dtype = t->dtype,
                      .ndim = t->ndim,
                      .weak = t->flags & PERI_T_WEAK,
                      .first = first };
  memcpy(h->shape, t->shape, sizeof h->shape);
  memcpy(h->stride, t->stride, sizeof h->stride);
  ctx->away += first ? 2 : 1;
  *out = h;
  return PERI_OK;
}

peri_shared *peri_shared_retain (peri_shared *h) {
  if (h) retain(&h->head);
  return h;
}

void peri_shared_release (peri_shared *h) {
  if (!h || !was_last(&h->head)) return;
  peri__common *c = h->common;
  give_back(&h->head);
  if (was_last(&c->head)) give_back(&c->head);
}

void peri__unshare (peri_ctx *ctx, peri_shared *h) {
  peri__common *c = h->common;
  bool first = h->first;
  peri_storage *s = find(ctx, c);
  peri_shared_release(h);
  if (!first || !s || atomic_load_explicit(&c->head.refs, memory_order_acquire) > 1) return;
  unchain(ctx, s);
  s->common = NULL;
  s->readonly = false;
  peri__block_put(ctx, c);
  ctx->away--;
}

/* The context's storage for c: the one that it has, or a new one. */
static peri_storage *storage_for (peri_ctx *ctx, peri__common *c) {
  peri_storage *s = find(ctx, c);
  if (s) {
    s->refs++;
    return s;
  }
  if (!grow(ctx) || !(s = peri__block_get(ctx, sizeof *s))) return NULL;
  peri__storage_init(s, ctx, c->data, c->bytes);
  s->low = c->low;
  s->room = c->room;
  s->packed = c->packed;
  enter(ctx, s, c);
  retain(&c->head);
  if (c->head.home != ctx) ctx->borrowed += c->bytes;
  return s;
}

peri_status peri_take (peri_ctx *ctx, peri_shared *h, peri_tensor **out) {
  NEED(ctx, ctx);
  NEED(ctx, h);
  NEED(ctx, out);
  peri__take_back(ctx);
  peri_tensor *t = peri__tensor_alloc(ctx);
  if (!t) return no_memory(ctx);
  t->storage = storage_for(ctx, h->common);
  if (!t->storage) {
    peri__tensor_free(t);
    return no_memory(ctx);
  }
  t->dtype = h->dtype;
  t->ndim = h->ndim;
  t->flags = h->weak;
  t->numel = h->numel;
  t->data = h->data;
  memcpy(t->shape, h->shape, sizeof t->shape);
  memcpy(t->stride, h->stride, sizeof t->stride);
  *out = t;
  return PERI_OK;
}

peri_share_mode peri_sharing (const peri_tensor *t) {
  if (!peri__alive(t) || !t->storage->common) return PERI_SHARE_DEFAULT;
  return t->storage->readonly ? PERI_SHARE_READ : PERI_SHARE_RACING;
}
