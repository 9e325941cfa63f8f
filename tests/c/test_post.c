/*
** test_post.c - work from other threads: order, waiting, interrupts, closing, the host's own loop.
*/
#define _POSIX_C_SOURCE 200809L

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "scratch.h"

typedef struct job {
  peri_task task;
  int id, again; /* again: how often it posts itself once more */
  peri_ctx *other;
} job;

static int order[64], n_order, n_dropped;

static void run_job (void *ud, peri_ctx *ctx) {
  job *j = ud;
  order[n_order++] = j->id;
  if (j->again-- > 0) assert_int_equal(peri_post(ctx, &j->task), PERI_OK);
}

static void drop_job (void *ud) {
  order[n_order++] = -((job *)ud)->id;
  n_dropped++;
}

static job made (int id) { return (job){ .task = { .run = run_job, .drop = drop_job }, .id = id }; }

static void post (peri_ctx *ctx, job *j) {
  j->task.ud = j;
  assert_int_equal(peri_post(ctx, &j->task), PERI_OK);
}

static int begin (void **state) {
  n_order = n_dropped = 0;
  return setup(state);
}
#define CASE(f) cmocka_unit_test_setup_teardown(f, begin, teardown)

static void tasks_run_in_their_order (void **state) {
  (void)state;
  job j[5];
  int ran = -1;
  for (int i = 0; i < 5; i++) {
    j[i] = made(i);
    post(C, &j[i]);
  }
  assert_int_equal(n_order, 0);
  assert_int_equal(peri_post_run(C, 0, &ran), PERI_OK);
  assert_int_equal(ran, 5);
  for (int i = 0; i < 5; i++) assert_int_equal(order[i], i);
  assert_int_equal(peri_post_run(C, 0, &ran), PERI_OK);
  assert_int_equal(ran, 0);
}

static void what_a_task_posts_is_for_the_next_call (void **state) {
  (void)state;
  job a = made(1), b = made(2);
  int ran = 0;
  a.again = 2;
  b.again = 1;
  post(C, &a);
  post(C, &b);
  for (int want = 2; want >= 0; want--) {
    assert_int_equal(peri_post_run(C, 0, &ran), PERI_OK);
    assert_int_equal(ran, want == 2 ? 2 : want == 1 ? 2 : 1);
  }
  assert_int_equal(n_order, 5);
}

static void closing_drops_what_is_left (void **state) {
  (void)state;
  heap h;
  peri_ctx *ctx = open_counted(&h);
  job a = made(1), b = made(2), c = made(3);
  c.task.drop = NULL;
  post(ctx, &a);
  post(ctx, &b);
  post(ctx, &c);
  peri_close(ctx);
  assert_int_equal(n_dropped, 2);
  assert_int_equal(order[0], -1);
  assert_int_equal(order[1], -2);
  assert_int_equal(h.live, 0);
}

static void waiting_ends_in_time (void **state) {
  (void)state;
  int ran = -1;
  double t0 = peri__now();
  assert_int_equal(peri_post_run(C, 0.05, &ran), PERI_OK);
  double took = peri__now() - t0;
  assert_int_equal(ran, 0);
  assert_true(took >= 0.049 && took < 5);
  want_failure(C, peri_post_run(C, NAN, NULL), PERI_EINVAL, "timeout");
  want_failure(C, peri_post_run(C, -1, NULL), PERI_EINVAL, "timeout");
}

typedef struct poster {
  pthread_t id;
  peri_ctx *ctx;
  job jobs[4];
} poster;

static void *post_four (void *arg) {
  poster *p = arg;
  for (int i = 0; i < 4; i++) {
    struct timespec pause = { .tv_nsec = 2000000 };
    nanosleep(&pause, NULL);
    p->jobs[i].task.ud = &p->jobs[i];
    peri_post(p->ctx, &p->jobs[i].task);
  }
  return NULL;
}

