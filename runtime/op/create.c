/*
** create.c - tensors out of nothing: zeros, ones, full, empty, arange, linspace, eye, one_hot, and
** the *_like forms. None is differentiable.
*/
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "op/move.h"

/* ---- constant values ---- */

static peri_status fill_out (peri_call *c, const peri_attr *value) {
  uint64_t element = 0;
  TRY(peri__element(c->ctx, c->out[0]->dtype, value, &element));
  peri__fill(c->ctx, peri__size(c->out[0]), c->out[0]->data, c->out[0]->numel, &element);
  return PERI_OK;
}

static peri_status shaped (peri_call *c, const peri_attr *shape, const peri_attr *dtype) {
  return peri__new(c->ctx, (peri_dtype)dtype->i, shape->n, shape->v, &c->out[0]);
}

static peri_status like (peri_call *c, const peri_attr *dtype) {
  peri_dtype d = dtype->i < 0 ? (peri_dtype)c->in[0]->dtype : (peri_dtype)dtype->i;
  return peri__new_like(c->in[0], d, &c->out[0]);
}

static peri_status shape_dtype_infer (peri_call *c) { return shaped(c, &c->attr[0], &c->attr[1]); }
static peri_status full_infer (peri_call *c) { return shaped(c, &c->attr[0], &c->attr[2]); }
static peri_status like_infer (peri_call *c) { return like(c, &c->attr[0]); }
static peri_status full_like_infer (peri_call *c) { return like(c, &c->attr[1]); }
static peri_status zeros_cpu (peri_call *c) { return fill_out(c, NUM_ATTR(0)); }
static peri_status ones_cpu (peri_call *c) { return fill_out(c, NUM_ATTR(1)); }
static peri_status full_cpu (peri_call *c) { return fill_out(c, &c->attr[1]); }
static peri_status full_like_cpu (peri_call *c) { return fill_out(c, &c->attr[0]); }
static peri_status empty_cpu (peri_call *c) { /* no byte is left that is no bool */
  return c->out[0]->dtype == PERI_BOOL ? zeros_cpu(c) : PERI_OK;
}

OP(zeros, .sig = "shape:shape, dtype:dtype=f32", .doc = "A tensor of zeros.",
   .infer = shape_dtype_infer, .cpu = zeros_cpu, TESTS(.domain = "attr shape=2,3"));
OP(ones, .sig = "shape:shape, dtype:dtype=f32", .doc = "A tensor of ones.",
   .infer = shape_dtype_infer, .cpu = ones_cpu, TESTS(.domain = "attr shape=2,3"));
OP(full, .sig = "shape:shape, value:num, dtype:dtype=f32", .doc = "A tensor filled with value.",
   .infer = full_infer, .cpu = full_cpu,
   TESTS(.domain = "attr shape=2,3; attr value=1.5",
         .refuses = { "attr shape=2; attr value=300; attr dtype=u8 => 300 | u8" }));
OP(empty, .sig = "shape:shape, dtype:dtype=f32", .flags = PERI_OP_UNSET,
   .doc = "A tensor whose elements are whatever the memory held.", .infer = shape_dtype_infer,
   .cpu = empty_cpu, TESTS(.domain = "attr shape=2,3"));
OP(zeros_like, .sig = "x, dtype:dtype=none", .flags = PERI_OP_STRIDED,
   .doc = "Zeros in x's shape, and dtype unless one is given.", .infer = like_infer,
   .cpu = zeros_cpu);
OP(ones_like, .sig = "x, dtype:dtype=none", .flags = PERI_OP_STRIDED,
   .doc = "Ones in x's shape, and dtype unless one is given.", .infer = like_infer,
   .cpu = ones_cpu);
OP(full_like, .sig = "x, value:num, dtype:dtype=none", .flags = PERI_OP_STRIDED,
   .doc = "value everywhere in x's shape, and dtype unless one is given.", .infer = full_like_infer,
   .cpu = full_like_cpu,
   TESTS(.domain = "attr value=2",
         .refuses = { "x.shape=2; attr value=300; attr dtype=u8 => 300 | u8" }));
OP(empty_like, .sig = "x, dtype:dtype=none", .flags = PERI_OP_STRIDED | PERI_OP_UNSET,
   .doc = "An uninitialised tensor of x's shape, and dtype unless one is given.",
   .infer = like_infer, .cpu = empty_cpu);

/* ---- arange, linspace, eye ---- */

/* Of arange: one number is the stop. whole: all three are integers, and what they give is exact. */
typedef struct range {
  double start, stop, step;
  bool whole;
  int64_t first, end, by;
} range;

static range range_of (const peri_attr *a) {
  static const peri_attr zero = A_NUM(0);
  bool one = !a[1].whole && isnan(a[1].f);
  const peri_attr *start = one ? &zero : &a[0], *stop = one ? &a[0] : &a[1], *step = &a[2];
  range r = { .start = start->f, .stop = stop->f, .step = step->f };
  r.whole = peri__whole(start, &r.first) && peri__whole(stop, &r.end) && peri__whole(step, &r.by);
  return r;
}

