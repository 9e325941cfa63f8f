/*
** repl_line.c - one line of input for the prompt. libedit is opened at run time when the standard
** input is a terminal, so that nothing depends on it; without it lines come from fgets.
*/
#define _POSIX_C_SOURCE 200809L

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <unistd.h>

#include <lauxlib.h>

#include "bind.h"
#include "repl.h"

/* From libedit's histedit.h, whose values are part of its binary interface (libedit.so.2). */
enum {
  EL_PROMPT = 0,
  EL_EDITOR = 2,
  EL_SIGNAL = 3,
  EL_BIND = 4,
  EL_SETTY = 8,
  EL_ADDFN = 9,
  EL_HIST = 10
};
enum { H_SETSIZE = 1, H_ENTER = 10, H_LOAD = 17, H_SAVE = 18, H_SETUNIQUE = 20 };
enum { CC_EOF = 2, CC_REFRESH = 4, CC_ERROR = 6, CC_REDISPLAY = 8 };

typedef struct EditLine EditLine;
typedef struct History History;
typedef struct HistEvent {
  int num;
  const char *str;
} HistEvent;
typedef struct LineInfo {
  const char *buffer, *cursor, *lastchar;
} LineInfo;

/* One prompt a process: the terminal is one, and libedit's callbacks carry no user data that is
** safe before el_set. */
static struct {
  EditLine *el;
  History *history;
  lua_State *L; /* while a line is read */
  const char *prompt;
  int interrupted;
  EditLine *(*el_init)(const char *, FILE *, FILE *, FILE *);
  int (*el_set)(EditLine *, int, ...);
  /* For names of functions: it keeps texts that it is given, el_set copies and loses them. */
  int (*el_wset)(EditLine *, int, ...);
  const char *(*el_gets)(EditLine *, int *);
  const LineInfo *(*el_line)(EditLine *);
  int (*el_insertstr)(EditLine *, const char *);
  void (*el_end)(EditLine *);
  History *(*history_init)(void);
  int (*history_fn)(History *, HistEvent *, int, ...);
  void (*history_end)(History *);
} edit;

static char *prompt_text (EditLine *el) {
  (void)el;
  return (char *)edit.prompt;
}

/* Ctrl-C is a key here, not a signal: the line is dropped and the prompt comes anew. */
static unsigned char key_interrupt (EditLine *el, int c) {
  (void)el;
  (void)c;
  edit.interrupted = 1;
  fputs("^C\n", stdout);
  fflush(stdout);
  return CC_EOF;
}

/* Protected: (text before the cursor) -> what to insert, a list to show or nil. The completer is
** upvalue-free: the registry has it under the address of edit. */
static int complete (lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &edit);
  lua_insert(L, 1);
  lua_call(L, 1, 2);
  return 2;
}

static unsigned char key_complete (EditLine *el, int c) {
  const LineInfo *line = edit.el_line(el);
  lua_State *L = edit.L;
  unsigned char rc = CC_ERROR;
  (void)c;
  if (!L || !lua_checkstack(L, 6)) return rc;
  int top = lua_gettop(L);
  char text[1024];
  size_t n = (size_t)(line->cursor - line->buffer);
  if (n >= sizeof text) return rc;
  memcpy(text, line->buffer, n);
  text[n] = 0;
  lua_pushcfunction(L, complete);
  lua_pushlightuserdata(L, text);
  if (lua_pcall(L, 1, 2, 0) == LUA_OK) {
    const char *insert = lua_tostring(L, -2), *list = lua_tostring(L, -1);
    if (insert && *insert) {
      edit.el_insertstr(el, insert);
      rc = CC_REFRESH;
    } else if (list) {
      printf("\n%s\n", list);
      fflush(stdout);
      rc = CC_REDISPLAY;
    }
  }
  lua_settop(L, top);
  return rc;
}

/* ISO C has no cast from object to function pointers; POSIX promises that this works. */
static int load (void *lib, const char *name, void *fn, size_t size) {
  void *p = dlsym(lib, name);
  memcpy(fn, &p, size);
  return p != NULL;
}

#define LOAD(name, field) load(lib, name, &edit.field, sizeof edit.field)

