/*
** policy.c - perilune._policy: policy files loaded and asked for actions; lua/perilune/rl/policy.lua makes
** peri.rl.policy of it. What the outside world does wrong comes back as nil and a message, misuse raises.
*/
#include "keep.h"

#define TYPE "perilune.policy"

static int l_load (lua_State *L) {
  const char *path = peri__want_path(L, 1, "policy.load");
  peri_policy *p;
  peri_handle *h = peri__handle_new(L, TYPE, 0);
  if (peri_policy_load(peri_lua_ctx(L), path, &p) != PERI_OK)
    return peri__fail_soft(L, "policy.load");
  h->p = p;
  return 1;
}

static int policy_close (lua_State *L) {
  peri_policy_close((peri_policy *)peri__handle_take(L, TYPE));
  return 0;
}

/* The tensor at arg, n values of the space. */
static peri_tensor *rows_of (lua_State *L, int arg, const char *name, const peri_space *s,
                             int64_t *n) {
  peri_tensor *t = peri__want_tensor(L, arg, "policy:act", name);
  bool fits = t->ndim == s->ndim + 1 && t->shape[0] > 0;
  for (int i = 0; fits && i < s->ndim; i++) fits = t->shape[i + 1] == s->shape[i];
  if (!fits || t->dtype != s->dtype) {
    char have[128], want[128];
    peri__sizes_text(s->ndim, s->shape, want, sizeof want);
    peri__error(L, "policy:act: %s is %s %s, expected rows of %s %s", name,
                peri_dtype_name((peri_dtype)t->dtype),
                peri__sizes_text(t->ndim, t->shape, have, sizeof have), peri_dtype_name(s->dtype),
                want);
  }
  *n = t->shape[0];
  return t;
}

/* (policy, obs (n, ...), mask (n, actions) bool?, deterministic) -> actions (n, ...) */
static int policy_act (lua_State *L) {
  peri_policy *p = (peri_policy *)peri__handle_open(L, TYPE, "policy:act");
  const peri_space *as = peri_policy_action(p);
  int64_t n, shape[PERI_MAX_DIMS];
  peri_tensor *obs = rows_of(L, 2, "obs", peri_policy_obs(p), &n);
  peri_tensor *mask = lua_isnoneornil(L, 3) ? NULL : peri__want_tensor(L, 3, "policy:act", "mask");
  if (mask && (mask->dtype != PERI_BOOL || !peri_is_dense(mask) || mask->ndim != 2 ||
               mask->shape[0] != n || mask->shape[1] != peri_policy_choices(p)))
    peri__error(L, "policy:act: mask is no dense bool tensor (%d, %d)", (int)n,
                (int)peri_policy_choices(p));
  peri_tensor **dense = peri__box_new(L), **out = peri__box_new(L);
  shape[0] = n;
  for (int i = 0; i < as->ndim; i++) shape[i + 1] = as->shape[i];
  peri__check(L, "policy:act", PERI_CALL(obs->ctx, "contiguous", peri_in(obs), peri_out(dense)));
  peri__check(L, "policy:act", peri_empty(peri_lua_ctx(L), as->dtype, as->ndim + 1, shape, out));
  peri__check(L, "policy:act",
              peri_policy_act(p, n, peri_data(*dense), mask ? peri_data(mask) : NULL,
                              lua_toboolean(L, 4), peri_data(*out)));
  peri__charge(L);
  return 1;
}

/* (policy, rows (n) bool?) */
static int policy_restart (lua_State *L) {
  peri_policy *p = (peri_policy *)peri__handle_open(L, TYPE, "policy:restart");
  peri_tensor *rows =
      lua_isnoneornil(L, 2) ? NULL : peri__want_tensor(L, 2, "policy:restart", "rows");
  if (rows && (rows->dtype != PERI_BOOL || rows->ndim != 1 || !peri_is_dense(rows)))
    peri__error(L, "policy:restart: rows is no dense bool tensor (rows)");
  peri__check(L, "policy:restart",
              peri_policy_restart(p, rows ? rows->shape[0] : 0, rows ? peri_data(rows) : NULL));
  return 0;
}

static const peri_reg functions[] = { { "load", "path", "Open a policy file.", l_load },
                                      { NULL, NULL, NULL, NULL } };
static const peri_reg meta[] = { { "__gc", NULL, NULL, policy_close }, { NULL, NULL, NULL, NULL } };
static const peri_reg methods[] = {
  { "act", "self, obs, mask?, deterministic?", "Actions (n, ...) for rows of observations.",
    policy_act },
  { "restart", "self, rows?", "Forget what is remembered of the rows that are set, or of all.",
    policy_restart },
  { NULL, NULL, NULL, NULL }
};

int peri__open_policy (lua_State *L) {
  peri__metatable(L, TYPE, meta, methods);
  lua_pop(L, 1);
  lua_newtable(L);
  peri__register(L, functions);
  return 1;
}
