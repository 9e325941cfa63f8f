/*
** test_share.c - memory that several contexts look at: views and weights without a copy, who may write,
** what counts where, every order in which owners and holders go, from other threads, without memory.
*/
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "op/op.h"
#include "scratch.h"
#include "memory_of.h"

enum { N = 64 };

static peri_tensor *counting (peri_ctx *ctx, int64_t n) {
  peri_tensor *t = NULL;
  assert_int_equal(peri_empty(ctx, PERI_F32, 1, &n, &t), PERI_OK);
  for (int64_t i = 0; i < n; i++) ((float *)peri_data(t))[i] = (float)i;
  return t;
}

static double item (peri_tensor *t, int64_t i) {
  double v = 0;
  assert_int_equal(peri_item(t, i, &v), PERI_OK);
  return v;
}

static peri_shared *shared (peri_tensor *t, peri_share_mode mode) {
  peri_shared *h = NULL;
  assert_int_equal(peri_share(t, mode, &h), PERI_OK);
  return h;
}

static peri_tensor *taken (peri_ctx *ctx, peri_shared *h) {
  peri_tensor *t = NULL;
  assert_int_equal(peri_take(ctx, h, &t), PERI_OK);
  return t;
}

static size_t live (peri_ctx *ctx) { return memory_of(ctx).live_bytes; }
static size_t seen (peri_ctx *ctx) { return memory_of(ctx).shared_bytes; }

/* ---- one memory ---- */

static void a_taken_tensor_is_the_same_memory (void **state) {
  (void)state;
  heap other;
  peri_ctx *b = open_counted(&other);
  peri_tensor *x = counting(C, N), *y, *z;
  peri_shared *h = shared(x, PERI_SHARE_READ);
  y = taken(b, h);
  z = taken(b, h);
  assert_ptr_equal(peri_data(y), peri_data(x));
  assert_ptr_equal(peri_ctx_of(y), b);
  assert_ptr_equal(y->storage,
                   z->storage); /* one for a context, so that writes know their targets */
  assert_int_equal(peri_sharing(x), PERI_SHARE_READ);
  assert_int_equal(peri_sharing(y), PERI_SHARE_READ);
  assert_int_equal(live(C), N * 4);
  assert_int_equal(live(b), 0);
  assert_int_equal(seen(b), N * 4); /* once, however many look */
  assert_int_equal(seen(C), 0);
  peri_release(x);
  peri_shared_release(h);
  assert_int_equal(live(C), N * 4); /* b still holds it */
  assert_true(item(y, 5) == 5);
  peri_release(y);
  peri_release(z);
  assert_int_equal(live(C), 0);
  assert_int_equal(seen(b), 0);
  close_counted(b, &other);
}

static void views_cross_as_they_are_and_on_to_a_third (void **state) {
  (void)state;
  heap hb, hc;
  peri_ctx *b = open_counted(&hb), *c = open_counted(&hc);
  peri_tensor *x = counting(C, 24), *view = NULL, *y, *z, *back;
  const int64_t shape[2] = { 3, 2 }, stride[2] = { -4, 3 };
  assert_int_equal(peri__view(x, 20, 2, shape, stride, &view), PERI_OK);
  peri_shared *h = shared(view, PERI_SHARE_READ), *g;
  y = taken(b, h);
  g = shared(y, PERI_SHARE_DEFAULT); /* b's handle of C's memory */
  z = taken(c, g);
  back = taken(C, g);
  assert_ptr_equal(back->storage, x->storage);
  for (int i = 0; i < 6; i++) assert_true(item(z, i) == 20 - 4 * (i / 2) + 3 * (i % 2));
  peri_release(x), peri_release(view), peri_release(back);
  peri_shared_release(h), peri_shared_release(g);
  peri_release(y);
  close_counted(b, &hb);
  assert_true(item(z, 0) == 20);
  assert_int_equal(live(C), 96);
  peri_release(z);
  assert_int_equal(live(C), 0);
  close_counted(c, &hc);
}

