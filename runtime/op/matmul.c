/*
** matmul.c - matrix products: matmul, linear with its bias and activation, outer. Strides go to
** the kernels of cpu/gemm.h as they are, so that a transposed operand is never copied.
*/
#include <inttypes.h>
#include <string.h>

#include "cpu/gemm.h"
#include "cpu/math.h"
#include "op/weights.h"

/* ---- operands ---- */

/* The last two dims of a tensor as a matrix; a 1-dim tensor is a row, or a column when it stands on
** the right. */
typedef struct matrix {
  int64_t rows, cols, rs, cs;
} matrix;

static matrix matrix_of (const peri_tensor *t, bool right) {
  int n = t->ndim;
  matrix m;
  if (n == 1 && right)
    m = (matrix){ t->shape[0], 1, t->stride[0], 1 };
  else
    m = (matrix){ n == 1 ? 1 : t->shape[n - 2], t->shape[n - 1], n == 1 ? 0 : t->stride[n - 2],
                  t->stride[n - 1] };
  if (m.rows == 1) m.rs = m.cols; /* the stride of a single row or column says nothing */
  if (m.cols == 1) m.cs = 1;
  return m;
}

/* t itself where kernels read it well in place, else a dense copy; a new reference. */
static peri_status readable (peri_tensor *t, bool right, peri_tensor **out) {
  matrix m = matrix_of(t, right);
  if (m.rs != 1 && m.cs != 1) return peri__contiguous(t, out);
  *out = peri_retain(t);
  return PERI_OK;
}

static peri_status want_matrices (peri_call *c, const char *a, const char *b) {
  const peri_tensor *x = c->in[0], *y = c->in[1];
  const char *zero = x->ndim == 0 ? a : y->ndim == 0 ? b : NULL;
  if (zero != NULL)
    return peri__fail(c->ctx, PERI_ESHAPE, "%s has no dims, expected at least 1", zero);
  if (peri__opaque(x))
    return peri__fail(c->ctx, PERI_EDTYPE, "%s is a quantised or packed weight, expected numbers",
                      a);
  if (peri__opaque(y)) return peri__weight_want_f32(c, 0, a);
  if (x->dtype != y->dtype)
    return peri__fail(c->ctx, PERI_EDTYPE, "%s is %s and %s is %s, expected one dtype", a,
                      peri_dtype_name((peri_dtype)x->dtype), b,
                      peri_dtype_name((peri_dtype)y->dtype));
  if (x->dtype == PERI_BOOL)
    return peri__fail(c->ctx, PERI_EDTYPE, "%s is bool, expected numbers", a);
  return PERI_OK;
}

/* ---- matmul ---- */

static int batch_dims (const peri_tensor *t) { return t->ndim > 2 ? t->ndim - 2 : 0; }

static peri_status matmul_infer (peri_call *c) {
  peri_tensor *a = c->in[0], *b = c->in[1];
  TRY(want_matrices(c, "a", "b"));
  matrix x = matrix_of(a, false), y = matrix_of(b, true);
  char sa[128], sb[128];
  if (x.cols != y.rows)
    return peri__fail(
        c->ctx, PERI_ESHAPE, "%s x %s: inner sizes %" PRId64 " and %" PRId64 " differ",
        peri__shape_text(a, sa, sizeof sa), peri__shape_text(b, sb, sizeof sb), x.cols, y.rows);
  int na = batch_dims(a), nb = batch_dims(b), n = na > nb ? na : nb;
  int64_t shape[PERI_MAX_DIMS];
  for (int i = 0; i < n; i++) {
    int64_t p = i < n - na ? 1 : a->shape[i - (n - na)],
            q = i < n - nb ? 1 : b->shape[i - (n - nb)];
    if (p != q && p != 1 && q != 1)
      return peri__fail(
          c->ctx, PERI_ESHAPE, "%s x %s: batch sizes %" PRId64 " and %" PRId64 " differ",
          peri__shape_text(a, sa, sizeof sa), peri__shape_text(b, sb, sizeof sb), p, q);
    shape[i] = p == 1 ? q : p;
  }
  if (a->ndim > 1) shape[n++] = x.rows;
  if (b->ndim > 1) shape[n++] = y.cols;
  return peri__new(c->ctx, (peri_dtype)a->dtype, n, shape, &c->out[0]);
}

