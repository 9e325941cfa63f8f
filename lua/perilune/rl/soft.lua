-- soft.lua - what learners with a bonus for entropy share: the targets of their values, and the temperature that weighs
-- the bonus.

local peri = require "perilune"
local options = require "perilune.options"

local nn = peri.nn
local M = {}

--- What a value is learned from: reward + discount * value, and reward alone where the episode terminated. An episode
--- that was truncated would have gone on: it has the value of its last observation behind it. No gradient passes.
---   local target = rl.backup(batch, rl.least_value(target(batch.next_obs, action)))
--- @param batch table  reward, discount, terminated (...), as a sample of peri.replay has them
--- @param value perilune.Tensor  (...), of what the step led to
--- @return perilune.Tensor  (...)
function M.backup(batch, value)
  options.argument("rl.backup", "batch", batch, "table")
  options.argument("rl.backup", "value", value, "tensor")
  for _, name in ipairs { "reward", "discount", "terminated" } do
    if batch[name] == nil then options.raise(("rl.backup: the batch has no %s"):format(name)) end
  end
  local _ <close> = peri.no_grad()
  return batch.reward + batch.discount * value:masked_fill(batch.terminated:ne(0), 0)
end

-- The least of the critics: each alone is too high where a policy was chosen by it.
local function least(who, q)
  options.argument(who, "q", q, "tensor")
  return q:size(1) == 1 and q:squeeze(1) or (q:min(1))
end

--- The value of a state by several critics, each of which alone is too high where the policy follows it: the least,
--- min_i q_i (Fujimoto et al. 2018, eq. 10); of a soft learner with the bonus of a drawn action, min_i q_i less
--- alpha log pi (Haarnoja et al. 2018, eq. 3).
--- @param q perilune.Tensor  (critics, ...)
--- @param logp perilune.Tensor?  (...)
--- @param alpha perilune.Tensor|number?  a shape that broadcasts with (...)
--- @return perilune.Tensor  (...)
function M.least_value(q, logp, alpha)
  local value = least("rl.least_value", q)
  return logp and value - alpha * logp or value
end

--- The value of a state to a soft learner that chooses among actions, which is a sum and has no noise of a draw:
--- sum_a pi(a) (min_i q_i(a) - alpha log pi(a)) (Christodoulou 2019, eq. 10 and 12).
--- @param q perilune.Tensor  (critics, ..., actions)
--- @param logp perilune.Tensor  (..., actions): log-probabilities
--- @param alpha perilune.Tensor|number  a shape that broadcasts with (...)
--- @return perilune.Tensor value  (...)
--- @return perilune.Tensor entropy  (...)
function M.expected_value(q, logp, alpha)
  options.argument("rl.expected_value", "logp", logp, "tensor")
  local p, value = logp:exp(), least("rl.expected_value", q)
  local entropy = (p * logp):sum(-1):neg()
  return (p * value):sum(-1) + alpha * entropy, entropy
end

local temperature_rules = {
  learners = options.integer(1, "[1, inf)", "one temperature for each"),
  target = options.number(options.required, "(-inf, inf)", "entropy to keep: minus the numbers of an action, or a "
    .. "share of log(actions)"),
  start = options.number(1, "[0, inf)", "first value"),
  fixed = options.boolean(false, "leave it there"),
}

--- The temperature alpha of an entropy bonus, learned so that the policy's entropy comes to a target: it rises while
--- the entropy is below and falls while it is above, J(alpha) = E[-log alpha (log pi + target)] (Haarnoja et al. 2018b,
--- eq. 18, in the logarithm as published programs have it).
---   local temperature = rl.Temperature { target = -1 }
---   local alpha = temperature()                        -- (learners, 1), without a gradient
---   temperature:loss(entropy):backward()
--- @class perilune.rl.Temperature
--- @field log_alpha perilune.Tensor  (learners, 1)
--- @field target number
M.Temperature = nn.class("Temperature", function (self, ...)
  local o = options.read("rl.Temperature", {}, temperature_rules, 4, ...)
  if o.start == 0 and not o.fixed then
    options.raise "rl.Temperature: start is 0, from which it cannot rise; expected more, or fixed"
  end
  self.log_alpha = nn.parameter(peri.full({ o.learners, 1 }, math.log(o.start)))
  self.target, self.fixed = o.target, o.fixed
  if o.fixed then self:freeze() end
end)
options.declare(M.Temperature, {}, temperature_rules)

--- @return perilune.Tensor  (learners, 1), without a gradient
function M.Temperature:forward() return self.log_alpha:detach():exp() end

--- What it learns from: its gradient is the entropy's excess over the target.
--- @param entropy perilune.Tensor  (learners, n), or estimates of it: -log pi of draws
--- @return perilune.Tensor  ()
function M.Temperature:loss(entropy)
  options.argument("Temperature:loss", "entropy", entropy, "tensor")
  return (self.log_alpha * (entropy:detach() - self.target)):mean(-1):sum()
end

return M
