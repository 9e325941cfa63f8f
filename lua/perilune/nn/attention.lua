-- attention.lua - the one attention that layers of nn and published models share: x becomes heads of queries, keys and
-- values, these meet under what the pass knows (context.lua), and go through the last product.

local peri = require "perilune"
local caches = require "perilune.nn.cache"
local context = require "perilune.nn.context"
local rope = require "perilune.nn.rope"
local Module = require "perilune.nn.module"
local layers = require "perilune.nn.layers"
local dtypes = require "perilune.dtypes"
local options = require "perilune.options"

local class, required = Module.class, options.required

local M = {}

local function size(doc) return options.integer(required, "[1, inf)", doc) end

local cache_rules = {
  batch = size "sequences", length = size "positions that there is room for",
  kv_heads = size "heads of keys and values", head_dim = size "numbers of a head",
  dtype = options.choice("f32", dtypes.floats, "of what is kept"),
}

--- Room for the keys and values of one attention layer; layer:cache(batch, length) makes one for a layer, nn.caches
--- one for each layer of a module. print(cache) shows how much of it is used, reset() forgets all positions.
--- @param batch integer
--- @param length integer
--- @param kv_heads integer
--- @param head_dim integer
--- @param dtype string?
--- @return perilune.nn.Cache
function M.KVCache(batch, length, kv_heads, head_dim, dtype)
  local o = options.fill("KVCache", { batch = batch, length = length, kv_heads = kv_heads, head_dim = head_dim,
    dtype = dtype }, cache_rules)
  return caches.new { batch = o.batch, length = o.length, dtype = o.dtype,
    layers = { caches.keys_and_values(o.kv_heads, o.head_dim) } }
end
options.declare(M.KVCache, { "batch", "length", "kv_heads", "head_dim", "dtype" }, cache_rules)

--- Inverse frequencies of rotary positions, theta^(-2i/D) (Su et al. 2021). -- (D/2)
--- @param head_dim integer
--- @param theta number
--- @return perilune.Tensor
function M.rope_frequencies(head_dim, theta)
  return peri.tensor((rope.frequencies(head_dim, { rope_theta = theta })), "f32")
end

-- ---- self-attention ----

local function maybe(doc) return options.integer(options.none, "[1, inf)", doc) end

local attention_rules = {
  dim = size "of x's last dim", heads = size "of queries",
  kv_heads = maybe "of keys and values, which heads divide into; default heads",
  head_dim = maybe "default dim / heads",
  bias = options.boolean(false, "of the product that makes q, k and v"),
  out_bias = options.boolean(options.none, "of the last product; default bias"),
  causal = options.boolean(true, "a position sees itself and those before it only"),
  rope = options.value(false, "boolean or table", "rotary positions; { theta = 10000, interleaved = false }"),
  qk_norm = options.boolean(false, "RMSNorm of every head's q and k"),
  window = options.integer(0, "[0, inf)", "how many positions back are seen; 0 = all"),
  softcap = options.number(0, "[0, inf)", "scores s become softcap tanh(s / softcap); 0 = as they are"),
  scale = options.number(options.none, "(0, inf)", "of scores; default 1 / sqrt(head_dim)"),
  dropout = options.number(0, "[0, 1)", "of the output, while training"),
  attention_dropout = options.number(0, "[0, 1)", "of what positions count for, while training"),
}
M._attention_rules = attention_rules

local rope_rules = {
  theta = options.number(10000, "(0, inf)", "base of the frequencies"),
  interleaved = options.boolean(false, "pairs are neighbours, not halves apart"),
}

-- Sizes as the constructors of this file have them; raises for heads that do not divide.
local function head_sizes(who, o)
  local kv_heads = o.kv_heads or o.heads
  if o.heads % kv_heads ~= 0 then
    error(("%s: %d heads do not divide into %d kv_heads"):format(who, o.heads, kv_heads), 4)
  end
  if not o.head_dim and o.dim % o.heads ~= 0 then
    error(("%s: dim %d does not divide into %d heads"):format(who, o.dim, o.heads), 4)
  end
  return kv_heads, o.head_dim or o.dim // o.heads
