-- cache.lua - what layers keep of the positions that a causal model has read: keys and values, or what a layer of
-- another kind says that it keeps. Rows are aligned on the right: row b's tokens stand in columns start[b] + 1 ..
-- length, so that all rows grow together. Keys are turned by their place in their own row, so rows can be moved to
-- other columns as they are.
local dtypes = require "perilune.dtypes"
local peri = require "perilune"
local options = require "perilune.options"

--- What one layer keeps is a list of parts { name, heads, channels, by_channel }: a tensor (B, room, heads, channels),
--- stored channel by channel where that is how it is read.
--- @class perilune.nn.Cache
--- @field length integer  columns in use
--- @field room integer  columns there is memory for
--- @field batch integer  rows in use
--- @field capacity integer  rows there is memory for
--- @field start perilune.Tensor?  (B) i64: unused columns before each row; nil when there are none
--- @field dtype string
--- @field parts table[]  of each layer
--- @field held table<string, perilune.Tensor[]>  name of a part -> tensor of each layer that has it
--- @field k perilune.Tensor[]  keys of each layer, (B, room, Hkv, Dk), stored channel by channel
--- @field v perilune.Tensor[]  values of each layer, (B, room, Hkv, Dv)
--- @field tags any[]?  what the model has to know of each row; moves with the rows
--- @field torn boolean  rows were being moved when an error came: what they hold is unknown
local Cache = { __name = "cache" }
Cache.__index = Cache
Cache.__transient = true -- a module may hold one, which is neither trained nor saved

local M = { Cache = Cache }

--- A to-be-closed cache lets go of its memory.
function Cache:__close() self:release() end

function Cache:__tostring()
  return ("cache of %d layers, %d rows, %d of %d positions, %s"):format(#self.parts, self.batch, self.length, self.room,
    self.dtype)
end

--- What a layer of attention keeps. Scores read keys channel by channel: (B, Hkv, D, room), seen as (B, room, Hkv, D).
--- @param heads integer
--- @param head_dim integer
--- @param value_heads integer?
--- @param value_dim integer?
--- @return table[]
function M.keys_and_values(heads, head_dim, value_heads, value_dim)
  return { { "k", heads, head_dim, true }, { "v", value_heads or heads, value_dim or head_dim, false } }
end

-- Columns [at, at + n) of what a part holds, in the order in which they are stored, so that whole columns are copied.
local function columns(part, t, at, n)
  if part[4] then return t:permute({ 1, 3, 4, 2 }):narrow(4, at, n) end
  return t:narrow(2, at, n)
end

-- Memory for a part, lifted out of all scopes.
local function memory(c, part, rows, room)
  local _, heads, channels, by_channel = table.unpack(part, 1, 4)
  if by_channel then
    return peri.keep(peri.empty({ rows, heads, channels, room }, c.dtype):permute { 1, 4, 2, 3 })
  end
  return peri.keep(peri.empty({ rows, room, heads, channels }, c.dtype))
end

-- fn(part, i, held, whole): held[i] is what layer i holds of a part, in the rows in use, whole[i] all of its memory.
local function each(self, fn)
  for i, parts in ipairs(self.parts) do
    for _, part in ipairs(parts) do fn(part, i, self.held[part[1]], self._whole[part[1]]) end
  end
end

-- The rows in use: views of the memory, or itself where all are.
local function show(self, batch)
  each(self, function (_, i, held, whole)
    local old = held[i]
    if old and not rawequal(old, whole[i]) then old:release() end
    held[i] = batch == self.capacity and whole[i] or peri.keep(whole[i]:narrow(1, 1, batch))
  end)
  self.batch = batch
end

