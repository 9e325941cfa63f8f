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

int peri_profile_count (const peri_ctx *ctx) { return ctx && ctx->profile ? ctx->profile->n : 0; }

/* By insertion, each time: a profile has tens of rows, which are in order already but for the last. */
static void sort_rows (peri_profile *p) {
  for (int i = 1; i < p->n; i++) {
    peri_profile_row row = p->row[i];
    int at = i;
    for (; at > 0 && p->row[at - 1].seconds < row.seconds; at--) p->row[at] = p->row[at - 1];
    p->row[at] = row;
  }
}

peri_status peri_profile_at (peri_ctx *ctx, int i, peri_profile_row *out) {
  NEED(ctx, ctx);
  NEED(ctx, out);
  if (i < 0 || i >= peri_profile_count(ctx))
    return peri__fail(ctx, PERI_EINVAL, "row %s of a profile of %d", peri__nth(ctx, i),
                      peri_profile_count(ctx));
  sort_rows(ctx->profile);
  return peri__fill_out(ctx, out, &ctx->profile->row[i], sizeof *out, sizeof *out,
                        "peri_profile_row");
}
