/*
** test_matmul.c - matmul, linear, outer and einsum through the public API: values against plain
** loops, gradients against differences, layouts, dtypes, messages.
*/
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "perilune.h"
#include "run_op.h"
#include "memory_of.h"

static peri_ctx *ctx;

static int open_ctx (void **state) {
  (void)state;
  peri_options o;
  peri_options_init(&o);
  o.threads = 2;
  return peri_open(&o, &ctx) == PERI_OK ? 0 : -1;
}

static int close_ctx (void **state) {
  (void)state;
  int leaked = memory_of(ctx).tensors != 0;
  if (leaked) print_error("%zu tensors leaked\n", memory_of(ctx).tensors);
  peri_close(ctx);
  return leaked;
}

#define SHAPE(...) \
  (int)(sizeof((int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t)), (int64_t[]) { __VA_ARGS__ }

static void must (peri_status s) {
  if (s != PERI_OK) fail_msg("%s", peri_message(ctx));
}

static peri_status attempt (const char *name, int nin, peri_tensor *const *in,
                            const peri_attr *attr, peri_tensor **out) {
  const peri_op *op = peri_op_find(name);
  assert_non_null(op);
  *out = NULL;
  return run_op(ctx, op, nin, in, attr, out);
}

static peri_tensor *run (const char *name, int nin, peri_tensor *const *in, const peri_attr *attr) {
  peri_tensor *out;
  peri_status s = attempt(name, nin, in, attr, &out);
  if (s != PERI_OK) fail_msg("%s: %s", name, peri_message(ctx));
  return out;
}

/* Multiples of 1/8 in [-1, 1]: sums of products are exact in f32. */
static peri_tensor *some (peri_dtype d, int seed, int ndim, const int64_t *shape) {
  peri_tensor *t;
  must(peri_empty(ctx, d, ndim, shape, &t));
  uint32_t x = (uint32_t)seed * 2654435761u + 1;
  for (int64_t i = 0; i < peri_numel(t); i++) {
    x = x * 1664525u + 1013904223u;
    int v = (int)(x >> 16) % 9 - (d == PERI_U8 ? 0 : 4);
    void *p = peri_data(t);
    if (d == PERI_F32)
      ((float *)p)[i] = (float)v / 8;
    else if (d == PERI_F64)
      ((double *)p)[i] = v / 8.0;
    else if (d == PERI_I32)
      ((int32_t *)p)[i] = v;
    else if (d == PERI_I64)
      ((int64_t *)p)[i] = v;
    else
      ((uint8_t *)p)[i] = (uint8_t)v;
  }
  return t;
}

static double at (peri_tensor *t, int64_t i) {
  double v = NAN;
  must(peri_item(t, i, &v));
  return v;
}

static void same (peri_tensor *a, peri_tensor *b, double tolerance) {
  assert_int_equal(peri_ndim(a), peri_ndim(b));
  for (int i = 0; i < peri_ndim(a); i++) assert_int_equal(peri_shape(a)[i], peri_shape(b)[i]);
  for (int64_t i = 0; i < peri_numel(a); i++)
    if (!(fabs(at(a, i) - at(b, i)) <= tolerance))
      fail_msg("element %d is %.9g, not %.9g", (int)i, at(a, i), at(b, i));
}

static void drop (int n, peri_tensor **t) {
  for (int i = 0; i < n; i++) peri_release(t[i]);
}

static void shape_is (peri_tensor *t, int ndim, const int64_t *shape) {
  assert_int_equal(peri_ndim(t), ndim);
  for (int i = 0; i < ndim; i++) assert_int_equal(peri_shape(t)[i], shape[i]);
}

/* ---- values ---- */

static void matmul_is_the_sum_of_products (void **state) {
  static const peri_dtype dtypes[] = { PERI_U8, PERI_I32, PERI_I64, PERI_F32, PERI_F64 };
  (void)state;
  for (int d = 0; d < 5; d++) {
    peri_tensor *in[2] = { some(dtypes[d], 1, SHAPE(7, 9)), some(dtypes[d], 2, SHAPE(9, 5)) };
    peri_tensor *c = run("matmul", 2, in, NULL);
    assert_int_equal(peri_dtype_of(c), dtypes[d]);
    shape_is(c, SHAPE(7, 5));
    for (int i = 0; i < 7; i++)
      for (int j = 0; j < 5; j++) {
        double sum = 0;
        for (int p = 0; p < 9; p++) sum += at(in[0], i * 9 + p) * at(in[1], p * 5 + j);
        assert_true(at(c, i * 5 + j) == (dtypes[d] == PERI_U8 ? fmod(sum, 256) : sum));
      }
    peri_release(c);
    drop(2, in);
  }
}

static void vectors_drop_their_dim (void **state) {
  (void)state;
  peri_tensor *v = some(PERI_F32, 1, SHAPE(6)), *m = some(PERI_F32, 2, SHAPE(6, 4));
  peri_tensor *mt = some(PERI_F32, 3, SHAPE(2, 3, 6));
  peri_tensor *dot = run("matmul", 2, (peri_tensor *[]){ v, v }, NULL);
  peri_tensor *row = run("matmul", 2, (peri_tensor *[]){ v, m }, NULL);
  peri_tensor *col = run("matmul", 2, (peri_tensor *[]){ mt, v }, NULL);
  shape_is(dot, 0, NULL);
  shape_is(row, SHAPE(4));
  shape_is(col, SHAPE(2, 3));
  double sum = 0;
  for (int i = 0; i < 6; i++) sum += at(v, i) * at(v, i);
  assert_true(at(dot, 0) == sum);
  for (int e = 0; e < 6; e++) {
    sum = 0;
    for (int i = 0; i < 6; i++) sum += at(mt, e * 6 + i) * at(v, i);
    assert_true(at(col, e) == sum);
  }
  drop(6, (peri_tensor *[]){ v, m, mt, dot, row, col });
}

static void batches_broadcast (void **state) {
  (void)state;
  peri_tensor *a = some(PERI_F32, 1, SHAPE(2, 1, 3, 4)), *b = some(PERI_F32, 2, SHAPE(5, 4, 6));
  peri_tensor *c = run("matmul", 2, (peri_tensor *[]){ a, b }, NULL);
  shape_is(c, SHAPE(2, 5, 3, 6));
  for (int x = 0; x < 2; x++)
    for (int y = 0; y < 5; y++)
      for (int i = 0; i < 3; i++)
        for (int j = 0; j < 6; j++) {
          double sum = 0;
          for (int p = 0; p < 4; p++)
            sum += at(a, (x * 3 + i) * 4 + p) * at(b, (y * 4 + p) * 6 + j);
          assert_true(at(c, ((x * 5 + y) * 3 + i) * 6 + j) == sum);
        }
  drop(3, (peri_tensor *[]){ a, b, c });
}

static void any_strides_give_the_same_product (void **state) {
  (void)state;
  for (int d = 0; d < 2; d++) {
    peri_dtype dtype = d ? PERI_F64 : PERI_F32;
    peri_tensor *a = some(dtype, 1, SHAPE(4, 6, 3)), *b = some(dtype, 2, SHAPE(4, 3, 5));
    const peri_attr swap[] = { { .i = 0 }, { .i = 2 } }, last[] = { { .i = 1 }, { .i = 2 } };
    /* views that equal a and b, over memory in another order */
    peri_tensor *at0 = run("transpose", 1, &a, swap), *ac = run("contiguous", 1, &at0, NULL);
    peri_tensor *av = run("transpose", 1, &ac, swap), *bt = run("transpose", 1, &b, last);
    peri_tensor *bc = run("contiguous", 1, &bt, NULL), *bv = run("transpose", 1, &bc, last);
    peri_tensor *c = run("matmul", 2, (peri_tensor *[]){ a, b }, NULL);
    peri_tensor *v = run("matmul", 2, (peri_tensor *[]){ av, bv }, NULL);
    assert_false(peri_is_dense(av));
    same(v, c, 0);
    drop(10, (peri_tensor *[]){ a, b, at0, ac, av, bt, bc, bv, c, v });
  }
}

static void empty_operands_make_empty_or_zero (void **state) {
  (void)state;
  peri_tensor *a = some(PERI_F32, 1, SHAPE(0, 3)), *b = some(PERI_F32, 2, SHAPE(3, 2));
  peri_tensor *e = some(PERI_F32, 1, SHAPE(2, 0)), *f = some(PERI_F32, 1, SHAPE(0, 2));
  peri_tensor *c = run("matmul", 2, (peri_tensor *[]){ a, b }, NULL);
  peri_tensor *z = run("matmul", 2, (peri_tensor *[]){ e, f }, NULL);
  shape_is(c, SHAPE(0, 2));
  shape_is(z, SHAPE(2, 2));
  for (int i = 0; i < 4; i++) assert_true(at(z, i) == 0);
  drop(6, (peri_tensor *[]){ a, b, e, f, c, z });
}

static double act_of (const char *name, double x) {
  if (strcmp(name, "relu") == 0) return x > 0 ? x : 0;
  if (strcmp(name, "tanh") == 0) return tanh(x);
  if (strcmp(name, "sigmoid") == 0) return 1 / (1 + exp(-x));
  if (strcmp(name, "silu") == 0) return x / (1 + exp(-x));
  if (strcmp(name, "gelu") == 0) return 0.5 * x * (1 + erf(x / sqrt(2)));
  if (strcmp(name, "gelu_tanh") == 0)
    return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
  return x;
}

static const char *const acts[] = {
  "none", "relu", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh"
};

static void linear_adds_the_bias_and_activates (void **state) {
  (void)state;
  for (int d = 0; d < 2; d++)
    for (int k = 0; k < 7; k++) {
      peri_dtype dtype = d ? PERI_F64 : PERI_F32;
      peri_tensor *in[3] = { some(dtype, 1, SHAPE(3, 11, 6)), some(dtype, 2, SHAPE(40, 6)),
                             some(dtype, 3, SHAPE(40)) };
      const peri_attr act = { .s = acts[k] };
      peri_tensor *y = run("linear", 3, in, &act);
      shape_is(y, SHAPE(3, 11, 40));
      for (int i = 0; i < 33; i++)
        for (int j = 0; j < 40; j++) {
          double sum = at(in[2], j);
          for (int p = 0; p < 6; p++) sum += at(in[0], i * 6 + p) * at(in[1], j * 6 + p);
          assert_true(fabs(at(y, i * 40 + j) - act_of(acts[k], sum)) <= (d ? 1e-14 : 1e-6));
        }
      peri_release(y);
      drop(3, in);
    }
}

/* ---- gradients ---- */

/* sum of w * f(in), so that every element of the result has another weight. */
static peri_tensor *loss_of (const char *name, int nin, peri_tensor *const *in,
                             const peri_attr *attr) {
  peri_tensor *y = run(name, nin, in, attr);
  peri_tensor *w = some(PERI_F64, 77, peri_ndim(y), peri_shape(y));
  peri_tensor *p = run("mul", 2, (peri_tensor *[]){ y, w }, NULL);
  peri_tensor *s = run("sum", 1, &p, NULL);
  drop(3, (peri_tensor *[]){ y, w, p });
  return s;
}

static double value_of (const char *name, int nin, peri_tensor *const *in, const peri_attr *attr) {
  bool was = peri_set_grad_enabled(ctx, false);
  peri_tensor *s = loss_of(name, nin, in, attr);
  double v = at(s, 0);
  peri_release(s);
  peri_set_grad_enabled(ctx, was);
  return v;
}

/* f64 central differences, step 1e-5: error about 1e-10. */
static void check_gradients (const char *name, int nin, peri_tensor **in, const peri_attr *attr) {
  peri_tensor *g[3];
  for (int i = 0; i < nin; i++) must(peri_set_requires_grad(in[i], true));
  peri_tensor *loss = loss_of(name, nin, in, attr);
  must(peri_gradients(ctx, loss, NULL, nin, in, false, g));
  peri_release(loss);
  for (int i = 0; i < nin; i++) {
    double *x = peri_data(in[i]);
    assert_non_null(g[i]);
    for (int64_t e = 0; e < peri_numel(in[i]); e++) {
      double keep = x[e], h = 1e-5;
      x[e] = keep + h;
      double up = value_of(name, nin, in, attr);
      x[e] = keep - h;
      double down = value_of(name, nin, in, attr);
      x[e] = keep;
      if (fabs((up - down) / (2 * h) - at(g[i], e)) > 1e-7)
        fail_msg("%s: d/d input %d [%d] is %.9g, difference %.9g", name, i, (int)e, at(g[i], e),
                 (up - down) / (2 * h));
    }
  }
  drop(nin, g);
}

static void matmul_gradients_match_differences (void **state) {
  static const struct {
    int na;
    int64_t a[4];
    int nb;
    int64_t b[4];
  } cases[] = {
    { 2, { 3, 4 }, 2, { 4, 5 } },
    { 1, { 4 }, 1, { 4 } },
    { 1, { 4 }, 2, { 4, 3 } },
    { 2, { 3, 4 }, 1, { 4 } },
    { 3, { 2, 3, 4 }, 2, { 4, 5 } },
    { 3, { 2, 3, 4 }, 1, { 4 } },
    { 1, { 4 }, 3, { 2, 4, 3 } },
    { 2, { 3, 4 }, 3, { 2, 4, 5 } },
    { 4, { 2, 1, 3, 4 }, 3, { 3, 4, 2 } },
  };
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    peri_tensor *in[2] = { some(PERI_F64, 1, cases[i].na, cases[i].a),
                           some(PERI_F64, 2, cases[i].nb, cases[i].b) };
    check_gradients("matmul", 2, in, NULL);
    drop(2, in);
  }
}

