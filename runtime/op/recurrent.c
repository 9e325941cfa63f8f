/*
** recurrent.c - LSTM and GRU layers over whole sequences (Hochreiter and Schmidhuber 1997, Cho et al.
** 2014, as PyTorch has them), with states that are reset inside a sequence and rows of unequal length.
** The product with x is one matrix product over all steps; the steps are cpu/recurrent.c's.
*/
#include "cpu/recurrent.h"

#include <inttypes.h>
#include <string.h>

#include "cpu/gemm.h"
#include "op/matrix.h"
#include "op/op.h"
#include "op/rule.h"

/* ---- what the four ops share ---- */

static int kind_of (const peri_call *c) {
  return c->op == &peri__op_lstm || c->op == &peri__op_lstm_backward ? PERI_LSTM : PERI_GRU;
}

/* Input i, which may be NULL, is of dtype d and has the shape given. */
static peri_status want (peri_call *c, int i, const char *name, peri_dtype d, int ndim,
                         const int64_t *shape) {
  char a[128], b[128];
  const peri_tensor *t = c->in[i];
  if (t == NULL) return PERI_OK;
  TRY(peri__want_dtype(c, i, name, d));
  if (t->ndim == ndim && memcmp(t->shape, shape, (size_t)ndim * sizeof *shape) == 0) return PERI_OK;
  return peri__fail(c->ctx, PERI_ESHAPE, "%s has shape %s, expected %s", name,
                    peri__shape_text(t, a, sizeof a), peri__sizes_text(ndim, shape, b, sizeof b));
}

static peri_status want_masks (peri_call *c, int starts, int64_t B, int64_t T) {
  const int64_t both[2] = { B, T };
  TRY(want(c, starts, "starts", PERI_BOOL, 2, both));
  return want(c, starts + 1, "lengths", PERI_I64, 1, both);
}

/* Values of lengths are 0 to T. */
static peri_status check_lengths (peri_call *c, const peri_tensor *lengths, int64_t T) {
  for (int64_t i = 0; lengths != NULL && i < lengths->numel; i++) {
    int64_t n = ((const int64_t *)lengths->data)[i];
    if (n < 0 || n > T)
      return peri__fail(c->ctx, PERI_EINVAL,
                        "length %" PRId64 " of row %" PRId64 " (from 0) is not 0 to %" PRId64, n, i,
                        T);
  }
  return PERI_OK;
}

static const void *data_of (const peri_tensor *t) { return t != NULL ? t->data : NULL; }

/* ---- forward ---- */

enum { X, W_IH, W_HH, B_IH, B_HH, H0 }; /* then c0 of an LSTM, starts, lengths */
enum { Y, HN, CN };                     /* and what is saved, the last */

static int masks_at (int kind) { return kind == PERI_LSTM ? H0 + 2 : H0 + 1; }
static int saved_at (int kind) { return kind == PERI_LSTM ? CN + 1 : CN; }

static peri_status forward_infer (peri_call *c) {
  const int kind = kind_of(c);
  const int64_t gates = peri__cell_gates(kind);
  const peri_tensor *x = c->in[X], *w = c->in[W_HH];
  char a[128];
  TRY(peri__want_wide(c, X, "x"));
  TRY(peri__want_ndim(c, X, "x", 3));
  TRY(peri__want_ndim(c, W_HH, "weight_hh", 2));
  const peri_dtype d = (peri_dtype)x->dtype;
  const int64_t B = x->shape[0], T = x->shape[1], H = w->shape[1], rows = w->shape[0];
  if (rows % gates != 0 || rows / gates != H)
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "weight_hh has shape %s, expected (%" PRId64 " hidden, hidden)",
                      peri__shape_text(w, a, sizeof a), gates);
  TRY(want(c, W_IH, "weight_ih", d, 2, (int64_t[]){ rows, x->shape[2] }));
  TRY(peri__want_dtype(c, W_HH, "weight_hh", d));
  TRY(want(c, B_IH, "bias_ih", d, 1, &rows));
  TRY(want(c, B_HH, "bias_hh", d, 1, &rows));
  TRY(want(c, H0, "h0", d, 2, (int64_t[]){ B, H }));
  if (kind == PERI_LSTM) TRY(want(c, H0 + 1, "c0", d, 2, (int64_t[]){ B, H }));
  TRY(want_masks(c, masks_at(kind), B, T));
  TRY(peri__new(c->ctx, d, 3, (int64_t[]){ B, T, H }, &c->out[Y]));
  TRY(peri__new(c->ctx, d, 2, (int64_t[]){ B, H }, &c->out[HN]));
  if (kind == PERI_LSTM) TRY(peri__new(c->ctx, d, 2, (int64_t[]){ B, H }, &c->out[CN]));
  return peri__new(c->ctx, d, 4, (int64_t[]){ B, T, peri__cell_saves(kind), H },
                   &c->out[saved_at(kind)]);
}

