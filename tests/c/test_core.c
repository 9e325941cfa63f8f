/* test_core.c - contexts, memory, tensors, the op table, the tape: the claims of perilune.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "op/op.h"
#include "run_op.h"
#include "memory_of.h"

/* A counting allocator: what a host would give. */
typedef struct counter {
  size_t live, calls;
} counter;

static void *counting_alloc (void *ud, void *ptr, size_t osize, size_t nsize) {
  counter *c = ud;
  c->calls++;
  c->live -= ptr ? osize : 0;
  if (nsize == 0) {
    free(ptr);
    return NULL;
  }
  c->live += nsize;
  return realloc(ptr, nsize);
}

static peri_ctx *open_counting (counter *c) {
  peri_options o;
  peri_ctx *ctx = NULL;
  peri_options_init(&o);
  o.alloc = counting_alloc;
  o.alloc_ud = c;
  o.threads = 2;
  assert_int_equal(peri_open(&o, &ctx), PERI_OK);
  return ctx;
}

static peri_tensor *vec (peri_ctx *ctx, int n, const float *v) {
  int64_t shape[1] = { n };
  peri_tensor *t = NULL;
  assert_int_equal(peri_from(ctx, PERI_F32, 1, shape, v, &t), PERI_OK);
  return t;
}

static peri_tensor *call2 (peri_ctx *ctx, const char *name, peri_tensor *a, peri_tensor *b) {
  peri_tensor *in[2] = { a, b }, *out = NULL;
  const peri_op *op = peri_op_find(name);
  assert_non_null(op);
  if (run_op(ctx, op, b ? 2 : 1, in, NULL, &out) != PERI_OK)
    fail_msg("%s: %s", name, peri_message(ctx));
  return out;
}

static double item (peri_tensor *t, int64_t i) {
  double v = 0;
  assert_int_equal(peri_item(t, i, &v), PERI_OK);
  return v;
}

static void close_frees_everything (void **state) {
  (void)state;
  counter c = { 0, 0 };
  peri_ctx *ctx = open_counting(&c);
  float v[3] = { 1, 2, 3 };
  peri_tensor *a = vec(ctx, 3, v), *b;
  assert_int_equal(peri_set_requires_grad(a, true), PERI_OK);
  b = call2(ctx, "exp", a, NULL);
  (void)b; /* left to peri_close on purpose, graph included */
  assert_true(memory_of(ctx).live_bytes >= 24);
  peri_close(ctx);
  assert_int_equal(c.live, 0);
  peri_close(NULL);
}

static void options_of_another_size_are_refused (void **state) {
  (void)state;
  peri_options o;
  peri_ctx *ctx = (peri_ctx *)&o;
  peri_options_init(&o);
  o.struct_size = sizeof o + 8;
  assert_int_equal(peri_open(&o, &ctx), PERI_EINVAL);
  assert_null(ctx);
}

static void steady_state_makes_no_host_allocations (void **state) {
  (void)state;
  counter c = { 0, 0 };
  peri_ctx *ctx = open_counting(&c);
  float v[100] = { 0 };
  peri_tensor *a = vec(ctx, 100, v);
  size_t calls = 0;
  for (int i = 0; i < 10; i++) {
    if (i == 2) calls = c.calls;
    peri_release(call2(ctx, "exp", a, NULL));
  }
  assert_int_equal(c.calls, calls);
  peri_release(a);
  assert_int_equal(memory_of(ctx).live_bytes, 0);
  assert_int_equal(memory_of(ctx).tensors, 0);
  peri_memory_trim(ctx);
  assert_int_equal(memory_of(ctx).reserved_bytes, 0);
  peri_close(ctx);
  assert_int_equal(c.live, 0);
}

