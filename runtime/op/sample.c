/*
** sample.c - draws of token ids from logits. A row's draw depends on its logits, the seed and its
** number (or key) alone: never on the other rows, the threads or where the row stands. The
** log-probability comes from op/rows.h, so it has the bits that token_logprob gives for the token.
*/
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "op/rows.h"

/* ---- sample ---- */

typedef struct sampler {
  peri__rows r;
  const char *x; /* (rows, v) */
  int64_t v;
  bool greedy;
  int64_t top_k; /* 0 = off */
  double top_p, min_p;
  peri_rng rng;
  const int64_t *keys; /* (rows, wide) or NULL */
  int wide;            /* 1: offset; 2: seed, offset; 3: seed, offset, block */
  int64_t *ids;
  void *logp;
  uint8_t *kept; /* (rows, v); then nothing is drawn */
  char *scratch; /* for each worker: v of the dtype, v ids, at the end a worker_memory */
  size_t scratch_each;
  atomic_llong bad; /* 1 + a row without a distribution; 0 = none */
} sampler;

/* The uniform number of a row. Keyed draws use the upper half of the blocks of their stream, which
** ops that draw whole tensors never reach, unless they name the block. */
static double uniform (const sampler *s, int64_t row) {
  uint32_t w[4];
  if (s->keys) {
    const int64_t *key = s->keys + s->wide * row;
    peri_rng r = { s->wide > 1 ? (uint64_t)key[0] : s->rng.seed, (uint64_t)key[s->wide > 1] };
    peri__rng_block(r, s->wide > 2 ? (uint64_t)key[2] : (uint64_t)1 << 63, w);
  } else
    peri__rng_block(s->rng, (uint64_t)row, w);
  return peri__unit_f64(w[0], w[1]);
}

/* Descending by weight, then ascending by id: a total order, so that ties fall the same way. */
static bool before (const peri__rows *r, const void *e, int32_t a, int32_t b) {
  double x = peri__rows_get(r, e, a), y = peri__rows_get(r, e, b);
  return x > y || (x == y && a < b);
}
static void sift (const peri__rows *r, const void *e, int32_t *heap, int64_t n, int64_t i) {
  for (;;) {
    int64_t k = 2 * i + 1;
    if (k >= n) return;
    if (k + 1 < n && before(r, e, heap[k + 1], heap[k])) k++;
    if (!before(r, e, heap[k], heap[i])) return;
    int32_t t = heap[i];
    heap[i] = heap[k];
    heap[k] = t;
    i = k;
  }
}

/* Ids down to (w, id) in that order survive. */
typedef struct cut {
  double w;
  int32_t id;
} cut;

static bool survives (cut c, double w, int64_t id) { return w > c.w || (w == c.w && id <= c.id); }

/* Weights lie in [0, 1]; long rows are sorted into buckets by the upper bits of a float, so that
** only the bucket in which a cut falls is put in order. */
enum { LONG_ROW = 1024, BUCKET_SHIFT = 18, BUCKETS = (0x3f800000 >> BUCKET_SHIFT) + 1 };

typedef struct worker_memory {
  double mass[BUCKETS];
  int32_t count[BUCKETS];
} worker_memory;

static int bucket (double w, int shift) {
  float f = (float)w;
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  return (int)(bits >> shift);
}

/*
** Of the survivors of from, keep the k best and what ties with the k-th or, where k is 0, those with
** less than the share p of the survivors' mass before them.
*/
static cut narrow (const sampler *s, const void *e, cut from, int64_t k, double p, worker_memory *m,
                   int32_t *heap) {
  int shift = s->v > LONG_ROW ? BUCKET_SHIFT : 31, buckets = (0x3f800000 >> shift) + 1, b;
  int64_t n = 0, held = 0;
  double mass = 0, goal = 0;
  cut c = from;
  memset(m->mass, 0, (size_t)buckets * sizeof *m->mass);
  memset(m->count, 0, (size_t)buckets * sizeof *m->count);
  for (int64_t i = 0; i < s->v; i++) {
    double w = peri__rows_get(&s->r, e, i);
    if (!survives(from, w, i)) continue;
    b = bucket(w, shift);
    m->mass[b] += w;
    m->count[b]++;
  }
  for (b = 0; b < buckets; b++) goal += p * m->mass[b];
  for (b = buckets - 1; b > 0; b--) { /* the cut falls in bucket b */
    if (k > 0 ? n + m->count[b] >= k : mass + m->mass[b] >= goal) break;
    n += m->count[b];
    mass += m->mass[b];
  }
  for (int64_t i = 0; i < s->v; i++) {
    double w = peri__rows_get(&s->r, e, i);
    if (bucket(w, shift) == b && survives(from, w, i)) heap[held++] = (int32_t)i;
  }
  for (int64_t i = held / 2 - 1; i >= 0; i--) sift(&s->r, e, heap, held, i);
  while (held > 0) {
    c = (cut){ peri__rows_get(&s->r, e, heap[0]), heap[0] };
    mass += c.w;
    if (k > 0 ? ++n >= k : mass >= goal) break;
    heap[0] = heap[--held];
    sift(&s->r, e, heap, held, 0);
  }
  if (k > 0) c.id = INT32_MAX;
  return c;
}