/* Element offset of batch item e of a result with n batch dims of the given sizes. */
static int64_t batch_offset (const peri_tensor *t, int n, const int64_t *shape, int64_t e) {
  int own = batch_dims(t);
  int64_t offset = 0;
  for (int i = n - 1; i >= 0; i--) {
    int k = i - (n - own);
    if (k >= 0 && t->shape[k] != 1) offset += e % shape[i] * t->stride[k];
    e /= shape[i];
  }
  return offset;
}

/* One stride that walks the rows of all batch items of t in order; false where there is none. */
static bool one_row_stride (const peri_tensor *t, int64_t *stride) {
  int64_t step = 0, rows = 1;
  for (int i = t->ndim - 2; i >= 0; i--) {
    if (t->shape[i] == 1) continue;
    if (rows == 1)
      step = t->stride[i];
    else if (t->stride[i] != step * rows)
      return false;
    rows *= t->shape[i];
  }
  *stride = rows == 1 ? t->shape[t->ndim - 1] : step;
  return true;
}

#define INT_PRODUCT(T, U)                                                                   \
  static void product_##T(const matrix *x, const matrix *y, const T *a, const T *b, T *c) { \
    for (int64_t i = 0; i < x->rows; i++)                                                   \
      for (int64_t j = 0; j < y->cols; j++) {                                               \
        U sum = 0; /* wraps, as integer ops do */                                           \
        for (int64_t p = 0; p < x->cols; p++)                                               \
          sum += (U)a[i * x->rs + p * x->cs] * (U)b[p * y->rs + j * y->cs];                 \
        c[i * y->cols + j] = (T)sum;                                                        \
      }                                                                                     \
  }
INT_PRODUCT(uint8_t, uint32_t)
INT_PRODUCT(int32_t, uint32_t)
INT_PRODUCT(int64_t, uint64_t)

/* Every dtype but f32, one batch item. */
static void product_other (peri_ctx *ctx, int dtype, const matrix *x, const matrix *y,
                           const void *a, const void *b, void *c) {
  if (dtype == PERI_F64) {
    peri__gemm64 g = { .m = x->rows,
                       .n = y->cols,
                       .k = x->cols,
                       .a = a,
                       .ars = x->rs,
                       .acs = x->cs,
                       .b = b,
                       .brs = y->rs,
                       .bcs = y->cs,
                       .c = c,
                       .crs = y->cols };
    peri__gemm_f64(ctx, &g);
  } else if (dtype == PERI_U8) {
    product_uint8_t(x, y, a, b, c);
  } else if (dtype == PERI_I32) {
    product_int32_t(x, y, a, b, c);
  } else {
    product_int64_t(x, y, a, b, c);
  }
}