static void weights_cross_packed_and_quantised (void **state) {
  (void)state;
  heap hb;
  peri_ctx *b = open_counted(&hb);
  const int64_t shape[2] = { 32, 64 };
  peri_tensor *w = NULL, *x = NULL, *packed[2] = { NULL, NULL };
  assert_int_equal(peri_empty(C, PERI_F32, 2, shape, &w), PERI_OK);
  for (int i = 0; i < 32 * 64; i++) ((float *)peri_data(w))[i] = (float)(i % 17) - 8;
  const int64_t row[2] = { 1, 64 };
  assert_int_equal(peri_empty(C, PERI_F32, 2, row, &x), PERI_OK);
  for (int i = 0; i < 64; i++) ((float *)peri_data(x))[i] = (float)(i % 5);
  peri_attr to = { .i = PERI_Q8_0 };
  assert_int_equal(peri_apply(C, peri_op_find("pack"), 1, &w, 0, NULL, 1, &packed[0]), PERI_OK);
  assert_int_equal(peri_apply(C, peri_op_find("to"), 1, &w, 1, &to, 1, &packed[1]), PERI_OK);
  for (int k = 0; k < 2; k++) {
    peri_shared *hw = shared(packed[k], PERI_SHARE_READ), *hx = shared(x, PERI_SHARE_READ);
    peri_tensor *in[3] = { x, packed[k], NULL }, *mine = NULL, *theirs = NULL;
    assert_int_equal(peri_apply(C, peri_op_find("linear"), 3, in, 0, NULL, 1, &mine), PERI_OK);
    in[0] = taken(b, hx);
    in[1] = taken(b, hw);
    assert_int_equal(in[1]->storage->packed, k == 0);
    assert_int_equal(peri_apply(b, peri_op_find("linear"), 3, in, 0, NULL, 1, &theirs), PERI_OK);
    assert_memory_equal(peri_data(mine), peri_data(theirs), peri_nbytes(mine));
    peri_release(in[0]), peri_release(in[1]), peri_release(mine), peri_release(theirs);
    peri_shared_release(hw), peri_shared_release(hx);
  }
  peri_release(w), peri_release(x), peri_release(packed[0]), peri_release(packed[1]);
  close_counted(b, &hb);
}

/* ---- who may write ---- */

static void read_only_holds_for_every_view_in_every_context (void **state) {
  (void)state;
  heap hb;
  peri_ctx *b = open_counted(&hb);
  peri_tensor *x = counting(C, N), *before = NULL, *y;
  assert_int_equal(peri_detach(x, &before), PERI_OK);
  peri_shared *h = shared(x, PERI_SHARE_READ), *none = NULL;
  y = taken(b, h);
  peri_tensor *pair[3][2] = { { x, x }, { before, before }, { y, y } };
  for (int i = 0; i < 3; i++) {
    peri_ctx *ctx = peri_ctx_of(pair[i][0]);
    want_failure(ctx, peri_apply_inplace(ctx, peri_op_find("add"), 2, pair[i], 0, NULL),
                 PERI_EINVAL, "x, which is written, is shared read-only");
  }
  want_failure(C, peri_share(x, PERI_SHARE_RACING, &none), PERI_EINVAL, "read-only already");
  want_failure(b, peri_share(y, PERI_SHARE_RACING, &none), PERI_EINVAL, "read-only already");
  want_failure(C, peri_share(x, (peri_share_mode)7, &none), PERI_EINVAL, "share mode 7");
  assert_null(none);
  peri_release(y);
  peri_shared_release(h);
  assert_int_equal(peri_apply_inplace(C, peri_op_find("add"), 2, pair[0], 0, NULL), PERI_EINVAL);
  peri_release(x), peri_release(before);
  close_counted(b, &hb);
}

