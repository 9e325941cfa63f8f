/*
** loss_ops.h - helpers of test_loss.c, test_sample.c, test_advantage.c and test_optim.c: a context
** for each test, ops by name, tensors from numbers, finite differences in f64.
**
** Weights made by lcg() follow the rule of the stored reference vectors: x0 = FNV-1a of the name,
** x = x * 1664525 + 1013904223 mod 2^32, value = ((x >> 8) / 2^24 - 0.5) * scale.
*/
#ifndef loss_ops_h
#define loss_ops_h

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/core.h"
#include "run_op.h"
#include "memory_of.h"

static peri_ctx *ctx;

static inline peri_ctx *open_with (int threads, peri_simd simd) {
  peri_ctx *c = NULL;
  peri_options o;
  peri_options_init(&o);
  o.threads = threads;
  o.seed = 7;
  o.simd = simd;
  return peri_open(&o, &c) == PERI_OK ? c : NULL;
}

static inline int setup (void **state) {
  (void)state;
  ctx = open_with(2, PERI_SIMD_AUTO);
  return ctx == NULL;
}

static inline int teardown (void **state) {
  (void)state;
  int leaked = memory_of(ctx).tensors != 0;
  peri_close(ctx);
  return leaked;
}

/* ---- calling ops ---- */

#define COUNT(...) (int)(sizeof((peri_tensor *[]){ __VA_ARGS__ }) / sizeof(peri_tensor *))
#define IN(...) \
  COUNT(__VA_ARGS__), (peri_tensor *[]) { __VA_ARGS__ }
#define ATTRS(...) \
  (const peri_attr[]) { __VA_ARGS__ }
#define I(x) \
  { .i = (x) }
#define F(x) \
  { .f = (x) }
#define S(x) \
  { .s = (x) }
#define ALL \
  { .n = -1 }

static inline peri_status try_op (const char *name, int nin, peri_tensor *const *in,
                                  const peri_attr *attr, peri_tensor **out) {
  const peri_op *op = peri_op_find(name);
  if (op == NULL) fail_msg("no op %s", name);
  return run_op(ctx, op, nin, in, attr, out);
}

static inline peri_tensor *run2 (const char *name, int nin, peri_tensor *const *in,
                                 const peri_attr *attr, peri_tensor **second) {
  peri_tensor *out[4] = { NULL };
  if (try_op(name, nin, in, attr, out) != PERI_OK) fail_msg("%s: %s", name, peri_message(ctx));
  if (second != NULL) *second = out[1];
  return out[0];
}

static inline peri_tensor *run (const char *name, int nin, peri_tensor *const *in,
                                const peri_attr *attr) {
  return run2(name, nin, in, attr, NULL);
}

static inline void refuse (const char *part, const char *name, int nin, peri_tensor *const *in,
                           const peri_attr *attr) {
  peri_tensor *out[4] = { NULL };
  assert_int_not_equal(try_op(name, nin, in, attr, out), PERI_OK);
  if (strstr(peri_message(ctx), part) == NULL)
    fail_msg("%s: \"%s\" lacks \"%s\"", name, peri_message(ctx), part);
}

static inline peri_tensor *make (peri_dtype d, int ndim, const int64_t *shape, const double *v) {
  peri_tensor *t = NULL;
  assert_int_equal(peri_empty(ctx, d, ndim, shape, &t), PERI_OK);
  for (int64_t i = 0; i < peri_numel(t); i++) {
    if (d == PERI_F64)
      ((double *)peri_data(t))[i] = v[i];
    else if (d == PERI_F32)
      ((float *)peri_data(t))[i] = (float)v[i];
    else if (d == PERI_I64)
      ((int64_t *)peri_data(t))[i] = (int64_t)v[i];
    else
      ((uint8_t *)peri_data(t))[i] = v[i] != 0;
  }
  return t;
}
#define DIMS(...) \
  (int)(sizeof((const int64_t[]){ __VA_ARGS__ }) / 8), (const int64_t[]) { __VA_ARGS__ }

static inline void lcg (const char *name, double scale, int64_t n, double *out) {
  uint32_t x = 2166136261u;
  for (; *name; name++) x = (x ^ (uint8_t)*name) * 16777619u;
  for (int64_t i = 0; i < n; i++) {
    x = x * 1664525u + 1013904223u;
    out[i] = ((double)(x >> 8) / 16777216.0 - 0.5) * scale;
  }
}

static inline peri_tensor *random_tensor (peri_dtype d, int ndim, const int64_t *shape,
                                          const char *name, double scale) {
  int64_t n = 1;
  for (int i = 0; i < ndim; i++) n *= shape[i];
  double *v = malloc((size_t)n * sizeof *v);
  lcg(name, scale, n, v);
  peri_tensor *t = make(d, ndim, shape, v);
  free(v);
  return t;
}

