/* ctx.c - contexts: options, error messages, the log callback, interruption. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/core.h"
#include "cpu/cpu.h"

/* Sizes that peri_options has had: it ends behind one of its fields. */
static bool whole_fields (size_t n) {
#define END(field) (offsetof(peri_options, field) + sizeof((peri_options *)0)->field)
  static const size_t ends[] = { END(seed), END(max_bytes), END(alloc),        END(alloc_ud),
                                 END(log),  END(log_ud),    END(parallel_for), END(parallel_ud) };
#undef END
  for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
    if (n == ends[i]) return true;
  return n == sizeof(peri_options);
}

void peri_options_init (peri_options *o) {
  if (!o) return;
  *o = (peri_options){ .struct_size = sizeof *o, .log_level = PERI_LOG_INFO };
}

peri_status peri__fill_out (peri_ctx *ctx, void *out, const void *ours, uint32_t size,
                            uint32_t least, const char *name) {
  uint32_t theirs = *(const uint32_t *)out;
  if (theirs < least || theirs > size + 4096)
    return peri__fail(ctx, PERI_EINVAL,
                      "%s.struct_size is %u: it must be set to sizeof(%s), which is %u here", name,
                      theirs, name, size);
  memset(out, 0, theirs);
  memcpy(out, ours, theirs < size ? theirs : size);
  *(uint32_t *)out = theirs;
  return PERI_OK;
}

peri_status peri_open (const peri_options *given, peri_ctx **out) {
  peri_options o;
  peri_options_init(&o);
  if (!out) return PERI_EINVAL;
  *out = NULL;
  if (given) {
    if (!whole_fields(given->struct_size)) return PERI_EINVAL;
    memcpy(&o, given, given->struct_size); /* an older host's struct is a prefix of ours */
    o.struct_size = sizeof o;
  }
  if (o.threads < 0 || o.log_level < PERI_LOG_DEBUG || o.log_level > PERI_LOG_ERROR)
    return PERI_EINVAL;
  const struct peri__cpu *cpu = peri__cpu_level(o.simd);
  if (!cpu) return PERI_ENOSUP;
  peri_ctx seed = { .alloc = o.alloc, .alloc_ud = o.alloc_ud };
  if (peri__pool_open(&seed) != PERI_OK) return PERI_ENOMEM;
  peri_ctx *ctx = peri__malloc(&seed, sizeof *ctx);
  if (!ctx) {
    peri__pool_close(&seed);
    return PERI_ENOMEM;
  }
  *ctx = seed;
  ctx->log = o.log;
  ctx->log_ud = o.log_ud;
  ctx->log_level = o.log_level;
  ctx->cpu = cpu;
  ctx->rng.seed = o.seed;
  ctx->max_bytes = o.max_bytes;
  if (o.max_bytes &&
      __builtin_add_overflow(o.max_bytes, o.max_bytes / 8 + ((size_t)1 << 20), &ctx->max_reserved))
    ctx->max_reserved = SIZE_MAX;
  ctx->grad_enabled = true;
#ifdef PERI_TESTING
  ctx->interrupt_at = -1;
#endif
  peri_status s = peri__gate_open(ctx);
  if (s != PERI_OK) {
    peri__pool_close(ctx);
    ctx->alloc(ctx->alloc_ud, ctx, sizeof *ctx, 0);
    return s;
  }
  s = peri__threads_open(ctx, o.threads, o.parallel_for, o.parallel_ud);
  if (s != PERI_OK) {
    peri_close(ctx);
    return s;
  }
  *out = ctx;
  return PERI_OK;
}

void peri_close (peri_ctx *ctx) {
  if (!ctx) return;
  peri__gate_close(ctx);
  peri__threads_close(ctx);
  peri__tape_close(ctx);
  for (peri_tensor *t = ctx->tensors; t; t = t->next)
    t->grad = NULL; /* each is in the list itself */
  while (ctx->tensors) peri__tensor_free(ctx->tensors);
  peri__env_forget(ctx);
  peri__profile_close(ctx);
  peri__free(ctx, ctx->temps, (size_t)ctx->captemps * sizeof *ctx->temps);
  peri__share_close(ctx);
}

const char *peri_version (void) { return PERI_VERSION; }
int peri_version_num (void) { return PERI_VERSION_NUM; }
const char *peri_message (const peri_ctx *ctx) { return ctx ? ctx->message : "no context"; }
const char *peri_simd_name (const peri_ctx *ctx) { return ctx ? ctx->cpu->name : ""; }

const char *peri_status_name (peri_status s) {
  static const char *const names[] = { "ok",           "out of memory",    "shape",
                                       "dtype",        "invalid argument", "not supported",
                                       "input/output", "format",           "interrupted",
                                       "host callback" };
  return (unsigned)s < sizeof names / sizeof *names ? names[s] : "unknown";
}

