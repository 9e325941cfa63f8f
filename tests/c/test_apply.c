/*
** test_apply.c - calls of ops from C as a host makes them: how many attributes and results it knows, the
** twins that write in place. Laws over the whole op table.
*/
#define _DEFAULT_SOURCE /* mmap */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "op/op.h"
#include "run_op.h"
#include "memory_of.h"

static peri_ctx *ctx;
static peri_tensor *x; /* (2, 3) */

static int open_all (void **state) {
  (void)state;
  const int64_t shape[2] = { 2, 3 };
  const float data[6] = { 1, 2, 3, 4, 5, 6 };
  assert_int_equal(peri_open(NULL, &ctx), PERI_OK);
  assert_int_equal(peri_from(ctx, PERI_F32, 2, shape, data, &x), PERI_OK);
  return 0;
}

static int close_all (void **state) {
  (void)state;
  peri_release(x);
  assert_int_equal(memory_of(ctx).tensors, 0);
  peri_close(ctx);
  return 0;
}

static void refused (peri_status s, const char *name, const char *what) {
  size_t n = strlen(name);
  assert_int_equal(s, PERI_EINVAL);
  if (strncmp(peri_message(ctx), name, n) != 0 || strncmp(peri_message(ctx) + n, ": ", 2) != 0 ||
      !strstr(peri_message(ctx), what))
    fail_msg("\"%s: ... %s\" was expected, not \"%s\"", name, what, peri_message(ctx));
}

/* Room for n bytes whose end is the end of what may be touched. */
static void *at_the_end (size_t n, void **map, size_t *size) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  *size = 2 * page;
  *map = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  assert_true(*map != MAP_FAILED);
  assert_int_equal(mprotect((char *)*map + page, page, PROT_NONE), 0);
  return (char *)*map + page - n;
}

/* An op that has grown looks to a host as if the host were compiled against fewer of its attributes;
** what lies behind them is not the library's to read. */
static void a_host_with_another_number_of_attributes_is_told_both_numbers (void **state) {
  (void)state;
  for (int i = 0; i < peri_op_count(); i++) {
    const peri_op *op = peri_op_at(i);
    int wanted = peri_op_attrs(op);
    peri_tensor *in[PERI_MAX_PARAM] = { x, x, x, x, x, x, x, x }, *out[PERI_MAX_OUT] = { NULL };
    for (int given = 0; given <= wanted + 2; given++) {
      void *map;
      size_t size;
      char what[64];
      peri_attr *attr = at_the_end((size_t)given * sizeof *attr, &map, &size);
      memset(attr, 0, (size_t)given * sizeof *attr);
      snprintf(what, sizeof what, "%d attribute%s given", given, given == 1 ? "" : "s");
      if (given != wanted) {
        refused(peri_apply(ctx, op, 1, in, given, attr, peri_op_outputs(op), out), op->name, what);
        snprintf(what, sizeof what, "has %d", wanted);
        assert_non_null(strstr(peri_message(ctx), what));
        peri_status s = peri_apply_inplace(ctx, op, 1, in, given, attr);
        assert_int_equal(s, PERI_EINVAL);
      }
      munmap(map, size);
    }
    for (int k = 0; k < PERI_MAX_OUT; k++) assert_null(out[k]);
  }
}

static void a_host_with_another_number_of_results_is_told_both_numbers (void **state) {
  (void)state;
  for (int i = 0; i < peri_op_count(); i++) {
    const peri_op *op = peri_op_at(i);
    int wanted = peri_op_outputs(op);
    for (int given = -1; given <= wanted + 2; given++) {
      peri_tensor *in[1] = { x }, *out[PERI_MAX_OUT + 2] = { NULL };
      char what[64];
      if (given == wanted) continue;
      snprintf(what, sizeof what, "%d result%s given", given, given == 1 ? "" : "s");
      refused(peri_apply(ctx, op, 1, in, 0, NULL, given, out), op->name, what);
      for (int k = 0; k < PERI_MAX_OUT; k++) assert_null(out[k]);
    }
  }
}

static void no_attributes_are_the_defaults (void **state) {
  (void)state;
  peri_tensor *sum = NULL;
  double v = 0;
  assert_int_equal(peri_apply(ctx, peri_op_find("sum"), 1, &x, 0, NULL, 1, &sum), PERI_OK);
  assert_int_equal(peri_item(sum, 0, &v), PERI_OK);
  assert_float_equal(v, 21, 0);
  peri_release(sum);
  sum = NULL;
  refused(peri_apply(ctx, peri_op_find("topk"), 1, &x, 0, NULL, 2, &sum), "topk",
          "k has no default");
}

static peri_tensor *view (const char *op, peri_tensor *t, const peri_attr *attr) {
  peri_tensor *v = NULL;
  assert_int_equal(run_op(ctx, peri_op_find(op), 1, &t, attr, &v), PERI_OK);
  return v;
}

static double at (peri_tensor *t, int64_t i) {
  double v = 0;
  assert_int_equal(peri_item(t, i, &v), PERI_OK);
  return v;
}

