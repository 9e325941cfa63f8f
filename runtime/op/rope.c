/*
** rope.c - rotary position embedding (arXiv:2104.09864) and the write of new keys and values into a
** cache. Every scaling of RoPE (linear, Llama 3, YaRN) is another inv_freq and scale.
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
  void *y;
  const int64_t *pos; /* (T) or (B, T) */
  int64_t B, T, H, D, n, rows, low;
  bool per_batch, ranged, f64, interleaved, inverse;
  const void *freq;
  void *c, *s; /* (rows, n) */
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

static void rope_row_f64 (const rope_job *r, const double *x, double *y, const double *c, const double *s) {
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
      r->k->rope((const float *)r->x->data + at, (float *)r->y + bt * r->H * r->D, r->H, stride[2], r->D, r->n,
                 (const float *)r->c + row, (const float *)r->s + row, r->interleaved, r->inverse);
      continue;
    }
    for (int64_t h = 0; h < r->H; h++)
      rope_row_f64(r, (const double *)r->x->data + at + h * stride[2], (double *)r->y + (bt * r->H + h) * r->D,
                   (const double *)r->c + row, (const double *)r->s + row);
  }
}

static peri_status rope_infer (peri_call *c) {
  const peri_tensor *x = c->in[0], *pos = c->in[1], *f = c->in[2];
  char a[128], b[128];
  TRY(peri__want_float(c, 0, "x"));
  TRY(peri__want_ndim(c, 0, "x", 4));
  TRY(peri__want_dtype(c, 1, "positions", PERI_I64));
  if (!((pos->ndim == 1 && pos->shape[0] == x->shape[1]) ||
        (pos->ndim == 2 && pos->shape[0] == x->shape[0] && pos->shape[1] == x->shape[1])))
    return peri__fail(c->ctx, PERI_ESHAPE, "x (B, T, H, D) has shape %s and positions %s; expected (T) or (B, T)",
                      peri__shape_text(x, a, sizeof a), peri__shape_text(pos, b, sizeof b));
  if (f->dtype != PERI_F32 && f->dtype != PERI_F64)
    return peri__fail(c->ctx, PERI_EDTYPE, "inv_freq is %s, expected f32 or f64", peri_dtype_name((peri_dtype)f->dtype));
  if (f->ndim != 1 || 2 * f->shape[0] > x->shape[3])
    return peri__fail(c->ctx, PERI_ESHAPE, "x has shape %s and inv_freq %s; expected at most half of D frequencies",
                      peri__shape_text(x, a, sizeof a), peri__shape_text(f, b, sizeof b));
  return peri__infer_same(c);
}

/* Choose the table's rows, fill it, turn. */
static peri_status rope_fill (peri_call *c, rope_job *r) {
  int64_t count = r->per_batch ? r->B * r->T : r->T, low = r->pos[0], high = low;
  for (int64_t i = 1; i < count; i++) {
    if (r->pos[i] < low) low = r->pos[i];
    if (r->pos[i] > high) high = r->pos[i];
  }
  if (low < -1000000000 || high > 1000000000)
    return peri__fail(c->ctx, PERI_EINVAL, "positions from %lld to %lld, expected a magnitude of at most 1e9",
                      (long long)low, (long long)high);
  r->ranged = high - low < count;
  r->low = low;
  r->rows = r->ranged ? high - low + 1 : count;
  size_t half = (size_t)(r->rows * r->n) * (r->f64 ? 8 : 4);
  char *table = peri__block_get(c->ctx, 2 * half);
  if (!table) return peri__fail(c->ctx, PERI_ENOMEM, "out of memory for %lld rows of sines", (long long)r->rows);
  r->c = table;
  r->s = table + half;
  peri__parallel(c->ctx, r->rows, 2048 / (r->n + 1) + 1, rope_table, r);
  peri__parallel(c->ctx, r->B * r->T, 16384 / (r->H * r->D) + 1, rope_range, r);
  peri__block_put(c->ctx, table, 2 * half);
  return PERI_OK;
}

static peri_status rope_cpu (peri_call *c) {
  peri_tensor *x = c->in[0], *dense = NULL, *pos = NULL, *freq = NULL;
  peri_status s = PERI_OK;
  if (x->numel == 0) return PERI_OK;
  if (x->stride[3] != 1 && x->shape[3] > 1) TRY(peri__contiguous(x, &dense));
  s = peri__contiguous(c->in[1], &pos);
  if (s == PERI_OK && c->in[2]->dtype == x->dtype) s = peri__contiguous(c->in[2], &freq);
  else if (s == PERI_OK) s = peri__cast(c->in[2], (peri_dtype)x->dtype, &freq);
  if (s == PERI_OK) {
    rope_job r = { .k = c->ctx->cpu->nn, .x = dense ? dense : x, .y = c->out[0]->data, .pos = pos->data,
                   .B = x->shape[0], .T = x->shape[1], .H = x->shape[2], .D = x->shape[3], .n = freq->shape[0],
                   .per_batch = pos->ndim == 2, .f64 = x->dtype == PERI_F64, .interleaved = c->attr[0].i != 0,
                   .scale = c->attr[1].f, .inverse = c->attr[2].i != 0, .freq = freq->data };
    s = rope_fill(c, &r);
  }
  peri_release(freq);
  peri_release(pos);
  peri_release(dense);
  return s;
}

