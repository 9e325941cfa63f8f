/*
** conv.c - convolutions. The three products of x, weight and g are linear in both of their inputs, and
** each one's gradients are the other two, so derivatives of any order are made of them.
*/
#include "cpu/conv.h"

#include <inttypes.h>
#include <string.h>

#include "op/rule.h"
#include "op/window.h"

/* ---- sizes ---- */

static const double MOST_PADDED = 0x1p45; /* elements of one padded image */

/* conv2d and its gradients as the kernels see them. sizes: stride, padding, dilation, groups. */
static peri_status conv_sizes (peri_call *c, const peri_attr *sizes, int64_t n, int64_t in,
                               int64_t out, peri__window *w, peri__conv *s) {
  int64_t groups = sizes[3].i;
  if (groups < 1 || in % groups != 0 || out % groups != 0)
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "groups is %" PRId64 ", expected one that divides %" PRId64
                      " channels of x and %" PRId64 " of weight",
                      groups, in, out);
  for (int i = 0; i < 2; i++)
    if (w->kernel[i] < 1)
      return peri__fail(c->ctx, PERI_ESHAPE,
                        "the kernel is (%" PRId64 ", %" PRId64 "), expected sizes of at least 1",
                        w->kernel[0], w->kernel[1]);
  TRY(peri__window_read(c->ctx, sizes, w));
  peri__window_clamp(w);
  double padded = (double)in;
  for (int i = 0; i < 2; i++) padded *= (double)(w->in[i] + w->before[i] + w->after[i]);
  if (padded > MOST_PADDED)
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "%" PRId64 " channels of an image with padding have %.3g elements, which is "
                      "too large",
                      in, padded);
  *s = (peri__conv){ .n = n,
                     .groups = groups,
                     .c = in / groups,
                     .h = w->in[0],
                     .w = w->in[1],
                     .o = out / groups,
                     .oh = w->out[0],
                     .ow = w->out[1],
                     .kh = w->kernel[0],
                     .kw = w->kernel[1],
                     .sh = w->stride[0],
                     .sw = w->stride[1],
                     .dh = w->dilation[0],
                     .dw = w->dilation[1],
                     .top = w->before[0],
                     .left = w->before[1] };
  return PERI_OK;
}

static peri_status want_weight (peri_call *c, int i, peri__window *w) {
  char text[128];
  const peri_tensor *t = c->in[i];
  TRY(peri__want_float(c, i, "weight"));
  if (t->ndim != 4)
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "weight has shape %s, expected (out, in / groups, kh, kw)",
                      peri__shape_text(t, text, sizeof text));
  w->kernel[0] = t->shape[2];
  w->kernel[1] = t->shape[3];
  return PERI_OK;
}

/* weight (out, in / groups, kh, kw) must have the channels of one group of x. */
static peri_status want_group (peri_call *c, const peri_tensor *w, const peri__conv *s) {
  char text[128];
  if (w->shape[1] == s->c) return PERI_OK;
  return peri__fail(c->ctx, PERI_ESHAPE,
                    "weight has shape %s, expected %" PRId64 " as its second size: %" PRId64
                    " channels in %" PRId64 " groups",
                    peri__shape_text(w, text, sizeof text), s->c, s->c * s->groups, s->groups);
}

/* g is the gradient of what these sizes make, input i, with channels. */
static peri_status want_grad (peri_call *c, int i, const peri__conv *s) {
  char text[128];
  const peri_tensor *g = c->in[i];
  if (peri__image_size(g, 1) == s->oh && peri__image_size(g, 2) == s->ow) return PERI_OK;
  return peri__fail(c->ctx, PERI_ESHAPE,
                    "g has shape %s, expected rows and columns (%" PRId64 ", %" PRId64 ")",
                    peri__shape_text(g, text, sizeof text), s->oh, s->ow);
}

/* ---- f64: the formula, for gradient checks ---- */

enum conv_of { FORWARD, INPUT, WEIGHT };

typedef struct conv64 {
  const peri_ctx *ctx;
  const peri__conv *s;
  enum conv_of of;
  const double *x, *w, *g; /* the two that are read, and where the third one is, a write */
  double *out;
} conv64;

