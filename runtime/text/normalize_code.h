/*
** normalize_code.h - inside of normalisers, for the normalize files alone.
*/
#ifndef peri_text_normalize_code_h
#define peri_text_normalize_code_h

#include "text/normalize.h"
#include "text/regex.h"

typedef enum peri__normal_kind {
  PERI__NFC,
  PERI__NFD,
  PERI__NFKC,
  PERI__NFKD,
  PERI__LOWERCASE,
  PERI__STRIP,
  PERI__STRIP_ACCENTS, /* marks */
  PERI__STRIP_MN,      /* nonspacing marks */
  PERI__REPLACE,
  PERI__PREPEND,
  PERI__NMT,
  PERI__BYTES, /* the byte-level alphabet */
  PERI__CHARSMAP,
  PERI__CLEAN, /* BERT: controls go, white space becomes spaces */
  PERI__SPACE_CHINESE
} peri__normal_kind;

typedef struct peri__normal_step {
  peri__normal_kind kind;
  char *a; /* REPLACE: pattern unless re; PREPEND: what; CHARSMAP: trie and strings */
  size_t a_n;
  char *b; /* REPLACE: content */
  size_t b_n;
  peri__regex *re;
  size_t trie;      /* CHARSMAP: units of the trie, at a + 4; the strings are behind */
  bool left, right; /* STRIP */
} peri__normal_step;

#define PERI__NORMAL_STEPS 64

struct peri__normalizer {
  peri_ctx *ctx;
  bool bert, clean; /* nothing but a BertNormalizer; with clean_text */
  int n;
  peri__normal_step step[PERI__NORMAL_STEPS];
};

/* Where a step's work goes. */
typedef struct peri__normal_run {
  peri__text_state *st;
  peri__buffer *out; /* empty at first */
  bool changed;      /* false: the text stays as it is, out is not to be used */
} peri__normal_run;

/* normalize_forms.c */
peri_status peri__normal_form (peri__normal_run *r, peri__normal_kind form, const char *text,
                               size_t n);
/* normalize_charsmap.c: SentencePiece's compiled rules. Decode base64 into step, checked. */
peri_status peri__charsmap_read (peri_ctx *ctx, const char *base64, size_t n,
                                 peri__normal_step *step);
peri_status peri__charsmap_run (peri__normal_run *r, const peri__normal_step *step,
                                const char *text, size_t n);

#endif
