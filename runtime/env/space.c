/*
** space.c - what observations and actions may be: checks of spaces and of values, bounds, samples.
*/
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "env/env.h"

peri_space peri_space_box (peri_dtype d, double low, double high, int ndim, const int64_t *shape) {
  peri_space s = { .struct_size = sizeof s,
                   .kind = PERI_SPACE_BOX,
                   .dtype = d,
                   .ndim = ndim,
                   .low = low,
                   .high = high };
  bool fits = ndim >= 0 && ndim <= PERI_MAX_DIMS && (shape || ndim == 0);
  for (int i = 0; fits && i < ndim; i++) s.shape[i] = shape[i];
  if (!fits) s.ndim = -1; /* refused where it is used */
  return s;
}

peri_space peri_space_discrete (int64_t n) {
  return (peri_space){
    .struct_size = sizeof(peri_space), .kind = PERI_SPACE_DISCRETE, .dtype = PERI_I64, .n = n
  };
}

peri_space peri_space_multi_discrete (int64_t n, const int64_t *nvec) {
  return (peri_space){ .struct_size = sizeof(peri_space),
                       .kind = PERI_SPACE_MULTI_DISCRETE,
                       .dtype = PERI_I64,
                       .ndim = 1,
                       .shape = { n },
                       .nvec = nvec };
}

peri_space peri_space_multi_binary (int64_t n) {
  return (peri_space){ .struct_size = sizeof(peri_space),
                       .kind = PERI_SPACE_MULTI_BINARY,
                       .dtype = PERI_U8,
                       .ndim = 1,
                       .shape = { n } };
}

/* Elements of a value by the shape alone; 0: they cannot be counted. */
static int64_t elements (const peri_space *s) {
  if (s->ndim < 0 || s->ndim > PERI_MAX_DIMS) return 0;
  int64_t n = 1;
  for (int i = 0; i < s->ndim; i++)
    if (s->shape[i] < 1 || __builtin_mul_overflow(n, s->shape[i], &n)) return 0;
  return n < (int64_t)1 << 40 ? n : 0;
}

/* Bounds are elements of the space themselves: those of f32 are rounded. */
static double bound (const peri_space *s, double v) { return s->dtype == PERI_F32 ? (float)v : v; }
static double low_of (const peri_space *s, int64_t i) {
  return bound(s, s->lows ? s->lows[i] : s->low);
}
static double high_of (const peri_space *s, int64_t i) {
  return bound(s, s->highs ? s->highs[i] : s->high);
}

static peri_status check_box (peri_ctx *ctx, const peri_space *s, int64_t n) {
  if (s->dtype != PERI_F32 && s->dtype != PERI_F64 && s->dtype != PERI_U8 && s->dtype != PERI_I32 &&
      s->dtype != PERI_I64)
    return peri__fail(ctx, PERI_EDTYPE, "a Box has no elements of %s: f32, f64, u8, i32 or i64",
                      peri_dtype_name(s->dtype) ? peri_dtype_name(s->dtype) : "that dtype");
  for (int64_t i = 0; i < (s->lows || s->highs ? n : 1); i++)
    if (!(low_of(s, i) <= high_of(s, i)))
      return peri__fail(ctx, PERI_EINVAL, "bounds of element %s of a Box are %g and %g",
                        peri__nth(ctx, i), low_of(s, i), high_of(s, i));
  if (s->nfields < 0 || (s->nfields > 0 && !s->field))
    return peri__fail(ctx, PERI_EINVAL, "a Box has %d fields and no list of them", s->nfields);
  for (int i = 0; i < s->nfields; i++) {
    const peri_space_field *f = &s->field[i];
    if (!f->name || f->offset < 0 || f->size < 1 || f->offset > n - f->size)
      return peri__fail(ctx, PERI_EINVAL,
                        "field %s of a Box of %" PRId64 " elements is %" PRId64
                        " elements from %" PRId64 " on",
                        f->name ? f->name : "without a name", n, f->size, f->offset);
  }
  return PERI_OK;
}

