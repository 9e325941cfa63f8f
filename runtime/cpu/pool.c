/* pool.c - max pooling of planes: rows are laid out as for a convolution, see cpu/conv.h. */
#include <math.h>

#include "cpu/conv.h"

enum {
  LAID = 32 << 10,
  SMALL = 1 << 13
}; /* floats of a task's rows; taps below which one thread does */

typedef struct job {
  const struct peri__cpu *cpu;
  const peri__conv *s;
  const float *x;
  float *y;
  int32_t *at;
  peri__conv_rows rows;
  int64_t k, chunk, chunks; /* taps; output rows of a task */
  const int64_t *off;
  const int32_t *place;
  char *scratch;
  size_t each;
} job;

static int64_t least (int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most (int64_t a, int64_t b) { return a > b ? a : b; }

/* The first place of a window that is in the image, for windows without anything above -inf. */
static int32_t first_place (const peri__conv *s, int64_t y, int64_t x) {
  int64_t iy = y * s->sh - s->top, ix = x * s->sw - s->left;
  if (iy < 0) iy += (-iy + s->dh - 1) / s->dh * s->dh;
  if (ix < 0) ix += (-ix + s->dw - 1) / s->dw * s->dw;
  return (int32_t)(iy * s->w + ix);
}

static void max_task (void *ud, int64_t begin, int64_t end, int worker) {
  const job *j = ud;
  const peri__conv *s = j->s;
  float *laid = (float *)(j->scratch + (size_t)worker * j->each);
  int64_t row = peri__conv_row(&j->rows);
  for (int64_t t = begin; t < end; t++) {
    int64_t plane = t / j->chunks, y0 = t % j->chunks * j->chunk;
    int64_t y1 = least(y0 + j->chunk, s->oh);
    j->cpu->conv->lay(&j->rows, j->x + plane * s->h * s->w, y0 * s->sh - s->top,
                      (y1 - y0 - 1) * s->sh + (s->kh - 1) * s->dh + 1, laid);
    for (int64_t y = y0; y < y1; y++) {
      int64_t to = (plane * s->oh + y) * s->ow;
      int32_t base = (int32_t)((y * s->sh - s->top) * s->w - s->left);
      j->cpu->conv->max(j->k, j->off, j->place, laid + (y - y0) * s->sh * row, s->ow, base,
                        (int32_t)s->sw, j->y + to, j->at + to);
      for (int64_t x = 0; x < s->ow; x++)
        if (j->at[to + x] < 0) j->at[to + x] = first_place(s, y, x);
    }
  }
}

peri_status peri__pool_max (peri_ctx *ctx, const peri__conv *s, const float *x, float *y,
                            int32_t *at) {
  job j = { .cpu = ctx->cpu, .s = s, .x = x, .y = y, .at = at, .k = s->kh * s->kw };
  j.rows = (peri__conv_rows){
    .c = 1, .h = s->h, .w = s->w, .step = s->sw, .x0 = -s->left, .fill = -INFINITY
  };
  j.rows.xs = ((s->ow - 1) * s->sw + (s->kw - 1) * s->dw + s->sw) / s->sw;
  int64_t row = peri__conv_row(&j.rows), span = (s->kh - 1) * s->dh + 1;
  j.chunk = least(s->oh, most(1, LAID / row / s->sh));
  j.chunks = (s->oh + j.chunk - 1) / j.chunk;
  size_t taps = ((size_t)j.k * (sizeof(int64_t) + sizeof(int32_t)) + 63) & ~(size_t)63;
  j.each = (size_t)((((j.chunk - 1) * s->sh + span) * row + 64) * 4 + 63) & ~(size_t)63;
  size_t bytes = taps + j.each * (size_t)peri_threads(ctx);
  char *room = peri__block_get(ctx, bytes);
  if (room == NULL)
    return peri__fail(ctx, PERI_ENOMEM, "no memory for %zu bytes of scratch", bytes);
  int64_t *off = (int64_t *)(void *)room, k = 0;
  int32_t *place = (int32_t *)(void *)(off + j.k);
  for (int64_t ky = 0; ky < s->kh; ky++)
    for (int64_t kx = 0; kx < s->kw; kx++, k++) {
      off[k] = peri__conv_tap(&j.rows, 0, ky * s->dh, kx * s->dw);
      place[k] = (int32_t)(ky * s->dh * s->w + kx * s->dw);
    }
  j.off = off;
  j.place = place;
  j.scratch = room + taps;
  peri__parallel(ctx, s->n * j.chunks, SMALL / (j.chunk * s->ow * j.k) + 1, max_task, &j);
  peri__block_put(ctx, room);
  return PERI_OK;
}