static void racing_memory_is_written_by_all (void **state) {
  (void)state;
  heap hb;
  peri_ctx *b = open_counted(&hb);
  peri_tensor *x = counting(C, N), *one = NULL;
  peri_shared *h = shared(x, PERI_SHARE_RACING), *none = NULL;
  peri_tensor *y = taken(b, h);
  uint32_t before = x->storage->version;
  assert_int_equal(peri_scalar(b, PERI_F32, 1, &one), PERI_OK);
  peri_tensor *in[2] = { y, one };
  assert_int_equal(peri_apply_inplace(b, peri_op_find("add"), 2, in, 0, NULL), PERI_OK);
  assert_true(item(x, 3) == 4);
  assert_int_equal(x->storage->version, before); /* the tape of C sees C's own writes */
  want_failure(b, peri_share(y, PERI_SHARE_READ, &none), PERI_EINVAL, "for racing writes already");
  peri_release(x), peri_release(y), peri_release(one);
  peri_shared_release(h);
  close_counted(b, &hb);
}

static void graphs_stay_at_home (void **state) {
  (void)state;
  heap hb;
  peri_ctx *b = open_counted(&hb);
  peri_tensor *w = counting(C, N), *y = NULL, *cut = NULL;
  assert_int_equal(peri_set_requires_grad(w, true), PERI_OK);
  peri_tensor *in[2] = { w, w };
  assert_int_equal(peri_apply(C, peri_op_find("mul"), 2, in, 0, NULL, 1, &y), PERI_OK);
  peri_shared *h = NULL, *leaf = shared(w, PERI_SHARE_READ);
  want_failure(C, peri_share(y, PERI_SHARE_READ, &h), PERI_EINVAL, "detach it");
  assert_int_equal(peri_detach(y, &cut), PERI_OK);
  h = shared(cut, PERI_SHARE_READ);
  peri_tensor *theirs = taken(b, leaf);
  assert_false(peri_requires_grad(theirs));
  assert_int_equal(peri_set_requires_grad(theirs, true), PERI_OK); /* a leaf of b now */
  peri_tensor *mine[2] = { theirs, theirs }, *product = NULL, *sum = NULL;
  assert_int_equal(peri_apply(b, peri_op_find("mul"), 2, mine, 0, NULL, 1, &product), PERI_OK);
  assert_int_equal(peri_apply(b, peri_op_find("sum"), 1, &product, 0, NULL, 1, &sum), PERI_OK);
  for (int pass = 0; pass < 2; pass++) assert_int_equal(peri_backward(b, sum, NULL, true), PERI_OK);
  assert_true(item(peri_grad(theirs), 3) == 12);
  assert_null(peri_grad(w));
  peri_release(sum), peri_release(product), peri_release(theirs);
  peri_release(w), peri_release(y), peri_release(cut);
  peri_shared_release(h), peri_shared_release(leaf);
  close_counted(b, &hb);
}

/* A gradient that was shared is not written into by the next pass. */
static void a_shared_gradient_is_left_alone (void **state) {
  (void)state;
  peri_tensor *w = counting(C, N), *sum = NULL;
  assert_int_equal(peri_set_requires_grad(w, true), PERI_OK);
  assert_int_equal(peri_apply(C, peri_op_find("sum"), 1, &w, 0, NULL, 1, &sum), PERI_OK);
  assert_int_equal(peri_backward(C, sum, NULL, true), PERI_OK);
  peri_shared *h = shared(peri_grad(w), PERI_SHARE_READ);
  peri_tensor *g = taken(C, h);
  assert_int_equal(peri_backward(C, sum, NULL, true), PERI_OK);
  assert_true(item(g, 0) == 1);
  assert_true(item(peri_grad(w), 0) == 2);
  peri_release(g), peri_release(w), peri_release(sum);
  peri_shared_release(h);
}

/* ---- every order of going ---- */

