/*
** policy.c - running a trained policy: its program of ops over a batch of observations, and the choice
** of actions from what that gives. Everything goes through the ops that trained it.
*/
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "env/policy.h"

static void drop (peri_tensor **t) {
  peri_release(*t);
  *t = NULL;
}

/* ---- the program ---- */

/* Inputs of a step as arguments; the number of them. */
static int put_inputs (const peri_policy *p, const peri__policy_step *s, peri_tensor **in,
                       peri_arg *arg) {
  for (int i = 0; i < s->nin; i++) in[i] = s->in[i] < 0 ? NULL : p->value[s->in[i]];
  if (s->list) {
    arg[0] = peri_list(NULL, s->nin, in);
    return 1;
  }
  for (int i = 0; i < s->nin; i++) arg[i] = peri_in(in[i]);
  return s->nin;
}

static peri_status run_step (peri_policy *p, const peri__policy_step *s, int number) {
  peri_tensor *in[PERI_POLICY_IN], *out[PERI_MAX_OUT] = { NULL };
  peri_arg arg[PERI_POLICY_IN + PERI_POLICY_ATTRS + PERI_MAX_OUT];
  int n = put_inputs(p, s, in, arg);
  for (int i = 0; i < s->nattr; i++) {
    arg[n] = s->attr[i];
    arg[n].name = s->text[i][0]; /* the step may have moved since it was read */
    if (arg[n].given == PERI_ARG_STR) arg[n].as.s = s->text[i][1];
    if (arg[n].given == PERI_ARG_INTS) arg[n].as.v = s->ints[i];
    n++;
  }
  for (int i = 0; i < s->nout; i++) arg[n++] = peri_out(&out[i]);
  peri_status st = peri_apply_named(p->ctx, s->op->name, n, arg);
  if (st != PERI_OK) return peri__fail(p->ctx, st, "policy: step %d: %s", number, p->ctx->message);
  for (int i = 0; i < s->nout; i++) {
    drop(&p->value[s->out[i]]);
    p->value[s->out[i]] = out[i];
  }
  return PERI_OK;
}

static peri_status first_memory (peri_policy *p, const peri__slot *slot, int64_t n,
                                 peri_tensor **out) {
  int64_t shape[PERI_MAX_DIMS];
  shape[0] = n;
  memcpy(shape + 1, slot->shape, (size_t)slot->ndim * sizeof *shape);
  TRY(peri_empty(p->ctx, PERI_F32, slot->ndim + 1, shape, out));
  memset(peri_data(*out), 0, peri_nbytes(*out));
  return PERI_OK;
}

static peri_status put_values (peri_policy *p, int64_t n, const void *obs) {
  int64_t shape[PERI_MAX_DIMS];
  shape[0] = n;
  memcpy(shape + 1, p->obs.shape, (size_t)p->obs.ndim * sizeof *shape);
  TRY(peri_from(p->ctx, p->obs.dtype, p->obs.ndim + 1, shape, obs, &p->value[0]));
  for (int i = 1; i < p->nslots; i++) {
    const peri__slot *s = &p->slot[i];
    if (s->constant)
      p->value[i] = peri_retain(s->constant);
    else if (s->state && p->rows > 0)
      p->value[i] = peri_retain(p->memory[i]);
    else if (s->state)
      TRY(first_memory(p, s, n, &p->value[i]));
  }
  return PERI_OK;
}

/* The program must give back states of the shape that they had. */
static peri_status check_states (const peri_policy *p, int64_t n) {
  for (int i = 1; i < p->nslots; i++) {
    const peri__slot *s = &p->slot[i];
    const peri_tensor *t = p->value[i];
    if (!s->state) continue;
    if (t->dtype != PERI_F32 || t->ndim != s->ndim + 1 || t->shape[0] != n ||
        memcmp(t->shape + 1, s->shape, (size_t)s->ndim * sizeof *s->shape) != 0) {
      char have[128];
      return peri__fail(p->ctx, PERI_EFORMAT, "policy: state %s became %s %s", s->name,
                        peri_dtype_name((peri_dtype)t->dtype),
                        peri__shape_text(t, have, sizeof have));
    }
  }
  return PERI_OK;
}

