/*
** table.h - environments that are a table: for each state and action the outcomes with their
** probabilities, and a distribution of first states. FrozenLake, CliffWalking, Taxi and the
** gridworld fill one when they are configured; drawing from it is done here, as Gymnasium does it.
*/
#ifndef peri_env_table_h
#define peri_env_table_h

#include "core/core.h"

struct peri__table {
  int64_t nstates, nactions;
  int most;                  /* outcomes that one pair may have */
  int *count;                /* (nstates * nactions) outcomes of each pair */
  peri_env_outcome *outcome; /* (nstates * nactions, most) */
  double *first;             /* (nstates) running sums of the first state's probabilities */
};

/* An empty table that lives as long as the environment; NULL without memory. */
struct peri__table *peri__table_new (const peri_env_args *args, int64_t nstates, int64_t nactions,
                                     int most);
void peri__table_add (struct peri__table *t, int64_t state, int64_t action, double p, int64_t next,
                      double reward, bool terminated);
/* Every state s with weight[s] != 0 may be the first, in proportion. */
void peri__table_first (struct peri__table *t, const double *weight);

/* The next state's draw; one number of rng each. */
int64_t peri__table_start (const struct peri__table *t, peri_pcg64 *rng);
const peri_env_outcome *peri__table_draw (const struct peri__table *t, int64_t state,
                                          int64_t action, peri_pcg64 *rng);
/* A whole step of an environment whose state is the int64_t that it observes. */
peri_status peri__table_step (const struct peri__table *t, int64_t *state, peri_pcg64 *rng,
                              const peri_env_io *io);
/* A definition's model: outcomes of a pair, or the first states where state is -1; -1
** where there is no such state or action. */
int peri__table_model (const struct peri__table *t, int64_t state, int64_t action, int max,
                       peri_env_outcome *out);

/* ---- grids: cells in rows, four moves ---- */

/* The map of a text whose lines (ends of line, / or commas between them) are rows: cells, without the
** ends. Refuses rows of several lengths and letters that are not in `letters`. */
peri_status peri__grid_read (const peri_env_args *args, const char *option, const char *text,
                             const char *letters, char **cells, int64_t *rows, int64_t *columns);
/* A text picture: the agent's cell in brackets. */
peri_status peri__grid_text (const char *cells, int64_t rows, int64_t columns, int64_t agent,
                             char *out, size_t size);
/* The same drawn: cells of 64 units, walls, holes and goals by their letters. */
peri_status peri__grid_render (const char *cells, int64_t rows, int64_t columns, int64_t agent,
                               peri_frame *frame);

#endif
