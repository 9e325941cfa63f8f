/*
** bpe.c - byte pair encoding of one piece: by ranked merges (Sennrich et al. 2016, as GPT-2 and
** Hugging Face's tokenizers do it) or by the scores of tokens (SentencePiece's BPE, as llama.cpp does
** it). The lowest rank goes first, of equal ones the leftmost. Short pieces are scanned, long ones use
** a heap: O(n log n).
*/
#include <string.h>

#include "text/tokenizer.h"

#define NO_RANK UINT32_MAX
#define SHORT 40 /* symbols that scanning beats a heap for */

/* ---- merges ---- */

void peri__merges_open (peri__merges *m, peri_ctx *ctx) {
  memset(m, 0, sizeof *m);
  m->ctx = ctx;
  m->seed = peri__hash_seed(m) | 1;
}

void peri__merges_close (peri__merges *m) {
  if (m->ctx == NULL) return;
  peri__free(m->ctx, m->slot, m->slots * sizeof *m->slot);
  memset(m, 0, sizeof *m);
}

static size_t slot_of (const peri__merges *m, uint32_t left, uint32_t right) {
  uint64_t h = ((uint64_t)left << 32 | right) * m->seed;
  h ^= h >> 32;
  h *= 0xD6E8FEB86659FD93u;
  size_t i = (h >> 32) & (m->slots - 1);
  while (m->slot[i].id != PERI__NO_TOKEN && (m->slot[i].left != left || m->slot[i].right != right))
    i = (i + 1) & (m->slots - 1);
  return i;
}

static peri_status grow (peri__merges *m) {
  size_t was = m->slots, slots = was == 0 ? 64 : 2 * was;
  peri__merge *old = m->slot, *slot = peri__malloc(m->ctx, slots * sizeof *slot);
  if (slot == NULL) return peri__fail(m->ctx, PERI_ENOMEM, "no memory for %zu merges", m->n);
  for (size_t i = 0; i < slots; i++) slot[i].id = PERI__NO_TOKEN;
  m->slot = slot;
  m->slots = slots;
  for (size_t i = 0; i < was; i++)
    if (old[i].id != PERI__NO_TOKEN) slot[slot_of(m, old[i].left, old[i].right)] = old[i];
  peri__free(m->ctx, old, was * sizeof *old);
  return PERI_OK;
}

peri_status peri__merges_put (peri__merges *m, uint32_t left, uint32_t right, uint32_t rank,
                              uint32_t id) {
  if (4 * (m->n + 1) > 3 * m->slots) TRY(grow(m));
  size_t i = slot_of(m, left, right);
  m->n += m->slot[i].id == PERI__NO_TOKEN;
  m->slot[i] = (peri__merge){ left, right, rank, id };
  return PERI_OK;
}

const peri__merge *peri__merges_find (const peri__merges *m, uint32_t left, uint32_t right) {
  if (m->n == 0) return NULL;
  const peri__merge *x = &m->slot[slot_of(m, left, right)];
  return x->id == PERI__NO_TOKEN ? NULL : x;
}

/* ---- short pieces ---- */

/* Merge n <= SHORT ids in place; how many are left. */
static size_t merge_short (const peri__merges *m, int32_t *id, size_t n) {
  uint64_t pair[SHORT]; /* rank and result of each symbol with the one behind it */
  const peri__merge *x;
  for (size_t i = 0; i + 1 < n; i++)
    pair[i] = (x = peri__merges_find(m, (uint32_t)id[i], (uint32_t)id[i + 1])) == NULL
                  ? UINT64_MAX
                  : (uint64_t)x->rank << 32 | x->id;
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; i++)
      if (pair[i] < pair[best]) best = i;
    if (pair[best] == UINT64_MAX) break;
    id[best] = (int32_t)(uint32_t)pair[best];
    n--;
    for (size_t i = best + 1; i < n; i++) {
      id[i] = id[i + 1];
      pair[i - 1] = pair[i];
    }
    if (best > 0)
      pair[best - 1] =
          (x = peri__merges_find(m, (uint32_t)id[best - 1], (uint32_t)id[best])) == NULL
              ? UINT64_MAX
              : (uint64_t)x->rank << 32 | x->id;
    if (best + 1 < n)
      pair[best] = (x = peri__merges_find(m, (uint32_t)id[best], (uint32_t)id[best + 1])) == NULL
                       ? UINT64_MAX
                       : (uint64_t)x->rank << 32 | x->id;
  }
  return n;
}

/* ---- long pieces ---- */

