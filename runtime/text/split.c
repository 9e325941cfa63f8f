/*
** split.c - running a splitter: every step cuts the pieces of the step before it.
*/
#include "text/split_code.h"
#include "text/unicode.h"

/* A text may grow by so much in its steps, however long the replacements that a file asks for. */
#define GROWTH 64
#define GROWTH_FIXED 4096

/* ---- matches of a step in one piece ---- */

typedef struct matches {
  const peri__step *step;
  const unsigned char *s;
  size_t next, end, last, memo;
  peri__search search;
} matches;

static void begin_matches (matches *m, const peri__step *step, peri__text_state *st,
                           const char *text, size_t begin, size_t end) {
  m->step = step;
  m->s = (const unsigned char *)text;
  m->next = begin;
  m->end = end;
  m->memo = 0;
  if (step->kind == PERI__CUT_REGEX) peri__search_begin(&m->search, step->re, st, text, begin, end);
}

static bool is_match (const peri__step *step, const unsigned char *s, size_t i, size_t n,
                      size_t *len) {
  uint32_t c = peri__char_at(s + i, n - i, len);
  uint16_t k = peri__class(c);
  switch (step->kind) {
  case PERI__CUT_SPACE: return k & PERI__SPACE;
  case PERI__CUT_PUNCTUATION: return k & PERI__P || (c < 128 && k & PERI__S);
  default: return k & PERI__N;
  }
}

static bool find_string (matches *m, size_t *from, size_t *to) {
  const unsigned char *s = m->s;
  size_t n = m->step->n;
  for (size_t i = m->next; m->end - i >= n;) {
    const unsigned char *at = memchr(s + i, (unsigned char)m->step->s[0], m->end - i - n + 1);
    if (at == NULL) return false;
    i = (size_t)(at - s);
    if (memcmp(at, m->step->s, n) == 0) {
      *from = i;
      *to = i + n;
      return true;
    }
    i++;
  }
  return false;
}

static peri_status next_match (matches *m, bool *found, size_t *from, size_t *to) {
  size_t i = m->next, end = m->end, len;
  const peri__step *step = m->step;
  *found = false;
  switch (step->kind) {
  case PERI__CUT_REGEX: return peri__search_next(&m->search, found, from, to);
  case PERI__CUT_STRING:
  case PERI__METASPACE: *found = find_string(m, from, to); break;
  case PERI__CUT_KNOWN:
    if (step->known.find != NULL) {
      *found = step->known.find(m->s, i, end, &m->memo, from, to);
      break;
    }
    for (; i < end && !*found; i += len) {
      size_t stop = step->known.match(m->s, i, end);
      *found = stop > i;
      *from = i;
      *to = stop;
      if (!*found)
        peri__char_at(m->s + i, end - i, &len);
      else
        len = 0;
    }
    break;
  default:
    for (; i < end && !*found; i += len) {
      *found = is_match(step, m->s, i, end, &len);
      *from = i;
      *to = i + len;
    }
  }
  if (*found) m->next = *to;
  return PERI_OK;
}

/* ---- pieces from matches ---- */

/* The last segment is held back while a later one may still join it. */
typedef struct joiner {
  peri__text_state *st;
  peri__piece_list *list;
  peri__behavior behavior;
  bool any, flag; /* flag: the held segment is, or ends in, a match */
  size_t from, to;
} joiner;

static bool segment (joiner *j, size_t from, size_t to, bool match) {
  switch (j->behavior) {
  case PERI__ISOLATED: return peri__pieces_add(j->st, j->list, from, to);
  case PERI__REMOVED: return match || peri__pieces_add(j->st, j->list, from, to);
  default: break;
  }
  bool join = j->any && (j->behavior == PERI__CONTIGUOUS             ? match == j->flag
                         : j->behavior == PERI__MERGED_WITH_PREVIOUS ? match && !j->flag
                                                                     : !match && j->flag);
  bool ok = join || !j->any || peri__pieces_add(j->st, j->list, j->from, j->to);
  if (!join) j->from = from;
  j->to = to;
  j->flag = match;
  j->any = true;
  return ok;
}

