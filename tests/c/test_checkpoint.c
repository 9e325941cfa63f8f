/*
** test_checkpoint.c - folders, checkpoints and event files: what a kill, a flipped bit or a full
** disk leaves behind.
*/
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* symlink, MAP_ANONYMOUS, usleep */
#endif
#include "scratch.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/files.h"

static const char *in_dir (const char *name) {
  snprintf(Path, sizeof Path, "%s/%s", Dir, name);
  return Path;
}

static bool exists (const char *path) {
  struct stat st;
  return lstat(path, &st) == 0;
}

static void put (const char *folder, const char *name, const void *data, size_t n) {
  char path[700];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  if (peri_file_write(C, path, data, n) != PERI_OK) fail_msg("%s", peri_message(C));
}

static size_t entries (const char *folder) {
  char *names;
  size_t size, n = 0;
  if (peri_list_folder(C, folder, &names, &size) != PERI_OK) fail_msg("%s", peri_message(C));
  for (size_t i = 0; i < size; i += strlen(names + i) + 1) n++;
  peri_file_free(C, names, size);
  return n;
}

/* Save a checkpoint with one file that holds text. */
static void save (const char *name, const char *text, int keep) {
  peri_checkpoint *c;
  if (peri_checkpoint_begin(C, Dir, &c) != PERI_OK) fail_msg("%s", peri_message(C));
  put(peri_checkpoint_path(c), "data", text, strlen(text));
  if (peri_checkpoint_commit(c, name, keep) != PERI_OK) fail_msg("%s", peri_message(C));
}

static const char *latest (void) {
  static char path[600];
  if (peri_checkpoint_latest(C, Dir, path, sizeof path) != PERI_OK) fail_msg("%s", peri_message(C));
  return path[0] == '\0' ? "" : path + strlen(Dir) + 1;
}

/* ---- files and folders ---- */

