/*
** host.c - the Lua side for C hosts: states on a context's allocator, running chunks and functions
** with a traceback. Nothing here raises.
*/
#include <string.h>

#include <lualib.h>

#include "bind.h"
#include "limit.h"

/* Lua 5.5 adds the seed of its string hash. */
#if LUA_VERSION_NUM >= 505
#define NEW_STATE(fn, ud) lua_newstate((fn), (ud), 0)
#else
#define NEW_STATE(fn, ud) lua_newstate((fn), (ud))
#endif

/* The string key of the table at idx that comes after last (NULL: the first), of a plain value: pushed
** with it; false when there is none. Raw, as this runs while an error is under way. */
static bool next_field (lua_State *L, int idx, const char *last) {
  const char *best = NULL;
  lua_pushnil(L);
  while (lua_next(L, idx)) {
    int t = lua_type(L, -1);
    if (lua_type(L, -2) == LUA_TSTRING &&
        (t == LUA_TNUMBER || t == LUA_TSTRING || t == LUA_TBOOLEAN)) {
      const char *key = lua_tostring(L, -2); /* alive: the table holds it */
      if ((!last || strcmp(key, last) > 0) && (!best || strcmp(key, best) < 0)) best = key;
    }
    lua_pop(L, 1);
  }
  if (!best) return false;
  lua_pushstring(L, best);
  lua_pushvalue(L, -1);
  lua_rawget(L, idx);
  return true;
}

/* error{code = 5} must not lose the 5: "message (code = 5)" of the table at idx, at most 8 fields. */
static void push_error_table (lua_State *L, int idx) {
  const char *last = NULL;
  int n = 0;
  lua_pushliteral(L, "message");
  lua_rawget(L, idx);
  if (lua_type(L, -1) != LUA_TSTRING) {
    lua_pop(L, 1);
    lua_pushliteral(L, "error object is a table value");
  }
  lua_pushliteral(L, "");
  while (n < 8 && lua_checkstack(L, LUA_MINSTACK) && next_field(L, idx, last)) {
    last = lua_tostring(L, -2);
    if (strcmp(last, "message") != 0) {
      const char *quote = lua_type(L, -1) == LUA_TSTRING ? "'" : "";
      luaL_tolstring(L, -1, NULL);
      lua_pushfstring(L, "%s%s%s = %s%s%s", lua_tostring(L, -4), n++ ? ", " : "", last, quote,
                      lua_tostring(L, -1), quote);
      lua_replace(L, -5);
      lua_pop(L, 1);
    }
    lua_pop(L, 2); /* last stays alive in the table */
  }
  if (n > 0)
    lua_pushfstring(L, "%s (%s)", lua_tostring(L, -2), lua_tostring(L, -1));
  else
    lua_pushvalue(L, -2);
}

const char *peri__error_text (lua_State *L, int idx) {
  idx = lua_absindex(L, idx);
  if (lua_type(L, idx) == LUA_TSTRING || lua_type(L, idx) == LUA_TNUMBER)
    lua_pushvalue(L, idx);
  else if (luaL_callmeta(L, idx, "__tostring") && lua_type(L, -1) == LUA_TSTRING) {
  } else if (lua_istable(L, idx))
    push_error_table(L, idx);
  else
    lua_pushfstring(L, "error object is a %s value", luaL_typename(L, idx));
  return lua_tostring(L, -1);
}

/* As in lua.c: the message with a traceback; an error object speaks through __tostring and has none. */
int peri__traceback (lua_State *L) {
  peri_lua_stop *stop = peri__stop_of(L);
  if (stop) peri__stop_raised(stop);
  bool speaks = !lua_isstring(L, 1) && luaL_getmetafield(L, 1, "__tostring") != LUA_TNIL;
  const char *msg = peri__error_text(L, 1);
  if (speaks || strstr(msg, "\nstack traceback:\n"))
    return 1; /* one from a vjp says more than a second */
  luaL_traceback(L, L, msg, 1);
  return 1;
}

/* The context of L or NULL, without raising. */
static peri_ctx *ctx_of (lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_bind);
  peri_bind *b = (peri_bind *)lua_touserdata(L, -1);
  lua_pop(L, 1);
  return b ? b->ctx : NULL;
}

#define LUA_MEMORY "not enough memory"

/* A failure of the runtime travels through Lua as its message, which scripts may put others around:
** an error that holds the context's last message is that failure. Lack of memory is looked for where
** something else was refused since, too, and Lua's own is an ordinary error once a coroutine or a script
** has raised it again. */
static peri_status status_of (const peri_ctx *ctx, int rc, const char *text) {
  if (ctx && atomic_load_explicit(&ctx->interrupted, memory_order_relaxed)) return PERI_EINTR;
  switch (rc) {
  case LUA_OK: return PERI_OK;
  case LUA_ERRMEM: return PERI_ENOMEM;
  case LUA_ERRSYNTAX: return PERI_EFORMAT;
  case LUA_ERRFILE: return PERI_EIO;
  default:
    if (ctx && ctx->failed != PERI_OK && ctx->message[0] &&
        (strstr(text, ctx->scripted) ||
         strstr(text, ctx->message))) /* C functions raise the latter */
      return ctx->failed;
    if (strstr(text, LUA_MEMORY)) return PERI_ENOMEM;
    return ctx && ctx->starved[0] && strstr(text, ctx->starved) ? PERI_ENOMEM : PERI_EHOST;
  }
}

