/*
** categorical.c - log-probabilities and entropies of choices, masked or not: what a policy over few
** actions needs of a row of logits, in one pass and without its softmax. The row functions are those
** of cross_entropy, token_logprob and sample (op/rows.h), so the bits agree with theirs.
*/
#include <inttypes.h>
#include <math.h>

#include "op/elementwise.h"
#include "op/rows.h"
#include "op/rule.h"

typedef struct choices {
  peri__rows r;
  const char *x;                  /* (rows, n) */
  const peri_tensor *ids;         /* (rows) */
  const uint8_t *mask;            /* (rows, n), 0 where an action is not legal; may be NULL */
  const void *g_logp, *g_entropy; /* (rows), backward; may be NULL */
  int64_t n;
  char *scratch; /* a row for each worker, with mask */
  size_t scratch_each;
  void *logp, *entropy; /* (rows), forward */
  char *dx;             /* (rows, n), backward */
  atomic_llong bad;     /* a row + 1 without a distribution */
} choices;

enum { LOGITS, IDS, MASK, G_LOGP, G_ENTROPY };

static peri_status same_shape (peri_call *c, int i, const char *name, const peri_tensor *as,
                               const char *as_name) {
  const peri_tensor *t = c->in[i];
  char a[128], b[128];
  if (!t || peri__same_shape(t, as)) return PERI_OK;
  return peri__fail(c->ctx, PERI_ESHAPE, "%s has shape %s, expected that of %s %s", name,
                    peri__shape_text(t, a, sizeof a), as_name, peri__shape_text(as, b, sizeof b));
}

static peri_status check (peri_call *c) {
  const peri_tensor *x = c->in[LOGITS];
  char a[128];
  TRY(peri__want_float(c, LOGITS, "logits"));
  if (x->ndim < 1 || x->shape[x->ndim - 1] < 1)
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "logits have shape %s, expected (..., classes) with at least 1 class",
                      peri__shape_text(x, a, sizeof a));
  TRY(peri__ids_shape(c, c->in[IDS], "ids", x, "logits"));
  if (c->in[MASK]) TRY(peri__want_dtype(c, MASK, "mask", PERI_BOOL));
  return same_shape(c, MASK, "mask", x, "logits");
}

static void *row_of (const void *base, const choices *s, int64_t i) {
  return (char *)(uintptr_t)base + (size_t)(i * s->n) * s->r.size;
}

/* The row with -inf where an action is not legal. */
static const void *legal (const choices *s, int64_t i, int worker) {
  const void *x = row_of(s->x, s, i);
  if (!s->mask) return x;
  char *out = s->scratch + (size_t)worker * s->scratch_each;
  const uint8_t *m = s->mask + i * s->n;
  for (int64_t k = 0; k < s->n; k++)
    peri__rows_set(&s->r, out, k, m[k] ? peri__rows_get(&s->r, x, k) : -(double)INFINITY);
  return out;
}

static bool allowed (const choices *s, int64_t i, int64_t id) {
  return (!s->mask || s->mask[i * s->n + id]) &&
         peri__rows_get(&s->r, row_of(s->x, s, i), id) != -(double)INFINITY;
}

/* Rows of f32 of few classes, all of them legal, go by many at once; results have the same bits. */
static bool few_classes (const choices *s) {
  return !s->r.f64 && s->mask == NULL && s->n <= PERI_LOSS_FEW;
}

static void forward_few (choices *s, int64_t begin, int64_t end) {
  const int64_t n = s->n;
  peri__few f = { 0 };
  for (int64_t at = begin; at < end; at += PERI_FEW_ROWS) {
    int64_t rows = end - at < PERI_FEW_ROWS ? end - at : PERI_FEW_ROWS;
    const float *x = row_of(s->x, s, at);
    s->r.k->few(x, rows, n, (float)s->r.scale, &f);
    for (int64_t i = 0; i < rows; i++) {
      double sum = (double)f.sum[i], log_sum;
      if (!(sum > 0)) {
        long long none = 0;
        atomic_compare_exchange_strong(&s->bad, &none, (long long)(at + i) + 1);
        continue;
      }
      log_sum = log(sum);
      double logit = (double)x[i * n + peri__id_at(s->ids, at + i)];
      ((float *)s->logp)[at + i] = (float)((logit - (double)f.max[i]) * s->r.scale - log_sum);
      ((float *)s->entropy)[at + i] = (float)(log_sum - (double)f.dot[i] / sum);
    }
  }
}

