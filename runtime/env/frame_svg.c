/*
** frame_svg.c - frames as an animated SVG. Each frame is a group that CSS shows at its time; a shape that
** stood in an earlier frame is a reference to it. Numbers are written with two decimals, whatever the
** locale of the process.
*/
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "env/frame.h"
#include "io/files.h"

struct peri_svg {
  peri_ctx *ctx;
  peri__output out;
  char *path;
  size_t path_size;
  double fps;
  int loops, width, height;
  int64_t frames;
  uint64_t *hash; /* of the shapes that have been written, by slot; 0: free */
  uint32_t *id;
  size_t slots, shapes;
  char *text; /* the shape at hand */
  size_t ntext, cap;
  bool starved;
};

/* ---- text of a shape ---- */

static void put_n (peri_svg *s, const char *p, size_t n) {
  if (s->starved) return;
  if (s->ntext + n > s->cap) {
    size_t want = (s->ntext + n) * 2 + 256;
    char *q = peri__realloc(s->ctx, s->text, s->cap, want);
    if (q == NULL) {
      s->starved = true;
      return;
    }
    s->text = q;
    s->cap = want;
  }
  memcpy(s->text + s->ntext, p, n);
  s->ntext += n;
}

static void put (peri_svg *s, const char *p) { put_n(s, p, strlen(p)); }

static void put_number (peri_svg *s, double v) {
  char b[40];
  v = v < -1e9 ? -1e9 : v > 1e9 ? 1e9 : v;
  long long hundredths = llround(v * 100), whole = hundredths < 0 ? -hundredths : hundredths;
  int n =
      snprintf(b, sizeof b, "%s%lld.%02lld", hundredths < 0 ? "-" : "", whole / 100, whole % 100);
  while (b[n - 1] == '0') n--;
  if (b[n - 1] == '.') n--;
  put_n(s, b, (size_t)n);
}

/* NAME="NUMBER" */
static void put_value (peri_svg *s, const char *name, double v) {
  put(s, " ");
  put(s, name);
  put(s, "=\"");
  put_number(s, v);
  put(s, "\"");
}

static void put_colour (peri_svg *s, const char *name, uint32_t rgb) {
  char b[32];
  int n = snprintf(b, sizeof b, " %s=\"#%06x\"", name, (unsigned)rgb);
  put_n(s, b, (size_t)n);
}

static void put_escaped (peri_svg *s, const char *p) {
  for (; *p; p++) switch (*p) {
    case '&': put(s, "&amp;"); break;
    case '<': put(s, "&lt;"); break;
    case '>': put(s, "&gt;"); break;
    default: put_n(s, p, 1);
    }
}

static void put_label (peri_svg *s, const double *v, const char *text) {
  int n = 0;
  for (const char *p = text; *p; p += peri__utf8_step(p)) n++;
  put_value(s, "x", v[0]);
  put_value(s, "y", v[1]);
  put_value(s, "font-size", v[2]);
  put_value(s, "textLength", 0.6 * v[2] * n);
  put(s, " class=\"t\">");
  put_escaped(s, text);
  put(s, "</text>");
}

/* Everything behind '<', without an id: what comes after the element's name begins at *name. */
static void put_shape (peri_svg *s, const peri_frame *f, const peri__shape *shape, size_t *name) {
  static const char *const names[] = { "rect", "circle", "line", "path", "text" };
  static const char *const values[][5] = { { "x", "y", "width", "height" },
                                           { "cx", "cy", "r" },
                                           { "x1", "y1", "x2", "y2", "stroke-width" } };
  const double *v = f->number + shape->at;
  s->ntext = 0;
  put(s, "<");
  put(s, names[shape->kind]);
  *name = s->ntext;
  put_colour(s, shape->kind == PERI__LINE ? "stroke" : "fill", shape->rgb);
  if (shape->kind == PERI__LABEL) {
    put_label(s, v, f->text + shape->text);
    return;
  }
  if (shape->kind == PERI__POLYGON) {
    put(s, " d=\"");
    for (int i = 0; i < shape->n; i++) {
      put(s, i == 0 ? "M" : i == 2 ? "L" : " ");
      put_number(s, v[i]);
    }
    put(s, "z\"");
  } else
    for (int i = 0; i < shape->n; i++) put_value(s, values[shape->kind][i], v[i]);
  put(s, "/>");
}