/* The biases that are added to W_ih x: both, but that of a GRU's new gate has two places. */
#define SUM_BIAS(type)                                                               \
  do {                                                                               \
    const type *a = data_of(c->in[B_IH]), *b = data_of(c->in[B_HH]);                 \
    for (int64_t i = 0; i < n; i++)                                                  \
      ((type *)to)[i] = (a != NULL ? a[i] : 0) + (b != NULL && i < both ? b[i] : 0); \
  } while (0)

static void sum_bias (const peri_call *c, int64_t n, int64_t both, void *to) {
  if (c->in[X]->dtype == PERI_F32)
    SUM_BIAS(float);
  else
    SUM_BIAS(double);
}

static peri_status input_product (peri_call *c, const struct peri__recurrent *r, void *bias) {
  const peri_tensor *x = c->in[X], *w = c->in[W_IH];
  const int64_t n = w->shape[0], k = w->shape[1], row = peri__cell_saves(r->kind) * r->H;
  sum_bias(c, n, r->kind == PERI_LSTM ? n : 2 * r->H, bias);
  if (x->dtype == PERI_F32)
    return peri__gemm_f32(c->ctx, &(peri__gemm){ .m = r->B * r->T,
                                                 .n = n,
                                                 .k = k,
                                                 .a = x->data,
                                                 .ars = k,
                                                 .acs = 1,
                                                 .b = w->data,
                                                 .brs = 1,
                                                 .bcs = k,
                                                 .c = r->saved,
                                                 .crs = row,
                                                 .bias = bias });
  peri__gemm_f64(c->ctx, &(peri__gemm64){ .m = r->B * r->T,
                                          .n = n,
                                          .k = k,
                                          .a = x->data,
                                          .ars = k,
                                          .acs = 1,
                                          .b = w->data,
                                          .brs = 1,
                                          .bcs = k,
                                          .c = r->saved,
                                          .crs = row,
                                          .bias = bias });
  return PERI_OK;
}

static peri_status forward_cpu (peri_call *c) {
  const peri_tensor *x = c->in[X];
  const bool f64 = x->dtype == PERI_F64;
  const size_t size = peri__size(x);
  struct peri__recurrent r = { .kind = kind_of(c), .reverse = c->attr[0].i != 0 };
  r.B = x->shape[0], r.T = x->shape[1], r.H = c->in[W_HH]->shape[1];
  r.w = c->in[W_HH]->data;
  r.h0 = data_of(c->in[H0]);
  if (r.kind == PERI_LSTM) r.c0 = data_of(c->in[H0 + 1]), r.cn = c->out[CN]->data;
  r.starts = data_of(c->in[masks_at(r.kind)]);
  r.lengths = data_of(c->in[masks_at(r.kind) + 1]);
  r.saved = c->out[saved_at(r.kind)]->data;
  r.y = c->out[Y]->data, r.hn = c->out[HN]->data;
  if (r.kind == PERI_GRU && c->in[B_HH] != NULL)
    r.bias_n = (const char *)c->in[B_HH]->data + (size_t)(2 * r.H) * size;
  TRY(check_lengths(c, c->in[masks_at(r.kind) + 1], r.T));
  if (r.B == 0 || r.H == 0) return PERI_OK;
  peri_status s = PERI_OK;
  if (r.T > 0) {
    size_t bytes = (size_t)c->in[W_HH]->shape[0] * size;
    void *bias = peri__block_get(c->ctx, bytes);
    if (bias == NULL)
      return peri__fail(c->ctx, PERI_ENOMEM, "no memory for %zu bytes of scratch", bytes);
    s = input_product(c, &r, bias);
    if (s == PERI_OK) {
      if (f64)
        peri__recurrent_f64(c->ctx, &r, false);
      else
        s = peri__recurrent_f32(c->ctx, &r, false);
    }
    peri__block_put(c->ctx, bias);
  }
  if (s == PERI_OK) peri__recurrent_rest(&r, false, size);
  return s;
}

