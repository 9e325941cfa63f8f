/*
** match.h - the patterns that most vocabularies split by, as hand-written matchers: several times
** faster than a regular expression, and linear on any text.
*/
#ifndef peri_text_match_h
#define peri_text_match_h

#include <stdbool.h>
#include <stddef.h>

/* End of the match that begins at i, or i where none does; i < n. Matches nothing empty. */
typedef size_t (*peri__matcher)(const unsigned char *s, size_t i, size_t n);
/* The first match at i or later; i <= n. memo: 0 at first, for the finder's own use. */
typedef bool (*peri__finder)(const unsigned char *s, size_t i, size_t n, size_t *memo, size_t *from,
                             size_t *to);

typedef struct peri__known { /* one of them, or neither */
  peri__matcher match;
  peri__finder find;
} peri__known;

/* What does exactly the same as a pattern (Oniguruma's syntax). */
peri__known peri__known_pattern (const char *pattern, size_t n);
/* The i-th of them, its pattern, or NULL behind the last: for tests. */
const char *peri__known_at (size_t i, peri__known *out);
/* GPT-2's pattern: the one that ByteLevel's use_regex means. */
extern const char peri__gpt2_pattern[];

#endif
