/*
** python.c - environments of Gymnasium and PettingZoo in Python processes. To the runner they are a
** definition like any other, whose functions write actions into memory in common with the processes, say
** go, and read what came of it. The other side is bridge.py. ORDER bridge: letters and fields are those there.
*/
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "env/child.h"
#include "env/env.h"
#include "env/frame.h"

#define MOST_HELLO ((size_t)64 << 20)
#define MOST_WORKERS 64
#define MOST_ID 100
#define START 60.0 /* seconds */

extern const char peri__bridge_py[]; /* bridge.py, by CMake */

enum { ACTION, OBS, REWARD, OVER, CUT, LIVE, MASK, NPARTS };

typedef struct bridge {
  peri_ctx *ctx;
  bool *closed; /* while an environment is made of it: whether that has closed it */
  int nworkers, memory;
  int64_t n, rows, agents, max_steps;
  bool masked, started;
  double threshold, timeout;
  peri_space obs, action;
  size_t obs_bytes, action_bytes, bytes, at[NPARTS];
  unsigned char *base;          /* memory in common */
  unsigned char *hello, *arena; /* what the processes say of themselves; what spaces point to */
  size_t hello_bytes, arena_bytes, arena_used, id_bytes;
  char *id;
  peri__child worker[MOST_WORKERS];
} bridge;

/* Importing modules and making environments may take longer than a step. */
static double deadline_of (const bridge *b) {
  return peri__now() + (b->started || b->timeout > START ? b->timeout : START);
}

static bool send_frame (bridge *b, int w, char letter, const void *data, size_t n) {
  unsigned char head[5];
  uint32_t size = (uint32_t)n;
  double deadline = deadline_of(b);
  memcpy(head, &size, 4);
  head[4] = (unsigned char)letter;
  return peri__child_send(&b->worker[w], head, 5, deadline) &&
         peri__child_send(&b->worker[w], data, n, deadline);
}

/* The head of the next frame. */
static bool frame_head (bridge *b, int w, char *letter, uint32_t *n) {
  unsigned char head[5];
  if (!peri__child_receive(&b->worker[w], head, 5, deadline_of(b))) return false;
  memcpy(n, head, 4);
  *letter = (char)head[4];
  return true;
}

/* A frame that should be `want`; row and why say what it is instead. row -1: of none. */
static bool answer (bridge *b, int w, char want, uint32_t *n, int64_t *row, char *why,
                    size_t size) {
  char letter;
  peri__child *c = &b->worker[w];
  *row = -1;
  if (!frame_head(b, w, &letter, n)) {
    snprintf(why, size, "%s", c->why);
    peri__child_close(c); /* a late answer would be taken for that of another command */
    return false;
  }
  if (letter == want) return true;
  if (letter == 'E' && *n >= 8 && *n < 1 << 20) {
    char text[512];
    size_t keep = *n - 8 < sizeof text - 1 ? *n - 8 : sizeof text - 1;
    bool ok = peri__child_receive(c, row, 8, deadline_of(b)) &&
              peri__child_receive(c, text, keep, deadline_of(b));
    for (size_t left = *n - 8 - keep; ok && left > 0; left--) {
      char rest;
      ok = peri__child_receive(c, &rest, 1, deadline_of(b));
    }
    text[ok ? keep : 0] = 0;
    snprintf(why, size, "%s", ok ? text : c->why);
    return false;
  }
  snprintf(why, size, "its process speaks another protocol");
  peri__child_close(c);
  return false;
}

/* ---- what it is: the processes' first frame ---- */

typedef struct reader {
  const unsigned char *p;
  size_t left;
  bool ok;
} reader;

static const void *take (reader *r, size_t n) {
  if (n > r->left) r->ok = false;
  if (!r->ok) return NULL;
  const void *p = r->p;
  r->p += n;
  r->left -= n;
  return p;
}

static int64_t take_int (reader *r) {
  int64_t v = 0;
  const void *p = take(r, 8);
  if (p) memcpy(&v, p, 8);
  return v;
}

