/*
** packed_quant.c - quantised weights laid out for products: panels as cpu/quant.h has them. A
** product rounds x once, then threads share the panels.
*/
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/quant.h"
#include "weight/weight.h"

/* ---- layout ---- */

size_t peri__quant_packed_bytes (const struct peri__cpu *cpu, peri_dtype d, int64_t n, int64_t k) {
  const struct peri__quant_kernels *q = cpu->quant;
  peri__quant_format f = peri__quant_format_of(d, q->byte_bias);
  return (size_t)((n + q->width - 1) / q->width) * peri__quant_panel_bytes(&f, q->width, k / 32);
}

/* What a file's block of 32 (or an eighth of one of 256) says: codes from 0 on, as f counts them. */
static void file_codes (peri_dtype d, int j, const uint8_t *b, uint8_t bias, uint8_t *out) {
  const uint8_t *low, *high;
  switch (d) {
  case PERI_Q8_0:
    for (int i = 0; i < 32; i++) out[i] = (uint8_t)(b[2 + i] + bias);
    return;
  case PERI_Q4_0:
  case PERI_Q4_1:
  case PERI_Q5_0:
  case PERI_Q5_1:
    b += d == PERI_Q4_0 || d == PERI_Q5_0 ? 2 : 4;
    high = b;
    low = d == PERI_Q5_0 || d == PERI_Q5_1 ? b + 4 : b;
    for (int i = 0; i < 32; i++) {
      out[i] = i < 16 ? low[i] & 15 : low[i - 16] >> 4;
      if (low != high) out[i] |= (uint8_t)((high[i / 8] >> i % 8 & 1) << 4);
    }
    return;
  case PERI_Q4_K:
  case PERI_Q5_K:
    low = b + (d == PERI_Q4_K ? 16 : 48) + j / 2 * 32;
    for (int i = 0; i < 32; i++) {
      out[i] = j & 1 ? low[i] >> 4 : low[i] & 15;
      if (d == PERI_Q5_K) out[i] |= (uint8_t)((b[16 + i] >> j & 1) << 4);
    }
    return;
  default: /* q6_K: halves of 4 groups */
    low = b + j / 4 * 64 + j % 2 * 32;
    high = b + 128 + j / 4 * 32;
    for (int i = 0; i < 32; i++) {
      out[i] = j % 4 < 2 ? low[i] & 15 : low[i] >> 4;
      out[i] |= (uint8_t)((high[i] >> 2 * (j % 4) & 3) << 4);
    }
    return;
  }
}

/* Code i of a block in place r of a panel `w` rows wide. */
static void put_code (int bits, int w, int r, int i, uint8_t code, uint8_t *block) {
  int group = i / 4, at = 4 * r + i % 4, vector = 4 * w;
  if (bits == 8) {
    block[group * vector + at] = code;
    return;
  }
  block[group % 4 * vector + at] |= (uint8_t)((code & 15) << group / 4 * 4);
  if (bits == 5) block[4 * vector + at] |= (uint8_t)(code >> 4 << group);
  if (bits == 6) block[(4 + group / 4) * vector + at] |= (uint8_t)(code >> 4 << group % 4 * 2);
}

static uint8_t get_code (int bits, int w, int r, int i, const uint8_t *block) {
  int group = i / 4, at = 4 * r + i % 4, vector = 4 * w;
  if (bits == 8) return block[group * vector + at];
  int code = block[group % 4 * vector + at] >> group / 4 * 4 & 15;
  if (bits == 5) code |= (block[4 * vector + at] >> group & 1) << 4;
  if (bits == 6) code |= (block[(4 + group / 4) * vector + at] >> group % 4 * 2 & 3) << 4;
  return (uint8_t)code;
}

/* Six-bit scale and minimum of group j of q4_K and q5_K, from byte 4 of the block on. */
static uint8_t six_scale (const uint8_t *q, int j) {
  return (uint8_t)(j < 4 ? q[j] & 63 : (q[j + 4] & 15) | q[j - 4] >> 6 << 4);
}
static uint8_t six_min (const uint8_t *q, int j) {
  return (uint8_t)(j < 4 ? q[j + 4] & 63 : q[j + 4] >> 4 | q[j] >> 6 << 4);
}

