/*
** op.h - the descriptor of an op and the one list of them. A family file in op/ holds, for each
** op, one block: shape rule, kernel, vjp, descriptor. Lua functions, help, stubs, docs/ops.md and
** the table-driven tests are derived from the descriptors.
*/
#ifndef peri_op_h
#define peri_op_h

#include "core/core.h"
#include "cpu/math.h"

#define PERI_MAX_OUT 6
#define PERI_MAX_PARAM 24

/*
** Signatures: parameters separated by ", ". A parameter is name[:kind][=default]. Kinds:
**   (none)   tensor; a plain number joins in as a weak 0-dim tensor
**   tensor?  tensor or nil              tensors  list of tensors; several lists have one length, an
**            empty one counts as that many NULLs; call->list has start and count of each
**   int num bool str dtype              dtype default "none" = -1 = decided by the op
**   dim      a dim; Lua writes 1..n or -1..-n, the op sees 0..n-1 or negative (peri__dim)
**   pos      a position in a dim; Lua writes 1..n or -1..-n, the op sees 0..n-1 or negative
**   dims     list of dims or one dim; default all = n is -1
**   shape    list of sizes (-1 allowed where the op says so)       ints  list of plain integers
** A default may be "none" for str (NULL), int (INT64_MIN), num (NAN), dtype (-1), ints (n = -1).
** Tensors come first in a signature, then attributes.
*/
typedef struct peri_sig {
  int n, ntensor, nattr, nlist; /* ntensor counts every tensor kind, lists (nlist) included */
  const peri_param *p;          /* n entries, tensors first */
} peri_sig;

/* One call of one op: what infer, kernels, costs and vjp all receive. */
typedef struct peri_call {
  peri_ctx *ctx;
  const peri_op *op;
  const peri_sig *sig; /* of op */
  int nin;
  peri_tensor **in;      /* nin entries, absent optionals NULL */
  const peri_attr *attr; /* one for each attribute of the signature */
  struct {
    int start, count;
  } list[6]; /* of each "tensors" parameter, in order */
  peri_tensor *out[PERI_MAX_OUT];
} peri_call;

/* Builder: ops called from C with one sticky status, so that formulas read as formulas. Results
** are borrowed: the builder owns every intermediate until peri__build_end. Once something failed,
** or an input is NULL, every call returns NULL and does nothing. */
typedef struct peri_build {
  peri_ctx *ctx;
  peri_status status;
  int mark;
} peri_build;

void peri__build_begin (peri_build *b, peri_ctx *ctx);
peri_status peri__build_end (peri_build *b); /* releases the intermediates, returns the status */
/* out 0 of op; peri__build_all gives every output. */
peri_tensor *peri__build (peri_build *b, const peri_op *op, int nin, peri_tensor *const *in,
                          const peri_attr *attr);
void peri__build_all (peri_build *b, const peri_op *op, int nin, peri_tensor *const *in,
                      const peri_attr *attr, peri_tensor **out);
peri_tensor *peri__build_scalar (peri_build *b, double v);    /* weak 0-dim f64 */
peri_tensor *peri__build_own (peri_build *b, peri_tensor *t); /* hand a new reference over */
void peri__build_fail (peri_build *b, peri_status s);         /* keeps the first failure */

/* B(b, mul, x, y) and BA(b, sum, ATTR(A_DIMS(v, n), A_INT(1)), x). */
#define B(b, name, ...) BA(b, name, NULL, __VA_ARGS__)
#define BA(b, name, attrs, ...)                                                        \
  peri__build((b), &peri__op_##name,                                                   \
              (int)(sizeof((peri_tensor *[]){ __VA_ARGS__ }) / sizeof(peri_tensor *)), \
              (peri_tensor *[]){ __VA_ARGS__ }, attrs)
#define ATTR(...) ((const peri_attr[]){ __VA_ARGS__ })
#define A_INT(x) \
  { .i = (x) }
#define A_NUM(x) \
  { .f = (x) }
#define A_STR(x) \
  { .s = (x) }
#define A_DIMS(x, k) \
  { .v = (x), .n = (k) }

/* What a vjp receives. g[k] may be NULL where out k got no gradient (at least one is not). Set
** gin[i] for every i with need[i] to a tensor of the builder (or to an input, or to g): borrowed.
** A gin of a broadcast shape is summed back and cast to the input's dtype by the engine. The
** outputs are not in c->out: their values are had from peri__saved, which refuses one that was
** changed in place since, and like[k] is there for its shape and dtype alone. */
typedef struct peri_vjp {
  peri_build b;
  const peri_call *c;
  peri_tensor *const *like;
  const uint32_t *version; /* of each output's storage when it was recorded */
  peri_tensor *const *g;
  const bool *need;
  peri_tensor **gin;
} peri_vjp;

/* Output k with the values that the op gave it, borrowed; NULL and a failure of the builder when
** somebody has written into it. */
PERI_API peri_tensor *peri__saved (peri_vjp *v, int k);

/* Beside those of peri_op_flag, which hosts see; PERI_OP_GRAD is derived, not set. */
enum {
  PERI_OP_STRIDED = 1,  /* the kernel walks strides itself; else it gets dense inputs */
  PERI_OP_FLOAT = 32,   /* inputs are promoted to one float dtype (ints to f32) before infer */
  PERI_OP_UPCAST = 128, /* f16 and bf16 inputs are cast to f32 first, float outputs cast back */
  PERI_OP_UNSET = 512   /* its elements mean nothing yet: no NaN among them is an anomaly */
};