end

--- Self-attention with grouped queries, rotary positions and a cache (Vaswani et al. 2017). q, k and v are one
--- weight: fewer, fatter products.
M.MultiHeadAttention = class("MultiHeadAttention", function(self, ...)
  local o = options.read("MultiHeadAttention", { "dim", "heads" }, attention_rules, 4, ...)
  local kv_heads, head_dim = head_sizes("MultiHeadAttention", o)
  local out_bias = o.out_bias
  if out_bias == nil then out_bias = o.bias end
  self.dim, self.heads, self.kv_heads, self.head_dim = o.dim, o.heads, kv_heads, head_dim
  self.causal, self.window, self.softcap, self.scale = o.causal, o.window, o.softcap, o.scale or head_dim ^ -0.5
  self.dropout, self.attention_dropout = o.dropout, o.attention_dropout
  self.qkv = layers.Linear(o.dim, (o.heads + 2 * kv_heads) * head_dim, { bias = o.bias })
  self.out = layers.Linear(o.heads * head_dim, o.dim, { bias = out_bias })
  if o.qk_norm then
    self.q_norm = layers.RMSNorm(head_dim)
    self.k_norm = layers.RMSNorm(head_dim)
  end
  if o.rope then
    local r = options.fill("MultiHeadAttention: rope", o.rope == true and {} or o.rope, rope_rules, 4)
    self:rotate(M.rope_frequencies(head_dim, r.theta), 1, r.interleaved)
  end
end)
options.declare(M.MultiHeadAttention, { "dim", "heads" }, attention_rules)

local Attention = M.MultiHeadAttention

-- An instance of a kind of attention with these fields; weights are put in later.
local function with_fields(self, fields)
  self.causal, self.window, self.softcap, self.dropout, self.attention_dropout = true, 0, 0, 0, 0
  for key, value in pairs(fields) do self[key] = value end
  return self
end

--- An attention whose weights are put in later.
--- @param fields table  heads, kv_heads, head_dim, scale, and what differs: causal, window, softcap, dropout,
--- attention_dropout
--- @param kind table?  a class
--- @return perilune.nn.MultiHeadAttention
function M._without_weights(fields, kind) return with_fields(Module.instance(kind or Attention), fields) end

--- Turn queries and keys by their positions.
--- @param inv_freq perilune.Tensor  (head_dim / 2)
--- @param scale number?  of cosines and sines, default 1
--- @param interleaved boolean?  pairs are neighbours, not halves apart
--- @return self
function M.MultiHeadAttention:rotate(inv_freq, scale, interleaved)
  self._inv_freq, self._rope_scale, self._interleaved = peri.keep(inv_freq), scale or 1, interleaved or false
  return self
end

--- What this layer keeps of every position: parts of a cache.
--- @return table[]
function M.MultiHeadAttention:keeps() return caches.keys_and_values(self.kv_heads, self.head_dim) end

--- Heads of queries, keys and values. -- (B, T, H, D)
--- @param x perilune.Tensor  (B, T, dim)
--- @param c perilune.nn.Context
--- @return perilune.Tensor q
--- @return perilune.Tensor k
--- @return perilune.Tensor v
function M.MultiHeadAttention:heads_of(x, c)
  local heads, kv_heads, inv_freq = self.heads, self.kv_heads, self._inv_freq
  local qkv = self.qkv:forward(x, c.decoding):reshape { c.batch, c.time, heads + 2 * kv_heads, self.head_dim }
  if inv_freq and not self.q_norm then
    return qkv:rope_qkv(c.positions, inv_freq, heads, kv_heads, self._interleaved, self._rope_scale)
  end
  local q, k, v = qkv:unpack_qkv(heads, kv_heads)
  if self.q_norm then q, k = self.q_norm:forward(q), self.k_norm:forward(k) end
  if inv_freq then
    q = q:rope(c.positions, inv_freq, self._interleaved, self._rope_scale)
    k = k:rope(c.positions, inv_freq, self._interleaved, self._rope_scale)
  end
  return q, k, v
