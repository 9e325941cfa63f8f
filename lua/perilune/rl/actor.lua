-- actor.lua - policies that act in a box of numbers and learn from a critic: a Gaussian squashed between bounds (SAC),
-- and one action for each observation (TD3). Actions are in [-1, 1] here; rl.stretched makes them an environment's.

local peri = require "perilune"
local options = require "perilune.options"

local nn = peri.nn
local M = {}

local function rules(more)
  local all = {
    inputs = options.integer(options.required, "[1, inf)", "numbers of an observation"),
    actions = options.integer(options.required, "[1, inf)", "numbers of an action"),
    hidden = options.value({ 256, 256 }, "table", "widths of the hidden layers"),
    activation = options.choice("relu", { "relu", "tanh", "gelu", "silu", "elu" }, "between the layers"),
  }
  for name, rule in pairs(more or {}) do all[name] = rule end
  return all
end

local function sizes(first, hidden, last)
  local list = { first, table.unpack(hidden) }
  list[#list + 1] = last
  return list
end

local gaussian_rules = rules {
  log_std_min = options.number(-20, "(-inf, inf)", "least logarithm of a deviation"),
  log_std_max = options.number(2, "(-inf, inf)", "and the largest"),
}

--- The policy of SAC (Haarnoja et al. 2018, appendix C): a = tanh(mean(s) + std(s) e), e ~ N(0, 1), by one network.
--- Its call gives mean and log_std before squashing, which the head "squashed" of rl.policy.save reads.
---   local actor = rl.GaussianActor(3, 1, { hidden = { 256, 256 } })
---   local action, logp = actor:act(obs)                -- a draw with a gradient into the network, in [-1, 1]
--- @class perilune.rl.GaussianActor
--- @field net perilune.nn.MLP
M.GaussianActor = nn.class("GaussianActor", function (self, ...)
  local o = options.read("rl.GaussianActor", { "inputs", "actions" }, gaussian_rules, 4, ...)
  if o.log_std_min > o.log_std_max then
    options.raise(("rl.GaussianActor: log_std_min %g is above log_std_max %g"):format(o.log_std_min, o.log_std_max))
  end
  self.net = nn.MLP(sizes(o.inputs, o.hidden, 2 * o.actions), { activation = o.activation, init = "uniform" })
  self.actions, self.least, self.most = o.actions, o.log_std_min, o.log_std_max
end)
options.declare(M.GaussianActor, { "inputs", "actions" }, gaussian_rules)

--- @param obs perilune.Tensor  (..., inputs)
--- @return perilune.Tensor mean  (..., actions)
--- @return perilune.Tensor log_std  (..., actions)
function M.GaussianActor:forward(obs)
  local y = self.net(obs)
  return y:narrow(-1, 1, self.actions), y:narrow(-1, self.actions + 1, self.actions):clamp(self.least, self.most)
end

--- Draw actions, and the logarithms of their densities, with a gradient (reparametrised).
--- @param obs perilune.Tensor  (..., inputs)
--- @return perilune.Tensor action  (..., actions), in [-1, 1]
--- @return perilune.Tensor logp  (...)
function M.GaussianActor:act(obs)
  local mean, log_std = self:forward(obs)
  local d = peri.dist.SquashedNormal(mean, { log_std = log_std, event = 1 })
  local action, before = d:rsample()
  return action, d:log_prob(action, before)
end

--- What it does when it is not to explore: tanh of the mean.
--- @param obs perilune.Tensor  (..., inputs)
--- @return perilune.Tensor  (..., actions)
function M.GaussianActor:best(obs) return (self:forward(obs)):tanh() end

--- What it does, for a policy file: its mean and log_std.
--- @param build perilune.rl.Program
--- @param x string
--- @return string mean
--- @return string log_std
function M.GaussianActor:program(build, x)
  local y = build:module(self.net, x)
  local function part(i)
    return build:op("narrow", { y }, { dim = -1, start = i * self.actions, length = self.actions })
  end
  return part(0), build:op("clamp", { part(1) }, { min = self.least, max = self.most })
end

local tanh_rules = rules()

--- The policy of DDPG and TD3 (Fujimoto et al. 2018): one action for each observation, in [-1, 1].
---   local actor = rl.TanhActor(3, 1, { hidden = { 400, 300 } })
---   local action = actor(obs)
--- @class perilune.rl.TanhActor
--- @field net perilune.nn.MLP
M.TanhActor = nn.class("TanhActor", function (self, ...)
  local o = options.read("rl.TanhActor", { "inputs", "actions" }, tanh_rules, 4, ...)
  self.net = nn.MLP(sizes(o.inputs, o.hidden, o.actions), { activation = o.activation, init = "uniform" })
end)
options.declare(M.TanhActor, { "inputs", "actions" }, tanh_rules)

--- @param obs perilune.Tensor  (..., inputs)
--- @return perilune.Tensor  (..., actions)
function M.TanhActor:forward(obs) return self.net(obs):tanh() end

--- What it does, for a policy file.
--- @param build perilune.rl.Program
--- @param x string
--- @return string
function M.TanhActor:program(build, x) return build:op("tanh", { build:module(self.net, x) }) end

--- Actions of [-1, 1] as those of a Box with bounds: -1 is its low, 1 its high.
--- @param action perilune.Tensor  (..., actions)
--- @param space perilune.env.Space
--- @return perilune.Tensor
function M.stretched(action, space)
  options.argument("rl.stretched", "action", action, "tensor")
  options.argument("rl.stretched", "space", space, "table")
  if space.kind ~= "box" then
    options.raise(("rl.stretched: the space is %s, expected a box"):format(tostring(space.kind)))
  end
  local low, high = peri.tensor(space.low, "f32"), peri.tensor(space.high, "f32")
  local half = (high - low) * 0.5
  if not half:isfinite():all():item() then
    options.raise "rl.stretched: the space has no bounds on one side; its actions cannot be stretched to them"
  end
  return (low + half + action * half):minimum(high):maximum(low)
end

return M
