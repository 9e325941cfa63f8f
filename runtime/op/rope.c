/*
** rope.c - rotary position embedding (arXiv:2104.09864). Every scaling of RoPE (linear, Llama 3,
** YaRN) is another inv_freq and scale.
*/
#include <math.h>
#include <string.h>

#include "cpu/nn.h"
#include "op/op.h"

/* Sines are taken once for each distinct position: the table covers the range of positions when
** that is not longer than their list, else it has a row for each entry of the list. */
typedef struct rope_job {
  const struct peri__nn_kernels *k;
  const peri_tensor *x; /* (B, T, H, D), channels contiguous */
  char *y;              /* (B, T) rows of H x D */
  int64_t y_row;        /* elements from one to the next */
  const int64_t *pos;   /* (T) or (B, T) */
  int64_t B, T, H, D, n, rows, low;
  bool per_batch, ranged, f64, interleaved, inverse;
  const void *freq;
  char *table; /* cosines c, sines s (rows, n) */
  size_t table_bytes;
  void *c, *s;
  double scale;
} rope_job;

static void rope_table (void *ud, int64_t begin, int64_t end, int worker) {
  const rope_job *r = ud;
  (void)worker;
  for (int64_t row = begin; row < end; row++) {
    int64_t pos = r->ranged ? r->low + row : r->pos[row];
    if (r->f64) {
      const double *f = r->freq;
      for (int64_t i = 0; i < r->n; i++) {
        ((double *)r->c)[row * r->n + i] = cos((double)pos * f[i]) * r->scale;
        ((double *)r->s)[row * r->n + i] = sin((double)pos * f[i]) * r->scale;
      }
      continue;
    }
    /* the angle is rounded to f32, as in the models that were trained so */
    float angle[64], *c = (float *)r->c + row * r->n, *s = (float *)r->s + row * r->n;
    for (int64_t i = 0; i < r->n; i += 64) {
      int64_t m = r->n - i < 64 ? r->n - i : 64;
      for (int64_t j = 0; j < m; j++) angle[j] = (float)pos * ((const float *)r->freq)[i + j];
      r->k->sincos(m, angle, (float)r->scale, c + i, s + i);
    }
  }
}

static void rope_row_f64 (const rope_job *r, const double *x, double *y, const double *c,
                          const double *s) {
  int64_t n = r->n;
  for (int64_t i = 0; i < n; i++) {
    int64_t j = r->interleaved ? 2 * i : i, k = r->interleaved ? 2 * i + 1 : n + i;
    double si = r->inverse ? -s[i] : s[i], a = x[j], b = x[k];
    y[j] = a * c[i] - b * si;
    y[k] = b * c[i] + a * si;
  }
  for (int64_t i = 2 * n; i < r->D; i++) y[i] = x[i];
}

static void rope_range (void *ud, int64_t begin, int64_t end, int worker) {
  const rope_job *r = ud;
  const int64_t *stride = r->x->stride;
  (void)worker;
  for (int64_t bt = begin; bt < end; bt++) {
    int64_t b = bt / r->T, t = bt % r->T, p = r->per_batch ? bt : t;
    int64_t row = (r->ranged ? r->pos[p] - r->low : p) * r->n, at = b * stride[0] + t * stride[1];
    if (!r->f64) {
      r->k->rope((const float *)r->x->data + at, (float *)(void *)r->y + bt * r->y_row, r->H,
                 stride[2], r->D, r->n, (const float *)r->c + row, (const float *)r->s + row,
                 r->interleaved, r->inverse);
      continue;
    }
    for (int64_t h = 0; h < r->H; h++)
      rope_row_f64(r, (const double *)r->x->data + at + h * stride[2],
                   (double *)(void *)r->y + bt * r->y_row + h * r->D, (const double *)r->c + row,
                   (const double *)r->s + row);
  }
}

