/*
** token_logprob.c - the language-model head, log-probability and entropy in one op: logits exist
** only as a tile of rows, in the forward pass and again in the backward pass. Rows whose target is
** ignored are left out before the first product.
**
** A row's logits are the chains of FMAs that linear makes, and its statistics come from op/rows.h:
** sampling from logits and training on the same tokens give the same bits. Gradients of the weight
** are one chain over the rows in their order, continued from tile to tile.
*/
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "autograd/tape.h"
#include "cpu/gemm.h"
#include "op/rows.h"
#include "op/weights.h"

/* Elements of a tile of logits; no result depends on it. */
enum { TILE_ELEMENTS = 1 << 23, TILE_MIN = 96, TILE_MAX = 4096 };

typedef struct head {
  peri_ctx *ctx;
  peri__rows r;
  int64_t v, d, n; /* classes, width, active rows */
  const peri_tensor *target;
  peri_tensor *opaque;                /* the weight when it is quantised or packed, else NULL */
  const char *hidden, *weight, *bias; /* bias may be NULL */
  int64_t *index;                     /* (n): row of the k-th active one */
  bool gathered;                      /* active rows are not simply 0..n-1 */
  int64_t tile;                       /* rows */
  char *x, *logits, *dx;          /* (tile, d), (tile, v), (tile, d); x and dx only when gathered */
  int64_t at, rows;               /* the tile being worked on: active rows [at, at + rows) */
  void *logp, *entropy, *stats;   /* (all rows), (all rows), (all rows, 2) */
  const void *g_logp, *g_entropy; /* may be NULL */
  size_t index_bytes, x_bytes, logits_bytes, dx_bytes;
} head;

static peri_status check (peri_call *c, int first) {
  const peri_tensor *h = c->in[first], *w = c->in[first + 1], *bias = c->in[first + 3];
  double temperature = c->attr[0].f;
  char a[128], b[128];
  TRY(peri__want_wide(c, first, "hidden"));
  if (w->ndim != 2 || h->ndim < 1 || h->shape[h->ndim - 1] != w->shape[1] || w->shape[0] < 1)
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "hidden %s x weight %s: expected (..., width) and (classes, width)",
                      peri__shape_text(h, a, sizeof a), peri__shape_text(w, b, sizeof b));
  if (peri__opaque(w))
    TRY(peri__weight_want_f32(c, first, "hidden"));
  else
    TRY(peri__want_dtype(c, first + 1, "weight", h->dtype));
  TRY(peri__ids_shape(c, c->in[first + 2], "target", h, "hidden"));
  if (bias) {
    TRY(peri__want_dtype(c, first + 3, "bias", h->dtype));
    if (bias->ndim != 1 || bias->shape[0] != w->shape[0])
      return peri__fail(c->ctx, PERI_ESHAPE, "bias has shape %s, expected (%" PRId64 ")",
                        peri__shape_text(bias, a, sizeof a), w->shape[0]);
  }
  if (!(temperature > 0) || isinf(temperature))
    return peri__fail(c->ctx, PERI_EINVAL, "temperature is %g, expected more than 0", temperature);
  return PERI_OK;
}

static void head_close (head *s) {
  peri__block_put(s->ctx, s->index);
  peri__block_put(s->ctx, s->x);
  peri__block_put(s->ctx, s->logits);
  peri__block_put(s->ctx, s->dx);
}

