/*
** test_tokenizer_chars.c - tables of characters inside SentencePiece models: at each place of a text
** the longest key is replaced, as a search through the list of keys says; tables that lie are refused
** with their numbers, or passed over where they do.
*/
#include "scratch.h"

#include <string.h>

#include "core/json.h"
#include "text/tokenizer.h"

enum { UNITS = 1 << 14, KEYS = 24, ROOM = 1024 };

static const char *const pieces[] = { "a",        "b",        "ab",           "\xC3\xA9",
                                      "\xC3\xA8", "\xCC\x81", "\xEF\xBC\xA1", "\xEF\xBC\xA2",
                                      "f",        " ",        "\xE3\x80\x80", "\xF0\x9F\x98\x80" };
enum { PIECES = sizeof pieces / sizeof *pieces };

static uint32_t seed;
static uint32_t draw (uint32_t n) {
  seed = seed * 1664525u + 1013904223u;
  return (seed >> 8) % n;
}

static size_t some (char *out, uint32_t most) { /* a text of at most so many pieces */
  size_t n = 0;
  for (uint32_t i = draw(most + 1); i > 0; i--) {
    const char *p = pieces[draw(PIECES)];
    memcpy(out + n, p, strlen(p));
    n += strlen(p);
  }
  return n;
}

/* ---- a double array of keys ---- */

typedef struct rule {
  char key[32], by[32];
  size_t n; /* bytes of the key */
  uint32_t at;
} rule;

typedef struct table {
  rule rules[KEYS];
  int count;
  uint32_t units[UNITS], used;     /* units, and how many of them are meant */
  bool taken[UNITS], bases[UNITS]; /* of units; children of one node only stand around a base */
  char texts[ROOM];
  size_t texts_size;
} table;

/* Give the node after `prefix` its children, at the first offset where all of them fit. `far`: offsets are
** whole 256 units, the other form that a unit has for them. */
static void place (table *t, uint32_t node, const char *prefix, size_t depth, bool far) {
  bool labels[256] = { false };
  uint32_t value = 0, offset = 0;
  for (int i = 0; i < t->count; i++) {
    const rule *r = &t->rules[i];
    if (r->n < depth || memcmp(r->key, prefix, depth) != 0) continue;
    if (r->n == depth)
      labels[0] = true, value = r->at;
    else
      labels[(unsigned char)r->key[depth]] = true;
  }
  for (bool fits = false; !fits;) {
    offset += far ? 256 : 1;
    assert_true((node ^ offset) < UNITS - 256);
    fits = !t->bases[node ^ offset];
    for (uint32_t c = 0; c < 256 && fits; c++) fits = !labels[c] || !t->taken[node ^ offset ^ c];
  }
  uint32_t base = node ^ offset;
  t->bases[base] = true;
  t->units[node] |= (labels[0] ? 0x100u : 0) | (far ? 0x200u | offset >> 8 << 10 : offset << 10);
  for (uint32_t c = 0; c < 256; c++)
    if (labels[c]) {
      t->taken[base ^ c] = true;
      t->units[base ^ c] = c == 0 ? 0x80000000u | value : c;
      if ((base | 0xFF) + 1 > t->used) t->used = (base | 0xFF) + 1;
    }
  for (uint32_t c = 1; c < 256; c++)
    if (labels[c]) {
      char longer[40];
      memcpy(longer, prefix, depth);
      longer[depth] = (char)c;
      place(t, base ^ c, longer, depth + 1, far);
    }
}

static void put32 (unsigned char *p, uint32_t v) {
  for (int i = 0; i < 4; i++) p[i] = (unsigned char)(v >> 8 * i);
}

/* As it stands in a model; the bytes. */
static size_t write_table (const table *t, unsigned char *out) {
  put32(out, 4 * t->used);
  for (uint32_t i = 0; i < t->used; i++) put32(out + 4 + 4 * i, t->units[i]);
  memcpy(out + 4 + 4 * t->used, t->texts, t->texts_size);
  return 4 + 4 * t->used + t->texts_size;
}