/* a and b are readable, out is dense. */
static peri_status product (peri_ctx *ctx, const peri_tensor *a, const peri_tensor *b,
                            peri_tensor *out) {
  matrix x = matrix_of(a, false), y = matrix_of(b, true);
  int n = out->ndim - (a->ndim > 1) - (b->ndim > 1);
  int64_t items = 1, each = x.rows * y.cols;
  for (int i = 0; i < n; i++) items *= out->shape[i];
  if (out->numel == 0) return PERI_OK;
  peri__gemm g = { .m = x.rows,
                   .n = y.cols,
                   .k = x.cols,
                   .a = a->data,
                   .ars = x.rs,
                   .acs = x.cs,
                   .b = b->data,
                   .brs = y.rs,
                   .bcs = y.cs,
                   .c = out->data,
                   .crs = y.cols };
  if (a->dtype == PERI_F32 && batch_dims(b) == 0 && a->ndim > 1 && one_row_stride(a, &g.ars)) {
    g.m *= items; /* all rows meet the same b */
    return peri__gemm_f32(ctx, &g);
  }
  if (a->dtype == PERI_F32) {
    size_t bytes = (size_t)items * 2 * sizeof(int64_t);
    int64_t(*off)[2] = peri__block_get(ctx, bytes);
    if (off == NULL)
      return peri__fail(ctx, PERI_ENOMEM, "no memory for %" PRId64 " batch items", items);
    for (int64_t e = 0; e < items; e++) {
      off[e][0] = batch_offset(a, n, out->shape, e);
      off[e][1] = batch_offset(b, n, out->shape, e);
    }
    peri_status s = peri__gemm_f32_batch(ctx, &g, items, (const int64_t(*)[2])off);
    peri__block_put(ctx, off);
    return s;
  }
  int64_t size = (int64_t)peri__size(a);
  for (int64_t e = 0; e < items; e++)
    product_other(ctx, a->dtype, &x, &y,
                  (const char *)a->data + size * batch_offset(a, n, out->shape, e),
                  (const char *)b->data + size * batch_offset(b, n, out->shape, e),
                  (char *)out->data + size * each * e);
  return PERI_OK;
}

/* a times a quantised or packed weight, which lies the other way round than in linear. */
static peri_status matmul_weight (peri_call *c) {
  peri_tensor *a = NULL, *w = c->in[1];
  if (c->out[0]->numel == 0) return PERI_OK;
  TRY(peri__contiguous(c->in[0], &a));
  peri_status s =
      peri__weight_back(c->ctx, w, c->out[0]->numel / w->shape[1], a->data, c->out[0]->data);
  peri_release(a);
  return s;
}

static peri_status matmul_cpu (peri_call *c) {
  peri_tensor *a = NULL, *b = NULL;
  if (peri__opaque(c->in[1])) return matmul_weight(c);
  peri_status s = readable(c->in[0], false, &a);
  if (s == PERI_OK) s = readable(c->in[1], true, &b);
  if (s == PERI_OK) s = product(c->ctx, a, b, c->out[0]);
  peri_release(a);
  peri_release(b);
  return s;
}

static void add_bytes (const peri_tensor *t, double *bytes) {
  if (t != NULL) *bytes += (double)peri_nbytes(t);
}

static void matmul_cost (const peri_call *c, double *flops, double *bytes) {
  *flops = 2.0 * (double)c->out[0]->numel * (double)c->in[0]->shape[c->in[0]->ndim - 1];
  add_bytes(c->in[0], bytes);
  add_bytes(c->in[1], bytes);
  add_bytes(c->out[0], bytes);
}

static peri_tensor *turned (peri_build *b, peri_tensor *t) {
  return BA(b, transpose, ATTR(A_INT(-2), A_INT(-1)), t);
}

/* (..., n) -> (rows, n) */
static peri_tensor *flat_rows (peri_build *b, peri_tensor *t) {
  if (t == NULL || t->ndim == 2) return t;
  const int64_t shape[2] = { -1, t->shape[t->ndim - 1] };
  const int64_t empty[2] = { 0, t->shape[t->ndim - 1] };
  return BA(b, reshape, ATTR(A_DIMS(t->numel > 0 ? shape : empty, 2)), t);
}

