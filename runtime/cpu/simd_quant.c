/*
** simd_quant.c - products with packed quantised weights: rounding of x, products with one row of x
** (bound by memory) and with many (bound by arithmetic). See cpu/quant.h.
*/
#include <math.h>

#include "cpu/quant_vec.h"

/* ---- rounding x ---- */

typedef int32_t i_quad __attribute__((vector_size(16)));

INLINE vi i_max (vi a, vi b) { return (vi)v_select(a > b, (vf)a, (vf)b); }
INLINE i_quad i_quad_max (i_quad a, i_quad b) { return (a & (a > b)) | (b & ~(a > b)); }
INLINE i_quad i_quad_at (vi v, int i) { return (i_quad)v_quad_at((vf)v, i); }

#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

/* The most of all lanes. */
INLINE int32_t i_most (vi v) {
  i_quad q = i_quad_at(v, 0);
  for (int i = 1; i < W / 4; i++) q = i_quad_max(q, i_quad_at(v, i));
  q = i_quad_max(q, SHUFFLE(q, q, 2, 3, 0, 1));
  return i_quad_max(q, SHUFFLE(q, q, 1, 0, 3, 2))[0];
}
/* The sums of all lanes of a and of b. */
INLINE void i_sums (vi a, vi b, int32_t out[2]) {
  i_quad p = i_quad_at(a, 0), q = i_quad_at(b, 0);
  for (int i = 1; i < W / 4; i++) {
    p += i_quad_at(a, i);
    q += i_quad_at(b, i);
  }
  p = SHUFFLE(p, q, 0, 4, 1, 5) + SHUFFLE(p, q, 2, 6, 3, 7);
  p += SHUFFLE(p, p, 2, 3, 0, 1);
  memcpy(out, &p, 8);
}

/* Nearest integers, ties to even; W of them as bytes to out. */
INLINE vi to_codes (vf v, int8_t *out) {
#if PERI_VW == 16 && defined(__AVX512F__)
  __m512i q = _mm512_cvtps_epi32((__m512)v);
  _mm_storeu_si128((__m128i *)out, _mm512_cvtsepi32_epi8(q));
  return (vi)q;
#elif PERI_VW == 8 && defined(__AVX2__)
  __m256i q = _mm256_cvtps_epi32((__m256)v);
  __m128i h = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  _mm_storel_epi64((__m128i *)out, _mm_packs_epi16(h, h));
  return (vi)q;
#elif PERI_VW == 4 && defined(__SSE2__)
  __m128i q = _mm_cvtps_epi32((__m128)v), h = _mm_packs_epi32(q, q);
  int32_t four = _mm_cvtsi128_si32(_mm_packs_epi16(h, h));
  memcpy(out, &four, 4);
  return (vi)q;
#else
#if PERI_VW == 4 && defined(__aarch64__)
  vi q = (vi)vcvtnq_s32_f32((float32x4_t)v);
#else
  vi q = (vi)(v + 12582912.f) - 0x4b400000; /* 1.5 * 2^23: the sum is rounded to a whole number */
#endif
  for (int i = 0; i < W; i++) out[i] = (int8_t)(q[i] < -128 ? -128 : q[i] > 127 ? 127 : q[i]);
  return q;
#endif
}

static void quant_round (peri__quant_kind kind, int bias, int64_t blocks, const float *x,
                         int stride, int8_t *codes, peri__quant_block *out) {
  for (int64_t b = 0; b < blocks; b++, x += 32, codes += 32 * stride, out += stride) {
    /* As integers, so that NaN is more than everything. */
    vi most = (vi)v_load(x) & 0x7fffffff;
    for (int i = W; i < 32; i += W) most = i_max(most, (vi)v_load(x + i) & 0x7fffffff);
    int32_t bits = i_most(most);
    float amax;
    memcpy(&amax, &bits, 4);
    if (bits >= 0x7f800000) { /* inf or NaN */
      memset(codes, 0, 32);
      *out = (peri__quant_block){ NAN, NAN, { 0, 0 } };
      continue;
    }
    /* Too little for its inverse counts as nothing. */
    float inverse = amax < 1e-36f ? 0 : 127 / amax;
    vi q[2] = { { 0 }, { 0 } };
    for (int i = 0; i < 32; i += W) q[i / 16] += to_codes(v_load(x + i) * inverse, codes + i);
    int32_t sum[2];
    i_sums(q[0], q[1], sum);
    out->d = amax < 1e-36f ? 0 : amax * (1 / 127.f);
    out->sum = out->d * (float)(sum[0] + sum[1]);
    out->fix[0] = -bias * (kind == PERI_QUANT_HALF ? sum[0] : sum[0] + sum[1]);
    out->fix[1] = -bias * sum[1];
  }
}

