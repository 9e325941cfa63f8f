/*
** threads.c - the context's worker threads. They are made at the first parallel op, spin for a
** moment after each job and then park, so that a run of ops pays no wake-up. Kernels see only
** peri__parallel; which thread runs which piece never changes a result.
*/
#define _GNU_SOURCE
#include "core/core.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
  MAX_THREADS = 256,
  SPIN_NS = 40000,
  MOST = 64,    /* pieces at least, so that an interrupt is soon seen */
  LONGEST = 16, /* grains of a piece at most, for the same reason: some milliseconds */
  SHARE = 2     /* a piece is 1/2 of a thread's share of what is left, so that all end together */
};

/*
** state is one word: generation << 32 | OPEN | number of workers inside. A worker may enter only
** while the job is open, and the caller closes it when no pieces are left, so a worker that is
** late (parked, or not scheduled by the system) is not waited for.
*/
#define OPEN ((uint64_t)1 << 31)
#define INSIDE (OPEN - 1)

struct peri_threads {
  int n;        /* including the caller */
  int room;     /* n as asked for */
  int started;  /* worker threads that exist */
  bool running; /* a job is under way: nested calls run inline */
  pid_t pid;    /* of the process that made the workers; a forked child has none of them */
  peri_parallel_fn host;
  void *host_ud;
  /* the job; written only while nobody is inside */
  peri_range_fn fn;
  void *ud;
  int64_t end, grain;
  const peri_ctx *ctx;
  char apart0[PERI_ALIGN]; /* words that many threads write each get a cache line */
  _Atomic int64_t next;
  char apart1[PERI_ALIGN];
  _Atomic uint64_t state;
  char apart2[PERI_ALIGN];
  atomic_int parked;
  atomic_int caller_cpu; /* processor of the last caller that woke parked workers */
  atomic_bool quit;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  struct worker {
    struct peri_threads *pool;
    int index;
    pthread_t id;
  } worker[];
};

static void relax (void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int64_t now_ns (void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int processors (void) {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  long n = sysconf(_SC_NPROCESSORS_ONLN);
  return n > 0 ? (int)n : 1;
}

/* Size of the next piece when left items are left. */
static int64_t piece_of (int64_t left, int64_t all, int threads, int64_t grain) {
  int64_t piece = left / ((int64_t)threads * SHARE);
  if (piece > all / MOST) piece = all / MOST;
  if (piece / LONGEST > grain) piece = grain * LONGEST;
  piece = piece <= grain ? grain : (piece + grain - 1) / grain * grain;
  return piece < left ? piece : left;
}

/* Take pieces until there are none. */
static void work (struct peri_threads *t, int worker) {
  int64_t begin = atomic_load_explicit(&t->next, memory_order_relaxed);
  while (begin < t->end && !peri__stopped(t->ctx)) {
    int64_t end = begin + piece_of(t->end - begin, t->end, t->n, t->grain);
    if (!atomic_compare_exchange_weak_explicit(&t->next, &begin, end, memory_order_relaxed,
                                               memory_order_relaxed))
      continue;
    t->fn(t->ud, begin, end, worker);
    begin = atomic_load_explicit(&t->next, memory_order_relaxed);
  }
}

static bool is_new (uint64_t state, uint64_t seen) {
  return (state & OPEN) != 0 && state >> 32 != seen;
}

static bool spin (struct peri_threads *t, uint64_t seen) {
  int64_t deadline = 0;
  for (unsigned spins = 1;; spins++) {
    if (is_new(atomic_load_explicit(&t->state, memory_order_relaxed), seen)) return true;
    if (atomic_load_explicit(&t->quit, memory_order_relaxed)) return false;
    relax();
    if (spins % 64 != 0) continue;
    int64_t now = now_ns();
    if (deadline == 0)
      deadline = now + SPIN_NS;
    else if (now >= deadline)
      return false;
  }
}

/*
** A thread that wakes up is often put on the processor of the one that woke it, which goes on
** working there, and stays for good because it only ever gets to run between jobs. Ask for any
** other processor, then take the wish back.
*/
static void step_aside (struct peri_threads *t) {
#ifdef __linux__
  cpu_set_t allowed, others;
  int cpu = sched_getcpu();
  if (cpu < 0 || cpu != atomic_load_explicit(&t->caller_cpu, memory_order_relaxed)) return;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return; /* 0 is this thread */
  others = allowed;
  CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others) == 0) return;
  if (sched_setaffinity(0, sizeof others, &others) == 0)
    sched_setaffinity(0, sizeof allowed, &allowed);
#else
  (void)t;
#endif
}

static void park (struct peri_threads *t, uint64_t seen) {
  pthread_mutex_lock(&t->mutex);
  atomic_fetch_add(&t->parked, 1); /* before the last look at state: see open_job */
  if (!is_new(atomic_load(&t->state), seen) && !atomic_load(&t->quit))
    pthread_cond_wait(&t->wake, &t->mutex);
  atomic_fetch_sub(&t->parked, 1);
  pthread_mutex_unlock(&t->mutex);
  step_aside(t);
}

static void *worker_main (void *arg) {
  struct worker *w = arg;
  struct peri_threads *t = w->pool;
  uint64_t seen = 0;
  while (!atomic_load(&t->quit)) {
    if (!spin(t, seen)) {
      park(t, seen);
      continue;
    }
    uint64_t state = atomic_load_explicit(&t->state, memory_order_relaxed);
    if (!is_new(state, seen) ||
        !atomic_compare_exchange_strong_explicit(&t->state, &state, state + 1, memory_order_acquire,
                                                 memory_order_relaxed))
      continue;
    seen = state >> 32;
    work(t, w->index);
    atomic_fetch_sub_explicit(&t->state, 1, memory_order_release);
  }
  return NULL;
}