/* Checks the targets, lists the active rows, gets scratch. On failure nothing is held. */
static peri_status head_open (peri_call *c, int first, bool backward, head *s) {
  const peri_tensor *h = c->in[first], *w = c->in[first + 1];
  int64_t rows = c->in[first + 2]->numel, k = 0;
  *s = (head){ .ctx = c->ctx,
               .r = peri__rows_of(c->ctx, h->dtype, c->attr[0].f),
               .v = w->shape[0],
               .d = w->shape[1],
               .target = c->in[first + 2],
               .opaque = peri__opaque(w) ? c->in[first + 1] : NULL,
               .hidden = h->data,
               .weight = w->data,
               .bias = c->in[first + 3] ? c->in[first + 3]->data : NULL };
  TRY(peri__ids_check(c, s->target, "target", s->v, c->attr[1].i, &s->n));
  if (s->n == 0) return PERI_OK;
  s->tile = TILE_ELEMENTS / s->v;
  if (s->tile < TILE_MIN) s->tile = TILE_MIN;
  if (s->tile > TILE_MAX) s->tile = TILE_MAX;
  int64_t tiles = (s->n + s->tile - 1) / s->tile;
  s->tile = (s->n + tiles - 1) / tiles; /* tiles of nearly one size */
  s->gathered = s->n < rows;
  s->index_bytes = (size_t)s->n * sizeof *s->index;
  s->index = peri__block_get(c->ctx, s->index_bytes);
  s->logits_bytes = (size_t)(s->tile * s->v) * s->r.size;
  s->logits = peri__block_get(c->ctx, s->logits_bytes);
  if (s->gathered && s->d > 0) {
    s->x_bytes = (size_t)(s->tile * s->d) * s->r.size;
    s->x = peri__block_get(c->ctx, s->x_bytes);
    if (backward) s->dx = peri__block_get(c->ctx, s->dx_bytes = s->x_bytes);
  }
  if (!s->index || !s->logits || (s->x_bytes > 0 && !s->x) || (s->dx_bytes > 0 && !s->dx)) {
    head_close(s);
    return peri__fail(c->ctx, PERI_ENOMEM,
                      "no memory for a tile of %" PRId64 " x %" PRId64 " logits", s->tile, s->v);
  }
  for (int64_t i = 0; i < rows; i++)
    if (peri__id_at(s->target, i) != c->attr[1].i) s->index[k++] = i;
  return PERI_OK;
}

/* C = A B over rows-by-columns strides in elements, in the dtype of the head. */
static peri_status product (const head *s, int64_t m, int64_t n, int64_t k, const void *a,
                            int64_t ars, int64_t acs, const void *b, int64_t brs, int64_t bcs,
                            void *c, const void *bias, bool accumulate) {
  const peri__product p = { s->r.f64, m, n, k, a, ars, acs, b, brs, bcs, c, accumulate, bias };
  return peri__product_run(s->ctx, &p);
}

/* Hidden rows of the tile, packed where some rows are left out. */
static const void *tile_rows (head *s) {
  size_t row = (size_t)s->d * s->r.size;
  if (!s->gathered || s->d == 0) return s->hidden + (size_t)s->at * row;
  for (int64_t i = 0; i < s->rows; i++)
    memcpy(s->x + (size_t)i * row, s->hidden + (size_t)s->index[s->at + i] * row, row);
  return s->x;
}

/* Logits of the next tile; false when there are no rows left. */
static bool next_tile (head *s, peri_status *status) {
  s->at += s->rows;
  s->rows = s->n - s->at < s->tile ? s->n - s->at : s->tile;
  if (s->rows <= 0 || *status != PERI_OK) return false;
  const void *x = tile_rows(s);
  if (s->opaque)
    *status = peri__weight_product(s->ctx, s->opaque, s->rows, x, s->d, (const void *)s->bias,
                                   (void *)s->logits);
  else
    *status =
        product(s, s->rows, s->v, s->d, x, s->d, 1, s->weight, 1, s->d, s->logits, s->bias, false);
  return *status == PERI_OK && !peri__stopped(s->ctx);
}

/* ---- forward ---- */

static peri_status infer (peri_call *c) {
  const peri_tensor *t = c->in[2];
  peri_dtype d = (peri_dtype)c->in[0]->dtype;
  int64_t shape[PERI_MAX_DIMS];
  TRY(check(c, 0));
  memcpy(shape, c->in[0]->shape, sizeof shape);
  TRY(peri__new(c->ctx, d, t->ndim, shape, &c->out[0]));
  TRY(peri__new(c->ctx, d, t->ndim, shape, &c->out[1]));
  shape[t->ndim] = 2;
  return peri__new(c->ctx, d, t->ndim + 1, shape, &c->out[2]);
}

static void forward_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const head *s = ud;
  (void)worker;
  for (int64_t i = begin; i < end; i++) {
    const void *x = peri__rows_at(&s->r, s->logits, i * s->v);
    int64_t to = s->index[s->at + i];
    peri__row row;
    peri__rows_stat(&s->r, x, s->v, NULL, &row);
    peri__rows_set(&s->r, s->logp, to, peri__rows_logp(&s->r, &row, x, peri__id_at(s->target, to)));
    peri__rows_set(&s->r, s->entropy, to, peri__rows_entropy(&row));
    peri__rows_set(&s->r, s->stats, 2 * to, row.max);
    peri__rows_set(&s->r, s->stats, 2 * to + 1, log(row.sum));
  }
}

