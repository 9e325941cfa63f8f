/*
** perilune.h - the whole public C API: contexts, tensors, ops, autograd, threads, files. It includes the headers of
** perilune/, which hold a theme each.
**
** Rules that hold everywhere:
** - What can fail returns peri_status; the message is in the context (peri_message). On failure
**   nothing observable has changed and no output is written.
** - Nothing here prints, exits, aborts, or touches the process (locale, signals, environment).
** - All memory comes from the host's allocator when one is given.
** - A context and everything made in it belong to one thread at a time. Two contexts share nothing but
**   what peri_share hands over, and may run on two threads at once. peri_interrupt and
**   peri_interrupt_request may be called from any thread or signal, peri_post and what takes a
**   peri_shared from any thread.
** - Functions that make a tensor return a new reference owned by the caller; release it with
**   peri_release. "Borrowed" is said where that is not so. Pointers may not be NULL unless said.
** - What a caller gets wrong is answered: a NULL, a tensor of another context, an index or a number
**   out of range give PERI_EINVAL or the status that fits with a message, and 0, false, -1, NULL or an
**   empty struct from what has no status. Without a context there is no message.
** - In C everything counts from 0, messages too; negative dims count from the end. What a script reads
**   of the same failure counts dims, positions, inputs and entries of lists from 1. A message of an op
**   begins with its name ("matmul: ..."). Sizes are in elements unless the name says bytes.
** - Structs whose first field is struct_size grow at their end in later versions: set it to the size that
**   the host was compiled with (an _init function does); fields that one side does not know are 0. So do
**   structs that are only lent (peri_param). All others never grow; enums may gain values.
*/
#ifndef perilune_h
#define perilune_h

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define PERI_API __attribute__((visibility("default")))
#define PERI_PRINTF(a, b) __attribute__((format(printf, a, b)))
#else
#define PERI_API
#define PERI_PRINTF(a, b)
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define PERI_VERSION_MAJOR 0
#define PERI_VERSION_MINOR 1
#define PERI_VERSION_PATCH 0
/* To compare: 1.2.3 is 10203. */
#define PERI_VERSION_NUM \
  (PERI_VERSION_MAJOR * 10000 + PERI_VERSION_MINOR * 100 + PERI_VERSION_PATCH)
#define PERI_TEXT_(x) #x
#define PERI_TEXT(x) PERI_TEXT_(x)
#define PERI_VERSION            \
  PERI_TEXT(PERI_VERSION_MAJOR) \
  "." PERI_TEXT(PERI_VERSION_MINOR) "." PERI_TEXT(PERI_VERSION_PATCH)
#define PERI_MAX_DIMS 8

typedef enum peri_status {
  PERI_OK = 0,
  PERI_ENOMEM,  /* the allocator returned NULL or a limit was reached */
  PERI_ESHAPE,  /* shapes do not fit together */
  PERI_EDTYPE,  /* dtype not accepted here */
  PERI_EINVAL,  /* an argument is out of its range */
  PERI_ENOSUP,  /* not supported, e.g. no second derivative */
  PERI_EIO,     /* the operating system refused; the message has its reason */
  PERI_EFORMAT, /* a file or text is malformed; the message has the offset */
  PERI_EINTR,   /* peri_interrupt was called */
  PERI_EHOST    /* a host callback (reward, custom vjp) failed */
} peri_status;

/* ORDER dtype: names and sizes are in core/dtype.c, one element is read and written in core/element.h;
** tests/lua/test_orders.lua finds the rest by this mark. */
typedef enum peri_dtype {
  PERI_BOOL, /* one byte, 0 or 1 */
  PERI_U8,
  PERI_I32,
  PERI_I64,
  PERI_F16,  /* IEEE half; arithmetic in f32 */
  PERI_BF16, /* bfloat16; arithmetic in f32 */
  PERI_F32,
  PERI_F64,
  PERI_NDTYPE, /* number of plain types */
  /* Block-quantised weights in the formats of ggml (ggml-common.h). The last dim of such a tensor is
  ** a multiple of the block (32 elements, 256 for _K). Only ops that take weights accept them. */
  PERI_Q8_0 = 16, /* 34 bytes for 32 */
  PERI_Q4_0,      /* 18 */
  PERI_Q4_1,      /* 20 */
  PERI_Q5_0,      /* 22 */
  PERI_Q5_1,      /* 24 */
  PERI_Q4_K,      /* 144 bytes for 256 */
  PERI_Q5_K,      /* 176 */
  PERI_Q6_K,      /* 210 */
  PERI_DTYPE_END
} peri_dtype;

typedef enum peri_simd {
  PERI_SIMD_AUTO,
  PERI_SIMD_PORTABLE,
  PERI_SIMD_AVX2,
  PERI_SIMD_AVX512
} peri_simd;
typedef enum peri_log_level {
  PERI_LOG_DEBUG,
  PERI_LOG_INFO,
  PERI_LOG_WARN,
  PERI_LOG_ERROR
} peri_log_level;

typedef struct peri_ctx peri_ctx;       /* owns pool, threads, RNG, tape, last error */
typedef struct peri_tensor peri_tensor; /* a refcounted strided view of refcounted storage */
typedef struct peri_op peri_op;         /* a descriptor; see peri_op_find */

/* ---- contexts ---------------------------------------------------------------------------- */

/* Host allocator. nsize == 0 frees ptr and returns NULL; ptr == NULL allocates; else resizes.
** Returned memory is aligned to at least 16 bytes. The same shape as lua_Alloc, so one function
** serves C and Lua. */
typedef void *(*peri_alloc_fn)(void *ud, void *ptr, size_t osize, size_t nsize);
/* One whole line, no newline. */
typedef void (*peri_log_fn)(void *ud, peri_log_level level, const char *line);
/* Run task(arg, i) for every i in [0, n), in any order, on any threads; return when all are done. */
typedef void (*peri_parallel_fn)(void *ud, int n, void (*task)(void *arg, int i), void *arg);

typedef struct peri_options {
  uint32_t struct_size;     /* sizeof(peri_options); set by peri_options_init. Another size than
                            ** one that the struct has had is PERI_EINVAL */
  int threads;              /* workers incl. the caller; 0 = one per processor allowed */
  peri_simd simd;           /* AUTO = the best that the processor has */
  peri_log_level log_level; /* lines below are not even formatted */
  uint64_t seed;            /* of the context's generator */
  size_t max_bytes;         /* limit on live tensor bytes; 0 = none. With scratch and rounding at
                            ** most an eighth and 1 MiB more are taken from the allocator. */
  peri_alloc_fn alloc;      /* NULL = malloc */
  void *alloc_ud;
  peri_log_fn log; /* NULL = silent */
  void *log_ud;
  peri_parallel_fn parallel_for; /* NULL = own pool */
  void *parallel_ud;
} peri_options;

