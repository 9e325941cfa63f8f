/*
** regex_code.h - inside of peri__regex, for regex.c and regex_search.c alone.
*/
#ifndef peri_text_regex_code_h
#define peri_text_regex_code_h

#include "text/regex.h"

struct peri__regex {
  peri__regex_heap heap;
  pcre2_general_context *general;
  pcre2_code *code;
};

#endif