static peri_status cpu (peri_call *c) {
  head s;
  peri_status status = PERI_OK;
  TRY(head_open(c, 0, false, &s));
  for (int k = 0; k < 3; k++) memset(c->out[k]->data, 0, (size_t)c->out[k]->numel * s.r.size);
  s.logp = c->out[0]->data;
  s.entropy = c->out[1]->data;
  s.stats = c->out[2]->data;
  while (next_tile(&s, &status))
    peri__parallel(c->ctx, s.rows, peri__rows_grain(s.v), forward_rows, &s);
  head_close(&s);
  return status;
}

static peri_status backward_onto (peri_call *c, peri_tensor *dw);

static void vjp (peri_vjp *v) {
  const peri_call *c = v->c;
  peri_tensor *in[7] = {
    v->g[0], v->g[1], c->in[0], c->in[1], c->in[2], c->in[3], peri__saved(v, 2)
  };
  peri_tensor *out[3] = { NULL }, *dw = NULL;
  bool chain = peri__chain(v, 1, &dw);
  const peri_attr attr[4] = { c->attr[0], c->attr[1], A_INT(v->need[0]),
                              A_INT(v->need[1] && !chain) };
  if (chain && v->b.status == PERI_OK) {
    peri_call k = {
      .ctx = c->ctx, .op = &peri__op_token_logprob_backward, .nin = 7, .in = in, .attr = attr
    };
    peri__build_fail(&v->b, backward_onto(&k, dw));
    for (int i = 0; i < 3; i++) out[i] = peri__build_own(&v->b, k.out[i]);
    out[1] = dw;
  } else
    peri__build_all(&v->b, &peri__op_token_logprob_backward, 7, in, attr, out);
  if (v->need[0]) v->gin[0] = out[0];
  if (v->need[1]) v->gin[1] = out[1];
  if (c->in[3] && v->need[3]) v->gin[3] = out[2];
}

static void cost (const peri_call *c, double *flops, double *bytes) {
  bool back = c->nin == 7;
  const peri_tensor *h = c->in[back ? 2 : 0], *w = c->in[back ? 3 : 1];
  double rows = (double)c->in[back ? 4 : 2]->numel;
  double products = back ? 1 + (c->attr[2].i != 0) + (c->attr[3].i != 0) : 1;
  *flops = products * 2 * rows * (double)w->numel;
  *bytes = ((double)peri_nbytes(h) + (double)peri_nbytes(w)) * products;
}

OPN(token_logprob, 3, .nret = 2, .flags = PERI_OP_UPCAST | PERI_OP_NO_GRAD2 | PERI_OP_WEIGHT,
    .sig = "hidden, weight, target, bias:tensor?, temperature:num=1, ignore_index:int=-100",
    .doc = "Log-probability of the ids target (...) and entropy, both (...), under "
           "softmax((hidden weight^T + bias) / temperature) for hidden (..., width), weight "
           "(classes, width); the (..., classes) logits are never held beyond a tile of rows. "
           "Ignored targets give 0 and no gradient. weight may be quantised or packed, and gets no "
           "gradient then.",
    .infer = infer, .cpu = cpu, .vjp = vjp, .cost = cost,
    TESTS(.domain =
              "hidden.shape=3,4; weight.shape=5,4; target.shape=3; target=int:0..4; bias.shape=5; "
              "attr temperature=0.7",
          .variants = { "hidden.shape=2,3,4; weight.shape=5,4; target.shape=2,3; target=int:0..4; "
                        "attr ignore_index=2",
                        "hidden.shape=3,4; weight.shape=5,4; target.shape=3; target=int:0..4; "
                        "attr temperature=2" },
          .large = "hidden.shape=100,64; weight.shape=300,64; target.shape=100; target=int:0..299; "
                   "bias.shape=300",
          .refuses = {
              "hidden.shape=1,3; hidden=f64:-2..2; weight.shape=2,3; weight=packed; target=i64[1]"
              " => f64 | packed",
              "hidden.shape=2,4; weight.shape=5,4; target=i64[0,5] => 5",
              "hidden.shape=2,4; weight.shape=5,3; target=i64[0,1] => 4 | 3",
              "hidden.shape=2,4; weight.shape=5,4; target=i64[0,1]; attr temperature=0 => 0" }));

/* ---- backward ---- */

