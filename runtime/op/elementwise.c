/*
** elementwise.c - the driver of elementwise kernels. Dense arrays of a compute type go straight
** through; everything else is cut into blocks that fit the first cache, each input loaded
** (gathered, converted) into a buffer of the worker where it cannot be read in place.
*/
#include "op/elementwise.h"

#include <string.h>

#include "op/move.h"
#include "weight/weight.h"

#define BLOCK 512 /* elements of a buffer */
#define RUN 64    /* a run of the last dim that is worth a kernel call of its own */

/* One operand. Strides are those of the merged dims. */
typedef struct side {
  char *data;
  int dtype, type;
  size_t size;
  int64_t stride[PERI_MAX_DIMS];
  bool linear, constant; /* the dtype is the compute type and it lies dense, or is one element */
  bool periodic;         /* the same for every run of the last dim */
} side;

typedef struct walk {
  const peri__loop *l;
  const struct peri__math_kernels *k;
  int ndim; /* merged dims, at least 1 */
  int64_t shape[PERI_MAX_DIMS], dense[PERI_MAX_DIMS];
  side side[4];    /* inputs, then the output at nin */
  double value[3]; /* single elements, converted */
} walk;

/* ---- dense ---- */

typedef struct dense {
  const peri__loop *l;
  const char *in[3];
  int64_t step[3];
  size_t size[3], out_size;
  char *out;
} dense;

static void dense_range (void *ud, int64_t begin, int64_t end, int worker) {
  const dense *d = ud;
  const void *in[3];
  (void)worker;
  for (int i = 0; i < d->l->nin; i++) in[i] = d->in[i] + (size_t)(begin * d->step[i]) * d->size[i];
  d->l->fn(end - begin, in, d->step, d->out + (size_t)begin * d->out_size, d->l->p);
}

/* ---- anything else ---- */

typedef struct place {
  int64_t at[PERI_MAX_DIMS];
} place;

static place place_of (const walk *w, int64_t flat) {
  place p;
  for (int i = w->ndim - 1; i >= 0; i--) {
    p.at[i] = flat % w->shape[i];
    flat /= w->shape[i];
  }
  return p;
}

static void advance (const walk *w, place *p, int64_t n) { /* n stays inside the last dim */
  int i = w->ndim - 1;
  p->at[i] += n;
  for (; i > 0 && p->at[i] == w->shape[i]; i--) {
    p->at[i] = 0;
    p->at[i - 1]++;
  }
}

static char *address (const walk *w, const side *s, const place *p) {
  int64_t off = 0;
  for (int i = 0; i < w->ndim; i++) off += p->at[i] * s->stride[i];
  return s->data + off * (int64_t)s->size;
}

/* n elements from place p on, run by run, between buf and the tensor. */
static void gather (const walk *w, const side *s, place p, int64_t n, char *buf) {
  size_t size = peri_dtype_size((peri_dtype)s->type);
  int last = w->ndim - 1;
  if (s->periodic && n > w->shape[last] && p.at[last] == 0) { /* one run, then doubled */
    int64_t have = w->shape[last];
    peri__load(w->k, s->type, buf, s->dtype, s->data, s->stride[last], have);
    for (; have < n; have *= 2)
      memcpy(buf + (size_t)have * size, buf, (size_t)(n - have < have ? n - have : have) * size);
    return;
  }
  while (n > 0) {
    int64_t m = w->shape[last] - p.at[last];
    if (m > n) m = n;
    peri__load(w->k, s->type, buf, s->dtype, address(w, s, &p), s->stride[last], m);
    buf += (size_t)m * size;
    n -= m;
    advance(w, &p, m);
  }
}
static void scatter (const walk *w, const side *s, place p, int64_t n, const char *buf) {
  size_t size = peri_dtype_size((peri_dtype)s->type);
  int last = w->ndim - 1;
  while (n > 0) {
    int64_t m = w->shape[last] - p.at[last];
    if (m > n) m = n;
    peri__store(w->k, s->dtype, address(w, s, &p), s->stride[last], s->type, buf, m);
    buf += (size_t)m * size;
    n -= m;
    advance(w, &p, m);
  }
}

