/*
** fuzz_ops.c - random calls of every op of the table, forward and backward: dtypes, shapes (sizes of
** zero, no dims, eight dims), strided, expanded, flipped and shared tensors, huge and negative numbers, NaNs,
** missing inputs, lists of 0 to 3, in place. A call is refused with a status and a message and changes
** nothing, or its results can be read; it takes no long time, leaves no memory behind, and says the
** same at every SIMD level of this processor.
**   fuzz_ops [CASES [FIRST]]     cases are numbered; the same number is the same call everywhere
**   fuzz_ops -v N                case N alone, told
** The bytes of a case are drawn from its number; under libFuzzer they are its input.
*/
#define _POSIX_C_SOURCE 200809L /* alarm */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "autograd/tape.h"
#include "ops_plan.h"
#include "run_op.h"
#include "memory_of.h"

enum { CASES = 40000, BYTES = 512, LEVELS = 3, LIMIT = 4 << 20 };

/* ---- what must hold ---- */

static uint64_t case_number;
static char trouble[256];

#define MUST(e, ...)                                                         \
  do {                                                                       \
    if (!(e) && !trouble[0]) snprintf(trouble, sizeof trouble, __VA_ARGS__); \
  } while (0)

static uint64_t hash (uint64_t h, const void *p, size_t n) {
  const unsigned char *b = p;
  for (size_t i = 0; i < n; i++) h = (h ^ b[i]) * 1099511628211u;
  return h;
}

/* Everything of a tensor that a refused call may not change. */
static uint64_t state_of (const peri_tensor *t) {
  uint64_t h = 14695981039346656037u;
  if (!t) return h;
  h = hash(h, t->storage->low, t->storage->room);
  h = hash(h, t->shape, sizeof *t->shape * t->ndim);
  h = hash(h, t->stride, sizeof *t->stride * t->ndim);
  uint64_t rest[] = { t->dtype,
                      t->ndim,
                      (uint64_t)(t->flags & ~PERI_T_FREED),
                      t->storage->version,
                      (uintptr_t)t->data,
                      (uintptr_t)t->grad };
  return hash(h, rest, sizeof rest);
}

static void check_refusal (peri_ctx *c, peri_status s, const char *what) {
  const char *m = peri_message(c);
  MUST(s > PERI_OK && s < PERI_EHOST && s != PERI_EINTR, "%s: status %d", what, (int)s);
  MUST(m[0] && strcmp(m, "old message") != 0, "%s: %s without a message", what,
       peri_status_name(s));
}

static uint64_t seen; /* so that reads are not optimised away */

static void check_output (const peri_tensor *t) {
  int64_t n = 1;
  if (!t) return;
  for (int i = 0; i < t->ndim; i++) {
    MUST(t->shape[i] >= 0, "a negative size");
    n *= t->shape[i];
  }
  MUST(n == t->numel, "numel %lld of %lld", (long long)t->numel, (long long)n);
  if (n > 100000) return;
  if (peri__opaque(t)) {
    seen += hash(seen, t->data, t->storage->packed ? t->storage->bytes : peri_nbytes(t));
    return;
  }
  for (int64_t i = 0; i < n; i++) {
    double v = 0;
    MUST(peri_item((peri_tensor *)t, i, &v) == PERI_OK, "an element cannot be read");
    MUST(t->dtype != PERI_BOOL || v == 0 || v == 1, "a bool of %g", v);
    seen += v > 0;
  }
}

