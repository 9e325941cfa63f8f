/*
** decode.c - what a decoding step needs of attention: writing new keys and values into a cache,
** moving its rows, and the whole of split, rotation, write and attention as one op.
*/
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cpu/nn.h"
#include "op/move.h"
#include "op/op.h"

/* ---- kv_append_ ---- */

typedef struct append_job {
  const peri_tensor *cache[2], *from[2];
  int64_t pos, size;
} append_job;

static void append_range (void *ud, int64_t begin, int64_t end, int worker) {
  const append_job *j = ud;
  int64_t T = j->from[0]->shape[1], H = j->from[0]->shape[2], D = j->from[0]->shape[3],
          size = j->size;
  (void)worker;
  for (int64_t bt = begin; bt < end; bt++)
    for (int i = 0; i < 2; i++) {
      const peri_tensor *c = j->cache[i], *f = j->from[i];
      int64_t b = bt / T, t = bt % T;
      char *to = (char *)c->data + (b * c->stride[0] + (j->pos + t) * c->stride[1]) * size;
      const char *from = (const char *)f->data + (b * f->stride[0] + t * f->stride[1]) * size;
      if (c->stride[3] == 1 && f->stride[3] == 1 &&
          (H == 1 || (c->stride[2] == D && f->stride[2] == D))) {
        memcpy(to, from, (size_t)(H * D * size));
        continue;
      }
      for (int64_t h = 0; h < H; h++)
        for (int64_t d = 0; d < D; d++) /* a cache of keys side by side */
          memcpy(to + (h * c->stride[2] + d * c->stride[3]) * size,
                 from + (h * f->stride[2] + d * f->stride[3]) * size, (size_t)size);
    }
}

static peri_status check_place (peri_ctx *ctx, int64_t T, int64_t pos, int64_t room) {
  if (pos >= 0 && pos <= room && T <= room - pos) return PERI_OK;
  return peri__fail(ctx, PERI_EINVAL, "%lld tokens at position %s do not fit into a cache of %lld",
                    (long long)T, peri__nth(ctx, pos), (long long)room);
}

static peri_status append_infer (peri_call *c) {
  const peri_tensor *cache = c->in[0], *k = c->in[2];
  static const char *const names[] = { "cache_k", "cache_v", "k", "v" };
  char a[128], b[128];
  for (int i = 0; i < 4; i++) {
    const peri_tensor *t = c->in[i], *like = i < 2 ? cache : k;
    TRY(peri__want_ndim(c, i, names[i], 4));
    if (memcmp(t->shape, like->shape, 4 * sizeof *t->shape) != 0 ||
        t->shape[0] != cache->shape[0] ||
        memcmp(t->shape + 2, cache->shape + 2, 2 * sizeof *t->shape) != 0)
      return peri__fail(c->ctx, PERI_ESHAPE,
                        "caches (B, Tmax, H, D) have shape %s and %s %s; expected (B, %s, H, D)",
                        peri__shape_text(cache, a, sizeof a), names[i],
                        peri__shape_text(t, b, sizeof b), i < 2 ? "Tmax" : "T");
    TRY(peri__want_dtype(c, i, names[i], cache->dtype));
  }
  return check_place(c->ctx, k->shape[1], c->attr[0].i, cache->shape[1]);
}

static peri_status append_cpu (peri_call *c) {
  append_job j = {
    { c->in[0], c->in[1] }, { c->in[2], c->in[3] }, c->attr[0].i, (int64_t)peri__size(c->in[0])
  };
  const peri_tensor *k = c->in[2];
  if (k->numel > 0)
    peri__parallel(c->ctx, k->shape[0] * k->shape[1], 16384 / (k->shape[2] * k->shape[3]) + 1,
                   append_range, &j);
  return PERI_OK;
}

