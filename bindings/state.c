/*
** state.c - the state behind one Lua state: opening the module, registering functions, errors.
** Knows nothing of single functions; each family has its own file.
*/
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <lualib.h>

#include "bind.h"
#include "embed.h"
#include "limit.h"

const char peri__key_bind = 0, peri__key_tensor = 0, peri__key_methods = 0, peri__key_intercept = 0,
           peri__key_ops = 0;

peri_bind *peri__bind (lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_bind);
  peri_bind *b = (peri_bind *)lua_touserdata(L, -1);
  lua_pop(L, 1);
  if (!b || !b->ctx) luaL_error(L, "the perilune module is not open in this Lua state");
  return b;
}

peri_ctx *peri_lua_ctx (lua_State *L) {
  peri_bind *b = peri__bind(L);
  peri__here(L, b);
  return b->ctx;
}

/* ---- registering ---- */

void peri__register (lua_State *L, const peri_reg *list) {
  peri_bind *b = peri__bind(L);
  for (; list->name; list++) {
    lua_pushlightuserdata(L, b);
    lua_pushlightuserdata(L, (void *)list);
    lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_tensor);
    lua_pushcclosure(L, list->fn, 3);
    lua_setfield(L, -2, list->name);
  }
}

void peri__metatable (lua_State *L, const char *key, const peri_reg *meta,
                      const peri_reg *methods) {
  if (luaL_getmetatable(L, key) == LUA_TTABLE) return;
  lua_pop(L, 1);
  lua_newtable(L); /* in the registry when it is whole */
  lua_pushstring(L, key);
  lua_setfield(L, -2, "__name");
  lua_pushstring(L, key);
  lua_setfield(L, -2, "__metatable");
  peri__register(L, meta);
  if (methods) {
    lua_newtable(L);
    peri__register(L, methods);
    lua_setfield(L, -2, "__index");
  }
  lua_pushvalue(L, -1);
  lua_setfield(L, LUA_REGISTRYINDEX, key);
}

void peri__weak_keys (lua_State *L) {
  lua_newtable(L);
  lua_createtable(L, 0, 1);
  lua_pushliteral(L, "k");
  lua_setfield(L, -2, "__mode");
  lua_setmetatable(L, -2);
}

/* ---- errors ---- */

void peri__push_place (lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_bind);
  const peri_bind *b = (const peri_bind *)lua_touserdata(L, -1);
  lua_pop(L, 1);
  const char *own = b ? b->library : "";
  size_t n = strlen(own);
  lua_Debug ar;
  for (int level = 0; lua_getstack(L, level, &ar); level++) {
    lua_getinfo(L, "Sl", &ar);
    if (ar.currentline <= 0 || (n > 0 && strncmp(ar.source, own, n) == 0)) continue;
    lua_pushfstring(L, "%s:%d: ", ar.short_src, ar.currentline);
    return;
  }
  luaL_where(L, 1);
}

int peri__error (lua_State *L, const char *fmt, ...) {
  va_list ap;
  peri__push_place(L);
  va_start(ap, fmt);
  lua_pushvfstring(L, fmt, ap);
  va_end(ap);
  lua_concat(L, 2);
  return lua_error(L);
}

/* _library(prefix): sources that begin so are the library's own. */
static int l_library (lua_State *L) {
  size_t n;
  const char *prefix = luaL_checklstring(L, 1, &n);
  peri_bind *b = BIND(L);
  if (n < sizeof b->library) memcpy(b->library, prefix, n + 1);
  return 0;
}

static const peri_reg error_functions[] = {
  { "_library", "prefix", "What the sources of the library's own Lua files begin with.",
    l_library },
  { NULL, NULL, NULL, NULL }
};

void peri__check (lua_State *L, const char *fn, peri_status s) {
  if (s != PERI_OK) luaL_error(L, "%s: %s", fn, peri__bind(L)->ctx->scripted);
}

