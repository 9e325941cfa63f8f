/*
** channel.c - bounded queues of packets between contexts: any number of them sends and receives. A context
** that must wait puts itself into the channel's list and sleeps (core/post.c); whoever makes room or a
** packet rings as many of the list as there is something for. One that was rung and leaves without
** taking it (it found another channel first, was late or interrupted) passes the ring on.
*/
#include <string.h>

#include "core/channel.h"

/* A context in the list of a channel; on its stack. */
typedef struct waiter {
  peri_ctx *ctx;
  bool rung;
  struct waiter *next;
} waiter;

struct peri__channel {
  _Atomic int32_t refs;
  peri_alloc_fn alloc;
  void *alloc_ud;
  pthread_mutex_t gate; /* held for all below */
  size_t capacity, count;
  peri__packet *first, *last;
  bool closed;
  waiter *receivers, *senders; /* who came first is first */
  peri__channel *dead;         /* next in a list of channels to be freed */
};

/* ---- packets ---- */

peri_status peri__packet_new (peri_ctx *ctx, int nshared, peri_shared *const *shared, int nchannels,
                              peri__channel *const *channels, const void *bytes, size_t nbytes,
                              peri__packet **out) {
  size_t ends = (size_t)nshared + (size_t)nchannels, size;
  peri__packet *p = NULL;
  if (!__builtin_add_overflow(sizeof *p + ends * sizeof *p->ends, nbytes, &size))
    p = peri__malloc(ctx, size);
  if (!p) return peri__fail(ctx, PERI_ENOMEM, "out of memory for a message of %zu bytes", nbytes);
  *p = (peri__packet){ .alloc = ctx->alloc,
                       .alloc_ud = ctx->alloc_ud,
                       .size = size,
                       .nshared = nshared,
                       .nchannels = nchannels,
                       .nbytes = nbytes };
  for (int i = 0; i < nshared; i++) p->ends[i] = shared[i];
  for (int i = 0; i < nchannels; i++) p->ends[nshared + i] = channels[i];
  if (nbytes) memcpy(peri__packet_bytes(p), bytes, nbytes);
  *out = p;
  return PERI_OK;
}

/* ---- channels ---- */

peri_status peri__channel_new (peri_ctx *ctx, size_t capacity, peri__channel **out) {
  peri__channel *c = peri__malloc(ctx, sizeof *c);
  if (!c) return peri__fail(ctx, PERI_ENOMEM, "out of memory for a channel");
  memset(c, 0, sizeof *c);
  atomic_init(&c->refs, 1);
  c->alloc = ctx->alloc;
  c->alloc_ud = ctx->alloc_ud;
  c->capacity = capacity;
  pthread_mutex_init(&c->gate, NULL); /* cannot fail with default attributes on Linux */
  *out = c;
  return PERI_OK;
}

peri__channel *peri__channel_retain (peri__channel *c) {
  if (c) atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
  return c;
}

/* Out of the count; into the list of those to free with the last reference. */
static void drop (peri__channel *c, peri__channel **dead) {
  if (!c || atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) > 1) return;
  c->dead = *dead;
  *dead = c;
}

static void free_packet (peri__packet *p, peri__channel **dead) {
  for (int i = 0; i < p->nshared; i++) peri_shared_release(peri__packet_shared(p, i));
  for (int i = 0; i < p->nchannels; i++) drop(peri__packet_channel(p, i), dead);
  p->alloc(p->alloc_ud, p, p->size, 0);
}

/* A channel may hold a packet with a channel that holds a packet, and so on: no recursion. */
static void bury (peri__channel *dead) {
  while (dead) {
    peri__channel *c = dead;
    dead = c->dead;
    for (peri__packet *p = c->first, *next; p; p = next) {
      next = p->next;
      free_packet(p, &dead);
    }
    pthread_mutex_destroy(&c->gate);
    c->alloc(c->alloc_ud, c, sizeof *c, 0);
  }
}

void peri__channel_release (peri__channel *c) {
  peri__channel *dead = NULL;
  drop(c, &dead);
  bury(dead);
}

void peri__packet_free (peri__packet *p) {
  peri__channel *dead = NULL;
  if (!p) return;
  free_packet(p, &dead);
  bury(dead);
}

void peri__packet_recall (peri_ctx *ctx, peri__packet *p) {
  if (!p) return;
  for (int i = p->nshared; i-- > 0;) { /* the first of a memory last */
    peri__unshare(ctx, p->ends[i]);
    p->ends[i] = NULL;
  }
  peri__packet_free(p);
}

size_t peri__channel_capacity (const peri__channel *c) { return c->capacity; }

size_t peri__channel_count (peri__channel *c) {
  pthread_mutex_lock(&c->gate);
  size_t n = c->count;
  pthread_mutex_unlock(&c->gate);
  return n;
}

