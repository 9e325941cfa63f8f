/*
** files.c - peri.files: files, folders, checkpoints, locks, event files. What the outside world does wrong
** comes back as nil and a message, misuse raises.
*/
#define _POSIX_C_SOURCE 200809L /* lstat */

#include <string.h>
#include <sys/stat.h>

#include "keep.h"

#define CHECKPOINT "perilune.checkpoint"
#define EVENTS "perilune.tfevents"
#define LOCK "perilune.lock"

/* ---- files and folders ---- */

static void drop_bytes (peri_ctx *ctx, void *p, size_t n) { peri_file_free(ctx, p, n); }

static int l_read (lua_State *L) {
  const char *path = peri__want_path(L, 1, "files.read");
  int ok = 1;
  lua_Integer most = lua_isnoneornil(L, 2) ? 0 : lua_tointegerx(L, 2, &ok);
  if (!ok || most < 0)
    peri__type_error(L, "files.read", 2, "max_bytes", "an integer of at least 0");
  peri_keep *k = peri__keep_new(L, 0, drop_bytes);
  if (peri_file_read(peri_lua_ctx(L), path, (size_t)most, &k->p, &k->n) != PERI_OK)
    return peri__fail_soft(L, "files.read");
  lua_pushlstring(L, (const char *)k->p, k->n);
  peri__keep_drop(L, k);
  return 1;
}

static int l_write (lua_State *L) {
  size_t n;
  const char *path = peri__want_path(L, 1, "files.write");
  if (lua_type(L, 2) != LUA_TSTRING) peri__type_error(L, "files.write", 2, "text", "a string");
  const char *text = lua_tolstring(L, 2, &n);
  return peri__done(L, "files.write", peri_file_write(peri_lua_ctx(L), path, text, n));
}

static int l_append (lua_State *L) {
  size_t n;
  const char *path = peri__want_path(L, 1, "files.append");
  if (lua_type(L, 2) != LUA_TSTRING) peri__type_error(L, "files.append", 2, "text", "a string");
  const char *text = lua_tolstring(L, 2, &n);
  return peri__done(L, "files.append", peri_file_append(peri_lua_ctx(L), path, text, n));
}

static int l_make_folder (lua_State *L) {
  const char *path = peri__want_path(L, 1, "files.make_folder");
  return peri__done(L, "files.make_folder", peri_make_folder(peri_lua_ctx(L), path));
}

static int l_remove_tree (lua_State *L) {
  const char *path = peri__want_path(L, 1, "files.remove_tree");
  return peri__done(L, "files.remove_tree", peri_remove_tree(peri_lua_ctx(L), path));
}

static int l_rename (lua_State *L) {
  const char *from = peri__want_path(L, 1, "files.rename"),
             *to = peri__want_path(L, 2, "files.rename");
  return peri__done(L, "files.rename", peri_rename(peri_lua_ctx(L), from, to));
}

static int l_exists (lua_State *L) {
  struct stat st;
  if (stat(peri__want_path(L, 1, "files.exists"), &st) != 0)
    lua_pushboolean(L, 0);
  else
    lua_pushstring(L, S_ISREG(st.st_mode) ? "file" : S_ISDIR(st.st_mode) ? "folder" : "other");
  return 1;
}

static int l_is_link (lua_State *L) {
  struct stat st;
  lua_pushboolean(L,
                  lstat(peri__want_path(L, 1, "files.is_link"), &st) == 0 && S_ISLNK(st.st_mode));
  return 1;
}

static int l_list (lua_State *L) {
  const char *path = peri__want_path(L, 1, "files.list");
  char *names;
  peri_keep *k = peri__keep_new(L, 0, drop_bytes);
  if (peri_list_folder(peri_lua_ctx(L), path, &names, &k->n) != PERI_OK)
    return peri__fail_soft(L, "files.list");
  k->p = names;
  lua_newtable(L);
  lua_Integer count = 0;
  for (size_t i = 0; i < k->n; i += strlen(names + i) + 1) {
    lua_pushstring(L, names + i);
    lua_rawseti(L, -2, ++count);
  }
  peri__keep_drop(L, k);
  return 1;
}

/* The next line, or nothing; raises for a damaged file, since an iterator has no other way. */
static int next_line (lua_State *L) {
  peri_keep *k = (peri_keep *)lua_touserdata(L, lua_upvalueindex(1));
  const char *line;
  size_t n;
  if (!k->p) return 0;
  peri__check(L, "files.lines", peri_lines_next((peri_lines *)k->p, &line, &n));
  if (!line) {
    peri__keep_drop(L, k);
    return 0;
  }
  lua_pushlstring(L, line, n);
  lua_pushinteger(L, (lua_Integer)peri_lines_number((peri_lines *)k->p));
  return 2;
}

static void drop_lines (peri_ctx *ctx, void *p, size_t n) {
  (void)ctx;
  (void)n;
  peri_lines_close((peri_lines *)p);
}