/* ---- shapes that were there before ---- */

static size_t slot_of (const peri_svg *s, uint64_t h) {
  size_t at = (size_t)h & (s->slots - 1);
  while (s->hash[at] && s->hash[at] != h) at = (at + 1) & (s->slots - 1);
  return at;
}

static peri_status more_slots (peri_svg *s) {
  size_t old = s->slots, n = old ? 2 * old : 256;
  uint64_t *hash = peri__malloc(s->ctx, n * sizeof *hash), *was = s->hash;
  uint32_t *id = peri__malloc(s->ctx, n * sizeof *id), *known = s->id;
  if (hash == NULL || id == NULL) {
    peri__free(s->ctx, hash, n * sizeof *hash);
    peri__free(s->ctx, id, n * sizeof *id);
    return peri__fail(s->ctx, PERI_ENOMEM, "%s: no memory for its shapes", s->path);
  }
  memset(hash, 0, n * sizeof *hash);
  s->hash = hash;
  s->id = id;
  s->slots = n;
  for (size_t i = 0; i < old; i++)
    if (was[i]) {
      size_t at = slot_of(s, was[i]);
      hash[at] = was[i];
      id[at] = known[i];
    }
  peri__free(s->ctx, was, old * sizeof *was);
  peri__free(s->ctx, known, old * sizeof *known);
  return PERI_OK;
}

/* The shape as text, or a reference to an equal one. */
static peri_status write_shape (peri_svg *s, const peri_frame *f, const peri__shape *shape) {
  char b[48];
  size_t name = 0;
  peri__xxh64 x;
  put_shape(s, f, shape, &name);
  if (s->starved) return peri__fail(s->ctx, PERI_ENOMEM, "%s: no memory for a shape", s->path);
  if (2 * (s->shapes + 1) > s->slots) TRY(more_slots(s));
  peri__xxh64_init(&x);
  peri__xxh64_add(&x, s->text, s->ntext);
  uint64_t h = peri__xxh64_end(&x);
  h = h ? h : 1;
  size_t at = slot_of(s, h);
  if (s->hash[at]) {
    int n = snprintf(b, sizeof b, "<use href=\"#s%x\"/>", (unsigned)s->id[at]);
    return peri__output_write(&s->out, b, (size_t)n);
  }
  s->hash[at] = h;
  s->id[at] = (uint32_t)s->shapes++;
  int n = snprintf(b, sizeof b, " id=\"s%x\"", (unsigned)s->id[at]);
  TRY(peri__output_write(&s->out, s->text, name));
  TRY(peri__output_write(&s->out, b, (size_t)n));
  return peri__output_write(&s->out, s->text + name, s->ntext - name);
}

/* ---- the file ---- */

peri_status peri_svg_create (peri_ctx *ctx, const char *path, double fps, int loops,
                             peri_svg **out) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, out);
  *out = NULL;
  if (!(fps >= 0.01 && fps <= 100))
    return peri__fail(ctx, PERI_EINVAL, "%s: %g frames a second, expected 0.01 to 100", path, fps);
  if (loops < 0)
    return peri__fail(ctx, PERI_EINVAL, "%s: plays %d times, 0 is for ever", path, loops);
  peri_svg *s = peri__malloc(ctx, sizeof *s);
  if (s == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory", path);
  *s = (peri_svg){ .ctx = ctx, .fps = fps, .loops = loops, .path_size = strlen(path) + 1 };
  s->out.fd = -1;
  s->path = peri__malloc(ctx, s->path_size);
  peri_status rc = s->path ? PERI_OK : peri__fail(ctx, PERI_ENOMEM, "%s: no memory", path);
  if (rc == PERI_OK) {
    memcpy(s->path, path, s->path_size);
    rc = peri__output_begin(ctx, s->path, &s->out);
  }
  if (rc != PERI_OK)
    peri_svg_abort(s);
  else
    *out = s;
  return rc;
}

static peri_status begin (peri_svg *s, const peri_frame *f) {
  char b[160];
  s->width = f->width;
  s->height = f->height;
  int n = snprintf(b, sizeof b,
                   "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
                   "viewBox=\"0 0 %d %d\">\n",
                   f->width, f->height, f->width, f->height);
  return peri__output_write(&s->out, b, (size_t)n);
}

