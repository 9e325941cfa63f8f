/*
** sentencepiece.c - what SentencePiece does to a text before its model sees it (normalizer.cc: the
** table of characters, spaces, pieces that the user defined), and its BPE around such pieces. The
** models themselves are in bpe.c and unigram.c.
*/
#include <string.h>

#include "text/tokenizer.h"

static const char space_mark[] = "\xE2\x96\x81"; /* U+2581 */

/* The longest piece that the user defined and the text begins with; 0: none. */
static size_t user_defined (const peri__model *m, const char *s, size_t n, int32_t *piece) {
  peri__walk w = peri__walk_begin(&m->user);
  size_t size = 0;
  int32_t id;
  for (size_t i = 0; i < n && peri__walk_step(&m->user, &w, (unsigned char)s[i], &id); i++) {
    if (id < 0) continue;
    *piece = id;
    size = i + 1;
  }
  return size;
}

/* The text's first character, or what stands for it; how many bytes it took. */
static size_t normal (const peri_tokenizer *t, const char *s, size_t n, peri_text *out) {
  int32_t id;
  size_t k = t->model.user.n > 0 ? user_defined(&t->model, s, n, &id) : 0;
  if (k == 0 && t->chars != NULL && (k = peri__tokenizer_char(t, s, n, out)) > 0) return k;
  if (k == 0) {
    unsigned char c = (unsigned char)*s;
    k = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    if (k > n) k = n;
  }
  *out = (peri_text){ s, k };
  return k;
}

static bool put (peri__buffer *out, peri_text x, const char *space, size_t space_n) {
  for (size_t i = 0; i < x.n; i++)
    if (!(x.s[i] == ' ' ? peri__buffer_put(out, space, space_n)
                        : peri__buffer_put(out, x.s + i, 1)))
      return false;
  return true;
}

bool peri__sentencepiece_normal (const peri_tokenizer *t, peri__buffer *out, const char *s,
                                 size_t n, bool first) {
  const peri__spaces *sp = &t->spaces;
  const char *space = sp->escape ? space_mark : " ";
  size_t space_n = strlen(space), i = 0;
  bool after_space = sp->merge;
  peri_text x;
  out->size = 0;
  for (size_t k; sp->merge && i < n; i += k) { /* spaces before a text */
    k = normal(t, s + i, n - i, &x);
    if (x.n != 1 || x.s[0] != ' ') break;
  }
  if (i == n) return true;
  if (sp->prefix && first && !peri__buffer_put(out, space, space_n)) return false;
  for (size_t k; i < n; i += k) {
    k = normal(t, s + i, n - i, &x);
    for (; after_space && x.n > 0 && x.s[0] == ' '; x.s++) x.n--;
    if (x.n == 0) continue;
    if (!put(out, x, space, space_n)) return false;
    after_space = sp->merge && x.s[x.n - 1] == ' ';
  }
  while (sp->merge && out->size >= space_n &&
         memcmp(out->data + out->size - space_n, space, space_n) == 0)
    out->size -= space_n;
  return !sp->suffix || peri__buffer_put(out, space, space_n);
}

/* BPE never merges into or out of a piece that the user defined. */
peri_status peri__sentencepiece_pieces (peri__encoder *e, const char *s, size_t n) {
  const peri__model *m = &e->t->model;
  size_t done = 0;
  if (n == 0) return PERI_OK;
  if (m->kind != PERI__MODEL_SPM || m->user.n == 0) return peri__model_piece(m, e, s, n);
  for (size_t i = 0; i < n;) {
    int32_t id;
    size_t k = user_defined(m, s + i, n - i, &id);
    if (k == 0) {
      i++;
      continue;
    }
    if (i > done) TRY(peri__model_piece(m, e, s + done, i - done));
    if (!peri__ids_put(e, id)) return PERI_ENOMEM;
    done = i += k;
  }
  return n > done ? peri__model_piece(m, e, s + done, n - done) : PERI_OK;
}