OPN(kv_append_, 0, .sig = "cache_k, cache_v, k, v, pos:pos",
    .doc = "Writes k, v (B, T, H, D) into the caches (B, Tmax, H, D) from position pos on.",
    .flags = PERI_OP_INPLACE | PERI_OP_STRIDED, .writes = 1 | 2, .infer = append_infer,
    .cpu = append_cpu,
    TESTS(.domain = "shape=2,2,2,3; cache_k.shape=2,5,2,3; cache_v.shape=2,5,2,3; attr pos=2",
          .large =
              "shape=4,40,4,32; cache_k.shape=4,100,4,32; cache_v.shape=4,100,4,32; attr pos=30",
          .refuses = {
              "cache_k.shape=1,3,1,2; cache_v.shape=1,3,1,2; k.shape=1,1,1,2; v.shape=1,1,1,2; "
              "attr pos=4 => 1 tokens | cache of 3" }));

/* ---- move_rows_ ---- */

static peri_status rows_infer (peri_call *c) {
  const peri_tensor *x = c->in[0], *from = c->in[1], *to = c->in[2];
  char a[128], b[128];
  if (x->ndim < 1) return peri__fail(c->ctx, PERI_ESHAPE, "x is a number, expected rows (B, ...)");
  TRY(peri__want_ndim(c, 1, "from", 1));
  if (to->ndim == 1 && to->shape[0] == from->shape[0]) return PERI_OK;
  return peri__fail(c->ctx, PERI_ESHAPE, "from has shape %s and to %s; expected (N) and (N)",
                    peri__shape_text(from, a, sizeof a), peri__shape_text(to, b, sizeof b));
}

/* Whether a row that is written is read too. */
static bool crossing (const peri_indices *from, const peri_indices *to, uint8_t *read) {
  bool both = false;
  for (int64_t i = 0; i < from->n; i++) read[from->v[i]] = 1;
  for (int64_t i = 0; i < to->n && !both; i++) both = read[to->v[i]] != 0;
  return both;
}

/* Rows are copied one by one; where one that is written is read too, all go through `held`. */
static peri_status rows_move (peri_ctx *ctx, const peri_tensor *x, const peri_indices *from,
                              const peri_indices *to) {
  int64_t step = x->stride[0], size = (int64_t)peri__size(x), each = x->numel / x->shape[0];
  int64_t dense[PERI_MAX_DIMS];
  char *data = x->data, *held = NULL;
  uint8_t *read = peri__block_get(ctx, (size_t)x->shape[0]);
  if (!read)
    return peri__fail(ctx, PERI_ENOMEM, "no memory for %" PRId64 " marks of rows", x->shape[0]);
  memset(read, 0, (size_t)x->shape[0]);
  bool both = crossing(from, to, read);
  peri__block_put(ctx, read);
  if (both && !(held = peri__block_get(ctx, (size_t)(from->n * each * size))))
    return peri__fail(ctx, PERI_ENOMEM, "no memory for %" PRId64 " rows of %" PRId64 " elements",
                      from->n, each);
  peri__dense_strides(x->ndim - 1, x->shape + 1, dense);
  for (int64_t i = 0; both && i < from->n; i++)
    peri__move(ctx, (size_t)size, x->ndim - 1, x->shape + 1, held + i * each * size, dense,
               data + from->v[i] * step * size, x->stride + 1);
  for (int64_t i = 0; i < to->n; i++)
    peri__move(ctx, (size_t)size, x->ndim - 1, x->shape + 1, data + to->v[i] * step * size,
               x->stride + 1, both ? held + i * each * size : data + from->v[i] * step * size,
               both ? dense : x->stride + 1);
  peri__block_put(ctx, held);
  return PERI_OK;
}

static peri_status rows_cpu (peri_call *c) {
  const peri_tensor *x = c->in[0];
  peri_indices from = { 0 }, to = { 0 };
  peri_status s = peri__indices(c->ctx, c->in[1], "from", x->shape[0], &from);
  if (s == PERI_OK) s = peri__indices(c->ctx, c->in[2], "to", x->shape[0], &to);
  if (s == PERI_OK && from.n > 0 && x->numel > 0) s = rows_move(c->ctx, x, &from, &to);
  peri__indices_free(c->ctx, &from);
  peri__indices_free(c->ctx, &to);
  return s;
}