PERI_API void peri_options_init (peri_options *o);
/* NULL options = defaults. On failure *out is NULL (there is no context to hold a message). */
PERI_API peri_status peri_open (const peri_options *o, peri_ctx **out);
/* Frees everything that the context owns but memory that others hold (peri_share). Tensors still held by
** the host are freed with it; tasks still in its queue are dropped. */
PERI_API void peri_close (peri_ctx *ctx); /* NULL is a no-op */
PERI_API const char *peri_message (const peri_ctx *ctx);
PERI_API const char *peri_status_name (peri_status s);
/* Of the library that runs: it may be another than that of the header that a host was compiled with. */
PERI_API const char *peri_version (void);
PERI_API int peri_version_num (void);
/* Make the running op and every later one return PERI_EINTR until peri_interrupt_clear. */
PERI_API void peri_interrupt (peri_ctx *ctx);
PERI_API void peri_interrupt_clear (peri_ctx *ctx); /* a noted request, too */
/* Ask for a stop. While a script has said that it looks for requests (peri.on_interrupt in Lua), the
** first one is only noted for it: true. Otherwise, and from the second on, peri_interrupt: false. */
PERI_API bool peri_interrupt_request (peri_ctx *ctx);
PERI_API void peri_log (peri_ctx *ctx, peri_log_level level, const char *fmt, ...)
    PERI_PRINTF(3, 4);
/* The context's allocator, for hosts and bindings that share it (lua_newstate). */
PERI_API void peri_allocator (const peri_ctx *ctx, peri_alloc_fn *fn, void **ud);

typedef struct peri_memory {
  uint32_t struct_size;  /* sizeof(peri_memory), set by the caller */
  size_t live_bytes;     /* tensor bytes in use now */
  size_t peak_bytes;     /* highest live_bytes since peri_open or peri_memory_reset_peak */
  size_t reserved_bytes; /* taken from the allocator, pooled blocks included */
  size_t tensors;        /* tensor handles alive */
  size_t max_bytes;      /* the limit on live_bytes; 0 = none */
  size_t shared_bytes; /* of other contexts' memory, seen here: in live_bytes of its owner alone */
} peri_memory;
PERI_API peri_status peri_memory_stats (peri_ctx *ctx, peri_memory *out);
PERI_API void peri_memory_reset_peak (peri_ctx *ctx);
PERI_API void peri_memory_trim (peri_ctx *ctx); /* give pooled free blocks back to the allocator */
/* Bytes of memory that this process may use: the machine's, or less where a control group (a
** container) says so; 0: unknown. The program and the module for stock Lua take seven eighths of it
** for max_bytes. */
PERI_API size_t peri_machine_memory (void);

PERI_API int peri_threads (const peri_ctx *ctx);
PERI_API const char *peri_simd_name (const peri_ctx *ctx); /* "portable", "avx2", "avx512" */

/* ---- tensors ------------------------------------------------------------------------------ */

PERI_API size_t peri_dtype_size (peri_dtype d); /* bytes of an element; 0 for quantised types */
/* Elements and bytes of a block; 1 element for plain types. */
PERI_API int peri_dtype_block (peri_dtype d, size_t *bytes);
PERI_API const char *peri_dtype_name (peri_dtype d);                /* "f32" ... */
PERI_API bool peri_dtype_parse (const char *name, peri_dtype *out); /* also "float32" ... */
/* Result dtype of mixing a and b: the higher of bool < u8 < i32 < i64 < f16, bf16 < f32 < f64;
** f16 with bf16 gives f32; an integer with a float gives that float. */
PERI_API peri_dtype peri_dtype_promote (peri_dtype a, peri_dtype b);

/* Uninitialised dense tensor. shape may be NULL when ndim is 0. */
PERI_API peri_status peri_empty (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                                 peri_tensor **out);
/* PERI_EINVAL when d is an integer dtype that does not hold value. */
PERI_API peri_status peri_scalar (peri_ctx *ctx, peri_dtype d, double value, peri_tensor **out);
/* Bytes of a tensor's elements laid out densely. */
PERI_API size_t peri_nbytes (const peri_tensor *t);
/* Copy dense row-major host data in. */
PERI_API peri_status peri_from (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                                const void *data, peri_tensor **out);
/* Wrap host memory without a copy. strides in elements, NULL = dense. release(ud, data) runs when
** the last view is gone (NULL = nobody to tell); on failure it has not run. */
PERI_API peri_status peri_import (peri_ctx *ctx, peri_dtype d, int ndim, const int64_t *shape,
                                  const int64_t *strides, void *data,
                                  void (*release)(void *ud, void *data), void *ud,
                                  peri_tensor **out);
PERI_API peri_tensor *peri_retain (peri_tensor *t);    /* NULL is a no-op */
PERI_API void peri_release (peri_tensor *t);           /* NULL is a no-op */
PERI_API peri_ctx *peri_ctx_of (const peri_tensor *t); /* borrowed */
PERI_API int peri_ndim (const peri_tensor *t);
PERI_API const int64_t *peri_shape (const peri_tensor *t);   /* borrowed, peri_ndim entries */
PERI_API const int64_t *peri_strides (const peri_tensor *t); /* borrowed, in elements */
PERI_API peri_dtype peri_dtype_of (const peri_tensor *t);
PERI_API int64_t peri_numel (const peri_tensor *t);
PERI_API bool peri_is_dense (const peri_tensor *t); /* row-major without gaps */
/* First element, for reading and, but for tensors that are shared read-only (peri_sharing), writing in
** place; valid while t is held. Borrowed. */
PERI_API void *peri_data (const peri_tensor *t);
/* One element by flat row-major position, converted to double. */
PERI_API peri_status peri_item (peri_tensor *t, int64_t flat, double *out);
PERI_API peri_status peri_copy_out (peri_tensor *t, void *dst, size_t bytes); /* dense, own dtype */

/* ---- sharing between contexts --------------------------------------------------------------- */