static void walk_range (void *ud, int64_t begin, int64_t end, int worker) {
  const walk *w = ud;
  const peri__loop *l = w->l;
  const side *out = &w->side[l->nin];
  int last = w->ndim - 1;
  place p = place_of(w, begin);
  int64_t buffer[4][BLOCK], filled[3] = { 0, 0, 0 }; /* of periodic inputs, from a run's begin */
  (void)worker;
  while (begin < end) {
    const void *in[3];
    int64_t step[3], n = end - begin < BLOCK ? end - begin : BLOCK;
    int64_t run = w->shape[last] - p.at[last];
    bool whole = run >= RUN || w->ndim == 1; /* stay in this run: unit strides are read in place */
    if (whole && n > run) n = run;
    if (!whole && n > run) n = p.at[last] ? run : n / run * run;
    for (int i = 0; i < l->nin; i++) {
      const side *s = &w->side[i];
      int64_t unit = s->stride[last];
      step[i] = 1;
      if (s->constant) {
        in[i] = s->data;
        step[i] = 0;
      } else if (s->linear || (whole && s->dtype == s->type && (unit == 1 || unit == 0))) {
        in[i] = address(w, s, &p);
        if (!s->linear) step[i] = unit;
      } else {
        in[i] = buffer[i];
        if (filled[i] >= n && p.at[last] == 0) continue;
        gather(w, s, p, n, (char *)buffer[i]);
        filled[i] = s->periodic && !whole && p.at[last] == 0 ? n : 0;
      }
    }
    if (out->linear || (whole && out->dtype == out->type && out->stride[last] == 1)) {
      l->fn(n, in, step, address(w, out, &p), l->p);
    } else {
      l->fn(n, in, step, buffer[3], l->p);
      scatter(w, out, p, n, (const char *)buffer[3]);
    }
    begin += n;
    if (whole)
      advance(w, &p, n);
    else
      p = place_of(w, begin);
  }
}

/* Drop dims of one and merge neighbours that every operand walks as one. */
static void merge_dims (walk *w, int nside, const peri_tensor *out, peri_tensor *const *in) {
  int n = 0;
  for (int i = 0; i < out->ndim; i++) {
    if (out->shape[i] == 1) continue;
    int64_t stride[4];
    bool merge = n > 0;
    for (int k = 0; k < nside; k++) {
      stride[k] = k == nside - 1 ? out->stride[i] : peri__bstride(in[k], out->ndim, i);
      merge = merge && w->side[k].stride[n - 1] == stride[k] * out->shape[i];
    }
    if (!merge) w->shape[n++] = 1;
    w->shape[n - 1] *= out->shape[i];
    for (int k = 0; k < nside; k++) w->side[k].stride[n - 1] = stride[k];
  }
  if (n == 0) {
    w->shape[n++] = 1;
    for (int k = 0; k < nside; k++) w->side[k].stride[0] = 1;
  }
  w->ndim = n;
  peri__dense_strides(n, w->shape, w->dense);
}

static void walk_all (peri_ctx *ctx, const peri__loop *l, peri_tensor *const *in,
                      peri_tensor *out) {
  walk w = { .l = l, .k = ctx->cpu->math };
  merge_dims(&w, l->nin + 1, out, in);
  for (int i = 0; i <= l->nin; i++) {
    const peri_tensor *t = i < l->nin ? in[i] : out;
    side *s = &w.side[i];
    s->data = t->data;
    s->dtype = t->dtype;
    s->type = i < l->nin ? l->in_type[i] : l->out_type;
    s->size = peri__size(t);
    s->periodic = true;
    for (int d = 0; d < w.ndim - 1; d++) s->periodic = s->periodic && s->stride[d] == 0;
    s->linear =
        s->dtype == s->type && memcmp(s->stride, w.dense, (size_t)w.ndim * sizeof *w.dense) == 0;
    if (i < l->nin && t->numel == 1) {
      peri__load(w.k, s->type, &w.value[i], s->dtype, t->data, 1, 1);
      s->data = (char *)&w.value[i];
      s->constant = true;
    }
  }
  peri__parallel(ctx, out->numel, l->grain, walk_range, &w);
}

