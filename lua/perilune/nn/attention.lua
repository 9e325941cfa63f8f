-- attention.lua - multi-head attention with grouped queries, rotary positions and a KV cache, the
-- feed-forward variants, and the block that joins them.

local peri = require "perilune"
local caches = require "perilune.nn.cache"
local rope = require "perilune.nn.rope"
local Module = require "perilune.nn.module"
local layers = require "perilune.nn.layers"
local acts = require "perilune.nn.activation"
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
  dropout = options.number(0, "[0, 1)", "of the output, while training"),
}

local rope_rules = {
  theta = options.number(10000, "(0, inf)", "base of the frequencies"),
  interleaved = options.boolean(false, "pairs are neighbours, not halves apart"),
}

--- Self-attention with grouped queries, rotary positions and a KV cache (Vaswani et al. 2017). q, k and v
--- are one weight: fewer, fatter products.
M.MultiHeadAttention = class("MultiHeadAttention", function(self, ...)
  local o = options.read("MultiHeadAttention", { "dim", "heads" }, attention_rules, 4, ...)
  local kv_heads = o.kv_heads or o.heads
  if o.heads % kv_heads ~= 0 then
    error(("MultiHeadAttention: %d heads do not divide into %d kv_heads"):format(o.heads, kv_heads), 3)
  end
  if not o.head_dim and o.dim % o.heads ~= 0 then
    error(("MultiHeadAttention: dim %d does not divide into %d heads"):format(o.dim, o.heads), 3)
  end
  local head_dim = o.head_dim or o.dim // o.heads
  local out_bias = o.out_bias
  if out_bias == nil then out_bias = o.bias end
  self.dim, self.heads, self.kv_heads, self.head_dim = o.dim, o.heads, kv_heads, head_dim
  self.causal, self.window, self.dropout = o.causal, o.window, o.dropout
  self.qkv = layers.Linear(o.dim, (o.heads + 2 * kv_heads) * head_dim, { bias = o.bias })
  self.out = layers.Linear(o.heads * head_dim, o.dim, { bias = out_bias })
  if o.qk_norm then
    self.q_norm = layers.RMSNorm(head_dim)
    self.k_norm = layers.RMSNorm(head_dim)
  end
  if o.rope then
    local r = options.fill("MultiHeadAttention: rope", o.rope == true and {} or o.rope, rope_rules, 4)
    self._inv_freq, self._interleaved = M.rope_frequencies(head_dim, r.theta), r.interleaved
  end
end)

options.declare(M.MultiHeadAttention, { "dim", "heads" }, attention_rules)

local forward_rules = {
  cache = options.value(options.none, "table", "of layer:cache(rows, columns), that the new positions go to"),
  start = options.value(options.none, "tensor", "(B) i64, left-pad positions of each row"),
  mask = options.value(options.none, "tensor", "see peri.attention"),
  positions = options.value(options.none, "tensor", "(T) or (B, T); default past .. past + T - 1 less start"),
}

--- @param x perilune.Tensor  (B, T, dim)
--- @param opts table?
--- @return perilune.Tensor  (B, T, dim)
function M.MultiHeadAttention:forward(x, opts)
  opts = options.fill("MultiHeadAttention:forward", opts, forward_rules)
  local batch, time = x:size(1), x:size(2)
  local cache = opts.cache
  local all = self.qkv(x):reshape { batch, time, self.heads + 2 * self.kv_heads, self.head_dim }
  local q, k, v = all:unpack_qkv(self.heads, self.kv_heads) -- (B, T, H, D)
  if self.q_norm then q, k = self.q_norm(q), self.k_norm(k) end
  if self._inv_freq then
    local past = cache and cache.length or 0
    local positions = opts.positions or peri.arange(past, past + time)
    if opts.start and not opts.positions then
      positions = positions:sub(opts.start:unsqueeze(2)):clamp(0) -- (B, T)
    end
    q = q:rope(positions, self._inv_freq, self._interleaved)
    k = k:rope(positions, self._inv_freq, self._interleaved)
  end
  if cache then
    k, v = cache:append(1, k, v)
    cache.length = cache.length + time
  end
  local a = peri.attention(q, k, v, opts.mask, opts.start,
    { causal = self.causal, window = self.window, scale = self.head_dim ^ -0.5 })
  local y = self.out(a:reshape { batch, time, self.heads * self.head_dim })
  if self.training and self.dropout > 0 then y = y:dropout(self.dropout) end
  return y
end

--- A cache for decoding with this layer: room for `length` positions of `batch` sequences.
--- @return perilune.nn.Cache
function M.MultiHeadAttention:cache(batch, length)
  return M.KVCache(batch, length, self.kv_heads, self.head_dim, self.qkv.weight.dtype)
