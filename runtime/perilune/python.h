/* perilune/python.h - environments of Python, in processes of their own. Part of perilune.h; its rules hold here. */
#ifndef perilune_python_h
#define perilune_python_h

#include "perilune/env.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct peri_python_options {
  uint32_t struct_size; /* set by peri_python_options_init */
  const char *python;   /* the program, looked for in PATH: "python3" */
  const char *options;  /* for the environment's constructor: a JSON object, "{}" */
  const char *path;     /* a folder where modules are looked for first, or "" */
  int workers;          /* processes that share the environments: 1; never more than environments */
  bool render;          /* make them with render_mode="rgb_array", for peri_env_draw */
  double timeout; /* seconds that a reset or a step may take: 60. Starting has a minute at least */
} peri_python_options;
PERI_API void peri_python_options_init (peri_python_options *o);

/* A batch of environments that run in Python: "gymnasium:CartPole-v1", "pettingzoo:mpe.simple_spread_v3" (its parallel
** form: agents are rows), "file:PATH:FUNCTION" (what the function returns). p, o: NULL for the defaults. To all else it is a
** batch like any other; its state is elsewhere, so that it can be neither saved nor loaded. The processes need Python 3
** with the package; they see nothing of this process but a socket and the memory in common, and end with the batch, or
** with this process however that ends. What they print is kept for messages. A process that dies, raises or does not
** answer in time fails the step, and the message says which environment it was and why. */
PERI_API peri_status peri_env_python (peri_ctx *ctx, const char *name, const peri_python_options *p,
                                      const peri_env_options *o, peri_env **out);

#ifdef __cplusplus
}
#endif
#endif