static void forward_cost (const peri_call *c, double *flops, double *bytes) {
  const peri_tensor *x = c->in[X], *wi = c->in[W_IH], *w = c->in[W_HH];
  const double steps = (double)x->shape[0] * (double)x->shape[1];
  *flops = 2 * steps * ((double)wi->numel + (double)w->numel);
  *bytes =
      ((double)x->numel + (double)wi->numel + (double)w->numel + 7 * steps * (double)w->shape[1]) *
      (double)peri__size(x);
}

/* ---- backward ---- */

enum { R_W, R_Y, R_SAVED, R_H0 }; /* then c0 of an LSTM, starts, lengths, gy, gh, gc of an LSTM */
enum { D_X, D_H, BEFORE };        /* LSTM: dx, before, dh0, dc0; GRU: dx, dh, before, dh0 */

static int gy_at (int kind) { return kind == PERI_LSTM ? R_H0 + 4 : R_H0 + 3; }
static int before_at (int kind) { return kind == PERI_LSTM ? 1 : 2; }

static peri_status backward_infer (peri_call *c) {
  const int kind = kind_of(c), masks = kind == PERI_LSTM ? R_H0 + 2 : R_H0 + 1;
  const int64_t gates = peri__cell_gates(kind);
  const peri_tensor *y = c->in[R_Y];
  TRY(peri__want_wide(c, R_Y, "y"));
  TRY(peri__want_ndim(c, R_Y, "y", 3));
  const peri_dtype d = (peri_dtype)y->dtype;
  const int64_t B = y->shape[0], T = y->shape[1], H = y->shape[2];
  const int64_t state[2] = { B, H }, of_gates[3] = { B, T, gates * H };
  TRY(want(c, R_W, "weight_hh", d, 2, (int64_t[]){ gates * H, H }));
  TRY(want(c, R_SAVED, "saved", d, 4, (int64_t[]){ B, T, peri__cell_saves(kind), H }));
  TRY(want(c, R_H0, "h0", d, 2, state));
  if (kind == PERI_LSTM) TRY(want(c, R_H0 + 1, "c0", d, 2, state));
  TRY(want_masks(c, masks, B, T));
  TRY(want(c, gy_at(kind), "gy", d, 3, y->shape));
  TRY(want(c, gy_at(kind) + 1, "gh", d, 2, state));
  if (kind == PERI_LSTM) TRY(want(c, gy_at(kind) + 2, "gc", d, 2, state));
  const int64_t initial[2] = { c->attr[1].i ? B : 0, H };
  TRY(peri__new(c->ctx, d, 3, of_gates, &c->out[D_X]));
  if (kind == PERI_GRU) TRY(peri__new(c->ctx, d, 3, of_gates, &c->out[D_H]));
  TRY(peri__new(c->ctx, d, 3, y->shape, &c->out[before_at(kind)]));
  TRY(peri__new(c->ctx, d, 2, initial, &c->out[before_at(kind) + 1]));
  if (kind == PERI_LSTM) TRY(peri__new(c->ctx, d, 2, initial, &c->out[3]));
  return PERI_OK;
}

