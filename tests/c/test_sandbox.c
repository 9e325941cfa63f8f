/*
** test_sandbox.c - the filter, tried with every system call there is; and the watch over processes: what they write,
** how they end, what the host's process has of it. Programs are shells that read their script as the request.
*/
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <dirent.h>

#include "../../bindings/sandbox/filter.c"

#include "sandbox/sandbox.h"
#include "untrusted.h"

/* ---- the filter ---- */

/* How a process ends that closes the door and then does something: its signal, or -1 - status. */
static int behind_the_door (void (*act)(long), long which) {
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    static const sandbox_request r = { .memory = 64 << 20, .microseconds = 5000000 };
    struct rlimit none = { 0, 0 };
    setrlimit(RLIMIT_CORE, &none);
    if (sandbox_close_door(&r)) _exit(77);
    act(which);
    syscall(SYS_exit_group, 0);
  }
  int status = 0;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  return WIFSIGNALED(status) ? WTERMSIG(status) : -1 - WEXITSTATUS(status);
}

static void call (long nr) { syscall(nr, -1L, 0L, 0L, 0L, 0L, 0L); }

static bool has_filter (void) { return behind_the_door(call, SYS_brk) != -78; }

#define NEEDS_FILTER \
  (void)state;       \
  if (!has_filter()) skip()

static const long allowed[] = { SYS_brk,           SYS_munmap,       SYS_mremap,
                                SYS_clock_gettime, SYS_gettimeofday,
#ifdef SYS_time
                                SYS_time,
#endif
                                SYS_exit,          SYS_exit_group };

static bool may (long nr) {
  for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
    if (allowed[i] == nr) return true;
  return false;
}

static void every_other_call_ends_the_process (void **state) {
  NEEDS_FILTER;
  for (long nr = 0; nr < 480; nr++) {
#ifdef __x86_64__
    if (nr == 335 || nr == 336)
      continue; /* uretprobe, uprobe: the kernel's own, which no filter sees */
#endif
    int how = behind_the_door(call, nr);
    if (may(nr) ? how == SIGSYS : how != SIGSYS) fail_msg("system call %ld: %d", nr, how);
  }
  static const long odd[] = { 1000, 100000, 0x40000000, 0x40000000 + 1, 0x7fffffff, -1 };
  for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
    assert_int_equal(behind_the_door(call, odd[i]), SIGSYS);
}

static void forks (long how) {
  if (how == 0) fork();
  if (how == 1) syscall(SYS_clone, 0, 0, 0, 0, 0);
  if (how == 2) execl("/bin/sh", "sh", "-c", "exit 0", (char *)NULL);
  if (how == 3) socket(AF_INET, SOCK_STREAM, 0);
  if (how == 4) socket(AF_UNIX, SOCK_DGRAM, 0);
  if (how == 5) open("/etc/passwd", O_RDONLY);
  if (how == 6) open("/tmp/x", O_CREAT | O_WRONLY, 0600);
  if (how == 7) ptrace(PTRACE_TRACEME, 0, NULL, NULL);
  if (how == 8) kill(getppid(), SIGKILL);
  if (how == 9) syscall(SYS_kill, 1, SIGTERM);
  if (how == 10) signal(SIGPROF, SIG_IGN);
  if (how == 11) unlink("/tmp/x");
  if (how == 12) setrlimit(RLIMIT_CPU, &(struct rlimit){ 1, 1 });
  if (how == 13) setitimer(ITIMER_PROF, &(struct itimerval){ 0 }, NULL);
  if (how == 14) dup(1);
  if (how == 15) syscall(SYS_close, 1);
  if (how == 16) syscall(SYS_read, 0, NULL, 0);
  if (how == 17) prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
  if (how == 18) syscall(SYS_nanosleep, &(struct timespec){ 0, 1 }, NULL);
}

static void forks_programs_sockets_files_and_signals_end_the_process (void **state) {
  NEEDS_FILTER;
  for (long how = 0; how <= 18; how++)
    if (behind_the_door(forks, how) != SIGSYS) fail_msg("attempt %ld", how);
}

static void writes (long fd) { syscall(SYS_write, fd, "", 0); }

static void one_writes_to_its_own_pipes_alone (void **state) {
  NEEDS_FILTER;
  for (long fd = 0; fd < 8; fd++)
    assert_int_equal(behind_the_door(writes, fd) == SIGSYS, fd != 1 && fd != 3);
  assert_int_equal(behind_the_door(writes, -1), SIGSYS);
  assert_int_equal(behind_the_door(writes, 1 + ((long)1 << 32)),
                   SIGSYS); /* the upper half counts */
}

static void maps (long how) {
  static const int prot[] = { PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE | PROT_EXEC, PROT_EXEC,
                              PROT_READ, PROT_READ | PROT_WRITE };
  static const int flags[] = { MAP_PRIVATE | MAP_ANONYMOUS, MAP_PRIVATE | MAP_ANONYMOUS,
                               MAP_PRIVATE | MAP_ANONYMOUS, MAP_PRIVATE,
                               MAP_SHARED | MAP_ANONYMOUS };
  syscall(SYS_mmap, 0, 4096, prot[how], flags[how], -1, 0);
}

