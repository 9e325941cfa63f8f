-- sweep_space.lua - what a sweep tries: values of a recipe's flags from a command line, and the settings that are drawn
-- from them or stand in a grid.

local options = require "perilune.options"

local M = {}

--- @class perilune.sweep.Axis
--- @field name string
--- @field kind string  values, log, linear
--- @field values string[]?  of a list, as they are given to the recipe
--- @field low number?
--- @field high number?
--- @field points integer?
--- @field integer boolean?

local function shown(v, integer) return integer and ("%d"):format(math.floor(v + 0.5)) or ("%.6g"):format(v) end

-- The value at a share of a range, 0 its begin and 1 its end, as text.
local function at(axis, share)
  local a, b = axis.low, axis.high
  local v = axis.kind == "log" and math.exp(math.log(a) + share * (math.log(b) - math.log(a))) or a + share * (b - a)
  return shown(v, axis.integer)
end

-- The points of a range that has a number of them.
local function points_of(axis)
  local list = {}
  for i = 1, axis.points do list[i] = at(axis, axis.points == 1 and 0.5 or (i - 1) / (axis.points - 1)) end
  return list
end

--- What a text says of a flag: one value, a list a,b,c, a range log:a,b or linear:a,b (with ,n: n points of it), or
--- text:T, which is T whatever stands in it.
--- @param name string
--- @param text string
--- @param default any  of the flag
--- @return perilune.sweep.Axis? axis
--- @return string? message
function M.axis(name, text, default)
  local kind, rest = text:match "^(%l+):(.*)$"
  if kind == "text" then return { name = name, kind = "values", values = { rest } } end
  if kind == "log" or kind == "linear" then
    local parts = {}
    for part in (rest .. ","):gmatch "([^,]*)," do parts[#parts + 1] = tonumber(part) or false end
    local low, high, points = parts[1], parts[2], parts[3]
    if type(default) ~= "number" then return nil, ("--%s has no range: it is a %s"):format(name, type(default)) end
    if not (low and high) or #parts > 3 or points == false or points and math.type(points) ~= "integer" then
      return nil, ("--%s %s: expected %s:LOW,HIGH or %s:LOW,HIGH,POINTS"):format(name, text, kind, kind)
    end
    if not (low < high and high - low < math.huge) or kind == "log" and low <= 0 or points and points < 1 then
      return nil, ("--%s %s: expected %s, and at least one point"):format(name, text,
        kind == "log" and "0 < LOW < HIGH" or "LOW < HIGH")
    end
    local axis = { name = name, kind = kind, low = low, high = high, points = points,
      integer = math.type(default) == "integer" }
    if points then axis.values = points_of(axis) end
    return axis
  end
  local values, seen = {}, {}
  for part in (text .. ","):gmatch "([^,]*)," do
    if seen[part] then return nil, ("--%s %s: %q is there twice"):format(name, text, part) end
    seen[part], values[#values + 1] = true, part
  end
  return { name = name, kind = "values", values = values }
end

--- Does an axis have more than one value?
function M.varies(axis) return axis.values == nil or #axis.values > 1 end

--- Values of an axis that stand for all of them when they are tried before anything runs.
--- @return string[]
function M.samples(axis) return axis.values or { at(axis, 0), at(axis, 0.5), at(axis, 1) } end

local function key_of(setting) return table.concat(setting, "\0") end

--- All settings of a grid, the last axis first.
--- @param axes perilune.sweep.Axis[]
--- @return string[][]? settings  values in the order of the axes
--- @return string? message
function M.grid(axes)
  local settings = { {} }
  for _, axis in ipairs(axes) do
    if not axis.values then
      return nil, ("--%s: a grid needs the number of points: %s:%g,%g,5"):format(axis.name, axis.kind, axis.low,
        axis.high)
    end
    local more = {}
    for _, setting in ipairs(settings) do
      for _, value in ipairs(axis.values) do
        local new = table.move(setting, 1, #setting, 1, {})
        new[#new + 1] = value
        more[#more + 1] = new
        if #more > 100000 then return nil, "the grid has more than 100000 settings" end
      end
    end
    settings = more
  end
  return settings
end

--- So many settings at random, each once: fewer where there are no more.
--- @param axes perilune.sweep.Axis[]
--- @param count integer
--- @param rng perilune.Rng
--- @return string[][] settings
function M.random(axes, count, rng)
  local settings, seen = {}, {}
  local failures = 0
  while #settings < count and failures < 200 do
    local setting = {}
    for i, axis in ipairs(axes) do
      setting[i] = axis.values and axis.values[rng:int(1, #axis.values)] or at(axis, rng:uniform())
    end
    local key = key_of(setting)
    if seen[key] then failures = failures + 1
    else seen[key], settings[#settings + 1], failures = true, setting, 0 end
  end
  return settings
end

--- A value of an axis as a number, for plots and shares; a text is its place in the list.
--- @param axis perilune.sweep.Axis
--- @param value string
--- @return number
--- @return boolean is_place
function M.position(axis, value)
  local numeric = true
  for _, v in ipairs(axis.values or {}) do numeric = numeric and tonumber(v) ~= nil end
  if numeric then return tonumber(value), false end
  for i, v in ipairs(axis.values) do if v == value then return i, true end end
  return options.raise "no such value"
end

return M