static peri_status backward_cpu (peri_call *c) {
  const peri_tensor *y = c->in[R_Y];
  const bool f64 = y->dtype == PERI_F64, state = c->attr[1].i != 0;
  const size_t size = peri__size(y);
  struct peri__recurrent r = { .kind = kind_of(c), .reverse = c->attr[0].i != 0 };
  const int masks = r.kind == PERI_LSTM ? R_H0 + 2 : R_H0 + 1, gy = gy_at(r.kind);
  r.B = y->shape[0], r.T = y->shape[1], r.H = y->shape[2];
  r.w = c->in[R_W]->data;
  r.y = y->data, r.saved = c->in[R_SAVED]->data;
  r.h0 = data_of(c->in[R_H0]);
  r.starts = data_of(c->in[masks]), r.lengths = data_of(c->in[masks + 1]);
  r.gy = data_of(c->in[gy]), r.ghn = data_of(c->in[gy + 1]);
  r.dx = c->out[D_X]->data;
  if (r.kind == PERI_LSTM)
    r.c0 = data_of(c->in[R_H0 + 1]), r.gcn = data_of(c->in[gy + 2]);
  else
    r.dh = c->out[D_H]->data;
  r.before = c->out[before_at(r.kind)]->data;
  TRY(check_lengths(c, c->in[masks + 1], r.T));
  if (r.B == 0 || r.H == 0) return PERI_OK;
  size_t bytes = (size_t)(2 * r.B * r.H) * size;
  void *room = NULL;
  if (state) {
    r.dh0 = c->out[before_at(r.kind) + 1]->data;
    if (r.kind == PERI_LSTM) r.dc0 = c->out[3]->data;
  } else if (f64) { /* whose loops carry gradients there */
    room = peri__block_get(c->ctx, bytes);
    if (room == NULL)
      return peri__fail(c->ctx, PERI_ENOMEM, "no memory for %zu bytes of scratch", bytes);
    r.dh0 = room, r.dc0 = (double *)room + r.B * r.H;
  }
  peri_status s = PERI_OK;
  if (f64)
    peri__recurrent_f64(c->ctx, &r, true);
  else
    s = peri__recurrent_f32(c->ctx, &r, true);
  if (s == PERI_OK) peri__recurrent_rest(&r, true, size);
  peri__block_put(c->ctx, room);
  return s;
}

static void backward_cost (const peri_call *c, double *flops, double *bytes) {
  const peri_tensor *y = c->in[R_Y], *w = c->in[R_W];
  const double steps = (double)y->shape[0] * (double)y->shape[1];
  *flops = 2 * steps * (double)w->numel;
  *bytes = ((double)w->numel + 14 * steps * (double)w->shape[1]) * (double)peri__size(y);
}

/* x, with zeros where there is no step: gradients there are 0, and 0 times what x holds shall be. */
static peri_tensor *steps_alone (peri_vjp *v, peri_tensor *lengths) {
  peri_tensor *x = v->c->in[X];
  if (lengths == NULL) return x;
  const peri_attr range[] = { A_NUM(0), A_NUM((double)x->shape[1]), A_NUM(1), A_INT(PERI_I64) };
  peri_tensor *t = peri__build(BB, &peri__op_arange, 0, NULL, range);
  peri_tensor *step = B(BB, lt, t, BA(BB, unsqueeze, ATTR(A_INT(1)), lengths));
  return B(BB, where, BA(BB, unsqueeze, ATTR(A_INT(2)), step), x, NUM(0));
}

