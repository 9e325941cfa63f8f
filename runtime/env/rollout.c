/* rollout.c - steps of several environments that are learnt from and filled again. */
#include "env/draw.h"
#include "env/fields.h"
#include "op/op.h"

struct peri_rollout {
  peri_ctx *ctx;
  int64_t steps, rows;
  int nfields;
  peri__field field[PERI__FIELDS_MAX];
  peri_tensor *store[PERI__FIELDS_MAX];
};

static int shape_of (const peri_rollout *r, int i, int64_t *shape) {
  const peri__field *f = &r->field[i];
  int64_t lead[2] = { r->steps, r->rows };
  return f->role == PERI_FIELD_START ? peri__field_shape(f, 1, lead + 1, shape)
                                     : peri__field_shape(f, 2, lead, shape);
}

static peri_status fill (peri_rollout *r, int nfields, const peri_field *fields) {
  static const char *const none[] = { NULL };
  size_t total = sizeof *r;
  int64_t n, shape[PERI_MAX_DIMS];
  bool fits = !__builtin_mul_overflow(r->steps, r->rows, &n);
  TRY(peri__fields_take(r->ctx, nfields, fields, none, r->field));
  for (int i = 0; fits && i < nfields; i++)
    fits =
        peri__field_bytes(&r->field[i], r->field[i].role == PERI_FIELD_START ? r->rows : n, &total);
  if (!fits)
    return peri__fail(r->ctx, PERI_ESHAPE, "%lld steps of %lld rows overflow the size in bytes",
                      (long long)r->steps, (long long)r->rows);
  for (r->nfields = 0; r->nfields < nfields; r->nfields++) {
    int i = r->nfields, ndim = shape_of(r, i, shape);
    peri_status s = peri__new(r->ctx, r->field[i].dtype, ndim, shape, &r->store[i]);
    if (s == PERI_ENOMEM)
      return peri__fail(r->ctx, s, "%lld steps of %lld rows need %zu bytes: %s",
                        (long long)r->steps, (long long)r->rows, total, r->ctx->message);
    TRY(s);
    if (peri_nbytes(r->store[i])) memset(r->store[i]->data, 0, peri_nbytes(r->store[i]));
  }
  return PERI_OK;
}

peri_status peri_rollout_open (peri_ctx *ctx, int64_t steps, int64_t rows, int nfields,
                               const peri_field *fields, peri_rollout **out) {
  if (!ctx) return PERI_EINVAL;
  NEED(ctx, out);
  if (steps < 1 || rows < 1)
    return peri__fail(ctx, PERI_EINVAL, "%lld steps of %lld rows: at least 1 of 1 is needed",
                      (long long)steps, (long long)rows);
  peri_rollout *r = peri__malloc(ctx, sizeof *r);
  if (!r) return peri__fail(ctx, PERI_ENOMEM, "out of memory for a rollout");
  memset(r, 0, sizeof *r);
  r->ctx = ctx;
  r->steps = steps;
  r->rows = rows;
  peri_status s = fill(r, nfields, fields);
  if (s != PERI_OK)
    peri_rollout_close(r);
  else
    *out = r;
  return s;
}

void peri_rollout_close (peri_rollout *r) {
  if (!r) return;
  for (int i = 0; i < PERI__FIELDS_MAX; i++) {
    peri_release(r->store[i]);
    peri__field_drop(r->ctx, &r->field[i]);
  }
  peri__free(r->ctx, r, sizeof *r);
}

int peri_rollout_fields (const peri_rollout *r) { return r ? r->nfields : 0; }
const char *peri_rollout_name (const peri_rollout *r, int i) {
  return r && i >= 0 && i < r->nfields ? r->field[i].name : NULL;
}
peri_field_role peri_rollout_role (const peri_rollout *r, int i) {
  return r && i >= 0 && i < r->nfields ? r->field[i].role : PERI_FIELD_STEP;
}
peri_tensor *peri_rollout_tensor (const peri_rollout *r, int i) {
  return r && i >= 0 && i < r->nfields ? r->store[i] : NULL;
}