/* Make the workers; false when there is none. Those that cannot be made are done without. */
static bool start (struct peri_threads *t) {
  sigset_t all, old;
  sigfillset(&all); /* the host's signal handlers stay on the host's threads */
  bool masked = pthread_sigmask(SIG_SETMASK, &all, &old) == 0;
  while (t->started < t->n - 1) {
    struct worker *w = &t->worker[t->started];
    *w = (struct worker){ .pool = t, .index = t->started + 1 };
    if (pthread_create(&w->id, NULL, worker_main, w) != 0) break;
    t->started++;
  }
  if (masked) pthread_sigmask(SIG_SETMASK, &old, NULL);
  t->n = t->started + 1;
  t->pid = getpid();
  return t->n > 1;
}

static void open_job (struct peri_threads *t) {
  uint64_t generation = (atomic_load_explicit(&t->state, memory_order_relaxed) >> 32) + 1;
  if (generation >> 32) generation = 1;
  /* Sequentially consistent with parked: either a worker that parks sees the job, or this sees
  ** that it is parked. */
  atomic_store(&t->state, generation << 32 | OPEN);
  if (atomic_load(&t->parked) > 0) {
#ifdef __linux__
    atomic_store_explicit(&t->caller_cpu, sched_getcpu(), memory_order_relaxed);
#endif
    if (getpid() != t->pid) { /* forked: the workers, and whoever held the mutex, are not here */
      t->n = 1;
      t->started = 0;
      return;
    }
    pthread_mutex_lock(&t->mutex);
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->mutex);
  }
}

static void close_job (struct peri_threads *t) {
  uint64_t state = atomic_fetch_and_explicit(&t->state, ~OPEN, memory_order_acquire);
  for (unsigned spins = 1; state & INSIDE; spins++) {
    relax();
    if (spins % 1024 == 0) sched_yield(); /* a worker may have lost its processor */
    state = atomic_load_explicit(&t->state, memory_order_acquire);
  }
}

static void host_task (void *arg, int i) { work(arg, i); }

/* In pieces on the calling thread too, so that an interrupt is seen. */
static void run_inline (peri_ctx *ctx, int64_t n, int64_t grain, peri_range_fn fn, void *ud) {
  int64_t piece = piece_of(n, n, 8, grain);
  for (int64_t begin = 0; begin < n; begin += piece) {
    if (peri__stopped(ctx)) return;
    fn(ud, begin, n - begin > piece ? begin + piece : n, 0);
  }
}

void peri__parallel (peri_ctx *ctx, int64_t n, int64_t grain, peri_range_fn fn, void *ud) {
  struct peri_threads *t = ctx->threads;
  if (n <= 0 || peri__stopped(ctx)) return;
  if (grain < 1) grain = 1;
  if (n <= grain) {
    fn(ud, 0, n, 0);
    return;
  }
  bool alone = t == NULL || t->n == 1 || t->running;
  if (!alone && t->host == NULL && t->started == 0) alone = !start(t);
  if (alone) {
    run_inline(ctx, n, grain, fn, ud);
    return;
  }
  t->fn = fn;
  t->ud = ud;
  t->end = n;
  t->grain = grain;
  t->ctx = ctx;
  atomic_store_explicit(&t->next, 0, memory_order_relaxed);
  t->running = true;
  if (t->host != NULL) {
    t->host(t->host_ud, t->n, host_task, t);
  } else {
    open_job(t);
    work(t, 0);
    close_job(t);
  }
  t->running = false;
}

int peri_threads (const peri_ctx *ctx) { return ctx && ctx->threads != NULL ? ctx->threads->n : 1; }

static size_t pool_bytes (int n) {
  return sizeof(struct peri_threads) + (size_t)n * sizeof(struct worker);
}

peri_status peri__threads_open (peri_ctx *ctx, int n, peri_parallel_fn host, void *host_ud) {
  if (n < 0) return peri__fail(ctx, PERI_EINVAL, "threads is %d: expected 0 or more", n);
  if (n == 0) n = processors();
  if (n > MAX_THREADS) n = MAX_THREADS;
  struct peri_threads *t = peri__malloc(ctx, pool_bytes(n));
  if (t == NULL) return peri__fail(ctx, PERI_ENOMEM, "no memory for %d threads", n);
  memset(t, 0, pool_bytes(n));
  t->n = t->room = n;
  t->host = host;
  t->host_ud = host_ud;
  atomic_init(&t->next, 0);
  atomic_init(&t->state, 0);
  atomic_init(&t->parked, 0);
  atomic_init(&t->caller_cpu, -1);
  atomic_init(&t->quit, false);
  pthread_mutex_init(&t->mutex, NULL); /* neither can fail with default attributes on Linux */
  pthread_cond_init(&t->wake, NULL);
  ctx->threads = t;
  return PERI_OK;
}

void peri__threads_close (peri_ctx *ctx) {
  struct peri_threads *t = ctx->threads;
  if (t == NULL) return;
  if (t->started > 0 && getpid() == t->pid) {
    pthread_mutex_lock(&t->mutex);
    atomic_store(&t->quit, true);
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->mutex);
    for (int i = 0; i < t->started; i++) pthread_join(t->worker[i].id, NULL);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->mutex);
  }
  peri__free(ctx, t, pool_bytes(t->room));
  ctx->threads = NULL;
}
