/* test_slab.c - large blocks in huge pages: apart from each other, zero-cost to hold, given back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/core.h"
#include "core/slab.h"

enum { N = 40 };

static size_t size_of (int i) { return ((size_t)(i * 37 % 11) + 1) * 300000 + (size_t)i; }

static void blocks_keep_what_is_written (void **state) {
  peri__slab *current = NULL;
  unsigned char *p[N];
  (void)state;
  if (!peri__slab_wants((size_t)1 << 20)) skip();
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < N; i++) {
      p[i] = peri__slab_get(&current, size_of(i));
      assert_non_null(p[i]);
      assert_int_equal((uintptr_t)p[i] % PERI_ALIGN, 0);
      memset(p[i], i + 1, size_of(i));
    }
    for (int i = 1; i < N; i += 2) peri__slab_put(&current, p[i], size_of(i));
    for (int i = 0; i < N; i += 2)
      for (size_t k = 0; k < size_of(i); k += 4093) assert_int_equal(p[i][k], i + 1);
    for (int i = 0; i < N; i += 2) peri__slab_put(&current, p[i], size_of(i));
    assert_null(current);
  }
}

static void a_block_may_be_larger_than_a_slab (void **state) {
  peri__slab *current = NULL;
  size_t n = (size_t)70 << 20;
  (void)state;
  if (!peri__slab_wants(n)) skip();
  unsigned char *small = peri__slab_get(&current, 500000), *large = peri__slab_get(&current, n);
  large[0] = large[n - 1] = small[0] = 7;
  peri__slab_put(&current, large, n);
  assert_int_equal(small[0], 7);
  assert_non_null(current);
  peri__slab_put(&current, small, 500000);
  assert_null(current);
}

static void too_much_is_refused (void **state) {
  peri__slab *current = NULL;
  (void)state;
  if (!peri__slab_wants((size_t)1 << 20)) skip();
  assert_null(peri__slab_get(&current, SIZE_MAX));
  assert_null(peri__slab_get(&current, SIZE_MAX / 2));
  assert_null(current);
}

/* Resident pages of the process. */
static long resident (void) {
  long total = 0, pages = 0;
  FILE *f = fopen("/proc/self/statm", "r");
  if (!f || fscanf(f, "%ld %ld", &total, &pages) != 2) pages = -1;
  if (f) fclose(f);
  return pages;
}

static void trimming_gives_memory_back (void **state) {
  peri_ctx *ctx = NULL;
  (void)state;
  if (!peri__slab_wants((size_t)1 << 20) || resident() < 0) skip();
  assert_int_equal(peri_open(NULL, &ctx), PERI_OK);
  void *keep = peri__block_get(ctx, 400000);
  long before = resident();
  for (int i = 0; i < 20; i++) {
    void *p = peri__block_get(ctx, (size_t)3 << 20);
    memset(p, 1, (size_t)3 << 20);
    peri__block_put(ctx, p);
    void *q = peri__block_get(ctx, (size_t)5 << 20), *r = peri__block_get(ctx, (size_t)5 << 20);
    memset(q, 1, (size_t)5 << 20);
    peri__block_put(ctx, q);
    peri__block_put(ctx, r);
    peri_memory_trim(ctx);
  }
  assert_true(resident() - before < 4 << 20 >> 12);
  peri__block_put(ctx, keep);
  peri_close(ctx);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(blocks_keep_what_is_written),
    cmocka_unit_test(a_block_may_be_larger_than_a_slab),
    cmocka_unit_test(too_much_is_refused),
    cmocka_unit_test(trimming_gives_memory_back),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