static void forward_vjp (peri_vjp *v) {
  const peri_call *c = v->c;
  const int kind = kind_of(c), masks = masks_at(kind);
  const int64_t rows = 0;
  bool state = c->in[H0] != NULL && v->need[H0];
  peri_tensor *in[10] = { c->in[W_HH], peri__saved(v, Y), peri__saved(v, saved_at(kind)),
                          c->in[H0] };
  peri_tensor *out[PERI_MAX_OUT] = { NULL };
  int n = R_H0 + 1;
  if (kind == PERI_LSTM) {
    in[n++] = c->in[H0 + 1];
    state = state || (c->in[H0 + 1] != NULL && v->need[H0 + 1]);
  }
  in[n++] = c->in[masks], in[n++] = c->in[masks + 1];
  for (int k = Y; k < saved_at(kind); k++) in[n++] = v->g[k];
  peri__build_all(BB, kind == PERI_LSTM ? &peri__op_lstm_backward : &peri__op_gru_backward, n, in,
                  ATTR(A_INT(c->attr[0].i), A_INT(state)), out);
  if (v->b.status != PERI_OK) return;
  GIVE(X, B(BB, matmul, out[D_X], c->in[W_IH]));
  peri_tensor *dx = peri__flat_rows(BB, out[D_X]);
  peri_tensor *dh = kind == PERI_LSTM ? dx : peri__flat_rows(BB, out[D_H]);
  peri_tensor *before = out[before_at(kind)];
  GIVE(W_IH,
       B(BB, matmul, peri__turned(BB, dx), peri__flat_rows(BB, steps_alone(v, c->in[masks + 1]))));
  GIVE(W_HH, B(BB, matmul, peri__turned(BB, dh), peri__flat_rows(BB, before)));
  GIVE(B_IH, BA(BB, sum, ATTR(A_DIMS(&rows, 1), A_INT(0)), dx));
  GIVE(B_HH, dh == dx && v->need[B_IH] ? v->gin[B_IH]
                                       : BA(BB, sum, ATTR(A_DIMS(&rows, 1), A_INT(0)), dh));
  GIVE(H0, out[before_at(kind) + 1]);
  if (kind == PERI_LSTM) GIVE(H0 + 1, out[3]);
}

/* ---- lstm ---- */