end

--- What positions see of each other. -- (B, T, Hq, D)
--- @param x perilune.Tensor  (B, T, dim)
--- @param c perilune.nn.Context
--- @return perilune.Tensor
function M.MultiHeadAttention:attend(x, c)
  if c.fused and self.causal and not self.q_norm then -- the same bits, one op
    local inv_freq, heads = self._inv_freq, self.heads + 2 * self.kv_heads
    local qkv = self.qkv:forward(x, c.decoding):reshape { c.batch, c.time, heads, self.head_dim }
    return c.cache:step(c.place, qkv, inv_freq and c.positions, inv_freq, c.start, self._interleaved,
      self._rope_scale, self.scale, self.window, self.softcap)
  end
  local q, k, v = self:heads_of(x, c)
  return c:attend(q, k, v, { causal = self.causal, scale = self.scale, window = self.window,
    softcap = self.softcap, dropout = self.training and self.attention_dropout or 0 })
end

-- What comes out of the heads, through the last product.
local function leave(self, a, batch, time, few)
  local y = self.out:forward(a:reshape { batch, time, -1 }, few)
  if self.training and self.dropout > 0 then y = y:dropout(self.dropout) end
  return y
end

local forward_rules = {
  cache = options.value(options.none, "table", "of layer:cache(rows, columns), that the new positions go to"),
  start = options.value(options.none, "tensor", "(B) i64, left-pad positions of each row"),
  mask = options.value(options.none, "tensor", "see peri.attention"),
  positions = options.value(options.none, "tensor", "(T) or (B, T); default past .. past + T - 1 less start"),
  segments = options.value(options.none, "tensor", "(T) or (B, T): runs of equal numbers that do not see each other"),
}

-- The context of a pass over this layer alone.
local function own_context(x, given)
  local o = options.fill("MultiHeadAttention:forward", given, forward_rules, 4)
  local c = context.new("MultiHeadAttention:forward", x:size(1), x:size(2), o)
  return c
end

--- @param x perilune.Tensor  (B, T, dim)
--- @param given table?  options, or the context of a pass over several layers
--- @return perilune.Tensor  (B, T, dim)
function M.MultiHeadAttention:forward(x, given)
  local shared = getmetatable(given) == context.Context
  local c = shared and given or own_context(x, given)
  local y = leave(self, self:attend(x, c), c.batch, c.time, c.decoding)
  if not shared then c:finish() end
  return y
end

--- A cache for decoding with this layer: room for `length` positions of `batch` sequences.
--- @param batch integer
--- @param length integer
--- @return perilune.nn.Cache
function M.MultiHeadAttention:cache(batch, length)
  local o = options.fill("cache", { batch = batch, length = length }, { batch = cache_rules.batch,
    length = cache_rules.length })
  local weight = self.qkv and self.qkv.weight -- a layer of another kind may have neither
  local dtype = weight and dtypes.is_float[weight.dtype] and weight.dtype or "f32"
  return caches.new { batch = o.batch, length = o.length, dtype = dtype, layers = { self:keeps() } }
end

-- Numbers that a chain of modules takes and gives, as far as its ends say so.
function M._widths_of(first, last)
  local takes, gives = nil, nil
  if first and first._widths then takes = first:_widths() end
  if last and last._widths then gives = select(2, last:_widths()) end
  return takes, gives
end

function M.MultiHeadAttention:_widths() return M._widths_of(self.qkv, self.out) end

function M.MultiHeadAttention:extra()
  return ("%d, heads = %d, kv_heads = %d"):format(self.out.out_features, self.heads, self.kv_heads)
end

--- One cache for each attention layer below a module, by layer.
--- @param module perilune.nn.Module
--- @param batch integer
--- @param length integer
--- @return table<perilune.nn.Module, perilune.nn.Cache>
function M.caches(module, batch, length)
  local out = {}
  for _, m in ipairs(module:modules()) do
    if m.keeps then out[m] = m:cache(batch, length) end
  end
  return out
