/*
** untrusted.h - what the tests of parsers and files share: a context over an allocator that counts
** and can be limited, scratch folders, whole files.
*/
#ifndef untrusted_h
#define untrusted_h

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/core.h"

typedef struct heap {       /* everything that a context has taken from its host */
  size_t live, peak, limit; /* limit 0 = none */
  int64_t blocks;
} heap;

/* A context without threads that allocates from h. */
peri_ctx *open_counted (heap *h);
/* Close it and fail unless everything was given back. */
void close_counted (peri_ctx *ctx, heap *h);
/* A fresh folder below the system's temporary one; remove with peri_remove_tree. */
const char *scratch_folder (char path[256]);
void write_file (const char *path, const void *data, size_t size);
/* Runs use with its first, second, ... allocation failing, that one alone and with all that follow, until
** it takes no more: it must answer PERI_ENOMEM and leave nothing behind. borne: one that fails alone
** may be done without. */
void fail_every_allocation (peri_ctx *ctx, const heap *h, bool borne, peri_status (*use)(void *ud),
                            void *ud);
/* Fails the test unless s is want and the message holds every given part (NULL ends). */
void want_failure (peri_ctx *ctx, peri_status s, peri_status want, const char *part);

#endif