static void matmul_vjp (peri_vjp *v) {
  peri_build *bd = &v->b;
  peri_tensor *a = v->c->in[0], *b = v->c->in[1], *g = v->g[0];
  if (peri__opaque(b)) {
    v->gin[0] = BA(bd, linear, ATTR(A_STR("none")), g, b, NULL);
    return;
  }
  bool row = a->ndim == 1, column = b->ndim == 1;
  if (row) {
    a = BA(bd, unsqueeze, ATTR(A_INT(0)), a);
    g = BA(bd, unsqueeze, ATTR(A_INT(column ? -1 : -2)), g);
  }
  if (column) {
    b = BA(bd, unsqueeze, ATTR(A_INT(-1)), b);
    g = BA(bd, unsqueeze, ATTR(A_INT(-1)), g);
  }
  if (a == NULL || b == NULL || g == NULL) return; /* the builder holds the failure */
  if (v->need[0]) {
    v->gin[0] = B(bd, matmul, g, turned(bd, b));
    if (row) v->gin[0] = BA(bd, select, ATTR(A_INT(-2), A_INT(0)), v->gin[0]);
  }
  if (v->need[1]) {
    if (b->ndim == 2 && a->ndim > 2) { /* one product instead of one a batch item and a sum */
      a = flat_rows(bd, a);
      g = flat_rows(bd, g);
    }
    v->gin[1] = B(bd, matmul, turned(bd, a), g);
    if (column) v->gin[1] = BA(bd, select, ATTR(A_INT(-1), A_INT(0)), v->gin[1]);
  }
}

OP(matmul, .sig = "a, b", .flags = PERI_OP_STRIDED | PERI_OP_UPCAST | PERI_OP_WEIGHT,
   .doc = "Matrix product, (..., m, k) x (..., k, n) -> (..., m, n); batch dims broadcast, and a "
          "1-dim operand is a row on the left, a column on the right, whose dim is dropped. b may "
          "be a quantised or packed weight (k, n).",
   .infer = matmul_infer, .cpu = matmul_cpu, .vjp = matmul_vjp, .cost = matmul_cost,
   .domain = "a.shape=2,3,4; b.shape=4,5");

/* ---- linear ---- */

/* ORDER act: the names, their kernels, and what the gradient reads. */
typedef enum act {
  ACT_NONE,
  ACT_RELU,
  ACT_TANH,
  ACT_SIGMOID,
  ACT_SILU,
  ACT_GELU,
  ACT_GELU_TANH,
  ACT_COUNT
} act;
static const struct {
  const char *name;
  int kernel;
  bool from_pre; /* the gradient needs the pre-activation, not the output */
} acts[ACT_COUNT] = {
  { "none", -1, false },
  { "relu", PERI_MATH_relu, false },
  { "tanh", PERI_MATH_tanh, false },
  { "sigmoid", PERI_MATH_sigmoid, false },
  { "silu", PERI_MATH_silu, true },
  { "gelu", PERI_MATH_gelu_erf, true },
  { "gelu_tanh", PERI_MATH_gelu_tanh, true },
};

static peri_status act_of (peri_ctx *ctx, const char *name, act *out) {
  for (int i = 0; i < ACT_COUNT; i++)
    if (name == NULL || strcmp(name, acts[i].name) == 0) {
      *out = (act)i;
      return PERI_OK;
    }
  return peri__fail(ctx, PERI_EINVAL,
                    "act is \"%s\", expected none, relu, tanh, sigmoid, silu, gelu or gelu_tanh",
                    name);
}

