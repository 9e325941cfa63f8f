/* replay.c - replay buffers: opening, adding, priorities. See ring.h for how steps are stored. */
#include <math.h>
#include <stdio.h>

#include "env/ring.h"

static const char *const reserved[] = { "reward", "terminated", "truncated", "valid", "discount",
                                        "index",  "weight",     "mask",      NULL };

void peri_replay_options_init (peri_replay_options *o) {
  if (!o) return;
  *o = (peri_replay_options){
    .struct_size = sizeof *o, .rows = 1, .n_step = 1, .gamma = 0.99, .alpha = 0.6, .epsilon = 1e-6
  };
}

static peri_status check (peri_ctx *ctx, const peri_replay_options *o) {
  if (o->struct_size != sizeof *o)
    return peri__fail(ctx, PERI_EINVAL,
                      "struct_size is %u, expected %zu: use peri_replay_options_init",
                      o->struct_size, sizeof *o);
  if (o->capacity < 1 || o->rows < 1 || o->capacity > INT64_C(1) << 40 ||
      o->rows > INT64_C(1) << 31)
    return peri__fail(ctx, PERI_EINVAL,
                      "a capacity of %lld steps of %lld rows is out of range: at least 1 of 1",
                      (long long)o->capacity, (long long)o->rows);
  if (o->groups < 0 || (o->groups > 0 && o->rows % o->groups != 0))
    return peri__fail(ctx, PERI_EINVAL, "groups is %lld, expected a divisor of the %lld rows",
                      (long long)o->groups, (long long)o->rows);
  if (o->groups > 0 && o->prioritised)
    return peri__fail(ctx, PERI_EINVAL,
                      "%lld groups and priorities: a buffer with priorities has no groups",
                      (long long)o->groups);
  if (o->n_step < 1 || o->n_step > 65536)
    return peri__fail(ctx, PERI_EINVAL, "n_step is %lld, expected 1 to 65536",
                      (long long)o->n_step);
  if (!(o->gamma >= 0 && o->gamma <= 1))
    return peri__fail(ctx, PERI_EINVAL, "gamma is %g, expected a number from 0 to 1", o->gamma);
  if (!(o->alpha >= 0 && o->alpha <= 1))
    return peri__fail(ctx, PERI_EINVAL, "alpha is %g, expected a number from 0 to 1", o->alpha);
  if (!(o->epsilon >= 1e-100 && o->epsilon <= 1e100))
    return peri__fail(ctx, PERI_EINVAL, "epsilon is %g, expected a number above 0", o->epsilon);
  return PERI_OK;
}

/* ---- what goes in and comes out ---- */

static void column (peri__column *list, int *n, const char *before, const char *name,
                    peri__origin source, int field) {
  peri__column *c = &list[(*n)++];
  snprintf(c->name, sizeof c->name, "%s%s", before, name);
  c->source = source;
  c->field = field;
}

static void fields_of (const peri_replay *r, peri__column *list, int *n) {
  for (int i = 0; i < r->nfields; i++)
    column(list, n, "", r->field[i].is.name, PERI__FROM_FIELD, i);
  for (int i = 0; i < r->nfields; i++)
    if (r->field[i].is.role == PERI_FIELD_OBSERVED)
      column(list, n, "next_", r->field[i].is.name, PERI__FROM_NEXT, i);
  column(list, n, "", "reward", PERI__FROM_REWARD, 0);
  column(list, n, "", "terminated", PERI__FROM_TERMINATED, 0);
  column(list, n, "", "truncated", PERI__FROM_TRUNCATED, 0);
}

static peri_status name_columns (peri_replay *r) {
  fields_of(r, r->in, &r->nin);
  column(r->in, &r->nin, "", "valid", PERI__FROM_MASK, 0);
  fields_of(r, r->out, &r->nout);
  column(r->out, &r->nout, "", "discount", PERI__FROM_DISCOUNT, 0);
  column(r->out, &r->nout, "", "index", PERI__FROM_INDEX, 0);
  if (r->prioritised) column(r->out, &r->nout, "", "weight", PERI__FROM_WEIGHT, 0);
  int behind = r->nout;
  column(r->out, &behind, "", "mask", PERI__FROM_MASK, 0);
  for (int i = 0; i < r->nfields; i++) /* a field called next_obs beside an observed obs */
    for (int k = r->nfields; k < r->nin; k++)
      if (strcmp(r->in[i].name, r->in[k].name) == 0)
        return peri__fail(r->ctx, PERI_EINVAL, "field %s: the buffer has that name itself",
                          r->in[i].name);
  return PERI_OK;
}

