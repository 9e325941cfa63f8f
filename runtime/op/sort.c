/*
** sort.c - sort, argsort and topk along one dim, stable. Elements become unsigned keys whose order
** is theirs (NaN the largest), so that one sort serves every dtype and both directions.
*/
#include <string.h>

#include "cpu/convert.h"
#include "op/op.h"
#include "op/rule.h"

#define SHORT 24 /* below this, insertion */

typedef struct pair {
  uint64_t key;
  int64_t at;
} pair;

/* ---- keys ---- */

static uint64_t key_f64 (double x) {
  uint64_t u;
  if (x != x) return UINT64_MAX;
  x += 0.0; /* -0 equals 0 */
  memcpy(&u, &x, sizeof u);
  return u >> 63 ? ~u : u | (uint64_t)1 << 63;
}
static uint64_t key_f32 (float x) { /* in the low half, so that the high digits are all alike */
  uint32_t u;
  if (x != x) return UINT32_MAX;
  x += 0.0f;
  memcpy(&u, &x, sizeof u);
  return u >> 31 ? ~u : u | (uint32_t)1 << 31;
}
static uint64_t key_i64 (int64_t x) { return (uint64_t)x ^ (uint64_t)1 << 63; }

static bool make_keys (const peri_ctx *ctx, int type, const void *x, int64_t n, int64_t stride,
                       bool descending, pair *out) {
  for (int64_t i = 0; i < n; i++) {
    if (peri__give_up(ctx, i)) return false;
    uint64_t k;
    if (type == PERI_F32)
      k = key_f32(((const float *)x)[i * stride]);
    else if (type == PERI_F64)
      k = key_f64(((const double *)x)[i * stride]);
    else
      k = key_i64(((const int64_t *)x)[i * stride]);
    out[i] = (pair){ descending ? ~k : k, i };
  }
  return true;
}

/* ---- sorting ---- */

static void insertion (pair *a, int64_t n) {
  for (int64_t i = 1; i < n; i++) {
    pair p = a[i];
    int64_t j = i;
    for (; j > 0 && a[j - 1].key > p.key; j--) a[j] = a[j - 1];
    a[j] = p;
  }
}

static void merge (const pair *a, int64_t na, const pair *b, int64_t nb, pair *to) {
  while (na > 0 && nb > 0) {
    if (b->key < a->key)
      *to++ = *b++, nb--;
    else
      *to++ = *a++, na--;
  }
  memcpy(to, na > 0 ? a : b, (size_t)(na + nb) * sizeof *to);
}

static void merge_sort (pair *a, int64_t n, pair *tmp) {
  for (int64_t i = 0; i < n; i += SHORT) insertion(a + i, n - i < SHORT ? n - i : SHORT);
  pair *from = a, *to = tmp;
  for (int64_t w = SHORT; w < n; w *= 2) {
    for (int64_t i = 0; i < n; i += 2 * w) {
      int64_t na = n - i < w ? n - i : w, nb = n - i - na < w ? n - i - na : w;
      merge(from + i, na, from + i + na, nb, to + i);
    }
    pair *swap = from;
    from = to;
    to = swap;
  }
  if (from != a) memcpy(a, from, (size_t)n * sizeof *a);
}

/* By bytes from the lowest; bytes that are the same everywhere are skipped. False: interrupted. */
static bool radix_sort (const peri_ctx *ctx, pair *a, int64_t n, pair *tmp) {
  int64_t count[8][256] = { { 0 } };
  for (int64_t i = 0; i < n; i++) {
    if (peri__give_up(ctx, i)) return false;
    for (int d = 0; d < 8; d++) count[d][a[i].key >> (8 * d) & 255]++;
  }
  pair *from = a, *to = tmp;
  for (int d = 0; d < 8; d++) {
    int64_t *c = count[d], at = 0;
    if (c[a[0].key >> (8 * d) & 255] == n) continue;
    for (int i = 0; i < 256; i++) {
      int64_t k = c[i];
      c[i] = at;
      at += k;
    }
    for (int64_t i = 0; i < n; i++) {
      if (peri__give_up(ctx, i)) return false;
      to[c[from[i].key >> (8 * d) & 255]++] = from[i];
    }
    pair *swap = from;
    from = to;
    to = swap;
  }
  if (from != a) memcpy(a, from, (size_t)n * sizeof *a);
  return true;
}

static bool sort_pairs (const peri_ctx *ctx, pair *a, int64_t n, pair *tmp) {
  if (n >= 1024) return radix_sort(ctx, a, n, tmp);
  if (n <= SHORT)
    insertion(a, n);
  else
    merge_sort(a, n, tmp);
  return true;
}

