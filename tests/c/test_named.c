/*
** test_named.c - ops by name with arguments by name, and what can be asked of an op: laws over the whole op
** table, then the calls of a host.
*/
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "op/op.h"
#include "memory_of.h"

static peri_ctx *ctx;
static peri_tensor *x, *y; /* (2, 3) */

static int open_all (void **state) {
  (void)state;
  const int64_t shape[2] = { 2, 3 };
  const float data[6] = { 1, 2, 3, 4, 5, 6 };
  assert_int_equal(peri_open(NULL, &ctx), PERI_OK);
  assert_int_equal(peri_from(ctx, PERI_F32, 2, shape, data, &x), PERI_OK);
  assert_int_equal(peri_from(ctx, PERI_F32, 2, shape, data, &y), PERI_OK);
  return 0;
}

static int close_all (void **state) {
  (void)state;
  peri_release(x);
  peri_release(y);
  assert_int_equal(memory_of(ctx).tensors, 0);
  peri_close(ctx);
  return 0;
}

static void refused (peri_status s, const char *message) {
  if (s != PERI_EINVAL || strcmp(peri_message(ctx), message) != 0)
    fail_msg("\"%s\" was expected, not %s \"%s\"", message, peri_status_name(s), peri_message(ctx));
}

static void says (peri_status s, const char *op, const char *part) {
  size_t n = strlen(op);
  if (s != PERI_EINVAL || strncmp(peri_message(ctx), op, n) != 0 ||
      !strstr(peri_message(ctx), part))
    fail_msg("%s: \"%s\" was expected, not %s \"%s\"", op, part, peri_status_name(s),
             peri_message(ctx));
}

/* ---- laws ---- */

enum { MAX = PERI_MAX_PARAM + PERI_MAX_OUT + 2 };

/* An argument of the kind, of no particular sense. */
static peri_arg plausible (const peri_param *p, peri_tensor *const *list) {
  static const int64_t two[] = { 0, 1 };
  switch (p->kind) {
  case PERI_K_TENSOR:
  case PERI_K_OPTIONAL: return peri_named(p->name, x);
  case PERI_K_TENSORS: return peri_list(p->name, 2, list);
  case PERI_K_NUM: return peri_num(p->name, 0.5);
  case PERI_K_BOOL: return peri_bool(p->name, true);
  case PERI_K_STR: return peri_str(p->name, "ij,jk->ik");
  case PERI_K_DTYPE: return peri_type(p->name, PERI_F32);
  case PERI_K_DIMS:
  case PERI_K_SHAPE:
  case PERI_K_INTS: return peri_ints(p->name, 2, two);
  default: return peri_int(p->name, 1);
  }
}

/* Every parameter by name in the order of the signature turned by turn, then the results. */
static int arguments (const peri_op *op, int turn, peri_tensor *const *list, peri_tensor **out,
                      peri_arg *a) {
  int n = peri_op_params(op);
  for (int i = 0; i < n; i++) a[i] = plausible(peri_op_param(op, (i + turn) % n), list);
  for (int k = 0; k < peri_op_outputs(op); k++) a[n++] = peri_out(&out[k]);
  return n;
}

static peri_status by_place (const peri_op *op, peri_tensor *const *list, peri_tensor **out) {
  peri_tensor *in[MAX];
  peri_attr attr[PERI_MAX_PARAM];
  int nin = 0, nattr = 0;
  for (int i = 0; i < peri_op_params(op); i++) {
    const peri_param *p = peri_op_param(op, i);
    peri_arg a = plausible(p, list);
    if (p->kind == PERI_K_TENSORS) {
      in[nin++] = list[0];
      in[nin++] = list[1];
    } else if (p->kind <= PERI_K_OPTIONAL)
      in[nin++] = x;
    else
      attr[nattr++] = (peri_attr){ .i = a.given == PERI_ARG_NUM ? 0 : a.as.i,
                                   .f = a.given == PERI_ARG_NUM ? a.as.f : 0,
                                   .s = a.as.s,
                                   .v = a.as.v,
                                   .n = a.n };
  }
  return peri_apply(ctx, op, nin, in, nattr, attr, peri_op_outputs(op), out);
}

