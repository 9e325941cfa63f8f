/*
** pack.h - Lua values on their way to another Lua state of the process: into packets (pack.c) and out of
** them (unpack.c). What can go: nil, booleans, numbers, strings, tables of these that have no metatable
** (shapes and what came from JSON keep theirs), tensors (their memory becomes a shared one), channels.
** A table that is there twice, or in itself, is so on the other side. Into a new worker go functions
** as well, with copies of what they refer to, and modules by their names.
*/
#ifndef peri_pack_h
#define peri_pack_h

#include "bind.h"
#include "core/channel.h"

/* ORDER pack: tags of values, here, in pack.c and unpack.c. */
enum {
  PACK_END = 'e', /* behind a table's pairs */
  PACK_NIL = 'n',
  PACK_FALSE = '0',
  PACK_TRUE = '1',
  PACK_INTEGER = 'i',
  PACK_FLOAT = 'f',
  PACK_STRING = 's',
  PACK_NULL = 'z',    /* json.null */
  PACK_TABLE = 't',   /* kind, length; key, value ... PACK_END */
  PACK_TENSOR = 'x',  /* the packet's next one */
  PACK_CHANNEL = 'c', /* the same */
  PACK_SEEN = 'r',    /* number of a table, tensor, channel or function that came before */
  PACK_GLOBALS = 'g', /* the table of globals */
  PACK_MODULE = 'm',  /* name: what require gives */
  PACK_FUNCTION =
      'F', /* bytes of string.dump, number of upvalues; each PACK_UPVALUE or PACK_JOINED */
  PACK_UPVALUE = 'u', /* value */
  PACK_JOINED = 'j',  /* number of an upvalue that came before: it is the same variable */
  PACK_C = 'C'        /* pointer of a C function without upvalues */
};
enum {
  PACK_PLAIN = ' ',
  PACK_SHAPE = 'S',
  PACK_ARRAY = 'A',
  PACK_OBJECT = 'O'
}; /* kinds of tables */

/* The n values from stack index first on as a packet, the caller's. Raises "fn: argument 2.x[3] is ..." where
** something cannot go: root is a format for what the i-th is called, counted from 0, or first for the first
** one where it is not NULL. functions: also what only a new worker gets. through: the channel it goes
** into, which it may not hold; or NULL. */
typedef struct peri_pack_how {
  const char *fn, *root, *first;
  bool functions;
  peri__channel *through;
} peri_pack_how;
peri__packet *peri__pack (lua_State *L, int first, int n, const peri_pack_how *how);

/* Push the values of a packet, which stays the caller's and must not be lost when this raises; their
** number. */
int peri__unpack (lua_State *L, const peri__packet *p);

/* An empty box for a packet, pushed: it is freed with the box. */
peri__packet **peri__packet_box (lua_State *L);

void peri__channel_push (lua_State *L, peri__channel *c); /* channel.c; retained */
peri__channel *peri__channel_at (lua_State *L, int idx);  /* NULL: something else */

void peri__open_pack (lua_State *L);

#endif
