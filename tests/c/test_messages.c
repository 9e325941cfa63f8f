/*
** test_messages.c - one message in two countings: what an op refuses begins with its name, and counts dims,
** positions, inputs and entries of lists from 0 in peri_message and from 1 in what a script reads. A law
** over every refusal of tests/lua/op_refusals.lua and over every op of the table.
*/
#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <lauxlib.h>

#include "op/op.h"
#include "perilune_lua.h"

static peri_ctx *ctx;
static lua_State *L;

static int open_all (void **state) {
  (void)state;
  assert_int_equal(peri_open(NULL, &ctx), PERI_OK);
  assert_int_equal(peri_lua_new(ctx, &L), PERI_OK);
  assert_int_equal(
      peri_lua_run_string(
          L, "package.path = '" PERI_SOURCE_DIR "/tests/lua/?.lua;' .. package.path", NULL),
      PERI_OK);
  return 0;
}

static int close_all (void **state) {
  (void)state;
  lua_close(L);
  peri_close(ctx);
  return 0;
}

static bool begins (const char *text, const char *name) {
  size_t n = strlen(name);
  return strncmp(text, name, n) == 0 && strncmp(text + n, ": ", 2) == 0 &&
         (strncmp(text + n + 2, name, n) != 0 || strncmp(text + 2 * n + 2, ": ", 2) != 0);
}

/* How many numbers of the two forms differ, each by one; -1 when anything else does. */
static int counted (const char *c, const char *lua) {
  int n = 0;
  while (*c || *lua) {
    if (isdigit((unsigned char)*c) && isdigit((unsigned char)*lua)) {
      char *c_end, *lua_end;
      long long a = strtoll(c, &c_end, 10), b = strtoll(lua, &lua_end, 10);
      if (b != a && b != a + 1) return -1;
      n += b != a;
      c = c_end, lua = lua_end;
    } else if (*c++ != *lua++)
      return -1;
  }
  return n;
}

/* The word that a number stands behind says whether it is counted. */
static void each_counted_number_is_one_of (const char *c, const char *lua, const char *op) {
  static const char *const words[] = { "dim ", "position ", "input ", "output ", "tensor " };
  for (size_t k = 0; k < sizeof words / sizeof *words; k++) {
    const char *p = c, *q = lua;
    while ((p = strstr(p, words[k])) && (q = strstr(q, words[k]))) {
      p += strlen(words[k]), q += strlen(words[k]);
      if (!isdigit((unsigned char)*p) || strstr(c, "flat position")) continue;
      if (strtoll(q, NULL, 10) != strtoll(p, NULL, 10) + 1)
        fail_msg("%s: \"%s\" and \"%s\" count alike", op, c, lua);
    }
  }
}

static const char every[] =
    "local peri, refusals = require 'perilune', require 'op_refusals'\n"
    "local all = {}\n"
    "for _, op in ipairs(peri.ops()) do\n"
    "  for _, r in ipairs(refusals.of(op)) do r.op = op.name all[#all + 1] = r end\n"
    "end\n"
    "return all\n";

static void every_refusal_begins_with_the_op_and_counts_for_its_reader (void **state) {
  (void)state;
  int reached = 0, differ = 0;
  assert_int_equal(luaL_dostring(L, every), LUA_OK);
  int n = (int)lua_rawlen(L, -1);
  for (int i = 1; i <= n; i++) {
    lua_rawgeti(L, -1, i);
    lua_getfield(L, -1, "op");
    const char *op = lua_tostring(L, -1);
    lua_getfield(L, -2, "call");
    peri__forget_message(ctx);
    assert_int_not_equal(lua_pcall(L, 0, 0, 0), LUA_OK);
    const char *error = luaL_tolstring(L, -1, NULL);
    if (*peri_message(ctx)) { /* else the arguments were refused before an op saw them */
      if (!begins(ctx->message, op) || !begins(ctx->scripted, op) || !strstr(error, ctx->scripted))
        fail_msg("%s: \"%s\" in C, \"%s\" in Lua", op, ctx->message, error);
      int k = counted(ctx->message, ctx->scripted);
      if (k < 0) fail_msg("\"%s\" and \"%s\" are two messages", ctx->message, ctx->scripted);
      each_counted_number_is_one_of(ctx->message, ctx->scripted, op);
      reached++;
      differ += k > 0;
    }
    lua_pop(L, 4);
  }
  lua_pop(L, 1);
  assert_true(reached > 150);
  assert_true(differ > 30);
}

