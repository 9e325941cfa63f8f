/*
** normalize.h - normalisers of tokenizer.json: text to text before it is split.
*/
#ifndef peri_text_normalize_h
#define peri_text_normalize_h

#include "core/json.h"
#include "text/text.h"

/* Immutable; NULL is the identity. */
typedef struct peri__normalizer peri__normalizer;

/* j stands before the value of "normalizer"; reads exactly that value. null gives NULL. A type that
** is not known is PERI_EFORMAT with its name. */
peri_status peri__normalizer_read (peri_ctx *ctx, peri_json *j, peri__normalizer **out);
/* The same from a JSON text of its own, zero-terminated. */
peri_status peri__normalizer_parse (peri_ctx *ctx, const char *json, peri__normalizer **out);
void peri__normalizer_free (peri__normalizer *z); /* NULL is a no-op */
/* What a class of transformers makes of its settings: -1 is not said. A BertNormalizer is made anew
** (usual: no accents where it lowercases), any other normaliser stays. */
peri_status peri__normalizer_bert_settings (peri__normalizer **z, int chinese, int accents,
                                            int lower);
/* Of a BertNormalizer alone, as it works after all settings; false: it is another. z may be NULL. */
typedef struct peri__bert_facts {
  bool clean, chinese, accents, lower; /* accents: they go */
} peri__bert_facts;
bool peri__normalizer_bert_facts (const peri__normalizer *z, peri__bert_facts *out);
/* Take out every Prepend; false: there was none. z may be NULL. */
bool peri__normalizer_drop_prepend (peri__normalizer *z);
bool peri__normalizer_prepends (const peri__normalizer *z);

/* text: valid UTF-8, at most PERI__TEXT_MAX bytes. The result is text itself where nothing changes,
** else memory of the state, valid until the state's next peri__normalize; peri__split does not
** touch it. Sets no message (peri__text_fail does). */
peri_status peri__normalize (const peri__normalizer *z, peri__text_state *st, const char *text,
                             size_t n, const char **out, size_t *out_n);

#endif
