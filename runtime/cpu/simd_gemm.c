/*
** simd_gemm.c - register tiles and packing of f32 matrix products; compiled once per level.
** Numerics are those of cpu/gemm.h: a tile holds one accumulator for each element of C.
*/
#include "cpu/gemm.h"
#include "cpu/rows.h"
#include "cpu/vec.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#define TRANS_MR 4
#define WIDE_MR (MR / 2)
#define NR (PERI_GEMM_NV * PERI_VW)

/*
** mr, nv and fetch are constants after inlining, so acc lives in registers. fetch: C and the memory
** at ahead, step by step, come into cache meanwhile.
*/
INLINE void tile (const int mr, const int nv, int64_t k, const float *a, int64_t ars, int64_t acs,
                  const float *b, int64_t ldb, float *c, int64_t crs, const float *init,
                  int64_t irs, const bool fetch, const float *ahead, int64_t step) {
  vf acc[MR][PERI_GEMM_WIDE];
  if (fetch)
    UNROLL for (int i = 0; i < mr; i++) UNROLL for (int v = 0; v < nv; v++)
        __builtin_prefetch(c + i * crs + v * PERI_VW, 1);
  UNROLL for (int i = 0; i < mr; i++) UNROLL for (int v = 0; v < nv; v++) acc[i][v] =
      v_load(init + i * irs + v * PERI_VW);
  for (int64_t p = 0; p < k; p++) {
    vf bv[PERI_GEMM_WIDE];
    if (fetch) { /* mr floats may begin in one line and end in the next */
      __builtin_prefetch(ahead);
      __builtin_prefetch(ahead + mr - 1);
      ahead += step;
    }
    UNROLL for (int v = 0; v < nv; v++) bv[v] = v_load(b + v * PERI_VW);
    UNROLL for (int i = 0; i < mr; i++) {
      vf ai = v_set(a[i * ars]);
      UNROLL for (int v = 0; v < nv; v++) acc[i][v] = v_fma(ai, bv[v], acc[i][v]);
    }
    a += acs;
    b += ldb;
  }
  UNROLL for (int i = 0; i < mr; i++) UNROLL for (int v = 0; v < nv; v++)
      v_store(c + i * crs + v * PERI_VW, acc[i][v]);
}

#define TILE(mr, nv)                                                                     \
  static void packed_##mr##_##nv(int64_t k, const float *a, int64_t acs, const float *b, \
                                 int64_t ldb, float *c, int64_t crs, const float *init,  \
                                 int64_t irs, const float *ahead, int64_t step) {        \
    tile(mr, nv, k, a, 1, acs, b, ldb, c, crs, init, irs, true, ahead, step);            \
  }                                                                                      \
  static void direct_##mr##_##nv(int64_t k, const float *a, int64_t ars, int64_t acs,    \
                                 const float *b, int64_t ldb, float *c, int64_t crs,     \
                                 const float *init, int64_t irs) {                       \
    tile(mr, nv, k, a, ars, acs, b, ldb, c, crs, init, irs, false, NULL, 0);             \
  }
#define TILES(mr) TILE(mr, 1) TILE(mr, 2)
EACH_ROWS(TILES)

/* ---- transposed loads ---- */

typedef float v4 __attribute__((vector_size(16)));
typedef float v4u __attribute__((vector_size(16), aligned(4), may_alias));
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

/* 4 rows of 4 columns become 4 columns, in each 4 lanes of a vector by itself. */
#define TRANSPOSE4(T, in, out, LOW, HIGH, LOW2, HIGH2)          \
  do {                                                          \
    T x_ = LOW((in)[0], (in)[1]), y_ = LOW((in)[2], (in)[3]);   \
    T z_ = HIGH((in)[0], (in)[1]), w_ = HIGH((in)[2], (in)[3]); \
    (out)[0] = LOW2(x_, y_), (out)[1] = HIGH2(x_, y_);          \
    (out)[2] = LOW2(z_, w_), (out)[3] = HIGH2(z_, w_);          \
  } while (0)

