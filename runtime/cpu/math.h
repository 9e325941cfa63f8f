/*
** math.h - kernels over arrays: elementwise functions, reductions of one row or of columns, half
** precision. The f32 tables exist once per SIMD level; f64 and i64 twins are plain C in op/.
*/
#ifndef peri_math_h
#define peri_math_h

#include <stddef.h>
#include <stdint.h>

/* n elements of out from up to three inputs. step[i] is 1, or 0 when in[i] is one element for all.
** Inputs and output are arrays of compute types: float, double, int64_t, or uint8_t for bool. out
** may be one of the inputs. p: parameters of the function, NULL when it has none. */
typedef void (*peri__kernel)(int64_t n, const void *const *in, const int64_t *step, void *out,
                             const double *p);

/* ORDER math: these lists give the enums below and the tables in cpu/simd_*.c and op/. */
/* clang-format off */

/* The activations: a line here, v_NAME and v_NAME_back in cpu/vec_act.h, a block in
** op/activation.c; from these come the ops NAME and NAME_backward, the mode of linear and of the
** gated ops, the layer of nn, the names that a config.json has. The second word is what the gradient
** reads: the input x, the output y, or xy where either will do. F receives X and both words. */
#define PERI_ACTIVATIONS(F, X)                                                                   \
  F(X, relu, xy) F(X, relu_squared, x) F(X, tanh, y) F(X, sigmoid, y) F(X, silu, x)                 \
  F(X, gelu, x) F(X, gelu_tanh, x) F(X, quick_gelu, x) F(X, mish, x)
#define PERI_ACT_NAME(X, name, saved) X(name)
#define PERI_ACT_BACK(X, name, saved) X(name##_backward)

#define PERI_PLAIN_UNARY(X)                                                                      \
  X(neg) X(abs) X(sign) X(exp) X(expm1) X(log) X(log1p) X(log2) X(sqrt) X(rsqrt) X(square)       \
  X(reciprocal) X(sin) X(cos) X(leaky_relu) X(elu) X(softplus) X(erf) X(floor) X(ceil) X(round)  \
  X(clamp)
#define PERI_UNARY(X) PERI_PLAIN_UNARY(X) PERI_ACTIVATIONS(PERI_ACT_NAME, X)
#define PERI_TEST(X) X(isnan) X(isinf) X(isfinite)             /* float -> bool */
#define PERI_ARITHMETIC(X) X(add) X(sub) X(mul) X(div) X(maximum) X(minimum)
#define PERI_COSTLY_BINARY(X) X(floordiv) X(mod) X(pow) X(atan2)
#define PERI_PLAIN_BINARY(X) PERI_ARITHMETIC(X) PERI_COSTLY_BINARY(X)
#define PERI_BINARY(X) PERI_PLAIN_BINARY(X) PERI_ACTIVATIONS(PERI_ACT_BACK, X)
#define PERI_COMPARE(X) X(eq) X(ne) X(lt) X(le) X(gt) X(ge)    /* -> bool */
/* clang-format on */

#define PERI_MATH_ID(name) PERI_MATH_##name,
#define PERI_ACT_ID(name) PERI_ACT_##name,
enum { PERI_UNARY(PERI_MATH_ID) PERI_N_UNARY };
enum { PERI_ACTIVATIONS(PERI_ACT_NAME, PERI_ACT_ID) PERI_N_ACT };
enum { PERI_N_PLAIN_UNARY = PERI_N_UNARY - PERI_N_ACT };
enum { PERI_TEST(PERI_MATH_ID) PERI_N_TEST };
enum { PERI_BINARY(PERI_MATH_ID) PERI_N_BINARY };
enum { PERI_N_PLAIN_BINARY = PERI_N_BINARY - PERI_N_ACT };
enum { PERI_COMPARE(PERI_MATH_ID) PERI_N_COMPARE };

/* One activation, gated: y = act(gate) up, and its gradients from g. f64 twins are in op/gated.c. */
typedef struct peri__gate {
  void (*forward)(const float *gate, const float *up, float *y, int64_t n);
  void (*back)(const float *gate, const float *up, const float *g, float *dgate, float *dup,
               int64_t n);
} peri__gate;

/* Reductions of n floats go in a fixed order that depends on n alone. Sums are carried in f64. */
struct peri__math_kernels {
  const peri__kernel *unary, *test, *binary, *compare;
  const peri__gate *gate; /* by PERI_ACT_ id */
  peri__kernel where;     /* bool ? f32 : f32 */
  peri__kernel lerp;      /* a + w (b - a) */
  double (*sum)(const float *x, int64_t n);
  double (*sum_abs)(const float *x, int64_t n);
  double (*sum_square)(const float *x, int64_t n, double shift); /* of x - shift */
  double (*sum_exp)(const float *x, int64_t n, float shift);     /* of exp(x - shift) */
  double (*prod)(const float *x, int64_t n);
  float (*max)(const float *x, int64_t n); /* NaN wins; n > 0 */
  float (*min)(const float *x, int64_t n);
  int64_t (*argmax)(const float *x, int64_t n); /* the first; NaN wins */
  int64_t (*argmin)(const float *x, int64_t n);
  /* cols columns of rows rows that lie stride floats apart, added to acc. */
  void (*column_sum)(const float *x, int64_t rows, int64_t stride, int64_t cols, double *acc);
  void (*column_max)(const float *x, int64_t rows, int64_t stride, int64_t cols, float *acc);
  void (*column_min)(const float *x, int64_t rows, int64_t stride, int64_t cols, float *acc);
  int64_t (*count)(const uint8_t *x, int64_t n); /* bytes that are not 0 */
  void (*from_f16)(const uint16_t *x, float *y, int64_t n);
  void (*to_f16)(const float *x, uint16_t *y, int64_t n);
  void (*from_bf16)(const uint16_t *x, float *y, int64_t n);
  void (*to_bf16)(const float *x, uint16_t *y, int64_t n);
};

#endif
