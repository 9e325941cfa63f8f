/*
** train.c - a byte-level BPE vocabulary from texts (Sennrich et al. 2016), written as tokenizer.json.
** The most frequent pair is merged first, of equal ones the one whose ids are smaller, so the result
** depends on the texts alone.
*/
#include <string.h>

#include "text/tokenizer.h"

#define NONE UINT32_MAX
#define BLOCK ((size_t)1 << 20) /* bytes of text that are split at a time */

typedef struct word {
  uint32_t at, n; /* symbols */
  int64_t count;
} word;

typedef struct pair {
  uint32_t left, right;
  int64_t count;
  uint32_t words; /* list of places: words that have the pair, or had it */
  uint32_t used;  /* NONE: an empty slot */
  bool touched;   /* waits to be put into the heap */
} pair;

typedef struct place {
  uint32_t word, next;
} place;

typedef struct want {
  int64_t count;
  uint32_t left, right;
} want;

typedef struct trainer {
  peri_ctx *ctx;
  const peri_bpe_options *o;
  peri__splitter *splitter;
  peri__text_state *state;
  peri__vocab pieces; /* distinct pieces by number */
  int64_t *counts;    /* of them */
  uint32_t *symbol;   /* of all words */
  word *word;
  pair *pair; /* hash table */
  place *place;
  want *heap, *touched;
  peri__buffer bytes; /* of all tokens so far, one after the other */
  uint32_t *token;    /* where each begins in bytes, and one more */
  size_t cap_counts, n_words, cap_symbols, n_pairs, cap_pairs, n_places, cap_places, n_heap,
      cap_heap, n_touched, cap_touched, n_tokens, cap_tokens;
  uint32_t (*merge)[2]; /* ids in order of rank */
  size_t n_merges, cap_merges;
} trainer;

/* ---- words ---- */

static peri_status add_piece (trainer *t, const char *s, size_t n) {
  int32_t i = peri__vocab_find(&t->pieces, s, n);
  if (i < 0) {
    size_t at = t->pieces.size;
    if (at >= NONE - 1)
      return peri__fail(t->ctx, PERI_EINVAL, "more than %zu different pieces", at);
    TRY(peri__grow(t->ctx, &t->counts, &t->cap_counts, at + 1, sizeof *t->counts, "pieces"));
    TRY(peri__vocab_put(&t->pieces, (int64_t)at, s, n, false));
    t->counts[at] = 0;
    i = (int32_t)at;
  }
  t->counts[i]++;
  return PERI_OK;
}

/* Where a text may be cut: behind the last newline that no space follows; else anywhere between
** characters. */
static size_t cut (const char *s, size_t n) {
  if (n <= BLOCK) return n;
  for (size_t i = BLOCK; i > BLOCK / 2; i--)
    if (s[i - 1] == '\n' && (unsigned char)s[i] > ' ' && (unsigned char)s[i] < 0x80) return i;
  size_t i = BLOCK;
  while (i > 1 && ((unsigned char)s[i] & 0xC0) == 0x80) i--;
  return i;
}

static peri_status count_words (trainer *t, const char *s, size_t n) {
  while (n > 0) {
    size_t k = cut(s, n);
    peri__pieces p;
    if (peri__stopped(t->ctx)) return peri__fail(t->ctx, PERI_EINTR, "training was interrupted");
    peri_status status = peri__split(t->splitter, t->state, s, k, true, &p);
    if (status != PERI_OK) return peri__text_fail(t->state, status);
    for (size_t i = 0; i < p.n; i++) TRY(add_piece(t, p.text + p.at[i].offset, p.at[i].size));
    s += k;
    n -= k;
  }
  return PERI_OK;
}