static void owners_may_go_first (void **state) {
  (void)state;
  heap ha, hb;
  peri_ctx *a = open_counted(&ha), *b = open_counted(&hb);
  peri_tensor *x = counting(a, 1 << 16), *small = counting(a, 4), *y, *z;
  peri_shared *h = shared(x, PERI_SHARE_READ), *g = shared(small, PERI_SHARE_READ);
  y = taken(b, h);
  peri_close(a); /* with both tensors still held by the host */
  assert_true(ha.live > 1 << 18);
  assert_true(ha.live < 1 << 19); /* nothing but what is out */
  z = taken(b, g);
  assert_true(item(y, 65535) == 65535);
  peri_shared_release(h);
  peri_release(y);
  assert_true(ha.live < 1 << 17); /* freed by whoever was the last, at once */
  assert_true(item(z, 3) == 3);
  peri_shared_release(g);
  peri_release(z);
  assert_int_equal(ha.live, 0);
  assert_int_equal(ha.blocks, 0);
  close_counted(b, &hb);
}

static void holders_may_go_first (void **state) {
  (void)state;
  heap hb;
  peri_ctx *b = open_counted(&hb);
  peri_tensor *x = counting(C, N);
  peri_shared *h = shared(x, PERI_SHARE_READ);
  assert_non_null(taken(b, h)); /* freed with b */
  peri_shared_release(h);
  peri_close(b);
  assert_int_equal(hb.live, 0);
  assert_true(item(x, 1) == 1);
  peri_release(x);
}

static void a_handle_alone_keeps_memory (void **state) {
  (void)state;
  heap ha;
  peri_ctx *a = open_counted(&ha);
  peri_tensor *x = counting(a, N), *y;
  peri_shared *h = shared(x, PERI_SHARE_READ), *again = peri_shared_retain(h);
  peri_close(a);
  peri_shared_release(h);
  y = taken(C, again);
  peri_shared_release(again);
  assert_true(item(y, 63) == 63);
  assert_int_equal(seen(C), N * 4);
  peri_release(y);
  assert_int_equal(ha.live, 0);
}

static int gone;
static void count_gone (void *ud, void *data) {
  assert_ptr_equal(ud, data);
  gone++;
}

static void imported_memory_is_given_back_once (void **state) {
  (void)state;
  static float host[4] = { 1, 2, 3, 4 };
  const int64_t n = 4;
  for (int first = 0; first < 2; first++) {
    heap ha;
    peri_ctx *a = open_counted(&ha);
    peri_tensor *x = NULL, *y;
    gone = 0;
    assert_int_equal(peri_import(a, PERI_F32, 1, &n, NULL, host, count_gone, host, &x), PERI_OK);
    peri_shared *h = shared(x, PERI_SHARE_READ);
    y = taken(C, h);
    peri_shared_release(h);
    peri_release(x);
    if (first) peri_close(a);
    assert_int_equal(gone, 0);
    assert_true(item(y, 2) == 3);
    peri_release(y);
    if (!first) {
      assert_int_equal(gone, 0); /* on the owner's thread: not before it looks */
      memory_of(a);
      assert_int_equal(gone, 1);
      peri_close(a);
    }
    assert_int_equal(gone, 1);
    assert_int_equal(ha.live, 0);
  }
}

/* Dropping one from within a release of the same closed owner. */
static peri_shared *nested;
static void drop_nested (void *ud, void *data) {
  (void)ud;
  (void)data;
  gone++;
  peri_shared_release(nested);
}

static void a_release_may_release (void **state) {
  (void)state;
  heap ha;
  static float host[4];
  const int64_t n = 4;
  peri_ctx *a = open_counted(&ha);
  peri_tensor *x = NULL;
  gone = 0;
  assert_int_equal(peri_import(a, PERI_F32, 1, &n, NULL, host, drop_nested, NULL, &x), PERI_OK);
  peri_shared *h = shared(x, PERI_SHARE_READ);
  nested = shared(counting(a, N), PERI_SHARE_READ);
  peri_close(a);
  peri_shared_release(h);
  assert_int_equal(gone, 1);
  assert_int_equal(ha.live, 0);
}

