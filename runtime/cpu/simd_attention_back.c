/*
** simd_attention_back.c - gradient of attention in f32. Scores are recomputed block by block from
** the saved log-sum-exp (arXiv:2205.14135); one unit owns a kv head of a batch entry, so its sums
** run in one order whatever the threads.
**
** With p = exp(s - lse), D_r = sum(g_r out_r):  dv = p^T g,  ds = p (g v^T - D) scale,  dq = ds k,
** dk = ds^T q.
*/
#include "cpu/attn.h"

enum { RB = 32 /* rows whose p and ds are kept at a time */ };

static int64_t all_rows (const struct peri__attn *a) { return a->Tq * (a->Hq / a->Hkv); }

int64_t PERI_NAME (peri__attn_back_scratch)(const struct peri__attn *a) {
  int64_t Dp = round_up(a->D, W), rows = round_up(all_rows(a), W);
  return 2 * KB * a->D + 3 * KB * Dp + 2 * RB * Dp + 2 * RB * KB + KB + rows * Dp + rows;
}

/* acc[j + i] += sum over rows [r0, r1) of w[r][j + i] x[r], i < 4. */
INLINE void outer_tile (const float *w, const float *x, int64_t Dp, int64_t r0, int64_t r1, int NV,
                        float *acc) {
  vf t[4][4];
  for (int i = 0; i < 4; i++)
    for (int c = 0; c < NV; c++) t[i][c] = v_load(acc + i * Dp + c * W);
  for (int64_t r = r0; r < r1; r++) {
    vf y[4];
    for (int c = 0; c < NV; c++) y[c] = v_load(x + r * Dp + c * W);
    for (int i = 0; i < 4; i++) {
      vf f = v_set(w[r * KB + i]);
      for (int c = 0; c < NV; c++) t[i][c] = v_fma(f, y[c], t[i][c]);
    }
  }
  for (int i = 0; i < 4; i++)
    for (int c = 0; c < NV; c++) v_store(acc + i * Dp + c * W, t[i][c]);
}

static void outer (const float *w, const float *x, int64_t Dp, int64_t r0, int64_t r1, float *acc) {
  int64_t d = 0;
  if (PERI_VW == 16)
    for (; d + 4 * W <= Dp; d += 4 * W) outer_tile(w, x + d, Dp, r0, r1, 4, acc + d);
  for (; d + 2 * W <= Dp; d += 2 * W) outer_tile(w, x + d, Dp, r0, r1, 2, acc + d);
  for (; d < Dp; d += W) outer_tile(w, x + d, Dp, r0, r1, 1, acc + d);
}

/* The same, but rows of weight 0 for a key are not read: they do not see it, and may hold junk. */
static void outer_seen (const float *w, const float *x, int64_t Dp, int64_t r0, int64_t r1,
                        float *acc) {
  for (int64_t i = 0; i < 4; i++, w++, acc += Dp)
    for (int64_t r = r0; r < r1; r++) {
      if (w[r * KB] == 0) continue;
      for (int64_t d = 0; d < Dp; d += W)
        v_store(acc + d, v_fma(v_set(w[r * KB]), v_load(x + r * Dp + d), v_load(acc + d)));
    }
}

/* s: raw scores, t: g v^T, columns [c0, c1) (multiples of W) of a row that sees [lo, hi); they
** become p and ds. dmask: that row's gradient of an added mask, p (g v^T - D). */
static void differentiate (const struct peri__attn *a, float *s, float *t, int64_t c0, int64_t c1,
                           int64_t lo, int64_t hi, const float *bias, float lse, float delta,
                           float *dmask) {
  vf f = v_set(a->scale), l = v_set(lse), d = v_set(delta), zero = v_set(0);
  for (int64_t c = c0; c < c1; c += W) {
    vf p = zero, ds = zero;
    if (c < hi && c + W > lo) {
      vf x = v_load(s + c) * f, slope = f;
      if (a->cap > 0) {
        vf y = v_tanh(x * (1 / a->cap));
        x = y * a->cap;
        slope = f * (1 - y * y);
      }
      if (bias) x = with_bias(x, v_load(bias + c));
      p = v_exp(x - l);
      vf dx = p * (v_load(t + c) - d);
      ds = dx * slope;
      if (bias) {
        vi hidden = (vi)(v_load(bias + c) == v_set(-INFINITY));
        p = v_select(hidden, zero, p);
        dx = v_select(hidden, zero, dx);
        ds = v_select(hidden, zero, ds);
      }
      for (int64_t i = max64(lo - c, 0); dmask && i < min64(hi - c, W); i++) dmask[c + i] = dx[i];
      if (c < lo || c + W > hi) {
        vi seen = in_range(c, lo, hi);
        p = v_select(seen, p, zero);
        ds = v_select(seen, ds, zero);
      }
    }
    v_store(s + c, p);
    v_store(t + c, ds);
  }
}

struct work { /* scratch of a unit */
  float *kt, *vt, *kp, *dk, *dv, *qp, *gp, *p, *ds, *bias, *dq, *delta;
  bool finite; /* the block of keys, or nothing is masked */
};

