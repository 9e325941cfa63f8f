/*
** activation.c - activations, a block each: y and its gradient in f64, the second derivative as ops,
** the descriptors of NAME and NAME_backward, the entry of the registry. The f32 formulas are in
** cpu/vec_act.h, the list of names in cpu/math.h.
*/
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "op/activation.h"
#include "op/elementwise.h"
#include "op/rule.h"

/* ---- what every block uses ---- */

#define Y_OF(name, e) /* y of x */                                                       \
  static void y_##name(int64_t n, const void *const *in, const int64_t *step, void *out, \
                       const double *p) {                                                \
    const double *px = in[0];                                                            \
    double *y = out;                                                                     \
    (void)p;                                                                             \
    for (int64_t i = 0; i < n; i++) {                                                    \
      double x = px[i * step[0]];                                                        \
      y[i] = e;                                                                          \
    }                                                                                    \
  }
#define DX_OF(name, e) /* the gradient of x from a, which is saved, and g */              \
  static void dx_##name(int64_t n, const void *const *in, const int64_t *step, void *out, \
                        const double *p) {                                                \
    const double *pa = in[0], *pg = in[1];                                                \
    double *dx = out;                                                                     \
    (void)p;                                                                              \
    for (int64_t i = 0; i < n; i++) {                                                     \
      double a = pa[i * step[0]], g = pg[i * step[1]];                                    \
      dx[i] = e;                                                                          \
    }                                                                                     \
  }
#define N(value) peri__build_scalar(b, value)
#define BEND(name) static peri_tensor *bend_##name(peri_build *b, peri_tensor *a)

/* x where the function is neither -0 nor its gradient 0 or 1 yet. */
static double bounded (double x) { return x > 1e3 ? 1e3 : x < -1e3 ? -1e3 : x; }

static peri_status run (peri_call *c, int nin, peri__kernel f32, peri__kernel f64, peri__kernel i64,
                        int64_t grain) {
  int type = peri__wide_type(c->out[0]->dtype);
  peri__loop l = { .fn = type == PERI_F32   ? f32
                         : type == PERI_F64 ? f64
                                            : i64,
                   .nin = nin,
                   .in_type = { type, type },
                   .out_type = type,
                   .grain = grain };
  if (!l.fn) return peri__want_float(c, 0, "x"); /* in place into integers */
  return peri__elementwise(c->ctx, &l, c->in, c->out[0]);
}
static peri_status forward (peri_call *c, const peri__act *a, peri__kernel i64, int64_t grain) {
  return run(c, 1, c->ctx->cpu->math->unary[a->unary], a->f64, i64, grain);
}
static peri_status back (peri_call *c, const peri__act *a) {
  return run(c, 2, c->ctx->cpu->math->binary[a->binary], a->back_f64, NULL, PERI_GRAIN_COSTLY);
}
static peri_status back_infer (peri_call *c) {
  return peri__infer_broadcast(c, 2, peri__float_of(peri__promoted(c, 0, 2)));
}
/* What a NAME's gradient is: x or y into its backward op. */
static void forward_rule (peri_vjp *v, const peri__act *a) {
  peri_tensor *in[2] = { a->from_input ? IN(0) : OUT, GRAD };
  GIVE(0, peri__build(BB, a->back, 2, in, NULL));
}
static void back_rule (peri_vjp *v, const peri__act *a) {
  peri_tensor *in[2] = { IN(0), GRAD };
  if (a->bend) GIVE(0, B(BB, mul, B(BB, mul, GRAD, IN(1)), a->bend(BB, IN(0))));
  GIVE(1, peri__build(BB, a->back, 2, in, NULL));
}

