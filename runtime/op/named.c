/*
** named.c - ops by their names with arguments by theirs (peri_apply_named): a list of arguments becomes the
** tensors and attributes of a call, and what does not fit is named.
*/
#include <string.h>

#include "op/op.h"

#define FEW 32

/* ORDER arg: what makes each, as messages name it. */
static const char *const makers[] = { "peri_in",   "peri_list", "peri_out",  "peri_int", "peri_num",
                                      "peri_bool", "peri_str",  "peri_type", "peri_ints" };

typedef struct named {
  peri_ctx *ctx;
  const peri_op *op;
  const peri_sig *sig;
  bool twin, applied;
  const peri_arg *given[PERI_MAX_PARAM]; /* for each parameter; NULL: left out */
  const peri_arg *out[PERI_MAX_OUT];
  int nout, next; /* next: the parameter of the next tensor without a name */
  int each;       /* length of every list of tensors */
} named;

/* ---- names ---- */

static const char *op_at (void *ud, int i) {
  (void)ud;
  return i < peri_op_count() ? peri_op_at(i)->name : NULL;
}

static const char *param_at (void *ud, int i) {
  const peri_sig *sig = (const peri_sig *)ud;
  return i < sig->n ? sig->p[i].name : NULL;
}

static peri_status find_op (named *n, const char *name) {
  size_t length = strlen(name);
  char base[64];
  n->op = peri_op_find(name);
  if (!n->op && length > 1 && length < sizeof base && name[length - 1] == '_') {
    memcpy(base, name, length - 1);
    base[length - 1] = 0;
    n->op = peri_op_find(base);
    n->twin = n->op != NULL && (n->op->flags & PERI_OP_ELEMENTWISE);
    if (n->op && !n->twin)
      return peri__fail(n->ctx, PERI_ENOSUP, "%s: %s has no in-place form", name, n->op->name);
  }
  if (n->op) return PERI_OK;
  const char *near = peri__nearest(name, op_at, NULL);
  return peri__fail(n->ctx, PERI_EINVAL, "no op is called '%.100s'%s%s%s", name,
                    near ? "; the nearest is '" : "", near ? near : "", near ? "'" : "");
}

static peri_status find_param (const named *n, const char *name, int *out) {
  const peri_sig *sig = n->sig;
  for (int i = 0; i < sig->n; i++)
    if (strcmp(sig->p[i].name, name) == 0) {
      *out = i;
      return PERI_OK;
    }
  const char *near = peri__nearest(name, param_at, (void *)(uintptr_t)sig);
  if (near)
    return peri__fail(n->ctx, PERI_EINVAL, "no parameter is called '%.100s'; the nearest is '%s'",
                      name, near);
  return peri__fail(n->ctx, PERI_EINVAL, "no parameter is called '%.100s'; there are %s", name,
                    n->op->sig);
}

/* ---- what is given for what ---- */

/* The maker of arguments that a parameter of the kind takes first, or given itself where it fits. */
static int fitting (peri_kind k, int given) {
  switch (k) { /* ORDER kind */
  case PERI_K_TENSOR:
  case PERI_K_OPTIONAL: return given == PERI_ARG_INT || given == PERI_ARG_NUM ? given : PERI_ARG_IN;
  case PERI_K_TENSORS: return PERI_ARG_LIST;
  case PERI_K_INT:
  case PERI_K_DIM:
  case PERI_K_POS: return PERI_ARG_INT;
  case PERI_K_NUM: return given == PERI_ARG_INT ? given : PERI_ARG_NUM;
  case PERI_K_BOOL: return PERI_ARG_BOOL;
  case PERI_K_STR: return PERI_ARG_STR;
  case PERI_K_DTYPE: return PERI_ARG_DTYPE;
  default: return given == PERI_ARG_INT ? given : PERI_ARG_INTS;
  }
}

static peri_status take_result (named *n, const peri_arg *a) {
  int most = n->twin ? 0 : peri_op_outputs(n->op);
  if (n->nout == most)
    return peri__fail(n->ctx, PERI_EINVAL, "a result more than the %d that it returns", most);
  n->out[n->nout++] = a;
  return PERI_OK;
}