/* All taps of output channel o of a group for one image. */
static void conv64_channel (const conv64 *j, int64_t n, int64_t group, int64_t o) {
  const peri__conv *s = j->s;
  int64_t channel = group * s->o + o;
  int64_t gi = (n * s->groups * s->o + channel) * s->oh * s->ow;
  for (int64_t y = 0; y < s->oh; y++)
    for (int64_t x = 0; x < s->ow; x++, gi++)
      for (int64_t c = 0; c < s->c; c++)
        for (int64_t ky = 0; ky < s->kh; ky++)
          for (int64_t kx = 0; kx < s->kw; kx++) {
            int64_t iy = y * s->sh - s->top + ky * s->dh, ix = x * s->sw - s->left + kx * s->dw;
            if (iy < 0 || iy >= s->h || ix < 0 || ix >= s->w) continue;
            int64_t xi = (((n * s->groups + group) * s->c + c) * s->h + iy) * s->w + ix;
            int64_t wi = ((channel * s->c + c) * s->kh + ky) * s->kw + kx;
            switch (j->of) {
            case FORWARD: j->out[gi] += j->x[xi] * j->w[wi]; break;
            case INPUT: j->out[xi] += j->g[gi] * j->w[wi]; break;
            default: j->out[wi] += j->g[gi] * j->x[xi];
            }
          }
}

/* Items share nothing that is written: (image, group), or output channels of the weight. */
static void conv64_task (void *ud, int64_t begin, int64_t end, int worker) {
  const conv64 *j = ud;
  const peri__conv *s = j->s;
  (void)worker;
  for (int64_t i = begin; i < end; i++) {
    int64_t count = j->of == WEIGHT ? s->n : s->o;
    for (int64_t t = 0; t < count && !peri__stopped(j->ctx); t++) {
      if (j->of == WEIGHT)
        conv64_channel(j, t, i / s->o, i % s->o);
      else
        conv64_channel(j, i / s->groups, i % s->groups, t);
    }
  }
}

static void conv64_run (peri_ctx *ctx, conv64 *j, const double *bias, int64_t numel) {
  const peri__conv *s = j->s;
  int64_t plane = s->oh * s->ow, channels = s->groups * s->o;
  for (int64_t i = 0; i < numel; i++)
    j->out[i] = bias != NULL && plane > 0 ? bias[i / plane % channels] : 0;
  peri__parallel(ctx, j->of == WEIGHT ? channels : s->n * s->groups, 1, conv64_task, j);
}

/* ---- conv2d_input_backward, conv2d_weight_backward ---- */

static void conv_cost (const peri__conv *s, const peri_call *c, double *flops, double *bytes) {
  *flops = 2 * (double)(s->n * s->groups * s->o * s->oh * s->ow) * (double)(s->c * s->kh * s->kw);
  *bytes = (double)c->out[0]->numel * (double)peri__size(c->out[0]);
  for (int i = 0; i < 2; i++) *bytes += (double)c->in[i]->numel * (double)peri__size(c->in[i]);
}

/* attr: size, then those of conv2d */
static peri_status input_sizes (peri_call *c, peri__conv *s) {
  peri__window w = { .in = { 0 } };
  const peri_tensor *g = c->in[0], *weight = c->in[1];
  TRY(peri__want_image(c, 0, "g"));
  TRY(want_weight(c, 1, &w));
  TRY(peri__pair(c->ctx, &c->attr[0], "size", 0, 0, w.in));
  if (peri__image_size(g, 0) != weight->shape[0])
    return peri__fail(c->ctx, PERI_ESHAPE, "g has %" PRId64 " channels, weight makes %" PRId64,
                      peri__image_size(g, 0), weight->shape[0]);
  TRY(conv_sizes(c, c->attr + 1, peri__images(g),
                 c->attr[4].i > 0 ? weight->shape[1] * c->attr[4].i : 0, weight->shape[0], &w, s));
  return want_grad(c, 0, s);
}

static peri_status conv2d_input_backward_infer (peri_call *c) {
  peri__conv s;
  TRY(input_sizes(c, &s));
  return peri__new_image(c, 0, (peri_dtype)c->in[0]->dtype, s.groups * s.c, s.h, s.w);
}

static peri_status conv2d_input_backward_cpu (peri_call *c) {
  peri__conv s;
  TRY(input_sizes(c, &s));
  if (c->in[0]->dtype == PERI_F32)
    return peri__conv_back_input(c->ctx, &s, c->in[0]->data, c->in[1]->data, c->out[0]->data);
  conv64 j = { c->ctx, &s, INPUT, NULL, c->in[1]->data, c->in[0]->data, c->out[0]->data };
  conv64_run(c->ctx, &j, NULL, c->out[0]->numel);
  return PERI_OK;
}

static void conv2d_input_backward_cost (const peri_call *c, double *flops, double *bytes) {
  peri__conv s;
  peri_call copy = *c;
  if (input_sizes(&copy, &s) == PERI_OK) conv_cost(&s, c, flops, bytes);
}