/* ---- the k first of n: a heap of the k best so far, the worst on top ---- */

static bool before (pair a, pair b) { return a.key < b.key || (a.key == b.key && a.at < b.at); }

static void sift (pair *h, int64_t k, int64_t i) {
  pair p = h[i];
  for (int64_t c; (c = 2 * i + 1) < k; i = c) {
    if (c + 1 < k && before(h[c], h[c + 1])) c++;
    if (!before(p, h[c])) break;
    h[i] = h[c];
  }
  h[i] = p;
}
static bool select_first (const peri_ctx *ctx, pair *a, int64_t n, int64_t k, pair *tmp) {
  if (k > n / 8) return sort_pairs(ctx, a, n, tmp);
  for (int64_t i = k / 2; i-- > 0;) sift(a, k, i);
  for (int64_t i = k; i < n; i++) {
    if (peri__give_up(ctx, i)) return false;
    if (!before(a[i], a[0])) continue;
    a[0] = a[i];
    sift(a, k, 0);
  }
  for (int64_t i = 0; i < k; i++) /* equal keys are in the heap's order: places decide */
    tmp[i] = a[i];
  for (int64_t end = k - 1; end > 0; end--) {
    pair last = tmp[end];
    a[end] = tmp[0];
    tmp[0] = last;
    sift(tmp, end, 0);
    if (peri__give_up(ctx, end)) return false;
  }
  a[0] = tmp[0];
  return true;
}

/* ---- lanes ---- */

typedef struct sorter {
  const peri_ctx *ctx;
  int type;
  int64_t n, k, inner; /* x is (outer, n, inner), the results (outer, k, inner) */
  bool descending;
  size_t size;                 /* of an element of x */
  const char *x, *values_from; /* values_from: x before it was widened */
  char *values;                /* NULL = not wanted */
  int64_t *places;
  pair *room; /* 2 n of every worker */
} sorter;

static void sort_range (void *ud, int64_t begin, int64_t end, int worker) {
  const sorter *s = ud;
  pair *a = s->room + worker * 2 * s->n;
  int64_t wide = (int64_t)peri_dtype_size((peri_dtype)s->type), size = (int64_t)s->size;
  for (; begin < end; begin++) {
    int64_t from = begin / s->inner * s->n * s->inner + begin % s->inner;
    int64_t to = begin / s->inner * s->k * s->inner + begin % s->inner;
    if (!make_keys(s->ctx, s->type, s->x + from * wide, s->n, s->inner, s->descending, a)) return;
    if (!(s->k < s->n ? select_first(s->ctx, a, s->n, s->k, a + s->n)
                      : sort_pairs(s->ctx, a, s->n, a + s->n)))
      return;
    for (int64_t i = 0; i < s->k; i++) {
      if (peri__give_up(s->ctx, i)) return;
      int64_t src = from + a[i].at * s->inner, dst = to + i * s->inner;
      s->places[dst] = a[i].at;
      if (s->values) memcpy(s->values + dst * size, s->values_from + src * size, s->size);
    }
  }
}

/* Sort x (dense) along dim into values (may be NULL) and places, the k first of each lane. */
static peri_status sort_lanes (peri_call *c, int dim, int64_t k, bool descending,
                               peri_tensor *values, peri_tensor *places) {
  peri_tensor *x = c->in[0], *wide = NULL;
  int d = x->dtype;
  sorter s = { .ctx = c->ctx,
               .n = x->ndim ? x->shape[dim] : 1,
               .k = k,
               .inner = 1,
               .descending = descending,
               .size = peri__size(x),
               .values_from = x->data,
               .values = values ? values->data : NULL,
               .places = places->data };
  if (places->numel == 0) return PERI_OK;
  for (int i = dim + 1; i < x->ndim; i++) s.inner *= x->shape[i];
  s.type = d == PERI_F16 || d == PERI_BF16 || d == PERI_F32 ? PERI_F32
           : d == PERI_F64                                  ? d
                                                            : PERI_I64;
  TRY(peri__cast(x, (peri_dtype)s.type, &wide));
  s.x = wide->data;
  size_t bytes = (size_t)peri_threads(c->ctx) * 2 * (size_t)s.n * sizeof(pair);
  s.room = peri__block_get(c->ctx, bytes);
  if (s.room) {
    peri__parallel(c->ctx, x->numel / s.n, 1 + 2048 / s.n, sort_range, &s);
    peri__block_put(c->ctx, s.room);
  }
  peri_release(wide);
  if (s.room) return PERI_OK;
  return peri__fail(c->ctx, PERI_ENOMEM, "out of memory for lanes of %lld elements",
                    (long long)s.n);
}