typedef struct symbol {
  int32_t id;          /* -1: bytes that no token has */
  uint32_t prev, next; /* NO_RANK: none */
  uint32_t rank;       /* of the pair with the next one; NO_RANK: no such pair, or merged away */
  uint32_t result;     /* of that pair */
  uint32_t at, size;   /* SPM: bytes of the text */
} symbol;

typedef struct chain {
  const peri__model *m;
  const char *text;    /* SPM */
  peri__buffer *taken; /* SPM with unused tokens: pairs that would make one; else NULL */
  bool no_memory;
  const peri_ctx *ctx;
  symbol *s;
  uint64_t *heap; /* rank << 32 | position */
  size_t n;       /* in the heap */
} chain;

/* How an unused token came about: from its first left bytes and the rest. */
typedef struct taken {
  int32_t id;
  uint32_t left;
} taken;

static bool has_bit (const uint8_t *bits, int32_t id) {
  return bits != NULL && (bits[id / 8] >> (id % 8) & 1) != 0;
}

/* Higher scores get lower ranks, in the order of floats. */
static uint32_t rank_of_score (float score) {
  uint32_t u;
  score += 0.0f; /* no negative zero */
  memcpy(&u, &score, sizeof u);
  u = u & 0x80000000u ? u : ~u & 0x7FFFFFFFu;
  return u == NO_RANK ? u - 1 : u;
}

static void look (chain *c, uint32_t i) {
  symbol *s = &c->s[i];
  s->rank = NO_RANK;
  if (s->next == NO_RANK) return;
  const symbol *r = &c->s[s->next];
  if (c->m->kind == PERI__MODEL_SPM) {
    int32_t id = peri__vocab_find(&c->m->vocab, c->text + s->at, (size_t)s->size + r->size);
    if (id < 0 || (c->m->exact && has_bit(c->m->left_out, id))) return;
    if (c->taken != NULL && has_bit(c->m->unused, id)) {
      const taken pair = { id, s->size };
      if (!peri__buffer_put(c->taken, &pair, sizeof pair)) c->no_memory = true;
    }
    s->rank = rank_of_score(c->m->score[id]);
    s->result = (uint32_t)id;
    return;
  }
  const peri__merge *x = peri__merges_find(&c->m->merges, (uint32_t)s->id, (uint32_t)r->id);
  if (x == NULL) return;
  s->rank = x->rank;
  s->result = x->id;
}

static void push (chain *c, uint32_t i) {
  if (c->s[i].rank == NO_RANK) return;
  uint64_t key = (uint64_t)c->s[i].rank << 32 | i;
  size_t k = c->n++;
  for (; k > 0 && c->heap[(k - 1) / 2] > key; k = (k - 1) / 2) c->heap[k] = c->heap[(k - 1) / 2];
  c->heap[k] = key;
}

static uint64_t pop (chain *c) {
  uint64_t top = c->heap[0], last = c->heap[--c->n];
  size_t k = 0;
  for (size_t child; (child = 2 * k + 1) < c->n; k = child) {
    if (child + 1 < c->n && c->heap[child + 1] < c->heap[child]) child++;
    if (last <= c->heap[child]) break;
    c->heap[k] = c->heap[child];
  }
  c->heap[k] = last;
  return top;
}

/* Every pair of the chain is looked at, at most two new ones a merge: the heap holds 2 n at most. False:
** interrupted, or no memory. */
static bool merge_chain (chain *c, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) {
    if (peri__give_up(c->ctx, i)) return false;
    look(c, i);
    push(c, i);
  }
  for (int64_t merges = 0; c->n > 0; merges++) {
    if (peri__give_up(c->ctx, merges)) return false;
    uint64_t top = pop(c);
    uint32_t i = (uint32_t)top;
    symbol *s = &c->s[i];
    if (s->rank != (uint32_t)(top >> 32)) continue; /* the pair is no more */
    symbol *r = &c->s[s->next];
    s->id = (int32_t)s->result;
    s->size += r->size;
    s->next = r->next;
    r->rank = NO_RANK;
    if (s->next != NO_RANK) c->s[s->next].prev = i;
    look(c, i);
    push(c, i);
    if (s->prev != NO_RANK) {
      look(c, s->prev);
      push(c, s->prev);
    }
  }
  return !c->no_memory;
}

static symbol *chain_open (chain *c, peri__encoder *e, size_t n) {
  char *p = peri__work(e, n * (sizeof(symbol) + 2 * sizeof(uint64_t)));
  if (p == NULL) return NULL;
  c->heap = (uint64_t *)(void *)p;
  c->s = (symbol *)(void *)(p + 2 * n * sizeof(uint64_t));
  return c->s;
}