enum {
  STREAMS = 4,             /* panels read at once, */
  STREAM_BYTES = 40 << 10, /* where each stream is long enough for the processor to follow it */
  TILE = PERI_VW == 16 ? 8 : 4
};

/* ---- one row of x ---- */

INLINE vf f_int (vi v) { return __builtin_convertvector(v, vf); }

INLINE void put (float *y, vf v, int64_t n) {
  if (n >= W)
    v_store(y, v);
  else if (n > 0)
    v_store_tail(y, v, n);
}

INLINE vf bias_at (const float *bias, int64_t n) {
  return n >= W ? v_load(bias) : v_load_tail(bias, n, 0);
}

/*
** `panels` panels at once, `apart` panels from one to the next: several streams of memory are read
** faster than one, and x is spread once for all of them.
*/
INLINE void gemv_panels (peri_dtype d, int panels, int64_t apart, int64_t blocks, int64_t n,
                         const uint8_t *w, const int8_t *codes, const peri__quant_block *x,
                         const float *bias, float *y) {
  const peri__quant_format f = peri__quant_format_of(d, BYTE_BIAS);
  const size_t stream = peri__quant_panel_bytes(&f, W, blocks) * (size_t)apart;
  const bool wide = f.bits == 8;
  vf sum[STREAMS];
  for (int p = 0; p < panels; p++) sum[p] = v_set(0);
  for (int64_t first = 0; first < blocks; first += f.span) {
    const int count = blocks - first < f.span ? (int)(blocks - first) : f.span;
    const uint8_t *from = w + peri__quant_scale_bytes(&f, W, count);
    for (int j = 0; j < count; j++, codes += 32, x++, from += f.vectors * CODES) {
      for (int p = 0; p < panels; p++) {
        vb c[8];
        vf one, two;
        read_codes(f.bits, from + (size_t)p * stream, c);
        read_scales(d, w + (size_t)p * stream, j, &one, &two);
        vi dot = f.kind == PERI_QUANT_MIN ? (vi){ 0 } : v_seti(x->fix[0]);
        dot = dot16(dot, c, codes, wide);
        if (f.kind == PERI_QUANT_HALF) {
          sum[p] = v_fma(f_int(dot), one * x->d, sum[p]);
          dot = dot16(v_seti(x->fix[1]), c + 4, codes + 16, wide);
          sum[p] = v_fma(f_int(dot), two * x->d, sum[p]);
          continue;
        }
        dot = dot16(dot, c + 4, codes + 16, wide);
        sum[p] = v_fma(f_int(dot), one * x->d, sum[p]);
        if (f.kind == PERI_QUANT_MIN) sum[p] = v_fma(two, v_set(x->sum), sum[p]);
      }
    }
    w = from;
  }
  for (int p = 0; p < panels; p++) {
    int64_t at = p * apart * W;
    if (bias) sum[p] += bias_at(bias + at, n - at);
    put(y + at, sum[p], n - at);
  }
}

INLINE void gemv_type (peri_dtype d, int64_t blocks, int64_t n, const uint8_t *w,
                       const int8_t *codes, const peri__quant_block *x, const float *bias,
                       float *y) {
  const peri__quant_format f = peri__quant_format_of(d, BYTE_BIAS);
  const size_t panel = peri__quant_panel_bytes(&f, W, blocks);
  int64_t panels = (n + W - 1) / W, apart = panels / STREAMS;
  if (apart * (int64_t)panel < STREAM_BYTES) apart = 0;
  for (int64_t i = 0; i < apart; i++)
    gemv_panels(d, STREAMS, apart, blocks, n - i * W, w + (size_t)i * panel, codes, x,
                bias ? bias + i * W : NULL, y + i * W);
  for (int64_t i = apart * STREAMS; i < panels; i++)
    gemv_panels(d, 1, 1, blocks, n - i * W, w + (size_t)i * panel, codes, x,
                bias ? bias + i * W : NULL, y + i * W);
}

