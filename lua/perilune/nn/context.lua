-- context.lua - what one forward pass knows besides its input: the cache, where each row begins, positions, segments
-- of packed rows, a prefix of learned keys and values, what is added to scores, another sequence to look at; and
-- attention under all of these. One context serves every layer of the pass.
local peri = require "perilune"
local options = require "perilune.options"

--- @class perilune.nn.Context
--- @field batch integer
--- @field time integer  new positions
--- @field past integer  columns of the cache before them
--- @field decoding boolean  a cache is filled and no gradient wanted
--- @field fused boolean  peri.attention_step_ knows all that this pass needs
--- @field cache perilune.nn.Cache?
--- @field positions perilune.Tensor  (T) or (B, T) i64
--- @field placed boolean  the positions were given
--- @field place integer  the layer that reads now: which part of a cache and of a prefix is its own
--- @field last integer  positions that are not given are below this
--- @field start perilune.Tensor?  (B) or (B, T) i64: keys before it are not seen
--- @field order perilune.Tensor?  of columns behind a prefix, where rows begin later
--- @field mask perilune.Tensor?  bool (true = visible) or added to scores, (B, H, T, keys), sizes may be 1
--- @field tokens perilune.Tensor?  (B, T) bool: where tokens are, of whole rows with padding
--- @field routes perilune.Tensor?  (B, T, layers, K) i64: the experts that tokens go to, in layers that have some
--- @field source table?  another sequence: hidden (B, Ts, D) or keys, a list with { k, v } of each layer; mask
local Context = { __name = "context" }
Context.__index = Context

local M = { Context = Context }

-- First position of the segment that each position is in: (B, T) i64, equal numbers side by side.
local function begins(segments)
  local batch, time = segments:size(1), segments:size(2)
  if time == 1 then return peri.zeros({ batch, 1 }, "i64") end
  local new = segments:narrow(2, 2, time - 1):ne(segments:narrow(2, 1, time - 1)) -- (B, T - 1)
  local first = new:to("i64"):mul(peri.arange(1, time))
  return (peri.cat({ peri.zeros({ batch, 1 }, "i64"), first }, 2):cummax(2))
end

--- Raise where a tensor of integers is neither (T) nor (B, T) nor (1, T).
--- @param who string
--- @param name string
--- @param t perilune.Tensor
--- @param batch integer
--- @param time integer
function M.check_per_token(who, name, t, batch, time)
  local rows = t.ndim == 2 and t:size(1) or 1
  if t.dtype ~= "i64" or t.ndim < 1 or t.ndim > 2 or t:size(-1) ~= time or rows ~= 1 and rows ~= batch then
    options.raise(("%s: %s is %s of shape %s, expected i64 of (%d) or (%d, %d)"):format(who, name, t.dtype,
      options.shape(t), time, batch, time))
  end
end

-- One row for all is a row that all share.
local function per_token(who, name, t, batch, time)
  M.check_per_token(who, name, t, batch, time)
  return t.ndim == 2 and t:size(1) == 1 and batch > 1 and t:squeeze(1) or t
end

local function check_cache(who, cache, batch, time)
  if not cache.append then options.raise(who .. ": cache is none that model:cache(rows, columns) makes") end
  if cache.batch ~= batch then
    options.raise(("%s: %d rows, the cache has %d"):format(who, batch, cache.batch))
  end
  if cache.length + time > cache.room then
    options.raise(("%s: the cache has %d positions and gets %d more, and has room for %d"):format(who, cache.length,
      time, cache.room))
  end
end

