/*
** test_channel.c - queues of packets between contexts on several threads: nothing is lost, doubled or out of
** order, whoever waits is woken, whatever is left goes with the channel.
*/
#define _POSIX_C_SOURCE 200809L

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/channel.h"
#include "scratch.h"

static peri__channel *opened (size_t capacity) {
  peri__channel *c = NULL;
  assert_int_equal(peri__channel_new(C, capacity, &c), PERI_OK);
  return c;
}

static peri__packet *number (peri_ctx *ctx, int i) {
  peri__packet *p = NULL;
  return peri__packet_new(ctx, 0, NULL, 0, NULL, &i, sizeof i, &p) == PERI_OK ? p : NULL;
}

static int value (const peri__packet *p) {
  int i;
  memcpy(&i, peri__packet_bytes(p), sizeof i);
  return i;
}

static peri_ctx *maker; /* of put's packets; NULL: C, whose allocator counts for one thread alone */

static peri__channel_end put (peri__channel *c, int i, double seconds) {
  peri__channel_end end;
  peri__packet *p = number(maker ? maker : C, i);
  assert_non_null(p);
  assert_int_equal(peri__channel_send(C, c, p, peri__now() + seconds, &end), PERI_OK);
  if (end != PERI__CHANNEL_DONE) peri__packet_free(p);
  return end;
}

/* The number that came, or -1 - end. */
static int take (peri__channel *c, double seconds) {
  peri__channel_end end;
  peri__packet *p;
  int which;
  assert_int_equal(peri__channel_receive(C, 1, &c, peri__now() + seconds, &which, &p, &end),
                   PERI_OK);
  if (!p) return -1 - (int)end;
  int i = value(p);
  peri__packet_free(p);
  return i;
}

static void a_packet_carries_bytes_tensors_and_channels (void **state) {
  (void)state;
  peri_tensor *x = NULL, *y = NULL;
  peri_shared *h = NULL;
  peri__packet *p = NULL;
  const int64_t n = 3;
  assert_int_equal(peri_empty(C, PERI_F32, 1, &n, &x), PERI_OK);
  assert_int_equal(peri_share(x, PERI_SHARE_READ, &h), PERI_OK);
  peri__channel *c = opened(1), *inner = opened(1);
  assert_int_equal(peri__packet_new(C, 1, &h, 1, &inner, "abc", 4, &p), PERI_OK);
  peri__channel_end end;
  assert_int_equal(peri__channel_send(C, c, p, 0, &end), PERI_OK);
  peri_release(x);
  int which;
  assert_int_equal(peri__channel_receive(C, 1, &c, 0, &which, &p, &end), PERI_OK);
  assert_string_equal(peri__packet_bytes(p), "abc");
  assert_int_equal(peri_take(C, peri__packet_shared(p, 0), &y), PERI_OK);
  assert_ptr_equal(peri__packet_channel(p, 0), inner);
  peri_release(y);
  peri__packet_free(p);
  peri__channel_release(c);
}

static void a_channel_goes_with_what_is_in_it (void **state) {
  (void)state;
  peri__channel *c = opened(3), *kept = peri__channel_retain(c);
  for (int i = 0; i < 3; i++) assert_int_equal(put(c, i, 0), PERI__CHANNEL_DONE);
  peri__channel_release(c);
  assert_int_equal(take(kept, 0), 0);
  peri__channel_release(kept);
  peri__channel_release(NULL);
  peri__packet_free(NULL);
  peri__packet_recall(C, NULL);
}

static void full_empty_and_closed_are_told (void **state) {
  (void)state;
  peri__channel *c = opened(2);
  assert_int_equal(take(c, 0), -1 - PERI__CHANNEL_LATE);
  assert_int_equal(put(c, 1, 0), PERI__CHANNEL_DONE);
  assert_int_equal(put(c, 2, 0), PERI__CHANNEL_DONE);
  assert_int_equal(put(c, 3, 0.01), PERI__CHANNEL_LATE);
  peri__channel_close(c);
  assert_int_equal(put(c, 3, INFINITY), PERI__CHANNEL_CLOSED);
  assert_int_equal(take(c, 0), 1);
  assert_int_equal(take(c, 0), 2);
  assert_int_equal(take(c, INFINITY), -1 - PERI__CHANNEL_CLOSED);
  peri__channel_release(c);
}

/* ---- threads ---- */

enum { SENDERS = 4, RECEIVERS = 4, EACH = 500 };

typedef struct end {
  pthread_t id;
  peri__channel *in[2];
  int which, count, last[SENDERS];
  double sum;
  peri_status status;
} end;

static peri_ctx *own_context (void) {
  peri_options o;
  peri_ctx *ctx = NULL;
  peri_options_init(&o);
  o.threads = 1;
  return peri_open(&o, &ctx) == PERI_OK ? ctx : NULL;
}

static void *sender (void *arg) {
  end *e = arg;
  peri_ctx *ctx = own_context();
  for (int i = 0; ctx && i < EACH; i++) {
    peri__channel_end how;
    peri__packet *p = number(ctx, e->which * EACH + i);
    if (!p || peri__channel_send(ctx, e->in[i % 2], p, INFINITY, &how) != PERI_OK) break;
    e->count++;
  }
  peri_close(ctx);
  return NULL;
}

static void *receiver (void *arg) {
  end *e = arg;
  peri_ctx *ctx = own_context();
  for (;;) {
    peri__channel_end how;
    peri__packet *p;
    int which;
    e->status = peri__channel_receive(ctx, 2, e->in, INFINITY, &which, &p, &how);
    if (e->status != PERI_OK || !p) break;
    e->sum += value(p);
    e->count++;
    peri__packet_free(p);
  }
  peri_close(ctx);
  return NULL;
}

