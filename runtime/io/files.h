/*
** files.h - what the files of io/ share: descriptors, atomic output, hashes, sorting. Every message
** made here names the path. Nothing here raises a signal, changes the folder or the umask of the
** process, or keeps state outside of its arguments.
*/
#ifndef peri_files_h
#define peri_files_h

#include "core/core.h"

/* ---- io/file.c ---- */
/* "PATH: cannot WHAT: reason of errno"; PERI_ENOMEM for that errno, else PERI_EIO. */
peri_status peri__io_fail (peri_ctx *ctx, const char *path, const char *what);
/* Open a regular file for reading; never waits (a pipe is refused, not opened). */
peri_status peri__open_regular (peri_ctx *ctx, const char *path, int *fd, uint64_t *size);
/* Exactly n bytes at offset, or an error. Looks at peri_interrupt between pieces. */
peri_status peri__read_at (peri_ctx *ctx, int fd, const char *path, uint64_t offset, void *dst,
                           size_t n);
/* All n bytes at the descriptor's position, whatever signals and short writes happen. A file-size
** limit is an error, not a signal. */
peri_status peri__write_all (peri_ctx *ctx, int fd, const char *path, const void *src, size_t n);
/* Make renames and new names in a folder durable. */
peri_status peri__sync_folder (peri_ctx *ctx, const char *folder);
/* Pages of an open file: private, copied on write. Held by the handle that mapped them and by each
** tensor in them (peri_import with peri__map_drop and the map as ud). */
typedef struct peri__map {
  peri_ctx *ctx;
  void *base;
  size_t size;
  int64_t refs;
} peri__map;
/* One reference; *out stays NULL where the file system cannot map, which is no error. */
peri_status peri__map_file (peri_ctx *ctx, const char *path, int fd, uint64_t size,
                            peri__map **out);
void peri__map_drop (void *map, void *data); /* one reference less; data is not looked at */
/* "a/b" from its parts, zero-terminated; free with the size put in *size. NULL: no memory (the
** message is set). */
char *peri__join (peri_ctx *ctx, const char *a, const char *b, size_t *size);

/* A file that appears at its path complete and durable, or not at all. */
typedef struct peri__output {
  peri_ctx *ctx;
  const char *path; /* borrowed */
  char *temp;
  size_t temp_size;
  int fd;
  uint64_t written; /* bytes so far */
  bool checked;     /* keep crc: the CRC-32 of what was written since crc was last 0 */
  uint32_t crc;
} peri__output;
peri_status peri__output_begin (peri_ctx *ctx, const char *path, peri__output *o);
peri_status peri__output_write (peri__output *o, const void *src, size_t n);
peri_status peri__output_commit (peri__output *o); /* on failure: as after abort */
void peri__output_abort (peri__output *o);         /* after commit or abort a no-op */
/* The elements of t in row-major order (quantised ones as they are): io/tensor_out.c */
peri_status peri__output_tensor (peri__output *o, const peri_tensor *t);
/* n names and tensors of the context, none NULL, as a host gives them to be saved: same file. */
peri_status peri__check_named (peri_ctx *ctx, const char *path, int64_t n, const char *const *names,
                               peri_tensor *const *tensors);

/* ---- io/manifest.c ---- */
/* Hash and sync everything in a folder, write its manifest and sync the folder. */
peri_status peri__manifest_write (peri_ctx *ctx, const char *folder, int64_t generation);
/* check: hash every file, else read the manifest alone. PERI_EFORMAT and PERI_EIO: it is damaged. */
peri_status peri__manifest_read (peri_ctx *ctx, const char *folder, bool check,
                                 int64_t *generation);

/* ---- io/bytes.c ---- */
typedef struct peri__xxh64 {
  uint64_t lane[4], total;
  unsigned char rest[32];
} peri__xxh64;
void peri__xxh64_init (peri__xxh64 *h);
void peri__xxh64_add (peri__xxh64 *h, const void *data, size_t n);
uint64_t peri__xxh64_end (const peri__xxh64 *h);
uint32_t peri__crc32c (const void *data, size_t n);
/* Turn the bytes of n elements of `size` bytes around. */
void peri__swap_bytes (void *data, int64_t n, size_t size);
/* The allocator of a z_stream, with its context as opaque. */
void *peri__zlib_get (void *ctx, unsigned n, unsigned size);
void peri__zlib_put (void *ctx, void *p);
/* Heap sort in place: no memory, no worst case. compare(ud, a, b) < 0: a comes first. */
void peri__sort (void *base, size_t n, size_t size,
                 int (*compare)(void *ud, const void *a, const void *b), void *ud);

#endif
