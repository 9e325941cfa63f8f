/*
** file.c - reading regular files whole or in parts, and writing them so that a crash at any moment
** leaves either the old or the new file. It knows no formats.
*/
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* flock, mmap; with it come the POSIX 2008 calls */
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <zlib.h>

#include "io/files.h"

#define PIECE ((size_t)4 << 20) /* bytes between two looks at peri_interrupt */

peri_status peri__io_fail (peri_ctx *ctx, const char *path, const char *what) {
  char reason[128];
  int e = errno;
  if (strerror_r(e, reason, sizeof reason) != 0) snprintf(reason, sizeof reason, "error %d", e);
  return peri__fail(ctx, e == ENOMEM ? PERI_ENOMEM : PERI_EIO, "%s: cannot %s: %s", path, what,
                    reason);
}

char *peri__join (peri_ctx *ctx, const char *a, const char *b, size_t *size) {
  size_t n = strlen(a), m = strlen(b);
  bool slash = n > 0 && a[n - 1] != '/';
  char *s = peri__malloc(ctx, *size = n + slash + m + 1);
  if (s == NULL) {
    peri__fail(ctx, PERI_ENOMEM, "no memory for a path of %zu bytes", *size);
    return NULL;
  }
  memcpy(s, a, n);
  if (slash) s[n] = '/';
  memcpy(s + n + slash, b, m + 1);
  return s;
}

/* ---- reading ---- */

peri_status peri__open_regular (peri_ctx *ctx, const char *path, int *fd, uint64_t *size) {
  struct stat st;
  *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (*fd < 0) return peri__io_fail(ctx, path, "open");
  peri_status s = PERI_OK;
  if (fstat(*fd, &st) != 0)
    s = peri__io_fail(ctx, path, "read the size");
  else if (S_ISDIR(st.st_mode))
    s = peri__fail(ctx, PERI_EIO, "%s: is a folder, not a file", path);
  else if (!S_ISREG(st.st_mode))
    s = peri__fail(ctx, PERI_EIO, "%s: is not a regular file", path);
  if (s != PERI_OK) {
    close(*fd);
    *fd = -1;
    return s;
  }
  *size = (uint64_t)st.st_size;
  return PERI_OK;
}

peri_status peri__read_at (peri_ctx *ctx, int fd, const char *path, uint64_t offset, void *dst,
                           size_t n) {
  char *p = dst;
  while (n > 0) {
    if (peri__stopped(ctx)) return peri__fail(ctx, PERI_EINTR, "%s: interrupted", path);
    ssize_t got = pread(fd, p, n < PIECE ? n : PIECE, (off_t)offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return peri__io_fail(ctx, path, "read");
    if (got == 0)
      return peri__fail(ctx, PERI_EIO, "%s: the file ended at byte %llu while it was read", path,
                        (unsigned long long)offset);
    p += got;
    n -= (size_t)got;
    offset += (uint64_t)got;
  }
  return PERI_OK;
}

void peri__map_drop (void *map, void *data) {
  peri__map *m = map;
  (void)data;
  if (--m->refs > 0) return;
  munmap(m->base, m->size);
  peri__free(m->ctx, m, sizeof *m);
}

peri_status peri__map_file (peri_ctx *ctx, const char *path, int fd, uint64_t size,
                            peri__map **out) {
  *out = NULL;
  if (size > SIZE_MAX || size == 0) return PERI_OK;
  peri__map *m = peri__malloc(ctx, sizeof *m);
  if (m == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory for its mapping", path);
  void *base = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  if (base == MAP_FAILED) {
    peri__free(ctx, m, sizeof *m);
    return PERI_OK;
  }
  *m = (peri__map){ ctx, base, (size_t)size, 1 };
  *out = m;
  return PERI_OK;
}

peri_status peri_file_read (peri_ctx *ctx, const char *path, size_t max_bytes, void **data,
                            size_t *size) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, data);
  NEED(ctx, size);
  int fd;
  uint64_t bytes;
  *data = NULL;
  *size = 0;
  TRY(peri__open_regular(ctx, path, &fd, &bytes));
  peri_status s = PERI_OK;
  void *p = NULL;
  if (bytes > SIZE_MAX / 2 || (max_bytes != 0 && bytes > max_bytes))
    s = peri__fail(ctx, PERI_EFORMAT, "%s: has %llu bytes, the limit is %zu", path,
                   (unsigned long long)bytes, max_bytes);
  else if ((p = peri__malloc(ctx, (size_t)bytes)) == NULL)
    s = peri__fail(ctx, PERI_ENOMEM, "%s: no memory for its %llu bytes", path,
                   (unsigned long long)bytes);
  else
    s = peri__read_at(ctx, fd, path, 0, p, (size_t)bytes);
  close(fd);
  if (s != PERI_OK) {
    peri__free(ctx, p, (size_t)bytes);
    return s;
  }
  *data = p;
  *size = (size_t)bytes;
  return PERI_OK;
}

