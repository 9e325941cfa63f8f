/*
** move.c - threaded strided copies, fills, and the reading of index tensors. Nothing here makes a
** tensor that anyone sees, and nothing knows an op.
*/
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/element.h"
#include "op/move.h"

#define GRAIN 32768 /* elements: below this a second thread costs more than it saves */

typedef struct box {
  int ndim; /* without the last dim */
  int turn; /* see turn_range */
  int64_t shape[PERI_MOVE_DIMS], ds[PERI_MOVE_DIMS], ss[PERI_MOVE_DIMS];
  int64_t n, dn, sn; /* the last dim: size and strides */
  size_t size;
  char *dst;
  const char *src;
} box;

static bool same_bytes (const char *s, size_t size) {
  for (size_t i = 1; i < size; i++)
    if (s[i] != s[0]) return false;
  return true;
}

static void copy_run (size_t size, char *d, int64_t dn, const char *s, int64_t sn, int64_t n) {
  if (dn == 1 && sn == 1) {
    memcpy(d, s, (size_t)n * size);
    return;
  }
  if (dn == 1 && sn == 0 && same_bytes(s, size)) {
    memset(d, s[0], (size_t)n * size);
    return;
  }
  switch (size) {
#define RUN(type)                                            \
  {                                                          \
    type *dt = (type *)(void *)d;                            \
    const type *st = (const type *)(const void *)s;          \
    for (int64_t i = 0; i < n; i++) dt[i * dn] = st[i * sn]; \
  }                                                          \
  break
  case 1: RUN(uint8_t);
  case 2: RUN(uint16_t);
  case 4: RUN(uint32_t);
  default: RUN(uint64_t);
#undef RUN
  }
}

/* Elements [begin, end) of the box in row-major order. */
static void box_range (void *ud, int64_t begin, int64_t end, int worker) {
  const box *x = ud;
  (void)worker;
  int64_t at[PERI_MOVE_DIMS];
  int64_t row = begin / x->n, col = begin % x->n, doff = 0, soff = 0;
  for (int i = x->ndim - 1; i >= 0; i--) {
    at[i] = row % x->shape[i];
    row /= x->shape[i];
    doff += at[i] * x->ds[i];
    soff += at[i] * x->ss[i];
  }
  int64_t size = (int64_t)x->size;
  while (begin < end) {
    int64_t n = x->n - col < end - begin ? x->n - col : end - begin;
    copy_run(x->size, x->dst + (doff + col * x->dn) * size, x->dn,
             x->src + (soff + col * x->sn) * size, x->sn, n);
    begin += n;
    col = 0;
    for (int i = x->ndim - 1; i >= 0; i--) {
      doff += x->ds[i];
      soff += x->ss[i];
      if (++at[i] < x->shape[i]) break;
      doff -= at[i] * x->ds[i];
      soff -= at[i] * x->ss[i];
      at[i] = 0;
    }
  }
}

#define SIDE 16 /* of a tile: a cache line of f32 */

/* A transposed copy: the last dim is dense in dst, dim turn in src. Blocks [begin, end) of SIDE
** positions of dim turn, for each place in the other dims; the last dim goes by tiles, so that a
** line of src is still cached when its next element is wanted. */
static void turn_range (void *ud, int64_t begin, int64_t end, int worker) {
  const box *x = ud;
  (void)worker;
  int64_t size = (int64_t)x->size, wide = x->shape[x->turn], blocks = (wide + SIDE - 1) / SIDE;
  for (int64_t unit = begin; unit < end; unit++) {
    int64_t from = unit % blocks * SIDE, place = unit / blocks;
    int64_t to = from + SIDE < wide ? from + SIDE : wide, doff = 0, soff = 0;
    for (int i = x->ndim - 1; i >= 0; i--) {
      if (i == x->turn) continue;
      int64_t at = place % x->shape[i];
      place /= x->shape[i];
      doff += at * x->ds[i];
      soff += at * x->ss[i];
    }
    for (int64_t j = 0; j < x->n; j += SIDE)
      for (int64_t i = from; i < to; i++)
        copy_run(x->size, x->dst + (doff + i * x->ds[x->turn] + j) * size, 1,
                 x->src + (soff + i + j * x->sn) * size, x->sn, x->n - j < SIDE ? x->n - j : SIDE);
  }
}

void peri__move (peri_ctx *ctx, size_t size, int ndim, const int64_t *shape, void *dst,
                 const int64_t *dstride, const void *src, const int64_t *sstride) {
  box x = { .size = size, .dst = dst, .src = src };
  int64_t total = 1;
  int n = 0;
  for (int i = 0; i < ndim; i++) { /* drop dims of one, merge neighbours that walk as one */
    total *= shape[i];
    if (shape[i] == 1) continue;
    if (n > 0 && x.ds[n - 1] == dstride[i] * shape[i] && x.ss[n - 1] == sstride[i] * shape[i]) {
      x.shape[n - 1] *= shape[i];
      x.ds[n - 1] = dstride[i];
      x.ss[n - 1] = sstride[i];
    } else {
      x.shape[n] = shape[i];
      x.ds[n] = dstride[i];
      x.ss[n++] = sstride[i];
    }
  }
  if (total == 0) return;
  if (n == 0) {
    x.n = x.dn = x.sn = 1;
  } else {
    n--;
    x.n = x.shape[n];
    x.dn = x.ds[n];
    x.sn = x.ss[n];
  }
  x.ndim = n;
  for (x.turn = n - 1; x.turn >= 0 && x.ss[x.turn] != 1; x.turn--) {}
  if (x.turn < 0 || x.dn != 1 || x.sn <= 1 || x.shape[x.turn] < 16 || x.n < 16) {
    peri__parallel(ctx, total, GRAIN, box_range, &x);
  } else {
    int64_t blocks = (x.shape[x.turn] + SIDE - 1) / SIDE;
    peri__parallel(ctx, total / x.n / x.shape[x.turn] * blocks, GRAIN / SIDE / x.n + 1, turn_range,
                   &x);
  }
}