/* ---- heads ---- */

static peri_status shaped (const peri_policy *p, const peri_tensor *t, int64_t n, int64_t size,
                           const char *what) {
  char have[128];
  if (t->dtype == PERI_F32 && t->numel == n * size && t->ndim >= 1 && t->shape[0] == n)
    return PERI_OK;
  return peri__fail(
      p->ctx, PERI_EFORMAT, "policy: %s came out as %s %s, expected f32 (%" PRId64 ", %" PRId64 ")",
      what, peri_dtype_name((peri_dtype)t->dtype), peri__shape_text(t, have, sizeof have), n, size);
}

/* A uniform number in [0, 1): number i of this call. */
static double uniform (peri_rng rng, int64_t i) {
  uint32_t w[4];
  peri__rng_block(rng, (uint64_t)i, w);
  return peri__unit_f64(w[0], w[1]);
}

/* Action among n logits, legal ones by mask; -1: none is legal; -2: a NaN. */
static int64_t pick (const float *logit, const uint8_t *mask, int64_t n, bool best, double u) {
  double top = -INFINITY, sum = 0;
  int64_t at = -1;
  for (int64_t i = 0; i < n; i++) {
    if (mask && !mask[i]) continue;
    if (isnan(logit[i])) return -2;
    if (at < 0 || logit[i] > top) top = logit[i], at = i;
  }
  if (best || at < 0) return at;
  for (int64_t i = 0; i < n; i++)
    if (!mask || mask[i]) sum += exp(logit[i] - top);
  u *= sum;
  for (int64_t i = 0; i < n; i++) {
    if (mask && !mask[i]) continue;
    double w = exp(logit[i] - top);
    if (w > 0) at = i; /* rounding may leave a little of u behind the last */
    if ((u -= w) < 0) break;
  }
  return at;
}

static peri_status no_choice (const peri_policy *p, int64_t row, int64_t why) {
  if (why == -1)
    return peri__fail(p->ctx, PERI_EINVAL, "policy: no action of row %" PRId64 " is legal", row);
  return peri__fail(p->ctx, PERI_EINVAL, "policy: row %" PRId64 ": the network gave NaN", row);
}

static peri_status choose (const peri_policy *p, int64_t n, const float *x, const uint8_t *mask,
                           bool best, peri_rng rng, int64_t *action) {
  const peri_space *s = &p->action;
  int64_t parts = s->kind == PERI_SPACE_DISCRETE ? 1 : s->shape[0], all = peri_policy_choices(p);
  for (int64_t i = 0; i < n; i++) {
    const float *logit = x + i * all;
    const uint8_t *legal = mask ? mask + i * all : NULL;
    for (int64_t k = 0; k < parts; k++) {
      int64_t count = s->kind == PERI_SPACE_DISCRETE ? s->n : s->nvec[k];
      bool greedy = best || p->head == PERI_HEAD_GREEDY;
      double u = greedy && (best || p->epsilon == 0) ? 1 : uniform(rng, i * parts + k);
      int64_t a = pick(logit, legal, count, greedy, u);
      if (a >= 0 && greedy && u < p->epsilon) { /* any legal one: its logits are all alike */
        int64_t left = 0, at;
        for (int64_t c = 0; c < count; c++) left += !legal || legal[c];
        at = (int64_t)(u / p->epsilon * (double)left);
        for (int64_t c = 0; c < count; c++)
          if ((!legal || legal[c]) && at-- == 0) a = c;
      }
      if (a < 0) return no_choice(p, i, a);
      action[i * parts + k] = a + (s->kind == PERI_SPACE_DISCRETE ? s->start : 0);
      logit += count;
      if (legal) legal += count;
    }
  }
  return PERI_OK;
}

static peri_status flip (const peri_policy *p, int64_t n, const float *x, bool best, peri_rng rng,
                         uint8_t *action) {
  int64_t size = peri_space_size(&p->action);
  for (int64_t i = 0; i < n * size; i++) {
    if (isnan(x[i])) return no_choice(p, i / size, -2);
    action[i] = best ? x[i] > 0 : uniform(rng, i) < 1 / (1 + exp(-(double)x[i]));
  }
  return PERI_OK;
}

