/*
** collect.c - steps of environments with a network's actions, straight into a rollout: the loop of
** env:collect where the policy is nn.MLP and nothing is around the environment. It makes no Lua values;
** the ops are those that Lua would call, so the numbers and the generator are the same.
*/
#include <string.h>

#include "buffers.h"
#include "env.h"
#include "env/fields.h"
#include "op/op.h"

enum { LAYERS = 16, LOGITS = 0, ACTION, LOGP, RESULTS };

/* What is copied from an environment's buffer or a result into each step of a field. */
typedef struct wire {
  peri_tensor *to;
  int from; /* a peri_env_buffer, or RESULT + a result */
  size_t bytes;
} wire;

enum { RESULT = 1000 };

typedef struct loop {
  peri_ctx *ctx;
  peri__env_box *env;
  const peri_op *mlp, *sample;
  peri_tensor *in[1 + 2 * LAYERS];
  int nin;
  peri_attr act, none[PERI_MAX_PARAM];
  peri_box *box[RESULTS]; /* on the Lua stack, so that an error frees them */
  wire wire[PERI__FIELDS_MAX];
  int nwires;
} loop;

/* Field i of the rollout, where a step has something for it: of an environment's dtype and size. */
static void connect (lua_State *L, loop *s, peri_rollout *r, int i) {
  static const char *const names[] = {
    [PERI_ENV_OBS] = "obs",
    [PERI_ENV_REWARD] = "reward",
    [PERI_ENV_TERMINATED] = "terminated",
    [PERI_ENV_TRUNCATED] = "truncated",
    [PERI_ENV_FINAL_OBS] = "final_obs",
    [PERI_ENV_VALID] = "valid",
  };
  const char *name = peri_rollout_name(r, i);
  peri_tensor *to = peri_rollout_tensor(r, i), *from;
  wire w = { .to = to, .from = -1, .bytes = peri_nbytes(to) / (size_t)to->shape[0] };
  if (peri_rollout_role(r, i) == PERI_FIELD_START) return;
  for (int k = 0; k < (int)(sizeof names / sizeof *names); k++)
    if (names[k] != NULL && strcmp(name, names[k]) == 0) w.from = k;
  if (strcmp(name, "action") == 0) w.from = RESULT + ACTION;
  if (strcmp(name, "logp") == 0) w.from = RESULT + LOGP;
  if (w.from < 0) return;
  if (w.from < RESULT) {
    from = s->env->e->buffer[w.from];
    bool fits = from->ndim == to->ndim - 1 && from->dtype == to->dtype &&
                memcmp(from->shape, to->shape + 1, (size_t)from->ndim * sizeof *to->shape) == 0;
    if (!fits) {
      peri__push_shape_text(L, to->ndim - 1, to->shape + 1);
      peri__push_shape_text(L, from->ndim, from->shape);
      luaL_error(L, "collect: %s of the rollout is %s of %s, the environment's is %s of %s", name,
                 lua_tostring(L, -2), peri_dtype_name((peri_dtype)to->dtype), lua_tostring(L, -1),
                 peri_dtype_name((peri_dtype)from->dtype));
    }
  } else {
    peri_dtype d = w.from == RESULT + ACTION ? PERI_I64 : (peri_dtype)s->in[1]->dtype;
    if (to->ndim != 2 || to->dtype != d)
      luaL_error(L, "collect: %s of the rollout is not one %s for each row", name,
                 peri_dtype_name(d));
  }
  s->wire[s->nwires++] = w;
}

/* The tensors of the list at idx, behind those that are there. */
static void take_list (lua_State *L, loop *s, int idx, int n) {
  for (int i = 1; i <= n; i++) {
    lua_rawgeti(L, idx, i);
    peri_box *box = peri__box_at(L, peri__bind(L), -1);
    s->in[s->nin++] = box ? box->t : NULL;
    if (box && !box->t) luaL_error(L, "collect: a weight was released by its scope");
    lua_pop(L, 1); /* the list holds it */
  }
}

