/*
** rule.h - the words in which vjps are written, all of them about the peri_vjp *v that a rule gets:
**   RULE(name) { GIVE(0, B(BB, mul, GRAD, IN(1))); }   defines name_vjp
*/
#ifndef peri_rule_h
#define peri_rule_h

#include "op/op.h"

#define RULE(name) static void name##_vjp(peri_vjp *v)
#define IN(i) (v->c->in[i])     /* an input */
#define OUT (peri__saved(v, 0)) /* the first output's values */
#define GRAD (v->g[0])          /* what came to it */
#define BB (&v->b)              /* the builder */
#define NUM(x) peri__build_scalar(BB, x)
/* The gradient of input i, formed where it is wanted. */
#define GIVE(i, e) (v->need[i] ? (void)(v->gin[i] = (e)) : (void)0)

#endif
