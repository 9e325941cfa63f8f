/*
** test_append.c - what a run leaves while it goes on: lines at the end of files, records of events, and
** the lock that keeps a second writer away.
*/
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* kill, usleep */
#endif
#include "scratch.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/files.h"

static void holds (const char *path, const char *text, size_t n) {
  void *data;
  size_t size;
  if (peri_file_read(C, path, 0, &data, &size) != PERI_OK) fail_msg("%s", peri_message(C));
  assert_int_equal(size, n);
  if (n > 0) assert_memory_equal(data, text, n);
  peri_file_free(C, data, size);
}

/* Files of at most n bytes from here on; the old limit comes back. */
static struct rlimit limit_files (rlim_t n) {
  struct rlimit before, now;
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
  now = (struct rlimit){ n, before.rlim_max };
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &now), 0);
  return before;
}

static void text_is_added_at_the_end (void **state) {
  (void)state;
  assert_int_equal(peri_file_append(C, Path, "one\n", 4), PERI_OK);
  assert_int_equal(peri_file_append(C, Path, "two\0\n", 5), PERI_OK);
  assert_int_equal(peri_file_append(C, Path, "", 0), PERI_OK);
  holds(Path, "one\ntwo\0\n", 9);
}

static void a_full_disk_adds_nothing (void **state) {
  (void)state;
  assert_int_equal(peri_file_append(C, Path, "one\n", 4), PERI_OK);
  struct rlimit before = limit_files(10);
  want_failure(C, peri_file_append(C, Path, "two and more\n", 13), PERI_EIO, "cannot write");
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
  holds(Path, "one\n", 4);
  want_failure(C, peri_file_append(C, "/dev/full", "x", 1), PERI_EIO, "No space left");
  want_failure(C, peri_file_append(C, Dir, "x", 1), PERI_EIO, "cannot open");
}

/* A child that takes the lock, says so and waits to be killed. */
static pid_t holder (int *said) {
  int ends[2];
  char byte;
  assert_int_equal(pipe(ends), 0);
  pid_t pid = fork();
  if (pid == 0) {
    peri_lock *l;
    byte = peri_lock_take(C, Path, &l) == PERI_OK ? 'y' : 'n';
    if (write(ends[1], &byte, 1) != 1) _exit(1);
    for (;;) pause();
  }
  close(ends[1]);
  *said = read(ends[0], &byte, 1) == 1 ? byte : 0;
  close(ends[0]);
  return pid;
}

static void a_lock_has_one_holder_until_it_dies (void **state) {
  peri_lock *l;
  char wanted[64];
  int said, status;
  (void)state;
  pid_t pid = holder(&said);
  assert_int_equal(said, 'y');
  snprintf(wanted, sizeof wanted, "process %lld has locked it", (long long)pid);
  want_failure(C, peri_lock_take(C, Path, &l), PERI_EIO, wanted);
  assert_null(l);
  kill(pid, SIGKILL);
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_int_equal(peri_lock_take(C, Path, &l), PERI_OK);
  peri_lock *second;
  want_failure(C, peri_lock_take(C, Path, &second), PERI_EIO, "this process");
  peri_lock_drop(l);
  assert_int_equal(peri_lock_take(C, Path, &l), PERI_OK);
  peri_lock_drop(l);
  peri_lock_drop(NULL);
}

static void what_cannot_be_locked_is_refused (void **state) {
  peri_lock *l;
  char path[700];
  (void)state;
  snprintf(path, sizeof path, "%s/none/lock", Dir);
  want_failure(C, peri_lock_take(C, path, &l), PERI_EIO, "cannot open");
  want_failure(C, peri_lock_take(C, Dir, &l), PERI_EIO, "cannot open");
  want_failure(C, peri_lock_take(C, "/dev/null", &l), PERI_EIO, "not a regular file");
}

static void any_event_becomes_a_record (void **state) {
  peri_tfevents *w;
  void *data;
  size_t n;
  (void)state;
  char *event = malloc(5000);
  memset(event, 'e', 5000);
  assert_int_equal(peri_tfevents_open(C, Path, &w), PERI_OK);
  assert_int_equal(peri_tfevents_event(w, event, 5000), PERI_OK);
  want_failure(C, peri_tfevents_event(w, event, 0), PERI_EINVAL, "an event of 0 bytes");
  struct rlimit before = limit_files(6000);
  want_failure(C, peri_tfevents_event(w, event, 5000), PERI_EIO, "cannot write");
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
  peri_tfevents_close(w);
  assert_int_equal(peri_file_read(C, Path, 0, &data, &n), PERI_OK);
  assert_int_equal(n, 40 + 5000 + 16);
  unsigned char *b = data;
  uint32_t crc = peri__crc32c(event, 5000), want = (crc >> 15 | crc << 17) + 0xA282EAD8u;
  assert_memory_equal(b + 40 + 12, event, 5000);
  assert_memory_equal(b + n - 4, &want, 4);
  peri_file_free(C, data, n);
  free(event);
}

static void every_failed_allocation_is_reported (void **state) {
  (void)state;
  for (int64_t n = 0;; n++) {
    peri_lock *l = NULL;
    peri_tfevents *w = NULL;
    peri_test_fail_after(C, n, false);
    peri_status s = peri_lock_take(C, Path, &l);
    if (s == PERI_OK) {
      char events[700];
      snprintf(events, sizeof events, "%s/tfevents", Dir);
      s = peri_tfevents_open(C, events, &w);
    }
    if (s == PERI_OK) s = peri_tfevents_event(w, "e", 1);
    bool fired = peri_test_fired(C);
    peri_test_fail_after(C, -1, false);
    peri_lock_drop(l);
    peri_tfevents_close(w);
    assert_int_equal(s, fired ? PERI_ENOMEM : PERI_OK);
    if (!fired) break;
  }
}

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(text_is_added_at_the_end),
    TEST(a_full_disk_adds_nothing),
    TEST(a_lock_has_one_holder_until_it_dies),
    TEST(what_cannot_be_locked_is_refused),
    TEST(any_event_becomes_a_record),
    TEST(every_failed_allocation_is_reported)
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
