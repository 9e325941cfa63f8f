-- stream.lua - what a stream of rows is: passes, positions, the combinators. The laws that hold for
-- each of them, whatever it is made of:
--   A pass ends with nil, and goes on being at its end: who looks again sees nil again.
--   The next pass begins when someone begins it: a for loop, collect, repeat_, restart(). It
--   restarts everything below, and a shuffle draws a new order.
--   state() is a plain table (numbers, strings, booleans, tables of them) that JSON can hold; it
--   stands for any position, set_state() of a stream built in the same way goes on from there.
--   Rows themselves are never in a state.
--
-- A kind of stream is { name, pull(s), rewind(s), save(s), load(s, t), check(s, t) }: pull gives the
-- next row or nil and is not called again after nil until rewind, which takes its own fields to the
-- first row (the streams below, s._of, are rewound before); save gives its own part of the state,
-- load takes it back, check says what is wrong with one.

local options = require "perilune.options"

--- @class perilune.data.Stream
local Stream = { __name = "stream" }
Stream.__index = Stream

local M = { Stream = Stream }

--- A stream of a kind; fields are its own.
--- @param kind table
--- @param below perilune.data.Stream[]  that it reads from
--- @param fields table
--- @return perilune.data.Stream
function M.new(kind, below, fields)
  fields._kind, fields._of = kind, below
  fields._ended, fields._begun, fields._dropped = false, false, 0
  return setmetatable(fields, Stream)
end

local function rewind(s)
  for _, inner in ipairs(s._of) do rewind(inner) end
  s._ended, s._begun = false, true
  if s._kind.rewind then s._kind.rewind(s) end
end

local function finish(s, ...)
  if (...) ~= nil then return ... end
  s._ended = true
  return nil
end

-- The next row (a map may give it several values), or nil at the end and from then on.
local function advance(s)
  if s._ended then return nil end
  if not s._begun then -- made over a stream that had ended: over its next pass
    s._begun = true
    for _, inner in ipairs(s._of) do if inner._ended then rewind(inner) end end
  end
  return finish(s, s._kind.pull(s))
end

-- The same for who gathers rows, which have one value then.
local function advance_one(s, who)
  local row, more = advance(s)
  if more ~= nil then
    error(("%s: a row has several values; let map make one table of them"):format(who), 0)
  end
  return row
end

-- ---- positions ----

local function state_of(s)
  local t = s._kind.save and s._kind.save(s) or {}
  t.kind, t.ended, t.begun = s._kind.name, s._ended, s._begun
  if s._dropped > 0 then t.dropped = s._dropped end
  if #s._of > 0 and not t.of then
    t.of = {}
    for i, inner in ipairs(s._of) do t.of[i] = state_of(inner) end
  end
  return t
end

-- "list:shuffle:batch" of a stream or a state.
local function chain(name, below, of)
  local parts = {}
  for i, inner in ipairs(below) do parts[i] = of(inner) end
  if #parts == 0 then return name end
  if #parts == 1 then return parts[1] .. ":" .. name end
  return name .. "(" .. table.concat(parts, ", ") .. ")"
end

local function chain_of(s) return chain(s._kind.name, s._of, chain_of) end

local function chain_of_state(t)
  if type(t) ~= "table" or type(t.kind) ~= "string" then return "?" end
  return chain(t.kind, type(t.of) == "table" and t.of or {}, chain_of_state)
end

--- nil when a field of a state is an integer from 0, else what is wrong.
--- @param t table
--- @param name string
--- @param most integer?
--- @return string?
function M.count_problem(t, name, most)
  local v = t[name]
  return options.problem(name, v, options.integer(options.required, ("[0, %s"):format(most and most .. "]" or "inf)")))
end

local function check_state(s, t)
  local problem = s._kind.check and s._kind.check(s, t) or t.dropped ~= nil and M.count_problem(t, "dropped")
  if problem then return s._kind.name .. ": " .. problem end
  for i, inner in ipairs(s._of) do
    problem = check_state(inner, t.of[i])
    if problem then return problem end
  end
end

local function load_state(s, t)
  for i, inner in ipairs(s._of) do load_state(inner, t.of[i]) end
  s._ended, s._begun = t.ended == true, t.begun == true
  s._dropped = math.tointeger(t.dropped) or 0
  if s._kind.load then s._kind.load(s, t) end
end

--- Where the stream stands, as a plain table that JSON can hold: for checkpoints.
--- @return table
function Stream:state() return state_of(self) end

--- Go on from a position. The stream must be built in the same way over the same rows as the one that
--- the state is of; what can be told to differ (the combinators, the number of rows, the seed) raises,
--- and then nothing changed.
--- @param t table  of state()
--- @return self
function Stream:set_state(t)
  local is, expected = chain_of_state(t), chain_of(self)
  if is ~= expected then
    error(("set_state: the state is of the stream %s, this one is %s"):format(is, expected), 2)
  end
  local problem = check_state(self, t)
  if problem then error("set_state: " .. problem, 2) end
  load_state(self, t)
  return self
end

--- Begin the next pass now, wherever this one stands.
--- @return self
function Stream:restart()
  rewind(self)
  return self
end

--- How many rows were dropped so far, by this stream and those below it, over all passes: those that a
--- filter refused, the short rest that batch leaves with drop_last, rows of zip without partners, bad
--- lines that jsonl skipped.
--- @return integer total
--- @return table<string, integer> by_kind
function Stream:dropped()
  local total, by_kind = 0, {}
  local function visit(s)
    for _, inner in ipairs(s._of) do visit(inner) end
    if s._dropped > 0 then
      total = total + s._dropped
      by_kind[s._kind.name] = (by_kind[s._kind.name] or 0) + s._dropped
    end
  end
  visit(self)
  return total, by_kind
