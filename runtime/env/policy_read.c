/*
** policy_read.c - policy files: safetensors whose metadata entry "perilune.policy" is JSON. It says the
** spaces, what a row remembers, the program (a list of ops over named values) and the head:
**
**   { "version": 1, "environment": "CartPole-v1",
**     "observation": { "kind": "box", "dtype": "f32", "shape": [4], "low": [...], "high": [...] },
**     "action": { "kind": "discrete", "n": 2, "start": 0 },
**     "state": [ { "name": "h", "shape": [64] } ],
**     "program": [ { "op": "linear", "in": ["obs", "0.weight", "0.bias"], "out": ["a"], "attr": {} } ],
**     "head": { "kind": "categorical", "in": ["a"] } }
**
** Values are "obs", tensors of the file, states, and outs of earlier steps. Unknown keys, names and ops
** are refused, and so are ops that write in place. Keys may stand in any order.
*/
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/json.h"
#include "env/policy.h"

#define KEY "perilune.policy"

typedef struct reader {
  peri_json json;
  peri_policy *p;
  peri_safetensors *file;
} reader;

static peri_status refuse (reader *r, const peri_json_value *v, const char *what) {
  return peri_json_fail(&r->json, v->offset, "%s", what);
}

static peri_status expect (reader *r, peri_json_type type, const char *what, peri_json_value *v) {
  return peri_json_expect(&r->json, type, what, v);
}

/* A key of the open object, or its end: *more is false then. */
static peri_status next_key (reader *r, peri_json_value *v, bool *more) {
  TRY(peri_json_next(&r->json, v));
  *more = v->type == PERI_JSON_KEY;
  return PERI_OK;
}

static peri_status copy_name (reader *r, const peri_json_value *v, char *out, size_t size) {
  if (v->n >= size || memchr(v->s, 0, v->n))
    return peri_json_fail(&r->json, v->offset,
                          "a name of %zu bytes; at most %zu, none of them zero", v->n, size - 1);
  memcpy(out, v->s, v->n);
  out[v->n] = 0;
  return PERI_OK;
}

/* Make room for one more of an array of n elements. */
static peri_status grow (reader *r, void **list, int n, int most, size_t size, const char *what) {
  if (n >= most) return peri_json_fail(&r->json, r->json.pos, "more than %d %s", most, what);
  void *more = peri__realloc(r->p->ctx, *list, (size_t)n * size, ((size_t)n + 1) * size);
  if (!more) return peri__fail(r->p->ctx, PERI_ENOMEM, "no memory for a policy");
  *list = more;
  memset((char *)more + (size_t)n * size, 0, size);
  return PERI_OK;
}

/* ---- numbers ---- */

static peri_status number (reader *r, const char *what, peri_json_value *v) {
  TRY(peri_json_next(&r->json, v));
  if (v->type == PERI_JSON_INT || v->type == PERI_JSON_NUM) return PERI_OK;
  return peri_json_fail(&r->json, v->offset, "%s is not a number", what);
}

/* ---- values by name ---- */

static int find_slot (const peri_policy *p, const char *name) {
  for (int i = 0; i < p->nslots; i++)
    if (strcmp(p->slot[i].name, name) == 0) return i;
  return -1;
}

static peri_status new_slot (reader *r, const char *name, int *out) {
  peri_policy *p = r->p;
  void *list = p->slot;
  TRY(grow(r, &list, p->nslots, PERI_POLICY_SLOTS, sizeof *p->slot, "values"));
  p->slot = list;
  *out = p->nslots++;
  strcpy(p->slot[*out].name, name);
  return PERI_OK;
}

/* A value that is there already, or a tensor of the file. */
static peri_status use (reader *r, const peri_json_value *v, int *out) {
  char name[PERI_POLICY_NAME];
  TRY(copy_name(r, v, name, sizeof name));
  *out = find_slot(r->p, name);
  if (*out >= 0) return PERI_OK;
  int64_t i = peri_safetensors_find(r->file, name);
  if (i < 0)
    return peri_json_fail(&r->json, v->offset, "'%s' is no tensor of the file and no earlier value",
                          name);
  TRY(new_slot(r, name, out));
  return peri_safetensors_tensor(r->file, i, &r->p->slot[*out].constant);
}

