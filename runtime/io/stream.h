/*
** stream.h - bytes of a file one after the other, as they are or decompressed, for readers that know
** from a header what to expect. Memory: one buffer and the decompressor's window (about 110 KiB).
*/
#ifndef peri_stream_h
#define peri_stream_h

#include "io/files.h"

/* Deflate makes no more than this of one byte (zlib's technical notes): bounds what a compressed file
** can hold before memory is asked for. */
#define PERI__DEFLATE_MOST 1032

typedef enum peri__codec { PERI__RAW, PERI__GZIP, PERI__DEFLATE } peri__codec;

typedef struct peri__stream peri__stream;
/* A whole file, decompressed when it begins as gzip files do. */
peri_status peri__stream_open (peri_ctx *ctx, const char *path, peri__stream **out);
/* The bytes [at, at + n) of a descriptor that stays the caller's. path: for messages, borrowed. */
peri_status peri__stream_range (peri_ctx *ctx, const char *path, int fd, uint64_t at, uint64_t n,
                                peri__codec codec, peri__stream **out);
/* Up to n bytes; fewer only at the end. */
peri_status peri__stream_read (peri__stream *s, void *dst, size_t n, size_t *got);
/* Exactly n bytes; what names them in the message. */
peri_status peri__stream_need (peri__stream *s, void *dst, size_t n, const char *what);
/* Fails unless nothing is left; what is what ought to have been the last. */
peri_status peri__stream_end (peri__stream *s, const char *what);
uint64_t peri__stream_at (const peri__stream *s);   /* bytes delivered so far */
uint64_t peri__stream_most (const peri__stream *s); /* the most that it can deliver in all */
uint32_t peri__stream_crc (const peri__stream *s);  /* CRC-32 of what was delivered */
peri_status peri__stream_fail (peri__stream *s, const char *fmt, ...) PERI_PRINTF(2, 3);
peri_status peri__stream_refuse (peri__stream *s, peri_status status, const char *fmt, ...)
    PERI_PRINTF(3, 4);                     /* the same with another status than PERI_EFORMAT */
void peri__stream_close (peri__stream *s); /* NULL is a no-op */

/* ---- io/npy.c ---- */
/* One array in the format of NumPy's .npy at the stream's position. */
peri_status peri__npy_read (peri_ctx *ctx, peri__stream *s, peri_tensor **out);
/* The header of an array of t's dtype and shape into buf; its size, 0 when the format lacks it. */
#define PERI__NPY_HEADER 320
size_t peri__npy_header (const peri_tensor *t, char buf[PERI__NPY_HEADER]);

#endif