/* A tensor on its way to other contexts: a handle that any thread may hold, and pass on by whatever
** orders its memory accesses (a lock, a queue, a join). */
typedef struct peri_shared peri_shared;
typedef enum peri_share_mode {
  PERI_SHARE_DEFAULT, /* as the memory is shared already, else PERI_SHARE_READ */
  PERI_SHARE_READ,    /* nobody writes any more, the context that shared it included */
  PERI_SHARE_RACING /* every context may write at any time: what a reader sees of a write under way
                      ** is unspecified, element by element (Hogwild, asynchronous actor-critic) */
} peri_share_mode;
/* A handle for t, to be released; nothing is copied. From now on and for good t's memory, with all views
** of it, is in common: written by nobody, or by everybody; a second mode is PERI_EINVAL. Ops that would
** write into it when they may not are PERI_EINVAL. Quantised and packed weights and views are shared
** as they are; of a tensor's place in a graph nothing is: a leaf arrives as a plain tensor, a result of
** recorded ops is PERI_EINVAL until it is detached. In a graph each context sees its own writes
** into racing memory and none of the others'.
**
** The memory stays that of the context which made it: in its live_bytes, under its limit, freed by its
** allocator on its thread (at its next allocation) once no context and no handle is left that holds
** it. That context may be closed first: it then keeps its allocator's memory until the last holder
** lets go, on whose thread it is freed (and an imported tensor's release called). So the allocator
** of a context that shares must outlive what it shared and, like malloc, be callable from any thread. */
PERI_API peri_status peri_share (peri_tensor *t, peri_share_mode mode, peri_shared **out);
PERI_API peri_shared *peri_shared_retain (peri_shared *s); /* any thread; NULL is a no-op */
PERI_API void peri_shared_release (peri_shared *s);        /* any thread; NULL is a no-op */
/* A tensor of ctx over the memory of s, on ctx's thread. s stays the caller's. */
PERI_API peri_status peri_take (peri_ctx *ctx, peri_shared *s, peri_tensor **out);
/* How t's memory is shared; PERI_SHARE_DEFAULT: it is not. PERI_SHARE_READ: peri_data is for reading. */
PERI_API peri_share_mode peri_sharing (const peri_tensor *t);

/* ---- work from other threads ------------------------------------------------------------------ */

/* Something for a context's thread to do. The struct is the caller's and belongs to the queue from
** peri_post until one of its functions is called, so that posting needs no memory and cannot fail. */
typedef struct peri_task peri_task;
struct peri_task {
  void (*run)(void *ud,
              peri_ctx *ctx); /* on the context's thread; may post again, itself included */
  void (*drop)(void *ud);     /* instead of run, by peri_close; NULL: nobody to tell */
  void *ud;
  peri_task *next; /* the queue's */
};
/* Put a task at the end of ctx's queue, from any thread, before peri_close. A context that waits in
** peri_post_run wakes up. PERI_EINVAL: a NULL. No message. */
PERI_API peri_status peri_post (peri_ctx *ctx, peri_task *task);
/* Run what was posted, in order; where nothing was, wait for it up to so many seconds (0: not at all;
** INFINITY: until there is something). Tasks that are posted meanwhile are left for the next call. *ran (may be
** NULL): how many there were. PERI_EINTR when the context is interrupted; they stay in the queue. */
PERI_API peri_status peri_post_run (peri_ctx *ctx, double timeout, int *ran);
/* Have fn called when the queue was empty and a task comes, on the thread that posts: it tells an event
** loop of the host to call peri_post_run (writes to its eventfd), and may call nothing of this header.
** Called at once where tasks wait already. NULL ends it: no call is under way when this returns. */
typedef void (*peri_notify_fn)(void *ud);
PERI_API void peri_post_notify (peri_ctx *ctx, peri_notify_fn fn, void *ud);

/* ---- ops ---------------------------------------------------------------------------------- */

/* What a parameter of an op takes; ops.md and peri_op_signature write it as peri_kind_name says. Tensors
** stand before attributes. ORDER kind */
typedef enum peri_kind {
  PERI_K_TENSOR,
  PERI_K_OPTIONAL, /* tensor or NULL */
  PERI_K_TENSORS,  /* list of tensors; several lists of an op have one length, or are left out */
  PERI_K_INT,
  PERI_K_NUM,
  PERI_K_BOOL,
  PERI_K_STR,
  PERI_K_DTYPE,
  PERI_K_DIM,   /* 0 to n - 1, or -n to -1 from the end */
  PERI_K_POS,   /* position in a dim, counted likewise */
  PERI_K_DIMS,  /* list of dims */
  PERI_K_SHAPE, /* list of sizes */
  PERI_K_INTS   /* list of integers */
} peri_kind;
PERI_API const char *peri_kind_name (peri_kind k); /* "tensor?", "dims" ...; "" : there is none */

/* One attribute of an op call, in the order of the op's signature. A num is a double, f. An integer
** that a double may not hold (beyond 2^53) is given as i with whole set, and f nearest to it. */
typedef struct peri_attr {
  int64_t i;        /* int, dim, bool, dtype; num where whole */
  double f;         /* num */
  const char *s;    /* str; borrowed during the call */
  const int64_t *v; /* shape, dims, ints: n values; borrowed during the call */
  int n;
  bool whole; /* of a num: i is its exact value */
} peri_attr;

PERI_API int peri_op_count (void);
PERI_API const peri_op *peri_op_at (int i);              /* NULL when out of range */
PERI_API const peri_op *peri_op_find (const char *name); /* NULL when unknown */
PERI_API const char *peri_op_name (const peri_op *op);
PERI_API const char *peri_op_signature (const peri_op *op);
PERI_API const char *peri_op_doc (const peri_op *op);

typedef enum peri_op_flag {
  PERI_OP_VIEW = 2,    /* the result shares the memory of the first input */
  PERI_OP_INPLACE = 4, /* writes the parameters that say so, returns nothing, is never recorded */
  PERI_OP_ELEMENTWISE = 8, /* has an in-place twin, name_: peri_apply_inplace */
  PERI_OP_RANDOM = 16,     /* takes from the context's generator */
  PERI_OP_NO_GRAD2 = 64,   /* has no second derivative */
  PERI_OP_WEIGHT = 256,    /* takes or makes quantised and packed weights; others refuse them */
  PERI_OP_GRAD = 1 << 16   /* has a gradient */
} peri_op_flag;
PERI_API uint32_t peri_op_flags (const peri_op *op); /* of peri_op_flag; more may come */

/* A parameter of an op. The library makes and owns these, so that more fields may come. */
typedef struct peri_param {
  const char *name;
  peri_kind kind;
  bool written;     /* the op writes into this tensor: one with PERI_OP_INPLACE */
  bool has_default; /* an attribute that may be left out */
  /* What it is then. "None" is NULL of a str, INT64_MIN of an int, NAN of a num, -1 of a dtype, n = -1
  ** of a list, which of dims means all. */
  peri_attr def;
  bool
      target; /* no path for gradients: refused while it takes part in a graph, as an old log-probability */
} peri_param;
/* Counts of the signature: parameters, those of them that are attributes, tensors that are returned. */
PERI_API int peri_op_params (const peri_op *op);
PERI_API int peri_op_attrs (const peri_op *op);
PERI_API int peri_op_outputs (const peri_op *op);
PERI_API const peri_param *peri_op_param (const peri_op *op, int i); /* NULL: there is none */

/* Run one op. in: nin tensors in signature order, absent optionals NULL. attr: nattr entries, one for
** each attribute of the signature in its order, or NULL and 0 to take every default. out: nout
** entries, as many as the op returns tensors; NULL and 0 for one that writes in place. An op may gain
** attributes and results in a later version: a host that was compiled against fewer is told so,
** PERI_EINVAL and a message with both numbers, and nothing is read or written past what it gave. */
PERI_API peri_status peri_apply (peri_ctx *ctx, const peri_op *op, int nin, peri_tensor *const *in,
                                 int nattr, const peri_attr *attr, int nout, peri_tensor **out);

