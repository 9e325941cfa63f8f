/*
** print.c - tensors as text: a line with shape, dtype and device, then the values in rows, long
** dims cut to their ends. Released tensors print too: __tostring never fails.
*/
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bind.h"
#include "core/element.h"

#define EDGE 3     /* values kept at either end of a dim */
#define WHOLE 1000 /* elements up to which nothing is cut */
#define LINE 80    /* columns before a row wraps */

typedef enum style { INTEGERS, POINT, FIXED, SCIENTIFIC } style;

typedef struct printer {
  const peri_tensor *t;
  luaL_Buffer *out; /* NULL: measure only */
  bool cut;
  style style;
  int width;
  bool whole;               /* every finite value is an integer */
  double largest, smallest; /* of the finite ones but 0, absolute */
} printer;

static int format (const printer *p, const char *at, char *buf, size_t size) {
  const peri_tensor *t = p->t;
  double v;
  const peri__value a = peri__element_get(t->dtype, at);
  if (t->dtype == PERI_BOOL) return snprintf(buf, size, "%s", a.i ? "true" : "false");
  if (a.whole) return snprintf(buf, size, "%lld", (long long)a.i);
  v = a.f;
  if (isnan(v)) return snprintf(buf, size, "nan");
  if (isinf(v)) return snprintf(buf, size, v > 0 ? "inf" : "-inf");
  if (p->style == POINT) return snprintf(buf, size, "%.0f.", v);
  return snprintf(buf, size, p->style == SCIENTIFIC ? "%.4e" : "%.4f", v);
}

static void look (printer *p, const char *at) {
  const peri_tensor *t = p->t;
  char buf[64];
  if (p->style == INTEGERS && peri__is_float(t->dtype)) { /* first pass: the range */
    double v = peri__element_get(t->dtype, at).f;
    if (!isfinite(v)) return;
    if (v != floor(v)) p->whole = false;
    v = fabs(v);
    if (v > p->largest) p->largest = v;
    if (v > 0 && v < p->smallest) p->smallest = v;
    return;
  }
  int n = format(p, at, buf, sizeof buf);
  if (n > p->width) p->width = n;
}

static void emit (printer *p, const char *at) {
  char buf[64];
  int n = format(p, at, buf, sizeof buf);
  for (int i = n; i < p->width; i++) luaL_addchar(p->out, ' ');
  luaL_addstring(p->out, buf);
}

static void indent (printer *p, int n) {
  luaL_addchar(p->out, '\n');
  while (n-- > 0) luaL_addchar(p->out, ' ');
}

static void between (printer *p, int dim, int64_t i, int *column) {
  if (dim < p->t->ndim - 1) {
    luaL_addchar(p->out, ',');
    for (int d = dim; d < p->t->ndim - 1; d++) /* blank lines part the blocks of higher dims */
      if (d > dim) luaL_addchar(p->out, '\n');
    indent(p, dim + 1);
  } else if (i > 0) {
    *column += p->width + 2;
    luaL_addstring(p->out, ",");
    if (*column + p->width + 1 > LINE) {
      indent(p, dim + 1);
      *column = dim + 1;
    } else
      luaL_addchar(p->out, ' ');
  }
}

static void walk (printer *p, int dim, const char *at) {
  const peri_tensor *t = p->t;
  if (dim == t->ndim) {
    if (p->out)
      emit(p, at);
    else
      look(p, at);
    return;
  }
  int64_t n = t->shape[dim], step = t->stride[dim] * (int64_t)peri__size(t);
  bool cut = p->cut && n > 2 * EDGE;
  int column = dim + 1;
  if (p->out) luaL_addchar(p->out, '[');
  for (int64_t i = 0; i < n; i++) {
    if (p->out && i > 0) between(p, dim, i, &column);
    if (cut && i == EDGE) {
      if (p->out) {
        luaL_addstring(p->out, "...");
        between(p, dim, i, &column);
      }
      i = n - EDGE;
    }
    walk(p, dim + 1, t->numel > 0 ? at + i * step : at);
  }
  if (p->out) luaL_addchar(p->out, ']');
}

/* Two looks at the values that will be shown: range, then width. */
static void choose_style (printer *p) {
  p->style = INTEGERS;
  p->whole = true;
  p->largest = 0;
  p->smallest = INFINITY;
  walk(p, 0, (const char *)p->t->data);
  if (!peri__is_float(p->t->dtype)) return;
  double spread = p->largest > 0 ? p->largest / p->smallest : 1;
  if (p->whole)
    p->style = p->largest >= 1e8 ? SCIENTIFIC : POINT;
  else
    p->style = spread > 1e3 * 1e3 || p->largest >= 1e8 || p->largest < 1e-3 ? SCIENTIFIC : FIXED;
  walk(p, 0, (const char *)p->t->data);
}

int peri__tostring (lua_State *L) {
  peri_bind *b = BIND(L);
  peri_box *box = peri__box_at(L, b, 1);
  peri_tensor *t = box ? box->t : NULL;
  luaL_Buffer out;
  if (!t) {
    lua_pushliteral(L, "tensor (released)");
    return 1;
  }
  peri_lua_push(L, t); /* held while the buffer grows */
  peri__push_shape_text(L, t->ndim, t->shape);
  lua_pushfstring(L, "tensor %s %s cpu%s", lua_tostring(L, -1), peri_dtype_name(peri_dtype_of(t)),
                  peri_requires_grad(t) ? " grad" : "");
  const char *head = lua_tostring(L, -1);
  luaL_buffinit(L, &out);
  luaL_addstring(&out, head);
  if (peri__opaque(t)) {
    luaL_addstring(&out, t->storage->packed ? " packed" : "");
    luaL_pushresult(&out);
    return 1;
  }
  printer p = { .t = t, .cut = t->numel > WHOLE || t->numel == 0 };
  if (t->numel == 0)
    luaL_addstring(&out, " []");
  else {
    choose_style(&p);
    p.out = &out;
    luaL_addchar(&out, t->ndim ? '\n' : ' ');
    walk(&p, 0, (const char *)t->data);
  }
  luaL_pushresult(&out);
  return 1;
}
