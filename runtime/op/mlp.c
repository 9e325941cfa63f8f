/*
** mlp.c - a whole network of linear layers with one activation between them, as one op, and its backward
** pass as another: small policies and values, where a call costs more than its arithmetic. Every product
** is the chain of cpu/gemm.h, so a row's result has the bits that linear and the activation give it one
** by one, in any batch. A second derivative goes through those ops.
*/
#include <string.h>

#include "cpu/mlp.h"
#include "op/activation.h"
#include "op/matrix.h"

/* ---- shapes ---- */

/* A network as an op got it: sizes, and what of the inputs is held. */
typedef struct net {
  peri__mlp of;
  const peri__act *act; /* between layers; NULL = none */
  peri_tensor *held[2 * PERI_MLP_LAYERS + 3];
  int nheld;
} net;

/* Entry i of a list of the call. */
static peri_tensor *entry (const peri_call *c, int list, int i) {
  return c->in[c->list[list].start + i];
}

/* Tensor t, entry i of the list name (i < 0: no list), has x's dtype and these sizes. */
static peri_status want (peri_call *c, const peri_tensor *t, int dtype, const char *name, int i,
                         int ndim, const int64_t *shape) {
  char a[128], b[128];
  bool fits = t->ndim == ndim && memcmp(t->shape, shape, (size_t)ndim * sizeof *shape) == 0;
  if (fits && t->dtype == dtype) return PERI_OK;
  const char *at = i < 0 ? "" : peri__nth(c->ctx, i);
  if (t->dtype != dtype)
    return peri__fail(c->ctx, PERI_EDTYPE, "%s%s%s is %s, x is %s", name, i < 0 ? "" : " ", at,
                      peri_dtype_name((peri_dtype)t->dtype), peri_dtype_name((peri_dtype)dtype));
  return peri__fail(c->ctx, PERI_ESHAPE, "%s%s%s has shape %s, expected %s", name, i < 0 ? "" : " ",
                    at, peri__shape_text(t, a, sizeof a),
                    peri__sizes_text(ndim, shape, b, sizeof b));
}

static peri_status misfit (peri_call *c, const peri_tensor *x, int list, int i) {
  const peri_tensor *w = entry(c, list, i), *first = entry(c, list, 0);
  const peri_tensor *front = i > 0 ? entry(c, list, i - 1) : x;
  const char *copies = first->ndim == 3 ? "copies, " : "";
  char a[128], b[128];
  return peri__fail(c->ctx, PERI_ESHAPE,
                    "weights %s has shape %s, expected (%sout, in) behind %s of shape %s",
                    peri__nth(c->ctx, i), peri__shape_text(w, a, sizeof a), copies,
                    i > 0 ? "one" : "x", peri__shape_text(front, b, sizeof b));
}

/* Sizes from x and the list of weights: (out, in) each, or (copies, out, in). */
static peri_status sizes (peri_call *c, int at, int list, net *s) {
  const peri_tensor *x = c->in[at];
  char a[128];
  int layers = c->list[list].count;
  *s = (net){ .of = { .f64 = x->dtype == PERI_F64, .size = peri__size(x), .layers = layers } };
  peri__mlp *n = &s->of;
  TRY(peri__act_named(c->ctx, c->attr[0].s, &s->act));
  TRY(peri__want_wide(c, at, "x"));
  if (layers < 1 || layers > PERI_MLP_LAYERS)
    return peri__fail(c->ctx, PERI_EINVAL, "%d layers, expected 1 to %d", layers, PERI_MLP_LAYERS);
  int dims = entry(c, list, 0)->ndim;
  if (dims != 2 && dims != 3) return misfit(c, x, list, 0);
  if (x->ndim < dims - 1)
    return peri__fail(c->ctx, PERI_ESHAPE, "x has shape %s, expected (%s..., in)",
                      peri__shape_text(x, a, sizeof a), dims == 3 ? "copies, " : "");
  n->copies = dims == 3 ? x->shape[0] : 1;
  n->width[0] = x->shape[x->ndim - 1];
  for (int l = 0; l < layers; l++) {
    const peri_tensor *w = entry(c, list, l);
    if (w->ndim != dims || w->shape[dims - 1] != n->width[l] ||
        (dims == 3 && w->shape[0] != n->copies))
      return misfit(c, x, list, l);
    TRY(want(c, w, x->dtype, "weights", l, w->ndim, w->shape));
    n->width[l + 1] = w->shape[dims - 2];
  }
  n->rows = 1;
  for (int i = dims - 2; i < x->ndim - 1; i++) n->rows *= x->shape[i];
  if (s->act == NULL) return PERI_OK;
  const struct peri__math_kernels *k = c->ctx->cpu->math;
  n->act = n->f64 ? s->act->f64 : k->unary[s->act->unary];
  n->slope = n->f64 ? s->act->back_f64 : k->binary[s->act->binary];
  return PERI_OK;
}