/* Sampling holds a few large blocks, training many middling ones, the sizes of both vary a little. */
static void phases_whose_blocks_differ_keep_their_memory (void **state) {
  (void)state;
  enum { MIB = 1 << 20, N = 48 };
  counter c = { 0, 0 };
  peri_ctx *ctx = open_counting(&c);
  peri_tensor *held[N];
  size_t calls = 0, most = 0;
  for (int round = 0; round < 6; round++) {
    if (round == 2) calls = c.calls;
    for (int phase = 0; phase < 2; phase++) {
      int n = phase == 0 ? 2 : N;
      for (int i = 0; i < n; i++) {
        int64_t size = (phase == 0 ? 20 * MIB : 3 * MIB) / 4 - (round * 7 + i) % 3 * 1000;
        assert_int_equal(peri_empty(ctx, PERI_F32, 1, &size, &held[i]), PERI_OK);
      }
      for (int i = 0; i < n; i++) peri_release(held[i]);
      size_t reserved = memory_of(ctx).reserved_bytes;
      most = reserved > most ? reserved : most;
    }
  }
  assert_int_equal(c.calls, calls); /* 40 MiB and 144 MiB fit side by side into what is kept */
  const size_t peak = memory_of(ctx).peak_bytes;
  assert_true(most <= peak + peak / 8 + 40 * MIB);
  for (int i = 0; i < 64; i++) { /* sizes that come once push the others out, no more */
    int64_t size = (i + 1) * MIB / 4;
    peri_tensor *t;
    assert_int_equal(peri_empty(ctx, PERI_F32, 1, &size, &t), PERI_OK);
    peri_release(t);
    assert_true(memory_of(ctx).reserved_bytes <= peak + peak / 8 + 40 * MIB);
  }
  peri_close(ctx);
  assert_int_equal(c.live, 0);
}

static void a_limit_on_live_bytes_holds (void **state) {
  (void)state;
  peri_options o;
  peri_ctx *ctx = NULL;
  peri_options_init(&o);
  o.max_bytes = 1000;
  assert_int_equal(peri_open(&o, &ctx), PERI_OK);
  int64_t shape[1] = { 200 };
  peri_tensor *a = NULL, *b = NULL;
  assert_int_equal(peri_empty(ctx, PERI_F32, 1, shape, &a), PERI_OK);
  assert_int_equal(peri_empty(ctx, PERI_F32, 1, shape, &b), PERI_ENOMEM);
  assert_null(b);
  assert_non_null(strstr(peri_message(ctx), "limit of 1000"));
  peri_release(a);
  peri_close(ctx);
}

static void shapes_are_checked (void **state) {
  (void)state;
  peri_ctx *ctx = NULL;
  assert_int_equal(peri_open(NULL, &ctx), PERI_OK);
  peri_tensor *t = NULL;
  int64_t huge[2] = { INT64_C(1) << 40, INT64_C(1) << 40 }, minus[1] = { -1 },
          zero[3] = { 4, 0, 3 };
  int64_t deep[9] = { 1, 1, 1, 1, 1, 1, 1, 1, 1 };
  assert_int_equal(peri_empty(ctx, PERI_F32, 2, huge, &t), PERI_ESHAPE);
  assert_int_equal(peri_empty(ctx, PERI_F32, 1, minus, &t), PERI_ESHAPE);
  assert_int_equal(peri_empty(ctx, PERI_F32, 9, deep, &t), PERI_ESHAPE);
  assert_int_equal(peri_empty(ctx, PERI_NDTYPE, 0, NULL, &t), PERI_EDTYPE);
  assert_null(t);
  assert_int_equal(peri_empty(ctx, PERI_F32, 3, zero, &t), PERI_OK);
  assert_int_equal(peri_numel(t), 0);
  peri_release(t);
  peri_close(ctx);
}

static int released;
static void on_release (void *ud, void *data) {
  assert_ptr_equal(ud, &released);
  assert_non_null(data);
  released++;
}

static void imported_memory_is_shared_and_given_back_once (void **state) {
  (void)state;
  peri_ctx *ctx = NULL;
  assert_int_equal(peri_open(NULL, &ctx), PERI_OK);
  float host[6] = { 1, 2, 3, 4, 5, 6 };
  int64_t shape[2] = { 3, 2 }, strides[2] = { 1, 3 }; /* the transpose of 2 x 3 */
  peri_tensor *t = NULL, *u = NULL;
  released = 0;
  assert_int_equal(peri_import(ctx, PERI_F32, 2, shape, strides, host, on_release, &released, &t),
                   PERI_OK);
  assert_ptr_equal(peri_data(t), host);
  assert_true(item(t, 1) == 4 && item(t, 2) == 2);
  host[3] = 40;
  assert_true(item(t, 1) == 40);
  assert_int_equal(memory_of(ctx).live_bytes, 0);
  assert_int_equal(peri_detach(t, &u), PERI_OK);
  peri_release(t);
  assert_int_equal(released, 0);
  peri_release(u);
  assert_int_equal(released, 1);
  peri_close(ctx);
}

