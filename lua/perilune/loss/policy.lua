-- policy.lua - the losses of policy gradients over log-probabilities of tokens (B, N) and their weights: one function
-- whose options say which. What stands where the weight is 0 - padding, NaN, infinities - is taken out before
-- anything is computed from it: it changes no loss, no statistic and no gradient by a bit.
local peri = require "perilune"
local kl = require "perilune.loss.kl"
local masked = require "perilune.loss.masked"
local options = require "perilune.options"

local M = {}

local counted = masked.counted

-- Per token (B, N), to be made small: fn(c, o) of c.logp, c.old, c.ratio, c.log_ratio, c.advantage, c.weight. Second
-- and third: where it was held because the ratio was too low, or too high (bool).
local objectives = {}

local function beyond(ratio, advantage, low, high)
  return ratio:lt(low):logical_and(advantage:lt(0)), ratio:gt(high):logical_and(advantage:gt(0))
end

-- The log-probabilities that an advantage multiplies: 0 where that is 0, for -inf * 0 is NaN.
local function scored(c) return counted(c.logp, c.advantage) end

-- -min(r A, clip(r) A)  (PPO, 1707.06347 eq. 7).
function objectives.clip(c, o)
  local bounded = c.ratio:clamp(1 - o.clip, 1 + o.clip_high)
  local ratio = o.delta and c.ratio:clamp { max = o.delta } or c.ratio
  return peri.minimum(ratio:mul(c.advantage), bounded:mul(c.advantage)):neg(),
    beyond(c.ratio:detach(), c.advantage, 1 - o.clip, 1 + o.clip_high)
end

-- -A log p  (Williams 1992).
function objectives.reinforce(c) return scored(c):mul(c.advantage):neg() end

-- -sg[clip(r)] A log p  (CISPO, 2506.13585).
function objectives.cispo(c, o)
  local ratio = c.ratio:detach()
  return scored(c):mul(ratio:clamp(1 - o.clip, 1 + o.clip_high):mul(c.advantage)):neg(),
    beyond(ratio, c.advantage, 1 - o.clip, 1 + o.clip_high)
end

-- -A (4 / tau) sigmoid(tau (r - 1))  (SAPO, 2511.20347).
function objectives.sapo(c, o)
  local tau = peri.where(c.advantage:gt(0), peri.full_like(c.advantage, o.tau), peri.full_like(c.advantage, o.tau_low))
  return c.ratio:sub(1):mul(tau):sigmoid():mul(4):div(tau):mul(c.advantage):neg()
end

-- -A exp(mean of log r, held within [-clip, clip_high] where that makes the objective smaller)
-- (GMPO, 2507.20673).
function objectives.gmpo(c, o)
  local sign = c.advantage:sign()
  local d = counted(c.log_ratio, c.advantage)
  local held = peri.minimum(d:mul(sign), d:clamp(-o.clip, o.clip_high):mul(sign)):mul(sign)
  local mean = held:mul(c.weight):sum(2, true):div(c.weight:sum(2, true):clamp(1))
  return mean:clamp({ max = masked.log_ratio_max }):exp():mul(c.advantage):neg(),
    beyond(c.log_ratio:detach(), c.advantage, -o.clip, o.clip_high)
end

-- -sg[min(r, delta)] A log p where the probability has not moved by more than clip in the advantage's direction
-- (DPPO with the binary total variation, 2602.04879).
function objectives.dppo_tv(c, o)
  local moved = c.logp:detach():exp():sub(c.old:exp())
  local low, high = beyond(moved, c.advantage, -o.clip, o.clip_high)
  local ratio = o.delta and c.ratio:detach():clamp { max = o.delta } or c.ratio:detach()
  return scored(c):mul(ratio:mul(c.advantage)):neg():masked_fill(low:logical_or(high), 0), low, high
end

