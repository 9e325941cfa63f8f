-- clip.lua - limits for gradients outside of an optimizer's step.

local peri = require "perilune"
local options = require "perilune.options"
local params = require "perilune.optim.params"

local M = {}

local function check(who, name, v, range)
  local problem = options.problem(name, v, options.number(options.required, range))
  if problem then error(("%s: %s"):format(who, problem), 3) end
end

-- The gradients there are, by dtype.
local function gradients(who, given)
  local by_dtype = {}
  for _, p in ipairs(params.list(who, given)) do
    local grad = p.grad
    if grad then
      local list = by_dtype[grad.dtype] or {}
      by_dtype[grad.dtype], list[#list + 1] = list, grad
    end
  end
  return by_dtype
end

--- Scale the gradients of parameters together so that their Euclidean norm is at most max_norm (Pascanu et
--- al. 2013), and return the norm from before. A norm that is not finite leaves them as they are. An
--- optimizer's step{ clip = max_norm } does the same without another pass.
--- @param parameters any  a module, named parameters, or a list of these and of tensors
--- @param max_norm number  in (0, inf]
--- @return number norm
function M.clip_grad_norm_(parameters, max_norm)
  check("clip_grad_norm_", "max_norm", max_norm, "(0, inf]")
  local by_dtype, sum = gradients("clip_grad_norm_", parameters), 0
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  for _, list in pairs(by_dtype) do sum = sum + peri.global_norm(list):item() ^ 2 end
  local norm = math.sqrt(sum)
  if norm == norm and norm < math.huge and norm > max_norm then
    for _, list in pairs(by_dtype) do
      for _, g in ipairs(list) do g:mul_(max_norm / (norm + 1e-6)) end
    end
  end
  return norm
end

--- Limit every element of the gradients of parameters to [-value, value]; NaN stays.
--- @param parameters any  a module, named parameters, or a list of these and of tensors
--- @param value number  in (0, inf)
function M.clip_grad_value_(parameters, value)
  check("clip_grad_value_", "value", value, "(0, inf)")
  for _, list in pairs(gradients("clip_grad_value_", parameters)) do peri.clip_grad_value_(list, value) end
end

return M
