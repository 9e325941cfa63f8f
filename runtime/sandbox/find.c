/* find.c - see sandbox.h: where the helper program is. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* dladdr */
#endif
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "sandbox/sandbox.h"

#define NAME "perilune-sandbox"
#ifndef PERI_LIB_TO_BIN
#define PERI_LIB_TO_BIN \
  "../bin" /* from the folder of the libraries of an installation to its programs */
#endif

/* Cut a path behind its last folder; false where it has none. */
static bool folder_of (char *path) {
  char *slash = strrchr(path, '/');
  if (!slash) return false;
  *slash = 0;
  return true;
}

static bool ends_with (const char *text, const char *end) {
  size_t n = strlen(text), k = strlen(end);
  return n >= k && strcmp(text + n - k, end) == 0;
}

/* folder/below/NAME if it can be run; the place is noted for the message otherwise. */
static bool there (const char *folder, const char *below, char *path, size_t size, char *looked,
                   size_t room) {
  int n = snprintf(path, size, "%s/%s%s" NAME, folder, below, *below ? "/" : "");
  if (n > 0 && (size_t)n < size && access(path, X_OK) == 0) return true;
  size_t used = strlen(looked);
  if (strstr(looked, path)) return false; /* the same place again */
  snprintf(looked + used, room - used, "%s%s", used ? ", " : "", path);
  return false;
}

peri_status peri__sandbox_find (peri_ctx *ctx, char *path, size_t size) {
  static const char here = 0; /* an address in the program or library that this is linked into */
  char folder[1024], looked[2048] = "";
  Dl_info info;
  if (dladdr(&here, &info) && info.dli_fname && strlen(info.dli_fname) < sizeof folder) {
    strcpy(folder, info.dli_fname);
    const char *below = ends_with(folder, "/lua/5.4/perilune/core.so")  ? "../../../../bin"
                        : ends_with(folder, "/module/perilune/core.so") ? "../.."
                        : strstr(folder, "/libperilune")                ? PERI_LIB_TO_BIN
                                                                        : NULL;
    if (folder_of(folder) && (there(folder, "", path, size, looked, sizeof looked) ||
                              (below && there(folder, below, path, size, looked, sizeof looked))))
      return PERI_OK;
  }
  ssize_t n = readlink("/proc/self/exe", folder, sizeof folder - 1);
  if (n > 0) {
    folder[n] = 0;
    if (folder_of(folder) && there(folder, "", path, size, looked, sizeof looked)) return PERI_OK;
  }
  return peri__fail(
      ctx, PERI_EIO,
      "there is no " NAME " at %s: its place can be given as program, or in PERI_SANDBOX", looked);
}
