/*
** simd_attention.c - attention forward in f32, block by block of keys with a running maximum
** (arXiv:2205.14135), never more than RT rows by KB keys of scores. attn.h says what fixes bits.
*/
#include "cpu/attn.h"

/* What is known of one row while key blocks go by. */
struct row {
  vf sum; /* of exp(score - max), by lane */
  float max;
};

/* One unit is a chunk of queries of one batch entry, for one kv head; with a single query, for all
** heads, so that several heads' chains overlap. */
int64_t PERI_NAME (peri__attn_units)(struct peri__attn *a) {
  int64_t group = a->Hq / a->Hkv, chunk = max64(1, 128 / group);
  a->rows = min64(a->Tq, chunk);
  if (a->Tq == 1) return a->B;
  return a->B * a->Hkv * ((a->Tq + chunk - 1) / chunk);
}

static int64_t row_count (const struct peri__attn *a) {
  return a->Tq == 1 ? a->Hq : a->rows * (a->Hq / a->Hkv);
}

int64_t PERI_NAME (peri__attn_scratch)(const struct peri__attn *a) {
  int64_t Dp = round_up(a->D, W), rows = round_up(row_count(a), RT);
  int64_t heads = a->Tq == 1 ? a->Hkv : 1;
  return KB * a->D + (a->Tq == 1 && Dp == a->D ? 0 : heads * KB * Dp) + rows * Dp +
         rows * (int64_t)(sizeof(struct row) / 4) + (a->Tq == 1 ? rows : RT) * KB + KB;
}

/* Raw scores s[lo, hi) of a row, columns of this block, become exp(s scale + bias - max); the row's
** earlier sums and output are scaled when the maximum grows. */
static void soften (const struct peri__attn *a, struct row *row, float *s, int64_t lo, int64_t hi,
                    const float *bias, float *o, int64_t Dp) {
  int64_t c0 = lo / W * W;
  vf f = v_set(a->scale), top = v_set(-INFINITY);
  for (int64_t c = c0; c < hi; c += W) {
    vf x = v_load(s + c) * f;
    if (a->cap > 0) x = v_tanh(x * (1 / a->cap)) * a->cap;
    if (bias) x = with_bias(x, v_load(bias + c));
    if (c < lo || c + W > hi) x = v_select(in_range(c, lo, hi), x, v_set(-INFINITY));
    top = v_max(top, x);
    v_store(s + c, x);
  }
  float max = v_hmax(top);
  if (!(max <= row->max)) { /* grew, or is NaN */
    if (row->max > -INFINITY) {
      vf shrink = v_exp(v_set(row->max) - max);
      row->sum *= shrink;
      for (int64_t d = 0; d < Dp; d += W) v_store(o + d, v_load(o + d) * shrink);
    }
    row->max = max;
  }
  vf m = v_set(row->max == -INFINITY ? 0 : row->max);
  for (int64_t c = c0; c < hi; c += W) {
    vf e = v_exp(v_load(s + c) - m);
    row->sum += e;
    v_store(s + c, e);
  }
}

static void finish (const struct peri__attn *a, int64_t b, int64_t i, int64_t h,
                    const struct row *row, const float *o) {
  float sum = v_sum(row->sum), *y = a->out + ((b * a->Tq + i) * a->Hq + h) * a->D;
  float f = sum > 0 || sum != sum ? 1.0f / sum : 0;
  int64_t d = 0;
  for (; d + W <= a->D; d += W) v_store(y + d, v_load(o + d) * f);
  if (d < a->D) v_store_tail(y + d, v_load(o + d) * f, a->D - d);
  if (a->lse) /* -inf where nothing is visible */
    a->lse[(b * a->Hq + h) * a->Tq + i] = row->max + logf(sum);
}

static void clear (struct row *row, float *o, int64_t n, int64_t Dp) {
  for (int64_t r = 0; r < n; r++) row[r] = (struct row){ v_set(0), -INFINITY };
  memset(o, 0, (size_t)(n * Dp) * sizeof *o);
}

