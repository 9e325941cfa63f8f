/*
** checkpoint.c - checkpoint folders that are complete or absent, whatever moment the process dies
** at: files are written in a hidden folder, hashed into a manifest, synced, and renamed as one. Which
** one is newest is a number in the manifest, not a name or a time of change.
*/
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* flock, syscall */
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io/files.h"

#define TEMP ".tmp-"

struct peri_checkpoint {
  peri_ctx *ctx;
  char *dir, *temp;
  size_t dir_size, temp_size;
  int lock; /* the temporary folder, locked while it is being written */
};

/* ---- the folder of checkpoints ---- */

peri_status peri_checkpoint_verify (peri_ctx *ctx, const char *path, int64_t *generation) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  int64_t g = 0;
  TRY(peri__manifest_read(ctx, path, true, &g));
  if (generation != NULL) *generation = g;
  return PERI_OK;
}

/* Lock a temporary folder; -1 when another process has it or it is gone. */
static int lock_folder (const char *path) {
  struct stat a, b;
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return -1;
  if (flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &a) == 0 && stat(path, &b) == 0 &&
      a.st_dev == b.st_dev && a.st_ino == b.st_ino)
    return fd;
  close(fd);
  return -1;
}

typedef struct found { /* a checkpoint in the folder */
  int64_t generation;
  size_t name; /* offset in the list of names */
} found;

static int newest_first (void *ud, const void *a, const void *b) {
  const found *x = a, *y = b;
  (void)ud;
  if (x->generation != y->generation) return x->generation > y->generation ? -1 : 1;
  return x->name < y->name ? -1 : x->name > y->name;
}

/* Whatever is wrong with a checkpoint makes it damaged; what is wrong with this process does not. */
static bool is_damage (peri_status s) { return s == PERI_EFORMAT || s == PERI_EIO; }