/* Weights that top-k, then top-p, then min-p (each on what the former left, as in transformers)
** take out become 0. The best weight is exp(0) = 1 and always survives. */
static void truncate_row (const sampler *s, void *e, worker_memory *m, int32_t *heap) {
  cut c = { -1, INT32_MAX };
  if (s->top_k > 0 && s->top_k < s->v) c = narrow(s, e, c, s->top_k, 0, m, heap);
  if (s->top_p < 1) c = narrow(s, e, c, 0, s->top_p, m, heap);
  if (s->min_p > c.w) c = (cut){ s->min_p, INT32_MAX };
  for (int64_t i = 0; c.w >= 0 && i < s->v; i++)
    if (!survives(c, peri__rows_get(&s->r, e, i), i)) peri__rows_set(&s->r, e, i, 0);
}

static int64_t first_best (const sampler *s, const void *x, double max) {
  for (int64_t i = 0; i < s->v; i++)
    if (peri__rows_get(&s->r, x, i) == max) return i;
  return -1;
}

static void sample_rows (void *ud, int64_t begin, int64_t end, int worker) {
  sampler *s = ud;
  char *e = s->scratch + (size_t)worker * s->scratch_each;
  int32_t *heap = (int32_t *)(void *)(e + (size_t)s->v * s->r.size);
  worker_memory *memory = (worker_memory *)(void *)(e + s->scratch_each - sizeof *memory);
  for (int64_t i = begin; i < end; i++) {
    const void *x = peri__rows_at(&s->r, s->x, i * s->v);
    peri__row row;
    int64_t id;
    peri__rows_stat(&s->r, x, s->v, s->greedy ? NULL : e, &row);
    if (!(row.sum > 0))
      id = -1;
    else if (s->greedy)
      id = first_best(s, x, row.max);
    else {
      truncate_row(s, e, memory, heap);
      id = peri__rows_pick(&s->r, e, s->v, uniform(s, i));
    }
    if (id < 0) {
      atomic_store_explicit(&s->bad, (long long)i + 1, memory_order_relaxed);
      id = 0;
    }
    s->ids[i] = id;
    peri__rows_set(&s->r, s->logp, i, peri__rows_logp(&s->r, &row, x, id));
  }
}

static peri_status check_logits (peri_call *c) {
  const peri_tensor *x = c->in[0];
  char a[128];
  TRY(peri__want_float(c, 0, "logits"));
  if (x->ndim < 1 || x->shape[x->ndim - 1] < 1 || x->shape[x->ndim - 1] > INT32_MAX)
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "logits have shape %s, expected (..., classes) with at least 1 class",
                      peri__shape_text(x, a, sizeof a));
  return PERI_OK;
}

static size_t padded (size_t n) { return (n + PERI_ALIGN - 1) / PERI_ALIGN * PERI_ALIGN; }

/* Numbers of a row's key: keys are (...), (..., 2) or (..., 3) for logits (..., classes). */
static int key_width (const peri_call *c) {
  const peri_tensor *keys = c->in[1];
  return keys && keys->ndim == c->in[0]->ndim ? (int)keys->shape[keys->ndim - 1] : 1;
}

static peri_status check_keys (peri_call *c) {
  const peri_tensor *x = c->in[0], *keys = c->in[1];
  char a[128], b[128];
  TRY(peri__want_dtype(c, 1, "keys", PERI_I64));
  if (keys->ndim != x->ndim) return peri__ids_shape(c, keys, "keys", x, "logits");
  int64_t wide = keys->shape[keys->ndim - 1];
  if ((wide == 2 || wide == 3) &&
      memcmp(keys->shape, x->shape, (size_t)(x->ndim - 1) * sizeof *x->shape) == 0)
    return PERI_OK;
  return peri__fail(
      c->ctx, PERI_ESHAPE,
      "logits have shape %s and keys %s; expected (...), (..., 2) or (..., 3) for (..., classes)",
      peri__shape_text(x, a, sizeof a), peri__shape_text(keys, b, sizeof b));
}

