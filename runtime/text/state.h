/*
** state.h - inside of peri__text_state, for the files of runtime/text/ alone.
*/
#ifndef peri_text_state_h
#define peri_text_state_h

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "text/split.h"
#include "text/text.h"

/* Why a call failed, for the message that the context's thread makes later. */
typedef enum peri__text_reason {
  PERI__TEXT_MEMORY,
  PERI__TEXT_LONG,    /* above PERI__TEXT_MAX */
  PERI__TEXT_PATTERN, /* a regular expression took too many steps */
  PERI__TEXT_ENGINE   /* an error of the regular expression engine; code says which */
} peri__text_reason;

typedef struct peri__piece_list {
  peri__piece *at;
  size_t n, cap;
} peri__piece_list;

struct peri__text_state {
  peri_ctx *ctx;
  bool fixed;
  peri__text_reason reason;
  int code;
  peri__buffer normal[2]; /* results of normalisers, in turn */
  peri__buffer wide;      /* code points of a normal form */
  peri__buffer split[2];  /* texts of splitters' steps, in turn */
  peri__piece_list list[2];
  pcre2_general_context *general; /* allocates from ctx unless fixed */
  pcre2_match_data *match;
  pcre2_match_context *limits;
  pcre2_jit_stack *stack;
  /* What is left of the work that regular expressions may take: regex_search.c. */
  uint64_t budget, time, started;
  unsigned calls;
};

static inline peri_status peri__text_stop (peri__text_state *st, peri_status s,
                                           peri__text_reason reason, int code) {
  st->reason = reason;
  st->code = code;
  return s;
}

#define PERI__TEXT_NOMEM(st) peri__text_stop(st, PERI_ENOMEM, PERI__TEXT_MEMORY, 0)

bool peri__pieces_reserve (peri__text_state *st, peri__piece_list *l, size_t more);

static inline bool peri__pieces_add (peri__text_state *st, peri__piece_list *l, size_t from,
                                     size_t to) {
  if (from == to) return true;
  if (l->n == l->cap && !peri__pieces_reserve(st, l, 1)) return false;
  l->at[l->n++] = (peri__piece){ (uint32_t)from, (uint32_t)(to - from) };
  return true;
}

#endif