static void linear_gradients_match_differences (void **state) {
  (void)state;
  for (int k = 0; k < 7; k++) {
    const peri_attr act = { .s = acts[k] };
    for (int ndim = 1; ndim <= 3; ndim++) {
      const int64_t shape[3] = { 2, 3, 4 };
      peri_tensor *in[3] = { some(PERI_F64, 5, ndim, shape + 3 - ndim),
                             some(PERI_F64, 6, SHAPE(5, 4)), some(PERI_F64, 7, SHAPE(5)) };
      for (int i = 0; i < 5; i++)
        ((double *)peri_data(in[2]))[i] += 0.013; /* away from relu's kink */
      check_gradients("linear", 3, in, &act);
      drop(3, in);
    }
  }
}

/* d/dx of sum(g * w2) where g = d loss / dx, against differences of g. */
static void linear_has_second_derivatives (void **state) {
  (void)state;
  for (int k = 2; k < 7; k++) {
    const peri_attr act = { .s = acts[k] };
    peri_tensor *in[2] = { some(PERI_F64, 5, SHAPE(2, 3)), some(PERI_F64, 6, SHAPE(4, 3)) }, *g, *h;
    peri_tensor *three[3] = { in[0], in[1], NULL };
    must(peri_set_requires_grad(in[0], true));
    peri_tensor *loss = loss_of("linear", 3, three, &act);
    must(peri_gradients(ctx, loss, NULL, 1, in, true, &g));
    peri_tensor *s = run("sum", 1, &g, NULL);
    must(peri_gradients(ctx, s, NULL, 1, in, false, &h));
    drop(3, (peri_tensor *[]){ loss, s, g });
    double *x = peri_data(in[0]);
    for (int e = 0; e < 6; e++) {
      double sums[2], keep = x[e];
      for (int side = 0; side < 2; side++) {
        x[e] = keep + (side ? -1e-5 : 1e-5);
        loss = loss_of("linear", 3, three, &act);
        must(peri_gradients(ctx, loss, NULL, 1, in, false, &g));
        sums[side] = 0;
        for (int i = 0; i < 6; i++) sums[side] += at(g, i);
        drop(2, (peri_tensor *[]){ loss, g });
      }
      x[e] = keep;
      if (fabs((sums[0] - sums[1]) / 2e-5 - at(h, e)) > 1e-6)
        fail_msg("%s [%d]: %.9g, difference %.9g", acts[k], e, at(h, e),
                 (sums[0] - sums[1]) / 2e-5);
    }
    peri_release(h);
    drop(2, in);
  }
}