void peri__fill (peri_ctx *ctx, size_t size, void *dst, int64_t n, const void *value) {
  int64_t one = 1, none = 0;
  peri__move(ctx, size, 1, &n, dst, &one, value, &none);
}

bool peri__whole (const peri_attr *a, int64_t *out) {
  bool fits = a->whole || (a->f >= -0x1p63 && a->f < 0x1p63 && a->f == trunc(a->f));
  *out = a->whole ? a->i : fits ? (int64_t)a->f : 0;
  return fits;
}

const char *peri__num_text (const peri_attr *a, char *buf, size_t size) {
  int64_t i;
  if (peri__whole(a, &i))
    snprintf(buf, size, "%" PRId64, i);
  else if (a->f != a->f)
    snprintf(buf, size, "nan");
  else
    snprintf(buf, size, "%g", a->f);
  return buf;
}

peri_status peri__element (peri_ctx *ctx, int d, const peri_attr *a, void *out) {
  char text[32];
  int64_t low, top;
  peri__value v = { a->i, a->whole ? (double)a->i : a->f, a->whole };
  if (d != PERI_BOOL && peri__element_range(d, &low, &top)) {
    v.whole = peri__whole(a, &v.i);
    if (!v.whole || v.i < low || v.i > top)
      return peri__fail(ctx, PERI_EINVAL, "%s does not fit into %s",
                        peri__num_text(a, text, sizeof text), peri_dtype_name((peri_dtype)d));
  }
  peri__element_put(d, out, v);
  return PERI_OK;
}

peri_status peri__number_fits (const peri_call *c, int i, int d) {
  const peri_tensor *t = c->in[i];
  uint64_t element;
  if (!t || !(t->flags & PERI_T_WEAK) || t->numel != 1 || peri__is_float(d)) return PERI_OK;
  peri_attr a = { 0 };
  if (t->dtype == PERI_I64) {
    a.whole = true;
    a.i = *(const int64_t *)t->data;
  } else
    a.f = *(const double *)t->data;
  return peri__element(c->ctx, d, &a, &element);
}

void peri__dense_strides (int ndim, const int64_t *shape, int64_t *stride) {
  int64_t s = 1;
  for (int i = ndim - 1; i >= 0; i--) {
    stride[i] = s;
    s *= shape[i] > 0 ? shape[i] : 1;
  }
}

peri_status peri__indices (peri_ctx *ctx, peri_tensor *t, const char *name, int64_t limit,
                           peri_indices *out) {
  peri_indices x = { .n = t->numel };
  if (t->dtype != PERI_I64 && t->dtype != PERI_I32 && t->dtype != PERI_U8)
    return peri__fail(ctx, PERI_EDTYPE, "%s has dtype %s; wanted i64, i32 or u8", name,
                      peri_dtype_name((peri_dtype)t->dtype));
  TRY(peri__contiguous(t, &x.dense));
  if (t->dtype == PERI_I64) {
    x.v = x.dense->data;
  } else {
    x.own = peri__block_get(ctx, (size_t)x.n * sizeof *x.own);
    if (x.own == NULL && x.n > 0) {
      peri__indices_free(ctx, &x);
      return peri__fail(ctx, PERI_ENOMEM, "no memory for %" PRId64 " indices", x.n);
    }
    const int32_t *i32 = x.dense->data;
    const uint8_t *u8 = x.dense->data;
    for (int64_t i = 0; i < x.n; i++) x.own[i] = t->dtype == PERI_I32 ? i32[i] : u8[i];
    x.v = x.own;
  }
  for (int64_t i = 0; i < x.n; i++) {
    int64_t v = x.v[i];
    if (v >= 0 && v < limit) continue;
    peri__indices_free(ctx, &x);
    if (limit == 0)
      return peri__fail(ctx, PERI_EINVAL, "%s holds %" PRId64 " but there is nothing to index",
                        name, v);
    return peri__fail(ctx, PERI_EINVAL,
                      "%s holds %" PRId64 " at flat position %" PRId64
                      " (from 0); valid values are 0 to %" PRId64,
                      name, v, i, limit - 1);
  }
  *out = x;
  return PERI_OK;
}

void peri__indices_free (peri_ctx *ctx, peri_indices *x) {
  peri_release(x->dense);
  if (x->own != NULL) peri__block_put(ctx, x->own);
  *x = (peri_indices){ 0 };
}