enum { TEMPERATURE, TOP_K, TOP_P, MIN_P, GREEDY };

/* top_k, top_p and min_p, the attributes behind the temperature. */
static peri_status check_truncation (peri_call *c) {
  const peri_attr *a = c->attr;
  if (a[TOP_K].i < 0)
    return peri__fail(c->ctx, PERI_EINVAL, "top_k is %" PRId64 ", expected 0 (off) or more",
                      a[TOP_K].i);
  if (!(a[TOP_P].f > 0 && a[TOP_P].f <= 1))
    return peri__fail(c->ctx, PERI_EINVAL, "top_p is %g, expected more than 0 and at most 1",
                      a[TOP_P].f);
  if (!(a[MIN_P].f >= 0 && a[MIN_P].f <= 1))
    return peri__fail(c->ctx, PERI_EINVAL, "min_p is %g, expected 0 to 1", a[MIN_P].f);
  return PERI_OK;
}

static peri_status sample_infer (peri_call *c) {
  const peri_tensor *x = c->in[0];
  double temperature = c->attr[TEMPERATURE].f;
  TRY(check_logits(c));
  if (!(temperature >= 0) || isinf(temperature))
    return peri__fail(c->ctx, PERI_EINVAL, "temperature is %g, expected 0 (greedy) or more",
                      temperature);
  TRY(check_truncation(c));
  if (c->in[1]) TRY(check_keys(c));
  TRY(peri__new(c->ctx, PERI_I64, x->ndim - 1, x->shape, &c->out[0]));
  return peri__new(c->ctx, (peri_dtype)x->dtype, x->ndim - 1, x->shape, &c->out[1]);
}

static peri_status sample_cpu (peri_call *c) {
  const peri_tensor *x = c->in[0];
  const peri_attr *a = c->attr;
  bool greedy = a[GREEDY].i || a[TEMPERATURE].f == 0;
  double temperature = a[TEMPERATURE].f > 0 ? a[TEMPERATURE].f : 1;
  sampler s = { .r = peri__rows_of(c->ctx, x->dtype, temperature),
                .x = x->data,
                .v = x->shape[x->ndim - 1],
                .greedy = greedy,
                .top_k = a[TOP_K].i,
                .top_p = a[TOP_P].f,
                .min_p = a[MIN_P].f,
                .keys = c->in[1] ? c->in[1]->data : NULL,
                .wide = key_width(c),
                .ids = c->out[0]->data,
                .logp = c->out[1]->data };
  int64_t rows = c->out[0]->numel;
  size_t bytes = 0;
  if (rows == 0) return PERI_OK;
  atomic_init(&s.bad, 0);
  s.scratch_each =
      padded((size_t)s.v * (s.r.size + sizeof(int32_t))) + padded(sizeof(worker_memory));
  if (!greedy) {
    bytes = s.scratch_each * (size_t)peri_threads(c->ctx);
    if (!(s.scratch = peri__block_get(c->ctx, bytes)))
      return peri__fail(c->ctx, PERI_ENOMEM, "no memory for the weights of %" PRId64 " classes",
                        s.v);
    s.rng = peri_rng_get(c->ctx);
  }
  peri__parallel(c->ctx, rows, peri__rows_grain(s.v), sample_rows, &s);
  peri__block_put(c->ctx, s.scratch);
  long long bad = atomic_load_explicit(&s.bad, memory_order_relaxed);
  if (bad > 0)
    return peri__fail(c->ctx, PERI_EINVAL,
                      "row %lld (from 0) of the logits holds NaN, +inf or only -inf", bad - 1);
  if (!greedy && !s.keys) peri__rng_next(c->ctx); /* a failed call takes nothing */
  return PERI_OK;
}

