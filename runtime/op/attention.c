/*
** attention.c - scaled dot-product attention with grouped queries, causal and sliding windows, left
** padding and masks, and its gradient. Scores never leave the kernels (cpu/attn.h), which also say
** why a row has the same bits in decoding and in training.
*/
#include <math.h>
#include <string.h>

#include "cpu/nn.h"
#include "op/op.h"

/* One call: the kernels' view of it, and what has to be released behind it. */
typedef struct attn_job {
  struct peri__attn a;
  const struct peri__nn_kernels *k;
  void (*unit)(const struct peri__attn *a, int64_t unit, float *scratch); /* NULL: f64 */
  void (*unit_f64)(const struct peri__attn *a, int64_t unit);
  peri_tensor *hold[8];
  int held;
  float *scratch;
  int64_t room; /* floats of scratch a worker */
} attn_job;

static peri_status attn_check (peri_call *c, const peri_tensor *mask, const peri_tensor *start) {
  static const char *const names[] = { "q", "k", "v" };
  const peri_tensor *q = c->in[0], *k = c->in[1];
  char a[128], b[128];
  for (int i = 0; i < 3; i++) {
    TRY(peri__want_ndim(c, i, names[i], 4));
    if (q->dtype != PERI_F32 && q->dtype != PERI_F64)
      return peri__fail(c->ctx, PERI_EDTYPE, "q is %s, expected a float dtype",
                        peri_dtype_name((peri_dtype)q->dtype));
    TRY(peri__want_dtype(c, i, names[i], q->dtype));
  }
  if (memcmp(k->shape, c->in[2]->shape, 4 * sizeof *k->shape) != 0)
    return peri__fail(c->ctx, PERI_ESHAPE, "k has shape %s and v %s; they must be equal",
                      peri__shape_text(k, a, sizeof a), peri__shape_text(c->in[2], b, sizeof b));
  if (k->shape[0] != q->shape[0] || k->shape[3] != q->shape[3] || k->shape[2] < 1 ||
      q->shape[2] % k->shape[2] != 0)
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "q has shape %s and k %s; expected (B, Tq, Hq, D) and (B, Tk, Hkv, D), "
                      "Hq a multiple of Hkv",
                      peri__shape_text(q, a, sizeof a), peri__shape_text(k, b, sizeof b));
  if (mask) {
    int64_t full[4] = { q->shape[0], q->shape[2], q->shape[1], k->shape[1] };
    bool good = mask->ndim == 4 || mask->ndim == 2;
    for (int i = 0; good && i < mask->ndim; i++) {
      int64_t want = full[mask->ndim == 2 ? 3 * i : i];
      good = mask->shape[i] == want || mask->shape[i] == 1;
    }
    if (!good)
      return peri__fail(c->ctx, PERI_ESHAPE,
                        "mask has shape %s, expected (%lld, %lld) or (%lld, %lld, %lld, %lld), "
                        "1 for any size",
                        peri__shape_text(mask, a, sizeof a), (long long)full[0], (long long)full[3],
                        (long long)full[0], (long long)full[1], (long long)full[2],
                        (long long)full[3]);
    if (mask->dtype != PERI_BOOL && !peri__is_float(mask->dtype))
      return peri__fail(c->ctx, PERI_EDTYPE, "mask is %s, expected bool or a float dtype",
                        peri_dtype_name((peri_dtype)mask->dtype));
  }
  if (start &&
      (start->dtype != PERI_I64 || start->ndim < 1 || start->ndim > 2 ||
       start->shape[0] != q->shape[0] || (start->ndim == 2 && start->shape[1] != q->shape[1])))
    return peri__fail(c->ctx, PERI_ESHAPE, "start is %s %s, expected i64 (%lld) or (%lld, %lld)",
                      peri_dtype_name((peri_dtype)start->dtype),
                      peri__shape_text(start, a, sizeof a), (long long)q->shape[0],
                      (long long)q->shape[0], (long long)q->shape[1]);
  const double cap = c->attr[4].f;
  if (!(cap >= 0 && isfinite(cap)))
    return peri__fail(c->ctx, PERI_EINVAL, "softcap = %g, expected 0 (none) or more", cap);
  return PERI_OK;
}