/* ---- memory ---- */

static bool bytes_of (const peri_replay *r, size_t *total) {
  int64_t n;
  const peri__field flags = { .row = sizeof(float) + 1 + sizeof(uint32_t) };
  *total = sizeof *r;
  if (__builtin_mul_overflow(r->capacity, r->rows, &n) || n > INT64_MAX / 64) return false;
  for (int i = 0; i < r->nfields; i++) {
    const peri__field *f = &r->field[i].is;
    if (!peri__field_bytes(f, n, total)) return false;
    if (f->role == PERI_FIELD_OBSERVED && !peri__field_bytes(f, r->rows + r->room, total))
      return false;
  }
  return peri__field_bytes(&flags, n, total) &&
         (!r->prioritised || peri__sumtree_bytes(n, total)) && *total <= INT64_MAX;
}

static peri_status take_memory (peri_replay *r, double gamma) {
  int64_t steps[2] = { r->capacity, r->rows }, room = r->room, powers = r->n_step + 1;
  for (int i = 0; i < r->nfields; i++) {
    peri__ring_field *f = &r->field[i];
    TRY(peri__field_tensor(r->ctx, &f->is, 2, steps, &f->store));
    if (f->is.role != PERI_FIELD_OBSERVED) continue;
    TRY(peri__field_tensor(r->ctx, &f->is, 1, &r->rows, &f->after));
    memset(f->after->data, 0, peri_nbytes(f->after)); /* is saved before the first step, too */
    TRY(peri__field_tensor(r->ctx, &f->is, 1, &room, &f->ends));
  }
  TRY(peri__new(r->ctx, PERI_F32, 2, steps, &r->reward));
  TRY(peri__new(r->ctx, PERI_U8, 2, steps, &r->flags));
  TRY(peri__new(r->ctx, PERI_I32, 2, steps, &r->end));
  TRY(peri__new(r->ctx, PERI_F64, 1, &powers, &r->power));
  for (int64_t k = 0; k < powers; k++) ((double *)r->power->data)[k] = pow(gamma, (double)k);
  return r->prioritised ? peri__sumtree_open(r->ctx, r->capacity * r->rows, &r->tree) : PERI_OK;
}

void peri_replay_close (peri_replay *r) {
  if (!r) return;
  for (int i = 0; i < r->nfields; i++) {
    peri__field_drop(r->ctx, &r->field[i].is);
    peri_release(r->field[i].store);
    peri_release(r->field[i].after);
    peri_release(r->field[i].ends);
  }
  peri_release(r->reward);
  peri_release(r->flags);
  peri_release(r->end);
  peri_release(r->power);
  peri__sumtree_close(&r->tree);
  peri__free(r->ctx, r, sizeof *r);
}

static peri_status fill (peri_replay *r, const peri_replay_options *o) {
  peri__field taken[PERI__FIELDS_MAX];
  size_t bytes;
  TRY(peri__fields_take(r->ctx, o->nfields, o->fields, reserved, taken));
  r->nfields = o->nfields;
  for (int i = 0; i < r->nfields; i++) r->field[i].is = taken[i];
  for (int i = 0; i < r->nfields; i++) {
    static const char *const parts[3] = { "field", "after", "ends" };
    if (r->groups > 0 && taken[i].ndim > PERI_MAX_DIMS - 3)
      return peri__fail(r->ctx, PERI_EINVAL, "field %s has %d dims, at most %d with groups",
                        taken[i].name, taken[i].ndim, PERI_MAX_DIMS - 3);
    for (int k = 0; k < 3; k++)
      snprintf(r->field[i].saved[k], sizeof r->field[i].saved[k], "%s.%.*s", parts[k],
               PERI__NAME_MAX - 1, taken[i].name);
  }
  TRY(name_columns(r));
  if (!bytes_of(r, &bytes))
    return peri__fail(r->ctx, PERI_ESHAPE, "%lld steps of %lld rows overflow the size in bytes",
                      (long long)r->capacity, (long long)r->rows);
  peri_status s = take_memory(r, o->gamma);
  if (s != PERI_ENOMEM) return s;
  return peri__fail(r->ctx, s, "%lld steps of %lld rows need %zu bytes: %s", (long long)r->capacity,
                    (long long)r->rows, bytes, r->ctx->message);
}

