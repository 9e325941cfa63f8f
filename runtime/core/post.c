/*
** post.c - how other threads reach a context: a bell that wakes it where it sleeps, and the queue of tasks
** that they leave. Every wait of a context is peri__sleep: whatever may end one (a task, a message of
** a channel, an interrupt) rings, and the context looks what it was.
*/
#define _GNU_SOURCE /* sem_clockwait */
#include <errno.h>
#include <math.h>
#include <time.h>

#include "core/core.h"

peri_status peri__gate_open (peri_ctx *ctx) {
  if (sem_init(&ctx->bell, 0, 0) != 0) return PERI_ENOSUP;
  pthread_mutex_init(&ctx->gate, NULL); /* cannot fail with default attributes on Linux */
  return PERI_OK;
}

void peri__gate_close (peri_ctx *ctx) {
  for (;;) { /* one by one: what drop frees may be the next one's as well */
    pthread_mutex_lock(&ctx->gate);
    ctx->notify = NULL;
    peri_task *t = ctx->task_first;
    if (t) ctx->task_first = t->next;
    if (!ctx->task_first) ctx->task_last = NULL;
    pthread_mutex_unlock(&ctx->gate);
    if (!t) break;
    if (t->drop) t->drop(t->ud);
  }
  sem_destroy(&ctx->bell);
}

/* ---- the bell ---- */

/* Also from a handler of a signal: peri_interrupt. */
void peri__ring (peri_ctx *ctx) {
  if (atomic_exchange(&ctx->rung, 1) == 0) sem_post(&ctx->bell);
}

/* The time of the clock CLOCK_MONOTONIC at which seconds from now have passed. */
static struct timespec time_in (double seconds) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  if (seconds > 1e8) seconds = 1e8;
  double whole = floor(seconds);
  t.tv_sec += (time_t)whole;
  t.tv_nsec += (long)((seconds - whole) * 1e9);
  if (t.tv_nsec >= 1000000000) {
    t.tv_nsec -= 1000000000;
    t.tv_sec++;
  }
  return t;
}

peri_status peri__sleep (peri_ctx *ctx, double deadline) {
  double left = deadline - peri__now();
  if (peri__stopped(ctx)) return peri__fail(ctx, PERI_EINTR, "interrupted");
  if (left > 0) {
    struct timespec until = time_in(left);
    while (sem_clockwait(&ctx->bell, CLOCK_MONOTONIC, &until) != 0)
      if (errno != EINTR) return PERI_OK; /* the time is over */
    atomic_store(&ctx->rung, 0);          /* before the caller looks: what comes after rings anew */
  }
  if (peri__stopped(ctx)) return peri__fail(ctx, PERI_EINTR, "interrupted");
  return PERI_OK;
}

/* ---- the queue ---- */

peri_status peri_post (peri_ctx *ctx, peri_task *task) {
  if (!ctx || !task || !task->run) return PERI_EINVAL;
  task->next = NULL;
  pthread_mutex_lock(&ctx->gate);
  bool first = ctx->task_first == NULL;
  if (first)
    ctx->task_first = task;
  else
    ctx->task_last->next = task;
  ctx->task_last = task;
  if (first && ctx->notify) ctx->notify(ctx->notify_ud);
  peri__ring(ctx); /* with the gate held: the context is there until it is let go */
  pthread_mutex_unlock(&ctx->gate);
  return PERI_OK;
}

void peri_post_notify (peri_ctx *ctx, peri_notify_fn fn, void *ud) {
  if (!ctx) return;
  pthread_mutex_lock(&ctx->gate);
  ctx->notify = fn;
  ctx->notify_ud = ud;
  if (fn && ctx->task_first) fn(ud);
  pthread_mutex_unlock(&ctx->gate);
}

/* The first task, out of the queue, and whether it was the one after which there is no more to run. */
static peri_task *next_task (peri_ctx *ctx, const peri_task *last, bool *done) {
  pthread_mutex_lock(&ctx->gate);
  peri_task *t = ctx->task_first;
  if (t) ctx->task_first = t->next;
  if (!ctx->task_first) ctx->task_last = NULL;
  pthread_mutex_unlock(&ctx->gate);
  *done = t == NULL || t == last;
  return t;
}

static peri_task *last_task (peri_ctx *ctx) {
  pthread_mutex_lock(&ctx->gate);
  peri_task *t = ctx->task_last;
  pthread_mutex_unlock(&ctx->gate);
  return t;
}

peri_status peri_post_run (peri_ctx *ctx, double timeout, int *ran) {
  NEED(ctx, ctx);
  if (ran) *ran = 0;
  if (!(timeout >= 0)) return peri__fail(ctx, PERI_EINVAL, "timeout is %g seconds", timeout);
  peri__take_back(ctx);
  if (peri__stopped(ctx)) return peri__fail(ctx, PERI_EINTR, "interrupted");
  double deadline = peri__now() + timeout;
  peri_task *last;
  while (!(last = last_task(ctx)) && peri__now() < deadline) TRY(peri__sleep(ctx, deadline));
  for (bool done = last == NULL; !done;) {
    peri_task *t = next_task(ctx, last, &done);
    if (!t) break; /* a task ran the queue itself */
    t->run(t->ud, ctx);
    if (ran) ++*ran;
    if (!done && peri__stopped(ctx)) return peri__fail(ctx, PERI_EINTR, "interrupted");
  }
  return PERI_OK;
}
