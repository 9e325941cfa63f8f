/*
** unicode.h - characters of UTF-8 and what tokenizers ask about them. Categories are utf8proc's.
*/
#ifndef peri_text_unicode_h
#define peri_text_unicode_h

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a character is, as bits: general categories of Unicode, White_Space, line ends. */
enum {
  PERI__L = 1,        /* letter: Lu Ll Lt Lm Lo */
  PERI__N = 2,        /* number: Nd Nl No */
  PERI__M = 4,        /* mark: Mn Mc Me */
  PERI__P = 8,        /* punctuation */
  PERI__S = 16,       /* symbol */
  PERI__SPACE = 32,   /* property White_Space */
  PERI__EOL = 64,     /* carriage return, line feed */
  PERI__HIGH = 128,   /* Lu Lt Lm Lo M: may begin a capitalised word */
  PERI__LOW = 256,    /* Ll Lm Lo M: may continue it */
  PERI__ND = 512,     /* Nd */
  PERI__OTHER = 1024, /* Cc Cf Cs Co Cn */
  PERI__MN = 2048,    /* Mn */
  PERI__NL = 4096     /* Nl */
};

extern const uint16_t peri__ascii_class[128];
/* Of a character that is not ASCII. */
uint16_t peri__wide_class (uint32_t c);

static inline uint16_t peri__class (uint32_t c) {
  return c < 128 ? peri__ascii_class[c] : peri__wide_class(c);
}

/* The character at s, n > 0 bytes left; its length goes to *len. The text is valid UTF-8, but a
** broken one is no more than misread: nothing behind n is touched. */
static inline uint32_t peri__char_at (const unsigned char *s, size_t n, size_t *len) {
  uint32_t c = s[0];
  if (c < 0x80 || n < 2) {
    *len = 1;
    return c;
  }
  if (c < 0xE0 || n < 3) {
    *len = 2;
    return (c & 0x1F) << 6 | (s[1] & 0x3F);
  }
  if (c < 0xF0 || n < 4) {
    *len = 3;
    return (c & 0x0F) << 12 | (uint32_t)(s[1] & 0x3F) << 6 | (s[2] & 0x3F);
  }
  *len = 4;
  return (c & 7) << 18 | (uint32_t)(s[1] & 0x3F) << 12 | (uint32_t)(s[2] & 0x3F) << 6 |
         (s[3] & 0x3F);
}

/* Start of the character that ends before s + i; i > 0. */
static inline size_t peri__char_before (const unsigned char *s, size_t i) {
  i--;
  while (i > 0 && (s[i] & 0xC0) == 0x80) i--;
  return i;
}

/* Write a character, return its length. */
static inline size_t peri__char_put (uint32_t c, char out[4]) {
  if (c < 0x80) {
    out[0] = (char)c;
    return 1;
  }
  size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  for (size_t i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3F));
  out[0] = (char)((n == 2 ? 0xC0 : n == 3 ? 0xE0 : 0xF0) | c);
  return n;
}

#endif
