/*
** test_abi.c - what a host that was compiled against another version may rely on: versions agree, structs
** that grow say how large they are, all others keep their size.
*/
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "headers.h"
#include "perilune_lua.h"

static peri_ctx *ctx;
static lua_State *lua;

static int open_all (void **state) {
  (void)state;
  return peri_open(NULL, &ctx);
}

static int close_all (void **state) {
  (void)state;
  peri_close(ctx);
  return 0;
}

static void the_versions_agree (void **state) {
  (void)state;
  int major, minor, patch;
  assert_string_equal(peri_version(), PERI_VERSION);
  assert_int_equal(peri_version_num(), PERI_VERSION_NUM);
  assert_int_equal(sscanf(peri_version(), "%d.%d.%d", &major, &minor, &patch), 3);
  assert_int_equal(major, PERI_VERSION_MAJOR);
  assert_int_equal(minor, PERI_VERSION_MINOR);
  assert_int_equal(patch, PERI_VERSION_PATCH);
  assert_int_equal(peri_version_num(), major * 10000 + minor * 100 + patch);
}

/* ---- every struct of the headers ---- */

/* Structs that never grow, with their sizes where pointers have 8 bytes. What is lent only: 0. */
static const struct {
  const char *name;
  size_t size, was;
} fixed[] = {
  { "peri_attr", sizeof(peri_attr), 40 },
  { "peri_arg", sizeof(peri_arg), 24 },
  { "peri_task", sizeof(peri_task), 32 },
  { "peri_rng", sizeof(peri_rng), 16 },
  { "peri_safetensors_entry", sizeof(peri_safetensors_entry), 96 },
  { "peri_text_pair", sizeof(peri_text_pair), 16 },
  { "peri_gguf_text", sizeof(peri_gguf_text), 16 },
  { "peri_gguf_value", sizeof(peri_gguf_value), 40 },
  { "peri_gguf_entry", sizeof(peri_gguf_entry), 120 },
  { "peri_gguf_cursor", sizeof(peri_gguf_cursor), 16 },
  { "peri_text", sizeof(peri_text), 16 },
  { "peri_param", 0, 0 },
  { "peri_pcg64", sizeof(peri_pcg64), 40 },
  { "peri_space_field", sizeof(peri_space_field), 32 },
  { "peri_env_io", sizeof(peri_env_io), 104 },
  { "peri_env_option", sizeof(peri_env_option), 48 },
  { "peri_env_outcome", sizeof(peri_env_outcome), 32 },
  { "peri_env_arg", sizeof(peri_env_arg), 24 },
  { "peri_env_episode", sizeof(peri_env_episode), 24 },
  { "peri_field", sizeof(peri_field), 96 },
};

static bool is_fixed (const char *name, size_t n) {
  for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
    if (strlen(fixed[i].name) == n && memcmp(fixed[i].name, name, n) == 0) return true;
  return false;
}

/* Its first field is struct_size, or it is in the list. Frees the text. */
static int check_structs (char *text) {
  int n = 0;
  for (const char *p = text; (p = strstr(p, "struct peri_")) != NULL;) {
    p += strlen("struct ");
    size_t length = strcspn(p, " ;*)");
    if (p[length] != ' ' || p[length + 1] != '{') continue;
    const char *body = p + length + 2, *first = strstr(body, "struct_size");
    bool grows = first != NULL && first < strchr(body, ';');
    if (grows == is_fixed(p, length))
      fail_msg("%.*s %s", (int)length, p,
               grows ? "carries its size and is said to be fixed"
                     : "neither carries its size nor is known to be fixed");
    n++;
  }
  free(text);
  return n;
}

static void every_struct_carries_its_size_or_never_grows (void **state) {
  (void)state;
  char *own = with_file(ctx, calloc(1, 1), PERI_SOURCE_DIR "/bindings/perilune_lua.h");
  assert_true(check_structs(public_headers(ctx)) >= 14);
  assert_true(check_structs(own) >= 1);
  for (size_t i = 0; i < sizeof fixed / sizeof *fixed && sizeof(void *) == 8; i++)
    if (fixed[i].size != fixed[i].was)
      fail_msg("%s has %zu bytes, hosts were compiled with %zu", fixed[i].name, fixed[i].size,
               fixed[i].was);
}

/* ---- structs that are filled ---- */

