/*
** core.h - what the files of runtime/ share and hosts never see: the layout of contexts, storages
** and tensors, memory, errors, threads. It knows nothing of single ops (op/op.h does).
*/
#ifndef peri_core_h
#define peri_core_h

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "perilune.h"

#define PERI_ALIGN 64 /* of every storage: a cache line, a zmm register */

#define TRY(e)                        \
  do {                                \
    peri_status try_ = (e);           \
    if (try_ != PERI_OK) return try_; \
  } while (0)

typedef struct peri_storage peri_storage;
typedef struct peri_node peri_node;
typedef struct peri_pool peri_pool;
typedef struct peri_profile peri_profile;
typedef struct peri__common peri__common;
typedef struct peri__away peri__away;
struct peri__cpu;

struct peri_storage {
  peri_ctx *ctx;
  void *data;   /* PERI_ALIGN-aligned unless imported */
  size_t bytes; /* as asked for */
  char *low;    /* what views may reach: room bytes from low on */
  size_t room;
  int32_t refs;
  bool packed;      /* a weight laid out for this processor by the op pack: no strides apply */
  bool readonly;    /* shared with other contexts, not for racing writes */
  uint32_t version; /* bumped by every in-place write of this context; the tape checks it */
  uint32_t stamp;   /* of the last op that writes it, while its inputs are checked: op/inplace.c */
  void (*release)(void *ud, void *data); /* imported memory; else NULL */
  void *ud;
  peri__common *common; /* the memory, where other contexts may see it too: core/share.c */
  peri_storage *chain;  /* in the context's table of such storages */
};

/* Field by field: the compiler clears a struct of this size by an instruction that takes longer than the
** arithmetic of a small op. */
static inline void peri__storage_init (peri_storage *s, peri_ctx *ctx, void *data, size_t bytes) {
  s->ctx = ctx;
  s->data = s->low = data;
  s->bytes = s->room = bytes;
  s->refs = 1;
  s->packed = s->readonly = false;
  s->version = s->stamp = 0;
  s->release = NULL;
  s->ud = NULL;
  s->common = NULL;
  s->chain = NULL;
}

enum {
  PERI_T_REQUIRES_GRAD = 1, /* a leaf that collects .grad */
  PERI_T_WEAK = 2,          /* a plain number: takes part in promotion by category only */
  PERI_T_FREED = 4,         /* its node was freed by a backward pass */
  PERI_T_ZOMBIE = 8,        /* no reference is left, but its node lives through another output */
  PERI_T_WRT = 16,          /* wanted by the peri_gradients call in progress */
  PERI_T_SEEN = 32          /* scratch mark of bindings/custom.c, never set across calls */
};

struct peri_tensor {
  int32_t refs;
  uint8_t dtype, ndim, flags, node_out; /* node_out: which output of node this is */
  peri_ctx *ctx;
  peri_storage *storage;
  void *data;      /* first element of the view */
  peri_node *node; /* what made it, when recorded */
  peri_tensor *grad;
  peri_tensor *pending; /* gradient collected by the backward pass in progress */
  int64_t numel;
  int64_t shape[PERI_MAX_DIMS];
  int64_t stride[PERI_MAX_DIMS]; /* in elements; 0 = broadcast; may be negative */
  peri_tensor *prev, *next;      /* every tensor of the context */
};

#define PERI_MESSAGE_MAX 1024
#define PERI_NTH 8