static void what_was_never_handed_out_may_be_taken_back (void **state) {
  (void)state;
  peri_tensor *x = counting(C, N);
  peri_shared *h = shared(x, PERI_SHARE_READ), *g = shared(x, PERI_SHARE_DEFAULT);
  peri__unshare(C, g);
  assert_int_equal(peri_sharing(x), PERI_SHARE_READ);
  peri__unshare(C, h);
  assert_int_equal(peri_sharing(x), PERI_SHARE_DEFAULT);
  peri_tensor *in[2] = { x, x };
  assert_int_equal(peri_apply_inplace(C, peri_op_find("add"), 2, in, 0, NULL), PERI_OK);
  h = shared(x, PERI_SHARE_RACING);
  peri_shared *kept = peri_shared_retain(h);
  peri__unshare(C, h); /* somebody else has it */
  assert_int_equal(peri_sharing(x), PERI_SHARE_RACING);
  peri_shared_release(kept);
  peri_release(x);
}

/* Many at once: the table grows, shrinks to nothing, finds each. */
static void a_thousand_memories_are_kept_apart (void **state) {
  (void)state;
  enum { MANY = 1000 };
  static peri_tensor *x[MANY], *y[MANY];
  static peri_shared *h[MANY];
  heap hb;
  peri_ctx *b = open_counted(&hb);
  for (int i = 0; i < MANY; i++) {
    x[i] = counting(C, 1 + i % 7);
    h[i] = shared(x[i], PERI_SHARE_READ);
  }
  for (int i = 0; i < MANY; i++) y[i] = taken(b, h[i * 7 % MANY]);
  for (int i = 0; i < MANY; i++) {
    assert_ptr_equal(peri_data(y[i]), peri_data(x[i * 7 % MANY]));
    peri_tensor *again = taken(b, h[i * 7 % MANY]);
    assert_ptr_equal(again->storage, y[i]->storage);
    peri_release(again);
  }
  for (int i = 0; i < MANY; i++) peri_release(y[i * 3 % MANY]);
  assert_int_equal(seen(b), 0);
  for (int i = 0; i < MANY; i++) peri_release(x[i]), peri_shared_release(h[i]);
  close_counted(b, &hb);
}

static void misuse_is_answered (void **state) {
  (void)state;
  peri_tensor *x = counting(C, N), *y = NULL;
  peri_shared *h = NULL;
  assert_int_equal(peri_share(NULL, PERI_SHARE_READ, &h), PERI_EINVAL);
  want_failure(C, peri_share(x, PERI_SHARE_READ, NULL), PERI_EINVAL, "out is NULL");
  want_failure(C, peri_take(C, NULL, &y), PERI_EINVAL, "h is NULL");
  assert_int_equal(peri_take(NULL, NULL, &y), PERI_EINVAL);
  assert_int_equal(peri_sharing(NULL), PERI_SHARE_DEFAULT);
  assert_int_equal(peri_sharing(x), PERI_SHARE_DEFAULT);
  assert_null(peri_shared_retain(NULL));
  peri_shared_release(NULL);
  h = shared(x, PERI_SHARE_READ);
  want_failure(C, peri_take(C, h, NULL), PERI_EINVAL, "out is NULL");
  peri_shared_release(h);
  peri_release(x);
}

/* ---- without memory ---- */

static peri_status share_it (void *ud) {
  peri_tensor *x = NULL;
  peri_shared *h = NULL;
  const int64_t n = 8;
  (void)ud;
  TRY(peri_empty(C, PERI_F32, 1, &n, &x));
  peri_status s = peri_share(x, PERI_SHARE_READ, &h);
  if (s != PERI_OK) assert_int_equal(peri_sharing(x), PERI_SHARE_DEFAULT);
  peri_shared_release(h);
  peri_release(x);
  return s;
}

static peri_shared *to_take;
static peri_status take_it (void *ud) {
  peri_tensor *y = NULL;
  (void)ud;
  peri_status s = peri_take(C, to_take, &y);
  peri_release(y);
  return s;
}

