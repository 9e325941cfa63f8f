/*
** facts.c - what the runtime's tables of activations and of dtypes say: layers, models, adapters and
** files of weights ask here and keep no list of their own.
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

static void set_count (lua_State *L, const char *key, size_t n) {
  lua_pushinteger(L, (lua_Integer)n);
  lua_setfield(L, -2, key);
}

/* dtypes(): { name, alias?, kind, elements, bytes } of each, elements and bytes being a block's. */
int peri__dtypes (lua_State *L) {
  lua_Integer n = 0;
  lua_settop(L, 0);
  lua_createtable(L, PERI_DTYPE_END, 0);
  for (int d = 0; d < PERI_DTYPE_END; d++) {
    const peri__dtype_row *row = peri__dtype_row_of(d);
    size_t bytes;
    if (row == NULL && !peri__is_quantised(d)) continue;
    lua_createtable(L, 0, 5);
    set_text(L, "name", peri_dtype_name((peri_dtype)d));
    if (row) set_text(L, "alias", row->alias);
    set_text(L, "kind",
             !row                ? "quantised"
             : d == PERI_BOOL    ? "bool"
             : peri__is_float(d) ? "float"
                                 : "integer");
    set_count(L, "elements", (size_t)peri_dtype_block((peri_dtype)d, &bytes));
    set_count(L, "bytes", bytes);
    lua_rawseti(L, 1, ++n);
  }
  return 1;
}