static void half_conversions_round_to_even (void **state) {
  (void)state;
  for (uint32_t h = 0; h < 65536; h++) { /* every half survives the way there and back */
    float f = peri__f16_to_f32((uint16_t)h);
    if (f == f) assert_int_equal(peri__f32_to_f16(f), h);
    float b = peri__bf16_to_f32((uint16_t)h);
    if (b == b) assert_int_equal(peri__f32_to_bf16(b), h);
  }
  assert_int_equal(peri__f32_to_f16(2049.0f), 0x6800);  /* tie: 2048 is even */
  assert_int_equal(peri__f32_to_f16(2051.0f), 0x6802);  /* tie: 2052 is even */
  assert_int_equal(peri__f32_to_f16(65519.0f), 0x7bff); /* below the middle of 65504 and 65536 */
  assert_int_equal(peri__f32_to_f16(65520.0f), 0x7c00);
  assert_int_equal(peri__f32_to_f16(0x1p-25f), 0); /* tie with zero */
  assert_int_equal(peri__f32_to_f16(0x1.8p-25f), 1);
}

static void promotion_follows_the_rule (void **state) {
  (void)state;
  assert_int_equal(peri_dtype_promote(PERI_BOOL, PERI_U8), PERI_U8);
  assert_int_equal(peri_dtype_promote(PERI_I64, PERI_F16), PERI_F16);
  assert_int_equal(peri_dtype_promote(PERI_F16, PERI_BF16), PERI_F32);
  assert_int_equal(peri_dtype_promote(PERI_F32, PERI_BF16), PERI_F32);
  assert_int_equal(peri_dtype_promote(PERI_F64, PERI_F32), PERI_F64);
}

static void every_signature_parses (void **state) {
  (void)state;
  for (int i = 0; i < peri_op_count(); i++) {
    const peri_op *op = peri_op_at(i);
    if (!peri__sig(op)) fail_msg("signature of %s: %s", peri_op_name(op), peri_op_signature(op));
    assert_ptr_equal(peri_op_find(peri_op_name(op)), op);
    size_t n = strlen(peri_op_doc(op));
    if (n < 10 || peri_op_doc(op)[n - 1] != '.')
      fail_msg("doc of %s is no sentence", peri_op_name(op));
    if (op->nout > PERI_MAX_OUT || op->nret > op->nout) fail_msg("outputs of %s", peri_op_name(op));
  }
  assert_null(peri_op_find("no such op"));
  assert_null(peri_op_at(-1));
}

static void backward_accumulates_into_leaves (void **state) {
  (void)state;
  peri_ctx *ctx = NULL;
  assert_int_equal(peri_open(NULL, &ctx), PERI_OK);
  float v[2] = { 2, 3 };
  peri_tensor *x = vec(ctx, 2, v), *y, *s;
  assert_int_equal(peri_set_requires_grad(x, true), PERI_OK);
  for (int pass = 1; pass <= 2; pass++) {
    y = call2(ctx, "mul", x, x);
    s = call2(ctx, "sum", y, NULL);
    peri_release(y); /* the graph keeps it */
    assert_int_equal(peri_backward(ctx, s, NULL, false), PERI_OK);
    assert_true(item(peri_grad(x), 0) == 4 * pass && item(peri_grad(x), 1) == 6 * pass);
    assert_int_equal(peri_backward(ctx, s, NULL, false), PERI_EINVAL);
    assert_non_null(strstr(peri_message(ctx), "freed"));
    peri_release(s);
  }
  peri_release(x);
  assert_int_equal(memory_of(ctx).tensors, 0);
  peri_close(ctx);
}

static void a_graph_dies_with_its_outputs (void **state) {
  (void)state;
  peri_ctx *ctx = NULL;
  assert_int_equal(peri_open(NULL, &ctx), PERI_OK);
  float v[1] = { 0.5f };
  peri_tensor *x = vec(ctx, 1, v), *y = peri_retain(x);
  assert_int_equal(peri_set_requires_grad(x, true), PERI_OK);
  for (int i = 0; i < 200000; i++) { /* freed one by one, not by recursion */
    peri_tensor *z = call2(ctx, "neg", y, NULL);
    peri_release(y);
    y = z;
  }
  assert_int_equal(memory_of(ctx).tensors, 200001);
  peri_release(y);
  assert_int_equal(memory_of(ctx).tensors, 1);
  assert_null(ctx->tape_first);
  peri_release(x);
  peri_close(ctx);
}

