-- attention.lua - multi-head attention with grouped queries, rotary positions and a KV cache, the
-- feed-forward variants, and the block that joins them.

local peri = require "perilune"
local rope = require "perilune.models.rope"
local Module = require "perilune.nn.module"
local layers = require "perilune.nn.layers"
local options = require "perilune.options"

local class, required = Module.class, options.required

local M = {}

--- Keys and values of past positions: room for `length` positions of `batch` sequences.
--- One cache serves one attention layer; nn.caches(model, batch, length) makes one for each.
local KVCache = {}
KVCache.__index = KVCache
KVCache.__name = "KVCache"

--- @param batch integer
--- @param length integer
--- @param kv_heads integer
--- @param head_dim integer
--- @param dtype string?  "f32"
function M.KVCache(batch, length, kv_heads, head_dim, dtype)
  local shape = { batch, length, kv_heads, head_dim }
  return setmetatable({
    k = peri.empty(shape, dtype or "f32"), v = peri.empty(shape, dtype or "f32"),
    length = 0, capacity = length,
  }, KVCache)
end

--- Append new positions; the keys and values so far, as views. -- k, v: (B, T, Hkv, D)
function KVCache:append(k, v)
  local time = k:size(2)
  if self.length + time > self.capacity then
    error(("KVCache: %d positions and %d more, room for %d"):format(self.length, time, self.capacity), 3)
  end
  peri.kv_append_(self.k, self.v, k, v, self.length + 1)
  self.length = self.length + time
  return self.k:narrow(2, 1, self.length), self.v:narrow(2, 1, self.length)
end

--- Forget all positions.
function KVCache:reset() self.length = 0 end

--- Inverse frequencies of rotary positions, theta^(-2i/D) (Su et al. 2021). -- (D/2)
--- @param head_dim integer
--- @param theta number
--- @return perilune.Tensor
function M.rope_frequencies(head_dim, theta)
  return peri.tensor((rope.frequencies(head_dim, { rope_theta = theta })), "f32")
end

--- Self-attention. Options: kv_heads (heads), head_dim (dim / heads), bias (false), out_bias (bias),
--- causal (true), rope (false, or true, or { theta = 10000, interleaved = false }), qk_norm (false),
--- window (0 = all), dropout (0, of the output). q, k and v are one weight: fewer, fatter products.
M.MultiHeadAttention = class("MultiHeadAttention", function(self, ...)
  local o = options.read("MultiHeadAttention", { "dim", "heads" }, {
    dim = required, heads = required, kv_heads = options.none, head_dim = options.none, bias = false,
    out_bias = options.none, causal = true, rope = false, qk_norm = false, window = 0, dropout = 0,
  }, 4, ...)
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
    local r = options.fill("MultiHeadAttention: rope", o.rope == true and {} or o.rope,
      { theta = 10000, interleaved = false }, 4)
    self._inv_freq, self._interleaved = M.rope_frequencies(head_dim, r.theta), r.interleaved
  end
end)

--- @param x perilune.Tensor  (B, T, dim)
--- @param opts table?  cache (KVCache); start (B) i64, left-pad positions of each row; mask, see
--- peri.attention; positions (T) or (B, T), default past .. past + T - 1 less start
--- @return perilune.Tensor  (B, T, dim)
function M.MultiHeadAttention:forward(x, opts)
  opts = opts or {}
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
  if cache then k, v = cache:append(k, v) end
  local a = peri.attention(q, k, v, opts.mask, opts.start,
    { causal = self.causal, window = self.window, scale = self.head_dim ^ -0.5 })
  local y = self.out(a:reshape { batch, time, self.heads * self.head_dim })
  if self.training and self.dropout > 0 then y = y:dropout(self.dropout) end
  return y
end

--- @return table KVCache
function M.MultiHeadAttention:cache(batch, length)
  return M.KVCache(batch, length, self.kv_heads, self.head_dim, self.qkv.weight.dtype)
end

function M.MultiHeadAttention:extra()
  return ("%d, heads = %d, kv_heads = %d"):format(self.dim, self.heads, self.kv_heads)