/* ---- einsum, outer ---- */

static void einsum_follows_its_equation (void **state) {
  (void)state;
  peri_tensor *a = some(PERI_F32, 1, SHAPE(3, 4)), *b = some(PERI_F32, 2, SHAPE(4, 5));
  peri_tensor *v = some(PERI_F32, 3, SHAPE(4)), *u = some(PERI_F32, 4, SHAPE(3));
  peri_tensor *q = some(PERI_F32, 5, SHAPE(2, 3, 4)), *k = some(PERI_F32, 6, SHAPE(2, 5, 4));
  struct {
    const char *text;
    int n;
    peri_tensor *in[3];
    int ndim;
    int64_t shape[3];
  } cases[] = {
    { "ij,jk->ik", 2, { a, b }, 2, { 3, 5 } },
    { "ij,jk", 2, { a, b }, 2, { 3, 5 } },
    { "ij,jk->ki", 2, { a, b }, 2, { 5, 3 } },
    { "ij->ji", 1, { a }, 2, { 4, 3 } },
    { "ij->i", 1, { a }, 1, { 3 } },
    { "ij->", 1, { a }, 0, { 0 } },
    { "i,ij,j->", 3, { u, a, v }, 0, { 0 } },
    { "i,j->ij", 2, { u, v }, 2, { 3, 4 } },
    { "bqd,bkd->bqk", 2, { q, k }, 3, { 2, 3, 5 } },
    { "ij, ij -> i", 2, { a, a }, 1, { 3 } },
    { "bqd,qd->bd", 2, { q, a }, 2, { 2, 4 } },
  };
  for (size_t t = 0; t < sizeof cases / sizeof *cases; t++) {
    const peri_attr eq = { .s = cases[t].text };
    peri_tensor *y = run("einsum", cases[t].n, cases[t].in, &eq);
    shape_is(y, cases[t].ndim, cases[t].shape);
    peri_release(y);
  }
  peri_tensor *qk =
      run("einsum", 2, (peri_tensor *[]){ q, k }, &(peri_attr){ .s = "bqd,bkd->bqk" });
  peri_tensor *all = run("einsum", 3, (peri_tensor *[]){ u, a, v }, &(peri_attr){ .s = "i,ij,j" });
  double total = 0;
  for (int i = 0; i < 3; i++)
    for (int j = 0; j < 4; j++) total += at(u, i) * at(a, i * 4 + j) * at(v, j);
  assert_true(at(all, 0) == total);
  for (int e = 0; e < 30; e++) {
    double sum = 0;
    for (int d = 0; d < 4; d++) sum += at(q, e / 5 * 4 + d) * at(k, (e / 15 * 5 + e % 5) * 4 + d);
    assert_true(at(qk, e) == sum);
  }
  peri_tensor *o = run("outer", 2, (peri_tensor *[]){ u, v }, NULL);
  for (int e = 0; e < 12; e++) assert_true(at(o, e) == at(u, e / 4) * at(v, e % 4));
  drop(9, (peri_tensor *[]){ a, b, v, u, q, k, qk, all, o });
}

