/*
** files.c - peri.files, peri.safetensors: files, folders, tensors in files, checkpoints, event
** files. What the outside world does wrong comes back as nil and a message, misuse raises.
*/
#include <string.h>
#include <sys/stat.h>

#include "keep.h"

#define CHECKPOINT "perilune.checkpoint"
#define EVENTS "perilune.tfevents"
#define WRITER "perilune.safetensors.writer"

/* nil and a message, or true. */
static int done (lua_State *L, const char *fn, peri_status s) {
  if (s != PERI_OK) return peri__fail_soft(L, fn);
  lua_pushboolean(L, 1);
  return 1;
}

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
  return done(L, "files.write", peri_file_write(peri_lua_ctx(L), path, text, n));
}

static int l_make_folder (lua_State *L) {
  const char *path = peri__want_path(L, 1, "files.make_folder");
  return done(L, "files.make_folder", peri_make_folder(peri_lua_ctx(L), path));
}

static int l_remove_tree (lua_State *L) {
  const char *path = peri__want_path(L, 1, "files.remove_tree");
  return done(L, "files.remove_tree", peri_remove_tree(peri_lua_ctx(L), path));
}

static int l_rename (lua_State *L) {
  const char *from = peri__want_path(L, 1, "files.rename"),
             *to = peri__want_path(L, 2, "files.rename");
  return done(L, "files.rename", peri_rename(peri_lua_ctx(L), from, to));
}

