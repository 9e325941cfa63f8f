/* fuzz_json.c - any bytes: refused with a place, or read as the oracle reads them. */
#include "driver.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size) {
  fuzz_verdict(check_json(fuzz_ctx(), data, size, NULL));
  return 0;
}

#ifndef PERI_LIBFUZZER
static size_t fuzz_seed (size_t i, unsigned char *out) {
  if (i >= sizeof json_seeds / sizeof *json_seeds) return 0;
  memcpy(out, json_seeds[i], strlen(json_seeds[i]));
  return strlen(json_seeds[i]);
}
#endif
