-- gpt.lua - the GPT of the benchmarks: GPT-2's layout (pre-norm, learned positions, tanh GELU, tied
-- or free head) at any size, with random weights, a training step and generation with a KV cache.
local peri = require "perilune"

local M = {}

local function param(shape, std)
  local t = std and peri.randn(shape):mul_(std) or peri.zeros(shape)
  return t:detach():requires_grad_()
end

--- @param o table  layers, dim, heads, vocab, context, tied
function M.new(o)
  local d = o.dim
  local m = { o = o, layers = {}, list = {} }
  local function add(t) m.list[#m.list + 1] = t return t end
  local function ones(n) return add(peri.ones({ n }):requires_grad_()) end
  m.wte, m.wpe = add(param({ o.vocab, d }, 0.02)), add(param({ o.context, d }, 0.02))
  for i = 1, o.layers do
    m.layers[i] = {
      g1 = ones(d), b1 = add(param { d }), qkv = add(param({ 3 * d, d }, 0.02)), qkv_b = add(param { 3 * d }),
      out = add(param({ d, d }, 0.02)), out_b = add(param { d }), g2 = ones(d), b2 = add(param { d }),
      up = add(param({ 4 * d, d }, 0.02)), up_b = add(param { 4 * d }),
      down = add(param({ d, 4 * d }, 0.02)), down_b = add(param { d }),
    }
  end
  m.gf, m.bf = ones(d), add(param { d })
  m.head = o.tied and m.wte or add(param({ o.vocab, d }, 0.02))
  return setmetatable(m, { __index = M })
end

-- The layers with small weights stored column by column, as perilune.models.llama decodes with; made
-- once, for the weights of a benchmark do not change.
function M:decoding()
  if self.fast then return self.fast end
  self.fast = {}
  for i, layer in ipairs(self.layers) do
    local copy = setmetatable({}, { __index = layer })
    for _, key in ipairs { "qkv", "out", "up", "down" } do
      local w = layer[key]
      if w:numel() <= 2 ^ 18 then copy[key] = peri.keep(w:transpose():contiguous():transpose()) end
    end
    self.fast[i] = copy
  end
  return self.fast
end

-- ids (B, T) -> hidden (B, T, D); cache: { length, k = {}, v = {} }
function M:forward(ids, cache)
  local o, past = self.o, cache and cache.length or 0
  local batch, time = ids:size(1), ids:size(2)
  local heads, head_dim = o.heads, o.dim // o.heads
  local x = self.wte:embedding(ids):add(self.wpe:narrow(1, past + 1, time))
  local y = x:layer_norm(self.layers[1].g1, self.layers[1].b1)
  for i, l in ipairs(cache and self:decoding() or self.layers) do
    local a
    local qkv = y:linear(l.qkv, l.qkv_b):reshape { batch, time, 3 * heads, head_dim }
    if cache then
      a = peri.attention_step_(cache.k[i], cache.v[i], qkv, nil, nil, nil, past + 1)
    else
      local q, k, v = qkv:unpack_qkv(heads, heads)
      a = peri.attention(q, k, v, nil, nil, true)
    end
    a = a:reshape { batch, time, o.dim }:linear(l.out, l.out_b)
    y, x = a:add_layer_norm(x, l.g2, l.b2)
    local h = y:linear(l.up, l.up_b, "gelu_tanh"):linear(l.down, l.down_b)
    local n = self.layers[i + 1]
    y, x = h:add_layer_norm(x, n and n.g1 or self.gf, n and n.b1 or self.bf)
  end
  if cache then cache.length = past + time end
  return y
end

function M:loss(ids, targets) return self:forward(ids):linear(self.head):cross_entropy(targets) end

-- Decode `n` tokens for `batch` sequences from one start token each.
function M:generate(batch, n)
  local o = self.o
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope()
  local cache = { length = 0, k = {}, v = {} }
  for i = 1, o.layers do
    cache.k[i] = peri.empty { batch, o.heads, o.dim // o.heads, n }:permute { 1, 4, 2, 3 }
    cache.v[i] = peri.empty { batch, n, o.heads, o.dim // o.heads }
  end
  local ids = peri.zeros({ batch, 1 }, "i64")
  for _ = 1, n do
    local step <close> = peri.scope()
    local logits = self:forward(ids, cache):linear(self.head)
    ids = step:keep(logits:select(2, 1):sample():unsqueeze(2))
  end
  scope:keep(ids)
  return ids
end

return M