static void differentiate (peri_ctx *c, const job *j, peri_tensor *y, int nin,
                           peri_tensor *const *in) {
  peri_tensor *seed = NULL, *grads[MAX_IN] = { NULL }, *wrt[MAX_IN];
  uint64_t before[MAX_IN];
  int n = 0;
  bool opaque = peri__opaque(y);
  if (!opaque && y->numel <= 100000) {
    plan p = { .dtype = y->dtype, .fill = j->seed & 1 ? WILD : SMALL, .seed = j->seed };
    p.s.n = y->ndim;
    memcpy(p.s.v, y->shape, sizeof p.s.v);
    if (j->seed & 2 && y->ndim && !(j->seed & 4)) p.layout = EXPANDED;
    seed = fresh(c, &p);
    if (!seed) return;
  }
  for (int i = 0; i < nin; i++) before[i] = state_of(in[i]);
  snprintf(c->message, sizeof c->message, "old message");
  peri_status s;
  if (j->graph) {
    for (int i = 0; i < nin; i++)
      if (in[i]) wrt[n++] = in[i];
    s = peri_gradients(c, y, seed, n, wrt, j->twice, grads);
  } else
    s = peri_backward(c, y, seed, j->twice);
  if (s != PERI_OK) {
    check_refusal(c, s, "backward");
    for (int i = 0; i < nin; i++)
      MUST(state_of(in[i]) == before[i], "backward failed and changed input %d", i + 1);
    for (int i = 0; i < n; i++) MUST(!grads[i], "backward failed and wrote gradient %d", i + 1);
  } else {
    for (int i = 0; i < nin; i++)
      if (in[i] && in[i]->grad) {
        check_output(in[i]->grad);
        MUST(in[i]->grad->dtype == in[i]->dtype && in[i]->grad->numel == in[i]->numel,
             "the gradient of input %d is of another kind", i + 1);
      }
    for (int i = 0; i < n; i++) check_output(grads[i]);
    /* once more through the gradients */
    if (j->graph && j->twice)
      for (int i = 0; i < n; i++)
        if (grads[i] && peri__tracked(grads[i]) && grads[i]->numel > 0) {
          peri_tensor *one = NULL;
          if (run_op(c, peri_op_find("sum"), 1, &grads[i], NULL, &one) == PERI_OK) {
            snprintf(c->message, sizeof c->message, "old message");
            s = peri_backward(c, one, NULL, true);
            if (s != PERI_OK) check_refusal(c, s, "second backward");
          }
          peri_release(one);
          break;
        }
  }
  for (int i = 0; i < n; i++) peri_release(grads[i]);
  peri_release(seed);
}

static peri_status call (peri_ctx *c, const job *j) {
  static const int64_t marker = 0;
  peri_tensor *in[MAX_IN], *out[PERI_MAX_OUT], *none = (peri_tensor *)(uintptr_t)&marker;
  uint64_t before[MAX_IN];
  peri_status s = PERI_ENOMEM;
  peri_rng_set(c, (peri_rng){ j->seed, 0 });
  memset(in, 0, sizeof in);
  if (!build_inputs(c, j, in)) goto done;
  for (int i = 0; i < j->nin; i++) before[i] = state_of(in[i]);
  for (int k = 0; k < PERI_MAX_OUT; k++) out[k] = none;
  snprintf(c->message, sizeof c->message, "old message");
  peri_set_grad_enabled(c, !j->grad_off);
  peri_set_anomaly(c, j->anomaly);
  double t0 = peri__now();
  const peri_attr *attr = j->defaults || !j->sig->nattr ? NULL : j->attr;
  int n = peri_op_outputs(j->op);
  if (j->inplace) {
    n = 0;
    s = peri_apply_inplace(c, j->op, j->nin, in, attr ? j->sig->nattr : 0, attr);
  } else
    s = run_op(c, j->op, j->nin, in, attr, out);
  peri_set_anomaly(c, false);
  if (s != PERI_OK) {
    check_refusal(c, s, "the op");
    for (int k = 0; k < PERI_MAX_OUT; k++)
      MUST(out[k] == none, "refused, but output %d is written", k + 1);
    for (int i = 0; i < j->nin; i++)
      MUST(state_of(in[i]) == before[i], "refused (%s), but input %d is changed", peri_message(c),
           i + 1);
  } else {
    bool writes = j->inplace || (j->op->flags & PERI_OP_INPLACE);
    for (int i = 0; i < j->nin && !writes; i++)
      MUST(state_of(in[i]) == before[i], "input %d is changed", i + 1);
    for (int k = 0; k < n; k++) check_output(out[k]);
    for (int k = 0; k < n; k++)
      if (out[k] && peri__tracked(out[k])) {
        differentiate(c, j, out[k], j->nin, in);
        break;
      }
    for (int k = 0; k < n; k++) peri_release(out[k]);
  }
  double took = peri__now() - t0;
  MUST(took < 4, "took %.1f s", took);
done:
  peri_set_grad_enabled(c, true);
  for (int i = 0; i < j->nin; i++) peri_release(in[i]);
  peri_memory m = memory_of(c);
  MUST(m.live_bytes == 0, "%zu bytes are left", m.live_bytes);
  MUST(m.tensors == 0, "%zu tensors are left", m.tensors);
  MUST(!c->tape_first && !c->graveyard && c->ntemps == 0, "the tape is left");
  MUST(!c->dry && !c->in_backward, "the context is left in a state");
  return s;
}

