/*
** main.c - the perilune program: commands, the Lua files it uses. What it does to the
** process (signals, locale, standard streams) no library file does.
*/
#define _POSIX_C_SOURCE 200809L

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
#include "repl.h"

enum { EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPT = 130 };

static const char usage[] =
    "usage: perilune COMMAND [ARG ...]\n"
    "  run FILE [ARG ...]   run a Lua file; - is the standard input\n"
    "  repl                 interactive prompt\n"
    "  test [NAME ...]      run the tests of a source checkout\n"
    "  bench [NAME]         run a benchmark of a source checkout (default: core)\n"
    "  chat MODEL           talk to a model: a Hugging Face folder or a GGUF file\n"
    "  complete MODEL TEXT  continue a text\n"
    "  eval MODEL           measure a model on a task\n"
    "  convert FROM TO      between Hugging Face folders and GGUF files, with quantisation\n"
    "  info [FILE]          a model file; without one the version, processor, SIMD level, threads\n"
    "  COMMAND --help       what a command takes\n"
    "  --version            print the version\n"
    "  --help               print this text\n"
    "before COMMAND:\n"
    "  --max_bytes SIZE     limit on the memory of tensors: 4G, 512M, none (default: 7/8 of the\n"
    "                       machine's or the container's memory)\n"
    "environment: PERI_SIMD=portable|avx2|avx512, PERI_THREADS=N, PERI_SEED=N, "
    "PERI_MAX_BYTES=SIZE,\n"
    "             PERILUNE_LUA=FOLDER\n";

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
  lua_getglobal(L, "package");
  lua_getfield(L, -1, "path");
  lua_pushfstring(L, "%s/?.lua;%s/?/init.lua;%s", dir, dir, lua_tostring(L, -1));
  lua_setfield(L, -3, "path");
  lua_pop(L, 2);
}

/* Load the package; help is global in the program. */
static void open_perilune (lua_State *L) {
  lua_getglobal(L, "require");
  lua_pushliteral(L, "perilune");
  lua_call(L, 1, 1);
  lua_getfield(L, -1, "help");
  lua_setglobal(L, "help");
}

/* ---- commands ---- */

/* Global arg as lua does: [0] the script, negative what stood before it. */
static void set_arg (lua_State *L, int argc, char **argv, int script) {
  lua_createtable(L, argc - script, script + 1);
  for (int i = 0; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i - script);
  }
  lua_setglobal(L, "arg");
}

static int run_chunk (lua_State *L, int nargs) {
  lua_call(L, nargs, 0);
  return EXIT_OK;
}

static int run_file (lua_State *L, const char *path, int argc, char **argv, int script) {
  set_arg(L, argc, argv, script);
  if (luaL_loadfilex(L, strcmp(path, "-") == 0 ? NULL : path, "t") != LUA_OK) {
    fprintf(stderr, "perilune: %s\n", lua_tostring(L, -1));
    return EXIT_ERROR;
  }
  luaL_checkstack(L, argc, "too many arguments");
  for (int i = script + 1; i < argc; i++) lua_pushstring(L, argv[i]);
  return run_chunk(L, argc - script - 1);
}

/* Root of the checkout: the folder above the library's. */
static bool checkout (char *out, size_t size, const char *file) {
  char dir[PATH_MAX], path[PATH_MAX];
  if (!library_folder(dir, sizeof dir)) return false;
  if (snprintf(out, size, "%s/..", dir) >= (int)size) return false;
  return snprintf(path, sizeof path, "%s/%s", out, file) < (int)sizeof path &&
         access(path, R_OK) == 0;
}

static int no_checkout (const char *what) {
  fprintf(stderr, "perilune: %s needs a source checkout: run ./perilune %s there\n", what, what);
  return EXIT_ERROR;
}

/* Push the names of tests/lua/test_*.lua (those asked for), sorted by table.sort. */
static int push_tests (lua_State *L, int argc, char **argv) {
  DIR *dir = opendir("tests/lua");
  struct dirent *e;
  int n = 0;
  lua_newtable(L);
  while (dir && (e = readdir(dir)) != NULL) {
    size_t len = strlen(e->d_name);
    bool wanted = argc <= 2;
    if (strncmp(e->d_name, "test_", 5) != 0 || len < 9 || strcmp(e->d_name + len - 4, ".lua") != 0)
      continue;
    for (int i = 2; i < argc; i++) wanted = wanted || strstr(e->d_name, argv[i]) != NULL;
    if (!wanted) continue;
    lua_pushfstring(L, "tests/lua/%s", e->d_name);
    lua_rawseti(L, -2, ++n);
  }
  if (dir) closedir(dir);
  lua_getglobal(L, "table");
  lua_getfield(L, -1, "sort");
  lua_pushvalue(L, -3);
  lua_call(L, 1, 0);
  lua_pop(L, 1);
  return n;
}