end

-- ---- cross-attention ----

local cross_rules = {
  dim = attention_rules.dim, heads = attention_rules.heads, head_dim = attention_rules.head_dim,
  kv_heads = attention_rules.kv_heads,
  source_dim = maybe "of the source's last dim; default dim",
  bias = options.boolean(false, "of the products"), scale = attention_rules.scale,
  dropout = attention_rules.dropout, attention_dropout = attention_rules.attention_dropout,
}

--- Attention of one sequence to another (Vaswani et al. 2017, section 3.2.3): queries of x, keys and values of a
--- source, such as what an encoder made of an input.
M.CrossAttention = class("CrossAttention", function(self, ...)
  local o = options.read("CrossAttention", { "dim", "heads" }, cross_rules, 4, ...)
  local kv_heads, head_dim = head_sizes("CrossAttention", o)
  self.heads, self.kv_heads, self.head_dim, self.scale = o.heads, kv_heads, head_dim, o.scale or head_dim ^ -0.5
  self.dropout, self.attention_dropout = o.dropout, o.attention_dropout
  self.q = layers.Linear(o.dim, o.heads * head_dim, { bias = o.bias })
  self.kv = layers.Linear(o.source_dim or o.dim, 2 * kv_heads * head_dim, { bias = o.bias })
  self.out = layers.Linear(o.heads * head_dim, o.dim, { bias = o.bias })
end)
options.declare(M.CrossAttention, { "dim", "heads" }, cross_rules)

local Cross = M.CrossAttention

--- Keys and values of a source, which forward takes in its place: made once for many steps.
--- @param source perilune.Tensor  (B, Ts, source_dim)
--- @return table  { k, v } -- (B, Ts, Hkv, D) each
function M.CrossAttention:keys(source)
  local kv = self.kv:forward(source):reshape { source:size(1), source:size(2), 2 * self.kv_heads, self.head_dim }
  return kv:chunk(2, 3)
end

--- Attention to keys and values that were made before.
--- @param x perilune.Tensor  (B, T, dim)
--- @param kv table  of keys(source)
--- @param mask perilune.Tensor?  as peri.attention takes it
--- @param few boolean?  few rows at a time and no gradient wanted
--- @return perilune.Tensor  (B, T, dim)
function M.CrossAttention:attend_to(x, kv, mask, few)
  local batch, time = x:size(1), x:size(2)
  local q = self.q:forward(x, few):reshape { batch, time, self.heads, self.head_dim }
  local a = context.attention(q, kv[1], kv[2], mask, nil, { causal = false, scale = self.scale,
    dropout = self.training and self.attention_dropout or 0 })
  return leave(self, a, batch, time, few)
end

local cross_forward_rules = {
  mask = options.value(options.none, "tensor", "(B, Ts) bool: where the source has a token; or as peri.attention"),
}

--- @param x perilune.Tensor  (B, T, dim)
--- @param source perilune.Tensor|table  (B, Ts, source_dim), or what keys(source) gave
--- @param opts table?  options, or the context of a pass over several layers
--- @return perilune.Tensor  (B, T, dim)
function M.CrossAttention:forward(x, source, opts)
  local shared, mask = getmetatable(opts) == context.Context
  if shared then mask = opts.source.mask
  else
    options.argument("CrossAttention:forward", "source", source, "tensor or table")
    mask = options.fill("CrossAttention:forward", opts, cross_forward_rules).mask
    if mask and mask.ndim == 2 then mask = mask:reshape { mask:size(1), 1, 1, mask:size(2) } end
  end
  local kv = peri.is_tensor(source) and self:keys(source) or source
  return (self:attend_to(x, kv, mask, shared and opts.decoding))
end
options.declare(Cross.forward, { "x", "source" }, cross_forward_rules)

function M.CrossAttention:_widths() return M._widths_of(self.q, self.out) end

function M.CrossAttention:extra() return ("%d, heads = %d"):format(self.out.out_features, self.heads) end

return M
