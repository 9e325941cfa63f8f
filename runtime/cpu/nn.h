/*
** nn.h - kernels of the layers: softmax, norms, rotary positions, dropout and
** attention, all f32. Arrays are row-major; rows are cut between threads by the op, so nothing in a
** row may depend on which rows a call was given.
*/
#ifndef peri_nn_h
#define peri_nn_h

#include "cpu/recurrent.h"

/* Rows of a norm. Pointers marked ? may be NULL. */
struct peri__norm {
  int64_t n; /* row length */
  double eps;
  bool rms;             /* RMS norm: no mean is taken off, b is NULL */
  const float *x, *add; /* (rows, n); add?: normalise x + add and write that to sum */
  const float *w, *b;   /* (n)? */
  float *y, *sum;       /* (rows, n); sum goes with add */
};

/* Gradient of the same; statistics are computed again from x, what was normalised. */
struct peri__norm_back {
  int64_t n;
  double eps;
  bool rms;
  const float *x, *w, *g; /* w? */
  const float *add;       /* (rows, n)?: added to dx */
  float *dx;
};

enum { PERI_ATTN_KEYS = 128 }; /* keys of a block; blocks count from a row's start */
enum { PERI_ATTN_NOMASK, PERI_ATTN_BOOL, PERI_ATTN_ADD };

/* One attention call. Strides are of (batch, time, head) in elements, the last dim has stride 1; k of
** a forward call may instead have the keys side by side: ks[1] is 1 and ks[3] the channels' stride. */
struct peri__attn {
  int64_t B, Tq, Tk, Hq, Hkv, D;
  const float *q, *k, *v; /* (B, Tq, Hq, D), (B, Tk, Hkv, D) x 2 */
  int64_t qs[3], ks[4], vs[3];
  const int64_t *start; /* (B)?: keys before it are invisible */
  bool start_each;      /* start is (B, Tq): one for each query */
  int mask_kind;
  const void *mask; /* bool or f32, strides of (batch, head, query, key), 0 = broadcast */
  int64_t ms[4];
  bool causal;
  int64_t offset, window; /* query i sees keys j <= i + offset, the last window of them if > 0 */
  float scale, cap;       /* cap > 0: scores become cap tanh(score / cap) before the mask */
  double scale_f64, cap_f64;
  int64_t rows;                         /* queries of a unit: see units */
  float *out, *lse;                     /* (B, Tq, Hq, D) dense, (B, Hq, Tq)? */
  const float *g;                       /* backward: dense, as out */
  float *dq, *dk, *dv;                  /* backward: dense */
  float *dmask;                         /* backward: (B, Hq, Tq, Tk)?, zeros */
  bool (*stopped)(const peri_ctx *ctx); /* ?: asked within a unit, which may end early */
  const peri_ctx *ctx;
};

static inline bool peri__attn_stopped (const struct peri__attn *a) {
  return a->stopped && a->stopped(a->ctx);
}

struct peri__nn_kernels {
  /* y = softmax or log softmax of rows of n. */
  void (*softmax)(const float *x, float *y, int64_t rows, int64_t n, bool logs);
  /* dx = y (g - sum(g y)), or g - exp(y) sum(g). */
  void (*softmax_back)(const float *y, const float *g, float *dx, int64_t rows, int64_t n,
                       bool logs);
  /* The same along the first dim of (n, ld), for columns [0, m). */
  void (*softmax_cols)(const float *x, float *y, int64_t n, int64_t ld, int64_t m, bool logs);
  void (*softmax_back_cols)(const float *y, const float *g, float *dx, int64_t n, int64_t ld,
                            int64_t m, bool logs);
  void (*norm)(const struct peri__norm *a, int64_t row0, int64_t row1);
  /* dx of the rows; dw, db (n)? += g xhat and g of these rows, one by one. */
  void (*norm_back)(const struct peri__norm_back *a, int64_t row0, int64_t row1, float *dw,
                    float *db);
  /* sum[0], sum[1] += the sums of x - mean and (x - mean)^2, or of g and g (x - mean) rstd; g? */
  void (*channel_sums)(const float *x, const float *g, int64_t n, float mean, float rstd,
                       double sum[2]);
  /* y = (x - mean) a + b, + g e where there is g */
  void (*channel_scale)(const float *x, const float *g, int64_t n, float mean, float a, float b,
                        float e, float *y);
  /* c = scale cos(angle), s = scale sin(angle), |angle| < 2^20; each within an ULP of f32. */
  void (*sincos)(int64_t n, const float *angle, float scale, float *c, float *s);
  /* Rotate pairs of the first 2 n channels of heads x D by the angles of c, s (n). */
  void (*rope)(const float *x, float *y, int64_t heads, int64_t x_head, int64_t D, int64_t n,
               const float *c, const float *s, bool interleaved, bool inverse);
  /* mask[i] = 1 where bits 8.. of word 4 block + i of the stream are at least limit, i < n. */
  void (*dropout_mask)(peri_rng rng, uint64_t block, int64_t n, uint32_t limit, uint8_t *mask);
  /* y = mask[i] ? x scale : 0 */
  void (*dropout)(const float *x, const uint8_t *mask, float scale, float *y, int64_t n);
  /* Attention runs in units; units never depend on each other. scratch is floats of one worker,
  ** aligned as blocks are. */
  int64_t (*attn_units)(struct peri__attn *a); /* sets a->rows */
  int64_t (*attn_scratch)(const struct peri__attn *a);
  void (*attn)(const struct peri__attn *a, int64_t unit, float *scratch);
  int64_t (*attn_back_scratch)(const struct peri__attn *a);
  void (*attn_back)(const struct peri__attn *a, int64_t unit, float *scratch); /* B * Hkv units */
  const peri__cells_fn (*cells)[2]; /* [kind][backward]: cpu/recurrent.h */
};

/* Attention in f64, for gradient checks: the same struct with pointers to doubles. Units are
** B * Hkv both ways. op/attention_f64.c */
void peri__attn_f64 (const struct peri__attn *a, int64_t unit);
void peri__attn_back_f64 (const struct peri__attn *a, int64_t unit);

#ifdef PERI_LEVEL
extern const struct peri__nn_kernels PERI_NAME(peri__nn);
/* What simd_nn.c collects from the other files. */
void PERI_NAME(peri__norm_rows)(const struct peri__norm *a, int64_t row0, int64_t row1);
void PERI_NAME(peri__norm_back_rows)(const struct peri__norm_back *a, int64_t row0, int64_t row1,
                                     float *dw, float *db);
void PERI_NAME(peri__channel_sums)(const float *x, const float *g, int64_t n, float mean,
                                   float rstd, double sum[2]);
void PERI_NAME(peri__channel_scale)(const float *x, const float *g, int64_t n, float mean, float a,
                                    float b, float e, float *y);
int64_t PERI_NAME(peri__attn_units)(struct peri__attn *a);
int64_t PERI_NAME(peri__attn_scratch)(const struct peri__attn *a);
void PERI_NAME(peri__attn_unit)(const struct peri__attn *a, int64_t unit, float *scratch);
int64_t PERI_NAME(peri__attn_back_scratch)(const struct peri__attn *a);
void PERI_NAME(peri__attn_back_unit)(const struct peri__attn *a, int64_t unit, float *scratch);
#endif

#endif