/* A count of things of at least 8 bytes each. */
static size_t take_count (reader *r) {
  int64_t n = take_int(r);
  if (n < 0 || (uint64_t)n > r->left / 8) r->ok = false;
  return r->ok ? (size_t)n : 0;
}

/* n bytes of the arena, whose size bounds what any hello can need. */
static void *keep (bridge *b, const void *src, size_t n) {
  void *p = b->arena + b->arena_used;
  b->arena_used += (n + 15) & ~(size_t)15;
  if (src)
    memcpy(p, src, n);
  else
    memset(p, 0, n);
  return p;
}

static void take_fields (bridge *b, reader *r, peri_space *s) {
  size_t n = take_count(r);
  if (n == 0) return;
  peri_space_field *f = keep(b, NULL, n * sizeof *f);
  for (size_t i = 0; i < n; i++) {
    f[i].kind = (peri_space_kind)take_int(r);
    f[i].offset = take_int(r);
    f[i].size = take_int(r);
    int64_t length = take_int(r);
    if (length < 0 || (uint64_t)length > r->left) r->ok = false;
    const void *text = take(r, r->ok ? (size_t)length : 0);
    if (!r->ok) return;
    char *name = keep(b, NULL, (size_t)length + 1);
    memcpy(name, text, (size_t)length);
    f[i].name = name;
  }
  s->field = f;
  s->nfields = (int)n;
}

static void take_space (bridge *b, reader *r, peri_space *s) {
  *s = (peri_space){ .struct_size = sizeof *s, .kind = (peri_space_kind)take_int(r) };
  s->dtype = (peri_dtype)take_int(r);
  int64_t ndim = take_int(r);
  if (ndim < 0 || ndim > PERI_MAX_DIMS) r->ok = false;
  s->ndim = r->ok ? (int)ndim : 0;
  for (int i = 0; i < s->ndim; i++) s->shape[i] = take_int(r);
  s->n = take_int(r);
  s->start = take_int(r);
  size_t nbounds = take_count(r);
  const void *lows = take(r, nbounds * 8), *highs = take(r, nbounds * 8);
  size_t nvec = take_count(r);
  const void *sizes = take(r, nvec * 8);
  if (!r->ok) return;
  if (nbounds == 1) {
    memcpy(&s->low, lows, 8);
    memcpy(&s->high, highs, 8);
  } else if (nbounds > 1) {
    s->lows = keep(b, lows, nbounds * 8);
    s->highs = keep(b, highs, nbounds * 8);
    if ((int64_t)nbounds != peri_space_size(s)) r->ok = false;
  }
  if (nvec > 0) s->nvec = keep(b, sizes, nvec * 8);
  if (s->kind == PERI_SPACE_MULTI_DISCRETE && (s->ndim != 1 || (int64_t)nvec != s->shape[0]))
    r->ok = false;
  take_fields(b, r, s);
}

static peri_status read_hello (bridge *b) {
  reader r = { b->hello, b->hello_bytes, true };
  /* every list comes from as many bytes; names and alignment add some: fields have 32 bytes at least */
  b->arena_bytes = 4 * b->hello_bytes + 4096;
  b->arena = peri__malloc(b->ctx, b->arena_bytes);
  if (b->arena == NULL) return peri__fail(b->ctx, PERI_ENOMEM, "%s: no memory", b->id);
  b->agents = take_int(&r);
  b->max_steps = take_int(&r);
  b->masked = take_int(&r) != 0;
  const void *threshold = take(&r, 8);
  if (threshold) memcpy(&b->threshold, threshold, 8);
  take_space(b, &r, &b->obs);
  take_space(b, &r, &b->action);
  if (!r.ok || r.left > 0 || b->agents < 1 || b->agents > 1 << 20 || b->max_steps < 0)
    return peri__fail(b->ctx, PERI_EFORMAT, "%s: what its process says of it is malformed", b->id);
  TRY(peri_space_check(b->ctx, &b->obs));
  TRY(peri_space_check(b->ctx, &b->action));
  b->obs_bytes = (size_t)peri_space_size(&b->obs) * peri_dtype_size(b->obs.dtype);
  b->action_bytes = (size_t)peri_space_size(&b->action) * peri_dtype_size(b->action.dtype);
  return PERI_OK;
}