static int l_lines (lua_State *L) {
  static const char fn[] = "files.lines";
  const char *path = peri__want_path(L, 1, fn);
  int ok = 1;
  lua_Integer most = lua_isnoneornil(L, 2) ? 64 << 20 : lua_tointegerx(L, 2, &ok);
  if (!ok || most < 1) peri__type_error(L, fn, 2, "max_bytes", "an integer of at least 1");
  peri_keep *k = peri__keep_new(L, 0, drop_lines);
  peri_lines *l;
  if (peri_lines_open(peri_lua_ctx(L), path, (size_t)most, &l) != PERI_OK)
    return peri__fail_soft(L, fn);
  k->p = l;
  lua_pushcclosure(L, next_line, 1);
  return 1;
}

/* ---- checkpoints ---- */

static int l_begin (lua_State *L) {
  const char *dir = peri__want_path(L, 1, "checkpoint.begin");
  peri_checkpoint *c;
  peri_handle *h = peri__handle_new(L, CHECKPOINT, 0);
  if (peri_checkpoint_begin(peri_lua_ctx(L), dir, &c) != PERI_OK)
    return peri__fail_soft(L, "checkpoint.begin");
  h->p = c;
  return 1;
}

static int l_commit (lua_State *L) {
  peri_checkpoint *c = (peri_checkpoint *)peri__handle_open(L, CHECKPOINT, "checkpoint:commit");
  const char *name = peri__want_path(L, 2, "checkpoint:commit");
  int ok = 1;
  lua_Integer keep = lua_isnoneornil(L, 3) ? 0 : lua_tointegerx(L, 3, &ok);
  if (!ok || keep < 0 || keep > 1000000)
    peri__type_error(L, "checkpoint:commit", 3, "keep", "an integer of at least 0");
  peri_status s = peri_checkpoint_commit(c, name, (int)keep);
  if (s == PERI_OK) ((peri_handle *)lua_touserdata(L, 1))->p = NULL;
  return peri__done(L, "checkpoint:commit", s);
}

static int checkpoint_abort (lua_State *L) {
  peri_checkpoint_abort((peri_checkpoint *)peri__handle_take(L, CHECKPOINT));
  return 0;
}

/* .path, or a method from the table in the first upvalue. */
static int checkpoint_index (lua_State *L) {
  peri_handle *h = (peri_handle *)luaL_testudata(L, 1, CHECKPOINT);
  if (h && h->p && lua_type(L, 2) == LUA_TSTRING && strcmp(lua_tostring(L, 2), "path") == 0) {
    lua_pushstring(L, peri_checkpoint_path((peri_checkpoint *)h->p));
    return 1;
  }
  lua_settop(L, 2);
  lua_rawget(L, lua_upvalueindex(1));
  return 1;
}

static int l_latest (lua_State *L) {
  const char *dir = peri__want_path(L, 1, "checkpoint.latest");
  size_t size = strlen(dir) + 160; /* names have at most 128 bytes */
  char *path = (char *)lua_newuserdatauv(L, size, 0);
  if (peri_checkpoint_latest(peri_lua_ctx(L), dir, path, size) != PERI_OK)
    return peri__fail_soft(L, "checkpoint.latest");
  if (path[0])
    lua_pushstring(L, path);
  else
    lua_pushnil(L);
  return 1;
}

static int l_verify (lua_State *L) {
  const char *path = peri__want_path(L, 1, "checkpoint.verify");
  int64_t generation;
  if (peri_checkpoint_verify(peri_lua_ctx(L), path, &generation) != PERI_OK)
    return peri__fail_soft(L, "checkpoint.verify");
  lua_pushinteger(L, (lua_Integer)generation);
  return 1;
}

/* ---- locks ---- */

static int l_lock (lua_State *L) {
  const char *path = peri__want_path(L, 1, "files.lock");
  peri_lock *l;
  peri_handle *h = peri__handle_new(L, LOCK, 0);
  if (peri_lock_take(peri_lua_ctx(L), path, &l) != PERI_OK) return peri__fail_soft(L, "files.lock");
  h->p = l;
  return 1;
}

static int lock_drop (lua_State *L) {
  peri_lock_drop((peri_lock *)peri__handle_take(L, LOCK));
  return 0;
}

/* ---- event files ---- */

static int l_tfevents (lua_State *L) {
  const char *path = peri__want_path(L, 1, "files.tfevents");
  peri_tfevents *w;
  peri_handle *h = peri__handle_new(L, EVENTS, 0);
  if (peri_tfevents_open(peri_lua_ctx(L), path, &w) != PERI_OK)
    return peri__fail_soft(L, "files.tfevents");
  h->p = w;
  return 1;
}

