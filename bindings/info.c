/*
** info.c - what the runtime says about itself: the op table, profiles, threads, memory of names
** and docs for help and for the generator of stubs.
*/
#define _POSIX_C_SOURCE 200809L /* clock_gettime */

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "args.h"
#include "embed.h"

/* Every list of registered functions; ORDER families: peri__open_* in state.c. */
extern const peri_reg *const peri__tensor_functions,
    *const peri__tensor_methods,
        *const peri__make_functions,
            *const peri__make_methods,
                *const peri__memory_functions,
                    *const peri__grad_functions,
                        *const peri__grad_methods,
                            *const peri__custom_functions,
                                *const peri__checkpoint_functions,
                                    *const peri__limit_functions,
                                        *const peri__rng_functions,
                                            *const peri__rng_methods,
                                                *const peri__channel_functions,
                                                    *const peri__channel_methods,
                                                        *const peri__worker_methods,
                                                            *const peri__replay_methods,
                                                                *const peri__rollout_methods;
static const peri_reg *own_functions (void);

/* ---- ops ---- */

static const struct {
  uint32_t bit;
  const char *name;
} flag_names[] = { { PERI_OP_VIEW, "view" },
                   { PERI_OP_INPLACE, "inplace" },
                   { PERI_OP_ELEMENTWISE, "elementwise" },
                   { PERI_OP_RANDOM, "random" },
                   { PERI_OP_FLOAT, "float" },
                   { PERI_OP_NO_GRAD2, "no_grad2" },
                   { PERI_OP_UPCAST, "upcast" },
                   { PERI_OP_STRIDED, "strided" } };

static void set_string (lua_State *L, const char *key, const char *value) {
  lua_pushstring(L, value);
  lua_setfield(L, -2, key);
}

/* The default as Lua writes it: dims and positions count from 1, "none" is no default. */
static void set_default (lua_State *L, const peri_param *p) {
  bool one = p->kind == PERI_K_DIM || p->kind == PERI_K_POS;
  switch (p->kind) {
  case PERI_K_INT:
  case PERI_K_DIM:
  case PERI_K_POS:
    if (p->def.i == INT64_MIN) return;
    lua_pushinteger(L, one && p->def.i >= 0 ? p->def.i + 1 : p->def.i);
    break;
  case PERI_K_NUM:
    if (p->def.f != p->def.f) return;
    lua_pushnumber(L, p->def.f);
    break;
  case PERI_K_BOOL: lua_pushboolean(L, p->def.i != 0); break;
  case PERI_K_STR:
    if (!p->def.s) return;
    lua_pushstring(L, p->def.s);
    break;
  case PERI_K_DTYPE:
    if (p->def.i < 0) return;
    lua_pushstring(L, peri_dtype_name((peri_dtype)p->def.i));
    break;
  default: return;
  }
  lua_setfield(L, -2, "default");
}

static void push_params (lua_State *L, const peri_sig *sig) {
  lua_createtable(L, sig->n, 0);
  for (int i = 0; i < sig->n; i++) {
    const peri_param *p = &sig->p[i];
    lua_createtable(L, 0, 4);
    set_string(L, "name", p->name);
    set_string(L, "kind", peri_kind_name(p->kind));
    lua_pushboolean(L, p->has_default || p->kind == PERI_K_OPTIONAL);
    lua_setfield(L, -2, "optional");
    if (p->has_default) set_default(L, p);
    if (p->written) {
      lua_pushboolean(L, true);
      lua_setfield(L, -2, "written");
    }
    if (p->target) {
      lua_pushboolean(L, true);
      lua_setfield(L, -2, "target");
    }
    lua_rawseti(L, -2, i + 1);
  }
}