static int open_editor (void) {
  const char *term = getenv("TERM");
  HistEvent ev;
  if (!isatty(0) || !isatty(1) || !term || strcmp(term, "dumb") == 0) return 0;
  void *lib = dlopen("libedit.so.2", RTLD_NOW | RTLD_LOCAL);
  if (!lib) return 0;
  if (!(LOAD("el_init", el_init) && LOAD("el_set", el_set) && LOAD("el_wset", el_wset) &&
        LOAD("el_gets", el_gets) && LOAD("el_line", el_line) &&
        LOAD("el_insertstr", el_insertstr) && LOAD("el_end", el_end) &&
        LOAD("history_init", history_init) && LOAD("history", history_fn) &&
        LOAD("history_end", history_end))) {
    dlclose(lib);
    return 0;
  }
  edit.el = edit.el_init("perilune", stdin, stdout, stderr);
  edit.history = edit.el ? edit.history_init() : NULL;
  if (!edit.history) return 0;
  edit.history_fn(edit.history, &ev, H_SETSIZE, 2000);
  edit.history_fn(edit.history, &ev, H_SETUNIQUE, 1);
  edit.el_set(edit.el, EL_PROMPT, prompt_text);
  edit.el_set(edit.el, EL_EDITOR, "emacs");
  edit.el_set(edit.el, EL_SIGNAL, 0);
  edit.el_set(edit.el, EL_SETTY, "-d", "-isig", (char *)NULL);
  edit.el_set(edit.el, EL_HIST, edit.history_fn, edit.history);
  edit.el_wset(edit.el, EL_ADDFN, L"peri-interrupt", L"drop the line", key_interrupt);
  edit.el_wset(edit.el, EL_ADDFN, L"peri-complete", L"complete a name", key_complete);
  edit.el_set(edit.el, EL_BIND, "^C", "peri-interrupt", (char *)NULL);
  edit.el_set(edit.el, EL_BIND, "^D", "em-delete-or-list", (char *)NULL); /* or ends input */
  edit.el_set(edit.el, EL_BIND, "\t", "peri-complete", (char *)NULL);
  edit.el_set(edit.el, EL_BIND, "^R", "em-inc-search-prev", (char *)NULL);
  return 1;
}

/* ---- the module ---- */

/* Wait until the terminal has a line. False after Ctrl-C, which counts wherever it came since the last
** one was dealt with: a read that begins after it would not notice. */
static bool wait_for_line (void) {
  sigset_t interrupt, before;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  pthread_sigmask(SIG_BLOCK, &interrupt, &before);
  int rc = -1;
  while (rc < 0 && !peri__interrupt_pending()) {
    fd_set input;
    FD_ZERO(&input);
    FD_SET(0, &input);
    rc = pselect(1, &input, NULL, NULL, NULL, &before);
    if (rc < 0 && errno != EINTR) break; /* the read will say why */
  }
  bool ready = !peri__interrupt_pending();
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return ready;
}

static int interrupted (lua_State *L) {
  peri__interrupt_done();
  fputc('\n', stdout);
  lua_pushboolean(L, 0);
  return 1;
}

/* read(prompt) -> line without newline; nil at the end of input; false after Ctrl-C. */
static int l_read (lua_State *L) {
  const char *prompt = luaL_optstring(L, 1, "");
  if (edit.el) {
    int n = 0;
    edit.prompt = prompt;
    edit.interrupted = 0;
    edit.L = L;
    const char *line = edit.el_gets(edit.el, &n);
    edit.L = NULL;
    /* A signal, not the key: from elsewhere, or before keys were read. It drops what stood there then. */
    bool signalled = peri__interrupt_pending();
    if (signalled) peri__interrupt_done();
    if (line && n > 0)
      lua_pushlstring(L, line, (size_t)n - (line[n - 1] == '\n'));
    else if (edit.interrupted || signalled)
      lua_pushboolean(L, 0);
    else {
      lua_pushnil(L);
      fputc('\n', stdout);
    }
    return 1;
  }
  luaL_Buffer b;
  char piece[512];
  bool tty = isatty(0), any = false;
  if (tty) {
    fputs(prompt, stdout);
    fflush(stdout);
    if (!wait_for_line()) return interrupted(L);
  }
  luaL_buffinit(L, &b);
  while (fgets(piece, sizeof piece, stdin)) {
    size_t n = strlen(piece);
    any = true;
    if (n && piece[n - 1] == '\n') {
      luaL_addlstring(&b, piece, n - 1);
      break;
    }
    luaL_addlstring(&b, piece, n);
  }
  luaL_pushresult(&b);
  if (ferror(stdin) && errno == EINTR) {
    clearerr(stdin);
    return interrupted(L);
  }
  if (!any) lua_pushnil(L);
  return 1;
}