static void backward_few (choices *s, int64_t begin, int64_t end) {
  const int64_t n = s->n;
  peri__few f = { 0 };
  for (int64_t at = begin; at < end; at += PERI_FEW_ROWS) {
    int64_t rows = end - at < PERI_FEW_ROWS ? end - at : PERI_FEW_ROWS;
    const float *x = row_of(s->x, s, at);
    float *dx = row_of(s->dx, s, at), gl[PERI_FEW_ROWS];
    int64_t id[PERI_FEW_ROWS];
    s->r.k->few(x, rows, n, (float)s->r.scale, &f);
    for (int64_t i = 0; i < rows; i++) {
      id[i] = peri__id_at(s->ids, at + i);
      bool counts = s->g_logp != NULL && x[i * n + id[i]] != -INFINITY;
      gl[i] = counts ? ((const float *)s->g_logp)[at + i] : 0;
      double ge = s->g_entropy ? (double)((const float *)s->g_entropy)[at + i] : 0;
      double sum = (double)f.sum[i], log_sum = log(sum);
      f.log_sum[i] = (float)log_sum;
      f.a[i] = (float)(-(double)gl[i] - ge * (log_sum - (double)f.dot[i] / sum));
      f.b[i] = (float)-ge;
    }
    s->r.k->few_grad(x, rows, n, (float)s->r.scale, &f, dx);
    for (int64_t i = 0; i < rows; i++) {
      float *to = &dx[i * n + id[i]];
      if (s->g_logp != NULL && x[i * n + id[i]] != -INFINITY)
        *to = (float)((double)*to + (double)gl[i]);
    }
  }
}

static void forward_rows (void *ud, int64_t begin, int64_t end, int worker) {
  choices *s = ud;
  if (few_classes(s)) {
    forward_few(s, begin, end);
    return;
  }
  for (int64_t i = begin; i < end; i++) {
    const void *x = legal(s, i, worker);
    int64_t id = peri__id_at(s->ids, i);
    peri__row row;
    peri__rows_stat(&s->r, x, s->n, NULL, &row);
    if (!(row.sum > 0)) {
      long long none = 0;
      atomic_compare_exchange_strong(&s->bad, &none, (long long)i + 1);
      continue;
    }
    double log_sum = log(row.sum); /* as peri__rows_logp and peri__rows_entropy, with one log */
    peri__rows_set(&s->r, s->logp, i,
                   (peri__rows_get(&s->r, x, id) - row.max) * s->r.scale - log_sum);
    peri__rows_set(&s->r, s->entropy, i, log_sum - row.dot / row.sum);
  }
}

/*
** With H the entropy and w = log p + H:  d log p_a / d x_j = [j = a] - p_j,  d H / d x_j = -p_j w_j.
** An action without probability has log p = -inf whatever the logits: its gradient is 0.
*/
static void backward_rows (void *ud, int64_t begin, int64_t end, int worker) {
  choices *s = ud;
  if (few_classes(s)) {
    backward_few(s, begin, end);
    return;
  }
  for (int64_t i = begin; i < end; i++) {
    const void *x = legal(s, i, worker);
    void *dx = row_of(s->dx, s, i);
    int64_t id = peri__id_at(s->ids, i);
    bool counts = s->g_logp != NULL && allowed(s, i, id);
    double gl = counts ? peri__rows_get(&s->r, s->g_logp, i) : 0;
    double ge = s->g_entropy ? peri__rows_get(&s->r, s->g_entropy, i) : 0;
    peri__row row;
    peri__rows_stat(&s->r, x, s->n, NULL, &row);
    double log_sum = log(row.sum);
    peri__row_grad g = { .scale = s->r.scale,
                         .max = row.max,
                         .log_sum = log_sum,
                         .a = -gl - ge * (log_sum - row.dot / row.sum),
                         .b = -ge };
    peri__rows_grad(&s->r, x, s->n, &g, dx);
    if (counts) peri__rows_set(&s->r, dx, id, peri__rows_get(&s->r, dx, id) + gl);
  }
}

