/*
** simd_conv.c - kernels of convolutions and pooling; compiled once per level. Sums run in the order
** that cpu/conv.h states.
*/
#include <math.h>

#include "cpu/conv.h"
#include "cpu/gemm.h"
#include "cpu/vec.h"

enum { W = PERI_VW, NR = PERI_GEMM_NV * PERI_VW };

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* ---- panels ---- */

INLINE void pack_pieces (const int np, int64_t k, const int64_t *off, const float *const *from,
                         const int64_t *to, float *out) {
  const float *f[8];
  int64_t t[8];
  UNROLL for (int j = 0; j < np; j++) f[j] = from[j], t[j] = to[j];
  for (int64_t i = 0; i < k; i++, out += NR)
    UNROLL for (int j = 0; j < np; j++) v_store(out + t[j], v_load(f[j] + off[i]));
}

static void pack (int64_t k, const int64_t *off, int np, const float *const *from,
                  const int64_t *to, float *out) {
  switch (np) {
  case 1: pack_pieces(1, k, off, from, to, out); break;
  case 2: pack_pieces(2, k, off, from, to, out); break;
  case 3: pack_pieces(3, k, off, from, to, out); break;
  case 4: pack_pieces(4, k, off, from, to, out); break;
  case 5: pack_pieces(5, k, off, from, to, out); break;
  case 6: pack_pieces(6, k, off, from, to, out); break;
  default:
    for (int64_t i = 0; i < k; i++, out += NR)
      for (int j = 0; j < np; j++) v_store(out + to[j], v_load(from[j] + off[i]));
  }
}

/* ---- layouts ---- */

#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#if PERI_VW == 16
#define EVEN(a, b) SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODD(a, b) SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#elif PERI_VW == 8
#define EVEN(a, b) SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define ODD(a, b) SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#else
#define EVEN(a, b) SHUFFLE(a, b, 0, 2, 4, 6)
#define ODD(a, b) SHUFFLE(a, b, 1, 3, 5, 7)
#endif

INLINE void split2 (const float *x, float *out, int64_t xs) {
  vf a = v_load(x), b = v_load(x + W);
  v_store(out, EVEN(a, b));
  v_store(out + xs, ODD(a, b));
}

INLINE void split4 (const float *x, float *out, int64_t xs) {
  vf a = v_load(x), b = v_load(x + W), c = v_load(x + 2 * W), d = v_load(x + 3 * W);
  vf e = EVEN(a, b), f = EVEN(c, d), g = ODD(a, b), h = ODD(c, d);
  v_store(out, EVEN(e, f));
  v_store(out + xs, EVEN(g, h));
  v_store(out + 2 * xs, ODD(e, f));
  v_store(out + 3 * xs, ODD(g, h));
}