/* ---- when it dies ---- */

#ifdef __SANITIZE_ADDRESS__
void __sanitizer_set_death_callback (void (*fn)(void));
static void reported (void) {
  fprintf(stderr, "case %llu: a report\n", (unsigned long long)case_number);
}
#endif

#ifdef __SANITIZE_ADDRESS__
void __asan_on_error (void);
__attribute__((visibility("default"))) void __asan_on_error (void) { reported(); }
#endif

static void died (int sig) {
  char text[64];
  int n =
      snprintf(text, sizeof text, "case %llu: signal %d\n", (unsigned long long)case_number, sig);
  if (write(2, text, (size_t)n) < 0) _exit(3);
  signal(sig, SIG_DFL);
  raise(sig);
}

/* ---- running ---- */

static peri_ctx *level[LEVELS];
static int levels;

static void open_levels (void) {
  static const peri_simd simd[LEVELS] = { PERI_SIMD_PORTABLE, PERI_SIMD_AVX2, PERI_SIMD_AVX512 };
  for (int i = 0; i < LEVELS; i++) {
    peri_options o;
    peri_options_init(&o);
    o.threads = 1;
    o.simd = simd[i];
    o.max_bytes = LIMIT;
    if (peri_open(&o, &level[levels]) == PERI_OK) levels++;
  }
  if (levels == 0) abort();
}

static void plan_bytes (const uint8_t *data, size_t size, job *j) {
  dice d = { data, size, 0, size };
  for (size_t i = 0; i < size; i++) d.more = d.more * 31 + data[i];
  plan_job(&d, j);
}

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size) {
  static job j;
  peri_status first = PERI_OK;
  if (levels == 0) open_levels();
  plan_bytes(data, size, &j);
  for (int i = 0; i < levels && !trouble[0]; i++) {
    peri_status s = call(level[i], &j);
    if (i == 0) first = s;
    bool full = s == PERI_ENOMEM || first == PERI_ENOMEM; /* which blocks are free differs */
    MUST(s == first || full, "%s at level %s, %s at %s: %s", peri_status_name(s),
         peri_simd_name(level[i]), peri_status_name(first), peri_simd_name(level[0]),
         peri_message(level[i]));
  }
  if (!trouble[0]) return 0;
  fprintf(stderr, "case %llu: %s\n", (unsigned long long)case_number, trouble);
  tell(&j);
#ifdef PERI_LIBFUZZER
  abort();
#endif
  return 0;
}

#ifndef PERI_LIBFUZZER

static void bytes_of (uint64_t n, uint8_t bytes[BYTES]) {
  uint64_t s = n * 0x2545f4914f6cdd1du + 1;
  for (int i = 0; i < BYTES; i += 8) {
    uint64_t v = mix(&s);
    memcpy(bytes + i, &v, 8);
  }
}

static void one (uint64_t n) {
  uint8_t bytes[BYTES];
  case_number = n;
  bytes_of(n, bytes);
  alarm(60);
  LLVMFuzzerTestOneInput(bytes, BYTES);
}

int main (int argc, char **argv) {
  static const int signals[] = { SIGSEGV, SIGABRT, SIGFPE, SIGBUS, SIGILL, SIGALRM };
  uint64_t n = CASES, first = 0;
  int bad = 0;
  for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) signal(signals[i], died);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_set_death_callback(reported);
#endif
  open_levels();
  if (argc > 2 && strcmp(argv[1], "-v") == 0) {
    uint8_t bytes[BYTES];
    static job j;
    first = strtoull(argv[2], NULL, 10);
    bytes_of(first, bytes);
    plan_bytes(bytes, BYTES, &j);
    tell(&j);
    n = 1;
  } else {
    if (argc > 1) n = strtoull(argv[1], NULL, 10);
    if (argc > 2) first = strtoull(argv[2], NULL, 10);
  }
  for (uint64_t i = first; i < first + n && bad < 20; i++) {
    one(i);
    bad += trouble[0] != 0;
    trouble[0] = 0;
  }
  for (int i = 0; i < levels; i++) peri_close(level[i]);
  fprintf(stderr, "%llu cases, %d wrong, %llx\n", (unsigned long long)n, bad,
          (unsigned long long)(seen & 0xf));
  return bad != 0;
}

#endif