peri_status peri_svg_add (peri_svg *s, peri_frame *f) {
  if (s == NULL) return PERI_EINVAL;
  NEED(s->ctx, f);
  if (f->ctx != s->ctx)
    return peri__fail(s->ctx, PERI_EINVAL, "%s: the frame is of another context", s->path);
  TRY(peri_frame_check(f));
  if (s->frames == 0) TRY(begin(s, f));
  if (f->width != s->width || f->height != s->height)
    return peri__fail(s->ctx, PERI_ESHAPE, "%s: frame %s is %d x %d, those before are %d x %d",
                      s->path, peri__nth(s->ctx, s->frames), f->width, f->height, s->width,
                      s->height);
  for (size_t i = 0; i < f->nshape; i++)
    if (f->shape[i].kind == PERI__IMAGE)
      return peri__fail(s->ctx, PERI_ENOSUP, "%s: frame %s has an image, an SVG has shapes alone",
                        s->path, peri__nth(s->ctx, s->frames));
  s->ntext = 0;
  put(s, s->frames == 0 ? "<g id=\"f\" class=\"f\"" : "<g class=\"f\" style=\"animation-delay:");
  if (s->frames > 0) {
    put_number(s, (double)s->frames * 1000 / s->fps);
    put(s, "ms\"");
  }
  put(s, ">");
  if (s->starved) return peri__fail(s->ctx, PERI_ENOMEM, "%s: no memory for a frame", s->path);
  TRY(peri__output_write(&s->out, s->text, s->ntext));
  const double whole[] = { 0, 0, s->width, s->height };
  const peri_frame back = { .number = (double *)(uintptr_t)whole };
  const peri__shape ground = { .kind = PERI__RECT, .rgb = f->background, .n = 4 };
  TRY(write_shape(s, &back, &ground));
  for (size_t i = 0; i < f->nshape; i++) TRY(write_shape(s, f, &f->shape[i]));
  s->frames++;
  return peri__output_write(&s->out, "</g>\n", 5);
}

/* A share of the whole in percent. */
static void put_share (peri_svg *s, int64_t frames) {
  char b[40];
  long long millionths = llround(1e8 / (double)frames);
  int n = snprintf(b, sizeof b, "%lld.%06lld%%", millionths / 1000000, millionths % 1000000);
  put_n(s, b, (size_t)n);
}

/* How long everything takes is known now. Without animations the first frame is what is seen. */
static peri_status finish (peri_svg *s) {
  char often[32] = "infinite";
  if (s->loops > 0) snprintf(often, sizeof often, "%d", s->loops);
  s->ntext = 0;
  put(s, "<style>.t{font-family:monospace;text-anchor:middle;dominant-baseline:central;"
         "white-space:pre}");
  if (s->frames > 1) {
    put(s, ".f{visibility:hidden;animation:k ");
    put_number(s, (double)s->frames * 1000 / s->fps);
    put(s, "ms step-end ");
    put(s, often);
    put(s, "}#f{visibility:visible}@keyframes k{0%{visibility:visible}");
    put_share(s, s->frames);
    put(s, "{visibility:hidden}100%{visibility:hidden}}");
  }
  put(s, "</style>\n</svg>\n");
  if (s->starved) return peri__fail(s->ctx, PERI_ENOMEM, "%s: no memory for its end", s->path);
  TRY(peri__output_write(&s->out, s->text, s->ntext));
  return peri__output_commit(&s->out);
}

peri_status peri_svg_commit (peri_svg *s) {
  if (s == NULL) return PERI_EINVAL;
  peri_status rc = s->frames == 0
                       ? peri__fail(s->ctx, PERI_EINVAL, "%s: no frame was added", s->path)
                       : finish(s);
  peri_svg_abort(s);
  return rc;
}

void peri_svg_abort (peri_svg *s) {
  if (s == NULL) return;
  peri__output_abort(&s->out);
  peri__free(s->ctx, s->hash, s->slots * sizeof *s->hash);
  peri__free(s->ctx, s->id, s->slots * sizeof *s->id);
  peri__free(s->ctx, s->text, s->cap);
  peri__free(s->ctx, s->path, s->path_size);
  peri__free(s->ctx, s, sizeof *s);
}
