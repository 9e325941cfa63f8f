/*
** test_tokenizer.c - the C side of tokenizers: every allocation that fails is reported and nothing is
** lost, texts on threads give the ids of texts alone, files of every format say where they are broken.
*/
#include "scratch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER PERI_SOURCE_DIR "/tests/data/tokenizers/"

static const char *const texts[] = {
  "the king's  men", "", "<s> x</s> [CLS] 12 caf\xC3\xA9 \xE4\xB8\xAD\xE6\x96\x87 \xF0\x9F\x99\x82",
  "a\xFF\xFE", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
};
#define N ((int64_t)(sizeof texts / sizeof *texts))

/* Load, encode, decode, stream, close. */
static peri_status use (void *ud) {
  const char *path = ud;
  peri_tokenizer *t;
  peri_token_stream *s = NULL;
  peri_text in[N], out;
  const int32_t *ids;
  int64_t ends[N];
  for (int i = 0; i < N; i++) in[i] = (peri_text){ texts[i], strlen(texts[i]) };
  peri_status status = peri_tokenizer_load(C, path, &t);
  if (status != PERI_OK) {
    assert_null(t);
    return status;
  }
  status = peri_tokenizer_encode(t, N, in, PERI_ENCODE_SPECIAL | PERI_ENCODE_PARSE, &ids, ends);
  if (status == PERI_OK) status = peri_tokenizer_decode(t, ids, (size_t)ends[N - 1], false, &out);
  if (status == PERI_OK) status = peri_token_stream_open(t, true, &s);
  for (int64_t i = 0; status == PERI_OK && i < ends[0]; i++)
    status = peri_token_stream_push(s, ids[i], &out);
  if (status == PERI_OK) status = peri_token_stream_finish(s, &out);
  peri_token_stream_close(s);
  peri_tokenizer_close(t);
  return status;
}

static void every_failed_allocation_is_reported (void **state) {
  static const char *const names[] = { "wordlevel", "wordpiece", "llama", "unigram_bytes" };
  char path[512];
  (void)state;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    snprintf(path, sizeof path, FOLDER "%s.json", names[i]);
    /* One failure may be borne: a pattern without machine code still matches. */
    fail_every_allocation(C, &H, true, use, path);
  }
}

static peri_status train (void *ud) {
  const peri_text text = { "low lower lowest new newer newest", 33 }, special = { "<s>", 3 };
  const peri_bpe_options o = {
    .struct_size = sizeof o, .vocab_size = 270, .min_count = 1, .n_special = 1, .special = &special
  };
  void *json;
  size_t size;
  (void)ud;
  TRY(peri_tokenizer_train_bpe(C, 1, &text, &o, &json, &size));
  peri_file_free(C, json, size);
  return PERI_OK;
}

static void training_reports_failed_allocations (void **state) {
  (void)state;
  fail_every_allocation(C, &H, false, train, NULL);
}

static void texts_on_threads_give_the_ids_of_texts_alone (void **state) {
  enum { MANY = 3000 };
  static peri_text in[MANY];
  static int64_t ends[MANY], end;
  static char big[300000];
  peri_options o;
  peri_ctx *ctx;
  peri_tokenizer *t;
  const int32_t *ids;
  (void)state;
  memset(big, 'x', sizeof big); /* more than a worker has room for */
  for (int i = 0; i < MANY; i++) in[i] = (peri_text){ texts[i % N], strlen(texts[i % N]) };
  in[7] = (peri_text){ big, sizeof big };
  peri_options_init(&o);
  o.threads = 3;
  assert_int_equal(peri_open(&o, &ctx), PERI_OK);
  assert_int_equal(peri_tokenizer_load(ctx, FOLDER "bytelevel.json", &t), PERI_OK);
  assert_int_equal(peri_tokenizer_encode(t, MANY, in, PERI_ENCODE_PARSE, &ids, ends), PERI_OK);
  size_t bytes = (size_t)ends[MANY - 1] * sizeof *ids;
  int32_t *all = malloc(bytes);
  assert_non_null(all);
  memcpy(all, ids, bytes);
  for (int i = 0; i < MANY; i++) {
    int64_t begin = i > 0 ? ends[i - 1] : 0;
    assert_int_equal(peri_tokenizer_encode(t, 1, &in[i], PERI_ENCODE_PARSE, &ids, &end), PERI_OK);
    assert_int_equal(end, ends[i] - begin);
    if (end > 0) assert_memory_equal(ids, all + begin, (size_t)end * sizeof *ids);
  }
  free(all);
  peri_interrupt(ctx);
  assert_int_equal(peri_tokenizer_encode(t, MANY, in, 0, &ids, ends), PERI_EINTR);
  peri_interrupt_clear(ctx);
  peri_tokenizer_close(t);
  peri_close(ctx);
}

