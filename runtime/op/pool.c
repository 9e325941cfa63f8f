/*
** pool.c - pooling. Max pooling keeps the places of what it took, and its gradient goes there; an average
** is a convolution with equal weights, or, over windows of different sizes, a product with the matrix of
** each dim's windows.
*/
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cpu/conv.h"
#include "op/move.h"
#include "op/rule.h"
#include "op/window.h"

/* attr: kernel_size, stride, padding; all but dilation. The stride is the kernel where it is left out, and
** with ceil a last window may hang over the end if it begins inside. */
static peri_status pool_window (peri_call *c, const char *name, const peri_attr *dilation,
                                bool ceil, peri__window *w) {
  const peri_tensor *x = c->in[0];
  TRY(peri__want_image(c, 0, name));
  *w = (peri__window){ .in = { peri__image_size(x, 1), peri__image_size(x, 2) },
                       .dilation = { 1, 1 } };
  TRY(peri__pair(c->ctx, &c->attr[0], "kernel_size", 1, 1, w->kernel));
  TRY(peri__pair(c->ctx, &c->attr[1], "stride", 1, 0, w->stride));
  TRY(peri__pair(c->ctx, &c->attr[2], "padding", 0, 0, w->before));
  if (dilation != NULL) TRY(peri__pair(c->ctx, dilation, "dilation", 1, 1, w->dilation));
  for (int i = 0; i < 2; i++) {
    if (w->stride[i] == 0) w->stride[i] = w->kernel[i];
    if (w->before[i] > w->kernel[i] / 2)
      return peri__fail(c->ctx, PERI_EINVAL,
                        "padding is %" PRId64 ", expected at most half of the kernel's %" PRId64,
                        w->before[i], w->kernel[i]);
    w->after[i] = w->before[i];
  }
  TRY(peri__window_fit(c->ctx, w));
  for (int i = 0; i < 2 && ceil; i++) {
    int64_t end = (w->out[i] - 1) * w->stride[i] + (w->kernel[i] - 1) * w->dilation[i] + 1;
    bool more = end < w->in[i] + w->before[i] + w->after[i];
    if (!more || w->out[i] * w->stride[i] >= w->in[i] + w->before[i]) continue;
    w->out[i]++;
    w->after[i] = end + w->stride[i] - w->in[i] - w->before[i];
  }
  return PERI_OK;
}

/* ---- max_pool2d_backward ---- */

static peri_status max_pool2d_backward_infer (peri_call *c) {
  char a[128], b[128];
  const peri_tensor *g = c->in[0], *index = c->in[1];
  int64_t size[2];
  TRY(peri__want_image(c, 0, "g"));
  if (index->ndim != g->ndim ||
      memcmp(index->shape, g->shape, sizeof *g->shape * (size_t)g->ndim) != 0)
    return peri__fail(c->ctx, PERI_ESHAPE, "g has shape %s and index %s; they must be equal",
                      peri__shape_text(g, a, sizeof a), peri__shape_text(index, b, sizeof b));
  TRY(peri__pair(c->ctx, &c->attr[0], "size", 0, 0, size));
  return peri__new_image(c, 0, (peri_dtype)g->dtype, peri__image_size(g, 0), size[0], size[1]);
}

typedef struct unpool {
  const void *g;
  void *dx;
  const int64_t *index;
  int64_t in, out; /* elements of a plane of dx, of g */
  bool f64;
} unpool;

static void unpool_task (void *ud, int64_t begin, int64_t end, int worker) {
  const unpool *u = ud;
  size_t size = u->f64 ? 8 : 4;
  (void)worker;
  for (int64_t p = begin; p < end; p++) {
    float *to = (float *)u->dx + p * u->in;
    double *to64 = (double *)u->dx + p * u->in;
    memset((char *)u->dx + (size_t)(p * u->in) * size, 0, (size_t)u->in * size);
    for (int64_t i = p * u->out; i < (p + 1) * u->out; i++) {
      if (u->f64)
        to64[u->index[i]] += ((const double *)u->g)[i];
      else
        to[u->index[i]] += ((const float *)u->g)[i];
    }
  }
}