/* The last two sizes of a shape as an attribute. */
#define SIZES(t) A_DIMS((t)->shape + (t)->ndim - 2, 2)
#define REST(a) (a)[0], (a)[1], (a)[2], (a)[3]

RULE(conv2d_input_backward) {
  const peri_attr *a = v->c->attr + 1;
  GIVE(0, BA(BB, conv2d, ATTR(REST(a)), GRAD, IN(1), NULL));
  GIVE(1, BA(BB, conv2d_weight_backward, ATTR(SIZES(IN(1)), REST(a)), GRAD, IN(0)));
}

#define WINDOW "stride:ints=none, padding:ints=none, dilation:ints=none, groups:int=1"

OP(conv2d_input_backward, .sig = "g, weight, size:ints, " WINDOW,
   .doc = "Gradient of conv2d for an x of (.., size), its rows and columns: the transposed "
          "convolution "
          "of g (N, out, H', W').",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = conv2d_input_backward_infer,
   .cpu = conv2d_input_backward_cpu, .vjp = conv2d_input_backward_vjp,
   .cost = conv2d_input_backward_cost,
   TESTS(.domain = "g.shape=2,3,2,2; weight.shape=3,2,2,2; attr size=3,3",
         .variants = { "g.shape=1,2,3,3; weight.shape=2,1,3,2; attr size=5,4; attr stride=2; attr "
                       "padding=1; attr groups=2",
                       "g.shape=4,1,2; weight.shape=4,1,1,2; attr size=4,5; attr stride=4,2; attr "
                       "dilation=1,2; attr groups=2" },
         .large = "g.shape=3,9,20,21; weight.shape=9,6,3,4; attr size=40,43; attr stride=2; attr "
                  "padding=1,1",
         .refuses = {
             "g.shape=1,3,2,2; weight.shape=3,1,2,2; attr size=4,3 => (3, 2) | (1, 3, 2, 2)",
             "g.shape=1,3,2,2; weight.shape=4,1,2,2; attr size=3,3 => 3 | 4" }));

/* attr: kernel, then those of conv2d */
static peri_status weight_sizes (peri_call *c, peri__conv *s) {
  peri__window w = { .in = { 0 } };
  const peri_tensor *x = c->in[0], *g = c->in[1];
  char a[128], b[128];
  TRY(peri__want_image(c, 0, "x"));
  TRY(peri__want_image(c, 1, "g"));
  if (x->ndim != g->ndim || peri__images(x) != peri__images(g))
    return peri__fail(c->ctx, PERI_ESHAPE, "x has shape %s and g %s: images differ",
                      peri__shape_text(x, a, sizeof a), peri__shape_text(g, b, sizeof b));
  TRY(peri__pair(c->ctx, &c->attr[0], "kernel", 1, 1, w.kernel));
  w.in[0] = peri__image_size(x, 1);
  w.in[1] = peri__image_size(x, 2);
  TRY(conv_sizes(c, c->attr + 1, peri__images(x), peri__image_size(x, 0), peri__image_size(g, 0),
                 &w, s));
  return want_grad(c, 1, s);
}

static peri_status conv2d_weight_backward_infer (peri_call *c) {
  peri__conv s;
  TRY(weight_sizes(c, &s));
  return peri__new(c->ctx, (peri_dtype)c->in[0]->dtype, 4,
                   (int64_t[]){ s.groups * s.o, s.c, s.kh, s.kw }, &c->out[0]);
}

static peri_status conv2d_weight_backward_cpu (peri_call *c) {
  peri__conv s;
  TRY(weight_sizes(c, &s));
  if (c->in[0]->dtype == PERI_F32)
    return peri__conv_back_weight(c->ctx, &s, c->in[0]->data, c->in[1]->data, c->out[0]->data);
  conv64 j = { c->ctx, &s, WEIGHT, c->in[0]->data, NULL, c->in[1]->data, c->out[0]->data };
  conv64_run(c->ctx, &j, NULL, c->out[0]->numel);
  return PERI_OK;
}

static void conv2d_weight_backward_cost (const peri_call *c, double *flops, double *bytes) {
  peri__conv s;
  peri_call copy = *c;
  if (weight_sizes(&copy, &s) == PERI_OK) conv_cost(&s, c, flops, bytes);
}

RULE(conv2d_weight_backward) {
  const peri_attr *a = v->c->attr + 1;
  GIVE(0, BA(BB, conv2d_input_backward, ATTR(SIZES(IN(0)), REST(a)), IN(1), GRAD));
  GIVE(1, BA(BB, conv2d, ATTR(REST(a)), IN(0), GRAD, NULL));
}