/* Elements that the backward pass reads again, and where they are. */
static bool reads_before (const net *s) { return s->act != NULL && !s->act->from_output; }
static int64_t saved_size (const net *s) {
  return peri__mlp_hidden(&s->of, s->of.layers) * (reads_before(s) ? 2 : 1);
}
static void saved_at (net *s, const void *saved) {
  s->of.after = (char *)saved;
  if (saved != NULL && reads_before(s))
    s->of.before = s->of.after + (size_t)saved_size(s) / 2 * s->of.size;
}

/* Biases and their gradients: (out), or (copies, out). */
static int bias_shape (const peri_tensor *w, int64_t shape[2]) {
  memcpy(shape, w->shape, 2 * sizeof *shape);
  return w->ndim - 1;
}

/* The shape of x with another last size. */
static int y_shape (const peri_tensor *x, const net *s, int64_t shape[PERI_MAX_DIMS]) {
  memcpy(shape, x->shape, (size_t)x->ndim * sizeof *shape);
  shape[x->ndim - 1] = s->of.width[s->of.layers];
  return x->ndim;
}

/* t's elements, dense, or for a weight with one dim of stride 1; NULL where there is no t, or no memory. */
static const void *hold (net *s, peri_status *status, peri_tensor *t, bool weight) {
  peri_tensor *made = NULL;
  if (t == NULL || *status != PERI_OK) return NULL;
  *status = weight ? peri__matrix_readable(t, false, &made) : peri__contiguous(t, &made);
  if (*status != PERI_OK) return NULL;
  s->held[s->nheld++] = made;
  return made->data;
}
static void hold_weights (net *s, peri_status *status, const peri_call *c, int list) {
  for (int l = 0; l < s->of.layers; l++) {
    s->of.w[l].p = hold(s, status, entry(c, list, l), true);
    if (*status != PERI_OK) return;
    const peri_tensor *w = s->held[s->nheld - 1];
    s->of.w[l].copy = w->ndim == 3 ? w->stride[0] : 0;
    s->of.w[l].rs = w->stride[w->ndim - 2];
    s->of.w[l].cs = w->stride[w->ndim - 1];
  }
}
static void let_go (net *s) {
  while (s->nheld > 0) peri_release(s->held[--s->nheld]);
}

/* ---- mlp_backward_ ---- */

enum { B_G, B_X, B_SAVED, B_DX };          /* single inputs */
enum { B_WEIGHTS, B_DWEIGHTS, B_DBIASES }; /* lists */

static peri_status want_out (peri_call *c, const peri_tensor *t, int dtype, const char *name, int i,
                             int ndim, const int64_t *shape) {
  TRY(want(c, t, dtype, name, i, ndim, shape));
  if (peri__dense(t)) return PERI_OK;
  const char *at = i < 0 ? "" : peri__nth(c->ctx, i);
  return peri__fail(c->ctx, PERI_EINVAL, "%s%s%s is written in place and must be dense", name,
                    i < 0 ? "" : " ", at);
}

static peri_status backward_infer (peri_call *c) {
  const peri_tensor *x = c->in[B_X], *dx = c->in[B_DX];
  int64_t shape[PERI_MAX_DIMS];
  net s;
  TRY(sizes(c, B_X, B_WEIGHTS, &s));
  TRY(want(c, c->in[B_G], x->dtype, "g", -1, y_shape(x, &s, shape), shape));
  int64_t kept = saved_size(&s);
  TRY(want(c, c->in[B_SAVED], x->dtype, "saved", -1, 1, &kept));
  if (dx != NULL) TRY(want_out(c, dx, x->dtype, "dx", -1, x->ndim, x->shape));
  for (int l = 0; l < s.of.layers; l++) {
    const peri_tensor *w = entry(c, B_WEIGHTS, l);
    const peri_tensor *dw = entry(c, B_DWEIGHTS, l), *db = entry(c, B_DBIASES, l);
    int dims = bias_shape(w, shape);
    if (dw != NULL) TRY(want_out(c, dw, x->dtype, "dweights", l, w->ndim, w->shape));
    if (db != NULL) TRY(want_out(c, db, x->dtype, "dbiases", l, dims, shape));
  }
  return PERI_OK;
}