static void hashes_have_their_known_answers (void **state) {
  static const struct {
    const char *text;
    uint64_t hash;
  } cases[] = { { "", 0xEF46DB3751D8E999u },
                { "a", 0xD24EC4F1A98C6E5Bu },
                { "abc", 0x44BC2CF5AD770999u },
                { "Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1u } };
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    size_t n = strlen(cases[i].text);
    for (size_t cut = 0; cut <= n; cut++) {
      peri__xxh64 h;
      peri__xxh64_init(&h);
      peri__xxh64_add(&h, cases[i].text, cut);
      peri__xxh64_add(&h, cases[i].text + cut, n - cut);
      assert_true(peri__xxh64_end(&h) == cases[i].hash);
    }
  }
  assert_int_equal(peri__crc32c("123456789", 9), 0xE3069283u);
}

static int by_value (void *ud, const void *a, const void *b) {
  (void)ud;
  return *(const int *)a - *(const int *)b;
}

static void sorting_orders_anything (void **state) {
  (void)state;
  for (int n = 0; n < 70; n++)
    for (int kind = 0; kind < 4; kind++) {
      int v[70], sum = 0, after = 0;
      for (int i = 0; i < n; i++)
        sum += v[i] = kind == 0 ? i : kind == 1 ? n - i : kind == 2 ? i * 37 % 11 : 5;
      peri__sort(v, (size_t)n, sizeof *v, by_value, NULL);
      for (int i = 0; i < n; i++) {
        after += v[i];
        assert_true(i == 0 || v[i - 1] <= v[i]);
      }
      assert_int_equal(sum, after);
    }
}

static void files_are_written_whole_and_read_back (void **state) {
  void *data;
  size_t size;
  struct stat st;
  (void)state;
  assert_int_equal(peri_file_write(C, in_dir("f"), "one", 3), PERI_OK);
  assert_int_equal(chmod(Path, 0640), 0);
  assert_int_equal(peri_file_write(C, Path, "", 0), PERI_OK);
  assert_int_equal(peri_file_read(C, Path, 0, &data, &size), PERI_OK);
  assert_int_equal(size, 0);
  peri_file_free(C, data, size);
  assert_int_equal(stat(Path, &st), 0);
  assert_int_equal(st.st_mode & 0777, 0640); /* the mode of the old file is kept */
  assert_int_equal(peri_file_write(C, Path, "12345", 5), PERI_OK);
  want_failure(C, peri_file_read(C, Path, 4, &data, &size), PERI_EFORMAT,
               "has 5 bytes, the limit is 4");
  want_failure(C, peri_file_write(C, Dir, "x", 1), PERI_EIO, "not a regular file");
  want_failure(C, peri_file_write(C, "/dev/full", "x", 1), PERI_EIO, "not a regular file");
  want_failure(C, peri_file_read(C, "/dev/zero", 0, &data, &size), PERI_EIO, "not a regular file");
  assert_int_equal(entries(Dir), 1);
  /* a temporary file that a killed process left is used again, not piled up */
  write_file(in_dir(".f.tmp-0"), "stale and longer than the new text", 34);
  assert_int_equal(peri_file_write(C, in_dir("f"), "new", 3), PERI_OK);
  assert_int_equal(entries(Dir), 1);
  assert_int_equal(peri_file_read(C, Path, 0, &data, &size), PERI_OK);
  assert_int_equal(size, 3);
  peri_file_free(C, data, size);
}

static void trees_are_made_listed_and_removed (void **state) {
  char *names, other[300];
  size_t size;
  (void)state;
  assert_int_equal(peri_make_folder(C, in_dir("t/a/b//c/")), PERI_OK);
  assert_int_equal(peri_make_folder(C, Path), PERI_OK);
  put(in_dir("t"), "z", "1", 1);
  put(in_dir("t"), "B", "1", 1);
  want_failure(C, peri_make_folder(C, in_dir("t/z/y")), PERI_EIO, "Not a directory");
  want_failure(C, peri_make_folder(C, in_dir("t/z")), PERI_EIO, "Not a directory");
  assert_int_equal(peri_list_folder(C, in_dir("t"), &names, &size), PERI_OK);
  assert_int_equal(size, 6);
  assert_memory_equal(names, "B\0a\0z", 6);
  peri_file_free(C, names, size);
  want_failure(C, peri_list_folder(C, in_dir("none"), &names, &size), PERI_EIO, "cannot list");
  /* links are removed, what they lead to stays */
  snprintf(other, sizeof other, "%s/other", Dir);
  assert_int_equal(peri_make_folder(C, other), PERI_OK);
  put(other, "kept", "1", 1);
  assert_int_equal(symlink(other, in_dir("t/a/link")), 0);
  assert_int_equal(peri_rename(C, in_dir("t"), strcat(other, "2")), PERI_OK);
  assert_int_equal(peri_remove_tree(C, other), PERI_OK);
  assert_false(exists(other));
  assert_true(exists(in_dir("other/kept")));
  assert_int_equal(peri_remove_tree(C, in_dir("other/")), PERI_OK);
  assert_int_equal(peri_remove_tree(C, Path), PERI_OK); /* gone already */
  assert_int_equal(entries(Dir), 0);
  static const char *const never[] = { "", "/", "//", ".", "..", "a/..", "a/../", "./" };
  for (size_t i = 0; i < sizeof never / sizeof *never; i++)
    want_failure(C, peri_remove_tree(C, never[i]), PERI_EINVAL, "will not be removed");
}

/* ---- checkpoints ---- */

static void the_newest_good_checkpoint_is_found (void **state) {
  char path[8];
  (void)state;
  assert_string_equal(latest(), "");
  want_failure(C, peri_checkpoint_latest(C, Dir, path, 0), PERI_EINVAL, "no room");
  save("z-first", "1", 0);
  assert_string_equal(latest(), "z-first");
  save("a-second", "2", 0); /* by generation, not by name */
  assert_string_equal(latest(), "a-second");
  want_failure(C, peri_checkpoint_latest(C, Dir, path, 8), PERI_EINVAL, "8 bytes are too few");
  int64_t g = 0;
  assert_int_equal(peri_checkpoint_verify(C, in_dir("a-second"), &g), PERI_OK);
  assert_int_equal(g, 2);
  save("z-first", "3", 0); /* replaces it in one step */
  assert_string_equal(latest(), "z-first");
  assert_int_equal(entries(Dir), 2);
  assert_int_equal(peri_make_folder(C, in_dir("notes")),
                   PERI_OK); /* others' folders are left alone */
  put(Dir, "file", "x", 1);
  save("third", "4", 1);
  assert_string_equal(latest(), "third");
  assert_int_equal(entries(Dir), 3);
}

static void what_is_not_whole_is_passed_over (void **state) {
  (void)state;
  save("one", "first", 0);
  save("two", "second", 0);
  put(in_dir("two"), "data", "secomd", 6);
  want_failure(C, peri_checkpoint_verify(C, Path, NULL), PERI_EFORMAT, "the manifest says");
  assert_string_equal(latest(), "one");
  save("three", "third", 0); /* its generation is still above the damaged one's */
  assert_string_equal(latest(), "three");
  put(in_dir("three"), "data", "third ", 6);
  want_failure(C, peri_checkpoint_verify(C, Path, NULL), PERI_EFORMAT,
               "has 6 bytes, the manifest says 5");
  assert_int_equal(unlink(in_dir("three/data")), 0);
  want_failure(C, peri_checkpoint_verify(C, in_dir("three"), NULL), PERI_EIO, "cannot open");
  assert_string_equal(latest(), "one");
}

static void every_flipped_bit_is_seen (void **state) {
  void *manifest;
  size_t n;
  int harmless = 0;
  (void)state;
  save("c", "some text", 0);
  assert_int_equal(peri_file_read(C, in_dir("c/manifest.json"), 0, &manifest, &n), PERI_OK);
  unsigned char *copy = malloc(n);
  for (size_t i = 0; i < n; i++)
    for (int bit = 0; bit < 8; bit++) {
      memcpy(copy, manifest, n);
      copy[i] ^= (unsigned char)(1 << bit);
      write_file(in_dir("c/manifest.json"), copy, n);
      peri_status s = peri_checkpoint_verify(C, in_dir("c"), NULL);
      if (s == PERI_OK)
        harmless++; /* white space turned into other white space */
      else
        assert_true(s == PERI_EFORMAT || s == PERI_EIO);
      if (s == PERI_OK && strchr(" \n\t\r", ((char *)manifest)[i]) == NULL)
        fail_msg("bit %d of byte %zu went unseen", bit, i);
    }
  assert_true(harmless < 100);
  for (size_t i = 0; i < n; i++) { /* every truncation */
    write_file(in_dir("c/manifest.json"), manifest, i);
    if (i != n - 1) assert_int_not_equal(peri_checkpoint_verify(C, in_dir("c"), NULL), PERI_OK);
  }
  write_file(in_dir("c/manifest.json"), manifest, n);
  for (int i = 0; i < 9; i++)
    for (int bit = 0; bit < 8; bit++) {
      char text[] = "some text";
      text[i] ^= (char)(1 << bit);
      write_file(in_dir("c/data"), text, 9);
      want_failure(C, peri_checkpoint_verify(C, in_dir("c"), NULL), PERI_EFORMAT,
                   "the manifest says");
    }
  free(copy);
  peri_file_free(C, manifest, n);
}

static void a_hostile_manifest_is_refused (void **state) {
  static const struct {
    const char *text, *part;
  } cases[] = {
    { "", "found the end" },
    { "[]", "must be an object" },
    { "{\"format\":\"x\"}", "expected the format" },
    { "{\"format\":\"perilune checkpoint 1\",\"generation\":1.5}", "must be a whole number" },
    { "{\"format\":\"perilune checkpoint 1\",\"files\":[]}", "expected the key \"generation\"" },
    { "F{\"path\":\"../x\"}]}", "outside of the checkpoint" },
    { "F{\"path\":\"/etc/passwd\"}]}", "outside of the checkpoint" },
    { "F{\"path\":\"a//b\"}]}", "outside of the checkpoint" },
    { "F{\"path\":\"a/./b\"}]}", "outside of the checkpoint" },
    { "F{\"path\":\"a\\u0000\"}]}", "outside of the checkpoint" },
    { "F{\"path\":\"\"}]}", "outside of the checkpoint" },
    { "F{\"path\":\"a\",\"bytes\":-1,\"xxh64\":\"0000000000000000\"}]}", "cannot open" },
    { "F{\"path\":\"data\",\"bytes\":-1,\"xxh64\":\"0000000000000000\"}]}",
      "the manifest says -1" },
    { "F{\"path\":\"data\",\"bytes\":1,\"xxh64\":\"00\"}]}", "a hash has 16 digits" },
    { "F3]}", "a file must be an object" },
    { "F],\"seal\":\"0000000000000000\"}", "but its facts give" }
  };
  char text[512];
  (void)state;
  save("c", "x", 0);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    bool full = cases[i].text[0] == 'F';
    snprintf(text, sizeof text, "%s%s",
             full ? "{\"format\":\"perilune checkpoint 1\",\"generation\":1,\"files\":[" : "",
             cases[i].text + full);
    write_file(in_dir("c/manifest.json"), text, strlen(text));
    peri_status s = peri_checkpoint_verify(C, in_dir("c"), NULL);
    want_failure(C, s, s == PERI_EIO ? PERI_EIO : PERI_EFORMAT, cases[i].part);
  }
}