OP(conv2d_weight_backward, .sig = "x, g, kernel:ints, " WINDOW,
   .doc = "Gradient of conv2d for a weight (out, in / groups, kernel) from x (N, in, H, W) and g "
          "(N, out, H', W').",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .infer = conv2d_weight_backward_infer,
   .cpu = conv2d_weight_backward_cpu, .vjp = conv2d_weight_backward_vjp,
   .cost = conv2d_weight_backward_cost,
   TESTS(.domain = "x.shape=2,2,3,3; g.shape=2,3,2,2; attr kernel=2",
         .variants = { "x.shape=1,2,5,4; g.shape=1,2,3,3; attr kernel=3,2; attr stride=2; attr "
                       "padding=1; attr groups=2",
                       "x.shape=4,4,5; g.shape=4,1,2; attr kernel=1,2; attr stride=4,2; attr "
                       "dilation=1,2; attr groups=2" },
         .large =
             "x.shape=3,6,40,43; g.shape=3,9,20,21; attr kernel=3,4; attr stride=2; attr padding=1",
         .refuses = {
             "x.shape=2,2,3,3; g.shape=1,3,2,2; attr kernel=2 => (2, 2, 3, 3) | (1, 3, 2, 2)",
             "x.shape=2,2,3,3; g.shape=2,3,2,3; attr kernel=2 => (2, 2) | (2, 3, 2, 3)" }));

/* ---- conv2d ---- */

static peri_status forward_sizes (peri_call *c, peri__conv *s) {
  peri__window w = { .in = { 0 } };
  const peri_tensor *x = c->in[0], *weight = c->in[1], *bias = c->in[2];
  char text[128];
  TRY(peri__want_image(c, 0, "x"));
  TRY(want_weight(c, 1, &w));
  w.in[0] = peri__image_size(x, 1);
  w.in[1] = peri__image_size(x, 2);
  TRY(conv_sizes(c, c->attr, peri__images(x), peri__image_size(x, 0), weight->shape[0], &w, s));
  TRY(want_group(c, weight, s));
  if (bias != NULL && (bias->ndim != 1 || bias->shape[0] != weight->shape[0]))
    return peri__fail(c->ctx, PERI_ESHAPE, "bias has shape %s, expected (%" PRId64 ")",
                      peri__shape_text(bias, text, sizeof text), weight->shape[0]);
  return PERI_OK;
}

static peri_status conv2d_infer (peri_call *c) {
  peri__conv s;
  TRY(forward_sizes(c, &s));
  return peri__new_image(c, 0, (peri_dtype)c->in[0]->dtype, s.groups * s.o, s.oh, s.ow);
}

static peri_status conv2d_cpu (peri_call *c) {
  peri__conv s;
  TRY(forward_sizes(c, &s));
  const void *bias = c->in[2] != NULL ? c->in[2]->data : NULL;
  if (c->in[0]->dtype == PERI_F32)
    return peri__conv_forward(c->ctx, &s, c->in[0]->data, c->in[1]->data, bias, c->out[0]->data);
  conv64 j = { c->ctx, &s, FORWARD, c->in[0]->data, c->in[1]->data, NULL, c->out[0]->data };
  conv64_run(c->ctx, &j, bias, c->out[0]->numel);
  return PERI_OK;
}

static void conv2d_cost (const peri_call *c, double *flops, double *bytes) {
  peri__conv s;
  peri_call copy = *c;
  if (forward_sizes(&copy, &s) == PERI_OK) conv_cost(&s, c, flops, bytes);
}

RULE(conv2d) {
  const peri_attr *a = v->c->attr;
  GIVE(0, BA(BB, conv2d_input_backward, ATTR(SIZES(IN(0)), REST(a)), GRAD, IN(1)));
  GIVE(1, BA(BB, conv2d_weight_backward, ATTR(SIZES(IN(1)), REST(a)), IN(0), GRAD));
  if (IN(2) == NULL || !v->need[2]) return;
  const int64_t dims[3] = { GRAD->ndim - 1, GRAD->ndim - 2, 0 };
  v->gin[2] = BA(BB, sum, ATTR(A_DIMS(dims, GRAD->ndim - 1), A_INT(0)), GRAD);
}

