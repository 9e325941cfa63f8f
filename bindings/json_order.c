/*
** json_order.c - lists of keys of JSON objects. Objects with the same keys in the same order, as the
** rows of a file are, share one: a tree of key sequences finds it. A node of the tree holds the next
** nodes by key (a string) and, by integer, what is below.
*/
#include "json_order.h"

#define OBJECT_NAME "perilune.json.object"
#define NODES_MAX 4096 /* a tree with more is left for a new one */

enum {
  NODE_ORDER = 1, /* the list of keys up to here, once there was such an object */
  NODE_BEFORE,
  NODE_KEY,
  NODE_COUNT /* in the root: nodes of the tree */
};

static const char key_object = 0, key_root = 0;

void peri__json_new_order (lua_State *L) {
  lua_newtable(L);
  lua_pushlightuserdata(L, (void *)&key_object);
  lua_rawseti(L, -2, 0);
  lua_pushliteral(L, OBJECT_NAME);
  lua_setfield(L, -2, "__name");
}

bool peri__json_order (lua_State *L, int idx) {
  if (!lua_getmetatable(L, idx)) return false;
  lua_rawgeti(L, -1, 0);
  bool is = lua_touserdata(L, -1) == (const void *)&key_object;
  lua_pop(L, is ? 1 : 2);
  return is;
}

void peri__json_open_orders (lua_State *L) {
  lua_newtable(L);
  lua_pushinteger(L, 0);
  lua_rawseti(L, -2, NODE_COUNT);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &key_root);
}

void peri__json_push_order (lua_State *L, int node, lua_Integer n) {
  if (lua_rawgeti(L, node, NODE_ORDER) != LUA_TNIL) return;
  lua_pop(L, 1);
  peri__json_new_order(L);
  lua_pushvalue(L, node);
  for (; n > 0; n--) {
    lua_rawgeti(L, -1, NODE_KEY);
    lua_rawseti(L, -3, n);
    lua_rawgeti(L, -1, NODE_BEFORE);
    lua_remove(L, -2);
  }
  lua_pop(L, 1);
  lua_pushvalue(L, -1);
  lua_rawseti(L, node, NODE_ORDER);
}

void peri__json_step (lua_State *L, int node, lua_Integer n) {
  if (n - 1 == PERI__JSON_SHARED_MAX) { /* a list of its own takes the node's place */
    peri__json_new_order(L);
    peri__json_push_order(L, node, PERI__JSON_SHARED_MAX);
    for (lua_Integer i = 1; i <= PERI__JSON_SHARED_MAX; i++) {
      lua_rawgeti(L, -1, i);
      lua_rawseti(L, -3, i);
    }
    lua_pop(L, 1);
    lua_replace(L, node);
  }
  lua_pushvalue(L, -1);
  if (n > PERI__JSON_SHARED_MAX) {
    lua_rawseti(L, node, n);
    return;
  }
  if (lua_rawget(L, node) == LUA_TNIL) {
    lua_pop(L, 1);
    lua_rawgetp(L, LUA_REGISTRYINDEX, &key_root);
    lua_rawgeti(L, -1, NODE_COUNT);
    lua_Integer count = lua_tointeger(L, -1) + 1;
    lua_pop(L, 1);
    lua_pushinteger(L, count);
    lua_rawseti(L, -2, NODE_COUNT);
    lua_pop(L, 1);
    if (count > NODES_MAX) peri__json_open_orders(L); /* what is open goes on in the old one */
    lua_createtable(L, 3, 1);
    lua_pushvalue(L, node);
    lua_rawseti(L, -2, NODE_BEFORE);
    lua_pushvalue(L, -2);
    lua_rawseti(L, -2, NODE_KEY);
    lua_pushvalue(L, -2);
    lua_pushvalue(L, -2);
    lua_rawset(L, node);
  }
  lua_replace(L, node);
}

void peri__json_push_root (lua_State *L) { lua_rawgetp(L, LUA_REGISTRYINDEX, &key_root); }