static peri_status max_pool2d_backward_cpu (peri_call *c) {
  const peri_tensor *g = c->in[0];
  peri_indices index = { 0 };
  int64_t in = peri__image_size(c->out[0], 1) * peri__image_size(c->out[0], 2);
  int64_t out = peri__image_size(g, 1) * peri__image_size(g, 2), planes = c->out[0]->numel / in;
  TRY(peri__indices(c->ctx, c->in[1], "index", in, &index));
  unpool u = { g->data, c->out[0]->data, index.v, in, out, g->dtype == PERI_F64 };
  peri__parallel(c->ctx, planes, 8192 / (in + out) + 1, unpool_task, &u);
  peri__indices_free(c->ctx, &index);
  return PERI_OK;
}

/* (.., h, w) -> (.., h w) */
static peri_tensor *flat_planes (peri_build *b, peri_tensor *t) {
  int64_t shape[3] = { t->shape[0], t->shape[t->ndim - 3],
                       t->shape[t->ndim - 2] * t->shape[t->ndim - 1] };
  return BA(b, reshape, ATTR(A_DIMS(shape + 4 - t->ndim, t->ndim - 1)), t);
}

RULE(max_pool2d_backward) {
  peri_tensor *h = flat_planes(BB, GRAD), *index = flat_planes(BB, IN(1));
  if (h == NULL || index == NULL) return;
  h = BA(BB, gather, ATTR(A_INT(-1)), h, index);
  GIVE(0, BA(BB, reshape, ATTR(A_DIMS(IN(0)->shape, IN(0)->ndim)), h));
}

OP(max_pool2d_backward, .sig = "g, index, size:ints", .flags = PERI_OP_UPCAST, .unread = 1,
   .doc = "Planes (.., size) of zeros to which the elements of each plane of g (N, C, H', W') are "
          "added at "
          "their index, which counts from 0 along rows.",
   .infer = max_pool2d_backward_infer, .cpu = max_pool2d_backward_cpu,
   .vjp = max_pool2d_backward_vjp,
   TESTS(.domain = "g.shape=2,2,2,2; index.shape=2,2,2,2; index=int:0..11; attr size=3,4",
         .variants = { "g.shape=2,1,3; index.shape=2,1,3; index=int:0..8; attr size=3" },
         .large = "g.shape=8,4,20,20; index.shape=8,4,20,20; index=int:0..1599; attr size=40",
         .refuses = {
             "g.shape=1,1,2,1; index.shape=1,1,2,1; index=i64[0,4]; attr size=2 => 4",
             "g.shape=1,1,2,1; index.shape=1,2,1; index=int:0..1; attr size=2 => (1, 1, 2, "
             "1) | (1, 2, 1)" }));

/* ---- max_pool2d ---- */

static peri_status max_window (peri_call *c, peri__window *w) {
  return pool_window(c, "x", &c->attr[3], c->attr[4].i != 0, w);
}

static peri_status max_pool2d_infer (peri_call *c) {
  peri__window w;
  int64_t channels;
  TRY(max_window(c, &w));
  if (w.in[0] > 0 && w.in[1] > INT32_MAX / w.in[0])
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "a plane of (%" PRId64 ", %" PRId64 ") has more than 2^31 - 1 elements",
                      w.in[0], w.in[1]);
  channels = peri__image_size(c->in[0], 0);
  TRY(peri__new_image(c, 0, (peri_dtype)c->in[0]->dtype, channels, w.out[0], w.out[1]));
  return peri__new_image(c, 1, PERI_I32, channels, w.out[0], w.out[1]);
}

static void max_f64 (const peri__window *w, const double *x, double *y, int32_t *at) {
  for (int64_t i = 0; i < w->out[0] * w->out[1]; i++) {
    int64_t y0 = i / w->out[1] * w->stride[0] - w->before[0];
    int64_t x0 = i % w->out[1] * w->stride[1] - w->before[1];
    at[i] = -1;
    for (int64_t k = 0; k < w->kernel[0] * w->kernel[1]; k++) {
      int64_t iy = y0 + k / w->kernel[1] * w->dilation[0];
      int64_t ix = x0 + k % w->kernel[1] * w->dilation[1], p = iy * w->in[1] + ix;
      if (iy < 0 || iy >= w->in[0] || ix < 0 || ix >= w->in[1]) continue;
      if (at[i] < 0 || x[p] > y[i] || isnan(x[p])) y[i] = x[p], at[i] = (int32_t)p;
    }
  }
}