--- Options of the loss that are settings of a run: what a stepper takes and hands on.
M.policy_rules = {
  objective = options.choice("clip", options.names(objectives), "what is made small; see the table of variants"),
  clip = options.number(0.2, "(0, inf]", "the ratio is held above 1 - clip where the advantage is negative; gmpo: "
    .. "its logarithm above -clip; dppo_tv: how far the probability may go; reinforce and sapo hold nothing"),
  clip_high = options.number(options.none, "(0, inf]", "and under 1 + clip_high where it is positive; default: clip"),
  delta = options.number(options.none, "(1, inf]", "the ratio counts up to delta where the advantage is negative: dual "
    .. "clip (Ye et al. 2020), two-sided clipping; above 1 + clip_high; dppo_tv: whatever the advantage"),
  tau = options.number(1, "(0, inf)", "sapo: temperature where the advantage is positive"),
  tau_low = options.number(1.05, "(0, inf)", "sapo: temperature where it is not"),
  level = options.choice("token", { "token", "sequence", "whole" }, "whose ratio: each token's; exp of the "
    .. "mean log-ratio of an answer (GSPO); or the whole answer's, the product (DeepSeek-V3, 2412.19437 eq. 26)"),
  reduce = masked.reduce,
  beta = options.number(0, "[0, inf)", "weight of the KL to ref"),
  kl = kl.rule,
  unbiased_kl = options.boolean(false, "the KL times the ratio: its gradient is right, off-policy "
    .. "too (DeepSeek-V3.2, 2512.02556)"),
  off_policy = options.number(options.none, "[0, inf)", "an answer with a negative advantage counts only while "
    .. "the mean of sampled - logp over it is at most this (DeepSeek-V3.2); the KL counts all"),
  top_entropy = options.number(1, "(0, 1]", "share of the tokens, those of the highest entropy, that are learned from "
    .. "(2506.01939); the KL counts all"),
  entropy_coef = options.number(0, "(-inf, inf)", "weight of the mean entropy of the tokens learned from, which is "
    .. "made large"),
}

local rules = {
  ref = options.value(options.none, "tensor", "(B, N) log-probabilities of the reference; needed with beta"),
  sampled = options.value(options.none, "tensor", "(B, N) log-probabilities that the sampler gave, for off_policy and "
    .. "mismatch_kl; default: old"),
  factor = options.value(options.none, "tensor", "(B, N) or (B, 1) that multiplies the objective: of loss.importance"),
  entropy = options.value(options.none, "tensor", "(B, N) entropies; needed with top_entropy and entropy_coef"),
  entropy_floor = options.number(options.none, nil, "entropy from which on top_entropy learns, of the whole update; "
    .. "default: of this call"),
  entropy_tokens = options.number(options.none, "(0, inf)", "tokens whose mean entropy is taken, of the whole update; "
    .. "default: those of this call"),
}
for _, more in ipairs { M.policy_rules, masked.divisor_rules } do
  for name, rule in pairs(more) do rules[name] = rule end
end

local who = "loss.policy"

-- Options that some objectives have and the others do not.
local special = { delta = { clip = true, dppo_tv = true }, tau = { sapo = true }, tau_low = { sapo = true } }

-- Options that only make sense together.
local function fill(opts, logp, weight)
  local o = options.fill(who, opts, rules, 4)
  o.clip_high = o.clip_high or o.clip
  local function refuse(...) options.raise(who .. ": " .. string.format(...)) end
  if o.beta > 0 and not o.ref then refuse("beta is %g and there is no ref", o.beta) end
  if o.delta and o.objective == "clip" and o.delta <= 1 + o.clip_high then
    refuse("delta is %g, expected more than 1 + clip_high, which is %g", o.delta, 1 + o.clip_high)
  end
  for name, only in pairs(special) do
    if o[name] ~= M.policy_rules[name].default and o[name] ~= nil and not only[o.objective] then
      refuse("objective %s has no %s", o.objective, name)
    end
  end
  if o.objective == "gmpo" and (o.level ~= "token" or o.top_entropy < 1) then
    refuse("objective gmpo takes the mean over an answer's tokens itself: level is %q, top_entropy %g, expected "
      .. "\"token\" and 1", o.level, o.top_entropy)
  end
  for _, name in ipairs { "top_entropy", "entropy_coef" } do
    if o[name] ~= M.policy_rules[name].default and not o.entropy then
      refuse("%s is %g and there is no entropy", name, o[name])
    end
  end
  for _, name in ipairs { "ref", "sampled", "entropy" } do
    if o[name] then
      masked.want_shape(who, name, o[name], logp)
      o[name] = counted(o[name], weight)
    end
  end
  if o.factor then
    if o.factor:size(-1) == 1 then o.factor = o.factor:expand(logp.shape) end
    masked.want_shape(who, "factor", o.factor, logp)
    o.factor = counted(o.factor, weight)
  end
  return o
end

-- The log-ratio whose exponential is the ratio, by level.
local levels = {}

function levels.token(c) return c.logp:sub(c.old) end

-- The mean over an answer, with the gradient of each token (GSPO, 2507.18071 eq. 14).
function levels.sequence(c)
  local delta = c.logp:sub(c.old)
  local mean = delta:detach():mul(c.weight):sum(2, true):div(c.weight:sum(2, true):clamp(1))
  local own = c.logp:sub(c.logp:detach()):masked_fill(c.logp:isinf(), 0) -- 0, with the gradient of each token
  return own:add(mean)
end

-- The whole answer is one choice: log-probabilities are summed first, (B, 1).
function levels.whole(c)
  for _, name in ipairs { "logp", "old", "ref" } do
    c[name] = c[name] and c[name]:mul(c.weight):sum(2, true)
  end
  return c.logp:sub(c.old)
end

