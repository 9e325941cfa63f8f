/*
** main.c - the perilune program: commands, the Lua files it uses. What it does to the
** process (signals, locale, standard streams) no library file does.
*/
#define _XOPEN_SOURCE 700 /* realpath */

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
    "usage: perilune [OPTION ...] COMMAND [ARG ...]\n"
    "  run FILE [ARG ...]   run a Lua file; - is the standard input\n"
    "  recipes              the recipes that there are, a line each\n"
    "  repl                 interactive prompt\n"
    "  test [WORD ...]      run the tests of a source checkout\n"
    "  bench [NAME]         run a benchmark of a source checkout (default: core)\n"
    "  chat MODEL           talk to a model: a Hugging Face folder or a GGUF file\n"
    "  complete MODEL TEXT  continue a text\n"
    "  embed MODEL [TEXT]   vectors of texts\n"
    "  eval MODEL           measure a model on a task\n"
    "  convert FROM TO      between Hugging Face folders and GGUF files, with quantisation\n"
    "  info [FILE]          a model file; without one the version, processor, SIMD level, threads\n"
    "  COMMAND --help       what a command takes\n"
    "  --version            print the version\n"
    "  --help               print this text\n"
    "options:\n"
    "  -e CODE              run this Lua first, or only this; peri is there as a global\n"
    "  --threads N          threads of the ops, 1 to 1024 (default, and 0: one for each "
    "processor)\n"
    "  --max_bytes SIZE     limit on the memory of tensors: 4G, 512M, none (default: 7/8 of the\n"
    "                       machine's or the container's memory)\n"
    "environment: PERI_SIMD=portable|avx2|avx512, PERI_THREADS=N, PERI_SEED=N, "
    "PERI_MAX_BYTES=SIZE,\n"
    "             PERILUNE_LUA=FOLDER\n";

static const char run_usage[] = "usage: perilune run FILE [ARG ...]\n"
                                "Runs a Lua file; - is the standard input. What stands behind FILE "
                                "is the script's: in ..., and in the\n"
                                "global arg. A recipe lists its flags with perilune run FILE "
                                "--help; perilune recipes lists recipes.\n"
                                "Ctrl-C stops a recipe after its step and anything else at once.\n";

static const char repl_usage[] = "usage: perilune repl\n"
                                 "An interactive prompt: the values of expressions print, input "
                                 "may span lines, Tab completes, help(x)\n"
                                 "explains x, Ctrl-C returns to the prompt, Ctrl-D leaves. peri "
                                 "and help are globals; LUA_INIT runs before.\n";

/* ORDER command: here and in usage. */
static const char *const commands[] = { "run",      "recipes", "repl", "test",    "bench", "chat",
                                        "complete", "embed",   "eval", "convert", "info",  NULL };

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

/* A script's own modules: its folder, behind all others. The current one is there already. */
static void add_script_folder (lua_State *L, const char *path) {
  const char *slash = strrchr(path, '/');
  if (!slash) return;
  lua_getglobal(L, "package");
  lua_getfield(L, -1, "path");
  lua_pushlstring(L, path, (size_t)(slash - path));
  const char *all = lua_tostring(L, -2), *dir = lua_tostring(L, -1);
  lua_pushfstring(L, "%s;%s/?.lua;%s/?/init.lua", all ? all : "", dir, dir);
  lua_setfield(L, -4, "path");
  lua_pop(L, 3);
}

static int run_file (lua_State *L, const char *path, int argc, char **argv, int script) {
  set_arg(L, argc, argv, script);
  if (luaL_loadfilex(L, strcmp(path, "-") == 0 ? NULL : path, "t") != LUA_OK) {
    fprintf(stderr, "perilune: %s\n", lua_tostring(L, -1));
    return EXIT_ERROR;
  }
  add_script_folder(L, path);
  luaL_checkstack(L, argc, "too many arguments");
  for (int i = script + 1; i < argc; i++) lua_pushstring(L, argv[i]);
  return run_chunk(L, argc - script - 1);
}

static int enter_folder (lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  return luaL_fileresult(L, chdir(path) == 0, path);
}