OPN(lstm, 4, .nret = 3,
    .sig = "x, weight_ih, weight_hh, bias_ih:tensor?, bias_hh:tensor?, h0:tensor?, c0:tensor?, "
           "starts:tensor?, lengths:tensor?, reverse:bool=false",
    .doc = "One LSTM layer over x (B, T, in): i, f, o = sigmoid, g = tanh of weight_ih x + "
           "bias_ih + weight_hh h + bias_hh, c = f c + i g, h = o tanh(c); weight_ih (4 H, in) "
           "and weight_hh (4 H, H) have their rows in the order i, f, g, o. Returns y (B, T, H) "
           "and the last h and c (B, H). h0, c0 (B, H) are zeros where not given; where starts "
           "(B, T), bool, is true the state is zeroed before that step; steps from lengths (B), "
           "i64, on are none: they give zeros, leave the state, and x may hold anything there. "
           "reverse: from the last step to the first (Hochreiter and Schmidhuber, 1997).",
    .flags = PERI_OP_UPCAST | PERI_OP_NO_GRAD2, .infer = forward_infer, .cpu = forward_cpu,
    .vjp = forward_vjp, .cost = forward_cost,
    TESTS(.domain = "x.shape=2,3,4; weight_ih.shape=20,4; weight_hh.shape=20,5; bias_ih.shape=20; "
                    "bias_hh.shape=20; h0.shape=2,5; c0.shape=2,5",
          .variants = { "x.shape=3,4,2; weight_ih.shape=8,2; weight_hh.shape=8,2",
                        "x.shape=3,4,2; weight_ih.shape=8,2; weight_hh.shape=8,2; bias_hh.shape=8; "
                        "attr reverse=true",
                        "x.shape=3,4,2; weight_ih.shape=8,2; weight_hh.shape=8,2; h0.shape=3,2; "
                        "starts=bool; starts.shape=3,4",
                        "x.shape=3,4,2; weight_ih.shape=8,2; weight_hh.shape=8,2; h0.shape=3,2; "
                        "lengths=int:1..4; lengths.shape=3; c0.shape=3,2",
                        "x.shape=3,4,2; weight_ih.shape=8,2; weight_hh.shape=8,2; h0.shape=3,2; "
                        "starts=bool; starts.shape=3,4; lengths=int:0..4; lengths.shape=3; attr "
                        "reverse=true",
                        "x.shape=2,1,3; weight_ih.shape=16,3; weight_hh.shape=16,4; h0.shape=2,4",
                        "x.shape=3,4,2; weight_ih.shape=8,2; weight_hh.shape=8,2; c0.shape=3,2; "
                        "starts=bool; starts.shape=3,4; attr reverse=true" },
          .large = "x.shape=26,7,20; x=-1..1; weight_ih.shape=288,20; weight_ih=-0.3..0.3; "
                   "weight_hh.shape=288,72; weight_hh=-0.1..0.1",
          .refuses = { "x.shape=3,4; weight_ih.shape=20,4; weight_hh.shape=20,5 => (3, 4) | 3 dims",
                       "x.shape=2,3,6; weight_ih.shape=20,4; weight_hh.shape=20,5 => weight_ih | "
                       "(20, 4) | (20, 6)",
                       "x.shape=2,3,4; weight_ih.shape=20,4; weight_hh.shape=20,6 => (20, 6) | (4 "
                       "hidden, hidden)",
                       "x.shape=2,3,4; weight_ih.shape=20,4; weight_hh.shape=20,5; "
                       "bias_ih.shape=21 => bias_ih | (21) | (20)",
                       "x.shape=2,3,4; weight_ih.shape=20,4; weight_hh.shape=20,5; "
                       "bias_hh.shape=19 => bias_hh | (19)",
                       "x.shape=2,3,4; weight_ih.shape=20,4; weight_hh.shape=20,5; h0.shape=2,4 => "
                       "h0 | (2, 4) | (2, 5)",
                       "x.shape=2,3,4; weight_ih.shape=20,4; weight_hh.shape=20,5; "
                       "starts.shape=2,3 => starts | bool",
                       "x.shape=2,3,4; weight_ih.shape=20,4; weight_hh.shape=20,5; starts=bool; "
                       "starts.shape=3,2 => starts | (3, 2) | (2, 3)",
                       "x.shape=2,3,4; weight_ih.shape=20,4; weight_hh.shape=20,5; "
                       "lengths=i64[3,4] => length 4 | row 1 | 3",
                       "x.shape=2,3,4; weight_ih.shape=20,4; weight_hh.shape=20,5; "
                       "lengths=i64[-1,3] => length -1 | row 0",
                       "x.shape=2,3,4; weight_ih.shape=20,4; weight_hh.shape=20,5; lengths=i64[3] "
                       "=> lengths | (1) | (2)",
                       "x.shape=2,3,4; weight_ih.shape=20,4; weight_hh.shape=20,5; c0.shape=1,5 => "
                       "c0 | (1, 5) | (2, 5)" }));

OPN(lstm_backward, 4,
    .sig =
        "weight_hh, y, saved, h0:tensor?, c0:tensor?, starts:tensor?, lengths:tensor?, gy:tensor?, "
        "gh:tensor?, gc:tensor?, reverse:bool=false, state:bool=true",
    .doc = "Gradients of an LSTM layer from its y (B, T, H) and saved (B, T, 5, H), the gates i, "
           "f, g, o and the cell of every step: of weight_ih x (B, T, 4 H), the h that each step "
           "began with (B, T, H), and, with state, of h0 and c0 (B, H). gy, gh, gc are the "
           "gradients of the results.",
    .flags = PERI_OP_UPCAST, .infer = backward_infer, .cpu = backward_cpu, .cost = backward_cost,
    TESTS(.domain = "weight_hh.shape=20,5; y.shape=2,3,5; saved.shape=2,3,5,5; gy.shape=2,3,5",
          .variants = { "weight_hh.shape=20,5; y.shape=2,3,5; saved.shape=2,3,5,5; gh.shape=2,5; "
                        "attr state=false",
                        "weight_hh.shape=20,5; y.shape=2,3,5; saved.shape=2,3,5,5; gy.shape=2,3,5; "
                        "h0.shape=2,5; starts=bool; starts.shape=2,3; lengths=int:1..3; "
                        "lengths.shape=2; attr reverse=true" },
          .large = "weight_hh.shape=288,72; weight_hh=-0.1..0.1; y.shape=26,7,72; y=-1..1; "
                   "saved.shape=26,7,5,72; saved=0..1; gy.shape=26,7,72",
          .refuses = {
              "weight_hh.shape=20,5; y.shape=2,3,4; saved.shape=2,3,5,4 => weight_hh | (20, 5)",
              "weight_hh.shape=20,5; y.shape=2,3,5; saved.shape=2,3,6,5 => saved | (2, 3, 5, 5)",
              "weight_hh.shape=20,5; y.shape=2,3,5; saved.shape=2,3,5,5; gy.shape=2,3,4 => gy | "
              "(2, 3, 4)",
              "weight_hh.shape=20,5; y.shape=2,3,5; saved.shape=2,3,5,5; gh.shape=2,4 => gh | (2, "
              "4)",
              "weight_hh.shape=20,5; y.shape=2,3,5; saved.shape=2,3,5,5; lengths=i64[3,4] => "
              "length 4 | row 1" }));