/* positions (T) or (B, T) i64 and frequencies for x (B, T, H, D), inputs p and p + 1 */
static peri_status rope_check (peri_call *c, const peri_tensor *x, int p) {
  const peri_tensor *pos = c->in[p], *f = c->in[p + 1];
  char a[128], b[128];
  TRY(peri__want_dtype(c, p, "positions", PERI_I64));
  if (!((pos->ndim == 1 && pos->shape[0] == x->shape[1]) ||
        (pos->ndim == 2 && pos->shape[0] == x->shape[0] && pos->shape[1] == x->shape[1])))
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "x (B, T, H, D) has shape %s and positions %s; expected (T) or (B, T)",
                      peri__shape_text(x, a, sizeof a), peri__shape_text(pos, b, sizeof b));
  if (f->dtype != PERI_F32 && f->dtype != PERI_F64)
    return peri__fail(c->ctx, PERI_EDTYPE, "inv_freq is %s, expected f32 or f64",
                      peri_dtype_name((peri_dtype)f->dtype));
  if (f->ndim != 1 || 2 * f->shape[0] > x->shape[3])
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "x has shape %s and inv_freq %s; expected at most half of D frequencies",
                      peri__shape_text(x, a, sizeof a), peri__shape_text(f, b, sizeof b));
  return PERI_OK;
}

/* Choose the table's rows and fill it. */
static peri_status rope_fill (peri_ctx *ctx, rope_job *r) {
  int64_t count = r->per_batch ? r->B * r->T : r->T, low = r->pos[0], high = low;
  for (int64_t i = 1; i < count; i++) {
    if (r->pos[i] < low) low = r->pos[i];
    if (r->pos[i] > high) high = r->pos[i];
  }
  if (low < -1000000000 || high > 1000000000)
    return peri__fail(ctx, PERI_EINVAL,
                      "positions from %lld to %lld, expected a magnitude of at most 1e9",
                      (long long)low, (long long)high);
  r->ranged = high - low < count;
  r->low = low;
  r->rows = r->ranged ? high - low + 1 : count;
  size_t half = (size_t)(r->rows * r->n) * (r->f64 ? 8 : 4);
  r->table_bytes = 2 * half;
  r->table = peri__block_get(ctx, 2 * half);
  if (!r->table)
    return peri__fail(ctx, PERI_ENOMEM, "out of memory for %lld rows of sines", (long long)r->rows);
  r->c = r->table;
  r->s = r->table + half;
  peri__parallel(ctx, r->rows, 2048 / (r->n + 1) + 1, rope_table, r);
  return PERI_OK;
}

/* The part of a job that does not depend on what is turned: x gives B, T, D and the dtype. */
static peri_status rope_open (peri_call *c, rope_job *r, const peri_tensor *x, int p,
                              const peri_attr *attr, peri_tensor *hold[2]) {
  hold[0] = hold[1] = NULL;
  TRY(peri__contiguous(c->in[p], &hold[0]));
  if (c->in[p + 1]->dtype == x->dtype)
    TRY(peri__contiguous(c->in[p + 1], &hold[1]));
  else
    TRY(peri__cast(c->in[p + 1], (peri_dtype)x->dtype, &hold[1]));
  *r = (rope_job){ .k = c->ctx->cpu->nn,
                   .pos = hold[0]->data,
                   .B = x->shape[0],
                   .T = x->shape[1],
                   .D = x->shape[3],
                   .n = hold[1]->shape[0],
                   .per_batch = hold[0]->ndim == 2,
                   .f64 = x->dtype == PERI_F64,
                   .interleaved = attr[0].i != 0,
                   .scale = attr[1].f,
                   .inverse = attr[2].i != 0,
                   .freq = hold[1]->data };
  return rope_fill(c->ctx, r);
}

/* Turn x (B, T, H, D), dense in D, into rows of y. */
static void rope_turn (peri_ctx *ctx, rope_job *r, const peri_tensor *x, void *y, int64_t y_row) {
  r->x = x;
  r->y = y;
  r->y_row = y_row;
  r->H = x->shape[2];
  if (x->numel == 0) return; /* no heads */
  peri__parallel(ctx, r->B * r->T, 16384 / (r->H * r->D) + 1, rope_range, r);
}

static void rope_close (peri_ctx *ctx, rope_job *r, peri_tensor *hold[2]) {
  peri__block_put(ctx, r->table);
  peri_release(hold[0]);
  peri_release(hold[1]);
}