--- Room for `length` positions of `batch` sequences.
--- @param opts table  batch, length, dtype ("f32"), layers: what each keeps, a list of parts; or their number, with
--- kv_heads, head_dim, and value_dim and value_heads where values differ from keys
--- @return perilune.nn.Cache
function M.new(opts)
  local layers = opts.layers
  if type(layers) == "number" then
    layers = {}
    for i = 1, opts.layers do
      layers[i] = M.keys_and_values(opts.kv_heads, opts.head_dim, opts.value_heads, opts.value_dim)
    end
  end
  local self = setmetatable({ length = 0, room = opts.length, capacity = opts.batch, dtype = opts.dtype or "f32",
    parts = layers, held = { k = {}, v = {} }, _whole = {}, torn = false }, Cache)
  for _, parts in ipairs(layers) do
    for _, part in ipairs(parts) do
      self.held[part[1]], self._whole[part[1]] = self.held[part[1]] or {}, self._whole[part[1]] or {}
    end
  end
  self.k, self.v = self.held.k, self.held.v
  each(self, function (part, i, _, whole) whole[i] = memory(self, part, opts.batch, opts.length) end)
  show(self, opts.batch)
  return self
end

--- An empty cache of the same model.
--- @param batch integer
--- @param length integer
--- @return perilune.nn.Cache
function Cache:like(batch, length)
  return M.new { batch = batch, length = length, dtype = self.dtype, layers = self.parts }
end

--- Bytes that there is memory for.
--- @return integer
function Cache:bytes()
  local n = 0
  each(self, function (part) n = n + part[2] * part[3] end)
  return dtypes.bytes(self.dtype, n * self.capacity * self.room)
end

--- Let go of the memory now.
function Cache:release()
  show(self, self.capacity)
  each(self, function (_, i, held, whole)
    whole[i]:release()
    held[i], whole[i] = nil, nil
  end)
  if self.start then self.start:release() end
  self.parts, self.start, self.begins, self.room, self.length = {}, nil, nil, 0, 0
end

--- Forget all positions.
function Cache:reset()
  self.length = 0
  self:set_starts {}
end

-- ---- what a layer does with it ----------------------------------------------------------------

-- Raise where new positions do not fit.
local function check_room(self, time)
  if self.length + time <= self.room then return end
  options.raise(("cache: %d positions and %d more, room for %d"):format(self.length, time, self.room))
end

--- Write new positions of a part of layer i; `length` itself moves on with the model.
--- @param i integer
--- @param name string
--- @param t perilune.Tensor  (B, T, heads, channels)
--- @return perilune.Tensor  (B, length + T, heads, channels): all so far
function Cache:put(i, name, t)
  local held, time = self.held[name][i], t:size(2)
  check_room(self, time)
  held:narrow(2, self.length + 1, time):copy_(t)
  return held:narrow(2, 1, self.length + time)
end

--- Write keys and values of new positions for layer i.
--- @param i integer
--- @param k perilune.Tensor  (B, T, Hkv, Dk)
--- @param v perilune.Tensor  (B, T, Hkv, Dv)
--- @return perilune.Tensor k  (B, length + T, Hkv, Dk): all so far
--- @return perilune.Tensor v  (B, length + T, Hkv, Dv)
function Cache:append(i, k, v)
  local keys, values = self.parts[i][1], self.parts[i][2]
  if keys[2] ~= values[2] or keys[3] ~= values[3] then return self:put(i, "k", k), self:put(i, "v", v) end
  local all = self.length + k:size(2)
  check_room(self, k:size(2))
  peri.kv_append_(self.k[i], self.v[i], k, v, self.length + 1)
  return self.k[i]:narrow(2, 1, all), self.v[i]:narrow(2, 1, all)
end

--- Rotate, append and attend for layer i, as one op: peri.attention_step_.
--- @param qkv perilune.Tensor  (B, T, Hq + 2 Hkv, D)
--- @return perilune.Tensor  (B, T, Hq, D)
function Cache:step(i, qkv, positions, inv_freq, start, interleaved, rope_scale, scale, window, softcap)
  return peri.attention_step_(self.k[i], self.v[i], qkv, positions, inv_freq, start, self.length + 1, interleaved,
    rope_scale, scale, window, softcap)
