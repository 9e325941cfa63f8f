/* list.c - the op table, and its signatures, parsed once a process and read-only afterwards. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "op/op.h"

const peri_op *const peri__ops[] = {
#define X(name) &peri__op_##name,
#include "op/list.h"
#undef X
  NULL
};

#define NOPS ((int)(sizeof peri__ops / sizeof *peri__ops) - 1)
#define MAX_OPS 512
#define SLOTS 1024
#define MAX_PARAMS 2048
#define MAX_TEXT 32768

static struct {
  peri_sig sig[MAX_OPS];
  uint16_t slot[SLOTS];  /* by address of the descriptor: 1 + index, 0 = empty */
  uint16_t named[SLOTS]; /* by name, likewise */
  peri_param param[MAX_PARAMS];
  char text[MAX_TEXT]; /* names and string defaults */
  int nparam, ntext;
} table;

static const char *const kinds[] = { /* ORDER kind */
                                     "tensor", "tensor?", "tensors", "int",  "num",   "bool", "str",
                                     "dtype",  "dim",     "pos",     "dims", "shape", "ints"
};
#define NKINDS (sizeof kinds / sizeof *kinds)

const char *peri_kind_name (peri_kind k) { return (unsigned)k < NKINDS ? kinds[k] : ""; }

static const char *keep_text (const char *s, size_t n) {
  if (table.ntext + n + 1 > MAX_TEXT) return NULL;
  char *p = table.text + table.ntext;
  memcpy(p, s, n);
  p[n] = 0;
  table.ntext += (int)n + 1;
  return p;
}

static bool parse_kind (const char *s, size_t n, peri_kind *out) {
  for (size_t i = 0; i < NKINDS; i++)
    if (strlen(kinds[i]) == n && memcmp(kinds[i], s, n) == 0) {
      *out = (peri_kind)i;
      return true;
    }
  return false;
}

/* A decimal number without the locale: signatures are ours, so this stays small. */
static bool parse_number (const char *s, double *out) {
  double sign = 1, v = 0, scale = 1;
  int digits = 0, e = 0, esign = 1;
  if (*s == '-') {
    sign = -1;
    s++;
  }
  for (; *s >= '0' && *s <= '9'; s++, digits++) v = v * 10 + (*s - '0');
  if (*s == '.')
    for (s++; *s >= '0' && *s <= '9'; s++, digits++) {
      v = v * 10 + (*s - '0');
      scale *= 10;
    }
  if (*s == 'e') {
    s++;
    if (*s == '-') {
      esign = -1;
      s++;
    }
    for (; *s >= '0' && *s <= '9'; s++) e = e * 10 + (*s - '0');
  }
  for (; e > 0; e--) {
    if (esign < 0)
      scale *= 10;
    else
      v *= 10;
  }
  *out = sign * v / scale;
  return digits > 0 && *s == 0;
}

static bool parse_default (peri_kind kind, const char *s, peri_attr *out) {
  bool none = strcmp(s, "none") == 0;
  double d = 0;
  *out = (peri_attr){ 0 };
  switch (kind) {
  case PERI_K_STR: out->s = none ? NULL : s; return true;
  case PERI_K_BOOL: out->i = strcmp(s, "true") == 0; return out->i || strcmp(s, "false") == 0;
  case PERI_K_DTYPE: {
    peri_dtype t = PERI_F32;
    bool good = none || peri_dtype_parse(s, &t);
    out->i = none ? -1 : (int64_t)t;
    return good;
  }
  case PERI_K_DIMS: out->n = -1; return none || strcmp(s, "all") == 0;
  case PERI_K_SHAPE:
  case PERI_K_INTS: out->n = -1; return none;
  case PERI_K_INT:
  case PERI_K_DIM:
  case PERI_K_POS:
    if (!none && !parse_number(s, &d)) return false;
    out->i = none ? INT64_MIN : (int64_t)d;
    return true;
  case PERI_K_NUM:
    if (!none && !parse_number(s, &d)) return false;
    out->f = none ? NAN : d;
    return true;
  default: return false;
  }
}

