/*
** make.c - a batch of environments: its options, its memory, what may be asked of it.
*/
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "env/env.h"

void peri_env_options_init (peri_env_options *o) {
  if (o)
    *o = (peri_env_options){
      .struct_size = sizeof *o, .n = 1, .threads = 1, .max_steps = -1, .reward_dtype = PERI_F32
    };
}

static peri_status check_options (peri_ctx *ctx, const peri_env_def *d, const peri_env_options *o) {
  if (o->struct_size != sizeof *o) /* the one size that it has had */
    return peri__fail(ctx, PERI_EINVAL,
                      "peri_env_options.struct_size is %u: peri_env_options_init sets it",
                      o->struct_size);
  if (o->n < 1 || o->n > (int64_t)1 << 31)
    return peri__fail(ctx, PERI_EINVAL, "%s: n is %" PRId64 ", expected 1 to 2^31", d->id, o->n);
  if (o->autoreset < PERI_AUTORESET_SAME_STEP || o->autoreset > PERI_AUTORESET_DISABLED)
    return peri__fail(ctx, PERI_EINVAL, "%s: no autoreset has number %d", d->id, (int)o->autoreset);
  if (o->threads < 0)
    return peri__fail(ctx, PERI_EINVAL, "%s: threads is %d, expected at least 0", d->id,
                      o->threads);
  if (o->max_steps < -1)
    return peri__fail(ctx, PERI_EINVAL, "%s: max_steps is %" PRId64 ", expected at least 0", d->id,
                      o->max_steps);
  if (o->reward_dtype != PERI_F32 && o->reward_dtype != PERI_F64)
    return peri__fail(ctx, PERI_EDTYPE, "%s: rewards are f32 or f64", d->id);
  return PERI_OK;
}

/* ---- memory ---- */

/* A tensor of zeros; NULL and a status when there is no room. */
static peri_status zeros (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                          peri_tensor **out) {
  TRY(peri__new(ctx, d, ndim, shape, out));
  if (peri_nbytes(*out)) memset((*out)->data, 0, peri_nbytes(*out));
  return PERI_OK;
}

static peri_status buffer (peri_env *e, peri_env_buffer what, peri_dtype d, int ndim,
                           const int64_t *shape, void *out) {
  int64_t full[PERI_MAX_DIMS + 1] = { e->rows };
  if (ndim + 1 > PERI_MAX_DIMS)
    return peri__fail(e->ctx, PERI_ESHAPE, "%s: observations of %d dims, with rows at most %d",
                      e->def.id, ndim, PERI_MAX_DIMS);
  for (int i = 0; i < ndim; i++) full[i + 1] = shape[i];
  TRY(zeros(e->ctx, d, ndim + 1, full, &e->buffer[what]));
  *(void **)out = e->buffer[what]->data;
  return PERI_OK;
}

static peri_status hidden (peri_env *e, int which, int64_t count, size_t size, void *out) {
  int64_t bytes;
  if (__builtin_mul_overflow(count, (int64_t)size, &bytes))
    return peri__fail(e->ctx, PERI_ENOMEM, "%s: %" PRId64 " times %zu bytes", e->def.id, count,
                      size);
  if (bytes == 0) bytes = 1; /* states of no bytes: a place all the same */
  TRY(zeros(e->ctx, PERI_U8, 1, &bytes, &e->hidden[which]));
  *(void **)out = e->hidden[which]->data;
  return PERI_OK;
}

static peri_status make_buffers (peri_env *e) {
  const peri_space *obs = &e->spec.obs;
  TRY(buffer(e, PERI_ENV_OBS, obs->dtype, obs->ndim, obs->shape, &e->obs));
  TRY(buffer(e, PERI_ENV_FINAL_OBS, obs->dtype, obs->ndim, obs->shape, &e->final_obs));
  TRY(buffer(e, PERI_ENV_TERMINATED, PERI_BOOL, 0, NULL, &e->terminated));
  TRY(buffer(e, PERI_ENV_TRUNCATED, PERI_BOOL, 0, NULL, &e->truncated));
  TRY(buffer(e, PERI_ENV_VALID, PERI_BOOL, 0, NULL, &e->valid));
  TRY(buffer(e, PERI_ENV_EPISODE_RETURN, PERI_F64, 0, NULL, &e->episode_return));
  TRY(buffer(e, PERI_ENV_EPISODE_LENGTH, PERI_I64, 0, NULL, &e->episode_length));
  if (e->reward_dtype == PERI_F32)
    TRY(buffer(e, PERI_ENV_REWARD, PERI_F32, 0, NULL, &e->reward32));
  else
    TRY(buffer(e, PERI_ENV_REWARD, PERI_F64, 0, NULL, &e->reward));
  if (e->def.flags & PERI_ENV_MASK)
    TRY(buffer(e, PERI_ENV_LEGAL, PERI_BOOL, 1, &e->spec.action.n, &e->legal));
  if (e->agents > 1) TRY(buffer(e, PERI_ENV_LIVE, PERI_BOOL, 0, NULL, &e->live));
  const int64_t nmetrics = e->spec.nmetrics;
  if (nmetrics) TRY(buffer(e, PERI_ENV_METRIC, PERI_F32, 1, &nmetrics, &e->metric));
  for (int64_t i = 0; i < e->rows; i++) e->episode_return[i] = NAN;
  return PERI_OK;
}

