-- cache.lua - keys and values of the positions that a causal model has read. Rows are aligned on the
-- right: row b's tokens stand in columns start[b] + 1 .. length, so that all rows grow together.
-- Keys are turned by their place in their own row, so rows can be moved to other columns as they are.
local peri = require "perilune"

--- @class perilune.models.Cache
--- @field length integer  columns in use
--- @field room integer  columns there is memory for
--- @field batch integer  rows in use
--- @field capacity integer  rows there is memory for
--- @field start perilune.Tensor?  (B) i64: unused columns before each row; nil when there are none
--- @field k perilune.Tensor[]  keys of each layer, (B, room, Hkv, Dk), stored channel by channel
--- @field v perilune.Tensor[]  values of each layer, (B, room, Hkv, Dv)
--- @field torn boolean  rows were being moved when an error came: what they hold is unknown
local Cache = {}
Cache.__index = Cache
Cache.__transient = true -- a module may hold one, which is neither trained nor saved

local M = { Cache = Cache }

--- A to-be-closed cache lets go of its memory.
function Cache:__close() self:release() end

-- Scores read keys channel by channel: (B, Hkv, D, Tmax), seen as (B, Tmax, Hkv, D). Whole columns are
-- copied in the order they are stored in.
local function by_channel(k) return k:permute { 1, 4, 2, 3 } end
local function stored(k) return k:permute { 1, 3, 4, 2 } end

-- Columns [at, at + n) of keys, as stored.
local function key_columns(k, at, n) return stored(k):narrow(4, at, n) end

-- Memory of one layer, lifted out of all scopes.
local function layer_memory(c, i, rows, room)
  local kh, kd, vh, vd = c.k_heads[i], c.k_dim[i], c.v_heads[i], c.v_dim[i]
  local k = peri.empty({ rows, kh, kd, room }, c.dtype)
  return peri.keep(by_channel(k)), peri.keep(peri.empty({ rows, room, vh, vd }, c.dtype))
end

-- The rows in use: views of the memory, or itself where all are.
local function show(self, batch)
  for i = 1, #self.all_k do
    for _, pair in ipairs { { self.k, self.all_k }, { self.v, self.all_v } } do
      local old, whole = pair[1][i], pair[2][i]
      if old and not rawequal(old, whole) then old:release() end
      pair[1][i] = batch == self.capacity and whole or peri.keep(whole:narrow(1, 1, batch))
    end
  end
  self.batch = batch
end

local function each(value, layers)
  if type(value) == "table" then return value end
  local list = {}
  for i = 1, layers do list[i] = value end
  return list
end

--- Room for `length` positions of `batch` sequences.
--- @param opts table  batch, length, layers, kv_heads and head_dim (a number, or a list with one a layer),
--- value_dim and value_heads where values differ from keys, dtype ("f32")
--- @return perilune.models.Cache
function M.new(opts)
  local layers = opts.layers
  local self = setmetatable({ length = 0, room = opts.length, capacity = opts.batch, dtype = opts.dtype or "f32",
                              k = {}, v = {}, all_k = {}, all_v = {}, torn = false }, Cache)
  self.k_heads, self.k_dim = each(opts.kv_heads, layers), each(opts.head_dim, layers)
  self.v_heads = each(opts.value_heads or opts.kv_heads, layers)
  self.v_dim = each(opts.value_dim or opts.head_dim, layers)
  for i = 1, layers do self.all_k[i], self.all_v[i] = layer_memory(self, i, opts.batch, opts.length) end
  show(self, opts.batch)
  return self
end

--- An empty cache of the same model.
--- @param batch integer
--- @param length integer
--- @return perilune.models.Cache
function Cache:like(batch, length)
  local c = setmetatable({}, Cache)
  for key, value in pairs(self) do c[key] = value end
  c.length, c.room, c.capacity, c.start, c.begins, c.torn = 0, length, batch, nil, nil, false
  c.k, c.v, c.all_k, c.all_v = {}, {}, {}, {}
  for i = 1, #self.all_k do c.all_k[i], c.all_v[i] = layer_memory(c, i, batch, length) end
  show(c, batch)
  return c
end

--- Bytes of the keys and values that there is memory for.
--- @return integer
function Cache:bytes()
  local n = 0
  for i = 1, #self.k do n = n + self.k_heads[i] * self.k_dim[i] + self.v_heads[i] * self.v_dim[i] end
  return n * self.capacity * self.room * (self.dtype == "f32" and 4 or self.dtype == "f64" and 8 or 2)
end

--- Let go of the memory now.
function Cache:release()
  show(self, self.capacity)
  for i = 1, #self.all_k do
    self.all_k[i]:release()
    self.all_v[i]:release()
  end
  if self.start then self.start:release() end
  self.k, self.v, self.all_k, self.all_v = {}, {}, {}, {}
  self.start, self.begins, self.room, self.length = nil, nil, 0, 0
end

-- ---- what a layer does with it ----------------------------------------------------------------

--- Write keys and values of new positions for layer i; `length` itself moves on with the model.
--- @param i integer
--- @param k perilune.Tensor  (B, T, Hkv, Dk)
--- @param v perilune.Tensor  (B, T, Hkv, Dv)
--- @return perilune.Tensor k  (B, length + T, Hkv, Dk): all so far
--- @return perilune.Tensor v  (B, length + T, Hkv, Dv)
function Cache:append(i, k, v)
  local time = k:size(2)
  if self.k_dim[i] == self.v_dim[i] and self.k_heads[i] == self.v_heads[i] then
    peri.kv_append_(self.k[i], self.v[i], k, v, self.length + 1)
  else
    self.k[i]:narrow(2, self.length + 1, time):copy_(k)
    self.v[i]:narrow(2, self.length + 1, time):copy_(v)
  end
  return self.k[i]:narrow(2, 1, self.length + time), self.v[i]:narrow(2, 1, self.length + time)
