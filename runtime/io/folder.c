/* folder.c - making, listing and removing folders. Links are never followed when something goes. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/files.h"

#define MAX_DEPTH 64 /* of a tree to remove */

peri_status peri_make_folder (peri_ctx *ctx, const char *path) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  struct stat st;
  size_t n = strlen(path), size = n + 1;
  if (n == 0) return peri__fail(ctx, PERI_EINVAL, "an empty path for a folder");
  char *part = peri__malloc(ctx, size);
  if (part == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory for its name", path);
  peri_status s = PERI_OK;
  for (size_t i = 1; i <= n && s == PERI_OK; i++) {
    if (path[i] != '/' && path[i] != '\0') continue;
    memcpy(part, path, i);
    part[i] = '\0';
    if (mkdir(part, 0777) != 0 && errno != EEXIST && !(errno == EROFS && stat(part, &st) == 0))
      s = peri__io_fail(ctx, part, "make the folder");
  }
  if (s == PERI_OK && (stat(path, &st) != 0 || !S_ISDIR(st.st_mode))) {
    errno = ENOTDIR;
    s = peri__io_fail(ctx, path, "make the folder");
  }
  peri__free(ctx, part, size);
  return s;
}

/* Empties and closes the folder at fd. 0 or -1 with errno. */
static int empty (int fd, int depth) {
  DIR *dir = fdopendir(fd);
  if (dir == NULL) {
    close(fd);
    return -1;
  }
  int failed = 0;
  struct dirent *e;
  while (failed == 0 && (errno = 0, e = readdir(dir)) != NULL) {
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
    if (unlinkat(fd, e->d_name, 0) == 0 || errno == ENOENT) continue;
    if (errno != EISDIR && errno != EPERM) {
      failed = errno;
      break;
    }
    int sub = openat(fd, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (sub < 0)
      failed = errno;
    else if (depth == MAX_DEPTH) {
      close(sub);
      failed = ELOOP;
    } else if (empty(sub, depth + 1) != 0)
      failed = errno;
    else if (unlinkat(fd, e->d_name, AT_REMOVEDIR) != 0 && errno != ENOENT)
      failed = errno;
  }
  if (failed == 0) failed = errno; /* of readdir */
  closedir(dir);
  errno = failed;
  return failed == 0 ? 0 : -1;
}

peri_status peri_remove_tree (peri_ctx *ctx, const char *path) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  size_t end = strlen(path), begin;
  while (end > 0 && path[end - 1] == '/') end--;
  for (begin = end; begin > 0 && path[begin - 1] != '/';) begin--;
  size_t n = end - begin;
  if (n == 0 || (path[begin] == '.' && (n == 1 || (n == 2 && path[begin + 1] == '.'))))
    return peri__fail(ctx, PERI_EINVAL, "\"%s\": will not be removed", path);
  if (unlink(path) == 0 || errno == ENOENT) return PERI_OK;
  if (errno != EISDIR && errno != EPERM && errno != ENOTDIR)
    return peri__io_fail(ctx, path, "remove");
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0 || empty(fd, 1) != 0 || (rmdir(path) != 0 && errno != ENOENT))
    return peri__io_fail(ctx, path, "remove");
  return PERI_OK;
}

static int by_name (void *ud, const void *a, const void *b) {
  size_t x, y;
  memcpy(&x, a, sizeof x);
  memcpy(&y, b, sizeof y);
  return strcmp((char *)ud + x, (char *)ud + y);
}

/* Grows *p, of *cap bytes, to hold need. */
static peri_status reserve (peri_ctx *ctx, char **p, size_t *cap, size_t need) {
  size_t more = *cap < 1024 ? 1024 : *cap;
  if (need <= *cap) return PERI_OK;
  while (more < need) more *= 2;
  char *grown = peri__realloc(ctx, *p, *cap, more);
  if (grown == NULL) return peri__fail(ctx, PERI_ENOMEM, "no memory for a list of names");
  *p = grown;
  *cap = more;
  return PERI_OK;
}

/* All names of an open folder, in the order of the system. */
static peri_status collect (peri_ctx *ctx, DIR *dir, const char *path, char **names, size_t *cap,
                            size_t *size, size_t *count) {
  struct dirent *e;
  while ((errno = 0, e = readdir(dir)) != NULL) {
    size_t n = strlen(e->d_name) + 1;
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
    TRY(reserve(ctx, names, cap, *size + n));
    memcpy(*names + *size, e->d_name, n);
    *size += n;
    ++*count;
  }
  return errno == 0 ? PERI_OK : peri__io_fail(ctx, path, "list");
}

peri_status peri_list_folder (peri_ctx *ctx, const char *path, char **names, size_t *size) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, names);
  NEED(ctx, size);
  char *raw = NULL, *sorted = NULL;
  size_t cap = 0, used = 0, count = 0, *at = NULL;
  *names = NULL;
  *size = 0;
  DIR *dir = opendir(path);
  if (dir == NULL) return peri__io_fail(ctx, path, "list");
  peri_status s = collect(ctx, dir, path, &raw, &cap, &used, &count);
  closedir(dir);
  if (s == PERI_OK && count > 0) {
    at = peri__malloc(ctx, count * sizeof *at);
    sorted = peri__malloc(ctx, used);
    if (at == NULL || sorted == NULL)
      s = peri__fail(ctx, PERI_ENOMEM, "%s: no memory for %zu names", path, count);
  }
  if (s == PERI_OK && count > 0) {
    size_t to = 0, from = 0;
    for (size_t i = 0; i < count; i++, from += strlen(raw + from) + 1) at[i] = from;
    peri__sort(at, count, sizeof *at, by_name, raw);
    for (size_t i = 0; i < count; i++) {
      size_t n = strlen(raw + at[i]) + 1;
      memcpy(sorted + to, raw + at[i], n);
      to += n;
    }
    *names = sorted;
    *size = used;
    sorted = NULL;
  }
  peri__free(ctx, sorted, used);
  peri__free(ctx, at, count * sizeof *at);
  peri__free(ctx, raw, cap);
  return s;
}
