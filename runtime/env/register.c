/*
** register.c - definitions by their id: the built-in ones and those of a context; options that an environment is
** made with; the run of configure.
*/
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "env/env.h"

#define X(name) extern const peri_env_def peri__env_##name;
#include "env/list.h"
#undef X

static const peri_env_def *const builtin[] = {
#define X(name) &peri__env_##name,
#include "env/list.h"
#undef X
};
enum { NBUILTIN = sizeof builtin / sizeof *builtin };

struct peri__env_entry {
  peri_env_def def;
  struct peri__env_entry *next;
};

const peri_env_def *peri_env_at (const peri_ctx *ctx, int i) {
  if (!ctx || i < 0) return NULL;
  if (i < NBUILTIN) return builtin[i];
  const struct peri__env_entry *e = ctx->envs;
  for (i -= NBUILTIN; e && i > 0; i--) e = e->next;
  return e ? &e->def : NULL;
}

const peri_env_def *peri_env_find (const peri_ctx *ctx, const char *id) {
  if (!ctx || !id) return NULL;
  const peri_env_def *d;
  for (int i = 0; (d = peri_env_at(ctx, i)) != NULL; i++)
    if (strcmp(d->id, id) == 0) return d;
  return NULL;
}

static peri_status check_option (peri_ctx *ctx, const peri_env_def *d, int i) {
  const peri_env_option *o = &d->option[i];
  if (!o->name || !*o->name || !o->doc)
    return peri__fail(ctx, PERI_EINVAL, "%s: option %s has no name or no doc", d->id,
                      peri__nth(ctx, i));
  if (!o->text && o->low < o->high && !(o->value >= o->low && o->value <= o->high))
    return peri__fail(ctx, PERI_EINVAL, "%s: %s is %g by default, its range is %g to %g", d->id,
                      o->name, o->value, o->low, o->high);
  return PERI_OK;
}

peri_status peri__env_check_def (peri_ctx *ctx, const peri_env_def *d) {
  NEED(ctx, d);
  if (d->struct_size != sizeof *d) /* the one size that it has had */
    return peri__fail(ctx, PERI_EINVAL, "peri_env_def.struct_size is %u, expected %zu",
                      d->struct_size, sizeof *d);
  if (!d->id || !*d->id || strlen(d->id) > 100)
    return peri__fail(ctx, PERI_EINVAL, "an environment's id has 1 to 100 bytes");
  const bool whole = d->flags & PERI_ENV_WHOLE;
  if (!d->doc || !d->configure || (!whole && (!d->reset || !d->step)))
    return peri__fail(ctx, PERI_EINVAL, "%s: the definition has no %s", d->id,
                      !d->doc         ? "doc"
                      : !d->configure ? "configure"
                      : !d->reset     ? "reset"
                                      : "step");
  if (d->flags & ~(uint32_t)(PERI_ENV_SERIAL | PERI_ENV_MASK | PERI_ENV_COLUMNS |
                             PERI_ENV_ELSEWHERE | PERI_ENV_WHOLE))
    return peri__fail(ctx, PERI_EINVAL, "%s: flags are 0x%x, which this version does not know",
                      d->id, d->flags);
  if ((d->flags & PERI_ENV_COLUMNS) && !d->step_batch)
    return peri__fail(ctx, PERI_EINVAL, "%s: states by columns need a step_batch", d->id);
  if (whole && (!d->step_batch || !d->reset_batch || (d->flags & PERI_ENV_COLUMNS)))
    return peri__fail(ctx, PERI_EINVAL,
                      "%s: stepping the whole batch needs step_batch and reset_batch, with states "
                      "by rows",
                      d->id);
  if (!whole && d->reset_batch)
    return peri__fail(ctx, PERI_EINVAL, "%s: a reset_batch without PERI_ENV_WHOLE", d->id);
  if (d->noptions < 0 || (d->noptions > 0 && !d->option))
    return peri__fail(ctx, PERI_EINVAL, "%s: %d options and no list of them", d->id, d->noptions);
  for (int i = 0; i < d->noptions; i++) TRY(check_option(ctx, d, i));
  return PERI_OK;
}

