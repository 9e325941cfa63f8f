/*
** child.h - a program in a process of its own: a socket to talk over, memory in common. Of the host's
** process nothing changes: no handler, mask, folder or environment, and descriptors close on exec.
*/
#ifndef peri_env_child_h
#define peri_env_child_h

#include "core/core.h"

enum { PERI__CHILD_SOCKET = 3, PERI__CHILD_MEMORY = 4 }; /* descriptors in the child */

typedef struct peri__child {
  peri_ctx *ctx;
  int pid; /* 0: it has ended, or never was */
  int socket, output, memory;
  size_t nsaid;
  char said[2000]; /* the end of what it has printed */
  char why[256];   /* why the last call below answered false */
  bool interrupted;
} peri__child;

/* argv ends with NULL, argv[0] is looked for in PATH. The memory is shared with other children where `memory` is
** not -1: a descriptor of peri__shared_memory. */
peri_status peri__child_start (peri_ctx *ctx, const char *const *argv, int memory, peri__child *c);
/* All n bytes, or false; deadline in peri__now(). What the child prints meanwhile is kept. */
bool peri__child_send (peri__child *c, const void *data, size_t n, double deadline);
bool peri__child_receive (peri__child *c, void *data, size_t n, double deadline);
/* Ends it: it is told, waited for a moment, and killed. Idempotent. */
void peri__child_close (peri__child *c);

/* Anonymous memory that processes can map; -1 with the message set. Its size is given once and then fixed, so that
** nobody can take pages away from under who reads them. */
int peri__shared_memory (peri_ctx *ctx);
peri_status peri__shared_memory_map (peri_ctx *ctx, int fd, size_t bytes, void **out);

#endif
