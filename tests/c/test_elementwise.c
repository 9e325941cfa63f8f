/*
** test_elementwise.c - the driver of elementwise ops and their ops: results do not depend on
** strides, dtypes promote, integers follow Lua, gradients at ties and bounds, in-place forms.
*/
#include "core/core.h"
#include "loss_ops.h"

#include "op/op.h"

static peri_tensor *view (const char *name, peri_tensor *x, const peri_attr *attr) {
  return run(name, IN(x), attr);
}

/* The bytes of a result, whatever its layout. */
static void same_bits (peri_tensor *a, peri_tensor *b) {
  assert_int_equal(peri_numel(a), peri_numel(b));
  assert_int_equal(peri_dtype_of(a), peri_dtype_of(b));
  size_t n = (size_t)peri_numel(a) * peri_dtype_size(peri_dtype_of(a));
  void *p = malloc(n), *q = malloc(n);
  assert_int_equal(peri_copy_out(a, p, n), PERI_OK);
  assert_int_equal(peri_copy_out(b, q, n), PERI_OK);
  assert_memory_equal(p, q, n);
  free(p);
  free(q);
}

static const char *const pairs[] = { "add", "sub", "mul",          "div",     "floordiv",
                                     "mod", "pow", "maximum",      "minimum", "atan2",
                                     "eq",  "lt",  "gelu_backward" };
enum { NPAIRS = sizeof pairs / sizeof *pairs };

/* Each way to lay out an operand against its dense copy. */
static void check_layouts (peri_tensor *x, peri_tensor *y) {
  peri_tensor *dense[2];
  const peri_attr *shape = ATTRS({ .v = peri_shape(x), .n = peri_ndim(x) });
  peri_tensor *wide = view("expand", y, shape);
  dense[0] = view("contiguous", x, NULL);
  dense[1] = view("contiguous", wide, NULL);
  for (int i = 0; i < NPAIRS; i++) {
    peri_tensor *want = run(pairs[i], 2, dense, NULL);
    peri_tensor *a = run(pairs[i], IN(x, y), NULL), *b = run(pairs[i], IN(x, wide), NULL);
    peri_tensor *c = run(pairs[i], IN(y, x), NULL);
    peri_tensor *d = run(pairs[i], IN(dense[1], dense[0]), NULL);
    same_bits(a, want);
    same_bits(b, want);
    same_bits(c, d);
    drop(5, (peri_tensor *[]){ want, a, b, c, d });
  }
  drop(3, (peri_tensor *[]){ dense[0], dense[1], wide });
}

static void results_do_not_depend_on_strides (void **state) {
  (void)state;
  static const int64_t sizes[][3] = { { 3, 5, 7 }, { 2, 3, 130 }, { 64, 9, 3 }, { 1, 70, 90 } };
  for (int k = 0; k < 4; k++) {
    const int64_t *n = sizes[k];
    peri_tensor *x = random_tensor(PERI_F32, DIMS(n[0], n[1], n[2]), "x", 4);
    peri_tensor *back = random_tensor(PERI_F32, DIMS(n[2], n[1], n[0]), "back", 4);
    peri_tensor *turned = view("transpose", back, ATTRS(I(0), I(2)));
    peri_tensor *flipped = view("flip", x, ATTRS(ALL));
    peri_tensor *y[] = {
      random_tensor(PERI_F32, DIMS(n[0], n[1], n[2]), "y", 4),
      random_tensor(PERI_F32, DIMS(n[2]), "row", 4),
      random_tensor(PERI_F32, DIMS(n[1], 1), "column", 4),
      random_tensor(PERI_F32, DIMS(n[0], 1, n[2]), "middle", 4),
      random_tensor(PERI_F32, 0, NULL, "one", 4),
      random_tensor(PERI_F32, DIMS(1, 1), "ones", 4),
      peri_retain(turned),
      peri_retain(flipped),
    };
    for (size_t i = 0; i < sizeof y / sizeof *y; i++) {
      check_layouts(x, y[i]);
      check_layouts(turned, y[i]);
      check_layouts(flipped, y[i]);
      peri_release(y[i]);
    }
    drop(4, (peri_tensor *[]){ x, back, turned, flipped });
  }
}

