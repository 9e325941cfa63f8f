/*
** main_warn.c - warnings in the program: Lua's warn() and what the library logs, each on a line of its
** own on the standard error. "@off" and "@on" switch them, as in stock Lua.
*/
#include <stdio.h>
#include <string.h>

#include "bind.h"
#include "repl.h"

static bool off, inside; /* inside: a message in pieces has begun */

/* The state of the module, without raising; NULL when it is not open. */
static peri_bind *bind_of (lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_bind);
  peri_bind *b = (peri_bind *)lua_touserdata(L, -1);
  lua_pop(L, 1);
  return b;
}

static void wipe (peri_bind *b) {
  if (!b || !b->bar) return;
  b->bar = false;
  fputs("\r\033[K", stdout);
  fflush(stdout);
}

void peri__wipe_bar (lua_State *L) {
  if (lua_checkstack(L, 1)) wipe(bind_of(L));
}

static void show (void *ud, const char *text, int more) {
  if (!inside && !more && text[0] == '@') { /* a control message */
    if (strcmp(text, "@off") == 0) off = true;
    if (strcmp(text, "@on") == 0) off = false;
    return;
  }
  if (!off) {
    if (!inside) {
      wipe((peri_bind *)ud);
      fputs("perilune: warning: ", stderr);
    }
    fputs(text, stderr);
    if (!more) fputc('\n', stderr);
  }
  inside = more != 0;
}

void peri__warnings_open (lua_State *L) { lua_setwarnf(L, show, bind_of(L)); }