/* A share of the next batch entry's cache rows: a decoding step reads each of them once. */
static void fetch_cache (const struct peri__attn *a, int64_t b, int64_t j0, int64_t n, int64_t hk) {
  int64_t first = n * hk / a->Hkv, last = n * (hk + 1) / a->Hkv, span = a->Hkv * a->D;
  if (b + 1 == a->B || a->vs[2] != a->D || (a->ks[3] == 1 && a->ks[2] != a->D)) return;
  for (int64_t j = j0 + first; j < j0 + last; j++) {
    if (a->ks[3] == 1) fetch_row(a->k + (b + 1) * a->ks[0] + j * a->ks[1], span, 0);
    fetch_row(a->v + (b + 1) * a->vs[0] + j * a->vs[1], span, 0);
  }
}

/* s[r][c] = q[r] . column c of k[r], whose D rows lie ld apart, for NV vectors of columns with n in
** the last. The same columns of the next batch entry lie ahead. */
INLINE void column_tile (const float *const *q, const float *const *k, int64_t ld, int R, int NV,
                         int64_t n, int64_t D, int64_t ahead, float *s) {
  vf acc[RT][4];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < NV; c++) acc[r][c] = v_set(0);
  for (int64_t d = 0; d < D; d++)
    for (int r = 0; r < R; r++) {
      const float *from = k[r] + d * ld;
      vf x = v_set(q[r][d]);
      for (int c = 0; c < NV; c++) {
        vf y = c == NV - 1 && n < W ? v_load_tail(from + c * W, n, 0) : v_load(from + c * W);
        acc[r][c] = v_fma(x, y, acc[r][c]);
        if (c % (16 / W) == 0) __builtin_prefetch(from + ahead + c * W, 0, 2);
      }
    }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < NV; c++) v_store(s + r * KB + c * W, acc[r][c]);
}

/* Scores of R <= RT heads for keys [c0, n), c0 a multiple of W, whose keys lie side by side. */
INLINE void column_scores (const float *const *q, const float *const *k, int64_t ld, int R,
                           int64_t c0, int64_t n, int64_t D, int64_t ahead, float *s) {
  const float *at[RT];
  for (int64_t c = c0; c < n;) {
    int64_t NV = min64((n - c + W - 1) / W, SV), last = min64(n - c - (NV - 1) * W, W);
    for (int r = 0; r < R; r++) at[r] = k[r] + c;
    if (last < W) {
      if (NV == 1)
        column_tile(q, at, ld, R, 1, last, D, ahead, s + c);
      else if (NV == 2)
        column_tile(q, at, ld, R, 2, last, D, ahead, s + c);
#if PERI_VW == 16
      else if (NV == 3)
        column_tile(q, at, ld, R, 3, last, D, ahead, s + c);
      else
        column_tile(q, at, ld, R, 4, last, D, ahead, s + c);
#endif
    } else {
      if (NV == 1)
        column_tile(q, at, ld, R, 1, W, D, ahead, s + c);
      else if (NV == 2)
        column_tile(q, at, ld, R, 2, W, D, ahead, s + c);
#if PERI_VW == 16
      else if (NV == 3)
        column_tile(q, at, ld, R, 3, W, D, ahead, s + c);
      else
        column_tile(q, at, ld, R, 4, W, D, ahead, s + c);
#endif
    }
    c += NV * W;
  }
}

/* Scores of all heads of a single query for keys [j0 + c0, j0 + n), straight from k. */
static void one_query_columns (const struct peri__attn *a, int64_t b, int64_t j0, int64_t c0,
                               int64_t n, float *s) {
  int64_t G = a->Hq / a->Hkv, ahead = b + 1 < a->B ? a->ks[0] : 0;
  const float *q[RT], *k[RT];
  for (int64_t h = 0; h < a->Hq; h++) {
    int r = (int)(h % RT);
    q[r] = a->q + b * a->qs[0] + h * a->qs[2];
    k[r] = a->k + b * a->ks[0] + h / G * a->ks[2] + j0;
    if (r == RT - 1) column_scores(q, k, a->ks[3], RT, c0, n, a->D, ahead, s + (h - r) * KB);
  }
  for (int64_t r = 0; r < a->Hq % RT; r++)
    column_scores(q + r, k + r, a->ks[3], 1, c0, n, a->D, ahead, s + (a->Hq / RT * RT + r) * KB);
}

