-- cache.lua - keys and values of the positions that a causal model has read. Rows are aligned on the
-- right: row b's tokens stand in columns start[b] + 1 .. length, so that all rows grow together.
-- Keys are turned by their place in their own row, so rows can be moved to other columns as they are.
local peri = require "perilune"

--- @class perilune.models.Cache
--- @field length integer  columns in use
--- @field room integer  columns there is memory for
--- @field batch integer  rows
--- @field start perilune.Tensor?  (B) i64: unused columns before each row; nil when there are none
--- @field k perilune.Tensor[]  keys of each layer, (B, room, Hkv, Dk), stored channel by channel
--- @field v perilune.Tensor[]  values of each layer, (B, room, Hkv, Dv)
local Cache = {}
Cache.__index = Cache

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
local function layer_memory(c, i, batch, room)
  local kh, kd, vh, vd = c.k_heads[i], c.k_dim[i], c.v_heads[i], c.v_dim[i]
  local k = peri.empty({ batch, kh, kd, room }, c.dtype)
  return peri.keep(by_channel(k)), peri.keep(peri.empty({ batch, room, vh, vd }, c.dtype))
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
  local self = setmetatable({ length = 0, room = opts.length, batch = opts.batch, dtype = opts.dtype or "f32",
                              k = {}, v = {} }, Cache)
  self.k_heads, self.k_dim = each(opts.kv_heads, layers), each(opts.head_dim, layers)
  self.v_heads = each(opts.value_heads or opts.kv_heads, layers)
  self.v_dim = each(opts.value_dim or opts.head_dim, layers)
  for i = 1, layers do self.k[i], self.v[i] = layer_memory(self, i, opts.batch, opts.length) end
  return self
end

--- An empty cache of the same model.
--- @param batch integer
--- @param length integer
--- @return perilune.models.Cache
function Cache:like(batch, length)
  local c = setmetatable({}, Cache)
  for key, value in pairs(self) do c[key] = value end
  c.length, c.room, c.batch, c.start, c.k, c.v, c.shared = 0, length, batch, nil, {}, {}, nil
  for i = 1, #self.k do c.k[i], c.v[i] = layer_memory(c, i, batch, length) end
  return c
end

--- Bytes of the keys and values that there is memory for.
--- @return integer
function Cache:bytes()
  local n = 0
  for i = 1, #self.k do n = n + self.k_heads[i] * self.k_dim[i] + self.v_heads[i] * self.v_dim[i] end
  return n * self.batch * self.room * (self.dtype == "f32" and 4 or self.dtype == "f64" and 8 or 2)
end

--- Let go of the memory now.
function Cache:release()
  for i = 1, #self.k do
    self.k[i]:release()
    self.v[i]:release()
  end
  if self.start then self.start:release() end
  self.k, self.v, self.start, self.room, self.length = {}, {}, nil, 0, 0
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
  if self.start then return self.start:tolist() end
  local list = {}
  for b = 1, self.batch do list[b] = 0 end
  return list
end

--- Say where the rows begin; all zeros become nil, the case that costs nothing.
--- @param starts integer[]
function Cache:set_starts(starts)
  local any = false
  for _, s in ipairs(starts) do any = any or s ~= 0 end
  if self.start then self.start:release() end
  self.start = any and peri.keep(peri.tensor(starts, "i64")) or nil
end

-- Other rows or other room: list[r] is the row that becomes row r, room the columns, drop how many
-- columns go away in front.
local function rebuild(self, list, room, drop)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local rows, used = peri.tensor(list, "i64"):sub(1), self.length - drop
  local same = #list == self.batch
  for r, from in ipairs(list) do same = same and r == from end
  for i = 1, #self.k do
    local k, v = layer_memory(self, i, #list, room)
    if used > 0 then
      local part <close> = peri.scope() -- luacheck: ignore 211
      local old_k, old_v = key_columns(self.k[i], drop + 1, used), self.v[i]:narrow(2, drop + 1, used)
      if not same then old_k, old_v = old_k:index_select(rows, 1), old_v:index_select(rows, 1) end
      key_columns(k, 1, used):copy_(old_k)
      v:narrow(2, 1, used):copy_(old_v)
    end
    self.k[i]:release()
    self.v[i]:release()
    self.k[i], self.v[i] = k, v
  end
  local starts, new = self:starts(), {}
  for r, from in ipairs(list) do new[r] = starts[from] - drop end
  self.batch, self.room, self.length = #list, room, used
  self:set_starts(new)
end

--- Keep the rows of a list, in its order; a row may occur more than once or not at all.
--- @param list integer[]  row numbers from 1
function Cache:select_rows(list)
  for _, row in ipairs(list) do
    if math.type(row) ~= "integer" or row < 1 or row > self.batch then
      error(("cache: there is no row %s among %d"):format(tostring(row), self.batch), 2)
    end
  end
  local moved = #list ~= self.batch
  for r, from in ipairs(list) do moved = moved or r ~= from end
  if not moved then return end
  if #list ~= self.batch then return rebuild(self, list, self.room, 0) end
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local rows, n = peri.tensor(list, "i64"):sub(1), self.length
  for i = 1, n > 0 and #self.k or 0 do -- the memory stays, so that a beam costs no allocation
    local part <close> = peri.scope() -- luacheck: ignore 211
    local k, v = key_columns(self.k[i], 1, n), self.v[i]:narrow(2, 1, n)
    k:copy_(k:index_select(rows, 1))
    v:copy_(v:index_select(rows, 1))
  end
  local starts, new = self:starts(), {}
  for r, from in ipairs(list) do new[r] = starts[from] end
  self:set_starts(new)
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
  if length <= self.room then return end
  local list = {}
  for row = 1, self.batch do list[row] = row end
  rebuild(self, list, length, 0)
end

--- Drop the columns that no row of the list uses: the first rows' shared padding.
--- @param rows integer[]?  rows that matter, default all
--- @return integer dropped
function Cache:compact(rows)
  local starts, least, list = self:starts(), self.length, {}
  if rows then for _, row in ipairs(rows) do least = math.min(least, starts[row]) end
  else for _, s in ipairs(starts) do least = math.min(least, s) end end
  if least == 0 then return 0 end
  for row = 1, self.batch do list[row] = row end
  rebuild(self, list, self.room, least)
  return least
end

--- Positions of a row.
--- @param row integer
--- @return integer
function Cache:row_length(row) return self.length - self:starts()[row] end

--- Put a row of another cache of the same model in place of a row: its positions then end at this
--- cache's length. Where they are more than fit in front, this cache's rows move back.
--- @param row integer  row that is written over
--- @param other perilune.models.Cache
--- @param other_row integer
function Cache:insert(row, other, other_row)
  local first = other:starts()[other_row]
  local n = other.length - first
  if n > self.length then self:push_back(n - self.length) end
  copy(self, row, self.length - n + 1, other, other_row, first + 1, n)
  local starts = self:starts()
  starts[row] = self.length - n
  self:set_starts(starts)
end

--- Move all rows `by` columns towards the end.
--- @param by integer
function Cache:push_back(by)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  self:reserve(self.length + by)
  local n = self.length
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
