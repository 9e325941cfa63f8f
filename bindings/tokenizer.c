/*
** tokenizer.c - peri._tokenizer: tokenizers and streams of tokens as userdata. lua/perilune/text/tokenizer.lua
** gives them their public face.
*/
#include <string.h>

#include "keep.h"
#include "text/tokenizer.h"

#define TOKENIZER "perilune.tokenizer"
#define STREAM "perilune.token_stream"

static peri_tokenizer *self (lua_State *L, const char *fn) {
  peri_handle *h = (peri_handle *)luaL_testudata(L, 1, TOKENIZER);
  if (!h || !h->p) peri__type_error(L, fn, 1, "self", TOKENIZER);
  return (peri_tokenizer *)h->p;
}

static int l_load (lua_State *L) {
  const char *path = peri__want_path(L, 1, "tokenizer.load");
  peri_tokenizer *t;
  peri_handle *h = peri__handle_new(L, TOKENIZER, 0);
  if (peri_tokenizer_load(peri_lua_ctx(L), path, &t) != PERI_OK)
    return peri__fail_soft(L, "tokenizer.load");
  h->p = t;
  return 1;
}

static int l_parse (lua_State *L) {
  size_t n;
  peri_tokenizer *t;
  if (lua_type(L, 1) != LUA_TSTRING) peri__type_error(L, "tokenizer.parse", 1, "json", "a string");
  const char *text = lua_tolstring(L, 1, &n);
  peri_handle *h = peri__handle_new(L, TOKENIZER, 0);
  if (peri_tokenizer_parse(peri_lua_ctx(L), text, n, &t) != PERI_OK)
    return peri__fail_soft(L, "tokenizer.parse");
  h->p = t;
  return 1;
}

/* A list of strings at arg as texts in a new userdata, held by the list. */
static peri_text *texts_at (lua_State *L, int arg, const char *fn, const char *what,
                            lua_Integer *n) {
  if (lua_type(L, arg) != LUA_TTABLE) peri__type_error(L, fn, arg, what, "a list of strings");
  *n = (lua_Integer)lua_rawlen(L, arg);
  peri_text *text = (peri_text *)lua_newuserdatauv(L, (size_t)(*n + 1) * sizeof *text, 0);
  for (lua_Integer i = 0; i < *n; i++) {
    if (lua_rawgeti(L, arg, i + 1) != LUA_TSTRING)
      luaL_error(L, "%s: entry %I of %s is a %s, a string is expected", fn, (LUAI_UACINT)(i + 1),
                 what, luaL_typename(L, -1));
    text[i].s = lua_tolstring(L, -1, &text[i].n);
    lua_pop(L, 1);
  }
  return text;
}

static void drop_bytes (peri_ctx *ctx, void *p, size_t n) { peri_file_free(ctx, p, n); }

static int l_train (lua_State *L) {
  static const char fn[] = "tokenizer.train_bpe";
  lua_Integer n, n_special;
  int whole[2];
  const peri_text *text = texts_at(L, 1, fn, "texts", &n);
  const peri_text *special = texts_at(L, 2, fn, "special_tokens", &n_special);
  peri_bpe_options o;
  peri_bpe_options_init(&o);
  o.vocab_size = lua_tointegerx(L, 3, &whole[0]);
  o.min_count = lua_tointegerx(L, 4, &whole[1]);
  o.n_special = n_special;
  o.special = special;
  if (!whole[0]) peri__type_error(L, fn, 3, "vocab_size", "an integer");
  if (!whole[1]) peri__type_error(L, fn, 4, "min_count", "an integer");
  if (!lua_isnoneornil(L, 5)) {
    if (lua_type(L, 5) != LUA_TSTRING) peri__type_error(L, fn, 5, "pattern", "a string");
    o.pattern.s = lua_tolstring(L, 5, &o.pattern.n);
  }
  peri_keep *k = peri__keep_new(L, 0, drop_bytes);
  peri__check(L, fn, peri_tokenizer_train_bpe(peri_lua_ctx(L), n, text, &o, &k->p, &k->n));
  lua_pushlstring(L, (const char *)k->p, k->n);
  peri__keep_drop(L, k);
  return 1;
}

