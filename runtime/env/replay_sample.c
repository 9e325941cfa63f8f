/*
** replay_sample.c - what is drawn from a replay buffer. First positions, on the caller's thread; then each
** output is gathered row by row, in pieces that threads may take: a sample is a function of the buffer and
** of the generator's state alone.
*/
#include <math.h>

#include "env/draw.h"
#include "env/ring.h"

#define STREAM UINT64_C(0x7265706c61792121) /* keeps a buffer apart from ops with the same seed */

/* ---- random positions ---- */

static int64_t groups_of (const peri_replay *r) { return r->groups > 0 ? r->groups : 1; }

/* The position of step i of a group of `width` rows of which `row` is the first. */
static inline int64_t of_group (const peri_replay *r, int64_t i, int64_t row, int64_t width) {
  return width == r->rows ? i : i / width * r->rows + row + i % width;
}

/* n positions of each group, one group after the other. */
static void draw_uniform (const peri_replay *r, peri__words *s, int64_t n, int64_t *drawn) {
  const uint8_t *flags = peri__flags(r);
  int64_t width = r->rows / groups_of(r);
  uint64_t size = (uint64_t)(r->filled * width);
  for (int64_t row = 0; row < r->rows; row += width)
    for (int64_t i = 0; i < n; i++, drawn++) do
        *drawn = of_group(r, peri__below(s, size), row, width);
      while (r->skipped > 0 && (flags[*drawn] & PERI__SKIPPED));
}

/* The first row of a group without a step that may be drawn, -1: there is none such. */
static int64_t group_without (const peri_replay *r) {
  const uint8_t *flags = peri__flags(r);
  int64_t width = r->rows / groups_of(r), size = r->filled * width;
  if (r->skipped < size) return -1;
  for (int64_t row = 0; row < r->rows; row += width) {
    int64_t i = 0;
    while (i < size && (flags[of_group(r, i, row, width)] & PERI__SKIPPED)) i++;
    if (i == size) return row;
  }
  return -1;
}

static void draw_by_priority (const peri_replay *r, peri__words *s, int64_t n, double *point,
                              int64_t *drawn) {
  double part = peri__sumtree_total(&r->tree) / (double)n;
  for (int64_t i = 0; i < n; i++)
    point[i] = ((double)i + (double)(peri__two_words(s) >> 11) * 0x1p-53) * part;
  peri__sumtree_find(&r->tree, n, point, drawn);
}

/* ---- what surrounds a position ---- */

typedef struct place { /* what is asked of the ring at every step of a walk */
  const uint8_t *flags;
  int64_t rows, end;      /* positions of a full ring */
  int64_t newest, oldest; /* first positions of these slots */
} place;

static place place_of (const peri_replay *r) {
  return (place){ peri__flags(r), r->rows, r->capacity * r->rows, peri__newest(r) * r->rows,
                  peri__oldest(r) * r->rows };
}

static inline bool in_slot (const place *g, int64_t p, int64_t slot) {
  return p >= slot && p < slot + g->rows;
}

/* The position of the next step of p's episode, -1: none. */
static inline int64_t after (const place *g, int64_t p) {
  if ((g->flags[p] & PERI__ENDS) || in_slot(g, p, g->newest)) return -1;
  p = p + g->rows < g->end ? p + g->rows : p + g->rows - g->end;
  return g->flags[p] & PERI__SKIPPED ? -1 : p;
}

static inline int64_t before (const place *g, int64_t p) {
  if (in_slot(g, p, g->oldest)) return -1;
  p = p >= g->rows ? p - g->rows : p - g->rows + g->end;
  return g->flags[p] & (PERI__ENDS | PERI__SKIPPED) ? -1 : p;
}

/* One line of positions and of mask for each drawn step. */
static void surround (const peri_replay *r, int64_t n, int64_t length, int64_t burn_in,
                      const int64_t *drawn, int64_t *index, float *mask) {
  const place g = place_of(r);
  int64_t total = burn_in + length;
  for (int64_t i = 0; i < n; i++, index += total, mask += total) {
    int64_t p = drawn[i], earlier = 0, t = 0;
    for (int64_t q; earlier < burn_in && (q = before(&g, p)) >= 0; earlier++) p = q;
    for (; p >= 0 && t < earlier + length; t++, p = after(&g, p)) {
      index[t] = p;
      mask[t] = t < earlier ? 0.0f : 1.0f;
    }
    for (; t < total; t++) index[t] = -1, mask[t] = 0;
  }
}

/* ---- gathering ---- */