static peri_status cut (const peri__step *step, peri__text_state *st, const char *text,
                        size_t begin, size_t end, peri__piece_list *list) {
  joiner j = { .st = st, .list = list, .behavior = step->behavior };
  matches m;
  size_t prev = begin, from = 0, to = 0;
  bool ok = true, found;
  begin_matches(&m, step, st, text, begin, end);
  while (ok) {
    TRY(next_match(&m, &found, &from, &to));
    if (!found) break;
    if (from > prev) ok = segment(&j, prev, from, step->invert);
    ok = ok && segment(&j, from, to, !step->invert);
    prev = to;
  }
  if (prev < end) ok = ok && segment(&j, prev, end, step->invert);
  if (j.any) ok = ok && peri__pieces_add(st, list, j.from, j.to);
  return ok ? PERI_OK : PERI__TEXT_NOMEM(st);
}

/* The usual step: matches and what lies between them are pieces. */
#define LOOK 4096 /* pieces between two looks for an interrupt */

static peri_status cut_isolated (const peri__known *known, peri__text_state *st, const char *text,
                                 size_t begin, size_t end, peri__piece_list *list) {
  const unsigned char *s = (const unsigned char *)text;
  size_t gap = begin, memo = 0, from, to, len, look = list->n + LOOK;
  bool ok = true;
  if (known->find != NULL) {
    for (; ok && known->find(s, gap, end, &memo, &from, &to); gap = to) {
      if (list->n >= look) {
        if (peri__stopped(st->ctx)) return PERI_EINTR;
        look += LOOK;
      }
      ok = peri__pieces_add(st, list, gap, from) && peri__pieces_add(st, list, from, to);
    }
  } else {
    for (size_t i = begin; ok && i < end; i += len) {
      len = known->match(s, i, end) - i;
      if (len == 0) {
        peri__char_at(s + i, end - i, &len);
        continue;
      }
      if (list->n >= look) {
        if (peri__stopped(st->ctx)) return PERI_EINTR;
        look += LOOK;
      }
      ok = peri__pieces_add(st, list, gap, i) && peri__pieces_add(st, list, i, i + len);
      gap = i + len;
    }
  }
  return ok && peri__pieces_add(st, list, gap, end) ? PERI_OK : PERI__TEXT_NOMEM(st);
}

static peri_status cut_lengths (size_t length, peri__text_state *st, const char *text, size_t begin,
                                size_t end, peri__piece_list *list) {
  size_t from = begin, k = 0;
  for (size_t i = begin, len; i < end; i += len) {
    if (k == length) {
      if (!peri__pieces_add(st, list, from, i)) return PERI__TEXT_NOMEM(st);
      from = i;
      k = 0;
    }
    peri__char_at((const unsigned char *)text + i, end - i, &len);
    k++;
  }
  return peri__pieces_add(st, list, from, end) ? PERI_OK : PERI__TEXT_NOMEM(st);
}

/* ---- steps that change the text ---- */

static bool begins_with (const char *s, size_t n, const char *part, size_t part_n) {
  return n >= part_n && memcmp(s, part, part_n) == 0;
}

static bool replace_spaces (peri__buffer *out, const char *s, size_t n, const char *by,
                            size_t by_n) {
  for (size_t i = 0; i < n;) {
    const char *space = memchr(s + i, ' ', n - i);
    size_t stop = space == NULL ? n : (size_t)(space - s);
    if (!peri__buffer_put(out, s + i, stop - i)) return false;
    if (space != NULL && !peri__buffer_put(out, by, by_n)) return false;
    i = stop + (space != NULL);
  }
  return true;
}

