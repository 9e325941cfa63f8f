/* run.c - see sandbox.h: the watch over the processes. Linux; elsewhere it says that there is none. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create, pipe2, wait4, closefrom */
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sandbox/sandbox.h"

enum { REPLY = 3 };         /* the descriptor that only the helper's own C code writes to */
static const int LOOK = 20; /* ms between two looks for an interrupt */

/* One process. */
typedef struct slot {
  peri__sandbox_job *job;   /* NULL: free */
  pid_t pid;                /* 0: it has ended and was waited for */
  int watch, output, reply; /* pidfd, or -1 where the kernel has none; pipes, -1 behind their end */
  double begin;
  bool killed;
} slot;

typedef struct run {
  peri_ctx *ctx;
  const char *program;
  slot *slots;
  struct pollfd *polls; /* three a slot */
  size_t workers;
} run;

static void close_fd (int *fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

/* A number above those that the program expects, so that moving one there never hits another. */
static int above (int fd) {
  int up = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 16);
  int why = errno;
  if (fd >= 0) close(fd);
  errno = why;
  return up;
}

/* ---- starting ---- */

/* The request as memory that is read like a file: no pipe to fill, no signal when nobody reads. */
static int request_fd (const peri__sandbox_job *job) {
  int fd = above(memfd_create("perilune-sandbox", MFD_CLOEXEC));
  const char *p = (const char *)job->request;
  for (size_t left = job->request_size; fd >= 0 && left > 0;) {
    ssize_t k = write(fd, p, left);
    if (k < 0 && errno == EINTR) continue;
    if (k <= 0) {
      close_fd(&fd);
      break;
    }
    p += k, left -= (size_t)k;
  }
  if (fd >= 0 && lseek(fd, 0, SEEK_SET) != 0) close_fd(&fd);
  return fd;
}

/* A pipe of which we read without waiting. */
static bool make_pipe (int *ours, int *its) {
  int p[2];
  if (pipe2(p, O_CLOEXEC) != 0) return false;
  *ours = above(p[0]);
  *its = above(p[1]);
  return *ours >= 0 && *its >= 0 && fcntl(*ours, F_SETFL, O_NONBLOCK) == 0;
}

static int actions (posix_spawn_file_actions_t *files, int in, int out, int reply) {
  int rc = posix_spawn_file_actions_adddup2(files, in, 0);
  if (rc == 0) rc = posix_spawn_file_actions_adddup2(files, out, 1);
  if (rc == 0) rc = posix_spawn_file_actions_addopen(files, 2, "/dev/null", O_WRONLY, 0);
  if (rc == 0) rc = posix_spawn_file_actions_adddup2(files, reply, REPLY);
#if defined(__GLIBC__) && (__GLIBC__ > 2 || (__GLIBC__ == 2 && __GLIBC_MINOR__ >= 34))
  if (rc == 0) rc = posix_spawn_file_actions_addclosefrom_np(files, REPLY + 1);
#endif
  return rc;
}

/* Without a copy of the host's memory, which may be large and have threads; an error of exec comes back. */
static int spawn (const char *program, int in, int out, int reply, pid_t *pid) {
  posix_spawn_file_actions_t files;
  posix_spawnattr_t how;
  sigset_t all, none;
  char name[] = "perilune-sandbox", *argv[] = { name, NULL }, *environment[] = { NULL };
  sigfillset(&all);
  sigemptyset(&none);
  int rc = posix_spawn_file_actions_init(&files);
  if (rc != 0) return rc;
  rc = posix_spawnattr_init(&how);
  if (rc == 0) {
    posix_spawnattr_setsigdefault(&how, &all);
    posix_spawnattr_setsigmask(&how, &none);
    posix_spawnattr_setpgroup(&how, 0); /* a Ctrl-C is the host's alone */
    posix_spawnattr_setflags(&how, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK |
                                       POSIX_SPAWN_SETPGROUP);
    rc = actions(&files, in, out, reply);
    if (rc == 0) rc = posix_spawn(pid, program, &files, &how, argv, environment);
    posix_spawnattr_destroy(&how);
  }
  posix_spawn_file_actions_destroy(&files);
  return rc;
}

static int watch_fd (pid_t pid) {
#ifdef SYS_pidfd_open
  return (int)syscall(SYS_pidfd_open, pid, 0);
#else
  (void)pid;
  return -1;
#endif
}

