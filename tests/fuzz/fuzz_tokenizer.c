/*
** fuzz_tokenizer.c - any bytes as tokenizer.json, as the settings beside one, as a vocabulary in GGUF or
** as a SentencePiece model, by how they begin: refused, or a tokenizer that encodes and decodes texts within bounds of memory. Usage: as driver.h says, or with a number: that many mutations of
** each seed and of each file of the corpus.
*/
#define main driver_main
#include "driver.h"
#undef main

#include <dirent.h>
#include <stdio.h>
#include <time.h>

#include "text/tokenizer.h"

/* Everything that a context takes from its host. */
static size_t live, limit;

static void *counted (void *ud, void *ptr, size_t osize, size_t nsize) {
  (void)ud;
  if (nsize > osize && live + (nsize - osize) > limit) {
    fprintf(stderr, "%zu bytes asked for above the limit of %zu\n", live + nsize, limit);
    abort();
  }
  live += nsize - osize;
  if (nsize == 0) {
    free(ptr);
    return NULL;
  }
  return realloc(ptr, nsize);
}

static const char *const texts[] = { "", "a ab abc  hello\n<s> x</s>[MASK] 12345 don't",
                                     "\xE4\xB8\xAD\xE6\x96\x87 \xC3\xA9\xCC\x81 \xF0\x9F\x99\x82",
                                     "\xFF\xC0\x80 a\0b",
                                     "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" };

/* A tokenizer's promises on some texts; NULL: kept. */
static const char *check_use (peri_tokenizer *t) {
  enum { N = sizeof texts / sizeof *texts };
  peri_text in[N], out;
  const int32_t *ids;
  int64_t ends[N];
  for (int i = 0; i < N; i++) in[i] = (peri_text){ texts[i], i == 3 ? 6 : strlen(texts[i]) };
  for (int flags = 0; flags < 4; flags++) {
    if (peri_tokenizer_encode(t, N, in, flags, &ids, ends) != PERI_OK) continue;
    for (int64_t i = 0; i < ends[N - 1]; i++)
      if (ids[i] < 0 || ids[i] >= peri_tokenizer_size(t)) return "an id out of range";
    if (peri_tokenizer_decode(t, ids, (size_t)ends[N - 1], (flags & 1) != 0, &out) == PERI_OK)
      for (size_t i = 0; i < out.n; i++)
        if ((unsigned char)out.s[i] >= 0xF8) return "decoded text is no UTF-8";
  }
  return NULL;
}

static peri_status read_any (peri_ctx *ctx, const uint8_t *data, size_t size,
                             peri_tokenizer **out) {
  peri_gguf *f = NULL;
  bool gguf = size >= 4 && memcmp(data, "GGUF", 4) == 0;
  if (!gguf && (size == 0 || data[0] != 0x0A)) return peri_tokenizer_parse(ctx, data, size, out);
  if (gguf) TRY(peri_gguf_parse(ctx, data, size, &f));
  peri_status s = peri__tokenizer_new(ctx, out);
  if (s == PERI_OK)
    s = gguf ? peri__tokenizer_gguf(*out, f) : peri__tokenizer_sentencepiece(*out, data, size);
  peri_gguf_close(f);
  if (s == PERI_OK) s = peri__tokenizer_ready(*out);
  if (s != PERI_OK) peri_tokenizer_close(*out);
  return s;
}

