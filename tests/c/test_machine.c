/* test_machine.c - what a process may use, read from made-up /proc and /sys; the limit of a context. */
#include <stdio.h>
#include <string.h>

#include "core/machine.h"
#include "untrusted.h"
#include "memory_of.h"

#define MIB ((size_t)1 << 20)

static peri_ctx *ctx;
static heap all;
static char root[256];

static void put (const char *path, const char *text) {
  char full[1024], *slash;
  snprintf(full, sizeof full, "%s%s", root, path);
  slash = strrchr(full, '/');
  *slash = 0;
  assert_int_equal(peri_make_folder(ctx, full), PERI_OK);
  *slash = '/';
  write_file(full, text, strlen(text));
}

/* A machine of 4 GiB whose process is in group, seen through one mount. */
static void machine (const char *group, const char *mount) {
  char text[1024];
  assert_int_equal(peri_remove_tree(ctx, root), PERI_OK);
  put("/proc/meminfo", "MemTotal:        4194304 kB\nMemFree:          100000 kB\n");
  put("/proc/self/cgroup", group);
  snprintf(text, sizeof text,
           "22 1 0:20 / /proc rw,relatime shared:5 - proc proc rw\n%s\n"
           "40 1 0:39 / /tmp rw - tmpfs tmpfs rw\n",
           mount);
  put("/proc/self/mountinfo", text);
}

static int open_all (void **state) {
  (void)state;
  ctx = open_counted(&all);
  scratch_folder(root);
  return 0;
}

static int close_all (void **state) {
  (void)state;
  assert_int_equal(peri_remove_tree(ctx, root), PERI_OK);
  close_counted(ctx, &all);
  return 0;
}

static void without_groups_it_is_the_machines (void **state) {
  (void)state;
  machine("0::/\n", "");
  assert_int_equal(peri__memory_under(root), 4096 * MIB);
  assert_true(peri_machine_memory() > 16 * MIB);
}

static const char unified[] =
    "31 23 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";

static void the_own_group_and_those_around_it_count (void **state) {
  (void)state;
  machine("0::/user.slice/job\\040one/inner\n", unified);
  put("/sys/fs/cgroup/user.slice/job\\040one/inner/memory.max", "max\n");
  assert_int_equal(peri__memory_under(root), 4096 * MIB);
  put("/sys/fs/cgroup/user.slice/memory.max", "1073741824\n");
  assert_int_equal(peri__memory_under(root), 1024 * MIB);
  put("/sys/fs/cgroup/user.slice/job\\040one/inner/memory.max", "536870912\n");
  assert_int_equal(peri__memory_under(root), 512 * MIB);
  put("/sys/fs/cgroup/user.slice/job\\040one/inner/memory.max", "8589934592\n");
  assert_int_equal(peri__memory_under(root), 1024 * MIB);
  put("/sys/fs/cgroup/other/memory.max", "1048576\n"); /* of somebody else */
  put("/sys/memory.max", "1048576\n");                 /* above the mount */
  assert_int_equal(peri__memory_under(root), 1024 * MIB);
}

static void a_container_sees_its_own_group_as_the_top (void **state) {
  (void)state;
  machine("0::/\n", unified);
  put("/sys/fs/cgroup/memory.max", "268435456\n");
  assert_int_equal(peri__memory_under(root), 256 * MIB);
}

