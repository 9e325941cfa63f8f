/*
** gguf_read.c - values and tensors of a GGUF file whose header gguf.c has checked: nothing is checked
** again, and nothing but a tensor is allocated.
*/
#include "io/gguf.h"

/* ---- values ---- */

int peri_gguf_version (const peri_gguf *f) { return f ? f->version : 0; }
int64_t peri_gguf_alignment (const peri_gguf *f) { return f ? f->alignment : 0; }
int64_t peri_gguf_nvalues (const peri_gguf *f) { return f ? f->nvalues : 0; }
int64_t peri_gguf_count (const peri_gguf *f) { return f ? f->n : 0; }
int64_t peri_gguf_find (const peri_gguf *f, const char *key) {
  if (!f || !key) return -1;
  return peri__gguf_find(f, false, key);
}
int64_t peri_gguf_find_tensor (const peri_gguf *f, const char *name) {
  if (!f || !name) return -1;
  return peri__gguf_find(f, true, name);
}

peri_gguf_entry peri_gguf_entry_at (const peri_gguf *f, int64_t i) {
  if (!f || i < 0 || i >= f->n) return (peri_gguf_entry){ .supported = false };
  return peri__gguf_entry_at(f, &f->entries[i]);
}

/* The value of a type at a byte of the checked header. */
static peri_gguf_value value_at (const peri_gguf *f, peri_gguf_type type, uint64_t at) {
  peri_gguf_value v = { .type = type, .count = 1, .offset = at };
  if (type != PERI_GGUF_ARRAY) return v;
  v.array = true;
  v.type = (peri_gguf_type)peri__load32(f->header + at);
  v.count = (int64_t)peri__load64(f->header + at + 4);
  v.offset = at + 12;
  return v;
}

peri_gguf_value peri_gguf_at (const peri_gguf *f, int64_t i) {
  if (!f || i < 0 || i >= f->nvalues) return (peri_gguf_value){ .count = 0 };
  peri_gguf_text key = peri__gguf_text_at(f, f->values[i]);
  uint64_t at = f->values[i] + 8 + (uint64_t)key.n;
  peri_gguf_value v = value_at(f, (peri_gguf_type)peri__load32(f->header + at), at + 4);
  v.key = key;
  return v;
}

static const unsigned char *element (const peri_gguf *f, const peri_gguf_value *v, int64_t i) {
  size_t size = peri__gguf_size(v->type);
  if (size == 0 || i < 0 || i >= v->count) return NULL;
  return f->header + v->offset + (uint64_t)i * size;
}

bool peri_gguf_int (const peri_gguf *f, const peri_gguf_value *v, int64_t i, int64_t *out) {
  if (!f || !v || !out) return false;
  const unsigned char *p = element(f, v, i);
  if (p == NULL) return false;
  switch (v->type) {
  case PERI_GGUF_U8:
  case PERI_GGUF_BOOL: *out = *p; return true;
  case PERI_GGUF_I8: *out = (int8_t)*p; return true;
  case PERI_GGUF_U16: *out = p[0] | p[1] << 8; return true;
  case PERI_GGUF_I16: *out = (int16_t)(p[0] | p[1] << 8); return true;
  case PERI_GGUF_U32: *out = peri__load32(p); return true;
  case PERI_GGUF_I32: *out = (int32_t)peri__load32(p); return true;
  case PERI_GGUF_I64: *out = (int64_t)peri__load64(p); return true;
  case PERI_GGUF_U64: *out = (int64_t)peri__load64(p); return *out >= 0;
  default: return false;
  }
}

bool peri_gguf_num (const peri_gguf *f, const peri_gguf_value *v, int64_t i, double *out) {
  if (!f || !v || !out) return false;
  const unsigned char *p = element(f, v, i);
  int64_t whole;
  float single;
  if (p == NULL) return false;
  if (v->type == PERI_GGUF_F32) {
    memcpy(&single, p, sizeof single);
    *out = single;
  } else if (v->type == PERI_GGUF_F64) {
    memcpy(out, p, sizeof *out);
  } else if (v->type == PERI_GGUF_U64) {
    *out = (double)peri__load64(p);
  } else {
    if (!peri_gguf_int(f, v, i, &whole)) return false;
    *out = (double)whole;
  }
  return true;
}

bool peri_gguf_string (const peri_gguf *f, const peri_gguf_value *v, peri_gguf_text *out) {
  if (!f || !v || !out) return false;
  if (v->array || v->type != PERI_GGUF_TEXT) return false;
  *out = peri__gguf_text_at(f, v->offset);
  return true;
}

/* The byte behind a value of the checked header. */
static uint64_t end_of (const peri_gguf *f, const peri_gguf_value *v) {
  uint64_t at = v->offset;
  size_t size = peri__gguf_size(v->type);
  if (size != 0) return at + (uint64_t)v->count * size;
  for (int64_t i = 0; i < v->count; i++) {
    if (v->type == PERI_GGUF_TEXT) {
      at += 8 + peri__load64(f->header + at);
      continue;
    }
    peri_gguf_value inner = value_at(f, PERI_GGUF_ARRAY, at);
    at = end_of(f, &inner);
  }
  return at;
}

bool peri_gguf_next (const peri_gguf *f, const peri_gguf_value *array, peri_gguf_cursor *c,
                     peri_gguf_value *item) {
  if (!f || !array || !c || !item || c->i < 0) return false;
  if (!array->array || c->i >= array->count) return false;
  if (c->i == 0) c->at = array->offset;
  *item = value_at(f, array->type, c->at);
  c->at = end_of(f, item);
  c->i++;
  return true;
}

/* ---- by key ---- */

