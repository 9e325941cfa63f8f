/*
** split.h - pre-tokenizers of tokenizer.json and of GGUF's tokenizer.ggml.pre: text to pieces, none
** of which a token crosses.
*/
#ifndef peri_text_split_h
#define peri_text_split_h

#include "core/json.h"
#include "text/text.h"

/* Immutable; NULL leaves a text in one piece. */
typedef struct peri__splitter peri__splitter;

typedef struct peri__piece {
  uint32_t offset, size; /* bytes of peri__pieces.text; size > 0 */
} peri__piece;

typedef struct peri__pieces {
  const char *text; /* the text given, or memory of the state where a step changes characters */
  size_t size;
  const peri__piece *at; /* in order, disjoint, not always without gaps */
  size_t n;
} peri__pieces;

/* j stands before the value of "pre_tokenizer"; reads exactly that value. null gives NULL. A type
** that is not known is PERI_EFORMAT with its name. */
peri_status peri__splitter_read (peri_ctx *ctx, peri_json *j, peri__splitter **out);
/* The same from a JSON text of its own, zero-terminated. */
peri_status peri__splitter_parse (peri_ctx *ctx, const char *json, peri__splitter **out);

/* What llama.cpp ties to a name of tokenizer.ggml.pre besides the patterns. add_bos and add_sep hold
** where the file's own keys (tokenizer.ggml.add_bos_token ...) do not say otherwise. */
typedef struct peri__pre_facts {
  bool byte_level;    /* tokens are written in the byte-level alphabet */
  bool ignore_merges; /* a piece that is a token is that token, whatever the merges */
  bool escape_spaces; /* U+2581 stands for every space: replace before splitting */
  bool whole_lines;   /* a piece of line feeds alone that is a token is that token */
  bool add_bos;
  bool add_sep; /* a separator behind the text, as RoBERTa has */
} peri__pre_facts;

/* By a name of tokenizer.ggml.pre ("llama-bpe", "qwen2", "deepseek-v3"...). facts may be NULL. An
** unknown name is PERI_EFORMAT with the name. */
peri_status peri__splitter_named (peri_ctx *ctx, const char *name, peri__splitter **out,
                                  peri__pre_facts *facts);
/* All names, in an order that no program relies on; patterns: n of them, each cuts the pieces of the
** one before it. False: there is no i-th. The bindings write tokenizer.json of it. */
typedef struct peri__pre_name {
  const char *name;
  const char *const *patterns;
  int n;
  peri__pre_facts facts;
} peri__pre_name;
PERI_API bool peri__pre_name_at (size_t i, peri__pre_name *out);
/* A step of a tokenizer.json that names no pattern, with the one that it cuts by; NULL beyond the last. */
typedef struct peri__pre_step {
  const char *name, *pattern;
} peri__pre_step;
PERI_API const peri__pre_step *peri__pre_step_at (size_t i);
void peri__splitter_free (peri__splitter *s); /* NULL is a no-op */
/* Give or take the add_prefix_space of ByteLevel, where there is one. s may be NULL. */
peri_status peri__splitter_prefix_space (peri__splitter *s, bool add);
bool peri__splitter_prefixes (
    const peri__splitter *s); /* ByteLevel's add_prefix_space; s: or NULL */
/* Metaspace prepends nothing any more; false: there is none. s may be NULL. */
bool peri__splitter_no_prepend (peri__splitter *s);

/* The last step is ByteLevel: every byte of a piece stands for a character of the byte-level
** alphabet. Pieces hold the bytes themselves, so vocabulary and merges are to be read through
** peri__byte_level_unmap. */
bool peri__splitter_byte_level (const peri__splitter *s);

/* text: valid UTF-8, at most PERI__TEXT_MAX bytes, borrowed by out. at_start: it begins where the
** whole input begins (Metaspace's prepend_scheme "first" asks). out borrows from st until the
** state's next peri__split. Sets no message (peri__text_fail does). Errors: PERI_ENOMEM;
** PERI_EFORMAT: a pattern of the file would take too long on this text. */
peri_status peri__split (const peri__splitter *s, peri__text_state *st, const char *text, size_t n,
                         bool at_start, peri__pieces *out);

#endif
