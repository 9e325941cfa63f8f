/*
** pack.c - Lua values into a packet: pack.h says which. Bytes are collected in a buffer that the Lua
** state keeps, so that an error anywhere leaves nothing to be freed; what could not be sent is as if nobody
** had tried (a tensor is not shared by it). A finalizer may run in the midst of it, and send, too: then
** it has a buffer of its own.
*/
#include <string.h>

#include "json_order.h"
#include "pack.h"

#define OUTBOX "perilune.outbox"
#define PACKET "perilune.packet"

enum { DEEPEST = 200 };

/* What is being collected; the userdata of key_outbox. */
typedef struct outbox {
  peri_ctx *ctx;
  char *bytes;
  size_t n, cap;
  peri_shared **shared;
  peri__channel **channels;
  int nshared, capshared, nchannels, capchannels;
  bool busy; /* or Lua ran out of memory in the midst */
} outbox;

static const char key_outbox = 0;

/* Where a value stands, for messages. */
typedef struct place {
  const struct place *outer; /* NULL: a root */
  int key;                   /* stack index of its key; 0: an upvalue */
  const char *upvalue;
  int root;
} place;

typedef struct pack {
  lua_State *L;
  peri_bind *b;
  outbox *o;
  const peri_pack_how *how;
  int memo; /* stack index of the table of what was seen, made when it is needed: nil */
  int nseen, nvariables; /* numbers given in it to values and to upvalues */
  bool again;            /* one of them was used */
} pack;

/* ---- the buffer ---- */

static void forget (outbox *o, bool undo) {
  for (int i = o->nshared; i-- > 0;) { /* the first of a memory last */
    if (undo && o->ctx) peri__unshare(o->ctx, o->shared[i]);
  }
  for (int i = 0; i < o->nchannels && undo; i++) peri__channel_release(o->channels[i]);
  o->nshared = o->nchannels = 0;
  o->n = 0;
  o->busy = false;
}

static int outbox_gc (lua_State *L) {
  outbox *o = (outbox *)lua_touserdata(L, 1);
  peri_ctx *ctx = o->ctx;
  if (!ctx) return 0;
  forget(o, true);
  peri__free(ctx, o->bytes, o->cap);
  peri__free(ctx, o->shared, (size_t)o->capshared * sizeof *o->shared);
  peri__free(ctx, o->channels, (size_t)o->capchannels * sizeof *o->channels);
  o->ctx = NULL;
  return 0;
}

static int no_memory (pack *p) {
  forget(p->o, true);
  return luaL_error(p->L, "%s: out of memory", p->how->fn);
}

/* Room for one more of size bytes in a list of n. */
static void *room (pack *p, void *list, int n, int *cap, size_t size) {
  if (n < *cap) return list;
  int more = *cap ? *cap * 2 : 8;
  void *q = peri__realloc(p->o->ctx, list, (size_t)*cap * size, (size_t)more * size);
  if (!q) no_memory(p);
  *cap = more;
  return q;
}

static bool append (outbox *o, const void *s, size_t n) {
  if (n > o->cap - o->n) {
    size_t want, cap = o->cap ? o->cap : 256;
    if (__builtin_add_overflow(o->n, n, &want)) return false;
    while (cap < want)
      if (__builtin_mul_overflow(cap, 2, &cap)) return false;
    char *q = peri__realloc(o->ctx, o->bytes, o->cap, cap);
    if (!q) return false;
    o->bytes = q;
    o->cap = cap;
  }
  if (n) memcpy(o->bytes + o->n, s, n);
  o->n += n;
  return true;
}

static void put (pack *p, const void *s, size_t n) {
  if (!append(p->o, s, n)) no_memory(p);
}

static void put_tag (pack *p, char tag) { put(p, &tag, 1); }

static void put_int (pack *p, int i) { put(p, &i, sizeof i); }

static void put_text (pack *p, const char *s, size_t n) {
  put(p, &n, sizeof n);
  put(p, s, n);
}

/* ---- refusals ---- */

