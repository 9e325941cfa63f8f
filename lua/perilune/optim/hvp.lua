-- hvp.lua - peri.hvp, beside peri.grad.

local curvature = require "perilune.optim.curvature"

--- The product of a loss's second derivatives and a vector, by two backward passes and without forming them. An op in
--- the loss that has no second derivative is named. For several products of one loss see optim.curvature.
--- @param loss perilune.Tensor|fun(): perilune.Tensor  of one element
--- @param parameters any  a module, named parameters, or a list of these and of tensors; of one dtype
--- @param v perilune.Tensor|perilune.Tensor[]  (n) in the order of optim.flatten, or one for each parameter
--- @return perilune.Tensor|perilune.Tensor[]  like v
return function(loss, parameters, v)
  local out = curvature.hvp(loss, parameters, v)
  return out
end