static int l_scalar (lua_State *L) {
  static const char fn[] = "tfevents:scalar";
  peri_tfevents *w = (peri_tfevents *)peri__handle_open(L, EVENTS, fn);
  int whole, number, timed;
  const char *tag = peri__want_path(L, 2, fn);
  lua_Integer step = lua_tointegerx(L, 3, &whole);
  lua_Number value = lua_tonumberx(L, 4, &number), wall = lua_tonumberx(L, 5, &timed);
  if (!whole) peri__type_error(L, fn, 3, "step", "an integer");
  if (!number) peri__type_error(L, fn, 4, "value", "a number");
  if (!timed) peri__type_error(L, fn, 5, "wall_time", "a number");
  return peri__done(L, fn, peri_tfevents_scalar(w, tag, (int64_t)step, value, wall));
}

static int l_event (lua_State *L) {
  static const char fn[] = "tfevents:event";
  peri_tfevents *w = (peri_tfevents *)peri__handle_open(L, EVENTS, fn);
  size_t n;
  if (lua_type(L, 2) != LUA_TSTRING) peri__type_error(L, fn, 2, "event", "a string");
  const char *event = lua_tolstring(L, 2, &n);
  return peri__done(L, fn, peri_tfevents_event(w, event, n));
}

static int tfevents_close (lua_State *L) {
  peri_tfevents_close((peri_tfevents *)peri__handle_take(L, EVENTS));
  return 0;
}

/* ---- opening ---- */

static const peri_reg checkpoint_meta[] = { { "__gc", NULL, NULL, checkpoint_abort },
                                            { "__close", NULL, NULL, checkpoint_abort },
                                            { NULL, NULL, NULL, NULL } };

static const peri_reg checkpoint_methods[] = {
  { "commit", "self, name, keep?",
    "Make it the checkpoint dir/name in one step and remove all but the keep "
    "newest (none when left out); true, or nil and a message.",
    l_commit },
  { "abort", "self", "Remove what was written.", checkpoint_abort },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg lock_meta[] = { { "__gc", NULL, NULL, lock_drop },
                                      { "__close", NULL, NULL, lock_drop },
                                      { NULL, NULL, NULL, NULL } };

static const peri_reg lock_methods[] = { { "drop", "self", "Let others take it.", lock_drop },
                                         { NULL, NULL, NULL, NULL } };

static const peri_reg events_meta[] = { { "__gc", NULL, NULL, tfevents_close },
                                        { "__close", NULL, NULL, tfevents_close },
                                        { NULL, NULL, NULL, NULL } };

static const peri_reg events_methods[] = {
  { "scalar", "self, tag, step, value, wall_time",
    "Append one value; wall_time in seconds since 1970.", l_scalar },
  { "event", "self, event",
    "Append one encoded Event message of TensorBoard, for what has no method here.", l_event },
  { "close", "self", "Close the file; it can be opened again and continued.", tfevents_close },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg files[] = {
  { "read", "path, max_bytes?", "Content of a file as a string, or nil and a message.", l_read },
  { "lines", "path, max_bytes?",
    "An iterator over the lines of a text file, plain or gzipped, and their numbers, or nil and a "
    "message; a longer line than max_bytes (64 MiB) or damaged data raises.",
    l_lines },
  { "write", "path, text",
    "Write a file so that a crash leaves the old or the new one; true, or nil and a "
    "message.",
    l_write },
  { "append", "path, text",
    "Add text at the end of a file, all of it or, with nil and a message, none.", l_append },
  { "lock", "path",
    "Take a lock file that one process has at a time: a handle with :drop(), or nil and a message "
    "that names the process which has it.",
    l_lock },
  { "exists", "path", "\"file\", \"folder\", \"other\" or false.", l_exists },
  { "is_link", "path", "Whether the name is that of a symbolic link, wherever it leads.",
    l_is_link },
  { "list", "path", "Sorted names in a folder, or nil and a message.", l_list },
  { "make_folder", "path", "Make a folder and its missing parents.", l_make_folder },
  { "remove_tree", "path",
    "Remove a file or a folder with all that is in it; links are not followed.", l_remove_tree },
  { "rename", "from, to", "Rename in one step, replacing a file.", l_rename },
  { "tfevents", "path",
    "Open a TensorBoard event file and continue it; its name must contain 'tfevents'.",
    l_tfevents },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg checkpoint[] = {
  { "begin", "dir", "Begin a checkpoint in dir: write files into .path, then :commit(name, keep?).",
    l_begin },
  { "latest", "dir", "Path of the newest checkpoint that is whole; nil when there is none.",
    l_latest },
  { "verify", "path",
    "Compare a checkpoint with its manifest; its generation, or nil and a message.", l_verify },
  { NULL, NULL, NULL, NULL }
};

int peri__open_files (lua_State *L) {
  peri__metatable(L, LOCK, lock_meta, lock_methods);
  peri__metatable(L, EVENTS, events_meta, events_methods);
  peri__metatable(L, CHECKPOINT, checkpoint_meta, checkpoint_methods);
  lua_getfield(L, -1, "__index");
  lua_pushcclosure(L, checkpoint_index, 1);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 3);
  lua_newtable(L);
  peri__register(L, files);
  lua_newtable(L);
  peri__register(L, checkpoint);
  lua_setfield(L, -2, "checkpoint");
  return 1;
}
