/* rows.c - class ids, and the row kernels by dtype: SIMD for f32, plain loops for f64. */
#include "op/rows.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>

int64_t peri__id_at (const peri_tensor *t, int64_t i) {
  switch (t->dtype) {
  case PERI_I64: return ((const int64_t *)t->data)[i];
  case PERI_I32: return ((const int32_t *)t->data)[i];
  default: return ((const uint8_t *)t->data)[i];
  }
}

peri_status peri__ids_shape (peri_call *c, const peri_tensor *ids, const char *name,
                             const peri_tensor *x, const char *xname) {
  char a[128], b[128];
  bool good = x->ndim >= 1 && ids->ndim == x->ndim - 1;
  if (ids->dtype != PERI_I64 && ids->dtype != PERI_I32 && ids->dtype != PERI_U8)
    return peri__fail(c->ctx, PERI_EDTYPE, "%s is %s, expected i64, i32 or u8", name,
                      peri_dtype_name((peri_dtype)ids->dtype));
  for (int d = 0; good && d < ids->ndim; d++) good = ids->shape[d] == x->shape[d];
  if (good) return PERI_OK;
  return peri__fail(c->ctx, PERI_ESHAPE,
                    "%s has shape %s, expected that of %s %s without the last dim", name,
                    peri__shape_text(ids, a, sizeof a), xname, peri__shape_text(x, b, sizeof b));
}

peri_status peri__ids_check (peri_call *c, const peri_tensor *ids, const char *name, int64_t n,
                             int64_t ignore, int64_t *active) {
  *active = 0;
  for (int64_t i = 0; i < ids->numel; i++) {
    int64_t id = peri__id_at(ids, i);
    if (id == ignore) continue;
    if (id < 0 || id >= n)
      return peri__fail(c->ctx, PERI_EINVAL,
                        "%s at flat position %" PRId64 " (from 0) is %" PRId64
                        ", expected 0 to %" PRId64 " or the ignored id %" PRId64,
                        name, i, id, n - 1, ignore);
    ++*active;
  }
  return PERI_OK;
}

peri__rows peri__rows_of (const peri_ctx *ctx, int dtype, double temperature) {
  bool f64 = dtype == PERI_F64;
  /* neither 0 nor infinite, also after rounding: -inf * 0 and 0 * inf are NaN */
  double most = f64 ? DBL_MAX : FLT_MAX, least = f64 ? DBL_MIN : FLT_MIN;
  double scale = fmin(fmax(1 / temperature, least), most);
  return (peri__rows){ .k = ctx->cpu->loss,
                       .f64 = f64,
                       .size = f64 ? 8 : 4,
                       .scale = f64 ? scale : (double)(float)scale };
}

static void stat64 (const double *x, int64_t n, double scale, double *e, peri__row *out) {
  double max = -INFINITY, sum = 0, dot = 0;
  for (int64_t i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
  for (int64_t i = 0; i < n; i++) {
    double d = (x[i] - max) * scale;
    if (d < -800) d = -800;
    double v = exp(d);
    sum += v;
    dot += v * d;
    if (e) e[i] = v;
  }
  *out = (peri__row){ .max = max, .sum = sum, .dot = dot };
}

void peri__rows_stat (const peri__rows *r, const void *x, int64_t n, void *e, peri__row *out) {
  if (r->f64)
    stat64(x, n, r->scale, e, out);
  else
    r->k->row(x, n, (float)r->scale, e, out);
}

double peri__rows_sum (const peri__rows *r, const void *x, int64_t n) {
  double sum = 0;
  if (!r->f64) return r->k->row_sum(x, n);
  for (int64_t i = 0; i < n; i++) sum += ((const double *)x)[i];
  return sum;
}

void peri__rows_grad (const peri__rows *r, const void *x, int64_t n, const peri__row_grad *g,
                      void *out) {
  const double *in = x;
  double *to = out;
  if (!r->f64) {
    r->k->row_grad(x, n, g, out);
    return;
  }
  for (int64_t i = 0; i < n; i++) {
    double l = (in[i] - g->max) * g->scale - g->log_sum;
    if (l < -800) l = -800;
    to[i] = exp(l) * (g->a + g->b * l) + g->c;
  }
}

int64_t peri__rows_pick (const peri__rows *r, const void *e, int64_t n, double u) {
  const double *p = e;
  double total, below = 0;
  int64_t last = -1;
  if (!r->f64) return r->k->pick(e, n, u);
  total = peri__rows_sum(r, e, n);
  if (!(total > 0) || isinf(total)) return -1;
  for (int64_t i = 0; i < n; i++) {
    if (!(p[i] > 0)) continue;
    last = i;
    below += p[i];
    if (below > u * total) break;
  }
  return last;
}

double peri__rows_logp (const peri__rows *r, const peri__row *s, const void *x, int64_t i) {
  return (peri__rows_get(r, x, i) - s->max) * r->scale - log(s->sum);
}

double peri__rows_entropy (const peri__row *s) { return log(s->sum) - s->dot / s->sum; }
