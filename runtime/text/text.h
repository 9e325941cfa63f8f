/*
** text.h - what normalisers, splitters and decoders share: the state of one thread, UTF-8, the
** byte-level alphabet. The objects themselves (a normaliser, a splitter) never change once read and
** serve any number of threads; everything that changes lies in a peri__text_state.
*/
#ifndef peri_text_h
#define peri_text_h

#include "text/buffer.h"

/* The longest text that one call takes: offsets of pieces are 32 bits. */
#define PERI__TEXT_MAX ((size_t)1 << 30)

typedef struct peri__text_state peri__text_state;

/* Made and freed on the context's thread; used by one thread at a time. */
peri_status peri__text_state_open (peri_ctx *ctx, peri__text_state **out);
void peri__text_state_close (peri__text_state *st); /* NULL is a no-op */
/* While fixed the state asks nobody for memory: a call that needs more than the state has returns
** PERI_ENOMEM, and the caller repeats it on the context's thread with the state unfixed. Set around
** the use by a worker thread. */
void peri__text_state_fix (peri__text_state *st, bool fixed);
/* Room for texts of n bytes, so that most calls in a fixed state find it. Not for a fixed state. */
peri_status peri__text_state_reserve (peri__text_state *st, size_t n);
/* Put into the context's message why a call with this state returned s. Context's thread only. */
peri_status peri__text_fail (peri__text_state *st, peri_status s);

/* ---- UTF-8 (peri__utf8_prefix of core/json.h checks) ---- */
/* Append text with every maximal invalid part replaced by U+FFFD, as Unicode (3.9, table 3-8),
** Python and Rust do. False: no memory. */
bool peri__utf8_repair (peri__buffer *out, const char *text, size_t n);

/* ---- the byte-level alphabet of GPT-2: a printable character for every byte ---- */
/* Code point (below U+0144) that stands for each byte. */
extern const uint16_t peri__byte_level[256];
/* Append the characters that stand for the n bytes. False: no memory. */
bool peri__byte_level_map (peri__buffer *out, const void *bytes, size_t n);
/* Turn a token's text back into bytes; out has room for n. False, when a character stands for no
** byte (such a token cannot come from a byte-level text). */
bool peri__byte_level_unmap (const char *text, size_t n, char *out, size_t *out_n);

#endif
