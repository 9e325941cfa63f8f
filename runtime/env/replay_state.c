/* replay_state.c - all that a replay buffer holds as named tensors, and back. See ring.h. */
#include "env/ring.h"
#include "op/op.h"

enum { CAPACITY, ROWS, FILLED, NEXT, BREAKS, SEEDED, SEED, OFFSET, NCURSOR };

/* The parts of a state, in its order. */
typedef enum part { FIELD, AFTER, ENDS, REWARD, FLAGS, PRIORITY, TOP, CURSOR, NPART } part;

typedef struct entry {
  part part;
  int field;
  const char *name;
  peri_dtype dtype;
  int ndim;
  int64_t shape[PERI_MAX_DIMS];
} entry;

/* Entry i of the state of a buffer with so many steps and ends; false behind the last. */
static bool entry_at (const peri_replay *r, int i, int64_t filled, int64_t ends, entry *e) {
  static const char *const names[NPART] = { [REWARD] = "reward",
                                            [FLAGS] = "flags",
                                            [PRIORITY] = "priority",
                                            [TOP] = "top",
                                            [CURSOR] = "cursor" };
  int64_t steps[2] = { filled, r->rows };
  for (int k = 0; k < r->nfields; k++)
    for (int p = FIELD; p <= ENDS; p++) {
      const peri__ring_field *f = &r->field[k];
      if (p != FIELD && !f->after) continue;
      if (i-- > 0) continue;
      *e = (entry){ .part = (part)p, .field = k, .name = f->saved[p], .dtype = f->is.dtype };
      e->ndim = p == FIELD   ? peri__field_shape(&f->is, 2, steps, e->shape)
                : p == AFTER ? peri__field_shape(&f->is, 1, &r->rows, e->shape)
                             : peri__field_shape(&f->is, 1, &ends, e->shape);
      return true;
    }
  for (int p = REWARD; p < NPART; p++) {
    if ((p == PRIORITY || p == TOP) && !r->prioritised) continue;
    if (i-- > 0) continue;
    *e = (entry){ .part = (part)p, .name = names[p], .ndim = p < TOP ? 2 : p == TOP ? 0 : 1 };
    e->dtype = p == REWARD ? PERI_F32 : p == FLAGS ? PERI_U8 : p == CURSOR ? PERI_I64 : PERI_F64;
    e->shape[0] = p == CURSOR ? NCURSOR : filled;
    e->shape[1] = r->rows;
    return true;
  }
  return false;
}

/* ---- saving ---- */

static peri_status view_of (peri_tensor *base, int64_t offset, const entry *e, peri_tensor **out) {
  int64_t stride[PERI_MAX_DIMS], step = 1;
  for (int i = e->ndim; i-- > 0; step *= e->shape[i]) stride[i] = step;
  return peri__view(base, offset, e->ndim, e->shape, stride, out);
}

static peri_status copy_of (const peri_replay *r, const entry *e, peri_tensor **out) {
  TRY(peri__new(r->ctx, e->dtype, e->ndim, e->shape, out));
  if (e->part == TOP) *(double *)(*out)->data = r->top;
  if (e->part == CURSOR) {
    const int64_t cursor[NCURSOR] = { r->capacity,
                                      r->rows,
                                      r->filled,
                                      r->next,
                                      r->breaks,
                                      r->seeded,
                                      (int64_t)r->rng.seed,
                                      (int64_t)r->rng.offset };
    memcpy((*out)->data, cursor, sizeof cursor);
  }
  if (e->part == ENDS) {
    const peri__ring_field *f = &r->field[e->field];
    for (uint32_t k = 0; k < r->ending; k++)
      peri__row_copy(peri__at(*out, k, f->is.row),
                     peri__at(f->ends, (r->first + k) & (r->room - 1), f->is.row), f->is.row);
  }
  return PERI_OK;
}

peri_status peri_replay_state (peri_replay *r, int i, const char **name, peri_tensor **out) {
  entry e;
  if (!r) return PERI_EINVAL;
  NEED(r->ctx, name);
  NEED(r->ctx, out);
  if (i < 0 || !entry_at(r, i, r->filled, r->ending, &e)) {
    *name = NULL;
    *out = NULL;
    return PERI_OK;
  }
  const peri__ring_field *f = &r->field[e.field];
  peri_tensor *t = NULL;
  switch (e.part) {
  case FIELD: TRY(view_of(f->store, 0, &e, &t)); break;
  case AFTER: TRY(view_of(f->after, 0, &e, &t)); break;
  case REWARD: TRY(view_of(r->reward, 0, &e, &t)); break;
  case FLAGS: TRY(view_of(r->flags, 0, &e, &t)); break;
  case PRIORITY: TRY(view_of(r->tree.sum, r->tree.width, &e, &t)); break;
  default: TRY(copy_of(r, &e, &t));
  }
  *name = e.name;
  *out = t;
  return PERI_OK;
}

