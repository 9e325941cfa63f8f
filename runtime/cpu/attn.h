/*
** attn.h - what the forward and backward attention kernels share: panels, tiles, who sees what.
** Included by simd_attention*.c only.
**
** Bits: a score is one chain of fused multiply-adds over channels, an output one chain over the
** visible keys in order, cut only at key blocks that count from the row's first valid key. Nothing
** depends on how many queries or heads a tile holds, so decoding one token and training on the
** whole sequence give the same row.
*/
#ifndef peri_attn_h
#define peri_attn_h

#include "cpu/nn.h"
#include "cpu/vec.h"
#include "cpu/vec_math.h"

#define INLINE static inline __attribute__((always_inline))

enum { W = PERI_VW, KB = PERI_ATTN_KEYS, RT = 4 /* rows of a tile */ };

static inline int64_t round_up (int64_t n, int64_t m) { return (n + m - 1) / m * m; }
static inline int64_t min64 (int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64 (int64_t a, int64_t b) { return a > b ? a : b; }

/* Keys [lo, hi) of the sequence are those that query i may see, masks aside. */
static inline void visible (const struct peri__attn *a, int64_t start, int64_t i, int64_t *lo,
                            int64_t *hi) {
  int64_t last = i + a->offset + 1;
  *hi = a->causal ? min64(a->Tk, last) : a->Tk;
  *lo = a->window > 0 ? min64(max64(start, last - a->window), a->Tk) : start;
  if (*hi < *lo) *hi = *lo;
}

static inline int64_t start_of (const struct peri__attn *a, int64_t b, int64_t i) {
  if (!a->start) return 0;
  return min64(max64(a->start[a->start_each ? b * a->Tq + i : b], 0), a->Tk);
}

/* First query behind i, at most end, that has another start. */
static inline int64_t same_start (const struct peri__attn *a, int64_t b, int64_t i, int64_t end) {
  if (!a->start_each) return end;
  int64_t j = i + 1, start = start_of(a, b, i);
  while (j < end && start_of(a, b, j) == start) j++;
  return j;
}

#if PERI_VW == 16
#define LOW(x, y) \
  __builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(x, y) \
  __builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif PERI_VW == 8
#define LOW(x, y) __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH(x, y) __builtin_shufflevector(x, y, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define LOW(x, y) __builtin_shufflevector(x, y, 0, 4, 1, 5)
#define HIGH(x, y) __builtin_shufflevector(x, y, 2, 6, 3, 7)
#endif

/* One round of a perfect shuffle of W rows; log2(W) rounds transpose them. */
INLINE void shuffle (const vf *x, vf *y) {
  for (int i = 0; i < W / 2; i++) {
    y[2 * i] = LOW(x[i], x[i + W / 2]);
    y[2 * i + 1] = HIGH(x[i], x[i + W / 2]);
  }
}

/* A W x W block of rows becomes columns of the panel; rows from n and channels from D are zero. */
INLINE void transpose_block (const float *x, int64_t stride, int64_t n, int64_t D, bool whole,
                             float *panel) {
  vf s[W], t[W];
  for (int i = 0; i < W; i++)
    if (whole)
      s[i] = v_load(x + i * stride);
    else if (i >= n)
      s[i] = v_set(0);
    else
      s[i] = D >= W ? v_load(x + i * stride) : v_load_tail(x + i * stride, D, 0);
  shuffle(s, t);
  shuffle(t, s);
#if PERI_VW == 8
  shuffle(s, t);
  for (int i = 0; i < W; i++) s[i] = t[i];
#elif PERI_VW == 16
  shuffle(s, t);
  shuffle(t, s);
#endif
  for (int i = 0; i < W; i++)
    if (whole || i < D) v_store(panel + i * KB, s[i]);
}

/* Rows [j0, n) of (n, D) become columns of panel (D, KB); j0 is a multiple of W, columns from n up
** to the next multiple are zero. */
static inline void transpose (const float *x, int64_t stride, int64_t j0, int64_t n, int64_t D,
                              float *panel) {
  for (int64_t j = j0; j < n; j += W)
    for (int64_t d = 0; d < D; d += W) {
      const float *from = x + j * stride + d;
      float *to = panel + d * KB + j;
      if (n - j >= W && D - d >= W)
        transpose_block(from, stride, W, W, true, to);
      else
        transpose_block(from, stride, n - j, D - d, false, to);
    }
}

/* Copy n rows of D to rows of Dp, zeros behind. What is read again for every tile of queries is
** copied first: rows of a (B, T, H, D) tensor lie a power of two apart, in few cache sets. */
static inline void pack_rows (const float *x, int64_t stride, int64_t n, int64_t D, int64_t Dp,
                              float *y) {
  for (int64_t j = 0; j < n; j++, x += stride, y += Dp) {
    int64_t d = 0;
    for (; d + W <= D; d += W) v_store(y + d, v_load(x + d));
    if (d < D) v_store(y + d, v_load_tail(x + d, D - d, 0));
  }
}

/* s[r][c] = q[r] . panel column c, for NV vectors of columns. */
INLINE void score_tile (const float *const *q, int R, int NV, const float *panel, int64_t D,
                        float *s) {
  vf acc[4][8];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < NV; c++) acc[r][c] = v_set(0);
  for (int64_t d = 0; d < D; d++, panel += KB) {
    vf k[8];
    for (int c = 0; c < NV; c++) k[c] = v_load(panel + c * W);
    for (int r = 0; r < R; r++) {
      vf x = v_set(q[r][d]);
      for (int c = 0; c < NV; c++) acc[r][c] = v_fma(x, k[c], acc[r][c]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < NV; c++) v_store(s + r * KB + c * W, acc[r][c]);
}

enum { SV = PERI_VW == 16 ? 4 : 2 /* vectors of a score tile of RT rows */ };

/* Scores of R <= RT rows for columns [c0, c1) of the panel, both multiples of W. */
static inline void scores (const float *const *q, int R, const float *panel, int64_t D, int64_t c0,
                           int64_t c1, float *s) {
  int64_t c = c0;
  if (R == RT) {
    for (; c + SV * W <= c1; c += SV * W) score_tile(q, RT, SV, panel + c, D, s + c);
#if PERI_VW == 16
    if (c1 - c == 3 * W)
      score_tile(q, RT, 3, panel + c, D, s + c), c = c1;
    else if (c1 - c == 2 * W)
      score_tile(q, RT, 2, panel + c, D, s + c), c = c1;
#endif
    if (c < c1) score_tile(q, RT, 1, panel + c, D, s + c);
    return;
  }
  for (int r = 0; r < R; r++, s += KB) {
    for (c = c0; c + 4 * W <= c1; c += 4 * W) score_tile(q + r, 1, 4, panel + c, D, s + c);
    for (; c < c1; c += W) score_tile(q + r, 1, 1, panel + c, D, s + c);
  }
}

/* o[r] += sum over keys of p[r][j] v[r][j], NV vectors of channels from d: keys [j0, j1) for all
** rows, and of those up to [first, last) before and behind each row's own [lo, hi). With same, all
** rows have v[0]. */
INLINE void mix_tile (const float *p, const float *const *v, int64_t stride, int R, int NV,
                      bool same, int64_t j0, int64_t j1, int64_t first, int64_t last,
                      const int64_t *lo, const int64_t *hi, float *const *o, int64_t d) {
  vf acc[4][4], x[4];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < NV; c++) acc[r][c] = v_load(o[r] + d + c * W);
  for (int64_t j = first; j < j0; j++)
    for (int r = 0; r < R; r++)
      if (j >= lo[r])
        for (int c = 0; c < NV; c++)
          acc[r][c] = v_fma(v_set(p[r * KB + j]), v_load(v[same ? 0 : r] + j * stride + d + c * W),
                            acc[r][c]);
  for (int64_t j = j0; j < j1; j++) {
    if (same)
      for (int c = 0; c < NV; c++) x[c] = v_load(v[0] + j * stride + d + c * W);
    for (int r = 0; r < R; r++) {
      if (!same)
        for (int c = 0; c < NV; c++) x[c] = v_load(v[r] + j * stride + d + c * W);
      vf y = v_set(p[r * KB + j]);
      for (int c = 0; c < NV; c++) acc[r][c] = v_fma(y, x[c], acc[r][c]);
    }
  }
  for (int64_t j = j1; j < last; j++)
    for (int r = 0; r < R; r++)
      if (j < hi[r])
        for (int c = 0; c < NV; c++)
          acc[r][c] = v_fma(v_set(p[r * KB + j]), v_load(v[same ? 0 : r] + j * stride + d + c * W),
                            acc[r][c]);
  for (int r = 0; r < R; r++)
    for (int c = 0; c < NV; c++) v_store(o[r] + d + c * W, acc[r][c]);
}

INLINE void mix_rows (const float *p, const float *const *v, int64_t stride, int R, bool same,
                      int64_t j0, int64_t j1, int64_t first, int64_t last, const int64_t *lo,
                      const int64_t *hi, float *const *o, int64_t Dp) {
  int64_t d = 0;
  if (PERI_VW == 16 || R == 1)
    for (; d + 4 * W <= Dp; d += 4 * W)
      mix_tile(p, v, stride, R, 4, same, j0, j1, first, last, lo, hi, o, d);
  for (; d + 2 * W <= Dp; d += 2 * W)
    mix_tile(p, v, stride, R, 2, same, j0, j1, first, last, lo, hi, o, d);
  for (; d < Dp; d += W) mix_tile(p, v, stride, R, 1, same, j0, j1, first, last, lo, hi, o, d);
}

/* o += p V over keys [j0, j1) of one row. */
static inline void mix_one (const float *p, const float *v, int64_t stride, int64_t j0, int64_t j1,
                            float *o, int64_t Dp) {
  if (j0 < j1) mix_rows(p, &v, stride, 1, true, j0, j1, j0, j1, NULL, NULL, &o, Dp);
}

/* The same for RT rows, each with its own V. */
static inline void mix_apart (const float *p, const float *const *v, int64_t stride, int64_t j0,
                              int64_t j1, float *const *o, int64_t Dp) {
  if (j0 < j1) mix_rows(p, v, stride, RT, false, j0, j1, j0, j1, NULL, NULL, o, Dp);
}

/* o[r] += p[r] V over each row's own keys [lo[r], hi[r]), in order; keys outside are not read. */
static inline void mix (const float *p, const float *v, int64_t stride, int R, const int64_t *lo,
                        const int64_t *hi, float *const *o, int64_t Dp) {
  int64_t from = lo[0], to = hi[0], first = lo[0], last = hi[0];
  for (int r = 1; r < R; r++) {
    from = max64(from, lo[r]), to = min64(to, hi[r]);
    first = min64(first, lo[r]), last = max64(last, hi[r]);
  }
  if (R == RT && from < to)
    mix_rows(p, &v, stride, RT, true, from, to, first, last, lo, hi, o, Dp);
  else
    for (int r = 0; r < R; r++) mix_one(p + r * KB, v, stride, lo[r], hi[r], o[r], Dp);
}

/* What a mask hides has weight 0, and contributes nothing as long as 0 times its value is 0: are n
** packed rows all finite? */
static inline bool all_finite (const float *x, int64_t stride, int64_t n, int64_t D) {
  vf bad = v_set(0);
  for (int64_t j = 0; j < n; j++, x += stride) {
    int64_t d = 0;
    for (; d + W <= D; d += W) bad += v_load(x + d) * 0.0f;
    if (d < D) bad += v_load_tail(x + d, D - d, 0) * 0.0f;
  }
  return v_sum(bad) == 0;
}

/* o += p V over the keys of [lo, hi) with another weight than 0: the bits of mix_one where all of V
** is finite, and junk of no weight is not read. */
static inline void mix_seen (const float *p, const float *v, int64_t stride, int64_t lo, int64_t hi,
                             float *o, int64_t Dp) {
  while (lo < hi) {
    int64_t end = lo;
    while (end < hi && p[end] != 0) end++;
    mix_one(p, v, stride, lo, end, o, Dp);
    lo = end + 1;
  }
}

/* Ask for the lines of one row ahead of its use: rows of one head lie far apart, which hardware
** does not foresee. */
INLINE void fetch_row (const float *x, int64_t D, int write) {
  for (int64_t d = 0; d < D; d += 16)
    if (write)
      __builtin_prefetch(x + d, 1, 2);
    else
      __builtin_prefetch(x + d, 0, 2);
}

/* Additive form of the mask for one row: keys [first, first + n); -inf hides. */
static inline void mask_row (const struct peri__attn *a, int64_t b, int64_t h, int64_t i,
                             int64_t first, int64_t n, float *bias) {
  int64_t at = b * a->ms[0] + h * a->ms[1] + i * a->ms[2] + first * a->ms[3];
  if (a->mask_kind == PERI_ATTN_BOOL) {
    const uint8_t *m = (const uint8_t *)a->mask + at;
    for (int64_t j = 0; j < n; j++) bias[j] = m[j * a->ms[3]] ? 0 : -INFINITY;
  } else {
    const float *m = (const float *)a->mask + at;
    for (int64_t j = 0; j < n; j++) bias[j] = m[j * a->ms[3]];
  }
}

/* A biased score; -inf where the bias hides it, whatever it is. */
INLINE vf with_bias (vf x, vf bias) {
  return v_select((vi)(bias == v_set(-INFINITY)), bias, x + bias);
}

/* All ones in the lanes of columns c.. that lie in [lo, hi). */
INLINE vi in_range (int64_t c, int64_t lo, int64_t hi) {
  vi lane;
  for (int i = 0; i < W; i++) lane[i] = i;
  lane += (int32_t)c;
  return (vi)(lane >= (int32_t)lo) & (vi)(lane < (int32_t)hi);
}

#endif