peri_status peri_space_check (peri_ctx *ctx, const peri_space *s) {
  if (!ctx) return PERI_EINVAL;
  NEED(ctx, s);
  if (s->struct_size != sizeof *s)
    return peri__fail(ctx, PERI_EINVAL, "peri_space.struct_size is %u, expected %zu",
                      s->struct_size, sizeof *s);
  int64_t n = elements(s);
  if (n == 0) {
    char text[128];
    int k = s->ndim < 0 || s->ndim > PERI_MAX_DIMS ? 0 : s->ndim;
    return peri__fail(ctx, PERI_ESHAPE, "a space has %d dims of sizes %s", s->ndim,
                      peri__sizes_text(k, s->shape, text, sizeof text));
  }
  switch (s->kind) {
  case PERI_SPACE_BOX: return check_box(ctx, s, n);
  case PERI_SPACE_DISCRETE:
    if (s->dtype != PERI_I64 || s->ndim != 0 || s->n < 1 || s->start > INT64_MAX - s->n)
      return peri__fail(ctx, PERI_EINVAL,
                        "a Discrete space has %" PRId64 " values from %" PRId64 " on, i64, no dims",
                        s->n, s->start);
    return PERI_OK;
  case PERI_SPACE_MULTI_DISCRETE:
    if (s->dtype != PERI_I64 || s->ndim != 1 || !s->nvec)
      return peri__fail(ctx, PERI_EINVAL, "a MultiDiscrete space is a list of sizes, i64");
    for (int64_t i = 0; i < n; i++)
      if (s->nvec[i] < 1)
        return peri__fail(ctx, PERI_EINVAL, "size %s of a MultiDiscrete space is %" PRId64,
                          peri__nth(ctx, i), s->nvec[i]);
    return PERI_OK;
  case PERI_SPACE_MULTI_BINARY:
    if (s->dtype == PERI_U8 && s->ndim == 1) return PERI_OK;
    return peri__fail(ctx, PERI_EINVAL, "a MultiBinary space is a number of flags, u8");
  default: return peri__fail(ctx, PERI_EINVAL, "no kind of spaces has number %d", (int)s->kind);
  }
}

int64_t peri_space_size (const peri_space *s) { return s ? elements(s) : 0; }

size_t peri__space_bytes (const peri_space *s) {
  return (size_t)elements(s) * peri_dtype_size(s->dtype);
}

peri_status peri_space_bounds (peri_ctx *ctx, const peri_space *s, int64_t i, double *low,
                               double *high) {
  TRY(peri_space_check(ctx, s));
  NEED(ctx, low);
  NEED(ctx, high);
  if (i < 0 || i >= elements(s))
    return peri__fail(ctx, PERI_EINVAL, "a value of the space has %" PRId64 " elements, not %s",
                      elements(s), peri__nth(ctx, i));
  double from = 0, to = 1;
  if (s->kind == PERI_SPACE_BOX) from = low_of(s, i), to = high_of(s, i);
  if (s->kind == PERI_SPACE_DISCRETE) from = (double)s->start, to = (double)(s->start + s->n - 1);
  if (s->kind == PERI_SPACE_MULTI_DISCRETE) to = (double)(s->nvec[i] - 1);
  *low = from;
  *high = to;
  return PERI_OK;
}

/* ---- values ---- */

static double element (const peri_space *s, const void *value, int64_t i) {
  switch (s->dtype) { /* ORDER dtype */
  case PERI_F32: return ((const float *)value)[i];
  case PERI_F64: return ((const double *)value)[i];
  case PERI_U8: return ((const uint8_t *)value)[i];
  case PERI_I32: return ((const int32_t *)value)[i];
  default: return (double)((const int64_t *)value)[i];
  }
}

/* Whether element i of a value is in the space; loose: bounds of a Box do not count, as the runtime checks. */
static bool element_fits (const peri_space *s, const void *value, int64_t i, bool loose) {
  if (s->kind == PERI_SPACE_BOX) {
    double v = element(s, value, i);
    return loose ? isfinite(v) : v >= low_of(s, i) && v <= high_of(s, i);
  }
  if (s->kind == PERI_SPACE_MULTI_BINARY) return ((const uint8_t *)value)[i] <= 1;
  int64_t v = ((const int64_t *)value)[i];
  if (s->kind == PERI_SPACE_DISCRETE) return v >= s->start && v - s->start < s->n;
  return v >= 0 && v < s->nvec[i];
}

bool peri_space_contains (const peri_space *s, const void *value) {
  if (!s || !value) return false;
  int64_t n = elements(s);
  for (int64_t i = 0; i < n; i++)
    if (!element_fits(s, value, i, false)) return false;
  return n > 0;
}