/* A standard normal number of element i of this call (Box and Muller, 1958). */
static double normal (peri_rng rng, int64_t i) {
  uint32_t w[4];
  peri__rng_block(rng, (uint64_t)i, w);
  double u = 1 - peri__unit_f64(w[0], w[1]), v = peri__unit_f64(w[2], w[3]);
  return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static void put_real (void *action, peri_dtype d, int64_t i, double v) {
  if (d == PERI_F64)
    ((double *)action)[i] = v;
  else
    ((float *)action)[i] = (float)v;
}

static peri_status move (const peri_policy *p, int64_t n, const float *x,
                         const peri_tensor *log_std, bool best, peri_rng rng, void *action) {
  const peri_space *s = &p->action;
  int64_t size = peri_space_size(s);
  for (int64_t i = 0; i < n * size; i++) {
    int64_t k = i % size;
    double low = s->lows ? s->lows[k] : s->low, high = s->highs ? s->highs[k] : s->high, v = x[i];
    if (log_std && !best)
      v += exp(((const float *)log_std->data)[log_std->numel == size ? k : i]) * normal(rng, i);
    if (p->head == PERI_HEAD_SQUASHED) v = tanh(v);
    if (p->head != PERI_HEAD_GAUSSIAN) v = low + (v + 1) * 0.5 * (high - low);
    if (isnan(v)) return no_choice(p, i / size, -2);
    put_real(action, s->dtype, i, v < low ? low : v > high ? high : v);
  }
  return PERI_OK;
}

/* What the head read: dense, of the shape that it needs; new references. */
static peri_status results (peri_policy *p, int64_t n, peri_tensor *out[2]) {
  bool real = p->head >= PERI_HEAD_GAUSSIAN;
  int64_t size = real ? peri_space_size(&p->action) : peri_policy_choices(p);
  peri_tensor *x = p->value[p->result[0]];
  TRY(shaped(p, x, n, size, p->slot[p->result[0]].name));
  TRY(peri__contiguous(x, &out[0]));
  if (p->result[1] < 0) return PERI_OK;
  x = p->value[p->result[1]];
  if (x->dtype != PERI_F32 || x->numel != size) TRY(shaped(p, x, n, size, "log_std"));
  return peri__contiguous(x, &out[1]);
}

static peri_status act (peri_policy *p, int64_t n, const uint8_t *mask, bool best, void *action) {
  peri_tensor *out[2] = { NULL, NULL };
  peri_status s = results(p, n, out);
  if (s == PERI_OK) {
    peri_rng rng = best ? (peri_rng){ 0, 0 } : peri__rng_next(p->ctx);
    const float *x = out[0]->data;
    if (p->head >= PERI_HEAD_GAUSSIAN)
      s = move(p, n, x, out[1], best, rng, action);
    else if (p->head == PERI_HEAD_BERNOULLI)
      s = flip(p, n, x, best, rng, action);
    else
      s = choose(p, n, x, mask, best, rng, action);
  }
  peri_release(out[0]);
  peri_release(out[1]);
  return s;
}

/* ---- the public functions ---- */

peri_status peri_policy_load (peri_ctx *ctx, const char *path, peri_policy **out) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, out);
  *out = NULL;
  peri_policy *p = peri__malloc(ctx, sizeof *p);
  if (!p) return peri__fail(ctx, PERI_ENOMEM, "no memory for a policy");
  *p = (peri_policy){ .ctx = ctx };
  peri_status s = peri__policy_read(p, path);
  if (s != PERI_OK) {
    peri_policy_close(p);
    return s;
  }
  *out = p;
  return PERI_OK;
}

static void forget (peri_policy *p) {
  for (int i = 0; p->memory && i < p->nslots; i++) drop(&p->memory[i]);
  p->rows = 0;
}