/* The registry's entry and the backward op; saved is the word of the list in cpu/math.h. */
enum { FROM_x = 1, FROM_y = 2, FROM_xy = 3 };
#define ENTRY_OF(id_, of, ...)                                               \
  static const peri__act act_##id_ = { .name = #id_,                         \
                                       .op = &peri__op_##id_,                \
                                       .back = &peri__op_##id_##_backward,   \
                                       .id = PERI_ACT_##id_,                 \
                                       .unary = PERI_MATH_##id_,             \
                                       .binary = PERI_MATH_##id_##_backward, \
                                       .f64 = y_##id_,                       \
                                       .back_f64 = dx_##id_,                 \
                                       .from_input = (FROM_##of & 1) != 0,   \
                                       .from_output = (FROM_##of & 2) != 0,  \
                                       __VA_ARGS__ }
#define BACKWARD(id, ...)                                                            \
  static peri_status id##_backward_cpu(peri_call *c) { return back(c, &act_##id); }  \
  RULE(id##_backward) { back_rule(v, &act_##id); }                                   \
  OP(id##_backward, .sig = "x, grad", .flags = PERI_OP_STRIDED, .infer = back_infer, \
     .cpu = id##_backward_cpu, .vjp = id##_backward_vjp, __VA_ARGS__)
#define FORWARD(id, flag, i64, grain, ...)                                                      \
  static peri_status id##_cpu(peri_call *c) { return forward(c, &act_##id, i64, grain); }       \
  RULE(id) { forward_rule(v, &act_##id); }                                                      \
  OP(id, .sig = "x", .flags = ELEMENTWISE | (flag), .infer = peri__infer_same, .cpu = id##_cpu, \
     .vjp = id##_vjp, __VA_ARGS__)

#define SQRT_2 1.41421356237309504880
#define C_GELU 1.59576912160573071 /* 2 sqrt(2 / pi) */
#define INV_SQRT_2PI 0.39894228040143267794
#define KEEP 0 /* integers stay as they are */
#define FLOAT PERI_OP_FLOAT

/* ---- relu ---- */

Y_OF(relu, x < 0 ? 0 : x)
DX_OF(relu, a <= 0 ? 0 : g)
static void relu_i64 (int64_t n, const void *const *in, const int64_t *step, void *out,
                      const double *p) {
  const int64_t *x = in[0];
  int64_t *y = out;
  (void)p;
  for (int64_t i = 0; i < n; i++) y[i] = x[i * step[0]] > 0 ? x[i * step[0]] : 0;
}
ENTRY_OF(relu, xy, .layer = "ReLU", .published = "", .gain = SQRT_2);
FORWARD(relu, KEEP, relu_i64, PERI_GRAIN_CHEAP, .doc = "max(x, 0); the gradient at 0 is 0.",
        TESTS(.domain = "kinks=0"));
BACKWARD(relu, .doc = "Gradient of relu at x: 0 where x is 0 or less, else grad (at NaN, too).",
         TESTS(.domain = "kinks=0"));

/* ---- relu_squared ---- */

Y_OF(relu_squared, x < 0 ? 0 : x * x)
DX_OF(relu_squared, a <= 0 ? 0 : g * (2 * a))
BEND(relu_squared) { return B(b, where, B(b, gt, a, N(0)), N(2), N(0)); }
ENTRY_OF(relu_squared, x, .layer = "ReLUSquared", .published = "relu2",
         .gain = 0.81649658092772603273, .bend = bend_relu_squared); /* sqrt(2 / 3) */
FORWARD(relu_squared, FLOAT, NULL, PERI_GRAIN_CHEAP,
        .doc = "max(x, 0)^2 (arXiv:2109.08668); the gradient at 0 is 0.",
        TESTS(.domain = "kinks=0", .reference = "square(maximum(x, 0))"));
BACKWARD(relu_squared, .doc = "Gradient of relu_squared at x, times grad.",
         TESTS(.domain = "kinks=0", .reference = "grad * 2 * maximum(x, 0)"));

/* ---- tanh ---- */

Y_OF(tanh, tanh(x))
DX_OF(tanh, g *(1 - a * a))
BEND(tanh) { return B(b, mul, a, N(-2)); }
ENTRY_OF(tanh, y, .layer = "Tanh", .published = "", .gain = 5.0 / 3, .bend = bend_tanh);
FORWARD(tanh, FLOAT, NULL, PERI_GRAIN_COSTLY, .doc = "Hyperbolic tangent.");
BACKWARD(tanh, .doc = "Gradient of tanh where its output is x: grad * (1 - x^2).",
         TESTS(.domain = "x=-0.9..0.9"));

/* ---- sigmoid ---- */

Y_OF(sigmoid, peri__logistic(x))
DX_OF(sigmoid, g *(a *(1 - a)))
BEND(sigmoid) { return B(b, sub, N(1), B(b, mul, a, N(2))); }
ENTRY_OF(sigmoid, y, .layer = "Sigmoid", .published = "", .gain = 1, .bend = bend_sigmoid);
FORWARD(sigmoid, FLOAT, NULL, PERI_GRAIN_COSTLY, .doc = "1 / (1 + e^-x).");
BACKWARD(sigmoid, .doc = "Gradient of sigmoid where its output is x: grad * x * (1 - x).",
         TESTS(.domain = "x=0.1..0.9"));

/* ---- silu, quick_gelu: x s, s = sigmoid(k x) ---- */

static double sigmoid_slope (double x, double k) {
  double z = bounded(x), s = peri__logistic(k * z);
  return s * (1 + k * z * (1 - s));
}
/* k s (1 - s) (2 + k x (1 - 2 s)) */
static peri_tensor *sigmoid_bend (peri_build *b, peri_tensor *x, double k) {
  peri_tensor *z = k == 1 ? x : B(b, mul, x, N(k)), *s = B(b, sigmoid, z);
  peri_tensor *r = B(b, sub, N(1), s);
  peri_tensor *t = B(b, add, B(b, mul, z, B(b, sub, r, s)), N(2));
  t = B(b, mul, B(b, mul, s, r), t);
  return k == 1 ? t : B(b, mul, t, N(k));
}

Y_OF(silu, x < -1e4 ? -0.0 : x * peri__logistic(x))
DX_OF(silu, g *sigmoid_slope(a, 1))
BEND(silu) { return sigmoid_bend(b, a, 1); }
ENTRY_OF(silu, x, .layer = "SiLU", .published = "swish", .gain = SQRT_2, .bend = bend_silu);
FORWARD(silu, FLOAT, NULL, PERI_GRAIN_COSTLY,
        .doc = "x sigmoid(x), also called swish (arXiv:1702.03118).");
BACKWARD(silu, .doc = "Gradient of silu at x, times grad.");

Y_OF(quick_gelu, x < -1e4 ? -0.0 : x * peri__logistic(1.702 * x))
DX_OF(quick_gelu, g *sigmoid_slope(a, 1.702))
BEND(quick_gelu) { return sigmoid_bend(b, a, 1.702); }
ENTRY_OF(quick_gelu, x, .layer = "QuickGELU", .published = "", .gain = SQRT_2,
         .bend = bend_quick_gelu);
FORWARD(quick_gelu, FLOAT, NULL, PERI_GRAIN_COSTLY,
        .doc = "x sigmoid(1.702 x), near gelu (arXiv:1606.08415).",
        TESTS(.reference = "x * sigmoid(1.702 * x)"));
BACKWARD(quick_gelu, .doc = "Gradient of quick_gelu at x, times grad.",
         TESTS(.reference = "grad * sigmoid(1.702 * x) * (1 + 1.702 * x * sigmoid(-1.702 * x))"));

/* ---- gelu: x times the normal distribution function ---- */

static double gelu_slope (double x) {
  x = bounded(x);
  return 0.5 * erfc(-x * PERI_SQRT1_2) + x * INV_SQRT_2PI * exp(-0.5 * x * x);
}
Y_OF(gelu, x < -1e3 ? -0.0 : 0.5 * x * erfc(-x * PERI_SQRT1_2))
DX_OF(gelu, g *gelu_slope(a))
BEND(gelu) { /* phi(x) (2 - x^2), phi the normal density */
  peri_tensor *q = B(b, square, a), *e = B(b, exp, B(b, mul, q, N(-0.5)));
  return B(b, mul, e, B(b, sub, N(2 * INV_SQRT_2PI), B(b, mul, q, N(INV_SQRT_2PI))));
}
static const peri_attr erf_form[1] = { A_STR("none") };
ENTRY_OF(gelu, x, .attr = erf_form, .layer = "GELU", .published = "gelu_python", .gain = SQRT_2,
         .bend = bend_gelu);
BACKWARD(gelu, .doc = "Gradient of gelu(x) at x, times grad.");

/* ---- gelu_tanh: x s(t), t = 2 u ---- */

static double gelu_tanh_slope (double x) {
  x = bounded(x);
  double s = peri__logistic(C_GELU * (x + 0.044715 * x * x * x));
  return s + x * s * (1 - s) * C_GELU * (1 + 3 * 0.044715 * x * x);
}
Y_OF(gelu_tanh, x < -1e3 ? -0.0 : x * peri__logistic(C_GELU * (x + 0.044715 * x * x * x)))
DX_OF(gelu_tanh, g *gelu_tanh_slope(a))
BEND(gelu_tanh) { /* s (1 - s) (2 t' + x ((1 - 2 s) t'^2 + t'')) */
  peri_tensor *q = B(b, square, a), *c = N(C_GELU);
  peri_tensor *cubic = B(b, mul, q, N(C_GELU * 0.044715));
  peri_tensor *t = B(b, mul, a, B(b, add, cubic, c));
  peri_tensor *t1 = B(b, add, B(b, mul, q, N(3 * C_GELU * 0.044715)), c);
  peri_tensor *s = B(b, sigmoid, t), *r = B(b, sub, N(1), s);
  peri_tensor *k = B(b, mul, B(b, mul, B(b, sub, r, s), B(b, square, t1)), a);
  k = B(b, add, k, B(b, mul, q, N(6 * C_GELU * 0.044715))); /* x t'' */
  k = B(b, add, k, B(b, mul, t1, N(2)));
  return B(b, mul, B(b, mul, s, r), k);
}
ENTRY_OF(gelu_tanh, x, .layer = "GELUTanh",
         .published = "gelu_new gelu_pytorch_tanh gelu_fast gelu_accurate", .gain = SQRT_2,
         .bend = bend_gelu_tanh);
FORWARD(
    gelu_tanh, FLOAT, NULL, PERI_GRAIN_COSTLY,
    .doc = "0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): gelu(x, \"tanh\") "
           "(arXiv:1606.08415).",
    TESTS(.reference = "0.5 * x * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)))"));
BACKWARD(gelu_tanh, .doc = "Gradient of gelu_tanh at x, times grad.");

/* The op gelu has both forms. */
static peri_status gelu_form (peri_ctx *ctx, const char *s, const peri__act **out) {
  bool tanh_form = s != NULL && strcmp(s, "tanh") == 0;
  *out = tanh_form ? &act_gelu_tanh : &act_gelu;
  if (s == NULL || tanh_form || strcmp(s, "none") == 0) return PERI_OK;
  return peri__fail(ctx, PERI_EINVAL, "approximate is \"%s\", expected \"none\" or \"tanh\"", s);
}
static peri_status gelu_infer (peri_call *c) {
  const peri__act *a;
  TRY(gelu_form(c->ctx, c->attr[0].s, &a));
  return peri__infer_same(c);
}
static peri_status gelu_cpu (peri_call *c) {
  const peri__act *a;
  TRY(gelu_form(c->ctx, c->attr[0].s, &a));
  return forward(c, a, NULL, PERI_GRAIN_COSTLY);
}
RULE(gelu) {
  const peri__act *a;
  peri__build_fail(BB, gelu_form(v->c->ctx, v->c->attr[0].s, &a));
  forward_rule(v, a);
}
OP(gelu, .sig = "x, approximate:str=none", .flags = ELEMENTWISE | FLOAT,
   .doc = "x times the normal distribution function of x; approximate \"tanh\": "
          "0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (arXiv:1606.08415).",
   .infer = gelu_infer, .cpu = gelu_cpu, .vjp = gelu_vjp,
   TESTS(.variants = { "attr approximate=tanh", "x=-9..9; attr approximate=tanh", "x=-9..9" }));

/* ---- mish: x t, t = tanh(log(1 + e^x)) ---- */

static double mish_slope (double x) { /* t + x t', t' = (1 - t^2) sigmoid(x) */
  x = bounded(x);
  double t = tanh(peri__softplus(x));
  return t + x * (1 - t) * (1 + t) * peri__logistic(x);
}
Y_OF(mish, x < -1e3 ? -0.0 : x * tanh(peri__softplus(x)))
DX_OF(mish, g *mish_slope(a))
BEND(mish) { /* t' (2 + x (1 - s - 2 t s)), s = sigmoid(x) */
  peri_tensor *one = N(1), *two = N(2);
  peri_tensor *t = B(b, tanh, BA(b, softplus, ATTR(A_NUM(1), A_NUM(20)), a));
  peri_tensor *s = B(b, sigmoid, a), *t1 = B(b, mul, B(b, sub, one, B(b, square, t)), s);
  peri_tensor *k = B(b, sub, B(b, sub, one, s), B(b, mul, B(b, mul, t, s), two));
  return B(b, mul, t1, B(b, add, B(b, mul, a, k), two));
}
ENTRY_OF(mish, x, .layer = "Mish", .published = "", .gain = SQRT_2, .bend = bend_mish);
FORWARD(mish, FLOAT, NULL, PERI_GRAIN_COSTLY, .doc = "x tanh(log(1 + e^x)) (arXiv:1908.08681).",
        TESTS(.reference = "x * tanh(log1p(exp(x)))"));
BACKWARD(
    mish, .doc = "Gradient of mish at x, times grad.",
    TESTS(.reference =
              "grad * (tanh(log1p(exp(x))) + x * (1 - square(tanh(log1p(exp(x))))) * sigmoid(x))"));

/* ---- the registry ---- */

#define POINTER(name) &act_##name,
static const peri__act *const acts[] = { PERI_ACTIVATIONS(PERI_ACT_NAME, POINTER) NULL };

const peri__act *peri__act_at (int i) { return i >= 0 && i < PERI_N_ACT ? acts[i] : NULL; }

/* Is name one of the words of list? */
static bool among (const char *name, const char *list) {
  size_t n = strlen(name);
  for (; *list; list += strcspn(list, " "), list += *list == ' ')
    if (strcspn(list, " ") == n && memcmp(list, name, n) == 0) return n > 0;
  return false;
}

peri_status peri__act_named (peri_ctx *ctx, const char *name, const peri__act **out) {
  char list[512];
  size_t at = 0;
  *out = NULL;
  if (name == NULL || strcmp(name, "none") == 0) return PERI_OK;
  for (int i = 0; i < PERI_N_ACT; i++)
    if (strcmp(name, acts[i]->name) == 0) {
      *out = acts[i];
      return PERI_OK;
    }
  for (int i = 0; i < PERI_N_ACT; i++)
    if (among(name, acts[i]->published))
      return peri__fail(ctx, PERI_EINVAL, "act is \"%.100s\", which is \"%s\" here", name,
                        acts[i]->name);
  for (int i = 0; i < PERI_N_ACT; i++)
    at += (size_t)snprintf(list + at, at < sizeof list ? sizeof list - at : 0, "%s%s",
                           i == PERI_N_ACT - 1 ? " or " : ", ", acts[i]->name);
  return peri__fail(ctx, PERI_EINVAL, "act is \"%.100s\", expected none%s", name, list);
}
