-- sched.lua - schedules: plain functions from the step (counted from 1) to a value, most often the
-- learning rate: opt:step{ lr = schedule(step) }. They have no state, so that a resumed run needs
-- none; only plateau, which watches a metric, is an object. A step is an integer from 1: any other is
-- refused, and so is a value that is no finite number.
--   local lr = sched.warmup(100, sched.cosine { from = 3e-4, to = 3e-5, steps = 10000 })

local options = require "perilune.options"
local required = options.required

local M = {}

local function is_finite(v) return type(v) == "number" and v == v and v > -math.huge and v < math.huge end

local function shown(v)
  if v ~= v then return "nan" end
  return type(v) == "number" and tostring(v) or "a " .. type(v)
end

-- A function of the step with its step and its value checked.
local function schedule(name, fn)
  return function(step)
    if type(step) ~= "number" or not math.tointeger(step) or step < 1 then
      error(("%s: the step is %s, expected an integer from 1"):format(name, shown(step)), 2)
    end
    local value = fn(math.tointeger(step))
    if not is_finite(value) then
      error(("%s: the value at step %d is %s, expected a finite number"):format(name, step, shown(value)), 2)
    end
    return value
  end
end

local function is_callable(v)
  local meta = getmetatable(v)
  return type(v) == "function" or type(meta) == "table" and meta.__call ~= nil
end

local function read(who, given, rules)
  return options.read(who, {}, rules, 4, given or {})
end

-- Share of the way from the first to the last step, in [0, 1].
local function progress(step, steps)
  if steps <= 1 then return 1 end
  return math.min(math.max((step - 1) / (steps - 1), 0), 1)
end

local function value_rule(default, doc) return options.number(default, nil, doc) end
local steps_rule = options.integer(required, "[1, inf)", "steps from the first value to the last, which stays")

local constant_rules = { value = value_rule(required, "at every step") }

--- The same value at every step.
--- @param value number
--- @return fun(step: integer): number
function M.constant(value)
  local o = options.read("sched.constant", { "value" }, constant_rules, 3, value)
  return schedule("sched.constant", function() return o.value end)
end
options.declare(M.constant, { "value" }, constant_rules)

local way_rules = {
  from = value_rule(required, "value of the first step"), to = value_rule(0, "value of the last step"),
  steps = steps_rule,
}

--- A straight line; the last value stays.
--- @return fun(step: integer): number
function M.linear(given)
  local o = read("sched.linear", given, way_rules)
  return schedule("sched.linear", function(step) return o.from + (o.to - o.from) * progress(step, o.steps) end)
end
options.declare(M.linear, {}, way_rules)

--- Half a cosine (Loshchilov and Hutter 2017); the last value stays.
--- @return fun(step: integer): number
function M.cosine(given)
  local o = read("sched.cosine", given, way_rules)
  return schedule("sched.cosine", function(step)
    return o.to + (o.from - o.to) * 0.5 * (1 + math.cos(math.pi * progress(step, o.steps)))
  end)
end
options.declare(M.cosine, {}, way_rules)

local polynomial_rules = {
  from = way_rules.from, to = way_rules.to, steps = steps_rule,
  power = options.number(1, "(0, inf)", "of the share of the way that is left; 1 is a straight line"),
}

--- to + (from - to) (1 - share of the way)^power; the last value stays.
--- @return fun(step: integer): number
function M.polynomial(given)
  local o = read("sched.polynomial", given, polynomial_rules)
  return schedule("sched.polynomial", function(step)
    return o.to + (o.from - o.to) * (1 - progress(step, o.steps)) ^ o.power
  end)
end
options.declare(M.polynomial, {}, polynomial_rules)

local step_rules = {
  from = value_rule(required, "value of the first step"),
  factor = options.number(0.1, "[0, inf)", "of each change"),
  every = options.integer(options.none, "[1, inf)", "steps between changes"),
  at = options.value(options.none, "table", "the last steps before a change, rising: { 1000, 1500 }; instead of every"),
}

local function check_rising(list)
  for k in pairs(list) do
    if math.type(k) ~= "integer" or k < 1 or k > #list then
      error(("sched.step: at has the key %q, expected a list of steps"):format(tostring(k)), 3)
    end
  end
  if #list == 0 then error("sched.step: at has no steps", 3) end
  local last = 0
  for i, s in ipairs(list) do
    if type(s) ~= "number" or not math.tointeger(s) or s <= last then
      error(("sched.step: at[%d] is %s, expected an integer above %d"):format(i, shown(s), last), 3)
    end
    last = math.tointeger(s)
  end
end