/* ---- gru ---- */

OPN(gru, 3, .nret = 2,
    .sig = "x, weight_ih, weight_hh, bias_ih:tensor?, bias_hh:tensor?, h0:tensor?, starts:tensor?, "
           "lengths:tensor?, reverse:bool=false",
    .doc = "One GRU layer over x (B, T, in): r, z = sigmoid of weight_ih x + bias_ih + weight_hh "
           "h + bias_hh, n = tanh(weight_in x + bias_in + r (weight_hn h + bias_hn)), h = (1 - "
           "z) n + z h; weight_ih (3 H, in) and weight_hh (3 H, H) have their rows in the order "
           "r, z, n. Returns y (B, T, H) and the last h (B, H). h0, starts, lengths and reverse "
           "are those of lstm (Cho et al., 2014, with the reset gate behind the product, as "
           "cuDNN and PyTorch have it).",
    .flags = PERI_OP_UPCAST | PERI_OP_NO_GRAD2, .infer = forward_infer, .cpu = forward_cpu,
    .vjp = forward_vjp, .cost = forward_cost,
    TESTS(.domain = "x.shape=2,3,4; weight_ih.shape=15,4; weight_hh.shape=15,5; bias_ih.shape=15; "
                    "bias_hh.shape=15; h0.shape=2,5",
          .variants = { "x.shape=3,4,2; weight_ih.shape=6,2; weight_hh.shape=6,2",
                        "x.shape=3,4,2; weight_ih.shape=6,2; weight_hh.shape=6,2; bias_hh.shape=6; "
                        "attr reverse=true",
                        "x.shape=3,4,2; weight_ih.shape=6,2; weight_hh.shape=6,2; h0.shape=3,2; "
                        "starts=bool; starts.shape=3,4",
                        "x.shape=3,4,2; weight_ih.shape=6,2; weight_hh.shape=6,2; h0.shape=3,2; "
                        "lengths=int:1..4; lengths.shape=3",
                        "x.shape=3,4,2; weight_ih.shape=6,2; weight_hh.shape=6,2; h0.shape=3,2; "
                        "starts=bool; starts.shape=3,4; lengths=int:0..4; lengths.shape=3; attr "
                        "reverse=true",
                        "x.shape=2,1,3; weight_ih.shape=12,3; weight_hh.shape=12,4; h0.shape=2,4" },
          .large = "x.shape=26,7,20; x=-1..1; weight_ih.shape=216,20; weight_ih=-0.3..0.3; "
                   "weight_hh.shape=216,72; weight_hh=-0.1..0.1",
          .refuses = { "x.shape=3,4; weight_ih.shape=15,4; weight_hh.shape=15,5 => (3, 4) | 3 dims",
                       "x.shape=2,3,6; weight_ih.shape=15,4; weight_hh.shape=15,5 => weight_ih | "
                       "(15, 4) | (15, 6)",
                       "x.shape=2,3,4; weight_ih.shape=15,4; weight_hh.shape=15,6 => (15, 6) | (3 "
                       "hidden, hidden)",
                       "x.shape=2,3,4; weight_ih.shape=15,4; weight_hh.shape=15,5; "
                       "bias_ih.shape=16 => bias_ih | (16) | (15)",
                       "x.shape=2,3,4; weight_ih.shape=15,4; weight_hh.shape=15,5; "
                       "bias_hh.shape=14 => bias_hh | (14)",
                       "x.shape=2,3,4; weight_ih.shape=15,4; weight_hh.shape=15,5; h0.shape=2,4 => "
                       "h0 | (2, 4) | (2, 5)",
                       "x.shape=2,3,4; weight_ih.shape=15,4; weight_hh.shape=15,5; "
                       "starts.shape=2,3 => starts | bool",
                       "x.shape=2,3,4; weight_ih.shape=15,4; weight_hh.shape=15,5; starts=bool; "
                       "starts.shape=3,2 => starts | (3, 2) | (2, 3)",
                       "x.shape=2,3,4; weight_ih.shape=15,4; weight_hh.shape=15,5; "
                       "lengths=i64[3,4] => length 4 | row 1 | 3",
                       "x.shape=2,3,4; weight_ih.shape=15,4; weight_hh.shape=15,5; "
                       "lengths=i64[-1,3] => length -1 | row 0",
                       "x.shape=2,3,4; weight_ih.shape=15,4; weight_hh.shape=15,5; lengths=i64[3] "
                       "=> lengths | (1) | (2)" }));