static bool equal (const peri_tensor *a, const peri_tensor *b) {
  if (!a || !b) return a == b;
  if (peri_dtype_of(a) != peri_dtype_of(b) || peri_ndim(a) != peri_ndim(b)) return false;
  if (memcmp(peri_shape(a), peri_shape(b), sizeof(int64_t) * (size_t)peri_ndim(a)) != 0)
    return false;
  for (int64_t i = 0; i < peri_numel(a); i++) {
    double v = 0, w = 0;
    if (peri_item((peri_tensor *)(uintptr_t)a, i, &v) != PERI_OK) return true; /* weights */
    peri_item((peri_tensor *)(uintptr_t)b, i, &w);
    if (v != w && (v == v || w == w)) return false;
  }
  return true;
}

static void names_in_any_order_are_the_call_by_place (void **state) {
  (void)state;
  int done = 0;
  for (int i = 0; i < peri_op_count(); i++) {
    const peri_op *op = peri_op_at(i);
    peri_tensor *list[2] = { x, y }, *out[PERI_MAX_OUT] = { NULL }, *want[PERI_MAX_OUT] = { NULL };
    char message[1024];
    if (peri_op_flags(op) & PERI_OP_INPLACE) continue; /* the second call would see the first */
    peri_rng_set(ctx, (peri_rng){ 7, 0 });
    peri_status s = by_place(op, list, want);
    snprintf(message, sizeof message, "%s", peri_message(ctx));
    for (int turn = 0; turn < 3; turn++) {
      peri_arg a[MAX];
      int n = arguments(op, turn, list, out, a);
      peri_rng_set(ctx, (peri_rng){ 7, 0 });
      if (strncmp(op->name, "empty", 5) == 0) continue;
      assert_int_equal(peri_apply_named(ctx, op->name, n, a), s);
      if (s != PERI_OK) assert_string_equal(peri_message(ctx), message);
      for (int k = 0; k < PERI_MAX_OUT; k++) {
        if (!equal(out[k], want[k])) fail_msg("%s: result %d differs", op->name, k);
        peri_release(out[k]);
        out[k] = NULL;
      }
      done += s == PERI_OK;
    }
    for (int k = 0; k < PERI_MAX_OUT; k++) peri_release(want[k]);
  }
  assert_true(done > 300);
}

static void an_unknown_name_is_refused_with_the_nearest (void **state) {
  (void)state;
  for (int i = 0; i < peri_op_count(); i++) {
    const peri_op *op = peri_op_at(i);
    char wrong[64], part[128];
    snprintf(wrong, sizeof wrong, "%sx", op->name);
    if (!peri_op_find(wrong) && strlen(op->name) > 3) {
      assert_int_equal(peri_apply_named(ctx, wrong, 0, NULL), PERI_EINVAL);
      snprintf(part, sizeof part, "no op is called '%s'; the nearest is '", wrong);
      assert_non_null(strstr(peri_message(ctx), part));
    }
    for (int k = 0; k < peri_op_params(op); k++) {
      const peri_param *p = peri_op_param(op, k);
      snprintf(wrong, sizeof wrong, "%s_of", p->name);
      peri_arg a = plausible(p, &x);
      a.name = wrong;
      snprintf(part, sizeof part, "no parameter is called '%s'; ", wrong);
      says(peri_apply_named(ctx, op->name, 1, &a), op->name, part);
    }
  }
}

static void a_wrong_kind_is_refused_by_name (void **state) {
  (void)state;
  for (int i = 0; i < peri_op_count(); i++) {
    const peri_op *op = peri_op_at(i);
    for (int k = 0; k < peri_op_params(op); k++) {
      const peri_param *p = peri_op_param(op, k);
      const peri_arg all[] = { peri_named(p->name, x),       peri_list(p->name, 1, &x),
                               peri_int(p->name, 1),         peri_num(p->name, 1),
                               peri_bool(p->name, true),     peri_str(p->name, "a"),
                               peri_type(p->name, PERI_F32), peri_ints(p->name, 0, NULL) };
      bool number = p->kind <= PERI_K_OPTIONAL && !p->written; /* it may stand for a tensor */
      int taken = plausible(p, &x).given;
      for (size_t j = 0; j < sizeof all / sizeof *all; j++) {
        bool integer = all[j].given == PERI_ARG_INT;
        char part[96];
        if (all[j].given == taken || (number && (integer || all[j].given == PERI_ARG_NUM)))
          continue;
        if (integer && (p->kind == PERI_K_NUM || taken == PERI_ARG_INTS)) continue;
        snprintf(part, sizeof part, ": %s (%s) is given by peri_", p->name,
                 peri_kind_name(p->kind));
        says(peri_apply_named(ctx, op->name, 1, &all[j]), op->name, part);
      }
    }
  }
}