/*
** Weights (out, in) with their columns in one piece: the tiles of a product of few rows read them as they
** are, and would turn them at each step. Where an element is in memory changes no bit of a product. A box
** on the Lua stack holds each.
*/
static void turn_weights (lua_State *L, loop *s, int n) {
  const peri_op *contiguous = peri_op_find("contiguous");
  luaL_checkstack(L, n, NULL);
  for (int i = 1; i <= n; i++) {
    peri_tensor *w = s->in[i], *turned = NULL, *dense = NULL;
    if (w == NULL || w->ndim != 2) continue;
    peri_tensor **made = peri__box_new(L);
    const int64_t shape[2] = { w->shape[1], w->shape[0] }, columns[2] = { 1, w->shape[0] };
    const int64_t stride[2] = { w->stride[1], w->stride[0] };
    peri_status status = peri__view(w, 0, 2, shape, stride, &turned);
    if (status == PERI_OK) status = peri_apply(s->ctx, contiguous, 1, &turned, 0, NULL, 1, &dense);
    if (status == PERI_OK) status = peri__view(dense, 0, 2, w->shape, columns, made);
    peri_release(turned);
    peri_release(dense);
    peri__check(L, "collect", status);
    s->in[i] = *made;
  }
}

static void put (const loop *s, int64_t t, bool before) {
  for (int i = 0; i < s->nwires; i++) {
    const wire *w = &s->wire[i];
    bool now = w->from == PERI_ENV_OBS || w->from >= RESULT;
    if (now != before || w->bytes == 0) continue;
    const void *from = w->from >= RESULT ? s->box[w->from - RESULT]->t->data
                                         : peri_env_data(s->env->e, (peri_env_buffer)w->from);
    memcpy((char *)w->to->data + w->bytes * (size_t)t, from, w->bytes);
  }
}

static void drop (loop *s) {
  for (int k = 0; k < RESULTS; k++) {
    peri_release(s->box[k]->t);
    s->box[k]->t = NULL;
  }
}

/* Logits, actions and their log-probabilities of the observations that are there. */
static peri_status act (loop *s) {
  peri_tensor *out[2] = { NULL };
  s->in[0] = s->env->e->buffer[PERI_ENV_OBS];
  TRY(peri_apply(s->ctx, s->mlp, s->nin, s->in, 1, &s->act, 1, &s->box[LOGITS]->t));
  peri_tensor *to[2] = { s->box[LOGITS]->t, NULL };
  TRY(peri_apply(s->ctx, s->sample, 2, to, peri__sig(s->sample)->nattr, s->none, 2, out));
  s->box[ACTION]->t = out[0];
  s->box[LOGP]->t = out[1];
  return PERI_OK;
}

/* collect(core, rollout, weights, biases, activation): all steps of the rollout. */
int peri__env_collect (lua_State *L) {
  loop s = { .ctx = BIND(L)->ctx, .env = peri__env_box_at(L, "collect"), .nin = 1 };
  peri_rollout *r = peri__rollout_at(L, 2, "collect");
  int n = (int)lua_rawlen(L, 3);
  const peri_tensor *actions = s.env->e->buffer[PERI_ENV_REWARD];
  lua_settop(L, 5);
  luaL_checkstack(L, RESULTS + 8, NULL);
  if (n < 1 || n > LAYERS) return luaL_error(L, "collect: %d layers, expected 1 to %d", n, LAYERS);
  take_list(L, &s, 3, n);
  take_list(L, &s, 4, n);
  turn_weights(L, &s, n);
  s.act.s = lua_tostring(L, 5);
  s.mlp = peri_op_find("mlp");
  s.sample = peri_op_find("sample");
  const peri_sig *sig = peri__sig(s.sample);
  for (int i = 0; i < sig->nattr; i++) s.none[i] = sig->p[sig->ntensor + i].def;
  for (int i = 0; i < peri_rollout_fields(r); i++) connect(L, &s, r, i);
  for (int k = 0; k < RESULTS; k++) s.box[k] = (peri_box *)(void *)peri__box_new(L);
  int64_t steps = peri_rollout_tensor(r, 0)->shape[0];
  for (int64_t t = 0; t < steps; t++) {
    peri__here(L, BIND(L)); /* an environment in Lua may have run other threads */
    drop(&s);
    peri__check(L, "collect", act(&s));
    if (s.box[ACTION]->t->numel != actions->numel)
      return luaL_error(L, "collect: the policy gives %I actions, the environment has %I rows",
                        (LUAI_UACINT)s.box[ACTION]->t->numel, (LUAI_UACINT)actions->numel);
    put(&s, t, true);
    const void *action = s.box[ACTION]->t->data;
    peri__check(L, "collect",
                s.env->lua ? peri__env_lua_step(L, s.env, 1, action)
                           : peri_env_step(s.env->e, action));
    put(&s, t, false);
  }
  drop(&s);
  for (int i = 0; i < s.nwires; i++) s.wire[i].to->storage->version++;
  return 0;
}