static peri_status linear_infer (peri_call *c) {
  peri_tensor *x = c->in[0], *w = c->in[1], *b = c->in[2];
  char sx[128], sw[128];
  act a;
  TRY(act_of(c->ctx, c->attr[0].s, &a));
  TRY(want_matrices(c, "x", "weight"));
  TRY(peri__want_float(c, 0, "x"));
  TRY(peri__want_ndim(c, 1, "weight", 2));
  if (x->shape[x->ndim - 1] != w->shape[1])
    return peri__fail(c->ctx, PERI_ESHAPE,
                      "x %s and weight %s (out, in): inner sizes %" PRId64 " and %" PRId64
                      " differ",
                      peri__shape_text(x, sx, sizeof sx), peri__shape_text(w, sw, sizeof sw),
                      x->shape[x->ndim - 1], w->shape[1]);
  if (b != NULL) {
    TRY(peri__want_dtype(c, 2, "bias", x->dtype));
    TRY(peri__want_ndim(c, 2, "bias", 1));
    if (b->shape[0] != w->shape[0])
      return peri__fail(c->ctx, PERI_ESHAPE,
                        "bias has %" PRId64 " elements, weight %s makes %" PRId64, b->shape[0],
                        peri__shape_text(w, sw, sizeof sw), w->shape[0]);
  }
  int64_t shape[PERI_MAX_DIMS];
  memcpy(shape, x->shape, sizeof shape);
  shape[x->ndim - 1] = w->shape[0];
  TRY(peri__new(c->ctx, (peri_dtype)x->dtype, x->ndim, shape, &c->out[0]));
  /* The pre-activation is kept only where a gradient will ask for it. */
  bool keep = acts[a].from_pre && c->ctx->grad_enabled &&
              (peri__tracked(x) || peri__tracked(w) || (b != NULL && peri__tracked(b)));
  int64_t none = 0;
  return peri__new(c->ctx, (peri_dtype)x->dtype, keep ? x->ndim : 1, keep ? shape : &none,
                   &c->out[1]);
}

/* The activation of a finished block, from the pre-activation at c to y. */
typedef struct finish {
  peri__kernel fn;
  float *y; /* (rows, n); the product's own C when nothing else wants it */
  int64_t n;
} finish;

static void activate (void *ud, float *c, int64_t crs, int64_t i, int64_t j, int64_t m, int64_t n) {
  const finish *f = ud;
  const int64_t step = 1;
  for (int64_t r = 0; r < m; r++) {
    const void *in = c + r * crs;
    f->fn(n, &in, &step, f->y + (i + r) * f->n + j, NULL);
  }
}

static peri_status linear_f32 (peri_ctx *ctx, const peri_tensor *x, int64_t xrs,
                               const peri_tensor *w, const peri_tensor *bias, act a, peri_tensor *y,
                               peri_tensor *pre) {
  int64_t n = w->shape[0], k = w->shape[1];
  matrix m = matrix_of(w, false);
  finish f = { a == ACT_NONE ? NULL : ctx->cpu->math->unary[acts[a].kernel], y->data, n };
  peri__gemm g = { .m = n > 0 ? y->numel / n : 0,
                   .n = n,
                   .k = k,
                   .a = x->data,
                   .ars = xrs,
                   .acs = x->shape[x->ndim - 1] == 1 ? 1 : x->stride[x->ndim - 1],
                   .b = w->data,
                   .brs = m.cs,
                   .bcs = m.rs,
                   .c = pre->numel > 0 ? pre->data : y->data,
                   .crs = n,
                   .bias = bias != NULL ? bias->data : NULL };
  if (f.fn != NULL) {
    g.done = activate;
    g.done_ud = &f;
  }
  return peri__gemm_f32(ctx, &g);
}

/* y = act(pre), any float dtype, by the op of that name. */
static peri_status activate_tensor (peri_ctx *ctx, act a, peri_tensor *pre, peri_tensor *y) {
  static const peri_op *const ops[ACT_COUNT] = { NULL,           &peri__op_relu,
                                                 &peri__op_tanh, &peri__op_sigmoid,
                                                 &peri__op_silu, &peri__op_gelu,
                                                 &peri__op_gelu };
  peri_tensor *out = NULL;
  bool was = peri_set_grad_enabled(ctx, false);
  peri_status s =
      peri__apply(ctx, ops[a], 1, &pre, ATTR(A_STR(a == ACT_GELU_TANH ? "tanh" : "none")), &out);
  peri_set_grad_enabled(ctx, was);
  if (s == PERI_OK) memcpy(y->data, out->data, (size_t)y->numel * peri__size(y));
  peri_release(out);
  return s;
}