static peri_status get (const peri_gguf *f, const char *key, bool array, const char *what,
                        peri_gguf_value *out) {
  int64_t i = peri_gguf_find(f, key);
  if (i < 0) return peri__fail(f->ctx, PERI_EINVAL, "%s: there is no value \"%s\"", f->path, key);
  *out = peri_gguf_at(f, i);
  if (out->array == array) return PERI_OK;
  return peri__fail(f->ctx, PERI_EFORMAT, "%s: byte %llu: value \"%s\" is %s, %s is expected",
                    f->path, (unsigned long long)out->offset, key,
                    out->array ? "an array" : peri__gguf_type_name(out->type), what);
}

static peri_status wrong (const peri_gguf *f, const peri_gguf_value *v, const char *what) {
  return peri__fail(f->ctx, PERI_EFORMAT, "%s: byte %llu: value \"%.*s\" is %s%s, %s is expected",
                    f->path, (unsigned long long)v->offset, v->key.n > 100 ? 100 : (int)v->key.n,
                    v->key.s, v->array ? "an array of " : "", peri__gguf_type_name(v->type), what);
}

static peri_status wanted (const peri_gguf *f, const char *key, const void *out) {
  if (!f) return PERI_EINVAL;
  NEED(f->ctx, key);
  NEED(f->ctx, out);
  return PERI_OK;
}

peri_status peri_gguf_get_int (const peri_gguf *f, const char *key, int64_t *out) {
  TRY(wanted(f, key, out));
  peri_gguf_value v;
  TRY(get(f, key, false, "an integer", &v));
  return peri_gguf_int(f, &v, 0, out) && v.type != PERI_GGUF_BOOL ? PERI_OK
                                                                  : wrong(f, &v, "an integer");
}

peri_status peri_gguf_get_num (const peri_gguf *f, const char *key, double *out) {
  TRY(wanted(f, key, out));
  peri_gguf_value v;
  TRY(get(f, key, false, "a number", &v));
  return peri_gguf_num(f, &v, 0, out) && v.type != PERI_GGUF_BOOL ? PERI_OK
                                                                  : wrong(f, &v, "a number");
}

peri_status peri_gguf_get_bool (const peri_gguf *f, const char *key, bool *out) {
  TRY(wanted(f, key, out));
  peri_gguf_value v;
  TRY(get(f, key, false, "a bool", &v));
  if (v.type != PERI_GGUF_BOOL) return wrong(f, &v, "a bool");
  *out = f->header[v.offset] != 0;
  return PERI_OK;
}

peri_status peri_gguf_get_text (const peri_gguf *f, const char *key, peri_gguf_text *out) {
  TRY(wanted(f, key, out));
  peri_gguf_value v;
  TRY(get(f, key, false, "a text", &v));
  return peri_gguf_string(f, &v, out) ? PERI_OK : wrong(f, &v, "a text");
}

peri_status peri_gguf_get_array (const peri_gguf *f, const char *key, peri_gguf_type kind,
                                 peri_gguf_value *out) {
  TRY(wanted(f, key, out));
  peri_gguf_value v;
  const char *what = kind == PERI_GGUF_TEXT  ? "an array of texts"
                     : kind == PERI_GGUF_F32 ? "an array of floats"
                                             : "an array of integers";
  TRY(get(f, key, true, what, &v));
  bool floats = v.type == PERI_GGUF_F32 || v.type == PERI_GGUF_F64;
  bool good = kind == PERI_GGUF_TEXT  ? v.type == PERI_GGUF_TEXT
              : kind == PERI_GGUF_F32 ? floats
                                      : !floats && peri__gguf_size(v.type) != 0;
  if (!good) return wrong(f, &v, what);
  *out = v;
  return PERI_OK;
}

/* ---- tensors ---- */

peri_status peri_gguf_tensor (peri_gguf *f, int64_t i, peri_tensor **out) {
  if (!f) return PERI_EINVAL;
  NEED(f->ctx, out);
  *out = NULL;
  if (i < 0 || i >= f->n)
    return peri__fail(f->ctx, PERI_EINVAL, "%s: tensor %lld of %lld", f->path, (long long)i,
                      (long long)f->n);
  peri_gguf_entry e = peri_gguf_entry_at(f, i);
  int name = (int)e.name.n;
  if (!e.supported)
    return peri__fail(f->ctx, PERI_ENOSUP,
                      "%s: byte %llu: type %s of tensor \"%.*s\" is not supported", f->path,
                      (unsigned long long)f->entries[i].at, e.type, name, e.name.s);
  size_t unit = peri_dtype_size(e.dtype);
  const unsigned char *src = f->memory != NULL ? f->memory + e.offset
                             : f->map != NULL  ? (unsigned char *)f->map->base + e.offset
                                               : NULL;
  if (unit == 0) unit = 2; /* blocks hold half floats */
  if (f->map != NULL && (uintptr_t)src % unit == 0) {
    TRY(peri_import(f->ctx, e.dtype, e.ndim, e.shape, NULL, (void *)(uintptr_t)src, peri__map_drop,
                    f->map, out));
    f->map->refs++;
    return PERI_OK;
  }
  peri_tensor *t;
  peri_status s = peri_empty(f->ctx, e.dtype, e.ndim, e.shape, &t);
  if (s != PERI_OK)
    return peri__fail(f->ctx, s, "%s: tensor \"%.*s\": %s", f->path, name, e.name.s,
                      f->ctx->message);
  if (src != NULL)
    memcpy(peri_data(t), src, (size_t)e.bytes);
  else
    s = peri__read_at(f->ctx, f->fd, f->path, e.offset, peri_data(t), (size_t)e.bytes);
  if (s != PERI_OK) {
    peri_release(t);
    return s;
  }
  *out = t;
  return PERI_OK;
}
