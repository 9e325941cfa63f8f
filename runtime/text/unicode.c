/*
** unicode.c - classes of characters. ASCII is a table here, the rest is asked of utf8proc.
*/
#include <utf8proc.h>

#include "text/unicode.h"

#define UPPER (PERI__L | PERI__HIGH)
#define LOWER (PERI__L | PERI__LOW)
#define BOTH (PERI__HIGH | PERI__LOW)
#define BLANK (PERI__SPACE | PERI__OTHER) /* controls that are white space */
#define DIGIT (PERI__N | PERI__ND)
#define C PERI__OTHER
#define P PERI__P
#define S PERI__S
#define U UPPER
#define L LOWER
#define D DIGIT

/* clang-format off */
const uint16_t peri__ascii_class[128] = {
  C, C, C, C, C, C, C, C, C, BLANK, BLANK | PERI__EOL, BLANK, BLANK, BLANK | PERI__EOL, C, C,
  C, C, C, C, C, C, C, C, C, C, C, C, C, C, C, C, /* 10 */
  PERI__SPACE, P, P, P, S, P, P, P, P, P, P, S, P, P, P, P, /* 20: space ! " # $ ... */
  D, D, D, D, D, D, D, D, D, D, P, P, S, S, S, P, /* 30 */
  P, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, /* 40 */
  U, U, U, U, U, U, U, U, U, U, U, P, P, P, S, P, /* 50 */
  S, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, /* 60 */
  L, L, L, L, L, L, L, L, L, L, L, P, S, P, S, C  /* 70 */
};

/* By utf8proc_category_t: Cn; Lu Ll Lt Lm Lo; Mn Mc Me; Nd Nl No; Pc Pd Ps Pe Pi Pf Po; Sm Sc Sk So;
** Zs Zl Zp, all of which are White_Space; Cc Cf Cs Co. */
static const uint16_t of_category[] = {
  C, U, L, U, PERI__L | BOTH, PERI__L | BOTH,
  PERI__M | PERI__MN | BOTH, PERI__M | BOTH, PERI__M | BOTH,
  D, PERI__N | PERI__NL, PERI__N,
  P, P, P, P, P, P, P,
  S, S, S, S,
  PERI__SPACE, PERI__SPACE, PERI__SPACE,
  C, C, C, C
};
/* clang-format on */

uint16_t peri__wide_class (uint32_t c) {
  if (c == 0x85) return BLANK; /* a control, and White_Space */
  if (c > 0x10FFFF) return C;
  return of_category[utf8proc_category((utf8proc_int32_t)c)];
}