/* ---- loading ---- */

typedef struct state { /* the tensors of a state by entry, dense, held */
  peri_tensor *t[3 * PERI__FIELDS_MAX + NPART];
  int n;
} state;

static int find (const char *name, int n, const char *const *names) {
  for (int i = 0; i < n; i++)
    if (names[i] && strcmp(names[i], name) == 0) return i;
  return -1;
}

static peri_status take (peri_replay *r, const entry *e, peri_tensor *t, peri_tensor **out) {
  char want[128], have[128];
  bool fits = t->dtype == e->dtype && t->ndim == e->ndim && !peri__opaque(t);
  for (int i = 0; fits && i < e->ndim; i++) fits = t->shape[i] == e->shape[i];
  if (!fits)
    return peri__fail(r->ctx, PERI_ESHAPE, "%s is %s %s, the buffer's is %s %s", e->name,
                      peri_dtype_name((peri_dtype)t->dtype), peri__shape_text(t, have, sizeof have),
                      peri_dtype_name(e->dtype),
                      peri__sizes_text(e->ndim, e->shape, want, sizeof want));
  return peri__contiguous(t, out);
}

static peri_status bad (peri_replay *r, const char *what) {
  return peri__fail(r->ctx, PERI_EFORMAT, "not the state of a replay buffer: %s", what);
}

static peri_status check_cursor (peri_replay *r, const int64_t *c) {
  if (c[CAPACITY] != r->capacity || c[ROWS] != r->rows)
    return peri__fail(
        r->ctx, PERI_ESHAPE, "the state is of %lld steps of %lld rows, the buffer has %lld of %lld",
        (long long)c[CAPACITY], (long long)c[ROWS], (long long)r->capacity, (long long)r->rows);
  bool fine = c[FILLED] >= 0 && c[FILLED] <= r->capacity && c[NEXT] >= 0 && c[NEXT] < r->capacity &&
              (c[FILLED] == r->capacity || c[NEXT] == c[FILLED]) && c[BREAKS] >= 0;
  return fine ? PERI_OK : bad(r, "its cursor points outside the ring");
}

static peri_status check_steps (peri_replay *r, const uint8_t *flags, const int64_t *cursor,
                                const double *priority, int64_t ends) {
  int64_t found = 0, newest = (cursor[NEXT] > 0 ? cursor[NEXT] : r->capacity) - 1;
  for (int64_t p = 0; p < cursor[FILLED] * r->rows; p++) {
    bool over = (flags[p] & (PERI__TERMINATED | PERI__TRUNCATED)) != 0, end = flags[p] & PERI__ENDS;
    if (flags[p] > 15 || (over && !end) || (end && !over && p / r->rows == newest))
      return bad(r, "flags that no step has");
    found += end;
    if (!priority) continue;
    bool skipped = flags[p] & PERI__SKIPPED;
    if (!(skipped ? priority[p] == 0 : priority[p] >= 1e-101 && priority[p] <= 1e101))
      return bad(r, "priorities that no step has");
  }
  return found == ends ? PERI_OK : bad(r, "as many ends as its flags say are missing or too many");
}