/* Keep t, or a dense copy where the kernels cannot walk it. */
static peri_status attn_take (attn_job *j, peri_tensor *t, bool strided, peri_tensor **out) {
  int last = t->ndim - 1;
  if (strided && (last < 0 || t->stride[last] == 1 || t->shape[last] <= 1))
    *out = peri_retain(t);
  else
    TRY(peri__contiguous(t, out));
  j->hold[j->held++] = *out;
  return PERI_OK;
}

static peri_status attn_rows (attn_job *j, peri_tensor *t, const float **data, int64_t stride[3]) {
  peri_tensor *x;
  TRY(attn_take(j, t, true, &x));
  *data = x->data;
  memcpy(stride, x->stride, 3 * sizeof *stride);
  return PERI_OK;
}

/* k: the forward kernels in f32 also take keys side by side, as a decoding cache may keep them. */
static peri_status attn_keys (peri_call *c, attn_job *j, bool forward) {
  peri_tensor *k = c->in[1];
  struct peri__attn *a = &j->a;
  a->ks[3] = 1;
  if (!forward || k->dtype != PERI_F32 || k->stride[3] == 1 || k->stride[1] != 1)
    return attn_rows(j, k, &a->k, a->ks);
  j->hold[j->held++] = peri_retain(k);
  a->k = k->data;
  memcpy(a->ks, k->stride, 4 * sizeof *a->ks);
  return PERI_OK;
}

static peri_status attn_open (peri_call *c, attn_job *j, bool forward) {
  peri_tensor *mask = c->in[forward ? 3 : 6], *start = c->in[forward ? 4 : 7];
  const peri_tensor *q = c->in[0], *k = c->in[1];
  const peri_attr *attr = c->attr;
  struct peri__attn *a = &j->a;
  peri_tensor *t;
  const int64_t far = (int64_t)1 << 40;
  j->k = c->ctx->cpu->nn;
  a->stopped = peri__stopped;
  a->ctx = c->ctx;
  a->B = q->shape[0], a->Tq = q->shape[1], a->Hq = q->shape[2], a->D = q->shape[3];
  a->Tk = k->shape[1], a->Hkv = k->shape[2];
  a->causal = attr[0].i != 0;
  a->scale_f64 = isnan(attr[1].f) ? 1 / sqrt((double)a->D) : attr[1].f;
  a->scale = (float)a->scale_f64;
  a->cap_f64 = attr[4].f;
  a->cap = (float)a->cap_f64;
  a->window = attr[2].i > far ? 0 : attr[2].i;
  a->offset = attr[3].i == INT64_MIN ? a->Tk - a->Tq
              : attr[3].i > far      ? far
              : attr[3].i < -far     ? -far
                                     : attr[3].i;
  TRY(attn_rows(j, c->in[0], &a->q, a->qs));
  TRY(attn_keys(c, j, forward));
  TRY(attn_rows(j, c->in[2], &a->v, a->vs));
  if (start) {
    TRY(attn_take(j, start, false, &t));
    a->start = t->data;
    a->start_each = t->ndim == 2;
  }
  if (mask) {
    if (mask->dtype == PERI_BOOL)
      TRY(attn_take(j, mask, true, &t));
    else {
      TRY(peri__cast(mask, (peri_dtype)q->dtype, &t));
      j->hold[j->held++] = t;
    }
    a->mask_kind = mask->dtype == PERI_BOOL ? PERI_ATTN_BOOL : PERI_ATTN_ADD;
    a->mask = t->data;
    for (int i = 0; i < t->ndim; i++)
      a->ms[t->ndim == 2 ? 3 * i : i] = t->shape[i] == 1 ? 0 : t->stride[i];
  }
  return PERI_OK;
}

static void attn_range (void *ud, int64_t begin, int64_t end, int worker) {
  const attn_job *j = ud;
  for (int64_t i = begin; i < end; i++)
    if (j->unit)
      j->unit(&j->a, i, j->scratch + worker * j->room);
    else
      j->unit_f64(&j->a, i);
}

