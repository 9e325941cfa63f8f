/* main.c - see program.h: reads the request, closes the door behind itself, runs. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* setenv, tzset */
#endif
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <lauxlib.h>

#include "program.h"

static sandbox_request request;
static uint64_t bytes, peak; /* of the Lua state */
static bool starting = true; /* the library does not count against the code's memory */

/* ---- reading ---- */

static bool read_request (void) {
  struct stat st;
  if (fstat(0, &st) != 0 || st.st_size < 48) return false;
  size_t n = (size_t)st.st_size, at = 0;
  uint8_t *p = (uint8_t *)malloc(n);
  if (!p) return false;
  while (at < n) {
    ssize_t k = read(0, p + at, n - at);
    if (k <= 0) return false;
    at += (size_t)k;
  }
  request.p = p, request.size = n;
  return true;
}

static bool take (void *to, size_t n) {
  if (n > request.size - request.at) return false;
  memcpy(to, request.p + request.at, n);
  request.at += n;
  return true;
}

static bool read_head (void) {
  uint32_t magic = 0, version = 0;
  return take(&magic, 4) && take(&version, 4) && magic == SANDBOX_MAGIC &&
         version == SANDBOX_VERSION && take(&request.memory, 8) && take(&request.microseconds, 8) &&
         take(&request.value, 8) && take(&request.seed, 8) && take(&request.flags, 4) &&
         take(&request.count, 4);
}

/* ---- writing ---- */

static void send (const void *data, size_t n) {
  for (const char *p = (const char *)data; n > 0;) {
    ssize_t k = write(3, p, n);
    if (k <= 0) _exit(3);
    p += k, n -= (size_t)k;
  }
}

/* A record of a first byte (where it is not negative) and a text. */
static void record (char kind, int first, const void *data, size_t n) {
  uint8_t head[10] = { (uint8_t)kind };
  uint64_t size = n + (first >= 0);
  memcpy(head + 1, &size, 8);
  head[9] = (uint8_t)first;
  send(head, first >= 0 ? 10 : 9);
  send(data, n);
}

/* ---- memory ---- */

static void *allocate (void *ud, void *p, size_t osize, size_t nsize) {
  (void)ud;
  if (!p) osize = 0;
  if (nsize == 0) {
    free(p);
    bytes -= osize;
    return NULL;
  }
  if (!starting && nsize > osize && bytes - osize + nsize > request.memory) return NULL;
  void *q = realloc(p, nsize);
  if (!q) return NULL;
  bytes = bytes - osize + nsize;
  if (bytes > peak) peak = bytes;
  return q;
}

/* ---- running ---- */

/* The text of what was raised, without asking it: its __tostring is the code's. */
static const char *said (lua_State *L, size_t *n) {
  static char text[64] = "error object is a ";
  const char *s = lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, n) : NULL;
  if (!s) {
    strcpy(text + 18, lua_typename(L, lua_type(L, -1)));
    strcat(text, " value");
    s = text, *n = strlen(text);
  }
  if (*n > 2000) *n = 2000;
  return s;
}

/* The globals of a test: empty, over the table of tests at env. */
static void push_environment (lua_State *L, int env) {
  lua_newtable(L);
  lua_createtable(L, 0, 1);
  lua_pushvalue(L, env);
  lua_setfield(L, -2, "__index");
  lua_setmetatable(L, -2);
}

typedef struct piece {
  char kind;
  const uint8_t *p, *end;
  int number;
} piece;

/* A C function under pcall: 1 the table of tests, 2 what the source returned, 3 the piece. */
static int run_test (lua_State *L) {
  const piece *t = (const piece *)lua_touserdata(L, 3);
  if (t->kind == PIECE_TEST) {
    const char *name = lua_pushfstring(L, "=test %d", t->number);
    if (luaL_loadbufferx(L, (const char *)t->p, (size_t)(t->end - t->p), name, "t") != LUA_OK)
      return lua_error(L);
    push_environment(L, 1);
    lua_setupvalue(L, -2, 1);
    lua_call(L, 0, 0);
    return 0;
  }
  const uint8_t *p = t->p;
  if (!sandbox_decode(L, &p, t->end, 0) || !sandbox_decode(L, &p, t->end, 0) ||
      !sandbox_decode(L, &p, t->end, 0) || lua_type(L, 4) != LUA_TSTRING || !lua_istable(L, 5))
    return luaL_error(L, "a call that cannot be read");
  lua_pushvalue(L, 4); /* a field of what the source returned, or a global */
  if (lua_istable(L, 2) && lua_rawget(L, 2) != LUA_TNIL) {
  } else {
    lua_settop(L, 6);
    lua_pushglobaltable(L);
    lua_pushvalue(L, 4);
    lua_rawget(L, -2);
    lua_remove(L, -2);
  }
  if (lua_isnil(L, -1)) return luaL_error(L, "there is no function '%s'", lua_tostring(L, 4));
  lua_pushliteral(L, "n");
  lua_rawget(L, 5);
  int nargs = lua_isinteger(L, -1) ? (int)lua_tointeger(L, -1) : (int)lua_rawlen(L, 5);
  lua_pop(L, 1);
  if (nargs < 0 || nargs > 200) return luaL_error(L, "too many arguments");
  luaL_checkstack(L, nargs + 4, NULL);
  for (int i = 1; i <= nargs; i++) lua_rawgeti(L, 5, i);
  lua_call(L, nargs, 1);
  if (sandbox_same(L, -1, 6, 0)) return 0;
  char shown[2][200];
  for (int i = 0; i < 2; i++) {
    int at = i == 0 ? lua_gettop(L) : 6;
    switch (lua_type(L, at)) {
    case LUA_TNUMBER:
    case LUA_TBOOLEAN:
    case LUA_TNIL: /* no metatable of these can be set here */
      lua_pushvalue(L, at);
      strncpy(shown[i], luaL_tolstring(L, -1, NULL), sizeof shown[i] - 1);
      lua_pop(L, 2);
      break;
    case LUA_TSTRING: strncpy(shown[i], lua_tostring(L, at), sizeof shown[i] - 1); break;
    default: strcpy(shown[i], "a "); strcat(shown[i], luaL_typename(L, at));
    }
    shown[i][sizeof shown[i] - 1] = 0;
  }
  return luaL_error(L, "%s gave %s, expected %s", lua_tostring(L, 4), shown[0], shown[1]);
}