static void big_transposed_and_threaded_results_are_the_same (void **state) {
  (void)state;
  peri_tensor *x = random_tensor(PERI_F32, DIMS(300, 411), "x", 4);
  peri_tensor *y = random_tensor(PERI_F32, DIMS(411, 300), "y", 4);
  peri_tensor *turned = view("transpose", y, ATTRS(I(0), I(1)));
  peri_tensor *dense = view("contiguous", turned, NULL);
  for (int64_t i = 0; i < 300; i += 7)
    for (int64_t j = 0; j < 411; j++) assert_true(at(dense, i * 411 + j) == at(y, j * 300 + i));
  peri_tensor *a = run("add", IN(x, turned), NULL), *b = run("add", IN(x, dense), NULL);
  same_bits(a, b);
  peri_ctx *two = ctx, *one = open_with(1, PERI_SIMD_AUTO);
  peri_tensor *e = run("exp", IN(x), NULL);
  ctx = one;
  peri_tensor *x1 = random_tensor(PERI_F32, DIMS(300, 411), "x", 4), *e1 = run("exp", IN(x1), NULL);
  same_bits(e, e1);
  drop(2, (peri_tensor *[]){ x1, e1 });
  peri_close(one);
  ctx = two;
  drop(7, (peri_tensor *[]){ x, y, turned, dense, a, b, e });
}

static void dtypes_promote_and_convert (void **state) {
  (void)state;
  static const peri_dtype all[] = { PERI_BOOL, PERI_U8,   PERI_I32, PERI_I64,
                                    PERI_F16,  PERI_BF16, PERI_F32, PERI_F64 };
  peri_tensor *a = make(PERI_F64, DIMS(4), (const double[]){ 1, 0, 1, 1 });
  peri_tensor *b = make(PERI_F64, DIMS(4), (const double[]){ 1, 1, 0, 1 });
  for (int i = 0; i < 8; i++)
    for (int j = 0; j < 8; j++) {
      peri_tensor *x = run("to", IN(a), ATTRS(I(all[i]))), *y = run("to", IN(b), ATTRS(I(all[j])));
      peri_tensor *s = run("add", IN(x, y), NULL), *m = run("mul", IN(x, y), NULL);
      assert_int_equal(peri_dtype_of(s), peri_dtype_promote(all[i], all[j]));
      bool flag = peri_dtype_of(s) == PERI_BOOL;
      all_close(s, flag ? (const double[]){ 1, 1, 1, 1 } : (const double[]){ 2, 1, 1, 2 }, 0);
      all_close(m, (const double[]){ 1, 0, 0, 1 }, 0);
      drop(4, (peri_tensor *[]){ x, y, s, m });
    }
  peri_tensor *f =
      make(PERI_F64, DIMS(7), (const double[]){ -1.7, 2.9, NAN, 1e30, -1e30, 256, -0.0 });
  peri_tensor *i64 = run("to", IN(f), ATTRS(I(PERI_I64))),
              *u8 = run("to", IN(f), ATTRS(I(PERI_U8)));
  peri_tensor *flag = run("to", IN(f), ATTRS(I(PERI_BOOL)));
  const int64_t *p = peri_data(i64);
  assert_true(p[0] == -1 && p[1] == 2 && p[2] == 0 && p[3] == INT64_MAX && p[4] == INT64_MIN);
  assert_true(at(u8, 0) == 255 && at(u8, 1) == 2 && at(u8, 5) == 0);
  all_close(flag, (const double[]){ 1, 1, 1, 1, 1, 1, 0 }, 0);
  drop(6, (peri_tensor *[]){ a, b, f, i64, u8, flag });
}

static void integer_division_follows_lua (void **state) {
  (void)state;
  const double x[] = { 7, -7, 7, -7, 6, -6, 0, 5 }, y[] = { 2, 2, -2, -2, 3, -3, -4, 7 };
  for (int d = 0; d < 2; d++) {
    peri_dtype dtype = d ? PERI_F32 : PERI_I64;
    peri_tensor *a = make(dtype, DIMS(8), x), *b = make(dtype, DIMS(8), y);
    peri_tensor *q = run("floordiv", IN(a, b), NULL), *r = run("mod", IN(a, b), NULL);
    all_close(q, (const double[]){ 3, -4, -4, 3, 2, 2, 0, 0 }, 0);
    all_close(r, (const double[]){ 1, 1, -1, -1, 0, 0, 0, 5 }, 0);
    drop(4, (peri_tensor *[]){ a, b, q, r });
  }
  peri_tensor *a = make(PERI_I64, DIMS(3), (const double[]){ 1, 2, 3 });
  peri_tensor *b = make(PERI_I64, DIMS(3), (const double[]){ 1, 0, -1 });
  refuse("position 1", "floordiv", IN(a, b), NULL);
  refuse("position 1", "mod", IN(a, b), NULL);
  refuse("position 2", "pow", IN(a, b), NULL);
  ((int64_t *)peri_data(a))[2] = INT64_MIN;
  ((int64_t *)peri_data(b))[1] = 1;
  peri_tensor *q = run("floordiv", IN(a, b), NULL), *f = run("div", IN(a, b), NULL);
  assert_true(((int64_t *)peri_data(q))[2] == INT64_MIN);
  assert_int_equal(peri_dtype_of(f), PERI_F32);
  drop(4, (peri_tensor *[]){ a, b, q, f });
}