static peri_status linear_f64 (peri_ctx *ctx, const peri_tensor *x, int64_t xrs,
                               const peri_tensor *w, const peri_tensor *bias, act a, peri_tensor *y,
                               peri_tensor *pre) {
  int64_t n = w->shape[0];
  peri_tensor *c = pre->numel > 0 ? pre : y;
  peri__gemm64 g = { .m = n > 0 ? y->numel / n : 0,
                     .n = n,
                     .k = w->shape[1],
                     .a = x->data,
                     .ars = xrs,
                     .acs = x->stride[x->ndim - 1],
                     .b = w->data,
                     .brs = w->stride[1],
                     .bcs = w->stride[0],
                     .c = c->data,
                     .crs = n,
                     .bias = bias != NULL ? bias->data : NULL };
  peri__gemm_f64(ctx, &g);
  return a == ACT_NONE ? PERI_OK : activate_tensor(ctx, a, c, y);
}

/* A range of y = act(c). */
typedef struct act_job {
  peri__kernel fn;
  const float *c;
  float *y;
} act_job;

static void act_range (void *ud, int64_t begin, int64_t end, int worker) {
  const act_job *j = ud;
  const void *in = j->c + begin;
  const int64_t step = 1;
  (void)worker;
  j->fn(end - begin, &in, &step, j->y + begin, NULL);
}

/* A quantised or packed weight; x and bias are f32. */
static peri_status linear_weight (peri_call *c, act a) {
  peri_tensor *x = peri_retain(c->in[0]), *bias = NULL, *y = c->out[0];
  int64_t k = c->in[1]->shape[1], n = c->in[1]->shape[0], xrs = k;
  peri_status s = PERI_OK;
  if ((k > 1 && x->stride[x->ndim - 1] != 1) || (x->ndim > 1 && !one_row_stride(x, &xrs))) {
    peri_release(x);
    s = peri__contiguous(c->in[0], &x);
    xrs = k;
  }
  if (s == PERI_OK && c->in[2] != NULL) s = peri__contiguous(c->in[2], &bias);
  float *to = c->out[1]->numel > 0 ? c->out[1]->data : y->data;
  if (s == PERI_OK)
    s = peri__weight_product(c->ctx, c->in[1], y->numel / n, x->data, xrs,
                             bias != NULL ? bias->data : NULL, to);
  if (s == PERI_OK && a != ACT_NONE)
    peri__parallel(c->ctx, y->numel, 8192, act_range,
                   &(act_job){ c->ctx->cpu->math->unary[acts[a].kernel], to, y->data });
  peri_release(x);
  peri_release(bias);
  return s;
}

static peri_status linear_cpu (peri_call *c) {
  peri_tensor *x = NULL, *w = NULL, *bias = NULL;
  int64_t xrs = 0;
  act a;
  TRY(act_of(c->ctx, c->attr[0].s, &a));
  if (c->out[0]->numel == 0) return PERI_OK;
  if (peri__opaque(c->in[1])) return linear_weight(c, a);
  peri_status s = readable(c->in[0], false, &x);
  if (s == PERI_OK) s = readable(c->in[1], false, &w);
  if (s == PERI_OK && c->in[2] != NULL) s = peri__contiguous(c->in[2], &bias);
  if (s == PERI_OK && x->ndim > 1 && !one_row_stride(x, &xrs)) {
    peri_tensor *dense = NULL;
    s = peri__contiguous(x, &dense);
    peri_release(x);
    x = dense;
    if (s == PERI_OK) one_row_stride(x, &xrs);
  }
  if (s == PERI_OK)
    s = (x->dtype == PERI_F32 ? linear_f32 : linear_f64)(c->ctx, x, xrs, w, bias, a, c->out[0],
                                                         c->out[1]);
  peri_release(x);
  peri_release(w);
  peri_release(bias);
  return s;
}

