/*
** regex_search.c - finding matches within a bound on the work. The engine counts steps for every
** start position anew; positions that need more than QUICK of them are tried again alone with more
** and more steps, which come out of a budget linear in the text.
*/
#include "text/regex_code.h"
#include "text/unicode.h"

#define QUICK 256
#define BUDGET_FIXED ((uint64_t)8 << 20)
#define BUDGET_BYTE 32
#define HEAP_KIB 65536 /* of the interpreter, where there is no machine code */

void peri__search_begin (peri__search *s, const peri__regex *re, peri__text_state *st,
                         const char *text, size_t begin, size_t end) {
  *s = (peri__search){ .re = re,
                       .st = st,
                       .text = text,
                       .begin = begin,
                       .end = end,
                       .next = begin,
                       .last = SIZE_MAX,
                       .window = SIZE_MAX,
                       .budget = BUDGET_FIXED + BUDGET_BYTE * (uint64_t)(end - begin) };
}

/* Try the start positions [from, from + window). */
static int attempt (peri__search *s, size_t from, size_t window, uint32_t steps, uint32_t options) {
  size_t n = s->end - s->begin, at = from - s->begin;
  pcre2_set_offset_limit(s->st->limits, window > n - at ? n : at + window - 1);
  pcre2_set_match_limit(s->st->limits, steps);
  pcre2_set_heap_limit(s->st->limits, HEAP_KIB);
  return pcre2_match(s->re->code, (PCRE2_SPTR)s->text + s->begin, n, at,
                     PCRE2_NO_UTF_CHECK | options, s->st->match, s->st->limits);
}

static bool out_of_steps (int rc) {
  return rc == PCRE2_ERROR_MATCHLIMIT || rc == PCRE2_ERROR_DEPTHLIMIT ||
         rc == PCRE2_ERROR_HEAPLIMIT || rc == PCRE2_ERROR_JIT_STACKLIMIT;
}

/* One start position with as many steps as it needs and the budget has. */
static int insist (peri__search *s, size_t from) {
  int rc = PCRE2_ERROR_MATCHLIMIT;
  uint32_t options = 0;
  for (uint64_t steps = 4 * QUICK; out_of_steps(rc); steps *= 4) {
    if (steps > s->budget || steps > UINT32_MAX) return PCRE2_ERROR_MATCHLIMIT;
    s->budget -= steps;
    rc = attempt(s, from, 1, (uint32_t)steps, options);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) options = PCRE2_NO_JIT; /* its stack is on the heap */
  }
  return rc;
}

static size_t next_char (const peri__search *s, size_t at) {
  at++;
  while (at < s->end && (s->text[at] & 0xC0) == 0x80) at++;
  return at;
}

peri_status peri__search_next (peri__search *s, bool *found, size_t *from, size_t *to) {
  *found = false;
  while (s->next <= s->end) {
    size_t window = s->window;
    int rc = attempt(s, s->next, window, QUICK, 0);
    if (out_of_steps(rc)) {
      if (window > 1) { /* which position it was is not told */
        s->window = window > 64 ? 64 : 1;
        continue;
      }
      rc = insist(s, s->next);
    } else if (window != SIZE_MAX) {
      s->window = window > s->end ? SIZE_MAX : 4 * window;
    }
    if (rc == PCRE2_ERROR_NOMATCH) {
      if (window > s->end - s->next) return PERI_OK;
      s->next = next_char(s, s->next + window - 1);
      continue;
    }
    if (rc == PCRE2_ERROR_NOMEMORY) return PERI__TEXT_NOMEM(s->st);
    if (out_of_steps(rc)) return peri__text_stop(s->st, PERI_EFORMAT, PERI__TEXT_PATTERN, rc);
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(s->st->match);
    size_t a = s->begin + range[0], b = s->begin + range[1];
    if (rc < 0 || a > b || a < s->next || b > s->end)
      return peri__text_stop(s->st, PERI_EFORMAT, PERI__TEXT_ENGINE, rc);
    if (a == b && a == s->last) {
      s->next = next_char(s, s->next);
      continue;
    }
    *found = true;
    *from = a;
    *to = b;
    s->next = s->last = b;
    return PERI_OK;
  }
  return PERI_OK;
}