peri_status peri_env_register (peri_ctx *ctx, const peri_env_def *def) {
  if (!ctx) return PERI_EINVAL;
  TRY(peri__env_check_def(ctx, def));
  if (peri_env_find(ctx, def->id))
    return peri__fail(ctx, PERI_EINVAL, "an environment %s is there already", def->id);
  struct peri__env_entry *e = peri__malloc(ctx, sizeof *e), **end = &ctx->envs;
  if (!e) return peri__fail(ctx, PERI_ENOMEM, "out of memory for an environment's definition");
  *e = (struct peri__env_entry){ .def = *def };
  while (*end) end = &(*end)->next;
  *end = e;
  return PERI_OK;
}

void peri__env_forget (peri_ctx *ctx) {
  while (ctx->envs) {
    struct peri__env_entry *e = ctx->envs;
    ctx->envs = e->next;
    peri__free(ctx, e, sizeof *e);
  }
}

/* ---- options ---- */

struct piece { /* what configure has allocated */
  struct piece *next;
  size_t size;
  _Alignas(16) unsigned char bytes[];
};

struct peri_env_args {
  peri_ctx *ctx;
  const peri_env_def *def;
  size_t size; /* of this block */
  struct piece *pieces;
  struct value {
    double number;
    const char *text; /* in this block, or the default */
  } value[];
};

static const char *option_at (void *ud, int i) {
  const peri_env_def *d = ud;
  return i < d->noptions ? d->option[i].name : NULL;
}

static int option_of (const peri_env_def *d, const char *name) {
  for (int i = 0; i < d->noptions; i++)
    if (strcmp(d->option[i].name, name) == 0) return i;
  return -1;
}

double peri_env_number (const peri_env_args *a, const char *name) {
  int i = a && name ? option_of(a->def, name) : -1;
  return i < 0 || a->def->option[i].text ? NAN : a->value[i].number;
}

const char *peri_env_text (const peri_env_args *a, const char *name) {
  int i = a && name ? option_of(a->def, name) : -1;
  return i < 0 || !a->def->option[i].text ? NULL : a->value[i].text;
}

void *peri_env_alloc (const peri_env_args *args, size_t bytes) {
  if (!args || bytes > SIZE_MAX / 2) return NULL;
  peri_env_args *a = (peri_env_args *)args;
  struct piece *p = peri__malloc(a->ctx, sizeof *p + bytes);
  if (!p) {
    peri__fail(a->ctx, PERI_ENOMEM, "%s: out of memory", a->def->id);
    return NULL;
  }
  memset(p, 0, sizeof *p + bytes);
  p->next = a->pieces;
  p->size = sizeof *p + bytes;
  a->pieces = p;
  return p->bytes;
}

peri_status peri_env_refuse (const peri_env_args *a, const char *fmt, ...) {
  if (!a || !fmt) return PERI_EINVAL;
  char text[PERI_ENV_MESSAGE];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  return peri__fail(a->ctx, PERI_EINVAL, "%s: %s", a->def->id, text);
}

void peri__env_args_free (peri_ctx *ctx, struct peri_env_args *a) {
  if (!a) return;
  while (a->pieces) {
    struct piece *p = a->pieces;
    a->pieces = p->next;
    peri__free(ctx, p, p->size);
  }
  peri__free(ctx, a, a->size);
}

static peri_status unknown_option (peri_ctx *ctx, const peri_env_def *d, const char *name) {
  const char *near = peri__nearest(name, option_at, (void *)d);
  if (near)
    return peri__fail(ctx, PERI_EINVAL, "%s: unknown option '%s'; did you mean '%s'?", d->id, name,
                      near);
  char list[400] = "";
  for (int i = 0; i < d->noptions; i++)
    snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s",
             i ? ", " : "; there are: ", d->option[i].name);
  return peri__fail(ctx, PERI_EINVAL, "%s: unknown option '%s'%s", d->id, name,
                    *list ? list : "; it has none");
}

