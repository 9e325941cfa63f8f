/* dtype.c - element types: sizes, names, promotion, half-precision conversion. ORDER dtype */
#include <math.h>
#include <string.h>

#include "core/core.h"

static const peri__dtype_row types[PERI_NDTYPE] = {
  [PERI_BOOL] = { "bool", "boolean", "BOOL", "|b1", 1 },
  [PERI_U8] = { "u8", "uint8", "U8", "|u1", 1 },
  [PERI_I32] = { "i32", "int32", "I32", "<i4", 4 },
  [PERI_I64] = { "i64", "int64", "I64", "<i8", 8 },
  [PERI_F16] = { "f16", "float16", "F16", "<f2", 2 },
  [PERI_BF16] = { "bf16", "bfloat16", "BF16", NULL, 2 },
  [PERI_F32] = { "f32", "float32", "F32", "<f4", 4 },
  [PERI_F64] = { "f64", "float64", "F64", "<f8", 8 },
};
const peri__dtype_row *peri__dtype_row_of (int d) {
  return d >= 0 && d < PERI_NDTYPE ? &types[d] : NULL;
}

static const struct {
  const char *name;
  uint16_t elements, bytes;
} blocks[PERI_DTYPE_END - PERI_Q8_0] = {
  { "q8_0", 32, 34 }, { "q4_0", 32, 18 },   { "q4_1", 32, 20 },   { "q5_0", 32, 22 },
  { "q5_1", 32, 24 }, { "q4_K", 256, 144 }, { "q5_K", 256, 176 }, { "q6_K", 256, 210 },
};

size_t peri_dtype_size (peri_dtype d) { return (unsigned)d < PERI_NDTYPE ? types[d].size : 0; }

int peri_dtype_block (peri_dtype d, size_t *bytes) {
  size_t unused;
  if (!bytes) bytes = &unused;
  *bytes = peri__is_quantised(d) ? blocks[d - PERI_Q8_0].bytes : peri_dtype_size(d);
  return peri__is_quantised(d) ? blocks[d - PERI_Q8_0].elements : 1;
}

const char *peri_dtype_name (peri_dtype d) {
  if (peri__is_quantised(d)) return blocks[d - PERI_Q8_0].name;
  return (unsigned)d < PERI_NDTYPE ? types[d].name : "unknown";
}

bool peri_dtype_parse (const char *name, peri_dtype *out) {
  if (!name || !out) return false;
  for (int i = 0; i < PERI_NDTYPE; i++)
    if (strcmp(name, types[i].name) == 0 || strcmp(name, types[i].alias) == 0) {
      *out = (peri_dtype)i;
      return true;
    }
  for (int i = PERI_Q8_0; i < PERI_DTYPE_END; i++)
    if (strcmp(name, blocks[i - PERI_Q8_0].name) == 0) {
      *out = (peri_dtype)i;
      return true;
    }
  return false;
}

peri_dtype peri_dtype_promote (peri_dtype a, peri_dtype b) {
  peri_dtype hi = a > b ? a : b, lo = a > b ? b : a;
  return hi == PERI_BF16 && lo == PERI_F16 ? PERI_F32 : hi;
}

float peri__bf16_to_f32 (uint16_t h) {
  uint32_t u = (uint32_t)h << 16;
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

uint16_t peri__f32_to_bf16 (float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40); /* quiet NaN */
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

float peri__f16_to_f32 (uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 0x3ff, u;
  if (e == 31)
    u = sign | 0x7f800000u | (m << 13);
  else if (e != 0)
    u = sign | ((e + 112) << 23) | (m << 13);
  else if (m == 0)
    u = sign;
  else { /* subnormal: shift the leading one up to the implicit place */
    int shift = 0;
    while (!(m & 0x400)) {
      m <<= 1;
      shift++;
    }
    u = sign | ((uint32_t)(113 - shift) << 23) | ((m & 0x3ff) << 13);
  }
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

uint16_t peri__f32_to_f16 (float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  uint16_t sign = (uint16_t)((u >> 16) & 0x8000);
  uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
  if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* rounds to 65536 or more: infinity */
  if (a < 0x33000001u) return sign;                       /* at most half of the least subnormal */
  int e = (int)(a >> 23) - 127;
  uint32_t m = (a & 0x7fffffu) | 0x800000u;
  int drop = e < -14 ? 13 + (-14 - e) : 13; /* bits of m that do not fit */
  uint32_t kept = m >> drop, rest = m & ((1u << drop) - 1), half = 1u << (drop - 1);
  kept += rest > half || (rest == half && (kept & 1));
  if (e < -14) return (uint16_t)(sign | kept); /* a carry makes the least normal: right by itself */
  return (uint16_t)(sign | (((uint32_t)(e + 15) << 10) + (kept - 0x400)));
}

/* To nearest even, from the double directly: no double rounding. */
uint16_t peri__f64_to_half (int dtype, double v) {
  int bits = dtype == PERI_F16 ? 10 : 7, bias = dtype == PERI_F16 ? 15 : 127, e;
  uint16_t sign = signbit(v) ? 0x8000 : 0, top = (uint16_t)((dtype == PERI_F16 ? 31 : 255) << bits);
  if (isnan(v)) return (uint16_t)(sign | top | 1u << (bits - 1));
  v = fabs(v);
  if (v == 0) return sign;
  if (isinf(v)) return sign | top;
  frexp(v, &e);                       /* v in [2^(e-1), 2^e) */
  if (e - 1 < 1 - bias) e = 2 - bias; /* subnormal: the smallest normal exponent */
  double q = nearbyint(ldexp(v, bits - (e - 1)));
  uint32_t code = (uint32_t)q + ((uint32_t)(e - 2 + bias) << bits); /* a carry moves on by itself */
  if (e - 2 + bias == 0 && q < ldexp(1, bits)) code = (uint32_t)q;
  return code >= top ? sign | top : (uint16_t)(sign | code);
}