/* A C function under pcall, for the memory that it may ask for: the source, which is at 2, and its first result. */
static int run_source (lua_State *L) {
  const piece *t = (const piece *)lua_touserdata(L, 1);
  if (luaL_loadbufferx(L, (const char *)t->p, (size_t)(t->end - t->p), "=code", "t") != LUA_OK)
    return lua_error(L);
  lua_call(L, 0, 1);
  return 1;
}

/* What the source returned, at the top. */
static void send_value (lua_State *L) {
  size_t room = request.value;
  sandbox_out out = { .p = (uint8_t *)malloc(room ? room : 1), .room = room };
  if (!out.p)
    out.refused = "there is no memory to show it";
  else
    sandbox_encode(L, -1, &out);
  if (out.refused)
    record(RECORD_VALUE, 'X', out.refused, strlen(out.refused));
  else
    record(RECORD_VALUE, -1, out.p, out.n);
  free(out.p);
}

static void fail (char kind, int first, lua_State *L) {
  size_t n = 0;
  const char *text = said(L, &n);
  record(kind, first, text, n);
}

static bool next_piece (piece *t) {
  uint64_t size = 0;
  if (!take(&t->kind, 1) || !take(&size, 8) || size > request.size - request.at) return false;
  t->p = request.p + request.at;
  t->end = t->p + size;
  request.at += (size_t)size;
  return true;
}

/* The source, then each test; what they say is sent at once, for the next one may end the process. */
static bool run (lua_State *L) {
  piece t = { 0 };
  for (uint32_t i = 0; i < request.count; i++) {
    if (!next_piece(&t) || (t.kind == PIECE_SOURCE) != (i == 0)) return false;
    t.number = (int)i;
    if (i == 0) {
      lua_pushcfunction(L, run_source);
      lua_pushlightuserdata(L, &t);
      int rc = lua_pcall(L, 1, 1, 0);
      if (rc != LUA_OK) {
        fail(rc == LUA_ERRMEM ? RECORD_MEMORY : RECORD_ERROR, -1, L);
        return true;
      }
      send_value(L);
      continue;
    }
    lua_pushcfunction(L, run_test);
    lua_pushvalue(L, 1);
    lua_pushvalue(L, 2);
    lua_pushlightuserdata(L, &t);
    int rc = lua_pcall(L, 3, 0, 0);
    if (rc == LUA_OK)
      record(RECORD_VERDICT, 1, "", 0);
    else
      fail(RECORD_VERDICT, rc == LUA_ERRMEM ? 2 : 0, L);
    lua_settop(L, 2);
  }
  return true;
}

static int open (lua_State *L) {
  sandbox_open(L, &request);
  return 1;
}

int main (void) {
  if (!read_request() || !read_head()) return 2;
  setenv("TZ", "UTC0", 1);
  tzset(); /* os.date would open a file later */
  lua_State *L = lua_newstate(allocate, NULL);
  if (!L) return 4;
  lua_pushcfunction(L, open);
  if (lua_pcall(L, 0, 1, 0) != LUA_OK) return 4;
  const char *why = sandbox_close_door(&request);
  record(RECORD_LAYERS, why ? 0 : 1, why ? why : "", why ? strlen(why) : 0);
  if (why && !(request.flags & SANDBOX_UNPROTECTED)) _exit(0);
  starting = false;
  request.memory += bytes; /* of the code alone */
  bool good = run(L);
  record(RECORD_PEAK, -1, &peak, 8);
  _exit(good ? 0 : 2); /* no finalizer of the code runs */
}
