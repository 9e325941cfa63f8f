-- data.lua - streams of rows: lazy, chained, resumable.
--   for batch in data.list(rows):shuffle(1):batch(32) do ... end
-- A stream is called for its next row and ends with nil. state() is a plain table (numbers, strings,
-- tables of them) that JSON can hold, set_state() goes on from there: a resumed run sees the rows
-- that it would have seen. Rows themselves are never in a state.

local peri = require "perilune"

--- @class perilune.data.Stream
local Stream = {}
Stream.__index = Stream

-- next() -> row or nil; state() -> table; set_state(s).
local function stream(next_row, state, set_state)
  return setmetatable({ _next = next_row, _state = state, _set = set_state }, Stream)
end

Stream.__call = function(self) return self._next() end

--- @return table
function Stream:state() return self._state() end

--- @param s table  of state(), of a stream built in the same way over the same rows
--- @return self
function Stream:set_state(s)
  self._set(s)
  return self
end

local M = {}

--- The rows of a list.
--- @param rows table
--- @return perilune.data.Stream
function M.list(rows)
  local at = 0
  local s = stream(function()
    if at >= #rows then return nil end
    at = at + 1
    return rows[at]
  end, function() return { at = at } end, function(t) at = t.at end)
  s._rows = rows
  return s
end

--- The objects of a JSON Lines file, plain or gzipped, read line by line.
--- @param path string
--- @return perilune.data.Stream|nil
--- @return string? message
function M.jsonl(path)
  local lines, err = peri.files.lines(path)
  if not lines then return nil, err end
  local line = 0
  return stream(function()
    local text, number
    repeat
      text, number = lines()
      line = number or line
    until not text or text:find "%S"
    if not text then return nil end
    local row, message = peri.json.decode(text)
    if row == nil and message then error(("%s:%d: %s"):format(path, line, message), 0) end
    return row
  end, function() return { line = line } end, function(t)
    lines, line = assert(peri.files.lines(path)), t.line
    for _ = 1, line do lines() end
  end)
end

--- Every row of any stream as a list.
--- @return table
function Stream:collect()
  local list = {}
  for row in self do list[#list + 1] = row end
  return list
end

--- The rows of a list in random order, another one in each epoch when repeated. Only after M.list:
--- a random order needs all rows at hand.
--- @param seed integer
--- @return perilune.data.Stream
function Stream:shuffle(seed)
  local rows = self._rows
  if not rows then error("shuffle: only a stream of data.list can be shuffled", 2) end
  local epoch, at, order = 0, 0, nil
  local function draw() -- the order is a function of seed and epoch alone
    order = {}
    for i = 1, #rows do order[i] = i end
    local rng = peri.rng(seed * 1000003 + epoch)
    for i = #rows, 2, -1 do
      local j = rng:int(1, i)
      order[i], order[j] = order[j], order[i]
    end
  end
  local s = stream(function()
    if at >= #rows then
      epoch, at, order = epoch + 1, 0, nil
      return nil
    end
    if not order then draw() end
    at = at + 1
    return rows[order[at]]
  end, function() return { epoch = epoch, at = at } end, function(t)
    epoch, at, order = t.epoch, t.at, nil
  end)
  s._rewinds = true
  return s
end

--- @param fn fun(row: any): any
--- @return perilune.data.Stream
function Stream:map(fn)
  return stream(function()
    local row = self._next()
    if row == nil then return nil end
    return fn(row)
  end, self._state, self._set)
end

--- Only rows for which fn is true.
--- @param fn fun(row: any): boolean
--- @return perilune.data.Stream
function Stream:filter(fn)
  return stream(function()
    local row
    repeat row = self._next() until row == nil or fn(row)
    return row
  end, self._state, self._set)
end

--- The first n rows.
--- @param n integer
--- @return perilune.data.Stream
function Stream:take(n)
  local taken = 0
  return stream(function()
    if taken >= n then return nil end
    taken = taken + 1
    return self._next()
  end, function() return { taken = taken, of = self._state() } end, function(t)
    taken = t.taken
    self._set(t.of)
  end)
end

--- Lists of n rows; the last may be shorter unless drop_last.
--- @param n integer
--- @param opts table?  drop_last (false)
--- @return perilune.data.Stream
function Stream:batch(n, opts)
  local drop_last = opts and opts.drop_last
  local s = stream(function()
    local list = {}
    while #list < n do
      local row = self._next()
      if row == nil then break end
      list[#list + 1] = row
    end
    if #list == 0 or (drop_last and #list < n) then return nil end
    return list
  end, self._state, self._set)
  s._rewinds = self._rewinds
  return s
end

--- Begin again whenever the rows end, times times or for ever. A stream that shuffles draws a new
--- order each time, any other is set back to its first row.
--- @param times integer?
--- @return perilune.data.Stream
function Stream:repeat_(times)
  local first = self._state()
  local epoch, fresh = 0, true
  return stream(function()
    while true do
      local row = self._next()
      if row ~= nil then
        fresh = false
        return row
      end
      epoch = epoch + 1
      if fresh or (times and epoch >= times) then return nil end -- an empty stream stays empty
      if not self._rewinds then self._set(first) end
      fresh = true
    end
  end, function() return { epoch = epoch, of = self._state() } end, function(t)
    epoch, fresh = t.epoch, true
    self._set(t.of)
  end)
end

--- Rows of several streams side by side, as lists; ends with the shortest.
--- @param ... perilune.data.Stream
--- @return perilune.data.Stream
function M.zip(...)
  local parts = { ... }
  return stream(function()
    local out = {}
    for i, p in ipairs(parts) do
      out[i] = p._next()
      if out[i] == nil then return nil end
    end
    return out
  end, function()
    local s = {}
    for i, p in ipairs(parts) do s[i] = p._state() end
    return s
  end, function(t) for i, p in ipairs(parts) do p._set(t[i]) end end)
end

--- Lists of numbers of any lengths as one tensor, and a mask of what is not padding.
--- @param lists number[][]
--- @param opts table?  value (0), side ("right" or "left"), length (the longest), dtype ("i64")
--- @return perilune.Tensor  (B, T)
--- @return perilune.Tensor mask  (B, T) bool
function M.pad(lists, opts)
  local o = opts or {}
  local width, value = o.length or 0, o.value or 0
  if not o.length then for _, l in ipairs(lists) do width = math.max(width, #l) end end
  local rows, mask = {}, {}
  for i, l in ipairs(lists) do
    if #l > width then error(("pad: row %d has %d values, length is %d"):format(i, #l, width), 2) end
    local row, m = {}, {}
    local skip = o.side == "left" and width - #l or 0
    for t = 1, width do
      local v = l[t - skip]
      row[t], m[t] = v == nil and value or v, v ~= nil
    end
    rows[i], mask[i] = row, m
  end
  return peri.tensor(rows, o.dtype or "i64"), peri.tensor(mask, "bool")
end

--- Lists of equal lengths, or numbers, stacked without padding; tables of fields field by field.
--- @param rows table[]
--- @param dtype string?
--- @return perilune.Tensor|table<string, perilune.Tensor>
function M.collate(rows, dtype)
  if type(rows[1]) ~= "table" or rows[1][1] ~= nil then return peri.tensor(rows, dtype) end
  local out = {}
  for key in pairs(rows[1]) do
    local column = {}
    for i, row in ipairs(rows) do column[i] = row[key] end
    out[key] = type(column[1]) == "string" and column or peri.tensor(column, dtype)
  end
  return out
end

M.Stream = Stream
return M