void peri_file_free (peri_ctx *ctx, void *data, size_t size) {
  if (ctx) peri__free(ctx, data, size);
}

/* ---- writing ---- */

/* Beyond RLIMIT_FSIZE, write raises SIGXFSZ on this thread, which would kill the host. It is blocked
** for the call and taken away if the call raised it; then write says EFBIG. */
peri_status peri__write_all (peri_ctx *ctx, int fd, const char *path, const void *src, size_t n) {
  const char *p = src;
  const struct timespec none = { 0, 0 };
  sigset_t limit, before, pending;
  sigemptyset(&limit);
  sigaddset(&limit, SIGXFSZ);
  sigemptyset(&pending);
  sigpending(&pending);
  bool blocked = pthread_sigmask(SIG_BLOCK, &limit, &before) == 0;
  peri_status s = PERI_OK;
  while (n > 0 && s == PERI_OK) {
    if (peri__stopped(ctx)) {
      s = peri__fail(ctx, PERI_EINTR, "%s: interrupted", path);
      break;
    }
    ssize_t put = write(fd, p, n < PIECE ? n : PIECE);
    if (put > 0) {
      p += put;
      n -= (size_t)put;
    } else if (put == 0) {
      errno = ENOSPC;
      s = peri__io_fail(ctx, path, "write");
    } else if (errno != EINTR) {
      s = peri__io_fail(ctx, path, "write");
    }
  }
  if (blocked) {
    if (s != PERI_OK && !sigismember(&pending, SIGXFSZ)) sigtimedwait(&limit, NULL, &none);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
  }
  return s;
}

static peri_status sync_fd (peri_ctx *ctx, int fd, const char *path) {
  while (fsync(fd) != 0) {
    if (errno == EINTR) continue;
    if (errno == EINVAL || errno == ENOTSUP) return PERI_OK; /* a file system without sync */
    return peri__io_fail(ctx, path, "sync");
  }
  return PERI_OK;
}

peri_status peri__sync_folder (peri_ctx *ctx, const char *folder) {
  int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return peri__io_fail(ctx, folder, "open");
  peri_status s = sync_fd(ctx, fd, folder);
  close(fd);
  return s;
}

/* Folder part of a path ("." if it has none) in a buffer of its own. */
static char *folder_of (peri_ctx *ctx, const char *path, size_t *size) {
  const char *slash = strrchr(path, '/');
  size_t n = slash == NULL ? 1 : slash == path ? 1 : (size_t)(slash - path);
  char *s = peri__malloc(ctx, *size = n + 1);
  if (s == NULL) {
    peri__fail(ctx, PERI_ENOMEM, "no memory for a path of %zu bytes", *size);
    return NULL;
  }
  memcpy(s, slash == NULL ? "." : path, n);
  s[n] = '\0';
  return s;
}

static peri_status sync_parent (peri_ctx *ctx, const char *path) {
  size_t size;
  char *folder = folder_of(ctx, path, &size);
  if (folder == NULL) return PERI_ENOMEM;
  peri_status s = peri__sync_folder(ctx, folder);
  peri__free(ctx, folder, size);
  return s;
}

