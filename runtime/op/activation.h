/*
** activation.h - the one registry of activations: what linear and the gated ops take as act, what the
** layers of nn are named, what configs of published models call them. A block of activation.c each.
*/
#ifndef peri_activation_h
#define peri_activation_h

#include "cpu/math.h"
#include "op/op.h"

typedef struct peri__act {
  const char *name;      /* as linear's act has it, and of the op */
  const char *layer;     /* class of perilune.nn */
  const char *published; /* other names for it, a space between; "" for none */
  double gain;           /* of initial weights before it: keeps the variance; 0 = none is known */
  const peri_op *op;     /* y of x alone, its attributes being attr */
  const peri_attr *attr; /* NULL for none */
  const peri_op *back;   /* the gradient of x, from what is saved and the gradient of y */
  int id;                /* PERI_ACT_ */
  int unary;             /* PERI_MATH_ ids of the f32 kernels */
  int binary;
  bool from_input, from_output; /* which of x and y the gradient may read: one or either */
  peri__kernel f64, back_f64;
  /* d slope / d saved as ops, where back is slope(saved) g; NULL = 0 everywhere. */
  peri_tensor *(*bend)(peri_build *b, peri_tensor *saved);
} peri__act;

PERI_API const peri__act *peri__act_at (int i); /* NULL beyond the last */
/* The activation of that name, or NULL for NULL and "none"; else a message that tells the names. */
peri_status peri__act_named (peri_ctx *ctx, const char *name, const peri__act **out);

#endif