struct peri_ctx {
  peri_alloc_fn alloc;
  void *alloc_ud;
  peri_log_fn log;
  void *log_ud;
  peri_log_level log_level;
  peri_pool *pool;              /* core/alloc.c */
  struct peri_threads *threads; /* core/threads.c */
  const struct peri__cpu *cpu;  /* kernels of the chosen SIMD level: cpu/cpu.h */
  peri_rng rng;
  atomic_int interrupted;
  atomic_int deferring, requested; /* a script looks for requests; one was made: ctx.c */
  bool grad_enabled, anomaly;
  bool in_backward;
  bool dry;                          /* a shape rule runs only to be asked: tensors get no memory */
  peri_node *tape_first, *tape_last; /* nodes in order of creation */
  peri_node *graveyard;              /* dead nodes being freed, so that chains do not recurse */
  peri_tensor *tensors;              /* all alive */
  size_t n_tensors, live, peak, max_bytes, max_reserved;
  uint32_t stamp;        /* of the op whose written tensors are being checked: op/inplace.c */
  peri_profile *profile; /* NULL when off */
  struct peri__env_entry *envs; /* environments that the host registered: env/register.c */
  peri_tensor **temps;          /* stack of the builder's intermediates: op/build.c */
  int ntemps, captemps;
  peri_status failed;              /* what the message belongs to */
  char message[PERI_MESSAGE_MAX];  /* as C counts, from 0 */
  char scripted[PERI_MESSAGE_MAX]; /* the same message as scripts count, from 1 */
  char starved
      [PERI_MESSAGE_MAX]; /* the last PERI_ENOMEM as scripts read it, before words around it */
  struct {
    int64_t n;
    char text[24];
  } nth[PERI_NTH]; /* numbers of the message that is being made: peri__nth */
  int nnth;
  /* Memory in common with other contexts: core/share.c */
  peri_storage **commons; /* hash table of the storages that have some, by its address */
  size_t n_commons, cap_commons;
  size_t borrowed;              /* bytes of other contexts' memory in them */
  pthread_mutex_t gate;         /* held for what follows */
  peri__away *_Atomic returned; /* of this context's memory: nobody holds it any more */
  size_t away;                  /* pieces of it that were handed out and are not taken back */
  bool closed, taking;          /* peri_close came first; a thread takes back */
  /* Waiting and work from other threads: core/post.c */
  peri_task *task_first, *task_last;
  peri_notify_fn notify;
  void *notify_ud;
  sem_t bell;
  atomic_int rung;
  uint64_t spawned; /* workers that were started since the seed was set: bindings/worker.c */
#ifdef PERI_TESTING
  atomic_llong looks, interrupt_at; /* counted; at this one peri_interrupt is called */
#endif
};

/* ---- errors: core/ctx.c ---- */
/* Set the message, return s. ctx->message itself may be among the arguments: to put words around it. */
PERI_API peri_status peri__fail (peri_ctx *ctx, peri_status s, const char *fmt, ...)
    PERI_PRINTF(3, 4);