/* Run units; ns is what one is guessed to take, so that small calls stay on one thread. */
static peri_status attn_run (peri_ctx *ctx, attn_job *j, int64_t units, int64_t floats, double ns) {
  int64_t grain = ns > 20000 ? 1 : (int64_t)(20000 / (ns + 1)) + 1;
  j->room = (floats + 15) / 16 * 16;
  int64_t workers = units > grain ? peri_threads(ctx) : 1;
  size_t bytes = (size_t)(workers * j->room) * sizeof(float);
  j->scratch = peri__block_get(ctx, bytes);
  if (!j->scratch)
    return peri__fail(ctx, PERI_ENOMEM, "out of memory for %zu bytes of scratch", bytes);
  peri__parallel(ctx, units, grain, attn_range, j);
  peri__block_put(ctx, j->scratch);
  return PERI_OK;
}

static void attn_close (attn_job *j) {
  while (j->held > 0) peri_release(j->hold[--j->held]);
}

static double attn_pairs (const peri_call *c) { /* of query and key that see each other */
  double Tq = (double)c->in[0]->shape[1], Tk = (double)c->in[1]->shape[1];
  double seen = c->attr[0].i && c->attr[3].i == INT64_MIN && Tq <= Tk ? Tk - (Tq - 1) / 2 : Tk;
  return (double)c->in[0]->shape[0] * (double)c->in[0]->shape[2] * Tq * seen;
}

static void attn_bytes (const peri_call *c, double *bytes) {
  *bytes = 2.0 * ((double)c->in[0]->numel + (double)c->in[1]->numel) * (double)peri__size(c->in[0]);
}

/* ---- attention_backward ---- */

static peri_status attention_backward_infer (peri_call *c) {
  TRY(attn_check(c, c->in[6], c->in[7]));
  const peri_tensor *q = c->in[0], *lse = c->in[4];
  for (int i = 3; i <= 5; i += 2) {
    char a[128], b[128];
    TRY(peri__want_ndim(c, i, i == 3 ? "out" : "g", 4));
    TRY(peri__want_dtype(c, i, i == 3 ? "out" : "g", q->dtype));
    if (memcmp(c->in[i]->shape, q->shape, 4 * sizeof *q->shape) != 0)
      return peri__fail(c->ctx, PERI_ESHAPE, "q has shape %s and %s %s; they must be equal",
                        peri__shape_text(q, a, sizeof a), i == 3 ? "out" : "g",
                        peri__shape_text(c->in[i], b, sizeof b));
  }
  TRY(peri__want_dtype(c, 4, "lse", q->dtype));
  if (lse->numel != q->shape[0] * q->shape[1] * q->shape[2])
    return peri__fail(c->ctx, PERI_ESHAPE, "lse has %lld values, expected (B, Hq, Tq)",
                      (long long)lse->numel);
  for (int k = 0; k < 3; k++) TRY(peri__new_like(c->in[k], (peri_dtype)q->dtype, &c->out[k]));
  int64_t scores[4] = { q->shape[0], q->shape[2], q->shape[1], c->in[1]->shape[1] };
  if (!c->attr[5].i) scores[0] = 0;
  return peri__new(c->ctx, (peri_dtype)q->dtype, 4, scores, &c->out[3]);
}

