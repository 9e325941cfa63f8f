/* sandbox.c - peri._sandbox: requests to the helper program and what came back, for lua/perilune/sandbox.lua. */
#include <stdlib.h>
#include <string.h>

#include "keep.h"
#include "sandbox/sandbox.h"

static const char fn[] = "sandbox";

static const char *const ends[] = { "exited", "signalled", "timed out", "flooded",
                                    "unknown" }; /* ORDER sandbox_ends */

static void drop_jobs (peri_ctx *ctx, void *p, size_t n) {
  peri__sandbox_free(ctx, (peri__sandbox_job *)p, n);
}

static double number_of (lua_State *L, int idx, const char *name) {
  lua_getfield(L, idx, name);
  double v = lua_tonumber(L, -1);
  lua_pop(L, 1);
  return v;
}

/* The request stays alive in the caller's table. */
static void read_job (lua_State *L, int idx, peri__sandbox_job *job) {
  lua_getfield(L, idx, "request");
  job->request = lua_tolstring(L, -1, &job->request_size);
  lua_pop(L, 1);
  job->wall = number_of(L, idx, "wall");
  job->most_output = (size_t)number_of(L, idx, "output");
  job->most_reply = (size_t)number_of(L, idx, "reply");
}

static void push_result (lua_State *L, const peri__sandbox_job *job) {
  lua_createtable(L, 0, 7);
  lua_pushstring(L, ends[job->end]);
  lua_setfield(L, -2, "how");
  lua_pushinteger(L, job->code);
  lua_setfield(L, -2, "code");
  lua_pushnumber(L, job->seconds);
  lua_setfield(L, -2, "seconds");
  lua_pushnumber(L, job->cpu);
  lua_setfield(L, -2, "cpu");
  lua_pushinteger(L, (lua_Integer)job->memory);
  lua_setfield(L, -2, "memory");
  lua_pushlstring(L, job->output.p ? job->output.p : "", job->output.n);
  lua_setfield(L, -2, "output");
  lua_pushlstring(L, job->reply.p ? job->reply.p : "", job->reply.n);
  lua_setfield(L, -2, "reply");
}

/* The helper program: as the caller says, as the environment says, or where it is looked for; NULL with the message. */
static const char *program_of (lua_State *L, int arg, char *found, size_t size) {
  const char *given = luaL_optstring(L, arg, getenv("PERI_SANDBOX"));
  if (given && *given) return given;
  return peri__sandbox_find(peri_lua_ctx(L), found, size) == PERI_OK ? found : NULL;
}

static int l_sandbox (lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  char found[1024];
  peri_ctx *ctx = peri_lua_ctx(L);
  size_t n = (size_t)luaL_len(L, 1), workers = (size_t)luaL_checkinteger(L, 2);
  const char *program = program_of(L, 3, found, sizeof found);
  if (!program) return peri__fail_soft(L, fn);
  peri_keep *k = peri__keep_new(L, n * sizeof(peri__sandbox_job), drop_jobs);
  peri__sandbox_job *jobs = (peri__sandbox_job *)peri__keep_room(k);
  memset(jobs, 0, n * sizeof *jobs);
  for (size_t i = 0; i < n; i++) {
    lua_rawgeti(L, 1, (lua_Integer)i + 1);
    read_job(L, -1, &jobs[i]);
    lua_pop(L, 1);
  }
  k->p = jobs, k->n = n;
  peri_status s = peri__sandbox_run(ctx, program, jobs, n, workers);
  if (s == PERI_EIO) return peri__fail_soft(L, fn);
  peri__check(L, fn, s);
  lua_createtable(L, (int)n, 0);
  for (size_t i = 0; i < n; i++) {
    push_result(L, &jobs[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  peri__keep_drop(L, k);
  return 1;
}

static int l_find (lua_State *L) {
  char found[1024];
  const char *program = program_of(L, 1, found, sizeof found);
  if (!program) return peri__fail_soft(L, fn);
  lua_pushstring(L, program);
  return 1;
}

static const peri_reg functions[] = {
  { "_sandbox", "jobs, workers, program?",
    "Run the helper program of the sandbox for each job; a list of results, or nil and a message.",
    l_sandbox },
  { "_sandbox_program", "", "Path of the helper program, or nil and a message.", l_find },
  { NULL, NULL, NULL, NULL }
};

void peri__open_sandbox (lua_State *L) { peri__register(L, functions); }
