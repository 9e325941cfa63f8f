/*
** table.c - draws from tables of outcomes, and maps given as text (see table.h).
*/
#include <string.h>

#include "env/toy/table.h"

struct peri__table *peri__table_new (const peri_env_args *args, int64_t nstates, int64_t nactions,
                                     int most) {
  size_t pairs = (size_t)(nstates * nactions);
  struct peri__table *t = peri_env_alloc(args, sizeof *t);
  int *count = peri_env_alloc(args, pairs * sizeof *count);
  peri_env_outcome *outcome = peri_env_alloc(args, pairs * (size_t)most * sizeof *outcome);
  double *first = peri_env_alloc(args, (size_t)nstates * sizeof *first);
  if (!t || !count || !outcome || !first) return NULL; /* args own what there is */
  *t = (struct peri__table){ nstates, nactions, most, count, outcome, first };
  return t;
}

void peri__table_add (struct peri__table *t, int64_t state, int64_t action, double p, int64_t next,
                      double reward, bool terminated) {
  int64_t pair = state * t->nactions + action;
  t->outcome[pair * t->most + t->count[pair]++] = (peri_env_outcome){
    .probability = p, .reward = reward, .next = next, .terminated = terminated
  };
}

void peri__table_first (struct peri__table *t, const double *weight) {
  double total = 0, sum = 0;
  for (int64_t s = 0; s < t->nstates; s++) total += weight[s];
  for (int64_t s = 0; s < t->nstates; s++) t->first[s] = sum += weight[s] / total;
}

/* numpy.argmax(cumulative > u): the first beyond u; 0 where rounding leaves the last sum below it.
** */
int64_t peri__table_start (const struct peri__table *t, peri_pcg64 *rng) {
  double u = peri_pcg64_double(rng);
  int64_t low = 0, high = t->nstates;
  while (low < high) { /* sums never fall */
    int64_t middle = low + (high - low) / 2;
    if (t->first[middle] > u)
      high = middle;
    else
      low = middle + 1;
  }
  return low < t->nstates ? low : 0;
}

const peri_env_outcome *peri__table_draw (const struct peri__table *t, int64_t state,
                                          int64_t action, peri_pcg64 *rng) {
  int64_t pair = state * t->nactions + action;
  const peri_env_outcome *o = t->outcome + pair * t->most;
  double u = peri_pcg64_double(rng), sum = 0;
  for (int i = 0; i < t->count[pair]; i++)
    if ((sum += o[i].probability) > u) return o + i;
  return o;
}

peri_status peri__table_step (const struct peri__table *t, int64_t *state, peri_pcg64 *rng,
                              const peri_env_io *io) {
  const peri_env_outcome *o = peri__table_draw(t, *state, *(const int64_t *)io->action, rng);
  *(int64_t *)io->obs = *state = o->next;
  *io->reward = o->reward;
  *io->terminated = o->terminated;
  return PERI_OK;
}

int peri__table_model (const struct peri__table *t, int64_t state, int64_t action, int max,
                       peri_env_outcome *out) {
  int n = 0;
  if (state == -1) {
    for (int64_t s = 0; s < t->nstates; s++) {
      double p = t->first[s] - (s ? t->first[s - 1] : 0);
      if (p > 0 && n++ < max) out[n - 1] = (peri_env_outcome){ .probability = p, .next = s };
    }
    return n;
  }
  if (state < 0 || state >= t->nstates || action < 0 || action >= t->nactions) return -1;
  int64_t pair = state * t->nactions + action;
  for (; n < t->count[pair]; n++)
    if (n < max) out[n] = t->outcome[pair * t->most + n];
  return n;
}

/* ---- grids ---- */

peri_status peri__grid_read (const peri_env_args *args, const char *option, const char *text,
                             const char *letters, char **cells, int64_t *rows, int64_t *columns) {
  char *grid = peri_env_alloc(args, strlen(text) + 1);
  if (!grid) return PERI_ENOMEM;
  int64_t n = 0, width = -1, height = 0;
  for (const char *line = text; *line;) {
    size_t length = strcspn(line, "\n/,");
    if (width >= 0 && (int64_t)length != width)
      return peri_env_refuse(args,
                             "option '%s': row %lld of the map has %zu cells, the first has %lld",
                             option, (long long)height + 1, length, (long long)width);
    for (size_t i = 0; i < length; i++) {
      if (!strchr(letters, line[i]))
        return peri_env_refuse(args, "option '%s': cell '%c' of row %lld is none of \"%s\"", option,
                               line[i], (long long)height + 1, letters);
      grid[n++] = line[i];
    }
    width = (int64_t)length;
    height++;
    line += length + (line[length] != '\0');
  }
  if (n == 0) return peri_env_refuse(args, "option '%s': the map is empty", option);
  *cells = grid;
  *rows = height;
  *columns = width;
  return PERI_OK;
}

peri_status peri__grid_text (const char *cells, int64_t rows, int64_t columns, int64_t agent,
                             char *out, size_t size) {
  size_t n = 0;
  for (int64_t i = 0; i < rows * columns; i++) {
    bool here = i == agent, last = (i + 1) % columns == 0;
    const char piece[] = { here ? '[' : ' ', cells[i], here ? ']' : ' ', '\n' };
    size_t length = last ? 4 : 3;
    if (n + length >= size) return PERI_EINVAL;
    memcpy(out + n, piece, length);
    n += length;
  }
  out[n] = '\0';
  return PERI_OK;
}

static uint32_t colour_of (char cell) {
  switch (cell) {
  case 'F': return 0xdcebf7; /* ice */
  case 'H': return 0x3b5b8c; /* hole */
  case 'C': return 0x7a5c3e; /* cliff */
  case 'X': return 0xb04040; /* pit */
  case '#': return 0x404040;
  case 'G': return 0xf2c94c;
  case 'S': return 0xcfe8cf;
  default: return 0xf4f1ea;
  }
}

peri_status peri__grid_render (const char *cells, int64_t rows, int64_t columns, int64_t agent,
                               peri_frame *frame) {
  const int64_t most = rows > columns ? rows : columns, side = most * 64 > 2048 ? 2048 / most : 64;
  if (side < 1) return PERI_ENOSUP;
  peri_frame_size(frame, (int)(columns * side), (int)(rows * side));
  peri_frame_background(frame, 0xb8b8b8);
  for (int64_t i = 0; i < rows * columns; i++) {
    double x = (double)(i % columns * side), y = (double)(i / columns * side);
    const char letter[] = { cells[i], 0 };
    peri_frame_rect(frame, x + 1, y + 1, (double)side - 2, (double)side - 2, colour_of(cells[i]));
    if (!strchr("F.#oHC", cells[i]))
      peri_frame_label(frame, x + 0.5 * (double)side, y + 0.5 * (double)side, 0.4 * (double)side,
                       letter, 0x404040);
  }
  double x = ((double)(agent % columns) + 0.5) * (double)side;
  double y = ((double)(agent / columns) + 0.5) * (double)side;
  peri_frame_circle(frame, x, y, 0.3 * (double)side, 0xd9534f);
  return peri_frame_check(frame);
}
