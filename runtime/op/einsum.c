/*
** einsum.c - sums of products by an equation, made of permute, reshape, matmul and sum. Operands
** are contracted from left to right, each pair by one (batched) matrix product.
*/
#include <inttypes.h>
#include <string.h>

#include "op/op.h"

enum { LABELS = 52, MAX_TERMS = 32 };

typedef struct term { /* the labels of an operand, one a dim */
  int n;
  signed char label[PERI_MAX_DIMS * 2];
} term;

typedef struct equation {
  int nterms;
  term in[MAX_TERMS], out;
  int64_t size[LABELS]; /* -1 = not seen */
} equation;

static int label_of (char ch) {
  return ch >= 'a' && ch <= 'z' ? ch - 'a' + 26 : ch >= 'A' && ch <= 'Z' ? ch - 'A' : -1;
}
static char letter (int label) { return (char)(label < 26 ? 'A' + label : 'a' + label - 26); }

static bool has (const term *t, int label) {
  for (int i = 0; i < t->n; i++)
    if (t->label[i] == label) return true;
  return false;
}

static peri_status add_label (peri_ctx *ctx, term *t, const char *text, int at, bool result) {
  int label = label_of(text[at]);
  if (label < 0)
    return peri__fail(ctx, PERI_EINVAL, "equation \"%s\": '%c' at %s is not a letter", text,
                      text[at], peri__nth(ctx, at));
  if (result && has(t, label))
    return peri__fail(ctx, PERI_EINVAL, "equation \"%s\": %c stands twice in the result", text,
                      text[at]);
  if (t->n == PERI_MAX_DIMS)
    return peri__fail(ctx, PERI_EINVAL, "equation \"%s\": a term has more than %d letters", text,
                      PERI_MAX_DIMS);
  t->label[t->n++] = (signed char)label;
  return PERI_OK;
}

static peri_status parse (peri_ctx *ctx, const char *text, equation *e) {
  const char *arrow = strstr(text, "->");
  int count[LABELS] = { 0 }, length = (int)strlen(text), end = arrow ? (int)(arrow - text) : length;
  memset(e, 0, sizeof *e);
  e->nterms = 1;
  for (int i = 0; i < end; i++) {
    if (text[i] == ' ') continue;
    if (text[i] == ',') {
      if (e->nterms == MAX_TERMS)
        return peri__fail(ctx, PERI_EINVAL, "equation has more than %d terms", MAX_TERMS);
      e->nterms++;
      continue;
    }
    TRY(add_label(ctx, &e->in[e->nterms - 1], text, i, false));
    count[label_of(text[i])]++;
  }
  if (arrow != NULL) {
    for (int i = end + 2; i < length; i++)
      if (text[i] != ' ') {
        TRY(add_label(ctx, &e->out, text, i, true));
        if (count[label_of(text[i])] == 0)
          return peri__fail(ctx, PERI_EINVAL, "equation \"%s\": %c is in no term", text, text[i]);
      }
    return PERI_OK;
  }
  for (int k = 0; k < LABELS; k++) /* implicit: letters that stand once, in alphabetical order */
    if (count[k] == 1) {
      if (e->out.n == PERI_MAX_DIMS)
        return peri__fail(ctx, PERI_EINVAL, "equation \"%s\": the result has more than %d dims",
                          text, PERI_MAX_DIMS);
      e->out.label[e->out.n++] = (signed char)k;
    }
  return PERI_OK;
}

