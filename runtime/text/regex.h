/*
** regex.h - the regular expressions of tokenizer.json. They are written for Oniguruma; here they are
** translated to PCRE2, and what would mean something else there is refused. Matching has a bound on
** its steps that depends on the text's length alone.
*/
#ifndef peri_text_regex_h
#define peri_text_regex_h

#include "text/state.h"

typedef struct peri__regex peri__regex;

/* pattern: UTF-8. Errors are PERI_EFORMAT with the reason, without a place in the file: the caller
** adds that. */
peri_status peri__regex_compile (peri_ctx *ctx, const char *pattern, size_t n, peri__regex **out);
void peri__regex_free (peri__regex *r); /* NULL is a no-op */

/* Search in text[begin, end) only, as if nothing stood around it. */
typedef struct peri__search {
  const peri__regex *re;
  peri__text_state *st;
  const char *text;
  size_t begin, end;
  size_t next; /* where the next search begins */
  size_t last; /* end of the last match; SIZE_MAX: none yet */
} peri__search;

/* Give the state the work that searches in a text of n bytes may take, all together. */
void peri__work_begin (peri__text_state *st, size_t n);
void peri__search_begin (peri__search *s, const peri__regex *re, peri__text_state *st,
                         const char *text, size_t begin, size_t end);
/* The next match from left to right, not overlapping, an empty one not at the end of the last.
** *found false: none is left. */
peri_status peri__search_next (peri__search *s, bool *found, size_t *from, size_t *to);

/* PCRE2's contexts over ctx's allocator. fixed: a flag that makes allocations fail; may be NULL. */
typedef struct peri__regex_heap {
  peri_ctx *ctx;
  const bool *fixed;
} peri__regex_heap;
void *peri__regex_malloc (size_t n, void *heap);
void peri__regex_release (void *p, void *heap);

#endif