static void add (table *t, const char *key, size_t n, const char *by, size_t by_size) {
  rule *r = &t->rules[t->count++];
  memset(r, 0, sizeof *r);
  memcpy(r->key, key, n);
  memcpy(r->by, by, by_size);
  r->n = n;
  r->at = (uint32_t)t->texts_size;
  memcpy(t->texts + t->texts_size, r->by, by_size + 1);
  t->texts_size += by_size + 1;
}

static bool known (const table *t, const char *key, size_t n) {
  for (int i = 0; i < t->count; i++)
    if (t->rules[i].n == n && memcmp(t->rules[i].key, key, n) == 0) return true;
  return false;
}

static void make_table (table *t, bool far) {
  memset(t, 0, sizeof *t);
  t->taken[0] = true;
  for (uint32_t i = 1 + draw(KEYS); i > 0; i--) {
    char key[32], by[32];
    size_t n = some(key, 3), by_size = some(by, 3); /* an empty replacement takes the key away */
    if (n > 0 && !known(t, key, n)) add(t, key, n, by, by_size);
  }
  if (t->count == 0) add(t, "a", 1, "b", 1);
  place(t, 0, "", 0, far);
}

static const rule *longest (const table *t, const char *s, size_t n) {
  const rule *best = NULL;
  for (int i = 0; i < t->count; i++) {
    const rule *r = &t->rules[i];
    if (r->n <= n && memcmp(r->key, s, r->n) == 0 && (best == NULL || r->n > best->n)) best = r;
  }
  return best;
}

static peri_tokenizer *take (const void *map, size_t size, peri_status want) {
  peri_tokenizer *t;
  assert_int_equal(peri__tokenizer_new(C, &t), PERI_OK);
  assert_int_equal(peri__tokenizer_charsmap(t, map, size), want);
  return t;
}

/* ---- the claims ---- */

static unsigned char map[4 + 4 * UNITS + ROOM];
static table T;

static void the_longest_key_is_replaced_at_each_place (void **state) {
  (void)state;
  seed = 1;
  for (int round = 0; round < 200; round++) {
    make_table(&T, round % 2);
    peri_tokenizer *t = take(map, write_table(&T, map), PERI_OK);
    peri__buffer out = { .ctx = C };
    for (int i = 0; i < 50; i++) {
      char text[128], want[2048];
      size_t n = some(text, 12), size = 0;
      for (size_t at = 0; at < n;) {
        const rule *r = longest(&T, text + at, n - at);
        peri_text by;
        size_t k = peri__tokenizer_char(t, text + at, n - at, &by);
        assert_int_equal(k, r ? r->n : 0);
        if (r == NULL) { /* a character as it is */
          do want[size++] = text[at++];
          while (at < n && (text[at] & 0xC0) == 0x80);
          continue;
        }
        assert_int_equal(by.n, strlen(r->by));
        assert_memory_equal(by.s, r->by, by.n);
        memcpy(want + size, r->by, by.n);
        size += by.n;
        at += r->n;
      }
      assert_true(peri__tokenizer_chars(t, &out, text, n));
      assert_int_equal(out.size, size);
      if (size > 0) assert_memory_equal(out.data, want, size);
    }
    peri__buffer_free(&out);
    peri_tokenizer_close(t);
  }
}

static void one (table *t, const char *key, const char *by) {
  memset(t, 0, sizeof *t);
  t->taken[0] = true;
  add(t, key, strlen(key), by, strlen(by));
  place(t, 0, "", 0, false);
}

static void expect (peri_tokenizer *t, const char *text, const char *want) {
  peri__buffer out = { .ctx = C };
  assert_true(peri__tokenizer_chars(t, &out, text, strlen(text)));
  assert_int_equal(out.size, strlen(want));
  if (out.size > 0) assert_memory_equal(out.data, want, out.size);
  peri__buffer_free(&out);
  peri_tokenizer_close(t);
}