/* x itself, or a dense copy where its channels are not contiguous; new reference */
static peri_status rope_rows (peri_tensor *x, peri_tensor **out) {
  if (x->stride[3] != 1 && x->shape[3] > 1) return peri__contiguous(x, out);
  *out = peri_retain(x);
  return PERI_OK;
}

/* ---- rope ---- */

static peri_status rope_infer (peri_call *c) {
  TRY(peri__want_float(c, 0, "x"));
  TRY(peri__want_ndim(c, 0, "x", 4));
  TRY(rope_check(c, c->in[0], 1));
  return peri__infer_same(c);
}

static peri_status rope_cpu (peri_call *c) {
  peri_tensor *x = NULL, *hold[2];
  rope_job r = { .table = NULL };
  if (c->in[0]->numel == 0) return PERI_OK;
  TRY(rope_rows(c->in[0], &x));
  peri_status s = rope_open(c, &r, x, 1, c->attr, hold);
  if (s == PERI_OK) rope_turn(c->ctx, &r, x, c->out[0]->data, r.D * x->shape[2]);
  rope_close(c->ctx, &r, hold);
  peri_release(x);
  return s;
}

static void rope_vjp (peri_vjp *v) {
  const peri_attr *a = v->c->attr;
  v->gin[0] = BA(&v->b, rope, ATTR(A_INT(a[0].i), A_NUM(a[1].f), A_INT(!a[2].i)), v->g[0],
                 v->c->in[1], v->c->in[2]);
}

static void rope_cost (const peri_call *c, double *flops, double *bytes) {
  *flops = 3.0 * (double)c->in[0]->numel;
  *bytes = 2.0 * (double)c->in[0]->numel * (double)peri__size(c->in[0]);
}

OP(rope, .sig = "x, positions, inv_freq, interleaved:bool=false, scale:num=1, inverse:bool=false",
   .doc = "Rotates the first 2 len(inv_freq) channels of x (B, T, H, D) by positions * inv_freq, "
          "halves paired or neighbours (interleaved); positions i64 (T) or (B, T) "
          "(arXiv:2104.09864).",
   .flags = PERI_OP_STRIDED | PERI_OP_UPCAST, .infer = rope_infer, .cpu = rope_cpu, .unread = 1,
   .vjp = rope_vjp, .cost = rope_cost,
   TESTS(.domain = "x.shape=2,3,2,4; positions=int:0..9; positions.shape=3; inv_freq=f32:0..2; "
                   "inv_freq.shape=2",
         .variants = { "x.shape=2,3,2,6; positions=int:0..9; positions.shape=2,3; "
                       "inv_freq=f32:0..2; "
                       "inv_freq.shape=2; attr interleaved=true; attr scale=1.2",
                       "x.shape=2,3,2,4; positions=int:0..9; positions.shape=3; inv_freq=f32:0..2; "
                       "inv_freq.shape=2; attr inverse=true" },
         .large = "x.shape=4,40,4,64; positions=int:0..50; positions.shape=40; inv_freq=f32:0..2; "
                  "inv_freq.shape=32",
         .refuses = { "x.shape=2,3,4; positions=i64[0]; inv_freq.shape=2 => 3",
                      "x.shape=1,1,1,4; positions=i64[0]; inv_freq.shape=3 => 3 | 4",
                      "x.shape=1,2,1,4; positions=i64[0]; inv_freq.shape=2 => (1)" }));

/* ---- rope_qkv ---- */

static peri_status rope_qkv_check (peri_call *c, const peri_tensor *x, int64_t heads,
                                   int64_t kv_heads) {
  char a[128];
  if (x->ndim != 4 || !peri__heads_fit(x->shape[2], heads, kv_heads))
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "x has shape %s, expected (B, T, %lld heads + 2 * %lld kv_heads, D)",
                      peri__shape_text(x, a, sizeof a), (long long)heads, (long long)kv_heads);
  return PERI_OK;
}