/* 0, or an errno. */
static int start (const run *r, slot *s, peri__sandbox_job *job) {
  int out = -1, reply = -1, rc = 0;
  *s = (slot){ .watch = -1, .output = -1, .reply = -1, .begin = peri__now() };
  int in = request_fd(job);
  if (in < 0 || !make_pipe(&s->output, &out) || !make_pipe(&s->reply, &reply)) rc = errno;
  if (rc == 0) rc = spawn(r->program, in, out, reply, &s->pid);
  close_fd(&in);
  close_fd(&out);
  close_fd(&reply);
  if (rc != 0) {
    close_fd(&s->output);
    close_fd(&s->reply);
    return rc;
  }
  s->watch = watch_fd(s->pid);
  s->job = job;
  return 0;
}

/* Is it a shortage that ends when another process has ended? */
static bool passes (int rc) { return rc == EMFILE || rc == ENFILE || rc == EAGAIN || rc == ENOMEM; }

/* ---- stopping ---- */

static void stop (slot *s, peri__sandbox_end end) {
  if (s->killed) return;
  s->killed = true;
  s->job->end = end;
  if (s->pid == 0) return; /* waited for: its number may be another's */
#ifdef SYS_pidfd_send_signal
  if (s->watch >= 0 &&
      (syscall(SYS_pidfd_send_signal, s->watch, SIGKILL, NULL, 0) == 0 || errno == ESRCH))
    return;
#endif
  kill(s->pid, SIGKILL);
}

