-- context.lua - what one forward pass of a causal model knows besides its input: the cache, where
-- each row begins, positions, segments of packed rows, a prefix of learned keys and values; and
-- attention under all of these.
local peri = require "perilune"
local inputs = require "perilune.models.inputs"

--- @class perilune.models.Context
--- @field decoding boolean  a cache is filled and no gradient wanted
--- @field fused boolean  peri.attention_step_ knows all that this pass needs
--- @field positions perilune.Tensor  (T) or (B, T) i64
--- @field placed boolean  the positions were given
--- @field last integer  positions that are not given are below this
--- @field tokens perilune.Tensor?  (B, T) bool: where tokens are, of whole rows with padding
local Context = {}
Context.__index = Context

local M = {}

-- First position of the segment that each position is in: (B, T) i64, equal numbers side by side.
local function begins(segments)
  local batch, time = segments:size(1), segments:size(2)
  if time == 1 then return peri.zeros({ batch, 1 }, "i64") end
  local new = segments:narrow(2, 2, time - 1):ne(segments:narrow(2, 1, time - 1)) -- (B, T - 1)
  local first = new:to("i64"):mul(peri.arange(1, time))
  return (peri.cat({ peri.zeros({ batch, 1 }, "i64"), first }, 2):cummax(2))
end

-- Where rows begin, and a mask where they have gaps. Rows of a cache end together, and it remembers
-- where they begin.
local function place_rows(self, who, ids, o, level)
  local cache, past = self.cache, self.past
  if not cache then
    local rows = inputs.rows(who, ids, o, level + 1)
    self.start, self.tokens = rows.start, rows.mask
    if rows.holes then self.mask = rows.mask:reshape { self.batch, 1, 1, self.time } end
    return
  end
  if past == 0 and not (o.start and not o.mask and not o.lengths) or o.mask then
    local columns = o.mask and past > 0 and peri.empty({ self.batch, past + self.time }, "bool") or ids
    local rows = inputs.rows(who, columns, o, level + 1)
    if rows.stop or rows.holes then
      error(who .. ": with a cache rows end together: padding goes on the left", level + 1)
    end
    self.start = rows.start
  elseif o.batch or o.lengths then
    error(who .. ": lengths are of whole rows, and the cache has their begin; give start, or a mask of all columns",
      level + 1)
  else
    self.start = o.start
  end
  if past == 0 and self.start and not cache.start then cache:set_starts(self.start) end
  self.start = self.start or cache.start
end

--- @param who string  for messages
--- @param ids perilune.Tensor  (B, T) i64
--- @param o table  of perilune.models.inputs: mask, start, lengths; cache; positions (T) or (B, T) i64;
--- segments (B, T) i64: a position sees its own segment only, which is one run of equal numbers, and positions
--- count from its begin; prefix { k =, v = }: of each layer (1 or B, Tp, Hkv, D), keys and values that every
--- position sees, as they are; collect { k = {}, v = {} }: gets the keys and values of each layer, which may be
--- the prefix of another pass
--- @param level integer  of errors
--- @return perilune.models.Context
function M.new(who, ids, o, level)
  local self = setmetatable({ cache = o.cache, prefix = o.prefix, collect = o.collect }, Context)
  self.batch, self.time = ids:size(1), ids:size(2)
  local cache = self.cache
  if cache and not cache.append then
    error(who .. ": cache is none that model:cache(rows, columns) makes", level + 1)
  end
  self.past = cache and cache.length or 0
  if cache and cache.batch ~= self.batch then
    error(("%s: %d rows, the cache has %d"):format(who, self.batch, cache.batch), level + 1)
  end
  place_rows(self, who, ids, o, level + 1)
  self.decoding = cache ~= nil and not peri.grad_enabled()
  self.fused = self.decoding and not self.prefix and not o.segments and not o.collect
  if o.positions then inputs.check_per_token(who, "positions", o.positions, self.batch, self.time, level + 1) end
  self.placed, self.last = o.positions ~= nil, self.past + self.time
  self.positions = o.positions or peri.arange(self.past, self.last) -- (T)
  if o.segments then
    if cache then error(who .. ": segments are of whole rows, not for a cache", level + 1) end
    inputs.check_per_token(who, "segments", o.segments, self.batch, self.time, level + 1)
    local segments = o.segments.ndim == 2 and o.segments or o.segments:unsqueeze(1)
    local first = begins(segments) -- (B, T)
    if self.start then first = first:maximum(self.start:unsqueeze(2)) end
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
    self:_mask_start(ahead)
  end
  return self
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

--- peri.attention with dropout of its probabilities: the scores are held.
--- @param mask perilune.Tensor?  bool (true = visible) or added, (B, Hq, Tq, Tk), sizes may be 1
--- @param start perilune.Tensor?  (B) or (B, Tq)
--- @param how table  dropout, scale, causal, window (0), softcap (0)
--- @return perilune.Tensor  (B, Tq, Hq, D)
function M.attention(q, k, v, mask, start, how)
  if how.dropout == 0 then
    return peri.attention(q, k, v, mask, start,
      { causal = how.causal, scale = how.scale, window = how.window or 0, softcap = how.softcap or 0 })
  end
  local group, keys, queries = q:size(3) // k:size(3), k:size(2), q:size(2)
  if group > 1 then k, v = k:repeat_interleave(group, 3), v:repeat_interleave(group, 3) end
  local scores = q:permute { 1, 3, 2, 4 }:matmul(k:permute { 1, 3, 4, 2 }):mul(how.scale) -- (B, H, Tq, Tk)
  if (how.softcap or 0) > 0 then scores = scores:div(how.softcap):tanh():mul(how.softcap) end
  local j, i = peri.arange(keys), peri.arange(keys - queries, keys):unsqueeze(2)
  local hidden = how.causal and j:gt(i) or peri.zeros({ 1, 1 }, "bool")
  if (how.window or 0) > 0 then hidden = hidden:logical_or(j:le(i:sub(how.window))) end
  if start then hidden = hidden:logical_or(j:lt(start:reshape { start:size(1), 1, -1, 1 })) end
  if mask and mask.dtype == "bool" then hidden = hidden:logical_or(mask:logical_not())
  elseif mask then scores = scores:add(mask) end
  -- a finite number, so that a row which sees nothing gives no NaN
  local weights = scores:masked_fill(hidden, -1e30):softmax(-1):dropout(how.dropout)
  return weights:matmul(v:permute { 1, 3, 2, 4 }):permute { 1, 3, 2, 4 }
end

--- Causal attention of layer i, new keys and values going through the cache.
--- @param i integer
--- @param q perilune.Tensor  (B, T, Hq, D)
--- @param k perilune.Tensor  (B, T, Hkv, D)
--- @param v perilune.Tensor  (B, T, Hkv, D)
--- @param how table  scale; window (0 = all); softcap (0 = none); dropout
--- @return perilune.Tensor  (B, T, Hq, D)
function Context:attend(i, q, k, v, how)
  if self.cache then k, v = self.cache:append(i, k, v) end
  if self.collect then self.collect.k[i], self.collect.v[i] = k, v end
  local prefix = self.prefix
  if prefix then
    local shape = { self.batch, -1, -1, -1 }
    k = peri.cat({ prefix.k[i]:expand(shape), k }, 2)
    v = peri.cat({ prefix.v[i]:expand(shape), v }, 2)
  end
  how.causal = true
  return M.attention(q, k, v, self.mask, self.start, how)
end

return M
