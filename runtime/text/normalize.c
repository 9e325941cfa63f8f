/*
** normalize.c - reading normalisers of tokenizer.json and running them. Sequences are laid flat; a
** step that changes nothing hands its input on.
*/
#include <stdio.h>

#include <utf8proc.h>

#include "text/normalize_code.h"
#include "text/state.h"
#include "text/tree.h"
#include "text/unicode.h"

/* A text may grow by so much, however long the replacements that a file asks for. */
#define GROWTH 64
#define GROWTH_FIXED 65536

void peri__normalizer_free (peri__normalizer *z) {
  if (z == NULL) return;
  for (int i = 0; i < z->n; i++) {
    peri__normal_step *s = &z->step[i];
    peri__free(z->ctx, s->a, s->a_n + 1);
    peri__free(z->ctx, s->b, s->b_n + 1);
    peri__regex_free(s->re);
  }
  peri__free(z->ctx, z, sizeof *z);
}

/* ---- reading ---- */

typedef struct reader {
  peri__tree *tree;
  peri__normalizer *z;
} reader;

static peri_status add (reader *r, const peri__node *node, peri__normal_kind kind,
                        peri__normal_step **out) {
  if (r->z->n == PERI__NORMAL_STEPS)
    return peri__node_fail(r->tree, node, "a normalizer of more than %d steps", PERI__NORMAL_STEPS);
  peri__normal_step *s = &r->z->step[r->z->n++];
  *s = (peri__normal_step){ .kind = kind };
  if (out != NULL) *out = s;
  return PERI_OK;
}

static peri_status copy (reader *r, const peri__node *text, char **out, size_t *out_n) {
  char *p = peri__malloc(r->z->ctx, text->n + 1);
  if (p == NULL) return peri__fail(r->z->ctx, PERI_ENOMEM, "no memory for a normalizer");
  memcpy(p, text->s, text->n + 1);
  *out = p;
  *out_n = text->n;
  return PERI_OK;
}

static peri_status read_replace (reader *r, const peri__node *node) {
  const peri__node *pattern = peri__node_get(node, "pattern"), *text = NULL, *content = NULL;
  peri__normal_step *s = NULL;
  if (pattern == NULL) return peri__node_fail(r->tree, node, "\"pattern\" is missing here");
  TRY(peri__node_string(r->tree, node, "content", true, &content));
  TRY(peri__node_string(r->tree, pattern, "String", false, &text));
  TRY(add(r, node, PERI__REPLACE, &s));
  TRY(copy(r, content, &s->b, &s->b_n));
  if (text != NULL && text->n > 0) return copy(r, text, &s->a, &s->a_n);
  if (text == NULL) TRY(peri__node_string(r->tree, pattern, "Regex", true, &text));
  return peri__regex_compile(r->z->ctx, text->s, text->n, &s->re);
}

static peri_status read_bert (reader *r, const peri__node *node) {
  bool clean = true, chinese = true, lower = true, accents;
  TRY(peri__node_bool(r->tree, node, "clean_text", true, &clean));
  TRY(peri__node_bool(r->tree, node, "handle_chinese_chars", true, &chinese));
  TRY(peri__node_bool(r->tree, node, "lowercase", true, &lower));
  r->z->bert = node == r->tree->root;
  r->z->clean = clean;
  accents = lower; /* unless it says otherwise */
  TRY(peri__node_bool(r->tree, node, "strip_accents", false, &accents));
  if (clean) TRY(add(r, node, PERI__CLEAN, NULL));
  if (chinese) TRY(add(r, node, PERI__SPACE_CHINESE, NULL));
  if (accents) TRY(add(r, node, PERI__NFD, NULL));
  if (accents) TRY(add(r, node, PERI__STRIP_MN, NULL));
  return lower ? add(r, node, PERI__LOWERCASE, NULL) : PERI_OK;
}

/* ORDER normalizer: the names and the cases below */
enum {
  T_SEQUENCE,
  T_NFC,
  T_NFD,
  T_NFKC,
  T_NFKD,
  T_LOWERCASE,
  T_STRIP,
  T_STRIP_ACCENTS,
  T_REPLACE,
  T_PREPEND,
  T_BERT,
  T_NMT,
  T_BYTE_LEVEL,
  T_PRECOMPILED
};
static const char *const type_names[] = {
  "Sequence",       "NFC",   "NFD",          "NFKC",        "NFKD",
  "Lowercase",      "Strip", "StripAccents", "Replace",     "Prepend",
  "BertNormalizer", "Nmt",   "ByteLevel",    "Precompiled", NULL
};