--- @param who string  for messages
--- @param batch integer
--- @param time integer  positions of the input
--- @param o table  cache; start (B), mask, tokens, source: see the fields; positions (T) or (B, T) i64;
--- segments (T) or (B, T) i64: a position sees its own segment only, which is one run of equal numbers, and positions
--- count from its begin; prefix { k =, v = }: of each layer (1 or B, Tp, Hkv, D), keys and values that every
--- position sees, as they are; collect { k = {}, v = {} }: gets the keys and values of each layer, which may be
--- the prefix of another pass; routes (B, T, layers, K)
--- @return perilune.nn.Context
function M.new(who, batch, time, o)
  local cache = o.cache
  if cache then check_cache(who, cache, batch, time) end
  local self = setmetatable({ batch = batch, time = time, cache = cache, prefix = o.prefix, collect = o.collect,
    routes = o.routes, start = o.start, mask = o.mask, tokens = o.tokens, source = o.source, place = 1,
    past = cache and cache.length or 0 }, Context)
  self.decoding = cache ~= nil and not peri.grad_enabled()
  self.fused = self.decoding and not (self.mask or self.prefix or o.segments or o.collect)
  self.placed, self.last = o.positions ~= nil, self.past + time
  self.positions = o.positions and per_token(who, "positions", o.positions, batch, time)
    or peri.arange(self.past, self.last) -- (T)
  if o.segments then
    if cache then options.raise(who .. ": segments are of whole rows, not for a cache") end
    local segments = per_token(who, "segments", o.segments, batch, time)
    local first = begins(segments.ndim == 2 and segments or segments:unsqueeze(1)) -- (B or 1, T)
    if self.start then first = first:maximum(self.start:unsqueeze(2)) end
    if first:size(1) < batch then first = first:expand({ batch, time }):contiguous() end
    if not o.positions then self.positions = self.positions:sub(first):clamp(0) end
    self.start = first
  elseif self.start and not o.positions then
    self.positions = self.positions:sub(self.start:unsqueeze(2)):clamp(0) -- (B, T)
  end
  if self.prefix then
    local ahead = self.prefix.k[1]:size(2)
    if not o.positions then -- as PEFT does: the prefix counts
      self.positions, self.last = self.positions:add(ahead), self.last + ahead
    end
    if self.start and self.start.ndim == 1 and not self.mask then self:_order_columns(ahead)
    else self:_mask_start(ahead) end
  end
  return self
end

--- What an encoder's pass knows: which columns are tokens, and nothing of positions or what was before.
--- @param batch integer
--- @param time integer
--- @param mask perilune.Tensor?  (B, T) bool
--- @return perilune.nn.Context
function M.of_encoder(batch, time, mask)
  return setmetatable({ batch = batch, time = time, past = 0, place = 1, last = time, placed = false, decoding = false,
    fused = false, tokens = mask, mask = mask and mask:reshape { batch, 1, 1, time } }, Context)
end

-- A prefix of `ahead` keys stands between what `start` hides and the row's own keys, so that a row has the bits that it
-- has where nothing is hidden. order: which of the columns (prefix, then keys) comes where, of all rows. (B * columns)
function Context:_order_columns(ahead)
  local n, start = ahead + self.past + self.time, self.start:unsqueeze(2) -- (B, 1)
  local j = peri.arange(n)
  local from = peri.where(j:lt(start), j:add(ahead), peri.where(j:lt(start:add(ahead)), j:sub(start), j)) -- (B, n)
  self.order = from:add(peri.arange(self.batch):mul(n):unsqueeze(2)):flatten()
end

-- Keys or values behind a prefix. -- (B, ahead + keys, H, D)
function Context:_behind(prefix, t)
  t = peri.cat({ prefix:expand { self.batch, -1, -1, -1 }, t }, 2)
  if not self.order then return t end
  return t:reshape({ -1, t:size(3), t:size(4) }):index_select(self.order, 1):reshape(t.shape)
end

-- What `start` and a mask hide, as a mask, so that a prefix of `ahead` keys may stand in front.
function Context:_mask_start(ahead)
  local visible = self.mask
  if self.start then
    local start = self.start:reshape { self.start:size(1), 1, -1, 1 } -- one for a row, or for each query
    local begun = peri.arange(self.past + self.time):ge(start)        -- (B, 1, 1 or T, keys)
    visible = visible and visible:logical_and(begun) or begun
  end
  if not visible then return end
  local shape = visible.shape
  shape[4] = ahead
  self.mask = peri.cat({ peri.ones(shape, "bool"), visible }, 4)
  self.start = nil
end

--- Have something added to the scores of every layer, such as biases of distances. It goes on with the mask.
--- @param bias perilune.Tensor  (B, H, T, keys), sizes may be 1
--- @return self
function Context:add_bias(bias)
  local mask = self.mask
  if mask and mask.dtype == "bool" then -- hidden keys get -inf
    mask = peri.zeros({ 1 }):masked_fill(mask:logical_not(), -math.huge)
  end
  self.mask, self.fused = mask and bias:add(mask) or bias, false
  return self
end