end

--- Rotate, append and attend for layer i, as one op: peri.attention_step_.
--- @param qkv perilune.Tensor  (B, T, Hq + 2 Hkv, D)
--- @return perilune.Tensor  (B, T, Hq, D)
function Cache:step(i, qkv, positions, inv_freq, start, rope_scale, scale, window, softcap)
  return peri.attention_step_(self.k[i], self.v[i], qkv, positions, inv_freq, start, self.length + 1, false,
    rope_scale, scale, window, softcap)
end

-- ---- rows -------------------------------------------------------------------------------------

-- Copy `n` columns of a row, both given from 1.
local function copy(to, row, at, from, other_row, from_at, n)
  if n == 0 then return end
  local scope <close> = peri.scope() -- luacheck: ignore 211
  for i = 1, #to.k do
    key_columns(to.k[i]:narrow(1, row, 1), at, n):copy_(key_columns(from.k[i]:narrow(1, other_row, 1), from_at, n))
    to.v[i]:narrow(1, row, 1):narrow(2, at, n):copy_(from.v[i]:narrow(1, other_row, 1):narrow(2, from_at, n))
  end
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

-- Other rows in other memory: list[r] is the row that becomes row r, room the columns, drop how many
-- columns go away in front.
local function rebuild(self, list, capacity, room, drop)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local used, same = self.length - drop, #list == self.batch
  for r, from in ipairs(list) do same = same and r == from end
  local rows = not same and zero_based(list)
  self.torn = true
  for i = 1, #self.k do
    local k, v = layer_memory(self, i, capacity, room)
    if used > 0 then
      local part <close> = peri.scope() -- luacheck: ignore 211
      local old_k, old_v = key_columns(self.k[i], drop + 1, used), self.v[i]:narrow(2, drop + 1, used)
      if rows then old_k, old_v = old_k:index_select(rows, 1), old_v:index_select(rows, 1) end
      key_columns(k:narrow(1, 1, #list), 1, used):copy_(old_k)
      v:narrow(1, 1, #list):narrow(2, 1, used):copy_(old_v)
    end
    if not rawequal(self.k[i], self.all_k[i]) then
      self.k[i]:release()
      self.v[i]:release()
    end
    self.all_k[i]:release()
    self.all_v[i]:release()
    self.all_k[i], self.all_v[i], self.k[i], self.v[i] = k, v, k, v
  end
  local starts, new = self:starts(), {}
  for r, from in ipairs(list) do new[r] = starts[from] - drop end
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
    for i = 1, #self.k do
      local part <close> = peri.scope() -- luacheck: ignore 211
      key_columns(self.all_k[i], 1, self.length):move_rows_(read, written)
      self.all_v[i]:narrow(2, 1, self.length):move_rows_(read, written)
    end
  end
  local starts, new = self:starts(), {}
  for r, row in ipairs(list) do new[r] = starts[row] end
  if #list ~= self.batch then show(self, #list) end
  self:set_starts(new)
  self.torn = false
end

--- Take in rows of another cache of the same model behind the rows there are: their positions then end at this
--- cache's length, too. Where they are more than fit in front, the rows there are move back.
--- @param other perilune.models.Cache
--- @param list integer[]  rows of the other; a row may occur more than once
--- @param capacity integer?  rows to have memory for where there is too little, default just enough
function Cache:append_rows(other, list, capacity)
  local n, first = other.length, self.batch + 1
  if n > self.length then self:push_back(n - self.length) end
  local needed = self.batch + #list
  if needed > self.capacity then rebuild(self, all_rows(self), math.max(needed, capacity or 0), self.room, 0) end
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local rows, at = zero_based(list), self.length - n + 1
  for i = 1, n > 0 and #self.k or 0 do -- behind the rows in use: nothing that counts is touched
    local part <close> = peri.scope() -- luacheck: ignore 211
    key_columns(self.all_k[i]:narrow(1, first, #list), at, n):copy_(key_columns(other.k[i], 1, n):index_select(rows, 1))
    self.all_v[i]:narrow(1, first, #list):narrow(2, at, n):copy_(other.v[i]:narrow(2, 1, n):index_select(rows, 1))
  end
  local starts, theirs = self:starts(), other:starts()
  for r, row in ipairs(list) do starts[first + r - 1] = theirs[row] + self.length - n end
  self.torn = true
  show(self, needed)
  self:set_starts(starts)
  self.torn = false
end

--- Repeat every row n times: prompts are prefilled once, then sampled n times.
--- @param n integer
function Cache:repeat_rows(n)
  local list = {}
  for row = 1, self.batch do
    for _ = 1, n do list[#list + 1] = row end
  end
  self:select_rows(list)
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
  for i = 1, n > 0 and #self.k or 0 do
    local part <close> = peri.scope() -- luacheck: ignore 211
    local k, v = key_columns(self.k[i], 1, n):clone(), self.v[i]:narrow(2, 1, n):clone()
    key_columns(self.k[i], by + 1, n):copy_(k)
    self.v[i]:narrow(2, by + 1, n):copy_(v)
  end
  local starts = self:starts()
  for row, s in ipairs(starts) do starts[row] = s + by end
  self.length = n + by
  self:set_starts(starts)
  self.torn = false
end

--- Take over the first `n` positions of a row as those of a cache of one row.
--- @param other perilune.models.Cache
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
--- @return perilune.models.Cache
function Cache:copy_row(row, n, room)
  local c = self:like(1, math.max(room or n, n))
  c:copy_from(self, row, n)
  return c
end

return M
