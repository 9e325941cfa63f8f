/*
** deadline.c - peri._deadline: a time by which a coroutine, and every coroutine that is made in it, has
** ended, for the tools of a model. A hook of Lua's debug library belongs to one thread; one of C is
** inherited by each thread that a hooked one makes, whoever makes it. Where the time is over the hook
** suspends the thread, which no pcall catches, or raises where it cannot. A state that its host limits
** has a hook of its own in all threads, which looks here as well.
*/
#include <lauxlib.h>

#include "bind.h"
#include "limit.h"

#define LOOK 1000 /* instructions between two looks at the clock */
#define TYPE "perilune.deadline"

enum { OUTER = 1, THREAD }; /* user values: the deadline around this one, its coroutine */

typedef struct {
  lua_State *co;
  lua_State *caller; /* runs only while the coroutine does not: never stopped for this one */
  double until;
  bool late;
  bool closing; /* what is to be closed runs: a thread that is closed cannot be suspended */
} deadline;

static const char key_innermost = 0; /* in the registry: the deadline that began last */

static void look_hook (lua_State *L, lua_Debug *ar);

/* The next look is after one instruction. Hooks of others stay as they are. */
static void hurry (lua_State *L, const peri_lua_stop *s) {
  if (lua_gethook(L) == look_hook || (s && s->step))
    lua_sethook(L, lua_gethook(L), LUA_MASKCOUNT, 1);
}

/* Those that wait for L as well, out to the one that called, where the state has a list of what runs. */
static void hurry_outer (const peri_lua_stop *s, const lua_State *caller) {
  for (peri_running *r = s ? s->innermost : NULL; r && r->L != caller; r = r->outer) hurry(r->L, s);
}

/* Whether any deadline holds. Called by hooks: suspends or stops L where one of its deadlines is over. */
bool peri__deadline_look (lua_State *L) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &key_innermost) != LUA_TUSERDATA) {
    lua_pop(L, 1);
    return false;
  }
  const peri_lua_stop *s = peri__stop_of(L);
  double now = peri__now();
  bool late = false, closing = false;
  const lua_State *last = NULL; /* the caller of the outermost one that is over */
  do {
    deadline *d = (deadline *)lua_touserdata(L, -1);
    if (d->caller != L && now >= d->until) {
      late = d->late = true;
      closing = closing || d->closing;
      last = d->caller;
      hurry(d->co, s);
    }
    lua_getiuservalue(L, -1, OUTER);
    lua_remove(L, -2);
  } while (lua_isuserdata(L, -1));
  lua_pop(L, 1);
  if (!late) return true;
  hurry(L, s); /* whoever catches this meets it again with the next instruction */
  hurry_outer(s, last);
  if (!closing && lua_isyieldable(L))
    lua_yield(L, 0);
  else
    luaL_error(L, "the time of the call is over");
  return true;
}

static void look_hook (lua_State *L, lua_Debug *ar) {
  (void)ar;
  if (!peri__deadline_look(L)) lua_sethook(L, NULL, 0, 0); /* of a deadline that is gone */
}

static int l_deadline (lua_State *L) {
  lua_State *co = lua_tothread(L, 1);
  luaL_argexpected(L, co && co != L, 1, "coroutine");
  double seconds = luaL_checknumber(L, 2);
  deadline *d = (deadline *)lua_newuserdatauv(L, sizeof *d, THREAD);
  *d = (deadline){ .co = co, .caller = L, .until = peri__now() + seconds };
  luaL_setmetatable(L, TYPE);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, THREAD);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &key_innermost);
  lua_setiuservalue(L, -2, OUTER);
  lua_pushvalue(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &key_innermost);
  const peri_lua_stop *s = peri__stop_of(L);
  if (!s || !s->step) lua_sethook(co, look_hook, LUA_MASKCOUNT, LOOK);
  return 1;
}

/* Whether it came before the coroutine had ended. What it closes has as long once more. */
static int l_ended (lua_State *L) {
  deadline *d = (deadline *)luaL_checkudata(L, 1, TYPE);
  d->until = peri__now() + luaL_checknumber(L, 2);
  d->closing = true;
  if (lua_gethook(d->co) == look_hook) lua_sethook(d->co, look_hook, LUA_MASKCOUNT, LOOK);
  lua_pushboolean(L, d->late);
  return 1;
}

/* The deadlines around it hold again; those inside of it, of coroutines that were left, are gone. */
static int l_close (lua_State *L) {
  deadline *d = (deadline *)luaL_checkudata(L, 1, TYPE);
  if (lua_gethook(d->co) == look_hook) lua_sethook(d->co, NULL, 0, 0);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &key_innermost);
  while (lua_isuserdata(L, -1) && lua_touserdata(L, -1) != d) {
    lua_getiuservalue(L, -1, OUTER);
    lua_remove(L, -2);
  }
  if (!lua_isuserdata(L, -1)) return 0; /* gone already */
  lua_getiuservalue(L, -1, OUTER);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &key_innermost);
  return 0;
}

void peri__open_deadline (lua_State *L) {
  static const luaL_Reg methods[] = { { "ended", l_ended }, { NULL, NULL } };
  static const peri_reg functions[] = {
    { "_deadline", "coroutine, seconds",
      "A time by which a coroutine has ended, with those that it makes; <close> takes it off.",
      l_deadline },
    { NULL, NULL, NULL, NULL },
  };
  luaL_newmetatable(L, TYPE);
  luaL_newlib(L, methods);
  lua_setfield(L, -2, "__index");
  lua_pushcfunction(L, l_close);
  lua_setfield(L, -2, "__close");
  lua_pop(L, 1);
  peri__register(L, functions);
}
