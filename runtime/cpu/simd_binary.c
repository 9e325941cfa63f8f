/*
** simd_binary.c - f32 functions of two and three variables over arrays; either side may be one
** element for all. Tails run through the same vector functions.
*/
#include "cpu/cpu.h"
#include "cpu/math.h"
#include "cpu/vec_act.h"

#define INLINE static inline __attribute__((always_inline))

typedef vf (*map2)(vf a, vf b);

/* Arithmetic: a loop for each pair of steps. */
INLINE void each_cheap (int64_t n, const void *const *in, const int64_t *step, float *y, map2 f) {
  const float *a = in[0], *b = in[1];
  int64_t i = 0;
  if (step[0] && step[1]) {
    for (; i + PERI_VW <= n; i += PERI_VW) v_store(y + i, f(v_load(a + i), v_load(b + i)));
    if (i < n)
      v_store_tail(y + i, f(v_load_tail(a + i, n - i, 1.0f), v_load_tail(b + i, n - i, 1.0f)),
                   n - i);
  } else if (step[0]) {
    vf w = v_set(*b);
    for (; i + PERI_VW <= n; i += PERI_VW) v_store(y + i, f(v_load(a + i), w));
    if (i < n) v_store_tail(y + i, f(v_load_tail(a + i, n - i, 1.0f), w), n - i);
  } else if (step[1]) {
    vf v = v_set(*a);
    for (; i + PERI_VW <= n; i += PERI_VW) v_store(y + i, f(v, v_load(b + i)));
    if (i < n) v_store_tail(y + i, f(v, v_load_tail(b + i, n - i, 1.0f)), n - i);
  } else {
    vf v = f(v_set(*a), v_set(*b));
    for (; i + PERI_VW <= n; i += PERI_VW) v_store(y + i, v);
    if (i < n) v_store_tail(y + i, v, n - i);
  }
}

/* What costs more than its loads: one element for all is read again and again from a vector that it
** fills, so that one loop serves every pair of steps and a function stands in the program twice. */
INLINE void each_costly (int64_t n, const void *const *in, const int64_t *step, float *y, map2 f) {
  float fill[2][PERI_VW];
  const float *a = in[0], *b = in[1];
  int64_t i = 0, sa = step[0] ? PERI_VW : 0, sb = step[1] ? PERI_VW : 0;
  if (!sa) v_store(fill[0], v_set(*a)), a = fill[0];
  if (!sb) v_store(fill[1], v_set(*b)), b = fill[1];
  for (; i + PERI_VW <= n; i += PERI_VW, a += sa, b += sb) v_store(y + i, f(v_load(a), v_load(b)));
  if (i < n)
    v_store_tail(y + i, f(v_load_tail(a, n - i, 1.0f), v_load_tail(b, n - i, 1.0f)), n - i);
}

#define FORMULA(name, e) \
  static inline vf f_##name(vf a, vf b) { return e; }
FORMULA(add, a + b)
FORMULA(sub, a - b)
FORMULA(mul, a *b)
FORMULA(div, a / b)
/* the larger; NaN if either is NaN: max picks b then, and a + b is NaN where a is */
FORMULA(maximum, v_select((vi)(a == a), v_max(a, b), a))
FORMULA(minimum, v_select((vi)(a == a), v_min(a, b), a))
/* gradients: a is what is saved, b the gradient that came */
#define GRADIENT(name) FORMULA(name##_backward, v_##name##_back(a, b))
PERI_ACTIVATIONS(PERI_ACT_NAME, GRADIENT)

#define LANES(name, e)                                             \
  static inline float s_##name(float a, float b) { e }             \
  static inline vf f_##name(vf a, vf b) {                          \
    for (int i = 0; i < PERI_VW; i++) a[i] = s_##name(a[i], b[i]); \
    return a;                                                      \
  }
LANES(mod, float m = fmodf(a, b); return m != 0 && (m < 0) != (b < 0) ? m + b : m;)
LANES(floordiv, return floorf(a / b);)
LANES(pow, return b == 2.0f ? a * a : b == 3.0f ? a * a * a : b == 1.0f ? a : powf(a, b);)
LANES(atan2, return atan2f(a, b);)