OPN(move_rows_, 0, .sig = "x, from, to",
    .doc = "Row to[i] of x (B, ...) becomes what row from[i] was, for all i at once; from and to "
           "(N) count from 0, and of equal ones in to the last wins.",
    .flags = PERI_OP_INPLACE | PERI_OP_STRIDED, .writes = 1, .infer = rows_infer, .cpu = rows_cpu,
    TESTS(.domain = "x.shape=4,3; from.shape=2; to.shape=2; from=int:0..3; to=int:0..3",
          .large = "x.shape=200,300; from.shape=90; to.shape=90; from=int:0..199; to=int:0..199",
          .refuses = { "x.shape=3,2; from=i64[3]; to=i64[0] => from | 3",
                       "x.shape=3,2; from=i64[0]; to=i64[-1] => to | -1",
                       "x.shape=3; from=i64[0,1]; to=i64[0] => (2) | (1)" }));

/* ---- attention_step_ ---- */

/* All that the parts would refuse after the caches were written is refused here. */
static peri_status step_check (peri_call *c) {
  const peri_tensor *cache = c->in[0], *x = c->in[2], *start = c->in[5];
  char a[128], b[128];
  TRY(peri__want_ndim(c, 0, "cache_k", 4));
  TRY(peri__want_ndim(c, 2, "qkv", 4));
  TRY(peri__want_float(c, 2, "qkv"));
  if (cache->shape[2] < 1 || (x->shape[2] - 1) / 2 < cache->shape[2] ||
      x->shape[2] % cache->shape[2] != 0)
    return peri__fail(
        c->ctx, PERI_ESHAPE,
        "cache_k (B, Tmax, Hkv, D) has shape %s and qkv %s; expected (B, T, Hq + 2 Hkv, D), "
        "Hq a multiple of Hkv",
        peri__shape_text(cache, a, sizeof a), peri__shape_text(x, b, sizeof b));
  if ((c->in[3] == NULL) != (c->in[4] == NULL))
    return peri__fail(c->ctx, PERI_EINVAL, "positions and inv_freq go together");
  TRY(check_place(c->ctx, x->shape[1], c->attr[0].i, cache->shape[1]));
  if (c->attr[4].i < 0)
    return peri__fail(c->ctx, PERI_EINVAL, "window = %lld, expected 0 or more",
                      (long long)c->attr[4].i);
  if (!(c->attr[5].f >= 0 && isfinite(c->attr[5].f)))
    return peri__fail(c->ctx, PERI_EINVAL, "softcap = %g, expected 0 (none) or more", c->attr[5].f);
  if (start &&
      (start->dtype != PERI_I64 || start->ndim < 1 || start->ndim > 2 ||
       start->shape[0] != x->shape[0] || (start->ndim == 2 && start->shape[1] != x->shape[1])))
    return peri__fail(c->ctx, PERI_ESHAPE, "start is %s %s, expected i64 (%lld,) or (%lld, %lld)",
                      peri_dtype_name((peri_dtype)start->dtype),
                      peri__shape_text(start, a, sizeof a), (long long)x->shape[0],
                      (long long)x->shape[0], (long long)x->shape[1]);
  return PERI_OK;
}

/* q, k and v of the new tokens, q and k turned. */
static void step_turn (peri_build *b, const peri_call *c, peri_tensor **part) {
  const peri_attr *a = c->attr; /* pos, interleaved, rope_scale, scale, window, softcap */
  peri_tensor *x = c->in[2];
  int64_t kv_heads = c->in[0]->shape[2];
  const peri_attr split[5] = { A_INT(x->shape[2] - 2 * kv_heads), A_INT(kv_heads), A_INT(a[1].i),
                               A_NUM(a[2].f), A_INT(0) };
  if (c->in[3])
    peri__build_all(b, &peri__op_rope_qkv, 3, (peri_tensor *[]){ x, c->in[3], c->in[4] }, split,
                    part);
  else
    peri__build_all(b, &peri__op_unpack_qkv, 1, &x, split, part);
}

static void step_build (peri_build *b, peri_call *c) {
  const peri_attr *a = c->attr;
  peri_tensor *part[PERI_MAX_OUT] = { NULL };
  int64_t end = a[0].i + c->in[2]->shape[1];
  step_turn(b, c, part);
  if (b->status != PERI_OK) return;
  peri__build_all(b, &peri__op_kv_append_, 4,
                  (peri_tensor *[]){ c->in[0], c->in[1], part[1], part[2] }, a, NULL);
  peri_tensor *k = BA(b, narrow, ATTR(A_INT(1), A_INT(0), A_INT(end)), c->in[0]);
  peri_tensor *v = BA(b, narrow, ATTR(A_INT(1), A_INT(0), A_INT(end)), c->in[1]);
  c->out[0] = peri_retain(BA(
      b, attention, ATTR(A_INT(1), A_NUM(a[3].f), A_INT(a[4].i), A_INT(INT64_MIN), A_NUM(a[5].f)),
      part[0], k, v, NULL, c->in[5]));
}