/* Its status, if it has ended. */
static bool reap (slot *s) {
  struct rusage use = { 0 };
  int status = 0;
  pid_t pid;
  do pid = wait4(s->pid, &status, WNOHANG, &use);
  while (pid < 0 && errno == EINTR);
  if (pid == 0) return false;
  peri__sandbox_job *job = s->job;
  peri__sandbox_end end = PERI__SANDBOX_UNKNOWN;
  if (pid == s->pid) {
    bool signalled = WIFSIGNALED(status);
    end = signalled ? PERI__SANDBOX_SIGNALLED : PERI__SANDBOX_EXITED;
    job->code = signalled ? WTERMSIG(status) : WEXITSTATUS(status);
    job->cpu = (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
               1e-6 * (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
    job->memory = (size_t)use.ru_maxrss * 1024;
  }
  s->pid = 0;
  if (!s->killed) job->end = end;
  job->seconds = peri__now() - s->begin;
  return true;
}

static void release (slot *s) {
  close_fd(&s->output);
  close_fd(&s->reply);
  close_fd(&s->watch);
  s->job = NULL;
}

/* Every process ends and is waited for; one that the system holds for longer than that stays a zombie. */
static void stop_all (run *r) {
  for (size_t i = 0; i < r->workers; i++)
    if (r->slots[i].job) stop(&r->slots[i], PERI__SANDBOX_UNKNOWN);
  for (size_t i = 0; i < r->workers; i++) {
    slot *s = &r->slots[i];
    if (!s->job) continue;
    for (int ms = 0; ms < 2000 && !reap(s); ms++) nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
    release(s);
  }
}

/* ---- reading ---- */

/* What the pipe has, up to most bytes: 1 there may be more later, 0 it is at its end, -1 it is too much, -2 there is
** no memory. */
static int drain (peri_ctx *ctx, int fd, peri__sandbox_bytes *to, size_t most) {
  for (;;) {
    char piece[8192];
    ssize_t k = read(fd, piece, sizeof piece);
    if (k < 0) return errno == EAGAIN || errno == EINTR ? 1 : 0;
    if (k == 0) return 0;
    size_t take = (size_t)k, free = most - to->n;
    if (take > free) take = free;
    if (to->n + take > to->room) {
      size_t room = to->room ? 2 * to->room : sizeof piece;
      while (room < to->n + take) room *= 2;
      char *p = (char *)peri__realloc(ctx, to->p, to->room, room);
      if (!p) return -2;
      to->p = p, to->room = room;
    }
    memcpy(to->p + to->n, piece, take);
    to->n += take;
    if (take < (size_t)k) return -1;
  }
}

static peri_status listen_to (run *r, slot *s, int *fd, peri__sandbox_bytes *to, size_t most) {
  if (*fd < 0) return PERI_OK;
  int rc = drain(r->ctx, *fd, to, most);
  if (rc == 1) return PERI_OK;
  close_fd(fd);
  if (rc == -2) return peri__fail(r->ctx, PERI_ENOMEM, "no memory for what a process has written");
  if (rc == -1) stop(s, PERI__SANDBOX_FLOODED);
  return PERI_OK;
}

/* ---- the watch ---- */

/* Milliseconds to wait for the next thing to happen, and whom to listen to. */
static int prepare (run *r, double now) {
  double soonest = LOOK * 1e-3;
  for (size_t i = 0; i < r->workers; i++) {
    const slot *s = &r->slots[i];
    struct pollfd *p = &r->polls[3 * i];
    bool there = s->job != NULL, silent = s->output < 0 && s->reply < 0;
    p[0] = (struct pollfd){ .fd = there ? s->output : -1, .events = POLLIN };
    p[1] = (struct pollfd){ .fd = there ? s->reply : -1, .events = POLLIN };
    p[2] = (struct pollfd){ .fd = there ? s->watch : -1, .events = POLLIN };
    if (!there) continue;
    double left = s->begin + s->job->wall - now;
    if (!s->killed && left < soonest) soonest = left;
    if (s->watch < 0 && (silent || s->killed) && soonest > 1e-3) soonest = 1e-3;
  }
  return soonest <= 0 ? 0 : (int)(soonest * 1e3) + 1;
}

/* Whatever of one process there is to see. */
static peri_status look_at (run *r, slot *s, const struct pollfd *p, double now) {
  peri__sandbox_job *job = s->job;
  bool over = (p[2].revents || s->watch < 0) && reap(s);
  peri_status st = listen_to(r, s, &s->output, &job->output, job->most_output);
  if (st == PERI_OK) st = listen_to(r, s, &s->reply, &job->reply, job->most_reply);
  if (over)
    release(s);
  else if (now - s->begin >= job->wall)
    stop(s, PERI__SANDBOX_TIMED_OUT);
  return st;
}

static peri_status watch_all (run *r, peri__sandbox_job *jobs, size_t n) {
  size_t next = 0, alive = 0;
  for (;;) {
    for (size_t i = 0; i < r->workers && next < n; i++) {
      if (r->slots[i].job) continue;
      int rc = start(r, &r->slots[i], &jobs[next]);
      if (rc != 0 && alive > 0 && passes(rc)) break;
      if (rc != 0)
        return peri__fail(r->ctx, PERI_EIO, "%s: cannot be started: %s", r->program, strerror(rc));
      next++, alive++;
    }
    poll(r->polls, 3 * r->workers, prepare(r, peri__now()));
    if (peri__stopped(r->ctx)) return peri__fail(r->ctx, PERI_EINTR, "interrupted");
    alive = 0;
    double now = peri__now();
    for (size_t i = 0; i < r->workers; i++) {
      if (!r->slots[i].job) continue;
      peri_status st = look_at(r, &r->slots[i], &r->polls[3 * i], now);
      if (st != PERI_OK) return st;
      if (r->slots[i].job) alive++;
    }
    if (alive == 0 && next == n) return PERI_OK;
  }
}

peri_status peri__sandbox_run (peri_ctx *ctx, const char *program, peri__sandbox_job *jobs,
                               size_t n, size_t workers) {
  if (n == 0) return PERI_OK;
  struct rlimit files; /* poll takes no more descriptors than a process may have */
  if (workers > n) workers = n;
  if (getrlimit(RLIMIT_NOFILE, &files) == 0 && workers > files.rlim_cur / 3)
    workers = files.rlim_cur < 3 ? 1 : (size_t)files.rlim_cur / 3;
  size_t slots = workers * sizeof(slot), polls = 3 * workers * sizeof(struct pollfd);
  run r = { .ctx = ctx, .program = program, .workers = workers };
  r.slots = (slot *)peri__malloc(ctx, slots);
  r.polls = (struct pollfd *)peri__malloc(ctx, polls);
  peri_status st = PERI_OK;
  if (!r.slots || !r.polls)
    st = peri__fail(ctx, PERI_ENOMEM, "no memory for %zu processes at a time", workers);
  if (st == PERI_OK) {
    memset(r.slots, 0, slots);
    st = watch_all(&r, jobs, n);
    stop_all(&r);
  }
  peri__free(ctx, r.slots, slots);
  peri__free(ctx, r.polls, polls);
  return st;
}

void peri__sandbox_free (peri_ctx *ctx, peri__sandbox_job *jobs, size_t n) {
  for (size_t i = 0; i < n; i++) {
    peri__free(ctx, jobs[i].output.p, jobs[i].output.room);
    peri__free(ctx, jobs[i].reply.p, jobs[i].reply.room);
    jobs[i].output = jobs[i].reply = (peri__sandbox_bytes){ 0 };
  }
}
