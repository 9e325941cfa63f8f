-- accountant.lua - how much privacy noisy sums of clipped gradients cost: Renyi differential privacy of the sampled
-- Gaussian mechanism, added up over steps and said as (epsilon, delta). Plain arithmetic, no tensors.
--
-- One step draws each unit (here a trajectory) with probability rate, on its own (Poisson), and releases the sum of
-- what they give, each of norm at most C, with normal noise of deviation noise * C. Neighbours differ by one unit that
-- is there or is not. A fixed batch, or one that is shuffled, is another mechanism: these figures do not hold for it.
local options = require "perilune.options"

local M = {}

local exp, log, huge, abs = math.exp, math.log, math.huge, math.abs

-- ---- special functions ----

-- log erfc(x), to some 1e-14: a series of positive terms near 0, a continued fraction from 2 on (Abramowitz and Stegun
-- 7.1.6 and 7.1.14).
local function log_erfc(x)
  if x < 0 then return log(2 - exp(log_erfc(-x))) end
  if x < 2 then
    local term, sum, n = x, x, 0
    repeat
      n = n + 1
      term = term * 2 * x * x / (2 * n + 1)
      sum = sum + term
    until term <= 1e-17 * sum
    return log(1 - 2 / math.sqrt(math.pi) * exp(-x * x) * sum)
  end
  local f = 0
  for k = 12 + 300 // (x * x), 1, -1 do f = k / 2 / (x + f) end
  return -x * x - log(x + f) - log(math.pi) / 2
end

local function log_add(a, b)
  local high, low = math.max(a, b), math.min(a, b)
  if low == -huge then return high end
  local d = exp(low - high)
  return high + (d < 1e-9 and d or log(1 + d))
end

-- log(e^a - e^b), a >= b up to rounding.
local function log_sub(a, b)
  if b == -huge then return a end
  local left = 1 - exp(b - a)
  return left > 0 and a + log(left) or -huge
end

-- log E[(1 - q + q e^((2 z - 1) / (2 sigma^2)))^alpha] over z ~ N(0, sigma^2), of an integer alpha: binomial theorem
-- (Mironov, Talwar and Zhang 2019, section 3.3, eq. 4 and 5).
local function log_moment_integer(alpha, sigma, q)
  local sum, choose = -huge, 0 -- log of binomial(alpha, i)
  for i = 0, alpha do
    if i > 0 then choose = choose + log((alpha - i + 1) / i) end
    sum = log_add(sum, choose + i * log(q) + (alpha - i) * log(1 - q) + (i * i - i) / (2 * sigma * sigma))
  end
  return sum
end

-- The same of any alpha > 1: two series, on either side of where both terms of the binomial are equal (the same paper,
-- section 3.3 on fractional orders).
local function log_moment_fractional(alpha, sigma, q)
  local left, right, i, coef = -huge, -huge, 0, 1.0
  local z0, root = sigma * sigma * log(1 / q - 1) + 0.5, math.sqrt(2) * sigma
  local s0, s1
  repeat
    local j, size = alpha - i, log(abs(coef))
    s0 = size + i * log(q) + j * log(1 - q) + (i * i - i) / (2 * sigma * sigma) + log(0.5) + log_erfc((i - z0) / root)
    s1 = size + j * log(q) + i * log(1 - q) + (j * j - j) / (2 * sigma * sigma) + log(0.5) + log_erfc((z0 - j) / root)
    local join = coef > 0 and log_add or log_sub
    left, right = join(left, s0), join(right, s1)
    coef = coef * (alpha - i) / (i + 1)
    i = i + 1
  until math.max(s0, s1) < -30 and i > alpha -- what is left out alternates: it is less than the last
  return log_add(left, right)
end

-- The Renyi divergence of one step at an order.
local function divergence(order, noise, rate)
  if rate == 0 then return 0 end
  if noise == 0 then return huge end
  if rate == 1 then return order / (2 * noise * noise) end
  local whole = math.tointeger(order)
  local moment = whole and log_moment_integer(whole, noise, rate) or log_moment_fractional(order, noise, rate)
  return moment / (order - 1)
end

-- ---- the accountant ----