/* Push what a command may want to know of its surroundings: { program = path, root = checkout (none
** outside one), enter = function (folder) }. */
static void push_place (lua_State *L) {
  char self[PATH_MAX], dir[PATH_MAX], root[PATH_MAX], path[PATH_MAX];
  lua_createtable(L, 0, 3);
  lua_pushcfunction(L, enter_folder);
  lua_setfield(L, -2, "enter");
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

static int run_repl (lua_State *L, int argc, char **argv) {
  set_arg(L, argc, argv, 0);
  lua_getglobal(L, "require");
  lua_pushliteral(L, "perilune.repl");
  lua_call(L, 1, 1);
  return run_chunk(L, 0);
}

/* A command that is a Lua module: perilune.command.NAME returns function(arguments, place) -> status. */
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
  push_place(L);
  lua_call(L, 2, 1);
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
  const char **chunks; /* of -e, in their order */
  int nchunks;
} command;

static void run_chunks (lua_State *L, const command *c) {
  if (c->nchunks == 0) return;
  lua_getglobal(L, "require");
  lua_pushliteral(L, "perilune");
  lua_call(L, 1, 1);
  lua_setglobal(L, "peri");
  set_arg(L, c->argc, c->argv, c->argc < 2 ? 0 : 1);
  for (int i = 0; i < c->nchunks; i++) {
    const char *text = c->chunks[i];
    if (luaL_loadbufferx(L, text, strlen(text), "=(command line)", "t") != LUA_OK) lua_error(L);
    lua_call(L, 0, 0);
  }
}

static int is_command (const char *word) {
  int i = 0;
  while (commands[i] && strcmp(commands[i], word) != 0) i++;
  return commands[i] != NULL;
}