static int run_tests (lua_State *L, int argc, char **argv) {
  char root[PATH_MAX];
  if (!checkout(root, sizeof root, "tests/lua/run.lua") || chdir(root) != 0)
    return no_checkout("test");
  int n = push_tests(L, argc, argv);
  if (luaL_loadfilex(L, "tests/lua/run.lua", "t") != LUA_OK) return lua_error(L);
  lua_insert(L, -2);
  luaL_checkstack(L, n + 2, "too many tests");
  int list = lua_gettop(L);
  lua_pushvalue(L, list);
  lua_pushliteral(L, "tests/lua/run.lua");
  lua_rawseti(L, -2, 0);
  lua_setglobal(L, "arg");
  for (int i = 1; i <= n; i++) lua_rawgeti(L, list, i);
  lua_remove(L, list);
  return run_chunk(L, n);
}

static int run_bench (lua_State *L, int argc, char **argv) {
  char root[PATH_MAX], path[PATH_MAX];
  const char *name = argc > 2 ? argv[2] : "core";
  if (snprintf(path, sizeof path, "tests/bench/%s.lua", name) >= (int)sizeof path)
    return EXIT_USAGE;
  if (!checkout(root, sizeof root, path) || chdir(root) != 0) return no_checkout("bench");
  return run_file(L, path, argc, argv, argc > 2 ? 2 : argc - 1);
}

static int print_info (lua_State *L) {
  static const char code[] =
      "local peri = require 'perilune' local i = peri.info()\n"
      "print(('perilune %s, %s, Lua %s'):format(i.version, i.device, i.lua:gsub('^Lua ', '')))\n"
      "print(('processor  %s'):format(i.processor))\n"
      "print(('simd       %s'):format(i.simd))\n"
      "print(('threads    %d'):format(i.threads))\n"
      "print(i.max_bytes > 0 and ('memory     %.4g GiB for tensors'):format(i.max_bytes / 2^30)\n"
      "  or 'memory     no limit')\n"
      "print(('ops        %d'):format(i.ops))\n";
  if (luaL_loadbufferx(L, code, sizeof code - 1, "=info", "t") != LUA_OK) return lua_error(L);
  return run_chunk(L, 0);
}

static int run_repl (lua_State *L, int argc, char **argv) {
  set_arg(L, argc, argv, 0);
  lua_getglobal(L, "require");
  lua_pushliteral(L, "perilune.repl");
  lua_call(L, 1, 1);
  return run_chunk(L, 0);
}

/* A command that is a Lua module: perilune.command.NAME returns function(arguments) -> status. */
static int run_module (lua_State *L, int argc, char **argv) {
  set_arg(L, argc, argv, 1);
  lua_getglobal(L, "require");
  lua_pushfstring(L, "perilune.command.%s", argv[1]);
  lua_call(L, 1, 1);
  lua_createtable(L, argc > 2 ? argc - 2 : 0, 0);
  for (int i = 2; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i - 1);
  }
  lua_call(L, 1, 1);
  return lua_isinteger(L, -1) ? (int)lua_tointeger(L, -1) : EXIT_OK;
}

/* LUA_INIT as lua.c reads it, for the prompt only. */
static void run_init (lua_State *L) {
  const char *init = getenv("LUA_INIT_5_4");
  if (!init) init = getenv("LUA_INIT");
  if (!init) return;
  int rc = init[0] == '@' ? luaL_loadfilex(L, init + 1, "t")
                          : luaL_loadbufferx(L, init, strlen(init), "=LUA_INIT", "t");
  if (rc != LUA_OK) lua_error(L);
  lua_call(L, 0, 0);
}

typedef struct command {
  int argc;
  char **argv;
} command;

