-- trust_region.lua - a step of a policy as large as it may be while it stays near the policy that acted: TRPO's.

local peri = require "perilune"
local dist = require "perilune.dist"
local fisher = require "perilune.rl.fisher"
local flat = require "perilune.optim.flat"
local optim = require "perilune.optim"
local options = require "perilune.options"

local M = {}

local rules = {
  policy = options.value(options.required, "callable", "policy() gives the distribution of the states, as it is now"),
  objective = options.value(options.required, "callable", "objective(d) of that distribution, which is to grow: ()"),
  target_kl = options.number(0.01, "(0, inf)", "delta: the mean KL of the old policy to the new one stays below it"),
  iterations = options.integer(15, "[1, inf)", "of conjugate gradients"),
  damping = options.number(0.1, "[0, inf)", "times v is added to each product H v"),
  line_search = options.boolean(true, "false: the whole step is taken, whatever becomes of KL and objective"),
  shrink = options.number(0.8, "(0, 1)", "factor of the step from try to try"),
  tries = options.integer(10, "[1, inf)", "steps that the line search looks at"),
}

--- Move a policy by the natural gradient of an objective (Schulman et al. 2015, "Trust Region Policy Optimization",
--- section 6 and appendix C). With g the gradient and H the Fisher information, conjugate gradients solve H s = g; the
--- step is sqrt(2 delta / s'Hs) s, behind which the KL would be delta if it were quadratic. A line search takes the
--- first step with a KL below delta and a larger objective, shrinking it from try to try; where there is none the
--- parameters stay what they were, bit for bit. Defaults are those of sb3-contrib's TRPO.
---
---     local info = rl.trust_region_({ net.actor }, {
---       policy = function () return net:policy(obs) end,
---       objective = function (d) return ((d:log_prob(action) - logp):exp() * advantage):mean() end })
---
--- @param parameters any  what the policy depends on: a module, named parameters, or a list of these and of tensors
--- @param opts table
--- @return table info  accepted (whether a step was taken), kl and improvement (of it; 0 where none was taken),
--- objective (before), tries, iterations and residual (of the conjugate gradients), step (its length)
function M.trust_region_(parameters, opts)
  local who = "rl.trust_region_"
  local o = options.fill(who, opts, rules)
  local now = o.policy()
  local before = o.objective(now)
  if not peri.is_tensor(before) or before:numel() ~= 1 then
    options.raise(("%s: the objective is %s, expected a tensor of one element"):format(who,
      peri.is_tensor(before) and "of shape " .. options.shape(before) or "a " .. type(before)))
  end
  local entries, tensors = flat.entries(who, parameters), {}
  for i, e in ipairs(entries) do tensors[i] = e[1] end
  local old, theta = now:detach(), optim.flatten(parameters)
  local grads = peri.grad(before:reshape {}, tensors)
  local g = flat.joined(entries, function(p, i) return grads[i] or peri.zeros_like(p) end)
  local info = { accepted = false, kl = 0, improvement = 0, objective = before:item(), tries = 0, step = 0 }
  if not g:isfinite():all():item() then
    options.raise(who .. ": the gradient of the objective holds NaN or inf; nothing was changed")
  end
  local product = fisher.fisher(o.policy(), parameters, { damping = o.damping })
  local s, solved = optim.conjugate_gradient(product, g, { iterations = o.iterations })
  info.iterations, info.residual = solved.iterations, solved.residual
  local curvature = s:mul(product(s)):sum():item()
  if curvature <= 0 then return info end -- a gradient of 0: nothing to gain
  local step = s * math.sqrt(2 * o.target_kl / curvature)
  info.step = step:square():sum():sqrt():item()
  local _ <close> = peri.no_grad()
  for try = 1, o.line_search and o.tries or 1 do
    optim.assign_(parameters, theta + step * o.shrink ^ (try - 1))
    local new = o.policy()
    local kl, improvement = dist.kl(old, new):mean():item(), o.objective(new):item() - info.objective
    info.tries = try
    if not o.line_search or kl < o.target_kl and improvement > 0 then
      info.accepted, info.kl, info.improvement = true, kl, improvement
      return info
    end
  end
  optim.assign_(parameters, theta)
  return info
end
options.declare(M.trust_region_, { "parameters" }, rules)

return M