static void posts_of_eight_threads_wake_the_owner (void **state) {
  (void)state;
  static poster p[8];
  int last[8] = { 0 };
  for (int k = 0; k < 8; k++) {
    p[k] = (poster){ .ctx = C };
    for (int i = 0; i < 4; i++) p[k].jobs[i] = made(k * 4 + i);
    assert_int_equal(pthread_create(&p[k].id, NULL, post_four, &p[k]), 0);
  }
  while (n_order < 32) assert_int_equal(peri_post_run(C, INFINITY, NULL), PERI_OK);
  for (int i = 0; i < 32; i++) assert_int_equal(order[i] % 4, last[order[i] / 4]++);
  for (int k = 0; k < 8; k++) pthread_join(p[k].id, NULL);
}

static void *interrupt_soon (void *arg) {
  struct timespec pause = { .tv_nsec = 20000000 };
  nanosleep(&pause, NULL);
  peri_interrupt(arg);
  return NULL;
}

static void an_interrupt_ends_a_wait_and_keeps_the_tasks (void **state) {
  (void)state;
  pthread_t id;
  job a = made(1);
  double t0 = peri__now();
  assert_int_equal(pthread_create(&id, NULL, interrupt_soon, C), 0);
  want_failure(C, peri_post_run(C, INFINITY, NULL), PERI_EINTR, "interrupted");
  assert_true(peri__now() - t0 < 5);
  pthread_join(id, NULL);
  post(C, &a);
  want_failure(C, peri_post_run(C, 0, NULL), PERI_EINTR, "interrupted");
  assert_int_equal(n_order, 0);
  peri_interrupt_clear(C);
  assert_int_equal(peri_post_run(C, 0, NULL), PERI_OK);
  assert_int_equal(n_order, 1);
}

static void interrupt_inside (void *ud, peri_ctx *ctx) {
  (void)ud;
  peri_interrupt(ctx);
}

static void an_interrupt_between_two_tasks_keeps_the_second (void **state) {
  (void)state;
  peri_task stop = { .run = interrupt_inside };
  job a = made(1);
  int ran = 0;
  assert_int_equal(peri_post(C, &stop), PERI_OK);
  post(C, &a);
  want_failure(C, peri_post_run(C, 0, &ran), PERI_EINTR, "interrupted");
  assert_int_equal(ran, 1);
  peri_interrupt_clear(C);
  assert_int_equal(peri_post_run(C, 0, &ran), PERI_OK);
  assert_int_equal(order[0], 1);
}

static void count (void *ud) { ++*(int *)ud; }

static void a_loop_of_the_host_is_told_once_until_it_looks (void **state) {
  (void)state;
  job a = made(1), b = made(2), c = made(3);
  int told = 0;
  post(C, &a);
  peri_post_notify(C, count, &told);
  assert_int_equal(told, 1); /* there was one already */
  post(C, &b);
  assert_int_equal(told, 1);
  assert_int_equal(peri_post_run(C, 0, NULL), PERI_OK);
  post(C, &c);
  assert_int_equal(told, 2);
  peri_post_notify(C, NULL, NULL);
  assert_int_equal(peri_post_run(C, 0, NULL), PERI_OK);
  post(C, &a);
  assert_int_equal(told, 2);
  assert_int_equal(peri_post_run(C, 0, NULL), PERI_OK);
}

static void misuse_is_answered (void **state) {
  (void)state;
  job a = made(1);
  peri_task none = { .run = NULL };
  assert_int_equal(peri_post(NULL, &a.task), PERI_EINVAL);
  assert_int_equal(peri_post(C, NULL), PERI_EINVAL);
  assert_int_equal(peri_post(C, &none), PERI_EINVAL);
  assert_int_equal(peri_post_run(NULL, 0, NULL), PERI_EINVAL);
  peri_post_notify(NULL, count, NULL);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    CASE(tasks_run_in_their_order),
    CASE(what_a_task_posts_is_for_the_next_call),
    CASE(closing_drops_what_is_left),
    CASE(waiting_ends_in_time),
    CASE(posts_of_eight_threads_wake_the_owner),
    CASE(an_interrupt_ends_a_wait_and_keeps_the_tasks),
    CASE(an_interrupt_between_two_tasks_keeps_the_second),
    CASE(a_loop_of_the_host_is_told_once_until_it_looks),
    CASE(misuse_is_answered),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
