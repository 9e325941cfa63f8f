-- shaping.lua - potential-based shaping of the rewards of a rollout (Ng, Harada and Russell 1999), by a potential that
-- is given or learned: what env.shape_reward does to an environment, for algo.agent's hook.

local peri = require "perilune"
local options = require "perilune.options"
local gae = require "perilune.rl.gae"

local M = {}

local rules = {
  potential = options.value(options.required, "callable", "of observations (n, ...) -> (n), with seeds (seeds, n, ...) "
    .. "-> (seeds, n): a function, a value that was learned before, what preferences say"),
  gamma = options.number(options.required, "[0, 1]", "the learner's discount: with another one it is no such shaping"),
  seeds = gae.rules.seeds,
}

--- What a potential gains at each step of a rollout with obs, final_obs and terminated: gamma Phi(s') - Phi(s), s' the
--- observation that the step led to, Phi(s') = 0 where the episode terminated, not where it was cut (Ng, Harada and
--- Russell 1999, eq. 2). Added to rewards it leaves optimal policies what they are. No gradient passes.
---
---     reward = function (rollout)
---       return rollout:get("reward") + rl.shaping(rollout, { potential = phi, gamma = 0.99 })
---     end
---
--- @param rollout perilune.Rollout
--- @param opts table
--- @return perilune.Tensor  (steps, rows)
function M.shaping(rollout, opts)
  local who = "rl.shaping"
  options.argument(who, "rollout", rollout, "userdata")
  local o = options.fill(who, opts, rules)
  local _ <close> = peri.no_grad()
  local before = gae.values(who, rollout:get "obs", o.potential, o.seeds)
  local after = gae.values(who, rollout:get "final_obs", o.potential, o.seeds)
  options.finite(who, "potential of obs", before)
  options.finite(who, "potential of final_obs", after)
  return peri.where(rollout:get("terminated"):ne(0), peri.zeros_like(after), after * o.gamma) - before
end
options.declare(M.shaping, { "rollout" }, rules)

return M