static void the_first_version_counts_too (void **state) {
  (void)state;
  const char *groups = "9:cpu,cpuacct:/x\n4:memory:/docker/abc/leaf\n0::/\n";
  machine(groups, "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory");
  put("/sys/fs/cgroup/memory/docker/abc/leaf/memory.limit_in_bytes", "9223372036854771712\n");
  assert_int_equal(peri__memory_under(root), 4096 * MIB);
  put("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "134217728\n");
  assert_int_equal(peri__memory_under(root), 128 * MIB);
  /* the mount shows the container's part alone */
  machine(groups, "35 31 0:32 /docker/abc /mem\\040ory ro - cgroup cgroup rw,memory");
  put("/mem ory/memory.limit_in_bytes", "67108864\n");
  assert_int_equal(peri__memory_under(root), 64 * MIB);
  put("/mem ory/leaf/memory.limit_in_bytes", "33554432\n");
  assert_int_equal(peri__memory_under(root), 32 * MIB);
  /* a part that the process is not in */
  machine(groups, "35 31 0:32 /docker/ab /mem ro - cgroup cgroup rw,memory");
  put("/mem/memory.limit_in_bytes", "16777216\n");
  assert_int_equal(peri__memory_under(root), 16 * MIB);
}

static void files_that_make_no_sense_change_nothing (void **state) {
  (void)state;
  char deep[9000];
  machine("0::\nno colons\n:\n0:x\n", unified);
  put("/sys/fs/cgroup/memory.max", "lots\n");
  assert_int_equal(peri__memory_under(root), 4096 * MIB);
  machine("", "31 23 - cgroup2 x y\n\n - cgroup2\n31 23 0:27 / - cgroup2 a b");
  assert_int_equal(peri__memory_under(root), 4096 * MIB);
  memset(deep, 'g', sizeof deep);
  memcpy(deep, "0::/", 4);
  deep[sizeof deep - 1] = 0;
  machine(deep, unified);
  assert_int_equal(peri__memory_under(root), 4096 * MIB);
}

static void small_tensors_scratch_and_rounding_stay_near_the_limit (void **state) {
  heap h;
  peri_options o;
  peri_ctx *small = NULL;
  peri_tensor *list[40000], *x = NULL;
  int64_t n = 0, many = 200000, rest[3] = { 70000, 1, 3001 };
  (void)state;
  peri_ctx *counted = open_counted(&h); /* for its allocator */
  peri_options_init(&o);
  o.threads = 1;
  o.max_bytes = 4 * MIB;
  peri_allocator(counted, &o.alloc, &o.alloc_ud);
  assert_int_equal(peri_open(&o, &small), PERI_OK);
  size_t before = h.live;
  while (n < 40000 && peri_scalar(small, PERI_F32, 1, &list[n]) == PERI_OK) n++;
  assert_in_range(n, 1000, 39999);
  assert_non_null(strstr(peri_message(small), "out of memory"));
  assert_true(h.live - before <= 4 * MIB + MIB / 2 + MIB);
  while (n > 0) peri_release(list[--n]);
  /* what the small ones left in the free lists is no obstacle */
  assert_int_equal(peri_empty(small, PERI_F32, 1, &many, &x), PERI_OK);
  peri_release(x);
  for (int i = 0; i < 200; i++) {
    while (n < 50 && peri_empty(small, PERI_U8, 1, &rest[(i + n) % 3], &list[n]) == PERI_OK) n++;
    assert_true(h.live - before <= 4 * MIB + MIB / 2 + MIB);
    for (int k = i % 3; n > k;) peri_release(list[--n]);
  }
  while (n > 0) peri_release(list[--n]);
  assert_int_equal(memory_of(small).live_bytes, 0);
  assert_int_equal(memory_of(small).max_bytes, 4 * MIB);
  peri_close(small);
  close_counted(counted, &h);
}

static void a_limit_of_any_size_is_taken (void **state) {
  (void)state;
  size_t limits[] = { 1, SIZE_MAX, SIZE_MAX - 1, SIZE_MAX / 9 * 8 };
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
    peri_options o;
    peri_ctx *c = NULL;
    peri_tensor *t = NULL;
    peri_options_init(&o);
    o.max_bytes = limits[i];
    assert_int_equal(peri_open(&o, &c), PERI_OK);
    assert_int_equal(peri_scalar(c, PERI_F32, 1, &t), i == 0 ? PERI_ENOMEM : PERI_OK);
    int64_t huge[2] = { INT64_C(1) << 40, INT64_C(1) << 19 };
    peri_tensor *u = NULL;
    assert_int_equal(peri_empty(c, PERI_F32, 2, huge, &u), PERI_ENOMEM);
    assert_null(u);
    peri_release(t);
    peri_close(c);
  }
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(without_groups_it_is_the_machines),
    cmocka_unit_test(the_own_group_and_those_around_it_count),
    cmocka_unit_test(a_container_sees_its_own_group_as_the_top),
    cmocka_unit_test(the_first_version_counts_too),
    cmocka_unit_test(files_that_make_no_sense_change_nothing),
    cmocka_unit_test(small_tensors_scratch_and_rounding_stay_near_the_limit),
    cmocka_unit_test(a_limit_of_any_size_is_taken),
  };
  return cmocka_run_group_tests(tests, open_all, close_all);
}