static void refuses (const void *data, size_t n, const char *part) {
  peri_tokenizer *t = (peri_tokenizer *)1;
  write_file(Path, data, n);
  want_failure(C, peri_tokenizer_load(C, Path, &t), PERI_EFORMAT, part);
  assert_null(t);
  assert_non_null(strstr(peri_message(C), Path));
}

static void broken_files_say_where (void **state) {
  static const unsigned char pieces[] = {
    0x0A, 0x0A, 0x0A, 0x03, 'a', 'b', 'c', 0x15, 0, 0, 0, 0xBF
  };
  unsigned char file[64] = { 0 };
  (void)state;
  refuses("{\"model\":", 9, "line 1, column 10");
  /* llama2.c: a token of 9 bytes where 4 are left */
  file[0] = 16;
  file[8] = 9;
  refuses(file, 16, "byte 8");
  file[8] = 1;
  refuses(file, 13, "259");
  file[7] = 0x7F;
  file[6] = 0x80;
  refuses(file, 13, "byte 4: the score");
  /* SentencePiece: cut off, an endless number, a piece behind the end */
  refuses(pieces, 11, "behind its message");
  memcpy(file, pieces, 12);
  file[3] = 0x7F;
  refuses(file, 12, "behind its message");
  file[3] = 3;
  file[2] = 0x0A;
  file[4] = 0xFF;
  refuses(file, 12, "UTF-8");
  refuses("GGUF\3\0\0\0", 8, "");
}

static void a_sentencepiece_model_is_read (void **state) {
  static const unsigned char file[] = {
    0x0A, 0x0B, 0x0A, 0x05, '<',  'u',  'n',  'k', '>',  0x18, 2,    0x18, 2, /* unknown */
    0x0A, 0x08, 0x0A, 0x01, 'a',  0x15, 0,    0,   0x80, 0xBF,                /* score -1 */
    0x0A, 0x08, 0x0A, 0x01, 'b',  0x15, 0,    0,   0x80, 0xBF,                /* score -1 */
    0x0A, 0x09, 0x0A, 0x02, 'a',  'b',  0x15, 0,   0,    0,    0xBF,          /* score -0.5 */
    0x12, 0x02, 0x18, 2,                                                      /* BPE */
    0x1A, 0x04, 0x18, 0,    0x20, 0                                           /* no spaces added */
  };
  peri_tokenizer *t;
  const peri_text text = { "aabxb", 5 };
  const int32_t want[] = { 1, 3, 0, 2 }, *ids;
  int64_t n;
  (void)state;
  write_file(Path, file, sizeof file);
  if (peri_tokenizer_load(C, Path, &t) != PERI_OK) fail_msg("%s", peri_message(C));
  assert_int_equal(peri_tokenizer_size(t), 4);
  assert_int_equal(peri_tokenizer_encode(t, 1, &text, 0, &ids, &n), PERI_OK);
  assert_int_equal(n, 4);
  assert_memory_equal(ids, want, sizeof want);
  peri_tokenizer_close(t);
}

static void loading_needs_memory_in_proportion (void **state) {
  peri_tokenizer *t;
  void *data;
  size_t size;
  (void)state;
  assert_int_equal(peri_file_read(C, FOLDER "unigram_bytes.json", 0, &data, &size), PERI_OK);
  peri_memory_trim(C);
  size_t before = H.live;
  H.peak = before;
  assert_int_equal(peri_tokenizer_parse(C, data, size, &t), PERI_OK);
  assert_true(H.peak - before < 2 * size + ((size_t)1 << 20));
  peri_tokenizer_close(t);
  peri_file_free(C, data, size);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(every_failed_allocation_is_reported),
    TEST(training_reports_failed_allocations),
    TEST(texts_on_threads_give_the_ids_of_texts_alone),
    TEST(broken_files_say_where),
    TEST(a_sentencepiece_model_is_read),
    TEST(loading_needs_memory_in_proportion)
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
