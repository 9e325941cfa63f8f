/* child.c - see child.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create, seals, pipe2, closefrom */
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "env/child.h"

extern char **environ;

/* ---- memory in common ---- */

int peri__shared_memory (peri_ctx *ctx) {
  int fd = memfd_create("perilune", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) peri__fail(ctx, PERI_EIO, "no memory in common with a process: %s", strerror(errno));
  return fd;
}

peri_status peri__shared_memory_map (peri_ctx *ctx, int fd, size_t bytes, void **out) {
  void *p = MAP_FAILED;
  if (ftruncate(fd, (off_t)bytes) == 0 &&
      fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
    p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED)
    return peri__fail(ctx, PERI_EIO, "%zu bytes in common with a process: %s", bytes,
                      strerror(errno));
  *out = p;
  return PERI_OK;
}

/* ---- starting ---- */

static void close_fd (int *fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

/* A number that lies above those the child expects, so that moving one there never hits another. */
static int above (int fd) {
  int up = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 16);
  if (fd >= 0) close(fd);
  return up;
}

typedef struct ends {
  int socket, output; /* the child's ends */
} ends;

static bool make_ends (peri__child *c, ends *e) {
  int pair[2], out[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0) return false;
  c->socket = above(pair[0]);
  e->socket = above(pair[1]);
  if (pipe2(out, O_CLOEXEC) != 0) return false;
  c->output = above(out[0]);
  e->output = above(out[1]);
  if (c->socket < 0 || e->socket < 0 || c->output < 0 || e->output < 0) return false;
  /* the child's end of the socket waits, ours never does */
  return fcntl(e->socket, F_SETFL, 0) == 0 && fcntl(c->output, F_SETFL, O_NONBLOCK) == 0;
}

