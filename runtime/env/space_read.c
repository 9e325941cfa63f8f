/*
** space_read.c - spaces in the JSON of policy files:
**   { "kind": "box", "dtype": "f32", "shape": [2], "low": -1, "high": [1, null] }   null: no bound
**   { "kind": "discrete", "n": 4, "start": 0 }   { "kind": "multi_discrete", "nvec": [3, 2] }
**   { "kind": "multi_binary", "shape": [5] }
*/
#include <math.h>
#include <string.h>

#include "env/policy.h"

#define MOST ((int64_t)1 << 31) /* of a size */

peri_status peri__shape_read (peri_json *j, int *ndim, int64_t *out) {
  peri_json_value v;
  TRY(peri_json_expect(j, PERI_JSON_ARRAY, "shape", &v));
  for (*ndim = 0;; ++*ndim) {
    TRY(peri_json_next(j, &v));
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    if (*ndim == PERI_MAX_DIMS - 1)
      return peri_json_fail(j, v.offset, "shape has more than %d dims", PERI_MAX_DIMS - 1);
    if (v.type != PERI_JSON_INT || v.i < 1 || v.i > MOST)
      return peri_json_fail(j, v.offset, "a size is no integer from 1 to 2^31");
    out[*ndim] = v.i;
  }
}

static peri_status dtype (peri_json *j, const peri_json_value *v, peri_dtype *out) {
  char name[16];
  if (v->n < sizeof name) {
    memcpy(name, v->s, v->n);
    name[v->n] = 0;
    if (peri_dtype_parse(name, out) && *out < PERI_NDTYPE) return PERI_OK;
  }
  return peri_json_fail(j, v->offset, "no dtype is called '%.*s'", v->n < 60 ? (int)v->n : 60,
                        v->s);
}

/* A list of n numbers, 8 bytes each, becomes one of n + 1. */
static peri_status one_more (peri_json *j, void **list, int64_t n) {
  void *more = peri__realloc(j->ctx, *list, (size_t)n * 8, ((size_t)n + 1) * 8);
  if (!more) return peri__fail(j->ctx, PERI_ENOMEM, "no memory for a space");
  *list = more;
  return PERI_OK;
}

static double *doubles (const double *d) { return (double *)(uintptr_t)d; }
static int64_t *integers (const int64_t *i) { return (int64_t *)(uintptr_t)i; }

/* low or high: one number or one for each element; *n of them in *list. */
static peri_status bound (peri_json *j, double none, double *one, const double **list, int64_t *n) {
  peri_json_value v;
  TRY(peri_json_next(j, &v));
  if (v.type == PERI_JSON_NULL) return PERI_OK;
  if (v.type == PERI_JSON_INT || v.type == PERI_JSON_NUM) {
    *one = v.f;
    return PERI_OK;
  }
  if (v.type != PERI_JSON_ARRAY)
    return peri_json_fail(j, v.offset, "a bound is no number and no list");
  for (;;) {
    void *grown = doubles(*list);
    TRY(peri_json_next(j, &v));
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    if (v.type != PERI_JSON_INT && v.type != PERI_JSON_NUM && v.type != PERI_JSON_NULL)
      return peri_json_fail(j, v.offset, "a bound is no number");
    TRY(one_more(j, &grown, *n));
    *list = grown;
    doubles(*list)[(*n)++] = v.type == PERI_JSON_NULL ? none : v.f;
  }
}

static peri_status sizes (peri_json *j, peri_space *s, int64_t *n) {
  peri_json_value v;
  TRY(peri_json_expect(j, PERI_JSON_ARRAY, "nvec", &v));
  for (;;) {
    void *grown = integers(s->nvec);
    TRY(peri_json_next(j, &v));
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    if (v.type != PERI_JSON_INT || v.i < 1 || v.i > MOST)
      return peri_json_fail(j, v.offset, "an entry of nvec is no integer from 1 to 2^31");
    TRY(one_more(j, &grown, *n));
    s->nvec = grown;
    integers(s->nvec)[(*n)++] = v.i;
  }
}

static peri_status kind (peri_json *j, peri_space_kind *out) {
  static const char *const names[] = { "box", "discrete", "multi_discrete", "multi_binary" };
  peri_json_value v;
  TRY(peri_json_expect(j, PERI_JSON_STRING, "kind", &v));
  for (int i = 0; i < 4; i++)
    if (peri__json_is(&v, names[i])) {
      *out = (peri_space_kind)(PERI_SPACE_BOX + i);
      return PERI_OK;
    }
  return peri_json_fail(j, v.offset, "no space is called '%.*s'", v.n < 60 ? (int)v.n : 60, v.s);
}