--- peri.attention; with dropout of its probabilities the scores are held.
--- @param q perilune.Tensor  (B, Tq, Hq, D)
--- @param k perilune.Tensor  (B, Tk, Hkv, D)
--- @param v perilune.Tensor  (B, Tk, Hkv, D)
--- @param mask perilune.Tensor?  bool (true = visible) or added, (B, Hq, Tq, Tk), sizes may be 1
--- @param start perilune.Tensor?  (B) or (B, Tq)
--- @param how table  scale, causal, window (0 = all), softcap (0 = none), dropout (0)
--- @return perilune.Tensor  (B, Tq, Hq, D)
function M.attention(q, k, v, mask, start, how)
  local window, softcap, dropout = how.window or 0, how.softcap or 0, how.dropout or 0
  if dropout == 0 then
    return peri.attention(q, k, v, mask, start,
      { causal = how.causal, scale = how.scale, window = window, softcap = softcap })
  end
  local group, keys, queries = q:size(3) // k:size(3), k:size(2), q:size(2)
  if group > 1 then k, v = k:repeat_interleave(group, 3), v:repeat_interleave(group, 3) end
  local scores = q:permute { 1, 3, 2, 4 }:matmul(k:permute { 1, 3, 4, 2 }):mul(how.scale) -- (B, H, Tq, Tk)
  if softcap > 0 then scores = scores:div(softcap):tanh():mul(softcap) end
  local j, i = peri.arange(keys), peri.arange(keys - queries, keys):unsqueeze(2)
  local hidden = how.causal and j:gt(i) or peri.zeros({ 1, 1 }, "bool")
  if window > 0 then hidden = hidden:logical_or(j:le(i:sub(window))) end
  if start then hidden = hidden:logical_or(j:lt(start:reshape { start:size(1), 1, -1, 1 })) end
  if mask and mask.dtype == "bool" then hidden = hidden:logical_or(mask:logical_not())
  elseif mask then scores = scores:add(mask) end
  -- a finite number, so that a row which sees nothing gives no NaN
  local weights = scores:masked_fill(hidden, -1e30):softmax(-1):dropout(dropout)
  return weights:matmul(v:permute { 1, 3, 2, 4 }):permute { 1, 3, 2, 4 }
end

--- Attention of the layer that reads now, new keys and values going through the cache.
--- @param q perilune.Tensor  (B, T, Hq, D)
--- @param k perilune.Tensor  (B, T, Hkv, D)
--- @param v perilune.Tensor  (B, T, Hkv, D)
--- @param how table  scale; window (0 = all); softcap (0 = none); dropout (0)
--- @return perilune.Tensor  (B, T, Hq, D)
function Context:attend(q, k, v, how)
  local i = self.place
  if self.cache then k, v = self.cache:append(i, k, v) end
  local collect = self.collect
  if collect and collect.k then collect.k[i], collect.v[i] = k, v end
  local prefix = self.prefix
  if prefix then k, v = self:_behind(prefix.k[i], k), self:_behind(prefix.v[i], v) end
  return M.attention(q, k, v, self.mask, self.start, how)
end

-- ---- recomputation ----

--- Tensors that gradients may flow to through this pass, besides the input, as a layer sees them: peri.checkpoint
--- has to be given them.
--- @param i integer  place of the layer
--- @return perilune.Tensor? mask
--- @return perilune.Tensor? source
--- @return perilune.Tensor? prefix_k
--- @return perilune.Tensor? prefix_v
function Context:tensors(i)
  local prefix = self.prefix
  return self.mask, self.source and self.source.hidden, prefix and prefix.k[i], prefix and prefix.v[i]
end

--- This context for one layer, with other tensors in place of those that tensors(i) gave.
--- @param i integer
--- @return perilune.nn.Context
function Context:with(i, mask, source, prefix_k, prefix_v)
  local other = setmetatable({}, Context)
  for key, value in pairs(self) do other[key] = value end
  other.place, other.mask = i, mask
  if source then other.source = { hidden = source, mask = self.source.mask } end
  if prefix_k then other.prefix = { k = { [i] = prefix_k }, v = { [i] = prefix_v } } end
  return other
end

--- Every layer has read the new positions: the cache goes on behind them.
function Context:finish()
  if self.cache then self.cache.length = self.past + self.time end
end

return M