static void einsum_gradients_match_differences (void **state) {
  (void)state;
  peri_tensor *in[2] = { some(PERI_F64, 5, SHAPE(2, 3, 4)), some(PERI_F64, 6, SHAPE(2, 5, 4)) };
  check_gradients("einsum", 2, in, &(peri_attr){ .s = "bqd,bkd->kqb" });
  check_gradients("einsum", 2, in, &(peri_attr){ .s = "bqd,bkd->qk" });
  drop(2, in);
}

/* ---- messages ---- */

static void refused (const char *name, int nin, peri_tensor *const *in, const peri_attr *attr,
                     peri_status want, const char *text) {
  peri_tensor *out;
  peri_status s = attempt(name, nin, in, attr, &out);
  assert_null(out);
  if (s != want || !strstr(peri_message(ctx), text))
    fail_msg("%s: status %d, \"%s\" lacks \"%s\"", name, s, peri_message(ctx), text);
}

static void misuse_is_named (void **state) {
  (void)state;
  peri_tensor *a = some(PERI_F32, 1, SHAPE(4, 8)), *b = some(PERI_F32, 2, SHAPE(7, 16));
  peri_tensor *d = some(PERI_F64, 3, SHAPE(8, 2)), *v = some(PERI_F32, 4, SHAPE(3));
  peri_tensor *x = some(PERI_F32, 5, SHAPE(2, 4, 8)), *y = some(PERI_F32, 6, SHAPE(3, 8, 2)), *s;
  must(peri_scalar(ctx, PERI_F32, 2, &s));
  refused("matmul", 2, (peri_tensor *[]){ a, b }, NULL, PERI_ESHAPE,
          "(4, 8) x (7, 16): inner sizes 8 and 7 differ");
  refused("matmul", 2, (peri_tensor *[]){ a, d }, NULL, PERI_EDTYPE, "a is f32 and b is f64");
  refused("matmul", 2, (peri_tensor *[]){ x, y }, NULL, PERI_ESHAPE, "batch sizes 2 and 3 differ");
  refused("matmul", 2, (peri_tensor *[]){ s, a }, NULL, PERI_ESHAPE, "a has no dims");
  refused("linear", 3, (peri_tensor *[]){ a, b, NULL }, NULL, PERI_ESHAPE, "8 and 16 differ");
  refused("linear", 3, (peri_tensor *[]){ b, b, v }, NULL, PERI_ESHAPE, "bias has 3 elements");
  refused("linear", 3, (peri_tensor *[]){ a, a, NULL }, &(peri_attr){ .s = "swish" }, PERI_EINVAL,
          "\"swish\"");
  refused("outer", 2, (peri_tensor *[]){ a, v }, NULL, PERI_ESHAPE, "two vectors");
  refused("einsum", 2, (peri_tensor *[]){ a, b }, &(peri_attr){ .s = "ij,jk->ik" }, PERI_ESHAPE,
          "j is 8 and, in tensor 1, 7");
  refused("einsum", 1, (peri_tensor *[]){ a }, &(peri_attr){ .s = "ii->i" }, PERI_ESHAPE,
          "i is 4 and, in tensor 0, 8");
  refused("einsum", 1, (peri_tensor *[]){ a }, &(peri_attr){ .s = "ij->ii" }, PERI_EINVAL,
          "twice in the result");
  refused("einsum", 1, (peri_tensor *[]){ a }, &(peri_attr){ .s = "ij->k" }, PERI_EINVAL,
          "no term");
  refused("einsum", 1, (peri_tensor *[]){ a }, &(peri_attr){ .s = "i->i" }, PERI_ESHAPE,
          "1 letters");
  refused("einsum", 1, (peri_tensor *[]){ a }, &(peri_attr){ .s = "ij,jk" }, PERI_EINVAL,
          "2 terms");
  refused("einsum", 1, (peri_tensor *[]){ a }, &(peri_attr){ .s = "i.j" }, PERI_EINVAL, "'.' at 1");
  drop(7, (peri_tensor *[]){ a, b, d, v, x, y, s });
}

