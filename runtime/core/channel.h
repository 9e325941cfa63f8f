/* channel.h - bounded queues of packets between contexts, for the bindings. */
#ifndef peri_channel_h
#define peri_channel_h

#include "core/core.h"

typedef struct peri__channel peri__channel;

/* What goes through a channel: bytes whose meaning is the sender's and receiver's, tensors and channels.
** One block of the sender's allocator, freed by whoever has it last. */
typedef struct peri__packet {
  struct peri__packet *next;
  peri_alloc_fn alloc;
  void *alloc_ud;
  size_t size; /* of the block */
  int nshared, nchannels;
  size_t nbytes;
  void *ends[]; /* the tensors, the channels, then the bytes */
} peri__packet;

static inline peri_shared *peri__packet_shared (const peri__packet *p, int i) { return p->ends[i]; }
static inline peri__channel *peri__packet_channel (const peri__packet *p, int i) {
  return p->ends[p->nshared + i];
}
static inline char *peri__packet_bytes (const peri__packet *p) {
  return (char *)(p->ends + p->nshared + p->nchannels);
}

/* Takes over one reference to each tensor and channel, not on failure. */
PERI_API peri_status peri__packet_new (peri_ctx *ctx, int nshared, peri_shared *const *shared,
                                       int nchannels, peri__channel *const *channels,
                                       const void *bytes, size_t nbytes, peri__packet **out);
PERI_API void peri__packet_free (peri__packet *p); /* any thread; NULL is a no-op */
/* The same of one that was never sent, by its maker: the tensors are as if it had never been made. */
PERI_API void peri__packet_recall (peri_ctx *ctx, peri__packet *p);

typedef enum peri__channel_end { /* how a call ended */
                                 PERI__CHANNEL_DONE,
                                 PERI__CHANNEL_LATE, /* the deadline came */
                                 PERI__CHANNEL_CLOSED /* sending: closed; receiving: closed and empty */
} peri__channel_end;

PERI_API peri_status peri__channel_new (peri_ctx *ctx, size_t capacity, peri__channel **out);
PERI_API peri__channel *peri__channel_retain (peri__channel *c);
PERI_API void peri__channel_release (peri__channel *c); /* any thread; NULL is a no-op */
PERI_API void peri__channel_close (peri__channel *c);   /* any thread; again: nothing */
PERI_API bool peri__channel_closed (peri__channel *c);
PERI_API size_t peri__channel_count (peri__channel *c);
PERI_API size_t peri__channel_capacity (const peri__channel *c);
/* Wait for room until peri__now() is deadline, and put p in, which is the channel's then (DONE). PERI_EINTR: the
** context was interrupted, and p is the caller's as where it ends otherwise. */
PERI_API peri_status peri__channel_send (peri_ctx *ctx, peri__channel *c, peri__packet *p,
                                         double deadline, peri__channel_end *end);
/* The first packet of the first of n channels that has one, waiting as above. *which: that channel. CLOSED:
** all of them are closed and empty. */
/* Put back, as the next one, what was received but could not be read. */
PERI_API void peri__channel_unreceive (peri__channel *c, peri__packet *p);
enum { PERI__SELECT_MAX = 64 };
PERI_API peri_status peri__channel_receive (peri_ctx *ctx, int n, peri__channel *const *c,
                                            double deadline, int *which, peri__packet **out,
                                            peri__channel_end *end);

#endif
