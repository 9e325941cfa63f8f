/*
** regex_code.h - inside of peri__regex, for the regex files alone.
*/
#ifndef peri_text_regex_code_h
#define peri_text_regex_code_h

#include "text/regex.h"

struct peri__regex {
  peri__regex_heap heap;
  pcre2_general_context *general;
  pcre2_code *code;
};

#define PERI__REGEX_NEST 64 /* groups in groups */

/* Append the pattern in PCRE2's syntax. how: for asking PCRE2 what it knows. */
peri_status peri__regex_translate (peri_ctx *ctx, pcre2_compile_context *how, const char *pattern,
                                   size_t n, peri__buffer *out);

#endif
