/*
** test_threads.c - the worker pool: every item runs once, nested and forked calls run, an
** interrupt stops, a host's own parallel loop replaces it.
*/
#define _POSIX_C_SOURCE 200809L /* nanosleep */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/core.h"

enum { N = 1000 };

typedef struct job {
  peri_ctx *ctx;
  atomic_int seen[N];
  atomic_int bad_worker, pieces, nested;
  int threads, stop_at;
  pthread_t caller;
  atomic_int others; /* pieces run by other threads */
} job;

static peri_ctx *open_with (int threads, peri_parallel_fn host, void *ud) {
  peri_options o;
  peri_ctx *ctx = NULL;
  peri_options_init(&o);
  o.threads = threads;
  o.parallel_for = host;
  o.parallel_ud = ud;
  assert_int_equal(peri_open(&o, &ctx), PERI_OK);
  return ctx;
}

static void visit (void *ud, int64_t begin, int64_t end, int worker) {
  job *j = ud;
  if (worker < 0 || worker >= j->threads) atomic_fetch_add(&j->bad_worker, 1);
  if (!pthread_equal(pthread_self(), j->caller)) atomic_fetch_add(&j->others, 1);
  atomic_fetch_add(&j->pieces, 1);
  for (int64_t i = begin; i < end; i++) atomic_fetch_add(&j->seen[i], 1);
}

static void each_once (peri_ctx *ctx, int64_t n, int64_t grain) {
  job *j = test_calloc(1, sizeof *j);
  j->threads = peri_threads(ctx);
  j->caller = pthread_self();
  peri__parallel(ctx, n, grain, visit, j);
  for (int64_t i = 0; i < N; i++) assert_int_equal(atomic_load(&j->seen[i]), i < n ? 1 : 0);
  assert_int_equal(atomic_load(&j->bad_worker), 0);
  test_free(j);
}

static void every_item_runs_once (void **state) {
  static const int64_t counts[] = { 0, 1, 2, 3, 7, 64, 999, N };
  (void)state;
  for (int threads = 1; threads <= 7; threads += 2) {
    peri_ctx *ctx = open_with(threads, NULL, NULL);
    assert_int_equal(peri_threads(ctx), threads);
    for (int r = 0; r < 200; r++) each_once(ctx, counts[r % 8], 1 + r % 5);
    for (int r = 0; r < 20; r++) { /* long enough for the workers to park */
      struct timespec t = { 0, 150000 };
      nanosleep(&t, NULL);
      each_once(ctx, N, 10);
    }
    peri_close(ctx);
  }
}

static void a_range_within_the_grain_is_one_piece_on_the_caller (void **state) {
  (void)state;
  peri_ctx *ctx = open_with(4, NULL, NULL);
  job *j = test_calloc(1, sizeof *j);
  j->threads = 4;
  j->caller = pthread_self();
  peri__parallel(ctx, 100, 100, visit, j);
  assert_int_equal(atomic_load(&j->pieces), 1);
  assert_int_equal(atomic_load(&j->others), 0);
  test_free(j);
  peri_close(ctx);
}

static void nest (void *ud, int64_t begin, int64_t end, int worker) {
  job *j = ud;
  (void)worker;
  for (int64_t i = begin; i < end; i++) peri__parallel(j->ctx, 10, 1, visit, j);
}

static void nested_calls_run_inline (void **state) {
  (void)state;
  peri_ctx *ctx = open_with(3, NULL, NULL);
  job *j = test_calloc(1, sizeof *j);
  j->ctx = ctx;
  j->threads = 3;
  j->caller = pthread_self();
  peri__parallel(ctx, 50, 1, nest, j);
  for (int i = 0; i < 10; i++) assert_int_equal(atomic_load(&j->seen[i]), 50);
  test_free(j);
  peri_close(ctx);
}

static void interrupt_at (void *ud, int64_t begin, int64_t end, int worker) {
  job *j = ud;
  (void)end;
  (void)worker;
  atomic_fetch_add(&j->pieces, 1);
  if (begin >= j->stop_at) peri_interrupt(j->ctx);
}