#if PERI_VW == 4
enum { TW = 4 };
typedef v4 vt;
typedef v4u vtu;
#define LOW(x, y) SHUFFLE(x, y, 0, 4, 1, 5)
#define HIGH(x, y) SHUFFLE(x, y, 2, 6, 3, 7)
#define LOW2(x, y) SHUFFLE(x, y, 0, 1, 4, 5)
#define HIGH2(x, y) SHUFFLE(x, y, 2, 3, 6, 7)
/* 4 floats of a row; where there are 8 lanes, and of the fourth row after it. */
INLINE vt load_runs (const float *p, int64_t stride) { return (void)stride, *(const v4u *)p; }
#else
enum { TW = 8 }; /* wider shuffles are no faster, and narrower ones start from memory */
typedef float vt __attribute__((vector_size(32)));
typedef float vtu __attribute__((vector_size(32), aligned(4), may_alias));
#define LOW(x, y) SHUFFLE(x, y, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH(x, y) SHUFFLE(x, y, 2, 10, 3, 11, 6, 14, 7, 15)
#define LOW2(x, y) SHUFFLE(x, y, 0, 1, 8, 9, 4, 5, 12, 13)
#define HIGH2(x, y) SHUFFLE(x, y, 2, 3, 10, 11, 6, 7, 14, 15)
INLINE vt load_runs (const float *p, int64_t stride) {
  v4 r0 = *(const v4u *)p, r1 = *(const v4u *)(p + 4 * stride);
  return SHUFFLE(r0, r1, 0, 1, 2, 3, 4, 5, 6, 7);
}
#endif

/* out[s] = b[j * stride + s] for TW rows j and 4 columns s */
INLINE void load_columns (const float *b, int64_t stride, vt out[4]) {
  vt in[4];
  UNROLL for (int r = 0; r < 4; r++) in[r] = load_runs(b + r * stride, stride);
  TRANSPOSE4(vt, in, out, LOW, HIGH, LOW2, HIGH2);
}

/* As tile, B transposed on the way: pays while few rows use each element of B. */
INLINE void trans_tile (const int mr, int64_t k, const float *a, int64_t ars, int64_t acs,
                        const float *b, int64_t bcs, float *c, int64_t crs, const float *init,
                        int64_t irs) {
  for (int64_t j = 0; j < NR; j += 2 * TW, b += 2 * TW * bcs, c += 2 * TW, init += 2 * TW) {
    const float *ahead = bcs == k ? b + 2 * TW * bcs : NULL;
    vt acc[TRANS_MR][2];
    UNROLL for (int i = 0; i < mr; i++) UNROLL for (int v = 0; v < 2; v++) acc[i][v] =
        *(const vtu *)(init + i * irs + v * TW);
    int64_t p = 0;
    for (; p + 4 <= k; p += 4) {
      vt bv[2][4];
      if (ahead != NULL) /* the rows of the next turn, which lie behind these in memory */
        UNROLL for (int l = 0; l < 8 * TW; l += 16)
            __builtin_prefetch(ahead + p * 2 * TW + l, 0, 2);
      UNROLL for (int v = 0; v < 2; v++) load_columns(b + v * TW * bcs + p, bcs, bv[v]);
      UNROLL for (int s = 0; s < 4; s++) UNROLL for (int i = 0; i < mr; i++) {
        vt ai = a[i * ars + (p + s) * acs] - (vt){ 0 };
        UNROLL for (int v = 0; v < 2; v++) acc[i][v] = ai * bv[v][s] + acc[i][v];
      }
    }
    for (; p < k; p++) UNROLL for (int v = 0; v < 2; v++) {
        float t[TW];
        for (int l = 0; l < TW; l++) t[l] = b[(v * TW + l) * bcs + p];
        vt bv = *(const vtu *)t;
        UNROLL for (int i = 0; i < mr; i++) {
          vt ai = a[i * ars + p * acs] - (vt){ 0 };
          acc[i][v] = ai * bv + acc[i][v];
        }
      }
    UNROLL for (int i = 0; i < mr; i++) UNROLL for (int v = 0; v < 2; v++) *
        (vtu *)(c + i * crs + v * TW) = acc[i][v];
  }
}