/* All heads of a single query. */
static void one_query (const struct peri__attn *a, int64_t b, float *scratch) {
  int64_t D = a->D, Dp = round_up(D, W), G = a->Hq / a->Hkv, rows = round_up(a->Hq, RT);
  struct row *row = (struct row *)scratch;
  float *o = scratch + rows * (int64_t)(sizeof(struct row) / 4), *s = o + rows * Dp,
        *bias = s + rows * KB;
  float *panel = bias + KB, *vp = panel + KB * D;
  int64_t start = start_of(a, b, 0), lo, hi;
  visible(a, start, 0, &lo, &hi);
  clear(row, o, a->Hq, Dp);
  for (int64_t j0 = start + (lo - start) / KB * KB; j0 < hi; j0 += KB) {
    int64_t n = min64(KB, hi - j0), first = max64(lo - j0, 0), c0 = first / W * W;
    bool finite = true;
    for (int64_t hk = 0; hk < a->Hkv; hk++) {
      const float *k = a->k + b * a->ks[0] + j0 * a->ks[1] + hk * a->ks[2];
      fetch_cache(a, b, j0, n, hk);
      if (a->ks[3] == 1) {
        transpose(k, a->ks[1], c0, n, D, panel);
        for (int64_t h = hk * G; h < (hk + 1) * G; h++) {
          const float *q = a->q + b * a->qs[0] + h * a->qs[2];
          scores(&q, 1, panel, D, c0, round_up(n, W), s + h * KB);
        }
      }
      if (Dp != D)
        pack_rows(a->v + b * a->vs[0] + j0 * a->vs[1] + hk * a->vs[2], a->vs[1], n, D, Dp,
                  vp + hk * KB * Dp);
    }
    if (a->ks[3] != 1) one_query_columns(a, b, j0, c0, n, s);
    const float *v[RT], *v0 = Dp == D ? a->v + b * a->vs[0] + j0 * a->vs[1] : vp;
    float *to[RT];
    int64_t stride = Dp == D ? a->vs[1] : Dp, apart = Dp == D ? a->vs[2] : KB * Dp;
    for (int64_t h = 0; h < a->Hq; h++) {
      if (a->mask_kind) mask_row(a, b, h, 0, j0, n, bias);
      soften(a, &row[h], s + h * KB, first, n, a->mask_kind ? bias : NULL, o + h * Dp, Dp);
      for (int64_t j = first; a->mask_kind && j < n && finite; j++) /* only what is hidden */
        if (s[h * KB + j] == 0) finite = all_finite(v0 + h / G * apart + j * stride, 0, 1, Dp);
    }
    for (int64_t h = 0; h < a->Hq; h++) {
      int r = (int)(h % RT);
      v[r] = v0 + h / G * apart;
      to[r] = o + h * Dp;
      if (!finite)
        mix_seen(s + h * KB, v[r], stride, first, n, to[r], Dp);
      else if (r == RT - 1)
        mix_apart(s + (h - r) * KB, v, stride, first, n, to, Dp);
    }
    for (int64_t r = 0; finite && r < a->Hq % RT; r++)
      mix_one(s + (a->Hq / RT * RT + r) * KB, v[r], stride, first, n, to[r], Dp);
  }
  for (int64_t h = 0; h < a->Hq; h++) finish(a, b, 0, h, &row[h], o + h * Dp);
}

/* Row r of the unit behind (b, hk), where units are whole heads. */
static void fetch_next (const struct peri__attn *a, int64_t b, int64_t hk, int64_t r) {
  int64_t G = a->Hq / a->Hkv, i = r / G;
  if (++hk == a->Hkv) b++, hk = 0;
  if (b == a->B) return;
  int64_t h = hk * G + r % G;
  fetch_row(a->q + b * a->qs[0] + i * a->qs[1] + h * a->qs[2], a->D, 0);
  fetch_row(a->out + ((b * a->Tq + i) * a->Hq + h) * a->D, a->D, 1);
  if (r >= a->Tk) return;
  if (a->ks[3] == 1) fetch_row(a->k + b * a->ks[0] + r * a->ks[1] + hk * a->ks[2], a->D, 0);
  fetch_row(a->v + b * a->vs[0] + r * a->vs[1] + hk * a->vs[2], a->D, 0);
}