static peri_status run (peri_call *c, choices *s, peri_range_fn fn) {
  const peri_tensor *x = c->in[LOGITS], *mask = c->in[MASK];
  int64_t active, rows = c->in[IDS]->numel;
  size_t bytes = 0;
  s->r = peri__rows_of(c->ctx, x->dtype, 1);
  s->x = x->data;
  s->ids = c->in[IDS];
  s->mask = mask ? mask->data : NULL;
  s->n = x->shape[x->ndim - 1];
  atomic_init(&s->bad, 0);
  TRY(peri__ids_check(c, s->ids, "ids", s->n, -1, &active));
  if (active < rows)
    return peri__fail(c->ctx, PERI_EINVAL, "ids hold -1, expected 0 to %" PRId64, s->n - 1);
  if (s->mask && rows > 0) {
    s->scratch_each = ((size_t)s->n * s->r.size + PERI_ALIGN - 1) / PERI_ALIGN * PERI_ALIGN;
    bytes = s->scratch_each * (size_t)peri_threads(c->ctx);
    if (!(s->scratch = peri__block_get(c->ctx, bytes)))
      return peri__fail(c->ctx, PERI_ENOMEM, "no memory for a row of %" PRId64 " classes", s->n);
  }
  peri__parallel(c->ctx, rows, peri__rows_grain(s->n), fn, s);
  peri__block_put(c->ctx, s->scratch);
  return PERI_OK;
}

/* Why row i has no distribution. */
static peri_status no_distribution (peri_call *c, const choices *s, int64_t i) {
  bool any = !s->mask;
  for (int64_t k = 0; !any && k < s->n; k++) any = s->mask[i * s->n + k] != 0;
  if (!any)
    return peri__fail(c->ctx, PERI_EINVAL,
                      "row %" PRId64 " (from 0) of the mask has no legal action", i);
  return peri__fail(c->ctx, PERI_EINVAL,
                    "row %" PRId64 " (from 0) of the logits holds NaN, +inf or only -inf", i);
}

/* ---- categorical_logprob_backward ---- */

static peri_status backward_infer (peri_call *c) {
  TRY(check(c));
  for (int i = G_LOGP; i <= G_ENTROPY; i++) {
    const char *name = i == G_LOGP ? "g_logp" : "g_entropy";
    TRY(same_shape(c, i, name, c->in[IDS], "ids"));
    if (c->in[i]) TRY(peri__want_dtype(c, i, name, c->in[LOGITS]->dtype));
  }
  return peri__infer_same(c);
}

static peri_status backward_cpu (peri_call *c) {
  choices s = { .g_logp = c->in[G_LOGP] ? c->in[G_LOGP]->data : NULL,
                .g_entropy = c->in[G_ENTROPY] ? c->in[G_ENTROPY]->data : NULL,
                .dx = c->out[0]->data };
  return run(c, &s, backward_rows);
}

/* sum over the classes, kept */
static peri_tensor *row_sum (peri_build *b, peri_tensor *t) {
  return BA(b, sum, ATTR(A_DIMS((const int64_t[]){ -1 }, 1), A_INT(1)), t);
}
static peri_tensor *column (peri_build *b, peri_tensor *t) {
  return BA(b, unsqueeze, ATTR(A_INT(-1)), t);
}
static peri_tensor *row (peri_build *b, peri_tensor *t) {
  return BA(b, squeeze, ATTR(A_INT(-1)), t);
}

/* With u what came to the result, U = sum u p and T = sum u p w, the product of u and the result is
** g_logp (u_a - U) - g_entropy T; d U / d x = p (u - U), d T / d x = p ((u - U) (w + 1) - T). */
RULE(categorical_logprob_backward) {
  peri_build *b = BB;
  peri_tensor *x = IN(LOGITS), *mask = IN(MASK), *u = GRAD, *gl = IN(G_LOGP), *ge = IN(G_ENTROPY);
  peri_tensor *low = NUM(-INFINITY), *zero = NUM(0);
  peri_tensor *masked = mask ? B(b, where, mask, x, low) : x;
  const peri_attr last[] = { A_INT(-1) };
  peri_tensor *p = BA(b, softmax, last, masked);
  peri_tensor *some = B(b, gt, p, zero);
  peri_tensor *logp = B(b, where, some, BA(b, log_softmax, last, masked), zero);
  peri_tensor *w = B(b, sub, logp, row_sum(b, B(b, mul, p, logp)));
  peri_tensor *mean = row_sum(b, B(b, mul, u, p)), *off = B(b, sub, u, mean);
  peri_tensor *t = row_sum(b, B(b, mul, B(b, mul, u, p), w));
  peri_tensor *at = column(b, IN(IDS));
  peri_tensor *counts = BA(b, gather, last, some, at); /* of the actions taken */
  if (v->need[LOGITS]) {
    peri_tensor *sum = zero;
    if (gl) {
      peri_tensor *g = B(b, where, counts, column(b, gl), zero);
      sum = B(b, sub, sum, B(b, mul, g, off));
    }
    if (ge)
      sum = B(b, sub, sum,
              B(b, mul, column(b, ge), B(b, sub, B(b, mul, off, B(b, add, w, NUM(1))), t)));
    v->gin[LOGITS] = B(b, mul, p, sum);
  }
  if (gl && v->need[G_LOGP]) {
    peri_tensor *each = B(b, sub, BA(b, gather, last, u, at), mean);
    v->gin[G_LOGP] = row(b, B(b, where, counts, each, zero));
  }
  if (ge) GIVE(G_ENTROPY, row(b, B(b, neg, t)));
}

