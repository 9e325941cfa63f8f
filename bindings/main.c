/*
** main.c - the perilune program: the Lua files it uses, and the process around the command line, which is
** lua/perilune/command/. What it does to the process (signals, locale, standard streams) no library file
** does.
*/
#define _XOPEN_SOURCE 700 /* realpath */

#include <dirent.h>
#include <limits.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lualib.h>

#include "bind.h"
#include "limit.h"
#include "embed.h"
#include "repl.h"

enum { EXIT_OK, EXIT_ERROR, EXIT_INTERRUPT = 130 };

/* ---- which Lua files ---- */

static bool has_library (const char *dir) {
  char path[PATH_MAX];
  int n = snprintf(path, sizeof path, "%s/perilune/init.lua", dir);
  return n > 0 && n < (int)sizeof path && access(path, R_OK) == 0;
}

/* Folder named by PERILUNE_LUA, else lua/ of the checkout that the program was built in. */
static bool library_folder (char *out, size_t size) {
  const char *given = getenv("PERILUNE_LUA");
  char self[PATH_MAX];
  if (given && *given) return snprintf(out, size, "%s", given) < (int)size && has_library(out);
  ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
  if (n <= 0) return false;
  self[n] = 0;
  char *slash = strrchr(self, '/');
  if (!slash) return false;
  *slash = 0;
  static const char *const places[] = { "../lua", "../../lua" };
  for (int i = 0; i < 2; i++)
    if (snprintf(out, size, "%s/%s", self, places[i]) < (int)size && has_library(out)) return true;
  return false;
}

/* What the names of the library's chunks begin with. */
static char library[PATH_MAX + 16] = "=perilune/";

/* The folder goes before every other path; without one the embedded files do. */
static void find_library (lua_State *L) {
  char dir[PATH_MAX];
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  lua_pushcfunction(L, luaopen_perilune_core);
  lua_setfield(L, -2, "perilune.core");
  lua_pushcfunction(L, peri__open_line);
  lua_setfield(L, -2, "perilune.line");
  lua_pop(L, 1);
  if (!library_folder(dir, sizeof dir)) {
    const char *given = getenv("PERILUNE_LUA");
    if (given && *given) luaL_error(L, "PERILUNE_LUA=%s: there is no perilune/init.lua", given);
    peri__add_searcher(L, true);
    return;
  }
  snprintf(library, sizeof library, "@%s/perilune/", dir);
  lua_getglobal(L, "package");
  lua_getfield(L, -1, "path");
  lua_pushfstring(L, "%s/?.lua;%s/?/init.lua;%s", dir, dir, lua_tostring(L, -1));
  lua_setfield(L, -3, "path");
  lua_pop(L, 2);
}

/* Load the package; help is global in the program. On a terminal print and the others know of progress
** bars before a script takes copies of them. */
static void open_perilune (lua_State *L) {
  lua_getglobal(L, "require");
  lua_pushliteral(L, "perilune");
  lua_call(L, 1, 1);
  lua_getfield(L, -1, "help");
  lua_setglobal(L, "help");
  if (!isatty(STDOUT_FILENO)) return;
  lua_getglobal(L, "require");
  lua_pushliteral(L, "perilune.run.log.bar");
  lua_call(L, 1, 1);
  lua_getfield(L, -1, "install");
  lua_call(L, 0, 0);
}

/* ---- what the command line in Lua asks for: lua/perilune/command/init.lua ---- */

static int enter_folder (lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  return luaL_fileresult(L, chdir(path) == 0, path);
}

static int set_variable (lua_State *L) {
  const char *name = luaL_checkstring(L, 1), *value = luaL_checkstring(L, 2);
  return luaL_fileresult(L, setenv(name, value, 1) == 0, name);
}

/* Names of the Lua files in a room of the library, each with its end, behind each other in a buffer; how
** many bytes, 0 when it is too small or there is no such room. No Lua in here: it may raise. */
static size_t names_in (const char *dir, const char *room, char *buf, size_t size) {
  char path[PATH_MAX];
  size_t n = 0;
  if (*dir) {
    if (snprintf(path, sizeof path, "%s/perilune/%s", dir, room) >= (int)sizeof path) return 0;
    DIR *d = opendir(path);
    if (!d) return 0;
    for (struct dirent *e = readdir(d); e && n < size; e = readdir(d))
      n += (size_t)snprintf(buf + n, size - n, "%s", e->d_name) + 1;
    closedir(d);
  } else {
    int prefix = snprintf(path, sizeof path, "perilune/%s/", room);
    for (const peri__embedded_file *f = peri__embedded; f->name && n < size; f++)
      if (strncmp(f->name, path, (size_t)prefix) == 0)
        n += (size_t)snprintf(buf + n, size - n, "%s", f->name + prefix) + 1;
  }
  return n <= size ? n : 0;
}

/* list (room): the modules of a room of the library, in no order. */
static int list_room (lua_State *L) {
  char names[1 << 14], dir[PATH_MAX];
  const char *room = luaL_checkstring(L, 1);
  if (!library_folder(dir, sizeof dir)) *dir = 0;
  size_t n = names_in(dir, room, names, sizeof names);
  lua_newtable(L);
  for (const char *at = names; at < names + n; at += strlen(at) + 1) {
    size_t size = strlen(at);
    if (size <= 4 || strcmp(at + size - 4, ".lua") != 0 || strchr(at, '/')) continue;
    lua_pushlstring(L, at, size - 4);
    lua_rawseti(L, 2, (lua_Integer)lua_rawlen(L, 2) + 1);
  }
  return 1;
}

