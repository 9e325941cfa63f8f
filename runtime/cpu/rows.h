/*
** rows.h - how many rows a register tile has at a level, for the kernels that are compiled once per
** level: MR, and EACH_ROWS (X) as X(1) ... X(MR).
*/
#ifndef peri_rows_h
#define peri_rows_h

/* clang-format off */
#if PERI_VW == 16
#define MR 12 /* 24 of 32 registers accumulate */
#define EACH_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#elif PERI_VW == 8
#define MR 6 /* 12 of 16 */
#define EACH_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6)
#else
#define MR 4 /* 8 of 16: a product needs a register of its own here */
#define EACH_ROWS(X) X(1) X(2) X(3) X(4)
#endif
/* clang-format on */

#endif