static peri_status backward_cpu (peri_call *c) {
  peri_status status = PERI_OK;
  net s;
  TRY(sizes(c, B_X, B_WEIGHTS, &s));
  hold_weights(&s, &status, c, B_WEIGHTS);
  s.of.x = hold(&s, &status, c->in[B_X], false);
  s.of.g = hold(&s, &status, c->in[B_G], false);
  saved_at(&s, hold(&s, &status, c->in[B_SAVED], false));
  if (c->in[B_DX] != NULL) s.of.dx = c->in[B_DX]->data;
  for (int l = 0; l < s.of.layers; l++) {
    const peri_tensor *dw = entry(c, B_DWEIGHTS, l), *db = entry(c, B_DBIASES, l);
    if (dw != NULL) s.of.dw[l] = dw->data;
    if (db != NULL) s.of.db[l] = db->data;
  }
  if (status == PERI_OK) status = peri__mlp_backward(c->ctx, &s.of);
  let_go(&s);
  return status;
}

static void mlp_cost (const peri_call *c, double *flops, double *bytes) {
  bool back = c->op == &peri__op_mlp_backward_;
  const peri_tensor *x = c->in[back ? B_X : 0];
  int64_t width = x->shape[x->ndim - 1], rows = width > 0 ? x->numel / width : 0;
  for (int i = 0; i < c->nin; i++)
    if (c->in[i] != NULL) *bytes += (double)c->in[i]->numel * (double)peri__size(c->in[i]);
  for (int l = 0; l < c->list[0].count; l++) { /* of a copy its own rows */
    const peri_tensor *w = entry(c, 0, l);
    double products = (double)w->shape[w->ndim - 1] * (double)w->shape[w->ndim - 2];
    *flops += (back ? 4 : 2) * (double)rows * products;
  }
}

OPN(mlp_backward_, 0, .flags = PERI_OP_INPLACE | PERI_OP_STRIDED,
    .writes = 1 << 3 | 1 << 5 | 1 << 6,
    .sig = "g, x, saved, dx:tensor?, weights:tensors, dweights:tensors, dbiases:tensors, act:str",
    .doc = "Backward pass of mlp, into dx and the lists dweights and dbiases, each of which may be "
           "left out: g is the gradient of its result, saved the hidden layers of all rows, one "
           "layer after the other, behind the activation and then, where its gradient reads that, "
           "before it.",
    .infer = backward_infer, .cpu = backward_cpu, .cost = mlp_cost,
    TESTS(.domain =
              "g.shape=3,2; x.shape=3,4; saved.shape=15; saved=-0.9..0.9; weights1.shape=5,4; "
              "weights2.shape=2,5; dx.shape=3,4; dweights1.shape=5,4; dweights2.shape=2,5; "
              "dbiases1.shape=5; dbiases2.shape=2; attr act=tanh",
          .large = "g.shape=130,2; x.shape=130,70; saved.shape=8450; saved=-0.9..0.9; "
                   "weights1.shape=65,70; weights2.shape=2,65; dx.shape=130,70; "
                   "dweights1.shape=65,70; dweights2.shape=2,65; dbiases1.shape=65; "
                   "dbiases2.shape=2; attr act=tanh",
          .refuses = { "g.shape=3,2; x.shape=3,4; saved.shape=15; weights1.shape=5,4; "
                       "weights2.shape=2,6; "
                       "dweights.count=0; dbiases.count=0; attr act=tanh => (2, 6) | (5, 4)",
                       "g.shape=3,2; x.shape=3,4; saved.shape=14; weights1.shape=5,4; "
                       "weights2.shape=2,5; "
                       "dweights.count=0; dbiases.count=0; attr act=tanh => (14) | (15)",
                       "g.shape=3,2; x.shape=3,4; saved.shape=15; weights1.shape=5,4; "
                       "weights2.shape=2,5; "
                       "dweights1.shape=5,4; dweights2.shape=5,2; dbiases.count=0; attr act=tanh "
                       "=> (5, 2) "
                       "| "
                       "(2, 5)" },
          .reference = "(function () local h, d = saved:reshape { x:size(1), -1 } "
                       "d = g:matmul(weights[2]) * (1 - h * h) "
                       "return d:matmul(weights[1]), d.T:matmul(x), g.T:matmul(h), d:sum(1), "
                       "g:sum(1) end)()"));

