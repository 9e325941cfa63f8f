/*
** policy.h - trained policies: a file that holds a network and how an action is chosen from what it
** says, run without Lua. Part of perilune.h.
*/
#ifndef perilune_policy_h
#define perilune_policy_h

#include "perilune.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A policy of one environment: observations in, actions out. It belongs to its context's thread. */
typedef struct peri_policy peri_policy;

/* Read a policy file (peri.rl.policy.save in Lua writes them). Nobody need vouch for it: spaces, program
** and tensors are checked, PERI_EFORMAT or the status that fits names what is wrong. The file is not
** needed afterwards. */
PERI_API peri_status peri_policy_load (peri_ctx *ctx, const char *path, peri_policy **out);
PERI_API void peri_policy_close (peri_policy *p); /* before its context; NULL is a no-op */
PERI_API const peri_space *peri_policy_obs (const peri_policy *p);    /* borrowed */
PERI_API const peri_space *peri_policy_action (const peri_policy *p); /* borrowed */
/* Id of the environment that it was trained on, "" where that was not said; borrowed. */
PERI_API const char *peri_policy_env (const peri_policy *p);
/* Numbers that a network gives of a row, and bytes of a mask: actions of a Discrete space, the sum of nvec, the
** size of a MultiBinary one. 0: the actions are not countable. */
PERI_API int64_t peri_policy_choices (const peri_policy *p);
/* Actions for n rows. obs: n rows of the observation space, dense. mask: NULL, or n rows of
** peri_policy_choices bytes, 0: not legal. action: n
** rows of the action space are written, Box actions within its bounds. deterministic: the most likely
** action, or the mean; else one is drawn by the context's generator. A recurrent policy keeps the state of
** each row from call to call; another n than at the last call is PERI_ESHAPE until peri_policy_restart. On
** failure neither action nor state has changed. */
PERI_API peri_status peri_policy_act (peri_policy *p, int64_t n, const void *obs,
                                      const uint8_t *mask, bool deterministic, void *action);
/* Before the first observation of an episode: forget what a recurrent policy remembers of the rows that
** are set among n, or of all where rows is NULL. Nothing happens to others. */
PERI_API peri_status peri_policy_restart (peri_policy *p, int64_t n, const uint8_t *rows);

#ifdef __cplusplus
}
#endif
#endif