/* Elements of whole numbers, as far as 2^64 - 1. */
static uint64_t whole_count (const range *r) {
  bool up = r->by > 0;
  if (up ? r->end <= r->first : r->end >= r->first) return 0;
  uint64_t way = up ? (uint64_t)r->end - (uint64_t)r->first : (uint64_t)r->first - (uint64_t)r->end;
  uint64_t by = up ? (uint64_t)r->by : 0 - (uint64_t)r->by;
  return way / by + (way % by != 0);
}

static peri_status arange_infer (peri_call *c) {
  range r = range_of(c->attr);
  int64_t n = 0, dtype = c->attr[3].i;
  if (r.whole ? r.by == 0
              : !(r.step != 0) || !isfinite(r.start) || !isfinite(r.stop) || !isfinite(r.step))
    return peri__fail(c->ctx, PERI_EINVAL,
                      "start %g, stop %g, step %g: wanted finite numbers and a "
                      "step that is not 0",
                      r.start, r.stop, r.step);
  double count = r.whole ? (double)whole_count(&r) : ceil((r.stop - r.start) / r.step);
  if (!(count < 0x1p53))
    return peri__fail(c->ctx, PERI_EINVAL, "start %g, stop %g, step %g make %g elements", r.start,
                      r.stop, r.step, count);
  if (count > 0) n = (int64_t)count;
  if (dtype < 0) dtype = r.whole ? PERI_I64 : PERI_F32;
  if (!r.whole && dtype <= PERI_I64)
    return peri__fail(c->ctx, PERI_EINVAL, "start %g, stop %g, step %g are not all whole, as %s is",
                      r.start, r.stop, r.step, peri_dtype_name((peri_dtype)dtype));
  return peri__new(c->ctx, (peri_dtype)dtype, 1, &n, &c->out[0]);
}

static char *element_at (peri_tensor *t, int64_t i) {
  return (char *)t->data + i * (int64_t)peri__size(t);
}

/* out[i] = at(i), each computed in f64 and rounded once. Integers are cut toward 0. */
static peri_status sequence (peri_call *c, double start, double step, double stop, bool from_both) {
  peri_tensor *out = c->out[0];
  for (int64_t i = 0; i < out->numel; i++) {
    if (peri__give_up(c->ctx, i)) return PERI_OK; /* what ran it says so */
    bool late = from_both && i >= out->numel / 2;
    double v = late ? stop - step * (double)(out->numel - 1 - i) : start + step * (double)i;
    if (out->dtype <= PERI_I64 && out->dtype != PERI_BOOL) v = trunc(v);
    TRY(peri__element(c->ctx, out->dtype, NUM_ATTR(v), element_at(out, i)));
  }
  return PERI_OK;
}

static peri_status arange_cpu (peri_call *c) {
  peri_tensor *out = c->out[0];
  range r = range_of(c->attr);
  if (!r.whole) return sequence(c, r.start, r.step, 0, false);
  for (int64_t i = 0; i < out->numel; i++) { /* wraps only behind the last element */
    if (peri__give_up(c->ctx, i)) return PERI_OK;
    int64_t v = (int64_t)((uint64_t)r.first + (uint64_t)i * (uint64_t)r.by);
    if (out->dtype == PERI_I64)
      ((int64_t *)out->data)[i] = v;
    else
      TRY(peri__element(c->ctx, out->dtype, &(peri_attr){ .i = v, .whole = true },
                        element_at(out, i)));
  }
  return PERI_OK;
}

OP(arange, .sig = "start:num, stop:num=none, step:num=1, dtype:dtype=none",
   .doc =
       "start, start + step, ... as far as stop, which is left out; one number is the stop, from "
       "0 on; i64 when all are integral, else f32.",
   .infer = arange_infer, .cpu = arange_cpu,
   TESTS(.domain = "attr start=5",
         .refuses = { "attr start=0; attr stop=5; attr step=0 => step | 0" }));

static peri_status linspace_infer (peri_call *c) {
  int64_t n = c->attr[2].i;
  if (n < 0) return peri__fail(c->ctx, PERI_EINVAL, "n is %" PRId64 "; wanted 0 or more", n);
  return peri__new(c->ctx, (peri_dtype)c->attr[3].i, 1, &n, &c->out[0]);
}