/* name_, the in-place twin of an elementwise op, which writes its result over in[0]: the result must
** have in[0]'s shape and dtype. Refused: in[0] may not be shared read-only, no elements of it may share
** memory (an expanded view), and while gradients are enabled neither it nor, where the op has a
** gradient, another input may take part in a graph. Inputs that are other views of the memory written
** are read as they were. PERI_ENOSUP: the op has no twin. */
PERI_API peri_status peri_apply_inplace (peri_ctx *ctx, const peri_op *op, int nin,
                                         peri_tensor *const *in, int nattr, const peri_attr *attr);

/* An argument by name, as the functions below make it. */
typedef struct peri_arg {
  const char *name; /* NULL: a tensor in its order, or a result */
  int given, n;
  union {
    int64_t i;
    double f;
    const char *s;
    const int64_t *v;
    peri_tensor *t;
    peri_tensor *const *list;
    peri_tensor **out;
  } as;
} peri_arg;

/* Run an op by its name with arguments by theirs, in any order:
**
**   PERI_CALL(ctx, "softmax", peri_in(x), peri_int("dim", -1), peri_out(&y))
**
** name: an op, or the in-place twin name_ of an elementwise one, which has no results. Attributes that
** are left out have their defaults, so that an op may gain some. Tensors come by name or, with peri_in,
** in the order of the signature; a plain number may stand for one: peri_num("y", 2) in a "mul".
** Results are given from the first on, as many of them as are wanted. PERI_EINVAL names what is
** unknown, and the name nearest to it, of the wrong kind, given twice or missing. */
PERI_API peri_status peri_apply_named (peri_ctx *ctx, const char *name, int n,
                                       const peri_arg *args);

/* ORDER arg: op/named.c */
enum {
  PERI_ARG_IN,
  PERI_ARG_LIST,
  PERI_ARG_OUT,
  PERI_ARG_INT,
  PERI_ARG_NUM,
  PERI_ARG_BOOL,
  PERI_ARG_STR,
  PERI_ARG_DTYPE,
  PERI_ARG_INTS
};
static inline peri_arg peri__arg (int given, const char *name) {
  peri_arg a;
  a.name = name;
  a.given = given;
  a.n = 0;
  a.as.v = NULL;
  return a;
}
/* The next tensor of the signature; NULL: an optional one that is left out. */
static inline peri_arg peri_in (peri_tensor *t) {
  peri_arg a = peri__arg(PERI_ARG_IN, NULL);
  a.as.t = t;
  return a;
}
static inline peri_arg peri_named (const char *name, peri_tensor *t) {
  peri_arg a = peri__arg(PERI_ARG_IN, name ? name : "");
  a.as.t = t;
  return a;
}
/* n tensors for a list; name NULL: the next parameter. */
static inline peri_arg peri_list (const char *name, int n, peri_tensor *const *list) {
  peri_arg a = peri__arg(PERI_ARG_LIST, name);
  a.n = n;
  a.as.list = list;
  return a;
}
/* The next result is written to *out, a new reference; NULL: it is not wanted. */
static inline peri_arg peri_out (peri_tensor **out) {
  peri_arg a = peri__arg(PERI_ARG_OUT, NULL);
  a.as.out = out;
  return a;
}
/* An int, dim or pos, a num, or a list of one. */
static inline peri_arg peri_int (const char *name, int64_t i) {
  peri_arg a = peri__arg(PERI_ARG_INT, name);
  a.as.i = i;
  return a;
}
static inline peri_arg peri_num (const char *name, double f) {
  peri_arg a = peri__arg(PERI_ARG_NUM, name);
  a.as.f = f;
  return a;
}
static inline peri_arg peri_bool (const char *name, bool on) {
  peri_arg a = peri__arg(PERI_ARG_BOOL, name);
  a.as.i = on;
  return a;
}
static inline peri_arg peri_str (const char *name, const char *s) {
  peri_arg a = peri__arg(PERI_ARG_STR, name);
  a.as.s = s;
  return a;
}
static inline peri_arg peri_type (const char *name, peri_dtype d) {
  peri_arg a = peri__arg(PERI_ARG_DTYPE, name);
  a.as.i = d;
  return a;
}
/* dims, a shape or ints. */
static inline peri_arg peri_ints (const char *name, int n, const int64_t *v) {
  peri_arg a = peri__arg(PERI_ARG_INTS, name);
  a.n = n;
  a.as.v = v;
  return a;
}
#ifndef __cplusplus
#define PERI_CALL(ctx, name, ...)                                                                \
  peri_apply_named((ctx), (name), (int)(sizeof((peri_arg[]){ __VA_ARGS__ }) / sizeof(peri_arg)), \
                   (const peri_arg[]){ __VA_ARGS__ })
#else
#define PERI_CALL(ctx, name, ...)                                                       \
  ([&] {                                                                                \
    const peri_arg args_[] = { __VA_ARGS__ };                                           \
    return peri_apply_named((ctx), (name), (int)(sizeof args_ / sizeof *args_), args_); \
  }())
#endif

/* ---- autograd ------------------------------------------------------------------------------ */

PERI_API peri_status peri_set_requires_grad (peri_tensor *t, bool on); /* leaves, float dtypes */
PERI_API bool peri_requires_grad (const peri_tensor *t);
PERI_API bool peri_is_leaf (const peri_tensor *t);
PERI_API bool peri_grad_enabled (const peri_ctx *ctx);
PERI_API bool peri_set_grad_enabled (peri_ctx *ctx, bool on); /* returns the former value */
/* Accumulate d(root)/d(leaf) into every leaf's grad. seed NULL = ones, then root has one element. */
PERI_API peri_status peri_backward (peri_ctx *ctx, peri_tensor *root, peri_tensor *seed,
                                    bool retain_graph);
/* Gradients of root for n given tensors, returned, not accumulated; each has memory of its own. create_graph records the
** backward pass, so that the results can be differentiated again. A tensor that root does not
** depend on gets NULL. */
PERI_API peri_status peri_gradients (peri_ctx *ctx, peri_tensor *root, peri_tensor *seed, int n,
                                     peri_tensor *const *wrt, bool create_graph, peri_tensor **out);
PERI_API peri_tensor *peri_grad (const peri_tensor *t);                 /* borrowed; NULL if none */
PERI_API peri_status peri_set_grad (peri_tensor *t, peri_tensor *grad); /* NULL clears */
PERI_API peri_status peri_detach (peri_tensor *t, peri_tensor **out);   /* shares storage */
/* Anomaly mode: every op output is checked; the first NaN or Inf that its inputs did not have
** fails the call with a message that names the op. */
PERI_API void peri_set_anomaly (peri_ctx *ctx, bool on);