static void folders_inside_are_part_of_it (void **state) {
  peri_checkpoint *c;
  char path[700];
  (void)state;
  assert_int_equal(peri_checkpoint_begin(C, in_dir("made/below"), &c), PERI_OK);
  snprintf(path, sizeof path, "%s/model/deep", peri_checkpoint_path(c));
  assert_int_equal(peri_make_folder(C, path), PERI_OK);
  put(path, "weights", "w", 1);
  assert_int_equal(peri_checkpoint_commit(c, "m", 0), PERI_OK);
  assert_int_equal(peri_checkpoint_verify(C, in_dir("made/below/m"), NULL), PERI_OK);
  write_file(in_dir("made/below/m/model/deep/weights"), "v", 1);
  want_failure(C, peri_checkpoint_verify(C, in_dir("made/below/m"), NULL), PERI_EFORMAT,
               "weights: hash");
}

static void what_cannot_be_a_checkpoint_is_refused (void **state) {
  static const char *const bad[] = { "", ".", "..", ".x", "a/b", "a b", "\xC3\xA9", "a\n" };
  peri_checkpoint *c;
  char path[700];
  (void)state;
  want_failure(C, peri_checkpoint_begin(C, "/dev/null/x", &c), PERI_EIO, "make the folder");
  assert_int_equal(peri_checkpoint_begin(C, Dir, &c), PERI_OK);
  put(peri_checkpoint_path(c), "data", "x", 1);
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    want_failure(C, peri_checkpoint_commit(c, bad[i], 0), PERI_EINVAL, "cannot name a checkpoint");
  want_failure(C, peri_checkpoint_commit(c, "a", -1), PERI_EINVAL, "keep is -1");
  snprintf(path, sizeof path, "%s/link", peri_checkpoint_path(c));
  assert_int_equal(symlink("/etc/passwd", path), 0);
  want_failure(C, peri_checkpoint_commit(c, "a", 0), PERI_EINVAL, "neither a file nor a folder");
  assert_int_equal(unlink(path), 0);
  put(Dir, "taken", "x", 1); /* by a file */
  want_failure(C, peri_checkpoint_commit(c, "taken", 0), PERI_EIO,
               "cannot put the checkpoint there");
  peri_checkpoint_abort(c);
  assert_int_equal(entries(Dir), 1);
  peri_checkpoint_abort(NULL);
}