#define KERNEL_BY(how, name)                                                             \
  static void k_##name(int64_t n, const void *const *in, const int64_t *step, void *out, \
                       const double *p) {                                                \
    (void)p;                                                                             \
    each_##how(n, in, step, out, f_##name);                                              \
  }
#define CHEAP(name) KERNEL_BY(cheap, name)
#define COSTLY(name) KERNEL_BY(costly, name)
PERI_ARITHMETIC(CHEAP)
PERI_COSTLY_BINARY(COSTLY)
/* A gradient that reads the output is arithmetic. */
#define BACK_x(name) COSTLY(name)
#define BACK_y(name) CHEAP(name)
#define BACK_xy(name) CHEAP(name)
#define BACK(X, name, saved) BACK_##saved(name##_backward)
PERI_ACTIVATIONS(BACK, )

#define ENTRY(name) k_##name,
const peri__kernel PERI_NAME(peri__binary_f32)[PERI_N_BINARY] = { PERI_BINARY(ENTRY) };

#define COMPARE(name, op)                                                                \
  static void k_##name(int64_t n, const void *const *in, const int64_t *step, void *out, \
                       const double *p) {                                                \
    const float *a = in[0], *b = in[1];                                                  \
    uint8_t *y = out;                                                                    \
    (void)p;                                                                             \
    if (step[0] && step[1])                                                              \
      for (int64_t i = 0; i < n; i++) y[i] = a[i] op b[i];                               \
    else if (step[0])                                                                    \
      for (int64_t i = 0; i < n; i++) y[i] = a[i] op * b;                                \
    else                                                                                 \
      for (int64_t i = 0; i < n; i++) y[i] = *a op b[i * step[1]];                       \
  }
COMPARE(eq, ==)
COMPARE(ne, !=)
COMPARE(lt, <)
COMPARE(le, <=)
COMPARE(gt, >)
COMPARE(ge, >=)
const peri__kernel PERI_NAME(peri__compare_f32)[PERI_N_COMPARE] = { PERI_COMPARE(ENTRY) };

void PERI_NAME (peri__where_f32)(int64_t n, const void *const *in, const int64_t *step, void *out,
                                 const double *p) {
  const uint8_t *m = in[0];
  const float *a = in[1], *b = in[2];
  float *y = out;
  (void)p;
  if (step[0] && step[1] && step[2])
    for (int64_t i = 0; i < n; i++) {
      float t = a[i], f = b[i];
      y[i] = m[i] ? t : f;
    }
  else if (step[0] && step[1]) { /* a number for one of them: loads, no branch on a random mask */
    float f = *b;
    for (int64_t i = 0; i < n; i++) {
      float t = a[i];
      y[i] = m[i] ? t : f;
    }
  } else if (step[0] && step[2]) {
    float t = *a;
    for (int64_t i = 0; i < n; i++) {
      float f = b[i];
      y[i] = m[i] ? t : f;
    }
  } else
    for (int64_t i = 0; i < n; i++) {
      float t = a[i * step[1]], f = b[i * step[2]];
      y[i] = m[i * step[0]] ? t : f;
    }
}

void PERI_NAME (peri__lerp_f32)(int64_t n, const void *const *in, const int64_t *step, void *out,
                                const double *p) {
  const float *x[3] = { in[0], in[1], in[2] };
  float *y = out;
  (void)p;
  for (int64_t i = 0; i < n; i += PERI_VW) {
    vf v[3];
    int64_t k = n - i < PERI_VW ? n - i : PERI_VW;
    for (int j = 0; j < 3; j++)
      v[j] = !step[j]       ? v_set(*x[j])
             : k == PERI_VW ? v_load(x[j] + i)
                            : v_load_tail(x[j] + i, k, 0);
    vf r = v[2] * (v[1] - v[0]) + v[0];
    if (k == PERI_VW)
      v_store(y + i, r);
    else
      v_store_tail(y + i, r, k);
  }
}
