/*
** regex.c - compiling regular expressions, with memory from the context's allocator.
*/
#include "text/regex.h"
#include "text/regex_code.h"

#define PATTERN_MAX 16384 /* bytes; the longest known one (deepseek-llm) has under 2,000 */

/* The engine frees without telling sizes. */
typedef union block {
  size_t size;
  max_align_t align;
} block;

void *peri__regex_malloc (size_t n, void *heap) {
  peri__regex_heap *h = heap;
  if (n > SIZE_MAX - sizeof(block) || (h->fixed != NULL && *h->fixed)) return NULL;
  block *b = peri__malloc(h->ctx, n + sizeof *b);
  if (b == NULL) return NULL;
  b->size = n + sizeof *b;
  return b + 1;
}

void peri__regex_release (void *p, void *heap) {
  peri__regex_heap *h = heap;
  if (p == NULL) return;
  block *b = (block *)p - 1;
  peri__free(h->ctx, b, b->size);
}

static peri_status no_memory (peri_ctx *ctx) {
  return peri__fail(ctx, PERI_ENOMEM, "no memory for a regular expression");
}

static peri_status compile (peri__regex *r, pcre2_compile_context *how, const char *pattern,
                            size_t n, peri__buffer *text) {
  peri_ctx *ctx = r->heap.ctx;
  int code;
  PCRE2_SIZE at;
  if (!peri__buffer_reserve(text, n + 1)) return no_memory(ctx);
  pcre2_set_newline(how, PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(how, 2 * PERI__REGEX_NEST);
  TRY(peri__regex_translate(ctx, how, pattern, n, text));
  r->code = pcre2_compile((PCRE2_SPTR)text->data, text->size,
                          PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_USE_OFFSET_LIMIT |
                              PCRE2_NEVER_BACKSLASH_C,
                          &code, &at, how);
  if (r->code == NULL) {
    char why[128] = "";
    if (code == PCRE2_ERROR_HEAP_FAILED) return no_memory(ctx);
    pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
    return peri__fail(ctx, PERI_EFORMAT, "regular expression \"%.*s\": %s", n > 200 ? 200 : (int)n,
                      pattern, why);
  }
  /* Where no executable memory is to be had, the interpreter matches: slower, the same. */
  (void)pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
  return PERI_OK;
}

peri_status peri__regex_compile (peri_ctx *ctx, const char *pattern, size_t n, peri__regex **out) {
  peri__buffer text = { .ctx = ctx };
  pcre2_compile_context *how = NULL;
  if (n > PATTERN_MAX)
    return peri__fail(ctx, PERI_EFORMAT, "a regular expression of %zu bytes, the limit is %d", n,
                      PATTERN_MAX);
  peri__regex *r = peri__malloc(ctx, sizeof *r);
  if (r == NULL) return no_memory(ctx);
  *r = (peri__regex){ .heap = { ctx, NULL } };
  r->general = pcre2_general_context_create(peri__regex_malloc, peri__regex_release, &r->heap);
  if (r->general != NULL) how = pcre2_compile_context_create(r->general);
  peri_status s = how != NULL ? compile(r, how, pattern, n, &text) : no_memory(ctx);
  if (how != NULL) pcre2_compile_context_free(how);
  peri__buffer_free(&text);
  if (s != PERI_OK) {
    peri__regex_free(r);
    return s;
  }
  *out = r;
  return PERI_OK;
}

void peri__regex_free (peri__regex *r) {
  if (r == NULL) return;
  if (r->code != NULL) pcre2_code_free(r->code);
  if (r->general != NULL) pcre2_general_context_free(r->general);
  peri__free(r->heap.ctx, r, sizeof *r);
}