/* n <= W lanes of v at every second float */
#if PERI_VW == 16
INLINE void store_apart (float *p, vf v, int64_t n) {
  vf a = SHUFFLE(v, v, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  vf b = SHUFFLE(v, v, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
  uint32_t mask = 0x55555555u & (uint32_t)(((uint64_t)1 << (2 * n)) - 1);
  _mm512_mask_storeu_ps(p, (__mmask16)mask, (__m512)a);
  if (n > 8) _mm512_mask_storeu_ps(p + W, (__mmask16)(mask >> 16), (__m512)b);
}
#else
INLINE void store_apart (float *p, vf v, int64_t n) {
  for (int64_t i = 0; i < n; i++) p[2 * i] = v[i];
}
#endif

static void move (int64_t m, int64_t n, const float *from, int64_t from_pitch, float *to,
                  int64_t pitch, int64_t step) {
  for (int64_t i = 0; i < m; i++, from += from_pitch, to += pitch) {
    int64_t j = 0;
    if (step == 1) {
      for (; j + W <= n; j += W) v_store(to + j, v_load(from + j));
      if (j < n) v_store_tail(to + j, v_load_tail(from + j, n - j, 0), n - j);
    } else if (step == 2 && W == 16) {
      for (; j + W <= n; j += W) store_apart(to + 2 * j, v_load(from + j), W);
      if (j < n) store_apart(to + 2 * j, v_load_tail(from + j, n - j, 0), n - j);
    } else
      for (; j < n; j++) to[j * step] = from[j];
  }
}

INLINE vf load_some (const float *x, int64_t n) {
  return n >= W ? v_load(x) : n > 0 ? v_load_tail(x, n, 0) : v_set(0);
}
INLINE void store_some (float *p, vf v, int64_t n) {
  if (n >= W)
    v_store(p, v);
  else if (n > 0)
    v_store_tail(p, v, n);
}

/* out[j % step * xs + j / step] = x[j], begin <= j < end; the columns between keep what they have. */
static void split (const float *x, int64_t begin, int64_t end, int64_t step, int64_t xs,
                   float *out) {
  int64_t j = begin;
  if (step == 2 || step == 4) {
    for (; j < end && j % step != 0; j++) out[j % step * xs + j / step] = x[j];
    for (; step == 2 && j + 2 * W <= end; j += 2 * W) split2(x + j, out + j / 2, xs);
    for (; step == 4 && j + 4 * W <= end; j += 4 * W) split4(x + j, out + j / 4, xs);
    if (j < end) { /* the same with fewer */
      int64_t n = end - j;
      vf a = load_some(x + j, n), b = load_some(x + j + W, n - W);
      float *o = out + j / step;
      if (step == 2) {
        store_some(o, EVEN(a, b), (n + 1) / 2);
        store_some(o + xs, ODD(a, b), n / 2);
      } else {
        vf c = load_some(x + j + 2 * W, n - 2 * W), d = load_some(x + j + 3 * W, n - 3 * W);
        vf e = EVEN(a, b), f = EVEN(c, d), g = ODD(a, b), h = ODD(c, d);
        store_some(o, EVEN(e, f), (n + 3) / 4);
        store_some(o + xs, EVEN(g, h), (n + 2) / 4);
        store_some(o + 2 * xs, ODD(e, f), (n + 1) / 4);
        store_some(o + 3 * xs, ODD(g, h), n / 4);
      }
    }
    return;
  }
  int64_t at = j / step, phase = j % step;
  for (; j < end; j++) {
    out[phase * xs + at] = x[j];
    if (++phase == step) phase = 0, at++;
  }
}

static void fill (float *out, int64_t n, float value) {
  for (int64_t j = 0; j < n; j++) out[j] = value;
}

static void lay (const peri__conv_rows *l, const float *x, int64_t y, int64_t count, float *out) {
  int64_t width = l->step * l->xs, begin = l->x0 < 0 ? (-l->x0 < width ? -l->x0 : width) : 0;
  int64_t end = l->w - l->x0 < width ? l->w - l->x0 : width;
  if (end < begin) end = begin;
  for (int64_t r = 0; r < count; r++, y++) {
    const float *row = x + y * l->w + l->x0;
    if (y < 0 || y >= l->h || begin == end) {
      fill(out, l->c * width, l->fill);
      out += l->c * width;
      continue;
    }
    for (int64_t c = 0; c < l->c; c++, row += l->plane, out += width) {
      if (l->step != 1) {
        if (begin > 0 || end < width) fill(out, width, l->fill);
        split(row, begin, end, l->step, l->xs, out);
        continue;
      }
      int64_t j = begin;
      for (int64_t i = 0; i < begin; i++) out[i] = l->fill;
      for (; j + W <= end; j += W) v_store(out + j, v_load(row + j));
      if (j < end) v_store_tail(out + j, v_load_tail(row + j, end - j, 0), end - j);
      for (j = end; j < width; j++) out[j] = l->fill;
    }
  }
}

typedef float v4 __attribute__((vector_size(16)));
typedef float v4u __attribute__((vector_size(16), aligned(4), may_alias));

/* 4 columns of 4 rows */
INLINE void turn_quad (const float *x, int64_t stride, float *out, int64_t m) {
  v4 r0 = *(const v4u *)x, r1 = *(const v4u *)(x + stride);
  v4 r2 = *(const v4u *)(x + 2 * stride), r3 = *(const v4u *)(x + 3 * stride);
  v4 a = SHUFFLE(r0, r1, 0, 4, 1, 5), b = SHUFFLE(r2, r3, 0, 4, 1, 5);
  v4 c = SHUFFLE(r0, r1, 2, 6, 3, 7), d = SHUFFLE(r2, r3, 2, 6, 3, 7);
  *(v4u *)out = SHUFFLE(a, b, 0, 1, 4, 5);
  *(v4u *)(out + m) = SHUFFLE(a, b, 2, 3, 6, 7);
  *(v4u *)(out + 2 * m) = SHUFFLE(c, d, 0, 1, 4, 5);
  *(v4u *)(out + 3 * m) = SHUFFLE(c, d, 2, 3, 6, 7);
}

static void turn (int64_t m, int64_t n, const float *x, int64_t stride, float *out) {
  int64_t i = 0;
  if (m == 1) {
    memcpy(out, x, (size_t)n * sizeof *x);
    return;
  }
  for (; i + 4 <= m; i += 4) {
    const float *from = x + i * stride;
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) turn_quad(from + j, stride, out + j * m + i, m);
    for (; j < n; j++)
      for (int64_t l = 0; l < 4; l++) out[j * m + i + l] = from[l * stride + j];
  }
  for (; i < m; i++)
    for (int64_t j = 0; j < n; j++) out[j * m + i] = x[i * stride + j];
}

/* ---- few output channels: taps are read in place ---- */

INLINE void direct_tile (const int m, const int np, int64_t k, const int64_t *off, const float *a,
                         const float *init, const float *const *from, float *const *out,
                         const int64_t *len, int64_t om) {
  vf acc[4][8];
  const float *f[8];
  UNROLL for (int j = 0; j < np; j++) f[j] = from[j];
  UNROLL for (int i = 0; i < m; i++) UNROLL for (int j = 0; j < np; j++) acc[i][j] = v_set(init[i]);
  for (int64_t t = 0; t < k; t++, a += m) {
    vf x[8];
    UNROLL for (int j = 0; j < np; j++) x[j] = v_load(f[j] + off[t]);
    UNROLL for (int i = 0; i < m; i++) {
      vf ai = v_set(a[i]);
      UNROLL for (int j = 0; j < np; j++) acc[i][j] = v_fma(ai, x[j], acc[i][j]);
    }
  }
  UNROLL for (int j = 0; j < np; j++) UNROLL for (int i = 0; i < m; i++) {
    if (len[j] == W)
      v_store(out[j] + i * om, acc[i][j]);
    else if (len[j] > 0)
      v_store_tail(out[j] + i * om, acc[i][j], len[j]);
  }
}

static void direct (int64_t m, int64_t k, const int64_t *off, const float *a, const float *init,
                    const float *const *from, float *const *out, const int64_t *len, int64_t om) {
  switch (m) {
  case 1: direct_tile(1, 8, k, off, a, init, from, out, len, om); break;
  case 2: direct_tile(2, 4, k, off, a, init, from, out, len, om); break;
  case 3: direct_tile(3, 3, k, off, a, init, from, out, len, om); break;
  default: direct_tile(4, 2, k, off, a, init, from, out, len, om);
  }
}

INLINE void dot_tile (const int k, const int64_t *off, int64_t rows, const float *x, int64_t pitch,
                      const float *g, int64_t g_pitch, int64_t n, float *sum) {
  vf acc[9];
  UNROLL for (int t = 0; t < k; t++) acc[t] = v_load(sum + t * W);
  for (int64_t r = 0; r < rows; r++, x += pitch, g += g_pitch) {
    int64_t l = 0;
    for (; l + W <= n; l += W) {
      vf gl = v_load(g + l);
      UNROLL for (int t = 0; t < k; t++) acc[t] = v_fma(gl, v_load(x + off[t] + l), acc[t]);
    }
    if (l < n) {
      vf gl = v_load_tail(g + l, n - l, 0);
      UNROLL for (int t = 0; t < k; t++) acc[t] =
          v_fma(gl, v_load_tail(x + off[t] + l, n - l, 0), acc[t]);
    }
  }
  UNROLL for (int t = 0; t < k; t++) v_store(sum + t * W, acc[t]);
}

static void dot (int64_t k, const int64_t *off, int64_t rows, const float *x, int64_t pitch,
                 const float *g, int64_t g_pitch, int64_t n, float *sum) {
  for (; k >= 9; k -= 9, off += 9, sum += 9 * W)
    dot_tile(9, off, rows, x, pitch, g, g_pitch, n, sum);
  for (; k >= 3; k -= 3, off += 3, sum += 3 * W)
    dot_tile(3, off, rows, x, pitch, g, g_pitch, n, sum);
  for (; k > 0; k--, off++, sum += W) dot_tile(1, off, rows, x, pitch, g, g_pitch, n, sum);
}

/* ---- pooling ---- */

INLINE void max_vector (int64_t k, const int64_t *off, const int32_t *place, const float *x,
                        int64_t l, int64_t n, int32_t base, int32_t step, float *y, int32_t *at) {
  vf best = v_set(-INFINITY);
  vi where = v_seti(-1), first;
  for (int i = 0; i < W; i++) first[i] = base + ((int32_t)l + i) * step;
  for (int64_t t = 0; t < k; t++) {
    vf v = n == W ? v_load(x + off[t] + l) : v_load_tail(x + off[t] + l, n, -INFINITY);
    vi more = (vi)(v > best) | (vi)(v != v);
    best = v_select(more, v, best);
    where = (vi)v_select(more, (vf)(first + v_seti(place[t])), (vf)where);
  }
  store_some(y + l, best, n);
  memcpy(at + l, &where, (size_t)n * sizeof *at);
}

static void pool_max (int64_t k, const int64_t *off, const int32_t *place, const float *x,
                      int64_t n, int32_t base, int32_t step, float *y, int32_t *at) {
  int64_t l = 0;
  for (; l + W <= n; l += W) max_vector(k, off, place, x, l, W, base, step, y, at);
  if (l < n) max_vector(k, off, place, x, l, n - l, base, step, y, at);
}

const struct peri__conv_kernels PERI_NAME(peri__conv) = {
  .pack = pack,
  .lay = lay,
  .move = move,
  .turn = turn,
  .direct = direct,
  .direct_pieces = { 0, 8, 4, 3, 2 },
  .dot = dot,
  .max = pool_max,
};