static void memory_is_private_and_never_runs (void **state) {
  NEEDS_FILTER;
  for (long how = 0; how < 5; how++)
    assert_int_equal(behind_the_door(maps, how) == SIGSYS, how != 0);
}

#ifdef __x86_64__
static void old_call (long nr) {
  __asm__ volatile("int $0x80" : : "a"(nr) : "memory");
  (void)nr;
}

static void calls_of_another_architecture_are_none (void **state) {
  NEEDS_FILTER;
  int how = behind_the_door(old_call, 20); /* SIGSEGV where the kernel has no 32-bit calls */
  assert_true(how == SIGSYS || how == SIGSEGV);
}
#endif

/* ---- the watch ---- */

static peri_ctx *ctx;

static int open_ctx (void **state) {
  (void)state;
  return peri_open(NULL, &ctx) == PERI_OK ? 0 : -1;
}

static int close_ctx (void **state) {
  (void)state;
  peri_close(ctx);
  return 0;
}

static peri__sandbox_job job (const char *script) {
  return (peri__sandbox_job){ .request = script,
                              .request_size = strlen(script),
                              .wall = 20,
                              .most_output = 1000,
                              .most_reply = 1000 };
}

static peri_status run_in (peri_ctx *c, peri__sandbox_job *j, size_t n, size_t workers) {
  return peri__sandbox_run(c, "/bin/sh", j, n, workers);
}

static int open_files (void) {
  int n = 0;
  DIR *d = opendir("/proc/self/fd");
  while (readdir(d)) n++;
  closedir(d);
  return n;
}

static void what_is_written_comes_back (void **state) {
  (void)state;
  peri__sandbox_job j[3] = { job("echo out; echo reply >&3; exit 7"), job("kill -TERM $$"),
                             job("printf %500s x; echo also >&3") };
  int before = open_files();
  assert_int_equal(run_in(ctx, j, 3, 2), PERI_OK);
  assert_int_equal(j[0].end, PERI__SANDBOX_EXITED);
  assert_int_equal(j[0].code, 7);
  assert_int_equal(j[0].output.n, 4);
  assert_memory_equal(j[0].output.p, "out\n", 4);
  assert_memory_equal(j[0].reply.p, "reply\n", 6);
  assert_int_equal(j[1].end, PERI__SANDBOX_SIGNALLED);
  assert_int_equal(j[1].code, SIGTERM);
  assert_int_equal(j[2].output.n, 500);
  assert_true(j[0].seconds > 0 && j[0].memory > 0);
  peri__sandbox_free(ctx, j, 3);
  assert_int_equal(open_files(), before);
}

static void too_slow_and_too_much_is_stopped (void **state) {
  (void)state;
  peri__sandbox_job j[4] = { job("sleep 30"), job("while :; do echo xxxxxxxxxxxxxxxxxx; done"),
                             job("while :; do echo xxxxxxxxxxxxxxxxxx >&3; done"),
                             job("exec >&- 3>&-; sleep 30") };
  j[0].wall = j[3].wall = 0.2;
  double begin = peri__now();
  assert_int_equal(run_in(ctx, j, 4, 4), PERI_OK);
  assert_true(peri__now() - begin < 10);
  assert_int_equal(j[0].end, PERI__SANDBOX_TIMED_OUT);
  assert_int_equal(j[1].end, PERI__SANDBOX_FLOODED);
  assert_int_equal(j[1].output.n, 1000);
  assert_int_equal(j[2].end, PERI__SANDBOX_FLOODED);
  assert_int_equal(j[3].end, PERI__SANDBOX_TIMED_OUT);
  peri__sandbox_free(ctx, j, 4);
}

static void the_environment_is_empty_and_nothing_else_is_open (void **state) {
  (void)state;
  int fd = open("/dev/null", O_RDONLY), spare = dup(fd); /* no close on exec: a host that forgot */
  peri__sandbox_job j = job("cat /proc/self/environ | tr '\\0' '\\n' | grep -c PERI_SECRET; ls "
                            "/proc/$$/fd | tr '\\n' ' '");
  setenv("PERI_SECRET", "1", 1);
  assert_int_equal(run_in(ctx, &j, 1, 1), PERI_OK);
  unsetenv("PERI_SECRET");
  assert_memory_equal(j.output.p, "0\n", 2);
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 34)
  assert_memory_equal(j.output.p + 2, "0 1 2 3 ", 8);
#endif
  close(fd);
  close(spare);
  peri__sandbox_free(ctx, &j, 1);
}

static void a_program_that_is_none_is_named (void **state) {
  (void)state;
  peri__sandbox_job j[2] = { job(""), job("") };
  assert_int_equal(peri__sandbox_run(ctx, "/nonexistent/x", j, 2, 2), PERI_EIO);
  assert_non_null(strstr(peri_message(ctx), "/nonexistent/x: cannot be started: No such file"));
  assert_int_equal(peri__sandbox_run(ctx, "/etc/passwd", j, 2, 2), PERI_EIO);
  peri__sandbox_free(ctx, j, 2);
}