static peri_status check_sizes (peri_call *c, equation *e) {
  char shape[128];
  if (c->list[0].count != e->nterms)
    return peri__fail(c->ctx, PERI_EINVAL, "equation \"%.100s\" has %d terms for %d tensors",
                      c->attr[0].s, e->nterms, c->list[0].count);
  for (int k = 0; k < LABELS; k++) e->size[k] = -1;
  for (int t = 0; t < e->nterms; t++) {
    const peri_tensor *x = c->in[c->list[0].start + t];
    const term *in = &e->in[t];
    if (x->ndim != in->n)
      return peri__fail(c->ctx, PERI_ESHAPE, "tensor %s has shape %s for a term of %d letters",
                        peri__nth(c->ctx, t), peri__shape_text(x, shape, sizeof shape), in->n);
    for (int i = 0; i < in->n; i++) {
      int64_t *size = &e->size[in->label[i]];
      if (*size >= 0 && *size != x->shape[i])
        return peri__fail(c->ctx, PERI_ESHAPE, "%c is %" PRId64 " and, in tensor %s, %" PRId64,
                          letter(in->label[i]), *size, peri__nth(c->ctx, t), x->shape[i]);
      *size = x->shape[i];
    }
  }
  return PERI_OK;
}

static bool needed (const equation *e, int next, int label) {
  for (int t = next; t < e->nterms; t++)
    if (has(&e->in[t], label)) return true;
  return has(&e->out, label);
}

/* Sum away the labels of x that neither other (may be NULL) nor anything from term next on has. */
static peri_tensor *sum_unneeded (peri_build *b, const equation *e, int next, const term *other,
                                  term *t, peri_tensor *x) {
  int64_t dims[PERI_MAX_DIMS * 2];
  term kept = { 0 };
  int n = 0;
  for (int i = 0; i < t->n; i++)
    if (needed(e, next, t->label[i]) || (other != NULL && has(other, t->label[i])))
      kept.label[kept.n++] = t->label[i];
    else
      dims[n++] = i;
  *t = kept;
  return n == 0 ? x : BA(b, sum, ATTR(A_DIMS(dims, n), A_INT(0)), x);
}

static peri_tensor *arrange (peri_build *b, const term *from, const term *to, peri_tensor *x) {
  int64_t dims[PERI_MAX_DIMS * 2];
  bool same = true;
  for (int i = 0; i < to->n; i++)
    for (int k = 0; k < from->n; k++)
      if (from->label[k] == to->label[i]) {
        dims[i] = k;
        same = same && i == k;
      }
  return same ? x : BA(b, permute, ATTR(A_DIMS(dims, to->n)), x);
}

static int64_t size_of (const equation *e, const term *t) {
  int64_t n = 1;
  for (int i = 0; i < t->n; i++) n *= e->size[t->label[i]];
  return n;
}

static void append (term *t, const term *more) {
  for (int i = 0; i < more->n; i++) t->label[t->n++] = more->label[i];
}

/* x, with the labels of t, times y, with those of u, as one product of (batch, rows, inner) and
** (batch, inner, cols); t becomes the labels of the result. */
static peri_tensor *contract (peri_build *b, const equation *e, int next, term *t, peri_tensor *x,
                              const term *u, peri_tensor *y) {
  term batch = { 0 }, inner = { 0 }, rows = { 0 }, cols = { 0 };
  for (int i = 0; i < t->n; i++) {
    int k = t->label[i];
    term *to = !has(u, k) ? &rows : needed(e, next, k) ? &batch : &inner;
    to->label[to->n++] = (signed char)k;
  }
  for (int i = 0; i < u->n; i++)
    if (!has(t, u->label[i])) cols.label[cols.n++] = u->label[i];
  term left = batch, right = batch, out = batch;
  append(&left, &rows);
  append(&left, &inner);
  append(&right, &inner);
  append(&right, &cols);
  append(&out, &rows);
  append(&out, &cols);
  if (out.n > PERI_MAX_DIMS) {
    peri__build_fail(b, peri__fail(b->ctx, PERI_ESHAPE,
                                   "a product in the equation has %d dims; at "
                                   "most %d are possible",
                                   out.n, PERI_MAX_DIMS));
    return NULL;
  }
  int64_t nb = size_of(e, &batch), m = size_of(e, &rows), k = size_of(e, &inner);
  int64_t n = size_of(e, &cols), shape[PERI_MAX_DIMS];
  const int64_t a[3] = { nb, m, k }, c[3] = { nb, k, n };
  int flat = batch.n == 0; /* no batch dim */
  x = arrange(b, t, &left, x);
  y = arrange(b, u, &right, y);
  x = BA(b, reshape, ATTR(A_DIMS(a + flat, 3 - flat)), x);
  y = BA(b, reshape, ATTR(A_DIMS(c + flat, 3 - flat)), y);
  for (int i = 0; i < out.n; i++) shape[i] = e->size[out.label[i]];
  *t = out;
  return BA(b, reshape, ATTR(A_DIMS(shape, out.n)), B(b, matmul, x, y));
}