static int spawn (peri__child *c, const ends *e, const char *const *argv) {
  posix_spawn_file_actions_t files;
  posix_spawnattr_t how;
  sigset_t all, none;
  pid_t pid = 0;
  sigfillset(&all);
  sigemptyset(&none);
  int rc = posix_spawn_file_actions_init(&files);
  if (rc != 0) return rc;
  rc = posix_spawnattr_init(&how);
  if (rc != 0) {
    posix_spawn_file_actions_destroy(&files);
    return rc;
  }
  posix_spawnattr_setsigdefault(&how, &all);
  posix_spawnattr_setsigmask(&how, &none);
  posix_spawnattr_setpgroup(&how, 0); /* a Ctrl-C is the host's alone */
  posix_spawnattr_setflags(&how,
                           POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
  rc = posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  if (rc == 0) rc = posix_spawn_file_actions_adddup2(&files, e->output, 1);
  if (rc == 0) rc = posix_spawn_file_actions_adddup2(&files, e->output, 2);
  if (rc == 0) rc = posix_spawn_file_actions_adddup2(&files, e->socket, PERI__CHILD_SOCKET);
  if (rc == 0) rc = posix_spawn_file_actions_adddup2(&files, c->memory, PERI__CHILD_MEMORY);
#if defined(__GLIBC__) && (__GLIBC__ > 2 || (__GLIBC__ == 2 && __GLIBC_MINOR__ >= 34))
  if (rc == 0) rc = posix_spawn_file_actions_addclosefrom_np(&files, PERI__CHILD_MEMORY + 1);
#endif
  if (rc == 0)
    rc = posix_spawnp(&pid, argv[0], &files, &how, (char *const *)(uintptr_t)argv, environ);
  posix_spawnattr_destroy(&how);
  posix_spawn_file_actions_destroy(&files);
  if (rc == 0) c->pid = pid;
  return rc;
}

peri_status peri__child_start (peri_ctx *ctx, const char *const *argv, int memory, peri__child *c) {
  ends e = { -1, -1 };
  *c = (peri__child){ .ctx = ctx, .socket = -1, .output = -1, .memory = -1 };
  c->memory = fcntl(memory, F_DUPFD_CLOEXEC, 16);
  int rc = c->memory >= 0 && make_ends(c, &e) ? spawn(c, &e, argv) : errno;
  close_fd(&e.socket);
  close_fd(&e.output);
  if (rc == 0) return PERI_OK;
  peri__child_close(c);
  return peri__fail(ctx, PERI_EIO, "%s: cannot be started: %s", argv[0], strerror(rc));
}

/* ---- talking ---- */

/* Keep the end of what it has printed. */
static void listen_to (peri__child *c) {
  char piece[4096];
  for (ssize_t n; (n = read(c->output, piece, sizeof piece)) > 0;) {
    const size_t room = sizeof c->said - 1;
    size_t take = (size_t)n < room ? (size_t)n : room, keep = c->nsaid;
    if (keep + take > room) keep = room - take;
    memmove(c->said, c->said + c->nsaid - keep, keep);
    memcpy(c->said + keep, piece + (size_t)n - take, take);
    c->nsaid = keep + take;
    c->said[c->nsaid] = 0;
  }
}

/* The last line that says something. */
static const char *last_line (peri__child *c) {
  listen_to(c);
  while (c->nsaid > 0 && (unsigned char)c->said[c->nsaid - 1] <= ' ') c->said[--c->nsaid] = 0;
  const char *line = strrchr(c->said, '\n');
  return line ? line + 1 : c->said;
}

static void pause_ms (int ms) {
  struct timespec t = { 0, ms * 1000000L };
  nanosleep(&t, NULL);
}

/* Whether it has ended, waiting for it so long. A host that waits for all children may have its status. */
static bool ended (peri__child *c, int ms, int *status) {
  for (;; ms -= 2) {
    pid_t pid = waitpid(c->pid, status, WNOHANG);
    if (pid == c->pid || (pid < 0 && errno == ECHILD)) {
      if (pid < 0) *status = -1;
      return true;
    }
    if (ms <= 0) return false;
    pause_ms(2);
  }
}

/* It does not answer any more: say how it has ended. */
static bool gone (peri__child *c) {
  int status = -1;
  char how[64] = "has closed its socket";
  if (c->pid && ended(c, 1000, &status)) {
    c->pid = 0;
    if (status == -1)
      snprintf(how, sizeof how, "has ended");
    else if (WIFSIGNALED(status))
      snprintf(how, sizeof how, "was killed by signal %d", WTERMSIG(status));
    else
      snprintf(how, sizeof how, "has ended with status %d", WEXITSTATUS(status));
  }
  const char *said = last_line(c);
  snprintf(c->why, sizeof c->why, "its process %s%s%.150s", how, *said ? "; it said: " : "", said);
  close_fd(&c->socket);
  return false;
}

/* Until the socket is ready for what is asked. Interrupts are looked for every 20 ms. */
static bool ready (peri__child *c, short events, double deadline) {
  for (double begin = peri__now();;) {
    struct pollfd p[2] = { { .fd = c->socket, .events = events },
                           { .fd = c->output, .events = POLLIN } };
    int n = poll(p, 2, 20);
    if (n > 0 && p[1].revents) listen_to(c);
    if (n > 0 && (p[1].revents & POLLHUP) && !p[0].revents)
      pause_ms(1); /* it closed what it prints to */
    if (n > 0 && p[0].revents) return true;
    if (peri__stopped(c->ctx)) {
      c->interrupted = true;
      snprintf(c->why, sizeof c->why, "interrupted");
      return false;
    }
    if (peri__now() >= deadline) {
      const char *said = last_line(c);
      snprintf(c->why, sizeof c->why, "its process gave no answer within %.3g s%s%.150s",
               peri__now() - begin, *said ? "; it said: " : "", said);
      return false;
    }
  }
}

static bool is_open (peri__child *c) {
  if (c->socket < 0 && !*c->why) snprintf(c->why, sizeof c->why, "its process was ended");
  return c->socket >= 0;
}

bool peri__child_send (peri__child *c, const void *data, size_t n, double deadline) {
  for (const char *p = data; n > 0;) {
    if (!is_open(c)) return false;
    ssize_t k = send(c->socket, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (k > 0)
      p += k, n -= (size_t)k;
    else if (k < 0 && errno != EAGAIN && errno != EINTR)
      return gone(c);
    else if (!ready(c, POLLOUT, deadline))
      return false;
  }
  return true;
}

bool peri__child_receive (peri__child *c, void *data, size_t n, double deadline) {
  for (char *p = data; n > 0;) {
    if (!is_open(c)) return false;
    ssize_t k = recv(c->socket, p, n, MSG_DONTWAIT);
    if (k > 0)
      p += k, n -= (size_t)k;
    else if (k == 0 || (errno != EAGAIN && errno != EINTR))
      return gone(c);
    else if (!ready(c, POLLIN, deadline))
      return false;
  }
  return true;
}

/* ---- the end ---- */

/* Behind kill it ends soon, unless the system holds it: then nobody waits for it. */
void peri__child_close (peri__child *c) {
  int status;
  close_fd(&c->socket);
  if (c->pid && !ended(c, 100, &status)) {
    kill(-c->pid, SIGKILL); /* with what it has started */
    ended(c, 2000, &status);
  }
  c->pid = 0;
  close_fd(&c->output);
  close_fd(&c->memory);
}
