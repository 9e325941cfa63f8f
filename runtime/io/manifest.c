/*
** manifest.c - the manifest of a checkpoint folder: every file with its size and hash, and one hash
** over the manifest's own facts. Writing one syncs the files; reading one trusts nothing in it.
*/
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* lstat, fsync */
#endif
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/json.h"
#include "io/files.h"

#define MANIFEST "manifest.json"
#define MAX_MANIFEST ((size_t)64 << 20)
#define MAX_DEPTH 8             /* of folders inside a checkpoint */
#define PIECE ((size_t)1 << 20) /* hashed at a time */

/* XXH64 over every fact of the manifest, so that no flipped bit in it goes unseen. */
static void seal_file (peri__xxh64 *seal, const char *path, size_t n, int64_t bytes,
                       const char hash[17]) {
  char line[64];
  peri__xxh64_add(seal, path, n);
  int len = snprintf(line, sizeof line, "\n%lld %s\n", (long long)bytes, hash);
  peri__xxh64_add(seal, line, (size_t)len);
}

static void seal_begin (peri__xxh64 *seal, int64_t generation) {
  char line[32];
  peri__xxh64_init(seal);
  int len = snprintf(line, sizeof line, "%lld\n", (long long)generation);
  peri__xxh64_add(seal, line, (size_t)len);
}

static void hex16 (uint64_t v, char out[17]) {
  snprintf(out, 17, "%016llx", (unsigned long long)v);
}

/* Hash of an open file of n bytes. */
static peri_status hash_file (peri_ctx *ctx, int fd, const char *path, uint64_t n, char out[17]) {
  peri__xxh64 h;
  peri_status s = PERI_OK;
  char *piece = peri__block_get(ctx, PIECE);
  if (piece == NULL) return peri__fail(ctx, PERI_ENOMEM, "%s: no memory to hash it", path);
  peri__xxh64_init(&h);
  for (uint64_t at = 0; at < n && s == PERI_OK; at += PIECE) {
    size_t len = n - at < PIECE ? (size_t)(n - at) : PIECE;
    s = peri__read_at(ctx, fd, path, at, piece, len);
    if (s == PERI_OK) peri__xxh64_add(&h, piece, len);
  }
  peri__block_put(ctx, piece);
  hex16(peri__xxh64_end(&h), out);
  return s;
}

typedef struct scan { /* of a folder that becomes a checkpoint */
  peri_ctx *ctx;
  peri_json_writer *w;
  peri__xxh64 seal;
} scan;

static peri_status add_file (scan *sc, const char *path, const char *name) {
  int fd;
  uint64_t size;
  char hash[17];
  TRY(peri__open_regular(sc->ctx, path, &fd, &size));
  peri_status s = hash_file(sc->ctx, fd, path, size, hash);
  if (s == PERI_OK && fsync(fd) != 0) s = peri__io_fail(sc->ctx, path, "sync");
  close(fd);
  TRY(s);
  peri_json_put_object(sc->w);
  peri_json_put_key(sc->w, "path", 4);
  peri_json_put_string(sc->w, name, strlen(name));
  peri_json_put_key(sc->w, "bytes", 5);
  peri_json_put_int(sc->w, (int64_t)size);
  peri_json_put_key(sc->w, "xxh64", 5);
  peri_json_put_string(sc->w, hash, 16);
  peri_json_put_close(sc->w);
  seal_file(&sc->seal, name, strlen(name), (int64_t)size, hash);
  return sc->w->status;
}

static peri_status add_folder (scan *sc, const char *path, const char *name, int depth);

/* name: relative to the checkpoint, "" for itself. */
static peri_status add_entry (scan *sc, const char *path, const char *name, int depth) {
  struct stat st;
  if (lstat(path, &st) != 0) return peri__io_fail(sc->ctx, path, "look at");
  if (S_ISREG(st.st_mode) && strcmp(name, MANIFEST) == 0)
    return peri__fail(sc->ctx, PERI_EINVAL, "%s: this name is the checkpoint's own", path);
  if (S_ISREG(st.st_mode)) return add_file(sc, path, name);
  if (!S_ISDIR(st.st_mode))
    return peri__fail(sc->ctx, PERI_EINVAL, "%s: neither a file nor a folder", path);
  if (depth == MAX_DEPTH)
    return peri__fail(sc->ctx, PERI_EINVAL, "%s: deeper than %d folders", path, MAX_DEPTH);
  return add_folder(sc, path, name, depth + 1);
}

