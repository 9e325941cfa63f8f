/* filter.c - what the process gives up before it runs code: descriptors, limits, privileges, system calls. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "program.h"

static void limit (int what, uint64_t most) {
  struct rlimit r = { (rlim_t)most, (rlim_t)most };
  setrlimit(what, &r); /* a lower one of the system stays: it cannot be raised */
}

static void set_limits (const sandbox_request *r) {
  uint64_t seconds = r->microseconds / 1000000 + 2; /* the timer comes first */
  limit(RLIMIT_CPU, seconds);
  limit(RLIMIT_AS, r->memory + r->memory / 2 +
                       (96u << 20)); /* program, stack, gaps; Lua's own count comes first */
  limit(RLIMIT_CORE, 0);
  limit(RLIMIT_FSIZE, 0);
  limit(RLIMIT_NOFILE, 4);
  limit(RLIMIT_NPROC, 0);
  limit(RLIMIT_MEMLOCK, 0);
#ifdef RLIMIT_MSGQUEUE
  limit(RLIMIT_MSGQUEUE, 0);
#endif
  struct itimerval t = { .it_value = { (time_t)(r->microseconds / 1000000),
                                       (suseconds_t)(r->microseconds % 1000000) } };
  setitimer(ITIMER_PROF, &t, NULL); /* its signal ends the process */
}

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#ifdef __x86_64__
#define ARCH AUDIT_ARCH_X86_64
#define MOST 0x3fffffffu /* above are the calls of x32 */
#else
#define ARCH AUDIT_ARCH_AARCH64
#define MOST 0xffffffffu
#endif

#ifndef SECCOMP_RET_KILL_PROCESS
#define SECCOMP_RET_KILL_PROCESS 0x80000000u
#endif

/* A filter is a program over the number of a call and its arguments, written down as it is emitted. */
typedef struct program {
  struct sock_filter code[80];
  unsigned short n;
} program;

static void put (program *f, uint16_t code, uint32_t k, uint8_t yes, uint8_t no) {
  if (f->n < sizeof f->code / sizeof *f->code)
    f->code[f->n++] = (struct sock_filter){ code, yes, no, k };
}

enum { LOW = 0, HIGH = 4 }; /* halves of an argument, little-endian */
static void load (program *f, size_t offset) {
  put(f, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, 0, 0);
}
static void load_arg (program *f, int i, size_t half) {
  load(f, offsetof(struct seccomp_data, args) + 8 * (size_t)i + half);
}
static void give (program *f, uint32_t verdict) { put(f, BPF_RET | BPF_K, verdict, 0, 0); }
static void give_if (program *f, uint16_t test, uint32_t k, uint32_t verdict) {
  put(f, BPF_JMP | test | BPF_K, k, 0, 1);
  give(f, verdict);
}
static void give_unless (program *f, uint16_t test, uint32_t k, uint32_t verdict) {
  put(f, BPF_JMP | test | BPF_K, k, 1, 0);
  give(f, verdict);
}

/* The lines up to ends() are of this call alone; each of them has to give a verdict. */
static unsigned short begins (program *f, uint32_t call) {
  put(f, BPF_JMP | BPF_JEQ | BPF_K, call, 0, 0);
  return f->n;
}
static void ends (program *f, unsigned short from) {
  f->code[from - 1].jf = (uint8_t)(f->n - from);
}

/* write to 1 and 3; memory that is private, of no file and not to be run; time; the end. All else ends the process. */
static const char *set_filter (void) {
  static const uint32_t dies = SECCOMP_RET_KILL_PROCESS, may = SECCOMP_RET_ALLOW;
  static const uint32_t simple[] = { SYS_brk,        SYS_munmap,        SYS_mremap,      SYS_exit,
                                     SYS_exit_group, SYS_clock_gettime, SYS_gettimeofday };
  program f = { .n = 0 };
  load(&f, offsetof(struct seccomp_data, arch));
  give_unless(&f, BPF_JEQ, ARCH, dies);
  load(&f, offsetof(struct seccomp_data, nr));
  give_if(&f, BPF_JGT, MOST, dies);
  for (size_t i = 0; i < sizeof simple / sizeof *simple; i++) give_if(&f, BPF_JEQ, simple[i], may);
#ifdef SYS_time
  give_if(&f, BPF_JEQ, SYS_time, may);
#endif
  unsigned short from = begins(&f, SYS_write);
  load_arg(&f, 0, HIGH);
  give_unless(&f, BPF_JEQ, 0, dies);
  load_arg(&f, 0, LOW);
  give_if(&f, BPF_JEQ, 1, may);
  give_if(&f, BPF_JEQ, 3, may);
  give(&f, dies);
  ends(&f, from);
  from = begins(&f, SYS_mmap);
  load_arg(&f, 2, LOW);
  give_if(&f, BPF_JSET, PROT_EXEC, dies);
  load_arg(&f, 3, LOW);
  give_if(&f, BPF_JSET, MAP_SHARED, dies);
  give_if(&f, BPF_JSET, MAP_ANONYMOUS, may);
  give(&f, dies);
  ends(&f, from);
  give(&f, dies);
  struct sock_fprog filter = { f.n, f.code };
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return "the kernel has no no_new_privs";
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) != 0)
    return errno == EINVAL ? "the kernel has no filter of system calls"
                           : "the kernel refuses a filter of system calls";
  return NULL;
}

static void lonely (void) {
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}
#else
static const char *set_filter (void) { return "this system has no filter of system calls"; }
static void lonely (void) {}
#endif

/* The request, which is read, and what a host left open for its children. */
static void close_all (void) {
  close(0);
#ifdef SYS_close_range
  if (syscall(SYS_close_range, 4u, ~0u, 0u) == 0) return;
#endif
  long most = sysconf(_SC_OPEN_MAX);
  for (int fd = 4; fd < (most < 0 || most > 65536 ? 65536 : (int)most); fd++) close(fd);
}

const char *sandbox_close_door (const sandbox_request *r) {
  close_all();
  lonely();
  set_limits(r);
  return set_filter();
}