static void link (symbol *s, size_t n) {
  for (size_t i = 0; i < n; i++) {
    s[i].prev = i == 0 ? NO_RANK : (uint32_t)i - 1;
    s[i].next = i + 1 == n ? NO_RANK : (uint32_t)i + 1;
  }
}

/* Merge n ids, which lie behind e->ids, and append what is left. */
static peri_status merge_ids (const peri__model *m, peri__encoder *e, size_t n) {
  int32_t *id = (int32_t *)(void *)(e->ids.data + e->ids.size);
  if (n <= SHORT) {
    e->ids.size += merge_short(&m->merges, id, n) * sizeof *id;
    return PERI_OK;
  }
  chain c = { .m = m, .ctx = e->t->ctx };
  symbol *s = chain_open(&c, e, n);
  if (s == NULL) return PERI_ENOMEM;
  for (size_t i = 0; i < n; i++) s[i].id = id[i];
  link(s, n);
  if (!merge_chain(&c, (uint32_t)n)) return PERI_EINTR;
  size_t count = 0;
  for (uint32_t i = 0; i != NO_RANK; i = s[i].next) id[count++] = s[i].id;
  e->ids.size += count * sizeof *id;
  return PERI_OK;
}

/* ---- first symbols ---- */

static size_t character_size (const char *s, size_t n) {
  unsigned char c = (unsigned char)*s;
  size_t k = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
  return k < n ? k : n;
}

/* Room for n ids behind e->ids. */
static int32_t *room (peri__encoder *e, size_t n) {
  if (e->ids.cap - e->ids.size < n * sizeof(int32_t) &&
      !peri__buffer_reserve(&e->ids, n * sizeof(int32_t)))
    return NULL;
  return (int32_t *)(void *)(e->ids.data + e->ids.size);
}

static peri_status bytes_piece (const peri__model *m, peri__encoder *e, const char *s, size_t n) {
  int32_t *id = room(e, n);
  size_t count = 0;
  if (id == NULL) return PERI_ENOMEM;
  for (size_t i = 0; i < n; i++) {
    id[count] = m->byte_id[(unsigned char)s[i]];
    count += id[count] >= 0; /* a byte that the vocabulary lacks is dropped, as in the reference */
  }
  return merge_ids(m, e, count);
}

/* The token of a character with what the model puts before or behind it; -1: none. */
static int32_t affixed (const peri__model *m, const char *s, size_t n, bool first, bool last) {
  char text[512];
  size_t p = first ? 0 : m->prefix_size, q = last ? m->suffix_size : 0;
  if (p + q == 0) return peri__vocab_find(&m->vocab, s, n);
  if (p + n + q > sizeof text) return -1; /* affixes are below 200 bytes: tokenizer_json.c */
  if (p > 0) memcpy(text, m->prefix, p);
  memcpy(text + p, s, n);
  if (q > 0) memcpy(text + p + n, m->suffix, q);
  return peri__vocab_find(&m->vocab, text, p + n + q);
}

/* Put the tokens of the bytes of a character, affixes included; false: one is missing. */
static bool fall_back (const peri__model *m, const char *s, size_t n, bool first, bool last,
                       int32_t *id, size_t *count) {
  size_t p = first ? 0 : m->prefix_size, q = last ? m->suffix_size : 0, k = *count;
  for (size_t i = 0; i < p + n + q; i++) {
    const char *at = i < p ? m->prefix + i : i < p + n ? s + (i - p) : m->suffix + (i - p - n);
    id[k] = m->byte_id[(unsigned char)*at];
    if (id[k++] < 0) return false;
  }
  *count = k;
  return true;
}

/* A piece as characters: merge_word of the reference's BPE. */
static peri_status characters_piece (const peri__model *m, peri__encoder *e, const char *s,
                                     size_t n) {
  size_t most = n + (n + 1) * (m->byte_fallback ? m->prefix_size + m->suffix_size : 0) + 1;
  int32_t *id = room(e, most);
  size_t count = 0;
  if (id == NULL) return PERI_ENOMEM;
  bool unknown = false; /* one is held back, to be fused with those that follow */
  for (size_t i = 0, k; i < n; i += k) {
    k = character_size(s + i, n - i);
    int32_t x = affixed(m, s + i, k, i == 0, i + k == n);
    if (x >= 0) {
      if (unknown) id[count++] = m->unk;
      unknown = false;
      id[count++] = x;
    } else if (!(m->byte_fallback && fall_back(m, s + i, k, i == 0, i + k == n, id, &count)) &&
               m->unk >= 0) {
      if (unknown && !m->fuse_unk) id[count++] = m->unk;
      unknown = true;
    }
  }
  if (unknown) id[count++] = m->unk;
  return merge_ids(m, e, count);
}