static peri_status add_folder (scan *sc, const char *path, const char *name, int depth) {
  char *names;
  size_t size;
  TRY(peri_list_folder(sc->ctx, path, &names, &size));
  peri_status s = PERI_OK;
  for (size_t i = 0; i < size && s == PERI_OK; i += strlen(names + i) + 1) {
    size_t full_size, rel_size = 0;
    char *full = peri__join(sc->ctx, path, names + i, &full_size);
    char *rel = full == NULL ? NULL : peri__join(sc->ctx, name, names + i, &rel_size);
    s = rel == NULL ? PERI_ENOMEM : add_entry(sc, full, rel, depth);
    peri__free(sc->ctx, rel, rel_size);
    peri__free(sc->ctx, full, full_size);
  }
  peri_file_free(sc->ctx, names, size);
  return s == PERI_OK ? peri__sync_folder(sc->ctx, path) : s;
}

static void put_text (peri_json_writer *w, const char *key, const char *text) {
  peri_json_put_key(w, key, strlen(key));
  peri_json_put_string(w, text, strlen(text));
}

peri_status peri__manifest_write (peri_ctx *ctx, const char *folder, int64_t generation) {
  peri_json_writer w;
  scan sc = { .ctx = ctx, .w = &w };
  char seal[17];
  size_t size;
  seal_begin(&sc.seal, generation);
  peri_json_begin(&w, ctx, 2, PERI_JSON_NAN_ERROR);
  peri_json_put_object(&w);
  put_text(&w, "format", "perilune checkpoint 1");
  peri_json_put_key(&w, "generation", 10);
  peri_json_put_int(&w, generation);
  peri_json_put_key(&w, "files", 5);
  peri_json_put_array(&w);
  peri_status s = add_folder(&sc, folder, "", 0);
  if (s == PERI_OK) {
    peri_json_put_close(&w);
    hex16(peri__xxh64_end(&sc.seal), seal);
    put_text(&w, "seal", seal);
    peri_json_put_close(&w);
    s = peri_json_finish(&w);
  }
  char *path = s == PERI_OK ? peri__join(ctx, folder, MANIFEST, &size) : NULL;
  if (path != NULL) {
    s = peri_file_write(ctx, path, w.text, w.size);
    peri__free(ctx, path, size);
  } else if (s == PERI_OK) {
    s = PERI_ENOMEM;
  }
  peri_json_drop(&w);
  return s;
}

static peri_status want_key (peri_json *p, const char *key) {
  peri_json_value v;
  TRY(peri_json_expect(p, PERI_JSON_KEY, key, &v));
  if (v.n != strlen(key) || memcmp(v.s, key, v.n) != 0)
    return peri_json_fail(p, v.offset, "expected the key \"%s\"", key);
  return PERI_OK;
}

static peri_status want_hash (peri_json *p, const char *key, char out[17]) {
  peri_json_value v;
  TRY(want_key(p, key));
  TRY(peri_json_expect(p, PERI_JSON_STRING, key, &v));
  if (v.n != 16) return peri_json_fail(p, v.offset, "a hash has 16 digits");
  memcpy(out, v.s, 16);
  out[16] = '\0';
  return PERI_OK;
}

/* A manifest names files below its own folder only. */
static bool inside (const char *s, size_t n) {
  if (n == 0 || memchr(s, 0, n) != NULL) return false;
  for (size_t i = 0, from = 0; i <= n; i++) {
    if (i < n && s[i] != '/') continue;
    size_t len = i - from;
    if (len == 0 || (s[from] == '.' && (len == 1 || (len == 2 && s[from + 1] == '.'))))
      return false;
    from = i + 1;
  }
  return true;
}

static peri_status check_file (peri_ctx *ctx, const char *folder, const char *name, int64_t bytes,
                               const char *hash) {
  size_t size;
  char found[17];
  int fd;
  uint64_t have;
  char *path = peri__join(ctx, folder, name, &size);
  if (path == NULL) return PERI_ENOMEM;
  peri_status s = peri__open_regular(ctx, path, &fd, &have);
  if (s == PERI_OK) {
    if (have != (uint64_t)bytes)
      s = peri__fail(ctx, PERI_EFORMAT, "%s: has %llu bytes, the manifest says %lld", path,
                     (unsigned long long)have, (long long)bytes);
    else
      s = hash_file(ctx, fd, path, have, found);
    if (s == PERI_OK && strcmp(found, hash) != 0)
      s = peri__fail(ctx, PERI_EFORMAT, "%s: hash %s, the manifest says %s", path, found, hash);
    close(fd);
  }
  peri__free(ctx, path, size);
  return s;
}

