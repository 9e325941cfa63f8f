/*
** json_order.h - the order of an object's keys, kept in a metatable that does nothing else: [1], [2],
** ... are its keys in the order of the text.
*/
#ifndef peri_json_order_h
#define peri_json_order_h

#include "bind.h"

/* Objects with more keys share no list with others. */
#define PERI__JSON_SHARED_MAX 64

/* json.null and the mark of arrays: json.c */
bool peri__json_is_null (lua_State *L, int idx);
void peri__json_push_null (lua_State *L);
bool peri__json_is_array (lua_State *L, int idx);
void peri__json_mark_array (lua_State *L); /* the table on top */

/* Make the tree that lists are found in. */
void peri__json_open_orders (lua_State *L);
/* Push a new list of keys, empty: the metatable of an object. */
void peri__json_new_order (lua_State *L);
/* Push the list of keys of the table at idx and return true, or push nothing. */
bool peri__json_order (lua_State *L, int idx);

/* While an object is read, a node of the tree stands for the keys so far: push the first one. */
void peri__json_push_root (lua_State *L);
/* The key on top, which stays, is the n-th of its object: the node at a stack index (absolute) becomes
** the next one, or the object's own list when there are more keys than are shared. */
void peri__json_step (lua_State *L, int node, lua_Integer n);
/* Push the list of the n <= PERI__JSON_SHARED_MAX keys that a node stands for. */
void peri__json_push_order (lua_State *L, int node, lua_Integer n);

#endif
