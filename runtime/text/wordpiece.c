/*
** wordpiece.c - pieces cut into the longest tokens from the left: WordPiece (Devlin et al. 2019) as
** Hugging Face's tokenizers have it, llama.cpp's form of it, and whole words (WordLevel).
*/
#include <string.h>

#include "text/tokenizer.h"

/* The longest token that the text begins with, read on from a walk. */
static int32_t longest (const peri__model *m, peri__walk w, const char *s, size_t n, size_t *size) {
  int32_t best = -1, id;
  size_t i = 0;
  while (i < n && peri__walk_step(&m->prefixes, &w, (unsigned char)s[i], &id)) {
    i++;
    if (id < 0) continue;
    best = id;
    *size = i;
  }
  return best;
}

/* A walk that has read a text; false: no token begins so. */
static bool walk_past (const peri__model *m, const char *s, size_t n, peri__walk *w) {
  int32_t id;
  *w = peri__walk_begin(&m->prefixes);
  for (size_t i = 0; i < n; i++)
    if (!peri__walk_step(&m->prefixes, w, (unsigned char)s[i], &id)) return false;
  return true;
}

static size_t characters (const char *s, size_t n) {
  size_t count = 0;
  for (size_t i = 0; i < n; i++) count += ((unsigned char)s[i] & 0xC0) != 0x80;
  return count;
}

/* Cut the whole piece, of which the first tokens are read on from first and later ones from later;
** false when some part begins no token. */
static bool cut (const peri__model *m, peri__encoder *e, const char *s, size_t n, peri__walk first,
                 const peri__walk *later, peri_status *status) {
  for (size_t i = 0, size = 0; i < n; i += size) {
    if (i > 0 && later == NULL) return false;
    int32_t id = longest(m, i == 0 ? first : *later, s + i, n - i, &size);
    if (id < 0) return false;
    if (!peri__ids_put(e, id)) {
      *status = PERI_ENOMEM;
      return true;
    }
  }
  return true;
}

static peri_status word (const peri__model *m, peri__encoder *e, const char *s, size_t n) {
  static const char mark[] = "\xE2\x96\x81"; /* U+2581: llama.cpp writes it before words */
  size_t from = e->ids.size;
  peri__walk first = peri__walk_begin(&m->prefixes), later = first;
  peri_status status = PERI_OK;
  bool inside = true, fits = true;
  if (m->kind == PERI__MODEL_PHANTOM) {
    fits = walk_past(m, mark, 3, &first);
  } else {
    inside = walk_past(m, m->prefix, m->prefix_size, &later);
    fits = m->word_chars >= (int64_t)n || m->word_chars >= (int64_t)characters(s, n);
  }
  if (fits && cut(m, e, s, n, first, inside ? &later : NULL, &status)) return status;
  e->ids.size = from;
  return m->unk < 0 || peri__ids_put(e, m->unk) ? PERI_OK : PERI_ENOMEM;
}

peri_status peri__wordpiece_piece (const peri__model *m, peri__encoder *e, const char *s,
                                   size_t n) {
  if (m->byte_level) {
    e->mapped.size = 0;
    if (!peri__byte_level_map(&e->mapped, s, n)) return PERI_ENOMEM;
    s = e->mapped.data;
    n = e->mapped.size;
  }
  if (m->kind != PERI__MODEL_WORDLEVEL) return word(m, e, s, n);
  int32_t id = peri__vocab_find(&m->vocab, s, n);
  if (id < 0) id = m->unk;
  return id < 0 || peri__ids_put(e, id) ? PERI_OK : PERI_ENOMEM;
}
