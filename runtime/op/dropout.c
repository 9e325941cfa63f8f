/*
** dropout.c - inverted dropout (JMLR 15, 1929-1958). The mask is saved, so the backward pass and a
** recomputed segment see the same elements.
*/
#include <math.h>

#include "cpu/nn.h"
#include "op/op.h"

typedef struct dropout_job {
  const struct peri__nn_kernels *k;
  const void *x;
  void *y;
  uint8_t *mask;
  peri_rng rng;
  double scale;
  uint32_t limit; /* p in units of 2^-24, as peri__unit_f32 draws */
  int64_t n;
  bool f64, draw;
} dropout_job;

/* Pieces are blocks of four elements: one draw of the generator. */
static void dropout_range (void *ud, int64_t block0, int64_t block1, int worker) {
  const dropout_job *d = ud;
  int64_t begin = 4 * block0, end = 4 * block1 < d->n ? 4 * block1 : d->n;
  (void)worker;
  if (d->draw) d->k->dropout_mask(d->rng, (uint64_t)block0, end - begin, d->limit, d->mask + begin);
  if (!d->f64) {
    d->k->dropout((const float *)d->x + begin, d->mask + begin, (float)d->scale,
                  (float *)d->y + begin, end - begin);
    return;
  }
  for (int64_t i = begin; i < end; i++)
    ((double *)d->y)[i] = d->mask[i] ? ((const double *)d->x)[i] * d->scale : 0;
}

static void dropout_run (peri_ctx *ctx, dropout_job *d) {
  peri__parallel(ctx, (d->n + 3) / 4, 1024, dropout_range, d);
}

/* ---- dropout_backward ---- */

static peri_status dropout_backward_infer (peri_call *c) {
  char a[128], b[128];
  TRY(peri__want_float(c, 0, "g"));
  TRY(peri__want_dtype(c, 1, "mask", PERI_U8));
  if (c->in[0]->numel != c->in[1]->numel)
    return peri__fail(c->ctx, PERI_ESHAPE, "g has shape %s and mask %s; they must be equal",
                      peri__shape_text(c->in[0], a, sizeof a),
                      peri__shape_text(c->in[1], b, sizeof b));
  return peri__infer_same(c);
}

static peri_status dropout_backward_cpu (peri_call *c) {
  dropout_job d = { .k = c->ctx->cpu->nn,
                    .x = c->in[0]->data,
                    .y = c->out[0]->data,
                    .mask = c->in[1]->data,
                    .scale = c->attr[0].f,
                    .n = c->in[0]->numel,
                    .f64 = c->in[0]->dtype == PERI_F64 };
  dropout_run(c->ctx, &d);
  return PERI_OK;
}

static void dropout_backward_vjp (peri_vjp *v) {
  v->gin[0] = BA(&v->b, dropout_backward, v->c->attr, v->g[0], v->c->in[1]);
}

OP(dropout_backward, .sig = "g, mask, scale:num",
   .doc = "Gradient of dropout: g * scale where the u8 mask is not 0, else 0.",
   .flags = PERI_OP_UPCAST, .infer = dropout_backward_infer, .cpu = dropout_backward_cpu,
   .vjp = dropout_backward_vjp,
   TESTS(.domain = "mask=u8:0..1; attr scale=2",
         .refuses = { "g.shape=2; mask.shape=3; mask=u8:0..1; attr scale=2 => (2) | (3)" }));

/* ---- dropout ---- */

static bool dropout_is_identity (const peri_call *c) { return c->attr[0].f == 0 || !c->attr[1].i; }

static peri_status dropout_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  double p = c->attr[0].f;
  int64_t none = 0;
  TRY(peri__want_float(c, 0, "x"));
  if (!(p >= 0 && p <= 1)) return peri__fail(c->ctx, PERI_EINVAL, "p = %g, expected 0 to 1", p);
  if (dropout_is_identity(c)) {
    TRY(peri__view(x, 0, x->ndim, x->shape, x->stride, &c->out[0]));
    return peri__new(c->ctx, PERI_U8, 1, &none, &c->out[1]);
  }
  TRY(peri__infer_same(c));
  return peri__new_like(x, PERI_U8, &c->out[1]);
}

static double dropout_scale (double p) { return p < 1 ? 1 / (1 - p) : 0; }

static peri_status dropout_cpu (peri_call *c) {
  if (dropout_is_identity(c)) return PERI_OK;
  dropout_job d = { .k = c->ctx->cpu->nn,
                    .x = c->in[0]->data,
                    .y = c->out[0]->data,
                    .mask = c->out[1]->data,
                    .rng = peri__rng_next(c->ctx),
                    .scale = dropout_scale(c->attr[0].f),
                    .limit = (uint32_t)ceil((double)(float)c->attr[0].f * 0x1p24),
                    .n = c->in[0]->numel,
                    .f64 = c->in[0]->dtype == PERI_F64,
                    .draw = true };
  dropout_run(c->ctx, &d);
  return PERI_OK;
}

static void dropout_vjp (peri_vjp *v) {
  if (dropout_is_identity(v->c))
    v->gin[0] = v->g[0];
  else
    v->gin[0] = BA(&v->b, dropout_backward, ATTR(A_NUM(dropout_scale(v->c->attr[0].f))), v->g[0],
                   peri__saved(v, 1));
}

OPN(dropout, 2, .sig = "x, p:num=0.5, training:bool=true",
    .doc = "In training each element is 0 with probability p and x / (1 - p) otherwise; else x "
           "itself.",
    .flags = PERI_OP_RANDOM | PERI_OP_UPCAST, .nret = 1, .infer = dropout_infer, .cpu = dropout_cpu,
    .unread = 1, .vjp = dropout_vjp,
    TESTS(.domain = "attr training=false", .variants = { "attr p=0.4" },
          .refuses = { "x.shape=2; attr p=2 => 2" }));