/* ---- writing ---- */

peri_status peri_rollout_set (peri_rollout *r, int64_t t, int nin, peri_tensor *const *in) {
  if (!r) return PERI_EINVAL;
  NEED(r->ctx, in);
  if (nin != r->nfields)
    return peri__fail(r->ctx, PERI_EINVAL, "%d tensors are given, there are %d fields", nin,
                      r->nfields);
  if (t < 0 || t >= r->steps)
    return peri__fail(r->ctx, PERI_EINVAL, "step %s is out of range: there are %lld",
                      peri__nth(r->ctx, t), (long long)r->steps);
  peri_tensor *dense[PERI__FIELDS_MAX] = { NULL };
  peri_status s = PERI_OK;
  for (int i = 0; i < nin && s == PERI_OK; i++)
    if (in[i])
      s = peri__field_rows(r->ctx, &r->field[i], r->field[i].name, r->rows, in[i], &dense[i]);
  for (int i = 0; i < nin && s == PERI_OK; i++) {
    if (!in[i]) continue;
    size_t bytes = r->field[i].row * (size_t)r->rows;
    bool start = r->field[i].role == PERI_FIELD_START;
    if (bytes)
      memmove((char *)r->store[i]->data + (start ? 0 : bytes * (size_t)t), dense[i]->data, bytes);
    r->store[i]->storage->version++;
  }
  for (int i = 0; i < nin; i++) peri_release(dense[i]);
  return s;
}

peri_status peri__rollout_fits (const peri_rollout *r, int i, peri_tensor *t) {
  const peri__field *f = &r->field[i];
  peri_tensor *dense = NULL;
  if (!f->block) return PERI_OK;
  TRY(peri__contiguous(t, &dense));
  int64_t rows = f->role == PERI_FIELD_START ? r->rows : r->steps * r->rows;
  peri_status s = peri__field_fits(r->ctx, f, f->name, rows, dense->data);
  peri_release(dense);
  return s;
}

/* ---- minibatches ---- */

/* A permutation of the n entries of learner g, put where its shares of the minibatches are. */
static void shuffle_one (const peri_rollout *r, bool whole, int64_t groups, int64_t g, int64_t size,
                         int64_t n, peri__words *words, int64_t *p, int64_t *out) {
  int64_t own = r->rows / groups;
  for (int64_t i = 0; i < n; i++) { /* Fisher and Yates, inside out */
    int64_t k = peri__below(words, (uint64_t)i + 1);
    p[i] = p[k];
    p[k] = i;
  }
  for (int64_t i = 0; i < n; i++) {
    int64_t first = i - i % size, count = n - first < size ? n - first : size;
    out[first * groups + g * count + i % size] =
        whole ? g * own + p[i] : p[i] / own * r->rows + g * own + p[i] % own;
  }
}

peri_status peri_rollout_shuffle (peri_rollout *r, bool whole, int64_t groups, int64_t size,
                                  peri_tensor **out) {
  if (!r) return PERI_EINVAL;
  NEED(r->ctx, out);
  int64_t n = whole ? r->rows : r->steps * r->rows;
  if (groups < 1 || r->rows % groups != 0)
    return peri__fail(r->ctx, PERI_EINVAL, "groups is %lld, which does not divide the %lld rows",
                      (long long)groups, (long long)r->rows);
  if (size < 1)
    return peri__fail(r->ctx, PERI_EINVAL, "size is %lld, expected 1 or more", (long long)size);
  int64_t each = n / groups, *p = peri__block_get(r->ctx, (size_t)each * sizeof *p);
  if (!p) return peri__fail(r->ctx, PERI_ENOMEM, "no memory for an order of %lld", (long long)n);
  peri_tensor *t = NULL;
  peri_status s = peri__new(r->ctx, PERI_I64, 1, &n, &t);
  if (s == PERI_OK) {
    peri__words words = { .rng = peri__rng_next(r->ctx) };
    for (int64_t g = 0; g < groups; g++)
      shuffle_one(r, whole, groups, g, size, each, &words, p, (int64_t *)t->data);
    *out = t;
  }
  peri__block_put(r->ctx, p);
  return s;
}