peri_status peri_replay_open (peri_ctx *ctx, const peri_replay_options *o, peri_replay **out) {
  if (!ctx) return PERI_EINVAL;
  NEED(ctx, o);
  NEED(ctx, out);
  TRY(check(ctx, o));
  peri_replay *r = peri__malloc(ctx, sizeof *r);
  if (!r) return peri__fail(ctx, PERI_ENOMEM, "out of memory for a replay buffer");
  memset(r, 0, sizeof *r);
  r->ctx = ctx;
  r->capacity = o->capacity;
  r->rows = o->rows;
  r->groups = o->groups;
  r->n_step = o->n_step;
  r->prioritised = o->prioritised;
  r->alpha = o->alpha;
  r->epsilon = o->epsilon;
  r->seeded = o->seeded;
  r->rng.seed = o->seed;
  r->top = 1;
  r->room = 16;
  peri_status s = fill(r, o);
  if (s != PERI_OK) {
    peri_replay_close(r);
    return s;
  }
  *out = r;
  return PERI_OK;
}

int64_t peri_replay_size (const peri_replay *r) { return r ? r->filled * r->rows : 0; }
int64_t peri_replay_breaks (const peri_replay *r) { return r ? r->breaks : 0; }
size_t peri_replay_bytes (const peri_replay *r) {
  size_t n = 0;
  return r && bytes_of(r, &n) ? n : 0;
}
const char *peri_replay_input (const peri_replay *r, int i) {
  return r && i >= 0 && i < r->nin ? r->in[i].name : NULL;
}
const char *peri_replay_output (const peri_replay *r, bool sequences, int i) {
  return r && i >= 0 && i < r->nout + sequences ? r->out[i].name : NULL;
}

void peri_replay_clear (peri_replay *r) {
  if (!r) return;
  r->filled = r->next = r->breaks = r->skipped = 0;
  r->first = r->ending = 0;
  r->top = 1;
  if (r->prioritised) peri__sumtree_clear(&r->tree);
}

/* ---- ends ---- */

peri_status peri__ring_room (peri_replay *r, uint64_t ends) {
  uint64_t room = r->room;
  peri_tensor *grown[PERI__FIELDS_MAX] = { NULL };
  peri_status s = PERI_OK;
  while (room < ends) room *= 2;
  if (room == r->room) return PERI_OK;
  if (room > UINT64_C(1) << 31)
    return peri__fail(r->ctx, PERI_ENOMEM, "more than 2^31 ends of episodes");
  for (int i = 0; i < r->nfields && s == PERI_OK; i++)
    if (r->field[i].ends)
      s = peri__field_tensor(r->ctx, &r->field[i].is, 1, (int64_t[]){ (int64_t)room }, &grown[i]);
  for (int i = 0; i < r->nfields; i++) {
    peri__ring_field *f = &r->field[i];
    if (s != PERI_OK) peri_release(grown[i]);
    if (s != PERI_OK || !f->ends) continue;
    for (uint32_t k = 0; k < r->ending; k++) {
      uint32_t number = r->first + k;
      memcpy(peri__at(grown[i], number & (uint32_t)(room - 1), f->is.row),
             peri__at(f->ends, number & (r->room - 1), f->is.row), f->is.row);
    }
    peri_release(f->ends);
    f->ends = grown[i];
  }
  if (s == PERI_OK) r->room = (uint32_t)room;
  return s;
}

/* What position p led to is row `row` of in, each field's (rows, ...). */
static void end_at (peri_replay *r, int64_t p, int64_t row, peri_tensor *const *in) {
  uint32_t number = r->first + r->ending++;
  peri__ends(r)[p] = number;
  peri__flags(r)[p] |= PERI__ENDS;
  for (int i = 0; i < r->nfields; i++)
    if (r->field[i].ends)
      peri__row_copy(peri__at(r->field[i].ends, number & (r->room - 1), r->field[i].is.row),
                     peri__at(in[i], row, r->field[i].is.row), r->field[i].is.row);
}

/* ---- adding ---- */

/* A step that is added: dense tensors of what it is made of. */
typedef struct step {
  peri_tensor *now[PERI__FIELDS_MAX], *next[PERI__FIELDS_MAX]; /* next: of observed ones */
  peri_tensor *reward, *terminated, *truncated, *valid;
} step;

static peri_status scalars (peri_replay *r, const char *name, peri_dtype first, peri_dtype second,
                            peri_tensor *t, peri_tensor **out) {
  peri__field f = { .dtype = first };
  if (peri__alive(t) && t->dtype == second) f.dtype = second;
  return peri__field_rows(r->ctx, &f, name, r->rows, t, out);
}