/* What row r of a record has beside codes: of block j, or of all 8. */
static void put_scales (peri_dtype d, int w, int r, int j, const uint8_t *b, uint8_t *scales) {
  switch (d) {
  case PERI_Q4_1:
  case PERI_Q5_1:
    memcpy(scales + 4 * w * j + 2 * r, b, 2);
    memcpy(scales + 4 * w * j + 2 * w + 2 * r, b + 2, 2);
    return;
  case PERI_Q4_K:
  case PERI_Q5_K:
    memcpy(scales + 2 * r, b, 2);
    memcpy(scales + 2 * w + 2 * r, b + 2, 2);
    for (int i = 0; i < 8; i++) {
      scales[(4 + i) * w + r] = six_scale(b + 4, i);
      scales[(12 + i) * w + r] = six_min(b + 4, i);
    }
    return;
  case PERI_Q6_K:
    memcpy(scales + 2 * r, b + 208, 2);
    for (int i = 0; i < 16; i++) scales[(2 + i) * w + r] = b[192 + i];
    return;
  default: memcpy(scales + 2 * w * j + 2 * r, b, 2); return;
  }
}

typedef struct pack_job {
  const struct peri__quant_kernels *q;
  peri_dtype d;
  int64_t n, blocks;
  const uint8_t *rows;
  uint8_t *out;
} pack_job;

static void pack_panels (void *ud, int64_t begin, int64_t end, int worker) {
  const pack_job *j = ud;
  const int width = j->q->width;
  const peri__quant_format f = peri__quant_format_of(j->d, j->q->byte_bias);
  const size_t panel = peri__quant_panel_bytes(&f, width, j->blocks);
  size_t file_bytes;
  const int per_file = peri_dtype_block(j->d, &file_bytes) / 32;
  const size_t row_bytes = (size_t)(j->blocks / per_file) * file_bytes;
  const size_t block_bytes = peri__quant_code_bytes(&f, width);
  (void)worker;
  for (int64_t p = begin; p < end; p++) {
    uint8_t *out = j->out + (size_t)p * panel;
    memset(out, 0, panel); /* rows of padding: scales of 0 */
    for (int64_t first = 0; first < j->blocks; first += f.span) {
      int count = j->blocks - first < f.span ? (int)(j->blocks - first) : f.span;
      uint8_t *codes = out + peri__quant_scale_bytes(&f, width, count);
      for (int r = 0; r < width && p * width + r < j->n; r++) {
        const uint8_t *row = j->rows + (size_t)(p * width + r) * row_bytes;
        for (int b = 0; b < count; b++) {
          const uint8_t *file = row + (size_t)((first + b) / per_file) * file_bytes;
          uint8_t code[32];
          file_codes(j->d, b, file, (uint8_t)f.bias, code);
          for (int i = 0; i < 32; i++)
            put_code(f.bits, width, r, i, code[i], codes + (size_t)b * block_bytes);
          if (per_file == 1 || b == 0) put_scales(j->d, width, r, b, file, out);
        }
      }
      out = codes + (size_t)count * block_bytes;
    }
  }
}

void peri__quant_pack (peri_ctx *ctx, peri_dtype d, int64_t n, int64_t k, const void *rows,
                       void *out) {
  pack_job j = { ctx->cpu->quant, d, n, k / 32, rows, out };
  int64_t panels = (n + j.q->width - 1) / j.q->width;
  peri__parallel(ctx, panels, 65536 / (k * j.q->width) + 1, pack_panels, &j);
}

static float half_at (const uint8_t *p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return peri__f16_to_f32(h);
}

/* Scale of row r in block j of a record, and its minimum or the scale of its second half. */
static void get_scales (peri_dtype d, int w, int r, int j, const uint8_t *s, float *one,
                        float *two) {
  *one = half_at(s + 2 * r);
  *two = 0;
  switch (d) {
  case PERI_Q4_1:
  case PERI_Q5_1:
    *one = half_at(s + 4 * w * j + 2 * r);
    *two = half_at(s + 4 * w * j + 2 * w + 2 * r);
    return;
  case PERI_Q4_K:
  case PERI_Q5_K:
    *one *= (float)s[(4 + j) * w + r];
    *two = -(half_at(s + 2 * w + 2 * r) * (float)s[(12 + j) * w + r]);
    return;
  case PERI_Q6_K:
    *two = *one * (float)(int8_t)s[(3 + 2 * j) * w + r];
    *one *= (float)(int8_t)s[(2 + 2 * j) * w + r];
    return;
  default: *one = half_at(s + 2 * w * j + 2 * r); return;
  }
}