typedef struct work {
  const peri_rollout *r;
  bool whole;
  const int64_t *chosen;
  int64_t count;
  peri_tensor **out;
} work;

/* Entries begin to end of the minibatch; whole: rows of all steps. */
static void gather (void *ud, int64_t begin, int64_t end, int worker) {
  const work *w = (const work *)ud;
  (void)worker;
  for (int i = 0; i < w->r->nfields; i++) {
    if (!w->out[i]) continue;
    size_t row = w->r->field[i].row;
    int64_t steps = w->whole && w->r->field[i].role != PERI_FIELD_START ? w->r->steps : 1;
    const char *from = (const char *)w->r->store[i]->data;
    char *to = (char *)w->out[i]->data;
    for (int64_t t = 0; t < steps;
         t++, from += row * (size_t)w->r->rows, to += row * (size_t)w->count)
      for (int64_t k = begin; k < end; k++)
        peri__row_copy(to + row * (size_t)k, from + row * (size_t)w->chosen[k], row);
  }
}

static peri_status check_batch (const peri_rollout *r, bool whole, const peri_tensor *permutation,
                                int64_t begin, int64_t count) {
  TRY(peri__want_index(r->ctx, permutation));
  if (begin < 0 || count < 1 || begin > permutation->numel - count)
    return peri__fail(r->ctx, PERI_EINVAL,
                      "%lld entries from %lld on are not in a permutation of %lld",
                      (long long)count, (long long)begin, (long long)permutation->numel);
  int64_t n = whole ? r->rows : r->steps * r->rows;
  for (int64_t k = begin; k < begin + count; k++) {
    int64_t p = ((const int64_t *)permutation->data)[k];
    if (p < 0 || p >= n)
      return peri__fail(r->ctx, PERI_EINVAL,
                        "index %lld at position %lld is out of range: below %lld", (long long)p,
                        (long long)k, (long long)n);
  }
  return PERI_OK;
}

peri_status peri_rollout_batch (peri_rollout *r, bool whole, peri_tensor *permutation,
                                int64_t begin, int64_t count, int nout, peri_tensor **out) {
  if (!r) return PERI_EINVAL;
  NEED(r->ctx, permutation);
  NEED(r->ctx, out);
  if (nout != r->nfields)
    return peri__fail(r->ctx, PERI_EINVAL, "%d outputs are wanted, there are %d fields", nout,
                      r->nfields);
  TRY(check_batch(r, whole, permutation, begin, count));
  peri_tensor *made[PERI__FIELDS_MAX] = { NULL };
  peri_status s = PERI_OK;
  size_t bytes = 0;
  for (int i = 0; i < nout && s == PERI_OK; i++) {
    bool start = r->field[i].role == PERI_FIELD_START;
    int64_t lead[2] = { r->steps, count };
    if (start && !whole) continue;
    s = whole && !start ? peri__field_tensor(r->ctx, &r->field[i], 2, lead, &made[i])
                        : peri__field_tensor(r->ctx, &r->field[i], 1, lead + 1, &made[i]);
    if (s == PERI_OK) bytes += peri_nbytes(made[i]);
  }
  if (s == PERI_OK) {
    work w = { r, whole, (const int64_t *)permutation->data + begin, count, made };
    peri__parallel(r->ctx, count, peri__row_grain(bytes / (size_t)count), gather, &w);
    if (peri__stopped(r->ctx)) s = peri__fail(r->ctx, PERI_EINTR, "interrupted");
  }
  for (int i = 0; i < nout; i++) {
    if (s == PERI_OK)
      out[i] = made[i];
    else
      peri_release(made[i]);
  }
  return s;
}
