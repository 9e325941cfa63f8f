/* list.h - the one list of ops. A new op is a descriptor in its family's file and a line here. */
/* elementwise.c, unary.c */
/* reduce.c, sort.c */
/* create.c, view.c, index.c */
/* matmul.c */
/* norm.c, attention.c */
/* loss.c, sample.c, rl.c, optim.c */