static void nan_and_infinity_pass (void **state) {
  (void)state;
  const double inf = INFINITY;
  peri_tensor *x = make(PERI_F32, DIMS(4), (const double[]){ NAN, 1, -inf, inf });
  peri_tensor *y = make(PERI_F32, DIMS(4), (const double[]){ 1, NAN, 0, 0 });
  peri_tensor *hi = run("maximum", IN(x, y), NULL), *lo = run("minimum", IN(x, y), NULL);
  assert_true(isnan(at(hi, 0)) && isnan(at(hi, 1)) && isnan(at(lo, 0)) && isnan(at(lo, 1)));
  assert_true(at(hi, 2) == 0 && at(lo, 2) == -inf && at(hi, 3) == inf);
  peri_tensor *c = run("clamp", IN(x), ATTRS(F(-2), F(3)));
  assert_true(isnan(at(c, 0)) && at(c, 2) == -2 && at(c, 3) == 3);
  peri_tensor *is[] = { run("isnan", IN(x), NULL), run("isinf", IN(x), NULL),
                        run("isfinite", IN(x), NULL) };
  all_close(is[0], (const double[]){ 1, 0, 0, 0 }, 0);
  all_close(is[1], (const double[]){ 0, 0, 1, 1 }, 0);
  all_close(is[2], (const double[]){ 0, 1, 0, 0 }, 0);
  refuse("above max", "clamp", IN(x), ATTRS(F(3), F(-2)));
  refuse("approximate", "gelu", IN(x), ATTRS(S("fast")));
  drop(5, (peri_tensor *[]){ x, y, hi, lo, c });
  drop(3, is);
}

static void gradient_of (const char *name, int nin, peri_tensor **in, const peri_attr *attr,
                         peri_tensor **g) {
  for (int i = 0; i < nin; i++) peri_set_requires_grad(in[i], true);
  peri_tensor *y = run(name, nin, in, attr), *s = run("sum", IN(y), NULL);
  assert_int_equal(peri_gradients(ctx, s, NULL, nin, in, false, g), PERI_OK);
  for (int i = 0; i < nin; i++) peri_set_requires_grad(in[i], false);
  drop(2, (peri_tensor *[]){ y, s });
}

static void gradients_at_ties_and_bounds (void **state) {
  (void)state;
  peri_tensor *x = make(PERI_F64, DIMS(3), (const double[]){ 1, 2, 3 });
  peri_tensor *y = make(PERI_F64, DIMS(3), (const double[]){ 1, 3, 2 }), *g[2];
  gradient_of("maximum", IN(x, y), NULL, g);
  all_close(g[0], (const double[]){ 0.5, 0, 1 }, 0);
  all_close(g[1], (const double[]){ 0.5, 1, 0 }, 0);
  drop(2, g);
  gradient_of("clamp", IN(x), ATTRS(F(1), F(2)), g);
  all_close(g[0], (const double[]){ 1, 1, 0 }, 0);
  drop(1, g);
  peri_tensor *zero = make(PERI_F64, DIMS(2), (const double[]){ 0, 0 });
  peri_tensor *e = make(PERI_F64, DIMS(2), (const double[]){ 0, 2 });
  gradient_of("pow", IN(zero, e), NULL, g);
  all_close(g[0], (const double[]){ 0, 0 }, 0);
  all_close(g[1], (const double[]){ 0, 0 }, 0);
  drop(2, g);
  drop(4, (peri_tensor *[]){ x, y, zero, e });
}

