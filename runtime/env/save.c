/*
** save.c - environments as bytes: state, generator, time, statistics and the rows of every buffer, so that what is
** loaded goes on as what was saved would have. Always by rows, however the batch stores states.
*/
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "env/env.h"

typedef struct header {
  char magic[8];
  uint64_t id; /* FNV-1a of the id */
  uint32_t agents, state_bytes, obs_bytes, nmetrics;
  int64_t legal, elapsed; /* elapsed: steps of the episode */
} header;

static uint64_t hash_of (const char *s) {
  uint64_t h = 0xcbf29ce484222325u;
  for (; *s; s++) h = (h ^ (unsigned char)*s) * 0x100000001b3u;
  return h;
}

static header header_of (const peri_env *e, int64_t i) {
  return (header){ .magic = "perienv1",
                   .id = hash_of(e->def.id),
                   .agents = (uint32_t)e->agents,
                   .state_bytes = (uint32_t)e->state_bytes,
                   .obs_bytes = (uint32_t)e->obs_bytes,
                   .nmetrics = (uint32_t)e->spec.nmetrics,
                   .legal = e->legal ? e->spec.action.n : 0,
                   .elapsed = e->tick - e->started[i] };
}

/* Walk over everything of environment i but header and state. */
static unsigned char *walk (peri_env *e, int64_t i, unsigned char *at, bool load) {
  const size_t row = (size_t)(i * e->agents), agents = (size_t)e->agents;
  const struct {
    void *p;
    size_t each;
  } part[] = {
    { e->obs, e->obs_bytes },
    { e->final_obs, e->obs_bytes },
    { e->reward, sizeof *e->reward },
    { e->sum, sizeof *e->sum },
    { e->episode_return, sizeof *e->episode_return },
    { e->episode_length, sizeof *e->episode_length },
    { e->metric, (size_t)e->spec.nmetrics * sizeof *e->metric },
    { e->terminated, 1 },
    { e->truncated, 1 },
    { e->valid, 1 },
    { e->live, 1 },
    { e->over, 1 },
    { e->kept, 1 },
    { e->legal, e->legal ? (size_t)e->spec.action.n : 0 },
  };
  void *rng = &e->rng[i];
  if (load)
    memcpy(rng, at, sizeof *e->rng);
  else
    memcpy(at, rng, sizeof *e->rng);
  at += sizeof *e->rng;
  for (size_t k = 0; k < sizeof part / sizeof *part; k++) {
    if (!part[k].p) continue;
    size_t n = agents * part[k].each;
    unsigned char *here = (unsigned char *)part[k].p + row * part[k].each;
    if (load)
      memcpy(here, at, n);
    else
      memcpy(at, here, n);
    at += n;
  }
  return at;
}

size_t peri_env_save_size (const peri_env *e) {
  if (!e) return 0;
  size_t row = 2 * e->obs_bytes + 4 * 8 + (size_t)e->spec.nmetrics * sizeof(float) + 5 +
               (e->live != NULL) + (e->legal ? (size_t)e->spec.action.n : 0);
  return sizeof(header) + e->state_bytes + sizeof(peri_pcg64) + row * (size_t)e->agents;
}

static peri_status check_range (peri_env *e, int64_t i, size_t size, int64_t *first,
                                int64_t *last) {
  if (i < -1 || i >= e->n)
    return peri__fail(e->ctx, PERI_EINVAL, "%s: %" PRId64 " environments, no number %s", e->def.id,
                      e->n, peri__nth(e->ctx, i));
  *first = i < 0 ? 0 : i;
  *last = i < 0 ? e->n : i + 1;
  size_t want = peri_env_save_size(e) * (size_t)(*last - *first);
  if (size == want) return PERI_OK;
  return peri__fail(e->ctx, PERI_EINVAL,
                    "%s: a saved state has %zu bytes here, got %zu: of another environment or of "
                    "other options",
                    e->def.id, want, size);
}

peri_status peri_env_save (peri_env *e, int64_t i, void *out, size_t size) {
  if (!e) return PERI_EINVAL;
  NEED(e->ctx, out);
  int64_t first, last;
  TRY(check_range(e, i, size, &first, &last));
  if (!e->begun || e->broken)
    return peri__fail(e->ctx, PERI_EINVAL, "%s: there is nothing to save %s", e->def.id,
                      e->begun ? "of an environment that failed" : "before the first reset");
  unsigned char *at = out;
  for (i = first; i < last; i++) {
    header h = header_of(e, i);
    memcpy(at, &h, sizeof h);
    peri__env_state_copy(e, i, at + sizeof h);
    at = walk(e, i, at + sizeof h + e->state_bytes, false);
  }
  return PERI_OK;
}

peri_status peri_env_load (peri_env *e, int64_t i, const void *data, size_t size) {
  if (!e) return PERI_EINVAL;
  NEED(e->ctx, data);
  int64_t first, last;
  TRY(check_range(e, i, size, &first, &last));
  bool all = i < 0;
  if (!all && (!e->begun || e->broken))
    return peri__fail(e->ctx, PERI_EINVAL, "%s: one row is loaded after all were reset", e->def.id);
  const size_t each = peri_env_save_size(e);
  const unsigned char *from = data;
  for (i = first; i < last; i++) { /* all is checked before anything changes */
    header h, want = header_of(e, i);
    memcpy(&h, from + (size_t)(i - first) * each, sizeof h);
    want.elapsed = h.elapsed;
    if (memcmp(&h, &want, sizeof h) != 0 || h.elapsed < 0)
      return peri__fail(e->ctx, PERI_EINVAL, "%s: these bytes are no saved state of it", e->def.id);
  }
  for (i = first; i < last; i++, from += each) {
    header h;
    memcpy(&h, from, sizeof h);
    peri__env_state_set(e, i, from + sizeof h);
    walk(e, i, (unsigned char *)from + sizeof h + e->state_bytes, true);
    e->started[i] = e->tick - h.elapsed;
    e->deadline[i / e->block] = 0;
    for (int64_t row = i * e->agents; e->reward32 && row < (i + 1) * e->agents; row++)
      e->reward32[row] = (float)e->reward[row];
  }
  e->final_partial = e->any_over = true;
  if (all) e->begun = true, e->broken = false;
  return PERI_OK;
}