#define TRANS(mr)                                                                              \
  static void trans_##mr(int64_t k, const float *a, int64_t ars, int64_t acs, const float *b,  \
                         int64_t bcs, float *c, int64_t crs, const float *init, int64_t irs) { \
    trans_tile(mr, k, a, ars, acs, b, bcs, c, crs, init, irs);                                 \
  }
TRANS(1)
TRANS(2)
TRANS(3)
TRANS(4)

#define WIDE(mr)                                                                              \
  static void wide_##mr(int64_t k, const float *a, int64_t ars, int64_t acs, const float *b,  \
                        int64_t ldb, float *c, int64_t crs, const float *init, int64_t irs) { \
    tile(mr, PERI_GEMM_WIDE, k, a, ars, acs, b, ldb, c, crs, init, irs, false, NULL, 0);      \
  }
WIDE(1)
WIDE(2)
#if WIDE_MR > 2
WIDE(3)
#endif
#if WIDE_MR > 3
WIDE(4)
WIDE(5)
WIDE(6)
#endif

/* ---- packing ---- */

/*
** LINE columns of PERI_VW rows at a time, a cache line of each: where rows lie a power of two apart
** their lines share a cache set, and one that is not used up at once is gone.
*/
enum { LINE = 16 };

#if PERI_VW == 16
#define LOW_(x, y) SHUFFLE(x, y, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH_(x, y) SHUFFLE(x, y, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LOW2_(x, y) SHUFFLE(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH2_(x, y) SHUFFLE(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
/* quarters 0, 1 or 2, 3 of both; quarters 0, 2 or 1, 3 of both */
#define QUARTERS01(x, y) SHUFFLE(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define QUARTERS23(x, y) SHUFFLE(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define QUARTERS02(x, y) SHUFFLE(x, y, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define QUARTERS13(x, y) SHUFFLE(x, y, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)

INLINE void pack_line (const float *b, int64_t stride, float *out) {
  vf u[4][4], in[4]; /* u[g][s]: quarter q has column 4q + s of rows 4g.. */
  UNROLL for (int g = 0; g < 4; g++) {
    UNROLL for (int r = 0; r < 4; r++) in[r] = v_load(b + (4 * g + r) * stride);
    TRANSPOSE4(vf, in, u[g], LOW_, HIGH_, LOW2_, HIGH2_);
  }
  UNROLL for (int s = 0; s < 4; s++) {
    vf x = QUARTERS01(u[0][s], u[1][s]), y = QUARTERS01(u[2][s], u[3][s]);
    vf z = QUARTERS23(u[0][s], u[1][s]), w = QUARTERS23(u[2][s], u[3][s]);
    v_store(out + s * NR, QUARTERS02(x, y));
    v_store(out + (4 + s) * NR, QUARTERS13(x, y));
    v_store(out + (8 + s) * NR, QUARTERS02(z, w));
    v_store(out + (12 + s) * NR, QUARTERS13(z, w));
  }
}
#else
INLINE void pack_line (const float *b, int64_t stride, float *out) {
  UNROLL for (int p = 0; p < LINE; p += 4) {
    vt t[4];
    load_columns(b + p, stride, t);
    UNROLL for (int s = 0; s < 4; s++) v_store(out + (p + s) * NR, t[s]);
  }
}
#endif

