/*
** tokenizer.h - the tokenizer object as its own files see it: the vocabulary, added tokens, the
** models that cut pieces into tokens, and what one thread needs to encode. Parts that only know text
** (normalisers, splitters, decoders, post-processors) have headers of their own.
*/
#ifndef peri_text_tokenizer_h
#define peri_text_tokenizer_h

#include "text/beside.h"
#include "text/decode.h"
#include "text/normalize.h"
#include "text/postprocess.h"
#include "text/split.h"

#define PERI__TOKENS_MAX ((int64_t)1 << 22)       /* ids are below this */
#define PERI__TOKENIZER_BYTES ((size_t)256 << 20) /* the largest file of a vocabulary */
#define PERI__ADDED_BYTES 1024                    /* the longest added token */

/* ---- vocab.c: token texts by id and ids by text ---- */

typedef struct peri__token {
  uint32_t at, n; /* bytes of blob; at PERI__NO_TOKEN: no token has this id */
} peri__token;
#define PERI__NO_TOKEN UINT32_MAX

typedef struct peri__vocab {
  peri_ctx *ctx;
  char *blob;
  peri__token *token; /* by id */
  uint64_t *slot;     /* hash table: upper half of the hash, id + 1; 0 = empty */
  size_t blob_size, blob_cap, size, cap, slots, count;
  uint64_t seed;  /* of the hash: a file cannot aim at collisions */
  size_t longest; /* bytes */
} peri__vocab;

void peri__vocab_open (peri__vocab *v, peri_ctx *ctx);
void peri__vocab_close (peri__vocab *v); /* may be called twice */
/* Room for n tokens, so that adding them one by one moves nothing. */
peri_status peri__vocab_reserve (peri__vocab *v, size_t n);
/* The text of a new id. A text that is there already goes on meaning the older id, or the new one
** (last). The id must be free and below PERI__TOKENS_MAX: the caller has checked. */
peri_status peri__vocab_put (peri__vocab *v, int64_t id, const char *s, size_t n, bool last);
int32_t peri__vocab_find (const peri__vocab *v, const char *s, size_t n); /* -1: none */
/* The text of an id; NULL: none has it. */
static inline const char *peri__vocab_text (const peri__vocab *v, int64_t id, size_t *n) {
  if (id < 0 || (size_t)id >= v->size || v->token[id].at == PERI__NO_TOKEN) return NULL;
  *n = v->token[id].n;
  return v->blob + v->token[id].at;
}
uint64_t peri__text_hash (uint64_t seed, const char *s, size_t n);
uint64_t peri__hash_seed (const void *p); /* differs between runs */
/* Make room for want items of the given size in an array of *cap items. */
/* n texts as a host gives them: none NULL unless it is empty. tokenizer.c */
peri_status peri__check_texts (peri_ctx *ctx, int64_t n, const peri_text *text, const char *name);
peri_status peri__grow (peri_ctx *ctx, void *array, size_t *cap, size_t want, size_t item,
                        const char *what);

/* Tokens in the order of their bytes, to find all that a text begins with. */
typedef struct peri__prefixes {
  const peri__vocab *v;
  uint32_t *id; /* n of them, sorted by text */
  size_t n;
  uint32_t first[257]; /* where tokens with each first byte begin */
} peri__prefixes;
/* keep: bit per id, NULL = all. Tokens of no bytes are left out. */
peri_status peri__prefixes_open (peri__prefixes *p, const peri__vocab *v,
                                 bool (*keep)(const void *ud, uint32_t id), const void *ud);
void peri__prefixes_close (peri__prefixes *p);

/* A walk along the tokens that begin with what was read so far. */
typedef struct peri__walk {
  uint32_t lo, hi;
  size_t depth;
} peri__walk;
static inline peri__walk peri__walk_begin (const peri__prefixes *p) {
  return (peri__walk){ 0, (uint32_t)p->n, 0 };
}
/* Read one byte. False: no token goes on like this. *id: the token that is exactly what was read, or
** -1. */
bool peri__walk_step (const peri__prefixes *p, peri__walk *w, unsigned char c, int32_t *id);

/* ---- added.c: tokens found in the text before anything else ---- */