static peri_status rope_qkv_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  int64_t heads = c->attr[0].i, kv_heads = c->attr[1].i;
  TRY(peri__want_float(c, 0, "x"));
  TRY(rope_qkv_check(c, x, heads, kv_heads));
  TRY(rope_check(c, x, 1));
  int64_t shape[4] = { x->shape[0], x->shape[1], heads, x->shape[3] };
  TRY(peri__new(c->ctx, (peri_dtype)x->dtype, 4, shape, &c->out[0]));
  shape[2] = kv_heads;
  TRY(peri__new(c->ctx, (peri_dtype)x->dtype, 4, shape, &c->out[1]));
  return peri__view(x, (heads + kv_heads) * x->stride[2], 4, shape, x->stride, &c->out[2]);
}

/* heads [first, first + n) of x (B, T, H, D) as a tensor struct without references */
static peri_tensor head_slice (const peri_tensor *x, int64_t first, int64_t n) {
  peri_tensor t = *x;
  t.data = (char *)x->data + first * x->stride[2] * (int64_t)peri__size(x);
  t.shape[2] = n;
  return t;
}

static peri_status rope_qkv_cpu (peri_call *c) {
  peri_tensor *x = NULL, *hold[2];
  rope_job r = { .table = NULL };
  if (c->in[0]->numel == 0) return PERI_OK;
  TRY(rope_rows(c->in[0], &x));
  peri_status s = rope_open(c, &r, x, 1, c->attr + 2, hold);
  for (int i = 0; i < 2 && s == PERI_OK; i++) {
    peri_tensor part = head_slice(x, i ? c->attr[0].i : 0, c->attr[i].i);
    rope_turn(c->ctx, &r, &part, c->out[i]->data, part.shape[2] * r.D);
  }
  rope_close(c->ctx, &r, hold);
  peri_release(x);
  return s;
}

static void rope_qkv_vjp (peri_vjp *v) {
  const peri_call *c = v->c;
  peri_tensor *g[3];
  for (int i = 0; i < 3; i++)
    g[i] = v->g[i] ? v->g[i] : BA(&v->b, zeros_like, ATTR(A_INT(-1)), v->like[i]);
  v->gin[0] = BA(&v->b, rope_qkv_backward, c->attr + 2, g[0], g[1], g[2], c->in[1], c->in[2]);
}

OPN(rope_qkv, 3,
    .sig = "x, positions, inv_freq, heads:int, kv_heads:int, interleaved:bool=false, scale:num=1, "
           "inverse:bool=false",
    .doc = "For a fused projection x (B, T, heads + 2 kv_heads, D): q (B, T, heads, D) and k "
           "(B, T, kv_heads, D) turned as by rope, and v, a view.",
    .flags = PERI_OP_STRIDED | PERI_OP_UPCAST, .infer = rope_qkv_infer, .cpu = rope_qkv_cpu,
    .unread = 1, .vjp = rope_qkv_vjp, .cost = rope_cost,
    TESTS(.domain = "x.shape=2,3,4,4; positions=int:0..9; positions.shape=3; inv_freq=f32:0..2; "
                    "inv_freq.shape=2; attr heads=2; attr kv_heads=1",
          .large = "x.shape=4,40,8,64; positions=int:0..50; positions.shape=40; inv_freq=f32:0..2; "
                   "inv_freq.shape=32; attr heads=4; attr kv_heads=2",
          .refuses = {
              "x.shape=1,1,5,4; positions=i64[0]; inv_freq.shape=2; attr heads=2; attr kv_heads=1"
              " => (1, 1, 5, 4) | 2" }));

static peri_status rope_qkv_backward_infer (peri_call *c) {
  static const char *const names[] = { "gq", "gk", "gv" };
  const peri_tensor *q = c->in[0], *k = c->in[1];
  char a[128], b[128];
  for (int i = 0; i < 3; i++) {
    const peri_tensor *t = c->in[i];
    TRY(peri__want_float(c, i, names[i]));
    TRY(peri__want_ndim(c, i, names[i], 4));
    TRY(peri__want_dtype(c, i, names[i], q->dtype));
    if (t->shape[0] != q->shape[0] || t->shape[1] != q->shape[1] || t->shape[3] != q->shape[3] ||
        (i > 0 && t->shape[2] != k->shape[2]))
      return peri__fail(
          c->ctx, PERI_ESHAPE, "gq has shape %s and %s %s; they must agree in B, T, D",
          peri__shape_text(q, a, sizeof a), names[i], peri__shape_text(t, b, sizeof b));
  }
  TRY(rope_check(c, q, 3));
  int64_t shape[4] = { q->shape[0], q->shape[1], q->shape[2] + 2 * k->shape[2], q->shape[3] };
  return peri__new(c->ctx, (peri_dtype)q->dtype, 4, shape, &c->out[0]);
}

