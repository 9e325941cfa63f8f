/*
** postprocess.h - post-processors of tokenizer.json: which special tokens go around the ids of a
** text or of a pair of texts.
*/
#ifndef peri_text_postprocess_h
#define peri_text_postprocess_h

#include "core/json.h"
#include "text/text.h"

/* Immutable; NULL adds nothing. */
typedef struct peri__postprocessor peri__postprocessor;

typedef enum peri__part_kind {
  PERI__PART_IDS, /* special tokens */
  PERI__PART_A,   /* the ids of the text, or of the first of a pair */
  PERI__PART_B    /* the ids of the second of a pair */
} peri__part_kind;

typedef struct peri__part {
  peri__part_kind kind;
  int type_id;        /* token type of all its ids */
  const int32_t *ids; /* PERI__PART_IDS: n of them, borrowed from the post-processor */
  size_t n;
} peri__part;

/* j stands before the value of "post_processor"; reads exactly that value. null gives NULL. A type
** that is not known is PERI_EFORMAT with its name. Ids are checked to be in [0, 2^31). */
peri_status peri__postprocessor_read (peri_ctx *ctx, peri_json *j, peri__postprocessor **out);
/* The same from a JSON text of its own, zero-terminated. */
peri_status peri__postprocessor_parse (peri_ctx *ctx, const char *json, peri__postprocessor **out);
void peri__postprocessor_free (peri__postprocessor *p); /* NULL is a no-op */
/* The parts of a text (pair: of two texts) in order, *n of them, borrowed from p; p may be NULL. */
const peri__part *peri__postprocessor_parts (const peri__postprocessor *p, bool pair, size_t *n);

#endif
