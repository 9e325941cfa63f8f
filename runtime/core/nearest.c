/* nearest.c - the name that somebody meant who wrote another one, for messages. */
#include <string.h>

#include "core/core.h"

/* Optimal string alignment distance: insert, delete, replace, swap of neighbours. */
static int distance (const char *a, const char *b) {
  enum { MAX = 32 };
  int n = (int)strlen(a), m = (int)strlen(b), row[3][MAX + 1];
  if (n > MAX || m > MAX) return MAX;
  for (int j = 0; j <= m; j++) row[0][j] = j;
  for (int i = 1; i <= n; i++) {
    int *now = row[i % 3], *last = row[(i + 2) % 3], *before = row[(i + 1) % 3];
    now[0] = i;
    for (int j = 1; j <= m; j++) {
      int best = last[j - 1] + (a[i - 1] != b[j - 1]);
      if (last[j] + 1 < best) best = last[j] + 1;
      if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
          before[j - 2] + 1 < best)
        best = before[j - 2] + 1;
      now[j] = best;
    }
  }
  return row[n % 3][m];
}

const char *peri__nearest (const char *word, const char *(*name_at)(void *ud, int i), void *ud) {
  const char *best = NULL, *name;
  int n = (int)strlen(word), least = n < 6 ? 2 : n / 3 + 1; /* one letter in short words */
  for (int i = 0; (name = name_at(ud, i)) != NULL; i++) {
    int d = distance(word, name);
    if (d < least) {
      least = d;
      best = name;
    }
  }
  return best;
}
