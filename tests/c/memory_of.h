/* memory_of.h - the counts of a context's memory as a value, for tests that compare one of them. */
#ifndef memory_of_h
#define memory_of_h

#include "perilune.h"

static inline peri_memory memory_of (peri_ctx *ctx) {
  peri_memory m = { 0 };
  m.struct_size = sizeof m;
  (void)peri_memory_stats(ctx, &m);
  return m;
}

#endif
