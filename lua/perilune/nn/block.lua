-- block.lua - the feed-forward variants, and the block of a transformer: attention and feed-forward along a residual
-- stream, with norms before them or behind them. Published models are stacks of the same block.

local peri = require "perilune"
local context = require "perilune.nn.context"
local acts = require "perilune.nn.activation"
local attention = require "perilune.nn.attention"
local Module = require "perilune.nn.module"
local layers = require "perilune.nn.layers"
local activated = require("perilune.nn.linear").activated
local options = require "perilune.options"

local class, required = Module.class, options.required

local M = {}

local function size(doc) return options.integer(required, "[1, inf)", doc) end
local function maybe(doc) return options.integer(options.none, "[1, inf)", doc) end

-- ---- feed-forward ----

-- Gated variants (Shazeer 2020): h = act(gate) * up, gate and up from one product.
local gates = { swiglu = "silu", geglu = "gelu", reglu = "relu", glu = "sigmoid" }

local kinds = acts.choices({}, { "swiglu", "geglu", "reglu", "glu" })

local feed_forward_rules = {
  dim = size "of x's last dim", hidden = size "width between the two products",
  kind = options.choice("gelu", kinds, "activation; the last four are gated"),
  gated = options.boolean(false, "gate a second product with the activation, as the last four kinds do with theirs"),
  bias = options.boolean(options.none, "of both products; default true, false for gated kinds"),
  dropout = options.number(0, "[0, 1)", "of the output, while training"),
  hidden_dropout = options.number(0, "[0, 1)", "of what is between the two products, while training"),
}

--- Two products with an activation between, or a gated one (Shazeer 2020).
M.FeedForward = class("FeedForward", function(self, ...)
  local o = options.read("FeedForward", { "dim", "hidden" }, feed_forward_rules, 4, ...)
  local gate, bias = gates[o.kind] or o.gated and o.kind or nil, o.bias
  if bias == nil then bias = gate == nil end
  self.kind, self.dropout, self.hidden_dropout = o.kind, o.dropout, o.hidden_dropout
  self.gate, self.act = gate, not gate and o.kind or nil -- activation of the gate, or of the one product
  self.up = layers.Linear(o.dim, (gate and 2 or 1) * o.hidden, { bias = bias })
  self.down = layers.Linear(o.hidden, o.dim, { bias = bias })
end)
options.declare(M.FeedForward, { "dim", "hidden" }, feed_forward_rules)

local FeedForward = M.FeedForward

--- @param x perilune.Tensor  (..., dim)
--- @param c perilune.nn.Context?
--- @return perilune.Tensor  (..., dim)
function M.FeedForward:forward(x, c)
  local few = c and c.decoding
  local h = activated(self.up, x, few, self.act)
  if self.gate then h = h:gated(self.gate) end
  if self.training and self.hidden_dropout > 0 then h = h:dropout(self.hidden_dropout) end
  local y = self.down:forward(h, few)
  if self.training and self.dropout > 0 then y = y:dropout(self.dropout) end
  return y
end

function M.FeedForward:_widths() return attention._widths_of(self.up, self.down) end

function M.FeedForward:extra() return self.kind and ("kind = %q"):format(self.kind) or "" end

-- A feed-forward whose products, up and down, are put in later; fields are act or gate, dropout, hidden_dropout.
function M._feed_forward_without_weights(fields)
  local self = Module.instance(FeedForward)
  self.dropout, self.hidden_dropout = 0, 0
  for key, value in pairs(fields or {}) do self[key] = value end
  return self
end

-- ---- blocks ----

local block_rules = {
  ff = maybe "width of the feed-forward; default 4 dim",
  norm = options.choice("layer", { "layer", "rms" }, "LayerNorm or RMSNorm"),
  norm_first = options.boolean(true, "norms before attention and feed-forward; false: behind"),
  kind = options.choice("gelu", kinds, "of FeedForward"),
  eps = options.number(options.none, "(0, inf)", "of the norms; default theirs"),
  gated = options.boolean(false, "of FeedForward"),
  bias = options.boolean(options.none, "of attention and feed-forward; default theirs"),
}
for name, rule in pairs(attention._attention_rules) do
  if name ~= "out_bias" then block_rules[name] = block_rules[name] or rule end
end

--- A transformer block: x + attention(norm(x)), then x + ff(norm(x)) (pre-norm, Xiong et al. 2020); or
--- norm(x + attention(x)), then norm(x + ff(x)) (Vaswani et al. 2017).
M.Block = class("Block", function(self, ...)
  local o = options.read("Block", { "dim", "heads" }, block_rules, 4, ...)
  local Norm = o.norm == "rms" and layers.RMSNorm or layers.LayerNorm
  local given = { eps = o.eps }
  self.norm_first = o.norm_first
  self.norm1 = Norm(o.dim, given)
  self.attention = attention.MultiHeadAttention(o.dim, o.heads, {
    kv_heads = o.kv_heads, head_dim = o.head_dim, bias = o.bias, causal = o.causal, rope = o.rope,
    qk_norm = o.qk_norm, window = o.window, softcap = o.softcap, scale = o.scale, dropout = o.dropout,
    attention_dropout = o.attention_dropout,
  })
  self.norm2 = Norm(o.dim, given)
  self.ff = FeedForward(o.dim, o.ff or 4 * o.dim, { kind = o.kind, gated = o.gated, bias = o.bias,
    dropout = o.dropout })
end)
options.declare(M.Block, { "dim", "heads" }, block_rules)