/* Queries [i0, i1) of one start, for one kv head. */
static void queries (const struct peri__attn *a, int64_t b, int64_t hk, int64_t i0, int64_t i1,
                     float *scratch) {
  int64_t D = a->D, Dp = round_up(D, W), G = a->Hq / a->Hkv;
  int64_t n_rows = (i1 - i0) * G; /* row = query * G + head of the group */
  struct row *row = (struct row *)scratch;
  int64_t room = round_up(a->rows * G, RT);
  float *o = scratch + room * (int64_t)(sizeof(struct row) / 4), *s = o + room * Dp,
        *bias = s + RT * KB;
  float *panel = bias + KB, *vp = panel + KB * D;
  int64_t start = start_of(a, b, i0), lo, hi, ignore;
  visible(a, start, i0, &lo, &ignore);
  visible(a, start, i1 - 1, &ignore, &hi);
  clear(row, o, n_rows, Dp);
  for (int64_t j0 = start + (lo - start) / KB * KB; j0 < hi; j0 += KB) {
    if (peri__attn_stopped(a)) return;
    int64_t n = min64(KB, hi - j0), first = max64(lo - j0, 0);
    const float *k = a->k + b * a->ks[0] + j0 * a->ks[1] + hk * a->ks[2];
    if (a->ks[3] == 1)
      transpose(k, a->ks[1], first / W * W, n, D, panel);
    else
      pack_rows(k, a->ks[3], D, n, KB, panel);
    pack_rows(a->v + b * a->vs[0] + j0 * a->vs[1] + hk * a->vs[2], a->vs[1], n, D, Dp, vp);
    bool finite = !a->mask_kind || all_finite(vp, Dp, n, Dp);
    for (int64_t r0 = 0; r0 < n_rows; r0 += RT) {
      int R = (int)min64(RT, n_rows - r0);
      int64_t from[RT], to[RT], c0 = n, c1 = 0;
      const float *q[RT];
      float *y[RT];
      for (int r = 0; r < R; r++) {
        int64_t i = i0 + (r0 + r) / G, h = hk * G + (r0 + r) % G;
        q[r] = a->q + b * a->qs[0] + i * a->qs[1] + h * a->qs[2];
        y[r] = o + (r0 + r) * Dp;
        if (a->rows == a->Tq) fetch_next(a, b, hk, i0 * G + r0 + r);
        visible(a, start, i, &from[r], &to[r]);
        from[r] = min64(max64(from[r] - j0, 0), n);
        to[r] = min64(max64(to[r] - j0, from[r]), n);
        if (from[r] < to[r]) c0 = min64(c0, from[r]), c1 = max64(c1, to[r]);
      }
      if (c0 >= c1) continue;
      scores(q, R, panel, D, c0 / W * W, round_up(c1, W), s);
      for (int r = 0; r < R; r++) {
        if (from[r] >= to[r]) continue;
        if (a->mask_kind) mask_row(a, b, hk * G + (r0 + r) % G, i0 + (r0 + r) / G, j0, n, bias);
        soften(a, &row[r0 + r], s + r * KB, from[r], to[r], a->mask_kind ? bias : NULL, y[r], Dp);
      }
      if (finite)
        mix(s, vp, Dp, R, from, to, y, Dp);
      else
        for (int r = 0; r < R; r++) mix_seen(s + r * KB, vp, Dp, from[r], to[r], y[r], Dp);
    }
  }
  for (int64_t r = 0; r < n_rows; r++)
    finish(a, b, i0 + r / G, hk * G + r % G, &row[r], o + r * Dp);
}

void PERI_NAME (peri__attn_unit)(const struct peri__attn *a, int64_t unit, float *scratch) {
  if (a->Tq == 1) {
    one_query(a, unit, scratch);
    return;
  }
  int64_t chunks = (a->Tq + a->rows - 1) / a->rows, i = unit % chunks * a->rows;
  int64_t hk = unit / chunks % a->Hkv, b = unit / chunks / a->Hkv, end = min64(i + a->rows, a->Tq);
  while (i < end) {
    int64_t next = same_start(a, b, i, end);
    queries(a, b, hk, i, next, scratch);
    i = next;
  }
}