static int l_exists (lua_State *L) {
  struct stat st;
  if (stat(peri__want_path(L, 1, "files.exists"), &st) != 0)
    lua_pushboolean(L, 0);
  else
    lua_pushstring(L, S_ISREG(st.st_mode) ? "file" : S_ISDIR(st.st_mode) ? "folder" : "other");
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

/* ---- safetensors ---- */

static void drop_safetensors (peri_ctx *ctx, void *p, size_t n) {
  (void)ctx;
  (void)n;
  peri_safetensors_close((peri_safetensors *)p);
}

static void push_metadata (lua_State *L, const peri_safetensors *f) {
  lua_newtable(L);
  for (int64_t i = 0; i < peri_safetensors_pairs(f); i++) {
    peri_text_pair pair = peri_safetensors_pair(f, i);
    lua_pushstring(L, pair.key);
    lua_pushstring(L, pair.value);
    lua_rawset(L, -3);
  }
}

/* Pushes a keep of the open file; NULL when it cannot be opened. */
static peri_keep *open_safetensors (lua_State *L, const char *path, bool map) {
  peri_keep *k = peri__keep_new(L, 0, drop_safetensors);
  peri_safetensors *f;
  if (peri_safetensors_open(peri_lua_ctx(L), path, map, &f) != PERI_OK) return NULL;
  k->p = f;
  return k;
}

static int l_load (lua_State *L) {
  static const char *const names[] = { "map", NULL };
  const char *path = peri__want_path(L, 1, "safetensors.load");
  bool map = false;
  lua_settop(L, 2);
  peri__want_options(L, 2, "safetensors.load", names);
  if (!lua_isnil(L, 2)) {
    lua_getfield(L, 2, "map");
    map = lua_toboolean(L, -1);
  }
  peri_keep *k = open_safetensors(L, path, map);
  if (!k) return peri__fail_soft(L, "safetensors.load");
  peri_safetensors *f = (peri_safetensors *)k->p;
  lua_newtable(L);
  for (int64_t i = 0; i < peri_safetensors_count(f); i++) {
    int tries = 0;
    peri_status s;
    peri_tensor **box = peri__box_new(L);
    do s = peri_safetensors_tensor(f, i, box);
    while (peri__retry(L, s, &tries));
    if (s != PERI_OK) {
      peri__keep_drop(L, k);
      return peri__fail_soft(L, "safetensors.load");
    }
    lua_setfield(L, -2, peri_safetensors_at(f, i).name);
  }
  push_metadata(L, f);
  peri__keep_drop(L, k);
  peri__charge(L);
  return 2;
}

static int l_info (lua_State *L) {
  const char *path = peri__want_path(L, 1, "safetensors.info");
  peri_keep *k = open_safetensors(L, path, false);
  if (!k) return peri__fail_soft(L, "safetensors.info");
  peri_safetensors *f = (peri_safetensors *)k->p;
  lua_createtable(L, 0, 2);
  lua_newtable(L);
  for (int64_t i = 0; i < peri_safetensors_count(f); i++) {
    peri_safetensors_entry e = peri_safetensors_at(f, i);
    lua_createtable(L, 0, 5);
    lua_pushstring(L, e.name);
    lua_setfield(L, -2, "name");
    lua_pushstring(L, peri_dtype_name(e.dtype));
    lua_setfield(L, -2, "dtype");
    peri__push_shape(L, e.ndim, e.shape);
    lua_setfield(L, -2, "shape");
    lua_pushinteger(L, (lua_Integer)e.offset);
    lua_setfield(L, -2, "offset");
    lua_pushinteger(L, (lua_Integer)e.bytes);
    lua_setfield(L, -2, "bytes");
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  lua_setfield(L, -2, "tensors");
  push_metadata(L, f);
  lua_setfield(L, -2, "metadata");
  peri__keep_drop(L, k);
  return 1;
}

/* Number of entries of the table at idx, all of whose keys must be strings without zero bytes. */
static size_t count_names (lua_State *L, int idx, const char *what) {
  size_t count = 0, n;
  lua_pushnil(L);
  while (lua_next(L, idx)) {
    lua_pop(L, 1);
    count++;
    if (lua_type(L, -1) != LUA_TSTRING)
      luaL_error(L, "safetensors.save: %s must have strings as keys, got a %s", what,
                 luaL_typename(L, -1));
    if (strlen(lua_tolstring(L, -1, &n)) != n)
      luaL_error(L, "safetensors.save: %s has a key with a zero byte", what);
  }
  return count;
}

static int l_save (lua_State *L) {
  static const char fn[] = "safetensors.save";
  const char *path = peri__want_path(L, 1, fn);
  lua_settop(L, 3);
  if (lua_type(L, 2) != LUA_TTABLE)
    peri__type_error(L, fn, 2, "tensors", "a table of tensors by name");
  if (lua_isnil(L, 3)) {
    lua_newtable(L);
    lua_replace(L, 3);
  }
  if (lua_type(L, 3) != LUA_TTABLE) peri__type_error(L, fn, 3, "metadata", "a table of strings");
  size_t n = count_names(L, 2, "tensors"), m = count_names(L, 3, "metadata");
  peri_key *keys = peri__sorted_keys(L, 2, n), *meta = peri__sorted_keys(L, 3, m);
  const char **names = (const char **)lua_newuserdatauv(L, (n + 1) * sizeof *names, 0);
  peri_tensor **tensors = (peri_tensor **)lua_newuserdatauv(L, (n + 1) * sizeof *tensors, 0);
  peri_text_pair *pairs = (peri_text_pair *)lua_newuserdatauv(L, (m + 1) * sizeof *pairs, 0);
  const peri_bind *b = peri__bind(L);
  for (size_t i = 0; i < n; i++) {
    names[i] = keys[i].s;
    lua_pushlstring(L, keys[i].s, keys[i].n);
    lua_rawget(L, 2);
    peri_box *box = peri__box_at(L, b, -1);
    if (!box || !box->t)
      luaL_error(L, "%s: '%s' is %s, a tensor is expected", fn, names[i],
                 box ? "a tensor that was released by its scope" : luaL_typename(L, -1));
    tensors[i] = box->t;
    lua_pop(L, 1);
  }
  for (size_t i = 0; i < m; i++) {
    size_t len;
    lua_pushlstring(L, meta[i].s, meta[i].n);
    if (lua_rawget(L, 3) != LUA_TSTRING)
      luaL_error(L, "%s: metadata '%s' is a %s, a string is expected", fn, meta[i].s,
                 luaL_typename(L, -1));
    pairs[i] = (peri_text_pair){ meta[i].s, lua_tolstring(L, -1, &len) };
    if (strlen(pairs[i].value) != len)
      luaL_error(L, "%s: metadata '%s' holds a zero byte", fn, meta[i].s);
    lua_pop(L, 1);
  }
  return done(L, fn,
              peri_safetensors_save(b->ctx, path, (int64_t)n, names, tensors, (int64_t)m, pairs));
}

typedef struct box {
  void *p;
} box; /* a file or a checkpoint being written; NULL: closed */

static void *open_box (lua_State *L, const char *type, const char *fn) {
  box *b = (box *)luaL_testudata(L, 1, type);
  if (!b) peri__type_error(L, fn, 1, "self", type);
  if (!b->p) luaL_error(L, "%s: it is closed", fn);
  return b->p;
}

/* {name, dtype, shape} at idx; the name stays in the table. */
static void want_entry (lua_State *L, int idx, peri_safetensors_entry *e) {
  static const char fn[] = "safetensors.create";
  int top = lua_gettop(L);
  if (lua_type(L, idx) != LUA_TTABLE)
    luaL_error(L, "%s: tensors are tables, got a %s", fn, luaL_typename(L, idx));
  size_t n;
  if (lua_getfield(L, idx, "name") != LUA_TSTRING) luaL_error(L, "%s: a tensor needs a name", fn);
  e->name = lua_tolstring(L, -1, &n);
  if (strlen(e->name) != n) luaL_error(L, "%s: a name holds a zero byte", fn);
  lua_getfield(L, idx, "dtype");
  e->dtype = peri__want_dtype_arg(L, top + 2, fn, "dtype");
  lua_getfield(L, idx, "shape");
  e->ndim = peri__want_shape(L, top + 3, fn, "shape", e->shape);
  lua_settop(L, top);
}

static int l_create (lua_State *L) {
  static const char fn[] = "safetensors.create";
  const char *path = peri__want_path(L, 1, fn);
  lua_settop(L, 2);
  if (lua_type(L, 2) != LUA_TTABLE) peri__type_error(L, fn, 2, "tensors", "a list");
  size_t n = (size_t)lua_rawlen(L, 2);
  if (n > ((size_t)1 << 40) / sizeof(peri_safetensors_entry)) luaL_error(L, "%s: too many", fn);
  peri_safetensors_entry *entries =
      (peri_safetensors_entry *)lua_newuserdatauv(L, (n + 1) * sizeof *entries, 0);
  memset(entries, 0, (n + 1) * sizeof *entries);
  for (size_t i = 0; i < n; i++) {
    lua_rawgeti(L, 2, (lua_Integer)i + 1);
    want_entry(L, lua_gettop(L), &entries[i]);
    lua_pop(L, 1);
  }
  const peri_text_pair pair = { "format", "pt" };
  peri_safetensors_writer *w;
  box *b = (box *)lua_newuserdatauv(L, sizeof *b, 0);
  b->p = NULL;
  luaL_setmetatable(L, WRITER);
  peri_status s = peri_safetensors_create(peri_lua_ctx(L), path, (int64_t)n, entries, 1, &pair, &w);
  if (s == PERI_EINVAL || s == PERI_EDTYPE) peri__check(L, fn, s);
  if (s != PERI_OK) return peri__fail_soft(L, fn);
  b->p = w;
  return 1;
}

static int l_next (lua_State *L) {
  int64_t i = peri_safetensors_next(
      (peri_safetensors_writer *)open_box(L, WRITER, "safetensors.writer:next"));
  if (i < 0) return 0;
  lua_pushinteger(L, (lua_Integer)i + 1);
  return 1;
}

static int l_write_tensor (lua_State *L) {
  static const char fn[] = "safetensors.writer:write";
  peri_safetensors_writer *w = (peri_safetensors_writer *)open_box(L, WRITER, fn);
  peri_status s = peri_safetensors_write(w, peri__want_tensor(L, 2, fn, "tensor"));
  if (s == PERI_EINVAL || s == PERI_EDTYPE) peri__check(L, fn, s);
  return done(L, fn, s);
}

static int l_commit_tensors (lua_State *L) {
  static const char fn[] = "safetensors.writer:commit";
  peri_safetensors_writer *w = (peri_safetensors_writer *)open_box(L, WRITER, fn);
  ((box *)lua_touserdata(L, 1))->p = NULL;
  peri_status s = peri_safetensors_commit(w);
  if (s == PERI_EINVAL) peri__check(L, fn, s);
  return done(L, fn, s);
}

static int abort_tensors (lua_State *L) {
  box *b = (box *)luaL_testudata(L, 1, WRITER);
  if (b && BIND(L)->ctx) {
    peri_safetensors_abort((peri_safetensors_writer *)b->p);
    b->p = NULL;
  }
  return 0;
}

/* ---- checkpoints ---- */

static int l_begin (lua_State *L) {
  const char *dir = peri__want_path(L, 1, "checkpoint.begin");
  peri_checkpoint *c;
  box *b = (box *)lua_newuserdatauv(L, sizeof *b, 0);
  b->p = NULL;
  luaL_setmetatable(L, CHECKPOINT);
  if (peri_checkpoint_begin(peri_lua_ctx(L), dir, &c) != PERI_OK)
    return peri__fail_soft(L, "checkpoint.begin");
  b->p = c;
  return 1;
}

static int l_commit (lua_State *L) {
  peri_checkpoint *c = (peri_checkpoint *)open_box(L, CHECKPOINT, "checkpoint:commit");
  const char *name = peri__want_path(L, 2, "checkpoint:commit");
  int ok = 1;
  lua_Integer keep = lua_isnoneornil(L, 3) ? 0 : lua_tointegerx(L, 3, &ok);
  if (!ok || keep < 0 || keep > 1000000)
    peri__type_error(L, "checkpoint:commit", 3, "keep", "an integer of at least 0");
  peri_status s = peri_checkpoint_commit(c, name, (int)keep);
  if (s == PERI_OK) ((box *)lua_touserdata(L, 1))->p = NULL;
  return done(L, "checkpoint:commit", s);
}

static int checkpoint_abort (lua_State *L) {
  box *b = (box *)luaL_testudata(L, 1, CHECKPOINT);
  if (b && BIND(L)->ctx) {
    peri_checkpoint_abort((peri_checkpoint *)b->p);
    b->p = NULL;
  }
  return 0;
}

/* .path, or a method from the table in the first upvalue. */
static int checkpoint_index (lua_State *L) {
  box *b = (box *)luaL_testudata(L, 1, CHECKPOINT);
  if (b && b->p && lua_type(L, 2) == LUA_TSTRING && strcmp(lua_tostring(L, 2), "path") == 0) {
    lua_pushstring(L, peri_checkpoint_path((peri_checkpoint *)b->p));
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

/* ---- event files ---- */

static int l_tfevents (lua_State *L) {
  const char *path = peri__want_path(L, 1, "files.tfevents");
  peri_tfevents *w;
  box *b = (box *)lua_newuserdatauv(L, sizeof *b, 0);
  b->p = NULL;
  luaL_setmetatable(L, EVENTS);
  if (peri_tfevents_open(peri_lua_ctx(L), path, &w) != PERI_OK)
    return peri__fail_soft(L, "files.tfevents");
  b->p = w;
  return 1;
}

static int l_scalar (lua_State *L) {
  static const char fn[] = "tfevents:scalar";
  peri_tfevents *w = (peri_tfevents *)open_box(L, EVENTS, fn);
  int whole, number, timed;
  const char *tag = peri__want_path(L, 2, fn);
  lua_Integer step = lua_tointegerx(L, 3, &whole);
  lua_Number value = lua_tonumberx(L, 4, &number), wall = lua_tonumberx(L, 5, &timed);
  if (!whole) peri__type_error(L, fn, 3, "step", "an integer");
  if (!number) peri__type_error(L, fn, 4, "value", "a number");
  if (!timed) peri__type_error(L, fn, 5, "wall_time", "a number");
  return done(L, fn, peri_tfevents_scalar(w, tag, (int64_t)step, value, wall));
}

static int tfevents_close (lua_State *L) {
  box *b = (box *)luaL_testudata(L, 1, EVENTS);
  if (b && BIND(L)->ctx) {
    peri_tfevents_close((peri_tfevents *)b->p);
    b->p = NULL;
  }
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

static const peri_reg events_meta[] = { { "__gc", NULL, NULL, tfevents_close },
                                        { "__close", NULL, NULL, tfevents_close },
                                        { NULL, NULL, NULL, NULL } };

static const peri_reg events_methods[] = {
  { "scalar", "self, tag, step, value, wall_time",
    "Append one value; wall_time in seconds since 1970.", l_scalar },
  { "close", "self", "Close the file; it can be opened again and continued.", tfevents_close },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg writer_meta[] = { { "__gc", NULL, NULL, abort_tensors },
                                        { "__close", NULL, NULL, abort_tensors },
                                        { NULL, NULL, NULL, NULL } };

static const peri_reg writer_methods[] = {
  { "next", "self", "Which tensor of the list is to be written next; nothing at the end.", l_next },
  { "write", "self, tensor", "Data of the next tensor; true, or nil and a message.",
    l_write_tensor },
  { "commit", "self", "Put the file under its name; true, or nil and a message.",
    l_commit_tensors },
  { "abort", "self", "Remove what was written.", abort_tensors },
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
  { "exists", "path", "\"file\", \"folder\", \"other\" or false.", l_exists },
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

static const peri_reg safetensors[] = {
  { "load", "path, options?",
    "Tensors by name and metadata of a safetensors file, or nil and a message; "
    "option map: share the file's pages (only for files that nobody truncates).",
    l_load },
  { "save", "path, tensors, metadata?",
    "Write tensors by name in one step; true, or nil and a message.", l_save },
  { "create", "path, tensors",
    "Begin a file of tensors {name, dtype, shape} that are then written one at a time: a writer, "
    "or "
    "nil and a message.",
    l_create },
  { "info", "path",
    "What a file holds, {tensors = {{name, dtype, shape, offset, bytes}}, metadata}, "
    "without reading the data.",
    l_info },
  { NULL, NULL, NULL, NULL }
};

const peri_reg *const peri__files_functions = files,
                      *const peri__checkpoint_dir_functions = checkpoint,
                      *const peri__safetensors_functions = safetensors;

int peri__open_files (lua_State *L) {
  peri__metatable(L, WRITER, writer_meta, writer_methods);
  peri__metatable(L, EVENTS, events_meta, events_methods);
  peri__metatable(L, CHECKPOINT, checkpoint_meta, checkpoint_methods);
  lua_getfield(L, -1, "__index");
  lua_pushcclosure(L, checkpoint_index, 1);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 3);
  lua_newtable(L); /* peri.files, into the module on top */
  peri__register(L, files);
  lua_newtable(L);
  peri__register(L, checkpoint);
  lua_setfield(L, -2, "checkpoint");
  lua_setfield(L, -2, "files");
  lua_newtable(L); /* peri.safetensors, returned */
  peri__register(L, safetensors);
  return 1;
}