static void what_is_missing_or_given_twice_is_named (void **state) {
  (void)state;
  for (int i = 0; i < peri_op_count(); i++) {
    const peri_op *op = peri_op_at(i);
    peri_tensor *list[2] = { x, y }, *out[PERI_MAX_OUT + 1] = { NULL };
    bool first = true;
    for (int k = 0; k < peri_op_params(op); k++) {
      const peri_param *p = peri_op_param(op, k);
      peri_arg a[MAX];
      char part[96];
      int n = arguments(op, 0, list, out, a);
      a[n] = a[k];
      snprintf(part, sizeof part, ": %s is given twice", p->name);
      says(peri_apply_named(ctx, op->name, n + 1, a), op->name, part);
      bool list_after = p->kind == PERI_K_TENSORS && !first;
      first = first && p->kind != PERI_K_TENSORS;
      if (p->has_default || p->kind == PERI_K_OPTIONAL || list_after) continue;
      a[k] = a[n - 1];
      snprintf(part, sizeof part, ": %s (%s) is missing", p->name, peri_kind_name(p->kind));
      says(peri_apply_named(ctx, op->name, n - 1, a), op->name, part);
    }
    peri_arg a[MAX];
    int n = arguments(op, 0, list, out, a);
    a[n] = peri_out(&out[PERI_MAX_OUT]);
    says(peri_apply_named(ctx, op->name, n + 1, a), op->name, ": a result more than the");
    if (peri_op_outputs(op) > 0)
      says(peri_apply_named(ctx, op->name, peri_op_params(op), a), op->name, "no result is asked");
    for (int k = 0; k <= PERI_MAX_OUT; k++) assert_null(out[k]);
  }
}

/* A signature is what the parameters say, one after the other. */
static void the_parameters_are_the_signature (void **state) {
  (void)state;
  int twins = 0;
  for (int i = 0; i < peri_op_count(); i++) {
    const peri_op *op = peri_op_at(i);
    char text[1024] = "";
    int attrs = 0, written = 0;
    for (int k = 0; k < peri_op_params(op); k++) {
      const peri_param *p = peri_op_param(op, k);
      size_t n = strlen(text);
      bool plain = p->kind == PERI_K_TENSOR;
      snprintf(text + n, sizeof text - n, "%s%s%s%s", k ? ", " : "", p->name, plain ? "" : ":",
               plain ? "" : peri_kind_name(p->kind));
      const char *sig = peri_op_signature(op);
      n = strlen(text);
      assert_int_equal(strncmp(sig, text, n), 0);
      if (sig[n] == '=') { /* the text of the default */
        assert_true(p->has_default);
        size_t end = n + strcspn(sig + n, ",");
        snprintf(text + n, sizeof text - n, "%.*s", (int)(end - n), sig + n);
      } else
        assert_false(p->has_default);
      attrs += p->kind > PERI_K_TENSORS;
      written += p->written;
    }
    assert_string_equal(text, peri_op_signature(op));
    assert_int_equal(attrs, peri_op_attrs(op));
    assert_int_equal(written > 0, (peri_op_flags(op) & PERI_OP_INPLACE) != 0);
    assert_null(peri_op_param(op, peri_op_params(op)));
    assert_null(peri_op_param(op, -1));
    twins += (peri_op_flags(op) & PERI_OP_ELEMENTWISE) != 0;
    assert_ptr_equal(peri_op_find(op->name), op);
  }
  assert_true(twins > 20);
  assert_null(peri_op_find("softmx"));
  assert_string_equal(peri_kind_name((peri_kind)99), "");
  assert_true(peri_op_flags(peri_op_find("rand")) & PERI_OP_RANDOM);
  assert_true(peri_op_flags(peri_op_find("matmul")) & PERI_OP_GRAD);
  assert_false(peri_op_flags(peri_op_find("argmax")) & PERI_OP_GRAD);
}

/* ---- calls ---- */

