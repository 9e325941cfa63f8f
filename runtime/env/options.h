/*
** options.h - options of built-in environments that are not any number.
*/
#ifndef peri_env_options_h
#define peri_env_options_h

#include "core/core.h"

/* An integer; options are refused where it is none. */
static inline peri_status env_whole (const peri_env_args *args, const char *name, int64_t *out) {
  double v = peri_env_number(args, name);
  *out = (int64_t)v;
  if ((double)*out == v) return PERI_OK;
  return peri_env_refuse(args, "option '%s' is %g, expected an integer", name, v);
}

/* Yes or no, 1 or 0. */
static inline peri_status env_flag (const peri_env_args *args, const char *name, bool *out) {
  double v = peri_env_number(args, name);
  *out = v != 0;
  if (v == 0 || v == 1) return PERI_OK;
  return peri_env_refuse(args, "option '%s' is %g, expected true or false", name, v);
}

#endif
