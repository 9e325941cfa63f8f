-- importance.lua - the correction of an objective whose samples came from other probabilities than the policy's: of
-- another engine, of rounder numbers, or of an older policy. Where the two are equal every factor is 1 to the bit.
local peri = require "perilune"
local masked = require "perilune.loss.masked"
local options = require "perilune.options"

local M = {}

local rules = {
  mode = options.choice("token_truncate", { "token_truncate", "token_mask", "sequence_truncate", "sequence_mask" },
    "the ratio of each token, or of each answer (the product); held within the bounds (TIS), or 0 outside of them "
    .. "(IcePop: token_mask; MIS: sequence_mask)"),
  max = options.number(2, "(0, inf]", "largest ratio"),
  min = options.number(0, "[0, inf)", "smallest ratio"),
}
M.importance_rules = rules

--- Truncated importance sampling: factors of the objective of each token, logp's probability over that which sampled
--- (TIS, Yao et al. 2025; IcePop, Ling Team 2025). They have no gradient. The exponent is at most 20; a
--- log-probability of the sampler that is NaN, because the engine did not say it, is corrected by nothing. What
--- stands at weight 0 counts nothing, and its factor is 1.
--- @param logp perilune.Tensor  (B, N) of the policy when the update began
--- @param sampled perilune.Tensor  (B, N) that the sampler gave
--- @param weight perilune.Tensor  (B, N) 0 or 1
--- @param opts table?
--- @return perilune.Tensor factor  (B, N), for loss.policy
--- @return table stats  0-dim tensors: ratio_min, ratio_max and ratio_mean of the ratios before they were held, over
--- tokens; masked: share of the tokens whose factor is 0; held: share of those whose factor is another than the ratio
function M.importance(logp, sampled, weight, opts)
  local who = "loss.importance"
  options.argument(who, "logp", logp, "tensor")
  options.argument(who, "sampled", sampled, "tensor")
  options.argument(who, "weight", weight, "tensor")
  local o = options.fill(who, opts, rules)
  if o.min > o.max then error(("%s: min is %g, expected at most max, which is %g"):format(who, o.min, o.max), 2) end
  masked.want_shape(who, "sampled", sampled, logp)
  masked.want_shape(who, "weight", weight, logp)
  local _ <close> = peri.no_grad()
  if weight.dtype ~= "f32" and weight.dtype ~= "f64" then weight = weight:to "f32" end
  local d = masked.counted(logp:sub(sampled), weight)
  d = d:masked_fill(d:isnan(), 0)
  if o.mode:find "^sequence" then d = d:sum(2, true):expand(logp.shape) end
  local largest = masked.log_ratio_max
  local ratio = masked.counted(d:clamp(-largest, largest), weight):exp() -- 1 at weight 0
  local outside = ratio:lt(o.min):logical_or(ratio:gt(o.max))
  local cut = o.mode:find "mask$"
  local factor = cut and ratio:masked_fill(outside, 0) or ratio:clamp(o.min, o.max)
  local tokens = weight:sum():clamp(1)
  local function share(flags) return flags:to(weight.dtype):mul(weight):sum():div(tokens) end
  local none = weight:eq(0)
  local max, min = ratio:masked_fill(none, -math.huge):max(), ratio:masked_fill(none, math.huge):min()
  return factor, {
    ratio_max = max:masked_fill(max:isinf(), 1), ratio_min = min:masked_fill(min:isinf(), 1),
    ratio_mean = ratio:mul(weight):sum():div(tokens), masked = share(factor:eq(0)), held = share(outside),
  }
end
options.declare(M.importance, { "logp", "sampled", "weight" }, rules)

return M