/* A value that a step gives: a new one, or one that is no tensor of the file and not the observation. */
static peri_status give (reader *r, const peri_json_value *v, int *out) {
  char name[PERI_POLICY_NAME];
  TRY(copy_name(r, v, name, sizeof name));
  *out = find_slot(r->p, name);
  if (*out == 0 || (*out > 0 && r->p->slot[*out].constant) ||
      peri_safetensors_find(r->file, name) >= 0)
    return peri_json_fail(&r->json, v->offset, "'%s' may not be written", name);
  return *out > 0 ? PERI_OK : new_slot(r, name, out);
}

/* As use; null, an optional input that is left out, does not come here. */
static peri_status use_or_none (reader *r, const peri_json_value *v, int *out) {
  return use(r, v, out);
}

/* Names of an array into list; fn looks each up. */
static peri_status names (reader *r, const char *what, int most, int *n, int *list,
                          peri_status (*fn)(reader *, const peri_json_value *, int *)) {
  peri_json_value v;
  TRY(expect(r, PERI_JSON_ARRAY, what, &v));
  for (*n = 0;; ++*n) {
    TRY(peri_json_next(&r->json, &v));
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    if (*n == most)
      return peri_json_fail(&r->json, v.offset, "%s has more than %d names", what, most);
    if (v.type == PERI_JSON_NULL && fn == use_or_none) {
      list[*n] = -1;
      continue;
    }
    if (v.type != PERI_JSON_STRING)
      return peri_json_fail(&r->json, v.offset, "%s holds something that is no name", what);
    TRY(fn(r, &v, &list[*n]));
  }
}

static peri_status read_states (reader *r) {
  peri_json_value v, key;
  bool more;
  TRY(expect(r, PERI_JSON_ARRAY, "state", &v));
  for (;;) {
    peri__slot s = { .state = true, .ndim = -1 };
    TRY(peri_json_next(&r->json, &v));
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    if (v.type != PERI_JSON_OBJECT) return refuse(r, &v, "a state is no object");
    for (;;) {
      TRY(next_key(r, &key, &more));
      if (!more) break;
      if (peri__json_is(&key, "name")) {
        TRY(expect(r, PERI_JSON_STRING, "name", &key));
        TRY(copy_name(r, &key, s.name, sizeof s.name));
      } else if (peri__json_is(&key, "shape"))
        TRY(peri__shape_read(&r->json, &s.ndim, s.shape));
      else
        return refuse(r, &key, "a key that states do not have");
    }
    if (!s.name[0] || s.ndim < 0) return refuse(r, &v, "a state needs name and shape");
    if (find_slot(r->p, s.name) >= 0 || peri_safetensors_find(r->file, s.name) >= 0)
      return refuse(r, &v, "a state has the name of another value");
    int at;
    TRY(new_slot(r, s.name, &at));
    r->p->slot[at] = s;
  }
}

/* ---- the program ---- */

static const peri_param *find_param (const peri_op *op, const char *name) {
  for (int i = 0; i < peri_op_params(op); i++) {
    const peri_param *p = peri_op_param(op, i);
    if (strcmp(p->name, name) == 0) return p;
  }
  return NULL;
}

static peri_status read_ints (reader *r, int64_t *list, peri_arg *a) {
  peri_json_value v;
  for (a->n = 0;; a->n++) {
    TRY(peri_json_next(&r->json, &v));
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    if (v.type != PERI_JSON_INT || a->n == PERI_POLICY_INTS)
      return peri_json_fail(&r->json, v.offset, "expected at most %d integers", PERI_POLICY_INTS);
    list[a->n] = v.i;
  }
}

