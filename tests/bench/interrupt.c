/*
** interrupt.c - how long a running op takes to notice peri_interrupt: for every op of the table with large
** inputs, and for what else runs long (JSON, tokenizers, files). interrupt.lua makes the calls; here
** is the thread that interrupts. Prints the worst of some tries for each, the longest last.
**   build/tests/bench/interrupt [WORD ...]     only what has a word in its name
*/
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <stdio.h>
#include <time.h>

#include <lauxlib.h>
#include <lualib.h>

#include "perilune_lua.h"

static peri_ctx *ctx;

static double seconds (void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

typedef struct alarm_at {
  double delay, asked;
} alarm_at;

static void *interrupter (void *ud) {
  alarm_at *a = (alarm_at *)ud;
  struct timespec t = { (time_t)a->delay, (long)((a->delay - (double)(time_t)a->delay) * 1e9) };
  nanosleep(&t, NULL);
  a->asked = seconds();
  peri_interrupt(ctx);
  return NULL;
}

/* measure(delay, fn): seconds from the interrupt, delay seconds after the start, to the end of fn, and whether
** that was an error; nil when it had ended before. */
static int l_measure (lua_State *L) {
  alarm_at a = { .delay = luaL_checknumber(L, 1) };
  pthread_t thread;
  lua_settop(L, 2);
  if (pthread_create(&thread, NULL, interrupter, &a) != 0) return luaL_error(L, "no thread");
  int rc = lua_pcall(L, 0, 0, 0);
  double end = seconds();
  pthread_join(thread, NULL);
  peri_interrupt_clear(ctx);
  if (end < a.asked) return 0;
  lua_pushnumber(L, end - a.asked);
  lua_pushboolean(L, rc != LUA_OK);
  return 2;
}

int main (int argc, char **argv) {
  lua_State *L;
  peri_options o;
  peri_options_init(&o);
  o.max_bytes = peri_machine_memory() / 2;
  if (peri_open(&o, &ctx) != PERI_OK || peri_lua_new(ctx, &L) != PERI_OK) return 1;
  lua_register(L, "measure", l_measure);
  lua_createtable(L, argc, 0);
  for (int i = 1; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i);
  }
  lua_setglobal(L, "arg");
  lua_pushliteral(L, PERI_SOURCE_DIR);
  lua_setglobal(L, "source");
  peri_status s = peri_lua_run_file(L, PERI_SOURCE_DIR "/tests/bench/interrupt.lua");
  if (s != PERI_OK) fprintf(stderr, "%s\n", peri_message(ctx));
  lua_close(L);
  peri_close(ctx);
  return s != PERI_OK;
}