static double sum_of (peri_tensor *t) {
  peri_tensor *sum = NULL;
  double v = NAN;
  assert_int_equal(PERI_CALL(ctx, "sum", peri_in(t), peri_out(&sum)), PERI_OK);
  assert_int_equal(peri_item(sum, 0, &v), PERI_OK);
  peri_release(sum);
  return v;
}

static void a_call_is_one_line (void **state) {
  (void)state;
  peri_tensor *p = NULL, *values = NULL, *places = NULL, *both = NULL, *list[2] = { x, y };
  assert_int_equal(PERI_CALL(ctx, "softmax", peri_in(x), peri_int("dim", 0), peri_out(&p)),
                   PERI_OK);
  assert_true(fabs(sum_of(p) - 3) < 1e-5);
  assert_int_equal(
      PERI_CALL(ctx, "topk", peri_in(x), peri_int("k", 2), peri_out(&values), peri_out(&places)),
      PERI_OK);
  assert_float_equal(sum_of(values), 16, 0);
  peri_release(values);
  assert_int_equal(PERI_CALL(ctx, "topk", peri_in(x), peri_int("k", 1), peri_out(&values)),
                   PERI_OK);
  assert_float_equal(sum_of(values), 9, 0);
  peri_release(places);
  places = NULL;
  assert_int_equal(
      PERI_CALL(ctx, "topk", peri_in(x), peri_int("k", 1), peri_out(NULL), peri_out(&places)),
      PERI_OK);
  assert_int_equal(peri_dtype_of(places), PERI_I64);
  assert_int_equal(
      PERI_CALL(ctx, "cat", peri_list(NULL, 2, list), peri_int("dim", 1), peri_out(&both)),
      PERI_OK);
  assert_int_equal(peri_shape(both)[1], 6);
  peri_release(p), peri_release(values), peri_release(places), peri_release(both);
}

static void numbers_stand_for_tensors (void **state) {
  (void)state;
  const int64_t n = 2, big = ((int64_t)1 << 53) + 1;
  peri_tensor *t = NULL, *ids = NULL;
  assert_int_equal(PERI_CALL(ctx, "mul", peri_in(x), peri_num("y", 0.5), peri_out(&t)), PERI_OK);
  assert_int_equal(peri_dtype_of(t), PERI_F32);
  assert_float_equal(sum_of(t), 10.5, 0);
  peri_release(t);
  assert_int_equal(PERI_CALL(ctx, "full", peri_ints("shape", 1, &n), peri_int("value", big),
                             peri_type("dtype", PERI_I64), peri_out(&ids)),
                   PERI_OK);
  assert_int_equal(((int64_t *)peri_data(ids))[1], big);
  assert_int_equal(PERI_CALL(ctx, "sub", peri_in(ids), peri_int("y", big), peri_out(&t)), PERI_OK);
  assert_int_equal(peri_dtype_of(t), PERI_I64);
  assert_int_equal(((int64_t *)peri_data(t))[0], 0);
  peri_release(t), peri_release(ids);
  assert_int_equal(PERI_CALL(ctx, "sum", peri_in(x), peri_int("dims", 1), peri_out(&t)), PERI_OK);
  assert_int_equal(peri_shape(t)[0], 2);
  peri_release(t);
}

static void twins_write_in_place (void **state) {
  (void)state;
  peri_tensor *t = NULL, *wide = NULL;
  assert_int_equal(PERI_CALL(ctx, "clone", peri_in(x), peri_out(&t)), PERI_OK);
  assert_int_equal(PERI_CALL(ctx, "mul_", peri_in(t), peri_num("y", 2)), PERI_OK);
  assert_float_equal(sum_of(t), 42, 0);
  refused(PERI_CALL(ctx, "mul_", peri_num("x", 2), peri_in(t)),
          "mul_: x (tensor) is given by peri_in, not by peri_num");
  refused(PERI_CALL(ctx, "mul_", peri_in(t), peri_in(x), peri_out(&wide)),
          "mul_: a result more than the 0 that it returns");
  assert_int_equal(PERI_CALL(ctx, "matmul_", peri_in(t), peri_in(x)), PERI_ENOSUP);
  assert_string_equal(peri_message(ctx), "matmul_: matmul has no in-place form");
  assert_int_equal(PERI_CALL(ctx, "copy_", peri_in(t), peri_in(x)), PERI_OK);
  assert_float_equal(sum_of(t), 21, 0);
  assert_int_equal(peri_set_requires_grad(t, true), PERI_OK);
  says(PERI_CALL(ctx, "mul_", peri_in(t), peri_num("y", 2)), "mul_: ", "takes part in a graph (x)");
  peri_release(t);
}