/* Whether any of n floats is not finite: the exponent's bits are all ones. Written for the vectoriser. */
static bool any_odd32 (const float *v, int64_t n) {
  uint32_t odd = 0;
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, v + i, sizeof bits);
    odd |= (bits & 0x7f800000u) + 0x00800000u;
  }
  return odd >> 31;
}

static bool any_odd64 (const double *v, int64_t n) {
  uint64_t odd = 0;
  for (int64_t i = 0; i < n; i++) {
    uint64_t bits;
    memcpy(&bits, v + i, sizeof bits);
    odd |= (bits & 0x7ff0000000000000u) + 0x0010000000000000u;
  }
  return odd >> 63;
}

static bool any_beyond (const int64_t *v, int64_t n, int64_t start, int64_t many) {
  uint64_t beyond = 0; /* the sign of what is below 0, or of what many - 1 lacks of it */
  for (int64_t i = 0; i < n; i++) {
    uint64_t d = (uint64_t)v[i] - (uint64_t)start;
    beyond |= d | ((uint64_t)many - 1 - d);
  }
  return beyond >> 63;
}

static bool any_misfit (const peri_space *s, const void *values, int64_t rows, int64_t each) {
  switch (s->kind) {
  case PERI_SPACE_BOX:
    return s->dtype == PERI_F32   ? any_odd32(values, rows * each)
           : s->dtype == PERI_F64 ? any_odd64(values, rows * each)
                                  : false;
  case PERI_SPACE_DISCRETE: return any_beyond(values, rows, s->start, s->n);
  case PERI_SPACE_MULTI_DISCRETE:
    for (int64_t r = 0; r < rows; r++)
      for (int64_t i = 0; i < each; i++)
        if ((uint64_t)((const int64_t *)values)[r * each + i] >= (uint64_t)s->nvec[i]) return true;
    return false;
  default: {
    uint8_t all = 0;
    for (int64_t i = 0; i < rows * each; i++) all |= ((const uint8_t *)values)[i];
    return all > 1;
  }
  }
}

int64_t peri__space_bad_row (const peri_space *s, const void *values, int64_t rows) {
  int64_t each = elements(s);
  if (!any_misfit(s, values, rows, each)) return rows;
  size_t bytes = peri__space_bytes(s);
  for (int64_t r = 0; r < rows; r++)
    if (any_misfit(s, (const char *)values + (size_t)r * bytes, 1, each)) return r;
  return rows;
}

void peri__space_complaint (const peri_space *s, const void *value, char *out, size_t size) {
  int64_t n = elements(s), i = 0;
  while (i < n - 1 && element_fits(s, value, i, true)) i++;
  char place[48] = "", expected[96];
  if (s->ndim > 0) snprintf(place, sizeof place, "[%" PRId64 "] ", i); /* as data: from 0 */
  if (s->kind == PERI_SPACE_BOX)
    snprintf(expected, sizeof expected, "a finite number");
  else if (s->kind == PERI_SPACE_DISCRETE)
    snprintf(expected, sizeof expected, "an integer from %" PRId64 " to %" PRId64, s->start,
             s->start + s->n - 1);
  else
    snprintf(expected, sizeof expected, "an integer from 0 to %" PRId64,
             s->kind == PERI_SPACE_MULTI_BINARY ? (int64_t)1 : s->nvec[i] - 1);
  if (s->kind == PERI_SPACE_BOX)
    snprintf(out, size, "%sis %g, expected %s", place, element(s, value, i), expected);
  else if (s->kind == PERI_SPACE_MULTI_BINARY)
    snprintf(out, size, "%sis %d, expected %s", place, ((const uint8_t *)value)[i], expected);
  else
    snprintf(out, size, "%sis %" PRId64 ", expected %s", place, ((const int64_t *)value)[i],
             expected);
}

/* ---- samples ---- */

static void put (const peri_space *s, void *value, int64_t i, double v) {
  switch (s->dtype) { /* ORDER dtype */
  case PERI_F32: ((float *)value)[i] = (float)v; break;
  case PERI_F64: ((double *)value)[i] = v; break;
  case PERI_U8: ((uint8_t *)value)[i] = (uint8_t)v; break;
  case PERI_I32: ((int32_t *)value)[i] = (int32_t)v; break;
  default: ((int64_t *)value)[i] = (int64_t)v; break;
  }
}