static void rope_vjp (peri_vjp *v) {
  const peri_attr *a = v->c->attr;
  v->gin[0] = BA(&v->b, rope, ATTR(A_INT(a[0].i), A_NUM(a[1].f), A_INT(!a[2].i)), v->g[0], v->c->in[1], v->c->in[2]);
}

static void rope_cost (const peri_call *c, double *flops, double *bytes) {
  *flops = 3.0 * (double)c->in[0]->numel;
  *bytes = 2.0 * (double)c->in[0]->numel * (double)peri__size(c->in[0]);
}

OP(rope, .sig = "x, positions, inv_freq, interleaved:bool=false, scale:num=1, inverse:bool=false",
   .doc = "Rotates the first 2 len(inv_freq) channels of x (B, T, H, D) by positions * inv_freq, halves paired or "
          "neighbours (interleaved); positions i64 (T) or (B, T) (arXiv:2104.09864).",
   .flags = PERI_OP_STRIDED | PERI_OP_UPCAST, .infer = rope_infer, .cpu = rope_cpu, .vjp = rope_vjp,
   .cost = rope_cost, .domain = "x.shape=2,3,2,4; positions=int:0..9; positions.shape=3; inv_freq=f32:0..2; inv_freq.shape=2");

/* ---- kv_append_ ---- */

typedef struct append_job {
  const peri_tensor *cache[2], *from[2];
  int64_t pos, size;
} append_job;

static void append_range (void *ud, int64_t begin, int64_t end, int worker) {
  const append_job *j = ud;
  int64_t T = j->from[0]->shape[1], H = j->from[0]->shape[2], D = j->from[0]->shape[3], size = j->size;
  (void)worker;
  for (int64_t bt = begin; bt < end; bt++)
    for (int i = 0; i < 2; i++) {
      const peri_tensor *c = j->cache[i], *f = j->from[i];
      int64_t b = bt / T, t = bt % T;
      char *to = (char *)c->data + (b * c->stride[0] + (j->pos + t) * c->stride[1]) * size;
      const char *from = (const char *)f->data + (b * f->stride[0] + t * f->stride[1]) * size;
      if (c->stride[3] == 1 && f->stride[3] == 1 && (H == 1 || (c->stride[2] == D && f->stride[2] == D))) {
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
    if (memcmp(t->shape, like->shape, 4 * sizeof *t->shape) != 0 || t->shape[0] != cache->shape[0] ||
        memcmp(t->shape + 2, cache->shape + 2, 2 * sizeof *t->shape) != 0)
      return peri__fail(c->ctx, PERI_ESHAPE, "caches (B, Tmax, H, D) have shape %s and %s %s; expected (B, %s, H, D)",
                        peri__shape_text(cache, a, sizeof a), names[i], peri__shape_text(t, b, sizeof b), i < 2 ? "Tmax" : "T");
    TRY(peri__want_dtype(c, i, names[i], cache->dtype));
  }
  if (pos < 0 || pos > cache->shape[1] || k->shape[1] > cache->shape[1] - pos)
    return peri__fail(c->ctx, PERI_EINVAL, "%lld tokens at position %lld do not fit into a cache of %lld",
                      (long long)k->shape[1], (long long)pos, (long long)cache->shape[1]);
  return PERI_OK;
}

static peri_status append_cpu (peri_call *c) {
  append_job j = { { c->in[0], c->in[1] }, { c->in[2], c->in[3] }, c->attr[0].i, (int64_t)peri__size(c->in[0]) };
  const peri_tensor *k = c->in[2];
  if (k->numel > 0)
    peri__parallel(c->ctx, k->shape[0] * k->shape[1], 16384 / (k->shape[2] * k->shape[3]) + 1, append_range, &j);
  return PERI_OK;
}

OPN(kv_append_, 0, .sig = "cache_k, cache_v, k, v, pos:pos",
    .doc = "Writes k, v (B, T, H, D) into the caches (B, Tmax, H, D) from position pos on.",
    .flags = PERI_OP_INPLACE | PERI_OP_STRIDED, .infer = append_infer, .cpu = append_cpu);