static peri_status take_arg (peri_ctx *ctx, struct peri_env_args *a, const peri_env_arg *arg,
                             char **texts) {
  const peri_env_def *d = a->def;
  NEED(ctx, arg->name);
  int i = option_of(d, arg->name);
  if (i < 0) return unknown_option(ctx, d, arg->name);
  const peri_env_option *o = &d->option[i];
  if (!o->text != !arg->text)
    return peri__fail(ctx, PERI_EINVAL, "%s: %s is a %s, expected a %s", d->id, o->name,
                      arg->text ? "text" : "number", o->text ? "text" : "number");
  if (arg->text) {
    size_t n = strlen(arg->text) + 1;
    a->value[i].text = memcpy(*texts, arg->text, n);
    *texts += n;
  } else if (!isfinite(arg->value))
    return peri__fail(ctx, PERI_EINVAL, "%s: %s is %g, expected a finite number", d->id, o->name,
                      arg->value);
  else if (o->low < o->high && !(arg->value >= o->low && arg->value <= o->high))
    return peri__fail(ctx, PERI_EINVAL, "%s: %s is %g, expected a number from %g to %g", d->id,
                      o->name, arg->value, o->low, o->high);
  else
    a->value[i].number = arg->value;
  return PERI_OK;
}

static peri_status check_spec (peri_ctx *ctx, const peri_env_def *d, const peri_env_spec *s) {
  if (s->struct_size != sizeof *s)
    return peri__fail(ctx, PERI_EINVAL, "%s: configure left a spec of %u bytes, expected %zu",
                      d->id, s->struct_size, sizeof *s);
  const peri_space *space[] = { &s->obs, &s->action };
  for (int i = 0; i < 2; i++) {
    peri_status st = peri_space_check(ctx, space[i]);
    if (st != PERI_OK)
      return peri__fail(ctx, st, "%s: %s: %s", d->id, i ? "actions" : "observations", ctx->message);
  }
  if (s->agents < 0 || s->agents > 4096)
    return peri__fail(ctx, PERI_EINVAL, "%s: %d agents, expected 1 to 4096", d->id, s->agents);
  if (s->max_steps < 0)
    return peri__fail(ctx, PERI_EINVAL, "%s: a time limit of %lld steps", d->id,
                      (long long)s->max_steps);
  if (s->state_bytes > (size_t)1 << 32)
    return peri__fail(ctx, PERI_EINVAL, "%s: a state has %zu bytes, expected at most 2^32", d->id,
                      s->state_bytes);
  if ((d->flags & PERI_ENV_MASK) && s->action.kind != PERI_SPACE_DISCRETE)
    return peri__fail(ctx, PERI_EINVAL, "%s: only Discrete actions have a mask", d->id);
  if (s->nmetrics < 0 || s->nmetrics > 1024 || (s->nmetrics > 0 && !s->metric))
    return peri__fail(ctx, PERI_EINVAL, "%s: %d metrics, or no names of them", d->id, s->nmetrics);
  return PERI_OK;
}

static peri_status configure (peri_ctx *ctx, const peri_env_options *o, peri_env_spec *spec,
                              struct peri_env_args *a, char *texts) {
  const peri_env_def *d = a->def;
  for (int i = 0; i < d->noptions; i++)
    a->value[i] = (struct value){ d->option[i].value, d->option[i].text };
  for (int i = 0; i < o->nargs; i++) TRY(take_arg(ctx, a, &o->arg[i], &texts));
  *spec = (peri_env_spec){ .struct_size = sizeof *spec, .reward_threshold = NAN };
  peri__forget_message(ctx);
  peri_status s = d->configure(d->ud, a, spec);
  if (s != PERI_OK && !*ctx->message)
    return peri__fail(ctx, s, "%s: configure failed with status '%s'", d->id, peri_status_name(s));
  TRY(s);
  return check_spec(ctx, d, spec);
}

peri_status peri__env_configure (peri_ctx *ctx, const peri_env_def *d, const peri_env_options *o,
                                 peri_env_spec *spec, struct peri_env_args **args) {
  size_t size = sizeof **args + (size_t)d->noptions * sizeof(struct value), texts = 0;
  if (o->nargs < 0 || (o->nargs > 0 && !o->arg))
    return peri__fail(ctx, PERI_EINVAL, "%s: %d values of options and no list of them", d->id,
                      o->nargs);
  for (int i = 0; i < o->nargs; i++) texts += o->arg[i].text ? strlen(o->arg[i].text) + 1 : 0;
  struct peri_env_args *a = peri__malloc(ctx, size + texts);
  if (!a) return peri__fail(ctx, PERI_ENOMEM, "out of memory for an environment's options");
  *a = (struct peri_env_args){ .ctx = ctx, .def = d, .size = size + texts };
  peri_status s = configure(ctx, o, spec, a, (char *)a + size);
  if (s != PERI_OK)
    peri__env_args_free(ctx, a);
  else
    *args = a;
  return s;
}