#ifdef PERI_TESTING
static void set_list (lua_State *L, const char *key, const char *const *list) {
  lua_newtable(L);
  for (int i = 0; list[i]; i++) {
    lua_pushstring(L, list[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, key);
}

/* What the block says for the tests, as fields of the op. */
static void push_tests (lua_State *L, const peri_op *op) {
  if (op->tests.domain) set_string(L, "domain", op->tests.domain);
  if (op->tests.large) set_string(L, "large", op->tests.large);
  if (op->tests.reference) set_string(L, "reference", op->tests.reference);
  set_list(L, "variants", op->tests.variants);
  set_list(L, "refuses", op->tests.refuses);
  lua_pushboolean(L, op->compose != NULL);
  lua_setfield(L, -2, "composed");
}
#endif

static void push_op (lua_State *L, const peri_op *op) {
  lua_createtable(L, 0, 8);
  set_string(L, "name", op->name);
  set_string(L, "sig", op->sig);
  set_string(L, "doc", op->doc ? op->doc : "");
#ifdef PERI_TESTING
  push_tests(L, op);
#endif
  lua_pushinteger(L, peri_op_outputs(op));
  lua_setfield(L, -2, "outputs");
  lua_pushboolean(L, (peri_op_flags(op) & PERI_OP_GRAD) != 0);
  lua_setfield(L, -2, "differentiable");
  lua_newtable(L);
  for (size_t i = 0; i < sizeof flag_names / sizeof *flag_names; i++)
    if (op->flags & flag_names[i].bit) {
      lua_pushboolean(L, 1);
      lua_setfield(L, -2, flag_names[i].name);
    }
  lua_setfield(L, -2, "flags");
  const peri_sig *sig = peri__sig(op);
  if (sig) {
    push_params(L, sig);
    lua_setfield(L, -2, "params");
  }
}

static int l_ops (lua_State *L) {
  int n = peri_op_count();
  lua_createtable(L, n, 0);
  for (int i = 0; i < n; i++) {
    push_op(L, peri_op_at(i));
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* ---- registered functions ---- */

static void push_list (lua_State *L, const peri_reg *list, const char *prefix, lua_Integer *at) {
  for (; list->name; list++) {
    if (list->name[0] == '_') continue;
    lua_createtable(L, 0, 4);
    set_string(L, "name", list->name);
    set_string(L, "sig", list->sig);
    set_string(L, "doc", list->doc);
    set_string(L, "of", prefix);
    lua_rawseti(L, -2, ++*at);
  }
}

static int l_functions (lua_State *L) {
  lua_Integer n = 0;
  lua_newtable(L);
  push_list(L, peri__make_functions, "perilune", &n);
  push_list(L, peri__tensor_functions, "perilune", &n);
  push_list(L, peri__grad_functions, "perilune", &n);
  push_list(L, peri__custom_functions, "perilune", &n);
  push_list(L, peri__checkpoint_functions, "perilune", &n);
  push_list(L, peri__memory_functions, "perilune", &n);
  push_list(L, peri__limit_functions, "perilune", &n);
  push_list(L, peri__rng_functions, "perilune", &n);
  push_list(L, peri__channel_functions, "perilune", &n);
  push_list(L, own_functions(), "perilune", &n);
  push_list(L, peri__tensor_methods, "tensor", &n);
  push_list(L, peri__make_methods, "tensor", &n);
  push_list(L, peri__grad_methods, "tensor", &n);
  push_list(L, peri__rng_methods, "rng", &n);
  push_list(L, peri__channel_methods, "channel", &n);
  push_list(L, peri__worker_methods, "worker", &n);
  push_list(L, peri__replay_methods, "replay", &n);
  push_list(L, peri__rollout_methods, "rollout", &n);
  return 1;
}

/* describe(f): {name, sig, doc} of an op or a registered function, else nil. */
static int l_describe (lua_State *L) {
  luaL_checkany(L, 1);
  if (!lua_iscfunction(L, 1)) return 0;
  const peri_op *op = peri__op_of(L, 1);
  if (op) {
    push_op(L, op);
    return 1;
  }
  if (!lua_getupvalue(L, 1, 1)) return 0;
  if (lua_touserdata(L, -1) != BIND(L) || !lua_getupvalue(L, 1, 2)) return 0;
  const peri_reg *r = lua_islightuserdata(L, -1) ? (const peri_reg *)lua_touserdata(L, -1) : NULL;
  if (!r || !r->doc) return 0;
  lua_createtable(L, 0, 3);
  set_string(L, "name", r->name);
  set_string(L, "sig", r->sig);
  set_string(L, "doc", r->doc);
  return 1;
}

/* For the module's own Lua files: a method of tensors written in Lua. */
static int l_method (lua_State *L) {
  luaL_checkstring(L, 1);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_settop(L, 2);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_methods);
  lua_insert(L, 1);
  lua_rawset(L, 1);
  return 0;
}

static int l_methods (lua_State *L) {
  lua_settop(L, 0);
  lua_newtable(L);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_methods);
  lua_pushnil(L);
  while (lua_next(L, 2)) {
    lua_pushvalue(L, -2);
    lua_insert(L, -2);
    lua_rawset(L, 1);
  }
  lua_settop(L, 1);
  return 1;
}

int peri__source (lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  for (const peri__embedded_file *f = peri__embedded; f->name; f++)
    if (strcmp(f->name, name) == 0) {
      lua_pushlstring(L, (const char *)f->bytes, f->size);
      return 1;
    }
  return 0;
}

/* ---- machine ---- */

/* "model name" of the first processor, where the system says. */
static void push_processor (lua_State *L) {
  char line[256];
  FILE *f = fopen("/proc/cpuinfo", "r");
  const char *name = NULL;
  while (f && !name && fgets(line, sizeof line, f))
    if (strncmp(line, "model name", 10) == 0 && (name = strchr(line, ':')) != NULL) name += 2;
  if (f) fclose(f);
  if (name)
    lua_pushlstring(L, name, strcspn(name, "\n"));
  else
    lua_pushliteral(L, "unknown");
}

static int l_info (lua_State *L) {
  peri_ctx *ctx = BIND(L)->ctx;
  lua_createtable(L, 0, 8);
  set_string(L, "version", peri_version());
  set_string(L, "simd", peri_simd_name(ctx));
  set_string(L, "device", "cpu");
  set_string(L, "lua", LUA_RELEASE);
  lua_pushinteger(L, peri_threads(ctx));
  lua_setfield(L, -2, "threads");
  lua_pushinteger(L, peri_op_count());
  lua_setfield(L, -2, "ops");
  lua_pushinteger(L, (lua_Integer)ctx->max_bytes);
  lua_setfield(L, -2, "max_bytes");
  push_processor(L);
  lua_setfield(L, -2, "processor");
  return 1;
}

static int l_threads (lua_State *L) {
  lua_pushinteger(L, peri_threads(BIND(L)->ctx));
  return 1;
}

static double now (void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int l_time (lua_State *L) {
  lua_pushnumber(L, now());
  return 1;
}

/* Whether a stop was asked for, for loops in Lua that swallow errors or stop where it suits them. */
static int l_interrupted (lua_State *L) {
  peri_ctx *ctx = BIND(L)->ctx;
  lua_pushboolean(L, atomic_load_explicit(&ctx->interrupted, memory_order_relaxed) ||
                         atomic_load_explicit(&ctx->requested, memory_order_relaxed));
  return 1;
}

/* A request that was noted before is forgotten and reported, so that nobody finds it twice. */
static int l_on_interrupt (lua_State *L) {
  peri_ctx *ctx = BIND(L)->ctx;
  if (lua_type(L, 1) != LUA_TBOOLEAN)
    return peri__type_error(L, "on_interrupt", 1, "defer", "true or false");
  if (!lua_isnoneornil(L, 2) && lua_type(L, 2) != LUA_TSTRING)
    return peri__type_error(L, "on_interrupt", 2, "notice", "a string");
  atomic_store(&ctx->deferring, 0); /* nobody reads the notice while it changes */
  snprintf(BIND(L)->notice, PERI_WARNING_SIZE, "%s", luaL_optstring(L, 2, ""));
  atomic_store(&ctx->deferring, lua_toboolean(L, 1));
  lua_pushboolean(L, atomic_exchange(&ctx->requested, 0));
  return 1;
}

#ifdef PERI_TESTING
static int l_fail_after (lua_State *L) {
  peri_test_fail_after(BIND(L)->ctx, luaL_checkinteger(L, 1), lua_toboolean(L, 2));
  return 0;
}

static int l_interrupt_at (lua_State *L) {
  peri_test_interrupt_at(BIND(L)->ctx, luaL_checkinteger(L, 1));
  return 0;
}

/* looks() -> how often something has looked for an interrupt; the pending one is cleared. */
static int l_looks (lua_State *L) {
  lua_pushinteger(L, peri_test_looks(BIND(L)->ctx));
  peri_interrupt_clear(BIND(L)->ctx);
  return 1;
}

static int l_fired (lua_State *L) {
  lua_pushboolean(L, peri_test_fired(BIND(L)->ctx));
  return 1;
}
#endif

/* ---- profile ---- */

#define PROFILER "perilune.profiler"
#define PROFILE "perilune.profile"

static int profiler_close (lua_State *L) {
  bool *running = (bool *)luaL_testudata(L, 1, PROFILER);
  if (running && *running) peri_profile_stop(BIND(L)->ctx);
  if (running) *running = false;
  return 0;
}

static void set_number (lua_State *L, const char *key, double v) {
  lua_pushnumber(L, v);
  lua_setfield(L, -2, key);
}

static peri_profile_row profile_row (lua_State *L, int i) {
  peri_profile_row row = { .struct_size = sizeof row };
  peri__check(L, "profile", peri_profile_at(BIND(L)->ctx, i, &row));
  return row;
}

static void push_profile (lua_State *L, double wall) {
  peri_ctx *ctx = BIND(L)->ctx;
  double total = 0;
  int n = peri_profile_count(ctx);
  for (int i = 0; i < n; i++) total += profile_row(L, i).seconds;
  lua_createtable(L, n, 2);
  for (int i = 0; i < n; i++) {
    peri_profile_row row = profile_row(L, i);
    double s = row.seconds > 0 ? row.seconds : 1e-9;
    lua_createtable(L, 0, 7);
    set_string(L, "op", row.name);
    lua_pushinteger(L, row.count);
    lua_setfield(L, -2, "count");
    set_number(L, "ms", row.seconds * 1e3);
    set_number(L, "share", total > 0 ? row.seconds / total : 0);
    set_number(L, "gflops", row.flops / s * 1e-9);
    set_number(L, "gbs", row.bytes / s * 1e-9);
    lua_rawseti(L, -2, i + 1);
  }
  set_number(L, "seconds", wall);
  set_number(L, "op_seconds", total);
  luaL_setmetatable(L, PROFILE);
}

static int l_profile (lua_State *L) {
  int n = lua_gettop(L);
  if (lua_type(L, 1) != LUA_TFUNCTION && !luaL_getmetafield(L, 1, "__call"))
    return peri__type_error(L, "profile", 1, "fn", "a function");
  lua_settop(L, n);
  bool *running = (bool *)lua_newuserdatauv(L, sizeof *running, 0);
  *running = false;
  luaL_setmetatable(L, PROFILER);
  lua_insert(L, 1);
  lua_toclose(L, 1);
  peri_profile_start(BIND(L)->ctx);
  *running = true;
  double t0 = now();
  lua_call(L, n - 1, LUA_MULTRET);
  double wall = now() - t0;
  luaL_checkstack(L, 8, NULL);
  push_profile(L, wall); /* before the guard stops it */
  lua_insert(L, 2);
  return lua_gettop(L) - 1;
}

/* For nn's summary: arithmetic of the profile that is running, so far. */
static int l_flops (lua_State *L) {
  int n = peri_profile_count(BIND(L)->ctx);
  double sum = 0;
  for (int i = 0; i < n; i++) sum += profile_row(L, i).flops;
  lua_pushnumber(L, sum);
  return 1;
}

static double field (lua_State *L, const char *key) {
  lua_getfield(L, -1, key);
  double v = lua_tonumber(L, -1);
  lua_pop(L, 1);
  return v;
}

static int profile_tostring (lua_State *L) {
  luaL_Buffer out;
  char line[160];
  luaL_checktype(L, 1, LUA_TTABLE);
  int n = (int)lua_rawlen(L, 1);
  lua_settop(L, 1);
  double wall = field(L, "seconds"), ops = field(L, "op_seconds");
  luaL_buffinit(L, &out);
  snprintf(line, sizeof line, "%-24s %9s %11s %7s %9s %8s", "op", "count", "ms", "share", "GFLOP/s",
           "GB/s");
  luaL_addstring(&out, line);
  for (int i = 1; i <= n; i++) {
    lua_rawgeti(L, 1, i);
    if (lua_type(L, -1) != LUA_TTABLE) return luaL_error(L, "profile: row %d is no table", i);
    lua_getfield(L, -1, "op");
    const char *name = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "?";
    lua_insert(L, -2);
    snprintf(line, sizeof line, "\n%-24.24s %9.0f %11.3f %6.1f%% %9.2f %8.2f", name,
             field(L, "count"), field(L, "ms"), 100 * field(L, "share"), field(L, "gflops"),
             field(L, "gbs"));
    lua_pop(L, 2);
    luaL_addstring(&out, line);
  }
  snprintf(line, sizeof line, "\nops %.3f ms of %.3f ms", ops * 1e3, wall * 1e3);
  luaL_addstring(&out, line);
  luaL_pushresult(&out);
  return 1;
}

static int l_warnings (lua_State *L) {
  peri_bind *b = BIND(L);
  unsigned first = b->warnings - b->told > PERI_NWARNING ? b->warnings - PERI_NWARNING : b->told;
  lua_createtable(L, (int)(b->warnings - first), 0);
  for (unsigned i = first; i != b->warnings; i++) {
    lua_pushstring(L, b->warning[i % PERI_NWARNING]);
    lua_rawseti(L, -2, (lua_Integer)(i - first) + 1);
  }
  b->told = b->warnings;
  return 1;
}

/* For perilune.log: whether what stands on the last line of the terminal is to be wiped first. */
static int l_bar (lua_State *L) {
  BIND(L)->bar = lua_toboolean(L, 1);
  return 0;
}

static const peri_reg profiler_meta[] = { { "__close", NULL, NULL, profiler_close },
                                          { NULL, NULL, NULL, NULL } };

static const peri_reg profile_meta[] = { { "__tostring", NULL, NULL, profile_tostring },
                                         { NULL, NULL, NULL, NULL } };

static const peri_reg functions[] = {
  { "info", "",
    "Version, processor, SIMD level, threads: {version, processor, simd, threads, lua, ops}.",
    l_info },
  { "threads", "", "The number of threads that ops run on.", l_threads },
  { "time", "", "Seconds of a monotonic clock.", l_time },
  { "interrupted", "",
    "Whether a stop was asked for: by a first Ctrl-C that on_interrupt defers, or by an interrupt "
    "that "
    "is pending.",
    l_interrupted },
  { "on_interrupt", "defer, notice?",
    "With true the first Ctrl-C of the program (a host's peri_interrupt_request) only makes "
    "interrupted() true and shows the notice on a terminal, and a second one interrupts; with "
    "false "
    "every one does. Returns whether a request was noted, and forgets it.",
    l_on_interrupt },
  { "warnings", "",
    "Warnings of the library since the last call, the newest eight: a list of lines. The program "
    "has "
    "shown them on the standard error, stock Lua does with -W.",
    l_warnings },
  { "_bar", "on", "Say that a progress bar ends the terminal's text; for perilune.log.", l_bar },
  { "profile", "fn, ...",
    "Call fn(...) and return a printable table of its ops by time, then fn's results.", l_profile },
  { "_flops", "", "Floating-point operations of the running profile so far; for nn's summary.",
    l_flops },
  { "ops", "", "The op table: {name, sig, doc, params, flags, outputs, differentiable} of each.",
    l_ops },
  { "activations", "",
    "The registry of activations: {name, layer, published, gain, doc} of each, published being the "
    "names that configs of models have for it besides.",
    peri__activations },
  { "dtypes", "",
    "The table of dtypes: {name, alias, kind, elements, bytes} of each, elements and bytes being "
    "those "
    "of a block, kind \"bool\", \"integer\", \"float\" or \"quantised\".",
    peri__dtypes },
  { "functions", "", "The functions and methods that are no ops: {name, sig, doc, of} of each.",
    l_functions },
  { "methods", "", "Every method of tensors by name.", l_methods },
  { "_method", "name, fn", "Make fn a method of tensors; for the module's own files.", l_method },
  { "describe", "f", "Name, signature and doc of an op or function of the module, else nothing.",
    l_describe },
#ifdef PERI_TESTING
  { "_fail_after", "n, sticky?",
    "Tests: fail the n-th allocation of the runtime from now on; -1 never.", l_fail_after },
  { "_interrupt_at", "n",
    "Tests: interrupt at the n-th look for one from now on, from 0; -1 never.", l_interrupt_at },
  { "_looks", "", "Tests: how often an interrupt was looked for; clears one that is pending.",
    l_looks },
  { "_fired", "", "Tests: whether an allocation was failed.", l_fired },
#endif
  { "_source", "name", "Text of an embedded Lua file.", peri__source },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg *own_functions (void) { return functions; }

void peri__open_info (lua_State *L) {
  peri__metatable(L, PROFILER, profiler_meta, NULL);
  peri__metatable(L, PROFILE, profile_meta, NULL);
  lua_pop(L, 2);
  peri__register(L, functions);
}
