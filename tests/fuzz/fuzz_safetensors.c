/* fuzz_safetensors.c - any bytes: refused, or tensors exactly where the oracle accepts them. */
#include "driver.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size) {
  fuzz_verdict(check_safetensors(fuzz_ctx(), data, size, NULL, NULL));
  return 0;
}

#ifndef PERI_LIBFUZZER
static size_t fuzz_seed (size_t i, unsigned char *out) { return safetensors_seed(i, out); }
#endif
