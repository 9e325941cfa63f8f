-- clip_values.lua - peri.clip_grad_value_, beside the op peri.clip_grad_norm_.

local peri = require "perilune.core"
local options = require "perilune.options"

local rule = options.number(options.required, "(0, inf)")

--- Limit every element of a list of gradients to [-value, value], in place; NaN stays. For the gradients
--- of a module see optim.clip_grad_value_.
--- @param grads perilune.Tensor[]
--- @param value number  in (0, inf)
return function(grads, value)
  local problem = options.problem("value", value, rule)
  if problem then error("clip_grad_value_: " .. problem, 2) end
  if type(grads) ~= "table" then
    error(("clip_grad_value_: grads are a %s, expected a list of tensors"):format(type(grads)), 2)
  end
  for i, g in ipairs(grads) do
    if not peri.is_tensor(g) then
      error(("clip_grad_value_: gradient %d is a %s, expected a tensor"):format(i, type(g)), 2)
    end
    if g.requires_grad and g.is_leaf then
      error(("clip_grad_value_: gradient %d takes gradients itself, it is a parameter: optim.clip_grad_value_ "
        .. "takes these"):format(i), 2)
    end
  end
  local _ <close> = peri.no_grad()
  for _, g in ipairs(grads) do g:clamp_(-value, value) end
end