/* Everything in dir that has a readable manifest, newest first; temporary folders of dead processes
** are removed on the way. Both results are freed by the caller, with these sizes. */
static peri_status survey (peri_ctx *ctx, const char *dir, char **names, size_t *names_size,
                           found **list, size_t *list_cap, size_t *n) {
  size_t count = 0;
  *list = NULL;
  *list_cap = *n = 0;
  TRY(peri_list_folder(ctx, dir, names, names_size));
  for (size_t i = 0; i < *names_size; i += strlen(*names + i) + 1) count++;
  *list_cap = count * sizeof **list;
  *list = peri__malloc(ctx, *list_cap);
  if (*list == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory to list it", dir);
  for (size_t i = 0; i < *names_size; i += strlen(*names + i) + 1) {
    size_t size;
    struct stat st;
    char *path = peri__join(ctx, dir, *names + i, &size);
    if (path == NULL) return PERI_ENOMEM;
    peri_status s = PERI_OK;
    if (strncmp(*names + i, TEMP, sizeof TEMP - 1) == 0) {
      int fd = lock_folder(path);
      if (fd >= 0) {
        peri_remove_tree(ctx, path); /* what cannot go now is tried again next time */
        close(fd);
      }
    } else if ((*names)[i] != '.' && lstat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
      s = peri__manifest_read(ctx, path, false, &(*list)[*n].generation);
      if (s == PERI_OK) (*list)[(*n)++].name = i;
    }
    peri__free(ctx, path, size);
    if (s != PERI_OK && !is_damage(s)) return s;
  }
  peri__sort(*list, *n, sizeof **list, newest_first, NULL);
  return PERI_OK;
}

/* Full path of the newest good one in *path (free with *path_size), NULL if there is none. */
static peri_status pick (peri_ctx *ctx, const char *dir, const char *names, const found *list,
                         size_t n, char **path, size_t *path_size) {
  *path = NULL;
  for (size_t i = 0; i < n; i++) {
    int64_t g;
    char *p = peri__join(ctx, dir, names + list[i].name, path_size);
    if (p == NULL) return PERI_ENOMEM;
    peri_status s = peri__manifest_read(ctx, p, true, &g);
    if (s == PERI_OK) {
      *path = p;
      return PERI_OK;
    }
    peri__free(ctx, p, *path_size);
    if (!is_damage(s)) return s;
    peri_log(ctx, PERI_LOG_WARN, "checkpoint passed over: %s", ctx->message);
  }
  return PERI_OK;
}

peri_status peri_checkpoint_latest (peri_ctx *ctx, const char *dir, char *path, size_t size) {
  NEED(ctx, ctx);
  NEED(ctx, dir);
  NEED(ctx, path);
  struct stat st;
  char *names = NULL, *best = NULL;
  size_t names_size = 0, list_cap = 0, n = 0, best_size = 0;
  found *list = NULL;
  if (size == 0) return peri__fail(ctx, PERI_EINVAL, "no room for a path");
  path[0] = '\0';
  if (stat(dir, &st) != 0 && errno == ENOENT) return PERI_OK;
  peri_status s = survey(ctx, dir, &names, &names_size, &list, &list_cap, &n);
  if (s == PERI_OK) s = pick(ctx, dir, names, list, n, &best, &best_size);
  if (best != NULL && best_size > size)
    s = peri__fail(ctx, PERI_EINVAL, "%s: %zu bytes are too few for this path", best, size);
  else if (best != NULL)
    memcpy(path, best, best_size);
  peri__free(ctx, best, best_size);
  peri__free(ctx, list, list_cap);
  peri_file_free(ctx, names, names_size);
  return s;
}

/* Out of the way under a name that nobody takes for a checkpoint, then away. */
static void remove_old (peri_ctx *ctx, const char *dir, const char *name, int64_t generation) {
  char temp[40];
  size_t from_size = 0, to_size = 0;
  snprintf(temp, sizeof temp, TEMP "old-%lld", (long long)generation);
  char *from = peri__join(ctx, dir, name, &from_size);
  char *to = peri__join(ctx, dir, temp, &to_size);
  if (from != NULL && to != NULL && (rename(from, to) != 0 || peri_remove_tree(ctx, to) != PERI_OK))
    peri_log(ctx, PERI_LOG_WARN, "old checkpoint not removed: %s", from);
  peri__free(ctx, from, from_size);
  peri__free(ctx, to, to_size);
}

static void prune (peri_ctx *ctx, const char *dir, int keep) {
  char *names = NULL;
  size_t names_size = 0, list_cap = 0, n = 0;
  found *list = NULL;
  if (survey(ctx, dir, &names, &names_size, &list, &list_cap, &n) == PERI_OK)
    for (size_t i = (size_t)keep; i < n; i++)
      remove_old(ctx, dir, names + list[i].name, list[i].generation);
  peri__free(ctx, list, list_cap);
  peri_file_free(ctx, names, names_size);
}

/* ---- writing one ---- */

static void free_checkpoint (peri_checkpoint *c) {
  peri_ctx *ctx = c->ctx;
  if (c->lock >= 0) close(c->lock);
  peri__free(ctx, c->dir, c->dir_size);
  peri__free(ctx, c->temp, c->temp_size);
  peri__free(ctx, c, sizeof *c);
}

static peri_status make_temp (peri_checkpoint *c) {
  for (int i = 0; i < 10000; i++) {
    snprintf(c->temp, c->temp_size, "%s/" TEMP "%d", c->dir, i);
    if (mkdir(c->temp, 0777) != 0) {
      if (errno == EEXIST) continue;
      return peri__io_fail(c->ctx, c->temp, "make the folder");
    }
    c->lock = lock_folder(c->temp);
    if (c->lock >= 0) return PERI_OK;
    rmdir(c->temp); /* a cleaner came between */
  }
  return peri__fail(c->ctx, PERI_EIO, "%s: no temporary folder can be made and locked", c->dir);
}

peri_status peri_checkpoint_begin (peri_ctx *ctx, const char *dir, peri_checkpoint **out) {
  NEED(ctx, ctx);
  NEED(ctx, dir);
  NEED(ctx, out);
  *out = NULL;
  TRY(peri_make_folder(ctx, dir));
  peri_checkpoint *c = peri__malloc(ctx, sizeof *c);
  if (c == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory", dir);
  *c = (peri_checkpoint){ .ctx = ctx, .dir_size = strlen(dir) + 1, .lock = -1 };
  c->temp_size = c->dir_size + 24;
  c->dir = peri__malloc(ctx, c->dir_size);
  c->temp = peri__malloc(ctx, c->temp_size);
  peri_status s = c->dir == NULL || c->temp == NULL
                      ? peri__fail(ctx, PERI_ENOMEM, "%s: no memory", dir)
                      : PERI_OK;
  if (s == PERI_OK) {
    memcpy(c->dir, dir, c->dir_size);
    s = make_temp(c);
  }
  if (s != PERI_OK)
    free_checkpoint(c);
  else
    *out = c;
  return s;
}

const char *peri_checkpoint_path (const peri_checkpoint *c) { return c ? c->temp : NULL; }

void peri_checkpoint_abort (peri_checkpoint *c) {
  if (c == NULL) return;
  peri_remove_tree(c->ctx, c->temp);
  free_checkpoint(c);
}

static peri_status check_name (peri_ctx *ctx, const char *name) {
  size_t n = strlen(name);
  bool ok = n > 0 && n <= 128 && name[0] != '.';
  for (size_t i = 0; i < n && ok; i++)
    ok = (name[i] >= 'a' && name[i] <= 'z') || (name[i] >= 'A' && name[i] <= 'Z') ||
         (name[i] >= '0' && name[i] <= '9') || strchr("._-", name[i]) != NULL;
  if (ok) return PERI_OK;
  return peri__fail(ctx, PERI_EINVAL,
                    "\"%.140s\" cannot name a checkpoint: 1 to 128 of A-Z a-z 0-9 . "
                    "_ - without a leading dot are expected",
                    name);
}

/* 1 above the highest generation in the folder. */
static peri_status next_generation (peri_ctx *ctx, const char *dir, int64_t *out) {
  char *names = NULL;
  size_t names_size = 0, list_cap = 0, n = 0;
  found *list = NULL;
  peri_status s = survey(ctx, dir, &names, &names_size, &list, &list_cap, &n);
  if (s == PERI_OK) *out = n == 0 ? 1 : list[0].generation + 1;
  peri__free(ctx, list, list_cap);
  peri_file_free(ctx, names, names_size);
  return s;
}

/* Rename, or, where the name is taken, exchange the two in one step: there is no moment at which the
** name is missing. The old one is then at the temporary path. */
static peri_status publish (peri_checkpoint *c, const char *to, bool *exchanged) {
  *exchanged = false;
  if (rename(c->temp, to) == 0) return PERI_OK;
#ifdef SYS_renameat2
  const unsigned exchange = 2; /* RENAME_EXCHANGE of linux/fs.h */
  if ((errno == ENOTEMPTY || errno == EEXIST) &&
      syscall(SYS_renameat2, AT_FDCWD, c->temp, AT_FDCWD, to, exchange) == 0) {
    *exchanged = true;
    return PERI_OK;
  }
#endif
  return peri__io_fail(c->ctx, to, "put the checkpoint there");
}

peri_status peri_checkpoint_commit (peri_checkpoint *c, const char *name, int keep) {
  if (!c) return PERI_EINVAL;
  NEED(c->ctx, name);
  peri_ctx *ctx = c->ctx;
  int64_t generation;
  size_t size;
  bool exchanged;
  if (keep < 0) return peri__fail(ctx, PERI_EINVAL, "keep is %d", keep);
  TRY(check_name(ctx, name));
  TRY(next_generation(ctx, c->dir, &generation));
  TRY(peri__manifest_write(ctx, c->temp, generation));
  char *to = peri__join(ctx, c->dir, name, &size);
  if (to == NULL) return PERI_ENOMEM;
  peri_status s = publish(c, to, &exchanged);
  peri__free(ctx, to, size);
  if (s == PERI_OK) s = peri__sync_folder(ctx, c->dir);
  if (s != PERI_OK) return s;
  if (exchanged) peri_remove_tree(ctx, c->temp);
  if (keep > 0) prune(ctx, c->dir, keep);
  free_checkpoint(c);
  return PERI_OK;
}
