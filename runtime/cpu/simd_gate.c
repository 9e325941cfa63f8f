/*
** simd_gate.c - gated activations over arrays, one pair of kernels for each activation: y = act(gate)
** up, and the gradients of both. An element's bits are those of the same product in two ops.
*/
#include "cpu/cpu.h"
#include "cpu/math.h"
#include "cpu/vec_act.h"

enum { W = PERI_VW };

/* What the gradient reads of the two. */
#define SAVED_x(x, y) (x)
#define SAVED_y(x, y) (y)
#define SAVED_xy(x, y) (y)

#define GATE(X, name, saved)                                                                  \
  static inline void name##_grads(vf x, vf up, vf g, vf *dgate, vf *dup) {                    \
    vf y = v_##name(x);                                                                       \
    *dgate = v_##name##_back(SAVED_##saved(x, y), g * up);                                    \
    *dup = g * y;                                                                             \
  }                                                                                           \
  static void name##_forward(const float *gate, const float *up, float *y, int64_t n) {       \
    int64_t i = 0;                                                                            \
    for (; i + W <= n; i += W) v_store(y + i, v_##name(v_load(gate + i)) * v_load(up + i));   \
    if (i < n)                                                                                \
      v_store_tail(y + i,                                                                     \
                   v_##name(v_load_tail(gate + i, n - i, 0)) * v_load_tail(up + i, n - i, 0), \
                   n - i);                                                                    \
  }                                                                                           \
  static void name##_back(const float *gate, const float *up, const float *g, float *dgate,   \
                          float *dup, int64_t n) {                                            \
    vf dx, du;                                                                                \
    int64_t i = 0;                                                                            \
    for (; i + W <= n; i += W) {                                                              \
      name##_grads(v_load(gate + i), v_load(up + i), v_load(g + i), &dx, &du);                \
      v_store(dgate + i, dx);                                                                 \
      v_store(dup + i, du);                                                                   \
    }                                                                                         \
    if (i == n) return;                                                                       \
    name##_grads(v_load_tail(gate + i, n - i, 0), v_load_tail(up + i, n - i, 0),              \
                 v_load_tail(g + i, n - i, 0), &dx, &du);                                     \
    v_store_tail(dgate + i, dx, n - i);                                                       \
    v_store_tail(dup + i, du, n - i);                                                         \
  }
PERI_ACTIVATIONS(GATE, )

#define ENTRY(name) { name##_forward, name##_back },
const peri__gate PERI_NAME(peri__gates)[PERI_N_ACT] = { PERI_ACTIVATIONS(PERI_ACT_NAME, ENTRY) };