static peri_status read_attr (reader *r, peri__policy_step *s) {
  int i = s->nattr++;
  peri_arg *a = &s->attr[i];
  peri_json_value v;
  TRY(peri_json_next(&r->json, &v));
  switch (v.type) {
  case PERI_JSON_INT: *a = peri_int(NULL, v.i); return PERI_OK;
  case PERI_JSON_NUM: *a = peri_num(NULL, v.f); return PERI_OK;
  case PERI_JSON_BOOL: *a = peri_bool(NULL, v.flag); return PERI_OK;
  case PERI_JSON_STRING:
    *a = peri_str(NULL, NULL);
    return copy_name(r, &v, s->text[i][1], sizeof s->text[i][1]);
  case PERI_JSON_ARRAY: *a = peri_ints(NULL, 0, NULL); return read_ints(r, s->ints[i], a);
  default: return refuse(r, &v, "an attribute is no number, flag, text or list of integers");
  }
}

static peri_status read_attrs (reader *r, peri__policy_step *s) {
  peri_json_value v, key;
  bool more;
  TRY(expect(r, PERI_JSON_OBJECT, "attr", &v));
  for (;;) {
    TRY(next_key(r, &key, &more));
    if (!more) return PERI_OK;
    if (s->nattr == PERI_POLICY_ATTRS) return refuse(r, &key, "more attributes than 8");
    TRY(copy_name(r, &key, s->text[s->nattr][0], sizeof s->text[0][0]));
    TRY(read_attr(r, s));
  }
}

static peri_status read_op (reader *r, peri__policy_step *s) {
  peri_json_value v;
  char name[64];
  TRY(expect(r, PERI_JSON_STRING, "op", &v));
  TRY(copy_name(r, &v, name, sizeof name));
  s->op = peri_op_find(name);
  if (!s->op || (s->op->flags & PERI_OP_INPLACE))
    return peri_json_fail(&r->json, v.offset, "'%s' is no op that a policy can use", name);
  const peri_param *first = peri_op_param(s->op, 0);
  s->list = first && first->kind == PERI_K_TENSORS;
  return PERI_OK;
}

/* Attributes against the op, which may stand behind them. */
static peri_status check_attrs (reader *r, const peri_json_value *at, peri__policy_step *s) {
  for (int i = 0; i < s->nattr; i++) {
    const peri_param *p = find_param(s->op, s->text[i][0]);
    peri_dtype d;
    if (!p || p->kind <= PERI_K_TENSORS)
      return peri_json_fail(&r->json, at->offset, "%s has no attribute '%s'", s->op->name,
                            s->text[i][0]);
    if (p->kind != PERI_K_DTYPE || s->attr[i].given != PERI_ARG_STR) continue;
    if (!peri_dtype_parse(s->text[i][1], &d))
      return peri_json_fail(&r->json, at->offset, "no dtype is called '%s'", s->text[i][1]);
    s->attr[i] = peri_type(NULL, d);
  }
  return PERI_OK;
}

static peri_status read_step (reader *r, const peri_json_value *at, peri__policy_step *s) {
  peri_json_value key;
  bool more;
  for (;;) {
    TRY(next_key(r, &key, &more));
    if (!more) break;
    if (peri__json_is(&key, "op"))
      TRY(read_op(r, s));
    else if (peri__json_is(&key, "in"))
      TRY(names(r, "in", PERI_POLICY_IN, &s->nin, s->in, use_or_none));
    else if (peri__json_is(&key, "out"))
      TRY(names(r, "out", PERI_MAX_OUT, &s->nout, s->out, give));
    else if (peri__json_is(&key, "attr"))
      TRY(read_attrs(r, s));
    else
      return refuse(r, &key, "a key that steps do not have");
  }
  if (!s->op || s->nin < 1 || s->nout < 1) return refuse(r, at, "a step needs op, in and out");
  if (s->nout > peri_op_outputs(s->op))
    return refuse(r, at, "a step with more outs than the op has");
  TRY(check_attrs(r, at, s));
  for (int i = 0; i < s->nin; i++) {
    const peri__slot *v = s->in[i] < 0 ? NULL : &r->p->slot[s->in[i]];
    if (s->in[i] > 0 && !v->constant && !v->state && !v->known)
      return peri_json_fail(&r->json, at->offset, "'%s' is read before a step has given it",
                            v->name);
  }
  for (int i = 0; i < s->nout; i++) r->p->slot[s->out[i]].known = true;
  return PERI_OK;
}

