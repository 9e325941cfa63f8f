/*
** channel.c - channels between Lua states (core/channel.c), waiting on several, and the queue of work from
** other threads.
*/
#include <math.h>

#include "pack.h"

#define CHANNEL "perilune.channel"
#define MOST ((lua_Integer)1 << 30)

static const char key_channel = 0; /* its metatable: found faster than by name */

peri__channel *peri__channel_at (lua_State *L, int idx) {
  peri__channel **box = (peri__channel **)lua_touserdata(L, idx);
  if (!box || !lua_getmetatable(L, idx)) return NULL;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &key_channel);
  bool ok = lua_rawequal(L, -1, -2) != 0;
  lua_pop(L, 2);
  return ok ? *box : NULL;
}

static peri__channel **box_new (lua_State *L) {
  peri__channel **box = (peri__channel **)lua_newuserdatauv(L, sizeof *box, 0);
  *box = NULL;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &key_channel);
  lua_setmetatable(L, -2);
  return box;
}

void peri__channel_push (lua_State *L, peri__channel *c) {
  peri__channel **box = box_new(L);
  *box = peri__channel_retain(c);
}

static peri__channel *self (lua_State *L, const char *fn) {
  peri__channel *c = peri__channel_at(L, 1);
  if (!c) peri__type_error(L, fn, 1, "self", "a channel");
  return c;
}

double peri__deadline (lua_State *L, int arg, const char *fn, double otherwise) {
  double seconds = otherwise;
  if (!lua_isnoneornil(L, arg)) {
    seconds = lua_type(L, arg) == LUA_TNUMBER ? lua_tonumber(L, arg) : NAN;
    if (!(seconds >= 0)) peri__type_error(L, fn, arg, "timeout", "a number of seconds from 0");
  }
  return peri__now() + seconds;
}

static int l_channel (lua_State *L) {
  int ok = 1;
  lua_Integer n = lua_isnoneornil(L, 1) ? 64 : lua_tointegerx(L, 1, &ok);
  if (!ok || lua_type(L, 1) == LUA_TSTRING || n < 1 || n > MOST)
    return peri__type_error(L, "channel", 1, "capacity", "an integer in [1, 2^30]");
  peri__channel **box = box_new(L);
  peri__check(L, "channel", peri__channel_new(BIND(L)->ctx, (size_t)n, box));
  return 1;
}

/* ---- sending ---- */

static int not_done (lua_State *L, peri__channel_end end) {
  lua_pushstring(L, end == PERI__CHANNEL_CLOSED ? "closed" : "timeout");
  return 2;
}

static int send (lua_State *L, const char *fn, double deadline) {
  peri__channel *c = self(L, fn);
  peri_ctx *ctx = BIND(L)->ctx;
  peri__channel_end end;
  if (lua_gettop(L) < 2) return peri__type_error(L, fn, 2, "value", "a value");
  const peri_pack_how how = { .fn = fn, .root = "the value", .through = c };
  peri__packet *p = peri__pack(L, 2, 1, &how);
  peri_status s = peri__channel_send(ctx, c, p, deadline, &end);
  if (s != PERI_OK || end != PERI__CHANNEL_DONE) peri__packet_recall(ctx, p);
  peri__check(L, fn, s);
  lua_pushboolean(L, end == PERI__CHANNEL_DONE);
  return end == PERI__CHANNEL_DONE ? 1 : not_done(L, end);
}

static int c_send (lua_State *L) { return send(L, "send", peri__deadline(L, 3, "send", INFINITY)); }
static int c_try_send (lua_State *L) { return send(L, "try_send", 0); }

/* ---- receiving ---- */

/* Protected: (box) -> the value. */
static int unpack (lua_State *L) {
  peri__packet **box = (peri__packet **)lua_touserdata(L, 1);
  return peri__unpack(L, *box);
}

/* Push what came from one of n channels and return true, or push nil and why not. *which: of them. */
static bool receive (lua_State *L, const char *fn, int n, peri__channel *const *c, double deadline,
                     int *which) {
  peri__channel_end end;
  peri__packet **box = peri__packet_box(L);
  peri__check(L, fn, peri__channel_receive(BIND(L)->ctx, n, c, deadline, which, box, &end));
  if (!*box) {
    lua_pushnil(L);
    not_done(L, end);
    return false;
  }
  lua_pushcfunction(L, unpack);
  lua_pushvalue(L, -2);
  bool ok = lua_pcall(L, 1, 1, 0) == LUA_OK;
  peri__packet *p = *box;
  *box = NULL;
  if (ok)
    peri__packet_free(p);
  else {
    peri__channel_unreceive(c[*which], p); /* there was no memory for it: nothing has happened */
    lua_error(L);
  }
  return true;
}

static int receive_one (lua_State *L, const char *fn, double deadline) {
  int which;
  peri__channel *c = self(L, fn);
  return receive(L, fn, 1, &c, deadline, &which) ? 1 : 2;
}

static int c_receive (lua_State *L) {
  return receive_one(L, "receive", peri__deadline(L, 2, "receive", INFINITY));
}
static int c_try_receive (lua_State *L) { return receive_one(L, "try_receive", 0); }

/* for value in channel:each(): the message itself may be nil, so each turn counts, too. */
static int each_next (lua_State *L) {
  int which;
  peri__channel *c = peri__channel_at(L, 1);
  if (!c) return peri__type_error(L, "each", 1, "state", "a channel");
  lua_Integer n = lua_tointeger(L, 2);
  lua_settop(L, 1);
  if (!receive(L, "each", 1, &c, INFINITY, &which)) return 0;
  lua_pushinteger(L, n + 1);
  lua_insert(L, -2);
  return 2;
}