void peri__quant_row (const struct peri__cpu *cpu, peri_dtype d, int64_t n, int64_t k,
                      const void *w, int64_t i, float *out) {
  const int width = cpu->quant->width, r = (int)(i % width);
  const peri__quant_format f = peri__quant_format_of(d, cpu->quant->byte_bias);
  const int64_t blocks = k / 32;
  const uint8_t *record =
      (const uint8_t *)w + (size_t)(i / width) * peri__quant_panel_bytes(&f, width, blocks);
  (void)n;
  for (int64_t first = 0; first < blocks; first += f.span) {
    int count = blocks - first < f.span ? (int)(blocks - first) : f.span;
    const uint8_t *codes = record + peri__quant_scale_bytes(&f, width, count);
    for (int j = 0; j < count; j++, codes += peri__quant_code_bytes(&f, width), out += 32) {
      float one, two;
      get_scales(d, width, r, j, record, &one, &two);
      for (int t = 0; t < 32; t++) {
        int code = get_code(f.bits, width, r, t, codes) - f.bias;
        if (f.bits == 8 && f.bias == 0 && code > 127) code -= 256;
        if (f.kind == PERI_QUANT_MIN)
          out[t] = one * (float)code + two;
        else
          out[t] = (f.kind == PERI_QUANT_HALF && t >= 16 ? two : one) * (float)code;
      }
    }
    record = codes;
  }
}

/* ---- products ---- */

/* Rows of x that one piece of work takes: they stay in a core's cache while panels pass. */
enum { CHUNK = 128 };

typedef struct product_job {
  const struct peri__quant_kernels *q;
  peri_dtype d;
  peri__quant_format f;
  const peri__packed_product *p;
  int64_t blocks, panels;
  int8_t *codes;        /* m * k */
  peri__quant_block *x; /* m * blocks */
  char *scratch;        /* of each worker: a panel's codes and scales */
  size_t scratch_bytes;
} product_job;

/* Rows of the tile that begins at row i; tiles never straddle a chunk. */
static int tile_at (const product_job *j, int64_t i) {
  int64_t left = j->p->m - i;
  int rows = j->q->tile;
  while (rows > left) rows /= 2;
  return rows;
}

/* begin is where a tile begins. */
static void round_rows (const product_job *j, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end;) {
    int rows = tile_at(j, i);
    for (int r = 0; r < rows; r++)
      j->q->round(j->f.kind, j->f.bias, j->blocks, j->p->x + (i + r) * j->p->xrs, rows,
                  j->codes + i * j->p->k + 32 * r, j->x + i * j->blocks + r);
    i += rows;
  }
}

static void round_tiles (void *ud, int64_t begin, int64_t end, int worker) {
  const product_job *j = ud;
  int64_t last = end * j->q->tile;
  (void)worker;
  round_rows(j, begin * j->q->tile, last < j->p->m ? last : j->p->m);
}

static void gemv_panels (void *ud, int64_t begin, int64_t end, int worker) {
  const product_job *j = ud;
  const peri__packed_product *p = j->p;
  size_t panel = peri__quant_panel_bytes(&j->f, j->q->width, j->blocks);
  int64_t first = begin * j->q->width, last = end * j->q->width;
  (void)worker;
  j->q->gemv(j->d, j->blocks, (last < p->n ? last : p->n) - first,
             (const uint8_t *)p->w + (size_t)begin * panel, j->codes, j->x,
             p->bias ? p->bias + first : NULL, p->y + first);
}

