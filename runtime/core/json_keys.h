/*
** json_keys.h - what the files of the JSON parser share; nobody else includes it.
*/
#ifndef peri_json_keys_h
#define peri_json_keys_h

#include "core/json.h"

/* The escape at *s inside a checked string as 1 to 4 bytes; *s moves on. json.c */
int peri__json_escape (const unsigned char **s, unsigned char out[4]);
/* The same of what is there, an escape or a byte. */
static inline int peri__json_decode (const unsigned char **s, unsigned char out[4]) {
  if (**s == '\\') return peri__json_escape(s, out);
  out[0] = *(*s)++;
  return 1;
}
peri_status peri__json_no_memory (peri_json *p, size_t bytes);
/* Enter the key at an offset into the innermost object's keys; one that is there is an error. */
peri_status peri__json_add_key (peri_json *p, uint32_t offset);
/* Forget the keys from base up. */
void peri__json_drop_keys (peri_json *p, uint32_t base);

#endif
