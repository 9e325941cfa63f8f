/*
** sandbox.h - programs in processes of their own that cannot be trusted: started, watched, stopped and reaped, many
** at once by one thread. What they are told is in memory, what they answer comes through pipes; nothing of the host's
** process changes: no handler, mask, folder or environment, and no other child is waited for.
*/
#ifndef peri_sandbox_sandbox_h
#define peri_sandbox_sandbox_h

#include "core/core.h"

typedef enum peri__sandbox_end {
  PERI__SANDBOX_EXITED,    /* code: its exit status */
  PERI__SANDBOX_SIGNALLED, /* code: the signal */
  PERI__SANDBOX_TIMED_OUT, /* on the clock */
  PERI__SANDBOX_FLOODED,   /* it wrote more than it may */
  PERI__SANDBOX_UNKNOWN /* somebody else has its status: the host waits for all children, or for none */
} peri__sandbox_end; /* ORDER sandbox_ends */

typedef struct peri__sandbox_bytes {
  char *p;
  size_t n, room;
} peri__sandbox_bytes;

typedef struct peri__sandbox_job {
  const void *request; /* descriptor 0 of the program; borrowed */
  size_t request_size;
  double wall;                    /* seconds on the clock */
  size_t most_output, most_reply; /* bytes */
  peri__sandbox_bytes output;     /* descriptors 1: what it has printed */
  peri__sandbox_bytes reply;      /* and 3 */
  peri__sandbox_end end;
  int code;
  double seconds, cpu; /* of the clock, of the processor */
  size_t memory;       /* the most it had, by the system's count */
} peri__sandbox_job;

/* Run the program once for each job, at most `workers` at a time. On failure every process has ended, too.
** PERI_EIO: it cannot be started, PERI_EINTR: the context was interrupted. */
PERI_API peri_status peri__sandbox_run (peri_ctx *ctx, const char *program, peri__sandbox_job *jobs,
                                        size_t n, size_t workers);
/* What the jobs were given by peri__sandbox_run. */
PERI_API void peri__sandbox_free (peri_ctx *ctx, peri__sandbox_job *jobs, size_t n);
/* Where the helper program is: in the folder of the library or program that this code is in, or where an
** installation has it from there. PERI_EIO with the places that were looked at. */
PERI_API peri_status peri__sandbox_find (peri_ctx *ctx, char *path, size_t size);

#endif