static void in_place_forms_write_through_views (void **state) {
  (void)state;
  double start[12];
  for (int i = 0; i < 12; i++) start[i] = i;
  peri_tensor *x = make(PERI_F32, DIMS(3, 4), start);
  peri_tensor *odd = view("transpose", x, ATTRS(I(0), I(1)));
  peri_tensor *part = view("narrow", odd, ATTRS(I(0), I(1), I(2))); /* columns 1 and 2 of x */
  peri_tensor *ten = make(PERI_I64, DIMS(2, 1), (const double[]){ 10, 20 });
  assert_int_equal(
      peri_apply_inplace(ctx, peri_op_find("add"), 2, (peri_tensor *[]){ part, ten }, 0, NULL),
      PERI_OK);
  all_close(x, (const double[]){ 0, 11, 22, 3, 4, 15, 26, 7, 8, 19, 30, 11 }, 0);
  assert_int_equal(
      peri_apply_inplace(ctx, peri_op_find("neg"), 1, (peri_tensor *[]){ part }, 0, NULL), PERI_OK);
  all_close(x, (const double[]){ 0, -11, -22, 3, 4, -15, -26, 7, 8, -19, -30, 11 }, 0);
  peri_tensor *ones = make(PERI_I64, DIMS(3), (const double[]){ 1, 2, 3 });
  run("copy_", IN(part, ones), NULL);
  all_close(x, (const double[]){ 0, 1, 1, 3, 4, 2, 2, 7, 8, 3, 3, 11 }, 0);
  run("fill_", IN(part), ATTRS(F(5)));
  all_close(x, (const double[]){ 0, 5, 5, 3, 4, 5, 5, 7, 8, 5, 5, 11 }, 0);
  assert_int_not_equal(
      peri_apply_inplace(ctx, peri_op_find("exp"), 1, (peri_tensor *[]){ ones }, 0, NULL), PERI_OK);
  refuse("does not broadcast", "copy_", IN(ones, x), NULL);
  refuse("does not fit", "fill_", IN(ones), ATTRS(F(1e30)));
  peri_tensor *back = view("flip", ones, ATTRS(ALL));
  run("copy_", IN(ones, back), NULL);
  all_close(ones, (const double[]){ 3, 2, 1 }, 0);
  drop(6, (peri_tensor *[]){ x, odd, part, ten, ones, back });
}

static void half_dtypes_round_the_f32_result (void **state) {
  (void)state;
  peri_tensor *x = random_tensor(PERI_F32, DIMS(40), "x", 6);
  for (int d = PERI_F16; d <= PERI_BF16; d++) {
    peri_tensor *h = run("to", IN(x), ATTRS(I(d))), *w = run("to", IN(h), ATTRS(I(PERI_F32)));
    static const char *const names[] = { "exp", "tanh", "gelu", "sum", "mean", "max", "logsumexp" };
    for (int i = 0; i < 7; i++) {
      peri_tensor *a = run(names[i], IN(h), NULL), *wide = run(names[i], IN(w), NULL);
      peri_tensor *b = run("to", IN(wide), ATTRS(I(d)));
      same_bits(a, b);
      drop(3, (peri_tensor *[]){ a, wide, b });
    }
    drop(2, (peri_tensor *[]){ h, w });
  }
  peri_release(x);
}

static void selection_takes_every_dtype (void **state) {
  (void)state;
  peri_tensor *c = make(PERI_BOOL, DIMS(2, 1), (const double[]){ 1, 0 });
  peri_tensor *x = make(PERI_I64, DIMS(3), (const double[]){ 1, 2, 3 });
  peri_tensor *y = make(PERI_F32, 0, NULL, (const double[]){ 0.5 });
  peri_tensor *w = run("where", IN(c, x, y), NULL), *m = run("masked_fill", IN(x, c), ATTRS(F(9)));
  assert_int_equal(peri_dtype_of(w), PERI_F32);
  assert_int_equal(peri_dtype_of(m), PERI_I64);
  all_close(w, (const double[]){ 1, 2, 3, 0.5, 0.5, 0.5 }, 0);
  all_close(m, (const double[]){ 9, 9, 9, 1, 2, 3 }, 0);
  drop(5, (peri_tensor *[]){ c, x, y, w, m });
}

static void allocation_failures_leave_nothing (void **state) {
  (void)state;
  peri_tensor *x = random_tensor(PERI_F32, DIMS(80, 90), "x", 2);
  peri_tensor *y = random_tensor(PERI_F32, DIMS(90, 80), "y", 2);
  peri_tensor *turned = view("transpose", y, ATTRS(I(0), I(1)));
  fail_every_allocation("add", IN(x, turned), NULL);
  fail_every_allocation("contiguous", IN(turned), NULL);
  fail_every_allocation("floordiv", IN(x, turned), NULL);
  drop(3, (peri_tensor *[]){ x, y, turned });
}

int main (void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
  const struct CMUnitTest tests[] = {
    T(results_do_not_depend_on_strides),
    T(big_transposed_and_threaded_results_are_the_same),
    T(dtypes_promote_and_convert),
    T(integer_division_follows_lua),
    T(nan_and_infinity_pass),
    T(gradients_at_ties_and_bounds),
    T(in_place_forms_write_through_views),
    T(half_dtypes_round_the_f32_result),
    T(selection_takes_every_dtype),
    T(allocation_failures_leave_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
