/*
** simd_nn.c - softmax, rotary positions and dropout over f32 rows, and the table
** of all layer kernels. Order of every sum: vectors in groups of CHUNK, groups one after another,
** lanes last; it depends on the row's length alone.
*/
#include "cpu/nn.h"
#include "cpu/vec.h"
#include "cpu/vec_math.h"

enum { W = PERI_VW, CHUNK = 16 };

/* ---- softmax over contiguous rows ---- */

static float row_max (const float *x, int64_t n) {
  vf a = v_set(-INFINITY), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W) {
    a = v_max(a, v_load(x + i));
    b = v_max(b, v_load(x + i + W));
    c = v_max(c, v_load(x + i + 2 * W));
    d = v_max(d, v_load(x + i + 3 * W));
  }
  for (; i + W <= n; i += W) a = v_max(a, v_load(x + i));
  if (i < n) b = v_max(b, v_load_tail(x + i, n - i, -INFINITY));
  return v_hmax(v_max(v_max(a, b), v_max(c, d)));
}

/* sum of exp(x - max); y? receives the terms. */
static float row_exp_sum (const float *x, float *y, int64_t n, float max) {
  vf total = v_set(0), m = v_set(max);
  int64_t i = 0;
  while (i + W <= n) {
    int64_t end = n - i > CHUNK
    *W ? i + CHUNK
    *W : n;
    vf part = v_set(0);
    for (; i + W <= end; i += W) {
      vf e = v_exp(v_load(x + i) - m);
      if (y) v_store(y + i, e);
      part += e;
    }
    total += part;
  }
  if (i < n) {
    vf e = v_exp(v_load_tail(x + i, n - i, -INFINITY) - m);
    if (y) v_store_tail(y + i, e, n - i);
    total += e;
  }
  return v_sum(total);
}

static void softmax (const float *x, float *y, int64_t rows, int64_t n, bool logs) {
  for (int64_t r = 0; r < rows; r++, x += n, y += n) {
    float max = row_max(x, n);
    float sum = row_exp_sum(x, logs ? NULL : y, n, max);
    int64_t i = 0;
    if (logs) {
      vf l = v_log(v_set(sum)), m = v_set(max);
      for (; i + W <= n; i += W) v_store(y + i, v_load(x + i) - m - l);
      if (i < n) v_store_tail(y + i, v_load_tail(x + i, n - i, 0) - m - l, n - i);
    } else {
      vf f = v_set(1.0f / sum);
      for (; i + W <= n; i += W) v_store(y + i, v_load(y + i) * f);
      if (i < n) v_store_tail(y + i, v_load_tail(y + i, n - i, 0) * f, n - i);
    }
  }
}

/* sum of a b, or of a when b is NULL */
static float row_dot (const float *a, const float *b, int64_t n) {
  vf total = v_set(0);
  int64_t i = 0;
  while (i + W <= n) {
    int64_t end = n - i > CHUNK
    *W ? i + CHUNK
    *W : n;
    vf part = v_set(0);
    if (b)
      for (; i + W <= end; i += W) part = v_fma(v_load(a + i), v_load(b + i), part);
    else
      for (; i + W <= end; i += W) part += v_load(a + i);
    total += part;
  }
  if (i < n) {
    vf t = v_load_tail(a + i, n - i, 0);
    total += b ? t * v_load_tail(b + i, n - i, 0) : t;
  }
  return v_sum(total);
}

static void softmax_back (const float *y, const float *g, float *dx, int64_t rows, int64_t n,
                          bool logs) {
  for (int64_t r = 0; r < rows; r++, y += n, g += n, dx += n) {
    vf s = v_set(row_dot(g, logs ? NULL : y, n));
    int64_t i = 0;
    if (logs) {
      for (; i + W <= n; i += W) v_store(dx + i, v_load(g + i) - v_exp(v_load(y + i)) * s);
      if (i < n)
        v_store_tail(dx + i, v_load_tail(g + i, n - i, 0) - v_exp(v_load_tail(y + i, n - i, 0)) * s,
                     n - i);
    } else {
      for (; i + W <= n; i += W) v_store(dx + i, v_load(y + i) * (v_load(g + i) - s));
      if (i < n)
        v_store_tail(dx + i, v_load_tail(y + i, n - i, 0) * (v_load_tail(g + i, n - i, 0) - s),
                     n - i);
    }
  }
}

