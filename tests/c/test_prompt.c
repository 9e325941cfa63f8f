/*
** test_prompt.c - the prompt at a terminal: what perilune repl makes of keys.
*/
#define _GNU_SOURCE /* posix_openpt, setenv */

#include <dlfcn.h>
#include <signal.h>
#include <sys/stat.h>

#include "terminal.h"

static void leave (terminal *t) {
  type(t, "\4");
  ends(t, 0);
}

static terminal begin (int columns, const char *const *env) {
  static const char *const repl[] = { "repl", NULL };
  terminal t = start(columns, repl, env);
  expect(&t, "Ctrl-D leaves.\r\n> ");
  return t;
}

#define LEFT "\033[D"
#define RIGHT "\033[C"
#define UP "\033[A"
#define DOWN "\033[B"

static void need_editor (void) {
  void *lib = dlopen("libedit.so.2", RTLD_NOW | RTLD_LOCAL);
  if (!lib) {
    print_message("skipped: no libedit.so.2\n");
    skip();
  }
  dlclose(lib);
}

/* ---- the claims ---- */

static void keys_edit_the_line (void **state) {
  (void)state;
  need_editor();
  terminal t = begin(80, none);
  answers(&t, "6*7\r", "42");
  answers(&t, "13" LEFT "0\r", "103");
  answers(&t, "13" LEFT LEFT RIGHT "0\r", "103");
  answers(&t,
          "12x\177"
          "3\r",
          "123");                     /* backspace */
  answers(&t, "12x3\2\2\4\r", "123"); /* Ctrl-B, and Ctrl-D within a line */
  answers(&t,
          "23\001"
          "1\r",
          "123"); /* Ctrl-A */
  answers(&t,
          "123\001\005"
          "4\r",
          "1234"); /* Ctrl-E */
  answers(&t,
          "12xyz" LEFT LEFT LEFT "\013"
          "3\r",
          "123"); /* Ctrl-K */
  answers(&t,
          "never\025"
          "77\r",
          "77");   /* Ctrl-U */
  type(&t, "x\4"); /* at the end of a line there is nothing to delete: the bell */
  expect(&t, "\a");
  answers(&t,
          "\177"
          "8\r",
          "8");
  leave(&t);
}

static void wide_characters_are_characters (void **state) {
  static const char *const locales[][3] = { { "LC_ALL", "C.UTF-8", NULL },
                                            { "LC_ALL", "C", NULL } }; /* says nothing of them */
  (void)state;
  need_editor();
  for (int i = 0; i < 2; i++)
    for (int columns = 11; columns <= 80;
         columns += 69) { /* and across the end of a screen's line */
      terminal t = begin(columns, locales[i]);
      answers(&t, "#'\303\251\344\270\255\360\237\230\200'\r", "9");
      answers(&t, "#'\344\270\255\346\226\207\303\251'" LEFT LEFT "\177\r", "5");
      answers(&t, "#'\344\270\255" LEFT "\303\251" RIGHT "'\r", "5");
      leave(&t);
    }
}

static void lines_wider_than_the_screen_are_whole (void **state) {
  char keys[512], answer[512];
  (void)state;
  need_editor();
  terminal t = begin(20, none);
  int n = snprintf(keys, sizeof keys, "#'");
  for (; n < 300; n++) keys[n] = (char)('a' + n % 26);
  snprintf(keys + n, sizeof keys - (size_t)n,
           "'\001\006\006\006\004\004\r"); /* two letters fewer */
  snprintf(answer, sizeof answer, "%d", 300 - 2 - 2);
  answers(&t, keys, answer);
  answers(&t, UP "\r", answer); /* and come back */
  leave(&t);
}

static void earlier_lines_come_back (void **state) {
  char path[600];
  (void)state;
  need_editor();
  terminal t = begin(80, none);
  answers(&t, "n = (n or 500) + 1; n\r", "501");
  answers(&t, UP "\r", "502");
  answers(&t, "6*7\r", "42");
  answers(&t, UP UP "\r", "503");
  answers(&t, UP UP DOWN "\r", "504");
  type(&t, "\022"
           "6*"); /* Ctrl-R searches */
  expect(&t, "bck:");
  answers(&t, "\r", "42");
  answers(&t, "for i = 1, 1 do\rprint('in')\rend\r", "in"); /* each line of a statement */
  type(&t, UP UP);
  expect(&t, "print('in')");
  answers(&t, "\r", "in");
  leave(&t);
  snprintf(path, sizeof path, "%s/.local/state/perilune/history", Dir);
  struct stat s;
  assert_int_equal(stat(path, &s), 0);
  t = begin(80, none); /* in the next run as well */
  answers(&t, "\022n = (n\r", "501");
  leave(&t);
}