static peri_status attention_backward_cpu (peri_call *c) {
  attn_job j = { .held = 0 };
  peri_tensor *out = NULL, *lse = NULL, *g = NULL;
  peri_status s = attn_open(c, &j, false);
  if (s == PERI_OK) s = attn_take(&j, c->in[3], false, &out);
  if (s == PERI_OK) s = attn_take(&j, c->in[4], false, &lse);
  if (s == PERI_OK) s = attn_take(&j, c->in[5], false, &g);
  if (s == PERI_OK && c->in[0]->numel + c->in[1]->numel > 0) {
    struct peri__attn *a = &j.a;
    a->out = out->data, a->lse = lse->data, a->g = g->data;
    a->dq = c->out[0]->data, a->dk = c->out[1]->data, a->dv = c->out[2]->data;
    if (c->out[3]->numel > 0) {
      a->dmask = c->out[3]->data;
      memset(a->dmask, 0, (size_t)c->out[3]->numel * peri__size(c->out[3]));
    }
    if (c->in[0]->dtype == PERI_F64)
      j.unit_f64 = peri__attn_back_f64;
    else
      j.unit = j.k->attn_back;
    double ns = 0.4 * (double)(a->Tq * (a->Hq / a->Hkv)) * (double)a->Tk * (double)a->D;
    s = attn_run(c->ctx, &j, a->B * a->Hkv, j.unit ? j.k->attn_back_scratch(a) : 1, ns);
  }
  attn_close(&j);
  return s;
}

static void attention_backward_cost (const peri_call *c, double *flops, double *bytes) {
  *flops = 10.0 * attn_pairs(c) * (double)c->in[0]->shape[3];
  attn_bytes(c, bytes);
  *bytes *= 2;
}

OPN(attention_backward, 4,
    .sig = "q, k, v, out, lse, g, mask:tensor?, start:tensor?, causal:bool=false, scale:num=none, "
           "window:int=0, offset:int=none, softcap:num=0, mask_grad:bool=false",
    .doc = "Gradients (dq, dk, dv) of attention, scores computed again from lse (B, Hq, Tq) "
           "(arXiv:2205.14135); with mask_grad also that of an added mask, (B, Hq, Tq, Tk).",
    .flags = PERI_OP_STRIDED | PERI_OP_UPCAST, .infer = attention_backward_infer,
    .cpu = attention_backward_cpu, .cost = attention_backward_cost,
    TESTS(.domain = "shape=2,3,2,4; lse.shape=2,2,3; lse=2..3",
          .large = "shape=2,80,4,32; lse.shape=2,4,80; lse=4..5; attr causal=true",
          .refuses = {
              "q.shape=2,3,4; k.shape=2,3,4; v.shape=2,3,4; out.shape=2,3,4; lse.shape=2,3,4; "
              "g.shape=2,3,4 => 3 | 4" }));

/* ---- attention ---- */

static peri_status attention_infer (peri_call *c) {
  const peri_tensor *q = c->in[0];
  TRY(attn_check(c, c->in[3], c->in[4]));
  if (c->attr[2].i < 0)
    return peri__fail(c->ctx, PERI_EINVAL, "window = %lld, expected 0 or more",
                      (long long)c->attr[2].i);
  int64_t rows[3] = { q->shape[0], q->shape[2], q->shape[1] };
  TRY(peri__infer_same(c));
  return peri__new(c->ctx, (peri_dtype)q->dtype, 3, rows, &c->out[1]);
}

static peri_status attention_cpu (peri_call *c) {
  attn_job j = { .held = 0 };
  peri_status s = attn_open(c, &j, true);
  if (s == PERI_OK && c->out[0]->numel > 0) {
    struct peri__attn *a = &j.a;
    a->out = c->out[0]->data, a->lse = c->out[1]->data;
    bool f64 = c->in[0]->dtype == PERI_F64;
    int64_t units = f64 ? a->B * a->Hkv : j.k->attn_units(a);
    if (f64)
      j.unit_f64 = peri__attn_f64;
    else
      j.unit = j.k->attn;
    double pairs =
        (double)a->B * (double)a->Hq * (double)a->Tq * (double)a->Tk * (double)a->D / (double)units;
    s = attn_run(c->ctx, &j, units, f64 ? 1 : j.k->attn_scratch(a), 0.1 * pairs);
  }
  attn_close(&j);
  return s;
}