static void writing_over_a_saved_input_is_noticed (void **state) {
  (void)state;
  peri_ctx *ctx = NULL;
  assert_int_equal(peri_open(NULL, &ctx), PERI_OK);
  float v[2] = { 2, 3 };
  peri_tensor *x = vec(ctx, 2, v), *c = vec(ctx, 2, v), *y, *s, *in[2] = { NULL, NULL };
  assert_int_equal(peri_set_requires_grad(x, true), PERI_OK);
  y = call2(ctx, "mul", x, c);
  s = call2(ctx, "sum", y, NULL);
  in[0] = in[1] = c;
  assert_int_equal(peri_apply_inplace(ctx, &peri__op_add, 2, in, 0, NULL), PERI_OK);
  assert_int_equal(peri_backward(ctx, s, NULL, false), PERI_EINVAL);
  assert_non_null(strstr(peri_message(ctx), "changed in place"));
  assert_null(peri_grad(x)); /* a failed pass changes no gradient */
  in[0] = x;
  assert_int_equal(peri_apply_inplace(ctx, &peri__op_add, 2, in, 0, NULL), PERI_EINVAL);
  peri_release(s);
  peri_release(y);
  peri_release(c);
  peri_release(x);
  peri_close(ctx);
}

static void second_derivatives_come_from_the_same_rules (void **state) {
  (void)state;
  peri_ctx *ctx = NULL;
  assert_int_equal(peri_open(NULL, &ctx), PERI_OK);
  float v[1] = { 3 };
  peri_tensor *x = vec(ctx, 1, v), *x2, *y, *g = NULL, *h = NULL;
  assert_int_equal(peri_set_requires_grad(x, true), PERI_OK);
  x2 = call2(ctx, "mul", x, x);
  y = call2(ctx, "mul", x2, x); /* x^3 */
  assert_int_equal(peri_gradients(ctx, y, NULL, 1, &x, true, &g), PERI_OK);
  assert_true(item(g, 0) == 27);
  assert_int_equal(peri_gradients(ctx, g, NULL, 1, &x, false, &h), PERI_OK);
  assert_true(item(h, 0) == 18);
  assert_null(peri_grad(x));
  peri_release(h);
  peri_release(g);
  peri_release(y);
  peri_release(x2);
  peri_release(x);
  assert_int_equal(memory_of(ctx).tensors, 0);
  peri_close(ctx);
}

static void anomaly_mode_names_the_op (void **state) {
  (void)state;
  peri_ctx *ctx = NULL;
  assert_int_equal(peri_open(NULL, &ctx), PERI_OK);
  float v[2] = { 1, -1 };
  peri_tensor *x = vec(ctx, 2, v), *y = NULL;
  peri_set_anomaly(ctx, true);
  assert_int_equal(run_op(ctx, peri_op_find("log"), 1, &x, NULL, &y), PERI_EINVAL);
  assert_non_null(strstr(peri_message(ctx), "log made a NaN"));
  assert_null(y);
  peri_release(x);
  peri_close(ctx);
}

static void an_interrupt_stops_until_cleared (void **state) {
  (void)state;
  peri_ctx *ctx = NULL;
  assert_int_equal(peri_open(NULL, &ctx), PERI_OK);
  float v[1] = { 1 };
  peri_tensor *x = vec(ctx, 1, v), *y = NULL;
  peri_interrupt(ctx);
  assert_int_equal(run_op(ctx, peri_op_find("exp"), 1, &x, NULL, &y), PERI_EINTR);
  peri_interrupt_clear(ctx);
  assert_int_equal(run_op(ctx, peri_op_find("exp"), 1, &x, NULL, &y), PERI_OK);
  peri_release(y);
  peri_release(x);
  peri_close(ctx);
}

/* One training step of a two-layer network, every intermediate released on every path. */
static peri_status train_step (peri_ctx *ctx, peri_tensor *x, peri_tensor *w1, peri_tensor *w2) {
  peri_build b;
  peri__build_begin(&b, ctx);
  peri_tensor *h = B(&b, tanh, B(&b, matmul, x, w1));
  peri_tensor *p = BA(&b, log_softmax, ATTR(A_INT(-1)), B(&b, matmul, h, w2));
  peri_tensor *loss = BA(&b, mean, ATTR({ .n = -1 }, A_INT(0)), B(&b, square, p));
  if (b.status == PERI_OK) peri__build_fail(&b, peri_backward(ctx, loss, NULL, false));
  return peri__build_end(&b);
}

