/*
** replay.c - replay buffers as userdata. lua/perilune/env/replay.lua reads the options of peri.replay, this
** file has the methods: a step is added and a sample drawn without a Lua function in between.
*/
#include <string.h>

#include "buffers.h"
#include "env.h"
#include "env/ring.h"

#define REPLAY "perilune.replay"

static peri_replay *self (lua_State *L, const char *fn) {
  return (peri_replay *)peri__handle_open(L, REPLAY, fn);
}

/* ---- shared with rollouts ---- */

lua_Integer peri__want_integer (lua_State *L, int arg, const char *fn, const char *name) {
  int ok;
  lua_Integer i = lua_tointegerx(L, arg, &ok);
  if (!ok || lua_type(L, arg) != LUA_TNUMBER) peri__type_error(L, fn, arg, name, "an integer");
  return i;
}

/* The space of a field, if its table on top has one, in *s; what that borrows is held by the table. */
static const peri_space *space_of (lua_State *L, const char *fn, const char *name, peri_space *s) {
  const int entry = lua_gettop(L);
  const peri_space *found = NULL;
  if (lua_getfield(L, entry, "space") == LUA_TTABLE) {
    *s = peri__space_at(L, entry + 1, fn, name);
    const int last = lua_gettop(L);
    lua_createtable(L, last - entry, 0);
    for (int i = entry + 1; i <= last; i++) {
      lua_pushvalue(L, i);
      lua_rawseti(L, last + 1, i - entry);
    }
    lua_setfield(L, entry, "held");
    found = s;
  }
  lua_settop(L, entry);
  return found;
}

/* The entries of one field, a table on top of the stack. */
static void read_field (lua_State *L, const char *fn, peri_field *f, peri_space *space) {
  int entry = lua_gettop(L);
  lua_rawgeti(L, entry, 1);
  lua_rawgeti(L, entry, 2);
  lua_rawgeti(L, entry, 3);
  f->name = lua_tostring(L, -3);
  f->role = (peri_field_role)lua_tointeger(L, -1);
  const char *dtype = lua_tostring(L, -2);
  if (!dtype || !peri_dtype_parse(dtype, &f->dtype))
    luaL_error(L, "%s: field %s: there is no dtype %s", fn, f->name, dtype ? dtype : "nil");
  lua_Integer n = (lua_Integer)lua_rawlen(L, entry) - 3;
  if (n > PERI_MAX_DIMS)
    luaL_error(L, "%s: field %s has %I dims, at most %d are supported", fn, f->name, (LUAI_UACINT)n,
               PERI_MAX_DIMS - 2);
  f->ndim = (int)n;
  for (int i = 0; i < f->ndim; i++) {
    lua_rawgeti(L, entry, i + 4);
    f->shape[i] = lua_tointeger(L, -1);
  }
  lua_settop(L, entry);
  f->space = space_of(L, fn, f->name, space);
}

peri_field *peri__want_fields (lua_State *L, int idx, const char *fn, int *n) {
  lua_Unsigned count = lua_rawlen(L, idx);
  if (count > PERI__FIELDS_MAX)
    luaL_error(L, "%s: %I fields, at most %d are supported", fn, (LUAI_UACINT)count,
               PERI__FIELDS_MAX);
  *n = (int)count;
  size_t bytes = (size_t)(*n + 1) * (sizeof(peri_field) + sizeof(peri_space));
  peri_field *fields = (peri_field *)lua_newuserdatauv(L, bytes, 0);
  peri_space *spaces = (peri_space *)(void *)(fields + *n + 1);
  memset(fields, 0, bytes);
  for (int i = 0; i < *n; i++) {
    lua_rawgeti(L, idx, i + 1);
    read_field(L, fn, &fields[i], &spaces[i]);
    lua_pop(L, 1);
  }
  return fields;
}

peri_tensor *peri__named_row (lua_State *L, int idx, const char *fn, const char *name, peri_dtype d,
                              int *found) {
  peri_bind *b = BIND(L);
  int type = lua_getfield(L, idx, name);
  if (type == LUA_TNIL) return NULL;
  ++*found;
  if (type == LUA_TNUMBER || type == LUA_TBOOLEAN) {
    double v = type == LUA_TNUMBER ? lua_tonumber(L, -1) : lua_toboolean(L, -1);
    peri_tensor **t = peri__box_new(L);
    peri_status s = peri_scalar(b->ctx, d, v, t);
    if (s != PERI_OK) luaL_error(L, "%s: %s: %s", fn, name, b->ctx->scripted);
    lua_replace(L, -2);
    return *t;
  }
  peri_box *box = peri__box_at(L, b, -1);
  if (!box || !box->t)
    luaL_error(L, "%s: %s is %s, a tensor is expected", fn, name,
               box ? "a tensor that was released by its scope" : luaL_typename(L, -1));
  return box->t;
}

