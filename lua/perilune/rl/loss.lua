-- loss.lua - the clipped objective of PPO, GRPO and GSPO and the KL divergence to a reference, over
-- log-probabilities of tokens (B, N) and their weights. What stands where the weight is 0 - padding,
-- NaN, infinities - is taken out before anything is computed from it: it changes no loss, no statistic
-- and no gradient by a bit.
local peri = require "perilune"
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

--- KL of the policy to a reference by the k3 estimator exp(-d) + d - 1, d = logp - ref, with expm1
--- because the plain form cancels near 0 (Schulman, "Approximating KL divergence", 2020). Where the
--- reference is more than e^20 times as likely the value is that at e^20, without a gradient.
--- @param logp perilune.Tensor  of the policy
--- @param ref perilune.Tensor  of the reference, in the same shape
--- @param weight perilune.Tensor?  where it is 0 the result and its gradient are 0
--- @return perilune.Tensor  shape of logp
function M.kl(logp, ref, weight)
  options.argument("rl.kl", "logp", logp, "tensor")
  options.argument("rl.kl", "ref", ref, "tensor")
  if weight then logp, ref = M.counted(logp, weight), M.counted(ref, weight) end
  local d = ref:sub(logp):clamp { max = M.log_ratio_max }
  return d:expm1():sub(d)
end

--- Mean KL of the policy that sampled a batch to a reference model, in nats a token; 0 of a batch
--- without tokens.
--- @param reference table  model
--- @param batch table  of rl.rollout
--- @param temperature number?
--- @return number
function M.kl_to(reference, batch, temperature)
  options.argument("rl.kl_to", "reference", reference, "table")
  options.argument("rl.kl_to", "batch", batch, "table")
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local tokens = batch.mask:sum():item()
  if tokens == 0 then return 0 end
  local whole = batch.sequences or { ids = batch.ids, start = batch.start }
  local ref = reference:token_logprobs(whole, batch.from, { temperature = temperature })
  return M.kl(batch.logprobs, ref, batch.mask):mul(batch.mask):sum():item() / tokens
end

local reductions = {}

-- Every token counts the same (DAPO, 2503.14476 eq. 12).
function reductions.token(per_token, weight, o)
  return per_token:mul(weight):sum():div(o.tokens)
end

-- Every sequence counts the same (DeepSeekMath eq. 3).
function reductions.sequence(per_token, weight, o)
  local length = weight:sum(2):clamp(1)
  return per_token:mul(weight):sum(2):div(length):sum():div(o.sequences)
end

-- A constant divisor, so that length has no influence (Dr. GRPO, 2503.20783).
function reductions.constant(per_token, weight, o)
  return per_token:mul(weight):sum():div(o.sequences * o.max_length)
end

local clipped_rules = {
  clip = options.number(0.2, "(0, inf]", "the ratio is held above 1 - clip where the advantage is negative"),
  clip_high = options.number(options.none, "(0, inf]", "and under 1 + clip_high where it is positive; default: clip"),
  beta = options.number(0, "[0, inf)", "weight of the KL to ref"),
  ref = options.value(options.none, "tensor", "(B, N) log-probabilities of the reference; needed with beta"),
  level = options.choice("token", { "token", "sequence" }, "whose ratio: each token's or the answer's (GSPO)"),
  reduce = options.choice("token", { "token", "sequence", "constant" },
    "what counts the same: every token, every sequence, or all divided by sequences times max_length"),
  tokens = options.number(options.none, "(0, inf)", "divisor of the whole update; default: those of this call"),
  sequences = options.number(options.none, "(0, inf)", "divisor of the whole update; default: B"),
  max_length = options.number(options.none, "(0, inf)", "divisor of reduce = \"constant\"; default: N"),
}

local function want_shape(name, t, like)
  if t.shape ~= like.shape then
    error(("rl.clipped: %s has shape %s, logp has %s"):format(name, options.shape(t), options.shape(like)), 3)
  end
end

