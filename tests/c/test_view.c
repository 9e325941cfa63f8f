/*
** test_view.c - creation, views, rearranging and indexing through the public API: shapes, strides,
** values, gradients of gradients, messages. The ops are linear, so that a gradient is checked
** exactly: it has to be the adjoint map, and the adjoint's gradient the map itself.
*/
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/core.h"
#include "run_op.h"
#include "memory_of.h"

#define MAX_IN 4

typedef struct call {
  const char *name;
  int nin;
  peri_tensor *in[MAX_IN];
  peri_attr attr[4];
} call;

#define V(...)                           \
  .v = (const int64_t[]){ __VA_ARGS__ }, \
  .n = (int)(sizeof((const int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t))
#define NONE INT64_MIN

static peri_ctx *ctx;

static int open_ctx (void **state) {
  (void)state;
  peri_options o;
  peri_options_init(&o);
  o.threads = 2;
  o.seed = 7;
  return peri_open(&o, &ctx) == PERI_OK ? 0 : -1;
}

static int close_ctx (void **state) {
  (void)state;
  int leaked = memory_of(ctx).tensors != 0;
  if (leaked) print_error("%zu tensors leaked\n", memory_of(ctx).tensors);
  peri_close(ctx);
  return leaked;
}

static peri_tensor *run (call c) {
  peri_tensor *out = NULL;
  const peri_op *op = peri_op_find(c.name);
  assert_non_null(op);
  peri_status s = run_op(ctx, op, c.nin, c.in, c.attr, &out);
  if (s != PERI_OK) fail_msg("%s: %s", c.name, peri_message(ctx));
  return out;
}

/* The call fails with this status and a message that holds the text. */
static void refuse (call c, peri_status want, const char *text) {
  peri_tensor *out = NULL;
  const peri_op *op = peri_op_find(c.name);
  assert_non_null(op);
  peri_status s = run_op(ctx, op, c.nin, c.in, c.attr, &out);
  if (s != want || strstr(peri_message(ctx), text) == NULL)
    fail_msg("%s: status %s, message \"%s\", wanted %s with \"%s\"", c.name, peri_status_name(s),
             peri_message(ctx), peri_status_name(want), text);
  assert_null(out);
}

/* 0, 1, 2, ... in a shape */
static peri_tensor *count (peri_dtype d, int ndim, const int64_t *shape) {
  peri_tensor *flat, *t;
  int64_t n = 1;
  for (int i = 0; i < ndim; i++) n *= shape[i];
  flat =
      run((call){ "arange", .attr = { { .f = (double)n }, { .f = NAN }, { .f = 1 }, { .i = d } } });
  t = run((call){ "reshape", 1, { flat }, { { .v = shape, .n = ndim } } });
  peri_release(flat);
  return t;
}

#define COUNT(d, ...) \
  count(d, (int)(sizeof((const int64_t[]){ __VA_ARGS__ }) / 8), (const int64_t[]){ __VA_ARGS__ })

static peri_tensor *ints (int ndim, const int64_t *shape, const int64_t *values) {
  peri_tensor *t = NULL;
  assert_int_equal(peri_from(ctx, PERI_I64, ndim, shape, values, &t), PERI_OK);
  return t;
}

#define VEC(...)                                                                        \
  ints(1, (const int64_t[]){ (int64_t)(sizeof((const int64_t[]){ __VA_ARGS__ }) / 8) }, \
       (const int64_t[]){ __VA_ARGS__ })

static void check_shape (const peri_tensor *t, int ndim, const int64_t *shape) {
  assert_int_equal(peri_ndim(t), ndim);
  for (int i = 0; i < ndim; i++) assert_int_equal(peri_shape(t)[i], shape[i]);
}

#define SHAPE(t, ...)                                                 \
  check_shape(t, (int)(sizeof((const int64_t[]){ __VA_ARGS__ }) / 8), \
              (const int64_t[]){ __VA_ARGS__ })

static void check_values (peri_tensor *t, int64_t n, const double *values) {
  assert_int_equal(peri_numel(t), n);
  for (int64_t i = 0; i < n; i++) {
    double v = 0;
    assert_int_equal(peri_item(t, i, &v), PERI_OK);
    if (v != values[i]) fail_msg("element %d is %g, wanted %g", (int)i, v, values[i]);
  }
}

#define VALUES(t, ...)                                                    \
  check_values(t, (int64_t)(sizeof((const double[]){ __VA_ARGS__ }) / 8), \
               (const double[]){ __VA_ARGS__ })

/* Check and release the result of a call. */
#define GIVES(c, ...)            \
  do {                           \
    peri_tensor *gives_ = run c; \
    VALUES(gives_, __VA_ARGS__); \
    peri_release(gives_);        \
  } while (0)

/* ---- creation ---- */

static void creation_fills_every_dtype (void **state) {
  (void)state;
  for (int d = PERI_BOOL; d < PERI_NDTYPE; d++) {
    peri_attr shape = { V(2, 3) };
    GIVES(((call){ "zeros", .attr = { shape, { .i = d } } }), 0, 0, 0, 0, 0, 0);
    GIVES(((call){ "ones", .attr = { shape, { .i = d } } }), 1, 1, 1, 1, 1, 1);
    GIVES(((call){ "eye", .attr = { { .i = 2 }, { .i = 3 }, { .i = d } } }), 1, 0, 0, 0, 1, 0);
  }
  GIVES(((call){ "full", .attr = { { V(2) }, { .f = -3 }, { .i = PERI_I32 } } }), -3, -3);
  refuse((call){ "full", .attr = { { V(2) }, { .f = 300 }, { .i = PERI_U8 } } }, PERI_EINVAL,
         "300");
  refuse((call){ "zeros", .attr = { { V(2, -1) }, { .i = PERI_F32 } } }, PERI_ESHAPE, "-1");
  peri_tensor *scalar = run((call){ "ones", .attr = { { .n = 0 }, { .i = PERI_F32 } } });
  check_shape(scalar, 0, NULL);
  VALUES(scalar, 1);
  peri_release(scalar);
}

static void arange_counts_as_torch_does (void **state) {
  (void)state;
  peri_attr none = { .f = NAN }, one = { .f = 1 }, dtype = { .i = -1 };
  peri_tensor *t = run((call){ "arange", .attr = { { .f = 3 }, none, one, dtype } });
  assert_int_equal(peri_dtype_of(t), PERI_I64);
  VALUES(t, 0, 1, 2);
  peri_release(t);
  t = run((call){ "arange", .attr = { { .f = 0 }, one, { .f = 0.25 }, dtype } });
  assert_int_equal(peri_dtype_of(t), PERI_F32);
  VALUES(t, 0, 0.25, 0.5, 0.75);
  peri_release(t);
  GIVES(((call){ "arange", .attr = { { .f = 5 }, { .f = 1 }, { .f = -2 }, dtype } }), 5, 3);
  t = run((call){ "arange", .attr = { { .f = 5 }, { .f = 1 }, one, dtype } });
  SHAPE(t, 0);
  peri_release(t);
  refuse((call){ "arange", .attr = { { .f = 5 }, none, { .f = 0 }, dtype } }, PERI_EINVAL,
         "step 0");
  refuse((call){ "arange", .attr = { { .f = 1e300 }, none, one, dtype } }, PERI_EINVAL, "1e+300");
}

static void linspace_hits_both_ends (void **state) {
  (void)state;
  GIVES(((call){ "linspace", .attr = { { .f = -1 }, { .f = 1 }, { .i = 5 }, { .i = PERI_F32 } } }),
        -1, -0.5, 0, 0.5, 1);
  GIVES(((call){ "linspace", .attr = { { .f = 3 }, { .f = 4 }, { .i = 1 }, { .i = PERI_F64 } } }),
        3);
  refuse((call){ "linspace", .attr = { { .f = 3 }, { .f = 4 }, { .i = -1 }, { .i = PERI_F64 } } },
         PERI_EINVAL, "-1");
}

static void one_hot_marks_classes_and_names_bad_ones (void **state) {
  (void)state;
  peri_tensor *x = VEC(2, 0), *bad = VEC(1, 3);
  peri_tensor *t = run((call){ "one_hot", 1, { x }, { { .i = 3 }, { .i = PERI_F32 } } });
  SHAPE(t, 2, 3);
  VALUES(t, 0, 0, 1, 1, 0, 0);
  refuse((call){ "one_hot", 1, { bad }, { { .i = 3 }, { .i = PERI_F32 } } }, PERI_EINVAL,
         "holds 3 at flat position 1 (from 0); valid values are 0 to 2");
  peri_release(t);
  peri_release(x);
  peri_release(bad);
}

/* ---- views ---- */

static void views_share_memory (void **state) {
  (void)state;
  peri_tensor *x = COUNT(PERI_F32, 2, 3, 4);
  call views[] = {
    { "reshape", 1, { x }, { { V(6, -1) } } },
    { "flatten", 1, { x }, { { .i = 0 }, { .i = -1 } } },
    { "transpose", 1, { x }, { { .i = 0 }, { .i = 2 } } },
    { "permute", 1, { x }, { { V(2, 0, 1) } } },
    { "unsqueeze", 1, { x }, { { .i = -1 } } },
    { "squeeze", 1, { x }, { { .i = NONE } } },
    { "expand", 1, { x }, { { V(5, -1, 3, 4) } } },
    { "narrow", 1, { x }, { { .i = 1 }, { .i = 0 }, { .i = 2 } } },
    { "select", 1, { x }, { { .i = 0 }, { .i = 0 } } },
  };
  for (size_t i = 0; i < sizeof views / sizeof *views; i++) {
    peri_tensor *t = run(views[i]);
    assert_ptr_equal(peri_data(t), peri_data(x));
    peri_release(t);
  }
  peri_release(x);
}

static void reshape_views_where_strides_permit_and_copies_else (void **state) {
  (void)state;
  peri_tensor *x = COUNT(PERI_I32, 2, 3, 4);
  peri_tensor *t = run((call){ "permute", 1, { x }, { { V(2, 0, 1) } } }); /* (4, 2, 3) */
  peri_tensor *view = run((call){ "reshape", 1, { t }, { { V(2, 2, 6) } } });
  assert_ptr_equal(peri_data(view), peri_data(x));
  SHAPE(view, 2, 2, 6);
  assert_int_equal(peri_strides(view)[0], 2);
  assert_int_equal(peri_strides(view)[1], 1);
  assert_int_equal(peri_strides(view)[2], 4);
  peri_tensor *copy = run((call){ "reshape", 1, { t }, { { V(12, 2) } } });
  peri_tensor *back = run((call){ "reshape", 1, { view }, { { V(24) } } });
  assert_ptr_not_equal(peri_data(copy), peri_data(x));
  VALUES(copy, 0, 4, 8, 12, 16, 20, 1, 5, 9, 13, 17, 21, 2, 6, 10, 14, 18, 22, 3, 7, 11, 15, 19,
         23);
  VALUES(back, 0, 4, 8, 12, 16, 20, 1, 5, 9, 13, 17, 21, 2, 6, 10, 14, 18, 22, 3, 7, 11, 15, 19,
         23);
  peri_release(t);
  peri_release(view);
  peri_release(copy);
  peri_release(back);
  refuse((call){ "reshape", 1, { x }, { { V(5, -1) } } }, PERI_ESHAPE,
         "(2, 3, 4) has 24 elements and cannot become (5, -1)");
  refuse((call){ "reshape", 1, { x }, { { V(-1, -1) } } }, PERI_ESHAPE, "(-1, -1)");
  refuse((call){ "reshape", 1, { x }, { { V(INT64_MAX, 4, 2) } } }, PERI_ESHAPE, "cannot become");
  peri_release(x);
}

static void scalars_and_empty_tensors_reshape (void **state) {
  (void)state;
  peri_tensor *s = count(PERI_F32, 0, NULL), *e = COUNT(PERI_F32, 2, 0, 3);
  peri_tensor *t = run((call){ "reshape", 1, { s }, { { V(1, 1) } } });
  SHAPE(t, 1, 1);
  peri_release(t);
  t = run((call){ "flatten", 1, { s }, { { .i = 0 }, { .i = -1 } } });
  SHAPE(t, 1);
  peri_release(t);
  t = run((call){ "transpose", 1, { s }, { { .i = -2 }, { .i = -1 } } });
  check_shape(t, 0, NULL);
  peri_release(t);
  t = run((call){ "reshape", 1, { e }, { { V(5, 0) } } });
  SHAPE(t, 5, 0);
  peri_release(t);
  t = run((call){ "flip", 1, { e }, { { .n = -1 } } });
  SHAPE(t, 2, 0, 3);
  peri_release(t);
  refuse((call){ "reshape", 1, { e }, { { V(0, -1) } } }, PERI_ESHAPE, "(0, -1)");
  refuse((call){ "select", 1, { e }, { { .i = 1 }, { .i = 0 } } }, PERI_EINVAL, "dim of 0");
  refuse((call){ "select", 1, { s }, { { .i = 0 }, { .i = 0 } } }, PERI_EINVAL, "0 dims");
  peri_release(s);
  peri_release(e);
}

static void slices_refuse_what_lies_outside (void **state) {
  (void)state;
  peri_tensor *x = COUNT(PERI_F32, 3, 4);
  refuse((call){ "narrow", 1, { x }, { { .i = 1 }, { .i = 2 }, { .i = 3 } } }, PERI_EINVAL,
         "3 positions from 2 on do not lie in a dim of 4");
  refuse((call){ "narrow", 1, { x }, { { .i = 1 }, { .i = -5 }, { .i = 1 } } }, PERI_EINVAL, "-5");
  refuse((call){ "narrow", 1, { x }, { { .i = 1 }, { .i = 0 }, { .i = -1 } } }, PERI_EINVAL, "-1");
  refuse((call){ "narrow", 1, { x }, { { .i = 1 }, { .i = 1 }, { .i = INT64_MAX } } }, PERI_EINVAL,
         "dim of 4");
  refuse((call){ "select", 1, { x }, { { .i = 0 }, { .i = 3 } } }, PERI_EINVAL,
         "position 3 of a dim of 3");
  refuse((call){ "select", 1, { x }, { { .i = 2 }, { .i = 0 } } }, PERI_EINVAL, "dim 2");
  refuse((call){ "permute", 1, { x }, { { V(0, 0) } } }, PERI_EINVAL, "repeats");
  refuse((call){ "permute", 1, { x }, { { V(0) } } }, PERI_ESHAPE, "1 dims given");
  refuse((call){ "expand", 1, { x }, { { V(3, 5) } } }, PERI_ESHAPE,
         "(3, 4) does not broadcast to (3, 5)");
  refuse((call){ "expand", 1, { x }, { { V(-1, 3, 4) } } }, PERI_ESHAPE, "does not broadcast");
  refuse((call){ "expand", 1, { x }, { { V(INT64_MAX / 4, 3, 4) } } }, PERI_ESHAPE, "overflow");
  refuse((call){ "flip", 1, { x }, { { V(0, 0) } } }, PERI_EINVAL, "twice");
  refuse((call){ "diagonal", 1, { x }, { { .i = 5 } } }, PERI_EINVAL, "diagonal 5");
  peri_release(x);
}

static void negative_strides_are_read_by_every_kind_of_op (void **state) {
  (void)state;
  peri_tensor *x = COUNT(PERI_I32, 2, 3);
  peri_tensor *f = run((call){ "flip", 1, { x }, { { .n = -1 } } });
  assert_int_equal(peri_strides(f)[0], -3);
  assert_int_equal(peri_strides(f)[1], -1);
  VALUES(f, 5, 4, 3, 2, 1, 0);
  GIVES(((call){ "flip", 1, { x }, { { V(1) } } }), 2, 1, 0, 5, 4, 3);
  GIVES(((call){ "reshape", 1, { f }, { { V(3, 2) } } }), 5, 4, 3, 2, 1, 0);
  GIVES(((call){ "cat", 2, { f, x }, { { .i = 1 } } }), 5, 4, 3, 0, 1, 2, 2, 1, 0, 3, 4, 5);
  GIVES(((call){ "tril", 1, { f }, { { .i = 0 } } }), 5, 0, 0, 2, 1, 0);
  GIVES(((call){ "narrow", 1, { f }, { { .i = 1 }, { .i = 1 }, { .i = 2 } } }), 4, 3, 1, 0);
  peri_release(x);
  peri_release(f);
}

static void diagonals_of_any_offset (void **state) {
  (void)state;
  peri_tensor *x = COUNT(PERI_F32, 3, 4), *v = VEC(7, 8);
  GIVES(((call){ "diagonal", 1, { x }, { { .i = 0 } } }), 0, 5, 10);
  GIVES(((call){ "diagonal", 1, { x }, { { .i = 2 } } }), 2, 7);
  GIVES(((call){ "diagonal", 1, { x }, { { .i = -1 } } }), 4, 9);
  GIVES(((call){ "diag", 1, { x }, { { .i = 1 } } }), 1, 6, 11);
  GIVES(((call){ "diag", 1, { v }, { { .i = 0 } } }), 7, 0, 0, 8);
  GIVES(((call){ "diag", 1, { v }, { { .i = -1 } } }), 0, 0, 0, 7, 0, 0, 0, 8, 0);
  GIVES(((call){ "tril", 1, { x }, { { .i = 0 } } }), 0, 0, 0, 0, 4, 5, 0, 0, 8, 9, 10, 0);
  GIVES(((call){ "tril", 1, { x }, { { .i = -1 } } }), 0, 0, 0, 0, 4, 0, 0, 0, 8, 9, 0, 0);
  GIVES(((call){ "triu", 1, { x }, { { .i = 1 } } }), 0, 1, 2, 3, 0, 0, 6, 7, 0, 0, 0, 11);
  GIVES(((call){ "triu", 1, { x }, { { .i = INT64_MAX } } }), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  GIVES(((call){ "tril", 1, { x }, { { .i = INT64_MAX } } }), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11);
  refuse((call){ "tril", 1, { v }, { { .i = 0 } } }, PERI_ESHAPE, "1 dims");
  peri_release(x);
  peri_release(v);
}

/* ---- rearranging ---- */

static void cat_joins_views_promotes_and_refuses (void **state) {
  (void)state;
  peri_tensor *x = COUNT(PERI_F32, 2, 2), *i = COUNT(PERI_I64, 1, 2), *e = COUNT(PERI_F32, 0, 2);
  peri_tensor *t = run((call){ "transpose", 1, { x }, { { .i = 0 }, { .i = 1 } } });
  GIVES(((call){ "cat", 3, { t, e, x }, { { .i = 0 } } }), 0, 2, 1, 3, 0, 1, 2, 3);
  GIVES(((call){ "cat", 2, { t, x }, { { .i = -1 } } }), 0, 2, 0, 1, 1, 3, 2, 3);
  peri_tensor *mixed = run((call){ "cat", 2, { x, i }, { { .i = 0 } } });
  assert_int_equal(peri_dtype_of(mixed), PERI_F32);
  VALUES(mixed, 0, 1, 2, 3, 0, 1);
  refuse((call){ "cat", 2, { x, i }, { { .i = 1 } } }, PERI_ESHAPE,
         "tensor 1 of the list is (1, 2); the first is (2, 2)");
  refuse((call){ "cat", 0, .attr = { { .i = 0 } } }, PERI_EINVAL, "empty");
  GIVES(((call){ "stack", 2, { x, t }, { { .i = 0 } } }), 0, 1, 2, 3, 0, 2, 1, 3);
  GIVES(((call){ "stack", 2, { x, t }, { { .i = 1 } } }), 0, 1, 0, 2, 2, 3, 1, 3);
  GIVES(((call){ "stack", 2, { x, t }, { { .i = -1 } } }), 0, 0, 1, 2, 2, 1, 3, 3);
  refuse((call){ "stack", 2, { x, i }, { { .i = 0 } } }, PERI_ESHAPE, "(1, 2)");
  peri_release(x);
  peri_release(i);
  peri_release(e);
  peri_release(t);
  peri_release(mixed);
}

static void pad_adds_cuts_and_refuses (void **state) {
  (void)state;
  peri_tensor *x = COUNT(PERI_I32, 2, 2);
  GIVES(((call){ "pad", 1, { x }, { { V(1, 0) }, { .f = 9 } } }), 9, 0, 1, 9, 2, 3);
  GIVES(((call){ "pad", 1, { x }, { { V(0, 0, 0, 1) }, { .f = 0 } } }), 0, 1, 2, 3, 0, 0);
  GIVES(((call){ "pad", 1, { x }, { { V(-1, 1) }, { .f = 5 } } }), 1, 5, 3, 5);
  GIVES(((call){ "pad", 1, { x }, { { V(-2, 1) }, { .f = 5 } } }), 5, 5);
  GIVES(((call){ "pad", 1, { x }, { { V(-3, 2) }, { .f = 5 } } }), 5, 5);
  refuse((call){ "pad", 1, { x }, { { V(1) }, { .f = 0 } } }, PERI_EINVAL, "1 pads");
  refuse((call){ "pad", 1, { x }, { { V(-2, -1) }, { .f = 0 } } }, PERI_EINVAL, "-2 and -1");
  peri_release(x);
}

static void copies_and_rolls (void **state) {
  (void)state;
  peri_tensor *x = COUNT(PERI_U8, 2, 2), *e = COUNT(PERI_F32, 0, 2);
  GIVES(((call){ "tile", 1, { x }, { { V(2) } } }), 0, 1, 0, 1, 2, 3, 2, 3);
  GIVES(((call){ "tile", 1, { x }, { { V(2, 1) } } }), 0, 1, 2, 3, 0, 1, 2, 3);
  GIVES(((call){ "tile", 1, { x }, { { V(2, 1, 1) } } }), 0, 1, 2, 3, 0, 1, 2, 3);
  GIVES(((call){ "repeat_interleave", 1, { x }, { { .i = 2 }, { .i = 0 } } }), 0, 1, 0, 1, 2, 3, 2,
        3);
  GIVES(((call){ "repeat_interleave", 1, { x }, { { .i = 2 }, { .i = 1 } } }), 0, 0, 1, 1, 2, 2, 3,
        3);
  GIVES(((call){ "roll", 1, { x }, { { .i = 1 }, { .i = 1 } } }), 1, 0, 3, 2);
  GIVES(((call){ "roll", 1, { x }, { { .i = -3 }, { .i = 0 } } }), 2, 3, 0, 1);
  peri_tensor *t = run((call){ "roll", 1, { e }, { { .i = 1 }, { .i = 0 } } });
  SHAPE(t, 0, 2);
  peri_release(t);
  t = run((call){ "tile", 1, { x }, { { V(0, 3) } } });
  SHAPE(t, 0, 6);
  peri_release(t);
  refuse((call){ "tile", 1, { x }, { { V(-1) } } }, PERI_EINVAL, "-1");
  refuse((call){ "repeat_interleave", 1, { x }, { { .i = -2 }, { .i = 0 } } }, PERI_EINVAL, "-2");
  peri_release(x);
  peri_release(e);
}

/* Big enough for several threads and pieces that begin within a row. */
static void large_copies_are_cut_without_a_seam (void **state) {
  (void)state;
  peri_tensor *x = COUNT(PERI_I32, 61, 67, 31);
  peri_tensor *p = run((call){ "permute", 1, { x }, { { V(2, 0, 1) } } });
  peri_tensor *t = run((call){ "cat", 1, { p }, { { .i = 0 } } });
  const int32_t *v = peri_data(t);
  for (int64_t i = 0; i < 31; i++)
    for (int64_t j = 0; j < 61 * 67; j++) assert_int_equal(v[i * 61 * 67 + j], j * 31 + i);
  peri_release(x);
  peri_release(p);
  peri_release(t);
}

/* ---- indexing ---- */

static void gather_and_scatter_follow_the_index (void **state) {
  (void)state;
  peri_tensor *x = COUNT(PERI_F32, 2, 3);
  peri_tensor *i = ints(2, (const int64_t[]){ 2, 2 }, (const int64_t[]){ 2, 0, 1, 1 });
  peri_tensor *d0 = ints(2, (const int64_t[]){ 1, 3 }, (const int64_t[]){ 1, 0, 1 });
  peri_tensor *src = COUNT(PERI_F32, 2, 2), *bad = VEC(5), *i32 = COUNT(PERI_I32, 2, 2);
  GIVES(((call){ "gather", 2, { x, i }, { { .i = 1 } } }), 2, 0, 4, 4);
  refuse((call){ "gather", 2, { x, i32 }, { { .i = 1 } } }, PERI_EINVAL,
         "index holds 3 at flat position 3 (from 0); valid values are 0 to 2");
  peri_release(i32);
  GIVES(((call){ "gather", 2, { x, d0 }, { { .i = 0 } } }), 3, 1, 5);
  GIVES(((call){ "scatter", 3, { x, i, src }, { { .i = 1 } } }), 1, 1, 0, 3, 3, 5);
  GIVES(((call){ "scatter_add", 3, { x, i, src }, { { .i = 1 } } }), 1, 1, 2, 3, 9, 5);
  refuse((call){ "gather", 2, { x, bad }, { { .i = 1 } } }, PERI_ESHAPE,
         "index (1) does not fit x (2, 3)");
  refuse((call){ "gather", 2, { x, src }, { { .i = 1 } } }, PERI_EDTYPE, "f32");
  peri_release(x);
  peri_release(i);
  peri_release(d0);
  peri_release(src);
  peri_release(bad);
}

static void rows_are_taken_and_added (void **state) {
  (void)state;
  peri_tensor *x = COUNT(PERI_F32, 3, 2), *i = VEC(2, 0, 2), *bad = VEC(0, -1),
              *none = ints(1, (const int64_t[]){ 0 }, NULL);
  peri_tensor *src = COUNT(PERI_F32, 3, 2);
  GIVES(((call){ "index_select", 2, { x, i }, { { .i = 0 } } }), 4, 5, 0, 1, 4, 5);
  peri_tensor *t = run((call){ "index_select", 2, { x, none }, { { .i = 1 } } });
  SHAPE(t, 3, 0);
  peri_release(t);
  GIVES(((call){ "index_add", 3, { x, i, src }, { { .i = 0 } } }), 2, 4, 2, 3, 8, 11);
  refuse((call){ "index_select", 2, { x, bad }, { { .i = 0 } } }, PERI_EINVAL,
         "index holds -1 at flat position 1 (from 0); valid values are 0 to 2");
  refuse((call){ "embedding", 2, { x, bad }, { { .i = NONE } } }, PERI_EINVAL, "ids holds -1");
  refuse((call){ "embedding", 2, { x, i }, { { .i = 3 } } }, PERI_EINVAL, "padding_idx 3");
  t = run((call){ "embedding", 2, { x, i }, { { .i = NONE } } });
  SHAPE(t, 3, 2);
  VALUES(t, 4, 5, 0, 1, 4, 5);
  peri_release(t);
  GIVES(((call){ "embedding_backward", 2, { src, i }, { { .i = 3 }, { .i = 0 } } }), 0, 0, 0, 0, 4,
        6);
  peri_release(x);
  peri_release(i);
  peri_release(bad);
  peri_release(none);
  peri_release(src);
}

static void masks_select_and_scatter (void **state) {
  (void)state;
  peri_tensor *x = COUNT(PERI_F32, 2, 3), *src = COUNT(PERI_F32, 5), *m = NULL,
              *bad = COUNT(PERI_U8, 2);
  const uint8_t bits[] = { 1, 0, 1 };
  assert_int_equal(peri_from(ctx, PERI_BOOL, 1, (const int64_t[]){ 3 }, bits, &m), PERI_OK);
  GIVES(((call){ "masked_select", 2, { x, m }, { { 0 } } }), 0, 2, 3, 5);
  GIVES(((call){ "masked_scatter", 3, { x, m, src }, { { 0 } } }), 0, 1, 1, 2, 4, 3);
  refuse((call){ "masked_select", 2, { x, bad }, { { 0 } } }, PERI_ESHAPE,
         "mask (2) does not broadcast to x (2, 3)");
  refuse((call){ "masked_select", 2, { x, src }, { { 0 } } }, PERI_EDTYPE, "f32");
  refuse((call){ "masked_scatter", 3, { x, m, bad }, { { 0 } } }, PERI_EDTYPE, "u8");
  GIVES(((call){ "nonzero", 1, { x }, { { 0 } } }), 0, 1, 0, 2, 1, 0, 1, 1, 1, 2);
  peri_release(x);
  peri_release(src);
  peri_release(m);
  peri_release(bad);
}

/* ---- gradients ---- */

static double dot (peri_tensor *a, peri_tensor *b) {
  double sum = 0;
  assert_int_equal(peri_numel(a), peri_numel(b));
  for (int64_t i = 0; i < peri_numel(a); i++) {
    double x = 0, y = 0;
    assert_int_equal(peri_item(a, i, &x), PERI_OK);
    assert_int_equal(peri_item(b, i, &y), PERI_OK);
    sum += x * y;
  }
  return sum;
}

static peri_tensor *noise (const peri_tensor *like) {
  return run((call){ "randn_like", 1, { (peri_tensor *)like }, { { .i = -1 } } });
}

/* A linear map L of its float inputs: <g, L x'> = <L* g, x'>, and L* has the derivative L. */
static void check_adjoint (call c) {
  peri_tensor *leaf[MAX_IN], *gin[MAX_IN] = { NULL }, *twice[1] = { NULL };
  int at[MAX_IN], n = 0;
  for (int i = 0; i < c.nin; i++) {
    if (peri_dtype_of(c.in[i]) != PERI_F64) continue;
    at[n] = i;
    leaf[n] = c.in[i];
    assert_int_equal(peri_set_requires_grad(leaf[n++], true), PERI_OK);
  }
  peri_tensor *y = run(c), *g = noise(y);
  peri_set_requires_grad(g, true);
  assert_true(peri_requires_grad(y) || !peri_is_leaf(y));
  if (peri_gradients(ctx, y, g, n, leaf, true, gin) != PERI_OK)
    fail_msg("%s: %s", c.name, peri_message(ctx));
  call probe = c;
  double sum = 0, second = 0;
  for (int k = 0; k < n; k++) {
    probe.in[at[k]] = noise(leaf[k]);
    assert_non_null(gin[k]);
    sum += dot(gin[k], probe.in[at[k]]);
  }
  bool was = peri_set_grad_enabled(ctx, false);
  peri_tensor *lx = run(probe), *other = noise(y);
  peri_set_grad_enabled(ctx, was);
  double want = dot(g, lx), want2 = dot(other, lx);
  if (fabs(sum - want) > 1e-11 * (1 + fabs(want)))
    fail_msg("%s: <L*g, x> = %.17g, <g, Lx> = %.17g", c.name, sum, want);
  for (int k = 0; k < n; k++) {
    if (peri_gradients(ctx, gin[k], probe.in[at[k]], 1, &g, false, twice) != PERI_OK)
      fail_msg("%s, second derivative: %s", c.name, peri_message(ctx));
    if (twice[0] != NULL) second += dot(twice[0], other);
    peri_release(twice[0]);
    peri_release(gin[k]);
    twice[0] = NULL;
  }
  if (fabs(second - want2) > 1e-11 * (1 + fabs(want2)))
    fail_msg("%s, second derivative: %.17g, wanted %.17g", c.name, second, want2);
  for (int k = 0; k < n; k++) peri_release(probe.in[at[k]]);
  peri_release(lx);
  peri_release(other);
  peri_release(y);
  peri_release(g);
}

/* Every differentiable op of this family, on f64 inputs. */
static void for_each_linear_op (void (*check)(call c)) {
  const uint8_t bits[] = { 1, 0, 1, 1 };
  peri_tensor *x = COUNT(PERI_F64, 2, 3, 4), *y = COUNT(PERI_F64, 2, 3, 4),
              *m = COUNT(PERI_F64, 3, 4);
  peri_tensor *s = COUNT(PERI_F64, 2, 1, 4), *v = COUNT(PERI_F64, 4), *mask = NULL;
  peri_tensor *rows = COUNT(PERI_F64, 2, 5, 4), *flat = COUNT(PERI_F64, 20),
              *zero = count(PERI_F64, 0, NULL);
  peri_tensor *ids = VEC(2, 0, 2, 1, 2);
  peri_tensor *index = ints(3, (const int64_t[]){ 2, 2, 3 },
                            (const int64_t[]){ 2, 0, 1, 1, 1, 1, 0, 2, 0, 2, 2, 0 });
  peri_tensor *g2 = COUNT(PERI_F64, 5, 4);
  assert_int_equal(peri_from(ctx, PERI_BOOL, 1, (const int64_t[]){ 4 }, bits, &mask), PERI_OK);
  peri_tensor *p = run((call){ "transpose", 1, { m }, { { .i = 0 }, { .i = 1 } } });
  peri_tensor *pd = NULL;
  assert_int_equal(peri_detach(p, &pd), PERI_OK);
  call calls[] = {
    { "reshape", 1, { x }, { { V(4, 6) } } },
    { "reshape", 1, { pd }, { { V(6, 2) } } },
    { "flatten", 1, { x }, { { .i = 1 }, { .i = 2 } } },
    { "transpose", 1, { x }, { { .i = 0 }, { .i = -1 } } },
    { "permute", 1, { x }, { { V(2, 0, -2) } } },
    { "narrow", 1, { x }, { { .i = 1 }, { .i = 1 }, { .i = 2 } } },
    { "narrow", 1, { x }, { { .i = -1 }, { .i = -3 }, { .i = 1 } } },
    { "select", 1, { x }, { { .i = 1 }, { .i = -1 } } },
    { "expand", 1, { s }, { { V(5, -1, 3, 4) } } },
    { "squeeze", 1, { s }, { { .i = 1 } } },
    { "unsqueeze", 1, { s }, { { .i = 0 } } },
    { "flip", 1, { x }, { { V(0, 2) } } },
    { "diagonal", 1, { x }, { { .i = -1 } } },
    { "diagonal", 1, { x }, { { .i = 2 } } },
    { "cat", 3, { x, s, y }, { { .i = -2 } } },
    { "stack", 2, { x, y }, { { .i = 1 } } },
    { "pad", 1, { x }, { { V(1, 2, -1, 0, 0, 3) }, { .f = 0 } } },
    { "tile", 1, { x }, { { V(2, 1, 3, 2) } } },
    { "tile", 1, { x }, { { V(3) } } },
    { "repeat_interleave", 1, { x }, { { .i = 3 }, { .i = 1 } } },
    { "roll", 1, { x }, { { .i = 5 }, { .i = 1 } } },
    { "tril", 1, { x }, { { .i = 1 } } },
    { "triu", 1, { x }, { { .i = -1 } } },
    { "diag_embed", 1, { x }, { { .i = -2 } } },
    { "diag", 1, { v }, { { .i = 1 } } },
    { "diag", 1, { m }, { { .i = -1 } } },
    { "gather", 2, { x, index }, { { .i = 1 } } },
    { "scatter", 3, { x, index, y }, { { .i = 1 } } },
    { "scatter", 3, { x, index, zero }, { { .i = 1 } } },
    { "scatter_add", 3, { x, index, y }, { { .i = 1 } } },
    { "scatter_add", 3, { x, index, zero }, { { .i = 1 } } },
    { "index_select", 2, { x, ids }, { { .i = 1 } } },
    { "index_add", 3, { x, ids, rows }, { { .i = 1 } } },
    { "embedding", 2, { m, ids }, { { .i = NONE } } },
    { "embedding_backward", 2, { g2, ids }, { { .i = 3 }, { .i = NONE } } },
    { "embedding_backward", 2, { g2, ids }, { { .i = 3 }, { .i = 2 } } },
    { "masked_select", 2, { x, mask }, { { 0 } } },
    { "masked_scatter", 3, { x, mask, flat }, { { 0 } } },
  };
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) check(calls[i]);
  peri_tensor *all[] = { x, y, m, s, v, mask, rows, flat, zero, ids, index, g2, p, pd };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) peri_release(all[i]);
}