OP(conv2d, .sig = "x, weight, bias:tensor?, " WINDOW, .flags = PERI_OP_FLOAT | PERI_OP_UPCAST,
   .unread = 4,
   .doc =
       "Cross-correlation of x (N, in, H, W) or (in, H, W) with weight (out, in / groups, kh, kw) "
       "plus bias (out), as PyTorch's; stride (1), padding with zeros (0) and dilation (1) are one "
       "integer or one for each dim, padding also {top, bottom, left, right}. Integers and bools "
       "in "
       "x, such as pixels, are read as numbers, unscaled.",
   .infer = conv2d_infer, .cpu = conv2d_cpu, .vjp = conv2d_vjp, .cost = conv2d_cost,
   TESTS(.domain = "x.shape=2,2,3,3; weight.shape=3,2,2,2; bias.shape=3",
         .variants = { "x.shape=1,2,5,4; weight.shape=2,1,3,2; attr stride=2; attr padding=1; attr "
                       "groups=2",
                       "x.shape=4,4,5; weight.shape=4,2,1,2; bias.shape=4; attr stride=4,2; attr "
                       "dilation=1,2; attr groups=2",
                       "x.shape=1,1,2,3; weight.shape=1,1,2,2; attr padding=0,1,2,0" },
         .large =
             "x.shape=3,6,40,43; weight.shape=9,6,3,4; bias.shape=9; attr stride=2; attr padding=1",
         .refuses = {
             "x.shape=2,3; weight.shape=1,1,1,1 => (2, 3) | (N, C, H, W)",
             "x.shape=1,2,3,3; weight.shape=4,3,1,1 => (4, 3, 1, 1) | 2",
             "x.shape=1,4,3,3; weight.shape=4,4,1,1; attr groups=3 => 3 | 4",
             "x.shape=1,2,3,3; weight.shape=4,2,1,1; bias.shape=3 => (3) | (4)",
             "x.shape=1,1,3,2; weight.shape=1,1,2,3 => (3, 2) | (2, 3)",
             "x.shape=1,1,3,3; weight.shape=1,1,2,2; attr stride=0 => stride | 0",
             "x.shape=1,1,3,3; weight.shape=1,1,2,2; attr padding=-1 => padding | -1",
             "x.shape=1,1,3,3; weight.shape=1,1,2,2; attr padding=1,1,1 => padding | 3",
             "x.shape=1,1,3,3; weight.shape=1,1,2,2; attr dilation=3 => (3, 3) | (4, 4)" }));

/* ---- conv1d ---- */

static void conv1d_compose (peri_build *b, peri_call *c) {
  peri__row_attr stride, padding, dilation;
  peri_tensor *w = c->in[1];
  char text[128];
  if (w->ndim != 3) {
    peri__build_fail(b, peri__fail(c->ctx, PERI_ESHAPE,
                                   "weight has shape %s, expected (out, in / groups, k)",
                                   peri__shape_text(w, text, sizeof text)));
    return;
  }
  peri__build_fail(b, peri__row_attr_of(c->ctx, &c->attr[0], "stride", 1, 1, &stride));
  peri__build_fail(b, peri__row_attr_of(c->ctx, &c->attr[1], "padding", 2, 0, &padding));
  peri__build_fail(b, peri__row_attr_of(c->ctx, &c->attr[2], "dilation", 1, 1, &dilation));
  if (b->status != PERI_OK) return;
  peri_tensor *x = peri__as_image(b, c, c->in[0], "x");
  w = BA(b, unsqueeze, ATTR(A_INT(-2)), w);
  c->out[0] = peri__as_row(
      b, BA(b, conv2d, ATTR(stride.attr, padding.attr, dilation.attr, c->attr[3]), x, w, c->in[2]));
}

OP(conv1d, .sig = "x, weight, bias:tensor?, " WINDOW, .flags = PERI_OP_FLOAT | PERI_OP_UPCAST,
   .doc =
       "Cross-correlation of x (N, in, L) or (in, L) with weight (out, in / groups, k) plus bias "
       "(out), as PyTorch's; stride (1), padding with zeros (0) and dilation (1) are integers, "
       "padding also {before, after}.",
   .compose = conv1d_compose,
   TESTS(.domain = "x.shape=2,2,4; weight.shape=3,2,2; bias.shape=3",
         .variants = { "x.shape=2,7; weight.shape=2,1,3; attr stride=2; attr padding=1,2; attr "
                       "dilation=2; attr groups=2" },
         .large = "x.shape=5,6,200; weight.shape=9,6,5; bias.shape=9; attr padding=2",
         .refuses = { "x.shape=2,3,4,5; weight.shape=1,3,1 => (2, 3, 4, 5) | (N, C, L)",
                      "x.shape=1,2,3; weight.shape=1,2,1,1 => (1, 2, 1, 1)",
                      "x.shape=1,2,3; weight.shape=1,2,1; attr stride=1,1 => stride | 2",
                      "x.shape=1,1,3; weight.shape=1,1,4 => 3 | 4" }));