void peri__all_known (lua_State *L, int idx, const char *fn, int found,
                      const char *(*name_at)(void *ud, int i), void *ud) {
  int n = 0;
  for (lua_pushnil(L); lua_next(L, idx); n++) lua_pop(L, 1);
  if (n == found) return;
  for (lua_pushnil(L); lua_next(L, idx);) {
    lua_pop(L, 1);
    const char *key = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : NULL, *name;
    bool known = false;
    for (int i = 0; key && !known && (name = name_at(ud, i)) != NULL; i++)
      known = strcmp(name, key) == 0;
    if (known) continue;
    const char *near = key ? peri__nearest(key, name_at, ud) : NULL;
    luaL_error(L, near ? "%s: there is no %s here; did you mean '%s'?" : "%s: there is no %s here",
               fn, key ? key : luaL_typename(L, -1), near);
  }
}

/* ---- opening ---- */

/* (options with the list of fields as `list`) -> buffer: peri.replay has checked them. */
static int l_replay (lua_State *L) {
  peri_replay_options o;
  int n;
  peri_replay_options_init(&o);
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_getfield(L, 1, "list");
  o.fields = peri__want_fields(L, lua_gettop(L), "replay", &n);
  o.nfields = n;
  lua_getfield(L, 1, "capacity");
  lua_getfield(L, 1, "rows");
  lua_getfield(L, 1, "n_step");
  lua_getfield(L, 1, "gamma");
  lua_getfield(L, 1, "prioritised");
  lua_getfield(L, 1, "alpha");
  lua_getfield(L, 1, "epsilon");
  lua_getfield(L, 1, "groups");
  o.groups = lua_tointeger(L, -1);
  lua_pop(L, 1);
  o.seeded = lua_getfield(L, 1, "seed") != LUA_TNIL;
  o.capacity = lua_tointeger(L, -8);
  o.rows = lua_tointeger(L, -7);
  o.n_step = lua_tointeger(L, -6);
  o.gamma = lua_tonumber(L, -5);
  o.prioritised = lua_toboolean(L, -4);
  o.alpha = lua_tonumber(L, -3);
  o.epsilon = lua_tonumber(L, -2);
  o.seed = (uint64_t)lua_tointeger(L, -1);
  peri_replay *r = NULL;
  peri_handle *h = peri__handle_new(L, REPLAY, 0);
  peri_status s = peri_replay_open(BIND(L)->ctx, &o, &r);
  h->p = r;
  peri__check(L, "replay", s);
  peri__charge(L);
  return 1;
}

static int r_close (lua_State *L) {
  peri_replay_close((peri_replay *)peri__handle_take(L, REPLAY));
  return 0;
}

/* ---- adding ---- */

static peri_dtype scalar_dtype (const peri_replay *r, const peri__column *c) {
  switch (c->source) {
  case PERI__FROM_FIELD:
  case PERI__FROM_NEXT: return r->field[c->field].is.dtype;
  case PERI__FROM_REWARD: return PERI_F32;
  default: return PERI_BOOL;
  }
}

static const char *input_at (void *ud, int i) { return peri_replay_input((peri_replay *)ud, i); }

static int r_add (lua_State *L) {
  peri_replay *r = self(L, "add");
  peri_tensor *in[PERI__COLUMNS_MAX];
  int found = 0;
  if (lua_type(L, 2) != LUA_TTABLE) peri__type_error(L, "add", 2, "step", "a table of tensors");
  luaL_checkstack(L, r->nin + 8, NULL);
  for (int i = 0; i < r->nin; i++)
    in[i] = peri__named_row(L, 2, "add", r->in[i].name, scalar_dtype(r, &r->in[i]), &found);
  peri__all_known(L, 2, "add", found, input_at, r);
  peri__check(L, "add", peri_replay_add(r, r->nin, in));
  lua_settop(L, 1);
  return 1;
}

/* ---- drawing ---- */

typedef struct drawing {
  const char *fn;
  int64_t n, length, burn_in; /* length 0: transitions */
  double beta;
  peri_tensor *index; /* the transitions there; NULL: n are drawn */
} drawing;

static double beta_at (lua_State *L, const peri_replay *r, int arg, const char *fn) {
  if (lua_isnoneornil(L, arg)) return 1;
  if (lua_type(L, arg) != LUA_TNUMBER) peri__type_error(L, fn, arg, "beta", "a number");
  if (!r->prioritised) luaL_error(L, "%s: beta is of prioritised buffers, and this one is not", fn);
  return lua_tonumber(L, arg);
}