static void every_allocation_may_fail (void **state) {
  (void)state;
  heap hb;
  peri_ctx *b = open_counted(&hb);
  peri_test_fail_after(
      C, 4, false); /* tensor, storage, data, handle; then the table of memories, which stays */
  assert_int_equal(share_it(NULL), PERI_ENOMEM);
  assert_true(peri_test_fired(C));
  assert_int_equal(share_it(NULL), PERI_OK);
  fail_every_allocation(C, &H, false, share_it, NULL);
  to_take = shared(counting(b, N), PERI_SHARE_READ);
  fail_every_allocation(C, &H, false, take_it, NULL);
  peri_shared_release(to_take);
  peri_close(b);
  assert_int_equal(hb.live, 0);
}

/* ---- other threads ---- */

enum { THREADS = 8, TURNS = 200 };

typedef struct holder {
  pthread_t id;
  peri_shared *h;
  double sum;
} holder;

static void *hold (void *arg) {
  holder *me = arg;
  peri_ctx *ctx;
  peri_options o;
  peri_options_init(&o);
  o.threads = 1;
  if (peri_open(&o, &ctx) != PERI_OK) return NULL;
  for (int i = 0; i < TURNS; i++) {
    peri_tensor *x = NULL, *sum = NULL;
    double v = 0;
    if (peri_take(ctx, me->h, &x) != PERI_OK) break;
    if (peri_apply(ctx, peri_op_find("sum"), 1, &x, 0, NULL, 1, &sum) != PERI_OK) break;
    peri_item(sum, 0, &v);
    me->sum += v;
    peri_shared *mine = NULL; /* a handle of our own, dropped by us */
    if (peri_share(sum, PERI_SHARE_READ, &mine) != PERI_OK) break;
    peri_shared_release(mine);
    peri_release(sum);
    peri_release(x);
  }
  peri_shared_release(me->h);
  peri_close(ctx);
  return NULL;
}

static void eight_threads_hold_and_let_go (void **state) {
  (void)state;
  for (int first = 0; first < 2; first++) {
    peri_ctx *a;
    peri_options o;
    peri_options_init(&o);
    o.threads = 1;
    assert_int_equal(peri_open(&o, &a), PERI_OK);
    holder all[THREADS];
    for (int i = 0; i < THREADS; i++) {
      peri_tensor *x = counting(a, N + i);
      all[i] = (holder){ .h = shared(x, PERI_SHARE_READ) };
      peri_release(x);
      assert_int_equal(pthread_create(&all[i].id, NULL, hold, &all[i]), 0);
    }
    if (first) peri_close(a);
    for (int i = 0; i < THREADS && !first; i++) peri_release(counting(a, N)); /* it works on */
    for (int i = 0; i < THREADS; i++) {
      pthread_join(all[i].id, NULL);
      assert_true(all[i].sum == TURNS * (double)(N + i) * (N + i - 1) / 2);
    }
    if (!first) {
      assert_int_equal(live(a), 0);
      peri_close(a);
    }
  }
}

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(a_taken_tensor_is_the_same_memory),
    TEST(views_cross_as_they_are_and_on_to_a_third),
    TEST(weights_cross_packed_and_quantised),
    TEST(read_only_holds_for_every_view_in_every_context),
    TEST(racing_memory_is_written_by_all),
    TEST(graphs_stay_at_home),
    TEST(a_shared_gradient_is_left_alone),
    TEST(owners_may_go_first),
    TEST(holders_may_go_first),
    TEST(a_handle_alone_keeps_memory),
    TEST(imported_memory_is_given_back_once),
    TEST(a_release_may_release),
    TEST(what_was_never_handed_out_may_be_taken_back),
    TEST(a_thousand_memories_are_kept_apart),
    TEST(misuse_is_answered),
    TEST(every_allocation_may_fail),
    TEST(eight_threads_hold_and_let_go),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
