-- gather.lua - the combinators that read more than one row for one: batch, zip, shuffle. What they have
-- read when a row below raises is not lost: the next call goes on with it, and a state of that moment
-- begins where they began.

local peri = require "perilune"
local options = require "perilune.options"
local stream = require "perilune.data.stream"

local Stream, M = stream.Stream, {}

local function states_of(list)
  local out = {}
  for i, s in ipairs(list) do out[i] = stream.state_of(s) end
  return out
end

-- A gathering begins: the rows so far, and where it began for a state that falls between.
local function gather(s)
  if not s._partial then s._partial, s._start = {}, states_of(s._of) end
  return s._partial
end

local function save_gathered(s) return { of = s._partial and s._start or nil } end

local function forget_gathered(s) s._partial = nil end

local batch = {
  name = "batch",
  pull = function(s)
    local list, inner = gather(s), s._of[1]
    while #list < s._n do
      local row = stream.advance_one(inner, "batch")
      if row == nil then break end
      list[#list + 1] = row
    end
    s._partial = nil
    if #list == 0 then return nil end
    if s._drop_last and #list < s._n then
      s._dropped = s._dropped + #list
      return nil
    end
    return list
  end,
  rewind = forget_gathered, save = save_gathered, load = forget_gathered,
}

local batch_rules = {
  n = options.integer(options.required, "[1, inf)", "rows of a batch"),
  drop_last = options.boolean(false, "leave out the last batch of a pass when it is shorter"),
}

--- Lists of n rows; the last of a pass may be shorter unless drop_last.
--- @param n integer
--- @param opts table?
--- @return perilune.data.Stream
function Stream:batch(n, opts)
  stream.check_receiver(self, "batch")
  local o = options.read("batch", { "n" }, batch_rules, 3, n, opts)
  return stream.new(batch, { self }, { _n = math.tointeger(o.n), _drop_last = o.drop_last, _endless = self._endless })
end
options.declare(Stream.batch, { "n" }, batch_rules)

-- Whether a stream after the first, which has ended, has rows left.
local function any_left(list)
  for i = 2, #list do
    if stream.advance_one(list[i], "zip") ~= nil then return true end
  end
  return false
end

local zip = {
  name = "zip",
  pull = function(s)
    local out = gather(s)
    for i = #out + 1, #s._of do
      local row = stream.advance_one(s._of[i], "zip")
      if row == nil then
        s._partial, s._dropped = nil, s._dropped + #out
        if s._equal and (i > 1 or any_left(s._of)) then
          error(("zip: stream %d ended before the others"):format(i), 0)
        end
        return nil
      end
      out[i] = row
    end
    s._partial = nil
    return out
  end,
  rewind = forget_gathered, save = save_gathered, load = forget_gathered,
}

local zip_rules = { equal = options.boolean(false, "streams of different lengths raise when the first of them ends") }

-- Which argument each stream below the arguments belongs to; raises for one that two of them read from, whose rows
-- would go to the one or the other.
local function check_apart(parts, n)
  local owner = {}
  local function visit(s, i)
    if owner[s] == i then return end
    if owner[s] then
      options.raise(("zip: arguments %d and %d read from one stream, %s: make one for each"):format(owner[s], i,
        tostring(s)))
    end
    owner[s] = i
    for _, inner in ipairs(s._of) do visit(inner, i) end
  end
  for i = 1, n do visit(parts[i], i) end
end

--- Rows of several streams side by side, as lists; ends with the shortest. Each has streams of its own below.
--- @param ... perilune.data.Stream  and at the end maybe a table of options
--- @return perilune.data.Stream
function M.zip(...)
  local parts, n, o = { ... }, select("#", ...), nil
  local last = parts[n]
  if type(last) == "table" and getmetatable(last) == nil then
    o = options.fill("zip", last, zip_rules)
    n = n - 1
    parts[n + 1] = nil
  end
  if n == 0 then error("zip: no streams", 2) end
  local endless = true
  for i = 1, n do
    local s = parts[i]
    if getmetatable(s) ~= Stream then error(("zip: argument %d is a %s, expected a stream"):format(i, type(s)), 2) end
    endless = endless and s._endless
  end
  check_apart(parts, n)
  return stream.new(zip, parts, { _equal = o and o.equal, _endless = endless })
end
options.declare(M.zip, { "..." }, zip_rules)

-- ---- shuffling ----

-- Fisher and Yates with numbers that depend on seed, pass and block alone.
local function permute(list, seed, epoch, block)
  local rng = peri.rng((seed * 1000003 + epoch) ~ (block * 0x9E3779B97F4A7C15))
  for i = #list, 2, -1 do
    local j = rng:int(1, i)
    list[i], list[j] = list[j], list[i]
  end
  return list
end

local function check_shuffle(s, t)
  if t.seed ~= s._seed then return ("the state is of seed %s, this stream has %d"):format(tostring(t.seed), s._seed) end
  if t.buffer ~= s._buffer then
    return ("the state is of buffer %s, this stream has %s"):format(tostring(t.buffer), tostring(s._buffer))
  end
  return stream.count_problem(t, "epoch") or stream.count_problem(t, "at", s._rows and #s._rows)
    or not s._rows and stream.count_problem(t, "block")
end

-- All rows of a list: only their numbers are permuted.
local shuffled_list = {
  name = "list:shuffle",
  pull = function(s)
    if not s._order then
      s._order = {}
      for i = 1, #s._rows do s._order[i] = i end
      permute(s._order, s._seed, s._epoch, 0)
    end
    if s._at >= #s._order then return nil end
    s._at = s._at + 1
    return stream.row_at(s._rows, s._order[s._at])
  end,
  rewind = function(s) s._epoch, s._at, s._order = s._epoch + 1, 0, nil end,
  save = function(s) return { seed = s._seed, epoch = s._epoch, at = s._at, rows = #s._rows } end,
  check = function(s, t) return stream.rows_problem(s._rows, t) or check_shuffle(s, t) end,
  load = function(s, t) s._epoch, s._at, s._order = math.tointeger(t.epoch), math.tointeger(t.at), nil end,
}

-- Tensors of rows that wait in a block outlive the step in which they were made.
local function keep(row, depth)
  if peri.is_tensor(row) then peri.keep(row)
  elseif type(row) == "table" and depth < 8 then
    for _, v in pairs(row) do keep(v, depth + 1) end
  end
  return row
end

-- Rows of any stream, block after block. A state names the block by the position where it begins.
local function read_block(s)
  local rows, inner = gather(s), s._of[1]
  while #rows < (s._buffer or math.huge) do
    local row = stream.advance_one(inner, "shuffle")
    if row == nil then break end
    rows[#rows + 1] = keep(row, 0)
  end
  s._partial = nil
  return permute(rows, s._seed, s._epoch, s._block)
end

local shuffled_stream = {
  name = "shuffle",
  pull = function(s)
    while true do
      s._waiting = s._waiting or read_block(s)
      if s._at < #s._waiting then
        s._at = s._at + 1
        return s._waiting[s._at]
      end
      if #s._waiting == 0 then return nil end
      s._waiting, s._block, s._at = nil, s._block + 1, 0
    end
  end,
  rewind = function(s)
    s._epoch, s._block, s._at = s._epoch + 1, 0, 0
    s._waiting, s._partial = nil, nil
  end,
  save = function(s)
    local waiting = s._waiting ~= nil and #s._waiting > 0
    return { seed = s._seed, buffer = s._buffer, epoch = s._epoch, block = s._block, at = s._at, waiting = waiting,
      of = (waiting or s._partial) and s._start or nil }
  end,
  check = check_shuffle,
  load = function(s, t)
    s._epoch, s._block, s._at = math.tointeger(t.epoch), math.tointeger(t.block), math.tointeger(t.at)
    s._waiting, s._partial = nil, nil
    if t.waiting then s._waiting = read_block(s) end
  end,
}

local shuffle_rules = {
  seed = options.integer(options.required, "(-inf, inf)", "orders are a function of seed and pass alone"),
  buffer = options.integer(options.none, "[1, inf)", "rows of a block that is read and shuffled as a whole; "
    .. "left out: all rows of a pass"),
}

--- Rows in random order, another one in each pass. Of data.list only the numbers of its rows are drawn;
--- any other stream is read into memory, a whole pass or `buffer` rows at a time: choose many more than
--- a batch. A resumed run reads the rows of the block again.
--- @param seed integer
--- @param opts table?
--- @return perilune.data.Stream
function Stream:shuffle(seed, opts)
  stream.check_receiver(self, "shuffle")
  local o = options.read("shuffle", { "seed" }, shuffle_rules, 3, seed, opts)
  if self._endless and not o.buffer then error("shuffle: the stream never ends; give a buffer", 2) end
  local fields = { _seed = math.tointeger(o.seed), _buffer = math.tointeger(o.buffer), _epoch = 0, _block = 0, _at = 0,
    _endless = self._endless }
  if self._rows and not o.buffer and self._kind.name == "list" then
    fields._rows = self._rows
    return stream.new(shuffled_list, {}, fields)
  end
  return stream.new(shuffled_stream, { self }, fields)
end
options.declare(Stream.shuffle, { "seed" }, shuffle_rules)

return M