static float reward_at (const peri_tensor *t, int64_t row) {
  return t->dtype == PERI_F32 ? ((const float *)t->data)[row]
                              : (float)((const double *)t->data)[row];
}

static peri_status check_rewards (peri_replay *r, const peri_tensor *t) {
  for (int64_t row = 0; row < r->rows; row++)
    if (!isfinite(reward_at(t, row)))
      return peri__fail(r->ctx, PERI_EINVAL,
                        "reward: row %s is %g, expected a finite number of f32",
                        peri__nth(r->ctx, row), (double)reward_at(t, row));
  return PERI_OK;
}

static peri_status take_step (peri_replay *r, peri_tensor *const *in, step *s) {
  for (int i = 0; i < r->nin; i++) {
    const peri__column *c = &r->in[i];
    if (!in[i] && c->source == PERI__FROM_MASK) continue;
    if (!in[i]) return peri__fail(r->ctx, PERI_EINVAL, "%s is missing", c->name);
    switch (c->source) {
    case PERI__FROM_FIELD:
      TRY(peri__field_rows(r->ctx, &r->field[c->field].is, c->name, r->rows, in[i],
                           &s->now[c->field]));
      break;
    case PERI__FROM_NEXT:
      TRY(peri__field_rows(r->ctx, &r->field[c->field].is, c->name, r->rows, in[i],
                           &s->next[c->field]));
      break;
    case PERI__FROM_REWARD:
      TRY(scalars(r, c->name, PERI_F32, PERI_F64, in[i], &s->reward));
      TRY(check_rewards(r, s->reward));
      break;
    case PERI__FROM_TERMINATED:
      TRY(scalars(r, c->name, PERI_BOOL, PERI_U8, in[i], &s->terminated));
      break;
    case PERI__FROM_TRUNCATED:
      TRY(scalars(r, c->name, PERI_BOOL, PERI_U8, in[i], &s->truncated));
      break;
    default: TRY(scalars(r, c->name, PERI_BOOL, PERI_U8, in[i], &s->valid));
    }
  }
  return PERI_OK;
}

static void drop_step (const peri_replay *r, step *s) {
  for (int i = 0; i < r->nfields; i++) {
    peri_release(s->now[i]);
    peri_release(s->next[i]);
  }
  peri_release(s->reward);
  peri_release(s->terminated);
  peri_release(s->truncated);
  peri_release(s->valid);
}

static bool is_set (const peri_tensor *t, int64_t row) {
  return ((const uint8_t *)t->data)[row] != 0;
}

/* Does a row go on from something else than what its last step led to? */
static bool breaks_at (const peri_replay *r, const step *s, int64_t row) {
  if (r->filled == 0 || (peri__flags(r)[peri__newest(r) * r->rows + row] & PERI__ENDS))
    return false;
  for (int i = 0; i < r->nfields; i++) {
    const peri__ring_field *f = &r->field[i];
    if (f->after && memcmp(peri__at(f->after, row, f->is.row), peri__at(s->now[i], row, f->is.row),
                           f->is.row) != 0)
      return true;
  }
  return false;
}

static void forget_oldest (peri_replay *r) {
  const uint8_t *flags = peri__flags(r) + r->next * r->rows;
  for (int64_t row = 0; row < r->rows; row++) {
    uint32_t ends = (flags[row] & PERI__ENDS) != 0;
    r->first += ends;
    r->ending -= ends;
    r->skipped -= (flags[row] & PERI__SKIPPED) != 0;
  }
}

static void put_step (peri_replay *r, const step *s) {
  int64_t p = r->next * r->rows;
  peri_tensor *after[PERI__FIELDS_MAX];
  for (int i = 0; i < r->nfields; i++) after[i] = r->field[i].after;
  for (int64_t row = 0; row < r->rows; row++)
    if (breaks_at(r, s, row)) {
      end_at(r, peri__newest(r) * r->rows + row, row, after);
      r->breaks++;
    }
  if (r->filled == r->capacity) forget_oldest(r);
  for (int i = 0; i < r->nfields; i++) {
    peri__ring_field *f = &r->field[i];
    size_t bytes = f->is.row * (size_t)r->rows;
    if (bytes) memcpy(peri__at(f->store, p, f->is.row), s->now[i]->data, bytes);
    if (f->after && bytes) memcpy(f->after->data, s->next[i]->data, bytes);
  }
  for (int64_t row = 0; row < r->rows; row++) {
    bool over = is_set(s->terminated, row), cut = is_set(s->truncated, row);
    bool skip = s->valid && !is_set(s->valid, row);
    peri__rewards(r)[p + row] = reward_at(s->reward, row);
    peri__flags(r)[p + row] = (uint8_t)((over ? PERI__TERMINATED : 0) |
                                        (cut ? PERI__TRUNCATED : 0) | (skip ? PERI__SKIPPED : 0));
    if (over || cut) end_at(r, p + row, row, s->next);
    if (r->prioritised) peri__sumtree_leaves(&r->tree)[p + row] = skip ? 0 : r->top;
    r->skipped += skip;
  }
  if (r->prioritised) peri__sumtree_range(&r->tree, p, p + r->rows);
  r->next = r->next + 1 < r->capacity ? r->next + 1 : 0;
  if (r->filled < r->capacity) r->filled++;
}

