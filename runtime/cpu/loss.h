/*
** loss.h - kernels of one SIMD level for losses, sampling and optimizer steps: rows of logits and
** blocks of parameters as plain arrays. No context, no threads. The same row kernels serve
** cross_entropy, token_logprob and sample, so a log-probability has the same bits in all three.
*/
#ifndef peri_loss_h
#define peri_loss_h

#include "cpu/cpu.h"

/* Row sums are taken over blocks of this many elements in f32 and added up in f64: the order
** depends on the length of the row alone. */
enum { PERI_LOSS_BLOCK = 1024 };

/*
** Statistics of a row of logits x under y = x / temperature, with d_i = (x_i - max x) * scale and
** scale = 1 / temperature:
**   log p_i = d_i - log(sum)          entropy = log(sum) - dot / sum
** d is held at -200 (f64: -800) or above, where exp gives 0, so that a logit of -inf has p = 0 and
** adds nothing to the entropy. A row with NaN or +inf, or of -inf alone, has sum NaN.
*/
typedef struct peri__row {
  double max; /* of x, before scaling */
  double sum; /* of exp(d_i) */
  double dot; /* of exp(d_i) * d_i */
} peri__row;

/* Gradient of a row: out_i = p_i * (a + b * log p_i) + c. log_sum is log(sum) of the row. */
typedef struct peri__row_grad {
  double scale, max, log_sum;
  double a, b, c;
} peri__row_grad;

/* Up to PERI_FEW_ROWS rows of few classes: what peri__row and peri__row_grad hold of one. */
enum { PERI_LOSS_FEW = 4, PERI_FEW_ROWS = 64 };
typedef struct peri__few {
  float max[PERI_FEW_ROWS], sum[PERI_FEW_ROWS], dot[PERI_FEW_ROWS];
  float log_sum[PERI_FEW_ROWS], a[PERI_FEW_ROWS], b[PERI_FEW_ROWS]; /* of the gradient */
} peri__few;

/* One step of an optimizer; which fields count depends on the kernel. */
typedef struct peri__step {
  double lr, scale; /* scale multiplies the gradient */
  double beta1, beta2, eps, weight_decay;
  double c1, c2; /* bias corrections: the kernels divide m by c1 and v by c2 */
  double momentum, dampening;
  double factor; /* scale_, axpby: see there */
  bool decoupled, nesterov, first;
} peri__step;

/* p[k] is element 0 of this block of the k-th list, n the elements; acc collects f64 sums. The f64
** twins of these kernels are in op/optim.c. */
typedef void (*peri__step_fn)(const peri__step *s, void *const *p, int64_t n, double *acc);

struct peri__loss_kernels {
  /* e may be NULL; else e_i = exp(d_i), with the same bits as were summed. */
  void (*row)(const float *x, int64_t n, float scale, float *e, peri__row *out);
  double (*row_sum)(const float *x, int64_t n);
  void (*row_grad)(const float *x, int64_t n, const peri__row_grad *g, float *out); /* may be x */
  /* The same of `rows` short rows next to each other, of n <= PERI_LOSS_FEW each, side by side in vectors:
  ** the bits of row and row_grad (with c = 0). Statistics of row i at [i]. */
  void (*few)(const float *x, int64_t rows, int64_t n, float scale, peri__few *out);
  void (*few_grad)(const float *x, int64_t rows, int64_t n, float scale, const peri__few *g,
                   float *out);
  /* The index i with sum(e_0..e_i-1) <= u * sum(e) < sum(e_0..e_i), e_i > 0; -1 when the sum is
  ** not a positive number. */
  int64_t (*pick)(const float *e, int64_t n, double u);
  /* Optimizer steps; the lists in p are named in the order they come. */
  peri__step_fn sgd;           /* param, grad, buf (NULL when momentum is 0) */
  peri__step_fn adam;          /* param, grad, m, v */
  peri__step_fn rmsprop;       /* param, grad, sq, buf (NULL when momentum is 0) */
  peri__step_fn lamb_moments;  /* param, grad, m, v; acc[0] += param^2, acc[1] += update^2 */
  peri__step_fn lamb_apply;    /* param, m, v; factor = lr * trust ratio */
  peri__step_fn muon_momentum; /* grad, buf, out = the direction, in f32 */
  peri__step_fn axpby;         /* y, x: y = y * scale + x * factor */
  peri__step_fn ema;           /* target, source: target += (source - target) * factor */
  peri__step_fn sumsq;         /* x; acc[0] += x^2 */
};

/* simd_optim.c fills in the steps of the table that simd_loss.c exports. */
#define PERI_STEP_KERNELS(X) \
  X(sgd)                     \
  X(adam)                    \
  X(rmsprop)                 \
  X(lamb_moments)            \
  X(lamb_apply)              \
  X(muon_momentum)           \
  X(axpby)                   \
  X(ema)                     \
  X(sumsq)

#endif