/* Gymnasium draws all normal elements of a Box first, then those with one bound, then the bounded ones. */
static void sample_box (const peri_space *s, peri_pcg64 *rng, void *value) {
  int64_t n = elements(s);
  bool whole = s->dtype != PERI_F32 && s->dtype != PERI_F64;
  for (int kind = 0; kind < 4; kind++)
    for (int64_t i = 0; i < n; i++) {
      double low = low_of(s, i), high = high_of(s, i), v;
      int has = isfinite(low) ? (isfinite(high) ? 3 : 1) : isfinite(high) ? 2 : 0;
      if (has != kind) continue;
      if (kind == 0)
        v = peri_pcg64_normal(rng);
      else if (kind == 1)
        v = low - log1p(-peri_pcg64_double(rng));
      else if (kind == 2)
        v = high + log1p(-peri_pcg64_double(rng));
      else
        v = peri_pcg64_uniform(rng, low, whole ? high + 1 : high);
      put(s, value, i, whole ? floor(v) : v);
    }
}

static peri_status sample_masked (peri_ctx *ctx, const peri_space *s, peri_pcg64 *rng,
                                  const uint8_t *mask, int64_t *value) {
  int64_t legal = 0, i = 0;
  for (int64_t k = 0; k < s->n; k++) legal += mask[k] != 0;
  if (legal == 0)
    return peri__fail(ctx, PERI_EINVAL, "none of the %" PRId64 " values is legal by the mask",
                      s->n);
  for (int64_t left = peri_pcg64_integer(rng, legal); !mask[i] || left-- > 0;) i++;
  *value = s->start + i;
  return PERI_OK;
}

peri_status peri_space_sample (peri_ctx *ctx, const peri_space *s, peri_pcg64 *rng,
                               const uint8_t *mask, void *value) {
  TRY(peri_space_check(ctx, s));
  NEED(ctx, rng);
  NEED(ctx, value);
  if (mask && s->kind != PERI_SPACE_DISCRETE)
    return peri__fail(ctx, PERI_EINVAL, "only a Discrete space is sampled with a mask");
  int64_t n = elements(s);
  if (s->kind == PERI_SPACE_BOX)
    sample_box(s, rng, value);
  else if (mask)
    return sample_masked(ctx, s, rng, mask, value);
  else if (s->kind == PERI_SPACE_DISCRETE)
    *(int64_t *)value = s->start + peri_pcg64_integer(rng, s->n);
  else if (s->kind == PERI_SPACE_MULTI_DISCRETE)
    for (int64_t i = 0; i < n; i++)
      ((int64_t *)value)[i] = (int64_t)(peri_pcg64_double(rng) * (double)s->nvec[i]);
  else {
    uint32_t bits = 0; /* four flags a draw: the top bits of its bytes, the low byte first */
    for (int64_t i = 0; i < n; i++, bits >>= 8) {
      if (i % 4 == 0) bits = (uint32_t)peri_pcg64_integer(rng, (int64_t)1 << 32);
      ((uint8_t *)value)[i] = (uint8_t)(bits >> 7 & 1);
    }
  }
  return PERI_OK;
}

/* ---- copies ---- */

static size_t rounded (size_t n) { return (n + 7) & ~(size_t)7; }

void *peri__space_copy (peri_ctx *ctx, const peri_space *from, peri_space *to, size_t *size) {
  int64_t n = elements(from);
  size_t words = (size_t)n * 8, fields = (size_t)from->nfields * sizeof *from->field;
  size_t total =
      8 + (from->lows ? words : 0) + (from->highs ? words : 0) + (from->nvec ? words : 0) + fields;
  for (int i = 0; i < from->nfields; i++) total += rounded(strlen(from->field[i].name) + 1);
  char *block = peri__malloc(ctx, total), *at = block;
  if (!block) return NULL;
  *to = *from;
  *size = total;
  if (from->lows) to->lows = memcpy(at, from->lows, words), at += words;
  if (from->highs) to->highs = memcpy(at, from->highs, words), at += words;
  if (from->nvec) to->nvec = memcpy(at, from->nvec, words), at += words;
  if (fields) {
    peri_space_field *f = memcpy(at, from->field, fields);
    to->field = f;
    at += fields;
    for (int i = 0; i < from->nfields; i++) {
      size_t length = strlen(from->field[i].name) + 1;
      f[i].name = memcpy(at, from->field[i].name, length);
      at += rounded(length);
    }
  }
  return block;
}
