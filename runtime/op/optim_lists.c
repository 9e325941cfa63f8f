/* optim_lists.c - lists of tensors as one range of blocks; see optim.h. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "op/optim.h"

enum { WORTH = 32768 /* elements that are worth a second thread */ };

peri_status peri__rate_check (peri_call *c, const char *name, double v) {
  if (isfinite(v) && v >= 0) return PERI_OK;
  return peri__fail(c->ctx, PERI_EINVAL, "%s is %g, expected a finite number from 0", name, v);
}

bool peri__multi_given (const peri_call *c, int k) {
  for (int i = 0; i < c->list[k].count; i++)
    if (c->in[c->list[k].start + i]) return true;
  return false;
}

/* Is the k-th list that of the gradients which the parameters, list 0, have themselves? */
static bool own_grads (const peri_call *c, int k) {
  return k == 1 && strcmp(c->sig->p[k].name, "grads") == 0 && !peri__multi_given(c, k);
}
static peri_tensor *entry (const peri_call *c, int k, int i, bool own) {
  return own ? c->in[c->list[0].start + i]->grad : c->in[c->list[k].start + i];
}

static peri_status check_one (peri_call *c, const char *const *names, int k, int i, bool own) {
  const peri_tensor *p = c->in[c->list[0].start + i], *t = entry(c, k, i, own);
  char a[128], b[128];
  if (!t && own)
    return peri__fail(c->ctx, PERI_EINVAL, "grads are left out, and %s %s has no gradient",
                      names[0], peri__nth(c->ctx, i));
  if (!t)
    return peri__fail(c->ctx, PERI_EINVAL, "%s %s is missing", names[k], peri__nth(c->ctx, i));
  if (t->dtype != PERI_F32 && t->dtype != PERI_F64)
    return peri__fail(c->ctx, PERI_EDTYPE, "%s %s is %s, expected f32 or f64", names[k],
                      peri__nth(c->ctx, i), peri_dtype_name((peri_dtype)t->dtype));
  if (t->dtype != c->in[c->list[0].start]->dtype)
    return peri__fail(c->ctx, PERI_EDTYPE, "%s %s is %s, but %s %s is %s: expected one dtype",
                      names[k], peri__nth(c->ctx, i), peri_dtype_name((peri_dtype)t->dtype),
                      names[0], peri__nth(c->ctx, 0),
                      peri_dtype_name((peri_dtype)c->in[c->list[0].start]->dtype));
  if (t->ndim != p->ndim || memcmp(t->shape, p->shape, (size_t)p->ndim * sizeof *p->shape) != 0)
    return peri__fail(c->ctx, PERI_ESHAPE, "%s %s has shape %s, but %s %s has %s", names[k],
                      peri__nth(c->ctx, i), peri__shape_text(t, a, sizeof a), names[0],
                      peri__nth(c->ctx, i), peri__shape_text(p, b, sizeof b));
  if ((c->op->writes >> k & 1) && !peri__dense(t))
    return peri__fail(c->ctx, PERI_EINVAL, "%s %s is written in place and must be dense", names[k],
                      peri__nth(c->ctx, i));
  return PERI_OK;
}

peri_status peri__multi_check (peri_call *c, const char *const *names, unsigned optional) {
  for (int k = 0; k < c->sig->nlist; k++) {
    if ((optional >> k & 1) && !peri__multi_given(c, k)) continue;
    if (c->list[k].count != c->list[0].count)
      return peri__fail(c->ctx, PERI_EINVAL, "%d %s for %d %s", c->list[k].count, names[k],
                        c->list[0].count, names[0]);
    bool own = own_grads(c, k);
    for (int i = 0; i < c->list[k].count; i++) TRY(check_one(c, names, k, i, own));
  }
  return PERI_OK;
}

static int64_t blocks_of (const peri_tensor *t) {
  return (t->numel + PERI_MULTI_BLOCK - 1) / PERI_MULTI_BLOCK;
}

void peri__multi_close (peri__multi *m) {
  for (int i = 0; m->held && i < m->n * m->nlist; i++) peri_release(m->held[i]);
  peri__block_put(m->ctx, m->first);
  peri__block_put(m->ctx, m->data);
  peri__block_put(m->ctx, m->held);
  peri__block_put(m->ctx, m->acc);
}

