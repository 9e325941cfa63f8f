-- value.lua - the loss of a critic: how far its values are from the returns.
local peri = require "perilune"
local masked = require "perilune.loss.masked"
local options = require "perilune.options"

local M = {}

M.value_rules = {
  clip = options.number(options.none, "(0, inf)", "a value that moved further than this from old counts as if it had "
    .. "stopped there, where that makes the loss larger; default: no bound"),
  reduce = masked.reduce,
}

local rules = { old = options.value(options.none, "tensor", "(B, N) values when the update began; needed with clip") }
for _, more in ipairs { M.value_rules, masked.divisor_rules } do
  for name, rule in pairs(more) do rules[name] = rule end
end

--- The loss of values: the mean over tokens of half the squared distance to the returns, with clip that of max((V -
--- R)^2, (clip(V, old - clip, old + clip) - R)^2) / 2  (PPO's implementations; Schulman et al. 2016 without it).
--- Nothing that stands at weight 0 counts, whatever it is. The divisors are those of the whole update, as in
--- loss.policy.
--- @param value perilune.Tensor  (B, N) of the critic being trained
--- @param returns perilune.Tensor  (B, N)
--- @param weight perilune.Tensor  (B, N) 0 or 1
--- @param opts table?
--- @return perilune.Tensor loss  0-dim
--- @return table stats  0-dim tensors: clip_fraction (share of the tokens where the bound decided), error (mean squared
--- distance)
function M.value(value, returns, weight, opts)
  local who = "loss.value"
  options.argument(who, "value", value, "tensor")
  options.argument(who, "returns", returns, "tensor")
  options.argument(who, "weight", weight, "tensor")
  local o = options.fill(who, opts, rules)
  if o.clip and not o.old then error(("%s: clip is %g and there is no old"):format(who, o.clip), 2) end
  for name, t in pairs { returns = returns, weight = weight, old = o.old } do
    masked.want_shape(who, name, t, value, "value")
  end
  if weight.dtype ~= "f32" and weight.dtype ~= "f64" then weight = weight:to "f32" end
  value, returns = masked.counted(value, weight), masked.counted(returns, weight)
  local divisors, far = masked.divisors(o, weight), value:sub(returns):square()
  local per_token, decided = far, nil
  if o.clip then
    local old = masked.counted(o.old, weight)
    local bounded = old:add(value:sub(old):clamp(-o.clip, o.clip)):sub(returns):square()
    per_token, decided = peri.maximum(far, bounded), bounded:gt(far)
  end
  local stats = peri.no_grad(function ()
    local function mean(x) return x:mul(weight):sum():div(divisors.tokens) end
    return { error = mean(far:detach()),
             clip_fraction = decided and mean(decided:to(weight.dtype)) or peri.zeros({}, weight.dtype) }
  end)
  return masked.reductions[o.reduce](per_token:mul(0.5), weight, divisors), stats
end
options.declare(M.value, { "value", "returns", "weight" }, rules)

return M