static int tokenizer_gc (lua_State *L) {
  peri_tokenizer_close((peri_tokenizer *)peri__handle_take(L, TOKENIZER));
  return 0;
}

/* ---- encoding ---- */

static int flags_at (lua_State *L, int arg) {
  return (lua_toboolean(L, arg) ? PERI_ENCODE_SPECIAL : 0) |
         (lua_toboolean(L, arg + 1) ? PERI_ENCODE_PARSE : 0);
}

static peri_text text_at (lua_State *L, int arg, const char *fn) {
  peri_text x;
  if (lua_type(L, arg) != LUA_TSTRING) peri__type_error(L, fn, arg, "text", "a string");
  x.s = lua_tolstring(L, arg, &x.n);
  return x;
}

static void push_ids (lua_State *L, const int32_t *ids, int64_t n) {
  const peri_ctx *ctx = BIND(L)->ctx;
  lua_createtable(L, n < INT32_MAX ? (int)n : 0, 0);
  for (int64_t i = 0; i < n;) {
    int64_t end = n - i < 65536 ? n : i + 65536;
    peri__look(L, ctx, i, "tokenizer");
    for (; i < end; i++) {
      lua_pushinteger(L, ids[i]);
      lua_rawseti(L, -2, (lua_Integer)i + 1);
    }
  }
}

static int l_encode (lua_State *L) {
  peri_tokenizer *t = self(L, "tokenizer:encode");
  peri_text text = text_at(L, 2, "tokenizer:encode");
  const int32_t *ids;
  int64_t n;
  peri__check(L, "tokenizer:encode", peri_tokenizer_encode(t, 1, &text, flags_at(L, 3), &ids, &n));
  push_ids(L, ids, n);
  return 1;
}

