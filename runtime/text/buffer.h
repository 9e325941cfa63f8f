/*
** buffer.h - bytes that grow, for the files of runtime/text/. Growing asks the context's allocator
** and therefore belongs to the context's thread; a worker's buffer is marked fixed and refuses.
*/
#ifndef peri_text_buffer_h
#define peri_text_buffer_h

#include <string.h>

#include "core/core.h"

typedef struct peri__buffer {
  peri_ctx *ctx;
  char *data; /* NULL while cap is 0 */
  size_t size, cap;
  bool fixed; /* may not grow now */
} peri__buffer;

/* Make room for more bytes behind size. False when there is no memory or the buffer is fixed; nothing
** has changed then, and no message is set. */
bool peri__buffer_reserve (peri__buffer *b, size_t more);
void peri__buffer_free (peri__buffer *b); /* may be called twice; keeps ctx */

static inline bool peri__buffer_put (peri__buffer *b, const void *s, size_t n) {
  if (b->cap - b->size < n && !peri__buffer_reserve(b, n)) return false;
  if (n > 0) memcpy(b->data + b->size, s, n);
  b->size += n;
  return true;
}

#endif