/* A vocabulary with these bytes beside it: tokenizer_config.json, special_tokens_map.json,
** added_tokens.json. */
static peri_status read_beside (peri_ctx *ctx, const uint8_t *data, size_t size, int as,
                                peri_tokenizer **out) {
  static const char words[] =
      "{\"normalizer\":{\"type\":\"BertNormalizer\",\"clean_text\":true,\"handle_chinese_"
      "chars\":true,\"strip_accents\":null,\"lowercase\":true},\"model\":{\"type\":\"WordPiece"
      "\",\"unk_token\":\"[UNK]\",\"vocab\":{\"[UNK]\":0,\"[CLS]\":1,\"a\":2,\"##b\":3}}}";
  static peri_status (*const read[])(peri_tokenizer *, const void *, size_t) = {
    peri__tokenizer_config, peri__tokenizer_special_map, peri__tokenizer_added_json
  };
  TRY(peri__tokenizer_new(ctx, out));
  peri_status s = read[as](*out, data, size);
  if (s == PERI_OK) s = peri__tokenizer_json(*out, words, sizeof words - 1);
  if (s == PERI_OK) s = peri__tokenizer_settle(*out);
  if (s == PERI_OK) s = peri__tokenizer_old_around(*out);
  if (s == PERI_OK) s = peri__tokenizer_ready(*out);
  if (s != PERI_OK) peri_tokenizer_close(*out);
  return s;
}

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size) {
  static peri_ctx *ctx;
  peri_tokenizer *t;
  limit = SIZE_MAX;
  if (ctx == NULL) {
    peri_options o;
    peri_options_init(&o);
    o.threads = 1;
    o.alloc = counted;
    if (peri_open(&o, &ctx) != PERI_OK) abort();
  }
  size_t before = live;
  limit = live + 2 * size + ((size_t)4 << 20);
  clock_t begin = clock();
  if (read_any(ctx, data, size, &t) == PERI_OK) {
    limit += (size_t)16 << 20; /* what encoding needs, whatever the file */
    fuzz_verdict(check_use(t));
    peri_tokenizer_close(t);
  }
  for (int as = 0; as < 3 && size > 0 && data[0] == '{'; as++) {
    if (read_beside(ctx, data, size, as, &t) != PERI_OK) continue;
    fuzz_verdict(check_use(t));
    peri_tokenizer_close(t);
  }
  if (live != before) fuzz_verdict("a tokenizer leaks");
  if (clock() - begin > CLOCKS_PER_SEC) fuzz_verdict("it took more than a second");
  return 0;
}

#ifndef PERI_LIBFUZZER

