-- planning.lua - choosing actions by asking what they would lead to: sequences are drawn, valued and drawn better. Of
-- many problems side by side, a row each.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local function shared_rules(more)
  local all = {
    shape = options.value(options.required, "table", "of a solution: { horizon, actions }, or { n }"),
    rows = options.integer(1, "[1, inf)", "problems side by side"),
    low = options.value(-1, "number or tensor", "least of every number; a tensor broadcasts with a solution"),
    high = options.value(1, "number or tensor", "and the largest"),
    population = options.integer(200, "[1, inf)", "solutions that are drawn each time"),
  }
  for name, rule in pairs(more or {}) do all[name] = rule end
  return all
end

-- Bounds as tensors that broadcast with (rows, population, ...); low below high everywhere.
local function bounds_of(who, o)
  local low, high = o.low, o.high
  if type(low) == "number" then low = peri.tensor(low, "f32") end
  if type(high) == "number" then high = peri.tensor(high, "f32") end
  if not (low:le(high):all():item() and low:isfinite():all():item() and high:isfinite():all():item()) then
    options.raise(who .. ": low is not below high everywhere, or a bound is not finite")
  end
  return low, high
end

-- What solutions (rows, population, ...) are worth, checked: (rows, population), and never a NaN among the best.
local function worth(who, objective, x, o)
  local value = objective(x)
  if not peri.is_tensor(value) or options.shape(value) ~= options.shape { o.rows, o.population } then
    options.raise(("%s: the objective gave %s, expected a tensor %s"):format(who,
      peri.is_tensor(value) and options.shape(value) or type(value), options.shape { o.rows, o.population }))
  end
  if value:ne(value):any():item() then options.raise(who .. ": the objective gave a NaN") end
  return value
end

-- Those of the k best, (rows, k, ...): places (rows, k) in x (rows, population, ...).
local function picked(x, places)
  local shape = x.shape
  local index = places
  for _ = 3, #shape do index = index:unsqueeze(-1) end
  shape[2] = places.shape[2]
  return x:gather(index:expand(shape), 2)
end

local shooting_rules = shared_rules()

--- The best of solutions that are drawn evenly between the bounds: random shooting (Nagabandi et al. 2018, section IV).
---   local plan, value = rl.shooting(returns, { shape = { 15, 1 }, rows = 8, population = 500 })
--- @param objective fun(x: perilune.Tensor): perilune.Tensor  what (rows, population, ...) are worth: (rows,
--- population), more is better
--- @param opts table
--- @return perilune.Tensor best  (rows, ...)
--- @return perilune.Tensor value  (rows)
function M.shooting(objective, opts)
  local who <const> = "rl.shooting"
  options.argument(who, "objective", objective, "callable")
  local o = options.fill(who, opts, shooting_rules)
  local low, high = bounds_of(who, o)
  local _ <close> = peri.no_grad()
  local x = low + (high - low) * peri.rand { o.rows, o.population, table.unpack(o.shape) }
  local value, place = worth(who, objective, x, o):topk(1)
  return picked(x, place):squeeze(2), value:squeeze(2)
end
options.declare(M.shooting, { "objective" }, shooting_rules)

local cem_rules = shared_rules {
  elites = options.integer(20, "[2, inf)", "the best of them, from which the next are drawn"),
  iterations = options.integer(5, "[1, inf)", "times that solutions are drawn"),
  mean = options.value(options.none, "tensor", "(rows, ...) where the first are drawn around: an earlier plan, "
    .. "moved on; none: the middle"),
  std = options.value(options.none, "number or tensor", "their deviation at first; none: half of the width"),
  momentum = options.number(0.1, "[0, 1)", "share of the old mean and variance that stays"),
  keep = options.integer(1, "[0, inf)", "of the best solutions so far that are valued again with the next"),
}

