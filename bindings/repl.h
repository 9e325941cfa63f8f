/*
** repl.h - line input and interruption, for the program's own files.
*/
#ifndef peri_repl_h
#define peri_repl_h

#include <stdbool.h>

#include <lua.h>

/* Module perilune.line: reading lines with editing, history and completion where there is a
** terminal and a libedit, plainly otherwise. */
int peri__open_line (lua_State *L);
/* Its function keys, into the table on top: repl_keys.c */
void peri__open_keys (lua_State *L);

/* ---- Ctrl-C: main_interrupt.c ---- */
/* From now on SIGINT asks this state to stop. */
void peri__interrupt_open (lua_State *L);
/* Before the state is closed. */
void peri__interrupt_close (void);
/* Whether a SIGINT interrupts what runs; it does so again and again until it has been dealt with. */
bool peri__interrupt_pending (void);
/* Whether there was any since the last peri__interrupt_done, deferred ones included. */
bool peri__interrupt_seen (void);
/* Forget a Ctrl-C that has been dealt with; nothing defers the next one. */
void peri__interrupt_done (void);

/* ---- warnings: main_warn.c ---- */
/* Lua's warnings, those of the library among them, go to the standard error. */
void peri__warnings_open (lua_State *L);
/* Before anything is written on the terminal: wipe a progress bar that has no end of line. */
void peri__wipe_bar (lua_State *L);

#endif