/* All processes say the same, or their module is not to be relied on. */
static peri_status hear (bridge *b) {
  for (int w = 0; w < b->nworkers; w++) {
    uint32_t n;
    int64_t row;
    char why[600];
    if (!answer(b, w, 'H', &n, &row, why, sizeof why))
      return peri__fail(b->ctx, b->worker[w].interrupted ? PERI_EINTR : PERI_EHOST, "%s: %s", b->id,
                        why);
    if (n > MOST_HELLO || (w > 0 && n != b->hello_bytes))
      return peri__fail(b->ctx, PERI_EHOST, "%s: its processes differ in their spaces", b->id);
    unsigned char *mine = peri__malloc(b->ctx, n + 1u);
    if (mine == NULL) return peri__fail(b->ctx, PERI_ENOMEM, "%s: no memory", b->id);
    bool ok = peri__child_receive(&b->worker[w], mine, n, deadline_of(b));
    bool same = ok && (w == 0 || memcmp(mine, b->hello, n) == 0);
    if (ok && w == 0) {
      b->hello = mine;
      b->hello_bytes = n;
    } else
      peri__free(b->ctx, mine, n + 1u);
    if (!ok) return peri__fail(b->ctx, PERI_EHOST, "%s: %s", b->id, b->worker[w].why);
    if (!same)
      return peri__fail(b->ctx, PERI_EHOST, "%s: its processes differ in their spaces", b->id);
  }
  return read_hello(b);
}

/* Where actions and the rest lie, and the memory for them; then the processes make their environments. */
static peri_status share_memory (bridge *b) {
  const size_t each[NPARTS] = {
    b->action_bytes, b->obs_bytes, 8, 1, 1, 1, b->masked ? (size_t)b->action.n : 0
  };
  size_t at = 0, part;
  if (__builtin_mul_overflow(b->n, b->agents, &b->rows))
    return peri__fail(b->ctx, PERI_EINVAL, "%s: too many rows", b->id);
  for (int i = 0; i < NPARTS; i++) {
    b->at[i] = at;
    if (__builtin_mul_overflow(each[i], (size_t)b->rows, &part) || part > SIZE_MAX / 4 - at)
      return peri__fail(b->ctx, PERI_EINVAL, "%s: too many rows", b->id);
    at += (part + 63) & ~(size_t)63;
  }
  b->bytes = at;
  void *base;
  TRY(peri__shared_memory_map(b->ctx, b->memory, at, &base));
  b->base = base;
  for (int w = 0; w < b->nworkers; w++) {
    int64_t fields[4 + NPARTS] = { (int64_t)at, b->rows, w, b->nworkers };
    for (int i = 0; i < NPARTS; i++) fields[4 + i] = (int64_t)b->at[i];
    if (!send_frame(b, w, 'M', fields, sizeof fields))
      return peri__fail(b->ctx, PERI_EHOST, "%s: %s", b->id, b->worker[w].why);
  }
  for (int w = 0; w < b->nworkers; w++) {
    uint32_t n;
    int64_t row;
    char why[600];
    if (!answer(b, w, 'K', &n, &row, why, sizeof why))
      return peri__fail(b->ctx, b->worker[w].interrupted ? PERI_EINTR : PERI_EHOST, "%s: %s", b->id,
                        why);
  }
  return PERI_OK;
}

/* ---- the definition ---- */

static void bridge_close (bridge *b) {
  if (b == NULL) return;
  for (int w = 0; w < b->nworkers; w++) {
    peri__child *c = &b->worker[w];
    if (c->socket >= 0)
      close(c->socket), c->socket = -1; /* all are told before one is waited for */
  }
  for (int w = 0; w < b->nworkers; w++) peri__child_close(&b->worker[w]);
  if (b->base) munmap(b->base, b->bytes);
  if (b->memory >= 0) close(b->memory);
  peri__free(b->ctx, b->hello, b->hello ? b->hello_bytes + 1 : 0);
  peri__free(b->ctx, b->arena, b->arena_bytes);
  peri__free(b->ctx, b->id, b->id_bytes);
  peri__free(b->ctx, b, sizeof *b);
}