OPN(gru_backward, 4,
    .sig =
        "weight_hh, y, saved, h0:tensor?, starts:tensor?, lengths:tensor?, gy:tensor?, gh:tensor?, "
        "reverse:bool=false, state:bool=true",
    .doc = "Gradients of a GRU layer from its y (B, T, H) and saved (B, T, 4, H), the gates r, "
           "z, n and weight_hn h + bias_hn of every step: of weight_ih x and of weight_hh h (B, "
           "T, 3 H), the h that each step began with (B, T, H), and, with state, of h0 (B, H).",
    .flags = PERI_OP_UPCAST, .infer = backward_infer, .cpu = backward_cpu, .cost = backward_cost,
    TESTS(.domain = "weight_hh.shape=15,5; y.shape=2,3,5; saved.shape=2,3,4,5; gy.shape=2,3,5",
          .variants = { "weight_hh.shape=15,5; y.shape=2,3,5; saved.shape=2,3,4,5; gh.shape=2,5; "
                        "attr state=false",
                        "weight_hh.shape=15,5; y.shape=2,3,5; saved.shape=2,3,4,5; gy.shape=2,3,5; "
                        "h0.shape=2,5; starts=bool; starts.shape=2,3; lengths=int:1..3; "
                        "lengths.shape=2; attr reverse=true" },
          .large = "weight_hh.shape=216,72; weight_hh=-0.1..0.1; y.shape=26,7,72; y=-1..1; "
                   "saved.shape=26,7,4,72; saved=0..1; gy.shape=26,7,72",
          .refuses = {
              "weight_hh.shape=15,5; y.shape=2,3,4; saved.shape=2,3,4,4 => weight_hh | (15, 5)",
              "weight_hh.shape=15,5; y.shape=2,3,5; saved.shape=2,3,5,5 => saved | (2, 3, 4, 5)",
              "weight_hh.shape=15,5; y.shape=2,3,5; saved.shape=2,3,4,5; gy.shape=2,3,4 => gy | "
              "(2, 3, 4)",
              "weight_hh.shape=15,5; y.shape=2,3,5; saved.shape=2,3,4,5; gh.shape=2,4 => gh | (2, "
              "4)",
              "weight_hh.shape=15,5; y.shape=2,3,5; saved.shape=2,3,4,5; lengths=i64[3,4] => "
              "length 4 | row 1" }));