typedef struct work {
  const peri_replay *r;
  place g;
  int64_t line;         /* positions of a sequence; 1: of a transition */
  const int64_t *index; /* -1: nothing is there */
  int64_t *last;        /* of the steps that each sums; index itself where that is one step */
  peri_tensor **out;
} work;

static void sum_rewards (const work *w, int64_t begin, int64_t end) {
  const peri_replay *r = w->r;
  const float *reward = peri__rewards(r);
  const double *power = (const double *)r->power->data;
  float *sum = NULL, *discount = NULL;
  for (int c = 0; c < r->nout; c++) {
    if (r->out[c].source == PERI__FROM_REWARD) sum = (float *)w->out[c]->data;
    if (r->out[c].source == PERI__FROM_DISCOUNT) discount = (float *)w->out[c]->data;
  }
  for (int64_t i = begin; i < end; i++) {
    int64_t p = w->index[i], k = 1;
    double total = p < 0 ? 0 : reward[p];
    for (int64_t q; p >= 0 && k < r->n_step && (q = after(&w->g, p)) >= 0; k++) {
      p = q;
      total += power[k] * reward[p];
    }
    sum[i] = (float)total;
    discount[i] = p < 0 ? 0.0f : (float)power[k];
    if (w->last != w->index) w->last[i] = p;
  }
}

static void copy_rows (const work *w, const peri__ring_field *f, char *to, int64_t stride,
                       int64_t begin, int64_t end) {
  size_t row = f->is.row;
  for (int64_t i = begin; i < end; i++) {
    int64_t p = w->index[i * stride];
    if (p >= 0)
      peri__row_copy(to + (size_t)i * row, peri__at(f->store, p, row), row);
    else
      memset(to + (size_t)i * row, 0, row);
  }
}

/* What position p led to. */
static inline const char *led_to (const work *w, const peri__ring_field *f, int64_t p) {
  const place *g = &w->g;
  if (g->flags[p] & PERI__ENDS)
    return peri__at(f->ends, peri__ends(w->r)[p] & (w->r->room - 1), f->is.row);
  if (in_slot(g, p, g->newest)) return peri__at(f->after, p - g->newest, f->is.row);
  p = p + g->rows < g->end ? p + g->rows : p + g->rows - g->end;
  return peri__at(f->store, p, f->is.row);
}

static void copy_next (const work *w, const peri__ring_field *f, char *to, int64_t begin,
                       int64_t end) {
  size_t row = f->is.row;
  for (int64_t i = begin; i < end; i++)
    if (w->last[i] >= 0)
      peri__row_copy(to + (size_t)i * row, led_to(w, f, w->last[i]), row);
    else
      memset(to + (size_t)i * row, 0, row);
}

static void copy_flag (const work *w, int bit, uint8_t *to, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i++)
    to[i] = w->last[i] >= 0 && (w->g.flags[w->last[i]] & bit) != 0;
}

/* Lines begin to end of every output but index, weight and mask. */
static void gather (void *ud, int64_t begin, int64_t end, int worker) {
  const work *w = (const work *)ud;
  const peri_replay *r = w->r;
  int64_t from = begin * w->line, to = end * w->line;
  (void)worker;
  sum_rewards(w, from, to);
  for (int c = 0; c < r->nout; c++) {
    const peri__ring_field *f = &r->field[r->out[c].field];
    char *data = (char *)w->out[c]->data;
    bool first = f->is.role == PERI_FIELD_START;
    switch (r->out[c].source) {
    case PERI__FROM_FIELD:
      copy_rows(w, f, data, first ? w->line : 1, first ? begin : from, first ? end : to);
      break;
    case PERI__FROM_NEXT: copy_next(w, f, data, from, to); break;
    case PERI__FROM_TERMINATED: copy_flag(w, PERI__TERMINATED, (uint8_t *)data, from, to); break;
    case PERI__FROM_TRUNCATED: copy_flag(w, PERI__TRUNCATED, (uint8_t *)data, from, to); break;
    default: break;
    }
  }
}

/* ---- outputs ---- */

typedef struct request {
  peri_replay *r;
  int64_t n, length, burn_in; /* n: of all groups; length 0: transitions */
  int64_t groups;             /* of which each has n / groups; 0: without a dim of them */
  double beta;
  int nout;
  peri_tensor *made[PERI__COLUMNS_MAX]; /* the outputs, held */
} request;

static peri_dtype dtype_of (const peri_replay *r, const peri__column *c) {
  switch (c->source) {
  case PERI__FROM_FIELD:
  case PERI__FROM_NEXT: return r->field[c->field].is.dtype;
  case PERI__FROM_TERMINATED:
  case PERI__FROM_TRUNCATED: return PERI_BOOL;
  case PERI__FROM_INDEX: return PERI_I64;
  default: return PERI_F32;
  }
}

