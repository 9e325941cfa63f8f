/*
** split_code.h - inside of peri__splitter, for the split files alone.
*/
#ifndef peri_text_split_code_h
#define peri_text_split_code_h

#include "text/match.h"
#include "text/regex.h"
#include "text/split.h"

/* ORDER behaviour: the same in split_read.c */
typedef enum peri__behavior {
  PERI__REMOVED,
  PERI__ISOLATED,
  PERI__MERGED_WITH_PREVIOUS,
  PERI__MERGED_WITH_NEXT,
  PERI__CONTIGUOUS
} peri__behavior;

typedef enum peri__step_kind {
  /* Cut at matches: */
  PERI__CUT_KNOWN,       /* of a hand-written matcher */
  PERI__CUT_REGEX,       /* of a regular expression */
  PERI__CUT_STRING,      /* of a string */
  PERI__CUT_SPACE,       /* of a character of white space */
  PERI__CUT_PUNCTUATION, /* of a character of ASCII's or Unicode's punctuation */
  PERI__CUT_NUMERIC,     /* of a character of N */
  PERI__FIXED_LENGTH,    /* after every length characters */
  /* Change the text: */
  PERI__PREFIX_SPACE, /* a space before pieces that do not begin with one */
  PERI__MAP_BYTES,    /* the byte-level alphabet */
  PERI__METASPACE
} peri__step_kind;

/* ORDER prepend: the same in split_read.c and decode.c */
typedef enum peri__prepend { PERI__FIRST, PERI__NEVER, PERI__ALWAYS } peri__prepend;

typedef struct peri__step {
  peri__step_kind kind;
  peri__behavior behavior;
  bool invert;
  peri__known known;
  peri__regex *re;
  char *s; /* CUT_STRING; METASPACE: the replacement */
  size_t n;
  size_t length; /* FIXED_LENGTH */
  peri__prepend prepend;
  bool split; /* METASPACE: cut before replacements */
} peri__step;

#define PERI__STEPS_MAX 64

struct peri__splitter {
  peri_ctx *ctx;
  bool byte_level;
  int prefix_at; /* where the step of a ByteLevel's add_prefix_space is or would be; -1: nowhere */
  int n;
  peri__step step[PERI__STEPS_MAX];
};

/* Append a step that cuts by a pattern. */
peri_status peri__add_pattern (peri__splitter *s, const char *pattern, size_t n,
                               peri__behavior behavior, bool invert);
/* Append a zeroed step; NULL without message when there are too many. */
peri__step *peri__add_step (peri__splitter *s, peri__step_kind kind);
peri_status peri__splitter_new (peri_ctx *ctx, peri__splitter **out);
/* A pending last MAP_BYTES becomes byte_level; a splitter without steps becomes NULL. */
void peri__splitter_done (peri__splitter *s, peri__splitter **out);

#endif