end

-- A for loop calls with two arguments, of which the second is nil at first; stream() has none.
Stream.__call = function(self, ...)
  if self._ended and select("#", ...) == 2 and select(2, ...) == nil then rewind(self) end
  return advance(self)
end

Stream.__tostring = function(self) return "stream " .. chain_of(self) end

--- The rows that are left of this pass as a list; those of the next pass when this one has ended.
--- @return table
function Stream:collect()
  if self._ended then rewind(self) end
  local before = self._endless and state_of(self)
  local list, row = {}, advance_one(self, "collect")
  if row ~= nil and before then -- an empty stream ends even when repeated
    load_state(self, before)
    error("collect: the stream never ends; take(n) ends it", 2)
  end
  while row ~= nil do
    list[#list + 1] = row
    row = advance_one(self, "collect")
  end
  return list
end

-- ---- combinators: one row in, one row out ----

-- A method that was called with a dot.
local function check_receiver(self, who)
  if getmetatable(self) ~= Stream then
    error(("%s: the receiver is a %s, expected a stream: call it as stream:%s(...)"):format(who, type(self), who), 3)
  end
end

local function mapped(...)
  if (...) == nil then error("map: the function gave nil for a row; filter drops rows", 0) end
  return ...
end

local function apply(fn, ...)
  if (...) == nil then return nil end
  return mapped(fn(...))
end

local map = { name = "map", pull = function(s) return apply(s._fn, advance(s._of[1])) end }

local map_rules = { fn = options.value(options.required, "callable", "row -> row, not nil") }

--- Each row as fn makes it. fn may give several values, which a for loop sees and the next map or filter
--- gets; it may not give nil.
--- @param fn fun(row: any): any
--- @return perilune.data.Stream
function Stream:map(fn)
  check_receiver(self, "map")
  local o = options.read("map", { "fn" }, map_rules, 3, fn)
  return M.new(map, { self }, { _fn = o.fn, _endless = self._endless })
end
options.declare(Stream.map, { "fn" }, map_rules)

local function sifted(s, ...)
  if (...) == nil or s._fn(...) then return ... end
  s._dropped = s._dropped + 1
  return sifted(s, advance(s._of[1]))
end

local filter = { name = "filter", pull = function(s) return sifted(s, advance(s._of[1])) end }

local filter_rules = { fn = options.value(options.required, "callable", "row -> whether it stays") }

--- Only rows for which fn is true; dropped() counts the others.
--- @param fn fun(row: any): boolean
--- @return perilune.data.Stream
function Stream:filter(fn)
  check_receiver(self, "filter")
  local o = options.read("filter", { "fn" }, filter_rules, 3, fn)
  return M.new(filter, { self }, { _fn = o.fn, _endless = self._endless })
end
options.declare(Stream.filter, { "fn" }, filter_rules)

local function counted(s, ...)
  if (...) ~= nil then s._taken = s._taken + 1 end
  return ...
end

local take = {
  name = "take",
  pull = function(s)
    if s._taken >= s._n then return nil end
    return counted(s, advance(s._of[1]))
  end,
  rewind = function(s) s._taken = 0 end,
  save = function(s) return { taken = s._taken } end,
  check = function(_, t) return M.count_problem(t, "taken") end,
  load = function(s, t) s._taken = math.tointeger(t.taken) end,
}

local take_rules = { n = options.integer(options.required, "[0, inf)", "rows of a pass") }

--- The first n rows of each pass.
--- @param n integer
--- @return perilune.data.Stream
function Stream:take(n)
  check_receiver(self, "take")
  local o = options.read("take", { "n" }, take_rules, 3, n)
  return M.new(take, { self }, { _n = math.tointeger(o.n), _taken = 0 })
end
options.declare(Stream.take, { "n" }, take_rules)

-- ---- repetition ----

local function again(s, ...)
  if (...) ~= nil then
    s._any = true
    return ...
  end
  s._epoch = s._epoch + 1
  if not s._any or s._times and s._epoch >= s._times then return nil end -- an empty stream stays empty
  rewind(s._of[1])
  s._any = false
  return again(s, advance(s._of[1]))
end

local repeat_ = {
  name = "repeat_",
  pull = function(s) return again(s, advance(s._of[1])) end,
  rewind = function(s) s._epoch, s._any = 0, false end,
  save = function(s) return { epoch = s._epoch, any = s._any } end,
  check = function(_, t) return M.count_problem(t, "epoch") end,
  load = function(s, t) s._epoch, s._any = math.tointeger(t.epoch), t.any == true end,
}

local repeat_rules = { times = options.integer(options.none, "[1, inf)", "passes; left out: for ever") }

--- Begin again whenever the rows end, times times in all or for ever. Every pass starts anew, a stream
--- that shuffles draws a new order each time.
--- @param times integer?
--- @return perilune.data.Stream
function Stream:repeat_(times)
  check_receiver(self, "repeat_")
  local o = options.read("repeat_", { "times" }, repeat_rules, 3, times)
  return M.new(repeat_, { self }, { _times = math.tointeger(o.times), _epoch = 0, _any = false,
    _endless = o.times == nil or self._endless })
end
options.declare(Stream.repeat_, { "times" }, repeat_rules)

-- ---- rows of a list ----

--- Row i of a list, which may not be nil.
function M.row_at(rows, i)
  local row = rows[i]
  if row == nil then error(("list: row %d is nil"):format(i), 0) end
  return row
end

--- Whether a state is of a list of as many rows.
function M.rows_problem(rows, t)
  if t.rows ~= #rows then
    return ("the state is of %s rows, this list has %d"):format(tostring(t.rows), #rows)
  end
end

M.advance_one, M.state_of, M.check_receiver = advance_one, state_of, check_receiver
return M
