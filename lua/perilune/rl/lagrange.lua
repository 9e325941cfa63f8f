-- lagrange.lua - what a limit costs: multipliers that rise while something exceeds its limit and fall while it does
-- not, and what becomes of advantages under them.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local rules = {
  limit = options.number(options.required, "(-inf, inf)", "what the mean cost of an episode is to stay under"),
  seeds = options.integer(1, "[1, inf)", "learners with a multiplier each"),
  rate = options.number(0.05, "[0, inf)", "of the integral: alone it is gradient ascent on the dual"),
  proportional = options.number(0, "[0, inf)", "gain of what is over the limit now"),
  derivative = options.number(0, "[0, inf)", "gain of how fast the cost rises"),
  first = options.number(0, "[0, inf)", "multiplier at first"),
  most = options.number(1e3, "(0, inf)", "largest multiplier"),
}

--- @class perilune.rl.Lagrange
--- @field value perilune.Tensor  (seeds) f64, the multipliers
local Lagrange = {}
Lagrange.__index = Lagrange

--- Multipliers of a constraint, mean cost <= limit: for each learner the price of a unit of cost. By default ascent
--- along the gradient of the dual, lambda <- max(0, lambda + rate (cost - limit)) (Tessler, Mankowitz and Mannor 2019,
--- 1805.11074, eq. 8); with gains the PID of Stooke, Achiam and Abbeel (2020, 2007.03964, algorithm 2): lambda = max(0,
--- proportional over + integral + derivative max(0, cost - last cost)), which oscillates less. Nothing is above most.
---
---     local price = rl.lagrange { limit = 0.5, seeds = 10, rate = 0.02, proportional = 0.1 }
---     price:update(cost) -- the mean cost of an episode of each learner
---     advantage = price:advantage(advantage, cost_advantage)
---     run:log(step, { price = price.value:mean() }) -- price.value: the multipliers, (seeds) f64
---
--- @param opts table
--- @return perilune.rl.Lagrange
function M.lagrange(opts)
  local self = setmetatable(options.fill("rl.lagrange", opts, rules), Lagrange)
  self.integral = peri.keep(peri.full({ self.seeds }, math.min(self.first, self.most), "f64"))
  self.value, self.last = self.integral, nil
  return self
end
options.declare(M.lagrange, {}, rules)

local function numbers(self, who, cost)
  if type(cost) == "number" then cost = peri.tensor({ cost }, "f64") end
  options.argument(who, "cost", cost, "tensor")
  if cost.ndim ~= 1 or cost.shape[1] ~= self.seeds then
    options.raise(("%s: cost is %s, expected (%d), a number of each learner"):format(who, options.shape(cost),
      self.seeds))
  end
  if not cost:isfinite():all():item() then options.raise(who .. ": a cost is not finite") end
  return cost:detach():to "f64"
end

--- The multipliers after an update.
--- @param cost perilune.Tensor|number  (seeds) mean cost of an episode, as measured
--- @return perilune.Tensor value  (seeds) f64
function Lagrange:update(cost)
  cost = numbers(self, "lagrange:update", cost)
  local over = cost - self.limit
  local rise = (cost - (self.last or cost)):clamp(0)
  self.integral = peri.keep((self.integral + over * self.rate):clamp(0, self.most))
  self.value = peri.keep((over * self.proportional + self.integral + rise * self.derivative):clamp(0, self.most))
  self.last = peri.keep(cost)
  return self.value
end

--- Advantages under the price: (A - lambda A_cost) / (1 + lambda), which keeps their size (Stooke et al. 2020, section
--- 6.2). Rows of a learner stand one behind the other.
--- @param advantage perilune.Tensor  (steps, rows) of the reward
--- @param cost perilune.Tensor  (steps, rows) of the cost
--- @return perilune.Tensor
function Lagrange:advantage(advantage, cost)
  for name, x in pairs { advantage = advantage, cost = cost } do
    options.argument("lagrange:advantage", name, x, "tensor")
  end
  local rows = advantage.shape[2]
  if advantage.ndim ~= 2 or rows % self.seeds ~= 0 or options.shape(advantage) ~= options.shape(cost) then
    options.raise(("lagrange:advantage: advantages are %s and %s, expected (steps, rows) twice, rows of %d learners")
      :format(options.shape(advantage), options.shape(cost), self.seeds))
  end
  local price = self.value:repeat_interleave(rows // self.seeds, 1):to(advantage.dtype)
  return (advantage - cost * price) / (price + 1)
end

--- What a checkpoint keeps.
--- @return table
function Lagrange:state()
  return { integral = self.integral:tolist(), value = self.value:tolist(), last = self.last and self.last:tolist() }
end

--- Go on from a state.
--- @param s table
--- @return self
function Lagrange:set_state(s)
  local function list(name)
    local v = type(s) == "table" and s[name]
    if type(v) ~= "table" or #v ~= self.seeds then
      options.raise(("lagrange: the state has no %d numbers %s"):format(self.seeds, name))
    end
    return peri.keep(peri.tensor(v, "f64"))
  end
  local integral, value = list "integral", list "value"
  self.last = s.last and list "last" or nil
  self.integral, self.value = integral, value
  return self
end

local group_rules = {
  seeds = options.integer(1, "[1, inf)", "learners that share the rows, one behind the other: a group each"),
}

--- Group-relative advantages of one objective: what followed each step until the end of its episode, less the group's
--- mean and over its deviation (Shao et al. 2024, 2402.03300, section 4.1.3, with the steps of a learner's finished
--- episodes as the group). No value is learned. Steps of episodes that are not over in the rollout have advantage 0. Of
--- several objectives each is normalised on its own before they are weighed, so that scales do not weigh.
--- @param reward perilune.Tensor  (steps, rows)
--- @param over perilune.Tensor  (steps, rows) bool, ends of episodes
--- @param opts table?
--- @return perilune.Tensor  (steps, rows) f32
function M.group_advantage(reward, over, opts)
  local who = "rl.group_advantage"
  local o = options.fill(who, opts, group_rules)
  options.argument(who, "reward", reward, "tensor")
  options.argument(who, "over", over, "tensor")
  local steps, rows = reward.shape[1], reward.shape[2]
  if reward.ndim ~= 2 or options.shape(reward) ~= options.shape(over) or rows % o.seeds ~= 0 then
    options.raise(("%s: reward is %s and over %s, expected (steps, rows) twice, rows shared by %d learners"):format(who,
      options.shape(reward), options.shape(over), o.seeds))
  end
  options.finite(who, "reward", reward)
  local _ <close> = peri.no_grad()
  local counted, follow, sum = {}, {}, peri.zeros { rows }
  local seen = peri.zeros { rows }
  for t = steps, 1, -1 do
    local ends = over:select(1, t):to "f32"
    seen = seen:maximum(ends)
    sum = sum * (1 - ends) + reward:select(1, t)
    counted[t], follow[t] = seen, sum
  end
  local each = { steps, o.seeds, rows // o.seeds }
  local mask, x = peri.stack(counted):reshape(each), peri.stack(follow):reshape(each)
  local n = mask:sum({ 1, 3 }, true):clamp(1)
  local off = (x - (x * mask):sum({ 1, 3 }, true) / n) * mask
  local std = (off:square():sum({ 1, 3 }, true) / n):sqrt()
  return (off / (std + 1e-8)):reshape { steps, rows }
end
options.declare(M.group_advantage, { "reward", "over" }, group_rules)

return M