int peri__type_error (lua_State *L, const char *fn, int arg, const char *name, const char *what) {
  if (lua_isnoneornil(L, arg))
    return luaL_error(L,
                      name ? "%s: argument %d (%s) is missing: %s expected"
                           : "%s: argument %d%s is missing: %s expected",
                      fn, arg, name ? name : "", what);
  const char *got = luaL_getmetafield(L, arg, "__name") == LUA_TSTRING ? lua_tostring(L, -1)
                                                                       : luaL_typename(L, arg);
  return luaL_error(
      L, name ? "%s: argument %d (%s) must be %s, got %s" : "%s: argument %d%s must be %s, got %s",
      fn, arg, name ? name : "", what, got);
}

static int no_function (lua_State *L) {
  (void)L;
  return 0;
}

/* A finalizer that Lua has no memory to call is skipped, and its tensor stays until the context closes. The
** call before leaves the record of a call that the finalizers can have. */
bool peri__retry (lua_State *L, peri_status s, int *tries) {
  if (s != PERI_ENOMEM || (*tries)++ > 0) return false;
  lua_pushcfunction(L, no_function);
  lua_call(L, 0, 0);
  lua_gc(L, LUA_GCCOLLECT);
  return true;
}

/* ---- opening ---- */

static void bind_close (lua_State *L, peri_bind *b) {
  if (!b || !b->ctx) return;
  peri__workers_close(b);
  peri__custom_close(b);
  for (int i = 0; i < PERI_NSCALAR; i++) peri_release(b->scalar[i]);
  peri_ctx *ctx = b->ctx;
  b->ctx = NULL;
  peri__stop_close(L);
  if (b->owns) peri_close(ctx);
}

/* The last finalizer of the Lua state: metatables of everything else were set later. */
static int bind_gc (lua_State *L) {
  bind_close(L, (peri_bind *)lua_touserdata(L, 1));
  return 0;
}

static int bind_new (lua_State *L) {
  peri_bind *b = (peri_bind *)lua_newuserdatauv(L, sizeof *b, 0);
  memset(b, 0, sizeof *b);
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  b->main = lua_tothread(L, -1);
  lua_pop(L, 1);
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, bind_gc);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
  lua_pushvalue(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &peri__key_bind);
  return 1;
}

/* Number in an environment variable, for the stock module and the program only. */
static uint64_t env_number (lua_State *L, const char *name, uint64_t most) {
  const char *text = getenv(name);
  if (!text || !*text) return 0;
  char *end;
  unsigned long long v = strtoull(text, &end, 10);
  if (*end || text[0] == '-' || v > most)
    luaL_error(L, "%s=%s: a number from 0 to %I is expected", name, text, (LUAI_UACINT)most);
  return v;
}

/* Bytes in PERI_MAX_BYTES: 4G, 512M, 1000000; 0 and none are no limit. Without it seven eighths of
** what the machine has: Lua, files and the rest of the process need room too. */
static size_t env_bytes (lua_State *L) {
  static const char units[] = "KMGT";
  const char *text = getenv("PERI_MAX_BYTES");
  if (!text || !*text) return peri_machine_memory() / 8 * 7;
  if (strcmp(text, "none") == 0) return 0;
  char *end = NULL;
  errno = 0;
  unsigned long long v = text[0] >= '0' && text[0] <= '9' ? strtoull(text, &end, 10) : 0;
  bool ok = end != NULL && errno == 0;
  const char *unit =
      ok && *end ? strchr(units, *end >= 'a' && *end <= 'z' ? *end - 32 : *end) : NULL;
  if (unit) {
    ok = !__builtin_mul_overflow(v, 1ull << 10 * (unit - units + 1), &v);
    end++;
    if (end[0] == 'i' && end[1] == 'B') end++;
  }
  if (ok && *end == 'B') end++;
  if (!ok || *end || v > INT64_MAX)
    luaL_error(L, "PERI_MAX_BYTES=%s: bytes such as 4G, 512M or 1000000, or none, are expected",
               text);
  return (size_t)v;
}

/* Warnings of the library go where Lua's own go: the program shows them, stock Lua does with -W. Called
** from inside of any binding: lua_warning neither raises nor touches a stack. */
static void note_line (void *ud, peri_log_level level, const char *line) {
  peri_bind *b = (peri_bind *)ud;
  (void)level;
  snprintf(b->warning[b->warnings++ % PERI_NWARNING], PERI_WARNING_SIZE, "%s", line);
  lua_warning(b->main, line, 0);
}

