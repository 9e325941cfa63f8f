/*
** regex_search.c - finding matches within a bound on the work, which the engine alone does not keep:
** it counts steps for every start position anew and does not count the characters that a step runs
** over. So it is shown little of the text at a time, asks for more by a partial match, and all that
** goes beyond the usual comes out of a budget; the processor's time is looked at now and then.
*/
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#endif
#include <time.h>

#include "text/regex_code.h"
#include "text/unicode.h"

#define WINDOW 512 /* start positions of one call */
#define LOOK 1024  /* bytes shown behind them */
#define QUICK 256  /* steps for each */
#define BUDGET_FIXED ((uint64_t)8 << 20)
#define BUDGET_BYTE 32
#define TIME_FIXED 300000000 /* nanoseconds; usual patterns take 20 to 100 a byte */
#define TIME_BYTE 3000
#define CALLS 64       /* between two looks at the clock and for an interrupt */
#define HEAP_KIB 65536 /* of the interpreter, where there is no machine code */

void peri__work_begin (peri__text_state *st, size_t n) {
  st->budget = BUDGET_FIXED + BUDGET_BYTE * (uint64_t)n;
  st->time = TIME_FIXED + TIME_BYTE * (uint64_t)n;
  st->calls = 0;
  st->started = 0;
}

/* Time of this thread since the first look. */
static bool out_of_time (peri__text_state *st) {
  struct timespec t;
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) != 0) return false;
  uint64_t now = (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec + 1;
  if (st->started == 0) st->started = now;
  return now - st->started > st->time;
}

static bool spend (peri__text_state *st, uint64_t work) {
  if (work > st->budget || out_of_time(st)) return false;
  st->budget -= work;
  return true;
}

void peri__search_begin (peri__search *s, const peri__regex *re, peri__text_state *st,
                         const char *text, size_t begin, size_t end) {
  *s = (peri__search){
    .re = re, .st = st, .text = text, .begin = begin, .end = end, .next = begin, .last = SIZE_MAX
  };
}

static size_t next_char (const peri__search *s, size_t at) {
  at++;
  while (at < s->end && (s->text[at] & 0xC0) == 0x80) at++;
  return at;
}

/* How the engine is asked; what fails for want of one of these is asked again with more. */
typedef struct attempt {
  size_t from, window, look;
  uint64_t steps;
  uint32_t options;
} attempt;

static attempt usual (size_t from) { return (attempt){ from, WINDOW, LOOK, QUICK, 0 }; }

static int ask (peri__search *s, const attempt *a) {
  size_t end = s->end, at = a->from - s->begin;
  uint32_t options = PCRE2_NO_UTF_CHECK | a->options;
  if (end - a->from > a->window + a->look) {
    end = next_char(s, a->from + a->window + a->look - 1);
    if (end < s->end) options |= PCRE2_PARTIAL_HARD;
  }
  pcre2_set_offset_limit(s->st->limits, at + a->window - 1);
  pcre2_set_match_limit(s->st->limits, (uint32_t)a->steps);
  pcre2_set_heap_limit(s->st->limits, HEAP_KIB);
  return pcre2_match(s->re->code, (PCRE2_SPTR)s->text + s->begin, end - s->begin, at, options,
                     s->st->match, s->st->limits);
}

/* Ask for more after an answer that is none. False: the work is too much. */
static bool insist (peri__search *s, attempt *a, int rc) {
  if (rc == PCRE2_ERROR_PARTIAL) { /* the text shown ended within this match */
    a->from = s->begin + pcre2_get_ovector_pointer(s->st->match)[0];
    a->window = 1;
    a->look *= 8;
    return spend(s->st, a->look < s->end - s->begin ? a->look : s->end - s->begin);
  }
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) a->options |= PCRE2_NO_JIT; /* its stack is on the heap */
  if (a->window > 1) { /* which position it was is not told */
    a->window = 1;
    return true;
  }
  a->steps *= 4;
  return a->steps <= UINT32_MAX && spend(s->st, a->steps);
}

static bool wants_more (int rc) {
  return rc == PCRE2_ERROR_PARTIAL || rc == PCRE2_ERROR_MATCHLIMIT ||
         rc == PCRE2_ERROR_DEPTHLIMIT || rc == PCRE2_ERROR_HEAPLIMIT ||
         rc == PCRE2_ERROR_JIT_STACKLIMIT;
}

peri_status peri__search_next (peri__search *s, bool *found, size_t *from, size_t *to) {
  peri__text_state *st = s->st;
  attempt a = usual(s->next);
  *found = false;
  while (a.from <= s->end) {
    bool look = ++st->calls % CALLS == 0, late = look && out_of_time(st);
    if (look && peri__stopped(st->ctx)) return PERI_EINTR;
    int rc = late ? PCRE2_ERROR_MATCHLIMIT : ask(s, &a);
    if (wants_more(rc)) {
      if (!late && insist(s, &a, rc)) continue;
      return peri__text_stop(st, PERI_EFORMAT, PERI__TEXT_PATTERN, rc);
    }
    if (rc == PCRE2_ERROR_NOMATCH) {
      if (a.window > s->end - a.from) break;
      a = usual(next_char(s, a.from + a.window - 1));
      continue;
    }
    if (rc == PCRE2_ERROR_NOMEMORY) return PERI__TEXT_NOMEM(st);
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(st->match);
    size_t begin = s->begin + range[0], end = s->begin + range[1];
    if (rc < 0 || begin > end || begin < a.from || end > s->end)
      return peri__text_stop(st, PERI_EFORMAT, PERI__TEXT_ENGINE, rc);
    if (begin == end && begin == s->last) {
      a = usual(next_char(s, a.from));
      continue;
    }
    *found = true;
    *from = begin;
    *to = end;
    s->next = s->last = end;
    return PERI_OK;
  }
  s->next = s->end + 1;
  return PERI_OK;
}