static peri_status take (named *n, const peri_arg *a) {
  int i = n->next;
  if ((unsigned)a->given >= sizeof makers / sizeof *makers)
    return peri__fail(n->ctx, PERI_EINVAL, "an argument that none of peri_in, peri_int ... made");
  if (a->given == PERI_ARG_OUT) return take_result(n, a);
  if (a->name) {
    TRY(find_param(n, a->name, &i));
  } else if (a->given > PERI_ARG_LIST)
    return peri__fail(n->ctx, PERI_EINVAL, "an argument of %s has no name", makers[a->given]);
  else if (n->next++ >= n->sig->ntensor)
    return peri__fail(n->ctx, PERI_EINVAL, "more tensors than the %d of (%s)", n->sig->ntensor,
                      n->op->sig);
  const peri_param *p = &n->sig->p[i];
  int wanted = fitting(p->kind, a->given);
  if (n->given[i]) return peri__fail(n->ctx, PERI_EINVAL, "%s is given twice", p->name);
  bool number = a->given > PERI_ARG_LIST && p->kind <= PERI_K_TENSORS;
  if (wanted != a->given || (number && (p->written || (n->twin && i == 0))))
    return peri__fail(n->ctx, PERI_EINVAL, "%s (%s) is given by %s, not by %s", p->name,
                      peri_kind_name(p->kind), makers[number ? PERI_ARG_IN : wanted],
                      makers[a->given]);
  n->given[i] = a;
  return PERI_OK;
}

static peri_status check_list (named *n, const peri_param *p, const peri_arg *a) {
  if (a->n < 0 || (a->n > 0 && !a->as.list))
    return peri__fail(n->ctx, PERI_EINVAL, a->n < 0 ? "%s has %d entries" : "%s is NULL", p->name,
                      a->n);
  if (a->n > 0 && n->each > 0 && a->n != n->each)
    return peri__fail(n->ctx, PERI_EINVAL, "%s lists %d tensors, another list has %d", p->name,
                      a->n, n->each);
  if (a->n > 0) n->each = a->n;
  return PERI_OK;
}

/* Everything that must be there is, and lists have one length. */
static peri_status check_all (named *n) {
  bool first = true; /* list: the others may be left out */
  for (int i = 0; i < n->sig->n; i++) {
    const peri_param *p = &n->sig->p[i];
    bool list = p->kind == PERI_K_TENSORS;
    if (list && n->given[i]) TRY(check_list(n, p, n->given[i]));
    if (!n->given[i] && !p->has_default && p->kind != PERI_K_OPTIONAL && (!list || first))
      return peri__fail(n->ctx, PERI_EINVAL, "%s (%s) is missing", p->name,
                        peri_kind_name(p->kind));
    if (list) first = false;
  }
  if (n->nout == 0 && !n->twin && peri_op_outputs(n->op) > 0)
    return peri__fail(n->ctx, PERI_EINVAL, "no result is asked for: peri_out(&t)");
  return PERI_OK;
}

/* ---- the call ---- */

static int number_of_inputs (const named *n) {
  return n->sig->ntensor - n->sig->nlist + n->sig->nlist * n->each;
}

/* Plain numbers among the tensors: new references. They join floats as floats. */
static peri_status make_numbers (const named *n, peri_tensor **in) {
  bool floats = false;
  int at = 0, total = number_of_inputs(n);
  for (int i = 0; i < total; i++) floats = floats || (in[i] && peri__is_float(in[i]->dtype));
  for (int i = 0; i < n->sig->ntensor; i++) {
    const peri_arg *a = n->given[i];
    if (a && a->given > PERI_ARG_LIST) {
      bool integer = a->given == PERI_ARG_INT && !floats;
      double f = a->given == PERI_ARG_INT ? (double)a->as.i : a->as.f;
      TRY(peri__weak(n->ctx, integer, integer ? a->as.i : 0, f, &in[at]));
    }
    at += n->sig->p[i].kind == PERI_K_TENSORS ? n->each : 1;
  }
  return PERI_OK;
}