static void gradients_are_adjoint_maps_twice (void **state) {
  (void)state;
  for_each_linear_op(check_adjoint);
}

/* Fail the first, second, ... allocation of a forward and backward pass until none is left. */
static void check_failures (call c) {
  const peri_op *op = peri_op_find(c.name);
  peri_tensor *leaf[MAX_IN];
  int n = 0;
  bool fired = true;
  for (int i = 0; i < c.nin; i++) {
    if (peri_dtype_of(c.in[i]) != PERI_F64) continue;
    leaf[n] = c.in[i];
    peri_set_requires_grad(leaf[n++], true);
  }
  peri_tensor *shape = run(c), *g = noise(shape);
  peri_release(shape);
  for (int64_t k = 0; fired; k++) {
    peri_tensor *y = NULL, *gin[MAX_IN] = { NULL };
    size_t before = memory_of(ctx).tensors;
    peri_memory_trim(ctx);
    peri_test_fail_after(ctx, k, true);
    peri_status s = run_op(ctx, op, c.nin, c.in, c.attr, &y);
    if (s == PERI_OK) s = peri_gradients(ctx, y, g, n, leaf, false, gin);
    fired = peri_test_fired(ctx);
    peri_test_fail_after(ctx, -1, false);
    if (s != (fired ? PERI_ENOMEM : PERI_OK))
      fail_msg("%s, allocation %d: %s: %s", c.name, (int)k, peri_status_name(s), peri_message(ctx));
    for (int i = 0; i < n; i++) peri_release(gin[i]);
    peri_release(y);
    if (memory_of(ctx).tensors != before)
      fail_msg("%s, allocation %d: %d tensors leaked", c.name, (int)k,
               (int)(memory_of(ctx).tensors - before));
  }
  peri_release(g);
}

