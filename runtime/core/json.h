/*
** json.h - strict JSON (RFC 8259) for the rest of runtime/ and for bindings/: a pull parser over a
** byte range and a writer into a growing buffer. It builds no trees; who needs one builds it.
** Nothing here depends on the process's locale.
*/
#ifndef peri_json_h
#define peri_json_h

#include "core/core.h"

#define PERI_JSON_DEPTH 64                  /* default of max_depth */
#define PERI_JSON_DEPTH_MAX 256             /* the most that max_depth may say */
#define PERI_JSON_BYTES ((size_t)256 << 20) /* default of max_bytes; the most is 2 GiB - 1 */

/* ORDER json type: kept the same in json.c's peri_json_expect */
typedef enum peri_json_type {
  PERI_JSON_END, /* the whole text has been read and was one value */
  PERI_JSON_NULL,
  PERI_JSON_BOOL,
  PERI_JSON_INT, /* written without fraction and exponent, fits int64 */
  PERI_JSON_NUM, /* any other number */
  PERI_JSON_STRING,
  PERI_JSON_KEY,    /* of a member; its value follows */
  PERI_JSON_OBJECT, /* '{'; keys and values up to the matching CLOSE follow */
  PERI_JSON_ARRAY,  /* '[' */
  PERI_JSON_CLOSE   /* '}' or ']' */
} peri_json_type;

typedef struct peri_json_options {
  size_t max_bytes;   /* 0 = PERI_JSON_BYTES */
  int max_depth;      /* of nested objects and arrays; 0 = PERI_JSON_DEPTH */
  bool allow_nan;     /* accept NaN, Infinity and -Infinity, which JSON does not have */
  bool foreign;       /* of others, as Python writes it: those, and a byte-order mark */
  bool distinct_keys; /* keys are known to be distinct (a second pass): do not check again */
} peri_json_options;

typedef struct peri_json_value {
  peri_json_type type;
  bool flag;     /* BOOL */
  int64_t i;     /* INT */
  double f;      /* NUM; INT too, rounded */
  const char *s; /* KEY, STRING: UTF-8, may hold zero bytes, not terminated; borrowed, valid until
                 ** the next call */
  size_t n;      /* bytes at s */
  size_t offset; /* of the value's first byte in the text */
} peri_json_value;

/* Keys of the open objects: a stack of the offsets of their opening quotes, and a hash table of
** positions in that stack. */
typedef struct peri_json_keys {
  uint32_t *stack, *table; /* table: 0 = empty, else position + 1 */
  size_t n, cap, table_cap;
  uint64_t seed[2]; /* of the hash: a text cannot aim at collisions */
} peri_json_keys;

typedef struct peri_json {
  peri_ctx *ctx;
  const unsigned char *text;
  size_t size, pos;
  peri_json_options opt;
  peri_status status; /* sticky */
  int state, depth;
  int64_t steps; /* pieces so far: now and then an interrupt is looked for */
  peri_json_keys keys;
  char *scratch; /* strings that have escapes */
  size_t scratch_cap;
  uint32_t base[PERI_JSON_DEPTH_MAX]; /* per open level: keys.n when it was opened */
  bool object[PERI_JSON_DEPTH_MAX];   /* per open level: object, else array */
} peri_json;

/* The text is borrowed until the close. opt may be NULL. Allocates nothing, cannot fail. */
PERI_API void peri_json_open (peri_json *p, peri_ctx *ctx, const void *text, size_t size,
                              const peri_json_options *opt);
/* The same with the options { .foreign = true }. */
void peri__json_open_foreign (peri_json *p, peri_ctx *ctx, const void *text, size_t size);
/* The next piece of the text. A duplicate key, bad UTF-8, a number that a double cannot hold, depth
** and size above the limits, and anything behind the value are errors (PERI_EFORMAT) whose message
** tells line, column (from 1) and byte (from 0). An integer beyond int64 is a NUM if a double holds
** it exactly and an error otherwise; "-0" is a NUM, since an integer would lose its sign. */
PERI_API peri_status peri_json_next (peri_json *p, peri_json_value *v);
/* As next, but fails unless the piece is of the given type. what: names it in the message. */
PERI_API peri_status peri_json_expect (peri_json *p, peri_json_type type, const char *what,
                                       peri_json_value *v);
/* Fail at a byte of the text, in the manner of the parser's own messages. */
PERI_API peri_status peri_json_fail (peri_json *p, size_t offset, const char *fmt, ...)
    PERI_PRINTF(3, 4);
PERI_API void peri_json_close (peri_json *p); /* may be called twice */

typedef enum peri_json_nan {
  PERI_JSON_NAN_ERROR,  /* refuse NaN and infinities */
  PERI_JSON_NAN_NULL,   /* write null */
  PERI_JSON_NAN_LITERAL /* write NaN, Infinity, -Infinity, which other readers may refuse */
} peri_json_nan;

/* The status is sticky: callers put everything and check peri_json_finish. */
typedef struct peri_json_writer {
  peri_ctx *ctx;
  char *text; /* zero-terminated after finish */
  size_t size, cap;
  peri_status status;
  peri_json_nan nan;
  int indent; /* spaces per level; 0 = all on one line */
  int depth;
  int64_t steps; /* values so far */
  bool comma, after_key, done;
  bool object[PERI_JSON_DEPTH_MAX];
} peri_json_writer;

PERI_API void peri_json_begin (peri_json_writer *w, peri_ctx *ctx, int indent, peri_json_nan nan);
PERI_API void peri_json_put_object (peri_json_writer *w);
PERI_API void peri_json_put_array (peri_json_writer *w);
PERI_API void peri_json_put_close (peri_json_writer *w);
PERI_API void peri_json_put_key (peri_json_writer *w, const char *s, size_t n);    /* UTF-8 */
PERI_API void peri_json_put_string (peri_json_writer *w, const char *s, size_t n); /* UTF-8 */
PERI_API void peri_json_put_int (peri_json_writer *w, int64_t i);
/* Shortest digits that read back as the same double; whole numbers end in ".0", so that they read
** back as NUM. */
PERI_API void peri_json_put_num (peri_json_writer *w, double f);
PERI_API void peri_json_put_bool (peri_json_writer *w, bool b);
PERI_API void peri_json_put_null (peri_json_writer *w);
/* Fails if anything failed or a value is incomplete; else text and size are the document. */
PERI_API peri_status peri_json_finish (peri_json_writer *w);
PERI_API void peri_json_drop (peri_json_writer *w); /* frees text; may be called twice */

/* Whether a key or string is s. */
bool peri__json_is (const peri_json_value *v, const char *s);
/* Read the rest of a value of which first is the beginning. */
peri_status peri__json_skip (peri_json *p, const peri_json_value *first);

/* Decode in place a string that the parser has accepted, from its opening quote on, and end it with a
** zero byte. Returns its length. */
size_t peri__json_unquote (char *text);

/* Bytes of valid UTF-8 (no surrogates, no overlong forms) from the start of s. */
size_t peri__utf8_prefix (const char *s, size_t n);

/* ---- core/decimal.c ---- */
/* The double nearest to a decimal number (ties to even) in JSON's grammar, already checked by the
** caller. exact: the double is that number. False when it is too large for a double. */
bool peri__parse_double (const char *s, size_t n, double *out, bool *exact);
/* Shortest decimal of a finite double that reads back as it; returns the length. */
#define PERI_DOUBLE_TEXT 32
size_t peri__format_double (double f, char out[PERI_DOUBLE_TEXT]);

#endif
