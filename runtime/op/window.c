/* window.c - sizes of windows that slide over images: see window.h. */
#include "op/window.h"

#include <inttypes.h>

static const int64_t MOST = ((int64_t)1 << 31) - 1;  /* of a size that is given */
static const int64_t MOST_PADDED = (int64_t)1 << 40; /* elements of one padded image */

static peri_status check_each (peri_ctx *ctx, const peri_attr *a, const char *name, int64_t least) {
  for (int i = 0; i < a->n; i++)
    if (a->v[i] < least || a->v[i] > MOST)
      return peri__fail(ctx, PERI_EINVAL, "%s is %" PRId64 ", expected %" PRId64 " to 2^31 - 1",
                        name, a->v[i], least);
  return PERI_OK;
}

peri_status peri__pair (peri_ctx *ctx, const peri_attr *a, const char *name, int64_t least,
                        int64_t fallback, int64_t out[2]) {
  out[0] = out[1] = fallback;
  if (a->n < 0) return PERI_OK;
  if (a->n != 1 && a->n != 2)
    return peri__fail(ctx, PERI_EINVAL,
                      "%s has %d numbers, expected one, or one for each of 2 dims", name, a->n);
  TRY(check_each(ctx, a, name, least));
  out[0] = a->v[0];
  out[1] = a->v[a->n - 1];
  return PERI_OK;
}

peri_status peri__padding (peri_ctx *ctx, const peri_attr *a, int64_t before[2], int64_t after[2]) {
  if (a->n != 4) {
    TRY(peri__pair(ctx, a, "padding", 0, 0, before));
    after[0] = before[0];
    after[1] = before[1];
    return PERI_OK;
  }
  TRY(check_each(ctx, a, "padding", 0));
  before[0] = a->v[0], after[0] = a->v[1];
  before[1] = a->v[2], after[1] = a->v[3];
  return PERI_OK;
}

peri_status peri__window_read (peri_ctx *ctx, const peri_attr *a, peri__window *w) {
  TRY(peri__pair(ctx, &a[0], "stride", 1, 1, w->stride));
  TRY(peri__padding(ctx, &a[1], w->before, w->after));
  TRY(peri__pair(ctx, &a[2], "dilation", 1, 1, w->dilation));
  return peri__window_fit(ctx, w);
}

peri_status peri__window_fit (peri_ctx *ctx, peri__window *w) {
  int64_t padded[2], spans[2];
  for (int i = 0; i < 2; i++) {
    padded[i] = w->in[i] + w->before[i] + w->after[i];
    if (w->kernel[i] > 1 && w->dilation[i] > MOST_PADDED / (w->kernel[i] - 1))
      return peri__fail(ctx, PERI_ESHAPE,
                        "a kernel of %" PRId64 " with dilation %" PRId64 " is too large",
                        w->kernel[i], w->dilation[i]);
    spans[i] = (w->kernel[i] - 1) * w->dilation[i] + 1;
  }
  if (padded[0] < spans[0] || padded[1] < spans[1])
    return peri__fail(ctx, PERI_ESHAPE,
                      "an image of (%" PRId64 ", %" PRId64
                      ") with padding is smaller than the kernel, "
                      "which spans (%" PRId64 ", %" PRId64 ")",
                      padded[0], padded[1], spans[0], spans[1]);
  if (padded[0] > MOST_PADDED / padded[1])
    return peri__fail(ctx, PERI_ESHAPE,
                      "an image of (%" PRId64 ", %" PRId64 ") with padding is too large", padded[0],
                      padded[1]);
  for (int i = 0; i < 2; i++) w->out[i] = (padded[i] - spans[i]) / w->stride[i] + 1;
  return PERI_OK;
}

void peri__window_clamp (peri__window *w) {
  for (int i = 0; i < 2; i++) {
    int64_t span = (w->kernel[i] - 1) * w->dilation[i] + 1;
    if (w->out[i] == 1 && w->stride[i] > span) w->stride[i] = span;
  }
}

peri_status peri__want_image (peri_call *c, int i, const char *name) {
  char text[128];
  const peri_tensor *t = c->in[i];
  if (t->ndim != 3 && t->ndim != 4)
    return peri__fail(c->ctx, PERI_ESHAPE, "%s has shape %s, expected (N, C, H, W) or (C, H, W)",
                      name, peri__shape_text(t, text, sizeof text));
  return peri__want_float(c, i, name);
}

peri_status peri__new_image (peri_call *c, int k, peri_dtype d, int64_t channels, int64_t h,
                             int64_t w) {
  const peri_tensor *x = c->in[0];
  int64_t shape[4] = { x->shape[0], channels, h, w };
  return peri__new(c->ctx, d, x->ndim, shape + 4 - x->ndim, &c->out[k]);
}

peri_tensor *peri__as_image (peri_build *b, peri_call *c, peri_tensor *x, const char *name) {
  char text[128];
  if (x->ndim != 2 && x->ndim != 3) {
    peri__build_fail(b, peri__fail(c->ctx, PERI_ESHAPE,
                                   "%s has shape %s, expected (N, C, L) or (C, L)", name,
                                   peri__shape_text(x, text, sizeof text)));
    return NULL;
  }
  return BA(b, unsqueeze, ATTR(A_INT(-2)), x);
}

peri_tensor *peri__as_row (peri_build *b, peri_tensor *y) {
  return BA(b, squeeze, ATTR(A_INT(-2)), y);
}

peri_status peri__row_attr_of (peri_ctx *ctx, const peri_attr *a, const char *name, int most,
                               int64_t rest, peri__row_attr *out) {
  if (a->n > most || a->n == 0)
    return peri__fail(ctx, PERI_EINVAL, "%s has %d numbers, expected %s", name, a->n,
                      most == 1 ? "one" : "one or two");
  *out = (peri__row_attr){ .v = { rest, rest, rest, rest } };
  if (a->n == 2) /* before and after */
    out->v[2] = a->v[0], out->v[3] = a->v[1];
  else if (a->n == 1)
    out->v[1] = a->v[0];
  out->attr = (peri_attr){ .v = out->v, .n = a->n < 0 ? -1 : 2 * a->n };
  return PERI_OK;
}
