/* sumtree.c - see sumtree.h. All points go down, and all changes up, level by level: their loads overlap. */
#include <math.h>

#include "env/sumtree.h"

static int64_t width_of (int64_t n) {
  int64_t w = 1;
  while (w < n) w *= 2;
  return w;
}

bool peri__sumtree_bytes (int64_t n, size_t *total) {
  if (n > INT64_C(1) << 56) return false;
  return !__builtin_add_overflow(*total, (size_t)width_of(n) * 4 * sizeof(double), total);
}

peri_status peri__sumtree_open (peri_ctx *ctx, int64_t n, peri__sumtree *t) {
  int64_t nodes = 2 * width_of(n);
  t->n = n;
  t->width = nodes / 2;
  TRY(peri__new(ctx, PERI_F64, 1, &nodes, &t->sum));
  TRY(peri__new(ctx, PERI_F64, 1, &nodes, &t->min));
  peri__sumtree_clear(t);
  return PERI_OK;
}

void peri__sumtree_close (peri__sumtree *t) {
  peri_release(t->sum);
  peri_release(t->min);
  t->sum = t->min = NULL;
}

void peri__sumtree_clear (peri__sumtree *t) {
  double *sum = (double *)t->sum->data, *min = (double *)t->min->data;
  for (int64_t i = 0; i < 2 * t->width; i++) sum[i] = 0, min[i] = INFINITY;
}

static void parent (double *sum, double *min, int64_t i) {
  sum[i] = sum[2 * i] + sum[2 * i + 1];
  min[i] = min[2 * i] < min[2 * i + 1] ? min[2 * i] : min[2 * i + 1];
}

void peri__sumtree_range (peri__sumtree *t, int64_t begin, int64_t end) {
  double *sum = (double *)t->sum->data, *min = (double *)t->min->data;
  if (begin >= end) return;
  for (int64_t i = t->width + begin; i < t->width + end; i++)
    min[i] = sum[i] > 0 ? sum[i] : INFINITY;
  int64_t low = t->width + begin, high = t->width + end - 1;
  for (low /= 2, high /= 2; low > 0; low /= 2, high /= 2)
    for (int64_t i = low; i <= high; i++) parent(sum, min, i);
}

void peri__sumtree_set (peri__sumtree *t, int64_t n, const int64_t *leaf, const double *value,
                        int64_t *node) {
  double *sum = (double *)t->sum->data, *min = (double *)t->min->data;
  for (int64_t k = 0; k < n; k++) {
    node[k] = t->width + leaf[k];
    sum[node[k]] = value[k];
    min[node[k]] = value[k] > 0 ? value[k] : INFINITY;
  }
  for (int64_t level = t->width; level > 1; level /= 2)
    for (int64_t k = 0; k < n; k++) parent(sum, min, node[k] /= 2);
}

void peri__sumtree_find (const peri__sumtree *t, int64_t n, double *point, int64_t *leaf) {
  const double *sum = (const double *)t->sum->data;
  for (int64_t k = 0; k < n; k++) leaf[k] = 1;
  for (int64_t level = t->width; level > 1; level /= 2)
    for (int64_t k = 0; k < n; k++) {
      int64_t left = 2 * leaf[k];
      /* rounding may leave a point at the very end: it stays where there is something. No branches:
      ** they would be guessed wrong half of the time */
      int right = (point[k] >= sum[left]) & (sum[left + 1] > 0);
      point[k] -= right * sum[left];
      leaf[k] = left + right;
    }
  for (int64_t k = 0; k < n; k++) leaf[k] -= t->width;
}