static peri_status read_component (reader *r, const peri__node *node) {
  int type;
  const peri__node *e = NULL;
  peri__normal_step *s = NULL;
  TRY(peri__node_type(r->tree, node, "normalizer", type_names, &type));
  switch (type) {
  case T_SEQUENCE:
    TRY(peri__node_list(r->tree, node, "normalizers", &e));
    for (e = e->child; e != NULL; e = e->next) TRY(read_component(r, e));
    return PERI_OK;
  case T_NFC: return add(r, node, PERI__NFC, NULL);
  case T_NFD: return add(r, node, PERI__NFD, NULL);
  case T_NFKC: return add(r, node, PERI__NFKC, NULL);
  case T_NFKD: return add(r, node, PERI__NFKD, NULL);
  case T_LOWERCASE: return add(r, node, PERI__LOWERCASE, NULL);
  case T_STRIP:
    TRY(add(r, node, PERI__STRIP, &s));
    TRY(peri__node_bool(r->tree, node, "strip_left", true, &s->left));
    return peri__node_bool(r->tree, node, "strip_right", true, &s->right);
  case T_STRIP_ACCENTS: return add(r, node, PERI__STRIP_ACCENTS, NULL);
  case T_REPLACE: return read_replace(r, node);
  case T_PREPEND:
    TRY(peri__node_string(r->tree, node, "prepend", true, &e));
    TRY(add(r, node, PERI__PREPEND, &s));
    return copy(r, e, &s->a, &s->a_n);
  case T_BERT: return read_bert(r, node);
  case T_NMT: return add(r, node, PERI__NMT, NULL);
  case T_BYTE_LEVEL: return add(r, node, PERI__BYTES, NULL);
  default: /* T_PRECOMPILED; null and "" are the identity */
    TRY(peri__node_string(r->tree, node, "precompiled_charsmap", false, &e));
    if (e == NULL || e->n == 0) return PERI_OK;
    TRY(add(r, node, PERI__CHARSMAP, &s));
    return peri__charsmap_read(r->z->ctx, e->s, e->n, s);
  }
}

peri_status peri__normalizer_read (peri_ctx *ctx, peri_json *j, peri__normalizer **out) {
  peri__tree tree;
  peri__normalizer *z = NULL;
  peri_status s = peri__tree_read(ctx, j, &tree);
  if (s == PERI_OK && tree.root->type != PERI_JSON_NULL) {
    z = peri__malloc(ctx, sizeof *z);
    if (z == NULL) {
      s = peri__fail(ctx, PERI_ENOMEM, "no memory for a normalizer");
    } else {
      memset(z, 0, sizeof *z);
      z->ctx = ctx;
      s = read_component(&(reader){ &tree, z }, tree.root);
    }
    if (z != NULL && (s != PERI_OK || z->n == 0)) {
      peri__normalizer_free(z);
      z = NULL;
    }
  }
  if (s == PERI_OK) *out = z;
  peri__tree_close(&tree);
  return s;
}

peri_status peri__normalizer_parse (peri_ctx *ctx, const char *json, peri__normalizer **out) {
  peri_json j;
  peri__json_over(&j, ctx, json);
  peri_status s = peri__normalizer_read(ctx, &j, out);
  peri_json_close(&j);
  return s;
}

static const char *truth (bool b) { return b ? "true" : "false"; }

peri_status peri__normalizer_bert_settings (peri__normalizer **z, int chinese, int accents,
                                            int lower) {
  char json[160];
  peri__normalizer *made;
  if (*z == NULL || !(*z)->bert) return PERI_OK;
  snprintf(json, sizeof json,
           "{\"type\":\"BertNormalizer\",\"clean_text\":%s,\"handle_chinese_chars\":%s,"
           "\"strip_accents\":%s,\"lowercase\":%s}",
           truth((*z)->clean), truth(chinese != 0), accents < 0 ? "null" : truth(accents == 1),
           truth(lower != 0));
  TRY(peri__normalizer_parse((*z)->ctx, json, &made));
  peri__normalizer_free(*z);
  *z = made;
  return PERI_OK;
}