static void drop_numbers (const named *n, peri_tensor **in) {
  for (int i = 0, at = 0; i < n->sig->ntensor; i++) {
    if (n->given[i] && n->given[i]->given > PERI_ARG_LIST) peri_release(in[at]);
    at += n->sig->p[i].kind == PERI_K_TENSORS ? n->each : 1;
  }
}

static void put_tensors (const named *n, peri_tensor **in) {
  for (int i = 0; i < n->sig->ntensor; i++) {
    const peri_arg *a = n->given[i];
    if (n->sig->p[i].kind != PERI_K_TENSORS) {
      *in++ = a && a->given == PERI_ARG_IN ? a->as.t : NULL;
      continue;
    }
    for (int k = 0; k < n->each; k++) *in++ = a && k < a->n ? a->as.list[k] : NULL;
  }
}

static void put_attrs (const named *n, peri_attr *attr) {
  for (int i = n->sig->ntensor; i < n->sig->n; i++, attr++) {
    const peri_arg *a = n->given[i];
    *attr = n->sig->p[i].def;
    if (!a) continue;
    *attr = (peri_attr){ 0 };
    switch (a->given) { /* ORDER arg */
    case PERI_ARG_NUM: attr->f = a->as.f; break;
    case PERI_ARG_STR: attr->s = a->as.s; break;
    case PERI_ARG_INTS:
      attr->v = a->as.v;
      attr->n = a->n;
      break;
    default: /* an integer of any kind, also as a num or as a list of one */
      attr->i = a->as.i;
      attr->f = (double)a->as.i;
      attr->whole = true;
      attr->v = &a->as.i;
      attr->n = 1;
    }
  }
}

static peri_status prepare (named *n, int count, const peri_arg *args) {
  n->sig = peri__sig(n->op);
  if (count < 0) return peri__fail(n->ctx, PERI_EINVAL, "%d arguments given", count);
  if (count > 0) NEED(n->ctx, args);
  for (int i = 0; i < count; i++) TRY(take(n, &args[i]));
  return check_all(n);
}

static peri_status run (const named *n, peri_tensor **in) {
  peri_attr attr[PERI_MAX_PARAM];
  peri_tensor *out[PERI_MAX_OUT] = { NULL };
  int nin = number_of_inputs(n), nattr = n->sig->nattr, outputs = peri_op_outputs(n->op);
  put_attrs(n, attr);
  if (n->twin) return peri_apply_inplace(n->ctx, n->op, nin, in, nattr, attr);
  TRY(peri_apply(n->ctx, n->op, nin, in, nattr, attr, outputs, out));
  for (int k = 0; k < outputs; k++) {
    if (k < n->nout && n->out[k]->as.out)
      *n->out[k]->as.out = out[k];
    else
      peri_release(out[k]);
  }
  return PERI_OK;
}

static peri_status with_tensors (named *n) {
  peri_tensor *few[FEW], **in = few;
  int nin = number_of_inputs(n);
  if (nin > FEW && !(in = peri__block_get(n->ctx, (size_t)nin * sizeof *in)))
    return peri__fail(n->ctx, PERI_ENOMEM, "out of memory for %d inputs", nin);
  put_tensors(n, in);
  peri_status s = make_numbers(n, in);
  if (s == PERI_OK) {
    n->applied = true;
    s = run(n, in);
  }
  drop_numbers(n, in);
  if (in != few) peri__block_put(n->ctx, in);
  return s;
}

peri_status peri_apply_named (peri_ctx *ctx, const char *name, int count, const peri_arg *args) {
  named n = { .ctx = ctx };
  NEED(ctx, ctx);
  NEED(ctx, name);
  TRY(find_op(&n, name));
  peri_status s = prepare(&n, count, args);
  if (s == PERI_OK) s = with_tensors(&n);
  if (s == PERI_OK || n.applied) return s;
  return peri__fail(ctx, s, "%s: %s", name, ctx->message); /* as peri_apply does */
}