end

-- Gated variants (Shazeer 2020): h = act(gate) * up, gate and up from one product.
local gates = { swiglu = "silu", geglu = "gelu", reglu = "relu", glu = "sigmoid" }

--- Options: kind ("gelu", "gelu_tanh", "relu", "silu", or gated: "swiglu", "geglu", "reglu", "glu"),
--- bias (true; false for gated kinds), dropout (0, of the output).
M.FeedForward = class("FeedForward", function(self, ...)
  local o = options.read("FeedForward", { "dim", "hidden" },
    { dim = required, hidden = required, kind = "gelu", bias = options.none, dropout = 0 }, 4, ...)
  local gated = gates[o.kind] ~= nil
  local bias = o.bias
  if bias == nil then bias = not gated end
  self.kind, self.dropout = o.kind, o.dropout
  if gated then self.up = layers.Linear(o.dim, 2 * o.hidden, { bias = bias })
  else self.up = layers.Linear(o.dim, o.hidden, { bias = bias, activation = o.kind }) end
  self.down = layers.Linear(o.hidden, o.dim, { bias = bias })
end)

--- @param x perilune.Tensor  (..., dim)
--- @return perilune.Tensor  (..., dim)
function M.FeedForward:forward(x)
  local h = self.up(x)
  if self.kind == "swiglu" then h = h:swiglu()
  elseif gates[self.kind] then
    local half, act = h:size(-1) // 2, gates[self.kind]
    local gate, up = h:narrow(-1, 1, half), h:narrow(-1, half + 1, half)
    h = gate[act](gate):mul(up)
  end
  local y = self.down(h)
  if self.training and self.dropout > 0 then y = y:dropout(self.dropout) end
  return y
end

function M.FeedForward:extra() return ("kind = %q"):format(self.kind) end

--- Pre-norm transformer block: x + attention(norm(x)), then x + ff(norm(x)). Options: ff (4 * dim),
--- norm ("layer" or "rms"), kind (of FeedForward), eps, and those of MultiHeadAttention.
M.Block = class("Block", function(self, ...)
  local o = options.read("Block", { "dim", "heads" }, {
    dim = required, heads = required, ff = options.none, norm = "layer", kind = "gelu",
    eps = options.none, kv_heads = options.none, head_dim = options.none, bias = options.none,
    causal = true, rope = false, qk_norm = false, window = 0, dropout = 0,
  }, 4, ...)
  local Norm = o.norm == "rms" and layers.RMSNorm or layers.LayerNorm
  if o.norm ~= "rms" and o.norm ~= "layer" then
    error(("Block: norm is %q, expected \"layer\" or \"rms\""):format(tostring(o.norm)), 3)
  end
  local given = { eps = o.eps }
  self.norm1 = Norm(o.dim, given)
  self.attention = M.MultiHeadAttention(o.dim, o.heads, {
    kv_heads = o.kv_heads, head_dim = o.head_dim, bias = o.bias, causal = o.causal, rope = o.rope,
    qk_norm = o.qk_norm, window = o.window, dropout = o.dropout,
  })
  self.norm2 = Norm(o.dim, given)
  self.ff = M.FeedForward(o.dim, o.ff or 4 * o.dim, { kind = o.kind, bias = o.bias, dropout = o.dropout })
end)

--- @param x perilune.Tensor  (B, T, dim)
--- @param opts table?  of MultiHeadAttention:forward
--- @return perilune.Tensor  (B, T, dim)
function M.Block:forward(x, opts)
  x = x:add(self.attention(self.norm1(x), opts))
  return x:add(self.ff(self.norm2(x)))
end

--- One KV cache for each attention layer below a module, by layer.
--- @param module perilune.nn.Module
--- @return table<perilune.nn.Module, table>
function M.caches(module, batch, length)
  local out = {}
  for _, m in ipairs(module:modules()) do
    if getmetatable(m) == M.MultiHeadAttention then out[m] = m:cache(batch, length) end
  end
  return out
end

return M