bool peri__normalizer_bert_facts (const peri__normalizer *z, peri__bert_facts *out) {
  *out = (peri__bert_facts){ 0 };
  if (z == NULL || !z->bert) return false;
  for (int i = 0; i < z->n; i++) {
    peri__normal_kind kind = z->step[i].kind;
    out->clean = out->clean || kind == PERI__CLEAN;
    out->chinese = out->chinese || kind == PERI__SPACE_CHINESE;
    out->accents = out->accents || kind == PERI__STRIP_MN;
    out->lower = out->lower || kind == PERI__LOWERCASE;
  }
  return true;
}

bool peri__normalizer_prepends (const peri__normalizer *z) {
  int i = 0;
  while (z != NULL && i < z->n && z->step[i].kind != PERI__PREPEND) i++;
  return z != NULL && i < z->n;
}

bool peri__normalizer_drop_prepend (peri__normalizer *z) {
  int kept = 0;
  if (z == NULL) return false;
  for (int i = 0; i < z->n; i++) {
    peri__normal_step *s = &z->step[i];
    if (s->kind == PERI__PREPEND)
      peri__free(z->ctx, s->a, s->a_n + 1);
    else
      z->step[kept++] = *s;
  }
  bool dropped = kept < z->n;
  z->n = kept;
  return dropped;
}

/* ---- character by character ---- */