static peri_status make_outputs (request *q, int nout, peri_tensor *const *out) {
  peri_replay *r = q->r;
  const peri__field scalar = { .ndim = 0 };
  q->nout = r->nout + (q->length > 0);
  if (nout != q->nout)
    return peri__fail(r->ctx, PERI_EINVAL, "%d outputs are wanted, there are %d", nout, q->nout);
  for (int i = 0; i < nout; i++) {
    const peri__column *c = &r->out[i];
    bool field = c->source == PERI__FROM_FIELD || c->source == PERI__FROM_NEXT;
    const peri__field *f = field ? &r->field[c->field].is : &scalar;
    bool once = c->source == PERI__FROM_WEIGHT ||
                (c->source == PERI__FROM_FIELD && f->role == PERI_FIELD_START);
    int64_t shape[PERI_MAX_DIMS], lead[3] = { q->n, q->burn_in + q->length }, nlead = 1;
    if (q->groups > 0) {
      lead[2] = lead[1];
      lead[1] = q->n / q->groups;
      lead[0] = q->groups;
      nlead = 2;
    }
    if (q->length > 0 && !once) nlead++;
    int ndim = peri__field_shape(f, (int)nlead, lead, shape);
    TRY(peri__field_out(r->ctx, c->name, dtype_of(r, c), ndim, shape, out[i], &q->made[i]));
    for (int k = 0; k < i && out[i]; k++)
      if (out[k] && out[k]->storage == out[i]->storage && q->n > 0)
        return peri__fail(r->ctx, PERI_EINVAL, "%s and %s are written into one memory",
                          r->out[k].name, c->name);
  }
  return PERI_OK;
}

static peri_status end_request (request *q, peri_status s, peri_tensor **out) {
  for (int i = 0; i < q->nout; i++) {
    if (s == PERI_OK && !out[i]) {
      out[i] = q->made[i];
      continue;
    }
    if (q->made[i] && out[i]) q->made[i]->storage->version++;
    peri_release(q->made[i]);
  }
  return s;
}

static peri_tensor *output (const request *q, peri__origin source) {
  for (int i = 0; i < q->nout; i++)
    if (q->r->out[i].source == source) return q->made[i];
  return NULL;
}

static void weigh (const request *q, const int64_t *drawn) {
  peri_tensor *weight = output(q, PERI__FROM_WEIGHT);
  if (!weight) return;
  const double *p = peri__sumtree_leaves(&q->r->tree);
  double least = peri__sumtree_min(&q->r->tree);
  float beta = (float)q->beta;
  for (int64_t i = 0; i < q->n; i++) { /* (N P)^-beta over that of the least P */
    double times = p[drawn[i]] / least;
    ((float *)weight->data)[i] = times == 0     ? 0.0f
                                 : times < 1e30 ? powf((float)times, -beta)
                                                : (float)pow(times, -q->beta);
  }
}

static peri_status gather_all (const request *q, int64_t *last) {
  const peri_replay *r = q->r;
  int64_t line = q->length > 0 ? q->burn_in + q->length : 1;
  int64_t *index = (int64_t *)output(q, PERI__FROM_INDEX)->data;
  work w = { r, place_of(r), line, index, last ? last : index, (peri_tensor **)(uintptr_t)q->made };
  size_t bytes = 0;
  for (int i = 0; i < q->nout; i++) bytes += peri_nbytes(q->made[i]);
  peri__parallel(r->ctx, q->n, peri__row_grain(bytes / (size_t)q->n), gather, &w);
  return peri__stopped(r->ctx) ? peri__fail(r->ctx, PERI_EINTR, "interrupted") : PERI_OK;
}

/* ---- drawing ---- */

static peri_status check_draw (const request *q) {
  const peri_replay *r = q->r;
  if (!(q->beta >= 0 && q->beta <= 1))
    return peri__fail(r->ctx, PERI_EINVAL, "beta is %g, expected a number from 0 to 1", q->beta);
  if (r->filled == 0) return peri__fail(r->ctx, PERI_EINVAL, "the buffer is empty");
  if (r->skipped == r->filled * r->rows)
    return peri__fail(r->ctx, PERI_EINVAL, "none of the %lld steps in the buffer is valid",
                      (long long)r->skipped);
  int64_t row = group_without(r), width = r->rows / groups_of(r);
  if (row >= 0)
    return peri__fail(r->ctx, PERI_EINVAL, "group %lld of %lld has no valid step in the buffer",
                      (long long)(row / width + 1), (long long)r->groups);
  return PERI_OK;
}

