/*
** terminal.h - programs at a terminal: a pseudo terminal, keys in, screen out. Every key waits until the
** program reads keys (what comes earlier is the terminal's), so nothing depends on time; a wait that comes
** to nothing ends after a minute and shows the screen. One copy in each program.
*/
#ifndef terminal_h
#define terminal_h

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "scratch.h"

enum { SCREEN = 1 << 18, PATIENCE = 60 /* seconds */ };

typedef struct terminal {
  int fd;
  pid_t pid;
  char *text; /* all that came, ended by 0 */
  size_t n, seen;
} terminal;

/* The program of this build: two folders above the test's own. */
static inline void program_path (char *out, size_t size) {
  ssize_t n = readlink("/proc/self/exe", out, size - 1);
  assert_true(n > 0);
  out[n] = 0;
  for (int i = 0; i < 3; i++) *strrchr(out, '/') = 0;
  assert_true(strlen(out) + 20 < size);
  strcat(out, "/perilune-testing");
}

/* perilune with these words, ended by NULL. env: names and values, ended by NULL; a value NULL takes the
** name away. */
static inline terminal start (int columns, const char *const *words, const char *const *env) {
  terminal t = { .fd = posix_openpt(O_RDWR | O_NOCTTY), .text = test_calloc(1, SCREEN) };
  struct winsize size = { .ws_row = 24, .ws_col = (unsigned short)columns };
  char program[4096], slave[256];
  program_path(program, sizeof program);
  bool there = t.fd >= 0 && grantpt(t.fd) == 0 && unlockpt(t.fd) == 0;
  const char *name = there ? ptsname(t.fd) : NULL;
  if (!name || access(name, R_OK | W_OK) != 0) { /* a chroot without /dev/pts */
    if (t.fd >= 0) close(t.fd);
    test_free(t.text);
    print_message("skipped: no pseudo terminals here\n");
    skip();
  }
  snprintf(slave, sizeof slave, "%s", name);
  assert_int_equal(ioctl(t.fd, TIOCSWINSZ, &size), 0);
  t.pid = fork();
  assert_true(t.pid >= 0);
  if (t.pid == 0) {
    setsid();
    int fd = open(slave, O_RDWR); /* and so it is this session's terminal */
    for (int i = 0; i < 3; i++) dup2(fd, i);
    close(fd);
    close(t.fd);
    setenv("HOME", Dir, 1);
    setenv("TERM", "xterm", 1);
    setenv("LC_ALL", "C.UTF-8", 1);
    setenv("NO_COLOR", "1", 1);
    unsetenv("XDG_STATE_HOME");
    unsetenv("LUA_INIT");
    for (; *env; env += 2)
      if (env[1])
        setenv(env[0], env[1], 1);
      else
        unsetenv(env[0]);
    char *argv[16] = { program };
    for (int i = 0; i < 14 && words[i]; i++) argv[i + 1] = (char *)(uintptr_t)words[i];
    execv(program, argv);
    _exit(127);
  }
  return t;
}

static const char *const none[] = { NULL };

static inline double now (void) {
  struct timespec s;
  clock_gettime(CLOCK_MONOTONIC, &s);
  return (double)s.tv_sec + 1e-9 * (double)s.tv_nsec;
}

/* Read what is there, waiting for it so many milliseconds; false: the program has gone. */
static inline bool take (terminal *t, int patience) {
  struct pollfd p = { .fd = t->fd, .events = POLLIN };
  if (poll(&p, 1, patience) <= 0) return true;
  assert_true(t->n + 4096 < SCREEN);
  ssize_t n = read(t->fd, t->text + t->n, 4095);
  if (n <= 0) return n < 0 && errno == EINTR;
  for (ssize_t i = 0; i < n; i++)
    if (t->text[t->n + (size_t)i] == 0) t->text[t->n + (size_t)i] = ' ';
  t->n += (size_t)n;
  t->text[t->n] = 0;
  return true;
}

/* Wait until the text stands on the screen, behind all that was waited for. */
static inline void expect (terminal *t, const char *text) {
  const char *at;
  for (double end = now() + PATIENCE; !(at = strstr(t->text + t->seen, text));)
    if (!take(t, 1000) || now() > end)
      fail_msg("waited for \"%s\"; since then: \"%s\"", text, t->text + t->seen);
  t->seen = (size_t)(at - t->text) + strlen(text);
}

/* Whether the program reads keys one by one (editor) or the terminal gathers lines for it. */
static inline bool reads_keys (const terminal *t) {
  struct termios s;
  assert_int_equal(tcgetattr(t->fd, &s), 0);
  return (s.c_lflag & ICANON) == 0;
}

/* Type, once the prompt stands there and keys are the editor's. */
static inline void type (terminal *t, const char *keys) {
  for (double end = now() + PATIENCE; !reads_keys(t);)
    if (!take(t, 1) || now() > end) fail_msg("no keys are read: \"%s\"", t->text + t->seen);
  assert_int_equal(write(t->fd, keys, strlen(keys)), strlen(keys));
}

static inline void signal_key (terminal *t, const char *key) {
  assert_false(reads_keys(t));
  assert_int_equal(write(t->fd, key, 1), 1);
}

/* Type a line; wait for what it prints and for the next prompt. */
static inline void answers (terminal *t, const char *keys, const char *answer) {
  char want[600];
  type(t, keys);
  snprintf(want, sizeof want, "\r\n%s\r\n", answer);
  expect(t, want);
  expect(t, "> ");
}

/* The program ends by itself, with this status. */
static inline void ends (terminal *t, int want) {
  int status;
  while (take(t, 1000)) {}
  assert_int_equal(waitpid(t->pid, &status, 0), t->pid);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != want)
    fail_msg("status %x, not %d: \"%s\"", (unsigned)status, want, t->text);
  close(t->fd);
  test_free(t->text);
}

#endif
