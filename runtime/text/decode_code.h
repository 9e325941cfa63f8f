/*
** decode_code.h - inside of decoders, for the decode files alone.
*/
#ifndef peri_text_decode_code_h
#define peri_text_decode_code_h

#include "text/decode.h"
#include "text/regex.h"

typedef enum peri__decode_kind {
  PERI__DECODE_JOIN, /* no decoder: a space between tokens */
  PERI__DECODE_BYTE_LEVEL,
  PERI__DECODE_WORDPIECE,
  PERI__DECODE_METASPACE,
  PERI__DECODE_CTC,
  PERI__DECODE_REPLACE,
  PERI__DECODE_FUSE,
  PERI__DECODE_STRIP,
  PERI__DECODE_BYTE_FALLBACK,
  PERI__DECODE_BPE,
  PERI__DECODE_TEXT /* REPLACE on the text as a whole, whatever tokens it came in */
} peri__decode_kind;

typedef struct peri__decode_step {
  peri__decode_kind kind;
  /* WORDPIECE: prefix; CTC: pad token; REPLACE, TEXT: pattern, unless re; METASPACE and STRIP: the
  ** character; BPE: suffix */
  char *a;
  size_t a_n;
  char *b; /* REPLACE: content; CTC: word delimiter */
  size_t b_n;
  peri__regex *re;
  bool cleanup;       /* WORDPIECE, CTC */
  bool drop_first;    /* METASPACE: the character vanishes from the first token */
  size_t start, stop; /* STRIP */
} peri__decode_step;

#define PERI__DECODE_STEPS 32

struct peri__decoder {
  peri_ctx *ctx;
  int n;
  peri__decode_step step[PERI__DECODE_STEPS];
};

#endif
