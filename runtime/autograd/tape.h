/*
** tape.h - the record of one op call. The tape is a list of nodes in order of creation. A node is
** owned by its outputs: it holds its inputs, its outputs hold it, and when the last output dies the
** node leaves the tape. So a graph that nobody can differentiate any more costs nothing, and a
** session without scopes does not grow.
*/
#ifndef peri_tape_h
#define peri_tape_h

#include "op/op.h"

/* The vjp of a segment, a stretch that is run again in the backward pass: as peri_vjp_fn, and it is
** told v, for peri__segment_gradients. */
typedef peri_status (*peri__segment_fn)(void *ud, peri_vjp *v, int nout, peri_tensor *const *gout,
                                        int nin, peri_tensor **gin);

struct peri_node {
  const peri_op *op; /* NULL: a custom vjp */
  const char *name;
  peri_node *prev, *next;
  int nin, nout, live; /* live: outputs that still have references */
  bool marked;         /* leads to a tensor that peri_gradients wants */
  bool barrier;        /* a pass begun after it never goes before it: checkpoints recompute there */
  peri_tensor **in;    /* held; NULL for absent optionals */
  peri_tensor **out;   /* not held: they hold the node */
  peri_tensor **g;     /* gradients of the outputs in the pass in progress; held */
  uint32_t *version;   /* of each input's storage, then of each output's, when recorded */
  peri_attr *attr;
  struct {
    int start, count;
  } list[6];
  peri_vjp_fn vjp; /* of a custom one; NULL: a segment */
  peri__segment_fn segment;
  void (*release)(void *ud);
  void *ud;
  size_t size; /* of the block this struct is in, arrays included */
};

/* Record c (inputs as the caller gave them). Outputs become tracked. */
peri_status peri__record (peri_ctx *ctx, const peri_call *c);
/*
** peri_backward; with chain, gradients of leaves are one chain of additions over all passes since
** they were dropped: a pass goes on where the former one ended, row by row, instead of adding a sum
** of its own. So rows that are cut into passes in any way have the same gradient, bit for bit. That
** holds for a leaf that one op uses once, f32 or f64, and ops whose vjps ask peri__chain, also
** within segments, several of which may use it; what else a leaf gets is added as ever.
*/
PERI_API peri_status peri__backward (peri_ctx *ctx, peri_tensor *root, peri_tensor *seed,
                                     bool retain_graph, bool chain);
/*
** For a vjp that sums over rows: is the gradient of input i such a chain? Then *out, a dense tensor
** of the input's shape that the builder owns, holds where it begins; the vjp adds its rows to it in
** their order and gives it as gin[i]. NULL: the builder holds a failure.
*/
bool peri__chain (peri_vjp *v, int i, peri_tensor **out);

/* peri_record_custom for a segment. */
PERI_API peri_status peri__record_segment (peri_ctx *ctx, const char *name, int nin,
                                           peri_tensor *const *in, int nout,
                                           peri_tensor *const *out, peri__segment_fn segment,
                                           void (*release)(void *ud), void *ud);
/*
** peri_gradients of root, for the vjp of a segment: wrt[i] stands for input i of its node, and is
** that input where it is a leaf which the second run used as it is. Chains of the pass go through:
** the gradient of such a leaf goes on from what the pass and those before it gave it. What the pass
** has pending on these leaves, and its own wishes, are as they were.
*/
PERI_API peri_status peri__segment_gradients (peri_vjp *v, peri_tensor *root,
                                              peri_tensor *const *wrt, peri_tensor **gin);

/* Does t have dense memory that nobody sees but the holder of its one reference? */
PERI_API bool peri__owned (const peri_tensor *t);
/* Make *t, a held reference, such a tensor: itself or a copy, outside every graph unless gradients
** are on. NULL stays. */
peri_status peri__own (peri_tensor **t);
/* Take the node out of the tape and drop its inputs; outputs become constants, marked FREED. */
void peri__node_drop (peri_node *n, bool freed);

#endif