/* start (): load the package. */
static int start (lua_State *L) {
  open_perilune(L);
  peri__warnings_open(L);
  lua_gc(L, LUA_GCGEN, 0, 0); /* as lua does, but once the libraries are old: results die young */
  peri__interrupt_open(L);
  return 0;
}

/* Push what a command may want to know of its surroundings: command/init.lua. */
static void push_place (lua_State *L) {
  static const luaL_Reg functions[] = { { "enter", enter_folder }, { "setenv", set_variable },
                                        { "list", list_room },     { "source", peri__source },
                                        { "start", start },        { NULL, NULL } };
  char self[PATH_MAX], dir[PATH_MAX], root[PATH_MAX], path[PATH_MAX];
  luaL_newlib(L, functions);
  lua_pushstring(L, peri_version());
  lua_setfield(L, -2, "version");
  ssize_t n = readlink("/proc/self/exe", self, sizeof self);
  if (n > 0) {
    lua_pushlstring(L, self, (size_t)n);
    lua_setfield(L, -2, "program");
  }
  if (!library_folder(dir, sizeof dir) || !realpath(dir, root)) return;
  char *slash = strrchr(root, '/'); /* the folder above the library's */
  if (!slash) return;
  *slash = 0;
  if (snprintf(path, sizeof path, "%s/tests/lua/run.lua", root) >= (int)sizeof path) return;
  if (access(path, R_OK) != 0) return;
  lua_pushstring(L, root);
  lua_setfield(L, -2, "root");
}

/* Protected: libraries, where the Lua files are. */
static int prepare (lua_State *L) {
  luaL_openlibs(L);
  find_library(L);
  return 0;
}

/* The message handler: after Ctrl-C the place in the script is enough, unless an object says more. */
static int explain (lua_State *L) {
  lua_Debug ar;
  peri_lua_stop *stop = peri__stop_of(L);
  if (stop) peri__stop_raised(stop);
  if (!peri__interrupt_pending() || lua_type(L, 1) == LUA_TTABLE) return peri__traceback(L);
  for (int level = 1; lua_getstack(L, level, &ar); level++) {
    lua_getinfo(L, "Sl", &ar);
    bool inside = strncmp(ar.source, library, strlen(library)) == 0;
    if (ar.currentline <= 0 || inside) continue;
    lua_pushfstring(L, "interrupted at %s:%d", ar.short_src, ar.currentline);
    return 1;
  }
  lua_pushliteral(L, "interrupted");
  return 1;
}

/* Protected: the exit status. What the command line gives is called from here, so that tracebacks of scripts
** begin with them. */
static int body (lua_State *L) {
  char **argv = (char **)lua_touserdata(L, 1);
  lua_settop(L, 0);
  lua_getglobal(L, "require");
  lua_pushliteral(L, "perilune.command");
  lua_call(L, 1, 1);
  lua_newtable(L);
  for (int i = 1; *argv && argv[i]; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i);
  }
  push_place(L);
  lua_call(L, 2, 4); /* a status; or chunks, the command, its arguments, the place */
  if (!lua_istable(L, 1)) {
    lua_settop(L, 1);
    return 1;
  }
  for (lua_Integer i = 1; lua_rawgeti(L, 1, i) != LUA_TNIL; i++) lua_call(L, 0, 0);
  lua_settop(L, 4);
  if (lua_isnil(L, 2)) {
    lua_pushinteger(L, EXIT_OK);
    return 1;
  }
  lua_call(L, 2, LUA_MULTRET);
  int n = lua_gettop(L) - 1;
  if (n > 0 && lua_isfunction(L, 2)) { /* a script: what it returns is nobody's */
    lua_call(L, n - 1, 0);
    lua_settop(L, 1);
  }
  lua_pushinteger(L, n > 0 && lua_isinteger(L, 2) ? lua_tointeger(L, 2) : EXIT_OK);
  return 1;
}

/* For the line editor; numbers stay in the C locale. Text is UTF-8 here: an environment that says
** nothing of characters does not keep them from being typed. */
static void choose_locale (void) {
  const char *given = setlocale(LC_CTYPE, "");
  if (!given || strcmp(given, "C") == 0) setlocale(LC_CTYPE, "C.UTF-8");
}

int main (int argc, char **argv) {
  (void)argc;
  int status = EXIT_ERROR;
  choose_locale();
  lua_State *L = luaL_newstate();
  if (!L) {
    fputs("perilune: out of memory\n", stderr);
    return EXIT_ERROR;
  }
  lua_pushcfunction(L, prepare); /* what fails here is no fault of a script: no traceback */
  bool ready = lua_pcall(L, 0, 0, 0) == LUA_OK;
  if (ready) {
    lua_pushcfunction(L, explain);
    lua_pushcfunction(L, body);
    lua_pushlightuserdata(L, argv);
    ready = lua_pcall(L, 1, 1, 1) == LUA_OK;
  }
  if (ready)
    status = (int)lua_tointeger(L, -1);
  else {
    const char *msg = lua_tostring(L, -1);
    peri__wipe_bar(L);
    fprintf(stderr, "perilune: %s\n", msg ? msg : "error is no string");
  }
  if (peri__interrupt_seen()) status = EXIT_INTERRUPT;
  peri__interrupt_close();
  lua_close(L);
  return status;
}