static void keys_and_replacements_that_break_characters_are_passed_over (void **state) {
  (void)state;
  one(&T, "\xC3", "x"); /* half of an e with an accent */
  expect(take(map, write_table(&T, map), PERI_OK), "\xC3\xA9", "\xC3\xA9");
  one(&T, "a", "\xC3\xA9"); /* a replacement that begins in its middle */
  T.units[T.units[0] >> 10 ^ 'a' ^ T.units[T.units[0] >> 10 ^ 'a'] >> 10] = 0x80000001u;
  expect(take(map, write_table(&T, map), PERI_OK), "ab", "ab");
  one(&T, "a", "bc"); /* one beyond the table */
  T.units[T.units[0] >> 10 ^ 'a' ^ T.units[T.units[0] >> 10 ^ 'a'] >> 10] = 0x80000009u;
  expect(take(map, write_table(&T, map), PERI_OK), "ab", "ab");
  one(&T, "a", "bc"); /* one without an end has that of the table */
  expect(take(map, write_table(&T, map) - 1, PERI_OK), "aa", "bcbc");
  one(&T, "a", "bc"); /* a child beyond the units */
  T.units[T.units[0] >> 10 ^ 'a'] |= 0x1FFFFFu << 10;
  expect(take(map, write_table(&T, map), PERI_OK), "ab", "ab");
  one(&T, "a", "bc");
  T.units[0] = 0x1FFFFFu << 10;
  expect(take(map, write_table(&T, map), PERI_OK), "ab", "ab");
  one(&T, "a", "");
  expect(take(map, write_table(&T, map), PERI_OK), "aba", "b");
}

static void refuse (size_t size, const char *message) {
  peri_tokenizer *t = take(map, size, PERI_EFORMAT);
  assert_string_equal(peri_message(C), message);
  peri_tokenizer_close(t);
}

static void tables_that_lie_are_refused_with_their_numbers (void **state) {
  (void)state;
  one(&T, "a", "bc");
  size_t size = write_table(&T, map);
  char message[128];
  put32(map, 6);
  refuse(7, "precompiled_charsmap of 7 bytes with 0 of units");
  refuse(size, "precompiled_charsmap of 1031 bytes with 6 of units");
  for (uint32_t units = 0; units < 4; units++) {
    put32(map, units);
    snprintf(message, sizeof message, "precompiled_charsmap of %zu bytes with %u of units", size,
             (unsigned)units);
    refuse(size, message);
  }
  put32(map, (uint32_t)size);
  snprintf(message, sizeof message, "precompiled_charsmap of %zu bytes with %zu of units", size,
           size);
  refuse(size, message);
  put32(map, 4 * T.used);
  map[size - 3] = 0xFF;
  refuse(size, "precompiled_charsmap: the replacements are no UTF-8");
  peri_tokenizer_close(take(map, 0, PERI_OK)); /* none */
}

static peri_status use (void *ud) {
  peri_tokenizer *t;
  peri__buffer out = { .ctx = C };
  TRY(peri__tokenizer_new(C, &t));
  peri_status status = peri__tokenizer_charsmap(t, map, *(size_t *)ud);
  if (status == PERI_OK && !peri__tokenizer_chars(t, &out, "aba", 3)) status = PERI_ENOMEM;
  peri__buffer_free(&out);
  peri_tokenizer_close(t);
  return status;
}

static void every_failed_allocation_is_reported (void **state) {
  (void)state;
  one(&T, "a", "bc");
  size_t size = write_table(&T, map);
  fail_every_allocation(C, &H, false, use, &size);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(the_longest_key_is_replaced_at_each_place),
    TEST(keys_and_replacements_that_break_characters_are_passed_over),
    TEST(tables_that_lie_are_refused_with_their_numbers),
    TEST(every_failed_allocation_is_reported),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
