-- beta.lua - beta distributions between two bounds: policies of actions that have bounds, without squashing.
local peri = require "perilune"
local base = require "perilune.dist.distribution"
local bounds = require "perilune.dist.bounds"
local options = require "perilune.options"

local M = {}

local Beta = base.class("Beta", {
  rsample = "its draws come of rejection; weigh log_prob by what came of it",
  mode = "it lies on a bound, or on both, where alpha or beta is at most 1; see mean",
})

local number = "tensor or number"
local rules = bounds.rules(0, 1)
rules.alpha = options.value(options.required, number, "more than 0; 1 + softplus(x) of a net's output has one peak")
rules.beta = options.value(options.required, number, "more than 0; broadcasts with alpha")
rules.event = base.event

--- Beta distributions on [low, high], the density of y, which part of the way from low to high a value lies, being
--- proportional to y^(alpha - 1) (1 - y)^(beta - 1); with event = 1 a row is one value (Chou et al. 2017).
--- @param alpha perilune.Tensor|number
--- @param beta perilune.Tensor|number
--- @param opts table?
--- @return perilune.dist.Distribution
function M.Beta(alpha, ...)
  local who = "dist.Beta"
  local o = options.read(who, { "alpha", "beta" }, rules, 3, alpha, ...)
  local shape, a, b = base.parameters(who, o, { "alpha", "beta" })
  base.want_positive(who, "alpha", a)
  base.want_positive(who, "beta", b)
  local batch, event = base.divided(who, shape, o.event)
  local d = setmetatable({ alpha = a, beta = b, batch = batch, event = event, dtype = a.dtype }, Beta)
  bounds.set(who, d, o)
  return d
end
options.declare(M.Beta, { "alpha", "beta" }, rules)

local function log_norm(a, b) return a:lgamma():add(b:lgamma()):sub(a:add(b):lgamma()) end

-- X / (X + Y) of two gamma draws, by their logarithms: both may lie below what the dtype holds.
function Beta:_draw(lead)
  local shape = base.joined(lead, base.joined(self.batch, self.event))
  local x = peri.rand_gamma(self.alpha:expand(shape), true)
  local y = peri.rand_gamma(self.beta:expand(shape), true)
  return bounds.scaled(self, x:sub(y):sigmoid())
end

function Beta:_log_prob(x)
  local y = bounds.unscaled(self, x)
  local out = y:log():mul(self.alpha:sub(1)):add(y:neg():log1p():mul(self.beta:sub(1)))
  return self:_sum(out:sub(log_norm(self.alpha, self.beta)):sub(bounds.log_range(self)))
end

function Beta:_entropy()
  local a, b = self.alpha, self.beta
  local sum = a:add(b)
  local out = log_norm(a, b):sub(a:sub(1):mul(a:digamma())):sub(b:sub(1):mul(b:digamma()))
  return self:_total(out:add(sum:sub(2):mul(sum:digamma())):add(bounds.log_range(self)))
end

function Beta:_mean()
  local y = self.alpha:div(self.alpha:add(self.beta))
  return bounds.scaled(self, y):expand(base.joined(self.batch, self.event))
end

function Beta:_best() return self:_mean() end

function Beta:_kl(q)
  local why = bounds.differ(self, q)
  if why then return nil, why end
  local a, b, sum = self.alpha, self.beta, self.alpha:add(self.beta)
  local da, db = a:sub(q.alpha), b:sub(q.beta)
  local out = log_norm(q.alpha, q.beta):sub(log_norm(a, b))
  out = out:add(da:mul(a:digamma())):add(db:mul(b:digamma())):sub(da:add(db):mul(sum:digamma()))
  return self:_sum(out)
end

return M
