/*
** beside.h - what the files beside a vocabulary say (tokenizer_config.json, special_tokens_map.json,
** added_tokens.json), gathered before the vocabulary is read and applied to it afterwards, as
** AutoTokenizer of transformers does.
*/
#ifndef peri_text_beside_h
#define peri_text_beside_h

#include "core/json.h"

/* A token that a file names, whether or not the vocabulary has it. */
typedef struct peri__said_token {
  char *text; /* NULL: none is said */
  size_t n;
  int64_t index; /* the id that the file gives it: only their order counts */
  int flags;     /* PERI__ADDED_ */
  bool none;     /* null is said: not even the name that is usual */
} peri__said_token;

typedef struct peri__said_list {
  peri__said_token *at;
  size_t n, cap;
} peri__said_list;

typedef struct peri__beside {
  char family[64]; /* tokenizer_class, cut where longer */
  peri__said_token role[PERI_TOKEN_NROLE];
  peri__said_list added;             /* added_tokens_decoder, added_tokens.json */
  peri__said_list named, by_key;     /* "image_token"; extra_special_tokens as an object */
  peri__said_list extra, additional; /* extra_special_tokens, additional_special_tokens */
  bool any;                          /* there is a tokenizer_config.json */
  bool decoder;                      /* it has added_tokens_decoder: older files do not count */
  bool by_name;                      /* added has no flags yet (added_tokens.json) */
  bool bert, roberta; /* the vocabulary is of that kind and says nothing of cls and sep itself */
  /* -1: not said */
  int add_bos, add_eos, prefix_space, lower, accents, chinese, basic, cleanup, cleanup_bpe;
  int64_t extra_ids;
} peri__beside;

void peri__beside_open (peri__beside *b);
void peri__beside_close (peri_ctx *ctx, peri__beside *b); /* may be called twice */
/* Does tokenizer_class begin with one of the names, which NULL ends? */
bool peri__beside_family (const peri__beside *b, const char *const *names);
extern const char *const peri__bert_family[];

#endif