-- Opacus' orders, and a few large ones, without which no small epsilon can be stated.
local orders = {}
for i = 1, 99 do orders[#orders + 1] = 1 + i / 10 end
for i = 12, 63 do orders[#orders + 1] = i end
for _, order in ipairs { 72, 96, 128, 192, 256, 384, 512, 768, 1024 } do orders[#orders + 1] = order end

local step_rules = {
  noise = options.number(options.required, "[0, inf)", "deviation of the noise, as a multiple of the largest norm"),
  rate = options.number(1, "[0, 1]", "probability with which each trajectory takes part, each on its own"),
  steps = options.integer(1, "[0, inf)", "how many such steps"),
}

local rdp_rules = {
  order = options.number(options.required, "(1, inf)", "alpha"),
  noise = step_rules.noise, rate = step_rules.rate,
}

--- The Renyi divergence that one step of the sampled Gaussian mechanism has at most, between data with and without one
--- trajectory (Mironov, Talwar and Zhang 2019, 1908.10530): rl.rdp(2.5, { noise = 1.5, rate = 0.04 }).
--- @param order number  alpha, above 1
--- @param opts table
--- @return number
function M.rdp(...)
  local o = options.read("rl.rdp", { "order" }, rdp_rules, 3, ...)
  return divergence(o.order, o.noise, o.rate)
end
options.declare(M.rdp, { "order" }, rdp_rules)

--- @class perilune.rl.Accountant
local Accountant = {}
Accountant.__index = Accountant

--- How much privacy noisy steps have cost so far: an accountant of the sampled Gaussian mechanism in Renyi differential
--- privacy. The unit of privacy is what is clipped and drawn: a trajectory.
---
---     local accountant = rl.accountant()
---     accountant:step { noise = 1.5, rate = 0.04, steps = 2250 }
---     local epsilon = accountant:epsilon(1e-5) -- 7.329
---
--- @return perilune.rl.Accountant
function M.accountant() return setmetatable({ done = {}, cache = {} }, Accountant) end

--- Count steps that were taken. Steps of several kinds add up.
--- @param opts table
--- @return self
function Accountant:step(opts)
  local o = options.fill("accountant:step", opts, step_rules)
  local last = self.done[#self.done]
  if last and last.noise == o.noise and last.rate == o.rate then last.steps = last.steps + o.steps
  else self.done[#self.done + 1] = { noise = o.noise, rate = o.rate, steps = o.steps } end
  return self
end
options.declare(Accountant.step, { "self" }, step_rules)

-- The divergences of one step at every order; those of a kind of step are computed once.
local function curve(cache, noise, rate)
  local key = ("%a %a"):format(noise, rate)
  if not cache[key] then
    local list = {}
    for i, order in ipairs(orders) do list[i] = divergence(order, noise, rate) end
    cache[key] = list
  end
  return cache[key]
end

local delta_rule = options.number(options.required, "(0, 1)", "probability with which the bound may not hold")

local function check_delta(who, delta)
  local problem = delta == nil and "delta is missing" or options.problem("delta", delta, delta_rule)
  if problem then options.raise(who .. ": " .. problem) end
end

--- The least epsilon for which the steps so far are (epsilon, delta)-differentially private, of the best order:
--- RDP - (log delta + log alpha) / (alpha - 1) + log((alpha - 1) / alpha) (Canonne, Kamath and Steinke 2020,
--- proposition 12; Balle et al. 2020, theorem 21), as Opacus. math.huge after a step without noise.
--- @param delta number  in (0, 1): much less than one over the number of trajectories
--- @return number epsilon
--- @return number order  at which it was found
function Accountant:epsilon(delta)
  check_delta("accountant:epsilon", delta)
  local best, at = huge, orders[1]
  for i, order in ipairs(orders) do
    local sum = 0
    for _, kind in ipairs(self.done) do
      if kind.steps > 0 then sum = sum + kind.steps * curve(self.cache, kind.noise, kind.rate)[i] end
    end
    local epsilon = sum == 0 and 0 or sum - (log(delta) + log(order)) / (order - 1) + log((order - 1) / order)
    if epsilon < best then best, at = epsilon, order end
  end
  return math.max(best, 0), at
end

--- What a checkpoint keeps.
--- @return table
function Accountant:state()
  local list = {}
  for i, kind in ipairs(self.done) do list[i] = { noise = kind.noise, rate = kind.rate, steps = kind.steps } end
  return { done = list }
end

--- Go on from a state.
--- @param s table
--- @return self
function Accountant:set_state(s)
  if type(s) ~= "table" or type(s.done) ~= "table" then options.raise "accountant: the state has no list done" end
  local list = {}
  for i, kind in ipairs(s.done) do list[i] = options.fill("accountant:set_state", kind, step_rules) end
  self.done = list
  return self
end

local noise_rules = {
  epsilon = options.number(options.required, "(0, inf)", "that is not to be exceeded"),
  delta = delta_rule, rate = step_rules.rate,
  steps = options.integer(options.required, "[1, inf)", "that will be taken"),
  tolerance = options.number(1e-4, "(0, 1)", "relative, by which the noise may be larger than it need be"),
}

--- The noise with which so many steps stay within a wished epsilon; never less than that takes, and larger than the
--- least such noise by at most the tolerance.
--- @param opts table
--- @return number noise  a multiple of the largest norm
function M.noise_for(opts)
  local o = options.fill("rl.noise_for", opts, noise_rules)
  local function cost(noise)
    return (M.accountant():step({ noise = noise, rate = o.rate, steps = o.steps }):epsilon(o.delta))
  end
  local low, high = 0, 1
  while cost(high) > o.epsilon do
    if high > 1e6 then
      options.raise(("rl.noise_for: no noise up to %g reaches epsilon %g with delta %g: orders end at %g"):format(high,
        o.epsilon, o.delta, orders[#orders]))
    end
    low, high = high, high * 2
  end
  while high - low > o.tolerance * high and high > 1e-3 do
    local middle = (low + high) / 2
    if cost(middle) > o.epsilon then low = middle else high = middle end
  end
  return high
end
options.declare(M.noise_for, {}, noise_rules)

return M