static bool is_chinese (uint32_t c) { /* as BERT defines it */
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
         (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B73F) ||
         (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

#define GONE UINT32_MAX

static uint32_t nmt (uint32_t c) {
  if ((c >= 1 && c <= 8) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || c == 0x8F ||
      c == 0x9F)
    return GONE;
  if (c == 9 || c == 10 || c == 12 || c == 13 || c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
      c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD)
    return ' ';
  return c;
}

static uint32_t clean (uint32_t c) {
  if (c == '\t' || c == '\n' || c == '\r') return ' ';
  uint16_t k = peri__class(c);
  if (c == 0 || c == 0xFFFD) return GONE;
  if (k & PERI__OTHER) {
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    if (category != UTF8PROC_CATEGORY_CN) return GONE;
  }
  return k & PERI__SPACE ? ' ' : c;
}

/* What becomes of a character; GONE: nothing. */
static uint32_t map_char (peri__normal_kind kind, uint32_t c) {
  switch (kind) {
  case PERI__LOWERCASE:
    if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
    return (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
  case PERI__STRIP_ACCENTS: return peri__class(c) & PERI__M ? GONE : c;
  case PERI__STRIP_MN: return peri__class(c) & PERI__MN ? GONE : c;
  case PERI__NMT: return nmt(c);
  default: return clean(c);
  }
}

static peri_status map_text (peri__normal_run *r, peri__normal_kind kind, const char *text,
                             size_t n) {
  const unsigned char *s = (const unsigned char *)text;
  peri__buffer *out = r->out;
  size_t done = 0;
  for (size_t i = 0, len; i < n; i += len) {
    uint32_t c = peri__char_at(s + i, n - i, &len);
    bool spaced = kind == PERI__SPACE_CHINESE && is_chinese(c);
    uint32_t d = kind == PERI__SPACE_CHINESE ? c : map_char(kind, c);
    bool dotted = kind == PERI__LOWERCASE && c == 0x130; /* becomes two characters */
    if (d == c && !spaced && !dotted) continue;
    r->changed = true;
    if (!peri__buffer_reserve(out, i - done + 8)) return PERI__TEXT_NOMEM(r->st);
    peri__buffer_put(out, text + done, i - done); /* there is room */
    if (spaced) out->data[out->size++] = ' ';
    if (dotted) d = 'i';
    if (d != GONE) out->size += peri__char_put(d, out->data + out->size);
    if (dotted) out->size += peri__char_put(0x307, out->data + out->size);
    if (spaced) out->data[out->size++] = ' ';
    done = i + len;
  }
  if (r->changed && !peri__buffer_put(out, text + done, n - done)) return PERI__TEXT_NOMEM(r->st);
  return PERI_OK;
}

/* ---- the rest ---- */

static peri_status strip (peri__normal_run *r, const peri__normal_step *step, const char *text,
                          size_t n) {
  const unsigned char *s = (const unsigned char *)text;
  size_t from = 0, to = n, len;
  while (step->left && from < to &&
         peri__class(peri__char_at(s + from, to - from, &len)) & PERI__SPACE)
    from += len;
  while (step->right && to > from) {
    size_t at = peri__char_before(s, to);
    if (!(peri__class(peri__char_at(s + at, to - at, &len)) & PERI__SPACE)) break;
    to = at;
  }
  if (from == 0 && to == n) return PERI_OK;
  r->changed = true;
  return peri__buffer_put(r->out, text + from, to - from) ? PERI_OK : PERI__TEXT_NOMEM(r->st);
}

/* The next place of a string or regular expression. */
static peri_status find (const peri__normal_step *step, peri__search *search, const char *text,
                         size_t n, size_t at, bool *found, size_t *from, size_t *to) {
  *found = false;
  if (step->re != NULL) return peri__search_next(search, found, from, to);
  while (n - at >= step->a_n) {
    const char *p = memchr(text + at, (unsigned char)step->a[0], n - at - step->a_n + 1);
    if (p == NULL) return PERI_OK;
    at = (size_t)(p - text);
    if (memcmp(p, step->a, step->a_n) == 0) {
      *found = true;
      *from = at;
      *to = at + step->a_n;
      return PERI_OK;
    }
    at++;
  }
  return PERI_OK;
}

static peri_status replace (peri__normal_run *r, const peri__normal_step *step, const char *text,
                            size_t n, size_t limit) {
  peri__search search;
  size_t prev = 0, from = 0, to = 0;
  bool found;
  if (step->re != NULL) peri__search_begin(&search, step->re, r->st, text, 0, n);
  while (n > 0) {
    TRY(find(step, &search, text, n, prev, &found, &from, &to));
    if (!found) break;
    r->changed = true;
    if (!peri__buffer_put(r->out, text + prev, from - prev) ||
        !peri__buffer_put(r->out, step->b, step->b_n))
      return PERI__TEXT_NOMEM(r->st);
    if (r->out->size > limit) return peri__text_stop(r->st, PERI_EINVAL, PERI__TEXT_LONG, 0);
    prev = to;
  }
  if (r->changed && !peri__buffer_put(r->out, text + prev, n - prev))
    return PERI__TEXT_NOMEM(r->st);
  return PERI_OK;
}

static peri_status run (peri__normal_run *r, const peri__normal_step *step, const char *text,
                        size_t n, size_t limit) {
  bool ok = true;
  switch (step->kind) {
  case PERI__NFC:
  case PERI__NFD:
  case PERI__NFKC:
  case PERI__NFKD: return peri__normal_form(r, step->kind, text, n);
  case PERI__STRIP: return strip(r, step, text, n);
  case PERI__REPLACE: return replace(r, step, text, n, limit);
  case PERI__CHARSMAP: return peri__charsmap_run(r, step, text, n);
  case PERI__PREPEND:
    if (n == 0 || step->a_n == 0) return PERI_OK;
    ok = peri__buffer_put(r->out, step->a, step->a_n) && peri__buffer_put(r->out, text, n);
    break;
  case PERI__BYTES: ok = peri__byte_level_map(r->out, text, n); break;
  default: return map_text(r, step->kind, text, n);
  }
  r->changed = true;
  return ok ? PERI_OK : PERI__TEXT_NOMEM(r->st);
}

peri_status peri__normalize (const peri__normalizer *z, peri__text_state *st, const char *text,
                             size_t n, const char **out, size_t *out_n) {
  if (n > PERI__TEXT_MAX) return peri__text_stop(st, PERI_EINVAL, PERI__TEXT_LONG, 0);
  size_t limit = n > PERI__TEXT_MAX / GROWTH ? PERI__TEXT_MAX : n * GROWTH + GROWTH_FIXED;
  int buffer = 0;
  peri__work_begin(st, n);
  for (int i = 0; z != NULL && i < z->n; i++) {
    peri__normal_run r = { .st = st, .out = &st->normal[buffer] };
    r.out->size = 0;
    TRY(run(&r, &z->step[i], text, n, limit));
    if (!r.changed) continue;
    if (r.out->size > limit) return peri__text_stop(st, PERI_EINVAL, PERI__TEXT_LONG, 0);
    text = r.out->data;
    n = r.out->size;
    buffer = 1 - buffer;
  }
  *out = text;
  *out_n = n;
  return PERI_OK;
}
