/*
** lock.c - a file that one holder has at a time, for folders with one writer. The lock is flock's: the
** kernel drops it when the holder's process ends, however it ends, so none is ever stale. The file's
** text is only for people and messages: the process id of the holder.
*/
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* flock */
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "io/files.h"

struct peri_lock {
  peri_ctx *ctx;
  int fd;
};

/* The number in the file; 0 when none comes within a tenth of a second: the holder writes it right after
** it has taken the lock. */
static long long holder (int fd) {
  const struct timespec wait = { 0, 2000000 };
  for (int i = 0; i < 50; i++) {
    char text[24];
    long long pid;
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    if (n > 0) {
      text[n] = '\0';
      if (text[n - 1] == '\n' && sscanf(text, "%lld", &pid) == 1) return pid;
    }
    nanosleep(&wait, NULL);
  }
  return 0;
}

static peri_status refuse (peri_ctx *ctx, int fd, const char *path) {
  long long pid = holder(fd);
  if (pid == (long long)getpid())
    return peri__fail(ctx, PERI_EIO, "%s: this process (%lld) has locked it before", path, pid);
  if (pid > 0) return peri__fail(ctx, PERI_EIO, "%s: process %lld has locked it", path, pid);
  return peri__fail(ctx, PERI_EIO, "%s: another process has locked it", path);
}

/* A file system without locks gives none to anybody: that is said, and is no error. */
static peri_status take (peri_ctx *ctx, int fd, const char *path) {
  char text[24];
  struct stat st;
  while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno == EWOULDBLOCK) return refuse(ctx, fd, path);
    peri__io_fail(ctx, path, "lock");
    peri_log(ctx, PERI_LOG_WARN, "%s", ctx->message);
    break;
  }
  if (fstat(fd, &st) != 0) return peri__io_fail(ctx, path, "look at");
  if (!S_ISREG(st.st_mode)) return peri__fail(ctx, PERI_EIO, "%s: is not a regular file", path);
  int n = snprintf(text, sizeof text, "%lld\n", (long long)getpid());
  if (ftruncate(fd, 0) != 0) return peri__io_fail(ctx, path, "empty");
  return peri__write_all(ctx, fd, path, text, (size_t)n);
}

peri_status peri_lock_take (peri_ctx *ctx, const char *path, peri_lock **out) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, out);
  *out = NULL;
  peri_lock *l = peri__malloc(ctx, sizeof *l);
  if (l == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory", path);
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0666);
  *l = (peri_lock){ .ctx = ctx, .fd = fd };
  peri_status s = fd < 0 ? peri__io_fail(ctx, path, "open") : take(ctx, fd, path);
  if (s != PERI_OK)
    peri_lock_drop(l);
  else
    *out = l;
  return s;
}

void peri_lock_drop (peri_lock *l) {
  if (l == NULL) return;
  if (l->fd >= 0) close(l->fd);
  peri__free(l->ctx, l, sizeof *l);
}