static peri_status get_memory (peri__multi *m) {
  size_t cells = (size_t)m->n * (size_t)m->nlist;
  m->first_bytes = (size_t)(m->n + 1) * sizeof *m->first;
  m->data_bytes = cells * sizeof *m->data;
  m->acc_bytes = (size_t)m->blocks * 2 * sizeof *m->acc;
  m->first = peri__block_get(m->ctx, m->first_bytes);
  if (cells > 0) m->data = peri__block_get(m->ctx, m->data_bytes);
  if (cells > 0) m->held = peri__block_get(m->ctx, m->data_bytes);
  if (m->blocks > 0) m->acc = peri__block_get(m->ctx, m->acc_bytes);
  if (m->held) memset(m->held, 0, m->data_bytes);
  if (m->first && (cells == 0 || (m->data && m->held)) && (m->blocks == 0 || m->acc))
    return PERI_OK;
  return peri__fail(m->ctx, PERI_ENOMEM, "no memory for lists of %d tensors", m->n);
}

peri_status peri__multi_open (peri_call *c, peri__multi *m) {
  peri_tensor *const *in = c->in + c->list[0].start;
  *m = (peri__multi){ .ctx = c->ctx, .in = in, .n = c->list[0].count, .nlist = c->sig->nlist };
  m->f64 = m->n > 0 && in[0]->dtype == PERI_F64;
  m->size = m->f64 ? 8 : 4;
  m->k = m->f64 ? &peri__steps_f64 : c->ctx->cpu->loss;
  for (int i = 0; i < m->n; i++) {
    m->blocks += blocks_of(in[i]);
    m->total += in[i]->numel;
  }
  peri_status s = get_memory(m);
  for (int k = 0; k < m->nlist && s == PERI_OK; k++) {
    bool own = own_grads(c, k);
    for (int i = 0; i < m->n && s == PERI_OK; i++) {
      peri_tensor *t = entry(c, k, i, own);
      int at = k * m->n + i;
      if (t && !peri__dense(t)) s = peri__contiguous(t, &m->held[at]);
      m->data[at] = s != PERI_OK || !t ? NULL : m->held[at] ? m->held[at]->data : t->data;
    }
  }
  if (s != PERI_OK) {
    peri__multi_close(m);
    return s;
  }
  m->first[0] = 0;
  for (int i = 0; i < m->n; i++) m->first[i + 1] = m->first[i] + blocks_of(in[i]);
  return PERI_OK;
}

typedef struct job {
  const peri__multi *m;
  peri__step_fn fn;
  const char *order; /* which lists of m, in the order that fn wants them */
  const peri__step *steps;
  bool each;
} job;

static void run_blocks (void *ud, int64_t begin, int64_t end, int worker) {
  const job *j = ud;
  const peri__multi *m = j->m;
  int low = 0, high = m->n - 1; /* the tensor that block begin lies in */
  (void)worker;
  while (low < high) {
    int mid = low + (high - low + 1) / 2;
    if (m->first[mid] <= begin)
      low = mid;
    else
      high = mid - 1;
  }
  for (int64_t b = begin; b < end; b++) {
    while (b >= m->first[low + 1]) low++;
    int64_t at = (b - m->first[low]) * PERI_MULTI_BLOCK, left = m->in[low]->numel - at;
    void *p[4] = { NULL };
    for (int k = 0; j->order[k] != 0; k++) {
      const char *base = m->data[(j->order[k] - '0') * m->n + low];
      if (base) p[k] = (void *)(base + (size_t)at * m->size);
    }
    double *acc = m->acc + 2 * b;
    acc[0] = acc[1] = 0;
    j->fn(&j->steps[j->each ? low : 0], p, left < PERI_MULTI_BLOCK ? left : PERI_MULTI_BLOCK, acc);
  }
}

void peri__multi_run (peri__multi *m, peri__step_fn fn, const char *order, const peri__step *steps,
                      bool each) {
  job j = { .m = m, .fn = fn, .order = order, .steps = steps, .each = each };
  int64_t grain = m->total < WORTH ? m->blocks : WORTH * m->blocks / m->total;
  for (int64_t b = 0; b < m->blocks; b++) m->acc[2 * b] = -1;
  peri__parallel(m->ctx, m->blocks, grain, run_blocks, &j);
  /* an interrupt must not leave half of the parameters stepped */
  for (int64_t b = 0; b < m->blocks; b++)
    if (m->acc[2 * b] < 0) run_blocks(&j, b, b + 1, 0);
}

double peri__multi_sum (const peri__multi *m, int tensor, int k) {
  int64_t begin = tensor < 0 ? 0 : m->first[tensor], end = m->first[tensor < 0 ? m->n : tensor + 1];
  double sum = 0;
  for (int64_t b = begin; b < end; b++) sum += m->acc[2 * b + k];
  return sum;
}