static peri_status max_pool2d_cpu (peri_call *c) {
  peri__window w;
  const peri_tensor *x = c->in[0];
  TRY(max_window(c, &w));
  peri__window_clamp(&w);
  int64_t planes = peri__images(x) * peri__image_size(x, 0), in = w.in[0] * w.in[1];
  int64_t out = w.out[0] * w.out[1];
  if (x->dtype == PERI_F64) {
    for (int64_t p = 0; p < planes && !peri__stopped(c->ctx); p++)
      max_f64(&w, (const double *)x->data + p * in, (double *)c->out[0]->data + p * out,
              (int32_t *)c->out[1]->data + p * out);
    return PERI_OK;
  }
  peri__conv s = { .n = planes,
                   .groups = 1,
                   .c = 1,
                   .h = w.in[0],
                   .w = w.in[1],
                   .o = 1,
                   .oh = w.out[0],
                   .ow = w.out[1],
                   .kh = w.kernel[0],
                   .kw = w.kernel[1],
                   .sh = w.stride[0],
                   .sw = w.stride[1],
                   .dh = w.dilation[0],
                   .dw = w.dilation[1],
                   .top = w.before[0],
                   .left = w.before[1] };
  return peri__pool_max(c->ctx, &s, x->data, c->out[0]->data, c->out[1]->data);
}

static void max_pool2d_cost (const peri_call *c, double *flops, double *bytes) {
  peri__window w;
  peri_call copy = *c;
  if (max_window(&copy, &w) != PERI_OK) return;
  *flops = (double)c->out[0]->numel * (double)(w.kernel[0] * w.kernel[1]);
  *bytes = (double)(c->in[0]->numel + 2 * c->out[0]->numel) * (double)peri__size(c->in[0]);
}

RULE(max_pool2d) {
  peri_tensor *index = peri__saved(v, 1);
  if (GRAD == NULL || index == NULL) return;
  GIVE(0,
       BA(BB, max_pool2d_backward, ATTR(A_DIMS(IN(0)->shape + IN(0)->ndim - 2, 2)), GRAD, index));
}

#define WINDOW "kernel_size:ints, stride:ints=none, padding:ints=none"
#define MAX_SIG "x, " WINDOW ", dilation:ints=none, ceil_mode:bool=false"
#define AVG_SIG \
  "x, " WINDOW ", ceil_mode:bool=false, count_include_pad:bool=true, divisor_override:num=none"

OPN(max_pool2d, 2, .nret = 1, .sig = MAX_SIG, .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .unread = 1,
    .doc = "The largest of each window of x (N, C, H, W) or (C, H, W); kernel_size, stride (the "
           "kernel), "
           "padding with -inf (0, at most half of the kernel) and dilation (1) are one integer or "
           "one for "
           "each dim; ceil_mode keeps a window that begins inside and hangs over the end. The "
           "gradient "
           "goes to the first of equal ones; NaN wins.",
    .infer = max_pool2d_infer, .cpu = max_pool2d_cpu, .vjp = max_pool2d_vjp,
    .cost = max_pool2d_cost,
    TESTS(.domain = "x.shape=1,2,4,5; attr kernel_size=2",
          .variants = { "x.shape=2,4,5; attr kernel_size=3,2; attr stride=2,1; attr padding=1",
                        "x.shape=1,1,5,6; attr kernel_size=2; attr stride=3; attr dilation=2; attr "
                        "ceil_mode=true" },
          .large = "x.shape=6,5,40,43; attr kernel_size=3; attr stride=2; attr padding=1",
          .refuses = { "x.shape=2,3; attr kernel_size=1 => (2, 3) | (N, C, H, W)",
                       "x.shape=1,1,4,4; attr kernel_size=3; attr padding=2 => padding | 2 | 3",
                       "x.shape=1,1,4,4; attr kernel_size=5 => (4, 4) | (5, 5)",
                       "x.shape=1,1,4,4; attr kernel_size=0 => kernel_size | 0",
                       "x.shape=1,1,4,4; attr kernel_size=2; attr stride=0 => stride | 0" }));