static peri_ctx *default_ctx (lua_State *L, peri_bind *b) {
  static const char *const names[] = { "auto", "portable", "avx2", "avx512" }; /* ORDER simd */
  peri_options o;
  peri_options_init(&o);
  o.log = note_line;
  o.log_ud = b;
  o.log_level = PERI_LOG_WARN;
  o.threads = (int)env_number(L, "PERI_THREADS", 1024);
  o.seed = env_number(L, "PERI_SEED", INT64_MAX);
  o.max_bytes = env_bytes(L);
  const char *simd = getenv("PERI_SIMD");
  if (simd && *simd) {
    int i = 0;
    while (i < 4 && strcmp(simd, names[i]) != 0) i++;
    if (i == 4) luaL_error(L, "PERI_SIMD=%s: portable, avx2 or avx512 is expected", simd);
    o.simd = (peri_simd)i;
  }
  peri_ctx *ctx;
  peri_status s = peri_open(&o, &ctx);
  if (s == PERI_ENOSUP)
    luaL_error(L, "PERI_SIMD=%s: this processor lacks it", simd ? simd : "auto");
  if (s != PERI_OK) luaL_error(L, "cannot open a context: %s", peri_status_name(s));
  return ctx;
}

static void open_scalars (lua_State *L, peri_bind *b) {
  size_t before = b->ctx->live;
  for (int i = 0; i < PERI_NSCALAR; i++) {
    peri__check(L, "perilune", peri_scalar(b->ctx, PERI_F64, 0, &b->scalar[i]));
    b->scalar[i]->flags |= PERI_T_WEAK;
  }
  b->scalar_bytes = b->ctx->live - before;
}

/* package.searchers entry: the embedded files. */
static int search_embedded (lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  luaL_gsub(L, name, ".", "/");
  for (const peri__embedded_file *f = peri__embedded; f->name; f++) {
    const char *base = lua_tostring(L, -1);
    size_t n = strlen(base);
    if (strncmp(f->name, base, n) != 0) continue;
    if (strcmp(f->name + n, ".lua") != 0 && strcmp(f->name + n, "/init.lua") != 0) continue;
    lua_pushfstring(L, "=%s", f->name);
    if (luaL_loadbufferx(L, (const char *)f->bytes, f->size, lua_tostring(L, -1), "t") != LUA_OK)
      return lua_error(L);
    lua_pushfstring(L, "embedded:%s", f->name);
    return 2;
  }
  lua_pushfstring(L, "no embedded file '%s.lua'", lua_tostring(L, -1));
  return 1;
}

void peri__add_searcher (lua_State *L, bool first) {
  int top = lua_gettop(L);
  if (lua_getglobal(L, LUA_LOADLIBNAME) == LUA_TTABLE &&
      lua_getfield(L, -1, "searchers") == LUA_TTABLE) {
    lua_Integer n = (lua_Integer)lua_rawlen(L, -1), at = first && n > 1 ? 2 : n + 1;
    for (lua_Integer i = n; i >= at; i--) {
      lua_rawgeti(L, -1, i);
      lua_rawseti(L, -2, i + 1);
    }
    lua_pushcfunction(L, search_embedded);
    lua_rawseti(L, -2, at);
  }
  lua_settop(L, top);
}

bool peri__embedded_first (lua_State *L) {
  int top = lua_gettop(L);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  bool first = lua_getfield(L, -1, LUA_LOADLIBNAME) == LUA_TTABLE &&
               lua_getfield(L, -1, "searchers") == LUA_TTABLE &&
               lua_rawgeti(L, -1, 2) == LUA_TFUNCTION && lua_tocfunction(L, -1) == search_embedded;
  lua_settop(L, top);
  return first;
}

