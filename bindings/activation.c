/*
** activation.c - what the runtime's registry of activations says, for layers, models and adapters:
** their Lua files ask here and keep no list of their own.
*/
#include <string.h>

#include "bind.h"
#include "op/activation.h"

static void set_text (lua_State *L, const char *key, const char *text) {
  lua_pushstring(L, text);
  lua_setfield(L, -2, key);
}

/* activations(): { name, layer, published = { ... }, gain?, doc } of each. */
int peri__activations (lua_State *L) {
  const peri__act *a;
  lua_settop(L, 0);
  lua_createtable(L, 16, 0);
  for (int i = 0; (a = peri__act_at(i)) != NULL; i++) {
    lua_createtable(L, 0, 5);
    set_text(L, "name", a->name);
    set_text(L, "layer", a->layer);
    set_text(L, "doc", peri_op_doc(a->op));
    if (a->gain != 0) {
      lua_pushnumber(L, a->gain);
      lua_setfield(L, -2, "gain");
    }
    lua_newtable(L);
    lua_Integer n = 0;
    for (const char *s = a->published; *s;) {
      size_t word = strcspn(s, " ");
      lua_pushlstring(L, s, word);
      lua_rawseti(L, -2, ++n);
      s += word + (s[word] == ' ');
    }
    lua_setfield(L, -2, "published");
    lua_rawseti(L, 1, i + 1);
  }
  return 1;
}
