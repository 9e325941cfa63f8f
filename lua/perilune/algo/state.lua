-- state.lua - what the steppers share of their checkpoints: a state is looked at whole before any of it is taken.

local options = require "perilune.options"

local M = {}

local count = options.integer(options.required, "[0, inf)")

--- The state of a schedule that has one: schedules are functions of the step, but for those that watch a metric.
--- @param schedule any
--- @return table?
function M.of_schedule(schedule)
  return type(schedule) == "table" and schedule.state ~= nil and schedule:state() or nil
end

--- Take a state: counters become fields, parts go to the set_state of the objects of the same name. Raises when one
--- is missing or too many, and when an object refuses its part; then the stepper is as it was.
--- @param who string
--- @param self table  with state()
--- @param s any
--- @param counters string[]
--- @param parts table<string, table?>  name -> object
function M.take(who, self, s, counters, parts)
  if type(s) ~= "table" then options.raise(("%s: the state is a %s, expected a table"):format(who, type(s))) end
  for _, name in ipairs(counters) do
    local problem = s[name] == nil and name .. " is missing" or options.problem(name, s[name], count)
    if problem then options.raise(("%s: the state is none of such a stepper: %s"):format(who, problem)) end
  end
  local before = self:state()
  for _, name in ipairs { "rng", "curriculum", "schedule" } do
    if (s[name] ~= nil) ~= (before[name] ~= nil) then
      options.raise(("%s: the state is %s a %s, the stepper %s"):format(who, s[name] and "of" or "not of", name,
        before[name] and "has one" or "has none"))
    end
  end
  local function put(from)
    for name, object in pairs(parts) do if from[name] then object:set_state(from[name]) end end
    for _, name in ipairs(counters) do self[name] = math.tointeger(from[name]) end
  end
  local ok, message = pcall(put, s)
  if not ok then
    put(before)
    options.raise(("%s: %s"):format(who, (tostring(message):gsub("^[^%s:]+%.lua:%d+: ", ""))))
  end
end

return M