OP(categorical_logprob_backward, .flags = PERI_OP_UPCAST,
   .sig = "logits, ids, mask:tensor?, g_logp:tensor?, g_entropy:tensor?",
   .doc =
       "Gradient of categorical_logprob for logits (..., classes), from those of its two results "
       "(...).",
   .infer = backward_infer, .cpu = backward_cpu, .vjp = categorical_logprob_backward_vjp,
   TESTS(.domain = "logits.shape=2,3; ids=i64[2,0]; g_logp.shape=2; g_entropy.shape=2",
         .variants = { "logits.shape=2,3; ids=i64[1,0]; mask.shape=2,3; mask=bool[0,1,1,1,0,1]; "
                       "g_logp.shape=2; g_entropy.shape=2" },
         .large = "logits.shape=300,40; ids.shape=300; ids=int:0..39; g_logp.shape=300; "
                  "g_entropy.shape=300",
         .refuses = { "logits.shape=2,3; ids=i64[0,3]; g_logp.shape=2 => 3",
                      "logits.shape=2,3; ids=i64[0,1]; g_logp.shape=3 => g_logp | (3) | (2)" }));

/* ---- categorical_logprob ---- */

static peri_status forward_infer (peri_call *c) {
  const peri_tensor *x = c->in[LOGITS];
  TRY(check(c));
  for (int k = 0; k < 2; k++)
    TRY(peri__new(c->ctx, (peri_dtype)x->dtype, x->ndim - 1, x->shape, &c->out[k]));
  return PERI_OK;
}

static peri_status forward_cpu (peri_call *c) {
  choices s = { .logp = c->out[0]->data, .entropy = c->out[1]->data };
  TRY(run(c, &s, forward_rows));
  long long bad = atomic_load_explicit(&s.bad, memory_order_relaxed);
  return bad > 0 ? no_distribution(c, &s, bad - 1) : PERI_OK;
}

RULE(categorical_logprob) {
  GIVE(LOGITS,
       B(BB, categorical_logprob_backward, IN(LOGITS), IN(IDS), IN(MASK), v->g[0], v->g[1]));
}

OPN(categorical_logprob, 2, .flags = PERI_OP_UPCAST, .sig = "logits, ids, mask:tensor?",
    .doc =
        "log softmax(logits)[id] and the entropy in nats of each row of logits (..., classes), for "
        "ids (...) and, if given, over the actions at which mask (..., classes) bool is true "
        "alone: "
        "the others have probability 0 and no gradient. A row without a legal action is refused.",
    .infer = forward_infer, .cpu = forward_cpu, .vjp = categorical_logprob_vjp,
    TESTS(.domain = "logits.shape=2,3; ids=i64[2,0]",
          .variants = { "logits.shape=2,3; ids=i64[1,0]; mask.shape=2,3; "
                        "mask=bool[0,1,1,1,0,1]" },
          .large = "logits.shape=300,40; ids.shape=300; ids=int:0..39",
          .refuses = {
              "logits.shape=2,3; ids=i64[0,3] => 3",
              "logits.shape=2,2; ids=i64[0,1]; mask.shape=2,2; mask=bool[1,1,0,0] => row 1 "
              "| legal",
              "logits.shape=1,2; logits=f32[nan,1]; ids=i64[0] => row 0 | NaN" }));
