/*
** decimal.c - decimal text to double and back, exactly, whatever locale the host has set: strtod
** and printf's point follow LC_NUMERIC, so strtod is not used and printf's point is not trusted.
*/
#include <stdio.h>
#include <string.h>

#include "core/json.h"

/* A double is settled by its first 768 significant digits and whether anything follows them. */
#define MAX_DIGITS 800
/* 10^(MAX_DIGITS + 345) has 3,804 bits; 63 more for the quotient's shift. */
#define WORDS 128

typedef struct big {
  uint32_t w[WORDS]; /* little-endian; w[n - 1] != 0 */
  int n;
} big;

static void big_mul_add (big *b, uint32_t mul, uint32_t add) {
  uint64_t carry = add;
  for (int i = 0; i < b->n; i++) {
    carry += (uint64_t)b->w[i] * mul;
    b->w[i] = (uint32_t)carry;
    carry >>= 32;
  }
  if (carry != 0) b->w[b->n++] = (uint32_t)carry;
}

static void big_mul_pow10 (big *b, int e) {
  for (; e >= 9; e -= 9) big_mul_add(b, 1000000000u, 0);
  for (; e > 0; e--) big_mul_add(b, 10, 0);
}

static int bits64 (uint64_t x) {
  int n = 0;
  for (; x != 0; x >>= 1) n++;
  return n;
}

static int big_bits (const big *b) {
  return b->n == 0 ? 0 : 32 * (b->n - 1) + bits64(b->w[b->n - 1]);
}

static void big_shl (big *b, int s) {
  int words = s / 32, bits = s % 32;
  if (b->n == 0 || s == 0) return;
  for (int i = b->n - 1; i >= 0; i--) b->w[i + words] = b->w[i];
  memset(b->w, 0, (size_t)words * sizeof b->w[0]);
  b->n += words;
  if (bits != 0) big_mul_add(b, (uint32_t)1 << bits, 0);
}

static void big_halve (big *b) {
  for (int i = 0; i < b->n; i++) {
    uint32_t high = i + 1 < b->n ? b->w[i + 1] : 0;
    b->w[i] = b->w[i] >> 1 | high << 31;
  }
  if (b->n > 0 && b->w[b->n - 1] == 0) b->n--;
}

static bool big_not_less (const big *a, const big *b) {
  if (a->n != b->n) return a->n > b->n;
  for (int i = a->n - 1; i >= 0; i--)
    if (a->w[i] != b->w[i]) return a->w[i] > b->w[i];
  return true;
}

static void big_sub (big *a, const big *b) { /* a >= b */
  int64_t borrow = 0;
  for (int i = 0; i < a->n; i++) {
    int64_t d = (int64_t)a->w[i] - (i < b->n ? b->w[i] : 0) + borrow;
    a->w[i] = (uint32_t)d;
    borrow = d < 0 ? -1 : 0;
  }
  while (a->n > 0 && a->w[a->n - 1] == 0) a->n--;
}

/* q * 2^e, where rest says that the true value is a little above; to nearest even. q < 2^63. */
static bool round_binary (uint64_t q, int e, bool rest, double *out, bool *exact) {
  int top = bits64(q) - 1 + e; /* exponent of the leading bit */
  int keep = top < -1022 ? top + 1075 : 53;
  int drop = bits64(q) - keep;
  if (keep < 0) {
    *out = 0.0;
    *exact = false;
    return true;
  }
  if (drop > 0) {
    uint64_t low = q & (((uint64_t)1 << drop) - 1), half = (uint64_t)1 << (drop - 1);
    q >>= drop;
    bool up = low > half || (low == half && (rest || (q & 1) != 0));
    rest = rest || low != 0;
    q += up;
    e += drop;
  }
  *exact = !rest;
  if (q >> 53 != 0) {
    q >>= 1; /* a carry left a power of two */
    e++;
  }
  if (q == 0) {
    *out = 0.0;
    return true;
  }
  for (; q >> 52 == 0 && e > -1074; e--) q <<= 1;
  if (e > 971) return false;
  uint64_t bits = q >> 52 == 0 ? q : ((uint64_t)(e + 1075) << 52 | (q & (((uint64_t)1 << 52) - 1)));
  memcpy(out, &bits, sizeof bits);
  return true;
}

/* digits * 10^e, with rest as above. */
static bool from_digits (const unsigned char *digit, int n, int e, bool rest, double *out,
                         bool *exact) {
  big num = { { 0 }, 0 }, den = { { 1 }, 1 };
  for (int i = 0; i < n; i++) big_mul_add(&num, 10, digit[i]);
  if (e >= 0)
    big_mul_pow10(&num, e);
  else
    big_mul_pow10(&den, -e);
  int s = big_bits(&den) + 62 - big_bits(&num); /* the quotient gets 62 or 63 bits */
  if (s >= 0)
    big_shl(&num, s);
  else
    big_shl(&den, -s);
  uint64_t q = 0;
  big_shl(&den, 62);
  for (int i = 0; i <= 62; i++) {
    q <<= 1;
    if (big_not_less(&num, &den)) {
      big_sub(&num, &den);
      q |= 1;
    }
    big_halve(&den);
  }
  return round_binary(q, -s, rest || num.n != 0, out, exact);
}