int peri__unit_dim (const peri_tensor *t) {
  int last = t->ndim - 1, unit = -1;
  if (last < 1 || t->stride[last] == 1 || t->shape[last] < 4) return -1;
  for (int i = 0; i < last; i++)
    if (t->stride[i] == 1 && t->shape[i] >= 4) unit = i;
  return unit;
}

/* A big input that runs across its memory is read through a dense copy: copies are tiled. */
static bool crosswise (const peri_tensor *t, int64_t n) {
  return t->numel == n && n >= 4096 && t->ndim > 1 && t->stride[t->ndim - 1] > 8 &&
         t->shape[t->ndim - 1] > 1 && peri__unit_dim(t) >= 0;
}

static peri_status walk_copies (peri_ctx *ctx, const peri__loop *l, peri_tensor *const *in,
                                peri_tensor *out) {
  peri_tensor *use[3];
  peri_status s = PERI_OK;
  int made = 0;
  for (; made < l->nin && s == PERI_OK; made++) {
    use[made] = NULL;
    if (in[made] != out && crosswise(in[made], out->numel))
      s = peri__contiguous(in[made], &use[made]);
    else
      use[made] = peri_retain(in[made]);
  }
  if (s == PERI_OK) walk_all(ctx, l, use, out);
  while (made > 0) peri_release(use[--made]);
  return s;
}

peri_status peri__elementwise (peri_ctx *ctx, const peri__loop *l, peri_tensor *const *in,
                               peri_tensor *out) {
  dense d;
  double value[3];
  int64_t n = out->numel;
  if (n == 0) return PERI_OK;
  d.l = l;
  d.out = out->data;
  d.out_size = peri__size(out);
  bool good = out->dtype == l->out_type && peri__dense(out), copy = false;
  for (int i = 0; i < l->nin; i++) {
    const peri_tensor *t = in[i];
    d.in[i] = t->data;
    d.step[i] = 1;
    if (t->numel == n && t->dtype == l->in_type[i] && peri__dense(t)) {
      d.size[i] = peri__size(t);
    } else if (t->numel == 1) {
      peri__load(ctx->cpu->math, l->in_type[i], &value[i], t->dtype, t->data, 1, 1);
      d.in[i] = (const char *)&value[i];
      d.step[i] = 0;
      d.size[i] = 0;
    } else {
      good = false;
      copy = copy || (t != out && crosswise(t, n));
    }
  }
  if (!good && copy) return walk_copies(ctx, l, in, out);
  if (!good)
    walk_all(ctx, l, in, out);
  else if (n <= l->grain)
    dense_range(&d, 0, n, 0);
  else
    peri__parallel(ctx, n, l->grain, dense_range, &d);
  return PERI_OK;
}

peri_status peri__infer_broadcast (peri_call *c, int n, int d) {
  int ndim = c->in[0]->ndim;
  int64_t shape[PERI_MAX_DIMS];
  bool same = true;
  for (int i = 1; i < n && same; i++)
    same = c->in[i]->ndim == 0 || peri__same_shape(c->in[0], c->in[i]);
  if (same) return peri__new(c->ctx, (peri_dtype)d, ndim, c->in[0]->shape, &c->out[0]);
  TRY(peri__broadcast(c->ctx, c->in[0], c->in[1], &ndim, shape));
  if (n == 3) {
    peri_tensor partial = { .ndim = (uint8_t)ndim };
    memcpy(partial.shape, shape, (size_t)ndim * sizeof *shape);
    TRY(peri__broadcast(c->ctx, &partial, c->in[2], &ndim, shape));
  }
  return peri__new(c->ctx, (peri_dtype)d, ndim, shape, &c->out[0]);
}