static void pack_b (int64_t k, int64_t n, const float *b, int64_t brs, int64_t bcs, float *out) {
  if (bcs == 1 && n == NR) {
    for (int64_t p = 0; p < k; p++, b += brs, out += NR)
      for (int v = 0; v < PERI_GEMM_NV; v++) v_store(out + v * PERI_VW, v_load(b + v * PERI_VW));
    return;
  }
  int64_t done = 0; /* columns packed */
  for (; brs == 1 && done + PERI_VW <= n; done += PERI_VW) {
    const float *col = b + done * bcs;
    float *o = out + done;
    int64_t p = 0;
    for (; p + LINE <= k; p += LINE, o += LINE * NR) pack_line(col + p, bcs, o);
    for (; p < k; p++, o += NR)
      for (int j = 0; j < PERI_VW; j++) o[j] = col[j * bcs + p];
  }
  if (done == NR) return;
  for (int64_t p = 0; p < k; p++) {
    for (int64_t j = done; j < NR; j += PERI_VW) v_store(out + p * NR + j, v_set(0));
    for (int64_t j = done; j < n; j++) out[p * NR + j] = b[p * brs + j * bcs];
  }
}

/* 4 steps of 4 rows */
INLINE void pack_quad (const float *a, int64_t ars, float *out, int64_t m) {
  v4 r0 = *(const v4u *)a, r1 = *(const v4u *)(a + ars);
  v4 r2 = *(const v4u *)(a + 2 * ars), r3 = *(const v4u *)(a + 3 * ars);
  v4 x = SHUFFLE(r0, r1, 0, 4, 1, 5), y = SHUFFLE(r2, r3, 0, 4, 1, 5);
  v4 z = SHUFFLE(r0, r1, 2, 6, 3, 7), w = SHUFFLE(r2, r3, 2, 6, 3, 7);
  *(v4u *)out = SHUFFLE(x, y, 0, 1, 4, 5);
  *(v4u *)(out + m) = SHUFFLE(x, y, 2, 3, 6, 7);
  *(v4u *)(out + 2 * m) = SHUFFLE(z, w, 0, 1, 4, 5);
  *(v4u *)(out + 3 * m) = SHUFFLE(z, w, 2, 3, 6, 7);
}

static void pack_a (int64_t m, int64_t k, const float *a, int64_t ars, int64_t acs, float *out) {
  if (ars == 1 && m == MR) {
    for (int64_t p = 0; p < k; p++, a += acs, out += MR) memcpy(out, a, MR * sizeof *a);
    return;
  }
  int64_t i = m / 4 * 4, p = 0;
  if (acs == 1) /* all rows side by side: a line of out is written while it is near */
    for (; p + 4 <= k; p += 4)
      for (int64_t g = 0; g < i; g += 4) pack_quad(a + g * ars + p, ars, out + p * m + g, m);
  for (; p < k; p++)
    for (int64_t s = 0; s < i; s++) out[p * m + s] = a[s * ars + p * acs];
  for (; i < m; i++)
    for (p = 0; p < k; p++) out[p * m + i] = a[i * ars + p * acs];
}

#if MR == 12
#define WIDES wide_1, wide_2, wide_3, wide_4, wide_5, wide_6
#elif MR == 6
#define WIDES wide_1, wide_2, wide_3
#else
#define WIDES wide_1, wide_2
#endif
#define PACKED(mr) [mr] = { NULL, packed_##mr##_1, packed_##mr##_2 },
#define DIRECT(mr) [mr] = { NULL, direct_##mr##_1, direct_##mr##_2 },
const struct peri__gemm_kernels PERI_NAME(peri__gemm) = {
  .lanes = PERI_VW,
  .mr = MR,
  .trans_mr = TRANS_MR,
  .wide_mr = WIDE_MR,
  .packed = { EACH_ROWS(PACKED) },
  .direct = { EACH_ROWS(DIRECT) },
  .wide = { NULL, WIDES },
  .trans = { NULL, trans_1, trans_2, trans_3, trans_4 },
  .pack_b = pack_b,
  .pack_a = pack_a,
};
