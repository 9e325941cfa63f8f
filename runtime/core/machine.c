/*
** machine.c - how much memory this process may use: that of the machine, or less where a control
** group of Linux says so. Reads a few small files of /proc and /sys and asks for nothing else.
*/
#define _POSIX_C_SOURCE 200809L
#include "core/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH 4096

static FILE *open_in (const char *root, const char *path) {
  char full[2 * PATH];
  int n = snprintf(full, sizeof full, "%s%s", root, path);
  return n > 0 && n < (int)sizeof full ? fopen(full, "re") : NULL;
}

/* A line without its end; what does not fit into size is dropped. */
static bool next_line (FILE *f, char *line, size_t size) {
  if (!fgets(line, (int)size, f)) return false;
  size_t n = strlen(line);
  if (n > 0 && line[n - 1] == '\n')
    line[n - 1] = 0;
  else
    for (int c = getc(f); c != EOF && c != '\n';) c = getc(f);
  return true;
}

static size_t smaller (size_t a, size_t b) { return a == 0 || (b != 0 && b < a) ? b : a; }

static size_t physical (const char *root) {
  char line[256];
  unsigned long long kib = 0;
  FILE *f = open_in(root, "/proc/meminfo");
  while (f && next_line(f, line, sizeof line) && sscanf(line, "MemTotal: %llu kB", &kib) != 1) {}
  if (f) fclose(f);
  if (kib > 0) return kib > SIZE_MAX / 1024 ? SIZE_MAX : (size_t)kib * 1024;
#ifdef _SC_PHYS_PAGES
  long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) return (size_t)pages * (size_t)page;
#endif
  return 0;
}

/* The number in a group's file; 0: none, "max", or too large to mean anything. */
static size_t group_limit (const char *root, const char *folder, const char *name) {
  char path[2 * PATH], line[64];
  unsigned long long v = 0;
  int n = snprintf(path, sizeof path, "%s/%s", folder, name);
  if (n < 0 || n >= (int)sizeof path) return 0;
  FILE *f = open_in(root, path);
  if (!f) return 0;
  bool ok = next_line(f, line, sizeof line) && sscanf(line, "%llu", &v) == 1;
  fclose(f);
  return ok && v < (1ull << 62) && v <= SIZE_MAX ? (size_t)v : 0;
}

/* Is word one of the comma-separated words of list? */
static bool listed (const char *list, const char *word) {
  size_t n = strlen(word);
  for (const char *p = list; p; p = strchr(p, ',')) {
    if (*p == ',') p++;
    if (strncmp(p, word, n) == 0 && (p[n] == 0 || p[n] == ',')) return true;
  }
  return false;
}

/* The process's group: of the unified hierarchy, or of the one that counts memory. */
static bool own_group (const char *root, bool unified, char *out, size_t size) {
  char line[2 * PATH];
  bool found = false;
  FILE *f = open_in(root, "/proc/self/cgroup");
  while (f && !found && next_line(f, line, sizeof line)) { /* NUMBER:CONTROLLERS:PATH */
    char *names = strchr(line, ':'), *path = names ? strchr(++names, ':') : NULL;
    if (!path) continue;
    *path++ = 0;
    found = unified ? *names == 0 && line[0] == '0' : listed(names, "memory");
    if (found) found = snprintf(out, size, "%s", path) < (int)size;
  }
  if (f) fclose(f);
  return found;
}

/* mountinfo writes blanks as \040 and the like. */
static void unescape (char *s) {
  char *to = s;
  for (; *s; s++) {
    bool octal = s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' &&
                 s[3] >= '0' && s[3] <= '7';
    *to++ = octal ? (char)((s[1] - '0') * 64 + (s[2] - '0') * 8 + (s[3] - '0')) : *s;
    if (octal) s += 3;
  }
  *to = 0;
}

/* The smallest limit of the group and of those around it, as far up as the mount shows them. */
static size_t climb (const char *root, const char *top, const char *group, const char *name) {
  char folder[2 * PATH];
  size_t limit = 0, stem = strlen(top);
  int n = snprintf(folder, sizeof folder, "%s%s", top, group);
  if (n < 0 || n >= (int)sizeof folder) return group_limit(root, top, name);
  for (;;) {
    limit = smaller(limit, group_limit(root, folder, name));
    char *slash = strrchr(folder, '/');
    if (!slash || slash < folder + stem) return limit;
    *slash = 0;
  }
}

/* Limits of the hierarchies that are mounted. A mount may show a part of one only (a container's). */
static size_t groups (const char *root) {
  char line[4 * PATH], group[PATH];
  size_t limit = 0;
  FILE *f = open_in(root, "/proc/self/mountinfo");
  while (f && next_line(f, line, sizeof line)) { /* id parent dev ROOT PLACE ... - TYPE src OPTS */
    char *field[5], *p = line, *rest = strstr(line, " - "), type[16], options[512];
    if (!rest || sscanf(rest, " - %15s %*s %511s", type, options) != 2) continue;
    bool unified = strcmp(type, "cgroup2") == 0;
    if (!unified && (strcmp(type, "cgroup") != 0 || !listed(options, "memory"))) continue;
    int n = 0;
    while (n < 5 && p) {
      field[n++] = p;
      p = strchr(p, ' ');
      if (p) *p++ = 0;
    }
    if (n < 5 || !own_group(root, unified, group, sizeof group)) continue;
    unescape(field[3]);
    unescape(field[4]);
    size_t shown = strcmp(field[3], "/") == 0 ? 0 : strlen(field[3]);
    bool inside = strncmp(group, field[3], shown) == 0 && (group[shown] == '/' || !group[shown]);
    limit = smaller(limit, climb(root, field[4], inside ? group + shown : "",
                                 unified ? "memory.max" : "memory.limit_in_bytes"));
  }
  if (f) fclose(f);
  return limit;
}

size_t peri__memory_under (const char *root) { return smaller(physical(root), groups(root)); }

size_t peri_machine_memory (void) { return peri__memory_under(""); }