static peri_status make_hidden (peri_env *e) {
  int64_t n = e->n, rows = e->rows, blocks = (n + e->block - 1) / e->block;
  int64_t room = e->columns ? (n + 15) / 16 * 16 : n;
  e->stride = e->columns ? room : (int64_t)e->state_bytes;
  TRY(hidden(e, 0, room, e->state_bytes, &e->state));
  TRY(hidden(e, 1, n, sizeof *e->rng, &e->rng));
  TRY(hidden(e, 2, 2 * rows + n + blocks + (2 * rows + n) / 8 + 1, 8, &e->sum));
  if (e->reward32) e->reward = e->sum + rows;
  e->started = (int64_t *)(void *)(e->sum + 2 * rows);
  e->deadline = e->started + n;
  e->over = (uint8_t *)(void *)(e->deadline + blocks);
  e->kept = e->over + rows;
  e->which = e->kept + rows;
  /* a reward and two flags for each agent, then a state */
  e->scratch_bytes = ((size_t)e->agents * 10 + 63) / 64 * 64 + (e->state_bytes + 63) / 64 * 64;
  return hidden(e, 3, peri_threads(e->ctx), e->scratch_bytes, &e->scratch);
}

/* ---- making ---- */

static peri_status set_up (peri_env *e, const peri_env_options *o) {
  peri_ctx *ctx = e->ctx;
  peri_env_spec spec;
  TRY(peri__env_configure(ctx, &e->def, o, &spec, &e->args));
  e->spec = spec;
  e->configured = true;
  e->obs_copy = peri__space_copy(ctx, &spec.obs, &e->spec.obs, &e->obs_copy_size);
  e->action_copy = peri__space_copy(ctx, &spec.action, &e->spec.action, &e->action_copy_size);
  if (!e->obs_copy || !e->action_copy)
    return peri__fail(ctx, PERI_ENOMEM, "%s: out of memory", e->def.id);
  e->n = o->n;
  e->agents = e->spec.agents = spec.agents ? spec.agents : 1;
  if (__builtin_mul_overflow(e->n, e->agents, &e->rows) || e->rows > (int64_t)1 << 31)
    return peri__fail(ctx, PERI_EINVAL, "%s: %" PRId64 " environments of %d agents: too many rows",
                      e->def.id, e->n, spec.agents);
  e->max_steps = o->max_steps < 0 ? spec.max_steps : o->max_steps;
  e->autoreset = o->autoreset;
  e->whole = e->def.flags & PERI_ENV_WHOLE;
  e->block = PERI_ENV_BLOCK / e->agents > 1 ? PERI_ENV_BLOCK / e->agents : 1;
  if (e->whole) e->block = e->n;
  e->columns = (e->def.flags & PERI_ENV_COLUMNS) && e->n >= 8; /* fewer are stepped one by one */
  e->batch = e->def.step_batch && (e->columns || !(e->def.flags & PERI_ENV_COLUMNS));
  e->threads = e->def.flags & (PERI_ENV_SERIAL | PERI_ENV_WHOLE) ? 1 : o->threads;
  if (e->threads == 0 || e->threads > peri_threads(ctx)) e->threads = peri_threads(ctx);
  e->reward_dtype = o->reward_dtype;
  e->seeded = o->seeded;
  e->seed = o->seed;
  e->obs_bytes = peri__space_bytes(&e->spec.obs);
  e->action_bytes = peri__space_bytes(&e->spec.action);
  e->state_bytes = (spec.state_bytes + 7) & ~(size_t)7;
  TRY(make_buffers(e));
  return make_hidden(e);
}