static void temporary_folders_of_the_dead_are_removed (void **state) {
  peri_checkpoint *alive;
  (void)state;
  assert_int_equal(peri_checkpoint_begin(C, Dir, &alive), PERI_OK);
  assert_int_equal(peri_make_folder(C, in_dir(".tmp-7/sub")), PERI_OK);
  put(Path, "half", "x", 1);
  assert_int_equal(entries(Dir), 2);
  assert_string_equal(latest(), "");
  assert_int_equal(entries(Dir), 1);
  assert_true(exists(peri_checkpoint_path(alive)));
  put(peri_checkpoint_path(alive), "data", "x", 1);
  assert_int_equal(peri_checkpoint_commit(alive, "a", 0), PERI_OK);
  assert_string_equal(latest(), "a");
}

enum { FIELDS = 4096 };

static void saver (volatile uint64_t *done) {
  static uint64_t data[FIELDS];
  for (uint64_t g = *done + 1;; g++) {
    peri_checkpoint *c;
    char name[32];
    for (size_t i = 0; i < FIELDS; i++) data[i] = g * 1000003 + i;
    snprintf(name, sizeof name, "step-%llu", (unsigned long long)(g % 3)); /* names come again */
    if (peri_checkpoint_begin(C, Dir, &c) != PERI_OK) _exit(2);
    put(peri_checkpoint_path(c), "data", data, sizeof data);
    if (peri_checkpoint_commit(c, name, 2) != PERI_OK) _exit(3);
    *done = g;
  }
}