/* Other children, handlers and ignored signals of the host are as they were. */
static volatile sig_atomic_t heard;
static void hear (int s) { heard += s == SIGCHLD; }

static void the_host_keeps_its_children_and_handlers (void **state) {
  (void)state;
  pid_t own = fork();
  if (own == 0) _exit(5);
  struct sigaction now, was = { .sa_handler = hear };
  sigaction(SIGCHLD, &was, NULL);
  peri__sandbox_job j = job("exit 3");
  assert_int_equal(run_in(ctx, &j, 1, 1), PERI_OK);
  assert_int_equal(j.code, 3);
  int status;
  assert_int_equal(waitpid(own, &status, 0), own); /* not reaped by us */
  assert_int_equal(WEXITSTATUS(status), 5);
  sigaction(SIGCHLD, NULL, &now);
  assert_ptr_equal(now.sa_handler, hear);
  signal(SIGCHLD, SIG_IGN); /* then nobody learns how a child has ended */
  peri__sandbox_job k = job("echo there; exit 3");
  assert_int_equal(run_in(ctx, &k, 1, 1), PERI_OK);
  signal(SIGCHLD, SIG_DFL);
  assert_int_equal(k.end, PERI__SANDBOX_UNKNOWN);
  assert_memory_equal(k.output.p, "there\n", 6);
  assert_int_equal(waitpid(-1, &status, WNOHANG), -1); /* no zombie is left */
  peri__sandbox_free(ctx, &j, 1);
  peri__sandbox_free(ctx, &k, 1);
}

static void an_interrupt_ends_all (void **state) {
  (void)state;
  peri__sandbox_job j[3] = { job("sleep 30"), job("sleep 30"), job("sleep 30") };
  double begin = peri__now();
  peri_interrupt(ctx);
  assert_int_equal(run_in(ctx, j, 3, 2), PERI_EINTR);
  peri_interrupt_clear(ctx);
  assert_true(peri__now() - begin < 5);
  int status;
  assert_int_equal(waitpid(-1, &status, WNOHANG), -1);
  peri__sandbox_free(ctx, j, 3);
}

static void every_allocation_may_fail (void **state) {
  (void)state;
  int before = open_files(), status;
  for (int64_t n = 0;; n++) {
    peri__sandbox_job j[2] = { job("echo a; echo b >&3"), job("printf %900s x") };
    peri_test_fail_after(ctx, n, false);
    peri_status s = run_in(ctx, j, 2, 2);
    bool fired = peri_test_fired(ctx);
    peri_test_fail_after(ctx, -1, false);
    assert_int_equal(s, fired ? PERI_ENOMEM : PERI_OK);
    peri__sandbox_free(ctx, j, 2);
    assert_int_equal(waitpid(-1, &status, WNOHANG), -1);
    if (!fired) break;
  }
  assert_int_equal(open_files(), before);
}

static void *many (void *ud) {
  peri_ctx *own = NULL;
  if (peri_open(NULL, &own) != PERI_OK) return ud;
  size_t bad = 0;
  for (int round = 0; round < 5; round++) {
    peri__sandbox_job j[4] = { job("exit 1"), job("echo x"), job("kill -9 $$"), job("exit 4") };
    if (run_in(own, j, 4, 3) != PERI_OK) bad++;
    bad += j[0].code != 1 || j[1].output.n != 2 || j[2].code != 9 || j[3].code != 4;
    peri__sandbox_free(own, j, 4);
  }
  peri_close(own);
  return bad ? ud : NULL;
}

static void threads_do_not_meet (void **state) {
  (void)state;
  pthread_t t[4];
  void *bad;
  int mark;
  for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&t[i], NULL, many, &mark), 0);
  for (int i = 0; i < 4; i++) {
    pthread_join(t[i], &bad);
    assert_null(bad);
  }
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_other_call_ends_the_process),
    cmocka_unit_test(forks_programs_sockets_files_and_signals_end_the_process),
    cmocka_unit_test(one_writes_to_its_own_pipes_alone),
    cmocka_unit_test(memory_is_private_and_never_runs),
#ifdef __x86_64__
    cmocka_unit_test(calls_of_another_architecture_are_none),
#endif
    cmocka_unit_test(what_is_written_comes_back),
    cmocka_unit_test(too_slow_and_too_much_is_stopped),
    cmocka_unit_test(the_environment_is_empty_and_nothing_else_is_open),
    cmocka_unit_test(a_program_that_is_none_is_named),
    cmocka_unit_test(the_host_keeps_its_children_and_handlers),
    cmocka_unit_test(an_interrupt_ends_all),
    cmocka_unit_test(every_allocation_may_fail),
    cmocka_unit_test(threads_do_not_meet),
  };
  return cmocka_run_group_tests(tests, open_ctx, close_ctx);
}