static peri_status dim_of (peri_call *c, int attr, int *dim) {
  *dim = 0;
  if (c->in[0]->ndim == 0) return PERI_OK; /* one element is sorted along any dim */
  return peri__dim(c->ctx, c->attr[attr].i, c->in[0]->ndim, dim);
}

/* ---- ops ---- */

/* Gradients of chosen values go back to where they came from. */
static void back_to_places (peri_vjp *v, int64_t dim) {
  peri_tensor *x = v->c->in[0], *g = v->g[0];
  if (!g) return;
  if (x->ndim == 0) {
    v->gin[0] = g;
    return;
  }
  peri_tensor *zeros = BA(BB, zeros_like, ATTR(A_INT(g->dtype)), x);
  v->gin[0] = BA(BB, scatter_add, ATTR(A_INT(dim)), zeros, peri__saved(v, 1), g);
}

static peri_status sort_infer (peri_call *c) {
  int dim;
  TRY(dim_of(c, 0, &dim));
  TRY(peri__infer_same(c));
  return peri__new_like(c->in[0], PERI_I64, &c->out[1]);
}
static peri_status sort_cpu (peri_call *c) {
  int dim;
  TRY(dim_of(c, 0, &dim));
  int64_t n = c->in[0]->ndim ? c->in[0]->shape[dim] : 1;
  return sort_lanes(c, dim, n, c->attr[1].i != 0, c->out[0], c->out[1]);
}
static void sort_vjp (peri_vjp *v) { back_to_places(v, v->c->attr[0].i); }
OPN(sort, 2, .sig = "x, dim:dim=-1, descending:bool=false",
    .doc =
        "Values in order along dim, and where they came from (i64, from 0). Stable; NaN counts as "
        "the largest.",
    .infer = sort_infer, .cpu = sort_cpu, .unread = 1, .vjp = sort_vjp,
    TESTS(.variants = { "shape=5,2; attr dim=1; attr descending=true" }));

static peri_status argsort_infer (peri_call *c) {
  int dim;
  TRY(dim_of(c, 0, &dim));
  return peri__new_like(c->in[0], PERI_I64, &c->out[0]);
}
static peri_status argsort_cpu (peri_call *c) {
  int dim;
  TRY(dim_of(c, 0, &dim));
  int64_t n = c->in[0]->ndim ? c->in[0]->shape[dim] : 1;
  return sort_lanes(c, dim, n, c->attr[1].i != 0, NULL, c->out[0]);
}
OP(argsort, .sig = "x, dim:dim=-1, descending:bool=false",
   .doc =
       "Places (i64, from 0) that bring x in order along dim. Stable; NaN counts as the largest.",
   .infer = argsort_infer, .cpu = argsort_cpu);

static peri_status topk_infer (peri_call *c) {
  const peri_tensor *x = c->in[0];
  int64_t k = c->attr[0].i, shape[PERI_MAX_DIMS];
  int dim;
  TRY(dim_of(c, 1, &dim));
  int64_t n = x->ndim ? x->shape[dim] : 1;
  if (k < 0 || k > n)
    return peri__fail(c->ctx, PERI_EINVAL, "k is %lld, expected 0 to %lld, the size of dim %s",
                      (long long)k, (long long)n, peri__nth(c->ctx, dim));
  if (x->ndim == 0 && k != 1)
    return peri__fail(c->ctx, PERI_EINVAL, "k is %lld for a tensor without dims", (long long)k);
  memcpy(shape, x->shape, sizeof shape);
  if (x->ndim > 0) shape[dim] = k;
  TRY(peri__new(c->ctx, (peri_dtype)x->dtype, x->ndim, shape, &c->out[0]));
  return peri__new(c->ctx, PERI_I64, x->ndim, shape, &c->out[1]);
}
static peri_status topk_cpu (peri_call *c) {
  int dim;
  TRY(dim_of(c, 1, &dim));
  return sort_lanes(c, dim, c->attr[0].i, c->attr[2].i != 0, c->out[0], c->out[1]);
}
static void topk_vjp (peri_vjp *v) { back_to_places(v, v->c->attr[1].i); }
OPN(topk, 2, .sig = "x, k:int, dim:dim=-1, largest:bool=true",
    .doc =
        "The k largest (or smallest) values along dim in order, and their places (i64, from 0; the "
        "first of equal ones first).",
    .infer = topk_infer, .cpu = topk_cpu, .unread = 1, .vjp = topk_vjp,
    TESTS(.domain = "attr k=2",
          .variants = { "shape=5,2; attr k=3; attr dim=1; attr largest=false" },
          .refuses = { "x.shape=3; attr k=4 => 4 | 3", "x.shape=3; attr k=-1 => -1" }));
