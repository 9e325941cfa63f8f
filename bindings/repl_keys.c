/*
** repl_keys.c - single keys from the terminal, for commands that are played. While a handle is open the terminal
** gives keys at once and shows none of them; its former settings come back when it is closed, collected, or
** Ctrl-C ends the program's script.
*/
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <poll.h>
#include <termios.h>
#include <unistd.h>

#include <lauxlib.h>

#include "repl.h"

#define KEYS "perilune.keys"

typedef struct keys {
  struct termios before;
  bool open;
} keys;

static int keys_close (lua_State *L) {
  keys *k = (keys *)luaL_checkudata(L, 1, KEYS);
  if (k->open) tcsetattr(STDIN_FILENO, TCSAFLUSH, &k->before);
  k->open = false;
  return 0;
}

/* keys() -> handle; nil where the standard input is no terminal. */
static int l_keys (lua_State *L) {
  struct termios raw;
  keys *k = (keys *)lua_newuserdatauv(L, sizeof *k, 0);
  k->open = false;
  luaL_setmetatable(L, KEYS);
  if (tcgetattr(STDIN_FILENO, &k->before) != 0) return 0;
  raw = k->before;
  raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO); /* Ctrl-C stays a signal */
  raw.c_cc[VMIN] = 0;
  raw.c_cc[VTIME] = 0;
  raw.c_cc[VSUSP] = _POSIX_VDISABLE; /* a shell would get the terminal as it is now */
  if (tcsetattr(STDIN_FILENO, TCSAFLUSH, &raw) != 0) return 0;
  k->open = true;
  return 1;
}

/* keys:read(seconds): what was typed within that time, an arrow key being an escape sequence; "" when nothing was, nil
** at the end of input. */
static int keys_read (lua_State *L) {
  char text[64];
  keys *k = (keys *)luaL_checkudata(L, 1, KEYS);
  int left = (int)(luaL_optnumber(L, 2, 0) * 1000);
  if (!k->open) return luaL_error(L, "keys:read: it is closed");
  for (;; left -= 20) { /* short waits: a signal between look and wait would not end one */
    struct pollfd p = { .fd = STDIN_FILENO, .events = POLLIN };
    int n = poll(&p, 1, left < 20 ? (left < 0 ? 0 : left) : 20);
    if (n > 0) {
      ssize_t got = read(STDIN_FILENO, text, sizeof text);
      if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN)) return 0;
      lua_pushlstring(L, text, got > 0 ? (size_t)got : 0);
      return 1;
    }
    if (peri__interrupt_pending() || left <= 20) break;
  }
  lua_pushliteral(L, "");
  return 1;
}

/* Adds keys to the module on top. */
void peri__open_keys (lua_State *L) {
  static const luaL_Reg methods[] = { { "read", keys_read },
                                      { "close", keys_close },
                                      { "__gc", keys_close },
                                      { "__close", keys_close },
                                      { NULL, NULL } };
  if (luaL_newmetatable(L, KEYS)) {
    luaL_setfuncs(L, methods, 0);
    lua_pushvalue(L, -1);
    lua_setfield(L, -2, "__index");
  }
  lua_pop(L, 1);
  lua_pushcfunction(L, l_keys);
  lua_setfield(L, -2, "keys");
}