static peri_status read_texts (trainer *t, int64_t n, const peri_text *text) {
  peri__buffer repaired = { .ctx = t->ctx };
  peri_status s = PERI_OK;
  for (int64_t i = 0; s == PERI_OK && i < n; i++) {
    peri_text x = text[i];
    if (peri__utf8_prefix(x.s, x.n) != x.n) {
      repaired.size = 0;
      if (!peri__utf8_repair(&repaired, x.s, x.n)) {
        s = peri__fail(t->ctx, PERI_ENOMEM, "no memory for a text of %zu bytes", x.n);
        break;
      }
      x = (peri_text){ repaired.data, repaired.size };
    }
    s = count_words(t, x.s, x.n);
  }
  peri__buffer_free(&repaired);
  return s;
}

/* ---- pairs ---- */

static size_t slot_of (const trainer *t, uint32_t left, uint32_t right) {
  uint64_t h = ((uint64_t)left << 32 | right) * 0x9FB21C651E98DF25u;
  h ^= h >> 32;
  h *= 0xD6E8FEB86659FD93u;
  size_t i = (h >> 32) & (t->cap_pairs - 1);
  while (t->pair[i].used != NONE && (t->pair[i].left != left || t->pair[i].right != right))
    i = (i + 1) & (t->cap_pairs - 1);
  return i;
}

static peri_status grow_pairs (trainer *t) {
  size_t was = t->cap_pairs, cap = was == 0 ? 1024 : 2 * was;
  pair *old = t->pair, *p = peri__malloc(t->ctx, cap * sizeof *p);
  if (p == NULL) return peri__fail(t->ctx, PERI_ENOMEM, "no memory for %zu pairs", t->n_pairs);
  for (size_t i = 0; i < cap; i++) p[i].used = NONE;
  t->pair = p;
  t->cap_pairs = cap;
  for (size_t i = 0; i < was; i++)
    if (old[i].used != NONE) p[slot_of(t, old[i].left, old[i].right)] = old[i];
  peri__free(t->ctx, old, was * sizeof *old);
  return PERI_OK;
}

/* Change the count of a pair by that of a word. there: the word has the pair from now on. */
static peri_status count_pair (trainer *t, uint32_t left, uint32_t right, int64_t by, uint32_t w,
                               bool there) {
  if (4 * (t->n_pairs + 1) > 3 * t->cap_pairs) TRY(grow_pairs(t));
  pair *p = &t->pair[slot_of(t, left, right)];
  if (p->used == NONE) {
    *p = (pair){ .left = left, .right = right, .words = NONE };
    t->n_pairs++;
  }
  p->count += by;
  if (by > 0 && !p->touched) {
    TRY(peri__grow(t->ctx, &t->touched, &t->cap_touched, t->n_touched + 1, sizeof *t->touched,
                   "pairs"));
    p->touched = true;
    t->touched[t->n_touched++] = (want){ 0, left, right };
  }
  if (!there || (p->words != NONE && t->place[p->words].word == w)) return PERI_OK;
  if (t->n_places >= NONE - 1)
    return peri__fail(t->ctx, PERI_EINVAL, "texts with more than %zu places of pairs", t->n_places);
  TRY(peri__grow(t->ctx, &t->place, &t->cap_places, t->n_places + 1, sizeof *t->place, "places"));
  p = &t->pair[slot_of(t, left, right)];
  t->place[t->n_places] = (place){ w, p->words };
  p->words = (uint32_t)t->n_places++;
  return PERI_OK;
}

static bool before (const want *a, const want *b) {
  if (a->count != b->count) return a->count > b->count;
  return a->left != b->left ? a->left < b->left : a->right < b->right;
}

static peri_status push (trainer *t, want x) {
  TRY(peri__grow(t->ctx, &t->heap, &t->cap_heap, t->n_heap + 1, sizeof *t->heap, "pairs"));
  size_t k = t->n_heap++;
  for (; k > 0 && before(&x, &t->heap[(k - 1) / 2]); k = (k - 1) / 2)
    t->heap[k] = t->heap[(k - 1) / 2];
  t->heap[k] = x;
  return PERI_OK;
}

/* Put all pairs that became more frequent into the heap. */
static peri_status push_touched (trainer *t) {
  for (size_t i = 0; i < t->n_touched; i++) {
    want x = t->touched[i];
    pair *p = &t->pair[slot_of(t, x.left, x.right)];
    p->touched = false;
    if (p->count > 0) TRY(push(t, (want){ p->count, x.left, x.right }));
  }
  t->n_touched = 0;
  return PERI_OK;
}

