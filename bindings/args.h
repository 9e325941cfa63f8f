/*
** args.h - one op as Lua sees it, and the arguments of one call.
*/
#ifndef peri_args_h
#define peri_args_h

#include "bind.h"
#include "op/op.h"

typedef struct peri__op_binding {
  peri_bind *b;
  const peri_op *op;
  const peri_sig *sig;
  const peri_attr *defaults; /* of every attribute that has one */
  int nattr, nret;           /* attributes; tensors returned */
  bool hooked;               /* may be intercepted: linear, embedding */
} peri__op_binding;

#define PERI_ARGS_FEW 64

typedef struct peri__args {
  const peri__op_binding *o;
  int nin, each, nints; /* each: length of every list of tensors */
  peri_tensor **in;     /* nin entries */
  int64_t *ints;        /* nints entries */
  peri_attr attr[PERI_MAX_PARAM];
  struct {
    int arg, at;
  } number[PERI_MAX_PARAM]; /* plain numbers among the tensors */
  int nnumber;
} peri__args;

/* Spread names, settle the stack to one slot a parameter, check every type; counts nin and nints.
** Raises. a need hold nothing. */
void peri__args_check (lua_State *L, const peri__op_binding *o, peri__args *a);
/* Fill in, ints (with room for nin and nints) and attr. Tensors are borrowed from the stack,
** numbers are new references: drop them after the call. Does not raise. */
peri_status peri__args_take (lua_State *L, peri__args *a);
void peri__args_drop (peri__args *a);

#endif