--- Times factor every `every` steps, or after each step of the list `at`.
--- @return fun(step: integer): number
function M.step(given)
  local o = read("sched.step", given, step_rules)
  if (o.every == nil) == (o.at == nil) then error("sched.step: give either every or at", 2) end
  if o.at then check_rising(o.at) end
  return schedule("sched.step", function(step)
    local n = 0
    if o.every then n = (step - 1) // o.every
    else for _, s in ipairs(o.at) do if step > s then n = n + 1 end end end
    return o.from * o.factor ^ n
  end)
end
options.declare(M.step, {}, step_rules)

local exponential_rules = {
  from = value_rule(required, "value of the first step"),
  factor = options.number(required, "[0, inf)", "of each step"),
  to = value_rule(0, "least value"),
}

--- Times factor each step, not below `to`.
--- @return fun(step: integer): number
function M.exponential(given)
  local o = read("sched.exponential", given, exponential_rules)
  return schedule("sched.exponential", function(step) return math.max(o.from * o.factor ^ (step - 1), o.to) end)
end
options.declare(M.exponential, {}, exponential_rules)

local one_cycle_rules = {
  peak = value_rule(required, "largest value"),
  steps = options.integer(required, "[2, inf)", "of the whole cycle; the last value stays"),
  rise = options.number(0.3, "[0, 1]", "share of the steps on the way up"),
  divide = options.number(25, "(0, inf)", "the first value is peak / divide"),
  divide_last = options.number(1e4, "(0, inf)", "the last value is the first / divide_last"),
}

--- Up to a peak and down below the start along half cosines (Smith and Topin 2018), as
--- torch.optim.lr_scheduler.OneCycleLR.
--- @return fun(step: integer): number
function M.one_cycle(given)
  local o = read("sched.one_cycle", given, one_cycle_rules)
  local first = o.peak / o.divide
  local last, top = first / o.divide_last, o.rise * o.steps - 1 -- counted from 0
  local function between(a, b, share) return b + (a - b) * 0.5 * (1 + math.cos(math.pi * share)) end
  return schedule("sched.one_cycle", function(step)
    local at = math.min(step - 1, o.steps - 1)
    if at <= top then return top > 0 and between(first, o.peak, at / top) or o.peak end
    local from = math.max(top, 0)
    return between(o.peak, last, (at - from) / (o.steps - 1 - from))
  end)
end
options.declare(M.one_cycle, {}, one_cycle_rules)

local wsd_rules = {
  peak = value_rule(required, "between the rise and the fall"),
  steps = options.integer(required, "[1, inf)", "of all three"),
  warmup = options.integer(0, "[0, inf)", "steps of the rise, which ends at peak"),
  decay = options.number(0.25, "[0, 1]", "share of the steps, the last ones, over which the value falls along a line"),
  to = value_rule(0, "where the line would be one step after the last: no step is without effect"),
}

--- Warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395, section 4): a rise from 0, the same value, and a fall at
--- the end. A run that is continued before its fall is the run that was longer from the start.
--- @return fun(step: integer): number
function M.wsd(given)
  local o = read("sched.wsd", given, wsd_rules)
  local fall = o.decay * o.steps
  return schedule("sched.wsd", function(step)
    local left = math.max(o.steps - step + 1, 0)
    local risen = step < o.warmup and step / o.warmup or 1
    local fallen = left < fall and left / fall or 1
    return risen * (o.to + fallen * (o.peak - o.to))
  end)
end
options.declare(M.wsd, {}, wsd_rules)

local warmup_rules = {
  n = options.integer(required, "[0, inf)", "steps of the rise"),
  after = options.value(required, "callable", "schedule that follows"),
}

--- Rises in a straight line over the first n steps to the value where `after` begins; `after`
--- counts its steps from the end of the warm-up.
--- @param n integer
--- @param after fun(step: integer): number
--- @return fun(step: integer): number
function M.warmup(n, after)
  local o = options.read("sched.warmup", { "n", "after" }, warmup_rules, 3, n, after)
  return schedule("sched.warmup", function(step)
    if step <= o.n then return o.after(1) * step / o.n end
    return o.after(step - math.tointeger(o.n))
  end)
end
options.declare(M.warmup, { "n", "after" }, warmup_rules)