/* Push the table of a sample: the one at into, written into, or a new one. */
static int push_sample (lua_State *L, peri_replay *r, const drawing *d, int into) {
  peri_bind *b = BIND(L);
  int nout = r->nout + (d->length > 0), table = into;
  peri_tensor *out[PERI__COLUMNS_MAX];
  peri_box *box[PERI__COLUMNS_MAX];
  luaL_checkstack(L, nout + 8, NULL);
  if (lua_isnoneornil(L, into)) {
    lua_createtable(L, 0, nout);
    table = lua_gettop(L);
  } else if (lua_type(L, into) != LUA_TTABLE)
    peri__type_error(L, d->fn, into, "into", "a table, of an earlier sample");
  int first = lua_gettop(L) + 1;
  for (int i = 0; i < nout; i++) {
    box[i] = NULL;
    out[i] = NULL;
    if (table == into && lua_getfield(L, into, r->out[i].name) != LUA_TNIL) {
      box[i] = peri__box_at(L, b, -1);
      if (!box[i] || !box[i]->t)
        luaL_error(L, "%s: into.%s is no tensor, or was released", d->fn, r->out[i].name);
      out[i] = box[i]->t;
      continue;
    }
    if (table == into) lua_pop(L, 1);
    box[i] = (peri_box *)peri__box_new(L);
  }
  peri_status s = d->index ? peri_replay_gather(r, d->index, nout, out)
                  : d->length > 0
                      ? peri_replay_sequences(r, d->n, d->length, d->burn_in, d->beta, nout, out)
                      : peri_replay_sample(r, d->n, d->beta, nout, out);
  peri__check(L, d->fn, s);
  bool made = false;
  for (int i = 0; i < nout; i++) {
    if (box[i]->t) continue;
    box[i]->t = out[i];
    made = true;
  }
  if (made) {
    for (int i = 0; i < nout; i++) {
      lua_pushvalue(L, first + i);
      lua_setfield(L, table, r->out[i].name);
    }
    peri__charge(L);
  }
  lua_settop(L, first - 1);
  lua_pushvalue(L, table);
  return 1;
}

static int r_sample (lua_State *L) {
  peri_replay *r = self(L, "sample");
  drawing d = { .fn = "sample", .n = peri__want_integer(L, 2, "sample", "n") };
  d.beta = beta_at(L, r, 3, "sample");
  lua_settop(L, 4);
  return push_sample(L, r, &d, 4);
}

static int r_sequences (lua_State *L) {
  static const char fn[] = "sequences";
  peri_replay *r = self(L, fn);
  drawing d = { .fn = fn, .n = peri__want_integer(L, 2, fn, "n") };
  d.length = peri__want_integer(L, 3, fn, "length");
  d.burn_in = lua_isnoneornil(L, 4) ? 0 : peri__want_integer(L, 4, fn, "burn_in");
  d.beta = beta_at(L, r, 5, fn);
  if (d.length < 1)
    return luaL_error(L, "%s: length is %I, at least 1 is needed", fn, (LUAI_UACINT)d.length);
  lua_settop(L, 6);
  return push_sample(L, r, &d, 6);
}

static int r_gather (lua_State *L) {
  peri_replay *r = self(L, "gather");
  drawing d = { .fn = "gather" };
  d.index = peri__want_tensor(L, 2, "gather", "index");
  lua_settop(L, 3);
  return push_sample(L, r, &d, 3);
}

static int r_prioritise (lua_State *L) {
  peri_replay *r = self(L, "prioritise");
  peri_tensor *index = peri__want_tensor(L, 2, "prioritise", "index");
  peri_tensor *priority = peri__want_tensor(L, 3, "prioritise", "priority");
  peri__check(L, "prioritise", peri_replay_prioritise(r, index, priority));
  lua_settop(L, 1);
  return 1;
}

/* ---- facts, states ---- */

static int r_size (lua_State *L) {
  lua_pushinteger(L, peri_replay_size(self(L, "size")));
  return 1;
}
static int r_breaks (lua_State *L) {
  lua_pushinteger(L, peri_replay_breaks(self(L, "breaks")));
  return 1;
}
static int r_bytes (lua_State *L) {
  lua_pushinteger(L, (lua_Integer)peri_replay_bytes(self(L, "bytes")));
  return 1;
}
static int r_clear (lua_State *L) {
  peri_replay_clear(self(L, "clear"));
  lua_settop(L, 1);
  return 1;
}

static int r_state_dict (lua_State *L) {
  peri_replay *r = self(L, "state_dict");
  const char *name = NULL;
  lua_settop(L, 1);
  lua_newtable(L);
  for (int i = 0;; i++) {
    peri_tensor **t = peri__box_new(L);
    peri__check(L, "state_dict", peri_replay_state(r, i, &name, t));
    if (!name) break;
    lua_setfield(L, 2, name);
  }
  lua_settop(L, 2);
  peri__charge(L);
  return 1;
}