typedef struct counts {
  int64_t lows, highs, nvec; /* numbers in the lists */
} counts;

static peri_status member (peri_json *j, const peri_json_value *key, peri_space *s, counts *c) {
  peri_json_value v;
  if (peri__json_is(key, "kind")) return kind(j, &s->kind);
  if (peri__json_is(key, "shape")) return peri__shape_read(j, &s->ndim, s->shape);
  if (peri__json_is(key, "low")) return bound(j, -INFINITY, &s->low, &s->lows, &c->lows);
  if (peri__json_is(key, "high")) return bound(j, INFINITY, &s->high, &s->highs, &c->highs);
  if (peri__json_is(key, "nvec")) return sizes(j, s, &c->nvec);
  if (peri__json_is(key, "dtype")) {
    TRY(peri_json_expect(j, PERI_JSON_STRING, "dtype", &v));
    return dtype(j, &v, &s->dtype);
  }
  if (peri__json_is(key, "n") || peri__json_is(key, "start")) {
    int64_t *to = peri__json_is(key, "n") ? &s->n : &s->start;
    TRY(peri_json_expect(j, PERI_JSON_INT, "a number of a space", &v));
    *to = v.i;
    return PERI_OK;
  }
  return peri_json_fail(j, key->offset, "a key that spaces do not have");
}

static peri_status members (peri_json *j, peri_space *s, counts *c, size_t *at) {
  peri_json_value v;
  TRY(peri_json_expect(j, PERI_JSON_OBJECT, "a space", &v));
  *at = v.offset;
  for (;;) {
    TRY(peri_json_next(j, &v));
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    TRY(member(j, &v, s, c));
  }
}

static peri_status check (peri_json *j, peri_space *s, const counts *c, size_t at) {
  if (s->kind == 0) return peri_json_fail(j, at, "a space without a kind");
  if (s->kind != PERI_SPACE_BOX) s->dtype = s->kind == PERI_SPACE_MULTI_BINARY ? PERI_U8 : PERI_I64;
  if (s->kind == PERI_SPACE_MULTI_DISCRETE) {
    s->ndim = 1;
    s->shape[0] = c->nvec;
  } else if (s->nvec)
    return peri_json_fail(j, at, "only multi_discrete spaces have nvec");
  TRY(peri_space_check(j->ctx, s));
  if (peri_space_size(s) > ((int64_t)1 << 30) / (int64_t)peri_dtype_size(s->dtype))
    return peri_json_fail(j, at, "a space of more than 1 GiB a row");
  return PERI_OK;
}

static void drop (peri_ctx *ctx, peri_space *s, const counts *c) {
  peri__free(ctx, doubles(s->lows), (size_t)c->lows * 8);
  peri__free(ctx, doubles(s->highs), (size_t)c->highs * 8);
  peri__free(ctx, integers(s->nvec), (size_t)c->nvec * 8);
  *s = (peri_space){ 0 };
}

peri_status peri__space_read (peri_json *j, peri_space *s) {
  counts c = { 0, 0, 0 };
  size_t at = 0;
  *s = (peri_space){
    .struct_size = sizeof *s, .dtype = PERI_F32, .low = -INFINITY, .high = INFINITY
  };
  peri_status st = members(j, s, &c, &at);
  /* a check reads as many bounds as there are elements */
  int64_t n = s->kind == PERI_SPACE_BOX ? 1 : 0;
  for (int i = 0; n && i < s->ndim; i++) n = s->shape[i] <= MOST / n ? n * s->shape[i] : 0;
  if (st == PERI_OK && ((s->lows && c.lows != n) || (s->highs && c.highs != n)))
    st = peri_json_fail(j, at, "bounds that are not as many as the elements of the space");
  if (st == PERI_OK) st = check(j, s, &c, at);
  if (st != PERI_OK) drop(j->ctx, s, &c);
  return st;
}

void peri__space_drop (peri_ctx *ctx, peri_space *s) {
  int64_t n = s->kind == 0 ? 0 : peri_space_size(s);
  drop(ctx, s,
       &(counts){ s->lows ? n : 0, s->highs ? n : 0,
                  s->kind == PERI_SPACE_MULTI_DISCRETE ? s->shape[0] : 0 });
}