/* Between integers, in integers: the place of element i is first + way i / parts, kept as a whole
** number and a rest below parts. */
static peri_status whole_steps (peri_call *c, int64_t first, int64_t last) {
  peri_tensor *out = c->out[0];
  bool up = last >= first;
  uint64_t way = up ? (uint64_t)last - (uint64_t)first : (uint64_t)first - (uint64_t)last;
  uint64_t parts = out->numel > 1 ? (uint64_t)out->numel - 1 : 1, gone = 0, rest = 0;
  for (int64_t i = 0; i < out->numel; i++) {
    int64_t v = (int64_t)(up ? (uint64_t)first + gone : (uint64_t)first - gone);
    if (rest > 0 && up && v < 0) v++; /* cut toward 0 */
    if (rest > 0 && !up && v > 0) v--;
    TRY(peri__element(c->ctx, out->dtype, &(peri_attr){ .i = v, .whole = true },
                      element_at(out, i)));
    gone += way / parts;
    rest += way % parts;
    if (rest >= parts) {
      rest -= parts;
      gone++;
    }
  }
  return PERI_OK;
}

static peri_status linspace_cpu (peri_call *c) {
  double start = c->attr[0].f, stop = c->attr[1].f;
  int64_t n = c->attr[2].i, first, last;
  if (c->out[0]->dtype <= PERI_I64 && c->out[0]->dtype != PERI_BOOL &&
      peri__whole(&c->attr[0], &first) && peri__whole(&c->attr[1], &last))
    return whole_steps(c, first, last);
  if (n == 1) return sequence(c, start, 0, 0, false);
  return sequence(c, start, (stop - start) / (double)(n - 1), stop, true);
}

OP(linspace, .sig = "start:num, stop:num, n:int, dtype:dtype=f32",
   .doc = "n numbers at equal distances from start to stop, both included; integers are cut "
          "toward 0.",
   .infer = linspace_infer, .cpu = linspace_cpu,
   TESTS(.domain = "attr start=0; attr stop=1; attr n=5",
         .refuses = { "attr start=0; attr stop=1; attr n=-1 => -1" }));

static peri_status eye_infer (peri_call *c) {
  int64_t shape[2] = { c->attr[0].i, c->attr[1].i == INT64_MIN ? c->attr[0].i : c->attr[1].i };
  return peri__new(c->ctx, (peri_dtype)c->attr[2].i, 2, shape, &c->out[0]);
}

static peri_status eye_cpu (peri_call *c) {
  peri_tensor *out = c->out[0];
  uint64_t one = 0;
  size_t size = peri__size(out);
  char *p = out->data;
  TRY(fill_out(c, NUM_ATTR(0)));
  TRY(peri__element(c->ctx, out->dtype, NUM_ATTR(1), &one));
  for (int64_t i = 0; i < out->shape[0] && i < out->shape[1]; i++)
    memcpy(p + i * (out->shape[1] + 1) * (int64_t)size, &one, size);
  return PERI_OK;
}

OP(eye, .sig = "n:int, m:int=none, dtype:dtype=f32",
   .doc = "An n by m matrix (m = n by default) with ones on the diagonal.", .infer = eye_infer,
   .cpu = eye_cpu, TESTS(.domain = "attr n=3", .refuses = { "attr n=-1 => -1" }));

/* ---- one_hot ---- */

static peri_status one_hot_infer (peri_call *c) {
  peri_tensor *x = c->in[0];
  int64_t shape[PERI_MAX_DIMS], classes = c->attr[0].i;
  if (x->ndim == PERI_MAX_DIMS)
    return peri__fail(c->ctx, PERI_ESHAPE, "x has %d dims already", x->ndim);
  if (classes < 1)
    return peri__fail(c->ctx, PERI_EINVAL, "classes is %" PRId64 "; wanted 1 or more", classes);
  memcpy(shape, x->shape, sizeof shape);
  shape[x->ndim] = classes;
  return peri__new(c->ctx, (peri_dtype)c->attr[1].i, x->ndim + 1, shape, &c->out[0]);
}

static peri_status one_hot_cpu (peri_call *c) {
  peri_tensor *out = c->out[0];
  peri_indices x = { 0 };
  uint64_t one = 0;
  size_t size = peri__size(out);
  char *p = out->data;
  TRY(peri__element(c->ctx, out->dtype, NUM_ATTR(1), &one));
  TRY(fill_out(c, NUM_ATTR(0)));
  TRY(peri__indices(c->ctx, c->in[0], "x", c->attr[0].i, &x));
  for (int64_t i = 0; i < x.n; i++)
    memcpy(p + (i * c->attr[0].i + x.v[i]) * (int64_t)size, &one, size);
  peri__indices_free(c->ctx, &x);
  return PERI_OK;
}

OP(one_hot, .sig = "x, classes:int, dtype:dtype=f32",
   .doc = "Integers x (...) from 0 as rows (..., classes) that are 1 at x and 0 elsewhere.",
   .infer = one_hot_infer, .cpu = one_hot_cpu,
   TESTS(.domain = "x=int:0..3; attr classes=4",
         .refuses = { "x=i64[0,4]; attr classes=3 => 4 | 0 to 2",
                      "x=i64[0,-1]; attr classes=3 => -1 | 0 to 2",
                      "x.shape=2; attr classes=3 => f32" }));
