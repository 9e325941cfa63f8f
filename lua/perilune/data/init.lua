-- data - streams of rows: lazy, chained, resumable; and rows made into tensors.
--   for batch in data.list(rows):shuffle(1):batch(32) do ... end
-- A for loop over a stream is one pass over its rows; the next loop is the next pass, in a new order
-- where the stream shuffles. Called by hand, stream() gives the next row, and nil at the end of the
-- pass until restart() or a loop begins another. state() is a plain table that JSON can hold and
-- set_state() goes on from there: a resumed run sees the rows that it would have seen.

local peri = require "perilune"
local options = require "perilune.options"
local stream = require "perilune.data.stream"
local gather = require "perilune.data.gather"

local M = { Stream = stream.Stream, zip = gather.zip, idx = require("perilune.data.idx").idx }

-- ---- sources ----

local list = {
  name = "list",
  pull = function(s)
    if s._at >= #s._rows then return nil end
    s._at = s._at + 1
    return stream.row_at(s._rows, s._at)
  end,
  rewind = function(s) s._at = 0 end,
  save = function(s) return { at = s._at, rows = #s._rows } end,
  check = function(s, t) return stream.rows_problem(s._rows, t) or stream.count_problem(t, "at", #s._rows) end,
  load = function(s, t) s._at = math.tointeger(t.at) end,
}

--- The rows of a list, which may be anything but nil.
--- @param rows table
--- @return perilune.data.Stream
function M.list(rows)
  if type(rows) ~= "table" then error(("list: rows are a %s, expected a table"):format(type(rows)), 2) end
  return stream.new(list, {}, { _rows = rows, _at = 0 })
end

local function open(path, level)
  local lines, message = peri.files.lines(path)
  if not lines and level then error(message, level) end
  return lines, message
end

-- The next line that holds something, and its number.
local function next_line(s)
  local text, number
  repeat
    text, number = s._lines()
    s._line = number or s._line
  until not text or text:find "%S"
  return text
end

local jsonl = {
  name = "jsonl",
  pull = function(s)
    while true do
      local text = next_line(s)
      if not text then return nil end
      local row, message = peri.json.decode(text, { foreign = not s._strict })
      if row ~= nil or not message then return row end
      if s._bad == "error" then error(("%s:%d: %s"):format(s._path, s._line, message), 0) end
      s._dropped = s._dropped + 1
    end
  end,
  rewind = function(s) s._lines, s._line = open(s._path, 0), 0 end,
  save = function(s) return { line = s._line } end,
  check = function(s, t) -- reads up to the line, for load
    local problem = stream.count_problem(t, "line")
    if problem then return problem end
    local lines = open(s._path, 0)
    for i = 1, t.line do
      if not lines() then return ("%s has %d lines, the state is of line %d"):format(s._path, i - 1, t.line) end
    end
    s._restored, s._restored_line = lines, t.line
  end,
  load = function(s, t)
    local ready = s._restored_line == t.line and s._restored
    s._lines, s._line = ready or open(s._path, 0), math.tointeger(t.line)
    if not ready then for _ = 1, s._line do s._lines() end end
    s._restored, s._restored_line = nil, nil
  end,
}

local jsonl_rules = {
  path = options.value(options.required, "string", "JSON Lines, plain or gzipped"),
  bad = options.choice("error", { "error", "skip" },
    "what becomes of a line that is no JSON: raise, or leave it out and count it in dropped()"),
  strict = options.boolean(false, "no JSON is also what Python writes: NaN, Infinity, a byte-order mark in front"),
}

--- The objects of a JSON Lines file, plain or gzipped, read line by line, with the order of their keys. Empty
--- lines are no rows.
--- @param path string
--- @param opts table?
--- @return perilune.data.Stream|nil
--- @return string? message  when the file cannot be opened
function M.jsonl(path, opts)
  local o = options.read("jsonl", { "path" }, jsonl_rules, 3, path, opts)
  local lines, message = open(o.path)
  if not lines then return nil, message end
  return stream.new(jsonl, {}, { _path = o.path, _bad = o.bad, _strict = o.strict, _lines = lines, _line = 0 })
end
options.declare(M.jsonl, { "path" }, jsonl_rules)

-- ---- rows as tensors ----

local pad_rules = {
  value = options.number(0, "[-inf, inf]", "what stands where a list has ended"),
  side = options.choice("right", { "right", "left" }, "of a row where the padding is"),
  length = options.integer(options.none, "[0, inf)", "columns; left out: those of the longest list"),
  dtype = options.value("i64", "string", "of the first result"),
}

--- Lists of numbers of any lengths as one tensor, and a mask of what is not padding.
--- @param lists number[][]
--- @param opts table?
--- @return perilune.Tensor  (B, T)
--- @return perilune.Tensor mask  (B, T) bool
function M.pad(lists, opts)
  local o = options.fill("pad", opts, pad_rules)
  if type(lists) ~= "table" then error(("pad: lists are a %s, expected a table"):format(type(lists)), 2) end
  local width, value = math.tointeger(o.length) or 0, o.value
  for i, l in ipairs(lists) do
    if type(l) ~= "table" then error(("pad: row %d is a %s, expected a list of numbers"):format(i, type(l)), 2) end
    if not o.length then width = math.max(width, #l)
    elseif #l > width then error(("pad: row %d has %d values, length is %d"):format(i, #l, width), 2) end
  end
  local rows, mask = {}, {}
  for i, l in ipairs(lists) do
    local row, m = {}, {}
    local skip = o.side == "left" and width - #l or 0
    for t = 1, width do
      local v = l[t - skip]
      row[t], m[t] = v == nil and value or v, v ~= nil
    end
    rows[i], mask[i] = row, m
  end
  return peri.tensor(rows, o.dtype), peri.tensor(mask, "bool")
end
options.declare(M.pad, { "lists" }, pad_rules)

local function stacked(column, dtype)
  if type(column[1]) == "string" then return column end
  if not peri.is_tensor(column[1]) then return peri.tensor(column, dtype) end
  local t = peri.stack(column, 1)
  return dtype and t:to(dtype) or t
end

-- Field names of the first row, sorted; every other row must have just these.
local function fields_of(rows)
  local names, known = options.names(rows[1]), {}
  for _, name in ipairs(names) do known[name] = true end
  for i, row in ipairs(rows) do
    if type(row) ~= "table" then error(("collate: row %d is a %s, the first is a table"):format(i, type(row)), 3) end
    for _, name in ipairs(names) do
      if row[name] == nil then error(("collate: row %d has no %q, the first has"):format(i, name), 3) end
    end
    for name in pairs(row) do
      if not known[name] then error(("collate: row %d has %q, the first has not"):format(i, tostring(name)), 3) end
    end
  end
  return names
end

--- Lists of equal lengths, numbers or tensors of one shape, stacked without padding; tables of fields
--- field by field, where every row must have the same ones. Texts stay lists. Integers alone become i64.
--- @param rows table[]
--- @param dtype (string|table<string, string>)?  of everything, or of the fields that are named
--- @return perilune.Tensor|table<string, perilune.Tensor>
function M.collate(rows, dtype)
  options.argument("collate", "rows", rows, "table")
  options.argument("collate", "dtype", dtype, "string or table or nil")
  if rows[1] == nil then error("collate: there are no rows", 2) end
  local of_field = type(dtype) == "table" and dtype or nil
  if type(rows[1]) ~= "table" or rows[1][1] ~= nil then
    if of_field then error("collate: dtypes by field, but the rows have no fields", 2) end
    return stacked(rows, dtype)
  end
  local out, names = {}, fields_of(rows)
  for name in pairs(of_field or {}) do
    if rows[1][name] == nil then error("collate: dtype: " .. options.unknown("field", name, names), 2) end
  end
  for _, key in ipairs(names) do
    local column, kind = {}, dtype
    if of_field then kind = of_field[key] end
    for k, row in ipairs(rows) do column[k] = row[key] end
    local ok, made = pcall(stacked, column, kind)
    if not ok then error(("collate: %s: %s"):format(tostring(key), (tostring(made):gsub("^[^%s]+:%d+: ", ""))), 2) end
    out[key] = made
  end
  return out
end

return require "perilune.names"(M, "perilune.data")