static bool is_word (const char *s) {
  if (*s >= '0' && *s <= '9') return false;
  for (; *s; s++)
    if (!((*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') || *s == '_' ||
          (*s >= '0' && *s <= '9')))
      return false;
  return true;
}

/* "message.batch[3]", pushed. */
static void push_path (pack *p, const place *at) {
  lua_State *L = p->L;
  luaL_checkstack(L, 6, NULL);
  if (!at->outer) {
    lua_pushfstring(L, at->root == 0 && p->how->first ? p->how->first : p->how->root, at->root);
    return;
  }
  push_path(p, at->outer);
  if (!at->key) {
    lua_pushfstring(L, "upvalue '%s' of %s", at->upvalue, lua_tostring(L, -1));
  } else if (lua_type(L, at->key) == LUA_TSTRING && is_word(lua_tostring(L, at->key))) {
    lua_pushfstring(L, "%s.%s", lua_tostring(L, -1), lua_tostring(L, at->key));
  } else {
    luaL_tolstring(L, at->key, NULL);
    lua_pushfstring(L, lua_type(L, at->key) == LUA_TSTRING ? "%s[\"%s\"]" : "%s[%s]",
                    lua_tostring(L, -2), lua_tostring(L, -1));
    lua_remove(L, -2);
  }
  lua_remove(L, -2);
}

static int refuse (pack *p, const place *at, const char *is) {
  lua_State *L = p->L;
  forget(p->o, true);
  push_path(p, at);
  return luaL_error(L, "%s: %s is %s; what goes to another state: %s", p->how->fn,
                    lua_tostring(L, -1), is,
                    p->how->functions ? "plain values, tables of them, tensors, channels, Lua "
                                        "functions, modules"
                                      : "plain values, tables of them, tensors, channels");
}

/* ---- values ---- */

static void put_value (pack *p, int idx, const place *at, int depth);

/* What came before is told by its number: true. Else it gets one. Nothing is pushed. */
static bool seen (pack *p, int idx) {
  lua_State *L = p->L;
  if (lua_isnil(L, p->memo)) {
    lua_newtable(L);
    lua_replace(L, p->memo);
  }
  lua_pushvalue(L, idx);
  if (lua_rawget(L, p->memo) == LUA_TNUMBER) {
    p->again = true;
    put_tag(p, PACK_SEEN);
    put_int(p, (int)lua_tointeger(L, -1));
    lua_pop(L, 1);
    return true;
  }
  lua_pop(L, 1);
  lua_pushvalue(L, idx);
  lua_pushinteger(L, ++p->nseen);
  lua_rawset(L, p->memo);
  return false;
}

static void put_tensor (pack *p, peri_tensor *t, const place *at) {
  outbox *o = p->o;
  if (!t) refuse(p, at, "a tensor that was released");
  put_tag(p, PACK_TENSOR);
  o->shared = room(p, o->shared, o->nshared, &o->capshared, sizeof *o->shared);
  peri_status s = peri_share(t, PERI_SHARE_DEFAULT, &o->shared[o->nshared]);
  if (s == PERI_ENOMEM) no_memory(p);
  if (s != PERI_OK) {
    forget(o, true);
    push_path(p, at);
    luaL_error(p->L, "%s: %s: %s", p->how->fn, lua_tostring(p->L, -1), peri_message(o->ctx));
  }
  o->nshared++;
}

static void put_channel (pack *p, peri__channel *c, const place *at) {
  outbox *o = p->o;
  if (c == p->how->through) refuse(p, at, "the channel that it would go through");
  put_tag(p, PACK_CHANNEL);
  o->channels = room(p, o->channels, o->nchannels, &o->capchannels, sizeof *o->channels);
  o->channels[o->nchannels++] = peri__channel_retain(c);
}

static void put_userdata (pack *p, int idx, const place *at) {
  lua_State *L = p->L;
  char is[80];
  peri_box *box = peri__box_at(L, p->b, idx);
  peri__channel *c = box ? NULL : peri__channel_at(L, idx);
  if (box || c) {
    if (seen(p, idx)) return;
    if (box)
      put_tensor(p, box->t, at);
    else
      put_channel(p, c, at);
  } else if (peri__json_is_null(L, idx))
    put_tag(p, PACK_NULL);
  else {
    const char *name =
        luaL_getmetafield(L, idx, "__name") == LUA_TSTRING ? lua_tostring(L, -1) : "";
    snprintf(is, sizeof is, "a userdata%s%.40s%s", *name ? " (" : "", name, *name ? ")" : "");
    refuse(p, at, is);
  }
}

/* The kind of a table by its metatable; an object's list of keys is pushed. */
static char kind_of (pack *p, int idx, const place *at) {
  lua_State *L = p->L;
  char is[100];
  if (!lua_getmetatable(L, idx)) return PACK_PLAIN;
  luaL_getmetatable(L, "perilune.shape");
  bool shape = lua_rawequal(L, -1, -2) != 0;
  lua_pop(L, 2);
  if (shape) return PACK_SHAPE;
  if (peri__json_is_array(L, idx)) return PACK_ARRAY;
  if (peri__json_order(L, idx)) return PACK_OBJECT;
  const char *name = luaL_getmetafield(L, idx, "__name") == LUA_TSTRING ? lua_tostring(L, -1) : "";
  snprintf(is, sizeof is, "a table with a metatable%s%.40s%s (of a module, send its state_dict())",
           *name ? " '" : "", name, *name ? "'" : "");
  refuse(p, at, is);
  return 0;
}

/* The keys of a JSON object in their order: the list on top, which goes. */
static void put_order (pack *p) {
  lua_State *L = p->L;
  size_t len;
  int n = (int)lua_rawlen(L, -1);
  put_int(p, n);
  for (int i = 1; i <= n; i++) {
    lua_rawgeti(L, -1, i);
    const char *s = lua_tolstring(L, -1, &len);
    put_text(p, s ? s : "", s ? len : 0);
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
}

static void put_key (pack *p, int idx, const place *at) {
  int t = lua_type(p->L, idx);
  if (t != LUA_TSTRING && t != LUA_TNUMBER && t != LUA_TBOOLEAN) {
    char is[80];
    snprintf(is, sizeof is, "a table with a key that is a %s", luaL_typename(p->L, idx));
    refuse(p, at, is);
  }
  put_value(p, idx, at, 0);
}

static void put_table (pack *p, int idx, const place *at, int depth) {
  lua_State *L = p->L;
  if (depth >= DEEPEST) refuse(p, at, "nested more than 200 deep");
  if (seen(p, idx)) return;
  put_tag(p, PACK_TABLE);
  char kind = kind_of(p, idx, at);
  put_tag(p, kind);
  put_int(p, (int)lua_rawlen(L, idx));
  if (kind == PACK_OBJECT) put_order(p);
  lua_pushnil(L);
  while (lua_next(L, idx)) {
    int key = lua_gettop(L) - 1;
    const place here = { .outer = at, .key = key };
    put_key(p, key, at);
    put_value(p, key + 1, &here, depth + 1);
    lua_pop(L, 1);
  }
  put_tag(p, PACK_END);
}

/* ---- what only a new worker gets ---- */

static bool is_globals (lua_State *L, int idx) {
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
  bool is = lua_rawequal(L, -1, idx) != 0;
  lua_pop(L, 1);
  return is;
}

/* A table or function that require gives under some name goes by the name: the first one by byte order. */
static bool put_module (pack *p, int idx) {
  lua_State *L = p->L;
  const char *best = NULL;
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  int loaded = lua_gettop(L);
  for (lua_pushnil(L); lua_next(L, loaded); lua_pop(L, 1)) {
    if (lua_type(L, -2) != LUA_TSTRING || !lua_rawequal(L, -1, idx)) continue;
    const char *name = lua_tostring(L, -2); /* alive: the table holds it */
    if (!best || strcmp(name, best) < 0) best = name;
  }
  lua_pop(L, 1);
  if (!best) return false;
  put_tag(p, PACK_MODULE);
  put_text(p, best, strlen(best));
  return true;
}

static int write_dump (lua_State *L, const void *s, size_t n, void *ud) {
  (void)L;
  return append((outbox *)ud, s, n) ? 0 : 1;
}

/* An upvalue as a variable: two functions that share one share it afterwards. */
static bool joined (pack *p, int fn, int i) {
  lua_State *L = p->L;
  void *id = lua_upvalueid(L, fn, i);
  if (lua_rawgetp(L, p->memo, id) == LUA_TNUMBER) {
    put_tag(p, PACK_JOINED);
    put_int(p, (int)lua_tointeger(L, -1));
    lua_pop(L, 1);
    return true;
  }
  lua_pop(L, 1);
  lua_pushinteger(L, ++p->nvariables);
  lua_rawsetp(L, p->memo, id);
  return false;
}

static void put_upvalues (pack *p, int fn, const place *at, int depth) {
  lua_State *L = p->L;
  const char *name;
  int n = 0;
  while (lua_getupvalue(L, fn, n + 1)) {
    lua_pop(L, 1);
    n++;
  }
  put_int(p, n);
  for (int i = 1; i <= n; i++) {
    if (joined(p, fn, i)) continue;
    name = lua_getupvalue(L, fn, i);
    const place here = { .outer = at, .upvalue = *name ? name : "?" };
    put_tag(p, PACK_UPVALUE);
    if (strcmp(name, "_ENV") == 0) /* of whatever kind: its globals there are those of the worker */
      put_tag(p, PACK_GLOBALS);
    else
      put_value(p, lua_gettop(L), &here, depth + 1);
    lua_pop(L, 1);
  }
}

static void put_function (pack *p, int idx, const place *at, int depth) {
  lua_State *L = p->L;
  if (!p->how->functions) refuse(p, at, "a function");
  if (depth >= DEEPEST) refuse(p, at, "nested more than 200 deep");
  if (seen(p, idx)) return;
  p->again = true;
  lua_CFunction c = lua_tocfunction(L, idx);
  if (c && !lua_getupvalue(L, idx, 1)) {
    put_tag(p, PACK_C);
    put(p, &c, sizeof c);
    return;
  }
  if (c) refuse(p, at, "a C function of this state (reach it through its module, there)");
  put_tag(p, PACK_FUNCTION);
  size_t from = p->o->n, n = 0;
  put(p, &n, sizeof n);
  lua_pushvalue(L, idx);
  if (lua_dump(L, write_dump, p->o, 0) != 0) no_memory(p);
  lua_pop(L, 1);
  n = p->o->n - from - sizeof n;
  memcpy(p->o->bytes + from, &n, sizeof n);
  put_upvalues(p, idx, at, depth);
}

static void put_value (pack *p, int idx, const place *at, int depth) {
  lua_State *L = p->L;
  lua_Integer i;
  lua_Number f;
  size_t n;
  luaL_checkstack(L, 12, NULL);
  int type = lua_type(L, idx);
  if (p->how->functions && (type == LUA_TTABLE || type == LUA_TFUNCTION)) {
    if (is_globals(L, idx)) {
      put_tag(p, PACK_GLOBALS);
      return;
    }
    if (put_module(p, idx)) return;
  }
  switch (type) {
  case LUA_TNIL: put_tag(p, PACK_NIL); break;
  case LUA_TBOOLEAN: put_tag(p, lua_toboolean(L, idx) ? PACK_TRUE : PACK_FALSE); break;
  case LUA_TNUMBER:
    if (lua_isinteger(L, idx)) {
      i = lua_tointeger(L, idx);
      put_tag(p, PACK_INTEGER);
      put(p, &i, sizeof i);
    } else {
      f = lua_tonumber(L, idx);
      put_tag(p, PACK_FLOAT);
      put(p, &f, sizeof f);
    }
    break;
  case LUA_TSTRING: {
    const char *s = lua_tolstring(L, idx, &n);
    put_tag(p, PACK_STRING);
    put_text(p, s, n);
    break;
  }
  case LUA_TTABLE: put_table(p, idx, at, depth); break;
  case LUA_TFUNCTION: put_function(p, idx, at, depth); break;
  case LUA_TUSERDATA: put_userdata(p, idx, at); break;
  case LUA_TTHREAD: refuse(p, at, "a coroutine"); break;
  default: refuse(p, at, "an address (light userdata)");
  }
}

/* Push a new one. */
static outbox *outbox_new (lua_State *L) {
  outbox *o = (outbox *)lua_newuserdatauv(L, sizeof *o, 0);
  *o = (outbox){ .ctx = peri__bind(L)->ctx };
  luaL_setmetatable(L, OUTBOX);
  return o;
}

/* Push the one that is free. */
static outbox *outbox_take (lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &key_outbox);
  outbox *o = (outbox *)lua_touserdata(L, -1);
  if (o->busy) { /* this one is kept from now on: the other is freed when it is used no more */
    lua_pop(L, 1);
    o = outbox_new(L);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &key_outbox);
  }
  o->busy = true;
  return o;
}