/* A function with its own vjp: out is recorded as made from in. vjp receives the gradients of the
** outputs (NULL where none), which it may not write into, and writes owned gradients of the inputs
** (NULL = none). Inputs that were changed in place since fail the pass before; outputs that vjp
** reads are its own to keep safe. release(ud) runs when the record dies. */
typedef peri_status (*peri_vjp_fn)(void *ud, peri_ctx *ctx, int nout, peri_tensor *const *gout,
                                   int nin, peri_tensor **gin);
PERI_API peri_status peri_record_custom (peri_ctx *ctx, const char *name, int nin,
                                         peri_tensor *const *in, int nout, peri_tensor *const *out,
                                         peri_vjp_fn vjp, void (*release)(void *ud), void *ud);

/* ---- random numbers ------------------------------------------------------------------------ */

/* Philox4x32-10 (Salmon et al., SC11). The state of a context's generator is (seed, offset): each
** random op takes the next offset, element e of its result is block e/4 of that offset. */
typedef struct peri_rng {
  uint64_t seed, offset;
} peri_rng;
PERI_API void peri_rng_set (peri_ctx *ctx, peri_rng state);
PERI_API peri_rng peri_rng_get (const peri_ctx *ctx);
PERI_API void peri_philox (const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* ---- files --------------------------------------------------------------------------------- */

/* Paths are UTF-8 or whatever the system takes. Files are untrusted: sizes are checked before
** memory is asked for, and what is malformed is refused with PERI_EFORMAT and a message that names
** path and offset. Writes are atomic: a temporary file in the same folder, synced, renamed; on
** failure the old file stays. */

/* A whole regular file of at most max_bytes (0 = no limit). An empty file gives *size 0. Free the
** result with peri_file_free. */
PERI_API peri_status peri_file_read (peri_ctx *ctx, const char *path, size_t max_bytes, void **data,
                                     size_t *size);
PERI_API void peri_file_free (peri_ctx *ctx, void *data, size_t size);
PERI_API peri_status peri_file_write (peri_ctx *ctx, const char *path, const void *data,
                                      size_t size);
/* At the end of a file, which is made when it is missing; on failure none of it stays there. Devices
** and pipes are written to as well. */
PERI_API peri_status peri_file_append (peri_ctx *ctx, const char *path, const void *data,
                                       size_t size);
/* A folder and its missing parents; an existing folder is fine. */
PERI_API peri_status peri_make_folder (peri_ctx *ctx, const char *path);
/* A file, or a folder with all that is in it; links are removed, not followed. What does not exist
** is fine. Refuses "/", "." and "..". */
PERI_API peri_status peri_remove_tree (peri_ctx *ctx, const char *path);
/* Atomic; syncs the folder of the new name. */
PERI_API peri_status peri_rename (peri_ctx *ctx, const char *from, const char *to);
/* The names in a folder without "." and "..", sorted by byte, each ended by a zero byte, in *names
** (*size bytes; free with peri_file_free). */
PERI_API peri_status peri_list_folder (peri_ctx *ctx, const char *path, char **names, size_t *size);

/* safetensors. Limits: header 100,000,000 bytes, 1,048,576 tensors, 65,536 metadata entries.
** A reader of a hostile file needs at most twice the file's size, plus 4 MiB. */
typedef struct peri_safetensors peri_safetensors; /* an open file or a range of bytes */
typedef struct peri_safetensors_entry {
  const char *name; /* borrowed from the handle */
  peri_dtype dtype;
  int ndim;
  int64_t shape[PERI_MAX_DIMS];
  uint64_t offset, bytes; /* of the data, in the file */
} peri_safetensors_entry;
typedef struct peri_text_pair {
  const char *key, *value;
} peri_text_pair; /* UTF-8 */

/* Check the whole header; read no data. map: tensors share the file's pages, private and copied on
** write. Only for files that nobody truncates or writes in place: if the file shrinks, touching the
** lost part kills the process (SIGBUS). Without map, and on file systems that cannot map, tensors
** are read into memory of their own. */
PERI_API peri_status peri_safetensors_open (peri_ctx *ctx, const char *path, bool map,
                                            peri_safetensors **out);
/* The same over bytes that stay the caller's and unchanged until the close. */
PERI_API peri_status peri_safetensors_parse (peri_ctx *ctx, const void *data, size_t size,
                                             peri_safetensors **out);
/* Tensors loaded from it stay valid. Close it before its context. NULL is a no-op. */
PERI_API void peri_safetensors_close (peri_safetensors *f);
PERI_API int64_t peri_safetensors_count (const peri_safetensors *f);
/* name NULL: i is out of range. */
PERI_API peri_safetensors_entry peri_safetensors_at (const peri_safetensors *f, int64_t i);
PERI_API int64_t peri_safetensors_find (const peri_safetensors *f, const char *name); /* -1: none */
PERI_API int64_t peri_safetensors_pairs (const peri_safetensors *f); /* entries of __metadata__ */
PERI_API peri_text_pair peri_safetensors_pair (const peri_safetensors *f, int64_t i); /* borrowed */
/* A tensor of its own, in order of position in the file. A map whose data is not aligned to its
** element size is copied. */
PERI_API peri_status peri_safetensors_tensor (peri_safetensors *f, int64_t i, peri_tensor **out);
/* A file that is being written tensor by tensor, so that the data need never be in memory as a whole.
** entries: name, dtype, ndim and shape of each; the rest is not looked at. pairs may be NULL when
** npairs is 0. All is copied. */
typedef struct peri_safetensors_writer peri_safetensors_writer;
PERI_API peri_status peri_safetensors_create (peri_ctx *ctx, const char *path, int64_t n,
                                              const peri_safetensors_entry *entries, int64_t npairs,
                                              const peri_text_pair *pairs,
                                              peri_safetensors_writer **out);
/* Which entry's data comes next in the format's canonical order; -1: all are written. */
PERI_API int64_t peri_safetensors_next (const peri_safetensors_writer *w);
/* The next entry's data, with its dtype and shape; strided tensors become dense. */
PERI_API peri_status peri_safetensors_write (peri_safetensors_writer *w, peri_tensor *t);
/* Fails unless every tensor was written. Closes w, whether it succeeds or not. */
PERI_API peri_status peri_safetensors_commit (peri_safetensors_writer *w);
/* Remove what was written, close. NULL is a no-op. */
PERI_API void peri_safetensors_abort (peri_safetensors_writer *w);
/* The same in one step. */
PERI_API peri_status peri_safetensors_save (peri_ctx *ctx, const char *path, int64_t n,
                                            const char *const *names, peri_tensor *const *tensors,
                                            int64_t npairs, const peri_text_pair *pairs);

/* GGUF, versions 2 and 3, little-endian (specification: docs/gguf.md of ggml). Limits: header 4 GiB,
** 65,536 values with keys of at most 65,535 bytes, 1,048,576 tensors with names of at most 64 bytes
** and 4 dims, arrays nested 4 deep. A reader of a hostile file needs at most twice the file's size,
** plus 4 MiB. Texts of a file are ranges of bytes without a zero at the end. */
typedef struct peri_gguf peri_gguf; /* an open file or a range of bytes */
/* As numbered in the file. ORDER gguf type */
typedef enum peri_gguf_type {
  PERI_GGUF_U8,
  PERI_GGUF_I8,
  PERI_GGUF_U16,
  PERI_GGUF_I16,
  PERI_GGUF_U32,
  PERI_GGUF_I32,
  PERI_GGUF_F32,
  PERI_GGUF_BOOL,
  PERI_GGUF_TEXT,
  PERI_GGUF_ARRAY,
  PERI_GGUF_U64,
  PERI_GGUF_I64,
  PERI_GGUF_F64,
  PERI_GGUF_NTYPE
} peri_gguf_type;
typedef struct peri_gguf_text {
  const char *s; /* borrowed from the handle; may hold zero bytes unless it is a key or a name */
  size_t n;
} peri_gguf_text;
/* A value of the file, or an element of an array in it. */
typedef struct peri_gguf_value {
  peri_gguf_text key;  /* empty for elements */
  peri_gguf_type type; /* of an array: that of its elements */
  bool array;
  int64_t count;   /* of an array: its elements; else 1 */
  uint64_t offset; /* in the file: of the number, of the text's length, of the first element */
} peri_gguf_value;
typedef struct peri_gguf_entry {
  peri_gguf_text name;
  const char *type; /* as ggml calls it: "F32", "Q4_K", ... */
  bool supported;   /* there is a dtype for it */
  peri_dtype dtype; /* when supported */
  int ndim;
  int64_t shape[PERI_MAX_DIMS]; /* row-major: the file's dims in reverse */
  uint64_t offset, bytes;       /* of the data, in the file; bytes 0: of a type nobody knows */
} peri_gguf_entry;

/* Check the whole header; read no data. map: as for peri_safetensors_open. */
PERI_API peri_status peri_gguf_open (peri_ctx *ctx, const char *path, bool map, peri_gguf **out);
/* The same over bytes that stay the caller's and unchanged until the close. */
PERI_API peri_status peri_gguf_parse (peri_ctx *ctx, const void *data, size_t size,
                                      peri_gguf **out);
/* Tensors loaded from it stay valid. Close it before its context. NULL is a no-op. */
PERI_API void peri_gguf_close (peri_gguf *f);
PERI_API int peri_gguf_version (const peri_gguf *f);
PERI_API int64_t peri_gguf_alignment (const peri_gguf *f);
PERI_API int64_t peri_gguf_nvalues (const peri_gguf *f);
PERI_API peri_gguf_value peri_gguf_at (const peri_gguf *f, int64_t i); /* in the file's order */
PERI_API int64_t peri_gguf_find (const peri_gguf *f, const char *key); /* -1: none */
/* One element of an array that is no array and holds no texts, or (i = 0) a plain value. False when
** v is something else, i out of range, or, for int, the number no integer or above INT64_MAX. */
PERI_API bool peri_gguf_int (const peri_gguf *f, const peri_gguf_value *v, int64_t i, int64_t *out);
PERI_API bool peri_gguf_num (const peri_gguf *f, const peri_gguf_value *v, int64_t i, double *out);
/* A text that is no array of texts. */
PERI_API bool peri_gguf_string (const peri_gguf *f, const peri_gguf_value *v, peri_gguf_text *out);
typedef struct peri_gguf_cursor {
  uint64_t at;
  int64_t i;
} peri_gguf_cursor;
/* Elements of an array one after the other, of any type; all zeros before the first call. False at
** the end. */
PERI_API bool peri_gguf_next (const peri_gguf *f, const peri_gguf_value *array,
                              peri_gguf_cursor *cursor, peri_gguf_value *item);
/* By key, with a message when the key is missing (PERI_EINVAL) or of another type (PERI_EFORMAT). */
PERI_API peri_status peri_gguf_get_int (const peri_gguf *f, const char *key, int64_t *out);
PERI_API peri_status peri_gguf_get_num (const peri_gguf *f, const char *key, double *out);
PERI_API peri_status peri_gguf_get_bool (const peri_gguf *f, const char *key, bool *out);
PERI_API peri_status peri_gguf_get_text (const peri_gguf *f, const char *key, peri_gguf_text *out);
/* An array of texts (PERI_GGUF_TEXT), of floats (PERI_GGUF_F32: also F64) or of integers of any size
** (PERI_GGUF_I64). */
PERI_API peri_status peri_gguf_get_array (const peri_gguf *f, const char *key, peri_gguf_type kind,
                                          peri_gguf_value *out);
PERI_API int64_t peri_gguf_count (const peri_gguf *f);                         /* tensors */
PERI_API peri_gguf_entry peri_gguf_entry_at (const peri_gguf *f, int64_t i);   /* by offset */
PERI_API int64_t peri_gguf_find_tensor (const peri_gguf *f, const char *name); /* -1: none */
/* A tensor of its own. PERI_ENOSUP names a type that has no dtype here. A map whose data is not
** aligned to its element size is copied. */
PERI_API peri_status peri_gguf_tensor (peri_gguf *f, int64_t i, peri_tensor **out);

/* A GGUF file that is being written: values, then the tensors' names and shapes, then their data in
** the same order, one at a time, so that it need never be in memory as a whole. */
typedef struct peri_gguf_writer peri_gguf_writer;
PERI_API peri_status peri_gguf_create (peri_ctx *ctx, const char *path, peri_gguf_writer **out);
/* n values of one type: numbers as int64_t (integers, bools) or double (floats), texts as
** peri_gguf_text. array: an array of n; else n is 1. PERI_EINVAL when a number does not fit. */
PERI_API peri_status peri_gguf_put (peri_gguf_writer *w, const char *key, peri_gguf_type type,
                                    bool array, int64_t n, const void *data);
/* F64 F32 F16 BF16 I32 I64 and every quantised dtype. */
PERI_API peri_status peri_gguf_declare (peri_gguf_writer *w, const char *name, peri_dtype d,
                                        int ndim, const int64_t *shape);
/* The data of the next declared tensor, whose dtype and shape t must have. */
PERI_API peri_status peri_gguf_write (peri_gguf_writer *w, peri_tensor *t);
/* Fails unless every tensor was written. Closes w, whether it succeeds or not. */
PERI_API peri_status peri_gguf_commit (peri_gguf_writer *w);
/* Remove what was written, close. NULL is a no-op. */
PERI_API void peri_gguf_abort (peri_gguf_writer *w);

/* NumPy's .npy files, versions 1 to 3, gzipped ones too, in either byte order: of our dtypes (bf16
** excepted), and i8, i16, u16 as i32, u32 as i64. Other dtypes are PERI_ENOSUP, by name. An array in Fortran's order becomes a strided tensor. Compressed
** data may hold 1032 times the file's size, of which the header says how much is used. */
PERI_API peri_status peri_npy_load (peri_ctx *ctx, const char *path, peri_tensor **out);
PERI_API peri_status peri_npy_save (peri_ctx *ctx, const char *path, peri_tensor *t);
/* .npz: zip archives of .npy files, stored or deflated, with zip64. At most 65,536 arrays. */
typedef struct peri_npz peri_npz;
PERI_API peri_status peri_npz_open (peri_ctx *ctx, const char *path, peri_npz **out);
PERI_API void peri_npz_close (peri_npz *z); /* before its context; NULL is a no-op */
PERI_API int64_t peri_npz_count (const peri_npz *z);
/* Name of an array, n bytes without ".npy", by byte order; borrowed, not terminated. */
PERI_API const char *peri_npz_name (const peri_npz *z, int64_t i, size_t *n);
/* Checks sizes and checksum. PERI_ENOSUP: this one is not for us, the others may be. */
PERI_API peri_status peri_npz_tensor (peri_npz *z, int64_t i, peri_tensor **out);
/* Stored, not compressed. names: 1 to 1000 bytes, distinct. */
PERI_API peri_status peri_npz_save (peri_ctx *ctx, const char *path, int64_t n,
                                    const char *const *names, peri_tensor *const *tensors);
/* IDX as MNIST has it, plain or gzipped: u8, i32, f32 or f64. */
PERI_API peri_status peri_idx_load (peri_ctx *ctx, const char *path, peri_tensor **out);

/* Lines of a text file, plain or gzipped. A line of more than max_bytes is an error (0 = no limit). */
typedef struct peri_lines peri_lines;
PERI_API peri_status peri_lines_open (peri_ctx *ctx, const char *path, size_t max_bytes,
                                      peri_lines **out);
/* The next line without its end (\n or \r\n), valid until the next call; *line is NULL at the end. */
PERI_API peri_status peri_lines_next (peri_lines *l, const char **line, size_t *n);
PERI_API int64_t peri_lines_number (const peri_lines *l); /* of the last line, from 1 */
PERI_API void peri_lines_close (peri_lines *l);           /* NULL is a no-op */

/* Checkpoint folders: dir/NAME/ holds files and manifest.json with the size and XXH64 of each. It
** appears under its name complete and on the disk, or not at all. */
typedef struct peri_checkpoint peri_checkpoint; /* one that is being written */
/* Make dir and an empty temporary folder in it, locked against the cleaning of other processes. */
PERI_API peri_status peri_checkpoint_begin (peri_ctx *ctx, const char *dir, peri_checkpoint **out);
PERI_API const char *peri_checkpoint_path (const peri_checkpoint *c); /* write here; borrowed */
/* Hash and sync what was written, rename to dir/name (replacing an older checkpoint of that name in
** one step), sync dir, then remove all but the keep newest checkpoints (0 = remove none). Closes c
** when it succeeds. A name has 1 to 128 of A-Z a-z 0-9 . _ - and does not start with a dot. */
PERI_API peri_status peri_checkpoint_commit (peri_checkpoint *c, const char *name, int keep);
/* Remove the temporary folder, close. NULL is a no-op. */
PERI_API void peri_checkpoint_abort (peri_checkpoint *c);
/* Path of the newest checkpoint in dir whose files all agree with its manifest; "" when there is
** none. Damaged ones are passed over with a warning in the log, temporary folders of dead
** processes are removed. PERI_EINVAL when size is too small. */
PERI_API peri_status peri_checkpoint_latest (peri_ctx *ctx, const char *dir, char *path,
                                             size_t size);
/* Check one checkpoint folder in full. generation: counts the commits into its dir; may be NULL. */
PERI_API peri_status peri_checkpoint_verify (peri_ctx *ctx, const char *path, int64_t *generation);

/* A lock file, for what one process (and one holder in it) writes at a time. */
typedef struct peri_lock peri_lock;
/* Take it without waiting; the file is made when it is missing and holds the process id of the last
** holder. PERI_EIO with that id in the message when it is held. A process that ends drops its locks,
** however it ends; the file stays. */
PERI_API peri_status peri_lock_take (peri_ctx *ctx, const char *path, peri_lock **out);
PERI_API void peri_lock_drop (peri_lock *l); /* before its context; NULL is a no-op */

/* TensorBoard event files. TensorBoard reads files whose name contains "tfevents", by custom
** "events.out.tfevents.TIME.HOST". */
typedef struct peri_tfevents peri_tfevents;
/* Append to path; a half-written last record of an earlier run is cut off. */
PERI_API peri_status peri_tfevents_open (peri_ctx *ctx, const char *path, peri_tfevents **out);
/* One value, in the file when this returns. wall_time: seconds since 1970. */
PERI_API peri_status peri_tfevents_scalar (peri_tfevents *w, const char *tag, int64_t step,
                                           double value, double wall_time);
/* One encoded Event message (tensorflow/core/util/event.proto) of at most 64 MiB: text, histograms and
** hyper-parameters have no function of their own. */
PERI_API peri_status peri_tfevents_event (peri_tfevents *w, const void *event, size_t size);
PERI_API void peri_tfevents_close (peri_tfevents *w); /* NULL is a no-op */

/* ---- tokenizers ----------------------------------------------------------------------------- */

/* Text to ids and back, as the published vocabularies define it. A tokenizer does not change once it
** is loaded; it belongs to its context's thread and encodes many texts on all of the context's
** threads. Vocabularies are files that nobody vouches for: at most 256 MiB, ids below 2^22, added
** tokens of at most 1024 bytes. Texts are UTF-8 of at most 1 GiB; every maximal invalid part of a
** text counts as U+FFFD. */
typedef struct peri_tokenizer peri_tokenizer;
typedef struct peri_text {
  const char *s;
  size_t n; /* bytes */
} peri_text;

enum {
  PERI_ENCODE_SPECIAL = 1, /* put the special tokens around that the tokenizer asks for */
  PERI_ENCODE_PARSE = 2    /* special tokens written in the text become their ids */
};

typedef enum peri_token_role { /* ORDER token role: kept the same in bindings/tokenizer.c */
                               PERI_TOKEN_BOS,
                               PERI_TOKEN_EOS,
                               PERI_TOKEN_PAD,
                               PERI_TOKEN_UNK,
                               PERI_TOKEN_FIM_PREFIX,
                               PERI_TOKEN_FIM_SUFFIX,
                               PERI_TOKEN_FIM_MIDDLE,
                               PERI_TOKEN_CLS,
                               PERI_TOKEN_SEP,
                               PERI_TOKEN_MASK,
                               PERI_TOKEN_NROLE
} peri_token_role;

/* A Hugging Face folder, tokenizer.json, a GGUF file, a SentencePiece tokenizer.model, llama2.c's
** tokenizer.bin, a folder with vocab.json + merges.txt or encoder.json + vocab.bpe, vocab.txt. What
** the file needs and this library lacks is refused by its name. */
PERI_API peri_status peri_tokenizer_load (peri_ctx *ctx, const char *path, peri_tokenizer **out);
/* The text of a tokenizer.json. */
PERI_API peri_status peri_tokenizer_parse (peri_ctx *ctx, const void *json, size_t size,
                                           peri_tokenizer **out);
PERI_API void peri_tokenizer_close (peri_tokenizer *t);         /* NULL is a no-op */
PERI_API int64_t peri_tokenizer_size (const peri_tokenizer *t); /* highest id + 1 */
/* -1: the tokenizer has no such token. */
PERI_API int64_t peri_tokenizer_role (const peri_tokenizer *t, peri_token_role role);
/* Every id that ends a turn, in ascending order; *n of them, borrowed. */
PERI_API const int32_t *peri_tokenizer_ends (const peri_tokenizer *t, size_t *n);
PERI_API const char *peri_tokenizer_template (const peri_tokenizer *t, size_t *n); /* or NULL */
/* Id of a token as the vocabulary writes it, -1: none; its text, borrowed, NULL: no such id. */
PERI_API int64_t peri_tokenizer_id (const peri_tokenizer *t, const char *token, size_t n);
PERI_API const char *peri_tokenizer_token (const peri_tokenizer *t, int64_t id, size_t *n);
PERI_API bool peri_tokenizer_is_special (const peri_tokenizer *t, int64_t id);
/* The tokens that texts are searched for before anything else, in the order of the files. */
typedef struct peri_added_token {
  uint32_t struct_size; /* sizeof(peri_added_token), set by the caller */
  int64_t id;
  peri_text text;                                        /* borrowed */
  bool special, normalized, single_word, lstrip, rstrip; /* as in tokenizer.json */
} peri_added_token;
PERI_API int64_t peri_tokenizer_added_count (const peri_tokenizer *t);
PERI_API peri_status peri_tokenizer_added (const peri_tokenizer *t, int64_t i,
                                           peri_added_token *out);
typedef enum peri_side { PERI_SIDE_UNSAID, PERI_SIDE_LEFT, PERI_SIDE_RIGHT } peri_side;
/* Where the files want batches padded, where they want texts cut that are too long. */
PERI_API peri_side peri_tokenizer_padding (const peri_tokenizer *t);
PERI_API peri_side peri_tokenizer_truncation (const peri_tokenizer *t);
/* The most tokens that the files say a text may have; 0: they say none. */
PERI_API int64_t peri_tokenizer_max_length (const peri_tokenizer *t);
/* What goes around the ids of a text (pair: of two texts), part by part: of part i its token type,
** and *n special tokens, borrowed, or where *n is 0 the text number *which (0, 1). False behind the
** last part, and for i = 0 where the tokenizer has no such list. */
PERI_API bool peri_tokenizer_part (const peri_tokenizer *t, bool pair, size_t i, int *type_id,
                                   int *which, const int32_t **ids, size_t *n);

/* n texts; ids of text i are (*ids)[ends[i - 1]] to (*ids)[ends[i]], the first begins at 0. *ids is
** borrowed until the next call with t. flags: PERI_ENCODE_. Encoding a run of n bytes takes
** O(n log n) time and 50 n bytes. */
PERI_API peri_status peri_tokenizer_encode (peri_tokenizer *t, int64_t n, const peri_text *text,
                                            int flags, const int32_t **ids, int64_t *ends);
/* Valid UTF-8: bytes that make no character are U+FFFD. skip_special leaves special tokens out. Ids
** that the vocabulary lacks are left out. *text is borrowed until the next call with t. */
PERI_API peri_status peri_tokenizer_decode (peri_tokenizer *t, const int32_t *ids, size_t n,
                                            bool skip_special, peri_text *text);

/* A byte-level BPE vocabulary of texts, as the text of a tokenizer.json (free it with
** peri_file_free). Ids: special tokens, the 256 bytes, merges. Deterministic: the most frequent pair
** is merged first, of equal ones that of the smaller ids. Texts are cut into blocks of about a MiB
** at line ends. */
typedef struct peri_bpe_options {
  uint32_t struct_size; /* set by peri_bpe_options_init */
  int64_t vocab_size;   /* at least 256 + n_special; fewer come out when no pair is left */
  int64_t min_count;    /* pairs that are rarer are not merged */
  int64_t n_special;
  const peri_text *special;
  peri_text pattern; /* of the pre-tokenizer, as in tokenizer.json; s NULL: GPT-2's */
} peri_bpe_options;
/* 256 bytes and no more, GPT-2's pattern. */
PERI_API void peri_bpe_options_init (peri_bpe_options *o);
PERI_API peri_status peri_tokenizer_train_bpe (peri_ctx *ctx, int64_t n, const peri_text *text,
                                               const peri_bpe_options *o, void **json,
                                               size_t *size);

/* Decoding id by id: the pieces joined are what decoding the whole gives, each of whole characters.
** Close it before its tokenizer. */
typedef struct peri_token_stream peri_token_stream;
PERI_API peri_status peri_token_stream_open (peri_tokenizer *t, bool skip_special,
                                             peri_token_stream **out);
PERI_API void peri_token_stream_close (peri_token_stream *s); /* NULL is a no-op */
/* Text that is certain with this id, borrowed until the next call with s; may be empty. */
PERI_API peri_status peri_token_stream_push (peri_token_stream *s, int32_t id, peri_text *text);
/* What was held back; then the stream begins anew. */
PERI_API peri_status peri_token_stream_finish (peri_token_stream *s, peri_text *text);

/* ---- profiler ------------------------------------------------------------------------------ */

typedef struct peri_profile_row {
  uint32_t struct_size; /* sizeof(peri_profile_row), set by the caller */
  const char *name;
  int64_t count;
  double seconds, flops, bytes;
} peri_profile_row;
PERI_API void peri_profile_start (peri_ctx *ctx);
PERI_API void peri_profile_stop (peri_ctx *ctx);
PERI_API int peri_profile_count (const peri_ctx *ctx); /* different ops so far; 0 when it is off */
/* The i-th by time. */
PERI_API peri_status peri_profile_at (peri_ctx *ctx, int i, peri_profile_row *out);

#ifdef __cplusplus
}
#endif

#include "perilune/env.h"
#include "perilune/policy.h"
#include "perilune/frame.h"
#include "perilune/python.h"
#include "perilune/replay.h"
#endif
