/*
** json_keys.c - the keys of the objects that a JSON text has open: no object has one twice. A hash
** that a text cannot foresee tells them apart, so that the time is linear in the text.
*/
#include <string.h>

#include "core/json_keys.h"

/* The decoded bytes of a key, one at a time; -1 at its end. */
typedef struct key_bytes {
  const unsigned char *s;
  unsigned char unit[4];
  int n, i;
} key_bytes;

static int key_byte (key_bytes *k) {
  if (k->i == k->n) {
    if (*k->s == '"') return -1;
    k->n = peri__json_decode(&k->s, k->unit);
    k->i = 0;
  }
  return k->unit[k->i++];
}

static bool same_key (const peri_json *p, uint32_t a, uint32_t b) {
  key_bytes x = { p->text + a + 1, { 0 }, 0, 0 }, y = { p->text + b + 1, { 0 }, 0, 0 };
  int c;
  while ((c = key_byte(&x)) == key_byte(&y))
    if (c < 0) return true;
  return false;
}

static uint64_t rotl (uint64_t x, int b) { return x << b | x >> (64 - b); }

static void sip_round (uint64_t v[4]) {
  v[0] += v[1];
  v[1] = rotl(v[1], 13);
  v[1] ^= v[0];
  v[0] = rotl(v[0], 32);
  v[2] += v[3];
  v[3] = rotl(v[3], 16);
  v[3] ^= v[2];
  v[0] += v[3];
  v[3] = rotl(v[3], 21);
  v[3] ^= v[0];
  v[2] += v[1];
  v[1] = rotl(v[1], 17);
  v[1] ^= v[2];
  v[2] = rotl(v[2], 32);
}

/* SipHash-1-3 (Aumasson and Bernstein 2012) of the decoded key at an offset. */
static size_t hash_key (const peri_json *p, uint32_t offset) {
  key_bytes k = { p->text + offset + 1, { 0 }, 0, 0 };
  const uint64_t *seed = p->keys.seed;
  uint64_t v[4] = { seed[0] ^ 0x736f6d6570736575u, seed[1] ^ 0x646f72616e646f6du,
                    seed[0] ^ 0x6c7967656e657261u, seed[1] ^ 0x7465646279746573u };
  uint64_t m = 0, n = 0;
  for (int c; (c = key_byte(&k)) >= 0;) {
    m |= (uint64_t)c << (8 * (n++ & 7));
    if ((n & 7) == 0) {
      v[3] ^= m;
      sip_round(v);
      v[0] ^= m;
      m = 0;
    }
  }
  m |= n << 56;
  v[3] ^= m;
  sip_round(v);
  v[0] ^= m;
  v[2] ^= 0xFF;
  for (int i = 0; i < 3; i++) sip_round(v);
  return (size_t)(v[0] ^ v[1] ^ v[2] ^ v[3]);
}

static void table_put (peri_json *p, uint32_t position) {
  peri_json_keys *k = &p->keys;
  size_t slot = hash_key(p, k->stack[position]) & (k->table_cap - 1);
  while (k->table[slot] != 0) slot = (slot + 1) & (k->table_cap - 1);
  k->table[slot] = position + 1;
}

static peri_status grow_keys (peri_json *p) {
  peri_json_keys *k = &p->keys;
  if (k->n == k->cap) {
    size_t cap = k->cap == 0 ? 16 : 2 * k->cap;
    uint32_t *stack = peri__realloc(p->ctx, k->stack, k->cap * sizeof *stack, cap * sizeof *stack);
    if (stack == NULL) return peri__json_no_memory(p, cap * sizeof *stack);
    k->stack = stack;
    k->cap = cap;
  }
  if (4 * (k->n + 1) > 3 * k->table_cap) {
    size_t cap = k->table_cap == 0 ? 32 : 2 * k->table_cap;
    uint32_t *table = peri__malloc(p->ctx, cap * sizeof *table);
    if (table == NULL) return peri__json_no_memory(p, cap * sizeof *table);
    memset(table, 0, cap * sizeof *table);
    peri__free(p->ctx, k->table, k->table_cap * sizeof *table);
    k->table = table;
    k->table_cap = cap;
    for (uint32_t i = 0; i < k->n; i++) table_put(p, i);
  }
  return PERI_OK;
}

peri_status peri__json_add_key (peri_json *p, uint32_t offset) {
  peri_json_keys *k = &p->keys;
  TRY(grow_keys(p));
  uint32_t base = p->base[p->depth - 1];
  size_t slot = hash_key(p, offset) & (k->table_cap - 1);
  for (uint32_t at; (at = k->table[slot]) != 0; slot = (slot + 1) & (k->table_cap - 1))
    if (at - 1 >= base && same_key(p, k->stack[at - 1], offset)) {
      int n = (int)(p->pos - offset - 2);
      return peri_json_fail(p, offset, "duplicate key \"%.*s\" (first at byte %u)",
                            n > 100 ? 100 : n, (const char *)p->text + offset + 1,
                            (unsigned)k->stack[at - 1]);
    }
  k->table[slot] = (uint32_t)k->n + 1;
  k->stack[k->n++] = offset;
  return PERI_OK;
}

/* Last in, first out, so an emptied slot never cuts the probe chain of a key that stays. */
void peri__json_drop_keys (peri_json *p, uint32_t base) {
  peri_json_keys *k = &p->keys;
  if (base == 0 && k->n > k->table_cap / 8) {
    memset(k->table, 0, k->table_cap * sizeof *k->table);
    k->n = 0;
  }
  while (k->n > base) {
    size_t slot = hash_key(p, k->stack[--k->n]) & (k->table_cap - 1);
    while (k->table[slot] != k->n + 1) slot = (slot + 1) & (k->table_cap - 1);
    k->table[slot] = 0;
  }
}