/* One new token in f32 is written and attended to by one kernel; anything else, and what is to be
** refused, goes through the ops one by one. */
static bool one_token (const peri_call *c) {
  const peri_tensor *k = c->in[0], *v = c->in[1], *x = c->in[2], *start = c->in[5];
  int64_t pos = c->attr[0].i, heads = x->shape[2] - 2 * k->shape[2];
  return x->shape[1] == 1 && k->dtype == PERI_F32 && v->dtype == PERI_F32 && x->dtype == PERI_F32 &&
         k->numel > 0 && v->ndim == 4 && memcmp(k->shape, v->shape, 4 * sizeof *k->shape) == 0 &&
         x->shape[0] == k->shape[0] && x->shape[3] == k->shape[3] && heads % k->shape[2] == 0 &&
         pos >= 0 && pos < k->shape[1] && c->attr[4].i >= 0 && c->attr[5].f >= 0 &&
         x->stride[3] == 1 && v->stride[3] == 1 && (k->stride[3] == 1 || k->stride[1] == 1) &&
         (!start || (start->dtype == PERI_I64 && start->ndim == 1 &&
                     start->shape[0] == k->shape[0] && peri__dense(start)));
}

static peri_status step_infer (peri_call *c) {
  peri_build b;
  TRY(step_check(c));
  bool one = one_token(c);
  if (!one || c->in[3]) {
    peri__build_begin(&b, c->ctx);
    if (one) {
      peri_tensor *part[PERI_MAX_OUT] = { NULL };
      step_turn(&b, c, part);
      for (int i = 1; i <= 2 && b.status == PERI_OK; i++) c->out[i] = peri_retain(part[i - 1]);
    } else
      step_build(&b, c);
    TRY(peri__build_end(&b));
  }
  if (!one) return PERI_OK;
  const peri_tensor *x = c->in[2];
  int64_t shape[4] = { x->shape[0], 1, x->shape[2] - 2 * c->in[0]->shape[2], x->shape[3] };
  return peri__new(c->ctx, PERI_F32, 4, shape, &c->out[0]);
}

typedef struct step_job {
  struct peri__attn a;
  const struct peri__nn_kernels *kernels;
  float *k, *v; /* caches, at time pos */
  const float *new_k, *new_v;
  int64_t new_ks[2], new_vs[2]; /* strides of batch and head */
  float *scratch;
  int64_t room; /* floats of scratch a worker */
} step_job;

static void step_range (void *ud, int64_t begin, int64_t end, int worker) {
  const step_job *j = ud;
  const struct peri__attn *a = &j->a;
  for (int64_t b = begin; b < end; b++) {
    for (int64_t h = 0; h < a->Hkv; h++) {
      float *k = j->k + b * a->ks[0] + h * a->ks[2], *v = j->v + b * a->vs[0] + h * a->vs[2];
      const float *from = j->new_k + b * j->new_ks[0] + h * j->new_ks[1];
      for (int64_t d = 0; d < a->D; d++) k[d * a->ks[3]] = from[d];
      memcpy(v, j->new_v + b * j->new_vs[0] + h * j->new_vs[1], (size_t)a->D * sizeof *v);
    }
    j->kernels->attn(a, b, j->scratch + worker * j->room);
  }
}

/* Heads of t (B, 1, H, D) from the first on, with the strides of batch and head. */
static const float *heads_of (const peri_tensor *t, int64_t first, int64_t stride[2]) {
  stride[0] = t->stride[0], stride[1] = t->stride[2];
  return (const float *)t->data + first * t->stride[2];
}

