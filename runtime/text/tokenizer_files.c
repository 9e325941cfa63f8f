/*
** tokenizer_files.c - which kind of vocabulary a path holds. Folders are looked through for the files
** of each format in a fixed order, single files are told apart by their first bytes.
*/
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/files.h"
#include "text/tokenizer.h"

static bool exists (const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

typedef peri_status (*reader)(peri_tokenizer *t, const void *data, size_t size);

/* Put the path before a message. */
static peri_status about (peri_ctx *ctx, peri_status s, const char *path) {
  return peri__fail(ctx, s, "%s: %s", path, ctx->message);
}

/* Read a file and hand it to a reader, whose message gets the path. */
static peri_status with_file (peri_tokenizer *t, const char *path, reader read) {
  void *data;
  size_t size;
  TRY(peri_file_read(t->ctx, path, PERI__TOKENIZER_BYTES, &data, &size));
  peri_status s = read(t, data, size);
  peri_file_free(t->ctx, data, size);
  return s == PERI_EFORMAT || s == PERI_ENOSUP ? about(t->ctx, s, path) : s;
}

/* The same for folder/name, if it is there. */
static peri_status with_part (peri_tokenizer *t, const char *folder, const char *name, reader read,
                              bool *found) {
  size_t size;
  char *path = peri__join(t->ctx, folder, name, &size);
  if (path == NULL) return PERI_ENOMEM;
  bool there = exists(path);
  peri_status s = there ? with_file(t, path, read) : PERI_OK;
  peri__free(t->ctx, path, size);
  if (found != NULL) *found = there;
  return s;
}

static peri_status read_jinja (peri_tokenizer *t, const void *data, size_t size) {
  return peri__tokenizer_template(t, data, size);
}

/* Two files of a folder that are one vocabulary. */
static peri_status with_pair (peri_tokenizer *t, const char *folder, const char *vocab,
                              const char *merges, bool *found) {
  bool second;
  TRY(with_part(t, folder, vocab, peri__tokenizer_vocab_json, found));
  if (!*found) return PERI_OK;
  TRY(with_part(t, folder, merges, peri__tokenizer_merges, &second));
  if (second) return PERI_OK;
  return peri__fail(t->ctx, PERI_EFORMAT, "%s: %s without %s", folder, vocab, merges);
}

static peri_status load_folder (peri_tokenizer *t, const char *path) {
  bool found;
  TRY(with_part(t, path, "tokenizer_config.json", peri__tokenizer_config, NULL));
  TRY(with_part(t, path, "special_tokens_map.json", peri__tokenizer_special_map, NULL));
  TRY(with_part(t, path, "added_tokens.json", peri__tokenizer_added_json, NULL));
  TRY(with_part(t, path, "tokenizer.json", peri__tokenizer_json, &found));
  if (!found) TRY(with_part(t, path, "tokenizer.model", peri__tokenizer_sentencepiece, &found));
  if (!found) TRY(with_part(t, path, "spiece.model", peri__tokenizer_sentencepiece, &found));
  if (!found) TRY(with_pair(t, path, "vocab.json", "merges.txt", &found));
  if (!found) TRY(with_pair(t, path, "encoder.json", "vocab.bpe", &found));
  if (!found) TRY(with_part(t, path, "vocab.txt", peri__tokenizer_vocab_txt, &found));
  if (!found) TRY(with_part(t, path, "tokenizer.bin", peri__tokenizer_llama2c, &found));
  if (!found)
    return peri__fail(
        t->ctx, PERI_EIO,
        "%s: no vocabulary (tokenizer.json, tokenizer.model, spiece.model, vocab.json "
        "+ merges.txt, encoder.json + vocab.bpe, vocab.txt, tokenizer.bin)",
        path);
  TRY(peri__tokenizer_settle(t));
  TRY(peri__tokenizer_old_around(t));
  TRY(with_part(t, path, "generation_config.json", peri__tokenizer_generation, NULL));
  return with_part(t, path, "chat_template.jinja", read_jinja, NULL);
}

/* vocab.json or encoder.json, by name: its merges lie beside it. */
static peri_status load_beside (peri_tokenizer *t, const char *path, bool *found) {
  static const char *const pairs[][2] = { { "vocab.json", "merges.txt" },
                                          { "encoder.json", "vocab.bpe" } };
  const char *slash = strrchr(path, '/'), *name = slash == NULL ? path : slash + 1;
  *found = false;
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
    if (strcmp(name, pairs[i][0]) != 0) continue;
    size_t n = (size_t)(name - path);
    char *folder = n == 0 ? peri__copy_text(t->ctx, ".", 1) : peri__copy_text(t->ctx, path, n);
    if (folder == NULL) return PERI_ENOMEM;
    peri_status s = with_pair(t, folder, pairs[i][0], pairs[i][1], found);
    peri__free(t->ctx, folder, strlen(folder) + 1);
    return s;
  }
  return PERI_OK;
}

static peri_status load_gguf (peri_tokenizer *t, const char *path) {
  peri_gguf *f;
  TRY(peri_gguf_open(t->ctx, path, false, &f));
  peri_status s = peri__tokenizer_gguf(t, f);
  peri_gguf_close(f);
  return s == PERI_EFORMAT || s == PERI_ENOSUP ? about(t->ctx, s, path) : s;
}

/* The first bytes of a file tell formats apart. */
static peri_status load_file (peri_tokenizer *t, const char *path) {
  unsigned char head[16] = { 0 };
  uint64_t size;
  int fd;
  TRY(peri__open_regular(t->ctx, path, &fd, &size));
  peri_status s =
      peri__read_at(t->ctx, fd, path, 0, head, size < sizeof head ? (size_t)size : sizeof head);
  close(fd);
  TRY(s);
  if (memcmp(head, "GGUF", 4) == 0) return load_gguf(t, path);
  /* A message of pieces begins with field 1; a tokenizer.bin with the size of its longest token. */
  if (head[0] == 0x0A && head[1] > 0 && head[2] == 0x0A)
    return with_file(t, path, peri__tokenizer_sentencepiece);
  if (head[0] == '{' || head[0] == ' ' || head[0] == '\n' || head[0] == '\r' || head[0] == '\t') {
    bool found;
    TRY(load_beside(t, path, &found));
    return found ? PERI_OK : with_file(t, path, peri__tokenizer_json);
  }
  size_t n = strlen(path);
  if (n > 4 && strcmp(path + n - 4, ".txt") == 0) {
    TRY(with_file(t, path, peri__tokenizer_vocab_txt));
    return peri__tokenizer_old_around(t);
  }
  return with_file(t, path, peri__tokenizer_llama2c);
}

peri_status peri_tokenizer_load (peri_ctx *ctx, const char *path, peri_tokenizer **out) {
  NEED(ctx, ctx);
  NEED(ctx, path);
  NEED(ctx, out);
  struct stat st;
  peri_tokenizer *t;
  *out = NULL;
  TRY(peri__tokenizer_new(ctx, &t));
  bool folder = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
  peri_status s = folder ? load_folder(t, path) : load_file(t, path);
  if (s == PERI_OK) s = peri__tokenizer_ready(t);
  if (s != PERI_OK) {
    peri_tokenizer_close(t);
    return s;
  }
  *out = t;
  return PERI_OK;
}