/* A letter twice in a term is its diagonal, which comes last. */
static peri_tensor *diagonals (peri_build *b, term *t, peri_tensor *x) {
  for (int i = 0; i < t->n; i++)
    for (int k = i + 1; k < t->n; k++) {
      if (t->label[k] != t->label[i]) continue;
      int64_t dims[PERI_MAX_DIMS];
      term kept = { 0 };
      for (int d = 0; d < t->n; d++)
        if (d != i && d != k) {
          dims[kept.n] = d;
          kept.label[kept.n++] = t->label[d];
        }
      dims[kept.n] = i;
      dims[kept.n + 1] = k;
      kept.label[kept.n++] = t->label[i];
      x = BA(b, permute, ATTR(A_DIMS(dims, t->n)), x);
      x = BA(b, diagonal, ATTR(A_INT(0)), x);
      *t = kept;
      return diagonals(b, t, x);
    }
  return x;
}

static void einsum_compose (peri_build *b, peri_call *c) {
  equation e;
  peri_status s = parse(c->ctx, c->attr[0].s, &e);
  if (s == PERI_OK) s = check_sizes(c, &e);
  if (s != PERI_OK) {
    peri__build_fail(b, s);
    return;
  }
  peri_tensor **in = c->in + c->list[0].start, *x = in[0];
  term t = e.in[0];
  x = diagonals(b, &t, x);
  for (int i = 1; i < e.nterms; i++) {
    term u = e.in[i];
    peri_tensor *next = diagonals(b, &u, in[i]);
    x = sum_unneeded(b, &e, i, NULL, &t, x); /* term i itself counts as needed */
    peri_tensor *y = sum_unneeded(b, &e, i + 1, &t, &u, next);
    x = contract(b, &e, i + 1, &t, x, &u, y);
  }
  x = sum_unneeded(b, &e, e.nterms, NULL, &t, x);
  c->out[0] = arrange(b, &t, &e.out, x);
}

OP(einsum, .sig = "xs:tensors, equation:str",
   .doc = "Sum of products over the letters that the result lacks: einsum({a, b}, \"ij,jk->ik\"); "
          "without -> the result has the letters that stand once, in alphabetical order. A letter "
          "twice in a term is its diagonal: \"ii\" is the trace.",
   .compose = einsum_compose,
   TESTS(.domain = "shape=3,3; attr equation=ij,jk->ik",
         .variants = { "shape=2,3,3; attr equation=bij,bjk->bik",
                       "shape=3,3; attr equation=ij,ij->",
                       "xs1.shape=3; xs2.shape=4; attr equation=i,j->ji",
                       "shape=2,3; xs2.shape=4,3; attr equation=bi,oi->bo",
                       "shape=3,3; attr equation=ii,ij->ij", "shape=3,3; attr equation=ii,jj" },
         .large = "shape=100,100; attr equation=ij,jk->ik",
         .refuses = { "xs1.shape=2,3; xs2.shape=4,5; attr equation=ij,jk->ik => 3 | 4",
                      "xs1.shape=2,3,4; xs.count=1; attr equation=ij->i => (2, 3, 4) | 2 letters",
                      "xs1.shape=2,3; xs.count=1; attr equation=ij,jk->ik => 2" }));