static peri_status fill_memory (void *out) { return peri_memory_stats(ctx, out); }
static peri_status fill_usage (void *out) { return peri_lua_usage(lua, out); }
static peri_status fill_profile (void *out) { return peri_profile_at(ctx, 0, out); }

/* A newer host's larger struct is filled as far as we know and 0 behind that; what lies behind the
** struct is left alone; a size that no version had is refused. */
static void filled (const char *name, size_t size, peri_status (*fill)(void *)) {
  union {
    uint32_t struct_size;
    unsigned char byte[512];
  } u, known;
  assert_true(size + 64 < sizeof u.byte);
  memset(&known, 0, sizeof known);
  known.struct_size = (uint32_t)size;
  assert_int_equal(fill(&known), PERI_OK);
  for (uint32_t n = (uint32_t)size; n < size + 64; n += 8) {
    memset(&u, 0xa5, sizeof u);
    u.struct_size = n;
    assert_int_equal(fill(&u), PERI_OK);
    assert_int_equal(u.struct_size, n);
    assert_memory_equal(u.byte + 4, known.byte + 4, size - 4);
    for (size_t i = size; i < n; i++) assert_int_equal(u.byte[i], 0);
    for (size_t i = n; i < sizeof u.byte; i++) assert_int_equal(u.byte[i], 0xa5);
  }
  for (uint32_t n = 0; n < size; n++) {
    memset(&u, 0xa5, sizeof u);
    u.struct_size = n;
    assert_int_equal(fill(&u), PERI_EINVAL);
    assert_non_null(strstr(peri_message(ctx), name));
    for (size_t i = 4; i < sizeof u.byte; i++) assert_int_equal(u.byte[i], 0xa5);
  }
  u.struct_size = UINT32_MAX;
  assert_int_equal(fill(&u), PERI_EINVAL);
}

static void structs_are_filled_as_far_as_they_go (void **state) {
  (void)state;
  peri_tensor *t = NULL;
  const int64_t two = 2;
  peri_profile_start(ctx);
  assert_int_equal(PERI_CALL(ctx, "ones", peri_ints("shape", 1, &two), peri_out(&t)), PERI_OK);
  filled("peri_memory", sizeof(peri_memory), fill_memory);
  filled("peri_profile_row", sizeof(peri_profile_row), fill_profile);
  peri_lua_limits l;
  peri_lua_limits_init(&l);
  assert_int_equal(peri_lua_new(ctx, &lua), PERI_OK);
  assert_int_equal(peri_lua_limit(lua, &l), PERI_OK);
  filled("peri_lua_limits", sizeof(peri_lua_limits), fill_usage);
  lua_close(lua);
  peri_profile_stop(ctx);
  peri_release(t);
}

static void rows_of_a_profile_come_by_time (void **state) {
  (void)state;
  peri_profile_row row = { .struct_size = sizeof row };
  double last = 1e300;
  const int64_t sizes[2] = { 100, 100 };
  assert_int_equal(peri_profile_count(ctx), 0);
  peri_profile_start(ctx);
  for (int k = 0; k < 3; k++) {
    peri_tensor *x = NULL, *y = NULL, *z = NULL;
    assert_int_equal(PERI_CALL(ctx, "rand", peri_ints("shape", 2, sizes), peri_out(&x)), PERI_OK);
    assert_int_equal(PERI_CALL(ctx, "matmul", peri_in(x), peri_in(x), peri_out(&y)), PERI_OK);
    assert_int_equal(PERI_CALL(ctx, "exp", peri_in(y), peri_out(&z)), PERI_OK);
    peri_release(x), peri_release(y), peri_release(z);
  }
  assert_int_equal(peri_profile_count(ctx), 3);
  for (int i = 0; i < 3; i++) {
    assert_int_equal(peri_profile_at(ctx, i, &row), PERI_OK);
    assert_int_equal(row.count, 3);
    assert_true(row.seconds <= last);
    last = row.seconds;
  }
  assert_int_equal(peri_profile_at(ctx, 3, &row), PERI_EINVAL);
  assert_string_equal(peri_message(ctx), "row 3 of a profile of 3");
  peri_profile_stop(ctx);
  assert_int_equal(peri_profile_count(ctx), 0);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_versions_agree),
    cmocka_unit_test(every_struct_carries_its_size_or_never_grows),
    cmocka_unit_test(structs_are_filled_as_far_as_they_go),
    cmocka_unit_test(rows_of_a_profile_come_by_time),
  };
  return cmocka_run_group_tests(tests, open_all, close_all);
}
