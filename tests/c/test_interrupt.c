/* test_interrupt.c - an interrupt is seen inside long ops and long JSON texts, and leaves nothing behind. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core/json.h"
#include "untrusted.h"
#include "run_op.h"
#include "memory_of.h"

static peri_ctx *ctx;
static heap all;
static double asked; /* when */

static void *interrupter (void *ud) {
  struct timespec t = { 0, *(const long *)ud };
  nanosleep(&t, NULL);
  asked = peri__now();
  peri_interrupt(ctx);
  return NULL;
}

static int open_all (void **state) {
  (void)state;
  ctx = open_counted(&all);
  return 0;
}

static int close_all (void **state) {
  (void)state;
  close_counted(ctx, &all);
  return 0;
}

/* Sizes at which each takes far longer than it may go on after the interrupt. */
static const struct {
  const char *op;
  int n, ndim;
  int64_t shape[4];
  peri_attr attr[4];
  bool given;
} ops[] = {
  { "sort", 1, 1, { 1 << 23 }, { { 0 } }, false },
  { "argsort", 1, 2, { 1 << 22, 2 }, { { 0 } }, false },
  { "cumsum", 1, 1, { 1 << 25 }, { { 0 } }, false },
  { "cummax", 1, 1, { 1 << 25 }, { { 0 } }, false },
  { "cumprod", 1, 2, { 1 << 24, 2 }, { { .i = 0 } }, true },
  { "attention", 5, 4, { 1, 3072, 8, 64 }, { { 0 } }, false },
  { "matmul", 2, 2, { 3000, 3000 }, { { 0 } }, false },
  { "softmax", 1, 2, { 1 << 12, 1 << 12 }, { { 0 } }, false },
  { "to", 1, 2, { 1 << 11, 1 << 12 }, { { .i = PERI_Q4_K } }, true },
  { "randperm", 0, 0, { 0 }, { { .i = 1 << 24 }, { .i = PERI_I64 } }, true },
  { "arange",
    0,
    0,
    { 0 },
    { { .f = 1 << 26, .i = 1 << 26 }, { .f = NAN }, { .f = 1 }, { .i = PERI_F32 } },
    true },
};

static void a_long_op_ends_soon_after_an_interrupt (void **state) {
  (void)state;
  long wait = 10000000; /* 10 ms */
  int seen = 0;
  for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
    peri_tensor *x = NULL, *in[5] = { NULL }, *out[4] = { NULL };
    pthread_t thread;
    if (ops[i].n > 0) {
      peri_attr a[2] = { { .v = ops[i].shape, .n = ops[i].ndim }, { .i = PERI_F32 } };
      assert_int_equal(run_op(ctx, peri_op_find("rand"), 0, NULL, a, &x), PERI_OK);
    }
    for (int k = 0; k < ops[i].n && k < 3; k++) in[k] = x;
    assert_int_equal(pthread_create(&thread, NULL, interrupter, &wait), 0);
    peri_status s =
        run_op(ctx, peri_op_find(ops[i].op), ops[i].n, in, ops[i].given ? ops[i].attr : NULL, out);
    double end = peri__now();
    pthread_join(thread, NULL);
    if (s == PERI_EINTR) {
      seen++;
      if (end - asked > 1) fail_msg("%s went on for %.2f s", ops[i].op, end - asked);
    } else
      assert_int_equal(s, PERI_OK); /* it was done before */
    peri_interrupt_clear(ctx);
    for (int k = 0; k < 4 && s == PERI_OK; k++) peri_release(out[k]);
    peri_release(x);
    assert_int_equal(memory_of(ctx).tensors, 0);
    peri_memory_trim(ctx);
  }
  assert_true(seen >= 4);
}

static void json_looks_for_an_interrupt (void **state) {
  (void)state;
  size_t n = 1 << 20;
  char *text = peri__malloc(ctx, n);
  peri_json p;
  peri_json_value v;
  int64_t pieces = 0;
  memset(text, '[', 1);
  for (size_t i = 1; i < n; i += 2) memcpy(text + i, i + 2 < n ? "1," : "1]", i + 1 < n ? 2 : 1);
  text[n - 1] = ']';
  peri_json_open(&p, ctx, text, n, NULL);
  peri_interrupt(ctx);
  peri_status s;
  while ((s = peri_json_next(&p, &v)) == PERI_OK && v.type != PERI_JSON_END) pieces++;
  assert_int_equal(s, PERI_EINTR);
  assert_in_range(pieces, 0, 1 << 16);
  peri_interrupt_clear(ctx);
  assert_int_equal(peri_json_next(&p, &v), PERI_EINTR); /* it does not go on in the middle */
  peri_json_close(&p);

  peri_json_writer w;
  peri_json_begin(&w, ctx, 0, PERI_JSON_NAN_ERROR);
  peri_json_put_array(&w);
  peri_interrupt(ctx);
  for (int i = 0; i < 1 << 17; i++) peri_json_put_int(&w, i);
  peri_json_put_close(&w);
  assert_int_equal(peri_json_finish(&w), PERI_EINTR);
  peri_interrupt_clear(ctx);
  peri_json_drop(&w);

  peri_json_begin(&w, ctx, 0, PERI_JSON_NAN_ERROR);
  memset(text, 'a', n);
  peri_interrupt(ctx);
  peri_json_put_string(&w, text, n);
  assert_int_equal(peri_json_finish(&w), PERI_EINTR);
  peri_interrupt_clear(ctx);
  peri_json_drop(&w);
  peri__free(ctx, text, n);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_long_op_ends_soon_after_an_interrupt),
    cmocka_unit_test(json_looks_for_an_interrupt),
  };
  return cmocka_run_group_tests(tests, open_all, close_all);
}
