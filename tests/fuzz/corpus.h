/* corpus.h - seeds of a fuzz target from files: those of tests/fuzz/corpus/NAME, by name. */
#ifndef corpus_h
#define corpus_h

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEED_MAX 1024

static int corpus_order (const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The i-th file, cut to SEED_MAX bytes; 0: there is none. */
static size_t corpus_seed (const char *name, size_t i, unsigned char *out) {
  char folder[512], path[1024], *names[256];
  size_t n = 0, size = 0;
  snprintf(folder, sizeof folder, "%s/tests/fuzz/corpus/%s", PERI_SOURCE_DIR, name);
  DIR *d = opendir(folder);
  if (d == NULL) abort();
  for (struct dirent *e; n < 256 && (e = readdir(d)) != NULL;)
    if (e->d_name[0] != '.' && (names[n] = malloc(strlen(e->d_name) + 1)) != NULL)
      strcpy(names[n++], e->d_name);
  closedir(d);
  qsort(names, n, sizeof *names, corpus_order);
  if (i < n) {
    snprintf(path, sizeof path, "%s/%s", folder, names[i]);
    FILE *f = fopen(path, "rb");
    if (f == NULL) abort();
    size = fread(out, 1, SEED_MAX, f);
    fclose(f);
  }
  while (n > 0) free(names[--n]);
  return size;
}

#endif