static void close_shared (const void *shared) {
  bridge *b = (bridge *)(uintptr_t)shared;
  if (b->closed) *b->closed = true;
  bridge_close(b);
}

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  bridge *b = ud;
  (void)args;
  spec->obs = b->obs;
  spec->action = b->action;
  spec->agents = (int)b->agents;
  spec->max_steps = b->max_steps;
  spec->reward_threshold = b->threshold;
  spec->state_bytes = sizeof(int64_t); /* which environment it is */
  spec->shared = b;
  return PERI_OK;
}

/* What the processes left for rows of the environments begin to end. */
static void copy_out (const bridge *b, int64_t begin, int64_t end, const peri_env_io *io,
                      int64_t from, bool stepped) {
  size_t row = (size_t)(begin * b->agents), n = (size_t)((end - begin) * b->agents);
  size_t to = (size_t)((begin - from) * b->agents);
  memcpy((char *)io->obs + to * b->obs_bytes, b->base + b->at[OBS] + row * b->obs_bytes,
         n * b->obs_bytes);
  if (io->mask && b->masked)
    memcpy(io->mask + to * (size_t)b->action.n, b->base + b->at[MASK] + row * (size_t)b->action.n,
           n * (size_t)b->action.n);
  if (io->live) memcpy(io->live + to, b->base + b->at[LIVE] + row, n);
  if (!stepped) return;
  memcpy(io->reward + to, b->base + b->at[REWARD] + row * 8, n * 8);
  memcpy(io->terminated + to, b->base + b->at[OVER] + row, n);
  memcpy(io->truncated + to, b->base + b->at[CUT] + row, n);
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  bridge *b = (bridge *)(uintptr_t)shared;
  int w = (int)(io->env % b->nworkers);
  uint64_t fields[3] = { (uint64_t)io->env, io->seed != NULL, io->seed ? *io->seed : 0 };
  uint32_t n;
  int64_t row;
  char why[PERI_ENV_MESSAGE];
  (void)rng;
  *(int64_t *)state = io->env;
  if (!send_frame(b, w, 'R', fields, sizeof fields))
    return peri_env_fail(io, "%s", b->worker[w].why);
  if (!answer(b, w, 'K', &n, &row, why, sizeof why)) return peri_env_fail(io, "%s", why);
  copy_out(b, io->env, io->env + 1, io, io->env, false);
  return PERI_OK;
}

/* io: of the environment `from`. All processes work at once; every one that was told is heard, whatever the
** others say, or later answers would be taken for those of other steps. */
static peri_status step_range (bridge *b, int64_t begin, int64_t end, int64_t from,
                               const peri_env_io *io) {
  const int64_t range[2] = { begin, end };
  size_t row = (size_t)(begin * b->agents), n = (size_t)((end - begin) * b->agents);
  bool told[MOST_WORKERS] = { false }, ok = true;
  char why[PERI_ENV_MESSAGE] = "", own[PERI_ENV_MESSAGE];
  int64_t failed = end;
  memcpy(b->base + b->at[ACTION] + row * b->action_bytes,
         (const char *)io->action + (size_t)((begin - from) * b->agents) * b->action_bytes,
         n * b->action_bytes);
  if (io->live) memcpy(b->base + b->at[LIVE] + row, io->live + (begin - from) * b->agents, n);
  for (int w = 0; w < b->nworkers && ok; w++) {
    bool has_some = begin + ((w - begin) % b->nworkers + b->nworkers) % b->nworkers < end;
    if (!has_some) continue;
    ok = told[w] = send_frame(b, w, 'S', range, sizeof range);
    if (!ok) snprintf(why, sizeof why, "%s", b->worker[w].why), failed = begin;
  }
  for (int w = 0; w < b->nworkers; w++) {
    uint32_t size;
    int64_t which;
    if (!told[w] || answer(b, w, 'K', &size, &which, own, sizeof own)) continue;
    if (which < begin || which >= end) which = begin; /* the process as a whole */
    if (ok || which < failed) memcpy(why, own, sizeof why), failed = which;
    ok = false;
  }
  if (ok) {
    copy_out(b, begin, end, io, from, true);
    return PERI_OK;
  }
  copy_out(b, begin, failed, io, from, true);
  if (io->row) *io->row = failed * b->agents;
  return peri_env_fail(io, "%s", why);
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  const int64_t env = *(const int64_t *)state;
  (void)rng;
  return step_range((bridge *)(uintptr_t)shared, env, env + 1, env, io);
}