static want pop (trainer *t) {
  want top = t->heap[0], last = t->heap[--t->n_heap];
  size_t k = 0;
  for (size_t child; (child = 2 * k + 1) < t->n_heap; k = child) {
    if (child + 1 < t->n_heap && before(&t->heap[child + 1], &t->heap[child])) child++;
    if (!before(&t->heap[child], &last)) break;
    t->heap[k] = t->heap[child];
  }
  t->heap[k] = last;
  return top;
}

/* ---- tokens ---- */

static peri_status add_token (trainer *t, const void *s, size_t n) {
  TRY(peri__grow(t->ctx, &t->token, &t->cap_tokens, t->n_tokens + 2, sizeof *t->token, "tokens"));
  if (t->bytes.size + n >= NONE || !peri__buffer_put(&t->bytes, s, n))
    return peri__fail(t->ctx, PERI_ENOMEM, "no memory for %zu tokens", t->n_tokens);
  t->token[++t->n_tokens] = (uint32_t)t->bytes.size;
  return PERI_OK;
}

/* Ids: special tokens, bytes in the order of their characters, merges. */
static peri_status first_tokens (trainer *t, uint32_t of_byte[256]) {
  TRY(peri__grow(t->ctx, &t->token, &t->cap_tokens, 1, sizeof *t->token, "tokens"));
  t->token[0] = 0;
  for (int64_t i = 0; i < t->o->n_special; i++)
    TRY(add_token(t, t->o->special[i].s, t->o->special[i].n));
  for (uint32_t c = 0; c < 0x144; c++)
    for (int b = 0; b < 256; b++) {
      if (peri__byte_level[b] != c) continue;
      unsigned char byte = (unsigned char)b;
      of_byte[b] = (uint32_t)t->n_tokens;
      TRY(add_token(t, &byte, 1));
    }
  return PERI_OK;
}

static peri_status first_pairs (trainer *t, const uint32_t of_byte[256]) {
  size_t at = 0;
  t->n_words = t->pieces.size;
  t->word = peri__malloc(t->ctx, t->n_words * sizeof *t->word);
  t->cap_symbols = t->pieces.blob_size;
  t->symbol = peri__malloc(t->ctx, t->cap_symbols * sizeof *t->symbol);
  if (t->n_words > 0 && (t->word == NULL || t->symbol == NULL))
    return peri__fail(t->ctx, PERI_ENOMEM, "no memory for %zu different pieces", t->n_words);
  for (uint32_t w = 0; w < t->n_words; w++) {
    size_t n = 0;
    const char *s = peri__vocab_text(&t->pieces, w, &n);
    t->word[w] = (word){ (uint32_t)at, (uint32_t)n, t->counts[w] };
    for (size_t i = 0; i < n; i++) t->symbol[at++] = of_byte[(unsigned char)s[i]];
    for (size_t i = 0; i + 1 < n; i++) {
      const uint32_t *x = t->symbol + t->word[w].at + i;
      TRY(count_pair(t, x[0], x[1], t->counts[w], w, true));
    }
  }
  return push_touched(t);
}

/* ---- merging ---- */

/* Merge a pair in one word and count what that changes. */
static peri_status merge_word (trainer *t, uint32_t w, uint32_t left, uint32_t right, uint32_t id) {
  word *x = &t->word[w];
  uint32_t *s = t->symbol + x->at, n = x->n, k = 0;
  for (uint32_t i = 0; i < n;) {
    if (i + 1 >= n || s[i] != left || s[i + 1] != right) {
      s[k++] = s[i++];
      continue;
    }
    if (k > 0) {
      TRY(count_pair(t, s[k - 1], left, -x->count, w, false));
      TRY(count_pair(t, s[k - 1], id, x->count, w, true));
    }
    if (i + 2 < n) {
      TRY(count_pair(t, right, s[i + 2], -x->count, w, false));
      TRY(count_pair(t, id, s[i + 2], x->count, w, true));
    }
    s[k++] = id;
    i += 2;
  }
  x->n = k;
  return PERI_OK;
}