/* ---- softmax over columns: lanes are columns, so each lane's sum runs in order ---- */

static vf get (const float *p, int64_t lanes) {
  return lanes >= W ? v_load(p) : v_load_tail(p, lanes, 0);
}
static void put (float *p, vf v, int64_t lanes) {
  if (lanes >= W)
    v_store(p, v);
  else
    v_store_tail(p, v, lanes);
}

static void softmax_cols (const float *x, float *y, int64_t n, int64_t ld, int64_t m, bool logs) {
  for (int64_t j = 0; j < m; j += W, x += W, y += W) {
    int64_t k = m - j;
    vf max = v_set(-INFINITY), sum = v_set(0);
    for (int64_t i = 0; i < n; i++) max = v_max(max, get(x + i * ld, k));
    for (int64_t i = 0; i < n; i++) {
      vf e = v_exp(get(x + i * ld, k) - max);
      if (!logs) put(y + i * ld, e, k);
      sum += e;
    }
    vf f = logs ? v_log(sum) : 1.0f / sum;
    for (int64_t i = 0; i < n; i++)
      put(y + i * ld, logs ? get(x + i * ld, k) - max - f : get(y + i * ld, k) * f, k);
  }
}

static void softmax_back_cols (const float *y, const float *g, float *dx, int64_t n, int64_t ld,
                               int64_t m, bool logs) {
  for (int64_t j = 0; j < m; j += W, y += W, g += W, dx += W) {
    int64_t k = m - j;
    vf s = v_set(0);
    for (int64_t i = 0; i < n; i++) {
      vf t = get(g + i * ld, k);
      s += logs ? t : t * get(y + i * ld, k);
    }
    for (int64_t i = 0; i < n; i++) {
      vf t = get(g + i * ld, k), u = get(y + i * ld, k);
      put(dx + i * ld, logs ? t - v_exp(u) * s : u * (t - s), k);
    }
  }
}

/* ---- rotary positions ---- */

static void sincos_table (int64_t n, const float *angle, float scale, float *c, float *s) {
  for (int64_t i = 0; i < n; i += W) {
    vf a = get(angle + i, n - i);
    put(c + i, v_cos(a) * scale, n - i);
    put(s + i, v_sin(a) * scale, n - i);
  }
}

static void rope (const float *x, float *y, int64_t heads, int64_t x_head, int64_t D, int64_t n,
                  const float *c, const float *s, bool interleaved, bool inverse) {
  for (int64_t h = 0; h < heads; h++, x += x_head, y += D) {
    if (interleaved) {
      for (int64_t i = 0; i < n; i++) {
        float a = x[2 * i], b = x[2 * i + 1], si = inverse ? -s[i] : s[i];
        y[2 * i] = a * c[i] - b * si;
        y[2 * i + 1] = b * c[i] + a * si;
      }
    } else {
      for (int64_t i = 0; i < n; i += W) {
        int64_t k = n - i;
        vf a = get(x + i, k), b = get(x + n + i, k), ci = get(c + i, k), si = get(s + i, k);
        if (inverse) si = -si;
        put(y + i, a * ci - b * si, k);
        put(y + n + i, b * ci + a * si, k);
      }
    }
    if (2 * n < D) memcpy(y + 2 * n, x + 2 * n, (size_t)(D - 2 * n) * sizeof *y);
  }
}

/* ---- dropout ---- */

