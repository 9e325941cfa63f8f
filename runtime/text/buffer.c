/*
** buffer.c - growing of buffer.h's buffers: by half again, so that appending stays linear.
*/
#include "text/buffer.h"

bool peri__buffer_reserve (peri__buffer *b, size_t more) {
  if (b->cap - b->size >= more) return true;
  if (b->fixed || more > SIZE_MAX / 4 || b->size > SIZE_MAX / 4) return false;
  size_t cap = b->cap + b->cap / 2;
  if (cap < b->size + more) cap = b->size + more;
  if (cap < 64) cap = 64;
  char *grown = peri__realloc(b->ctx, b->data, b->cap, cap);
  if (grown == NULL) return false;
  b->data = grown;
  b->cap = cap;
  return true;
}

void peri__buffer_free (peri__buffer *b) {
  if (b->ctx != NULL) peri__free(b->ctx, b->data, b->cap);
  b->data = NULL;
  b->size = b->cap = 0;
}