--- One schedule after another: sched.chain{ { 100, a }, { 900, b }, { c } }; each counts from 1.
--- @param parts table[]  { steps, schedule }, the last { schedule }
--- @return fun(step: integer): number
function M.chain(parts)
  if type(parts) ~= "table" or #parts == 0 then error("sched.chain: there are no parts", 2) end
  for i, part in ipairs(parts) do
    local last = i == #parts
    if type(part) ~= "table" or not is_callable(part[#part]) or #part > 2 or not last and #part ~= 2 then
      error(("sched.chain: part %d is not { %sschedule }"):format(i, last and "" or "steps, "), 2)
    end
    local n = part[1]
    if #part == 2 and (type(n) ~= "number" or not math.tointeger(n) or n < 1) then
      error(("sched.chain: the steps of part %d are %s, expected an integer from 1"):format(i, shown(n)), 2)
    end
  end
  return schedule("sched.chain", function(step)
    for i, part in ipairs(parts) do
      if i == #parts then return part[#part](step) end
      if step <= part[1] then return part[2](step) end
      step = step - math.tointeger(part[1])
    end
  end)
end

local scale_rules = {
  schedule = options.value(required, "callable", "step -> value"),
  by = options.value(required, "number or callable", "factor, or a schedule of factors"),
}

--- The product of a schedule and a factor or another schedule.
--- @param of fun(step: integer): number
--- @param by number|fun(step: integer): number
--- @return fun(step: integer): number
function M.scale(of, by)
  local o = options.read("sched.scale", { "schedule", "by" }, scale_rules, 3, of, by)
  if type(o.by) == "number" and not is_finite(o.by) then
    error(("sched.scale: by is %s, expected a finite number or a schedule"):format(shown(o.by)), 2)
  end
  return schedule("sched.scale", function(step)
    return o.schedule(step) * (is_callable(o.by) and o.by(step) or o.by)
  end)
end
options.declare(M.scale, { "schedule", "by" }, scale_rules)

-- ---- plateau ----

--- @class perilune.sched.Plateau
--- @field value number  from now on
--- @field best number?  metric so far
--- @field bad integer  observations since the best one that were no better
--- @field nonfinite integer  observations that were NaN or infinite
local Plateau = { __name = "plateau" }
Plateau.__index = Plateau

local plateau_rules = {
  from = value_rule(required, "first value"),
  factor = options.number(0.1, "(0, 1)", "of each drop"),
  patience = options.integer(10, "[0, inf)", "observations without a better one that are waited for"),
  threshold = options.number(1e-4, "[0, inf)", "share of the best metric that a better one must gain"),
  cooldown = options.integer(0, "[0, inf)", "observations after a drop that do not count"),
  to = value_rule(0, "least value"),
  mode = options.choice("min", { "min", "max" }, "whether less is better, or more"),
}

--- Times factor when a metric has not become better for more than `patience` observations:
---   local lr = sched.plateau { from = 1e-3 }; opt:step{ lr = lr() }; lr:observe(loss)
--- @return perilune.sched.Plateau
function M.plateau(given)
  local o = read("sched.plateau", given, plateau_rules)
  return setmetatable({ _o = o, value = o.from, bad = 0, wait = 0, nonfinite = 0 }, Plateau)
end
options.declare(M.plateau, {}, plateau_rules)

Plateau.__call = function(self) return self.value end

-- A number of what a user observes: a number, or a tensor of one element.
local function metric_of(v)
  if getmetatable(v) == "perilune.tensor" then
    local ok, value = pcall(v.item, v)
    if not ok then error("observe: the metric is a tensor of several elements, expected one", 3) end
    v = value
  end
  if type(v) ~= "number" then
    error(("observe: the metric is %s, expected a number or a tensor of one element"):format(shown(v)), 3)
  end
  return v
end

--- One observation of the metric. NaN and infinities are never better: they count as no improvement, and in
--- the field nonfinite.
--- @param metric number|perilune.Tensor  a tensor has one element
--- @return number  the value from now on
function Plateau:observe(metric)
  local o, best = self._o, self.best
  metric = metric_of(metric)
  local margin = best and math.abs(best) * o.threshold or 0
  local better = is_finite(metric) and (best == nil or o.mode == "min" and metric < best - margin
    or o.mode == "max" and metric > best + margin)
  if not is_finite(metric) then self.nonfinite = self.nonfinite + 1 end
  if better then self.best, self.bad = metric, 0 else self.bad = self.bad + 1 end
  if self.wait > 0 then self.wait, self.bad = self.wait - 1, 0 end
  if self.bad > o.patience then
    self.value, self.bad, self.wait = math.max(self.value * o.factor, o.to), 0, o.cooldown
  end
  return self.value
end

--- Where it stands, as a plain table for checkpoints.
--- @return table
function Plateau:state()
  return { value = self.value, best = self.best, bad = self.bad, wait = self.wait, nonfinite = self.nonfinite }
end

--- Go on from state().
--- @param s table
--- @return self
function Plateau:set_state(s)
  local function is_count(v) return type(v) == "number" and math.tointeger(v) ~= nil and v >= 0 end
  if type(s) ~= "table" or not is_finite(s.value) or s.best ~= nil and not is_finite(s.best)
    or not is_count(s.bad) or not is_count(s.wait) or s.nonfinite ~= nil and not is_count(s.nonfinite) then
    error("set_state: not the state of a plateau", 2)
  end
  self.value, self.best, self.bad, self.wait = s.value, s.best, s.bad, s.wait
  self.nonfinite = s.nonfinite or 0
  return self
end

return require "perilune.names"(M, "perilune.sched")
