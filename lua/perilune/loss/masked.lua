-- masked.lua - what every loss over tokens does with their weights: it leaves out what stands at weight 0, and it
-- divides by counts of the whole update, so that micro-batches add up.
local options = require "perilune.options"

local M = {}

--- The bound of log-ratios: one above it counts as it and has no gradient, so that ratios stay under
--- e^20 = 4.9e8 and products with them finite (the bound of OpenRLHF and verl). NaN stays NaN.
M.log_ratio_max = 20

--- x where the weight is not 0 and 0 elsewhere, with a gradient of 0 there: by choice, since a product
--- with 0 keeps NaN and infinities, in the value and in the gradient.
--- @param x perilune.Tensor
--- @param weight perilune.Tensor  broadcasts with x
--- @return perilune.Tensor
function M.counted(x, weight) return x:masked_fill(weight:eq(0), 0) end

--- Raise unless a tensor has the shape of another.
--- @param who string
--- @param name string
--- @param t perilune.Tensor
--- @param like perilune.Tensor
--- @param of string?  what that is called; default: logp
function M.want_shape(who, name, t, like, of)
  if t.shape == like.shape then return end
  options.raise(("%s: %s has shape %s, %s has %s"):format(who, name, options.shape(t), of or "logp",
    options.shape(like)))
end

--- How losses of tokens become one number, by name: fn(per_token (B, N) or (B, 1), weight (B, N), divisors).
M.reductions = {}

-- Every token counts the same (DAPO, 2503.14476 eq. 12).
function M.reductions.token(per_token, weight, by)
  return per_token:mul(weight):sum():div(by.tokens)
end

-- Every sequence counts the same (DeepSeekMath eq. 3).
function M.reductions.sequence(per_token, weight, by)
  local length = weight:sum(2):clamp(1)
  return per_token:mul(weight):sum(2):div(length):sum():div(by.sequences)
end

-- Every sequence counts as much as it is long (LUSPO, 2602.05261; REINFORCE of whole answers).
function M.reductions.sum(per_token, weight, by)
  return per_token:mul(weight):sum():div(by.sequences)
end

-- A constant divisor, so that length has no influence (Dr. GRPO, 2503.20783).
function M.reductions.constant(per_token, weight, by)
  return per_token:mul(weight):sum():div(by.sequences * by.max_length)
end

M.reduce = options.choice("token", { "token", "sequence", "sum", "constant" }, "what counts the same: every token; "
  .. "every sequence; every sequence with its sum over tokens; or sums divided by sequences times max_length")

--- Rules of the divisors that a loss takes.
M.divisor_rules = {
  tokens = options.number(options.none, "(0, inf)", "divisor of the whole update; default: those of this call"),
  sequences = options.number(options.none, "(0, inf)", "divisor of the whole update; default: B"),
  max_length = options.number(options.none, "(0, inf)", "divisor of reduce = \"constant\"; default: N"),
}

--- The divisors of a loss.
--- @param o table  options that were filled in
--- @param weight perilune.Tensor  (B, N)
--- @return table  tokens, sequences, max_length
function M.divisors(o, weight)
  return { tokens = o.tokens or math.max(weight:sum():item(), 1), sequences = o.sequences or weight:size(1),
           max_length = o.max_length or weight:size(-1) }
end

return M