-- What of the objective is kept, (B, N) of 0 and 1, or nil for all of it; and the tokens that are learned from.
local function kept(c, o, given)
  local keep
  local function also(flags) keep = keep and keep:logical_and(flags) or flags end
  if o.off_policy then
    local drift = o.sampled:sub(given):mul(c.weight):sum(2, true):div(c.weight:sum(2, true):clamp(1))
    also(c.advantage:ge(0):logical_or(drift:le(o.off_policy)))
  end
  local learned = c.weight
  if o.top_entropy < 1 then
    local floor = o.entropy_floor or M.entropy_floor(o.entropy, c.weight, o.top_entropy)
    local high = o.entropy:detach():ge(floor)
    also(high)
    learned = c.weight:mul(high:to(c.weight.dtype))
  end
  return keep and keep:to(c.weight.dtype), learned
end

-- What became of the ratios, without gradients.
local function statistics(c, o, low, high, keep, given, tokens)
  local weight, dtype = c.weight, c.weight.dtype
  local function mean(x) return x:mul(weight):sum():div(tokens) end
  local none = peri.zeros({}, dtype)
  local low_share, high_share = low and mean(low:to(dtype)) or none, high and mean(high:to(dtype)) or none
  local length = weight:sum(2)
  local function of_rows(flags) -- share of each answer's tokens; NaN-free where it has none
    return flags and flags:to(dtype):mul(weight):sum(2):div(length:clamp(1)) or peri.zeros_like(length)
  end
  local empty, ratio = length:eq(0), c.ratio:detach()
  local left_out = weight:eq(0)
  local max, min = ratio:masked_fill(left_out, -math.huge):max(), ratio:masked_fill(left_out, math.huge):min()
  local low_min = of_rows(low):masked_fill(empty, math.huge):min()
  return {
    clip_low = low_share, clip_high = high_share, clip_fraction = low_share:add(high_share),
    clip_low_min = low_min:masked_fill(low_min:isinf(), 0), clip_high_max = of_rows(high):max(),
    ratio_max = max:masked_fill(max:eq(-math.huge), 1), ratio_min = min:masked_fill(min:eq(math.huge), 1),
    mismatch_kl = mean(kl.estimators.k3(o.sampled, given)), masked = keep and mean(keep:neg():add(1)) or none,
    entropy = o.entropy and mean(o.entropy:detach()),
  }
end

--- The policy-gradient loss of PPO, GRPO and their kin, to be made small: the mean over tokens of an objective, which
--- is -min(r A, clip(r, 1 - clip, 1 + clip_high) A) unless another is named, plus beta times an estimate of the KL to
--- ref, less entropy_coef times the mean entropy. r = exp(logp - old) with the exponent at most 20. Nothing that
--- stands at weight 0 counts, whatever it is. The divisors tokens, sequences, max_length, entropy_tokens and the
--- threshold entropy_floor are those of the whole update (loss.totals counts them), so that micro-batches add up to
--- the same loss, gradient and statistics. Papers' names stand for options: rl.preset.
--- @param logp perilune.Tensor  (B, N) of the policy being trained
--- @param old perilune.Tensor  (B, N) of the policy that sampled
--- @param advantage perilune.Tensor  (B, N), or (B, 1)
--- @param weight perilune.Tensor  (B, N) 0 or 1
--- @param opts table?
--- @return perilune.Tensor loss  0-dim
--- @return table stats  0-dim tensors, as TRL counts them: clip_low (share of the tokens with a negative advantage
--- and a ratio under 1 - clip), clip_high (positive, over 1 + clip_high), clip_fraction (both), clip_low_min and
--- clip_high_max (share of an answer's tokens, the least and the largest); ratio_max and ratio_min (of tokens that
--- count, before anything is held; 1 without any); masked (share of the tokens that off_policy and top_entropy leave
--- out); mismatch_kl (k3 of logp from what sampled, in nats a token); kl (with ref) and entropy (where given), means
--- a token
function M.policy(logp, old, advantage, weight, opts)
  options.argument(who, "logp", logp, "tensor")
  options.argument(who, "old", old, "tensor")
  options.argument(who, "advantage", advantage, "tensor")
  options.argument(who, "weight", weight, "tensor")
  masked.want_shape(who, "old", old, logp)
  masked.want_shape(who, "weight", weight, logp)
  local o = fill(opts, logp, weight)
  if weight.dtype ~= "f32" and weight.dtype ~= "f64" then weight = weight:to "f32" end
  local c = { logp = counted(logp, weight), old = counted(old, weight), advantage = counted(advantage, weight),
              weight = weight, ref = o.ref }
  local given = c.logp:detach()
  o.sampled = o.sampled or c.old
  c.log_ratio = levels[o.level](c)
  c.ratio = c.log_ratio:clamp({ max = masked.log_ratio_max }):exp()
  local divisors = masked.divisors(o, weight)
  local per_token, low, high = objectives[o.objective](c, o)
  local keep, learned = kept(c, o, given)
  if keep then per_token = per_token:mul(keep) end
  if o.factor then per_token = per_token:mul(o.factor) end
  local stats = peri.no_grad(statistics, c, o, low, high, keep, given, divisors.tokens)
  if c.ref then
    local distance = kl.estimators[o.kl](c.logp, c.ref)
    stats.kl = distance:detach():mul(weight):sum():div(divisors.tokens)
    if o.unbiased_kl then distance = distance:mul(c.ratio) end
    if o.beta ~= 0 then per_token = per_token:add(distance:mul(o.beta)) end
  end
  local loss = masked.reductions[o.reduce](per_token, weight, divisors)
  if o.entropy_coef ~= 0 then
    local tokens = o.entropy_tokens or math.max(learned:sum():item(), 1)
    loss = loss:sub(o.entropy:mul(learned):sum():mul(o.entropy_coef / tokens))
  end
  return loss, stats