/* The checks that a script gets, from C. */
static void twins_refuse_what_would_be_wrong_later (void **state) {
  (void)state;
  const peri_op *add = peri_op_find("add"), *mul = peri_op_find("mul"), *exp = peri_op_find("exp");
  const int64_t wide[2] = { 4, 3 }, flipped = 0;
  peri_tensor *row = NULL, *leaf = NULL, *made = NULL, *sum = NULL;
  const float data[3] = { 1, 2, 3 };
  assert_int_equal(peri_from(ctx, PERI_F32, 1, (const int64_t[]){ 3 }, data, &row), PERI_OK);
  assert_int_equal(peri_from(ctx, PERI_F32, 1, (const int64_t[]){ 3 }, data, &leaf), PERI_OK);
  assert_int_equal(peri_set_requires_grad(leaf, true), PERI_OK);
  /* an expanded view */
  peri_tensor *expanded = view("expand", row, &(peri_attr){ .v = wide, .n = 2 });
  refused(peri_apply_inplace(ctx, add, 2, (peri_tensor *[]){ expanded, row }, 0, NULL), "add_",
          "dim 0 of x");
  /* a target and a source of a graph */
  refused(peri_apply_inplace(ctx, add, 2, (peri_tensor *[]){ leaf, row }, 0, NULL), "add_",
          "takes part in a graph (x)");
  refused(peri_apply_inplace(ctx, add, 2, (peri_tensor *[]){ row, leaf }, 0, NULL), "add_",
          "y takes part in a graph");
  assert_float_equal(at(row, 2), 3, 0);
  peri_set_grad_enabled(ctx, false);
  assert_int_equal(peri_apply_inplace(ctx, add, 2, (peri_tensor *[]){ row, leaf }, 0, NULL),
                   PERI_OK);
  peri_set_grad_enabled(ctx, true);
  assert_float_equal(at(row, 2), 6, 0);
  /* another view of the memory that is written is read as it was */
  peri_tensor *back = view("flip", row, &(peri_attr){ .v = &flipped, .n = 1 });
  assert_int_equal(peri_apply_inplace(ctx, add, 2, (peri_tensor *[]){ row, back }, 0, NULL),
                   PERI_OK);
  for (int i = 0; i < 3; i++) assert_float_equal(at(row, i), 8, 0);
  /* what the gradient needs of an input and of a result */
  assert_int_equal(run_op(ctx, mul, 2, (peri_tensor *[]){ leaf, row }, NULL, &made), PERI_OK);
  assert_int_equal(run_op(ctx, peri_op_find("sum"), 1, &made, NULL, &sum), PERI_OK);
  assert_int_equal(peri_apply_inplace(ctx, exp, 1, &row, 0, NULL), PERI_OK);
  assert_int_equal(peri_backward(ctx, sum, NULL, false), PERI_EINVAL);
  assert_non_null(strstr(peri_message(ctx), "input 1 of mul was changed in place"));
  peri_release(made), peri_release(sum);
  made = sum = NULL;
  assert_int_equal(run_op(ctx, exp, 1, &leaf, NULL, &made), PERI_OK);
  assert_int_equal(run_op(ctx, peri_op_find("sum"), 1, &made, NULL, &sum), PERI_OK);
  peri_set_grad_enabled(ctx, false);
  assert_int_equal(peri_apply_inplace(ctx, peri_op_find("neg"), 1, &made, 0, NULL), PERI_OK);
  peri_set_grad_enabled(ctx, true);
  assert_int_equal(peri_backward(ctx, sum, NULL, false), PERI_EINVAL);
  assert_non_null(strstr(peri_message(ctx), "output 0 of exp was changed in place"));
  /* another shape, dtype, number of inputs; a stop, before anything is written */
  peri_tensor *longer = view("unsqueeze", row, &(peri_attr){ .i = 0 });
  assert_int_equal(peri_apply_inplace(ctx, add, 2, (peri_tensor *[]){ row, longer }, 0, NULL),
                   PERI_ESHAPE);
  refused(peri_apply_inplace(ctx, add, 2, (peri_tensor *[]){ NULL, row }, 0, NULL), "add_",
          "x is missing");
  refused(peri_apply_inplace(ctx, add, 1, &row, 0, NULL), "add_", "1 tensors given, 2 expected");
  double before = at(row, 0);
  peri_interrupt(ctx);
  assert_int_equal(peri_apply_inplace(ctx, exp, 1, &row, 0, NULL), PERI_EINTR);
  assert_string_equal(peri_message(ctx), "exp_: interrupted");
  peri_interrupt_clear(ctx);
  assert_float_equal(at(row, 0), before, 0);
  peri_release(row), peri_release(leaf), peri_release(made), peri_release(sum);
  peri_release(expanded), peri_release(back), peri_release(longer);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_host_with_another_number_of_attributes_is_told_both_numbers),
    cmocka_unit_test(a_host_with_another_number_of_results_is_told_both_numbers),
    cmocka_unit_test(no_attributes_are_the_defaults),
    cmocka_unit_test(twins_refuse_what_would_be_wrong_later),
  };
  return cmocka_run_group_tests(tests, open_all, close_all);
}