enum { WANT_HIDDEN = 2, WANT_WEIGHT };

static peri_status infer_backward (peri_call *c) {
  peri_dtype d = (peri_dtype)c->in[2]->dtype;
  const int64_t none = 0;
  TRY(check(c, 2));
  for (int k = 0; k < 2; k++)
    if (c->in[k] && (c->in[k]->numel != c->in[4]->numel || c->in[k]->dtype != (uint8_t)d))
      return peri__fail(c->ctx, PERI_ESHAPE,
                        "gradient %s has %" PRId64 " values for %" PRId64 " targets",
                        peri__nth(c->ctx, k), c->in[k]->numel, c->in[4]->numel);
  if (c->attr[WANT_WEIGHT].i && peri__opaque(c->in[3]))
    return peri__fail(c->ctx, PERI_EDTYPE, "a quantised or packed weight has no gradient");
  if (c->in[6]->numel != 2 * c->in[4]->numel || c->in[6]->dtype != (uint8_t)d)
    return peri__fail(c->ctx, PERI_ESHAPE, "stats have %" PRId64 " values for %" PRId64 " targets",
                      c->in[6]->numel, c->in[4]->numel);
  if (c->attr[WANT_HIDDEN].i)
    TRY(peri__new_like(c->in[2], d, &c->out[0]));
  else
    TRY(peri__new(c->ctx, d, 1, &none, &c->out[0]));
  if (c->attr[WANT_WEIGHT].i)
    TRY(peri__new_like(c->in[3], d, &c->out[1]));
  else
    TRY(peri__new(c->ctx, d, 1, &none, &c->out[1]));
  if (c->in[5]) return peri__new_like(c->in[5], d, &c->out[2]);
  return peri__new(c->ctx, d, 1, &none, &c->out[2]);
}

/*
** Logits of the tile -> their gradient, in place. With y = logits / temperature and H the entropy:
**   d log p_t / d y_j = [j = t] - p_j          d H / d y_j = -p_j (log p_j + H)
*/
static void backward_rows (void *ud, int64_t begin, int64_t end, int worker) {
  const head *s = ud;
  (void)worker;
  for (int64_t i = begin; i < end; i++) {
    char *x = s->logits + (size_t)(i * s->v) * s->r.size;
    int64_t from = s->index[s->at + i], t = peri__id_at(s->target, from);
    double gl = s->g_logp ? peri__rows_get(&s->r, s->g_logp, from) * s->r.scale : 0;
    double ge = s->g_entropy ? peri__rows_get(&s->r, s->g_entropy, from) * s->r.scale : 0;
    double entropy = 0;
    if (ge != 0) {
      peri__row row;
      peri__rows_stat(&s->r, x, s->v, NULL, &row);
      entropy = peri__rows_entropy(&row);
    }
    peri__row_grad g = { .scale = s->r.scale,
                         .max = peri__rows_get(&s->r, s->stats, 2 * from),
                         .log_sum = peri__rows_get(&s->r, s->stats, 2 * from + 1),
                         .a = -gl - ge * entropy,
                         .b = -ge };
    peri__rows_grad(&s->r, x, s->v, &g, x);
    peri__rows_set(&s->r, x, t, peri__rows_get(&s->r, x, t) + gl);
  }
}

/* dhidden of the tile = dlogits weight, to the rows that it came from. */
static peri_status hidden_gradient (head *s, peri_tensor *out) {
  size_t row = (size_t)s->d * s->r.size;
  char *to = out->data;
  bool packed = s->gathered && s->d > 0;
  char *dx = packed ? s->dx : to + (size_t)s->at * row;
  if (s->opaque)
    TRY(peri__weight_back(s->ctx, s->opaque, s->rows, (void *)s->logits, (void *)dx));
  else
    TRY(product(s, s->rows, s->d, s->v, s->logits, s->v, 1, s->weight, s->d, 1, dx, NULL, false));
  for (int64_t i = 0; packed && i < s->rows; i++)
    memcpy(to + (size_t)s->index[s->at + i] * row, s->dx + (size_t)i * row, row);
  return PERI_OK;
}

typedef struct columns {
  const head *s;
  void *out;
} columns;

