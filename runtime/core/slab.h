/*
** slab.h - large blocks for the pool of core/alloc.c where the host gave no allocator: memory in
** huge pages, which weights and activations are read from a quarter faster than from small ones.
*/
#ifndef peri_slab_h
#define peri_slab_h

#include <stdbool.h>
#include <stddef.h>

typedef struct peri__slab peri__slab;

/* Whether blocks of n bytes are worth a place in a slab on this system. */
bool peri__slab_wants (size_t n);
/* Page-aligned. *current is the slab being filled, NULL at first. NULL when memory is short. */
void *peri__slab_get (peri__slab **current, size_t n);
/* n as it was asked for. The memory goes back to the system at once. */
void peri__slab_put (peri__slab **current, void *p, size_t n);

#endif
