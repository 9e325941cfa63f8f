/*
** fuzz_gguf.c - any bytes as a GGUF file: refused, or every value and every byte of every tensor can be
** read. Each input is tried as it is and with one integer at the edge of its type.
*/
#include "driver.h"

#include "corpus.h"

/* Values whose products wrap to 0, to a negative and to a small number are among them. */
static const uint64_t integers[] = { 0,
                                     1,
                                     2,
                                     3,
                                     0x7fffffff,
                                     0x80000000u,
                                     0xffffffffu,
                                     0x100000000u,
                                     0x100000001u,
                                     0x5555555555555556u,
                                     0x7fffffffffffffffu,
                                     0x8000000000000000u,
                                     0xffffffffffffffe0u,
                                     0xffffffffffffffffu,
                                     32,
                                     64 };

static uint64_t seen; /* so that reads are not optimised away */

static void touch (const void *p, size_t n) {
  const unsigned char *b = p;
  for (size_t i = 0; i < n; i++) seen = seen * 31 + b[i];
}

static void read_value (const peri_gguf *f, const peri_gguf_value *v, int depth) {
  peri_gguf_cursor at = { 0, 0 };
  peri_gguf_value item;
  peri_gguf_text text;
  int64_t whole;
  double number;
  if (depth > 8) abort();
  touch(v->key.s, v->key.n);
  if (peri_gguf_string(f, v, &text)) touch(text.s, text.n);
  for (int64_t i = 0; i < v->count; i++) {
    if (!peri_gguf_num(f, v, i, &number)) break;
    if (peri_gguf_int(f, v, i, &whole)) seen += (uint64_t)whole;
  }
  while (peri_gguf_next(f, v, &at, &item)) read_value(f, &item, depth + 1);
  if (v->array && at.i != v->count) abort();
}

static const char *read_file (const uint8_t *data, size_t size) {
  peri_ctx *ctx = fuzz_ctx();
  peri_gguf *f;
  peri_status s = peri_gguf_parse(ctx, data, size, &f);
  if (s == PERI_EFORMAT) return NULL;
  if (s != PERI_OK) return "neither read nor refused as malformed";
  const char *bad = NULL;
  for (int64_t i = 0; i < peri_gguf_nvalues(f); i++) {
    char key[300];
    peri_gguf_value v = peri_gguf_at(f, i);
    read_value(f, &v, 0);
    if (v.key.n >= sizeof key) continue;
    memcpy(key, v.key.s, v.key.n);
    key[v.key.n] = 0;
    if (peri_gguf_find(f, key) != i) bad = "a value is not found by its key";
  }
  uint64_t end = 0;
  for (int64_t i = 0; i < peri_gguf_count(f); i++) {
    peri_tensor *t;
    peri_gguf_entry e = peri_gguf_entry_at(f, i);
    if (e.offset < end || e.bytes > size || e.offset > size - e.bytes)
      bad = "a tensor is elsewhere";
    end = e.offset + e.bytes;
    s = peri_gguf_tensor(f, i, &t);
    if (s == PERI_OK) {
      if (peri_nbytes(t) != e.bytes) bad = "a tensor has another size";
      touch(peri_data(t), peri_nbytes(t));
      peri_release(t);
    } else if (e.supported || s != PERI_ENOSUP) {
      bad = "a tensor cannot be read";
    }
  }
  peri_gguf_close(f);
  return bad;
}

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size) {
  unsigned char *copy = calloc(size + 1, 1);
  if (copy == NULL) abort();
  if (size > 0) memcpy(copy, data, size); /* of this size: a read beyond it is seen */
  fuzz_verdict(read_file(copy, size));
  if (size >= 24) {
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < size; i++) h = (h ^ data[i]) * 1099511628211u;
    size_t width = h & 1 ? 8 : 4, at = (size_t)(h >> 8) % (size - width + 1);
    memcpy(copy + at, &integers[(h >> 1) % (sizeof integers / sizeof *integers)], width);
    fuzz_verdict(read_file(copy, size));
  }
  free(copy);
  return 0;
}

#ifndef PERI_LIBFUZZER
static size_t fuzz_seed (size_t i, unsigned char *out) { return corpus_seed("gguf", i, out); }
#endif
