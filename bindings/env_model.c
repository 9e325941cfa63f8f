/*
** env_model.c - the transition model of a tabular environment as tables of Lua, for dynamic
** programming. States and actions are counted from 0, as observations and actions are.
*/
#include "env.h"

/* A list of {p, next, reward, terminated}. */
static void push_outcomes (lua_State *L, const peri_env *e, int64_t state, int64_t action) {
  int n = e->def.model(e->spec.shared, state, action, 0, NULL);
  peri_env_outcome *o =
      (peri_env_outcome *)lua_newuserdatauv(L, (size_t)(n > 0 ? n : 1) * sizeof *o, 0);
  e->def.model(e->spec.shared, state, action, n, o);
  lua_createtable(L, n, 0);
  for (int i = 0; i < n; i++) {
    lua_createtable(L, 0, 4);
    lua_pushnumber(L, o[i].probability);
    lua_setfield(L, -2, "p");
    lua_pushinteger(L, o[i].next);
    lua_setfield(L, -2, "next");
    lua_pushnumber(L, o[i].reward);
    lua_setfield(L, -2, "reward");
    lua_pushboolean(L, o[i].terminated);
    lua_setfield(L, -2, "terminated");
    lua_rawseti(L, -2, i + 1);
  }
  lua_remove(L, -2);
}

/* model(core) -> { states, actions, first = outcomes of reset, transitions[state][action] =
** outcomes } */
int peri__env_model (lua_State *L) {
  peri__env_box *b = (peri__env_box *)luaL_checkudata(L, 1, PERI_ENV_BOX);
  const peri_env *e = b->e;
  if (!e) return luaL_error(L, "model: the environment is closed");
  if (!e->def.model) return luaL_error(L, "model: %s has no transition model", e->def.id);
  int64_t states = 0, actions = e->spec.action.n;
  lua_createtable(L, 0, 4);
  lua_newtable(L);
  for (; e->def.model(e->spec.shared, states, 0, 0, NULL) >= 0; states++) {
    lua_createtable(L, (int)actions, 1);
    for (int64_t a = 0; a < actions; a++) {
      push_outcomes(L, e, states, a);
      lua_rawseti(L, -2, a);
    }
    lua_rawseti(L, -2, states);
  }
  lua_setfield(L, -2, "transitions");
  push_outcomes(L, e, -1, 0);
  lua_setfield(L, -2, "first");
  lua_pushinteger(L, states);
  lua_setfield(L, -2, "states");
  lua_pushinteger(L, actions);
  lua_setfield(L, -2, "actions");
  return 1;
}