enum {
  PERI__ADDED_SPECIAL = 1, /* left out by decoding with skip_special; not found without parse */
  PERI__ADDED_NORMALIZED = 2,
  PERI__ADDED_SINGLE_WORD = 4,
  PERI__ADDED_LSTRIP = 8,
  PERI__ADDED_RSTRIP = 16
};

typedef struct peri__added_token {
  int32_t id;
  uint8_t flags;
} peri__added_token;

typedef struct peri__added {
  peri__vocab text;         /* content by index */
  peri__added_token *token; /* by index */
  size_t n, cap;
  uint32_t *by_id;            /* indices in order of ids */
  peri__vocab pattern[2];     /* what is looked for, by index: in the raw, the normalised text */
  peri__prefixes prefixes[2]; /* of pattern */
  bool begins[2][256];        /* some token begins with this byte */
  int only[2];                /* the one byte that all begin with; -1: several, -2: no tokens */
} peri__added;

void peri__added_open (peri__added *a, peri_ctx *ctx);
void peri__added_close (peri__added *a); /* may be called twice */
/* A token that is there already changes its flags. */
peri_status peri__added_put (peri__added *a, int32_t id, const char *s, size_t n, int flags);
/* After the last put. z: what normalised tokens pass through. */
peri_status peri__added_ready (peri__added *a, const peri__normalizer *z, peri__text_state *st);
const peri__added_token *peri__added_at (const peri__added *a, int64_t id); /* NULL: none */
const char *peri__added_text (const peri__added *a, int64_t id, size_t *n); /* NULL: none */

typedef struct peri__match {
  size_t begin, end; /* with the space that the token takes in */
  int32_t id;
} peri__match;
/* The next token at or after *from; which: 0 raw, 1 normalised. special: special ones count. done:
** where the last match ended. */
bool peri__added_next (const peri__added *a, int which, bool special, const char *text, size_t n,
                       size_t *from, size_t done, peri__match *m);

/* ---- models ---- */

typedef enum peri__model_kind {
  PERI__MODEL_BPE,       /* merges by rank */
  PERI__MODEL_SPM,       /* merges by the score of what comes out (SentencePiece's BPE) */
  PERI__MODEL_UNIGRAM,   /* best sum of scores */
  PERI__MODEL_WORDPIECE, /* longest first, with a prefix inside of words */
  PERI__MODEL_PHANTOM,   /* llama.cpp's WordPiece: longest first, words begin with U+2581 */
  PERI__MODEL_WORDLEVEL  /* a piece is a token */
} peri__model_kind;

/* bpe.c */
typedef struct peri__merge {
  uint32_t left, right, rank, id;
} peri__merge;

typedef struct peri__merges {
  peri_ctx *ctx;
  peri__merge *slot; /* hash table; id PERI__NO_TOKEN = empty */
  size_t slots, n;
  uint64_t seed;
} peri__merges;

void peri__merges_open (peri__merges *m, peri_ctx *ctx);
void peri__merges_close (peri__merges *m); /* may be called twice */
/* A pair that is there already takes the new rank. */
peri_status peri__merges_put (peri__merges *m, uint32_t left, uint32_t right, uint32_t rank,
                              uint32_t id);
const peri__merge *peri__merges_find (const peri__merges *m, uint32_t left, uint32_t right);

typedef struct peri__model {
  peri__model_kind kind;
  peri__vocab vocab;
  peri__merges merges;    /* BPE */
  float *score;           /* SPM: by id */
  double *weight;         /* UNIGRAM: by id */
  size_t scores, weights; /* entries of score, weight */
  uint8_t *left_out;      /* UNIGRAM, SPM: bit per id of tokens that texts do not have; or NULL */
  uint8_t *unused;     /* SPM: bit per id of tokens that are merged over and taken apart; or NULL */
  bool exact;          /* SentencePiece's own results, not llama.cpp's or tokenizers' */
  peri__prefixes user; /* exact: pieces that nothing changes and nothing cuts */
  double unknown;      /* UNIGRAM: score of a character that no token has */
  peri__prefixes prefixes; /* UNIGRAM, WORDPIECE, PHANTOM */
  int32_t unk;             /* -1: none */
  int32_t byte_id[256];    /* byte-level: the token of each byte; else its fallback; -1: none */
  bool byte_level;         /* pieces are bytes, tokens are written in the byte-level alphabet */
  bool direct;             /* byte-level without anything else: pieces need no mapping */
  bool byte_fallback, fuse_unk, ignore_merges;
  bool whole_lines;      /* BPE: a piece of line feeds alone that is a token is that token */
  char *prefix, *suffix; /* continuing_subword_prefix, end_of_word_suffix; NULL: none */
  size_t prefix_size, suffix_size;
  bool prefix_known;  /* the file says what the prefix is, if only that there is none */
  int64_t word_chars; /* WORDPIECE: longer words are unknown */
} peri__model;