/* After every kill the newest checkpoint is the last one that was reported or the one after it. */
static void a_kill_at_any_moment_loses_at_most_one_save (void **state) {
  const char *wish = getenv("PERI_TEST_KILLS");
  int kills = wish != NULL ? atoi(wish) : 200;
  uint32_t longest = 8000; /* microseconds before a kill; follows the speed of the machine */
  volatile uint64_t *done =
      mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  (void)state;
  assert_true((void *)done != MAP_FAILED);
  *done = 0;
  for (int k = 0; k < kills; k++) {
    uint32_t counter[4] = { (uint32_t)k, 3, 0, 0 }, w[4];
    const uint32_t key[2] = { 5, 6 };
    peri_philox(counter, key, w);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) saver(done);
    uint64_t reported = *done;
    usleep(w[0] % longest);
    assert_int_equal(kill(pid, SIGKILL), 0);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    if (*done != reported)
      longest = longest < 6000 ? longest : longest / 4 * 3;
    else if (longest < 400000)
      longest *= 2;
    const char *name = latest();
    if (*done == 0 && name[0] == '\0') continue;
    char path[700];
    void *data;
    size_t size;
    uint64_t g;
    snprintf(path, sizeof path, "%s/%s/data", Dir, name);
    assert_int_equal(peri_file_read(C, path, 0, &data, &size), PERI_OK);
    assert_int_equal(size, FIELDS * sizeof g);
    memcpy(&g, data, sizeof g);
    g /= 1000003;
    peri_file_free(C, data, size);
    if (g != *done && g != *done + 1)
      fail_msg("kill %d: found %llu, reported %llu", k, (unsigned long long)g,
               (unsigned long long)*done);
    *done = g;
  }
  assert_true(*done > 0);
  assert_true(entries(Dir) <= 3);
  assert_int_equal(munmap((void *)(uintptr_t)done, 4096), 0);
}

static void every_failed_allocation_is_reported (void **state) {
  (void)state;
  save("a", "x", 0);
  for (int sticky = 0; sticky < 2; sticky++)
    for (int64_t n = 0;; n++) {
      char path[600];
      peri_checkpoint *c = NULL;
      peri_memory_trim(C);
      peri_test_fail_after(C, n, sticky != 0);
      peri_status s = peri_checkpoint_begin(C, Dir, &c);
      if (s == PERI_OK) s = peri_checkpoint_commit(c, "b", 0);
      if (s == PERI_OK) c = NULL;
      if (s == PERI_OK) s = peri_checkpoint_latest(C, Dir, path, sizeof path);
      bool fired = peri_test_fired(C);
      peri_test_fail_after(C, -1, false);
      peri_checkpoint_abort(c);
      assert_int_equal(s, fired ? PERI_ENOMEM : PERI_OK);
      if (!fired) break;
    }
}

/* ---- event files ---- */