static peri_status step_batch (const void *shared, void *states, int64_t stride, int64_t begin,
                               int64_t end, peri_pcg64 *rng, const peri_env_io *io) {
  (void)states;
  (void)stride;
  (void)rng;
  return step_range((bridge *)(uintptr_t)shared, begin, end, 0, io);
}

/* A picture as the process has drawn it: H, W, then the bytes. */
static peri_status receive_picture (bridge *b, int w, uint32_t n, peri_frame *f) {
  int64_t size[2];
  peri__child *c = &b->worker[w];
  bool ok = n >= sizeof size && peri__child_receive(c, size, sizeof size, deadline_of(b));
  bool fits = ok && size[0] > 0 && size[1] > 0 && size[0] <= PERI_FRAME_MOST &&
              size[1] <= PERI_FRAME_MOST && size[0] * size[1] * 3 == (int64_t)n - 16;
  uint8_t *rgb = fits ? peri__malloc(b->ctx, n) : NULL;
  peri_status s = PERI_OK;
  if (ok && !fits)
    s = peri__fail(b->ctx, PERI_EHOST, "%s: a picture of %lld x %lld pixels", b->id,
                   (long long)size[1], (long long)size[0]);
  else if (ok && !rgb)
    s = peri__fail(b->ctx, PERI_ENOMEM, "%s: no memory for a picture", b->id);
  else if (!ok || !peri__child_receive(c, rgb, n - 16, deadline_of(b)))
    s = peri__fail(b->ctx, PERI_EHOST, "%s: %s", b->id, c->why);
  else {
    peri_frame_size(f, (int)size[1], (int)size[0]);
    peri_frame_image(f, 0, 0, (double)size[1], (double)size[0], (int)size[0], (int)size[1], rgb);
  }
  if (s != PERI_OK) peri__child_close(c);
  peri__free(b->ctx, rgb, rgb ? n : 0);
  return s;
}

static peri_status render (const void *shared, const void *state, peri_frame *f) {
  bridge *b = (bridge *)(uintptr_t)shared;
  const int64_t env = *(const int64_t *)state;
  int w = (int)(env % b->nworkers);
  char why[600];
  uint32_t n;
  int64_t row;
  if (!send_frame(b, w, 'D', &env, sizeof env))
    return peri__fail(b->ctx, PERI_EHOST, "%s: %s", b->id, b->worker[w].why);
  if (!answer(b, w, 'P', &n, &row, why, sizeof why))
    return peri__fail(b->ctx, PERI_EHOST, "%s: %s", b->id, why);
  return receive_picture(b, w, n, f);
}

/* ---- making one ---- */

void peri_python_options_init (peri_python_options *o) {
  if (o)
    *o = (peri_python_options){ .struct_size = sizeof *o,
                                .python = "python3",
                                .options = "{}",
                                .path = "",
                                .workers = 1,
                                .timeout = 60 };
}

/* "KIND:NAME" in two: the kind's number of bytes, 0 when it is none that is known. */
static size_t kind_of (const char *name) {
  static const char *const kinds[] = { "gymnasium:", "pettingzoo:", "file:" };
  for (int i = 0; i < 3; i++)
    if (strncmp(name, kinds[i], strlen(kinds[i])) == 0) return strlen(kinds[i]) - 1;
  return 0;
}