static void every_failing_allocation_of_a_step_is_survived (void **state) {
  (void)state;
  counter c = { 0, 0 };
  peri_ctx *ctx = open_counting(&c);
  int64_t shape[2] = { 4, 4 };
  float v[16];
  for (int i = 0; i < 16; i++) v[i] = (float)(i % 5) * 0.25f - 0.4f;
  peri_tensor *x, *w1, *w2;
  assert_int_equal(peri_from(ctx, PERI_F32, 2, shape, v, &x), PERI_OK);
  assert_int_equal(peri_from(ctx, PERI_F32, 2, shape, v, &w1), PERI_OK);
  assert_int_equal(peri_from(ctx, PERI_F32, 2, shape, v, &w2), PERI_OK);
  assert_int_equal(peri_set_requires_grad(w1, true), PERI_OK);
  assert_int_equal(peri_set_requires_grad(w2, true), PERI_OK);
  assert_int_equal(train_step(ctx, x, w1, w2), PERI_OK);
  for (int sticky = 0; sticky < 2; sticky++) {
    int failures = 0;
    for (int64_t n = 0;; n++) {
      peri_memory before = memory_of(ctx);
      double g = item(peri_grad(w1), 0);
      peri_test_fail_after(ctx, n, sticky != 0);
      peri_status s = train_step(ctx, x, w1, w2);
      bool fired = peri_test_fired(ctx);
      peri_test_fail_after(ctx, -1, false);
      if (!fired) {
        assert_int_equal(s, PERI_OK);
        break;
      }
      failures += s != PERI_OK;
      if (s != PERI_OK) {
        assert_int_equal(s, PERI_ENOMEM);
        assert_true(item(peri_grad(w1), 0) == g); /* nothing observable changed */
      }
      assert_int_equal(memory_of(ctx).live_bytes, before.live_bytes);
      assert_int_equal(memory_of(ctx).tensors, before.tensors);
      assert_null(ctx->tape_first);
    }
    assert_true(failures > 40);
  }
  peri_release(x);
  peri_release(w1);
  peri_release(w2);
  assert_int_equal(memory_of(ctx).live_bytes, 0);
  peri_close(ctx);
  assert_int_equal(c.live, 0);
}

static int custom_released;
static void custom_release (void *ud) {
  (void)ud;
  custom_released++;
}

static peri_status custom_vjp (void *ud, peri_ctx *ctx, int nout, peri_tensor *const *gout, int nin,
                               peri_tensor **gin) {
  (void)ud;
  assert_int_equal(nout, 1);
  assert_int_equal(nin, 1);
  peri_tensor *in[2] = { gout[0], gout[0] };
  return run_op(ctx, peri_op_find("add"), 2, in, NULL, &gin[0]);
}

static void a_custom_vjp_takes_part (void **state) {
  (void)state;
  peri_ctx *ctx = NULL;
  assert_int_equal(peri_open(NULL, &ctx), PERI_OK);
  float v[1] = { 3 };
  peri_tensor *x = vec(ctx, 1, v), *y = vec(ctx, 1, v);
  assert_int_equal(peri_set_requires_grad(x, true), PERI_OK);
  custom_released = 0;
  assert_int_equal(peri_record_custom(ctx, "twice", 1, &x, 1, &y, custom_vjp, custom_release, NULL),
                   PERI_OK);
  assert_int_equal(peri_backward(ctx, y, NULL, false), PERI_OK);
  assert_true(item(peri_grad(x), 0) == 2);
  assert_int_equal(custom_released, 1);
  peri_release(y);
  peri_release(x);
  peri_close(ctx);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(close_frees_everything),
    cmocka_unit_test(options_of_another_size_are_refused),
    cmocka_unit_test(steady_state_makes_no_host_allocations),
    cmocka_unit_test(phases_whose_blocks_differ_keep_their_memory),
    cmocka_unit_test(a_limit_on_live_bytes_holds),
    cmocka_unit_test(shapes_are_checked),
    cmocka_unit_test(imported_memory_is_shared_and_given_back_once),
    cmocka_unit_test(half_conversions_round_to_even),
    cmocka_unit_test(promotion_follows_the_rule),
    cmocka_unit_test(every_signature_parses),
    cmocka_unit_test(backward_accumulates_into_leaves),
    cmocka_unit_test(a_graph_dies_with_its_outputs),
    cmocka_unit_test(writing_over_a_saved_input_is_noticed),
    cmocka_unit_test(second_derivatives_come_from_the_same_rules),
    cmocka_unit_test(anomaly_mode_names_the_op),
    cmocka_unit_test(an_interrupt_stops_until_cleared),
    cmocka_unit_test(every_failing_allocation_of_a_step_is_survived),
    cmocka_unit_test(a_custom_vjp_takes_part),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