/* ---- avg_pool2d ---- */

/* How many elements each window of an average counts, (1, 1, oh, ow). */
static peri_tensor *counts (peri_build *b, const peri__window *w, int64_t dtype, bool pad,
                            peri_tensor *ones, const peri_attr *stride) {
  int64_t shape[4] = { 1, 1, w->in[0], w->in[1] }, rest[4] = { 0 };
  for (int i = 0; i < 2; i++) {
    int64_t own = 2 * w->before[i]; /* padding on both sides, without what ceil_mode adds */
    rest[2 * i] = pad ? 0 : w->before[i];
    rest[2 * i + 1] = w->after[i];
    if (!pad) continue;
    shape[2 + i] += own;
    rest[2 * i + 1] = w->after[i] > w->before[i] ? w->after[i] - w->before[i] : 0;
  }
  peri_tensor *x = peri__build(b, &peri__op_ones, 0, NULL, ATTR(A_DIMS(shape, 4), A_INT(dtype)));
  return BA(b, conv2d, ATTR(*stride, A_DIMS(rest, 4), { .n = -1 }, A_INT(1)), x, ones, NULL);
}

static void avg_pool2d_compose (peri_build *b, peri_call *c) {
  peri_tensor *x = c->in[0];
  peri__window w;
  double divisor = c->attr[5].f;
  bool ceil = c->attr[3].i != 0, include = c->attr[4].i != 0;
  peri__build_fail(b, pool_window(c, "x", NULL, ceil, &w));
  if (b->status == PERI_OK && divisor == 0)
    peri__build_fail(b, peri__fail(c->ctx, PERI_EINVAL, "divisor_override is 0"));
  if (b->status != PERI_OK) return;
  int64_t planes = peri__images(x) * peri__image_size(x, 0), shape[4];
  bool cut = w.after[0] > w.before[0] || w.after[1] > w.before[1];
  bool same = !isnan(divisor) || (!cut && (include || w.before[0] + w.before[1] == 0));
  double one = !isnan(divisor) ? 1 / divisor : 1 / (double)(w.kernel[0] * w.kernel[1]);
  int64_t kernel[4] = { 1, 1, w.kernel[0], w.kernel[1] };
  int64_t pads[4] = { w.before[0], w.after[0], w.before[1], w.after[1] };
  peri_attr stride = A_DIMS(w.stride, 2);
  peri_tensor *weight = peri__build(
      b, &peri__op_full, 0, NULL, ATTR(A_DIMS(kernel, 4), A_NUM(same ? one : 1), A_INT(x->dtype)));
  peri_tensor *y = BA(b, reshape, ATTR(A_DIMS(((int64_t[]){ planes, 1, w.in[0], w.in[1] }), 4)), x);
  y = BA(b, conv2d, ATTR(stride, A_DIMS(pads, 4), { .n = -1 }, A_INT(1)), y, weight, NULL);
  if (!same) y = B(b, div, y, counts(b, &w, x->dtype, include, weight, &stride));
  memcpy(shape, (int64_t[]){ x->shape[0], peri__image_size(x, 0), w.out[0], w.out[1] },
         sizeof shape);
  c->out[0] = BA(b, reshape, ATTR(A_DIMS(shape + 4 - x->ndim, x->ndim)), y);
}

OP(avg_pool2d, .sig = AVG_SIG, .flags = PERI_OP_FLOAT | PERI_OP_UPCAST,
   .compose = avg_pool2d_compose,
   .doc =
       "The mean of each window of x (N, C, H, W) or (C, H, W), windows as those of max_pool2d "
       "with "
       "padding of zeros, which count_include_pad counts; divisor_override divides in place of the "
       "count.",
   TESTS(.domain = "x.shape=1,2,4,5; attr kernel_size=2",
         .variants = { "x.shape=2,4,5; attr kernel_size=3,2; attr stride=2,1; attr padding=1; attr "
                       "count_include_pad=false",
                       "x.shape=1,1,5,6; attr kernel_size=2; attr stride=2; attr padding=1; attr "
                       "ceil_mode=true",
                       "x.shape=1,1,4,4; attr kernel_size=2; attr divisor_override=3" },
         .large = "x.shape=6,5,40,43; attr kernel_size=3; attr stride=2; attr padding=1",
         .refuses = { "x.shape=2,3; attr kernel_size=1 => (2, 3) | (N, C, H, W)",
                      "x.shape=1,1,4,4; attr kernel_size=3; attr padding=2 => padding | 2 | 3",
                      "x.shape=1,1,4,4; attr kernel_size=2; attr divisor_override=0 => "
                      "divisor_override | 0" }));