end

-- ---- rows -------------------------------------------------------------------------------------

-- Copy `n` columns of a row, both given from 1.
local function copy(to, row, at, from, other_row, from_at, n)
  if n == 0 then return end
  local scope <close> = peri.scope() -- luacheck: ignore 211
  each(to, function (part, i, held)
    local source = from.held[part[1]][i]:narrow(1, other_row, 1)
    columns(part, held[i]:narrow(1, row, 1), at, n):copy_(columns(part, source, from_at, n))
  end)
end

--- Unused columns before each row.
--- @return integer[]
function Cache:starts()
  if self.begins then return table.move(self.begins, 1, #self.begins, 1, {}) end
  if self.start then return self.start:tolist() end
  local list = {}
  for b = 1, self.batch do list[b] = 0 end
  return list
end

--- Say where the rows begin; all zeros become nil, the case that costs nothing.
--- @param starts integer[]|perilune.Tensor  (B) i64
function Cache:set_starts(starts)
  local any, list = false, not peri.is_tensor(starts) and starts or nil
  for _, s in ipairs(list or {}) do any = any or s ~= 0 end
  if not list then any = starts:any():item() end
  local new = any and peri.keep(list and peri.tensor(list, "i64") or starts:clone()) or nil
  if self.start then self.start:release() end
  self.start, self.begins = new, any and list and table.move(list, 1, #list, 1, {}) or nil
end

local function zero_based(list) return peri.tensor(list, "i64"):sub(1) end

-- The tags of the rows of a list.
local function pick_tags(self, list)
  if not self.tags then return end
  local tags = {}
  for r, row in ipairs(list) do tags[r] = self.tags[row] end
  self.tags = tags
end

-- Other rows in other memory: list[r] is the row that becomes row r, room the columns, drop how many
-- columns go away in front.
local function rebuild(self, list, capacity, room, drop)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local used, same = self.length - drop, #list == self.batch
  for r, from in ipairs(list) do same = same and r == from end
  local rows = not same and zero_based(list)
  self.torn = true
  each(self, function (part, i, held, whole)
    local new = memory(self, part, capacity, room)
    if used > 0 then
      local one <close> = peri.scope() -- luacheck: ignore 211
      local old = columns(part, held[i], drop + 1, used)
      columns(part, new:narrow(1, 1, #list), 1, used):copy_(rows and old:index_select(rows, 1) or old)
    end
    if not rawequal(held[i], whole[i]) then held[i]:release() end
    whole[i]:release()
    whole[i], held[i] = new, new
  end)
  local starts, new = self:starts(), {}
  for r, from in ipairs(list) do new[r] = starts[from] - drop end
  pick_tags(self, list)
  self.capacity, self.room, self.length = capacity, room, used
  show(self, #list)
  self:set_starts(new)
  self.torn = false
end

local function all_rows(self)
  local list = {}
  for row = 1, self.batch do list[row] = row end
  return list
end

--- Keep the rows of a list, in its order; a row may occur more than once or not at all. Only rows that come to
--- stand at another place are copied, and where the list fits into the memory there is, within it.
--- @param list integer[]  row numbers from 1
function Cache:select_rows(list)
  local from, to = {}, {}
  for r, row in ipairs(list) do
    if math.type(row) ~= "integer" or row < 1 or row > self.batch then
      error(("cache: there is no row %s among %d"):format(tostring(row), self.batch), 2)
    end
    if row ~= r then from[#from + 1], to[#to + 1] = row, r end
  end
  if #from == 0 and #list == self.batch then return end
  if #list > self.capacity then return rebuild(self, list, #list, self.room, 0) end
  local scope <close> = peri.scope() -- luacheck: ignore 211
  self.torn = true
  if #from > 0 and self.length > 0 then
    local read, written = zero_based(from), zero_based(to)
    each(self, function (part, i, _, whole)
      local one <close> = peri.scope() -- luacheck: ignore 211
      columns(part, whole[i], 1, self.length):move_rows_(read, written)
    end)
  end
  local starts, new = self:starts(), {}
  for r, row in ipairs(list) do new[r] = starts[row] end
  pick_tags(self, list)
  if #list ~= self.batch then show(self, #list) end
  self:set_starts(new)
  self.torn = false
end

--- Take in rows of another cache of the same model behind the rows there are: their positions then end at this
--- cache's length, too. Where they are more than fit in front, the rows there are move back.
--- @param other perilune.nn.Cache
--- @param list integer[]  rows of the other; a row may occur more than once
--- @param capacity integer?  rows to have memory for where there is too little, default just enough
function Cache:append_rows(other, list, capacity)
  local n, first = other.length, self.batch + 1
  if n > self.length then self:push_back(n - self.length) end
  local needed = self.batch + #list
  if needed > self.capacity then rebuild(self, all_rows(self), math.max(needed, capacity or 0), self.room, 0) end
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local rows, at = zero_based(list), self.length - n + 1
  if n > 0 then
    each(self, function (part, i, _, whole) -- behind the rows in use: nothing that counts is touched
      local one <close> = peri.scope() -- luacheck: ignore 211
      local theirs = columns(part, other.held[part[1]][i], 1, n)
      columns(part, whole[i]:narrow(1, first, #list), at, n):copy_(theirs:index_select(rows, 1))
    end)
  end
  local starts, theirs = self:starts(), other:starts()
  for r, row in ipairs(list) do starts[first + r - 1] = theirs[row] + self.length - n end
  self.torn = true
  if other.tags then
    local tags = table.move(self.tags or {}, 1, first - 1, 1, {})
    for r, row in ipairs(list) do tags[first + r - 1] = other.tags[row] end
    self.tags = tags
  end
  show(self, needed)
  self:set_starts(starts)
  self.torn = false
end

--- Forget the positions behind the first `length` columns.
--- @param length integer
function Cache:truncate(length)
  if length < 0 or length > self.length then
    error(("cache: cannot be cut to %d of %d columns"):format(length, self.length), 2)
  end
  self.length = length
end

--- Have memory for at least `length` columns.
--- @param length integer
function Cache:reserve(length)
  if length > self.room then rebuild(self, all_rows(self), math.max(self.batch, 1), length, 0) end
end

--- Drop the columns in front that no row uses.
--- @return integer dropped
function Cache:compact()
  local least = self.length
  for _, s in ipairs(self:starts()) do least = math.min(least, s) end
  if least > 0 then rebuild(self, all_rows(self), self.capacity, self.room, least) end
  return least
end

--- Positions of a row.
--- @param row integer
--- @return integer
function Cache:row_length(row) return self.length - self:starts()[row] end

--- Move all rows `by` columns towards the end.
--- @param by integer
function Cache:push_back(by)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  self:reserve(self.length + by)
  local n = self.length
  self.torn = true
  if n > 0 then
    each(self, function (part, i, held)
      local one <close> = peri.scope() -- luacheck: ignore 211
      columns(part, held[i], by + 1, n):copy_(columns(part, held[i], 1, n):clone())
    end)
  end
  local starts = self:starts()
  for row, s in ipairs(starts) do starts[row] = s + by end
  self.length = n + by
  self:set_starts(starts)
  self.torn = false
end

--- Take over the first `n` positions of a row as those of a cache of one row.
--- @param other perilune.nn.Cache
--- @param row integer
--- @param n integer
function Cache:copy_from(other, row, n)
  self:reserve(n)
  copy(self, 1, 1, other, row, other:starts()[row] + 1, n)
  self.length = n
end

--- The first `n` positions of a row as a cache of one row.
--- @param row integer
--- @param n integer
--- @param room integer?  columns to have memory for, default n
--- @return perilune.nn.Cache
function Cache:copy_row(row, n, room)
  local c = self:like(1, math.max(room or n, n))
  c:copy_from(self, row, n)
  return c
end

return M
