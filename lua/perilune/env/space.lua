-- space.lua - what observations and actions may be, as tables: kind, dtype, shape and bounds.
local core = require("perilune.core")._env
local peri = require "perilune.core"
local options = require "perilune.options"

--- @class perilune.env.Space
--- @field kind string  "box", "discrete", "multi_discrete", "multi_binary"
--- @field dtype string
--- @field shape integer[]  of a value; () for a discrete one
--- @field low number|number[]?  of a box: of every element, or a list of them
--- @field high number|number[]?
--- @field n integer?  of a discrete one: how many values; of a multi_binary one: how many flags
--- @field start integer?  of a discrete one: the least value
--- @field nvec integer[]?  of a multi_discrete one
--- @field fields table?  of a dict that was flattened: { name, kind, from, size } of each slice
local Space = {}
Space.__index = Space
Space.__name = "perilune.env.Space"

local M = { Space = Space }

local function bounds(v) return type(v) == "number" and ("%g"):format(v) or "{...}" end

function Space:__tostring()
  if self.kind == "discrete" then
    return self.start == 0 and ("Discrete(%d)"):format(self.n) or ("Discrete(%d, %d)"):format(self.n, self.start)
  elseif self.kind == "multi_discrete" then return ("MultiDiscrete(%s)"):format(table.concat(self.nvec, ", "))
  elseif self.kind == "multi_binary" then return ("MultiBinary(%d)"):format(self.n) end
  return ("Box(%s, %s, %s, %s)"):format(bounds(self.low), bounds(self.high), options.shape(self.shape), self.dtype)
end

-- A space of what the bindings say of it.
-- @param fields table
-- @return perilune.env.Space
function M.of(fields) return setmetatable(fields, Space) end

local function checked(space)
  local ok, message = pcall(core.check, space)
  if not ok then options.raise((tostring(message):gsub("^.-: space: ", "env.space: "))) end
  return setmetatable(space, Space)
end

local function is_space(v) return type(v) == "table" and getmetatable(v) == Space end
M.is_space = is_space

--- How many numbers a value has.
--- @return integer
function Space:size()
  local n = 1
  for _, k in ipairs(self.shape) do n = n * k end
  return n
end

-- A generator for samples that nobody gave one: seeded by peri's own, so that peri.seed decides.
-- @param seed integer?
function M.fresh_rng(seed) return core.rng(seed or math.tointeger(peri.randint(0, 2 ^ 31 - 1, { 1 }):item())) end

--- A random value, as Gymnasium's spaces draw it: an integer of a discrete space, else a tensor.
--- @param rng table?  of peri.env.rng; default: one that peri's own generator seeds for this value, so that peri.seed
--- decides and a resumed run goes on
--- @param mask perilune.Tensor?  (n) bool, of a discrete space: the values to choose among
--- @return perilune.Tensor|integer
function Space:sample(rng, mask) return core.sample(self, rng or M.fresh_rng(), mask) end

--- Whether a value lies in the space: an integer of a discrete one, else a tensor of its dtype and shape.
--- @param value perilune.Tensor|integer
--- @return boolean
function Space:contains(value) return core.contains(self, value) end

-- ---- making ----

local box_rules = { -- ORDER dtype: those that spaces have, as in perilune/env.h
  low = options.value(options.required, "number or table", "of every element, or a list of them; -math.huge: none"),
  high = options.value(options.required, "number or table", "of every element, or a list of them; math.huge: none"),
  shape = options.value(options.none, "table", "of a value; default: as many elements as low or high lists, else ()"),
  dtype = options.choice("f32", { "f32", "f64", "u8", "i32", "i64" }, "of the elements"),
}