/* 32 x 32 bit products by lane: low and high halves. */
static inline void wide_mul (v_u32 x, uint32_t by, v_u32 *low, v_u32 *high) {
#if PERI_VW == 16 && defined(__AVX512F__)
  __m512i m = _mm512_set1_epi64(by), v = (__m512i)x;
  __m512i even = _mm512_mul_epu32(v, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(v, 32), m);
  *low = (v_u32)_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  *high = (v_u32)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
#elif PERI_VW == 8 && defined(__AVX2__)
  __m256i m = _mm256_set1_epi64x(by), v = (__m256i)x;
  __m256i even = _mm256_mul_epu32(v, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), m);
  *low = (v_u32)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  *high = (v_u32)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
#elif PERI_VW == 4 && defined(__SSE2__)
  __m128i m = _mm_set1_epi64x(by), v = (__m128i)x, keep = _mm_set1_epi64x(0xffffffff);
  __m128i even = _mm_mul_epu32(v, m), odd = _mm_mul_epu32(_mm_srli_epi64(v, 32), m);
  *low = (v_u32)_mm_or_si128(_mm_and_si128(even, keep), _mm_slli_epi64(odd, 32));
  *high = (v_u32)_mm_or_si128(_mm_srli_epi64(even, 32), _mm_andnot_si128(keep, odd));
#else
  for (int i = 0; i < W; i++) {
    uint64_t p = (uint64_t)x[i] * by;
    (*low)[i] = (uint32_t)p;
    (*high)[i] = (uint32_t)(p >> 32);
  }
#endif
}

/* core/rng.c's generator, W blocks at a time. */
static void dropout_mask (peri_rng rng, uint64_t block, int64_t n, uint32_t limit, uint8_t *mask) {
  for (int64_t i = 0; i < n; i += 4 * W, block += W) {
    v_u32 c0, c1, c2 = (v_u32){ 0 } + (uint32_t)rng.offset,
                  c3 = (v_u32){ 0 } + (uint32_t)(rng.offset >> 32);
    uint32_t k0 = (uint32_t)rng.seed, k1 = (uint32_t)(rng.seed >> 32);
    for (int j = 0; j < W; j++) {
      c0[j] = (uint32_t)(block + (uint64_t)j);
      c1[j] = (uint32_t)((block + (uint64_t)j) >> 32);
    }
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      v_u32 l0, h0, l2, h2;
      wide_mul(c0, 0xD2511F53u, &l0, &h0);
      wide_mul(c2, 0xCD9E8D57u, &l2, &h2);
      c0 = h2 ^ c1 ^ k0;
      c2 = h0 ^ c3 ^ k1;
      c1 = l2;
      c3 = l0;
    }
    /* lane j holds bytes 4 j to 4 j + 3 of the mask */
    v_u32 word[4] = { c0, c1, c2, c3 }, keep = { 0 };
    for (int k = 0; k < 4; k++)
      keep |= ((v_u32)((word[k] >> 8) >= limit) & 1)
              << (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 8 * k : 24 - 8 * k);
    memcpy(mask + i, &keep, n - i < 4 * W ? (size_t)(n - i) : sizeof keep);
  }
}

static void dropout (const float *x, const uint8_t *mask, float scale, float *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = mask[i] ? x[i] * scale : 0;
}

const struct peri__nn_kernels PERI_NAME(peri__nn) = {
  .softmax = softmax,
  .softmax_back = softmax_back,
  .softmax_cols = softmax_cols,
  .softmax_back_cols = softmax_back_cols,
  .norm = PERI_NAME(peri__norm_rows),
  .norm_back = PERI_NAME(peri__norm_back_rows),
  .channel_sums = PERI_NAME(peri__channel_sums),
  .channel_scale = PERI_NAME(peri__channel_scale),
  .sincos = sincos_table,
  .rope = rope,
  .dropout_mask = dropout_mask,
  .dropout = dropout,
  .attn_units = PERI_NAME(peri__attn_units),
  .attn_scratch = PERI_NAME(peri__attn_scratch),
  .attn = PERI_NAME(peri__attn_unit),
  .attn_back_scratch = PERI_NAME(peri__attn_back_scratch),
  .attn_back = PERI_NAME(peri__attn_back_unit),
  .cells = PERI_NAME(peri__cells),
};