OPN(sample, 2, .flags = PERI_OP_RANDOM | PERI_OP_UPCAST,
    .sig = "logits, keys:tensor?, temperature:num=1, top_k:int=0, top_p:num=1, min_p:num=0, "
           "greedy:bool=false",
    .doc = "One id for each row of logits (..., classes) -> ids (...) i64 and their "
           "log-probability (...) under softmax(logits / temperature) before any truncation; "
           "top_k, top_p, min_p act in this order on the scaled distribution (transformers' "
           "rules). temperature 0 or greedy takes the first largest. With keys (...) i64 row r "
           "draws from stream (seed, keys[r]) whatever its place: give each draw a key of its "
           "own; with keys (..., 2) a row brings its seed, too, and the generator's is not used; "
           "keys (..., 3) also name the block of the stream: seed, offset and r are what row r "
           "draws without keys from a generator in that state.",
    .infer = sample_infer, .cpu = sample_cpu,
    TESTS(.refuses = { "logits.shape=1,2; logits=f32[nan,1] => 0",
                       "logits.shape=2,3; attr temperature=-1 => -1",
                       "logits.shape=2,3; attr top_p=2 => 2",
                       "logits.shape=1,3; keys.shape=1,4; keys=int:0..9 => (1, 3) | (1, 4)" }));

/* ---- truncation_mask ---- */

static peri_status mask_infer (peri_call *c) {
  const peri_tensor *x = c->in[0];
  double temperature = c->attr[TEMPERATURE].f;
  TRY(check_logits(c));
  if (!(temperature > 0) || isinf(temperature))
    return peri__fail(c->ctx, PERI_EINVAL, "temperature is %g, expected more than 0", temperature);
  TRY(check_truncation(c));
  return peri__new(c->ctx, PERI_BOOL, x->ndim, x->shape, &c->out[0]);
}

static void mask_rows (void *ud, int64_t begin, int64_t end, int worker) {
  sampler *s = ud;
  char *e = s->scratch + (size_t)worker * s->scratch_each;
  int32_t *heap = (int32_t *)(void *)(e + (size_t)s->v * s->r.size);
  worker_memory *memory = (worker_memory *)(void *)(e + s->scratch_each - sizeof *memory);
  for (int64_t i = begin; i < end; i++) {
    peri__row row;
    peri__rows_stat(&s->r, peri__rows_at(&s->r, s->x, i * s->v), s->v, e, &row);
    if (row.sum > 0)
      truncate_row(s, e, memory, heap);
    else
      atomic_store_explicit(&s->bad, (long long)i + 1, memory_order_relaxed);
    for (int64_t j = 0; j < s->v; j++) s->kept[i * s->v + j] = peri__rows_get(&s->r, e, j) > 0;
  }
}

static peri_status mask_cpu (peri_call *c) {
  const peri_tensor *x = c->in[0];
  const peri_attr *a = c->attr;
  sampler s = { .r = peri__rows_of(c->ctx, x->dtype, a[TEMPERATURE].f),
                .x = x->data,
                .v = x->shape[x->ndim - 1],
                .top_k = a[TOP_K].i,
                .top_p = a[TOP_P].f,
                .min_p = a[MIN_P].f,
                .kept = c->out[0]->data };
  int64_t rows = x->numel / s.v;
  if (rows == 0) return PERI_OK;
  atomic_init(&s.bad, 0);
  s.scratch_each =
      padded((size_t)s.v * (s.r.size + sizeof(int32_t))) + padded(sizeof(worker_memory));
  if (!(s.scratch = peri__block_get(c->ctx, s.scratch_each * (size_t)peri_threads(c->ctx))))
    return peri__fail(c->ctx, PERI_ENOMEM, "no memory for the weights of %" PRId64 " classes", s.v);
  peri__parallel(c->ctx, rows, peri__rows_grain(s.v), mask_rows, &s);
  peri__block_put(c->ctx, s.scratch);
  long long bad = atomic_load_explicit(&s.bad, memory_order_relaxed);
  return bad == 0
             ? PERI_OK
             : peri__fail(c->ctx, PERI_EINVAL,
                          "row %lld (from 0) of the logits holds NaN, +inf or only -inf", bad - 1);
}

