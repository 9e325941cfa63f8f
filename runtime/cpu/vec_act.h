/*
** vec_act.h - the activations over vectors of floats, included by simd_*.c only. Of each name of
** PERI_ACTIVATIONS there are v_NAME, y from x, and v_NAME_back, the gradient from g and what the list
** says is saved. Where a function and its gradient share a part they form it from one expression, so
** that the gated kernels compute it once.
**
** Errors against exact values (tests/c/test_math.c measures them): silu quick_gelu 3.2, mish 5
** units in the last place; gelu forms 4e-7 (|x| + 1) absolute, as the far left tail loses relative
** accuracy and so does the neighbourhood of a derivative's zero.
*/
#ifndef peri_vec_act_h
#define peri_vec_act_h

#include "cpu/vec_math.h"

/* A function that goes to -0 on the left: its limit there is not -inf * 0. */
static inline vf v_act_left (vf x) { return v_max(v_set(-1e4f), x); }
/* Where the gradient has become 1, and inf * 0 would come up. */
static inline vf v_act_right (vf x) { return v_min(v_set(1e4f), x); }

static inline vf v_relu (vf x) { return v_max(v_set(0.0f), x); }
static inline vf v_relu_back (vf y, vf g) { return v_select((vi)(y <= 0.0f), v_set(0.0f), g); }

static inline vf v_relu_squared (vf x) {
  vf r = v_relu(x);
  return r * r;
}
static inline vf v_relu_squared_back (vf x, vf g) {
  return v_select((vi)(x <= 0.0f), v_set(0.0f), g * (x + x));
}

static inline vf v_tanh_back (vf y, vf g) { return g * (1.0f - y * y); }

static inline vf v_sigmoid_back (vf y, vf g) { return g * (y * (1.0f - y)); }

static inline vf v_silu (vf x) {
  x = v_act_left(x);
  return x * v_sigmoid(x);
}
static inline vf v_silu_back (vf x, vf g) {
  x = v_act_left(x);
  vf s = v_sigmoid(x);
  return g * (s * (v_act_right(x) * (1.0f - s) + 1.0f));
}

/* Standard normal distribution function of x, and *e = exp(-x^2 / 2). erfc(t) = exp(-t^2) q P(q),
** q = 1 / (1 + 0.3 t): relative error 2e-8 to t = 10, where it has left f32; no cancellation. */
static inline vf v_normal_cdf (vf x, vf *e) {
  vf q = 1.0f / (v_abs(x) * (0.3f * 0x1.6a09e6p-1f) + 1.0f), y = q - 0.5f;
  vf p = y * -0x1.09a47ap-3f + -0x1.090356p-5f;
  p = p * y + 0x1.1f3f2ep-2f;
  p = p * y + 0x1.4e8b90p-1f;
  p = p * y + 0x1.d2943cp-1f;
  p = p * y + 0x1.e643a6p-1f;
  p = p * y + 0x1.971abep-1f;
  p = p * y + 0x1.1b2902p-1f;
  p = p * y + 0x1.4cc78ap-2f;
  *e = v_exp(x * x * -0.5f);
  vf h = *e * q * p * 0.5f;
  return v_select((vi)(x < 0.0f), h, 1.0f - h);
}
static inline vf v_gelu (vf x) {
  vf e;
  x = v_act_left(x);
  return x * v_normal_cdf(x, &e);
}
static inline vf v_gelu_back (vf x, vf g) {
  vf e;
  x = v_act_left(x);
  vf c = v_normal_cdf(x, &e);
  return g * (v_act_right(x) * e * 0x1.988454p-2f + c); /* 1 / sqrt(2 pi) */
}

/* 0.5 x (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3); arXiv:1606.08415. */
static inline vf v_gelu_tanh_2u (vf x) {
  return x * (x * x * (1.5957691216057308f * 0.044715f) + 1.5957691216057308f);
}
static inline vf v_gelu_tanh (vf x) {
  x = v_act_left(x);
  return x * v_sigmoid(v_gelu_tanh_2u(x));
}
static inline vf v_gelu_tanh_back (vf x, vf g) {
  x = v_act_left(x);
  vf s = v_sigmoid(v_gelu_tanh_2u(x)), r = v_act_right(x);
  vf du = r * r * (3.0f * 1.5957691216057308f * 0.044715f) + 1.5957691216057308f;
  return g * (s * (r * du * (1.0f - s) + 1.0f));
}

/* x sigmoid(1.702 x) */
static inline vf v_quick_gelu (vf x) {
  x = v_act_left(x);
  return x * v_sigmoid(x * 1.702f);
}
static inline vf v_quick_gelu_back (vf x, vf g) {
  x = v_act_left(x);
  vf s = v_sigmoid(x * 1.702f);
  return g * (s * (v_act_right(x) * 1.702f * (1.0f - s) + 1.0f));
}

/* x tanh(log(1 + e)) = x n / (n + 2), n = e (e + 2), e = exp(x); 1 from x = 20 on. */
static inline vf v_mish_exp (vf x) { return v_exp(v_min(v_set(20.0f), x)); }
static inline vf v_mish (vf x) {
  x = v_act_left(x);
  vf e = v_mish_exp(x), n = e * (e + 2.0f);
  return x * (n / (n + 2.0f));
}
static inline vf v_mish_back (vf x, vf g) {
  x = v_act_left(x);
  vf e = v_mish_exp(x), n = e * (e + 2.0f), d = n + 2.0f;
  return g * (v_act_right(x) * (4.0f * e * (e + 1.0f) / (d * d)) + n / d);
}

#endif
