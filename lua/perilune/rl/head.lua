-- head.lua - policies over a space of actions: how many numbers a network gives for one, and the distribution that they
-- are of.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

--- @class perilune.rl.Head
--- @field size integer  numbers that the network gives for one action
--- @field kind string  discrete, multi_discrete, multi_binary or box: of the space
--- @field field table  dtype and sizes of an action, for peri.rollout
local Head = {}
Head.__index = Head

local dist_rules = {
  mask = options.value(options.none, "tensor", "bool, which choices are legal"),
  log_std = options.value(options.none, "tensor", "of a box: the logarithm of the deviations"),
}

--- The distribution of the actions, numbered from 0: Categorical, several of them, Bernoulli, or normal (diagonal).
--- @param x perilune.Tensor  (..., size) of the network
--- @param opts table?
--- @return perilune.dist.Distribution
function Head:dist(x, opts)
  local dist = peri.dist
  local d
  if opts == nil and self.kind == "discrete" then -- what rollouts do at every step
    d = dist.Categorical(x)
    return d
  end
  local o = options.fill("head:dist", opts, dist_rules)
  local how = o.mask and { mask = o.mask }
  if self.kind == "discrete" then d = dist.Categorical(x, how)
  elseif self.kind == "multi_discrete" then d = dist.MultiCategorical(x, self.sizes, how)
  elseif self.kind == "multi_binary" then d = dist.Bernoulli(x, { event = 1 })
  else d = dist.Normal(x, { log_std = o.log_std, event = 1 }) end
  return d
end
options.declare(Head.dist, { "self", "x" }, dist_rules)

--- What the environment takes for an action of the distribution: numbered from the space's own start, or within its
--- bounds. The one that was drawn is what is learned from.
--- @param action perilune.Tensor
--- @return perilune.Tensor
function Head:sent(action)
  if self.kind == "box" then return self._within(action) end
  if self.kind == "multi_binary" then return action:to "u8" end
  return self.start == 0 and action or action + self.start
end

-- Actions held within the bounds of a space.
local function within(space, size)
  if type(space.low) == "number" and type(space.high) == "number" then
    return function(x) return x:clamp(space.low, space.high) end
  end
  local low = peri.keep(peri.tensor(space.low, "f32"):expand({ size }):contiguous())
  local high = peri.keep(peri.tensor(space.high, "f32"):expand({ size }):contiguous())
  return function(x) return peri.minimum(peri.maximum(x, low), high) end
end

--- A policy over the actions of a space.
---
---     local head = rl.head(env.action_space)
---     local d = head:dist(net(obs))              -- net gives head.size numbers
---     env:step(head:sent(d:sample()))
---
--- @param space perilune.env.Space
--- @return perilune.rl.Head
function M.head(space)
  options.argument("rl.head", "space", space, "table")
  local self = { kind = space.kind, start = 0 }
  if space.kind == "discrete" then self.size, self.start, self.field = space.n, space.start or 0, { "i64" }
  elseif space.kind == "multi_discrete" then
    self.size, self.sizes, self.field = 0, space.nvec, { "i64", #space.nvec }
    for _, n in ipairs(space.nvec) do self.size = self.size + n end
  elseif #(space.shape or {}) ~= 1 then
    options.raise(("rl.head: actions are %s, expected choices or a vector"):format(tostring(space)))
  else
    self.size, self.field = space.shape[1], { "f32", space.shape[1] }
    if space.kind == "box" then self._within = within(space, self.size) end
  end
  return setmetatable(self, Head)
end
options.declare(M.head, { "space" }, {})

M.Head = Head

return M
