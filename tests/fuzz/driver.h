/*
** driver.h - gives a fuzz target a main: with arguments it replays those files, without it runs
** mutations of the built-in seeds. With -DPERI_LIBFUZZER there is no main and libFuzzer drives:
**   clang -g -O1 -fsanitize=fuzzer,address,undefined -DPERI_LIBFUZZER -DPERI_TESTING \
**     -Iruntime -Itests/c tests/fuzz/fuzz_json.c libperilune_testing.a -lm -lpthread
*/
#ifndef driver_h
#define driver_h

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "mutate.h"
#include "oracle.h"
#include "memory_of.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* The one context of a fuzz target; it lives as long as the process. */
static peri_ctx *fuzz_ctx (void) {
  static peri_ctx *ctx;
  if (ctx == NULL) {
    peri_options o;
    peri_options_init(&o);
    o.threads = 1;
    if (peri_open(&o, &ctx) != PERI_OK) abort();
  }
  return ctx;
}

static void fuzz_verdict (const char *bad) {
  if (bad == NULL && memory_of(fuzz_ctx()).live_bytes == 0) return;
  fprintf(stderr, "%s\n", bad != NULL ? bad : "tensors leak");
  abort();
}

#ifndef PERI_LIBFUZZER

static size_t fuzz_seed (size_t i, unsigned char *out); /* 0: there is none; the target has it */

static void replay (const char *path) {
  FILE *f = fopen(path, "rb");
  unsigned char *data = malloc((size_t)1 << 20);
  if (f == NULL || data == NULL) {
    fprintf(stderr, "%s: cannot be read\n", path);
    exit(1);
  }
  size_t n = fread(data, 1, (size_t)1 << 20, f);
  fclose(f);
  LLVMFuzzerTestOneInput(data, n);
  free(data);
}

int main (int argc, char **argv) {
  enum { RUNS = 3000 };
  unsigned char seed[1024], out[8192];
  size_t n;
  for (int i = 1; i < argc; i++) replay(argv[i]);
  for (size_t i = 0; argc == 1 && (n = fuzz_seed(i, seed)) != 0; i++)
    for (uint64_t k = 0; k < RUNS; k++)
      LLVMFuzzerTestOneInput(out, mutate(k | (uint64_t)(i + 1) << 40, seed, n, out, sizeof out));
  peri_close(fuzz_ctx());
  return 0;
}

#endif
#endif