/* ---- encode.c: what one thread needs ---- */

#define PERI__WORD_KEY 22
#define PERI__WORD_IDS 9

typedef struct peri__word { /* 64 bytes: tokens of a piece seen before */
  uint8_t n, ids;           /* bytes; tokens. n 0: empty */
  char key[PERI__WORD_KEY];
  int32_t id[PERI__WORD_IDS];
  uint32_t unused;
} peri__word;
#define PERI__WORDS 32768 /* a power of two */

typedef struct peri__encoder {
  const peri_tokenizer *t;
  peri__text_state *text;
  peri__buffer ids;    /* int32_t */
  peri__buffer work;   /* scratch of the model */
  peri__buffer mapped; /* a piece in the byte-level alphabet */
  peri__buffer spaced; /* a segment with its spaces written as the vocabulary wants them */
  peri__buffer chars;  /* the same through a table of characters */
  peri__word *words;   /* NULL: no cache */
} peri__encoder;

/* Append the tokens of a piece to e->ids. PERI_ENOMEM without a message. */
peri_status peri__model_piece (const peri__model *m, peri__encoder *e, const char *s, size_t n);
peri_status peri__bpe_piece (const peri__model *m, peri__encoder *e, const char *s, size_t n);
peri_status peri__unigram_piece (const peri__model *m, peri__encoder *e, const char *s, size_t n);
peri_status peri__wordpiece_piece (const peri__model *m, peri__encoder *e, const char *s, size_t n);
static inline bool peri__ids_put (peri__encoder *e, int32_t id) {
  return peri__buffer_put(&e->ids, &id, sizeof id);
}
void peri__encoder_close (peri__encoder *e); /* one that is not open is fine */
/* Scratch of n bytes, aligned for any type; NULL: no memory. */
void *peri__work (peri__encoder *e, size_t n);

/* sentencepiece.c: a text as the model sees it, in out; first: nothing or a token is before it. False:
** no memory. */
bool peri__sentencepiece_normal (const peri_tokenizer *t, peri__buffer *out, const char *s,
                                 size_t n, bool first);
peri_status peri__sentencepiece_pieces (peri__encoder *e, const char *s, size_t n);

/* How a vocabulary writes spaces where no normaliser of tokenizer.json says it. */
typedef struct peri__spaces {
  bool escape; /* ' ' becomes U+2581 */
  bool prefix; /* a space before a text that begins or follows a special token */
  bool suffix; /* the space goes behind instead */
  bool merge;  /* runs of spaces become one, none at the ends (unigram of llama.cpp) */
} peri__spaces;

/* ---- tokenizer.c ---- */

struct peri_tokenizer {
  peri_ctx *ctx;
  peri__normalizer *normalizer;
  peri__splitter *splitter;
  peri__postprocessor *post;
  peri__decoder *decoder;
  peri__model model;
  peri__added added;
  peri__spaces spaces;
  bool sentencepiece;   /* spaces rules hold */
  unsigned char *chars; /* SentencePiece's table of characters; NULL: none */
  size_t chars_size, chars_units;
  int32_t role[PERI_TOKEN_NROLE];
  int32_t *ends; /* tokens that end a turn */
  size_t n_ends, cap_ends;
  int add_bos, add_eos; /* 1, 0: over the post-processor; -1: as that says */
  bool split_special;   /* special tokens written in a text are text, whatever the caller says */
  peri__beside beside;
  peri_side padding, truncation;
  int64_t max_length; /* 0: not said */
  char *template;
  size_t template_size;
  size_t size;            /* highest id + 1 */
  peri__encoder *encoder; /* the caller's, then one a worker */
  int n_encoder;
  peri__buffer out, repaired; /* of the last call */
  peri_token_stream *whole;   /* for decoding at once; NULL: not yet */
};

