/*
** box.c - tensor userdata: making, sharing, releasing, charging the collector; plain numbers as
** tensors.
*/
#include <string.h>

#include "bind.h"

#define GRANULE ((size_t)1 << 20) /* growth of live bytes between two notices */
#define SMALL ((size_t)32 << 20)  /* live bytes below which garbage does not matter */

peri_box *peri__box_push (lua_State *L, peri_bind *b, int mt) {
  peri_box *box = (peri_box *)lua_newuserdatauv(L, sizeof *box, 0);
  box->t = NULL;
  box->link = NULL;
  lua_pushvalue(L, mt);
  lua_setmetatable(L, -2);
  peri__here(L, b); /* behind the allocation, which may have run finalizers */
  peri_scope *s = b->thread.now->scope;
  if (s) {
    box->next = s->first;
    box->link = &s->first;
    if (box->next) box->next->link = &box->next;
    s->first = box;
  }
  return box;
}

peri_tensor **peri__box_new (lua_State *L) {
  peri_bind *b = peri__bind(L);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_tensor);
  peri_box *box = peri__box_push(L, b, lua_gettop(L));
  lua_remove(L, -2);
  return &box->t;
}

void peri__box_share (lua_State *L, peri_tensor *t) {
  peri_tensor **out = peri__box_new(L);
  *out = peri_retain(t);
}

void peri__box_unlink (peri_box *box) {
  if (!box->link) return;
  *box->link = box->next;
  if (box->next) box->next->link = box->link;
  box->link = NULL;
}

void peri__box_release (peri_bind *b, peri_box *box) {
  peri__box_unlink(box);
  peri_tensor *t = box->t;
  box->t = NULL;
  if (!t || !b->ctx) return; /* a closed context took its tensors with it */
  peri_release(t);
  if (peri__held(b->ctx) + GRANULE < b->collect_at) b->collect_at = peri__held(b->ctx) + GRANULE;
}

/* The collector sees 40 bytes where a tensor may own gigabytes. So growth of live tensor bytes
** since the last low is presented to it as growth of the Lua heap in the same proportion, four times as
** urgently; inside a scope, where most of the growth is going to be freed without the collector,
** once is enough. In generational mode that frees what died young; tensors that died old go when
** live bytes have doubled since the last full collection. */
void peri__charge_slow (lua_State *L, peri_bind *b) {
  size_t live = peri__held(b->ctx), granule = live / 16 > GRANULE ? live / 16 : GRANULE;
  double growth = (double)(live + GRANULE - b->collect_at);
  double heap = (double)lua_gc(L, LUA_GCCOUNT);
  double kb =
      heap * (b->thread.now->scope ? 1 : 4) * growth / (double)(live > SMALL ? live : SMALL);
  b->collect_at = live + granule; /* first: finalizers that run now lower it again */
  if (lua_gc(L, LUA_GCISRUNNING) != 1) return;
  if (live > 2 * b->after_full + SMALL) {
    lua_gc(L, LUA_GCCOLLECT);
    b->after_full = peri__held(b->ctx);
  } else
    lua_gc(L, LUA_GCSTEP, kb < 1 ? 1 : kb > 1e6 ? 1000000 : (int)kb);
}

/* Before a backward pass: what no Lua variable names any more need not outlive its use in the pass. A
** full collection is cheap (30 us for the libraries alone) while the Lua heap is small. */
void peri__collect_forward (lua_State *L, peri_bind *b) {
  if (peri__held(b->ctx) > SMALL && lua_gc(L, LUA_GCCOUNT) < 8 * 1024 &&
      lua_gc(L, LUA_GCISRUNNING) == 1)
    lua_gc(L, LUA_GCCOLLECT);
}

void peri__charge (lua_State *L) {
  peri_bind *b = peri__bind(L);
  if (peri__held(b->ctx) > b->collect_at) peri__charge_slow(L, b);
}

bool peri__is_tensor (lua_State *L, int idx) { return peri__box_at(L, peri__bind(L), idx) != NULL; }

peri_tensor *peri__want_tensor (lua_State *L, int arg, const char *fn, const char *name) {
  peri_box *box = peri__box_at(L, peri__bind(L), arg);
  if (!box) peri__type_error(L, fn, arg, name, "a tensor");
  if (!box->t) luaL_error(L, "%s: argument %d: tensor was released by its scope", fn, arg);
  return box->t;
}

void peri_lua_push (lua_State *L, peri_tensor *t) {
  if (!t) {
    lua_pushnil(L);
    return;
  }
  if (t->ctx != peri__bind(L)->ctx)
    luaL_error(L, t->ctx ? "the tensor belongs to another context" : "the tensor was released");
  peri__box_share(L, t);
  peri__box_unlink((peri_box *)lua_touserdata(L, -1));
}

peri_tensor *peri_lua_to (lua_State *L, int idx) {
  if (!lua_checkstack(L, 2)) return NULL;
  idx = lua_absindex(L, idx);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &peri__key_bind);
  peri_bind *b = (peri_bind *)lua_touserdata(L, -1);
  lua_pop(L, 1);
  peri_box *box = b && b->ctx ? peri__box_at(L, b, idx) : NULL;
  return box ? box->t : NULL;
}

peri_tensor *peri_lua_check (lua_State *L, int arg) {
  peri_bind *b = peri__bind(L);
  peri_box *box = peri__box_at(L, b, arg);
  if (!box) luaL_typeerror(L, arg, "tensor");
  if (!box->t) luaL_argerror(L, arg, "tensor was released by its scope");
  return box->t;
}

peri_status peri__number (peri_bind *b, bool integer, lua_Integer i, lua_Number f, bool cached,
                          peri_tensor **out) {
  peri_dtype d = integer ? PERI_I64 : PERI_F64;
  uint64_t bits = (uint64_t)i;
  if (!integer) memcpy(&bits, &f, sizeof bits);
  peri_tensor *t = NULL;
  if (cached) {
    uint64_t h = bits * 0x9e3779b97f4a7c15u + d;
    t = b->scalar[(h >> 32) % PERI_NSCALAR];
    if (t->dtype != d || memcmp(t->data, &bits, sizeof bits) != 0) {
      if (t->refs > 1 || t->storage->refs > 1)
        t = NULL; /* a tape still needs the other number */
      else {
        t->dtype = (uint8_t)d; /* both are 8 bytes wide */
        memcpy(t->data, &bits, sizeof bits);
      }
    }
    if (t) {
      *out = peri_retain(t);
      return PERI_OK;
    }
  }
  return peri__weak(b->ctx, integer, i, f, out);
}
