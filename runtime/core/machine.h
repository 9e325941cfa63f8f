/* machine.h - what the machine gives this process. */
#ifndef peri_machine_h
#define peri_machine_h

#include "core/core.h"

/* peri_machine_memory with the files below root instead of /. */
size_t peri__memory_under (const char *root);

#endif