int luaopen_perilune_core (lua_State *L) {
  lua_settop(L, 0);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_bind);
  peri_bind *b = (peri_bind *)lua_touserdata(L, -1);
  if (!b) {
    bind_new(L);
    b = (peri_bind *)lua_touserdata(L, -1);
  }
  if (!b->ctx) {
    b->owns = true;
    b->ctx = default_ctx(L, b);
  }
  if (b->tensor_mt) return luaL_error(L, "perilune.core is open already: use require");
  open_scalars(L, b);
  lua_newtable(L); /* metatable of tensors: its address before its content */
  b->tensor_mt = lua_topointer(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &peri__key_tensor);
  b->collect_at = b->ctx->live;
  peri__open_threads(L);
  lua_newtable(L); /* the module */
  peri__open_tensor(L);
  peri__open_call(L);
  peri__open_make(L);
  peri__open_memory(L);
  peri__open_grad(L);
  peri__open_custom(L);
  peri__open_checkpoint(L);
  peri__open_rng(L);
  peri__open_info(L);
  peri__open_channel(L);
  peri__open_worker(L);
  peri__open_replay(L);
  peri__open_rollout(L);
  peri__open_limits(L);
  peri__open_sandbox(L);
  peri__open_deadline(L);
  peri__open_http(L);
  peri__register(L, error_functions);
  peri__open_json(L);
  lua_setfield(L, -2, "json");
  peri__open_files(L);
  lua_setfield(L, -2, "files");
  peri__open_safetensors(L);
  lua_setfield(L, -2, "safetensors");
  peri__open_gguf(L);
  lua_setfield(L, -2, "_gguf");
  peri__open_policy(L);
  lua_setfield(L, -2, "_policy");
  peri__open_arrays(L);
  peri__open_frame(L);
  peri__open_tokenizer(L);
  lua_setfield(L, -2, "_tokenizer");
  peri__open_env(L);
  lua_setfield(L, -2, "_env");
  peri__add_searcher(L, b->inside); /* a module's files are beside it, a host's are inside */
  return 1;
}

/* What luaopen_perilune_core began is no more: the next one begins anew. Raises nothing: a field that is there
** is set to nil without memory. */
static void undo_open (lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_bind);
  bind_close(L, (peri_bind *)lua_touserdata(L, -1));
  lua_pop(L, 1);
  lua_pushnil(L);
  while (lua_next(L, LUA_REGISTRYINDEX)) { /* metatables may be unfinished and know the context */
    bool ours = lua_type(L, -2) == LUA_TSTRING &&
                strncmp(lua_tostring(L, -2), "perilune.", sizeof "perilune." - 1) == 0;
    lua_pop(L, 1);
    if (!ours) continue;
    lua_pushvalue(L, -1);
    lua_pushnil(L);
    lua_rawset(L, LUA_REGISTRYINDEX);
  }
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_bind) != LUA_TNIL) {
    lua_pushnil(L);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &peri__key_bind);
  }
  lua_pop(L, 1);
}

static int open_with (lua_State *L) {
  peri_ctx *ctx = (peri_ctx *)lua_touserdata(L, 1);
  bind_new(L);
  peri_bind *b = (peri_bind *)lua_touserdata(L, -1);
  b->ctx = ctx;
  b->inside = lua_toboolean(L, 2) != 0;
  luaL_requiref(L, "perilune.core", luaopen_perilune_core, 0);
  return 0;
}

peri_status peri__lua_open (lua_State *L, peri_ctx *ctx, bool inside) {
  if (!ctx) return PERI_EINVAL;
  if (!lua_checkstack(L, 4)) return peri__fail(ctx, PERI_ENOMEM, "no room on the Lua stack");
  int top = lua_gettop(L);
  bool open = lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_bind) != LUA_TNIL;
  lua_settop(L, top);
  if (open)
    return peri__fail(ctx, PERI_EHOST, "the perilune module is open already in this Lua state");
  lua_pushcfunction(L, open_with);
  lua_pushlightuserdata(L, ctx);
  lua_pushboolean(L, inside);
  peri_status s = PERI_OK;
  int rc = lua_pcall(L, 2, 0, 0);
  if (rc != LUA_OK) {
    s = peri__caught(L, ctx, rc);
    undo_open(L);
  }
  lua_settop(L, top);
  return s;
}

peri_status peri_lua_open (lua_State *L, peri_ctx *ctx) { return peri__lua_open(L, ctx, true); }
