/*
** slab.c - blocks cut one after the other from mappings of SLAB bytes for which huge pages are
** asked. Room that was given back is not handed out again (the pool keeps blocks that are); a slab
** is unmapped with its last block.
*/
#define _GNU_SOURCE
#include "core/slab.h"

#include <stdint.h>

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) /* which should see every overrun */
#include <sys/mman.h>
#endif

#ifdef MADV_HUGEPAGE

#define SLAB ((size_t)32 << 20) /* and the alignment, so that a block finds its slab */
#define PAGE ((size_t)4096)
#define LEAST ((size_t)256 << 10)

struct peri__slab { /* in its first page */
  size_t size, used;
  size_t blocks; /* that are out */
};

bool peri__slab_wants (size_t n) { return n >= LEAST; }

static size_t pages (size_t n) { return (n + PAGE - 1) & ~(PAGE - 1); }

/* size is a multiple of a page. */
static peri__slab *slab_new (size_t size) {
  if (size > SIZE_MAX - SLAB) return NULL;
  /* Accounted for (no MAP_NORESERVE): the kernel refuses what it can never back. */
  char *p = mmap(NULL, size + SLAB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return NULL;
  size_t before = (SLAB - (uintptr_t)p % SLAB) % SLAB;
  if (before > 0) munmap(p, before);
  if (before < SLAB) munmap(p + before + size, SLAB - before);
  p += before;
  madvise(p, size, MADV_HUGEPAGE); /* small pages do as well */
  peri__slab *s = (peri__slab *)(void *)p;
  *s = (peri__slab){ size, PAGE, 0 };
  return s;
}

void *peri__slab_get (peri__slab **current, size_t n) {
  if (n > SIZE_MAX - SLAB) return NULL;
  size_t bytes = pages(n);
  bool alone = bytes > SLAB / 2;
  peri__slab *s = *current;
  if (alone || s == NULL || s->size - s->used < bytes) {
    s = slab_new(alone ? PAGE + bytes : SLAB);
    if (s == NULL) return NULL;
    if (!alone) *current = s;
  }
  void *p = (char *)s + s->used;
  s->used += bytes;
  s->blocks++;
  return p;
}

void peri__slab_put (peri__slab **current, void *p, size_t n) {
  peri__slab *s = (peri__slab *)((uintptr_t)p & ~(uintptr_t)(SLAB - 1));
  if (--s->blocks > 0) {
    madvise(p, pages(n), MADV_DONTNEED);
    return;
  }
  if (*current == s) *current = NULL;
  munmap(s, s->size);
}

#else

bool peri__slab_wants (size_t n) {
  (void)n;
  return false;
}

void *peri__slab_get (peri__slab **current, size_t n) {
  (void)current;
  (void)n;
  return NULL;
}

void peri__slab_put (peri__slab **current, void *p, size_t n) {
  (void)current;
  (void)p;
  (void)n;
}

#endif
