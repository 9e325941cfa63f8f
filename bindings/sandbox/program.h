/*
** program.h - the helper program perilune-sandbox: a Lua state in a process that can do nothing but compute and write
** to two pipes. It reads one request from descriptor 0, runs it, and writes records to descriptor 3, which nothing but
** its own C code writes to; what the code prints goes to descriptor 1. Numbers are little-endian.
**
** request: u32 magic, u32 version, u64 bytes of memory, u64 microseconds of processor, u64 bytes of a value, u64 seed,
**   u32 flags, u32 count, then count pieces: u8 kind, u64 size, bytes
** record: u8 kind, u64 size, bytes
** value: a byte N (nil), F, T, I (i64), D (f64), S (u32 size, bytes), { (pairs of values) }
*/
#ifndef peri_sandbox_program_h
#define peri_sandbox_program_h

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <lua.h>

#define SANDBOX_MAGIC 0x50534258u /* ORDER sandbox_request */
#define SANDBOX_VERSION 1u

enum { SANDBOX_ALL_LIBRARIES = 1, SANDBOX_UNPROTECTED = 2 }; /* flags */

/* Pieces of a request. */
enum { PIECE_SOURCE = 'S', PIECE_TEST = 'T', PIECE_CALL = 'C' };

/* Records, in the order they come: the layers in force, how the source ended, a verdict for each test. */
enum {
  RECORD_LAYERS = 'L', /* u8 whether the filter is on, text why not */
  RECORD_VALUE =
      'V', /* the source has ended; its first result, or 'X' and why it cannot be shown */
  RECORD_ERROR = 'E',   /* it raised; text */
  RECORD_MEMORY = 'M',  /* it had no memory left; text */
  RECORD_VERDICT = 'T', /* u8: 1 passed, 0 failed, 2 had no memory left; text */
  RECORD_PEAK = 'P'     /* u64: the most memory it had; the last one */
};

typedef struct sandbox_request {
  const uint8_t *p; /* all of it */
  size_t size, at;
  uint64_t memory, microseconds, value, seed;
  uint32_t flags, count;
} sandbox_request;

/* ---- filter.c ---- */
/* Limits of the system, then the filter of system calls; NULL, or why there is none of the latter. */
const char *sandbox_close_door (const sandbox_request *r);

/* ---- library.c ---- */
/* The global table that code sees. Leaves behind it on the stack the table that tests see: libraries of their own
** over it, which the code cannot reach. */
void sandbox_open (lua_State *L, const sandbox_request *r);

/* ---- value.c ---- */
typedef struct sandbox_out {
  uint8_t *p;
  size_t n, room;
  const char *refused; /* why it cannot be shown */
} sandbox_out;
void sandbox_encode (lua_State *L, int idx, sandbox_out *out); /* calls no metamethod */
/* Push the value at p; false where there is none up to end. */
bool sandbox_decode (lua_State *L, const uint8_t **p, const uint8_t *end, int depth);
/* Whether two values are the same plain data, floats up to 1e-9 of themselves. Calls no metamethod. */
bool sandbox_same (lua_State *L, int got, int want, int depth);

#endif