/* An empty tokenizer for the readers to fill; peri_tokenizer_close frees it. */
peri_status peri__tokenizer_new (peri_ctx *ctx, peri_tokenizer **out);
/* What a tokenizer does after all settings of its files, for those who write them anew. */
typedef struct peri__described {
  bool byte_level, prefix_space, prepends, is_bert;
  peri__bert_facts bert;
} peri__described;
PERI_API void peri__tokenizer_describe (const peri_tokenizer *t, peri__described *out);
/* After the reader: build the indices, check that ids exist. */
peri_status peri__tokenizer_ready (peri_tokenizer *t);
peri_status peri__tokenizer_end (peri_tokenizer *t, int32_t id); /* one more id that ends a turn */
/* "left" or "right" in any case of letters; other values leave *side. */
void peri__tokenizer_side (const peri_json_value *v, peri_side *side);
/* Lengths that no text reaches (transformers writes 1e30 for none) are none. */
void peri__tokenizer_length (const peri_json_value *v, int64_t *length);
/* ---- readers: fill a new tokenizer; peri__tokenizer_ready comes after ---- */
peri_status peri__tokenizer_json (peri_tokenizer *t, const void *text, size_t size);
/* Into t->beside, before the vocabulary is read, in this order. */
peri_status peri__tokenizer_config (peri_tokenizer *t, const void *text, size_t size);
peri_status peri__tokenizer_special_map (peri_tokenizer *t, const void *text, size_t size);
peri_status peri__tokenizer_added_json (peri_tokenizer *t, const void *text, size_t size);
/* What t->beside says of the vocabulary that was read. */
peri_status peri__tokenizer_settle (peri_tokenizer *t);
peri_status peri__tokenizer_generation (peri_tokenizer *t, const void *text, size_t size);
peri_status peri__tokenizer_template (peri_tokenizer *t, const char *s, size_t n);
peri_status peri__tokenizer_gguf (peri_tokenizer *t, peri_gguf *f);
peri_status peri__tokenizer_json_vocab (peri_tokenizer *t, const void *text, size_t size);
/* Files that are together a vocabulary of GPT-2's kind, in this order. */
peri_status peri__tokenizer_vocab_json (peri_tokenizer *t, const void *text, size_t size);
peri_status peri__tokenizer_merges (peri_tokenizer *t, const void *text, size_t size);
peri_status peri__tokenizer_vocab_txt (peri_tokenizer *t, const void *text, size_t size);
/* [CLS] and [SEP] of a vocab.txt, <s> and </s> of RoBERTa's pair of files, after settling. */
peri_status peri__tokenizer_old_around (peri_tokenizer *t);
peri_status peri__tokenizer_llama2c (peri_tokenizer *t, const void *data, size_t size);
peri_status peri__tokenizer_sentencepiece (peri_tokenizer *t, const void *data, size_t size);
/* Decode U+2581 as a space; strip: so many of the spaces that a text begins with go. */
peri_status peri__tokenizer_spaces (peri_tokenizer *t, int strip);
/* Take a SentencePiece table of characters, copied; pass a text through it. False: no memory. */
peri_status peri__tokenizer_charsmap (peri_tokenizer *t, const void *map, size_t n);
/* What stands for the longest key at s; its size, 0: none. */
size_t peri__tokenizer_char (const peri_tokenizer *t, const char *s, size_t n, peri_text *out);
bool peri__tokenizer_chars (const peri_tokenizer *t, peri__buffer *out, const char *s, size_t n);
/* A token's name means the same in every vocabulary: the end of a turn, infilling. */
bool peri__tokenizer_known (const char *s, size_t n);
char *peri__copy_text (peri_ctx *ctx, const char *s, size_t n); /* zero-terminated, n + 1 bytes */

#endif