/*
** Panels in a piece: long runs, as each start costs what a kilobyte costs, in as few pieces as keep
** all threads busy; the last of a large W are small enough to end together.
*/
static int64_t gemv_grain (const peri_ctx *ctx, const product_job *j) {
  int64_t panel = (int64_t)peri__quant_panel_bytes(&j->f, j->q->width, j->blocks);
  int64_t threads = peri_threads(ctx), share = (j->panels + threads - 1) / threads;
  int64_t least = 16384 / panel + 1, most = (threads == 1 ? 1 << 24 : 1 << 19) / panel + 1;
  return share < least ? least : share < most ? share : most;
}

/* Pieces count panels, chunk by chunk. */
static void tile_panels (void *ud, int64_t begin, int64_t end, int worker) {
  const product_job *j = ud;
  const peri__packed_product *p = j->p;
  const int width = j->q->width;
  size_t panel = peri__quant_panel_bytes(&j->f, width, j->blocks);
  uint8_t *codes = (uint8_t *)j->scratch + (size_t)worker * j->scratch_bytes;
  float *scales = (float *)(void *)(codes + (size_t)j->blocks * 32 * (size_t)width);
  for (int64_t at = begin; at < end; at++) {
    int64_t row = at / j->panels * CHUNK
    , first = at % j->panels * width;
    int64_t last = row + CHUNK
    < p->m ? row + CHUNK : p->m;
    int n = p->n - first < width ? (int)(p->n - first) : width;
    const uint8_t *w = (const uint8_t *)p->w + (size_t)(at % j->panels) * panel;
    const uint8_t *next = at + 1 < end && first + width < p->n ? w + panel : NULL;
    j->q->unpack(j->d, j->blocks, w, codes, scales);
    while (row < last) {
      int rows = tile_at(j, row);
      j->q->tile_product(j->d, j->blocks, codes, scales, rows, j->codes + row * p->k,
                         j->x + row * j->blocks, p->bias ? p->bias + first : NULL,
                         p->y + row * p->n + first, p->n, n, next, panel / (size_t)j->blocks);
      next = NULL;
      row += rows;
    }
  }
}

static size_t aligned (size_t bytes) { return (bytes + PERI_ALIGN - 1) / PERI_ALIGN * PERI_ALIGN; }

peri_status peri__quant_product (peri_ctx *ctx, peri_dtype d, const peri__packed_product *p) {
  const struct peri__quant_kernels *q = ctx->cpu->quant;
  product_job j = { .q = q,
                    .d = d,
                    .f = peri__quant_format_of(d, q->byte_bias),
                    .p = p,
                    .blocks = p->k / 32,
                    .panels = (p->n + q->width - 1) / q->width };
  if (p->m == 0 || p->n == 0) return PERI_OK;
  size_t codes = aligned((size_t)p->m * (size_t)p->k);
  size_t x = aligned((size_t)p->m * (size_t)j.blocks * sizeof *j.x);
  /* A code and at most two scales for each row and block. */
  j.scratch_bytes = aligned((size_t)q->width * (size_t)j.blocks * (32 + 2 * sizeof(float)));
  size_t workers = p->m > 1 ? (size_t)peri_threads(ctx) : 0;
  char *memory = peri__block_get(ctx, codes + x + workers * j.scratch_bytes);
  if (!memory)
    return peri__fail(ctx, PERI_ENOMEM, "out of memory for %lld rounded rows of %lld",
                      (long long)p->m, (long long)p->k);
  j.codes = (int8_t *)memory;
  j.x = (peri__quant_block *)(void *)(memory + codes);
  j.scratch = memory + codes + x;
  if (p->m == 1) {
    round_rows(&j, 0, 1);
    peri__parallel(ctx, j.panels, gemv_grain(ctx, &j), gemv_panels, &j);
  } else {
    int64_t tiles = (p->m + q->tile - 1) / q->tile, chunks = (p->m + CHUNK - 1) / CHUNK;
    int64_t grain = 65536 / (p->k * q->width * (p->m < CHUNK ? p->m : CHUNK)) + 1;
    peri__parallel(ctx, tiles, 16384 / (p->k * q->tile) + 1, round_tiles, &j);
    peri__parallel(ctx, j.panels * chunks, grain, tile_panels, &j);
  }
  peri__block_put(ctx, memory);
  return PERI_OK;
}
