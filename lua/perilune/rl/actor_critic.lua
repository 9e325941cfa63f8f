-- actor_critic.lua - the networks of an actor and a critic over vectors, numbered states or what a body of one's own
-- makes of observations: a policy and a value, apart or on one trunk.

local peri = require "perilune"
local options = require "perilune.options"
local acts = require "perilune.nn.activation"
local head = require "perilune.rl.head"

local nn = peri.nn
local M = {}

local rules = {
  obs = options.value(options.required, "table", "the environment's obs_space: a vector, or one of n; any with body"),
  action = options.value(options.required, "table", "its action_space"),
  hidden = options.value({ 64, 64 }, "table", "sizes of the hidden layers"),
  activation = options.choice("tanh", acts.choices {}, "behind each hidden layer"),
  init = options.choice("orthogonal", { "orthogonal", "uniform" }, "initial weights, uniform are PyTorch's"),
  shared = options.boolean(false, "one trunk for policy and value"),
  body = options.value(options.none, "module", "a trunk of your own, such as convolutions: observations (n, ...) -> "
    .. "(n, width), from which actor and critic are one layer each"),
  width = options.integer(options.none, "[1, inf)", "of what body gives"),
  log_std = options.number(0, "(-inf, inf)", "of continuous actions, at first; it depends on no state"),
}

local function activation(name)
  for _, a in ipairs(peri.activations()) do if a.name == name then return nn[a.layer]() end end
end

local function sizes_of(first, hidden, last)
  local sizes = { first, table.unpack(hidden) }
  sizes[#sizes + 1] = last
  return sizes
end

--- An actor and a critic, fully connected: rl.ActorCritic { obs = env.obs_space, action = env.action_space }. The last
--- layer of the actor begins small (gain 0.01), so that at first all actions are about as likely (Andrychowicz et al.
--- 2021). Several seeds of it are one by nn.Copies. policy.save writes the actor.
--- @class perilune.rl.ActorCritic
--- @field head perilune.rl.Head
--- @field actor perilune.nn.MLP
--- @field critic perilune.nn.MLP
--- @field trunk perilune.nn.Sequential?
--- @field log_std perilune.Tensor?  (1, actions) of continuous actions
M.ActorCritic = nn.class("ActorCritic", function(self, opts)
  local o = options.fill("rl.ActorCritic", opts, rules, 4)
  if (o.body == nil) ~= (o.width == nil) then options.raise "rl.ActorCritic: body and width go together" end
  local n = o.width or o.obs.n or #(o.obs.shape or {}) == 1 and o.obs.shape[1]
  if not n then
    options.raise(("rl.ActorCritic: observations are %s, expected a vector or one of n"):format(tostring(o.obs)))
  end
  local function mlp(first, hidden, last, gain)
    return nn.MLP(sizes_of(first, hidden, last), { activation = o.activation, init = o.init, last_gain = gain })
  end
  self.states, self.head = not o.body and o.obs.n or nil, head.head(o.action)
  local hidden, width = o.hidden, n
  if o.body then self.trunk, hidden = o.body, {}
  elseif o.shared then
    self.trunk = nn.Sequential(mlp(n, table.move(hidden, 1, #hidden - 1, 1, {}), hidden[#hidden], math.sqrt(2)),
      activation(o.activation))
    hidden, width = {}, hidden[#hidden]
  end
  self.actor, self.critic = mlp(width, hidden, self.head.size, 0.01), mlp(width, hidden, 1, 1)
  if self.head.kind == "box" then
    self.log_std = nn.parameter(peri.full({ 1, self.head.size }, o.log_std))
  end
end)
options.declare(M.ActorCritic, {}, rules)

local function features(self, x)
  if self.states then x = x:one_hot(self.states)
  elseif x.dtype ~= "f32" and x.dtype ~= "i64" then x = x:to "f32" end
  return self.trunk and self.trunk(x) or x
end

local function policy_of(self, h, mask)
  return self.head:dist(self.actor(h), (mask or self.log_std) and { mask = mask, log_std = self.log_std })
end

--- The distribution of the actions.
--- @param obs perilune.Tensor  (..., numbers), or (...) i64
--- @param mask perilune.Tensor?  (..., choices) bool, which are legal
--- @return perilune.dist.Distribution
function M.ActorCritic:policy(obs, mask) return policy_of(self, features(self, obs), mask) end

--- The value of the observations.
--- @param obs perilune.Tensor
--- @return perilune.Tensor  (...)
function M.ActorCritic:value(obs) return self.critic(features(self, obs)):squeeze(-1) end

--- Both, the trunk run once.
--- @param obs perilune.Tensor
--- @param mask perilune.Tensor?
--- @return perilune.dist.Distribution
--- @return perilune.Tensor
function M.ActorCritic:both(obs, mask)
  local h = features(self, obs)
  return policy_of(self, h, mask), self.critic(h):squeeze(-1)
end

--- @param obs perilune.Tensor
--- @return perilune.Tensor  (..., head.size) what the distribution is of
--- @return perilune.Tensor  (...) values
function M.ActorCritic:forward(obs)
  local h = features(self, obs)
  return self.actor(h), self.critic(h):squeeze(-1)
end

--- What the file of the policy says: what the actor gives, and the logarithm of deviations.
--- @param build perilune.rl.Program
--- @param x string
--- @return string
--- @return string?
function M.ActorCritic:program(build, x)
  if self.states then x = build:op("one_hot", { x }, { classes = self.states }) end
  if self.trunk then x = build:module(self.trunk, x) end
  x = build:module(self.actor, x)
  if self.log_std then return x, build:op("clone", { self.log_std }) end
  return x
end

return M