static peri_status merge (trainer *t, pair p) {
  uint32_t id = (uint32_t)t->n_tokens;
  TRY(peri__grow(t->ctx, &t->token, &t->cap_tokens, t->n_tokens + 2, sizeof *t->token, "tokens"));
  const uint32_t *at = t->token;
  size_t a = at[p.left + 1] - at[p.left], b = at[p.right + 1] - at[p.right];
  /* Room first, so that the two do not move while they are copied. */
  if (t->bytes.size + a + b >= NONE || !peri__buffer_reserve(&t->bytes, a + b))
    return peri__fail(t->ctx, PERI_ENOMEM, "no memory for %zu tokens", t->n_tokens);
  peri__buffer_put(&t->bytes, t->bytes.data + at[p.left], a);
  peri__buffer_put(&t->bytes, t->bytes.data + at[p.right], b);
  t->token[++t->n_tokens] = (uint32_t)t->bytes.size;
  TRY(peri__grow(t->ctx, &t->merge, &t->cap_merges, t->n_merges + 1, sizeof *t->merge, "merges"));
  t->merge[t->n_merges][0] = p.left;
  t->merge[t->n_merges++][1] = p.right;
  for (uint32_t i = p.words; i != NONE; i = t->place[i].next)
    TRY(merge_word(t, t->place[i].word, p.left, p.right, id));
  pair *done = &t->pair[slot_of(t, p.left, p.right)];
  done->count = 0;
  done->words = NONE;
  return push_touched(t);
}

static peri_status merge_all (trainer *t) {
  while (t->n_heap > 0 && (int64_t)t->n_tokens < t->o->vocab_size) {
    want x = pop(t);
    pair p = t->pair[slot_of(t, x.left, x.right)];
    if (p.count < t->o->min_count || p.count < 1) continue;
    if (p.count != x.count) { /* it changed meanwhile: its turn comes later */
      if (p.count < x.count) TRY(push(t, (want){ p.count, x.left, x.right }));
      continue;
    }
    if (peri__stopped(t->ctx)) return peri__fail(t->ctx, PERI_EINTR, "training was interrupted");
    TRY(merge(t, p));
  }
  return PERI_OK;
}

/* ---- writing ---- */

static void put_text (peri_json_writer *w, const char *s) { peri_json_put_string(w, s, strlen(s)); }
static void put_key (peri_json_writer *w, const char *s) { peri_json_put_key(w, s, strlen(s)); }
static void put_flag (peri_json_writer *w, const char *key, bool v) {
  put_key(w, key);
  peri_json_put_bool(w, v);
}

static void put_byte_level (peri_json_writer *w, bool pattern) {
  peri_json_put_object(w);
  put_key(w, "type");
  put_text(w, "ByteLevel");
  put_flag(w, "add_prefix_space", false);
  put_flag(w, "trim_offsets", true);
  put_flag(w, "use_regex", pattern);
  peri_json_put_close(w);
}

static void put_splitter (peri_json_writer *w, const peri_text *pattern) {
  if (pattern->s == NULL) {
    put_byte_level(w, true);
    return;
  }
  peri_json_put_object(w);
  put_key(w, "type");
  put_text(w, "Sequence");
  put_key(w, "pretokenizers");
  peri_json_put_array(w);
  peri_json_put_object(w);
  put_key(w, "type");
  put_text(w, "Split");
  put_key(w, "pattern");
  peri_json_put_object(w);
  put_key(w, "Regex");
  peri_json_put_string(w, pattern->s, pattern->n);
  peri_json_put_close(w);
  put_key(w, "behavior");
  put_text(w, "Isolated");
  put_flag(w, "invert", false);
  peri_json_put_close(w);
  put_byte_level(w, false);
  peri_json_put_close(w);
  peri_json_put_close(w);
}