bool peri__parse_double (const char *s, size_t n, double *out, bool *exact) {
  static const double pow10[] = { 1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                  1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                  1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22 };
  unsigned char digit[MAX_DIGITS];
  int nd = 0;
  int64_t point = 0; /* the number is 0.digits * 10^point */
  bool negative = n > 0 && s[0] == '-', fraction = false, rest = false, fits;
  size_t i = negative;
  for (; i < n && s[i] != 'e' && s[i] != 'E'; i++) {
    if (s[i] == '.') {
      fraction = true;
      continue;
    }
    int d = s[i] - '0';
    if (nd == 0 && d == 0) { /* leading zero */
      point -= fraction;
      continue;
    }
    point += !fraction;
    if (nd < MAX_DIGITS)
      digit[nd++] = (unsigned char)d;
    else
      rest = rest || d != 0;
  }
  if (i < n) {
    bool minus = s[++i] == '-';
    int64_t e = 0;
    for (i += s[i] == '-' || s[i] == '+'; i < n; i++)
      if (e < (int64_t)1 << 40) e = 10 * e + (s[i] - '0');
    point += minus ? -e : e;
  }
  while (nd > 0 && digit[nd - 1] == 0 && !rest) nd--;
  *exact = true;
  if (nd == 0) {
    *out = 0.0;
    fits = true;
  } else if (point > 310) {
    fits = false;
  } else if (point < -330) { /* below half of the least subnormal */
    *out = 0.0;
    *exact = false;
    fits = true;
  } else {
    int e = (int)point - nd;
    uint64_t m = 0;
    if (nd <= 15)
      for (int k = 0; k < nd; k++) m = 10 * m + digit[k];
    if (nd <= 15 && e >= 0 && e <= 15 && m <= ((uint64_t)1 << 53) / (uint64_t)pow10[e]) {
      *out = (double)(m * (uint64_t)pow10[e]);
      fits = true;
    } else if (nd <= 15 && e < 0 && e >= -22) { /* one correctly rounded division */
      *out = (double)m / pow10[-e];
      *exact = false;
      fits = true;
    } else {
      fits = from_digits(digit, nd, e, rest, out, exact);
    }
  }
  if (negative) *out = -*out;
  return fits;
}

size_t peri__format_double (double f, char out[PERI_DOUBLE_TEXT]) {
  char text[64], digit[20];
  int nd = 0, e = 0;
  size_t n = 0;
  if (f == 0.0) {
    uint64_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (size_t)snprintf(out, PERI_DOUBLE_TEXT, "%s0.0", bits != 0 ? "-" : "");
  }
  /* 15 digits always survive a normal double's text-double-text; subnormals hold fewer. */
  bool subnormal = f < 0x1p-1022 && f > -0x1p-1022;
  for (int precision = subnormal ? 0 : 14; precision <= 16; precision++) {
    snprintf(text, sizeof text, "%.*e", precision, f < 0 ? -f : f);
    nd = 0;
    const char *c = text;
    for (; *c != 'e'; c++) /* skips whatever the locale's point is */
      if (*c >= '0' && *c <= '9') digit[nd++] = *c;
    bool minus = c[1] == '-';
    e = 0;
    for (c += 2; *c != '\0'; c++) e = 10 * e + (*c - '0');
    if (minus) e = -e;
    char plain[40];
    double back;
    bool exact;
    memcpy(plain, digit, (size_t)nd);
    int len = nd + snprintf(plain + nd, sizeof plain - (size_t)nd, "e%d", e - (nd - 1));
    if (peri__parse_double(plain, (size_t)len, &back, &exact) && back == (f < 0 ? -f : f)) break;
  }
  while (nd > 1 && digit[nd - 1] == '0') nd--;
  if (f < 0) out[n++] = '-';
  if (e >= -5 && e < 17) {
    int k = 0;
    if (e < 0) {
      out[n++] = '0';
      out[n++] = '.';
      for (int z = -1; z > e; z--) out[n++] = '0';
    } else {
      for (; k <= e; k++) out[n++] = k < nd ? digit[k] : '0';
      out[n++] = '.';
      if (k >= nd) out[n++] = '0';
    }
    for (; k < nd; k++) out[n++] = digit[k];
  } else {
    out[n++] = digit[0];
    if (nd > 1) out[n++] = '.';
    for (int k = 1; k < nd; k++) out[n++] = digit[k];
    n += (size_t)snprintf(out + n, PERI_DOUBLE_TEXT - n, "e%d", e);
  }
  out[n] = '\0';
  return n;
}