/* Row r of the unit behind (b, hk). */
static void fetch_next (const struct peri__attn *a, int64_t b, int64_t hk, int64_t r) {
  int64_t G = a->Hq / a->Hkv, i = r / G;
  if (++hk == a->Hkv) b++, hk = 0;
  if (b == a->B) return;
  int64_t h = hk * G + r % G, row = ((b * a->Tq + i) * a->Hq + h) * a->D,
          key = ((b * a->Tk + r) * a->Hkv + hk) * a->D;
  fetch_row(a->q + b * a->qs[0] + i * a->qs[1] + h * a->qs[2], a->D, 0);
  fetch_row(a->g + row, a->D, 0);
  fetch_row(a->out + row, a->D, 0);
  fetch_row(a->dq + row, a->D, 1);
  if (r >= a->Tk) return;
  fetch_row(a->k + b * a->ks[0] + r * a->ks[1] + hk * a->ks[2], a->D, 0);
  fetch_row(a->v + b * a->vs[0] + r * a->vs[1] + hk * a->vs[2], a->D, 0);
  fetch_row(a->dk + key, a->D, 1);
  fetch_row(a->dv + key, a->D, 1);
}

/* Rows [r0, r0 + n) against the key block at j0 of n_keys keys. */
static void chunk (const struct peri__attn *a, const struct work *w, int64_t b, int64_t hk,
                   int64_t start, int64_t r0, int64_t n, int64_t j0, int64_t n_keys) {
  int64_t D = a->D, Dp = round_up(D, W), G = a->Hq / a->Hkv;
  int64_t from[RB], to[RB], c0 = n_keys, c1 = 0;
  for (int64_t r = 0; r < n; r++) {
    visible(a, start, (r0 + r) / G, &from[r], &to[r]);
    from[r] = min64(max64(from[r] - j0, 0), n_keys);
    to[r] = min64(max64(to[r] - j0, from[r]), n_keys);
    if (from[r] < to[r]) c0 = min64(c0, from[r]), c1 = max64(c1, to[r]);
  }
  if (c0 >= c1) return;
  c0 = c0 / W * W;
  c1 = round_up(c1, W);
  for (int64_t r = 0; r < n; r++) {
    int64_t i = (r0 + r) / G, h = hk * G + (r0 + r) % G;
    if (a->lse[(b * a->Hq + h) * a->Tq + i] == -INFINITY) to[r] = from[r]; /* every key is masked */
    if (from[r] == to[r]) { /* whatever it holds, it is no part of any sum */
      memset(w->qp + r * Dp, 0, (size_t)Dp * sizeof(float));
      memset(w->gp + r * Dp, 0, (size_t)Dp * sizeof(float));
      continue;
    }
    pack_rows(a->q + b * a->qs[0] + i * a->qs[1] + h * a->qs[2], 0, 1, D, Dp, w->qp + r * Dp);
    pack_rows(a->g + ((b * a->Tq + i) * a->Hq + h) * D, 0, 1, D, Dp, w->gp + r * Dp);
  }
  for (int64_t t = 0; t < n; t += RT) {
    int R = (int)min64(RT, n - t);
    const float *q[RT], *g[RT];
    float *dq[RT];
    int64_t e0 = n_keys, e1 = 0;
    for (int r = 0; r < R; r++) {
      q[r] = w->qp + (t + r) * Dp;
      g[r] = w->gp + (t + r) * Dp;
      dq[r] = w->dq + (r0 + t + r) * Dp;
      if (a->Tk <= KB) fetch_next(a, b, hk, r0 + t + r);
      if (from[t + r] < to[t + r]) e0 = min64(e0, from[t + r]), e1 = max64(e1, to[t + r]);
    }
    float *p = w->p + t * KB, *ds = w->ds + t * KB;
    if (e0 < e1) {
      scores(q, R, w->kt, D, e0 / W * W, round_up(e1, W), p);
      scores(g, R, w->vt, D, e0 / W * W, round_up(e1, W), ds);
    }
    for (int r = 0; r < R; r++) {
      int64_t i = (r0 + t + r) / G, h = hk * G + (r0 + t + r) % G;
      float lse = a->lse[(b * a->Hq + h) * a->Tq + i];
      if (a->mask_kind && from[t + r] < to[t + r]) mask_row(a, b, h, i, j0, n_keys, w->bias);
      differentiate(a, p + r * KB, ds + r * KB, c0, c1, from[t + r], to[t + r],
                    a->mask_kind ? w->bias : NULL, lse, w->delta[r0 + t + r],
                    a->dmask ? a->dmask + ((b * a->Hq + h) * a->Tq + i) * a->Tk + j0 : NULL);
    }
    if (w->finite)
      mix(ds, w->kp, Dp, R, from + t, to + t, dq, Dp);
    else
      for (int r = 0; r < R; r++)
        mix_seen(ds + r * KB, w->kp, Dp, from[t + r], to[t + r], dq[r], Dp);
  }
  bool finite = all_finite(w->qp, Dp, n, Dp) && all_finite(w->gp, Dp, n, Dp);
  for (int64_t j = c0; j < c1; j += 4) {
    int64_t first = 0, last = n; /* rows between see some of the four keys */
    while (first < n && to[first] <= j) first++;
    while (last > first && from[last - 1] >= j + 4) last--;
    (finite ? outer : outer_seen)(w->p + j, w->gp, Dp, first, last, w->dv + j * Dp);
    (finite ? outer : outer_seen)(w->ds + j, w->qp, Dp, first, last, w->dk + j * Dp);
  }
}

