/*
** decode.c - what a decoding step needs of attention: writing new keys and values into a cache, and
** the whole of split, rotation, write and attention as one op.
*/
#include <string.h>

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
        for (int64_t d = 0; d < D; d++)
          memcpy(to + (h * c->stride[2] + d * c->stride[3]) * size,
                 from + (h * f->stride[2] + d * f->stride[3]) * size, (size_t)size);
    }
}

static peri_status append_infer (peri_call *c) {
  const peri_tensor *cache = c->in[0], *k = c->in[2];
  static const char *const names[] = { "cache_k", "cache_v", "k", "v" };
  char a[128], b[128];
  int64_t pos = c->attr[0].i;
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
  if (pos < 0 || pos > cache->shape[1] || k->shape[1] > cache->shape[1] - pos)
    return peri__fail(c->ctx, PERI_EINVAL,
                      "%lld tokens at position %lld do not fit into a cache of %lld",
                      (long long)k->shape[1], (long long)pos, (long long)cache->shape[1]);
  return PERI_OK;
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
    .flags = PERI_OP_INPLACE | PERI_OP_STRIDED, .infer = append_infer, .cpu = append_cpu,
    .domain = "shape=2,2,2,3; cache_k.shape=2,5,2,3; cache_v.shape=2,5,2,3; attr pos=2");

/* ---- attention_step_ ---- */

/* Nothing here is recorded: what would be lost has to be refused. */
static peri_status step_check (peri_call *c) {
  const peri_tensor *cache = c->in[0], *x = c->in[2];
  char a[128], b[128];
  TRY(peri__want_ndim(c, 0, "cache_k", 4));
  TRY(peri__want_ndim(c, 2, "qkv", 4));
  if (c->ctx->grad_enabled && (peri__tracked(x) || peri__tracked(c->in[1])))
    return peri__fail(c->ctx, PERI_EINVAL, "has no gradient: use no_grad");
  if (x->shape[2] <= 2 * cache->shape[2])
    return peri__fail(
        c->ctx, PERI_ESHAPE,
        "cache_k (B, Tmax, Hkv, D) has shape %s and qkv %s; expected (B, T, Hq + 2 Hkv, D)",
        peri__shape_text(cache, a, sizeof a), peri__shape_text(x, b, sizeof b));
  if ((c->in[3] == NULL) != (c->in[4] == NULL))
    return peri__fail(c->ctx, PERI_EINVAL, "positions and inv_freq go together");
  return PERI_OK;
}

static void step_build (peri_build *b, peri_call *c) {
  const peri_attr *a = c->attr; /* pos, interleaved, rope_scale, scale, window */
  peri_tensor *x = c->in[2], *part[PERI_MAX_OUT] = { NULL };
  int64_t kv_heads = c->in[0]->shape[2], heads = x->shape[2] - 2 * kv_heads,
          end = a[0].i + x->shape[1];
  const peri_attr split[5] = { A_INT(heads), A_INT(kv_heads), A_INT(a[1].i), A_NUM(a[2].f),
                               A_INT(0) };
  if (c->in[3])
    peri__build_all(b, &peri__op_rope_qkv, 3, (peri_tensor *[]){ x, c->in[3], c->in[4] }, split,
                    part);
  else peri__build_all(b, &peri__op_unpack_qkv, 1, &x, split, part);
  if (b->status != PERI_OK) return;
  peri__build_all(b, &peri__op_kv_append_, 4,
                  (peri_tensor *[]){ c->in[0], c->in[1], part[1], part[2] }, a, NULL);
  peri_tensor *k = BA(b, narrow, ATTR(A_INT(1), A_INT(0), A_INT(end)), c->in[0]);
  peri_tensor *v = BA(b, narrow, ATTR(A_INT(1), A_INT(0), A_INT(end)), c->in[1]);
  c->out[0] =
      peri_retain(BA(b, attention, ATTR(A_INT(1), A_NUM(a[3].f), A_INT(a[4].i), A_INT(INT64_MIN)),
                     part[0], k, v, NULL, c->in[5]));
}

/* The ops one by one, from C: there is no kernel of its own. */
static peri_status step_infer (peri_call *c) {
  peri_build b;
  TRY(step_check(c));
  peri__build_begin(&b, c->ctx);
  step_build(&b, c);
  return peri__build_end(&b);
}

OP(attention_step_,
   .sig = "cache_k, cache_v, qkv, positions:tensor?, inv_freq:tensor?, start:tensor?, pos:pos, "
          "interleaved:bool=false, rope_scale:num=1, scale:num=none, window:int=0",
   .doc = "Causal attention (B, T, Hq, D) of new tokens over a cache (B, Tmax, Hkv, D): takes qkv "
          "(B, T, Hq + 2 Hkv, D) apart, turns q and k by positions * inv_freq if given, writes k "
          "and v at time pos, attends to all up to there; the same bits as rope, kv_append_ and "
          "attention one by one.",
   .flags = PERI_OP_INPLACE | PERI_OP_STRIDED, .infer = step_infer,
   .domain = "cache_k.shape=2,5,1,4; cache_v.shape=2,5,1,4; qkv.shape=2,2,4,4; attr pos=2");
