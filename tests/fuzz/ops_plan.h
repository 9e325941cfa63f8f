/*
** ops_plan.h - a random call of a random op, for fuzz_ops.c: which op, how each input is made, which
** numbers go with it. Starts from a call that the op's block holds and changes a few things.
*/
#ifndef ops_plan_h
#define ops_plan_h

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "op/op.h"
#include "run_op.h"

enum { MAX_IN = 24 };

/* ---- choices ---- */

typedef struct dice {
  const uint8_t *p;
  size_t n, at;
  uint64_t more; /* when the bytes are used up */
} dice;

static uint64_t mix (uint64_t *s) {
  uint64_t z = *s += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

static unsigned below (dice *d, unsigned n) {
  unsigned v = 0;
  if (n < 2) return 0;
  for (unsigned have = 1; have < n; have *= 256)
    v = v << 8 | (d->at < d->n ? d->p[d->at++] : (unsigned)(mix(&d->more) & 255));
  return v % n;
}

static bool chance (dice *d, unsigned percent) { return below(d, 100) < percent; }

static const int64_t edges[] = { 0,
                                 1,
                                 -1,
                                 2,
                                 -2,
                                 3,
                                 4,
                                 5,
                                 7,
                                 8,
                                 17,
                                 64,
                                 255,
                                 1000,
                                 65536,
                                 1000000,
                                 INT32_MAX,
                                 INT32_MIN,
                                 INT64_C(1) << 31,
                                 INT64_C(1) << 32,
                                 (INT64_C(1) << 32) + 6,
                                 (INT64_C(1) << 53) + 1,
                                 INT64_C(1) << 61,
                                 (INT64_C(1) << 62) + 8,
                                 INT64_C(1) << 62,
                                 INT64_MAX,
                                 INT64_MAX - 5,
                                 INT64_MIN,
                                 INT64_MIN + 1,
                                 -(INT64_C(1) << 62),
                                 INT64_C(0x5555555555555556) };

static int64_t whole (dice *d) {
  if (chance(d, 50)) return (int64_t)below(d, 9) - 3;
  return edges[below(d, sizeof edges / sizeof *edges)];
}

static double number (dice *d) {
  static const double v[] = { 0,
                              1,
                              -1,
                              0.5,
                              2,
                              0.9,
                              1e-8,
                              -0.0,
                              1e-300,
                              1e300,
                              -1e300,
                              1e-40,
                              1e38,
                              3.5e38,
                              INFINITY,
                              -INFINITY,
                              NAN,
                              1e10,
                              9007199254740993.0,
                              -3,
                              100,
                              9.3e18,
                              -9.3e18,
                              1e-5,
                              0.1,
                              1e19,
                              4294967296.0,
                              1.5 };
  return v[below(d, sizeof v / sizeof *v)];
}

static int64_t size_of_dim (dice *d) {
  static const int64_t v[] = { 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 8, 16, 17, 32, 33, 64, 256 };
  return v[below(d, sizeof v / sizeof *v)];
}

/* ---- a case ---- */

typedef struct shape {
  int n;
  int64_t v[PERI_MAX_DIMS];
} shape;

/* How an input is made; a level makes its own from this. */
typedef struct plan {
  enum { FRESH, GONE, SAME } how;
  int same; /* input that it is, or shares its memory with */
  bool view;
  int dtype;
  shape s;
  enum { DENSE, TURNED, GAPS, EXPANDED, FLIPPED, LAYOUTS } layout;
  enum { SMALL, IDS, WILD, ZEROS, UNIT } fill;
  uint64_t seed;
  bool leaf, weight;
} plan;

typedef struct job {
  const peri_op *op;
  const peri_sig *sig;
  const char *call; /* what it starts from: one of those that the op's block holds, or NULL */
  char text[PERI_MAX_PARAM][64];
  int nin;
  plan in[MAX_IN];
  peri_attr attr[PERI_MAX_PARAM];
  int64_t lists[PERI_MAX_PARAM][12];
  bool defaults, inplace, graph, twice, grad_off, anomaly;
  uint64_t seed;
} job;

/* What a call says of key, such as "shape" or "attr k"; NULL: nothing. */
static const char *said_of (const char *call, const char *key) {
  size_t n = strlen(key);
  for (const char *p = call; p && *p;) {
    while (*p == ' ') p++;
    if (strncmp(p, key, n) == 0 && p[n] == '=') return p + n + 1;
    p = strchr(p, ';');
    if (p) p++;
  }
  return NULL;
}

/* The i-th call of the op's block, good ones and refused ones in turn; NULL beyond the last. */
static const char *call_at (const peri_op *op, int i) {
  const peri_op_tests *t = &op->tests;
  if (i-- == 0) return t->domain;
  for (int k = 0; t->variants[k]; k++)
    if (i-- == 0) return t->variants[k];
  for (int k = 0; t->refuses[k]; k++)
    if (i-- == 0) return t->refuses[k];
  return NULL;
}
static int calls_of (const peri_op *op) {
  int n = 1;
  while (call_at(op, n)) n++;
  return n;
}

static int read_list (const char *p, int64_t *v, int max) {
  int n = 0;
  if (*p == '(') return 0;
  while (n < max) {
    char *end;
    v[n++] = strtoll(p, &end, 10);
    if (*end != ',') break;
    p = end + 1;
  }
  return n;
}

static shape plain_shape (const char *call, const char *name, int index) {
  char key[80];
  const char *text = NULL;
  shape s = { 2, { 2, 3 } };
  if (index >= 0) {
    snprintf(key, sizeof key, "%s%d.shape", name, index + 1);
    text = said_of(call, key);
  }
  snprintf(key, sizeof key, "%s.shape", name);
  if (!text) text = said_of(call, key);
  if (!text) text = said_of(call, "shape");
  if (text) s.n = read_list(text, s.v, PERI_MAX_DIMS);
  return s;
}

static void vary_shape (dice *d, shape *s) {
  switch (below(d, 8)) {
  case 0: /* anything */
    s->n = chance(d, 10) ? (int)below(d, PERI_MAX_DIMS + 1) : (int)below(d, 5);
    for (int i = 0; i < s->n; i++) s->v[i] = size_of_dim(d);
    break;
  case 1: /* a dim less */
    if (s->n > 0) s->n--;
    break;
  case 2: /* a dim more */
    if (s->n < PERI_MAX_DIMS) s->v[s->n++] = size_of_dim(d);
    break;
  case 3: /* nothing, and a lot of it */
    if (s->n < 2 || !chance(d, 30)) break;
    s->v[below(d, (unsigned)s->n)] = (int64_t)1 << (20 + below(d, 41));
    s->v[below(d, (unsigned)s->n)] = 0;
    break;
  default: /* one size */
    if (s->n > 0) s->v[below(d, (unsigned)s->n)] = size_of_dim(d);
  }
}

static int any_dtype (dice *d) {
  static const uint8_t v[] = { PERI_F32,  PERI_F32, PERI_F32,  PERI_F32, PERI_F64,
                               PERI_F64,  PERI_I64, PERI_I64,  PERI_I32, PERI_U8,
                               PERI_BOOL, PERI_F16, PERI_BF16, PERI_F32 };
  return v[below(d, sizeof v)];
}

static void plan_tensor (dice *d, const job *j, plan *p, const peri_param *param, int index) {
  char key[64];
  *p = (plan){ .how = FRESH, .seed = mix(&d->more) };
  const char *range = said_of(j->call, param->name);
  p->s = plain_shape(j->call, param->name, param->kind == PERI_K_TENSORS ? index : -1);
  p->dtype = PERI_F32;
  p->fill = SMALL;
  snprintf(key, sizeof key, "%s.shape", param->name);
  if (range && strncmp(range, "int", 3) == 0) p->dtype = PERI_I64, p->fill = IDS;
  if (range && strncmp(range, "u8", 2) == 0) p->dtype = PERI_U8, p->fill = IDS;
  if (range && strncmp(range, "bool", 4) == 0) p->dtype = PERI_BOOL, p->fill = IDS;
  if (range && (strncmp(range, "0.", 2) == 0 || strncmp(range, "1.", 2) == 0)) p->fill = UNIT;
  if (param->kind == PERI_K_OPTIONAL && chance(d, range || said_of(j->call, key) ? 30 : 60))
    p->how = GONE;
  p->leaf = chance(d, 40);
}

static void disturb (dice *d, job *j, int i) {
  plan *p = &j->in[i];
  switch (below(d, 12)) {
  case 0:
    if (chance(d, 20)) p->how = GONE;
    break;
  case 1:
  case 2: p->dtype = any_dtype(d); break;
  case 3:
    if (i > 0) {
      p->how = SAME;
      p->same = (int)below(d, (unsigned)i);
      p->view = chance(d, 50);
    }
    break;
  case 4: p->fill = (int)below(d, 5); break;
  case 5:
    p->weight = chance(d, 20);
    if (p->weight) p->dtype = PERI_F32, p->s = (shape){ 2, { 5, chance(d, 50) ? 32 : 256 } };
    break;
  case 6:
  case 7: p->layout = (int)below(d, LAYOUTS); break;
  default: vary_shape(d, &p->s);
  }
}

/* One change to the shapes of all inputs, which then still fit each other more often. */
static void disturb_all (dice *d, job *j) {
  unsigned how = below(d, 4);
  int64_t to = size_of_dim(d);
  int dtype = any_dtype(d);
  for (int i = 0; i < j->nin; i++) {
    plan *p = &j->in[i];
    if (how == 0 && p->s.n > 0) p->s.v[0] = to;
    if (how == 1 && p->s.n > 0) p->s.v[p->s.n - 1] = to;
    if (how == 2 && p->fill != IDS) p->dtype = dtype;
    if (how == 3) p->layout = (int)below(d, LAYOUTS);
  }
}

/* A text that some call of the op has for a parameter, or one that none should like. */
static const char *any_text (dice *d, job *j, int k, const char *key) {
  static const char *const odd[] = { "",   "none", "...",
                                     "->", ",",    "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz" };
  const char *text = said_of(call_at(j->op, (int)below(d, (unsigned)calls_of(j->op))), key);
  if (!text) text = j->call ? said_of(j->call, key) : NULL;
  if (!text || chance(d, 20)) return odd[below(d, sizeof odd / sizeof *odd)];
  size_t n = strcspn(text, ";");
  if (strstr(text, " => ") && (size_t)(strstr(text, " => ") - text) < n)
    n = (size_t)(strstr(text, " => ") - text);
  snprintf(j->text[k], sizeof j->text[k], "%.*s", (int)n, text);
  return j->text[k];
}

static void plan_attr (dice *d, job *j, int k, const peri_param *p) {
  peri_attr *a = &j->attr[k];
  char key[64];
  snprintf(key, sizeof key, "attr %s", p->name);
  const char *text = said_of(j->call, key);
  bool list = p->kind == PERI_K_DIMS || p->kind == PERI_K_SHAPE || p->kind == PERI_K_INTS;
  bool from_one = p->kind == PERI_K_DIM || p->kind == PERI_K_POS || p->kind == PERI_K_DIMS;
  *a = p->has_default ? p->def : (peri_attr){ 0 };
  if (text) {
    a->i = strtoll(text, NULL, 10) - (from_one && text[0] != '-');
    a->f = strtod(text, NULL);
    a->s = p->kind == PERI_K_STR ? any_text(d, j, k, key) : NULL;
    if (p->kind == PERI_K_BOOL) a->i = text[0] == 't';
    if (p->kind == PERI_K_DTYPE) a->i = any_dtype(d);
    if (list) {
      a->n = read_list(text, j->lists[k], 8);
      for (int i = 0; i < a->n; i++) j->lists[k][i] -= from_one && j->lists[k][i] > 0;
      a->v = j->lists[k];
    }
  }
  if (chance(d, text || p->has_default ? 80 : 30)) return;
  a->i = whole(d);
  a->f = number(d);
  if (p->kind == PERI_K_BOOL) a->i = chance(d, 90) ? (int64_t)below(d, 2) : whole(d);
  if (p->kind == PERI_K_DTYPE)
    a->i = chance(d, 70) ? any_dtype(d) : chance(d, 80) ? (int64_t)below(d, 27) - 2 : whole(d);
  if ((p->kind == PERI_K_DIM || p->kind == PERI_K_POS) && chance(d, 60))
    a->i = (int64_t)below(d, 8) - 4;
  if (p->kind == PERI_K_STR) a->s = chance(d, 5) ? NULL : any_text(d, j, k, key);
  if (list) {
    a->n = chance(d, 10) ? (int)below(d, 13) - 1 : (int)below(d, 5);
    for (int i = 0; i < 12; i++)
      j->lists[k][i] =
          chance(d, 75) ? (int64_t)below(d, 8) - (p->kind == PERI_K_DIMS ? 4 : 2) : whole(d);
    a->v = a->n > 0 && !chance(d, 1) ? j->lists[k] : NULL;
  }
}

static void plan_job (dice *d, job *j) {
  memset(j, 0, sizeof *j);
  j->op = peri_op_at((int)below(d, (unsigned)peri_op_count()));
  j->sig = peri__sig(j->op);
  j->call = call_at(j->op, chance(d, 50) ? 0 : (int)below(d, (unsigned)calls_of(j->op)));
  int each = chance(d, 70) ? 2 : (int)below(d, 4);
  for (int i = 0; i < j->sig->ntensor; i++) {
    bool list = j->sig->p[i].kind == PERI_K_TENSORS;
    for (int k = 0; k < (list ? each : 1) && j->nin < MAX_IN; k++)
      plan_tensor(d, j, &j->in[j->nin++], &j->sig->p[i], k);
  }
  if (chance(d, 30)) disturb_all(d, j);
  for (unsigned n = below(d, 4); n > 0 && j->nin > 0; n--)
    disturb(d, j, (int)below(d, (unsigned)j->nin));
  if (chance(d, 1)) j->nin = (int)below(d, (unsigned)j->nin + 2) % MAX_IN;
  for (int k = 0; k < j->sig->nattr; k++) plan_attr(d, j, k, &j->sig->p[j->sig->ntensor + k]);
  j->defaults = chance(d, 5);
  j->inplace = (j->op->flags & PERI_OP_ELEMENTWISE) && chance(d, 25);
  j->grad_off = chance(d, 25);
  j->graph = chance(d, 30);
  j->twice = chance(d, 30);
  j->anomaly = chance(d, 3) && !(j->op->flags & PERI_OP_INPLACE); /* found after the write */
  j->seed = mix(&d->more);
}

/* ---- tensors ---- */

static double value (uint64_t *s, int fill) {
  static const double wild[] = { 0,      -0.0,   1,     -1,    NAN,    INFINITY, -INFINITY,    1e30,
                                 -1e30,  1e-40,  65504, 1e300, 9.3e18, -9.3e18,  2147483648.0, 4e9,
                                 -1e-30, 3.4e38, 88.8,  -104,  710,    0.5 };
  uint64_t r = mix(s);
  switch (fill) {
  case IDS: return (double)(r % 3);
  case ZEROS: return 0;
  case UNIT: return (double)(r % 1000) / 1000 + 0.0005;
  case WILD: return wild[r % (sizeof wild / sizeof *wild)];
  default: return (double)(r % 4001) / 1000 - 2;
  }
}

static void put (int dtype, char *p, double v) {
  bool big = !(v > -9.2e18 && v < 9.2e18);
  int64_t i = big ? (v > 0 ? INT64_MAX : INT64_MIN) : (int64_t)v;
  uint16_t half = 0;
  float f = (float)v;
  int32_t w = (int32_t)(uint32_t)(uint64_t)i;
  switch (dtype) {
  case PERI_BOOL: *p = i & 1; break;
  case PERI_U8: *p = (char)(i & 255); break;
  case PERI_I32: memcpy(p, &w, 4); break;
  case PERI_I64: memcpy(p, &i, 8); break;
  case PERI_F16:
  case PERI_BF16:
    half = dtype == PERI_F16 ? peri__f32_to_f16(f) : peri__f32_to_bf16(f);
    memcpy(p, &half, 2);
    break;
  case PERI_F32: memcpy(p, &f, 4); break;
  default: memcpy(p, &v, 8);
  }
}

static peri_tensor *apply1 (peri_ctx *c, const char *op, peri_tensor *x, const peri_attr *attr) {
  peri_tensor *out = NULL;
  if (!x) return NULL;
  bool was = peri_set_grad_enabled(c, false);
  if (run_op(c, peri_op_find(op), 1, &x, attr, &out) != PERI_OK) out = NULL;
  peri_set_grad_enabled(c, was);
  peri_release(x);
  return out;
}

static peri_tensor *fresh (peri_ctx *c, const plan *p) {
  shape s = p->s;
  uint64_t seed = p->seed;
  peri_tensor *t = NULL;
  int last = s.n - 1;
  int64_t kept = s.n ? s.v[last] : 0, back = 0;
  if (p->layout == GAPS && s.n) s.v[last] += 3;
  if (p->layout == EXPANDED && s.n) s.v[0] = s.v[0] > 0 ? 1 : 0;
  if (p->layout == TURNED && s.n > 1) s.v[last] = p->s.v[0], s.v[0] = kept;
  if (peri_empty(c, (peri_dtype)p->dtype, s.n, s.v, &t) != PERI_OK) return NULL;
  size_t size = peri_dtype_size((peri_dtype)p->dtype);
  for (int64_t i = 0; i < peri_numel(t); i++)
    put(p->dtype, (char *)peri_data(t) + i * (int64_t)size, value(&seed, p->fill));
  if (p->weight) {
    static const int kinds[] = { PERI_Q8_0, PERI_Q4_0, PERI_Q4_1, PERI_Q5_0, PERI_Q5_1,
                                 PERI_Q4_K, PERI_Q5_K, PERI_Q6_K, -1,        -2 };
    int kind = kinds[p->seed % 10];
    if (kind >= 0) return apply1(c, "to", t, ATTR(A_INT(kind)));
    if (kind == -2) t = apply1(c, "to", t, ATTR(A_INT(PERI_Q8_0)));
    return apply1(c, "pack", t, NULL);
  }
  if (s.n == 0) return t;
  if (p->layout == TURNED && s.n > 1) return apply1(c, "transpose", t, ATTR(A_INT(0), A_INT(last)));
  if (p->layout == GAPS)
    return apply1(c, "narrow", t, ATTR(A_INT(last), A_INT(s.v[last] > 3 ? 1 : 0), A_INT(kept)));
  if (p->layout == EXPANDED) return apply1(c, "expand", t, ATTR(A_DIMS(p->s.v, p->s.n)));
  if (p->layout == FLIPPED) return apply1(c, "flip", t, ATTR(A_DIMS(&back, 1)));
  return t;
}

static bool build_inputs (peri_ctx *c, const job *j, peri_tensor **in) {
  for (int i = 0; i < j->nin; i++) {
    const plan *p = &j->in[i];
    in[i] = NULL;
    if (p->how == GONE) continue;
    if (p->how == SAME && in[p->same]) {
      if (!p->view)
        in[i] = peri_retain(in[p->same]);
      else if (peri_detach(in[p->same], &in[i]) != PERI_OK)
        return false;
      continue;
    }
    in[i] = fresh(c, p);
    if (!in[i]) return false;
    if (p->leaf && peri__is_float(in[i]->dtype) && !peri__opaque(in[i]))
      peri_set_requires_grad(in[i], true);
  }
  return true;
}

/* ---- telling ---- */

static void tell (const job *j) {
  static const char *const layouts[] = { "dense", "turned", "gaps", "expanded", "flipped" };
  static const char *const fills[] = { "small", "ids", "wild", "zeros", "unit" };
  fprintf(stderr, "%s%s(%s)%s%s%s%s%s\n", j->op->name, j->inplace ? "_" : "", j->op->sig,
          j->defaults ? " defaults" : "", j->graph ? " gradients" : "", j->twice ? " twice" : "",
          j->grad_off ? " no_grad" : "", j->anomaly ? " anomaly" : "");
  for (int i = 0; i < j->nin; i++) {
    const plan *p = &j->in[i];
    fprintf(stderr, "  %d: ", i + 1);
    if (p->how == GONE) {
      fprintf(stderr, "NULL\n");
      continue;
    }
    if (p->how == SAME)
      fprintf(stderr, "%s input %d, else ", p->view ? "a view of" : "the same as", p->same + 1);
    fprintf(stderr, "%s (", peri_dtype_name((peri_dtype)p->dtype));
    for (int k = 0; k < p->s.n; k++) fprintf(stderr, "%s%lld", k ? ", " : "", (long long)p->s.v[k]);
    fprintf(stderr, ") %s %s%s%s\n", layouts[p->layout], fills[p->fill], p->leaf ? " leaf" : "",
            p->weight ? " weight" : "");
  }
  for (int k = 0; k < j->sig->nattr; k++) {
    const peri_attr *a = &j->attr[k];
    fprintf(stderr, "  %s: i %lld f %.17g s %s n %d", j->sig->p[j->sig->ntensor + k].name,
            (long long)a->i, a->f, a->s ? a->s : "NULL", a->n);
    for (int i = 0; i < a->n && a->v; i++) fprintf(stderr, " %lld", (long long)a->v[i]);
    fprintf(stderr, "\n");
  }
}

#endif
