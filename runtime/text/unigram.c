/*
** unigram.c - the cut of a piece into tokens with the best sum of scores (Kudo 2018), as Unigram of
** Hugging Face's tokenizers and llama.cpp find it: Viterbi over bytes, one character at a time. Sums
** are doubles added from the left, so that ties fall as they do there.
*/
#include <string.h>

#include "text/tokenizer.h"

typedef struct node {
  double score;   /* of the best way to here */
  uint32_t start; /* of its last token; UINT32_MAX: no way leads here */
  int32_t id;
} node;

static size_t character_size (unsigned char c) {
  return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

/* SentencePiece keeps sums as floats, which decides between near ties. */
static double kept (const peri__model *m, double score) {
  return m->exact ? (double)(float)score : score;
}

static void offer (const peri__model *m, node *to, double score, size_t start, int32_t id) {
  if (to->start != UINT32_MAX && !(score > to->score)) return;
  *to = (node){ kept(m, score), (uint32_t)start, id };
}

/* False: interrupted. */
static bool forward (const peri__model *m, const peri_ctx *ctx, const char *s, size_t n,
                     node *best) {
  int64_t steps = 0;
  for (size_t i = 0; i <= n; i++) best[i].start = UINT32_MAX;
  best[0] = (node){ 0, 0, -1 };
  for (size_t i = 0, k; i < n; i += k) {
    bool whole = false; /* some token is exactly this character */
    if (peri__give_up(ctx, steps++)) return false;
    peri__walk w = peri__walk_begin(&m->prefixes);
    int32_t id;
    k = character_size((unsigned char)s[i]);
    if (k > n - i) k = n - i;
    for (size_t j = i; j < n && peri__walk_step(&m->prefixes, &w, (unsigned char)s[j], &id); j++) {
      if (id < 0) continue;
      offer(m, &best[j + 1], best[i].score + m->weight[id], i, id);
      whole = whole || j + 1 - i == k;
    }
    if (!whole) offer(m, &best[i + k], kept(m, best[i].score + m->unknown), i, m->unk);
  }
  return true;
}

/* The text of a run that no token covers: a token all the same, its bytes, or unknown. */
static bool put_unknown (const peri__model *m, peri__encoder *e, const char *s, size_t n) {
  int32_t id = m->exact ? -1 : peri__vocab_find(&m->vocab, s, n);
  if (id < 0 && m->byte_fallback) {
    size_t from = e->ids.size, i = 0;
    while (i < n && m->byte_id[(unsigned char)s[i]] >= 0)
      if (!peri__ids_put(e, m->byte_id[(unsigned char)s[i++]])) return false;
    if (i == n) return true;
    e->ids.size = from;
  }
  if (id < 0) id = m->unk;
  return id < 0 || peri__ids_put(e, id);
}

peri_status peri__unigram_piece (const peri__model *m, peri__encoder *e, const char *s, size_t n) {
  if (m->byte_level) {
    e->mapped.size = 0;
    if (!peri__byte_level_map(&e->mapped, s, n)) return PERI_ENOMEM;
    s = e->mapped.data;
    n = e->mapped.size;
  }
  node *best = peri__work(e, (n + 1) * (sizeof *best + sizeof(uint32_t)));
  if (best == NULL) return PERI_ENOMEM;
  uint32_t *to = (uint32_t *)(void *)(best + n + 1); /* end of the token that begins here */
  if (!forward(m, e->t->ctx, s, n, best)) return PERI_EINTR;
  for (size_t end = n; end > 0; end = best[end].start) to[best[end].start] = (uint32_t)end;
  for (size_t i = 0, end; i < n; i = end) {
    end = to[i];
    int32_t id = best[end].id;
    if (id >= 0 && id != m->unk) {
      if (!peri__ids_put(e, id)) return PERI_ENOMEM;
      continue;
    }
    while (end < n && best[to[end]].id == id) end = to[end];
    if (!put_unknown(m, e, s + i, end - i)) return PERI_ENOMEM;
  }
  return PERI_OK;
}