end

function M.MultiHeadAttention:extra()
  return ("%d, heads = %d, kv_heads = %d"):format(self.dim, self.heads, self.kv_heads)
end

-- Gated variants (Shazeer 2020): h = act(gate) * up, gate and up from one product.
local gates = { swiglu = "silu", geglu = "gelu", reglu = "relu", glu = "sigmoid" }
local kinds = acts.choices({}, { "swiglu", "geglu", "reglu", "glu" })

local feed_forward_rules = {
  dim = size "of x's last dim", hidden = size "width between the two products",
  kind = options.choice("gelu", kinds, "activation; the last four are gated"),
  gated = options.boolean(false, "gate a second product with the activation, as the last four kinds do with theirs"),
  bias = options.boolean(options.none, "of both products; default true, false for gated kinds"),
  dropout = options.number(0, "[0, 1)", "of the output, while training"),
}

--- Two products with an activation between, or a gated one (Shazeer 2020).
M.FeedForward = class("FeedForward", function(self, ...)
  local o = options.read("FeedForward", { "dim", "hidden" }, feed_forward_rules, 4, ...)
  local gated = o.gated or gates[o.kind] ~= nil
  local bias = o.bias
  if bias == nil then bias = not gated end
  self.kind, self.dropout = o.kind, o.dropout
  self.gate = gated and (gates[o.kind] or o.kind) or nil -- activation of the gate
  if gated then self.up = layers.Linear(o.dim, 2 * o.hidden, { bias = bias })
  else self.up = layers.Linear(o.dim, o.hidden, { bias = bias, activation = o.kind }) end
  self.down = layers.Linear(o.hidden, o.dim, { bias = bias })
end)
options.declare(M.FeedForward, { "dim", "hidden" }, feed_forward_rules)

--- @param x perilune.Tensor  (..., dim)
--- @return perilune.Tensor  (..., dim)
function M.FeedForward:forward(x)
  local h = self.up(x)
  if self.gate then h = h:gated(self.gate) end
  local y = self.down(h)
  if self.training and self.dropout > 0 then y = y:dropout(self.dropout) end
  return y
end

function M.FeedForward:extra() return ("kind = %q"):format(self.kind) end

local block_rules = {
  ff = maybe "width of the feed-forward; default 4 dim",
  norm = options.choice("layer", { "layer", "rms" }, "LayerNorm or RMSNorm"),
  kind = options.choice("gelu", kinds, "of FeedForward"),
  gated = options.boolean(false, "of FeedForward"),
  eps = options.number(options.none, "(0, inf)", "of the norms; default theirs"),
  bias = options.boolean(options.none, "of attention and feed-forward; default theirs"),
}
for name, rule in pairs(attention_rules) do
  if name ~= "out_bias" then block_rules[name] = block_rules[name] or rule end
end

--- Pre-norm transformer block: x + attention(norm(x)), then x + ff(norm(x)).
M.Block = class("Block", function(self, ...)
  local o = options.read("Block", { "dim", "heads" }, block_rules, 4, ...)
  local Norm = o.norm == "rms" and layers.RMSNorm or layers.LayerNorm
  local given = { eps = o.eps }
  self.norm1 = Norm(o.dim, given)
  self.attention = M.MultiHeadAttention(o.dim, o.heads, {
    kv_heads = o.kv_heads, head_dim = o.head_dim, bias = o.bias, causal = o.causal, rope = o.rope,
    qk_norm = o.qk_norm, window = o.window, dropout = o.dropout,
  })
  self.norm2 = Norm(o.dim, given)
  self.ff = M.FeedForward(o.dim, o.ff or 4 * o.dim, {
    kind = o.kind, gated = o.gated, bias = o.bias, dropout = o.dropout,
  })
end)
options.declare(M.Block, { "dim", "heads" }, block_rules)

--- @param x perilune.Tensor  (B, T, dim)
--- @param opts table?  of MultiHeadAttention:forward
--- @return perilune.Tensor  (B, T, dim)
function M.Block:forward(x, opts)
  x = x:add(self.attention(self.norm1(x), opts))
  return x:add(self.ff(self.norm2(x)))
end

--- One KV cache for each attention layer below a module, by layer.
--- @param module perilune.nn.Module
--- @return table<perilune.nn.Module, perilune.nn.Cache>
function M.caches(module, batch, length)
  local out = {}
  for _, m in ipairs(module:modules()) do
    if getmetatable(m) == M.MultiHeadAttention then out[m] = m:cache(batch, length) end
  end
  return out
end

return M
