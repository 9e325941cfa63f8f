-- sched.lua - schedules: plain functions from the step (counted from 1) to a value, most often the
-- learning rate: opt:step{ lr = schedule(step) }. They have no state, so that a resumed run needs
-- none; only plateau, which watches a metric, is an object.
--   local lr = sched.warmup(100, sched.cosine { from = 3e-4, to = 3e-5, steps = 10000 })

local options = require "perilune.options"
local required = options.required

local M = {}

local function read(who, given, defaults)
  return options.read(who, {}, defaults, 4, given or {})
end

-- Share of the way from the first to the last step, in [0, 1].
local function progress(step, steps)
  if steps <= 1 then return 1 end
  return math.min(math.max((step - 1) / (steps - 1), 0), 1)
end

--- @param value number
function M.constant(value) return function() return value end end

--- A straight line; the last value stays. { from, to = 0, steps }
function M.linear(given)
  local o = read("sched.linear", given, { from = required, to = 0, steps = required })
  return function(step) return o.from + (o.to - o.from) * progress(step, o.steps) end
end

--- Half a cosine (Loshchilov and Hutter 2017); the last value stays. { from, to = 0, steps }
function M.cosine(given)
  local o = read("sched.cosine", given, { from = required, to = 0, steps = required })
  return function(step)
    return o.to + (o.from - o.to) * 0.5 * (1 + math.cos(math.pi * progress(step, o.steps)))
  end
end

--- Times factor every `every` steps, or after each step of the list `at`.
--- { from, factor = 0.1, every = n | at = { n, ... } }
function M.step(given)
  local o = read("sched.step", given,
    { from = required, factor = 0.1, every = options.none, at = options.none })
  if (o.every == nil) == (o.at == nil) then error("sched.step: give either every or at", 2) end
  return function(step)
    local n = 0
    if o.every then n = (step - 1) // o.every
    else for _, s in ipairs(o.at) do if step > s then n = n + 1 end end end
    return o.from * o.factor ^ n
  end
end

--- Times factor each step, not below `to`. { from, factor, to = 0 }
function M.exponential(given)
  local o = read("sched.exponential", given, { from = required, factor = required, to = 0 })
  return function(step) return math.max(o.from * o.factor ^ (step - 1), o.to) end
end

--- Rises in a straight line over the first n steps to the value where `after` begins; `after`
--- counts its steps from the end of the warm-up.
--- @param n integer
--- @param after fun(step: integer): number
function M.warmup(n, after)
  return function(step)
    if step <= n then return after(1) * step / n end
    return after(step - n)
  end
end

--- One schedule after another: sched.chain{ { 100, a }, { 900, b }, { c } }; each counts from 1.
--- @param parts table[]  { steps, schedule }, the last { schedule }
function M.chain(parts)
  return function(step)
    for i, part in ipairs(parts) do
      if i == #parts then return part[#part](step) end
      if step <= part[1] then return part[2](step) end
      step = step - part[1]
    end
  end
end

--- The product of a schedule and a factor or another schedule.
function M.scale(schedule, by)
  return function(step) return schedule(step) * (type(by) == "function" and by(step) or by) end
end

local Plateau = {}
Plateau.__index = Plateau

--- Times factor when the metric has not improved for `patience` observations:
---   local lr = sched.plateau { from = 1e-3 }; opt:step{ lr = lr() }; lr:observe(loss)
--- { from, factor = 0.1, patience = 10, threshold = 1e-4 (relative), cooldown = 0, to = 0, mode = "min" }
function M.plateau(given)
  local o = read("sched.plateau", given, { from = required, factor = 0.1, patience = 10,
    threshold = 1e-4, cooldown = 0, to = 0, mode = "min" })
  if o.mode ~= "min" and o.mode ~= "max" then
    error(("sched.plateau: mode is %q, expected \"min\" or \"max\""):format(tostring(o.mode)), 2)
  end
  return setmetatable({ _o = o, value = o.from, bad = 0, wait = 0 }, Plateau)
end

Plateau.__call = function(self) return self.value end

--- @param metric number
--- @return number  the value from now on
function Plateau:observe(metric)
  local o, best = self._o, self.best
  local margin = best and math.abs(best) * o.threshold or 0
  local better = best == nil or (o.mode == "min" and metric < best - margin)
    or (o.mode == "max" and metric > best + margin)
  if better then self.best, self.bad = metric, 0 else self.bad = self.bad + 1 end
  if self.wait > 0 then self.wait, self.bad = self.wait - 1, 0 end
  if self.bad > o.patience then
    self.value, self.bad, self.wait = math.max(self.value * o.factor, o.to), 0, o.cooldown
  end
  return self.value
end

--- @return table
function Plateau:state() return { value = self.value, best = self.best, bad = self.bad, wait = self.wait } end

--- @param s table
function Plateau:set_state(s) self.value, self.best, self.bad, self.wait = s.value, s.best, s.bad, s.wait end

return M
