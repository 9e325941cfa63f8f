/*
** env_whole.c - batches of environments that are written in Lua with tensor ops: one call of Lua steps all rows, one
** resets those that begin. lua/perilune/env/whole.lua is between: what it returns are tensors of the right size and
** dtype. Draws of rows come from the rows' own generators, so a batch draws what single environments would.
*/
#include <string.h>

#include "env_lua.h"

#define RNG_ROWS "perilune.pcg64.rows"

typedef struct peri__rng_rows {
  peri_pcg64 *r; /* of the first row; NULL: no step or reset is under way */
  int64_t n;
  const uint8_t *which; /* rows that draw; NULL: all */
} rng_rows;

/* ---- generators ---- */

static rng_rows *rng_self (lua_State *L, const char *fn) {
  rng_rows *g = (rng_rows *)luaL_checkudata(L, 1, RNG_ROWS);
  if (!g->r) luaL_error(L, "%s: generators of rows are there while the batch is stepped", fn);
  return g;
}

/* A new tensor of each numbers a row, zeros; without a count at arg of one, with no dim for it. */
static void *draws (lua_State *L, const rng_rows *g, int arg, const char *fn, peri_dtype d,
                    int64_t *each) {
  lua_Integer k = luaL_optinteger(L, arg, 1);
  if (k < 1 || k > 1 << 24)
    luaL_error(L, "%s: count is %I, expected 1 to 2^24", fn, (LUAI_UACINT)k);
  const int64_t shape[2] = { g->n, k };
  const int ndim = lua_isnoneornil(L, arg) ? 1 : 2;
  peri_tensor **out = peri__box_new(L);
  peri__check(L, fn, peri_empty(peri_lua_ctx(L), d, ndim, shape, out));
  memset(peri_data(*out), 0, peri_nbytes(*out));
  *each = k;
  peri__charge(L);
  return peri_data(*out);
}

#define EACH_DRAW(g, at, each)                                   \
  for (int64_t row = 0, at = 0; row < (g)->n; row++, at += each) \
    if (!(g)->which || (g)->which[row])                          \
      for (int64_t k = 0; k < each; k++)

static int r_double (lua_State *L) {
  rng_rows *g = rng_self(L, "double");
  int64_t each;
  double *out = (double *)draws(L, g, 2, "double", PERI_F64, &each);
  EACH_DRAW(g, at, each) out[at + k] = peri_pcg64_double(g->r + row);
  return 1;
}

static int r_uniform (lua_State *L) {
  rng_rows *g = rng_self(L, "uniform");
  double low = luaL_optnumber(L, 2, 0), high = luaL_optnumber(L, 3, 1);
  int64_t each;
  double *out = (double *)draws(L, g, 4, "uniform", PERI_F64, &each);
  EACH_DRAW(g, at, each) out[at + k] = peri_pcg64_uniform(g->r + row, low, high);
  return 1;
}

static int r_normal (lua_State *L) {
  rng_rows *g = rng_self(L, "normal");
  int64_t each;
  double *out = (double *)draws(L, g, 2, "normal", PERI_F64, &each);
  EACH_DRAW(g, at, each) out[at + k] = peri_pcg64_normal(g->r + row);
  return 1;
}

static int r_integer (lua_State *L) {
  rng_rows *g = rng_self(L, "integer");
  lua_Integer n = luaL_checkinteger(L, 2);
  if (n < 1) luaL_error(L, "integer: n is %I, expected at least 1", (LUAI_UACINT)n);
  int64_t each, *out = (int64_t *)draws(L, g, 3, "integer", PERI_I64, &each);
  EACH_DRAW(g, at, each) out[at + k] = peri_pcg64_integer(g->r + row, n);
  return 1;
}

/* Generators are of environments: with several agents they share one. */
void peri__env_whole_rng (lua_State *L, lua_env *v) {
  v->rows = (rng_rows *)lua_newuserdatauv(L, sizeof *v->rows, 0);
  *v->rows = (rng_rows){ .n = peri_env_count(v->e) };
  luaL_setmetatable(L, RNG_ROWS);
}

/* ---- calls of Lua ---- */

/* The tensor of entry k of the list on top goes into rows of each bytes; which: those alone. */
static void take (lua_State *L, int k, peri_dtype d, int64_t rows, size_t each,
                  const uint8_t *which, int64_t agents, void *to) {
  const int top = lua_gettop(L);
  lua_rawgeti(L, -1, k);
  peri_tensor *t = peri_lua_to(L, -1);
  const size_t size = (size_t)rows * each;
  if (!t || peri_dtype_of(t) != d || peri_nbytes(t) != size)
    luaL_error(L, "result %d is no tensor of %s in %I rows", k, peri_dtype_name(d),
               (LUAI_UACINT)rows);
  const char *from = (const char *)peri_data(t);
  if (!peri_is_dense(t)) {
    void *dense = lua_newuserdatauv(L, size, 0);
    peri__check(L, "env", peri_copy_out(t, dense, size));
    from = (const char *)dense;
  }
  if (!which)
    memcpy(to, from, size);
  else
    for (int64_t row = 0; row < rows; row++)
      if (which[row / agents])
        memcpy((char *)to + row * (int64_t)each, from + row * (int64_t)each, each);
  lua_settop(L, top);
}