static peri_status read_program (reader *r) {
  peri_json_value v;
  peri_policy *p = r->p;
  TRY(expect(r, PERI_JSON_ARRAY, "program", &v));
  for (;;) {
    TRY(peri_json_next(&r->json, &v));
    if (v.type == PERI_JSON_CLOSE) return PERI_OK;
    if (v.type != PERI_JSON_OBJECT) return refuse(r, &v, "a step is no object");
    void *list = p->step;
    TRY(grow(r, &list, p->nsteps, PERI_POLICY_STEPS, sizeof *p->step, "steps"));
    p->step = list;
    TRY(read_step(r, &v, &p->step[p->nsteps++]));
  }
}

/* ---- the head ---- */

/* ORDER policy head */
static const struct {
  const char *name;
  int least, most; /* values that it reads */
  bool real;       /* for Box actions */
} heads[PERI_NHEAD] = { { "categorical", 1, 1, false }, { "bernoulli", 1, 1, false },
                        { "greedy", 1, 1, false },      { "gaussian", 2, 2, true },
                        { "squashed", 2, 2, true },     { "tanh", 1, 1, true } };

static peri_status check_head (reader *r, const peri_json_value *at, int n) {
  peri_policy *p = r->p;
  const peri_space *s = &p->action;
  if (n < heads[p->head].least || n > heads[p->head].most)
    return peri_json_fail(&r->json, at->offset, "head %s reads %d values, not %d",
                          heads[p->head].name, heads[p->head].most, n);
  bool fits = heads[p->head].real == (s->kind == PERI_SPACE_BOX) &&
              (p->head == PERI_HEAD_BERNOULLI) == (s->kind == PERI_SPACE_MULTI_BINARY);
  if (!fits)
    return peri_json_fail(&r->json, at->offset, "head %s does not fit the action space",
                          heads[p->head].name);
  if (heads[p->head].real && s->dtype != PERI_F32 && s->dtype != PERI_F64)
    return refuse(r, at, "Box actions are f32 or f64");
  for (int64_t i = 0; p->head > PERI_HEAD_GAUSSIAN && i < peri_space_size(s); i++) {
    double low = s->lows ? s->lows[i] : s->low, high = s->highs ? s->highs[i] : s->high;
    if (!(low > -INFINITY && high < INFINITY && low <= high))
      return peri_json_fail(&r->json, at->offset, "head %s needs finite bounds",
                            heads[p->head].name);
  }
  return PERI_OK;
}

static peri_status read_head (reader *r) {
  peri_json_value v, key, at;
  peri_policy *p = r->p;
  bool more;
  int n = 0;
  p->head = PERI_NHEAD;
  TRY(expect(r, PERI_JSON_OBJECT, "head", &at));
  for (;;) {
    TRY(next_key(r, &key, &more));
    if (!more) break;
    if (peri__json_is(&key, "kind")) {
      TRY(expect(r, PERI_JSON_STRING, "kind", &v));
      for (int i = 0; i < PERI_NHEAD; i++)
        if (peri__json_is(&v, heads[i].name)) p->head = (peri__head)i;
      if (p->head == PERI_NHEAD) return refuse(r, &v, "a head that policies do not have");
    } else if (peri__json_is(&key, "in"))
      TRY(names(r, "in", 2, &n, p->result, use));
    else if (peri__json_is(&key, "epsilon")) {
      TRY(number(r, "epsilon", &v));
      if (!(v.f >= 0 && v.f <= 1)) return refuse(r, &v, "epsilon is not from 0 to 1");
      p->epsilon = v.f;
    } else
      return refuse(r, &key, "a key that heads do not have");
  }
  if (p->head == PERI_NHEAD) return refuse(r, &at, "a head without a kind");
  for (int i = 0; i < n; i++) {
    const peri__slot *s = &p->slot[p->result[i]];
    if (p->result[i] > 0 && !s->constant && !s->state && !s->known)
      return peri_json_fail(&r->json, at.offset, "head reads '%s', which no step gives", s->name);
  }
  for (int i = n; i < 2; i++) p->result[i] = -1;
  return check_head(r, &at, n);
}