static int dispatch (lua_State *L, const command *c) {
  run_chunks(L, c);
  if (c->argc < 2) return EXIT_OK; /* -e alone */
  const char *name = c->argv[1];
  if (!is_command(name)) return run_file(L, name, c->argc, c->argv, 1); /* -e CODE FILE */
  if (strcmp(name, "run") == 0) return run_file(L, c->argv[2], c->argc, c->argv, 2);
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

/* The message handler: after Ctrl-C the place in the script is enough, unless an object says more. */
static int explain (lua_State *L) {
  lua_Debug ar;
  peri__interrupt_raised();
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

/* Protected: the exit status. */
static int body (lua_State *L) {
  const command *c = (const command *)lua_touserdata(L, 1);
  lua_pushinteger(L, dispatch(L, c));
  return 1;
}

/* ---- the command line ---- */

/* Whether argv[at] is --NAME or --NAME=VALUE; then its value (NULL: none) and how many words it takes. */
static bool option_at (int argc, char **argv, int at, const char *name, const char **value,
                       int *words) {
  size_t n = strlen(name);
  if (strncmp(argv[at], name, n) != 0 || (argv[at][n] && (argv[at][n] != '=' || n == 2)))
    return false;
  *words = argv[at][n] || at + 1 >= argc ? 1 : 2;
  *value = argv[at][n] ? argv[at] + n + 1 : at + 1 < argc ? argv[at + 1] : NULL;
  return true;
}

static bool is_thread_count (const char *text) { /* as env_number in state.c reads it */
  char *end;
  long n = strtol(text, &end, 10);
  return *text >= '0' && *text <= '9' && !*end && n <= 1024;
}

/* One option of every command at argv[at]: its words leave argv, true. The context that opens later reads
** them from the environment. *wrong is set when the value does not do. */
static bool take_option (command *c, int at, bool *wrong) {
  static const char *const names[] = { "--threads", "--max_bytes", "-e" };
  static const char *const want[] = { "a number from 0 to 1024 (0: one for each processor)",
                                      "a size such as 4G, 512M or none", "Lua code" };
  const char *value = NULL;
  int words = 0, i = 0;
  while (i < 3 && !option_at(c->argc, c->argv, at, names[i], &value, &words)) i++;
  if (i == 3) return false;
  if (value && !*value && i < 2) value = NULL;
  if (!value || (i == 0 && !is_thread_count(value))) {
    fprintf(stderr, value ? "perilune: %s %s: expected %s\n" : "perilune: %s needs %s%s\n",
            names[i], value ? value : want[i], value ? want[i] : "");
    *wrong = true;
    return true;
  }
  if (i == 2)
    c->chunks[c->nchunks++] = value;
  else
    setenv(i == 0 ? "PERI_THREADS" : "PERI_MAX_BYTES", value, 1);
  c->argc -= words; /* and the NULL behind */
  memmove(c->argv + at, c->argv + at + words, (size_t)(c->argc - at + 1) * sizeof *c->argv);
  return true;
}

/* Before the command, and behind it where no file begins that has arguments of its own. */
static bool take_options (command *c) {
  bool wrong = false;
  int at = 1;
  while (!wrong && at < c->argc && take_option(c, at, &wrong)) {}
  if (wrong || c->argc < 2 || !is_command(c->argv[1])) return !wrong;
  bool script = strcmp(c->argv[1], "run") == 0 || strcmp(c->argv[1], "bench") == 0;
  for (at = 2; !wrong && at < c->argc && strcmp(c->argv[at], "--") != 0;) {
    if (strcmp(c->argv[at], "-e") != 0 && take_option(c, at, &wrong)) continue;
    if (script && strncmp(c->argv[at], "--", 2) != 0) break;
    at++;
  }
  return !wrong;
}

static const char *command_at (void *ud, int i) {
  (void)ud;
  return commands[i];
}

static bool asks_help (const char *word) {
  return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

/* What needs no Lua: true with the exit status when that was all. */
static bool answer_at_once (const command *c, int *status) {
  const char *name = c->argc > 1 ? c->argv[1] : "", *arg = c->argc > 2 ? c->argv[2] : "";
  *status = EXIT_OK;
  if (strcmp(name, "--version") == 0)
    printf("perilune %s\n", peri_version());
  else if (asks_help(name))
    fputs(usage, stdout);
  else if (c->nchunks == 0 && c->argc < 2) {
    fputs(usage, stderr);
    *status = EXIT_USAGE;
  } else if (strcmp(name, "run") == 0 && asks_help(arg))
    fputs(run_usage, stdout);
  else if (strcmp(name, "repl") == 0 && asks_help(arg))
    fputs(repl_usage, stdout);
  else {
    *status = EXIT_USAGE;
    if (strcmp(name, "run") == 0 && c->argc < 3)
      fprintf(stderr, "perilune: run needs a file\n%s", run_usage);
    else if (strcmp(name, "run") == 0 && arg[0] == '-' && arg[1])
      fprintf(stderr, "perilune: run has no option %s; those of a script stand behind its file\n%s",
              arg, run_usage);
    else if (strcmp(name, "repl") == 0 && c->argc > 2)
      fprintf(stderr, "perilune: repl takes no arguments, got %s\n%s", arg, repl_usage);
    else if (c->argc > 1 && !is_command(name) && (c->nchunks == 0 || name[0] == '-')) {
      const char *near = peri__nearest(name, command_at, NULL);
      bool file = !near && access(name, R_OK) == 0;
      fprintf(stderr, "perilune: no command is called '%s'", name);
      if (near || file)
        fprintf(stderr, "; did you mean '%s%s'?", file ? "run " : "", file ? name : near);
      fputs(" (perilune --help lists them)\n", stderr);
    } else
      return false;
  }
  return true;
}

int main (int argc, char **argv) {
  command c = { argc, argv, (const char **)calloc((size_t)argc + 1, sizeof(char *)), 0 };
  int status = EXIT_USAGE;
  if (!c.chunks || !take_options(&c) || answer_at_once(&c, &status)) {
    free(c.chunks);
    return status;
  }
  setlocale(LC_CTYPE, ""); /* for the line editor; numbers stay in the C locale */
  lua_State *L = luaL_newstate();
  if (!L) {
    fputs("perilune: out of memory\n", stderr);
    return EXIT_ERROR;
  }
  status = EXIT_ERROR;
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
  free(c.chunks);
  return status;
}