typedef struct copy_job {
  const peri_tensor *from;
  char *to;
  int64_t row, size;
} copy_job;

static void copy_range (void *ud, int64_t begin, int64_t end, int worker) {
  const copy_job *j = ud;
  int64_t bytes = j->from->shape[2] * j->from->shape[3] * j->size;
  (void)worker;
  for (int64_t i = begin; i < end; i++)
    memcpy(j->to + i * j->row * j->size, (const char *)j->from->data + i * bytes, (size_t)bytes);
}

/* Dense inputs: the op is not strided. */
static peri_status rope_qkv_backward_cpu (peri_call *c) {
  const peri_tensor *q = c->in[0], *v = c->in[2], *out = c->out[0];
  int64_t row = out->shape[2] * out->shape[3], size = (int64_t)peri__size(out), at = 0;
  peri_attr attr[3] = { c->attr[0], c->attr[1], A_INT(!c->attr[2].i) };
  peri_tensor *hold[2];
  rope_job r = { .table = NULL };
  if (out->numel == 0) return PERI_OK;
  peri_status s = rope_open(c, &r, q, 3, attr, hold);
  for (int i = 0; i < 2 && s == PERI_OK; i++) {
    rope_turn(c->ctx, &r, c->in[i], (char *)out->data + at * size, row);
    at += c->in[i]->shape[2] * r.D;
  }
  if (s == PERI_OK && v->numel > 0) {
    copy_job j = { v, (char *)out->data + at * size, row, size };
    peri__parallel(c->ctx, v->shape[0] * v->shape[1], 16384 / (v->shape[2] * v->shape[3]) + 1,
                   copy_range, &j);
  }
  rope_close(c->ctx, &r, hold);
  return s;
}

static void rope_qkv_backward_vjp (peri_vjp *v) {
  const peri_call *c = v->c;
  const peri_attr *a = c->attr;
  peri_tensor *out[PERI_MAX_OUT];
  peri__build_all(&v->b, &peri__op_rope_qkv, 3, (peri_tensor *[]){ v->g[0], c->in[3], c->in[4] },
                  ATTR(A_INT(c->in[0]->shape[2]), A_INT(c->in[1]->shape[2]), { .i = a[0].i },
                       { .f = a[1].f }, { .i = a[2].i }),
                  out);
  for (int i = 0; i < 3; i++) v->gin[i] = out[i];
}

OP(rope_qkv_backward,
   .sig =
       "gq, gk, gv, positions, inv_freq, interleaved:bool=false, scale:num=1, inverse:bool=false",
   .doc = "Gradient (B, T, heads + 2 kv_heads, D) of rope_qkv.", .flags = PERI_OP_UPCAST,
   .infer = rope_qkv_backward_infer, .cpu = rope_qkv_backward_cpu, .vjp = rope_qkv_backward_vjp,
   .cost = rope_cost,
   TESTS(.domain = "gq.shape=2,3,2,4; gk.shape=2,3,1,4; gv.shape=2,3,1,4; positions=int:0..9; "
                   "positions.shape=3; inv_freq=f32:0..2; inv_freq.shape=2",
         .large =
             "gq.shape=4,40,4,64; gk.shape=4,40,2,64; gv.shape=4,40,2,64; positions=int:0..50; "
             "positions.shape=40; inv_freq=f32:0..2; inv_freq.shape=32",
         .refuses = { "gq.shape=1,1,2,4; gk.shape=1,2,1,4; gv.shape=1,2,1,4; positions=i64[0]; "
                      "inv_freq.shape=2 => (1, 1, 2, 4) | (1, 2, 1, 4)" }));