static void history_is_where_the_environment_says (void **state) {
  char state_home[600], path[700];
  struct stat s;
  (void)state;
  need_editor();
  snprintf(state_home, sizeof state_home, "%s/deep/state", Dir);
  snprintf(path, sizeof path, "%s/perilune/history", state_home);
  const char *const set[] = { "XDG_STATE_HOME", state_home, NULL };
  const char *const homeless[] = { "HOME", NULL, NULL };
  terminal t = begin(80, set);
  answers(&t, "6*7\r", "42");
  leave(&t);
  assert_int_equal(stat(path, &s), 0);
  assert_int_equal(s.st_mode & 077, 0); /* nobody else's */
  t = begin(80, homeless);
  answers(&t, "6*7\r", "42");
  answers(&t, UP "\r", "42");
  leave(&t);
}

static void tab_completes (void **state) {
  char keys[1200];
  (void)state;
  need_editor();
  terminal t = begin(80, none);
  answers(&t, "string.forma\t('%d', 77)\r", "77");
  answers(&t, "peri.nn.Lin\t ~= nil\r", "true");
  type(&t, "string.\t"); /* several: a list, and the line again */
  expect(&t, "gmatch");
  expect(&t, "> string.");
  answers(&t, "rep('ab', 2)\r", "abab");
  type(&t, "nonsense.fo\t");
  expect(&t, "\a");
  answers(&t,
          "\025"
          "5\r",
          "5");
  answers(&t, "#[[\tx]]\r", "3"); /* where no name begins it indents */
  memset(keys, 'x', 1100);        /* a line too long to look at */
  strcpy(keys + 1100, "\t");
  type(&t, keys);
  expect(&t, "\a");
  answers(&t,
          "\025"
          "7\r",
          "7");
  leave(&t);
}

static void a_completer_that_fails_only_rings (void **state) {
  (void)state;
  need_editor();
  terminal t = begin(80, none);
  answers(&t, "x = peri.ones { 1 }; peri.methods = error; 4\r", "4");
  type(&t, "x:su\t");
  expect(&t, "\a");
  answers(&t, "m():item()\r", "1.0");
  leave(&t);
}

static void ctrl_c_drops_the_line (void **state) {
  (void)state;
  need_editor();
  terminal t = begin(80, none);
  type(&t, "error 'never'\3");
  expect(&t, "^C\r\n> ");
  answers(&t, "6*7\r", "42");
  type(&t, "for i = 1, 2 do\r");
  expect(&t, ">> ");
  type(&t, "print('never')\3");
  expect(&t, "^C\r\n> ");
  answers(&t, "6*8\r", "48");
  assert_null(strstr(t.text, "never\r\n"));
  leave(&t);
}

static void ctrl_c_ends_what_runs_and_not_the_prompt (void **state) {
  (void)state;
  need_editor();
  terminal t = begin(80, none);
  for (int i = 0; i < 2; i++) {
    type(&t, "print('go' .. 'ing') while true do end\r");
    expect(&t, "going\r\n");
    signal_key(&t, "\3");
    expect(&t, "interrupted");
    expect(&t, "> ");
    answers(&t, "6*7\r", "42");
  }
  leave(&t);
}

/* What stands in the line stays or goes, as the signal comes before the read or during it. */
static void a_signal_leaves_the_prompt (void **state) {
  (void)state;
  need_editor();
  terminal t = begin(80, none);
  type(&t, "6*");
  expect(&t, "6*");
  assert_int_equal(kill(t.pid, SIGINT), 0);
  answers(&t,
          "\025"
          "6*8\r",
          "48");
  leave(&t);
}

