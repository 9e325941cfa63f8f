/*
** episode.c - returns and lengths of episodes that have ended, until somebody asks for them.
*/
#include <string.h>

#include "env/env.h"

enum { MOST = 1 << 16 };

/* The ring may be full: the oldest are dropped then. What is asked for here is that a step never allocates. */
peri_status peri__env_episode_room (peri_env *e) {
  int64_t want = e->episode_count + e->rows, cap = e->episode_cap ? e->episode_cap : 64;
  if (want > MOST) want = MOST;
  if (want <= e->episode_cap) return PERI_OK;
  while (cap < want) cap *= 2;
  peri_env_episode *ring = peri__malloc(e->ctx, (size_t)cap * sizeof *ring);
  if (!ring)
    return peri__fail(e->ctx, PERI_ENOMEM, "%s: out of memory for statistics of episodes",
                      e->def.id);
  for (int64_t i = 0; i < e->episode_count; i++)
    ring[i] = e->episode[(e->episode_first + i) % e->episode_cap];
  peri__free(e->ctx, e->episode, (size_t)e->episode_cap * sizeof *ring);
  e->episode = ring;
  e->episode_cap = cap;
  e->episode_first = 0;
  return PERI_OK;
}

void peri__env_episode_put (peri_env *e, peri_env_episode one) {
  if (e->episode_count == e->episode_cap) {
    e->episode_first = (e->episode_first + 1) % e->episode_cap;
    e->episode_count--;
    e->episode_dropped++;
  }
  e->episode[(e->episode_first + e->episode_count++) % e->episode_cap] = one;
}

bool peri_env_next_episode (peri_env *e, peri_env_episode *out) {
  if (!e || !out || e->episode_count == 0) return false;
  *out = e->episode[e->episode_first];
  e->episode_first = (e->episode_first + 1) % e->episode_cap;
  e->episode_count--;
  return true;
}

int64_t peri_env_dropped_episodes (const peri_env *e) { return e ? e->episode_dropped : 0; }