static void what_is_refused_says_what_to_do (void **state) {
  (void)state;
  peri_tensor *t = NULL, *list[3] = { x, y, x };
  peri_arg nonsense = peri_in(x);
  nonsense.given = 77;
  refused(PERI_CALL(ctx, "softmx", peri_in(x), peri_out(&t)),
          "no op is called 'softmx'; the nearest is 'softmax'");
  refused(PERI_CALL(ctx, "softmax", peri_in(x), peri_int("dims", 1), peri_out(&t)),
          "softmax: no parameter is called 'dims'; the nearest is 'dim'");
  refused(PERI_CALL(ctx, "softmax", peri_in(x), peri_int("axis_of_it", 1), peri_out(&t)),
          "softmax: no parameter is called 'axis_of_it'; there are x, dim:dim=-1");
  refused(PERI_CALL(ctx, "softmax", peri_in(x), peri_in(y), peri_out(&t)),
          "softmax: more tensors than the 1 of (x, dim:dim=-1)");
  refused(PERI_CALL(ctx, "softmax", peri_in(NULL), peri_out(&t)), "softmax: x is missing");
  refused(PERI_CALL(ctx, "softmax", peri_in(x), peri_int(NULL, 1), peri_out(&t)),
          "softmax: an argument of peri_int has no name");
  refused(PERI_CALL(ctx, "softmax", nonsense, peri_out(&t)),
          "softmax: an argument that none of peri_in, peri_int ... made");
  refused(PERI_CALL(ctx, "topk", peri_in(x), peri_out(&t)), "topk: k (int) is missing");
  refused(PERI_CALL(ctx, "sum", peri_in(x), peri_ints("dims", 2, NULL), peri_out(&t)),
          "sum: dims is NULL");
  refused(PERI_CALL(ctx, "cat", peri_list(NULL, -1, list), peri_out(&t)), "cat: xs has -1 entries");
  refused(PERI_CALL(ctx, "cat", peri_list(NULL, 2, NULL), peri_out(&t)), "cat: xs is NULL");
  refused(PERI_CALL(ctx, "ema_", peri_list(NULL, 2, list), peri_list(NULL, 3, list),
                    peri_num("decay", 0.5)),
          "ema_: sources lists 3 tensors, another list has 2");
  refused(peri_apply_named(ctx, "softmax", -1, NULL), "softmax: -1 arguments given");
  assert_null(t);
}

/* More tensors than fit on the stack, at every allocation that may fail. */
static void long_lists_and_lack_of_memory (void **state) {
  (void)state;
  peri_tensor *many[100], *t = NULL;
  for (int i = 0; i < 100; i++) many[i] = i % 2 ? x : y;
  for (int n = 0;; n++) {
    size_t before = memory_of(ctx).tensors;
    peri_memory_trim(ctx);
    peri_test_fail_after(ctx, n, false);
    peri_status s = PERI_CALL(ctx, "cat", peri_list("xs", 100, many), peri_out(&t));
    bool fired = peri_test_fired(ctx);
    peri_test_fail_after(ctx, -1, false);
    if (!fired && s == PERI_OK) break;
    assert_int_equal(s, PERI_ENOMEM);
    assert_int_equal(strncmp(peri_message(ctx), "cat: ", 5), 0);
    assert_int_equal(memory_of(ctx).tensors, before);
    assert_null(t);
  }
  assert_int_equal(peri_shape(t)[0], 200);
  peri_release(t);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(names_in_any_order_are_the_call_by_place),
    cmocka_unit_test(an_unknown_name_is_refused_with_the_nearest),
    cmocka_unit_test(a_wrong_kind_is_refused_by_name),
    cmocka_unit_test(what_is_missing_or_given_twice_is_named),
    cmocka_unit_test(the_parameters_are_the_signature),
    cmocka_unit_test(a_call_is_one_line),
    cmocka_unit_test(numbers_stand_for_tensors),
    cmocka_unit_test(twins_write_in_place),
    cmocka_unit_test(what_is_refused_says_what_to_do),
    cmocka_unit_test(long_lists_and_lack_of_memory),
  };
  return cmocka_run_group_tests(tests, open_all, close_all);
}