bool peri__channel_closed (peri__channel *c) {
  pthread_mutex_lock(&c->gate);
  bool closed = c->closed;
  pthread_mutex_unlock(&c->gate);
  return closed;
}

/* ---- waiting; the gate is held ---- */

static void join (waiter **list, waiter *w) {
  while (*list) list = &(*list)->next;
  *list = w;
  w->next = NULL;
  w->rung = false;
}

static void part (waiter **list, waiter *w) {
  while (*list && *list != w) list = &(*list)->next;
  if (*list) *list = w->next;
}

/* So many of the list are to be awake. */
static void ring (waiter *list, size_t n) {
  for (waiter *w = list; w && n > 0; w = w->next, n--) {
    if (w->rung) continue;
    w->rung = true;
    peri__ring(w->ctx);
  }
}

/* After anything has changed. */
static void ring_all (peri__channel *c) {
  ring(c->receivers, c->closed ? SIZE_MAX : c->count);
  ring(c->senders, c->closed ? SIZE_MAX : c->count < c->capacity ? c->capacity - c->count : 0);
}

void peri__channel_close (peri__channel *c) {
  pthread_mutex_lock(&c->gate);
  c->closed = true;
  ring_all(c);
  pthread_mutex_unlock(&c->gate);
}

/* ---- sending ---- */

static bool put (peri__channel *c, peri__packet *p) {
  if (c->count >= c->capacity) return false;
  p->next = NULL;
  if (c->first)
    c->last->next = p;
  else
    c->first = p;
  c->last = p;
  c->count++;
  return true;
}

peri_status peri__channel_send (peri_ctx *ctx, peri__channel *c, peri__packet *p, double deadline,
                                peri__channel_end *end) {
  waiter w = { .ctx = ctx };
  peri_status s = PERI_OK;
  pthread_mutex_lock(&c->gate);
  while (s == PERI_OK) {
    *end = c->closed ? PERI__CHANNEL_CLOSED : put(c, p) ? PERI__CHANNEL_DONE : PERI__CHANNEL_LATE;
    if (*end != PERI__CHANNEL_LATE || peri__now() >= deadline) break;
    join(&c->senders, &w);
    pthread_mutex_unlock(&c->gate);
    s = peri__sleep(ctx, deadline);
    pthread_mutex_lock(&c->gate);
    part(&c->senders, &w);
  }
  ring_all(c);
  pthread_mutex_unlock(&c->gate);
  return s;
}

/* ---- receiving ---- */

static peri__packet *get (peri__channel *c) {
  peri__packet *p = c->first;
  if (!p) return NULL;
  c->first = p->next;
  if (!c->first) c->last = NULL;
  c->count--;
  return p;
}

void peri__channel_unreceive (peri__channel *c, peri__packet *p) {
  pthread_mutex_lock(&c->gate);
  p->next = c->first;
  c->first = p;
  if (!p->next) c->last = p;
  c->count++;
  ring_all(c);
  pthread_mutex_unlock(&c->gate);
}

/* Look into each, joining the lists of those that are empty; the number joined. */
static int look (int n, peri__channel *const *c, waiter *w, int *which, peri__packet **out,
                 int *closed) {
  *closed = 0;
  for (int i = 0; i < n; i++) {
    pthread_mutex_lock(&c[i]->gate);
    if ((*out = get(c[i])) != NULL) {
      *which = i;
      ring_all(c[i]);
    } else {
      *closed += c[i]->closed;
      join(&c[i]->receivers, &w[i]);
    }
    pthread_mutex_unlock(&c[i]->gate);
    if (*out) return i;
  }
  return n;
}

static void leave (int n, peri__channel *const *c, waiter *w) {
  for (int i = 0; i < n; i++) {
    pthread_mutex_lock(&c[i]->gate);
    part(&c[i]->receivers, &w[i]);
    if (w[i].rung) ring_all(c[i]);
    pthread_mutex_unlock(&c[i]->gate);
  }
}

peri_status peri__channel_receive (peri_ctx *ctx, int n, peri__channel *const *c, double deadline,
                                   int *which, peri__packet **out, peri__channel_end *end) {
  waiter w[PERI__SELECT_MAX];
  peri_status s = PERI_OK;
  for (int i = 0; i < n; i++) w[i] = (waiter){ .ctx = ctx };
  *out = NULL;
  while (s == PERI_OK) {
    int closed, joined = look(n, c, w, which, out, &closed);
    *end = *out ? PERI__CHANNEL_DONE : closed == n ? PERI__CHANNEL_CLOSED : PERI__CHANNEL_LATE;
    bool over = *end != PERI__CHANNEL_LATE || peri__now() >= deadline;
    if (!over) s = peri__sleep(ctx, deadline);
    leave(joined, c, w);
    if (over) break;
  }
  return s;
}