/* ---- mlp ---- */

enum { WEIGHTS, BIASES }; /* lists */

static peri_status mlp_infer (peri_call *c) {
  const peri_tensor *x = c->in[0];
  bool keep = false;
  int64_t shape[PERI_MAX_DIMS];
  net s;
  TRY(sizes(c, 0, WEIGHTS, &s));
  for (int l = 0; l < s.of.layers; l++) {
    int dims = bias_shape(entry(c, WEIGHTS, l), shape);
    if (entry(c, BIASES, l) != NULL)
      TRY(want(c, entry(c, BIASES, l), x->dtype, "biases", l, dims, shape));
  }
  for (int i = 0; i < c->nin; i++) keep = keep || (c->in[i] != NULL && peri__tracked(c->in[i]));
  int64_t kept = keep && c->ctx->grad_enabled ? saved_size(&s) : 0;
  TRY(peri__new(c->ctx, (peri_dtype)x->dtype, y_shape(x, &s, shape), shape, &c->out[0]));
  return peri__new(c->ctx, (peri_dtype)x->dtype, 1, &kept, &c->out[1]);
}

static peri_status mlp_cpu (peri_call *c) {
  peri_status status = PERI_OK;
  net s;
  TRY(sizes(c, 0, WEIGHTS, &s));
  hold_weights(&s, &status, c, WEIGHTS);
  s.of.x = hold(&s, &status, c->in[0], false);
  for (int l = 0; l < s.of.layers; l++) s.of.b[l] = hold(&s, &status, entry(c, BIASES, l), false);
  s.of.y = c->out[0]->data;
  if (c->out[1]->numel > 0) saved_at(&s, c->out[1]->data);
  if (status == PERI_OK) status = peri__mlp_forward(c->ctx, &s.of);
  let_go(&s);
  return status;
}

/* The same gradients by ops that have derivatives, from the inputs on. */
static void composed_vjp (peri_vjp *v, const net *s) {
  peri_build *b = &v->b;
  peri_tensor *h[PERI_MLP_LAYERS + 1], *sum[PERI_MLP_LAYERS + 1], *x = v->c->in[0], *g = v->g[0];
  const int layers = s->of.layers, one = entry(v->c, WEIGHTS, 0)->ndim == 2; /* copies stay a dim */
  const int64_t row = -2, in[3] = { s->of.copies, s->of.rows, s->of.width[0] };
  const int64_t out[3] = { s->of.copies, s->of.rows, s->of.width[layers] };
  h[0] = BA(b, reshape, ATTR(A_DIMS(in + one, 3 - one)), x);
  g = BA(b, reshape, ATTR(A_DIMS(out + one, 3 - one)), g);
  for (int l = 0; l < layers - 1; l++) {
    peri_tensor *bias = entry(v->c, BIASES, l);
    sum[l + 1] = B(b, matmul, h[l], peri__turned(b, entry(v->c, WEIGHTS, l)));
    if (bias != NULL) sum[l + 1] = B(b, add, sum[l + 1], BA(b, unsqueeze, ATTR(A_INT(-2)), bias));
    h[l + 1] = sum[l + 1];
    if (s->act != NULL) h[l + 1] = peri__build(b, s->act->op, 1, &sum[l + 1], s->act->attr);
  }
  for (int l = layers - 1; l >= 0; l--) {
    int w = v->c->list[WEIGHTS].start + l, bias = v->c->list[BIASES].start + l;
    if (v->need[w]) v->gin[w] = B(b, matmul, peri__turned(b, g), h[l]);
    if (v->need[bias]) v->gin[bias] = BA(b, sum, ATTR(A_DIMS(&row, 1), A_INT(0)), g);
    if (l == 0 && !v->need[0]) return;
    g = B(b, matmul, g, v->c->in[w]);
    peri_tensor *slope[2] = { reads_before(s) ? sum[l] : h[l], g };
    if (l > 0 && s->act != NULL) g = peri__build(b, s->act->back, 2, slope, NULL);
  }
  v->gin[0] = BA(b, reshape, ATTR(A_DIMS(x->shape, x->ndim)), g);
}

static peri_tensor *new_like (peri_build *b, const peri_tensor *t) {
  peri_tensor *made = NULL;
  if (b->status == PERI_OK) b->status = peri__new_like(t, (peri_dtype)t->dtype, &made);
  return peri__build_own(b, made);
}