/* Whatever the op: a list too long, a stranger's tensor, a stop. */
static void every_op_says_its_name (void **state) {
  (void)state;
  peri_ctx *other;
  peri_tensor *x, *stranger, *in[40];
  assert_int_equal(peri_open(NULL, &other), PERI_OK);
  assert_int_equal(peri_scalar(ctx, PERI_F32, 1, &x), PERI_OK);
  assert_int_equal(peri_scalar(other, PERI_F32, 1, &stranger), PERI_OK);
  for (int i = 0; i < peri_op_count(); i++) {
    const peri_op *op = peri_op_at(i);
    const peri_sig *sig = peri__sig(op);
    peri_tensor *out[PERI_MAX_OUT] = { NULL };
    int nout = peri_op_outputs(op);
    char twin[64];
    peri_attr attr[PERI_MAX_PARAM] = { { .n = 0 } };
    for (int k = 0; k < sig->nattr; k++)
      if (sig->p[sig->ntensor + k].has_default)
        attr[k] = sig->p[sig->ntensor + k].def;
      else
        attr[k].s = "i->i";
    for (int k = 0; k < 40; k++) in[k] = k == 1 ? stranger : x;
    snprintf(twin, sizeof twin, "%s_", op->name);
    assert_int_equal(peri_apply(ctx, op, 2, in, sig->nattr, attr, nout, out), PERI_EINVAL);
    assert_true(begins(peri_message(ctx), op->name));
    assert_non_null(strstr(peri_message(ctx), "input 1"));
    assert_non_null(strstr(ctx->scripted, "input 2"));
    peri_status s = peri_apply_inplace(ctx, op, 2, in, sig->nattr, attr);
    assert_int_equal(s, PERI_EINVAL);
    assert_true(begins(peri_message(ctx), twin));
    in[1] = x;
    peri_interrupt(ctx);
    assert_int_equal(peri_apply(ctx, op, 1, in, sig->nattr, attr, nout, out), PERI_EINTR);
    assert_true(begins(peri_message(ctx), op->name));
    peri_interrupt_clear(ctx);
    if (sig->nlist) continue;
    assert_int_equal(peri_apply(ctx, op, 39, in, sig->nattr, attr, nout, out), PERI_EINVAL);
    assert_true(begins(peri_message(ctx), op->name));
    if (op->flags & PERI_OP_ELEMENTWISE) continue;
    s = peri_apply_inplace(ctx, op, sig->ntensor, in, sig->nattr, attr);
    assert_int_equal(s, PERI_ENOSUP);
    assert_true(begins(peri_message(ctx), twin));
  }
  peri_release(x);
  peri_release(stranger);
  peri_close(other);
}

static void words_around_a_message_keep_both_countings (void **state) {
  (void)state;
  const int64_t shape[2] = { INT64_MAX, 3 };
  peri_tensor *t;
  assert_int_equal(peri_empty(ctx, PERI_F32, 2, shape, &t), PERI_ESHAPE);
  peri__fail(ctx, PERI_ESHAPE, "about: %s (of %s)", ctx->message, peri__nth(ctx, 4));
  assert_non_null(strstr(peri_message(ctx), "about: the number of elements overflows at dim 1"));
  assert_non_null(strstr(peri_message(ctx), "(of 4)"));
  assert_non_null(strstr(ctx->scripted, "about: the number of elements overflows at dim 2"));
  assert_non_null(strstr(ctx->scripted, "(of 5)"));
  peri__fail(ctx, PERI_EINVAL, "%s %s %s", peri__nth(ctx, -1), peri__nth(ctx, INT64_MAX),
             peri__nth(ctx, INT64_MIN));
  assert_string_equal(ctx->scripted, peri_message(ctx));
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_refusal_begins_with_the_op_and_counts_for_its_reader),
    cmocka_unit_test(every_op_says_its_name),
    cmocka_unit_test(words_around_a_message_keep_both_countings),
  };
  return cmocka_run_group_tests(tests, open_all, close_all);
}