/* The number of a dim, a position that an attribute gives, an input, a result or an entry of a list for
** a "%s" of the next peri__fail of this context: i itself in peri_message, one more in what scripts
** read, who count from 1; negative ones are as they are. At most PERI_NTH in a message. Positions of
** elements in memory are data, which counts from 0 in either language: the message says so. */
const char *peri__nth (peri_ctx *ctx, int64_t i);
void peri__forget_message (peri_ctx *ctx);
/* Misuse of the public functions: "NAME is NULL" where a pointer may not be; without a context the
** status alone. */
peri_status peri__null (peri_ctx *ctx, const char *name);
#define NEED(ctx, p)                          \
  do {                                        \
    if (!(p)) return peri__null((ctx), (#p)); \
  } while (0)
/* Fill a caller's struct that begins with struct_size from ours, of size bytes, field by field as far as
** it goes; what we do not know is 0. least: its size in the first version that had it. */
PERI_API peri_status peri__fill_out (peri_ctx *ctx, void *out, const void *ours, uint32_t size,
                                     uint32_t least, const char *name);
/* The name that word is nearest to, or NULL; name_at(ud, i) is NULL behind the last: core/nearest.c */
PERI_API const char *peri__nearest (const char *word, const char *(*name_at)(void *ud, int i),
                                    void *ud);
/* "(2, 3, 4)" in a caller's buffer; for messages. */
const char *peri__shape_text (const peri_tensor *t, char *buf, size_t size);
PERI_API const char *peri__sizes_text (int n, const int64_t *v, char *buf, size_t size);

/* ---- memory: core/alloc.c ---- */
/* Every allocation of the runtime goes through these three. NULL on failure, no message. */
PERI_API void *peri__malloc (peri_ctx *ctx, size_t n);
PERI_API void *peri__realloc (peri_ctx *ctx, void *p, size_t osize, size_t nsize);
PERI_API void peri__free (peri_ctx *ctx, void *p, size_t n); /* NULL is a no-op */
/* Pooled, PERI_ALIGN-aligned blocks: tensor data and kernel scratch. Never from worker threads. */
void *peri__block_get (peri_ctx *ctx, size_t bytes);
void peri__block_put (peri_ctx *ctx, void *p); /* NULL is a no-op */
#ifdef PERI_TESTING
/* Fail the n-th allocation from now on (0 = the next); sticky: all later ones too. -1 = never. */
PERI_API void peri_test_fail_after (peri_ctx *ctx, int64_t n, bool sticky);
PERI_API bool peri_test_fired (const peri_ctx *ctx);
#endif

/* ---- memory in common: core/share.c ---- */
void peri__leave (peri_storage *s); /* frees s, whose memory is in common, and lets go of that */
/* Let go of h as if t had never been shared by it: for what was never handed out. */
PERI_API void peri__unshare (peri_ctx *ctx, peri_shared *h);
/* Free what other threads gave back. Cheap where there is nothing. */
void peri__take_back_slow (peri_ctx *ctx);
static inline void peri__take_back (peri_ctx *ctx) {
  if (atomic_load_explicit(&ctx->returned, memory_order_relaxed)) peri__take_back_slow(ctx);
}
/* The last step of peri_close: frees ctx, now or when the last of its memory has come back. */
void peri__share_close (peri_ctx *ctx);
/* Bytes of tensors that keep memory from being free: what a collector should know of. */
static inline size_t peri__held (const peri_ctx *ctx) { return ctx->live + ctx->borrowed; }

/* ---- waiting: core/post.c ---- */
peri_status peri__gate_open (peri_ctx *ctx);
void peri__gate_close (peri_ctx *ctx); /* drops what was posted */
PERI_API void
peri__ring (peri_ctx *ctx); /* end peri__sleep, now or when it begins; from anywhere */
/* Until somebody rings or peri__now() is at deadline (INFINITY: never), perhaps sooner. PERI_EINTR when
** the context is interrupted. */
PERI_API peri_status peri__sleep (peri_ctx *ctx, double deadline);

/* ---- interrupts: core/ctx.c ---- */
#ifdef PERI_TESTING
void peri__count_look (const peri_ctx *ctx);
/* Interrupt at the n-th look for an interrupt from now on (0 = the next); -1 = never. */
PERI_API void peri_test_interrupt_at (peri_ctx *ctx, int64_t n);
PERI_API int64_t peri_test_looks (const peri_ctx *ctx); /* so far */
#endif
/* Whether to end early, from any thread. */
static inline bool peri__stopped (const peri_ctx *ctx) {
#ifdef PERI_TESTING
  peri__count_look(ctx);
#endif
  return atomic_load_explicit(&ctx->interrupted, memory_order_relaxed);
}

/* ---- threads: core/threads.c ---- */
/* Run fn(ud, begin, end, worker) over [0, n) in pieces of at least grain, worker < peri_threads().
** Pieces never depend on timing in a way that may change a result: fn must not care how [0, n) is
** cut. n <= grain runs on the caller. Stops early on interrupt; the caller of the op returns
** PERI_EINTR. fn may not allocate, fail, or touch the context. */
typedef void (*peri_range_fn)(void *ud, int64_t begin, int64_t end, int worker);
void peri__parallel (peri_ctx *ctx, int64_t n, int64_t grain, peri_range_fn fn, void *ud);
/* For loops inside a piece that may run for more than a tenth of a second: whether to give up at step i
** (asked every 2^16 steps), the results being thrown away then. */
static inline bool peri__give_up (const peri_ctx *ctx, int64_t i) {
  return (i & 0xffff) == 0 && peri__stopped(ctx);
}
peri_status peri__threads_open (peri_ctx *ctx, int n, peri_parallel_fn host, void *host_ud);
void peri__threads_close (peri_ctx *ctx);

/* ---- tensors: core/tensor.c ---- */
peri_status peri__new (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                       peri_tensor **out); /* uninitialised, dense */
/* The same with a storage of the given bytes, marked packed. */
peri_status peri__new_packed (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                              size_t bytes, peri_tensor **out);
/* A plain number as a 0-dim tensor that takes part in promotion by its category only: i as i64, or f
** as f64. */
PERI_API peri_status peri__weak (peri_ctx *ctx, bool integer, int64_t i, double f,
                                 peri_tensor **out);
peri_status peri__new_like (const peri_tensor *t, peri_dtype d, peri_tensor **out); /* dense */
/* A tensor without a storage, in the list of the context; NULL and no message. */
peri_tensor *peri__tensor_alloc (peri_ctx *ctx);
/* A view of base's storage that begins offset elements after base's first. Refused when it does not
** lie in the storage; an empty one gets dense strides and no offset. */
PERI_API peri_status peri__view (peri_tensor *base, int64_t offset, int ndim, const int64_t *shape,
                                 const int64_t *stride, peri_tensor **out);
/* The same memory as another dtype, from base's first element on. */
peri_status peri__view_as (peri_tensor *base, peri_dtype d, int ndim, const int64_t *shape,
                           const int64_t *stride, peri_tensor **out);
peri_status peri__check_shape (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                               int64_t *numel, size_t *bytes); /* checked products */
bool peri__dense (const peri_tensor *t);
/* Not NULL and, as far as can be seen, not released. */
static inline bool peri__alive (const peri_tensor *t) { return t && t->ctx; }
/* A tensor argument: alive, of this context; name is for the message. */
peri_status peri__belongs (peri_ctx *ctx, const peri_tensor *t, const char *name);
/* PERI_EDTYPE with a message when the elements of t cannot be read one by one. */
PERI_API peri_status peri__readable (const peri_tensor *t);
static inline size_t peri__size (const peri_tensor *t) {
  return peri_dtype_size((peri_dtype)t->dtype);
}
static inline bool peri__is_float (int d) { return d >= PERI_F16 && d <= PERI_F64; }
static inline bool peri__is_quantised (int d) { return d >= PERI_Q8_0 && d < PERI_DTYPE_END; }
/* Elements are not addressable: only ops with PERI_OP_WEIGHT take such a tensor. */
static inline bool peri__opaque (const peri_tensor *t) {
  return peri__is_quantised(t->dtype) || t->storage->packed;
}
static inline bool peri__tracked (const peri_tensor *t) {
  return (t->node != NULL && peri__is_float(t->dtype)) || (t->flags & PERI_T_REQUIRES_GRAD) != 0;
}

void peri__tensor_free (
    peri_tensor *t); /* the struct and its storage reference, whatever refs says */

/* ---- tape: autograd/tape.c ---- */
void peri__node_output_died (peri_tensor *t); /* called when a recorded output loses its last ref */
void peri__node_output_rose (peri_tensor *t); /* and when it gets a first one again */
void peri__tape_close (peri_ctx *ctx);

/* ---- environments: env/register.c ---- */
void peri__env_forget (peri_ctx *ctx);

/* ---- profiler: core/profile.c ---- */
PERI_API double peri__now (void); /* seconds, monotonic */
void peri__profile_add (peri_ctx *ctx, const char *name, double seconds, double flops,
                        double bytes);
void peri__profile_close (peri_ctx *ctx);

/* ---- pool: core/alloc.c ---- */
peri_status peri__pool_open (peri_ctx *ctx);
void peri__pool_close (peri_ctx *ctx);
void peri__trim (peri_ctx *ctx); /* free blocks to the host; calls nothing else */

/* ---- rng: core/rng.c ---- */
/* Take the next offset of the context's generator. */
peri_rng peri__rng_next (peri_ctx *ctx);
/* Block b (4 words) of the stream (rng.seed, rng.offset). */
void peri__rng_block (peri_rng r, uint64_t b, uint32_t out[4]);
static inline float peri__unit_f32 (uint32_t u) { return (float)(u >> 8) * 0x1p-24f; } /* [0, 1) */
static inline double peri__unit_f64 (uint32_t hi, uint32_t lo) {
  return (double)((((uint64_t)hi << 32) | lo) >> 11) * 0x1p-53; /* [0, 1) */
}

/* ---- dtype: core/dtype.c ---- */
/* What a plain dtype is called here, by NumPy and PyTorch, in safetensors and in .npy files. */
typedef struct peri__dtype_row {
  const char *name, *alias, *safetensors, *npy; /* npy NULL: that format has none */
  uint8_t size;
} peri__dtype_row;
PERI_API const peri__dtype_row *peri__dtype_row_of (int d); /* NULL beyond the plain ones */
PERI_API float peri__f16_to_f32 (uint16_t h);
uint16_t peri__f32_to_f16 (float f); /* to nearest even */
PERI_API float peri__bf16_to_f32 (uint16_t h);
uint16_t peri__f32_to_bf16 (float f);
/* to nearest even; NaN stays NaN */
PERI_API uint16_t peri__f64_to_half (int dtype, double v); /* to f16 or bf16, rounded once */

#endif