static void mlp_vjp (peri_vjp *v) {
  peri_build *b = &v->b;
  const peri_call *c = v->c;
  peri_tensor *in[4 + 3 * PERI_MLP_LAYERS] = { NULL }, **list = in + 4;
  net s;
  peri__build_fail(b, sizes((peri_call *)c, 0, WEIGHTS, &s));
  if (b->status != PERI_OK) return;
  if (b->ctx->grad_enabled) {
    composed_vjp(v, &s);
    return;
  }
  const int layers = s.of.layers;
  bool weights = false, biases = false;
  for (int l = 0; l < layers; l++) {
    weights = weights || v->need[c->list[WEIGHTS].start + l];
    biases = biases || v->need[c->list[BIASES].start + l];
  }
  in[B_G] = v->g[0];
  in[B_X] = c->in[0];
  in[B_SAVED] = peri__saved(v, 1);
  if (v->need[0]) in[B_DX] = v->gin[0] = new_like(b, c->in[0]);
  for (int l = 0; l < layers; l++) {
    int w = c->list[WEIGHTS].start + l, bias = c->list[BIASES].start + l;
    list[l] = c->in[w];
    if (weights) list[layers + l] = new_like(b, c->in[w]);
    if (biases) list[2 * layers + l] = new_like(b, c->in[bias]);
    if (v->need[w]) v->gin[w] = list[layers + l];
    if (v->need[bias]) v->gin[bias] = list[2 * layers + l];
  }
  if (b->status == PERI_OK)
    b->status = peri__apply(b->ctx, &peri__op_mlp_backward_, 4 + 3 * layers, in, c->attr, NULL);
}

OPN(mlp, 2, .nret = 1, .flags = PERI_OP_STRIDED | PERI_OP_UPCAST,
    .sig = "x, weights:tensors, biases:tensors, act:str",
    .doc =
        "A network of linear layers with an activation between them, in one pass: x (..., in) -> "
        "(..., out), weights (out, in) each, biases (out) each or none, act the name of an "
        "activation (peri.activations()) or none; the bits of linear and the activation one "
        "by one. With weights (copies, out, in) and biases (copies, out) several networks run "
        "at once, each on its own rows of x (copies, ..., in).",
    .infer = mlp_infer, .cpu = mlp_cpu, .vjp = mlp_vjp, .cost = mlp_cost,
    TESTS(.domain = "x.shape=3,4; weights1.shape=5,4; weights2.shape=2,5; biases1.shape=5; "
                    "biases2.shape=2; attr act=tanh",
          .variants = { "x.shape=2,3,4; weights1.shape=5,4; weights2.shape=2,5; biases.count=0; "
                        "attr act=gelu",
                        "x.shape=2,3,4; weights1.shape=2,5,4; weights2.shape=2,3,5; "
                        "biases1.shape=2,5; biases2.shape=2,3; attr act=silu",
                        "x.shape=4; weights1.shape=5,4; weights.count=1; biases1.shape=5; "
                        "biases.count=1; attr act=tanh",
                        "x.shape=2,1,4; weights1.shape=2,5,4; weights2.shape=2,3,5; "
                        "biases.count=0; attr act=none" },
          .large = "x.shape=130,70; weights1.shape=65,70; weights2.shape=2,65; biases1.shape=65; "
                   "biases2.shape=2; attr act=tanh",
          .refuses = { "x.shape=3,4; weights1.shape=5,4; weights2.shape=2,6; biases.count=0; attr "
                       "act=tanh "
                       "=> (2, 6) | (5, 4)",
                       "x.shape=3,3; weights1.shape=5,4; weights2.shape=2,5; biases.count=0; attr "
                       "act=tanh "
                       "=> (5, 4) | (3, 3)",
                       "x.shape=3,4; weights1.shape=5,4; weights2.shape=2,5; biases1.shape=5; "
                       "biases2.shape=5; attr act=tanh => (5) | (2)",
                       "x.shape=3,4; weights1.shape=2,5,4; weights2.shape=2,2,5; biases.count=0; "
                       "attr act=tanh => (2, 5, 4) | copies",
                       "x.shape=3,4; weights1.shape=5,4; weights2.shape=2,5; biases.count=0; "
                       "attr act=swish => silu" },
          .reference =
              "(function () local h = x for i = 1, #weights do h = "
              "h:matmul(weights[i]:transpose()) "
              "if biases[i] then h = h + (weights[i].ndim == 3 and biases[i]:unsqueeze(-2) or "
              "biases[i]) "
              "end "
              "if i < #weights and act ~= 'none' then h = peri[act](h) end end return h end)()"));