end
options.declare(M.policy, { "logp", "old", "advantage", "weight" }, rules)

local share_rule = options.number(options.required, "(0, 1]", "share of the tokens")

--- The entropy that a share of the tokens have at least: the quantile 1 - share of what stands at weights that are not
--- 0, between two of them in proportion, as PyTorch's; inf without any.
--- @param entropy perilune.Tensor  (B, N)
--- @param weight perilune.Tensor  (B, N)
--- @param share number  in (0, 1]
--- @return number
function M.entropy_floor(entropy, weight, share)
  options.argument("loss.entropy_floor", "entropy", entropy, "tensor")
  options.argument("loss.entropy_floor", "weight", weight, "tensor")
  local problem = options.problem("share", share, share_rule)
  if problem then options.raise("loss.entropy_floor: " .. problem) end
  local list = {}
  local flags = weight:reshape({ -1 }):tolist()
  for i, value in ipairs(entropy:detach():reshape({ -1 }):tolist()) do
    if flags[i] ~= 0 then list[#list + 1] = value end
  end
  if #list == 0 then return math.huge end
  table.sort(list)
  local at = (1 - share) * (#list - 1) + 1
  local below = math.floor(at)
  local above = list[math.min(below + 1, #list)]
  return list[below] + (at - below) * (above - list[below])
end

local totals_rules = {
  entropy = options.value(options.none, "tensor", "(B, N) of the whole update; needed with top_entropy"),
  top_entropy = M.policy_rules.top_entropy,
}

--- What the parts of an update must know of the whole of it: the divisors of loss.policy and the threshold of its
--- top_entropy, as options.
--- @param weight perilune.Tensor  (B, N) of the whole update
--- @param opts table?
--- @return table  tokens, sequences, max_length; with top_entropy also entropy_floor, entropy_tokens
function M.totals(weight, opts)
  options.argument("loss.totals", "weight", weight, "tensor")
  local o = options.fill("loss.totals", opts, totals_rules)
  local out = masked.divisors({}, weight)
  out.entropy_tokens = out.tokens
  if o.top_entropy < 1 then
    if not o.entropy then error(("loss.totals: top_entropy is %g and there is no entropy"):format(o.top_entropy), 2) end
    out.entropy_floor = M.entropy_floor(o.entropy, weight, o.top_entropy)
    local high = counted(o.entropy:detach(), weight):ge(out.entropy_floor):to(weight.dtype)
    out.entropy_tokens = math.max(high:mul(weight):sum():item(), 1)
  end
  return out
end
options.declare(M.totals, { "weight" }, totals_rules)

local logged = {
  clip_low = "clip_ratio/low_mean", clip_high = "clip_ratio/high_mean", clip_fraction = "clip_ratio/region_mean",
  clip_low_min = "clip_ratio/low_min", clip_high_max = "clip_ratio/high_max", ratio_min = "ratio/min",
  ratio_max = "ratio/max", masked = "ratio/masked", mismatch_kl = "mismatch_kl", kl = "kl", entropy = "entropy",
}

--- Statistics under the names that TRL logs them by: clip_ratio/low_mean, high_mean and region_mean,
--- clip_ratio/low_min and high_max, kl, entropy; and ratio/min, ratio/max, ratio/masked, mismatch_kl. Over the parts
--- of an update those that end with min or max are extremes, the others add up.
--- @param stats table  of loss.policy
--- @return table  name -> 0-dim tensor
function M.named(stats)
  options.argument("loss.named", "stats", stats, "table")
  local out = {}
  for key, value in pairs(stats) do
    if not logged[key] then error(("loss.named: %s is no statistic of loss.policy"):format(tostring(key)), 2) end
    out[logged[key]] = value
  end
  return out
end

return M