OP(truncation_mask, .flags = PERI_OP_UPCAST,
   .sig = "logits, temperature:num=1, top_k:int=0, top_p:num=1, min_p:num=0",
   .doc = "Which classes of logits (..., classes) sample draws from under top_k, top_p and min_p, "
          "(..., classes) bool: those of a probability above 0 that none of them takes out.",
   .infer = mask_infer, .cpu = mask_cpu,
   TESTS(.reference =
             "(function (p) local s = p:sort(-1, true) local before = s:cumsum(-1) - s "
             "local least = where(before:lt(top_p), s, full_like(s, 2)):min(-1, true) "
             "if top_k > 0 then least = maximum(least, s:narrow(-1, top_k, 1)) end "
             "return p:ge(maximum(least, s:narrow(-1, 1, 1) * min_p)):logical_and(p:gt(0)) "
             "end)(softmax(logits / temperature, -1))",
         .domain = "logits.shape=3,5; attr top_k=2",
         .variants = { "logits.shape=3,5; attr top_p=0.6",
                       "logits.shape=2,3,5; attr min_p=0.3; attr temperature=2" },
         .large = "logits.shape=40,1500; attr top_p=0.7",
         .refuses = {
             "logits.shape=1,2; logits=f32[nan,1] => 0",
             "logits.shape=2,3; attr temperature=0 => 0", "logits.shape=2,3; attr top_k=-1 => -1",
             "logits.shape=2,3; attr top_p=0 => 0", "logits.shape=2,3; attr min_p=1.5 => 1.5" }));

/* ---- categorical ---- */

typedef struct draws {
  peri__rows r;
  const char *x;
  int64_t v, n;
  peri_rng rng;
  int64_t *ids; /* (rows, n) */
  char *scratch;
  size_t scratch_each;
  atomic_llong bad;
} draws;

static peri_status categorical_infer (peri_call *c) {
  const peri_tensor *x = c->in[0];
  int64_t shape[PERI_MAX_DIMS];
  TRY(check_logits(c));
  if (c->attr[0].i < 1)
    return peri__fail(c->ctx, PERI_EINVAL, "n is %" PRId64 ", expected 1 or more", c->attr[0].i);
  memcpy(shape, x->shape, sizeof shape);
  shape[x->ndim - 1] = c->attr[0].i;
  return peri__new(c->ctx, PERI_I64, x->ndim, shape, &c->out[0]);
}

static void categorical_rows (void *ud, int64_t begin, int64_t end, int worker) {
  draws *s = ud;
  char *e = s->scratch + (size_t)worker * s->scratch_each;
  for (int64_t i = begin; i < end; i++) {
    peri__row row;
    peri__rows_stat(&s->r, peri__rows_at(&s->r, s->x, i * s->v), s->v, e, &row);
    for (int64_t k = 0; k < s->n; k++) {
      uint32_t w[4];
      peri__rng_block(s->rng, (uint64_t)(i * s->n + k), w);
      int64_t id = row.sum > 0 ? peri__rows_pick(&s->r, e, s->v, peri__unit_f64(w[0], w[1])) : -1;
      if (id < 0) atomic_store_explicit(&s->bad, (long long)i + 1, memory_order_relaxed);
      s->ids[i * s->n + k] = id;
    }
  }
}

static peri_status categorical_cpu (peri_call *c) {
  const peri_tensor *x = c->in[0];
  draws s = { .r = peri__rows_of(c->ctx, x->dtype, 1),
              .x = x->data,
              .v = x->shape[x->ndim - 1],
              .n = c->attr[0].i,
              .ids = c->out[0]->data };
  int64_t rows = x->numel / s.v;
  if (rows == 0) return PERI_OK;
  atomic_init(&s.bad, 0);
  s.scratch_each = padded((size_t)s.v * s.r.size);
  size_t bytes = s.scratch_each * (size_t)peri_threads(c->ctx);
  if (!(s.scratch = peri__block_get(c->ctx, bytes)))
    return peri__fail(c->ctx, PERI_ENOMEM, "no memory for the weights of %" PRId64 " classes", s.v);
  s.rng = peri_rng_get(c->ctx);
  peri__parallel(c->ctx, rows, peri__rows_grain(s.v * s.n), categorical_rows, &s);
  peri__block_put(c->ctx, s.scratch);
  long long bad = atomic_load_explicit(&s.bad, memory_order_relaxed);
  if (bad > 0)
    return peri__fail(c->ctx, PERI_EINVAL,
                      "row %lld (from 0) of the logits holds NaN, +inf or only -inf", bad - 1);
  peri__rng_next(c->ctx);
  return PERI_OK;
}

OP(categorical, .flags = PERI_OP_RANDOM | PERI_OP_UPCAST, .sig = "logits, n:int=1",
   .doc = "n draws with replacement from softmax(logits) for each row of logits (..., classes) "
          "-> ids (..., n) i64; give log(p) to draw by probabilities.",
   .infer = categorical_infer, .cpu = categorical_cpu,
   TESTS(.refuses = { "logits.shape=2,3; attr n=0 => 0" }));