static void column_sums (void *ud, int64_t begin, int64_t end, int worker) {
  const columns *c = ud;
  const head *s = c->s;
  (void)worker;
  for (int64_t i = 0; i < s->rows; i++)
    for (int64_t j = begin; j < end; j++)
      if (s->r.f64)
        ((double *)c->out)[j] += ((const double *)s->logits)[i * s->v + j];
      else
        ((float *)c->out)[j] += ((const float *)s->logits)[i * s->v + j];
}

/* onto: dw holds what its chains begin at. */
static peri_status backward_run (peri_call *c, peri_tensor *dw, bool onto) {
  head s;
  peri_status status = PERI_OK;
  peri_tensor *dh = c->attr[WANT_HIDDEN].i ? c->out[0] : NULL;
  peri_tensor *db = c->in[5] ? c->out[2] : NULL;
  TRY(head_open(c, 2, true, &s));
  if (dh && (s.gathered || s.n == 0)) memset(dh->data, 0, (size_t)dh->numel * s.r.size);
  if (dw && !onto && s.n == 0) memset(dw->data, 0, (size_t)dw->numel * s.r.size);
  if (db) memset(db->data, 0, (size_t)db->numel * s.r.size);
  s.g_logp = c->in[0] ? c->in[0]->data : NULL;
  s.g_entropy = c->in[1] ? c->in[1]->data : NULL;
  s.stats = c->in[6]->data;
  while (next_tile(&s, &status)) {
    peri__parallel(c->ctx, s.rows, peri__rows_grain(s.v), backward_rows, &s);
    if (dh) status = hidden_gradient(&s, dh);
    if (dw && status == PERI_OK)
      status = product(&s, s.v, s.d, s.rows, s.logits, 1, s.v, tile_rows(&s), s.d, 1, dw->data,
                       NULL, onto || s.at > 0);
    if (db) peri__parallel(c->ctx, s.v, 1024, column_sums, &(columns){ .s = &s, .out = db->data });
  }
  head_close(&s);
  return status;
}

static peri_status cpu_backward (peri_call *c) {
  return backward_run(c, c->attr[WANT_WEIGHT].i ? c->out[1] : NULL, false);
}

/* The op, with dw's chains going on from what it holds; results in c->out, but that of the weight. */
static peri_status backward_onto (peri_call *c, peri_tensor *dw) {
  peri_tensor *in[7] = { NULL };
  peri_call k = *c;
  double began = c->ctx->profile ? peri__now() : 0;
  peri_status s = infer_backward(c);
  for (int i = 0; i < 7 && s == PERI_OK; i++)
    if (c->in[i]) s = peri__contiguous(c->in[i], &in[i]);
  k.in = in;
  memcpy(k.out, c->out, sizeof k.out);
  if (s == PERI_OK && !peri__opaque(c->in[3])) s = backward_run(&k, dw, true);
  if (s == PERI_OK && peri__stopped(c->ctx)) s = peri__fail(c->ctx, PERI_EINTR, "interrupted");
  if (c->ctx->profile) {
    double flops = 0, bytes = 0;
    cost(c, &flops, &bytes);
    peri__profile_add(c->ctx, c->op->name, peri__now() - began, flops, bytes);
  }
  for (int i = 0; i < 7; i++) peri_release(in[i]);
  return s;
}

OPN(token_logprob_backward, 3, .flags = PERI_OP_WEIGHT,
    .sig = "g_logp:tensor?, g_entropy:tensor?, hidden, weight, target, bias:tensor?, stats, "
           "temperature:num=1, ignore_index:int=-100, want_hidden:bool=true, "
           "want_weight:bool=true",
    .doc = "Gradient of token_logprob for hidden (..., width), weight (classes, width) and bias "
           "(classes), from those of its two results; what is not wanted is empty. stats (..., "
           "2) is what the forward pass saved.",
    .infer = infer_backward, .cpu = cpu_backward, .cost = cost,
    TESTS(.domain = "g_logp.shape=3; g_entropy.shape=3; hidden.shape=3,4; weight.shape=5,4; "
                    "target.shape=3; target=int:0..4; bias.shape=5; stats.shape=3,2; stats=1..2",
          .large =
              "g_logp.shape=100; g_entropy.shape=100; hidden.shape=100,64; weight.shape=300,64; "
              "target.shape=100; target=int:0..299; bias.shape=300; stats.shape=100,2; stats=5..6",
          .refuses = { "g_logp.shape=2; g_entropy.shape=2; hidden.shape=2,4; weight.shape=5,4; "
                       "target=i64[0,5]; stats.shape=2,2 => 5" }));