static void ctrl_d_on_an_empty_line_leaves (void **state) {
  (void)state;
  need_editor();
  terminal t = begin(80, none);
  type(&t, "for i = 1, 2 do\r");
  expect(&t, ">> ");
  type(&t, "\4"); /* ends the statement, which is not whole */
  expect(&t, "near <eof>");
  expect(&t, "> ");
  answers(&t, "x = 5; x\r", "5");
  leave(&t);
}

static void what_is_pasted_is_lines (void **state) {
  (void)state;
  need_editor();
  terminal t = begin(80, none);
  type(&t,
       "for i = 1, 3 do\rprint(i * 1000)\rend\rlocal s = 0 for i = 1, 9 do s = s + i end return s\r"
       "'last' .. 1\r");
  expect(&t, "1000\r\n2000\r\n3000\r\n");
  expect(&t, "45\r\n");
  expect(&t, "last1\r\n");
  expect(&t, "> ");
  leave(&t);
}

static void prompts_are_the_scripts (void **state) {
  (void)state;
  need_editor();
  terminal t = begin(80, none);
  type(&t, "_PROMPT, _PROMPT2 = 'in: ', '\344\270\255: '\r");
  expect(&t, "\nin: ");
  type(&t, "for i = 1, 1 do\r");
  expect(&t, "\n\344\270\255: ");
  type(&t, "print('so') end\r");
  expect(&t, "\r\nso\r\nin: ");
  leave(&t);
}

/* The terminal's own lines: prompts, Ctrl-C and Ctrl-D do the same. */
static void plain_lines (const char *const *env) {
  terminal t = begin(80, env);
  assert_false(reads_keys(&t));
  assert_int_equal(write(t.fd, "6*7\n", 4), 4);
  expect(&t, "42\r\n> ");
  for (int i = 0; i < 2; i++) { /* at the prompt, and while something runs */
    assert_int_equal(write(t.fd, "x", 1), 1);
    signal_key(&t, "\3");
    expect(&t, "\r\n> ");
    assert_int_equal(write(t.fd, "print('go' .. 'ing') while true do end\n", 39), 39);
    expect(&t, "going\r\n");
    signal_key(&t, "\3");
    expect(&t, "interrupted");
    expect(&t, "> ");
  }
  char keys[2000]; /* more than one piece of a line */
  int n = snprintf(keys, sizeof keys, "#'%*s'\n", 1500, "");
  assert_int_equal(write(t.fd, keys, (size_t)n), n);
  expect(&t, "\r\n1500\r\n> ");
  signal_key(&t, "\4");
  ends(&t, 0);
}

static void a_terminal_that_cannot_move_its_cursor_has_plain_lines (void **state) {
  static const char *const dumb[] = { "TERM", "dumb", NULL }, *const unset[] = { "TERM", NULL,
                                                                                 NULL };
  (void)state;
  plain_lines(dumb);
  plain_lines(unset);
}

/* A library of that name with nothing in it. */
static void a_libedit_that_is_none_is_left_alone (void **state) {
  char link[700];
  (void)state;
  Dl_info info;
  assert_true(dladdr((void *)(uintptr_t)dlsym(RTLD_DEFAULT, "inflate"), &info) != 0);
  snprintf(link, sizeof link, "%s/libedit.so.2", Dir);
  assert_int_equal(symlink(info.dli_fname, link), 0);
  const char *const env[] = { "LD_LIBRARY_PATH", Dir, NULL };
  plain_lines(env);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(keys_edit_the_line),
    TEST(wide_characters_are_characters),
    TEST(lines_wider_than_the_screen_are_whole),
    TEST(earlier_lines_come_back),
    TEST(history_is_where_the_environment_says),
    TEST(tab_completes),
    TEST(a_completer_that_fails_only_rings),
    TEST(ctrl_c_drops_the_line),
    TEST(ctrl_c_ends_what_runs_and_not_the_prompt),
    TEST(a_signal_leaves_the_prompt),
    TEST(ctrl_d_on_an_empty_line_leaves),
    TEST(what_is_pasted_is_lines),
    TEST(prompts_are_the_scripts),
    TEST(a_terminal_that_cannot_move_its_cursor_has_plain_lines),
    TEST(a_libedit_that_is_none_is_left_alone),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