static int r_load_state_dict (lua_State *L) {
  static const char fn[] = "load_state_dict";
  peri_replay *r = self(L, fn);
  const char **names;
  peri_tensor **tensors;
  size_t n = 0;
  lua_settop(L, 2);
  if (lua_type(L, 2) != LUA_TTABLE) peri__type_error(L, fn, 2, "state", "a table of tensors");
  for (lua_pushnil(L); lua_next(L, 2); n++) {
    lua_pop(L, 1);
    if (lua_type(L, -1) != LUA_TSTRING) luaL_error(L, "%s: names are strings", fn);
  }
  if (n > INT32_MAX) return luaL_error(L, "%s: too many tensors", fn);
  peri_key *keys = peri__sorted_keys(L, 2, n);
  peri__named_tensors(L, 2, fn, n, keys, &names, &tensors);
  peri__check(L, fn, peri_replay_restore(r, (int)n, names, tensors));
  lua_settop(L, 1);
  return 1;
}

static int r_tostring (lua_State *L) {
  peri_handle *h = (peri_handle *)luaL_testudata(L, 1, REPLAY);
  peri_replay *r = h ? (peri_replay *)h->p : NULL;
  if (!r) {
    lua_pushliteral(L, "replay buffer, closed");
    return 1;
  }
  lua_pushfstring(L, "replay buffer of %I steps of %I rows, %I transitions in it:",
                  (LUAI_UACINT)r->capacity, (LUAI_UACINT)r->rows, (LUAI_UACINT)peri_replay_size(r));
  for (int i = 0; i < r->nfields; i++) {
    const peri__field *f = &r->field[i].is;
    peri__push_shape_text(L, f->ndim, f->shape);
    lua_pushfstring(L, "%s %s %s %s", i ? "," : "", f->name, peri_dtype_name(f->dtype),
                    lua_tostring(L, -1));
    lua_remove(L, -2);
    lua_concat(L, 2);
  }
  return 1;
}

static const peri_reg meta[] = { { "__gc", NULL, NULL, r_close },
                                 { "__close", NULL, NULL, r_close },
                                 { "__len", NULL, NULL, r_size },
                                 { "__tostring", NULL, NULL, r_tostring },
                                 { NULL, NULL, NULL, NULL } };

static const peri_reg methods[] = {
  { "add", "step",
    "Add one step of all rows, a table of tensors (rows, ...): the fields, next_NAME of each "
    "observed one (what the step led to), reward, terminated, truncated, and valid? where some "
    "rows are not to be drawn. With one row its dim may be left out and scalars be plain values.",
    r_add },
  { "sample", "n, beta?, into?",
    "A table of n transitions, drawn with replacement, (n, ...) each: the fields, next_NAME, "
    "reward "
    "(summed over n_step), terminated, truncated, discount, index, and weight of a prioritised "
    "buffer, with exponent beta (default 1). into: an earlier sample to write into. With groups "
    "(groups, n, ...): n of each group's own rows.",
    r_sample },
  { "sequences", "n, length, burn_in?, beta?, into?",
    "A table of n steps with those after them up to their episode's end, length at most, and up "
    "to burn_in before them: (n, burn_in + length, ...) each. mask is 1 from the drawn step to the "
    "end.",
    r_sequences },
  { "gather", "index, into?", "The transitions at positions (n) i64, as sample gives them.",
    r_gather },
  { "prioritise", "index, priority",
    "Give the transitions at index (n) new priorities (n) from 0: the absolute errors. They are "
    "drawn in proportion to (priority + epsilon)^alpha.",
    r_prioritise },
  { "size", "", "How many transitions are in it: steps times rows.", r_size },
  { "breaks", "",
    "How often a row went on from something else than what its last step led to, though no episode "
    "had ended: counted as truncated.",
    r_breaks },
  { "bytes", "", "Bytes of memory that it holds.", r_bytes },
  { "clear", "", "Forget all steps; returns the buffer.", r_clear },
  { "close", "", "Free its memory.", r_close },
  { "state_dict", "",
    "Everything that it holds, as tensors by name: views of its memory where possible, so save "
    "them before the next add.",
    r_state_dict },
  { "load_state_dict", "state",
    "Go on from the state of a buffer with the same capacity, rows and fields; returns the buffer.",
    r_load_state_dict },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg functions[] = {
  { "_replay", "options", "What peri.replay opens, after it has read the options.", l_replay },
  { NULL, NULL, NULL, NULL }
};

const peri_reg *const peri__replay_methods = methods;

void peri__open_replay (lua_State *L) {
  peri__metatable(L, REPLAY, meta, methods);
  lua_pop(L, 1);
  peri__register(L, functions);
}