static void an_interrupt_stops_between_pieces (void **state) {
  (void)state;
  for (int threads = 1; threads <= 3; threads++) {
    peri_ctx *ctx = open_with(threads, NULL, NULL);
    job *j = test_calloc(1, sizeof *j);
    j->ctx = ctx;
    peri__parallel(ctx, 1 << 20, 1, interrupt_at, j);
    assert_in_range(atomic_load(&j->pieces), 1, threads);
    peri__parallel(ctx, 10, 1, interrupt_at, j); /* does nothing while the flag is up */
    assert_in_range(atomic_load(&j->pieces), 1, threads);
    peri_interrupt_clear(ctx);
    each_once(ctx, N, 1);
    test_free(j);
    peri_close(ctx);
  }
}

static void host_loop (void *ud, int n, void (*task)(void *arg, int i), void *arg) {
  ++*(int *)ud;
  for (int i = n - 1; i >= 0; i--) task(arg, i);
}

static void a_host_loop_replaces_the_pool (void **state) {
  (void)state;
  int calls = 0;
  peri_ctx *ctx = open_with(4, host_loop, &calls);
  each_once(ctx, N, 1);
  each_once(ctx, N, N);
  assert_int_equal(calls, 1);
  peri_close(ctx);
}

static void a_forked_child_runs_alone (void **state) {
  (void)state;
  for (int parked = 0; parked < 2; parked++) {
    peri_ctx *ctx = open_with(3, NULL, NULL);
    each_once(ctx, N, 1);
    struct timespec t = { 0, parked ? 5000000 : 0 };
    nanosleep(&t, NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
      job *j = test_calloc(1, sizeof *j);
      j->threads = 3;
      j->caller = pthread_self();
      for (int r = 0; r < 3; r++) peri__parallel(ctx, N, 1, visit, j);
      int bad = 0;
      for (int i = 0; i < N; i++) bad += atomic_load(&j->seen[i]) != 3;
      peri_close(ctx);
      _exit(bad != 0);
    }
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    each_once(ctx, N, 1);
    peri_close(ctx);
  }
}

static void *own_context (void *arg) {
  (void)arg;
  for (int r = 0; r < 20; r++) {
    peri_options o;
    peri_ctx *ctx = NULL;
    peri_options_init(&o);
    o.threads = 2;
    if (peri_open(&o, &ctx) != PERI_OK) return NULL;
    job j = { .threads = 2, .caller = pthread_self() };
    peri__parallel(ctx, N, 1, visit, &j);
    for (int i = 0; i < N; i++)
      if (atomic_load(&j.seen[i]) != 1) return NULL;
    peri_close(ctx);
  }
  return arg;
}

static void two_contexts_run_on_two_threads (void **state) {
  pthread_t id[2];
  int ok = 1;
  (void)state;
  for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&id[i], NULL, own_context, &ok), 0);
  for (int i = 0; i < 2; i++) {
    void *result = NULL;
    assert_int_equal(pthread_join(id[i], &result), 0);
    assert_ptr_equal(result, &ok);
  }
}

static void negative_threads_are_refused (void **state) {
  (void)state;
  peri_options o;
  peri_ctx *ctx = NULL;
  peri_options_init(&o);
  o.threads = -1;
  assert_int_equal(peri_open(&o, &ctx), PERI_EINVAL);
  assert_null(ctx);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_item_runs_once),
    cmocka_unit_test(a_range_within_the_grain_is_one_piece_on_the_caller),
    cmocka_unit_test(nested_calls_run_inline),
    cmocka_unit_test(an_interrupt_stops_between_pieces),
    cmocka_unit_test(a_host_loop_replaces_the_pool),
    cmocka_unit_test(a_forked_child_runs_alone),
    cmocka_unit_test(two_contexts_run_on_two_threads),
    cmocka_unit_test(negative_threads_are_refused),
  };
  return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
