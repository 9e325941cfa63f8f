/*
** repl.h - line input and interruption, for the program's own files.
*/
#ifndef peri_repl_h
#define peri_repl_h

#include <lua.h>

/* Module perilune.line: reading lines with editing, history and completion where there is a
** terminal and a libedit, plainly otherwise. */
int peri__open_line (lua_State *L);
/* Forget a Ctrl-C that has been dealt with: main.c. */
void peri__interrupt_done (lua_State *L);

#endif