/* One entry of "files"; v holds its opening brace. */
static peri_status read_file_entry (peri_json *p, const char *folder, bool check,
                                    peri__xxh64 *seal) {
  peri_json_value v;
  char hash[17];
  size_t size;
  TRY(want_key(p, "path"));
  TRY(peri_json_expect(p, PERI_JSON_STRING, "path", &v));
  if (!inside(v.s, v.n)) return peri_json_fail(p, v.offset, "a path outside of the checkpoint");
  char *name = peri__malloc(p->ctx, size = v.n + 1);
  if (name == NULL) return peri__fail(p->ctx, PERI_ENOMEM, "no memory for a path");
  memcpy(name, v.s, v.n);
  name[v.n] = '\0';
  peri_status s = want_key(p, "bytes");
  if (s == PERI_OK) s = peri_json_expect(p, PERI_JSON_INT, "bytes", &v);
  int64_t bytes = v.i;
  if (s == PERI_OK) s = want_hash(p, "xxh64", hash);
  if (s == PERI_OK) s = peri_json_expect(p, PERI_JSON_CLOSE, "what follows xxh64", &v);
  if (s == PERI_OK && check) s = check_file(p->ctx, folder, name, bytes, hash);
  if (s == PERI_OK) seal_file(seal, name, size - 1, bytes, hash);
  peri__free(p->ctx, name, size);
  return s;
}

static peri_status read_manifest (peri_json *p, const char *folder, bool check,
                                  int64_t *generation) {
  static const char format[] = "perilune checkpoint 1";
  peri_json_value v;
  peri__xxh64 seal;
  char said[17], found[17];
  TRY(peri_json_expect(p, PERI_JSON_OBJECT, "a manifest", &v));
  TRY(want_key(p, "format"));
  TRY(peri_json_expect(p, PERI_JSON_STRING, "format", &v));
  if (v.n != sizeof format - 1 || memcmp(v.s, format, v.n) != 0)
    return peri_json_fail(p, v.offset, "expected the format \"%s\"", format);
  TRY(want_key(p, "generation"));
  TRY(peri_json_expect(p, PERI_JSON_INT, "generation", &v));
  *generation = v.i;
  seal_begin(&seal, v.i);
  TRY(want_key(p, "files"));
  TRY(peri_json_expect(p, PERI_JSON_ARRAY, "files", &v));
  for (;;) {
    TRY(peri_json_next(p, &v));
    if (v.type == PERI_JSON_CLOSE) break;
    if (v.type != PERI_JSON_OBJECT) return peri_json_fail(p, v.offset, "a file must be an object");
    TRY(read_file_entry(p, folder, check, &seal));
  }
  TRY(want_hash(p, "seal", said));
  hex16(peri__xxh64_end(&seal), found);
  if (strcmp(said, found) != 0)
    return peri_json_fail(p, v.offset, "seal %s, but its facts give %s", said, found);
  TRY(peri_json_expect(p, PERI_JSON_CLOSE, "what follows the seal", &v));
  return peri_json_expect(p, PERI_JSON_END, "what follows the manifest", &v);
}

peri_status peri__manifest_read (peri_ctx *ctx, const char *folder, bool check,
                                 int64_t *generation) {
  peri_json p;
  void *text;
  size_t size, path_size;
  char *path = peri__join(ctx, folder, MANIFEST, &path_size);
  if (path == NULL) return PERI_ENOMEM;
  peri_status s = peri_file_read(ctx, path, MAX_MANIFEST, &text, &size);
  if (s == PERI_OK) {
    peri_json_open(&p, ctx, text, size, NULL);
    s = read_manifest(&p, folder, check, generation);
    if (s != PERI_OK && p.status != PERI_OK) s = peri__fail(ctx, s, "%s: %s", path, ctx->message);
    peri_json_close(&p);
    peri_file_free(ctx, text, size);
  }
  peri__free(ctx, path, path_size);
  return s;
}