/* A temporary file is taken by its lock, not by its name: one that a killed process left behind is
** used again, one that another thread or process writes right now is passed over. */
static peri_status open_temp (peri__output *o) {
  size_t n = strlen(o->path), base = n;
  while (base > 0 && o->path[base - 1] != '/') base--;
  if (base == n) return peri__fail(o->ctx, PERI_EINVAL, "%s: is not the name of a file", o->path);
  o->temp_size = n + 16;
  o->temp = peri__malloc(o->ctx, o->temp_size);
  if (o->temp == NULL)
    return peri__fail(o->ctx, PERI_ENOMEM, "%s: no memory for its name", o->path);
  for (int i = 0; i < 10000; i++) {
    struct stat a, b;
    snprintf(o->temp, o->temp_size, "%.*s.%s.tmp-%d", (int)base, o->path, o->path + base, i);
    o->fd = open(o->temp, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    if (o->fd < 0) return peri__io_fail(o->ctx, o->temp, "create");
    bool ours = flock(o->fd, LOCK_EX | LOCK_NB) == 0 || (errno != EWOULDBLOCK && errno != EINTR);
    ours = ours && fstat(o->fd, &a) == 0 && S_ISREG(a.st_mode) && stat(o->temp, &b) == 0 &&
           a.st_dev == b.st_dev && a.st_ino == b.st_ino;
    if (ours) {
      if (ftruncate(o->fd, 0) == 0) return PERI_OK;
      return peri__io_fail(o->ctx, o->temp, "empty");
    }
    close(o->fd);
    o->fd = -1;
  }
  return peri__fail(o->ctx, PERI_EIO, "%s: 10000 temporary files are in use", o->path);
}

peri_status peri__output_begin (peri_ctx *ctx, const char *path, peri__output *o) {
  struct stat st;
  memset(o, 0, sizeof *o);
  o->ctx = ctx;
  o->path = path;
  o->fd = -1;
  bool exists = stat(path, &st) == 0;
  if (exists && !S_ISREG(st.st_mode)) /* a rename would replace a device or a folder */
    return peri__fail(ctx, PERI_EIO, "%s: exists and is not a regular file", path);
  peri_status s = open_temp(o);
  if (s == PERI_OK && exists && fchmod(o->fd, st.st_mode & 0777) != 0)
    s = peri__io_fail(ctx, path, "keep the mode");
  if (s != PERI_OK) peri__output_abort(o);
  return s;
}

peri_status peri__output_write (peri__output *o, const void *src, size_t n) {
  TRY(peri__write_all(o->ctx, o->fd, o->path, src, n));
  o->written += n;
  if (o->checked)
    for (size_t at = 0; at < n;) { /* zlib counts in 32 bits */
      size_t piece = n - at < PIECE ? n - at : PIECE;
      o->crc = (uint32_t)crc32(o->crc, (const unsigned char *)src + at, (unsigned)piece);
      at += piece;
    }
  return PERI_OK;
}

peri_status peri__output_commit (peri__output *o) {
  peri_status s = sync_fd(o->ctx, o->fd, o->path);
  if (s == PERI_OK && rename(o->temp, o->path) != 0) s = peri__io_fail(o->ctx, o->path, "replace");
  if (s == PERI_OK) {
    close(o->fd);
    o->fd = -1; /* the temporary name is gone: nothing to remove */
    s = sync_parent(o->ctx, o->path);
  }
  peri__output_abort(o);
  return s;
}

void peri__output_abort (peri__output *o) {
  if (o->fd >= 0) {
    unlink(o->temp); /* before the lock goes with the descriptor */
    close(o->fd);
    o->fd = -1;
  }
  if (o->temp != NULL) peri__free(o->ctx, o->temp, o->temp_size);
  o->temp = NULL;
}

peri_status peri_file_write (peri_ctx *ctx, const char *path, const void *data, size_t size) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  if (size > 0) NEED(ctx, data);
  peri__output o;
  TRY(peri__output_begin(ctx, path, &o));
  peri_status s = peri__output_write(&o, data, size);
  if (s == PERI_OK) return peri__output_commit(&o);
  peri__output_abort(&o);
  return s;
}

peri_status peri_rename (peri_ctx *ctx, const char *from, const char *to) {
  NEED(ctx, ctx);
  NEED(ctx, from);
  NEED(ctx, to);
  if (rename(from, to) != 0) return peri__io_fail(ctx, from, "rename");
  return sync_parent(ctx, to);
}

/* A device or a pipe cannot be shortened: what it took, it has. */
peri_status peri_file_append (peri_ctx *ctx, const char *path, const void *data, size_t size) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  if (size > 0) NEED(ctx, data);
  int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0666);
  if (fd < 0) return peri__io_fail(ctx, path, "open");
  struct stat st;
  peri_status s = fstat(fd, &st) == 0 ? PERI_OK : peri__io_fail(ctx, path, "look at");
  if (s == PERI_OK) {
    s = peri__write_all(ctx, fd, path, data, size);
    if (s != PERI_OK && S_ISREG(st.st_mode) && ftruncate(fd, st.st_size) != 0)
      peri_log(ctx, PERI_LOG_WARN, "%s: ends in a part of what was to be written", path);
  }
  if (close(fd) != 0 && s == PERI_OK && errno != EINTR) s = peri__io_fail(ctx, path, "close");
  return s;
}