/* ---- adaptive_avg_pool2d ---- */

/* (in, out): column i is 1 / n over the n elements from i in / out on, rounded down, to (i + 1) in / out,
** rounded up. */
static peri_tensor *means (peri_build *b, int64_t in, int64_t out, peri_dtype d) {
  peri_tensor *t = NULL;
  if (b->status == PERI_OK)
    peri__build_fail(b, peri__new(b->ctx, d, 2, (int64_t[]){ in, out }, &t));
  if (b->status != PERI_OK) return NULL;
  memset(t->data, 0, (size_t)t->numel * peri__size(t));
  for (int64_t i = 0; i < out; i++) {
    int64_t begin = i * in / out, end = ((i + 1) * in + out - 1) / out;
    for (int64_t k = begin; k < end; k++) {
      double v = 1 / (double)(end - begin);
      if (d == PERI_F64)
        ((double *)t->data)[k * out + i] = v;
      else
        ((float *)t->data)[k * out + i] = (float)v;
    }
  }
  return peri__build_own(b, t);
}

static void adaptive_avg_pool2d_compose (peri_build *b, peri_call *c) {
  peri_tensor *x = c->in[0];
  int64_t out[2], kernel[2];
  peri__build_fail(b, peri__want_image(c, 0, "x"));
  if (b->status == PERI_OK)
    peri__build_fail(b, peri__pair(c->ctx, &c->attr[0], "output_size", 1, 1, out));
  if (b->status != PERI_OK) return;
  int64_t h = peri__image_size(x, 1), w = peri__image_size(x, 2);
  if (h < 1 || w < 1) {
    char text[128];
    peri__build_fail(b,
                     peri__fail(c->ctx, PERI_ESHAPE, "x has shape %s: there is nothing to average",
                                peri__shape_text(x, text, sizeof text)));
    return;
  }
  kernel[0] = h / out[0], kernel[1] = w / out[1];
  if (h % out[0] == 0 && w % out[1] == 0)
    c->out[0] =
        BA(b, avg_pool2d,
           ATTR(A_DIMS(kernel, 2), { .n = -1 }, { .n = -1 }, A_INT(0), A_INT(1), A_NUM(NAN)), x);
  else {
    peri_tensor *rows = means(b, h, out[0], (peri_dtype)x->dtype);
    peri_tensor *cols = means(b, w, out[1], (peri_dtype)x->dtype);
    rows = BA(b, transpose, ATTR(A_INT(0), A_INT(1)), rows);
    c->out[0] = B(b, matmul, rows, B(b, matmul, x, cols));
  }
}

OP(adaptive_avg_pool2d, .sig = "x, output_size:ints", .flags = PERI_OP_FLOAT | PERI_OP_UPCAST,
   .compose = adaptive_avg_pool2d_compose,
   .doc = "Means of x (N, C, H, W) or (C, H, W) over output_size windows of nearly equal sizes, as "
          "PyTorch cuts them; one integer or one for each dim.",
   TESTS(.domain = "x.shape=1,2,4,6; attr output_size=2,3",
         .variants = { "x.shape=2,5,7; attr output_size=3,2",
                       "x.shape=1,2,3,4; attr output_size=1" },
         .large = "x.shape=6,5,40,43; attr output_size=7",
         .refuses = { "x.shape=2,3; attr output_size=1 => (2, 3) | (N, C, H, W)",
                      "x.shape=1,2,3,4; attr output_size=0 => output_size | 0" }));

/* ---- over rows ---- */