local Block = M.Block

-- A block whose parts are put in later: norm1, attention, norm2, ff; attention_norm and ff_norm of what those two
-- give; cross_norm and cross, a CrossAttention behind the first.
function M._without_parts(fields)
  local self = Module.instance(Block)
  self.norm_first = true
  for key, value in pairs(fields or {}) do self[key] = value end
  return self
end

-- What attention and feed-forward add to the stream, each behind a norm of its own where there is one.
local function attended(self, y, c)
  local h = self.attention:forward(y, c)
  return self.attention_norm and self.attention_norm:forward(h) or h
end

local function fed(self, y, c)
  local h = self.ff:forward(y, c)
  return self.ff_norm and self.ff_norm:forward(h) or h
end

-- Whether forward of a module is another than its class has: hooks are around it, or a script gave it one.
local function is_hooked(module) return rawget(module, "forward") ~= nil end

-- norm(x + h) and x + h, in one pass where nothing looks at the norm and it is one that can.
local function added(norm, h, x)
  if norm.add and not is_hooked(norm) then return norm:add(h, x) end
  x = x:add(h)
  return norm:forward(x), x
end

local function pre(self, x, c, y, after)
  y = y or self.norm1:forward(x)
  local cross, second = self.cross, self.cross and self.cross_norm or self.norm2
  y, x = added(second, attended(self, y, c), x)
  if cross then
    local source = c.source
    local h = cross:forward(y, source.keys and source.keys[c.place] or source.hidden, c)
    y, x = added(self.norm2, h, x)
  end
  local h = fed(self, y, c)
  if not after then return x:add(h) end
  y, x = added(after, h, x)
  return x, y
end

local function post(self, x, c)
  x = added(self.norm1, attended(self, x, c), x)
  x = added(self.norm2, fed(self, x, c), x)
  return x
end

--- The stream behind the block. Where `after` is given, the norm that reads the stream next, that norm of it is the
--- second result, made in the same pass, and is what the next block takes as y.
--- @param x perilune.Tensor  (B, T, dim)
--- @param c table?  options of MultiHeadAttention:forward, or the context of a pass over several blocks
--- @param y perilune.Tensor?  norm1 of x, where it was made before
--- @param after perilune.nn.Module?
--- @return perilune.Tensor x  (B, T, dim)
--- @return perilune.Tensor? y  (B, T, dim)
function M.Block:forward(x, c, y, after)
  local run = self.norm_first and pre or post
  if not (self._checkpointing and peri.grad_enabled()) then return run(self, x, c, y, after) end
  if getmetatable(c) ~= context.Context then
    return peri.checkpoint(function (a, b) return run(self, a, c, b, after) end, x, y)
  end
  local place, collect = c.place, c.collect
  if not collect then
    return peri.checkpoint(function (a, b, ...) return run(self, a, c:with(place, ...), b, after) end, x, y,
      c:tensors(place))
  end
  local k, v
  x, k, v, y = peri.checkpoint(function (a, b, ...) -- what is collected is a result: gradients come back to it
    local inside, own = c:with(place, ...), { k = {}, v = {} }
    inside.collect = own
    a, b = run(self, a, inside, b, after)
    return a, own.k[place], own.v[place], b
  end, x, y, c:tensors(place))
  collect.k[place], collect.v[place] = k, v
  return x, y
end

--- How many numbers the stream has, in and out.
function M.Block:_widths() return attention._widths_of(self.attention, self.attention) end

--- Compute the inside again in the backward pass instead of keeping it.
--- @param on boolean?  true
--- @return self
function M.Block:checkpointing(on)
  self._checkpointing = on ~= false
  return self
end

--- A pass over blocks, or other modules from (B, T, dim) to the same, which are called with x and the context. The norm
--- that comes next is made in the same pass as the sum before it, unless a hook wants to see that sum.
--- @param blocks perilune.nn.Module[]
--- @param x perilune.Tensor  (B, T, dim)
--- @param c perilune.nn.Context
--- @param last perilune.nn.Module?  the norm behind them all, of blocks that have theirs first
--- @return perilune.Tensor  (B, T, dim): normed by that
function M._run(blocks, x, c, last)
  local y
  for i = 1, #blocks do
    local block, next_block = blocks[i], blocks[i + 1]
    local after = last
    if next_block then after = next_block.norm_first and not is_hooked(next_block) and next_block.norm1 or nil end
    if is_hooked(block) then after = nil end
    c.place = i
    if block.norm_first ~= nil then x, y = block:forward(x, c, y, after) else x, y = block:forward(x, c), nil end
  end
  if not last then return x end
  return y or last:forward(x)
end

return M
