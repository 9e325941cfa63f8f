/* select.c - choosing and mixing by elements, with broadcasting: where, masked_fill, lerp. */
#include <string.h>

#include "op/elementwise.h"
#include "op/move.h"
#include "op/rule.h"

#define WHERE(name, type)                                                                    \
  static void name(int64_t n, const void *const *in, const int64_t *step, void *out,         \
                   const double *p) {                                                        \
    const uint8_t *m = in[0];                                                                \
    const type *a = in[1], *b = in[2];                                                       \
    type *y = out;                                                                           \
    (void)p;                                                                                 \
    for (int64_t i = 0; i < n; i++) y[i] = m[i * step[0]] ? a[i * step[1]] : b[i * step[2]]; \
  }
WHERE(d_where, double)
WHERE(i_where, int64_t)

static peri_status where_infer (peri_call *c) {
  int d = peri__promoted(c, 1, 2);
  for (int i = 1; i < 3; i++) TRY(peri__number_fits(c, i, d));
  return peri__infer_broadcast(c, 3, d);
}
static peri_status where_cpu (peri_call *c) {
  int type = peri__wide_type(c->out[0]->dtype);
  peri__kernel fn = type == PERI_F32   ? c->ctx->cpu->math->where
                    : type == PERI_F64 ? d_where
                                       : i_where;
  peri__loop l = { .fn = fn,
                   .nin = 3,
                   .in_type = { PERI_BOOL, type, type },
                   .out_type = type,
                   .grain = PERI_GRAIN_CHEAP };
  return peri__elementwise(c->ctx, &l, c->in, c->out[0]);
}
RULE(where) {
  GIVE(1, B(BB, where, IN(0), GRAD, NUM(0)));
  GIVE(2, B(BB, where, IN(0), NUM(0), GRAD));
}
OP(where, .sig = "cond, x, y", .flags = PERI_OP_STRIDED,
   .doc = "x where cond is not 0, else y; all three broadcast.", .infer = where_infer,
   .cpu = where_cpu, .unread = 2 | 4, .vjp = where_vjp,
   TESTS(.domain = "cond=int:0..1",
         .variants = { "cond=bool; cond.shape=3; x.shape=(); y.shape=2,1" },
         .refuses = { "cond.shape=2; x.shape=3; y.shape=3 => (2) | (3)" }));

/* p: one element of the type. */
#define FILL(name, type)                                                             \
  static void name(int64_t n, const void *const *in, const int64_t *step, void *out, \
                   const double *p) {                                                \
    const type *a = in[0];                                                           \
    const uint8_t *m = in[1];                                                        \
    type *y = out, value;                                                            \
    memcpy(&value, p, sizeof value);                                                 \
    for (int64_t i = 0; i < n; i++) y[i] = m[i * step[1]] ? value : a[i * step[0]];  \
  }
FILL(f_fill, float)
FILL(d_fill, double)
FILL(i_fill, int64_t)

static peri_status masked_fill_infer (peri_call *c) {
  uint64_t element;
  TRY(peri__element(c->ctx, c->in[0]->dtype, &c->attr[0], &element));
  return peri__infer_broadcast(c, 2, c->in[0]->dtype);
}
static peri_status masked_fill_cpu (peri_call *c) {
  int type = peri__wide_type(c->out[0]->dtype);
  double value = 0;
  uint8_t truth = 0;
  if (c->out[0]->dtype == PERI_BOOL) TRY(peri__element(c->ctx, PERI_BOOL, &c->attr[0], &truth));
  TRY(peri__element(c->ctx, type, c->out[0]->dtype == PERI_BOOL ? NUM_ATTR(truth) : &c->attr[0],
                    &value));
  peri__loop l = { .fn = type == PERI_F32   ? f_fill
                         : type == PERI_F64 ? d_fill
                                            : i_fill,
                   .nin = 2,
                   .in_type = { type, PERI_BOOL },
                   .out_type = type,
                   .grain = PERI_GRAIN_CHEAP,
                   .p = &value };
  return peri__elementwise(c->ctx, &l, c->in, c->out[0]);
}
RULE(masked_fill) { v->gin[0] = BA(BB, masked_fill, ATTR(A_NUM(0)), GRAD, IN(1)); }
OP(masked_fill, .sig = "x, mask, value:num", .flags = ELEMENTWISE,
   .doc = "value where mask is not 0, else x; broadcast.", .infer = masked_fill_infer,
   .cpu = masked_fill_cpu, .unread = 1, .vjp = masked_fill_vjp,
   TESTS(.domain = "mask=int:0..1; attr value=0.5",
         .variants = { "mask=bool; mask.shape=2,1,3; x.shape=3; attr value=2" },
         .refuses = { "x.shape=3; mask.shape=2; attr value=0 => (2) | (3)" }));

static void d_lerp (int64_t n, const void *const *in, const int64_t *step, void *out,
                    const double *p) {
  const double *a = in[0], *b = in[1], *w = in[2];
  double *y = out;
  (void)p;
  for (int64_t i = 0; i < n; i++) {
    double from = a[i * step[0]];
    y[i] = from + w[i * step[2]] * (b[i * step[1]] - from);
  }
}
static peri_status lerp_infer (peri_call *c) {
  return peri__infer_broadcast(c, 3, peri__float_of(peri__promoted(c, 0, 3)));
}
static peri_status lerp_cpu (peri_call *c) {
  int type = peri__wide_type(c->out[0]->dtype);
  peri__loop l = { .fn = type == PERI_F64 ? d_lerp : c->ctx->cpu->math->lerp,
                   .nin = 3,
                   .in_type = { type, type, type },
                   .out_type = type,
                   .grain = PERI_GRAIN_CHEAP };
  return peri__elementwise(c->ctx, &l, c->in, c->out[0]);
}
RULE(lerp) {
  peri_tensor *w = v->c->in[2];
  GIVE(0, B(BB, mul, GRAD, B(BB, sub, NUM(1), w)));
  GIVE(1, B(BB, mul, GRAD, w));
  GIVE(2, B(BB, mul, GRAD, B(BB, sub, IN(1), IN(0))));
}
OP(lerp, .sig = "x, y, weight", .flags = ELEMENTWISE, .doc = "x + weight * (y - x); broadcast.",
   .infer = lerp_infer, .cpu = lerp_cpu, .vjp = lerp_vjp,
   TESTS(.variants = { "weight.shape=(); y.shape=3" },
         .refuses = { "x.shape=2; y.shape=3; weight=number:0.5 => (2) | (3)" }));
