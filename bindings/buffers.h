/* buffers.h - what the bindings of replay buffers and rollouts share: replay.c has it. */
#ifndef peri_buffers_h
#define peri_buffers_h

#include "keep.h"

/* The list at idx of { name, dtype, role, size, ... } as fields in a new userdata; names are borrowed
** from it. role: 0 of a step, 1 observed, 2 of a sequence's start. */
peri_field *peri__want_fields (lua_State *L, int idx, const char *fn, int *n);
/* Of the table at idx the tensor called name, or NULL; a number or boolean becomes one of dtype d.
** Leaves one value on the stack, which holds it. *found counts those that there are. */
peri_tensor *peri__named_row (lua_State *L, int idx, const char *fn, const char *name, peri_dtype d,
                              int *found);
/* Raises where the table at idx has another number of entries than were found, by the name of one that
** name_at(ud, i), NULL behind the last, does not give. */
void peri__all_known (lua_State *L, int idx, const char *fn, int found,
                      const char *(*name_at)(void *ud, int i), void *ud);
peri_rollout *peri__rollout_at (lua_State *L, int arg, const char *fn); /* rollout.c */
lua_Integer peri__want_integer (lua_State *L, int arg, const char *fn, const char *name);

#endif