/* What both return: { obs, mask }, and of a step { ..., reward, terminated, truncated }. */
static void take_results (lua_State *L, const lua_env *v, bool stepped) {
  const peri_env_io *io = v->io;
  const peri_env *e = v->e;
  const uint8_t *which = io->which;
  luaL_checktype(L, -1, LUA_TTABLE);
  take(L, 1, v->obs.dtype, e->rows, e->obs_bytes, which, e->agents, io->obs);
  if (v->masked) take(L, 2, PERI_BOOL, e->rows, (size_t)v->action.n, which, e->agents, io->mask);
  if (!stepped) return;
  take(L, 3, PERI_F64, e->rows, sizeof(double), which, e->agents, io->reward);
  take(L, 4, PERI_BOOL, e->rows, 1, which, e->agents, io->terminated);
  take(L, 5, PERI_BOOL, e->rows, 1, which, e->agents, io->truncated);
  if (v->nmetrics)
    take(L, 6, PERI_F32, e->rows, (size_t)v->nmetrics * 4, which, e->agents, io->metric);
}

static void lend (lua_env *v) {
  v->rows->r = v->rng;
  v->rows->which = v->io->which;
}

/* (values, light lua_env): step(actions, generators) */
static int run_step (lua_State *L) {
  lua_env *v = (lua_env *)lua_touserdata(L, 2);
  int64_t shape[PERI_MAX_DIMS + 1] = { v->e->rows };
  for (int i = 0; i < v->action.ndim; i++) shape[i + 1] = v->action.shape[i];
  luaL_checkstack(L, 16, NULL);
  lend(v);
  lua_rawgeti(L, 1, STEP);
  peri_tensor **out = peri__box_new(L);
  peri__check(
      L, "step",
      peri_from(peri_lua_ctx(L), v->action.dtype, v->action.ndim + 1, shape, v->actions, out));
  peri__charge(L);
  lua_rawgeti(L, 1, RNG);
  lua_call(L, 2, 1);
  take_results(L, v, true);
  return 0;
}

/* (values, light lua_env): reset(mask, whether it has all, generators) */
static int run_reset (lua_State *L) {
  lua_env *v = (lua_env *)lua_touserdata(L, 2);
  const uint8_t *which = v->io->which;
  const int64_t n = v->e->n;
  bool all = true;
  luaL_checkstack(L, 16, NULL);
  lend(v);
  lua_rawgeti(L, 1, RESET);
  peri_tensor **out = peri__box_new(L);
  peri__check(L, "reset", peri_empty(peri_lua_ctx(L), PERI_BOOL, 1, &n, out));
  uint8_t *mask = (uint8_t *)peri_data(*out);
  for (int64_t i = 0; i < n; i++) all &= mask[i] = !which || which[i];
  lua_pushboolean(L, all);
  lua_rawgeti(L, 1, RNG);
  lua_call(L, 3, 1);
  take_results(L, v, false);
  return 0;
}

static peri_status run (lua_env *v, lua_CFunction fn, const void *actions, peri_pcg64 *rng,
                        const peri_env_io *io) {
  v->io = io;
  v->actions = actions;
  v->rng = rng;
  peri_status s = peri__env_lua_run(v, fn);
  v->rows->r = NULL;
  return s;
}

peri_status peri__env_whole_step (const void *shared, void *states, int64_t stride, int64_t begin,
                                  int64_t end, peri_pcg64 *rng, const peri_env_io *io) {
  (void)states, (void)stride, (void)begin, (void)end;
  return run((lua_env *)shared, run_step, io->action, rng, io);
}

peri_status peri__env_whole_reset (const void *shared, void *states, int64_t stride,
                                   peri_pcg64 *rng, const peri_env_io *io) {
  (void)states, (void)stride;
  return run((lua_env *)shared, run_reset, NULL, rng, io);
}

static const peri_reg meta[] = { { NULL, NULL, NULL, NULL } };
static const peri_reg methods[] = {
  { "double", "count?", "Floats in [0, 1), (n) f64, or (n, count).", r_double },
  { "uniform", "low?, high?, count?", "Floats in [low, high), by default [0, 1).", r_uniform },
  { "integer", "n, count?", "Integers from 0 to n - 1, i64.", r_integer },
  { "normal", "count?", "Normally distributed floats.", r_normal },
  { NULL, NULL, NULL, NULL }
};

void peri__open_env_whole (lua_State *L) {
  peri__metatable(L, RNG_ROWS, meta, methods);
  lua_pop(L, 1);
}