/* Queries [i0, i1) of one start. */
static void queries (const struct peri__attn *a, struct work *w, int64_t b, int64_t hk, int64_t i0,
                     int64_t i1) {
  int64_t D = a->D, Dp = round_up(D, W), G = a->Hq / a->Hkv;
  int64_t start = start_of(a, b, i0), lo, hi, ignore;
  visible(a, start, i0, &lo, &ignore);
  visible(a, start, i1 - 1, &ignore, &hi);
  for (int64_t j0 = start + (lo - start) / KB * KB; j0 < hi; j0 += KB) {
    if (peri__attn_stopped(a)) return;
    int64_t n = min64(KB, hi - j0);
    const float *k = a->k + b * a->ks[0] + j0 * a->ks[1] + hk * a->ks[2];
    transpose(k, a->ks[1], 0, n, D, w->kt);
    transpose(a->v + b * a->vs[0] + j0 * a->vs[1] + hk * a->vs[2], a->vs[1], 0, n, D, w->vt);
    pack_rows(k, a->ks[1], n, D, Dp, w->kp);
    w->finite = !a->mask_kind || all_finite(w->kp, Dp, n, Dp);
    memset(w->dk, 0, (size_t)(2 * KB * Dp) * sizeof(float)); /* dk and dv */
    for (int64_t r0 = i0 * G; r0 < i1 * G && !peri__attn_stopped(a); r0 += RB)
      chunk(a, w, b, hk, start, r0, min64(RB, i1 * G - r0), j0, n);
    for (int64_t j = 0; j < n; j++) {
      int64_t at = ((b * a->Tk + j0 + j) * a->Hkv + hk) * D;
      if (a->start_each) { /* queries of other starts may see the key, too */
        for (int64_t d = 0; d < D; d++) {
          a->dk[at + d] += w->dk[j * Dp + d];
          a->dv[at + d] += w->dv[j * Dp + d];
        }
        continue;
      }
      memcpy(a->dk + at, w->dk + j * Dp, (size_t)D * sizeof(float));
      memcpy(a->dv + at, w->dv + j * Dp, (size_t)D * sizeof(float));
    }
  }
}

void PERI_NAME (peri__attn_back_unit)(const struct peri__attn *a, int64_t unit, float *scratch) {
  int64_t D = a->D, Dp = round_up(D, W), G = a->Hq / a->Hkv, rows = all_rows(a), hk = unit % a->Hkv,
          b = unit / a->Hkv;
  struct work w;
  w.kt = scratch, w.vt = w.kt + KB * D, w.kp = w.vt + KB * D, w.dk = w.kp + KB * Dp,
  w.dv = w.dk + KB * Dp;
  w.qp = w.dv + KB * Dp, w.gp = w.qp + RB * Dp, w.p = w.gp + RB * Dp, w.ds = w.p + RB * KB;
  w.bias = w.ds + RB * KB, w.dq = w.bias + KB, w.delta = w.dq + round_up(rows, W) * Dp;
  memset(w.dq, 0, (size_t)(rows * Dp) * sizeof(float));
  for (int64_t r = 0; r < rows; r++) {
    int64_t at = ((b * a->Tq + r / G) * a->Hq + hk * G + r % G) * D;
    vf delta = v_set(0);
    for (int64_t d = 0; d < D; d += W)
      if (D - d >= W)
        delta = v_fma(v_load(a->g + at + d), v_load(a->out + at + d), delta);
      else
        delta += v_load_tail(a->g + at + d, D - d, 0) * v_load_tail(a->out + at + d, D - d, 0);
    w.delta[r] = v_sum(delta);
  }
  for (int64_t j = 0; j < a->Tk; j++) { /* keys that nobody sees */
    memset(a->dk + ((b * a->Tk + j) * a->Hkv + hk) * D, 0, (size_t)D * sizeof(float));
    memset(a->dv + ((b * a->Tk + j) * a->Hkv + hk) * D, 0, (size_t)D * sizeof(float));
  }
  for (int64_t i = 0; i < a->Tq;) {
    int64_t next = same_start(a, b, i, a->Tq);
    queries(a, &w, b, hk, i, next);
    i = next;
  }
  for (int64_t r = 0; r < rows; r++)
    memcpy(a->dq + ((b * a->Tq + r / G) * a->Hq + hk * G + r % G) * D, w.dq + r * Dp,
           (size_t)D * sizeof(float));
}