static void nothing_is_lost_among_many (void **state) {
  (void)state;
  for (size_t capacity = 1; capacity <= 64; capacity *= 8) {
    end s[SENDERS] = { { 0 } }, r[RECEIVERS] = { { 0 } };
    peri__channel *c[2] = { opened(capacity), opened(1) };
    for (int i = 0; i < RECEIVERS; i++) {
      r[i].in[0] = c[i % 2], r[i].in[1] = c[1 - i % 2];
      assert_int_equal(pthread_create(&r[i].id, NULL, receiver, &r[i]), 0);
    }
    for (int i = 0; i < SENDERS; i++) {
      s[i].in[0] = c[0], s[i].in[1] = c[1], s[i].which = i;
      assert_int_equal(pthread_create(&s[i].id, NULL, sender, &s[i]), 0);
    }
    double sum = 0;
    int count = 0;
    for (int i = 0; i < SENDERS; i++) {
      pthread_join(s[i].id, NULL);
      assert_int_equal(s[i].count, EACH);
    }
    peri__channel_close(c[0]);
    peri__channel_close(c[1]);
    for (int i = 0; i < RECEIVERS; i++) {
      pthread_join(r[i].id, NULL);
      assert_int_equal(r[i].status, PERI_OK);
      sum += r[i].sum;
      count += r[i].count;
    }
    assert_int_equal(count, SENDERS * EACH);
    assert_true(sum == (SENDERS * EACH - 1.0) * SENDERS * EACH / 2);
    peri__channel_release(c[0]);
    peri__channel_release(c[1]);
  }
}

static void what_one_sends_keeps_its_order (void **state) {
  (void)state;
  end s[2] = { { 0 } };
  peri__channel *c = opened(3);
  int next[2] = { 0 };
  for (int i = 0; i < 2; i++) {
    s[i].in[0] = s[i].in[1] = c, s[i].which = i;
    assert_int_equal(pthread_create(&s[i].id, NULL, sender, &s[i]), 0);
  }
  for (int k = 0; k < 2 * EACH; k++) {
    int i = take(c, INFINITY);
    assert_int_equal(i % EACH, next[i / EACH]++);
  }
  for (int i = 0; i < 2; i++) pthread_join(s[i].id, NULL);
  peri__channel_release(c);
}

/* One of those that wait leaves with another channel's packet: the packet that it was rung for is
** taken by the next one. */
static void a_ring_is_passed_on (void **state) {
  (void)state;
  maker = own_context();
  for (int turn = 0; turn < 50; turn++) {
    end r[2] = { { 0 } };
    peri__channel *a = opened(8), *b = opened(8);
    r[0].in[0] = r[1].in[0] = b, r[0].in[1] = r[1].in[1] = a;
    for (int i = 0; i < 2; i++)
      assert_int_equal(pthread_create(&r[i].id, NULL, receiver, &r[i]), 0);
    for (int i = 0; i < 4; i++) {
      put(a, 1, 0);
      put(b, 1, 0);
    }
    while (peri__channel_count(a) + peri__channel_count(b) > 0) peri_post_run(C, 0.001, NULL);
    peri__channel_close(a);
    peri__channel_close(b);
    for (int i = 0; i < 2; i++) pthread_join(r[i].id, NULL);
    assert_int_equal(r[0].count + r[1].count, 8);
    peri__channel_release(a);
    peri__channel_release(b);
  }
  peri_close(maker);
  maker = NULL;
}

static void *interrupt_soon (void *arg) {
  struct timespec pause = { .tv_nsec = 10000000 };
  nanosleep(&pause, NULL);
  peri_interrupt(arg);
  return NULL;
}

static void an_interrupt_ends_either_wait (void **state) {
  (void)state;
  peri__channel *c = opened(1);
  for (int sending = 0; sending < 2; sending++) {
    pthread_t id;
    peri__channel_end how;
    peri__packet *p = number(C, 1), *got;
    int which;
    assert_int_equal(pthread_create(&id, NULL, interrupt_soon, C), 0);
    double t0 = peri__now();
    if (sending) {
      assert_int_equal(put(c, 0, 0), PERI__CHANNEL_DONE);
      want_failure(C, peri__channel_send(C, c, p, INFINITY, &how), PERI_EINTR, "interrupted");
    } else
      want_failure(C, peri__channel_receive(C, 1, &c, INFINITY, &which, &got, &how), PERI_EINTR,
                   "interrupted");
    assert_true(peri__now() - t0 < 5);
    peri__packet_free(p);
    pthread_join(id, NULL);
    peri_interrupt_clear(C);
  }
  assert_int_equal(peri__channel_count(c), 1);
  peri__channel_release(c);
}

static peri_status without_memory (void *ud) {
  peri__channel *c = NULL;
  peri__packet *p = NULL;
  (void)ud;
  TRY(peri__channel_new(C, 2, &c));
  peri_status s = peri__packet_new(C, 0, NULL, 0, NULL, "x", 1, &p);
  peri__packet_free(p);
  peri__channel_release(c);
  return s;
}

static void every_allocation_may_fail (void **state) {
  (void)state;
  fail_every_allocation(C, &H, false, without_memory, NULL);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(a_packet_carries_bytes_tensors_and_channels),
    TEST(a_channel_goes_with_what_is_in_it),
    TEST(full_empty_and_closed_are_told),
    TEST(nothing_is_lost_among_many),
    TEST(what_one_sends_keeps_its_order),
    TEST(a_ring_is_passed_on),
    TEST(an_interrupt_ends_either_wait),
    TEST(every_allocation_may_fail),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