#define GEMV(type)                                                      \
  static __attribute__((noinline)) void gemv_##type(                    \
      int64_t blocks, int64_t n, const uint8_t *w, const int8_t *codes, \
      const peri__quant_block *x, const float *bias, float *y) {        \
    gemv_type(PERI_##type, blocks, n, w, codes, x, bias, y);            \
  }
GEMV(Q8_0)
GEMV(Q4_0)
GEMV(Q4_1)
GEMV(Q5_0)
GEMV(Q5_1)
GEMV(Q4_K)
GEMV(Q5_K)
GEMV(Q6_K)

static void quant_gemv (peri_dtype d, int64_t blocks, int64_t n, const uint8_t *w,
                        const int8_t *codes, const peri__quant_block *x, const float *bias,
                        float *y) {
  static void (*const gemv[])(int64_t blocks, int64_t n, const uint8_t *w, const int8_t *codes,
                              const peri__quant_block *x, const float *bias,
                              float *y) = { gemv_Q8_0, gemv_Q4_0, gemv_Q4_1, gemv_Q5_0,
                                            gemv_Q5_1, gemv_Q4_K, gemv_Q5_K, gemv_Q6_K };
  gemv[d - PERI_Q8_0](blocks, n, w, codes, x, bias, y);
}

/* ---- many rows of x ---- */

INLINE void unpack_type (peri_dtype d, int64_t blocks, const uint8_t *panel, uint8_t *codes,
                         float *scales) {
  const peri__quant_format f = peri__quant_format_of(d, BYTE_BIAS);
  for (int64_t first = 0; first < blocks; first += f.span) {
    const int count = blocks - first < f.span ? (int)(blocks - first) : f.span;
    const uint8_t *from = panel + peri__quant_scale_bytes(&f, W, count);
    for (int j = 0; j < count; j++, from += f.vectors * CODES, codes += 8 * CODES) {
      vf one, two;
      vb c[8];
      read_scales(d, panel, j, &one, &two);
      v_store(scales, one);
      if (f.kind != PERI_QUANT_EVEN) v_store(scales + W, two);
      scales += f.kind == PERI_QUANT_EVEN ? W : 2 * W;
      read_codes(f.bits, from, c);
      for (int g = 0; g < 8; g++) b_store(codes + g * CODES, c[g]);
    }
    panel = from;
  }
}

static void quant_unpack (peri_dtype d, int64_t blocks, const uint8_t *panel, uint8_t *codes,
                          float *scales) {
  switch (d) {
  case PERI_Q4_0: unpack_type(PERI_Q4_0, blocks, panel, codes, scales); break;
  case PERI_Q4_1: unpack_type(PERI_Q4_1, blocks, panel, codes, scales); break;
  case PERI_Q5_0: unpack_type(PERI_Q5_0, blocks, panel, codes, scales); break;
  case PERI_Q5_1: unpack_type(PERI_Q5_1, blocks, panel, codes, scales); break;
  case PERI_Q4_K: unpack_type(PERI_Q4_K, blocks, panel, codes, scales); break;
  case PERI_Q5_K: unpack_type(PERI_Q5_K, blocks, panel, codes, scales); break;
  case PERI_Q6_K: unpack_type(PERI_Q6_K, blocks, panel, codes, scales); break;
  default: unpack_type(PERI_Q8_0, blocks, panel, codes, scales); break;
  }
}

/* rows and kind are constants where this is expanded: sums stay in registers. */
INLINE void tile_rows (peri__quant_kind kind, bool wide, int rows, int64_t blocks, const uint8_t *w,
                       const float *scales, const int8_t *codes, const peri__quant_block *x,
                       const float *bias, float *y, int64_t ys, int n, const uint8_t *next,
                       size_t next_step) {
  vf sum[TILE];
  vi dot[TILE];
  size_t at = 0;
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) sum[r] = v_set(0);
  for (int64_t b = 0; b < blocks; b++, x += rows, codes += 32 * rows, w += 8 * CODES) {
    if (next)
      for (size_t end = next_step * (size_t)(b + 1); at < end; at += 64)
        __builtin_prefetch(next + at, 0, 2);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
      dot[r] = kind == PERI_QUANT_MIN ? (vi){ 0 } : v_seti(x[r].fix[0]);
    for (int h = 0; h < 2; h++) {
      vb c[4];
      for (int g = 0; g < 4; g++) c[g] = b_load(w + (4 * h + g) * CODES);
#pragma GCC unroll 16
      for (int r = 0; r < rows; r++) dot[r] = dot16(dot[r], c, codes + 32 * r + 16 * h, wide);
      if (kind != PERI_QUANT_HALF && h == 0) continue;
      vf s = v_load(scales);
      scales += W;
#pragma GCC unroll 16
      for (int r = 0; r < rows; r++) {
        sum[r] = v_fma(f_int(dot[r]), s * x[r].d, sum[r]);
        if (kind == PERI_QUANT_HALF && h == 0) dot[r] = v_seti(x[r].fix[1]);
      }
    }
    if (kind == PERI_QUANT_MIN) {
      vf min = v_load(scales);
      scales += W;
#pragma GCC unroll 16
      for (int r = 0; r < rows; r++) sum[r] = v_fma(min, v_set(x[r].sum), sum[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) {
    if (bias) sum[r] += bias_at(bias, n);
    put(y + r * ys, sum[r], n);
  }
}

#define TILE_OF(name, kind, wide)                                                                \
  static __attribute__((noinline)) void name(                                                    \
      int64_t blocks, const uint8_t *w, const float *scales, int rows, const int8_t *codes,      \
      const peri__quant_block *x, const float *bias, float *y, int64_t ys, int n,                \
      const uint8_t *next, size_t next_step) {                                                   \
    switch (rows) {                                                                              \
    case 1:                                                                                      \
      tile_rows(kind, wide, 1, blocks, w, scales, codes, x, bias, y, ys, n, next, next_step);    \
      return;                                                                                    \
    case 2:                                                                                      \
      tile_rows(kind, wide, 2, blocks, w, scales, codes, x, bias, y, ys, n, next, next_step);    \
      return;                                                                                    \
    case 4:                                                                                      \
      tile_rows(kind, wide, 4, blocks, w, scales, codes, x, bias, y, ys, n, next, next_step);    \
      return;                                                                                    \
    default:                                                                                     \
      tile_rows(kind, wide, TILE, blocks, w, scales, codes, x, bias, y, ys, n, next, next_step); \
      return;                                                                                    \
    }                                                                                            \
  }
TILE_OF(tile_even, PERI_QUANT_EVEN, false)
TILE_OF(tile_min, PERI_QUANT_MIN, false)
TILE_OF(tile_half, PERI_QUANT_HALF, false)
#if BYTE_BIAS == 0
TILE_OF(tile_wide, PERI_QUANT_EVEN, true)
#else
#define tile_wide tile_even /* the instruction takes any byte */
#endif

static void quant_tile (peri_dtype d, int64_t blocks, const uint8_t *w, const float *scales,
                        int rows, const int8_t *codes, const peri__quant_block *x,
                        const float *bias, float *y, int64_t ys, int n, const uint8_t *next,
                        size_t next_step) {
  switch (peri__quant_format_of(d, 0).kind) {
  case PERI_QUANT_MIN:
    tile_min(blocks, w, scales, rows, codes, x, bias, y, ys, n, next, next_step);
    return;
  case PERI_QUANT_HALF:
    tile_half(blocks, w, scales, rows, codes, x, bias, y, ys, n, next, next_step);
    return;
  default: break;
  }
  (d == PERI_Q8_0 ? tile_wide : tile_even)(blocks, w, scales, rows, codes, x, bias, y, ys, n, next,
                                           next_step);
}

#define NAME_(level) #level
#define NAME(level) NAME_(level)
const struct peri__quant_kernels PERI_NAME(peri__quant) = {
  NAME(PERI_LEVEL), W, BYTE_BIAS, TILE, quant_round, quant_gemv, quant_unpack, quant_tile
};
