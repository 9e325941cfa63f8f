-- kl.lua - how far a policy is from a reference: estimates from the tokens that were sampled, and the exact value from
-- all logits.
local options = require "perilune.options"
local masked = require "perilune.loss.masked"

local M = {}

local largest = masked.log_ratio_max

-- Of d = logp - ref, a sample of log(policy / reference) under the policy (Schulman, "Approximating KL divergence",
-- 2020).
local estimators = {}

-- No bias, large variance; may be negative.
function estimators.k1(logp, ref) return logp:sub(ref):clamp(-largest, largest) end

-- A bias that is small where the two are near; its expected gradient is that of the KL divergence.
function estimators.k2(logp, ref) return logp:sub(ref):clamp(-largest, largest):square():mul(0.5) end

-- No bias, small variance, never negative: exp(-d) + d - 1, with expm1 because the plain form cancels near 0.
function estimators.k3(logp, ref)
  local d = ref:sub(logp):clamp { max = largest }
  return d:expm1():sub(d)
end

-- The value of one and the gradient of k2: "k3+".
local function straight_through(name)
  return function (logp, ref)
    local right = estimators.k2(logp, ref)
    return right:sub(right:detach()):add(estimators[name](logp, ref):detach())
  end
end
estimators["k1+"], estimators["k3+"] = straight_through "k1", straight_through "k3"

M.estimators = estimators
M.rule = options.choice("k3", { "k1", "k2", "k3", "k1+", "k3+" }, "estimate of the KL: logp - ref; half its square; "
  .. "exp(ref - logp) - 1 - (ref - logp); with + the value of that one and the gradient of k2, which is the right one")

local rules = { estimator = M.rule }

--- KL of the policy to a reference, estimated at each token that the policy sampled. By default k3 = exp(-d) + d - 1,
--- d = logp - ref, with expm1 because the plain form cancels near 0 (Schulman, "Approximating KL divergence", 2020);
--- k1 = d, k2 = d^2 / 2. The mean of k1 and of k3 is the KL divergence, their mean gradient is not: k2's is, and
--- "k1+" and "k3+" have it with the value of the other. Log-ratios count up to 20 (k1 and k2: also from -20); beyond,
--- the value is that at the bound, without a gradient.
--- @param logp perilune.Tensor  of the policy
--- @param ref perilune.Tensor  of the reference, in the same shape
--- @param weight perilune.Tensor?  where it is 0 the result and its gradient are 0; may be left out before options
--- @param opts table?
--- @return perilune.Tensor  shape of logp
function M.kl(logp, ref, weight, opts)
  if opts == nil and type(weight) == "table" then weight, opts = nil, weight end
  options.argument("loss.kl", "logp", logp, "tensor")
  options.argument("loss.kl", "ref", ref, "tensor")
  local o = options.fill("loss.kl", opts, rules)
  if weight then
    options.argument("loss.kl", "weight", weight, "tensor")
    logp, ref = masked.counted(logp, weight), masked.counted(ref, weight)
  end
  return estimators[o.estimator](logp, ref)
end
options.declare(M.kl, { "logp", "ref", "weight" }, rules)

--- The KL divergence of one categorical distribution to another: sum_x p(x) log(p(x) / q(x)), at least 0. What p never
--- does counts nothing, also where q never does it.
--- @param p perilune.Tensor  (..., C) log-probabilities
--- @param q perilune.Tensor  (..., C) log-probabilities
--- @return perilune.Tensor  (...), in nats
function M.between(p, q)
  local never = p:eq(-math.huge)
  return p:exp():mul(p:masked_fill(never, 0):sub(q:masked_fill(never, 0))):sum(-1)
end

--- The KL divergence of one categorical distribution to another, from all their logits: sum_x p(x) log(p(x) / q(x)), at
--- least 0. What p never does counts nothing, also where q never does it.
--- @param logits perilune.Tensor  (..., V) of the policy
--- @param ref perilune.Tensor  (..., V) of the reference
--- @return perilune.Tensor  (...), in nats
function M.exact_kl(logits, ref)
  options.argument("loss.exact_kl", "logits", logits, "tensor")
  options.argument("loss.exact_kl", "ref", ref, "tensor")
  return M.between(logits:log_softmax(-1), ref:log_softmax(-1))
end

return M
