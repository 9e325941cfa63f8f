/* profile.c - the profiler: op counts, time, arithmetic and traffic, one row an op name. */
#define _POSIX_C_SOURCE 200809L /* clock_gettime */

#include <string.h>
#include <time.h>

#include "core/core.h"

#define ROWS 512

struct peri_profile {
  int n;
  peri_profile_row row[ROWS];
};

double peri__now (void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void peri_profile_start (peri_ctx *ctx) {
  if (!ctx) return;
  if (!ctx->profile) ctx->profile = peri__malloc(ctx, sizeof *ctx->profile);
  if (ctx->profile)
    ctx->profile->n = 0;
  else
    peri_log(ctx, PERI_LOG_WARN, "no memory for the profiler: it stays off");
}

void peri_profile_stop (peri_ctx *ctx) {
  if (ctx) peri__profile_close(ctx);
}

void peri__profile_close (peri_ctx *ctx) {
  peri__free(ctx, ctx->profile, sizeof *ctx->profile);
  ctx->profile = NULL;
}

/* Names are the descriptors' own strings, so equal ops have equal pointers. */
void peri__profile_add (peri_ctx *ctx, const char *name, double seconds, double flops,
                        double bytes) {
  peri_profile *p = ctx->profile;
  int i = 0;
  while (i < p->n && p->row[i].name != name) i++;
  if (i == ROWS) return;
  if (i == p->n) p->row[p->n++] = (peri_profile_row){ .name = name };
  p->row[i].count++;
  p->row[i].seconds += seconds;
  p->row[i].flops += flops;
  p->row[i].bytes += bytes;
}

int peri_profile_rows (const peri_ctx *ctx, peri_profile_row *rows, int max) {
  const peri_profile *p = ctx ? ctx->profile : NULL;
  int n = 0;
  if (!p || !rows || max <= 0) return 0;
  for (int i = 0; i < p->n; i++) { /* insertion by time: a profile has tens of rows */
    int at = n < max ? n++ : max;
    for (; at > 0 && rows[at - 1].seconds < p->row[i].seconds; at--)
      if (at < max) rows[at] = rows[at - 1];
    if (at < max) rows[at] = p->row[i];
  }
  return n;
}