peri_status peri_env_make_of (peri_ctx *ctx, const peri_env_def *def, const peri_env_options *o,
                              peri_env **out) {
  if (!ctx) return PERI_EINVAL;
  NEED(ctx, out);
  TRY(peri__env_check_def(ctx, def));
  peri_env_options plain;
  peri_env_options_init(&plain);
  if (!o) o = &plain;
  TRY(check_options(ctx, def, o));
  peri_env *e = peri__malloc(ctx, sizeof *e);
  if (!e) return peri__fail(ctx, PERI_ENOMEM, "%s: out of memory", def->id);
  *e = (peri_env){ .ctx = ctx, .def = *def };
  peri_status s = set_up(e, o);
  if (s != PERI_OK)
    peri_env_close(e);
  else
    *out = e;
  return s;
}

static const char *id_at (void *ud, int i) {
  const peri_env_def *d = peri_env_at(ud, i);
  return d ? d->id : NULL;
}

peri_status peri_env_make (peri_ctx *ctx, const char *id, const peri_env_options *o,
                           peri_env **out) {
  if (!ctx) return PERI_EINVAL;
  NEED(ctx, id);
  const peri_env_def *d = peri_env_find(ctx, id);
  if (d) return peri_env_make_of(ctx, d, o, out);
  const char *near = peri__nearest(id, id_at, ctx);
  if (near)
    return peri__fail(ctx, PERI_EINVAL, "no environment is called '%s'; did you mean '%s'?", id,
                      near);
  char list[700] = "";
  for (int i = 0; (near = id_at(ctx, i)) != NULL; i++)
    snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "", near);
  return peri__fail(ctx, PERI_EINVAL, "no environment is called '%s'; there are: %s", id, list);
}

void peri_env_close (peri_env *e) {
  if (!e) return;
  peri_ctx *ctx = e->ctx;
  if (e->configured && e->def.close) e->def.close(e->spec.shared);
  for (int i = 0; i < PERI_ENV_NBUFFER; i++) peri_release(e->buffer[i]);
  for (size_t i = 0; i < sizeof e->hidden / sizeof *e->hidden; i++) peri_release(e->hidden[i]);
  peri__free(ctx, e->episode, (size_t)e->episode_cap * sizeof *e->episode);
  peri__free(ctx, e->obs_copy, e->obs_copy_size);
  peri__free(ctx, e->action_copy, e->action_copy_size);
  peri__env_args_free(ctx, e->args);
  peri__free(ctx, e, sizeof *e);
}

/* ---- what may be asked ---- */

const peri_env_def *peri_env_def_of (const peri_env *e) { return e ? &e->def : NULL; }
const peri_env_spec *peri_env_spec_of (const peri_env *e) { return e ? &e->spec : NULL; }
int64_t peri_env_count (const peri_env *e) { return e ? e->n : 0; }
int64_t peri_env_rows (const peri_env *e) { return e ? e->rows : 0; }
int64_t peri_env_max_steps (const peri_env *e) { return e ? e->max_steps : 0; }

static void complete_final (peri_env *e) {
  if (!e->final_partial) return;
  e->final_partial = false;
  for (int64_t i = 0; i < e->rows; i++)
    if (!e->kept[i])
      memcpy(e->final_obs + (size_t)i * e->obs_bytes, e->obs + (size_t)i * e->obs_bytes,
             e->obs_bytes);
}

void *peri_env_data (peri_env *e, peri_env_buffer what) {
  if (!e || (unsigned)what >= PERI_ENV_NBUFFER || !e->buffer[what]) return NULL;
  if (what == PERI_ENV_FINAL_OBS) complete_final(e);
  return e->buffer[what]->data;
}

peri_status peri_env_tensor (peri_env *e, peri_env_buffer what, peri_tensor **out) {
  if (!e) return PERI_EINVAL;
  NEED(e->ctx, out);
  static const char *const names[] = { "obs",       "reward",         "terminated",    "truncated",
                                       "final_obs", "mask",           "valid",         "live",
                                       "metrics",   "episode_return", "episode_length" };
  if ((unsigned)what >= PERI_ENV_NBUFFER)
    return peri__fail(e->ctx, PERI_EINVAL, "no buffer of environments has number %d", (int)what);
  peri_tensor *t = e->buffer[what];
  if (!t) return peri__fail(e->ctx, PERI_EINVAL, "%s has no buffer %s", e->def.id, names[what]);
  if (what == PERI_ENV_FINAL_OBS) complete_final(e);
  TRY(peri__view(t, 0, t->ndim, t->shape, t->stride, out));
  e->lent |= 1u << what;
  return PERI_OK;
}