static const char *const seeds[] = {
  "{\"added_tokens\":[{\"id\":5,\"content\":\"<s>\",\"special\":true,\"lstrip\":true}],\""
  "normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenize"
  "rs\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\" ?\\\\p{L}+|\\\\s+(?!\\\\S)|\\\\s+"
  "\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_s"
  "pace\":true,\"use_regex\":false}]},\"post_processor\":null,\"decoder\":{\"type\":\"Byt"
  "eLevel\"},\"model\":{\"type\":\"BPE\",\"ignore_merges\":true,\"unk_token\":\"a\",\"voc"
  "ab\":{\"a\":0,\"b\":1,\"ab\":2,\"\\u0120\":3,\"\\u0120a\":4},\"merges\":[\"a b\",[\"\\"
  "u0120\",\"a\"]]}}",
  "{\"added_tokens\":[{\"id\":1,\"content\":\"<s>\",\"special\":true,\"normalized\":true}"
  "],\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepe"
  "nd\":\"\\u2581\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\""
  "\\u2581\"}]},\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback"
  "\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]"
  "},\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallbac"
  "k\":true,\"vocab\":{\"<unk>\":0,\"<s>\":1,\"<0xFF>\":2,\"a\":3,\"\\u2581\":4,\"\\u2581"
  "a\":5,\"aa\":6},\"merges\":[\"\\u2581 a\",\"a a\"]}}",
  "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"single_word\":true,\"rstrip\":tru"
  "e}],\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_sc"
  "heme\":\"always\"},\"decoder\":{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"p"
  "repend_scheme\":\"always\"},\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"byte_fallba"
  "ck\":true,\"vocab\":[[\"<unk>\",0],[\"\\u2581\",-1.5],[\"a\",-2],[\"aa\",-3.25],[\"<0x"
  "41>\",-9]]}}",
  "{\"normalizer\":{\"type\":\"BertNormalizer\",\"clean_text\":true,\"handle_chinese_char"
  "s\":true,\"strip_accents\":null,\"lowercase\":true},\"pre_tokenizer\":{\"type\":\"Bert"
  "PreTokenizer\"},\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"Spe"
  "cialToken\":{\"id\":\"[CLS]\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":"
  "0}}],\"pair\":[],\"special_tokens\":{\"[CLS]\":{\"id\":\"[CLS]\",\"ids\":[1],\"tokens"
  "\":[\"[CLS]\"]}}},\"decoder\":{\"type\":\"WordPiece\",\"prefix\":\"##\",\"cleanup\":tr"
  "ue},\"model\":{\"type\":\"WordPiece\",\"unk_token\":\"[UNK]\",\"continuing_subword_pre"
  "fix\":\"##\",\"max_input_chars_per_word\":100,\"vocab\":{\"[UNK]\":0,\"[CLS]\":1,\"a\""
  ":2,\"##b\":3,\"##c\":4}}}",
  "{\"tokenizer_class\":\"BertTokenizer\",\"do_lower_case\":false,\"strip_accents\":true,"
  "\"added_tokens_decoder\":{\"9\":{\"content\":\"<n>\",\"lstrip\":true,\"special\":true},"
  "\"7\":{\"content\":\"x\"}},\"eos_token\":{\"content\":\"<e>\"},\"cls_token\":\"[CLS]\","
  "\"pad_token\":null,\"extra_special_tokens\":[\"<x>\"],\"image_token\":\"<i>\","
  "\"clean_up_tokenization_spaces\":true,\"model_max_length\":1e30}",
  "{\"<n>\":7,\"x\":9,\"a\":2}",
  "{\"pre_tokenizer\":{\"type\":\"Whitespace\"},\"decoder\":{\"type\":\"BPEDecoder\",\"su"
  "ffix\":\"</w>\"},\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"u\",\"vocab\":{\"u"
  "\":0,\"hello\":1,\"a\":2}}}"
};

static size_t fuzz_seed (size_t i, unsigned char *out) {
  if (i >= sizeof seeds / sizeof *seeds) return 0;
  memcpy(out, seeds[i], strlen(seeds[i]));
  return strlen(seeds[i]);
}

static void mutations (uint64_t from, const unsigned char *seed, size_t n, uint64_t runs) {
  static unsigned char out[1 << 17];
  for (uint64_t k = 0; k < runs; k++)
    LLVMFuzzerTestOneInput(out, mutate(k | from << 40, seed, n, out, sizeof out));
}

/* Replay the corpus and mutate it. */
static void corpus (uint64_t runs) {
  static const char folder[] = PERI_SOURCE_DIR "/tests/fuzz/corpus/tokenizer";
  static unsigned char data[1 << 16];
  DIR *d = opendir(folder);
  struct dirent *e;
  while (d != NULL && (e = readdir(d)) != NULL) {
    char path[512];
    if (e->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
    FILE *f = fopen(path, "rb");
    if (f == NULL) continue;
    size_t n = fread(data, 1, sizeof data, f);
    fclose(f);
    LLVMFuzzerTestOneInput(data, n);
    mutations(n, data, n, runs);
  }
  if (d != NULL) closedir(d);
}

int main (int argc, char **argv) {
  char *end;
  unsigned long long runs = argc == 2 ? strtoull(argv[1], &end, 10) : 600;
  unsigned char seed[1024];
  size_t n;
  if (argc > 2 || (argc == 2 && *end != '\0')) return driver_main(argc, argv);
  for (size_t i = 0; (n = fuzz_seed(i, seed)) != 0; i++) {
    LLVMFuzzerTestOneInput(seed, n);
    mutations(i + 1, seed, n, runs);
  }
  corpus(runs / 20);
  return 0;
}

#endif