static void attention_vjp (peri_vjp *v) {
  const peri_call *c = v->c;
  peri_tensor *out[PERI_MAX_OUT] = { NULL };
  bool mask = c->in[3] && v->need[3];
  peri_attr attr[6];
  memcpy(attr, c->attr, 5 * sizeof *attr);
  attr[5] = (peri_attr)A_INT(mask);
  peri__build_all(&v->b, &peri__op_attention_backward, 8,
                  (peri_tensor *[]){ c->in[0], c->in[1], c->in[2], peri__saved(v, 0),
                                     peri__saved(v, 1), v->g[0], c->in[3], c->in[4] },
                  attr, out);
  for (int i = 0; i < 3; i++) v->gin[i] = out[i];
  if (!mask || v->b.status != PERI_OK) return;
  v->gin[3] = out[3]; /* (B, Hq, Tq, Tk), summed where the mask is smaller */
  if (c->in[3]->ndim == 2)
    v->gin[3] = BA(&v->b, sum, ATTR(A_DIMS(((int64_t[]){ 1, 2 }), 2), A_INT(0)), out[3]);
}

static void attention_cost (const peri_call *c, double *flops, double *bytes) {
  *flops = 4.0 * attn_pairs(c) * (double)c->in[0]->shape[3];
  attn_bytes(c, bytes);
}

OPN(attention, 2,
    .sig = "q, k, v, mask:tensor?, start:tensor?, causal:bool=false, scale:num=none, "
           "window:int=0, offset:int=none, softcap:num=0",
    .doc = "softmax(q k^T scale) v for q (B, Tq, Hq, D), k and v (B, Tk, Hkv, D), Hq a multiple "
           "of Hkv; causal: query i sees keys j <= i + offset (default Tk - Tq), of these the "
           "last window; keys before start, (B) or for each query (B, Tq), are hidden; mask: bool "
           "(true = visible) or added (-inf = hidden), (B, Tk) or (B, Hq, Tq, Tk), sizes may be "
           "1; softcap > 0 makes scores softcap tanh(score / softcap) before the mask "
           "(arXiv:2408.00118). A hidden key and its value may hold anything, NaN too: they change "
           "no result and no gradient. A query that sees nothing gives zeros (arXiv:1706.03762, "
           "arXiv:2205.14135).",
    .flags = PERI_OP_STRIDED | PERI_OP_UPCAST | PERI_OP_NO_GRAD2, .nret = 1,
    .infer = attention_infer, .cpu = attention_cpu, .vjp = attention_vjp, .cost = attention_cost,
    TESTS(.domain = "shape=2,3,2,4; start=int:0..1; start.shape=2; attr causal=true",
          .variants = { "shape=2,3,2,4",
                        "q.shape=2,3,4,2; k.shape=2,5,2,2; v.shape=2,5,2,2; attr causal=true",
                        "q.shape=2,3,2,2; k.shape=2,5,1,2; v.shape=2,5,1,2; attr causal=true; attr "
                        "window=2; "
                        "attr scale=0.3",
                        "shape=2,3,2,4; mask=bool; mask.shape=2,3",
                        "shape=2,3,2,4; mask=f64:-3..1; mask.shape=2,2,3,3",
                        "shape=2,3,2,4; mask=-3..1; mask.shape=1,2,3,3; attr softcap=0.6",
                        "shape=2,3,2,4; mask=-3..1; mask.shape=2,3; attr causal=true",
                        "shape=2,3,2,4; start=int:0..2; start.shape=2,3; attr causal=true; attr "
                        "softcap=0.8",
                        "q.shape=1,2,2,2; k.shape=1,5,2,2; v.shape=1,5,2,2; attr causal=true; attr "
                        "offset=1" },
          .large = "shape=2,80,4,32; attr causal=true",
          .refuses = {
              "q.shape=2,3,4; k.shape=2,3,4; v.shape=2,3,4 => 3 | 4",
              "q.shape=1,2,3,4; k.shape=1,2,2,4; v.shape=1,2,2,4 => 3 | 2",
              "q.shape=2,3,1,4; k.shape=2,3,1,4; v.shape=2,3,1,4; mask.shape=2,5 => (2, 5)",
              "q.shape=2,3,1,4; k.shape=2,3,1,4; v.shape=2,3,1,4; start=i64[0,1,2] => (3)",
              "q.shape=2,3,1,4; k.shape=2,3,1,4; v.shape=2,3,1,4; attr softcap=-1 => -1" }));
