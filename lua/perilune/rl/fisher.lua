-- fisher.lua - the Fisher information of a policy, known by its products.
local dist = require "perilune.dist"
local optim = require "perilune.optim"
local options = require "perilune.options"

local M = {}

local rules = { damping = options.number(0, "[0, inf)", "times v is added to each product") }

--- A function v -> F v, F being the Fisher information of a policy on a batch of states: the second derivatives of the
--- mean KL of the policy to itself (Schulman et al. 2015, "Trust Region Policy Optimization", appendix C).
---   local F = rl.fisher(policy(obs), net, { damping = 0.1 })
---   local step = optim.conjugate_gradient(F, gradient, { iterations = 15 })
--- @param d perilune.dist.Distribution  of the states, with a graph into the parameters
--- @param parameters any  a module, named parameters, or a list of these and of tensors; of one dtype
--- @param opts table?
--- @return fun(v: perilune.Tensor): perilune.Tensor  vectors (n) in the order of optim.flatten
function M.fisher(d, parameters, opts)
  local o = options.fill("rl.fisher", opts, rules)
  options.argument("rl.fisher", "d", d, "table")
  local product = optim.curvature(dist.kl(d:detach(), d):mean(), parameters, o)
  return product
end
options.declare(M.fisher, { "d", "parameters" }, rules)

return M
