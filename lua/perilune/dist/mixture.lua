-- mixture.lua - mixtures of distributions of one family.
local base = require "perilune.dist.distribution"
local options = require "perilune.options"

local M = {}

local Mixture = base.class("Mixture", {
  rsample = "which component is drawn has no gradient; weigh log_prob by what came of it",
  entropy = "there is no closed form; -d:log_prob(d:sample()) estimates it",
  mode = "there is no closed form; d:deterministic() is that of the likeliest component",
})

--- Mixtures: one of K components is chosen by the softmax of logits, and gives the value.
---   dist.Mixture(logits, dist.Normal(mean, { log_std = log_std, event = 1 }))     -- (B, K); (B, K, A)
--- @param logits perilune.Tensor  (batch, K)
--- @param components perilune.dist.Distribution  of batch (batch, K)
--- @return perilune.dist.Distribution  of components' event
function M.Mixture(logits, components)
  local who = "dist.Mixture"
  options.argument(who, "logits", logits, "tensor")
  local meta = getmetatable(components)
  if type(meta) ~= "table" or meta.why == nil or not components.batch then
    options.raise(("%s: %s, expected a distribution"):format(who, options.is("components", components)))
  end
  if options.shape(logits) ~= options.shape(components.batch) or logits.ndim < 1 then
    options.raise(("%s: logits have shape %s, expected that of the components' batch %s"):format(who,
      options.shape(logits), options.shape(components.batch)))
  end
  local choice = require("perilune.dist.categorical").Categorical(logits)
  local d = { choice = choice, components = components, batch = choice.batch, event = components.event }
  return setmetatable(d, Mixture)
end
options.declare(M.Mixture, { "logits", "components" }, {})

-- Of x (lead, batch, K, event) the component that ids (lead, batch) name.
local function chosen(self, x, ids)
  local at = -1 - #self.event
  local index = ids:unsqueeze(-1)
  for _ = 1, #self.event do index = index:unsqueeze(-1) end
  local shape = base.joined(ids.shape, { 1 })
  return x:gather(index:expand(base.joined(shape, self.event)), at):squeeze(at)
end

function Mixture:_draw(lead)
  local ids = self.choice:_draw(lead)
  return chosen(self, (self.components:_draw(lead)), ids)
end

function Mixture:_log_prob(x)
  local each = self.components:log_prob(x:unsqueeze(-1 - #self.event)) -- (..., K)
  return each:add(self.choice.logits:log_softmax(-1)):logsumexp(-1)
end

function Mixture:_mean()
  local weight = self.choice.logits:softmax(-1)
  for _ = 1, #self.event do weight = weight:unsqueeze(-1) end
  return self.components:mean():mul(weight):sum(-1 - #self.event)
end

function Mixture:_best() return chosen(self, self.components:_best(), self.choice:_mode()) end

return M
