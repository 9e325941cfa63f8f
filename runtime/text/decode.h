/*
** decode.h - decoders of tokenizer.json: token texts to text. Each step of a decoder is a stream, so
** decoding token by token gives byte for byte what decoding the whole gives.
*/
#ifndef peri_text_decode_h
#define peri_text_decode_h

#include "core/json.h"
#include "text/text.h"

/* Immutable; NULL joins the tokens' texts with spaces, as the reference does without a decoder. */
typedef struct peri__decoder peri__decoder;

/* j stands before the value of "decoder"; reads exactly that value. null gives NULL. A type that is
** not known is PERI_EFORMAT with its name. */
peri_status peri__decoder_read (peri_ctx *ctx, peri_json *j, peri__decoder **out);
/* The same from a JSON text of its own, zero-terminated. */
peri_status peri__decoder_parse (peri_ctx *ctx, const char *json, peri__decoder **out);
void peri__decoder_free (peri__decoder *d); /* NULL is a no-op */
/* Add clean_up_tokenization of transformers: English spacing of the whole text, " ." to "." ... */
peri_status peri__decoder_cleanup (peri_ctx *ctx, peri__decoder **d);

/* One text being decoded. Borrows the decoder. Belongs to the context's thread. */
typedef struct peri__decoding peri__decoding;
peri_status peri__decoding_open (peri_ctx *ctx, const peri__decoder *d, peri__decoding **out);
void peri__decoding_close (peri__decoding *g); /* NULL is a no-op */
/* Append to out what is certain once this token (its text as in the vocabulary, valid UTF-8) is
** there: whole characters only. */
peri_status peri__decoding_push (peri__decoding *g, const char *token, size_t n, peri__buffer *out);
/* Append what was held back; a character that never became whole is U+FFFD. Then g is as after its
** opening. */
peri_status peri__decoding_finish (peri__decoding *g, peri__buffer *out);

#endif