/* A token as the vocabulary writes it, in room. */
static peri_status written (const trainer *t, uint32_t id, peri__buffer *room) {
  const char *s = t->bytes.data + t->token[id];
  size_t n = t->token[id + 1] - t->token[id];
  room->size = 0;
  bool ok = id < (uint32_t)t->o->n_special ? peri__buffer_put(room, s, n)
                                           : peri__byte_level_map(room, s, n);
  return ok ? PERI_OK : peri__fail(t->ctx, PERI_ENOMEM, "no memory to write a vocabulary");
}

static peri_status put_model (const trainer *t, peri_json_writer *w, peri__buffer *room) {
  static const char *const null[] = { "dropout", "unk_token", "continuing_subword_prefix",
                                      "end_of_word_suffix" };
  static const char *const off[] = { "fuse_unk", "byte_fallback", "ignore_merges" };
  peri_json_put_object(w);
  put_key(w, "type");
  put_text(w, "BPE");
  for (size_t i = 0; i < sizeof null / sizeof *null; i++) {
    put_key(w, null[i]);
    peri_json_put_null(w);
  }
  for (size_t i = 0; i < sizeof off / sizeof *off; i++) put_flag(w, off[i], false);
  put_key(w, "vocab");
  peri_json_put_object(w);
  for (uint32_t id = 0; id < t->n_tokens; id++) {
    TRY(written(t, id, room));
    peri_json_put_key(w, room->data, room->size);
    peri_json_put_int(w, id);
  }
  peri_json_put_close(w);
  put_key(w, "merges");
  peri_json_put_array(w);
  for (size_t i = 0; i < t->n_merges; i++) {
    peri_json_put_array(w);
    for (int k = 0; k < 2; k++) {
      TRY(written(t, t->merge[i][k], room));
      peri_json_put_string(w, room->data, room->size);
    }
    peri_json_put_close(w);
  }
  peri_json_put_close(w);
  peri_json_put_close(w);
  return PERI_OK;
}

static void put_added (const trainer *t, peri_json_writer *w) {
  static const char *const off[] = { "single_word", "lstrip", "rstrip", "normalized" };
  peri_json_put_array(w);
  for (int64_t i = 0; i < t->o->n_special; i++) {
    peri_json_put_object(w);
    put_key(w, "id");
    peri_json_put_int(w, i);
    put_key(w, "content");
    peri_json_put_string(w, t->o->special[i].s, t->o->special[i].n);
    for (size_t k = 0; k < sizeof off / sizeof *off; k++) put_flag(w, off[k], false);
    put_flag(w, "special", true);
    peri_json_put_close(w);
  }
  peri_json_put_close(w);
}

static peri_status put_all (const trainer *t, peri_json_writer *w) {
  peri__buffer room = { .ctx = t->ctx };
  peri_json_put_object(w);
  put_key(w, "version");
  put_text(w, "1.0");
  put_key(w, "truncation");
  peri_json_put_null(w);
  put_key(w, "padding");
  peri_json_put_null(w);
  put_key(w, "added_tokens");
  put_added(t, w);
  put_key(w, "normalizer");
  peri_json_put_null(w);
  put_key(w, "pre_tokenizer");
  put_splitter(w, &t->o->pattern);
  put_key(w, "post_processor");
  peri_json_put_null(w);
  put_key(w, "decoder");
  put_byte_level(w, true);
  put_key(w, "model");
  peri_status s = put_model(t, w, &room);
  peri_json_put_close(w);
  peri__buffer_free(&room);
  TRY(s);
  return peri_json_finish(w);
}

/* ---- the whole ---- */

void peri_bpe_options_init (peri_bpe_options *o) {
  if (o) *o = (peri_bpe_options){ .struct_size = sizeof *o, .vocab_size = 256 };
}

