/* env_python.c - peri._env.python: batches of environments that run in Python. lua/perilune/env/python.lua checks. */
#include "env.h"

static const char *text_field (lua_State *L, int t, const char *name) {
  lua_getfield(L, t, name); /* the table keeps the text */
  const char *s = lua_tostring(L, -1);
  lua_pop(L, 1);
  return s;
}

static double number_field (lua_State *L, int t, const char *name, double otherwise) {
  double v = lua_getfield(L, t, name) == LUA_TNIL ? otherwise : lua_tonumber(L, -1);
  lua_pop(L, 1);
  return v;
}

static bool flag_field (lua_State *L, int t, const char *name) {
  lua_getfield(L, t, name);
  bool on = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return on;
}

/* python(name, { python, path, options, workers, timeout, render }, { as make's }) */
static int l_python (lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  peri_python_options p;
  peri_env_options o;
  peri_python_options_init(&p);
  p.python = text_field(L, 2, "python");
  p.path = text_field(L, 2, "path");
  p.options = text_field(L, 2, "options");
  p.workers = (int)number_field(L, 2, "workers", 1);
  p.timeout = number_field(L, 2, "timeout", p.timeout);
  p.render = flag_field(L, 2, "render");
  peri__env_options_at(L, 3, &o);
  peri__env_box *b = peri__env_box_new(L);
  peri__check(L, "env.python", peri_env_python(peri_lua_ctx(L), name, &p, &o, &b->e));
  peri__env_box_fill(b);
  return 1;
}

static const peri_reg functions[] = { { "python", "name, options, batch",
                                        "A batch of environments that run in Python.", l_python },
                                      { NULL, NULL, NULL, NULL } };

void peri__open_env_python (lua_State *L) { peri__register(L, functions); }