static peri_status start (bridge *b, const char *name, const peri_python_options *o) {
  char kind[16];
  size_t n = kind_of(name);
  snprintf(kind, sizeof kind, "%.*s", (int)n, name);
  const char *const argv[] = { o->python,  "-c",    peri__bridge_py,       kind, name + n + 1,
                               o->options, o->path, o->render ? "1" : "0", NULL };
  b->memory = peri__shared_memory(b->ctx);
  if (b->memory < 0) return PERI_EIO;
  while (b->nworkers < o->workers) {
    TRY(peri__child_start(b->ctx, argv, b->memory, &b->worker[b->nworkers]));
    b->nworkers++;
  }
  TRY(hear(b));
  TRY(share_memory(b));
  b->started = true;
  return PERI_OK;
}

static peri_status check_options (peri_ctx *ctx, const char *name, const peri_python_options *o) {
  const char *file = strncmp(name, "file:", 5) == 0 ? strrchr(name + 5, ':') : name;
  if (kind_of(name) == 0 || file == NULL || file[1] == 0)
    return peri__fail(ctx, PERI_EINVAL,
                      "%s: expected gymnasium:ID, pettingzoo:MODULE or file:PATH:FUNCTION", name);
  if (o->struct_size != sizeof *o)
    return peri__fail(ctx, PERI_EINVAL, "peri_python_options.struct_size is %u, expected %u",
                      (unsigned)o->struct_size, (unsigned)sizeof *o);
  NEED(ctx, o->python);
  NEED(ctx, o->options);
  NEED(ctx, o->path);
  if (o->workers < 1 || o->workers > MOST_WORKERS)
    return peri__fail(ctx, PERI_EINVAL, "%s: %d processes, expected 1 to %d", name, o->workers,
                      MOST_WORKERS);
  if (!(o->timeout > 0))
    return peri__fail(ctx, PERI_EINVAL, "%s: a timeout of %g s", name, o->timeout);
  return PERI_OK;
}

peri_status peri_env_python (peri_ctx *ctx, const char *name, const peri_python_options *given,
                             const peri_env_options *options, peri_env **out) {
  peri_python_options o;
  const char *name_end = name; /* an id is short */
  NEED(ctx, ctx);
  NEED(ctx, name);
  NEED(ctx, out);
  *out = NULL;
  peri_python_options_init(&o);
  TRY(check_options(ctx, name, given ? given : &o));
  if (given) o = *given;
  bridge *b = peri__malloc(ctx, sizeof *b);
  if (b == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory", name);
  *b = (bridge){ .ctx = ctx, .memory = -1, .n = options ? options->n : 1, .timeout = o.timeout };
  if (b->n < o.workers) o.workers = b->n < 1 ? 1 : (int)b->n;
  bool closed = false;
  if (strlen(name) > MOST_ID) name_end = name + strlen(name) - MOST_ID;
  b->id_bytes = strlen(name_end) + 1;
  b->id = peri__malloc(ctx, b->id_bytes);
  peri_status s = b->id ? PERI_OK : peri__fail(ctx, PERI_ENOMEM, "%s: no memory", name);
  if (s == PERI_OK) {
    memcpy(b->id, name_end, b->id_bytes);
    s = start(b, name, &o);
  }
  if (s == PERI_OK) {
    const peri_env_def def = { .struct_size = sizeof def,
                               .id = b->id,
                               .doc = "An environment in Python processes.",
                               .flags = PERI_ENV_SERIAL | PERI_ENV_ELSEWHERE |
                                        (b->masked ? PERI_ENV_MASK : 0u),
                               .ud = b,
                               .configure = configure,
                               .reset = reset,
                               .step = step,
                               .step_batch = step_batch,
                               .render = o.render ? render : NULL,
                               .close = close_shared };
    b->closed = &closed;
    s = peri_env_make_of(ctx, &def, options, out);
    if (!closed) b->closed = NULL;
  }
  if (s != PERI_OK && !closed) bridge_close(b);
  return s;
}
