/*
** env.h - built-in environments that step many rows at once, in f64 and bit for bit the same on
** every level.
*/
#ifndef peri_cpu_env_h
#define peri_cpu_env_h

#include <stdint.h>

#define PERI_CARTPOLE_X 2.4 /* an episode ends beyond these */
#define PERI_CARTPOLE_ANGLE (12 * 2 * 3.141592653589793 / 360)

struct peri__env_kernels { /* of file cpu/simd_env.c */
  /* CartPole, rows [begin, end) of states that are kept by columns: state[k * stride + row] is the
  ** position, its speed, the angle (within the bound above) and its speed for k = 0 to 3.
  ** action[row] is 0 or 1; obs (rows, 4). The reward is `over` where the step ends the episode,
  ** else `going`. */
  void (*cartpole)(double *state, int64_t stride, int64_t begin, int64_t end, const int64_t *action,
                   float *obs, double *reward, uint8_t *terminated, double going, double over);
};

#endif
