/* fuzz_npy.c - any bytes as .npy, .npz and IDX files: refused, or an array whose bytes can be read. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* mkstemp */
#endif
#include "driver.h"

#include <unistd.h>

#include "corpus.h"

static const char *verdict (peri_status s, peri_tensor *t) {
  double last;
  if (s == PERI_EFORMAT || s == PERI_ENOSUP) return NULL;
  if (s != PERI_OK) return peri_message(fuzz_ctx());
  if (peri_numel(t) > 0 && peri_item(t, peri_numel(t) - 1, &last) != PERI_OK) return "unreadable";
  peri_release(t);
  return NULL;
}

static const char *read_archive (peri_ctx *ctx, const char *path) {
  const char *bad = NULL;
  peri_npz *z;
  peri_tensor *t;
  peri_status s = peri_npz_open(ctx, path, &z);
  if (s != PERI_OK) return s == PERI_EFORMAT ? NULL : peri_message(ctx);
  for (int64_t i = 0; i < peri_npz_count(z) && bad == NULL; i++) {
    size_t n;
    if (peri_npz_name(z, i, &n)[0] == 0) bad = "a name is empty";
    s = peri_npz_tensor(z, i, &t);
    if (bad == NULL) bad = verdict(s, t);
  }
  peri_npz_close(z);
  return bad;
}

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size) {
  static char path[64];
  peri_ctx *ctx = fuzz_ctx();
  peri_tensor *t = NULL;
  if (path[0] == 0) {
    strcpy(path, "/tmp/perilune-fuzz-XXXXXX");
    int fd = mkstemp(path);
    if (fd < 0) abort();
    close(fd);
  }
  FILE *f = fopen(path, "wb");
  if (f == NULL || fwrite(data, 1, size, f) != size) abort();
  fclose(f);
  peri_status s = peri_npy_load(ctx, path, &t);
  const char *bad = verdict(s, t);
  s = bad == NULL ? peri_idx_load(ctx, path, &t) : PERI_EFORMAT;
  if (bad == NULL) bad = verdict(s, t);
  if (bad == NULL) bad = read_archive(ctx, path);
  remove(path);
  fuzz_verdict(bad);
  return 0;
}

#ifndef PERI_LIBFUZZER
static size_t fuzz_seed (size_t i, unsigned char *out) {
  static const unsigned char idx[] = { 0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6 };
  if (i == 0) return memcpy(out, idx, sizeof idx), sizeof idx;
  size_t n = corpus_seed("npy", i - 1, out);
  return n > 0 ? n : corpus_seed("npz", i - 5, out); /* four files of arrays */
}
#endif