/* origin: the piece begins where the whole input does. */
static peri_status metaspace (const peri__step *step, peri__text_state *st, const char *s, size_t n,
                              bool origin, peri__buffer *out, peri__piece_list *list) {
  size_t begin = out->size, rep = step->n;
  bool marked = s[0] == ' ' || begins_with(s, n, step->s, rep);
  bool prepend = step->prepend == PERI__ALWAYS || (step->prepend == PERI__FIRST && origin);
  if (prepend && !marked && !peri__buffer_put(out, step->s, rep)) return PERI__TEXT_NOMEM(st);
  if (!replace_spaces(out, s, n, step->s, rep)) return PERI__TEXT_NOMEM(st);
  if (step->split) return cut(step, st, out->data, begin, out->size, list);
  return peri__pieces_add(st, list, begin, out->size) ? PERI_OK : PERI__TEXT_NOMEM(st);
}

static peri_status change (const peri__step *step, peri__text_state *st, const char *s, size_t n,
                           bool origin, peri__buffer *out, peri__piece_list *list) {
  size_t begin = out->size;
  bool ok = true;
  if (step->kind == PERI__METASPACE) return metaspace(step, st, s, n, origin, out, list);
  if (step->kind == PERI__MAP_BYTES) {
    ok = peri__byte_level_map(out, s, n);
  } else {
    if (s[0] != ' ') ok = peri__buffer_put(out, " ", 1);
    ok = ok && peri__buffer_put(out, s, n);
  }
  ok = ok && peri__pieces_add(st, list, begin, out->size);
  return ok ? PERI_OK : PERI__TEXT_NOMEM(st);
}

/* ---- the whole ---- */

static peri_status run_cut (const peri__step *step, peri__text_state *st, const char *text,
                            peri__piece p, peri__piece_list *list) {
  size_t begin = p.offset, end = begin + p.size;
  if (step->kind == PERI__FIXED_LENGTH)
    return cut_lengths(step->length, st, text, begin, end, list);
  if (step->kind == PERI__CUT_KNOWN && step->behavior == PERI__ISOLATED)
    return cut_isolated(&step->known, st, text, begin, end, list);
  return cut(step, st, text, begin, end, list);
}

peri_status peri__split (const peri__splitter *s, peri__text_state *st, const char *text, size_t n,
                         bool at_start, peri__pieces *out) {
  if (n > PERI__TEXT_MAX) return peri__text_stop(st, PERI_EINVAL, PERI__TEXT_LONG, 0);
  size_t limit = n > (UINT32_MAX - GROWTH_FIXED) / GROWTH ? UINT32_MAX : n * GROWTH + GROWTH_FIXED;
  int buffer = 0;
  peri__work_begin(st, n);
  peri__piece_list *from = &st->list[0], *to = &st->list[1];
  from->n = to->n = 0;
  if (!peri__pieces_add(st, from, 0, n)) return PERI__TEXT_NOMEM(st);
  for (int k = 0; s != NULL && k < s->n; k++) {
    const peri__step *step = &s->step[k];
    to->n = 0;
    if (step->kind < PERI__PREFIX_SPACE) {
      for (size_t i = 0; i < from->n; i++) TRY(run_cut(step, st, text, from->at[i], to));
    } else {
      peri__buffer *b = &st->split[buffer];
      b->size = 0;
      for (size_t i = 0; i < from->n; i++) {
        peri__piece p = from->at[i];
        TRY(change(step, st, text + p.offset, p.size, at_start && p.offset == 0, b, to));
        if (b->size > limit) return peri__text_stop(st, PERI_EINVAL, PERI__TEXT_LONG, 0);
      }
      /* A piece that does not begin the input may begin the new text. */
      at_start = at_start && from->n > 0 && from->at[0].offset == 0;
      text = b->data;
      n = b->size;
      buffer = 1 - buffer;
    }
    peri__piece_list *swap = from;
    from = to;
    to = swap;
  }
  *out = (peri__pieces){ .text = text, .size = n, .at = from->at, .n = from->n };
  return PERI_OK;
}

bool peri__splitter_byte_level (const peri__splitter *s) { return s != NULL && s->byte_level; }