--- The cross-entropy method: solutions are drawn from a Gaussian within bounds, the best move its mean and variance,
--- and again (Rubinstein 1999; Chua et al. 2018, section 5, with its momentum; what is kept of the best, Pinneri et
--- al. 2020). The mean of the last is returned, and the best solution that was seen.
---   local plan = rl.cem(returns, { shape = { 15, 1 }, rows = 8, mean = earlier })
--- @param objective fun(x: perilune.Tensor): perilune.Tensor  what (rows, population, ...) are worth: (rows,
--- population), more is better
--- @param opts table
--- @return perilune.Tensor mean  (rows, ...)
--- @return perilune.Tensor best  (rows, ...)
--- @return perilune.Tensor value  (rows), of the best
function M.cem(objective, opts)
  local who <const> = "rl.cem"
  options.argument(who, "objective", objective, "callable")
  local o = options.fill(who, opts, cem_rules)
  if o.elites > o.population then
    options.raise(("rl.cem: elites is %d, more than a population of %d"):format(o.elites, o.population))
  end
  if o.keep > o.elites then options.raise(("rl.cem: keep is %d, more than the elites, %d"):format(o.keep, o.elites)) end
  local low, high = bounds_of(who, o)
  local _ <close> = peri.no_grad()
  local full = { o.rows, 1, table.unpack(o.shape) }
  local function whole(x) return (x + peri.zeros(full)) end -- broadcast
  local mean = o.mean and o.mean:unsqueeze(2) or whole((low + high) * 0.5)
  if options.shape(mean) ~= options.shape(full) then
    options.raise(("rl.cem: mean has shape %s, expected %s"):format(options.shape(o.mean),
      options.shape { o.rows, table.unpack(o.shape) }))
  end
  local var = o.std and whole(o.std):square() or whole((high - low) * 0.5):square()
  local kept, best, value
  for _ = 1, o.iterations do
    local n = o.population - (kept and o.keep or 0)
    local x = mean + var:sqrt() * peri.randn { o.rows, n, table.unpack(o.shape) }
    x = x:minimum(high):maximum(low)
    if kept and o.keep > 0 then x = peri.cat({ kept, x }, 2) end
    local top, places = worth(who, objective, x, o):topk(o.elites)
    local elite = picked(x, places) -- (rows, elites, ...), the best first
    kept = o.keep > 0 and elite:narrow(2, 1, o.keep) or nil
    local here, new = elite:select(2, 1), top:select(2, 1)
    if not best then best, value = here, new
    else
      local better = new:gt(value)
      local wide = better
      for _ = 1, #o.shape do wide = wide:unsqueeze(-1) end
      best, value = peri.where(wide, here, best), peri.where(better, new, value)
    end
    local centre = elite:mean(2, true)
    mean = mean * o.momentum + centre * (1 - o.momentum)
    var = var * o.momentum + (elite - centre):square():mean(2, true) * (1 - o.momentum)
  end
  return mean:squeeze(2), best, value
end
options.declare(M.cem, { "objective" }, cem_rules)

local ahead_rules = {
  gamma = options.number(1, "[0, 1]", "discount"),
  last = options.value(options.none, "callable", "value of the last observation: last(obs) (...)"),
}

--- What sequences of actions earn in a model, with what is behind the last of them: the sum of gamma^t r_t.
---
---     -- actions: (rows, population, horizon, k), as rl.cem gives them
---     local function returns(actions) return rl.look_ahead(model, obs, actions) end
---
--- rl.Dynamics has learners where this has rows, so with one learner of several rows these are folded into one:
---
---     local function model(at, action) -- the population is a multiple of the members
---       local rows, n, d = table.unpack(at.shape)
---       local led, reward = dynamics:predict(at:reshape { 1, rows * n, d }, action:reshape { 1, rows * n, -1 })
---       return led:reshape { rows, n, d }, reward:reshape { rows, n }
---     end
---
--- @param model fun(obs: perilune.Tensor, action: perilune.Tensor): perilune.Tensor, perilune.Tensor, perilune.Tensor?
---  the next observations (..., d), rewards (...) and, where episodes can end, which of them did (...) bool
--- @param obs perilune.Tensor  (rows, d): where each row begins
--- @param actions perilune.Tensor  (rows, population, horizon, k)
--- @param opts table?
--- @return perilune.Tensor  (rows, population)
function M.look_ahead(model, obs, actions, opts)
  local who <const> = "rl.look_ahead"
  options.argument(who, "model", model, "callable")
  options.argument(who, "obs", obs, "tensor")
  options.argument(who, "actions", actions, "tensor")
  local o = options.fill(who, opts, ahead_rules)
  if obs.ndim ~= 2 or actions.ndim ~= 4 or obs.shape[1] ~= actions.shape[1] then
    options.raise(("rl.look_ahead: obs has shape %s and actions %s, expected (rows, d) and (rows, population, "
      .. "horizon, k)"):format(options.shape(obs), options.shape(actions)))
  end
  local _ <close> = peri.no_grad()
  local rows, population, horizon = table.unpack(actions.shape, 1, 3)
  local at = obs:unsqueeze(2):expand { rows, population, obs.shape[2] }
  local sum, going, discount = peri.zeros { rows, population }, nil, 1
  for t = 1, horizon do
    local led, reward, over = model(at, actions:select(3, t))
    sum = sum + (going and reward * going or reward) * discount
    if over then
      local on = over:eq(0):to "f32"
      going = going and going * on or on
    end
    at, discount = led, discount * o.gamma
  end
  if o.last then
    local behind = o.last(at)
    sum = sum + (going and behind * going or behind) * discount
  end
  return sum
end
options.declare(M.look_ahead, { "model", "obs", "actions" }, ahead_rules)

return M