static peri_status step_cpu (peri_call *c) {
  if (!one_token(c)) return PERI_OK; /* done */
  const peri_tensor *k = c->in[0], *v = c->in[1], *x = c->in[2];
  const peri_attr *attr = c->attr;
  peri_ctx *ctx = c->ctx;
  int64_t pos = attr[0].i, kv_heads = k->shape[2], heads = x->shape[2] - 2 * kv_heads, qs[2];
  step_job j = { .kernels = ctx->cpu->nn };
  struct peri__attn *a = &j.a;
  a->B = x->shape[0], a->Tq = 1, a->Tk = pos + 1, a->Hq = heads, a->Hkv = kv_heads;
  a->D = x->shape[3], a->causal = true, a->offset = pos;
  a->window = attr[4].i > a->Tk ? 0 : attr[4].i;
  a->cap = (float)attr[5].f;
  a->scale = (float)(isnan(attr[3].f) ? 1 / sqrt((double)a->D) : attr[3].f);
  a->start = c->in[5] ? c->in[5]->data : NULL;
  a->q = heads_of(c->in[3] ? c->out[1] : x, 0, qs);
  a->qs[0] = qs[0], a->qs[2] = qs[1];
  a->k = k->data, a->v = v->data, a->out = c->out[0]->data;
  memcpy(a->ks, k->stride, sizeof a->ks);
  memcpy(a->vs, v->stride, sizeof a->vs);
  j.k = (float *)k->data + pos * k->stride[1], j.v = (float *)v->data + pos * v->stride[1];
  j.new_k = c->in[3] ? heads_of(c->out[2], 0, j.new_ks) : heads_of(x, heads, j.new_ks);
  j.new_v = heads_of(x, heads + kv_heads, j.new_vs);
  j.kernels->attn_units(a);
  j.room = (j.kernels->attn_scratch(a) + 15) / 16 * 16;
  int64_t grain = 200000 / (heads * (a->Tk + 60) * a->D) + 1; /* about 10 us */
  int64_t workers = a->B > grain ? peri_threads(ctx) : 1;
  size_t bytes = (size_t)(workers * j.room) * sizeof *j.scratch;
  j.scratch = peri__block_get(ctx, bytes);
  if (!j.scratch)
    return peri__fail(ctx, PERI_ENOMEM, "out of memory for %zu bytes of scratch", bytes);
  peri__parallel(ctx, a->B, grain, step_range, &j);
  peri__block_put(ctx, j.scratch);
  return PERI_OK;
}

static void step_cost (const peri_call *c, double *flops, double *bytes) {
  if (!one_token(c)) return; /* counted op by op */
  const peri_tensor *k = c->in[0], *x = c->in[2];
  double keys = (double)(c->attr[0].i + 1) * (double)k->shape[0] * (double)k->shape[3];
  *flops = 4 * keys * (double)(x->shape[2] - 2 * k->shape[2]);
  *bytes = 8 * keys * (double)k->shape[2];
}

OPN(attention_step_, 3,
    .sig = "cache_k, cache_v, qkv, positions:tensor?, inv_freq:tensor?, start:tensor?, pos:pos, "
           "interleaved:bool=false, rope_scale:num=1, scale:num=none, window:int=0, "
           "softcap:num=0",
    .doc = "Causal attention (B, T, Hq, D) of new tokens over a cache (B, Tmax, Hkv, D): takes qkv "
           "(B, T, Hq + 2 Hkv, D) apart, turns q and k by positions * inv_freq if given, writes k "
           "and v at time pos, attends to all up to there; the same bits as rope, kv_append_ and "
           "attention one by one. Fastest where cache_k is a view of (B, Hkv, D, Tmax).",
    .flags = PERI_OP_INPLACE | PERI_OP_STRIDED, .writes = 1 | 2, .nret = 1, .infer = step_infer,
    .cpu = step_cpu, .cost = step_cost,
    TESTS(.domain = "cache_k.shape=2,5,1,4; cache_v.shape=2,5,1,4; qkv.shape=2,2,4,4; attr pos=2",
          .large =
              "cache_k.shape=4,60,2,32; cache_v.shape=4,60,2,32; qkv.shape=4,9,8,32; attr pos=50",
          .refuses = { "cache_k.shape=1,3,1,2; cache_v.shape=1,3,1,2; qkv.shape=1,2,3,2; attr "
                       "pos=3 => 2 | 3" }));