/* A C library writes the sign of a NaN, which means nothing. */
static void unsign_nan (char *text) {
  for (char *p = text; (p = strstr(p, "-nan")) != NULL;)
    if ((p == text || !isalnum((unsigned char)p[-1])) && !isalnum((unsigned char)p[4]))
      memmove(p, p + 1, strlen(p));
    else
      p++;
}

static void write_nth (peri_ctx *ctx, int k, int first) {
  int64_t n = ctx->nth[k].n;
  if (n >= 0 && n <= INT64_MAX - first) n += first;
  snprintf(ctx->nth[k].text, sizeof ctx->nth[k].text, "%" PRId64, n);
}

const char *peri__nth (peri_ctx *ctx, int64_t i) {
  int k = ctx->nnth++ % PERI_NTH;
  ctx->nth[k].n = i;
  write_nth(ctx, k, 0);
  return ctx->nth[k].text;
}

static void write_message (peri_ctx *ctx, int first, char *text, const char *fmt, va_list ap) {
  for (int k = 0; k < PERI_NTH && k < ctx->nnth; k++) write_nth(ctx, k, first);
  vsnprintf(text, PERI_MESSAGE_MAX, fmt, ap);
  unsign_nan(text);
}

/* Both forms are made aside, as the present message may be among the arguments; it has its other
** form while that of the new one is made. A message that counts nothing has one form. */
peri_status peri__fail (peri_ctx *ctx, peri_status s, const char *fmt, ...) {
  char text[PERI_MESSAGE_MAX], other[PERI_MESSAGE_MAX], *scripted = text;
  va_list ap, again;
  va_start(ap, fmt);
  va_copy(again, ap);
  write_message(ctx, 0, text, fmt, ap);
  if (ctx->nnth > 0 || strcmp(ctx->message, ctx->scripted) != 0) {
    strcpy(ctx->message, ctx->scripted);
    write_message(ctx, 1, scripted = other, fmt, again);
  }
  va_end(again);
  va_end(ap);
  strcpy(ctx->message, text);
  strcpy(ctx->scripted, scripted);
  if (s == PERI_ENOMEM && (!ctx->starved[0] || !strstr(scripted, ctx->starved)))
    strcpy(ctx->starved, scripted);
  ctx->nnth = 0;
  ctx->failed = s;
  return s;
}

void peri__forget_message (peri_ctx *ctx) { ctx->message[0] = ctx->scripted[0] = 0; }

peri_status peri__null (peri_ctx *ctx, const char *name) {
  return ctx ? peri__fail(ctx, PERI_EINVAL, "%s is NULL", name) : PERI_EINVAL;
}

void peri_log (peri_ctx *ctx, peri_log_level level, const char *fmt, ...) {
  if (!ctx || !fmt || !ctx->log || level < ctx->log_level) return;
  char line[PERI_MESSAGE_MAX];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(line, sizeof line, fmt, ap);
  va_end(ap);
  unsign_nan(line);
  ctx->log(ctx->log_ud, level, line);
}

void peri_allocator (const peri_ctx *ctx, peri_alloc_fn *fn, void **ud) {
  if (fn) *fn = ctx ? ctx->alloc : NULL;
  if (ud) *ud = ctx ? ctx->alloc_ud : NULL;
}

void peri_interrupt (peri_ctx *ctx) {
  if (!ctx) return;
  atomic_store(&ctx->interrupted, 1);
  peri__ring(ctx);
}

#ifdef PERI_TESTING
void peri__count_look (const peri_ctx *given) {
  peri_ctx *ctx = (peri_ctx *)(uintptr_t)given;
  long long n = atomic_fetch_add_explicit(&ctx->looks, 1, memory_order_relaxed);
  if (n == atomic_load_explicit(&ctx->interrupt_at, memory_order_relaxed)) peri_interrupt(ctx);
}

void peri_test_interrupt_at (peri_ctx *ctx, int64_t n) {
  atomic_store(&ctx->interrupt_at, n < 0 ? -1 : atomic_load(&ctx->looks) + n);
}

int64_t peri_test_looks (const peri_ctx *ctx) { return atomic_load(&ctx->looks); }
#endif

bool peri_interrupt_request (peri_ctx *ctx) {
  if (!ctx) return false;
  if (atomic_load(&ctx->deferring) && !atomic_exchange(&ctx->requested, 1)) return true;
  peri_interrupt(ctx);
  return false;
}

void peri_interrupt_clear (peri_ctx *ctx) {
  if (!ctx) return;
  atomic_store(&ctx->requested, 0);
  atomic_store(&ctx->interrupted, 0);
}

bool peri_grad_enabled (const peri_ctx *ctx) { return ctx && ctx->grad_enabled; }

bool peri_set_grad_enabled (peri_ctx *ctx, bool on) {
  if (!ctx) return false;
  bool was = ctx->grad_enabled;
  ctx->grad_enabled = on;
  return was;
}

void peri_set_anomaly (peri_ctx *ctx, bool on) {
  if (ctx) ctx->anomaly = on;
}