peri_status peri__caught (lua_State *L, peri_ctx *ctx, int rc) {
  const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "error is no string";
  const peri_lua_stop *stop = lua_checkstack(L, 1) ? peri__stop_of(L) : NULL;
  peri_status s = stop && peri__stop_pending(stop) ? PERI_EINTR : status_of(ctx, rc, text);
  bool lua_memory = strncmp(text, LUA_MEMORY, sizeof LUA_MEMORY - 1) == 0;
  if (ctx && lua_memory && stop && stop->memory)
    peri__fail(ctx, s, LUA_MEMORY ": the limit of this Lua state is %zu bytes%s", stop->memory,
               text + sizeof LUA_MEMORY - 1);
  else if (ctx)
    peri__fail(ctx, s, "%s", text);
  lua_pop(L, 1);
  return s;
}

static peri_status fail (lua_State *L, int rc) { return peri__caught(L, ctx_of(L), rc); }

static peri_status no_stack (lua_State *L) {
  peri_ctx *ctx = ctx_of(L);
  return ctx ? peri__fail(ctx, PERI_ENOMEM, "no room on the Lua stack") : PERI_ENOMEM;
}

/* What the host computes next is under the modes of L, whichever coroutine called last. */
static void come_back (lua_State *L) {
  if (!lua_checkstack(L, LUA_MINSTACK)) return;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_bind);
  peri_bind *b = (peri_bind *)lua_touserdata(L, -1);
  lua_pop(L, 1);
  if (b && b->ctx) peri__here(L, b);
}

peri_status peri_lua_call (lua_State *L, int nargs, int nresults) {
  if (!lua_checkstack(L, 4)) return no_stack(L);
  int base = lua_gettop(L) - nargs;
  peri_lua_stop *stop = peri__stop_of(L);
  if (stop) peri__stop_begin(stop);
  lua_pushcfunction(L, peri__traceback);
  lua_insert(L, base);
  int rc = lua_pcall(L, nargs, nresults, base);
  lua_remove(L, base);
  come_back(L);
  return rc == LUA_OK ? PERI_OK : fail(L, rc);
}

/* luaL_load... itself asks for memory before it is protected. */
static int load_string (lua_State *L) {
  const char *text = (const char *)lua_touserdata(L, 1), *name = (const char *)lua_touserdata(L, 2);
  lua_pushinteger(L, luaL_loadbufferx(L, text, strlen(text), name, "t"));
  return 2;
}

static int load_file (lua_State *L) {
  lua_pushinteger(L, luaL_loadfilex(L, (const char *)lua_touserdata(L, 1), "t"));
  return 2;
}

static peri_status run_chunk (lua_State *L, lua_CFunction load, const char *what,
                              const char *name) {
  if (!lua_checkstack(L, 4)) return no_stack(L);
  lua_pushcfunction(L, load);
  lua_pushlightuserdata(L, (void *)(uintptr_t)what);
  lua_pushlightuserdata(L, (void *)(uintptr_t)name);
  int rc = lua_pcall(L, 2, 2, 0);
  if (rc == LUA_OK) {
    rc = (int)lua_tointeger(L, -1);
    lua_pop(L, 1);
  }
  return rc == LUA_OK ? peri_lua_call(L, 0, 0) : fail(L, rc);
}

static peri_status null_text (lua_State *L, const char *name) {
  peri_ctx *ctx = ctx_of(L);
  return ctx ? peri__fail(ctx, PERI_EINVAL, "%s is NULL", name) : PERI_EINVAL;
}

peri_status peri_lua_run_string (lua_State *L, const char *text, const char *name) {
  if (!text) return null_text(L, "text");
  return run_chunk(L, load_string, text, name ? name : "=(string)");
}

peri_status peri_lua_run_file (lua_State *L, const char *path) {
  if (!path) return null_text(L, "path");
  return run_chunk(L, load_file, path, NULL);
}

static int open_libs (lua_State *L) {
  luaL_openlibs(L);
  return 0;
}

lua_State *peri__new_state (peri_alloc_fn alloc, void *ud) { return NEW_STATE(alloc, ud); }

peri_status peri_lua_new (peri_ctx *ctx, lua_State **out) {
  peri_alloc_fn alloc;
  void *ud;
  if (!ctx || !out) return ctx ? peri__fail(ctx, PERI_EINVAL, "out is NULL") : PERI_EINVAL;
  *out = NULL;
  peri_allocator(ctx, &alloc, &ud);
  lua_State *L = peri__new_state(alloc, ud);
  if (!L) return peri__fail(ctx, PERI_ENOMEM, "out of memory for a Lua state");
  lua_pushcfunction(L, open_libs);
  int rc = lua_pcall(L, 0, 0, 0);
  peri_status s = rc == LUA_OK ? PERI_OK : peri__caught(L, ctx, rc);
  if (s == PERI_OK) s = peri_lua_open(L, ctx);
  if (s != PERI_OK) {
    lua_close(L);
    return s;
  }
  lua_gc(L, LUA_GCGEN, 0, 0); /* as lua does, but once the libraries are old: results die young */
  *out = L;
  return PERI_OK;
}