--- Numbers between bounds: box { low = -1, high = 1, shape = { 3 } } or box(-1, 1, { shape = { 3 } }).
--- @return perilune.env.Space
function M.box(...)
  local first = ...
  local o
  if select("#", ...) == 1 and type(first) == "table" and first[1] ~= nil then
    local given = {}
    for k, v in pairs(first) do given[k == 1 and "low" or k == 2 and "high" or k] = v end
    o = options.fill("env.box", given, box_rules)
  else o = options.read("env.box", { "low", "high" }, box_rules, 3, ...) end
  local list = type(o.low) == "table" and o.low or type(o.high) == "table" and o.high
  return checked { kind = "box", dtype = o.dtype, shape = o.shape or list and { #list } or {}, low = o.low,
    high = o.high }
end
options.declare(M.box, { "low", "high" }, box_rules)

local discrete_rules = {
  n = options.integer(options.required, "[1, inf)", "how many values"),
  start = options.integer(0, nil, "the least of them"),
}

--- One of n integers.
--- @return perilune.env.Space
function M.discrete(...)
  local o = options.read("env.discrete", { "n", "start" }, discrete_rules, 3, ...)
  return checked { kind = "discrete", dtype = "i64", shape = {}, n = math.tointeger(o.n),
    start = math.tointeger(o.start) }
end
options.declare(M.discrete, { "n", "start" }, discrete_rules)

local positive = options.integer(nil, "[1, inf)")

--- Several discrete values at once: multi_discrete { 3, 2 } are one of 0 to 2 and one of 0 to 1.
--- @param nvec integer[]
--- @return perilune.env.Space
function M.multi_discrete(nvec)
  options.argument("env.multi_discrete", "nvec", nvec, "table")
  local list = {}
  for i, n in ipairs(nvec) do
    local problem = options.problem("size " .. i, n, positive)
    if problem then options.raise("env.multi_discrete: " .. problem) end
    list[i] = math.tointeger(n)
  end
  return checked { kind = "multi_discrete", dtype = "i64", shape = { #list }, nvec = list }
end

--- Several zeros and ones at once.
--- @param n integer
--- @return perilune.env.Space
function M.multi_binary(n)
  local problem = options.problem("n", n, positive)
  if problem then options.raise("env.multi_binary: " .. problem) end
  return checked { kind = "multi_binary", dtype = "u8", shape = { math.tointeger(n) }, n = math.tointeger(n) }
end

-- ---- dicts ----

local function bound(v, i) return type(v) == "table" and v[i] or v end

-- Bounds of the flat form of one part, appended.
local function append(space, lows, highs)
  if space.kind == "discrete" or space.kind == "multi_binary" then
    for _ = 1, space.n do lows[#lows + 1], highs[#highs + 1] = 0, 1 end
  elseif space.kind == "multi_discrete" then
    for _, n in ipairs(space.nvec) do
      for _ = 1, n do lows[#lows + 1], highs[#highs + 1] = 0, 1 end
    end
  else
    for i = 1, space:size() do lows[#lows + 1], highs[#highs + 1] = bound(space.low, i), bound(space.high, i) end
  end
end

--- Named spaces as one flat box, as gymnasium.spaces.flatten makes it: names sorted, discrete parts one-hot. The slices
--- keep their names (space.fields); space:flatten makes a value. The dtype is f64 where a part has it, else f32.
--- @param parts table<string, perilune.env.Space>
--- @return perilune.env.Space
function M.dict(parts)
  options.argument("env.dict", "parts", parts, "table")
  local lows, highs, fields, kept, dtype = {}, {}, {}, {}, "f32"
  for name in pairs(parts) do
    if type(name) ~= "string" then options.raise("env.dict: names of parts are strings") end
  end
  for _, name in ipairs(options.names(parts)) do
    local part = parts[name]
    if not is_space(part) then options.raise(("env.dict: %s, expected a space"):format(options.is(name, part))) end
    local from = #lows + 1
    append(part, lows, highs)
    if part.dtype == "f64" then dtype = "f64" end
    fields[#fields + 1] = { name = name, kind = part.kind, from = from, size = #lows - from + 1 }
    kept[name] = part
    for _, inner in ipairs(part.fields or {}) do
      fields[#fields + 1] = { name = name .. "." .. inner.name, kind = inner.kind, from = from + inner.from - 1,
        size = inner.size }
    end
  end
  if #fields == 0 then options.raise "env.dict: there are no parts" end
  local space = checked { kind = "box", dtype = dtype, shape = { #lows }, low = lows, high = highs, fields = fields }
  rawset(space, "_parts", kept)
  return space
end

local function numbers_of(value) return peri.is_tensor(value) and value:reshape { -1 }:tolist() or value end

local function flat(out, space, value, name)
  if rawget(space, "_parts") then
    options.argument("flatten", name, value, "table")
    for k in pairs(value) do
      if not space._parts[k] then
        options.raise("flatten: " .. options.unknown("part", k, options.names(space._parts)))
      end
    end
    for _, key in ipairs(options.names(space._parts)) do flat(out, space._parts[key], value[key], key) end
  elseif space.kind == "discrete" then
    if not core.contains(space, value) then
      options.raise(("flatten: %s, expected a value of %s"):format(options.is(name, value), tostring(space)))
    end
    for k = 0, space.n - 1 do out[#out + 1] = value - space.start == k and 1 or 0 end
  else
    local list = type(value) == "number" and { value } or numbers_of(value)
    local n = space:size()
    if type(list) ~= "table" or #list ~= n then
      options.raise(("flatten: %s, expected %d numbers"):format(options.is(name, value), n))
    end
    for i, v in ipairs(list) do
      if space.kind == "multi_discrete" then
        for k = 0, space.nvec[i] - 1 do out[#out + 1] = v == k and 1 or 0 end
      else out[#out + 1] = v end
    end
  end
end

--- The flat numbers of a value of a dict: { position = { 1, 2 }, gear = 3 }.
--- @param value table
--- @return number[]
function Space:flatten(value)
  local out = {}
  flat(out, self, value, "value")
  return out
end

return M