/* The first n attributes of a row's op as those of an image's. */
static bool row_attrs (peri_build *b, peri_call *c, int n, peri__row_attr *rows) {
  static const char *const names[] = { "kernel_size", "stride", "padding", "dilation" };
  static const int64_t rest[] = { 1, 1, 0, 1 };
  for (int i = 0; i < n && b->status == PERI_OK; i++)
    peri__build_fail(b, peri__row_attr_of(c->ctx, &c->attr[i], names[i], 1, rest[i], &rows[i]));
  return b->status == PERI_OK;
}

static void max_pool1d_compose (peri_build *b, peri_call *c) {
  peri__row_attr r[4];
  if (!row_attrs(b, c, 4, r)) return;
  peri_tensor *x = peri__as_image(b, c, c->in[0], "x");
  c->out[0] = peri__as_row(
      b, BA(b, max_pool2d, ATTR(r[0].attr, r[1].attr, r[2].attr, r[3].attr, c->attr[4]), x));
}

OP(max_pool1d, .sig = MAX_SIG, .flags = PERI_OP_FLOAT | PERI_OP_UPCAST,
   .compose = max_pool1d_compose,
   .doc = "max_pool2d over rows: x (N, C, L) or (C, L), one integer for each setting.",
   TESTS(.domain = "x.shape=2,2,7; attr kernel_size=2",
         .variants = { "x.shape=2,7; attr kernel_size=3; attr stride=2; attr padding=1; attr "
                       "dilation=2" },
         .large = "x.shape=6,5,400; attr kernel_size=3; attr stride=2; attr padding=1",
         .refuses = { "x.shape=3; attr kernel_size=1 => (3) | (N, C, L)",
                      "x.shape=2,4; attr kernel_size=2,2 => kernel_size | 2" }));

static void avg_pool1d_compose (peri_build *b, peri_call *c) {
  peri__row_attr r[3];
  if (!row_attrs(b, c, 3, r)) return;
  peri_tensor *x = peri__as_image(b, c, c->in[0], "x");
  c->out[0] = peri__as_row(
      b, BA(b, avg_pool2d,
            ATTR(r[0].attr, r[1].attr, r[2].attr, c->attr[3], c->attr[4], A_NUM(NAN)), x));
}

OP(avg_pool1d, .sig = "x, " WINDOW ", ceil_mode:bool=false, count_include_pad:bool=true",
   .flags = PERI_OP_FLOAT | PERI_OP_UPCAST, .compose = avg_pool1d_compose,
   .doc = "avg_pool2d over rows: x (N, C, L) or (C, L), one integer for each setting.",
   TESTS(.domain = "x.shape=2,2,7; attr kernel_size=2",
         .variants = { "x.shape=2,7; attr kernel_size=3; attr stride=2; attr padding=1; attr "
                       "count_include_pad=false" },
         .large = "x.shape=6,5,400; attr kernel_size=3; attr stride=2; attr padding=1",
         .refuses = { "x.shape=3; attr kernel_size=1 => (3) | (N, C, L)",
                      "x.shape=2,4; attr kernel_size=2,2 => kernel_size | 2" }));

static void adaptive_avg_pool1d_compose (peri_build *b, peri_call *c) {
  peri_tensor *x = peri__as_image(b, c, c->in[0], "x");
  int64_t size[2] = { 1, c->attr[0].i };
  c->out[0] = peri__as_row(b, BA(b, adaptive_avg_pool2d, ATTR(A_DIMS(size, 2)), x));
}

OP(adaptive_avg_pool1d, .sig = "x, output_size:int", .flags = PERI_OP_FLOAT | PERI_OP_UPCAST,
   .compose = adaptive_avg_pool1d_compose,
   .doc = "adaptive_avg_pool2d over rows: x (N, C, L) or (C, L) to output_size columns.",
   TESTS(.domain = "x.shape=2,2,7; attr output_size=3",
         .variants = { "x.shape=2,6; attr output_size=2" },
         .large = "x.shape=6,5,400; attr output_size=7",
         .refuses = { "x.shape=3; attr output_size=1 => (3) | (N, C, L)",
                      "x.shape=2,4; attr output_size=0 => output_size | 0" }));