static peri_status check (peri_ctx *ctx, const peri_bpe_options *o) {
  if (o->struct_size != sizeof *o) /* the one size that it has had */
    return peri__fail(ctx, PERI_EINVAL,
                      "peri_bpe_options.struct_size is %u: peri_bpe_options_init "
                      "sets it",
                      o->struct_size);
  if (o->n_special < 0 || o->n_special > 65536)
    return peri__fail(ctx, PERI_EINVAL, "%lld special tokens, must be in [0, 65536]",
                      (long long)o->n_special);
  TRY(peri__check_texts(ctx, o->n_special, o->special, "special token"));
  if (o->pattern.n > 0) NEED(ctx, o->pattern.s);
  if (o->vocab_size < 256 + o->n_special || o->vocab_size > PERI__TOKENS_MAX)
    return peri__fail(ctx, PERI_EINVAL,
                      "vocab_size %lld, must be in [%lld, %lld]: 256 bytes and the special tokens",
                      (long long)o->vocab_size, (long long)(256 + o->n_special),
                      (long long)PERI__TOKENS_MAX);
  for (int64_t i = 0; i < o->n_special; i++) {
    const peri_text *x = &o->special[i];
    if (x->n == 0 || x->n > PERI__ADDED_BYTES || peri__utf8_prefix(x->s, x->n) != x->n)
      return peri__fail(ctx, PERI_EINVAL, "special token %s must be UTF-8 of 1 to %d bytes",
                        peri__nth(ctx, i), PERI__ADDED_BYTES);
  }
  return PERI_OK;
}

static peri_status train (trainer *t, int64_t n, const peri_text *text, peri_json_writer *w) {
  uint32_t of_byte[256];
  peri_json_writer v;
  peri_json_begin(&v, t->ctx, 0, PERI_JSON_NAN_ERROR);
  put_splitter(&v, &t->o->pattern);
  peri_status s = peri_json_finish(&v);
  if (s == PERI_OK) s = peri__splitter_parse(t->ctx, v.text, &t->splitter);
  peri_json_drop(&v);
  TRY(s);
  TRY(peri__text_state_open(t->ctx, &t->state));
  TRY(read_texts(t, n, text));
  TRY(first_tokens(t, of_byte));
  TRY(first_pairs(t, of_byte));
  TRY(merge_all(t));
  return put_all(t, w);
}

peri_status peri_tokenizer_train_bpe (peri_ctx *ctx, int64_t n, const peri_text *text,
                                      const peri_bpe_options *o, void **json, size_t *size) {
  NEED(ctx, ctx);
  NEED(ctx, o);
  NEED(ctx, json);
  NEED(ctx, size);
  TRY(peri__check_texts(ctx, n, text, "text"));
  trainer t = { .ctx = ctx, .o = o, .bytes.ctx = ctx };
  peri_json_writer w;
  TRY(check(ctx, o));
  peri__vocab_open(&t.pieces, ctx);
  peri_json_begin(&w, ctx, 0, PERI_JSON_NAN_ERROR);
  peri_status s = train(&t, n, text, &w);
  if (s == PERI_OK) {
    *json = peri__malloc(ctx, w.size);
    *size = w.size;
    if (*json != NULL)
      memcpy(*json, w.text, w.size);
    else
      s = peri__fail(ctx, PERI_ENOMEM, "no memory for a vocabulary of %zu bytes", w.size);
  }
  peri_json_drop(&w);
  peri__text_state_close(t.state);
  peri__splitter_free(t.splitter);
  peri__vocab_close(&t.pieces);
  peri__buffer_free(&t.bytes);
  peri__free(ctx, t.counts, t.cap_counts * sizeof *t.counts);
  peri__free(ctx, t.word, t.n_words * sizeof *t.word);
  peri__free(ctx, t.symbol, t.cap_symbols * sizeof *t.symbol);
  peri__free(ctx, t.pair, t.cap_pairs * sizeof *t.pair);
  peri__free(ctx, t.place, t.cap_places * sizeof *t.place);
  peri__free(ctx, t.heap, t.cap_heap * sizeof *t.heap);
  peri__free(ctx, t.touched, t.cap_touched * sizeof *t.touched);
  peri__free(ctx, t.token, t.cap_tokens * sizeof *t.token);
  peri__free(ctx, t.merge, t.cap_merges * sizeof *t.merge);
  return s;
}