peri_status peri_replay_add (peri_replay *r, int nin, peri_tensor *const *in) {
  if (!r) return PERI_EINVAL;
  NEED(r->ctx, in);
  if (nin != r->nin)
    return peri__fail(r->ctx, PERI_EINVAL, "%d tensors are given, the buffer takes %d", nin,
                      r->nin);
  step s = { .reward = NULL };
  peri_status status = take_step(r, in, &s);
  if (status == PERI_OK) { /* with those of the oldest step, which goes after */
    uint64_t ends = r->ending;
    for (int64_t row = 0; row < r->rows; row++)
      ends +=
          (uint64_t)breaks_at(r, &s, row) + (is_set(s.terminated, row) || is_set(s.truncated, row));
    status = peri__ring_room(r, ends);
  }
  if (status == PERI_OK) put_step(r, &s);
  drop_step(r, &s);
  return status;
}

/* ---- priorities ---- */

static peri_status priorities (peri_replay *r, const peri_tensor *index, const peri_tensor *given,
                               double *value, double *top) {
  int64_t size = peri_replay_size(r);
  for (int64_t i = 0; i < index->numel; i++) {
    int64_t p = ((const int64_t *)index->data)[i];
    double v = given->dtype == PERI_F32 ? ((const float *)given->data)[i]
                                        : ((const double *)given->data)[i];
    if (p < 0 || p >= size)
      return peri__fail(r->ctx, PERI_EINVAL,
                        "index %lld at position %lld is out of range: the buffer holds %lld",
                        (long long)p, (long long)i, (long long)size);
    if (peri__flags(r)[p] & PERI__SKIPPED)
      return peri__fail(r->ctx, PERI_EINVAL,
                        "index %lld at position %lld is a step that is not valid", (long long)p,
                        (long long)i);
    if (v != v)
      return peri__fail(r->ctx, PERI_EINVAL, "the priority at position %lld (index %lld) is NaN",
                        (long long)i, (long long)p);
    if (!(v >= 0 && v <= 1e100))
      return peri__fail(r->ctx, PERI_EINVAL, "the priority at position %lld (index %lld) is %g: %s",
                        (long long)i, (long long)p, v,
                        v < 0 ? "give |delta|, from 0" : "it is too large");
    value[i] = pow(v + r->epsilon, r->alpha);
    *top = value[i] > *top ? value[i] : *top;
  }
  return PERI_OK;
}

peri_status peri_replay_prioritise (peri_replay *r, peri_tensor *index, peri_tensor *priority) {
  if (!r) return PERI_EINVAL;
  NEED(r->ctx, index);
  NEED(r->ctx, priority);
  if (!r->prioritised)
    return peri__fail(r->ctx, PERI_EINVAL, "this buffer has no priorities: it was not opened so");
  TRY(peri__want_index(r->ctx, index));
  peri_tensor *given = NULL;
  peri__field f = { .dtype = PERI_F32 };
  if (peri__alive(priority) && priority->dtype == PERI_F64) f.dtype = PERI_F64;
  TRY(peri__field_rows(r->ctx, &f, "priority", index->numel, priority, &given));
  size_t n = (size_t)index->numel;
  double *value = peri__block_get(r->ctx, (n + 1) * (sizeof *value + sizeof(int64_t)));
  double top = r->top;
  peri_status s = value ? priorities(r, index, given, value, &top)
                        : peri__fail(r->ctx, PERI_ENOMEM, "out of memory for %zu priorities", n);
  if (s == PERI_OK) {
    peri__sumtree_set(&r->tree, index->numel, (const int64_t *)index->data, value,
                      (int64_t *)(value + n));
    r->top = top;
  }
  peri__block_put(r->ctx, value);
  peri_release(given);
  return s;
}