void peri_policy_close (peri_policy *p) {
  if (!p) return;
  size_t slots = (size_t)p->nslots;
  forget(p);
  for (int i = 0; i < p->nslots; i++) peri_release(p->slot[i].constant);
  peri__free(p->ctx, p->memory, slots * sizeof *p->memory);
  peri__free(p->ctx, p->value, slots * sizeof *p->value);
  peri__free(p->ctx, p->slot, slots * sizeof *p->slot);
  peri__free(p->ctx, p->step, (size_t)p->nsteps * sizeof *p->step);
  peri__space_drop(p->ctx, &p->obs);
  peri__space_drop(p->ctx, &p->action);
  peri__free(p->ctx, p, sizeof *p);
}

const peri_space *peri_policy_obs (const peri_policy *p) { return p ? &p->obs : NULL; }
const peri_space *peri_policy_action (const peri_policy *p) { return p ? &p->action : NULL; }
const char *peri_policy_env (const peri_policy *p) { return p ? p->env : NULL; }

int64_t peri_policy_choices (const peri_policy *p) {
  const peri_space *s = peri_policy_action(p);
  int64_t n = 0;
  if (!s || s->kind == PERI_SPACE_BOX) return 0;
  if (s->kind == PERI_SPACE_DISCRETE) return s->n;
  if (s->kind == PERI_SPACE_MULTI_BINARY) return peri_space_size(s);
  for (int64_t i = 0; i < s->shape[0]; i++) n += s->nvec[i];
  return n;
}

static bool remembers (const peri_policy *p) {
  for (int i = 1; i < p->nslots; i++)
    if (p->slot[i].state) return true;
  return false;
}

peri_status peri_policy_act (peri_policy *p, int64_t n, const void *obs, const uint8_t *mask,
                             bool deterministic, void *action) {
  if (!p) return PERI_EINVAL;
  NEED(p->ctx, obs);
  NEED(p->ctx, action);
  if (n < 1)
    return peri__fail(p->ctx, PERI_EINVAL, "policy: %" PRId64 " rows, expected 1 or more", n);
  if (mask && peri_policy_choices(p) == 0)
    return peri__fail(p->ctx, PERI_EINVAL, "policy: a mask, but the actions are not countable");
  if (p->rows > 0 && n != p->rows)
    return peri__fail(p->ctx, PERI_ESHAPE,
                      "policy: %" PRId64 " rows, but it remembers %" PRId64
                      "; peri_policy_restart forgets them",
                      n, p->rows);
  bool grad = peri_set_grad_enabled(p->ctx, false);
  peri_status s = put_values(p, n, obs);
  for (int i = 0; i < p->nsteps && s == PERI_OK; i++) s = run_step(p, &p->step[i], i);
  if (s == PERI_OK) s = check_states(p, n);
  if (s == PERI_OK) s = act(p, n, mask, deterministic, action);
  if (s == PERI_OK && remembers(p)) {
    forget(p);
    for (int i = 1; i < p->nslots; i++)
      if (p->slot[i].state) p->memory[i] = peri_retain(p->value[i]);
    p->rows = n;
  }
  for (int i = 0; i < p->nslots; i++) drop(&p->value[i]);
  peri_set_grad_enabled(p->ctx, grad);
  return s;
}

peri_status peri_policy_restart (peri_policy *p, int64_t n, const uint8_t *rows) {
  if (!p) return PERI_EINVAL;
  if (!rows) {
    forget(p);
    return PERI_OK;
  }
  if (p->rows == 0) return PERI_OK;
  if (n != p->rows)
    return peri__fail(p->ctx, PERI_ESHAPE, "policy: %" PRId64 " rows, but it remembers %" PRId64, n,
                      p->rows);
  for (int i = 1; i < p->nslots; i++) {
    if (!p->slot[i].state) continue;
    peri_tensor *fresh = NULL; /* the one there may be a view of something else */
    TRY(first_memory(p, &p->slot[i], n, &fresh));
    size_t row = peri_nbytes(fresh) / (size_t)n;
    peri_status s = peri_copy_out(p->memory[i], peri_data(fresh), peri_nbytes(fresh));
    if (s != PERI_OK) {
      peri_release(fresh);
      return s;
    }
    for (int64_t k = 0; k < n; k++)
      if (rows[k]) memset((char *)peri_data(fresh) + (size_t)k * row, 0, row);
    drop(&p->memory[i]);
    p->memory[i] = fresh;
  }
  return PERI_OK;
}
