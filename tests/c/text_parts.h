/*
** text_parts.h - what the tests of the parts of tokenizers begin with: the vectors of
** tests/data/text_parts.json and the names of pre-tokenizers. One copy in each program.
*/
#ifndef text_parts_h
#define text_parts_h

#include "untrusted.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/decode.h"
#include "text/normalize.h"
#include "text/postprocess.h"
#include "text/split.h"
#include "text/tree.h"

static heap H;
static peri_ctx *C;
static peri__text_state *St;
static char *Json;
static peri_json J;
static peri__tree Tree; /* of the vectors */

static int setup (void **state) {
  const char *path = PERI_SOURCE_DIR "/tests/data/text_parts.json";
  (void)state;
  C = open_counted(&H);
  assert_int_equal(peri__text_state_open(C, &St), PERI_OK);
  FILE *f = fopen(path, "rb");
  assert_non_null(f);
  assert_int_equal(fseek(f, 0, SEEK_END), 0);
  size_t n = (size_t)ftell(f);
  rewind(f);
  Json = malloc(n + 1);
  assert_non_null(Json);
  assert_int_equal(fread(Json, 1, n, f), n);
  fclose(f);
  peri_json_open(&J, C, Json, n, NULL);
  if (peri__tree_read(C, &J, &Tree) != PERI_OK) fail_msg("%s", peri_message(C));
  return 0;
}

static int teardown (void **state) {
  (void)state;
  peri__tree_close(&Tree);
  peri_json_close(&J);
  free(Json);
  peri__text_state_close(St);
  close_counted(C, &H);
  return 0;
}

static const peri__node *get (const peri__node *node, const char *key) {
  const peri__node *c = peri__node_get(node, key);
  if (c == NULL) fail_msg("no \"%s\" in the vectors", key);
  return c;
}

static void check (peri_status s, const char *what) {
  if (s != PERI_OK) fail_msg("%s: %s", what, peri_message(C));
}

/* Numbers that look random. */
static uint32_t Seed;

static uint32_t below (uint32_t n) {
  Seed = Seed * 1664525u + 1013904223u;
  return (uint32_t)((uint64_t)Seed * n >> 32);
}

/* Pre-tokenizers that GGUF files name. */
static const char *const names[] = { "default",
                                     "llama3",
                                     "llama-v3",
                                     "llama-bpe",
                                     "falcon3",
                                     "falcon-h1",
                                     "pixtral",
                                     "midm-2.0",
                                     "lfm2",
                                     "jina-v5-nano",
                                     "dbrx",
                                     "smaug-bpe",
                                     "chatglm-bpe",
                                     "glm4",
                                     "glm5",
                                     "qwen2",
                                     "deepseek-r1-qwen",
                                     "kormo",
                                     "f2llmv2",
                                     "megrez",
                                     "stablelm2",
                                     "hunyuan",
                                     "solar-open",
                                     "grok-2",
                                     "qwen35",
                                     "gpt-2",
                                     "phi-2",
                                     "mpt",
                                     "olmo",
                                     "jais",
                                     "trillion",
                                     "granite-docling",
                                     "exaone4",
                                     "jina-es",
                                     "jina-de",
                                     "jina-v2-es",
                                     "jina-v2-de",
                                     "gigachat",
                                     "a.x-4.0",
                                     "mellum",
                                     "modern-bert",
                                     "jina-v1-en",
                                     "jina-v2-code",
                                     "roberta-bpe",
                                     "gpt-4o",
                                     "llama4",
                                     "kanana2",
                                     "talkie",
                                     "minimax-m2",
                                     "granite-embed-multi-97m",
                                     "tekken",
                                     "deepseek-llm",
                                     "deepseek-coder",
                                     "deepseek-v3",
                                     "hunyuan-dense",
                                     "hy_v4",
                                     "joyai-llm",
                                     "starcoder",
                                     "refact",
                                     "command-r",
                                     "smollm",
                                     "codeshell",
                                     "exaone",
                                     "minerva-7b",
                                     "mellum2",
                                     "falcon",
                                     "bloom",
                                     "poro-chat",
                                     "gpt3-finnish",
                                     "viking",
                                     "chameleon",
                                     "tiny_aya",
                                     "cohere2moe",
                                     "kimi-k2",
                                     "superbpe",
                                     "bailingmoe",
                                     "bailingmoe2",
                                     "llada-moe",
                                     "seed-coder",
                                     "ufakzeka",
                                     "afmoe",
                                     "laguna",
                                     "exaone-moe",
                                     "gemma4",
                                     "granite-embed-multi-311m",
                                     "sarvam-moe",
                                     "minicpm5",
                                     "whitespace",
                                     "jais-2",
                                     "spark2_5",
                                     "youtu" };

#endif