-- What became of the ratios, without gradients.
local function statistics(ratio, advantage, weight, o, tokens)
  local _ <close> = peri.no_grad()
  local function share(flags) return flags:to(weight.dtype):mul(weight):sum():div(tokens) end
  local low = share(ratio:lt(1 - o.clip):logical_and(advantage:lt(0)))
  local high = share(ratio:gt(1 + o.clip_high):logical_and(advantage:gt(0)))
  local left_out = weight:eq(0)
  local max, min = ratio:masked_fill(left_out, -math.huge):max(), ratio:masked_fill(left_out, math.huge):min()
  return { clip_low = low, clip_high = high, clip_fraction = low:add(high),
           ratio_max = max:masked_fill(max:eq(-math.huge), 1), ratio_min = min:masked_fill(min:eq(math.huge), 1) }
end

--- The clipped surrogate of PPO and GRPO as a loss to minimise:
--- -min(ratio * A, clip(ratio, 1 - clip, 1 + clip_high) * A) + beta * k3(logp, ref), ratio =
--- exp(logp - old) with the exponent at most 20. Nothing that stands at weight 0 counts, whatever it is.
--- With level = "sequence" the ratio is exp of the mean over an answer's tokens and each token has its
--- own gradient (GSPO, 2507.18071 eq. 14). The divisors tokens, sequences and max_length are those of
--- the whole update, so that micro-batches add up to the same loss, gradient and statistics.
--- @param logp perilune.Tensor  (B, N) of the policy being trained
--- @param old perilune.Tensor  (B, N) of the policy that sampled
--- @param advantage perilune.Tensor  (B, N), or (B, 1)
--- @param weight perilune.Tensor  (B, N) 0 or 1
--- @param opts table?
--- @return perilune.Tensor loss  0-dim
--- @return table stats  0-dim tensors, as TRL's clip_ratio/ counts them: clip_low (share of the tokens with a
--- negative advantage and a ratio under 1 - clip), clip_high (positive, over 1 + clip_high), clip_fraction
--- (both); ratio_max and ratio_min (of tokens that count; 1 without any); kl (with ref; mean in nats a token)
function M.clipped(logp, old, advantage, weight, opts)
  options.argument("rl.clipped", "logp", logp, "tensor")
  options.argument("rl.clipped", "old", old, "tensor")
  options.argument("rl.clipped", "advantage", advantage, "tensor")
  options.argument("rl.clipped", "weight", weight, "tensor")
  local o = options.fill("rl.clipped", opts, clipped_rules)
  o.clip_high = o.clip_high or o.clip
  if o.beta > 0 and not o.ref then error(("rl.clipped: beta is %g and there is no ref"):format(o.beta), 2) end
  want_shape("old", old, logp)
  want_shape("weight", weight, logp)
  if o.ref then want_shape("ref", o.ref, logp) end
  if weight.dtype ~= "f32" and weight.dtype ~= "f64" then weight = weight:to "f32" end
  advantage = M.counted(advantage, weight)
  logp = M.counted(logp, weight)
  local delta = logp:sub(M.counted(old, weight))
  if o.level == "sequence" then
    local mean = delta:detach():mul(weight):sum(2, true):div(weight:sum(2, true):clamp(1))
    local own = logp:sub(logp:detach()):masked_fill(logp:isinf(), 0) -- 0, with the gradient of each token
    delta = own:add(mean)
  end
  local ratio = delta:clamp({ max = M.log_ratio_max }):exp()
  local bounded = ratio:clamp(1 - o.clip, 1 + o.clip_high)
  local per_token = peri.minimum(ratio:mul(advantage), bounded:mul(advantage)):neg()
  local divisors = {
    tokens = o.tokens or math.max(weight:sum():item(), 1),
    sequences = o.sequences or logp:size(1), max_length = o.max_length or logp:size(-1),
  }
  local stats = statistics(ratio:detach(), advantage, weight, o, divisors.tokens)
  if o.ref then
    local kl = M.kl(logp, o.ref, weight)
    stats.kl = kl:detach():mul(weight):sum():div(divisors.tokens)
    if o.beta ~= 0 then per_token = per_token:add(kl:mul(o.beta)) end
  end
  return reductions[o.reduce](per_token, weight, divisors), stats
end
options.declare(M.clipped, { "logp", "old", "advantage", "weight" }, clipped_rules)

return M