static int l_remember (lua_State *L) {
  HistEvent ev;
  const char *line = luaL_checkstring(L, 1);
  if (edit.history) edit.history_fn(edit.history, &ev, H_ENTER, line);
  return 0;
}

static int l_load (lua_State *L) {
  HistEvent ev;
  const char *path = luaL_checkstring(L, 1);
  if (edit.history) edit.history_fn(edit.history, &ev, H_LOAD, path);
  return 0;
}

static int l_save (lua_State *L) {
  HistEvent ev;
  const char *path = luaL_checkstring(L, 1);
  if (edit.history) edit.history_fn(edit.history, &ev, H_SAVE, path);
  return 0;
}

static int call_completer (lua_State *L) {
  const char *text = (const char *)lua_touserdata(L, 1);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_pushstring(L, text);
  lua_call(L, 1, 2);
  return 2;
}

/* completer(fn): fn(text before the cursor) -> what to insert or nil, list to show or nil. */
static int l_completer (lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  lua_pushcclosure(L, call_completer, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &edit);
  return 0;
}

/* call(fn, handler, ...): xpcall where an interruption ends: whatever it became on its way up, the
** message is "interrupted" or ends with it. */
static int l_call (lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_pushvalue(L, 2);
  lua_insert(L, 1); /* handler, fn, handler, ... */
  lua_remove(L, 3);
  int rc = lua_pcall(L, lua_gettop(L) - 2, LUA_MULTRET, 1);
  bool interrupted = peri__interrupt_pending();
  peri__interrupt_done();
  lua_pushboolean(L, rc == LUA_OK);
  lua_replace(L, 1);
  if (rc != LUA_OK && interrupted) {
    const char *message = lua_tostring(L, 2),
               *end = message ? strstr(message, "interrupted") : NULL;
    if (end)
      lua_pushlstring(L, message, (size_t)(end - message) + strlen("interrupted"));
    else
      lua_pushliteral(L, "interrupted");
    lua_replace(L, 2);
  }
  return lua_gettop(L);
}

/* An error value as text. */
static int l_error_text (lua_State *L) {
  luaL_checkany(L, 1);
  peri__error_text(L, 1);
  return 1;
}

/* Whether the standard input, output and error are terminals. */
static int l_interactive (lua_State *L) {
  for (int fd = 0; fd <= 2; fd++) lua_pushboolean(L, isatty(fd));
  return 3;
}

/* Make a folder and those above it; what is there already is fine. */
static int l_make_folder (lua_State *L) {
  char path[1024];
  size_t n = strlen(luaL_checkstring(L, 1));
  if (n >= sizeof path) return 0;
  memcpy(path, lua_tostring(L, 1), n + 1);
  for (char *p = path + 1; *p; p++)
    if (*p == '/') {
      *p = 0;
      mkdir(path, 0700);
      *p = '/';
    }
  mkdir(path, 0700);
  return 0;
}

static int l_close (lua_State *L) {
  (void)L;
  if (edit.el) edit.el_end(edit.el);
  if (edit.history) edit.history_end(edit.history);
  edit.el = NULL;
  edit.history = NULL;
  return 0;
}

int peri__open_line (lua_State *L) {
  static const luaL_Reg functions[] = { { "read", l_read },
                                        { "remember", l_remember },
                                        { "load", l_load },
                                        { "save", l_save },
                                        { "completer", l_completer },
                                        { "call", l_call },
                                        { "error_text", l_error_text },
                                        { "interactive", l_interactive },
                                        { "make_folder", l_make_folder },
                                        { "close", l_close },
                                        { NULL, NULL } };
  if (!edit.el) open_editor();
  luaL_newlib(L, functions);
  peri__open_keys(L);
  return 1;
}