static peri_status draw (request *q, int64_t *scratch) {
  peri_replay *r = q->r;
  int64_t *last = r->n_step > 1 ? scratch + 2 * q->n : NULL;
  int64_t *index = (int64_t *)output(q, PERI__FROM_INDEX)->data;
  int64_t *drawn = q->length > 0 ? scratch + q->n : index;
  peri__words s = { .rng = r->seeded ? (peri_rng){ r->rng.seed ^ STREAM, r->rng.offset }
                                     : peri_rng_get(r->ctx) };
  if (r->prioritised)
    draw_by_priority(r, &s, q->n, (double *)scratch, drawn);
  else
    draw_uniform(r, &s, q->n / groups_of(r), drawn);
  if (q->length > 0)
    surround(r, q->n, q->length, q->burn_in, drawn, index,
             (float *)output(q, PERI__FROM_MASK)->data);
  TRY(gather_all(q, last));
  weigh(q, drawn);
  if (r->seeded)
    r->rng.offset++;
  else
    peri__rng_next(r->ctx);
  return PERI_OK;
}

static peri_status run (request *q, int nout, peri_tensor **out) {
  peri_ctx *ctx = q->r->ctx;
  int64_t groups = groups_of(q->r);
  NEED(ctx, out);
  if (q->n < 1 || q->n > (INT64_C(1) << 31) / groups)
    return peri__fail(ctx, PERI_EINVAL, "a sample of %lld is out of range: at least 1",
                      (long long)q->n);
  TRY(check_draw(q));
  q->groups = q->r->groups;
  q->n *= groups;
  peri_status s = make_outputs(q, nout, out);
  bool bare = !q->r->prioritised && q->r->n_step == 1 && q->length == 0;
  int64_t *scratch = NULL;
  if (s == PERI_OK && !bare) {
    size_t n = (size_t)output(q, PERI__FROM_INDEX)->numel + 2 * (size_t)q->n;
    scratch = peri__block_get(ctx, n * sizeof *scratch);
    if (!scratch) s = peri__fail(ctx, PERI_ENOMEM, "out of memory for %zu positions", n);
  }
  if (s == PERI_OK) s = draw(q, scratch);
  peri__block_put(ctx, scratch);
  return end_request(q, s, out);
}

peri_status peri_replay_sample (peri_replay *r, int64_t n, double beta, int nout,
                                peri_tensor **out) {
  if (!r) return PERI_EINVAL;
  request q = { .r = r, .n = n, .beta = beta };
  return run(&q, nout, out);
}

peri_status peri_replay_sequences (peri_replay *r, int64_t n, int64_t length, int64_t burn_in,
                                   double beta, int nout, peri_tensor **out) {
  if (!r) return PERI_EINVAL;
  if (length < 1 || burn_in < 0 || length > INT32_MAX || burn_in > INT32_MAX)
    return peri__fail(r->ctx, PERI_EINVAL,
                      "a length of %lld after %lld steps is out of range: at least 1 after 0",
                      (long long)length, (long long)burn_in);
  request q = { .r = r, .n = n, .length = length, .burn_in = burn_in, .beta = beta };
  return run(&q, nout, out);
}

peri_status peri_replay_gather (peri_replay *r, peri_tensor *index, int nout, peri_tensor **out) {
  if (!r) return PERI_EINVAL;
  NEED(r->ctx, index);
  NEED(r->ctx, out);
  TRY(peri__want_index(r->ctx, index));
  request q = { .r = r, .n = index->numel, .beta = 1 };
  const int64_t *p = (const int64_t *)index->data;
  for (int64_t i = 0; i < q.n; i++)
    if (p[i] < 0 || p[i] >= peri_replay_size(r))
      return peri__fail(r->ctx, PERI_EINVAL,
                        "index %lld at position %lld is out of range: the buffer holds %lld",
                        (long long)p[i], (long long)i, (long long)peri_replay_size(r));
  if (q.n == 0) return peri__fail(r->ctx, PERI_EINVAL, "index is empty");
  peri_status s = make_outputs(&q, nout, out);
  int64_t *last = NULL;
  if (s == PERI_OK && r->n_step > 1) {
    last = peri__block_get(r->ctx, (size_t)q.n * sizeof *last);
    if (!last)
      s = peri__fail(r->ctx, PERI_ENOMEM, "out of memory for %lld positions", (long long)q.n);
  }
  if (s == PERI_OK) {
    memmove(output(&q, PERI__FROM_INDEX)->data, p, (size_t)q.n * sizeof *p);
    s = gather_all(&q, last);
  }
  if (s == PERI_OK) weigh(&q, p);
  peri__block_put(r->ctx, last);
  return end_request(&q, s, out);
}