static void event_files_have_the_known_bytes (void **state) {
  /* the version record, then Event{wall_time 2.5, step 300, Summary{{tag "loss", simple_value 1.5}}} */
  static const unsigned char version[] = "\x1a\x0d"
                                         "brain.Event:2";
  static const unsigned char event[] =
      "\x09\0\0\0\0\0\0\x04\x40\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\xc0\x3f";
  peri_tfevents *w;
  unsigned char *b;
  void *data;
  size_t n;
  (void)state;
  assert_int_equal(peri_tfevents_open(C, in_dir("events.out.tfevents.1.host"), &w), PERI_OK);
  assert_int_equal(peri_tfevents_scalar(w, "loss", 300, 1.5, 2.5), PERI_OK);
  want_failure(C, peri_tfevents_scalar(w, "", 1, 1, 1), PERI_EINVAL, "a tag of 0 bytes");
  want_failure(C, peri_tfevents_scalar(w, "\xFF", 1, 1, 1), PERI_EINVAL, "bytes of UTF-8");
  peri_tfevents_close(w);
  assert_int_equal(peri_file_read(C, Path, 0, &data, &n), PERI_OK);
  b = data;
  assert_int_equal(b[0], 24);
  assert_memory_equal(b + 12 + 9, version, sizeof version - 1);
  size_t at = 12 + 24 + 4;
  assert_int_equal(b[at], sizeof event - 1);
  assert_memory_equal(b + at + 12, event, sizeof event - 1);
  assert_int_equal(n, at + 12 + sizeof event - 1 + 4);
  uint32_t crc = peri__crc32c(event, sizeof event - 1),
           want = (crc >> 15 | crc << 17) + 0xA282EAD8u;
  assert_memory_equal(b + n - 4, &want, 4);
  peri_file_free(C, data, n);
}

static void half_a_record_is_cut_off_when_continued (void **state) {
  peri_tfevents *w;
  struct stat whole, now;
  (void)state;
  const char *path = in_dir("tfevents");
  assert_int_equal(peri_tfevents_open(C, path, &w), PERI_OK);
  assert_int_equal(peri_tfevents_scalar(w, "a", 1, 1, 1), PERI_OK);
  assert_int_equal(stat(path, &whole), 0);
  assert_int_equal(peri_tfevents_scalar(w, "b", 2, 2, 2), PERI_OK);
  peri_tfevents_close(w);
  assert_int_equal(stat(path, &now), 0);
  for (off_t n = now.st_size - 1; n >= whole.st_size; n--) {
    assert_int_equal(truncate(path, n), 0);
    assert_int_equal(peri_tfevents_open(C, path, &w), PERI_OK);
    peri_tfevents_close(w);
    assert_int_equal(stat(path, &now), 0);
    assert_int_equal(now.st_size, whole.st_size);
    assert_int_equal(peri_tfevents_open(C, path, &w), PERI_OK);
    assert_int_equal(peri_tfevents_scalar(w, "b", 2, 2, 2), PERI_OK);
    peri_tfevents_close(w);
  }
  write_file(path, "someone's notes, not an event file", 34);
  want_failure(C, peri_tfevents_open(C, path, &w), PERI_EFORMAT, "is not an event file");
  assert_int_equal(stat(path, &now), 0);
  assert_int_equal(now.st_size, 34);
  want_failure(C, peri_tfevents_open(C, Dir, &w), PERI_EIO, "cannot open");
  want_failure(C, peri_tfevents_open(C, "/dev/null", &w), PERI_EIO, "not a regular file");
}

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(hashes_have_their_known_answers),
    TEST(sorting_orders_anything),
    TEST(files_are_written_whole_and_read_back),
    TEST(trees_are_made_listed_and_removed),
    TEST(the_newest_good_checkpoint_is_found),
    TEST(what_is_not_whole_is_passed_over),
    TEST(every_flipped_bit_is_seen),
    TEST(a_hostile_manifest_is_refused),
    TEST(folders_inside_are_part_of_it),
    TEST(what_cannot_be_a_checkpoint_is_refused),
    TEST(temporary_folders_of_the_dead_are_removed),
    TEST(a_kill_at_any_moment_loses_at_most_one_save),
    TEST(every_failed_allocation_is_reported),
    TEST(event_files_have_the_known_bytes),
    TEST(half_a_record_is_cut_off_when_continued)
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