static void failed_allocations_leave_nothing_behind (void **state) {
  (void)state;
  for_each_linear_op(check_failures);
}

static void half_floats_are_moved_and_added (void **state) {
  (void)state;
  peri_tensor *x = COUNT(PERI_BF16, 3, 2), *i = VEC(2, 2), *src = COUNT(PERI_BF16, 2, 2);
  peri_tensor *t = run((call){ "index_add", 3, { x, i, src }, { { .i = 0 } } });
  assert_int_equal(peri_dtype_of(t), PERI_BF16);
  VALUES(t, 0, 1, 2, 3, 6, 9);
  peri_release(t);
  GIVES(((call){ "pad", 1, { x }, { { V(0, 1) }, { .f = 2 } } }), 0, 1, 2, 2, 3, 2, 4, 5, 2);
  peri_release(x);
  peri_release(i);
  peri_release(src);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_ctx, close_ctx)

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(creation_fills_every_dtype),
    TEST(arange_counts_as_torch_does),
    TEST(linspace_hits_both_ends),
    TEST(one_hot_marks_classes_and_names_bad_ones),
    TEST(views_share_memory),
    TEST(reshape_views_where_strides_permit_and_copies_else),
    TEST(scalars_and_empty_tensors_reshape),
    TEST(slices_refuse_what_lies_outside),
    TEST(negative_strides_are_read_by_every_kind_of_op),
    TEST(diagonals_of_any_offset),
    TEST(cat_joins_views_promotes_and_refuses),
    TEST(pad_adds_cuts_and_refuses),
    TEST(copies_and_rolls),
    TEST(large_copies_are_cut_without_a_seam),
    TEST(gather_and_scatter_follow_the_index),
    TEST(rows_are_taken_and_added),
    TEST(masks_select_and_scatter),
    TEST(gradients_are_adjoint_maps_twice),
    TEST(failed_allocations_leave_nothing_behind),
    TEST(half_floats_are_moved_and_added),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
