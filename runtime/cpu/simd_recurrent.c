/*
** simd_recurrent.c - the gates of LSTM and GRU cells and their gradients: what one step is besides
** its products; compiled once per level. An element's bits do not depend on where a block begins.
*/
#include "cpu/recurrent.h"
#include "cpu/vec_act.h"

enum { W = PERI_VW };
#define INLINE static inline __attribute__((always_inline))

/* k lanes at p; all of them where k is a constant of W. */
INLINE vf get (const float *p, int64_t k) { return k == W ? v_load(p) : v_load_tail(p, k, 0); }
INLINE vf get_or_0 (const float *p, int64_t j, int64_t k) {
  return p != NULL ? get(p + j, k) : v_set(0);
}
INLINE void put (float *p, vf v, int64_t k) {
  if (k == W)
    v_store(p, v);
  else
    v_store_tail(p, v, k);
}
static inline vf slope_of_sigmoid (vf y) { return y * (1.0f - y); }
static inline vf slope_of_tanh (vf y) { return 1.0f - y * y; }

INLINE void lstm (const struct peri__cells *a, int64_t i, int64_t j, int64_t k) {
  const int64_t H = a->H;
  const float *wh = a->wh + i * a->wh_ld + (j - a->unit0);
  float *s = a->saved + a->at[i] * 5 * H + j, *cell = a->c + i * a->ld + j;
  vf in = v_sigmoid(get(s, k) + v_load(wh)),
     forget = v_sigmoid(get(s + H, k) + v_load(wh + a->wh_gate));
  vf g = v_tanh(get(s + 2 * H, k) + v_load(wh + 2 * a->wh_gate));
  vf out = v_sigmoid(get(s + 3 * H, k) + v_load(wh + 3 * a->wh_gate));
  vf c = forget * v_load(cell) + in * g, h = out * v_tanh(c);
  put(s, in, k);
  put(s + H, forget, k);
  put(s + 2 * H, g, k);
  put(s + 3 * H, out, k);
  put(s + 4 * H, c, k);
  put(a->y + a->at[i] * H + j, h, k);
  v_store(cell, c);
  v_store(a->h + i * a->ld + j, h);
}

INLINE void gru (const struct peri__cells *a, int64_t i, int64_t j, int64_t k) {
  const int64_t H = a->H;
  const float *wh = a->wh + i * a->wh_ld + (j - a->unit0);
  float *s = a->saved + a->at[i] * 4 * H + j;
  const float *old = a->h_former + i * a->ld + j;
  vf r = v_sigmoid(get(s, k) + v_load(wh)), z = v_sigmoid(get(s + H, k) + v_load(wh + a->wh_gate));
  vf q = v_load(wh + 2 * a->wh_gate) + get_or_0(a->bias_n, j, k);
  vf n = v_tanh(get(s + 2 * H, k) + r * q), h = (v_load(old) - n) * z + n;
  put(s, r, k);
  put(s + H, z, k);
  put(s + 2 * H, n, k);
  put(s + 3 * H, q, k);
  put(a->y + a->at[i] * H + j, h, k);
  v_store(a->h + i * a->ld + j, h);
}

INLINE void lstm_back (const struct peri__cells *a, int64_t i, int64_t j, int64_t k) {
  const int64_t H = a->H;
  const float *s = a->saved + a->at[i] * 5 * H + j;
  float *gh = a->gh + i * a->ld + j, *gc = a->gc + i * a->ld + j;
  float *dx = a->dx + a->at[i] * 4 * H + j, *too = a->dh_too + i * a->too_ld + j;
  vf in = get(s, k), forget = get(s + H, k), g = get(s + 2 * H, k), out = get(s + 3 * H, k);
  vf th = v_tanh(get(s + 4 * H, k)), old = get_or_0(a->c_before[i], j, k), dh = v_load(gh);
  if (a->gy != NULL) dh += get(a->gy + a->at[i] * H + j, k);
  vf dc = dh * out * slope_of_tanh(th) + v_load(gc);
  vf d[4] = { dc * g * slope_of_sigmoid(in), dc * old * slope_of_sigmoid(forget),
              dc * in * slope_of_tanh(g), dh * th * slope_of_sigmoid(out) };
  for (int q = 0; q < 4; q++) {
    put(dx + q * H, d[q], k);
    put(too + q * H, d[q], k);
  }
  put(a->before + a->at[i] * H + j, get_or_0(a->h_before[i], j, k), k);
  v_store(gh, v_set(0));
  v_store(gc, a->c_before[i] != NULL ? dc * forget : v_set(0));
}

INLINE void gru_back (const struct peri__cells *a, int64_t i, int64_t j, int64_t k) {
  const int64_t H = a->H;
  const float *s = a->saved + a->at[i] * 4 * H + j;
  float *gh = a->gh + i * a->ld + j, *too = a->dh_too + i * a->too_ld + j;
  float *dx = a->dx + a->at[i] * 3 * H + j, *dw = a->dh + a->at[i] * 3 * H + j;
  vf r = get(s, k), z = get(s + H, k), n = get(s + 2 * H, k), q = get(s + 3 * H, k);
  vf old = get_or_0(a->h_before[i], j, k), dh = v_load(gh);
  if (a->gy != NULL) dh += get(a->gy + a->at[i] * H + j, k);
  vf dn = dh * (1.0f - z) * slope_of_tanh(n), dz = dh * (old - n) * slope_of_sigmoid(z);
  vf d[4] = { dn * q * slope_of_sigmoid(r), dz, dn * r, dn };
  for (int g = 0; g < 3; g++) {
    put(dx + g * H, d[g == 2 ? 3 : g], k);
    put(dw + g * H, d[g], k);
    put(too + g * H, d[g], k);
  }
  put(a->before + a->at[i] * H + j, old, k);
  v_store(gh, a->h_before[i] != NULL ? dh * z : v_set(0));
}

#define CELLS(name)                                       \
  static void name##_cells(const struct peri__cells *a) { \
    for (int64_t i = a->row0; i < a->row1; i++) {         \
      int64_t j = a->unit0;                               \
      for (; j + W <= a->unit1; j += W) name(a, i, j, W); \
      if (j < a->unit1) name(a, i, j, a->unit1 - j);      \
    }                                                     \
  }
CELLS(lstm)
CELLS(gru)
CELLS(lstm_back)
CELLS(gru_back)

/* ORDER kind */
const peri__cells_fn PERI_NAME(peri__cells)[2][2] = { { lstm_cells, lstm_back_cells },
                                                      { gru_cells, gru_back_cells } };