/*
** What the table-driven tests need to know of an op; it stands in the op's block as TESTS(...), the
** last thing there, and is compiled for tests only. Calls are written in the grammar of
** tests/lua/optest.lua: "x.shape=2,3; attr dim=1".
*/
#ifdef PERI_TESTING
typedef struct peri_op_tests {
  const char *domain;       /* one good call; NULL: that of the defaults */
  const char *variants[24]; /* more, which take other ways through the gradient */
  const char *large;        /* one that threads share */
  const char *refuses[24];  /* "call => words | words": refused with a message that has the words */
  const char *reference;    /* Lua: the results by other ops in f64, where no vectors are kept */
} peri_op_tests;
#define TESTS(...) .tests = { __VA_ARGS__ }
#else
#define TESTS(...)
#endif

struct peri_op {
  const char *name, *sig, *doc; /* doc: one sentence, shapes and source included */
  uint32_t flags;
  int nout;        /* outputs computed; 0 for PERI_OP_INPLACE */
  uint32_t writes; /* with PERI_OP_INPLACE: a bit for each parameter that is written */
  uint32_t unread; /* a bit for each parameter of whose values the vjp reads none */
  uint32_t
      targets; /* a bit for each parameter that is no path for gradients: refused while it takes
                    ** part in a graph */
  int nret;    /* outputs returned, 0 = nout; the rest is saved for the vjp */
  peri_status (*infer)(peri_call *c); /* checks, then makes c->out[] */
  peri_status (*cpu)(peri_call *c);   /* NULL for views and composites */
  void (*vjp)(peri_vjp *v);           /* NULL = not differentiable */
  void (*compose)(peri_build *b,
                  peri_call *c); /* instead of infer and cpu: sets c->out[], borrowed */
  void (*cost)(const peri_call *c, double *flops, double *bytes); /* NULL = bytes of in and out */
#ifdef PERI_TESTING
  peri_op_tests tests;
#endif
};

extern const peri_op *const peri__ops[]; /* NULL-terminated; op/list.c */
#define X(name) extern const peri_op peri__op_##name;
#include "op/list.h"
#undef X

/* OP: one output. OPN: n outputs computed (0 for in-place steps). */
#define OP(id, ...) OPN(id, 1, __VA_ARGS__)
#define OPN(id, n, ...) const peri_op peri__op_##id = { .name = #id, .nout = (n), __VA_ARGS__ }

/* NULL: no op of the table. Parsed once a process, read-only afterwards; a call looks it up once. */
PERI_API const peri_sig *peri__sig (const peri_op *op);

/* ---- helpers for shape rules and kernels: op/common.c ---- */
/* A dim attribute (may be negative) -> 0..ndim-1, or a message that names both. */
peri_status peri__dim (peri_ctx *ctx, int64_t d, int ndim, int *out);
/* A dims attribute -> flags[0..ndim-1]; n == -1 means all. Repeats are refused. */
peri_status peri__dims (peri_ctx *ctx, const peri_attr *a, int ndim, bool flags[PERI_MAX_DIMS]);
/* Broadcast shape of two tensors (either may be NULL). */
peri_status peri__broadcast (peri_ctx *ctx, const peri_tensor *a, const peri_tensor *b, int *ndim,
                             int64_t shape[PERI_MAX_DIMS]);
/* Stride of t along dim i of an ndim-dim broadcast result: 0 where t is broadcast. */
int64_t peri__bstride (const peri_tensor *t, int ndim, int i);
/* Dtype of mixing the given tensors, weak ones by category only. */
peri_dtype peri__promote (int n, peri_tensor *const *in);
/* The same of inputs first, first + 1, ... of a call, two of one dtype fast. */
static inline int peri__promoted (const peri_call *c, int first, int n) {
  const peri_tensor *a = c->in[first], *b = c->in[first + n - 1];
  if (n == 2 && a->dtype == b->dtype && !((a->flags | b->flags) & PERI_T_WEAK)) return a->dtype;
  return peri__promote(n, c->in + first);
}
/* Borrow-free helpers that return new references. */
peri_status peri__contiguous (peri_tensor *t, peri_tensor **out);         /* t itself when dense */
peri_status peri__cast (peri_tensor *t, peri_dtype d, peri_tensor **out); /* t itself when equal */
/* Does t hold a NaN? Gradients pay for the place of one only where there is one. */
bool peri__any_nan (peri_build *b, peri_tensor *t);
/* infer rule "one output, shape and dtype of input 0". */
peri_status peri__infer_same (peri_call *c);
peri_status peri__want_dtype (peri_call *c, int i, const char *name,
                              int dtype); /* message on mismatch */
peri_status peri__want_float (peri_call *c, int i, const char *name);
peri_status peri__want_wide (peri_call *c, int i, const char *name); /* f32 or f64 */
peri_status peri__want_ndim (peri_call *c, int i, const char *name, int ndim);
/* Are size heads heads of q and kv_heads of k and of v? For any numbers: heads.c */
bool peri__heads_fit (int64_t size, int64_t heads, int64_t kv_heads);

/* ---- dispatch: op/apply.c ---- */
peri_status peri__apply (peri_ctx *ctx, const peri_op *op, int nin, peri_tensor *const *in,
                         const peri_attr *attr, peri_tensor **out);
/* peri_apply for code of this version, which knows the counts: attr has every attribute or is NULL for
** the defaults. Messages begin without the op's name: the caller is what the user called. */
PERI_API peri_status peri__invoke (peri_ctx *ctx, const peri_op *op, int nin,
                                   peri_tensor *const *in, const peri_attr *attr,
                                   peri_tensor **out);
/* peri_apply_inplace without the checks of what comes from outside; attr has every attribute. */
peri_status peri__apply_inplace (peri_ctx *ctx, const peri_op *op, int nin, peri_tensor *const *in,
                                 const peri_attr *attr);

#endif