peri__packet *peri__pack (lua_State *L, int first, int n, const peri_pack_how *how) {
  pack p = { .L = L, .b = peri__bind(L), .how = how };
  peri__packet *out = NULL;
  luaL_checkstack(L, 4, NULL);
  p.o = outbox_take(L);
  lua_pushnil(L);
  p.memo = lua_gettop(L);
  put_int(&p, n);
  put_tag(&p, 0);
  for (int i = 0; i < n; i++) {
    const place root = { .root = i };
    put_value(&p, first + i, &root, 0);
  }
  p.o->bytes[sizeof n] = p.again;
  outbox *o = p.o;
  if (peri__packet_new(o->ctx, o->nshared, o->shared, o->nchannels, o->channels, o->bytes, o->n,
                       &out) != PERI_OK)
    no_memory(&p);
  forget(o, false);
  lua_pop(L, 2);
  return out;
}

/* ---- packets on the Lua stack ---- */

static int packet_gc (lua_State *L) {
  peri__packet **box = (peri__packet **)lua_touserdata(L, 1);
  peri__packet_free(*box);
  *box = NULL;
  return 0;
}

peri__packet **peri__packet_box (lua_State *L) {
  peri__packet **box = (peri__packet **)lua_newuserdatauv(L, sizeof *box, 0);
  *box = NULL;
  luaL_setmetatable(L, PACKET);
  return box;
}

static const peri_reg outbox_meta[] = { { "__gc", NULL, NULL, outbox_gc },
                                        { NULL, NULL, NULL, NULL } };
static const peri_reg packet_meta[] = { { "__gc", NULL, NULL, packet_gc },
                                        { "__close", NULL, NULL, packet_gc },
                                        { NULL, NULL, NULL, NULL } };

void peri__open_pack (lua_State *L) {
  peri__metatable(L, PACKET, packet_meta, NULL);
  peri__metatable(L, OUTBOX, outbox_meta, NULL);
  lua_pop(L, 2);
  outbox_new(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &key_outbox);
}