static int l_encode_batch (lua_State *L) {
  static const char fn[] = "tokenizer:encode_batch";
  peri_tokenizer *t = self(L, fn);
  lua_Integer n;
  const int32_t *ids;
  const peri_text *text = texts_at(L, 2, fn, "texts", &n);
  int64_t *ends = (int64_t *)lua_newuserdatauv(L, (size_t)(n + 1) * sizeof *ends, 0);
  peri__check(L, fn, peri_tokenizer_encode(t, n, text, flags_at(L, 3), &ids, ends));
  lua_createtable(L, n < INT32_MAX ? (int)n : 0, 0);
  for (lua_Integer i = 0; i < n; i++) {
    int64_t begin = i > 0 ? ends[i - 1] : 0;
    push_ids(L, ids + begin, ends[i] - begin);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

static int l_encode_tensor (lua_State *L) {
  static const char fn[] = "tokenizer:encode_tensor";
  peri_tokenizer *t = self(L, fn);
  peri_text text = text_at(L, 2, fn);
  int flags = flags_at(L, 3);
  const int32_t *ids;
  int64_t n;
  peri_tensor **out = peri__box_new(L);
  peri__check(L, fn, peri_tokenizer_encode(t, 1, &text, flags, &ids, &n));
  peri__check(L, fn, peri_empty(peri_lua_ctx(L), PERI_I64, 1, &n, out));
  int64_t *to = (int64_t *)peri_data(*out);
  for (int64_t i = 0; i < n; i++) to[i] = ids[i];
  peri__charge(L);
  return 1;
}

/* ---- decoding ---- */

/* Ids of a list or of an integer tensor, in a new userdata. */
static const int32_t *ids_at (lua_State *L, int arg, const char *fn, size_t *n) {
  peri_box *box = peri__box_at(L, peri__bind(L), arg);
  if (!box && lua_type(L, arg) != LUA_TTABLE)
    peri__type_error(L, fn, arg, "ids", "a list of ids or an integer tensor");
  peri_tensor *x = box ? peri__want_tensor(L, arg, fn, "ids") : NULL;
  *n = x ? (size_t)peri_numel(x) : (size_t)lua_rawlen(L, arg);
  int32_t *ids = (int32_t *)lua_newuserdatauv(L, (*n + 1) * sizeof *ids, 0);
  if (x) {
    peri_dtype d = peri_dtype_of(x);
    if (d != PERI_I64 && d != PERI_I32 && d != PERI_U8)
      luaL_error(L, "%s: ids are %s, integers are expected", fn, peri_dtype_name(d));
    for (size_t i = 0; i < *n; i++) {
      double id;
      peri__check(L, fn, peri_item(x, (int64_t)i, &id));
      ids[i] = id < 0 || id > INT32_MAX ? -1 : (int32_t)id;
    }
    return ids;
  }
  for (size_t i = 0; i < *n; i++) {
    int whole;
    lua_rawgeti(L, arg, (lua_Integer)i + 1);
    lua_Integer id = lua_tointegerx(L, -1, &whole);
    if (!whole)
      luaL_error(L, "%s: id %I is a %s, an integer is expected", fn, (LUAI_UACINT)i + 1,
                 luaL_typename(L, -1));
    ids[i] = id < 0 || id > INT32_MAX ? -1 : (int32_t)id;
    lua_pop(L, 1);
  }
  return ids;
}

static int l_decode (lua_State *L) {
  peri_tokenizer *t = self(L, "tokenizer:decode");
  bool skip = lua_toboolean(L, 3);
  size_t n;
  peri_text text;
  const int32_t *ids = ids_at(L, 2, "tokenizer:decode", &n);
  peri__check(L, "tokenizer:decode", peri_tokenizer_decode(t, ids, n, skip, &text));
  lua_pushlstring(L, text.s, text.n);
  return 1;
}

static int l_stream (lua_State *L) {
  peri_tokenizer *t = self(L, "tokenizer:stream");
  bool skip = lua_toboolean(L, 2);
  peri_token_stream *s;
  peri_handle *h = peri__handle_new(L, STREAM, 1);
  lua_pushvalue(L, 1); /* the stream keeps its tokenizer */
  lua_setiuservalue(L, -2, 1);
  peri__check(L, "tokenizer:stream", peri_token_stream_open(t, skip, &s));
  h->p = s;
  return 1;
}

static peri_token_stream *stream (lua_State *L, const char *fn) {
  peri_handle *h = (peri_handle *)luaL_testudata(L, 1, STREAM);
  if (!h || !h->p) peri__type_error(L, fn, 1, "self", STREAM);
  return (peri_token_stream *)h->p;
}

static int l_push (lua_State *L) {
  peri_token_stream *s = stream(L, "stream:push");
  peri_text text;
  int whole;
  lua_Integer id = lua_tointegerx(L, 2, &whole);
  if (!whole) peri__type_error(L, "stream:push", 2, "id", "an integer");
  if (id < 0 || id > INT32_MAX) id = -1;
  peri__check(L, "stream:push", peri_token_stream_push(s, (int32_t)id, &text));
  lua_pushlstring(L, text.s, text.n);
  return 1;
}

static int l_finish (lua_State *L) {
  peri_text text;
  peri__check(L, "stream:finish", peri_token_stream_finish(stream(L, "stream:finish"), &text));
  lua_pushlstring(L, text.s, text.n);
  return 1;
}

static int stream_gc (lua_State *L) {
  peri_token_stream_close((peri_token_stream *)peri__handle_take(L, STREAM));
  return 0;
}

/* ---- facts ---- */

static int l_id (lua_State *L) {
  peri_tokenizer *t = self(L, "tokenizer:id");
  peri_text x = text_at(L, 2, "tokenizer:id");
  int64_t id = peri_tokenizer_id(t, x.s, x.n);
  if (id < 0)
    lua_pushnil(L);
  else
    lua_pushinteger(L, (lua_Integer)id);
  return 1;
}

static int l_token (lua_State *L) {
  peri_tokenizer *t = self(L, "tokenizer:token");
  int whole;
  size_t n;
  lua_Integer id = lua_tointegerx(L, 2, &whole);
  if (!whole) peri__type_error(L, "tokenizer:token", 2, "id", "an integer");
  const char *s = peri_tokenizer_token(t, (int64_t)id, &n);
  if (s)
    lua_pushlstring(L, s, n);
  else
    lua_pushnil(L);
  return 1;
}

static int l_is_special (lua_State *L) {
  peri_tokenizer *t = self(L, "tokenizer:is_special");
  int whole;
  lua_Integer id = lua_tointegerx(L, 2, &whole);
  if (!whole) peri__type_error(L, "tokenizer:is_special", 2, "id", "an integer");
  lua_pushboolean(L, peri_tokenizer_is_special(t, (int64_t)id));
  return 1;
}

/* A list of { type =, text = 1 or 2 } and { type =, ids = {...} }; nil without a list of parts. */
static int l_parts (lua_State *L) {
  peri_tokenizer *t = self(L, "tokenizer:parts");
  const int32_t *ids;
  size_t n;
  int type_id, which;
  bool pair = lua_toboolean(L, 2) != 0;
  if (!peri_tokenizer_part(t, pair, 0, &type_id, &which, &ids, &n)) return 0;
  lua_newtable(L);
  for (size_t i = 0; peri_tokenizer_part(t, pair, i, &type_id, &which, &ids, &n); i++) {
    lua_createtable(L, 0, 2);
    lua_pushinteger(L, type_id);
    lua_setfield(L, -2, "type");
    if (n > 0)
      push_ids(L, ids, (int64_t)n);
    else
      lua_pushinteger(L, which + 1);
    lua_setfield(L, -2, n > 0 ? "ids" : "text");
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

static int l_facts (lua_State *L) {
  /* ORDER token role */
  static const char *const names[] = { "bos",        "eos",        "pad", "unk", "fim_prefix",
                                       "fim_suffix", "fim_middle", "cls", "sep", "mask" };
  peri_tokenizer *t = self(L, "tokenizer:facts");
  size_t n;
  lua_newtable(L);
  lua_pushinteger(L, (lua_Integer)peri_tokenizer_size(t));
  lua_setfield(L, -2, "size");
  for (int i = 0; i < PERI_TOKEN_NROLE; i++) {
    int64_t id = peri_tokenizer_role(t, (peri_token_role)i);
    if (id < 0) continue;
    lua_pushinteger(L, (lua_Integer)id);
    lua_setfield(L, -2, names[i]);
  }
  const int32_t *ends = peri_tokenizer_ends(t, &n);
  push_ids(L, ends, (int64_t)n);
  lua_setfield(L, -2, "eos_ids");
  /* ORDER side: peri_side */
  static const char *const sides[] = { NULL, "left", "right" };
  lua_pushstring(L, sides[peri_tokenizer_padding(t)]); /* NULL: nil */
  lua_setfield(L, -2, "padding_side");
  lua_pushstring(L, sides[peri_tokenizer_truncation(t)]);
  lua_setfield(L, -2, "truncation_side");
  if (peri_tokenizer_max_length(t) > 0) {
    lua_pushinteger(L, (lua_Integer)peri_tokenizer_max_length(t));
    lua_setfield(L, -2, "model_max_length");
  }
  const char *source = peri_tokenizer_template(t, &n);
  if (source) {
    lua_pushlstring(L, source, n);
    lua_setfield(L, -2, "chat_template");
  }
  return 1;
}

static void set_flag (lua_State *L, const char *name, bool on) {
  lua_pushboolean(L, on);
  lua_setfield(L, -2, name);
}

static int l_added (lua_State *L) {
  peri_tokenizer *t = self(L, "tokenizer:added");
  peri_added_token a = { .struct_size = sizeof a };
  lua_newtable(L);
  for (int64_t i = 0; i < peri_tokenizer_added_count(t); i++) {
    peri__check(L, "tokenizer:added", peri_tokenizer_added(t, i, &a));
    lua_createtable(L, 0, 7);
    lua_pushinteger(L, (lua_Integer)a.id);
    lua_setfield(L, -2, "id");
    lua_pushlstring(L, a.text.s, a.text.n);
    lua_setfield(L, -2, "content");
    set_flag(L, "special", a.special);
    set_flag(L, "normalized", a.normalized);
    set_flag(L, "single_word", a.single_word);
    set_flag(L, "lstrip", a.lstrip);
    set_flag(L, "rstrip", a.rstrip);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

static int l_describe (lua_State *L) {
  peri__described d;
  peri__tokenizer_describe(self(L, "tokenizer:describe"), &d);
  lua_newtable(L);
  set_flag(L, "byte_level", d.byte_level);
  set_flag(L, "prefix_space", d.prefix_space);
  set_flag(L, "prepends", d.prepends);
  if (!d.is_bert) return 1;
  lua_newtable(L);
  set_flag(L, "clean_text", d.bert.clean);
  set_flag(L, "handle_chinese_chars", d.bert.chinese);
  set_flag(L, "strip_accents", d.bert.accents);
  set_flag(L, "lowercase", d.bert.lower);
  lua_setfield(L, -2, "bert");
  return 1;
}

static int l_pre_names (lua_State *L) {
  peri__pre_name p;
  lua_newtable(L);
  for (size_t i = 0; peri__pre_name_at(i, &p); i++) {
    lua_createtable(L, 0, 7);
    lua_pushstring(L, p.name);
    lua_setfield(L, -2, "name");
    lua_createtable(L, p.n, 0);
    for (int k = 0; k < p.n; k++) {
      lua_pushstring(L, p.patterns[k]);
      lua_rawseti(L, -2, k + 1);
    }
    lua_setfield(L, -2, "patterns");
    set_flag(L, "byte_level", p.facts.byte_level);
    set_flag(L, "ignore_merges", p.facts.ignore_merges);
    set_flag(L, "escape_spaces", p.facts.escape_spaces);
    set_flag(L, "whole_lines", p.facts.whole_lines);
    set_flag(L, "add_bos", p.facts.add_bos);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

static int l_pre_steps (lua_State *L) {
  const peri__pre_step *s;
  lua_newtable(L);
  for (size_t i = 0; (s = peri__pre_step_at(i)) != NULL; i++) {
    lua_pushstring(L, s->pattern);
    lua_setfield(L, -2, s->name);
  }
  return 1;
}

/* ---- opening ---- */

static const peri_reg tokenizer_meta[] = { { "__gc", NULL, NULL, tokenizer_gc },
                                           { NULL, NULL, NULL, NULL } };

static const peri_reg tokenizer_methods[] = {
  { "encode", "self, text, special, parse", "Ids of a text as a list.", l_encode },
  { "encode_batch", "self, texts, special, parse", "Ids of many texts as a list of lists.",
    l_encode_batch },
  { "encode_tensor", "self, text, special, parse", "Ids of a text as an i64 tensor.",
    l_encode_tensor },
  { "decode", "self, ids, skip_special", "Text of a list or tensor of ids.", l_decode },
  { "stream", "self, skip_special", "A decoder that takes one id at a time.", l_stream },
  { "id", "self, token", "Id of a token as the vocabulary writes it, or nil.", l_id },
  { "token", "self, id", "A token as the vocabulary writes it, or nil.", l_token },
  { "is_special", "self, id", "Whether decoding with skip_special leaves an id out.",
    l_is_special },
  { "facts", "self", "Size, ids of special tokens, sides and length of batches, chat template.",
    l_facts },
  { "parts", "self, pair", "Special tokens around a text or a pair, in order.", l_parts },
  { "describe", "self", "What it does to a text after all settings of its files.", l_describe },
  { "added", "self", "Tokens that texts are searched for, with their flags.", l_added },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg stream_meta[] = { { "__gc", NULL, NULL, stream_gc },
                                        { "__close", NULL, NULL, stream_gc },
                                        { NULL, NULL, NULL, NULL } };

static const peri_reg stream_methods[] = {
  { "push", "self, id", "Text that is certain with this id: whole characters, or \"\".", l_push },
  { "finish", "self", "Text that was held back; then the stream begins anew.", l_finish },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg functions[] = {
  { "load", "path", "A tokenizer from a folder or file, or nil and a message.", l_load },
  { "parse", "json", "A tokenizer from the text of a tokenizer.json, or nil and a message.",
    l_parse },
  { "train_bpe", "texts, special_tokens, vocab_size, min_count, pattern?",
    "The text of a tokenizer.json with a byte-level BPE vocabulary of texts.", l_train },
  { "pre_names", "", "Names of tokenizer.ggml.pre with their patterns.", l_pre_names },
  { "pre_steps", "", "Patterns of the steps of a tokenizer.json that name none.", l_pre_steps },
  { NULL, NULL, NULL, NULL }
};

int peri__open_tokenizer (lua_State *L) {
  peri__metatable(L, TOKENIZER, tokenizer_meta, tokenizer_methods);
  peri__metatable(L, STREAM, stream_meta, stream_methods);
  lua_pop(L, 2);
  lua_newtable(L);
  peri__register(L, functions);
  return 1;
}