/* Every tensor by its entry, checked. */
static peri_status gather_state (peri_replay *r, int n, const char *const *names,
                                 peri_tensor *const *tensors, state *s) {
  entry e;
  int at = find("cursor", n, names);
  int64_t ends = 0;
  for (int i = 0; i < n; i++) TRY(peri__belongs(r->ctx, tensors[i], names[i]));
  if (at < 0) return bad(r, "it has no cursor");
  if (tensors[at]->dtype != PERI_I64 || tensors[at]->numel != NCURSOR || !peri__dense(tensors[at]))
    return bad(r, "its cursor has another form");
  const int64_t *cursor = (const int64_t *)tensors[at]->data;
  TRY(check_cursor(r, cursor));
  for (int i = 0; i < r->nfields; i++)
    if (r->field[i].ends && (at = find(r->field[i].saved[ENDS], n, names)) >= 0 &&
        tensors[at]->ndim > 0)
      ends = tensors[at]->shape[0];
  if (ends > INT64_C(1) << 31) return bad(r, "more than 2^31 ends");
  const uint8_t *flags = NULL;
  const double *priority = NULL;
  for (; entry_at(r, s->n, cursor[FILLED], ends, &e); s->n++) {
    if ((at = find(e.name, n, names)) < 0)
      return peri__fail(r->ctx, PERI_EINVAL, "the state has no %s", e.name);
    TRY(take(r, &e, tensors[at], &s->t[s->n]));
    if (e.part == FLAGS) flags = (const uint8_t *)s->t[s->n]->data;
    if (e.part == PRIORITY) priority = (const double *)s->t[s->n]->data;
    if (e.part == TOP) {
      double top = *(const double *)s->t[s->n]->data;
      if (!(top > 0 && top <= 1e101)) return bad(r, "a largest priority that there is not");
    }
  }
  for (int i = 0; i < n; i++) {
    bool known = false;
    for (int k = 0; !known && entry_at(r, k, cursor[FILLED], ends, &e); k++)
      known = strcmp(e.name, names[i]) == 0;
    if (!known)
      return peri__fail(r->ctx, PERI_EINVAL, "the state has %s, which the buffer has not",
                        names[i]);
  }
  bool observes = false;
  for (int i = 0; i < r->nfields; i++) observes = observes || r->field[i].ends;
  int64_t counted = ends;
  if (!observes) /* nothing is stored of ends then: they are what the flags say */
    for (int64_t p = counted = 0; p < cursor[FILLED] * r->rows; p++)
      counted += (flags[p] & PERI__ENDS) != 0;
  TRY(check_steps(r, flags, cursor, priority, counted));
  return peri__ring_room(r, (uint64_t)counted);
}

static void copy_in (peri_tensor *to, const peri_tensor *from) {
  size_t bytes = peri_nbytes(from);
  if (bytes) memmove(to->data, from->data, bytes);
}

/* Ends are numbered as they were: by steps, of one step first those of episodes. */
static void number_ends (peri_replay *r) {
  uint8_t *flags = peri__flags(r);
  r->first = r->ending = 0;
  for (int64_t i = 0; i < r->filled; i++) {
    int64_t slot = (peri__oldest(r) + i) % r->capacity;
    for (int breaks = 0; breaks < 2; breaks++)
      for (int64_t p = slot * r->rows; p < (slot + 1) * r->rows; p++) {
        bool over = (flags[p] & (PERI__TERMINATED | PERI__TRUNCATED)) != 0;
        if ((flags[p] & PERI__ENDS) && over == !breaks) peri__ends(r)[p] = r->ending++;
      }
  }
}

static void put_state (peri_replay *r, const state *s) {
  entry e;
  const int64_t *c = (const int64_t *)s->t[s->n - 1]->data; /* the cursor comes last */
  for (int i = 0; entry_at(r, i, c[FILLED], 0, &e); i++) {
    const peri__ring_field *f = &r->field[e.field];
    if (e.part == FIELD) copy_in(f->store, s->t[i]);
    if (e.part == AFTER) copy_in(f->after, s->t[i]);
    if (e.part == ENDS) copy_in(f->ends, s->t[i]);
    if (e.part == REWARD) copy_in(r->reward, s->t[i]);
    if (e.part == FLAGS) copy_in(r->flags, s->t[i]);
    if (e.part == TOP) r->top = *(const double *)s->t[i]->data;
    if (e.part != PRIORITY) continue;
    double *leaf = peri__sumtree_leaves(&r->tree);
    if (c[FILLED] > 0) memmove(leaf, s->t[i]->data, peri_nbytes(s->t[i]));
    for (int64_t p = c[FILLED] * r->rows; p < r->tree.width; p++) leaf[p] = 0;
    peri__sumtree_range(&r->tree, 0, r->tree.width);
  }
  r->filled = c[FILLED];
  r->next = c[NEXT];
  r->breaks = c[BREAKS];
  r->seeded = c[SEEDED] != 0;
  r->rng = (peri_rng){ .seed = (uint64_t)c[SEED], .offset = (uint64_t)c[OFFSET] };
  r->skipped = 0;
  for (int64_t p = 0; p < r->filled * r->rows; p++)
    r->skipped += (peri__flags(r)[p] & PERI__SKIPPED) != 0;
  number_ends(r);
}

peri_status peri_replay_restore (peri_replay *r, int n, const char *const *names,
                                 peri_tensor *const *tensors) {
  if (!r) return PERI_EINVAL;
  NEED(r->ctx, names);
  NEED(r->ctx, tensors);
  for (int i = 0; i < n; i++) NEED(r->ctx, names[i]);
  state s = { .n = 0 };
  peri_status status = gather_state(r, n, names, tensors, &s);
  if (status == PERI_OK) put_state(r, &s);
  for (int i = 0; i < (int)(sizeof s.t / sizeof *s.t); i++) peri_release(s.t[i]);
  return status;
}