/* ---- the whole ---- */

/* Members may stand in any order, but need each other: the text is read three times. */
static const struct {
  const char *name;
  int round;
} members[] = { { "version", 0 }, { "environment", 0 }, { "observation", 0 }, { "action", 0 },
                { "state", 0 },   { "program", 1 },     { "head", 2 } };
#define NMEMBER ((int)(sizeof members / sizeof *members))

static peri_status read_member (reader *r, int which) {
  peri_json_value v;
  peri_policy *p = r->p;
  switch (which) {
  case 0:
    TRY(expect(r, PERI_JSON_INT, "version", &v));
    if (v.i == 1) return PERI_OK;
    return peri_json_fail(&r->json, v.offset, "version %" PRId64 ", expected 1", v.i);
  case 1:
    TRY(expect(r, PERI_JSON_STRING, "environment", &v));
    return copy_name(r, &v, p->env, sizeof p->env);
  case 2: return peri__space_read(&r->json, &p->obs);
  case 3: return peri__space_read(&r->json, &p->action);
  case 4: return read_states(r);
  case 5: return read_program(r);
  default: return read_head(r);
  }
}

static peri_status read_round (reader *r, int round, bool found[NMEMBER]) {
  peri_json_value v, key, value;
  bool more;
  TRY(expect(r, PERI_JSON_OBJECT, "a policy", &v));
  for (;;) {
    int i = 0;
    TRY(next_key(r, &key, &more));
    if (!more) return peri_json_expect(&r->json, PERI_JSON_END, "the end", &v);
    while (i < NMEMBER && !peri__json_is(&key, members[i].name)) i++;
    if (i == NMEMBER) return refuse(r, &key, "a key that policies do not have");
    found[i] = true;
    if (members[i].round == round) {
      TRY(read_member(r, i));
      continue;
    }
    TRY(peri_json_next(&r->json, &value));
    TRY(peri__json_skip(&r->json, &value));
  }
}

static peri_status read_text (reader *r, const char *text) {
  bool found[NMEMBER] = { false };
  int at;
  TRY(new_slot(r, "obs", &at));
  for (int round = 0; round < 3; round++) {
    peri_json_open(&r->json, r->p->ctx, text, strlen(text), NULL);
    peri_status s = read_round(r, round, found);
    for (int i = 0; i < NMEMBER && s == PERI_OK; i++)
      if (!found[i] && strcmp(members[i].name, "state") != 0)
        s = peri_json_fail(&r->json, 0, "a policy needs '%s'", members[i].name);
    peri_json_close(&r->json);
    TRY(s);
  }
  return PERI_OK;
}

static peri_status make_room (peri_policy *p) {
  size_t bytes = (size_t)p->nslots * sizeof *p->value;
  p->value = peri__malloc(p->ctx, bytes);
  p->memory = peri__malloc(p->ctx, bytes);
  if (p->value) memset(p->value, 0, bytes);
  if (p->memory) memset(p->memory, 0, bytes);
  return p->value && p->memory ? PERI_OK
                               : peri__fail(p->ctx, PERI_ENOMEM, "no memory for a policy");
}

static peri_status read_file (reader *r) {
  for (int64_t i = 0; i < peri_safetensors_pairs(r->file); i++) {
    peri_text_pair pair = peri_safetensors_pair(r->file, i);
    if (strcmp(pair.key, KEY) != 0) continue;
    TRY(read_text(r, pair.value));
    return make_room(r->p);
  }
  return peri__fail(r->p->ctx, PERI_EFORMAT, "no policy: the metadata has no entry '" KEY "'");
}

peri_status peri__policy_read (peri_policy *p, const char *path) {
  reader r = { .p = p };
  TRY(peri_safetensors_open(p->ctx, path, false, &r.file));
  peri_status s = read_file(&r);
  peri_safetensors_close(r.file);
  if (s == PERI_OK) return s;
  return peri__fail(p->ctx, s, "%s: %s", path, p->ctx->message);
}