static int dispatch (lua_State *L, const command *c) {
  const char *name = c->argv[1];
  if (strcmp(name, "run") == 0) return run_file(L, c->argv[2], c->argc, c->argv, 2);
  if (strcmp(name, "test") == 0) return run_tests(L, c->argc, c->argv);
  if (strcmp(name, "bench") == 0) return run_bench(L, c->argc, c->argv);
  if (strcmp(name, "info") == 0 && c->argc == 2) return print_info(L);
  if (strcmp(name, "repl") != 0) return run_module(L, c->argc, c->argv);
  run_init(L);
  return run_repl(L, c->argc, c->argv);
}

/* Protected: libraries, package perilune, Ctrl-C. */
static int prepare (lua_State *L) {
  luaL_openlibs(L);
  find_library(L);
  open_perilune(L);
  peri__warnings_open(L);
  lua_gc(L, LUA_GCGEN, 0, 0); /* as lua does, but once the libraries are old: results die young */
  peri__interrupt_open(L);
  return 0;
}

/* The message handler: after Ctrl-C the place is enough. */
static int explain (lua_State *L) {
  lua_Debug ar;
  if (!peri__interrupt_pending()) return peri__traceback(L);
  for (int level = 1; lua_getstack(L, level, &ar); level++) {
    lua_getinfo(L, "Sl", &ar);
    if (ar.currentline <= 0) continue;
    lua_pushfstring(L, "interrupted at %s:%d", ar.short_src, ar.currentline);
    return 1;
  }
  lua_pushliteral(L, "interrupted");
  return 1;
}

/* Protected: the exit status. */
static int body (lua_State *L) {
  const command *c = (const command *)lua_touserdata(L, 1);
  lua_pushinteger(L, dispatch(L, c));
  return 1;
}

/* Options before the command, which leave argv; false: one has no value. The context that opens
** later reads them from the environment. */
static bool take_options (int *argc, char **argv) {
  static const char name[] = "--max_bytes";
  size_t n = sizeof name - 1;
  while (*argc > 1 && strncmp(argv[1], name, n) == 0 && (!argv[1][n] || argv[1][n] == '=')) {
    const char *value = argv[1][n] ? argv[1] + n + 1 : *argc > 2 ? argv[2] : "";
    int used = argv[1][n] ? 1 : 2;
    if (!*value) {
      fprintf(stderr, "perilune: %s needs a size such as 4G, 512M or none\n", name);
      return false;
    }
    setenv("PERI_MAX_BYTES", value, 1);
    memmove(argv + 1, argv + 1 + used, (size_t)(*argc - used) * sizeof *argv); /* and the NULL */
    *argc -= used;
  }
  return true;
}

static int check_usage (int argc, char **argv) {
  static const char *const names[] = { "run",      "repl", "test",    "bench", "chat",
                                       "complete", "eval", "convert", "info",  NULL };
  int i = 0;
  if (argc < 2) return EXIT_USAGE;
  while (names[i] && strcmp(names[i], argv[1]) != 0) i++;
  if (!names[i]) {
    fprintf(stderr, "perilune: no command is called '%s'\n", argv[1]);
    return EXIT_USAGE;
  }
  if (i == 0 && argc < 3) {
    fprintf(stderr, "perilune: run needs a file\n");
    return EXIT_USAGE;
  }
  return EXIT_OK;
}

int main (int argc, char **argv) {
  if (!take_options(&argc, argv)) return EXIT_USAGE;
  if (argc == 2 && strcmp(argv[1], "--version") == 0) {
    printf("perilune %s\n", peri_version());
    return EXIT_OK;
  }
  if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
    fputs(usage, stdout);
    return EXIT_OK;
  }
  if (check_usage(argc, argv) != EXIT_OK) {
    fputs(usage, stderr);
    return EXIT_USAGE;
  }
  setlocale(LC_CTYPE, ""); /* for the line editor; numbers stay in the C locale */
  lua_State *L = luaL_newstate();
  if (!L) {
    fputs("perilune: out of memory\n", stderr);
    return EXIT_ERROR;
  }
  command c = { argc, argv };
  int status = EXIT_ERROR;
  lua_pushcfunction(L, prepare); /* what fails here is no fault of a script: no traceback */
  bool ready = lua_pcall(L, 0, 0, 0) == LUA_OK;
  if (ready) {
    lua_pushcfunction(L, explain);
    lua_pushcfunction(L, body);
    lua_pushlightuserdata(L, &c);
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
