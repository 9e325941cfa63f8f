/*
** matmul.c - matrix products: matmul, outer, and what linear shares with them. Strides go to the
** kernels of cpu/gemm.h as they are, so that a transposed operand is never copied.
*/
#include <inttypes.h>
#include <string.h>

#include "cpu/gemm.h"
#include "op/matrix.h"
#include "op/weights.h"

/* ---- operands ---- */

peri__matrix peri__matrix_of (const peri_tensor *t, bool right) {
  int n = t->ndim;
  peri__matrix m;
  if (n == 1 && right)
    m = (peri__matrix){ t->shape[0], 1, t->stride[0], 1 };
  else
    m = (peri__matrix){ n == 1 ? 1 : t->shape[n - 2], t->shape[n - 1],
                        n == 1 ? 0 : t->stride[n - 2], t->stride[n - 1] };
  if (m.rows == 1) m.rs = m.cols; /* the stride of a single row or column says nothing */
  if (m.cols == 1) m.cs = 1;
  return m;
}

peri_status peri__matrix_readable (peri_tensor *t, bool right, peri_tensor **out) {
  peri__matrix m = peri__matrix_of(t, right);
  if (m.rs != 1 && m.cs != 1) return peri__contiguous(t, out);
  *out = peri_retain(t);
  return PERI_OK;
}

peri_status peri__want_matrices (peri_call *c, const char *a, const char *b) {
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
  TRY(peri__want_matrices(c, "a", "b"));
  peri__matrix x = peri__matrix_of(a, false), y = peri__matrix_of(b, true);
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

bool peri__one_row_stride (const peri_tensor *t, int64_t *stride) {
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

#define INT_PRODUCT(T, U)                                                                       \
  static void product_##T(const peri__matrix *x, const peri__matrix *y, const T *a, const T *b, \
                          T *c) {                                                               \
    for (int64_t i = 0; i < x->rows; i++)                                                       \
      for (int64_t j = 0; j < y->cols; j++) {                                                   \
        U sum = 0; /* wraps, as integer ops do */                                               \
        for (int64_t p = 0; p < x->cols; p++)                                                   \
          sum += (U)a[i * x->rs + p * x->cs] * (U)b[p * y->rs + j * y->cs];                     \
        c[i * y->cols + j] = (T)sum;                                                            \
      }                                                                                         \
  }
INT_PRODUCT(uint8_t, uint32_t)
INT_PRODUCT(int32_t, uint32_t)
INT_PRODUCT(int64_t, uint64_t)

/* Every dtype but f32, one batch item. */
static void product_other (peri_ctx *ctx, int dtype, const peri__matrix *x, const peri__matrix *y,
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
  peri__matrix x = peri__matrix_of(a, false), y = peri__matrix_of(b, true);
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
  if (a->dtype == PERI_F32 && batch_dims(b) == 0 && a->ndim > 1 &&
      peri__one_row_stride(a, &g.ars)) {
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
  peri_status s = peri__matrix_readable(c->in[0], false, &a);
  if (s == PERI_OK) s = peri__matrix_readable(c->in[1], true, &b);
  if (s == PERI_OK) s = product(c->ctx, a, b, c->out[0]);
  peri_release(a);
  peri_release(b);
  return s;
}

void peri__matmul_cost (const peri_call *c, double *flops, double *bytes) {
  *flops = 2.0 * (double)c->out[0]->numel * (double)c->in[0]->shape[c->in[0]->ndim - 1];
  for (int i = 0; i < c->nin; i++)
    if (c->in[i] != NULL) *bytes += (double)peri_nbytes(c->in[i]);
  for (int k = 0; k < c->op->nout; k++) *bytes += (double)peri_nbytes(c->out[k]);
}

peri_tensor *peri__turned (peri_build *b, peri_tensor *t) {
  return BA(b, transpose, ATTR(A_INT(-2), A_INT(-1)), t);
}

peri_tensor *peri__flat_rows (peri_build *b, peri_tensor *t) {
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
    v->gin[0] = B(bd, matmul, g, peri__turned(bd, b));
    if (row) v->gin[0] = BA(bd, select, ATTR(A_INT(-2), A_INT(0)), v->gin[0]);
  }
  if (v->need[1]) {
    if (b->ndim == 2 && a->ndim > 2) { /* one product instead of one a batch item and a sum */
      a = peri__flat_rows(bd, a);
      g = peri__flat_rows(bd, g);
    }
    v->gin[1] = B(bd, matmul, peri__turned(bd, a), g);
    if (column) v->gin[1] = BA(bd, select, ATTR(A_INT(-1), A_INT(0)), v->gin[1]);
  }
}

OP(matmul, .sig = "a, b", .flags = PERI_OP_STRIDED | PERI_OP_UPCAST | PERI_OP_WEIGHT,
   .doc = "Matrix product, (..., m, k) x (..., k, n) -> (..., m, n); batch dims broadcast, and a "
          "1-dim operand is a row on the left, a column on the right, whose dim is dropped. b may "
          "be a quantised or packed weight (k, n).",
   .infer = matmul_infer, .cpu = matmul_cpu, .vjp = matmul_vjp, .cost = peri__matmul_cost,
   TESTS(.domain = "a.shape=2,3,4; b.shape=4,5",
         .variants = { "a.shape=3; b.shape=3", "a.shape=3; b.shape=2,3,4",
                       "a.shape=2,4,3; b.shape=3", "a.shape=2,1,3,4; b.shape=3,4,2",
                       "a.shape=2,3; b.shape=3,4" },
         .large = "a.shape=3,65,130; b.shape=130,70",
         .refuses = { "a.shape=2,3; a=packed; b.shape=3,2 => packed",
                      "a.shape=4,8; b.shape=7,16 => 8 | 7",
                      "a.shape=2,4,3; b.shape=3,3,4 => (2, 4, 3) | (3, 3, 4)",
                      "a.shape=(); a=f32[1.5]; b.shape=2 => no dims" }));

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
   .compose = outer_compose,
   TESTS(.domain = "a.shape=3; b.shape=4", .large = "a.shape=200; b.shape=210",
         .refuses = { "a.shape=2,2; b.shape=2 => (2, 2)" }));
