-- normal.lua - normal distributions of numbers and of vectors with a diagonal covariance, and squashed between bounds.
local peri = require "perilune"
local base = require "perilune.dist.distribution"
local bounds = require "perilune.dist.bounds"
local options = require "perilune.options"

local M = {}

local HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

local Normal = base.class("Normal", {})
Normal._reparametrised = true

local number = "tensor or number"
local normal_rules = {
  mean = options.value(options.required, number, "of each element"),
  std = options.value(options.none, number, "its deviation, more than 0; broadcasts with mean"),
  log_std = options.value(options.none, number, "the logarithm of the deviation, in place of std"),
  event = base.event,
}

-- Fields of a normal distribution from what a user gave.
local function fill(who, o, class)
  if (o.std == nil) == (o.log_std == nil) then
    options.raise(("%s: expected one of std and log_std, got %s"):format(who, o.std and "both" or "none"))
  end
  local key = o.std ~= nil and "std" or "log_std"
  local shape, mean, deviation = base.parameters(who, o, { "mean", key })
  if key == "std" then
    base.want_positive(who, "std", deviation)
    deviation = deviation:log()
  end
  local batch, event = base.divided(who, shape, o.event)
  return setmetatable({ loc = mean, log_std = deviation, batch = batch, event = event, dtype = mean.dtype }, class)
end

--- Normal distributions; with event = 1 a row is one value of a diagonal Gaussian, the policy of a Box space. The
--- deviation may depend on the state or be one row for all of them.
---   dist.Normal(mean, { log_std = log_std, event = 1 })     -- (B, A), (A)
--- @param mean perilune.Tensor|number
--- @param std perilune.Tensor|number?
--- @param opts table?
--- @return perilune.dist.Distribution
function M.Normal(mean, ...)
  local o = options.read("dist.Normal", { "mean", "std" }, normal_rules, 3, mean, ...)
  local d = fill("dist.Normal", o, Normal)
  return d
end
options.declare(M.Normal, { "mean", "std" }, normal_rules)

local function drawn(self, lead)
  local shape = base.joined(lead, base.joined(self.batch, self.event))
  return peri.randn(shape, self.loc.dtype):mul(self.log_std:exp()):add(self.loc)
end

local function density(self, x)
  local z = x:sub(self.loc):mul(self.log_std:neg():exp())
  return z:square():mul(-0.5):sub(self.log_std):sub(HALF_LOG_2PI)
end

function Normal:_draw(lead) return drawn(self, lead) end
function Normal:_log_prob(x) return self:_sum(density(self, x)) end
function Normal:_entropy() return self:_total(self.log_std:add(HALF_LOG_2PI + 0.5)) end
function Normal:_mean() return self.loc:expand(base.joined(self.batch, self.event)) end
function Normal:_mode() return self:_mean() end
function Normal:_best() return self:_mean() end

-- log s_q - log s_p + ((s_p / s_q)^2 + ((m_p - m_q) / s_q)^2 - 1) / 2, element by element
local function divergence(p, q)
  local gap = p.log_std:sub(q.log_std)
  local off = p.loc:sub(q.loc):mul(q.log_std:neg():exp())
  return gap:mul(2):exp():add(off:square()):sub(1):mul(0.5):sub(gap)
end

function Normal:_kl(q) return self:_sum(divergence(self, q)) end

-- ---- SquashedNormal ----

local Squashed = base.class("SquashedNormal", {
  entropy = "there is no closed form; -d:log_prob(d:rsample()) estimates it",
  mean = "there is no closed form; d:deterministic() is the squashed mean",
  mode = "there is no closed form; d:deterministic() is the squashed mean",
})
Squashed._reparametrised, Squashed._squashes = true, true

local squashed_rules = bounds.rules(-1, 1)
for name, rule in pairs(normal_rules) do squashed_rules[name] = rule end

--- Normal distributions squashed by tanh into (low, high): the policy of SAC. log_prob has every digit, at the bounds
--- as well, when it also gets what sample and rsample give as their second result.
---   local action, before = d:rsample()
---   local logp = d:log_prob(action, before)
--- @param mean perilune.Tensor|number  before squashing
--- @param std perilune.Tensor|number?
--- @param opts table?
--- @return perilune.dist.Distribution
function M.SquashedNormal(mean, ...)
  local who = "dist.SquashedNormal"
  local o = options.read(who, { "mean", "std" }, squashed_rules, 3, mean, ...)
  local d = fill(who, o, Squashed)
  bounds.set(who, d, o)
  return d
end
options.declare(M.SquashedNormal, { "mean", "std" }, squashed_rules)

function Squashed:_squash(u) return bounds.scaled(self, u:tanh():mul(0.5):add(0.5)) end

function Squashed:_draw(lead)
  local u = drawn(self, lead)
  return self:_squash(u), u
end

-- log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)) cancels nothing. tanh maps to 2, not 1, parts of the range.
function Squashed:_log_prob(x, u)
  if not u then
    local y = bounds.unscaled(self, x):mul(2):sub(1)
    u = y:log1p():sub(y:neg():log1p()):mul(0.5) -- artanh
  end
  local slope = u:add(u:mul(-2):softplus(1, 60)):sub(math.log(2)):mul(-2)
  return self:_sum(density(self, u):sub(slope):sub(bounds.log_range(self) - math.log(2)))
end

function Squashed:_best() return self:_squash(self.loc):expand(base.joined(self.batch, self.event)) end

-- That of the normals: squashing both alike changes no probability.
function Squashed:_kl(q)
  local why = bounds.differ(self, q)
  if why then return nil, why end
  return self:_sum(divergence(self, q))
end

return M