/* Bytes that no token has: the tokens of the bytes, or unknown ones. */
static bool put_bytes (const peri__model *m, peri__encoder *e, const char *s, size_t n) {
  for (size_t k = 0; k < n; k++) {
    int32_t id = m->byte_id[(unsigned char)s[k]];
    if (id < 0) id = m->unk;
    if (id >= 0 && !peri__ids_put(e, id)) return false;
  }
  return true;
}

typedef struct span {
  uint32_t at, size;
} span;

/* Where the pair of an unused token was last seen; 0: nowhere. */
static uint32_t left_of (const peri__buffer *pairs, int32_t id) {
  const taken *p = (const taken *)(const void *)pairs->data;
  for (size_t i = pairs->size / sizeof *p; i-- > 0;)
    if (p[i].id == id) return p[i].left;
  return 0;
}

/* A symbol's tokens as SentencePiece gives them: an unused one is taken apart again, a run of unknown
** ones is one. e->chars is a stack, e->mapped the pairs. */
static bool put_exact (const peri__model *m, peri__encoder *e, const char *text, span x,
                       bool *unknown) {
  e->chars.size = 0;
  if (!peri__buffer_put(&e->chars, &x, sizeof x)) return false;
  while (e->chars.size > 0) {
    e->chars.size -= sizeof x;
    memcpy(&x, e->chars.data + e->chars.size, sizeof x);
    int32_t id = peri__vocab_find(&m->vocab, text + x.at, x.size);
    uint32_t left = id >= 0 && has_bit(m->unused, id) ? left_of(&e->mapped, id) : 0;
    if (left > 0) {
      const span parts[] = { { x.at + left, x.size - left }, { x.at, left } };
      if (!peri__buffer_put(&e->chars, parts, sizeof parts)) return false;
      continue;
    }
    if (id >= 0 && id != m->unk) {
      if (!peri__ids_put(e, id)) return false;
      *unknown = false;
    } else if (m->byte_fallback) {
      if (!put_bytes(m, e, text + x.at, x.size)) return false;
    } else if (!*unknown) {
      if (m->unk >= 0 && !peri__ids_put(e, m->unk)) return false;
      *unknown = true;
    }
  }
  return true;
}

/* A piece of any length by the scores of its tokens. */
static peri_status scores_piece (const peri__model *m, peri__encoder *e, const char *text,
                                 size_t n) {
  chain c = {
    .m = m, .text = text, .taken = m->unused != NULL ? &e->mapped : NULL, .ctx = e->t->ctx
  };
  symbol *s = chain_open(&c, e, n);
  bool unknown = false;
  if (s == NULL) return PERI_ENOMEM;
  size_t count = 0;
  e->mapped.size = 0;
  for (size_t i = 0, k; i < n; i += k) {
    k = character_size(text + i, n - i);
    s[count++] = (symbol){ .id = peri__vocab_find(&m->vocab, text + i, k),
                           .at = (uint32_t)i,
                           .size = (uint32_t)k };
  }
  link(s, count);
  if (!merge_chain(&c, (uint32_t)count)) return c.no_memory ? PERI_ENOMEM : PERI_EINTR;
  for (uint32_t i = 0; i != NO_RANK; i = s[i].next) {
    bool done = m->exact       ? put_exact(m, e, text, (span){ s[i].at, s[i].size }, &unknown)
                : s[i].id >= 0 ? peri__ids_put(e, s[i].id)
                               : put_bytes(m, e, text + s[i].at, s[i].size);
    if (!done) return PERI_ENOMEM;
  }
  return PERI_OK;
}

static bool only_feeds (const char *s, size_t n) {
  size_t i = 0;
  while (i < n && s[i] == '\n') i++;
  return i == n;
}

peri_status peri__bpe_piece (const peri__model *m, peri__encoder *e, const char *s, size_t n) {
  if (m->kind == PERI__MODEL_SPM) return scores_piece(m, e, s, n);
  bool merges = !m->ignore_merges && !(m->whole_lines && only_feeds(s, n));
  if (!merges || !m->direct) {
    if (m->byte_level) {
      e->mapped.size = 0;
      if (!peri__byte_level_map(&e->mapped, s, n)) return PERI_ENOMEM;
    }
    const char *text = m->byte_level ? e->mapped.data : s;
    size_t size = m->byte_level ? e->mapped.size : n;
    int32_t id = merges ? -1 : peri__vocab_find(&m->vocab, text, size);
    if (id >= 0) return peri__ids_put(e, id) ? PERI_OK : PERI_ENOMEM;
    if (!m->direct) return characters_piece(m, e, text, size);
  }
  return bytes_piece(m, e, s, n);
}
