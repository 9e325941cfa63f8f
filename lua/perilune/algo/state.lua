-- state.lua - what the steppers share of their checkpoints: a state is looked at whole before any of it is taken.

local options = require "perilune.options"

local M = {}

local count = options.integer(options.required, "[0, inf)")

-- Counters that states of before they were counted lack.
local later = { idle = 0 }

-- An object that has a state: schedules are functions of the step, but for those that watch a metric.
local function has_state(object)
  return (type(object) == "table" or type(object) == "userdata") and object.state ~= nil
end

--- The state of a stepper: its counters, and the state of each part that has one.
--- @param self table
--- @param counters string[]  fields that are counts
--- @param parts string[]  fields that may be objects with state() and set_state()
--- @return table
function M.of(self, counters, parts)
  local s = {}
  for _, name in ipairs(counters) do s[name] = self[name] end
  for _, name in ipairs(parts) do s[name] = has_state(self[name]) and self[name]:state() or nil end
  return s
end

--- Take a state of M.of. Raises when something is missing or too much, and when an object refuses its part; then the
--- stepper is as it was.
--- @param who string
--- @param self table
--- @param s any
--- @param counters string[]
--- @param parts string[]
function M.take(who, self, s, counters, parts)
  if type(s) ~= "table" then options.raise(("%s: the state is a %s, expected a table"):format(who, type(s))) end
  for _, name in ipairs(counters) do
    local value = s[name] == nil and later[name] or s[name]
    local problem = value == nil and name .. " is missing" or options.problem(name, value, count)
    if problem then options.raise(("%s: the state is none of such a stepper: %s"):format(who, problem)) end
  end
  local before = M.of(self, counters, parts)
  local names = table.move(parts, 1, #parts, 1, {})
  for _, name in ipairs(options.names(s)) do -- those of other steppers
    if type(s[name]) == "table" and before[name] == nil then names[#names + 1] = name end
  end
  for _, name in ipairs(names) do
    if (s[name] ~= nil) ~= (before[name] ~= nil) then
      options.raise(("%s: the state is %s a %s, the stepper %s"):format(who, s[name] and "of" or "not of", name,
        before[name] and "has one" or "has none"))
    end
  end
  local function put(from)
    for _, name in ipairs(parts) do if from[name] then self[name]:set_state(from[name]) end end
    for _, name in ipairs(counters) do self[name] = math.tointeger(from[name] or later[name]) end
  end
  local ok, message = pcall(put, s)
  if not ok then
    put(before)
    options.raise(("%s: %s"):format(who, (tostring(message):gsub("^[^%s:]+%.lua:%d+: ", ""))))
  end
end

return M
