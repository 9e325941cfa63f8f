/* pending.c - stand-ins until the parts land; never committed. */
#include "text/tokenizer.h"
#define W __attribute__((weak))
static peri_status skipv (peri_json *j) {
  peri_json_value v;
  int d = 0;
  do {
    TRY(peri_json_next(j, &v));
    d += v.type == PERI_JSON_OBJECT || v.type == PERI_JSON_ARRAY;
    d -= v.type == PERI_JSON_CLOSE;
  } while (d > 0);
  return PERI_OK;
}
W peri_status peri__normalizer_read (peri_ctx *c, peri_json *j, peri__normalizer **o) { (void)c; *o = NULL; return skipv(j); }
W peri_status peri__decoder_read (peri_ctx *c, peri_json *j, peri__decoder **o) { (void)c; *o = NULL; return skipv(j); }
W peri_status peri__postprocessor_read (peri_ctx *c, peri_json *j, peri__postprocessor **o) { (void)c; *o = NULL; return skipv(j); }
W peri_status peri__normalizer_parse (peri_ctx *c, const char *j, peri__normalizer **o) { (void)c; (void)j; *o = NULL; return PERI_OK; }
W peri_status peri__decoder_parse (peri_ctx *c, const char *j, peri__decoder **o) { (void)c; (void)j; *o = NULL; return PERI_OK; }
W peri_status peri__postprocessor_parse (peri_ctx *c, const char *j, peri__postprocessor **o) { (void)c; (void)j; *o = NULL; return PERI_OK; }
W void peri__normalizer_free (peri__normalizer *z) { (void)z; }
W void peri__decoder_free (peri__decoder *z) { (void)z; }
W void peri__postprocessor_free (peri__postprocessor *z) { (void)z; }
W peri_status peri__normalize (const peri__normalizer *z, peri__text_state *st, const char *s, size_t n, const char **o, size_t *on) { (void)z; (void)st; *o = s; *on = n; return PERI_OK; }
W const peri__part *peri__postprocessor_parts (const peri__postprocessor *p, bool pair, size_t *n) {
  static const peri__part a = { PERI__PART_A, 0, NULL, 0 };
  (void)p; (void)pair;
  *n = 1;
  return &a;
}
struct peri__decoding { peri_ctx *c; };
W peri_status peri__decoding_open (peri_ctx *c, const peri__decoder *d, peri__decoding **o) { (void)d; *o = peri__malloc(c, sizeof **o); (*o)->c = c; return PERI_OK; }
W void peri__decoding_close (peri__decoding *g) { if (g) peri__free(g->c, g, sizeof *g); }
W peri_status peri__decoding_push (peri__decoding *g, const char *t, size_t n, peri__buffer *o) {
  (void)g;
  size_t k;
  peri__buffer_reserve(o, n + 1);
  if (!peri__byte_level_unmap(t, n, o->data + o->size, &k)) return peri__buffer_put(o, t, n) ? PERI_OK : PERI_ENOMEM;
  o->size += k;
  return PERI_OK;
}
W peri_status peri__decoding_finish (peri__decoding *g, peri__buffer *o) { (void)g; (void)o; return PERI_OK; }