static void linear_cost (const peri_call *c, double *flops, double *bytes) {
  matmul_cost(c, flops, bytes);
  add_bytes(c->in[2], bytes);
  add_bytes(c->out[1], bytes);
}

/* Gradient of the pre-activation. */
static peri_tensor *act_vjp (peri_build *b, act a, peri_tensor *y, peri_tensor *pre,
                             peri_tensor *g) {
  switch (a) {
  case ACT_RELU: return B(b, relu_backward, y, g);
  case ACT_TANH: return B(b, tanh_backward, y, g);
  case ACT_SIGMOID: return B(b, sigmoid_backward, y, g);
  case ACT_SILU: return B(b, silu_backward, pre, g);
  case ACT_GELU: return B(b, gelu_erf_backward, pre, g);
  case ACT_GELU_TANH: return B(b, gelu_tanh_backward, pre, g);
  default: return g;
  }
}

static void linear_vjp (peri_vjp *v) {
  peri_build *b = &v->b;
  peri_tensor *x = v->c->in[0], *w = v->c->in[1], *y = v->c->out[0], *pre = v->c->out[1];
  act a;
  peri__build_fail(b, act_of(v->c->ctx, v->c->attr[0].s, &a));
  /* pre gets a gradient of its own in a second backward pass */
  peri_tensor *g = v->g[0] != NULL ? act_vjp(b, a, y, pre, v->g[0]) : v->g[1];
  if (v->g[0] != NULL && v->g[1] != NULL) g = B(b, add, g, v->g[1]);
  if (g == NULL) return; /* the builder holds the failure */
  if (v->need[0]) v->gin[0] = B(b, matmul, g, w);
  if (!v->need[1] && !(v->c->in[2] != NULL && v->need[2])) return;
  if (g->ndim == 1) g = BA(b, unsqueeze, ATTR(A_INT(0)), g);
  g = flat_rows(b, g);
  if (v->need[1]) {
    if (x->ndim == 1) x = BA(b, unsqueeze, ATTR(A_INT(0)), x);
    v->gin[1] = B(b, matmul, turned(b, g), flat_rows(b, x));
  }
  if (v->c->in[2] != NULL && v->need[2]) {
    const int64_t rows = 0;
    v->gin[2] = BA(b, sum, ATTR(A_DIMS(&rows, 1), A_INT(0)), g);
  }
}

OPN(linear, 2, .nret = 1, .sig = "x, weight, bias:tensor?, act:str=none",
    .flags = PERI_OP_STRIDED | PERI_OP_UPCAST | PERI_OP_WEIGHT,
    .doc =
        "act(x weight^T + bias), x (..., in), weight (out, in), bias (out) -> (..., out); act is "
        "none, relu, tanh, sigmoid, silu, gelu (by erf) or gelu_tanh. weight may be quantised or "
        "packed, and gets no gradient then.",
    .infer = linear_infer, .cpu = linear_cpu, .vjp = linear_vjp, .cost = linear_cost,
    .domain = "x.shape=2,3,4; weight.shape=5,4; bias.shape=5");

/* ---- outer ---- */

static void outer_compose (peri_build *b, peri_call *c) {
  if (c->in[0]->ndim != 1 || c->in[1]->ndim != 1) {
    char sa[128], sb[128];
    peri__build_fail(b, peri__fail(c->ctx, PERI_ESHAPE, "%s and %s: expected two vectors",
                                   peri__shape_text(c->in[0], sa, sizeof sa),
                                   peri__shape_text(c->in[1], sb, sizeof sb)));
    return;
  }
  c->out[0] = B(b, mul, BA(b, unsqueeze, ATTR(A_INT(1)), c->in[0]),
                BA(b, unsqueeze, ATTR(A_INT(0)), c->in[1]));
}

OP(outer, .sig = "a, b", .doc = "All products of two vectors, (m), (n) -> (m, n).",
   .compose = outer_compose, .domain = "a.shape=3; b.shape=4");