static inline double at (peri_tensor *t, int64_t i) {
  double v = NAN;
  assert_int_equal(peri_item(t, i, &v), PERI_OK);
  return v;
}

static inline void close_to (double got, double want, double tol) {
  if (!(fabs(got - want) <= tol * (1 + fabs(want)))) fail_msg("%.12g, expected %.12g", got, want);
}

static inline void all_close (peri_tensor *t, const double *want, double tol) {
  for (int64_t i = 0; i < peri_numel(t); i++)
    if (!(fabs(at(t, i) - want[i]) <= tol * (1 + fabs(want[i]))))
      fail_msg("[%lld] is %.12g, expected %.12g", (long long)i, at(t, i), want[i]);
}

static inline void drop (int n, peri_tensor *const *t) {
  for (int i = 0; i < n; i++) peri_release(t[i]);
}

/* Gradients of sum(w_k out_k) for the float inputs of an op against central differences. h^2 and
** rounding leave about 1e-9 at h = 1e-5 in f64. */
static inline double weighted (const char *name, int nin, peri_tensor *const *in,
                               const peri_attr *attr, peri_tensor **root) {
  const peri_op *op = peri_op_find(name);
  int n = peri_op_outputs(op);
  peri_tensor *out[4] = { NULL }, *total = NULL;
  if (try_op(name, nin, in, attr, out) != PERI_OK) fail_msg("%s: %s", name, peri_message(ctx));
  for (int k = 0; k < n; k++) {
    int64_t size = peri_numel(out[k]);
    double *w = malloc((size_t)size * sizeof *w);
    for (int64_t i = 0; i < size; i++) w[i] = sin((double)(i + k)) + 0.3;
    peri_tensor *wt = make(PERI_F64, peri_ndim(out[k]), peri_shape(out[k]), w);
    peri_tensor *y = run("mul", IN(out[k], wt), NULL);
    peri_tensor *s = run("sum", IN(y), ATTRS(ALL, I(0)));
    peri_tensor *t = total ? run("add", IN(total, s), NULL) : peri_retain(s);
    drop(5, (peri_tensor *[]){ out[k], wt, y, s, total });
    total = t;
    free(w);
  }
  double v = at(total, 0);
  if (root != NULL)
    *root = total;
  else
    peri_release(total);
  return v;
}

static inline void check_gradients (const char *name, int nin, peri_tensor **in,
                                    const peri_attr *attr, int nwrt, peri_tensor **wrt) {
  peri_tensor *root = NULL, *g[8] = { NULL };
  for (int k = 0; k < nwrt; k++) assert_int_equal(peri_set_requires_grad(wrt[k], true), PERI_OK);
  weighted(name, nin, in, attr, &root);
  if (peri_gradients(ctx, root, NULL, nwrt, wrt, false, g) != PERI_OK)
    fail_msg("%s: %s", name, peri_message(ctx));
  peri_release(root);
  for (int k = 0; k < nwrt; k++) {
    peri_set_requires_grad(wrt[k], false);
    for (int64_t i = 0; i < peri_numel(wrt[k]); i++) {
      double *x = (double *)peri_data(wrt[k]) + i, was = *x, h = 1e-5;
      *x = was + h;
      double up = weighted(name, nin, in, attr, NULL);
      *x = was - h;
      double down = weighted(name, nin, in, attr, NULL);
      *x = was;
      double want = (up - down) / (2 * h);
      if (fabs(at(g[k], i) - want) > 1e-7 + 1e-6 * fabs(want))
        fail_msg("%s: d input %d [%lld] is %.10g, finite difference %.10g", name, k, (long long)i,
                 at(g[k], i), want);
    }
    peri_release(g[k]);
  }
}

/* Fail every allocation of one call in turn, then let it through: a status each time, nothing held,
** and (unless it is done) the tensors of in[] as they were. */
static inline void fail_every_allocation (const char *name, int nin, peri_tensor *const *in,
                                          const peri_attr *attr) {
  size_t live = memory_of(ctx).live_bytes;
  for (int64_t n = 0;; n++) {
    peri_tensor *out[4] = { NULL };
    peri_memory_trim(ctx); /* pooled blocks would hide the allocator */
    peri_test_fail_after(ctx, n, false);
    peri_status s = try_op(name, nin, in, attr, out);
    bool fired = peri_test_fired(ctx);
    peri_test_fail_after(ctx, -1, false);
    if (!fired) {
      assert_int_equal(s, PERI_OK);
      drop(4, out);
      assert_true(n > 0);
      return;
    }
    assert_int_equal(s, PERI_ENOMEM);
    assert_true(memory_of(ctx).live_bytes == live);
  }
}

#endif