static void half_precision_is_computed_in_f32 (void **state) {
  (void)state;
  peri_tensor *a = some(PERI_F32, 1, SHAPE(3, 8)), *b = some(PERI_F32, 2, SHAPE(8, 2));
  const peri_attr half = { .i = PERI_BF16 };
  peri_tensor *ah = run("to", 1, &a, &half), *bh = run("to", 1, &b, &half);
  peri_tensor *c = run("matmul", 2, (peri_tensor *[]){ a, b }, NULL);
  peri_tensor *h = run("matmul", 2, (peri_tensor *[]){ ah, bh }, NULL);
  assert_int_equal(peri_dtype_of(h), PERI_BF16);
  same(h, c, 0x1p-7);
  drop(6, (peri_tensor *[]){ a, b, ah, bh, c, h });
}

int main (void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, open_ctx, close_ctx)
  const struct CMUnitTest tests[] = {
    TEST(matmul_is_the_sum_of_products),
    TEST(vectors_drop_their_dim),
    TEST(batches_broadcast),
    TEST(any_strides_give_the_same_product),
    TEST(empty_operands_make_empty_or_zero),
    TEST(linear_adds_the_bias_and_activates),
    TEST(matmul_gradients_match_differences),
    TEST(linear_gradients_match_differences),
    TEST(linear_has_second_derivatives),
    TEST(einsum_follows_its_equation),
    TEST(einsum_gradients_match_differences),
    TEST(misuse_is_named),
    TEST(half_precision_is_computed_in_f32),
  };
  return cmocka_run_group_tests_name("matmul", tests, NULL, NULL);
}