static bool parse_sig (const peri_op *op, peri_sig *sig) {
  const char *s = op->sig;
  const peri_param *first = table.param + table.nparam;
  *sig = (peri_sig){ .p = first };
  while (*s) {
    if (sig->n == PERI_MAX_PARAM || table.nparam == MAX_PARAMS) return false;
    peri_param *p = &table.param[table.nparam++];
    size_t len = strcspn(s, ","), name = 0, kind;
    while (name < len && s[name] != ':' && s[name] != '=') name++;
    *p = (peri_param){ .kind = PERI_K_TENSOR,
                       .written = op->writes >> sig->n & 1,
                       .target = op->targets >> sig->n & 1 };
    if (!(p->name = keep_text(s, name))) return false;
    kind = name;
    if (kind < len && s[kind] == ':') {
      size_t begin = ++kind;
      while (kind < len && s[kind] != '=') kind++;
      if (!parse_kind(s + begin, kind - begin, &p->kind)) return false;
    }
    if (kind < len && s[kind] == '=') {
      const char *text = keep_text(s + kind + 1, len - kind - 1);
      p->has_default = true;
      if (!text || !parse_default(p->kind, text, &p->def)) return false;
    }
    if (p->kind <= PERI_K_TENSORS) {
      if (sig->nattr > 0) return false; /* tensors come first */
      sig->ntensor++;
      sig->nlist += p->kind == PERI_K_TENSORS;
    } else
      sig->nattr++;
    sig->n++;
    s += len;
    if (*s == ',') s += s[1] == ' ' ? 2 : 1;
  }
  return true;
}

static size_t hash_of (const peri_op *op) { return (size_t)((uintptr_t)op / sizeof *op) % SLOTS; }

static size_t hash_name (const char *s) { /* FNV-1a */
  uint32_t h = 2166136261u;
  for (; *s; s++) h = (h ^ (unsigned char)*s) * 16777619u;
  return h % SLOTS;
}

/* An op whose signature does not parse stays out of the table; a test looks for that. */
static void parse_all (void) {
  for (int i = 0; i < NOPS && i < MAX_OPS; i++) {
    size_t at = hash_name(peri__ops[i]->name);
    while (table.named[at]) at = (at + 1) % SLOTS;
    table.named[at] = (uint16_t)(i + 1);
    if (!parse_sig(peri__ops[i], &table.sig[i])) continue;
    size_t k = hash_of(peri__ops[i]);
    while (table.slot[k]) k = (k + 1) % SLOTS;
    table.slot[k] = (uint16_t)(i + 1);
  }
}

static pthread_once_t once = PTHREAD_ONCE_INIT;

const peri_sig *peri__sig (const peri_op *op) {
  pthread_once(&once, parse_all);
  size_t i = hash_of(op);
  while (table.slot[i] && peri__ops[table.slot[i] - 1] != op) i = (i + 1) % SLOTS;
  return table.slot[i] ? &table.sig[table.slot[i] - 1] : NULL;
}

int peri_op_count (void) { return NOPS; }
const peri_op *peri_op_at (int i) { return i >= 0 && i < NOPS ? peri__ops[i] : NULL; }

const peri_op *peri_op_find (const char *name) {
  if (!name) return NULL;
  pthread_once(&once, parse_all);
  for (size_t k = hash_name(name); table.named[k]; k = (k + 1) % SLOTS)
    if (strcmp(peri__ops[table.named[k] - 1]->name, name) == 0)
      return peri__ops[table.named[k] - 1];
  return NULL;
}

const char *peri_op_name (const peri_op *op) { return op ? op->name : ""; }
const char *peri_op_signature (const peri_op *op) { return op ? op->sig : ""; }
const char *peri_op_doc (const peri_op *op) { return op ? op->doc : ""; }

uint32_t peri_op_flags (const peri_op *op) {
  static const uint32_t shown = PERI_OP_VIEW | PERI_OP_INPLACE | PERI_OP_ELEMENTWISE |
                                PERI_OP_RANDOM | PERI_OP_NO_GRAD2 | PERI_OP_WEIGHT;
  return !op ? 0 : (op->flags & shown) | (op->vjp || op->compose ? PERI_OP_GRAD : 0);
}

int peri_op_params (const peri_op *op) {
  const peri_sig *sig = op ? peri__sig(op) : NULL;
  return sig ? sig->n : 0;
}

const peri_param *peri_op_param (const peri_op *op, int i) {
  return i >= 0 && i < peri_op_params(op) ? &peri__sig(op)->p[i] : NULL;
}

int peri_op_attrs (const peri_op *op) {
  const peri_sig *sig = op ? peri__sig(op) : NULL;
  return sig ? sig->nattr : 0;
}

int peri_op_outputs (const peri_op *op) { return !op ? 0 : op->nret ? op->nret : op->nout; }
