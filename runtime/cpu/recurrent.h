/*
** recurrent.h - one layer of LSTM or GRU cells over time: what op/recurrent.c asks for, and who does
** it. Sequences are (B, T, ...), row-major; the products with x are done before and behind, as they
** do not depend on the order of steps.
**
** Gates stand in PyTorch's order: input, forget, cell, output of an LSTM; reset, update, new of a
** GRU. Of every step are saved the gates behind their activations and, of an LSTM, the cell c; of a
** GRU, W_hn h + b_hn, which the reset gate was multiplied with.
*/
#ifndef peri_recurrent_h
#define peri_recurrent_h

#include "cpu/cpu.h"

enum { PERI_LSTM, PERI_GRU };

static inline int64_t peri__cell_gates (int kind) { return kind == PERI_LSTM ? 4 : 3; }
static inline int64_t peri__cell_saves (int kind) { return kind == PERI_LSTM ? 5 : 4; }

/* Elements are f32 or f64. Pointers marked ? may be NULL. G gates, S = saves. */
struct peri__recurrent {
  int kind;
  bool reverse; /* from the last step to the first */
  int64_t B, T, H;
  const void *w;          /* weight_hh, (G, H, H) */
  const void *bias_n;     /* (H)?, GRU: of what the reset gate is multiplied with */
  const void *h0, *c0;    /* (B, H)?, zeros where NULL; c0 of an LSTM */
  const uint8_t *starts;  /* (B, T)?: a new sequence begins here, with zeros for a state */
  const int64_t *lengths; /* (B)?: steps from here on are none */
  void *saved;            /* (B, T, S, H); forward: begins with W x + b in the first G */
  void *y;                /* (B, T, H) */
  void *hn, *cn;          /* forward: (B, H) */
  const void *gy;         /* backward: (B, T, H)? */
  const void *ghn, *gcn;  /* (B, H)? */
  void *dx, *dh;          /* (B, T, G, H): of W x + b and of W_hh h + b; one of an LSTM */
  void *before;           /* (B, T, H): the state that each step began with */
  void *dh0, *dc0;        /* (B, H)? */
};

enum { PERI_FROM_ZERO = -2, PERI_FROM_INITIAL = -1 };

static inline int64_t peri__row_steps (const struct peri__recurrent *r, int64_t b) {
  return r->lengths != NULL ? r->lengths[b] : r->T;
}

/* Where the state comes from that step t of row b begins with: a step, or one of the two above. */
static inline int64_t peri__step_before (const struct peri__recurrent *r, int64_t b, int64_t t) {
  const uint8_t *starts = r->starts != NULL ? r->starts + b * r->T : NULL;
  if (!r->reverse) {
    if (starts != NULL && starts[t]) return PERI_FROM_ZERO;
    return t > 0 ? t - 1 : PERI_FROM_INITIAL;
  }
  if (t + 1 >= peri__row_steps(r, b)) return PERI_FROM_INITIAL;
  return starts != NULL && starts[t + 1] ? PERI_FROM_ZERO : t + 1;
}

/* Zeros where there is no step, and the state behind the last one: both precisions. size: of an
** element. */
void peri__recurrent_rest (const struct peri__recurrent *r, bool backward, size_t size);

peri_status peri__recurrent_f32 (peri_ctx *ctx, const struct peri__recurrent *r, bool backward);
void peri__recurrent_f64 (peri_ctx *ctx, const struct peri__recurrent *r, bool backward);

/*
** One step of rows [row0, row1) and units [unit0, unit1), f32. Row i is step at[i] of all B T, and its
** state is in slot i: h + i * ld. Whole vectors of the states and of the products are read and written,
** also beyond unit1.
*/
struct peri__cells {
  int64_t row0, row1, unit0, unit1, H;
  const int64_t *at;
  float *saved, *y;
  int64_t ld;            /* of the states */
  float *h;              /* forward: the new state */
  float *c;              /* forward, LSTM: the cell, former and new */
  const float *h_former; /* forward, GRU */
  const float *bias_n;   /* forward, GRU: (H)? */
  const float *wh; /* forward: products with the former h; gate g of row i, unit unit0, is at */
  int64_t wh_ld, wh_gate;                         /* i * wh_ld + g * wh_gate */
  const float *const *h_before, *const *c_before; /* backward: of each row, NULL = reset */
  const float *gy;                                /* backward: as y, ? */
  float *gh, *gc; /* backward: gradients of the states behind the step; then of those before it, */
                  /* gh but for what comes through W_hh */
  float *dx, *dh, *before; /* backward: as in peri__recurrent */
  float *dh_too;           /* backward: dh once more, row i at i * too_ld */
  int64_t too_ld;
};

typedef void (*peri__cells_fn)(const struct peri__cells *c);

#ifdef PERI_LEVEL
extern const peri__cells_fn PERI_NAME(peri__cells)[2][2]; /* [kind][backward] */
#endif

#endif