static int c_each (lua_State *L) {
  self(L, "each");
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_pushcclosure(L, each_next, 1);
  lua_pushvalue(L, 1);
  lua_pushinteger(L, 0);
  return 3;
}

static int l_receive (lua_State *L) {
  peri__channel *c[PERI__SELECT_MAX];
  int which;
  if (lua_type(L, 1) != LUA_TTABLE)
    return peri__type_error(L, "receive", 1, "channels", "a list of channels");
  lua_Unsigned n = lua_rawlen(L, 1);
  if (n < 1 || n > PERI__SELECT_MAX)
    return luaL_error(L, "receive: %I channels given; from 1 to %d are waited for", (LUAI_UACINT)n,
                      PERI__SELECT_MAX);
  for (int i = 0; i < (int)n; i++) {
    lua_rawgeti(L, 1, i + 1);
    c[i] = peri__channel_at(L, -1);
    if (!c[i])
      return luaL_error(L, "receive: entry %d of channels is a %s, no channel", i + 1,
                        luaL_typename(L, -1));
    lua_pop(L, 1);
  }
  if (!receive(L, "receive", (int)n, c, peri__deadline(L, 2, "receive", INFINITY), &which))
    return 2;
  lua_pushinteger(L, which + 1);
  lua_insert(L, -2);
  return 2;
}

/* ---- the rest ---- */

static int c_close (lua_State *L) {
  peri__channel_close(self(L, "close"));
  return 0;
}

static int c_closed (lua_State *L) {
  lua_pushboolean(L, peri__channel_closed(self(L, "closed")));
  return 1;
}

static int c_capacity (lua_State *L) {
  lua_pushinteger(L, (lua_Integer)peri__channel_capacity(self(L, "capacity")));
  return 1;
}

static int c_len (lua_State *L) {
  lua_pushinteger(L, (lua_Integer)peri__channel_count(self(L, "#")));
  return 1;
}

static int c_eq (lua_State *L) {
  peri__channel *a = peri__channel_at(L, 1), *b = peri__channel_at(L, 2);
  lua_pushboolean(L, a && a == b);
  return 1;
}

static int c_tostring (lua_State *L) {
  peri__channel *c = peri__channel_at(L, 1);
  if (!c)
    lua_pushliteral(L, "channel");
  else
    lua_pushfstring(L, "channel: %I of %I%s", (LUAI_UACINT)peri__channel_count(c),
                    (LUAI_UACINT)peri__channel_capacity(c),
                    peri__channel_closed(c) ? ", closed" : "");
  return 1;
}

static int c_gc (lua_State *L) {
  peri__channel **box = (peri__channel **)lua_touserdata(L, 1);
  if (!peri__channel_at(L, 1)) return 0;
  peri__channel_release(*box);
  *box = NULL;
  return 0;
}

static int l_poll (lua_State *L) {
  int ran;
  double deadline = peri__deadline(L, 1, "poll", 0), left = deadline - peri__now();
  peri__check(L, "poll", peri_post_run(BIND(L)->ctx, left > 0 ? left : 0, &ran));
  peri__workers_sweep(BIND(L));
  lua_pushinteger(L, ran);
  return 1;
}

static const peri_reg meta[] = { { "__gc", NULL, NULL, c_gc },
                                 { "__close", NULL, NULL, c_close },
                                 { "__len", NULL, NULL, c_len },
                                 { "__eq", NULL, NULL, c_eq },
                                 { "__tostring", NULL, NULL, c_tostring },
                                 { NULL, NULL, NULL, NULL } };

static const peri_reg methods[] = {
  { "send", "value, timeout?",
    "Put a value in, waiting for room up to timeout seconds (nil: for ever): true, or false and "
    "\"timeout\" or \"closed\".",
    c_send },
  { "receive", "timeout?",
    "The next value, waiting for it up to timeout seconds (nil: for ever); nil and \"timeout\", or "
    "\"closed\" when it is closed and empty.",
    c_receive },
  { "try_send", "value", "send without waiting.", c_try_send },
  { "try_receive", "", "receive without waiting.", c_try_receive },
  { "each", "", "for i, value in channel:each(): until it is closed and empty.", c_each },
  { "close", "", "Let nobody send any more; what is in it can still be received.", c_close },
  { "closed", "", "Whether it was closed.", c_closed },
  { "capacity", "", "How many values it holds before a sender waits.", c_capacity },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg functions[] = {
  { "channel", "capacity?",
    "A queue between Lua states, of at most capacity values (default 64): plain values, tables of "
    "them, tensors without a copy, channels.",
    l_channel },
  { "receive", "channels, timeout?",
    "The index of the first channel of the list that has a value, and the value; nil and "
    "\"timeout\", or \"closed\" when all are closed and empty.",
    l_receive },
  { "poll", "timeout?",
    "Run what other threads have posted to this state's context, waiting for it up to timeout "
    "seconds (default 0); how many there were.",
    l_poll },
  { NULL, NULL, NULL, NULL }
};

const peri_reg *const peri__channel_functions = functions, *const peri__channel_methods = methods;

void peri__open_channel (lua_State *L) {
  peri__metatable(L, CHANNEL, meta, methods);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &key_channel);
  peri__open_pack(L);
  peri__register(L, functions);
}
